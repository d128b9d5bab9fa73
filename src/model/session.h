/* A login session as plain data. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "model/vm.h"

#define SESSION_ID_TEXT 33 /* 128 random bits in hex */
#define SESSION_PROVIDER_MAX 32

enum session_status {
    SESSION_STARTED,
    SESSION_VM_CREATED,
    SESSION_AWAITING_USER_AUTH,
    SESSION_AUTHENTICATING,
    SESSION_COMPLETED,
    SESSION_FAILED,
    SESSION_CANCELLED,
    SESSION_TIMEOUT,
};
#define SESSION_STATUS_COUNT 8

enum session_event {
    SESSION_EVENT_VM_CREATED,
    SESSION_EVENT_DESKTOP_READY,
    SESSION_EVENT_CANCEL,
    SESSION_EVENT_FAIL,
};

struct session {
    char id[SESSION_ID_TEXT];
    char user[VM_USER_MAX + 1];
    char provider[SESSION_PROVIDER_MAX + 1];
    enum session_status status;
    char vm_id[VM_ID_TEXT]; /* empty until there is one */
    int64_t created_ms;     /* real time */
    int64_t timeout_ms;     /* real time; 0: none */
    char reason[VM_REASON_MAX];
};

const char *session_status_name(enum session_status status);
int session_status_parse(const char *name, enum session_status *ret_status);
bool session_status_is_end(enum session_status status);

/* The status that follows. Return: 0, or -EPROTO where the table has no row (nothing is written then). */
int session_transition(enum session_status from, enum session_event event, enum session_status *ret_to);

bool session_id_is_valid(const char *id);

/* A login session as plain data: its statuses and the one table of what may follow what. No I/O. */
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

/* What happens to a session. The table in session.c says which status follows. */
enum session_event {
    SESSION_EVENT_VM_CREATED,
    SESSION_EVENT_DESKTOP_READY, /* its user could log in from now on: the time limit counts */
    SESSION_EVENT_LOGIN_BEGUN,   /* the tool shows its user where to log in */
    SESSION_EVENT_LOGIN_AGAIN,   /* that login came to nothing; there is time for another */
    SESSION_EVENT_COMPLETE,      /* the login works, the credential is in the vault */
    SESSION_EVENT_FAIL,
    SESSION_EVENT_CANCEL,
    SESSION_EVENT_TIMEOUT,
};
#define SESSION_EVENT_COUNT 8

struct session {
    char id[SESSION_ID_TEXT];
    char user[VM_USER_MAX + 1];
    char provider[SESSION_PROVIDER_MAX + 1];
    enum session_status status;
    char vm_id[VM_ID_TEXT]; /* empty until there is one */
    int64_t created_ms;     /* real time */
    int64_t timeout_ms;     /* real time; 0: none yet */
    int64_t seen_ms;        /* real time of its page's last sign of life; 0: no page was there */
    char reason[VM_REASON_MAX];
};

const char *session_status_name(enum session_status status);
int session_status_parse(const char *name, enum session_status *ret_status);
bool session_status_is_end(enum session_status status);
const char *session_event_name(enum session_event event);

/* The status that follows. Return: 0, or -EPROTO where the table has no row (nothing is written then). */
int session_transition(enum session_status from, enum session_event event, enum session_status *ret_to);

bool session_id_is_valid(const char *id);

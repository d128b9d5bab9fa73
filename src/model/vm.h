/* A VM as plain data: identity, states, the table of what may follow what. No I/O. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "model/net.h"

#define VM_ID_TEXT 40  /* "vm-" and a version 4 UUID, 39 characters */
#define VM_USER_MAX 64 /* characters of a user id */
#define VM_TAP_TEXT 16 /* "fc-vm-" and 9 hex digits: IFNAMSIZ with the NUL */
#define VM_TAP_PREFIX "fc-vm-"
#define VM_REASON_MAX 400

enum vm_type {
    VM_TYPE_CLI,
    VM_TYPE_BROWSER,
};
#define VM_TYPE_COUNT 2

enum vm_state {
    VM_STATE_CREATING,
    VM_STATE_BOOTING,
    VM_STATE_RUNNING,
    VM_STATE_HIBERNATING,
    VM_STATE_HIBERNATED,
    VM_STATE_RESUMING,
    VM_STATE_STOPPING,
    VM_STATE_STOPPED,
    VM_STATE_FAILED,
};
#define VM_STATE_COUNT 9

/* What happens to a VM. The table in vm.c says which state follows. */
enum vm_event {
    VM_EVENT_STARTED,          /* the VMM runs */
    VM_EVENT_PATH_PROVEN,      /* the host reaches the guest */
    VM_EVENT_STOP,             /* somebody wants it gone */
    VM_EVENT_ENDED,            /* the VMM is gone after a stop, everything is cleaned up */
    VM_EVENT_FAILED,           /* it cannot go on */
    VM_EVENT_HIBERNATE,        /* it is to cost no memory for a while */
    VM_EVENT_HIBERNATED,       /* its VMM is gone; its disk, and mostly its memory, are kept */
    VM_EVENT_HIBERNATE_FAILED, /* its memory could not be kept: it runs on */
    VM_EVENT_RESUME,           /* it is wanted again */
    VM_EVENT_RESUMED,          /* the host reaches the guest again */
    VM_EVENT_RESUME_FAILED,    /* it could not be brought back: it is kept as it was */
};

struct vm {
    char id[VM_ID_TEXT];
    char user[VM_USER_MAX + 1];
    enum vm_type type;
    enum vm_state state;
    int64_t state_since_ms; /* real time */
    int64_t created_ms;     /* real time */
    uint32_t ip;
    struct net_mac mac;
    char tap[VM_TAP_TEXT];
    char bridge[16];
    uint32_t vcpus;
    uint32_t memory_mib;
    uint32_t uid; /* of the VMM's process */
    char image[96];
    char vmm[16];
    char host[64];
    char reason[VM_REASON_MAX]; /* why it is in its state; empty while all is well */
    int reachable;              /* 1 yes, 0 no, -1 not known */
    int32_t pid;                /* of the VMM; 0: none */
    uint64_t pid_start;         /* start time in clock ticks since boot: with pid names one process for good */
};

const char *vm_type_name(enum vm_type type);
int vm_type_parse(const char *name, enum vm_type *ret_type);
const char *vm_state_name(enum vm_state state);
int vm_state_parse(const char *name, enum vm_state *ret_state);
const char *vm_event_name(enum vm_event event);

/* The state that follows. Return: 0, or -EPROTO where the table has no row (nothing is written then). */
int vm_transition(enum vm_state from, enum vm_event event, enum vm_state *ret_to);

/* Whether a VM in this state has ended: its record is history. */
bool vm_state_is_end(enum vm_state state);

/* A user id is 1 to 64 of A-Z a-z 0-9 . _ @ -, the first a letter or digit. Error: "user.invalid". */
int vm_user_check(const char *user, size_t len, struct err *err);

/* Whether text has the form of a VM id. */
bool vm_id_is_valid(const char *id);

/* Writes the id of 16 random bytes: "vm-" and the UUID with its version and variant bits set (RFC 9562 5.4). */
void vm_id_from_random(const uint8_t random[16], char ret_id[VM_ID_TEXT]);

/* "fc-vm-" and the first 9 hex digits of the id's UUID. Not unique by itself: the store makes sure. */
void vm_tap_from_id(const char *id, char ret_tap[VM_TAP_TEXT]);

/* 02:fc and 4 random bytes: a locally administered unicast address. */
struct net_mac vm_mac_from_random(const uint8_t random[4]);

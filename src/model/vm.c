#include "model/vm.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"

#define TAP_PREFIX "fc-vm-"
#define TAP_DIGITS 9

static const char *const type_names[VM_TYPE_COUNT] = {
    [VM_TYPE_CLI] = "cli",
    [VM_TYPE_BROWSER] = "browser",
};

static const char *const state_names[VM_STATE_COUNT] = {
    [VM_STATE_CREATING] = "creating",       [VM_STATE_BOOTING] = "booting",       [VM_STATE_RUNNING] = "running",
    [VM_STATE_HIBERNATING] = "hibernating", [VM_STATE_HIBERNATED] = "hibernated", [VM_STATE_RESUMING] = "resuming",
    [VM_STATE_STOPPING] = "stopping",       [VM_STATE_STOPPED] = "stopped",       [VM_STATE_FAILED] = "failed",
};

static const char *const event_names[] = {
    [VM_EVENT_STARTED] = "started",
    [VM_EVENT_PATH_PROVEN] = "path-proven",
    [VM_EVENT_STOP] = "stop",
    [VM_EVENT_ENDED] = "ended",
    [VM_EVENT_FAILED] = "failed",
    [VM_EVENT_HIBERNATE] = "hibernate",
    [VM_EVENT_HIBERNATED] = "hibernated",
    [VM_EVENT_HIBERNATE_FAILED] = "hibernate-failed",
    [VM_EVENT_RESUME] = "resume",
    [VM_EVENT_RESUMED] = "awake", /* "resumed" is what is told of a machine that stood still (vm/halt.c) */
    [VM_EVENT_RESUME_FAILED] = "resume-failed",
};

/* The whole lifecycle. A pair that is not here cannot happen. */
static const struct {
    enum vm_state from;
    enum vm_event event;
    enum vm_state to;
} transitions[] = {
    {VM_STATE_CREATING, VM_EVENT_STARTED, VM_STATE_BOOTING},
    {VM_STATE_CREATING, VM_EVENT_FAILED, VM_STATE_FAILED},
    {VM_STATE_CREATING, VM_EVENT_STOP, VM_STATE_STOPPING},
    {VM_STATE_BOOTING, VM_EVENT_PATH_PROVEN, VM_STATE_RUNNING},
    {VM_STATE_BOOTING, VM_EVENT_FAILED, VM_STATE_FAILED},
    {VM_STATE_BOOTING, VM_EVENT_STOP, VM_STATE_STOPPING},
    {VM_STATE_RUNNING, VM_EVENT_FAILED, VM_STATE_FAILED},
    {VM_STATE_RUNNING, VM_EVENT_STOP, VM_STATE_STOPPING},
    {VM_STATE_STOPPING, VM_EVENT_ENDED, VM_STATE_STOPPED},
    {VM_STATE_RUNNING, VM_EVENT_HIBERNATE, VM_STATE_HIBERNATING},
    {VM_STATE_HIBERNATING, VM_EVENT_HIBERNATED, VM_STATE_HIBERNATED},
    {VM_STATE_HIBERNATING, VM_EVENT_HIBERNATE_FAILED, VM_STATE_RUNNING},
    {VM_STATE_HIBERNATING, VM_EVENT_FAILED, VM_STATE_FAILED},
    {VM_STATE_HIBERNATING, VM_EVENT_STOP, VM_STATE_STOPPING},
    {VM_STATE_HIBERNATED, VM_EVENT_RESUME, VM_STATE_RESUMING},
    {VM_STATE_HIBERNATED, VM_EVENT_STOP, VM_STATE_STOPPING},
    {VM_STATE_RESUMING, VM_EVENT_RESUMED, VM_STATE_RUNNING},
    {VM_STATE_RESUMING, VM_EVENT_RESUME_FAILED, VM_STATE_HIBERNATED},
    {VM_STATE_RESUMING, VM_EVENT_FAILED, VM_STATE_FAILED},
    {VM_STATE_RESUMING, VM_EVENT_STOP, VM_STATE_STOPPING},
};

const char *vm_type_name(enum vm_type type) {
    return type_names[type];
}

int vm_type_parse(const char *name, enum vm_type *ret_type) {
    for (size_t i = 0; i < VM_TYPE_COUNT; i++)
        if (strcmp(name, type_names[i]) == 0) {
            *ret_type = (enum vm_type)i;
            return 0;
        }
    return -EINVAL;
}

const char *vm_state_name(enum vm_state state) {
    return state_names[state];
}

int vm_state_parse(const char *name, enum vm_state *ret_state) {
    for (size_t i = 0; i < VM_STATE_COUNT; i++)
        if (strcmp(name, state_names[i]) == 0) {
            *ret_state = (enum vm_state)i;
            return 0;
        }
    return -EINVAL;
}

const char *vm_event_name(enum vm_event event) {
    return event_names[event];
}

int vm_transition(enum vm_state from, enum vm_event event, enum vm_state *ret_to) {
    for (size_t i = 0; i < sizeof transitions / sizeof *transitions; i++)
        if (transitions[i].from == from && transitions[i].event == event) {
            *ret_to = transitions[i].to;
            return 0;
        }
    return -EPROTO;
}

bool vm_state_is_end(enum vm_state state) {
    return state == VM_STATE_STOPPED || state == VM_STATE_FAILED;
}

int vm_user_check(const char *user, size_t len, struct err *err) {
    bool good = len >= 1 && len <= VM_USER_MAX && isalnum((unsigned char)user[0]);
    for (size_t i = 0; good && i < len; i++)
        good = (unsigned char)user[i] < 0x80 && (isalnum((unsigned char)user[i]) || strchr("._@-", user[i]));
    if (good && memchr(user, '\0', len) == NULL)
        return 0;
    char shown[100];
    str_escape(user, len < 60 ? len : 60, shown, sizeof shown);
    err_set(err, EINVAL, "user.invalid", "user id \"%s\"%s (%zu bytes) is not valid", shown, len > 60 ? "…" : "", len);
    return err_hint(err, "use 1 to %d of A-Z a-z 0-9 . _ @ -, beginning with a letter or digit", VM_USER_MAX);
}

/* "vm-xxxxxxxx-xxxx-4xxx-yxxx-xxxxxxxxxxxx" in lower case. */
bool vm_id_is_valid(const char *id) {
    static const char form[] = "vm-hhhhhhhh-hhhh-4hhh-vhhh-hhhhhhhhhhhh";
    if (strlen(id) != sizeof form - 1)
        return false;
    for (size_t i = 0; form[i]; i++) {
        bool hex = (id[i] >= '0' && id[i] <= '9') || (id[i] >= 'a' && id[i] <= 'f');
        bool good = i < 3            ? id[i] == form[i]
                    : form[i] == 'h' ? hex
                    : form[i] == 'v' ? id[i] == '8' || id[i] == '9' || id[i] == 'a' || id[i] == 'b'
                                     : id[i] == form[i];
        if (!good)
            return false;
    }
    return true;
}

void vm_id_from_random(const uint8_t random[16], char ret_id[VM_ID_TEXT]) {
    uint8_t u[16];
    char hex[33];
    memcpy(u, random, sizeof u);
    u[6] = (uint8_t)((u[6] & 0x0f) | 0x40);
    u[8] = (uint8_t)((u[8] & 0x3f) | 0x80);
    str_hex(u, sizeof u, hex);
    snprintf(ret_id, VM_ID_TEXT, "vm-%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12, hex + 16, hex + 20);
}

void vm_tap_from_id(const char *id, char ret_tap[VM_TAP_TEXT]) {
    char digits[TAP_DIGITS + 1];
    size_t n = 0;
    for (const char *p = id + strlen("vm-"); *p && n < TAP_DIGITS; p++)
        if (*p != '-')
            digits[n++] = *p;
    digits[n] = '\0';
    snprintf(ret_tap, VM_TAP_TEXT, TAP_PREFIX "%s", digits);
}

struct net_mac vm_mac_from_random(const uint8_t random[4]) {
    return (struct net_mac){{0x02, 0xfc, random[0], random[1], random[2], random[3]}};
}

#include "model/session.h"

#include <errno.h>
#include <string.h>

static const char *const status_names[SESSION_STATUS_COUNT] = {
    [SESSION_STARTED] = "started",
    [SESSION_VM_CREATED] = "vm_created",
    [SESSION_AWAITING_USER_AUTH] = "awaiting_user_auth",
    [SESSION_AUTHENTICATING] = "authenticating",
    [SESSION_COMPLETED] = "completed",
    [SESSION_FAILED] = "failed",
    [SESSION_CANCELLED] = "cancelled",
    [SESSION_TIMEOUT] = "timeout",
};

static const char *const event_names[SESSION_EVENT_COUNT] = {
    [SESSION_EVENT_VM_CREATED] = "vm-created",   [SESSION_EVENT_DESKTOP_READY] = "desktop-ready",
    [SESSION_EVENT_LOGIN_BEGUN] = "login-begun", [SESSION_EVENT_LOGIN_AGAIN] = "login-again",
    [SESSION_EVENT_COMPLETE] = "completed",      [SESSION_EVENT_FAIL] = "failed",
    [SESSION_EVENT_CANCEL] = "cancelled",        [SESSION_EVENT_TIMEOUT] = "timeout",
};

/* Before the desktop can be used a session has no time limit of its own: a VM that does not come up fails by the VM's
 * boot deadline, and its session with it. */
static const struct {
    enum session_status from;
    enum session_event event;
    enum session_status to;
} transitions[] = {
    {SESSION_STARTED, SESSION_EVENT_VM_CREATED, SESSION_VM_CREATED},
    {SESSION_STARTED, SESSION_EVENT_FAIL, SESSION_FAILED},
    {SESSION_STARTED, SESSION_EVENT_CANCEL, SESSION_CANCELLED},
    {SESSION_VM_CREATED, SESSION_EVENT_DESKTOP_READY, SESSION_AWAITING_USER_AUTH},
    {SESSION_VM_CREATED, SESSION_EVENT_FAIL, SESSION_FAILED},
    {SESSION_VM_CREATED, SESSION_EVENT_CANCEL, SESSION_CANCELLED},
    {SESSION_AWAITING_USER_AUTH, SESSION_EVENT_LOGIN_BEGUN, SESSION_AUTHENTICATING},
    {SESSION_AWAITING_USER_AUTH, SESSION_EVENT_COMPLETE, SESSION_COMPLETED},
    {SESSION_AWAITING_USER_AUTH, SESSION_EVENT_FAIL, SESSION_FAILED},
    {SESSION_AWAITING_USER_AUTH, SESSION_EVENT_CANCEL, SESSION_CANCELLED},
    {SESSION_AWAITING_USER_AUTH, SESSION_EVENT_TIMEOUT, SESSION_TIMEOUT},
    {SESSION_AUTHENTICATING, SESSION_EVENT_LOGIN_AGAIN, SESSION_AWAITING_USER_AUTH},
    {SESSION_AUTHENTICATING, SESSION_EVENT_COMPLETE, SESSION_COMPLETED},
    {SESSION_AUTHENTICATING, SESSION_EVENT_FAIL, SESSION_FAILED},
    {SESSION_AUTHENTICATING, SESSION_EVENT_CANCEL, SESSION_CANCELLED},
    {SESSION_AUTHENTICATING, SESSION_EVENT_TIMEOUT, SESSION_TIMEOUT},
};

const char *session_status_name(enum session_status status) {
    return status_names[status];
}

int session_status_parse(const char *name, enum session_status *ret_status) {
    for (size_t i = 0; i < SESSION_STATUS_COUNT; i++)
        if (strcmp(name, status_names[i]) == 0) {
            *ret_status = (enum session_status)i;
            return 0;
        }
    return -EINVAL;
}

const char *session_event_name(enum session_event event) {
    return event_names[event];
}

bool session_status_is_end(enum session_status status) {
    return status >= SESSION_COMPLETED;
}

int session_transition(enum session_status from, enum session_event event, enum session_status *ret_to) {
    for (size_t i = 0; i < sizeof transitions / sizeof *transitions; i++)
        if (transitions[i].from == from && transitions[i].event == event) {
            *ret_to = transitions[i].to;
            return 0;
        }
    return -EPROTO;
}

bool session_id_is_valid(const char *id) {
    return strlen(id) == SESSION_ID_TEXT - 1 && strspn(id, "0123456789abcdef") == SESSION_ID_TEXT - 1;
}

/* Login sessions: each has a browser VM whose desktop its user sees. Tickets and cookies say who may see it; only
 * their hashes are stored. Everything runs on the loop's thread.
 *
 * A session's life. It is stored before its VM is made, and follows it: booting has the VM's own deadline, and the time
 * limit ([session] timeout) counts from the moment that the desktop could be used. A page says by heartbeats that it is
 * there, which extends nothing; a session whose page was there and is gone for [session] abandoned_after ends as
 * cancelled. What ends, ends in this order: status and event in one transaction, then who looks at the desktop is told,
 * then the VM goes; a daemon that is killed in between does the rest at its next start. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "loop/loop.h"
#include "model/config.h"
#include "model/session.h"
#include "session/login.h"
#include "store/store.h"
#include "vault/vault.h"
#include "vm/vms.h"

#define SESSIONS_SECRET_TEXT 65 /* 256 random bits in hex */

struct sessions;

struct sessions_params {
    struct loop *loop;
    struct store *store;
    struct vms *vms;
    struct vault *vault; /* NULL: nobody is logged in, and no credential goes anywhere */
    const struct config *config;
};

/* Brings the sessions of the last daemon in line with their VMs. Pointers of params stay the caller's. */
int sessions_new(const struct sessions_params *params, struct sessions **ret_sessions, struct err *err);

/* Frees memory: the sessions go on. Takes NULL. */
void sessions_free(struct sessions *sessions);

/* What the room above knows. watched: whether somebody is connected to the session's desktop now, who counts as its
 * page. ended: called after the end was stored and before the VM is ended. */
struct sessions_listener {
    bool (*watched)(void *userdata, const char *id);
    void (*ended)(void *userdata, const struct session *session);
    void *userdata;
};
void sessions_listen(struct sessions *sessions, const struct sessions_listener *listener);

/* The user's active session with this provider, or a new one with a VM that boots. Errors: "provider.unknown", and
 * those of vms_create(); nothing is left behind then but the record of a failed session. */
int sessions_start(struct sessions *sessions, const char *user, const char *provider, const char *actor,
                   struct session *ret_session, bool *ret_is_new, struct err *err);

/* Errors: -ENOENT "session.not-found". */
int sessions_get(struct sessions *sessions, const char *id, struct session *ret_session, struct err *err);

/* Its VM. Error: -ENOENT "vm.not-found": it has none yet, or never had one. */
int sessions_vm(struct sessions *sessions, const struct session *session, struct vm *ret_vm, struct err *err);

/* Ends it and its VM. Errors: -ENOENT, -EALREADY "session.ended". */
int sessions_cancel(struct sessions *sessions, const char *id, const char *actor, const char *reason,
                    struct session *ret_session, struct err *err);

/* Its page is there. Errors: -ENOENT, -EALREADY "session.ended". */
int sessions_heartbeat(struct sessions *sessions, const char *id, struct session *ret_session, struct err *err);

/* The login in the session's VM. Errors: -ENOENT "session.no-login": it has none, or none yet; -EALREADY "session.ended". */
int sessions_login(struct sessions *sessions, const struct session *session, struct login_view *ret_view,
                   struct err *err);

/* Gives the login's tool the code that its user carries. Errors: as above, and those of login_input(). */
int sessions_input(struct sessions *sessions, const struct session *session, const char *text, size_t len,
                   struct err *err);

/* Whether that version of the user's credential is in a CLI VM. */
bool sessions_credential_where(struct sessions *sessions, const char *user, const char *provider, uint64_t version,
                               char ret_vm[VM_ID_TEXT]);

/* Makes a ticket: one use, lifetime_ms. Errors: "session.ended". */
int sessions_ticket(struct sessions *sessions, const struct session *session, int64_t lifetime_ms,
                    char ret_ticket[SESSIONS_SECRET_TEXT], struct err *err);

/* Takes a ticket for a cookie of the same session. Errors: -ENOENT "session.no-credential". */
int sessions_redeem(struct sessions *sessions, const char *id, const char *ticket,
                    char ret_cookie[SESSIONS_SECRET_TEXT], struct err *err);

/* Whether the cookie is one of this session. Return: 0 or -ENOENT. */
int sessions_check_cookie(struct sessions *sessions, const char *id, const char *cookie, struct err *err);

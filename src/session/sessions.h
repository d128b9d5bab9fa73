/* Login sessions: each has a browser VM whose desktop its user sees. Tickets and cookies say who may see it; only
 * their hashes are stored. Everything runs on the loop's thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "model/config.h"
#include "model/session.h"
#include "store/store.h"
#include "vm/vms.h"

#define SESSIONS_SECRET_TEXT 65 /* 256 random bits in hex */

struct sessions;

/* Brings the sessions of the last daemon in line with their VMs. The pointers stay the caller's. */
int sessions_new(struct store *store, struct vms *vms, const struct config *config, struct sessions **ret_sessions,
                 struct err *err);
void sessions_free(struct sessions *sessions);

/* The user's active session with this provider, or a new one with a VM that boots. Errors: "provider.unknown", and
 * those of vms_create(); nothing is left behind then but the record of a failed session. */
int sessions_start(struct sessions *sessions, const char *user, const char *provider, const char *actor,
                   struct session *ret_session, bool *ret_is_new, struct err *err);

/* Errors: -ENOENT "session.not-found". */
int sessions_get(struct sessions *sessions, const char *id, struct session *ret_session, struct err *err);

/* Ends it and its VM. Errors: -ENOENT, -EALREADY "session.ended". */
int sessions_cancel(struct sessions *sessions, const char *id, const char *actor, const char *reason,
                    struct session *ret_session, struct err *err);

/* Makes a ticket: one use, lifetime_ms. Errors: "session.ended". */
int sessions_ticket(struct sessions *sessions, const struct session *session, int64_t lifetime_ms,
                    char ret_ticket[SESSIONS_SECRET_TEXT], struct err *err);

/* Takes a ticket for a cookie of the same session. Errors: -ENOENT "session.no-credential". */
int sessions_redeem(struct sessions *sessions, const char *id, const char *ticket,
                    char ret_cookie[SESSIONS_SECRET_TEXT], struct err *err);

/* Whether the cookie is one of this session. Return: 0 or -ENOENT. */
int sessions_check_cookie(struct sessions *sessions, const char *id, const char *cookie, struct err *err);

/* What outlives the daemon: VMs, their events, sessions, tickets and cookies. One store belongs to one daemon (the
 * daemon holds a lock on its state folder); everything here runs on the loop's thread.
 *
 * Each function that changes something is one transaction: after a crash it has happened or it has not. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "model/credential.h"
#include "model/session.h"
#include "model/token.h"
#include "model/vm.h"

#define STORE_HASH_SIZE 32
#define STORE_ACTOR_MAX 96
#define STORE_EVENTS_MAX 1000 /* of one VM */

struct store;

/* Opens or makes the database and brings its schema up to date. A schema that is newer than this program is refused
 * and left alone ("store.newer"). `host` is written into every record made here. */
int store_open(const char *path, const char *host, struct store **ret_store, struct err *err);

/* Until then somebody else's lock is waited for for seconds; from then on for a moment, as the event loop waits too. */
void store_started(struct store *store);

void store_close(struct store *store);

/* --- VMs --- */

/* Claims a record: id, TAP, MAC, IP and uid are unique among VMs that have not ended. Writes the first event too.
 * Errors: -EEXIST "store.taken" (another VM has one of them: try again with others), -EDQUOT "quota.user" when the
 * user has `quota` live VMs already. */
int store_vm_claim(struct store *store, const struct vm *vm, uint32_t quota, const char *actor, struct err *err);

/* A record that was claimed for nobody in particular gets its user: user, created_ms and state_since_ms of vm; as a claim
 * otherwise. Error: "quota.user". */
int store_vm_take(struct store *store, const struct vm *vm, uint32_t quota, const char *actor, struct err *err);

/* Whether the user may have one more: as store_vm_claim(). */
int store_vm_check_quota(struct store *store, const char *user, uint32_t quota, struct err *err);

/* Return: 0 or -ENOENT, or another -errno with err. */
int store_vm_get(struct store *store, const char *id, struct vm *ret_vm, struct err *err);

/* The VM whose id begins with `prefix` (an id itself is its own prefix). With a user, only that user's VMs are there:
 * another's is told, and takes as long, as one that nobody has. Errors: -ENOENT, -ENOTUNIQ "vm.ambiguous". */
int store_vm_find(struct store *store, const char *prefix, const char *user, struct vm *ret_vm, struct err *err);

/* The address of the VM that was made last, ended ones included; 0 when there was none. */
int store_vm_last_ip(struct store *store, uint32_t *ret_ip, struct err *err);

/* Addresses of VMs that have ended after since_ms (real time), the last `max` at most. */
struct store_rest {
    uint32_t ip;
    int64_t ended_ms;
};
int store_vm_ended_since(struct store *store, int64_t since_ms, struct store_rest *ret, size_t max, size_t *ret_n,
                         struct err *err);

enum store_which {
    STORE_LIVE, /* not ended */
    STORE_ALL,
};

/* VMs, newest first; user NULL: everybody's. The caller frees *ret_vms. */
int store_vm_list(struct store *store, const char *user, enum store_which which, struct vm **ret_vms, size_t *ret_n,
                  struct err *err);

/* Writes all changeable fields of the record (state, state_since_ms, reason, reachable, pid, pid_start) and, where
 * event is not NULL, the event, in one transaction. Only vm/'s one function that changes a state calls it. */
struct store_event {
    int64_t at_ms;
    char actor[STORE_ACTOR_MAX];
    char event[24];
    char from[24], to[24]; /* state names; empty where the state did not change */
    char reason[VM_REASON_MAX];
    char evidence[64]; /* where it is, below the state folder; empty: none */
};
int store_vm_update(struct store *store, const struct vm *vm, const struct store_event *event, struct err *err);

/* Removes at most `max` VMs that ended before a time, with their events, and as many sessions that were made before it.
 * *ret_n is the number of VMs. */
int store_expire(struct store *store, int64_t before_ms, uint32_t max, uint32_t *ret_n, struct err *err);

/* The story of a VM or a session, oldest first. The caller frees *ret_events. */
int store_events(struct store *store, const char *about, struct store_event **ret_events, size_t *ret_n,
                 struct err *err);

/* The same of all of them, with numbers that grow: what followed one number is asked for by it, by a later daemon too. Those
 * of records that expire go. */
struct store_news {
    int64_t number;
    char about[VM_ID_TEXT]; /* a VM's or a session's id */
    struct store_event event;
};

/* 0: there is none. */
int store_news_last(struct store *store, int64_t *ret_number, struct err *err);

/* Those after a number, oldest first, at most `max` of them. */
int store_news(struct store *store, int64_t after, struct store_news *ret, size_t max, size_t *ret_n, struct err *err);

/* --- Sessions --- */

/* Errors: -EEXIST "session.active" when the user has an active one with this provider. */
int store_session_add(struct store *store, const struct session *session, const struct store_event *event,
                      struct err *err);
int store_session_get(struct store *store, const char *id, struct session *ret_session, struct err *err);

/* Writes status, vm_id, timeout_ms and reason of a session that has not ended, and the event, in one transaction. Only
 * session/'s one function that changes a status calls it. Errors: -ENOENT "session.not-found", for an ended one too. */
int store_session_update(struct store *store, const struct session *session, const struct store_event *event,
                         struct err *err);

/* Its page was there at seen_ms (real time). */
int store_session_seen(struct store *store, const char *id, int64_t seen_ms, struct err *err);

/* The session that a VM was made for. Return: 0 or -ENOENT. */
int store_session_of_vm(struct store *store, const char *vm_id, struct session *ret_session, struct err *err);

/* The user's active session with this provider. Return: 0 or -ENOENT. */
int store_session_find(struct store *store, const char *user, const char *provider, struct session *ret_session,
                       struct err *err);

/* Sessions, newest first. The caller frees *ret_sessions. */
int store_session_list(struct store *store, enum store_which which, struct session **ret_sessions, size_t *ret_n,
                       struct err *err);

/* --- Tickets and cookies: only hashes are kept --- */

enum store_secret {
    STORE_TICKET, /* taken once */
    STORE_COOKIE, /* looked up until it expires */
};

int store_secret_add(struct store *store, enum store_secret kind, const uint8_t hash[STORE_HASH_SIZE],
                     const char *session_id, int64_t expires_ms, struct err *err);

/* Forgets a cookie. One that is not there is no error. */
int store_secret_remove(struct store *store, const uint8_t hash[STORE_HASH_SIZE], struct err *err);

/* Whether the secret is of this session and not expired at now_ms; a ticket is gone after it was found.
 * Return: 0, or -ENOENT. Expired ones are removed when a ticket is looked for. */
int store_secret_use(struct store *store, enum store_secret kind, const uint8_t hash[STORE_HASH_SIZE],
                     const char *session_id, int64_t now_ms, struct err *err);

/* --- Users' tokens: only hashes are kept --- */

/* Errors: -EEXIST "store.taken": the id is another's. */
int store_token_add(struct store *store, const struct token *token, const uint8_t hash[STORE_HASH_SIZE],
                    struct err *err);

/* The token with that hash that has not expired at now_ms; notes that it was used. Return: 0, or -ENOENT. */
int store_token_use(struct store *store, const uint8_t hash[STORE_HASH_SIZE], int64_t now_ms, struct token *ret_token,
                    struct err *err);

/* A user's tokens, or everybody's (NULL), expired ones included. The caller frees *ret_tokens. */
int store_token_list(struct store *store, const char *user, struct token **ret_tokens, size_t *ret_n, struct err *err);

/* Errors: -ENOENT "token.not-found". */
int store_token_remove(struct store *store, const char *id, struct token *ret_token, struct err *err);

/* --- Credentials: sealed by vault/, which alone can open them --- */

#define STORE_WRAPPED_SIZE 72               /* nonce, data key, tag */
#define STORE_SEALED_MAX (256 * 1024 + 128) /* nonce, credential, tag */

struct store_credential {
    struct credential about;
    uint8_t wrapped[STORE_WRAPPED_SIZE];
    uint8_t *sealed;
    size_t sealed_len; /* bytes */
};

/* The caller ends with store_credential_done(). Errors: -ENOENT "vault.none", "vault.damaged". */
int store_credential_get(struct store *store, const char *user, const char *provider,
                         struct store_credential *ret_credential, struct err *err);
void store_credential_done(struct store_credential *credential);

/* Stores a new version in the place of version `former` (0: there is none yet), so that it outlives a loss of power.
 * Errors: -ESTALE "vault.changed", -EEXIST "store.taken". */
int store_credential_put(struct store *store, const struct store_credential *credential, uint64_t former,
                         struct err *err);

/* Another key's wrapping of the same data key, of exactly that version. Not synced: store_sync(). */
int store_credential_rewrap(struct store *store, const struct credential *credential,
                            const uint8_t wrapped[STORE_WRAPPED_SIZE], struct err *err);

/* Gives it to another owner, where owner and version are still as in `credential`. Error: -ESTALE. */
int store_credential_own(struct store *store, const struct credential *credential, const char *owner_vm,
                         struct err *err);

/* Sets logged_out_ms, likewise. Error: -ESTALE. */
int store_credential_log_out(struct store *store, const struct credential *credential, int64_t at_ms, struct err *err);

/* Error: -ENOENT "vault.none". */
int store_credential_remove(struct store *store, const char *user, const char *provider, struct err *err);

/* A user's, or everybody's (NULL). The caller frees *ret_list. */
int store_credential_list(struct store *store, const char *user, struct credential **ret_list, size_t *ret_n,
                          struct err *err);

/* What is changed between these two is one transaction: the end commits it when r is 0 and takes it back when not; it
 * returns r, or the commit's own failure. */
int store_transaction(struct store *store, struct err *err);
int store_transaction_end(struct store *store, int r, struct err *err);

/* Waits until all that was written is on the disk. Error: -EBUSY "store.busy". */
int store_sync(struct store *store, struct err *err);

/* --- Single values, such as the admin token's hash --- */

/* Return: 0, or -ENOENT. The buffer gets a NUL. */
int store_value_get(struct store *store, const char *name, char *ret_value, size_t size, struct err *err);
int store_value_set(struct store *store, const char *name, const char *value, struct err *err);

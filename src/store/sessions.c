#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"
#include "store/sqlite.h"

#define SESSION_COLUMNS "id, user, provider, status, vm_id, created_ms, timeout_ms, seen_ms, reason"

static int read_session(struct query *q, struct session *ret_session, struct err *err) {
    struct session s = {0};
    char status[24];
    query_get_text(q, s.id, sizeof s.id);
    query_get_text(q, s.user, sizeof s.user);
    query_get_text(q, s.provider, sizeof s.provider);
    query_get_text(q, status, sizeof status);
    query_get_text(q, s.vm_id, sizeof s.vm_id);
    s.created_ms = query_get_int(q);
    s.timeout_ms = query_get_int(q);
    s.seen_ms = query_get_int(q);
    query_get_text(q, s.reason, sizeof s.reason);
    if (session_status_parse(status, &s.status) < 0)
        return err_set(err, EPROTO, "store.failed", "the record of session %s has status \"%s\"", s.id, status);
    *ret_session = s;
    return 0;
}

static int insert_session(struct store *store, const struct session *s, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(
        &q, store, "INSERT INTO session (" SESSION_COLUMNS ", ended, host) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
        err);
    if (r < 0)
        return r;
    query_text(&q, s->id);
    query_text(&q, s->user);
    query_text(&q, s->provider);
    query_text(&q, session_status_name(s->status));
    query_text(&q, s->vm_id);
    query_int(&q, s->created_ms);
    query_int(&q, s->timeout_ms);
    query_int(&q, s->seen_ms);
    query_text(&q, s->reason);
    query_text(&q, store->host);
    r = query_step(&q, err);
    if (r == -EEXIST)
        return err_set(err, EEXIST, "session.active", "user %s has an active session with %s", s->user, s->provider);
    return r;
}

int store_session_add(struct store *store, const struct session *s, const struct store_event *event, struct err *err) {
    int r = store_begin(store, err);
    if (r < 0)
        return r;
    r = insert_session(store, s, err);
    if (r == 0)
        r = store_event_add(store, s->id, event, err);
    return store_end(store, r, err);
}

static int no_session(struct err *err) {
    return err_set(err, ENOENT, "session.not-found", "there is no such session");
}

int store_session_get(struct store *store, const char *id, struct session *ret_session, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, "SELECT " SESSION_COLUMNS " FROM session WHERE id = ?", err);
    if (r < 0)
        return r;
    query_text(&q, id);
    r = query_step(&q, err);
    return r < 0 ? r : r == 0 ? no_session(err) : read_session(&q, ret_session, err);
}

int store_session_find(struct store *store, const char *user, const char *provider, struct session *ret_session,
                       struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store,
                       "SELECT " SESSION_COLUMNS " FROM session WHERE user = ? AND provider = ? AND ended = 0", err);
    if (r < 0)
        return r;
    query_text(&q, user);
    query_text(&q, provider);
    r = query_step(&q, err);
    return r < 0 ? r : r == 0 ? no_session(err) : read_session(&q, ret_session, err);
}

int store_session_of_vm(struct store *store, const char *vm_id, struct session *ret_session, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store,
                       "SELECT " SESSION_COLUMNS " FROM session WHERE vm_id = ? ORDER BY created_ms DESC LIMIT 1", err);
    if (r < 0)
        return r;
    query_text(&q, vm_id);
    r = query_step(&q, err);
    return r < 0 ? r : r == 0 ? no_session(err) : read_session(&q, ret_session, err);
}

/* One that has ended stays as it is, whoever comes late. */
static int update_session(struct store *store, const struct session *s, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(
        &q, store,
        "UPDATE session SET status = ?, ended = ?, vm_id = ?, timeout_ms = ?, reason = ? WHERE id = ? AND ended = 0",
        err);
    if (r < 0)
        return r;
    query_text(&q, session_status_name(s->status));
    query_int(&q, session_status_is_end(s->status));
    query_text(&q, s->vm_id);
    query_int(&q, s->timeout_ms);
    query_text(&q, s->reason);
    query_text(&q, s->id);
    r = query_step(&q, err);
    return r == 0 && sqlite3_changes(store->db) != 1 ? no_session(err) : r;
}

int store_session_update(struct store *store, const struct session *s, const struct store_event *event,
                         struct err *err) {
    int r = store_begin(store, err);
    if (r < 0)
        return r;
    r = update_session(store, s, err);
    if (r == 0)
        r = store_event_add(store, s->id, event, err);
    return store_end(store, r, err);
}

int store_session_seen(struct store *store, const char *id, int64_t seen_ms, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, "UPDATE session SET seen_ms = ? WHERE id = ? AND ended = 0", err);
    if (r < 0)
        return r;
    query_int(&q, seen_ms);
    query_text(&q, id);
    return query_step(&q, err);
}

int store_session_list(struct store *store, enum store_which which, struct session **ret_sessions, size_t *ret_n,
                       struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(
        &q, store,
        "SELECT " SESSION_COLUMNS " FROM session WHERE ended = 0 OR ? ORDER BY created_ms DESC, id LIMIT 20000", err);
    if (r < 0)
        return r;
    query_int(&q, which == STORE_ALL);
    _cleanup_free_ struct session *sessions = NULL;
    size_t n = 0, cap = 0;
    while ((r = query_step(&q, err)) > 0) {
        r = store_grow(&sessions, n, &cap, sizeof *sessions, err);
        if (r == 0)
            r = read_session(&q, &sessions[n], err);
        if (r < 0)
            return r;
        n++;
    }
    if (r < 0)
        return r;
    *ret_sessions = ptr_steal(sessions);
    *ret_n = n;
    return 0;
}

int store_secret_add(struct store *store, enum store_secret kind, const uint8_t hash[STORE_HASH_SIZE],
                     const char *session_id, int64_t expires_ms, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, "INSERT INTO secret (hash, kind, session_id, expires_ms) VALUES (?, ?, ?, ?)", err);
    if (r < 0)
        return r;
    query_blob(&q, hash, STORE_HASH_SIZE);
    query_int(&q, kind);
    query_text(&q, session_id);
    query_int(&q, expires_ms);
    return query_step(&q, err);
}

static int drop_expired(struct store *store, int64_t now_ms, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, "DELETE FROM secret WHERE expires_ms <= ?", err);
    if (r < 0)
        return r;
    query_int(&q, now_ms);
    return query_step(&q, err);
}

/* A ticket is found by deleting it: of two that come at once, one finds it. */
static int delete_ticket(struct store *store, const uint8_t hash[STORE_HASH_SIZE], const char *session_id,
                         struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, "DELETE FROM secret WHERE hash = ? AND kind = ? AND session_id = ?", err);
    if (r < 0)
        return r;
    query_blob(&q, hash, STORE_HASH_SIZE);
    query_int(&q, STORE_TICKET);
    query_text(&q, session_id);
    r = query_step(&q, err);
    return r < 0 ? r : sqlite3_changes(store->db) == 1 ? 0 : -ENOENT;
}

/* A cookie is looked up often and must not wait for a writer: it is only read. */
static int find_cookie(struct store *store, const uint8_t hash[STORE_HASH_SIZE], const char *session_id, int64_t now_ms,
                       struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store,
                       "SELECT 1 FROM secret WHERE hash = ? AND kind = ? AND session_id = ? AND expires_ms > ?", err);
    if (r < 0)
        return r;
    query_blob(&q, hash, STORE_HASH_SIZE);
    query_int(&q, STORE_COOKIE);
    query_text(&q, session_id);
    query_int(&q, now_ms);
    r = query_step(&q, err);
    return r < 0 ? r : r > 0 ? 0 : -ENOENT;
}

static int take_ticket(struct store *store, const uint8_t hash[STORE_HASH_SIZE], const char *session_id, int64_t now_ms,
                       struct err *err) {
    int r = store_begin(store, err);
    if (r < 0)
        return r;
    int found = -ENOENT;
    r = drop_expired(store, now_ms, err);
    if (r == 0) {
        found = delete_ticket(store, hash, session_id, err);
        r = found == -ENOENT ? 0 : found;
    }
    r = store_end(store, r, err);
    return r < 0 ? r : found;
}

int store_secret_use(struct store *store, enum store_secret kind, const uint8_t hash[STORE_HASH_SIZE],
                     const char *session_id, int64_t now_ms, struct err *err) {
    int r = kind == STORE_COOKIE ? find_cookie(store, hash, session_id, now_ms, err)
                                 : take_ticket(store, hash, session_id, now_ms, err);
    if (r == -ENOENT)
        return err_set(err, ENOENT, "session.no-credential", "the ticket or cookie is not known, used or too old");
    return r;
}

int store_secret_remove(struct store *store, const uint8_t hash[STORE_HASH_SIZE], struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, "DELETE FROM secret WHERE hash = ? AND kind = ?", err);
    if (r < 0)
        return r;
    query_blob(&q, hash, STORE_HASH_SIZE);
    query_int(&q, STORE_COOKIE);
    return query_step(&q, err);
}

int store_value_get(struct store *store, const char *name, char *ret_value, size_t size, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, "SELECT value FROM value WHERE name = ?", err);
    if (r < 0)
        return r;
    query_text(&q, name);
    r = query_step(&q, err);
    if (r <= 0)
        return r < 0 ? r : err_set(err, ENOENT, "store.no-value", "the store has no value \"%s\"", name);
    query_get_text(&q, ret_value, size);
    return 0;
}

int store_value_set(struct store *store, const char *name, const char *value, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store,
                       "INSERT INTO value (name, value) VALUES (?, ?)"
                       " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                       err);
    if (r < 0)
        return r;
    query_text(&q, name);
    query_text(&q, value);
    return query_step(&q, err);
}

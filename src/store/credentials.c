#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "store/sqlite.h"

#define CREDENTIAL_COLUMNS "user, provider, version, owner_vm, created_ms, updated_ms, key_id, logged_out_ms"

static struct credential read_credential(struct query *q) {
    struct credential c = {0};
    query_get_text(q, c.user, sizeof c.user);
    query_get_text(q, c.provider, sizeof c.provider);
    c.version = (uint64_t)query_get_int(q);
    query_get_text(q, c.owner_vm, sizeof c.owner_vm);
    c.created_ms = query_get_int(q);
    c.updated_ms = query_get_int(q);
    query_get_blob(q, c.key_id, sizeof c.key_id);
    c.logged_out_ms = query_get_int(q);
    return c;
}

static int none(const char *user, const char *provider, struct err *err) {
    return err_set(err, ENOENT, "vault.none", "there is no credential of user %s for %s", user, provider);
}

int store_credential_get(struct store *store, const char *user, const char *provider,
                         struct store_credential *ret_credential, struct err *err) {
    _cleanup_query_ struct query q;
    struct store_credential c = {0};
    int r = query_open(&q, store,
                       "SELECT " CREDENTIAL_COLUMNS ", wrapped, sealed, length(sealed) FROM credential"
                       " WHERE user = ? AND provider = ?",
                       err);
    if (r < 0)
        return r;
    query_text(&q, user);
    query_text(&q, provider);
    r = query_step(&q, err);
    if (r <= 0)
        return r < 0 ? r : none(user, provider, err);
    c.about = read_credential(&q);
    query_get_blob(&q, c.wrapped, sizeof c.wrapped);
    int64_t len = sqlite3_column_int64(q.stmt, q.column + 1);
    if (len < 1 || len > STORE_SEALED_MAX)
        return err_set(err, EPROTO, "vault.damaged", "the credential of user %s for %s has %lld bytes", user, provider,
                       (long long)len);
    c.sealed_len = (size_t)len;
    c.sealed = malloc(c.sealed_len);
    if (!c.sealed)
        return err_sys(err, ENOMEM, "vault.failed", "read a credential");
    query_get_blob(&q, c.sealed, c.sealed_len);
    *ret_credential = c;
    return 0;
}

void store_credential_done(struct store_credential *c) {
    free(c->sealed);
    *c = (struct store_credential){0};
}

/* Return: 0, or -ESTALE where the statement met no record. */
static int step_one(struct query *q, struct err *err) {
    int r = query_step(q, err);
    if (r < 0 || sqlite3_changes(q->store->db) == 1)
        return r;
    return err_set(err, ESTALE, "vault.changed", "somebody else has changed the credential meanwhile");
}

static int insert(struct store *store, const struct store_credential *c, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store,
                       "INSERT INTO credential (" CREDENTIAL_COLUMNS ", wrapped, sealed)"
                       " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                       err);
    if (r < 0)
        return r;
    query_text(&q, c->about.user);
    query_text(&q, c->about.provider);
    query_int(&q, (int64_t)c->about.version);
    query_text(&q, c->about.owner_vm);
    query_int(&q, c->about.created_ms);
    query_int(&q, c->about.updated_ms);
    query_blob(&q, c->about.key_id, sizeof c->about.key_id);
    query_int(&q, c->about.logged_out_ms);
    query_blob(&q, c->wrapped, sizeof c->wrapped);
    query_blob(&q, c->sealed, c->sealed_len);
    return step_one(&q, err);
}

static int update(struct store *store, const struct store_credential *c, uint64_t former, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store,
                       "UPDATE credential SET version = ?, owner_vm = ?, updated_ms = ?, key_id = ?,"
                       " logged_out_ms = ?, wrapped = ?, sealed = ? WHERE user = ? AND provider = ? AND version = ?",
                       err);
    if (r < 0)
        return r;
    query_int(&q, (int64_t)c->about.version);
    query_text(&q, c->about.owner_vm);
    query_int(&q, c->about.updated_ms);
    query_blob(&q, c->about.key_id, sizeof c->about.key_id);
    query_int(&q, c->about.logged_out_ms);
    query_blob(&q, c->wrapped, sizeof c->wrapped);
    query_blob(&q, c->sealed, c->sealed_len);
    query_text(&q, c->about.user);
    query_text(&q, c->about.provider);
    query_int(&q, (int64_t)former);
    return step_one(&q, err);
}

/* Who reads on for long delays the disk, and undoes nothing. */
static int sync_now(struct store *store) {
    int r = store_sync(store, NULL);
    return r == -EBUSY ? 0 : r;
}

int store_credential_put(struct store *store, const struct store_credential *c, uint64_t former, struct err *err) {
    int r = former == 0 ? insert(store, c, err) : update(store, c, former, err);
    if (r < 0)
        return r;
    return sync_now(store);
}

int store_credential_rewrap(struct store *store, const struct credential *c, const uint8_t wrapped[STORE_WRAPPED_SIZE],
                            struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store,
                       "UPDATE credential SET key_id = ?, wrapped = ? WHERE user = ? AND provider = ? AND version = ?",
                       err);
    if (r < 0)
        return r;
    query_blob(&q, c->key_id, sizeof c->key_id);
    query_blob(&q, wrapped, STORE_WRAPPED_SIZE);
    query_text(&q, c->user);
    query_text(&q, c->provider);
    query_int(&q, (int64_t)c->version);
    return step_one(&q, err);
}

int store_credential_own(struct store *store, const struct credential *c, const char *owner_vm, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store,
                       "UPDATE credential SET owner_vm = ? WHERE user = ? AND provider = ? AND version = ?"
                       " AND owner_vm = ?",
                       err);
    if (r < 0)
        return r;
    query_text(&q, owner_vm);
    query_text(&q, c->user);
    query_text(&q, c->provider);
    query_int(&q, (int64_t)c->version);
    query_text(&q, c->owner_vm);
    return step_one(&q, err);
}

int store_credential_log_out(struct store *store, const struct credential *c, int64_t at_ms, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store,
                       "UPDATE credential SET logged_out_ms = ? WHERE user = ? AND provider = ? AND version = ?"
                       " AND owner_vm = ?",
                       err);
    if (r < 0)
        return r;
    query_int(&q, at_ms);
    query_text(&q, c->user);
    query_text(&q, c->provider);
    query_int(&q, (int64_t)c->version);
    query_text(&q, c->owner_vm);
    return step_one(&q, err);
}

static int remove_one(struct store *store, const char *user, const char *provider, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, "DELETE FROM credential WHERE user = ? AND provider = ?", err);
    if (r < 0)
        return r;
    query_text(&q, user);
    query_text(&q, provider);
    r = query_step(&q, err);
    if (r == 0 && sqlite3_changes(store->db) != 1)
        return none(user, provider, err);
    return r;
}

int store_credential_remove(struct store *store, const char *user, const char *provider, struct err *err) {
    int r = remove_one(store, user, provider, err);
    return r < 0 ? r : sync_now(store);
}

int store_credential_list(struct store *store, const char *user, struct credential **ret_list, size_t *ret_n,
                          struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store,
                       "SELECT " CREDENTIAL_COLUMNS " FROM credential WHERE ?1 = '' OR user = ?1"
                       " ORDER BY user, provider",
                       err);
    if (r < 0)
        return r;
    query_text(&q, user ? user : "");
    _cleanup_free_ struct credential *list = NULL;
    size_t n = 0, cap = 0;
    while ((r = query_step(&q, err)) > 0) {
        r = store_grow(&list, n, &cap, sizeof *list, err);
        if (r < 0)
            return r;
        list[n++] = read_credential(&q);
    }
    if (r < 0)
        return r;
    *ret_list = ptr_steal(list);
    *ret_n = n;
    return 0;
}

int store_transaction(struct store *store, struct err *err) {
    return store_begin(store, err);
}

int store_transaction_end(struct store *store, int r, struct err *err) {
    return store_end(store, r, err);
}

/* Commits are synced by checkpoints alone (synchronous = NORMAL): a loss of power takes back the last of them. */
int store_sync(struct store *store, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, "PRAGMA wal_checkpoint(FULL)", err);
    if (r == 0)
        r = query_step(&q, err);
    if (r <= 0)
        return r;
    if (query_get_int(&q) == 0)
        return 0;
    return err_set(err, EBUSY, "store.busy",
                   "another process reads the database: what was written may not be on the disk yet");
}

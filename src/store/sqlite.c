#include "store/sqlite.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/str.h"
#include "store/schema.h"

#define MIGRATION_COUNT ((int)(sizeof store_migrations / sizeof *store_migrations))

/* Nobody else is to write to it; who does all the same (sqlite3, a backup) may not hold up the loop for long, nor keep the
 * daemon from starting. */
#define BUSY_MS 250
#define BUSY_STARTING_MS 5000

static const char *hint_of(int code) {
    switch (code) {
    case SQLITE_FULL:
        return "the disk of the state folder is full: free some space and try again";
    case SQLITE_BUSY:
        return "another program holds it for writing, such as sqlite3 or a backup: end that and try again";
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
        return "is it a file, and are it and its folder on a file system that can be written?";
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
        return "it is damaged: keep a copy, and put a backup in its place. Without one: end the VMs that run (their"
               " folders in users/ name them), move it and its -wal and -shm files away, and start again";
    default:
        return "";
    }
}

static int fail(struct store *store, const char *what, struct err *err) {
    int code = sqlite3_errcode(store->db);
    int errnum = code == SQLITE_CONSTRAINT ? EEXIST
                 : code == SQLITE_FULL     ? ENOSPC
                 : code == SQLITE_READONLY ? EROFS
                 : code == SQLITE_BUSY     ? EBUSY
                                           : EIO;
    err_set(err, errnum, errnum == EEXIST ? "store.taken" : "store.failed", "%s: %s", what, sqlite3_errmsg(store->db));
    if (*hint_of(code))
        err_hint(err, "%s", hint_of(code));
    return -errnum;
}

int store_exec(struct store *store, const char *sql, struct err *err) {
    if (sqlite3_exec(store->db, sql, NULL, NULL, NULL) != SQLITE_OK)
        return fail(store, "store", err);
    return 0;
}

void query_free(struct query *q) {
    sqlite3_finalize(q->stmt);
    q->stmt = NULL;
}

int query_open(struct query *q, struct store *store, const char *sql, struct err *err) {
    *q = (struct query){.store = store};
    if (sqlite3_prepare_v2(store->db, sql, -1, &q->stmt, NULL) != SQLITE_OK)
        return fail(store, "store", err);
    return 0;
}

void query_text(struct query *q, const char *value) {
    sqlite3_bind_text(q->stmt, ++q->bound, value, -1, SQLITE_TRANSIENT);
}

void query_int(struct query *q, int64_t value) {
    sqlite3_bind_int64(q->stmt, ++q->bound, value);
}

void query_blob(struct query *q, const void *data, size_t len) {
    sqlite3_bind_blob64(q->stmt, ++q->bound, data, len, SQLITE_TRANSIENT);
}

int query_step(struct query *q, struct err *err) {
    q->column = 0;
    int r = sqlite3_step(q->stmt);
    if (r == SQLITE_ROW)
        return 1;
    if (r == SQLITE_DONE)
        return 0;
    return fail(q->store, "store", err);
}

void query_get_text(struct query *q, char *ret_text, size_t size) {
    const char *text = (const char *)sqlite3_column_text(q->stmt, q->column++);
    str_copy(ret_text, size, text ? text : "");
}

int64_t query_get_int(struct query *q) {
    return sqlite3_column_int64(q->stmt, q->column++);
}

void query_get_blob(struct query *q, void *ret_data, size_t len) {
    const void *data = sqlite3_column_blob(q->stmt, q->column);
    size_t n = (size_t)sqlite3_column_bytes(q->stmt, q->column++);
    memset(ret_data, 0, len);
    if (data)
        memcpy(ret_data, data, n < len ? n : len);
}

int store_grow(void *list, size_t n, size_t *cap, size_t size, struct err *err) {
    if (n < *cap)
        return 0;
    size_t more = *cap ? *cap * 2 : 16;
    void *bigger = realloc(*(void **)list, more * size);
    if (!bigger)
        return err_sys(err, ENOMEM, "store.failed", "list records");
    *(void **)list = bigger;
    *cap = more;
    return 0;
}

int store_begin(struct store *store, struct err *err) {
    return store_exec(store, "BEGIN IMMEDIATE", err);
}

int store_end(struct store *store, int r, struct err *err) {
    if (r == 0)
        r = store_exec(store, "COMMIT", err);
    if (r < 0)
        sqlite3_exec(store->db, "ROLLBACK", NULL, NULL, NULL);
    return r;
}

static int schema_version(struct store *store, int *ret_version, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, "PRAGMA user_version", err);
    if (r == 0)
        r = query_step(&q, err);
    if (r < 0)
        return r;
    *ret_version = (int)query_get_int(&q);
    return 0;
}

/* A damaged database may still answer, with VMs missing: they would be forgotten while they run. 0.1 s for 50 MB. */
static int check_whole(struct store *store, struct err *err) {
    _cleanup_query_ struct query q;
    char words[200];
    int r = query_open(&q, store, "PRAGMA quick_check(1)", err);
    if (r == 0)
        r = query_step(&q, err);
    if (r < 0)
        return r;
    query_get_text(&q, words, sizeof words);
    if (strcmp(words, "ok") == 0)
        return 0;
    const char *line = strchr(words, '\n'); /* the first one says which database */
    err_set(err, EIO, "store.damaged", "%s", line ? line + 1 : words);
    return err_hint(err, "%s", hint_of(SQLITE_CORRUPT));
}

static int migrate(struct store *store, struct err *err) {
    int version;
    int r = schema_version(store, &version, err);
    if (r < 0)
        return r;
    if (version > MIGRATION_COUNT) {
        err_set(err, EPROTO, "store.newer", "the database has schema %d, this program knows up to %d", version,
                MIGRATION_COUNT);
        return err_hint(err, "it was written by a newer master-controller: run that one, or give another --state-dir");
    }
    for (; version < MIGRATION_COUNT; version++) {
        char pragma[48];
        snprintf(pragma, sizeof pragma, "PRAGMA user_version = %d", version + 1);
        r = store_begin(store, err);
        if (r < 0)
            return r;
        r = store_exec(store, store_migrations[version], err);
        if (r == 0)
            r = store_exec(store, pragma, err);
        r = store_end(store, r, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* On a full disk one must still be able to end a VM, and to be told why the others stand still. The write-ahead log keeps
 * its size when it begins anew after a checkpoint, and so do pages that were freed: both are had in advance here. */
#define RESERVE_BYTES "131072"

static void reserve(struct store *store) {
    /* Two transactions: what comes and goes in one leaves no trace. A disk that is full already has nothing to give. */
    if (store_exec(store,
                   "BEGIN IMMEDIATE; CREATE TABLE reserve (x);"
                   "INSERT INTO reserve VALUES (zeroblob(" RESERVE_BYTES ")); COMMIT",
                   NULL) < 0)
        sqlite3_exec(store->db, "ROLLBACK", NULL, NULL, NULL);
    store_exec(store, "DROP TABLE IF EXISTS reserve", NULL);
    store_make_room(store);
}

int store_make_room(struct store *store) {
    int r = sqlite3_wal_checkpoint_v2(store->db, NULL, SQLITE_CHECKPOINT_RESTART, NULL, NULL);
    return r == SQLITE_OK ? 0 : -ENOSPC;
}

int store_open(const char *path, const char *host, struct store **ret_store, struct err *err) {
    struct store *store = calloc(1, sizeof *store);
    if (!store)
        return err_sys(err, ENOMEM, "store.failed", "open the store");
    str_copy(store->host, sizeof store->host, host);
    mode_t mask = umask(0077);
    int opened = sqlite3_open_v2(path, &store->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL);
    umask(mask);
    int r = opened == SQLITE_OK ? 0 : fail(store, "open", err);
    sqlite3_busy_timeout(store->db, BUSY_STARTING_MS);
    if (r == 0)
        r = store_exec(store,
                       "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA secure_delete = ON;"
                       "PRAGMA trusted_schema = OFF",
                       err);
    if (r == 0)
        r = check_whole(store, err);
    if (r == 0)
        r = migrate(store, err);
    if (r < 0) {
        err_prefix(err, "store %s", path);
        store_close(store);
        return r;
    }
    reserve(store);
    *ret_store = store;
    return 0;
}

void store_started(struct store *store) {
    sqlite3_busy_timeout(store->db, BUSY_MS);
}

void store_close(struct store *store) {
    if (!store)
        return;
    sqlite3_close(store->db);
    free(store);
}

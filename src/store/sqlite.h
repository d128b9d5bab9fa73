/* Inside of the store's room: prepared statements that are bound and read in order, with errors in words. */
#pragma once

#include <sqlite3.h>

#include "store/store.h"

struct store {
    sqlite3 *db;
    char host[64];
};

/* One statement in use. Bind in order, then step; the destructor finalizes. */
struct query {
    struct store *store;
    sqlite3_stmt *stmt;
    int bound, column;
};

void query_free(struct query *q);
#define _cleanup_query_ __attribute__((cleanup(query_free)))

int query_open(struct query *q, struct store *store, const char *sql, struct err *err);
void query_text(struct query *q, const char *value);
void query_int(struct query *q, int64_t value);
void query_blob(struct query *q, const void *data, size_t len);

/* Return: 1 a row (columns are read from the first on), 0 no more rows, or -errno: -EEXIST for a broken uniqueness. */
int query_step(struct query *q, struct err *err);

/* The next column of the row. */
void query_get_text(struct query *q, char *ret_text, size_t size);
int64_t query_get_int(struct query *q);
void query_get_blob(struct query *q, void *ret_data, size_t len);

/* Statements between these are one transaction. The end commits when r is 0 and rolls back when it is not; it returns
 * r, or the commit's own failure. */
int store_begin(struct store *store, struct err *err);
int store_end(struct store *store, int r, struct err *err);

/* Makes room for one more item of `size` bytes behind the n that a list has. Return: 0 or -ENOMEM. */
int store_grow(void *list, size_t n, size_t *cap, size_t size, struct err *err);

/* Writes an event about a VM or a session. */
int store_event_add(struct store *store, const char *about, const struct store_event *event, struct err *err);

int store_exec(struct store *store, const char *sql, struct err *err);

/* After -ENOSPC: lets the write-ahead log begin anew in the room that it has. Return: 0 when it is worth to try again. */
int store_make_room(struct store *store);

#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"
#include "store/sqlite.h"

#define TOKEN_COLUMNS "id, user, note, created_ms, expires_ms, used_ms"
#define USED_EVERY_MS 60000 /* a caller that asks all the time costs a write a minute */

static struct token read_token(struct query *q) {
    struct token t = {0};
    query_get_text(q, t.id, sizeof t.id);
    query_get_text(q, t.user, sizeof t.user);
    query_get_text(q, t.note, sizeof t.note);
    t.created_ms = query_get_int(q);
    t.expires_ms = query_get_int(q);
    t.used_ms = query_get_int(q);
    return t;
}

int store_token_add(struct store *store, const struct token *t, const uint8_t hash[STORE_HASH_SIZE], struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, "INSERT INTO token (" TOKEN_COLUMNS ", hash) VALUES (?, ?, ?, ?, ?, ?, ?)", err);
    if (r < 0)
        return r;
    query_text(&q, t->id);
    query_text(&q, t->user);
    query_text(&q, t->note);
    query_int(&q, t->created_ms);
    query_int(&q, t->expires_ms);
    query_int(&q, t->used_ms);
    query_blob(&q, hash, STORE_HASH_SIZE);
    return query_step(&q, err);
}

static int mark_used(struct store *store, const char *id, int64_t now_ms) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, "UPDATE token SET used_ms = ? WHERE id = ?", NULL);
    if (r < 0)
        return r;
    query_int(&q, now_ms);
    query_text(&q, id);
    return query_step(&q, NULL);
}

int store_token_use(struct store *store, const uint8_t hash[STORE_HASH_SIZE], int64_t now_ms, struct token *ret_token,
                    struct err *err) {
    struct token token;
    {
        _cleanup_query_ struct query q;
        int r = query_open(&q, store, "SELECT " TOKEN_COLUMNS " FROM token WHERE hash = ? AND expires_ms > ?", err);
        if (r < 0)
            return r;
        query_blob(&q, hash, STORE_HASH_SIZE);
        query_int(&q, now_ms);
        r = query_step(&q, err);
        if (r <= 0)
            return r < 0 ? r : err_set(err, ENOENT, "token.not-found", "there is no such token");
        token = read_token(&q);
    }
    /* A disk that is full must not lock its users out. */
    if (now_ms - token.used_ms >= USED_EVERY_MS && mark_used(store, token.id, now_ms) == 0)
        token.used_ms = now_ms;
    *ret_token = token;
    return 0;
}

int store_token_list(struct store *store, const char *user, struct token **ret_tokens, size_t *ret_n, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store,
                       "SELECT " TOKEN_COLUMNS " FROM token WHERE ?1 = '' OR user = ?1 ORDER BY user, created_ms, id"
                       " LIMIT 20000",
                       err);
    if (r < 0)
        return r;
    query_text(&q, user ? user : "");
    _cleanup_free_ struct token *tokens = NULL;
    size_t n = 0, cap = 0;
    while ((r = query_step(&q, err)) > 0) {
        r = store_grow(&tokens, n, &cap, sizeof *tokens, err);
        if (r < 0)
            return r;
        tokens[n++] = read_token(&q);
    }
    if (r < 0)
        return r;
    *ret_tokens = ptr_steal(tokens);
    *ret_n = n;
    return 0;
}

int store_token_remove(struct store *store, const char *id, struct token *ret_token, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, "DELETE FROM token WHERE id = ? RETURNING " TOKEN_COLUMNS, err);
    if (r < 0)
        return r;
    query_text(&q, id);
    r = query_step(&q, err);
    if (r <= 0) {
        if (r == 0)
            err_set(err, ENOENT, "token.not-found", "there is no such token");
        return r < 0 ? r : err_hint(err, "mctl token list shows those that there are");
    }
    struct token token = read_token(&q);
    /* The statement has to come to its end: what a RETURNING deletes is certain only then. */
    r = query_step(&q, err);
    if (r == 0)
        *ret_token = token;
    return r;
}

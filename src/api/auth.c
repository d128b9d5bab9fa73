#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "api/internal.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"
#include "base/time.h"

#define TOKEN_BYTES 32
#define TOKEN_TEXT (2 * TOKEN_BYTES)
#define TOKEN_PREFIX "mct_" /* a user's: so that people and scanners of leaks know it */

static void hash_token(const char *token, size_t len, char ret_hex[2 * STORE_HASH_SIZE + 1]) {
    uint8_t hash[STORE_HASH_SIZE];
    crypto_generichash(hash, sizeof hash, (const uint8_t *)token, len, NULL, 0);
    str_hex(hash, sizeof hash, ret_hex);
}

static int token_file_error(struct err *err, const char *path, const char *what) {
    err_set(err, EINVAL, "api.token-file", "the admin token file %s %s", path, what);
    return err_hint(err, "remove it and restart: a new token is made then. Who has the old one needs the new one");
}

/* A file that is there already, from another state folder or made by the operator. */
static int adopt_token(struct api *api, const char *path, struct err *err) {
    _cleanup_free_ char *text = NULL;
    size_t len;
    struct stat st;
    int r = file_read(path, 4096, &text, &len);
    if (r < 0)
        return err_sys(err, -r, "api.token-file", "read the admin token file %s", path);
    if (stat(path, &st) < 0 || (st.st_mode & 077))
        return token_file_error(err, path, "can be read by others than its owner");
    while (len > 0 && (text[len - 1] == '\n' || text[len - 1] == '\r'))
        text[--len] = '\0';
    if (len < 32 || strspn(text, "0123456789abcdef") != len)
        return token_file_error(err, path, "does not hold a token (at least 32 hex digits)");
    hash_token(text, len, api->token_hash);
    sodium_memzero(text, len);
    return 0;
}

static int make_token(struct api *api, const char *path, struct err *err) {
    uint8_t random[TOKEN_BYTES];
    char token[TOKEN_TEXT + 2], folder[CONFIG_TEXT];
    str_copy(folder, sizeof folder, path);
    char *slash = strrchr(folder, '/');
    if (slash && slash != folder) {
        *slash = '\0';
        int r = dir_make(folder, 0755);
        if (r < 0)
            return err_sys(err, -r, "api.token-file", "make %s", folder);
    }
    randombytes_buf(random, sizeof random);
    str_hex(random, sizeof random, token);
    hash_token(token, TOKEN_TEXT, api->token_hash);
    token[TOKEN_TEXT] = '\n';
    int r = file_write_atomic(path, token, TOKEN_TEXT + 1, 0600);
    sodium_memzero(token, sizeof token);
    sodium_memzero(random, sizeof random);
    if (r < 0)
        return err_sys(err, -r, "api.token-file", "write the admin token file %s", path);
    log_info("the admin token is in %s", path);
    return 0;
}

/* The file wins over the store: an operator who removes or replaces it revokes the old token at the next start. */
int api_token_load(struct api *api, struct err *err) {
    const char *path = api->config->api.admin_token_file;
    struct stat st;
    if (sodium_init() < 0)
        return err_set(err, EIO, "api.start", "libsodium does not start");
    int r = lstat(path, &st) == 0 ? adopt_token(api, path, err) : make_token(api, path, err);
    return r < 0 ? r : store_value_set(api->store, "admin_token_hash", api->token_hash, err);
}

int api_token_make(struct api *api, struct token *token, char ret_secret[API_TOKEN_TEXT], struct err *err) {
    uint8_t random[TOKEN_BYTES], id[4], hash[STORE_HASH_SIZE];
    char secret[API_TOKEN_TEXT] = TOKEN_PREFIX;
    int r;
    randombytes_buf(random, sizeof random);
    str_hex(random, sizeof random, secret + strlen(TOKEN_PREFIX));
    crypto_generichash(hash, sizeof hash, (const uint8_t *)secret, strlen(secret), NULL, 0);
    do {
        randombytes_buf(id, sizeof id);
        str_hex(id, sizeof id, token->id);
        r = store_token_add(api->store, token, hash, err);
    } while (r == -EEXIST);
    if (r == 0)
        memcpy(ret_secret, secret, sizeof secret);
    sodium_memzero(secret, sizeof secret);
    sodium_memzero(random, sizeof random);
    return r;
}

/* Who the bearer of a token is. Every token takes the same way: its hash is compared, and looked up. */
static enum api_role role_of(struct api *api, const char *text, struct token *ret_token) {
    char hex[2 * STORE_HASH_SIZE + 1];
    uint8_t hash[STORE_HASH_SIZE];
    hash_token(text, strlen(text), hex);
    crypto_generichash(hash, sizeof hash, (const uint8_t *)text, strlen(text), NULL, 0);
    bool is_admin = str_equal_secret(hex, sizeof hex - 1, api->token_hash, sizeof hex - 1);
    bool is_user = store_token_use(api->store, hash, time_realtime_ms(), ret_token, NULL) == 0;
    return is_admin ? CALLER_ADMIN : is_user ? CALLER_USER : CALLER_NOBODY;
}

bool api_is_admin_token(struct api *api, const char *text) {
    struct token token;
    return role_of(api, text, &token) == CALLER_ADMIN;
}

/* The token's hash stands where a session's cookie has its session: with another token, none of the old one's is found. */
int api_cookie_make(struct api *api, unsigned life_s, char ret_cookie[API_COOKIE_TEXT], struct err *err) {
    uint8_t random[TOKEN_BYTES], hash[STORE_HASH_SIZE];
    char cookie[API_COOKIE_TEXT];
    randombytes_buf(random, sizeof random);
    str_hex(random, sizeof random, cookie);
    crypto_generichash(hash, sizeof hash, (const uint8_t *)cookie, strlen(cookie), NULL, 0);
    int r =
        store_secret_add(api->store, STORE_COOKIE, hash, api->token_hash, time_realtime_ms() + life_s * 1000LL, err);
    if (r == 0)
        memcpy(ret_cookie, cookie, sizeof cookie);
    sodium_memzero(cookie, sizeof cookie);
    sodium_memzero(random, sizeof random);
    return r;
}

static bool hash_cookie(struct http_request *req, uint8_t ret_hash[STORE_HASH_SIZE]) {
    char cookie[API_COOKIE_TEXT];
    if (http_request_cookie(req, "mc_admin", cookie, sizeof cookie) != 1)
        return false;
    crypto_generichash(ret_hash, STORE_HASH_SIZE, (const uint8_t *)cookie, strlen(cookie), NULL, 0);
    sodium_memzero(cookie, sizeof cookie);
    return true;
}

int api_cookie_forget(struct api *api, struct http_request *req, struct err *err) {
    struct api_credential cookie;
    if (!hash_cookie(req, cookie.id))
        return 0;
    int r = store_secret_remove(api->store, cookie.id, err);
    if (r == 0)
        api_revoked(api, &cookie);
    return r;
}

struct api_credential api_credential_of_token(const struct token *token) {
    struct api_credential credential = {0};
    memcpy(credential.id, token->id, strlen(token->id));
    return credential;
}

struct api_credential api_credential(const struct api *api) {
    return api->caller.role == CALLER_USER ? api_credential_of_token(&api->caller.token) : api->caller.cookie;
}

bool api_credential_is(const struct api_credential *a, const struct api_credential *b) {
    return memcmp(a->id, b->id, sizeof a->id) == 0;
}

void api_revoked(struct api *api, const struct api_credential *credential) {
    api_stream_revoked(api, credential);
    api_follow_revoked(api, credential);
    api_exec_revoked(api, credential);
    api_desktop_revoked(api, credential);
}

/* A cookie is sent by the browser, whoever made it ask. SameSite keeps other sites' pages out; those of another port of
 * this host, which is the same site, are told by these two headers. */
static bool has_dashboard_cookie(struct api *api, struct http_request *req) {
    const char *site = http_request_header(req, "Sec-Fetch-Site");
    uint8_t *hash = api->caller.cookie.id;
    return api_origin_is_ours(api, req, false) && (!site || strcmp(site, "same-origin") == 0) &&
           hash_cookie(req, hash) &&
           store_secret_use(api->store, STORE_COOKIE, hash, api->token_hash, time_realtime_ms(), NULL) == 0;
}

/* What changes nothing. An upgrade is a GET too, and gets into a guest. */
static bool only_reads(struct http_request *req) {
    const char *method = http_request_method(req);
    return (strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0) && !http_request_header(req, "Upgrade");
}

static void identify(struct api *api, struct http_request *req) {
    const char *header = http_request_header(req, "Authorization");
    api->caller = (struct api_caller){0};
    if (http_request_peer(req)->local) {
        api->caller.role = CALLER_ADMIN;
    } else if (header && strncasecmp(header, "Bearer ", 7) == 0) {
        const char *text = header + 7;
        api->caller.role = role_of(api, text + strspn(text, " "), &api->caller.token);
    }
}

const char *api_only_user(const struct api *api) {
    return api->caller.role == CALLER_USER ? api->caller.token.user : NULL;
}

bool api_may_see(const struct api *api, const char *user) {
    return api->caller.role != CALLER_USER || strcmp(api->caller.token.user, user) == 0;
}

bool api_has_cookie(struct api *api, struct http_request *req, const char *session_id) {
    char cookie[SESSIONS_SECRET_TEXT];
    return session_id && session_id_is_valid(session_id) &&
           http_request_cookie(req, "mc_session", cookie, sizeof cookie) == 1 &&
           sessions_check_cookie(api->sessions, session_id, cookie, NULL) == 0;
}

bool api_origin_is_ours(struct api *api, struct http_request *req, bool required) {
    const char *origin = http_request_header(req, "Origin");
    return origin ? strcmp(origin, api->base_url) == 0 : !required;
}

bool api_allowed(struct api *api, struct http_request *req, const struct http_match *match) {
    enum api_access access = (enum api_access)match->route->flags;
    identify(api, req);
    if (access == API_PUBLIC || api->caller.role == CALLER_ADMIN)
        return true;
    if (api->caller.role == CALLER_USER && access != API_ADMIN)
        return true;
    if (api->caller.role == CALLER_USER) {
        http_problem(req, 403, "auth.forbidden", NULL, "this is for administrators: a user's token does not open it",
                     "use the token of the admin token file, or the unix socket");
        return false;
    }
    if (access == API_SESSION && api_origin_is_ours(api, req, false) &&
        api_has_cookie(api, req, http_match_param(match, "id"))) {
        api->caller.role = CALLER_PAGE;
        return true;
    }
    if (has_dashboard_cookie(api, req)) {
        api->caller.role = CALLER_DASHBOARD;
        if (only_reads(req))
            return true;
        http_problem(req, 403, "auth.read-only", NULL, "the dashboard only reads: its cookie does not open this",
                     "use mctl on the host, or the admin token");
        return false;
    }
    struct http_header challenge = {"WWW-Authenticate", "Bearer"};
    http_problem_with(
        req, 401, "auth.required", NULL, "this needs a credential that was not given or is not valid",
        "send Authorization: Bearer with a token (mctl token create) or the admin token, or use the unix socket",
        &challenge, 1);
    return false;
}

void api_actor(struct api *api, struct http_request *req, char ret_actor[STORE_ACTOR_MAX]) {
    const struct http_peer *peer = http_request_peer(req);
    char text[STORE_ACTOR_MAX + VM_USER_MAX + 32];
    if (peer->local)
        snprintf(text, sizeof text, "uid %u (pid %d, unix socket)", peer->uid, peer->pid);
    else if (api->caller.role == CALLER_USER)
        snprintf(text, sizeof text, "token %s from %s of %s", api->caller.token.id, peer->ip, api->caller.token.user);
    else
        snprintf(text, sizeof text, "%s from %s",
                 api->caller.role == CALLER_ADMIN       ? "admin token"
                 : api->caller.role == CALLER_DASHBOARD ? "dashboard"
                                                        : "session page",
                 peer->ip);
    str_copy(ret_actor, STORE_ACTOR_MAX, text);
}

#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "api/internal.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"

#define TOKEN_BYTES 32
#define TOKEN_TEXT (2 * TOKEN_BYTES)

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

static bool has_token(struct api *api, struct http_request *req) {
    char hash[2 * STORE_HASH_SIZE + 1];
    const char *header = http_request_header(req, "Authorization");
    if (!header || strncasecmp(header, "Bearer ", 7) != 0)
        return false;
    const char *token = header + 7;
    while (*token == ' ')
        token++;
    hash_token(token, strlen(token), hash);
    return str_equal_secret(hash, sizeof hash - 1, api->token_hash, sizeof hash - 1);
}

bool api_is_admin(struct api *api, struct http_request *req) {
    return http_request_peer(req)->local || has_token(api, req);
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
    if (access == API_PUBLIC || api_is_admin(api, req))
        return true;
    if (access == API_SESSION && api_origin_is_ours(api, req, false) &&
        api_has_cookie(api, req, http_match_param(match, "id")))
        return true;
    struct http_header challenge = {"WWW-Authenticate", "Bearer"};
    http_problem_with(req, 401, "auth.required", NULL, "this needs a credential that was not given or is not valid",
                      "send Authorization: Bearer with the token of the admin token file, or use the unix socket",
                      &challenge, 1);
    return false;
}

void api_actor(struct api *api, struct http_request *req, char ret_actor[STORE_ACTOR_MAX]) {
    const struct http_peer *peer = http_request_peer(req);
    if (peer->local)
        snprintf(ret_actor, STORE_ACTOR_MAX, "uid %u (pid %d, unix socket)", peer->uid, peer->pid);
    else
        snprintf(ret_actor, STORE_ACTOR_MAX, "%s from %s", has_token(api, req) ? "admin token" : "session page",
                 peer->ip);
}

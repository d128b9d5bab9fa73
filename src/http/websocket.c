#include "http/websocket.h"

#include <errno.h>
#include <string.h>

#include "http/strict.h"

static int bad(struct err *err, const char *what) {
    err_set(err, EINVAL, "websocket.bad-handshake", "this is not a WebSocket handshake: %s", what);
    return err_hint(err, "open this address with a WebSocket client");
}

static const char *only_header(const struct http_request *req, const char *name) {
    return http_request_header_count(req, name) == 1 ? http_request_header(req, name) : NULL;
}

int http_websocket_check(const struct http_request *req, struct http_websocket *ret_websocket, struct err *err) {
    size_t body_len;
    http_request_body(req, &body_len);
    if (strcmp(http_request_method(req), "GET") != 0 || !http_request_is_http11(req) || body_len > 0)
        return bad(err, "it wants GET, HTTP/1.1 and no body");
    const char *upgrade = only_header(req, "Upgrade"), *connection = only_header(req, "Connection");
    if (!upgrade || !http_list_has(upgrade, "websocket"))
        return bad(err, "it wants one Upgrade: websocket");
    if (!connection || !http_list_has(connection, "upgrade"))
        return bad(err, "it wants one Connection: Upgrade");
    const char *version = only_header(req, "Sec-WebSocket-Version"), *key = only_header(req, "Sec-WebSocket-Key");
    if (!version)
        return bad(err, "it wants one Sec-WebSocket-Version");
    if (strcmp(version, "13") != 0)
        return err_set(err, EPROTONOSUPPORT, "websocket.version", "only version 13 of WebSocket is spoken here");
    struct http_websocket websocket = {0};
    if (!key || ws_accept(key, websocket.accept) < 0)
        return bad(err, "it wants one Sec-WebSocket-Key, the base64 of 16 bytes");
    if (http_request_header_count(req, "Sec-WebSocket-Protocol") > 1)
        return bad(err, "Sec-WebSocket-Protocol is there twice");
    websocket.protocols = http_request_header(req, "Sec-WebSocket-Protocol");
    *ret_websocket = websocket;
    return 0;
}

int http_websocket_refuse(struct http_request *req, const struct err *err) {
    static const struct http_header version[] = {{"Sec-WebSocket-Version", "13"}};
    return http_problem_with(req, 400, err->code, NULL, err->detail, err->hint, version,
                             err->errnum == EPROTONOSUPPORT ? 1 : 0);
}

int http_websocket_upgrade(struct http_request *req, const struct http_websocket *websocket, const char *protocol,
                           http_upgrade_fn *fn, void *userdata) {
    const struct http_header headers[] = {
        {"Upgrade", "websocket"},
        {"Sec-WebSocket-Accept", websocket->accept},
        {"Sec-WebSocket-Protocol", protocol},
    };
    return http_upgrade(req, headers, protocol ? 3 : 2, fn, userdata);
}

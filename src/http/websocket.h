/* The server's side of a WebSocket handshake: what the client must send, and the answer. Frames are the relay's.
 * Source: RFC 6455, section 4.2. */
#pragma once

#include "base/err.h"
#include "http/server.h"

struct http_websocket {
    char accept[WS_ACCEPT_SIZE];
    const char *protocols; /* the client's list of subprotocols, NULL without one */
};

/* Checks: GET, HTTP/1.1, no body, exactly one each of Upgrade (with websocket), Connection (with upgrade),
 * Sec-WebSocket-Version (13) and Sec-WebSocket-Key (16 bytes), at most one Sec-WebSocket-Protocol. Origin is the
 * caller's to judge.
 * Return: 0; -EINVAL "websocket.bad-handshake"; -EPROTONOSUPPORT "websocket.version". Answer those with
 * http_websocket_refuse(). */
int http_websocket_check(const struct http_request *req, struct http_websocket *ret_websocket, struct err *err);

/* 400, with the version that is spoken here if that was it, as in RFC 6455, 4.4. */
int http_websocket_refuse(struct http_request *req, const struct err *err);

/* Answers 101 and hands the connection over as http_upgrade() does. protocol: one that was offered, or NULL. */
int http_websocket_upgrade(struct http_request *req, const struct http_websocket *websocket, const char *protocol,
                           http_upgrade_fn *fn, void *userdata);

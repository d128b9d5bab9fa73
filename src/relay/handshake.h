/* The opening handshake towards the VM, as a client: build the request, judge the answer. Pure: no I/O.
 *
 * Source: RFC 6455 section 4.1 (what a client sends and what it must check), section 1.3 (the accept key);
 * RFC 9112 sections 2.2, 4, 5 (lines, status line, field lines). */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define HANDSHAKE_REQUEST_MAX 4096   /* bytes of request */
#define HANDSHAKE_RESPONSE_MAX 8192  /* bytes of response, with the empty line */
#define HANDSHAKE_PROTOCOLS_MAX 1024 /* bytes of offered subprotocols */
#define HANDSHAKE_PROTOCOL_SIZE 128  /* bytes of one subprotocol with its NUL; longer ones are refused */

struct handshake_request {
    const char *host;      /* of the Host field, with the port where it is not 80 */
    const char *path;      /* begins with '/' */
    const char *protocols; /* as the browser offered them, separated by commas; NULL or "": none */
    const char *origin;    /* NULL: no Origin field */
    const char *key;       /* of ws_key_new() */
};

/* Writes the request. Return: its length, or -EINVAL when a member holds what does not belong there (spaces, control
 * bytes, a subprotocol that is no token) or is too long; err names it. */
int handshake_build(const struct handshake_request *request, char ret_text[HANDSHAKE_REQUEST_MAX], struct err *err);

struct handshake_answer {
    size_t size;                            /* bytes of the response; what follows them is the stream */
    char protocol[HANDSHAKE_PROTOCOL_SIZE]; /* that the server chose; "" where none was offered */
};

/* Judges the answer as far as it has come.
 * accept     of ws_accept()
 * protocols  as offered. Where some were, one must be chosen: a browser whose offer is not answered fails with 1006
 * Return: 0, -EAGAIN when its end has not come yet, or -EPROTO with err->detail a sentence about what is wrong. */
int handshake_judge(const void *data, size_t len, const char *accept, const char *protocols,
                    struct handshake_answer *ret, struct err *err);

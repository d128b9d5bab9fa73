/* The beginning of a connection: the handshake with the VM, until `dialed` has been called. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/str.h"
#include "relay/conn.h"
#include "relay/thread.h"

int conn_prepare_dial(struct conn *c, const struct relay_dial *dial, struct err *err) {
    struct dialing *d = c->dialing = calloc(1, sizeof *d);
    if (!d)
        return err_set(err, ENOMEM, "relay.memory", "no memory for a connection");
    char key[WS_KEY_LEN + 1];
    int r = ws_key_new(key);
    if (r == 0)
        r = ws_accept(key, d->accept);
    if (r < 0)
        return err_sys(err, -r, "relay.random", "a WebSocket key");
    struct handshake_request request = {
        .host = dial->host,
        .path = dial->path,
        .protocols = dial->protocols,
        .origin = dial->origin,
        .key = key,
    };
    int len = handshake_build(&request, d->request, err);
    if (len < 0)
        return len;
    d->request_len = (size_t)len;
    (void)str_copy(d->protocols, sizeof d->protocols, dial->protocols ? dial->protocols : "");
    return 0;
}

/* A VM whose kernel died, or that the network lost, is silent: only probes tell that from a still desktop. And what
 * was sent to it would be repeated for a quarter of an hour. Source: tcp(7). */
static void watch_for_silence(int fd, int dead_after_ms) {
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &dead_after_ms, sizeof dead_after_ms);
    int seconds = dead_after_ms / 4000 > 0 ? dead_after_ms / 4000 : 1;
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &(int){1}, sizeof(int));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &seconds, sizeof seconds);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &seconds, sizeof seconds);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &(int){3}, sizeof(int));
}

static void report(struct conn *c, const struct relay_dialed *dialed) {
    const struct relay *relay = c->thread->relay;
    if (relay->callbacks.dialed)
        relay->callbacks.dialed(relay->userdata, dialed);
}

void dial_fail(struct conn *c, enum relay_end end, int error, const struct relay_verdict *verdict) {
    side_drop(&c->browser);
    side_drop(&c->upstream);
    c->state = CONN_OVER;
    struct relay_dialed dialed = {.conn = c->id, .tag = c->tag, .end = end, .error = error, .verdict = *verdict};
    report(c, &dialed);
}

static void fail_unreachable(struct conn *c, int error) {
    struct relay_verdict v = {FRAME_CODE_BAD_GATEWAY, ""};
    switch (-error) {
    case ECONNREFUSED:
        (void)str_copy(v.reason, sizeof v.reason, "The VM answers, but its desktop service takes no connections.");
        break;
    case ETIMEDOUT:
        (void)str_copy(v.reason, sizeof v.reason, "The VM does not answer on its desktop's port.");
        break;
    default:
        snprintf(v.reason, sizeof v.reason, "The VM cannot be reached: %s.", strerror(-error));
    }
    dial_fail(c, RELAY_END_UPSTREAM_UNREACHABLE, error, &v);
}

static void fail_refused(struct conn *c, int error, const char *sentence) {
    struct relay_verdict v;
    char text[256];
    snprintf(text, sizeof text, "The VM's desktop service is broken. %.200s", sentence);
    verdict_set(&v, FRAME_CODE_BAD_GATEWAY, text);
    dial_fail(c, RELAY_END_UPSTREAM_REFUSED, error, &v);
}

static void succeed(struct conn *c, const struct handshake_answer *answer) {
    free(c->dialing);
    c->dialing = NULL;
    c->state = CONN_DIALED;
    c->wait_ms = c->thread->now_ms + c->thread->relay->config.handshake_timeout_ms;
    struct relay_dialed dialed = {.conn = c->id, .tag = c->tag, .protocol = answer->protocol};
    report(c, &dialed);
}

void conn_dial(struct conn *c, int fd) {
    const struct relay_config *config = &c->thread->relay->config;
    c->wait_ms = c->thread->now_ms + config->handshake_timeout_ms;
    int r = side_open(&c->upstream, fd);
    if (r < 0) {
        close(fd);
        fail_unreachable(c, r);
        return;
    }
    watch_for_silence(fd, config->dead_after_ms);
    side_send(&c->upstream, &(struct iovec){c->dialing->request, c->dialing->request_len}, 1);
}

/* Return: whether the answer may be looked for. */
static bool connected(struct conn *c) {
    struct side *u = &c->upstream;
    if (!c->dialing->connected && u->can_write) {
        int error = 0;
        if (getsockopt(u->fd, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error}) < 0)
            error = errno;
        if (error) {
            fail_unreachable(c, -error);
            return false;
        }
        c->dialing->connected = true;
    }
    return c->dialing->connected;
}

static void read_answer(struct conn *c) {
    struct side *u = &c->upstream;
    size_t len;
    uint8_t *in;
    while (u->can_read && (in = side_read(u, 0, &len))) {
        struct handshake_answer answer;
        struct err err;
        int r = handshake_judge(in, len, c->dialing->accept, c->dialing->protocols, &answer, &err);
        if (r == -EAGAIN) {
            side_hold(u, in, len);
            continue;
        }
        if (r < 0) {
            fail_refused(c, r, err.detail);
            return;
        }
        side_hold(u, in + answer.size, len - answer.size);
        u->in_bytes -= answer.size;
        succeed(c, &answer);
        return;
    }
    if (u->in_eof)
        fail_refused(c, u->error ? u->error : -ECONNRESET, "It closed the connection without an answer.");
}

void dial_run(struct conn *c) {
    if (connected(c)) {
        side_flush(&c->upstream);
        read_answer(c);
    }
    if (c->state != CONN_DIALING || c->thread->now_ms < c->wait_ms)
        return;
    if (c->dialing->connected)
        fail_refused(c, -ETIMEDOUT, "It does not answer the WebSocket handshake.");
    else
        fail_unreachable(c, -ETIMEDOUT);
}

#include "relay/conn.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "relay/thread.h"

/* Reads of a connection before the others of its thread have their turn; one may be of buffer_bytes. */
#define READS_PER_TURN 2

/* Pieces of one read that are sent with one call. Only our pings' pongs make more than two. */
#define PIECES 8

void verdict_set(struct relay_verdict *v, uint16_t code, const char *reason) {
    char clean[sizeof v->reason];
    utf8_sentence(reason ? reason : "", clean, sizeof clean);
    memcpy(v->reason, clean, sizeof v->reason);
    v->code = code == FRAME_CODE_NONE ? code : frame_code_for_wire(code);
}

struct conn *conn_new(struct thread *thread, uint64_t id, uint64_t tag) {
    struct conn *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->thread = thread;
    c->id = id;
    c->tag = tag;
    c->browser = (struct side){.conn = c, .fd = -1, .in.masked = true};
    c->upstream = (struct side){.conn = c, .fd = -1};
    return c;
}

void conn_free(struct conn *c) {
    if (!c)
        return;
    free(c->dialing);
    free(c->verdict);
    free(c);
}

static struct side *other(struct side *s) {
    return s == &s->conn->browser ? &s->conn->upstream : &s->conn->browser;
}

static int64_t now_ms(const struct conn *c) {
    return c->thread->now_ms;
}

static const struct relay_config *config_of(const struct conn *c) {
    return &c->thread->relay->config;
}

/* The browser's last words. */
static void tell(struct conn *c, const struct relay_verdict *v) {
    c->verdict_ms = 0;
    c->code = v->code;
    side_send_close(&c->browser, v->code, v->reason);
}

/* Keeps a verdict for later. Return: false when there is no memory for that. */
static bool keep(struct conn *c, const struct relay_verdict *v) {
    if (!c->verdict)
        c->verdict = malloc(sizeof *c->verdict);
    if (c->verdict)
        *c->verdict = *v;
    return c->verdict != NULL;
}

/* An end that the browser is not asked for: it is told, and the VM too. */
static void end_with(struct conn *c, enum relay_end end, uint16_t code, const char *reason) {
    struct relay_verdict v;
    verdict_set(&v, code, reason);
    c->end = end;
    tell(c, &v);
    side_send_close(&c->upstream, FRAME_CODE_GOING_AWAY, "");
}

/* An end that comes from the VM's side: somebody above may know more about it than we do. */
static void end_upstream(struct conn *c, enum relay_end end, uint16_t upstream_code, struct relay_verdict v) {
    const struct relay *relay = c->thread->relay;
    c->end = end;
    side_send_close(&c->upstream, upstream_code, "");
    int patience_ms = 0;
    if (relay->callbacks.why) {
        patience_ms = relay->callbacks.why(relay->userdata, c->id, c->tag, end, &v);
        verdict_set(&v, v.code, v.reason);
    }
    if (patience_ms > 0 && keep(c, &v))
        c->verdict_ms = now_ms(c) + patience_ms;
    else
        tell(c, &v);
}

static void upstream_lost(struct conn *c) {
    end_upstream(c, RELAY_END_UPSTREAM_LOST, FRAME_CODE_GOING_AWAY,
                 (struct relay_verdict){FRAME_CODE_INTERNAL, "The connection to the VM's desktop was lost."});
}

static void stop_reading(struct side *s) {
    s->in_close = true;
}

/* A Close is answered at once, and told to the other side. The answer does not wait for the other side's: a browser
 * gives the answer to its Close 2 s, and what it would be sent meanwhile its page does not see. */
static void got_close(struct side *from, const struct frame *f) {
    struct conn *c = from->conn;
    stop_reading(from);
    if (c->end != RELAY_END_NONE)
        return;
    const char *reason = (const char *)f->payload;
    if (from == &c->browser) {
        c->end = RELAY_END_BROWSER_CLOSED;
        c->code = f->code;
        side_send_close(&c->browser, f->code, "");
        side_send_close(&c->upstream, f->code, reason);
        return;
    }
    struct relay_verdict v;
    verdict_set(&v, f->code, reason);
    end_upstream(c, RELAY_END_UPSTREAM_CLOSED, f->code, v);
}

static void got_broken(struct side *from, const struct frame *f) {
    struct conn *c = from->conn;
    stop_reading(from);
    if (c->end != RELAY_END_NONE)
        return;
    struct relay_verdict v = {FRAME_CODE_BAD_GATEWAY, ""};
    if (from == &c->browser) {
        snprintf(v.reason, sizeof v.reason, "The browser broke the WebSocket protocol: %s.", f->wrong);
        end_with(c, RELAY_END_BROWSER_PROTOCOL, f->code, v.reason);
    } else {
        snprintf(v.reason, sizeof v.reason, "The VM's desktop service broke the WebSocket protocol: %s.", f->wrong);
        end_upstream(c, RELAY_END_UPSTREAM_PROTOCOL, f->code, v);
    }
}

static bool is_our_pong(const struct side *from, const struct frame *f) {
    return from == &from->conn->browser && f->opcode == FRAME_PONG && f->payload_len == RELAY_PING_SIZE &&
           memcmp(f->payload, from->conn->thread->relay->ping, RELAY_PING_SIZE) == 0;
}

/* Sends on what is whole of the input, keeps the rest. */
static void feed(struct side *from, uint8_t *in, size_t len) {
    struct iovec pieces[PIECES];
    int n = 0;
    struct frame f;
    enum frame_result r = FRAME_READY;
    while (!from->in_close && (r = frame_next(&from->in, in, len, &f)) == FRAME_READY && f.opcode != FRAME_CLOSE) {
        in += f.used;
        len -= f.used;
        if (is_our_pong(from, &f))
            continue;
        if (n > 0 && (uint8_t *)pieces[n - 1].iov_base + pieces[n - 1].iov_len == f.data) {
            pieces[n - 1].iov_len += f.len;
            continue;
        }
        if (n == PIECES) {
            side_send(other(from), pieces, n);
            n = 0;
        }
        pieces[n++] = (struct iovec){f.data, f.len};
    }
    side_send(other(from), pieces, n);
    if (from->in_close)
        return;
    if (r == FRAME_READY)
        got_close(from, &f);
    else if (r == FRAME_BROKEN)
        got_broken(from, &f);
    else
        side_hold(from, in, len);
}

/* Backpressure: nothing is read while the other side has not taken what was read before, unless it is thrown away. */
static bool can_carry(struct side *from) {
    const struct side *to = other(from);
    return from->fd >= 0 && !from->in_eof && from->can_read && (to->queue_len == 0 || to->out_close);
}

/* Reads once. Return: whether something changed. */
static bool carry(struct side *from) {
    if (!can_carry(from))
        return false;
    size_t len;
    /* Much at a time costs less, but what the other side does not take would have to be kept. */
    uint8_t *in = side_read(from, from->bulk ? side_room(other(from)) : 0, &len);
    if (in)
        feed(from, in, len);
    /* Of the browser each byte counts, as a sign of life. */
    if (from == &from->conn->upstream)
        side_expect(from, from->in_close || from->in.left < from->held_len ? 0 : from->in.left - from->held_len);
    return in || from->in_eof;
}

static void carry_both(struct conn *c) {
    bool changed = true;
    for (int i = 0; i < READS_PER_TURN && changed; i++) {
        side_flush(&c->browser);
        side_flush(&c->upstream);
        changed = carry(&c->browser);
        changed = carry(&c->upstream) || changed;
    }
}

/* It ended where no FIN may be. */
static bool is_torn(const struct side *s) {
    return s->in_eof && (s->lost || s->held_len > 0 || !frame_parser_idle(&s->in));
}

/* An end without a Close. A plain FIN between two messages is not yet one of the other direction. */
static void judge_eof(struct conn *c) {
    if (c->end != RELAY_END_NONE || (!c->browser.in_eof && !c->upstream.in_eof))
        return;
    if (!c->first_eof) {
        c->first_eof = c->upstream.in_eof ? &c->upstream : &c->browser;
        c->eof_ms = now_ms(c) + config_of(c)->half_close_ms;
    }
    if (!is_torn(c->first_eof) && !other(c->first_eof)->in_eof && now_ms(c) < c->eof_ms)
        return;
    if (c->first_eof == &c->upstream)
        upstream_lost(c);
    else
        end_with(c, RELAY_END_BROWSER_LOST, FRAME_CODE_GOING_AWAY, "The browser went away.");
}

static bool may_ping(const struct conn *c) {
    return config_of(c)->ping_after_ms > 0 && c->end == RELAY_END_NONE && !c->browser.out_close &&
           c->browser.queue_len == 0;
}

static int64_t ping_due_ms(const struct conn *c) {
    if (!may_ping(c))
        return INT64_MAX;
    /* The answer is not read while the VM takes nothing. */
    if (c->ping_ms > 0)
        return c->upstream.queue_len > 0 ? INT64_MAX : c->ping_ms + config_of(c)->dead_after_ms;
    int64_t silent_ms = c->browser.got_ms < c->browser.moved_ms ? c->browser.got_ms : c->browser.moved_ms;
    return silent_ms + config_of(c)->ping_after_ms;
}

static void ping(struct conn *c) {
    if (c->ping_ms > 0 && c->browser.got_ms >= c->ping_ms)
        c->ping_ms = 0;
    if (now_ms(c) < ping_due_ms(c))
        return;
    if (c->ping_ms > 0) {
        end_with(c, RELAY_END_BROWSER_LOST, FRAME_CODE_GOING_AWAY, "The browser does not answer.");
        return;
    }
    uint8_t out[FRAME_HEAD_MAX + FRAME_CONTROL_MAX];
    size_t len = frame_build(out, FRAME_PING, NULL, c->thread->relay->ping, RELAY_PING_SIZE);
    side_send(&c->browser, &(struct iovec){out, len}, 1);
    c->ping_ms = now_ms(c);
}

static void check_times(struct conn *c) {
    ping(c);
    if (c->verdict_ms > 0 && (now_ms(c) >= c->verdict_ms || c->browser.in_close || c->browser.in_eof))
        tell(c, c->verdict);
    if (now_ms(c) >= side_deadline_ms(&c->browser))
        side_expire(&c->browser);
    if (now_ms(c) >= side_deadline_ms(&c->upstream))
        side_expire(&c->upstream);
}

void conn_tell_ended(const struct relay *relay, const struct relay_ended *ended) {
    if (relay->callbacks.ended)
        relay->callbacks.ended(relay->userdata, ended);
}

static void over(struct conn *c) {
    side_drop(&c->browser);
    side_drop(&c->upstream);
    c->state = CONN_OVER;
    if (!c->joined)
        return;
    struct relay_ended ended = {
        .conn = c->id,
        .tag = c->tag,
        .end = c->end,
        .code = c->code,
        .from_browser_bytes = c->browser.in_bytes,
        .from_upstream_bytes = c->upstream.in_bytes,
        .duration_ms = now_ms(c) - c->start_ms,
    };
    conn_tell_ended(c->thread->relay, &ended);
}

/* Return: whether there is more to do already. */
static bool relay_run(struct conn *c) {
    carry_both(c);
    judge_eof(c);
    check_times(c);
    judge_eof(c);
    side_settle(&c->browser);
    side_settle(&c->upstream);
    if (c->browser.fd < 0 && c->upstream.fd < 0) {
        over(c);
        return false;
    }
    return can_carry(&c->browser) || can_carry(&c->upstream);
}

/* The bytes that came before the relaying began. */
static void feed_held(struct side *s) {
    size_t len;
    uint8_t *in = side_unhold(s, &len);
    if (in)
        feed(s, in, len);
}

static void give_up_waiting(struct conn *c) {
    c->state = CONN_RELAYING;
    if (c->end == RELAY_END_NONE)
        c->end = RELAY_END_BROWSER_LOST;
    side_drop(&c->browser);
    side_send_close(&c->upstream, FRAME_CODE_GOING_AWAY, "");
    feed_held(&c->upstream);
}

bool conn_run(struct conn *c) {
    if (c->state == CONN_DIALING)
        dial_run(c);
    if (c->state == CONN_DIALED && now_ms(c) >= c->wait_ms)
        give_up_waiting(c);
    return c->state == CONN_RELAYING && relay_run(c);
}

static int64_t earlier(int64_t a, int64_t b) {
    return a < b ? a : b;
}

int64_t conn_deadline_ms(const struct conn *c) {
    if (c->state != CONN_RELAYING)
        return c->wait_ms;
    int64_t at_ms = earlier(side_deadline_ms(&c->browser), side_deadline_ms(&c->upstream));
    at_ms = earlier(at_ms, ping_due_ms(c));
    if (c->verdict_ms > 0)
        at_ms = earlier(at_ms, c->verdict_ms);
    if (c->first_eof && c->end == RELAY_END_NONE)
        at_ms = earlier(at_ms, c->eof_ms);
    return at_ms;
}

static void open_browser(struct conn *c, int fd, const void *early, size_t early_len) {
    c->state = CONN_RELAYING;
    c->start_ms = now_ms(c);
    if (side_open(&c->browser, fd) < 0) {
        close(fd);
        side_drop(&c->browser);
        c->browser.lost = true;
        return;
    }
    c->browser.can_read = c->browser.can_write = true;
    c->browser.in_bytes = early_len;
    side_hold(&c->browser, early, early_len);
}

void conn_join(struct conn *c, int fd, const void *early, size_t early_len) {
    c->joined = true;
    open_browser(c, fd, early, early_len);
    if (c->end != RELAY_END_NONE)
        tell(c, c->verdict);
    feed_held(&c->browser);
    feed_held(&c->upstream);
}

void conn_refuse(struct conn *c, int fd, const void *early, size_t early_len, const struct relay_verdict *verdict) {
    c->end = RELAY_END_TOLD;
    side_drop(&c->upstream);
    open_browser(c, fd, early, early_len);
    tell(c, verdict);
    feed_held(&c->browser);
}

void conn_tell(struct conn *c, const struct relay_verdict *verdict) {
    switch (c->state) {
    case CONN_DIALING:
        dial_fail(c, RELAY_END_TOLD, -ECANCELED, verdict);
        break;
    case CONN_DIALED:
        if (c->end == RELAY_END_NONE && keep(c, verdict)) {
            c->end = RELAY_END_TOLD;
            side_send_close(&c->upstream, FRAME_CODE_GOING_AWAY, "");
        }
        break;
    case CONN_RELAYING:
        if (c->end == RELAY_END_NONE)
            end_with(c, RELAY_END_TOLD, verdict->code, verdict->reason);
        else if (c->verdict_ms > 0)
            tell(c, verdict);
        break;
    case CONN_OVER:
        break;
    }
}

void conn_cancel(struct conn *c) {
    if (c->state == CONN_DIALING) {
        struct relay_verdict v = {FRAME_CODE_GOING_AWAY, "The browser went away."};
        dial_fail(c, RELAY_END_TOLD, -ECANCELED, &v);
    } else if (c->state == CONN_DIALED) {
        give_up_waiting(c);
    }
}

void conn_abort(struct conn *c) {
    struct relay_verdict v = {FRAME_CODE_GOING_AWAY, "The relay ends."};
    if (c->state == CONN_DIALING)
        dial_fail(c, RELAY_END_TOLD, -ECANCELED, &v);
    if (c->state == CONN_OVER)
        return;
    if (c->end == RELAY_END_NONE)
        c->end = RELAY_END_TOLD;
    over(c);
}

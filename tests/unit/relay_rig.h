/* A relay between a scripted browser and a scripted VM, over loopback TCP, for tests. */
#pragma once

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/time.h"
#include "base/ws_accept.h"
#include "cmocka_all.h"
#include "relay/relay.h"
#include "ws_peer.h"

#define RIG_PATIENCE_MS 5000
#define RIG_MAX 256

struct rig {
    struct relay *relay;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct relay_dialed dialed[RIG_MAX];
    char protocol[128]; /* of the last success */
    struct relay_ended ended[RIG_MAX];
    unsigned dialed_len, ended_len, why_len;
    enum relay_end why_end;
    struct relay_verdict why_given; /* what why was called with */
    struct relay_verdict why_says;  /* code 0: leaves it */
    int why_patience_ms;
};

static inline void rig_dialed(void *userdata, const struct relay_dialed *dialed) {
    struct rig *rig = userdata;
    pthread_mutex_lock(&rig->lock);
    if (dialed->protocol)
        snprintf(rig->protocol, sizeof rig->protocol, "%s", dialed->protocol);
    rig->dialed[rig->dialed_len++ % RIG_MAX] = *dialed;
    pthread_cond_broadcast(&rig->changed);
    pthread_mutex_unlock(&rig->lock);
}

static inline int rig_why(void *userdata, uint64_t conn, uint64_t tag, enum relay_end end,
                          struct relay_verdict *inout) {
    struct rig *rig = userdata;
    pthread_mutex_lock(&rig->lock);
    rig->why_len++;
    rig->why_end = end;
    rig->why_given = *inout;
    if (rig->why_says.code)
        *inout = rig->why_says;
    int patience_ms = rig->why_patience_ms;
    pthread_cond_broadcast(&rig->changed);
    pthread_mutex_unlock(&rig->lock);
    return patience_ms;
}

static inline void rig_ended(void *userdata, const struct relay_ended *ended) {
    struct rig *rig = userdata;
    pthread_mutex_lock(&rig->lock);
    rig->ended[rig->ended_len++ % RIG_MAX] = *ended;
    pthread_cond_broadcast(&rig->changed);
    pthread_mutex_unlock(&rig->lock);
}

static inline void rig_open(struct rig *rig, const struct relay_config *config) {
    *rig = (struct rig){0};
    pthread_mutex_init(&rig->lock, NULL);
    pthread_cond_init(&rig->changed, NULL);
    struct relay_callbacks callbacks = {.dialed = rig_dialed, .why = rig_why, .ended = rig_ended};
    struct err err = {0};
    assert_int_equal(relay_new(config, &callbacks, rig, &rig->relay, &err), 0);
}

/* Every test ends with nothing left of its connections. */
static inline void rig_close(struct rig *rig) {
    for (int i = 0; i < RIG_PATIENCE_MS && relay_count(rig->relay) > 0; i++)
        poll(NULL, 0, 1);
    assert_int_equal(relay_count(rig->relay), 0);
    assert_int_equal(relay_buffered_bytes(rig->relay), 0);
    relay_shutdown(rig->relay, 1012, "", 0);
    pthread_mutex_destroy(&rig->lock);
    pthread_cond_destroy(&rig->changed);
}

/* Waits until a counter of the rig, which callbacks raise, is at least n. */
static inline void rig_wait(struct rig *rig, const unsigned *counter, unsigned n) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += RIG_PATIENCE_MS / 1000;
    pthread_mutex_lock(&rig->lock);
    int r = 0;
    while (*counter < n && r == 0)
        r = pthread_cond_timedwait(&rig->changed, &rig->lock, &until);
    unsigned got = *counter;
    pthread_mutex_unlock(&rig->lock);
    assert_true(got >= n);
}

static inline unsigned rig_count(struct rig *rig, const unsigned *counter) {
    pthread_mutex_lock(&rig->lock);
    unsigned n = *counter;
    pthread_mutex_unlock(&rig->lock);
    return n;
}

static inline struct relay_dialed rig_last_dialed(struct rig *rig) {
    pthread_mutex_lock(&rig->lock);
    struct relay_dialed last = rig->dialed[(rig->dialed_len - 1) % RIG_MAX];
    pthread_mutex_unlock(&rig->lock);
    return last;
}

static inline struct relay_ended rig_wait_ended(struct rig *rig, unsigned n) {
    rig_wait(rig, &rig->ended_len, n);
    pthread_mutex_lock(&rig->lock);
    struct relay_ended last = rig->ended[(n - 1) % RIG_MAX];
    pthread_mutex_unlock(&rig->lock);
    return last;
}

static inline int tcp_listen(struct sockaddr_in *ret_address) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    assert_true(fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 64) == 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &len), 0);
    *ret_address = address;
    return fd;
}

/* A non-blocking socket on which connect() was called. */
static inline int tcp_connect(const struct sockaddr_in *address) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_true(fd >= 0);
    int r = connect(fd, (const struct sockaddr *)address, sizeof *address);
    assert_true(r == 0 || errno == EINPROGRESS || errno == ECONNREFUSED);
    return fd;
}

static inline void tcp_pair(int ret[2]) {
    struct sockaddr_in address;
    int listener = tcp_listen(&address);
    ret[0] = tcp_connect(&address);
    ret[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    assert_true(ret[1] >= 0);
    close(listener);
}

/* Ends a socket with a reset. */
static inline void tcp_reset(int fd) {
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(fd);
}

static inline bool readable(int fd, int timeout_ms) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, timeout_ms) == 1;
}

static inline void send_all(int fd, const void *data, size_t len) {
    const uint8_t *p = data;
    while (len > 0) {
        ssize_t n = send(fd, p, len, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            struct pollfd wait = {.fd = fd, .events = POLLOUT};
            assert_int_equal(poll(&wait, 1, RIG_PATIENCE_MS), 1);
            continue;
        }
        if (n < 0)
            fail_msg("send: %s", strerror(errno));
        p += n;
        len -= (size_t)n;
    }
}

static inline void send_text(int fd, const char *text) {
    send_all(fd, text, strlen(text));
}

static inline void send_bytes(int fd, struct ws_bytes *b) {
    send_all(fd, b->data, b->len);
    ws_bytes_free(b);
}

static inline void send_frame(int fd, uint8_t first, bool masked, const void *payload, size_t len) {
    struct ws_bytes b = {0};
    ws_frame(&b, first, masked, payload, len);
    send_bytes(fd, &b);
}

static inline void send_close(int fd, bool masked, uint16_t code, const char *reason) {
    struct ws_bytes b = {0};
    ws_close_frame(&b, masked, code, reason);
    send_bytes(fd, &b);
}

enum read_end { READ_MORE, READ_FIN, READ_RESET, READ_TIMEOUT };

static inline enum read_end read_once(int fd, struct ws_decoder *d, int timeout_ms) {
    static uint8_t buffer[65536];
    if (!readable(fd, timeout_ms))
        return READ_TIMEOUT;
    ssize_t n = recv(fd, buffer, sizeof buffer, 0);
    if (n > 0)
        ws_decode(d, buffer, (size_t)n);
    if (d->error)
        fail_msg("the stream is broken: %s", d->error);
    return n > 0 ? READ_MORE : n == 0 ? READ_FIN : READ_RESET;
}

/* Reads until n messages have come in all. */
static inline void read_messages(int fd, struct ws_decoder *d, size_t n) {
    while (d->messages < n)
        assert_int_equal(read_once(fd, d, RIG_PATIENCE_MS), READ_MORE);
}

/* Reads until a Close has come; what a browser would show is in the decoder then. */
static inline void read_close(int fd, struct ws_decoder *d) {
    enum read_end end = READ_MORE;
    while (!d->closed && end == READ_MORE)
        end = read_once(fd, d, RIG_PATIENCE_MS);
    if (!d->closed)
        fail_msg("the browser would see 1006 (%s)", end == READ_FIN ? "FIN" : end == READ_RESET ? "reset" : "time-out");
    /* Nothing of a frame before it is missing. */
    assert_int_equal(d->input.len, 0);
}

static inline enum read_end read_to_end(int fd, struct ws_decoder *d) {
    enum read_end end = READ_MORE;
    while (end == READ_MORE)
        end = read_once(fd, d, RIG_PATIENCE_MS);
    return end;
}

/* The two ends that a test plays. */
struct ends {
    uint64_t conn;
    int browser, vm;
    struct ws_decoder at_browser, at_vm;
};

/* Reads an upgrade request. ret: the whole request, at most 4 KiB. */
static inline void read_request(int fd, char ret[4096]) {
    size_t len = 0;
    ret[0] = '\0';
    while (!strstr(ret, "\r\n\r\n")) {
        assert_true(readable(fd, RIG_PATIENCE_MS));
        ssize_t n = recv(fd, ret + len, 4095 - len, 0);
        assert_true(n > 0);
        len += (size_t)n;
        ret[len] = '\0';
    }
}

/* Writes the answer to a request. protocol NULL: none. */
static inline void good_answer(const char *request, const char *protocol, char ret[1024]) {
    char key[WS_KEY_LEN + 1], accept[WS_ACCEPT_SIZE];
    const char *at = strstr(request, "Sec-WebSocket-Key: ");
    assert_non_null(at);
    memcpy(key, at + strlen("Sec-WebSocket-Key: "), WS_KEY_LEN);
    key[WS_KEY_LEN] = '\0';
    assert_int_equal(ws_accept(key, accept), 0);
    snprintf(ret, 1024,
             "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
             "Sec-WebSocket-Accept: %s\r\n%s%s%s\r\n",
             accept, protocol ? "Sec-WebSocket-Protocol: " : "", protocol ? protocol : "", protocol ? "\r\n" : "");
}

/* Starts to dial; the VM has accepted and read the request. */
static inline void rig_dial(struct rig *rig, struct ends *e, uint64_t tag, const char *protocols, char request[4096]) {
    *e = (struct ends){.browser = -1, .at_vm.masked = true};
    struct sockaddr_in address;
    int listener = tcp_listen(&address);
    int fd = tcp_connect(&address);
    struct relay_dial dial = {.tag = tag, .host = "192.168.0.2:6080", .path = "/websockify", .protocols = protocols};
    struct err err = {0};
    assert_int_equal(relay_dial(rig->relay, fd, &dial, &e->conn, &err), 0);
    e->vm = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    assert_true(e->vm >= 0);
    close(listener);
    read_request(e->vm, request);
}

/* Dials with success; `more` follows the answer in the same segment. */
static inline void rig_dial_well(struct rig *rig, struct ends *e, uint64_t tag, const void *more, size_t more_len) {
    char request[4096];
    struct ws_bytes answer = {0};
    unsigned before = rig_count(rig, &rig->dialed_len);
    rig_dial(rig, e, tag, NULL, request);
    char text[1024];
    good_answer(request, NULL, text);
    ws_add(&answer, text, strlen(text));
    ws_add(&answer, more, more_len);
    send_bytes(e->vm, &answer);
    rig_wait(rig, &rig->dialed_len, before + 1);
    assert_int_equal(rig_last_dialed(rig).end, RELAY_END_NONE);
}

static inline void rig_join(struct rig *rig, struct ends *e, const void *early, size_t early_len) {
    int pair[2];
    tcp_pair(pair);
    e->browser = pair[0];
    assert_int_equal(relay_join(rig->relay, e->conn, 0, pair[1], early, early_len), 0);
}

static inline void rig_connect(struct rig *rig, struct ends *e, uint64_t tag) {
    rig_dial_well(rig, e, tag, NULL, 0);
    rig_join(rig, e, NULL, 0);
}

static inline void ends_close(struct ends *e) {
    if (e->browser >= 0)
        close(e->browser);
    if (e->vm >= 0)
        close(e->vm);
    ws_decoder_free(&e->at_browser);
    ws_decoder_free(&e->at_vm);
}

__attribute__((unused)) static const struct relay_config quick = {
    .threads = 2,
    .handshake_timeout_ms = 500,
    .half_close_ms = 200,
    .linger_ms = 400,
    .dead_after_ms = 500,
    .ping_after_ms = -1,
};

/* With deadlines that only a test that hangs would reach. */
__attribute__((unused)) static const struct relay_config slow = {.threads = 2, .ping_after_ms = -1};

/* The browser answers the Close, and the connection ends as it should. */
static inline void finish_browser(struct ends *e) {
    send_close(e->browser, true, e->at_browser.code ? e->at_browser.code : 1000, "");
    assert_int_equal(read_to_end(e->browser, &e->at_browser), READ_FIN);
    close(e->browser);
    e->browser = -1;
}

static inline void finish_vm(struct ends *e) {
    send_close(e->vm, false, e->at_vm.code ? e->at_vm.code : 1000, "");
    assert_int_equal(read_to_end(e->vm, &e->at_vm), READ_FIN);
    close(e->vm);
    e->vm = -1;
}

static inline void expect_close(int fd, struct ws_decoder *d, uint16_t code, const char *reason_has) {
    read_close(fd, d);
    assert_int_equal(d->code, code);
    if (!strstr(d->reason, reason_has))
        fail_msg("\"%s\" does not say \"%s\"", d->reason, reason_has);
    assert_true(strlen(d->reason) <= RELAY_REASON_MAX);
}

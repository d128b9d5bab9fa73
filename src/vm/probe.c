#include "vm/probe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "network/icmp.h"

#define REPLY_MAX 2048

struct probe {
    sd_event_source *io;
    struct loop_timer *deadline;
    int fd;
    enum probe_kind kind;
    uint32_t ip;
    uint16_t port;
    struct icmp_echo echo;
    bool connected;
    int start_errnum; /* the connect failed at once: told from the loop */
    probe_done_fn *done;
    void *userdata;
    size_t len;
    char reply[REPLY_MAX];
};

void probe_free(struct probe *probe) {
    if (!probe)
        return;
    sd_event_source_disable_unref(probe->io);
    loop_timer_free(probe->deadline);
    fd_close(&probe->fd);
    free(probe);
}

static void finish(struct probe *p, enum probe_answer answer, const char *words) {
    char ip[NET_IP_TEXT], text[256];
    net_format_ip(p->ip, ip);
    if (p->kind == PROBE_ICMP)
        snprintf(text, sizeof text, "ping %s: %s", ip, words);
    else
        snprintf(text, sizeof text, "TCP %s:%u: %s", ip, p->port, words);
    probe_done_fn *done = p->done;
    void *userdata = p->userdata;
    probe_free(p);
    done(userdata, answer, text);
}

/* What the guest said where it is not what it should be; nothing, where no connection came about. */
static void refuse(struct probe *p, const char *words) {
    finish(p, p->connected ? PROBE_NO : PROBE_SILENCE, words);
}

static void finish_errno(struct probe *p, int errnum) {
    const char *words = errnum == ECONNREFUSED   ? "connection refused: the guest answers, but nothing listens there"
                        : errnum == EHOSTUNREACH ? "no route to host: the guest did not answer ARP"
                                                 : strerror(errnum);
    finish(p, errnum == ECONNREFUSED ? PROBE_NO : PROBE_SILENCE, words);
}

static void on_deadline(void *userdata) {
    struct probe *p = userdata;
    if (p->start_errnum)
        finish_errno(p, p->start_errnum);
    else if (p->kind == PROBE_DESKTOP && p->connected && p->len == 0)
        refuse(p, "accepts connections but does not answer a WebSocket upgrade");
    else if (p->kind == PROBE_DESKTOP && p->connected)
        refuse(p, "speaks WebSocket, but no desktop (RFB) answers behind it");
    else
        refuse(p, "no answer");
}

/* A fixed key is fine: this is a question to our own guest, and the answer's proof is not looked at. */
static int ask_upgrade(struct probe *p) {
    char ip[NET_IP_TEXT], request[320];
    net_format_ip(p->ip, ip);
    int n = snprintf(request, sizeof request,
                     "GET /websockify HTTP/1.1\r\nHost: %s:%u\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
                     "Sec-WebSocket-Protocol: binary\r\n\r\n",
                     ip, p->port);
    return send(p->fd, request, (size_t)n, MSG_NOSIGNAL) == n ? 0 : -EIO;
}

/* The first frame from an RFB server is its version: "RFB 003.008\n" (RFC 6143 7.1.1), in an unmasked frame whose
 * header has 2 bytes. */
static void look_for_rfb(struct probe *p) {
    const char *end = memmem(p->reply, p->len, "\r\n\r\n", 4);
    if (!end) {
        if (p->len == REPLY_MAX)
            refuse(p, "does not speak WebSocket");
        return;
    }
    if (p->len < 12 || memcmp(p->reply, "HTTP/1.1 101", 12) != 0) {
        refuse(p, "does not speak WebSocket: it refuses the upgrade");
        return;
    }
    const char *frame = end + 4;
    size_t n = (size_t)(p->reply + p->len - frame);
    if (n >= 1 && (frame[0] & 0x0f) == 8)
        refuse(p, "websockify answers, but the VNC server behind it does not");
    else if (n >= 6 && memcmp(frame + 2, "RFB ", 4) == 0)
        finish(p, PROBE_YES, "desktop ready");
    else if (n >= 6)
        refuse(p, "speaks WebSocket, but not RFB");
}

static void on_connected(struct probe *p) {
    int errnum = 0;
    socklen_t len = sizeof errnum;
    getsockopt(p->fd, SOL_SOCKET, SO_ERROR, &errnum, &len);
    if (errnum) {
        finish_errno(p, errnum);
        return;
    }
    p->connected = true;
    if (p->kind == PROBE_TCP)
        finish(p, PROBE_YES, "accepts connections");
    else if (ask_upgrade(p) < 0)
        refuse(p, "closed the connection");
    else
        sd_event_source_set_io_events(p->io, EPOLLIN);
}

static void on_reply(struct probe *p) {
    ssize_t n = recv(p->fd, p->reply + p->len, REPLY_MAX - p->len, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        refuse(p, "closed the connection");
        return;
    }
    p->len += (size_t)n;
    look_for_rfb(p);
}

static void on_icmp(struct probe *p) {
    uint8_t packet[1500];
    for (;;) {
        ssize_t n = recv(p->fd, packet, sizeof packet, 0);
        if (n < 0 && errno != EINTR) {
            if (errno != EAGAIN)
                finish_errno(p, errno);
            return;
        }
        uint32_t from;
        struct icmp_echo echo;
        if (n > 0 && icmp_echo_read(packet, (size_t)n, &from, &echo) && from == p->ip && echo.id == p->echo.id &&
            echo.nonce == p->echo.nonce) {
            finish(p, PROBE_YES, "answered");
            return;
        }
    }
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
    struct probe *p = userdata;
    if (p->kind == PROBE_ICMP)
        on_icmp(p);
    else if (!p->connected)
        on_connected(p);
    else
        on_reply(p);
    return 0;
}

static int open_socket(struct probe *p, struct network *network, struct err *err) {
    if (p->kind != PROBE_ICMP)
        return network_connect_tcp(network, p->ip, p->port, &p->fd, err);
    int r = network_icmp_socket(network, &p->fd, err);
    if (r < 0)
        return r;
    return network_icmp_send(p->fd, p->ip, p->echo, err);
}

int probe_start(struct loop *loop, struct network *network, enum probe_kind kind, uint32_t ip, uint16_t port,
                int timeout_ms, probe_done_fn *done, void *userdata, struct probe **ret_probe, struct err *err) {
    static uint16_t next_id;
    struct probe *p = calloc(1, sizeof *p);
    if (!p)
        return err_sys(err, ENOMEM, "probe.failed", "probe");
    *p = (struct probe){.fd = -1,
                        .kind = kind,
                        .ip = ip,
                        .port = port,
                        .echo = {.id = ++next_id, .sequence = 1},
                        .done = done,
                        .userdata = userdata};
    if (getrandom(&p->echo.nonce, sizeof p->echo.nonce, 0) < 0)
        p->echo.nonce = (uint64_t)time_monotonic_ms();
    int r = open_socket(p, network, err);
    if (r == -EHOSTUNREACH || r == -ENETUNREACH || r == -ECONNREFUSED)
        p->start_errnum = -r;
    else if (r < 0) {
        probe_free(p);
        return r;
    }
    r = loop_timer_new(loop, p->start_errnum ? 0 : timeout_ms, on_deadline, p, &p->deadline);
    if (r == 0 && !p->start_errnum)
        r = sd_event_add_io(loop_event(loop), &p->io, p->fd, kind == PROBE_ICMP ? EPOLLIN : EPOLLOUT, on_io, p);
    if (r < 0) {
        probe_free(p);
        return err_sys(err, -r, "probe.failed", "probe");
    }
    *ret_probe = p;
    return 0;
}

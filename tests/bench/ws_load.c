/* Both ends of a WebSocket relay under load, light enough not to be what is measured.
 *
 * usage: ws-load server ADDRESS PORT [DEVICE]
 *          A desktop's service: answers a WebSocket handshake, or with PORT + 1 takes plain TCP, and says "RFB 003.008\n".
 *          To a message that begins with 'S' it answers with frames of 64 KiB for ever, to any other with itself.
 *          DEVICE: binds to it, as a guest's address that is the bridge's own needs. Says "ready", ends at end of file
 *          on standard input.
 *        ws-load client ADDRESS PORT PATH HEADER CONNECTIONS AT_ONCE
 *          Opens connections and says "ready NS" when each has had the service's first words; NS: how long that took.
 *          HEADER: a line of the requests, or "". Then it takes lines on standard input, each answered by one:
 *            stream MS  has all connections streamed to: "begun", then the bytes that came in MS and the ns that this
 *                       really was; then it reads no more
 *            echo N     N messages of 64 bytes, one after the other, on the first connection; ns of each round trip
 *          and answers pings meanwhile. It ends at end of file. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/ws_accept.h"

enum { FRAME_HEAD = 10, FRAME_PAYLOAD = 65536, SMALL = 64, KEPT = 1024, READS_PER_TURN = 16, WARM_UP_MS = 300 };

#define GREETING "RFB 003.008\n"

struct conn {
    int fd;
    bool plain;  /* a TCP stream without WebSocket */
    bool open;   /* the handshake is done and, at the client, the greeting has come */
    bool stream; /* the service sends for ever */
    size_t sent; /* of the frame that is being streamed */
    size_t kept;
    char data[KEPT]; /* what has come of a head or a small message */
};

struct end {
    int epoll;
    const char *host, *path, *header;
    struct sockaddr_in address;
    unsigned wanted, begun, opened;
    struct conn *conns;
    uint64_t bytes; /* that came while streaming */
    bool counts;
};

static uint8_t stream_frame[FRAME_HEAD + FRAME_PAYLOAD] = {0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0};

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static _Noreturn void fail(const char *what) {
    fprintf(stderr, "ws-load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void watch(int epoll, int fd, void *data) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = data};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        fail("epoll");
}

/* Small things only: the socket's buffer takes them. */
static void send_small(const struct conn *c, const void *data, size_t len) {
    if (send(c->fd, data, len, MSG_NOSIGNAL) != (ssize_t)len && errno != EPIPE && errno != ECONNRESET)
        fail("send");
}

static void drop(struct conn *c) {
    close(c->fd);
    c->fd = -1;
}

/* Reads behind what is kept. Return: whether there may be more; the connection is dropped at its end. */
static bool keep_more(struct conn *c) {
    ssize_t n = recv(c->fd, c->data + c->kept, KEPT - c->kept, 0);
    if (n > 0)
        c->kept += (size_t)n;
    else if (n == 0 || errno != EAGAIN)
        drop(c);
    return n > 0;
}

/* Takes the next small message out of what is kept, unmasked. Return: its payload, NULL when it is not whole. */
static char *take_message(struct conn *c, uint8_t *ret_first, size_t *ret_len, size_t *ret_used) {
    uint8_t *p = (uint8_t *)c->data;
    size_t head = c->kept >= 2 && (p[1] & 0x80) ? 6 : 2;
    if (c->kept < head || c->kept < head + (p[1] & 0x7fU))
        return NULL;
    *ret_first = p[0];
    *ret_len = p[1] & 0x7fU;
    *ret_used = head + *ret_len;
    for (size_t i = 0; head == 6 && i < *ret_len; i++)
        p[head + i] ^= p[2 + i % 4];
    return c->data + head;
}

static void forget(struct conn *c, size_t used) {
    c->kept -= used;
    memmove(c->data, c->data + used, c->kept);
}

/* ---- the service ---- */

static void stream(struct conn *c) {
    const uint8_t *frame = stream_frame + (c->plain ? FRAME_HEAD : 0);
    size_t len = sizeof stream_frame - (c->plain ? FRAME_HEAD : 0);
    for (;;) {
        ssize_t n = send(c->fd, frame + c->sent, len - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n < 0) {
            drop(c);
            return;
        }
        c->sent = (c->sent + (size_t)n) % len;
    }
}

static void greet(struct conn *c) {
    static const char greeting[] = "\x82\x0c" GREETING;
    c->open = true;
    send_small(c, greeting + (c->plain ? 2 : 0), sizeof greeting - 1 - (c->plain ? 2 : 0));
}

static void answer_handshake(struct conn *c) {
    static const char name[] = "Sec-WebSocket-Key: ";
    const char *end = memmem(c->data, c->kept, "\r\n\r\n", 4), *at;
    char key[WS_KEY_LEN + 1] = "", accept[WS_ACCEPT_SIZE], answer[512];
    if (!end)
        return;
    c->data[end - c->data] = '\0';
    at = strcasestr(c->data, name);
    if (at)
        memcpy(key, at + sizeof name - 1, WS_KEY_LEN);
    if (ws_accept(key, accept) < 0) {
        drop(c);
        return;
    }
    bool offered = strcasestr(c->data, "Sec-WebSocket-Protocol: binary");
    int n = snprintf(answer, sizeof answer,
                     "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Accept: %s\r\n%s\r\n",
                     accept, offered ? "Sec-WebSocket-Protocol: binary\r\n" : "");
    send_small(c, answer, (size_t)n);
    forget(c, (size_t)(end - c->data) + 4);
    greet(c);
}

static void serve_messages(struct conn *c) {
    uint8_t first = 0x82;
    size_t len = c->kept, used = c->kept;
    char *payload;
    while (c->kept > 0 && (payload = c->plain ? c->data : take_message(c, &first, &len, &used))) {
        if (first == 0x88) {
            drop(c);
            return;
        }
        c->stream = c->stream || payload[0] == 'S';
        uint8_t head[2] = {0x82, (uint8_t)len};
        char answer[sizeof head + KEPT];
        memcpy(answer, head, sizeof head);
        memcpy(answer + sizeof head, payload, len);
        if (!c->stream && first == 0x82)
            send_small(c, answer + (c->plain ? 2 : 0), len + (c->plain ? 0 : 2));
        forget(c, used);
        len = used = c->kept;
    }
}

static void serve(struct conn *c) {
    while (c->fd >= 0 && keep_more(c)) {
        if (!c->open)
            answer_handshake(c);
        if (c->fd >= 0 && c->open)
            serve_messages(c);
    }
    if (c->fd >= 0 && c->stream)
        stream(c);
}

static int listen_at(const char *address, uint16_t port, const char *device) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (inet_pton(AF_INET, address, &at.sin_addr) != 1 || fd < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int)) < 0 ||
        (device && setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, (socklen_t)strlen(device)) < 0) ||
        bind(fd, (struct sockaddr *)&at, sizeof at) < 0 || listen(fd, 4096) < 0)
        fail("listen");
    return fd;
}

static void accept_all(int epoll, int listener, bool plain) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0) {
        struct conn *c = calloc(1, sizeof *c);
        if (!c)
            fail("memory");
        c->fd = fd;
        c->plain = plain;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        watch(epoll, fd, c);
        if (plain)
            greet(c);
    }
}

static int run_server(const char *address, uint16_t port, const char *device) {
    struct epoll_event events[64];
    int epoll = epoll_create1(EPOLL_CLOEXEC), listeners[2];
    for (unsigned i = 0; i < 2; i++) {
        listeners[i] = listen_at(address, (uint16_t)(port + i), device);
        watch(epoll, listeners[i], &listeners[i]);
    }
    watch(epoll, STDIN_FILENO, NULL);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < n; i++) {
            int *listener = events[i].data.ptr;
            struct conn *c = events[i].data.ptr;
            if (!c)
                return 0;
            if (listener == &listeners[0] || listener == &listeners[1]) {
                accept_all(epoll, *listener, listener == &listeners[1]);
                continue;
            }
            serve(c);
            if (c->fd < 0)
                free(c);
        }
    }
}

/* ---- the browsers ---- */

static void open_next(struct end *e) {
    struct conn *c = &e->conns[e->begun++];
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&e->address, sizeof e->address) < 0)
        fail("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    char request[1024];
    int n = snprintf(request, sizeof request,
                     "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n%s%s"
                     "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
                     "Sec-WebSocket-Protocol: binary\r\n\r\n",
                     e->path, e->host, e->header, *e->header ? "\r\n" : "");
    send_small(c, request, (size_t)n);
    watch(e->epoll, c->fd, c);
}

static void look_for_greeting(struct end *e, struct conn *c) {
    const char *end = memmem(c->data, c->kept, "\r\n\r\n", 4);
    if (c->kept >= 12 && memcmp(c->data, "HTTP/1.1 101", 12) != 0) {
        fprintf(stderr, "ws-load: %.*s\n", (int)c->kept, c->data);
        exit(1);
    }
    size_t greeting = 2 + strlen(GREETING);
    if (!end || c->kept < (size_t)(end + 4 - c->data) + greeting)
        return;
    forget(c, (size_t)(end + 4 - c->data) + greeting);
    c->open = true;
    e->opened++;
    if (e->begun < e->wanted)
        open_next(e);
}

/* A browser answers by itself. */
static void answer_pings(struct conn *c) {
    uint8_t first;
    size_t len, used;
    char *payload;
    while ((payload = take_message(c, &first, &len, &used))) {
        uint8_t pong[6 + 125] = {0x8a, (uint8_t)(0x80 | len)};
        memcpy(pong + 6, payload, len);
        if (first == 0x89)
            send_small(c, pong, 6 + len);
        forget(c, used);
    }
}

static void swallow(struct end *e, struct conn *c) {
    ssize_t n;
    /* What is not wanted is not copied. Source: tcp(7), MSG_TRUNC. */
    for (int i = 0; i < READS_PER_TURN && (n = recv(c->fd, NULL, 1 << 20, MSG_TRUNC)) > 0; i++)
        e->bytes += e->counts ? (uint64_t)n : 0;
}

static void listen_to(struct end *e, struct conn *c) {
    while (c->fd >= 0 && keep_more(c)) {
        if (!c->open)
            look_for_greeting(e, c);
        if (c->open)
            answer_pings(c);
    }
    if (c->fd < 0) {
        fprintf(stderr, "ws-load: a connection was closed: %.*s\n", (int)c->kept, c->data);
        exit(1);
    }
}

static void send_message(const struct conn *c, char first) {
    uint8_t message[6 + SMALL] = {0x82, 0x80 | SMALL, 0, 0, 0, 0, (uint8_t)first};
    send_small(c, message, sizeof message);
}

/* The browsers' sockets are level-triggered from here: one that is not emptied in its turn has another. */
static void run_stream(struct end *e, int64_t ms) {
    struct epoll_event events[64];
    for (unsigned i = 0; i < e->wanted; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &e->conns[i]};
        epoll_ctl(e->epoll, EPOLL_CTL_MOD, e->conns[i].fd, &event);
        send_message(&e->conns[i], 'S');
    }
    int64_t begin_ns = now_ns() + WARM_UP_MS * (int64_t)1000000, now;
    while ((now = now_ns()) < begin_ns + ms * 1000000) {
        if (!e->counts && now >= begin_ns) {
            e->counts = true;
            begin_ns = now;
            puts("begun");
            fflush(stdout);
        }
        int n = epoll_wait(e->epoll, events, 64, 10);
        for (int i = 0; i < n; i++)
            if (events[i].data.ptr)
                swallow(e, events[i].data.ptr);
    }
    printf("%llu %lld\n", (unsigned long long)e->bytes, (long long)(now - begin_ns));
}

static void run_echo(struct end *e, int count) {
    struct conn *c = &e->conns[0];
    fcntl(c->fd, F_SETFL, 0);
    for (int i = 0; i < count; i++) {
        int64_t begin_ns = now_ns();
        uint8_t first = 0;
        size_t len, used;
        send_message(c, 'E');
        c->kept = 0;
        while (!take_message(c, &first, &len, &used) || first != 0x82)
            if (!keep_more(c))
                fail("echo");
        printf("%lld ", (long long)(now_ns() - begin_ns));
    }
    puts("");
    c->kept = 0;
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
}

static bool obey(struct end *e) {
    char line[64];
    ssize_t n = read(STDIN_FILENO, line, sizeof line - 1);
    if (n <= 0)
        return false;
    line[n] = '\0';
    bool is_stream = strncmp(line, "stream ", 7) == 0;
    if (is_stream)
        run_stream(e, atoi(line + 7));
    else if (strncmp(line, "echo ", 5) == 0)
        run_echo(e, atoi(line + 5));
    fflush(stdout);
    while (is_stream && read(STDIN_FILENO, line, sizeof line) > 0)
        continue;
    return !is_stream;
}

static int run_client(struct end *e, unsigned at_once) {
    struct epoll_event events[64];
    struct epoll_event input = {.events = EPOLLIN};
    e->epoll = epoll_create1(EPOLL_CLOEXEC);
    e->conns = calloc(e->wanted, sizeof *e->conns);
    if (!e->conns || epoll_ctl(e->epoll, EPOLL_CTL_ADD, STDIN_FILENO, &input) < 0)
        fail("start");
    int64_t begin_ns = now_ns();
    while (e->begun < at_once && e->begun < e->wanted)
        open_next(e);
    bool said = false;
    for (;;) {
        int n = epoll_wait(e->epoll, events, 64, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr)
                listen_to(e, events[i].data.ptr);
            else if (!obey(e))
                return 0;
        }
        if (!said && e->opened == e->wanted) {
            said = true;
            printf("ready %lld\n", (long long)(now_ns() - begin_ns));
            fflush(stdout);
        }
    }
}

int main(int argc, char **argv) {
    struct rlimit files;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    if (argc >= 4 && strcmp(argv[1], "server") == 0)
        return run_server(argv[2], (uint16_t)atoi(argv[3]), argc > 4 ? argv[4] : NULL);
    if (argc == 8 && strcmp(argv[1], "client") == 0) {
        struct end e = {.host = argv[2], .path = argv[4], .header = argv[5], .wanted = (unsigned)atoi(argv[6])};
        e.address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[3]))};
        if (inet_pton(AF_INET, argv[2], &e.address.sin_addr) == 1 && e.wanted > 0)
            return run_client(&e, (unsigned)atoi(argv[7]));
    }
    fprintf(stderr, "usage: ws-load server ADDRESS PORT [DEVICE]\n"
                    "       ws-load client ADDRESS PORT PATH HEADER CONNECTIONS AT_ONCE\n");
    return 2;
}

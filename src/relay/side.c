#include "relay/side.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "relay/conn.h"
#include "relay/thread.h"

/* Room behind a queue for what the relay itself may add: a ping and a Close. */
#define QUEUE_SLACK ((size_t)2 * (FRAME_HEAD_MAX + FRAME_CONTROL_MAX))

/* Bytes that the kernel keeps for a peer before any of them is on its way: enough for reads of a whole buffer, and no more
 * than a slow peer takes soon, since a Close comes behind them. Source: TCP_NOTSENT_LOWAT, tcp(7). */
#define UNSENT (1024 * 1024)

/* How many times an end is put off, each time by linger_ms, for a peer that has not taken all that it is sent. */
#define DELAYS_MAX 15

/* bytes of a frame's rest that are worth a turn */
#define BULK (128 * 1024)

/* bytes of a read: usually; while the relay keeps plenty */
#define USUAL ((size_t)64 * 1024)
#define LITTLE ((size_t)16 * 1024)

static struct thread *thread_of(const struct side *s) {
    return s->conn->thread;
}

static bool is_upstream(const struct side *s) {
    return s == &s->conn->upstream;
}

static void count_buffered(struct side *s, size_t before, size_t after) {
    atomic_fetch_add_explicit(&thread_of(s)->relay->buffered, after - before, memory_order_relaxed);
}

int side_open(struct side *s, int fd) {
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return -errno;
    /* Frames are sent whole: waiting for more would only add latency. Not every socket is TCP in a test. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &(int){UNSENT}, sizeof(int));
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = s};
    if (epoll_ctl(thread_of(s)->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        return -errno;
    s->fd = fd;
    s->got_ms = s->moved_ms = thread_of(s)->now_ms;
    s->untaken = SIZE_MAX;
    return 0;
}

void side_event(struct side *s, uint32_t events) {
    if (events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP))
        s->hung_up = true;
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP | EPOLLRDHUP))
        s->can_read = true;
    if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
        s->can_write = true;
}

static void free_queue(struct side *s) {
    count_buffered(s, s->queue_len, 0);
    free(ptr_steal(s->queue));
    s->queue_at = s->queue_len = 0;
}

static void free_held(struct side *s) {
    count_buffered(s, s->held_len, 0);
    free(ptr_steal(s->held));
    s->held_len = 0;
}

void side_drop(struct side *s) {
    free_queue(s);
    free_held(s);
    s->in_eof = s->out_close = s->out_shut = true;
    if (s->fd < 0)
        return;
    /* close() alone leaves it in the set while a child between fork and exec still has it open. */
    (void)epoll_ctl(thread_of(s)->epoll_fd, EPOLL_CTL_DEL, s->fd, NULL);
    fd_close(&s->fd);
}

/* Nothing can be sent any more. What the peer sent before that can still be read, its Close perhaps. */
static void lose(struct side *s, int error) {
    s->lost = true;
    s->error = s->error ? s->error : error;
    s->out_close = s->out_shut = true;
    s->can_read = s->hung_up = true;
    s->moved_ms = thread_of(s)->now_ms;
    free_queue(s);
}

/* Return: bytes sent. */
static size_t transmit(struct side *s, struct iovec *iov, int n) {
    if (!s->can_write || s->fd < 0)
        return 0;
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)n};
    ssize_t sent;
    do
        sent = sendmsg(s->fd, &msg, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0 && errno == EAGAIN)
        s->can_write = false;
    else if (sent < 0)
        lose(s, -errno);
    else
        s->moved_ms = thread_of(s)->now_ms;
    return sent > 0 ? (size_t)sent : 0;
}

static void append(struct side *s, const struct iovec *iov, int n) {
    size_t more = 0;
    for (int i = 0; i < n; i++)
        more += iov[i].iov_len;
    if (more == 0 || s->out_close)
        return;
    uint8_t *bigger = realloc(s->queue, s->queue_at + s->queue_len + more + QUEUE_SLACK);
    if (!bigger) {
        lose(s, -ENOMEM);
        return;
    }
    if (s->queue_len == 0)
        s->moved_ms = thread_of(s)->now_ms;
    s->queue = bigger;
    uint8_t *end = bigger + s->queue_at + s->queue_len;
    for (int i = 0; i < n; i++)
        end = mempcpy(end, iov[i].iov_base, iov[i].iov_len);
    count_buffered(s, s->queue_len, s->queue_len + more);
    s->queue_len += more;
}

void side_send(struct side *s, struct iovec *iov, int n) {
    if (s->out_close || n == 0)
        return;
    bool tried = s->queue_len == 0;
    size_t sent = tried ? transmit(s, iov, n) : 0;
    for (; n > 0 && sent >= iov->iov_len; iov++, n--)
        sent -= iov->iov_len;
    if (n == 0)
        return;
    iov->iov_base = (uint8_t *)iov->iov_base + sent;
    iov->iov_len -= sent;
    /* It did not take all: epoll says when it takes more. Behind a queue it may have said so already. */
    if (tried)
        s->can_write = false;
    append(s, iov, n);
}

void side_flush(struct side *s) {
    if (s->queue_len == 0)
        return;
    struct iovec iov = {s->queue + s->queue_at, s->queue_len};
    size_t sent = transmit(s, &iov, 1);
    if (s->queue_len == 0)
        return; /* lost */
    count_buffered(s, s->queue_len, s->queue_len - sent);
    s->queue_at += sent;
    s->queue_len -= sent;
    if (s->queue_len == 0)
        free_queue(s);
    else
        s->can_write = false;
}

void side_send_close(struct side *s, uint16_t code, const char *reason) {
    if (s->out_close || s->fd < 0)
        return;
    uint8_t key[4] = {0}, out[FRAME_HEAD_MAX + FRAME_CONTROL_MAX];
    /* Cannot fail for 4 bytes: random(7). */
    if (is_upstream(s))
        (void)!getrandom(key, sizeof key, 0);
    size_t len = frame_build_close(out, is_upstream(s) ? key : NULL, code, reason);
    side_send(s, &(struct iovec){out, len}, 1);
    s->out_close = true;
    s->moved_ms = thread_of(s)->now_ms;
    s->untaken = SIZE_MAX;
}

/* Where in the thread's buffer what was held goes, so that what is read behind it is aligned. */
static uint8_t *place_for_held(const struct side *s) {
    size_t before = FRAME_HEAD_MAX + s->held_len;
    return thread_of(s)->buffer + FRAME_HEAD_MAX + (RELAY_ALIGNMENT - before % RELAY_ALIGNMENT) % RELAY_ALIGNMENT;
}

uint8_t *side_unhold(struct side *s, size_t *ret_len) {
    if (s->held_len == 0)
        return NULL;
    uint8_t *buffer = place_for_held(s);
    *ret_len = s->held_len;
    memcpy(buffer, s->held, s->held_len);
    free_held(s);
    return buffer;
}

/* Source: SO_MEMINFO, net/core/sock.c (what is queued counts with its overhead, so it takes a little less); SIOCOUTQNSD,
 * linux/sockios.h. */
size_t side_room(const struct side *s) {
    uint32_t info[SK_MEMINFO_VARS] = {0};
    int unsent = 0;
    if (s->fd < 0 || getsockopt(s->fd, SOL_SOCKET, SO_MEMINFO, info, &(socklen_t){sizeof info}) < 0 ||
        info[SK_MEMINFO_SNDBUF] < info[SK_MEMINFO_WMEM_QUEUED])
        return 0;
    (void)ioctl(s->fd, SIOCOUTQNSD, &unsent);
    size_t room = info[SK_MEMINFO_SNDBUF] - info[SK_MEMINFO_WMEM_QUEUED];
    size_t sendable = unsent < UNSENT ? (size_t)(UNSENT - unsent) : 0;
    return room < sendable ? room : sendable;
}

/* Bytes that may be in hand: what was held and what is read. */
static size_t most_in_hand(const struct side *s, size_t most) {
    const struct relay *relay = thread_of(s)->relay;
    if (atomic_load_explicit(&relay->buffered, memory_order_relaxed) > relay->config.plenty_bytes)
        return LITTLE;
    most = most > USUAL ? most : USUAL;
    return most < relay->config.buffer_bytes ? most : relay->config.buffer_bytes;
}

uint8_t *side_read(struct side *s, size_t most, size_t *ret_len) {
    struct thread *thread = thread_of(s);
    uint8_t *buffer = place_for_held(s);
    size_t room = most_in_hand(s, most) - s->held_len;
    ssize_t n;
    do
        n = recv(s->fd, buffer + s->held_len, room, 0);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN) {
        s->can_read = false;
        return NULL;
    }
    if (n <= 0) {
        s->in_eof = true;
        if (n < 0)
            lose(s, -errno);
        return NULL;
    }
    s->bulk = (size_t)n == room;
    /* All that was there: epoll says when more comes. But it has said already if that is the end. */
    if (!s->bulk && !s->hung_up)
        s->can_read = false;
    s->got_ms = thread->now_ms;
    s->in_bytes += (uint64_t)n;
    *ret_len = s->held_len + (size_t)n;
    if (s->held_len > 0)
        side_unhold(s, &(size_t){0});
    return buffer;
}

void side_hold(struct side *s, const uint8_t *rest, size_t len) {
    if (len == 0)
        return;
    s->held = malloc(len);
    if (!s->held) {
        s->in_eof = true;
        lose(s, -ENOMEM);
        return;
    }
    memcpy(s->held, rest, len);
    s->held_len = len;
    count_buffered(s, 0, len);
}

/* The end of the stream wakes us nevertheless, and so does a receive buffer that is full with less.
 * Source: socket(7), SO_RCVLOWAT; tcp_epollin_ready() in the kernel's include/net/tcp.h. */
void side_expect(struct side *s, uint64_t promised) {
    int lowat = promised < FRAME_HOLD_MAX ? 1 : promised < BULK ? (int)promised : BULK;
    if (s->fd < 0 || s->can_read || s->lowat == lowat || (s->lowat == 0 && lowat == 1))
        return;
    if (setsockopt(s->fd, SOL_SOCKET, SO_RCVLOWAT, &lowat, sizeof lowat) == 0)
        s->lowat = lowat;
}

static void send_fin(struct side *s) {
    (void)shutdown(s->fd, SHUT_WR);
    s->out_shut = true;
    s->moved_ms = thread_of(s)->now_ms;
    s->untaken = SIZE_MAX;
}

void side_settle(struct side *s) {
    if (s->fd < 0 || !s->out_close || s->queue_len > 0)
        return;
    if (!s->out_shut && (s->in_close || s->in_eof))
        send_fin(s);
    if (s->out_shut && s->in_eof)
        side_drop(s);
}

int64_t side_deadline_ms(const struct side *s) {
    const struct relay_config *config = &thread_of(s)->relay->config;
    if (s->fd < 0)
        return INT64_MAX;
    if (s->out_close)
        return s->moved_ms + config->linger_ms;
    return s->queue_len > 0 ? s->moved_ms + config->dead_after_ms : INT64_MAX;
}

void side_expire(struct side *s) {
    if (!s->out_close) {
        s->in_eof = true;
        lose(s, -ETIMEDOUT);
        return;
    }
    int in_kernel = 0;
    (void)ioctl(s->fd, SIOCOUTQ, &in_kernel);
    /* Together: what leaves the queue is in the kernel then. */
    size_t untaken = s->queue_len + (size_t)in_kernel;
    /* A slow peer, not a dead one: it is still being sent what came before the Close. And a page may stand still for a
     * while; it would see 1006 when it goes on. But a relay that ends, or a VM's service, has no time for who takes nothing. */
    bool patient = !is_upstream(s) && !atomic_load(&thread_of(s)->relay->stopping);
    if (!s->lost && s->delays < DELAYS_MAX && untaken > 0 && (patient || untaken < s->untaken)) {
        s->delays++;
        s->untaken = untaken;
        s->moved_ms = thread_of(s)->now_ms;
    } else if (s->queue_len > 0 || s->lost) {
        side_drop(s);
    } else if (!s->out_shut) {
        send_fin(s);
    } else {
        side_drop(s);
    }
}

/* A close() with unread input resets the connection (RFC 9112, 9.6), and the client may lose the answer that says why.
 * So a copy of the descriptor outlives libmicrohttpd's close: the write side is shut down already, what the client still
 * sends is read and thrown away, until it closes, or for a bounded time and number of bytes. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/time.h"
#include "http/internal.h"

static void linger_free(struct http_linger *linger) {
    struct http_server *server = linger->server;
    if (linger->prev)
        linger->prev->next = linger->next;
    else
        server->lingers = linger->next;
    if (linger->next)
        linger->next->prev = linger->prev;
    server->stats.connections_lingering--;
    sd_event_source_disable_unref(linger->io);
    fd_close(&linger->fd);
    free(linger);
}

static int on_input(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
    struct http_linger *linger = userdata;
    char sink[4096];
    for (int i = 0; i < 16; i++) {
        ssize_t n = recv(fd, sink, sizeof sink, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return 0;
        linger->bytes += n > 0 ? (size_t)n : 0;
        if (n <= 0 || linger->bytes > LINGER_BYTES) {
            linger_free(linger);
            return 0;
        }
    }
    return 0;
}

void linger_take(struct http_server *server, int fd) {
    if (server->stats.connections_lingering >= LINGER_MAX)
        return;
    struct http_linger *linger = calloc(1, sizeof *linger);
    _cleanup_close_ int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (!linger || copy < 0 || sd_event_add_io(server->loop, &linger->io, copy, EPOLLIN, on_input, linger) < 0) {
        free(linger);
        return;
    }
    linger->server = server;
    linger->fd = fd_steal(&copy);
    linger->deadline_ms = time_monotonic_ms() + LINGER_MS;
    linger->next = server->lingers;
    if (linger->next)
        linger->next->prev = linger;
    server->lingers = linger;
    server->stats.connections_lingering++;
    server_sweep_start(server);
}

void linger_sweep(struct http_server *server, int64_t now_ms) {
    for (struct http_linger *l = server->lingers, *next; l; l = next) {
        next = l->next;
        if (now_ms >= l->deadline_ms)
            linger_free(l);
    }
}

void linger_free_all(struct http_server *server) {
    for (struct http_linger *l = server->lingers, *next; l; l = next) {
        next = l->next;
        linger_free(l);
    }
}

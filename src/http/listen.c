/* Listening sockets, and connections from accept() to the end. We accept ourselves because libmicrohttpd at its limit
 * answers nobody, spins when there is no descriptor left for its first connection, and copies more of a unix socket's
 * peer name than it read. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "http/internal.h"
#include "http/port_owner.h"

/* ---- connections ---- */

static unsigned *conn_count(struct http_server *server, bool local) {
    return local ? &server->stats.connections_unix : &server->stats.connections_tcp;
}

void conn_set_phase(struct http_conn *conn, enum conn_phase phase) {
    conn->phase = phase;
    conn->since_ms = time_monotonic_ms();
}

bool conn_is_over_limit(const struct http_conn *conn) {
    const struct http_server *server = conn->server;
    if (*conn_count(conn->server, conn->peer.local) > server->limits.connections)
        return true;
    return conn->remote && http_remote_connections(conn->remote) > server->limits.connections_per_ip;
}

void http_conn_free(struct http_conn *conn) {
    struct http_server *server = conn->server;
    if (conn->prev)
        conn->prev->next = conn->next;
    else
        server->conns = conn->next;
    if (conn->next)
        conn->next->prev = conn->prev;
    http_remotes_close(conn->remote);
    (*conn_count(server, conn->peer.local))--;
    free(conn);
    listeners_update(server);
}

static void fill_peer(struct http_peer *peer, bool local, int fd, const struct sockaddr_storage *addr) {
    peer->local = local;
    peer->uid = (uid_t)-1;
    peer->gid = (gid_t)-1;
    if (local) {
        struct ucred cred;
        socklen_t len = sizeof cred;
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0) {
            peer->uid = cred.uid;
            peer->gid = cred.gid;
            peer->pid = cred.pid;
        }
    } else if (addr->ss_family == AF_INET) {
        inet_ntop(AF_INET, &((const struct sockaddr_in *)addr)->sin_addr, peer->ip, sizeof peer->ip);
    } else {
        inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)addr)->sin6_addr, peer->ip, sizeof peer->ip);
    }
}

static struct http_conn *conn_new(struct http_server *server, bool local, int fd, const struct sockaddr_storage *addr) {
    struct http_conn *conn = calloc(1, sizeof *conn);
    if (!conn)
        return NULL;
    conn->server = server;
    conn->fd = fd;
    fill_peer(&conn->peer, local, fd, addr);
    if (!local)
        conn->remote = http_remotes_open(server->remotes, (const struct sockaddr *)addr, time_monotonic_ms());
    conn_set_phase(conn, PHASE_FIRST_HEAD);
    conn->next = server->conns;
    if (conn->next)
        conn->next->prev = conn;
    server->conns = conn;
    (*conn_count(server, local))++;
    return conn;
}

/* Takes fd. */
static void admit(struct http_server *server, bool local, int fd, const struct sockaddr_storage *addr, socklen_t len) {
    struct http_conn *conn = conn_new(server, local, fd, addr);
    if (!conn) {
        close(fd);
        return;
    }
    server->stats.accepted++;
    conn->spare = conn_is_over_limit(conn);
    if (!local && (!conn->remote ||
                   http_remote_connections(conn->remote) > server->limits.connections_per_ip + SPARE_PER_REMOTE)) {
        server->stats.over_limit++;
        http_conn_free(conn);
        close(fd);
        return;
    }
    int on = 1, unsent_bytes = UNSENT_BYTES;
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent_bytes, sizeof unsent_bytes); /* a unix socket refuses */
    server->progress++;
    server->incoming = conn;
    MHD_add_connection(server->mhd, fd, (const struct sockaddr *)addr, len); /* closes fd when it fails */
    if (server->incoming) {
        server->incoming = NULL;
        http_conn_free(conn);
    }
    server_sweep_start(server);
}

static int on_accept(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
    struct http_listener *listener = userdata;
    struct http_server *server = listener->server;
    for (int i = 0;
         i < ACCEPT_BATCH && *conn_count(server, listener->local) < server->limits.connections + SPARE_CONNECTIONS;
         i++) {
        struct sockaddr_storage addr = {0};
        socklen_t len = sizeof addr;
        int conn = accept4(fd, (struct sockaddr *)&addr, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (conn >= 0) {
            admit(server, listener->local, conn, &addr, len < sizeof addr ? len : sizeof addr);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            server->accept_paused_until_ms = time_monotonic_ms() + ACCEPT_PAUSE_MS;
            server_sweep_start(server);
            break;
        } else if (errno == EAGAIN) {
            break;
        } /* else an error of that one connection, accept(2) */
    }
    listeners_update(server);
    return 0;
}

void listeners_update(struct http_server *server) {
    for (struct http_listener *l = server->listeners; l; l = l->next) {
        bool room = *conn_count(server, l->local) < server->limits.connections + SPARE_CONNECTIONS;
        bool open = room && !server->accept_paused_until_ms;
        sd_event_source_set_enabled(l->io, open ? SD_EVENT_ON : SD_EVENT_OFF);
    }
}

/* ---- listeners ---- */

static void listener_clear(struct http_listener *listener) {
    struct stat st;
    listener->io = sd_event_source_disable_unref(listener->io);
    /* Only the file that we made: a successor may have put its own there. */
    if (listener->ino && lstat(listener->path, &st) == 0 && st.st_dev == listener->dev && st.st_ino == listener->ino)
        unlink(listener->path);
    fd_close(&listener->fd);
}

#define _cleanup_listener_ __attribute__((cleanup(listener_clear)))

/* Takes what is in draft once nothing can fail any more. */
static int listener_start(struct http_server *server, struct http_listener *draft, const char *name, struct err *err) {
    if (listen(draft->fd, SOMAXCONN) < 0)
        return err_sys(err, errno, "api.listen-failed", "listen on %s", name);
    struct http_listener *listener = calloc(1, sizeof *listener);
    if (!listener)
        return err_sys(err, ENOMEM, "api.listen-failed", "listen on %s", name);
    int r = sd_event_add_io(server->loop, &draft->io, draft->fd, EPOLLIN, on_accept, listener);
    if (r < 0) {
        free(listener);
        return err_sys(err, -r, "api.listen-failed", "watch %s", name);
    }
    *listener = *draft;
    *draft = (struct http_listener){.fd = -1};
    listener->server = server;
    listener->next = server->listeners;
    server->listeners = listener;
    listeners_update(server);
    return 0;
}

void listeners_close(struct http_server *server) {
    while (server->listeners) {
        struct http_listener *l = server->listeners;
        server->listeners = l->next;
        listener_clear(l);
        free(l);
    }
}

/* "127.0.0.1:4000" and "[::1]:4000". */
static int parse_address(const char *text, struct sockaddr_storage *ret, socklen_t *ret_len, uint16_t *ret_port) {
    char host[64];
    const char *colon = strrchr(text, ':');
    uint64_t port;
    if (!colon || str_to_u64(colon + 1, 0, 65535, &port) < 0)
        return -EINVAL;
    size_t len = (size_t)(colon - text);
    bool v6 = len >= 2 && text[0] == '[' && colon[-1] == ']';
    if (v6) {
        text++;
        len -= 2;
    }
    if (len == 0 || len >= sizeof host)
        return -EINVAL;
    memcpy(host, text, len);
    host[len] = '\0';
    struct sockaddr_storage addr = {.ss_family = v6 ? AF_INET6 : AF_INET};
    struct sockaddr_in *in = (struct sockaddr_in *)&addr;
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&addr;
    if (inet_pton(addr.ss_family, host, v6 ? (void *)&in6->sin6_addr : (void *)&in->sin_addr) != 1)
        return -EINVAL;
    in->sin_port = htons((uint16_t)port); /* at the same place in both */
    *ret = addr;
    *ret_len = v6 ? sizeof *in6 : sizeof *in;
    *ret_port = (uint16_t)port;
    return 0;
}

static int bind_failed(int errnum, const char *address, uint16_t port, struct err *err) {
    if (errnum == EADDRNOTAVAIL) {
        err_set(err, errnum, "api.address-not-here", "listen on %s: no interface here has that address", address);
        return err_hint(err, "set [api] listen to an address of this host, such as 127.0.0.1:%u", port);
    }
    if (errnum != EADDRINUSE) {
        err_sys(err, errnum, "api.listen-failed", "listen on %s", address);
        return errnum == EACCES ? err_hint(err, "ports below 1024 need root or CAP_NET_BIND_SERVICE") : -errnum;
    }
    struct port_owner owner;
    if (port_owner_find(port, &owner) < 0) {
        err_set(err, errnum, "api.port-in-use", "listen on %s: the port is in use", address);
        return err_hint(err, "`ss -ltnp 'sport = :%u'` as root shows by whom", port);
    }
    err_set(err, errnum, "api.port-in-use", "listen on %s: the port is in use by %s (process %d)", address, owner.name,
            (int)owner.pid);
    return err_hint(err, "end process %d, or set [api] listen to another port", (int)owner.pid);
}

int http_server_listen_tcp(struct http_server *server, const char *address, struct err *err) {
    struct sockaddr_storage addr;
    socklen_t len;
    uint16_t port;
    if (parse_address(address, &addr, &len, &port) < 0) {
        err_set(err, EINVAL, "api.bad-address", "\"%.80s\" is not an address to listen on", address);
        return err_hint(err, "write it as 127.0.0.1:4000 or [::1]:4000");
    }
    _cleanup_listener_ struct http_listener listener = {
        .fd = socket(addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0),
    };
    int on = 1;
    if (listener.fd < 0)
        return err_sys(err, errno, "api.listen-failed", "a socket for %s", address);
    setsockopt(listener.fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (addr.ss_family == AF_INET6)
        setsockopt(listener.fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (bind(listener.fd, (struct sockaddr *)&addr, len) < 0)
        return bind_failed(errno, address, port, err);
    if (getsockname(listener.fd, (struct sockaddr *)&addr, &len) < 0)
        return err_sys(err, errno, "api.listen-failed", "the address of %s", address);
    listener.port = ntohs(((struct sockaddr_in *)&addr)->sin_port);
    return listener_start(server, &listener, address, err);
}

/* A socket file is there already: whose? Removes it when nobody answers on it. */
static int replace_stale(const struct sockaddr_un *addr, struct err *err) {
    struct stat st;
    if (lstat(addr->sun_path, &st) < 0)
        return errno == ENOENT ? 0 : err_sys(err, errno, "api.listen-failed", "look at %s", addr->sun_path);
    if (!S_ISSOCK(st.st_mode)) {
        err_set(err, EEXIST, "api.socket-not-a-socket", "%s is there and is not a socket", addr->sun_path);
        return err_hint(err, "move it away, or set [api] socket to another path");
    }
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_sys(err, errno, "api.listen-failed", "a socket to try %s", addr->sun_path);
    if (connect(fd, (const struct sockaddr *)addr, sizeof *addr) < 0) {
        if (errno == ECONNREFUSED) {
            if (unlink(addr->sun_path) < 0 && errno != ENOENT)
                return err_sys(err, errno, "api.listen-failed", "remove the stale %s", addr->sun_path);
            return 0;
        }
        if (errno != EAGAIN) /* its queue is full: it lives */
            return err_sys(err, errno, "api.listen-failed", "try %s", addr->sun_path);
    }
    struct ucred cred = {0};
    socklen_t len = sizeof cred;
    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len);
    if (cred.pid > 0)
        err_set(err, EADDRINUSE, "api.socket-live", "process %d answers on %s already", (int)cred.pid, addr->sun_path);
    else
        err_set(err, EADDRINUSE, "api.socket-live", "somebody answers on %s already", addr->sun_path);
    return err_hint(err, "one controller runs already; stop it first, or set [api] socket to another path");
}

static int bind_unix(struct http_listener *listener, const char *path, mode_t mode, gid_t gid, struct err *err) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    if (!str_copy(addr.sun_path, sizeof addr.sun_path, path) || path[0] != '/')
        return err_set(err, ENAMETOOLONG, "api.bad-socket-path",
                       "\"%.120s\" is not an absolute path of at most %zu bytes, the limit of a unix socket", path,
                       sizeof addr.sun_path - 1);
    int r = replace_stale(&addr, err);
    if (r < 0)
        return r;
    /* The mode of the socket becomes that of the file (less the umask), so that it never is wider than asked for.
     * Source: unix_bind_bsd() in the kernel's net/unix/af_unix.c. */
    struct stat st;
    if (fchmod(listener->fd, mode & 0700) < 0 || bind(listener->fd, (struct sockaddr *)&addr, sizeof addr) < 0)
        return err_sys(err, errno, "api.listen-failed", "listen on %s", path);
    if (lstat(path, &st) < 0)
        return err_sys(err, errno, "api.listen-failed", "look at %s", path);
    str_copy(listener->path, sizeof listener->path, path);
    listener->dev = st.st_dev;
    listener->ino = st.st_ino;
    if ((gid != (gid_t)-1 && lchown(path, (uid_t)-1, gid) < 0) || chmod(path, mode) < 0)
        return err_sys(err, errno, "api.listen-failed", "mode and group of %s", path);
    return 0;
}

int http_server_listen_unix(struct http_server *server, const char *path, mode_t mode, gid_t gid, struct err *err) {
    _cleanup_listener_ struct http_listener listener = {
        .fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0),
        .local = true,
    };
    if (listener.fd < 0)
        return err_sys(err, errno, "api.listen-failed", "a socket for %s", path);
    int r = bind_unix(&listener, path, mode, gid, err);
    return r < 0 ? r : listener_start(server, &listener, path, err);
}

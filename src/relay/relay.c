/* Theory of operation
 *
 * A connection has two sides (side.h): the browser's socket and the one to the VM. What is read from one is cut into
 * whole frames and sent to the other (conn.c: feed()), without unmasking it:
 *
 *     browser ──recv──> thread's buffer ──frame_next()──> sendmsg ──> VM      (masked)
 *     browser <─sendmsg── frame_next() <── thread's buffer <──recv── VM       (not masked)
 *
 * Memory. A thread has one buffer of buffer_bytes into which it reads for whichever connection's turn it is. What the
 * receiver takes at once is never copied anywhere else. What it does not take goes to a queue made for it, and until
 * that is empty nothing more is read from the sender, whose kernel then stops the peer: that is all backpressure, and
 * the bound: one queue of one read, and the start of one frame (held), in each direction; a read is short once
 * plenty_bytes are kept in all. An idle connection has neither, only a struct conn of some 400 bytes.
 *
 * Frames. The browser must always be told why its connection ends, and a Close in the middle of a frame would be read
 * as payload. So only what is complete is sent on: a long frame is cut into fragments of what has come (frame.h), and
 * both the wire and every queue always end where a frame ends. A Close or ping then is simply the next thing sent.
 *
 * Readiness. Sockets are registered once, edge-triggered, and never again: a side remembers what epoll said until an
 * EAGAIN takes it back. A connection that could go on but has had its share of reads stays in the thread's ready list.
 * While the rest of a long frame is awaited the kernel is told how much of it is worth a turn (side_expect()): most of
 * what relaying costs is being woken.
 *
 * Ends. The first cause wins and is `end`. A Close is sent to both sides then; each goes its own way from there:
 *
 *     Close sent ──answered, or FIN, or linger_ms──> FIN sent ──FIN, or linger_ms──> closed
 *
 * while its input is read and thrown away, so that no unread byte makes the kernel send a reset, which would take the
 * Close with it. A browser that has not taken all that was sent to it, be its page only standing still, gets the time
 * again, up to 15 times. Between two messages a plain FIN is not an end of the other direction for half_close_ms.
 *
 * Threads. A connection lives and dies on one thread (its number modulo the threads); others talk to it through that
 * thread's list of commands. So nothing of a connection is locked. */
#include "relay/relay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "relay/thread.h"

static const char *const end_names[] = {
    [RELAY_END_NONE] = "none",
    [RELAY_END_BROWSER_CLOSED] = "browser-closed",
    [RELAY_END_BROWSER_LOST] = "browser-lost",
    [RELAY_END_BROWSER_PROTOCOL] = "browser-protocol",
    [RELAY_END_UPSTREAM_CLOSED] = "upstream-closed",
    [RELAY_END_UPSTREAM_LOST] = "upstream-lost",
    [RELAY_END_UPSTREAM_PROTOCOL] = "upstream-protocol",
    [RELAY_END_UPSTREAM_UNREACHABLE] = "upstream-unreachable",
    [RELAY_END_UPSTREAM_REFUSED] = "upstream-refused",
    [RELAY_END_TOLD] = "told",
};

const char *relay_end_name(enum relay_end end) {
    return end_names[end];
}

static unsigned default_threads(void) {
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    return cpus < 1 ? 1 : cpus > 4 ? 4 : (unsigned)cpus;
}

static int set_config(struct relay_config *c, const struct relay_config *from, struct err *err) {
    *c = *from;
    c->threads = c->threads ? c->threads : default_threads();
    c->buffer_bytes = c->buffer_bytes ? c->buffer_bytes : (size_t)1024 * 1024;
    c->plenty_bytes = c->plenty_bytes ? c->plenty_bytes : (size_t)64 * 1024 * 1024;
    c->max_connections = c->max_connections ? c->max_connections : 10000;
    c->handshake_timeout_ms = c->handshake_timeout_ms ? c->handshake_timeout_ms : 10000;
    c->ping_after_ms = c->ping_after_ms ? c->ping_after_ms : 25000;
    c->dead_after_ms = c->dead_after_ms ? c->dead_after_ms : 60000;
    c->half_close_ms = c->half_close_ms ? c->half_close_ms : 2000;
    c->linger_ms = c->linger_ms ? c->linger_ms : 2000;
    if (c->threads > 64)
        return err_set(err, EINVAL, "relay.threads", "%u relay threads, at most 64", c->threads);
    if (c->buffer_bytes < (size_t)16 * 1024 || c->buffer_bytes > (size_t)1024 * 1024)
        return err_set(err, EINVAL, "relay.buffer", "a relay buffer of %zu bytes, 16 KiB to 1 MiB", c->buffer_bytes);
    if (c->handshake_timeout_ms < 0 || c->dead_after_ms < 0 || c->half_close_ms < 0 || c->linger_ms < 0)
        return err_set(err, EINVAL, "relay.timeout", "a relay time-out below 0");
    return 0;
}

static void free_relay(struct relay *relay) {
    for (unsigned i = 0; i < relay->threads_len; i++) {
        struct thread *t = &relay->threads[i];
        if (t->started) {
            t->stop_command = (struct command){.kind = COMMAND_STOP, .is_static = true, .fd = -1};
            thread_command(t, &t->stop_command);
        }
    }
    for (unsigned i = 0; i < relay->threads_len; i++)
        thread_join(&relay->threads[i]);
    for (unsigned i = 0; i < relay->threads_len; i++)
        thread_free(&relay->threads[i]);
    pthread_cond_destroy(&relay->empty);
    pthread_mutex_destroy(&relay->lock);
    free(relay);
}

int relay_new(const struct relay_config *config, const struct relay_callbacks *callbacks, void *userdata,
              struct relay **ret, struct err *err) {
    struct relay_config full;
    int r = set_config(&full, config, err);
    if (r < 0)
        return r;
    struct relay *relay = calloc(1, sizeof *relay + full.threads * sizeof *relay->threads);
    if (!relay)
        return err_set(err, ENOMEM, "relay.memory", "no memory for the relay");
    relay->config = full;
    relay->callbacks = *callbacks;
    relay->userdata = userdata;
    relay->threads_len = full.threads;
    /* Cannot fail for 8 bytes: random(7). */
    (void)!getrandom(relay->ping, sizeof relay->ping, 0);
    pthread_mutex_init(&relay->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&relay->empty, &monotonic);
    pthread_condattr_destroy(&monotonic);
    for (unsigned i = 0; i < full.threads; i++) {
        r = thread_start(&relay->threads[i], relay, i, err);
        if (r < 0) {
            free_relay(relay);
            return r;
        }
    }
    *ret = relay;
    return 0;
}

static struct thread *thread_for(struct relay *relay, uint64_t conn) {
    return &relay->threads[conn % relay->threads_len];
}

static struct command *command_new(enum command_kind kind, uint64_t id, int fd, const void *early, size_t early_len) {
    struct command *command = malloc(sizeof *command + early_len);
    if (!command)
        return NULL;
    *command = (struct command){.kind = kind, .id = id, .fd = fd, .early_len = early_len};
    if (early_len > 0)
        memcpy(command->early, early, early_len);
    return command;
}

/* Counts a connection in. Return: 0, -ENOBUFS or -ESHUTDOWN. */
static int count_in(struct relay *relay, unsigned max) {
    if (atomic_load(&relay->stopping))
        return -ESHUTDOWN;
    if (atomic_fetch_add(&relay->count, 1) < max)
        return 0;
    atomic_fetch_sub(&relay->count, 1);
    return -ENOBUFS;
}

static struct conn *conn_new_for(struct relay *relay, uint64_t tag) {
    uint64_t id = atomic_fetch_add(&relay->last_id, 1) + 1;
    return conn_new(thread_for(relay, id), id, tag);
}

static int prepare_dial(struct relay *relay, int fd, const struct relay_dial *dial, struct command **ret,
                        struct err *err) {
    struct conn *c = conn_new_for(relay, dial->tag);
    if (!c)
        return err_set(err, ENOMEM, "relay.memory", "no memory for a connection");
    int r = conn_prepare_dial(c, dial, err);
    struct command *command = r < 0 ? NULL : command_new(COMMAND_DIAL, c->id, fd, NULL, 0);
    if (!command) {
        conn_free(c);
        return r < 0 ? r : err_set(err, ENOMEM, "relay.memory", "no memory for a connection");
    }
    command->conn = c;
    *ret = command;
    return 0;
}

int relay_dial(struct relay *relay, int fd, const struct relay_dial *dial, uint64_t *ret_conn, struct err *err) {
    int r = count_in(relay, relay->config.max_connections);
    if (r < 0)
        return err_set(err, -r, r == -ENOBUFS ? "relay.full" : "relay.stopping",
                       r == -ENOBUFS ? "the relay has all its %u connections" : "the relay of %u connections ends",
                       relay->config.max_connections);
    struct command *command = NULL;
    r = prepare_dial(relay, fd, dial, &command, err);
    if (!command) {
        atomic_fetch_sub(&relay->count, 1);
        return r;
    }
    *ret_conn = command->id;
    thread_command(command->conn->thread, command);
    return 0;
}

int relay_join(struct relay *relay, uint64_t conn, uint64_t tag, int client_fd, const void *early, size_t early_len) {
    if (client_fd < 0)
        return -EINVAL;
    if (early_len > relay->config.buffer_bytes)
        return -E2BIG;
    struct command *command = command_new(COMMAND_JOIN, conn, client_fd, early, early_len);
    if (!command)
        return -ENOMEM;
    command->tag = tag;
    thread_command(thread_for(relay, conn), command);
    return 0;
}

int relay_refuse(struct relay *relay, int client_fd, const void *early, size_t early_len, uint16_t code,
                 const char *reason) {
    if (client_fd < 0)
        return -EINVAL;
    if (early_len > relay->config.buffer_bytes)
        return -E2BIG;
    int r = count_in(relay, relay->config.max_connections + RELAY_REFUSED_MAX);
    if (r < 0)
        return r;
    struct conn *c = conn_new_for(relay, 0);
    struct command *command = c ? command_new(COMMAND_REFUSE, c->id, client_fd, early, early_len) : NULL;
    if (!command) {
        conn_free(c);
        atomic_fetch_sub(&relay->count, 1);
        return -ENOMEM;
    }
    command->conn = c;
    verdict_set(&command->verdict, code, reason);
    thread_command(c->thread, command);
    return 0;
}

static int close_one(struct thread *t, enum command_kind kind, uint64_t id, uint16_t code, const char *reason) {
    struct command *command = command_new(kind, id, -1, NULL, 0);
    if (!command)
        return -ENOMEM;
    verdict_set(&command->verdict, code, reason);
    thread_command(t, command);
    return 0;
}

int relay_close(struct relay *relay, uint64_t conn, uint16_t code, const char *reason) {
    return close_one(thread_for(relay, conn), COMMAND_CLOSE, conn, code, reason);
}

int relay_cancel(struct relay *relay, uint64_t conn) {
    return close_one(thread_for(relay, conn), COMMAND_CANCEL, conn, FRAME_CODE_NONE, "");
}

static void wait_until_empty(struct relay *relay, int timeout_ms) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&relay->lock);
    while (atomic_load(&relay->count) > 0 && pthread_cond_timedwait(&relay->empty, &relay->lock, &until) == 0) {
    }
    pthread_mutex_unlock(&relay->lock);
}

void relay_shutdown(struct relay *relay, uint16_t code, const char *reason, int timeout_ms) {
    if (!relay)
        return;
    atomic_store(&relay->stopping, true);
    for (unsigned i = 0; i < relay->threads_len; i++) {
        struct thread *t = &relay->threads[i];
        t->last_words = (struct command){.kind = COMMAND_CLOSE_ALL, .is_static = true, .fd = -1};
        verdict_set(&t->last_words.verdict, code, reason);
        thread_command(t, &t->last_words);
    }
    wait_until_empty(relay, timeout_ms);
    free_relay(relay);
}

unsigned relay_count(const struct relay *relay) {
    return atomic_load(&relay->count);
}

size_t relay_buffered_bytes(const struct relay *relay) {
    return atomic_load(&relay->buffered);
}

#include "relay/thread.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/time.h"

#define EVENTS_PER_TURN 256

static struct conn **bucket(struct thread *t, uint64_t id) {
    return &t->buckets[id / t->relay->threads_len % THREAD_BUCKETS];
}

static struct conn *find(struct thread *t, uint64_t id) {
    struct conn *c = *bucket(t, id);
    while (c && c->id != id)
        c = c->next_in_bucket;
    return c;
}

static void make_ready(struct thread *t, struct conn *c) {
    if (c->ready)
        return;
    c->ready = true;
    c->next_ready = NULL;
    *t->ready_end = c;
    t->ready_end = &c->next_ready;
}

static void count_out(struct relay *relay) {
    if (atomic_fetch_sub(&relay->count, 1) > 1)
        return;
    pthread_mutex_lock(&relay->lock);
    pthread_cond_broadcast(&relay->empty);
    pthread_mutex_unlock(&relay->lock);
}

static void add(struct thread *t, struct conn *c) {
    struct conn **first = bucket(t, c->id);
    c->next_in_bucket = *first;
    *first = c;
    make_ready(t, c);
}

static void forget(struct thread *t, struct conn *c) {
    struct conn **at = bucket(t, c->id);
    while (*at != c)
        at = &(*at)->next_in_bucket;
    *at = c->next_in_bucket;
    timers_unset(&t->timers, &c->timer);
    conn_free(c);
    count_out(t->relay);
}

/* Sets the timer of a connection that has been run. It may be too early (timers.h), never too late. */
static void arm(struct thread *t, struct conn *c) {
    int64_t deadline_ms = conn_deadline_ms(c);
    if (c->timer.position > 0 && c->timer.at_ms <= deadline_ms && c->timer.at_ms > t->now_ms)
        return;
    /* No memory: it is looked at in every turn instead, which costs time but ends nothing. */
    if (timers_set(&t->timers, &c->timer, deadline_ms) < 0)
        make_ready(t, c);
}

static void run_ready(struct thread *t) {
    struct conn *c = t->ready;
    t->ready = NULL;
    t->ready_end = &t->ready;
    while (c) {
        struct conn *next = c->next_ready;
        c->ready = false;
        bool more = conn_run(c);
        if (c->state == CONN_OVER) {
            forget(t, c);
        } else {
            arm(t, c);
            if (more)
                make_ready(t, c);
        }
        c = next;
    }
}

static void run_timers(struct thread *t) {
    struct timer *timer;
    while ((timer = timers_first(&t->timers)) && timer->at_ms <= t->now_ms) {
        make_ready(t, (struct conn *)((char *)timer - offsetof(struct conn, timer)));
        (void)timers_set(&t->timers, timer, INT64_MAX);
    }
}

/* The browser of a connection that was given up must not be left without a word, nor its owner without `ended`. What is
 * left of that connection may still be there, with the same number, and sees the VM off. */
static void join_nothing(struct thread *t, struct command *command) {
    struct conn *c = conn_new(t, command->id, command->tag);
    if (!c) {
        close(command->fd);
        conn_tell_ended(t->relay,
                        &(struct relay_ended){.conn = command->id, .tag = command->tag, .end = RELAY_END_BROWSER_LOST});
        return;
    }
    struct relay_verdict v = {FRAME_CODE_BAD_GATEWAY, "The connection to the VM was given up in the meantime."};
    atomic_fetch_add(&t->relay->count, 1);
    add(t, c);
    c->joined = true;
    conn_refuse(c, command->fd, command->early, command->early_len, &v);
}

static void join(struct thread *t, struct command *command) {
    struct conn *c = find(t, command->id);
    if (c && c->state == CONN_DIALED) {
        conn_join(c, command->fd, command->early, command->early_len);
        make_ready(t, c);
    } else if (!c || !c->joined) {
        join_nothing(t, command);
    } else {
        close(command->fd); /* joined twice */
    }
}

static void tell_all(struct thread *t, const struct relay_verdict *verdict) {
    for (size_t i = 0; i < THREAD_BUCKETS; i++)
        for (struct conn *c = t->buckets[i]; c; c = c->next_in_bucket) {
            conn_tell(c, verdict);
            make_ready(t, c);
        }
}

static void run_command(struct thread *t, struct command *command) {
    struct conn *c = command->kind == COMMAND_CLOSE || command->kind == COMMAND_CANCEL ? find(t, command->id) : NULL;
    switch (command->kind) {
    case COMMAND_DIAL:
        add(t, command->conn);
        conn_dial(command->conn, command->fd);
        break;
    case COMMAND_JOIN:
        join(t, command);
        break;
    case COMMAND_REFUSE:
        add(t, command->conn);
        conn_refuse(command->conn, command->fd, command->early, command->early_len, &command->verdict);
        break;
    case COMMAND_CLOSE:
        if (c)
            conn_tell(c, &command->verdict);
        break;
    case COMMAND_CLOSE_ALL:
        tell_all(t, &command->verdict);
        break;
    case COMMAND_CANCEL:
        if (c)
            conn_cancel(c);
        break;
    case COMMAND_STOP:
        t->stop = true;
        break;
    }
    if (c)
        make_ready(t, c);
}

static void run_commands(struct thread *t) {
    uint64_t count;
    (void)!read(t->event_fd, &count, sizeof count);
    pthread_mutex_lock(&t->lock);
    struct command *command = t->commands;
    t->commands = NULL;
    t->commands_end = &t->commands;
    pthread_mutex_unlock(&t->lock);
    while (command) {
        struct command *next = command->next;
        run_command(t, command);
        if (!command->is_static)
            free(command);
        command = next;
    }
}

void thread_command(struct thread *t, struct command *command) {
    command->next = NULL;
    pthread_mutex_lock(&t->lock);
    bool first = !t->commands;
    *t->commands_end = command;
    t->commands_end = &command->next;
    pthread_mutex_unlock(&t->lock);
    if (first)
        (void)!write(t->event_fd, &(uint64_t){1}, sizeof(uint64_t));
}

static int wait_ms(const struct thread *t) {
    const struct timer *first = timers_first(&t->timers);
    if (t->ready)
        return 0;
    if (!first || first->at_ms == INT64_MAX)
        return -1;
    int64_t ms = first->at_ms - time_monotonic_ms();
    return ms < 0 ? 0 : ms > INT_MAX ? INT_MAX : (int)ms;
}

static void abort_all(struct thread *t) {
    for (size_t i = 0; i < THREAD_BUCKETS; i++)
        while (t->buckets[i]) {
            conn_abort(t->buckets[i]);
            forget(t, t->buckets[i]);
        }
}

/* Events and commands only set flags and states; connections are run, and freed, in run_ready() alone. So no event of
 * a turn can be about a connection that was freed in it. */
static void *thread_main(void *userdata) {
    struct thread *t = userdata;
    struct epoll_event events[EVENTS_PER_TURN];
    while (!t->stop) {
        int n = epoll_wait(t->epoll_fd, events, EVENTS_PER_TURN, wait_ms(t));
        t->now_ms = time_monotonic_ms();
        bool told = false;
        for (int i = 0; i < n; i++) {
            struct side *side = events[i].data.ptr;
            if (!side) {
                told = true;
                continue;
            }
            side_event(side, events[i].events);
            make_ready(t, side->conn);
        }
        if (told)
            run_commands(t);
        run_timers(t);
        run_ready(t);
    }
    abort_all(t);
    return NULL;
}

/* Signals belong to the main loop. */
static int start_quietly(struct thread *t) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int r = pthread_create(&t->pthread, NULL, thread_main, t);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    t->started = r == 0;
    return -r;
}

int thread_start(struct thread *t, struct relay *relay, unsigned number, struct err *err) {
    t->relay = relay;
    t->ready_end = &t->ready;
    t->commands_end = &t->commands;
    t->now_ms = time_monotonic_ms();
    pthread_mutex_init(&t->lock, NULL);
    t->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    t->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    t->buffer = aligned_alloc(RELAY_ALIGNMENT, 2 * RELAY_ALIGNMENT + relay->config.buffer_bytes);
    struct epoll_event event = {.events = EPOLLIN};
    if (!t->buffer)
        return err_set(err, ENOMEM, "relay.memory", "no memory for a relay thread");
    if (t->event_fd < 0 || t->epoll_fd < 0 || epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, t->event_fd, &event) < 0)
        return err_sys(err, errno, "relay.epoll", "relay thread %u", number);
    int r = start_quietly(t);
    if (r < 0)
        return err_sys(err, -r, "relay.thread", "relay thread %u", number);
    char name[16];
    snprintf(name, sizeof name, "relay-%u", number);
    pthread_setname_np(t->pthread, name);
    return 0;
}

void thread_join(struct thread *t) {
    if (t->started)
        pthread_join(t->pthread, NULL);
    t->started = false;
}

/* Left by a callback when the thread had ended. */
static void free_commands(struct thread *t) {
    while (t->commands) {
        struct command *command = t->commands;
        t->commands = command->next;
        if (command->fd >= 0)
            close(command->fd);
        conn_free(command->conn);
        if (!command->is_static)
            free(command);
    }
}

void thread_free(struct thread *t) {
    if (!t->relay)
        return;
    free_commands(t);
    fd_close(&t->event_fd);
    fd_close(&t->epoll_fd);
    free(t->buffer);
    timers_free(&t->timers);
    pthread_mutex_destroy(&t->lock);
}

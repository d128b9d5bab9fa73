/* A relay thread: its own epoll, its connections, and the commands that other threads leave for it. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "relay/conn.h"
#include "relay/relay.h"
#include "relay/timers.h"

#define THREAD_BUCKETS 1024
#define RELAY_PING_SIZE 8  /* bytes of payload */
#define RELAY_ALIGNMENT 64 /* bytes, of what is read into: the kernel copies faster to there */

enum command_kind {
    COMMAND_DIAL,      /* conn, fd */
    COMMAND_JOIN,      /* id, tag, fd, early */
    COMMAND_REFUSE,    /* conn, fd, early, verdict */
    COMMAND_CLOSE,     /* id, verdict */
    COMMAND_CLOSE_ALL, /* verdict */
    COMMAND_CANCEL,    /* id */
    COMMAND_STOP,
};

struct command {
    struct command *next;
    enum command_kind kind;
    bool is_static; /* not to be freed */
    int fd;         /* -1: none */
    uint64_t id, tag;
    struct conn *conn;
    struct relay_verdict verdict;
    size_t early_len;
    uint8_t early[];
};

struct thread {
    struct relay *relay;
    pthread_t pthread;
    bool started;
    int epoll_fd, event_fd;
    int64_t now_ms; /* monotonic, of this turn */
    bool stop;
    uint8_t *buffer; /* 2 * RELAY_ALIGNMENT, for a frame's head and to align, + buffer_bytes */
    struct conn *ready, **ready_end;
    struct timers timers;
    struct conn *buckets[THREAD_BUCKETS]; /* by id */
    pthread_mutex_t lock;                 /* for what follows */
    struct command *commands, **commands_end;
    struct command last_words, stop_command; /* so that an end needs no memory */
};

struct relay {
    struct relay_config config; /* without zeros */
    struct relay_callbacks callbacks;
    void *userdata;
    uint8_t ping[RELAY_PING_SIZE]; /* payload of our pings, random: no pong but theirs has it */
    atomic_uint count;
    atomic_size_t buffered;
    atomic_uint_fast64_t last_id;
    atomic_bool stopping;
    pthread_mutex_t lock;
    pthread_cond_t empty; /* count has become 0 */
    unsigned threads_len;
    struct thread threads[];
};

int thread_start(struct thread *t, struct relay *relay, unsigned number, struct err *err);

/* Hands a command over; it is freed when it was done. */
void thread_command(struct thread *t, struct command *command);

/* Waits for its end, which COMMAND_STOP brings about. Also for one that never started. */
void thread_join(struct thread *t);

/* Frees what it has, once no other thread can leave a command for it. */
void thread_free(struct thread *t);

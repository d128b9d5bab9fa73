/* One end of a connection: its socket, what waits to be sent to it, and what of its input is not yet a whole frame.
 * Both buffers exist only while there is something in them. A side never waits and never decides anything about the
 * connection: it says what happened in its flags. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "relay/frame.h"

struct conn;

struct side {
    struct conn *conn;
    int fd;    /* -1: gone */
    int error; /* -errno that made it lost, 0: none */
    /* What epoll, edge-triggered, said last and no EAGAIN has taken back. */
    bool can_read, can_write;
    bool hung_up;   /* a FIN or an error is there to be read: a short read is not the last one */
    bool in_close;  /* its Close was read, or a frame after which no other can be read; the rest is thrown away */
    bool in_eof;    /* FIN or an error was read */
    bool out_close; /* a Close for it is queued or sent: nothing may follow */
    bool out_shut;  /* FIN was sent */
    bool lost;      /* an error, not a plain FIN */
    bool bulk;      /* its last read was as long as it might be: there is probably much more */
    struct frame_parser in;
    uint8_t *held; /* the start of a frame that is not there yet */
    size_t held_len;
    uint8_t *queue; /* from queue_at on, queue_len bytes wait to be sent; they end where a frame ends */
    size_t queue_at, queue_len;
    int lowat;        /* SO_RCVLOWAT, 0: as it was born */
    size_t untaken;   /* bytes that the peer had not taken when a deadline passed last */
    uint8_t delays;   /* how often the end was put off for that */
    int64_t got_ms;   /* when something was read last */
    int64_t moved_ms; /* when something was sent last, began to wait, or a step of the end was made */
    uint64_t in_bytes;
};

/* Takes a socket over and watches it. Return: 0 or -errno; then the fd is still the caller's. */
int side_open(struct side *s, int fd);

/* What epoll said. */
void side_event(struct side *s, uint32_t events);

/* Closes the socket at once and frees everything. */
void side_drop(struct side *s);

/* Sends; keeps what the socket does not take. Behind a Close it does nothing. iov is used up. */
void side_send(struct side *s, struct iovec *iov, int n);

/* Sends what was kept. */
void side_flush(struct side *s);

/* Sends a Close behind all that waits, once. FRAME_CODE_NONE: an empty one. */
void side_send_close(struct side *s, uint16_t code, const char *reason);

/* Bytes that the socket would take at once, about. */
size_t side_room(const struct side *s);

/* Reads into the thread's buffer, behind what was held.
 * most     bytes at most, where this is more than the usual 64 KiB
 * ret_len  of both together
 * Return: the buffer, with FRAME_HEAD_MAX writable bytes before it; NULL: nothing now, or (in_eof) never again. */
uint8_t *side_read(struct side *s, size_t most, size_t *ret_len);

/* Keeps the rest of what was read for the next time. */
void side_hold(struct side *s, const uint8_t *rest, size_t len);

/* Before it is waited for input: the peer has promised this many bytes (the rest of a frame; 0: nobody knows). A message
 * is of use only when it is whole, so a long rest need not wake us for each of its segments. */
void side_expect(struct side *s, uint64_t promised);

/* What was held, as side_read() would give it. NULL: nothing. */
uint8_t *side_unhold(struct side *s, size_t *ret_len);

/* Goes on with the end as far as it can: FIN when our Close was taken and answered; drop when FIN came back. */
void side_settle(struct side *s);

/* When side_expire() is due; INT64_MAX: never. */
int64_t side_deadline_ms(const struct side *s);

/* The peer did not take, answer or close in time: the next step of the end without it. */
void side_expire(struct side *s);

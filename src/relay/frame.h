/* WebSocket frames: where one ends and the next begins, and what is not allowed. Pure: no I/O, no allocation.
 *
 * The parser takes the bytes of one direction in any pieces and gives back what may be sent on: always whole frames.
 * A data frame that is long and has not fully arrived is given out in fragments, each as long as what is there, with
 * a header of its own, written over the old header or into the bytes before the input. Payloads are never unmasked:
 * the fragments of a masked frame have lengths that are multiples of 4, so that the frame's key fits each of them.
 *
 * That is what lets a Close in at any time: a browser that reads a Close in the middle of a frame takes it for
 * payload, and then sees 1006.
 *
 * Source: RFC 6455 sections 5.2 (header), 5.3 (masking), 5.4 (fragmentation), 5.5 (control frames), 7.4 (codes). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "relay/utf8.h"

#define FRAME_HEAD_MAX 14     /* bytes: 2, 8 of length, 4 of masking key */
#define FRAME_CONTROL_MAX 125 /* bytes of payload */
#define FRAME_REASON_MAX (FRAME_CONTROL_MAX - 2)
/* bytes of payload: less than this of a frame is not worth a fragment and is waited for */
#define FRAME_HOLD_MAX 4096
/* bytes that frame_next() may leave unused at most */
#define FRAME_REST_MAX (FRAME_HEAD_MAX + FRAME_HOLD_MAX)

enum frame_opcode {
    FRAME_CONTINUATION = 0x0,
    FRAME_TEXT = 0x1,
    FRAME_BINARY = 0x2,
    FRAME_CLOSE = 0x8,
    FRAME_PING = 0x9,
    FRAME_PONG = 0xa,
};

/* Codes that the relay itself uses. Source: RFC 6455 section 7.4.1; IANA "WebSocket Close Code Number Registry". */
enum frame_code {
    FRAME_CODE_NONE = 0, /* a Close without a code; never on the wire */
    FRAME_CODE_GOING_AWAY = 1001,
    FRAME_CODE_PROTOCOL = 1002,
    FRAME_CODE_NOT_UTF8 = 1007,
    FRAME_CODE_INTERNAL = 1011,
    FRAME_CODE_BAD_GATEWAY = 1014,
};

/* One direction. All zero but `masked` is the start. */
struct frame_parser {
    uint64_t left; /* payload bytes of the open frame that were not given out; 0: between frames */
    uint8_t key[4];
    bool masked;       /* what every frame of this direction must be */
    bool fin;          /* the open frame is the last of its message */
    bool message_open; /* a message has begun and its last frame has not */
    bool text;         /* it is a text that must be checked */
    uint8_t opcode;    /* of the next fragment */
    struct utf8 utf8;
};

enum frame_result {
    FRAME_MORE,   /* nothing can be given out before more bytes are there */
    FRAME_READY,  /* *ret is filled */
    FRAME_BROKEN, /* the sender broke the protocol: ret->code and ret->wrong say how; nothing may follow */
};

struct frame {
    uint8_t *data; /* what may be sent on, within the input or up to FRAME_HEAD_MAX bytes before it */
    size_t len;
    size_t used; /* bytes of input that are done with */
    enum frame_opcode opcode;
    uint16_t code;     /* of a Close, or for the sender when FRAME_BROKEN */
    const char *wrong; /* static text */
    /* of a control frame, unmasked; of a Close, the reason with a NUL behind it */
    size_t payload_len;
    uint8_t payload[FRAME_CONTROL_MAX + 1];
};

/* Takes the next frame or fragment out of in. What was not used must be in front of the next call's input.
 * in      FRAME_HEAD_MAX bytes before it belong to the caller and may be overwritten
 * ret     on FRAME_READY everything that the opcode has, on FRAME_BROKEN code and wrong, else untouched */
enum frame_result frame_next(struct frame_parser *p, uint8_t *in, size_t len, struct frame *ret);

/* Whether the direction may end here, as far as the parser knows: between messages. */
bool frame_parser_idle(const struct frame_parser *p);

/* Builds a control frame. key NULL: unmasked. Return: its length. */
size_t frame_build(uint8_t out[FRAME_HEAD_MAX + FRAME_CONTROL_MAX], enum frame_opcode opcode, const uint8_t *key,
                   const void *payload, size_t payload_len);

/* The code, or 1011 for one that must not be sent. */
uint16_t frame_code_for_wire(uint16_t code);

/* Builds a Close that a browser accepts: frame_code_for_wire(), and the reason as utf8_sentence() of at most 123
 * bytes. FRAME_CODE_NONE: no code and no reason. */
size_t frame_build_close(uint8_t out[FRAME_HEAD_MAX + FRAME_CONTROL_MAX], const uint8_t *key, uint16_t code,
                         const char *reason);

/* The frames between the host and the agent in a guest, and between mctl and the daemon for `mctl vm exec`. Both ends
 * include this file, and each takes the other for hostile.
 *
 * The channel is a stream of bytes without a beginning: after a restart of either end it may hold the rest of an old
 * frame, and a guest may write anything into it. So a frame can be found again: it begins with bytes that no JSON text
 * holds (0xf5 is not UTF-8), its header has a checksum, and so has its payload. What does not check is skipped, byte by
 * byte, to the next beginning. All numbers are little endian.
 *
 *    0  f5 4d 43 61   "\xf5MCa"
 *    4  u8  kind      enum agent_frame_kind
 *    5  u8  stream    of DATA and CREDIT: enum agent_stream; else 0
 *    6  u16 0
 *    8  u32 session   the host's random number of this connection: frames of another one are stale
 *   12  u32 id        of the request that this belongs to; 0: the greeting
 *   16  u32 length    of the payload in bytes
 *   20  u32 CRC-32 of the payload
 *   24  u32 CRC-32 of the 24 bytes before
 *
 * A conversation. The host greets with id 0: {"hello":{"min":1,"max":1}} and repeats that until the agent answers
 * {"hello":{"version":1,…}} or {"error":…} when no version is common. A new session number ends everything of the old
 * session. Then the host asks, each request under an id of its own: {"op":"…",…}. To an id the agent sends any number of
 * {"event":{…}} and DATA, then one {"ok":{…}} or {"error":{"code","detail"}}, which ends it. While a request runs, the
 * host may send to its id: DATA of standard input (an empty one is its end), {"signal":15}, {"resize":[ROWS,COLUMNS]},
 * {"cancel":true}.
 *
 * Flow: at most AGENT_WINDOW bytes of a stream are under way; a CREDIT (u32, bytes) lets as many more go. So a program
 * that floods, or a reader that sleeps, holds up nobody but itself.
 *
 * Source: CRC-32 is that of RFC 1952, section 8. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AGENT_VERSION 1                               /* of the protocol */
#define AGENT_PORT_NAME "org.master-controller.agent" /* of the virtio-serial port */
#define AGENT_VSOCK_PORT 6100

#define AGENT_HEADER_SIZE 28
#define AGENT_PAYLOAD_MAX ((size_t)128 * 1024) /* bytes */
#define AGENT_DATA_MAX ((size_t)16 * 1024)     /* bytes of a DATA frame: a large stream lets others pass */
#define AGENT_WINDOW ((size_t)256 * 1024)      /* bytes */
#define AGENT_STALL_MS 2000                    /* after that the rest of a frame is not waited for any longer */

enum agent_frame_kind {
    AGENT_FRAME_JSON = 1,
    AGENT_FRAME_DATA = 2,
    AGENT_FRAME_CREDIT = 3,
};

enum agent_stream {
    AGENT_STDIN,
    AGENT_STDOUT,
    AGENT_STDERR,
};
#define AGENT_STREAMS 3

struct agent_frame {
    enum agent_frame_kind kind;
    enum agent_stream stream;
    uint32_t session, id;
    const uint8_t *payload;
    size_t len;
};

/* Writes the header of a frame whose payload goes behind it. len is at most AGENT_PAYLOAD_MAX. */
void agent_frame_header(const struct agent_frame *frame, uint8_t ret_header[AGENT_HEADER_SIZE]);

/* The bytes of a CREDIT; 0 for one that is not well-formed. */
uint32_t agent_frame_credit(const struct agent_frame *frame);

/* Collects bytes and gives out frames. Zero-initialise. Memory: at most about AGENT_PAYLOAD_MAX and what is pushed at
 * once, none while nothing waits. */
struct agent_decoder {
    uint8_t *data;
    size_t at, len, cap;
    size_t allowance; /* bytes that checksums may still be taken over in vain */
    uint64_t skipped; /* bytes that were no frame, since the start */
};

/* Adds what was read. To be called when agent_decoder_next() has returned 0, with at most 65536 bytes.
 * Return: 0, -ENOMEM, or -ENOBUFS (the caller did not take out what was there). */
int agent_decoder_push(struct agent_decoder *d, const void *data, size_t len);

/* Return: 1 with a frame, whose payload is valid until the next call; 0 when more bytes are needed. */
int agent_decoder_next(struct agent_decoder *d, struct agent_frame *ret_frame);

/* Whether the beginning of a frame waits for its rest. */
bool agent_decoder_waits(const struct agent_decoder *d);

/* The rest does not come (AGENT_STALL_MS): what was taken for the beginning of a frame is skipped. */
void agent_decoder_give_up(struct agent_decoder *d);

void agent_decoder_free(struct agent_decoder *d); /* its contents */

/* CRC-32. crc: of what came before, 0 at the beginning. */
uint32_t agent_crc32(uint32_t crc, const void *data, size_t len);

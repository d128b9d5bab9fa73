#include "agent/frame.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"

#define PUSH_MAX 65536U
#define HOLD_MAX (AGENT_HEADER_SIZE + AGENT_PAYLOAD_MAX + PUSH_MAX)
/* Forged headers, each within the payload of the one before, would have a checksum taken over the same bytes again and
 * again. A byte that comes in pays for a few in vain; who uses up more loses all that waits. */
#define ALLOWANCE_PER_BYTE 4U
#define ALLOWANCE_MAX (4U * AGENT_PAYLOAD_MAX)

static const uint8_t magic[4] = {0xf5, 'M', 'C', 'a'};

uint32_t agent_crc32(uint32_t crc, const void *data, size_t len) {
    /* Half a byte a step: fast enough, and no table to build. */
    static const uint32_t table[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
        0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
    };
    const uint8_t *p = data;
    crc = ~crc;
    for (size_t i = 0; i < len; i++) {
        crc ^= p[i];
        crc = table[crc & 15] ^ (crc >> 4);
        crc = table[crc & 15] ^ (crc >> 4);
    }
    return ~crc;
}

static void put32(uint8_t *to, uint32_t value) {
    value = htole32(value);
    memcpy(to, &value, sizeof value);
}

static uint32_t get32(const uint8_t *from) {
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return le32toh(value);
}

void agent_frame_header(const struct agent_frame *frame, uint8_t ret_header[AGENT_HEADER_SIZE]) {
    memset(ret_header, 0, AGENT_HEADER_SIZE);
    memcpy(ret_header, magic, sizeof magic);
    ret_header[4] = (uint8_t)frame->kind;
    ret_header[5] = (uint8_t)frame->stream;
    put32(ret_header + 8, frame->session);
    put32(ret_header + 12, frame->id);
    put32(ret_header + 16, (uint32_t)frame->len);
    put32(ret_header + 20, agent_crc32(0, frame->payload, frame->len));
    put32(ret_header + 24, agent_crc32(0, ret_header, 24));
}

uint32_t agent_frame_credit(const struct agent_frame *frame) {
    return frame->kind == AGENT_FRAME_CREDIT && frame->len == 4 ? get32(frame->payload) : 0;
}

int agent_decoder_push(struct agent_decoder *d, const void *data, size_t len) {
    size_t held = d->len - d->at;
    if (len > PUSH_MAX || held + len > HOLD_MAX)
        return -ENOBUFS;
    if (d->at > 0) {
        memmove(d->data, d->data + d->at, held);
        d->at = 0;
        d->len = held;
    }
    if (held + len > d->cap) {
        size_t cap = d->cap ? d->cap : 4096;
        while (cap < held + len)
            cap *= 2;
        uint8_t *bigger = malloc(cap);
        if (!bigger)
            return -ENOMEM;
        if (held > 0)
            memcpy(bigger, d->data, held);
        mem_free(d->data, d->cap);
        d->data = bigger;
        d->cap = cap;
    }
    if (len > 0)
        memcpy(d->data + held, data, len);
    d->len = held + len;
    d->allowance += len * ALLOWANCE_PER_BYTE;
    if (d->allowance > ALLOWANCE_MAX)
        d->allowance = ALLOWANCE_MAX;
    return 0;
}

static void skip(struct agent_decoder *d, size_t n) {
    d->at += n;
    d->skipped += n;
}

/* Goes to the next byte that may begin a frame. */
static void seek(struct agent_decoder *d) {
    size_t left = d->len - d->at;
    if (left == 0)
        return;
    const uint8_t *found = memchr(d->data + d->at, magic[0], left);
    skip(d, found ? (size_t)(found - (d->data + d->at)) : left);
}

/* A header that is whole and says something possible. */
static bool read_header(const uint8_t *p, struct agent_frame *frame) {
    if (memcmp(p, magic, sizeof magic) != 0 || get32(p + 24) != agent_crc32(0, p, 24))
        return false;
    if (p[4] < AGENT_FRAME_JSON || p[4] > AGENT_FRAME_CREDIT || p[5] >= AGENT_STREAMS || p[6] || p[7])
        return false;
    *frame = (struct agent_frame){.kind = p[4],
                                  .stream = p[5],
                                  .session = get32(p + 8),
                                  .id = get32(p + 12),
                                  .payload = p + AGENT_HEADER_SIZE,
                                  .len = get32(p + 16)};
    return frame->len <= (frame->kind == AGENT_FRAME_DATA ? AGENT_DATA_MAX : AGENT_PAYLOAD_MAX);
}

static void release(struct agent_decoder *d) {
    mem_free(d->data, d->cap);
    d->data = NULL;
    d->at = d->len = d->cap = 0;
}

/* Whether what is there of a header can still become one. */
static bool may_be_header(const struct agent_decoder *d, size_t left) {
    size_t n = left < sizeof magic ? left : sizeof magic;
    return memcmp(d->data + d->at, magic, n) == 0;
}

int agent_decoder_next(struct agent_decoder *d, struct agent_frame *ret_frame) {
    for (seek(d); d->at < d->len; seek(d)) {
        struct agent_frame frame;
        size_t left = d->len - d->at;
        const uint8_t *p = d->data + d->at;
        if (left < AGENT_HEADER_SIZE && may_be_header(d, left))
            return 0;
        if (left < AGENT_HEADER_SIZE || !read_header(p, &frame)) {
            skip(d, 1);
            continue;
        }
        if (left < AGENT_HEADER_SIZE + frame.len)
            return 0;
        if (get32(p + 20) == agent_crc32(0, frame.payload, frame.len)) {
            d->at += AGENT_HEADER_SIZE + frame.len;
            *ret_frame = frame;
            return 1;
        }
        bool dear = frame.len > d->allowance;
        d->allowance -= dear ? d->allowance : frame.len;
        skip(d, dear ? left : 1);
    }
    if (d->at == d->len)
        release(d);
    return 0;
}

bool agent_decoder_waits(const struct agent_decoder *d) {
    return d->at < d->len;
}

void agent_decoder_give_up(struct agent_decoder *d) {
    if (d->at < d->len)
        skip(d, 1);
}

void agent_decoder_free(struct agent_decoder *d) {
    release(d);
}

/* A WebSocket peer for tests, written from RFC 6455 and on purpose not with the relay's own code: it encodes frames,
 * decodes a stream strictly, and says what a browser would see. A broken stream is an error text in the decoder. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ws_bytes {
    uint8_t *data;
    size_t len, cap;
};

static inline void ws_add(struct ws_bytes *b, const void *data, size_t len) {
    if (b->len + len > b->cap) {
        b->cap = (b->len + len) * 2;
        b->data = realloc(b->data, b->cap);
        if (!b->data)
            abort();
    }
    if (len > 0)
        memcpy(b->data + b->len, data, len);
    b->len += len;
}

static inline void ws_bytes_free(struct ws_bytes *b) {
    free(b->data);
    *b = (struct ws_bytes){0};
}

static inline uint32_t ws_random(uint64_t *seed) {
    *seed = *seed * 6364136223846793005U + 1442695040888963407U;
    return (uint32_t)(*seed >> 33);
}

/* first: FIN, RSV and opcode as on the wire. claim: the length that the header says. */
static inline void ws_frame_claim(struct ws_bytes *b, uint8_t first, bool masked, const void *payload, size_t len,
                                  uint64_t claim) {
    uint8_t head[14] = {first}, key[4] = {0x12, 0x34, 0xab, (uint8_t)(claim * 7 + first)};
    size_t n = 2;
    size_t extended = claim > 0xffff ? 8 : claim > 125 ? 2 : 0;
    head[1] = (uint8_t)((masked ? 0x80 : 0) | (extended == 8 ? 127 : extended == 2 ? 126 : claim));
    for (size_t i = 0; i < extended; i++)
        head[n++] = (uint8_t)(claim >> (8 * (extended - 1 - i)));
    if (masked) {
        memcpy(head + n, key, 4);
        n += 4;
    }
    ws_add(b, head, n);
    size_t start = b->len;
    ws_add(b, payload, len);
    for (size_t i = 0; masked && i < len; i++)
        b->data[start + i] ^= key[i % 4];
}

static inline void ws_frame(struct ws_bytes *b, uint8_t first, bool masked, const void *payload, size_t len) {
    ws_frame_claim(b, first, masked, payload, len, len);
}

static inline void ws_close_frame(struct ws_bytes *b, bool masked, uint16_t code, const char *reason) {
    uint8_t payload[125] = {(uint8_t)(code >> 8), (uint8_t)code};
    size_t len = strlen(reason);
    memcpy(payload + 2, reason, len);
    ws_frame(b, 0x88, masked, payload, 2 + len);
}

/* What has been decoded, as a summary that two streams can be compared by. */
struct ws_decoder {
    bool masked;           /* what every frame must be */
    struct ws_bytes input; /* not yet decoded */
    struct ws_bytes message;
    uint8_t opcode; /* of the open message, 0: none */
    const char *error;
    size_t messages, frames, pings, pongs;
    uint64_t digest;   /* of the data messages' types, lengths and payloads, in order */
    uint64_t controls; /* of the pings and pongs */
    bool closed;
    uint16_t code;
    char reason[126];
    uint8_t last_ping[125];
    size_t last_ping_len;
    size_t last_len; /* of the last message, whose payload `message` keeps */
};

static inline uint64_t ws_digest(uint64_t h, const void *data, size_t len) {
    const uint8_t *p = data;
    for (size_t i = 0; i < len; i++)
        h = (h ^ p[i]) * 1099511628211U;
    return h;
}

static inline void ws_got_control(struct ws_decoder *d, uint8_t opcode, const uint8_t *payload, size_t len) {
    if (opcode == 8) {
        d->closed = true;
        d->code = len >= 2 ? (uint16_t)(payload[0] << 8 | payload[1]) : 0;
        if (len == 1 || (len >= 2 && (d->code < 1000 || (d->code >= 1004 && d->code <= 1006) ||
                                      (d->code >= 1015 && d->code < 3000) || d->code > 4999)))
            d->error = "a Close that a browser takes for an error";
        if (len > 2)
            memcpy(d->reason, payload + 2, len - 2);
        return;
    }
    d->pings += opcode == 9;
    d->pongs += opcode == 10;
    d->controls = ws_digest(ws_digest(d->controls, &opcode, 1), payload, len);
    if (opcode == 9) {
        memcpy(d->last_ping, payload, len);
        d->last_ping_len = len;
    }
}

static inline void ws_got_frame(struct ws_decoder *d, uint8_t first, const uint8_t *payload, size_t len) {
    uint8_t opcode = first & 0x0f;
    bool fin = first & 0x80;
    d->frames++;
    if (d->closed)
        d->error = "a frame behind a Close";
    else if (first & 0x70)
        d->error = "a reserved bit";
    else if (opcode >= 8 && (!fin || len > 125 || opcode > 10))
        d->error = "a bad control frame";
    else if (opcode >= 8)
        ws_got_control(d, opcode, payload, len);
    else if (opcode > 2 || (opcode == 0) != (d->opcode != 0))
        d->error = "a bad opcode";
    if (opcode >= 8 || d->error)
        return;
    if (opcode != 0) {
        d->opcode = opcode;
        d->message.len = 0;
    }
    ws_add(&d->message, payload, len);
    if (!fin)
        return;
    d->messages++;
    d->last_len = d->message.len;
    d->digest = ws_digest(ws_digest(d->digest, &d->opcode, 1), &d->message.len, sizeof d->message.len);
    d->digest = ws_digest(d->digest, d->message.data, d->message.len);
    d->opcode = 0;
}

/* Decodes one frame from the front of the input. Return: bytes used, 0: it is not all there. */
static inline size_t ws_decode_one(struct ws_decoder *d, uint8_t *in, size_t len) {
    if (len < 2)
        return 0;
    size_t extended = (in[1] & 0x7f) == 127 ? 8 : (in[1] & 0x7f) == 126 ? 2 : 0;
    bool masked = in[1] & 0x80;
    size_t head = 2 + extended + (masked ? 4 : 0);
    if (len < head)
        return 0;
    uint64_t payload = extended ? 0 : in[1] & 0x7f;
    for (size_t i = 0; i < extended; i++)
        payload = payload << 8 | in[2 + i];
    if (masked != d->masked)
        d->error = "a frame masked as it must not be";
    if ((extended == 2 && payload < 126) || (extended == 8 && payload < 65536) || payload >> 63)
        d->error = "a bad length";
    if (d->error || len - head < payload)
        return 0;
    for (size_t i = 0; masked && i < payload; i++)
        in[head + i] ^= in[head - 4 + i % 4];
    ws_got_frame(d, in[0], in + head, (size_t)payload);
    return head + (size_t)payload;
}

static inline void ws_decode(struct ws_decoder *d, const void *data, size_t len) {
    ws_add(&d->input, data, len);
    size_t at = 0, used;
    while (!d->error && (used = ws_decode_one(d, d->input.data + at, d->input.len - at)) > 0)
        at += used;
    if (at > 0)
        memmove(d->input.data, d->input.data + at, d->input.len - at);
    d->input.len -= at;
}

static inline void ws_decoder_free(struct ws_decoder *d) {
    ws_bytes_free(&d->input);
    ws_bytes_free(&d->message);
}

/* Appends a random stream of messages, some in fragments, with pings and pongs between the frames, at least `bytes`
 * long, as a peer of that masking would send it. max: bytes of the longest message. */
static inline void ws_random_stream(struct ws_bytes *b, uint64_t *seed, bool masked, size_t bytes, size_t max) {
    uint8_t *payload = malloc(max + 1);
    while (payload && b->len < bytes) {
        uint32_t kind = ws_random(seed) % 10;
        size_t len = kind == 0  ? ws_random(seed) % (max + 1)
                     : kind < 4 ? ws_random(seed) % 5000
                                : ws_random(seed) % 130;
        bool text = ws_random(seed) % 4 == 0;
        len = len > max ? max : len;
        for (size_t i = 0; i < len; i++)
            payload[i] = text ? (uint8_t)('a' + ws_random(seed) % 26) : (uint8_t)ws_random(seed);
        size_t at = 0, parts = ws_random(seed) % 3 == 0 ? 1 + ws_random(seed) % 5 : 1;
        for (size_t part = 0; part < parts; part++) {
            size_t n = part + 1 == parts ? len - at : ws_random(seed) % (len - at + 1);
            uint8_t first = (uint8_t)((part + 1 == parts ? 0x80 : 0) | (part > 0 ? 0 : text ? 1 : 2));
            ws_frame(b, first, masked, payload + at, n);
            at += n;
            if (ws_random(seed) % 8 == 0)
                ws_frame(b, ws_random(seed) % 2 ? 0x89 : 0x8a, masked, payload, len < 125 ? len : 125);
        }
    }
    free(payload);
}

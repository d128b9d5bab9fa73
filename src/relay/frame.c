#include "relay/frame.h"

#include <string.h>

#define FIN 0x80
#define RSV 0x70
#define OPCODE 0x0f
#define CONTROL 0x08
#define MASK 0x80
#define LENGTH 0x7f
#define LENGTH_16 126
#define LENGTH_64 127

struct head {
    enum frame_opcode opcode;
    bool fin;
    size_t size;
    uint64_t payload;
    uint8_t key[4];
};

static enum frame_result broken(struct frame *ret, uint16_t code, const char *wrong) {
    ret->code = code;
    ret->wrong = wrong;
    return FRAME_BROKEN;
}

static uint64_t big_endian(const uint8_t *p, size_t n) {
    uint64_t v = 0;
    for (size_t i = 0; i < n; i++)
        v = v << 8 | p[i];
    return v;
}

/* What can be judged from the first two bytes. Return: NULL or what is wrong. */
static const char *check_start(const struct frame_parser *p, uint8_t first, uint8_t second) {
    uint8_t opcode = first & OPCODE;
    if (first & RSV)
        return "a reserved bit is set";
    if ((opcode > FRAME_BINARY && opcode < FRAME_CLOSE) || opcode > FRAME_PONG)
        return "an unknown opcode";
    if (((second & MASK) != 0) != p->masked)
        return p->masked ? "a frame that is not masked" : "a frame that is masked";
    if (opcode & CONTROL) {
        if (!(first & FIN))
            return "a control frame in fragments";
        if ((second & LENGTH) > FRAME_CONTROL_MAX)
            return "a control frame of more than 125 bytes";
        return NULL;
    }
    if (opcode == FRAME_CONTINUATION && !p->message_open)
        return "a continuation of no message";
    if (opcode != FRAME_CONTINUATION && p->message_open)
        return "a message that begins inside another";
    return NULL;
}

static enum frame_result read_head(const struct frame_parser *p, const uint8_t *in, size_t len, struct head *h,
                                   struct frame *ret) {
    if (len < 2)
        return FRAME_MORE;
    const char *wrong = check_start(p, in[0], in[1]);
    if (wrong)
        return broken(ret, FRAME_CODE_PROTOCOL, wrong);
    uint8_t length = in[1] & LENGTH;
    size_t extended = length == LENGTH_64 ? 8 : length == LENGTH_16 ? 2 : 0;
    h->size = 2 + extended + (p->masked ? sizeof h->key : 0);
    if (len < h->size)
        return FRAME_MORE;
    h->opcode = in[0] & OPCODE;
    h->fin = in[0] & FIN;
    h->payload = extended ? big_endian(in + 2, extended) : length;
    if (h->payload >> 63)
        return broken(ret, FRAME_CODE_PROTOCOL, "a frame length with the top bit set");
    if ((extended == 2 && h->payload < LENGTH_16) || (extended == 8 && h->payload <= UINT16_MAX))
        return broken(ret, FRAME_CODE_PROTOCOL, "a frame length in more bytes than it needs");
    if (p->masked)
        memcpy(h->key, in + 2 + extended, sizeof h->key);
    return FRAME_READY;
}

/* Writes a data frame's header so that it ends where the payload begins. Return: where it starts. */
static uint8_t *put_head(uint8_t *payload, uint8_t first, const uint8_t *key, uint64_t len) {
    uint8_t *p = payload;
    if (key) {
        p -= 4;
        memcpy(p, key, 4);
    }
    size_t extended = len > UINT16_MAX ? 8 : len >= LENGTH_16 ? 2 : 0;
    uint8_t length = extended == 8 ? LENGTH_64 : extended == 2 ? LENGTH_16 : (uint8_t)len;
    for (size_t i = 0; i < extended; i++)
        *--p = (uint8_t)(len >> (8 * i));
    *--p = (key ? MASK : 0) | length;
    *--p = first;
    return p;
}

static bool text_is_good(struct frame_parser *p, const uint8_t *data, size_t len, bool last) {
    if (!p->text)
        return true;
    return utf8_feed(&p->utf8, data, len) && (!last || utf8_complete(&p->utf8));
}

/* Gives out what is there of the open frame as a fragment. */
static enum frame_result cut_fragment(struct frame_parser *p, uint8_t *payload, size_t have, struct frame *ret) {
    bool whole = have >= p->left;
    if (!whole && have < FRAME_HOLD_MAX)
        return FRAME_MORE;
    size_t n = whole ? (size_t)p->left : p->masked ? have & ~(size_t)3 : have;
    bool last = whole && p->fin;
    if (!text_is_good(p, payload, n, last))
        return broken(ret, FRAME_CODE_NOT_UTF8, "a text that is not UTF-8");
    ret->data = put_head(payload, (last ? FIN : 0) | p->opcode, p->masked ? p->key : NULL, n);
    ret->len = (size_t)(payload - ret->data) + n;
    ret->used = n;
    ret->opcode = p->opcode;
    p->opcode = FRAME_CONTINUATION;
    p->left -= n;
    return FRAME_READY;
}

static enum frame_result take_data(struct frame_parser *p, const struct head *h, uint8_t *in, size_t len,
                                   struct frame *ret) {
    size_t have = len - h->size;
    bool whole = have >= h->payload;
    if (!whole && have < FRAME_HOLD_MAX)
        return FRAME_MORE;
    if (h->opcode != FRAME_CONTINUATION) {
        /* Masked texts go to the VM, which checks for itself. */
        p->text = h->opcode == FRAME_TEXT && !p->masked;
        p->utf8 = (struct utf8){0};
    }
    p->message_open = !h->fin;
    p->fin = h->fin;
    p->opcode = h->opcode;
    p->left = h->payload;
    memcpy(p->key, h->key, sizeof p->key);
    if (!whole) {
        enum frame_result r = cut_fragment(p, in + h->size, have, ret);
        ret->used += h->size;
        return r;
    }
    p->left = 0;
    if (!text_is_good(p, in + h->size, (size_t)h->payload, h->fin))
        return broken(ret, FRAME_CODE_NOT_UTF8, "a text that is not UTF-8");
    ret->data = in;
    ret->len = ret->used = h->size + (size_t)h->payload;
    ret->opcode = h->opcode;
    return FRAME_READY;
}

static bool code_may_be_sent(uint16_t code) {
    if (code >= 3000)
        return code <= 4999;
    return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014);
}

static enum frame_result check_close(struct frame *f) {
    f->code = FRAME_CODE_NONE;
    if (f->payload_len == 0)
        return FRAME_READY;
    if (f->payload_len == 1)
        return broken(f, FRAME_CODE_PROTOCOL, "a Close of one byte");
    uint16_t code = (uint16_t)big_endian(f->payload, 2);
    if (!code_may_be_sent(code))
        return broken(f, FRAME_CODE_PROTOCOL, "a Close with a code that must not be sent");
    f->payload_len -= 2;
    memmove(f->payload, f->payload + 2, f->payload_len);
    struct utf8 u = {0};
    if (!utf8_feed(&u, f->payload, f->payload_len) || !utf8_complete(&u))
        return broken(f, FRAME_CODE_NOT_UTF8, "a Close whose reason is not UTF-8");
    f->code = code;
    return FRAME_READY;
}

static enum frame_result take_control(const struct frame_parser *p, const struct head *h, uint8_t *in, size_t len,
                                      struct frame *ret) {
    if (len - h->size < h->payload)
        return FRAME_MORE;
    ret->data = in;
    ret->len = ret->used = h->size + (size_t)h->payload;
    ret->opcode = h->opcode;
    ret->payload_len = (size_t)h->payload;
    for (size_t i = 0; i < ret->payload_len; i++)
        ret->payload[i] = in[h->size + i] ^ (p->masked ? h->key[i % 4] : 0);
    enum frame_result r = h->opcode == FRAME_CLOSE ? check_close(ret) : FRAME_READY;
    ret->payload[ret->payload_len] = '\0';
    return r;
}

enum frame_result frame_next(struct frame_parser *p, uint8_t *in, size_t len, struct frame *ret) {
    if (p->left > 0)
        return cut_fragment(p, in, len, ret);
    struct head h = {0};
    enum frame_result r = read_head(p, in, len, &h, ret);
    if (r != FRAME_READY)
        return r;
    return h.opcode & CONTROL ? take_control(p, &h, in, len, ret) : take_data(p, &h, in, len, ret);
}

bool frame_parser_idle(const struct frame_parser *p) {
    return p->left == 0 && !p->message_open;
}

size_t frame_build(uint8_t out[FRAME_HEAD_MAX + FRAME_CONTROL_MAX], enum frame_opcode opcode, const uint8_t *key,
                   const void *payload, size_t payload_len) {
    const uint8_t *from = payload;
    if (payload_len > FRAME_CONTROL_MAX)
        payload_len = FRAME_CONTROL_MAX;
    size_t head = key ? 6 : 2;
    out[0] = FIN | (uint8_t)opcode;
    out[1] = (key ? MASK : 0) | (uint8_t)payload_len;
    if (key)
        memcpy(out + 2, key, 4);
    for (size_t i = 0; i < payload_len; i++)
        out[head + i] = from[i] ^ (key ? key[i % 4] : 0);
    return head + payload_len;
}

uint16_t frame_code_for_wire(uint16_t code) {
    return code_may_be_sent(code) ? code : FRAME_CODE_INTERNAL;
}

size_t frame_build_close(uint8_t out[FRAME_HEAD_MAX + FRAME_CONTROL_MAX], const uint8_t *key, uint16_t code,
                         const char *reason) {
    char payload[2 + FRAME_REASON_MAX + 1];
    if (code == FRAME_CODE_NONE)
        return frame_build(out, FRAME_CLOSE, key, "", 0);
    code = frame_code_for_wire(code);
    payload[0] = (char)(code >> 8);
    payload[1] = (char)(code & 0xff);
    size_t len = utf8_sentence(reason, payload + 2, FRAME_REASON_MAX + 1);
    return frame_build(out, FRAME_CLOSE, key, payload, 2 + len);
}

/* Any bytes, in any pieces: what the frame parser gives out is whole frames of a valid stream, it holds back no more
 * than it says, and it never gives out more than it was given (but for the headers of fragments).
 * Input: one byte for the direction, one for the sizes of the pieces, then the stream. */
#include "fuzz.h"
#include "relay/frame.h"
#include "ws_peer.h"

static void check(bool good, const char *what) {
    if (good)
        return;
    fprintf(stderr, "fuzz_relay_frame: %s\n", what);
    abort();
}

/* Return: bytes of input that were given out, SIZE_MAX when the parser has refused the stream. */
static size_t feed(struct frame_parser *p, struct ws_decoder *out, uint8_t *in, size_t len) {
    struct frame f;
    enum frame_result r;
    size_t used = 0;
    while ((r = frame_next(p, in + used, len - used, &f)) == FRAME_READY) {
        check(f.used > 0 && f.used <= len - used, "used more than there is");
        check(f.len <= f.used + FRAME_HEAD_MAX, "gave out more than it was given");
        size_t frames = out->frames;
        ws_decode(out, f.data, f.len);
        check(!out->error, out->error ? out->error : "");
        check(out->input.len == 0 && out->frames == frames + 1, "not one whole frame");
        used += f.used;
        if (f.opcode == FRAME_CLOSE)
            return SIZE_MAX;
    }
    check(r != FRAME_BROKEN || (f.wrong && (f.code == FRAME_CODE_PROTOCOL || f.code == FRAME_CODE_NOT_UTF8)),
          "refused without a reason");
    return r == FRAME_BROKEN ? SIZE_MAX : used;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2)
        return 0;
    bool masked = data[0] & 1;
    uint64_t seed = data[1];
    struct frame_parser parser = {.masked = masked};
    struct ws_decoder out = {.masked = masked};
    uint8_t *buffer = malloc(FRAME_HEAD_MAX + FRAME_REST_MAX + size);
    check(buffer, "no memory");
    uint8_t *in = buffer + FRAME_HEAD_MAX;
    size_t held = 0;
    for (size_t at = 2; at < size;) {
        size_t piece = 1 + ws_random(&seed) % (seed & 1 ? 20 : 9000);
        piece = piece > size - at ? size - at : piece;
        memcpy(in + held, data + at, piece);
        at += piece;
        size_t used = feed(&parser, &out, in, held + piece);
        if (used == SIZE_MAX)
            break;
        held += piece - used;
        check(held < FRAME_REST_MAX, "holds back too much");
        memmove(in, in + used, held);
    }
    free(buffer);
    ws_decoder_free(&out);
    return 0;
}

/* A few valid streams to begin with. */
size_t fuzz_seed(unsigned number, uint8_t *ret, size_t size) {
    uint64_t seed = number;
    bool masked = number % 2;
    struct ws_bytes stream = {0};
    ws_random_stream(&stream, &seed, masked, number % 3 ? 300 : 20000, number % 3 ? 200 : 9000);
    if (number % 4 == 0)
        ws_close_frame(&stream, masked, 1000, "bye");
    size_t len = stream.len > size - 2 ? size - 2 : stream.len;
    ret[0] = masked;
    ret[1] = (uint8_t)number;
    if (len > 0)
        memcpy(ret + 2, stream.data, len);
    ws_bytes_free(&stream);
    return len + 2;
}

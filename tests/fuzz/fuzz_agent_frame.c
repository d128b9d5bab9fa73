/* Any bytes, in any pieces: the decoder gives out only frames whose checksums fit, within their limits, and comes to an
 * end of everything. Input: one byte for the sizes of the pieces, then the stream. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/outbox.h"
#include "fuzz.h"

static void check(bool good, const char *what) {
    if (good)
        return;
    fprintf(stderr, "fuzz_agent_frame: %s\n", what);
    abort();
}

static void take(struct agent_decoder *d) {
    struct agent_frame frame;
    while (agent_decoder_next(d, &frame) == 1) {
        uint8_t header[AGENT_HEADER_SIZE];
        check(frame.len <= (frame.kind == AGENT_FRAME_DATA ? AGENT_DATA_MAX : AGENT_PAYLOAD_MAX), "too long");
        check(frame.stream < AGENT_STREAMS, "a stream that there is not");
        agent_frame_header(&frame, header);
        check(memcmp(header, frame.payload - AGENT_HEADER_SIZE, sizeof header) == 0, "not the header that was sent");
        if (frame.kind == AGENT_FRAME_JSON)
            json_decref(agent_frame_json(&frame));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct agent_decoder d = {0};
    if (size < 1)
        return 0;
    size_t piece = data[0] < 128 ? 1 + (size_t)data[0] : 65536;
    for (size_t at = 1; at < size; at += piece) {
        check(agent_decoder_push(&d, data + at, piece < size - at ? piece : size - at) == 0, "does not take it");
        take(&d);
    }
    for (size_t i = 0; agent_decoder_waits(&d); i++) {
        check(i <= size, "does not come to an end");
        agent_decoder_give_up(&d);
        take(&d);
    }
    check(d.skipped <= size - 1, "skipped more than there was");
    agent_decoder_free(&d);
    return 0;
}

size_t fuzz_seed(unsigned number, uint8_t *ret, size_t size) {
    static const char *const texts[] = {"{\"op\":\"health\"}", "{\"ok\":{\"a\":[1,2.5,null,\"x\"]}}", "{}", ""};
    size_t len = 1;
    ret[0] = (uint8_t)(number * 37);
    for (unsigned i = 0; i < 1 + number % 5; i++) {
        const char *text = texts[(number + i) % 4];
        struct agent_frame frame = {.kind = (enum agent_frame_kind)(1 + (number + i) % 3),
                                    .stream = (enum agent_stream)(i % 3),
                                    .session = number,
                                    .id = i,
                                    .payload = (const uint8_t *)text,
                                    .len = strlen(text)};
        if (len + AGENT_HEADER_SIZE + frame.len > size)
            break;
        agent_frame_header(&frame, ret + len);
        memcpy(ret + len + AGENT_HEADER_SIZE, text, frame.len);
        len += AGENT_HEADER_SIZE + frame.len;
    }
    return len;
}

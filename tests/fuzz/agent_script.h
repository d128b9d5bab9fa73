/* Inputs for the fuzz targets of the agent's two ends: not bytes of the channel, whose checksums random changes would
 * never pass, but a list of frames to make: kind and stream in one byte, id in one, length in two, the payload. A kind
 * of 0 is that many bytes of garbage. */
#pragma once

#include <string.h>

#include "agent/frame.h"
#include "fuzz.h"

#define SCRIPT_PIECE_MAX 4096

/* Takes the next piece off the script and writes what goes over the channel to ret (at least AGENT_HEADER_SIZE +
 * SCRIPT_PIECE_MAX). Return: its length; 0 at the end. */
static inline size_t script_next(const uint8_t **data, size_t *size, uint32_t session, uint8_t *ret) {
    if (*size < 4)
        return 0;
    const uint8_t *p = *data;
    size_t len = ((size_t)p[2] << 8 | p[3]) % SCRIPT_PIECE_MAX;
    len = len < *size - 4 ? len : *size - 4;
    *data += 4 + len;
    *size -= 4 + len;
    struct agent_frame frame = {.kind = (enum agent_frame_kind)(p[0] & 3),
                                .stream = (enum agent_stream)((p[0] >> 2) % 3),
                                .session = p[0] & 0x80 ? session ^ 1 : session,
                                .id = p[1] % 8,
                                .payload = p + 4,
                                .len = len};
    if ((p[0] & 3) == 0) {
        memcpy(ret, p + 4, len);
        return len > 0 ? len : script_next(data, size, session, ret);
    }
    agent_frame_header(&frame, ret);
    memcpy(ret + AGENT_HEADER_SIZE, p + 4, len);
    return AGENT_HEADER_SIZE + len;
}

static inline size_t script_add(uint8_t *to, size_t len, unsigned kind, unsigned stream, uint8_t id, const char *text) {
    size_t n = strlen(text);
    to[len] = (uint8_t)(kind | stream << 2);
    to[len + 1] = id;
    to[len + 2] = (uint8_t)(n >> 8);
    to[len + 3] = (uint8_t)n;
    memcpy(to + len + 4, text, n);
    return len + 4 + n;
}

#include "agent/outbox.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/str.h"

static int reserve(struct agent_outbox *o, size_t more) {
    size_t waiting = o->len - o->at;
    if (waiting + more > o->max)
        return -ENOBUFS;
    if (o->at > 0 && o->len + more > o->cap) {
        memmove(o->data, o->data + o->at, waiting);
        o->at = 0;
        o->len = waiting;
    }
    if (o->len + more <= o->cap)
        return 0;
    size_t cap = o->cap ? o->cap : 1024;
    while (cap < o->len + more)
        cap *= 2;
    uint8_t *bigger = malloc(cap);
    if (!bigger)
        return -ENOMEM;
    if (o->len > 0)
        memcpy(bigger, o->data, o->len);
    mem_free(o->data, o->cap);
    o->data = bigger;
    o->cap = cap;
    return 0;
}

int agent_outbox_frame(struct agent_outbox *o, const struct agent_frame *frame) {
    int r = reserve(o, AGENT_HEADER_SIZE + frame->len);
    if (r < 0)
        return r;
    agent_frame_header(frame, o->data + o->len);
    if (frame->len > 0)
        memcpy(o->data + o->len + AGENT_HEADER_SIZE, frame->payload, frame->len);
    o->len += AGENT_HEADER_SIZE + frame->len;
    return 0;
}

int agent_outbox_json(struct agent_outbox *o, uint32_t session, uint32_t id, json_t *object) {
    char *text = object ? json_dumps(object, JSON_COMPACT) : NULL;
    json_decref(object);
    if (!text)
        return -ENOMEM;
    struct agent_frame frame = {
        .kind = AGENT_FRAME_JSON, .session = session, .id = id, .payload = (const uint8_t *)text, .len = strlen(text)};
    int r = frame.len > AGENT_PAYLOAD_MAX ? -EMSGSIZE : agent_outbox_frame(o, &frame);
    mem_free(text, frame.len);
    return r;
}

int agent_outbox_credit(struct agent_outbox *o, uint32_t session, uint32_t id, enum agent_stream stream,
                        uint32_t bytes) {
    uint32_t little = htole32(bytes);
    struct agent_frame frame = {.kind = AGENT_FRAME_CREDIT,
                                .stream = stream,
                                .session = session,
                                .id = id,
                                .payload = (const uint8_t *)&little,
                                .len = sizeof little};
    return agent_outbox_frame(o, &frame);
}

size_t agent_outbox_waiting(const struct agent_outbox *o) {
    return o->len - o->at;
}

int agent_outbox_flush(struct agent_outbox *o, int fd) {
    while (o->at < o->len) {
        ssize_t n = write(fd, o->data + o->at, o->len - o->at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN ? 0 : -errno;
        o->at += (size_t)n;
    }
    agent_outbox_clear(o);
    return 0;
}

void agent_outbox_clear(struct agent_outbox *o) {
    mem_free(o->data, o->cap);
    *o = (struct agent_outbox){.max = o->max};
}

json_t *agent_frame_json(const struct agent_frame *frame) {
    json_t *object = json_loadb((const char *)frame->payload, frame->len, JSON_REJECT_DUPLICATES, NULL);
    if (json_is_object(object))
        return object;
    json_decref(object);
    return NULL;
}

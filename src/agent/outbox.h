/* Frames that wait to be written to a channel that may be slow: bounded, in order. For both ends. There are credentials
 * among them: no memory is given back before it was wiped. */
#pragma once

#include <jansson.h>

#include "agent/frame.h"

/* Zero-initialise with max set. */
struct agent_outbox {
    uint8_t *data;
    size_t at, len, cap;
    size_t max; /* bytes that may wait */
};

/* Adds a frame. Return: 0; -ENOBUFS when it does not fit (nothing was added); -ENOMEM. */
int agent_outbox_frame(struct agent_outbox *o, const struct agent_frame *frame);

/* The same for a JSON object; takes the reference. Error also: -EMSGSIZE, its text is longer than AGENT_PAYLOAD_MAX;
 * -ENOMEM also for NULL. */
int agent_outbox_json(struct agent_outbox *o, uint32_t session, uint32_t id, json_t *object);
int agent_outbox_credit(struct agent_outbox *o, uint32_t session, uint32_t id, enum agent_stream stream,
                        uint32_t bytes);

size_t agent_outbox_waiting(const struct agent_outbox *o);

/* Writes what the channel takes now. Return: 0, or -errno of the channel (never -EAGAIN). */
int agent_outbox_flush(struct agent_outbox *o, int fd);

/* Forgets what waits. */
void agent_outbox_clear(struct agent_outbox *o);

/* Reads the object of a JSON frame. It came from the other side: whoever takes a member checks its type. The caller
 * decrefs. Return: NULL when it is not one JSON object in UTF-8 without double names. */
json_t *agent_frame_json(const struct agent_frame *frame);

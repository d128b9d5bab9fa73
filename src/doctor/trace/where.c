/* What the events of one question say together. */
#include <string.h>

#include "base/str.h"
#include "doctor/trace/internal.h"

/* Times of the trace have microseconds, those of frames nanoseconds, and a frame is stamped shortly before or after
 * its event. */
#define RECEIVED_SLACK_NS 300000

const char *trace_point_name(enum trace_point point) {
    switch (point) {
    case TRACE_AT_NOTHING:
        return "nothing";
    case TRACE_AT_QUEUE:
        return "queue";
    case TRACE_AT_DRIVER:
        return "driver";
    case TRACE_AT_READER:
        return "reader";
    case TRACE_AT_RECEIVE:
        return "receive";
    }
    return "unknown";
}

static bool is_one_of(const char *dev, const char *const *devices, size_t count) {
    if (!*dev)
        return true;
    for (size_t i = 0; i < count; i++)
        if (strcmp(dev, devices[i]) == 0)
            return true;
    return false;
}

void trace_tag_window(struct trace_result *result, pid_t tid, int64_t from_ns, int64_t to_ns,
                      const char *const *devices, size_t device_count, int32_t tag, bool reply) {
    from_ns -= from_ns % 1000; /* the trace cuts to microseconds */
    for (size_t i = 0; i < result->event_count; i++) {
        struct trace_event *event = &result->events[i];
        if ((tid && event->tid != tid) || event->at_ns < from_ns || event->at_ns > to_ns || event->tag != TRACE_NO_TAG)
            continue;
        if (!is_one_of(event->dev, devices, device_count))
            continue;
        event->tag = tag;
        event->reply = reply;
    }
}

/* Whoever reads the copy that the bridge gave to this TAP reads it in his own thread: known by the packet's address. */
void trace_tag_readers(struct trace_result *result) {
    for (size_t i = 0; i < result->event_count; i++) {
        struct trace_event *read = &result->events[i];
        if (read->kind != TRACE_CONSUMED || strcmp(read->location, "tun_do_read") != 0)
            continue;
        for (size_t j = i; j-- > 0;) {
            const struct trace_event *sent = &result->events[j];
            if (sent->skb != read->skb)
                continue;
            if (sent->kind == TRACE_XMIT_DONE) /* of the bridge, after its port's */
                continue;
            if (sent->kind == TRACE_XMIT) {
                memcpy(read->dev, sent->dev, sizeof read->dev);
                read->tag = sent->tag;
                read->reply = sent->reply;
            }
            break;
        }
    }
}

bool trace_tag_received(struct trace_result *result, const char *dev, int64_t at_ns, int32_t tag, bool reply) {
    for (size_t i = 0; i < result->event_count; i++) {
        struct trace_event *first = &result->events[i];
        int64_t apart = first->at_ns - at_ns;
        if (first->kind != TRACE_RECEIVED || strcmp(first->dev, dev) != 0 || first->tag != TRACE_NO_TAG ||
            apart < -RECEIVED_SLACK_NS || apart > RECEIVED_SLACK_NS)
            continue;
        pid_t tid = first->tid;
        for (size_t j = i; j < result->event_count; j++) {
            struct trace_event *event = &result->events[j];
            if (event->tid != tid)
                continue;
            /* The next frame on this device, or a read of the TAP: this one's way is over. */
            if (j > i && ((event->kind == TRACE_RECEIVED && strcmp(event->dev, dev) == 0) ||
                          (event->kind == TRACE_CONSUMED && strcmp(event->location, "tun_do_read") == 0)))
                break;
            if (event->tag == TRACE_NO_TAG) {
                event->tag = tag;
                event->reply = reply;
            }
        }
        return true;
    }
    return false;
}

static void set_drop(const struct trace_result *result, const struct trace_event *event, struct trace_where *where) {
    where->dropped = true;
    memcpy(where->drop_dev, event->dev, sizeof where->drop_dev);
    memcpy(where->drop_reason, event->reason, sizeof where->drop_reason);
    memcpy(where->drop_location, event->location, sizeof where->drop_location);
    if (event->stack >= 0 && (size_t)event->stack < result->stack_count)
        where->drop_stack = &result->stacks[event->stack];
    str_copy(where->drop_hook, sizeof where->drop_hook, trace_hook_of(event, where->drop_stack));
    where->drop_at_port = where->drop_stack && trace_stack_at_port(where->drop_stack);
    where->legacy_table = strcmp(event->reason, "NETFILTER_DROP") == 0 && !str_starts(event->location, "nft_");
}

static enum trace_point point_of(const struct trace_event *event) {
    switch (event->kind) {
    case TRACE_QUEUED:
        return TRACE_AT_QUEUE;
    case TRACE_XMIT_DONE:
        return event->rc == 0 ? TRACE_AT_DRIVER : TRACE_AT_NOTHING;
    case TRACE_RECEIVED:
        return TRACE_AT_RECEIVE;
    case TRACE_CONSUMED:
        return strcmp(event->location, "tun_do_read") == 0 ? TRACE_AT_READER : TRACE_AT_NOTHING;
    case TRACE_XMIT:
    case TRACE_DROPPED:
    case TRACE_NEIGHBOUR:
    case TRACE_REFUSED:
    case TRACE_KIND_COUNT:
        break;
    }
    return TRACE_AT_NOTHING;
}

/* A device is reached when its first event comes; a later event on one that was reached before is its end only. */
static bool reached_before(const struct trace_result *result, size_t at, const struct trace_where *where) {
    const struct trace_event *now = &result->events[at];
    if (where->last == TRACE_AT_NOTHING || strcmp(now->dev, where->dev) == 0)
        return false;
    while (at-- > 0) {
        const struct trace_event *event = &result->events[at];
        if (event->tag == now->tag && event->reply == now->reply && point_of(event) != TRACE_AT_NOTHING &&
            strcmp(event->dev, now->dev) == 0)
            return true;
    }
    return false;
}

static void take_event(const struct trace_result *result, size_t at, struct trace_where *where) {
    const struct trace_event *event = &result->events[at];
    enum trace_point point = point_of(event);
    if (event->kind == TRACE_DROPPED && !event->noise && !where->dropped)
        set_drop(result, event, where);
    if (point == TRACE_AT_NOTHING || reached_before(result, at, where))
        return;
    where->last = point;
    where->tid = event->tid;
    memcpy(where->dev, event->dev, sizeof where->dev);
}

static bool is_drop(const struct trace_rule *rule) {
    return strcmp(rule->verdict, "drop") == 0;
}

void trace_where(const struct trace_result *result, int32_t tag, bool reply, struct trace_where *ret) {
    struct trace_where where = {.last = TRACE_AT_NOTHING};
    for (size_t i = 0; i < result->event_count; i++)
        if (result->events[i].tag == tag && result->events[i].reply == reply)
            take_event(result, i, &where);
    for (size_t i = 0; i < result->rule_count && !where.rule; i++)
        if (result->rules[i].tag == tag && result->rules[i].reply == reply && is_drop(&result->rules[i]))
            where.rule = &result->rules[i];
    if (where.rule)
        where.legacy_table = false;
    *ret = where;
}

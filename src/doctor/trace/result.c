/* Building a result: events in order, each drop with its call chain and, as far as it can be known, its device. */
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "doctor/trace/internal.h"

/* From one event of a packet to the next in one thread, with room for an interrupt. */
#define PACKET_TIME_NS 1000000

static void *grow(void **items, size_t *count, size_t item_size, size_t max, bool *truncated) {
    if (*count >= max) {
        *truncated = true;
        return NULL;
    }
    if ((*count & (*count - 1)) == 0) { /* at 0, 1, 2, 4, 8 …: full */
        void *bigger = reallocarray(*items, *count ? *count * 2 : 1, item_size);
        if (!bigger) {
            *truncated = true;
            return NULL;
        }
        *items = bigger;
    }
    void *item = (char *)*items + (*count)++ * item_size;
    memset(item, 0, item_size);
    return item;
}

struct trace_event *trace_result_add_event(struct trace_result *result) {
    return grow((void **)&result->events, &result->event_count, sizeof *result->events, TRACE_EVENTS_MAX,
                &result->truncated);
}

struct trace_stack *trace_result_add_stack(struct trace_result *result) {
    return grow((void **)&result->stacks, &result->stack_count, sizeof *result->stacks, TRACE_STACKS_MAX,
                &result->truncated);
}

struct trace_rule *trace_result_add_rule(struct trace_result *result) {
    return grow((void **)&result->rules, &result->rule_count, sizeof *result->rules, TRACE_RULES_MAX,
                &result->truncated);
}

void trace_result_free(struct trace_result *result) {
    if (!result)
        return;
    free(result->events);
    free(result->stacks);
    free(result->rules);
    free(result);
}

void trace_result_freep(struct trace_result **result) {
    trace_result_free(*result);
}

/* A drop does not say where: the last device on which this packet was seen does, if that was just before and nobody
 * has let go of it since (addresses are used again). A copy that a bridge made has an address of its own and no past. */
static void find_device(struct trace_result *result, struct trace_event *drop) {
    size_t at = result->event_count - 1; /* the drop itself */
    for (size_t back = 0; back < 64 && at > 0; back++) {
        const struct trace_event *event = &result->events[--at];
        if (event->skb != drop->skb)
            continue;
        if (event->tid != drop->tid || event->kind == TRACE_CONSUMED || event->kind == TRACE_DROPPED ||
            drop->at_ns - event->at_ns > PACKET_TIME_NS)
            return;
        if (*event->dev) {
            memcpy(drop->dev, event->dev, sizeof drop->dev);
            if (!drop->length)
                drop->length = event->length;
            return;
        }
    }
}

/* The event whose call chain is being read. */
struct reading {
    int32_t event, stack; /* -1: none */
    int depth;
};

static void read_function(struct trace_result *result, struct reading *reading, const char *function) {
    if (reading->event < 0)
        return;
    if (strcmp(function, "sk_skb_reason_drop") == 0 || str_starts(function, "kfree_skb") ||
        str_starts(function, "trace_event_raw") || str_starts(function, "__traceiter"))
        return;
    if (reading->stack < 0) {
        if (!trace_result_add_stack(result)) {
            reading->event = -1;
            return;
        }
        reading->stack = (int32_t)result->stack_count - 1;
        reading->depth = 0;
        result->events[reading->event].stack = reading->stack;
    }
    if (reading->depth < TRACE_STACK)
        str_copy(result->stacks[reading->stack].function[reading->depth++], TRACE_WORD, function);
}

/* Every netlink message that we read is consumed too: of those, only the ends of a packet's way are kept. */
static bool is_wanted(const struct trace_event *event) {
    static const char *const ends[] = {"tun_do_read",
                                       "__dev_queue_xmit",
                                       "sch_handle_egress",
                                       "br_dev_xmit",
                                       "br_handle_frame",
                                       "arp_process",
                                       "arp_rcv",
                                       "icmp_rcv",
                                       "tun_net_xmit",
                                       "__netif_receive_skb_core",
                                       "br_handle_frame_finish",
                                       "br_pass_frame_up"};
    if (event->kind != TRACE_CONSUMED)
        return true;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (strcmp(event->location, ends[i]) == 0)
            return true;
    return false;
}

void trace_result_read(struct trace_result *result, const char *text, size_t length) {
    struct reading reading = {-1, -1, 0};
    const char *end = text + length;
    while (text < end) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        size_t line = newline ? (size_t)(newline - text) : (size_t)(end - text);
        struct trace_event event;
        int r = trace_parse_line(text, line, &event);
        if (r == 2)
            read_function(result, &reading, event.location);
        struct trace_event *kept = r == 1 && is_wanted(&event) ? trace_result_add_event(result) : NULL;
        if (kept) {
            *kept = event;
            if (event.kind == TRACE_DROPPED) {
                find_device(result, kept);
                reading = (struct reading){(int32_t)result->event_count - 1, -1, 0};
            }
        }
        text += line + 1;
    }
}

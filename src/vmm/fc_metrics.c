#include "vmm/fc_metrics.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

enum counter {
    TX_PACKETS,
    RX_PACKETS,
    RX_TAP_EVENTS,
    TAP_WRITE_FAILS,
    SPOOFED,
};
#define COUNTER_COUNT 5

static const char *const names[COUNTER_COUNT] = {
    [TX_PACKETS] = "tx_packets_count",     [RX_PACKETS] = "rx_packets_count",  [RX_TAP_EVENTS] = "rx_tap_event_count",
    [TAP_WRITE_FAILS] = "tap_write_fails", [SPOOFED] = "tx_spoofed_mac_count",
};

/* Return: whether the line had the counters. */
static bool add_line(const char *line, size_t len, long long sum[COUNTER_COUNT]) {
    json_t *object = json_loadb(line, len, 0, NULL);
    json_t *net = json_object_get(object, "net");
    bool has = json_is_object(net);
    for (int i = 0; has && i < COUNTER_COUNT; i++)
        sum[i] += json_integer_value(json_object_get(net, names[i]));
    json_decref(object);
    return has;
}

void fc_metrics_tell(const char *text, size_t len, bool is_clone, char ret_words[VMM_WORDS_MAX]) {
    long long sum[COUNTER_COUNT] = {0};
    int lines = 0;
    while (len > 0) {
        const char *end = memchr(text, '\n', len);
        size_t line = end ? (size_t)(end - text) : len;
        lines += add_line(text, line, sum);
        text += line + (end != NULL);
        len -= line + (end != NULL);
    }
    *ret_words = '\0';
    if (lines == 0)
        return;
    int n = snprintf(ret_words, VMM_WORDS_MAX, "Firecracker counted %lld frames from the guest and %lld to it",
                     sum[TX_PACKETS], sum[RX_PACKETS]);
    const char *more = "";
    if (sum[TAP_WRITE_FAILS] > 0 && !is_clone)
        more = ", and frames that it could not write to the TAP: the TAP is down";
    else if (sum[RX_TAP_EVENTS] > 0 && sum[RX_PACKETS] == 0)
        more = ", though some waited at the TAP: the guest's driver has not set up its queue";
    else if (sum[SPOOFED] > 0 && !is_clone)
        more = ", some of them with another MAC than the VM's";
    snprintf(ret_words + n, VMM_WORDS_MAX - (size_t)n, "%s", more);
}

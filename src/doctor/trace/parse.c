/* Lines of a trace file, as the kernel's print formats make them:
 *
 *        python3-29752   [001] b....  4376.632907: net_dev_queue: dev=fc-vm-2 skbaddr=00000000d309cf01 len=42
 *        python3-29752   [001] b....  4376.632986: <stack trace>
 *  => sk_skb_reason_drop
 *
 * Fields are found by name; which there are, and in which order, differs between kernels. Pointers are hashed by the
 * kernel, the same for the same address: good enough to know a packet again. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "doctor/trace/internal.h"

#define LINE_MAX_LENGTH 1024

static const struct {
    const char *event;
    enum trace_kind kind;
} kinds[] = {
    {"net_dev_queue", TRACE_QUEUED},       {"net_dev_start_xmit", TRACE_XMIT}, {"net_dev_xmit", TRACE_XMIT_DONE},
    {"netif_receive_skb", TRACE_RECEIVED}, {"kfree_skb", TRACE_DROPPED},       {"consume_skb", TRACE_CONSUMED},
    {"neigh_update", TRACE_NEIGHBOUR},     {"sys_exit", TRACE_REFUSED},
};

const char *trace_kind_name(enum trace_kind kind) {
    static const char *const names[TRACE_KIND_COUNT] = {
        [TRACE_QUEUED] = "queued",       [TRACE_XMIT] = "handed-to-driver", [TRACE_XMIT_DONE] = "driver-answered",
        [TRACE_RECEIVED] = "received",   [TRACE_DROPPED] = "dropped",       [TRACE_CONSUMED] = "consumed",
        [TRACE_NEIGHBOUR] = "neighbour", [TRACE_REFUSED] = "refused",
    };
    return (unsigned int)kind < TRACE_KIND_COUNT ? names[kind] : "unknown";
}

/* The value behind "key", up to the next blank. Return: false when there is no such field. */
static bool field(const char *text, const char *key, char *dst, size_t size) {
    size_t length = strlen(key);
    for (const char *at = text; (at = strstr(at, key)); at += length) {
        if (at != text && at[-1] != ' ')
            continue;
        const char *value = at + length;
        size_t n = strcspn(value, " ");
        if (n >= size)
            n = size - 1;
        memcpy(dst, value, n);
        dst[n] = '\0';
        return true;
    }
    return false;
}

static uint64_t number(const char *text, const char *key, int base) {
    char value[32];
    return field(text, key, value, sizeof value) ? strtoull(value, NULL, base) : 0;
}

/* "nft_do_chain+0x3e8/0x610" and "validate_xmit_skb.isra.0+0x19d/0x360" to the function's own name. */
static void function_name(char *name) {
    name[strcspn(name, "+. ")] = '\0';
}

static void read_drop(const char *body, struct trace_event *event) {
    const char *reason = strstr(body, "reason: ");
    if (reason)
        str_copy(event->reason, sizeof event->reason, reason + strlen("reason: "));
    event->reason[strcspn(event->reason, " ")] = '\0';
}

static void read_neighbour(const char *body, struct trace_event *event) {
    char old[16] = "", now[16] = "";
    /* "dev br0 … nud_state stale … new_state reachable": names without an equals sign */
    field(body, "dev ", event->dev, sizeof event->dev);
    field(body, "nud_state ", old, sizeof old);
    field(body, "new_state ", now, sizeof now);
    struct strbuf text = {.max = sizeof event->reason - 1};
    strbuf_addf(&text, "%s->%s", old, now);
    str_copy(event->reason, sizeof event->reason, text.data ? text.data : "");
    strbuf_free(&text);
}

static void read_body(const char *body, struct trace_event *event) {
    field(body, "dev=", event->dev, sizeof event->dev);
    event->skb = number(body, "skbaddr=", 16);
    event->length = (uint32_t)number(body, "len=", 10);
    event->protocol = (uint16_t)number(body, "protocol=", 0);
    event->rc = (int32_t)strtol(strstr(body, "rc=") ? strstr(body, "rc=") + 3 : "0", NULL, 10);
    if (field(body, "location=", event->location, sizeof event->location))
        function_name(event->location);
    if (event->kind == TRACE_DROPPED)
        read_drop(body, event);
    if (event->kind == TRACE_NEIGHBOUR)
        read_neighbour(body, event);
    if (event->kind == TRACE_REFUSED) /* "NR 20 = -22" */
        event->rc = (int32_t)strtol(strstr(body, "= ") ? strstr(body, "= ") + 2 : "0", NULL, 10);
}

/* "-29752   [001] " somewhere behind the name of the process, which may hold anything. Return: what is behind it. */
static const char *find_thread(const char *line, pid_t *ret_tid) {
    for (const char *dash = line; (dash = strchr(dash, '-')); dash++) {
        char *end;
        if (!isdigit((unsigned char)dash[1]))
            continue;
        unsigned long tid = strtoul(dash + 1, &end, 10);
        if (*end != ' ' || tid > INT32_MAX)
            continue;
        end += strspn(end, " ");
        if (*end == '(') /* the thread group, where the option for it is on */
            end += strcspn(end, " ") + strspn(end + strcspn(end, " "), " ");
        if (*end != '[' || !isdigit((unsigned char)end[1]))
            continue;
        end += 1 + strspn(end + 1, "0123456789");
        if (*end != ']')
            continue;
        *ret_tid = (pid_t)tid;
        return end + 1;
    }
    return NULL;
}

/* "  b..1.  4376.632908: ": the flags may be missing. Return: what is behind it. */
static const char *find_time(const char *text, int64_t *ret_ns) {
    for (int token = 0; token < 3; token++) {
        text += strspn(text, " ");
        char *end;
        unsigned long long seconds = strtoull(text, &end, 10);
        if (isdigit((unsigned char)*text) && *end == '.' && isdigit((unsigned char)end[1])) {
            char *stop;
            unsigned long long part = strtoull(end + 1, &stop, 10);
            if (*stop == ':' && seconds < INT64_MAX / 2000000000) {
                for (ptrdiff_t digits = stop - end - 1; digits < 9; digits++)
                    part *= 10;
                *ret_ns = (int64_t)(seconds * 1000000000 + part % 1000000000);
                return stop + 1;
            }
        }
        text += strcspn(text, " ");
    }
    return NULL;
}

static int parse_event(const char *line, struct trace_event *ret) {
    struct trace_event event = {.tag = TRACE_NO_TAG, .stack = -1};
    const char *rest = find_thread(line, &event.tid);
    rest = rest ? find_time(rest, &event.at_ns) : NULL;
    if (!rest)
        return 0;
    rest += strspn(rest, " ");
    size_t length = strcspn(rest, ":");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strlen(kinds[i].event) != length || memcmp(rest, kinds[i].event, length) != 0)
            continue;
        event.kind = kinds[i].kind;
        rest += length + (rest[length] == ':');
        read_body(rest + strspn(rest, " "), &event);
        event.noise = trace_is_noise(&event);
        *ret = event;
        return 1;
    }
    return 0;
}

int trace_parse_line(const char *line, size_t length, struct trace_event *ret) {
    char text[LINE_MAX_LENGTH];
    if (length >= sizeof text)
        length = sizeof text - 1;
    memcpy(text, line, length);
    text[length] = '\0';
    if (str_starts(text, " => ")) {
        struct trace_event event = {.tag = TRACE_NO_TAG, .stack = -1};
        str_copy(event.location, sizeof event.location, text + 4);
        function_name(event.location);
        *ret = event;
        return 2;
    }
    return *text == '#' ? 0 : parse_event(text, ret);
}

bool trace_is_noise(const struct trace_event *event) {
    /* Source: FAULTS.md "Noise"; a closing socket, a ping that a raw socket has read, a frame for another guest. */
    static const struct {
        const char *location, *reason;
    } noise[] = {
        {"ping_rcv", "NO_SOCKET"},
        {"icmp_rcv", "NO_SOCKET"},
        {"raw_rcv", NULL},
        {"tcp_v4_rcv", "NOT_SPECIFIED"},
        {"tcp_v4_rcv", "NO_SOCKET"},
        {"sk_stream_kill_queues", "QUEUE_PURGE"},
        {"skb_queue_purge", NULL},
        {"skb_queue_purge_reason", NULL},
        {"__sk_destruct", NULL},
        {"ip_rcv_core", "OTHERHOST"},
        {"ip6_rcv_core", "OTHERHOST"},
        {"packet_rcv", NULL},
        {"tpacket_rcv", NULL},
        {"netlink_broadcast_filtered", NULL},
        {"netlink_unicast", NULL},
        {"unix_stream_connect", NULL},
        {"unix_release_sock", NULL},
        {"__skb_queue_purge", NULL},
        {"inet_sock_destruct", NULL},
        {"tcp_rcv_established", NULL},
        {"tcp_ack", NULL},
    };
    if (event->kind != TRACE_DROPPED)
        return false;
    for (size_t i = 0; i < sizeof noise / sizeof *noise; i++)
        if (strcmp(event->location, noise[i].location) == 0 &&
            (!noise[i].reason || strcmp(event->reason, noise[i].reason) == 0))
            return true;
    /* A message of nftrace's that found no room at its reader: no packet, and so of no protocol. */
    if (event->protocol == 0 && strcmp(event->location, "nft_do_chain") == 0 &&
        strcmp(event->reason, "NOT_SPECIFIED") == 0)
        return true;
    /* Frames of no IPv4 or ARP are none of ours. */
    return event->protocol != 0 && event->protocol != 0x0800 && event->protocol != 0x0806 && event->dev[0] == '\0' &&
           strcmp(event->reason, "MAC_INVALID_SOURCE") != 0;
}

/* Both ends of the way side by side: what the host sees of a thing, and what the guest says of it. */
#include <linux/if.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "doctor/rules/guest_inside.h"

static struct end_row *add_row(struct judge *j, const char *what, enum hop hop) {
    static struct end_row nowhere;
    struct end_row *rows =
        j->out->ends_count < ENDS_MAX ? reallocarray(j->out->ends, j->out->ends_count + 1U, sizeof *rows) : NULL;
    if (!rows)
        return &nowhere;
    j->out->ends = rows;
    struct end_row *row = &rows[j->out->ends_count++];
    *row = (struct end_row){.hop = hop, .agree = -1};
    str_copy(row->what, sizeof row->what, what);
    return row;
}

__attribute__((format(printf, 2, 3))) static void put(char dst[END_TEXT], const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(dst, END_TEXT, fmt, ap);
    va_end(ap);
}

static unsigned long long grown(uint64_t before, uint64_t after) {
    return after > before ? after - before : 0;
}

static void end_link(struct judge *j, const struct snap_guest_link *nic) {
    struct end_row *row = add_row(j, "link", HOP_GUEST_NIC);
    if (j->tap)
        put(row->host, "%s is %s, %s; held by %s", j->tap->name, j->tap->flags & IFF_UP ? "up" : "down",
            j->tap->carrier ? "has a carrier" : "has no carrier", j->holder ? j->holder->comm : "nobody");
    else
        put(row->host, "there is no %s", j->target->tap);
    if (!nic) {
        put(row->guest, "no network card that fits");
        row->agree = 0;
        return;
    }
    put(row->guest, "%s is %s, %s", nic->name, nic->up ? "up" : "down",
        nic->carrier ? "has a carrier" : "has no carrier");
    row->agree = j->tap && ((j->tap->flags & IFF_UP) && j->tap->carrier) == (nic->up && nic->carrier);
}

static void end_mac(struct judge *j, const struct snap_guest_link *nic) {
    struct end_row *row = add_row(j, "MAC", HOP_GUEST_NIC);
    put(row->host, "%s%s", j->has_mac ? mac_text(j->mac).text : "not known",
        j->target->mac_given ? " (record)"
        : j->has_mac         ? " (seen)"
                             : "");
    put(row->guest, "%s", mac_text(nic->mac).text);
    row->agree = j->has_mac ? mac_equal(j->mac, nic->mac) : -1;
}

/* Only of a run that asked: what came by meanwhile. */
static void end_frames(struct judge *j, const struct snap_guest_link *nic) {
    const struct snap_guest_link *before = inside_nic_before(j);
    if (!before || !j->t || !j->t->tap_before.link.known || !j->t->tap_after.link.known)
        return;
    struct end_row *row = add_row(j, "frames", HOP_GUEST_NIC);
    const struct probe_link_counters *a = &j->t->tap_before.link, *b = &j->t->tap_after.link;
    put(row->host, "its VMM read %llu, wrote %llu while we asked", grown(a->tx_packets, b->tx_packets),
        grown(a->rx_packets, b->rx_packets));
    put(row->guest, "received %llu, sent %llu", grown(before->rx_packets, nic->rx_packets),
        grown(before->tx_packets, nic->tx_packets));
    if (grown(a->tx_packets, b->tx_packets))
        row->agree = nic->rx_packets > before->rx_packets;
}

static void end_address(struct judge *j) {
    const struct snap_guest_addr *addr = inside_address(j), *other = inside_other_address(j);
    const struct snap_guest_addr *told = addr ? addr : other;
    struct end_row *row = add_row(j, "address", HOP_GUEST_IP);
    put(row->host, "%s/%u%s", ip_text(j->target->ip).text, j->bridge_address.length, j->vm ? " (record)" : "");
    if (told)
        put(row->guest, "%s/%u on %s", ip_text(told->ip).text, told->length, told->link);
    else
        put(row->guest, "none");
    row->agree = addr && addr->length == j->bridge_address.length;
}

static void end_route(struct judge *j) {
    const struct snap_guest_route *route = inside_route(j, j->bridge_address.address), *out = inside_route(j, 0);
    struct end_row *row = add_row(j, "way back", HOP_GUEST_IP);
    char back[64] = "no route to it", beyond[64] = "no default route";
    if (route)
        snprintf(back, sizeof back, "it by %.15s%s%s", *route->link ? route->link : "(nothing)",
                 route->gateway ? " via " : "", route->gateway ? ip_text(route->gateway).text : "");
    if (out)
        snprintf(beyond, sizeof beyond, "default via %s", ip_text(out->gateway).text);
    put(row->host, "the gateway is %s, %s", ip_text(j->bridge_address.address).text,
        j->bridge ? mac_text(j->bridge->mac).text : "no bridge");
    put(row->guest, "%s; %s", back, beyond);
    row->agree = route && out && out->gateway == j->bridge_address.address;
}

static const char *answer_words(const struct judge *j, enum probe_kind kind) {
    const struct path *p = &j->paths[kind];
    return !p->asked                             ? "not asked"
           : p->alive                            ? "answered"
           : judge_answer(j, kind)->answer_errno ? "refused"
                                                 : "NO ANSWER";
}

static void end_filter(struct judge *j) {
    struct end_row *row = add_row(j, "filter", HOP_GUEST_FIREWALL);
    struct inside_hit hit;
    put(row->host, "ping: %s; TCP: %s", answer_words(j, PROBE_ICMP), answer_words(j, PROBE_TCP));
    if (!j->guest->firewall_known || *j->guest->firewall_words)
        put(row->guest, "%s", *j->guest->firewall_words ? j->guest->firewall_words : "its rules are not known");
    else if (inside_find_filter(j, PACKET_ECHO, &hit) || inside_find_filter(j, PACKET_SYN, &hit))
        put(row->guest, "%s by %s", hit.outcome == NFT_DROPS ? "stopped" : "may be stopped", hit.where);
    else
        put(row->guest, "%u rules, none stops them%s", j->guest->rules.count,
            j->guest->ignores_ping > 0 ? "; told to ignore ping" : "");
}

static void end_service(struct judge *j) {
    const struct snap_guest_listener *l = inside_listener(j, false), *loopback = inside_listener(j, true);
    const struct path *tcp = &j->paths[PROBE_TCP];
    if (!j->target->port)
        return;
    struct end_row *row = add_row(j, "service", HOP_GUEST_SERVICE);
    put(row->host, "TCP port %u: %s", j->target->port, answer_words(j, PROBE_TCP));
    if (l)
        put(row->guest, "%s (pid %d) listens, %u wait", *l->program ? l->program : "somebody", l->pid, l->queue);
    else if (loopback)
        put(row->guest, "%s (pid %d) listens on the loopback alone", loopback->program, loopback->pid);
    else
        put(row->guest, "nobody listens");
    if (tcp->asked)
        row->agree = tcp->alive == (l != NULL);
}

void guest_ends(struct judge *j) {
    const struct snap_guest_link *nic = inside_nic(j);
    if (j->guest) {
        j->out->guest_state = (int8_t)j->guest->state;
        str_copy(j->out->guest_words, sizeof j->out->guest_words, j->guest->words);
    }
    if (!inside_has_told(j))
        return;
    end_link(j, nic);
    if (nic) {
        end_mac(j, nic);
        end_frames(j, nic);
    }
    end_address(j);
    end_route(j);
    end_filter(j);
    end_service(j);
}

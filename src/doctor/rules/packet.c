#include "doctor/rules/packet.h"

#include <netinet/in.h>
#include <string.h>

static const char *const names[PACKET_KIND_COUNT] = {
    "ARP requests (who-has)", "ARP answers (is-at)", "ping requests", "ping answers", "TCP SYNs",
    "answers to TCP SYNs",    "DNS queries",         "DNS answers",   "TCP data"};

const char *packet_kind_name(enum packet_kind kind) {
    return names[kind];
}

bool packet_is_arp(const struct packet *packet) {
    return packet->kind == PACKET_ARP_REQUEST || packet->kind == PACKET_ARP_REPLY;
}

/* Whether bytes [at, at + len) touch a field that is there and holds nothing but zeros. */
static bool touches_unknown(const uint8_t *bytes, size_t field, size_t size, size_t at, size_t len) {
    static const uint8_t none[6];
    return at < field + size && field < at + len && memcmp(bytes + field, none, size) == 0;
}

bool packet_eth_is_known(const struct packet *p, size_t at, size_t len) {
    return !touches_unknown(p->eth, 0, 6, at, len) && !touches_unknown(p->eth, 6, 6, at, len);
}

bool packet_net_is_known(const struct packet *p, size_t at, size_t len) {
    if (!packet_is_arp(p))
        return !touches_unknown(p->net, 12, 4, at, len) && !touches_unknown(p->net, 16, 4, at, len);
    bool asks = p->kind == PACKET_ARP_REQUEST; /* whose target MAC is zero as it should be */
    return !touches_unknown(p->net, 8, 6, at, len) && !touches_unknown(p->net, 14, 4, at, len) &&
           (asks || !touches_unknown(p->net, 18, 6, at, len)) && !touches_unknown(p->net, 24, 4, at, len);
}

static void put16(uint8_t *at, uint16_t value) {
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void put32(uint8_t *at, uint32_t value) {
    put16(at, (uint16_t)(value >> 16));
    put16(at + 2, (uint16_t)value);
}

/* RFC 826 */
static void build_arp(const struct packet_ends *ends, struct packet *p) {
    bool request = p->kind == PACKET_ARP_REQUEST;
    put16(p->eth + 12, 0x0806);
    p->net_len = 28;
    put16(p->net, 1);
    put16(p->net + 2, 0x0800);
    p->net[4] = 6;
    p->net[5] = 4;
    put16(p->net + 6, request ? 1 : 2);
    memcpy(p->net + 8, ends->source_mac.byte, 6);
    put32(p->net + 14, ends->source);
    if (!request)
        memcpy(p->net + 18, ends->destination_mac.byte, 6);
    put32(p->net + 24, ends->destination);
    if (request) {
        memset(p->eth, 0xff, 6);
        p->pkttype = 1;
    }
}

static void build_transport(const struct packet_ends *ends, struct packet *p) {
    uint8_t *t = p->transport;
    uint16_t ephemeral = 40001, port = ends->port ? ends->port : 80;
    bool back = p->kind == PACKET_SYN_ACK || p->kind == PACKET_DNS_REPLY;
    if (p->l4proto == IPPROTO_ICMP) {
        p->transport_len = 8;
        t[0] = p->kind == PACKET_ECHO ? 8 : 0;
        return;
    }
    if (p->l4proto == IPPROTO_UDP)
        port = 53;
    put16(t, back ? port : ephemeral);
    put16(t + 2, back ? ephemeral : port);
    p->transport_len = p->l4proto == IPPROTO_UDP ? 8 : 20;
    if (p->l4proto == IPPROTO_TCP) {
        t[12] = 0x50;
        t[13] = p->kind == PACKET_SYN ? 0x02 : p->kind == PACKET_SYN_ACK ? 0x12 : 0x18;
    }
}

/* RFC 791 */
static void build_ip(const struct packet_ends *ends, struct packet *p) {
    put16(p->eth + 12, 0x0800);
    p->net_len = 20;
    p->net[0] = 0x45;
    put16(p->net + 2, 84);
    p->net[6] = 0x40;
    p->net[8] = 64;
    p->net[9] = p->l4proto;
    put32(p->net + 12, ends->source);
    put32(p->net + 16, ends->destination);
    build_transport(ends, p);
}

void packet_build(enum packet_kind kind, const struct packet_ends *ends, struct packet *ret) {
    bool back = kind == PACKET_ECHO_REPLY || kind == PACKET_SYN_ACK || kind == PACKET_DNS_REPLY;
    *ret = (struct packet){.kind = kind,
                           .source = ends->source,
                           .destination = ends->destination,
                           .ct_state = back || kind == PACKET_TCP_DATA ? 2 : 8};
    memcpy(ret->eth, ends->destination_mac.byte, 6);
    memcpy(ret->eth + 6, ends->source_mac.byte, 6);
    if (kind == PACKET_SYN || kind == PACKET_SYN_ACK || kind == PACKET_TCP_DATA)
        ret->l4proto = IPPROTO_TCP;
    else if (kind == PACKET_DNS || kind == PACKET_DNS_REPLY)
        ret->l4proto = IPPROTO_UDP;
    else
        ret->l4proto = IPPROTO_ICMP;
    if (packet_is_arp(ret)) {
        ret->l4proto = 0;
        build_arp(ends, ret);
    } else {
        build_ip(ends, ret);
    }
}

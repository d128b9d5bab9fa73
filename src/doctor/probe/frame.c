#include "doctor/probe/frame.h"

#include <netinet/in.h>
#include <string.h>

#define ETHERNET 14
#define TYPE_IP 0x0800
#define TYPE_ARP 0x0806
#define TYPE_IP6 0x86dd

const struct net_mac FRAME_BROADCAST = {{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}};

static uint16_t get16(const uint8_t *at) {
    return (uint16_t)(at[0] << 8 | at[1]);
}

static uint32_t get32(const uint8_t *at) {
    return (uint32_t)get16(at) << 16 | get16(at + 2);
}

static void put16(uint8_t *at, uint16_t value) {
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void put32(uint8_t *at, uint32_t value) {
    put16(at, (uint16_t)(value >> 16));
    put16(at + 2, (uint16_t)value);
}

uint16_t frame_checksum(const void *data, size_t len, uint32_t start) {
    const uint8_t *at = data;
    uint32_t sum = start;
    for (; len > 1; len -= 2, at += 2)
        sum += get16(at);
    if (len)
        sum += (uint32_t)*at << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

/* --- reading --- */

static void parse_arp(const uint8_t *arp, size_t len, struct probe_frame *frame) {
    if (len < 28)
        return;
    uint16_t operation = get16(arp + 6);
    frame->source_ip = get32(arp + 14);
    frame->destination_ip = get32(arp + 24);
    if (operation == 1)
        frame->kind = PROBE_FRAME_WHO_HAS;
    if (operation == 2)
        frame->kind = PROBE_FRAME_IS_AT;
}

static void parse_icmp(const uint8_t *icmp, size_t len, struct probe_frame *frame) {
    if (len < 8)
        return;
    frame->icmp_type = icmp[0];
    frame->icmp_code = icmp[1];
    frame->echo_id = get16(icmp + 4);
    frame->echo_sequence = get16(icmp + 6);
    if (icmp[0] == 8)
        frame->kind = PROBE_FRAME_ECHO;
    if (icmp[0] == 0)
        frame->kind = PROBE_FRAME_ECHO_REPLY;
    if (icmp[0] != 3 && icmp[0] != 11)
        return;
    frame->kind = PROBE_FRAME_ICMP_ERROR;
    frame->echo_id = frame->echo_sequence = 0;
    size_t inner = len >= 28 ? 8 + (icmp[8] & 15) * 4U : 0; /* the header of the packet that it is about */
    if (inner && len >= inner + 8 && icmp[17] == IPPROTO_ICMP) {
        frame->echo_id = get16(icmp + inner + 4);
        frame->echo_sequence = get16(icmp + inner + 6);
    }
    if (inner && len >= inner + 8 && icmp[17] == IPPROTO_TCP) {
        frame->source_port = get16(icmp + inner);
        frame->destination_port = get16(icmp + inner + 2);
    }
}

static void parse_tcp(const uint8_t *tcp, size_t len, struct probe_frame *frame) {
    if (len < 14)
        return;
    frame->source_port = get16(tcp);
    frame->destination_port = get16(tcp + 2);
    bool syn = tcp[13] & 2, rst = tcp[13] & 4, ack = tcp[13] & 16;
    frame->kind = rst ? PROBE_FRAME_RST : syn && ack ? PROBE_FRAME_SYN_ACK : syn ? PROBE_FRAME_SYN : PROBE_FRAME_TCP;
}

static void parse_ip(const uint8_t *ip, size_t len, struct probe_frame *frame) {
    if (len < 20 || ip[0] >> 4 != 4)
        return;
    size_t header = (ip[0] & 15) * 4U;
    frame->source_ip = get32(ip + 12);
    frame->destination_ip = get32(ip + 16);
    if (header < 20 || len < header || (get16(ip + 6) & 0x1fff)) /* a fragment that is not the first */
        return;
    if (ip[9] == IPPROTO_ICMP)
        parse_icmp(ip + header, len - header, frame);
    if (ip[9] == IPPROTO_TCP)
        parse_tcp(ip + header, len - header, frame);
}

/* No network card has such a source, or the type is none that a guest's kernel sends: a header too many or too few
 * stands in front of the frame. */
static bool is_garbled(const struct probe_frame *frame) {
    static const struct net_mac none = {{0}};
    if ((frame->source.byte[0] & 1) || memcmp(&frame->source, &none, sizeof none) == 0)
        return true;
    /* Lengths (802.3: spanning tree), VLAN, LLDP, EAPOL, PPPoE, loopback test, flow control, MPLS, PTP. */
    static const uint16_t known[] = {TYPE_IP, TYPE_ARP, TYPE_IP6, 0x8035, 0x8100, 0x88a8, 0x88cc, 0x888e,
                                     0x8863,  0x8864,   0x9000,   0x8808, 0x8847, 0x8848, 0x88f7, 0x8809};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (frame->ethertype == known[i])
            return false;
    return frame->ethertype > 1500 || frame->destination.byte[0] != 0x01;
}

void frame_parse(const uint8_t *data, size_t kept, size_t length, struct probe_frame *ret) {
    struct probe_frame frame = {.tag = TRACE_NO_TAG, .length = (uint32_t)length};
    frame.kept = (uint32_t)(kept < PROBE_SNAP ? kept : PROBE_SNAP);
    memcpy(frame.data, data, frame.kept);
    frame.kind = PROBE_FRAME_GARBLED;
    if (kept >= ETHERNET) {
        memcpy(&frame.destination, data, 6);
        memcpy(&frame.source, data + 6, 6);
        frame.ethertype = get16(data + 12);
        frame.kind = is_garbled(&frame) ? PROBE_FRAME_GARBLED : PROBE_FRAME_OTHER;
    }
    if (frame.kind == PROBE_FRAME_OTHER && frame.ethertype == TYPE_ARP)
        parse_arp(data + ETHERNET, kept - ETHERNET, &frame);
    if (frame.kind == PROBE_FRAME_OTHER && frame.ethertype == TYPE_IP)
        parse_ip(data + ETHERNET, kept - ETHERNET, &frame);
    *ret = frame;
}

/* --- building --- */

static void put_ethernet(uint8_t *buffer, const struct frame_ends *ends, uint16_t type) {
    memcpy(buffer, &ends->destination_mac, 6);
    memcpy(buffer + 6, &ends->source_mac, 6);
    put16(buffer + 12, type);
}

static size_t put_arp(uint8_t *buffer, const struct frame_ends *ends, uint16_t operation) {
    memset(buffer, 0, FRAME_ARP_PADDED);
    put_ethernet(buffer, ends, TYPE_ARP);
    uint8_t *arp = buffer + ETHERNET;
    put16(arp, 1);
    put16(arp + 2, TYPE_IP);
    arp[4] = 6;
    arp[5] = 4;
    put16(arp + 6, operation);
    memcpy(arp + 8, &ends->source_mac, 6);
    put32(arp + 14, ends->source_ip);
    if (operation == 2)
        memcpy(arp + 18, &ends->destination_mac, 6);
    put32(arp + 24, ends->destination_ip);
    return FRAME_ARP_PADDED;
}

size_t frame_who_has(uint8_t *buffer, const struct frame_ends *ends) {
    return put_arp(buffer, ends, 1);
}

size_t frame_is_at(uint8_t *buffer, const struct frame_ends *ends) {
    return put_arp(buffer, ends, 2);
}

static void put_ip(uint8_t *ip, const struct frame_ends *ends, uint8_t protocol, size_t payload) {
    memset(ip, 0, 20);
    ip[0] = 0x45;
    put16(ip + 2, (uint16_t)(20 + payload));
    put16(ip + 6, 0x4000); /* DF */
    ip[8] = 64;
    ip[9] = protocol;
    put32(ip + 12, ends->source_ip);
    put32(ip + 16, ends->destination_ip);
    put16(ip + 10, frame_checksum(ip, 20, 0));
}

static size_t put_echo(uint8_t *icmp, uint8_t type, uint16_t id, uint16_t sequence, size_t payload) {
    memset(icmp, 0, 8 + payload);
    icmp[0] = type;
    put16(icmp + 4, id);
    put16(icmp + 6, sequence);
    put16(icmp + 2, frame_checksum(icmp, 8 + payload, 0));
    return 8 + payload;
}

size_t frame_icmp_echo(uint8_t *buffer, uint16_t id, uint16_t sequence, size_t payload) {
    return put_echo(buffer, 8, id, sequence, payload);
}

size_t frame_echo(uint8_t *buffer, const struct frame_ends *ends, uint8_t type, uint16_t id, uint16_t sequence,
                  size_t payload) {
    put_ethernet(buffer, ends, TYPE_IP);
    size_t length = put_echo(buffer + ETHERNET + 20, type, id, sequence, payload);
    put_ip(buffer + ETHERNET, ends, IPPROTO_ICMP, length);
    return ETHERNET + 20 + length;
}

size_t frame_syn(uint8_t *buffer, const struct frame_ends *ends, uint16_t source_port, uint16_t destination_port,
                 uint32_t sequence) {
    put_ethernet(buffer, ends, TYPE_IP);
    put_ip(buffer + ETHERNET, ends, IPPROTO_TCP, 24);
    uint8_t *tcp = buffer + ETHERNET + 20;
    memset(tcp, 0, 24);
    put16(tcp, source_port);
    put16(tcp + 2, destination_port);
    put32(tcp + 4, sequence);
    tcp[12] = 6 << 4;
    tcp[13] = 2; /* SYN */
    put16(tcp + 14, 64240);
    tcp[20] = 2; /* option: maximum segment size */
    tcp[21] = 4;
    put16(tcp + 22, 1460);
    uint32_t pseudo = (ends->source_ip >> 16) + (ends->source_ip & 0xffff) + (ends->destination_ip >> 16) +
                      (ends->destination_ip & 0xffff) + IPPROTO_TCP + 24;
    put16(tcp + 16, frame_checksum(tcp, 24, pseudo));
    return ETHERNET + 20 + 24;
}

/* A packet under test, as bytes: what a filter rule would look at. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/net.h"

#define PACKET_NET_MAX 28

enum packet_kind {
    PACKET_ARP_REQUEST,
    PACKET_ARP_REPLY,
    PACKET_ECHO,
    PACKET_ECHO_REPLY,
    PACKET_SYN,
    PACKET_SYN_ACK,
    PACKET_DNS,
    PACKET_DNS_REPLY,
    PACKET_TCP_DATA, /* of a connection that is established, from the one who opened it */
};
#define PACKET_KIND_COUNT 9
const char *packet_kind_name(enum packet_kind kind);

struct packet {
    enum packet_kind kind;
    uint8_t eth[14];
    uint8_t net[PACKET_NET_MAX]; /* IPv4 header, or the whole ARP */
    uint8_t transport[20];
    uint8_t net_len, transport_len;
    uint8_t l4proto;
    uint8_t ct_state;             /* bits of nft's ct state: 2 established, 8 new */
    uint8_t pkttype;              /* PACKET_HOST 0, PACKET_BROADCAST 1 */
    uint32_t source, destination; /* IPv4 */
    /* Where it is looked at; empty, 0: not known there. */
    char iif[16], oif[16], ibr[16], obr[16];
    char physin[16], physout[16]; /* bridge ports, of a frame that br_netfilter lends to the host's rules */
    int32_t iif_index, oif_index;
    bool iif_hidden, oif_hidden; /* there is one, and nobody knows its name */
    bool local_out;              /* the host's own: it has a socket */
};

/* Who talks to whom. A MAC or an address that is not known is zero: whether a rule's equals it cannot be told. */
struct packet_ends {
    uint32_t source, destination;
    struct net_mac source_mac, destination_mac;
    uint16_t port; /* TCP; of the service */
};

void packet_build(enum packet_kind kind, const struct packet_ends *ends, struct packet *ret);
bool packet_is_arp(const struct packet *packet);

/* Whether all of these bytes are known. at, len: within the Ethernet header, or within what follows it. */
bool packet_eth_is_known(const struct packet *packet, size_t at, size_t len);
bool packet_net_is_known(const struct packet *packet, size_t at, size_t len);

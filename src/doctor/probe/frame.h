/* Ethernet frames: reading what was captured, building what is sent. Pure. Addresses in host byte order. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "doctor/probe/probe.h"

#define FRAME_MAX 1600      /* bytes of a frame that we build */
#define FRAME_ARP_PADDED 60 /* ours are padded to Ethernet's minimum; the kernel's own are 42 bytes */

/* Reads a frame of which `kept` bytes are there and `length` were on the wire. Fills what the bytes tell; ifindex, time,
 * direction and tag are the caller's. */
void frame_parse(const uint8_t *data, size_t kept, size_t length, struct probe_frame *ret);

struct frame_ends {
    struct net_mac source_mac, destination_mac;
    uint32_t source_ip, destination_ip;
};

/* Each writes a whole frame to buffer (FRAME_MAX bytes) and returns its length. */
size_t frame_who_has(uint8_t *buffer, const struct frame_ends *ends);
size_t frame_is_at(uint8_t *buffer, const struct frame_ends *ends);
/* `type` 8 asks, 0 answers; payload bytes are zero. */
size_t frame_echo(uint8_t *buffer, const struct frame_ends *ends, uint8_t type, uint16_t id, uint16_t sequence,
                  size_t payload);
size_t frame_syn(uint8_t *buffer, const struct frame_ends *ends, uint16_t source_port, uint16_t destination_port,
                 uint32_t sequence);

/* An ICMP echo request without IP header, for a raw socket. Return: its length. */
size_t frame_icmp_echo(uint8_t *buffer, uint16_t id, uint16_t sequence, size_t payload);

uint16_t frame_checksum(const void *data, size_t len, uint32_t start);

extern const struct net_mac FRAME_BROADCAST;

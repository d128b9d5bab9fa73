/* ICMP echo, as bytes: what is sent to a guest and whether what came is its reply.
 * Source: RFC 792 (echo), RFC 1071 (checksum), RFC 791 (the IP header that a raw socket delivers in front). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ICMP_ECHO_SIZE 16 /* bytes: header and nonce */

/* One request. A reply counts only with the same values: another program's ping has other ones, and a reply to an
 * earlier probe of ours has another nonce. */
struct icmp_echo {
    uint16_t id;
    uint16_t sequence;
    uint64_t nonce;
};

void icmp_echo_write(struct icmp_echo echo, uint8_t ret_packet[ICMP_ECHO_SIZE]);

/* Reads a packet from a raw ICMP socket, IP header first.
 * Return: true when it is an echo reply of ours; then *ret_from is who answered and *ret_echo what was asked. */
bool icmp_echo_read(const void *packet, size_t len, uint32_t *ret_from, struct icmp_echo *ret_echo);

/* Lets a raw ICMP socket deliver echo replies alone. Return: 0 or -errno. */
int icmp_only_replies(int fd);

/* Plain data about addresses. IPv4 in host byte order, so that arithmetic on it is plain. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define NET_IP_TEXT 16  /* "255.255.255.255" */
#define NET_MAC_TEXT 18 /* "02:fc:00:00:00:01" */

/* The doctor's canary, a TAP that it makes for a moment, by which the firewall knows it: its port's name, and the first
 * three bytes of the MAC that it sends with. No VM has either. */
#define NET_CANARY_PORT "mc-dr-"
#define NET_CANARY_MAC                                                                                                 \
    { 0x02, 0xfd, 0xff }

struct net_prefix {
    uint32_t address; /* as given: the host part is kept, it is the bridge's own address */
    uint8_t length;   /* bits, 0 to 32 */
};

struct net_mac {
    uint8_t byte[6];
};

/* Parses "192.168.0.1". Return: 0 or -EINVAL. */
int net_parse_ip(const char *text, uint32_t *ret_ip);

/* Parses "192.168.0.1/16". Return: 0 or -EINVAL. */
int net_parse_prefix(const char *text, struct net_prefix *ret_prefix);

/* Parses "02:fc:00:00:00:01". Return: 0 or -EINVAL. */
int net_parse_mac(const char *text, struct net_mac *ret_mac);

void net_format_ip(uint32_t ip, char ret_text[NET_IP_TEXT]);
void net_format_mac(struct net_mac mac, char ret_text[NET_MAC_TEXT]);

/* 255.255.0.0 for 16. */
uint32_t net_mask(uint8_t length);

bool net_contains(struct net_prefix prefix, uint32_t ip);

/* Whether two prefixes share an address. */
bool net_overlaps(struct net_prefix a, struct net_prefix b);

#include "model/net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"

int net_parse_ip(const char *text, uint32_t *ret_ip) {
    struct in_addr in;
    if (inet_pton(AF_INET, text, &in) != 1)
        return -EINVAL;
    *ret_ip = ntohl(in.s_addr);
    return 0;
}

int net_parse_prefix(const char *text, struct net_prefix *ret_prefix) {
    const char *slash = strchr(text, '/');
    char ip_text[NET_IP_TEXT];
    uint32_t ip;
    uint64_t length;
    if (!slash || (size_t)(slash - text) >= sizeof ip_text)
        return -EINVAL;
    memcpy(ip_text, text, (size_t)(slash - text));
    ip_text[slash - text] = '\0';
    if (net_parse_ip(ip_text, &ip) < 0 || strlen(slash + 1) > 2 || str_to_u64(slash + 1, 0, 32, &length) < 0)
        return -EINVAL;
    *ret_prefix = (struct net_prefix){.address = ip, .length = (uint8_t)length};
    return 0;
}

int net_parse_mac(const char *text, struct net_mac *ret_mac) {
    static const char digits[] = "0123456789abcdef";
    struct net_mac mac;
    if (strlen(text) != NET_MAC_TEXT - 1)
        return -EINVAL;
    for (int i = 0; i < 6; i++) {
        const char *p = text + 3 * i;
        const char *high = strchr(digits, p[0] | 0x20), *low = strchr(digits, p[1] | 0x20);
        if (!high || !low || (i < 5 && p[2] != ':'))
            return -EINVAL;
        mac.byte[i] = (uint8_t)((high - digits) << 4 | (low - digits));
    }
    *ret_mac = mac;
    return 0;
}

void net_format_ip(uint32_t ip, char ret_text[NET_IP_TEXT]) {
    snprintf(ret_text, NET_IP_TEXT, "%u.%u.%u.%u", ip >> 24 & 255, ip >> 16 & 255, ip >> 8 & 255, ip & 255);
}

void net_format_mac(struct net_mac mac, char ret_text[NET_MAC_TEXT]) {
    const uint8_t *b = mac.byte;
    snprintf(ret_text, NET_MAC_TEXT, "%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5]);
}

uint32_t net_mask(uint8_t length) {
    return length == 0 ? 0 : UINT32_MAX << (32 - length);
}

bool net_contains(struct net_prefix prefix, uint32_t ip) {
    return ((prefix.address ^ ip) & net_mask(prefix.length)) == 0;
}

bool net_overlaps(struct net_prefix a, struct net_prefix b) {
    uint32_t mask = net_mask(a.length < b.length ? a.length : b.length);
    return ((a.address ^ b.address) & mask) == 0;
}

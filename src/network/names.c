#include "network/names.h"

#include <stdio.h>

/* FNV-1a, 32 bits. Source: draft-eastlake-fnv. */
static uint32_t hash(const char *text) {
    uint32_t h = 2166136261U;
    for (; *text; text++)
        h = (h ^ (uint8_t)*text) * 16777619U;
    return h;
}

static struct net_mac mac_of(uint8_t first, const char *text) {
    uint32_t h = hash(text);
    return (struct net_mac){
        .byte = {first, 0xfc, (uint8_t)(h >> 24), (uint8_t)(h >> 16), (uint8_t)(h >> 8), (uint8_t)h}};
}

struct net_mac names_bridge_mac(const struct config_network *cfg) {
    char text[sizeof cfg->bridge + NET_IP_TEXT + 8], ip[NET_IP_TEXT];
    net_format_ip(cfg->address.address, ip);
    snprintf(text, sizeof text, "%s %s/%u", cfg->bridge, ip, cfg->address.length);
    return mac_of(0x02, text);
}

struct net_mac names_tap_mac(const char *vm_id) {
    return mac_of(0xfe, vm_id);
}

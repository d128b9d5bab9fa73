#include "network/icmp.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/icmp.h>
#include <netinet/ip.h>
#include <string.h>
#include <sys/socket.h>

static uint16_t checksum(const uint8_t *data, size_t len) {
    uint32_t sum = 0;
    for (size_t i = 0; i + 1 < len; i += 2)
        sum += (uint32_t)data[i] << 8 | data[i + 1];
    if (len % 2)
        sum += (uint32_t)data[len - 1] << 8;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

void icmp_echo_write(struct icmp_echo echo, uint8_t ret_packet[ICMP_ECHO_SIZE]) {
    struct icmphdr header = {.type = ICMP_ECHO};
    _Static_assert(sizeof header + sizeof echo.nonce == ICMP_ECHO_SIZE, "layout");
    header.un.echo.id = htons(echo.id);
    header.un.echo.sequence = htons(echo.sequence);
    memcpy(ret_packet, &header, sizeof header);
    memcpy(ret_packet + sizeof header, &echo.nonce, sizeof echo.nonce);
    header.checksum = htons(checksum(ret_packet, ICMP_ECHO_SIZE));
    memcpy(ret_packet, &header, sizeof header);
}

bool icmp_echo_read(const void *packet, size_t len, uint32_t *ret_from, struct icmp_echo *ret_echo) {
    struct iphdr ip;
    struct icmphdr header;
    if (len < sizeof ip)
        return false;
    memcpy(&ip, packet, sizeof ip);
    size_t ip_len = (size_t)ip.ihl * 4;
    if (ip.version != 4 || ip_len < sizeof ip || ip.protocol != IPPROTO_ICMP || len < ip_len + ICMP_ECHO_SIZE)
        return false;
    const uint8_t *icmp = (const uint8_t *)packet + ip_len;
    memcpy(&header, icmp, sizeof header);
    /* Over a whole packet with its checksum in place the sum is 0. */
    if (header.type != ICMP_ECHOREPLY || header.code != 0 || checksum(icmp, len - ip_len) != 0)
        return false;
    ret_echo->id = ntohs(header.un.echo.id);
    ret_echo->sequence = ntohs(header.un.echo.sequence);
    memcpy(&ret_echo->nonce, icmp + sizeof header, sizeof ret_echo->nonce);
    *ret_from = ntohl(ip.saddr);
    return true;
}

int icmp_only_replies(int fd) {
    struct icmp_filter filter = {.data = ~(1U << ICMP_ECHOREPLY)};
    return setsockopt(fd, SOL_RAW, ICMP_FILTER, &filter, sizeof filter) < 0 ? -errno : 0;
}

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "doctor/collect/collect.h"
#include "netlink/netns.h"

static const char *const global_keys[] = {
    "net/ipv4/ip_forward",
    "net/ipv4/icmp_echo_ignore_all",
    "net/ipv4/ip_nonlocal_bind",
    "net/ipv4/tcp_rfc1337",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/bridge/bridge-nf-call-arptables",
    "net/bridge/bridge-nf-filter-vlan-tagged",
    "net/ipv4/neigh/default/gc_thresh3",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_count",
};

static const char *const conf_keys[] = {
    "rp_filter",
    "arp_ignore",
    "arp_filter",
    "arp_announce",
    "arp_accept",
    "forwarding",
    "accept_local",
    "proxy_arp",
    "route_localnet",
    "log_martians",
    "disable_policy",
    "disable_xfrm",
    "drop_unicast_in_l2_multicast",
    "src_valid_mark",
    "arp_notify",
    "drop_gratuitous_arp",
    "send_redirects",
    "proxy_arp_pvlan",
};

static const char *const neigh_keys[] = {"mcast_solicit",   "ucast_solicit",    "app_solicit",
                                         "retrans_time_ms", "unres_qlen_bytes", "delay_first_probe_time"};

#define COUNT(a) (sizeof(a) / sizeof *(a))

static void read_key(struct snapshot *s, const char *key) {
    char path[160], value[SNAP_TEXT];
    snprintf(path, sizeof path, "/proc/sys/%s", key);
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, value, sizeof value - 1);
    if (n < 0)
        return;
    while (n > 0 && value[n - 1] == '\n')
        n--;
    value[n] = '\0';
    struct snap_sysctl *sysctl = SNAP_PUSH(s, sysctls, SNAP_ROWS_MAX);
    if (!sysctl)
        return;
    str_copy(sysctl->key, sizeof sysctl->key, key);
    str_copy(sysctl->value, sizeof sysctl->value, value);
}

static void read_link(struct snapshot *s, const char *name) {
    char key[96];
    if (strchr(name, '/'))
        return;
    for (size_t i = 0; i < COUNT(conf_keys); i++) {
        snprintf(key, sizeof key, "net/ipv4/conf/%s/%s", name, conf_keys[i]);
        read_key(s, key);
    }
    for (size_t i = 0; i < COUNT(neigh_keys); i++) {
        snprintf(key, sizeof key, "net/ipv4/neigh/%s/%s", name, neigh_keys[i]);
        read_key(s, key);
    }
}

/* Of the bridge, of devices with an address (the uplink), and of all. */
void collect_sysctls(struct snapshot *s, int nsfd) {
    _cleanup_netns_leave_ struct netns_scope scope = NETNS_SCOPE_NONE;
    int r = netns_enter(nsfd, &scope);
    if (r < 0) {
        snapshot_gap(s, "sysctls", r, "the namespace cannot be entered");
        return;
    }
    for (size_t i = 0; i < COUNT(global_keys); i++)
        read_key(s, global_keys[i]);
    read_link(s, "all");
    read_link(s, "default");
    for (uint32_t i = 0; i < s->links_count; i++) {
        const struct snap_link *link = &s->links[i];
        bool wanted = strcmp(link->kind, "bridge") == 0;
        for (uint32_t a = 0; !wanted && a < s->addrs_count; a++)
            wanted = s->addrs[a].link == link->index;
        if (wanted)
            read_link(s, link->name);
    }
}

/* --- tables that can be full --- */

/* Sum of a column of /proc/net/stat/NAME, one line a CPU, hexadecimal. */
static uint64_t stat_sum(const char *name, const char *column) {
    char path[64], line[1024];
    uint64_t sum = 0;
    int at = -1;
    snprintf(path, sizeof path, "/proc/thread-self/net/stat/%s", name);
    _cleanup_fclose_ FILE *f = fopen(path, "re");
    for (int row = 0; f && fgets(line, sizeof line, f); row++) {
        char *save = NULL;
        int i = 0;
        for (char *word = strtok_r(line, " \t\n", &save); word; word = strtok_r(NULL, " \t\n", &save), i++) {
            if (row == 0 && strcmp(word, column) == 0)
                at = i;
            else if (row > 0 && i == at)
                sum += strtoull(word, NULL, 16);
        }
    }
    return sum;
}

static void add_fill(struct snapshot *s, const char *name, uint64_t used, uint64_t max, uint64_t full) {
    struct snap_table_fill *fill = SNAP_PUSH(s, fills, 16);
    if (!fill)
        return;
    str_copy(fill->name, sizeof fill->name, name);
    fill->used = used;
    fill->max = max;
    fill->full_events = full;
}

static void note_legacy(struct snapshot *s, const char *file) {
    char path[64], line[64];
    snprintf(path, sizeof path, "/proc/thread-self/net/%s", file);
    _cleanup_fclose_ FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = '\0';
        size_t len = strlen(s->host.legacy_tables);
        snprintf(s->host.legacy_tables + len, sizeof s->host.legacy_tables - len, "%s%.12s %.12s", len ? ", " : "",
                 file, line);
        s->host.legacy_xtables = true;
    }
}

void collect_tables(struct snapshot *s, int nsfd) {
    _cleanup_netns_leave_ struct netns_scope scope = NETNS_SCOPE_NONE;
    if (netns_enter(nsfd, &scope) < 0)
        return;
    int max = snap_sysctl_int(s, "net/netfilter/nf_conntrack_max", 0);
    int used = snap_sysctl_int(s, "net/netfilter/nf_conntrack_count", 0);
    if (max > 0)
        add_fill(s, "conntrack", (uint64_t)used, (uint64_t)max, stat_sum("nf_conntrack", "early_drop"));
    uint64_t entries = 0;
    for (uint32_t i = 0; i < s->neighs_count; i++)
        entries += !(s->neighs[i].state & 0xc0); /* permanent and noarp ones are not counted by the kernel */
    int limit = snap_sysctl_int(s, "net/ipv4/neigh/default/gc_thresh3", 0);
    if (limit > 0)
        add_fill(s, "neigh", entries, (uint64_t)limit, stat_sum("arp_cache", "table_fulls"));
    note_legacy(s, "ip_tables_names");
    note_legacy(s, "arp_tables_names");
}

#include "model/config.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"

enum kind {
    KIND_TEXT,   /* any text that fits, without control bytes */
    KIND_NAME,   /* a network interface's name, or empty */
    KIND_NETNS,  /* a network namespace's name, or empty */
    KIND_PATH,   /* an absolute path, or empty */
    KIND_PREFIX, /* 192.168.0.1/16 */
    KIND_IP,     /* 192.168.0.1, or empty */
    KIND_BOOL,   /* yes, no */
    KIND_U32,    /* a number within min and max */
    KIND_U16,
    KIND_SECONDS, /* written in seconds, kept in milliseconds */
    KIND_CHOICE,  /* one of the words in `words` */
};

struct key {
    const char *section, *name, *fallback;
    enum kind kind;
    size_t offset, size;
    uint32_t min, max;
    const char *words; /* "auto|qemu" */
};

#define AT(member) offsetof(struct config, member), sizeof((struct config *)0)->member

static const struct key keys[] = {
    {"network", "namespace", "", KIND_NETNS, AT(network.namespace)},
    {"network", "bridge", "br0", KIND_NAME, AT(network.bridge)},
    {"network", "address", "192.168.0.1/16", KIND_PREFIX, AT(network.address)},
    {"network", "uplink", "", KIND_NAME, AT(network.uplink)},
    {"network", "dns", "", KIND_IP, AT(network.dns)},
    {"network", "masquerade", "yes", KIND_BOOL, AT(network.masquerade)},
    {"network", "vm_to_vm", "no", KIND_BOOL, AT(network.vm_to_vm)},
    {"network", "allow", "", KIND_TEXT, AT(network.allow)},
    {"network", "host_ports", "", KIND_TEXT, AT(network.host_ports)},
    {"network", "packets_per_second", "50000", KIND_U32, AT(network.packets_per_second), 0, 10000000},
    {"network", "megabits_per_second", "1000", KIND_U32, AT(network.megabits_per_second), 0, 100000},
    {"network", "arp_per_second", "50", KIND_U32, AT(network.arp_per_second), 0, 1000000},
    {"network", "connections_per_second", "200", KIND_U32, AT(network.connections_per_second), 0, 1000000},
    {"network", "connections", "4096", KIND_U32, AT(network.connections), 0, 1000000},
    {"network", "address_rest", "60", KIND_SECONDS, AT(network.address_rest_ms), 0, 86400000},

    {"vm", "vmm", "auto", KIND_CHOICE, AT(vm.vmm), .words = "auto|qemu|firecracker"},
    {"vm", "accel", "auto", KIND_CHOICE, AT(vm.accel), .words = "auto|kvm|tcg"},
    {"vm", "qemu_binary", "/usr/bin/qemu-system-x86_64", KIND_PATH, AT(vm.qemu_binary)},
    {"vm", "firecracker_binary", "", KIND_PATH, AT(vm.firecracker_binary)},
    {"vm", "jailer", "auto", KIND_CHOICE, AT(vm.jailer), .words = "auto|yes|no"},
    {"vm", "jailer_binary", "", KIND_PATH, AT(vm.jailer_binary)},
    {"vm", "mctl_binary", "", KIND_PATH, AT(vm.mctl_binary)},
    {"vm", "quota_per_user", "4", KIND_U32, AT(vm.quota_per_user), 1, 1000},
    {"vm", "quota_host", "1000", KIND_U32, AT(vm.quota_host), 1, 100000},
    {"vm", "memory_percent", "100", KIND_U32, AT(vm.memory_percent), 1, 100000},
    {"vm", "cgroup", "", KIND_PATH, AT(vm.cgroup)},
    {"vm", "evidence_days", "30", KIND_U32, AT(vm.evidence_days), 1, 36500},
    {"vm", "evidence_megabytes", "2048", KIND_U32, AT(vm.evidence_mib), 1, 10000000},
    {"vm", "uid_base", "1879048192", KIND_U32, AT(vm.uid_base), 1000, 4000000000},
    {"vm", "probe_interval", "0.5", KIND_SECONDS, AT(vm.probe_interval_ms), 50, 60000},
    {"vm", "probe_timeout", "3", KIND_SECONDS, AT(vm.probe_timeout_ms), 100, 60000},
    {"vm", "reach_interval", "10", KIND_SECONDS, AT(vm.reach_interval_ms), 100, 3600000},
    {"vm", "stop_timeout", "5", KIND_SECONDS, AT(vm.stop_timeout_ms), 0, 600000},
    {"vm", "hibernate_timeout", "300", KIND_SECONDS, AT(vm.hibernate_timeout_ms), 1000, 3600000},
    {"vm", "idle_yields_after", "900", KIND_SECONDS, AT(vm.idle_yields_ms), 0, 2592000000},
    {"vm", "cli_memory", "512", KIND_U32, AT(vm.type[VM_TYPE_CLI].memory_mib), 128, 1048576},
    {"vm", "cli_vcpus", "1", KIND_U32, AT(vm.type[VM_TYPE_CLI].vcpus), 1, 32},
    {"vm", "cli_disk", "0", KIND_U32, AT(vm.type[VM_TYPE_CLI].disk_mib), 0, 16777216},
    {"vm", "cli_image", "", KIND_PATH, AT(vm.type[VM_TYPE_CLI].image_dir)},
    {"vm", "cli_boot_timeout", "120", KIND_SECONDS, AT(vm.type[VM_TYPE_CLI].boot_timeout_ms), 1000, 3600000},
    {"vm", "cli_port", "0", KIND_U16, AT(vm.type[VM_TYPE_CLI].port), 0, 65535},
    {"vm", "cli_idle_after", "0", KIND_SECONDS, AT(vm.type[VM_TYPE_CLI].idle_after_ms), 0, 2592000000},
    {"vm", "browser_memory", "1024", KIND_U32, AT(vm.type[VM_TYPE_BROWSER].memory_mib), 128, 1048576},
    {"vm", "browser_vcpus", "2", KIND_U32, AT(vm.type[VM_TYPE_BROWSER].vcpus), 1, 32},
    {"vm", "browser_disk", "0", KIND_U32, AT(vm.type[VM_TYPE_BROWSER].disk_mib), 0, 16777216},
    {"vm", "browser_image", "", KIND_PATH, AT(vm.type[VM_TYPE_BROWSER].image_dir)},
    {"vm", "browser_boot_timeout", "180", KIND_SECONDS, AT(vm.type[VM_TYPE_BROWSER].boot_timeout_ms), 1000, 3600000},
    {"vm", "browser_port", "6080", KIND_U16, AT(vm.type[VM_TYPE_BROWSER].port), 1, 65535},
    {"vm", "browser_idle_after", "0", KIND_SECONDS, AT(vm.type[VM_TYPE_BROWSER].idle_after_ms), 0, 2592000000},

    {"warm", "templates", "yes", KIND_BOOL, AT(warm.templates)},
    {"warm", "quiet", "30", KIND_SECONDS, AT(warm.quiet_ms), 0, 86400000},
    {"warm", "pool_cli", "0", KIND_U32, AT(warm.pool[VM_TYPE_CLI]), 0, 100},
    {"warm", "pool_browser", "0", KIND_U32, AT(warm.pool[VM_TYPE_BROWSER]), 0, 100},

    {"image", "directory", "", KIND_PATH, AT(image_dir)},

    {"api", "listen", "127.0.0.1:4000", KIND_TEXT, AT(api.listen)},
    {"api", "socket", "/run/master-controller/api.sock", KIND_PATH, AT(api.socket)},
    {"api", "socket_group", "", KIND_TEXT, AT(api.socket_group)},
    {"api", "admin_token_file", "/etc/master-controller/admin.token", KIND_PATH, AT(api.admin_token_file)},
    {"api", "public_url", "", KIND_TEXT, AT(api.public_url)},
    {"api", "web_directory", "/usr/share/master-controller/web", KIND_PATH, AT(api.web_dir)},
    {"api", "requests_per_second", "50", KIND_U32, AT(api.requests_per_second), 1, 1000000},
    {"api", "header_timeout", "10", KIND_SECONDS, AT(api.header_timeout_ms), 100, 600000},
    {"api", "body_timeout", "30", KIND_SECONDS, AT(api.body_timeout_ms), 100, 600000},
    {"api", "body_limit", "65536", KIND_U32, AT(api.body_bytes), 1024, 16777216},
    {"api", "connections", "1024", KIND_U32, AT(api.connections), 8, 60000},
    {"api", "connections_per_address", "64", KIND_U32, AT(api.connections_per_address), 1, 60000},

    {"session", "providers", "/etc/master-controller/providers.d", KIND_PATH, AT(session.providers)},
    {"session", "timeout", "300", KIND_SECONDS, AT(session.timeout_ms), 0, 86400000},
    {"session", "abandoned_after", "120", KIND_SECONDS, AT(session.abandoned_ms), 0, 86400000},
    {"session", "vault_key_file", "/etc/master-controller/vault.key", KIND_PATH, AT(session.vault_key_file)},
    {"session", "ticket_lifetime", "60", KIND_SECONDS, AT(session.ticket_ms), 1000, 3600000},
    {"session", "cookie_lifetime", "43200", KIND_SECONDS, AT(session.cookie_ms), 10000, 2592000000},
    {"session", "desktops", "32", KIND_U32, AT(session.desktops), 0, 100000},

    {"store", "file", "", KIND_PATH, AT(store_file)},
    {"store", "keep_days", "90", KIND_U32, AT(store_days), 1, 36500},
};

#define KEY_COUNT (sizeof keys / sizeof *keys)

static bool is_one_of(const char *value, const char *words) {
    size_t len = strchr(value, '|') ? 0 : strlen(value);
    for (const char *p = words; len > 0 && (p = strstr(p, value)); p += len)
        if ((p == words || p[-1] == '|') && (p[len] == '\0' || p[len] == '|'))
            return true;
    return false;
}

static bool is_interface_name(const char *v) {
    if (strlen(v) >= 16 || strcmp(v, ".") == 0 || strcmp(v, "..") == 0)
        return false;
    for (; *v; v++)
        if (!isgraph((unsigned char)*v) || strchr("/:%\"'\\", *v))
            return false;
    return true;
}

static bool is_netns_name(const char *v) {
    if (*v == '.' || strlen(v) > 63)
        return false;
    for (; *v; v++)
        if (!isalnum((unsigned char)*v) && !strchr("._-", *v))
            return false;
    return true;
}

static bool is_plain_text(const char *v) {
    for (const char *p = v; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            return false;
    return str_is_utf8(v, strlen(v));
}

/* "0.5" to 500. Return: 0 or -EINVAL. */
static int parse_seconds(const char *v, uint32_t *ret_ms) {
    const char *dot = strchr(v, '.');
    char whole[12];
    uint64_t seconds, fraction = 0;
    size_t whole_len = dot ? (size_t)(dot - v) : strlen(v);
    if (whole_len >= sizeof whole)
        return -EINVAL;
    memcpy(whole, v, whole_len);
    whole[whole_len] = '\0';
    if (str_to_u64(whole, 0, 4000000, &seconds) < 0)
        return -EINVAL;
    if (dot) {
        char digits[4] = "000";
        size_t n = strlen(dot + 1);
        if (n < 1 || n > 3)
            return -EINVAL;
        memcpy(digits, dot + 1, n);
        if (str_to_u64(digits, 0, 999, &fraction) < 0)
            return -EINVAL;
    }
    *ret_ms = (uint32_t)(seconds * 1000 + fraction);
    return 0;
}

static void set_text(void *at, size_t size, const char *value) {
    str_copy(at, size, value);
}

/* Writes the value. Return: NULL, or what would be right. */
static const char *set_value(const struct key *key, void *at, const char *value) {
    uint64_t number;
    uint32_t ms, ip;
    struct net_prefix prefix;
    if (key->kind != KIND_U32 && key->kind != KIND_U16 && key->kind != KIND_SECONDS && key->kind != KIND_BOOL &&
        key->kind != KIND_PREFIX && strlen(value) >= key->size)
        return "a shorter value";
    switch (key->kind) {
    case KIND_TEXT:
        if (!is_plain_text(value))
            return "text without control characters";
        break;
    case KIND_NAME:
        if (!is_interface_name(value))
            return "an interface name of at most 15 bytes without / : or spaces";
        break;
    case KIND_NETNS:
        if (!is_netns_name(value))
            return "a name of A-Z a-z 0-9 . _ -, at most 63, not beginning with a dot";
        break;
    case KIND_PATH:
        if (*value && (*value != '/' || !is_plain_text(value)))
            return "an absolute path";
        break;
    case KIND_PREFIX:
        if (net_parse_prefix(value, &prefix) < 0)
            return "an IPv4 address and its prefix length, such as 192.168.0.1/16";
        memcpy(at, &prefix, sizeof prefix);
        return NULL;
    case KIND_IP:
        if (*value && net_parse_ip(value, &ip) < 0)
            return "an IPv4 address, such as 192.168.0.1, or nothing";
        break;
    case KIND_CHOICE:
        if (!is_one_of(value, key->words))
            return key->words;
        break;
    case KIND_BOOL:
        if (!is_one_of(value, "yes|no|true|false|on|off"))
            return "yes or no";
        *(bool *)at = is_one_of(value, "yes|true|on");
        return NULL;
    case KIND_U32:
    case KIND_U16:
        if (str_to_u64(value, key->min, key->max, &number) < 0)
            return "a whole number";
        if (key->kind == KIND_U32)
            *(uint32_t *)at = (uint32_t)number;
        else
            *(uint16_t *)at = (uint16_t)number;
        return NULL;
    case KIND_SECONDS:
        if (parse_seconds(value, &ms) < 0 || ms < key->min || ms > key->max)
            return "a number of seconds, such as 0.5 or 30";
        *(uint32_t *)at = ms;
        return NULL;
    }
    set_text(at, key->size, value);
    return NULL;
}

void config_defaults(struct config *ret_config) {
    struct config config = {0};
    for (size_t i = 0; i < KEY_COUNT; i++)
        /* A default that is not valid is a mistake in the table above, which the unit test calls. */
        if (set_value(&keys[i], (char *)&config + keys[i].offset, keys[i].fallback))
            abort();
    *ret_config = config;
}

/* Levenshtein distance, for "did you mean". Names longer than the rows are only compared that far. */
static size_t distance(const char *a, const char *b) {
    size_t row[40];
    size_t len = strnlen(b, 39);
    for (size_t j = 0; j <= len; j++)
        row[j] = j;
    for (size_t i = 1; *a; a++, i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= len; j++) {
            size_t best = diagonal + (*a != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[len];
}

static int unknown_key(const char *section, const char *name, struct err *err) {
    const struct key *nearest = NULL;
    bool section_exists = false;
    size_t nearest_distance = 4;
    for (size_t i = 0; i < KEY_COUNT; i++) {
        if (strcmp(keys[i].section, section) != 0)
            continue;
        section_exists = true;
        size_t d = distance(name, keys[i].name);
        if (d < nearest_distance) {
            nearest = &keys[i];
            nearest_distance = d;
        }
    }
    char shown[80];
    str_escape(section_exists ? name : section, strnlen(section_exists ? name : section, 60), shown, sizeof shown);
    if (!section_exists) {
        err_set(err, EINVAL, "config.unknown-section", "there is no section [%s]", shown);
        return err_hint(err, "the sections are [network] [vm] [warm] [image] [api] [session] [store]");
    }
    err_set(err, EINVAL, "config.unknown-key", "section [%s] has no key \"%s\"", section, shown);
    if (nearest)
        return err_hint(err, "did you mean \"%s\"?", nearest->name);
    return -EINVAL;
}

int config_set(struct config *config, const char *section, const char *name, const char *value, struct err *err) {
    for (size_t i = 0; i < KEY_COUNT; i++) {
        const struct key *key = &keys[i];
        if (strcmp(key->section, section) != 0 || strcmp(key->name, name) != 0)
            continue;
        const char *right = set_value(key, (char *)config + key->offset, value);
        if (!right)
            return 0;
        char shown[120];
        str_escape(value, strnlen(value, 80), shown, sizeof shown);
        err_set(err, EINVAL, "config.bad-value", "[%s] %s = \"%s\" is not valid", section, name, shown);
        double unit = key->kind == KIND_SECONDS ? 1000 : 1;
        if (key->max)
            return err_hint(err, "right would be %s, from %.9g to %.9g", right, key->min / unit, key->max / unit);
        return err_hint(err, "right would be %s", right);
    }
    return unknown_key(section, name, err);
}

/* "127.0.0.1:4000" or "[::1]:4000". */
static bool is_listen_address(const char *text) {
    char host[64];
    uint64_t port;
    struct in6_addr address;
    const char *colon = strrchr(text, ':');
    if (!colon || str_to_u64(colon + 1, 0, 65535, &port) < 0 || (size_t)(colon - text) >= sizeof host)
        return false;
    memcpy(host, text, (size_t)(colon - text));
    host[colon - text] = '\0';
    size_t len = strlen(host);
    if (len > 2 && host[0] == '[' && host[len - 1] == ']') {
        host[len - 1] = '\0';
        return inet_pton(AF_INET6, host + 1, &address) == 1;
    }
    return inet_pton(AF_INET, host, &address) == 1;
}

/* A scheme and a host, perhaps a port: what a browser sends as Origin. */
static bool is_origin(const char *url) {
    const char *host = str_starts(url, "https://") ? url + 8 : str_starts(url, "http://") ? url + 7 : NULL;
    return host && *host && host[strcspn(host, "/?#@ ")] == '\0';
}

static int check_addresses(const struct config_api *api, struct err *err) {
    if (!is_listen_address(api->listen)) {
        err_set(err, EINVAL, "config.bad-value", "[api] listen = \"%s\" is not an address and a port", api->listen);
        return err_hint(err, "right would be 127.0.0.1:4000 or [::1]:4000");
    }
    if (*api->public_url && !is_origin(api->public_url)) {
        err_set(err, EINVAL, "config.bad-value", "[api] public_url = \"%s\" is not an origin", api->public_url);
        return err_hint(err, "right would be https://vms.example.org, without a path or a slash at its end");
    }
    bool everywhere = str_starts(api->listen, "0.0.0.0:") || str_starts(api->listen, "[::]:");
    if (everywhere && !*api->public_url) {
        err_set(err, EINVAL, "config.bad-value", "[api] listen = %s is every address, but public_url is empty",
                api->listen);
        return err_hint(err, "set public_url to what users' browsers call this daemon: links and Origins need it");
    }
    return 0;
}

/* Copies the next word of a list. Return: 1, 0 at the end, -EINVAL when it does not fit. */
static int next_word(const char **at, char *word, size_t size) {
    const char *begin = *at + strspn(*at, " ,");
    size_t len = strcspn(begin, " ,");
    if (len == 0)
        return 0;
    if (len >= size)
        return -EINVAL;
    memcpy(word, begin, len);
    word[len] = '\0';
    *at = begin + len;
    return 1;
}

int config_next_prefix(const char **at, struct net_prefix *ret_prefix) {
    struct net_prefix prefix = {.length = 32};
    const char *next = *at;
    char word[NET_IP_TEXT + 3];
    int r = next_word(&next, word, sizeof word);
    if (r <= 0)
        return r;
    if (strchr(word, '/') ? net_parse_prefix(word, &prefix) < 0 : net_parse_ip(word, &prefix.address) < 0)
        return -EINVAL;
    prefix.address &= net_mask(prefix.length);
    *ret_prefix = prefix;
    *at = next;
    return 1;
}

int config_next_port(const char **at, struct config_port *ret_port) {
    const char *next = *at;
    char word[16];
    uint64_t port;
    int r = next_word(&next, word, sizeof word);
    if (r <= 0)
        return r;
    bool udp = str_starts(word, "udp/");
    if ((!udp && !str_starts(word, "tcp/")) || str_to_u64(word + 4, 1, 65535, &port) < 0)
        return -EINVAL;
    *ret_port = (struct config_port){.udp = udp, .port = (uint16_t)port};
    *at = next;
    return 1;
}

static int check_lists(const struct config_network *network, struct err *err) {
    const char *allow = network->allow, *ports = network->host_ports;
    struct net_prefix prefix;
    struct config_port port;
    int r;
    while ((r = config_next_prefix(&allow, &prefix)) > 0) {
        if (prefix.length == 0)
            return err_set(err, EINVAL, "config.bad-value",
                           "[network] allow = %s: a prefix length of 0 would allow everything", network->allow);
    }
    if (r < 0) {
        err_set(err, EINVAL, "config.bad-value", "[network] allow = %s is not a list of networks", network->allow);
        return err_hint(err, "right would be 10.1.2.0/24, 192.168.7.9");
    }
    while ((r = config_next_port(&ports, &port)) > 0)
        ;
    if (r < 0) {
        err_set(err, EINVAL, "config.bad-value", "[network] host_ports = %s is not a list of ports",
                network->host_ports);
        return err_hint(err, "right would be udp/53, tcp/8080");
    }
    return 0;
}

int config_check(const struct config *config, struct err *err) {
    struct net_prefix p = config->network.address;
    char text[NET_IP_TEXT];
    net_format_ip(p.address, text);
    if (p.length < 8 || p.length > 29) {
        err_set(err, EINVAL, "config.bad-value", "[network] address %s/%u: the prefix length is out of range", text,
                p.length);
        return err_hint(err, "a pool of VMs needs a prefix from /8 to /29");
    }
    uint32_t host = p.address & ~net_mask(p.length);
    if (host == 0 || host == ~net_mask(p.length)) {
        err_set(err, EINVAL, "config.bad-value", "[network] address %s/%u is the %s address of its prefix", text,
                p.length, host == 0 ? "network" : "broadcast");
        return err_hint(err, "give the bridge a host address, such as the first one after the network's");
    }
    if ((p.address >> 24) == 127 || (p.address >> 24) == 0 || (p.address >> 28) >= 14) {
        err_set(err, EINVAL, "config.bad-value", "[network] address %s/%u is not a unicast address", text, p.length);
        return err_hint(err, "use a private prefix such as 192.168.0.1/16 or 10.20.0.1/16");
    }
    if (!*config->network.bridge)
        return err_set(err, EINVAL, "config.bad-value", "[network] bridge is empty: it needs a name, such as br0");
    if (!*config->session.vault_key_file)
        return err_set(err, EINVAL, "config.bad-value", "[session] vault_key_file may not be empty");
    if (!*config->api.socket || !*config->api.admin_token_file || !*config->api.web_dir || !*config->vm.qemu_binary)
        return err_set(err, EINVAL, "config.bad-value",
                       "[api] socket, admin_token_file, web_directory and [vm] qemu_binary may not be empty");
    int r = check_addresses(&config->api, err);
    if (r < 0)
        return r;
    r = check_lists(&config->network, err);
    if (r < 0)
        return r;
    if (*config->network.uplink && strcmp(config->network.uplink, config->network.bridge) == 0)
        return err_set(err, EINVAL, "config.bad-value", "[network] uplink and bridge are both \"%s\"",
                       config->network.bridge);
    return 0;
}

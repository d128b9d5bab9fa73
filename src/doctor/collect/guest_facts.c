/* An agent's answers as rows. They come from a hostile guest: every type is checked, every list and text is cut, what is
 * no address is left out, and nothing here can fail. */
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "doctor/collect/guest.h"

/* --- members --- */

static const char *text(const json_t *object, const char *name) {
    const char *value = json_string_value(json_object_get(object, name));
    return value ? value : "";
}

static int64_t number(const json_t *object, const char *name, int64_t otherwise) {
    const json_t *value = json_object_get(object, name);
    return json_is_integer(value) ? json_integer_value(value) : otherwise;
}

static uint64_t count_of(const json_t *object, const char *name) {
    int64_t value = number(object, name, 0);
    return value > 0 ? (uint64_t)value : 0;
}

static uint32_t u32(const json_t *object, const char *name) {
    uint64_t value = count_of(object, name);
    return value <= UINT32_MAX ? (uint32_t)value : UINT32_MAX;
}

static int32_t small(const json_t *object, const char *name) {
    int64_t value = number(object, name, -1);
    return value >= 0 && value <= INT32_MAX ? (int32_t)value : -1;
}

static bool flag(const json_t *object, const char *name) {
    return json_is_true(json_object_get(object, name));
}

/* An IPv4 address; "" is none and leaves 0. Return: false for anything else. */
static bool ip_in(const json_t *object, const char *name, uint32_t *ret) {
    const char *value = text(object, name);
    *ret = 0;
    return !*value || net_parse_ip(value, ret) == 0;
}

/* --- what nobody here knows --- */

static void keep_scalar(struct snapshot *s, struct snap_guest *guest, const char *name, const json_t *value) {
    struct snap_guest_fact *fact =
        guest->facts.count < GUEST_FACTS_MAX ? SNAP_PUSH(s, guest_facts, SNAP_GUEST_ROWS_MAX) : NULL;
    if (!fact)
        return;
    guest->facts.count++;
    str_copy(fact->name, sizeof fact->name, name);
    if (json_is_string(value))
        str_copy(fact->value, sizeof fact->value, json_string_value(value));
    else if (json_is_integer(value))
        snprintf(fact->value, sizeof fact->value, "%lld", (long long)json_integer_value(value));
    else if (json_is_real(value))
        snprintf(fact->value, sizeof fact->value, "%g", json_real_value(value));
    else
        str_copy(fact->value, sizeof fact->value,
                 json_is_true(value)    ? "true"
                 : json_is_false(value) ? "false"
                                        : "null");
}

static void keep(struct snapshot *s, struct snap_guest *guest, const char *name, const json_t *value, int depth) {
    char longer[96];
    const char *key;
    json_t *member;
    size_t i;
    if (depth == 0 || guest->facts.count == GUEST_FACTS_MAX)
        return;
    if (json_is_object(value)) {
        json_object_foreach((json_t *)value, key, member) {
            snprintf(longer, sizeof longer, "%s.%s", name, key);
            keep(s, guest, longer, member, depth - 1);
        }
    } else if (json_is_array(value)) {
        json_array_foreach(value, i, member) {
            snprintf(longer, sizeof longer, "%s[%zu]", name, i);
            keep(s, guest, longer, member, depth - 1);
        }
    } else {
        keep_scalar(s, guest, name, value);
    }
}

static bool is_one_of(const char *name, const char *const *names) {
    for (; *names; names++)
        if (strcmp(name, *names) == 0)
            return true;
    return false;
}

/* The members of an object that are not known here. */
static void keep_others(struct snapshot *s, struct snap_guest *guest, const char *name, const json_t *object,
                        const char *const *known) {
    char longer[96];
    const char *key;
    json_t *member;
    json_object_foreach((json_t *)object, key, member) {
        if (is_one_of(key, known))
            continue;
        snprintf(longer, sizeof longer, "%s.%s", name, key);
        keep(s, guest, longer, member, 4);
    }
}

/* --- lists --- */

typedef bool take_row(struct snapshot *s, const json_t *row);

/* Takes the rows of a list, up to max. What does not fit, here or in the guest, makes the guest's facts incomplete. */
static void take_list(struct snapshot *s, struct snap_guest *guest, const json_t *facts, const char *name,
                      take_row *take, const char *const *known, uint32_t max, struct snap_range *range) {
    const json_t *list = json_object_get(facts, name), *row;
    char more[48], error[48], prefix[64];
    size_t i;
    snprintf(more, sizeof more, "%s_more", name);
    snprintf(error, sizeof error, "%s_error", name);
    if (!json_is_array(list) || number(facts, more, 0) != 0 || json_object_get(facts, error))
        guest->complete = false;
    json_array_foreach(list, i, row) {
        if (range->count >= max) {
            guest->complete = false;
            return;
        }
        if (!json_is_object(row) || !take(s, row))
            continue;
        range->count++;
        snprintf(prefix, sizeof prefix, "network.%s[%zu]", name, i);
        keep_others(s, guest, prefix, row, known);
    }
}

static bool take_link(struct snapshot *s, const json_t *row) {
    struct snap_guest_link *link = SNAP_PUSH(s, guest_links, SNAP_GUEST_ROWS_MAX);
    const json_t *counters = json_object_get(row, "counters");
    if (!link)
        return false;
    str_copy(link->name, sizeof link->name, text(row, "name"));
    str_copy(link->kind, sizeof link->kind, text(row, "kind"));
    link->index = small(row, "index");
    link->up = flag(row, "up");
    link->carrier = flag(row, "carrier");
    link->noarp = flag(row, "noarp");
    link->arp_ignore = small(row, "arp_ignore");
    if (net_parse_mac(text(row, "mac"), &link->mac) < 0)
        memset(&link->mac, 0, sizeof link->mac);
    link->mtu = u32(row, "mtu");
    link->rx_packets = count_of(counters, "rx_packets");
    link->tx_packets = count_of(counters, "tx_packets");
    link->rx_dropped = count_of(counters, "rx_dropped");
    link->tx_dropped = count_of(counters, "tx_dropped");
    link->rx_errors = count_of(counters, "rx_errors");
    link->tx_errors = count_of(counters, "tx_errors");
    return true;
}

static bool take_addr(struct snapshot *s, const json_t *row) {
    uint32_t ip;
    int64_t length = number(row, "prefix", -1);
    if (!ip_in(row, "address", &ip) || !ip || length < 0 || length > 32)
        return false; /* IPv6 as well: nobody judges it here */
    struct snap_guest_addr *addr = SNAP_PUSH(s, guest_addrs, SNAP_GUEST_ROWS_MAX);
    if (!addr)
        return false;
    str_copy(addr->link, sizeof addr->link, text(row, "link"));
    addr->ip = ip;
    addr->length = (uint8_t)length;
    return true;
}

static uint8_t route_type(const char *name) {
    static const struct {
        const char *name;
        uint8_t type;
    } types[] = {{"unicast", RTN_UNICAST},
                 {"blackhole", RTN_BLACKHOLE},
                 {"unreachable", RTN_UNREACHABLE},
                 {"prohibit", RTN_PROHIBIT}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(types[i].name, name) == 0)
            return types[i].type;
    return RTN_UNSPEC;
}

static bool take_route(struct snapshot *s, const json_t *row) {
    uint32_t to = 0, via, source;
    int64_t length = number(row, "prefix", -1);
    bool is_default = strcmp(text(row, "to"), "default") == 0 && length == 0;
    /* IPv6's is told by the same word: an agent that does not say the family has it by an IPv6 address, or on lo. */
    if (number(row, "family", 4) != 4 || (is_default && strcmp(text(row, "link"), "lo") == 0))
        return false;
    if ((!is_default && (!ip_in(row, "to", &to) || !to)) || length < 0 || length > 32 || !ip_in(row, "via", &via) ||
        !ip_in(row, "source", &source))
        return false;
    struct snap_guest_route *route = SNAP_PUSH(s, guest_routes, SNAP_GUEST_ROWS_MAX);
    if (!route)
        return false;
    route->to = to;
    route->length = (uint8_t)length;
    route->type = route_type(text(row, "type"));
    route->gateway = via;
    str_copy(route->link, sizeof route->link, text(row, "link"));
    route->source = source;
    route->metric = u32(row, "metric");
    route->table = u32(row, "table");
    return true;
}

static bool take_neigh(struct snapshot *s, const json_t *row) {
    uint32_t ip;
    if (!ip_in(row, "address", &ip) || !ip)
        return false;
    struct snap_guest_neigh *neigh = SNAP_PUSH(s, guest_neighs, SNAP_GUEST_ROWS_MAX);
    if (!neigh)
        return false;
    neigh->ip = ip;
    str_copy(neigh->link, sizeof neigh->link, text(row, "link"));
    neigh->has_mac = net_parse_mac(text(row, "mac"), &neigh->mac) == 0;
    str_copy(neigh->state, sizeof neigh->state, text(row, "state"));
    return true;
}

static bool take_listener(struct snapshot *s, const json_t *row) {
    const char *address = text(row, "address");
    uint32_t ip = 0, port = u32(row, "port");
    bool any = strcmp(address, "::") == 0, loopback = strcmp(address, "::1") == 0;
    if (!any && !loopback &&
        (str_starts(address, "::ffff:") ? net_parse_ip(address + 7, &ip) : net_parse_ip(address, &ip)) < 0)
        return false;
    struct snap_guest_listener *l = port <= 65535 ? SNAP_PUSH(s, guest_listeners, SNAP_GUEST_ROWS_MAX) : NULL;
    if (!l)
        return false;
    str_copy(l->protocol, sizeof l->protocol, text(row, "protocol"));
    l->any = any || (!loopback && ip == 0);
    l->loopback = loopback || ip >> 24 == 127;
    l->ip = ip;
    l->port = (uint16_t)port;
    l->queue = u32(row, "queue");
    l->pid = small(row, "pid");
    str_copy(l->program, sizeof l->program, text(row, "program"));
    return true;
}

static void take_units(struct snapshot *s, struct snap_guest *guest, const json_t *units, const char *wanted) {
    const json_t *row;
    size_t i;
    guest->units.first = s->guest_units_count;
    json_array_foreach(json_object_get(units, "units"), i, row) {
        const char *id = text(row, "Id"), *active = text(row, "ActiveState");
        if (!(wanted && strcmp(id, wanted) == 0) && strcmp(active, "failed") != 0)
            continue;
        struct snap_guest_unit *unit =
            guest->units.count < GUEST_UNITS_MAX ? SNAP_PUSH(s, guest_units, SNAP_GUEST_ROWS_MAX) : NULL;
        if (!unit)
            return;
        guest->units.count++;
        str_copy(unit->name, sizeof unit->name, id);
        str_copy(unit->load, sizeof unit->load, text(row, "LoadState"));
        str_copy(unit->active, sizeof unit->active, active);
        str_copy(unit->sub, sizeof unit->sub, text(row, "SubState"));
        str_copy(unit->result, sizeof unit->result, text(row, "Result"));
        str_copy(unit->enabled, sizeof unit->enabled, text(row, "UnitFileState"));
        str_copy(unit->restarts, sizeof unit->restarts, text(row, "NRestarts"));
    }
}

/* --- all --- */

static void take_network(struct snapshot *s, struct snap_guest *guest, const json_t *network) {
    static const char *const link_known[] = {"name", "index", "up",   "carrier",  "noarp", "arp_ignore",
                                             "mac",  "mtu",   "kind", "counters", NULL};
    static const char *const addr_known[] = {"link", "address", "prefix", "scope", NULL};
    static const char *const route_known[] = {"family", "to",     "prefix", "via",   "link",
                                              "source", "metric", "type",   "table", NULL};
    static const char *const neigh_known[] = {"address", "mac", "link", "state", NULL};
    static const char *const listener_known[] = {"protocol", "address", "port", "queue", "pid", "program", NULL};
    take_list(s, guest, network, "links", take_link, link_known, GUEST_LINKS_MAX, &guest->links);
    take_list(s, guest, network, "addresses", take_addr, addr_known, GUEST_ADDRS_MAX, &guest->addrs);
    take_list(s, guest, network, "routes", take_route, route_known, GUEST_ROUTES_MAX, &guest->routes);
    take_list(s, guest, network, "neighbours", take_neigh, neigh_known, GUEST_NEIGHS_MAX, &guest->neighs);
    take_list(s, guest, network, "listeners", take_listener, listener_known, GUEST_LISTENERS_MAX, &guest->listeners);
    guest_firewall_take(s, guest, json_object_get(network, "firewall"));
}

void guest_facts_take(struct snapshot *s, struct snap_guest *guest, const json_t *network, const json_t *health,
                      const json_t *units, const char *unit) {
    static const char *const known[] = {"links",     "addresses", "routes",  "neighbours",
                                        "listeners", "firewall",  "sysctls", NULL};
    static const char *const health_known[] = {"uptime_s", "oom_kills", NULL};
    static const char *const sysctls_known[] = {"net.ipv4.icmp_echo_ignore_all", "net.ipv4.conf.all.rp_filter",
                                                "net.ipv4.conf.all.arp_ignore", NULL};
    const json_t *sysctls = json_object_get(network, "sysctls");
    guest->uptime_s = number(health, "uptime_s", -1);
    guest->oom_kills = number(health, "oom_kills", -1);
    guest->ignores_ping = small(sysctls, "net.ipv4.icmp_echo_ignore_all");
    guest->rp_filter = small(sysctls, "net.ipv4.conf.all.rp_filter");
    guest->arp_ignore = small(sysctls, "net.ipv4.conf.all.arp_ignore");
    guest->complete = network != NULL;
    guest->links.first = s->guest_links_count;
    guest->addrs.first = s->guest_addrs_count;
    guest->routes.first = s->guest_routes_count;
    guest->neighs.first = s->guest_neighs_count;
    guest->listeners.first = s->guest_listeners_count;
    guest->chains.first = s->guest_chains_count;
    guest->rules.first = s->guest_rules_count;
    guest->facts.first = s->guest_facts_count;
    take_units(s, guest, units, unit);
    if (!network)
        return;
    take_network(s, guest, network);
    keep_others(s, guest, "network", network, known);
    keep_others(s, guest, "network.sysctls", sysctls, sysctls_known);
    keep_others(s, guest, "health", health, health_known);
}

/* The network room's pure parts: addresses, ruleset text, ICMP, hardware addresses. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "cmocka_all.h"
#include "network/icmp.h"
#include "network/ipam.h"
#include "network/names.h"
#include "network/ruleset.h"

/* ---- addresses */

struct pool {
    struct net_prefix prefix;
    bool *used; /* by host part */
    int failing;
    uint32_t asked;
};

static struct pool pool_of(uint32_t address, uint8_t length) {
    struct pool pool = {.prefix = {address, length}, .used = calloc((size_t)1 << (32 - length), 1)};
    assert_non_null(pool.used);
    return pool;
}

static uint32_t host_part(const struct pool *pool, uint32_t ip) {
    return ip & ~net_mask(pool->prefix.length);
}

static int is_used(uint32_t ip, void *data) {
    struct pool *pool = data;
    pool->asked++;
    assert_true(ipam_is_assignable(pool->prefix, ip));
    return pool->failing ? pool->failing : pool->used[host_part(pool, ip)];
}

static void ipam_gives_the_lowest_first_and_goes_round(void **state) {
    struct pool pool = pool_of(0xc0a80001, 29); /* .2 to .6 */
    uint32_t ip = 0;
    for (uint32_t round = 0; round < 3; round++)
        for (uint32_t host = 2; host <= 6; host++) {
            assert_int_equal(ipam_pick(pool.prefix, ip, is_used, &pool, &ip, NULL), 0);
            assert_int_equal(ip, 0xc0a80000 + host);
        }
    /* What lies outside, or is the last one, begins again. */
    static const uint32_t after[] = {0, 1, 0xc0a80006, 0xc0a80007, 0xc0a80000, UINT32_MAX};
    for (size_t i = 0; i < sizeof after / sizeof *after; i++) {
        assert_int_equal(ipam_pick(pool.prefix, after[i], is_used, &pool, &ip, NULL), 0);
        assert_int_equal(ip, 0xc0a80002);
    }
    free(pool.used);
}

static void ipam_never_gives_network_broadcast_or_gateway(void **state) {
    for (uint32_t gateway = 0; gateway < 64; gateway++) {
        struct net_prefix p = {0x0a000000 + gateway, 26};
        struct pool pool = pool_of(p.address, p.length);
        uint32_t ip = 0, count = 0, size = ipam_size(p);
        assert_int_equal(size, gateway == 0 || gateway == 63 ? 62 : 61);
        while (ipam_pick(p, ip, is_used, &pool, &ip, NULL) == 0) {
            assert_false(pool.used[host_part(&pool, ip)]);
            pool.used[host_part(&pool, ip)] = true;
            count++;
        }
        assert_int_equal(count, size);
        assert_false(pool.used[0] || pool.used[63] || pool.used[gateway]);
        free(pool.used);
    }
}

static void ipam_says_that_a_pool_is_exhausted(void **state) {
    struct pool pool = pool_of(0xc0a80001, 24);
    struct err err;
    uint32_t ip = 42;
    memset(pool.used, true, 256);
    assert_int_equal(ipam_pick(pool.prefix, 0xc0a80020, is_used, &pool, &ip, &err), -ENOSPC);
    assert_string_equal(err.code, "network.pool-exhausted");
    assert_string_equal(err.detail, "all 253 addresses of 192.168.0.0/24 are in use");
    assert_true(*err.hint);
    assert_int_equal(ip, 42);
    assert_int_equal(pool.asked, 253);
    pool.used[0x1f] = false; /* right before the cursor: the last that is looked at */
    assert_int_equal(ipam_pick(pool.prefix, 0xc0a80020, is_used, &pool, &ip, &err), 0);
    assert_int_equal(ip, 0xc0a8001f);
    free(pool.used);
}

static void ipam_takes_no_guess_for_an_answer(void **state) {
    struct pool pool = pool_of(0xc0a80001, 24);
    struct err err;
    uint32_t ip = 42;
    pool.failing = -EIO;
    assert_int_equal(ipam_pick(pool.prefix, 0, is_used, &pool, &ip, &err), -EIO);
    assert_string_equal(err.code, "network.pool-unknown");
    assert_int_equal(ip, 42);
    free(pool.used);
}

static void ipam_knows_pools_without_room(void **state) {
    struct pool pool = pool_of(0xc0a80001, 16);
    uint32_t ip = 42;
    for (uint8_t length = 31; length <= 32; length++) {
        assert_int_equal(ipam_size((struct net_prefix){0xc0a80001, length}), 0);
        assert_int_equal(ipam_pick((struct net_prefix){0xc0a80001, length}, 0, is_used, &pool, &ip, NULL), -ENOSPC);
    }
    assert_int_equal(ipam_size((struct net_prefix){0xc0a80001, 0}), 0);
    assert_int_equal(ipam_size((struct net_prefix){0xc0a80001, 30}), 1);
    assert_int_equal(ipam_size((struct net_prefix){0xc0a80001, 16}), 65533);
    assert_int_equal(ipam_size((struct net_prefix){0x0a000001, 8}), 16777213);
    free(pool.used);
}

/* 10,000 allocations and as many releases in random order, in a pool that is nearly full at times. No address is ever
 * held twice, and one that became free is given again only after the cursor went round. */
static void ipam_ten_thousand_in_random_order(void **state) {
    struct pool pool = pool_of(0x0a000001, 20);
    uint32_t size = ipam_size(pool.prefix), cursor = 0, random = 7;
    uint32_t *held = calloc(size, sizeof *held);
    uint32_t *freed_at = calloc(4096, sizeof *freed_at); /* allocations made when it became free, plus one */
    uint32_t held_count = 0, allocations = 0, releases = 0, least_wait = UINT32_MAX, ip;
    while (allocations < 10000 || held_count > 0) {
        random = random * 1664525 + 1013904223;
        bool filling = allocations / 3000 % 2 == 0;
        bool take = allocations < 10000 && (held_count == 0 || (random >> 16) % 8 < (filling ? 6 : 3));
        if (take && ipam_pick(pool.prefix, cursor, is_used, &pool, &ip, NULL) == 0) {
            assert_false(pool.used[host_part(&pool, ip)]);
            pool.used[host_part(&pool, ip)] = true;
            if (freed_at[host_part(&pool, ip)]) {
                uint32_t wait = allocations - (freed_at[host_part(&pool, ip)] - 1);
                least_wait = wait < least_wait ? wait : least_wait;
            }
            held[held_count++] = cursor = ip;
            allocations++;
        } else if (held_count > 0) {
            uint32_t i = (random >> 8) % held_count;
            pool.used[host_part(&pool, held[i])] = false;
            freed_at[host_part(&pool, held[i])] = allocations + 1;
            held[i] = held[--held_count];
            releases++;
        }
    }
    assert_int_equal(allocations, 10000);
    assert_int_equal(releases, 10000);
    for (uint32_t i = 0; i < 4096; i++)
        assert_false(pool.used[i]);
    assert_true(least_wait != UINT32_MAX); /* it did go round */
    free(freed_at);
    free(held);
    free(pool.used);
}

static void ipam_lets_an_address_wait(void **state) {
    struct pool pool = pool_of(0xc0a80001, 24);
    uint32_t cursor = 0, ip;
    for (int i = 0; i < 253; i++) { /* one VM at a time, for a whole round: no address comes twice */
        assert_int_equal(ipam_pick(pool.prefix, cursor, is_used, &pool, &ip, NULL), 0);
        assert_int_equal(ip, 0xc0a80002 + i);
        cursor = ip;
    }
    free(pool.used);
}

/* ---- ruleset */

static struct config_network configuration(const char *uplink, bool masquerade) {
    struct config_network cfg = {
        .bridge = "br0", .address = {.address = 0xc0a80001, .length = 16}, .masquerade = masquerade};
    str_copy(cfg.uplink, sizeof cfg.uplink, uplink);
    return cfg;
}

static const struct net_mac bridge_mac = {{0x02, 0xfc, 0x6b, 0x33, 0xa3, 0xc3}};

static char *ruleset_with(const struct config_network *cfg, const struct ruleset_vm *vms, size_t count,
                          const struct ruleset_networks *networks) {
    struct strbuf text = {.max = 4 << 20};
    ruleset_write(cfg, bridge_mac, vms, count, networks, &text);
    assert_non_null(text.data);
    assert_false(text.truncated);
    return text.data;
}

static char *ruleset_of(const struct config_network *cfg, const struct ruleset_vm *vms, size_t count) {
    return ruleset_with(cfg, vms, count, &(struct ruleset_networks){0});
}

static bool says(const struct config_network *cfg, const char *words) {
    char *text = ruleset_of(cfg, NULL, 0);
    bool found = strstr(text, words) != NULL;
    free(text);
    return found;
}

/* One transaction that knows nothing of what was there before. */
static void ruleset_replaces_both_tables(void **state) {
    struct config_network cfg = configuration("wan0", true);
    char *text = ruleset_of(&cfg, NULL, 0);
    static const char begin[] = "add table bridge master_controller\ndelete table bridge master_controller\n"
                                "add table inet master_controller\ndelete table inet master_controller\n"
                                "table bridge master_controller {\n";
    assert_int_equal(strncmp(text, begin, strlen(begin)), 0);
    assert_non_null(strstr(text, "\ntable inet master_controller {\n"));
    assert_null(strstr(text, "elements"));
    free(text);
}

static void ruleset_has_each_vm_in_each_set_with_its_counters(void **state) {
    struct config_network cfg = configuration("wan0", true);
    struct ruleset_vm vms[2] = {{.tap = "fc-vm-111111111", .mac = {{2, 0xfc, 0, 0, 0, 1}}, .ip = 0xc0a80002},
                                {.tap = "fc-vm-222222222", .mac = {{2, 0xfc, 0, 0, 0, 2}}, .ip = 0xc0a80003}};
    size_t sets = 0;
    cfg.packets_per_second = 100;
    for (size_t i = 0; i < RULESET_SETS; i++) {
        vms[1].count[i] = (struct ruleset_count){1000 + i, 90000 + i};
        sets += ruleset_has(&cfg, i);
    }
    assert_int_equal(sets, RULESET_SETS - 4); /* limits that are 0 here */
    char *text = ruleset_of(&cfg, vms, 2);
    size_t found = 0;
    for (char *at = text; (at = strstr(at, "elements = { ")); at++)
        found++;
    assert_int_equal(found, sets);
    assert_non_null(strstr(text, "\"fc-vm-111111111\" . 02:fc:00:00:00:01 . 192.168.0.2,"));
    assert_non_null(strstr(text, "\"fc-vm-222222222\" counter packets 1002 bytes 90002 }"));
    assert_non_null(strstr(text, "\"fc-vm-222222222\" limit rate over 100/second burst 50 packets counter packets 1009 "
                                 "bytes 90009 }"));
    assert_non_null(strstr(text, "192.168.0.3 counter packets 1012 bytes 90012 }"));
    free(text);
}

static void ruleset_opens_what_is_configured_and_no_more(void **state) {
    struct config_network cfg = configuration("wan0", true);
    assert_true(says(&cfg, "ip saddr 192.168.0.0/16 oifname \"wan0\" masquerade"));
    assert_true(says(&cfg, "ip daddr 192.168.0.1 icmp type { echo-request, echo-reply } goto connect"));
    assert_false(says(&cfg, "dport 53"));
    str_copy(cfg.dns, sizeof cfg.dns, "192.168.0.1");
    assert_true(says(&cfg, "ip daddr 192.168.0.1 meta l4proto { tcp, udp } th dport 53 goto connect"));
    str_copy(cfg.dns, sizeof cfg.dns, "10.7.7.7");
    assert_false(says(&cfg, "192.168.0.1 meta l4proto"));
    assert_true(says(&cfg, "ip daddr 10.7.7.7 meta l4proto { tcp, udp } th dport 53 goto connect"));
    str_copy(cfg.host_ports, sizeof cfg.host_ports, "tcp/8080, udp/123");
    assert_true(says(&cfg, "ip daddr 192.168.0.1 tcp dport 8080 goto connect"));
    assert_true(says(&cfg, "ip daddr 192.168.0.1 udp dport 123 goto connect"));
    str_copy(cfg.allow, sizeof cfg.allow, "10.1.2.9/24,172.16.0.9");
    assert_true(says(&cfg, "        ip daddr 10.1.2.0/24 goto connect"));
    assert_true(says(&cfg, "oifname != \"br0\" ip daddr 172.16.0.9/32 masquerade"));
    assert_false(says(&cfg, "oifname \"br0\" accept"));
    cfg.vm_to_vm = true;
    assert_true(says(&cfg, "oifname \"br0\" accept"));
    cfg.masquerade = false;
    assert_false(says(&cfg, "masquerade\n"));
    str_copy(cfg.uplink, sizeof cfg.uplink, "");
    assert_false(says(&cfg, "wan0"));
}

/* What nft(8) takes as the elements of a set of intervals: sorted, and none within another. */
static void ruleset_networks_are_tidied(void **state) {
    struct net_prefix given[] = {{0xcb007102, 24}, {0x7f000001, 8},  {0xcb007109, 32},
                                 {0xcb007102, 24}, {0x05060708, 0},  {0xc6336401, 31},
                                 {0xcb007101, 25}, {0xcb007201, 24}, {0xffffff01, 24}};
    static const struct net_prefix wanted[] = {
        {0x7f000000, 8}, {0xc6336400, 31}, {0xcb007100, 24}, {0xcb007200, 24}, {0xffffff00, 24}};
    struct ruleset_networks networks = {given, sizeof given / sizeof *given};
    ruleset_networks_tidy(&networks);
    assert_int_equal(networks.count, sizeof wanted / sizeof *wanted);
    for (size_t i = 0; i < networks.count; i++) {
        assert_int_equal(networks.prefixes[i].address, wanted[i].address);
        assert_int_equal(networks.prefixes[i].length, wanted[i].length);
    }
    networks = (struct ruleset_networks){0};
    ruleset_networks_tidy(&networks);
    assert_int_equal(networks.count, 0);
}

/* What is allowed and the resolver come before them, what the uplink leads to comes behind. */
static void ruleset_keeps_vms_from_the_hosts_networks(void **state) {
    struct config_network cfg = configuration("wan0", true);
    struct net_prefix prefixes[] = {{0xc6336400, 24}, {0xcb007100, 24}};
    str_copy(cfg.dns, sizeof cfg.dns, "203.0.113.1");
    str_copy(cfg.allow, sizeof cfg.allow, "203.0.113.7");
    char *text = ruleset_with(&cfg, NULL, 0, &(struct ruleset_networks){prefixes, 2});
    assert_non_null(strstr(text, "    set host_networks {\n        type ipv4_addr\n        flags interval\n"
                                 "        elements = { 198.51.100.0/24,\n            203.0.113.0/24 }\n    }\n"));
    static const char *const order[] = {
        "        ip daddr 203.0.113.7/32 goto connect\n",
        "        ip daddr 203.0.113.1 meta l4proto { tcp, udp } th dport 53 goto connect\n",
        "        ip daddr @host_networks goto stop_private\n", "        oifname \"wan0\" goto connect\n"};
    const char *at = text;
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        at = strstr(at, order[i]);
        assert_non_null(at);
    }
    free(text);
}

static void ruleset_reasons_have_names(void **state) {
    for (int i = 1; i < RULESET_REASONS; i++) {
        bool used = false;
        assert_true(*ruleset_reason_name((enum ruleset_reason)i) && *ruleset_reason_words((enum ruleset_reason)i));
        for (size_t set = 0; set < RULESET_SETS; set++)
            used = used || (int)ruleset_sets[set].reason == i;
        assert_true(used);
    }
}

static void ruleset_takes_only_names_that_mean_themselves(void **state) {
    static const char *const good[] = {"eth0", "enp0s31f6", "eth0.100", "wg-x_1", "br+x", "a@b"};
    static const char *const bad[] = {"a\"b", "eth*", "a\\b", "a;b", "{", "$x", "a\nb", "\xc3\xa4"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(ruleset_name_is_plain(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(ruleset_name_is_plain(bad[i]));
}

/* ---- hardware addresses */

static void macs_are_stable_and_differ(void **state) {
    struct config_network a = configuration("", true), b = a, c = a;
    str_copy(b.bridge, sizeof b.bridge, "br1");
    c.address.address++;
    struct net_mac ma = names_bridge_mac(&a), mb = names_bridge_mac(&b), mc = names_bridge_mac(&c);
    char text[NET_MAC_TEXT];
    net_format_mac(ma, text);
    /* Guests remember it: another release must not change it. */
    assert_string_equal(text, "02:fc:6b:33:a3:c3");
    assert_memory_not_equal(&ma, &mb, sizeof ma);
    assert_memory_not_equal(&ma, &mc, sizeof ma);
    struct net_mac t1 = names_tap_mac("vm-00000001-1000-4000-8000-000000000000");
    struct net_mac t2 = names_tap_mac("vm-00000002-1000-4000-8000-000000000000");
    assert_memory_not_equal(&t1, &t2, sizeof t1);
    assert_int_equal(t1.byte[0], 0xfe);
    assert_int_equal(t1.byte[0] & 3, 2); /* locally administered, unicast */
    assert_int_equal(ma.byte[0] & 3, 2);
}

/* ---- ICMP */

static size_t reply_to(const uint8_t request[ICMP_ECHO_SIZE], size_t ip_len, uint8_t *packet) {
    memset(packet, 0, ip_len);
    packet[0] = (uint8_t)(0x40 | ip_len / 4);
    packet[9] = 1;
    memcpy(packet + 12, "\xc0\xa8\x00\x02", 4);
    memcpy(packet + ip_len, request, ICMP_ECHO_SIZE);
    packet[ip_len] = 0; /* 8 becomes 0: the checksum grows by 0x0800, with the carry */
    uint32_t sum = (uint32_t)(packet[ip_len + 2] << 8 | packet[ip_len + 3]) + 0x0800;
    sum = (sum & 0xffff) + (sum >> 16);
    packet[ip_len + 2] = (uint8_t)(sum >> 8);
    packet[ip_len + 3] = (uint8_t)sum;
    return ip_len + ICMP_ECHO_SIZE;
}

static void icmp_knows_its_own_reply(void **state) {
    struct icmp_echo echo = {.id = 0x1234, .sequence = 7, .nonce = 0x1122334455667788}, got;
    uint8_t request[ICMP_ECHO_SIZE], packet[128];
    uint32_t from = 0;
    icmp_echo_write(echo, request);
    assert_int_equal(request[0], 8);
    assert_memory_equal(request + 4, "\x12\x34\x00\x07", 4);
    for (size_t ip_len = 20; ip_len <= 60; ip_len += 4) {
        size_t len = reply_to(request, ip_len, packet);
        assert_true(icmp_echo_read(packet, len, &from, &got));
        assert_int_equal(from, 0xc0a80002);
        assert_int_equal(got.id, echo.id);
        assert_int_equal(got.sequence, echo.sequence);
        assert_true(got.nonce == echo.nonce);
        for (size_t cut = 0; cut < len; cut++) /* exactly as long as it says, for the sanitizer */ {
            uint8_t *shorter = malloc(cut + 1);
            memcpy(shorter, packet, cut);
            assert_false(icmp_echo_read(shorter, cut, &from, &got));
            free(shorter);
        }
    }
}

static void icmp_refuses_what_is_broken_or_not_a_reply(void **state) {
    struct icmp_echo echo = {.id = 1, .sequence = 2, .nonce = 3}, got;
    uint8_t request[ICMP_ECHO_SIZE], packet[64], changed[64];
    uint32_t from;
    icmp_echo_write(echo, request);
    size_t len = reply_to(request, 20, packet);
    for (size_t bit = 20 * 8; bit < len * 8; bit++) { /* any flipped bit of the ICMP part */
        memcpy(changed, packet, len);
        changed[bit / 8] ^= (uint8_t)(1U << bit % 8);
        assert_false(icmp_echo_read(changed, len, &from, &got));
    }
    static const struct {
        size_t at;
        uint8_t value;
    } broken[] = {{0, 0x65}, {0, 0x44}, {0, 0x4f}, {9, 17}};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        memcpy(changed, packet, len);
        changed[broken[i].at] = broken[i].value;
        assert_false(icmp_echo_read(changed, len, &from, &got));
    }
    uint8_t outgoing[20 + ICMP_ECHO_SIZE] = {0x45, [9] = 1};
    memcpy(outgoing + 20, request, ICMP_ECHO_SIZE);
    assert_false(icmp_echo_read(outgoing, sizeof outgoing, &from, &got));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ipam_gives_the_lowest_first_and_goes_round),
        cmocka_unit_test(ipam_never_gives_network_broadcast_or_gateway),
        cmocka_unit_test(ipam_says_that_a_pool_is_exhausted),
        cmocka_unit_test(ipam_takes_no_guess_for_an_answer),
        cmocka_unit_test(ipam_knows_pools_without_room),
        cmocka_unit_test(ipam_ten_thousand_in_random_order),
        cmocka_unit_test(ipam_lets_an_address_wait),
        cmocka_unit_test(ruleset_replaces_both_tables),
        cmocka_unit_test(ruleset_has_each_vm_in_each_set_with_its_counters),
        cmocka_unit_test(ruleset_opens_what_is_configured_and_no_more),
        cmocka_unit_test(ruleset_networks_are_tidied),
        cmocka_unit_test(ruleset_keeps_vms_from_the_hosts_networks),
        cmocka_unit_test(ruleset_reasons_have_names),
        cmocka_unit_test(ruleset_takes_only_names_that_mean_themselves),
        cmocka_unit_test(macs_are_stable_and_differ),
        cmocka_unit_test(icmp_knows_its_own_reply),
        cmocka_unit_test(icmp_refuses_what_is_broken_or_not_a_reply),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

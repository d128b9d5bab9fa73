/* What nftables rules do to a packet under test, on made rules. */
#include "cmocka_all.h"

#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>

#include "doctor_made.h"

static struct nft_result run(const struct snapshot *s, uint8_t family, uint8_t hook, struct packet packet) {
    struct nft_index index;
    struct nft_result result;
    assert_int_equal(nft_index_make(s, &index), 0);
    nft_eval_hook(&index, family, hook, "tap1", &packet, NULL, &result);
    nft_index_free(&index);
    return result;
}

static struct packet frame(enum packet_kind kind) {
    struct packet p;
    struct packet_ends ends = {HOST, GUEST, {{2, 0, 0, 0, 0, 1}}, guest_mac, 6080};
    packet_build(kind, &ends, &p);
    str_copy(p.oif, sizeof p.oif, "tap1");
    return p;
}

static void meta(struct snapshot *s, int32_t key) {
    made_expr(s, (struct snap_nft_expr){.op = SNAP_NFT_META, .key = key});
}

static void load(struct snapshot *s, uint8_t base, uint16_t offset, uint8_t len) {
    made_expr(s, (struct snap_nft_expr){.op = SNAP_NFT_PAYLOAD, .base = base, .offset = offset, .len = len});
}

static void equals(struct snapshot *s, const void *data, uint8_t len) {
    struct snap_nft_expr x = {.op = SNAP_NFT_CMP, .cmp = NFT_CMP_EQ, .len = len};
    memcpy(x.data, data, len);
    made_expr(s, x);
}

static void oifname(struct snapshot *s, const char *name) {
    char padded[16] = {0};
    memcpy(padded, name, strlen(name));
    meta(s, NFT_META_OIFNAME);
    equals(s, padded, 16);
}

static void verdict(struct snapshot *s, int32_t code, const char *chain) {
    struct snap_nft_expr x = {.op = SNAP_NFT_VERDICT, .key = code};
    str_copy(x.name, sizeof x.name, chain);
    made_expr(s, x);
}

static const uint8_t arp_type[] = {8, 6}, ip_type[] = {8, 0};

static void test_match(void **state) {
    struct snapshot *s = snapshot_new();
    struct snap_nft_chain *c = made_chain(s, NFPROTO_BRIDGE, "f", "o", 3, NF_ACCEPT);
    struct snap_nft_chain chain = *c;
    made_rule(s, &chain, 4);
    load(s, NFT_PAYLOAD_LL_HEADER, 12, 2);
    equals(s, arp_type, 2);
    oifname(s, "tap1");
    verdict(s, NF_DROP, "");
    struct nft_result r = run(s, NFPROTO_BRIDGE, 3, frame(PACKET_ARP_REQUEST));
    assert_int_equal(r.outcome, NFT_DROPS);
    assert_int_equal(r.rule->handle, 4);
    assert_int_equal(run(s, NFPROTO_BRIDGE, 3, frame(PACKET_ECHO)).outcome, NFT_PASSES);
    assert_int_equal(run(s, NFPROTO_BRIDGE, 2, frame(PACKET_ARP_REQUEST)).outcome, NFT_PASSES);
    struct packet other = frame(PACKET_ARP_REQUEST);
    str_copy(other.oif, sizeof other.oif, "tap2");
    assert_int_equal(run(s, NFPROTO_BRIDGE, 3, other).outcome, NFT_PASSES);
    char text[128];
    nft_rule_text(s, r.rule, text, sizeof text);
    assert_string_equal(text, "ether type arp oifname \"tap1\" drop");
    snapshot_free(s);
}

static void test_policy_and_accept(void **state) {
    struct snapshot *s = snapshot_new();
    struct snap_nft_chain chain = *made_chain(s, NFPROTO_BRIDGE, "filter", "OUTPUT", 3, NF_DROP);
    struct nft_result r = run(s, NFPROTO_BRIDGE, 3, frame(PACKET_ECHO));
    assert_int_equal(r.outcome, NFT_DROPS);
    assert_null(r.rule);
    made_rule(s, &chain, 2);
    load(s, NFT_PAYLOAD_LL_HEADER, 12, 2);
    equals(s, ip_type, 2);
    verdict(s, NF_ACCEPT, "");
    assert_int_equal(run(s, NFPROTO_BRIDGE, 3, frame(PACKET_ECHO)).outcome, NFT_PASSES);
    assert_int_equal(run(s, NFPROTO_BRIDGE, 3, frame(PACKET_ARP_REQUEST)).outcome, NFT_DROPS);
    s->chains[0].dormant = true;
    assert_int_equal(run(s, NFPROTO_BRIDGE, 3, frame(PACKET_ARP_REQUEST)).outcome, NFT_PASSES);
    snapshot_free(s);
}

/* A rule that cannot be told is a suspicion; an accept that cannot be told makes the rest one. */
static void test_undecided(void **state) {
    struct snapshot *s = snapshot_new();
    struct snap_nft_chain chain = *made_chain(s, NFPROTO_IPV4, "f", "o", 3, NF_ACCEPT);
    made_rule(s, &chain, 1);
    made_expr(s, (struct snap_nft_expr){.op = SNAP_NFT_LIMIT, .value = 5});
    verdict(s, NF_DROP, "");
    assert_int_equal(run(s, NFPROTO_IPV4, 3, frame(PACKET_ECHO)).outcome, NFT_MAY_DROP);
    s->exprs[1].key = NF_ACCEPT;
    s->chains[0].policy = NF_DROP;
    assert_int_equal(run(s, NFPROTO_IPV4, 3, frame(PACKET_ECHO)).outcome, NFT_MAY_DROP);
    snapshot_free(s);
}

/* One that may drop stands in front of the one that does, or of a policy that does: it is not the one to blame. */
static void test_suspect_before_culprit(void **state) {
    struct snapshot *s = snapshot_new();
    struct snap_nft_chain chain = *made_chain(s, NFPROTO_IPV4, "f", "o", 3, NF_ACCEPT);
    made_rule(s, &chain, 1);
    made_expr(s, (struct snap_nft_expr){.op = SNAP_NFT_LIMIT, .value = 5, .cmp = 1});
    verdict(s, NF_DROP, "");
    made_rule(s, &chain, 2);
    verdict(s, NF_DROP, "");
    struct nft_result r = run(s, NFPROTO_IPV4, 3, frame(PACKET_ECHO));
    assert_int_equal(r.outcome, NFT_DROPS);
    assert_int_equal(r.rule->handle, 2);
    s->rules_count = 1;
    s->chains[0].policy = NF_DROP;
    r = run(s, NFPROTO_IPV4, 3, frame(PACKET_ECHO));
    assert_int_equal(r.outcome, NFT_DROPS);
    assert_null(r.rule);
    snapshot_free(s);
}

/* iptables -A OUTPUT -j NFQUEUE: dropped where nobody reads the queue. */
static void test_queue_target(void **state) {
    struct snapshot *s = snapshot_new();
    struct snap_nft_chain chain = *made_chain(s, NFPROTO_IPV4, "filter", "OUTPUT", 3, NF_ACCEPT);
    made_rule(s, &chain, 9);
    made_expr(s, (struct snap_nft_expr){.op = SNAP_NFT_TARGET, .name = "NFQUEUE"});
    struct nft_result r = run(s, NFPROTO_IPV4, 3, frame(PACKET_ECHO));
    assert_int_equal(r.outcome, NFT_MAY_DROP);
    assert_int_equal(r.rule->handle, 9);
    s->chains[0].policy = NF_DROP; /* it does not get there when who reads the queue lets it go on */
    assert_int_equal(run(s, NFPROTO_IPV4, 3, frame(PACKET_ECHO)).outcome, NFT_MAY_DROP);
    s->exprs[0] = (struct snap_nft_expr){.op = SNAP_NFT_FWD, .name = "queue"};
    assert_int_equal(run(s, NFPROTO_IPV4, 3, frame(PACKET_ECHO)).outcome, NFT_MAY_DROP);
    snapshot_free(s);
}

/* A rule of a chain that is not in the list, as it came in between, is no rule of the chain that was looked at last. */
static void test_rule_of_no_chain(void **state) {
    struct snapshot *s = snapshot_new();
    made_chain(s, NFPROTO_IPV4, "f", "o", 3, NF_ACCEPT);
    struct snap_nft_chain late = {.family = NFPROTO_IPV4, .table = "f", .name = "late"};
    made_rule(s, &late, 1);
    verdict(s, NF_DROP, "");
    assert_int_equal(run(s, NFPROTO_IPV4, 3, frame(PACKET_ECHO)).outcome, NFT_PASSES);
    snapshot_free(s);
}

/* A hundred jumps of a hundred jumps, and so on, as a file may have them: it ends, and nothing is sure. */
static void test_jumps_without_end(void **state) {
    struct snapshot *s = snapshot_new();
    struct snap_nft_chain base = *made_chain(s, NFPROTO_IPV4, "f", "o", 3, NF_DROP);
    struct snap_nft_chain round = *made_chain(s, NFPROTO_IPV4, "f", "round", -1, NF_ACCEPT);
    made_rule(s, &base, 1);
    verdict(s, NFT_JUMP, "round");
    for (uint64_t i = 0; i < 100; i++) {
        made_rule(s, &round, 2 + i);
        verdict(s, NFT_JUMP, "round");
    }
    assert_int_equal(run(s, NFPROTO_IPV4, 3, frame(PACKET_ECHO)).outcome, NFT_MAY_DROP);
    snapshot_free(s);
}

static void test_jumps(void **state) {
    struct snapshot *s = snapshot_new();
    struct snap_nft_chain base = *made_chain(s, NFPROTO_INET, "f", "in", 1, NF_ACCEPT);
    struct snap_nft_chain deep = *made_chain(s, NFPROTO_INET, "f", "deep", -1, NF_ACCEPT);
    made_rule(s, &base, 1);
    verdict(s, NFT_JUMP, "deep");
    made_rule(s, &base, 2);
    verdict(s, NF_DROP, "");
    made_rule(s, &deep, 3);
    verdict(s, NFT_RETURN, "");
    assert_int_equal(run(s, NFPROTO_IPV4, 1, frame(PACKET_SYN)).rule->handle, 2);
    s->exprs[0].key = NFT_GOTO; /* comes back behind the base chain */
    assert_int_equal(run(s, NFPROTO_IPV4, 1, frame(PACKET_SYN)).outcome, NFT_PASSES);
    s->exprs[2].key = NF_DROP;
    struct nft_result r = run(s, NFPROTO_IPV4, 1, frame(PACKET_SYN));
    assert_int_equal(r.rule->handle, 3);
    assert_string_equal(r.in->name, "deep");
    s->exprs[2].key = NFT_JUMP; /* a loop, as no kernel has it: a file may */
    str_copy(s->exprs[2].name, sizeof s->exprs[2].name, "deep");
    run(s, NFPROTO_IPV4, 1, frame(PACKET_SYN));
    snapshot_free(s);
}

static void test_sets(void **state) {
    struct snapshot *s = snapshot_new();
    struct snap_nft_chain chain = *made_chain(s, NFPROTO_IPV4, "f", "o", 3, NF_ACCEPT);
    struct snap_nft_set *set = SNAP_PUSH(s, sets, 10);
    *set = (struct snap_nft_set){
        .family = NFPROTO_IPV4, .table = "f", .name = "bad", .key_len = 4, .complete = true, .elems = {0, 1}};
    struct snap_nft_elem *e = SNAP_PUSH(s, elems, 10);
    memcpy(e->key, (uint8_t[]){192, 168, 0, 2}, 4);
    made_rule(s, &chain, 7);
    load(s, NFT_PAYLOAD_NETWORK_HEADER, 16, 4);
    struct snap_nft_expr lookup = {.op = SNAP_NFT_LOOKUP, .name = "bad"};
    made_expr(s, lookup);
    verdict(s, NF_DROP, "");
    assert_int_equal(run(s, NFPROTO_IPV4, 3, frame(PACKET_ECHO)).outcome, NFT_DROPS);
    s->elems[0].key[3] = 3;
    assert_int_equal(run(s, NFPROTO_IPV4, 3, frame(PACKET_ECHO)).outcome, NFT_PASSES);
    s->exprs[1].cmp = 1; /* != */
    assert_int_equal(run(s, NFPROTO_IPV4, 3, frame(PACKET_ECHO)).outcome, NFT_DROPS);
    s->exprs[1].cmp = 0;
    s->sets[0].complete = false;
    assert_int_equal(run(s, NFPROTO_IPV4, 3, frame(PACKET_ECHO)).outcome, NFT_MAY_DROP);
    /* 192.168.0.0 to 192.168.0.9, as the kernel lists intervals */
    s->sets[0].complete = true;
    s->sets[0].flags = NFT_SET_INTERVAL;
    s->sets[0].elems.count = 2;
    s->elems[0].key[3] = 0;
    e = SNAP_PUSH(s, elems, 10);
    memcpy(e->key, (uint8_t[]){192, 168, 0, 10}, 4);
    e->flags = NFT_SET_ELEM_INTERVAL_END;
    assert_int_equal(run(s, NFPROTO_IPV4, 3, frame(PACKET_ECHO)).outcome, NFT_DROPS);
    e->key[3] = 2;
    assert_int_equal(run(s, NFPROTO_IPV4, 3, frame(PACKET_ECHO)).outcome, NFT_PASSES);
    snapshot_free(s);
}

static void test_connections(void **state) {
    struct snapshot *s = snapshot_new();
    struct snap_nft_chain chain = *made_chain(s, NFPROTO_IPV4, "f", "i", 1, NF_DROP);
    made_rule(s, &chain, 1);
    made_expr(s, (struct snap_nft_expr){.op = SNAP_NFT_CT, .key = NFT_CT_STATE});
    struct snap_nft_expr mask = {.op = SNAP_NFT_BITWISE, .len = 4};
    mask.data[0] = 2 | 4;
    made_expr(s, mask);
    made_expr(s, (struct snap_nft_expr){.op = SNAP_NFT_CMP, .cmp = NFT_CMP_NEQ, .len = 4});
    verdict(s, NF_ACCEPT, "");
    assert_int_equal(run(s, NFPROTO_IPV4, 1, frame(PACKET_ECHO_REPLY)).outcome, NFT_PASSES);
    assert_int_equal(run(s, NFPROTO_IPV4, 1, frame(PACKET_ECHO)).outcome, NFT_DROPS);
    snapshot_free(s);
}

/* Priorities, and a device's own chains. */
static void test_chains(void **state) {
    struct snapshot *s = snapshot_new();
    struct snap_nft_chain late = *made_chain(s, NFPROTO_NETDEV, "n", "late", 0, NF_DROP);
    made_chain(s, NFPROTO_NETDEV, "n", "early", 0, NF_DROP)->priority = -10;
    (void)late;
    for (int i = 0; i < 2; i++)
        str_copy(s->chains[i].devices, sizeof s->chains[i].devices, "tap10 tap1");
    assert_string_equal(run(s, NFPROTO_NETDEV, 0, frame(PACKET_ECHO)).chain->name, "early");
    for (int i = 0; i < 2; i++)
        str_copy(s->chains[i].devices, sizeof s->chains[i].devices, "tap10 tap12");
    assert_int_equal(run(s, NFPROTO_NETDEV, 0, frame(PACKET_ECHO)).outcome, NFT_PASSES);
    snapshot_free(s);
}

/* ebtables -A OUTPUT -j mark --mark-set 1 --mark-target DROP; the target's verdict stands behind the mark. */
static void test_verdict_of_target(void **state) {
    struct snapshot *s = snapshot_new();
    struct snap_nft_chain chain = *made_chain(s, NFPROTO_BRIDGE, "filter", "OUTPUT", 3, NF_ACCEPT);
    struct snap_nft_expr x = {.op = SNAP_NFT_TARGET, .name = "mark"};
    const int32_t drop = -2 & ~0xf, accept = -1;
    made_rule(s, &chain, 7);
    memcpy(x.data + 8, &(int32_t){drop | 0xe}, sizeof drop);
    made_expr(s, x);
    assert_int_equal(run(s, NFPROTO_BRIDGE, 3, frame(PACKET_ECHO)).outcome, NFT_DROPS);
    memcpy(s->exprs[0].data + 8, &accept, sizeof accept);
    assert_int_equal(run(s, NFPROTO_BRIDGE, 3, frame(PACKET_ECHO)).outcome, NFT_PASSES);
    snapshot_free(s);
}

static void test_nat(void **state) {
    struct snapshot *s = snapshot_new();
    struct snap_nft_chain chain = *made_chain(s, NFPROTO_IPV4, "nat", "post", 4, NF_ACCEPT);
    made_rule(s, &chain, 1);
    oifname(s, "tap1");
    made_expr(s, (struct snap_nft_expr){.op = SNAP_NFT_NAT, .name = "masq"});
    assert_true(run(s, NFPROTO_IPV4, 4, frame(PACKET_ECHO)).nat);
    struct packet p = frame(PACKET_ECHO);
    str_copy(p.oif, sizeof p.oif, "wan0");
    assert_false(run(s, NFPROTO_IPV4, 4, p).nat);
    /* An answer is of a connection that NAT was asked for already. */
    str_copy(s->chains[0].type, sizeof s->chains[0].type, "nat");
    assert_true(run(s, NFPROTO_IPV4, 4, frame(PACKET_ECHO)).nat);
    assert_false(run(s, NFPROTO_IPV4, 4, frame(PACKET_ECHO_REPLY)).nat);
    snapshot_free(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_match),
        cmocka_unit_test(test_policy_and_accept),
        cmocka_unit_test(test_undecided),
        cmocka_unit_test(test_jumps),
        cmocka_unit_test(test_sets),
        cmocka_unit_test(test_connections),
        cmocka_unit_test(test_chains),
        cmocka_unit_test(test_verdict_of_target),
        cmocka_unit_test(test_nat),
        cmocka_unit_test(test_suspect_before_culprit),
        cmocka_unit_test(test_queue_target),
        cmocka_unit_test(test_rule_of_no_chain),
        cmocka_unit_test(test_jumps_without_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

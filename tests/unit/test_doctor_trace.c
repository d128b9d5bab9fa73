/* Reading the trace: lines as a 6.18 kernel wrote them, and what follows from them. */
#include "cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "doctor/trace/internal.h"

#define HEAD "         python3-29752   [001] b....  4376.632"

static struct trace_event parse(const char *line, int expected) {
    struct trace_event event = {0};
    assert_int_equal(trace_parse_line(line, strlen(line), &event), expected);
    return event;
}

static void test_lines(void **state) {
    struct trace_event e = parse(HEAD "907: net_dev_queue: dev=fc-vm-2 skbaddr=00000000d309cf01 len=42", 1);
    assert_int_equal(e.kind, TRACE_QUEUED);
    assert_string_equal(e.dev, "fc-vm-2");
    assert_int_equal(e.skb, 0xd309cf01);
    assert_int_equal(e.length, 42);
    assert_int_equal(e.tid, 29752);
    assert_int_equal(e.at_ns, 4376632907000);
    assert_int_equal(e.tag, TRACE_NO_TAG);

    e = parse(HEAD "908: net_dev_start_xmit: dev=br0 queue_mapping=0 skbaddr=00000000a6b2c4f6 vlan_tagged=0 "
                   "vlan_proto=0x0000 vlan_tci=0x0000 protocol=0x0806 ip_summed=0 len=42 data_len=7 network_offset=14",
              1);
    assert_int_equal(e.kind, TRACE_XMIT);
    assert_int_equal(e.protocol, 0x0806);
    assert_int_equal(e.length, 42); /* and not data_len */

    e = parse(HEAD "988: net_dev_xmit: dev=br0 skbaddr=00000000a6b2c4f6 len=42 rc=-5", 1);
    assert_int_equal(e.rc, -5);

    e = parse(HEAD "937: kfree_skb: skbaddr=00000000a6b2c4f6 rx_sk=0000000000000000 protocol=2054 "
                   "location=nft_do_chain+0x3e8/0x610 reason: NETFILTER_DROP",
              1);
    assert_int_equal(e.kind, TRACE_DROPPED);
    assert_string_equal(e.location, "nft_do_chain");
    assert_string_equal(e.reason, "NETFILTER_DROP");
    assert_int_equal(e.protocol, 0x0806);
    assert_false(e.noise);

    e = parse(HEAD
              "131: neigh_update: family 2 dev br0 lladdr 02fc00000001 flags 00 nud_state reachable type 01 dead 0 "
              "refcnt 3 primary_key4 192.168.0.2 new_state failed update_flags 81 pid 27580",
              1);
    assert_string_equal(e.dev, "br0");
    assert_string_equal(e.reason, "reachable->failed");

    e = parse(" => br_dev_xmit.isra.0", 2);
    assert_string_equal(e.location, "br_dev_xmit");
}

/* A process may be called anything, flags may be missing, and a line may be cut anywhere. */
static void test_odd_lines(void **state) {
    struct trace_event e =
        parse("  a-1 [b] c: d-77   [000]  12.000001: consume_skb: skbaddr=1 location=tun_do_read+1/2", 1);
    assert_int_equal(e.tid, 77);
    assert_int_equal(e.at_ns, 12000001000);
    assert_string_equal(e.location, "tun_do_read");
    const char *whole = HEAD "937: kfree_skb: skbaddr=00000000a6b2c4f6 protocol=2054 location=f+0x3e8/0x610 reason: R";
    for (size_t length = 0; length <= strlen(whole); length++) {
        char *cut = malloc(length + 1); /* exactly as long: a read behind it is noticed by ASan */
        memcpy(cut, whole, length);
        trace_parse_line(cut, length, &e);
        free(cut);
    }
    parse("", 0);
    parse("# tracer: nop", 0);
    parse("CPU:1 [LOST 12 EVENTS]", 0);
    parse(HEAD "986: <stack trace>", 0);
    parse(HEAD "986: some_other_event: dev=br0", 0);
    char name[600];
    snprintf(name, sizeof name, HEAD "907: net_dev_queue: dev=%0500d skbaddr=1 len=1", 0);
    e = parse(name, 1);
    assert_int_equal(strlen(e.dev), TRACE_NAME - 1);
}

static void test_noise(void **state) {
    struct trace_event e = {.kind = TRACE_DROPPED, .location = "ping_rcv", .reason = "NO_SOCKET", .protocol = 0x0800};
    assert_true(trace_is_noise(&e));
    strcpy(e.reason, "NETFILTER_DROP");
    assert_false(trace_is_noise(&e));
    e = (struct trace_event){.kind = TRACE_DROPPED, .location = "ip_rcv_core", .reason = "OTHERHOST"};
    assert_true(trace_is_noise(&e));
    /* What nftrace could not tell is a message; what a rule dropped on a kernel without reasons is a packet. */
    e = (struct trace_event){.kind = TRACE_DROPPED, .location = "nft_do_chain", .reason = "NOT_SPECIFIED"};
    assert_true(trace_is_noise(&e));
    e.protocol = 0x0806;
    assert_false(trace_is_noise(&e));
}

#define EVENT(us, tail) "         python3-100     [001] b....  10.000" us ": " tail "\n"
#define READER(us, tail) "         wire-200        [000] .....  10.000" us ": " tail "\n"

static const char dropped_by_rule[] = "# tracer: nop\n" EVENT(
    "100", "net_dev_queue: dev=br0 skbaddr=000000000000aaaa "
           "len=60") EVENT("101", "net_dev_start_xmit: dev=br0 skbaddr=000000000000aaaa protocol=0x0806 len=60")
    EVENT("110", "net_dev_queue: dev=fc-vm-2 skbaddr=000000000000bbbb len=60") EVENT(
        "111", "net_dev_start_xmit: dev=fc-vm-2 skbaddr=000000000000bbbb protocol=0x0806 len=60")
        EVENT("112", "net_dev_xmit: dev=fc-vm-2 skbaddr=000000000000bbbb len=60 rc=0") EVENT(
            "120", "kfree_skb: skbaddr=000000000000aaaa protocol=2054 location=nft_do_chain+0x3e8/0x610 reason: "
                   "NETFILTER_DROP")
            EVENT(
                "121",
                "<stack trace>") " => trace_event_raw_event_kfree_skb\n => sk_skb_reason_drop\n => nft_do_chain\n => "
                                 "nft_do_chain_bridge\n"
                                 " => nf_hook_slow\n => __br_forward\n => br_dev_xmit\n => dev_hard_start_xmit\n" EVENT(
                                     "122", "net_dev_xmit: dev=br0 skbaddr=000000000000aaaa len=60 rc=0");

static struct trace_result *read_text(const char *text) {
    struct trace_result *result = calloc(1, sizeof *result);
    trace_result_read(result, text, strlen(text));
    return result;
}

static void test_where_a_rule_drops(void **state) {
    _cleanup_trace_result_free_ struct trace_result *result = read_text(dropped_by_rule);
    const char *ours[] = {"br0", "fc-vm-1"};
    struct trace_where where;
    assert_int_equal(result->event_count, 7);
    assert_int_equal(result->stack_count, 1);
    assert_string_equal(result->stacks[0].function[0], "nft_do_chain");
    trace_tag_window(result, 100, 10000100000, 10000123000, ours, 2, 5, false);
    trace_where(result, 5, false, &where);
    assert_true(where.dropped);
    assert_string_equal(where.drop_dev, "br0"); /* where it was last seen */
    assert_string_equal(where.drop_hook, "bridge.output");
    assert_true(where.drop_at_port);
    assert_false(where.legacy_table);
    assert_null(where.rule);
    assert_string_equal(where.dev, "br0"); /* the copy for fc-vm-2 is not ours */

    struct trace_rule *rule = trace_result_add_rule(result);
    *rule = (struct trace_rule){.tag = 5, .handle = 4, .verdict = "drop", .family = "bridge"};
    trace_where(result, 5, false, &where);
    assert_int_equal(where.rule->handle, 4);
    trace_where(result, 6, false, &where);
    assert_int_equal(where.last, TRACE_AT_NOTHING);
    assert_false(where.dropped);
}

static const char healthy[] = EVENT("100", "net_dev_queue: dev=br0 skbaddr=000000000000aaaa len=60")
    EVENT("101", "net_dev_start_xmit: dev=br0 skbaddr=000000000000aaaa protocol=0x0806 len=60")
        EVENT("110", "net_dev_queue: dev=fc-vm-1 skbaddr=000000000000aaaa len=60")
            EVENT("111", "net_dev_start_xmit: dev=fc-vm-1 skbaddr=000000000000aaaa protocol=0x0806 len=60") EVENT(
                "112", "net_dev_xmit: dev=fc-vm-1 skbaddr=000000000000aaaa len=60 rc=0")
                EVENT("113", "net_dev_xmit: dev=br0 skbaddr=000000000000aaaa len=60 rc=0") READER(
                    "150", "consume_skb: skbaddr=000000000000aaaa location=tun_do_read+0x23d/0xa10")
                    READER("200", "netif_receive_skb: dev=fc-vm-1 skbaddr=000000000000cccc len=28") READER(
                        "205", "netif_receive_skb: dev=br0 skbaddr=000000000000cccc len=28")
                        READER("209", "consume_skb: skbaddr=000000000000cccc location=netlink_unicast+1/2") READER(
                            "210", "consume_skb: skbaddr=000000000000cccc location=arp_process+0x328/0x9d0")
                            READER("300", "netif_receive_skb: dev=fc-vm-1 skbaddr=000000000000dddd len=84") READER(
                                "310", "kfree_skb: skbaddr=000000000000dddd protocol=2048 location=nft_do_chain+1/2 "
                                       "reason: NETFILTER_DROP")
                                READER("311",
                                       "<stack trace>") " => nft_do_chain\n => nft_do_chain_bridge\n => nf_hook_slow\n "
                                                        "=> br_pass_frame_up\n => br_handle_frame_finish\n";

static void test_where_all_is_well(void **state) {
    _cleanup_trace_result_free_ struct trace_result *result = read_text(healthy);
    const char *ours[] = {"br0", "fc-vm-1"};
    struct trace_where where;
    trace_tag_window(result, 100, 10000100500, 10000114000, ours, 2, 0, false);
    assert_true(trace_tag_received(result, "fc-vm-1", 10000199900, 0, true));
    assert_true(trace_tag_received(result, "fc-vm-1", 10000300000, 1, true));
    assert_false(trace_tag_received(result, "fc-vm-1", 10000900000, 1, true));
    trace_tag_readers(result);
    trace_where(result, 0, false, &where);
    assert_int_equal(where.last, TRACE_AT_READER); /* the bridge's own end comes later and says nothing new */
    assert_string_equal(where.dev, "fc-vm-1");
    assert_int_equal(where.tid, 200);
    assert_false(where.dropped);
    trace_where(result, 0, true, &where);
    assert_int_equal(where.last, TRACE_AT_RECEIVE);
    assert_string_equal(where.dev, "br0");
    assert_false(where.dropped);
    trace_where(result, 1, true, &where);
    assert_string_equal(where.dev, "fc-vm-1");
    assert_string_equal(where.drop_hook, "bridge.input");
    assert_string_equal(where.drop_dev, "fc-vm-1");
    for (size_t i = 0; i < result->event_count; i++)
        assert_string_not_equal(result->events[i].location, "netlink_unicast");
}

static void check_hook(const char *expected, const char *location, const char *reason, const char *chain) {
    struct trace_event e = {.kind = TRACE_DROPPED};
    struct trace_stack stack = {0};
    char text[400];
    snprintf(e.location, sizeof e.location, "%s", location);
    snprintf(e.reason, sizeof e.reason, "%s", reason);
    snprintf(text, sizeof text, "%s", chain);
    int depth = 0;
    for (char *save, *at = strtok_r(text, " ", &save); at && depth < TRACE_STACK; at = strtok_r(NULL, " ", &save))
        snprintf(stack.function[depth++], TRACE_WORD, "%s", at);
    assert_string_equal(trace_hook_of(&e, &stack), expected);
}

static void test_hooks(void **state) {
    check_hook("bridge.output", "nft_do_chain", "NETFILTER_DROP",
               "nft_do_chain nft_do_chain_bridge nf_hook_slow __br_forward br_flood br_dev_xmit");
    check_hook("bridge.forward", "nft_do_chain", "NETFILTER_DROP",
               "nft_do_chain nft_do_chain_bridge nf_hook_slow __br_forward br_forward br_handle_frame_finish");
    check_hook("bridge.output", "nf_hook_slow", "NETFILTER_DROP", "nf_hook_slow __br_forward br_flood br_dev_xmit");
    check_hook("bridge.prerouting", "nft_do_chain", "NETFILTER_DROP",
               "nft_do_chain nft_do_chain_bridge br_handle_frame");
    check_hook("arp.output", "nft_do_chain", "NETFILTER_DROP",
               "nft_do_chain nft_do_chain_arp nf_hook_slow arp_xmit arp_solicit");
    check_hook("ip.input", "nft_do_chain", "NETFILTER_DROP",
               "nft_do_chain nft_do_chain_inet nf_hook_slow ip_local_deliver ip_rcv");
    check_hook("br_netfilter.forward", "nft_do_chain", "NETFILTER_DROP",
               "nft_do_chain nft_do_chain_ipv4 nf_hook_slow br_nf_forward_ip br_nf_forward nf_hook_slow __br_forward");
    check_hook("netdev.egress", "nft_do_chain", "NETFILTER_DROP",
               "nft_do_chain nft_do_chain_netdev nf_hook_slow __dev_queue_xmit");
    check_hook("tc.egress", "__dev_queue_xmit", "TC_EGRESS", "__dev_queue_xmit");
    check_hook("qdisc", "__dev_queue_xmit", "QDISC_DROP", "__dev_queue_xmit");
    check_hook("tap.queue", "tun_net_xmit", "FULL_RING", "tun_net_xmit");
    check_hook("xdp", "do_xdp_generic", "NOT_SPECIFIED", "do_xdp_generic");
    check_hook("bridge.port", "br_handle_frame", "BRIDGE_INGRESS_STP_STATE", "br_handle_frame");
    check_hook("ip.route", "ip_error", "IP_INADDRERRORS", "ip_error");
    check_hook("", "something_new", "NOT_SPECIFIED", "something_new");
    check_hook("", "nft_do_chain", "NETFILTER_DROP", "");
}

static void test_limits(void **state) {
    _cleanup_trace_result_free_ struct trace_result *result = calloc(1, sizeof *result);
    for (int i = 0; i < TRACE_EVENTS_MAX + 10; i++)
        trace_result_add_event(result);
    assert_int_equal(result->event_count, TRACE_EVENTS_MAX);
    assert_true(result->truncated);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_odd_lines),
        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_where_a_rule_drops),
        cmocka_unit_test(test_where_all_is_well),
        cmocka_unit_test(test_hooks),
        cmocka_unit_test(test_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

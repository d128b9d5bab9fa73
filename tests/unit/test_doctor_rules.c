/* The rules on made hosts, by their state alone: each row names its object; a host in order has no finding. */
#include "cmocka_all.h"

#include <errno.h>
#include <linux/if_tun.h>
#include <linux/neighbour.h>
#include <linux/pkt_cls.h>
#include <stdio.h>

#include "doctor/rules/catalogue.h"
#include "doctor_made.h"

static void expect(struct snapshot *s, const char *id, enum hop hop, const char *word) {
    struct judgement j = made_judge(s);
    if (!id) {
        for (uint32_t i = 0; i < j.findings_count; i++)
            if (j.findings[i].role == ROLE_ROOT_CAUSE)
                fail_msg("found %s: %s", j.findings[i].id, j.findings[i].title);
    } else {
        assert_true(j.findings_count > 0);
        assert_string_equal(j.findings[0].id, id);
        assert_int_equal(j.findings[0].hop, hop);
        bool told = strstr(j.findings[0].title, word) != NULL;
        for (uint8_t i = 0; i < j.findings[0].evidence_count; i++)
            told =
                told || strstr(j.findings[0].evidence[i].fact, word) || strstr(j.findings[0].evidence[i].where, word);
        assert_true(told);
        assert_true(j.findings[0].evidence_count > 0);
        if (j.findings[0].role == ROLE_ROOT_CAUSE)
            assert_int_equal(j.hops[hop].verdict, VERDICT_FAIL);
    }
    assert_int_equal(j.reachable, -1);
    judgement_free(&j);
    snapshot_free(s);
}

static void test_catalogue_is_complete(void **state) {
    size_t n = 0;
    for (; catalogue_at(n); n++) {
        const struct catalogue_row *row = catalogue_at(n);
        assert_true(*row->means && *row->advice && row->layer[0] == 'L');
        assert_ptr_equal(catalogue_find(row->id), row);
    }
    assert_true(n >= 80);
    assert_null(catalogue_find("no.such"));
}

static void test_healthy(void **state) {
    expect(made_host(), NULL, 0, "");
    expect(made_router(), NULL, 0, "");
    struct snapshot *s = made_host(); /* isolated on one port only; flood off with a learned MAC */
    made_set_port(s, TAP, IFLA_BRPORT_ISOLATED, 1);
    made_set_port(s, TAP, IFLA_BRPORT_UNICAST_FLOOD, 0);
    *SNAP_PUSH(s, fdbs, 10) = (struct snap_fdb){.link = TAP, .master = BRIDGE, .mac = guest_mac};
    expect(s, NULL, 0, "");
}

static void test_taps(void **state) {
    struct snapshot *s = made_host();
    made_find(s, TAP)->flags &= ~(unsigned)IFF_UP;
    made_find(s, TAP)->carrier = false;
    expect(s, "tap.down", HOP_TAP_DEV, "tap1");
    s = made_host();
    made_find(s, TAP)->master = 0;
    expect(s, "tap.not-enslaved", HOP_BRIDGE_PORT, "br0");
    s = made_host();
    made_find(s, TAP)->master = made_find(s, OTHER)->master = 0;
    expect(s, "bridge.recreated", HOP_BRIDGE_PORT, "br0");
    s = made_host(); /* the other one is to have no bridge: it becomes a template */
    made_find(s, TAP)->master = made_find(s, OTHER)->master = 0;
    strcpy(made_find(s, OTHER)->name, "mc-warm-cli");
    expect(s, "tap.not-enslaved", HOP_BRIDGE_PORT, "tap1");
    s = made_host(); /* or it is not made yet */
    made_find(s, TAP)->master = made_find(s, OTHER)->master = 0;
    *SNAP_PUSH(s, vms, 100) = (struct snap_vm){.id = "vm-2", .tap = "tap2", .state = "creating"};
    expect(s, "tap.not-enslaved", HOP_BRIDGE_PORT, "tap1");
    s = made_host(); /* the other one is routed: nobody's port, and none that may be made one */
    made_find(s, TAP)->master = made_find(s, OTHER)->master = 0;
    *SNAP_PUSH(s, addrs, 100) = (struct snap_addr){.link = OTHER, .ip = 0x0a080001, .length = 24};
    expect(s, "tap.not-enslaved", HOP_BRIDGE_PORT, "br0");
    s = made_host();
    made_link(s, 9, "br1", "bridge");
    made_find(s, TAP)->master = 9;
    expect(s, "tap.wrong-bridge", HOP_BRIDGE_PORT, "br1");
    s = made_host();
    made_link(s, 9, "bond0", "bond");
    made_find(s, TAP)->master = 9;
    expect(s, "tap.wrong-master", HOP_BRIDGE_PORT, "bond0");
    s = made_host();
    made_find(s, TAP)->proto_down = true;
    made_find(s, TAP)->carrier = false;
    expect(s, "tap.proto-down", HOP_TAP_DEV, "protodown");
    s = made_host();
    made_find(s, TAP)->operstate = 5;
    expect(s, "tap.dormant", HOP_TAP_DEV, "dormant");
    s = made_host();
    made_find(s, TAP)->carrier = false;
    expect(s, "tap.carrier-off", HOP_TAP_DEV, "101");
    s = made_host();
    made_find(s, TAP)->txqueuelen = 0;
    expect(s, "tap.txqueuelen-zero", HOP_TAP_QUEUE, "tap1");
    s = made_host();
    made_find(s, TAP)->txqueuelen = 0; /* of a veth that is usual */
    made_find(s, TAP)->is_tap = false;
    expect(s, NULL, 0, "");
    s = made_host();
    str_copy(s->links[1].name, sizeof s->links[1].name, "tap9");
    *SNAP_PUSH(s, elsewhere, 10) = (struct snap_elsewhere){.tap = "tap2", .netns = "others"};
    expect(s, "tap.missing", HOP_TAP_DEV, "tap1");
    s = made_host();
    str_copy(s->links[1].name, sizeof s->links[1].name, "tap9");
    *SNAP_PUSH(s, elsewhere, 10) = (struct snap_elsewhere){.tap = "tap2", .netns = "others"};
    *SNAP_PUSH(s, elsewhere, 10) = (struct snap_elsewhere){.tap = "tap1", .netns = "pid 12", .pid = 12};
    struct judgement j = made_judge(s);
    assert_string_equal(j.findings[0].id, "tap.other-netns");
    assert_string_equal(j.findings[0].plan[0], "nsenter -t 12 -n ip link set tap1 netns 1");
    assert_string_equal(j.findings[0].plan[1], "ip link set tap1 master br0 up");
    judgement_free(&j);
    snapshot_free(s);
}

static bool is_attached_safely(struct snapshot *s, bool given) {
    struct target target = {.tap = "tap1", .ip = GUEST, .named = true, .bridge_given = given};
    struct judge_host host;
    struct judgement j = {0};
    made_find(s, TAP)->master = 0;
    str_copy(target.bridge, sizeof target.bridge, made_find(s, BRIDGE)->name);
    assert_int_equal(judge_open(s, NULL, NULL, &host), 0);
    assert_int_equal(judge_target(&host, &target, -1, &j), 0);
    judge_close(&host);
    bool safe = false, found = false;
    for (uint32_t i = 0; i < j.findings_count; i++)
        if (strcmp(j.findings[i].id, "tap.not-enslaved") == 0) {
            found = true;
            safe = j.findings[i].safe;
        }
    assert_true(found);
    judgement_free(&j);
    snapshot_free(s);
    return safe;
}

static struct snapshot *made_bridge_of(const char *name, uint32_t ip) {
    struct snapshot *s = made_host();
    str_copy(made_find(s, BRIDGE)->name, sizeof s->links[0].name, name);
    s->addrs[0].ip = ip;
    return s;
}

/* Only to the bridge that was named, or whose network has the guest; and no TAP that the host routes to. */
static void test_safe_to_attach(void **state) {
    assert_true(is_attached_safely(made_host(), false));
    assert_true(is_attached_safely(made_bridge_of("vmbr0", HOST), false));
    assert_false(is_attached_safely(made_bridge_of("docker0", 0xac110001), false));
    assert_true(is_attached_safely(made_bridge_of("docker0", 0xac110001), true));
    struct snapshot *s = made_host();
    *SNAP_PUSH(s, addrs, 100) = (struct snap_addr){.link = TAP, .ip = 0x0a080001, .length = 24};
    assert_false(is_attached_safely(s, true));
    s = made_host(); /* a VM that is being made; and one behind something else than a TAP */
    *SNAP_PUSH(s, vms, 100) = (struct snap_vm){.id = "vm-1", .tap = "tap1", .state = "creating"};
    assert_false(is_attached_safely(s, true));
    s = made_host();
    made_find(s, TAP)->is_tap = false;
    assert_true(is_attached_safely(s, true));
}

static struct snapshot *unheld(void) {
    struct snapshot *s = made_host();
    made_find(s, TAP)->carrier = false;
    str_copy(s->holders[0].tap, sizeof s->holders[0].tap, "gone");
    return s;
}

static void test_holders(void **state) {
    expect(unheld(), "tap.no-holder", HOP_VMM, "tap1");
    struct snapshot *s = unheld();
    *SNAP_PUSH(s, claimants, 10) = (struct snap_claimant){.tap = "tap1", .pid = 77, .comm = "fc", .orphaned = true};
    expect(s, "tap.recreated", HOP_VMM, "77");
    s = unheld();
    made_find(s, TAP)->tun_owner = 5000;
    *SNAP_PUSH(s, claimants, 10) = (struct snap_claimant){.tap = "tap1", .pid = 77, .comm = "fc", .uid = 4000};
    expect(s, "tap.not-permitted", HOP_VMM, "5000");
    s = unheld();
    made_find(s, TAP)->tun_multi_queue = true;
    expect(s, "tap.multi-queue-mismatch", HOP_VMM, "multi_queue");
    s = made_host();
    s->holders[0].state = 'T';
    expect(s, "vmm.stalled", HOP_VMM, "101");
    s = made_host();
    s->holders[0].frozen = true;
    expect(s, "vmm.stalled", HOP_VMM, "frozen");
}

/* Two records, one TAP: what clean-up by a cut name does. Not injected anywhere: a matter of records. */
static void test_name_collision(void **state) {
    struct snapshot *s = made_host();
    *SNAP_PUSH(s, vms, 10) = (struct snap_vm){.id = "vm-a", .tap = "tap1"};
    *SNAP_PUSH(s, vms, 10) = (struct snap_vm){.id = "vm-b", .tap = "tap1"};
    expect(s, "tap.name-collision", HOP_TAP_DEV, "vm-b");
}

static void test_ports(void **state) {
    static const struct {
        uint16_t attr;
        uint64_t value;
        const char *id;
        enum hop hop;
    } rows[] = {
        {IFLA_BRPORT_STATE, 0, "bridge.port-not-forwarding", HOP_BRIDGE_PORT},
        {IFLA_BRPORT_STATE, 1, "bridge.port-not-forwarding", HOP_BRIDGE_PORT},
        {IFLA_BRPORT_LOCKED, 1, "bridge.port-locked", HOP_BRIDGE_INPUT},
        {IFLA_BRPORT_PROXYARP, 1, "bridge.port-proxyarp", HOP_BRIDGE_FORWARD},
        {IFLA_BRPORT_BCAST_FLOOD, 0, "bridge.bcast-flood-off", HOP_BRIDGE_FORWARD},
        {IFLA_BRPORT_LEARNING, 0, "bridge.learning-off", HOP_BRIDGE_FORWARD},
        {IFLA_BRPORT_MCAST_FLOOD, 0, "bridge.mcast-flood-off", HOP_BRIDGE_FORWARD},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct snapshot *s = made_host();
        made_set_port(s, TAP, rows[i].attr, rows[i].value);
        expect(s, rows[i].id, rows[i].hop, "tap1");
    }
    struct snapshot *s = made_host();
    made_set_port(s, TAP, IFLA_BRPORT_STATE, 2);
    ((struct snap_attr *)snap_attr_get(s, made_find(s, BRIDGE), SNAP_ATTR_BRIDGE, IFLA_BR_STP_STATE))->value = 1;
    expect(s, "bridge.stp-delay", HOP_BRIDGE_PORT, "learning");
    s = made_host();
    made_set_port(s, TAP, IFLA_BRPORT_ISOLATED, 1);
    made_set_port(s, OTHER, IFLA_BRPORT_ISOLATED, 1);
    expect(s, "bridge.port-isolated", HOP_BRIDGE_PORT, "tap2");
    s = made_host();
    made_set_port(s, TAP, IFLA_BRPORT_LEARNING, 0);
    made_set_port(s, TAP, IFLA_BRPORT_UNICAST_FLOOD, 0);
    expect(s, "bridge.flood-off", HOP_BRIDGE_FORWARD, "flood is off");
}

static void test_bridges(void **state) {
    struct snapshot *s = made_host();
    made_find(s, BRIDGE)->flags &= ~(unsigned)IFF_UP;
    expect(s, "bridge.down", HOP_BRIDGE_DEV, "br0");
    s = made_host();
    made_find(s, BRIDGE)->flags |= IFF_NOARP;
    expect(s, "bridge.noarp", HOP_HOST_NEIGH, "br0");
    s = made_host();
    made_find(s, BRIDGE)->proto_down = true;
    expect(s, "bridge.proto-down", HOP_BRIDGE_DEV, "protodown");
    s = made_host();
    made_link(s, 9, "bond0", "bond");
    made_find(s, BRIDGE)->master = 9;
    expect(s, "bridge.enslaved", HOP_BRIDGE_DEV, "bond0");
    s = made_host();
    *SNAP_PUSH(s, neighs, 10) = (struct snap_neigh){.link = BRIDGE, .ip = GUEST, .flags = NTF_PROXY};
    expect(s, "host.neigh-proxy", HOP_HOST_NEIGH, "192.168.0.2");
    s = made_host();
    made_find(s, TAP)->mac = guest_mac;
    expect(s, "tap.mac-equals-guest", HOP_BRIDGE_FORWARD, "02:fc:00:00:00:01");
    s = made_host();
    *SNAP_PUSH(s, fdbs, 10) = (struct snap_fdb){.link = OTHER, .master = BRIDGE, .mac = guest_mac, .state = NUD_NOARP};
    expect(s, "bridge.fdb-wrong", HOP_BRIDGE_FORWARD, "tap2");
    s = made_host();
    made_find(s, BRIDGE)->mtu = made_find(s, TAP)->mtu = 1400;
    expect(s, "bridge.mtu-mismatch", HOP_BRIDGE_DEV, "tap1");
    s = made_host();
    str_copy(s->links[0].name, sizeof s->links[0].name, "brX");
    expect(s, "bridge.missing", HOP_BRIDGE_DEV, "br0");
}

static void test_queues(void **state) {
    struct snapshot *s = made_host();
    *SNAP_PUSH(s, qdiscs, 10) = (struct snap_qdisc){.link = TAP, .parent = TC_H_ROOT, .kind = "blackhole"};
    expect(s, "qdisc.drops", HOP_TAP_EGRESS, "blackhole");
    s = made_host();
    *SNAP_PUSH(s, qdiscs, 10) = (struct snap_qdisc){.link = BRIDGE, .parent = TC_H_ROOT, .kind = "pfifo", .limit = 0};
    expect(s, "qdisc.drops", HOP_BRIDGE_DEV, "br0");
    s = made_host();
    *SNAP_PUSH(s, qdiscs, 10) = (struct snap_qdisc){.link = TAP, .parent = TC_H_ROOT, .kind = "pfifo", .limit = 100};
    expect(s, NULL, 0, "");
    s = made_host();
    *SNAP_PUSH(s, filters, 10) = (struct snap_filter){
        .link = TAP, .kind = "matchall", .protocol = 3, .action = TC_ACT_SHOT, .actions = "gact drop"};
    expect(s, "tc.ingress-drop", HOP_TAP_INGRESS, "tap1");
    s = made_host(); /* for other packets only; and one behind an accepting one */
    *SNAP_PUSH(s, filters, 10) = (struct snap_filter){
        .link = TAP, .egress = true, .kind = "u32", .protocol = 3, .action = TC_ACT_SHOT, .conditional = true};
    *SNAP_PUSH(s, filters, 10) =
        (struct snap_filter){.link = BRIDGE, .egress = true, .kind = "matchall", .protocol = 3, .action = TC_ACT_OK};
    *SNAP_PUSH(s, filters, 10) =
        (struct snap_filter){.link = BRIDGE, .egress = true, .kind = "matchall", .protocol = 3, .action = TC_ACT_SHOT};
    expect(s, NULL, 0, "");
}

/* Its ARP came to the bridge and not to the TAP. The caller frees the judgement. */
static struct judgement judge_lost_before_tap(const struct snapshot *before, const struct snapshot *after) {
    struct probe_target_result target = {.target = {.tap = TAP, .tap_name = "tap1", .guest_ip = GUEST}};
    struct probe_result probe = {.targets = &target, .target_count = 1, .bridge = BRIDGE};
    struct target asked = {
        .tap = "tap1", .bridge = "br0", .ip = GUEST, .has_mac = true, .mac = guest_mac, .named = true};
    struct judge_host host;
    struct judgement j = {0};
    target.answer[PROBE_ARP] =
        (struct probe_answer){.asked = true, .sent = true, .sends = 2, .request_bridge = {.count = 2, .first_ns = 1}};
    if (judge_open(before, after, &probe, &host) < 0 || judge_target(&host, &asked, 0, &j) < 0)
        abort();
    judge_close(&host);
    return j;
}

static bool has_finding(const struct judgement *j, const char *id) {
    for (uint32_t i = 0; i < j->findings_count; i++)
        if (strcmp(j->findings[i].id, id) == 0)
            return true;
    return false;
}

/* ARP is answered behind the TAP, and pings go to the other port. */
static struct judgement judge_led_astray(const struct snapshot *before, const struct snapshot *after) {
    struct probe_target_result target = {.target = {.tap = TAP, .tap_name = "tap1", .guest_ip = GUEST}};
    struct probe_result probe = {.targets = &target, .target_count = 1, .bridge = BRIDGE};
    struct target asked = {.tap = "tap1",
                           .bridge = "br0",
                           .ip = GUEST,
                           .has_mac = true,
                           .mac = guest_mac,
                           .named = true,
                           .mac_given = true};
    struct judge_host host;
    struct judgement j = {0};
    target.answer[PROBE_ARP] = (struct probe_answer){.asked = true,
                                                     .sent = true,
                                                     .sends = 1,
                                                     .answered = true,
                                                     .request_bridge = {.count = 1},
                                                     .request_tap = {.count = 1},
                                                     .reply_tap = {.count = 1},
                                                     .reply_bridge = {.count = 1},
                                                     .macs = {guest_mac},
                                                     .mac_count = 1};
    target.answer[PROBE_ICMP] = (struct probe_answer){.asked = true,
                                                      .sent = true,
                                                      .sends = 1,
                                                      .request_bridge = {.count = 1},
                                                      .request_elsewhere = {{OTHER, "tap2", 1}},
                                                      .request_elsewhere_count = 1};
    if (judge_open(before, after, &probe, &host) < 0 || judge_target(&host, &asked, 0, &j) < 0)
        abort();
    judge_close(&host);
    return j;
}

/* A port of the bridge has more room than the TAPs, and packets as large as they are without it pass. */
static void test_room_that_nobody_uses(void **state) {
    struct snapshot *s = made_host();
    struct probe_target_result target = {.target = {.tap = TAP, .tap_name = "tap1", .guest_ip = GUEST}};
    struct probe_result probe = {.targets = &target, .target_count = 1, .bridge = BRIDGE};
    struct target asked = {.tap = "tap1", .bridge = "br0", .ip = GUEST, .named = true};
    static const enum probe_kind kinds[] = {PROBE_ARP, PROBE_ICMP, PROBE_LARGE};
    struct snap_link *uplink = made_link(s, 9, "eth0", "");
    uplink->master = BRIDGE;
    uplink->mtu = 9000;
    *SNAP_PUSH(s, fdbs, 10) =
        (struct snap_fdb){.link = BRIDGE, .master = BRIDGE, .mac = made_find(s, BRIDGE)->mac, .state = NUD_PERMANENT};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        target.answer[kinds[i]] = (struct probe_answer){.asked = true,
                                                        .sent = true,
                                                        .sends = 1,
                                                        .answered = true,
                                                        .request_bridge = {.count = 1},
                                                        .request_tap = {.count = 1},
                                                        .reply_tap = {.count = 1},
                                                        .reply_bridge = {.count = 1}};
    for (uint32_t mtu = 1500; mtu >= 1400; mtu -= 100) {
        struct judge_host host;
        struct judgement j = {0};
        made_find(s, TAP)->mtu = made_find(s, BRIDGE)->mtu = mtu;
        assert_int_equal(judge_open(s, NULL, &probe, &host), 0);
        assert_int_equal(judge_target(&host, &asked, 0, &j), 0);
        judge_close(&host);
        assert_int_equal(has_finding(&j, "bridge.mtu-mismatch"), mtu < 1500);
        judgement_free(&j);
    }
    snapshot_free(s);
}

/* A reset is all that is known from outside: who sent it is not. */
static void test_refused(void **state) {
    struct snapshot *s = made_host();
    struct probe_target_result target = {.target = {.tap = TAP, .tap_name = "tap1", .guest_ip = GUEST, .port = 6080}};
    struct probe_result probe = {.targets = &target, .target_count = 1, .bridge = BRIDGE};
    struct target asked = {.tap = "tap1", .bridge = "br0", .ip = GUEST, .port = 6080, .named = true};
    struct judge_host host;
    struct judgement j = {0};
    const struct probe_answer well = {.asked = true,
                                      .sent = true,
                                      .sends = 1,
                                      .answered = true,
                                      .request_bridge = {.count = 1},
                                      .request_tap = {.count = 1},
                                      .reply_tap = {.count = 1},
                                      .reply_bridge = {.count = 1}};
    *SNAP_PUSH(s, fdbs, 10) =
        (struct snap_fdb){.link = BRIDGE, .master = BRIDGE, .mac = made_find(s, BRIDGE)->mac, .state = NUD_PERMANENT};
    target.answer[PROBE_ARP] = target.answer[PROBE_ICMP] = target.answer[PROBE_TCP] = well;
    target.answer[PROBE_ARP].macs[0] = guest_mac;
    target.answer[PROBE_ARP].mac_count = 1;
    target.answer[PROBE_TCP].answer_errno = ECONNREFUSED;
    assert_int_equal(judge_open(s, NULL, &probe, &host), 0);
    assert_int_equal(judge_target(&host, &asked, 0, &j), 0);
    judge_close(&host);
    assert_int_equal(j.findings_count, 1);
    assert_string_equal(j.findings[0].id, "guest.service-down");
    assert_non_null(strstr(j.findings[0].title, "port 6080"));
    assert_non_null(strstr(j.findings[0].title, "or its packet filter"));
    assert_int_equal(j.reachable, 0);
    judgement_free(&j);
    snapshot_free(s);
}

/* What is lost without a name is of the layer of the place where it is lost. */
static void test_layer_of_unknown(void **state) {
    struct snapshot *s = made_host();
    struct probe_target_result target = {.target = {.tap = TAP, .tap_name = "tap1", .guest_ip = GUEST}};
    struct probe_result probe = {.targets = &target, .target_count = 1, .bridge = BRIDGE};
    struct target asked = {.tap = "tap1", .bridge = "br0", .ip = GUEST, .named = true};
    struct judge_host host;
    struct judgement j = {0};
    target.answer[PROBE_ICMP] = (struct probe_answer){.asked = true, .sent = true, .sends = 1};
    assert_int_equal(judge_open(s, NULL, &probe, &host), 0);
    assert_int_equal(judge_target(&host, &asked, 0, &j), 0);
    judge_close(&host);
    assert_int_equal(j.findings_count, 1);
    assert_string_equal(j.findings[0].id, "unknown.host.neigh");
    assert_string_equal(j.findings[0].layer, "L3");
    judgement_free(&j);
    snapshot_free(s);
}

static struct snapshot *made_astray(bool heard) {
    struct snapshot *s = made_host();
    *SNAP_PUSH(s, fdbs, 10) =
        (struct snap_fdb){.link = OTHER, .master = BRIDGE, .mac = guest_mac, .state = NUD_REACHABLE};
    *SNAP_PUSH(s, fdbs, 10) =
        (struct snap_fdb){.link = BRIDGE, .master = BRIDGE, .mac = made_find(s, BRIDGE)->mac, .state = NUD_PERMANENT};
    if (heard)
        *SNAP_PUSH(s, heard, 10) =
            (struct snap_heard){.link = TAP, .kind = SNAP_HEARD_IS_AT, .source = guest_mac, .source_ip = GUEST};
    return s;
}

/* The table has the guest's MAC elsewhere. Frames of its own on its own port say that it is not there. */
static void test_stuck_entry(void **state) {
    struct snapshot *before = made_astray(false), *after = made_astray(true);
    struct judgement j = judge_led_astray(before, after);
    assert_string_equal(j.findings[0].id, "bridge.fdb-wrong");
    assert_non_null(strstr(j.findings[0].title, "stuck"));
    assert_string_equal(j.findings[0].plan[0], "bridge fdb del 02:fc:00:00:00:01 dev tap2 master");
    assert_false(has_finding(&j, "tap.swapped"));
    judgement_free(&j);
    snapshot_free(after);
    after = made_astray(false);
    j = judge_led_astray(before, after);
    assert_true(has_finding(&j, "tap.swapped"));
    judgement_free(&j);
    snapshot_free(before);
    snapshot_free(after);
}

/* The bridge, or another TAP, has the guest's MAC. */
static void test_mac_of_another(void **state) {
    static const struct {
        int link;
        const char *id, *plan;
    } rows[] = {{BRIDGE, "bridge.mac-equals-guest", "ip link set br0 address "},
                {OTHER, "tap.mac-equals-guest", "ip link set tap2 address "}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct snapshot *s = made_host();
        made_find(s, rows[i].link)->mac = guest_mac;
        *SNAP_PUSH(s, fdbs, 10) =
            (struct snap_fdb){.link = rows[i].link, .master = BRIDGE, .mac = guest_mac, .state = NUD_PERMANENT};
        *SNAP_PUSH(s, fdbs, 10) = (struct snap_fdb){
            .link = BRIDGE, .master = BRIDGE, .mac = made_find(s, BRIDGE)->mac, .state = NUD_PERMANENT};
        struct judgement j = made_judge(s);
        assert_string_equal(j.findings[0].id, rows[i].id);
        assert_int_equal(j.findings[0].step_count, 0);
        assert_int_equal(strncmp(j.findings[0].plan[0], rows[i].plan, strlen(rows[i].plan)), 0);
        judgement_free(&j);
        snapshot_free(s);
    }
}

static struct snapshot *made_filters(struct snap_filter filter, uint32_t count, uint64_t packets) {
    struct snapshot *s = made_host();
    for (uint32_t i = 0; i < count; i++) {
        struct snap_filter *f = SNAP_PUSH(s, filters, 10000);
        *f = filter;
        f->handle = i + 1;
        f->packets = packets;
    }
    return s;
}

/* Before and behind the asking; whether the filters are named, and that the loss is, in any case. */
static void expect_filter(struct snapshot *before, struct snapshot *after, bool named) {
    struct judgement j = judge_lost_before_tap(before, after);
    assert_int_equal(has_finding(&j, "tc.egress-drop"), named);
    assert_int_equal(has_finding(&j, "unknown.bridge.port"), !named);
    assert_true(j.findings_count < 20);
    judgement_free(&j);
    snapshot_free(before);
    snapshot_free(after);
}

/* A filter for some packets only is no suspect when none of them came; and however many there are, the loss is told. */
static void test_filters_asked(void **state) {
    struct snap_filter f = {.link = TAP,
                            .egress = true,
                            .kind = "u32",
                            .protocol = 3,
                            .action = TC_ACT_SHOT,
                            .actions = "gact drop",
                            .conditional = true};
    expect_filter(made_filters(f, 1, 5), made_filters(f, 1, 5), false);
    expect_filter(made_filters(f, 1, 5), made_filters(f, 1, 7), true);
    expect_filter(made_filters(f, 1000, 5), made_filters(f, 1000, 5), false);
    expect_filter(made_filters(f, 1000, 5), made_filters(f, 1000, 6), true);
}

static struct snapshot *made_classes(uint64_t drops) {
    struct snapshot *s = made_host();
    *SNAP_PUSH(s, qdiscs, 10) =
        (struct snap_qdisc){.link = TAP, .handle = 0x10000, .parent = TC_H_ROOT, .kind = "htb", .limit = UINT32_MAX};
    *SNAP_PUSH(s, qdiscs, 10) = (struct snap_qdisc){
        .link = TAP, .handle = 0x200000, .parent = 0x10020, .kind = "blackhole", .limit = UINT32_MAX, .drops = drops};
    return s;
}

/* A class that drops all that it is given is at fault when it was given something. */
static void test_classes(void **state) {
    expect(made_classes(3), NULL, 0, "");
    for (uint64_t drops = 3; drops < 5; drops++) {
        struct snapshot *before = made_classes(3), *after = made_classes(drops);
        struct judgement j = judge_lost_before_tap(before, after);
        assert_int_equal(has_finding(&j, "qdisc.drops"), drops > 3);
        assert_int_equal(has_finding(&j, "unknown.bridge.port"), drops == 3);
        judgement_free(&j);
        snapshot_free(before);
        snapshot_free(after);
    }
}

/* In a chain that a filter goes to, or that none does; and of a block that devices share. */
static void test_filters_elsewhere(void **state) {
    const struct snap_filter drop = {.link = TAP,
                                     .egress = true,
                                     .kind = "matchall",
                                     .protocol = 3,
                                     .action = TC_ACT_SHOT,
                                     .actions = "gact drop",
                                     .chain = 5};
    struct snap_filter hop = drop;
    hop.chain = 0;
    hop.action = TC_ACT_GOTO_CHAIN | 5;
    struct snapshot *before = made_filters(drop, 1, 5), *after = made_filters(drop, 1, 7);
    expect_filter(before, after, false);
    before = made_filters(drop, 1, 5);
    after = made_filters(drop, 1, 7);
    *SNAP_PUSH(before, filters, 10) = hop;
    *SNAP_PUSH(after, filters, 10) = hop;
    expect_filter(before, after, true);
    before = made_host();
    *SNAP_PUSH(before, filters, 10) = drop;
    before->filters[0].chain = 0;
    before->filters[0].block = 7;
    struct judgement j = made_judge(before);
    assert_string_equal(j.findings[0].id, "tc.egress-drop");
    assert_int_equal(j.findings[0].step_count, 0); /* the block is others' too */
    assert_non_null(strstr(j.findings[0].plan[0], "block 7"));
    judgement_free(&j);
    snapshot_free(before);
}

static void test_routes(void **state) {
    struct snapshot *s = made_host();
    s->addrs_count = s->routes_count = 0;
    s->lookups[0].error = ENETUNREACH;
    expect(s, "host.no-address", HOP_HOST_ROUTE, "br0");
    s = made_router();
    s->lookups[0].link = UPLINK;
    *SNAP_PUSH(s, routes, 10) = (struct snap_route){
        .table = RT_TABLE_MAIN, .to = 0xc0a80000, .length = 24, .type = RTN_UNICAST, .link = UPLINK, .gateway = 1};
    expect(s, "host.route-elsewhere", HOP_HOST_ROUTE, "192.168.0.0/24");
    s = made_host();
    s->lookups[0].error = EINVAL;
    *SNAP_PUSH(s, routes, 10) =
        (struct snap_route){.table = RT_TABLE_MAIN, .to = GUEST, .length = 32, .type = RTN_BLACKHOLE};
    expect(s, "host.blackhole-route", HOP_HOST_ROUTE, "192.168.0.2/32");
    s = made_host();
    s->lookups[0].error = EACCES;
    s->policies[1] = (struct snap_policy){.priority = 500, .to = GUEST, .to_length = 32, .action = 8};
    expect(s, "host.policy-rule", HOP_HOST_ROUTE, "500");
    s = made_host();
    s->lookups[0].type = RTN_LOCAL;
    *SNAP_PUSH(s, addrs, 10) = (struct snap_addr){.link = BRIDGE, .ip = GUEST, .length = 32};
    expect(s, "host.address-conflict", HOP_HOST_ROUTE, "192.168.0.2");
    s = made_host();
    *SNAP_PUSH(s, neighs, 10) = (struct snap_neigh){
        .link = BRIDGE, .ip = GUEST, .state = NUD_PERMANENT, .has_mac = true, .mac = {{2, 0, 0, 0, 0, 9}}};
    expect(s, "host.neigh-wrong", HOP_HOST_NEIGH, "02:00:00:00:00:09");
}

static void test_sysctls(void **state) {
    struct snapshot *s = made_host();
    made_sysctl(s, "net/ipv4/conf/all/arp_ignore", "8");
    expect(s, "host.arp-ignore", HOP_HOST_INPUT, "arp_ignore");
    s = made_host();
    made_sysctl(s, "net/ipv4/conf/br0/arp_ignore", "1");
    made_sysctl(s, "net/ipv4/conf/br0/rp_filter", "1");
    expect(s, NULL, 0, "");
    s = made_host(); /* libvirt's network lies inside the bridge's, and is nothing to its VMs */
    made_sysctl(s, "net/ipv4/conf/br0/arp_ignore", "1");
    made_link(s, 9, "virbr0", "bridge");
    *SNAP_PUSH(s, addrs, 100) = (struct snap_addr){.link = 9, .ip = 0xc0a87a01, .length = 24};
    expect(s, NULL, 0, "");
    s = made_host(); /* their gateway's address, on lo */
    made_sysctl(s, "net/ipv4/conf/br0/arp_ignore", "1");
    made_link(s, 9, "lo", "")->flags |= IFF_LOOPBACK;
    *SNAP_PUSH(s, addrs, 100) = (struct snap_addr){.link = 9, .ip = 0xc0a80003, .length = 32};
    expect(s, "host.arp-ignore", HOP_HOST_INPUT, "lo");
    s = made_host();
    made_sysctl(s, "net/ipv4/neigh/br0/mcast_solicit", "0");
    made_sysctl(s, "net/ipv4/neigh/br0/app_solicit", "0");
    expect(s, "host.neigh-solicit", HOP_HOST_NEIGH, "mcast_solicit");
}

/* The limits are the whole machine's, so these are never injected. */
static void test_full_tables(void **state) {
    struct snapshot *s = made_host();
    *SNAP_PUSH(s, fills, 10) = (struct snap_table_fill){.name = "conntrack", .used = 1000, .max = 1000};
    expect(s, "host.conntrack-full", HOP_HOST_FORWARD, "1000");
    s = made_host();
    *SNAP_PUSH(s, fills, 10) = (struct snap_table_fill){.name = "neigh", .used = 1024, .max = 1024, .full_events = 3};
    expect(s, "host.neigh-table-full", HOP_HOST_NEIGH, "1024");
    s = made_host();
    *SNAP_PUSH(s, fills, 10) = (struct snap_table_fill){.name = "neigh", .used = 900, .max = 1024, .full_events = 3};
    expect(s, NULL, 0, "");
}

static void test_leaked_is_a_note(void **state) {
    struct snapshot *s = unheld();
    struct judge_host host;
    struct judgement j;
    struct target target = {.tap = "tap1", .bridge = "br0"};
    assert_int_equal(judge_open(s, NULL, NULL, &host), 0);
    assert_int_equal(judge_target(&host, &target, -1, &j), 0);
    assert_int_equal(j.findings_count, 1);
    assert_string_equal(j.findings[0].id, "tap.leaked");
    assert_int_equal(j.findings[0].role, ROLE_NOTE);
    judgement_free(&j);
    judge_close(&host);
    snapshot_free(s);
}

/* Together, in the order of the way. */
static void test_combination(void **state) {
    struct snapshot *s = made_host();
    made_find(s, BRIDGE)->flags |= IFF_NOARP;
    made_set_port(s, TAP, IFLA_BRPORT_STATE, 0);
    s->holders[0].state = 'T';
    struct judgement j = made_judge(s);
    assert_int_equal(j.findings_count, 3);
    assert_string_equal(j.findings[0].id, "bridge.noarp");
    assert_string_equal(j.findings[1].id, "bridge.port-not-forwarding");
    assert_string_equal(j.findings[2].id, "vmm.stalled");
    judgement_free(&j);
    snapshot_free(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_catalogue_is_complete),
        cmocka_unit_test(test_healthy),
        cmocka_unit_test(test_taps),
        cmocka_unit_test(test_safe_to_attach),
        cmocka_unit_test(test_holders),
        cmocka_unit_test(test_name_collision),
        cmocka_unit_test(test_ports),
        cmocka_unit_test(test_bridges),
        cmocka_unit_test(test_queues),
        cmocka_unit_test(test_stuck_entry),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_layer_of_unknown),
        cmocka_unit_test(test_room_that_nobody_uses),
        cmocka_unit_test(test_mac_of_another),
        cmocka_unit_test(test_filters_asked),
        cmocka_unit_test(test_classes),
        cmocka_unit_test(test_filters_elsewhere),
        cmocka_unit_test(test_routes),
        cmocka_unit_test(test_sysctls),
        cmocka_unit_test(test_full_tables),
        cmocka_unit_test(test_leaked_is_a_note),
        cmocka_unit_test(test_combination),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

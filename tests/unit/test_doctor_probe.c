/* The pure parts of the probe: frames, tags, counting, JSON, the choice of a canary's address; and what a probe in an
 * empty network says. */
#include "cmocka_all.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "doctor/probe/internal.h"
#include "doctor/probe/probe_json.h"

#define HOST 0xc0a80001
#define GUEST 0xc0a80002
#define CANARY 0xc0a800fe

static const struct net_mac bridge_mac = {{2, 0, 0, 0, 0, 0xaa}}, guest_mac = {{2, 0xfc, 0, 0, 0, 1}},
                            canary_mac = {{2, 0xfd, 0xff, 1, 2, 3}};

static struct probe_frame parse(const uint8_t *data, size_t len) {
    struct probe_frame frame;
    uint8_t *exact = malloc(len ? len : 1); /* so that ASan sees a read behind the end */
    memcpy(exact, data, len);
    frame_parse(exact, len, len, &frame);
    free(exact);
    return frame;
}

static void test_frames(void **state) {
    uint8_t buffer[FRAME_MAX];
    struct frame_ends ends = {bridge_mac, FRAME_BROADCAST, HOST, GUEST};
    assert_int_equal(frame_who_has(buffer, &ends), 60);
    struct probe_frame f = parse(buffer, 60);
    assert_int_equal(f.kind, PROBE_FRAME_WHO_HAS);
    assert_int_equal(f.source_ip, HOST);
    assert_int_equal(f.destination_ip, GUEST);
    assert_memory_equal(&f.source, &bridge_mac, 6);
    assert_int_equal(buffer[20], 0);
    assert_int_equal(buffer[21], 1);

    size_t len = frame_echo(buffer, &ends, 8, 0x1234, 7, 56);
    assert_int_equal(len, 98);
    f = parse(buffer, len);
    assert_int_equal(f.kind, PROBE_FRAME_ECHO);
    assert_int_equal(f.echo_id, 0x1234);
    assert_int_equal(f.echo_sequence, 7);
    assert_int_equal(frame_checksum(buffer + 14, 20, 0), 0);
    assert_int_equal(frame_checksum(buffer + 34, 64, 0), 0);

    len = frame_syn(buffer, &ends, 40000, 6080, 1);
    f = parse(buffer, len);
    assert_int_equal(f.kind, PROBE_FRAME_SYN);
    assert_int_equal(f.source_port, 40000);
    assert_int_equal(f.destination_port, 6080);
    /* The checksum is over a pseudo header too: 192.168.0.1 + 192.168.0.2 + protocol + length */
    assert_int_equal(frame_checksum(buffer + 34, 24, 0xc0a8 + 0x0001 + 0xc0a8 + 0x0002 + 6 + 24), 0);
    for (size_t cut = 0; cut < len; cut++)
        parse(buffer, cut);
}

static void test_icmp_error(void **state) {
    uint8_t inner[FRAME_MAX], buffer[FRAME_MAX];
    struct frame_ends ends = {bridge_mac, guest_mac, HOST, GUEST};
    frame_echo(inner, &ends, 8, 0x4321, 3, 8);
    size_t len = frame_echo(buffer, &ends, 3, 0, 0, 28);
    buffer[35] = 1; /* host unreachable */
    memcpy(buffer + 42, inner + 14, 28);
    struct probe_frame f = parse(buffer, len);
    assert_int_equal(f.kind, PROBE_FRAME_ICMP_ERROR);
    assert_int_equal(f.icmp_code, 1);
    assert_int_equal(f.echo_id, 0x4321);
    for (size_t cut = 0; cut < len; cut++)
        parse(buffer, cut);
}

/* Frames that a virtio header too many or too few has shifted. */
static void test_garbled(void **state) {
    uint8_t buffer[80] = {0}, good[FRAME_MAX];
    struct frame_ends ends = {guest_mac, bridge_mac, GUEST, HOST};
    frame_is_at(good, &ends);
    assert_int_equal(parse(good, 60).kind, PROBE_FRAME_IS_AT);
    memcpy(buffer + 12, good, 60); /* a header in front: no source address */
    assert_int_equal(parse(buffer, 72).kind, PROBE_FRAME_GARBLED);
    assert_int_equal(parse(good + 2, 58).kind, PROBE_FRAME_GARBLED);
    memset(buffer, 0, sizeof buffer);
    memcpy(buffer, "\x01\x80\xc2\0\0\0\x02\xfc\0\0\0\x01\0\x26\x42\x42\x03", 17); /* spanning tree is a good one */
    assert_int_equal(parse(buffer, 60).kind, PROBE_FRAME_OTHER);
}

/* A run with one target on TAP 3, bridge 2, canary 5. */
struct rig {
    struct probe_target target;
    struct probe_request request;
    struct probe_target_result target_result;
    struct probe_result result;
    uint16_t tcp_port, raw_port;
    struct tagger tagger;
};

static void set_up(struct rig *rig) {
    *rig = (struct rig){.target = {.tap = 3, .tap_name = "fc-vm-1", .guest_ip = GUEST, .port = 80},
                        .tcp_port = 50000,
                        .raw_port = 50001};
    rig->request = (struct probe_request){
        .bridge = 2, .bridge_name = "br0", .bridge_address = {HOST, 16}, .targets = &rig->target, .target_count = 1};
    rig->result = (struct probe_result){.targets = &rig->target_result, .target_count = 1};
    rig->result.canary.ifindex = 5;
    rig->tagger = (struct tagger){.request = &rig->request,
                                  .result = &rig->result,
                                  .bridge_mac = bridge_mac,
                                  .canary_mac = canary_mac,
                                  .has_canary = true,
                                  .canary_ip = CANARY,
                                  .id_base = 0x5550,
                                  .tcp_port = &rig->tcp_port,
                                  .raw_port = &rig->raw_port};
}

static void see(struct rig *rig, const uint8_t *data, size_t len, int32_t ifindex, bool outgoing, int32_t tag,
                bool reply) {
    struct probe_frame frame = parse(data, len);
    frame.ifindex = ifindex;
    frame.outgoing = outgoing;
    frame.at_ns = 1000;
    tag_frame(&rig->tagger, &frame);
    assert_int_equal(frame.tag, tag);
    if (tag != TRACE_NO_TAG)
        assert_int_equal(frame.reply, reply);
    count_frame(&rig->tagger, &frame);
}

static void test_tags(void **state) {
    struct rig rig;
    uint8_t b[FRAME_MAX];
    set_up(&rig);
    const struct probe_answer *arp = &rig.target_result.answer[PROBE_ARP];
    struct frame_ends out = {bridge_mac, FRAME_BROADCAST, HOST, GUEST}, in = {guest_mac, bridge_mac, GUEST, HOST};
    frame_who_has(b, &out);
    rig.target_result.answer[PROBE_ARP].sent_ns = 1;
    see(&rig, b, 60, 2, true, probe_tag(0, PROBE_ARP), false);
    see(&rig, b, 60, 3, true, probe_tag(0, PROBE_ARP), false);
    see(&rig, b, 60, 9, true, probe_tag(0, PROBE_ARP), false); /* flooded */
    see(&rig, b, 42, 2, true, probe_tag(0, PROBE_ARP_KERNEL), false);
    assert_int_equal(arp->request_bridge.count, 1);
    assert_int_equal(arp->request_tap.count, 1);
    assert_int_equal(arp->request_elsewhere_count, 1);
    assert_int_equal(arp->request_elsewhere[0].ifindex, 9);
    frame_is_at(b, &in);
    see(&rig, b, 42, 3, false, probe_tag(0, PROBE_ARP_KERNEL), true); /* the last that was asked */
    see(&rig, b, 42, 3, false, probe_tag(0, PROBE_ARP), true);        /* and then the other */
    see(&rig, b, 42, 9, false, probe_tag(0, PROBE_ARP_KERNEL), true);
    assert_int_equal(arp->reply_tap.count, 1);
    assert_int_equal(arp->mac_count, 1);

    size_t len = frame_echo(b, &in, 0, 0x5550 | PROBE_ICMP, 1, 56);
    see(&rig, b, len, 3, false, probe_tag(0, PROBE_ICMP), true);
    len = frame_echo(b, &in, 0, 0x6660 | PROBE_ICMP, 1, 56); /* somebody else's ping */
    see(&rig, b, len, 3, false, TRACE_NO_TAG, true);
    out.destination_mac = guest_mac;
    len = frame_syn(b, &out, 50001, 80, 1);
    see(&rig, b, len, 2, true, probe_tag(0, PROBE_TCP_RAW), false);
    len = frame_syn(b, &out, 50002, 80, 1);
    see(&rig, b, len, 2, true, TRACE_NO_TAG, false);
}

static void test_canary_tags(void **state) {
    struct rig rig;
    uint8_t b[FRAME_MAX];
    set_up(&rig);
    struct frame_ends ends = {canary_mac, FRAME_BROADCAST, CANARY, GUEST};
    frame_who_has(b, &ends);
    see(&rig, b, 60, 5, false, probe_tag(0, PROBE_CANARY_ARP), false);
    see(&rig, b, 60, 3, true, probe_tag(0, PROBE_CANARY_ARP), false);
    see(&rig, b, 60, 2, false, probe_tag(0, PROBE_CANARY_ARP), false);
    const struct probe_answer *answer = &rig.target_result.answer[PROBE_CANARY_ARP];
    assert_int_equal(answer->request_canary.count, 1);
    assert_int_equal(answer->request_tap.count, 1);
    assert_int_equal(answer->request_bridge.count, 1);
    ends.destination_ip = HOST;
    frame_who_has(b, &ends);
    see(&rig, b, 60, 5, false, probe_tag(0, PROBE_CANARY_ARP_HOST), false);
    struct frame_ends host = {bridge_mac, FRAME_BROADCAST, HOST, CANARY};
    frame_who_has(b, &host);
    see(&rig, b, 42, 2, true, probe_tag(0, PROBE_HOST_ICMP_CANARY), false);
    struct frame_ends guest = {guest_mac, FRAME_BROADCAST, GUEST, CANARY};
    frame_who_has(b, &guest); /* a guest's own question */
    see(&rig, b, 42, 3, false, TRACE_NO_TAG, false);
    assert_int_equal(rig.target_result.guest_asks_canary, 1);
}

static void test_canary_address(void **state) {
    struct rig rig;
    set_up(&rig);
    assert_int_equal(canary_choose(&rig.request, 0), 0xc0a800fe);
    assert_int_equal(canary_choose(&rig.request, 0xc0a800fe), 0xc0a800fd);
    uint32_t taken[] = {0xc0a800fe, 0xc0a800fd};
    rig.request.taken = taken;
    rig.request.taken_count = 2;
    assert_int_equal(canary_choose(&rig.request, 0), 0xc0a800fc);
    rig.request.bridge_address = (struct net_prefix){0xc0a80001, 30}; /* .1 and .2 are all that there are */
    rig.request.taken_count = 0;
    assert_int_equal(canary_choose(&rig.request, 0), 0);
    rig.request.bridge_address = (struct net_prefix){0xc0a80001, 29};
    assert_int_equal(canary_choose(&rig.request, 0), 0xc0a80006);
    rig.request.bridge_address = (struct net_prefix){0};
    assert_int_equal(canary_choose(&rig.request, 0), 0);
    rig.request.bridge_address = (struct net_prefix){0x0a000001, 8}; /* the guest is elsewhere */
    assert_int_equal(canary_choose(&rig.request, 0), 0);
}

static struct probe_result *made_up(void) {
    struct probe_result *result = calloc(1, sizeof *result);
    result->targets = calloc(1, sizeof *result->targets);
    result->target_count = 1;
    result->frames = calloc(2, sizeof *result->frames);
    result->frame_count = 2;
    /* Every byte of what has no inner limits is set: a member that is not saved would come back as zero. */
    memset(&result->bridge_before, 1, sizeof result->bridge_before);
    memset(&result->targets[0].tap_after, 1, sizeof result->targets[0].tap_after);
    memset(&result->targets[0].answer[PROBE_TCP], 1, sizeof result->targets[0].answer[PROBE_TCP]);
    struct probe_answer *answer = &result->targets[0].answer[PROBE_TCP];
    answer->why_not[5] = answer->request_elsewhere[0].name[3] = '\0';
    memset(answer->why_not + 5, 0, sizeof answer->why_not - 5);
    for (int i = 0; i < PROBE_ELSEWHERE_MAX; i++) {
        memset(answer->request_elsewhere[i].name + 3, 0, PROBE_NAME - 3);
        memset(answer->reply_elsewhere[i].name + 3, 0, PROBE_NAME - 3);
    }
    answer->request_elsewhere_count = answer->reply_elsewhere_count = answer->mac_count = 2;
    memset(&result->frames[0], 1, sizeof result->frames[0]);
    result->frames[0].kind = PROBE_FRAME_RST;
    result->frames[0].tag = 3;
    result->frames[0].kept = 100;
    result->frames[1].tag = TRACE_NO_TAG;
    result->targets[0].target.guest_ip = GUEST;
    result->trace = calloc(1, sizeof *result->trace);
    strcpy(result->trace->tracefs.why, "none");
    struct trace_event *event = result->trace->events = calloc(1, sizeof *event);
    memset(event, 1, sizeof *event);
    memset(event->dev + 3, 0, sizeof event->dev - 3);
    memset(event->location + 3, 0, sizeof event->location - 3);
    memset(event->reason, 0, sizeof event->reason);
    strcpy(event->reason, "caf\xe9"); /* not UTF-8 */
    event->kind = TRACE_DROPPED;
    event->tag = TRACE_NO_TAG;
    event->stack = 0;
    result->trace->event_count = 1;
    result->trace->stacks = calloc(1, sizeof *result->trace->stacks);
    result->trace->stack_count = 1;
    strcpy(result->trace->stacks[0].function[2], "f");
    return result;
}

static void test_json(void **state) {
    _cleanup_probe_result_free_ struct probe_result *a = made_up(), *b = NULL;
    struct err err;
    json_t *json = probe_to_json(a);
    assert_non_null(json);
    assert_int_equal(probe_from_json(json, &b, &err), 0);
    const struct probe_answer *x = &a->targets[0].answer[PROBE_TCP], *y = &b->targets[0].answer[PROBE_TCP];
#define SAME(member) assert_memory_equal(&x->member, &y->member, sizeof x->member) /* padding may differ */
    SAME(asked);
    SAME(why_not);
    SAME(sent);
    SAME(send_errno);
    SAME(sends);
    SAME(answered);
    SAME(answers);
    SAME(answer_errno);
    SAME(rtt_us);
    SAME(sent_ns);
    SAME(request_bridge.first_ns);
    SAME(request_tap.first_ns);
    SAME(reply_tap.first_ns);
    SAME(reply_bridge.count);
    SAME(request_canary.first_ns);
    SAME(reply_canary.count);
    SAME(request_elsewhere[3].name);
    SAME(request_elsewhere_count);
    SAME(reply_elsewhere[0].count);
    SAME(reply_elsewhere_count);
    SAME(macs);
    SAME(mac_count);
    SAME(mtu);
    SAME(size);
    assert_memory_equal(&a->targets[0].tap_after.link.rx_packets, &b->targets[0].tap_after.link.rx_packets, 8);
    assert_memory_equal(&a->frames[0].source, &b->frames[0].source, 12);
    assert_memory_equal(a->frames[0].data, b->frames[0].data, PROBE_SNAP);
    assert_string_equal(a->trace->events[0].reason, b->trace->events[0].reason);
    assert_string_equal(b->trace->stacks[0].function[2], "f");
    json_t *again = probe_to_json(b);
    assert_true(json_equal(json, again));
    json_decref(again);
    json_decref(json);
}

static void refuse(const char *text) {
    struct probe_result *result = NULL;
    struct err err;
    json_t *json = json_loads(text, 0, NULL);
    assert_non_null(json);
    assert_true(probe_from_json(json, &result, &err) < 0);
    assert_string_equal(err.code, "doctor.bad-file");
    assert_null(result);
    json_decref(json);
}

static void test_bad_json(void **state) {
    refuse("[]");
    refuse("{\"targets\":{}}");
    refuse("{\"targets\":[1]}");
    refuse("{\"targets\":[{\"answer\":[{\"mac_count\":5}]}]}");
    refuse("{\"targets\":[{\"answer\":[{\"mac_count\":-1}]}]}");
    refuse("{\"targets\":[{\"answer\":[{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}]}]}");
    refuse("{\"common\":[{\"request_elsewhere_count\":99}]}");
    refuse("{\"frames\":[{\"kept\":5000,\"tag\":-1}]}");
    refuse("{\"frames\":[{\"kind\":77,\"tag\":-1}]}");
    refuse("{\"frames\":[{\"tag\":100000}]}");
    refuse("{\"frames\":[{\"tag\":-2}]}");
    refuse("{\"frames\":[{\"tag\":-1,\"data\":\"zz\"}]}");
    refuse("{\"bridge_name\":\"a name that is much too long\"}");
    refuse("{\"bridge\":99999999999}");
    refuse("{\"trace\":{\"events\":[{\"stack\":7,\"tag\":-1}]}}");
    refuse("{\"trace\":{\"events\":[{\"kind\":99,\"tag\":-1,\"stack\":-1}]}}");
}

static void test_names(void **state) {
    for (int i = 0; i < PROBE_KIND_COUNT; i++)
        assert_non_null(probe_kind_name((enum probe_kind)i));
    for (int i = 0; i < PROBE_FRAME_KIND_COUNT; i++)
        assert_non_null(probe_frame_kind_name((enum probe_frame_kind)i));

    const struct probe_result none = {0};
    assert_false(probe_answer(&none, 3, PROBE_ARP)->asked);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frames), cmocka_unit_test(test_icmp_error),  cmocka_unit_test(test_garbled),
        cmocka_unit_test(test_tags),   cmocka_unit_test(test_canary_tags), cmocka_unit_test(test_canary_address),
        cmocka_unit_test(test_json),   cmocka_unit_test(test_bad_json),    cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* What the guests' agents say: taken in from anything, judged behind what the host saw. */
#include "doctor_made.h"

#include <linux/netfilter.h>

#include "cmocka_all.h"

#include "doctor/collect/guest.h"

#define VM "vm-69fac673-27a8-492f-8fe0-f9b604e6ab28"

static const char well[] =
    "{'links':[{'name':'lo','index':1,'up':true,'carrier':true,'mac':'00:00:00:00:00:00','mtu':65536,'kind':''},"
    "{'name':'eth0','index':2,'up':true,'carrier':true,'mac':'02:fc:00:00:00:01','mtu':1500,'kind':'',"
    "'counters':{'rx_packets':5}}],"
    "'addresses':[{'link':'lo','address':'127.0.0.1','prefix':8,'scope':254},"
    "{'link':'eth0','address':'192.168.0.2','prefix':16,'scope':0}],"
    "'routes':[{'family':4,'to':'default','prefix':0,'via':'192.168.0.1','link':'eth0','source':'','metric':0,"
    "'type':'unicast','table':254},{'family':4,'to':'192.168.0.0','prefix':16,'via':'','link':'eth0','source':'',"
    "'metric':0,'type':'unicast','table':254}],"
    "'neighbours':[],'listeners':[{'protocol':'tcp6','address':'::','port':6080,'queue':0,'pid':9,'program':'httpd'}],"
    "'firewall':{'chains':[],'rules':[],'more':0,'error':null,'iptables_legacy':null},"
    "'sysctls':{'net.ipv4.icmp_echo_ignore_all':0}}";

static json_t *parse(const char *text) {
    char *copy = strdup(text);
    for (char *c = copy; *c; c++)
        *c = *c == '\'' ? '"' : *c;
    json_t *json = json_loads(copy, JSON_DECODE_ANY, NULL);
    assert_non_null(json);
    free(copy);
    return json;
}

/* What was said, with one member in place of another; NULL: as it is. */
static struct snap_guest *say(struct snapshot *s, const char *member, const char *value) {
    json_t *network = parse(well), *other = member ? parse(value) : NULL;
    if (member)
        json_object_set_new(network, member, other);
    struct snap_guest *guest = SNAP_PUSH(s, guests, 4);
    str_copy(guest->vm_id, sizeof guest->vm_id, VM);
    str_copy(guest->tap, sizeof guest->tap, "tap1");
    guest->state = SNAP_GUEST_TOLD;
    guest_facts_take(s, guest, network, NULL, NULL, NULL);
    json_decref(network);
    return guest;
}

static struct snapshot *made_vm(void) {
    struct snapshot *s = made_host();
    struct snap_vm *vm = SNAP_PUSH(s, vms, 4);
    *vm = (struct snap_vm){.ip = GUEST, .mac = guest_mac, .pid = 101, .port = 6080};
    str_copy(vm->id, sizeof vm->id, VM);
    str_copy(vm->tap, sizeof vm->tap, "tap1");
    str_copy(vm->bridge, sizeof vm->bridge, "br0");
    str_copy(vm->type, sizeof vm->type, "cli");
    str_copy(vm->state, sizeof vm->state, "running");
    return s;
}

static const struct finding *find(const struct judgement *j, const char *id) {
    for (uint32_t i = 0; i < j->findings_count; i++)
        if (strcmp(j->findings[i].id, id) == 0)
            return &j->findings[i];
    return NULL;
}

static void test_facts_become_rows(void **state) {
    struct snapshot *s = made_vm();
    struct snap_guest *g = say(s, NULL, NULL);
    assert_true(g->complete && g->firewall_known);
    assert_int_equal(g->links.count, 2);
    assert_int_equal(g->addrs.count, 2);
    assert_int_equal(g->routes.count, 2);
    assert_int_equal(s->guest_addrs[1].ip, GUEST);
    assert_true(s->guest_listeners[0].any);
    struct judgement j = made_judge(s);
    assert_null(find(&j, "guest.no-address"));
    assert_int_equal(j.guest_state, SNAP_GUEST_TOLD);
    assert_true(j.ends_count >= 5);
    judgement_free(&j);
    snapshot_free(s);
}

/* By state alone, with what mends it. */
static void test_named_with_its_repair(void **state) {
    static const struct {
        const char *member, *value, *id;
        enum repair_action first;
    } cases[] = {
        {"links", "[{'name':'eth0','up':false,'carrier':true,'mac':'02:fc:00:00:00:01','kind':''}]", "guest.nic-down",
         REPAIR_GUEST_LINK_UP},
        {"links", "[{'name':'eth0','up':true,'carrier':false,'mac':'02:fc:00:00:00:01','kind':''}]", "vmm.link-off",
         REPAIR_NONE},
        {"links", "[{'name':'lo','up':true,'carrier':true,'mac':'00:00:00:00:00:00','kind':''}]", "guest.no-nic",
         REPAIR_NONE},
        {"addresses", "[]", "guest.no-address", REPAIR_GUEST_ADDRESS_ADD},
        {"addresses", "[{'link':'eth0','address':'192.168.7.7','prefix':16}]", "guest.no-address",
         REPAIR_GUEST_ADDRESS_DELETE},
        {"routes", "[]", "guest.no-route", REPAIR_GUEST_ADDRESS_DELETE},
        {"routes",
         "[{'family':4,'to':'192.168.0.0','prefix':16,'via':'','link':'eth0','metric':0,'type':'unicast','table':254}]",
         "guest.no-default-route", REPAIR_GUEST_ROUTE},
        {"routes",
         "[{'family':4,'to':'192.168.0.0','prefix':16,'via':'','link':'eth0','metric':0,'type':'unicast','table':254},"
         "{'family':4,'to':'default','prefix':0,'via':'192.168.0.99','link':'eth0','metric':0,'type':'unicast',"
         "'table':254}]",
         "guest.wrong-gateway", REPAIR_GUEST_ROUTE},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct snapshot *s = made_vm();
        say(s, cases[i].member, cases[i].value);
        struct judgement j = made_judge(s);
        const struct finding *f = find(&j, cases[i].id);
        assert_non_null(f);
        assert_int_equal(f->role, ROLE_ROOT_CAUSE);
        assert_int_equal(f->step_count > 0 ? f->steps[0].action : REPAIR_NONE, cases[i].first);
        assert_int_equal(f->safe, cases[i].first != REPAIR_NONE);
        judgement_free(&j);
        snapshot_free(s);
    }
}

/* The incident's mask: the guest's /24 leaves 192.168.0.1 outside of 192.168.5.2's network. */
static void test_wrong_prefix(void **state) {
    struct snapshot *s = made_vm();
    struct judge_host host;
    struct judgement j = {0};
    struct target target = {.tap = "tap1", .bridge = "br0", .ip = 0xc0a80502, .has_mac = true, .mac = guest_mac};
    s->vms[0].ip = target.ip;
    json_t *network = parse(well);
    json_object_set_new(network, "addresses", parse("[{'link':'eth0','address':'192.168.5.2','prefix':24}]"));
    json_object_set_new(network, "routes",
                        parse("[{'family':4,'to':'192.168.5.0','prefix':24,'via':'','link':'eth0','metric':0,"
                              "'type':'unicast','table':254}]"));
    struct snap_guest *guest = SNAP_PUSH(s, guests, 4);
    str_copy(guest->tap, sizeof guest->tap, "tap1");
    guest->state = SNAP_GUEST_TOLD;
    guest_facts_take(s, guest, network, NULL, NULL, NULL);
    json_decref(network);
    assert_int_equal(judge_open(s, NULL, NULL, &host), 0);
    assert_int_equal(judge_target(&host, &target, -1, &j), 0);
    judge_close(&host);
    const struct finding *f = find(&j, "guest.wrong-prefix");
    assert_non_null(f);
    assert_int_equal(f->step_count, 3);
    assert_int_equal(f->steps[0].action, REPAIR_GUEST_ADDRESS_DELETE);
    assert_int_equal(f->steps[0].prefix.length, 24);
    assert_int_equal(f->steps[1].prefix.length, 16);
    assert_int_equal(f->steps[2].gateway, HOST);
    judgement_free(&j);
    snapshot_free(s);
}

/* A VM that nobody has a record of is never mended, whatever it says. */
static void test_no_record_no_repair(void **state) {
    struct snapshot *s = made_host();
    say(s, "addresses", "[]");
    struct judgement j = made_judge(s);
    for (uint32_t i = 0; i < j.findings_count; i++)
        assert_int_equal(j.findings[i].step_count, 0);
    judgement_free(&j);
    snapshot_free(s);
}

/* Wrong kinds, endless lists and long texts: what does not fit is left out, nothing grows. */
static void test_garbage(void **state) {
    static const char *const members[] = {"links",    "addresses", "routes",  "neighbours", "listeners",
                                          "firewall", "sysctls",   "unknown", "resolver"};
    static const char *const values[] = {
        "7",
        "'text'",
        "[7,'x',null,[],{}]",
        "{'chains':7,'rules':{'a':1}}",
        "[{'name':7,'up':'yes','mac':'nothing','index':-99999999999,'counters':[1]}]",
        "[{'address':'999.1.1.1','prefix':99},{'address':'10.0.0.1','prefix':-1}]",
        "[{'to':'10.0.0.0','prefix':8,'via':'x'},{'to':'default','prefix':7,'metric':-5,'table':99999999999}]",
        "{'chains':[{'family':'inet','table':'t','name':'c','hook':99999,'priority':99999999999,'policy':'drop'}],"
        "'rules':[{'family':'inet','table':'t','chain':'c','handle':-1,'expressions':[{'expr':'cmp','op':'==',"
        "'value':'zz','sreg':77},{'expr':'payload','base':'network','offset':-1,'len':900},{'expr':'immediate',"
        "'verdict':'jump','chain':'c'},7,{'expr':'bitwise','mask':'ff','xor':''},{'expr':9}]}]}",
        "[{'protocol':'tcp','address':'::ffff:1','port':99999999999,'queue':-1,'pid':'x','program':"
        "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'}]",
    };
    for (size_t m = 0; m < sizeof members / sizeof *members; m++)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            struct snapshot *s = made_vm();
            say(s, members[m], values[v]);
            struct judgement j = made_judge(s);
            judgement_free(&j);
            snapshot_free(s);
        }
}

static void test_lists_are_cut(void **state) {
    struct snapshot *s = made_vm();
    json_t *network = parse(well), *addresses = json_array(), *odd = json_object();
    for (int i = 0; i < 5000; i++) {
        char name[32];
        snprintf(name, sizeof name, "member%d", i);
        json_object_set_new(odd, name, json_integer(i));
        json_array_append_new(addresses,
                              json_pack("{s:s,s:s,s:i}", "link", "eth0", "address", "10.0.0.1", "prefix", 8));
    }
    json_object_set_new(network, "addresses", addresses);
    json_object_set_new(network, "odd", odd);
    struct snap_guest *guest = SNAP_PUSH(s, guests, 4);
    guest->state = SNAP_GUEST_TOLD;
    guest_facts_take(s, guest, network, NULL, NULL, NULL);
    assert_int_equal(guest->addrs.count, GUEST_ADDRS_MAX);
    assert_int_equal(guest->facts.count, GUEST_FACTS_MAX);
    assert_false(guest->complete);
    assert_string_equal(s->guest_facts[0].name, "network.odd.member0");
    json_decref(network);
    snapshot_free(s);
}

/* A policy that drops, and a rule in front of it that lets the one port pass. */
static void test_filter_is_worked_off(void **state) {
    static const char firewall[] =
        "{'chains':[{'family':'inet','table':'f','name':'in','hook':1,'priority':0,'policy':'drop','type':'filter'}],"
        "'rules':[{'family':'inet','table':'f','chain':'in','handle':4,'expressions':["
        "{'expr':'meta','key':16,'dreg':1},{'expr':'cmp','op':'==','value':'06','sreg':1},"
        "{'expr':'payload','base':'transport','offset':2,'len':2,'dreg':1},"
        "{'expr':'cmp','op':'==','value':'17c0','sreg':1},{'expr':'immediate','verdict':'accept','chain':''}]}],"
        "'more':0,'error':null}";
    struct snapshot *s = made_vm();
    say(s, "firewall", firewall);
    struct judgement j = made_judge(s);
    const struct end_row *filter = NULL;
    for (uint8_t i = 0; i < j.ends_count; i++)
        if (strcmp(j.ends[i].what, "filter") == 0)
            filter = &j.ends[i];
    assert_non_null(filter);
    assert_string_equal(filter->guest, "stopped by inet f in");
    assert_null(find(&j, "guest.firewall")); /* nobody was asked: it is the guest's own business */
    judgement_free(&j);
    snapshot_free(s);
}

/* A card without a name, and a chain on a device: once this never ended. */
static void test_no_name_no_end(void **state) {
    struct snapshot *s = made_vm();
    json_t *network = parse(well);
    json_object_set_new(network, "links",
                        parse("[{'name':'','up':true,'carrier':true,'mac':'02:fc:00:00:00:01','kind':''}]"));
    json_object_set_new(network, "firewall",
                        parse("{'chains':[{'family':'netdev','table':'t','name':'c','hook':0,'priority':0,"
                              "'policy':'accept','devices':['eth0']}],'rules':[]}"));
    struct snap_guest *guest = SNAP_PUSH(s, guests, 4);
    str_copy(guest->tap, sizeof guest->tap, "tap1");
    guest->state = SNAP_GUEST_TOLD;
    guest_facts_take(s, guest, network, NULL, NULL, NULL);
    json_decref(network);
    struct judgement j = made_judge(s);
    judgement_free(&j);
    snapshot_free(s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_facts_become_rows),
        cmocka_unit_test(test_named_with_its_repair),
        cmocka_unit_test(test_wrong_prefix),
        cmocka_unit_test(test_no_record_no_repair),
        cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_lists_are_cut),
        cmocka_unit_test(test_filter_is_worked_off),
        cmocka_unit_test(test_no_name_no_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

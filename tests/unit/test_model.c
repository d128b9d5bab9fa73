#include <errno.h>
#include <string.h>

#include "cmocka_all.h"
#include "model/config.h"
#include "model/session.h"
#include "model/vm.h"

static void net_parses_and_formats(void **state) {
    uint32_t ip;
    char text[NET_IP_TEXT], mac_text[NET_MAC_TEXT];
    struct net_prefix p;
    struct net_mac mac;
    assert_int_equal(net_parse_ip("192.168.0.2", &ip), 0);
    assert_int_equal(ip, 0xc0a80002);
    net_format_ip(ip, text);
    assert_string_equal(text, "192.168.0.2");
    const char *bad_ip[] = {"", "1.2.3", "1.2.3.4.5", "256.1.1.1", "1.2.3.4 ", "a.b.c.d", "01.2.3.4"};
    for (size_t i = 0; i < sizeof bad_ip / sizeof *bad_ip; i++)
        assert_int_equal(net_parse_ip(bad_ip[i], &ip), -EINVAL);
    assert_int_equal(net_parse_prefix("192.168.0.1/16", &p), 0);
    assert_int_equal(p.length, 16);
    const char *bad_prefix[] = {"192.168.0.1", "192.168.0.1/", "192.168.0.1/33", "192.168.0.1/016", "/16", "x/16"};
    for (size_t i = 0; i < sizeof bad_prefix / sizeof *bad_prefix; i++)
        assert_int_equal(net_parse_prefix(bad_prefix[i], &p), -EINVAL);
    assert_int_equal(net_parse_mac("02:FC:00:0a:0b:0c", &mac), 0);
    net_format_mac(mac, mac_text);
    assert_string_equal(mac_text, "02:fc:00:0a:0b:0c");
    assert_int_equal(net_parse_mac("02:fc:00:0a:0b:0g", &mac), -EINVAL);
    assert_int_equal(net_parse_mac("02-fc-00-0a-0b-0c", &mac), -EINVAL);
    assert_int_equal(net_mask(16), 0xffff0000);
    assert_int_equal(net_mask(0), 0);
    assert_true(net_mask(32) == UINT32_MAX);
}

static void net_overlap(void **state) {
    struct net_prefix a, b;
    net_parse_prefix("192.168.0.1/16", &a);
    net_parse_prefix("192.168.200.0/24", &b);
    assert_true(net_overlaps(a, b) && net_overlaps(b, a));
    net_parse_prefix("192.169.0.0/24", &b);
    assert_false(net_overlaps(a, b));
    net_parse_prefix("0.0.0.0/0", &b);
    assert_true(net_overlaps(a, b));
}

static void vm_ids_and_names(void **state) {
    uint8_t zero[16] = {0}, ones[16];
    memset(ones, 0xff, sizeof ones);
    char id[VM_ID_TEXT], tap[VM_TAP_TEXT];
    vm_id_from_random(zero, id);
    assert_string_equal(id, "vm-00000000-0000-4000-8000-000000000000");
    assert_true(vm_id_is_valid(id));
    vm_id_from_random(ones, id);
    assert_string_equal(id, "vm-ffffffff-ffff-4fff-bfff-ffffffffffff");
    assert_true(vm_id_is_valid(id));
    vm_tap_from_id("vm-69fac673-27a8-492f-8fe0-f9b604e6ab28", tap);
    assert_string_equal(tap, "fc-vm-69fac6732");
    assert_int_equal(strlen(tap), 15);
    const char *bad[] = {"",
                         "vm-",
                         "vm-69fac673-27a8-492f-8fe0-f9b604e6ab2",
                         "vm-69fac673-27a8-492f-8fe0-f9b604e6ab288",
                         "vm-69FAC673-27a8-492f-8fe0-f9b604e6ab28",
                         "vm-69fac673-27a8-592f-8fe0-f9b604e6ab28",
                         "vm-69fac673-27a8-492f-cfe0-f9b604e6ab28",
                         "vm-69fac673/27a8-492f-8fe0-f9b604e6ab28",
                         "xm-69fac673-27a8-492f-8fe0-f9b604e6ab28"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(vm_id_is_valid(bad[i]));
    struct net_mac mac = vm_mac_from_random((uint8_t[]){1, 2, 3, 4});
    assert_int_equal(mac.byte[0], 2);
    assert_int_equal(mac.byte[5], 4);
}

static void vm_users(void **state) {
    struct err err;
    const char *good[] = {"a", "demo", "u.1_2@x-y", "0"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_int_equal(vm_user_check(good[i], strlen(good[i]), &err), 0);
    const char *bad[] = {"", ".a", "-a", "a b", "a/b", "../x", "a\n", "\xc3\xa4", "a;b", "a\x1b[2J"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(vm_user_check(bad[i], strlen(bad[i]), &err), -EINVAL);
        assert_string_equal(err.code, "user.invalid");
        assert_null(strchr(err.detail, '\n'));
        assert_null(strchr(err.detail, '\x1b'));
    }
    assert_int_equal(vm_user_check("a\0b", 3, &err), -EINVAL);
    char big[10000];
    memset(big, 'a', sizeof big);
    assert_int_equal(vm_user_check(big, sizeof big, &err), -EINVAL);
    assert_int_equal(vm_user_check(big, 64, &err), 0);
    assert_int_equal(vm_user_check(big, 65, &err), -EINVAL);
}

static void vm_table(void **state) {
    enum vm_state to = VM_STATE_RUNNING;
    assert_int_equal(vm_transition(VM_STATE_CREATING, VM_EVENT_STARTED, &to), 0);
    assert_int_equal(to, VM_STATE_BOOTING);
    /* An ended VM never comes back, and nothing is running without a proven path, that was not running before. */
    for (int e = VM_EVENT_STARTED; e <= VM_EVENT_RESUME_FAILED; e++) {
        assert_int_equal(vm_transition(VM_STATE_STOPPED, (enum vm_event)e, &to), -EPROTO);
        assert_int_equal(vm_transition(VM_STATE_FAILED, (enum vm_event)e, &to), -EPROTO);
        for (int s = 0; s < VM_STATE_COUNT; s++)
            if (vm_transition((enum vm_state)s, (enum vm_event)e, &to) == 0 && to == VM_STATE_RUNNING)
                assert_true(e == VM_EVENT_PATH_PROVEN || e == VM_EVENT_RESUMED || e == VM_EVENT_HIBERNATE_FAILED);
        assert_true(vm_event_name((enum vm_event)e) && *vm_event_name((enum vm_event)e));
    }
    /* What is hibernated is lost by nothing but a stop. */
    for (int e = VM_EVENT_STARTED; e <= VM_EVENT_RESUME_FAILED; e++)
        if (vm_transition(VM_STATE_HIBERNATED, (enum vm_event)e, &to) == 0)
            assert_true(e == VM_EVENT_STOP || e == VM_EVENT_RESUME);
    for (int s = 0; s < VM_STATE_COUNT; s++) {
        enum vm_state parsed;
        assert_int_equal(vm_state_parse(vm_state_name((enum vm_state)s), &parsed), 0);
        assert_int_equal(parsed, s);
    }
    assert_int_equal(vm_state_parse("dead", &to), -EINVAL);
}

static void session_table(void **state) {
    /* Status by event, in the order of their enums: the status that follows, or - for none. */
    static const char *const expected[SESSION_STATUS_COUNT][SESSION_EVENT_COUNT] = {
        {"vm_created", "-", "-", "-", "-", "failed", "cancelled", "-"},
        {"-", "awaiting_user_auth", "-", "-", "-", "failed", "cancelled", "-"},
        {"-", "-", "authenticating", "-", "completed", "failed", "cancelled", "timeout"},
        {"-", "-", "-", "awaiting_user_auth", "completed", "failed", "cancelled", "timeout"},
    };
    for (int s = 0; s < SESSION_STATUS_COUNT; s++)
        for (int e = 0; e < SESSION_EVENT_COUNT; e++) {
            enum session_status to = SESSION_STATUS_COUNT;
            int r = session_transition((enum session_status)s, (enum session_event)e, &to);
            const char *follows = expected[s][e] ? expected[s][e] : "-";
            assert_string_equal(r == 0 ? session_status_name(to) : "-", follows);
            assert_true(*session_event_name((enum session_event)e));
        }
    assert_true(session_id_is_valid("0123456789abcdef0123456789abcdef"));
    assert_false(session_id_is_valid("0123456789abcdef0123456789abcdeF"));
    assert_false(session_id_is_valid("0123456789abcdef0123456789abcde/"));
    assert_false(session_id_is_valid(""));
}

static void config_defaults_are_right(void **state) {
    struct config c;
    struct err err;
    config_defaults(&c);
    assert_int_equal(config_check(&c, &err), 0);
    assert_string_equal(c.network.bridge, "br0");
    assert_int_equal(c.network.address.length, 16);
    assert_int_equal(c.vm.probe_interval_ms, 500);
    assert_int_equal(c.vm.type[VM_TYPE_BROWSER].port, 6080);
    assert_int_equal(c.session.ticket_ms, 60000);
    assert_int_equal(c.session.cookie_ms, 43200000);
    assert_true(c.network.masquerade);
    assert_string_equal(c.api.listen, "127.0.0.1:4000");
}

static void config_refuses(void **state) {
    static const struct {
        const char *section, *key, *value, *code;
    } bad[] = {
        {"netwrok", "bridge", "br0", "config.unknown-section"},
        {"network", "brigde", "br0", "config.unknown-key"},
        {"network", "bridge", "a-name-of-16-byt", "config.bad-value"},
        {"network", "bridge", "a/b", "config.bad-value"},
        {"network", "namespace", "../x", "config.bad-value"},
        {"network", "address", "192.168.0.1", "config.bad-value"},
        {"network", "dns", "one.one", "config.bad-value"},
        {"network", "masquerade", "maybe", "config.bad-value"},
        {"vm", "vmm", "xen", "config.bad-value"},
        {"vm", "vmm", "auto|qemu", "config.bad-value"},
        {"vm", "vmm", "", "config.bad-value"},
        {"vm", "cli_memory", "-1", "config.bad-value"},
        {"vm", "cli_memory", "127", "config.bad-value"},
        {"vm", "probe_interval", "0.0001", "config.bad-value"},
        {"vm", "probe_interval", "1e3", "config.bad-value"},
        {"vm", "qemu_binary", "qemu", "config.bad-value"},
        {"api", "socket", "/run/a\nb", "config.bad-value"},
    };
    struct config c, before;
    config_defaults(&c);
    before = c;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err err = {0};
        assert_int_equal(config_set(&c, bad[i].section, bad[i].key, bad[i].value, &err), -EINVAL);
        assert_string_equal(err.code, bad[i].code);
        assert_memory_equal(&c, &before, sizeof c);
    }
    struct err err = {0};
    config_set(&c, "network", "brigde", "br0", &err);
    assert_string_equal(err.hint, "did you mean \"bridge\"?");
}

static void config_checks_the_whole(void **state) {
    struct config c;
    struct err err;
    const char *bad[] = {"192.168.0.0/16", "192.168.255.255/16", "10.0.0.1/30", "127.0.0.1/16", "224.0.0.1/16"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        config_defaults(&c);
        assert_int_equal(config_set(&c, "network", "address", bad[i], &err), 0);
        assert_int_equal(config_check(&c, &err), -EINVAL);
        assert_true(err.hint[0] != '\0');
    }
    config_defaults(&c);
    config_set(&c, "network", "uplink", "br0", &err);
    assert_int_equal(config_check(&c, &err), -EINVAL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(net_parses_and_formats),
        cmocka_unit_test(net_overlap),
        cmocka_unit_test(vm_ids_and_names),
        cmocka_unit_test(vm_users),
        cmocka_unit_test(vm_table),
        cmocka_unit_test(session_table),
        cmocka_unit_test(config_defaults_are_right),
        cmocka_unit_test(config_refuses),
        cmocka_unit_test(config_checks_the_whole),
    };
    return cmocka_run_group_tests_name("model", tests, NULL, NULL);
}

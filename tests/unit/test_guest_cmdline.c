#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmocka_all.h"
#include "init/cmdline.h"

static const char *text_of(struct in_addr address) {
    static char buf[4][INET_ADDRSTRLEN];
    static unsigned next;
    char *text = buf[next++ % 4];
    assert_non_null(inet_ntop(AF_INET, &address, text, INET_ADDRSTRLEN));
    return text;
}

static struct in_addr address_of(const char *text) {
    struct in_addr address;
    assert_int_equal(inet_pton(AF_INET, text, &address), 1);
    return address;
}

static void ip_reads_every_field(void **state) {
    struct guest_ip ip;
    char why[160];
    assert_int_equal(guest_ip_parse("192.168.0.2:10.0.0.9:192.168.0.1:255.255.0.0:vm-a.example.org:eth0:off:"
                                    "192.168.0.1:9.9.9.9:10.0.0.7",
                                    &ip, why, sizeof why),
                     0);
    assert_string_equal(text_of(ip.client), "192.168.0.2");
    assert_string_equal(text_of(ip.gateway), "192.168.0.1");
    assert_string_equal(text_of(ip.netmask), "255.255.0.0");
    assert_int_equal(ip.prefix_bits, 16);
    assert_string_equal(ip.hostname, "vm-a");
    assert_string_equal(ip.device, "eth0");
    assert_string_equal(text_of(ip.dns[0]), "192.168.0.1");
    assert_string_equal(text_of(ip.dns[1]), "9.9.9.9");
    assert_string_equal(why, "");
}

static void ip_reads_what_may_be_left_out(void **state) {
    struct guest_ip ip;
    char why[160];
    const char *values[] = {"10.1.2.3:::255.255.255.0",
                            "10.1.2.3:::255.255.255.0::::::", "10.1.2.3:::255.255.255.0:::none"};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        assert_int_equal(guest_ip_parse(values[i], &ip, why, sizeof why), 0);
        assert_string_equal(text_of(ip.client), "10.1.2.3");
        assert_int_equal(ip.prefix_bits, 24);
        assert_int_equal(ip.gateway.s_addr, 0);
        assert_int_equal(ip.dns[0].s_addr, 0);
        assert_string_equal(ip.hostname, "");
        assert_string_equal(ip.device, "");
    }
}

static void ip_off_is_no_error(void **state) {
    struct guest_ip ip;
    char why[160];
    const char *values[] = {"", "off", "none"};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        assert_int_equal(guest_ip_parse(values[i], &ip, why, sizeof why), -ENODATA);
}

static void ip_refuses_and_says_why(void **state) {
    static const struct {
        const char *value, *why;
    } bad[] = {
        {"dhcp", "autoconfiguration"},
        {"on", "autoconfiguration"},
        {":::::eth0:dhcp", "autoconf 'dhcp'"},
        {"192.168.0.2:::255.255.0.0:::perhaps", "autoconf 'perhaps' is not known"},
        {"192.168.0.2", "no netmask"},
        {"192.168.0.2::192.168.0.1", "no netmask"},
        {":::255.255.0.0", "no client address"},
        {"192.168.0:::255.255.0.0", "client address '192.168.0' is not an IPv4 address"},
        {"192.168.0.256:::255.255.0.0", "client address"},
        {"192.168.0.02:::255.255.0.0", "client address"},
        {"2001:db8::1", "not an IPv4"},
        {"192.168.0.2::gw:255.255.0.0", "gateway 'gw'"},
        {"192.168.0.2::192.168.0.2:255.255.0.0", "guest's own address"},
        {"192.168.0.2:x::255.255.0.0", "server address 'x'"},
        {"192.168.0.2:::255.0.255.0", "row of ones"},
        {"192.168.0.2:::0.0.0.255", "row of ones"},
        {"192.168.0.2:::0.0.0.0", "row of ones"},
        {"192.168.0.2:::16", "netmask '16'"},
        {"192.168.0.0:::255.255.0.0", "network of its own /16"},
        {"192.168.255.255:::255.255.0.0", "broadcast of its own /16"},
        {"127.0.0.2:::255.255.0.0", "cannot be a host's"},
        {"224.0.0.1:::255.255.0.0", "cannot be a host's"},
        {"192.168.0.2:::255.255.0.0:a b", "hostname"},
        {"192.168.0.2:::255.255.0.0:\x1b[2J", "'?[2J' cannot be a hostname"},
        {"192.168.0.2:::255.255.0.0::../../x", "device"},
        {"192.168.0.2:::255.255.0.0::..", "device"},
        {"192.168.0.2:::255.255.0.0::a-name-of-16-byt", "more than 15 bytes"},
        {"192.168.0.2:::255.255.0.0::::8.8.8", "dns0"},
        {"192.168.0.2:::255.255.0.0:::::x", "dns1"},
        {"192.168.0.2:::255.255.0.0::::::x", "ntp0"},
        {"192.168.0.2:::255.255.0.0:::::::x", "more than 10 fields"},
        {":::::::::::::::", "more than 10 fields"},
        {"%n%s%n%s:%n:%n:%n", "netmask"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct guest_ip ip;
        char why[160];
        memset(&ip, 0x5a, sizeof ip);
        struct guest_ip before = ip;
        int r = guest_ip_parse(bad[i].value, &ip, why, sizeof why);
        if (r != -EINVAL || !strstr(why, bad[i].why))
            fail_msg("'%s': %d, '%s' does not say '%s'", bad[i].value, r, why, bad[i].why);
        assert_memory_equal(&ip, &before, sizeof ip);
    }
}

static void ip_takes_names_up_to_their_limits(void **state) {
    struct guest_ip ip;
    char why[160], value[256], name[80];
    for (size_t length = 63; length < sizeof name; length++) {
        memset(name, 'a', length);
        name[length] = '\0';
        snprintf(value, sizeof value, "192.168.0.2:::255.255.0.0:%s", name);
        assert_int_equal(guest_ip_parse(value, &ip, why, sizeof why), length <= 64 ? 0 : -EINVAL);
    }
    assert_int_equal(guest_ip_parse("192.168.0.2:::255.255.0.0::fifteen-bytes-x", &ip, why, sizeof why), 0);
    assert_string_equal(ip.device, "fifteen-bytes-x");
}

static void ip_takes_small_networks(void **state) {
    struct guest_ip ip;
    char why[160];
    assert_int_equal(guest_ip_parse("10.0.0.0:::255.255.255.254", &ip, why, sizeof why), 0);
    assert_int_equal(ip.prefix_bits, 31);
    assert_int_equal(guest_ip_parse("10.0.0.1:::255.255.255.255", &ip, why, sizeof why), 0);
    assert_int_equal(ip.prefix_bits, 32);
}

/* The incident's own mistake: a /24 for a guest of a /16 bridge. */
static void on_link_goes_by_the_mask(void **state) {
    struct guest_ip ip;
    char why[160];
    assert_int_equal(guest_ip_parse("192.168.1.2::192.168.0.1:255.255.255.0", &ip, why, sizeof why), 0);
    assert_false(guest_ip_on_link(&ip, ip.gateway));
    assert_int_equal(guest_ip_parse("192.168.1.2::192.168.0.1:255.255.0.0", &ip, why, sizeof why), 0);
    assert_true(guest_ip_on_link(&ip, ip.gateway));
    assert_true(guest_ip_on_link(&ip, address_of("192.168.255.254")));
    assert_false(guest_ip_on_link(&ip, address_of("192.169.0.1")));
}

static void cmdline_has_defaults(void **state) {
    struct guest_cmdline cmdline;
    assert_int_equal(guest_cmdline_parse("", &cmdline), 0);
    assert_string_equal(cmdline.root, "");
    assert_string_equal(cmdline.rootfstype, "ext4");
    assert_string_equal(cmdline.init, "/sbin/init");
    assert_false(cmdline.writable);
    assert_int_equal(cmdline.ip_state, GUEST_IP_NONE);
    assert_string_equal(cmdline.ip_why, "there is no ip=");
}

static void cmdline_reads_what_the_daemon_writes(void **state) {
    struct guest_cmdline cmdline;
    assert_int_equal(
        guest_cmdline_parse("console=ttyS0 root=/dev/vda rootfstype=xfs rw init=/bin/sh "
                            "ip=192.168.0.2::192.168.0.1:255.255.0.0:vm-test:eth0:off:192.168.0.1 panic=-1\n",
                            &cmdline),
        0);
    assert_string_equal(cmdline.root, "/dev/vda");
    assert_string_equal(cmdline.rootfstype, "xfs");
    assert_string_equal(cmdline.init, "/bin/sh");
    assert_true(cmdline.writable);
    assert_int_equal(cmdline.ip_state, GUEST_IP_STATIC);
    assert_string_equal(cmdline.ip.hostname, "vm-test");
}

static void cmdline_takes_the_last_and_stops_at_dashes(void **state) {
    struct guest_cmdline cmdline;
    assert_int_equal(guest_cmdline_parse("rw root=/dev/vdb ip=nonsense root=/dev/vda ro ip=10.0.0.2:::255.0.0.0 "
                                         "-- root=/dev/vdz rw",
                                         &cmdline),
                     0);
    assert_string_equal(cmdline.root, "/dev/vda");
    assert_false(cmdline.writable);
    assert_int_equal(cmdline.ip_state, GUEST_IP_STATIC);
    assert_int_equal(cmdline.ip.prefix_bits, 8);
}

/* What Firecracker makes of it: it adds the root and how to mount it behind everything. */
static void cmdline_reads_where_writes_go(void **state) {
    struct guest_cmdline cmdline;
    assert_int_equal(guest_cmdline_parse("root=/dev/vda rw", &cmdline), 0);
    assert_string_equal(cmdline.overlay, "");
    assert_int_equal(guest_cmdline_parse("root=/dev/vda rw mc.overlay=/dev/vdb root=/dev/vda ro", &cmdline), 0);
    assert_string_equal(cmdline.overlay, "/dev/vdb");
    assert_string_equal(cmdline.root, "/dev/vda");
}

static void cmdline_is_not_misled(void **state) {
    struct guest_cmdline cmdline;
    assert_int_equal(
        guest_cmdline_parse("xroot=/dev/a rootx=/dev/b root rwx r \"\" ipx=1 my.ip=2 other=\"root=/dev/c ro\" "
                            "root=\"/dev/v d\"",
                            &cmdline),
        0);
    assert_string_equal(cmdline.root, "/dev/v d");
    assert_false(cmdline.writable);
    assert_int_equal(cmdline.ip_state, GUEST_IP_NONE);
}

static void cmdline_keeps_a_bad_ip_for_the_console(void **state) {
    struct guest_cmdline cmdline;
    assert_int_equal(guest_cmdline_parse("root=/dev/vda ip=192.168.0.2::192.168.0.1", &cmdline), 0);
    assert_int_equal(cmdline.ip_state, GUEST_IP_BAD);
    assert_non_null(strstr(cmdline.ip_why, "no netmask"));
    assert_string_equal(cmdline.root, "/dev/vda");
}

static void cmdline_refuses_what_does_not_fit(void **state) {
    static const char *const keys[] = {"root=", "rootfstype=", "init=", "mc.overlay="};
    char text[3000];
    for (size_t i = 0; i < 4; i++) {
        struct guest_cmdline cmdline = {.root = "as before"};
        snprintf(text, sizeof text, "%s%02500d", keys[i], 0);
        assert_int_equal(guest_cmdline_parse(text, &cmdline), -ENAMETOOLONG);
        assert_string_equal(cmdline.root, "as before");
    }
}

/* Whatever stands there: no crash (the sanitizers watch), and text that ends. */
static void cmdline_survives_noise(void **state) {
    static const char alphabet[] = "ip=:.0129255/\"\\ \n\tarootwx-%n\x01\xff";
    char text[700];
    srand(7);
    for (int n = 0; n < 20000; n++) {
        size_t length = (size_t)rand() % (sizeof text - 4), at = 0;
        if (n % 2) {
            memcpy(text, "ip=", 3);
            at = 3;
        }
        for (; at < length; at++)
            text[at] = alphabet[(size_t)rand() % (sizeof alphabet - 1)];
        text[at] = '\0';
        struct guest_cmdline cmdline;
        if (guest_cmdline_parse(text, &cmdline) == 0) {
            assert_true(strlen(cmdline.ip_why) < sizeof cmdline.ip_why);
            assert_true(strlen(cmdline.ip.hostname) < sizeof cmdline.ip.hostname);
        }
    }
}

static void modules_are_walked_in_order(void **state) {
    const char *cursor = "virtio_ring.ko\n# a comment\n\n  virtio.ko # and one behind\r\nlast.ko";
    char name[20];
    assert_int_equal(guest_modules_next(&cursor, name, sizeof name), 1);
    assert_string_equal(name, "virtio_ring.ko");
    assert_int_equal(guest_modules_next(&cursor, name, sizeof name), 1);
    assert_string_equal(name, "virtio.ko");
    assert_int_equal(guest_modules_next(&cursor, name, sizeof name), 1);
    assert_string_equal(name, "last.ko");
    assert_int_equal(guest_modules_next(&cursor, name, sizeof name), 0);
    assert_int_equal(guest_modules_next(&cursor, name, sizeof name), 0);
}

static void modules_pass_over_what_is_no_file_name(void **state) {
    const char *cursor = "../evil.ko\na-name-that-is-much-too-long.ko\ngood.ko\n";
    char name[20] = "untouched";
    assert_int_equal(guest_modules_next(&cursor, name, sizeof name), -EINVAL);
    assert_string_equal(name, "untouched");
    assert_int_equal(guest_modules_next(&cursor, name, sizeof name), -EINVAL);
    assert_int_equal(guest_modules_next(&cursor, name, sizeof name), 1);
    assert_string_equal(name, "good.ko");
    assert_int_equal(guest_modules_next(&cursor, name, sizeof name), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ip_reads_every_field),
        cmocka_unit_test(ip_reads_what_may_be_left_out),
        cmocka_unit_test(ip_off_is_no_error),
        cmocka_unit_test(ip_refuses_and_says_why),
        cmocka_unit_test(ip_takes_names_up_to_their_limits),
        cmocka_unit_test(ip_takes_small_networks),
        cmocka_unit_test(on_link_goes_by_the_mask),
        cmocka_unit_test(cmdline_has_defaults),
        cmocka_unit_test(cmdline_reads_what_the_daemon_writes),
        cmocka_unit_test(cmdline_takes_the_last_and_stops_at_dashes),
        cmocka_unit_test(cmdline_reads_where_writes_go),
        cmocka_unit_test(cmdline_is_not_misled),
        cmocka_unit_test(cmdline_keeps_a_bad_ip_for_the_console),
        cmocka_unit_test(cmdline_refuses_what_does_not_fit),
        cmocka_unit_test(cmdline_survives_noise),
        cmocka_unit_test(modules_are_walked_in_order),
        cmocka_unit_test(modules_pass_over_what_is_no_file_name),
    };
    return cmocka_run_group_tests_name("guest_cmdline", tests, NULL, NULL);
}

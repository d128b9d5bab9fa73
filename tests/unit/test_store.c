#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "cmocka_all.h"
#include "store/declared.h"
#include "store/store.h"

struct fixture {
    char dir[64];
    char path[96];
    struct store *store;
};

static int set_up(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    struct err err;
    strcpy(f->dir, "/tmp/mc-store-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->path, sizeof f->path, "%s/db", f->dir);
    assert_int_equal(store_open(f->path, "host-a", &f->store, &err), 0);
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    struct fixture *f = *state;
    store_close(f->store);
    dir_remove(f->dir);
    free(f);
    return 0;
}

static void declaration_goes_out_and_comes_in(void **state) {
    struct fixture *f = *state;
    struct err err;
    struct declared declared = {.store_file = "/srv/records.db",
                                .port = {7, 7000},
                                .network = {.namespace = "mc",
                                            .bridge = "br0",
                                            .address = {0xc0a80001, 16},
                                            .uplink = "wan0",
                                            .masquerade = true}},
                    back;
    char path[128], usual[128];
    snprintf(path, sizeof path, "%s/declared.json", f->dir);
    snprintf(usual, sizeof usual, "%s/master-controller.db", f->dir);
    assert_int_equal(declared_read(f->dir, &back), 0);
    assert_string_equal(back.store_file, usual);
    assert_int_equal(back.port[VM_TYPE_BROWSER], 6080);
    assert_int_equal(declared_write(f->dir, &declared, &err), 0);
    assert_int_equal(declared_read(f->dir, &back), 0);
    assert_string_equal(back.store_file, "/srv/records.db");
    assert_int_equal(back.port[VM_TYPE_CLI], 7);
    assert_int_equal(back.port[VM_TYPE_BROWSER], 7000);
    assert_memory_equal(&back.network, &declared.network, sizeof back.network);
    static const char older[] = "{\"store\": \"/a\", \"ports\": {\"cli\": 0, \"browser\": 1}}";
    assert_int_equal(file_write_atomic(path, older, strlen(older), 0600), 0);
    assert_int_equal(declared_read(f->dir, &back), 0);
    assert_string_equal(back.network.bridge, "");
    static const char *const bad[] = {"",
                                      "[]",
                                      "{\"store\": 1}",
                                      "{\"store\": \"relative\"}",
                                      "{\"store\": \"/a\", \"ports\": {\"cli\": 0, \"browser\": 65536}}",
                                      "{\"store\": \"/a\", \"ports\": {\"cli\": 0, \"browser\": 1}, \"network\": {}}",
                                      "{\"store\": \"/a\", \"ports\": {\"cli\": 0, \"browser\": 1}, \"network\": "
                                      "{\"namespace\": \"\", \"bridge\": \"br0\", \"address\": \"192.168.0.1/33\", "
                                      "\"uplink\": \"\", \"masquerade\": true}}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(file_write_atomic(path, bad[i], strlen(bad[i]), 0600), 0);
        assert_int_equal(declared_read(f->dir, &back), -EBADMSG);
        assert_string_equal(back.store_file, usual);
    }
    assert_int_equal(declared_write("/nowhere/at/all", &declared, &err), -ENOENT);
}

static struct vm make_vm(unsigned n) {
    uint8_t random[16] = {(uint8_t)(n >> 8), (uint8_t)n};
    struct vm vm = {.type = VM_TYPE_BROWSER,
                    .state = VM_STATE_CREATING,
                    .created_ms = 1000 + n,
                    .state_since_ms = 1000 + n,
                    .ip = 0xc0a80002 + n,
                    .mac = {{2, 0xfc, 0, 0, (uint8_t)(n >> 8), (uint8_t)n}},
                    .vcpus = 2,
                    .memory_mib = 1024,
                    .uid = 2000 + n,
                    .reachable = -1};
    vm_id_from_random(random, vm.id);
    vm_tap_from_id(vm.id, vm.tap);
    strcpy(vm.user, "u");
    strcpy(vm.bridge, "br0");
    strcpy(vm.vmm, "qemu");
    return vm;
}

static void vm_goes_in_and_comes_out(void **state) {
    struct fixture *f = *state;
    struct err err;
    struct vm vm = make_vm(1), out;
    assert_int_equal(store_vm_claim(f->store, &vm, 5, "somebody", &err), 0);
    vm.state = VM_STATE_RUNNING;
    vm.reachable = 0;
    vm.pid = 77;
    vm.pid_start = UINT64_MAX / 2;
    strcpy(vm.reason, "ä \x01 '; DROP TABLE vm; --");
    struct store_event event = {.at_ms = 5, .actor = "me", .event = "x", .from = "a", .to = "b", .reason = "why"};
    assert_int_equal(store_vm_update(f->store, &vm, &event, &err), 0);
    store_close(f->store);
    assert_int_equal(store_open(f->path, "host-a", &f->store, &err), 0);
    assert_int_equal(store_vm_get(f->store, vm.id, &out, &err), 0);
    strcpy(vm.host, "host-a");
    assert_memory_equal(&out, &vm, sizeof vm);
    struct store_event *events;
    size_t n;
    assert_int_equal(store_events(f->store, vm.id, &events, &n, &err), 0);
    assert_int_equal(n, 2);
    assert_string_equal(events[0].event, "claimed");
    assert_memory_equal(&events[1], &event, sizeof event);
    free(events);
}

/* A VM of the pool is nobody's, and then somebody's, as if it had been claimed then. */
static void a_ready_vm_gets_its_user(void **state) {
    struct fixture *f = *state;
    struct err err;
    struct vm vm = make_vm(1), other = make_vm(2), out;
    strcpy(vm.user, "(pool)");
    assert_int_equal(store_vm_claim(f->store, &vm, 100, "controller", &err), 0);
    assert_int_equal(store_vm_claim(f->store, &other, 5, "somebody", &err), 0);
    strcpy(vm.user, other.user);
    vm.created_ms = vm.state_since_ms = 77;
    assert_int_equal(store_vm_take(f->store, &vm, 1, "somebody", &err), -EDQUOT);
    assert_string_equal(err.code, "quota.user");
    assert_int_equal(store_vm_get(f->store, vm.id, &out, &err), 0);
    assert_string_equal(out.user, "(pool)");
    assert_int_equal(store_vm_take(f->store, &vm, 2, "somebody", &err), 0);
    assert_int_equal(store_vm_get(f->store, vm.id, &out, &err), 0);
    assert_string_equal(out.user, other.user);
    assert_int_equal(out.created_ms, 77);
    struct store_event *events;
    size_t n;
    assert_int_equal(store_events(f->store, vm.id, &events, &n, &err), 0);
    assert_int_equal(n, 2);
    assert_string_equal(events[1].event, "taken");
    assert_string_equal(events[1].actor, "somebody");
    free(events);
}

/* What happened since is told by number, in order, whomever it is about; another daemon goes on with it. */
static void news_follow_a_number(void **state) {
    struct fixture *f = *state;
    struct err err;
    struct store_news news[3];
    size_t n = 9;
    int64_t last = -1;
    assert_int_equal(store_news_last(f->store, &last, &err), 0);
    assert_int_equal(last, 0);
    assert_int_equal(store_news(f->store, 0, news, 3, &n, &err), 0);
    assert_int_equal(n, 0);
    for (unsigned i = 1; i <= 4; i++) {
        struct vm vm = make_vm(i);
        assert_int_equal(store_vm_claim(f->store, &vm, 9, "somebody", &err), 0);
    }
    assert_int_equal(store_news(f->store, 0, news, 3, &n, &err), 0);
    assert_int_equal(n, 3);
    assert_true(news[0].number < news[1].number && news[1].number < news[2].number);
    store_close(f->store);
    assert_int_equal(store_open(f->path, "host-a", &f->store, &err), 0);
    int64_t after = news[2].number;
    assert_int_equal(store_news(f->store, after, news, 3, &n, &err), 0);
    assert_int_equal(n, 1);
    struct vm fourth = make_vm(4);
    assert_string_equal(news[0].about, fourth.id);
    assert_string_equal(news[0].event.event, "claimed");
    assert_string_equal(news[0].event.actor, "somebody");
    assert_int_equal(store_news_last(f->store, &last, &err), 0);
    assert_int_equal(last, news[0].number);
}

static void names_are_unique_among_the_living(void **state) {
    struct fixture *f = *state;
    struct err err;
    struct vm first = make_vm(1);
    assert_int_equal(store_vm_claim(f->store, &first, 5, "a", &err), 0);
    struct vm same[4];
    for (unsigned i = 0; i < 4; i++)
        same[i] = make_vm(10 + i);
    same[0].ip = first.ip;
    same[1].mac = first.mac;
    strcpy(same[2].tap, first.tap);
    same[3].uid = first.uid;
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(store_vm_claim(f->store, &same[i], 5, "a", &err), -EEXIST);
        assert_string_equal(err.code, "store.taken");
        struct vm out;
        assert_int_equal(store_vm_get(f->store, same[i].id, &out, NULL), -ENOENT);
    }
    first.state = VM_STATE_STOPPED;
    assert_int_equal(store_vm_update(f->store, &first, NULL, &err), 0);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(store_vm_claim(f->store, &same[i], 5, "a", &err), 0);
}

static void what_is_old_goes(void **state) {
    struct fixture *f = *state;
    struct err err;
    struct vm vm, out;
    struct store_event event = {.at_ms = 5, .actor = "me", .event = "reachable"};
    for (unsigned i = 0; i < 6; i++) {
        vm = make_vm(i);
        assert_int_equal(store_vm_claim(f->store, &vm, 50, "a", &err), 0);
        vm.state = i < 5 ? VM_STATE_STOPPED : VM_STATE_RUNNING;
        vm.state_since_ms = 100 * i;
        assert_int_equal(store_vm_update(f->store, &vm, &event, &err), 0);
    }
    uint32_t n = 0;
    assert_int_equal(store_expire(f->store, 300, 2, &n, &err), 0);
    assert_int_equal(n, 2);
    assert_int_equal(store_expire(f->store, 300, 2, &n, &err), 0);
    assert_int_equal(n, 1);
    for (unsigned i = 0; i < 6; i++) { /* the living stay, however old */
        struct store_event *events;
        size_t count;
        vm = make_vm(i);
        assert_int_equal(store_vm_get(f->store, vm.id, &out, NULL), i < 3 ? -ENOENT : 0);
        assert_int_equal(store_events(f->store, vm.id, &events, &count, &err), 0);
        assert_int_equal(count, i < 3 ? 0 : 2);
        free(events);
    }
}

static void a_vm_that_comes_and_goes_does_not_fill_the_disk(void **state) {
    struct fixture *f = *state;
    struct err err;
    struct vm vm = make_vm(1);
    struct store_event *events, event = {.actor = "me", .event = "unreachable"};
    size_t n;
    assert_int_equal(store_vm_claim(f->store, &vm, 5, "a", &err), 0);
    for (int i = 1; i <= STORE_EVENTS_MAX + 50; i++) {
        event.at_ms = i;
        assert_int_equal(store_vm_update(f->store, &vm, &event, &err), 0);
    }
    assert_int_equal(store_events(f->store, vm.id, &events, &n, &err), 0);
    assert_int_equal(n, STORE_EVENTS_MAX);
    assert_int_equal(events[n - 1].at_ms, STORE_EVENTS_MAX + 50); /* the newest are kept */
    free(events);
}

static void a_quota_counts_the_living(void **state) {
    struct fixture *f = *state;
    struct err err;
    for (unsigned i = 0; i < 3; i++) {
        struct vm vm = make_vm(i);
        int r = store_vm_claim(f->store, &vm, 2, "a", &err);
        assert_int_equal(r, i < 2 ? 0 : -EDQUOT);
    }
    assert_string_equal(err.code, "quota.user");
    struct vm other = make_vm(9);
    strcpy(other.user, "v");
    assert_int_equal(store_vm_claim(f->store, &other, 2, "a", &err), 0);
}

static void a_prefix_finds_one(void **state) {
    struct fixture *f = *state;
    struct err err;
    struct vm a = make_vm(0x1234), b = make_vm(0x1235), out;
    assert_int_equal(store_vm_claim(f->store, &a, 5, "a", &err), 0);
    assert_int_equal(store_vm_claim(f->store, &b, 5, "a", &err), 0);
    assert_int_equal(store_vm_find(f->store, "vm-1234", NULL, &out, &err), 0);
    assert_string_equal(out.id, a.id);
    assert_int_equal(store_vm_find(f->store, "1235", NULL, &out, &err), 0);
    assert_string_equal(out.id, b.id);
    assert_int_equal(store_vm_find(f->store, b.id, NULL, &out, &err), 0);
    assert_int_equal(store_vm_find(f->store, "vm-123", NULL, &out, &err), -ENOTUNIQ);
    assert_int_equal(store_vm_find(f->store, "v", NULL, &out, &err), -ENOTUNIQ);
    const char *none[] = {
        "", "vm-9", "%", "vm-123_", "vm-1234'", "xyz", "vm-1234-0000-4000-8000-000000000000-and-more"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        assert_int_equal(store_vm_find(f->store, none[i], NULL, &out, &err), -ENOENT);
    b.state = VM_STATE_FAILED;
    assert_int_equal(store_vm_update(f->store, &b, NULL, &err), 0);
    assert_int_equal(store_vm_find(f->store, "vm-123", NULL, &out, &err), 0);
    assert_string_equal(out.id, a.id);
}

static void a_ticket_is_used_once_and_gets_old(void **state) {
    struct fixture *f = *state;
    struct err err;
    uint8_t one[STORE_HASH_SIZE] = {1}, two[STORE_HASH_SIZE] = {2};
    assert_int_equal(store_secret_add(f->store, STORE_TICKET, one, "s1", 100, &err), 0);
    assert_int_equal(store_secret_add(f->store, STORE_COOKIE, one, "s1", 100, &err), 0);
    assert_int_equal(store_secret_add(f->store, STORE_TICKET, two, "s1", 100, &err), 0);
    assert_int_equal(store_secret_use(f->store, STORE_TICKET, one, "s2", 50, &err), -ENOENT);
    assert_int_equal(store_secret_use(f->store, STORE_TICKET, one, "s1", 50, &err), 0);
    assert_int_equal(store_secret_use(f->store, STORE_TICKET, one, "s1", 50, &err), -ENOENT);
    assert_int_equal(store_secret_use(f->store, STORE_COOKIE, one, "s1", 50, &err), 0);
    assert_int_equal(store_secret_use(f->store, STORE_COOKIE, one, "s1", 99, &err), 0);
    assert_int_equal(store_secret_use(f->store, STORE_TICKET, two, "s1", 100, &err), -ENOENT);
    assert_int_equal(store_secret_use(f->store, STORE_COOKIE, one, "s1", 100, &err), -ENOENT);
}

static void one_active_session_a_user_and_provider(void **state) {
    struct fixture *f = *state;
    struct err err;
    struct session s = {.id = "00000000000000000000000000000001", .user = "u", .provider = "demo"}, out;
    struct store_event event = {.at_ms = 1, .actor = "me", .event = "started", .to = "awaiting_user_auth"};
    assert_int_equal(store_session_add(f->store, &s, &event, &err), 0);
    struct session second = s;
    strcpy(second.id, "00000000000000000000000000000002");
    assert_int_equal(store_session_add(f->store, &second, &event, &err), -EEXIST);
    assert_int_equal(store_session_find(f->store, "u", "demo", &out, &err), 0);
    assert_memory_equal(&out, &s, sizeof s);
    s.status = SESSION_CANCELLED;
    assert_int_equal(store_session_update(f->store, &s, &event, &err), 0);
    /* An end is an end: whoever comes late changes nothing, and writes no event. */
    s.status = SESSION_FAILED;
    assert_int_equal(store_session_update(f->store, &s, &event, &err), -ENOENT);
    assert_int_equal(store_session_get(f->store, s.id, &out, &err), 0);
    assert_int_equal(out.status, SESSION_CANCELLED);
    struct store_event *events;
    size_t n;
    assert_int_equal(store_events(f->store, s.id, &events, &n, &err), 0);
    assert_int_equal(n, 2);
    assert_memory_equal(&events[0], &event, sizeof event);
    free(events);
    assert_int_equal(store_events(f->store, second.id, &events, &n, &err), 0);
    assert_int_equal(n, 0);
    free(events);
    assert_int_equal(store_session_find(f->store, "u", "demo", &out, &err), -ENOENT);
    assert_int_equal(store_session_add(f->store, &second, &event, &err), 0);
}

static void tokens(void **state) {
    struct fixture *f = *state;
    struct err err;
    uint8_t hash[2][STORE_HASH_SIZE] = {{1}, {2}};
    struct token a = {.id = "0000000a",
                      .user = "ann",
                      .note = "her \x01 'laptop'",
                      .created_ms = 1,
                      .expires_ms = 200000},
                 b = {.id = "0000000b", .user = "bob", .created_ms = 2, .expires_ms = 100}, out, *list;
    size_t n;
    assert_int_equal(store_token_add(f->store, &a, hash[0], &err), 0);
    assert_int_equal(store_token_add(f->store, &a, hash[1], &err), -EEXIST);
    assert_int_equal(store_token_add(f->store, &b, hash[1], &err), 0);
    assert_int_equal(store_token_use(f->store, hash[0], 60000, &out, &err), 0);
    a.used_ms = 60000;
    assert_memory_equal(&out, &a, sizeof a);
    /* To the minute. */
    assert_int_equal(store_token_use(f->store, hash[0], 119999, &out, &err), 0);
    assert_int_equal(out.used_ms, 60000);
    assert_int_equal(store_token_use(f->store, hash[0], 120000, &out, &err), 0);
    assert_int_equal(out.used_ms, 120000);
    assert_int_equal(store_token_use(f->store, hash[0], 200000, &out, &err), -ENOENT);
    assert_int_equal(store_token_use(f->store, hash[1], 99, &out, &err), 0);
    assert_int_equal(store_token_use(f->store, hash[1], 100, &out, &err), -ENOENT);
    assert_int_equal(store_token_list(f->store, NULL, &list, &n, &err), 0);
    assert_int_equal(n, 2);
    free(list);
    assert_int_equal(store_token_list(f->store, "bob", &list, &n, &err), 0);
    assert_int_equal(n, 1);
    assert_string_equal(list[0].id, "0000000b");
    free(list);
    assert_int_equal(store_token_remove(f->store, "0000000a", &out, &err), 0);
    assert_string_equal(out.user, "ann");
    assert_int_equal(store_token_remove(f->store, "0000000a", &out, &err), -ENOENT);
    assert_int_equal(store_token_use(f->store, hash[0], 60000, &out, &err), -ENOENT);
    /* It is gone for good. */
    store_close(f->store);
    assert_int_equal(store_open(f->path, "host-a", &f->store, &err), 0);
    assert_int_equal(store_token_list(f->store, NULL, &list, &n, &err), 0);
    assert_int_equal(n, 1);
    free(list);
}

static void only_the_users_vms_are_found(void **state) {
    struct fixture *f = *state;
    struct err err;
    struct vm mine = make_vm(1), other = make_vm(2), out;
    strcpy(other.user, "v");
    assert_int_equal(store_vm_claim(f->store, &mine, 5, "a", &err), 0);
    assert_int_equal(store_vm_claim(f->store, &other, 5, "a", &err), 0);
    assert_int_equal(store_vm_find(f->store, "vm-", NULL, &out, &err), -ENOTUNIQ);
    assert_int_equal(store_vm_find(f->store, "vm-", "u", &out, &err), 0);
    assert_string_equal(out.id, mine.id);
    assert_int_equal(store_vm_find(f->store, other.id, "u", &out, &err), -ENOENT);
    assert_int_equal(store_vm_find(f->store, other.id, "v", &out, &err), 0);
}

static void values(void **state) {
    struct fixture *f = *state;
    struct err err;
    char value[16];
    assert_int_equal(store_value_get(f->store, "x", value, sizeof value, &err), -ENOENT);
    assert_int_equal(store_value_set(f->store, "x", "1", &err), 0);
    assert_int_equal(store_value_set(f->store, "x", "2", &err), 0);
    assert_int_equal(store_value_get(f->store, "x", value, sizeof value, &err), 0);
    assert_string_equal(value, "2");
}

static void a_newer_or_foreign_database_is_left_alone(void **state) {
    struct fixture *f = *state;
    struct err err;
    struct store *none = NULL;
    char path[96];
    snprintf(path, sizeof path, "%s/garbage", f->dir);
    assert_int_equal(file_write_atomic(path, "this is not a database, it only looks long enough to be one", 60, 0600),
                     0);
    assert_true(store_open(path, "h", &none, &err) < 0);
    assert_non_null(strstr(err.detail, "garbage"));
    _cleanup_free_ char *text = NULL;
    size_t len;
    assert_int_equal(file_read(path, 100, &text, &len), 0);
    assert_int_equal(len, 60);
    snprintf(path, sizeof path, "%s/absent/db", f->dir);
    assert_true(store_open(path, "h", &none, &err) < 0);
    assert_null(none);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(declaration_goes_out_and_comes_in, set_up, tear_down),
        cmocka_unit_test_setup_teardown(news_follow_a_number, set_up, tear_down),
        cmocka_unit_test_setup_teardown(vm_goes_in_and_comes_out, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_ready_vm_gets_its_user, set_up, tear_down),
        cmocka_unit_test_setup_teardown(names_are_unique_among_the_living, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_quota_counts_the_living, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_old_goes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_vm_that_comes_and_goes_does_not_fill_the_disk, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_prefix_finds_one, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_ticket_is_used_once_and_gets_old, set_up, tear_down),
        cmocka_unit_test_setup_teardown(tokens, set_up, tear_down),
        cmocka_unit_test_setup_teardown(only_the_users_vms_are_found, set_up, tear_down),
        cmocka_unit_test_setup_teardown(one_active_session_a_user_and_provider, set_up, tear_down),
        cmocka_unit_test_setup_teardown(values, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_newer_or_foreign_database_is_left_alone, set_up, tear_down),
    };
    return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}

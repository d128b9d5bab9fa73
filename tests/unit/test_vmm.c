/* The drivers' parts that need no VMM. Firecracker's: its answers, its metrics, its versions, what it is told. QEMU's: by what it
 * knows a machine that it can load. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/proc.h"
#include "base/time.h"
#include "cmocka_all.h"
#include "vmm/fc_config.h"
#include "vmm/fc_metrics.h"
#include "vmm/fc_save.h"
#include "vmm/fc_talk.h"

/* ---- answers ---- */

static void an_answer_is_taken_when_it_is_whole(void **state) {
    static const char refused[] = "HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
                                  "Content-Type: application/json\r\ncontent-length: 22 \r\n\r\n"
                                  "{\"fault_message\":\"no\"}more";
    int status = 0;
    size_t body, body_len, whole = sizeof refused - 1 - strlen("more");
    for (size_t len = 0; len < whole; len++)
        assert_int_equal(fc_answer_parse(refused, len, &status, &body, &body_len), 0);
    assert_int_equal(status, 0);
    assert_int_equal(fc_answer_parse(refused, sizeof refused - 1, &status, &body, &body_len), 1);
    assert_int_equal(status, 400);
    assert_memory_equal(refused + body, "{\"fault_message\":\"no\"}", body_len);
    assert_int_equal(body_len, 22);
}

static void an_answer_without_a_body_has_none(void **state) {
    static const char *const answers[] = {
        "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n", /* RFC 9112 6.3: not for this status */
        "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200\r\n\r\n"};
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        int status;
        size_t body, body_len = 9;
        assert_int_equal(fc_answer_parse(answers[i], strlen(answers[i]), &status, &body, &body_len), 1);
        assert_int_equal(body, strlen(answers[i]));
        assert_int_equal(body_len, 0);
    }
}

static void what_is_no_answer_is_refused(void **state) {
    static const char *const answers[] = {
        "SSH-2.0-OpenSSH\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\n",
        "HTTP/1.1 abc\r\n\r\n",
        "HTTP/1.1 99\r\n\r\n",
        "HTTP/1.1 \r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
    };
    int status;
    size_t body, body_len;
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++)
        assert_int_equal(fc_answer_parse(answers[i], strlen(answers[i]), &status, &body, &body_len), -EPROTO);
}

/* ---- metrics ---- */

static void counters_are_summed_and_told(void **state) {
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"", ""},
        {"{\"net\":7}\n{\"net\":[1]}", ""},
        {"cut off}\n{\"utc_timestamp_ms\":1}\nnot json", ""},
        {"{\"net\":{\"tx_packets_count\":3,\"rx_packets_count\":1}}\n"
         "{\"net\":{\"tx_packets_count\":2,\"rx_packets_count\":4}}\n",
         "5 frames from the guest and 5 to it"},
        {"{\"net\":{\"tx_packets_count\":0,\"rx_packets_count\":0,\"rx_tap_event_count\":7}}",
         "has not set up its queue"},
        {"{\"net\":{\"tx_packets_count\":9,\"tap_write_fails\":9}}", "the TAP is down"},
        {"{\"net\":{\"tx_packets_count\":9,\"tx_spoofed_mac_count\":2}}", "another MAC"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char words[VMM_WORDS_MAX];
        fc_metrics_tell(cases[i].text, strlen(cases[i].text), false, words);
        if (*cases[i].words)
            assert_non_null(strstr(words, cases[i].words));
        else
            assert_string_equal(words, "");
    }
}

/* Its MAC is not the one that Firecracker knows, and its TAP was down until it was a machine of its own. */
static void a_clone_is_not_blamed_for_what_every_clone_does(void **state) {
    static const char text[] = "{\"net\":{\"tx_packets_count\":9,\"tap_write_fails\":3,\"tx_spoofed_mac_count\":9}}";
    char words[VMM_WORDS_MAX];
    fc_metrics_tell(text, sizeof text - 1, true, words);
    assert_string_equal(words, "Firecracker counted 9 frames from the guest and 0 to it");
}

static void versions_are_known_by_their_numbers(void **state) {
    static const char *const known[] = {"1.10.0", "1.17.0-dev", "v1.12.1", "2.0.0"};
    static const char *const unknown[] = {"1.9.1", "0.25.2", "", "v", "one", "1", "1.x"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        assert_true(fc_version_is_at_least(known[i], 1, 10));
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        assert_false(fc_version_is_at_least(unknown[i], 1, 10));
    assert_false(fc_version_is_at_least("1.11.3", 1, 12)); /* 1.12 can be told a TAP when it loads */
    assert_true(fc_version_is_at_least("1.12.0", 1, 12));
}

/* ---- the machine ---- */

static json_t *make_config(bool shared_base) {
    static struct vm vm = {.id = "vm-1", .tap = "fc-vm-000000001", .vcpus = 2, .memory_mib = 256};
    vm.mac = vm_mac_from_random((const uint8_t *)"\x01\x02\x03\x04");
    struct vmm_spec spec = {.vm = &vm, .folder = "/state/users/vm-1", .cmdline = "console=ttyS0"};
    json_t *config = fc_config_make(&spec, shared_base);
    assert_non_null(config);
    return config;
}

static void free_requests(struct fc_request *requests, size_t n) {
    for (size_t i = 0; i < n; i++)
        json_decref(requests[i].body);
}

static void the_requests_say_what_the_file_says(void **state) {
    static const char *const paths[] = {"/logger",        "/metrics",        "/machine-config",          "/boot-source",
                                        "/drives/rootfs", "/drives/overlay", "/network-interfaces/eth0", "/entropy",
                                        "/vsock",         "/actions"};
    struct fc_request requests[FC_PARTS_MAX];
    size_t n;
    json_t *config = make_config(true);
    assert_int_equal(fc_config_requests(config, "/state/users/vm-1", requests, &n), 0);
    assert_int_equal(n, sizeof paths / sizeof *paths);
    for (size_t i = 0; i < n; i++) {
        assert_string_equal(requests[i].method, "PUT");
        assert_string_equal(requests[i].path, paths[i]);
    }
    const char *kernel, *args, *base, *tap;
    assert_int_equal(json_unpack(requests[3].body, "{s:s, s:s}", "kernel_image_path", &kernel, "boot_args", &args), 0);
    assert_string_equal(kernel, "vmlinux");
    assert_string_equal(args, "console=ttyS0 reboot=k mc.overlay=/dev/vdb");
    assert_int_equal(json_unpack(requests[4].body, "{s:s}", "path_on_host", &base), 0);
    assert_string_equal(base, "base.ext4");
    assert_int_equal(json_unpack(requests[6].body, "{s:s}", "host_dev_name", &tap), 0);
    assert_string_equal(tap, "fc-vm-000000001");
    assert_string_equal(json_string_value(json_object_get(json_object_get(config, "boot-source"), "kernel_image_path")),
                        "/state/users/vm-1/root/vmlinux");
    free_requests(requests, n);
    json_decref(config);
}

static void a_disk_of_its_own_needs_no_overlay(void **state) {
    struct fc_request requests[FC_PARTS_MAX];
    size_t n;
    json_t *config = make_config(false);
    assert_int_equal(fc_config_requests(config, "/state/users/vm-1", requests, &n), 0);
    assert_int_equal(n, 9);
    assert_null(strstr(json_string_value(json_object_get(requests[3].body, "boot_args")), "overlay"));
    assert_true(json_is_false(json_object_get(requests[4].body, "is_read_only")));
    free_requests(requests, n);
    json_decref(config);
}

static void a_file_that_is_not_ours_is_refused(void **state) {
    static const char *const keys[] = {"logger", "drives", "network-interfaces", "boot-source", "vsock"};
    struct fc_request requests[FC_PARTS_MAX];
    size_t n = 77;
    assert_int_equal(fc_config_requests(NULL, "/x", requests, &n), -EINVAL);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        json_t *config = make_config(true);
        json_object_del(config, keys[i]);
        assert_int_equal(fc_config_requests(config, "/x", requests, &n), -EINVAL);
        json_object_set_new(config, keys[i], json_string("text"));
        assert_int_equal(fc_config_requests(config, "/x", requests, &n), -EINVAL);
        json_decref(config);
    }
    json_t *config = make_config(true);
    while (json_array_size(json_object_get(config, "drives")) < FC_PARTS_MAX)
        json_array_append(json_object_get(config, "drives"), json_array_get(json_object_get(config, "drives"), 0));
    assert_int_equal(fc_config_requests(config, "/x", requests, &n), -EINVAL);
    json_decref(config);
    assert_int_equal(n, 77);
}

/* ---- conversations, with this program at the other end ---- */

struct rig {
    struct loop *loop;
    char folder[64];
    int listen_fd;
    pid_t pid; /* who must listen; 0: any of the uid */
    bool is_done;
    struct err err;
};

static void on_done(void *userdata, const struct err *err) {
    struct rig *rig = userdata;
    rig->is_done = true;
    rig->err = err ? *err : (struct err){0};
    loop_quit(rig->loop);
}

static int rig_new(void **state) {
    struct rig *rig = calloc(1, sizeof *rig);
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    strcpy(rig->folder, "/tmp/mc-vmm-XXXXXX");
    assert_non_null(mkdtemp(rig->folder));
    snprintf(addr.sun_path, sizeof addr.sun_path, "%s/" FC_SOCKET, rig->folder);
    rig->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(rig->listen_fd, (struct sockaddr *)&addr, sizeof addr), 0);
    assert_int_equal(listen(rig->listen_fd, 4), 0);
    *state = rig;
    return 0;
}

static int rig_free(void **state) {
    struct rig *rig = *state;
    fd_close(&rig->listen_fd);
    assert_int_equal(dir_remove(rig->folder), 0);
    free(rig);
    return 0;
}

/* A child that answers each request on one connection with the next of the texts, then hangs up. */
static void answer_with(struct rig *rig, const char *const *answers, size_t n) {
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid > 0)
        return;
    alarm(10); /* it outlives nobody */
    int fd = accept(rig->listen_fd, NULL, NULL);
    char request[4096];
    for (size_t i = 0; i < n && recv(fd, request, sizeof request, 0) > 0; i++)
        if (send(fd, answers[i], strlen(answers[i]), MSG_NOSIGNAL) < 0)
            break;
    _exit(0);
}

static int check_hello(json_t *answer, struct fc_request *rest, size_t n_rest, struct err *err) {
    if (n_rest == 2)
        rest[0].skip = true;
    return json_is_true(json_object_get(answer, "hello")) ? 0 : err_set(err, EPROTO, "test.bad", "not a hello");
}

#define NO_CONTENT "HTTP/1.1 204 \r\nConnection: keep-alive\r\n\r\n"
#define HELLO "HTTP/1.1 200 \r\nContent-Length: 14\r\n\r\n{\"hello\":true}"

static void talk(struct rig *rig, uint32_t uid, int timeout_ms) {
    struct fc_request requests[] = {
        {.method = "GET", .path = "/hello", .check = check_hello},
        {.method = "PUT", .path = "/first", .body = json_pack("{s:i}", "a", 1)},
        {.method = "PUT", .path = "/network-interfaces/eth0", .body = json_object()},
    };
    struct vmm_talk *t;
    rig->is_done = false;
    assert_int_equal(loop_new(&rig->loop, NULL), 0);
    assert_int_equal(
        fc_talk_start(rig->loop, rig->folder, uid, rig->pid, requests, 3, false, timeout_ms, on_done, rig, &t, NULL),
        0);
    assert_int_equal(loop_run(rig->loop, NULL), 0);
    loop_free(rig->loop);
    assert_true(rig->is_done);
}

static void a_conversation_goes_to_its_end(void **state) {
    struct rig *rig = *state;
    static const char *const answers[] = {HELLO, NO_CONTENT}; /* one is skipped */
    answer_with(rig, answers, 2);
    talk(rig, getuid(), 5000);
    assert_int_equal(rig->err.errnum, 0);
}

static void a_refusal_ends_it_with_what_to_do(void **state) {
    struct rig *rig = *state;
    static const char *const answers[] = {
        HELLO,
        "HTTP/1.1 400 \r\nContent-Length: 54\r\n\r\n{\"fault_message\":\"Open tap: Resource busy \\u0007 now\"}"};
    answer_with(rig, answers, 2);
    talk(rig, getuid(), 5000);
    assert_string_equal(rig->err.code, "vmm.refused");
    assert_string_equal(rig->err.detail,
                        "Firecracker refused PUT /network-interfaces/eth0 (400): Open tap: Resource busy \\x07 now");
    assert_non_null(strstr(rig->err.hint, "mctl doctor"));
}

static void who_hangs_up_or_talks_nonsense_is_told(void **state) {
    struct rig *rig = *state;
    static const char *const nonsense[] = {HELLO, "HTTP/2 hi\r\n\r\n"}, *const more[] = {HELLO NO_CONTENT},
                             *const wrong[] = {NO_CONTENT};
    answer_with(rig, nonsense, 1);
    talk(rig, getuid(), 5000);
    assert_string_equal(rig->err.detail, "Firecracker hung up at PUT /network-interfaces/eth0");
    answer_with(rig, nonsense, 2);
    talk(rig, getuid(), 5000);
    assert_string_equal(rig->err.code, "vmm.lost");
    answer_with(rig, more, 1);
    talk(rig, getuid(), 5000);
    assert_string_equal(rig->err.code, "vmm.lost");
    answer_with(rig, wrong, 1);
    talk(rig, getuid(), 5000);
    assert_string_equal(rig->err.code, "test.bad");
}

static void who_does_not_answer_is_left(void **state) {
    struct rig *rig = *state;
    talk(rig, getuid(), 200); /* nobody accepts */
    assert_string_equal(rig->err.code, "vmm.timeout");
    talk(rig, getuid() + 1, 5000);
    assert_string_equal(rig->err.code, "vmm.foreign");
    rig->pid = getppid();
    talk(rig, getuid(), 5000);
    assert_string_equal(rig->err.code, "vmm.foreign");
    fd_close(&rig->listen_fd);
    talk(rig, getuid(), 5000);
    assert_string_equal(rig->err.code, "vmm.unreachable");
}

/* A child that answers one request if it says what is wanted. */
static void expect(struct rig *rig, const char *line, const char *body) {
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid > 0)
        return;
    alarm(10);
    int fd = accept(rig->listen_fd, NULL, NULL);
    char request[4096] = "";
    size_t len = 0;
    ssize_t n;
    while (!strstr(request, body) && (n = recv(fd, request + len, sizeof request - 1 - len, 0)) > 0)
        len += (size_t)n;
    if (strncmp(request, line, strlen(line)) == 0 && send(fd, NO_CONTENT, strlen(NO_CONTENT), MSG_NOSIGNAL) < 0)
        _exit(1);
    _exit(0);
}

static void a_machine_is_paused_and_resumed_and_its_counters_flushed(void **state) {
    static const char *const words[] = {"Paused", "Resumed", "FlushMetrics"};
    struct rig *rig = *state;
    struct vm vm = {.uid = getuid()};
    struct vmm_talk *t;
    char root[96];
    snprintf(root, sizeof root, "%s/" FC_ROOT, rig->folder);
    assert_int_equal(symlink(".", root), 0);
    for (int i = 0; i < 3; i++) {
        expect(rig, i < 2 ? "PATCH /vm HTTP/1.1\r\n" : "PUT /actions HTTP/1.1\r\n", words[i]);
        rig->is_done = false;
        assert_int_equal(loop_new(&rig->loop, NULL), 0);
        int r = i < 2 ? vmm_firecracker.set_paused(rig->loop, rig->folder, &vm, i == 0, on_done, rig, &t, NULL)
                      : vmm_firecracker.flush(rig->loop, rig->folder, &vm, on_done, rig, &t, NULL);
        assert_int_equal(r, 0);
        assert_int_equal(loop_run(rig->loop, NULL), 0);
        loop_free(rig->loop);
        assert_true(rig->is_done);
        assert_string_equal(rig->err.detail, "");
    }
}

/* ---- a machine that is loaded or goes on: the calls that wait ---- */

static struct vmm_saved saved_of(struct rig *rig, struct vm *vm, int timeout_ms) {
    char root[96];
    snprintf(root, sizeof root, "%s/" FC_ROOT, rig->folder);
    assert_true(symlink(".", root) == 0 || errno == EEXIST);
    *vm = (struct vm){.uid = getuid(), .pid = getpid()};
    assert_int_equal(proc_start_time(vm->pid, &vm->pid_start), 0);
    return (struct vmm_saved){
        .folder = rig->folder, .vm = vm, .name = "saved", .deadline_ms = time_monotonic_ms() + timeout_ms};
}

#define STATE(words) "HTTP/1.1 200 \r\nContent-Length: " words

static void only_a_machine_that_stands_still_is_told_to_go_on(void **state) {
    static const char *const
        paused[] = {STATE("18\r\n\r\n{\"state\":\"Paused\"}"), NO_CONTENT},
        *const refused[] = {STATE("18\r\n\r\n{\"state\":\"Paused\"}"), "HTTP/1.1 400 \r\nContent-Length: 0\r\n\r\n"},
        *const untold[] = {STATE("23\r\n\r\n{\"state\":\"Not started\"}")}, *const silent[] = {STATE("2\r\n\r\n{}")};
    struct err err = {0};
    struct vm vm;
    struct vmm_saved saved = saved_of(*state, &vm, 10000);
    answer_with(*state, paused, 2);
    assert_int_equal(fc_go(&saved, &err), 0);
    answer_with(*state, untold, 1); /* and hangs up */
    assert_int_equal(fc_go(&saved, &err), 0);
    answer_with(*state, refused, 2);
    assert_true(fc_go(&saved, &err) < 0);
    assert_string_equal(err.code, "vmm.refused");
    answer_with(*state, silent, 1);
    assert_true(fc_go(&saved, &err) < 0);
    assert_string_equal(err.code, "vmm.talk");
}

static void another_version_loads_nothing(void **state) {
    static const char *const answers[] = {STATE("32\r\n\r\n{\"firecracker_version\":\"1.16.0\"}")};
    struct err err = {0};
    struct vm vm;
    struct vmm_saved saved = saved_of(*state, &vm, 10000);
    answer_with(*state, answers, 1);
    assert_true(fc_load(&saved, "1.17.0", &err) < 0);
    assert_string_equal(err.code, "vmm.other-version");
    assert_non_null(strstr(err.detail, "saved by Firecracker 1.17.0, and this is Firecracker 1.16.0"));
}

static void nobody_waits_longer_than_the_deadline_or_for_one_that_has_ended(void **state) {
    struct err err = {0};
    struct vm vm;
    struct vmm_saved saved = saved_of(*state, &vm, 200);
    assert_true(fc_load(&saved, "1.17.0", &err) < 0); /* nobody accepts */
    assert_string_equal(err.code, "vmm.timeout");
    saved = saved_of(*state, &vm, 60000);
    pid_t child = fork();
    if (child == 0)
        _exit(usleep(300000));
    vm.pid = child;
    assert_int_equal(proc_start_time(child, &vm.pid_start), 0);
    struct rig *rig = *state;
    char path[96];
    snprintf(path, sizeof path, "%s/" FC_SOCKET, rig->folder);
    assert_int_equal(unlink(path), 0); /* it has none yet */
    int64_t begun_ms = time_monotonic_ms();
    assert_true(fc_load(&saved, "1.17.0", &err) < 0);
    assert_string_equal(err.code, "vmm.lost");
    assert_true(time_monotonic_ms() - begun_ms < 30000);
    assert_int_equal(waitpid(child, NULL, 0), child);
}

/* ---- what a machine is loaded by ---- */

static const char *release = "6.1.0-1";

int __wrap_uname(struct utsname *name);
int __wrap_uname(struct utsname *name) {
    *name = (struct utsname){0};
    strcpy(name->release, release);
    return 0;
}

static const struct vmm_ops *shaped = &vmm_qemu;

static void shape_of(const char *accel, const char *id, uint32_t memory_mib, char ret_shape[VMM_SHAPE_TEXT]) {
    static const struct config_vm config = {.qemu_binary = "/usr/bin/qemu-system-x86_64"};
    struct vm vm = {.memory_mib = memory_mib, .vcpus = 1};
    struct vmm_choice choice = {.ops = shaped};
    struct vmm_spec spec = {.vm = &vm, .choice = &choice, .folder = id, .cmdline = "quiet", .has_agent = true};
    strcpy(vm.id, id);
    strcpy(vm.tap, id);
    strcpy(choice.accel, accel);
    assert_int_equal(shaped->shape(&config, &spec, ret_shape, NULL), 0);
}

static void a_machine_fits_the_host_that_it_was_saved_on(void **state) {
    char first[VMM_SHAPE_TEXT], same[VMM_SHAPE_TEXT], kvm[VMM_SHAPE_TEXT], other[VMM_SHAPE_TEXT];
    shape_of("tcg", "vm-1", 512, first);
    shape_of("kvm", "vm-1", 512, kvm);
    shape_of("kvm", "vm-2", 512, same);
    assert_string_equal(same, kvm);
    shape_of("kvm", "vm-1", 256, other);
    assert_string_not_equal(other, kvm);
    /* -cpu host is what the processor and the kernel make of it; an emulated one is the same everywhere. */
    release = "6.1.0-2";
    shape_of("kvm", "vm-1", 512, other);
    assert_string_not_equal(other, kvm);
    shape_of("tcg", "vm-1", 512, same);
    assert_string_equal(same, first);
}

static void a_machine_of_firecracker_fits_its_host_too(void **state) {
    char first[VMM_SHAPE_TEXT], same[VMM_SHAPE_TEXT], other[VMM_SHAPE_TEXT];
    shaped = &vmm_firecracker;
    release = "6.1.0-1";
    shape_of("kvm", "vm-1", 512, first);
    shape_of("kvm", "vm-2", 512, same);
    assert_string_equal(same, first);
    shape_of("kvm", "vm-1", 256, other);
    assert_string_not_equal(other, first);
    release = "6.1.0-2";
    shape_of("kvm", "vm-1", 512, other);
    assert_string_not_equal(other, first);
    shaped = &vmm_qemu;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_machine_fits_the_host_that_it_was_saved_on),
        cmocka_unit_test(a_machine_of_firecracker_fits_its_host_too),
        cmocka_unit_test(a_clone_is_not_blamed_for_what_every_clone_does),
        cmocka_unit_test(an_answer_is_taken_when_it_is_whole),
        cmocka_unit_test(an_answer_without_a_body_has_none),
        cmocka_unit_test(what_is_no_answer_is_refused),
        cmocka_unit_test(counters_are_summed_and_told),
        cmocka_unit_test(versions_are_known_by_their_numbers),
        cmocka_unit_test(the_requests_say_what_the_file_says),
        cmocka_unit_test(a_disk_of_its_own_needs_no_overlay),
        cmocka_unit_test(a_file_that_is_not_ours_is_refused),
        cmocka_unit_test_setup_teardown(a_conversation_goes_to_its_end, rig_new, rig_free),
        cmocka_unit_test_setup_teardown(a_refusal_ends_it_with_what_to_do, rig_new, rig_free),
        cmocka_unit_test_setup_teardown(who_hangs_up_or_talks_nonsense_is_told, rig_new, rig_free),
        cmocka_unit_test_setup_teardown(who_does_not_answer_is_left, rig_new, rig_free),
        cmocka_unit_test_setup_teardown(a_machine_is_paused_and_resumed_and_its_counters_flushed, rig_new, rig_free),
        cmocka_unit_test_setup_teardown(only_a_machine_that_stands_still_is_told_to_go_on, rig_new, rig_free),
        cmocka_unit_test_setup_teardown(another_version_loads_nothing, rig_new, rig_free),
        cmocka_unit_test_setup_teardown(nobody_waits_longer_than_the_deadline_or_for_one_that_has_ended, rig_new,
                                        rig_free),
    };
    return cmocka_run_group_tests_name("vmm", tests, NULL, NULL);
}

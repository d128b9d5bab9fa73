/* The guest's side, asked for anything: each operation's own reading of its request, and what it makes of the guest's
 * answers. What would touch this machine is replaced: programs, sockets, files that are opened, the clock, the kernel's
 * log, netlink. Input: a script (agent_script.h), whose last 64 bytes are also what programs and the kernel say. */
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <time.h>

#include "agent_play.h"
#include "nl.h"

#define SAID_MAX 64U

static const uint8_t *said;
static size_t said_len;

/* ---- what is replaced ---- */

int child_start(struct job *job, const struct child_spec *spec, struct err *err) {
    int fds[2];
    check(spec->argv[0] != NULL, "a program without a name");
    if (spec->user && strcmp(spec->user, "nobody") == 0)
        return err_set(err, ENOENT, "exec.failed", "there is no user %s in the guest", spec->user);
    check(pipe2(fds, O_CLOEXEC | O_NONBLOCK) == 0 && write(fds[1], said, said_len) == (ssize_t)said_len, "pipe");
    close(fds[1]);
    job->out[0].fd = fds[0];
    job->in_fd = spec->has_stdin ? open("/dev/null", O_WRONLY | O_CLOEXEC) : -1;
    job->exited = true;
    job->wait_status = said_len > 0 ? said[0] & 0xff7f : 0;
    return 0;
}

int child_capture(struct job *job, const char *const *argv, void (*on_done)(struct job *job), struct err *err) {
    struct child_spec spec = {.argv = argv};
    job->is_captured = true;
    job->on_done = on_done;
    int r = child_start(job, &spec, err);
    job->wait_status = 0;
    return r;
}

int child_user(const char *user, uid_t *ret_uid, gid_t *ret_gid, struct err *err) {
    *ret_uid = *ret_gid = 1000;
    return 0;
}

json_t *net_facts_firewall(void) {
    return json_null();
}

json_t *net_facts_listeners(void) {
    return json_array();
}

int __wrap_nl_change(int protocol, struct nl_msg *msg);
int __wrap_nl_dump(int protocol, struct nl_msg *msg, nl_each *each, void *data);
int __wrap_clock_settime(clockid_t clock, const struct timespec *ts);
int __wrap_klogctl(int type, char *buffer, int len);
int __wrap_socket(int family, int type, int protocol);
long __wrap_syscall(long number, ...);

int __wrap_nl_change(int protocol, struct nl_msg *msg) {
    return said_len % 2 ? -ENODEV : 0;
}

int __wrap_nl_dump(int protocol, struct nl_msg *msg, nl_each *each, void *data) {
    return 0;
}

int __wrap_clock_settime(clockid_t clock, const struct timespec *ts) {
    check(ts->tv_nsec >= 0 && ts->tv_nsec < 1000000000, "a time that is none");
    return 0;
}

int __wrap_klogctl(int type, char *buffer, int len) {
    check(len >= (int)said_len, "room");
    memcpy(buffer, said, said_len);
    return (int)said_len;
}

int __wrap_socket(int family, int type, int protocol) {
    errno = EPERM;
    return -1;
}

/* openat2(2): a file with what is said; a folder is not found, so that nothing is written. */
long __wrap_syscall(long number, ...) {
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (fd >= 0 && write(fd, said, said_len) == (ssize_t)said_len && lseek(fd, 0, SEEK_SET) == 0)
        return fd;
    return -1;
}

/* ---- the target ---- */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t hello[64];
    struct rig rig;
    said_len = size < SAID_MAX ? size : SAID_MAX;
    said = data + size - said_len;
    rig_open(&rig);
    rig_play(&rig, hello, script_add(hello, 0, AGENT_FRAME_JSON, 0, 0, "{\"hello\":{\"min\":1,\"max\":1}}"));
    check(rig.agent.session == 5, "not greeted");
    rig_play(&rig, data, size);
    rig_close(&rig);
    return 0;
}

size_t fuzz_seed(unsigned number, uint8_t *ret, size_t size) {
    static const char *const texts[] = {
        "{\"op\":\"health\"}",
        "{\"op\":\"network\",\"timeout_ms\":5}",
        "{\"op\":\"kernel.log\",\"lines\":7}",
        "{\"op\":\"clock.set\",\"realtime_ms\":1800000000000}",
        "{\"op\":\"net.link\",\"name\":\"lo\",\"up\":true}",
        "{\"op\":\"net.address\",\"link\":\"lo\",\"address\":\"192.168.0.2/16\",\"delete\":true}",
        "{\"op\":\"net.route\",\"to\":\"0.0.0.0/0\",\"via\":\"192.168.0.1\",\"link\":\"lo\"}",
        "{\"op\":\"ping\",\"address\":\"192.0.2.1\"}",
        "{\"op\":\"connect\",\"address\":\"192.0.2.1\",\"port\":80}",
        "{\"op\":\"units\",\"names\":[\"a.service\"]}",
        "{\"op\":\"unit.log\",\"name\":\"a.service\",\"lines\":2}",
        "{\"op\":\"unit.restart\",\"name\":\"a.service\"}",
        "{\"op\":\"exec\",\"argv\":[\"a\",\"b\"],\"env\":{\"A\":\"b\"},\"cwd\":\"/\",\"user\":\"u\",\"stdin\":true}",
        "{\"op\":\"exec\",\"argv\":[\"a\"],\"browser\":true,\"env\":{\"B\":\"c\"}}",
        "{\"op\":\"file.write\",\"path\":\"/a/b/c\",\"allow\":[\"/a/\"],\"user\":\"u\",\"folders\":true}",
        "{\"op\":\"exec\",\"argv\":[\"a\"],\"pty\":{\"rows\":2,\"columns\":3,\"term\":\"x\"}}",
        "{\"op\":\"file.read\",\"path\":\"/a/b\",\"allow\":[\"/a/\"],\"offset\":-3,\"max\":5}",
        "{\"op\":\"file.write\",\"path\":\"/a/b\",\"allow\":[\"/a/b\"],\"mode\":384,\"user\":\"u\"}",
        "{\"op\":\"browser.open\",\"url\":\"https://a.example/?x=1\"}",
    };
    static const char *const answers[] = {"Id=a.service\nActiveState=active\n\nId=b.service\nResult\n",
                                          "<4>[ 1.0] Out of memory: Killed process 1\n<6>[ 2.0] x\xc3\xa4\n",
                                          "\xff\xfe\0"};
    size_t len = 0, count = sizeof texts / sizeof *texts;
    for (unsigned i = 0; i <= number % 3; i++)
        len = script_add(ret, len, AGENT_FRAME_JSON, 0, (uint8_t)(1 + i), texts[(number + i * 5) % count]);
    len = script_add(ret, len, AGENT_FRAME_DATA, AGENT_STDIN, 1, number % 2 ? "input" : "");
    return script_add(ret, len, 0, 0, 0, answers[number % 3]);
}

/* The first process of a guest whose kernel has control groups of version 2 and nothing else: a daemon in a group of its
 * own that is delegated to it. Says "ok …" or "FAILED …" for each thing that must hold, and powers off. */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cgroup.h"
#include "base/fd.h"
#include "base/proc.h"

#define GROUP "/sys/fs/cgroup/service"

static void say(bool good, const char *what, const char *detail) {
    printf("cgroup-tool: %s %s: %s\n", good ? "ok" : "FAILED", what, detail);
    fflush(stdout);
}

static void show_file(const char *path, char ret_text[256]) {
    _cleanup_free_ char *text = NULL;
    ret_text[0] = '\0';
    if (file_read(path, 65536, &text, NULL) == 0)
        snprintf(ret_text, 256, "%.*s", (int)strcspn(text, "\n"), text);
}

static void file_is(const char *path, const char *wanted) {
    char text[256];
    show_file(path, text);
    say(strcmp(text, wanted) == 0, path, text);
}

/* Runs this program with a word in the group, and says how it ended. */
static void run(const int *fds, int n, const char *word, char words[96]) {
    const char *const argv[] = {"/init", word, NULL};
    struct proc_spec spec = {.argv = argv, .output_fd = 1, .group_fds = fds, .group_count = n};
    struct err err = {0};
    pid_t pid;
    int pidfd;
    snprintf(words, 96, "%s", "did not start");
    if (proc_start(&spec, &pid, &pidfd, &err) < 0) {
        say(false, "start", err.detail);
        return;
    }
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    poll(&p, 1, 60000);
    if (proc_reap(pidfd, words, 96) == 0)
        proc_signal(pidfd, SIGKILL);
    close(pidfd);
}

static void __attribute__((noreturn)) eat_memory(void) {
    for (;;) {
        char *p = malloc(1 << 20);
        if (p)
            memset(p, 1, 1 << 20);
    }
}

static int fork_many(void) {
    int n = 0;
    for (; n < 100; n++) {
        pid_t pid = fork();
        if (pid < 0)
            break;
        if (pid == 0) {
            pause();
            _exit(0);
        }
    }
    return n;
}

static void examine(void) {
    struct cgroup cgroup;
    struct cgroup_limits limits = {.memory_bytes = 32 << 20, .cpu_percent = 150, .pids = 10};
    struct err err = {0};
    char words[512], end[96], path[512];
    int fds[CGROUP_HIERARCHIES];
    uint64_t kills, peak;
    for (int i = 0; i < 2; i++) { /* a daemon that is started again finds what it left */
        cgroup_find("", "vms", &cgroup, words, sizeof words);
        say(cgroup.count == 1 && cgroup.hierarchy[0].is_v2 && cgroup.hierarchy[0].cpu && cgroup.hierarchy[0].memory &&
                cgroup.hierarchy[0].pids,
            "find", words);
    }
    file_is("/proc/self/cgroup", "0::/service/controller");
    file_is(GROUP "/cgroup.subtree_control", "cpu memory pids");
    int n = cgroup_make(&cgroup, "vm-1", &limits, fds, &err);
    say(n == 1, "make", err.detail);
    file_is(GROUP "/vms/vm-1/memory.max", "33554432");
    file_is(GROUP "/vms/vm-1/pids.max", "10");
    file_is(GROUP "/vms/vm-1/cpu.max", "150000 100000");
    file_is(GROUP "/vms/vm-1/memory.oom.group", "1");
    run(fds, n, "eat", end);
    say(strstr(end, "signal 9") != NULL, "memory", end);
    snprintf(path, sizeof path, "%s/vm-1", cgroup.hierarchy[0].path);
    cgroup_memory_events(path, &kills, &peak);
    snprintf(words, sizeof words, "%llu kills, %llu bytes", (unsigned long long)kills, (unsigned long long)peak);
    say(kills >= 1 && peak > 16 << 20 && peak <= 32 << 20, "events", words);
    run(fds, n, "fork", end);
    say(strcmp(end, "exit status 9") == 0, "pids", end);
    pid_t pids[32];
    size_t left = cgroup_members(path, pids, 32);
    say(left == 9 && cgroup_remove(path) == -EBUSY, "members", "nine children are left, and keep it");
    for (size_t i = 0; i < left; i++)
        kill(pids[i], SIGKILL);
    while (cgroup_members(path, pids, 32) > 0)
        usleep(1000);
    say(cgroup_remove(path) == 0 && access(path, F_OK) < 0 && cgroup_remove(path) == 0, "remove", "twice");
    cgroup_find("/no/such", "vms", &cgroup, words, sizeof words);
    say(cgroup.count == 0, "elsewhere", words);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "eat") == 0)
        eat_memory();
    if (argc > 1 && strcmp(argv[1], "fork") == 0)
        return fork_many();
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/dev", 0755);
    bool good = mount("proc", "/proc", "proc", 0, NULL) == 0 && mount("sys", "/sys", "sysfs", 0, NULL) == 0 &&
                (mount("dev", "/dev", "devtmpfs", 0, NULL) == 0 || errno == EBUSY) &&
                mount("cgroup", "/sys/fs/cgroup", "cgroup2", 0, NULL) == 0;
    say(good, "mounts", strerror(errno));
    file_write_value("/sys/fs/cgroup/cgroup.subtree_control", "+cpu +memory +pids");
    mkdir(GROUP, 0755);
    say(file_write_value(GROUP "/cgroup.procs", "1") == 0, "service", "this process has a group of its own");
    examine();
    printf("cgroup-tool: done\n");
    fflush(stdout);
    sync();
    reboot(RB_POWER_OFF);
    return 0;
}

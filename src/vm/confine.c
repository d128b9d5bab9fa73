#include "vm/confine.h"

#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/jail.h"
#include "base/log.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/time.h"

#define GROUP "master-controller" /* below it each VM has a group of its id */
#define GROUPS_FILE "cgroup"      /* in a VM's folder: a path a line */
#define GROUPS_MAX 4096           /* bytes of that file */
#define PIDS_MAX 512              /* threads and processes of a VMM */
#define EMULATION_PERCENT 50      /* of a CPU, beside the guest's own */
#define SCRATCH "jail"

/* Of the unit in doc/: where it runs, VMs are put there, and a service manager can always start the daemon anew. */
#define VMS_SERVICE "/system.slice/master-controller-vms.service"

struct confine {
    struct cgroup cgroup;
    char scratch[256];
    int jail_fd; /* -1: none */
    bool is_hopeless;
    struct stat program; /* that the jail has */
};

int confine_new(const struct config_vm *config, const char *state_dir, struct confine **ret_confine, struct err *err) {
    char words[CGROUP_PATH_MAX + 64];
    struct confine *c = calloc(1, sizeof *c);
    if (!c)
        return err_sys(err, ENOMEM, "vm.start", "start the VM manager");
    c->jail_fd = -1;
    snprintf(c->scratch, sizeof c->scratch, "%s/" SCRATCH, state_dir);
    int r = dir_make(c->scratch, 0700);
    if (r < 0) {
        err_sys(err, -r, "state.folder", "make %s", c->scratch);
        free(c);
        return r;
    }
    cgroup_find(*config->cgroup ? config->cgroup : VMS_SERVICE, GROUP, &c->cgroup, words, sizeof words);
    if (c->cgroup.count == 0 && !*config->cgroup)
        cgroup_find("", GROUP, &c->cgroup, words, sizeof words);
    log_event(c->cgroup.count ? LOG_LEVEL_INFO : LOG_LEVEL_WARNING, (struct log_about){.event = "limits"},
              "VMMs are limited in %s", words);
    *ret_confine = c;
    return 0;
}

void confine_free(struct confine *c) {
    if (!c)
        return;
    fd_close(&c->jail_fd);
    free(c);
}

int confine_jail(struct confine *c, const char *program, bool with_tun) {
    struct stat st = {0};
    struct err err = {0};
    stat(program, &st);
    bool same = st.st_ino == c->program.st_ino && st.st_dev == c->program.st_dev;
    if (c->jail_fd < 0 || !same) {
        if (c->is_hopeless && same)
            return 0;
        fd_close(&c->jail_fd);
        c->program = st;
        c->is_hopeless = jail_make(c->scratch, program, with_tun, &c->jail_fd, &err) < 0;
        if (c->is_hopeless) {
            log_warning("%s: VMMs will see the host's files, as far as their uid may", err.detail);
            return 0;
        }
    }
    int fd = fcntl(c->jail_fd, F_DUPFD_CLOEXEC, 3);
    return fd < 0 ? 0 : fd;
}

int confine_enter(const struct confine *c, const struct vm *vm, const char *folder, uint32_t overhead_mib,
                  int ret_fds[CGROUP_HIERARCHIES], struct err *err) {
    char paths[GROUPS_MAX], file[CGROUP_PATH_MAX + 128];
    struct cgroup_limits limits = {.memory_bytes = ((uint64_t)vm->memory_mib + overhead_mib) << 20,
                                   .cpu_percent = vm->vcpus * 100 + EMULATION_PERCENT,
                                   .pids = PIDS_MAX};
    cgroup_paths(&c->cgroup, vm->id, paths, sizeof paths);
    snprintf(file, sizeof file, "%s/" GROUPS_FILE, folder);
    int r = file_write_new(file, paths, strlen(paths), 0600);
    if (r < 0)
        return err_sys(err, -r, "vm.create", "write %s", file);
    return cgroup_make(&c->cgroup, vm->id, &limits, ret_fds, err);
}

/* Lines of text that name a group of the VM; not those that stand in `but` too. */
static void each_line(const char *text, const char *but, const char *vm_id, void (*fn)(const char *path, void *data),
                      void *data) {
    char path[CGROUP_PATH_MAX];
    for (const char *end; *text; text = *end ? end + 1 : end) {
        end = strchrnul(text, '\n');
        if (end - text >= (ptrdiff_t)sizeof path)
            continue;
        snprintf(path, sizeof path, "%.*s", (int)(end - text), text);
        const char *name = strrchr(path, '/');
        if (name && strcmp(name + 1, vm_id) == 0 && !strstr(but, path))
            fn(path, data);
    }
}

/* Calls fn for each group that is the VM's by its name: those that it would have now, and those that its folder names,
 * which an earlier configuration may have had. Folder or file may be gone, or hold anything. */
static void each_group(const struct confine *c, const char *folder, const char *vm_id,
                       void (*fn)(const char *path, void *data), void *data) {
    char file[CGROUP_PATH_MAX + 128], paths[GROUPS_MAX];
    _cleanup_free_ char *text = NULL;
    snprintf(file, sizeof file, "%s/" GROUPS_FILE, folder);
    cgroup_paths(&c->cgroup, vm_id, paths, sizeof paths);
    each_line(paths, "", vm_id, fn, data);
    if (file_read(file, GROUPS_MAX, &text, NULL) == 0)
        each_line(text, paths, vm_id, fn, data);
}

/* Only the group of the processors has one of them; the defaults are 100 and 1024. */
static void weigh_less(const char *path, void *data) {
    char file[CGROUP_PATH_MAX + 16];
    snprintf(file, sizeof file, "%s/cpu.weight", path);
    file_write_value(file, "10");
    snprintf(file, sizeof file, "%s/cpu.shares", path);
    file_write_value(file, "102");
}

void confine_come_last(const struct confine *c, const char *folder, const char *vm_id) {
    each_group(c, folder, vm_id, weigh_less, NULL);
}

/* Who is in the group while its pidfd is held is who will be killed. */
static void kill_members(const char *path, void *data) {
    pid_t pids[PIDS_MAX], again[PIDS_MAX];
    int *left = data;
    size_t n = cgroup_members(path, pids, PIDS_MAX);
    for (size_t i = 0; i < n; i++) {
        _cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, pids[i], 0);
        size_t m = pidfd < 0 ? 0 : cgroup_members(path, again, PIDS_MAX);
        for (size_t k = 0; k < m; k++)
            if (again[k] == pids[i]) {
                proc_signal(pidfd, SIGKILL);
                (*left)++;
                break;
            }
    }
}

int confine_kill(const struct confine *c, const char *folder, const char *vm_id, int timeout_ms) {
    int64_t end = time_monotonic_ms() + timeout_ms;
    for (;;) {
        int left = 0;
        each_group(c, folder, vm_id, kill_members, &left);
        if (left == 0)
            return 0;
        if (time_monotonic_ms() >= end)
            return -EBUSY;
        usleep(2000);
    }
}

static void measure(const char *path, void *data) {
    struct confine_figures *figures = data;
    uint64_t kills, peak;
    cgroup_memory_events(path, &kills, &peak);
    figures->oom_kills += kills;
    figures->memory_peak_bytes += peak;
}

void confine_measure(const struct confine *c, const char *folder, const char *vm_id, struct confine_figures *ret) {
    struct confine_figures figures = {0};
    each_group(c, folder, vm_id, measure, &figures);
    *ret = figures;
}

static void remove_group(const char *path, void *data) {
    int r = cgroup_remove(path);
    /* A member that was killed is counted until it has been reaped; it is never waited for long. */
    for (int i = 0; r == -EBUSY && i < 50; i++) {
        usleep(2000);
        r = cgroup_remove(path);
    }
    if (r < 0)
        *(int *)data = r;
}

int confine_remove(const struct confine *c, const char *folder, const char *vm_id) {
    char file[CGROUP_PATH_MAX + 128];
    int r = 0;
    each_group(c, folder, vm_id, remove_group, &r);
    snprintf(file, sizeof file, "%s/" GROUPS_FILE, folder);
    if (r == 0)
        unlink(file); /* a VM that is brought back gets others */
    return r;
}

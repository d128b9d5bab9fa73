#include "base/cgroup.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"

#define LEAF "controller" /* where the caller's own processes go in version 2 */
#define CPU_PERIOD_US 100000

/* A mount of /proc/self/mountinfo. Source: proc(5): the fields before " - " are fixed up to the mount options. */
struct mount_line {
    char *root, *point, *type, *options;
};

static bool split_mount(char *line, struct mount_line *ret) {
    char *dash = strstr(line, " - "), *save = NULL, *field[5];
    if (!dash)
        return false;
    *dash = '\0';
    field[0] = strtok_r(line, " ", &save);
    for (int i = 1; i < 5; i++)
        field[i] = field[i - 1] ? strtok_r(NULL, " ", &save) : NULL;
    ret->root = field[3];
    ret->point = field[4];
    ret->type = strtok_r(dash + 3, " ", &save);
    char *source = ret->type ? strtok_r(NULL, " ", &save) : NULL;
    ret->options = source ? strtok_r(NULL, " \n", &save) : NULL;
    return field[4] && ret->options;
}

static bool has_word(const char *words, const char *word, char separator) {
    size_t len = strlen(word);
    for (const char *p = words; (p = strstr(p, word)); p += len)
        if ((p == words || p[-1] == separator) && (p[len] == separator || p[len] == '\0' || p[len] == '\n'))
            return true;
    return false;
}

/* The mount of version 2 (controller NULL) or of a controller of version 1, with the root that it shows. */
static bool find_mount(const char *controller, char ret_point[CGROUP_PATH_MAX], char ret_root[CGROUP_PATH_MAX]) {
    _cleanup_free_ char *text = NULL;
    char *save = NULL;
    struct mount_line m;
    if (file_read("/proc/self/mountinfo", 4U << 20, &text, NULL) < 0)
        return false;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        if (!split_mount(line, &m) || strcmp(m.type, controller ? "cgroup" : "cgroup2") != 0 ||
            (controller && !has_word(m.options, controller, ',')))
            continue;
        return str_copy(ret_point, CGROUP_PATH_MAX, m.point) && str_copy(ret_root, CGROUP_PATH_MAX, m.root);
    }
    return false;
}

/* The caller's own group in a hierarchy, by /proc/self/cgroup: "N:cpu,cpuacct:/path", "0::/path" for version 2. */
static bool own_group(const char *controller, char ret_path[CGROUP_PATH_MAX]) {
    _cleanup_free_ char *text = NULL;
    char *save = NULL;
    if (file_read("/proc/self/cgroup", 65536, &text, NULL) < 0)
        return false;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *names = strchr(line, ':'), *path = names ? strchr(names + 1, ':') : NULL;
        if (!path)
            continue;
        *path++ = '\0';
        if (controller ? has_word(names + 1, controller, ',') : names[1] == '\0')
            return str_copy(ret_path, CGROUP_PATH_MAX, path);
    }
    return false;
}

/* The folder of the group in which ours are made. Return: whether there is one. */
static bool base_folder(const char *controller, const char *parent, char ret_path[CGROUP_PATH_MAX]) {
    char point[CGROUP_PATH_MAX], root[CGROUP_PATH_MAX], group[CGROUP_PATH_MAX];
    if (!find_mount(controller, point, root))
        return false;
    if (*parent ? !str_copy(group, sizeof group, parent) : !own_group(controller, group))
        return false;
    /* A mount may show only a part of the hierarchy. */
    const char *below = group;
    if (strcmp(root, "/") != 0 && str_starts(group, root))
        below = group + strlen(root);
    if (strcmp(below, "/") == 0)
        below = "";
    return snprintf(ret_path, CGROUP_PATH_MAX, "%s%s", point, below) < CGROUP_PATH_MAX && access(ret_path, F_OK) == 0;
}

static int write_file(const char *folder, const char *name, const char *value) {
    char path[CGROUP_PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return file_write_value(path, value);
}

static int join_path(char ret_path[CGROUP_PATH_MAX], const char *folder, const char *name) {
    char path[CGROUP_PATH_MAX];
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        return -ENAMETOOLONG;
    memcpy(ret_path, path, sizeof path);
    return 0;
}

static int make_folder(const char *path) {
    return mkdir(path, 0755) < 0 && errno != EEXIST ? -errno : 0;
}

/* Moves who is in the group itself into its leaf. */
static int empty_group(const char *base) {
    char leaf[CGROUP_PATH_MAX], pid[16];
    pid_t pids[256];
    int r = join_path(leaf, base, LEAF);
    if (r == 0)
        r = make_folder(leaf);
    size_t n = r == 0 ? cgroup_members(base, pids, 256) : 0;
    for (size_t i = 0; r == 0 && i < n; i++) {
        snprintf(pid, sizeof pid, "%d", pids[i]);
        r = write_file(leaf, "cgroup.procs", pid);
        if (r == -ESRCH)
            r = 0;
    }
    return r;
}

/* Version 2: a child has a controller only where its parent gives it on. */
static void give_on(const char *folder) {
    write_file(folder, "cgroup.subtree_control", "+cpu");
    write_file(folder, "cgroup.subtree_control", "+memory");
    write_file(folder, "cgroup.subtree_control", "+pids");
}

static bool is_given(const char *folder, const char *file, const char *controller) {
    char path[CGROUP_PATH_MAX + 64];
    _cleanup_free_ char *text = NULL;
    snprintf(path, sizeof path, "%s/%s", folder, file);
    return file_read(path, 4096, &text, NULL) == 0 && has_word(text, controller, ' ');
}

static bool find_v2(const char *parent, const char *name, struct cgroup_hierarchy *ret) {
    struct cgroup_hierarchy h = {.is_v2 = true};
    char base[CGROUP_PATH_MAX];
    if (!base_folder(NULL, parent, base))
        return false;
    /* One that was started again, or that its service manager has put there, is in the leaf already. */
    size_t len = strlen(base), leaf = strlen("/" LEAF);
    if (len > leaf && strcmp(base + len - leaf, "/" LEAF) == 0)
        base[len - leaf] = '\0';
    if (!is_given(base, "cgroup.controllers", "memory") && !is_given(base, "cgroup.controllers", "pids"))
        return false;
    char type[CGROUP_PATH_MAX + 16];
    snprintf(type, sizeof type, "%s/cgroup.type", base);
    if (access(type, F_OK) == 0 && empty_group(base) < 0) /* the root of all may keep its processes */
        return false;
    give_on(base);
    if (join_path(h.path, base, name) < 0 || make_folder(h.path) < 0)
        return false;
    give_on(h.path);
    h.cpu = is_given(h.path, "cgroup.subtree_control", "cpu");
    h.memory = is_given(h.path, "cgroup.subtree_control", "memory");
    h.pids = is_given(h.path, "cgroup.subtree_control", "pids");
    *ret = h;
    return h.cpu || h.memory || h.pids;
}

static void find_v1(const char *parent, const char *name, struct cgroup *cgroup) {
    static const char *const controllers[] = {"cpu", "memory", "pids"};
    for (int i = 0; i < 3 && cgroup->count < CGROUP_HIERARCHIES; i++) {
        char base[CGROUP_PATH_MAX];
        bool taken = false;
        for (int k = 0; k < cgroup->count; k++)
            taken |= i == 0   ? cgroup->hierarchy[k].cpu
                     : i == 1 ? cgroup->hierarchy[k].memory
                              : cgroup->hierarchy[k].pids;
        struct cgroup_hierarchy h = {.cpu = i == 0, .memory = i == 1, .pids = i == 2};
        if (taken || !base_folder(controllers[i], parent, base) || join_path(h.path, base, name) < 0 ||
            make_folder(h.path) < 0)
            continue;
        cgroup->hierarchy[cgroup->count++] = h;
    }
}

void cgroup_find(const char *parent, const char *name, struct cgroup *ret_cgroup, char *ret_words, size_t words_size) {
    struct cgroup cgroup = {0};
    bool cpu = false, memory = false, pids = false;
    if (find_v2(parent, name, &cgroup.hierarchy[0]))
        cgroup.count = 1;
    find_v1(parent, name, &cgroup);
    for (int i = 0; i < cgroup.count; i++) {
        cpu |= cgroup.hierarchy[i].cpu;
        memory |= cgroup.hierarchy[i].memory;
        pids |= cgroup.hierarchy[i].pids;
    }
    *ret_cgroup = cgroup;
    if (cgroup.count == 0)
        snprintf(ret_words, words_size, "nothing: no control group of this process takes children");
    else
        snprintf(ret_words, words_size, "%s%s%s(cgroup v%d, %s)", cpu ? "cpu " : "", memory ? "memory " : "",
                 pids ? "pids " : "", cgroup.hierarchy[0].is_v2 ? 2 : 1, cgroup.hierarchy[0].path);
}

void cgroup_paths(const struct cgroup *cgroup, const char *name, char *ret_text, size_t size) {
    size_t len = 0;
    ret_text[0] = '\0';
    for (int i = 0; i < cgroup->count && len < size; i++)
        len += (size_t)snprintf(ret_text + len, size - len, "%s/%s\n", cgroup->hierarchy[i].path, name);
}

static int limit_v2(const struct cgroup_hierarchy *h, const char *path, const struct cgroup_limits *limits) {
    char value[64];
    int r = 0;
    if (h->cpu) {
        snprintf(value, sizeof value, "%u %d", limits->cpu_percent * (CPU_PERIOD_US / 100), CPU_PERIOD_US);
        r = write_file(path, "cpu.max", value);
    }
    if (r == 0 && h->memory) {
        snprintf(value, sizeof value, "%llu", (unsigned long long)limits->memory_bytes);
        r = write_file(path, "memory.max", value);
        write_file(path, "memory.oom.group", "1"); /* a half of a VM is none; older kernels do not know it */
    }
    if (r == 0 && h->pids) {
        snprintf(value, sizeof value, "%u", limits->pids);
        r = write_file(path, "pids.max", value);
    }
    return r;
}

static int limit_v1(const struct cgroup_hierarchy *h, const char *path, const struct cgroup_limits *limits) {
    char value[64];
    if (h->cpu) {
        snprintf(value, sizeof value, "%u", limits->cpu_percent * (CPU_PERIOD_US / 100));
        int r = write_file(path, "cpu.cfs_quota_us", value); /* the period's default is 100 ms */
        return r == -ENOENT ? 0 : r;                         /* a kernel without CFS bandwidth control */
    }
    if (h->memory) {
        snprintf(value, sizeof value, "%llu", (unsigned long long)limits->memory_bytes);
        return write_file(path, "memory.limit_in_bytes", value);
    }
    snprintf(value, sizeof value, "%u", limits->pids);
    return write_file(path, "pids.max", value);
}

static int make_one(const struct cgroup_hierarchy *h, const char *name, const struct cgroup_limits *limits,
                    int *ret_fd) {
    char path[CGROUP_PATH_MAX], procs[CGROUP_PATH_MAX + 16];
    int r = join_path(path, h->path, name);
    if (r == 0)
        r = make_folder(path);
    if (r == 0)
        r = h->is_v2 ? limit_v2(h, path, limits) : limit_v1(h, path, limits);
    if (r < 0)
        return r;
    /* Who enters has one thread. By "tasks" the kernel moves just that one; by "cgroup.procs" it would first wait for all
     * CPUs, milliseconds for each hierarchy. Source: kernel/cgroup/cgroup.c, cgroup_procs_write_start(). */
    snprintf(procs, sizeof procs, "%s/%s", path, h->is_v2 ? "cgroup.procs" : "tasks");
    *ret_fd = open(procs, O_WRONLY | O_CLOEXEC);
    return *ret_fd < 0 ? -errno : 0;
}

int cgroup_make(const struct cgroup *cgroup, const char *name, const struct cgroup_limits *limits,
                int ret_fds[CGROUP_HIERARCHIES], struct err *err) {
    int fds[CGROUP_HIERARCHIES] = {-1, -1, -1}, r = 0;
    char path[CGROUP_PATH_MAX];
    for (int i = 0; r == 0 && i < cgroup->count; i++) {
        r = make_one(&cgroup->hierarchy[i], name, limits, &fds[i]);
        if (r < 0)
            err_sys(err, -r, "process.cgroup", "limit it in %s/%s", cgroup->hierarchy[i].path, name);
    }
    for (int i = 0; r < 0 && i < cgroup->count; i++) {
        fd_close(&fds[i]);
        if (join_path(path, cgroup->hierarchy[i].path, name) == 0)
            cgroup_remove(path);
    }
    if (r < 0)
        return r;
    memcpy(ret_fds, fds, sizeof fds);
    return cgroup->count;
}

size_t cgroup_members(const char *path, pid_t *ret_pids, size_t max) {
    char procs[CGROUP_PATH_MAX + 16];
    _cleanup_free_ char *text = NULL;
    char *save = NULL;
    size_t n = 0;
    snprintf(procs, sizeof procs, "%s/cgroup.procs", path);
    if (file_read(procs, 1U << 20, &text, NULL) < 0)
        return 0;
    for (char *line = strtok_r(text, "\n", &save); line && n < max; line = strtok_r(NULL, "\n", &save)) {
        uint64_t pid;
        if (str_to_u64(line, 1, INT32_MAX, &pid) == 0)
            ret_pids[n++] = (pid_t)pid;
    }
    return n;
}

/* "name number" in a file of such lines, or a number alone where name is NULL. */
static uint64_t read_number(const char *folder, const char *file, const char *name) {
    char path[CGROUP_PATH_MAX + 64];
    _cleanup_free_ char *text = NULL;
    snprintf(path, sizeof path, "%s/%s", folder, file);
    if (file_read(path, 65536, &text, NULL) < 0)
        return 0;
    const char *at = text;
    while (name && at && !(str_starts(at, name) && at[strlen(name)] == ' '))
        at = strchr(at, '\n') ? strchr(at, '\n') + 1 : NULL;
    return at ? strtoull(at + (name ? strlen(name) : 0), NULL, 10) : 0;
}

void cgroup_memory_events(const char *path, uint64_t *ret_oom_kills, uint64_t *ret_peak_bytes) {
    *ret_oom_kills =
        read_number(path, "memory.events", "oom_kill") + read_number(path, "memory.oom_control", "oom_kill");
    *ret_peak_bytes = read_number(path, "memory.peak", NULL) + read_number(path, "memory.max_usage_in_bytes", NULL);
}

int cgroup_remove(const char *path) {
    return rmdir(path) < 0 && errno != ENOENT ? -errno : 0;
}

/* Firecracker as the VMM. Theory of operation:
 *
 * Firecracker opens everything itself, by path and as the VM's own uid: kernel, disks, log, the TAP by its name. So it
 * gets a folder of its own, FOLDER/root, in which all of that lies and which is its working directory; with the jailer it
 * is its root too. Paths are relative, and so the same for both. The folders above it belong to root alone. What is the
 * image's comes in as hard links of files that only root may write.
 *
 * What is evidence lies in FOLDER as well, as the same file: the VMM can write to its log, not take it away. The console
 * is Firecracker's standard output, a file; a pipe would lose what nobody reads.
 *
 * start() only begins the process. attend() says over its API what the machine is (vm-config.json, fc_config.h) and then
 * InstanceStart, without waiting for any answer. A daemon that dies in between leaves a Firecracker that waits; the next
 * one asks it what it knows (GET /, GET /vm/config) and tells it the rest.
 * Source: Firecracker, docs/jailer.md, docs/getting-started.md, firecracker.yaml. */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/proc.h"
#include "base/str.h"
#include "vmm/fc_config.h"
#include "vmm/fc_metrics.h"
#include "vmm/fc_save.h"
#include "vmm/shape.h"

#define PATH_MAX_HERE 768
#define ARG_MAX_COUNT 40
#define ARG_TEXT_MAX 600
#define API_TIMEOUT_MS 30000 /* milliseconds are normal; a host that is out of memory or disk takes longer */
#define ASK_TIMEOUT_MS 5000
#define OPEN_FILES_MAX "1024"
#define OVERHEAD_MIB 128 /* its own memory is some 5 MiB; page tables and buffers come on top */

/* ---- its folder ---- */

static int fail(struct err *err, const char *verb, const char *path) {
    return err_sys(err, errno, "vmm.start", "%s %s", verb, path);
}

static const char *file_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Where the jailer wants FOLDER/root: FOLDER/<name of its program>/<id>/root. */
static int jailed_path(const struct vmm_spec *spec, char ret_path[PATH_MAX_HERE], struct err *err) {
    char resolved[PATH_MAX];
    if (!realpath(spec->choice->binary, resolved))
        return fail(err, "find", spec->choice->binary);
    snprintf(ret_path, PATH_MAX_HERE, "%s/%.255s/%s/root", spec->folder, file_name(resolved), spec->vm->id);
    return 0;
}

static int make_link(const char *folder, const char *path, const char *inner, struct err *err) {
    return symlink(inner + strlen(folder) + 1, path) < 0 ? fail(err, "make", path) : 0;
}

/* FOLDER/root: a folder of the VM's uid. */
static int make_root(const struct vmm_spec *spec, struct err *err) {
    char path[PATH_MAX_HERE], inner[PATH_MAX_HERE];
    snprintf(path, sizeof path, "%s/" FC_ROOT, spec->folder);
    if (*spec->choice->jailer) {
        int r = jailed_path(spec, inner, err);
        if (r < 0)
            return r;
        r = dir_make(inner, 0700);
        if (r < 0)
            return err_sys(err, -r, "vmm.start", "make %s", inner);
        r = make_link(spec->folder, path, inner, err);
        if (r < 0)
            return r;
    } else if (mkdir(path, 0700) < 0) {
        return fail(err, "make", path);
    }
    return chown(path, spec->vm->uid, spec->vm->uid) < 0 ? fail(err, "give away", path) : 0;
}

static bool is_disk(const char *name) {
    return strcmp(name, FC_BASE) == 0 || strcmp(name, FC_OVERLAY) == 0 || strcmp(name, FC_DISK) == 0;
}

/* Where the jailer wants it now: its program may have got another name, or there was no jailer then. Each step may be the last
 * of a daemon that dies: the next one goes on. */
static int move_root(const struct vmm_spec *spec, const char *path, struct err *err) {
    char inner[PATH_MAX_HERE], parent[PATH_MAX_HERE], old[PATH_MAX];
    int r = jailed_path(spec, inner, err);
    if (r < 0)
        return r;
    if (access(inner, F_OK) < 0) {
        snprintf(parent, sizeof parent, "%.*s", (int)(strrchr(inner, '/') - inner), inner);
        r = dir_make(parent, 0700);
        if (r < 0)
            return err_sys(err, -r, "vmm.start", "make %s", parent);
        if (!realpath(path, old) || rename(old, inner) < 0)
            return fail(err, "move", path);
    }
    if (access(path, F_OK) == 0)
        return 0;
    if (unlink(path) < 0 && errno != ENOENT)
        return fail(err, "remove", path);
    return make_link(spec->folder, path, inner, err);
}

/* FOLDER/root as an earlier start has left it: the disks stay where they are, and nothing else. */
static int clear_root(const struct vmm_spec *spec, struct err *err) {
    char path[PATH_MAX_HERE], inner[PATH_MAX_HERE + 256];
    snprintf(path, sizeof path, "%s/" FC_ROOT, spec->folder);
    int r = *spec->choice->jailer ? move_root(spec, path, err) : 0;
    if (r < 0)
        return r;
    DIR *dir = opendir(path);
    if (!dir)
        return fail(err, "open", path);
    for (struct dirent *e; r == 0 && (e = readdir(dir));) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 || is_disk(e->d_name))
            continue;
        snprintf(inner, sizeof inner, "%s/%s", path, e->d_name);
        r = dir_remove(inner);
        if (r < 0)
            err_sys(err, -r, "vmm.start", "remove %s", inner);
    }
    closedir(dir);
    return r;
}

/* A Firecracker writes its log and metrics from their beginning. The log of the one before says why it ended. */
static int put_old_aside(const char *folder, struct err *err) {
    char path[PATH_MAX_HERE], old[PATH_MAX_HERE];
    snprintf(path, sizeof path, "%s/" FC_LOG, folder);
    snprintf(old, sizeof old, "%s/" FC_LOG ".1", folder);
    if (rename(path, old) < 0 && errno != ENOENT)
        return fail(err, "rename", path);
    snprintf(path, sizeof path, "%s/" FC_METRICS, folder);
    return unlink(path) < 0 && errno != ENOENT ? fail(err, "remove", path) : 0;
}

static int link_in(const char *from, const char *folder, const char *name, struct err *err) {
    char to[PATH_MAX_HERE];
    snprintf(to, sizeof to, "%s/" FC_ROOT "/%s", folder, name);
    if (link(from, to) == 0)
        return 0;
    int errnum = errno;
    err_sys(err, errnum, "vmm.start", "link %s to %s", from, to);
    return errnum == EXDEV ? err_hint(err, "Firecracker needs the image on the file system of the state folder: see "
                                           "[image] directory")
                           : -errnum;
}

/* A file of the VM's uid that the VM's folder has too. */
static int make_shared(const struct vmm_spec *spec, const char *name, int *ret_fd, struct err *err) {
    char path[PATH_MAX_HERE];
    snprintf(path, sizeof path, "%s/%s", spec->folder, name);
    _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0 || fchown(fd, spec->vm->uid, spec->vm->uid) < 0)
        return fail(err, "make", path);
    int r = link_in(path, spec->folder, name, err);
    if (r == 0 && ret_fd)
        *ret_fd = fd_steal(&fd);
    return r;
}

/* image_clone_raw() has put the disks into FOLDER. Those that are the VM's own are written by its uid. */
static int take_disks(const struct vmm_spec *spec, bool *ret_shared_base, struct err *err) {
    static const char *const names[] = {FC_BASE, FC_OVERLAY, FC_DISK};
    bool found[3];
    for (int i = 0; i < 3; i++) {
        char from[PATH_MAX_HERE], to[PATH_MAX_HERE];
        snprintf(from, sizeof from, "%s/%s", spec->folder, names[i]);
        snprintf(to, sizeof to, "%s/" FC_ROOT "/%s", spec->folder, names[i]);
        found[i] = access(from, F_OK) == 0;
        if (!found[i])
            continue;
        if (i > 0 && chown(from, spec->vm->uid, spec->vm->uid) < 0)
            return fail(err, "give away", from);
        if (rename(from, to) < 0)
            return fail(err, "move", from);
    }
    if (found[2] == (found[0] && found[1]))
        return err_set(err, ENOENT, "vmm.start", "the VM has no disk that Firecracker takes in %s", spec->folder);
    *ret_shared_base = !found[2];
    return 0;
}

/* Only an ELF kernel boots, and what Firecracker says of another one comes late. */
static int check_kernel(const char *path, struct err *err) {
    char magic[4] = {0};
    _cleanup_close_ int fd = *path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd >= 0 && read(fd, magic, 4) == 4 && memcmp(magic, "\177ELF", 4) == 0)
        return 0;
    if (!*path)
        err_set(err, ENOENT, "vmm.no-vmlinux", "the image has no uncompressed kernel, and Firecracker boots no other");
    else
        err_set(err, ENOEXEC, "vmm.no-vmlinux", "%s is not an ELF kernel, and Firecracker boots no other", path);
    return err_hint(err, "build the image again (guest/build-image, or ./run), or set [vm] vmm = qemu");
}

static int write_config(const struct vmm_spec *spec, bool shared_base, struct err *err) {
    char path[PATH_MAX_HERE];
    snprintf(path, sizeof path, "%s/vm-config.json", spec->folder);
    json_t *config = fc_config_make(spec, shared_base);
    char *text = config ? json_dumps(config, JSON_INDENT(2)) : NULL;
    int r = !text                ? -ENOMEM
            : spec->is_furnished ? file_write_atomic(path, text, strlen(text), 0600)
                                 : file_write_new(path, text, strlen(text), 0600);
    free(text);
    json_decref(config);
    return r < 0 ? err_sys(err, -r, "vmm.start", "write %s", path) : 0;
}

/* A machine that is loaded stays what it was booted as, or loaded from. */
static int furnish_again(const struct vmm_spec *spec, struct err *err) {
    char path[PATH_MAX_HERE];
    int r = clear_root(spec, err);
    if (r == 0)
        r = put_old_aside(spec->folder, err);
    if (r < 0 || spec->is_to_load)
        return r;
    snprintf(path, sizeof path, "%s/" FC_CLONE_MARK, spec->folder);
    if (unlink(path) < 0 && errno != ENOENT)
        return fail(err, "remove", path);
    snprintf(path, sizeof path, "%s/" FC_ROOT "/" FC_BASE, spec->folder);
    return write_config(spec, access(path, F_OK) == 0, err);
}

static int mark_clone(const struct vmm_spec *spec, struct err *err) {
    char path[PATH_MAX_HERE];
    snprintf(path, sizeof path, "%s/" FC_CLONE_MARK, spec->folder);
    int r = file_write_new(path, "", 0, 0600);
    return r < 0 ? err_sys(err, -r, "vmm.start", "make %s", path) : 0;
}

static int furnish_new(const struct vmm_spec *spec, struct err *err) {
    bool shared_base = false;
    int r = make_root(spec, err);
    if (r == 0)
        r = take_disks(spec, &shared_base, err);
    if (r == 0 && spec->is_to_load)
        r = mark_clone(spec, err);
    return r < 0 ? r : write_config(spec, shared_base, err);
}

static int furnish(const struct vmm_spec *spec, int *ret_log_fd, struct err *err) {
    int r = check_kernel(spec->vmlinux, err);
    if (r == 0)
        r = spec->is_furnished ? furnish_again(spec, err) : furnish_new(spec, err);
    if (r == 0)
        r = link_in(spec->vmlinux, spec->folder, FC_KERNEL, err);
    if (r == 0)
        r = link_in(spec->initrd, spec->folder, FC_INITRD, err);
    if (r == 0)
        r = make_shared(spec, FC_METRICS, NULL, err);
    return r < 0 ? r : make_shared(spec, FC_LOG, ret_log_fd, err);
}

/* ---- its command line ---- */

struct args {
    char text[ARG_MAX_COUNT][ARG_TEXT_MAX];
    const char *item[ARG_MAX_COUNT + 1];
    size_t n;
    bool failed;
};

static void arg(struct args *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void arg(struct args *a, const char *fmt, ...) {
    if (a->n == ARG_MAX_COUNT) {
        a->failed = true;
        return;
    }
    va_list ap;
    va_start(ap, fmt);
    a->failed |= vsnprintf(a->text[a->n], ARG_TEXT_MAX, fmt, ap) >= ARG_TEXT_MAX;
    va_end(ap);
    a->item[a->n] = a->text[a->n];
    a->n++;
}

/* No --cgroup: it inherits the groups that it was started in. */
static void arg_jailer(struct args *a, const struct vmm_choice *choice, const struct vmm_spec *spec) {
    arg(a, "%s", choice->jailer);
    arg(a, "--id");
    arg(a, "%s", spec->vm->id);
    arg(a, "--exec-file");
    arg(a, "%s", choice->binary);
    arg(a, "--uid");
    arg(a, "%u", spec->vm->uid);
    arg(a, "--gid");
    arg(a, "%u", spec->vm->uid);
    arg(a, "--chroot-base-dir");
    arg(a, "%s", spec->folder);
    if (*spec->netns_path) {
        arg(a, "--netns");
        arg(a, "%s", spec->netns_path);
    }
    arg(a, "--resource-limit");
    arg(a, "no-file=" OPEN_FILES_MAX);
    arg(a, "--");
}

/* Until PUT /logger it logs to its standard output, which is the guest's console: only errors, then. */
static void arg_firecracker(struct args *a, const struct vmm_choice *choice, const struct vmm_spec *spec) {
    if (!*choice->jailer) {
        arg(a, "%s", choice->binary);
        arg(a, "--id");
        arg(a, "%s", spec->vm->id);
    }
    arg(a, "--api-sock");
    arg(a, FC_SOCKET);
    arg(a, "--level");
    arg(a, "Error");
}

static uint32_t kvm_group(void) {
    struct stat st;
    return stat("/dev/kvm", &st) == 0 ? st.st_gid : 0;
}

static int spawn(const struct vmm_choice *choice, const struct vmm_spec *spec, int log_fd, pid_t *ret_pid,
                 int *ret_pidfd, struct err *err) {
    static const struct proc_limit limits[] = {{RLIMIT_CORE, 0}};
    char console[PATH_MAX_HERE], root[PATH_MAX_HERE];
    snprintf(console, sizeof console, "%s/console.log", spec->folder);
    snprintf(root, sizeof root, "%s/" FC_ROOT, spec->folder);
    _cleanup_close_ int console_fd = open(console, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    _cleanup_close_ int root_fd = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (console_fd < 0 || root_fd < 0)
        return fail(err, "open", console_fd < 0 ? console : root);
    bool jailed = *choice->jailer;
    struct args *args = calloc(1, sizeof *args);
    if (!args)
        return err_sys(err, ENOMEM, "vmm.start", "start Firecracker");
    if (jailed)
        arg_jailer(args, choice, spec);
    arg_firecracker(args, choice, spec);
    /* The jailer needs root to build the jail, and drops it itself. */
    struct proc_spec proc = {.argv = args->item,
                             .uid = jailed ? 0 : spec->vm->uid,
                             .gid = jailed ? 0 : spec->vm->uid,
                             .extra_gid = jailed ? 0 : kvm_group(),
                             .output_fd = console_fd,
                             .error_fd = log_fd,
                             .cwd_fd = root_fd,
                             .netns_fd = jailed ? 0 : spec->netns_fd,
                             .no_new_privs = true,
                             .ends_with_us = spec->ends_with_us,
                             .limits = limits,
                             .limit_count = sizeof limits / sizeof *limits,
                             .group_fds = spec->confinement.group_fds,
                             .group_count = spec->confinement.group_count,
                             .jail_fd = jailed ? 0 : spec->confinement.jail_fd};
    int r = args->failed ? err_set(err, E2BIG, "vmm.start", "Firecracker's command line is too long")
                         : proc_start(&proc, ret_pid, ret_pidfd, err);
    free(args);
    return r;
}

static int firecracker_start(const struct config_vm *config, const struct vmm_spec *spec, pid_t *ret_pid,
                             int *ret_pidfd, struct err *err) {
    _cleanup_close_ int log_fd = -1;
    int r = furnish(spec, &log_fd, err);
    return r < 0 ? r : spawn(spec->choice, spec, log_fd, ret_pid, ret_pidfd, err);
}

static uint32_t firecracker_overhead_mib(const struct vmm_choice *choice) {
    return OVERHEAD_MIB;
}

/* ---- speaking to it ---- */

static int talk(struct loop *loop, const char *folder, const struct vm *vm, struct fc_request *requests, size_t n,
                bool wait, vmm_done_fn *done, void *userdata, struct vmm_talk **ret_talk, struct err *err) {
    char root[PATH_MAX_HERE];
    snprintf(root, sizeof root, "%s/" FC_ROOT, folder);
    return fc_talk_start(loop, root, vm->uid, vm->pid, requests, n, wait, wait ? API_TIMEOUT_MS : ASK_TIMEOUT_MS, done,
                         userdata, ret_talk, err);
}

static int check_version(json_t *answer, struct fc_request *rest, size_t n_rest, struct err *err) {
    const char *version = json_string_value(json_object_get(answer, "firecracker_version"));
    char shown[48];
    str_escape(version ? version : "nothing", version ? strnlen(version, 40) : 7, shown, sizeof shown);
    if (version && fc_version_is_at_least(version, 1, 10))
        return 0;
    err_set(err, ENOTSUP, "vmm.version", "this Firecracker says that its version is %s", shown);
    return err_hint(err, "1.10 or newer is needed: install one, or set [vm] vmm = qemu");
}

/* A machine that runs is not told anything. */
static int check_state(json_t *answer, struct fc_request *rest, size_t n_rest, struct err *err) {
    const char *state = json_string_value(json_object_get(answer, "state"));
    if (!state)
        return err_set(err, EPROTO, "vmm.lost", "Firecracker did not say its state at GET /");
    for (size_t i = 0; i < n_rest && strcmp(state, "Not started") != 0; i++)
        rest[i].skip = true;
    return 0;
}

/* What a daemon that died has already said. Most of it may be said twice; a TAP cannot be opened twice, and the metrics
 * (which cannot be set twice either) are not among what Firecracker tells of itself. */
static int check_told(json_t *answer, struct fc_request *rest, size_t n_rest, struct err *err) {
    json_t *nics = json_object_get(answer, "network-interfaces"), *nic;
    size_t index;
    for (size_t i = 0; i < n_rest; i++) {
        const char *part = rest[i].path + 1;
        rest[i].may_refuse = strcmp(part, "metrics") == 0;
        if (strcmp(part, "vsock") == 0 || strcmp(part, "entropy") == 0)
            rest[i].skip = json_is_object(json_object_get(answer, part));
        json_array_foreach(nics, index, nic) {
            const char *id = json_string_value(json_object_get(nic, "iface_id"));
            if (id && str_starts(part, "network-interfaces/") && strcmp(part + strlen("network-interfaces/"), id) == 0)
                rest[i].skip = true;
        }
    }
    return 0;
}

/* A log that is opened again is written from its beginning. */
static bool has_log(const char *folder) {
    char path[PATH_MAX_HERE];
    struct stat st;
    snprintf(path, sizeof path, "%s/" FC_LOG, folder);
    return stat(path, &st) == 0 && st.st_size > 0;
}

static int firecracker_attend(struct loop *loop, const char *folder, const struct vm *vm, bool fresh, vmm_done_fn *done,
                              void *userdata, struct vmm_talk **ret_talk, struct err *err) {
    struct fc_request requests[3 + FC_PARTS_MAX] = {
        {.method = "GET", .path = "/version", .check = check_version},
        {.method = "GET", .path = "/", .check = check_state},
        {.method = "GET", .path = "/vm/config", .check = check_told},
    };
    size_t n = 0, asked = fresh ? 1 : 3;
    int r = fc_config_read(folder, requests + asked, &n, err);
    for (size_t i = asked; r == 0 && i < asked + n; i++)
        requests[i].skip = strcmp(requests[i].path, "/logger") == 0 && has_log(folder);
    return r < 0 ? r : talk(loop, folder, vm, requests, asked + n, true, done, userdata, ret_talk, err);
}

static int ask_one(struct loop *loop, const char *folder, const struct vm *vm, const char *method, const char *path,
                   json_t *body, vmm_done_fn *done, void *userdata, struct vmm_talk **ret_talk, struct err *err) {
    struct fc_request rq = {.method = method, .body = body};
    str_copy(rq.path, sizeof rq.path, path);
    return talk(loop, folder, vm, &rq, 1, false, done, userdata, ret_talk, err);
}

/* Ctrl+Alt+Del at its keyboard: the only way in which Firecracker can ask a guest, and only on x86. */
static void firecracker_ask_shutdown(struct loop *loop, const char *folder, const struct vm *vm,
                                     struct vmm_watch *watch) {
    ask_one(loop, folder, vm, "PUT", "/actions", json_pack("{s:s}", "action_type", "SendCtrlAltDel"), NULL, NULL, NULL,
            NULL);
}

static int firecracker_set_paused(struct loop *loop, const char *folder, const struct vm *vm, bool paused,
                                  vmm_done_fn *done, void *userdata, struct vmm_talk **ret_talk, struct err *err) {
    return ask_one(loop, folder, vm, "PATCH", "/vm", json_pack("{s:s}", "state", paused ? "Paused" : "Resumed"), done,
                   userdata, ret_talk, err);
}

static int firecracker_flush(struct loop *loop, const char *folder, const struct vm *vm, vmm_done_fn *done,
                             void *userdata, struct vmm_talk **ret_talk, struct err *err) {
    return ask_one(loop, folder, vm, "PUT", "/actions", json_pack("{s:s}", "action_type", "FlushMetrics"), done,
                   userdata, ret_talk, err);
}

static void firecracker_tell_counters(const char *folder, char ret_words[VMM_WORDS_MAX]) {
    char path[PATH_MAX_HERE];
    _cleanup_free_ char *text = NULL;
    size_t len;
    snprintf(path, sizeof path, "%s/" FC_METRICS, folder);
    *ret_words = '\0';
    int r = file_read_tail(path, FC_METRICS_TAIL, &text, &len);
    snprintf(path, sizeof path, "%s/" FC_CLONE_MARK, folder);
    if (r == 0)
        fc_metrics_tell(text, len, access(path, F_OK) == 0, ret_words);
}

/* All that it is told, with the same for what is each machine's own: paths are relative to its own folder anyway. Which disks it
 * has is a matter of the file system, and a template brings its own. */
static int firecracker_shape(const struct config_vm *config, const struct vmm_spec *spec,
                             char ret_digest[VMM_SHAPE_TEXT], struct err *err) {
    struct vm vm = {.memory_mib = spec->vm->memory_mib, .vcpus = spec->vm->vcpus};
    struct vmm_spec same = *spec;
    struct shape shape;
    same.vm = &vm;
    same.folder = "";
    json_t *told = fc_config_make(&same, false);
    char *text = told ? json_dumps(told, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    json_decref(told);
    if (!text)
        return err_sys(err, ENOMEM, "vmm.start", "describe the machine");
    shape_begin(&shape);
    shape_add(&shape, text);
    shape_add_host(&shape);
    shape_finish(&shape, ret_digest);
    free(text);
    return 0;
}

const struct vmm_ops vmm_firecracker = {
    .name = "firecracker",
    .opens_tap = true,
    .raw_disk = true,
    .maps_saved = true,
    .agent_socket = FC_ROOT "/" FC_VSOCK,
    .agent_vsock_port = 6100, /* AGENT_VSOCK_PORT in agent/frame.h, a room that this one cannot see */
    .overhead_mib = firecracker_overhead_mib,
    .is_jailed = true, /* where the jailer does not do it */
    .start = firecracker_start,
    .attend = firecracker_attend,
    .ask_shutdown = firecracker_ask_shutdown,
    .set_paused = firecracker_set_paused,
    .flush = firecracker_flush,
    .save = fc_save,
    .load = fc_load,
    .go = fc_go,
    .shape = firecracker_shape,
    .check_shape = fc_check_shape,
    .tell_counters = firecracker_tell_counters,
};

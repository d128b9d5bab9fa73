#include "vmm/fc_save.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/time.h"
#include "vmm/fc_config.h"

#define PATH_MAX_HERE 768
#define LOG_TAIL 400
#define TICK_MS 200

/* The same names in the saved folder and in Firecracker's own. */
static const char *const files[] = {"machine.state", VMM_SAVED_MEMORY};
enum { STATE, MEMORY, FILE_COUNT };

/* ---- one conversation ---- */

struct end {
    const struct vmm_saved *saved;
    struct loop *loop;
    struct vmm_talk *talk;
    struct loop_timer *tick;
    struct err err;
};

static void on_end(void *userdata, const struct err *err) {
    struct end *end = userdata;
    end->talk = NULL;
    if (err)
        end->err = *err;
    loop_quit(end->loop);
}

/* It may never have come as far as to have a socket. */
static int on_process(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
    struct end *end = userdata;
    char path[PATH_MAX_HERE], words[LOG_TAIL + 1] = "";
    _cleanup_free_ char *log = NULL;
    size_t len = 0;
    snprintf(path, sizeof path, "%s/" FC_LOG, end->saved->folder);
    if (file_read_tail(path, LOG_TAIL / 4, &log, &len) == 0)
        str_escape(log, len, words, sizeof words);
    vmm_talk_free(end->talk);
    err_set(&end->err, ECONNRESET, "vmm.lost", "Firecracker has ended%s%s", *words ? "; the end of its log: " : "",
            words);
    on_end(end, NULL);
    return 0;
}

static void on_tick(void *userdata) {
    struct end *end = userdata;
    if (!atomic_load(end->saved->is_unwanted)) {
        loop_timer_again(end->tick, TICK_MS);
        return;
    }
    vmm_talk_free(end->talk);
    err_set(&end->err, EINTR, "template.unwanted", "it was broken off: it is not wanted now");
    on_end(end, NULL);
}

static void root_of(const struct vmm_saved *saved, char ret_path[PATH_MAX_HERE]) {
    snprintf(ret_path, PATH_MAX_HERE, "%s/" FC_ROOT, saved->folder);
}

static int begin(struct end *end, struct fc_request *requests, size_t n, bool wait_for_socket, int pidfd,
                 struct err *err) {
    char root[PATH_MAX_HERE];
    const struct vm *vm = end->saved->vm;
    int64_t left_ms = end->saved->deadline_ms - time_monotonic_ms();
    root_of(end->saved, root);
    int r = fc_talk_start(end->loop, root, vm->uid, vm->pid, requests, n, wait_for_socket,
                          left_ms > 1 ? (int)left_ms : 1, on_end, end, &end->talk, err);
    if (r < 0)
        return r;
    r = sd_event_add_io(loop_event(end->loop), NULL, pidfd, EPOLLIN, on_process, end);
    if (r >= 0 && end->saved->is_unwanted)
        r = loop_timer_new(end->loop, TICK_MS, on_tick, end, &end->tick);
    return r < 0 ? err_sys(err, -r, "vmm.talk", "watch Firecracker") : 0;
}

/* Takes the bodies over, on failure too. */
static int say(const struct vmm_saved *saved, struct fc_request *requests, size_t n, bool wait_for_socket,
               struct err *err) {
    struct end end = {.saved = saved};
    _cleanup_close_ int pidfd = -1;
    int r = proc_open(saved->vm->pid, saved->vm->pid_start, &pidfd);
    r = r < 0 ? err_set(err, -r, "vmm.lost", "Firecracker has ended") : loop_new_private(&end.loop, err);
    if (r < 0) {
        fc_talk_drop(requests, n);
        return r;
    }
    r = begin(&end, requests, n, wait_for_socket, pidfd, err);
    if (r == 0)
        r = loop_run(end.loop, err);
    vmm_talk_free(end.talk);
    loop_timer_free(end.tick);
    loop_free(end.loop);
    if (r < 0 || !end.err.errnum)
        return r;
    if (err)
        *err = end.err;
    return -end.err.errnum;
}

static int ask_version(const struct vmm_saved *saved, bool wait_for_socket, char ret_version[VMM_VERSION_MAX],
                       struct err *err) {
    json_t *answer = NULL;
    struct fc_request rq = {.method = "GET", .path = "/version", .ret_answer = &answer};
    int r = say(saved, &rq, 1, wait_for_socket, err);
    const char *version = json_string_value(json_object_get(answer, "firecracker_version"));
    if (r == 0 && version)
        str_escape(version, strnlen(version, 40), ret_version, VMM_VERSION_MAX);
    else if (r == 0)
        r = err_set(err, EPROTO, "vmm.talk", "Firecracker did not say its version");
    json_decref(answer);
    return r;
}

/* ---- the two files ---- */

static void file_path(const struct vmm_saved *saved, int i, char ret_path[PATH_MAX_HERE]) {
    snprintf(ret_path, PATH_MAX_HERE, "%s/%s/%s", saved->folder, saved->name, files[i]);
}

static int root_fd(const struct vmm_saved *saved, struct err *err) {
    char root[PATH_MAX_HERE];
    root_of(saved, root);
    int fd = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? err_sys(err, errno, "vmm.talk", "open %s", root) : fd;
}

static void take_out(const struct vmm_saved *saved) {
    _cleanup_close_ int root = root_fd(saved, NULL);
    for (int i = 0; root >= 0 && i < FILE_COUNT; i++)
        unlinkat(root, files[i], 0);
}

/* flags: how a file of the saved folder is opened; owner, mode: what Firecracker may do with it, whose group is the VM's. What is
 * loaded of a template is others' too, and everybody may read it already. */
static int put_in(const struct vmm_saved *saved, int flags, uint32_t owner, mode_t mode, struct err *err) {
    _cleanup_close_ int root = root_fd(saved, err);
    bool is_ours = !saved->is_apart || (flags & O_CREAT);
    if (root < 0)
        return root;
    take_out(saved); /* what a conversation that was cut off has left */
    for (int i = 0; i < FILE_COUNT; i++) {
        char path[PATH_MAX_HERE];
        file_path(saved, i, path);
        _cleanup_close_ int fd = open(path, flags | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0 || (is_ours && (fchown(fd, owner, saved->vm->uid) < 0 || fchmod(fd, mode) < 0)) ||
            linkat(AT_FDCWD, path, root, files[i], 0) < 0)
            return err_sys(err, errno, "vmm.talk", "give Firecracker %s", path);
    }
    return 0;
}

/* It may have written elsewhere: then these are empty. */
static int take_back(const struct vmm_saved *saved, struct err *err) {
    for (int i = 0; i < FILE_COUNT; i++) {
        char path[PATH_MAX_HERE];
        struct stat st;
        file_path(saved, i, path);
        if (chown(path, 0, 0) < 0 || chmod(path, 0600) < 0 || stat(path, &st) < 0)
            return err_sys(err, errno, "vmm.talk", "take %s back", path);
        off_t wanted = (off_t)saved->vm->memory_mib << 20;
        if (i == MEMORY ? st.st_size != wanted : st.st_size == 0)
            return err_set(err, EIO, "vmm.talk", "Firecracker says that it is done, and %s has %lld bytes", files[i],
                           (long long)st.st_size);
    }
    return 0;
}

/* ---- the operations ---- */

static int check_can_load(const char *version, struct err *err) {
    if (fc_version_is_at_least(version, 1, 12))
        return 0;
    err_set(err, ENOTSUP, "vmm.other", "Firecracker %s cannot be told the TAP of a VM that it loads", version);
    return err_hint(err, "1.12 or newer is needed; the VM runs on");
}

/* A clone is made a machine of its own by the first connection to its agent, at once after it was loaded, and thrown away when that
 * breaks. Before 1.16 Firecracker may deliver data by the vsock before the guest has heard that its old connections are gone, and
 * then it breaks; before 1.15 the new one may also get a port on which the guest still has an old one. Who resumes a VM can wait
 * until its agent answers. Source: Firecracker, CHANGELOG.md, #5882, #5688. */
int fc_check_shape(const struct vmm_saved *saved, struct err *err) {
    char version[VMM_VERSION_MAX];
    int r = ask_version(saved, true, version, err);
    if (r < 0 || fc_version_is_at_least(version, 1, 16))
        return r;
    return err_set(err, EOPNOTSUPP, "warm.not-here",
                   "Firecracker %s cannot begin VMs from a template: 1.16 or newer is needed", version);
}

int fc_save(const struct vmm_saved *saved, char ret_version[VMM_VERSION_MAX], struct err *err) {
    int r = ask_version(saved, false, ret_version, err);
    if (r == 0)
        r = check_can_load(ret_version, err);
    if (r == 0)
        r = put_in(saved, O_WRONLY | O_CREAT | O_EXCL, saved->vm->uid, 0600, err);
    if (r == 0) {
        struct fc_request requests[] = {
            {.method = "PATCH", .path = "/vm", .body = json_pack("{s:s}", "state", "Paused")},
            {.method = "PUT",
             .path = "/snapshot/create",
             .body = json_pack("{s:s, s:s, s:s}", "snapshot_type", "Full", "snapshot_path", files[STATE],
                               "mem_file_path", files[MEMORY])},
        };
        r = say(saved, requests, 2, false, err);
    }
    take_out(saved);
    if (r == 0)
        r = take_back(saved, err);
    if (r < 0)
        err_prefix(err, "save its memory");
    return r;
}

/* What may be said before a load, as at any start, and then the load. */
static int load_requests(const struct vmm_saved *saved, struct fc_request ret_requests[FC_REQUESTS_MAX], size_t *ret_n,
                         struct err *err) {
    struct fc_request parts[FC_PARTS_MAX];
    size_t n_parts = 0, n = 0;
    int r = fc_config_read(saved->folder, parts, &n_parts, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < n_parts; i++) {
        if (strcmp(parts[i].path, "/logger") == 0 || strcmp(parts[i].path, "/metrics") == 0)
            ret_requests[n++] = parts[i];
        else
            fc_talk_drop(&parts[i], 1);
    }
    ret_requests[n++] = (struct fc_request){
        .method = "PUT",
        .path = "/snapshot/load",
        .body = json_pack("{s:s, s:{s:s, s:s}, s:[{s:s, s:s}], s:b}", "snapshot_path", files[STATE], "mem_backend",
                          "backend_type", "File", "backend_path", files[MEMORY], "network_overrides", "iface_id",
                          FC_NIC, "host_dev_name", saved->vm->tap, "resume_vm", false)};
    *ret_n = n;
    return 0;
}

int fc_load(const struct vmm_saved *saved, const char *version, struct err *err) {
    struct fc_request requests[FC_REQUESTS_MAX];
    char own[VMM_VERSION_MAX];
    size_t n = 0;
    int r = ask_version(saved, true, own, err);
    if (r == 0 && strcmp(own, version) != 0) {
        err_set(err, EPROTO, "vmm.other-version", "its memory was saved by Firecracker %s, and this is Firecracker %s",
                version, own);
        r = err_hint(err, "install that version again, or start the VM from its disk alone: mctl vm resume --cold");
    }
    if (r == 0)
        r = put_in(saved, O_RDONLY, 0, 0440, err);
    if (r == 0)
        r = load_requests(saved, requests, &n, err);
    if (r == 0)
        r = say(saved, requests, n, false, err);
    take_out(saved);
    if (r < 0)
        err_prefix(err, "load its memory");
    return r;
}

/* One that was not told yet what it is does not stand still: who attends to it does the rest. One that runs is not told to: that
 * makes the vsock of some versions wait for an answer that the guest does not owe. Source: Firecracker, CHANGELOG.md, #6100. */
static int check_state(json_t *answer, struct fc_request *rest, size_t n_rest, struct err *err) {
    const char *state = json_string_value(json_object_get(answer, "state"));
    if (!state)
        return err_set(err, EPROTO, "vmm.talk", "Firecracker did not say its state");
    rest[0].skip = strcmp(state, "Paused") != 0;
    return 0;
}

int fc_go(const struct vmm_saved *saved, struct err *err) {
    struct fc_request requests[] = {
        {.method = "GET", .path = "/", .check = check_state},
        {.method = "PATCH", .path = "/vm", .body = json_pack("{s:s}", "state", "Resumed")},
    };
    take_out(saved); /* where the daemon died while it saved or loaded */
    return say(saved, requests, 2, false, err);
}

/* What a Firecracker has counted of its NIC, from the file of metrics that it writes. It is not asked: its API would only
 * let us make it write (FlushMetrics), so a line may be a minute old.
 * Source: Firecracker, docs/metrics.md, docs/getting-started.md (--metrics-path, --config-file). */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "doctor/collect/collect.h"
#include "vmm/fc_config.h"
#include "vmm/fc_metrics.h"

#define ARGS_MAX (64 * 1024) /* bytes of a command line */
#define CONFIG_MAX (256 * 1024)
#define PATH_SIZE 512

/* As the process itself would find it: in its own view of the file system. Return: whether it fits. */
static bool seen_by(pid_t pid, const char *path, char ret_full[PATH_SIZE]) {
    int n = snprintf(ret_full, PATH_SIZE, "/proc/%d/%s%s", pid, *path == '/' ? "root" : "cwd/", path);
    return n < PATH_SIZE;
}

/* {"metrics": {"metrics_path": "…"}} */
static bool path_in_config(pid_t pid, const char *config, char ret_path[PATH_SIZE]) {
    char full[PATH_SIZE];
    _cleanup_free_ char *text = NULL;
    size_t len;
    if (!seen_by(pid, config, full) || file_read(full, CONFIG_MAX, &text, &len) < 0)
        return false;
    json_t *root = json_loadb(text, len, 0, NULL);
    const char *path = json_string_value(json_object_get(json_object_get(root, "metrics"), "metrics_path"));
    bool found = path && seen_by(pid, path, ret_path);
    json_decref(root);
    return found;
}

static bool path_in_arguments(pid_t pid, char ret_path[PATH_SIZE]) {
    _cleanup_free_ char *args = malloc(ARGS_MAX);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t len = args && fd >= 0 ? read(fd, args, ARGS_MAX - 1) : -1;
    if (len <= 0)
        return false;
    args[len] = '\0';
    const char *option = "";
    for (const char *arg = args; arg < args + len; option = arg, arg += strlen(arg) + 1)
        if ((strcmp(option, "--metrics-path") == 0 && seen_by(pid, arg, ret_path)) ||
            (strcmp(option, "--config-file") == 0 && path_in_config(pid, arg, ret_path)))
            return true;
    return false;
}

static bool find_file(const struct snapshot *s, const struct snap_holder *h, const char *state_dir,
                      char ret_path[PATH_SIZE], bool *ret_is_clone) {
    const struct snap_vm *vm = snap_vm_of_tap(s, h->tap);
    if (vm && state_dir && vm->pid == h->pid && strcmp(vm->vmm, "firecracker") == 0) {
        snprintf(ret_path, PATH_SIZE, "%s/users/%s/" FC_CLONE_MARK, state_dir, vm->id);
        *ret_is_clone = access(ret_path, F_OK) == 0;
        return snprintf(ret_path, PATH_SIZE, "%s/users/%s/" FC_METRICS, state_dir, vm->id) < PATH_SIZE;
    }
    return str_starts(h->comm, "firecracker") && path_in_arguments(h->pid, ret_path);
}

void collect_firecracker(struct snapshot *s, const struct snap_holder *h, const char *state_dir) {
    struct snap_vmm found = {.pid = h->pid, .link = -1};
    _cleanup_free_ char *text = NULL;
    char path[PATH_SIZE], words[VMM_WORDS_MAX];
    size_t len;
    bool is_clone = false;
    if (!find_file(s, h, state_dir, path, &is_clone))
        return;
    int r = file_read_tail(path, FC_METRICS_TAIL, &text, &len);
    if (r < 0) {
        snapshot_gap(s, "firecracker", -r, "the metrics of process %d cannot be read: %.100s", h->pid, path);
        return;
    }
    fc_metrics_tell(text, len, is_clone, words);
    str_copy(found.tap, sizeof found.tap, h->tap);
    size_t length = strlen(path), room = sizeof found.socket - 1; /* of a long path the end says more */
    str_copy(found.socket, sizeof found.socket, length > room ? path + length - room : path);
    str_copy(found.words, sizeof found.words, words);
    struct snap_vmm *row = *words ? SNAP_PUSH(s, vmms, SNAP_ROWS_MAX) : NULL;
    if (row)
        *row = found;
}

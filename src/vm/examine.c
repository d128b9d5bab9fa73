#include "vm/examine.h"

#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/time.h"

#define SAVE_TIMEOUT_MS 10000
#define PATH_TIMEOUT_MS 30000
#define ANSWER_MAX (8U << 20)
#define ARGS_MAX 20
#define SHARED_FILE "evidence/.doctor.json"
#define SHARED_PATH_MAX 320

void examine_init(struct examine *examine, const struct config *config, const char *state_dir) {
    /* Beside the daemon, where it is installed, and where it is built. */
    static const char *const places[] = {"/mctl", "/../bin/mctl", "/../cli/mctl"};
    struct examine e = {.config = config, .shared_lock = PTHREAD_MUTEX_INITIALIZER};
    char self[CONFIG_TEXT];
    str_copy(e.state_dir, sizeof e.state_dir, state_dir);
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(self, '/');
    if (slash)
        *slash = '\0';
    str_copy(e.mctl, sizeof e.mctl, config->vm.mctl_binary);
    for (size_t i = 0; !*e.mctl && slash && i < sizeof places / sizeof *places; i++)
        if (snprintf(e.mctl, sizeof e.mctl, "%s%s", self, places[i]) >= (int)sizeof e.mctl || access(e.mctl, X_OK) < 0)
            e.mctl[0] = '\0';
    *examine = e;
}

/* Runs mctl and waits for it. */
static int run(const struct examine *e, const char *const *argv, int output_fd, int timeout_ms, struct err *err) {
    struct proc_spec spec = {.argv = argv, .output_fd = output_fd};
    _cleanup_close_ int pidfd = -1;
    pid_t pid;
    char words[96];
    if (!*e->mctl)
        return err_set(err, ENOENT, "vm.examine", "there is no mctl beside this daemon, and [vm] mctl_binary is empty");
    int r = proc_start(&spec, &pid, &pidfd, err);
    if (r < 0)
        return r;
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    int64_t end = time_monotonic_ms() + timeout_ms;
    while (poll(&p, 1, (int)(end - time_monotonic_ms())) < 0 && errno == EINTR && time_monotonic_ms() < end) {
    }
    bool in_time = p.revents != 0;
    if (!in_time)
        proc_signal(pidfd, SIGKILL);
    while (proc_reap(pidfd, words, sizeof words) == 0)
        poll(&p, 1, 1000);
    if (!in_time)
        return err_set(err, ETIMEDOUT, "vm.examine", "the doctor had not finished after %d s", timeout_ms / 1000);
    return 0;
}

/* vm_id NULL: about all of them. */
static void build_args(const struct examine *e, const char *vm_id, const char *save, const char *argv[ARGS_MAX]) {
    int n = 0;
    argv[n++] = e->mctl;
    argv[n++] = save ? "--quiet" : "--json";
    argv[n++] = "doctor";
    if (vm_id) {
        argv[n++] = "--vm";
        argv[n++] = vm_id;
    }
    argv[n++] = "--state-dir";
    argv[n++] = e->state_dir;
    argv[n++] = "--socket"; /* by which it asks the guest's agent; at a VM's end there is nobody to ask */
    argv[n++] = save ? "" : e->config->api.socket;
    argv[n++] = "--bridge";
    argv[n++] = e->config->network.bridge;
    if (*e->config->network.namespace) {
        argv[n++] = "--netns";
        argv[n++] = e->config->network.namespace;
    }
    if (save) {
        argv[n++] = "--no-probe";
        argv[n++] = "--save";
        argv[n++] = save;
    }
    argv[n] = NULL;
}

int examine_save(const struct examine *e, const char *vm_id, const char *path, struct err *err) {
    const char *argv[ARGS_MAX];
    build_args(e, vm_id, path, argv);
    int r = run(e, argv, -1, SAVE_TIMEOUT_MS, err);
    if (r == 0 && access(path, F_OK) < 0)
        r = err_set(err, ENODATA, "vm.examine", "the doctor saved nothing");
    return r;
}

static void shared_path(const struct examine *e, char ret_path[SHARED_PATH_MAX]) {
    snprintf(ret_path, SHARED_PATH_MAX, "%s/" SHARED_FILE, e->state_dir);
}

static int save_shared(struct examine *e, const char *path, struct err *err) {
    int64_t begun_ms = time_monotonic_ms();
    e->shared_ms = 0;
    unlink(path);
    int r = examine_save(e, NULL, path, err);
    if (r == 0)
        e->shared_ms = begun_ms;
    return r;
}

int examine_save_shared(struct examine *e, int64_t since_ms, const char *path, struct err *err) {
    char shared[SHARED_PATH_MAX];
    shared_path(e, shared);
    pthread_mutex_lock(&e->shared_lock);
    int r = e->shared_ms >= since_ms && e->shared_ms > 0 ? 0 : save_shared(e, shared, err);
    if (r == 0 && link(shared, path) < 0)
        r = err_sys(err, errno, "vm.examine", "link %s to %s", shared, path);
    pthread_mutex_unlock(&e->shared_lock);
    return r;
}

void examine_unshare(struct examine *e) {
    char shared[SHARED_PATH_MAX];
    shared_path(e, shared);
    pthread_mutex_lock(&e->shared_lock);
    e->shared_ms = 0;
    unlink(shared);
    pthread_mutex_unlock(&e->shared_lock);
}

/* The finding that says most: a root cause before what contributes to it. */
static json_t *best_finding(json_t *target) {
    static const char *const roles[] = {"root-cause", "contributing", "symptom"};
    json_t *finding;
    size_t i;
    for (size_t k = 0; k < sizeof roles / sizeof *roles; k++)
        json_array_foreach(json_object_get(target, "findings"), i, finding) {
            const char *role = json_string_value(json_object_get(finding, "role"));
            if (role && strcmp(role, roles[k]) == 0)
                return finding;
        }
    return NULL;
}

static enum examine_result judge(json_t *answer, const char *vm_id, char ret_words[EXAMINE_WORDS_MAX]) {
    json_t *target;
    size_t i;
    json_array_foreach(json_object_get(answer, "targets"), i, target) {
        const char *id = json_string_value(json_object_get(target, "vm_id")), *title = NULL, *slug = NULL;
        if (!id || strcmp(id, vm_id) != 0)
            continue;
        if (json_is_true(json_object_get(target, "reachable")))
            return EXAMINE_REACHABLE;
        json_t *finding = best_finding(target);
        if (!finding || json_unpack(finding, "{s:s, s:s}", "title", &title, "id", &slug) < 0)
            return EXAMINE_UNKNOWN;
        char words[EXAMINE_WORDS_MAX];
        snprintf(words, sizeof words, "%.220s [%.60s]", title, slug);
        str_escape(words, strlen(words), ret_words, EXAMINE_WORDS_MAX);
        return EXAMINE_FINDING;
    }
    return EXAMINE_UNKNOWN;
}

enum examine_result examine_path(const struct examine *e, const char *vm_id, char ret_words[EXAMINE_WORDS_MAX]) {
    const char *argv[ARGS_MAX];
    _cleanup_free_ char *text = NULL;
    size_t len;
    _cleanup_close_ int fd = memfd_create("doctor", MFD_CLOEXEC);
    ret_words[0] = '\0';
    if (fd < 0)
        return EXAMINE_UNKNOWN;
    build_args(e, vm_id, NULL, argv);
    if (run(e, argv, fd, PATH_TIMEOUT_MS, NULL) < 0)
        return EXAMINE_UNKNOWN;
    off_t size = lseek(fd, 0, SEEK_END);
    if (size <= 0 || size > (off_t)ANSWER_MAX || !(text = malloc((size_t)size)))
        return EXAMINE_UNKNOWN;
    len = (size_t)size;
    if (pread(fd, text, len, 0) != (ssize_t)len)
        return EXAMINE_UNKNOWN;
    json_t *answer = json_loadb(text, len, 0, NULL);
    enum examine_result result = judge(answer, vm_id, ret_words);
    json_decref(answer);
    return result;
}

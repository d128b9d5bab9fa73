/* A private tracefs instance.
 *
 * tracefs is mounted by itself and attached nowhere (fsmount), so nothing of the host is changed and it does not matter
 * whether somebody mounted it. The instance is a folder in it; whoever dies leaves it behind, and the next doctor
 * removes it after its own: its name holds the pid, and a living one cannot be removed because it keeps a file of it open. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "doctor/trace/internal.h"

#define PREFIX "mc-doctor-"
#define TEXT_MAX (8 * 1024 * 1024)
#define BUFFER_KIB_MANY "128" /* for each processor, instead of the kernel's 1,408 */
#define PROCESSORS_MANY 32
#define END_WAIT_S 3
#define STALE_AT_ONCE 16

struct tracefs {
    int root, instance;
    int held; /* a file of the instance: it cannot be removed while this is open */
    char name[64];
};

static const char *const events[] = {
    "events/net/net_dev_queue/enable",     "events/net/net_dev_start_xmit/enable", "events/net/net_dev_xmit/enable",
    "events/net/netif_receive_skb/enable", "events/skb/kfree_skb/enable",          "events/skb/consume_skb/enable",
    "events/neigh/neigh_update/enable",
};

static int write_at(int dir, const char *path, const char *text) {
    _cleanup_close_ int fd = openat(dir, path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    return write(fd, text, strlen(text)) < 0 ? -errno : 0;
}

/* Return: a descriptor of tracefs' root, or -errno. */
static int open_root(void) {
    _cleanup_close_ int fs = fsopen("tracefs", FSOPEN_CLOEXEC);
    int r = fs < 0 ? -errno : 0;
    if (r == 0 && fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
        r = -errno;
    if (r == 0) {
        int fd = fsmount(fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NODEV);
        if (fd >= 0)
            return fd;
        r = -errno;
    }
    /* An older kernel, or a container that may not mount: what is there will do. */
    int fd = open("/sys/kernel/tracing", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0 && faccessat(fd, "instances", W_OK, 0) == 0)
        return fd;
    fd_close(&fd);
    return r;
}

/* A process with all of its threads: which one of them has the network device is the VMM's matter. */
static void add_threads(struct strbuf *text, pid_t pid) {
    char path[48];
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    DIR *dir = opendir(path);
    strbuf_addf(text, " %d", (int)pid);
    for (struct dirent *entry; dir && (entry = readdir(dir));)
        if (*entry->d_name != '.' && atoi(entry->d_name) != pid)
            strbuf_addf(text, " %.10s", entry->d_name);
    if (dir)
        closedir(dir);
}

/* Only these threads: who sends (we) and who reads the TAPs. */
static int set_threads(struct tracefs *fs, const struct trace_request *request) {
    struct strbuf text = {.max = TRACE_TIDS_MAX * 12};
    strbuf_addf(&text, "%d", (int)gettid());
    for (size_t i = 0; i < request->tid_count && i < TRACE_TIDS_MAX; i++)
        add_threads(&text, request->tids[i]);
    int r = text.data ? write_at(fs->instance, "set_event_pid", text.data) : -ENOMEM;
    strbuf_free(&text);
    return r;
}

/* On a bridge with a thousand ports one broadcast would be thousands of events: only what happens on ours. A name that
 * could not be quoted, or more of them than a filter should have, and all are taken. */
static void set_devices(struct tracefs *fs, const struct trace_request *request) {
    static const char *const filters[] = {"events/net/net_dev_queue/filter", "events/net/net_dev_start_xmit/filter",
                                          "events/net/net_dev_xmit/filter", "events/net/netif_receive_skb/filter"};
    struct strbuf text = {.max = 4000};
    if (request->device_count == 0 || request->device_count > 40)
        return;
    for (size_t i = 0; i < request->device_count; i++) {
        if (strpbrk(request->devices[i], "\"\\*?[") || !str_is_utf8(request->devices[i], strlen(request->devices[i]))) {
            strbuf_free(&text);
            return;
        }
        strbuf_addf(&text, "%sname == \"%s\"", i ? " || " : "", request->devices[i]);
    }
    for (size_t i = 0; text.data && !text.truncated && i < sizeof filters / sizeof *filters; i++)
        write_at(fs->instance, filters[i], text.data);
    strbuf_free(&text);
}

/* What a TAP refuses to take from its VMM is counted nowhere: the failed write is all that there is to see. */
static void watch_writes(struct tracefs *fs) {
    char filter[160];
    snprintf(filter, sizeof filter, "(id == %d || id == %d) && ret < 0 && ret != %d && ret != %d", SYS_write,
             SYS_writev, -EAGAIN, -EINTR);
    if (write_at(fs->instance, "events/raw_syscalls/sys_exit/filter", filter) == 0)
        write_at(fs->instance, "events/raw_syscalls/sys_exit/enable", "1");
}

static int set_up(struct tracefs *fs, const struct trace_request *request) {
    bool many = sysconf(_SC_NPROCESSORS_CONF) > PROCESSORS_MANY;
    int r = write_at(fs->instance, "trace_clock", "mono");
    if (r == 0)
        r = set_threads(fs, request);
    if (r < 0)
        return r;
    if (many)
        write_at(fs->instance, "buffer_size_kb", BUFFER_KIB_MANY);
    set_devices(fs, request);
    /* With a condition it obeys the filter of threads; without, it would write every drop of the machine. */
    write_at(fs->instance, "events/skb/kfree_skb/trigger", "stacktrace if common_pid > 0");
    for (size_t i = 0; i < sizeof events / sizeof *events; i++) {
        r = write_at(fs->instance, events[i], "1");
        if (r < 0 && strstr(events[i], "kfree_skb")) /* the one without which the rest is worth little */
            return r;
    }
    if (request->tid_count)
        watch_writes(fs);
    return 0;
}

/* instances/mc-doctor-PID.N: the one before may still be on its way out. */
static int make_instance(struct tracefs *fs) {
    static atomic_uint count;
    struct strbuf path = {.max = sizeof fs->name - 1};
    strbuf_addf(&path, "instances/%s%d.%u", PREFIX, (int)getpid(), atomic_fetch_add(&count, 1));
    int r = path.data && !path.truncated ? 0 : -ENOMEM;
    if (r == 0 && mkdirat(fs->root, path.data, 0700) < 0)
        r = -errno;
    if (r == 0) {
        str_copy(fs->name, sizeof fs->name, path.data);
        fs->instance = openat(fs->root, path.data, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        fs->held = fs->instance < 0 ? -1 : openat(fs->instance, "trace_pipe", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        if (fs->held < 0)
            r = -errno;
    }
    strbuf_free(&path);
    return r;
}

static void dispose_instance(struct tracefs *fs) {
    fd_close(&fs->held);
    fd_close(&fs->instance);
    if (*fs->name)
        unlinkat(fs->root, fs->name, AT_REMOVEDIR);
    *fs->name = '\0';
}

static void dispose(struct tracefs *fs) {
    dispose_instance(fs);
    fd_close(&fs->root);
    free(fs);
}

/* The kernel takes a fifth of a second to let an instance go (it waits for all processors, event by event), and nobody
 * needs to wait with it: it is done by the side, and only the end of the process waits until it is done. That needs to
 * be known in one place for the whole process. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t idle;
    unsigned int running;
    bool ending;
} side = {.lock = PTHREAD_MUTEX_INITIALIZER, .idle = PTHREAD_COND_INITIALIZER};

static bool is_ending(void) {
    pthread_mutex_lock(&side.lock);
    bool ending = side.ending;
    pthread_mutex_unlock(&side.lock);
    return ending;
}

static void wait_for_side(void) {
    struct timespec until;
    int r = 0;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += END_WAIT_S;
    pthread_mutex_lock(&side.lock);
    side.ending = true;
    while (side.running && r == 0)
        r = pthread_cond_timedwait(&side.idle, &side.lock, &until);
    pthread_mutex_unlock(&side.lock);
}

static void register_end(void) {
    atexit(wait_for_side);
}

static void side_done(void) {
    pthread_mutex_lock(&side.lock);
    side.running--;
    pthread_cond_broadcast(&side.idle);
    pthread_mutex_unlock(&side.lock);
}

/* Return: whether it runs; if not, the caller does the work itself. */
static bool start_side(void *(*work)(void *), void *data) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_t thread;
    pthread_attr_t detached;
    pthread_once(&once, register_end);
    if (pthread_attr_init(&detached) != 0)
        return false;
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_mutex_lock(&side.lock);
    side.running++;
    pthread_mutex_unlock(&side.lock);
    int r = pthread_create(&thread, &detached, work, data);
    pthread_attr_destroy(&detached);
    if (r != 0)
        side_done();
    return r == 0;
}

static bool is_stale(const char *name) {
    char digits[16];
    uint64_t pid;
    if (!str_starts(name, PREFIX) || !str_copy(digits, sizeof digits, name + strlen(PREFIX)))
        return false;
    digits[strcspn(digits, ".")] = '\0';
    return str_to_u64(digits, 1, INT32_MAX, &pid) == 0 && kill((pid_t)pid, 0) < 0 && errno == ESRCH;
}

/* Those of doctors that died, a few each time: every one costs as much as our own. One that lives keeps a file open and
 * is refused (EBUSY). */
static void remove_stale(int root) {
    int fd = openat(root, "instances", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    int left = STALE_AT_ONCE;
    for (struct dirent *entry; dir && left > 0 && (entry = readdir(dir));) {
        if (!is_stale(entry->d_name))
            continue;
        unlinkat(fd, entry->d_name, AT_REMOVEDIR);
        left = is_ending() ? 0 : left - 1;
    }
    if (dir)
        closedir(dir);
    else
        fd_close(&fd);
}

/* After the run, so that they do not hold its own instance up: the kernel has one lock for all of them. */
static void *dispose_thread(void *data) {
    struct tracefs *fs = data;
    dispose_instance(fs);
    remove_stale(fs->root);
    dispose(fs);
    side_done();
    return NULL;
}

static void dispose_later(struct tracefs *fs) {
    if (!start_side(dispose_thread, fs))
        dispose(fs);
}

int tracefs_start(const struct trace_request *request, struct tracefs **ret, char *why, size_t why_size) {
    struct tracefs *fs = calloc(1, sizeof *fs);
    if (!fs)
        return -ENOMEM;
    fs->instance = fs->held = -1;
    const char *step = "open tracefs";
    int r = fs->root = open_root();
    if (r >= 0) {
        step = "make a private trace instance";
        r = make_instance(fs);
    }
    if (r >= 0) {
        step = "switch the events on";
        r = set_up(fs, request);
    }
    if (r < 0) {
        struct strbuf text = {.max = why_size - 1};
        strbuf_addf(&text, "cannot %s: %s", step, strerror(-r));
        str_copy(why, why_size, text.data ? text.data : step);
        strbuf_free(&text);
        dispose(fs);
        return r;
    }
    *ret = fs;
    return 0;
}

static int read_text(int dir, const char *path, struct strbuf *text) {
    char part[16384];
    _cleanup_close_ int fd = openat(dir, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    for (;;) {
        ssize_t n = read(fd, part, sizeof part);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : 0;
        strbuf_add(text, part, (size_t)n);
        if (text->truncated)
            return 0;
    }
}

void tracefs_stop(struct tracefs *fs, struct trace_result *result) {
    struct strbuf text = {.max = TEXT_MAX};
    write_at(fs->instance, "tracing_on", "0");
    int r = read_text(fs->instance, "trace", &text);
    if (text.data)
        trace_result_read(result, text.data, text.len);
    if (text.truncated)
        result->truncated = true;
    if (r < 0) {
        result->tracefs = (struct trace_had){.errnum = -r};
        str_copy(result->tracefs.why, sizeof result->tracefs.why, "the trace could not be read");
    }
    strbuf_free(&text);
    dispose_later(fs);
}

void tracefs_abort(struct tracefs *fs) {
    if (fs)
        dispose(fs);
}

/* How the guest is: load, memory, disk, the kernel's log, the clock. */
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"
#include "base/fd.h"
#include "base/time.h"

#define KERNEL_LOG_MAX (512 * 1024)
#define KERNEL_LINES_MAX 200
#define TROUBLE_MAX 32

/* The value of "NAME: 123 kB" or "NAME 123" in a file of /proc; -1 without one. */
static json_int_t proc_value(const char *path, const char *name) {
    _cleanup_fclose_ FILE *f = fopen(path, "re");
    char line[256];
    size_t len = strlen(name);
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, name, len) == 0 && (line[len] == ':' || line[len] == ' '))
            return strtoll(line + len + 1, NULL, 10);
    return -1;
}

static json_t *disk_json(const char *path) {
    struct statvfs st;
    if (statvfs(path, &st) < 0)
        return json_null();
    return json_pack("{s:I, s:I, s:b}", "bytes", (json_int_t)st.f_blocks * (json_int_t)st.f_frsize, "free_bytes",
                     (json_int_t)st.f_bavail * (json_int_t)st.f_frsize, "read_only", (st.f_flag & ST_RDONLY) != 0);
}

json_t *op_health(struct agent *agent, json_t *request, struct err *err) {
    struct sysinfo info = {0};
    if (request_unpack(request, err, "{}") < 0)
        return NULL;
    sysinfo(&info);
    return json_pack("{s:s, s:o, s:I, s:I, s:I, s:f, s:i, s:{s:I, s:I, s:I}, s:o, s:I, s:o}", "agent", MC_VERSION,
                     "boot_id", text_of_file("/proc/sys/kernel/random/boot_id", 36), "uptime_s",
                     (json_int_t)info.uptime, "agent_started_ms", (json_int_t)agent->started_ms, "realtime_ms",
                     (json_int_t)time_realtime_ms(), "load_1min", (double)info.loads[0] / 65536, "processes",
                     (int)info.procs, "memory", "bytes", (json_int_t)info.totalram * info.mem_unit, "available_bytes",
                     1024 * proc_value("/proc/meminfo", "MemAvailable"), "swap_free_bytes",
                     (json_int_t)info.freeswap * info.mem_unit, "root", disk_json("/"), "oom_kills",
                     proc_value("/proc/vmstat", "oom_kill"), "cmdline", text_of_file("/proc/cmdline", 2048));
}

/* What an operator looks for first, as the kernel spells it: a "bug" of the firmware's is none of these. */
static bool is_trouble(const char *line) {
    static const char *const words[] = {
        "ut of memory", "oom-kill",    "Kernel panic", "BUG:",          "Oops:",    "blocked for more than",
        "soft lockup",  "hard LOCKUP", "I/O error",    "EXT4-fs error", "segfault", "general protection",
        "Call Trace:"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strstr(line, words[i]))
            return true;
    return false;
}

static void add_line(json_t *lines, size_t max, const char *line) {
    if (json_array_size(lines) == max)
        json_array_remove(lines, 0);
    json_array_append_new(lines, text_json(line, strnlen(line, 300)));
}

/* {"op":"kernel.log","lines":50}: the end of the kernel's log, and of all of it the lines that tell of trouble. */
json_t *op_kernel_log(struct agent *agent, json_t *request, struct err *err) {
    int wanted = 50;
    if (request_unpack(request, err, "{s?i}", "lines", &wanted) < 0)
        return NULL;
    if (wanted < 1 || wanted > KERNEL_LINES_MAX) {
        err_set(err, EINVAL, "bad-request", "lines is from 1 to %d", KERNEL_LINES_MAX);
        return NULL;
    }
    _cleanup_free_ char *text = malloc(KERNEL_LOG_MAX + 1);
    /* 3: SYSLOG_ACTION_READ_ALL, the end of the ring buffer. Source: syslog(2). */
    int len = text ? klogctl(3, text, KERNEL_LOG_MAX) : -1;
    if (len < 0) {
        err_sys(err, errno, "kernel.log", "read the kernel's log");
        return NULL;
    }
    text[len] = '\0';
    json_t *lines = json_array(), *trouble = json_array();
    char *save = NULL;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        add_line(lines, (size_t)wanted, line);
        if (is_trouble(line))
            add_line(trouble, TROUBLE_MAX, line);
    }
    return json_pack("{s:o, s:o}", "lines", lines, "trouble", trouble);
}

/* {"op":"clock.set","realtime_ms":N} */
json_t *op_clock_set(struct agent *agent, json_t *request, struct err *err) {
    json_int_t to_ms = 0;
    if (request_unpack(request, err, "{s:I}", "realtime_ms", &to_ms) < 0)
        return NULL;
    /* 2020 to 2100: what is outside is a mistake. */
    if (to_ms < 1577836800000 || to_ms > 4102444800000) {
        err_set(err, EINVAL, "bad-request", "realtime_ms is not a time of this century");
        return NULL;
    }
    json_int_t was_ms = time_realtime_ms();
    struct timespec ts = {.tv_sec = to_ms / 1000, .tv_nsec = to_ms % 1000 * 1000000};
    if (clock_settime(CLOCK_REALTIME, &ts) < 0) {
        err_sys(err, errno, "clock.set", "set the clock");
        return NULL;
    }
    return json_pack("{s:I, s:I}", "was_ms", was_ms, "changed_by_ms", to_ms - was_ms);
}

/* Two bytes of hex each. Return: the number of bytes, 0 for what is not hex. */
static size_t take_hex(const char *text, uint8_t *ret, size_t max) {
    size_t n = strlen(text) / 2;
    if (n > max || strlen(text) != 2 * n || strspn(text, "0123456789abcdef") != 2 * n)
        return 0;
    for (size_t i = 0; i < n; i++) {
        char pair[3] = {text[2 * i], text[2 * i + 1], '\0'};
        ret[i] = (uint8_t)strtoul(pair, NULL, 16);
    }
    return n;
}

/* {"op":"random.seed","seed":"…"}: 32 to 64 bytes in hex that nobody else has. A guest whose memory was saved and is loaded
 * would go on with the random numbers that it had then. Source: random(4), RNDADDENTROPY and RNDRESEEDCRNG. */
json_t *op_random_seed(struct agent *agent, json_t *request, struct err *err) {
    struct {
        struct rand_pool_info info;
        uint8_t bytes[64];
    } pool = {0};
    const char *seed = "";
    if (request_unpack(request, err, "{s:s}", "seed", &seed) < 0)
        return NULL;
    size_t n = take_hex(seed, pool.bytes, sizeof pool.bytes);
    if (n < 32) {
        err_set(err, EINVAL, "bad-request", "seed is 32 to 64 bytes in hex");
        return NULL;
    }
    pool.info.entropy_count = (int)n * 8;
    pool.info.buf_size = (int)n;
    _cleanup_close_ int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    int r = fd >= 0 && ioctl(fd, RNDADDENTROPY, &pool) == 0 && ioctl(fd, RNDRESEEDCRNG) == 0 ? 0 : -errno;
    explicit_bzero(&pool, sizeof pool);
    if (r < 0) {
        err_sys(err, -r, "random.seed", "renew the kernel's random numbers");
        return NULL;
    }
    return json_object();
}

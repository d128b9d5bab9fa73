#include "vmm/qmp_save.h"

#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "vmm/qmp.h"

#define LINE_MAX_BYTES (256U << 10)
#define ANSWER_MS 30000 /* for one that is busy, or whose host is */
#define STILL_MS 60000  /* without a step more, it has got stuck */
#define STEP_BYTES (1 << 20)
#define DEVICES_MIB 64 /* beside its memory */
#define PAUSE_US 10000 /* between two looks at how far it is */
#define LOG_TAIL 400

struct qmp {
    const struct vmm_saved *saved;
    int fd;
    int64_t answer_by_ms; /* monotonic; whatever else is said meanwhile */
    struct strbuf in;
};

static int64_t answer_by_ms(const struct vmm_saved *saved) {
    int64_t by_ms = time_monotonic_ms() + ANSWER_MS;
    return by_ms < saved->deadline_ms ? by_ms : saved->deadline_ms;
}

static void hang_up(struct qmp *q) {
    fd_close(&q->fd);
    strbuf_free(&q->in);
}
#define _cleanup_qmp_ __attribute__((cleanup(hang_up)))

/* A line as JSON; the caller decrefs. Return: 0 or -errno. */
static int read_line(struct qmp *q, json_t **ret_message) {
    char chunk[4096], *end;
    while (!(end = q->in.len ? memchr(q->in.data, '\n', q->in.len) : NULL)) {
        struct pollfd p = {.fd = q->fd, .events = POLLIN};
        int64_t left_ms = q->answer_by_ms - time_monotonic_ms();
        if (left_ms <= 0 || poll(&p, 1, (int)left_ms) == 0)
            return -ETIMEDOUT;
        ssize_t n = recv(q->fd, chunk, sizeof chunk, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (n <= 0)
            return -ECONNRESET;
        strbuf_add(&q->in, chunk, (size_t)n);
        if (q->in.truncated)
            return -EPROTO;
    }
    size_t used = (size_t)(end + 1 - q->in.data);
    *ret_message = json_loadb(q->in.data, used - 1, JSON_REJECT_DUPLICATES, NULL);
    memmove(q->in.data, end + 1, q->in.len - used);
    q->in.len -= used;
    return *ret_message ? 0 : -EPROTO;
}

/* fd: goes along with the command; -1: none. */
static int send_line(struct qmp *q, const char *text, int fd) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec part = {.iov_base = (void *)text, .iov_len = strlen(text)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    ssize_t n = sendmsg(q->fd, &message, MSG_NOSIGNAL);
    return n < 0 ? -errno : n == (ssize_t)strlen(text) ? 0 : -EAGAIN;
}

/* QEMU that ends for what it was given says why in its log alone. */
static int failed(const struct qmp *q, int r, const char *what, struct err *err) {
    char path[640], words[LOG_TAIL + 1] = "";
    _cleanup_free_ char *log = NULL;
    size_t len = 0;
    snprintf(path, sizeof path, "%s/vmm.log", q->saved->folder);
    if (file_read_tail(path, LOG_TAIL / 4, &log, &len) == 0)
        str_escape(log, len, words, sizeof words);
    return err_set(err, -r, "vmm.talk", "QEMU does not answer %s: %s%s%s", what, strerror(-r),
                   *words ? "; the end of its log: " : "", words);
}

/* Says a command and waits for its answer; what QEMU tells by itself meanwhile is passed over. ret_answer: the "return",
 * which the caller decrefs; may be NULL. */
static int ask(struct qmp *q, const char *command, const char *arguments, int fd, json_t **ret_answer,
               struct err *err) {
    char text[256];
    snprintf(text, sizeof text, "{\"execute\":\"%s\",\"arguments\":%s,\"id\":1}\n", command, arguments);
    json_t *message = NULL, *answer = NULL;
    q->answer_by_ms = answer_by_ms(q->saved);
    int r = send_line(q, text, fd);
    while (r == 0 && !answer) {
        json_decref(message);
        message = NULL;
        r = read_line(q, &message);
        json_t *refusal = json_object_get(message, "error");
        if (r == 0 && refusal) {
            const char *words = json_string_value(json_object_get(refusal, "desc"));
            char shown[300];
            str_escape(words ? words : "", words ? strnlen(words, 200) : 0, shown, sizeof shown);
            err_set(err, EIO, "vmm.talk", "QEMU refused %s: %s", command, shown);
            json_decref(message);
            return -EIO;
        }
        answer = json_object_get(message, "return");
    }
    if (r == 0 && ret_answer)
        *ret_answer = json_incref(answer);
    json_decref(message);
    return r < 0 ? failed(q, r, command, err) : 0;
}

/* {"QMP":{"version":{"qemu":{"major":7,"minor":2,"micro":22},"package":"Debian 1:7.2"},…}} */
static int take_version(json_t *greeting, char ret_version[VMM_VERSION_MAX]) {
    int major, minor, micro;
    const char *package = "";
    char shown[64];
    if (json_unpack(greeting, "{s:{s:{s:{s:i, s:i, s:i}, s?s}}}", "QMP", "version", "qemu", "major", &major, "minor",
                    &minor, "micro", &micro, "package", &package) < 0)
        return -EPROTO;
    str_escape(package, strnlen(package, 60), shown, sizeof shown);
    snprintf(ret_version, VMM_VERSION_MAX, "%d.%d.%d%s%s", major, minor, micro, *shown ? " " : "", shown);
    return 0;
}

static int dial(struct qmp *q, const struct vmm_saved *saved, char ret_version[VMM_VERSION_MAX], struct err *err) {
    _cleanup_close_ int dir = open(saved->folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    json_t *greeting = NULL;
    *q = (struct qmp){.saved = saved, .fd = -1, .answer_by_ms = answer_by_ms(saved), .in = {.max = LINE_MAX_BYTES}};
    int r = dir < 0 ? -errno : fd_connect_unix(dir, QMP_SOCKET, 0, 0, &q->fd); /* a daemon has made it, as root */
    if (r == 0)
        r = read_line(q, &greeting);
    if (r == 0)
        r = take_version(greeting, ret_version);
    json_decref(greeting);
    return r < 0 ? failed(q, r, "at all", err) : ask(q, "qmp_capabilities", "{}", -1, NULL, err);
}

/* Waits until a migration, out or in, has come to its end. */
static int wait_until_done(struct qmp *q, int memory_fd, struct err *err) {
    char status[24] = "";
    off_t seen = 0;
    int64_t seen_ms = time_monotonic_ms();
    for (;; usleep(PAUSE_US)) {
        json_t *answer = NULL;
        const char *word = "", *words = "";
        int r = ask(q, "query-migrate", "{}", -1, &answer, err);
        if (r < 0)
            return r;
        json_unpack(answer, "{s?s, s?s}", "status", &word, "error-desc", &words);
        str_copy(status, sizeof status, word);
        char shown[300];
        str_escape(words, strnlen(words, 200), shown, sizeof shown);
        json_decref(answer);
        if (strcmp(status, "completed") == 0)
            return 0;
        if (strcmp(status, "failed") == 0 || strcmp(status, "cancelled") == 0)
            return err_set(err, EIO, "vmm.talk", "%s", *shown ? shown : "QEMU could not do it, and does not say why");
        off_t at = lseek(memory_fd, 0, SEEK_CUR); /* QEMU's descriptor is the same open file */
        int64_t now_ms = time_monotonic_ms();
        if (at >= seen + STEP_BYTES) { /* and never back: so this ends, whatever a VMM does with it */
            seen = at;
            seen_ms = now_ms;
        }
        /* Pages that are zero take no room, so it is less than that; more is not memory. */
        if (at > ((off_t)q->saved->vm->memory_mib + DEVICES_MIB) << 20)
            return err_set(err, EFBIG, "vmm.talk", "it is more than the VM's memory");
        if (now_ms >= q->saved->deadline_ms)
            return err_set(err, ETIMEDOUT, "vmm.talk", "it was at %lld bytes when its time was over", (long long)at);
        if (now_ms - seen_ms > STILL_MS)
            return err_set(err, ETIMEDOUT, "vmm.talk", "it stands still at %lld bytes", (long long)at);
    }
}

/* The machine's state is that of what runs it, and the host may have come to something else since it was started. */
static int check_accel(struct qmp *q, struct err *err) {
    json_t *answer = NULL;
    int is_kvm = -1;
    int r = ask(q, "query-kvm", "{}", -1, &answer, err);
    if (r < 0)
        return r;
    json_unpack(answer, "{s?b}", "enabled", &is_kvm);
    json_decref(answer);
    if (is_kvm == (strcmp(q->saved->accel, "kvm") == 0))
        return 0;
    err_set(err, EPROTO, "vmm.other", "it is run by %s, and this host would load its memory into one that %s runs",
            is_kvm ? "KVM" : "TCG", strcmp(q->saved->accel, "kvm") == 0 ? "KVM" : "TCG");
    return err_hint(err, "set [vm] accel to what it was started with; the VM runs on");
}

static int open_memory(const struct vmm_saved *saved, int flags, int *ret_fd, struct err *err) {
    char path[640];
    snprintf(path, sizeof path, "%s/%s/" VMM_SAVED_MEMORY, saved->folder, saved->name);
    *ret_fd = open(path, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
    return *ret_fd < 0 ? err_sys(err, errno, "vmm.talk", "open %s", path) : 0;
}

static int sync_memory(int fd, struct err *err) {
    return fsync(fd) < 0 ? err_sys(err, errno, "vmm.talk", "write its memory to the disk") : 0;
}

/* A machine whose memory is a file: QEMU leaves out what is shared with it. To load it the same has to be said, though there
 * the file is private; and to be taken back, or the machine could not be saved as others are. */
static int set_apart(struct qmp *q, bool is_apart, struct err *err) {
    char text[96];
    snprintf(text, sizeof text, "{\"capabilities\":[{\"capability\":\"x-ignore-shared\",\"state\":%s}]}",
             is_apart ? "true" : "false");
    return q->saved->is_apart ? ask(q, "migrate-set-capabilities", text, -1, NULL, err) : 0;
}

int qmp_save(const struct vmm_saved *saved, char ret_version[VMM_VERSION_MAX], struct err *err) {
    _cleanup_qmp_ struct qmp q = {.fd = -1};
    _cleanup_close_ int fd = -1;
    int r = open_memory(saved, O_WRONLY | O_CREAT | O_EXCL, &fd, err);
    if (r == 0)
        r = dial(&q, saved, ret_version, err);
    if (r == 0)
        r = check_accel(&q, err);
    if (r == 0)
        r = ask(&q, "stop", "{}", -1, NULL, err);
    if (r == 0)
        r = ask(&q, "getfd", "{\"fdname\":\"memory\"}", fd, NULL, err);
    if (r == 0)
        r = set_apart(&q, true, err);
    if (r == 0) /* it is not limited to what is left of a network, as it would be by default */
        r = ask(&q, "migrate-set-parameters", "{\"max-bandwidth\":1099511627776}", -1, NULL, err);
    if (r == 0)
        r = ask(&q, "migrate", "{\"uri\":\"fd:memory\"}", -1, NULL, err);
    if (r == 0)
        r = wait_until_done(&q, fd, err);
    if (r == 0)
        r = sync_memory(fd, err);
    if (r < 0)
        err_prefix(err, "save its memory");
    return r;
}

int qmp_load(const struct vmm_saved *saved, const char *version, struct err *err) {
    _cleanup_qmp_ struct qmp q = {.fd = -1};
    _cleanup_close_ int fd = -1;
    char own[VMM_VERSION_MAX];
    int r = open_memory(saved, O_RDONLY, &fd, err);
    if (r == 0)
        r = dial(&q, saved, own, err);
    if (r == 0 && strcmp(own, version) != 0) {
        err_set(err, EPROTO, "vmm.other-version", "its memory was saved by QEMU %s, and this is QEMU %s", version, own);
        return err_hint(err, "install that version again, or start the VM from its disk alone: mctl vm resume --cold");
    }
    if (r == 0)
        r = set_apart(&q, true, err);
    if (r == 0)
        r = ask(&q, "getfd", "{\"fdname\":\"memory\"}", fd, NULL, err);
    if (r == 0)
        r = ask(&q, "migrate-incoming", "{\"uri\":\"fd:memory\"}", -1, NULL, err);
    if (r == 0)
        r = wait_until_done(&q, fd, err);
    if (r == 0)
        r = set_apart(&q, false, err);
    if (r < 0)
        err_prefix(err, "load its memory");
    return r;
}

int qmp_go(const struct vmm_saved *saved, struct err *err) {
    _cleanup_qmp_ struct qmp q = {.fd = -1};
    char version[VMM_VERSION_MAX];
    int r = dial(&q, saved, version, err);
    /* One that a daemon which died had begun: it is broken off, and nothing happens where there is none. */
    if (r == 0)
        r = ask(&q, "migrate_cancel", "{}", -1, NULL, err);
    for (int64_t end_ms = answer_by_ms(saved); r == 0; usleep(PAUSE_US)) {
        json_t *answer = NULL;
        const char *status = "";
        r = ask(&q, "query-migrate", "{}", -1, &answer, err);
        json_unpack(answer, "{s?s}", "status", &status);
        bool is_over = strcmp(status, "cancelling") != 0 && strcmp(status, "active") != 0;
        json_decref(answer);
        if (is_over || time_monotonic_ms() > end_ms)
            break;
    }
    return r < 0 ? r : ask(&q, "cont", "{}", -1, NULL, err);
}

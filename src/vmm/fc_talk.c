#include "vmm/fc_talk.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"

#define ANSWER_MAX (64 * 1024)
#define CONNECT_PAUSE_MS 5
#define FAULT_MAX 480

struct vmm_talk {
    struct loop *loop;
    sd_event_source *io;
    struct loop_timer *deadline, *again;
    int folder_fd, fd;
    uint32_t uid;
    pid_t pid;
    bool wait_for_socket;
    int timeout_ms;
    struct fc_request requests[FC_REQUESTS_MAX];
    size_t n, at;
    char *out; /* the request under way */
    size_t out_len, out_sent;
    struct strbuf in;
    vmm_done_fn *done;
    void *userdata;
};

void fc_talk_drop(struct fc_request *requests, size_t n) {
    for (size_t i = 0; i < n; i++)
        json_decref(requests[i].body);
}

void vmm_talk_free(struct vmm_talk *t) {
    if (!t)
        return;
    sd_event_source_disable_unref(t->io);
    loop_timer_free(t->deadline);
    loop_timer_free(t->again);
    fd_close(&t->fd);
    fd_close(&t->folder_fd);
    fc_talk_drop(t->requests, t->n);
    free(t->out);
    strbuf_free(&t->in);
    free(t);
}

static void finish(struct vmm_talk *t, const struct err *err) {
    vmm_done_fn *done = t->done;
    void *userdata = t->userdata;
    vmm_talk_free(t);
    if (done)
        done(userdata, err);
}

static const char *what(const struct vmm_talk *t, char text[FC_PATH_MAX + 16]) {
    const struct fc_request *rq = &t->requests[t->at];
    snprintf(text, FC_PATH_MAX + 16, "%s %s", rq->method, rq->path);
    return text;
}

static void finish_lost(struct vmm_talk *t, const char *how) {
    char text[FC_PATH_MAX + 16];
    struct err err = {0};
    err_set(&err, ECONNRESET, "vmm.lost", "Firecracker %s at %s", how, what(t, text));
    err_hint(&err, "its own log, vmm.log in the VM's folder or evidence, says more");
    finish(t, &err);
}

static void on_deadline(void *userdata) {
    struct vmm_talk *t = userdata;
    char text[FC_PATH_MAX + 16];
    struct err err = {0};
    if (t->fd < 0)
        err_set(&err, ETIMEDOUT, "vmm.timeout", "Firecracker did not open its API socket within %d s",
                t->timeout_ms / 1000);
    else
        err_set(&err, ETIMEDOUT, "vmm.timeout", "Firecracker did not answer %s within %d s", what(t, text),
                t->timeout_ms / 1000);
    finish(t, &err);
}

/* ---- what Firecracker says ---- */

/* Reads the header fields. Return: 0 with the body's length, or -EPROTO. */
static int parse_fields(const char *at, const char *end, size_t *ret_body_len) {
    size_t body_len = 0;
    while (at < end) {
        const char *line_end = memmem(at, (size_t)(end - at), "\r\n", 2);
        size_t len = (size_t)((line_end ? line_end : end) - at);
        char line[128], *value;
        snprintf(line, sizeof line, "%.*s", (int)(len < sizeof line ? len : sizeof line - 1), at);
        at += len + 2;
        value = strchr(line, ':');
        if (!value)
            return -EPROTO;
        *value++ = '\0';
        value += strspn(value, " \t");
        value[strcspn(value, " \t")] = '\0';
        uint64_t number;
        if (strcasecmp(line, "Transfer-Encoding") == 0)
            return -EPROTO;
        if (strcasecmp(line, "Content-Length") != 0)
            continue;
        if (str_to_u64(value, 0, ANSWER_MAX, &number) < 0)
            return -EPROTO;
        body_len = number;
    }
    *ret_body_len = body_len;
    return 0;
}

int fc_answer_parse(const char *data, size_t len, int *ret_status, size_t *ret_body, size_t *ret_body_len) {
    static const char version[] = "HTTP/1.1 ";
    size_t version_len = sizeof version - 1, body_len;
    if (memcmp(data, version, len < version_len ? len : version_len) != 0)
        return -EPROTO;
    const char *end = memmem(data, len, "\r\n\r\n", 4);
    if (!end)
        return 0;
    const char *line_end = memmem(data, len, "\r\n", 2);
    char digits[4] = {0};
    uint64_t status;
    if ((size_t)(line_end - data) < version_len + 3)
        return -EPROTO;
    memcpy(digits, data + version_len, 3);
    if (str_to_u64(digits, 100, 599, &status) < 0)
        return -EPROTO;
    int r = line_end < end ? parse_fields(line_end + 2, end, &body_len) : (body_len = 0, 0);
    if (r < 0)
        return r;
    /* RFC 9112 6.3: these have none, whatever a field says. */
    if (status == 204 || status == 304 || status < 200)
        body_len = 0;
    size_t body = (size_t)(end + 4 - data);
    if (len - body < body_len)
        return 0;
    *ret_status = (int)status;
    *ret_body = body;
    *ret_body_len = body_len;
    return 1;
}

/* What a person can do about the refusals that are known: their words are Firecracker's own. */
static void hint_at(const char *fault, const char *path, struct err *err) {
    if (strstr(fault, "/dev/kvm") && strstr(fault, "Permission denied"))
        err_hint(err, "a VM's process opens it by its group: chgrp kvm /dev/kvm && chmod 660 /dev/kvm");
    else if (strstr(fault, "KVM") || strstr(fault, "Kvm") || strstr(fault, "/dev/kvm"))
        err_hint(err, "this host has no usable KVM (see mctl status): set [vm] vmm = qemu");
    else if (str_starts(path, "/network-interfaces/") && strstr(fault, "busy"))
        err_hint(err, "another process holds the TAP: mctl doctor names it");
    else if (str_starts(path, "/network-interfaces/"))
        err_hint(err, "the TAP is missing, of another sort, or not this VM's: mctl doctor looks at it");
    else if (strstr(fault, "unknown field"))
        err_hint(err, "this Firecracker is older than what the controller speaks to: 1.10 or newer is needed");
    else
        err_hint(err, "its own log, vmm.log in the VM's folder or evidence, says more");
}

static void finish_refused(struct vmm_talk *t, int status, json_t *answer, const char *body, size_t len) {
    char text[FC_PATH_MAX + 16], fault[FAULT_MAX];
    struct err err = {0};
    const char *message = json_string_value(json_object_get(answer, "fault_message"));
    if (message) { /* some have several lines */
        str_copy(fault, sizeof fault, message);
        for (char *p = fault; (p = strchr(p, '\n'));)
            *p = ' ';
        char flat[FAULT_MAX];
        str_copy(flat, sizeof flat, fault);
        str_escape(flat, strlen(flat), fault, sizeof fault);
    } else
        str_escape(body, len, fault, sizeof fault);
    err_set(&err, EIO, "vmm.refused", "Firecracker refused %s (%d): %s", what(t, text), status,
            *fault ? fault : "without a word");
    hint_at(fault, t->requests[t->at].path, &err);
    json_decref(answer);
    finish(t, &err);
}

static void next_request(struct vmm_talk *t);

static void on_answer(struct vmm_talk *t, int status, const char *body, size_t len) {
    json_t *answer = len ? json_loadb(body, len, 0, NULL) : NULL;
    const struct fc_request *rq = &t->requests[t->at];
    if (status / 100 != 2 && !rq->may_refuse) {
        finish_refused(t, status, answer, body, len);
        return;
    }
    struct err err = {0};
    int r = rq->check && status / 100 == 2 ? rq->check(answer, &t->requests[t->at + 1], t->n - t->at - 1, &err) : 0;
    if (rq->ret_answer && status / 100 == 2)
        *rq->ret_answer = json_incref(answer);
    json_decref(answer);
    if (r < 0) {
        finish(t, &err);
        return;
    }
    t->at++;
    next_request(t);
}

static void on_readable(struct vmm_talk *t) {
    char chunk[4096];
    ssize_t n = recv(t->fd, chunk, sizeof chunk, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        finish_lost(t, "hung up");
        return;
    }
    strbuf_add(&t->in, chunk, (size_t)n);
    int status;
    size_t body, body_len;
    int r = t->in.truncated ? -EPROTO : fc_answer_parse(t->in.data, t->in.len, &status, &body, &body_len);
    /* One request is under way: what comes behind its answer was not asked for. */
    if (r < 0 || (r > 0 && t->in.len > body + body_len)) {
        finish_lost(t, "answered what is not understood");
    } else if (r > 0 && status < 200) {
        strbuf_free(&t->in);
        t->in = (struct strbuf){.max = ANSWER_MAX};
    } else if (r > 0) {
        struct strbuf in = t->in;
        t->in = (struct strbuf){.max = ANSWER_MAX};
        on_answer(t, status, in.data + body, body_len);
        strbuf_free(&in);
    }
}

/* ---- what it is told ---- */

/* Return: false when the conversation has ended. */
static bool flush_out(struct vmm_talk *t) {
    while (t->out_sent < t->out_len) {
        ssize_t n = send(t->fd, t->out + t->out_sent, t->out_len - t->out_sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0) {
            finish_lost(t, "hung up");
            return false;
        }
        t->out_sent += (size_t)n;
    }
    sd_event_source_set_io_events(t->io, t->out_sent < t->out_len ? EPOLLIN | EPOLLOUT : EPOLLIN);
    return true;
}

static int make_request(const struct fc_request *rq, char **ret_text, size_t *ret_len) {
    char *body = rq->body ? json_dumps(rq->body, JSON_COMPACT) : NULL;
    if (rq->body && !body)
        return -ENOMEM;
    char fields[96] = "";
    if (body)
        snprintf(fields, sizeof fields, "Content-Type: application/json\r\nContent-Length: %zu\r\n", strlen(body));
    int n = asprintf(ret_text, "%s %s HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n%s\r\n%s", rq->method,
                     rq->path, fields, body ? body : "");
    free(body);
    if (n < 0)
        return -ENOMEM;
    *ret_len = (size_t)n;
    return 0;
}

static void next_request(struct vmm_talk *t) {
    free(t->out);
    t->out = NULL;
    t->out_sent = 0;
    while (t->at < t->n && t->requests[t->at].skip)
        t->at++;
    if (t->at == t->n)
        finish(t, NULL);
    else if (make_request(&t->requests[t->at], &t->out, &t->out_len) < 0)
        finish_lost(t, "was not asked for lack of memory");
    else
        flush_out(t);
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
    struct vmm_talk *t = userdata;
    if ((revents & EPOLLOUT) && !flush_out(t))
        return 0;
    if (revents & (EPOLLIN | EPOLLHUP | EPOLLERR))
        on_readable(t);
    return 0;
}

/* ---- its socket ---- */

/* The folder belongs to the VMM's uid, so what is found there is asked who made it. */
static int dial(struct vmm_talk *t) {
    _cleanup_close_ int fd = -1;
    int r = fd_connect_unix(t->folder_fd, FC_SOCKET, t->uid, t->pid, &fd);
    if (r < 0)
        return r;
    r = sd_event_add_io(loop_event(t->loop), &t->io, fd, EPOLLIN, on_io, t);
    if (r >= 0)
        t->fd = fd_steal(&fd);
    return r < 0 ? r : 0;
}

static void on_again(void *userdata) {
    struct vmm_talk *t = userdata;
    struct err err = {0};
    int r = dial(t);
    bool early = r == -ENOENT || r == -ECONNREFUSED || r == -EAGAIN;
    if (r == 0) {
        next_request(t);
    } else if (early && t->wait_for_socket) {
        loop_timer_again(t->again, CONNECT_PAUSE_MS);
    } else if (r == -EPERM) {
        err_set(&err, EPERM, "vmm.foreign",
                "the API socket of Firecracker was made by somebody else than its process, %d of uid %u", (int)t->pid,
                t->uid);
        finish(t, &err);
    } else {
        err_sys(&err, -r, "vmm.unreachable", "connect to Firecracker's API socket");
        finish(t, &err);
    }
}

int fc_talk_start(struct loop *loop, const char *folder, uint32_t uid, pid_t pid, struct fc_request *requests, size_t n,
                  bool wait_for_socket, int timeout_ms, vmm_done_fn *done, void *userdata, struct vmm_talk **ret_talk,
                  struct err *err) {
    struct vmm_talk *t = n <= FC_REQUESTS_MAX ? calloc(1, sizeof *t) : NULL;
    if (!t) {
        fc_talk_drop(requests, n);
        return err_sys(err, n <= FC_REQUESTS_MAX ? ENOMEM : E2BIG, "vmm.start", "speak to Firecracker");
    }
    *t = (struct vmm_talk){.loop = loop,
                           .folder_fd = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC),
                           .fd = -1,
                           .uid = uid,
                           .pid = pid,
                           .wait_for_socket = wait_for_socket,
                           .timeout_ms = timeout_ms,
                           .n = n,
                           .in = {.max = ANSWER_MAX},
                           .done = done,
                           .userdata = userdata};
    memcpy(t->requests, requests, n * sizeof *requests);
    int r = t->folder_fd < 0 ? -errno : loop_timer_new(loop, timeout_ms, on_deadline, t, &t->deadline);
    if (r == 0)
        r = loop_timer_new(loop, 0, on_again, t, &t->again);
    if (r < 0) {
        vmm_talk_free(t);
        return err_sys(err, -r, "vmm.unreachable", "speak to Firecracker in %s", folder);
    }
    if (ret_talk)
        *ret_talk = t;
    return 0;
}

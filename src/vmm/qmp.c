#include "vmm/qmp.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"

#define QMP_REPLY_MAX 16384

/* A conversation of two requests: qmp_capabilities, then the command. QEMU greets first. */
struct qmp {
    sd_event_source *io;
    sd_event_source *exit; /* the loop ends first */
    struct loop_timer *deadline;
    int fd;
    int lines; /* answers seen */
    size_t len;
    char command[64];
    char buffer[QMP_REPLY_MAX];
};

static void qmp_free(struct qmp *q) {
    if (!q)
        return;
    sd_event_source_disable_unref(q->io);
    sd_event_source_disable_unref(q->exit);
    loop_timer_free(q->deadline);
    fd_close(&q->fd);
    free(q);
}

static bool say(struct qmp *q, const char *command) {
    char line[128];
    int n = snprintf(line, sizeof line, "{\"execute\":\"%s\"}\n", command);
    return send(q->fd, line, (size_t)n, MSG_NOSIGNAL) == n;
}

/* Return: false when the conversation is over. Events come between the answers and are passed over. */
static bool on_line(struct qmp *q, const char *line) {
    if (strstr(line, "\"event\""))
        return true;
    switch (q->lines++) {
    case 0:
        return say(q, "qmp_capabilities");
    case 1:
        return say(q, q->command);
    default:
        return false;
    }
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
    struct qmp *q = userdata;
    ssize_t n = recv(fd, q->buffer + q->len, sizeof q->buffer - 1 - q->len, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    bool more = n > 0;
    if (more) {
        q->len += (size_t)n;
        q->buffer[q->len] = '\0';
        char *line = q->buffer, *end;
        while (more && (end = strchr(line, '\n'))) {
            *end = '\0';
            more = on_line(q, line);
            line = end + 1;
        }
        q->len = (size_t)(q->buffer + q->len - line);
        memmove(q->buffer, line, q->len);
    }
    if (!more || q->len == sizeof q->buffer - 1)
        qmp_free(q);
    return 0;
}

static int on_exit_loop(sd_event_source *source, void *userdata) {
    qmp_free(userdata);
    return 0;
}

static void on_deadline(void *userdata) {
    qmp_free(userdata);
}

void qmp_send(struct loop *loop, const char *folder, const char *command, int timeout_ms) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    /* A unix socket's path holds 107 bytes only: the folder is entered through its descriptor. */
    _cleanup_close_ int dir = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    snprintf(addr.sun_path, sizeof addr.sun_path, "/proc/self/fd/%d/" QMP_SOCKET, dir);
    struct qmp *q = calloc(1, sizeof *q);
    if (!q)
        return;
    q->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    str_copy(q->command, sizeof q->command, command);
    if (q->fd < 0 || connect(q->fd, (struct sockaddr *)&addr, sizeof addr) < 0 ||
        loop_timer_new(loop, timeout_ms, on_deadline, q, &q->deadline) < 0 ||
        sd_event_add_io(loop_event(loop), &q->io, q->fd, EPOLLIN, on_io, q) < 0 ||
        sd_event_add_exit(loop_event(loop), &q->exit, on_exit_loop, q) < 0)
        qmp_free(q);
}

#include "vmm/qmp.h"

#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"

#define LINE_MAX_BYTES (64U << 10)
#define AGAIN_MS 1000

struct vmm_watch {
    struct loop *loop;
    vmm_news_fn *news;
    void *userdata;
    char folder[512];
    int fd; /* -1: not connected */
    sd_event_source *io;
    struct loop_timer *again;
    struct strbuf in;
    bool ready;            /* negotiated: commands are taken */
    unsigned pending;      /* bits of enum qmp_command */
    bool no_space;         /* what the last error of a disk that stopped the machine was */
    char error_words[160]; /* and in words; empty: none since it last ran */
    bool in_use, is_freed; /* a call into the owner's function is under way: freed after it */
};

static const char *const command_names[] = {[QMP_CONT] = "cont", [QMP_POWERDOWN] = "system_powerdown"};

static void disconnect(struct vmm_watch *w) {
    sd_event_source_disable_unref(w->io);
    w->io = NULL;
    fd_close(&w->fd);
    strbuf_free(&w->in);
    w->in = (struct strbuf){.max = LINE_MAX_BYTES};
    w->ready = false;
    loop_timer_again(w->again, AGAIN_MS);
}

void vmm_watch_free(struct vmm_watch *w) {
    if (!w)
        return;
    w->is_freed = true;
    if (w->in_use)
        return;
    sd_event_source_disable_unref(w->io);
    loop_timer_free(w->again);
    fd_close(&w->fd);
    strbuf_free(&w->in);
    free(w);
}

/* The socket takes a few hundred bytes at once; one that does not is of a QEMU that hangs. */
static void say(struct vmm_watch *w, const char *command, const char *id) {
    char line[128];
    int n = snprintf(line, sizeof line, "{\"execute\":\"%s\",\"id\":\"%s\"}\n", command, id);
    if (send(w->fd, line, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT) != n)
        disconnect(w);
}

static void send_pending(struct vmm_watch *w) {
    for (unsigned i = 0; w->ready && i < sizeof command_names / sizeof *command_names; i++)
        if (w->pending & 1U << i) {
            w->pending &= ~(1U << i);
            say(w, command_names[i], "command");
        }
}

void qmp_command(struct vmm_watch *watch, enum qmp_command command) {
    watch->pending |= 1U << command;
    send_pending(watch);
}

/* ---- what QEMU says ---- */

/* {"device":"","node-name":"disk","operation":"write","action":"stop","nospace":true,"reason":"No space left on device"} */
static void on_disk_error(struct vmm_watch *w, json_t *data) {
    const char *action = "", *operation = "", *reason = "";
    int no_space = 0;
    char words[sizeof w->error_words];
    json_unpack(data, "{s?s, s?s, s?s, s?b}", "action", &action, "operation", &operation, "reason", &reason, "nospace",
                &no_space);
    snprintf(words, sizeof words, "%.10s: %.100s", operation, reason);
    str_escape(words, strlen(words), w->error_words, sizeof w->error_words);
    w->no_space = no_space;
    if (strcmp(action, "report") == 0) {
        str_copy(words, sizeof words, w->error_words);
        w->error_words[0] = '\0';
        w->news(w->userdata, VMM_NEWS_DISK_ERROR, words);
    }
}

static void on_event(struct vmm_watch *w, const char *event, json_t *data) {
    if (strcmp(event, "BLOCK_IO_ERROR") == 0) {
        on_disk_error(w, data);
    } else if (strcmp(event, "STOP") == 0) {
        say(w, "query-status", "status");
    } else if (strcmp(event, "RESUME") == 0) {
        w->error_words[0] = '\0';
        w->news(w->userdata, VMM_NEWS_RUNS, "");
    } else if (strcmp(event, "GUEST_PANICKED") == 0) {
        w->news(w->userdata, VMM_NEWS_PANIC, "");
    }
}

/* {"status":"io-error","running":false,…}. Why a machine stands still that stopped before we came is not told: with
 * werror=enospc, QEMU's default, "io-error" says that there was no space. */
static void on_status(struct vmm_watch *w, json_t *status) {
    const char *name = "";
    int running = 1;
    char words[220], shown[40];
    json_unpack(status, "{s?s, s?b}", "status", &name, "running", &running);
    if (running) {
        w->news(w->userdata, VMM_NEWS_RUNS, "");
        return;
    }
    str_escape(name, strnlen(name, 30), shown, sizeof shown);
    snprintf(words, sizeof words, "%s%s%s", shown, *w->error_words ? ", " : "", w->error_words);
    bool is_disk = strcmp(name, "io-error") == 0 && (w->no_space || !*w->error_words);
    w->news(w->userdata, is_disk ? VMM_NEWS_NO_SPACE : VMM_NEWS_STANDS, words);
}

static void on_answer(struct vmm_watch *w, const char *id, json_t *ok) {
    if (strcmp(id, "greeting") == 0 && ok) {
        w->ready = true;
        say(w, "query-status", "status");
        send_pending(w);
    } else if (strcmp(id, "status") == 0 && json_is_object(ok)) {
        on_status(w, ok);
    }
}

static void on_line(struct vmm_watch *w, const char *line, size_t len) {
    json_t *message = json_loadb(line, len, JSON_REJECT_DUPLICATES, NULL);
    const char *event = json_string_value(json_object_get(message, "event"));
    const char *id = json_string_value(json_object_get(message, "id"));
    if (!message)
        disconnect(w);
    else if (json_object_get(message, "QMP"))
        say(w, "qmp_capabilities", "greeting");
    else if (event)
        on_event(w, event, json_object_get(message, "data"));
    else if (id)
        on_answer(w, id, json_object_get(message, "return"));
    json_decref(message);
}

static void take_lines(struct vmm_watch *w) {
    char *end;
    while (!w->is_freed && w->fd >= 0 && w->in.len > 0 && (end = memchr(w->in.data, '\n', w->in.len))) {
        size_t used = (size_t)(end + 1 - w->in.data);
        _cleanup_free_ char *line = strndup(w->in.data, used - 1);
        memmove(w->in.data, end + 1, w->in.len - used);
        w->in.len -= used;
        if (line)
            on_line(w, line, strlen(line));
    }
    if (!w->is_freed && w->in.len == 0) { /* there are many VMs, and they are silent mostly */
        strbuf_free(&w->in);
        w->in = (struct strbuf){.max = LINE_MAX_BYTES};
    }
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
    struct vmm_watch *w = userdata;
    char chunk[4096];
    ssize_t n = recv(fd, chunk, sizeof chunk, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n > 0)
        strbuf_add(&w->in, chunk, (size_t)n);
    if (n <= 0 || w->in.truncated) {
        disconnect(w);
        return 0;
    }
    w->in_use = true;
    take_lines(w);
    w->in_use = false;
    if (w->is_freed)
        vmm_watch_free(w);
    return 0;
}

/* ---- its socket ---- */

static int dial(struct vmm_watch *w) {
    _cleanup_close_ int dir = open(w->folder, O_PATH | O_DIRECTORY | O_CLOEXEC), fd = -1;
    int r = dir < 0 ? -errno : fd_connect_unix(dir, QMP_SOCKET, 0, 0, &fd); /* a daemon has made it, as root */
    if (r < 0)
        return r;
    r = sd_event_add_io(loop_event(w->loop), &w->io, fd, EPOLLIN, on_io, w);
    if (r < 0)
        return r;
    /* A guest that makes its VMM talk comes after everything else. */
    sd_event_source_set_priority(w->io, SD_EVENT_PRIORITY_NORMAL + 10);
    w->fd = fd_steal(&fd);
    return 0;
}

static void on_again(void *userdata) {
    struct vmm_watch *w = userdata;
    if (w->fd < 0 && dial(w) < 0)
        loop_timer_again(w->again, AGAIN_MS);
}

int qmp_watch(struct loop *loop, const char *folder, vmm_news_fn *news, void *userdata, struct vmm_watch **ret_watch,
              struct err *err) {
    struct vmm_watch *w = calloc(1, sizeof *w);
    if (!w)
        return err_sys(err, ENOMEM, "vmm.watch", "listen to QEMU");
    *w = (struct vmm_watch){.loop = loop, .news = news, .userdata = userdata, .fd = -1, .in = {.max = LINE_MAX_BYTES}};
    int r =
        str_copy(w->folder, sizeof w->folder, folder) ? loop_timer_new(loop, 0, on_again, w, &w->again) : -ENAMETOOLONG;
    if (r < 0) {
        vmm_watch_free(w);
        return err_sys(err, -r, "vmm.watch", "listen to QEMU in %s", folder);
    }
    *ret_watch = w;
    return 0;
}

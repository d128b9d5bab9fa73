/* mctl vm exec: runs a program in a guest, through its agent. The program's streams are ours, and so is its exit
 * status; on a terminal it gets one of its own (-t: in any case, -T: in none). */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include "agent/outbox.h"
#include "base/fd.h"
#include "base/str.h"
#include "cli/cli.h"

#define HEAD_MAX 32768
#define JSON_OUTPUT_MAX ((size_t)16 * 1024 * 1024)
#define SIGNAL_STATUS 128
#define NOT_FOUND_STATUS 127 /* as a shell has it */

struct session {
    struct cli *cli;
    int fd, signal_fd;
    bool has_pty, raw;
    struct termios was;
    size_t window; /* bytes of standard input that the guest takes */
    bool input_ended;
    struct agent_decoder in;
    struct agent_outbox out;
    struct strbuf kept[AGENT_STREAMS]; /* with --json */
    int status;                        /* what mctl ends with; -1: it runs */
    int signal_number;                 /* that ended the program; 0: none did */
    bool has_run;                      /* the program itself has ended */
};

/* ---- the connection ---- */

static int dial(struct cli *cli, int *ret_fd, struct err *err) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    if (!str_copy(addr.sun_path, sizeof addr.sun_path, cli->socket))
        return err_set(err, ENAMETOOLONG, "http.bad-request", "the path %s is too long for a socket", cli->socket);
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof addr) < 0)
        return err_sys(err, errno, "http.unreachable", "connect to %s", cli->socket);
    *ret_fd = fd_steal(&fd);
    return 0;
}

/* Reads until the end of an answer's head, and of its body where it is no upgrade. Return: the HTTP status, or -errno. */
static int read_answer(int fd, char head[HEAD_MAX], char **ret_body, size_t *ret_body_len) {
    size_t len = 0;
    char *end = NULL;
    int status = 0;
    long wanted = 0;
    while (len < HEAD_MAX - 1) {
        ssize_t n = read(fd, head + len, HEAD_MAX - 1 - len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        len += (size_t)n;
        head[len] = '\0';
        if (!end && (end = strstr(head, "\r\n\r\n"))) {
            end += 4;
            const char *field = strcasestr(head, "\r\nContent-Length:");
            wanted = field && field < end ? strtol(field + 17, NULL, 10) : 0;
            if (sscanf(head, "HTTP/1.%*d %d", &status) != 1)
                return -EPROTO;
        }
        if (end && (status == 101 || head + len - end >= wanted))
            break;
    }
    if (!end)
        return -EPROTO;
    *ret_body = end;
    *ret_body_len = (size_t)(head + len - end);
    return status;
}

/* Return: CLI_DONE with an upgraded connection, or the exit status after the error was shown. */
static int open_session(struct session *s, const char *id) {
    struct err err = {0};
    static char head[HEAD_MAX];
    char *body = NULL;
    size_t body_len = 0;
    _cleanup_free_ char *path = cli_path("/api/vms/", id, "/exec");
    _cleanup_free_ char *request = NULL;
    if (dial(s->cli, &s->fd, &err) < 0)
        return cli_unreachable(s->cli, &err);
    if (asprintf(&request,
                 "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
                 "Upgrade: master-controller-exec\r\n\r\n",
                 path) < 0)
        return CLI_FAILED;
    int status = fd_write_all(s->fd, request, strlen(request));
    if (status == 0)
        status = read_answer(s->fd, head, &body, &body_len);
    if (status == 101 && agent_decoder_push(&s->in, body, body_len) == 0)
        return CLI_DONE;
    if (status > 0 && status != 101)
        return cli_problem(s->cli, status, body);
    err_set(&err, EPROTO, "daemon.answer", "the daemon's answer is not what was expected");
    return cli_error(s->cli, CLI_FAILED, &err);
}

/* ---- the terminal ---- */

static void terminal_raw(struct session *s) {
    struct termios raw;
    if (!s->has_pty || tcgetattr(STDIN_FILENO, &s->was) < 0)
        return;
    raw = s->was;
    cfmakeraw(&raw);
    s->raw = tcsetattr(STDIN_FILENO, TCSADRAIN, &raw) == 0;
}

static void terminal_restore(struct session *s) {
    if (s->raw)
        tcsetattr(STDIN_FILENO, TCSADRAIN, &s->was);
    s->raw = false;
}

static void send_json(struct session *s, json_t *message) {
    agent_outbox_json(&s->out, 1, 1, message);
}

static void window_size(int *ret_rows, int *ret_columns) {
    struct winsize size = {0};
    ioctl(STDIN_FILENO, TIOCGWINSZ, &size);
    *ret_rows = size.ws_row > 0 ? size.ws_row : 24;
    *ret_columns = size.ws_col > 0 ? size.ws_col : 80;
}

static void open_signals(struct session *s) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGQUIT);
    sigaddset(&set, SIGWINCH);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    s->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void on_signal(struct session *s) {
    struct signalfd_siginfo info;
    int rows, columns;
    if (read(s->signal_fd, &info, sizeof info) != sizeof info)
        return;
    if (info.ssi_signo != SIGWINCH) {
        send_json(s, json_pack("{s:i}", "signal", (int)info.ssi_signo));
    } else if (s->has_pty) {
        window_size(&rows, &columns);
        send_json(s, json_pack("{s:[i,i]}", "resize", rows, columns));
    }
}

/* ---- streams ---- */

static void on_output(struct session *s, const struct agent_frame *frame) {
    if (frame->stream == AGENT_STDIN || frame->len == 0)
        return;
    if (s->cli->json)
        strbuf_add(&s->kept[frame->stream], (const char *)frame->payload, frame->len);
    else if (fd_write_all(frame->stream == AGENT_STDERR ? STDERR_FILENO : STDOUT_FILENO, frame->payload, frame->len) <
             0)
        send_json(s, json_pack("{s:i}", "signal", SIGPIPE)); /* as if the program itself wrote there */
    agent_outbox_credit(&s->out, 1, 1, frame->stream, (uint32_t)frame->len);
}

static void on_end(struct session *s, json_t *message) {
    struct err err = {0};
    const char *code = "", *detail = "", *hint = "";
    terminal_restore(s);
    if (json_unpack(message, "{s:{s:i}}", "ok", "signal", &s->signal_number) == 0)
        s->status = SIGNAL_STATUS + s->signal_number;
    else
        json_unpack(message, "{s:{s:i}}", "ok", "status", &s->status);
    s->has_run = s->status >= 0;
    if (s->has_run)
        return;
    if (json_unpack(message, "{s:{s:s, s:s, s?s}}", "error", "code", &code, "detail", &detail, "hint", &hint) == 0) {
        err_set(&err, EIO, code, "%s", detail);
        err_hint(&err, "%s", hint);
        s->status = cli_error(s->cli, CLI_FAILED, &err);
        if (strcmp(code, "guest.exec.failed") == 0)
            s->status = NOT_FOUND_STATUS;
    }
}

static void on_frame(struct session *s, const struct agent_frame *frame) {
    json_t *message;
    switch (frame->kind) {
    case AGENT_FRAME_DATA:
        on_output(s, frame);
        return;
    case AGENT_FRAME_CREDIT:
        s->window += frame->stream == AGENT_STDIN ? agent_frame_credit(frame) : 0;
        return;
    case AGENT_FRAME_JSON:
        message = agent_frame_json(frame);
        if (message)
            on_end(s, message);
        json_decref(message);
        return;
    }
}

static void take_frames(struct session *s) {
    struct agent_frame frame;
    while (s->status < 0 && agent_decoder_next(&s->in, &frame) == 1)
        on_frame(s, &frame);
}

static void read_input(struct session *s) {
    uint8_t buffer[AGENT_DATA_MAX];
    ssize_t n = read(STDIN_FILENO, buffer, s->window < sizeof buffer ? s->window : sizeof buffer);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    struct agent_frame frame = {
        .kind = AGENT_FRAME_DATA, .session = 1, .id = 1, .payload = buffer, .len = n > 0 ? (size_t)n : 0};
    agent_outbox_frame(&s->out, &frame);
    s->input_ended = n <= 0;
    s->window -= n > 0 ? (size_t)n : 0;
}

/* Return: 0, or -errno when the daemon is gone. */
static int turn(struct session *s) {
    uint8_t buffer[65536];
    bool sends = agent_outbox_waiting(&s->out) > 0;
    struct pollfd fds[] = {{.fd = s->fd, .events = (short)(POLLIN | (sends ? POLLOUT : 0))},
                           {.fd = s->signal_fd, .events = POLLIN},
                           {.fd = s->input_ended || s->window == 0 ? -1 : STDIN_FILENO, .events = POLLIN}};
    if (poll(fds, 3, -1) < 0)
        return errno == EINTR ? 0 : -errno;
    if (fds[1].revents)
        on_signal(s);
    if (fds[2].revents)
        read_input(s);
    if (fds[0].revents & (POLLIN | POLLHUP | POLLERR)) {
        ssize_t n = recv(s->fd, buffer, sizeof buffer, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            return -ECONNRESET;
        int r = n > 0 ? agent_decoder_push(&s->in, buffer, (size_t)n) : 0;
        if (r < 0)
            return r;
        take_frames(s);
    }
    if (agent_outbox_flush(&s->out, s->fd) < 0)
        agent_outbox_clear(&s->out); /* the daemon has said its last word already: it is still to be read */
    return 0;
}

static json_t *request_of(struct session *s, const char *user, int argc, char **argv) {
    json_t *list = json_array();
    int rows, columns;
    for (int i = 0; i < argc; i++)
        json_array_append_new(list, json_string(argv[i]));
    json_t *request = json_pack("{s:o, s:b}", "argv", list, "stdin", 1);
    if (request && user)
        json_object_set_new(request, "user", json_string(user));
    if (request && s->has_pty) {
        const char *term = getenv("TERM");
        window_size(&rows, &columns);
        json_object_set_new(request, "pty",
                            json_pack("{s:i, s:i, s:s}", "rows", rows, "columns", columns, "term",
                                      term && str_is_utf8(term, strlen(term)) ? term : "linux"));
    }
    return request;
}

/* Text that may be anything; what is not UTF-8 is shown as \xNN. */
static json_t *kept_json(const struct strbuf *kept) {
    json_t *text = json_stringn(kept->len > 0 ? kept->data : "", kept->len);
    if (text)
        return text;
    char *escaped = malloc(4 * kept->len + 1);
    text = escaped ? json_string(str_escape(kept->data, kept->len, escaped, 4 * kept->len + 1)) : NULL;
    free(escaped);
    return text ? text : json_null();
}

static void print_json(struct session *s) {
    int number = s->signal_number;
    json_t *document = json_pack(
        "{s:{s:o, s:o, s:o, s:o, s:b}}", "exec", "status", number ? json_null() : json_integer(s->status), "signal",
        number ? json_integer(number) : json_null(), "stdout", kept_json(&s->kept[AGENT_STDOUT]), "stderr",
        kept_json(&s->kept[AGENT_STDERR]), "truncated", s->kept[1].truncated || s->kept[2].truncated);
    cli_print_json(document);
    json_decref(document);
}

static int run(struct session *s, const char *user, int argc, char **argv) {
    struct err err = {0};
    int r = 0;
    open_signals(s);
    send_json(s, request_of(s, user, argc, argv));
    if (agent_outbox_waiting(&s->out) == 0)
        return cli_usage(s->cli, "the command is too long, or is not UTF-8");
    terminal_raw(s);
    r = agent_outbox_flush(&s->out, s->fd);
    take_frames(s);
    while (r == 0 && s->status < 0)
        r = turn(s);
    terminal_restore(s);
    if (s->has_run && s->cli->json)
        print_json(s);
    if (s->status >= 0)
        return s->status;
    err_set(&err, ECONNRESET, "exec.lost", "the connection to the daemon was lost; the program was ended");
    return cli_error(s->cli, CLI_FAILED, &err);
}

int verb_vm_exec(struct cli *cli, int argc, char **argv) {
    static const struct option longs[] = {{"user", required_argument, NULL, 'u'},
                                          {"tty", no_argument, NULL, 't'},
                                          {"no-tty", no_argument, NULL, 'T'},
                                          {0}};
    const char *user = NULL;
    bool has_pty = !cli->json && isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "+tT", longs, NULL)) != -1;) {
        if (c == 'u')
            user = optarg;
        else if (c == 't' || c == 'T')
            has_pty = c == 't';
        else
            return cli_usage(cli, "mctl vm exec does not know %s", argv[optind - 1]);
    }
    const char *id = argv[optind];
    int at = optind + 1;
    if (at < argc && strcmp(argv[at], "--") == 0)
        at++;
    else if (at < argc && argv[at][0] == '-')
        return cli_usage(cli, "the options of mctl vm exec come before the ID: mctl vm exec %s ID -- CMD", argv[at]);
    if (!id || at >= argc)
        return cli_usage(cli, "mctl vm exec needs an ID and a command: mctl vm exec ID -- CMD");
    struct session s = {.cli = cli,
                        .fd = -1,
                        .signal_fd = -1,
                        .window = AGENT_WINDOW,
                        .status = -1,
                        .has_pty = has_pty,
                        .out = {.max = (size_t)4 * 1024 * 1024},
                        .kept = {{0}, {.max = JSON_OUTPUT_MAX}, {.max = JSON_OUTPUT_MAX}}};
    int status = open_session(&s, id);
    bool opened = status == CLI_DONE;
    if (opened)
        status = run(&s, user, argc - at, argv + at);
    fd_close(&s.fd);
    fd_close(&s.signal_fd);
    agent_decoder_free(&s.in);
    agent_outbox_clear(&s.out);
    for (int i = 0; i < AGENT_STREAMS; i++)
        strbuf_free(&s.kept[i]);
    return status;
}

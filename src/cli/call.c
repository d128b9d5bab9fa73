#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "cli/cli.h"
#include "http/client.h"

#define CALL_TIMEOUT_MS 660000 /* a stop may take as long as [vm] stop_timeout, at most 10 minutes */

static int show(struct cli *cli, int status, const char *code, const char *title, const char *detail,
                const char *hint) {
    if (cli->json) {
        char safe_detail[4 * sizeof((struct err *)0)->detail], safe_hint[4 * sizeof((struct err *)0)->hint];
        str_escape(detail, strlen(detail), safe_detail, sizeof safe_detail);
        str_escape(hint, strlen(hint), safe_hint, sizeof safe_hint);
        json_t *error = json_pack("{s:{s:s, s:s, s:s, s:s}}", "error", "code", code, "title", title, "detail",
                                  safe_detail, "hint", safe_hint);
        cli_print_json(error);
        json_decref(error);
        return status;
    }
    fprintf(stderr, "mctl: ");
    cli_print_safe(stderr, detail);
    fprintf(stderr, "\n");
    if (*hint) {
        fprintf(stderr, "  ");
        cli_print_safe(stderr, hint);
        fprintf(stderr, "\n");
    }
    return status;
}

int cli_error(struct cli *cli, int status, const struct err *err) {
    static const char *const titles[] = {"Done", "Failed", "Usage", "No daemon", "Not found", "Refused"};
    return show(cli, status, err->code, titles[status], err->detail, err->hint);
}

int cli_usage(struct cli *cli, const char *fmt, ...) {
    struct err err = {.errnum = EINVAL, .code = "usage", .hint = "mctl --help shows all verbs"};
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err.detail, sizeof err.detail, fmt, ap);
    va_end(ap);
    return cli_error(cli, CLI_USAGE, &err);
}

static int exit_status(int http_status) {
    switch (http_status) {
    case 400:
    case 413:
        return CLI_USAGE;
    case 404:
        return CLI_NOT_FOUND;
    case 401:
    case 403:
    case 409:
    case 507:
    case 429:
        return CLI_REFUSED;
    default:
        return CLI_FAILED;
    }
}

int cli_problem(struct cli *cli, int http_status, const char *body) {
    const char *code = "http", *title = "", *detail = "", *hint = "";
    char fallback[80];
    json_t *problem = json_loads(body, 0, NULL);
    json_unpack(problem, "{s?s, s?s, s?s, s?s}", "code", &code, "title", &title, "detail", &detail, "hint", &hint);
    if (!*detail) {
        snprintf(fallback, sizeof fallback, "the daemon answered with HTTP status %d", http_status);
        detail = fallback;
    }
    int status = show(cli, exit_status(http_status), code, title, detail, hint);
    json_decref(problem);
    return status;
}

int cli_unreachable(struct cli *cli, struct err *err) {
    bool gone = err->errnum == ENOENT || err->errnum == ECONNREFUSED;
    if (gone) {
        err_set(err, ENOENT, "daemon.none", "no master-controller answers at %s", cli->socket);
        err_hint(err, "start it: systemctl start master-controller, or ./run; another socket: --socket PATH");
    } else if (err->errnum == EACCES) {
        err_set(err, EACCES, "daemon.permission", "you may not use %s", cli->socket);
        err_hint(err, "use sudo, or join the group of [api] socket_group");
        return cli_error(cli, CLI_REFUSED, err);
    }
    return cli_error(cli, gone ? CLI_NO_DAEMON : CLI_FAILED, err);
}

int cli_call(struct cli *cli, const char *method, const char *path, json_t *body, json_t **ret_answer) {
    char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    json_decref(body);
    struct http_client_request request = {.unix_socket = cli->socket,
                                          .path = path,
                                          .method = method,
                                          .body = text,
                                          .body_len = text ? strlen(text) : 0,
                                          .timeout_ms = CALL_TIMEOUT_MS,
                                          .max_response_bytes = 64U << 20};
    _cleanup_http_response_ struct http_client_response response = {0};
    struct err err = {0};
    int r = http_client_request(&request, &response, &err);
    free(text);
    if (r < 0)
        return cli_unreachable(cli, &err);
    if (response.status < 200 || response.status > 299)
        return cli_problem(cli, response.status, response.body);
    json_t *answer = json_loadb(response.body, response.len, 0, NULL);
    if (!answer) {
        err_set(&err, EPROTO, "daemon.answer", "the daemon's answer is not JSON");
        return cli_error(cli, CLI_FAILED, &err);
    }
    *ret_answer = answer;
    return CLI_DONE;
}

void cli_print_json(json_t *document) {
    json_dumpf(document, stdout, JSON_INDENT(2));
    printf("\n");
}

const char *cli_text(json_t *object, const char *name) {
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : "";
}

void cli_print_safe(FILE *to, const char *text) {
    char out[1024];
    for (size_t len = strlen(text), at = 0; at < len;) {
        /* A piece never cuts a character that the next one would complete: 200 bytes, then back to a boundary. */
        size_t n = len - at < 200 ? len - at : 200;
        while (n > 1 && at + n < len && ((unsigned char)text[at + n] & 0xc0) == 0x80)
            n--;
        fputs(str_escape(text + at, n, out, sizeof out), to);
        at += n;
    }
}

char *cli_path(const char *before, const char *part, const char *after) {
    struct strbuf path = {.max = 16384};
    strbuf_add(&path, before, strlen(before));
    for (const char *p = part; *p; p++) {
        if (isalnum((unsigned char)*p) || strchr("-._~", *p))
            strbuf_add(&path, p, 1);
        else
            strbuf_addf(&path, "%%%02X", (unsigned char)*p);
    }
    strbuf_add(&path, after, strlen(after));
    return path.data;
}

void cli_progress(struct cli *cli, const char *fmt, ...) {
    if (cli->quiet || cli->json || !isatty(STDERR_FILENO))
        return;
    char line[300], safe[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\r\x1b[K%s", str_escape(line, strlen(line), safe, sizeof safe));
    fflush(stderr);
}

/* Programs for the host: `mctl vm exec`, and a page for the desktop's browser. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

#define ARGS_MAX 256
#define URL_MAX 4096

static void on_ended(struct job *job) {
    int status = job->wait_status;
    if (job->wait_fd >= 0)
        browser_drain(job);
    if (WIFSIGNALED(status))
        job_answer(job, json_pack("{s:i}", "signal", WTERMSIG(status)));
    else
        job_answer(job, json_pack("{s:i}", "status", WEXITSTATUS(status)));
}

static int read_pty(json_t *pty, struct child_spec *spec, struct err *err) {
    if (!pty)
        return 0;
    spec->has_pty = spec->has_stdin = true;
    if (json_unpack(pty, "{s:i, s:i, s?s !}", "rows", &spec->rows, "columns", &spec->columns, "term", &spec->term) <
            0 ||
        spec->rows < 1 || spec->rows > 65535 || spec->columns < 1 || spec->columns > 65535)
        return err_set(err, EINVAL, "bad-request", "pty is {\"rows\",\"columns\",\"term\"}");
    return 0;
}

static int read_argv(json_t *list, const char **argv, struct err *err) {
    size_t i;
    json_t *item;
    if (!json_is_array(list) || json_array_size(list) < 1 || json_array_size(list) >= ARGS_MAX)
        return err_set(err, EINVAL, "bad-request", "argv is an array of 1 to %d texts", ARGS_MAX - 1);
    json_array_foreach(list, i, item) {
        argv[i] = json_string_value(item);
        if (!argv[i])
            return err_set(err, EINVAL, "bad-request", "argv is an array of texts");
    }
    argv[json_array_size(list)] = NULL;
    return 0;
}

/* {"op":"exec","argv":["/bin/sh","-c","…"],"env":{},"cwd":"/","user":"desktop","stdin":true,
 *  "pty":{"rows":24,"columns":80,"term":"xterm"},"browser":true}. browser: see browser.c */
int op_exec(struct job *job, json_t *request, struct err *err) {
    const char *argv[ARGS_MAX];
    struct child_spec spec = {.argv = argv};
    json_t *list = NULL, *pty = NULL;
    json_t *own_env = NULL;
    int has_stdin = 0, has_browser = 0;
    int r = request_unpack(request, err, "{s:o, s?o, s?s, s?s, s?b, s?o, s?b}", "argv", &list, "env", &spec.env, "cwd",
                           &spec.cwd, "user", &spec.user, "stdin", &has_stdin, "pty", &pty, "browser", &has_browser);
    spec.has_stdin = has_stdin;
    if (r == 0 && spec.env && !json_is_object(spec.env))
        r = err_set(err, EINVAL, "bad-request", "env is an object of strings");
    if (r == 0)
        r = read_argv(list, argv, err);
    if (r == 0)
        r = read_pty(pty, &spec, err);
    if (r == 0 && has_browser) {
        own_env = spec.env ? json_copy(spec.env) : json_object();
        r = browser_prepare(job, spec.user, own_env, err);
        spec.env = own_env;
    }
    job->on_done = on_ended;
    if (r == 0)
        r = child_start(job, &spec, err);
    json_decref(own_env);
    return r;
}

/* ---- the browser ---- */

/* https, of printable ASCII alone: what a browser itself would send. A log-in over http is none. */
static bool url_is_valid(const char *url) {
    if (!str_starts(url, "https://") || strlen(url) == strlen("https://") || strlen(url) > URL_MAX)
        return false;
    for (const char *p = url; *p; p++)
        if (*p <= ' ' || *p >= 0x7f)
            return false;
    return true;
}

static void on_opened(struct job *job) {
    struct err err = {0};
    int status = WIFEXITED(job->wait_status) ? WEXITSTATUS(job->wait_status) : 1;
    if (status == 0) {
        job_answer(job, json_object());
        return;
    }
    if (status == BROWSER_NOT_READY)
        err_set(&err, EAGAIN, "browser.not-ready",
                "there is no Chromium that takes a page yet: is chromium.service up?");
    else
        err_set(&err, EIO, "browser.failed", "Chromium did not take the page");
    job_fail(job, &err);
}

/* {"op":"browser.open","url":"https://…"}: see browser.c. */
int op_browser_open(struct job *job, json_t *request, struct err *err) {
    char self[256];
    const char *url;
    if (request_unpack(request, err, "{s:s}", "url", &url) < 0)
        return -EINVAL;
    if (!url_is_valid(url))
        return err_set(err, EINVAL, "bad-request", "url is not an https address of at most %d bytes", URL_MAX);
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0)
        return err_sys(err, errno, "exec.failed", "find the agent's own program");
    self[n] = '\0';
    const char *const argv[] = {self, BROWSER_OPEN, url, NULL};
    struct child_spec spec = {.argv = argv, .user = "desktop"};
    job->is_captured = true;
    job->on_done = on_opened;
    return child_start(job, &spec, err);
}

/* Programs for the host: `mctl vm exec`, and a page for the desktop's browser. */
#include <errno.h>
#include <signal.h>
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

/* A Chromium that meets none becomes the one that runs, with none of the flags of its unit: so one that does not run yet
 * is waited for. Its lock is a symbolic link to HOST-PID, and it is ready for others when its socket is there. */
static bool browser_runs(void) {
    static const char lock[] = "/home/desktop/.config/chromium/SingletonLock";
    static const char other[] = "/home/desktop/.config/chromium/SingletonSocket";
    char target[256];
    ssize_t n = readlink(lock, target, sizeof target - 1);
    if (n < 0)
        return false;
    target[n] = '\0';
    const char *pid = strrchr(target, '-');
    uint64_t number;
    return pid && str_to_u64(pid + 1, 1, INT32_MAX, &number) == 0 && kill((pid_t)number, 0) == 0 &&
           access(other, F_OK) == 0;
}

static void on_opened(struct job *job) {
    struct err err = {0};
    if (WIFEXITED(job->wait_status) && WEXITSTATUS(job->wait_status) == 0) {
        job_answer(job, json_object());
        return;
    }
    err_set(&err, EIO, "browser.failed", "Chromium did not take the page: is chromium.service up?");
    job_fail(job, &err);
}

/* {"op":"browser.open","url":"https://…"}: a second Chromium hands its page to the one that runs, and ends. */
int op_browser_open(struct job *job, json_t *request, struct err *err) {
    static const char *const programs[] = {"/usr/lib/chromium/chromium", "/usr/bin/chromium"};
    const char *url, *program = programs[0];
    if (request_unpack(request, err, "{s:s}", "url", &url) < 0)
        return -EINVAL;
    if (!url_is_valid(url))
        return err_set(err, EINVAL, "bad-request", "url is not an https address of at most %d bytes", URL_MAX);
    if (!browser_runs())
        return err_set(err, EAGAIN, "browser.not-ready", "there is no Chromium that takes a page yet");
    if (access(program, X_OK) < 0)
        program = programs[1];
    const char *const argv[] = {program, "--", url, NULL};
    json_t *env = json_pack("{s:s, s:s}", "DISPLAY", ":0", "DBUS_SESSION_BUS_ADDRESS", "disabled:");
    struct child_spec spec = {.argv = argv, .env = env, .user = "desktop"};
    job->is_captured = true;
    job->on_done = on_opened;
    int r = child_start(job, &spec, err);
    json_decref(env);
    return r;
}

/* Units of systemd: states, last lines, restart. systemctl and journalctl are asked, with argument vectors. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "agent.h"

#define UNITS_MAX 32
#define LINES_MAX 200

/* What systemd takes as a unit's name, and nothing that could be an option. Source: systemd.unit(5). */
static bool unit_name_is_valid(const char *name) {
    size_t len = strlen(name);
    if (len == 0 || len > 255 || name[0] == '-' || !strchr(name, '.'))
        return false;
    for (const char *p = name; *p; p++)
        if (!isalnum((unsigned char)*p) && !strchr(":_.\\@-", *p))
            return false;
    return true;
}

static int bad_name(struct err *err, const char *name) {
    return err_set(err, EINVAL, "bad-request", "%s is not a unit's name such as x11vnc.service", name);
}

static bool child_failed(struct job *job, const char *what) {
    struct err err = {0};
    if (WIFEXITED(job->wait_status) && WEXITSTATUS(job->wait_status) == 0)
        return false;
    while (job->capture.len > 0 && job->capture.data[job->capture.len - 1] == '\n')
        job->capture.data[--job->capture.len] = '\0';
    err_set(&err, EIO, "unit.failed", "%s: %.500s", what,
            job->capture.len > 0 ? job->capture.data : "it failed without a word");
    job_fail(job, &err);
    return true;
}

/* Blocks of NAME=VALUE lines, an empty line between two units. */
static void on_units(struct job *job) {
    json_t *units = json_array(), *unit = NULL;
    if (child_failed(job, "systemctl show"))
        return json_decref(units);
    for (char *line = job->capture.data; line && *line;) {
        char *end = strchr(line, '\n');
        if (end)
            *end = '\0';
        char *value = strchr(line, '=');
        if (value) {
            *value++ = '\0';
            if (!unit)
                json_array_append_new(units, unit = json_object());
            json_object_set_new(unit, line, text_json(value, strnlen(value, 400)));
        } else {
            unit = NULL;
        }
        line = end ? end + 1 : NULL;
    }
    job_answer(job, json_pack("{s:o, s:b}", "units", units, "truncated", job->capture.truncated));
}

/* {"op":"units","names":["x11vnc.service"]}; without names: all services that failed, and all that run */
int op_units(struct job *job, json_t *request, struct err *err) {
    const char *argv[6 + UNITS_MAX] = {
        "systemctl", "show", "--no-pager",
        "--property=Id,LoadState,ActiveState,SubState,Result,UnitFileState,ExecMainStatus,NRestarts", "--"};
    json_t *names = NULL, *name;
    size_t i, n = 5;
    if (request_unpack(request, err, "{s?o}", "names", &names) < 0)
        return -EINVAL;
    if (names && (!json_is_array(names) || json_array_size(names) > UNITS_MAX))
        return err_set(err, EINVAL, "bad-request", "names is an array of at most %d units", UNITS_MAX);
    json_array_foreach(names, i, name) {
        const char *text = json_string_value(name);
        if (!text || !unit_name_is_valid(text))
            return bad_name(err, text ? text : "(no text)");
        argv[n++] = text;
    }
    if (n == 5)
        argv[n++] = "*.service";
    return child_capture(job, argv, on_units, err);
}

static void on_log(struct job *job) {
    if (!child_failed(job, "journalctl"))
        job_answer(job, json_pack("{s:o, s:b}", "text",
                                  text_json(job->capture.data ? job->capture.data : "", job->capture.len), "truncated",
                                  job->capture.truncated));
}

/* {"op":"unit.log","name":"x11vnc.service","lines":20} */
int op_unit_log(struct job *job, json_t *request, struct err *err) {
    const char *name;
    int lines = 20;
    char count[16];
    if (request_unpack(request, err, "{s:s, s?i}", "name", &name, "lines", &lines) < 0)
        return -EINVAL;
    if (!unit_name_is_valid(name))
        return bad_name(err, name);
    if (lines < 1 || lines > LINES_MAX)
        return err_set(err, EINVAL, "bad-request", "lines is from 1 to %d", LINES_MAX);
    snprintf(count, sizeof count, "%d", lines);
    const char *const argv[] = {"journalctl", "--no-pager", "--quiet", "--boot", "--output=short-iso",
                                "-n",         count,        "-u",      name,     NULL};
    return child_capture(job, argv, on_log, err);
}

static void on_restarted(struct job *job) {
    if (!child_failed(job, "systemctl restart"))
        job_answer(job, json_object());
}

/* {"op":"unit.restart","name":"x11vnc.service"} */
int op_unit_restart(struct job *job, json_t *request, struct err *err) {
    const char *name;
    if (request_unpack(request, err, "{s:s}", "name", &name) < 0)
        return -EINVAL;
    if (!unit_name_is_valid(name))
        return bad_name(err, name);
    const char *const argv[] = {"systemctl", "restart", "--", name, NULL};
    return child_capture(job, argv, on_restarted, err);
}

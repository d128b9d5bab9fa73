#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent.h"
#include "base/fd.h"
#include "base/time.h"

#define TIMEOUT_DEFAULT_MS 10000

static const struct operation {
    const char *name;
    op_now *now;
    op_begin *begin;
    bool is_endless; /* has no time-out unless one is asked for */
} operations[] = {
    {.name = "health", .now = op_health},
    {.name = "network", .now = op_network},
    {.name = "kernel.log", .now = op_kernel_log},
    {.name = "clock.set", .now = op_clock_set},
    {.name = "random.seed", .now = op_random_seed},
    {.name = "net.link", .now = op_net_link},
    {.name = "net.address", .now = op_net_address},
    {.name = "net.route", .now = op_net_route},
    {.name = "identity.set", .begin = op_identity_set},
    {.name = "ping", .begin = op_ping},
    {.name = "connect", .begin = op_connect},
    {.name = "units", .begin = op_units},
    {.name = "unit.log", .begin = op_unit_log},
    {.name = "unit.restart", .begin = op_unit_restart},
    {.name = "exec", .begin = op_exec, .is_endless = true},
    {.name = "file.read", .begin = op_file_read},
    {.name = "file.write", .begin = op_file_write},
    {.name = "browser.open", .begin = op_browser_open},
};
#define OPERATION_COUNT (sizeof operations / sizeof *operations)

json_t *agent_operations(void) {
    json_t *names = json_array();
    for (size_t i = 0; i < OPERATION_COUNT; i++)
        json_array_append_new(names, json_string(operations[i].name));
    return names;
}

int request_unpack(json_t *request, struct err *err, const char *fmt, ...) {
    json_error_t error;
    va_list ap;
    json_object_del(request, "op");
    json_object_del(request, "timeout_ms");
    va_start(ap, fmt);
    int r = json_vunpack_ex(request, &error, JSON_STRICT, fmt, ap);
    va_end(ap);
    return r < 0 ? err_set(err, EINVAL, "bad-request", "the request is not what this operation takes: %s", error.text)
                 : 0;
}

json_t *text_json(const char *data, size_t len) {
    struct strbuf text = {.max = 4 * len + 1};
    char escaped[1024];
    /* Line by line, because str_escape() takes the ends of lines for control bytes. */
    for (size_t at = 0; at < len;) {
        size_t n = 0;
        while (at + n < len && n < 200 && data[at + n] != '\n' && data[at + n] != '\t')
            n++;
        while (n > 190 && ((unsigned char)data[at + n - 1] & 0xc0) == 0x80)
            n--; /* not within a character */
        str_escape(data + at, n, escaped, sizeof escaped);
        strbuf_add(&text, escaped, strlen(escaped));
        at += n;
        if (at < len && (data[at] == '\n' || data[at] == '\t'))
            strbuf_add(&text, data + at++, 1);
    }
    json_t *json = json_stringn(text.data ? text.data : "", text.len);
    strbuf_free(&text);
    return json;
}

json_t *text_of_file(const char *path, size_t max) {
    _cleanup_fclose_ FILE *f = fopen(path, "re");
    char *data = f ? malloc(max) : NULL;
    if (!data)
        return json_null();
    size_t len = fread(data, 1, max, f);
    json_t *text = text_json(data, len);
    free(data);
    return text ? text : json_null();
}

static void refuse(struct agent *agent, uint32_t id, const char *code, const char *detail) {
    agent_outbox_json(&agent->out, agent->session, id,
                      json_pack("{s:{s:s, s:s}}", "error", "code", code, "detail", detail));
}

/* Return: milliseconds; 0: none; -1: not a valid one. */
static int64_t timeout_of(const struct operation *operation, json_t *request) {
    json_t *wanted = json_object_get(request, "timeout_ms");
    json_int_t ms = json_integer_value(wanted);
    if (!wanted)
        return operation->is_endless ? 0 : TIMEOUT_DEFAULT_MS;
    if (!json_is_integer(wanted) || ms < 1 || (ms > AGENT_TIMEOUT_MS && !operation->is_endless))
        return -1;
    return ms < INT32_MAX ? ms : INT32_MAX;
}

static void begin(struct agent *agent, uint32_t id, const struct operation *operation, json_t *request) {
    int64_t timeout_ms = timeout_of(operation, request);
    struct err err = {0};
    if (timeout_ms < 0) {
        refuse(agent, id, "bad-request", "timeout_ms is from 1 to 300000");
        return;
    }
    struct job *job = job_new(agent, id);
    if (!job) {
        refuse(agent, id, "busy", "the agent has as many operations under way as it takes");
        return;
    }
    if (timeout_ms > 0)
        job->deadline_ms = time_monotonic_ms() + timeout_ms;
    if (operation->begin) {
        if (operation->begin(job, request, &err) < 0)
            job_fail(job, &err);
        return;
    }
    json_t *ok = operation->now(agent, request, &err);
    if (ok)
        job_answer(job, ok);
    else
        job_fail(job, &err);
}

void agent_request(struct agent *agent, uint32_t id, json_t *request) {
    const char *name = json_string_value(json_object_get(request, "op"));
    job_free_over(agent); /* what was cancelled just before is gone for this one */
    if (!name) {
        refuse(agent, id, "bad-request", "a request is a JSON object with \"op\"");
        return;
    }
    for (size_t i = 0; i < OPERATION_COUNT; i++)
        if (strcmp(operations[i].name, name) == 0) {
            begin(agent, id, &operations[i], request);
            return;
        }
    refuse(agent, id, "unknown-op", "this agent does not know that operation");
}

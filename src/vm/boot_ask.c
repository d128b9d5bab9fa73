/* What the agent of a guest that has booted is asked, one question after the other. All answers are the guest's word. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "vm/boot.h"

#define ASK_TIMEOUT_MS 60000 /* an emulated guest that starts Chromium is slow */
#define OUTPUT_MAX 16384
#define WINDOW_INTERVAL_MS 2000
#define SETTLE_INTERVAL_MS 2000
#define UNITS_ASKED_MAX 24

static json_t *ask_plain(const struct boot *b, const char *name) {
    return json_pack("{s:s}", "op", name);
}

static json_t *ask_units(const struct boot *b, const char *name) {
    json_t *names = json_array();
    for (const struct need *n = need_units; n->name; n++)
        if (boot_needs(b, n) && json_array_size(names) < UNITS_ASKED_MAX)
            json_array_append_new(names, json_string(n->name));
    return json_pack("{s:s, s:o}", "op", name, "names", names);
}

static json_t *ask_services(const struct boot *b, const char *name) {
    return json_pack("{s:s}", "op", "units");
}

static json_t *ask_gateway(const struct boot *b, const char *name) {
    char ip[NET_IP_TEXT];
    net_format_ip(b->config.network.address.address, ip);
    return json_pack("{s:s, s:s}", "op", "ping", "address", ip);
}

static json_t *ask_kernel(const struct boot *b, const char *name) {
    return json_pack("{s:s, s:i}", "op", "kernel.log", "lines", 1);
}

json_t *boot_ask_manager(void) {
    return json_pack("{s:s, s:[s, s, s]}", "op", "exec", "argv", "/bin/systemctl", "show",
                     "--property=SystemState,UserspaceTimestampMonotonic,FinishTimestampMonotonic");
}

static json_t *ask_manager(const struct boot *b, const char *name) {
    return boot_ask_manager();
}

/* Openbox keeps the list of windows, and its own obxprop shows their properties: WM_STATE 1 is a window that is mapped.
 * Source: ICCCM 4.1.3.1, EWMH _NET_CLIENT_LIST. */
json_t *boot_ask_windows(void) {
    static const char script[] =
        "export DISPLAY=:0; for id in $(obxprop --root | sed -n 's/^_NET_CLIENT_LIST(WINDOW) = //p' | tr -d ,); do "
        "echo window; obxprop --id \"$id\" | grep -E '^(WM_CLASS|WM_STATE|_NET_WM_NAME)\\('; done";
    return json_pack("{s:s, s:[s, s, s], s:s}", "op", "exec", "argv", "/bin/sh", "-c", script, "user", "desktop");
}

static json_t *ask_windows(const struct boot *b, const char *name) {
    return boot_ask_windows();
}

/* In this order: the last ones are asked when the guest has come to rest. */
static const struct question {
    const char *name;
    json_t *(*request)(const struct boot *b, const char *name);
    bool with_systemd, with_desktop;
} questions[] = {
    {.name = "network", .request = ask_plain},
    {.name = "gateway", .request = ask_gateway},
    {.name = "units", .request = ask_units, .with_systemd = true},
    {.name = "windows", .request = ask_windows, .with_desktop = true},
    {.name = "units", .request = ask_units, .with_systemd = true}, /* as they are when all should have come up */
    {.name = "services", .request = ask_services, .with_systemd = true},
    {.name = "manager", .request = ask_manager, .with_systemd = true},
    {.name = "health", .request = ask_plain},
    {.name = "kernel", .request = ask_kernel},
};
#define QUESTION_COUNT (sizeof questions / sizeof *questions)

static const struct question settled = {.name = "manager", .request = ask_manager, .with_systemd = true};

/* ---------------------------------------------------------------- answers */

bool boot_is_settled(json_t *manager) {
    const char *text = json_string_value(json_object_get(manager, "output"));
    return text && (strstr(text, "SystemState=running") || strstr(text, "SystemState=degraded"));
}

/* A window of Chromium's that is mapped. obxprop's lines of one window follow a line "window". */
bool boot_find_window(json_t *windows, char *ret_title, size_t size) {
    const char *text = json_string_value(json_object_get(windows, "output"));
    for (const char *at = text ? strstr(text, "window\n") : NULL; at;) {
        const char *next = strstr(at + 1, "\nwindow\n");
        size_t len = next ? (size_t)(next - at) : strlen(at);
        const char *class = memmem(at, len, "WM_CLASS(", 9), *state = memmem(at, len, "WM_STATE(WM_STATE) = 1", 22),
                   *name = memmem(at, len, "_NET_WM_NAME(", 13), *quote = name ? strchr(name, '"') : NULL;
        if (class && state && strcasestr(class, "chromium")) {
            snprintf(ret_title, size, "%.*s", quote ? (int)strcspn(quote + 1, "\"\n") : 0, quote ? quote + 1 : "");
            return true;
        }
        at = next ? next + 1 : NULL;
    }
    return false;
}

static void note_bad_units(struct boot *b, json_t *units) {
    char words[160];
    b->log_count = 0;
    for (const struct need *n = need_units; n->name && b->log_count < BOOT_LOGS_MAX; n++)
        if (boot_needs(b, n) && !boot_unit_state(units, n->name, words, sizeof words))
            str_copy(b->logs[b->log_count++], sizeof *b->logs, n->name);
}

static void take_answer(struct boot *b, const char *name, json_t *answer) {
    char title[128];
    json_object_set(b->facts, name, answer);
    if (strcmp(name, "manager") == 0 && boot_is_settled(answer))
        boot_reach(b, BOOT_SERVICES);
    if (strcmp(name, "units") == 0)
        note_bad_units(b, answer);
    if (strcmp(name, "windows") == 0 && boot_find_window(answer, title, sizeof title)) {
        boot_reach(b, BOOT_WINDOW);
        json_object_set_new(b->facts, "title", json_string(report_safe(title)));
    }
}

/* ---------------------------------------------------------------- asking */

static void on_data(void *userdata, enum agent_stream stream, const uint8_t *data, size_t len) {
    struct boot *b = userdata;
    if (stream == AGENT_STDOUT)
        strbuf_add(&b->output, (const char *)data, len);
    if (len > 0)
        agent_job_credit(b->job, stream, (uint32_t)len);
}

/* The question is named by its static text. */
static void finish(struct boot *b, const char *name, json_t *ok, const struct err *err) {
    json_t *answer = ok ? json_deep_copy(ok) : json_pack("{s:s}", "error", report_safe(err->detail));
    b->job = NULL;
    if (b->output.len > 0 && str_is_utf8(b->output.data, b->output.len))
        json_object_set_new(answer, "output", json_stringn(b->output.data, b->output.len));
    strbuf_free(&b->output);
    b->output = (struct strbuf){.max = OUTPUT_MAX};
    take_answer(b, name, answer);
    json_decref(answer);
}

static void on_settled(void *userdata, json_t *ok, const struct err *err) {
    finish(userdata, settled.name, ok, err);
}

static void on_answer(void *userdata, json_t *ok, const struct err *err) {
    struct boot *b = userdata;
    finish(b, questions[b->question++].name, ok, err);
    boot_ask_on(b);
}

static void on_log(void *userdata, json_t *ok, const struct err *err) {
    struct boot *b = userdata;
    char name[80];
    snprintf(name, sizeof name, "log:%s", b->logs[b->log_asked++]);
    finish(b, name, ok, err);
    boot_ask_on(b);
}

/* Return: whether it is under way. */
static bool ask(struct boot *b, json_t *request, const struct agent_handler *handler, const char *name) {
    struct err err = {0};
    b->output.max = OUTPUT_MAX;
    if (agent_begin(b->agent, request, ASK_TIMEOUT_MS, handler, b, &b->job, &err) == 0)
        return true;
    json_object_set_new(b->facts, name, json_pack("{s:s}", "error", report_safe(err.detail)));
    return false;
}

void boot_ask_settled(struct boot *b) {
    static const struct agent_handler handler = {.data = on_data, .done = on_settled};
    if (b->job || b->params->type == IMAGE_TYPE_TEST || boot_has(b, BOOT_SERVICES) || boot_now(b) < b->settle_again_ms)
        return;
    b->settle_again_ms = boot_now(b) + SETTLE_INTERVAL_MS;
    ask(b, settled.request(b, settled.name), &handler, settled.name);
}

static bool is_to_be_asked(const struct boot *b, const struct question *q) {
    return (!q->with_systemd || b->params->type != IMAGE_TYPE_TEST) &&
           (!q->with_desktop || b->params->type == IMAGE_TYPE_BROWSER);
}

/* A browser that is up has its window at last; one that does not come up has none, however long one waits. */
static bool window_may_come(const struct boot *b) {
    char words[160];
    return !boot_has(b, BOOT_WINDOW) && boot_now(b) < b->timeout_ms &&
           boot_unit_state(json_object_get(b->facts, "units"), "chromium.service", words, sizeof words);
}

static void ask_logs(struct boot *b) {
    static const struct agent_handler handler = {.done = on_log};
    while (b->log_asked < b->log_count) {
        json_t *request = json_pack("{s:s, s:s, s:i}", "op", "unit.log", "name", b->logs[b->log_asked], "lines", 3);
        if (ask(b, request, &handler, "log"))
            return;
        b->log_asked++;
    }
    boot_prove_again(b);
}

void boot_ask_on(struct boot *b) {
    static const struct agent_handler handler = {.data = on_data, .done = on_answer};
    if (b->job || b->phase != BOOT_LOOK || boot_now(b) < b->window_again_ms)
        return;
    /* The windows have been asked for: again, while one may still come. */
    if (b->question > 0 && questions[b->question - 1].with_desktop && window_may_come(b) &&
        json_object_get(b->facts, "windows")) {
        b->question--;
        b->window_again_ms = boot_now(b) + WINDOW_INTERVAL_MS;
        json_object_del(b->facts, "windows");
        return;
    }
    while (b->question < QUESTION_COUNT) {
        const struct question *q = &questions[b->question];
        if (is_to_be_asked(b, q) && ask(b, q->request(b, q->name), &handler, q->name))
            return;
        b->question++;
    }
    ask_logs(b);
}

void boot_ask_free(struct boot *b) {
    agent_job_cancel(b->job);
    b->job = NULL;
    strbuf_free(&b->output);
    json_decref(b->facts);
    b->facts = NULL;
}

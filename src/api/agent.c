/* What the agent in a guest says, for who judges or mends: the doctor, an operator. The answer is a guest's word. */
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/internal.h"
#include "base/fd.h"
#include "base/str.h"

#define TIMEOUT_DEFAULT_MS 10000
#define TIMEOUT_MAX_MS 300000
#define BROWSER_TIMEOUT_MS 180000 /* a program as large as a browser starts first, in a guest that may be emulated */
#define FILE_MAX ((size_t)1024 * 1024) /* bytes of a file in one answer */
#define BASE64 sodium_base64_VARIANT_ORIGINAL

/* What a file's bytes are in, here: base64 in "data". */
enum carries { CARRIES_NOTHING, CARRIES_OUT, CARRIES_IN };

/* exec streams, and has a way of its own. */
static const struct operation {
    const char *name;
    enum carries carries;
    int timeout_ms; /* 0: the default */
} operations[] = {
    {"health", 0, 0},
    {"network", 0, 0},
    {"kernel.log", 0, 0},
    {"units", 0, 0},
    {"unit.log", 0, 0},
    {"unit.restart", 0, 0},
    {"ping", 0, 0},
    {"connect", 0, 0},
    {"clock.set", 0, 0},
    {"random.seed", 0, 0},
    {"net.link", 0, 0},
    {"net.address", 0, 0},
    {"net.route", 0, 0},
    {"file.read", CARRIES_OUT, 0},
    {"file.write", CARRIES_IN, 0},
    {"browser.open", 0, BROWSER_TIMEOUT_MS},
};

struct asking {
    struct http_request *req; /* NULL: the caller has gone */
    const struct operation *operation;
    struct agent_job *job;
    struct strbuf read;
    unsigned char *written;                       /* what is to be sent to the guest */
    size_t written_size, written_len, written_at; /* bytes: what it holds, the content in it, sent */
    bool input_ended;
};

static void asking_free(struct asking *a) {
    strbuf_free(&a->read);
    mem_free(a->written, a->written_size);
    free(a);
}

static const struct operation *find_operation(const char *name) {
    for (size_t i = 0; name && i < sizeof operations / sizeof *operations; i++)
        if (strcmp(operations[i].name, name) == 0)
            return &operations[i];
    return NULL;
}

/* The VM's agent. Answers and returns NULL when there is none. */
static struct agent *agent_of(struct api *api, struct http_request *req, const struct http_match *match) {
    struct err err = {0};
    struct vm vm;
    int r = api_vm_find(api, match, &vm, &err);
    struct agent *agent = r == 0 ? vms_agent(api->vms, vm.id) : NULL;
    if (r == 0 && !agent && vm_state_is_end(vm.state))
        err_set(&err, EALREADY, "vm.ended", "VM %s is %s", vm.id, vm_state_name(vm.state));
    else if (r == 0 && !agent && vm.state != VM_STATE_RUNNING && vm.state != VM_STATE_BOOTING)
        err_set(&err, EALREADY, "vm.hibernated", "VM %s is %s: its guest does not run", vm.id, vm_state_name(vm.state));
    else if (r == 0 && !agent)
        err_set(&err, EALREADY, "agent.none", "the image of VM %s has no agent", vm.id);
    if (!agent)
        api_fail(req, &err);
    return agent;
}

void route_vm_agent(struct http_request *req, const struct http_match *match, void *userdata) {
    struct agent *agent = agent_of(userdata, req, match);
    if (!agent)
        return;
    json_t *health = agent_health(agent);
    json_int_t started_ms = agent_started_ms(agent);
    api_json(req, 200,
             json_pack("{s:{s:s, s:s, s:o, s:O}}", "agent", "state", agent_state_name(agent_state(agent)), "words",
                       agent_words(agent), "started_ms", started_ms >= 0 ? json_integer(started_ms) : json_null(),
                       "health", health ? health : json_null()));
}

static void on_gone(struct http_request *req, void *userdata) {
    struct asking *a = userdata;
    a->req = NULL; /* what was asked may be a change: it goes on */
}

/* ---- a file's bytes ---- */

static void on_data(void *userdata, enum agent_stream stream, const uint8_t *data, size_t len) {
    struct asking *a = userdata;
    if (stream == AGENT_STDOUT && len > 0)
        strbuf_add(&a->read, (const char *)data, len);
    /* A guest that sends more than it was asked for waits in vain for more room. */
    if (len > 0 && !a->read.truncated)
        agent_job_credit(a->job, stream, (uint32_t)len);
}

static void feed(struct asking *a) {
    while (a->written_at < a->written_len && agent_job_window(a->job) > 0) {
        size_t left = a->written_len - a->written_at, window = agent_job_window(a->job);
        if (agent_job_write(a->job, a->written + a->written_at, left < window ? left : window) < 0)
            return;
        a->written_at += left < window ? left : window;
    }
    if (a->written_at == a->written_len && !a->input_ended)
        a->input_ended = agent_job_write(a->job, NULL, 0) == 0;
}

static void on_credit(void *userdata, uint32_t bytes) {
    struct asking *a = userdata;
    if (a->operation->carries == CARRIES_IN)
        feed(a);
}

/* Return: the answer with what was read in it; NULL without memory. */
static json_t *with_data(const struct asking *a, json_t *ok) {
    json_t *answer = json_copy(ok);
    size_t size = sodium_base64_encoded_len(a->read.len, BASE64);
    char *text = malloc(size);
    bool is_done =
        answer && text &&
        json_object_set_new(
            answer, "data",
            json_string(sodium_bin2base64(text, size, (const unsigned char *)(a->read.data ? a->read.data : ""),
                                          a->read.len, BASE64))) == 0;
    mem_free(text, size); /* a file may be a credential */
    if (is_done)
        return answer;
    json_decref(answer);
    return NULL;
}

static void on_done(void *userdata, json_t *ok, const struct err *err) {
    struct asking *a = userdata;
    char detail[sizeof err->detail];
    json_t *answer = ok && a->operation->carries == CARRIES_OUT ? with_data(a, ok) : json_incref(ok);
    if (a->req && ok && a->read.truncated) {
        http_problem(a->req, 502, "agent.flow", NULL, "the guest sent more of the file than it was asked for", NULL);
    } else if (a->req && ok) {
        api_json(a->req, 200, answer ? json_pack("{s:O}", "ok", answer) : NULL);
    } else if (a->req) {
        /* The guest refused, or did not answer: neither is the caller's fault, nor ours. */
        str_escape(err->detail, strlen(err->detail), detail, sizeof detail);
        http_problem(a->req, err->errnum == ETIMEDOUT ? 504 : 502, err->code, NULL, detail, err->hint);
    }
    json_decref(answer);
    asking_free(a);
}

/* ---- what is asked ---- */

static bool refuse(struct http_request *req, const char *detail, const char *hint) {
    http_problem(req, 400, "body.bad-value", NULL, detail, hint);
    return false;
}

/* Takes "data" out of the body. Return: false after an answer. */
static bool take_data(struct http_request *req, json_t *body, struct asking *a) {
    const char *text = json_string_value(json_object_get(body, "data")), *end = NULL;
    size_t len = text ? json_string_length(json_object_get(body, "data")) : 0;
    a->written_size = len + 1;
    a->written = malloc(a->written_size);
    if (!text || !a->written ||
        sodium_base642bin(a->written, a->written_size, text, len, NULL, &a->written_len, &end, BASE64) < 0 ||
        end != text + len)
        return refuse(req, "data is the file's content in base64", NULL);
    json_object_del(body, "data");
    return true;
}

/* Return: false after an answer. */
static bool limit_read(struct http_request *req, json_t *body) {
    json_t *wanted = json_object_get(body, "max");
    json_int_t max = wanted ? json_integer_value(wanted) : (json_int_t)FILE_MAX;
    if (max < 1 || max > (json_int_t)FILE_MAX)
        return refuse(req, "max is from 1 to 1048576 bytes", "read the rest with offset");
    return json_object_set_new(body, "max", json_integer(max)) == 0;
}

/* Return: false after an answer. */
static bool check_body(struct http_request *req, json_t *body, struct asking *a, int *ret_timeout_ms) {
    json_t *wanted = json_object_get(body, "timeout_ms");
    a->operation = find_operation(json_string_value(json_object_get(body, "op")));
    if (!a->operation)
        return refuse(req, "op is not an operation of the agent that can be asked here", "doc/openapi.yaml lists them");
    json_int_t timeout_ms = a->operation->timeout_ms ? a->operation->timeout_ms : TIMEOUT_DEFAULT_MS;
    if (wanted)
        timeout_ms = json_integer_value(wanted);
    if (timeout_ms < 1 || timeout_ms > TIMEOUT_MAX_MS)
        return refuse(req, "timeout_ms is from 1 to 300000", NULL);
    *ret_timeout_ms = (int)timeout_ms;
    a->read.max = FILE_MAX;
    switch (a->operation->carries) {
    case CARRIES_NOTHING:
        return true;
    case CARRIES_OUT:
        return limit_read(req, body);
    case CARRIES_IN:
        return take_data(req, body, a);
    }
    return false;
}

static json_t *parse_body(struct http_request *req) {
    size_t len;
    const char *text = http_request_body(req, &len);
    json_t *body = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
    if (json_is_object(body))
        return body;
    json_decref(body);
    http_problem(req, 400, "body.not-json", NULL, "the body is not a JSON object", NULL);
    return NULL;
}

/* Takes body and a, whatever comes of it. */
static void ask(struct http_request *req, struct agent *agent, json_t *body, int timeout_ms, struct asking *a) {
    static const struct agent_handler plain = {.done = on_done};
    static const struct agent_handler carrying = {.data = on_data, .credit = on_credit, .done = on_done};
    const struct agent_handler *handler = a->operation->carries == CARRIES_NOTHING ? &plain : &carrying;
    struct err err = {0};
    if (agent_begin(agent, body, timeout_ms, handler, a, &a->job, &err) < 0) {
        asking_free(a);
        http_problem(req, 503, err.code, NULL, err.detail, "mctl vm console shows how far the guest is");
        return;
    }
    a->req = req;
    http_request_defer(req, on_gone, a);
    if (a->operation->carries == CARRIES_IN)
        feed(a);
}

void route_vm_agent_ask(struct http_request *req, const struct http_match *match, void *userdata) {
    struct vm vm;
    struct api *api = userdata;
    if (api_vm_find(api, match, &vm, NULL) == 0) {
        vms_used(api->vms, vm.id);
        if (api_wake(api, req, &vm, "its agent is asked"))
            return;
    }
    struct agent *agent = agent_of(userdata, req, match);
    json_t *body = agent ? parse_body(req) : NULL;
    int timeout_ms = 0;
    if (!body)
        return;
    struct asking *a = calloc(1, sizeof *a);
    if (a && check_body(req, body, a, &timeout_ms)) {
        ask(req, agent, body, timeout_ms, a);
        return;
    }
    json_decref(body);
    if (a)
        asking_free(a);
    else
        http_problem(req, 500, "internal", NULL, "out of memory", NULL);
}

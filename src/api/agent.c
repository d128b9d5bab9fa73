/* What the agent in a guest says, for who judges or mends: the doctor, an operator. The answer is a guest's word. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/internal.h"
#include "base/str.h"

#define TIMEOUT_DEFAULT_MS 10000
#define TIMEOUT_MAX_MS 60000

/* Operations that stream, or that carry more than their JSON, have ways of their own. */
static const char *const operations[] = {"health", "network", "kernel.log", "units",    "unit.log",    "unit.restart",
                                         "ping",   "connect", "clock.set",  "net.link", "net.address", "net.route"};

struct asking {
    struct http_request *req; /* NULL: the caller has gone */
};

static bool is_operation(const char *name) {
    for (size_t i = 0; name && i < sizeof operations / sizeof *operations; i++)
        if (strcmp(operations[i], name) == 0)
            return true;
    return false;
}

/* The VM's agent. Answers and returns NULL when there is none. */
static struct agent *agent_of(struct api *api, struct http_request *req, const struct http_match *match) {
    struct err err = {0};
    struct vm vm;
    int r = api_vm_find(api, match, &vm, &err);
    struct agent *agent = r == 0 ? vms_agent(api->vms, vm.id) : NULL;
    if (r == 0 && !agent && vm_state_is_end(vm.state))
        err_set(&err, EALREADY, "vm.ended", "VM %s is %s", vm.id, vm_state_name(vm.state));
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

static void on_done(void *userdata, json_t *ok, const struct err *err) {
    struct asking *a = userdata;
    char detail[sizeof err->detail];
    if (a->req && ok) {
        api_json(a->req, 200, json_pack("{s:O}", "ok", ok));
    } else if (a->req) {
        /* The guest refused, or did not answer: neither is the caller's fault, nor ours. */
        str_escape(err->detail, strlen(err->detail), detail, sizeof detail);
        http_problem(a->req, err->errnum == ETIMEDOUT ? 504 : 502, err->code, NULL, detail, err->hint);
    }
    free(a);
}

/* Takes "op" and "timeout_ms" out of the body. Return: the time, or -1 after an answer. */
static int check_body(struct http_request *req, json_t *body) {
    const char *op = json_string_value(json_object_get(body, "op"));
    json_t *wanted = json_object_get(body, "timeout_ms");
    json_int_t timeout_ms = wanted ? json_integer_value(wanted) : TIMEOUT_DEFAULT_MS;
    if (!is_operation(op))
        http_problem(req, 400, "body.bad-value", NULL, "op is not an operation of the agent that can be asked here",
                     "doc/openapi.yaml lists them");
    else if (timeout_ms < 1 || timeout_ms > TIMEOUT_MAX_MS)
        http_problem(req, 400, "body.bad-value", NULL, "timeout_ms is from 1 to 60000", NULL);
    else
        return (int)timeout_ms;
    return -1;
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

void route_vm_agent_ask(struct http_request *req, const struct http_match *match, void *userdata) {
    static const struct agent_handler handler = {.done = on_done};
    struct agent *agent = agent_of(userdata, req, match);
    json_t *body = agent ? parse_body(req) : NULL;
    int timeout_ms = body ? check_body(req, body) : -1;
    if (timeout_ms < 0) {
        json_decref(body);
        return;
    }
    struct err err = {0};
    struct agent_job *job;
    struct asking *a = calloc(1, sizeof *a);
    if (!a) {
        json_decref(body);
        http_problem(req, 500, "internal", NULL, "out of memory", NULL);
        return;
    }
    if (agent_begin(agent, body, timeout_ms, &handler, a, &job, &err) < 0) {
        free(a);
        http_problem(req, 503, err.code, NULL, err.detail, "mctl vm console shows how far the guest is");
        return;
    }
    a->req = req;
    http_request_defer(req, on_gone, a);
}

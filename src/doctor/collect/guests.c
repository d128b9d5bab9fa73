/* Asks the guests' agents by way of the daemon: a thread each, because one that hangs must not cost the others' time. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "doctor/collect/guest.h"
#include "http/client.h"

#define ANSWER_MAX (1U << 20) /* bytes */
#define STATE_MS 2000
#define NETWORK_MS 2000
#define UNITS_MS 6000
#define MARGIN_MS 500 /* of the daemon, behind the agent's own time */

/* One guest, and what came of it. */
struct asking {
    const char *socket;
    struct guest_wish wish;
    enum snap_guest_state state;
    char words[160];
    json_t *agent, *network, *units;
};

/* The daemon's error in its own words; the guest's part of them is escaped there, and here again. */
static int problem(const struct http_client_response *response, struct err *err) {
    const char *code = "daemon.answer", *detail = "";
    char shown[256];
    json_t *document = json_loadb(response->body, response->len, JSON_REJECT_DUPLICATES, NULL);
    json_unpack(document, "{s?s, s?s}", "code", &code, "detail", &detail);
    str_escape(detail, strnlen(detail, 240), shown, sizeof shown);
    int errnum = response->status == 404 ? ENOENT : response->status == 504 ? ETIMEDOUT : EPROTO;
    err_set(err, errnum, code, "%s", *shown ? shown : "the daemon refused");
    json_decref(document);
    return -errnum;
}

static int call(const char *socket, const char *path, const char *body, long timeout_ms, json_t **ret,
                struct err *err) {
    struct http_client_request request = {.unix_socket = socket,
                                          .path = path,
                                          .body = body,
                                          .body_len = body ? strlen(body) : 0,
                                          .timeout_ms = timeout_ms,
                                          .max_response_bytes = ANSWER_MAX};
    _cleanup_http_response_ struct http_client_response response = {0};
    int r = http_client_request(&request, &response, err);
    if (r < 0)
        return r;
    if (response.status != 200)
        return problem(&response, err);
    json_t *answer = json_loadb(response.body, response.len, JSON_REJECT_DUPLICATES, NULL);
    if (!json_is_object(answer)) {
        json_decref(answer);
        return err_set(err, EPROTO, "daemon.answer", "the daemon's answer is not what it should be");
    }
    *ret = answer;
    return 0;
}

/* A VM's id goes into a path: nothing but what such an id has. */
static bool is_id(const char *id) {
    return *id && strspn(id, "abcdefghijklmnopqrstuvwxyz0123456789-") == strlen(id);
}

int guest_ask(const char *socket, const char *vm_id, json_t *request, int timeout_ms, json_t **ret_ok,
              struct err *err) {
    char path[96];
    json_t *answer = NULL;
    if (request)
        json_object_set_new(request, "timeout_ms", json_integer(timeout_ms));
    _cleanup_free_ char *body = request ? json_dumps(request, JSON_COMPACT) : NULL;
    json_decref(request);
    if (!body || !is_id(vm_id))
        return err_sys(err, body ? EINVAL : ENOMEM, "daemon.answer", "ask the agent of a VM");
    snprintf(path, sizeof path, "/api/vms/%.40s/agent", vm_id);
    int r = call(socket, path, body, timeout_ms + MARGIN_MS, &answer, err);
    if (r < 0)
        return r;
    json_t *ok = json_object_get(answer, "ok");
    if (json_is_object(ok))
        *ret_ok = json_incref(ok);
    else
        r = err_set(err, EPROTO, "daemon.answer", "the agent's answer is not what it should be");
    json_decref(answer);
    return r;
}

/* Whether it is there at all, without troubling it. */
static void look(struct asking *a) {
    char path[96];
    struct err err = {0};
    json_t *answer = NULL;
    snprintf(path, sizeof path, "/api/vms/%.40s/agent", a->wish.vm_id);
    int r = is_id(a->wish.vm_id) ? call(a->socket, path, NULL, STATE_MS, &answer, &err) : -EINVAL;
    if (r < 0) {
        a->state = strcmp(err.code, "agent.none") == 0 ? SNAP_GUEST_NO_AGENT : SNAP_GUEST_UNASKED;
        str_copy(a->words, sizeof a->words, err.detail);
        return;
    }
    a->agent = json_incref(json_object_get(answer, "agent"));
    const char *state = json_string_value(json_object_get(a->agent, "state"));
    const char *words = json_string_value(json_object_get(a->agent, "words"));
    str_copy(a->words, sizeof a->words, words ? words : "");
    a->state = state && strcmp(state, "ready") == 0 ? SNAP_GUEST_TOLD : SNAP_GUEST_NOT_READY;
    json_decref(answer);
}

static void *ask(void *data) {
    struct asking *a = data;
    struct err err = {0};
    look(a);
    if (a->state != SNAP_GUEST_TOLD)
        return NULL;
    if (guest_ask(a->socket, a->wish.vm_id, json_pack("{s:s}", "op", "network"), NETWORK_MS, &a->network, &err) < 0) {
        a->state = SNAP_GUEST_SILENT;
        str_copy(a->words, sizeof a->words, err.detail);
        return NULL;
    }
    if (!a->wish.units)
        return NULL;
    json_t *request = json_pack("{s:s}", "op", "units");
    if (a->wish.unit && request)
        json_object_set_new(request, "names", json_pack("[s]", a->wish.unit));
    guest_ask(a->socket, a->wish.vm_id, request, UNITS_MS, &a->units, NULL); /* without systemd there are none */
    return NULL;
}

static void take(struct snapshot *s, const struct asking *a) {
    struct snap_guest *guest = SNAP_PUSH(s, guests, SNAP_GUESTS_MAX);
    if (!guest)
        return;
    str_copy(guest->vm_id, sizeof guest->vm_id, a->wish.vm_id);
    str_copy(guest->tap, sizeof guest->tap, a->wish.tap);
    str_copy(guest->words, sizeof guest->words, a->words);
    guest->state = (uint8_t)a->state;
    guest_facts_take(s, guest, a->network, json_object_get(a->agent, "health"), a->units, a->wish.unit);
}

void collect_guests(struct snapshot *s, const char *socket, const struct guest_wish *wishes, size_t count) {
    struct asking all[GUEST_ASKED_MAX] = {0};
    pthread_t threads[GUEST_ASKED_MAX];
    bool begun[GUEST_ASKED_MAX] = {0};
    bool there = socket && *socket && access(socket, F_OK) == 0;
    count = count < GUEST_ASKED_MAX ? count : GUEST_ASKED_MAX;
    for (size_t i = 0; i < count; i++) {
        all[i] = (struct asking){.socket = socket, .wish = wishes[i]};
        str_copy(all[i].words, sizeof all[i].words, there ? "it could not be asked" : "no daemon to ask it by");
        begun[i] = there && pthread_create(&threads[i], NULL, ask, &all[i]) == 0;
    }
    for (size_t i = 0; i < count; i++) {
        if (begun[i])
            pthread_join(threads[i], NULL);
        take(s, &all[i]);
        json_decref(all[i].agent);
        json_decref(all[i].network);
        json_decref(all[i].units);
    }
}

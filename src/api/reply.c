#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/internal.h"
#include "base/str.h"
#include "base/time.h"

void api_json(struct http_request *req, int status, json_t *body) {
    char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    json_decref(body);
    if (!text) {
        http_problem(req, 500, "internal", NULL, "the answer could not be written", NULL);
        return;
    }
    struct http_response response = {.content_type = "application/json", .body = text, .len = strlen(text)};
    http_respond(req, status, &response);
    mem_free(text, response.len);
}

static int status_of(int errnum) {
    switch (errnum) {
    case EINVAL:
        return 400;
    case ENOENT:
        return 404;
    case EACCES:
    case EPERM:
        return 403;
    case EALREADY:
    case EEXIST:
    case EDQUOT:
    case ENOTUNIQ:
    case EPROTO:
        return 409;
    case EXFULL: /* the bridge */
    case ENOSPC:
        return 507;
    case EUCLEAN: /* a broken image */
    case ENODEV:  /* no usable VMM */
    case EADDRNOTAVAIL:
        return 503;
    default:
        return 500;
    }
}

void api_fail(struct http_request *req, const struct err *err) {
    /* What went wrong inside is not the caller's fault, whatever the number: a missing image is not a missing page. */
    static const struct {
        const char *prefix;
        int status;
    } inside[] = {{"image.", 503},   {"vmm.", 503},      {"vmm.other", 409},     {"vm.create", 500},
                  {"process.", 500}, {"store.", 500},    {"network.", 500},      {"probe.", 500},
                  {"state.", 500},   {"vault.key", 503}, {"vault.damaged", 500}, {"vault.failed", 500}};
    int status = status_of(err->errnum);
    for (size_t i = 0; i < sizeof inside / sizeof *inside && status != 507; i++)
        if (str_starts(err->code, inside[i].prefix))
            status = inside[i].status;
    http_problem(req, status, err->code, NULL, err->detail, err->hint);
}

json_t *api_body(struct http_request *req, const char *const *known) {
    size_t len;
    const char *text = http_request_body(req, &len);
    json_error_t error;
    json_t *body = len == 0 ? json_object() : json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(body)) {
        char detail[200], shown[120], *near = body ? NULL : strstr(error.text, " near ");
        if (near) /* what stands there may be a secret */
            *near = '\0';
        snprintf(detail, sizeof detail, "the body is not a JSON object%s%s", body ? "" : ": ",
                 body ? "" : str_escape(error.text, strlen(error.text), shown, sizeof shown));
        json_decref(body);
        http_problem(req, 400, "body.not-json", NULL, detail, NULL);
        return NULL;
    }
    const char *key;
    json_t *value;
    json_object_foreach(body, key, value) {
        size_t i = 0;
        while (known[i] && strcmp(known[i], key) != 0)
            i++;
        if (known[i])
            continue;
        char detail[160], shown[80];
        snprintf(detail, sizeof detail, "the body has an unknown field \"%s\"",
                 str_escape(key, strnlen(key, 40), shown, sizeof shown));
        struct strbuf hint = {.max = 200};
        for (i = 0; known[i]; i++)
            strbuf_addf(&hint, "%s%s", i ? ", " : "known are: ", known[i]);
        http_problem(req, 400, "body.unknown-field", NULL, detail, hint.data);
        strbuf_free(&hint);
        json_decref(body);
        return NULL;
    }
    return body;
}

bool api_query_known(struct http_request *req, const char *const *known) {
    char unknown[80], detail[160];
    if (http_query_check(http_request_target(req), known, unknown, sizeof unknown) == 0)
        return true;
    snprintf(detail, sizeof detail, "the address has an unknown parameter \"%s\"", unknown);
    http_problem(req, 400, "query.unknown", NULL, detail, NULL);
    return false;
}

json_t *api_time(int64_t realtime_ms) {
    char text[TIME_RFC3339_SIZE];
    if (realtime_ms == 0)
        return json_null();
    time_format_rfc3339(realtime_ms, text);
    return json_string(text);
}

/* Text that is not UTF-8 is shown escaped: one bad byte must not hide a VM. */
static json_t *text_or_null(const char *text) {
    char safe[4 * VM_REASON_MAX];
    if (!*text)
        return json_null();
    return json_string(str_is_utf8(text, strlen(text)) ? text : str_escape(text, strlen(text), safe, sizeof safe));
}

json_t *api_vm_json(const struct vm *vm) {
    char ip[NET_IP_TEXT], mac[NET_MAC_TEXT];
    net_format_ip(vm->ip, ip);
    net_format_mac(vm->mac, mac);
    json_t *reachable = vm->reachable < 0 ? json_null() : json_boolean(vm->reachable);
    /* What is wrong with a VM that lives is a finding; why it is in its state, a reason. */
    const char *finding = vm->reachable == 0 ? vm->reason : "";
    return json_pack("{s:s, s:s, s:s, s:s, s:o, s:o, s:o, s:s, s:s, s:s, s:s, s:i, s:i, s:s, s:s, s:s, s:o, s:o}", "id",
                     vm->id, "user", vm->user, "type", vm_type_name(vm->type), "state", vm_state_name(vm->state),
                     "state_since", api_time(vm->state_since_ms), "reachable", reachable, "finding",
                     text_or_null(finding), "ip", ip, "mac", mac, "tap", vm->tap, "bridge", vm->bridge, "vcpus",
                     (int)vm->vcpus, "memory_mib", (int)vm->memory_mib, "image", vm->image, "vmm", vm->vmm, "host",
                     vm->host, "created_at", api_time(vm->created_ms), "reason", text_or_null(vm->reason));
}

json_t *api_events_json(const struct store_event *events, size_t n) {
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_pack("{s:o, s:s, s:s, s:s, s:s, s:s, s:o}", "at", api_time(events[i].at_ms),
                                              "actor", events[i].actor, "event", events[i].event, "from",
                                              events[i].from, "to", events[i].to, "reason", events[i].reason,
                                              "evidence", text_or_null(events[i].evidence)));
    return list;
}

json_t *api_session_json(struct api *api, const struct session *session) {
    char url[CONFIG_TEXT + 96];
    snprintf(url, sizeof url, "%s/api/auth/session/%s/novnc", api->base_url, session->id);
    return json_pack("{s:s, s:s, s:s, s:s, s:o, s:s, s:o, s:o}", "id", session->id, "user", session->user, "provider",
                     session->provider, "status", session_status_name(session->status), "vm_id",
                     text_or_null(session->vm_id), "novnc_url", url, "timeout_at", api_time(session->timeout_ms),
                     "reason", text_or_null(session->reason));
}

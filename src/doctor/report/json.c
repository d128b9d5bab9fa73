#include <jansson.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "doctor/report/report.h"

static json_t *text(const char *s) {
    char shown[2048];
    return json_string(str_escape(s, strlen(s), shown, sizeof shown));
}

static json_t *evidence(const struct evidence *rows, uint8_t count) {
    json_t *array = json_array();
    for (uint8_t i = 0; i < count; i++)
        json_array_append_new(array, json_pack("{s:o,s:o,s:o}", "source", text(rows[i].source), "where",
                                               text(rows[i].where), "fact", text(rows[i].fact)));
    return array;
}

static json_t *repair(const struct finding *f) {
    json_t *plan = json_array();
    for (uint8_t i = 0; i < f->step_count; i++) {
        char command[REPAIR_COMMAND_SIZE];
        repair_step_command(&f->steps[i], command);
        json_array_append_new(plan, text(command));
    }
    for (uint8_t i = 0; i < f->plan_count; i++)
        json_array_append_new(plan, text(f->plan[i]));
    json_t *object = json_pack("{s:b,s:o,s:b,s:o}", "safe", f->safe && f->step_count, "plan", plan, "applied",
                               f->applied, "proven", f->proven < 0 ? json_null() : json_boolean(f->proven));
    if (*f->journal)
        json_object_set_new(object, "journal", text(f->journal));
    if (*f->repair_error)
        json_object_set_new(object, "error", text(f->repair_error));
    return object;
}

static json_t *finding(const struct finding *f) {
    return json_pack("{s:o,s:s,s:s,s:o,s:o,s:o,s:o,s:s,s:f,s:o}", "id", text(f->id), "role", finding_role_name(f->role),
                     "layer", f->layer, "title", text(f->title), "explanation", text(f->explanation), "advice",
                     text(f->advice), "evidence", evidence(f->evidence, f->evidence_count), "dies_at",
                     finding_hop_name(f->hop), "confidence", f->confidence, "repair", repair(f));
}

/* A hop that was passed has no evidence but that: our packets were seen behind it. */
static json_t *hop(enum hop at, const struct hop_verdict *v) {
    struct evidence seen = {.source = "probe", .fact = "our packets passed here"};
    bool passed = v->verdict == VERDICT_PASS;
    str_copy(seen.where, sizeof seen.where, finding_hop_name(at));
    json_t *all = evidence(&seen, passed), *more = evidence(v->evidence, v->evidence_count);
    json_array_extend(all, more);
    json_decref(more);
    return json_pack("{s:s,s:s,s:o}", "hop", finding_hop_name(at), "verdict", finding_verdict_name(v->verdict),
                     "evidence", all);
}

/* Both ends side by side; null where the guest did not tell its own. */
static json_t *ends(const struct judgement *j) {
    json_t *array = json_array();
    if (!j->ends_count) {
        json_decref(array);
        return json_null();
    }
    for (uint8_t i = 0; i < j->ends_count; i++) {
        const struct end_row *row = &j->ends[i];
        json_array_append_new(array,
                              json_pack("{s:o,s:s,s:o,s:o,s:o}", "what", text(row->what), "hop",
                                        finding_hop_name(row->hop), "host", text(row->host), "guest", text(row->guest),
                                        "agree", row->agree < 0 ? json_null() : json_boolean(row->agree)));
    }
    return array;
}

/* Whether its agent told, and what there is to say of that; null where nobody wanted to ask. */
static json_t *agent(const struct judgement *j) {
    static const char *const states[] = {"unasked", "none", "not-ready", "silent", "told"};
    if (j->guest_state < 0 || (size_t)j->guest_state >= sizeof states / sizeof *states)
        return json_null();
    return json_pack("{s:s,s:o}", "state", states[j->guest_state], "words", text(j->guest_words));
}

static json_t *hops(const struct judgement *j) {
    json_t *array = json_array();
    for (int i = 0; i < HOP_COUNT; i++)
        json_array_append_new(array, hop((enum hop)i, &j->hops[i]));
    return array;
}

static json_t *target(const struct judgement *j) {
    json_t *findings = json_array();
    char ip[NET_IP_TEXT];
    net_format_ip(j->target.ip, ip);
    for (uint32_t i = 0; i < j->findings_count; i++)
        json_array_append_new(findings, finding(&j->findings[i]));
    return json_pack("{s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "tap", text(j->target.tap), "vm_id",
                     *j->target.vm_id ? text(j->target.vm_id) : json_null(), "guest_ip",
                     j->target.ip ? json_string(ip) : json_null(), "reachable",
                     j->reachable < 0 ? json_null() : json_boolean(j->reachable), "hops", hops(j), "findings", findings,
                     "agent", agent(j), "ends", ends(j));
}

static json_t *had(const struct trace_had *had) {
    return json_pack("{s:b,s:o}", "had", had->had, "why", had->had ? json_null() : text(had->why));
}

static json_t *gaps(const struct snapshot *s) {
    json_t *array = json_array();
    for (uint32_t i = 0; i < s->gaps_count; i++)
        json_array_append_new(array, json_pack("{s:o,s:s,s:o}", "what", text(s->gaps[i].what), "error",
                                               strerror(s->gaps[i].errnum), "detail", text(s->gaps[i].detail)));
    return array;
}

static json_t *host(const struct doctor_case *c) {
    const struct snap_host *h = &c->before->host;
    char at[TIME_RFC3339_SIZE];
    time_format_rfc3339(h->taken_ms, at);
    json_t *object = json_pack("{s:o,s:o,s:o,s:o,s:s,s:b,s:o}", "name", text(h->name), "kernel", text(h->kernel),
                               "netns", text(h->netns), "bridge", text(h->bridge), "at", at, "root", h->root,
                               "could_not_read", gaps(c->before));
    if (c->probe && c->probe->trace) {
        json_object_set_new(object, "tracefs", had(&c->probe->trace->tracefs));
        json_object_set_new(object, "nftrace", had(&c->probe->trace->nftrace));
    }
    if (c->probe)
        json_object_set_new(object, "canary",
                            c->probe->canary.made ? text(c->probe->canary.name)
                                                  : json_pack("{s:o}", "why_not", text(c->probe->canary.why_not)));
    if (c->probe_error.errnum)
        json_object_set_new(object, "not_probed", text(c->probe_error.detail));
    return object;
}

/* What --repair did or did not do beyond what stands in the findings. */
static void add_repair(json_t *document, const struct doctor_case *c) {
    const struct doctor_recovered *r = &c->recovered;
    if (*r->journal)
        json_object_set_new(document, "recovered",
                            json_pack("{s:o,s:o,s:o}", "journal", text(r->journal), "finding", text(r->finding),
                                      "error", *r->error ? text(r->error) : json_null()));
    if (*c->not_repaired)
        json_object_set_new(document, "not_repaired", text(c->not_repaired));
}

void report_json(const struct doctor_case *c, FILE *to) {
    json_t *document = json_pack("{s:s,s:b,s:o,s:I}", "schema", "doctor/1", "healthy", doctor_is_healthy(c), "host",
                                 host(c), "duration_ms", (json_int_t)c->duration_ms);
    if (document)
        add_repair(document, c);
    _cleanup_free_ char *head = document ? json_dumps(document, JSON_INDENT(2)) : NULL;
    json_decref(document);
    if (!head)
        return;
    /* The head's last "}" is left open for the targets. */
    fprintf(to, "%.*s,\n  \"targets\": [", (int)strlen(head) - 2, head);
    for (uint32_t i = 0; i < c->count; i++) {
        json_t *one = target(&c->judgements[i]);
        fprintf(to, i ? ",\n" : "\n");
        json_dumpf(one, to, JSON_INDENT(2));
        json_decref(one);
    }
    fprintf(to, "]\n}\n");
}

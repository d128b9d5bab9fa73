#include "doctor/rules/judge.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "doctor/rules/internal.h"

#define CAUSES_MAX 256 /* and one for each hop: that something is lost there is told in any case */

int judge_open(const struct snapshot *before, const struct snapshot *after, const struct probe_result *probe,
               struct judge_host *ret) {
    struct judge_host host = {.before = before, .after = after, .probe = probe};
    int r = nft_index_make(before, &host.index);
    if (r < 0)
        return r;
    *ret = host;
    return 0;
}

void judge_close(struct judge_host *host) {
    nft_index_free(&host->index);
}

/* --- helpers of the rules --- */

struct ip_text ip_text(uint32_t ip) {
    struct ip_text t;
    net_format_ip(ip, t.text);
    return t;
}

struct mac_text mac_text(struct net_mac mac) {
    struct mac_text t;
    net_format_mac(mac, t.text);
    return t;
}

bool mac_equal(struct net_mac a, struct net_mac b) {
    return memcmp(a.byte, b.byte, sizeof a.byte) == 0;
}

static void evidence_v(struct evidence *e, const char *source, const char *where, const char *fact, va_list ap) {
    str_copy(e->source, sizeof e->source, source);
    str_copy(e->where, sizeof e->where, where);
    vsnprintf(e->fact, sizeof e->fact, fact, ap);
}

void evidence_set(struct evidence *e, const char *source, const char *where, const char *fact, ...) {
    va_list ap;
    va_start(ap, fact);
    evidence_v(e, source, where, fact, ap);
    va_end(ap);
}

void finding_evidence(struct finding *f, const char *source, const char *where, const char *fact, ...) {
    va_list ap;
    if (f->evidence_count == FINDING_EVIDENCE_MAX)
        return;
    va_start(ap, fact);
    evidence_v(&f->evidence[f->evidence_count++], source, where, fact, ap);
    va_end(ap);
}

void cause_evidence(struct cause *c, const char *source, const char *where, const char *fact, ...) {
    va_list ap;
    if (!c || c->finding.evidence_count == FINDING_EVIDENCE_MAX)
        return;
    va_start(ap, fact);
    evidence_v(&c->finding.evidence[c->finding.evidence_count++], source, where, fact, ap);
    va_end(ap);
}

struct repair_step *cause_step(struct cause *c, enum repair_action action, const char *dev) {
    static struct repair_step nowhere; /* without memory the step is lost, not the finding */
    if (!c || c->finding.step_count == REPAIR_STEPS_MAX)
        return &nowhere;
    struct repair_step *grown = reallocarray(c->finding.steps, c->finding.step_count + 1U, sizeof *grown);
    if (!grown)
        return &nowhere;
    c->finding.steps = grown;
    struct repair_step *step = &grown[c->finding.step_count++];
    memset(step, 0, sizeof *step);
    step->action = action;
    str_copy(step->dev, sizeof step->dev, dev);
    return step;
}

void cause_plan(struct cause *c, const char *text, ...) {
    va_list ap;
    if (!c || c->finding.plan_count == FINDING_PLAN_MAX)
        return;
    va_start(ap, text);
    vsnprintf(c->finding.plan[c->finding.plan_count++], sizeof c->finding.plan[0], text, ap);
    va_end(ap);
}

static bool is_disabled(const struct judge *j, const char *id) {
    size_t len = strlen(id);
    for (const char *at = j->host->disabled; at && *at; at += strcspn(at, ","), at += *at == ',')
        if (strcspn(at, ",") == len && strncmp(at, id, len) == 0)
            return true;
    return false;
}

struct cause *cause_add(struct judge *j, const char *id, uint32_t kills, uint32_t may, const char *title, ...) {
    const struct catalogue_row *row = catalogue_find(id);
    if (is_disabled(j, id))
        return NULL;
    uint32_t max = str_starts(id, "unknown.") ? CAUSES_MAX + HOP_COUNT : CAUSES_MAX;
    struct cause *c = snapshot_push(&j->causes, &j->causes_count, &j->causes_cap, sizeof *j->causes, max);
    if (!c)
        return NULL;
    c->kills = kills;
    c->may = may;
    c->refutable = true;
    str_copy(c->finding.id, sizeof c->finding.id, id);
    c->finding.proven = -1;
    if (row) {
        c->finding.hop = row->hop;
        c->finding.safe = row->safe;
        str_copy(c->finding.layer, sizeof c->finding.layer, row->layer);
        str_copy(c->finding.explanation, sizeof c->finding.explanation, row->means);
        str_copy(c->finding.advice, sizeof c->finding.advice, row->advice);
    }
    va_list ap;
    va_start(ap, title);
    vsnprintf(c->finding.title, sizeof c->finding.title, title, ap);
    va_end(ap);
    return c;
}

const struct probe_answer *judge_answer(const struct judge *j, enum probe_kind kind) {
    static const struct probe_answer none;
    if (!j->probe || (kind < PROBE_KIND_GUEST_COUNT && !j->t))
        return &none;
    const struct probe_answer *answer = probe_answer(j->probe, j->t_index, kind);
    return answer ? answer : &none;
}

const struct snap_link *judge_after(const struct judge *j, const struct snap_link *link) {
    return link && j->host->after ? snap_link_by_index(j->host->after, link->index) : NULL;
}

const struct probe_frame *judge_odd_answer(const struct judge *j, struct net_mac *ret_named) {
    for (size_t i = 0; j->probe && i < j->probe->frame_count; i++) {
        const struct probe_frame *f = &j->probe->frames[i];
        if (f->kind != PROBE_FRAME_IS_AT || f->outgoing || f->source_ip != j->target->ip || f->kept < 28)
            continue;
        memcpy(ret_named, f->data + 22, sizeof *ret_named);
        if (!mac_equal(*ret_named, f->source))
            return f;
    }
    return NULL;
}

/* A cause explains a dead flow if it kills it for sure, or may and was seen, or may and nothing speaks against it. */
bool judge_is_explained(const struct judge *j, enum probe_kind kind, uint32_t hops) {
    for (uint32_t i = 0; i < j->causes_count; i++) {
        const struct cause *c = &j->causes[i];
        if (c->note && (c->kills & FLOW(kind)))
            return true;
        if (!c->note && cause_counts(j, c) && ((c->kills | c->may) & FLOW(kind)) && (hops & HOPBIT(c->finding.hop)))
            return true;
    }
    return false;
}

/* --- one target --- */

static struct net_prefix address_of(const struct snapshot *s, const struct snap_link *link, uint32_t guest) {
    struct net_prefix first = {0};
    for (uint32_t i = 0; link && i < s->addrs_count; i++) {
        struct net_prefix p = {s->addrs[i].ip, s->addrs[i].length};
        if (s->addrs[i].link != link->index)
            continue;
        if (guest && net_contains(p, guest))
            return p;
        if (!first.address)
            first = p;
    }
    return first;
}

/* The guest's MAC: as told, else as it answered, else the only one that the bridge learned on its port. */
static void find_mac(struct judge *j) {
    const struct probe_answer *arp = judge_answer(j, PROBE_ARP);
    uint32_t learned = 0;
    if (j->target->has_mac) {
        /* Who answers behind the TAP, and alone, is the guest, whatever was said of it. */
        bool other = arp->answered && arp->mac_count == 1 && arp->reply_tap.count && !arp->reply_elsewhere_count &&
                     !mac_equal(arp->macs[0], j->target->mac);
        j->has_mac = true;
        j->mac = other ? arp->macs[0] : j->target->mac;
        return;
    }
    if (arp->answered && arp->mac_count == 1) {
        j->has_mac = true;
        j->mac = arp->macs[0];
        return;
    }
    for (uint32_t i = 0; j->tap && i < j->s->fdbs_count; i++) {
        const struct snap_fdb *fdb = &j->s->fdbs[i];
        if (fdb->link != j->tap->index || !fdb->master || (fdb->state & 0x80) || mac_equal(fdb->mac, j->tap->mac))
            continue;
        j->mac = fdb->mac;
        learned++;
    }
    j->has_mac = learned == 1;
}

/* The newest that it told; else who said why it did not. */
static void find_guest(struct judge *j) {
    const struct snapshot *after = j->host->after;
    const struct snap_guest *late = after ? snap_guest_of_tap(after, j->target->tap) : NULL;
    j->guest = snap_guest_of_tap(j->s, j->target->tap);
    j->guest_s = j->s;
    if (late && (!j->guest || late->state == SNAP_GUEST_TOLD)) {
        j->guest = late;
        j->guest_s = after;
    }
}

static void begin(struct judge *j) {
    const struct snapshot *s = j->s;
    j->tap = snap_link_by_name(s, j->target->tap);
    j->bridge = snap_link_by_name(s, *j->target->bridge ? j->target->bridge : s->host.bridge);
    if (j->bridge && strcmp(j->bridge->kind, "bridge") != 0)
        j->bridge = NULL;
    j->holder = snap_holder_of(s, j->target->tap);
    j->vm = snap_vm_of_tap(s, j->target->tap);
    j->bridge_address = address_of(s, j->bridge, j->target->ip);
    find_guest(j);
    find_mac(j);
    path_trace_all(j);
}

int judge_target(const struct judge_host *host, const struct target *target, int probe_index, struct judgement *ret) {
    struct judgement out = {.target = *target, .reachable = -1, .guest_state = -1};
    struct judge j = {.host = host, .s = host->before, .probe = host->probe, .out = &out, .target = target};
    if (host->probe && probe_index >= 0 && (size_t)probe_index < host->probe->target_count) {
        j.t_index = (size_t)probe_index;
        j.t = &host->probe->targets[probe_index];
    }
    begin(&j);
    if (rules_leaked(&j)) {
        /* Nothing is meant to live behind it. */
    } else {
        rules_links(&j);
        rules_bridge(&j);
        rules_policy(&j);
        rules_filters(&j);
        rules_tc(&j);
        rules_routes(&j);
        rules_host(&j);
        rules_egress(&j);
        rules_vmm(&j);
        rules_guest(&j);
        rules_unknown(&j);
        rules_counted(&j);
    }
    guest_ends(&j);
    rank_reachable(&j);
    int r = rank_findings(&j);
    if (r == 0)
        rank_hops(&j);
    free(j.causes);
    if (r < 0) {
        judgement_free(&out);
        return r;
    }
    *ret = out;
    return 0;
}

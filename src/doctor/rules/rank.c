/* Which causes count, and in what order they are told. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "doctor/rules/internal.h"

static bool at_its_hop(const struct judge *j, const struct cause *c, uint32_t flows) {
    for (int kind = 0; kind < PROBE_KIND_COUNT; kind++)
        if ((flows & FLOW(kind)) && j->paths[kind].asked && (j->paths[kind].hops & HOPBIT(c->finding.hop)))
            return true;
    return false;
}

/* Whether it is a cause: it kills something that is dead; or nothing was asked and it must. */
bool cause_counts(const struct judge *j, const struct cause *c) {
    uint32_t asked_kills = c->kills & j->asked, dead = c->kills & j->dead, alive = c->kills & j->alive;
    if (c->note)
        return false;
    if (c->refutable && alive && !dead)
        return false;
    if (dead)
        return true;
    if (c->kills && !asked_kills)
        return c->policy || !(j->asked & FLOWS_HOST);
    if (c->kills && c->policy && !c->refutable)
        return true;
    if (!(c->may & j->dead))
        return false;
    return c->seen || at_its_hop(j, c, c->may & j->dead);
}

/* Whether every dead question that it should kill was seen to get past it: then it is not what killed it. */
static bool was_passed(const struct judge *j, const struct cause *c) {
    uint32_t flows = (c->kills | c->may) & j->dead;
    bool any = false;
    for (int kind = 0; kind < PROBE_KIND_COUNT; kind++) {
        if (!(flows & FLOW(kind)))
            continue;
        if (!(j->paths[kind].passed & HOPBIT(c->finding.hop)))
            return false;
        any = true;
    }
    return any;
}

/* Less is earlier in the report: what stops the host's own packets first, in the order in which they come by; then what
 * may be; then what hurts others' traffic; then the way to the outside. */
static double weight(const struct judge *j, const struct cause *c) {
    uint32_t flows = c->kills | c->may, dead = flows & j->dead;
    double w = c->finding.hop;
    bool exact = false;
    for (int kind = 0; kind < PROBE_KIND_COUNT; kind++)
        exact = exact || ((dead & FLOW(kind)) && j->paths[kind].exact && j->paths[kind].dies == c->finding.hop);
    if (!(dead & FLOWS_HOST))
        w += flows & FLOWS_GUEST & ~FLOWS_EGRESS ? 1000 : 2000;
    if (j->dead & (FLOWS_ARP | FLOW(PROBE_ICMP)) &&
        !(dead & ~(FLOW(PROBE_LARGE) | FLOW(PROBE_TCP) | FLOW(PROBE_TCP_RAW))))
        w += 500; /* only large packets or TCP, where the first small ones are lost as well */
    if (was_passed(j, c))
        w += 400;
    if (!(c->kills & j->dead) && !c->seen && !exact)
        w += 200;
    return w;
}

static double confidence(const struct judge *j, const struct cause *c) {
    bool dead = (c->kills & j->dead) != 0;
    if (c->finding.confidence > 0)
        return c->finding.confidence;
    if (!j->asked)
        return c->kills ? 0.8 : 0.4;
    if (dead && c->seen)
        return 0.99;
    if (dead)
        return 0.95;
    if (c->seen)
        return 0.9;
    return c->kills ? 0.85 : 0.6;
}

struct ranked {
    struct cause *cause;
    double weight;
};

static int compare(const void *a, const void *b) {
    const struct ranked *x = a, *y = b;
    int roles = (int)x->cause->finding.role - (int)y->cause->finding.role;
    if (roles)
        return roles;
    return x->weight < y->weight ? -1 : x->weight > y->weight;
}

static bool is_unknown(const struct cause *c) {
    return strncmp(c->finding.id, "unknown.", 8) == 0;
}

/* Of those that only may be it, those at a hop that a sure one explains are left out. */
static bool is_superseded(const struct judge *j, const struct cause *c) {
    if (c->kills & j->dead || c->seen || c->policy || !(c->may & j->dead))
        return false;
    uint32_t left = c->may & j->dead;
    for (uint32_t i = 0; i < j->causes_count; i++) {
        const struct cause *o = &j->causes[i];
        if (o != c && cause_counts(j, o) && !is_unknown(o))
            left &= ~(o->kills | (o->seen ? o->may : 0));
    }
    return left == 0;
}

static void give_roles(struct judge *j) {
    for (uint32_t i = 0; i < j->causes_count; i++) {
        struct cause *c = &j->causes[i];
        c->finding.role = c->note ? ROLE_NOTE : ROLE_ROOT_CAUSE;
        c->finding.confidence = confidence(j, c);
    }
}

static bool is_told(const struct judge *j, const struct cause *c) {
    return c->note || (!c->hidden && cause_counts(j, c) && !is_superseded(j, c));
}

int rank_findings(struct judge *j) {
    struct ranked *order = calloc(j->causes_count ? j->causes_count : 1, sizeof *order);
    struct finding *findings = calloc(j->causes_count ? j->causes_count : 1, sizeof *findings);
    uint32_t count = 0;
    if (!order || !findings) {
        for (uint32_t i = 0; i < j->causes_count; i++)
            free(j->causes[i].finding.steps);
        free(order);
        free(findings);
        return -ENOMEM;
    }
    give_roles(j);
    for (uint32_t i = 0; i < j->causes_count; i++)
        if (is_told(j, &j->causes[i]))
            order[count++] = (struct ranked){&j->causes[i], weight(j, &j->causes[i])};
        else
            free(j->causes[i].finding.steps);
    qsort(order, count, sizeof *order, compare);
    for (uint32_t i = 0; i < count; i++) {
        findings[i] = order[i].cause->finding;
        if (i >= FINDINGS_MAX)
            free(findings[i].steps);
    }
    j->out->findings = findings;
    j->out->findings_count = count < FINDINGS_MAX ? count : FINDINGS_MAX;
    free(order);
    return 0;
}

/* --- verdicts --- */

static bool is_there(enum hop hop) {
    return hop <= HOP_GUEST_SERVICE;
}

static bool is_back(enum hop hop) {
    return hop >= HOP_TAP_INGRESS && hop <= HOP_HOST_INPUT;
}

static void hop_evidence(struct hop_verdict *v, const struct evidence *e) {
    if (v->evidence_count == HOP_EVIDENCE_MAX)
        return;
    struct evidence *grown = reallocarray(v->evidence, v->evidence_count + 1U, sizeof *grown);
    if (!grown)
        return;
    v->evidence = grown;
    v->evidence[v->evidence_count++] = *e;
}

static void mark_passes(struct judge *j) {
    uint32_t passed = 0;
    for (int kind = 0; kind < PROBE_KIND_COUNT; kind++)
        passed |= j->paths[kind].passed;
    for (int hop = 0; hop < HOP_COUNT; hop++)
        if (passed & HOPBIT(hop))
            j->out->hops[hop].verdict = VERDICT_PASS;
}

static void mark_failures(struct judge *j) {
    for (uint32_t i = 0; i < j->out->findings_count; i++) {
        const struct finding *f = &j->out->findings[i];
        struct hop_verdict *v = &j->out->hops[f->hop];
        if (f->role != ROLE_ROOT_CAUSE)
            continue;
        if (v->verdict != VERDICT_FAIL)
            v->evidence_count = 0;
        v->verdict = VERDICT_FAIL;
        for (uint8_t e = 0; e < f->evidence_count; e++)
            hop_evidence(v, &f->evidence[e]);
    }
}

/* Behind the first failure of a way nothing can be said that was not seen. */
static void mark_not_reached(struct judge *j) {
    bool failed = false;
    for (int hop = 0; hop < HOP_COUNT; hop++) {
        struct hop_verdict *v = &j->out->hops[hop];
        bool on_the_way = is_there((enum hop)hop) || is_back((enum hop)hop);
        if (on_the_way && failed && v->verdict == VERDICT_UNKNOWN && j->dead)
            v->verdict = VERDICT_NOT_REACHED;
        if (on_the_way && v->verdict == VERDICT_FAIL && (j->dead & FLOWS_HOST))
            failed = true;
    }
}

/* What the guest says of its own hops stands beside what was seen there. */
static void add_guest_words(struct judge *j) {
    for (uint8_t i = 0; i < j->out->ends_count; i++) {
        const struct end_row *row = &j->out->ends[i];
        struct evidence e;
        evidence_set(&e, "agent", row->what, "the guest says: %s", row->guest);
        if (j->out->hops[row->hop].verdict != VERDICT_FAIL)
            hop_evidence(&j->out->hops[row->hop], &e);
    }
}

void rank_hops(struct judge *j) {
    mark_passes(j);
    mark_failures(j);
    mark_not_reached(j);
    add_guest_words(j);
}

void rank_reachable(struct judge *j) {
    uint32_t arp = j->alive & FLOWS_ARP;
    const struct path *tcp = &j->paths[PROBE_TCP], *icmp = &j->paths[PROBE_ICMP];
    if (!j->target->ip || !(j->asked & FLOWS_HOST))
        return;
    if (j->target->port && tcp->asked)
        j->out->reachable = arp && tcp->alive;
    else
        j->out->reachable = arp && icmp->alive;
}

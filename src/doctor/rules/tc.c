/* Queueing disciplines, tc filters and programs on the devices along the way. */
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <stdio.h>
#include <string.h>

#include "doctor/rules/internal.h"

#define RATE_STARVES 1000        /* bytes a second: a ping needs a hundred */
#define DELAY_KILLS 1000000000UL /* ns */
#define SUSPECTS_MAX 16          /* filters of a device and direction that are told */

static uint32_t flows_through(const struct judge *j, const struct snap_link *link, bool egress) {
    if (link == j->tap)
        return FLOWS_GUEST;
    if (link == j->bridge)
        return egress ? FLOWS_HOST | FLOWS_TO_HOST : FLOWS_HOST | FLOWS_TO_HOST | FLOWS_EGRESS;
    return FLOWS_EGRESS;
}

static enum hop hop_at(const struct judge *j, const struct snap_link *link, bool egress) {
    if (link == j->tap)
        return egress ? HOP_TAP_EGRESS : HOP_TAP_INGRESS;
    if (link == j->bridge)
        return egress ? HOP_BRIDGE_DEV : HOP_BRIDGE_INPUT;
    return HOP_HOST_UPLINK;
}

/* --- qdiscs --- */

static const struct snap_qdisc *same_qdisc(const struct snapshot *s, const struct snap_qdisc *q) {
    for (uint32_t i = 0; s && i < s->qdiscs_count; i++)
        if (s->qdiscs[i].link == q->link && s->qdiscs[i].handle == q->handle && s->qdiscs[i].parent == q->parent &&
            s->qdiscs[i].is_class == q->is_class)
            return &s->qdiscs[i];
    return NULL;
}

static const char *surely_drops(const struct snap_qdisc *q) {
    if (strcmp(q->kind, "blackhole") == 0)
        return "it is a blackhole";
    if ((strcmp(q->kind, "pfifo") == 0 || strcmp(q->kind, "bfifo") == 0) && q->limit == 0)
        return "its limit is 0";
    if (strcmp(q->kind, "netem") == 0 && q->loss == UINT32_MAX)
        return "its loss is 100 %";
    if (strcmp(q->kind, "netem") == 0 && q->limit == 0)
        return "its limit is 0";
    return NULL;
}

static const char *surely_holds(const struct snap_qdisc *q) {
    if (strcmp(q->kind, "netem") == 0 && q->delay_ns >= DELAY_KILLS)
        return "its delay is longer than a second";
    if (strcmp(q->kind, "plug") == 0)
        return "it is a plug";
    return NULL;
}

static void offer_delete(struct cause *c, const struct snap_link *link, const struct snap_qdisc *q) {
    if (q->is_class)
        return;
    if (!repair_qdisc_has_classes(q->kind)) {
        struct repair_step *step = cause_step(c, REPAIR_QDISC_DELETE, link->name);
        step->handle = q->handle;
        step->parent = q->parent;
        return;
    }
    struct repair_step step = {.action = REPAIR_QDISC_DELETE, .handle = q->handle, .parent = q->parent};
    char command[REPAIR_COMMAND_SIZE];
    str_copy(step.dev, sizeof step.dev, link->name);
    repair_step_command(&step, command);
    cause_plan(c, "%s", command);
    cause_plan(c, "its classes go with it and no program can put them back: keep `tc -s class show` before");
}

static void judge_qdisc(struct judge *j, const struct snap_link *link, const struct snap_qdisc *q) {
    const struct snap_qdisc *after = same_qdisc(j->host->after, q);
    uint64_t drops = after && after->drops > q->drops ? after->drops - q->drops : 0;
    uint64_t waiting = after ? after->backlog_packets : q->backlog_packets;
    const char *drop = surely_drops(q), *hold = surely_holds(q);
    bool starves = q->rate_bps > 0 && q->rate_bps < RATE_STARVES;
    /* Below a root that sorts by classes it may be for others' packets: then it has dropped none of ours. */
    bool below = q->parent != TC_H_ROOT;
    if (below && drop && after && !drops)
        drop = NULL;
    uint32_t flows = flows_through(j, link, true) & ~acquit_flows_left(j, link);
    struct cause *c = NULL;
    char where[64];
    snprintf(where, sizeof where, "%s %s %x:%x", q->is_class ? "class" : "qdisc", q->kind, q->handle >> 16,
             q->handle & 0xffff);
    if (drop || drops) {
        c = cause_add(j, "qdisc.drops", drop && !below ? flows : 0, flows, "qdisc %s on %s drops frames", q->kind,
                      link->name);
        cause_evidence(c, "qdisc", link->name, "%s: %s%s%llu dropped in all, %llu during the probe", where,
                       drop ? drop : "", drop ? ", " : "", (unsigned long long)(after ? after->drops : q->drops),
                       (unsigned long long)drops);
    } else if (hold || waiting || starves) {
        c = cause_add(j, "qdisc.stalled", hold && !below ? flows : 0, flows, "qdisc %s on %s holds frames back",
                      q->kind, link->name);
        cause_evidence(c, "qdisc", link->name, "%s: %s%s%llu frames waiting", where, hold ? hold : "", hold ? ", " : "",
                       (unsigned long long)waiting);
        if (starves)
            cause_evidence(c, "qdisc", link->name, "its rate is %llu bytes a second", (unsigned long long)q->rate_bps);
    }
    if (!c)
        return;
    c->finding.hop = hop_at(j, link, true);
    c->seen = drops > 0 || waiting > 0;
    offer_delete(c, link, q);
}

/* Only the worst of a device: a class and its qdisc count the same frames. */
static void rule_qdiscs(struct judge *j, const struct snap_link *link) {
    const struct snap_qdisc *root = NULL;
    for (uint32_t i = 0; i < j->s->qdiscs_count; i++) {
        const struct snap_qdisc *q = &j->s->qdiscs[i];
        if (q->link != link->index || strcmp(q->kind, "clsact") == 0 || strcmp(q->kind, "ingress") == 0)
            continue;
        if (q->parent == TC_H_ROOT && !q->is_class)
            root = q;
    }
    if (!root)
        return;
    uint32_t before = j->causes_count;
    judge_qdisc(j, link, root);
    for (uint32_t i = 0; i < j->s->qdiscs_count && j->causes_count == before; i++) {
        const struct snap_qdisc *q = &j->s->qdiscs[i];
        if (q->link == link->index && q != root && strcmp(q->kind, "clsact") != 0 && strcmp(q->kind, "ingress") != 0)
            judge_qdisc(j, link, q);
    }
}

/* --- filters --- */

static bool is_certain(const struct snap_filter *f) {
    return !f->conditional && f->action != -3;
}

/* Which flows are of a filter's protocol. */
static uint32_t flows_of(const struct snap_filter *f, uint32_t flows) {
    uint32_t arp =
        FLOWS_ARP | FLOW(PROBE_ARP_UNICAST) | FLOW(PROBE_CANARY_ARP) | FLOW_PEER | FLOW(PROBE_CANARY_ARP_HOST);
    if (f->protocol == 0x0806)
        return flows & arp;
    if (f->protocol == 0x0800)
        return flows & ~arp;
    return f->protocol == 3 || f->protocol == 0 ? flows : 0;
}

/* Chains but the first are looked at only where a filter goes to them. */
static bool is_in_use(const struct snapshot *s, const struct snap_filter *f) {
    for (uint32_t i = 0; f->chain && i < s->filters_count; i++) {
        const struct snap_filter *o = &s->filters[i];
        if (o->link == f->link && o->egress == f->egress && o->action == (int32_t)(TC_ACT_GOTO_CHAIN | f->chain))
            return true;
    }
    return !f->chain;
}

static const struct snap_filter *same_filter(const struct snapshot *s, const struct snap_filter *f) {
    for (uint32_t i = 0; s && i < s->filters_count; i++) {
        const struct snap_filter *o = &s->filters[i];
        if (o->link == f->link && o->parent == f->parent && o->priority == f->priority && o->handle == f->handle &&
            o->prog_id == f->prog_id && o->egress == f->egress && o->protocol == f->protocol && o->chain == f->chain)
            return o;
    }
    return NULL;
}

/* Of the frames that it is for, none came while we asked: it has taken none of ours. Its action counts each. */
static bool has_met_none(const struct judge *j, const struct snap_filter *f) {
    const struct snap_filter *after = same_filter(j->host->after, f);
    return !f->is_tcx && *f->actions && after && after->packets == f->packets;
}

static void describe_filter(struct judge *j, struct cause *c, const struct snap_link *link,
                            const struct snap_filter *f) {
    const struct snap_prog *prog = snap_prog_get(j->s, f->prog_id);
    const struct snap_filter *after = same_filter(j->host->after, f);
    uint64_t more = after && after->packets > f->packets ? after->packets - f->packets : 0;
    char where[96], id_text[16];
    snprintf(id_text, sizeof id_text, "%u", f->link_id);
    snprintf(where, sizeof where, "%s %s pref %u handle 0x%x", link->name, f->egress ? "egress" : "ingress",
             f->priority, f->handle);
    if (f->is_tcx)
        snprintf(where, sizeof where, "%s tcx/%s", link->name, f->egress ? "egress" : "ingress");
    if (f->prog_id)
        cause_evidence(c, "tc", where, "%s program %u \"%s\", tag %s%s%s", f->kind, f->prog_id, prog ? prog->name : "?",
                       prog ? prog->tag : "?", f->link_id ? ", by link " : "", f->link_id ? id_text : "");
    else
        cause_evidence(c, "tc", where, "%s, action %s%s%s", f->kind, *f->actions ? f->actions : "its own",
                       f->to_link ? " to " : "", snap_link_name(j->s, f->to_link));
    if (more)
        cause_evidence(c, "counters", where, "%llu packets more during the probe", (unsigned long long)more);
    if (more && c)
        c->seen = true;
    if (f->is_tcx) {
        struct repair_step *off = cause_step(c, REPAIR_TCX_DETACH, link->name);
        off->value = f->egress;
        off->handle = f->prog_id;
        off->parent = f->link_id;
        return;
    }
    if (f->block) {
        cause_plan(c, "tc filter del block %u pref %u, for all devices that share block %u", f->block, f->priority,
                   f->block);
        return;
    }
    struct repair_step *step = cause_step(c, REPAIR_FILTER_DELETE, link->name);
    step->parent = f->parent;
    step->priority = f->priority;
    step->protocol = f->protocol;
    step->chain = f->chain;
    step->handle = f->handle;
}

static bool takes_away(const struct snap_filter *f) {
    return f->action == TC_ACT_SHOT || f->action == TC_ACT_STOLEN || f->action == TC_ACT_QUEUED ||
           f->action == TC_ACT_TRAP || (f->to_link && f->action != TC_ACT_OK);
}

static void rule_filters(struct judge *j, const struct snap_link *link, bool egress) {
    /* What no filter has decided for sure. */
    uint32_t left =
        flows_through(j, link, egress) & ~(egress ? acquit_flows_left(j, link) : acquit_flows_not_come(j, link));
    uint32_t told = 0;
    for (uint32_t i = 0; i < j->s->filters_count && told < SUSPECTS_MAX; i++) {
        const struct snap_filter *f = &j->s->filters[i];
        if (f->link != link->index || f->egress != egress || !is_in_use(j->s, f))
            continue;
        uint32_t flows = flows_of(f, left);
        bool away = takes_away(f), decides = f->action == -3, certain = is_certain(f) && !f->chain;
        if (certain && !decides && (away || f->action == TC_ACT_OK))
            left &= ~flows;
        if ((!away && !decides) || (!certain && away && has_met_none(j, f)) ||
            (decides && (acquit_program(j, link, egress) || acquit_by_gateway(j, link, egress))))
            continue;
        bool redirect = f->to_link || f->action == TC_ACT_STOLEN;
        const struct snap_prog *prog = snap_prog_get(j->s, f->prog_id);
        struct cause *c = cause_add(j,
                                    egress     ? redirect ? "tc.egress-redirect" : "tc.egress-drop"
                                    : redirect ? "tc.ingress-redirect"
                                               : "tc.ingress-drop",
                                    away && certain ? flows : 0, flows, "tc %s %s on %s: %s",
                                    egress ? "egress" : "ingress", f->kind, link->name,
                                    prog       ? prog->name
                                    : redirect ? "takes frames elsewhere"
                                               : "drops frames");
        if (!c)
            return;
        told++;
        c->finding.hop = hop_at(j, link, egress);
        describe_filter(j, c, link, f);
    }
}

void rules_tc(struct judge *j) {
    const struct snap_link *uplink = judge_uplink(j);
    const struct snap_link *links[] = {j->tap, j->bridge, uplink != j->bridge && uplink != j->tap ? uplink : NULL};
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        if (!links[i])
            continue;
        rule_qdiscs(j, links[i]);
        rule_filters(j, links[i], true);
        rule_filters(j, links[i], false);
    }
}

/* One target for a tired person: the way with the red line in it, then the story in plain sentences. */
#include <errno.h>
#include <string.h>

#include "base/str.h"
#include "doctor/report/pen.h"

#define LABEL 10      /* columns of "how far:" */
#define ENDS_LABEL 21 /* of "   address   guest " */

/* What a hop is, for who does not know the word. */
static const char *const places[HOP_COUNT] = {
    [HOP_HOST_ROUTE] = "the host's route to the guest",
    [HOP_HOST_NEIGH] = "the host's ARP entry for the guest",
    [HOP_HOST_OUTPUT] = "packet filters, what the host sends",
    [HOP_BRIDGE_DEV] = "the bridge device",
    [HOP_BRIDGE_OUTPUT] = "bridge filters, what the host sends",
    [HOP_BRIDGE_FORWARD] = "to which ports the bridge sends it",
    [HOP_BRIDGE_PORT] = "the TAP's port of the bridge",
    [HOP_TAP_EGRESS] = "filters and queue of the TAP",
    [HOP_TAP_DEV] = "the TAP device",
    [HOP_TAP_QUEUE] = "the TAP's ring, to be read by the VMM",
    [HOP_VMM] = "the VMM that reads the TAP",
    [HOP_GUEST_NIC] = "the guest's network card",
    [HOP_GUEST_IP] = "the guest's address and routes",
    [HOP_GUEST_FIREWALL] = "the guest's packet filter",
    [HOP_GUEST_SERVICE] = "the guest's service",
    [HOP_TAP_INGRESS] = "filters, what the guest sends",
    [HOP_BRIDGE_INPUT] = "bridge filters, towards the host",
    [HOP_HOST_INPUT] = "packet filters, what the host gets",
    [HOP_HOST_FORWARD] = "the host forwards it",
    [HOP_HOST_NAT] = "the host's address in place of the guest's",
    [HOP_HOST_UPLINK] = "the host's way out",
};

/* --- the way --- */

static void hop_line(const struct pen *pen, enum hop hop, const struct hop_verdict *v) {
    static const char *const marks[] = {[VERDICT_UNKNOWN] = "  ?    ",
                                        [VERDICT_PASS] = "  pass ",
                                        [VERDICT_FAIL] = "> FAIL ",
                                        [VERDICT_NOT_REACHED] = "  -    "};
    char line[512];
    if (v->verdict == VERDICT_FAIL) {
        snprintf(line, sizeof line, "%s%-15s %s", marks[v->verdict], finding_hop_name(hop), places[hop]);
        pen_ink(pen, RED, line);
        fputc('\n', pen->to);
        for (uint8_t i = 0; i < v->evidence_count && i < 1; i++) {
            snprintf(line, sizeof line, "%s: %s", v->evidence[i].where, v->evidence[i].fact);
            pen_paragraph(pen, 23, "", RED, line);
        }
        return;
    }
    if (v->verdict == VERDICT_PASS) {
        pen_ink(pen, GREEN, marks[v->verdict]);
        fprintf(pen->to, "%-15s ", finding_hop_name(hop));
        pen_ink(pen, DIM, places[hop]);
    } else {
        snprintf(line, sizeof line, "%s%-15s %s", marks[v->verdict], finding_hop_name(hop), places[hop]);
        pen_ink(pen, DIM, line);
    }
    fputc('\n', pen->to);
}

static bool was_looked_at(const struct judgement *j, enum hop first, enum hop last) {
    for (int i = (int)first; i <= (int)last; i++)
        if (j->hops[i].verdict == VERDICT_PASS || j->hops[i].verdict == VERDICT_FAIL)
            return true;
    return false;
}

static void way(const struct pen *pen, const struct judgement *j) {
    pen_ink(pen, DIM, "  the way there (pass: packets were seen to get past; ?: not known; -: not reached)\n");
    for (int i = 0; i < HOP_COUNT; i++) {
        if (i == HOP_TAP_INGRESS)
            pen_ink(pen, DIM, "  and back\n");
        if (i == HOP_HOST_FORWARD && !was_looked_at(j, HOP_HOST_FORWARD, HOP_HOST_UPLINK)) {
            pen_ink(pen, DIM, "  to the outside (host.forward, host.nat, host.uplink): not asked\n");
            return;
        }
        if (i == HOP_HOST_FORWARD)
            pen_ink(pen, DIM, "  to the outside\n");
        hop_line(pen, (enum hop)i, &j->hops[i]);
    }
}

/* The host's view and the guest's, one below the other; what does not go together is marked. */
static void both_ends(const struct pen *pen, const struct judgement *j) {
    char line[320];
    if (!j->ends_count) {
        if (j->guest_state >= 0) {
            snprintf(line, sizeof line, "the guest was not heard: %s", j->guest_words);
            pen_paragraph(pen, 2, "", DIM, line);
        }
        return;
    }
    pen_ink(pen, DIM, "  both ends (the guest's word is not proof; != : they do not go together)\n");
    for (uint8_t i = 0; i < j->ends_count; i++) {
        const struct end_row *row = &j->ends[i];
        snprintf(line, sizeof line, "  %s %-9s host  ", row->agree == 0 ? "!=" : "  ", row->what);
        pen_paragraph(pen, ENDS_LABEL, line, row->agree == 0 ? YELLOW : "", row->host);
        pen_paragraph(pen, ENDS_LABEL, "               guest ", row->agree == 0 ? YELLOW : "", row->guest);
    }
}

/* --- the story --- */

static const struct probe_target_result *result_of(const struct doctor_case *c, uint32_t target) {
    int at = c->probe_indexes[target];
    return c->probe && at >= 0 && (size_t)at < c->probe->target_count ? &c->probe->targets[at] : NULL;
}

static bool was_refused(const struct probe_answer *a) {
    return a->answered && a->answer_errno == ECONNREFUSED;
}

static void add_time(struct strbuf *text, const struct probe_answer *a) {
    if (a->rtt_us >= 0)
        strbuf_addf(text, " in %lld.%lld ms", (long long)a->rtt_us / 1000, (long long)a->rtt_us / 100 % 10);
}

static void add_result(struct strbuf *text, const char *what, const struct probe_answer *a) {
    if (!a->asked)
        return;
    strbuf_addf(text, "%s%s: ", text->len ? "; " : "", what);
    if (!a->sent && a->send_errno)
        strbuf_addf(text, "could not be sent (%s)", strerror(a->send_errno));
    else if (was_refused(a))
        strbuf_addf(text, "refused");
    else if (a->answered && !a->answer_errno) {
        strbuf_addf(text, "answered");
        add_time(text, a);
    } else if (a->answered || a->answer_errno)
        strbuf_addf(text, "failed (%s)", strerror(a->answer_errno));
    else
        strbuf_addf(text, "NO ANSWER");
}

/* What was asked, and what became of it. */
static void asked(const struct pen *pen, const struct doctor_case *c, uint32_t target) {
    const struct probe_target_result *t = result_of(c, target);
    struct strbuf text = {.max = 900};
    char port[40], large[40];
    if (!t) {
        pen_paragraph(pen, LABEL, "sent:", "",
                      !c->wanted_probe                  ? "nothing: only the state was read (--no-probe)"
                      : c->judgements[target].target.ip ? "nothing: it could not be asked"
                                                        : "nothing: nobody knows the guest's address (--guest-ip)");
        return;
    }
    snprintf(port, sizeof port, "TCP to port %u", t->target.port);
    snprintf(large, sizeof large, "ping of %u bytes", t->answer[PROBE_LARGE].size);
    add_result(&text, "ARP", &t->answer[PROBE_ARP]);
    add_result(&text, "ping", &t->answer[PROBE_ICMP]);
    if (t->answer[PROBE_ICMP].answered)
        add_result(&text, large, &t->answer[PROBE_LARGE]);
    add_result(&text, port, &t->answer[PROBE_TCP]);
    add_result(&text, "ARP from another port of the bridge (the doctor's canary)", &t->answer[PROBE_CANARY_ARP]);
    if (!t->answer[PROBE_CANARY_ARP].asked || t->answer[PROBE_CANARY_ARP].answered)
        add_result(&text, "ping from there", &t->answer[PROBE_CANARY_ICMP]);
    add_result(&text, "ping from there to the outside", probe_answer(c->probe, 0, PROBE_EGRESS));
    pen_paragraph(pen, LABEL, "sent:", "", text.data ? text.data : "nothing");
    strbuf_free(&text);
}

/* The first question that was lost. Return: false when none was. */
static bool find_lost(const struct doctor_case *c, uint32_t target, enum probe_kind *ret) {
    static const enum probe_kind order[] = {PROBE_ARP, PROBE_ICMP,       PROBE_ARP_KERNEL,  PROBE_LARGE,
                                            PROBE_TCP, PROBE_CANARY_ARP, PROBE_CANARY_ICMP, PROBE_EGRESS};
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        const struct probe_answer *a = probe_answer(c->probe, (size_t)c->probe_indexes[target], order[i]);
        if (a && a->asked && (!a->answered || a->answer_errno) && !was_refused(a)) {
            *ret = order[i];
            return true;
        }
    }
    return false;
}

static const char *subject_of(enum probe_kind kind) {
    static const char *const subjects[PROBE_KIND_COUNT] = {
        [PROBE_ARP] = "The ARP request",
        [PROBE_ARP_KERNEL] = "The host's own ARP request",
        [PROBE_LARGE] = "The large ping",
        [PROBE_TCP] = "The TCP SYN",
        [PROBE_CANARY_ARP] = "The ARP request from another port",
        [PROBE_CANARY_ICMP] = "The ping from another port",
        [PROBE_EGRESS] = "The ping to the outside",
    };
    return subjects[kind] ? subjects[kind] : "The ping";
}

static void add_elsewhere(struct strbuf *text, const struct probe_answer *a) {
    for (uint32_t i = 0; i < a->request_elsewhere_count; i++)
        strbuf_addf(text, "%s%s", i ? ", " : "", a->request_elsewhere[i].name);
}

/* As far as captures tell, in the order of the way. */
static void add_places(struct strbuf *text, const struct doctor_case *c, const struct probe_answer *a,
                       const char *tap) {
    const char *bridge = c->probe->bridge_name;
    bool left = a->request_bridge.count || a->request_canary.count;
    if (a->reply_bridge.count)
        strbuf_addf(text, " went to %s and was answered; the answer was seen on %s again, and who asked did not get it",
                    tap, bridge);
    else if (a->reply_tap.count)
        strbuf_addf(text, " went to %s and was answered; the answer came in there, and never got as far as %s", tap,
                    bridge);
    else if (a->request_tap.count)
        strbuf_addf(text, " was seen going out on %s, and no answer came in there", tap);
    else if (a->request_bridge.count && !a->request_canary.count)
        strbuf_addf(text, " was seen leaving the host on %s, and never on %s", bridge, tap);
    else if (left)
        strbuf_addf(text, " entered the bridge, and was never seen on %s", tap);
    else if (a->request_elsewhere_count) {
        strbuf_addf(text, " left by ");
        add_elsewhere(text, a);
        strbuf_addf(text, " and not by %s", bridge);
    } else
        strbuf_addf(text, " was seen nowhere: neither on %s nor on %s", bridge, tap);
}

static void how_far(const struct pen *pen, const struct doctor_case *c, uint32_t target, const struct finding *f) {
    struct strbuf text = {.max = 900};
    enum probe_kind kind;
    if (result_of(c, target) && !c->probe->capture_errno && find_lost(c, target, &kind)) {
        const struct probe_answer *a = probe_answer(c->probe, (size_t)c->probe_indexes[target], kind);
        strbuf_addf(&text, "%s", subject_of(kind));
        if (!a->sent && a->send_errno)
            strbuf_addf(&text, " was refused by the host's own kernel: %s", strerror(a->send_errno));
        else if (kind == PROBE_EGRESS && a->request_elsewhere_count) {
            strbuf_addf(&text, " went out by ");
            add_elsewhere(&text, a);
            strbuf_addf(&text, ", and no answer came");
        } else if (kind == PROBE_EGRESS)
            strbuf_addf(&text, " never left the host");
        else
            add_places(&text, c, a, c->judgements[target].target.tap);
        strbuf_addf(&text, ". ");
    } else if (result_of(c, target) && was_refused(&result_of(c, target)->answer[PROBE_TCP])) {
        strbuf_addf(&text, "The TCP SYN went the whole way, and the guest itself refused it. ");
    }
    strbuf_addf(&text, "It ends at %s (%s).", finding_hop_name(f->hop), places[f->hop]);
    pen_paragraph(pen, LABEL, "how far:", "", text.data ? text.data : "");
    strbuf_free(&text);
}

static void evidence(const struct pen *pen, const struct finding *f) {
    for (uint8_t i = 0; i < f->evidence_count; i++) {
        char line[512];
        snprintf(line, sizeof line, "[%s] %s: %s", f->evidence[i].source, f->evidence[i].where, f->evidence[i].fact);
        pen_paragraph(pen, LABEL, i ? "" : "we know:", "", line);
    }
}

static void cause(const struct pen *pen, const struct doctor_case *c, uint32_t target, const struct finding *f,
                  const char *head) {
    char line[320];
    fputc('\n', pen->to);
    snprintf(line, sizeof line, "%s: %s", head, f->id);
    pen_ink(pen, finding_is_mended(f) ? GREEN : f->role == ROLE_ROOT_CAUSE ? RED : YELLOW, line);
    snprintf(line, sizeof line, " at %s, %s, %.0f %% sure\n", finding_hop_name(f->hop), f->layer, f->confidence * 100);
    pen_ink(pen, DIM, line);
    snprintf(line, sizeof line, "%s.", f->title);
    pen_paragraph(pen, LABEL, "what:", BOLD, line);
    pen_paragraph(pen, LABEL, "", "", f->explanation);
    evidence(pen, f);
    if (!finding_is_mended(f) && (f->step_count || f->plan_count)) /* else it is all that can be said to mend it */
        pen_paragraph(pen, LABEL, "do:", "", f->advice);
    pen_remedy(pen, c, target, f);
}

static const char *head_of(const struct finding *f, uint32_t causes) {
    if (finding_is_mended(f))
        return "mended";
    if (f->role == ROLE_ROOT_CAUSE)
        return causes ? "and behind it" : "root cause";
    return f->role == ROLE_NOTE ? "note" : finding_role_name(f->role);
}

void pen_explain(const struct pen *pen, const struct doctor_case *c, uint32_t target) {
    const struct judgement *j = &c->judgements[target];
    const struct finding *first = NULL;
    uint32_t causes = 0;
    for (uint32_t i = j->findings_count; i-- > 0;)
        if (j->findings[i].role == ROLE_ROOT_CAUSE && !finding_is_mended(&j->findings[i]))
            first = &j->findings[i];
    pen_target(pen, c, target);
    if (first)
        pen_paragraph(pen, 6, "", RED, first->title);
    fputc('\n', pen->to);
    way(pen, j);
    both_ends(pen, j);
    fputc('\n', pen->to);
    asked(pen, c, target);
    if (first)
        how_far(pen, c, target, first);
    else if (j->reachable > 0)
        pen_paragraph(pen, LABEL, "how far:", "", "The whole way and back. Nothing is wrong here.");
    else
        pen_paragraph(pen, LABEL, "how far:", "", "Nothing that was read or seen is wrong here.");
    for (uint32_t i = 0; i < j->findings_count; i++) {
        cause(pen, c, target, &j->findings[i], head_of(&j->findings[i], causes));
        causes += j->findings[i].role == ROLE_ROOT_CAUSE && !finding_is_mended(&j->findings[i]);
    }
}

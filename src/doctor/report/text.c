/* For a tired person: where it is red, then the story. */
#include <string.h>

#include "base/str.h"
#include "doctor/report/report.h"

#define RED "\033[1;31m"
#define GREEN "\033[32m"
#define YELLOW "\033[33m"
#define DIM "\033[2m"
#define OFF "\033[0m"

struct pen {
    FILE *to;
    bool colour;
};

static const char *ink(const struct pen *pen, const char *colour) {
    return pen->colour ? colour : "";
}

static void say(const struct pen *pen, const char *text) {
    char shown[2048];
    fputs(str_escape(text, strlen(text), shown, sizeof shown), pen->to);
}

static const char *mark_of(enum verdict verdict) {
    switch (verdict) {
    case VERDICT_PASS:
        return "pass";
    case VERDICT_FAIL:
        return "FAIL";
    case VERDICT_UNKNOWN:
        return "?";
    case VERDICT_NOT_REACHED:
        return "-";
    }
    return "";
}

static const char *colour_of(enum verdict verdict) {
    switch (verdict) {
    case VERDICT_PASS:
        return GREEN;
    case VERDICT_FAIL:
        return RED;
    case VERDICT_UNKNOWN:
        return YELLOW;
    case VERDICT_NOT_REACHED:
        return DIM;
    }
    return "";
}

static void hop_line(const struct pen *pen, enum hop hop, const struct hop_verdict *v) {
    fprintf(pen->to, "  %s%-5s %-15s%s", ink(pen, colour_of(v->verdict)), mark_of(v->verdict), finding_hop_name(hop),
            ink(pen, OFF));
    if (v->evidence_count && v->verdict != VERDICT_PASS) {
        fputs("  ", pen->to);
        say(pen, v->evidence[0].where);
        fputs(": ", pen->to);
        say(pen, v->evidence[0].fact);
    }
    fputc('\n', pen->to);
}

static void way(const struct pen *pen, const struct judgement *j) {
    for (int i = 0; i < HOP_COUNT; i++) {
        if (i == HOP_TAP_INGRESS)
            fprintf(pen->to, "  %s(back)%s\n", ink(pen, DIM), ink(pen, OFF));
        if (i == HOP_HOST_FORWARD)
            fprintf(pen->to, "  %s(to the outside)%s\n", ink(pen, DIM), ink(pen, OFF));
        hop_line(pen, (enum hop)i, &j->hops[i]);
    }
}

static void paragraph(const struct pen *pen, const char *head, const char *body) {
    if (!*body)
        return;
    fprintf(pen->to, "    %s%s%s ", ink(pen, DIM), head, ink(pen, OFF));
    say(pen, body);
    fputc('\n', pen->to);
}

static void plan(const struct pen *pen, const struct finding *f) {
    for (uint8_t i = 0; i < f->step_count; i++) {
        char command[REPAIR_COMMAND_SIZE];
        repair_step_command(&f->steps[i], command);
        paragraph(pen, f->safe ? "repair (safe):" : "repair:", command);
    }
    for (uint8_t i = 0; i < f->plan_count; i++)
        paragraph(pen, "by hand:", f->plan[i]);
    if (f->applied)
        paragraph(pen, "repaired:", f->proven == 1 ? "yes, and proven" : "applied, did not help, taken back");
    if (*f->journal) {
        char line[128];
        snprintf(line, sizeof line, "mctl doctor --undo %s", f->journal);
        paragraph(pen, "take it back:", line);
    }
    if (*f->repair_error)
        paragraph(pen, "not repaired:", f->repair_error);
}

static void finding(const struct pen *pen, const struct finding *f, bool explain) {
    fprintf(pen->to, "  %s%s%s %s at %s: ", ink(pen, f->role == ROLE_ROOT_CAUSE ? RED : YELLOW),
            finding_role_name(f->role), ink(pen, OFF), f->id, finding_hop_name(f->hop));
    say(pen, f->title);
    fputc('\n', pen->to);
    if (!explain)
        return;
    paragraph(pen, "what it means:", f->explanation);
    for (uint8_t i = 0; i < f->evidence_count; i++) {
        char line[512];
        snprintf(line, sizeof line, "%s, %s: %s", f->evidence[i].source, f->evidence[i].where, f->evidence[i].fact);
        paragraph(pen, "how we know:", line);
    }
    paragraph(pen, "what to do:", f->advice);
    plan(pen, f);
}

static const char *reach_word(int8_t reachable) {
    return reachable > 0 ? "reachable" : reachable == 0 ? "NOT REACHABLE" : "not asked";
}

static void story(const struct pen *pen, const struct judgement *j) {
    const struct finding *f = j->findings_count ? &j->findings[0] : NULL;
    char ip[NET_IP_TEXT];
    net_format_ip(j->target.ip, ip);
    fputs("\n  ", pen->to);
    if (!f || f->role != ROLE_ROOT_CAUSE) {
        fputs(j->reachable > 0 ? "What was sent came back the whole way. Nothing is wrong here.\n"
                               : "Nothing that was read or seen is wrong here.\n",
              pen->to);
        return;
    }
    if (j->reachable >= 0)
        fprintf(pen->to, "ARP, ping%s were sent to %s. ", j->target.port ? " and a TCP connection" : "",
                j->target.ip ? ip : "the guest");
    fprintf(pen->to, "The way is broken at %s: ", finding_hop_name(f->hop));
    say(pen, f->title);
    fputs(". ", pen->to);
    say(pen, f->explanation);
    fputc('\n', pen->to);
}

static void target(const struct pen *pen, const struct judgement *j, bool explain) {
    char ip[NET_IP_TEXT];
    net_format_ip(j->target.ip, ip);
    fprintf(pen->to, "%s", ink(pen, j->reachable == 0 ? RED : j->reachable > 0 ? GREEN : YELLOW));
    say(pen, j->target.tap);
    fprintf(pen->to, "  %s  %s%s%s%s\n", j->target.ip ? ip : "address not known", reach_word(j->reachable),
            ink(pen, OFF), *j->target.vm_id ? "  " : "", j->target.vm_id);
    if (explain) {
        way(pen, j);
        story(pen, j);
    }
    for (uint32_t i = 0; i < j->findings_count; i++)
        finding(pen, &j->findings[i], explain);
}

static void limits(const struct pen *pen, const struct doctor_case *c) {
    for (uint32_t i = 0; i < c->before->gaps_count; i++) {
        fprintf(pen->to, "%scould not read %s:%s ", ink(pen, YELLOW), c->before->gaps[i].what, ink(pen, OFF));
        say(pen, c->before->gaps[i].detail);
        fprintf(pen->to, " (%s)\n", strerror(c->before->gaps[i].errnum));
    }
    if (c->probe_error.errnum) {
        fprintf(pen->to, "%snot asked:%s ", ink(pen, YELLOW), ink(pen, OFF));
        say(pen, c->probe_error.detail);
        fputc('\n', pen->to);
    }
    if (c->probe && c->probe->trace && !c->probe->trace->tracefs.had) {
        fprintf(pen->to, "%sno trace:%s ", ink(pen, YELLOW), ink(pen, OFF));
        say(pen, c->probe->trace->tracefs.why);
        fputc('\n', pen->to);
    }
}

void report_text(const struct doctor_case *c, bool explain, bool colour, FILE *to) {
    struct pen pen = {to, colour};
    for (uint32_t i = 0; i < c->count; i++)
        target(&pen, &c->judgements[i], explain);
    if (c->count == 0)
        fprintf(to, "there is no TAP to look at on %s\n", c->before->host.bridge);
    limits(&pen, c);
    bool healthy = doctor_is_healthy(c);
    fprintf(to, "%s%s%s (%lld ms)\n", ink(&pen, healthy ? GREEN : RED), healthy ? "healthy" : "not healthy",
            ink(&pen, OFF), (long long)c->duration_ms);
}

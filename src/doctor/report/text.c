/* The findings in few words: what is wrong first, then what to do, then what is well. */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/str.h"
#include "doctor/report/pen.h"
#include "doctor/report/report.h"

#define LABEL 10  /* columns of "  mend:" */
#define WIDTH 100 /* where there is no terminal that says */
#define WIDTH_MIN 60
#define WIDTH_MAX 140
#define NAMES_SHOWN 12
#define WELL_SHOWN 8 /* targets without a finding, a line each */

static bool is_there(const struct finding *f, enum role role) {
    return f->role == role && !finding_is_mended(f);
}

static uint32_t count_role(const struct judgement *j, enum role role) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < j->findings_count; i++)
        count += is_there(&j->findings[i], role);
    return count;
}

static bool is_sick(const struct judgement *j) {
    return count_role(j, ROLE_ROOT_CAUSE) > 0;
}

/* Of many there are often some with the same thing to note: they are told together. */
static bool is_only_noted(const struct judgement *j) {
    for (uint32_t i = 0; i < j->findings_count; i++)
        if (!is_there(&j->findings[i], ROLE_NOTE))
            return false;
    return j->findings_count > 0 && !j->target.named;
}

static bool is_told(const struct judgement *j) {
    return (j->findings_count > 0 && !is_only_noted(j)) || j->target.named;
}

void pen_target(const struct pen *pen, const struct doctor_case *c, uint32_t target) {
    const struct judgement *j = &c->judgements[target];
    char ip[NET_IP_TEXT], tap[4 * sizeof j->target.tap];
    net_format_ip(j->target.ip, ip);
    pen_ink(pen, is_sick(j) ? RED : j->reachable > 0 ? GREEN : "", is_sick(j) ? "SICK  " : "      ");
    str_escape(j->target.tap, strlen(j->target.tap), tap, sizeof tap);
    pen_ink(pen, BOLD, tap);
    fprintf(pen->to, "  %s  ", j->target.ip ? ip : "-");
    if (j->reachable == 0)
        pen_ink(pen, is_sick(j) ? RED : YELLOW, "NOT REACHABLE");
    else
        pen_ink(pen, j->reachable > 0 ? GREEN : YELLOW,
                j->reachable > 0 ? "reachable"
                : j->target.ip   ? "was not asked"
                                 : "cannot be asked: nobody knows its address");
    if (*j->target.vm_id) {
        fputs("  ", pen->to);
        pen_say(pen, j->target.vm_id);
    }
    fputc('\n', pen->to);
}

static bool is_well(const struct judgement *j) {
    return j->findings_count == 0 && !j->target.named;
}

/* --- what to do --- */

/* A line that somebody copies is never broken. */
static void command_line(const struct pen *pen, const char *head, const char *colour, const char *command) {
    struct pen wide = *pen;
    wide.width = INT_MAX;
    pen_paragraph(&wide, LABEL, head, colour, command);
}

static void commands(const struct pen *pen, const struct doctor_case *c, uint32_t target, const struct finding *f) {
    struct strbuf again = {.max = 1024};
    for (uint8_t i = 0; i < f->step_count; i++) {
        char command[REPAIR_COMMAND_SIZE];
        repair_step_command(&f->steps[i], command);
        command_line(pen, i ? "" : "  mend:", BOLD, command);
    }
    if (!f->step_count)
        return;
    pen_paragraph(pen, LABEL, "", DIM,
                  f->safe ? "or let the doctor do it, prove it, and be able to take it back:"
                          : "or let the doctor do it; only by name, as it may be somebody's own:");
    pen_command(c, target, &again);
    strbuf_addf(&again, " --repair%s%s", f->safe ? "" : "=", f->safe ? "" : f->id);
    command_line(pen, "", DIM, again.data ? again.data : "");
    strbuf_free(&again);
}

void pen_remedy(const struct pen *pen, const struct doctor_case *c, uint32_t target, const struct finding *f) {
    char line[512];
    if (finding_is_mended(f)) {
        for (uint8_t i = 0; i < f->step_count; i++) {
            repair_step_command(&f->steps[i], line);
            command_line(pen, i ? "" : "  done:", "", line);
        }
        snprintf(line, sizeof line, "looked again, and it is gone. mctl doctor --undo %s takes it back", f->journal);
        pen_paragraph(pen, LABEL, "  proof:", GREEN, line);
        return;
    }
    if (f->proven == 0)
        pen_paragraph(pen, LABEL, "  tried:", YELLOW, "the repair did not help and was taken back");
    if (*f->repair_error) {
        snprintf(line, sizeof line, "%s", f->repair_error);
        pen_paragraph(pen, LABEL, "  failed:", YELLOW, line);
    }
    commands(pen, c, target, f);
    for (uint8_t i = 0; i < f->plan_count; i++)
        pen_paragraph(pen, LABEL, i || f->step_count ? "" : "  mend:", "", f->plan[i]);
    if (!f->step_count && !f->plan_count)
        pen_paragraph(pen, LABEL, "  mend:", "", f->advice);
}

/* --- one target, short --- */

static const char *word_of(const struct finding *f) {
    if (finding_is_mended(f))
        return "mended";
    switch (f->role) {
    case ROLE_ROOT_CAUSE:
        return "root cause";
    case ROLE_CONTRIBUTING:
        return "contributes";
    case ROLE_SYMPTOM:
        return "symptom";
    case ROLE_NOTE:
        return "note";
    }
    return "";
}

static const char *ink_of(const struct finding *f) {
    if (finding_is_mended(f))
        return GREEN;
    return f->role == ROLE_ROOT_CAUSE ? RED : f->role == ROLE_NOTE ? "" : YELLOW;
}

static void short_finding(const struct pen *pen, const struct doctor_case *c, uint32_t target,
                          const struct finding *f) {
    char line[320];
    fputs("  ", pen->to);
    pen_ink(pen, ink_of(f), word_of(f));
    fprintf(pen->to, " at %s (%s):\n", finding_hop_name(f->hop), f->id);
    snprintf(line, sizeof line, "%s", f->title);
    pen_paragraph(pen, 4, "", "", line);
    if (f->role == ROLE_ROOT_CAUSE || finding_is_mended(f))
        pen_remedy(pen, c, target, f);
}

static void short_target(const struct pen *pen, const struct doctor_case *c, uint32_t target) {
    const struct judgement *j = &c->judgements[target];
    pen_target(pen, c, target);
    for (uint32_t i = 0; i < j->findings_count; i++)
        short_finding(pen, c, target, &j->findings[i]);
}

/* --- all --- */

static void limits(const struct pen *pen, const struct doctor_case *c) {
    char line[640];
    for (uint32_t i = 0; i < c->before->gaps_count; i++) {
        const struct snap_gap *gap = &c->before->gaps[i];
        snprintf(line, sizeof line, "%s: %s (%s)", gap->what, gap->detail, strerror(gap->errnum));
        pen_paragraph(pen, 16, "could not read", YELLOW, line);
    }
    if (c->probe_error.errnum)
        pen_paragraph(pen, 16, "was not asked", YELLOW, c->probe_error.detail);
    if (c->probe && c->probe->capture_errno) {
        snprintf(line, sizeof line, "what travels on bridge and TAPs (%s)", strerror(c->probe->capture_errno));
        pen_paragraph(pen, 16, "could not see", YELLOW, line);
    }
    if (c->probe && c->probe->trace && !c->probe->trace->tracefs.had)
        pen_paragraph(pen, 16, "had no trace", YELLOW, c->probe->trace->tracefs.why);
}

static void recovered(const struct pen *pen, const struct doctor_case *c) {
    char line[480];
    if (*c->recovered.journal) {
        snprintf(line, sizeof line, "%s, a repair of %s that a doctor which was killed had not finished, %s%s",
                 c->recovered.journal, c->recovered.finding,
                 *c->recovered.error ? "could not be taken back: " : "was taken back before", c->recovered.error);
        pen_paragraph(pen, 0, "", YELLOW, line);
    }
    if (*c->not_repaired) {
        snprintf(line, sizeof line, "nothing was repaired: %s", c->not_repaired);
        pen_paragraph(pen, 0, "", YELLOW, line);
    }
}

static void last_line(const struct pen *pen, const struct doctor_case *c, bool explain) {
    uint32_t causes = 0, mended = 0;
    char line[160];
    for (uint32_t i = 0; i < c->count; i++) {
        causes += count_role(&c->judgements[i], ROLE_ROOT_CAUSE);
        for (uint32_t f = 0; f < c->judgements[i].findings_count; f++)
            mended += finding_is_mended(&c->judgements[i].findings[f]);
    }
    int status = doctor_exit_status(c);
    if (causes)
        snprintf(line, sizeof line, "not healthy: %u root cause%s%s", causes, causes > 1 ? "s" : "",
                 mended ? ", some others were mended" : "");
    else if (status == 1)
        snprintf(line, sizeof line, "not judged: too little could be read or asked");
    else
        snprintf(line, sizeof line, mended ? "mended and proven: healthy" : "healthy");
    pen_ink(pen, causes ? RED : status == 1 ? YELLOW : GREEN, line);
    fprintf(pen->to, " (%lld.%lld s)%s\n", (long long)c->duration_ms / 1000, (long long)c->duration_ms / 100 % 10,
            causes && !explain ? "  --explain shows the whole way and how we know" : "");
}

static bool has_note(const struct judgement *j, const char *id) {
    for (uint32_t i = 0; is_only_noted(j) && i < j->findings_count; i++)
        if (strcmp(j->findings[i].id, id) == 0)
            return true;
    return false;
}

/* All that have this note, unless one before `target` began them. */
static void notes_together(const struct pen *pen, const struct doctor_case *c, uint32_t target,
                           const struct finding *f) {
    struct strbuf names = {.max = 600};
    uint32_t count = 0;
    for (uint32_t i = 0; i < target; i++)
        if (has_note(&c->judgements[i], f->id))
            return;
    for (uint32_t i = target; i < c->count; i++)
        if (has_note(&c->judgements[i], f->id) && count++ < NAMES_SHOWN)
            strbuf_addf(&names, "%s%s", count > 1 ? ", " : "", c->judgements[i].target.tap);
    if (count > NAMES_SHOWN)
        strbuf_addf(&names, " and %u more", count - NAMES_SHOWN);
    fprintf(pen->to, "      note (%s) on %u TAP%s:\n", f->id, count, count > 1 ? "s" : "");
    pen_paragraph(pen, 8, "", "", names.data ? names.data : "");
    pen_paragraph(pen, 8, "", DIM, f->explanation);
    strbuf_free(&names);
}

static void notes(const struct pen *pen, const struct doctor_case *c) {
    for (uint32_t i = 0; i < c->count; i++)
        for (uint32_t f = 0; is_only_noted(&c->judgements[i]) && f < c->judgements[i].findings_count; f++)
            notes_together(pen, c, i, &c->judgements[i].findings[f]);
}

/* Sick ones first, then those of which there is something to say; then the others, or how many they are. */
static void targets(const struct pen *pen, const struct doctor_case *c, bool explain) {
    uint32_t well = 0, shown = 0;
    for (int pass = 0; pass < 2; pass++)
        for (uint32_t i = 0; i < c->count; i++) {
            const struct judgement *j = &c->judgements[i];
            if (is_sick(j) != (pass == 0) || (pass && !is_told(j)))
                continue;
            if (shown++)
                fputc('\n', pen->to);
            if (explain)
                pen_explain(pen, c, i);
            else
                short_target(pen, c, i);
        }
    for (uint32_t i = 0; i < c->count; i++)
        well += is_well(&c->judgements[i]);
    if (well && shown)
        fputc('\n', pen->to);
    for (uint32_t i = 0; well <= WELL_SHOWN && i < c->count; i++)
        if (is_well(&c->judgements[i]))
            pen_target(pen, c, i);
    if (well > WELL_SHOWN)
        fprintf(pen->to, "      %u %sTAPs: nothing is wrong with them\n", well, shown ? "other " : "");
    notes(pen, c);
}

static int width_of(FILE *to) {
    struct winsize size = {0};
    if (ioctl(fileno(to), TIOCGWINSZ, &size) < 0 || size.ws_col == 0)
        return WIDTH;
    return size.ws_col < WIDTH_MIN ? WIDTH_MIN : size.ws_col > WIDTH_MAX ? WIDTH_MAX : size.ws_col;
}

void report_text(const struct doctor_case *c, bool explain, bool colour, FILE *to) {
    struct pen pen = {to, colour, width_of(to)};
    const struct snap_host *host = &c->before->host;
    targets(&pen, c, explain);
    if (c->count == 0 && *host->bridge) {
        fputs("there is no TAP on ", to);
        pen_say(&pen, host->bridge);
        fputc('\n', to);
    } else if (c->count == 0) {
        fputs("there is no bridge with a TAP here (--netns NAME looks into a network namespace)\n", to);
    }
    fputc('\n', to);
    recovered(&pen, c);
    limits(&pen, c);
    last_line(&pen, c, explain);
}

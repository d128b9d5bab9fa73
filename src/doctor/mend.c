/* One repair at a time: apply, look again, keep or take back. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "doctor/doctor.h"
#include "doctor/repair/repair.h"
#include "netlink/netns.h"

#define ROUNDS_MAX 64 /* a host's TAPs, one by one; a second run goes on */
#define SETTLE_MS 120 /* a port's carrier and state follow its flags a little later */
#define LOOK_AGAIN_MS 400
#define LOCK_WAIT_MS 30000 /* for another doctor that repairs: longer than most repairs take */

/* What was tried, with the target it was about. */
struct attempt {
    struct finding finding;
    char tap[16];
};

struct mending {
    struct doctor_options options;
    struct target *targets; /* of the first look: they are looked at each time */
    const char *which;
    struct repair *repair;
    struct attempt *attempts;
    size_t count;
};

static void mending_free(struct mending *m) {
    for (size_t i = 0; i < m->count; i++)
        free(m->attempts[i].finding.steps);
    free(m->attempts);
    free(m->targets);
    repair_close(m->repair);
}
#define _cleanup_mending_ __attribute__((cleanup(mending_free)))

static bool is_same_step(const struct repair_step *a, const struct repair_step *b) {
    return a->action == b->action && a->attr == b->attr && a->handle == b->handle && strcmp(a->dev, b->dev) == 0 &&
           strcmp(a->object, b->object) == 0;
}

static bool is_same(const struct finding *a, const struct finding *b) {
    return strcmp(a->id, b->id) == 0 &&
           (a->step_count == 0 || b->step_count == 0 || is_same_step(&a->steps[0], &b->steps[0]));
}

static bool was_tried(const struct mending *m, const char *tap, const struct finding *f) {
    for (size_t i = 0; i < m->count; i++)
        if (strcmp(m->attempts[i].tap, tap) == 0 && is_same(&m->attempts[i].finding, f))
            return true;
    return false;
}

static bool is_wanted(const struct mending *m, const struct finding *f) {
    if (f->step_count == 0 || f->applied)
        return false;
    return *m->which ? strcmp(f->id, m->which) == 0 : f->safe && f->role == ROLE_ROOT_CAUSE;
}

static struct finding *next(const struct mending *m, struct doctor_case *c, const char **ret_tap) {
    for (uint32_t i = 0; i < c->count; i++)
        for (uint32_t f = 0; f < c->judgements[i].findings_count; f++) {
            struct finding *one = &c->judgements[i].findings[f];
            if (is_wanted(m, one) && !was_tried(m, c->targets[i].tap, one)) {
                *ret_tap = c->targets[i].tap;
                return one;
            }
        }
    return NULL;
}

/* What was a root cause may stay as less; what was less has to be gone. */
static bool is_there(const struct doctor_case *c, const struct attempt *attempt) {
    bool any = attempt->finding.role != ROLE_ROOT_CAUSE;
    for (uint32_t i = 0; i < c->count; i++)
        for (uint32_t f = 0; f < c->judgements[i].findings_count; f++) {
            const struct finding *found = &c->judgements[i].findings[f];
            if (strcmp(c->targets[i].tap, attempt->tap) == 0 && (any || found->role == ROLE_ROOT_CAUSE) &&
                is_same(found, &attempt->finding))
                return true;
        }
    return false;
}

static int look_again(const struct mending *m, struct doctor_case **c, struct err *err) {
    struct doctor_case *again = NULL;
    int r = doctor_run(&m->options, &again, err);
    if (r < 0)
        return r;
    doctor_case_free(*c);
    *c = again;
    return 0;
}

/* A program that was started needs its time until it listens. */
static bool restarts_something(const struct finding *f) {
    for (uint8_t i = 0; i < f->step_count; i++)
        if (f->steps[i].action == REPAIR_GUEST_UNIT_RESTART)
            return true;
    return false;
}

/* Looks until the finding is gone, twice or a few times more. Return: 1 gone, 0 there, -errno. */
static int prove(const struct mending *m, const struct attempt *attempt, struct doctor_case **c, struct err *err) {
    static const useconds_t waits_ms[] = {SETTLE_MS, LOOK_AGAIN_MS, 1000, 2000, 4000, 8000};
    size_t looks = restarts_something(&attempt->finding) ? sizeof waits_ms / sizeof *waits_ms : 2;
    for (size_t i = 0; i < looks; i++) {
        usleep(waits_ms[i] * 1000);
        int r = look_again(m, c, err);
        if (r < 0)
            return r;
        if (!is_there(*c, attempt))
            return 1;
    }
    return 0;
}

/* The finding keeps its steps in the case; the attempt has a copy. */
static int remember(struct mending *m, const struct finding *f, const char *tap, struct attempt **ret) {
    struct attempt *grown = reallocarray(m->attempts, m->count + 1, sizeof *grown);
    struct repair_step *steps = grown ? calloc(f->step_count, sizeof *steps) : NULL;
    m->attempts = grown ? grown : m->attempts;
    if (!steps)
        return -ENOMEM;
    struct attempt *a = &grown[m->count];
    memcpy(steps, f->steps, f->step_count * sizeof *steps);
    a->finding = *f;
    a->finding.steps = steps;
    str_copy(a->tap, sizeof a->tap, tap);
    m->count++;
    *ret = a;
    return 0;
}

/* What somebody else has changed since is theirs: it is not tried again and again to take it back. */
static void leave_if_changed(struct mending *m, struct repair_entry *entry, const struct err *why) {
    if (strcmp(why->code, "repair.changed") == 0 || strcmp(why->code, "repair.gone") == 0 ||
        strcmp(why->code, "repair.irreversible") == 0)
        repair_give_up(m->repair, entry, NULL);
}

static int mend_one(struct mending *m, struct finding *f, const char *tap, struct doctor_case **c, struct err *err) {
    _cleanup_repair_entry_free_ struct repair_entry *entry = NULL;
    struct err why = {0};
    struct attempt *attempt;
    int r = remember(m, f, tap, &attempt);
    if (r < 0)
        return err_sys(err, -r, "doctor.failed", "repair");
    f = &attempt->finding;
    if (repair_apply(m->repair, f->id, f->steps, f->step_count, &entry, &why) < 0) {
        str_copy(f->repair_error, sizeof f->repair_error, why.detail);
        return 0;
    }
    f->applied = true;
    str_copy(f->journal, sizeof f->journal, entry->id);
    r = prove(m, attempt, c, err);
    if (r < 0) { /* what cannot be proven does not stay */
        repair_undo(m->repair, entry, NULL);
        return r;
    }
    f->proven = r > 0;
    if (r > 0) {
        repair_proven(m->repair, entry, &why);
        return 0;
    }
    if (repair_undo(m->repair, entry, &why) < 0) {
        str_copy(f->repair_error, sizeof f->repair_error, why.detail);
        leave_if_changed(m, entry, &why);
    }
    usleep(SETTLE_MS * 1000);
    return look_again(m, c, err);
}

/* Puts what was tried into the last case's findings: repaired ones first, as they were the causes; what did not help
 * into the finding that is still there. */
static int tell_attempts(struct mending *m, struct doctor_case *c) {
    for (size_t n = m->count; n-- > 0;) {
        struct attempt *a = &m->attempts[n];
        for (uint32_t i = 0; i < c->count; i++) {
            struct judgement *j = &c->judgements[i];
            if (strcmp(c->targets[i].tap, a->tap) != 0)
                continue;
            struct finding *same = NULL;
            for (uint32_t f = 0; f < j->findings_count; f++)
                if (is_same(&j->findings[f], &a->finding))
                    same = &j->findings[f];
            if (same) {
                same->applied = a->finding.applied && a->finding.proven == 1;
                same->proven = a->finding.proven;
                str_copy(same->repair_error, sizeof same->repair_error, a->finding.repair_error);
                continue;
            }
            struct finding *grown = reallocarray(j->findings, j->findings_count + 1, sizeof *grown);
            if (!grown)
                return -ENOMEM;
            memmove(grown + 1, grown, j->findings_count * sizeof *grown);
            grown[0] = a->finding;
            a->finding.steps = NULL;
            j->findings = grown;
            j->findings_count++;
        }
    }
    return 0;
}

/* What a doctor that was killed had begun comes first: what it left is neither what was, nor proven. */
static int take_back_unfinished(struct mending *m, struct doctor_case **c, struct err *err) {
    _cleanup_repair_entry_free_ struct repair_entry *entry = NULL;
    struct doctor_recovered recovered = {0};
    int r = repair_unfinished(m->repair, &entry, err);
    if (r < 0 || !entry)
        return r;
    struct err why = {0};
    str_copy(recovered.journal, sizeof recovered.journal, entry->id);
    str_copy(recovered.finding, sizeof recovered.finding, entry->finding);
    if (repair_undo(m->repair, entry, &why) < 0) {
        str_copy(recovered.error, sizeof recovered.error, why.detail);
        leave_if_changed(m, entry, &why);
    }
    usleep(SETTLE_MS * 1000);
    r = look_again(m, c, err);
    if (r == 0)
        (*c)->recovered = recovered;
    return r;
}

static int begin(struct mending *m, int nsfd, const char *journal_dir, struct doctor_case **c, struct err *err) {
    bool waited = false;
    int r = repair_open(nsfd, m->options.netns, journal_dir, &m->repair, err);
    if (r == 0)
        repair_use_daemon(m->repair, m->options.socket);
    if (r == 0)
        r = repair_lock(m->repair, LOCK_WAIT_MS, &waited, err);
    if (r == 0 && waited) /* what the other one did is not in what we saw */
        r = look_again(m, c, err);
    return r < 0 ? r : take_back_unfinished(m, c, err);
}

/* Asked for by name, and not done: why. */
static void tell_why_not(const struct mending *m, struct doctor_case *c) {
    bool found = false, possible = false;
    for (uint32_t i = 0; *m->which && i < c->count; i++)
        for (uint32_t f = 0; f < c->judgements[i].findings_count; f++) {
            struct finding *one = &c->judgements[i].findings[f];
            if (strcmp(one->id, m->which) != 0)
                continue;
            found = true;
            possible = possible || one->step_count;
            if (!one->step_count && !*one->repair_error)
                str_copy(one->repair_error, sizeof one->repair_error, "no program can do this; by hand: see the plan");
        }
    if (*m->which && m->count == 0)
        str_copy(c->not_repaired, sizeof c->not_repaired,
                 !found     ? "it was not found here"
                 : possible ? ""
                            : "it was found, and no program can repair it");
}

/* A bridge whose first TAP is attached again hides that the others are not: all that were looked at stay so. */
static int keep_targets(struct mending *m, const struct doctor_case *c, struct err *err) {
    m->targets = calloc(c->count + 1U, sizeof *m->targets);
    if (!m->targets)
        return err_sys(err, ENOMEM, "doctor.failed", "repair");
    if (c->count)
        memcpy(m->targets, c->targets, c->count * sizeof *m->targets);
    m->options.keep = m->targets;
    m->options.keep_count = c->count;
    return 0;
}

int doctor_repair(const struct doctor_options *options, const char *which, const char *journal_dir,
                  struct doctor_case **c, struct err *err) {
    int64_t began_ms = time_monotonic_ms() - (*c)->duration_ms;
    _cleanup_close_ int nsfd = -1;
    _cleanup_mending_ struct mending m = {.options = *options, .which = which};
    struct doctor_recovered recovered;
    int r = netns_open(options->netns, &nsfd, err);
    if (r == 0)
        r = keep_targets(&m, *c, err);
    if (r == 0)
        r = begin(&m, nsfd, journal_dir, c, err);
    recovered = (*c)->recovered;
    while (r == 0 && m.count < ROUNDS_MAX) {
        const char *tap;
        struct finding *f = next(&m, *c, &tap);
        if (!f)
            break;
        r = mend_one(&m, f, tap, c, err);
    }
    if (r == 0 && tell_attempts(&m, *c) < 0)
        r = err_sys(err, ENOMEM, "doctor.failed", "repair");
    tell_why_not(&m, *c);
    (*c)->recovered = recovered;
    (*c)->duration_ms = time_monotonic_ms() - began_ms;
    return r;
}

int doctor_undo(const char *netns, const char *socket, const char *journal_dir, const char *id, struct err *err) {
    _cleanup_close_ int nsfd = -1;
    _cleanup_repair_close_ struct repair *repair = NULL;
    _cleanup_repair_entry_free_ struct repair_entry *entry = NULL;
    int r = repair_journal_load(journal_dir, id, &entry, err);
    if (r < 0)
        return r;
    if (!*netns)
        netns = entry->netns;
    r = netns_open(netns, &nsfd, err);
    if (r == 0)
        r = repair_open(nsfd, netns, journal_dir, &repair, err);
    bool waited = false;
    if (r == 0)
        repair_use_daemon(repair, socket);
    if (r == 0)
        r = repair_lock(repair, LOCK_WAIT_MS, &waited, err);
    if (r < 0)
        return r;
    if (waited) { /* the one that repaired may have taken it back itself */
        repair_entry_free(ptr_steal(entry));
        r = repair_journal_load(journal_dir, id, &entry, err);
    }
    return r < 0 ? r : repair_undo(repair, entry, err);
}

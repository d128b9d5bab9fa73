#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"
#include "image/condition.h"
#include "image/inspect.h"

/* ---------------------------------------------------------------- commands */

/* Takes the next word of a command line, quotes as in systemd.service(5), without escapes. Return: false at the end. */
static bool next_word(const char **rest, char *ret, size_t size) {
    const char *at = *rest + strspn(*rest, " \t");
    size_t n = 0;
    char quote = '\0';
    if (!*at)
        return false;
    for (; *at && (quote || (*at != ' ' && *at != '\t')); at++) {
        if (quote ? *at == quote : (*at == '"' || *at == '\''))
            quote = quote ? '\0' : *at;
        else if (n + 1 < size)
            ret[n++] = *at;
    }
    ret[n] = '\0';
    *rest = at;
    return true;
}

struct checking {
    struct inspection *in;
    const struct unit *unit;
    const char *breaks;
    enum image_finding_role role;
    uint32_t uid;
};

static const char *unit_id(const char *program_id) {
    static const struct {
        const char *program, *unit;
    } ids[] = {{"exec-missing", "unit.exec-missing"},
               {"exec-not-executable", "unit.exec-not-executable"},
               {"exec-interpreter", "unit.exec-interpreter"},
               {"exec-library", "unit.exec-library"}};
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
        if (strcmp(program_id, ids[i].program) == 0)
            return ids[i].unit;
    return "unit.exec-format";
}

/* Files that a unit of ours names as arguments must be there too: a configuration, a start page. */
static void check_argument(struct checking *c, const char *word) {
    if (str_starts(word, "file://"))
        word += 7;
    if ((!str_starts(word, "/etc/") && !str_starts(word, "/usr/")) || strpbrk(word, "%$*?") ||
        inspect_exists(c->in, word))
        return;
    report_add(c->in->report, c->role, "unit.file-missing", word, c->breaks, "add it to the recipe's files",
               "%s names %s, which is not there", report_safe(c->unit->name), report_safe(word));
}

static int check_command(struct checking *c, const char *line) {
    char word[1024];
    struct program_problem p;
    uint32_t uid = c->uid;
    const char *rest = line + strspn(line, "@-:+!|");
    size_t prefixes = (size_t)(rest - line);
    if (memchr(line, '-', prefixes))
        return 0; /* a failure of it is none of the unit */
    if (memchr(line, '+', prefixes) || memchr(line, '!', prefixes))
        uid = 0;
    if (!next_word(&rest, word, sizeof word) || strchr(word, '%'))
        return 0;
    int r = program_check(c->in->fs, &c->in->programs, word, uid, &p);
    if (r < 0)
        return r;
    if (r == 1)
        report_add(c->in->report, c->role, unit_id(p.id), c->unit->name, c->breaks,
                   "put the file into the image: its package, or the recipe's files, with its executable bit",
                   "%s starts %s, which %s", report_safe(c->unit->name), report_safe(word), report_safe(p.what));
    if (c->unit->own)
        while (next_word(&rest, word, sizeof word))
            check_argument(c, word);
    return 0;
}

static int check_commands(struct checking *c) {
    const struct unit *u = c->unit;
    const struct account *a = u->user ? inspect_account(c->in, u->user) : NULL;
    if (a)
        c->uid = a->uid;
    else if (u->user && !strchr(u->user, '%') && u->own)
        report_add(c->in->report, c->role, "unit.user-missing", u->name, c->breaks,
                   "see useradd in the recipe's customize", "%s runs as the user %s, who does not exist",
                   report_safe(u->name), report_safe(u->user));
    int r = 0;
    for (unsigned i = 0; r == 0 && i < u->before_count; i++)
        r = check_command(c, u->before[i]);
    for (unsigned i = 0; r == 0 && i < u->start_count; i++)
        r = check_command(c, u->start[i]);
    return r;
}

/* ---------------------------------------------------------------- units */

static bool is_service(const char *name) {
    size_t len = strlen(name);
    return len > 8 && strcmp(name + len - 8, ".service") == 0;
}

static int check_conditions(struct checking *c, bool tell_unknown) {
    const struct unit_condition *no, *unknown;
    int r = condition_check(c->in->fs, c->unit, &no, &unknown);
    if (r < 0)
        return r;
    if (no)
        report_add(c->in->report, c->role, no->is_assert ? "unit.assert" : "unit.condition", c->unit->name, c->breaks,
                   "take that line out of the unit or its drop-in, or make it hold in the recipe",
                   "%s does not start in a VM: its %s%s=%s does not hold there", report_safe(c->unit->name),
                   no->is_assert ? "Assert" : "Condition", report_safe(no->type), report_safe(no->value));
    else if (unknown && tell_unknown)
        report_note(c->in->report, "unit.condition-not-judged", c->unit->name, "", "",
                    "whether %s starts cannot be told from the image alone: it has %s%s=%s", report_safe(c->unit->name),
                    unknown->is_assert ? "Assert" : "Condition", report_safe(unknown->type),
                    report_safe(unknown->value));
    return 0;
}

static int check_can_start(struct inspection *in, const struct unit *unit, const char *breaks) {
    struct checking c = {in, unit, breaks, IMAGE_FAILURE, 0};
    if (is_service(unit->name) && unit->start_count == 0)
        report_fail(in->report, "unit.no-command", unit->name, breaks,
                    "give it an ExecStart=", "%s has no ExecStart=", unit->name);
    int r = check_conditions(&c, true);
    return r == 0 ? check_commands(&c) : r;
}

/* A unit that the type needs: there, not masked, pulled in, nothing keeps it from starting. */
static int check_needed(struct inspection *in, const struct need *need) {
    struct unit *alone = NULL;
    const struct unit *unit = unit_graph_find(&in->units, need->name);
    struct image_report *report = in->report;
    int r = unit ? 0 : unit_load(in->fs, need->name, &alone);
    if (r < 0)
        return r;
    unit = unit ? unit : alone;
    switch (unit->state) {
    case UNIT_MISSING:
        report_fail(report, "unit.missing", need->name, need->breaks,
                    "add it to the recipe (its package, or files/etc/systemd/system)", "%s is not in the image",
                    need->name);
        break;
    case UNIT_MASKED:
        report_fail(report, "unit.masked", need->name, need->breaks, "systemctl unmask in the recipe's customize",
                    "%s is masked", need->name);
        break;
    case UNIT_BROKEN:
        report_fail(report, "unit.unreadable", need->name, need->breaks, MEND_REBUILD, "%s cannot be read", need->name);
        break;
    case UNIT_LOADED:
        if (!unit->enabled)
            report_fail(report, "unit.not-enabled", need->name, need->breaks,
                        "systemctl enable in the recipe's customize", "%s is not enabled: %s", need->name,
                        alone ? "nothing that default.target pulls in wants it"
                              : "no target wants it, it starts only if another unit asks for it");
        r = check_can_start(in, unit, need->breaks);
        break;
    }
    unit_free(alone);
    return r;
}

static bool is_needed(const struct inspection *in, const char *name) {
    for (const struct need *n = need_units; n->name; n++)
        if (inspect_needs(in, n) && strcmp(n->name, name) == 0)
            return true;
    return false;
}

/* What else starts. A unit of ours that cannot is a failure; a package's may have its conditions: a note. */
static int check_others(struct inspection *in) {
    int r = 0;
    for (unsigned i = 0; r == 0 && i < in->units.count; i++) {
        const struct unit *unit = in->units.unit[i];
        if (unit->state != UNIT_LOADED || is_needed(in, unit->name))
            continue;
        struct checking c = {in, unit, unit->own ? "a service of the image does not start" : "",
                             unit->own ? IMAGE_FAILURE : IMAGE_NOTE, 0};
        r = unit->own ? check_conditions(&c, false) : 0;
        if (r == 0)
            r = check_commands(&c);
    }
    return r;
}

static void check_default_target(struct inspection *in) {
    static const char mend[] = "systemctl set-default multi-user.target in the recipe's customize";
    const struct unit *target = in->units.count ? in->units.unit[0] : NULL;
    if (!target || target->state != UNIT_LOADED)
        report_fail(in->report, "unit.default-target", "default.target",
                    "systemd has nothing to start: an emergency shell that nobody sees", mend,
                    "default.target leads nowhere");
    else if (!unit_graph_starts(&in->units, "multi-user.target"))
        report_fail(in->report, "unit.default-target", "default.target", "none of the image's services is started",
                    mend, "default.target does not bring up multi-user.target");
}

int check_units(struct inspection *in) {
    if (in->type == IMAGE_TYPE_TEST)
        return 0;
    int r = unit_graph_load(in->fs, &in->units);
    if (r < 0)
        return r;
    check_default_target(in);
    for (const struct need *n = need_units; r == 0 && n->name; n++)
        if (inspect_needs(in, n))
            r = check_needed(in, n);
    return r == 0 ? check_others(in) : r;
}

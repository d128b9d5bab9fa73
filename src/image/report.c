#include "image/report.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"

static const char *const role_names[IMAGE_FINDING_ROLE_COUNT] = {
    [IMAGE_FAILURE] = "failure",
    [IMAGE_NOTE] = "note",
};

const char *image_finding_role_name(enum image_finding_role role) {
    return role_names[role];
}

const char *report_safe(const char *text) {
    static _Thread_local char buffers[8][201];
    static _Thread_local unsigned turn;
    turn = (turn + 1) % 8;
    return str_escape(text, strlen(text), buffers[turn], sizeof buffers[turn]);
}

static void finding_clear(struct image_finding *f) {
    free(f->object);
    free(f->title);
    free(f->breaks);
    free(f->mend);
}

void report_add(struct image_report *r, enum image_finding_role role, const char *id, const char *object,
                const char *breaks, const char *mend, const char *fmt, ...) {
    char title[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(title, sizeof title, fmt, ap);
    va_end(ap);
    r->failures += role == IMAGE_FAILURE;
    struct image_finding *grown =
        r->count < REPORT_FINDINGS_MAX ? reallocarray(r->findings, r->count + 1, sizeof *grown) : NULL;
    if (!grown) {
        r->dropped++;
        return;
    }
    r->findings = grown;
    struct image_finding f = {.role = role, .id = id, .object = strdup(report_safe(object)), .title = strdup(title)};
    f.breaks = strdup(breaks);
    f.mend = strdup(mend);
    if (!f.object || !f.title || !f.breaks || !f.mend) {
        finding_clear(&f);
        r->dropped++;
        return;
    }
    r->findings[r->count++] = f;
}

bool report_has(const struct image_report *r, const char *id, const char *object) {
    for (unsigned i = 0; i < r->count; i++)
        if (strcmp(r->findings[i].id, id) == 0 && (!object || strcmp(r->findings[i].object, object) == 0))
            return true;
    return false;
}

static json_t *findings_json(const struct image_report *r) {
    json_t *list = json_array();
    for (unsigned i = 0; i < r->count; i++) {
        const struct image_finding *f = &r->findings[i];
        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s, s:s, s:s}", "id", f->id, "role",
                                              image_finding_role_name(f->role), "object", f->object, "title", f->title,
                                              "breaks", f->breaks, "mend", f->mend));
    }
    return list;
}

json_t *report_to_json(const struct image_report *r) {
    json_t *packages = json_array();
    for (unsigned i = 0; i < r->package_count; i++)
        json_array_append_new(packages,
                              json_pack("{s:s, s:s}", "name", r->packages[i].name, "version", r->packages[i].version));
    return json_pack("{s:s, s:s, s:s*, s:s*, s:b, s:i, s:b, s:s*, s:I, s:I, s:I, s:I, s:o, s:o}", "schema",
                     "image-verify/1", "image", report_safe(r->path), "name", *r->name ? r->name : NULL, "type",
                     *r->type ? r->type : NULL, "good", r->failures == 0, "failures", (int)r->failures,
                     "digests_checked", r->digests, "kernel", *r->kernel ? r->kernel : NULL, "size_mib",
                     (json_int_t)r->size_mib, "free_mib", (json_int_t)r->free_mib, "free_inodes",
                     (json_int_t)r->free_inodes, "duration_ms", (json_int_t)r->duration_ms, "packages", packages,
                     "findings", findings_json(r));
}

static void one_to_text(const struct image_finding *f, bool colour, FILE *to) {
    const char *on = !colour ? "" : f->role == IMAGE_FAILURE ? "\033[31m" : "\033[33m";
    fprintf(to, "%s%s%s  %s\n", on, f->role == IMAGE_FAILURE ? "FAILURE" : "note   ", colour ? "\033[0m" : "",
            f->title);
    if (*f->breaks)
        fprintf(to, "         breaks: %s\n", f->breaks);
    if (*f->mend)
        fprintf(to, "         mend:   %s\n", f->mend);
    fprintf(to, "         (%s: %s)\n", f->id, f->object);
}

void report_to_text(const struct image_report *r, bool colour, FILE *to) {
    for (int role = 0; role < IMAGE_FINDING_ROLE_COUNT; role++)
        for (unsigned i = 0; i < r->count; i++)
            if (r->findings[i].role == (enum image_finding_role)role)
                one_to_text(&r->findings[i], colour, to);
    if (r->dropped)
        fprintf(to, "and %u more that are not shown\n", r->dropped);
    fprintf(to, "%s: %s", report_safe(r->path), r->failures ? "NOT GOOD" : "good");
    if (r->failures)
        fprintf(to, ", %u failure%s", r->failures, r->failures == 1 ? "" : "s");
    fprintf(to, " (type %s, kernel %s, %llu of %llu MiB free; %s; %.1f s)\n", *r->type ? r->type : "unknown",
            *r->kernel ? r->kernel : "none", (unsigned long long)r->free_mib, (unsigned long long)r->size_mib,
            r->digests ? "digests checked" : "digests not checked", (double)r->duration_ms / 1000);
}

void report_free(struct image_report *r) {
    if (!r)
        return;
    for (unsigned i = 0; i < r->count; i++)
        finding_clear(&r->findings[i]);
    free(r->findings);
    free(r);
}

void report_cleanup(struct image_report **r) {
    report_free(*r);
}

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"
#include "image/inspect.h"

#define STATUS "/var/lib/dpkg/status"
#define STATUS_MAX ((size_t)32 << 20)
#define DIFFERENCES_MAX 10

/* One paragraph of dpkg's status file; all point into its text. */
struct package {
    const char *name, *status, *version;
};

/* Cuts the next paragraph off and reads its fields. Source: deb-control(5): "Field: value", continuation lines begin
 * with a space. Return: false at the end. */
static bool next_package(char **rest, struct package *ret) {
    *ret = (struct package){0};
    while (*rest && **rest) {
        char *line = strsep(rest, "\n");
        if (!*line) {
            if (ret->name)
                return true;
            continue;
        }
        static const struct {
            const char *field;
            size_t at;
        } fields[] = {{"Package: ", offsetof(struct package, name)},
                      {"Status: ", offsetof(struct package, status)},
                      {"Version: ", offsetof(struct package, version)}};
        for (size_t i = 0; i < 3; i++)
            if (str_starts(line, fields[i].field))
                *(const char **)((char *)ret + fields[i].at) = line + strlen(fields[i].field);
    }
    return ret->name;
}

static bool is_installed(const struct package *p) {
    return p->status && strcmp(p->status, "install ok installed") == 0;
}

static bool is_half(const struct package *p) {
    return p->status && (strstr(p->status, "half-") || strstr(p->status, "unpacked") ||
                         strstr(p->status, "triggers-") || strstr(p->status, "reinstreq"));
}

static bool named(const char *need, const char *package) {
    size_t len = strlen(need);
    return need[len - 1] == '-' ? strncmp(need, package, len) == 0 : strcmp(need, package) == 0;
}

/* Which of need_packages were seen; the same order. */
#define NEEDS_MAX 64

static void see(struct inspection *in, const struct package *p, bool seen[NEEDS_MAX]) {
    for (unsigned i = 0; need_packages[i].name && i < NEEDS_MAX; i++) {
        if (!inspect_needs(in, &need_packages[i]) || !named(need_packages[i].name, p->name) || seen[i])
            continue;
        seen[i] = true;
        if (in->report->package_count < REPORT_PACKAGES_MAX) {
            struct image_package *to = &in->report->packages[in->report->package_count++];
            str_copy(to->name, sizeof to->name, report_safe(p->name));
            str_copy(to->version, sizeof to->version, report_safe(p->version ? p->version : ""));
        }
    }
}

/* ---------------------------------------------------------------- against the manifest */

struct listed {
    json_t *versions; /* name -> version, of the manifest; what was seen is taken out */
    unsigned differences;
};

/* have and want: versions, NULL where the package is not. */
static void differ(struct inspection *in, struct listed *l, const char *name, const char *have, const char *want) {
    static const char breaks[] = "the image is not what its manifest says: what was tested is not what runs";
    if (l->differences++ >= DIFFERENCES_MAX)
        return;
    if (have && want)
        report_fail(in->report, "manifest.packages", name, breaks, MEND_REBUILD,
                    "the package %s is %s in the image, but %s in its manifest", report_safe(name), report_safe(have),
                    report_safe(want));
    else
        report_fail(in->report, "manifest.packages", name, breaks, MEND_REBUILD, "the package %s %s is in the %s",
                    report_safe(name), report_safe(have ? have : want),
                    have ? "image, but not in its manifest" : "manifest, but not in the image");
}

static void compare(struct inspection *in, struct listed *l, const struct package *p) {
    const char *want = json_string_value(json_object_get(l->versions, p->name));
    const char *have = p->version ? p->version : "";
    if (!want || strcmp(want, have) != 0)
        differ(in, l, p->name, have, want);
    json_object_del(l->versions, p->name);
}

static void compare_rest(struct inspection *in, struct listed *l) {
    const char *name;
    json_t *version;
    json_object_foreach(l->versions, name, version) differ(in, l, name, NULL, json_string_value(version));
    if (l->differences > DIFFERENCES_MAX)
        report_note(in->report, "manifest.packages", "and more", "", "", "%u more packages differ from the manifest",
                    l->differences - DIFFERENCES_MAX);
}

static json_t *manifest_versions(const struct inspection *in) {
    json_t *entry, *list = in->manifest ? json_object_get(in->manifest, "packages") : NULL;
    if (!json_is_array(list))
        return NULL;
    json_t *versions = json_object();
    size_t i;
    json_array_foreach(list, i, entry) {
        const char *name = json_string_value(json_object_get(entry, "name"));
        const char *version = json_string_value(json_object_get(entry, "version"));
        if (name && version)
            json_object_set_new(versions, name, json_string(version));
    }
    return versions;
}

/* ---------------------------------------------------------------- */

static void tell_missing(struct inspection *in, const bool seen[NEEDS_MAX]) {
    for (unsigned i = 0; need_packages[i].name && i < NEEDS_MAX; i++) {
        const struct need *n = &need_packages[i];
        if (!inspect_needs(in, n) || seen[i])
            continue;
        const char *name = strcmp(n->name, "linux-image-") == 0 ? "linux-image-cloud-amd64" : n->name;
        report_fail(in->report, "package.missing", name, n->breaks,
                    "add it to the recipe's packages and build the image again: mctl image build",
                    "the package %s is not installed", name);
    }
}

bool inspect_has_package(struct inspection *in, const char *name) {
    _cleanup_free_ char *text = NULL;
    size_t len;
    struct package p;
    if (ext4_read_file(in->fs, STATUS, STATUS_MAX, &text, &len) < 0)
        return false;
    for (char *rest = text; next_package(&rest, &p);)
        if (is_installed(&p) && strcmp(p.name, name) == 0)
            return true;
    return false;
}

int check_packages(struct inspection *in) {
    _cleanup_free_ char *text = NULL;
    size_t len;
    bool seen[NEEDS_MAX] = {0};
    struct package p;
    if (in->type == IMAGE_TYPE_TEST)
        return 0;
    int r = ext4_read_file(in->fs, STATUS, STATUS_MAX, &text, &len);
    if (r == -E2BIG || r == -ENOMEM)
        return r;
    if (r < 0) {
        report_fail(in->report, "package.no-records", STATUS, "what is installed cannot be known, nor updated",
                    "use a root that was made by mmdebstrap or debootstrap",
                    "%s is missing or cannot be read: this is no Debian root", STATUS);
        return 0;
    }
    struct listed listed = {.versions = manifest_versions(in)};
    for (char *rest = text; next_package(&rest, &p);) {
        if (is_half(&p))
            report_fail(in->report, "package.half-installed", p.name,
                        "the package's programs or units may be missing, or not set up", MEND_REBUILD,
                        "the package %s is not fully installed (%s)", report_safe(p.name), report_safe(p.status));
        if (!is_installed(&p))
            continue;
        see(in, &p, seen);
        if (listed.versions)
            compare(in, &listed, &p);
    }
    tell_missing(in, seen);
    if (listed.versions)
        compare_rest(in, &listed);
    json_decref(listed.versions);
    return 0;
}

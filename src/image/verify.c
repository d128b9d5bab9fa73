#include "image/verify.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "image/inspect.h"

#define MANIFEST_MAX ((size_t)16 << 20)
#define VERDICT "verdict.json"

/* ---------------------------------------------------------------- what was given */

struct place {
    char folder[EXT4_PATH_MAX]; /* "": a root alone */
    char rootfs[EXT4_PATH_MAX];
};

static bool is_file(const char *folder, const char *name) {
    char path[PATH_MAX];
    struct stat st;
    return snprintf(path, sizeof path, "%s/%s", folder, name) < (int)sizeof path && stat(path, &st) == 0 &&
           S_ISREG(st.st_mode);
}

static json_t *load_manifest(const char *folder) {
    char path[PATH_MAX + 16];
    _cleanup_free_ char *text = NULL;
    size_t len;
    snprintf(path, sizeof path, "%s/manifest.json", folder);
    if (file_read(path, MANIFEST_MAX, &text, &len) < 0)
        return NULL;
    json_t *manifest = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
    if (json_is_object(manifest))
        return manifest;
    json_decref(manifest);
    return NULL;
}

static const char *rootfs_name(json_t *manifest) {
    const char *file = json_string_value(json_object_get(json_object_get(manifest, "rootfs"), "file"));
    return file && !strchr(file, '/') ? file : "rootfs.ext4";
}

static int find_place(const char *path, struct place *ret, json_t **ret_manifest, struct err *err) {
    char resolved[PATH_MAX], folder[PATH_MAX];
    struct stat st;
    if (!realpath(path, resolved) || stat(resolved, &st) < 0 || strlen(resolved) >= EXT4_PATH_MAX - 16)
        return err_sys(err, errno ? errno : ENAMETOOLONG, "image.missing", "%s", path);
    memcpy(folder, resolved, sizeof folder);
    bool is_folder = S_ISDIR(st.st_mode);
    if (is_folder && !is_file(folder, "manifest.json") && !is_file(folder, "rootfs.ext4")) {
        char current[PATH_MAX + 16];
        snprintf(current, sizeof current, "%s/current", folder);
        if (!realpath(current, folder))
            return err_set(err, ENOENT, "image.missing", "%s holds no image: neither manifest.json nor rootfs.ext4",
                           path);
    }
    json_t *manifest = load_manifest(is_folder ? folder : dirname(folder));
    if (is_folder) {
        str_copy(ret->folder, sizeof ret->folder, folder);
        if (snprintf(ret->rootfs, sizeof ret->rootfs, "%s/%s", ret->folder, rootfs_name(manifest)) >=
            (int)sizeof ret->rootfs) {
            json_decref(manifest);
            return err_set(err, ENAMETOOLONG, "image.missing", "%s: the path is too long", path);
        }
    } else {
        str_copy(ret->rootfs, sizeof ret->rootfs, resolved);
        /* A file that only lies beside another image's manifest is a root alone. */
        if (manifest && strcmp(rootfs_name(manifest), strrchr(resolved, '/') + 1) == 0)
            str_copy(ret->folder, sizeof ret->folder, folder);
        else {
            json_decref(manifest);
            manifest = NULL;
        }
    }
    *ret_manifest = manifest;
    return 0;
}

/* ---------------------------------------------------------------- the type */

static bool type_of_mark(struct inspection *in, enum image_type *ret) {
    _cleanup_free_ char *type = inspect_mark(in, "TYPE=");
    return type && image_type_parse(type, ret);
}

/* By the root, which knows: what the manifest says of it is held against that. */
static void find_screen(struct inspection *in) {
    _cleanup_free_ char *mark = inspect_mark(in, "SCREEN=");
    json_t *listed = in->manifest ? json_object_get(in->manifest, "screen") : NULL;
    const char *said = listed ? json_string_value(listed) : NULL;
    if (mark && !image_screen_parse(mark, &in->screen))
        report_fail(in->report, "image.screen", mark, "there is no screen that anybody knows", MEND_REBUILD,
                    "the root says that its screen is %s, which is none (xvfb, tigervnc)", report_safe(mark));
    if (listed && (!said || strcmp(said, image_screen_name(in->screen)) != 0))
        report_fail(in->report, "manifest.screen", said ? said : "screen", "a desktop that is not there is waited for",
                    MEND_REBUILD, "the manifest says that the screen is %s, the root has %s",
                    said ? report_safe(said) : "no text", image_screen_name(in->screen));
}

/* The manifest is asked before the root's own mark: they are held against each other later. */
static void find_type(struct inspection *in, const char *given) {
    const char *said = in->manifest ? json_string_value(json_object_get(in->manifest, "type")) : NULL;
    if (given && image_type_parse(given, &in->type))
        return;
    if (said && image_type_parse(said, &in->type))
        return;
    if (said)
        report_fail(in->report, "manifest.type", said, "nobody knows for which VMs it is", MEND_REBUILD,
                    "the manifest's type is %s, which is none (cli, browser)", report_safe(said));
    if (type_of_mark(in, &in->type))
        return;
    in->type = IMAGE_TYPE_BROWSER;
    report_note(in->report, "image.type-assumed", "type", "", "say it: --type cli or --type browser",
                "nothing says for which VMs it is: judged as a browser image");
}

/* ---------------------------------------------------------------- all checks */

static int run_checks(struct inspection *in, const struct verify_options *options) {
    static const struct {
        const char *name;
        int (*run)(struct inspection *in);
    } checks[] = {{"the file system", check_files}, {"the manifest", check_manifest}, {"packages", check_packages},
                  {"accounts", check_accounts},     {"units", check_units},           {"the kernel", check_kernel},
                  {"the network", check_network},   {"the desktop", check_desktop},   {"the agent", check_agent}};
    int r = 0;
    for (size_t i = 0; r == 0 && i < sizeof checks / sizeof *checks; i++) {
        if (in->progress)
            in->progress(checks[i].name, 0, in->progress_data);
        r = checks[i].run(in);
    }
    if (r == 0 && options->digests)
        r = check_digests(in);
    if (r == -E2BIG) {
        report_fail(in->report, "fs.endless", "the file system", "nobody can say what is in it", MEND_REBUILD,
                    "the inspection was ended: its structures lead in circles, or it has more of something than any "
                    "image of ours");
        r = 0;
    }
    return r;
}

static void name_image(struct inspection *in) {
    const char *name = in->manifest ? json_string_value(json_object_get(in->manifest, "name")) : NULL;
    if (!in->folder)
        return;
    const char *build = strrchr(in->folder, '/') + 1;
    snprintf(in->report->name, sizeof in->report->name, "%.40s/%.50s", report_safe(name ? name : "?"),
             report_safe(build));
}

static void check_manifest_is_there(struct inspection *in) {
    if (!in->folder || in->manifest)
        return;
    bool there = is_file(in->folder, "manifest.json");
    report_fail(in->report, there ? "manifest.invalid" : "manifest.missing", "manifest.json",
                "the daemon does not start VMs from it", MEND_REBUILD,
                there ? "manifest.json is not a JSON object" : "manifest.json is missing");
}

static void check_schema(struct inspection *in) {
    const char *schema = in->manifest ? json_string_value(json_object_get(in->manifest, "schema")) : NULL;
    if (in->manifest && (!schema || strcmp(schema, "image-manifest/1") != 0))
        report_fail(in->report, "manifest.schema", "manifest.json", "the daemon does not start VMs from it",
                    MEND_REBUILD, "manifest.json is not one that this program knows (image-manifest/1)");
}

static int inspect(struct inspection *in, const struct verify_options *options) {
    struct err err = {0};
    check_manifest_is_there(in);
    check_schema(in);
    int r = ext4_open(in->rootfs, &in->fs, &err);
    if (r == -ENOMEM)
        return r;
    if (r < 0) {
        static const char *const ids[] = {"fs.unreadable", "fs.not-ext4", "fs.cut", "fs.corrupt"};
        const char *id = ids[0];
        for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
            if (strcmp(ids[i], err.code) == 0)
                id = ids[i];
        report_fail(in->report, id, in->rootfs, "no VM of this image boots", MEND_REBUILD,
                    "the root file system cannot be looked into: %s", report_safe(err.detail));
        return 0;
    }
    find_type(in, options->type);
    find_screen(in);
    str_copy(in->report->type, sizeof in->report->type, image_type_name(in->type));
    r = run_checks(in, options);
    program_cache_free(&in->programs);
    unit_graph_free(&in->units);
    ext4_free(in->fs);
    return r;
}

/* Takes the manifest. path: as it was given, for the report. */
static int verify_place(const char *path, const struct place *place, json_t *manifest,
                        const struct verify_options *options, struct image_report **ret, struct err *err) {
    int64_t begun = time_monotonic_ms();
    int r = -ENOMEM;
    struct inspection *in = calloc(1, sizeof *in);
    struct image_report *report = calloc(1, sizeof *report);
    if (in && report) {
        *in = (struct inspection){.report = report,
                                  .rootfs = place->rootfs,
                                  .folder = *place->folder ? place->folder : NULL,
                                  .manifest = manifest,
                                  .progress = options->progress,
                                  .progress_data = options->progress_data};
        str_copy(report->path, sizeof report->path, path);
        name_image(in);
        r = inspect(in, options);
    }
    json_decref(manifest);
    free(in);
    if (r < 0) {
        report_free(report);
        return err_sys(err, -r, "image.unreadable", "look into %s", path);
    }
    report->duration_ms = time_monotonic_ms() - begun;
    *ret = report;
    return 0;
}

int image_verify(const char *path, const struct verify_options *options, struct image_report **ret, struct err *err) {
    struct place place = {0};
    json_t *manifest = NULL;
    int r = find_place(path, &place, &manifest, err);
    return r < 0 ? r : verify_place(path, &place, manifest, options, ret, err);
}

int image_find_folder(const char *path, char *ret_folder, size_t size, struct err *err) {
    struct place place = {0};
    json_t *manifest = NULL;
    int r = find_place(path, &place, &manifest, err);
    json_decref(manifest);
    if (r < 0)
        return r;
    return str_copy(ret_folder, size, place.folder) ? 0 : err_sys(err, ENAMETOOLONG, "image.missing", "%s", path);
}

int image_verify_root(const char *path, const struct verify_options *options, struct image_report **ret,
                      struct err *err) {
    struct place place = {0};
    str_copy(place.rootfs, sizeof place.rootfs, path);
    return verify_place(path, &place, NULL, options, ret, err);
}

/* ---------------------------------------------------------------- the verdict that is kept */

/* Rules and parts, in one text. */
static void verdict_key(const char *folder, char *ret, size_t size) {
    static const char *const files[] = {"manifest.json", "rootfs.ext4", "vmlinuz", "initrd.img", "vmlinux"};
    struct strbuf key = {.max = size - 1};
    strbuf_addf(&key, "%s", image_rules);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[PATH_MAX];
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        if (stat(path, &st) == 0)
            strbuf_addf(&key, " %s:%lld:%lld.%09ld:%llu", files[i], (long long)st.st_size, (long long)st.st_mtim.tv_sec,
                        st.st_mtim.tv_nsec, (unsigned long long)st.st_ino);
    }
    str_copy(ret, size, key.data ? key.data : "");
    strbuf_free(&key);
}

/* Return: 0 with the verdict ("" good, else why not), or -errno. */
static int read_verdict(const char *path, const char *key, char *ret_why, size_t size) {
    _cleanup_free_ char *text = NULL;
    size_t len;
    int r = file_read(path, 65536, &text, &len);
    if (r < 0)
        return r;
    json_t *kept = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
    const char *have = json_string_value(json_object_get(kept, "key")),
               *why = json_string_value(json_object_get(kept, "why"));
    r = have && why && strcmp(have, key) == 0 ? 0 : -ESTALE;
    if (r == 0)
        str_copy(ret_why, size, why);
    json_decref(kept);
    return r;
}

static void keep_verdict(const char *path, const char *key, const char *why) {
    json_t *kept = json_pack("{s:s, s:s, s:s}", "schema", "image-verdict/1", "key", key, "why", why);
    char *text = kept ? json_dumps(kept, JSON_INDENT(2)) : NULL;
    /* A folder that cannot be written is looked at each time: slower, no less true. */
    if (text)
        file_write_atomic(path, text, strlen(text), 0644);
    free(text);
    json_decref(kept);
}

static void say_why(const struct image_report *report, char *ret, size_t size) {
    struct strbuf text = {.max = size - 1};
    unsigned told = 0;
    for (unsigned i = 0; i < report->count && told < 2; i++)
        if (report->findings[i].role == IMAGE_FAILURE)
            strbuf_addf(&text, "%s%s (%s)", told++ ? "; " : "", report->findings[i].title, report->findings[i].breaks);
    if (report->failures > told)
        strbuf_addf(&text, "; and %u more", report->failures - told);
    str_copy(ret, size, text.data ? text.data : "");
    strbuf_free(&text);
}

int image_verdict_kept(const char *folder, char *ret_why, size_t size) {
    char path[PATH_MAX], key[1024];
    snprintf(path, sizeof path, "%s/" VERDICT, folder);
    verdict_key(folder, key, sizeof key);
    return read_verdict(path, key, ret_why, size);
}

int image_verdict(const char *folder, struct err *err) {
    char path[PATH_MAX], key[1024], why[600] = "";
    _cleanup_report_ struct image_report *report = NULL;
    snprintf(path, sizeof path, "%s/" VERDICT, folder);
    verdict_key(folder, key, sizeof key);
    if (read_verdict(path, key, why, sizeof why) < 0) {
        int r = image_verify(folder, &(struct verify_options){0}, &report, err);
        if (r < 0)
            return r;
        say_why(report, why, sizeof why);
        keep_verdict(path, key, why);
    }
    if (!*why)
        return 0;
    err_set(err, EUCLEAN, "image.unfit", "the image %s does not verify: %s", folder, why);
    return err_hint(err, "mctl image verify %s tells all of it; then build it again: mctl image build, or ./run",
                    folder);
}

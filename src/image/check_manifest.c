#include <errno.h>
#include <fcntl.h>
#include <nettle/sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "image/inspect.h"

#define CHUNK ((size_t)1 << 20)
#define LIST_MAX ((size_t)64 << 20)
#define DIFFERENCES_MAX 10
#define DEPTH_MAX 64U
#define MARK "/usr/lib/master-controller/image"
#define AGENT "/usr/lib/master-controller/mc-agent"

static const char *const parts[] = {"rootfs", "kernel", "initrd", "vmlinux", "files"};
#define PART_COUNT (sizeof parts / sizeof *parts)
#define PARTS_NEEDED 3U

static const char *text_of(json_t *object, const char *name) {
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : "";
}

/* A part that the manifest names: there, a file, of the size that it says. Return: whether it is worth reading. */
static bool check_part(struct inspection *in, const char *part, bool needed, char ret_path[EXT4_PATH_MAX]) {
    json_t *object = json_object_get(in->manifest, part);
    const char *file = text_of(object, "file");
    json_t *size = json_object_get(object, "size");
    struct stat st;
    if (!object && !needed)
        return false;
    if (!*file || strchr(file, '/') || !json_is_integer(size)) {
        report_fail(in->report, "manifest.invalid", part, "the daemon does not start VMs from it", MEND_REBUILD,
                    "manifest.json does not say file and size of the %s", part);
        return false;
    }
    if (snprintf(ret_path, EXT4_PATH_MAX, "%s/%s", in->folder, file) >= EXT4_PATH_MAX || stat(ret_path, &st) < 0) {
        report_fail(in->report, "manifest.part-missing", file, "no VM of this image boots", MEND_REBUILD,
                    "%s is missing from the image's folder", report_safe(file));
        return false;
    }
    if (S_ISREG(st.st_mode) && st.st_size == json_integer_value(size))
        return true;
    report_fail(in->report, "manifest.size", file, "it was cut or changed after it was tested", MEND_REBUILD,
                "%s has %lld bytes, its manifest says %lld", report_safe(file), (long long)st.st_size,
                (long long)json_integer_value(size));
    return false;
}

char *inspect_mark(struct inspection *in, const char *key) {
    _cleanup_free_ char *text = inspect_text(in, MARK);
    char *rest = text;
    for (char *line; text && (line = strsep(&rest, "\n"));)
        if (str_starts(line, key))
            return strdup(line + strlen(key));
    return NULL;
}

static void check_mark(struct inspection *in) {
    _cleanup_free_ char *type = inspect_mark(in, "TYPE="), *recipe = inspect_mark(in, "RECIPE=");
    const char *want_type = text_of(in->manifest, "type"), *want_recipe = text_of(in->manifest, "recipe_digest");
    if (in->type == IMAGE_TYPE_TEST)
        return;
    if (!type || !recipe) {
        report_note(in->report, "manifest.no-mark", MARK, "", MEND_REBUILD,
                    "the root does not say of which recipe it was made: it is from before it could");
        return;
    }
    if (strcmp(type, want_type) != 0)
        report_fail(in->report, "manifest.type", want_type, "a user gets a VM of the wrong kind", MEND_REBUILD,
                    "the manifest says that the type is %s, the root says %s", report_safe(want_type),
                    report_safe(type));
    if (strcmp(recipe, want_recipe) != 0)
        report_fail(in->report, "manifest.recipe", "recipe_digest",
                    "the image was made of another recipe than it claims", MEND_REBUILD,
                    "the manifest's recipe is %.12s, the root was made of %.12s", report_safe(want_recipe),
                    report_safe(recipe));
}

int check_manifest(struct inspection *in) {
    char path[EXT4_PATH_MAX];
    struct ext4_facts facts;
    struct stat st;
    if (!in->folder || !in->manifest)
        return 0;
    for (size_t i = 0; i < PART_COUNT; i++)
        check_part(in, parts[i], i < PARTS_NEEDED, path);
    ext4_describe(in->fs, &facts);
    const char *uuid = text_of(json_object_get(in->manifest, "rootfs"), "uuid");
    if (strcmp(uuid, facts.uuid) != 0)
        report_fail(in->report, "manifest.uuid", "rootfs", "the daemon does not start VMs from it", MEND_REBUILD,
                    "the root file system is %s, its manifest says %s", facts.uuid, report_safe(uuid));
    if (snprintf(path, sizeof path, "%s/build.log", in->folder) < (int)sizeof path && stat(path, &st) < 0 &&
        in->type != IMAGE_TYPE_TEST)
        report_note(in->report, "manifest.no-log", "build.log", "", "",
                    "the log of the build is missing: how it was made cannot be read");
    check_mark(in);
    return 0;
}

/* ---------------------------------------------------------------- bytes */

static void hex_of(struct sha256_ctx *sha, char ret[2 * SHA256_DIGEST_SIZE + 1]) {
    uint8_t digest[SHA256_DIGEST_SIZE];
    sha256_digest(sha, sizeof digest, digest);
    str_hex(digest, sizeof digest, ret);
}

static int digest_file(struct inspection *in, const char *path, const char *part, char ret[65]) {
    struct sha256_ctx sha;
    struct stat st;
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    _cleanup_free_ uint8_t *data = malloc(CHUNK);
    if (!data)
        return -ENOMEM;
    if (fd < 0 || fstat(fd, &st) < 0)
        return -errno;
    sha256_init(&sha);
    ssize_t n;
    for (off_t at = 0; (n = pread(fd, data, CHUNK, at)) > 0; at += n) {
        sha256_update(&sha, (size_t)n, data);
        if (in->progress && at % (64 << 20) == 0 && st.st_size > 0)
            in->progress(part, (unsigned)(at * 100 / st.st_size), in->progress_data);
    }
    if (n < 0)
        return -errno;
    hex_of(&sha, ret);
    return 0;
}

static int digest_inside(struct inspection *in, const char *path, char ret[65]) {
    struct sha256_ctx sha;
    struct ext4_node node;
    _cleanup_free_ uint8_t *data = malloc(CHUNK);
    if (!data)
        return -ENOMEM;
    int r = ext4_find(in->fs, path, false, &node, NULL);
    if (r < 0)
        return r;
    sha256_init(&sha);
    int64_t n;
    for (uint64_t at = 0; (n = ext4_read(in->fs, &node, at, data, CHUNK)) > 0; at += (uint64_t)n)
        sha256_update(&sha, (size_t)n, data);
    if (n < 0)
        return (int)n;
    hex_of(&sha, ret);
    return 0;
}

/* By the manifest the host knows that there is an agent to wait for; a guest with another one may not understand it. */
int check_agent(struct inspection *in) {
    static const char breaks[] =
        "nobody can look into its VMs when their network fails, and mctl vm exec does not work";
    char have[65];
    if (!in->manifest || in->type == IMAGE_TYPE_TEST)
        return 0;
    json_t *agent = json_object_get(in->manifest, "agent");
    const char *want = text_of(agent, "sha256");
    if (!agent) {
        report_fail(in->report, "manifest.agent", "agent", breaks, MEND_REBUILD,
                    "the manifest knows of no agent: its VMs get no channel for one");
        return 0;
    }
    int r = digest_inside(in, AGENT, have);
    if (r == -ENOMEM || r == -E2BIG)
        return r;
    if (r < 0)
        report_fail(in->report, "agent.missing", AGENT, breaks, MEND_REBUILD, AGENT " %s",
                    r == -ENOENT ? "is not in the image" : "cannot be read");
    else if (strcmp(want, have) != 0)
        report_fail(in->report, "manifest.agent", AGENT, breaks, MEND_REBUILD,
                    AGENT " is another program than the manifest says");
    return 0;
}

/* One of the list's lines, which is changed: "SHA256  PATH", and with a backslash in front "\SHA256  ./PATH", in which two
 * backslashes are one. Source: sha256sum(1). Return: false for what is no such line. */
static bool listed_file(char *line, char **ret_digest, char **ret_path) {
    bool escaped = *line == '\\';
    char *digest = line + escaped, *path, *to;
    if (strlen(digest) < 68 || digest[64] != ' ')
        return false;
    digest[64] = '\0';
    path = to = digest + 66 + (digest[66] == '.');
    if (*path != '/')
        return false;
    for (const char *from = path; escaped && *from; from++) {
        from += *from == '\\' && from[1] == '\\';
        *to++ = *from;
    }
    if (escaped)
        *to = '\0';
    *ret_digest = digest;
    *ret_path = path;
    return true;
}

struct walk {
    struct inspection *in;
    json_t *listed; /* an object whose members are the paths */
    char path[EXT4_PATH_MAX];
    unsigned depth, differences;
    int error;
};

static void tell_file(struct walk *w, const char *path, const char *what) {
    w->differences++;
    report_fail(w->in->report, "manifest.file", path, "what was tested is not what runs", MEND_REBUILD, "%s %s",
                report_safe(path), what);
}

/* A file that is not in the list; folders are gone into. */
static bool take_name(const char *name, void *data) {
    struct walk *w = data;
    struct ext4_node node;
    size_t len = strlen(w->path), left = sizeof w->path - len;
    int r = snprintf(w->path + len, left, "/%s", name) < (int)left ? 0 : -ENAMETOOLONG;
    r = r < 0 ? r : ext4_find(w->in->fs, w->path, false, &node, NULL);
    if (r == 0 && S_ISREG(node.mode) && !json_object_get(w->listed, w->path))
        tell_file(w, w->path, "was added after the build");
    if (r == 0 && S_ISDIR(node.mode) && w->depth < DEPTH_MAX) {
        w->depth++;
        r = ext4_list(w->in->fs, w->path, take_name, w);
        w->depth--;
    }
    if (r == -E2BIG || r == -ENOMEM)
        w->error = r;
    w->path[len] = '\0';
    return w->error == 0 && w->differences < DIFFERENCES_MAX;
}

/* Which files of a root differ from the list that the build made. */
static int name_changed_files(struct walk *w, char *list) {
    for (char *line, *want, *path; (line = strsep(&list, "\n"));) {
        char have[65];
        if (!listed_file(line, &want, &path))
            continue;
        json_object_set_new(w->listed, path, json_true());
        int r = w->differences < DIFFERENCES_MAX ? digest_inside(w->in, path, have) : 0;
        if (r == -E2BIG || r == -ENOMEM)
            return r;
        if (w->differences == DIFFERENCES_MAX || (r == 0 && strcmp(have, want) == 0))
            continue;
        tell_file(w, path,
                  r == -ENOENT ? "was removed after the build"
                  : r < 0      ? "cannot be read"
                               : "was changed after the build");
    }
    int r = w->differences < DIFFERENCES_MAX ? ext4_list(w->in->fs, "/", take_name, w) : 0;
    return w->error < 0 ? w->error : r == -E2BIG || r == -ENOMEM ? r : 0;
}

static int look_closer(struct inspection *in) {
    char path[EXT4_PATH_MAX];
    _cleanup_free_ char *list = NULL;
    size_t len;
    if (!json_object_get(in->manifest, "files") || !check_part(in, "files", false, path) ||
        file_read(path, LIST_MAX, &list, &len) < 0)
        return 0;
    struct walk walk = {.in = in, .listed = json_object()};
    int r = name_changed_files(&walk, list);
    json_decref(walk.listed);
    return r;
}

int check_digests(struct inspection *in) {
    char path[EXT4_PATH_MAX], have[65];
    if (!in->folder || !in->manifest)
        return 0;
    for (size_t i = 0; i < PART_COUNT; i++) {
        json_t *object = json_object_get(in->manifest, parts[i]);
        const char *want = text_of(object, "sha256"), *file = text_of(object, "file");
        if (!object || !*want || !*file || strchr(file, '/') ||
            snprintf(path, sizeof path, "%s/%s", in->folder, file) >= (int)sizeof path)
            continue;
        int r = digest_file(in, path, parts[i], have);
        if (r == -ENOMEM)
            return r;
        if (r < 0 || strcmp(want, have) == 0)
            continue; /* what cannot be read was told */
        report_fail(in->report, "manifest.digest", file, "it was changed or damaged after it was tested", MEND_REBUILD,
                    "%s does not have the bytes that its manifest says", report_safe(file));
        r = i == 0 ? look_closer(in) : 0;
        if (r < 0)
            return r;
    }
    in->report->digests = true;
    return 0;
}

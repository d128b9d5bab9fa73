#include "image/list.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/str.h"
#include "image/needs.h"
#include "image/verify.h"

#define MANIFEST_MAX ((size_t)16 << 20)

static void take_manifest(struct image_entry *e) {
    char path[PATH_MAX];
    const char *name = "", *type = "", *created = "", *kernel = "";
    _cleanup_free_ char *text = NULL;
    size_t len;
    snprintf(path, sizeof path, "%s/manifest.json", e->path);
    if (file_read(path, MANIFEST_MAX, &text, &len) < 0)
        return;
    json_t *manifest = json_loadb(text, len, 0, NULL);
    json_unpack(manifest, "{s?s, s?s, s?s, s?{s?s}}", "name", &name, "type", &type, "created_at", &created, "kernel",
                "version", &kernel);
    str_copy(e->name, sizeof e->name, report_safe(name));
    str_copy(e->type, sizeof e->type, report_safe(type));
    str_copy(e->created_at, sizeof e->created_at, report_safe(created));
    str_copy(e->kernel, sizeof e->kernel, report_safe(kernel));
    json_decref(manifest);
}

/* A VM's disk holds its image by a hard link to the root file system (image_clone()). */
static void take_files(struct image_entry *e) {
    static const char *const files[] = {"rootfs.ext4", "vmlinuz", "initrd.img", "vmlinux", "files.sha256"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[PATH_MAX];
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", e->path, files[i]);
        if (stat(path, &st) < 0)
            continue;
        e->bytes += (uint64_t)st.st_blocks * 512;
        if (i == 0)
            e->vms = (unsigned)st.st_nlink - 1;
    }
}

static int newest_first(const void *a, const void *b) {
    return strcmp(((const struct image_entry *)b)->id, ((const struct image_entry *)a)->id);
}

/* What one folder holds, behind the first count entries. Return: how many there are then, or -errno. */
static int list_folder(const char *folder, struct image_entry ret[IMAGE_LIST_MAX], int count) {
    char current[PATH_MAX], path[PATH_MAX];
    DIR *dir = opendir(folder);
    if (!dir)
        return -errno;
    snprintf(path, sizeof path, "%s/current", folder);
    if (!realpath(path, current))
        *current = '\0';
    for (struct dirent *entry; (entry = readdir(dir)) && count < IMAGE_LIST_MAX;) {
        struct image_entry e = {0};
        struct stat st;
        if (*entry->d_name == '.' || !str_copy(e.id, sizeof e.id, entry->d_name) ||
            snprintf(e.path, sizeof e.path, "%s/%s", folder, e.id) >= (int)sizeof e.path || lstat(e.path, &st) < 0 ||
            !S_ISDIR(st.st_mode) || snprintf(path, sizeof path, "%s/rootfs.ext4", e.path) < 0 || stat(path, &st) < 0)
            continue;
        e.current = realpath(e.path, path) && strcmp(path, current) == 0;
        take_manifest(&e);
        take_files(&e);
        e.judged = image_verdict_kept(e.path, e.problem, sizeof e.problem) == 0;
        ret[count++] = e;
    }
    closedir(dir);
    return count;
}

int image_list(const char *base_dir, struct image_entry ret[IMAGE_LIST_MAX], struct err *err) {
    int count = list_folder(base_dir, ret, 0);
    if (count < 0)
        return err_sys(err, -count, "image.missing", "read %s", base_dir);
    for (int type = 0; type < IMAGE_TYPE_COUNT; type++) {
        char folder[PATH_MAX];
        snprintf(folder, sizeof folder, "%s/%s", base_dir, image_type_name((enum image_type)type));
        int more = list_folder(folder, ret, count);
        count = more < 0 ? count : more;
    }
    qsort(ret, (size_t)count, sizeof *ret, newest_first);
    return count;
}

#include "vm/saved.h"

#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "vm/vms.h"

#define PATH_SIZE (VMS_PATH_MAX + 300)
#define MANIFEST "saved.json"
#define MANIFEST_MAX 65536
#define SCHEMA "saved/2"
#define FILES_MAX 16
#define SPARE_BYTES (64ULL << 20)
#define CHUNK (1U << 20)
#define DIGEST_TEXT (2 * sizeof(XXH128_canonical_t) + 1)

/* The disks that a VMM writes to, of either driver; those that are there count. */
static const char *const disks[] = {"disk.qcow2", "root/disk.ext4", "root/overlay.ext4"};
#define DISK_COUNT (sizeof disks / sizeof *disks)

static void path_in(char ret_path[PATH_SIZE], const char *folder, const char *part, const char *name) {
    snprintf(ret_path, PATH_SIZE, "%s/%s%s%s", folder, part, *name ? "/" : "", name);
}

/* A disk may lie in a folder of its VMM's uid, which may have put anything else there. */
static int sync_path(const char *path, struct err *err) {
    _cleanup_close_ int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    return fd < 0 || fsync(fd) < 0 ? err_sys(err, errno, "saved.write", "write %s to the disk", path) : 0;
}

int saved_check_room(const char *folder, uint64_t memory_mib, struct err *err) {
    struct statvfs st;
    if (statvfs(folder, &st) < 0)
        return err_sys(err, errno, "saved.write", "look at the file system of %s", folder);
    uint64_t free_bytes = (uint64_t)st.f_bavail * st.f_frsize, need = (memory_mib << 20) + SPARE_BYTES;
    if (free_bytes >= need)
        return 0;
    err_set(
        err, ENOSPC, "disk.no-room",
        "its memory may take %llu MiB with what others take and are left, and the file system of %s has %llu MiB free",
        (unsigned long long)(need >> 20), folder, (unsigned long long)(free_bytes >> 20));
    return err_hint(err, "free some space there; the VM runs on");
}

/* ---- what is in it ---- */

/* Against a disk that fails, not against somebody: nobody else writes into the folder. So it need only be fast.
 * Source: XXH3, xxhash.h. */
static int digest_file(const char *path, char ret_hex[DIGEST_TEXT], uint64_t *ret_bytes, struct err *err) {
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    _cleanup_free_ uint8_t *data = malloc(CHUNK);
    XXH3_state_t *state = XXH3_createState();
    XXH128_canonical_t digest;
    uint64_t bytes = 0;
    ssize_t n = -1;
    if (state)
        XXH3_128bits_reset(state);
    while (state && fd >= 0 && data && (n = read(fd, data, CHUNK)) > 0) {
        XXH3_128bits_update(state, data, (size_t)n);
        bytes += (uint64_t)n;
    }
    int r = n < 0 ? err_sys(err, state && data ? errno : ENOMEM, "saved.broken", "read %s", path) : 0;
    if (r == 0) {
        XXH128_canonicalFromHash(&digest, XXH3_128bits_digest(state));
        str_hex(digest.digest, sizeof digest.digest, ret_hex);
        *ret_bytes = bytes;
    }
    XXH3_freeState(state);
    return r;
}

/* The files that the VMM wrote, each synced: {"memory":{"bytes":…,"xxh128":…}}. */
static int digest_files(const char *folder, json_t *ret_files, uint64_t *ret_bytes, struct err *err) {
    char path[PATH_SIZE], hex[DIGEST_TEXT];
    uint64_t bytes = 0, sum = 0;
    path_in(path, folder, SAVED_BEGUN, "");
    DIR *dir = opendir(path);
    int r = 0;
    if (!dir)
        return err_sys(err, errno, "saved.write", "read %s", path);
    for (struct dirent *e; r == 0 && (e = readdir(dir));) {
        if (e->d_name[0] == '.')
            continue;
        path_in(path, folder, SAVED_BEGUN, e->d_name);
        r = sync_path(path, err);
        if (r == 0)
            r = digest_file(path, hex, &bytes, err);
        if (r == 0)
            json_object_set_new(ret_files, e->d_name,
                                json_pack("{s:I, s:s}", "bytes", (json_int_t)bytes, "xxh128", hex));
        sum += bytes;
    }
    closedir(dir);
    if (r == 0 && (json_object_size(ret_files) == 0 || json_object_size(ret_files) > FILES_MAX))
        r = err_set(err, EIO, "saved.write", "the VMM left %zu files in %s", json_object_size(ret_files), path);
    *ret_bytes = sum;
    return r;
}

/* A disk that was written to since has another time: {"disk.qcow2":{"bytes":…,"mtime_ns":…}}. */
static json_t *look_at_disks(const char *folder) {
    json_t *found = json_object();
    for (size_t i = 0; i < DISK_COUNT; i++) {
        char path[PATH_SIZE];
        struct stat st;
        path_in(path, folder, disks[i], "");
        if (lstat(path, &st) == 0)
            json_object_set_new(found, disks[i],
                                json_pack("{s:I, s:I}", "bytes", (json_int_t)st.st_size, "mtime_ns",
                                          (json_int_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec));
    }
    return found;
}

static int sync_disks(const char *folder, struct err *err) {
    int r = 0;
    for (size_t i = 0; r == 0 && i < DISK_COUNT; i++) {
        char path[PATH_SIZE];
        path_in(path, folder, disks[i], "");
        if (access(path, F_OK) == 0)
            r = sync_path(path, err);
    }
    return r;
}

/* ---- making it ---- */

int saved_begin(const char *folder, struct err *err) {
    char path[PATH_SIZE];
    path_in(path, folder, SAVED_BEGUN, "");
    int r = dir_remove(path);
    if (r == 0 && mkdir(path, 0700) < 0)
        r = -errno;
    return r < 0 ? err_sys(err, -r, "saved.write", "make %s", path) : 0;
}

static int write_manifest(const char *folder, const struct vm *vm, const char *version, const char *accel,
                          json_t *files, struct err *err) {
    char path[PATH_SIZE], at[TIME_RFC3339_SIZE];
    time_format_rfc3339(time_realtime_ms(), at);
    json_t *manifest =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:O, s:o}", "schema", SCHEMA, "vm_id", vm->id, "at",
                  at, "vmm", vm->vmm, "version", version, "accel", accel, "image", vm->image, "memory_mib",
                  (int)vm->memory_mib, "vcpus", (int)vm->vcpus, "files", files, "disks", look_at_disks(folder));
    char *text = manifest ? json_dumps(manifest, JSON_INDENT(1)) : NULL;
    path_in(path, folder, SAVED_BEGUN, MANIFEST);
    int r = text ? file_write_atomic(path, text, strlen(text), 0600) : -ENOMEM;
    free(text);
    json_decref(manifest);
    return r < 0 ? err_sys(err, -r, "saved.write", "write %s", path) : 0;
}

/* Its entries are on the disk before its name is, and its name before anything relies on it. */
static int give_name(const char *folder, struct err *err) {
    char from[PATH_SIZE], to[PATH_SIZE];
    path_in(from, folder, SAVED_BEGUN, "");
    path_in(to, folder, SAVED_WHOLE, "");
    int r = sync_path(from, err);
    if (r == 0 && rename(from, to) < 0)
        r = err_sys(err, errno, "saved.write", "rename %s", from);
    return r < 0 ? r : sync_path(folder, err);
}

int saved_finish(const char *folder, const struct vm *vm, const char *version, const char *accel, uint64_t *ret_bytes,
                 struct err *err) {
    json_t *files = json_object();
    int r = digest_files(folder, files, ret_bytes, err);
    if (r == 0)
        r = sync_disks(folder, err);
    if (r == 0)
        r = write_manifest(folder, vm, version, accel, files, err);
    json_decref(files);
    return r < 0 ? r : give_name(folder, err);
}

/* ---- taking it ---- */

bool saved_is_whole(const char *folder) {
    char path[PATH_SIZE];
    path_in(path, folder, SAVED_WHOLE, MANIFEST);
    return access(path, F_OK) == 0;
}

static int broken(struct err *err, const char *what, const char *how) {
    err_set(err, EUCLEAN, "saved.broken", "its saved memory cannot be loaded: %s %s", what, how);
    return err_hint(err,
                    "it is kept; mctl vm resume ID --cold starts the VM from its disk, without what was in memory");
}

static int other(struct err *err, const char *what, const char *was, const char *is) {
    err_set(err, EPROTO, "saved.other", "its saved memory cannot be loaded: %s was %s, and is %s", what, was, is);
    return err_hint(err,
                    "it is kept; mctl vm resume ID --cold starts the VM from its disk, without what was in memory");
}

static int check_files(const char *folder, json_t *files, struct err *err) {
    const char *name;
    json_t *file;
    if (json_object_size(files) == 0 || json_object_size(files) > FILES_MAX)
        return broken(err, MANIFEST, "names no file");
    json_object_foreach(files, name, file) {
        char path[PATH_SIZE], hex[DIGEST_TEXT];
        const char *wanted = "";
        json_int_t bytes = -1;
        uint64_t found = 0;
        json_unpack(file, "{s?I, s?s}", "bytes", &bytes, "xxh128", &wanted);
        path_in(path, folder, SAVED_WHOLE, name);
        if (strchr(name, '/') || digest_file(path, hex, &found, err) < 0)
            return broken(err, name, "cannot be read");
        if (found != (uint64_t)bytes)
            return broken(err, name, "has not the length that it was written with");
        if (strcmp(hex, wanted) != 0)
            return broken(err, name, "has another digest than when it was written");
    }
    return 0;
}

static int check_manifest(json_t *m, const char *folder, const struct vm *vm, const char *accel, struct err *err) {
    const char *schema = "", *id = "", *vmm = "", *image = "", *was_accel = "";
    int memory_mib = 0, vcpus = 0;
    json_unpack(m, "{s?s, s?s, s?s, s?s, s?s, s?i, s?i}", "schema", &schema, "vm_id", &id, "vmm", &vmm, "image", &image,
                "accel", &was_accel, "memory_mib", &memory_mib, "vcpus", &vcpus);
    if (strcmp(schema, SCHEMA) != 0 || strcmp(id, vm->id) != 0 || memory_mib != (int)vm->memory_mib ||
        vcpus != (int)vm->vcpus)
        return broken(err, MANIFEST, "is not of this VM");
    if (strcmp(vmm, vm->vmm) != 0)
        return other(err, "its VMM", vmm, vm->vmm);
    if (strcmp(image, vm->image) != 0)
        return other(err, "its image", image, vm->image);
    if (strcmp(was_accel, accel) != 0)
        return other(err, "what runs it", was_accel, accel);
    json_t *now = look_at_disks(folder);
    bool same = json_equal(now, json_object_get(m, "disks"));
    json_decref(now);
    return same ? 0 : broken(err, "its disk", "has been written to since");
}

/* The caller decrefs. */
static int read_manifest(const char *folder, json_t **ret_manifest, struct err *err) {
    char path[PATH_SIZE];
    _cleanup_free_ char *text = NULL;
    size_t len;
    path_in(path, folder, SAVED_WHOLE, MANIFEST);
    int r = file_read(path, MANIFEST_MAX, &text, &len);
    if (r == -ENOENT) {
        err_set(err, EPROTO, "saved.none", "its memory was not saved, or is gone");
        return err_hint(err, "mctl vm resume ID --cold starts the VM from its disk, without what was in memory");
    }
    json_t *m = r < 0 ? NULL : json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
    if (!m)
        return broken(err, MANIFEST, "cannot be read");
    *ret_manifest = m;
    return 0;
}

int saved_check(const char *folder, const struct vm *vm, const char *accel, char ret_version[VMM_VERSION_MAX],
                struct err *err) {
    json_t *m = NULL;
    int r = read_manifest(folder, &m, err);
    if (r < 0)
        return r;
    const char *version = json_string_value(json_object_get(m, "version"));
    if (!version || !str_copy(ret_version, VMM_VERSION_MAX, version))
        r = broken(err, MANIFEST, "cannot be read");
    else
        r = check_manifest(m, folder, vm, accel, err);
    json_decref(m);
    return r;
}

int saved_check_files(const char *folder, struct err *err) {
    json_t *m = NULL;
    int r = read_manifest(folder, &m, err);
    if (r == 0)
        r = check_files(folder, json_object_get(m, "files"), err);
    json_decref(m);
    return r;
}

int saved_hold(const char *folder) {
    char path[PATH_SIZE];
    path_in(path, folder, SAVED_WHOLE, VMM_SAVED_MEMORY);
    return open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
}

int saved_drop(const char *folder, struct err *err) {
    char whole[PATH_SIZE], begun[PATH_SIZE];
    path_in(whole, folder, SAVED_WHOLE, "");
    path_in(begun, folder, SAVED_BEGUN, "");
    int r = dir_remove(begun);
    if (r < 0)
        return err_sys(err, -r, "saved.write", "remove %s", begun);
    if (rename(whole, begun) < 0)
        return errno == ENOENT ? 0 : err_sys(err, errno, "saved.write", "rename %s", whole);
    r = sync_path(folder, err);
    if (r < 0) { /* a crash could bring the name back */
        rename(begun, whole);
        return r;
    }
    dir_remove(begun); /* what stays of it is not whole */
    return 0;
}

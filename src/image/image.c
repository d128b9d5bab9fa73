#include "image/image.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/proc.h"
#include "base/str.h"
#include "image/private.h"
#include "image/verify.h"

#define MANIFEST_MAX (16U << 20)
#define QEMU_IMG "/usr/bin/qemu-img"

static int broken(struct err *err, const char *path, const char *what) {
    err_set(err, EUCLEAN, "image.broken", "the image's %s %s", path, what);
    return err_hint(err, "build it again: guest/build-image, or ./run");
}

/* Source: ext4 disk layout, super block at byte 1024: s_magic at 0x38, s_uuid at 0x68. */
static int check_ext4(const char *path, const char *uuid_text, struct err *err) {
    uint8_t super[1024];
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || pread(fd, super, sizeof super, 1024) != (ssize_t)sizeof super)
        return broken(err, path, "cannot be read");
    if (super[0x38] != 0x53 || super[0x39] != 0xef)
        return broken(err, path, "is not an ext4 file system");
    char hex[33], uuid[40];
    str_hex(super + 0x68, 16, hex);
    snprintf(uuid, sizeof uuid, "%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12, hex + 16, hex + 20);
    if (strcmp(uuid, uuid_text) != 0)
        return broken(err, path, "has another UUID than its manifest says");
    return 0;
}

/* Takes "file" and "size" of a part of the manifest and holds them against the folder. */
static int check_part(const char *dir, json_t *manifest, const char *part, char *ret_path, uint64_t *ret_size,
                      struct err *err) {
    const char *file;
    json_int_t size;
    struct stat st;
    char path[IMAGE_PATH_MAX];
    json_t *object = json_object_get(manifest, part);
    if (json_unpack(object, "{s:s, s:I}", "file", &file, "size", &size) < 0 || strchr(file, '/') || !*file)
        return broken(err, "manifest.json", "does not name its parts with file and size");
    if (snprintf(path, sizeof path, "%s/%s", dir, file) >= (int)sizeof path)
        return broken(err, file, "has a path that is too long");
    if (lstat(path, &st) < 0)
        return broken(err, path, "is missing");
    if (!S_ISREG(st.st_mode) || st.st_size != size)
        return broken(err, path, "has another size than its manifest says: it was cut or changed");
    memcpy(ret_path, path, sizeof path);
    if (ret_size)
        *ret_size = (uint64_t)size;
    return 0;
}

static int check_manifest(json_t *manifest, struct image *image, struct err *err) {
    const char *schema, *name, *type, *uuid;
    if (json_unpack(manifest, "{s:s, s:s, s:s, s:{s:s}}", "schema", &schema, "name", &name, "type", &type, "rootfs",
                    "uuid", &uuid) < 0 ||
        strcmp(schema, "image-manifest/1") != 0)
        return broken(err, "manifest.json", "is not one that this program knows (image-manifest/1)");
    const char *screen = json_string_value(json_object_get(manifest, "screen"));
    if (screen && !image_screen_parse(screen, &image->screen))
        return broken(err, "manifest.json", "names a screen that this program does not know");
    image->has_agent = json_is_object(json_object_get(manifest, "agent"));
    const char *build = strrchr(image->dir, '/') + 1;
    snprintf(image->name, sizeof image->name, "%.40s/%.50s", name, build);
    str_copy(image->type, sizeof image->type, type);
    int r = check_part(image->dir, manifest, "rootfs", image->rootfs, &image->rootfs_bytes, err);
    if (r == 0)
        r = check_part(image->dir, manifest, "kernel", image->kernel, NULL, err);
    if (r == 0)
        r = check_part(image->dir, manifest, "initrd", image->initrd, NULL, err);
    if (r == 0 && json_object_get(manifest, "vmlinux"))
        r = check_part(image->dir, manifest, "vmlinux", image->vmlinux, NULL, err);
    return r < 0 ? r : check_ext4(image->rootfs, uuid, err);
}

int image_load(const char *dir, struct image *ret_image, struct err *err) {
    struct image image = {0};
    char path[PATH_MAX];
    if (!str_copy(image.dir, sizeof image.dir - 32, dir))
        return broken(err, dir, "has a path that is too long");
    snprintf(path, sizeof path, "%s/manifest.json", image.dir);
    _cleanup_free_ char *text = NULL;
    size_t len;
    int r = file_read(path, MANIFEST_MAX, &text, &len);
    if (r < 0)
        return broken(err, path, r == -ENOENT ? "is missing" : "cannot be read");
    json_t *manifest = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
    r = manifest ? check_manifest(manifest, &image, err) : broken(err, path, "is not JSON");
    json_decref(manifest);
    image.disk_bytes = image.rootfs_bytes;
    if (r == 0)
        *ret_image = image;
    return r;
}

int image_open(const char *base_dir, struct image *ret_image, struct err *err) {
    struct image image;
    char path[PATH_MAX], resolved[PATH_MAX];
    snprintf(path, sizeof path, "%s/current", base_dir);
    if (!realpath(path, resolved)) {
        err_set(err, ENOENT, "image.missing", "there is no image: %s does not lead to one (%s)", path, strerror(errno));
        return err_hint(err, "build it: guest/build-image, or ./run, which does so by itself");
    }
    int r = image_load(resolved, &image, err);
    if (r == 0)
        r = image_verdict(image.dir, err);
    if (r == 0)
        *ret_image = image;
    return r;
}

int image_open_for(const char *base_dir, const char *vm_type, struct image *ret_image, struct err *err) {
    char path[PATH_MAX], own[PATH_MAX];
    snprintf(own, sizeof own, "%s/%s", base_dir, vm_type);
    if (snprintf(path, sizeof path, "%s/current", own) < (int)sizeof path && access(path, F_OK) == 0)
        base_dir = own;
    struct image image;
    int r = image_open(base_dir, &image, err);
    if (r < 0)
        return r;
    if (strcmp(vm_type, "browser") == 0 && strcmp(image.type, "cli") == 0) {
        err_set(err, EUCLEAN, "image.wrong-type", "the image %s is of the type cli: it has no desktop for a browser VM",
                image.dir);
        return err_hint(err, "build one that has: mctl image build --type browser");
    }
    *ret_image = image;
    return 0;
}

int image_run(const char *const *argv, const char *package, struct err *err) {
    struct proc_spec spec = {.argv = argv, .output_fd = -1, .no_new_privs = true};
    pid_t pid;
    _cleanup_close_ int pidfd = -1;
    int r = proc_start(&spec, &pid, &pidfd, err);
    if (r < 0)
        return err_hint(err, "install the package %s", package);
    char words[96] = "did not end within 10 s";
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    if (poll(&p, 1, 10000) <= 0)
        proc_signal(pidfd, SIGKILL);
    while (proc_reap(pidfd, words, sizeof words) == 0)
        poll(&p, 1, 1000);
    if (strcmp(words, "exit status 0") != 0)
        return err_set(err, EIO, "image.clone", "%s: %s", argv[0], words);
    return 0;
}

/* A template for each size that is asked for: what is configured, not what a caller wishes. */
void image_template(const struct image *image, const char *kind, char ret_path[IMAGE_TEMPLATE_MAX]) {
    char size[32] = "";
    if (image->disk_bytes != image->rootfs_bytes)
        snprintf(size, sizeof size, "-%llu", (unsigned long long)image->disk_bytes);
    snprintf(ret_path, IMAGE_TEMPLATE_MAX, "%s/overlay%s.%s", image->dir, size, kind);
}

/* qemu-img create -f qcow2 -u -b BACKING -F FORMAT PATH BYTES */
int image_overlay(const char *path, const char *backing, const char *format, uint64_t bytes, struct err *err) {
    char size[32];
    snprintf(size, sizeof size, "%llu", (unsigned long long)bytes);
    const char *const argv[] = {QEMU_IMG, "create", "-q",   "-f", "qcow2", "-u", "-b",
                                backing,  "-F",     format, path, size,    NULL};
    return image_run(argv, "qemu-utils", err);
}

/* The template beside the image: an overlay whose backing file is "base.ext4" in whatever folder it is copied to. */
static int make_template(const struct image *image, const char *path, struct err *err) {
    char tmp[IMAGE_TEMPLATE_MAX + 24];
    snprintf(tmp, sizeof tmp, "%s.%d.tmp", path, gettid());
    int r = image_overlay(tmp, "base.ext4", "raw", image->disk_bytes, err);
    if (r == 0 && rename(tmp, path) < 0)
        r = err_sys(err, errno, "image.clone", "rename %s", tmp);
    if (r < 0)
        unlink(tmp);
    return r;
}

static int copy_template(const struct image *image, const char *to, struct err *err) {
    char path[IMAGE_TEMPLATE_MAX];
    image_template(image, "qcow2", path);
    if (access(path, F_OK) < 0) {
        int r = make_template(image, path, err);
        if (r < 0)
            return r;
    }
    _cleanup_free_ char *data = NULL;
    size_t len;
    int r = file_read(path, 4U << 20, &data, &len);
    if (r < 0)
        return err_sys(err, -r, "image.clone", "read %s", path);
    _cleanup_close_ int fd = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    r = fd < 0 ? -errno : fd_write_all(fd, data, len);
    return r < 0 ? err_sys(err, -r, "image.clone", "write %s", to) : 0;
}

int image_clone(const struct image *image, const char *folder, struct err *err) {
    char base[IMAGE_PATH_MAX], disk[IMAGE_PATH_MAX];
    if (snprintf(base, sizeof base, "%s/base.ext4", folder) >= (int)sizeof base)
        return err_set(err, ENAMETOOLONG, "image.clone", "the path %s is too long", folder);
    snprintf(disk, sizeof disk, "%s/disk.qcow2", folder);
    if (link(image->rootfs, base) < 0 && (errno != EXDEV || symlink(image->rootfs, base) < 0))
        return err_sys(err, errno, "image.clone", "link %s to %s", image->rootfs, base);
    return copy_template(image, disk, err);
}

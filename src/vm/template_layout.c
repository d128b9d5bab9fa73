#include "vm/template_layout.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "image/image.h"
#include "vm/template.h"
#include "vm/template_pages.h"
#include "vmm/fc_config.h"

#define PATH_SIZE (VMS_PATH_MAX + 300)
#define SHARED_MODE 0444 /* root's: who maps it opens it as the VM's uid */

struct part {
    const char *from; /* where the machine that was saved had it; NULL: where it is */
    const char *name; /* in the template's folder */
    const char *to;   /* in a VM's */
    bool is_copied;   /* each VM has its own */
    bool is_images;   /* or it is the image's */
    bool is_optional;
};

static const struct part qemu_parts[] = {
    {.name = "base.ext4", .to = "base.ext4", .is_images = true},
    {.from = "disk.qcow2", .name = VMM_TEMPLATE_DISK, .to = VMM_TEMPLATE_DISK},
    {.name = TEMPLATE_STATE "/memory", .to = TEMPLATE_STATE "/memory"},
    {.name = TEMPLATE_OVERLAY, .to = "disk.qcow2", .is_copied = true},
};

static const struct part firecracker_parts[] = {
    {.from = FC_ROOT "/" FC_BASE, .name = FC_BASE, .to = FC_BASE, .is_images = true, .is_optional = true},
    {.from = FC_ROOT "/" FC_OVERLAY, .name = FC_OVERLAY, .to = FC_OVERLAY, .is_copied = true, .is_optional = true},
    {.from = FC_ROOT "/" FC_DISK, .name = FC_DISK, .to = FC_DISK, .is_copied = true, .is_optional = true},
    {.name = TEMPLATE_STATE "/machine.state", .to = TEMPLATE_STATE "/machine.state"},
};

/* The parts of the VMM. */
static const struct part *parts_of(const struct vmm_ops *ops, size_t *ret_count) {
    *ret_count =
        ops->raw_disk ? sizeof firecracker_parts / sizeof *firecracker_parts : sizeof qemu_parts / sizeof *qemu_parts;
    return ops->raw_disk ? firecracker_parts : qemu_parts;
}

static void path_in(char ret_path[PATH_SIZE], const char *folder, const char *name) {
    snprintf(ret_path, PATH_SIZE, "%s/%s", folder, name);
}

static bool is_there(const char *folder, const struct part *part) {
    char path[PATH_SIZE];
    path_in(path, folder, part->name);
    return !part->is_optional || access(path, F_OK) == 0;
}

/* ---- making it ---- */

/* What a VMM's uid has written is root's from now on: it has ended, and nobody else has it open. A file with another name is
 * somebody else's too: the image's, which that uid may rename. */
static int take_over(const char *path, mode_t mode, struct err *err) {
    struct stat st;
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_sys(err, errno, "template.write", "take %s over", path);
    if (!S_ISREG(st.st_mode) || st.st_nlink != 1)
        return err_set(err, EUCLEAN, "template.write", "%s is not a file of this VM's alone", path);
    return fchown(fd, 0, 0) < 0 || fchmod(fd, mode) < 0 ? err_sys(err, errno, "template.write", "take %s over", path)
                                                        : 0;
}

static int settle_part(const struct vmm_ops *ops, const char *folder, const struct part *part, struct err *err) {
    char from[PATH_SIZE], to[PATH_SIZE];
    path_in(to, folder, part->name);
    if (part->from) {
        path_in(from, folder, part->from);
        if (rename(from, to) < 0)
            return part->is_optional && errno == ENOENT ? 0 : err_sys(err, errno, "template.write", "rename %s", from);
    }
    /* QEMU is given what daemons have made and opened. */
    return part->is_images || !ops->raw_disk ? 0 : take_over(to, part->is_copied ? 0600 : SHARED_MODE, err);
}

/* Firecracker's root folder, and where its jailer wants that. */
static int drop_folders(const char *folder, struct err *err) {
    char path[PATH_SIZE];
    struct stat st;
    int r = 0;
    DIR *dir = opendir(folder);
    for (struct dirent *e; r == 0 && dir && (e = readdir(dir));) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 || strcmp(e->d_name, TEMPLATE_STATE) == 0 ||
            fstatat(dirfd(dir), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 || S_ISREG(st.st_mode))
            continue;
        path_in(path, folder, e->d_name);
        r = dir_remove(path);
    }
    if (dir)
        closedir(dir);
    return r < 0 ? err_sys(err, -r, "template.write", "remove %s", path) : 0;
}

int layout_settle(const struct vmm_ops *ops, const char *folder, uint64_t disk_bytes, struct err *err) {
    char path[PATH_SIZE];
    size_t count;
    const struct part *parts = parts_of(ops, &count);
    int r = 0;
    path_in(path, folder, TEMPLATE_OVERLAY);
    if (!ops->raw_disk)
        r = image_overlay(path, VMM_TEMPLATE_DISK, "qcow2", disk_bytes, err);
    for (size_t i = 0; r == 0 && i < count; i++)
        r = settle_part(ops, folder, &parts[i], err);
    return r == 0 && ops->raw_disk ? drop_folders(folder, err) : r;
}

int layout_digest(const struct vmm_ops *ops, const char *folder, const atomic_bool *is_unwanted, json_t *ret_files,
                  uint64_t *ret_bytes, struct err *err) {
    size_t count;
    const struct part *parts = parts_of(ops, &count);
    int r = 0;
    *ret_bytes = 0;
    for (size_t i = 0; r == 0 && i < count; i++) {
        char path[PATH_SIZE];
        struct pages pages = {0};
        uint64_t size = 0;
        if (parts[i].is_images || !is_there(folder, &parts[i]))
            continue;
        path_in(path, folder, parts[i].name);
        r = pages_digest(path, is_unwanted, &pages, &size, err);
        if (r == 0)
            json_object_set_new(ret_files, parts[i].name,
                                json_pack("{s:I, s:s}", "bytes", (json_int_t)size, "sha256", pages.digest));
        *ret_bytes += pages.bytes;
    }
    return r;
}

/* ---- using it ---- */

static int link_part(const char *from, const char *to, struct err *err) {
    char real[PATH_SIZE];
    int r = link(from, to) < 0 ? -errno : 0;
    if (r == 0)
        return 0;
    /* The image may be on another file system: then base.ext4 is a symbolic link already, and links to the image. */
    ssize_t n = readlink(from, real, sizeof real - 1);
    if (n > 0) {
        real[n] = '\0';
        r = symlink(real, to) < 0 ? -errno : 0;
    }
    return r < 0 ? err_sys(err, -r, "template.clone", "link %s to %s", from, to) : 0;
}

int layout_clone(const struct vmm_ops *ops, const char *template_folder, const char *folder, struct err *err) {
    char from[PATH_SIZE], to[PATH_SIZE];
    size_t count;
    const struct part *parts = parts_of(ops, &count);
    path_in(to, folder, TEMPLATE_STATE);
    if (mkdir(to, 0700) < 0)
        return err_sys(err, errno, "template.clone", "make %s", to);
    int r = 0;
    for (size_t i = 0; r == 0 && i < count; i++) {
        if (!is_there(template_folder, &parts[i]))
            continue;
        path_in(from, template_folder, parts[i].name);
        path_in(to, folder, parts[i].to);
        r = parts[i].is_copied ? image_copy_raw(from, to, err) : link_part(from, to, err);
    }
    path_in(from, template_folder, TEMPLATE_RAM);
    path_in(to, folder, TEMPLATE_STATE "/memory");
    return r == 0 && ops->maps_saved ? link_part(from, to, err) : r;
}

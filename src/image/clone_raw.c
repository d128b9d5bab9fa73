#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "image/private.h"

#define MKE2FS "/usr/sbin/mke2fs"
#define OVERLAY_MIN_BYTES (64ULL << 20)

/* cp --reflink=always. Return: 0, or -errno where the file system cannot (EOPNOTSUPP, EXDEV, …): nothing is left. */
static int reflink(const struct image *image, const char *to) {
    _cleanup_close_ int source = open(image->rootfs, O_RDONLY | O_CLOEXEC);
    if (source < 0)
        return -errno;
    _cleanup_close_ int fd = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    if (ioctl(fd, FICLONE, source) == 0 &&
        (image->disk_bytes <= image->rootfs_bytes || ftruncate(fd, (off_t)image->disk_bytes) == 0))
        return 0;
    int r = -errno;
    unlink(to);
    return r;
}

/* The template beside the image: an empty file system of the image's size, of which little more than the superblocks is on
 * the disk. The journal is small, because it is written in every VM. */
static int make_template(const struct image *image, const char *path, struct err *err) {
    char tmp[IMAGE_TEMPLATE_MAX + 24], size[32];
    unsigned long long bytes = image->disk_bytes > OVERLAY_MIN_BYTES ? image->disk_bytes : OVERLAY_MIN_BYTES;
    snprintf(tmp, sizeof tmp, "%s.%d.tmp", path, gettid());
    snprintf(size, sizeof size, "%lluk", bytes / 1024);
    const char *const argv[] = {MKE2FS,
                                "-q",
                                "-F",
                                "-t",
                                "ext4",
                                "-L",
                                "overlay",
                                "-m",
                                "0",
                                "-J",
                                "size=4",
                                "-E",
                                "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0",
                                tmp,
                                size,
                                NULL};
    int r = image_run(argv, "e2fsprogs", err);
    if (r == 0 && rename(tmp, path) < 0)
        r = err_sys(err, errno, "image.clone", "rename %s", tmp);
    if (r < 0)
        unlink(tmp);
    return r;
}

/* cp --sparse: only what is not a hole. Return: 0 or -errno. */
static int copy_data(int from, int to, off_t size) {
    off_t data = 0;
    while ((data = lseek(from, data, SEEK_DATA)) >= 0) {
        off_t end = lseek(from, data, SEEK_HOLE), out = data;
        if (end < 0)
            return -errno;
        while (data < end) {
            ssize_t n = copy_file_range(from, &data, to, &out, (size_t)(end - data), 0);
            if (n <= 0)
                return n < 0 ? -errno : -EIO;
        }
    }
    /* ENXIO: there is no data behind. */
    return errno != ENXIO || ftruncate(to, size) < 0 ? -errno : 0;
}

int image_copy_raw(const char *from, const char *to, struct err *err) {
    struct stat st;
    _cleanup_close_ int source = open(from, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (source < 0 || fstat(source, &st) < 0)
        return err_sys(err, errno, "image.clone", "open %s", from);
    _cleanup_close_ int fd = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    int r = fd < 0 ? -errno : 0;
    if (r == 0 && ioctl(fd, FICLONE, source) < 0)
        r = copy_data(source, fd, st.st_size);
    return r < 0 ? err_sys(err, -r, "image.clone", "copy %s to %s", from, to) : 0;
}

static int clone_overlay(const struct image *image, const char *folder, struct err *err) {
    char template[IMAGE_TEMPLATE_MAX], base[IMAGE_PATH_MAX], overlay[IMAGE_PATH_MAX];
    snprintf(base, sizeof base, "%s/base.ext4", folder);
    snprintf(overlay, sizeof overlay, "%s/overlay.ext4", folder);
    image_template(image, "ext4", template);
    if (link(image->rootfs, base) < 0) {
        int errnum = errno;
        err_sys(err, errnum, "image.clone", "link %s to %s", image->rootfs, base);
        return errnum == EXDEV
                   ? err_hint(err, "the image has to be on the file system of the state folder: see [image] "
                                   "directory, or set [vm] vmm = qemu")
                   : -errnum;
    }
    int r = access(template, F_OK) < 0 ? make_template(image, template, err) : 0;
    return r < 0 ? r : image_copy_raw(template, overlay, err);
}

int image_clone_raw(const struct image *image, const char *folder, struct err *err) {
    char disk[IMAGE_PATH_MAX];
    if (snprintf(disk, sizeof disk, "%s/overlay.ext4", folder) >= (int)sizeof disk)
        return err_set(err, ENAMETOOLONG, "image.clone", "the path %s is too long", folder);
    snprintf(disk, sizeof disk, "%s/disk.ext4", folder);
    int r = reflink(image, disk);
    if (r == -ENOSPC || r == -EDQUOT)
        return err_sys(err, -r, "image.clone", "make %s", disk);
    return r < 0 ? clone_overlay(image, folder, err) : 0;
}

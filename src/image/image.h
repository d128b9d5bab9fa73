/* The golden image as the host sees it: a folder with the root file system, the kernel and the initramfs that fit each
 * other, and a manifest that says so. BASE/current is a symbolic link to the newest build (guest/build-image makes
 * both), so that a new image replaces an old one in one step.
 *
 * A VM's disk costs nothing: an empty qcow2 overlay over the image's root file system, which is never copied. */
#pragma once

#include <stdint.h>

#include "base/err.h"

#define IMAGE_PATH_MAX 512

struct image {
    char name[96];            /* "golden-rootfs" and the build's folder: "golden-rootfs/20260102T030405Z-1a2b" */
    char dir[IMAGE_PATH_MAX]; /* the build's folder, symbolic link resolved */
    char rootfs[IMAGE_PATH_MAX];
    char kernel[IMAGE_PATH_MAX];
    char initrd[IMAGE_PATH_MAX];
    uint64_t rootfs_bytes;
};

/* Reads BASE/current/manifest.json and holds it against the files: each there, a regular file, of the size that the
 * manifest says; the root file system an ext4 with the UUID that the manifest says.
 * Errors: "image.missing" (no image was built), "image.broken" (names the file and what is wrong with it). */
int image_open(const char *base_dir, struct image *ret_image, struct err *err);

/* Puts an empty overlay over the image into folder: disk.qcow2 and base.ext4 (a hard link, which keeps this image for
 * the VM's life whatever is built meanwhile; a symbolic link where the folder is on another file system).
 * The first call for an image makes its template with qemu-img; later ones copy 200 kB. */
int image_clone(const struct image *image, const char *folder, struct err *err);

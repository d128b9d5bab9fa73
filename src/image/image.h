/* The golden image as the host sees it: a folder with the root file system, the kernel and the initramfs that fit each
 * other, and a manifest that says so. BASE/current is a symbolic link to the newest build (guest/build-image makes
 * both), so that a new image replaces an old one in one step.
 *
 * A VM's disk costs nothing, the image's root file system is never copied: an empty qcow2 overlay over it, or, for a VMM
 * that takes raw disks only, a reflink, or a sparse second disk that the guest joins with it by overlayfs. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "image/needs.h"

#define IMAGE_PATH_MAX 512

struct image {
    char name[96];            /* "golden-rootfs" and the build's folder: "golden-rootfs/20260102T030405Z-1a2b" */
    char type[16];            /* "browser", "cli", "test": for which VMs it was made */
    char dir[IMAGE_PATH_MAX]; /* the build's folder, symbolic link resolved */
    char rootfs[IMAGE_PATH_MAX];
    char kernel[IMAGE_PATH_MAX];
    char initrd[IMAGE_PATH_MAX];
    char vmlinux[IMAGE_PATH_MAX]; /* the kernel uncompressed, as Firecracker wants it; empty: the image has none */
    uint64_t rootfs_bytes;
    uint64_t disk_bytes;      /* of a clone: as rootfs_bytes; the caller may set more, and the guest's init uses it */
    enum image_screen screen; /* of a browser image */
    bool has_agent;           /* the manifest has "agent" */
};

/* Reads BASE/current/manifest.json and holds it against the files: each there, a regular file, of the size that the
 * manifest says; the root file system an ext4 with the UUID that the manifest says; and takes image_verdict()'s word
 * for what is inside (some 100 ms the first time, then remembered).
 * Errors: "image.missing" (no image was built), "image.broken" (names the file and what is wrong with it),
 * "image.unfit" (it does not verify). */
int image_open(const char *base_dir, struct image *ret_image, struct err *err);

/* The same for one build's folder, without asking whether it verifies: for who is about to find that out. */
int image_load(const char *dir, struct image *ret_image, struct err *err);

/* The image for VMs of a type: the one in BASE/TYPE where there is one (mctl image build --type cli makes it), else the
 * one in BASE. A browser image serves cli VMs too, not the other way round.
 * Errors: as image_open(), and "image.wrong-type". */
int image_open_for(const char *base_dir, const char *vm_type, struct image *ret_image, struct err *err);

/* Puts an empty overlay over the image into folder: disk.qcow2 and base.ext4 (a hard link, which keeps this image for
 * the VM's life whatever is built meanwhile; a symbolic link where the folder is on another file system).
 * The first call for an image makes its template with qemu-img; later ones copy 200 kB. */
int image_clone(const struct image *image, const char *folder, struct err *err);

/* Makes an empty overlay over another file of the same folder, named as it is there, of a format that qemu-img knows. */
int image_overlay(const char *path, const char *backing, const char *format, uint64_t bytes, struct err *err);

/* The same for a VMM that takes raw disks only. Where the file system can, folder gets disk.ext4, a reflink of the image;
 * else base.ext4, the image itself as a hard link, and overlay.ext4, an empty and sparse file system for what the guest
 * writes. The first such call for an image makes the overlay's template with mke2fs; later ones copy its few blocks. */
int image_clone_raw(const struct image *image, const char *folder, struct err *err);

/* A file of such a disk for another VM: a reflink, or else what of it is not a hole. It must not be written to meanwhile. */
int image_copy_raw(const char *from, const char *to, struct err *err);

/* A read-only look into an ext4 file system that is a file: no mount, no root, no write. The file may be anybody's:
 * whatever is in it, every call ends, within bounds, with an answer or -errno.
 *
 * libext2fs reads the structures; this adds what it does not have: limits. The geometry is held against the file before
 * the library sees it, all that it reads goes through a reader with a budget (a loop of blocks that point to each other
 * ends when the budget does), paths are resolved inside the image (40 links, 255 levels), files are read up to a
 * maximum that the caller names. Source: Documentation/filesystems/ext4/, libext2fs's ext2fs.h.
 *
 * Errors of all calls: -EUCLEAN the structures are damaged, -E2BIG the budget is spent (damaged on purpose), -ENOMEM. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "base/err.h"

#define EXT4_PATH_MAX 1024
#define EXT4_FILE_MAX ((uint64_t)64 << 30) /* bytes of a file that is looked into */

struct ext4;

/* An inode, as far as the checks want to know it. */
struct ext4_node {
    uint32_t ino;
    uint16_t mode; /* type and permissions as in stat(2) */
    uint32_t uid, gid;
    uint64_t size; /* bytes */
};

/* Errors: "fs.unreadable", "fs.not-ext4", "fs.cut" (the file is shorter than the file system), "fs.corrupt" (what
 * cannot be, or what libext2fs refuses). */
int ext4_open(const char *path, struct ext4 **ret, struct err *err);
void ext4_free(struct ext4 *fs);
void ext4_cleanup(struct ext4 **fs);
#define _cleanup_ext4_ __attribute__((cleanup(ext4_cleanup)))

/* Resolves an absolute path as the guest would. follow: a last component that is a symbolic link is followed too.
 * ret_path may be NULL; else EXT4_PATH_MAX bytes, the path without links.
 * Return: 0, -ENOENT, -ENOTDIR, -ELOOP, -ENAMETOOLONG or an error of all calls. */
int ext4_find(struct ext4 *fs, const char *path, bool follow, struct ext4_node *ret, char *ret_path);

/* Where a symbolic link leads. Return: 0, -EINVAL (not a link), -ENAMETOOLONG. */
int ext4_link(struct ext4 *fs, const struct ext4_node *node, char *ret_target, size_t size);

/* Up to len bytes of a regular file from offset. Return: how many (0 at its end), or -errno. */
int64_t ext4_read(struct ext4 *fs, const struct ext4_node *node, uint64_t offset, void *ret_data, size_t len);

/* A whole regular file of at most max bytes, NUL-terminated, links followed; the caller frees.
 * Return: 0, -EFBIG, -EISDIR (not a regular file) or as ext4_find(). */
int ext4_read_file(struct ext4 *fs, const char *path, size_t max, char **ret_data, size_t *ret_len);

/* Calls fn for each name in a folder, but "." and "..", in the order of their names, until it returns false. At most
 * 65536 names. Return: 0 or as ext4_find(). */
typedef bool ext4_name_fn(const char *name, void *data);
int ext4_list(struct ext4 *fs, const char *path, ext4_name_fn *fn, void *data);

/* ---- the file system as a whole */

struct ext4_facts {
    bool valid, errors;          /* s_state */
    bool journal, journal_dirty; /* has one inside; it holds what was never written to its place */
    bool journal_external;
    bool orphans;      /* a list of files that were deleted while open */
    bool read_only;    /* feature read-only or shared_blocks: never mounted for writing */
    bool multi_mount;  /* feature mmp */
    char features[96]; /* those that a Debian 12 kernel refuses, by name; empty: none */
    char uuid[40], label[24];
    uint32_t block_size; /* bytes */
    uint64_t blocks, free_blocks;
    uint32_t inodes, free_inodes;
};
void ext4_describe(struct ext4 *fs, struct ext4_facts *ret);

/* Goes through checksums, bitmaps and the whole tree, much as e2fsck -n does: each folder reached once, each entry an
 * inode that is in use, each block used once and marked so. Tells each damage, up to 32; where: a path, or what part. */
typedef void ext4_damage_fn(const char *where, const char *what, void *data);
int ext4_check(struct ext4 *fs, ext4_damage_fn *fn, void *data);

/* What e2fsck -n would look at, as far as it matters before an image is cloned a thousand times: an image that was cut,
 * copied while it was mounted, or edited by hand. All bounded: a block or folder that is met a second time ends that
 * part, so no more is done than the file system has blocks and inodes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"
#include "image/ext4_private.h"

#define DAMAGES_MAX 32U
#define FOLDERS_MAX 200000U

/* Source: the feature lists of fs/ext4/ext4.h in Linux 6.1, without those that Debian's cloud kernel was built
 * without. */
#define KERNEL_INCOMPAT                                                                                                \
    (EXT2_FEATURE_INCOMPAT_FILETYPE | EXT3_FEATURE_INCOMPAT_RECOVER | EXT2_FEATURE_INCOMPAT_META_BG |                  \
     EXT3_FEATURE_INCOMPAT_EXTENTS | EXT4_FEATURE_INCOMPAT_64BIT | EXT4_FEATURE_INCOMPAT_MMP |                         \
     EXT4_FEATURE_INCOMPAT_FLEX_BG | EXT4_FEATURE_INCOMPAT_EA_INODE | EXT4_FEATURE_INCOMPAT_CSUM_SEED |                \
     EXT4_FEATURE_INCOMPAT_LARGEDIR | EXT4_FEATURE_INCOMPAT_INLINE_DATA | EXT4_FEATURE_INCOMPAT_ENCRYPT |              \
     EXT4_FEATURE_INCOMPAT_CASEFOLD)
#define KERNEL_RO_COMPAT                                                                                               \
    (EXT2_FEATURE_RO_COMPAT_SPARSE_SUPER | EXT2_FEATURE_RO_COMPAT_LARGE_FILE | EXT4_FEATURE_RO_COMPAT_HUGE_FILE |      \
     EXT4_FEATURE_RO_COMPAT_GDT_CSUM | EXT4_FEATURE_RO_COMPAT_DIR_NLINK | EXT4_FEATURE_RO_COMPAT_EXTRA_ISIZE |         \
     EXT4_FEATURE_RO_COMPAT_QUOTA | EXT4_FEATURE_RO_COMPAT_BIGALLOC | EXT4_FEATURE_RO_COMPAT_METADATA_CSUM |           \
     EXT4_FEATURE_RO_COMPAT_READONLY | EXT4_FEATURE_RO_COMPAT_PROJECT | EXT4_FEATURE_RO_COMPAT_VERITY |                \
     EXT4_FEATURE_RO_COMPAT_ORPHAN_PRESENT | EXT4_FEATURE_RO_COMPAT_SHARED_BLOCKS)

static void name_features(const struct ext2_super_block *s, char *ret, size_t size) {
    struct strbuf text = {.max = size - 1};
    uint32_t incompat = s->s_feature_incompat & ~(uint32_t)KERNEL_INCOMPAT;
    uint32_t ro_compat = s->s_feature_ro_compat & ~(uint32_t)KERNEL_RO_COMPAT;
    if (incompat)
        strbuf_addf(&text, "incompat 0x%x", incompat);
    if (ro_compat)
        strbuf_addf(&text, "%sro_compat 0x%x", incompat ? ", " : "", ro_compat);
    str_copy(ret, size, text.data ? text.data : "");
    strbuf_free(&text);
}

/* Source: fs/jbd2, journal_superblock_s: s_start is at byte 28, big-endian; not 0 means that there is something to
 * replay. */
static bool journal_holds_something(struct ext4 *fs) {
    uint8_t super[32];
    struct ext4_node node;
    if (ext4_node(fs, fs->fs->super->s_journal_inum, &node) < 0 ||
        ext4_read(fs, &node, 0, super, sizeof super) != (int64_t)sizeof super)
        return true;
    return super[28] || super[29] || super[30] || super[31];
}

void ext4_describe(struct ext4 *fs, struct ext4_facts *ret) {
    struct ext2_super_block *s = fs->fs->super;
    char hex[33];
    *ret = (struct ext4_facts){.valid = s->s_state & EXT2_VALID_FS,
                               .errors = s->s_state & EXT2_ERROR_FS,
                               .journal = ext2fs_has_feature_journal(s) && s->s_journal_inum,
                               .journal_external = ext2fs_has_feature_journal(s) && !s->s_journal_inum,
                               .orphans = s->s_last_orphan != 0,
                               .read_only = ext2fs_has_feature_readonly(s) || ext2fs_has_feature_shared_blocks(s),
                               .multi_mount = ext2fs_has_feature_mmp(s),
                               .block_size = fs->fs->blocksize,
                               .blocks = ext2fs_blocks_count(s),
                               .free_blocks = ext2fs_free_blocks_count(s),
                               .inodes = s->s_inodes_count,
                               .free_inodes = s->s_free_inodes_count};
    ret->journal_dirty = ext2fs_has_feature_journal_needs_recovery(s) || (ret->journal && journal_holds_something(fs));
    name_features(s, ret->features, sizeof ret->features);
    str_hex(s->s_uuid, 16, hex);
    snprintf(ret->uuid, sizeof ret->uuid, "%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12, hex + 16, hex + 20);
    str_escape((const char *)s->s_volume_name, strnlen((const char *)s->s_volume_name, 16), ret->label,
               sizeof ret->label);
}

/* ---------------------------------------------------------------- the tree */

struct folder {
    uint32_t ino, parent; /* parent: index */
    char *name;
};

struct check {
    struct ext4 *fs;
    ext4_damage_fn *fn;
    void *data;
    unsigned damages;
    uint8_t *inode_seen, *block_seen; /* bitmaps */
    struct folder *folders;
    uint32_t folder_count, folder_cap;
    uint32_t now; /* index of the folder that is read */
    const char *entry;
    int error;
};

static bool test_and_set(uint8_t *bitmap, uint64_t at) {
    bool was = bitmap[at / 8] & (1U << at % 8);
    bitmap[at / 8] |= (uint8_t)(1U << at % 8);
    return was;
}

static void path_of(const struct check *c, uint32_t folder, const char *last, char ret[EXT4_PATH_MAX]) {
    uint32_t chain[24];
    int depth = 0;
    for (uint32_t at = folder; at != 0 && depth < 24; at = c->folders[at].parent)
        chain[depth++] = at;
    struct strbuf path = {.max = EXT4_PATH_MAX - 1};
    while (depth-- > 0)
        strbuf_addf(&path, "/%s", c->folders[chain[depth]].name);
    strbuf_addf(&path, "/%s", last);
    str_copy(ret, EXT4_PATH_MAX, path.data ? path.data : "/");
    strbuf_free(&path);
}

static void damage(struct check *c, const char *where, const char *what) {
    if (c->damages++ < DAMAGES_MAX)
        c->fn(where, what, c->data);
}

static void damage_entry(struct check *c, const char *what) {
    char path[EXT4_PATH_MAX];
    path_of(c, c->now, c->entry, path);
    damage(c, path, what);
}

static int take_block(ext2_filsys fs, blk64_t *block, e2_blkcnt_t at, blk64_t ref, int offset, void *data) {
    struct check *c = data;
    const char *wrong = NULL;
    if (*block < fs->super->s_first_data_block || *block >= ext2fs_blocks_count(fs->super))
        wrong = "uses a block that does not exist";
    else if (test_and_set(c->block_seen, *block))
        wrong = "shares a block with another file";
    else if (!ext2fs_test_block_bitmap2(fs->block_map, *block))
        wrong = "uses a block that is marked free: the next file that the guest writes overwrites it";
    if (!wrong)
        return 0;
    damage_entry(c, wrong);
    return BLOCK_ABORT;
}

static bool add_folder(struct check *c, uint32_t ino) {
    if (c->folder_count == c->folder_cap) {
        uint32_t cap = c->folder_cap ? c->folder_cap * 2 : 256;
        struct folder *grown = cap <= 2 * FOLDERS_MAX ? reallocarray(c->folders, cap, sizeof *grown) : NULL;
        if (!grown) {
            c->error = cap <= 2 * FOLDERS_MAX ? -ENOMEM : -E2BIG;
            return false;
        }
        c->folders = grown;
        c->folder_cap = cap;
    }
    char *name = strdup(c->entry);
    if (!name) {
        c->error = -ENOMEM;
        return false;
    }
    c->folders[c->folder_count++] = (struct folder){ino, c->now, name};
    return true;
}

static bool take_inode(struct check *c, uint32_t ino) {
    ext2_filsys fs = c->fs->fs;
    struct ext2_inode inode;
    errcode_t code = ext2fs_read_inode(fs, ino, &inode);
    if (code) {
        damage_entry(c, code == EXT2_ET_INODE_CSUM_INVALID ? "has an inode with a wrong checksum"
                                                           : "has an inode that cannot be read");
        return code != E2BIG;
    }
    if (inode.i_links_count == 0 || inode.i_mode == 0 || !ext2fs_test_inode_bitmap2(fs->inode_map, ino)) {
        damage_entry(c, "leads to an inode that is free");
        return true;
    }
    if (S_ISDIR(inode.i_mode) && !add_folder(c, ino))
        return false;
    if (!ext2fs_inode_has_valid_blocks2(fs, &inode))
        return true;
    code = ext2fs_block_iterate3(fs, ino, BLOCK_FLAG_READ_ONLY, NULL, take_block, c);
    if (code)
        damage_entry(c, "has a block map that is damaged");
    return code != E2BIG;
}

static int take_entry(ext2_ino_t dir, int entry, struct ext2_dir_entry *dirent, int offset, int blocksize, char *buf,
                      void *data) {
    struct check *c = data;
    char name[256], shown[4 * 256];
    size_t len = (size_t)ext2fs_dirent_name_len(dirent);
    if (entry == DIRENT_DOT_FILE || entry == DIRENT_DOT_DOT_FILE)
        return 0;
    memcpy(name, dirent->name, len);
    name[len] = '\0';
    c->entry = str_escape(name, len, shown, sizeof shown);
    uint32_t ino = dirent->inode, first = EXT2_FIRST_INO(c->fs->fs->super);
    if (len == 0 || memchr(name, '\0', len) || memchr(name, '/', len))
        damage_entry(c, "is no name that a file can have");
    if (ino > c->fs->fs->super->s_inodes_count || ino < first) {
        damage_entry(c, "leads to an inode that does not exist");
        return 0;
    }
    struct ext4_node node;
    if (!test_and_set(c->inode_seen, ino))
        return take_inode(c, ino) ? 0 : DIRENT_ABORT;
    if (ext4_node(c->fs, ino, &node) == 0 && S_ISDIR(node.mode))
        damage_entry(c, "is a second way to a folder: the tree has a loop");
    return 0;
}

static void walk_tree(struct check *c) {
    c->entry = "";
    test_and_set(c->inode_seen, EXT2_ROOT_INO);
    if (!take_inode(c, EXT2_ROOT_INO) || c->folder_count == 0)
        return;
    for (uint32_t i = 0; i < c->folder_count && c->error == 0 && c->damages < DAMAGES_MAX; i++) {
        c->now = i;
        c->entry = "";
        errcode_t code = ext2fs_dir_iterate2(c->fs->fs, c->folders[i].ino, 0, NULL, take_entry, c);
        c->entry = "";
        if (code == E2BIG)
            c->error = -E2BIG;
        else if (code)
            damage_entry(c, "is a folder that is damaged");
    }
}

/* Inodes that are marked used, but that no name leads to: what a crash or a bad tool leaves. */
static void look_for_lost(struct check *c) {
    ext2_filsys fs = c->fs->fs;
    uint32_t lost = 0;
    for (uint32_t ino = EXT2_FIRST_INO(fs->super); ino <= fs->super->s_inodes_count; ino++)
        lost += ino != fs->super->s_orphan_file_inum && ext2fs_test_inode_bitmap2(fs->inode_map, ino) &&
                !(c->inode_seen[ino / 8] & (1U << ino % 8));
    if (lost) {
        char what[80];
        snprintf(what, sizeof what, "has %u files that no folder names", lost);
        damage(c, "the inode bitmap", what);
    }
}

static void check_groups(struct check *c) {
    ext2_filsys fs = c->fs->fs;
    uint64_t blocks = 0, inodes = 0;
    for (dgrp_t i = 0; i < fs->group_desc_count; i++) {
        if (!ext2fs_group_desc_csum_verify(fs, i)) {
            damage(c, "a group descriptor", "has a wrong checksum");
            return;
        }
        blocks += ext2fs_bg_free_blocks_count(fs, i);
        inodes += ext2fs_bg_free_inodes_count(fs, i);
    }
    if (blocks != ext2fs_free_blocks_count(fs->super))
        damage(c, "the count of free blocks", "differs between super block and groups");
    if (inodes != fs->super->s_free_inodes_count)
        damage(c, "the count of free inodes", "differs between super block and groups");
}

int ext4_check(struct ext4 *fs, ext4_damage_fn *fn, void *data) {
    struct check c = {.fs = fs, .fn = fn, .data = data};
    check_groups(&c);
    errcode_t code = c.damages ? EXT2_ET_CORRUPT_SUPERBLOCK : ext2fs_read_bitmaps(fs->fs);
    if (code) {
        if (!c.damages)
            damage(&c, "a bitmap of blocks or inodes", error_message(code));
        return 0;
    }
    c.inode_seen = calloc(1, fs->fs->super->s_inodes_count / 8 + 1);
    c.block_seen = calloc(1, ext2fs_blocks_count(fs->fs->super) / 8 + 1);
    if (!c.inode_seen || !c.block_seen)
        c.error = -ENOMEM;
    else
        walk_tree(&c);
    if (c.error == 0 && c.damages == 0)
        look_for_lost(&c);
    if (c.error == -E2BIG)
        damage(&c, "the tree", "is larger than its file can hold: it has a loop");
    for (uint32_t i = 0; i < c.folder_count; i++)
        free(c.folders[i].name);
    free(c.folders);
    free(c.inode_seen);
    free(c.block_seen);
    return c.error == -E2BIG ? 0 : c.error;
}

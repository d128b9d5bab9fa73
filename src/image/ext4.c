#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "image/ext4_private.h"

#define LINKS_MAX 40 /* as the kernel: path_resolution(7) */
#define DEPTH_MAX 255
#define NAMES_MAX 65536U
#define READS_MIN 100000U
#define READS_A_BLOCK 8U

/* ---------------------------------------------------------------- the reader with a budget */

struct reader {
    int fd;
    uint64_t reads_left;
};

static struct struct_io_manager reader_manager;

static errcode_t reader_close(io_channel channel) {
    if (--channel->refcount > 0)
        return 0;
    struct reader *reader = channel->private_data;
    fd_close(&reader->fd);
    free(reader);
    free(channel->name);
    free(channel);
    return 0;
}

/* name is a path; libext2fs opens read-only unless it is asked otherwise, and nobody asks. */
static errcode_t reader_open(const char *name, int flags, io_channel *ret) {
    struct stat st;
    _cleanup_close_ int fd = open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0)
        return errno;
    io_channel channel = calloc(1, sizeof *channel);
    struct reader *reader = calloc(1, sizeof *reader);
    char *copy = strdup(name);
    if (!channel || !reader || !copy) {
        free(channel);
        free(reader);
        free(copy);
        return ENOMEM;
    }
    *reader = (struct reader){fd_steal(&fd), READS_MIN + READS_A_BLOCK * ((uint64_t)st.st_size / 4096)};
    *channel = (struct struct_io_channel){.magic = EXT2_ET_MAGIC_IO_CHANNEL,
                                          .manager = &reader_manager,
                                          .name = copy,
                                          .block_size = 1024,
                                          .refcount = 1,
                                          .private_data = reader};
    *ret = channel;
    return 0;
}

static errcode_t reader_set_blksize(io_channel channel, int size) {
    channel->block_size = size;
    return 0;
}

/* count: blocks, or bytes where it is negative. */
static errcode_t reader_read64(io_channel channel, unsigned long long block, int count, void *data) {
    struct reader *reader = channel->private_data;
    size_t len = count < 0 ? (size_t) - (int64_t)count : (size_t)count * (size_t)channel->block_size;
    unsigned long long offset;
    if (reader->reads_left == 0)
        return E2BIG;
    reader->reads_left--;
    if (__builtin_mul_overflow(block, (unsigned long long)channel->block_size, &offset) || offset > EXT4_FILE_MAX)
        return EXT2_ET_SHORT_READ;
    for (size_t done = 0; done < len;) {
        ssize_t n = pread(reader->fd, (char *)data + done, len - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            memset((char *)data + done, 0, len - done);
            return n < 0 ? errno : EXT2_ET_SHORT_READ;
        }
        done += (size_t)n;
    }
    return 0;
}

static errcode_t reader_read(io_channel channel, unsigned long block, int count, void *data) {
    return reader_read64(channel, block, count, data);
}

static errcode_t reader_write64(io_channel channel, unsigned long long block, int count, const void *data) {
    return EXT2_ET_RO_FILSYS;
}

static errcode_t reader_write(io_channel channel, unsigned long block, int count, const void *data) {
    return EXT2_ET_RO_FILSYS;
}

static errcode_t reader_flush(io_channel channel) {
    return 0;
}

static struct struct_io_manager reader_manager = {
    .magic = EXT2_ET_MAGIC_IO_MANAGER,
    .name = "image reader",
    .open = reader_open,
    .close = reader_close,
    .set_blksize = reader_set_blksize,
    .read_blk = reader_read,
    .read_blk64 = reader_read64,
    .write_blk = reader_write,
    .write_blk64 = reader_write64,
    .flush = reader_flush,
};

/* ---------------------------------------------------------------- open */

int ext4_errno(errcode_t code) {
    if (code == 0)
        return 0;
    if (code > 0 && code < 256)
        return -(int)code;
    if (code == EXT2_ET_FILE_NOT_FOUND)
        return -ENOENT;
    if (code == EXT2_ET_NO_DIRECTORY)
        return -ENOTDIR;
    return code == EXT2_ET_NO_MEMORY ? -ENOMEM : -EUCLEAN;
}

/* The sizes that libext2fs allocates by: none may be more than the file can hold. */
static const char *wrong_geometry(const struct ext2_super_block *s, uint64_t file_bytes, bool *ret_cut) {
    uint32_t log = le32toh(s->s_log_block_size), per_group = le32toh(s->s_blocks_per_group);
    uint32_t inodes = le32toh(s->s_inodes_count), inodes_per_group = le32toh(s->s_inodes_per_group);
    uint32_t inode_size = le32toh(s->s_rev_level) == 0 ? 128 : le16toh(s->s_inode_size);
    bool wide = le32toh(s->s_feature_incompat) & EXT4_FEATURE_INCOMPAT_64BIT;
    if (log > 6)
        return "its block size is none that ext4 has";
    uint64_t block = (uint64_t)1024 << log;
    uint64_t blocks = le32toh(s->s_blocks_count) | (wide ? (uint64_t)le32toh(s->s_blocks_count_hi) << 32 : 0);
    if (le32toh(s->s_log_cluster_size) != log)
        return "it has clusters (bigalloc), which this program does not read";
    if (blocks == 0 || inodes == 0 || per_group < 8 || per_group > block * 8 || inodes_per_group == 0 ||
        inodes_per_group > block * 8)
        return "its counts of blocks, inodes or groups cannot be";
    if (inode_size < 128 || inode_size > block || (inode_size & (inode_size - 1)))
        return "its inode size is none that ext4 has";
    if (wide && (le16toh(s->s_desc_size) < 64 || le16toh(s->s_desc_size) > 1024))
        return "its group descriptors have a size that ext4 does not have";
    *ret_cut = true;
    if (blocks > file_bytes / block || (uint64_t)inodes * inode_size > file_bytes)
        return "the file is shorter than the file system in it";
    *ret_cut = false;
    if ((blocks + per_group - 1) / per_group * inodes_per_group > UINT32_MAX)
        return "its counts of groups and inodes do not go together";
    return NULL;
}

static int check_super(const char *path, struct err *err) {
    struct ext2_super_block super;
    struct stat st;
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_sys(err, errno, "fs.unreadable", "open %s", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, EINVAL, "fs.unreadable", "%s is not a regular file", path);
    if ((uint64_t)st.st_size > EXT4_FILE_MAX)
        return err_set(err, EFBIG, "fs.corrupt", "%s is larger than 64 GiB: no image of ours is", path);
    if (pread(fd, &super, sizeof super, SUPERBLOCK_OFFSET) != (ssize_t)sizeof super ||
        le16toh(super.s_magic) != EXT2_SUPER_MAGIC)
        return err_set(err, EUCLEAN, "fs.not-ext4", "%s is not an ext4 file system", path);
    bool cut = false;
    const char *wrong = wrong_geometry(&super, (uint64_t)st.st_size, &cut);
    return wrong ? err_set(err, EUCLEAN, cut ? "fs.cut" : "fs.corrupt", "%s: %s", path, wrong) : 0;
}

int ext4_open(const char *path, struct ext4 **ret, struct err *err) {
    int r = check_super(path, err);
    if (r < 0)
        return r;
    struct ext4 *fs = calloc(1, sizeof *fs);
    if (!fs)
        return err_sys(err, ENOMEM, "fs.unreadable", "open %s", path);
    errcode_t code = ext2fs_open2(path, NULL, EXT2_FLAG_64BITS, 0, 0, &reader_manager, &fs->fs);
    if (code) {
        free(fs);
        return err_set(err, EUCLEAN, "fs.corrupt", "%s: %s", path, error_message(code));
    }
    *ret = fs;
    return 0;
}

void ext4_free(struct ext4 *fs) {
    if (!fs)
        return;
    ext2fs_free(fs->fs);
    free(fs);
}

void ext4_cleanup(struct ext4 **fs) {
    ext4_free(*fs);
}

/* ---------------------------------------------------------------- paths */

int ext4_node(struct ext4 *fs, uint32_t ino, struct ext4_node *ret) {
    struct ext2_inode inode;
    int r = ext4_errno(ext2fs_read_inode(fs->fs, ino, &inode));
    if (r < 0)
        return r == -ENOENT ? -EUCLEAN : r;
    *ret = (struct ext4_node){ino, inode.i_mode, inode_uid(inode), inode_gid(inode), EXT2_I_SIZE(&inode)};
    return 0;
}

/* Where a walk stands: the inodes from the root on, and their names. */
struct walk {
    uint32_t ino[DEPTH_MAX + 1];
    uint16_t end[DEPTH_MAX + 1]; /* length of path at that depth */
    unsigned depth, links;
    char path[EXT4_PATH_MAX];
    char rest[2 * EXT4_PATH_MAX]; /* what is still to go */
};

static int walk_down(struct walk *w, uint32_t ino, const char *name, size_t len) {
    size_t at = w->end[w->depth];
    if (w->depth == DEPTH_MAX || at + len + 2 > sizeof w->path)
        return -ENAMETOOLONG;
    w->path[at] = '/';
    memcpy(w->path + at + 1, name, len);
    w->path[at + 1 + len] = '\0';
    w->depth++;
    w->end[w->depth] = (uint16_t)(at + 1 + len);
    w->ino[w->depth] = ino;
    return 0;
}

static void walk_up(struct walk *w) {
    if (w->depth > 0)
        w->depth--;
    w->path[w->end[w->depth]] = '\0';
}

/* Puts the target in front of what is still to go. */
static int walk_link(struct ext4 *fs, struct walk *w, const struct ext4_node *node, const char *rest) {
    char target[EXT4_PATH_MAX], next[sizeof w->rest];
    if (++w->links > LINKS_MAX)
        return -ELOOP;
    int r = ext4_link(fs, node, target, sizeof target);
    if (r < 0)
        return r;
    if (snprintf(next, sizeof next, "%s/%s", target, rest) >= (int)sizeof next)
        return -ENAMETOOLONG;
    memcpy(w->rest, next, sizeof next);
    if (*target == '/') {
        w->depth = 0;
        w->path[0] = '\0';
    }
    return 0;
}

/* One component. *at: where in rest to go on. */
static int walk_step(struct ext4 *fs, struct walk *w, size_t *at, bool follow) {
    const char *name = w->rest + *at;
    size_t len = strcspn(name, "/");
    const char *rest = name + len + strspn(name + len, "/");
    struct ext4_node here, node;
    uint32_t ino;
    int r = ext4_node(fs, w->ino[w->depth], &here);
    if (r < 0)
        return r;
    if (!S_ISDIR(here.mode))
        return -ENOTDIR;
    *at = (size_t)(rest - w->rest);
    if (len == 1 && *name == '.')
        return 0;
    if (len == 2 && memcmp(name, "..", 2) == 0) {
        walk_up(w);
        return 0;
    }
    if (len > 255)
        return -ENAMETOOLONG;
    r = ext4_errno(ext2fs_lookup(fs->fs, here.ino, name, (int)len, NULL, &ino));
    if (r == 0)
        r = ext4_node(fs, ino, &node);
    if (r != 0)
        return r;
    if (!S_ISLNK(node.mode) || (!*rest && !follow))
        return walk_down(w, ino, name, len);
    *at = 0;
    return walk_link(fs, w, &node, rest);
}

int ext4_find(struct ext4 *fs, const char *path, bool follow, struct ext4_node *ret, char *ret_path) {
    struct walk w = {.ino = {EXT2_ROOT_INO}};
    if (!str_copy(w.rest, EXT4_PATH_MAX, path))
        return -ENAMETOOLONG;
    for (size_t at = strspn(w.rest, "/"); w.rest[at];) {
        int r = walk_step(fs, &w, &at, follow);
        if (r < 0)
            return r;
        at += strspn(w.rest + at, "/");
    }
    struct ext4_node node;
    int r = ext4_node(fs, w.ino[w.depth], &node);
    if (r < 0)
        return r;
    *ret = node;
    if (ret_path)
        memcpy(ret_path, w.path, sizeof w.path);
    return 0;
}

/* ---------------------------------------------------------------- contents */

static int64_t read_inode_data(struct ext4 *fs, uint32_t ino, uint64_t offset, void *ret_data, size_t len) {
    ext2_file_t file;
    unsigned int got = 0;
    errcode_t code = ext2fs_file_open(fs->fs, ino, 0, &file);
    if (code)
        return ext4_errno(code);
    code = ext2fs_file_llseek(file, offset, EXT2_SEEK_SET, NULL);
    if (!code)
        code = ext2fs_file_read(file, ret_data, (unsigned int)len, &got);
    ext2fs_file_close(file);
    return code ? ext4_errno(code) : (int64_t)got;
}

int64_t ext4_read(struct ext4 *fs, const struct ext4_node *node, uint64_t offset, void *ret_data, size_t len) {
    if (!S_ISREG(node->mode))
        return -EISDIR;
    if (offset >= node->size || len == 0)
        return 0;
    return read_inode_data(fs, node->ino, offset, ret_data, len > INT32_MAX ? INT32_MAX : len);
}

int ext4_link(struct ext4 *fs, const struct ext4_node *node, char *ret_target, size_t size) {
    struct ext2_inode inode;
    if (!S_ISLNK(node->mode))
        return -EINVAL;
    int r = ext4_errno(ext2fs_read_inode(fs->fs, node->ino, &inode));
    if (r < 0)
        return r;
    if (node->size == 0 || node->size >= size)
        return node->size ? -ENAMETOOLONG : -EUCLEAN;
    if (ext2fs_is_fast_symlink(&inode)) {
        if (node->size >= sizeof inode.i_block)
            return -EUCLEAN;
        memcpy(ret_target, inode.i_block, node->size);
    } else if (read_inode_data(fs, node->ino, 0, ret_target, node->size) != (int64_t)node->size) {
        return -EUCLEAN;
    }
    ret_target[node->size] = '\0';
    return strlen(ret_target) == node->size ? 0 : -EUCLEAN;
}

int ext4_read_file(struct ext4 *fs, const char *path, size_t max, char **ret_data, size_t *ret_len) {
    struct ext4_node node;
    int r = ext4_find(fs, path, true, &node, NULL);
    if (r < 0)
        return r;
    if (!S_ISREG(node.mode))
        return -EISDIR;
    if (node.size > max)
        return -EFBIG;
    _cleanup_free_ char *data = malloc((size_t)node.size + 1);
    if (!data)
        return -ENOMEM;
    int64_t got = ext4_read(fs, &node, 0, data, (size_t)node.size);
    if (got < 0)
        return (int)got;
    data[got] = '\0';
    *ret_data = ptr_steal(data);
    *ret_len = (size_t)got;
    return 0;
}

struct names {
    char **name;
    uint32_t count, cap;
    int error;
};

static int take_name(ext2_ino_t dir, int entry, struct ext2_dir_entry *dirent, int offset, int blocksize, char *buf,
                     void *data) {
    struct names *names = data;
    size_t len = (size_t)ext2fs_dirent_name_len(dirent);
    if (len == 0 || memchr(dirent->name, '\0', len) || memchr(dirent->name, '/', len) ||
        (dirent->name[0] == '.' && (len == 1 || (len == 2 && dirent->name[1] == '.'))))
        return 0;
    if (names->count == names->cap) {
        uint32_t cap = names->cap ? names->cap * 2 : 64;
        char **grown = cap <= NAMES_MAX ? reallocarray(names->name, cap, sizeof *grown) : NULL;
        if (!grown) {
            names->error = cap <= NAMES_MAX ? -ENOMEM : -E2BIG;
            return DIRENT_ABORT;
        }
        names->name = grown;
        names->cap = cap;
    }
    char *copy = strndup(dirent->name, len);
    if (!copy) {
        names->error = -ENOMEM;
        return DIRENT_ABORT;
    }
    names->name[names->count++] = copy;
    return 0;
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

int ext4_list(struct ext4 *fs, const char *path, ext4_name_fn *fn, void *data) {
    struct ext4_node node;
    struct names names = {0};
    int r = ext4_find(fs, path, true, &node, NULL);
    if (r < 0)
        return r;
    if (!S_ISDIR(node.mode))
        return -ENOTDIR;
    r = ext4_errno(ext2fs_dir_iterate2(fs->fs, node.ino, 0, NULL, take_name, &names));
    r = names.error ? names.error : r;
    if (names.count)
        qsort(names.name, names.count, sizeof *names.name, by_name);
    for (uint32_t i = 0; r == 0 && i < names.count; i++)
        if (!fn(names.name[i], data))
            break;
    for (uint32_t i = 0; i < names.count; i++)
        free(names.name[i]);
    free(names.name);
    return r;
}

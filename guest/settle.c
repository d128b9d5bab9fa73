/* guest-settle FILE SECONDS: gives every inode of an ext4 file system the times of one moment, where they are later.
 *
 * mke2fs -d takes a file's change time (ctime) from the folder that it copies, and nobody can set that one: it is the
 * only thing that would make two builds of the same content differ. atime and crtime go with it; nanoseconds go. */
#include <errno.h>
#include <ext2fs/ext2fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void settle(struct ext2_inode_large *inode, uint32_t when) {
    if (inode->i_mtime > when)
        inode->i_mtime = when;
    inode->i_atime = inode->i_ctime = inode->i_mtime;
    /* What lies behind the first 128 bytes is there only as far as i_extra_isize says. */
    size_t size = EXT2_GOOD_OLD_INODE_SIZE + inode->i_extra_isize;
    if (size >= offsetof(struct ext2_inode_large, i_crtime_extra) + sizeof inode->i_crtime_extra) {
        inode->i_ctime_extra = inode->i_mtime_extra = inode->i_atime_extra = inode->i_crtime_extra = 0;
        inode->i_crtime = when;
    }
}

static errcode_t settle_all(ext2_filsys fs, uint32_t when) {
    ext2_inode_scan scan;
    ext2_ino_t ino;
    struct ext2_inode_large inode;
    errcode_t code = ext2fs_read_inode_bitmap(fs);
    if (!code)
        code = ext2fs_open_inode_scan(fs, 0, &scan);
    if (code)
        return code;
    while (!(code = ext2fs_get_next_inode_full(scan, &ino, (struct ext2_inode *)&inode, sizeof inode)) && ino) {
        if (!ext2fs_test_inode_bitmap2(fs->inode_map, ino) || inode.i_mode == 0)
            continue;
        settle(&inode, when);
        code = ext2fs_write_inode_full(fs, ino, (struct ext2_inode *)&inode, sizeof inode);
        if (code)
            break;
    }
    ext2fs_close_inode_scan(scan);
    return code;
}

int main(int argc, char **argv) {
    ext2_filsys fs;
    char *end;
    unsigned long long when = argc == 3 ? strtoull(argv[2], &end, 10) : 0;
    if (argc != 3 || *end || when == 0 || when > INT32_MAX) {
        fprintf(stderr, "usage: guest-settle FILE SECONDS\n");
        return 2;
    }
    initialize_ext2_error_table();
    errcode_t code = ext2fs_open(argv[1], EXT2_FLAG_RW | EXT2_FLAG_64BITS, 0, 0, unix_io_manager, &fs);
    if (!code) {
        fs->now = (time_t)when; /* what it writes into the super block as the time of the last write */
        code = settle_all(fs, (uint32_t)when);
        errcode_t closed = ext2fs_close_free(&fs);
        code = code ? code : closed;
    }
    if (code)
        fprintf(stderr, "guest-settle: %s: %s\n", argv[1], error_message(code));
    return code ? 1 : 0;
}

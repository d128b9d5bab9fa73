/* What the files of ext4.h share. */
#pragma once

#include <ext2fs/ext2fs.h>

#include "image/ext4.h"

struct ext4 {
    ext2_filsys fs;
};

/* libext2fs's error as -errno: system errors stay, what is not there is -ENOENT, all else is damage. */
int ext4_errno(errcode_t code);

/* Return: 0 or an error of all calls. */
int ext4_node(struct ext4 *fs, uint32_t ino, struct ext4_node *ret);

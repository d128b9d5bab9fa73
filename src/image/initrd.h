/* A look into an initramfs: a cpio archive (newc), plain or packed with zstd. Anybody's bytes: bounded at 128 MiB. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct initrd {
    char *data; /* the archive, unpacked */
    size_t len;
};

/* Return: 0, -EBADMSG (damaged), -EFBIG, -EOPNOTSUPP (packed otherwise), -ENOENT, -ENOMEM or another -errno. */
int initrd_open(const char *path, struct initrd *ret);
/* The same from memory. */
int initrd_parse(const void *data, size_t len, struct initrd *ret);
void initrd_close(struct initrd *initrd);

/* A file of the archive; name without a leading slash. Return: false when it is not there. ret_mode as in stat(2). */
bool initrd_find(const struct initrd *initrd, const char *name, const char **ret_data, size_t *ret_len,
                 unsigned *ret_mode);

/* Whether the archive can be read to its end. */
bool initrd_is_whole(const struct initrd *initrd);

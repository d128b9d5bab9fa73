/* File descriptors and whole files: cleanup attributes, complete reads and writes, atomic replacement.
 * Every descriptor made here is close-on-exec. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>

void fd_close(int *fd);     /* closes *fd if it is >= 0, keeps errno, sets -1 */
void cleanup_free(void *p); /* frees *(void **)p */
void cleanup_fclose(FILE **f);

#define _cleanup_close_ __attribute__((cleanup(fd_close)))
#define _cleanup_free_ __attribute__((cleanup(cleanup_free)))
#define _cleanup_fclose_ __attribute__((cleanup(cleanup_fclose)))

/* Takes the descriptor out of *fd: the caller owns it, *fd becomes -1. */
int fd_steal(int *fd);

/* Takes the pointer out of a variable with a cleanup attribute. */
#define ptr_steal(p)                                                                                                   \
    ({                                                                                                                 \
        __auto_type stolen_ = (p);                                                                                     \
        (p) = NULL;                                                                                                    \
        stolen_;                                                                                                       \
    })

/* Writes all of data, restarting after EINTR and short writes. Return: 0 or -errno. */
int fd_write_all(int fd, const void *data, size_t len);

/* Connects to the unix socket `name`, one component, in a folder, without waiting and without following a symbolic link;
 * a path may be longer than the 107 bytes of a socket's address so. Who listens there must be that process of that uid;
 * with a pid of 0 it is the socket's file that must be that uid's, because one that was handed to another process may be
 * listened on by that: else -EPERM, and nothing was said to it. Return: 0 with a non-blocking descriptor, or -errno.
 * Source: unix(7), SO_PEERCRED: of a stream socket, who called listen(2) last; QEMU calls it on what it is given. */
int fd_connect_unix(int folder_fd, const char *name, uint32_t uid, pid_t pid, int *ret_fd);

/* Reads a regular file of at most max bytes into a new NUL-terminated buffer (the caller frees). The last
 * component may not be a symbolic link.
 * Return: 0, -EFBIG when it is longer than max, -ELOOP for a symbolic link, or another -errno. */
int file_read(const char *path, size_t max, char **ret_data, size_t *ret_len);

/* Reads the last max bytes of a file that may be growing. As file_read() otherwise. */
int file_read_tail(const char *path, size_t max, char **ret_data, size_t *ret_len);

/* Replaces a file in one step: writes path.tmp, syncs it, renames it. Return: 0 or -errno; on failure the old file
 * is as it was and the temporary one is gone. */
int file_write_atomic(const char *path, const void *data, size_t len, mode_t mode);

/* Writes a file that is not there yet, without waiting for the disk: for what a crash may take back. Return: 0 or
 * -errno (-EEXIST). */
int file_write_new(const char *path, const void *data, size_t len, mode_t mode);

/* Writes a short value to an existing file such as a sysctl. Return: 0 or -errno. */
int file_write_value(const char *path, const char *value);

/* mkdir -p for the last component and its parents; existing folders keep their mode. Return: 0 or -errno. */
int dir_make(const char *path, mode_t mode);

/* Removes a tree without following symbolic links or crossing into another file system. A path that does not
 * exist is no error. Return: 0 or the first -errno met (the rest was still tried). */
int dir_remove(const char *path);

/* Who listens on a TCP port, for a person who finds it taken. */
#pragma once

#include <stdint.h>
#include <sys/types.h>

struct port_owner {
    pid_t pid;
    char name[16]; /* comm, proc(5); control bytes shown as '?' */
};

/* Looks in this thread's network namespace and at the processes that this one may see.
 * Return: 0; -ENOENT: nobody found (another user's process, or one in another PID namespace); another -errno.
 * Source: /proc/net/tcp and /proc/PID/fd, proc(5). */
int port_owner_find(uint16_t port, struct port_owner *ret_owner);

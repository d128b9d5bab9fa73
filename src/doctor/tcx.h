/* BPF programs on a device's tcx hooks, which tc(8) neither lists nor takes off: they are bpf(2)'s alone. All of it is
 * about the calling thread's network namespace.
 *
 * A program hangs there by itself, or by a link: an object that its owner holds, and that can be detached by its id.
 * Source: include/uapi/linux/bpf.h and kernel/bpf/tcx.c of 6.18; older kernels than 6.6 have no tcx (-EINVAL). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define TCX_PROGS_MAX 64

struct tcx_prog {
    uint32_t prog, link; /* ids; link 0: none */
};

/* In the order in which they see a frame. Return: 0 or -errno. */
int tcx_list(int32_t ifindex, bool egress, struct tcx_prog ret[TCX_PROGS_MAX], uint32_t *ret_count);

/* Takes one off. prog_fd: of the program, where it hangs there by itself. Return: 0 or -errno. */
int tcx_detach(int32_t ifindex, bool egress, struct tcx_prog prog, int prog_fd);

/* Puts one there, before another program (its id; 0: at the end). Return: 0 or -errno. */
int tcx_attach(int32_t ifindex, bool egress, int prog_fd, uint32_t before);

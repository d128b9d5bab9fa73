#include "doctor/tcx.h"

#include <errno.h>
#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"

/* Newer than Debian 12's headers. */
#define ATTACH_INGRESS 46 /* enum bpf_attach_type */
#define ATTACH_EGRESS 47
#define FLAG_BEFORE (1U << 3) /* BPF_F_BEFORE, BPF_F_ID */
#define FLAG_ID (1U << 5)

struct query {
    uint32_t ifindex, type, query_flags, attach_flags;
    uint64_t prog_ids;
    uint32_t count, unused;
    uint64_t prog_flags, link_ids, link_flags, revision;
};

struct attach {
    uint32_t ifindex, prog_fd, type, flags, replaced_fd, relative_id;
    uint64_t revision;
};

static int bpf(enum bpf_cmd command, void *attr, size_t size) {
    long r = syscall(SYS_bpf, command, attr, size);
    return r < 0 ? -errno : (int)r;
}

static uint32_t type_of(bool egress) {
    return egress ? ATTACH_EGRESS : ATTACH_INGRESS;
}

int tcx_list(int32_t ifindex, bool egress, struct tcx_prog ret[TCX_PROGS_MAX], uint32_t *ret_count) {
    uint32_t progs[TCX_PROGS_MAX] = {0}, links[TCX_PROGS_MAX] = {0};
    struct query query = {.ifindex = (uint32_t)ifindex,
                          .type = type_of(egress),
                          .prog_ids = (uintptr_t)progs,
                          .count = TCX_PROGS_MAX,
                          .link_ids = (uintptr_t)links};
    int r = bpf(BPF_PROG_QUERY, &query, sizeof query);
    if (r < 0)
        return r;
    uint32_t count = query.count < TCX_PROGS_MAX ? query.count : TCX_PROGS_MAX;
    for (uint32_t i = 0; i < count; i++)
        ret[i] = (struct tcx_prog){progs[i], links[i]};
    *ret_count = count;
    return 0;
}

static int detach_link(uint32_t id) {
    union bpf_attr attr = {.link_id = id};
    _cleanup_close_ int fd = bpf(BPF_LINK_GET_FD_BY_ID, &attr, sizeof attr); /* close-on-exec by itself */
    if (fd < 0)
        return fd;
    attr = (union bpf_attr){.link_detach = {.link_fd = (uint32_t)fd}};
    return bpf(BPF_LINK_DETACH, &attr, sizeof attr);
}

int tcx_detach(int32_t ifindex, bool egress, struct tcx_prog prog, int prog_fd) {
    struct attach attach = {.ifindex = (uint32_t)ifindex, .prog_fd = (uint32_t)prog_fd, .type = type_of(egress)};
    return prog.link ? detach_link(prog.link) : bpf(BPF_PROG_DETACH, &attach, sizeof attach);
}

int tcx_attach(int32_t ifindex, bool egress, int prog_fd, uint32_t before) {
    struct attach attach = {.ifindex = (uint32_t)ifindex,
                            .prog_fd = (uint32_t)prog_fd,
                            .type = type_of(egress),
                            .flags = before ? FLAG_BEFORE | FLAG_ID : 0,
                            .relative_id = before};
    return bpf(BPF_PROG_ATTACH, &attach, sizeof attach);
}

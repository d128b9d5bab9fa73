/* Which BPF programs are attached, by name; tcx programs, which tc does not list.
 * Source: bpf(2), include/uapi/linux/bpf.h of 6.18 (BPF_PROG_QUERY). */
#include <errno.h>
#include <linux/bpf.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "doctor/collect/collect.h"
#include "doctor/tcx.h"
#include "netlink/netns.h"

#define LINKS_MAX 16384 /* of the whole machine */

static int bpf(enum bpf_cmd command, union bpf_attr *attr) {
    return syscall(__NR_bpf, command, attr, sizeof *attr) < 0 ? -errno : 0;
}

static int prog_open(uint32_t id, int *ret_fd) {
    union bpf_attr attr = {0};
    attr.prog_id = id;
    long fd = syscall(__NR_bpf, BPF_PROG_GET_FD_BY_ID, &attr, sizeof attr);
    if (fd < 0)
        return -errno;
    *ret_fd = (int)fd;
    return 0;
}

static void describe(struct snapshot *s, uint32_t id) {
    struct bpf_prog_info info = {0};
    union bpf_attr attr = {0};
    _cleanup_close_ int fd = -1;
    if (id == 0 || snap_prog_get(s, id))
        return;
    struct snap_prog *prog = SNAP_PUSH(s, progs, 4096);
    if (!prog)
        return;
    prog->id = id;
    int r = prog_open(id, &fd);
    if (r == 0) {
        attr.info.bpf_fd = (uint32_t)fd;
        attr.info.info_len = sizeof info;
        attr.info.info = (uint64_t)(uintptr_t)&info;
        r = bpf(BPF_OBJ_GET_INFO_BY_FD, &attr);
    }
    if (r < 0) {
        snapshot_gap(s, "bpf", r, "BPF program %u could not be looked into", id);
        return;
    }
    prog->type = info.type;
    str_copy(prog->name, sizeof prog->name, info.name);
    str_hex(info.tag, sizeof info.tag, prog->tag);
}

static void list_tcx(struct snapshot *s, const struct snap_link *link, bool egress) {
    struct tcx_prog progs[TCX_PROGS_MAX];
    uint32_t count = 0;
    if (tcx_list(link->index, egress, progs, &count) < 0)
        return;
    for (uint32_t i = 0; i < count; i++) {
        struct snap_filter *filter = SNAP_PUSH(s, filters, SNAP_ROWS_MAX);
        if (!filter)
            return;
        filter->link = link->index;
        filter->egress = egress;
        filter->is_tcx = true;
        filter->direct_action = true;
        filter->conditional = true;
        filter->protocol = 3;
        filter->action = -3;
        filter->prog_id = progs[i].prog;
        filter->link_id = progs[i].link;
        str_copy(filter->kind, sizeof filter->kind, "tcx");
    }
}

/* Newer than Debian 12's headers. Source: Linux 6.4, include/uapi/linux/bpf.h (struct bpf_link_info). */
#define LINK_TYPE_NETFILTER 10
struct link_info {
    uint32_t type, id, prog_id, pad;
    struct {
        uint32_t pf, hook;
        int32_t priority;
        uint32_t flags;
    } netfilter;
    uint8_t rest[64]; /* what other types tell */
};

static int link_describe(uint32_t id, struct link_info *ret) {
    union bpf_attr attr = {0};
    attr.link_id = id;
    long r = syscall(__NR_bpf, BPF_LINK_GET_FD_BY_ID, &attr, sizeof attr);
    if (r < 0)
        return -errno;
    _cleanup_close_ int fd = (int)r;
    memset(&attr, 0, sizeof attr);
    attr.info.bpf_fd = (uint32_t)fd;
    attr.info.info_len = sizeof *ret;
    attr.info.info = (uint64_t)(uintptr_t)ret;
    return bpf(BPF_OBJ_GET_INFO_BY_FD, &attr);
}

/* bpftool link: programs in netfilter. The kernel does not tell in whose network namespace one hangs. */
static void list_netfilter(struct snapshot *s) {
    union bpf_attr attr = {0};
    for (uint32_t i = 0, id = 0; i < LINKS_MAX; i++) {
        struct link_info info = {0};
        memset(&attr, 0, sizeof attr);
        attr.start_id = id;
        if (bpf(BPF_LINK_GET_NEXT_ID, &attr) < 0)
            return;
        id = attr.next_id;
        if (link_describe(id, &info) < 0 || info.type != LINK_TYPE_NETFILTER)
            continue;
        struct snap_hook *hook = SNAP_PUSH(s, hooks, SNAP_ROWS_MAX);
        if (!hook)
            return;
        hook->family = (uint8_t)info.netfilter.pf;
        hook->hook = (uint8_t)info.netfilter.hook;
        hook->priority = info.netfilter.priority;
        hook->prog_id = info.prog_id;
        hook->link_id = id;
    }
}

void collect_progs(struct snapshot *s, int nsfd) {
    _cleanup_netns_leave_ struct netns_scope scope = NETNS_SCOPE_NONE;
    if (netns_enter(nsfd, &scope) < 0)
        return;
    for (uint32_t i = 0; i < s->links_count; i++) {
        list_tcx(s, &s->links[i], false);
        list_tcx(s, &s->links[i], true);
    }
    list_netfilter(s);
    for (uint32_t i = 0; i < s->links_count; i++)
        describe(s, s->links[i].xdp_prog);
    for (uint32_t i = 0; i < s->filters_count; i++)
        describe(s, s->filters[i].prog_id);
    for (uint32_t i = 0; i < s->hooks_count; i++)
        describe(s, s->hooks[i].prog_id);
}

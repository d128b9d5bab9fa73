/* Puts a BPF program that returns one number on a device, as an agent of somebody else would, without a compiler.
 *
 * usage, in the device's namespace: bpf_attach NAME RETURN DEVICE xdp|xdp-native|tcx-ingress|tcx-egress|tcx-link-ingress|
 *   tcx-link-egress|cls-ingress|cls-egress|nf-input|nf-forward|nf-output
 *   NAME    as bpftool and netlink show it
 *   RETURN  XDP_DROP is 1, XDP_PASS 2; TC_ACT_OK is 0, TC_ACT_SHOT 2, TC_ACT_STOLEN 4; NF_DROP is 0, NF_ACCEPT 1
 * cls-… wants the qdisc clsact. nf-… is netfilter's hook for all of the namespace's IPv4, whatever DEVICE says. All stay until they
 * are taken off or the device goes, but tcx-link-… and nf-…: those stay with this process, which ends with its standard
 * input. Prints the program's id.
 *
 * Source: bpf(2), include/uapi/linux/bpf.h, if_link.h (IFLA_XDP), pkt_cls.h (TCA_BPF). */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <linux/netfilter.h>
#include <linux/netlink.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Newer than Debian 12's headers. Source: Linux 6.6, include/uapi/linux/bpf.h. */
enum { ATTACH_TCX_INGRESS = 46, ATTACH_TCX_EGRESS = 47, ATTACH_NETFILTER = 45, TYPE_NETFILTER = 32 };

static long bpf(int command, union bpf_attr *attr) {
    return syscall(SYS_bpf, command, attr, sizeof *attr);
}

static int program_load(const char *name, int type, int result, uint32_t *ret_id) {
    struct bpf_insn code[] = {
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = result},
        {.code = BPF_JMP | BPF_EXIT},
    };
    union bpf_attr attr = {.prog_type = (uint32_t)type,
                           .expected_attach_type = type == TYPE_NETFILTER ? ATTACH_NETFILTER : 0,
                           .insn_cnt = 2,
                           .insns = (uintptr_t)code,
                           .license = (uintptr_t) "GPL"};
    struct bpf_prog_info info = {0};
    int fd;

    strncpy(attr.prog_name, name, sizeof attr.prog_name - 1);
    fd = (int)bpf(BPF_PROG_LOAD, &attr);
    if (fd < 0)
        return -errno;
    attr = (union bpf_attr){.info = {.bpf_fd = (uint32_t)fd, .info_len = sizeof info, .info = (uintptr_t)&info}};
    if (bpf(BPF_OBJ_GET_INFO_BY_FD, &attr) < 0)
        return -errno;
    *ret_id = info.id;
    return fd;
}

struct message {
    struct nlmsghdr head;
    char body[512];
};

static struct rtattr *attr_put(struct message *m, int type, const void *data, size_t len) {
    struct rtattr *a = (struct rtattr *)((char *)m + NLMSG_ALIGN(m->head.nlmsg_len));

    a->rta_type = (unsigned short)type;
    a->rta_len = (unsigned short)RTA_LENGTH(len);
    if (len)
        memcpy(RTA_DATA(a), data, len);
    m->head.nlmsg_len = NLMSG_ALIGN(m->head.nlmsg_len) + (uint32_t)RTA_ALIGN(a->rta_len);
    return a;
}

static void attr_end(struct message *m, struct rtattr *nest) {
    nest->rta_len = (unsigned short)((char *)m + m->head.nlmsg_len - (char *)nest);
}

static int message_send(struct message *m) {
    struct {
        struct nlmsghdr head;
        struct nlmsgerr err;
        char rest[512];
    } reply;
    int s = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

    m->head.nlmsg_flags |= NLM_F_REQUEST | NLM_F_ACK;
    if (s < 0 || send(s, m, m->head.nlmsg_len, 0) < 0 || recv(s, &reply, sizeof reply, 0) < 0)
        return -errno;
    close(s);
    return reply.err.error;
}

static int xdp_attach(int ifindex, int program, uint32_t flags) {
    struct message m = {.head = {.nlmsg_len = NLMSG_LENGTH(sizeof(struct ifinfomsg)), .nlmsg_type = RTM_SETLINK}};
    struct ifinfomsg info = {.ifi_index = ifindex};
    struct rtattr *nest;

    memcpy(m.body, &info, sizeof info);
    nest = attr_put(&m, IFLA_XDP | NLA_F_NESTED, NULL, 0);
    attr_put(&m, IFLA_XDP_FD, &program, sizeof program);
    attr_put(&m, IFLA_XDP_FLAGS, &flags, sizeof flags);
    attr_end(&m, nest);
    return message_send(&m);
}

static int cls_attach(int ifindex, int program, uint32_t parent, const char *name) {
    struct message m = {.head = {.nlmsg_len = NLMSG_LENGTH(sizeof(struct tcmsg)),
                                 .nlmsg_type = RTM_NEWTFILTER,
                                 .nlmsg_flags = NLM_F_CREATE | NLM_F_EXCL}};
    struct tcmsg tc = {
        .tcm_ifindex = ifindex, .tcm_parent = parent, .tcm_info = TC_H_MAKE(1u << 16, htons(0x0003 /* ETH_P_ALL */))};
    uint32_t flags = TCA_BPF_FLAG_ACT_DIRECT;
    struct rtattr *nest;

    memcpy(m.body, &tc, sizeof tc);
    attr_put(&m, TCA_KIND, "bpf", sizeof "bpf");
    nest = attr_put(&m, TCA_OPTIONS | NLA_F_NESTED, NULL, 0);
    attr_put(&m, TCA_BPF_FD, &program, sizeof program);
    attr_put(&m, TCA_BPF_NAME, name, strlen(name) + 1);
    attr_put(&m, TCA_BPF_FLAGS, &flags, sizeof flags);
    attr_end(&m, nest);
    return message_send(&m);
}

static int tcx_attach(int ifindex, int program, int where) {
    union bpf_attr attr = {
        .target_fd = (uint32_t)ifindex, .attach_bpf_fd = (uint32_t)program, .attach_type = (uint32_t)where};

    return bpf(BPF_PROG_ATTACH, &attr) < 0 ? -errno : 0;
}

static int tcx_link(int ifindex, int program, int where) {
    union bpf_attr attr = {
        .link_create = {.prog_fd = (uint32_t)program, .target_fd = (uint32_t)ifindex, .attach_type = (uint32_t)where}};
    int fd = (int)bpf(BPF_LINK_CREATE, &attr);

    return fd < 0 ? -errno : fd;
}

/* Source: Linux 6.4, include/uapi/linux/bpf.h: link_create.netfilter, {pf, hooknum, priority, flags} behind link_create.flags. */
static int netfilter_link(int program, uint32_t hook) {
    struct {
        uint32_t program, target, type, flags, family, hook;
        int32_t priority;
        uint32_t netfilter_flags;
    } attr = {.program = (uint32_t)program, .type = ATTACH_NETFILTER, .family = AF_INET, .hook = hook, .priority = -7};
    int fd = (int)syscall(SYS_bpf, BPF_LINK_CREATE, &attr, sizeof attr);

    return fd < 0 ? -errno : fd;
}

int main(int argc, char **argv) {
    int ifindex, program, result, r;
    const char *where;
    uint32_t id = 0;

    if (argc != 5)
        return 2;
    result = atoi(argv[2]);
    ifindex = (int)if_nametoindex(argv[3]);
    where = argv[4];
    program = program_load(argv[1],
                           strncmp(where, "xdp", 3) == 0   ? BPF_PROG_TYPE_XDP
                           : strncmp(where, "nf-", 3) == 0 ? TYPE_NETFILTER
                                                           : BPF_PROG_TYPE_SCHED_CLS,
                           result, &id);
    if (program < 0) {
        fprintf(stderr, "bpf_attach: load: %s\n", strerror(-program));
        return 1;
    }
    if (strcmp(where, "xdp") == 0)
        r = xdp_attach(ifindex, program, XDP_FLAGS_SKB_MODE);
    else if (strcmp(where, "xdp-native") == 0)
        r = xdp_attach(ifindex, program, XDP_FLAGS_DRV_MODE);
    else if (strcmp(where, "tcx-ingress") == 0)
        r = tcx_attach(ifindex, program, ATTACH_TCX_INGRESS);
    else if (strcmp(where, "tcx-egress") == 0)
        r = tcx_attach(ifindex, program, ATTACH_TCX_EGRESS);
    else if (strcmp(where, "tcx-link-ingress") == 0)
        r = tcx_link(ifindex, program, ATTACH_TCX_INGRESS);
    else if (strcmp(where, "tcx-link-egress") == 0)
        r = tcx_link(ifindex, program, ATTACH_TCX_EGRESS);
    else if (strcmp(where, "cls-ingress") == 0)
        r = cls_attach(ifindex, program, TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS), argv[1]);
    else if (strcmp(where, "cls-egress") == 0)
        r = cls_attach(ifindex, program, TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS), argv[1]);
    else if (strcmp(where, "nf-input") == 0)
        r = netfilter_link(program, NF_INET_LOCAL_IN);
    else if (strcmp(where, "nf-forward") == 0)
        r = netfilter_link(program, NF_INET_FORWARD);
    else if (strcmp(where, "nf-output") == 0)
        r = netfilter_link(program, NF_INET_LOCAL_OUT);
    else
        r = -EINVAL;
    if (r < 0)
        fprintf(stderr, "bpf_attach: %s: %s\n", where, strerror(-r));
    else
        printf("%u\n", id);
    if (r > 0) { /* a link's descriptor */
        fflush(stdout);
        while (getchar() != EOF)
            ;
    }
    return r < 0;
}

/* Who has hooked into netfilter in the kernel, nftables or not: legacy tables and BPF programs show only here.
 * Source: include/uapi/linux/netfilter/nfnetlink_hook.h (Linux 5.14). */
#include <arpa/inet.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_hook.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "doctor/collect/collect.h"

#ifndef NFNL_SUBSYS_HOOK
#define NFNL_SUBSYS_HOOK 12
#endif
#define HOOKS_MAX 4096

struct hook_chain {
    char table[SNAP_TEXT], name[SNAP_TEXT];
};

static void parse_desc(const struct nlattr *attr, void *data) {
    struct hook_chain *chain = data;
    if (mnl_attr_get_type(attr) == NFNLA_CHAIN_TABLE)
        rtnl_attr_text(attr, chain->table, sizeof chain->table);
    if (mnl_attr_get_type(attr) == NFNLA_CHAIN_NAME)
        rtnl_attr_text(attr, chain->name, sizeof chain->name);
}

static void parse_chain(const struct nlattr *attr, void *data) {
    if (mnl_attr_get_type(attr) == NFNLA_HOOK_INFO_DESC)
        rtnl_each_nested(attr, parse_desc, data);
}

static void parse_attr(const struct nlattr *attr, void *data) {
    struct snap_hook *hook = data;
    struct hook_chain chain = {0};
    switch (mnl_attr_get_type(attr)) {
    case NFNLA_HOOK_HOOKNUM:
        hook->hook = (uint8_t)ntohl(rtnl_attr_u32(attr));
        break;
    case NFNLA_HOOK_PRIORITY:
        hook->priority = (int32_t)ntohl(rtnl_attr_u32(attr));
        break;
    case NFNLA_HOOK_FUNCTION_NAME:
        rtnl_attr_text(attr, hook->function, sizeof hook->function);
        break;
    case NFNLA_HOOK_MODULE_NAME:
        rtnl_attr_text(attr, hook->module, sizeof hook->module);
        break;
    case NFNLA_HOOK_CHAIN_INFO:
        rtnl_each_nested(attr, parse_chain, &chain);
        snprintf(hook->chain, sizeof hook->chain, "%.30s %.30s", chain.table, chain.name);
        break;
    }
}

static int take_hook(const struct nlmsghdr *nlh, void *data) {
    struct snapshot *s = data;
    struct snap_hook *hook = SNAP_PUSH(s, hooks, HOOKS_MAX);
    if (!hook)
        return 0;
    const struct nfgenmsg *nfg = rtnl_each_msg_attr(nlh, sizeof *nfg, parse_attr, hook);
    if (nfg)
        hook->family = nfg->nfgen_family;
    else
        s->hooks_count--;
    return 0;
}

static int dump_hook(struct snapshot *s, int nsfd, uint8_t family, uint32_t hook, const char *device) {
    char buffer[512];
    struct nlmsghdr *nlh = mnl_nlmsg_put_header(buffer);
    nlh->nlmsg_type = NFNL_SUBSYS_HOOK << 8 | NFNL_MSG_HOOK_GET;
    nlh->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    struct nfgenmsg *nfg = mnl_nlmsg_put_extra_header(nlh, sizeof *nfg);
    nfg->nfgen_family = family;
    mnl_attr_put_u32(nlh, NFNLA_HOOK_HOOKNUM, htonl(hook));
    if (device)
        mnl_attr_put_strz(nlh, NFNLA_HOOK_DEV, device);
    struct collect_dump dump = {.nsfd = nsfd, .protocol = NETLINK_NETFILTER, .each = take_hook, .data = s};
    uint32_t before = s->hooks_count;
    int r = collect_dump_run(&dump, nlh);
    if (r < 0)
        s->hooks_count = before;
    return r;
}

void collect_hooks(struct snapshot *s, int nsfd) {
    static const struct {
        uint8_t family, hooks;
    } families[] = {{NFPROTO_IPV4, 5}, {NFPROTO_BRIDGE, 5}, {NFPROTO_ARP, 2}};
    int r = 0;
    for (size_t f = 0; f < sizeof families / sizeof *families; f++)
        for (uint32_t h = 0; h < families[f].hooks; h++) {
            int one = dump_hook(s, nsfd, families[f].family, h, NULL);
            if (one < 0 && one != -EOPNOTSUPP && one != -ENOENT)
                r = one;
        }
    if (r < 0 && r != -EINVAL) /* a kernel without nfnetlink_hook knows no such subsystem */
        snapshot_gap(s, "hooks", r, "the kernel does not tell who hooks into netfilter");
}

#include <arpa/inet.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/xfrm.h>
#include <string.h>

#include "doctor/collect/collect.h"

static void parse_attr(const struct nlattr *attr, void *data) {
    struct snap_xfrm *policy = data;
    if (mnl_attr_get_type(attr) == XFRMA_TMPL)
        policy->templates = (uint32_t)(mnl_attr_get_payload_len(attr) / sizeof(struct xfrm_user_tmpl));
}

static int take_policy(const struct nlmsghdr *nlh, void *data) {
    struct snapshot *s = data;
    struct snap_xfrm policy = {0};
    if (nlh->nlmsg_type != XFRM_MSG_NEWPOLICY)
        return 0;
    const struct xfrm_userpolicy_info *info = rtnl_each_msg_attr(nlh, sizeof *info, parse_attr, &policy);
    if (!info || info->sel.family != AF_INET)
        return 0;
    policy.dir = info->dir;
    policy.block = info->action == XFRM_POLICY_BLOCK;
    policy.from = ntohl(info->sel.saddr.a4);
    policy.to = ntohl(info->sel.daddr.a4);
    policy.from_length = info->sel.prefixlen_s;
    policy.to_length = info->sel.prefixlen_d;
    policy.priority = info->priority;
    policy.index = info->index;
    struct snap_xfrm *row = SNAP_PUSH(s, xfrms, 4096);
    if (row)
        *row = policy;
    return 0;
}

static void forget(void *data) {
    ((struct snapshot *)data)->xfrms_count = 0;
}

/* ip xfrm policy */
void collect_xfrm(struct snapshot *s, int nsfd) {
    char buffer[256];
    struct nlmsghdr *nlh = mnl_nlmsg_put_header(buffer);
    nlh->nlmsg_type = XFRM_MSG_GETPOLICY;
    nlh->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    mnl_nlmsg_put_extra_header(nlh, sizeof(struct xfrm_userpolicy_id));
    struct collect_dump dump = {
        .nsfd = nsfd, .protocol = NETLINK_XFRM, .each = take_policy, .restart = forget, .data = s};
    int r = collect_dump_run(&dump, nlh);
    if (r < 0 && r != -EPROTONOSUPPORT)
        snapshot_gap(s, "xfrm", r, "IPsec policies could not be read");
}

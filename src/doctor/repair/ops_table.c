/* Rows of the kernel's tables. What is taken away is kept as the kernel told it (family header and attributes), and put
 * back by giving it that again. */
#include <arpa/inet.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/neighbour.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "doctor/collect/collect.h"
#include "doctor/repair/internal.h"
#include "netlink/addr.h"

#define ABSENT "absent"

/* --- one row --- */

/* What is looked for in a dump, and what was found. */
struct search {
    const struct repair_step *step;
    int32_t ifindex;
    size_t header;
    void *found; /* header and attributes */
    size_t found_len;
};

static uint32_t attr_u32(const struct nlmsghdr *nlh, size_t header, uint16_t type) {
    const struct nlattr *attr;
    mnl_attr_for_each(attr, nlh, (unsigned int)header) if (mnl_attr_get_type(attr) == type) return rtnl_attr_u32(attr);
    return 0;
}

static const struct nlattr *attr_of(const struct nlmsghdr *nlh, size_t header, uint16_t type) {
    const struct nlattr *attr;
    mnl_attr_for_each(attr, nlh, (unsigned int)header) if (mnl_attr_get_type(attr) == type) return attr;
    return NULL;
}

static bool match_route(const struct nlmsghdr *nlh, const struct search *search) {
    const struct repair_step *step = search->step;
    const struct rtmsg *rtm = mnl_nlmsg_get_payload(nlh);
    uint32_t table = attr_u32(nlh, sizeof *rtm, RTA_TABLE);
    uint32_t to = ntohl(attr_u32(nlh, sizeof *rtm, RTA_DST));
    return rtm->rtm_family == AF_INET && rtm->rtm_dst_len == step->prefix.length &&
           to == (step->prefix.address & net_mask(step->prefix.length)) &&
           (table ? table : rtm->rtm_table) == (step->route_table ? step->route_table : RT_TABLE_MAIN) &&
           rtm->rtm_type == (step->route_type ? step->route_type : RTN_UNICAST) &&
           attr_u32(nlh, sizeof *rtm, RTA_PRIORITY) == step->route_metric &&
           ntohl(attr_u32(nlh, sizeof *rtm, RTA_GATEWAY)) == step->gateway &&
           (!search->ifindex || (int32_t)attr_u32(nlh, sizeof *rtm, RTA_OIF) == search->ifindex);
}

static bool match_policy(const struct nlmsghdr *nlh, const struct search *search) {
    const struct repair_step *step = search->step;
    const struct fib_rule_hdr *rule = mnl_nlmsg_get_payload(nlh);
    const struct nlattr *proto = attr_of(nlh, sizeof *rule, FRA_IP_PROTO),
                        *in = attr_of(nlh, sizeof *rule, FRA_IIFNAME);
    uint32_t table = attr_u32(nlh, sizeof *rule, FRA_TABLE);
    char iif[REPAIR_DEVICE] = "";
    if (in)
        rtnl_attr_text(in, iif, sizeof iif);
    return rule->family == AF_INET && attr_u32(nlh, sizeof *rule, FRA_PRIORITY) == step->value &&
           rule->dst_len == step->prefix.length &&
           ntohl(attr_u32(nlh, sizeof *rule, FRA_DST)) == step->prefix.address && rule->src_len == step->route_scope &&
           ntohl(attr_u32(nlh, sizeof *rule, FRA_SRC)) == step->gateway &&
           attr_u32(nlh, sizeof *rule, FRA_FWMARK) == step->parent && strcmp(iif, step->object) == 0 &&
           (proto && mnl_attr_get_payload_len(proto) ? mnl_attr_get_u8(proto) : 0) == step->protocol &&
           (table ? table : rule->table) == step->route_table && rule->action == step->route_type;
}

/* What the kernel learned by itself is no object: it comes and goes, also in the place of a fixed entry that was taken
 * away. */
static bool is_fixed(const struct ndmsg *ndm) {
    return ndm->ndm_state & (NUD_PERMANENT | NUD_NOARP);
}

static bool match_neighbour(const struct nlmsghdr *nlh, const struct search *search) {
    const struct ndmsg *ndm = mnl_nlmsg_get_payload(nlh);
    return ndm->ndm_family == AF_INET && ndm->ndm_ifindex == search->ifindex && !(ndm->ndm_flags & NTF_PROXY) &&
           is_fixed(ndm) && ntohl(attr_u32(nlh, sizeof *ndm, NDA_DST)) == search->step->prefix.address;
}

static bool match_fdb(const struct nlmsghdr *nlh, const struct search *search) {
    const struct ndmsg *ndm = mnl_nlmsg_get_payload(nlh);
    const struct nlattr *mac = attr_of(nlh, sizeof *ndm, NDA_LLADDR), *vlan = attr_of(nlh, sizeof *ndm, NDA_VLAN);
    bool self = !attr_of(nlh, sizeof *ndm, NDA_MASTER);
    return ndm->ndm_family == PF_BRIDGE && ndm->ndm_ifindex == search->ifindex && is_fixed(ndm) && mac &&
           mnl_attr_get_payload_len(mac) == 6 && memcmp(mnl_attr_get_payload(mac), &search->step->mac, 6) == 0 &&
           (vlan ? mnl_attr_get_u16(vlan) : 0) == search->step->value &&
           self == (strcmp(search->step->object, "self") == 0);
}

static bool match_qdisc(const struct nlmsghdr *nlh, const struct search *search) {
    const struct tcmsg *tcm = mnl_nlmsg_get_payload(nlh);
    return tcm->tcm_ifindex == search->ifindex && tcm->tcm_handle == search->step->handle &&
           tcm->tcm_parent == search->step->parent;
}

static bool match_filter(const struct nlmsghdr *nlh, const struct search *search) {
    const struct tcmsg *tcm = mnl_nlmsg_get_payload(nlh);
    const struct repair_step *step = search->step;
    /* The dump has a line for the filter's place, without a handle, in front of each filter. */
    return tcm->tcm_ifindex == search->ifindex && tcm->tcm_handle == step->handle &&
           TC_H_MAJ(tcm->tcm_info) >> 16 == step->priority && ntohs(TC_H_MIN(tcm->tcm_info)) == step->protocol &&
           attr_u32(nlh, sizeof *tcm, TCA_CHAIN) == step->chain && attr_of(nlh, sizeof *tcm, TCA_OPTIONS);
}

/* Attributes that say how a thing is, and not how it is doing. */
static bool is_kept(const struct search *search, uint16_t type) {
    enum repair_action action = search->step->action;
    if (action == REPAIR_QDISC_DELETE || action == REPAIR_FILTER_DELETE)
        return type == TCA_KIND || type == TCA_OPTIONS || type == TCA_CHAIN || type == TCA_INGRESS_BLOCK ||
               type == TCA_EGRESS_BLOCK;
    if (action == REPAIR_NEIGHBOUR_DELETE)
        return type == NDA_DST || type == NDA_LLADDR;
    if (action == REPAIR_FDB_DELETE)
        return type == NDA_LLADDR || type == NDA_VLAN || type == NDA_DST || type == NDA_VNI || type == NDA_PORT;
    return type != RTA_CACHEINFO || action == REPAIR_POLICY_DELETE;
}

static int keep_row(const struct nlmsghdr *nlh, struct search *search) {
    size_t len = mnl_nlmsg_get_payload_len(nlh), used = MNL_ALIGN(search->header);
    char *row = calloc(1, len + MNL_ALIGNTO);
    if (!row)
        return -ENOMEM;
    memcpy(row, mnl_nlmsg_get_payload(nlh), search->header);
    const struct nlattr *attr;
    mnl_attr_for_each(attr, nlh, (unsigned int)search->header) {
        if (!is_kept(search, mnl_attr_get_type(attr)))
            continue;
        memcpy(row + used, attr, attr->nla_len);
        used += MNL_ALIGN(attr->nla_len);
    }
    search->found = row;
    search->found_len = used;
    return 0;
}

static int each_row(const struct nlmsghdr *nlh, void *data) {
    struct search *search = data;
    bool match = false;
    if (search->found || mnl_nlmsg_get_payload_len(nlh) < search->header)
        return 0;
    if (nlh->nlmsg_type == RTM_NEWROUTE)
        match = match_route(nlh, search);
    else if (nlh->nlmsg_type == RTM_NEWRULE)
        match = match_policy(nlh, search);
    else if (nlh->nlmsg_type == RTM_NEWNEIGH)
        match = search->step->action == REPAIR_FDB_DELETE ? match_fdb(nlh, search) : match_neighbour(nlh, search);
    else if (nlh->nlmsg_type == RTM_NEWQDISC)
        match = match_qdisc(nlh, search);
    else if (nlh->nlmsg_type == RTM_NEWTFILTER)
        match = match_filter(nlh, search);
    return match ? keep_row(nlh, search) : 0;
}

static void forget(void *data) {
    struct search *search = data;
    free(search->found);
    search->found = NULL;
}

static uint16_t get_type(enum repair_action action, size_t *ret_header) {
    static const struct {
        enum repair_action action;
        uint16_t type;
        size_t header;
    } tables[] = {
        {REPAIR_ROUTE_ADD, RTM_GETROUTE, sizeof(struct rtmsg)},
        {REPAIR_ROUTE_DELETE, RTM_GETROUTE, sizeof(struct rtmsg)},
        {REPAIR_POLICY_DELETE, RTM_GETRULE, sizeof(struct fib_rule_hdr)},
        {REPAIR_NEIGHBOUR_DELETE, RTM_GETNEIGH, sizeof(struct ndmsg)},
        {REPAIR_FDB_DELETE, RTM_GETNEIGH, sizeof(struct ndmsg)},
        {REPAIR_QDISC_DELETE, RTM_GETQDISC, sizeof(struct tcmsg)},
        {REPAIR_FILTER_DELETE, RTM_GETTFILTER, sizeof(struct tcmsg)},
    };
    size_t i = 0;
    while (i + 1 < sizeof tables / sizeof *tables && tables[i].action != action)
        i++;
    *ret_header = tables[i].header;
    return tables[i].type;
}

/* Finds the row in a dump. Return: 0 (search->found NULL when it is not there) or -errno. */
static int find_row(struct repair *repair, const struct repair_step *step, struct search *search, struct err *err) {
    char buffer[512] = {0};
    struct link link = {.index = 0};
    *search = (struct search){.step = step};
    int r = *step->dev ? repair_find_dev(repair, step, &link, err) : 0;
    if (r < 0)
        return r;
    search->ifindex = link.index;
    struct nlmsghdr *nlh = mnl_nlmsg_put_header(buffer);
    nlh->nlmsg_type = get_type(step->action, &search->header);
    nlh->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    unsigned char *header = mnl_nlmsg_put_extra_header(nlh, search->header);
    header[0] = step->action == REPAIR_FDB_DELETE ? PF_BRIDGE : AF_INET; /* all of these begin with the family */
    if (step->action == REPAIR_QDISC_DELETE || step->action == REPAIR_FILTER_DELETE) {
        struct tcmsg *tcm = (struct tcmsg *)header;
        tcm->tcm_family = AF_UNSPEC;
        tcm->tcm_ifindex = link.index;
        tcm->tcm_parent = step->action == REPAIR_FILTER_DELETE ? step->parent : 0;
    }
    struct collect_dump dump = {
        .nsfd = repair->nsfd, .protocol = NETLINK_ROUTE, .each = each_row, .restart = forget, .data = search};
    r = collect_dump_run(&dump, nlh);
    return r < 0 ? err_sys(err, -r, "repair.failed", "read the kernel's table") : 0;
}

/* The first lines of a filter's place have no options; a bpf filter names its program by id, and wants a descriptor. */
static uint32_t bpf_id(const struct search *search) {
    const char *row = search->found, *end = row + search->found_len;
    for (const struct nlattr *attr = (const void *)(row + MNL_ALIGN(search->header));
         mnl_attr_ok(attr, (int)(end - (const char *)attr)); attr = mnl_attr_next(attr)) {
        const struct nlattr *inner;
        if (mnl_attr_get_type(attr) != TCA_OPTIONS)
            continue;
        mnl_attr_for_each_nested(inner, attr) if (mnl_attr_get_type(inner) == TCA_BPF_ID) return rtnl_attr_u32(inner);
    }
    return 0;
}

bool repair_qdisc_has_classes(const char *kind) {
    static const char *const kinds[] = {"htb", "hfsc", "drr", "qfq", "ets", "cbq", "prio", "mqprio"};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kind, kinds[i]) == 0)
            return true;
    return false;
}

static bool has_classes(const struct search *search) {
    char kind[32] = "";
    const char *row = search->found, *end = row + search->found_len;
    for (const struct nlattr *attr = (const void *)(row + MNL_ALIGN(search->header));
         mnl_attr_ok(attr, (int)(end - (const char *)attr)); attr = mnl_attr_next(attr))
        if (mnl_attr_get_type(attr) == TCA_KIND)
            rtnl_attr_text(attr, kind, sizeof kind);
    return repair_qdisc_has_classes(kind);
}

static int row_read(struct repair *repair, const struct repair_step *step, char *value, char **raw, struct err *err) {
    struct search search;
    int r = find_row(repair, step, &search, err);
    if (r < 0)
        return r;
    if (raw && search.found && step->action == REPAIR_QDISC_DELETE && has_classes(&search)) {
        free(search.found);
        err_set(err, ENOTSUP, "repair.irreversible", "its classes could not be put back: nothing was changed");
        return err_hint(err, "keep `tc -s class show` before you delete it by hand");
    }
    snprintf(value, REPAIR_VALUE, "%s", search.found ? "present" : ABSENT);
    if (search.found && raw)
        *raw = repair_hex(search.found, search.found_len);
    free(search.found);
    return 0;
}

static uint16_t delete_type(enum repair_action action) {
    size_t header;
    return (uint16_t)(get_type(action, &header) - 1); /* NEW, DEL, GET: in this order for all */
}

static void adjust_header(const struct search *search, void *header) {
    const struct repair_step *step = search->step;
    if (step->action == REPAIR_FDB_DELETE) {
        struct ndmsg *ndm = header;
        ndm->ndm_flags = strcmp(step->object, "self") == 0 ? NTF_SELF : NTF_MASTER;
    }
}

static int row_apply(struct repair *repair, const struct repair_step *step, struct err *err) {
    struct search search;
    int r = find_row(repair, step, &search, err);
    if (r < 0)
        return r;
    if (!search.found)
        return err_set(err, ENOENT, "repair.gone", "it is not there any more");
    uint32_t program = step->action == REPAIR_FILTER_DELETE ? bpf_id(&search) : 0;
    if (program)
        repair_hold(repair, program);
    adjust_header(&search, search.found);
    /* A qdisc is named by the header alone. */
    size_t len = step->action == REPAIR_QDISC_DELETE ? MNL_ALIGN(search.header) : search.found_len;
    r = repair_send_raw(repair, delete_type(step->action), 0, search.found, len, err);
    free(search.found);
    return r;
}

/* A bpf filter again: its program by a descriptor. */
static int restore_bpf(struct repair *repair, const void *row, size_t len, int fd, struct err *err) {
    struct rtnl_msg msg;
    struct tcmsg *tcm = rtnl_msg_begin(&msg, RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, sizeof *tcm);
    memcpy(tcm, row, sizeof *tcm);
    const char *end = (const char *)row + len;
    for (const struct nlattr *attr = (const void *)((const char *)row + MNL_ALIGN(sizeof *tcm));
         mnl_attr_ok(attr, (int)(end - (const char *)attr)); attr = mnl_attr_next(attr)) {
        if (mnl_attr_get_type(attr) != TCA_OPTIONS) {
            rtnl_put(&msg, attr->nla_type, mnl_attr_get_payload(attr), mnl_attr_get_payload_len(attr));
            continue;
        }
        struct nlattr *options = rtnl_nest_begin(&msg, TCA_OPTIONS);
        const struct nlattr *inner;
        mnl_attr_for_each_nested(inner, attr) {
            uint16_t type = mnl_attr_get_type(inner);
            if (type == TCA_BPF_NAME || type == TCA_BPF_FLAGS || type == TCA_BPF_FLAGS_GEN || type == TCA_BPF_CLASSID)
                rtnl_put(&msg, type, mnl_attr_get_payload(inner), mnl_attr_get_payload_len(inner));
        }
        rtnl_put_u32(&msg, TCA_BPF_FD, (uint32_t)fd);
        rtnl_nest_end(&msg, options);
    }
    return rtnl_change(repair->rtnl, &msg, err);
}

/* A dump tells whether the hardware has the filter; to say so in a request is an error. */
static void clear_hardware_flags(void *row, size_t len) {
    static const struct {
        const char *kind;
        uint16_t flags;
    } sorts[] = {{"bpf", TCA_BPF_FLAGS_GEN},
                 {"u32", TCA_U32_FLAGS},
                 {"flower", TCA_FLOWER_FLAGS},
                 {"matchall", TCA_MATCHALL_FLAGS}};
    const char *end = (const char *)row + len;
    char kind[32] = "";
    for (const struct nlattr *attr = (const void *)((char *)row + MNL_ALIGN(sizeof(struct tcmsg)));
         mnl_attr_ok(attr, (int)(end - (const char *)attr)); attr = mnl_attr_next(attr)) {
        struct nlattr *inner;
        if (mnl_attr_get_type(attr) == TCA_KIND)
            rtnl_attr_text(attr, kind, sizeof kind);
        if (mnl_attr_get_type(attr) != TCA_OPTIONS)
            continue;
        mnl_attr_for_each_nested(inner, attr) {
            for (size_t i = 0; i < sizeof sorts / sizeof *sorts; i++) {
                uint32_t flags = rtnl_attr_u32(inner) & ~(uint32_t)(TCA_CLS_FLAGS_IN_HW | TCA_CLS_FLAGS_NOT_IN_HW);
                if (strcmp(kind, sorts[i].kind) == 0 && mnl_attr_get_type(inner) == sorts[i].flags &&
                    mnl_attr_get_payload_len(inner) == sizeof flags)
                    memcpy(mnl_attr_get_payload(inner), &flags, sizeof flags);
            }
        }
    }
}

static int row_restore(struct repair *repair, const struct repair_step *step, const char *before, const char *raw,
                       struct err *err) {
    size_t header, len = 0;
    get_type(step->action, &header);
    if (strcmp(before, ABSENT) == 0)
        return 0;
    _cleanup_free_ char *row = raw ? repair_unhex(raw, &len) : NULL;
    if (!row || len < header)
        return err_set(err, EBADMSG, "repair.irreversible", "the journal does not hold what was there");
    struct search search = {.step = step, .header = header, .found = row, .found_len = len};
    if (step->action == REPAIR_FILTER_DELETE)
        clear_hardware_flags(row, len);
    uint32_t program = step->action == REPAIR_FILTER_DELETE ? bpf_id(&search) : 0;
    if (program) {
        int fd = repair_held(repair, program);
        if (fd < 0)
            return err_set(err, ESTALE, "repair.irreversible", "BPF program %u is gone: load it again", program);
        return restore_bpf(repair, row, len, fd, err);
    }
    adjust_header(&search, row);
    bool replaces = step->action == REPAIR_QDISC_DELETE || step->action == REPAIR_NEIGHBOUR_DELETE ||
                    step->action == REPAIR_FDB_DELETE;
    return repair_send_raw(repair, (uint16_t)(delete_type(step->action) - 1),
                           (uint16_t)(NLM_F_CREATE | (replaces ? NLM_F_REPLACE : NLM_F_EXCL)), row, len, err);
}

const struct repair_op repair_op_row = {row_read, row_apply, row_restore};

/* --- routes are also added --- */

static void put_route(struct rtnl_msg *msg, const struct repair_step *step, int32_t ifindex, struct rtmsg *rtm) {
    rtm->rtm_family = AF_INET;
    rtm->rtm_dst_len = step->prefix.length;
    rtm->rtm_table = RT_TABLE_UNSPEC;
    rtm->rtm_type = step->route_type ? step->route_type : RTN_UNICAST;
    rtm->rtm_protocol = step->route_protocol ? step->route_protocol : RTPROT_STATIC;
    rtm->rtm_scope = step->route_scope ? step->route_scope : step->gateway ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK;
    if (rtm->rtm_type != RTN_UNICAST)
        rtm->rtm_scope = RT_SCOPE_UNIVERSE;
    rtnl_put_ip(msg, RTA_DST, step->prefix.address & net_mask(step->prefix.length));
    rtnl_put_u32(msg, RTA_TABLE, step->route_table ? step->route_table : RT_TABLE_MAIN);
    if (ifindex)
        rtnl_put_u32(msg, RTA_OIF, (uint32_t)ifindex);
    if (step->gateway)
        rtnl_put_ip(msg, RTA_GATEWAY, step->gateway);
    if (step->route_source)
        rtnl_put_ip(msg, RTA_PREFSRC, step->route_source);
    if (step->route_metric)
        rtnl_put_u32(msg, RTA_PRIORITY, step->route_metric);
}

static int route_add(struct repair *repair, const struct repair_step *step, struct err *err) {
    struct rtnl_msg msg;
    struct link link = {.index = 0};
    int r = *step->dev ? repair_find_dev(repair, step, &link, err) : 0;
    if (r < 0)
        return r;
    struct rtmsg *rtm = rtnl_msg_begin(&msg, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, sizeof *rtm);
    put_route(&msg, step, link.index, rtm);
    return rtnl_change(repair->rtnl, &msg, err);
}

static int route_apply(struct repair *repair, const struct repair_step *step, struct err *err) {
    return step->action == REPAIR_ROUTE_ADD ? route_add(repair, step, err) : row_apply(repair, step, err);
}

static int route_restore(struct repair *repair, const struct repair_step *step, const char *before, const char *raw,
                         struct err *err) {
    if (step->action == REPAIR_ROUTE_DELETE)
        return row_restore(repair, step, before, raw, err);
    return strcmp(before, ABSENT) == 0 ? row_apply(repair, step, err) : 0;
}

const struct repair_op repair_op_route = {row_read, route_apply, route_restore};

/* --- addresses --- */

static int address_read(struct repair *repair, const struct repair_step *step, char *value, char **raw,
                        struct err *err) {
    struct addr *addrs = NULL;
    size_t count = 0;
    struct link link;
    int r = repair_find_dev(repair, step, &link, err);
    if (r == 0)
        r = addr_dump(repair->rtnl, &addrs, &count, err);
    if (r < 0)
        return r;
    snprintf(value, REPAIR_VALUE, ABSENT);
    for (size_t i = 0; i < count; i++)
        if (addrs[i].link == link.index && addrs[i].prefix.address == step->prefix.address &&
            addrs[i].prefix.length == step->prefix.length)
            snprintf(value, REPAIR_VALUE, "present");
    free(addrs);
    return 0;
}

static int address_set(struct repair *repair, const struct repair_step *step, bool there, struct err *err) {
    struct link link;
    int r = repair_find_dev(repair, step, &link, err);
    if (r < 0)
        return r;
    r = there ? addr_add(repair->rtnl, link.index, step->prefix, err)
              : addr_delete(repair->rtnl, link.index, step->prefix, err);
    return (there && r == -EEXIST) || (!there && r == -EADDRNOTAVAIL) ? 0 : r;
}

static int address_apply(struct repair *repair, const struct repair_step *step, struct err *err) {
    return address_set(repair, step, step->action == REPAIR_ADDRESS_ADD, err);
}

static int address_restore(struct repair *repair, const struct repair_step *step, const char *before, const char *raw,
                           struct err *err) {
    return address_set(repair, step, strcmp(before, "present") == 0, err);
}

const struct repair_op repair_op_address = {address_read, address_apply, address_restore};

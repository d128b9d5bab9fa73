#include <arpa/inet.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/bpf.h>
#include <linux/gen_stats.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/tc_act/tc_gact.h>
#include <linux/tc_act/tc_mirred.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "doctor/collect/collect.h"

static void copy_part(void *dst, size_t size, const struct nlattr *attr) {
    size_t len = mnl_attr_get_payload_len(attr);
    memset(dst, 0, size);
    memcpy(dst, mnl_attr_get_payload(attr), len < size ? len : size);
}

/* --- qdiscs and classes --- */

static void parse_stats2(const struct nlattr *attr, void *data) {
    struct snap_qdisc *q = data;
    struct gnet_stats_basic basic;
    struct gnet_stats_queue queue;
    switch (mnl_attr_get_type(attr)) {
    case TCA_STATS_BASIC:
        copy_part(&basic, sizeof basic, attr);
        q->bytes = basic.bytes;
        q->packets = basic.packets;
        break;
    case TCA_STATS_QUEUE:
        copy_part(&queue, sizeof queue, attr);
        q->drops = queue.drops;
        q->overlimits = queue.overlimits;
        q->backlog_bytes = queue.backlog;
        q->backlog_packets = queue.qlen;
        break;
    }
}

static void parse_tbf(const struct nlattr *attr, void *data) {
    struct snap_qdisc *q = data;
    struct tc_tbf_qopt tbf;
    uint64_t rate;
    if (mnl_attr_get_type(attr) == TCA_TBF_PARMS) {
        copy_part(&tbf, sizeof tbf, attr);
        q->limit = tbf.limit;
        if (q->rate_bps == 0)
            q->rate_bps = tbf.rate.rate;
    } else if (mnl_attr_get_type(attr) == TCA_TBF_RATE64) {
        copy_part(&rate, sizeof rate, attr);
        q->rate_bps = rate;
    }
}

static void parse_htb(const struct nlattr *attr, void *data) {
    struct snap_qdisc *q = data;
    struct tc_htb_opt htb;
    if (mnl_attr_get_type(attr) == TCA_HTB_PARMS) {
        copy_part(&htb, sizeof htb, attr);
        q->rate_bps = htb.ceil.rate;
    }
}

static void parse_options(const struct nlattr *attr, struct snap_qdisc *q) {
    struct tc_netem_qopt netem;
    if (strcmp(q->kind, "pfifo") == 0 || strcmp(q->kind, "bfifo") == 0) {
        if (mnl_attr_get_payload_len(attr) >= sizeof(struct tc_fifo_qopt))
            copy_part(&q->limit, sizeof q->limit, attr);
    } else if (strcmp(q->kind, "netem") == 0) {
        copy_part(&netem, sizeof netem, attr);
        q->loss = netem.loss;
        q->limit = netem.limit;
        q->delay_ns = (uint64_t)netem.latency * 64; /* PSCHED ticks */
    } else if (strcmp(q->kind, "tbf") == 0) {
        rtnl_each_nested(attr, parse_tbf, q);
    } else if (strcmp(q->kind, "htb") == 0 && q->is_class) {
        rtnl_each_nested(attr, parse_htb, q);
    }
}

struct qdisc_attrs {
    struct snap_qdisc *q;
    const struct nlattr *options, *stats2;
};

static void find_qdisc_attr(const struct nlattr *attr, void *data) {
    struct qdisc_attrs *found = data;
    switch (mnl_attr_get_type(attr)) {
    case TCA_KIND:
        rtnl_attr_text(attr, found->q->kind, sizeof found->q->kind);
        break;
    case TCA_OPTIONS:
        found->options = attr;
        break;
    case TCA_STATS2:
        found->stats2 = attr;
        break;
    }
}

static int parse_qdisc(const struct nlmsghdr *nlh, void *ret) {
    struct snap_qdisc *q = ret;
    struct qdisc_attrs found = {.q = q};
    if (nlh->nlmsg_type != RTM_NEWQDISC && nlh->nlmsg_type != RTM_NEWTCLASS)
        return 0;
    memset(q, 0, sizeof *q);
    q->limit = UINT32_MAX;
    q->is_class = nlh->nlmsg_type == RTM_NEWTCLASS;
    const struct tcmsg *tcm = rtnl_each_msg_attr(nlh, sizeof *tcm, find_qdisc_attr, &found);
    if (!tcm)
        return -EBADMSG;
    q->link = tcm->tcm_ifindex;
    q->handle = tcm->tcm_handle;
    q->parent = tcm->tcm_parent;
    if (found.options)
        parse_options(found.options, q);
    if (found.stats2)
        rtnl_each_nested(found.stats2, parse_stats2, q);
    return 1;
}

static int dump_qdiscs(struct snapshot *s, struct rtnl *rtnl, uint16_t type, int32_t link, struct err *err) {
    struct rtnl_msg msg;
    struct rtnl_list list = {.item_size = sizeof(struct snap_qdisc), .max = SNAP_ROWS_MAX};
    struct tcmsg *tcm = rtnl_msg_begin(&msg, type, 0, sizeof *tcm);
    tcm->tcm_family = AF_UNSPEC;
    tcm->tcm_ifindex = link;
    int r = rtnl_dump(rtnl, &msg, parse_qdisc, &list, err);
    for (size_t i = 0; r == 0 && i < list.count; i++) {
        struct snap_qdisc *q = SNAP_PUSH(s, qdiscs, SNAP_ROWS_MAX);
        if (q)
            *q = ((struct snap_qdisc *)list.items)[i];
    }
    free(list.items);
    return r;
}

static bool is_classful(const struct snap_qdisc *q) {
    static const char *const without[] = {"noqueue", "fq_codel", "fq", "pfifo_fast", "pfifo", "bfifo",
                                          "clsact",  "ingress",  "mq", "sfq",        "codel", NULL};
    for (int i = 0; without[i]; i++)
        if (strcmp(q->kind, without[i]) == 0)
            return false;
    return q->parent == TC_H_ROOT;
}

/* tc -s qdisc show; tc -s class show */
void collect_qdiscs(struct snapshot *s, struct rtnl *rtnl) {
    struct err err = {0};
    int r = dump_qdiscs(s, rtnl, RTM_GETQDISC, 0, &err);
    uint32_t count = s->qdiscs_count;
    for (uint32_t i = 0; r == 0 && i < count; i++)
        if (is_classful(&s->qdiscs[i]))
            r = dump_qdiscs(s, rtnl, RTM_GETTCLASS, s->qdiscs[i].link, &err);
    if (r < 0 && r != -ENODEV)
        snapshot_gap(s, "qdiscs", r, "%s", err.detail);
}

/* --- filters --- */

struct action {
    struct snap_filter *filter;
    char kind[24];
    const struct nlattr *options, *stats;
    bool random; /* it has another verdict now and then */
};

static void find_action_attr(const struct nlattr *attr, void *data) {
    struct action *action = data;
    switch (mnl_attr_get_type(attr)) {
    case TCA_ACT_KIND:
        rtnl_attr_text(attr, action->kind, sizeof action->kind);
        break;
    case TCA_ACT_OPTIONS:
        action->options = attr;
        break;
    case TCA_ACT_STATS:
        action->stats = attr;
        break;
    }
}

static void parse_mirred(const struct nlattr *attr, void *data) {
    struct action *action = data;
    struct tc_mirred mirred;
    if (mnl_attr_get_type(attr) != TCA_MIRRED_PARMS)
        return;
    copy_part(&mirred, sizeof mirred, attr);
    bool redirect = mirred.eaction == TCA_EGRESS_REDIR || mirred.eaction == TCA_INGRESS_REDIR;
    action->filter->action = mirred.action;
    if (redirect)
        action->filter->to_link = (int32_t)mirred.ifindex;
    str_copy(action->kind, sizeof action->kind, redirect ? "mirred redirect" : "mirred mirror");
}

/* Type 2 is the struct of nearly every action; it begins with tc_gen: index, capab, action. */
static void parse_gact(const struct nlattr *attr, void *data) {
    struct action *action = data;
    struct tc_gact gact;
    struct tc_gact_p random;
    if (mnl_attr_get_type(attr) == TCA_GACT_PROB && strcmp(action->kind, "gact") == 0) {
        copy_part(&random, sizeof random, attr);
        action->random = random.ptype != PGACT_NONE;
    }
    if (mnl_attr_get_type(attr) != TCA_GACT_PARMS || mnl_attr_get_payload_len(attr) < sizeof gact)
        return;
    copy_part(&gact, sizeof gact, attr);
    action->filter->action = gact.action;
}

static void parse_action_stats(const struct nlattr *attr, void *data) {
    struct snap_filter *filter = data;
    struct gnet_stats_basic basic;
    struct gnet_stats_queue queue;
    if (mnl_attr_get_type(attr) == TCA_STATS_BASIC) {
        copy_part(&basic, sizeof basic, attr);
        filter->packets = basic.packets;
    } else if (mnl_attr_get_type(attr) == TCA_STATS_QUEUE) {
        copy_part(&queue, sizeof queue, attr);
        filter->drops += queue.drops;
    }
}

static const char *action_word(int32_t action) {
    static const char *const words[] = {"ok",     "reclassify", "drop",     "pipe", "stolen",
                                        "queued", "repeat",     "redirect", "trap"};
    return action >= 0 && action < (int)(sizeof words / sizeof *words) ? words[action] : "continue";
}

static void parse_action(const struct nlattr *attr, void *data) {
    struct action action = {.filter = data};
    rtnl_each_nested(attr, find_action_attr, &action);
    if (action.options && strcmp(action.kind, "mirred") == 0)
        rtnl_each_nested(action.options, parse_mirred, &action);
    else if (action.options)
        rtnl_each_nested(action.options, parse_gact, &action);
    if (action.stats)
        rtnl_each_nested(action.stats, parse_action_stats, action.filter);
    if (strcmp(action.kind, "police") == 0 || action.random)
        action.filter->action = -3;
    size_t len = strlen(action.filter->actions);
    snprintf(action.filter->actions + len, sizeof action.filter->actions - len, "%s%s %s", len ? ", " : "", action.kind,
             action.filter->action == -3 ? "" : action_word(action.filter->action));
}

/* The numbers of TCA_BPF_*, _U32_*, _FLOWER_*, _MATCHALL_*, _BASIC_*, _CGROUP_* that hold actions. */
static int actions_attr(const char *kind) {
    static const struct {
        const char *kind;
        int attr;
    } table[] = {{"u32", TCA_U32_ACT},     {"flower", TCA_FLOWER_ACT}, {"matchall", TCA_MATCHALL_ACT},
                 {"basic", TCA_BASIC_ACT}, {"bpf", TCA_BPF_ACT},       {"cgroup", TCA_CGROUP_ACT},
                 {"fw", TCA_FW_ACT},       {"flow", TCA_FLOW_ACT},     {"route", TCA_ROUTE4_ACT}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strcmp(kind, table[i].kind) == 0)
            return table[i].attr;
    return -1;
}

static void parse_u32_selector(const struct nlattr *attr, struct snap_filter *filter) {
    struct tc_u32_sel sel;
    copy_part(&sel, sizeof sel, attr);
    const char *keys = (const char *)mnl_attr_get_payload(attr) + sizeof sel;
    size_t room = mnl_attr_get_payload_len(attr) < sizeof sel ? 0 : mnl_attr_get_payload_len(attr) - sizeof sel;
    for (unsigned i = 0; i < sel.nkeys && (i + 1) * sizeof(struct tc_u32_key) <= room; i++) {
        struct tc_u32_key key;
        memcpy(&key, keys + i * sizeof key, sizeof key);
        if (key.mask)
            filter->conditional = true;
    }
}

static void parse_filter_option(const struct nlattr *attr, void *data) {
    struct snap_filter *filter = data;
    int type = mnl_attr_get_type(attr);
    if (type == actions_attr(filter->kind)) {
        rtnl_each_nested(attr, parse_action, filter);
    } else if (strcmp(filter->kind, "u32") == 0) {
        if (type == TCA_U32_SEL)
            parse_u32_selector(attr, filter);
        if (type == TCA_U32_MARK || type == TCA_U32_INDEV)
            filter->conditional = true;
    } else if (strcmp(filter->kind, "bpf") == 0) {
        if (type == TCA_BPF_FLAGS)
            filter->direct_action = rtnl_attr_u32(attr) & TCA_BPF_FLAG_ACT_DIRECT;
        if (type == TCA_BPF_ID)
            filter->prog_id = rtnl_attr_u32(attr);
    } else if (strcmp(filter->kind, "flower") == 0) {
        if (type >= TCA_FLOWER_INDEV && type != TCA_FLOWER_ACT && type != TCA_FLOWER_FLAGS &&
            type != TCA_FLOWER_KEY_ETH_TYPE && type != TCA_FLOWER_IN_HW_COUNT)
            filter->conditional = true;
    } else if (strcmp(filter->kind, "basic") == 0 && type == TCA_BASIC_EMATCHES) {
        filter->conditional = true;
    }
}

struct filter_attrs {
    struct snap_filter *filter;
    const struct nlattr *options;
};

static void find_filter_attr(const struct nlattr *attr, void *data) {
    struct filter_attrs *found = data;
    switch (mnl_attr_get_type(attr)) {
    case TCA_KIND:
        rtnl_attr_text(attr, found->filter->kind, sizeof found->filter->kind);
        break;
    case TCA_CHAIN:
        found->filter->chain = rtnl_attr_u32(attr);
        break;
    case TCA_OPTIONS:
        found->options = attr;
        break;
    }
}

static bool is_leaf(const struct snap_filter *filter, bool has_actions) {
    /* u32's hash tables are listed as filters too; they do nothing. */
    return has_actions || filter->prog_id || filter->direct_action || strcmp(filter->kind, "u32") != 0;
}

static int parse_filter(const struct nlmsghdr *nlh, void *ret) {
    struct snap_filter *filter = ret;
    struct filter_attrs found = {.filter = filter};
    if (nlh->nlmsg_type != RTM_NEWTFILTER)
        return 0;
    memset(filter, 0, sizeof *filter);
    filter->action = -2;
    const struct tcmsg *tcm = rtnl_each_msg_attr(nlh, sizeof *tcm, find_filter_attr, &found);
    if (!tcm)
        return -EBADMSG;
    filter->link = tcm->tcm_ifindex;
    filter->parent = tcm->tcm_parent;
    filter->handle = tcm->tcm_handle;
    filter->priority = (uint16_t)(tcm->tcm_info >> 16);
    filter->protocol = ntohs((uint16_t)(tcm->tcm_info & 0xffff));
    if (found.options)
        rtnl_each_nested(found.options, parse_filter_option, filter);
    if (filter->direct_action || (filter->prog_id && filter->action == -2))
        filter->action = -3;
    if (strcmp(filter->kind, "bpf") == 0)
        filter->conditional = true;
    return is_leaf(filter, *filter->actions != '\0');
}

static int dump_filters(struct snapshot *s, struct rtnl *rtnl, int32_t link, uint32_t parent, bool egress) {
    struct rtnl_msg msg;
    struct err err = {0};
    struct rtnl_list list = {.item_size = sizeof(struct snap_filter), .max = SNAP_ROWS_MAX};
    struct tcmsg *tcm = rtnl_msg_begin(&msg, RTM_GETTFILTER, 0, sizeof *tcm);
    tcm->tcm_family = AF_UNSPEC;
    tcm->tcm_ifindex = link;
    tcm->tcm_parent = parent;
    int r = rtnl_dump(rtnl, &msg, parse_filter, &list, &err);
    for (size_t i = 0; r == 0 && i < list.count; i++) {
        struct snap_filter *filter = SNAP_PUSH(s, filters, SNAP_ROWS_MAX);
        if (!filter)
            break;
        *filter = ((struct snap_filter *)list.items)[i];
        filter->egress = egress;
        if ((uint32_t)filter->link ==
            TCM_IFINDEX_MAGIC_BLOCK) { /* the number of the block is where the parent's is else */
            filter->block = filter->parent;
            filter->link = link;
            filter->parent = parent;
        }
    }
    free(list.items);
    if (r < 0 && r != -ENODEV && r != -EINVAL)
        snapshot_gap(s, "filters", r, "%s", err.detail);
    return r;
}

/* tc -s filter show dev DEV ingress | egress | parent …, for devices that have a qdisc that can have them */
void collect_filters(struct snapshot *s, struct rtnl *rtnl) {
    for (uint32_t i = 0; i < s->qdiscs_count; i++) {
        const struct snap_qdisc q = s->qdiscs[i];
        if (q.is_class)
            continue;
        if (strcmp(q.kind, "clsact") == 0) {
            dump_filters(s, rtnl, q.link, TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS), false);
            dump_filters(s, rtnl, q.link, TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS), true);
        } else if (strcmp(q.kind, "ingress") == 0) {
            dump_filters(s, rtnl, q.link, TC_H_INGRESS, false);
        } else if (is_classful(&q)) {
            dump_filters(s, rtnl, q.link, q.handle, true);
        }
    }
}

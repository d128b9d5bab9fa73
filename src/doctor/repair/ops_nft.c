/* nftables: a rule deleted by its handle, the policy of a chain.
 *
 * A rule is kept as the kernel told it (its expressions) and can be put back exactly, behind the rule that stood before
 * it. Only an anonymous set goes with its rule; such a rule is put back by its text.
 *
 * Source: include/uapi/linux/netfilter/nf_tables.h; libnftables for the text. */
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "doctor/collect/collect.h"
#include "doctor/repair/internal.h"
#include "netlink/netns.h"
#include "netlink/nft.h"

#define MESSAGE_MAX (96 * 1024)

static const char *family_name(uint8_t family) {
    return family == NFPROTO_INET     ? "inet"
           : family == NFPROTO_IPV4   ? "ip"
           : family == NFPROTO_IPV6   ? "ip6"
           : family == NFPROTO_ARP    ? "arp"
           : family == NFPROTO_BRIDGE ? "bridge"
                                      : "netdev";
}

/* --- one change --- */

static void *begin_message(char *at, uint16_t type, uint8_t family, uint16_t flags, uint32_t sequence, uint16_t id) {
    struct nlmsghdr *nlh = mnl_nlmsg_put_header(at);
    nlh->nlmsg_type = type;
    nlh->nlmsg_flags = NLM_F_REQUEST | flags;
    nlh->nlmsg_seq = sequence;
    struct nfgenmsg *gen = mnl_nlmsg_put_extra_header(nlh, sizeof *gen);
    gen->nfgen_family = family;
    gen->version = NFNETLINK_V0;
    gen->res_id = htons(id);
    return nlh;
}

/* The message in a transaction of its own. Return: 0 or -errno. */
static int commit(struct repair *repair, const struct nlmsghdr *message, struct err *err) {
    _cleanup_free_ char *batch = malloc(MESSAGE_MAX + 256);
    _cleanup_close_ int fd = -1;
    char answer[4096];
    struct timeval timeout = {.tv_sec = 5};
    if (!batch)
        return err_sys(err, ENOMEM, "repair.failed", "change nftables");
    int r = netns_socket(repair->nsfd, AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER, &fd);
    if (r < 0)
        return err_sys(err, -r, "repair.failed", "open an nftables socket");
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    struct nlmsghdr *nlh = begin_message(batch, NFNL_MSG_BATCH_BEGIN, AF_UNSPEC, 0, 1, NFNL_SUBSYS_NFTABLES);
    size_t used = nlh->nlmsg_len;
    memcpy(batch + used, message, message->nlmsg_len);
    used += MNL_ALIGN(message->nlmsg_len);
    nlh = begin_message(batch + used, NFNL_MSG_BATCH_END, AF_UNSPEC, 0, 3, NFNL_SUBSYS_NFTABLES);
    used += nlh->nlmsg_len;
    if (send(fd, batch, used, 0) < 0)
        return err_sys(err, errno, "repair.failed", "change nftables");
    for (;;) {
        ssize_t n = recv(fd, answer, sizeof answer, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_sys(err, errno == EAGAIN ? ETIMEDOUT : errno, "repair.failed", "change nftables");
        int left = (int)n;
        for (const struct nlmsghdr *got = (void *)answer; NLMSG_OK(got, left); got = mnl_nlmsg_next(got, &left)) {
            const struct nlmsgerr *error = mnl_nlmsg_get_payload(got);
            if (got->nlmsg_type != NLMSG_ERROR || mnl_nlmsg_get_payload_len(got) < sizeof *error)
                continue;
            return error->error < 0 ? err_sys(err, -error->error, "repair.failed", "nftables refused") : 0;
        }
    }
}

static uint16_t nft_type(uint16_t message) {
    return (uint16_t)(NFNL_SUBSYS_NFTABLES << 8 | message);
}

/* --- a rule --- */

struct rule_search {
    const struct repair_step *step;
    uint64_t previous; /* the rule in front of it; 0: it is the first */
    uint64_t last;
    uint32_t index; /* in its chain */
    char *attrs;    /* expressions and user data; NULL: not found */
    size_t attrs_len;
    bool anonymous_set;
};

static uint64_t attr_u64(const struct nlattr *attr) {
    uint64_t value = 0;
    if (mnl_attr_get_payload_len(attr) >= sizeof value)
        memcpy(&value, mnl_attr_get_payload(attr), sizeof value);
    return be64toh(value);
}

static bool mentions_anonymous(const char *data, size_t len) {
    return memmem(data, len, "__set", 5) || memmem(data, len, "__map", 5);
}

static int keep_rule(const struct nlmsghdr *nlh, struct rule_search *search) {
    search->attrs = malloc(nlh->nlmsg_len);
    if (!search->attrs)
        return -ENOMEM;
    const struct nlattr *attr;
    mnl_attr_for_each(attr, nlh, sizeof(struct nfgenmsg)) {
        uint16_t type = mnl_attr_get_type(attr);
        if (type != NFTA_RULE_EXPRESSIONS && type != NFTA_RULE_USERDATA && type != NFTA_RULE_COMPAT)
            continue;
        memcpy(search->attrs + search->attrs_len, attr, attr->nla_len);
        memset(search->attrs + search->attrs_len + attr->nla_len, 0, MNL_ALIGN(attr->nla_len) - attr->nla_len);
        search->attrs_len += MNL_ALIGN(attr->nla_len);
    }
    search->anonymous_set = mentions_anonymous(search->attrs, search->attrs_len);
    return 0;
}

static int each_rule(const struct nlmsghdr *nlh, void *data) {
    struct rule_search *search = data;
    const struct nfgenmsg *gen = mnl_nlmsg_get_payload(nlh);
    const struct nlattr *attr;
    char table[256] = "", chain[256] = "";
    uint64_t handle = 0;
    if (search->attrs || nlh->nlmsg_type != nft_type(NFT_MSG_NEWRULE) || mnl_nlmsg_get_payload_len(nlh) < sizeof *gen ||
        gen->nfgen_family != search->step->nft_family)
        return 0;
    mnl_attr_for_each(attr, nlh, sizeof *gen) {
        if (mnl_attr_get_type(attr) == NFTA_RULE_TABLE)
            rtnl_attr_text(attr, table, sizeof table);
        if (mnl_attr_get_type(attr) == NFTA_RULE_CHAIN)
            rtnl_attr_text(attr, chain, sizeof chain);
        if (mnl_attr_get_type(attr) == NFTA_RULE_HANDLE)
            handle = attr_u64(attr);
    }
    if (strcmp(table, search->step->nft_table) != 0 || strcmp(chain, search->step->nft_chain) != 0)
        return 0;
    if (handle == search->step->handle) {
        search->previous = search->last;
        return keep_rule(nlh, search);
    }
    search->last = handle;
    search->index++;
    return 0;
}

static void restart_rules(void *data) {
    struct rule_search *search = data;
    free(search->attrs);
    *search = (struct rule_search){.step = search->step};
}

static int find_rule(struct repair *repair, const struct repair_step *step, struct rule_search *search,
                     struct err *err) {
    char buffer[1024];
    *search = (struct rule_search){.step = step};
    struct nlmsghdr *nlh = begin_message(buffer, nft_type(NFT_MSG_GETRULE), step->nft_family, NLM_F_DUMP, 1, 0);
    mnl_attr_put_strz(nlh, NFTA_RULE_TABLE, step->nft_table);
    mnl_attr_put_strz(nlh, NFTA_RULE_CHAIN, step->nft_chain);
    struct collect_dump dump = {.nsfd = repair->nsfd,
                                .protocol = NETLINK_NETFILTER,
                                .each = each_rule,
                                .restart = restart_rules,
                                .data = search};
    int r = collect_dump_run(&dump, nlh);
    return r < 0 && r != -ENOENT ? err_sys(err, -r, "repair.failed", "read nftables' rules") : 0;
}

/* Names that nft's grammar takes as they are; the rest is not handed to it. */
static bool is_plain(const char *name) {
    for (const char *at = name; *at; at++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./", *at))
            return false;
    return *name && strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_", *name);
}

/* The text of the n-th rule of a listing, its lines joined (long sets are broken). */
static void rule_of_listing(const char *listing, uint32_t index, struct strbuf *ret) {
    int depth = 0;
    uint32_t at = 0;
    for (const char *line = listing; *line; line += strcspn(line, "\n"), line += *line == '\n') {
        size_t len = strcspn(line, "\n");
        const char *text = line + strspn(line, " \t");
        int before = depth;
        for (size_t i = 0; i < len; i++)
            depth += line[i] == '{' ? 1 : line[i] == '}' ? -1 : 0;
        bool is_rule_line =
            before >= 2 && !str_starts(text, "type ") && !str_starts(text, "policy ") && *text != '}' && *text != '\n';
        if (before == 2 && depth < 2)
            continue;
        if (is_rule_line && at == index)
            strbuf_addf(ret, "%s%.*s", ret->len ? " " : "", (int)(line + len - text), text);
        else if (before > 2 && at == index)
            strbuf_add(ret, text, (size_t)(line + len - text));
        if (before >= 2 && depth == 2 && (is_rule_line || before > 2))
            at++;
    }
}

/* nft list chain FAMILY TABLE CHAIN */
static void text_of_rule(struct repair *repair, const struct repair_step *step, uint32_t index, struct strbuf *ret) {
    char command[256];
    struct strbuf listing = {.max = NFT_OUTPUT_MAX};
    if (is_plain(step->nft_table) && is_plain(step->nft_chain)) {
        snprintf(command, sizeof command, "list chain %s %s %s", family_name(step->nft_family), step->nft_table,
                 step->nft_chain);
        if (nft_run(repair->nsfd, command, &listing, NULL) == 0 && listing.data && !listing.truncated)
            rule_of_listing(listing.data, index, ret);
    }
    strbuf_free(&listing);
}

/* raw: "PREVIOUS HEX\nTEXT" */
static int rule_read(struct repair *repair, const struct repair_step *step, char *value, char **raw, struct err *err) {
    struct rule_search search;
    struct strbuf text = {.max = RAW_MAX};
    int r = find_rule(repair, step, &search, err);
    if (r < 0)
        return r;
    snprintf(value, REPAIR_VALUE, "absent");
    if (search.attrs) {
        text_of_rule(repair, step, search.index, &text);
        snprintf(value, REPAIR_VALUE, "%s", text.data && *text.data ? text.data : "present");
    }
    if (search.attrs && raw) {
        _cleanup_free_ char *hex = search.anonymous_set ? strdup("-") : repair_hex(search.attrs, search.attrs_len);
        if (!hex ||
            asprintf(raw, "%llu %s\n%s", (unsigned long long)search.previous, hex, text.data ? text.data : "") < 0)
            r = err_sys(err, ENOMEM, "repair.failed", "keep a rule");
    }
    free(search.attrs);
    strbuf_free(&text);
    return r;
}

/* nft delete rule FAMILY TABLE CHAIN handle HANDLE */
static int rule_apply(struct repair *repair, const struct repair_step *step, struct err *err) {
    char buffer[2048];
    struct nlmsghdr *nlh = begin_message(buffer, nft_type(NFT_MSG_DELRULE), step->nft_family, NLM_F_ACK, 2, 0);
    mnl_attr_put_strz(nlh, NFTA_RULE_TABLE, step->nft_table);
    mnl_attr_put_strz(nlh, NFTA_RULE_CHAIN, step->nft_chain);
    mnl_attr_put_u64(nlh, NFTA_RULE_HANDLE, htobe64(step->handle));
    int r = commit(repair, nlh, err);
    return r == -ENOENT ? err_set(err, ENOENT, "repair.gone", "there is no such rule any more") : r;
}

/* nft add rule FAMILY TABLE CHAIN position PREVIOUS …; nft insert rule … where it was the first */
static int restore_exactly(struct repair *repair, const struct repair_step *step, uint64_t previous, const char *hex,
                           struct err *err) {
    size_t len = 0;
    _cleanup_free_ char *attrs = repair_unhex(hex, &len), *buffer = malloc(MESSAGE_MAX);
    if (!attrs || !buffer || len > MESSAGE_MAX - 1024)
        return err_set(err, EBADMSG, "repair.irreversible", "the journal does not hold the rule");
    struct nlmsghdr *nlh = begin_message(buffer, nft_type(NFT_MSG_NEWRULE), step->nft_family,
                                         (uint16_t)(NLM_F_CREATE | NLM_F_ACK | (previous ? NLM_F_APPEND : 0)), 2, 0);
    mnl_attr_put_strz(nlh, NFTA_RULE_TABLE, step->nft_table);
    mnl_attr_put_strz(nlh, NFTA_RULE_CHAIN, step->nft_chain);
    if (previous)
        mnl_attr_put_u64(nlh, NFTA_RULE_POSITION, htobe64(previous));
    memcpy(mnl_nlmsg_get_payload_tail(nlh), attrs, len);
    nlh->nlmsg_len += (uint32_t)len;
    return commit(repair, nlh, err);
}

static int restore_by_text(struct repair *repair, const struct repair_step *step, uint64_t previous, const char *text,
                           struct err *err) {
    struct strbuf command = {.max = RAW_MAX};
    if (!*text || strpbrk(text, ";\n#") || !is_plain(step->nft_table) || !is_plain(step->nft_chain))
        return err_set(err, ENOTSUP, "repair.irreversible", "the rule has a set of its own and cannot be put back");
    strbuf_addf(&command, "%s rule %s %s %s ", previous ? "add" : "insert", family_name(step->nft_family),
                step->nft_table, step->nft_chain);
    if (previous)
        strbuf_addf(&command, "position %llu ", (unsigned long long)previous);
    strbuf_addf(&command, "%s", text);
    int r = command.truncated || !command.data ? -E2BIG : nft_run(repair->nsfd, command.data, NULL, err);
    strbuf_free(&command);
    return r;
}

/* The rule has a new handle afterwards: the kernel gives no old one. */
static int rule_restore(struct repair *repair, const struct repair_step *step, const char *before, const char *raw,
                        struct err *err) {
    struct rule_search search;
    if (strcmp(before, "absent") == 0)
        return 0;
    int r = find_rule(repair, step, &search, err);
    bool is_there = search.attrs != NULL; /* it was never taken away: only its counter is another */
    free(search.attrs);
    if (r < 0 || is_there)
        return r;
    char *hex;
    uint64_t previous = raw ? strtoull(raw, &hex, 10) : 0;
    if (!raw || *hex != ' ')
        return err_set(err, EBADMSG, "repair.irreversible", "the journal does not hold the rule");
    hex++;
    const char *text = strchr(hex, '\n');
    _cleanup_free_ char *digits = strndup(hex, text ? (size_t)(text - hex) : strlen(hex));
    if (!digits)
        return err_sys(err, ENOMEM, "repair.failed", "put a rule back");
    if (strcmp(digits, "-") != 0)
        return restore_exactly(repair, step, previous, digits, err);
    return restore_by_text(repair, step, previous, text ? text + 1 : "", err);
}

const struct repair_op repair_op_nft_rule = {rule_read, rule_apply, rule_restore};

/* --- a policy --- */

struct chain_search {
    const struct repair_step *step;
    int64_t policy; /* -1: no such base chain */
};

static int each_chain(const struct nlmsghdr *nlh, void *data) {
    struct chain_search *search = data;
    const struct nfgenmsg *gen = mnl_nlmsg_get_payload(nlh);
    const struct nlattr *attr;
    char table[256] = "", chain[256] = "";
    int64_t policy = -1;
    if (nlh->nlmsg_type != nft_type(NFT_MSG_NEWCHAIN) || mnl_nlmsg_get_payload_len(nlh) < sizeof *gen ||
        gen->nfgen_family != search->step->nft_family)
        return 0;
    mnl_attr_for_each(attr, nlh, sizeof *gen) {
        if (mnl_attr_get_type(attr) == NFTA_CHAIN_TABLE)
            rtnl_attr_text(attr, table, sizeof table);
        if (mnl_attr_get_type(attr) == NFTA_CHAIN_NAME)
            rtnl_attr_text(attr, chain, sizeof chain);
        if (mnl_attr_get_type(attr) == NFTA_CHAIN_POLICY)
            policy = ntohl(rtnl_attr_u32(attr));
    }
    if (strcmp(table, search->step->nft_table) == 0 && strcmp(chain, search->step->nft_chain) == 0)
        search->policy = policy;
    return 0;
}

static int policy_read(struct repair *repair, const struct repair_step *step, char *value, char **raw,
                       struct err *err) {
    char buffer[256];
    struct chain_search search = {.step = step, .policy = -1};
    struct nlmsghdr *nlh = begin_message(buffer, nft_type(NFT_MSG_GETCHAIN), step->nft_family, NLM_F_DUMP, 1, 0);
    struct collect_dump dump = {
        .nsfd = repair->nsfd, .protocol = NETLINK_NETFILTER, .each = each_chain, .data = &search};
    int r = collect_dump_run(&dump, nlh);
    if (r < 0)
        return err_sys(err, -r, "repair.failed", "read nftables' chains");
    if (search.policy < 0)
        return err_set(err, ENOENT, "repair.gone", "there is no such base chain");
    snprintf(value, REPAIR_VALUE, "%s", search.policy == NF_DROP ? "drop" : "accept");
    return 0;
}

/* nft chain FAMILY TABLE CHAIN '{ policy accept; }' */
static int policy_set(struct repair *repair, const struct repair_step *step, const char *policy, struct err *err) {
    char buffer[2048];
    if (strcmp(policy, "drop") != 0 && strcmp(policy, "accept") != 0)
        return err_set(err, EINVAL, "repair.failed", "\"%s\" is no policy", policy);
    struct nlmsghdr *nlh = begin_message(buffer, nft_type(NFT_MSG_NEWCHAIN), step->nft_family, NLM_F_ACK, 2, 0);
    mnl_attr_put_strz(nlh, NFTA_CHAIN_TABLE, step->nft_table);
    mnl_attr_put_strz(nlh, NFTA_CHAIN_NAME, step->nft_chain);
    mnl_attr_put_u32(nlh, NFTA_CHAIN_POLICY, htonl(*policy == 'd' ? NF_DROP : NF_ACCEPT));
    return commit(repair, nlh, err);
}

static int policy_apply(struct repair *repair, const struct repair_step *step, struct err *err) {
    return policy_set(repair, step, step->text, err);
}

static int policy_restore(struct repair *repair, const struct repair_step *step, const char *before, const char *raw,
                          struct err *err) {
    return policy_set(repair, step, before, err);
}

const struct repair_op repair_op_nft_policy = {policy_read, policy_apply, policy_restore};

/* --- a masquerade --- */

#define PRESENT "present"
#define ABSENT "absent"

void repair_masquerade_table(const struct repair_step *step, char ret_name[REPAIR_NAME]) {
    snprintf(ret_name, REPAIR_NAME, "mc-doctor-%08x-%u-%s", step->prefix.address & net_mask(step->prefix.length),
             step->prefix.length, step->dev);
}

void repair_masquerade_commands(const struct repair_step *step, struct strbuf *ret) {
    char table[REPAIR_NAME], shown[4 * REPAIR_NAME], dev[4 * REPAIR_DEVICE], ip[NET_IP_TEXT];
    repair_masquerade_table(step, table);
    str_escape(table, strlen(table), shown, sizeof shown);
    str_escape(step->dev, strlen(step->dev), dev, sizeof dev);
    net_format_ip(step->prefix.address & net_mask(step->prefix.length), ip);
    strbuf_addf(ret, "add table ip %s\n", shown);
    strbuf_addf(ret, "add chain ip %s out { type nat hook postrouting priority 100; }\n", shown);
    strbuf_addf(ret, "add rule ip %s out ip saddr %s/%u oifname \"%s\" masquerade\n", shown, ip, step->prefix.length,
                dev);
}

static int masquerade_check(const struct repair_step *step, char table[REPAIR_NAME], struct err *err) {
    repair_masquerade_table(step, table);
    if (is_plain(table) && *step->dev)
        return 0;
    return err_set(err, ENOTSUP, "repair.unsupported", "nft does not take the name of the device");
}

static int masquerade_read(struct repair *repair, const struct repair_step *step, char *value, char **raw,
                           struct err *err) {
    char table[REPAIR_NAME], command[REPAIR_NAME + 32];
    int r = masquerade_check(step, table, err);
    if (r < 0)
        return r;
    r = nft_check(repair->nsfd);
    if (r < 0)
        return err_sys(err, -r, "repair.failed", "speak to nftables");
    snprintf(command, sizeof command, "list table ip %s", table);
    snprintf(value, REPAIR_VALUE, "%s", nft_run(repair->nsfd, command, NULL, NULL) == 0 ? PRESENT : ABSENT);
    return 0;
}

static int masquerade_apply(struct repair *repair, const struct repair_step *step, struct err *err) {
    char table[REPAIR_NAME], now[REPAIR_VALUE];
    struct strbuf commands = {.max = 1024};
    int r = masquerade_check(step, table, err);
    if (r == 0)
        r = masquerade_read(repair, step, now, NULL, err);
    if (r < 0 || strcmp(now, PRESENT) == 0)
        return r;
    repair_masquerade_commands(step, &commands);
    r = commands.data ? nft_run(repair->nsfd, commands.data, NULL, err) : -ENOMEM;
    strbuf_free(&commands);
    return r;
}

static int masquerade_restore(struct repair *repair, const struct repair_step *step, const char *before,
                              const char *raw, struct err *err) {
    char table[REPAIR_NAME], command[REPAIR_NAME + 32];
    int r = masquerade_check(step, table, err);
    if (r < 0 || strcmp(before, PRESENT) == 0)
        return r;
    snprintf(command, sizeof command, "delete table ip %s", table);
    return nft_run(repair->nsfd, command, NULL, err);
}

const struct repair_op repair_op_masquerade = {masquerade_read, masquerade_apply, masquerade_restore};

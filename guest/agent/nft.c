/* The guest's firewall: the nftables rules as the kernel has them, and whether the older tables are in use. A rule is
 * told as its expressions, the way the kernel works them off, so that whoever judges them needs no nft in the guest.
 *
 * Source: include/uapi/linux/netfilter/nf_tables.h */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nf_tables_compat.h>
#include <linux/netfilter/nfnetlink.h>
#include <stdio.h>
#include <string.h>

#include "agent.h"
#include "nl.h"

#define CHAINS_MAX 64
#define RULES_MAX 128
#define EXPRESSIONS_MAX 16

struct facts {
    json_t *items;
    size_t max, more;
};

static void add(struct facts *facts, json_t *item) {
    if (json_array_size(facts->items) < facts->max) {
        json_array_append_new(facts->items, item);
        return;
    }
    json_decref(item);
    facts->more++;
}

static const char *family_name(uint8_t family) {
    switch (family) {
    case NFPROTO_INET:
        return "inet";
    case NFPROTO_IPV4:
        return "ip";
    case NFPROTO_IPV6:
        return "ip6";
    case NFPROTO_ARP:
        return "arp";
    case NFPROTO_NETDEV:
        return "netdev";
    case NFPROTO_BRIDGE:
        return "bridge";
    default:
        return "other";
    }
}

static const char *verdict_name(int32_t code) {
    switch (code) {
    case NF_DROP:
        return "drop";
    case NF_ACCEPT:
        return "accept";
    case NF_QUEUE:
        return "queue";
    case NFT_JUMP:
        return "jump";
    case NFT_GOTO:
        return "goto";
    case NFT_RETURN:
        return "return";
    case NFT_CONTINUE:
        return "continue";
    default:
        return "other";
    }
}

static const char *cmp_name(uint32_t op) {
    static const char *const names[] = {"==", "!=", "<", "<=", ">", ">="};
    return op < sizeof names / sizeof *names ? names[op] : "?";
}

static const char *base_name(uint32_t base) {
    static const char *const names[] = {"link", "network", "transport", "inner"};
    return base < sizeof names / sizeof *names ? names[base] : "?";
}

static void hex_of(struct nl_attrs data, char *ret, size_t size) {
    size_t len = 0;
    const void *value = nl_find(data, NFTA_DATA_VALUE, 0, &len);
    if (!value)
        len = 0;
    str_hex(value ? value : "", len < (size - 1) / 2 ? len : (size - 1) / 2, ret);
}

static json_t *verdict_json(struct nl_attrs data) {
    struct nl_attrs verdict = nl_nest(data, NFTA_DATA_VERDICT);
    return json_pack("{s:s, s:s}", "verdict", verdict_name((int32_t)nl_be32(verdict, NFTA_VERDICT_CODE)), "chain",
                     nl_text(verdict, NFTA_VERDICT_CHAIN));
}

/* Which of the kernel's registers (enum nft_registers) it reads and writes. */
static void add_registers(json_t *json, struct nl_attrs data, uint16_t source, uint16_t destination) {
    if (source && nl_find(data, source, 4, NULL))
        json_object_set_new(json, "sreg", json_integer(nl_be32(data, source)));
    if (destination && nl_find(data, destination, 4, NULL))
        json_object_set_new(json, "dreg", json_integer(nl_be32(data, destination)));
}

static void add_hex(json_t *json, const char *name, struct nl_attrs data) {
    char hex[65];
    hex_of(data, hex, sizeof hex);
    json_object_set_new(json, name, json_string(hex));
}

static json_t *expression_json(const char *name, struct nl_attrs data) {
    json_t *json = json_object();
    if (strcmp(name, "payload") == 0) {
        json_object_set_new(json, "base", json_string(base_name(nl_be32(data, NFTA_PAYLOAD_BASE))));
        json_object_set_new(json, "offset", json_integer(nl_be32(data, NFTA_PAYLOAD_OFFSET)));
        json_object_set_new(json, "len", json_integer(nl_be32(data, NFTA_PAYLOAD_LEN)));
        add_registers(json, data, NFTA_PAYLOAD_SREG, NFTA_PAYLOAD_DREG);
    } else if (strcmp(name, "cmp") == 0) {
        json_object_set_new(json, "op", json_string(cmp_name(nl_be32(data, NFTA_CMP_OP))));
        add_hex(json, "value", nl_nest(data, NFTA_CMP_DATA));
        add_registers(json, data, NFTA_CMP_SREG, 0);
    } else if (strcmp(name, "range") == 0) {
        json_object_set_new(json, "op", json_string(cmp_name(nl_be32(data, NFTA_RANGE_OP))));
        add_hex(json, "from", nl_nest(data, NFTA_RANGE_FROM_DATA));
        add_hex(json, "to", nl_nest(data, NFTA_RANGE_TO_DATA));
        add_registers(json, data, NFTA_RANGE_SREG, 0);
    } else if (strcmp(name, "bitwise") == 0) {
        add_hex(json, "mask", nl_nest(data, NFTA_BITWISE_MASK));
        add_hex(json, "xor", nl_nest(data, NFTA_BITWISE_XOR));
        add_registers(json, data, NFTA_BITWISE_SREG, NFTA_BITWISE_DREG);
    } else if (strcmp(name, "meta") == 0) {
        json_object_set_new(json, "key", json_integer(nl_be32(data, NFTA_META_KEY)));
        add_registers(json, data, NFTA_META_SREG, NFTA_META_DREG);
    } else if (strcmp(name, "ct") == 0) {
        json_object_set_new(json, "key", json_integer(nl_be32(data, NFTA_CT_KEY)));
        add_registers(json, data, NFTA_CT_SREG, NFTA_CT_DREG);
    } else if (strcmp(name, "counter") == 0) {
        json_object_set_new(json, "packets", json_integer((json_int_t)nl_be64(data, NFTA_COUNTER_PACKETS)));
        json_object_set_new(json, "bytes", json_integer((json_int_t)nl_be64(data, NFTA_COUNTER_BYTES)));
    } else if (strcmp(name, "lookup") == 0) {
        json_object_set_new(json, "set", json_string(nl_text(data, NFTA_LOOKUP_SET)));
        add_registers(json, data, NFTA_LOOKUP_SREG, NFTA_LOOKUP_DREG);
    } else if (strcmp(name, "reject") == 0) {
        json_object_set_new(json, "verdict", json_string("reject"));
    } else if (strcmp(name, "match") == 0) {
        json_object_set_new(json, "name", json_string(nl_text(data, NFTA_MATCH_NAME)));
    } else if (strcmp(name, "target") == 0) {
        json_object_set_new(json, "name", json_string(nl_text(data, NFTA_TARGET_NAME)));
    } else if (strcmp(name, "immediate") == 0) {
        /* A verdict, or a value for a register. */
        if (nl_nest(nl_nest(data, NFTA_IMMEDIATE_DATA), NFTA_DATA_VERDICT).len > 0) {
            json_decref(json);
            return verdict_json(nl_nest(data, NFTA_IMMEDIATE_DATA));
        }
        add_hex(json, "value", nl_nest(data, NFTA_IMMEDIATE_DATA));
        add_registers(json, data, 0, NFTA_IMMEDIATE_DREG);
    }
    return json;
}

static json_t *expressions_json(struct nl_attrs list) {
    json_t *all = json_array();
    uint16_t type;
    const void *data;
    size_t len;
    while (json_array_size(all) < EXPRESSIONS_MAX && nl_next(&list, &type, &data, &len)) {
        struct nl_attrs expression = {data, len};
        const char *name = nl_text(expression, NFTA_EXPR_NAME);
        json_t *json = expression_json(name, nl_nest(expression, NFTA_EXPR_DATA));
        json_object_set_new(json, "expr", json_string(name));
        json_array_append_new(all, json);
    }
    return all;
}

/* Of a netdev chain, or an ingress chain of inet: one, or several in a nest. */
static json_t *devices_json(struct nl_attrs hook) {
    json_t *names = json_array();
    struct nl_attrs list = nl_nest(hook, NFTA_HOOK_DEVS);
    uint16_t type;
    const void *data;
    size_t len;
    const char *one = nl_text(hook, NFTA_HOOK_DEV);
    if (*one)
        json_array_append_new(names, json_string(one));
    while (json_array_size(names) < EXPRESSIONS_MAX && nl_next(&list, &type, &data, &len))
        if (len > 0 && memchr(data, 0, len))
            json_array_append_new(names, json_string(data));
    return names;
}

/* nft list chains */
static void each_chain(const struct nlmsghdr *m, void *data) {
    const struct nfgenmsg *info = NLMSG_DATA(m);
    struct nl_attrs attrs = nl_attrs_of(m, sizeof *info);
    struct nl_attrs hook = nl_nest(attrs, NFTA_CHAIN_HOOK);
    if ((m->nlmsg_type & 0xff) != NFT_MSG_NEWCHAIN)
        return;
    json_t *chain = json_pack("{s:s, s:s, s:s}", "family", family_name(info->nfgen_family), "table",
                              nl_text(attrs, NFTA_CHAIN_TABLE), "name", nl_text(attrs, NFTA_CHAIN_NAME));
    if (hook.len > 0) {
        json_object_set_new(chain, "hook", json_integer(nl_be32(hook, NFTA_HOOK_HOOKNUM)));
        json_object_set_new(chain, "priority", json_integer((int32_t)nl_be32(hook, NFTA_HOOK_PRIORITY)));
        json_object_set_new(chain, "policy", json_string(verdict_name((int32_t)nl_be32(attrs, NFTA_CHAIN_POLICY))));
        if (nl_find(hook, NFTA_HOOK_DEV, 1, NULL) || nl_find(hook, NFTA_HOOK_DEVS, 1, NULL))
            json_object_set_new(chain, "devices", devices_json(hook));
        json_object_set_new(chain, "type", json_string(nl_text(attrs, NFTA_CHAIN_TYPE)));
    }
    add(data, chain);
}

/* nft -a list ruleset */
static void each_rule(const struct nlmsghdr *m, void *data) {
    const struct nfgenmsg *info = NLMSG_DATA(m);
    struct nl_attrs attrs = nl_attrs_of(m, sizeof *info);
    if ((m->nlmsg_type & 0xff) != NFT_MSG_NEWRULE)
        return;
    add(data, json_pack("{s:s, s:s, s:s, s:I, s:o}", "family", family_name(info->nfgen_family), "table",
                        nl_text(attrs, NFTA_RULE_TABLE), "chain", nl_text(attrs, NFTA_RULE_CHAIN), "handle",
                        (json_int_t)nl_be64(attrs, NFTA_RULE_HANDLE), "expressions",
                        expressions_json(nl_nest(attrs, NFTA_RULE_EXPRESSIONS))));
}

static int dump(uint16_t type, nl_each *each, struct facts *facts) {
    struct nl_msg msg;
    struct nfgenmsg *info = nl_begin(&msg, (uint16_t)(NFNL_SUBSYS_NFTABLES << 8 | type), 0, sizeof *info);
    *info = (struct nfgenmsg){.nfgen_family = NFPROTO_UNSPEC, .version = NFNETLINK_V0};
    return nl_dump(NETLINK_NETFILTER, &msg, each, facts);
}

json_t *net_facts_firewall(void) {
    struct facts chains = {.items = json_array(), .max = CHAINS_MAX};
    struct facts rules = {.items = json_array(), .max = RULES_MAX};
    int r = dump(NFT_MSG_GETCHAIN, each_chain, &chains);
    if (r == 0)
        r = dump(NFT_MSG_GETRULE, each_rule, &rules);
    /* Nobody has loaded nf_tables: then there are no rules. */
    if (r == -EPROTONOSUPPORT)
        r = 0;
    return json_pack("{s:o, s:o, s:I, s:o, s:o, s:o}", "chains", chains.items, "rules", rules.items, "more",
                     (json_int_t)chains.more + (json_int_t)rules.more, "error",
                     r < 0 ? json_string(strerror(-r)) : json_null(), "iptables_legacy",
                     text_of_file("/proc/net/ip_tables_names", 256), "ip6tables_legacy",
                     text_of_file("/proc/net/ip6_tables_names", 256));
}

/* nft -a list ruleset, over libnftnl: the expressions themselves, so that rules/ can tell whether a rule takes the
 * packet under test. */
#include <arpa/inet.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <libnftnl/chain.h>
#include <libnftnl/common.h>
#include <libnftnl/expr.h>
#include <libnftnl/rule.h>
#include <libnftnl/set.h>
#include <libnftnl/table.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "doctor/collect/collect.h"
#include "doctor/trace/trace.h"
#include "netlink/nft.h"

#define SETS_READ_MAX 4096

struct table {
    char name[SNAP_TEXT];
    uint8_t family;
    uint32_t flags;
};

struct reading {
    struct snapshot *s;
    struct table *tables;
    uint32_t tables_count, tables_cap;
    bool cut;                 /* a hard limit was met */
    struct snap_nft_set *set; /* whose elements are being read */
};

static bool is_ours(const char *table) {
    return str_starts(table, TRACE_TABLE_PREFIX);
}

static void copy_attr(void *dst, size_t size, const void *src, uint32_t len) {
    if (src)
        memcpy(dst, src, len < size ? len : size);
}

/* --- tables --- */

static int take_table(const struct nlmsghdr *nlh, void *data) {
    struct reading *reading = data;
    struct nftnl_table *t = nftnl_table_alloc();
    if (!t)
        return -ENOMEM;
    if (nftnl_table_nlmsg_parse(nlh, t) == 0) {
        struct table *table =
            snapshot_push(&reading->tables, &reading->tables_count, &reading->tables_cap, sizeof *table, 65536);
        const char *name = nftnl_table_get_str(t, NFTNL_TABLE_NAME);
        if (table) {
            str_copy(table->name, sizeof table->name, name ? name : "");
            table->family = (uint8_t)nftnl_table_get_u32(t, NFTNL_TABLE_FAMILY);
            table->flags = nftnl_table_get_u32(t, NFTNL_TABLE_FLAGS);
        }
    }
    nftnl_table_free(t);
    return 0;
}

static void forget_tables(void *data) {
    ((struct reading *)data)->tables_count = 0;
}

static uint32_t table_flags(const struct reading *reading, uint8_t family, const char *name) {
    for (uint32_t i = 0; i < reading->tables_count; i++)
        if (reading->tables[i].family == family && strcmp(reading->tables[i].name, name) == 0)
            return reading->tables[i].flags;
    return 0;
}

/* --- chains --- */

static void read_devices(const struct nftnl_chain *c, struct snap_nft_chain *chain) {
    const char *const *devices = nftnl_chain_get(c, NFTNL_CHAIN_DEVICES);
    const char *device = nftnl_chain_get_str(c, NFTNL_CHAIN_DEV);
    struct strbuf text = {.max = sizeof chain->devices - 1};
    for (int i = 0; devices && devices[i]; i++)
        strbuf_addf(&text, "%s%s", i ? " " : "", devices[i]);
    if (!devices && device)
        strbuf_addf(&text, "%s", device);
    str_copy(chain->devices, sizeof chain->devices, text.data ? text.data : "");
    strbuf_free(&text);
}

static void read_chain(const struct nftnl_chain *c, struct snap_nft_chain *chain, uint32_t flags) {
    const char *type = nftnl_chain_get_str(c, NFTNL_CHAIN_TYPE);
    chain->handle = nftnl_chain_get_u64(c, NFTNL_CHAIN_HANDLE);
    chain->base = nftnl_chain_is_set(c, NFTNL_CHAIN_HOOKNUM);
    chain->dormant = (flags & NFT_TABLE_F_DORMANT) != 0;
    chain->owned = (flags & 2) != 0; /* NFT_TABLE_F_OWNER */
    chain->policy = NF_ACCEPT;
    if (!chain->base)
        return;
    chain->hook = (uint8_t)nftnl_chain_get_u32(c, NFTNL_CHAIN_HOOKNUM);
    chain->priority = nftnl_chain_get_s32(c, NFTNL_CHAIN_PRIO);
    if (nftnl_chain_is_set(c, NFTNL_CHAIN_POLICY))
        chain->policy = (uint8_t)nftnl_chain_get_u32(c, NFTNL_CHAIN_POLICY);
    chain->counted = nftnl_chain_is_set(c, NFTNL_CHAIN_PACKETS);
    chain->packets = nftnl_chain_get_u64(c, NFTNL_CHAIN_PACKETS);
    chain->bytes = nftnl_chain_get_u64(c, NFTNL_CHAIN_BYTES);
    str_copy(chain->type, sizeof chain->type, type ? type : "");
    read_devices(c, chain);
}

static int take_chain(const struct nlmsghdr *nlh, void *data) {
    struct reading *reading = data;
    struct nftnl_chain *c = nftnl_chain_alloc();
    if (!c)
        return -ENOMEM;
    if (nftnl_chain_nlmsg_parse(nlh, c) == 0) {
        const char *table = nftnl_chain_get_str(c, NFTNL_CHAIN_TABLE), *name = nftnl_chain_get_str(c, NFTNL_CHAIN_NAME);
        struct snap_nft_chain *chain =
            !table || !name || is_ours(table) ? NULL : SNAP_PUSH(reading->s, chains, SNAP_ROWS_MAX);
        if (chain) {
            chain->family = (uint8_t)nftnl_chain_get_u32(c, NFTNL_CHAIN_FAMILY);
            str_copy(chain->table, sizeof chain->table, table);
            str_copy(chain->name, sizeof chain->name, name);
            read_chain(c, chain, table_flags(reading, chain->family, table));
        }
    }
    nftnl_chain_free(c);
    return 0;
}

static void forget_chains(void *data) {
    ((struct reading *)data)->s->chains_count = 0;
}

/* --- expressions --- */

/* The first four registers are of 16 bytes, those from NFT_REG32_00 on of 4; here all count in units of 4. */
static uint8_t reg(uint32_t number) {
    if (number >= NFT_REG_1 && number <= NFT_REG_4)
        return (uint8_t)((number - NFT_REG_1) * 4);
    return number >= NFT_REG32_00 && number <= NFT_REG32_15 ? (uint8_t)(number - NFT_REG32_00) : 0;
}

static uint32_t u32(const struct nftnl_expr *e, uint16_t type) {
    return nftnl_expr_is_set(e, type) ? nftnl_expr_get_u32(e, type) : 0;
}

static uint8_t copy_data(const struct nftnl_expr *e, uint16_t type, uint8_t dst[16]) {
    uint32_t len = 0;
    const void *data = nftnl_expr_get(e, type, &len);
    copy_attr(dst, 16, data, len);
    return (uint8_t)(len > 16 ? 16 : len);
}

static void read_meta(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    x->op = SNAP_NFT_META;
    x->key = (int32_t)u32(e, NFTNL_EXPR_META_KEY);
    x->set = nftnl_expr_is_set(e, NFTNL_EXPR_META_SREG);
    x->dreg = reg(u32(e, NFTNL_EXPR_META_DREG));
    x->sreg = reg(u32(e, NFTNL_EXPR_META_SREG));
}

static void read_payload(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    x->op = SNAP_NFT_PAYLOAD;
    x->set = nftnl_expr_is_set(e, NFTNL_EXPR_PAYLOAD_SREG);
    x->dreg = reg(u32(e, NFTNL_EXPR_PAYLOAD_DREG));
    x->base = (uint8_t)u32(e, NFTNL_EXPR_PAYLOAD_BASE);
    x->offset = (uint16_t)u32(e, NFTNL_EXPR_PAYLOAD_OFFSET);
    uint32_t len = u32(e, NFTNL_EXPR_PAYLOAD_LEN);
    x->len = (uint8_t)(len > 32 ? 32 : len);
}

static void read_compare(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    x->op = SNAP_NFT_CMP;
    x->sreg = reg(u32(e, NFTNL_EXPR_CMP_SREG));
    x->cmp = (uint8_t)u32(e, NFTNL_EXPR_CMP_OP);
    x->len = copy_data(e, NFTNL_EXPR_CMP_DATA, x->data);
}

static void read_bitwise(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    x->op = u32(e, NFTNL_EXPR_BITWISE_OP) == NFT_BITWISE_BOOL ? SNAP_NFT_BITWISE : SNAP_NFT_OTHER;
    x->sreg = reg(u32(e, NFTNL_EXPR_BITWISE_SREG));
    x->dreg = reg(u32(e, NFTNL_EXPR_BITWISE_DREG));
    copy_data(e, NFTNL_EXPR_BITWISE_MASK, x->data);
    copy_data(e, NFTNL_EXPR_BITWISE_XOR, x->data2);
    uint32_t len = u32(e, NFTNL_EXPR_BITWISE_LEN);
    x->len = (uint8_t)(len > 16 ? 16 : len);
    str_copy(x->name, sizeof x->name, "shift");
}

static void read_range(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    x->op = SNAP_NFT_RANGE;
    x->sreg = reg(u32(e, NFTNL_EXPR_RANGE_SREG));
    x->cmp = (uint8_t)u32(e, NFTNL_EXPR_RANGE_OP);
    x->len = copy_data(e, NFTNL_EXPR_RANGE_FROM_DATA, x->data);
    copy_data(e, NFTNL_EXPR_RANGE_TO_DATA, x->data2);
}

static void copy_name(const struct nftnl_expr *e, uint16_t type, struct snap_nft_expr *x) {
    const char *name = nftnl_expr_is_set(e, type) ? nftnl_expr_get_str(e, type) : NULL;
    str_copy(x->name, sizeof x->name, name ? name : "");
}

static void read_lookup(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    x->op = SNAP_NFT_LOOKUP;
    x->sreg = reg(u32(e, NFTNL_EXPR_LOOKUP_SREG));
    x->set = nftnl_expr_is_set(e, NFTNL_EXPR_LOOKUP_DREG);
    x->dreg = reg(u32(e, NFTNL_EXPR_LOOKUP_DREG));
    x->base = x->set && u32(e, NFTNL_EXPR_LOOKUP_DREG) == NFT_REG_VERDICT; /* a verdict map */
    x->cmp = (uint8_t)(u32(e, NFTNL_EXPR_LOOKUP_FLAGS) & NFT_LOOKUP_F_INV);
    copy_name(e, NFTNL_EXPR_LOOKUP_SET, x);
}

static void read_immediate(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    if (nftnl_expr_is_set(e, NFTNL_EXPR_IMM_VERDICT)) {
        x->op = SNAP_NFT_VERDICT;
        x->key = (int32_t)u32(e, NFTNL_EXPR_IMM_VERDICT);
        copy_name(e, NFTNL_EXPR_IMM_CHAIN, x);
        return;
    }
    x->op = SNAP_NFT_IMMEDIATE;
    x->dreg = reg(u32(e, NFTNL_EXPR_IMM_DREG));
    x->len = copy_data(e, NFTNL_EXPR_IMM_DATA, x->data);
}

static void read_counter(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    x->op = SNAP_NFT_COUNTER;
    x->value = nftnl_expr_get_u64(e, NFTNL_EXPR_CTR_PACKETS);
}

static void read_limit(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    x->op = SNAP_NFT_LIMIT;
    x->value = nftnl_expr_get_u64(e, NFTNL_EXPR_LIMIT_RATE);
    x->cmp = (uint8_t)(u32(e, NFTNL_EXPR_LIMIT_FLAGS) & 1);
}

static void read_quota(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    x->op = SNAP_NFT_QUOTA;
    x->value = nftnl_expr_get_u64(e, NFTNL_EXPR_QUOTA_BYTES);
    x->cmp = (uint8_t)(u32(e, NFTNL_EXPR_QUOTA_FLAGS) & 1);
}

static void read_ct(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    x->op = SNAP_NFT_CT;
    x->key = (int32_t)u32(e, NFTNL_EXPR_CT_KEY);
    x->set = nftnl_expr_is_set(e, NFTNL_EXPR_CT_SREG);
    x->dreg = reg(u32(e, NFTNL_EXPR_CT_DREG));
}

/* Two names of 16 bytes, each with a mask that is as long as what is compared, and two bytes of flags.
 * Source: include/uapi/linux/netfilter/xt_physdev.h */
static void read_physdev(const uint8_t *info, struct snap_nft_expr *x) {
    memcpy(x->data, info, 16);
    memcpy(x->data2, info + 32, 16);
    for (int i = 0; i < 16; i++) {
        x->len += info[16 + i] != 0;
        x->offset += info[48 + i] != 0;
    }
    x->key = info[64] << 8 | info[65];
    x->set = true;
}

static void read_match(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    x->op = SNAP_NFT_MATCH;
    copy_name(e, NFTNL_EXPR_MT_NAME, x);
    uint32_t len = 0;
    const void *info = nftnl_expr_get(e, NFTNL_EXPR_MT_INFO, &len);
    if (strcmp(x->name, "physdev") == 0 && info && len >= 66)
        read_physdev(info, x);
    else
        copy_attr(x->data, sizeof x->data, info, len);
    x->value = nftnl_expr_get_u32(e, NFTNL_EXPR_MT_REV);
}

static void read_target(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    x->op = SNAP_NFT_TARGET;
    copy_name(e, NFTNL_EXPR_TG_NAME, x);
    uint32_t len = 0;
    const void *info = nftnl_expr_get(e, NFTNL_EXPR_TG_INFO, &len);
    copy_attr(x->data, sizeof x->data, info, len);
}

static void read_nat(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    const char *name = nftnl_expr_get_str(e, NFTNL_EXPR_NAME);
    x->op = SNAP_NFT_NAT;
    str_copy(x->name, sizeof x->name, name);
    if (strcmp(name, "nat") == 0) {
        x->value = u32(e, NFTNL_EXPR_NAT_TYPE);
        str_copy(x->name, sizeof x->name, x->value == NFT_NAT_SNAT ? "snat" : "dnat");
    }
}

static void read_fib(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    x->op = SNAP_NFT_FIB;
    x->dreg = reg(u32(e, NFTNL_EXPR_FIB_DREG));
    x->key = (int32_t)u32(e, NFTNL_EXPR_FIB_RESULT);
    x->value = u32(e, NFTNL_EXPR_FIB_FLAGS);
}

static void read_byteorder(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    x->op = SNAP_NFT_BYTEORDER;
    x->sreg = reg(u32(e, NFTNL_EXPR_BYTEORDER_SREG));
    x->dreg = reg(u32(e, NFTNL_EXPR_BYTEORDER_DREG));
    uint32_t len = u32(e, NFTNL_EXPR_BYTEORDER_LEN);
    x->len = (uint8_t)(len > 16 ? 16 : len);
    x->base = (uint8_t)u32(e, NFTNL_EXPR_BYTEORDER_SIZE);
    x->key = (int32_t)u32(e, NFTNL_EXPR_BYTEORDER_OP);
}

static void read_reject(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    x->op = SNAP_NFT_REJECT;
}

static void read_note(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    x->op = SNAP_NFT_NOTE;
    str_copy(x->name, sizeof x->name, nftnl_expr_get_str(e, NFTNL_EXPR_NAME));
}

/* Adding to a set decides nothing, but for a limit or the like that stands there for each element. */
static void read_dynset(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    bool decides = nftnl_expr_is_set(e, NFTNL_EXPR_DYNSET_EXPR) || nftnl_expr_is_set(e, NFTNL_EXPR_DYNSET_EXPRESSIONS);
    x->op = decides ? SNAP_NFT_OTHER : SNAP_NFT_NOTE;
    str_copy(x->name, sizeof x->name, "dynset");
}

/* Of named objects, limits and quotas and the like decide; a counter does not. */
static void read_object(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    bool counts = u32(e, NFTNL_EXPR_OBJREF_IMM_TYPE) == NFT_OBJECT_COUNTER;
    x->op = counts ? SNAP_NFT_NOTE : SNAP_NFT_OTHER;
    str_copy(x->name, sizeof x->name, "object");
}

static void read_away(const struct nftnl_expr *e, struct snap_nft_expr *x) {
    x->op = SNAP_NFT_FWD;
    str_copy(x->name, sizeof x->name, nftnl_expr_get_str(e, NFTNL_EXPR_NAME));
}

static const struct {
    const char *name;
    void (*read)(const struct nftnl_expr *e, struct snap_nft_expr *x);
} expressions[] = {
    {"meta", read_meta},           {"payload", read_payload}, {"cmp", read_compare},
    {"bitwise", read_bitwise},     {"range", read_range},     {"lookup", read_lookup},
    {"immediate", read_immediate}, {"counter", read_counter}, {"limit", read_limit},
    {"quota", read_quota},         {"ct", read_ct},           {"match", read_match},
    {"target", read_target},       {"nat", read_nat},         {"masq", read_nat},
    {"redir", read_nat},           {"fib", read_fib},         {"byteorder", read_byteorder},
    {"reject", read_reject},       {"log", read_note},        {"notrack", read_note},
    {"last", read_note},           {"objref", read_object},   {"dynset", read_dynset},
    {"flow_offload", read_note},   {"dup", read_note},        {"fwd", read_away},
    {"queue", read_away},          {"tproxy", read_away},
};

static int take_expr(struct nftnl_expr *e, void *data) {
    struct reading *reading = data;
    struct snapshot *s = reading->s;
    struct snap_nft_rule *rule = &s->rules[s->rules_count - 1];
    struct snap_nft_expr *x = SNAP_PUSH(s, exprs, SNAP_EXPRS_MAX);
    const char *name = nftnl_expr_get_str(e, NFTNL_EXPR_NAME);
    if (!x) {
        reading->cut = true;
        return 0;
    }
    rule->exprs.count++;
    str_copy(x->name, sizeof x->name, name ? name : "");
    for (size_t i = 0; name && i < sizeof expressions / sizeof *expressions; i++)
        if (strcmp(expressions[i].name, name) == 0) {
            x->name[0] = '\0';
            expressions[i].read(e, x);
        }
    if (x->op == SNAP_NFT_COUNTER && !rule->counted) {
        rule->counted = true;
        rule->packets = x->value;
        rule->bytes = nftnl_expr_get_u64(e, NFTNL_EXPR_CTR_BYTES);
    }
    return 0;
}

static int take_rule(const struct nlmsghdr *nlh, void *data) {
    struct reading *reading = data;
    struct nftnl_rule *r = nftnl_rule_alloc();
    if (!r)
        return -ENOMEM;
    if (nftnl_rule_nlmsg_parse(nlh, r) == 0) {
        const char *table = nftnl_rule_get_str(r, NFTNL_RULE_TABLE), *chain = nftnl_rule_get_str(r, NFTNL_RULE_CHAIN);
        struct snap_nft_rule *rule =
            !table || !chain || is_ours(table) ? NULL : SNAP_PUSH(reading->s, rules, SNAP_RULES_MAX);
        if (rule) {
            rule->family = (uint8_t)nftnl_rule_get_u32(r, NFTNL_RULE_FAMILY);
            rule->handle = nftnl_rule_get_u64(r, NFTNL_RULE_HANDLE);
            rule->exprs.first = reading->s->exprs_count;
            str_copy(rule->table, sizeof rule->table, table);
            str_copy(rule->chain, sizeof rule->chain, chain);
            nftnl_expr_foreach(r, take_expr, reading);
        } else if (table && !is_ours(table)) {
            reading->cut = true;
        }
    }
    nftnl_rule_free(r);
    return 0;
}

static void forget_rules(void *data) {
    struct reading *reading = data;
    reading->s->rules_count = reading->s->exprs_count = 0;
}

/* --- sets --- */

static int take_set(const struct nlmsghdr *nlh, void *data) {
    struct reading *reading = data;
    struct nftnl_set *t = nftnl_set_alloc();
    if (!t)
        return -ENOMEM;
    if (nftnl_set_nlmsg_parse(nlh, t) == 0) {
        const char *table = nftnl_set_get_str(t, NFTNL_SET_TABLE), *name = nftnl_set_get_str(t, NFTNL_SET_NAME);
        struct snap_nft_set *set =
            !table || !name || is_ours(table) ? NULL : SNAP_PUSH(reading->s, sets, SNAP_ROWS_MAX);
        if (set) {
            uint32_t key = nftnl_set_get_u32(t, NFTNL_SET_KEY_LEN), value = nftnl_set_get_u32(t, NFTNL_SET_DATA_LEN);
            set->family = (uint8_t)nftnl_set_get_u32(t, NFTNL_SET_FAMILY);
            set->flags = nftnl_set_get_u32(t, NFTNL_SET_FLAGS);
            set->key_len = (uint8_t)(key > 32 ? 32 : key);
            set->data_len = (uint8_t)(value > 16 ? 16 : value);
            set->verdicts = nftnl_set_get_u32(t, NFTNL_SET_DATA_TYPE) == NFT_DATA_VERDICT;
            str_copy(set->table, sizeof set->table, table);
            str_copy(set->name, sizeof set->name, name);
        }
    }
    nftnl_set_free(t);
    return 0;
}

static void forget_sets(void *data) {
    ((struct reading *)data)->s->sets_count = 0;
}

static int take_elem(struct nftnl_set_elem *e, void *data) {
    struct reading *reading = data;
    struct snap_nft_elem *elem = SNAP_PUSH(reading->s, elems, SNAP_ELEMS_MAX);
    uint32_t len = 0;
    if (!elem) {
        reading->cut = true;
        return 0;
    }
    reading->set->elems.count++;
    if (nftnl_set_elem_is_set(e, NFTNL_SET_ELEM_FLAGS))
        elem->flags = nftnl_set_elem_get_u32(e, NFTNL_SET_ELEM_FLAGS);
    const void *key = nftnl_set_elem_get(e, NFTNL_SET_ELEM_KEY, &len);
    copy_attr(elem->key, sizeof elem->key, key, len);
    if (nftnl_set_elem_is_set(e, NFTNL_SET_ELEM_KEY_END)) {
        key = nftnl_set_elem_get(e, NFTNL_SET_ELEM_KEY_END, &len);
        copy_attr(elem->key_end, sizeof elem->key_end, key, len);
        elem->has_end = true;
    }
    if (nftnl_set_elem_is_set(e, NFTNL_SET_ELEM_VERDICT))
        elem->verdict = (int32_t)nftnl_set_elem_get_u32(e, NFTNL_SET_ELEM_VERDICT);
    if (nftnl_set_elem_is_set(e, NFTNL_SET_ELEM_CHAIN))
        str_copy(elem->chain, sizeof elem->chain, nftnl_set_elem_get_str(e, NFTNL_SET_ELEM_CHAIN));
    if (nftnl_set_elem_is_set(e, NFTNL_SET_ELEM_DATA)) {
        const void *value = nftnl_set_elem_get(e, NFTNL_SET_ELEM_DATA, &len);
        copy_attr(elem->data, sizeof elem->data, value, len);
    }
    return 0;
}

static int take_elems(const struct nlmsghdr *nlh, void *data) {
    struct nftnl_set *t = nftnl_set_alloc();
    if (!t)
        return -ENOMEM;
    if (nftnl_set_elems_nlmsg_parse(nlh, t) == 0)
        nftnl_set_elem_foreach(t, take_elem, data);
    nftnl_set_free(t);
    return 0;
}

static void forget_elems(void *data) {
    struct reading *reading = data;
    reading->s->elems_count = reading->set->elems.first;
    reading->set->elems.count = 0;
}

static void read_elements(struct reading *reading, int nsfd, struct snap_nft_set *set) {
    char buffer[1024];
    struct nftnl_set *t = nftnl_set_alloc();
    if (!t)
        return;
    nftnl_set_set_str(t, NFTNL_SET_TABLE, set->table);
    nftnl_set_set_str(t, NFTNL_SET_NAME, set->name);
    reading->set = set;
    set->elems.first = reading->s->elems_count;
    struct nlmsghdr *nlh = nftnl_nlmsg_build_hdr(buffer, NFT_MSG_GETSETELEM, set->family, NLM_F_DUMP, 0);
    nftnl_set_elems_nlmsg_build_payload(nlh, t);
    nftnl_set_free(t);
    struct collect_dump dump = {
        .nsfd = nsfd, .protocol = NETLINK_NETFILTER, .each = take_elems, .restart = forget_elems, .data = reading};
    bool cut = reading->cut;
    reading->cut = false;
    set->complete = collect_dump_run(&dump, nlh) == 0 && !reading->cut;
    reading->cut = reading->cut || cut;
}

static bool is_looked_up(const struct snapshot *s, const struct snap_nft_set *set) {
    for (uint32_t i = 0; i < s->rules_count; i++) {
        const struct snap_nft_rule *rule = &s->rules[i];
        if (rule->family != set->family || strcmp(rule->table, set->table) != 0)
            continue;
        for (uint32_t n = 0; n < rule->exprs.count; n++) {
            const struct snap_nft_expr *x = &s->exprs[rule->exprs.first + n];
            if (x->op == SNAP_NFT_LOOKUP && strcmp(x->name, set->name) == 0)
                return true;
        }
    }
    return false;
}

/* --- all of it --- */

static int dump(struct reading *reading, int nsfd, uint16_t type, int (*each)(const struct nlmsghdr *, void *),
                void (*forget)(void *)) {
    char buffer[256];
    struct nlmsghdr *nlh = nftnl_nlmsg_build_hdr(buffer, type, NFPROTO_UNSPEC, NLM_F_DUMP, 0);
    struct collect_dump run = {
        .nsfd = nsfd, .protocol = NETLINK_NETFILTER, .each = each, .restart = forget, .data = reading};
    return collect_dump_run(&run, nlh);
}

void collect_nft(struct snapshot *s, int nsfd) {
    struct reading reading = {.s = s};
    int r = dump(&reading, nsfd, NFT_MSG_GETTABLE, take_table, forget_tables);
    if (r == 0)
        r = dump(&reading, nsfd, NFT_MSG_GETCHAIN, take_chain, forget_chains);
    if (r == 0)
        r = dump(&reading, nsfd, NFT_MSG_GETRULE, take_rule, forget_rules);
    if (r == 0)
        r = dump(&reading, nsfd, NFT_MSG_GETSET, take_set, forget_sets);
    for (uint32_t i = 0; r == 0 && i < s->sets_count && i < SETS_READ_MAX; i++)
        if (is_looked_up(s, &s->sets[i]))
            read_elements(&reading, nsfd, &s->sets[i]);
    free(reading.tables);
    if (r < 0)
        snapshot_gap(s, "nft", r, "the nftables rules could not be read: %s", strerror(-r));
    else if (reading.cut)
        snapshot_gap(s, "nft", E2BIG, "there are more nftables rules or elements than are looked at");
}

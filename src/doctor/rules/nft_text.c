/* A rule as a person would read it: near to nft's own listing, not the same. */
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "doctor/rules/nft_eval.h"

const char *nft_family_name(uint8_t family) {
    switch (family) {
    case NFPROTO_INET:
        return "inet";
    case NFPROTO_IPV4:
        return "ip";
    case NFPROTO_ARP:
        return "arp";
    case NFPROTO_NETDEV:
        return "netdev";
    case NFPROTO_BRIDGE:
        return "bridge";
    case NFPROTO_IPV6:
        return "ip6";
    }
    return "?";
}

static const char *meta_name(int32_t key) {
    switch (key) {
    case NFT_META_PROTOCOL:
        return "meta protocol";
    case NFT_META_MARK:
        return "meta mark";
    case NFT_META_IIF:
        return "iif";
    case NFT_META_OIF:
        return "oif";
    case NFT_META_IIFNAME:
        return "iifname";
    case NFT_META_OIFNAME:
        return "oifname";
    case NFT_META_BRI_IIFNAME:
        return "ibrname";
    case NFT_META_BRI_OIFNAME:
        return "obrname";
    case NFT_META_NFPROTO:
        return "meta nfproto";
    case NFT_META_L4PROTO:
        return "meta l4proto";
    case NFT_META_PKTTYPE:
        return "meta pkttype";
    }
    return "meta";
}

static void payload_name(uint8_t family, const struct snap_nft_expr *x, char *dst, size_t size) {
    static const struct {
        uint8_t base;
        uint16_t offset;
        uint8_t len;
        bool arp;
        const char *name;
    } names[] = {
        {0, 0, 6, 0, "ether daddr"},     {0, 6, 6, 0, "ether saddr"},      {0, 12, 2, 0, "ether type"},
        {1, 12, 4, 0, "ip saddr"},       {1, 16, 4, 0, "ip daddr"},        {1, 9, 1, 0, "ip protocol"},
        {2, 0, 2, 0, "th sport"},        {2, 2, 2, 0, "th dport"},         {2, 0, 1, 0, "icmp type"},
        {1, 8, 6, 1, "arp saddr ether"}, {1, 18, 6, 1, "arp daddr ether"}, {1, 6, 2, 1, "arp operation"},
        {1, 14, 4, 1, "arp saddr ip"},   {1, 24, 4, 1, "arp daddr ip"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].base == x->base && names[i].offset == x->offset && names[i].len == x->len &&
            (!names[i].arp || family == NFPROTO_ARP || family == NFPROTO_BRIDGE || family == NFPROTO_NETDEV)) {
            snprintf(dst, size, "%s", names[i].name);
            return;
        }
    snprintf(dst, size, "@%s,%u,%u", x->base == 0 ? "ll" : x->base == 1 ? "nh" : "th", x->offset * 8U, x->len * 8U);
}

static bool is_name(const struct snap_nft_expr *left) {
    return left && left->op == SNAP_NFT_META &&
           (left->key == NFT_META_IIFNAME || left->key == NFT_META_OIFNAME || left->key == NFT_META_BRI_IIFNAME ||
            left->key == NFT_META_BRI_OIFNAME);
}

static void value_text(const struct snap_nft_expr *left, const uint8_t *data, uint8_t len, char *dst, size_t size) {
    char hex[33], shown[80];
    if (is_name(left)) {
        str_escape((const char *)data, strnlen((const char *)data, len), shown, sizeof shown);
        snprintf(dst, size, "\"%s%s\"", shown, len < 16 && len && data[len - 1] ? "*" : "");
    } else if (left && left->op == SNAP_NFT_PAYLOAD && left->base == 1 && len == 4) {
        snprintf(dst, size, "%u.%u.%u.%u", data[0], data[1], data[2], data[3]);
    } else if (left && left->op == SNAP_NFT_PAYLOAD && left->base == 0 && len == 6) {
        snprintf(dst, size, "%02x:%02x:%02x:%02x:%02x:%02x", data[0], data[1], data[2], data[3], data[4], data[5]);
    } else if (len == 2 && (data[0] << 8 | data[1]) == 0x0806) {
        snprintf(dst, size, "arp");
    } else if (left && left->op == SNAP_NFT_PAYLOAD && left->base == 2 && len == 2) {
        snprintf(dst, size, "%u", (unsigned)(data[0] << 8 | data[1]));
    } else {
        str_hex(data, len > 16 ? 16 : len, hex);
        snprintf(dst, size, "0x%s", hex);
    }
}

static void verdict_text(const struct snap_nft_expr *x, struct strbuf *text) {
    char shown[128];
    str_escape(x->name, strlen(x->name), shown, sizeof shown);
    switch (x->key) {
    case NF_DROP:
        strbuf_addf(text, "drop ");
        break;
    case NF_ACCEPT:
        strbuf_addf(text, "accept ");
        break;
    case NFT_JUMP:
        strbuf_addf(text, "jump %s ", shown);
        break;
    case NFT_GOTO:
        strbuf_addf(text, "goto %s ", shown);
        break;
    case NFT_RETURN:
        strbuf_addf(text, "return ");
        break;
    default:
        strbuf_addf(text, "continue ");
        break;
    }
}

static void left_text(uint8_t family, const struct snap_nft_expr *x, char *dst, size_t size) {
    *dst = '\0';
    if (x && x->op == SNAP_NFT_META)
        snprintf(dst, size, "%s", meta_name(x->key));
    else if (x && x->op == SNAP_NFT_PAYLOAD)
        payload_name(family, x, dst, size);
    else if (x && x->op == SNAP_NFT_CT)
        snprintf(dst, size, "%s", x->key == NFT_CT_STATE ? "ct state" : "ct");
    else
        snprintf(dst, size, "?");
}

/* What is written, and where to: "ether saddr set 02:…", "snat to 10.0.0.1". */
static void change_text(uint8_t family, const struct snap_nft_expr *x, const struct snap_nft_expr *written,
                        struct strbuf *text) {
    char name[64], value[96] = "?";
    bool nat = x->op == SNAP_NFT_NAT;
    left_text(family, x, name, sizeof name);
    if (nat && written && written->len == 4)
        snprintf(value, sizeof value, "%u.%u.%u.%u", written->data[0], written->data[1], written->data[2],
                 written->data[3]);
    else if (!nat && written)
        value_text(x, written->data, x->op == SNAP_NFT_PAYLOAD ? x->len : written->len, value, sizeof value);
    if (!nat)
        strbuf_addf(text, "%s set %s ", name, value);
    else
        strbuf_addf(text, "%s%s%s ", x->name, *value == '?' ? "" : " to ", *value == '?' ? "" : value);
}

static void expr_text(uint8_t family, const struct snap_nft_expr *x, const struct snap_nft_expr *left,
                      struct strbuf *text) {
    static const char *const cmps[] = {"", "!= ", "< ", "<= ", "> ", ">= "};
    char name[64], value[96], shown[160];
    left_text(family, left, name, sizeof name);
    str_escape(x->name, strlen(x->name), shown, sizeof shown);
    switch ((enum snap_nft_op)x->op) {
    case SNAP_NFT_CMP:
        value_text(left, x->data, x->len, value, sizeof value);
        strbuf_addf(text, "%s %s%s ", name, x->cmp < 6 ? cmps[x->cmp] : "", value);
        break;
    case SNAP_NFT_RANGE:
        value_text(left, x->data, x->len, value, sizeof value);
        strbuf_addf(text, "%s %s%s-", name, x->cmp ? "!= " : "", value);
        value_text(left, x->data2, x->len, value, sizeof value);
        strbuf_addf(text, "%s ", value);
        break;
    case SNAP_NFT_LOOKUP:
        strbuf_addf(text, "%s %s%s%s ", name, x->cmp ? "!= " : "", x->base ? "vmap " : "@", shown);
        break;
    case SNAP_NFT_VERDICT:
        verdict_text(x, text);
        break;
    case SNAP_NFT_COUNTER:
        strbuf_addf(text, "counter packets %llu ", (unsigned long long)x->value);
        break;
    case SNAP_NFT_LIMIT:
        strbuf_addf(text, "limit rate %s%llu ", x->cmp ? "over " : "", (unsigned long long)x->value);
        break;
    case SNAP_NFT_QUOTA:
        strbuf_addf(text, "quota ");
        break;
    case SNAP_NFT_REJECT:
        strbuf_addf(text, "reject ");
        break;
    case SNAP_NFT_MATCH:
    case SNAP_NFT_TARGET:
        strbuf_addf(text, "xt %s ", shown);
        break;
    case SNAP_NFT_OTHER:
    case SNAP_NFT_FWD:
        strbuf_addf(text, "%s ", shown);
        break;
    case SNAP_NFT_NAT: /* change_text() */
    case SNAP_NFT_PAYLOAD:
    case SNAP_NFT_META:
    case SNAP_NFT_BITWISE:
    case SNAP_NFT_IMMEDIATE:
    case SNAP_NFT_CT:
    case SNAP_NFT_NOTE:
    case SNAP_NFT_FIB:
    case SNAP_NFT_BYTEORDER:
        break;
    }
}

void nft_rule_text(const struct snapshot *s, const struct snap_nft_rule *rule, char *dst, size_t size) {
    _cleanup_strbuf_ struct strbuf text = {.max = 512};
    const struct snap_nft_expr *left = NULL, *written = NULL;
    for (uint32_t i = 0; i < rule->exprs.count; i++) {
        const struct snap_nft_expr *x = &s->exprs[rule->exprs.first + i];
        if ((x->op == SNAP_NFT_META || x->op == SNAP_NFT_PAYLOAD || x->op == SNAP_NFT_CT) && !x->set)
            left = x;
        if (x->op == SNAP_NFT_IMMEDIATE)
            written = x;
        if (x->op == SNAP_NFT_NAT || (x->set && (x->op == SNAP_NFT_META || x->op == SNAP_NFT_PAYLOAD)))
            change_text(rule->family, x, written, &text);
        else
            expr_text(rule->family, x, left, &text);
    }
    while (text.len && text.data[text.len - 1] == ' ')
        text.data[--text.len] = '\0';
    str_copy(dst, size, text.data ? text.data : "");
}

#include "doctor/rules/nft_eval.h"

#include <errno.h>
#include <limits.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <stdlib.h>
#include <string.h>

#define REGISTERS 24 /* of 4 bytes: 16 that rules may name, and room behind the last for 32 bytes */
#define DEPTH_MAX 16
#define RUNS_MAX                                                                                                       \
    (4 * SNAP_RULES_MAX) /* rules of one base chain: jumps of jumps may be more than anybody can wait for */

enum match { MATCH_NO, MATCH_MAY, MATCH_YES };

struct machine {
    const struct nft_index *index;
    const struct packet *packet;
    uint8_t family;
    uint8_t data[REGISTERS * 4];
    bool known[REGISTERS];
    /* of the rule under way */
    enum match match;
    int32_t verdict; /* INT32_MIN: none */
    char jump[SNAP_TEXT];
    bool rejects;
    bool handed; /* to a program, which may let it go on, past the rest of the chain */
    const struct snap_nft_rule *rule;
    struct nft_result *result;
    uint32_t left; /* rules that may still be run */
};

/* Whether any rule gives packets or connections marks. */
static bool sets_marks(const struct snapshot *s) {
    static const char *const targets[] = {"MARK", "CONNMARK", "mark"};
    for (uint32_t i = 0; i < s->exprs_count; i++) {
        const struct snap_nft_expr *x = &s->exprs[i];
        if (x->set &&
            ((x->op == SNAP_NFT_META && x->key == NFT_META_MARK) || (x->op == SNAP_NFT_CT && x->key == NFT_CT_MARK)))
            return true;
        for (size_t k = 0; x->op == SNAP_NFT_TARGET && k < sizeof targets / sizeof *targets; k++)
            if (strcmp(x->name, targets[k]) == 0)
                return true;
    }
    return false;
}

int nft_index_make(const struct snapshot *s, struct nft_index *ret) {
    struct snap_range *rules = calloc(s->chains_count ? s->chains_count : 1, sizeof *rules);
    uint32_t chain = 0;
    if (!rules)
        return -ENOMEM;
    for (uint32_t i = 0; i < s->rules_count; i++) {
        const struct snap_nft_rule *rule = &s->rules[i];
        /* Rules come chain by chain, in the chains' order or nearly so. */
        uint32_t tried = 0;
        for (; tried < s->chains_count; tried++, chain = (chain + 1) % s->chains_count)
            if (s->chains[chain].family == rule->family && strcmp(s->chains[chain].name, rule->chain) == 0 &&
                strcmp(s->chains[chain].table, rule->table) == 0)
                break;
        if (tried == s->chains_count) /* of a chain that came after the chains were read: of none that is here */
            continue;
        if (rules[chain].count == 0)
            rules[chain].first = i;
        if (rules[chain].first + rules[chain].count == i)
            rules[chain].count++;
    }
    *ret = (struct nft_index){.s = s, .rules = rules, .marks = sets_marks(s)};
    return 0;
}

void nft_index_free(struct nft_index *index) {
    free(index->rules);
    index->rules = NULL;
}

/* --- registers --- */

static void put(struct machine *m, uint8_t reg, const void *data, size_t len) {
    if (reg >= 16 || len > 32)
        return;
    size_t words = (len + 3) / 4;
    memset(m->data + reg * 4, 0, words * 4);
    memcpy(m->data + reg * 4, data, len);
    for (size_t i = 0; i < words; i++)
        m->known[reg + i] = true;
}

static void forget(struct machine *m, uint8_t reg, size_t len) {
    for (size_t i = 0; i < (len + 3) / 4 && reg + i < REGISTERS; i++)
        m->known[reg + i] = false;
}

static bool knows(const struct machine *m, uint8_t reg, size_t len) {
    if (reg >= 16 || len > 32)
        return false;
    for (size_t i = 0; i < (len + 3) / 4; i++)
        if (!m->known[reg + i])
            return false;
    return true;
}

static void put_name(struct machine *m, uint8_t reg, const char *name) {
    char padded[16] = {0};
    if (!*name) {
        forget(m, reg, sizeof padded);
        return;
    }
    memcpy(padded, name, strnlen(name, sizeof padded));
    put(m, reg, padded, sizeof padded);
}

static void narrow(struct machine *m, enum match match) {
    if (match < m->match)
        m->match = match;
}

/* --- expressions --- */

static void do_meta(struct machine *m, const struct snap_nft_expr *x) {
    const struct packet *p = m->packet;
    uint8_t byte;
    uint32_t zero = 0;
    bool in = x->key == NFT_META_IIF || x->key == NFT_META_IIFNAME;
    bool out = x->key == NFT_META_OIF || x->key == NFT_META_OIFNAME;
    if (x->set)
        return;
    if ((in && p->iif_hidden) || (out && p->oif_hidden)) {
        forget(m, x->dreg, 16);
        return;
    }
    switch (x->key) {
    case NFT_META_LEN:
        forget(m, x->dreg, 4);
        break;
    case NFT_META_PROTOCOL:
        put(m, x->dreg, p->eth + 12, 2);
        break;
    case NFT_META_MARK:
        /* A packet carries none, unless a rule gave it one before. */
        if (m->index->marks)
            forget(m, x->dreg, sizeof zero);
        else
            put(m, x->dreg, &zero, sizeof zero);
        break;
    case NFT_META_PRIORITY:
    case NFT_META_SECMARK:
        put(m, x->dreg, &zero, sizeof zero);
        break;
    case NFT_META_IIF:
        p->iif_index ? put(m, x->dreg, &p->iif_index, 4) : put(m, x->dreg, &zero, 4);
        break;
    case NFT_META_OIF:
        p->oif_index ? put(m, x->dreg, &p->oif_index, 4) : put(m, x->dreg, &zero, 4);
        break;
    case NFT_META_IIFNAME:
        *p->iif ? put_name(m, x->dreg, p->iif) : put(m, x->dreg, (char[16]){0}, 16);
        break;
    case NFT_META_OIFNAME:
        *p->oif ? put_name(m, x->dreg, p->oif) : put(m, x->dreg, (char[16]){0}, 16);
        break;
    case NFT_META_BRI_IIFNAME:
        put_name(m, x->dreg, p->ibr);
        break;
    case NFT_META_BRI_OIFNAME:
        put_name(m, x->dreg, p->obr);
        break;
    case NFT_META_IIFTYPE:
    case NFT_META_OIFTYPE:
        put(m, x->dreg, &(uint16_t){1}, 2); /* ARPHRD_ETHER */
        break;
    case NFT_META_NFPROTO:
        byte = packet_is_arp(p) ? NFPROTO_ARP : NFPROTO_IPV4;
        if (m->family != NFPROTO_IPV4)
            byte = m->family;
        put(m, x->dreg, &byte, 1);
        break;
    case NFT_META_L4PROTO:
        if (packet_is_arp(p))
            narrow(m, MATCH_NO);
        put(m, x->dreg, &p->l4proto, 1);
        break;
    case NFT_META_PKTTYPE:
        put(m, x->dreg, &p->pkttype, 1);
        break;
    case NFT_META_SKUID:
    case NFT_META_SKGID:
        if (!p->local_out)
            narrow(m, MATCH_NO);
        put(m, x->dreg, &zero, 4);
        break;
    default:
        forget(m, x->dreg, 16);
        break;
    }
}

static void do_payload(struct machine *m, const struct snap_nft_expr *x) {
    const struct packet *p = m->packet;
    const uint8_t *base = p->net;
    size_t len = p->net_len;
    bool known = true;
    if (x->set) {
        if (m->match == MATCH_YES && !m->result->changes)
            m->result->changes = m->rule;
        return;
    }
    if (x->base == NFT_PAYLOAD_LL_HEADER) {
        base = p->eth;
        len = sizeof p->eth;
        /* A MAC that is not known, or that the frame does not have yet. */
        known = packet_eth_is_known(p, x->offset, x->len);
    } else if (x->base == NFT_PAYLOAD_TRANSPORT_HEADER) {
        base = p->transport;
        len = p->transport_len;
        if (packet_is_arp(p))
            narrow(m, MATCH_NO);
    } else {
        known = x->base == NFT_PAYLOAD_NETWORK_HEADER && packet_net_is_known(p, x->offset, x->len);
    }
    if (!known || (size_t)x->offset + x->len > len)
        forget(m, x->dreg, x->len);
    else
        put(m, x->dreg, base + x->offset, x->len);
}

static void do_compare(struct machine *m, const struct snap_nft_expr *x) {
    if (!knows(m, x->sreg, x->len)) {
        narrow(m, MATCH_MAY);
        return;
    }
    int d = memcmp(m->data + x->sreg * 4, x->data, x->len > 16 ? 16 : x->len);
    bool ok = false;
    switch (x->cmp) {
    case NFT_CMP_EQ:
        ok = d == 0;
        break;
    case NFT_CMP_NEQ:
        ok = d != 0;
        break;
    case NFT_CMP_LT:
        ok = d < 0;
        break;
    case NFT_CMP_LTE:
        ok = d <= 0;
        break;
    case NFT_CMP_GT:
        ok = d > 0;
        break;
    case NFT_CMP_GTE:
        ok = d >= 0;
        break;
    }
    if (!ok)
        narrow(m, MATCH_NO);
}

static void do_range(struct machine *m, const struct snap_nft_expr *x) {
    if (!knows(m, x->sreg, x->len)) {
        narrow(m, MATCH_MAY);
        return;
    }
    size_t len = x->len > 16 ? 16 : x->len;
    bool in = memcmp(m->data + x->sreg * 4, x->data, len) >= 0 && memcmp(m->data + x->sreg * 4, x->data2, len) <= 0;
    if (in != (x->cmp == NFT_RANGE_EQ))
        narrow(m, MATCH_NO);
}

static void do_bitwise(struct machine *m, const struct snap_nft_expr *x) {
    uint8_t out[16];
    size_t len = x->len > 16 ? 16 : x->len;
    if (!knows(m, x->sreg, len)) {
        forget(m, x->dreg, len);
        return;
    }
    for (size_t i = 0; i < len; i++)
        out[i] = (uint8_t)((m->data[x->sreg * 4 + i] & x->data[i]) ^ x->data2[i]);
    put(m, x->dreg, out, len);
}

static void do_byteorder(struct machine *m, const struct snap_nft_expr *x) {
    uint8_t out[16];
    size_t len = x->len > 16 ? 16 : x->len, size = x->base;
    if (!knows(m, x->sreg, len) || (size != 2 && size != 4 && size != 8) || len % size) {
        forget(m, x->dreg, len);
        return;
    }
    for (size_t at = 0; at < len; at += size)
        for (size_t i = 0; i < size; i++)
            out[at + i] = m->data[x->sreg * 4 + at + size - 1 - i];
    put(m, x->dreg, out, len);
}

/* --- sets --- */

static const struct snap_nft_set *find_set(const struct machine *m, const char *name) {
    const struct snapshot *s = m->index->s;
    for (uint32_t i = 0; i < s->sets_count; i++)
        if (s->sets[i].family == m->rule->family && strcmp(s->sets[i].name, name) == 0 &&
            strcmp(s->sets[i].table, m->rule->table) == 0)
            return &s->sets[i];
    return NULL;
}

/* Intervals are listed as their beginnings and, flagged, the first key behind their ends. */
static const struct snap_nft_elem *find_interval(const struct snapshot *s, const struct snap_nft_set *set,
                                                 const uint8_t *key) {
    const struct snap_nft_elem *best = NULL;
    for (uint32_t i = 0; i < set->elems.count; i++) {
        const struct snap_nft_elem *e = &s->elems[set->elems.first + i];
        if (memcmp(e->key, key, set->key_len) > 0)
            continue;
        int d = best ? memcmp(e->key, best->key, set->key_len) : 1;
        if (d > 0 || (d == 0 && (best->flags & NFT_SET_ELEM_INTERVAL_END)))
            best = e;
    }
    return best && !(best->flags & NFT_SET_ELEM_INTERVAL_END) ? best : NULL;
}

/* A concatenation of ranges: each field, of whole registers, between its two ends. */
static bool in_fields(const struct snap_nft_elem *e, const uint8_t *key, size_t len) {
    for (size_t at = 0; at < len; at += 4) {
        size_t n = len - at < 4 ? len - at : 4;
        if (memcmp(key + at, e->key + at, n) < 0 || memcmp(key + at, e->key_end + at, n) > 0)
            return false;
    }
    return true;
}

static const struct snap_nft_elem *find_elem(const struct snapshot *s, const struct snap_nft_set *set,
                                             const uint8_t *key) {
    const struct snap_nft_elem *any = NULL;
    bool plain_intervals = (set->flags & NFT_SET_INTERVAL) && !(set->flags & NFT_SET_CONCAT);
    for (uint32_t i = 0; i < set->elems.count; i++) {
        const struct snap_nft_elem *e = &s->elems[set->elems.first + i];
        if (e->flags & NFT_SET_ELEM_CATCHALL)
            any = e;
        else if (e->has_end && in_fields(e, key, set->key_len))
            return e;
        else if (!e->has_end && !plain_intervals && memcmp(e->key, key, set->key_len) == 0)
            return e;
    }
    const struct snap_nft_elem *found = plain_intervals ? find_interval(s, set, key) : NULL;
    return found ? found : any;
}

bool nft_set_has(const struct snapshot *s, const struct snap_nft_set *set, const uint8_t *key) {
    return find_elem(s, set, key) != NULL;
}

static void do_lookup(struct machine *m, const struct snap_nft_expr *x) {
    const struct snapshot *s = m->index->s;
    const struct snap_nft_set *set = find_set(m, x->name);
    if (!set || !set->complete || !knows(m, x->sreg, set->key_len)) {
        narrow(m, set && set->complete && set->elems.count == 0 && !x->cmp ? MATCH_NO : MATCH_MAY);
        if (x->set && !x->base)
            forget(m, x->dreg, 16);
        return;
    }
    const struct snap_nft_elem *e = find_elem(s, set, m->data + x->sreg * 4);
    if ((e != NULL) == (x->cmp != 0)) {
        narrow(m, MATCH_NO);
        return;
    }
    if (e && x->base) {
        m->verdict = e->verdict;
        memcpy(m->jump, e->chain, sizeof m->jump);
    } else if (e && x->set) {
        put(m, x->dreg, e->data, set->data_len);
    }
}

/* --- xt --- */

static bool port_in(const struct packet *p, const uint8_t *range, size_t offset, bool inverted) {
    uint16_t low, high, port = (uint16_t)(p->transport[offset] << 8 | p->transport[offset + 1]);
    memcpy(&low, range, 2);
    memcpy(&high, range + 2, 2);
    return (port >= low && port <= high) != inverted;
}

/* The bridge's ports. Of what is not being bridged here they are not known. Source: net/netfilter/xt_physdev.c */
static void do_physdev(struct machine *m, const struct snap_nft_expr *x) {
    const struct packet *p = m->packet;
    uint8_t invert = (uint8_t)(x->key >> 8), asked = (uint8_t)x->key;
    bool known = x->set && (*p->physin || *p->physout) && !((asked & 1) && p->iif_hidden) &&
                 !((asked & 2) && p->oif_hidden) && x->len <= 16 && x->offset <= 16;
    if (!known) {
        narrow(m, MATCH_MAY);
        return;
    }
    /* XT_PHYSDEV_OP_IN, _OUT, _BRIDGED, _ISIN, _ISOUT */
    const bool is[] = {memcmp(p->physin, x->data, x->len) == 0, memcmp(p->physout, x->data2, x->offset) == 0,
                       *p->physout != '\0', *p->physin != '\0', *p->physout != '\0'};
    for (size_t i = 0; i < sizeof is / sizeof *is; i++)
        if ((asked & 1U << i) && is[i] == ((invert & 1U << i) != 0))
            narrow(m, MATCH_NO);
}

/* Source: include/uapi/linux/netfilter/xt_tcpudp.h */
static void do_match(struct machine *m, const struct snap_nft_expr *x) {
    const struct packet *p = m->packet;
    bool tcp = strcmp(x->name, "tcp") == 0, udp = strcmp(x->name, "udp") == 0;
    if (strcmp(x->name, "comment") == 0)
        return;
    if (strcmp(x->name, "physdev") == 0) {
        do_physdev(m, x);
        return;
    }
    if (!tcp && !udp) {
        narrow(m, MATCH_MAY);
        return;
    }
    uint8_t inverted = tcp ? x->data[11] : x->data[8];
    bool ok = p->l4proto == (tcp ? 6 : 17) && port_in(p, x->data, 0, inverted & 1) &&
              port_in(p, x->data + 4, 2, inverted & 2);
    if (ok && tcp && x->data[9])
        ok = ((p->transport[13] & x->data[9]) == x->data[10]) != ((inverted & 4) != 0);
    if (!ok)
        narrow(m, MATCH_NO);
}

/* The first that may is the one that does, or the one to look at. */
static void take_nat(struct machine *m) {
    *(m->match == MATCH_YES ? &m->result->nat : &m->result->nat_may) = true;
    if (!m->result->nat_rule)
        m->result->nat_rule = m->rule;
}

static void do_notrack(struct machine *m) {
    if (m->match == MATCH_YES)
        m->result->untracks = m->rule;
}

/* ebtables' targets that change a frame end with a verdict of their own.
 * Source: include/uapi/linux/netfilter_bridge/ebt_mark_t.h, ebt_nat.h, ebt_redirect.h; EBT_DROP is -2 */
static bool is_ebt_drop(const struct machine *m, const struct snap_nft_expr *x) {
    static const struct {
        const char *name;
        uint8_t at;
    } targets[] = {{"mark", 8}, {"snat", 8}, {"dnat", 8}, {"redirect", 0}};
    for (size_t i = 0; m->family == NFPROTO_BRIDGE && i < sizeof targets / sizeof *targets; i++)
        if (strcmp(x->name, targets[i].name) == 0) {
            int32_t verdict;
            memcpy(&verdict, x->data + targets[i].at, sizeof verdict);
            return (verdict | ~0xf) == -2;
        }
    return false;
}

static void do_target(struct machine *m, const struct snap_nft_expr *x) {
    static const char *const rewriting[] = {"dnat",   "snat",   "redirect", "mangle", "DNAT",
                                            "NETMAP", "TPROXY", "REDIRECT", NULL};
    if (strcmp(x->name, "DROP") == 0 || strcmp(x->name, "REJECT") == 0 || is_ebt_drop(m, x)) {
        m->verdict = NF_DROP;
        return;
    }
    if (strcmp(x->name, "arpreply") == 0) { /* answers in the other's place */
        if (!m->result->changes)
            m->result->changes = m->rule;
        m->verdict = NF_ACCEPT;
        return;
    }
    if (strcmp(x->name, "NFQUEUE") == 0) { /* whoever gets it from the queue may let it go on; nobody may be there */
        m->handed = true;
        narrow(m, MATCH_MAY);
        m->verdict = NF_DROP;
        return;
    }
    if (strcmp(x->name, "CT") == 0 && (x->data[0] & 1)) /* XT_CT_NOTRACK */
        do_notrack(m);
    if (strcmp(x->name, "MASQUERADE") == 0 || strcmp(x->name, "SNAT") == 0) {
        take_nat(m);
        m->verdict = NF_ACCEPT;
        return;
    }
    for (int i = 0; rewriting[i]; i++)
        if (strcmp(x->name, rewriting[i]) == 0) {
            if (m->match == MATCH_YES && !m->result->changes)
                m->result->changes = m->rule;
            m->verdict = NF_ACCEPT;
        }
}

static void do_ct(struct machine *m, const struct snap_nft_expr *x) {
    const struct packet *p = m->packet;
    uint32_t value = 0;
    if (x->set)
        return;
    bool tracked = m->family == NFPROTO_IPV4;
    if (tracked && x->key == NFT_CT_STATE) {
        value = p->ct_state;
        put(m, x->dreg, &value, 4);
    } else if (tracked && x->key == NFT_CT_DIRECTION) {
        put(m, x->dreg,
            &(uint8_t){p->kind == PACKET_ECHO_REPLY || p->kind == PACKET_SYN_ACK || p->kind == PACKET_DNS_REPLY}, 1);
    } else if (tracked && (x->key == NFT_CT_STATUS || (x->key == NFT_CT_MARK && !m->index->marks))) {
        put(m, x->dreg, &value, 4);
    } else {
        forget(m, x->dreg, 16);
    }
}

static void do_nat(struct machine *m, const struct snap_nft_expr *x) {
    bool source = strcmp(x->name, "masq") == 0 || strcmp(x->name, "snat") == 0;
    if (source)
        take_nat(m);
    else if (m->match == MATCH_YES && !m->result->changes)
        m->result->changes = m->rule;
    m->verdict = NF_ACCEPT;
}

static void do_expr(struct machine *m, const struct snap_nft_expr *x) {
    switch ((enum snap_nft_op)x->op) {
    case SNAP_NFT_META:
        do_meta(m, x);
        break;
    case SNAP_NFT_PAYLOAD:
        do_payload(m, x);
        break;
    case SNAP_NFT_CMP:
        do_compare(m, x);
        break;
    case SNAP_NFT_BITWISE:
        do_bitwise(m, x);
        break;
    case SNAP_NFT_RANGE:
        do_range(m, x);
        break;
    case SNAP_NFT_LOOKUP:
        do_lookup(m, x);
        break;
    case SNAP_NFT_IMMEDIATE:
        put(m, x->dreg, x->data, x->len);
        break;
    case SNAP_NFT_VERDICT:
        m->verdict = x->key;
        memcpy(m->jump, x->name, sizeof m->jump);
        break;
    case SNAP_NFT_REJECT:
        m->verdict = NF_DROP;
        m->rejects = true;
        break;
    case SNAP_NFT_CT:
        do_ct(m, x);
        break;
    case SNAP_NFT_MATCH:
        do_match(m, x);
        break;
    case SNAP_NFT_TARGET:
        do_target(m, x);
        break;
    case SNAP_NFT_NAT:
        do_nat(m, x);
        break;
    case SNAP_NFT_BYTEORDER:
        do_byteorder(m, x);
        break;
    case SNAP_NFT_FWD:
        if (strcmp(x->name, "fwd") != 0) {
            m->handed = true;
            narrow(m, MATCH_MAY); /* whoever gets it from the queue, or as a proxy, may let it go on */
        }
        if (m->match == MATCH_YES && !m->result->changes)
            m->result->changes = m->rule;
        m->verdict = NF_DROP;
        break;
    case SNAP_NFT_FIB:
        forget(m, x->dreg, 4);
        break;
    case SNAP_NFT_OTHER: /* numgen, hash, socket, …: whatever it has put into registers */
        forget(m, 0, sizeof m->known * 4);
        narrow(m, MATCH_MAY);
        break;
    case SNAP_NFT_LIMIT:
    case SNAP_NFT_QUOTA:
        narrow(m, MATCH_MAY);
        break;
    case SNAP_NFT_NOTE:
        if (strcmp(x->name, "notrack") == 0)
            do_notrack(m);
        break;
    case SNAP_NFT_COUNTER:
        break;
    }
}

static void run_rule(struct machine *m, const struct snap_nft_rule *rule) {
    m->rule = rule;
    m->match = MATCH_YES;
    m->verdict = INT32_MIN;
    m->rejects = m->handed = false;
    for (uint32_t i = 0; i < rule->exprs.count && m->match != MATCH_NO; i++)
        do_expr(m, &m->index->s->exprs[rule->exprs.first + i]);
}

/* --- chains --- */

enum step { STEP_ON, STEP_ACCEPT, STEP_DROP, STEP_RETURN };

static const struct snap_nft_chain *find_chain(const struct machine *m, const struct snap_nft_chain *base,
                                               const char *name) {
    const struct snapshot *s = m->index->s;
    for (uint32_t i = 0; i < s->chains_count; i++)
        if (s->chains[i].family == base->family && strcmp(s->chains[i].name, name) == 0 &&
            strcmp(s->chains[i].table, base->table) == 0)
            return &s->chains[i];
    return NULL;
}

static void blame(struct machine *m, const struct snap_nft_rule *rule, const struct snap_nft_chain *in,
                  enum nft_outcome outcome) {
    if (m->result->rule && m->result->outcome >= outcome)
        return;
    m->result->outcome = outcome;
    m->result->rule = rule;
    m->result->in = in;
    m->result->rejects = m->rejects;
}

/* sure: nothing before could have ended it otherwise. */
static enum step run_chain(struct machine *m, const struct snap_nft_chain *chain, int depth, bool *sure) {
    const struct snapshot *s = m->index->s;
    struct snap_range rules = m->index->rules[chain - s->chains];
    for (uint32_t i = 0; depth < DEPTH_MAX && i < rules.count; i++) {
        const struct snap_nft_rule *rule = &s->rules[rules.first + i];
        if (m->left == 0) {
            *sure = false;
            return STEP_ON;
        }
        m->left--;
        run_rule(m, rule);
        if (m->match == MATCH_NO || m->verdict == INT32_MIN || m->verdict == NFT_CONTINUE)
            continue;
        enum step step = STEP_ON;
        bool certain = m->match == MATCH_YES;
        if (m->verdict == NF_DROP) {
            blame(m, rule, chain, certain && *sure ? NFT_DROPS : NFT_MAY_DROP);
            step = STEP_DROP;
        } else if (m->verdict == NF_ACCEPT) {
            step = STEP_ACCEPT;
        } else if (m->verdict == NFT_RETURN) {
            step = STEP_RETURN;
        } else if (m->verdict == NFT_JUMP || m->verdict == NFT_GOTO) {
            bool jump = m->verdict == NFT_JUMP;
            const struct snap_nft_chain *to = find_chain(m, chain, m->jump);
            bool inner = *sure && certain;
            step = to ? run_chain(m, to, depth + 1, &inner) : STEP_ON;
            if (!inner)
                *sure = false;
            if (step == STEP_RETURN || step == STEP_ON)
                step = jump ? STEP_ON : STEP_RETURN;
        } else {
            step = STEP_ACCEPT; /* queue and the like: out of sight */
            *sure = false;
        }
        if (step != STEP_ON && certain)
            return step;
        /* What may drop it does not save it from the next that does. */
        if (step != STEP_ON && (step != STEP_DROP || m->handed))
            *sure = false;
    }
    return STEP_ON;
}

/* Return: whether the packet goes on behind this base chain. */
static bool run_base(struct machine *m, const struct snap_nft_chain *chain) {
    bool sure = true;
    m->result->chain = chain;
    enum step step = run_chain(m, chain, 0, &sure);
    if (step == STEP_DROP)
        return false;
    if ((step == STEP_ON || step == STEP_RETURN) && chain->policy == NF_DROP) {
        if (sure) {
            m->result->outcome = NFT_DROPS;
            m->result->rule = NULL;
            m->result->in = chain;
            return false;
        }
        if (m->result->outcome == NFT_PASSES) {
            m->result->outcome = NFT_MAY_DROP;
            m->result->in = chain;
        }
    }
    return true;
}

static bool has_device(const struct snap_nft_chain *chain, const char *device) {
    size_t len = strlen(device); /* none: where there is no such device, or its name is not known */
    for (const char *at = chain->devices; len && (at = strstr(at, device)); at += len)
        if ((at == chain->devices || at[-1] == ' ') && (at[len] == '\0' || at[len] == ' '))
            return true;
    return false;
}

static bool is_of_hook(const struct snap_nft_chain *chain, uint8_t family, uint8_t hook, const char *device) {
    if (!chain->base || chain->dormant)
        return false;
    if (family == NFPROTO_NETDEV && hook == 0 && chain->family == NFPROTO_INET && chain->hook == NF_INET_INGRESS)
        return has_device(chain, device);
    if (chain->hook != hook)
        return false;
    if (family == NFPROTO_NETDEV)
        return chain->family == NFPROTO_NETDEV && has_device(chain, device);
    return chain->family == family || (family == NFPROTO_IPV4 && chain->family == NFPROTO_INET);
}

static bool is_table(const struct snap_nft_chain *chain, const char *except) {
    return except && strcmp(chain->table, except) == 0;
}

/* The chain of the hook that follows (priority, position); positions break ties. */
static const struct snap_nft_chain *next_chain(const struct snapshot *s, uint8_t family, uint8_t hook,
                                               const char *device, const char *except,
                                               const struct snap_nft_chain *after) {
    const struct snap_nft_chain *best = NULL;
    for (uint32_t i = 0; i < s->chains_count; i++) {
        const struct snap_nft_chain *c = &s->chains[i];
        if (!is_of_hook(c, family, hook, device) || is_table(c, except))
            continue;
        bool later = !after || c->priority > after->priority || (c->priority == after->priority && c > after);
        bool sooner = !best || c->priority < best->priority;
        if (later && sooner)
            best = c;
    }
    return best;
}

/* NAT is asked for the first packet of a connection only. */
static bool is_passed_by(const struct snap_nft_chain *chain, uint8_t family, const struct packet *packet) {
    return family == NFPROTO_IPV4 && packet->ct_state == 2 && strcmp(chain->type, "nat") == 0;
}

void nft_eval_hook(const struct nft_index *index, uint8_t family, uint8_t hook, const char *device,
                   const struct packet *packet, const char *except, struct nft_result *ret) {
    struct nft_result suspicion = {0};
    const struct snap_nft_chain *chain = NULL;
    *ret = (struct nft_result){0};
    while ((chain = next_chain(index->s, family, hook, device, except, chain))) {
        struct nft_result one = {.changes = ret->changes,
                                 .nat = ret->nat,
                                 .nat_may = ret->nat_may,
                                 .nat_rule = ret->nat_rule,
                                 .untracks = ret->untracks};
        struct machine m = {.index = index, .packet = packet, .family = family, .result = &one, .left = RUNS_MAX};
        if (is_passed_by(chain, family, packet))
            continue;
        bool on = run_base(&m, chain);
        ret->changes = one.changes;
        ret->nat = one.nat;
        ret->nat_may = one.nat_may;
        ret->nat_rule = one.nat_rule;
        ret->untracks = one.untracks;
        if (one.outcome == NFT_MAY_DROP && suspicion.outcome == NFT_PASSES)
            suspicion = one;
        if (!on) {
            bool sure = one.outcome == NFT_DROPS;
            *ret = one;
            if (sure)
                return;
            break;
        }
    }
    if (ret->outcome == NFT_PASSES && suspicion.outcome != NFT_PASSES) {
        suspicion.nat = ret->nat;
        suspicion.nat_may = ret->nat_may;
        suspicion.nat_rule = ret->nat_rule;
        suspicion.untracks = ret->untracks;
        *ret = suspicion;
    }
}

/* What the nftables rules of a snapshot would do to a packet at a hook: run as the kernel would, over the expressions.
 * Where an expression cannot be told (a limit, a mark, an xt match that is not known here), the rule "may" match, and
 * what follows from it is a suspicion only.
 *
 * Source: nft(8), net/netfilter/nf_tables_core.c. */
#pragma once

#include "doctor/rules/packet.h"
#include "doctor/snapshot.h"

enum nft_outcome {
    NFT_PASSES,
    NFT_MAY_DROP, /* it would be dropped if rules that cannot be told match */
    NFT_DROPS,
};

struct nft_result {
    enum nft_outcome outcome;
    const struct snap_nft_chain *chain; /* the base chain */
    const struct snap_nft_rule *rule;   /* that drops it; NULL with DROPS: the chain's policy */
    const struct snap_nft_chain *in;    /* the chain that the rule stands in */
    bool rejects;
    const struct snap_nft_rule *changes;  /* a rule that matches and rewrites addresses or sends it elsewhere */
    bool nat;                             /* source NAT was met for this packet */
    bool nat_may;                         /* … or may have been */
    const struct snap_nft_rule *nat_rule; /* the rule that gives another source, or may; NULL */
    const struct snap_nft_rule *untracks; /* a rule that takes it from connection tracking: no NAT then; NULL */
};

/* Which rules belong to which chain. Made once for a snapshot. */
struct nft_index {
    const struct snapshot *s;
    struct snap_range *rules; /* of each chain */
    bool marks;               /* some rule gives packets marks */
};
int nft_index_make(const struct snapshot *s, struct nft_index *ret);
void nft_index_free(struct nft_index *index);

/* All base chains of one hook, in order of priority. family: NFPROTO_ARP, _BRIDGE, _NETDEV, or _IPV4 (which runs inet's
 * too). device: of a netdev hook. Tables of the name `except` (may be NULL) are left out. */
void nft_eval_hook(const struct nft_index *index, uint8_t family, uint8_t hook, const char *device,
                   const struct packet *packet, const char *except, struct nft_result *ret);

/* Whether a set has an element for a key, of set->key_len bytes as the kernel keeps it. */
bool nft_set_has(const struct snapshot *s, const struct snap_nft_set *set, const uint8_t *key);

/* "nft" text of a rule, of its chain's name ("bridge filter OUTPUT"), escaped. */
void nft_rule_text(const struct snapshot *s, const struct snap_nft_rule *rule, char *dst, size_t size);
const char *nft_family_name(uint8_t family);

/* The guest's nftables rules, as its agent tells them (guest/agent/nft.c), in the rows that rules/nft_eval.c works on. An
 * expression that is not understood "may" match. */
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "doctor/collect/guest.h"

static const char *text(const json_t *object, const char *name) {
    const char *value = json_string_value(json_object_get(object, name));
    return value ? value : "";
}

static int64_t number(const json_t *object, const char *name, int64_t otherwise) {
    const json_t *value = json_object_get(object, name);
    return json_is_integer(value) ? json_integer_value(value) : otherwise;
}

static int find(const char *name, const char *const *names, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (names[i] && strcmp(names[i], name) == 0)
            return (int)i;
    return -1;
}

/* An odd one matches no packet here: what it does cannot be told. */
static uint8_t family_of(const char *name) {
    static const char *const names[] = {
        [NFPROTO_INET] = "inet", [NFPROTO_IPV4] = "ip",       [NFPROTO_IPV6] = "ip6",
        [NFPROTO_ARP] = "arp",   [NFPROTO_NETDEV] = "netdev", [NFPROTO_BRIDGE] = "bridge",
    };
    int family = find(name, names, sizeof names / sizeof *names);
    return family < 0 ? 0 : (uint8_t)family;
}

static int digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Return: bytes, at most 16; 0 when it is no hex. */
static uint8_t hex_in(const json_t *object, const char *name, uint8_t dst[16]) {
    const char *hex = text(object, name);
    uint8_t len = 0;
    for (; len < 16 && hex[2 * len] && digit(hex[2 * len]) >= 0 && digit(hex[2 * len + 1]) >= 0; len++)
        dst[len] = (uint8_t)(digit(hex[2 * len]) << 4 | digit(hex[2 * len + 1]));
    return len;
}

/* The first four registers are of 16 bytes, those from NFT_REG32_00 on of 4; here all count in units of 4. An agent that
 * does not tell works with the first. */
static uint8_t reg(const json_t *object, const char *name) {
    int64_t n = number(object, name, NFT_REG_1);
    if (n >= NFT_REG_1 && n <= NFT_REG_4)
        return (uint8_t)((n - NFT_REG_1) * 4);
    return n >= NFT_REG32_00 && n <= NFT_REG32_15 ? (uint8_t)(n - NFT_REG32_00) : 0;
}

/* --- expressions --- */

static int compare_of(const char *name) {
    static const char *const names[] = {"==", "!=", "<", "<=", ">", ">="};
    return find(name, names, sizeof names / sizeof *names);
}

static bool read_load(const json_t *e, struct snap_nft_expr *x, bool is_ct) {
    x->op = is_ct ? SNAP_NFT_CT : SNAP_NFT_META;
    x->key = (int32_t)(number(e, "key", -1) & 0xff);
    x->set = json_object_get(e, "sreg") != NULL;
    x->dreg = reg(e, "dreg");
    return true;
}

static bool read_payload(const json_t *e, struct snap_nft_expr *x) {
    static const char *const bases[] = {"link", "network", "transport", "inner"};
    int base = find(text(e, "base"), bases, sizeof bases / sizeof *bases);
    int64_t offset = number(e, "offset", -1), len = number(e, "len", -1);
    if (base < 0 || offset < 0 || offset > UINT16_MAX || len < 0 || len > 32)
        return false;
    x->op = SNAP_NFT_PAYLOAD;
    x->base = (uint8_t)base;
    x->offset = (uint16_t)offset;
    x->len = (uint8_t)len;
    x->set = json_object_get(e, "sreg") != NULL;
    x->dreg = reg(e, "dreg");
    return true;
}

static bool read_compare(const json_t *e, struct snap_nft_expr *x) {
    int op = compare_of(text(e, "op"));
    x->len = hex_in(e, "value", x->data);
    if (op < 0 || x->len == 0)
        return false;
    x->op = SNAP_NFT_CMP;
    x->cmp = (uint8_t)op;
    x->sreg = reg(e, "sreg");
    return true;
}

static bool read_range(const json_t *e, struct snap_nft_expr *x) {
    x->len = hex_in(e, "from", x->data);
    if (x->len == 0 || hex_in(e, "to", x->data2) != x->len)
        return false;
    x->op = SNAP_NFT_RANGE;
    x->cmp = strcmp(text(e, "op"), "!=") == 0 ? NFT_RANGE_NEQ : NFT_RANGE_EQ;
    x->sreg = reg(e, "sreg");
    return true;
}

static bool read_bitwise(const json_t *e, struct snap_nft_expr *x) {
    x->len = hex_in(e, "mask", x->data);
    if (x->len == 0 || hex_in(e, "xor", x->data2) != x->len)
        return false;
    x->op = SNAP_NFT_BITWISE;
    x->sreg = reg(e, "sreg");
    x->dreg = reg(e, "dreg");
    return true;
}

static bool read_immediate(const json_t *e, struct snap_nft_expr *x) {
    static const struct {
        const char *name;
        int32_t code;
    } verdicts[] = {{"drop", NF_DROP},  {"accept", NF_ACCEPT},  {"queue", NF_QUEUE},       {"jump", NFT_JUMP},
                    {"goto", NFT_GOTO}, {"return", NFT_RETURN}, {"continue", NFT_CONTINUE}};
    for (size_t i = 0; i < sizeof verdicts / sizeof *verdicts; i++)
        if (strcmp(text(e, "verdict"), verdicts[i].name) == 0) {
            x->op = SNAP_NFT_VERDICT;
            x->key = verdicts[i].code;
            str_copy(x->name, sizeof x->name, text(e, "chain"));
            return true;
        }
    x->len = hex_in(e, "value", x->data);
    x->op = SNAP_NFT_IMMEDIATE;
    x->dreg = reg(e, "dreg");
    return x->len > 0;
}

static bool read_named(const json_t *e, struct snap_nft_expr *x, const char *name) {
    bool target = strcmp(name, "target") == 0;
    /* What a match looks at is not told: it may match. A target's name is enough for those that end a packet's way. */
    if (!target && strcmp(name, "match") != 0)
        return false;
    x->op = target ? SNAP_NFT_TARGET : SNAP_NFT_OTHER;
    str_copy(x->name, sizeof x->name, text(e, "name"));
    return true;
}

static bool read_expression(const json_t *e, const char *name, struct snap_nft_expr *x) {
    static const char *const notes[] = {"log", "notrack", "last", "objref", "dynset", "flow_offload", "dup"};
    if (strcmp(name, "meta") == 0 || strcmp(name, "ct") == 0)
        return read_load(e, x, *name == 'c');
    if (strcmp(name, "payload") == 0)
        return read_payload(e, x);
    if (strcmp(name, "cmp") == 0)
        return read_compare(e, x);
    if (strcmp(name, "range") == 0)
        return read_range(e, x);
    if (strcmp(name, "bitwise") == 0)
        return read_bitwise(e, x);
    if (strcmp(name, "immediate") == 0)
        return read_immediate(e, x);
    if (strcmp(name, "reject") == 0)
        x->op = SNAP_NFT_REJECT;
    else if (strcmp(name, "lookup") == 0) {
        x->op = SNAP_NFT_LOOKUP; /* its set is not told: it may match */
        str_copy(x->name, sizeof x->name, text(e, "set"));
    } else if (find(name, notes, sizeof notes / sizeof *notes) >= 0)
        x->op = SNAP_NFT_NOTE;
    else
        return read_named(e, x, name);
    return true;
}

static void take_expression(struct snapshot *s, struct snap_nft_rule *rule, const json_t *e) {
    const char *name = text(e, "expr");
    struct snap_nft_expr read = {0}, *x = SNAP_PUSH(s, guest_exprs, GUEST_EXPRS_MAX * SNAP_GUESTS_MAX / 4);
    if (!x)
        return;
    rule->exprs.count++;
    if (strcmp(name, "counter") == 0) {
        read.op = SNAP_NFT_COUNTER;
        read.value = (uint64_t)number(e, "packets", 0);
        if (!rule->counted) {
            rule->counted = true;
            rule->packets = read.value;
            rule->bytes = (uint64_t)number(e, "bytes", 0);
        }
    } else if (!read_expression(e, name, &read)) {
        read = (struct snap_nft_expr){.op = SNAP_NFT_OTHER};
        str_copy(read.name, sizeof read.name, name);
    }
    *x = read;
}

/* --- chains and rules --- */

static void take_chain(struct snapshot *s, struct snap_guest *guest, const json_t *c) {
    struct snap_nft_chain *chain = SNAP_PUSH(s, guest_chains, SNAP_GUEST_ROWS_MAX);
    const json_t *device;
    size_t i;
    if (!chain)
        return;
    guest->chains.count++;
    chain->family = family_of(text(c, "family"));
    str_copy(chain->table, sizeof chain->table, text(c, "table"));
    str_copy(chain->name, sizeof chain->name, text(c, "name"));
    str_copy(chain->type, sizeof chain->type, text(c, "type"));
    chain->base = json_object_get(c, "hook") != NULL;
    chain->hook = (uint8_t)number(c, "hook", 0);
    int64_t priority = number(c, "priority", 0);
    chain->priority = priority > INT32_MAX ? INT32_MAX : priority < INT32_MIN ? INT32_MIN : (int32_t)priority;
    chain->policy = strcmp(text(c, "policy"), "drop") == 0 && chain->family != NFPROTO_NETDEV ? NF_DROP : NF_ACCEPT;
    chain->dormant = json_is_true(json_object_get(c, "dormant"));
    json_array_foreach(json_object_get(c, "devices"), i, device) {
        size_t len = strlen(chain->devices);
        snprintf(chain->devices + len, sizeof chain->devices - len, "%s%.15s", len ? " " : "",
                 json_string_value(device) ? json_string_value(device) : "?");
    }
}

static void take_rule(struct snapshot *s, struct snap_guest *guest, const json_t *r) {
    struct snap_nft_rule *rule = SNAP_PUSH(s, guest_rules, SNAP_GUEST_ROWS_MAX);
    const json_t *e;
    size_t i;
    if (!rule)
        return;
    guest->rules.count++;
    rule->family = family_of(text(r, "family"));
    str_copy(rule->table, sizeof rule->table, text(r, "table"));
    str_copy(rule->chain, sizeof rule->chain, text(r, "chain"));
    rule->handle = (uint64_t)number(r, "handle", 0);
    rule->exprs.first = s->guest_exprs_count;
    json_array_foreach(json_object_get(r, "expressions"), i, e) {
        if (i >= 32)
            break;
        take_expression(s, rule, e);
    }
}

void guest_firewall_take(struct snapshot *s, struct snap_guest *guest, const json_t *firewall) {
    const json_t *row, *error = json_object_get(firewall, "error");
    const char *legacy = text(firewall, "iptables_legacy");
    size_t i;
    guest->firewall_known = json_is_object(firewall) && (!error || json_is_null(error));
    if (*text(firewall, "error"))
        snprintf(guest->firewall_words, sizeof guest->firewall_words, "its rules could not be read: %.32s",
                 text(firewall, "error"));
    else if (*legacy)
        snprintf(guest->firewall_words, sizeof guest->firewall_words, "legacy iptables tables: %.*s",
                 (int)strcspn(legacy, "\n") < 32 ? (int)strcspn(legacy, "\n") : 32, legacy);
    if (number(firewall, "more", 0) != 0)
        guest->complete = false;
    json_array_foreach(json_object_get(firewall, "chains"), i, row) {
        if (i < GUEST_CHAINS_MAX && json_is_object(row))
            take_chain(s, guest, row);
        else
            guest->complete = false;
    }
    json_array_foreach(json_object_get(firewall, "rules"), i, row) {
        if (i < GUEST_RULES_MAX && json_is_object(row))
            take_rule(s, guest, row);
        else
            guest->complete = false;
    }
}

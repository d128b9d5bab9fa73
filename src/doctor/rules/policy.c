/* The controller's own policy on its own bridge: tables of ours (network/ruleset.h). What they stop is never a fault and
 * never judged; that they are not there, or do not know a VM, is. */
#include <arpa/inet.h>
#include <linux/netfilter.h>
#include <string.h>

#include "base/str.h"
#include "doctor/rules/guest_inside.h"
#include "doctor/rules/internal.h"
#include "doctor/rules/nft_eval.h"

static bool has_chain(const struct snapshot *s, uint8_t family, const char *name) {
    for (uint32_t i = 0; i < s->chains_count; i++)
        if (s->chains[i].family == family && !s->chains[i].dormant && strcmp(s->chains[i].table, POLICY_TABLE) == 0 &&
            strcmp(s->chains[i].name, name) == 0)
            return true;
    return false;
}

static bool has_rules(const struct snapshot *s, uint8_t family, const char *chain) {
    for (uint32_t i = 0; i < s->rules_count; i++)
        if (s->rules[i].family == family && strcmp(s->rules[i].table, POLICY_TABLE) == 0 &&
            strcmp(s->rules[i].chain, chain) == 0)
            return true;
    return false;
}

/* Between VMs the bridge table forbids in its forward chain. Without the table the default counts. */
bool policy_separates_vms(const struct judge *j) {
    if (!j->s->host.managed)
        return false;
    return !has_chain(j->s, NFPROTO_BRIDGE, "forward") || has_rules(j->s, NFPROTO_BRIDGE, "forward");
}

static const struct snap_nft_set *find_set(const struct snapshot *s, uint8_t family, const char *name) {
    for (uint32_t i = 0; i < s->sets_count; i++)
        if (s->sets[i].family == family && strcmp(s->sets[i].table, POLICY_TABLE) == 0 &&
            strcmp(s->sets[i].name, name) == 0)
            return &s->sets[i];
    return NULL;
}

static const struct snap_nft_set *address_set(const struct snapshot *s) {
    const struct snap_nft_set *set = find_set(s, NFPROTO_BRIDGE, "vm_addresses");
    return set && set->complete ? set : NULL;
}

/* A key of the set: the TAP's name in 16 bytes, the MAC in 8, the address in 4. */
#define KEY_MAC 16
#define KEY_IP 24

bool policy_stops_claim(const struct judge *j, struct net_mac mac, uint32_t ip) {
    const struct snap_nft_set *set = j->s->host.managed ? address_set(j->s) : NULL;
    bool is_vm = false, is_its = false;
    uint32_t wanted = htonl(ip);
    for (uint32_t i = 0; set && i < set->elems.count; i++) {
        const uint8_t *key = j->s->elems[set->elems.first + i].key;
        bool same = memcmp(key + KEY_MAC, &mac, sizeof mac) == 0;
        is_vm = is_vm || same;
        is_its = is_its || (same && memcmp(key + KEY_IP, &wanted, sizeof wanted) == 0);
    }
    return is_vm && !is_its && has_rules(j->s, NFPROTO_BRIDGE, "from_vm_arp");
}

static void rule_table_gone(struct judge *j) {
    static const struct {
        uint8_t family;
        const char *table, *chain;
    } needed[] = {{NFPROTO_BRIDGE, "bridge " POLICY_TABLE, "prerouting"},
                  {NFPROTO_INET, "inet " POLICY_TABLE, "forward"}};
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        if (has_chain(j->s, needed[i].family, needed[i].chain) && has_rules(j->s, needed[i].family, needed[i].chain))
            continue;
        struct cause *c = cause_add(j, "nft.isolation-missing", 0, 0,
                                    "nftables table %s is gone or empty: VMs on %s are not "
                                    "kept apart",
                                    needed[i].table, j->bridge->name);
        cause_evidence(c, "link", j->bridge->name, "alias \"master-controller\": this bridge is the controller's");
        cause_evidence(c, "nft", needed[i].table, "no chain %s with rules in it", needed[i].chain);
        cause_plan(c, "start the controller: systemctl restart master-controller (it puts its tables back; VMs go on)");
        if (c)
            c->note = true;
    }
}

/* Whether the firewall keeps VMs from a network of the host's, by one of its addresses there. */
static bool is_kept_from(const struct snapshot *s, uint32_t ip) {
    const struct snap_nft_set *set = find_set(s, NFPROTO_INET, "host_networks");
    uint32_t key = htonl(ip);
    return set && (!set->complete || (set->key_len == sizeof key && nft_set_has(s, set, (const uint8_t *)&key)));
}

/* Networks of the host that came while no controller was there to hear of it. */
static void rule_open_network(struct judge *j) {
    for (uint32_t i = 0; i < j->s->addrs_count; i++) {
        const struct snap_addr *a = &j->s->addrs[i];
        uint32_t network = a->ip & net_mask(a->length);
        if (a->link == j->bridge->index || network == 0 || a->length > 31 || is_kept_from(j->s, a->ip))
            continue;
        struct cause *c = cause_add(j, "nft.isolation-missing", 0, 0,
                                    "the controller's firewall does not keep VMs from %s/%u, a network of this host",
                                    ip_text(network).text, a->length);
        cause_evidence(c, "addr", snap_link_name(j->s, a->link), "%s/%u", ip_text(a->ip).text, a->length);
        cause_evidence(c, "nft", "inet " POLICY_TABLE " set host_networks", "has no element for it");
        cause_plan(c,
                   "start the controller: systemctl restart master-controller (it reads the host's networks anew; VMs "
                   "go on)");
        if (c)
            c->note = true;
    }
}

static const struct snap_nft_elem *elem_of_tap(const struct snapshot *s, const struct snap_nft_set *set,
                                               const char *tap) {
    char key[16] = "";
    str_copy(key, sizeof key, tap);
    for (uint32_t i = 0; i < set->elems.count; i++)
        if (memcmp(s->elems[set->elems.first + i].key, key, sizeof key) == 0)
            return &s->elems[set->elems.first + i];
    return NULL;
}

/* By name a VM's TAP, but not an element: everything that it sends is dropped. */
static void rule_unknown_tap(struct judge *j) {
    const struct snap_nft_set *set = address_set(j->s);
    if (set && !elem_of_tap(j->s, set, j->tap->name)) {
        struct cause *c =
            cause_add(j, "nft.isolation-unknown-tap", FLOWS_GUEST | FLOWS_EGRESS, 0,
                      "the controller's firewall does not know %s and drops all that it sends", j->tap->name);
        cause_evidence(c, "nft", "bridge " POLICY_TABLE " set vm_addresses", "no element for %s", j->tap->name);
        if (j->vm)
            cause_evidence(c, "record", j->vm->id, "its record says %s, address %s", j->vm->tap,
                           ip_text(j->vm->ip).text);
        if (j->vm)
            cause_plan(c,
                       "systemctl restart master-controller: it puts the VMs of its records in again, and they go on");
        else
            cause_plan(
                c, "no VM of the controller's records has it: give a TAP of your own a name that does not begin with "
                   "fc-vm-, or make the VM with mctl vm create");
    }
}

/* A frame with the VM's address out of its TAP whose MAC is not the VM's. NULL: there was none, or others are right. */
static const struct probe_frame *frame_of_other(const struct judge *j, struct net_mac own) {
    const struct probe_frame *found = NULL;
    for (size_t i = 0; j->t && i < j->probe->frame_count; i++) {
        const struct probe_frame *f = &j->probe->frames[i];
        if (f->ifindex != j->tap->index || f->outgoing || !f->source_ip || f->source_ip != j->target->ip)
            continue;
        if (mac_equal(f->source, own))
            return NULL;
        found = f;
    }
    return found;
}

/* That from_vm stops it is as it must be: the fault is the guest's. */
static void rule_foreign_mac(struct judge *j) {
    const struct snap_nft_set *set = address_set(j->s);
    const struct snap_nft_elem *elem = set ? elem_of_tap(j->s, set, j->tap->name) : NULL;
    struct net_mac own = {0};
    if (elem)
        memcpy(&own, elem->key + KEY_MAC, sizeof own);
    const struct probe_frame *f = elem ? frame_of_other(j, own) : NULL;
    if (!f)
        return;
    struct mac_text has = mac_text(f->source), should = mac_text(own);
    struct cause *c = cause_add(j, "guest.mac-differs", 0, FLOWS_GUEST | FLOW_EGRESS_GUEST,
                                "the guest's MAC is %s, not %s: the controller's firewall drops all that it sends",
                                has.text, should.text);
    if (!c)
        return;
    c->seen = true;
    c->finding.hop = HOP_TAP_INGRESS; /* there its frames die */
    cause_evidence(c, "probe", j->tap->name, "%s of %s comes out of it from %s", probe_frame_kind_name(f->kind),
                   ip_text(f->source_ip).text, has.text);
    cause_evidence(c, "nft", "bridge " POLICY_TABLE " set vm_addresses", "its element for %s has %s", j->tap->name,
                   should.text);
    if (j->vm)
        cause_plan(c, "mctl vm exec %s -- ip link set dev %s address %s", j->vm->id,
                   inside_nic(j) ? inside_nic(j)->name : "eth0", should.text);
}

void rules_policy(struct judge *j) {
    if (!j->s->host.managed || !j->bridge || snap_gap_of(j->s, "nft"))
        return;
    rule_table_gone(j);
    if (has_rules(j->s, NFPROTO_INET, "forward"))
        rule_open_network(j);
    if (j->tap && str_starts(j->tap->name, "fc-vm-") && has_chain(j->s, NFPROTO_BRIDGE, "from_vm"))
        rule_unknown_tap(j);
    if (j->tap && has_rules(j->s, NFPROTO_BRIDGE, "from_vm"))
        rule_foreign_mac(j);
}

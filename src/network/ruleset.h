/* The nftables tables of our own, as text: what a VM may send and where to. Pure.
 *
 * Two tables of one name. "bridge master_controller" sees every frame that leaves a TAP, before the bridge learns from
 * it: MAC, address and ARP sender must be the VM's own, only IPv4 and ARP exist, the receiver is the gateway (or, where
 * configured, another VM). "inet master_controller" sees what is for the host or to be routed: a VM reaches of the host
 * only ping at the gateway and configured ports, no other VM, no metadata address, no private network, none of the host's
 * own networks (set "host_networks"), and the outside only by the uplink.
 *
 * The rules are static. A VM is one element in each of the sets below, by the name of its TAP (bridge) or by its address
 * (inet, where the bridge table has proven it). A TAP "fc-vm-…" without elements passes nothing. Elements of sets whose
 * name begins with "stopped_" and "over_" count what was dropped, "over_" after a limit of their own.
 *
 * Other devices on the bridge are not VMs and are bound by the inet table alone. The doctor's canary (NET_CANARY_PORT,
 * NET_CANARY_MAC) is let through by name and MAC: nothing has to be added for it, so nothing is left of it. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/str.h"
#include "model/config.h"
#include "model/net.h"
#include "model/vm.h"

#define RULESET_NAME "master_controller" /* of both tables */
#define RULESET_SETS 21

/* Why something was stopped. */
enum ruleset_reason {
    RULESET_MEMBER, /* not a reason: the set says who the VM is */
    RULESET_MAC,
    RULESET_IP,
    RULESET_ARP,
    RULESET_PROTOCOL,
    RULESET_NEIGHBOUR,
    RULESET_HOST,
    RULESET_METADATA,
    RULESET_PRIVATE,
    RULESET_INVALID,
    RULESET_FRAGMENTS,
    RULESET_ARP_RATE,
    RULESET_RATE,
    RULESET_CONNECTIONS,
};
#define RULESET_REASONS 14

/* "mac", "arp-rate" and so on: as the API calls it. */
const char *ruleset_reason_name(enum ruleset_reason reason);

/* For a person: "frames with another MAC than its own". */
const char *ruleset_reason_words(enum ruleset_reason reason);

enum ruleset_key {
    RULESET_TAP,
    RULESET_TAP_MAC,
    RULESET_TAP_MAC_IP,
    RULESET_ADDRESS,
    RULESET_ADDRESS_TWICE, /* "ip saddr . ct original ip saddr" and the like: whether both are the same VM's */
};

struct ruleset_set {
    bool inet; /* else of the bridge table */
    const char *name;
    enum ruleset_key key;
    enum ruleset_reason reason;
};
extern const struct ruleset_set ruleset_sets[RULESET_SETS];

/* Whether this configuration has the set: one for a limit that is off is not there. */
bool ruleset_has(const struct config_network *cfg, size_t set);

struct ruleset_count {
    uint64_t packets, bytes;
};

struct ruleset_vm {
    char tap[VM_TAP_TEXT];
    struct net_mac mac;
    uint32_t ip;
    struct ruleset_count count[RULESET_SETS]; /* of each set's element */
};

/* The host's own networks. */
struct ruleset_networks {
    struct net_prefix *prefixes;
    size_t count;
};

/* Makes of the addresses of links the networks that these are connected to: sorted, each once and none within another,
 * as an nftables set of intervals wants them. */
void ruleset_networks_tidy(struct ruleset_networks *networks);

/* Adds the commands that replace whatever tables of that name there are, in one transaction, by what the configuration
 * says, with these VMs in them and their counters going on from where they are. `networks` are tidy. The names of bridge
 * and uplink have been checked. */
void ruleset_write(const struct config_network *cfg, struct net_mac bridge, const struct ruleset_vm *vms, size_t count,
                   const struct ruleset_networks *networks, struct strbuf *text);

/* Adds the commands that remove the tables; they need not exist. */
void ruleset_write_removal(struct strbuf *text);

/* Whether an interface's name can stand between quotation marks in a ruleset and mean itself. */
bool ruleset_name_is_plain(const char *name);

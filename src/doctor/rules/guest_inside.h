/* The guest's side of the way, as its agent told it: shared by the files that judge from inside.
 *
 * The order of belief: what the host saw, then what the guest says. From inside a cause is named only for a loss that
 * the host saw happen behind the VMM (or where nothing could be asked), that nothing on the host explains, and that what
 * the guest says does not contradict. Where the two contradict, both are told (guest.contradiction). */
#pragma once

#include "doctor/rules/internal.h"

/* Whether there is anything to judge by. */
bool inside_has_told(const struct judge *j);

/* The guest's network card: the one with the MAC that the host knows, else the one that has the address, else the only
 * one. NULL: it has none, or did not tell. */
const struct snap_guest_link *inside_nic(const struct judge *j);

/* The same before the probe; NULL where nobody asked then. */
const struct snap_guest_link *inside_nic_before(const struct judge *j);

/* Its row for the address that it should have, and the first other one of its card. */
const struct snap_guest_addr *inside_address(const struct judge *j);
const struct snap_guest_addr *inside_other_address(const struct judge *j);

/* By which route it sends to an address: the longest prefix, then the least metric, of its main table. */
const struct snap_guest_route *inside_route(const struct judge *j, uint32_t to);

/* Who listens to the service's port: on all addresses or the right one; on the loopback alone. */
const struct snap_guest_listener *inside_listener(const struct judge *j, bool loopback);

/* Whether the whole list of what it has is here, filter rules included. */
bool inside_is_complete(const struct judge *j);

/* A filter rule of the guest, or a chain's policy, that stops a question or its answer. */
struct inside_hit {
    enum nft_outcome outcome;
    bool rejects;
    enum packet_kind kind;
    char where[96]; /* "inet filter input handle 4" */
    char text[192];
    char verb[160];           /* what a person types to take it away */
    bool counted;             /* it has a counter */
    uint64_t packets, before; /* now, and before the probe */
};
/* kinds: PACKET_ARP_REQUEST, PACKET_ECHO or PACKET_SYN; its answer is tried as well. Return: whether there is one. */
bool inside_find_filter(const struct judge *j, enum packet_kind kind, struct inside_hit *ret);

/* --- guest_repair.c: what may be mended through the agent: a VM with a record, to what the record says --- */
bool inside_may_mend(const struct judge *j);
void inside_mend_link(struct judge *j, struct cause *c, const struct snap_guest_link *nic);
void inside_mend_address(struct judge *j, struct cause *c, const struct snap_guest_link *nic, bool anew);
void inside_mend_route(struct judge *j, struct cause *c, const struct snap_guest_link *nic);
void inside_mend_unit(struct judge *j, struct cause *c, const char *unit);

/* The members of the snapshot's rows by name, for snapshot_json.c. tests/unit/test_doctor_snapshot.c checks that no byte of a row is
 * forgotten. */
#include "doctor/snapshot_fields.h"

/* The macros keep a member's name, place and size together; a function cannot take a member. */
#define FIELD(member, kind)                                                                                            \
    { #member, kind, offsetof(ROW, member), sizeof(((ROW *)NULL)->member) }
#define TABLE(member, row, rows_max)                                                                                   \
    {                                                                                                                  \
#member, row##_fields, offsetof(struct snapshot, member), offsetof(struct snapshot, member##_count),           \
            offsetof(struct snapshot, member##_cap), sizeof(struct row), rows_max                                      \
    }

#define ROW struct snap_link
static const struct snapshot_field snap_link_fields[] = {
    FIELD(index, F_I32),
    FIELD(name, F_TEXT),
    FIELD(kind, F_TEXT),
    FIELD(slave_kind, F_TEXT),
    FIELD(alias, F_TEXT),
    FIELD(altname, F_TEXT),
    FIELD(mac, F_BYTES),
    FIELD(broadcast, F_BYTES),
    FIELD(flags, F_U32),
    FIELD(mtu, F_U32),
    FIELD(master, F_I32),
    FIELD(lower, F_I32),
    FIELD(operstate, F_U8),
    FIELD(linkmode, F_U8),
    FIELD(carrier, F_BOOL),
    FIELD(proto_down, F_BOOL),
    FIELD(txqueuelen, F_U32),
    FIELD(qdisc, F_TEXT),
    FIELD(rx_packets, F_U64),
    FIELD(tx_packets, F_U64),
    FIELD(rx_dropped, F_U64),
    FIELD(tx_dropped, F_U64),
    FIELD(rx_errors, F_U64),
    FIELD(tx_errors, F_U64),
    FIELD(rx_nohandler, F_U64),
    FIELD(rx_otherhost, F_U64),
    FIELD(rx_frame_errors, F_U64),
    FIELD(xdp_mode, F_U8),
    FIELD(xdp_prog, F_U32),
    FIELD(is_tap, F_BOOL),
    FIELD(tun_pi, F_BOOL),
    FIELD(tun_vnet_hdr, F_BOOL),
    FIELD(tun_persist, F_BOOL),
    FIELD(tun_multi_queue, F_BOOL),
    FIELD(tun_queues, F_U32),
    FIELD(tun_queues_off, F_U32),
    FIELD(tun_owner, F_U32),
    FIELD(offload_csum, F_I32),
    FIELD(offload_tso, F_I32),
    FIELD(attrs, F_RANGE),
    {0},
};
#undef ROW

#define ROW struct snap_attr
static const struct snapshot_field snap_attr_fields[] = {
    FIELD(space, F_U8), FIELD(type, F_U16), FIELD(len, F_U16), FIELD(value, F_U64), {0},
};
#undef ROW

#define ROW struct snap_addr
static const struct snapshot_field snap_addr_fields[] = {
    FIELD(link, F_I32),
    FIELD(ip, F_U32),
    FIELD(length, F_U8),
    FIELD(scope, F_U8),
    FIELD(flags, F_U32),
    FIELD(label, F_TEXT),
    {0},
};
#undef ROW

#define ROW struct snap_route
static const struct snapshot_field snap_route_fields[] = {
    FIELD(table, F_U32),  FIELD(to, F_U32),    FIELD(length, F_U8), FIELD(type, F_U8),        FIELD(protocol, F_U8),
    FIELD(scope, F_U8),   FIELD(flags, F_U32), FIELD(link, F_I32),  FIELD(gateway, F_U32),    FIELD(source, F_U32),
    FIELD(metric, F_U32), FIELD(mtu, F_U32),   FIELD(hops, F_U32),  FIELD(other_link, F_I32), {0},
};
#undef ROW

#define ROW struct snap_policy
static const struct snapshot_field snap_policy_fields[] = {
    FIELD(priority, F_U32),   FIELD(table, F_U32),
    FIELD(from, F_U32),       FIELD(to, F_U32),
    FIELD(from_length, F_U8), FIELD(to_length, F_U8),
    FIELD(action, F_U8),      FIELD(invert, F_U8),
    FIELD(mark, F_U32),       FIELD(mask, F_U32),
    FIELD(iif, F_TEXT),       FIELD(oif, F_TEXT),
    FIELD(protocol, F_U8),    FIELD(port_first, F_U16),
    FIELD(port_last, F_U16),  FIELD(has_uids, F_BOOL),
    FIELD(uid_first, F_U32),  FIELD(uid_last, F_U32),
    FIELD(go_to, F_U32),      FIELD(suppresses, F_U8),
    FIELD(more, F_BOOL),      {0},
};
#undef ROW

#define ROW struct snap_lookup
static const struct snapshot_field snap_lookup_fields[] = {
    FIELD(to, F_U32),
    FIELD(from, F_U32),
    FIELD(iif, F_I32),
    FIELD(error, F_I32),
    FIELD(type, F_U8),
    FIELD(link, F_I32),
    FIELD(gateway, F_U32),
    FIELD(source, F_U32),
    FIELD(table, F_U32),
    FIELD(mtu, F_U32),
    {0},
};
#undef ROW

#define ROW struct snap_neigh
static const struct snapshot_field snap_neigh_fields[] = {
    FIELD(link, F_I32),     FIELD(ip, F_U32),    FIELD(state, F_U16),  FIELD(flags, F_U8),
    FIELD(has_mac, F_BOOL), FIELD(mac, F_BYTES), FIELD(probes, F_U32), {0},
};
#undef ROW

#define ROW struct snap_fdb
static const struct snapshot_field snap_fdb_fields[] = {
    FIELD(link, F_I32),      FIELD(master, F_I32),    FIELD(mac, F_BYTES),
    FIELD(vlan, F_U16),      FIELD(state, F_U16),     FIELD(flags, F_U8),
    FIELD(ext_flags, F_U32), FIELD(updated_s, F_U32), {0},
};
#undef ROW

#define ROW struct snap_qdisc
static const struct snapshot_field snap_qdisc_fields[] = {
    FIELD(link, F_I32),       FIELD(handle, F_U32),        FIELD(parent, F_U32),          FIELD(is_class, F_BOOL),
    FIELD(kind, F_TEXT),      FIELD(bytes, F_U64),         FIELD(packets, F_U64),         FIELD(drops, F_U64),
    FIELD(overlimits, F_U64), FIELD(backlog_bytes, F_U64), FIELD(backlog_packets, F_U64), FIELD(limit, F_U32),
    FIELD(rate_bps, F_U64),   FIELD(loss, F_U32),          FIELD(delay_ns, F_U64),        {0},
};
#undef ROW

#define ROW struct snap_filter
static const struct snapshot_field snap_filter_fields[] = {
    FIELD(link, F_I32),         FIELD(parent, F_U32),         FIELD(egress, F_BOOL),  FIELD(is_tcx, F_BOOL),
    FIELD(priority, F_U16),     FIELD(protocol, F_U16),       FIELD(handle, F_U32),   FIELD(chain, F_U32),
    FIELD(kind, F_TEXT),        FIELD(action, F_I32),         FIELD(actions, F_TEXT), FIELD(to_link, F_I32),
    FIELD(conditional, F_BOOL), FIELD(direct_action, F_BOOL), FIELD(prog_id, F_U32),  FIELD(block, F_U32),
    FIELD(link_id, F_U32),      FIELD(packets, F_U64),        FIELD(drops, F_U64),    {0},
};
#undef ROW

#define ROW struct snap_prog
static const struct snapshot_field snap_prog_fields[] = {
    FIELD(id, F_U32), FIELD(type, F_U32), FIELD(name, F_TEXT), FIELD(tag, F_TEXT), {0},
};
#undef ROW

#define ROW struct snap_hook
static const struct snapshot_field snap_hook_fields[] = {
    FIELD(family, F_U8),   FIELD(hook, F_U8),    FIELD(priority, F_I32), FIELD(link, F_I32),    FIELD(function, F_TEXT),
    FIELD(module, F_TEXT), FIELD(chain, F_TEXT), FIELD(prog_id, F_U32),  FIELD(link_id, F_U32), {0},
};
#undef ROW

#define ROW struct snap_nft_chain
static const struct snapshot_field snap_nft_chain_fields[] = {
    FIELD(family, F_U8),    FIELD(table, F_TEXT),   FIELD(name, F_TEXT),    FIELD(handle, F_U64),
    FIELD(base, F_BOOL),    FIELD(hook, F_U8),      FIELD(priority, F_I32), FIELD(type, F_TEXT),
    FIELD(policy, F_U8),    FIELD(devices, F_TEXT), FIELD(packets, F_U64),  FIELD(bytes, F_U64),
    FIELD(counted, F_BOOL), FIELD(dormant, F_BOOL), FIELD(owned, F_BOOL),   {0},
};
#undef ROW

#define ROW struct snap_nft_expr
static const struct snapshot_field snap_nft_expr_fields[] = {
    FIELD(op, F_U8),       FIELD(cmp, F_U8),
    FIELD(sreg, F_U8),     FIELD(dreg, F_U8),
    FIELD(len, F_U8),      FIELD(base, F_U8),
    FIELD(offset, F_U16),  FIELD(key, F_I32),
    FIELD(set, F_BOOL),    FIELD(data, F_BYTES),
    FIELD(data2, F_BYTES), FIELD(name, F_TEXT),
    FIELD(value, F_U64),   {0},
};
#undef ROW

#define ROW struct snap_nft_rule
static const struct snapshot_field snap_nft_rule_fields[] = {
    FIELD(family, F_U8),  FIELD(table, F_TEXT),   FIELD(chain, F_TEXT),
    FIELD(handle, F_U64), FIELD(counted, F_BOOL), FIELD(packets, F_U64),
    FIELD(bytes, F_U64),  FIELD(exprs, F_RANGE),  {0},
};
#undef ROW

#define ROW struct snap_nft_set
static const struct snapshot_field snap_nft_set_fields[] = {
    FIELD(family, F_U8),     FIELD(table, F_TEXT),
    FIELD(name, F_TEXT),     FIELD(flags, F_U32),
    FIELD(key_len, F_U8),    FIELD(data_len, F_U8),
    FIELD(verdicts, F_BOOL), FIELD(complete, F_BOOL),
    FIELD(elems, F_RANGE),   {0},
};
#undef ROW

#define ROW struct snap_nft_elem
static const struct snapshot_field snap_nft_elem_fields[] = {
    FIELD(flags, F_U32),  FIELD(key, F_BYTES),   FIELD(key_end, F_BYTES), FIELD(has_end, F_BOOL),
    FIELD(data, F_BYTES), FIELD(verdict, F_I32), FIELD(chain, F_TEXT),    {0},
};
#undef ROW

#define ROW struct snap_sysctl
static const struct snapshot_field snap_sysctl_fields[] = {
    FIELD(key, F_TEXT),
    FIELD(value, F_TEXT),
    {0},
};
#undef ROW

#define ROW struct snap_holder
static const struct snapshot_field snap_holder_fields[] = {
    FIELD(tap, F_TEXT),
    FIELD(pid, F_I32),
    FIELD(comm, F_TEXT),
    FIELD(state, F_U8),
    FIELD(threads, F_U32),
    FIELD(threads_stopped, F_U32),
    FIELD(fd, F_I32),
    FIELD(start_ticks, F_U64),
    FIELD(dev_known, F_BOOL),
    FIELD(details, F_BOOL),
    FIELD(vnet_hdr_size, F_I32),
    FIELD(sndbuf, F_I32),
    FIELD(tun_flags, F_U32),
    FIELD(filtered, F_BOOL),
    FIELD(frozen, F_BOOL),
    FIELD(writes, F_U64),
    FIELD(written, F_U64),
    FIELD(gone, F_BOOL),
    {0},
};
#undef ROW

#define ROW struct snap_heard
static const struct snapshot_field snap_heard_fields[] = {
    FIELD(link, F_I32),
    FIELD(kind, F_U8),
    FIELD(ethertype, F_U16),
    FIELD(source, F_BYTES),
    FIELD(destination, F_BYTES),
    FIELD(source_ip, F_U32),
    FIELD(destination_ip, F_U32),
    FIELD(data, F_BYTES),
    FIELD(length, F_U32),
    FIELD(vlan, F_U16),
    {0},
};
#undef ROW

#define ROW struct snap_claimant
static const struct snapshot_field snap_claimant_fields[] = {
    FIELD(tap, F_TEXT),
    FIELD(pid, F_I32),
    FIELD(comm, F_TEXT),
    FIELD(uid, F_U32),
    FIELD(net_admin, F_BOOL),
    FIELD(orphaned, F_BOOL),
    {0},
};
#undef ROW

#define ROW struct snap_elsewhere
static const struct snapshot_field snap_elsewhere_fields[] = {
    FIELD(tap, F_TEXT),
    FIELD(netns, F_TEXT),
    FIELD(pid, F_I32),
    {0},
};
#undef ROW

#define ROW struct snap_vm
static const struct snapshot_field snap_vm_fields[] = {
    FIELD(id, F_TEXT),       FIELD(user, F_TEXT),
    FIELD(type, F_TEXT),     FIELD(state, F_TEXT),
    FIELD(tap, F_TEXT),      FIELD(bridge, F_TEXT),
    FIELD(vmm, F_TEXT),      FIELD(ip, F_U32),
    FIELD(mac, F_BYTES),     FIELD(pid, F_I32),
    FIELD(pid_start, F_U64), FIELD(port, F_U16),
    FIELD(paused, F_TEXT),   {0},
};
#undef ROW

#define ROW struct snap_vmm
static const struct snapshot_field snap_vmm_fields[] = {
    FIELD(tap, F_TEXT),
    FIELD(pid, F_I32),
    FIELD(error, F_I32),
    FIELD(socket, F_TEXT),
    FIELD(status, F_TEXT),
    FIELD(nic, F_TEXT),
    FIELD(backend, F_TEXT),
    FIELD(mac, F_BYTES),
    FIELD(link, F_I32),
    FIELD(words, F_TEXT),
    {0},
};
#undef ROW

#define ROW struct snap_console
static const struct snapshot_field snap_console_fields[] = {
    FIELD(vm_id, F_TEXT), FIELD(tap, F_TEXT), FIELD(line, F_TEXT), FIELD(sort, F_TEXT), {0},
};
#undef ROW

#define ROW struct snap_table_fill
static const struct snapshot_field snap_table_fill_fields[] = {
    FIELD(name, F_TEXT), FIELD(used, F_U64), FIELD(max, F_U64), FIELD(full_events, F_U64), {0},
};
#undef ROW

#define ROW struct snap_xfrm
static const struct snapshot_field snap_xfrm_fields[] = {
    FIELD(dir, F_U8),         FIELD(block, F_BOOL),
    FIELD(from, F_U32),       FIELD(to, F_U32),
    FIELD(from_length, F_U8), FIELD(to_length, F_U8),
    FIELD(priority, F_U32),   FIELD(index, F_U32),
    FIELD(templates, F_U32),  {0},
};
#undef ROW

#define ROW struct snap_guest
static const struct snapshot_field snap_guest_fields[] = {
    FIELD(vm_id, F_TEXT),
    FIELD(tap, F_TEXT),
    FIELD(state, F_U8),
    FIELD(complete, F_BOOL),
    FIELD(words, F_TEXT),
    FIELD(uptime_s, F_I64),
    FIELD(oom_kills, F_I64),
    FIELD(ignores_ping, F_I32),
    FIELD(rp_filter, F_I32),
    FIELD(arp_ignore, F_I32),
    FIELD(firewall_known, F_BOOL),
    FIELD(firewall_words, F_TEXT),
    FIELD(links, F_RANGE),
    FIELD(addrs, F_RANGE),
    FIELD(routes, F_RANGE),
    FIELD(neighs, F_RANGE),
    FIELD(listeners, F_RANGE),
    FIELD(units, F_RANGE),
    FIELD(chains, F_RANGE),
    FIELD(rules, F_RANGE),
    FIELD(facts, F_RANGE),
    {0},
};
#undef ROW

#define ROW struct snap_guest_link
static const struct snapshot_field snap_guest_link_fields[] = {
    FIELD(name, F_TEXT),      FIELD(kind, F_TEXT),      FIELD(index, F_I32),      FIELD(up, F_BOOL),
    FIELD(carrier, F_BOOL),   FIELD(noarp, F_BOOL),     FIELD(arp_ignore, F_I32), FIELD(mac, F_BYTES),
    FIELD(mtu, F_U32),        FIELD(rx_packets, F_U64), FIELD(tx_packets, F_U64), FIELD(rx_dropped, F_U64),
    FIELD(tx_dropped, F_U64), FIELD(rx_errors, F_U64),  FIELD(tx_errors, F_U64),  {0},
};
#undef ROW

#define ROW struct snap_guest_addr
static const struct snapshot_field snap_guest_addr_fields[] = {
    FIELD(link, F_TEXT),
    FIELD(ip, F_U32),
    FIELD(length, F_U8),
    {0},
};
#undef ROW

#define ROW struct snap_guest_route
static const struct snapshot_field snap_guest_route_fields[] = {
    FIELD(to, F_U32),      FIELD(length, F_U8), FIELD(type, F_U8),
    FIELD(gateway, F_U32), FIELD(link, F_TEXT), FIELD(source, F_U32),
    FIELD(metric, F_U32),  FIELD(table, F_U32), {0},
};
#undef ROW

#define ROW struct snap_guest_neigh
static const struct snapshot_field snap_guest_neigh_fields[] = {
    FIELD(ip, F_U32), FIELD(link, F_TEXT), FIELD(has_mac, F_BOOL), FIELD(mac, F_BYTES), FIELD(state, F_TEXT), {0},
};
#undef ROW

#define ROW struct snap_guest_listener
static const struct snapshot_field snap_guest_listener_fields[] = {
    FIELD(protocol, F_TEXT), FIELD(any, F_BOOL),     FIELD(loopback, F_BOOL),
    FIELD(ip, F_U32),        FIELD(port, F_U16),     FIELD(queue, F_U32),
    FIELD(pid, F_I32),       FIELD(program, F_TEXT), {0},
};
#undef ROW

#define ROW struct snap_guest_unit
static const struct snapshot_field snap_guest_unit_fields[] = {
    FIELD(name, F_TEXT),   FIELD(load, F_TEXT),    FIELD(active, F_TEXT),   FIELD(sub, F_TEXT),
    FIELD(result, F_TEXT), FIELD(enabled, F_TEXT), FIELD(restarts, F_TEXT), {0},
};
#undef ROW

#define ROW struct snap_guest_fact
static const struct snapshot_field snap_guest_fact_fields[] = {
    FIELD(name, F_TEXT),
    FIELD(value, F_TEXT),
    {0},
};
#undef ROW

#define ROW struct snap_gap
static const struct snapshot_field snap_gap_fields[] = {
    FIELD(what, F_TEXT),
    FIELD(errnum, F_I32),
    FIELD(detail, F_TEXT),
    {0},
};
#undef ROW

#define ROW struct snap_host
const struct snapshot_field snap_host_fields[] = {
    FIELD(name, F_TEXT),
    FIELD(kernel, F_TEXT),
    FIELD(netns, F_TEXT),
    FIELD(bridge, F_TEXT),
    FIELD(bridge_index, F_I32),
    FIELD(root, F_BOOL),
    FIELD(taken_ms, F_I64),
    FIELD(legacy_xtables, F_BOOL),
    FIELD(legacy_tables, F_TEXT),
    FIELD(managed, F_BOOL),
    FIELD(managed_ip, F_U32),
    FIELD(managed_length, F_U8),
    FIELD(managed_mac, F_BYTES),
    FIELD(managed_uplink, F_TEXT),
    FIELD(managed_masquerade, F_BOOL),
    FIELD(ipv6, F_BOOL),
    {0},
};
#undef ROW

const struct snapshot_table snapshot_tables[] = {
    TABLE(links, snap_link, SNAP_LINKS_MAX),
    TABLE(attrs, snap_attr, SNAP_EXPRS_MAX),
    TABLE(addrs, snap_addr, SNAP_ROWS_MAX),
    TABLE(routes, snap_route, SNAP_ROUTES_MAX),
    TABLE(policies, snap_policy, SNAP_ROWS_MAX),
    TABLE(lookups, snap_lookup, SNAP_ROWS_MAX),
    TABLE(neighs, snap_neigh, SNAP_NEIGH_MAX),
    TABLE(fdbs, snap_fdb, SNAP_FDB_MAX),
    TABLE(qdiscs, snap_qdisc, SNAP_ROWS_MAX),
    TABLE(filters, snap_filter, SNAP_ROWS_MAX),
    TABLE(progs, snap_prog, SNAP_ROWS_MAX),
    TABLE(hooks, snap_hook, SNAP_ROWS_MAX),
    TABLE(chains, snap_nft_chain, SNAP_ROWS_MAX),
    TABLE(rules, snap_nft_rule, SNAP_RULES_MAX),
    TABLE(exprs, snap_nft_expr, SNAP_EXPRS_MAX),
    TABLE(sets, snap_nft_set, SNAP_ROWS_MAX),
    TABLE(elems, snap_nft_elem, SNAP_ELEMS_MAX),
    TABLE(sysctls, snap_sysctl, SNAP_ROWS_MAX),
    TABLE(holders, snap_holder, SNAP_ROWS_MAX),
    TABLE(heard, snap_heard, SNAP_ROWS_MAX),
    TABLE(claimants, snap_claimant, SNAP_ROWS_MAX),
    TABLE(elsewhere, snap_elsewhere, SNAP_ROWS_MAX),
    TABLE(vms, snap_vm, SNAP_ROWS_MAX),
    TABLE(vmms, snap_vmm, SNAP_ROWS_MAX),
    TABLE(consoles, snap_console, SNAP_ROWS_MAX),
    TABLE(fills, snap_table_fill, SNAP_ROWS_MAX),
    TABLE(xfrms, snap_xfrm, SNAP_ROWS_MAX),
    TABLE(guests, snap_guest, SNAP_GUESTS_MAX),
    TABLE(guest_links, snap_guest_link, SNAP_GUEST_ROWS_MAX),
    TABLE(guest_addrs, snap_guest_addr, SNAP_GUEST_ROWS_MAX),
    TABLE(guest_routes, snap_guest_route, SNAP_GUEST_ROWS_MAX),
    TABLE(guest_neighs, snap_guest_neigh, SNAP_GUEST_ROWS_MAX),
    TABLE(guest_listeners, snap_guest_listener, SNAP_GUEST_ROWS_MAX),
    TABLE(guest_units, snap_guest_unit, SNAP_GUEST_ROWS_MAX),
    TABLE(guest_chains, snap_nft_chain, SNAP_GUEST_ROWS_MAX),
    TABLE(guest_rules, snap_nft_rule, SNAP_GUEST_ROWS_MAX),
    TABLE(guest_exprs, snap_nft_expr, SNAP_ROWS_MAX),
    TABLE(guest_facts, snap_guest_fact, SNAP_GUEST_ROWS_MAX),
    TABLE(gaps, snap_gap, 256),
    {0},
};

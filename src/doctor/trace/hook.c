/* From a drop's call chain to the hook at which it happened. The function that called the netfilter core is the hook:
 * its name has been the same for many years, the offsets behind it never are. */
#include <string.h>

#include "base/str.h"
#include "doctor/trace/internal.h"

static bool in_stack(const struct trace_stack *stack, const char *function) {
    if (!stack)
        return false;
    for (int i = 0; i < TRACE_STACK; i++)
        if (strcmp(stack->function[i], function) == 0)
            return true;
    return false;
}

bool trace_stack_at_port(const struct trace_stack *stack) {
    return in_stack(stack, "__br_forward") || in_stack(stack, "br_forward") || in_stack(stack, "br_forward_finish") ||
           in_stack(stack, "br_dev_queue_push_xmit") || in_stack(stack, "br_flood") ||
           in_stack(stack, "maybe_deliver") || in_stack(stack, "br_nf_dev_queue_xmit") ||
           in_stack(stack, "br_multicast_flood");
}

/* Functions of the filter machinery itself, between the drop and the hook. */
static bool is_filter(const char *function) {
    return str_starts(function, "nft_") || str_starts(function, "nf_hook") || str_starts(function, "nf_") ||
           strstr(function, "t_do_table") || str_starts(function, "ebt_") ||
           str_starts(function, "sk_skb_reason_drop") || str_starts(function, "kfree_skb") ||
           str_starts(function, "trace_event") || str_starts(function, "__traceiter") ||
           str_starts(function, "ebtable_") || str_starts(function, "arptable_") || str_starts(function, "iptable_") ||
           str_starts(function, "__traceiter") || str_starts(function, "__kfree_skb") || str_starts(function, "ipt_") ||
           str_starts(function, "skb_release") || str_starts(function, "kfree_skb_list");
}

static const char *filter_hook(const struct trace_stack *stack) {
    static const struct {
        const char *function, *hook;
    } hooks[] = {
        {"br_forward_finish", "bridge.postrouting"},
        {"br_pass_frame_up", "bridge.input"},
        {"br_handle_frame", "bridge.prerouting"},
        {"br_handle_local_finish", "bridge.input"},
        {"arp_xmit", "arp.output"},
        {"arp_rcv", "arp.input"},
        {"__ip_local_out", "ip.output"},
        {"ip_local_out", "ip.output"},
        {"raw_send_hdrinc", "ip.output"},
        {"raw_sendmsg", "ip.output"},
        {"ip_local_deliver", "ip.input"},
        {"ip_forward", "ip.forward"},
        {"ip_rcv", "ip.prerouting"},
        {"ip_sublist_rcv", "ip.prerouting"},
        {"ip_list_rcv", "ip.prerouting"},
        {"ip_output", "ip.postrouting"},
        {"ip_mc_output", "ip.postrouting"},
        {"__netif_receive_skb_core", "netdev.ingress"},
        {"__netif_receive_skb_one_core", "netdev.ingress"},
        {"__dev_queue_xmit", "netdev.egress"},
        {"br_nf_pre_routing", "br_netfilter.prerouting"},
        {"br_nf_forward", "br_netfilter.forward"},
        {"br_nf_forward_ip", "br_netfilter.forward"},
        {"br_nf_forward_arp", "br_netfilter.forward"},
        {"br_nf_local_in", "br_netfilter.input"},
        {"br_nf_post_routing", "br_netfilter.postrouting"},
    };
    for (int i = 0; stack && i < TRACE_STACK && *stack->function[i]; i++) {
        const char *function = stack->function[i];
        if (strcmp(function, "__br_forward") == 0)
            return in_stack(stack, "br_dev_xmit") ? "bridge.output" : "bridge.forward";
        for (size_t j = 0; j < sizeof hooks / sizeof *hooks; j++)
            if (strcmp(function, hooks[j].function) == 0)
                return hooks[j].hook;
        if (!is_filter(function))
            return "";
    }
    return "";
}

static const char *hook_of_reason(const char *reason) {
    static const struct {
        const char *prefix, *hook;
    } reasons[] = {
        {"TC_INGRESS", "tc.ingress"},
        {"TC_EGRESS", "tc.egress"},
        {"QDISC_", "qdisc"},
        {"CAKE_", "qdisc"},
        {"FQ_", "qdisc"},
        {"DUALPI2", "qdisc"},
        {"XDP", "xdp"},
        {"BRIDGE_INGRESS", "bridge.port"},
        {"MAC_INVALID_SOURCE", "bridge.port"},
        {"IP_RPFILTER", "ip.route"},
        {"IP_INADDRERRORS", "ip.route"},
        {"IP_INNOROUTES", "ip.route"},
        {"IP_OUTNOROUTES", "ip.route"},
        {"NEIGH_", "neighbour"},
        {"SOCKET_", "socket"},
        {"XFRM_", "xfrm"},
        {"NO_TX_TARGET", "bridge.fdb"},
    };
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++)
        if (str_starts(reason, reasons[i].prefix))
            return reasons[i].hook;
    return "";
}

static const char *hook_of_function(const char *function) {
    static const struct {
        const char *function, *hook;
    } functions[] = {
        {"tun_net_xmit", "tap.queue"},
        {"tun_get_user", "tap.write"},
        {"br_handle_frame", "bridge.port"},
        {"br_nf_pre_routing", "br_netfilter.prerouting"},
        {"ip_rcv_core", "ip.prerouting"},
        {"tcp_v4_rcv", "socket"},
        {"icmp_rcv", "socket"},
        {"br_handle_frame_finish", "bridge.fdb"},
        {"br_dev_xmit", "bridge.fdb"},
        {"br_forward", "bridge.port"},
        {"do_xdp_generic", "xdp"},
        {"tcf_qevent_handle", "qdisc"},
        {"__dev_queue_xmit", "device"},
        {"ip_error", "ip.route"},
        {"ip_forward", "ip.forward"},
        {"ip_rcv_finish_core", "ip.route"},
        {"arp_process", "arp"},
        {"arp_error_report", "neighbour"},
        {"neigh_timer_handler", "neighbour"},
        {"validate_xmit_skb", "device"},
        {"__neigh_event_send", "neighbour"},
        {"noop_enqueue", "qdisc"},
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (strcmp(function, functions[i].function) == 0)
            return functions[i].hook;
    return "";
}

const char *trace_hook_of(const struct trace_event *event, const struct trace_stack *stack) {
    bool filtered = strcmp(event->reason, "NETFILTER_DROP") == 0 || str_starts(event->location, "nf_hook") ||
                    str_starts(event->location, "nft_") || strstr(event->location, "t_do_table");
    if (filtered)
        return filter_hook(stack);
    /* A tc action that shoots, seen from a kernel that does not say so by the reason. */
    const char *hook = hook_of_reason(event->reason);
    return *hook ? hook : hook_of_function(event->location);
}

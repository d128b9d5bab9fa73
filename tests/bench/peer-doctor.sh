#!/bin/bash
# What an engineer's script would do for the same facts: every list that the usual tools have, a capture on bridge and
# TAP while it asks, and no verdict. usage: peer-doctor.sh BRIDGE TAP|- [ADDRESS]; without a TAP: the whole host, and all
# addresses that the neighbour table has. In the namespace of the caller.
bridge=$1 tap=$2 address=${3-}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit
captures=()
capture() { # DEVICE: returns when it listens
    tcpdump -n -U -i "$1" -w "$1.pcap" 2>"$1.log" &
    captures+=($!)
    until grep -q listening "$1.log" 2>/dev/null; do sleep 0.002; done
}
lists() {
    ip -d -s -j link >link
    ip -j addr >addr
    ip -j route show table all >route
    ip -j rule >rule
    ip -j -s neigh >neigh
    bridge -d -s -j link >port
    bridge -d -s -j fdb >fdb
    bridge -j mdb >mdb
    nft -a -j list ruleset >nft
    ip -d -j xfrm state >/dev/null 2>&1
    tc -s -j qdisc >qdisc
    sysctl -a >sysctl 2>/dev/null
    cat /proc/net/stat/* >stat
    grep -H '^iff:' /proc/[0-9]*/fdinfo/* >holders 2>/dev/null
}
filters() { # DEVICE…
    for dev in "$@"; do
        tc -s -j filter show dev "$dev" ingress
        tc -s -j filter show dev "$dev" egress
    done >filters 2>/dev/null
}
lists
if [[ $tap != - ]]; then
    filters "$bridge" "$tap"
    ethtool -k "$tap" >features
    ip route get "$address" >lookup
    capture "$bridge"
    capture "$tap"
    arping -q -c 1 -w 1 -I "$bridge" "$address" >arping 2>&1
    ping -n -c 1 -W 1 "$address" >ping 2>&1
    kill "${captures[@]}"
    wait "${captures[@]}" 2>/dev/null
else
    mapfile -t taps < <(jq -r '.[] | select(.linkinfo.info_kind == "tun") | .ifname' link)
    filters "$bridge" "${taps[@]}"
    capture "$bridge"
    jq -r '.[].dst' neigh | xargs -P 16 -n 1 ping -n -q -c 1 -W 1 >ping 2>&1
    kill "${captures[@]}"
    wait "${captures[@]}" 2>/dev/null
fi
lists

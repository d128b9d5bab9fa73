"""Hosts on which nothing is wrong, though much looks odd: no root cause, exit status 0, and nothing is changed."""
import contextlib
import json
import signal
import socket
import subprocess
import threading
import time

import pytest

from faults import TC_OK, TCX_NEXT, XDP_PASS, Fault
from lab import GATEWAY, MCTL, PORT, UPLINK_GATEWAY, Lab
from test_catalogue import ONLY_INJECT

HEALTHY = []


def healthy(key, **rest):
    def take(inject):
        HEALTHY.append(Fault(key, "", inject, **{"dead": (), "warm": True, "cold": False, **rest}))
        return inject

    return take


def odd(key, *lines, **rest):
    """Commands, each "tool words…", on a host that stays healthy."""

    def inject(bed):
        names = {"$TAP": bed.vm.tap, "$OTHER": bed.other.tap, "$GUEST": bed.vm.address, "$MAC": bed.vm.mac}
        for line in lines:
            for name, value in names.items():
                line = line.replace(name, value)
            tool, *words = line.split()
            {"ip": bed.lab.ip, "bridge": bed.lab.bridge, "tc": bed.lab.tc}.get(tool, lambda *w: bed.lab.run(tool, *w))(*words)

    healthy(key, **rest)(inject)


def rules(key, text, **rest):
    def inject(bed):
        names = {"$TAP": bed.vm.tap, "$GUEST": bed.vm.address, "$MAC": bed.vm.mac}
        if bed.other:
            names |= {"$OTHER": bed.other.tap, "$PEER": bed.other.address, "$PEERS_MAC": bed.other.mac}
        filled = text
        for name in sorted(names, key=len, reverse=True):
            filled = filled.replace(name, names[name])
        bed.lab.nft(filled)

    healthy(key, **rest)(inject)


UPLINK = {"lab": {"uplink": True}}

odd("plain")
odd("uplink", **UPLINK)
odd("no forwarding, no uplink", lab={"forward": 0})
odd("bridge netfilter on", lab={"bridge_netfilter": 1})
odd("bridge netfilter off", lab={"bridge_netfilter": 0})
odd("cold caches", cold=True)
odd("never spoke", warm=False)
odd("isolated on one port", "bridge link set dev $TAP isolated on")
odd("flood off, MAC learned", "bridge link set dev $TAP flood off")
odd("hairpin", "bridge link set dev $TAP hairpin on")
odd("neigh_suppress", "bridge link set dev $TAP neigh_suppress on")
odd("port options", "bridge link set dev $TAP fastleave on", "bridge link set dev $TAP mcast_to_unicast on",
    "bridge link set dev $TAP root_block on", "bridge link set dev $TAP guard on")
odd("no multicast flood, no IPv6 guest", "bridge link set dev $OTHER mcast_flood off")
odd("locked, MAC allowed", "bridge fdb replace $MAC dev $TAP master static", "bridge link set dev $TAP learning off",
    "bridge link set dev $TAP locked on")
odd("static FDB entry, the right one", "bridge fdb replace $MAC dev $TAP master static")
odd("permanent neighbour, the right one", "ip neigh replace $GUEST lladdr $MAC dev br0 nud permanent")
odd("snooping off", "ip link set br0 type bridge mcast_snooping 0")
odd("TAP opened without vnet header", guest={"vnet": 0, "believe": 0})
odd("TAP with a header of ten", guest={"size": 10, "believe": 10})
odd("TAP with packet information", guest={"vnet": 0, "pi": 1, "believe": 4})
odd("TAP not persistent", setup=lambda bed: bed.vm("persist", 0))
odd("TAP with an owner", guest={"tap_kind": "user 0"})
odd("guest /24 with all inside", guest={"prefix": 24}, other={"prefix": 24})
odd("guest without gateway", guest={"gateway": None})
odd("shaping that lets all through", "tc qdisc replace dev $TAP root tbf rate 1gbit burst 128k latency 50ms")
odd("htb that lets all through", "tc qdisc replace dev $TAP root handle 1: htb default 10",
    "tc class add dev $TAP parent 1: classid 1:10 htb rate 1gbit")
odd("pfifo", "tc qdisc replace dev $TAP root pfifo limit 100")
odd("clsact without filters", "tc qdisc add dev $TAP clsact", "tc qdisc add dev br0 clsact")
odd("sysctls of a hardened host", "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.br0.rp_filter=1 net.ipv4.conf.br0.arp_ignore=1 "
    "net.ipv4.conf.br0.arp_announce=2 net.ipv4.conf.all.log_martians=1 net.ipv4.conf.all.accept_redirects=0", **UPLINK)
odd("strange routes elsewhere", "ip route add blackhole 10.0.0.0/8", "ip route add unreachable 172.16.0.0/12",
    "ip rule add to 10.9.0.0/16 lookup 100 pref 50", "ip rule add from 172.17.0.0/16 prohibit pref 60", **UPLINK)
odd("policy routing that ends right", "ip rule add to 192.168.0.0/16 lookup main pref 50", "ip route add default via 203.0.113.1 table 100",
    "ip rule add from 192.168.0.0/16 lookup 100 pref 60", **UPLINK)
odd("all at 1400", "ip link set $TAP mtu 1400", "ip link set $OTHER mtu 1400", guest={"mtu": 1400}, other={"mtu": 1400})
odd("room for jumbo frames that nobody uses", "ip link set $TAP mtu 9000", "ip link set br0 mtu 1500")
odd("jumbo frames for one", "ip link set $TAP mtu 9000", "ip link set $OTHER mtu 9000", "ip link set br0 mtu 9000", guest={"mtu": 9000})
odd("second bridge", "ip link add br1 type bridge", "ip address add 10.20.0.1/24 dev br1", "ip link set br1 up")
odd("docker0 without carrier", "ip link add docker0 type bridge", "ip address add 172.17.0.1/16 dev docker0", "ip link set docker0 up", **UPLINK)
odd("second address", "ip address add 192.168.255.254/16 dev br0", "ip address add 10.0.0.1/24 dev br0")
odd("macvlan and dummy devices", "ip link add mv0 link br0 type macvlan mode bridge", "ip link set mv0 up", "ip link add vx0 type vxlan id 7 dstport 4789")
odd("ebtables that accept", "ebtables -A OUTPUT -o $TAP -j ACCEPT", "ebtables -A FORWARD -p ARP -j ACCEPT", "ebtables -N chain1")
odd("ebtables for another", "ebtables -A OUTPUT -o nosuch0 -j DROP", "ebtables -A FORWARD -i nosuch0 -j DROP",
    "ebtables -A INPUT -s 02:00:00:00:00:77 -j DROP")
odd("anti-spoofing that is right", "ebtables -t nat -A PREROUTING -i $TAP -s ! $MAC -j DROP")
odd("arptables for another", "arptables -A OUTPUT -d 10.1.1.1 -j DROP")
odd("legacy tables that accept", "arptables-legacy -P OUTPUT ACCEPT", "iptables-legacy -L -n")
odd("input policy drop, accept for br0", "iptables -A INPUT -i lo -j ACCEPT", "iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
    "iptables -A INPUT -i br0 -j ACCEPT", "iptables -P INPUT DROP")
odd("a host that guests may not call", "iptables -A INPUT -i br0 -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
    "iptables -A INPUT -i br0 -p tcp --dport 22 -j DROP")
odd("docker, accepting br0", "iptables -N DOCKER", "iptables -N DOCKER-USER", "iptables -N DOCKER-ISOLATION-STAGE-1",
    "iptables -N DOCKER-ISOLATION-STAGE-2", "iptables -A FORWARD -j DOCKER-USER", "iptables -A FORWARD -j DOCKER-ISOLATION-STAGE-1",
    "iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "iptables -A FORWARD -o docker0 -j DOCKER",
    "iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT", "iptables -A FORWARD -i docker0 -o docker0 -j ACCEPT",
    "iptables -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2", "iptables -A DOCKER-ISOLATION-STAGE-1 -j RETURN",
    "iptables -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP", "iptables -A DOCKER-ISOLATION-STAGE-2 -j RETURN",
    "iptables -A DOCKER-USER -i br0 -j ACCEPT", "iptables -A DOCKER-USER -o br0 -j ACCEPT", "iptables -A DOCKER-USER -j RETURN",
    "iptables -P FORWARD DROP", "iptables -t nat -N DOCKER", "iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
    "iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE", "iptables -t nat -A DOCKER -i docker0 -j RETURN",
    "iptables -t nat -A DOCKER ! -i docker0 -p tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80", **UPLINK)
odd("docker, policy accept", "iptables -N DOCKER", "iptables -A FORWARD -o docker0 -j DOCKER", "iptables -A FORWARD -i docker0 -j DROP",
    "iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE", lab={"uplink": True, "bridge_netfilter": 1})

rules("nft that counts", """
add table bridge b
add chain bridge b o { type filter hook output priority 0; }
add rule bridge b o oifname $TAP counter
add rule bridge b o ether type arp counter accept
add chain bridge b f { type filter hook forward priority 0; policy drop; }
add rule bridge b f accept
add table inet i
add chain inet i in { type filter hook input priority 0; policy drop; }
add rule inet i in ct state vmap { established : accept, related : accept, invalid : drop }
add rule inet i in iifname { "lo", "br0" } accept
""")
rules("nft drops for others", """
add table bridge b
add chain bridge b o { type filter hook output priority 0; }
add rule bridge b o oifname "nosuch0" drop
add rule bridge b o ether daddr 02:00:00:00:00:98 drop
add chain bridge b p { type filter hook prerouting priority 0; }
add rule bridge b p iifname != { $TAP, $OTHER, "peer0" } counter drop comment "not ours"
add table netdev n
add chain netdev n e { type filter hook ingress device $TAP priority 0; }
add rule netdev n e ip saddr != $GUEST ip protocol icmp drop
add table arp a
add chain arp a o { type filter hook output priority 0; }
add rule arp a o arp daddr ip 10.3.3.3 drop
""")
rules("nft dynamic limits that are wide", """
add table inet i
add set inet i seen { type ipv4_addr; flags dynamic,timeout; timeout 60s; }
add chain inet i in { type filter hook input priority 0; }
add rule inet i in ip saddr 192.168.0.0/16 limit rate over 100000/second drop
add rule inet i in add @seen { ip saddr }
""")
OWN_ONLY = """
add table bridge b
add set bridge b own { type ifname . ether_addr . ipv4_addr; elements = { $ELEMENTS }; }
add chain bridge b p { type filter hook prerouting priority 0; }
add rule bridge b p iifname "fc-vm-*" ether type arp iifname . arp saddr ether . arp saddr ip != @own drop
add rule bridge b p iifname "fc-vm-*" ether type ip iifname . ether saddr . ip saddr != @own drop
"""
rules("each VM its own address", OWN_ONLY.replace("$ELEMENTS", "$TAP . $MAC . $GUEST, $OTHER . $PEERS_MAC . $PEER"))
rules("each VM its own address, cold", OWN_ONLY.replace("$ELEMENTS", "$TAP . $MAC . $GUEST, $OTHER . $PEERS_MAC . $PEER"), warm=False)
rules("the only VM its own address", OWN_ONLY.replace("$ELEMENTS", "$TAP . $MAC . $GUEST"), other=None)
rules("rules for another VM that are right", """
add table bridge b
add chain bridge b p { type filter hook prerouting priority 0; }
add rule bridge b p iifname $OTHER arp saddr ip != $PEER drop
add rule bridge b p iifname $OTHER arp saddr ether != $PEERS_MAC drop
add rule bridge b p iifname $OTHER ip saddr != $PEER drop
add chain bridge b o { type filter hook postrouting priority 0; }
add rule bridge b o oifname $OTHER arp daddr ip != $PEER drop
add rule bridge b o oifname $OTHER ip daddr != { $PEER, 255.255.255.255 } drop
""")
rules("only devices that are known, and there is one VM", """
add table bridge b
add chain bridge b p { type filter hook prerouting priority 0; }
add rule bridge b p iifname != { $TAP, "peer0" } drop
""", other=None)
rules("MAC translation", """
add table bridge b
add chain bridge b p { type filter hook prerouting priority 0; }
add rule bridge b p iifname $TAP ether type ip ether saddr set 02:00:00:00:00:99
""")
rules("limits for each source, named limits, marks", """
add table inet m
add set inet m seen { type ipv4_addr; flags dynamic; size 1000; }
add limit inet m big { rate over 1000/second burst 100 packets; }
add quota inet m q { over 100 mbytes }
add chain inet m p { type filter hook prerouting priority -150; }
add rule inet m p iifname br0 meta mark set 0x5
add chain inet m f { type filter hook forward priority 0; }
add rule inet m f iifname br0 tcp flags syn update @seen { ip saddr limit rate over 100/second burst 50 packets } drop
add rule inet m f iifname br0 meta l4proto tcp limit name big drop
add rule inet m f iifname br0 udp dport 53 quota name q drop
add rule inet m f iifname br0 meta l4proto tcp meta mark != 0x5 drop
""", **UPLINK)
rules("firewalld", """
add table inet firewalld
add chain inet firewalld raw_PREROUTING { type filter hook prerouting priority -290; policy accept; }
add rule inet firewalld raw_PREROUTING icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
add rule inet firewalld raw_PREROUTING meta nfproto ipv6 fib saddr . iif oif missing drop
add chain inet firewalld filter_INPUT { type filter hook input priority 10; policy accept; }
add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy accept; }
add chain inet firewalld filter_INPUT_ZONES
add chain inet firewalld filter_FORWARD_ZONES
add chain inet firewalld filter_IN_trusted
add chain inet firewalld filter_IN_public
add chain inet firewalld filter_FWD_trusted
add rule inet firewalld filter_IN_trusted accept
add rule inet firewalld filter_FWD_trusted accept
add rule inet firewalld filter_IN_public tcp dport 22 ct state { new, untracked } accept
add rule inet firewalld filter_IN_public meta l4proto { icmp, ipv6-icmp } accept
add rule inet firewalld filter_INPUT_ZONES iifname "br0" goto filter_IN_trusted
add rule inet firewalld filter_INPUT_ZONES goto filter_IN_public
add rule inet firewalld filter_FORWARD_ZONES iifname "br0" goto filter_FWD_trusted
add rule inet firewalld filter_INPUT ct state { established, related } accept
add rule inet firewalld filter_INPUT ct status dnat accept
add rule inet firewalld filter_INPUT iifname "lo" accept
add rule inet firewalld filter_INPUT ct state invalid drop
add rule inet firewalld filter_INPUT jump filter_INPUT_ZONES
add rule inet firewalld filter_INPUT reject with icmpx admin-prohibited
add rule inet firewalld filter_FORWARD ct state { established, related } accept
add rule inet firewalld filter_FORWARD iifname "lo" accept
add rule inet firewalld filter_FORWARD ct state invalid drop
add rule inet firewalld filter_FORWARD jump filter_FORWARD_ZONES
add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited
""", **UPLINK)
rules("the controller's own table", """
table inet master_controller {
    comment "master-controller: egress of br0"
    chain forward {
        type filter hook forward priority filter; policy accept;
        iifname "wan0" oifname "br0" ct state new counter drop
    }
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr 192.168.0.0/16 oifname "wan0" masquerade
    }
}
""", lab={"uplink": True, "masquerade": False})
rules("NAT for others", """
add table ip n
add chain ip n pre { type nat hook prerouting priority -100; }
add rule ip n pre tcp dport 8443 dnat to 192.168.0.99:443
add rule ip n pre ip daddr 203.0.113.77 dnat to 192.168.0.98
add chain ip n post { type nat hook postrouting priority 100; }
add rule ip n post oifname "nosuch0" masquerade
""", **UPLINK)

rules("a strict host", """
add table inet fw
add chain inet fw f { type filter hook forward priority 0; policy drop; }
add rule inet fw f ct state vmap { established : accept, related : accept, invalid : drop }
add rule inet fw f iifname br0 oifname wan0 tcp dport { 80, 443 } accept
add rule inet fw f iifname br0 oifname wan0 udp dport 53 accept
add rule inet fw f iifname br0 oifname wan0 icmp type echo-request accept
add rule inet fw f iifname br0 oifname br0 accept
add chain inet fw i { type filter hook input priority 0; policy drop; }
add rule inet fw i ct state established,related accept
add rule inet fw i iifname lo accept
add rule inet fw i icmp type echo-request limit rate 20/second accept
add rule inet fw i iifname br0 udp dport { 53, 67 } accept
add chain inet fw p { type filter hook prerouting priority -300; }
add rule inet fw p iifname wan0 ip saddr { 10.0.0.0/8, 192.168.0.0/16 } drop
add rule inet fw p fib saddr . iif oif missing drop
""", **UPLINK)
odd("a host that answers guests nothing", "iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", "iptables -A INPUT -i br0 -j DROP", **UPLINK)
odd("kubernetes-like", "iptables -N KUBE-FIREWALL", "iptables -A INPUT -j KUBE-FIREWALL", "iptables -A OUTPUT -j KUBE-FIREWALL",
    "iptables -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP",
    "iptables -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
    "iptables -A FORWARD -m conntrack --ctstate INVALID -j DROP", "iptables -t nat -N KUBE-POSTROUTING", "iptables -t nat -A POSTROUTING -j KUBE-POSTROUTING",
    "iptables -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN", "iptables -t nat -A KUBE-POSTROUTING -j MASQUERADE", **UPLINK)
odd("rules of a VPN", "ip rule add fwmark 0x80000/0xff0000 unreachable pref 5250", "ip rule add lookup 52 pref 5270",
    "ip rule add not fwmark 0xca6c lookup 51820 pref 5280", "ip rule add lookup main suppress_prefixlength 0 pref 5275",
    "ip route add 100.64.0.0/10 dev wan0 table 52", **UPLINK)
odd("allow list of one VM", "ebtables -N T", "ebtables -A T -p arp --arp-ip-src $GUEST --arp-mac-src $MAC -j ACCEPT",
    "ebtables -A T -p ipv4 --ip-src $GUEST -s $MAC -j ACCEPT", "ebtables -A T -p ipv6 -j ACCEPT", "ebtables -A T -j DROP", "ebtables -A INPUT -i $TAP -j T",
    "ebtables -A FORWARD -i $TAP -j T")
odd("shaped by an ifb, mirrored, proxy ARP, a macvlan", "ip link add ifb0 type ifb", "ip link set ifb0 up", "tc qdisc add dev $TAP clsact",
    "tc filter add dev $TAP ingress protocol all u32 match u32 0 0 action mirred egress redirect dev ifb0",
    "tc filter add dev $TAP egress protocol all u32 match u32 0 0 action mirred egress mirror dev ifb0",
    "tc qdisc replace dev ifb0 root tbf rate 1gbit burst 128k latency 50ms", "tc qdisc replace dev $TAP root tbf rate 1mbit burst 5k latency 400ms",
    "sysctl -qw net.ipv4.conf.br0.proxy_arp=1 net.ipv4.conf.br0.proxy_arp_pvlan=1", "ip link add link br0 name mv0 type macvlan mode bridge",
    "ip link set mv0 up")
odd("host address without its network", setup=lambda bed: bed.lab.batch(
    f"address flush dev br0\naddress add {GATEWAY}/32 dev br0\nroute add 192.168.0.0/16 dev br0 src {GATEWAY}"))


@healthy("uplink is a port of the bridge", lab={"uplink": True, "masquerade": False})
def _(bed):
    bed.lab.ip("address", "flush", "dev", "wan0")
    bed.lab.batch("link set wan0 master br0\nroute add default via 192.168.0.99")
    bed.lab.net.ip("address", "add", "192.168.0.99/16", "dev", "peer0")
    for guest in (bed.vm, bed.other):
        guest.ip("route", "replace", "default", "via", "192.168.0.99")


@healthy("a guest that is slow")
def _(bed):
    """As on a host that is much too busy: whatever it is asked rests for up to half a second."""
    def starve():
        while not bed.stop.wait(0.004):
            bed.vm("stall")
            bed.stop.wait(0.45)
            bed.vm("resume")

    bed.threads.append(threading.Thread(target=starve))
    bed.threads[-1].start()


@healthy("a guest that answers whom it knows")
def _(bed):
    bed.vm.chain("inet", "fw", "fw", "type filter hook input priority 0", f"ip saddr {{ {GATEWAY}, {bed.other.address} }} accept",
                 "meta l4proto { tcp, udp, icmp } drop")


@healthy("a guest that answers few pings")
def _(bed):
    bed.vm.chain("inet", "fw", "fw", "type filter hook input priority 0", f"tcp dport {PORT} accept",
                 "icmp type echo-request limit rate 3/second burst 3 packets accept", "ct state established accept", policy="drop")


@healthy("a guest with another MAC than was said", cold=True)
def _(bed):
    bed.vm.ip("link", "set", "eth0", "address", "02:00:00:00:00:55")


@healthy("BPF that passes")
def _(bed):
    bed.lab.tc("qdisc", "add", "dev", bed.vm.tap, "clsact")
    bed.lab.bpf("count_xdp", XDP_PASS, bed.vm.tap, "xdp")
    bed.lab.bpf("count_tcx", TC_OK, bed.vm.tap, "tcx-egress")
    bed.lab.bpf("count_in", TC_OK, bed.vm.tap, "cls-ingress")
    bed.lab.bpf("count_br", TC_OK, "br0", "tcx-ingress")


@healthy("STP, long forwarding")
def _(bed):
    bed.lab.ip("link", "set", "br0", "type", "bridge", "stp_state", 1, "forward_delay", 200)
    until = time.monotonic() + 8
    while any("state forwarding" not in line for line in bed.lab.bridge("link", "show").splitlines()):
        assert time.monotonic() < until
        time.sleep(0.1)


@healthy("IPv6")
def _(bed):
    for i, space in enumerate((bed.lab, bed.vm, bed.other), 1):
        space.ip("address", "add", f"fd00::{i}/64", "dev", "br0" if i == 1 else "eth0", "nodad")
    assert bed.works("vm-vm6", 2) and bed.works("host6", 2)


@healthy("leaked TAPs")
def _(bed):
    bed.lab.batch("\n".join(f"tuntap add dev fc-vm-dead{n} mode tap\nlink set fc-vm-dead{n} master br0 up" for n in range(24)))


@healthy("another VM is dead")
def _(bed):
    bed.other.kill()
    bed.lab.settle(bed.other.tap, "DOWN")


@healthy("another VM is stopped")
def _(bed):
    bed.other.process.send_signal(signal.SIGSTOP)


@healthy("a neighbour entry that failed before")
def _(bed):
    bed.vm("stall")
    bed.lab.cold()
    assert not bed.lab.ping(bed.vm.address, 0.2)
    bed.vm("resume")


@healthy("a guest with two addresses")
def _(bed):
    bed.vm.ip("address", "add", "192.168.0.77/16", "dev", "eth0")


@healthy("a guest that asks for who is not there")
def _(bed):
    bed.chatter(bed.vm, "192.168.0.250")


@healthy("busy bridge")
def _(bed):
    stop = bed.stop

    def flood(space, to):
        with space.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            while not stop.is_set():
                for _ in range(20):
                    with contextlib.suppress(OSError):
                        s.sendto(b"x" * 1200, (to, 9))
                time.sleep(0.004)

    for space, to in ((bed.other, bed.vm.address), (bed.vm, bed.other.address), (bed.lab, bed.other.address), (bed.vm, GATEWAY)):
        bed.threads.append(threading.Thread(target=flood, args=(space, to)))
        bed.threads[-1].start()


def mute(bed):
    """A gateway that answers ARP, and no ping."""
    bed.lab.net.chain("inet", "fw", "fw", "type filter hook input priority 0", f"ip daddr {UPLINK_GATEWAY} icmp type echo-request drop")


@healthy("a fixed gateway that ignores ping", **UPLINK)
def _(bed):
    mute(bed)
    bed.lab.ip("neigh", "replace", UPLINK_GATEWAY, "lladdr", bed.lab.net.link("peer0")["address"], "dev", "wan0", "nud", "permanent")


# Where nobody answers a ping to the outside, whatever may eat one looks guilty.
@healthy("a gateway that ignores ping, programs and NAT of others on the uplink", **UPLINK)
def _(bed):
    mute(bed)
    bed.lab.tc("qdisc", "add", "dev", "wan0", "clsact")
    for name, result, where in (("count_xdp", XDP_PASS, "xdp-native"), ("count_out", TC_OK, "cls-egress"), ("count_in", TCX_NEXT, "tcx-ingress")):
        bed.lab.bpf(name, result, "wan0", where)
    bed.lab.nft("add rule ip nat post ip saddr 10.0.0.0/8 snat to 203.0.113.99\nadd table inet somebody\n"
                "add chain inet somebody f { type filter hook forward priority 0; }\nadd rule inet somebody f limit rate over 10000/second drop")


@healthy("a network that is routed, and a gateway that ignores ping", lab={"uplink": True, "masquerade": False})
def _(bed):
    bed.lab.batch("address flush dev wan0\naddress add 10.1.1.2/24 dev wan0\nroute add default via 10.1.1.1")
    bed.lab.net.batch("address add 10.1.1.1/24 dev peer0\nroute add 192.168.0.0/16 via 10.1.1.2")
    bed.lab.net.chain("inet", "fw", "fw", "type filter hook input priority 0", "ip daddr 10.1.1.1 icmp type echo-request drop")


@healthy("programs of an agent everywhere", **UPLINK)
def _(bed):
    for device in (bed.vm.tap, bed.other.tap, "br0", "wan0"):
        for where in ("tcx-ingress", "tcx-egress"):
            bed.lab.bpf("agent", TCX_NEXT, device, where)
    bed.lab.bpf("agent_xdp", XDP_PASS, bed.vm.tap, "xdp")
    bed.lab.bpf("agent_xdp", XDP_PASS, "br0", "xdp")
    bed.lab.ip("route", "add", "local", "default", "dev", "lo", "table", 2004)
    bed.lab.batch("rule add fwmark 0x200/0xf00 lookup 2004 pref 9\nrule add pref 100 lookup local")


@healthy("a guest that answers ARP to all")
def _(bed):
    bed.vm.chain("netdev", "fw", "fw", "type filter hook egress device eth0 priority 0", "ether type arp ether daddr set ff:ff:ff:ff:ff:ff")


@healthy("a guest that sends from another MAC than ARP names")
def _(bed):
    bed.vm.chain("netdev", "fw", "fw", "type filter hook egress device eth0 priority 0", "ether saddr set 02:99:99:99:99:99")


@healthy("a guest that has a VLAN besides")
def _(bed):
    bed.chatter(bed.vm, vlan=5)


rules("a chain for each port", """
add table bridge b
add map bridge b ports { type ifname : verdict; }
add chain bridge b vm1
add rule bridge b vm1 arp saddr ip != $GUEST drop
add rule bridge b vm1 udp sport 67 drop
add rule bridge b vm1 accept
add element bridge b ports { $TAP : jump vm1 }
add chain bridge b p { type filter hook prerouting priority 0; }
add rule bridge b p iifname vmap @ports
add rule bridge b p meta pkttype { broadcast, multicast } limit rate over 1000/second drop
add table netdev n
add chain netdev n i { type filter hook ingress device $OTHER priority 0; policy drop; }
add rule netdev n i ether saddr != $PEERS_MAC drop
add rule netdev n i ether type arp arp saddr ip $PEER accept
add rule netdev n i ip saddr $PEER accept
""")
rules("tables that sleep", """
add table inet n { flags dormant; }
add chain inet n o { type filter hook output priority 0; policy drop; }
add table bridge n { flags dormant; }
add chain bridge n o { type filter hook output priority 0; policy drop; }
""")
rules("doors for services", """
add table ip pf
add chain ip pf p { type nat hook prerouting priority -100; }
add rule ip pf p ip daddr 203.0.113.2 tcp dport 8080 dnat to $GUEST:6080
add rule ip pf p iifname br0 tcp dport 80 redirect to :3128
add rule ip pf p iifname br0 udp dport 53 dnat to 192.168.0.1
add rule ip pf p iifname br0 ip daddr 169.254.169.254 tcp dport 80 dnat to 192.168.0.1:8775
add chain ip pf o { type nat hook output priority -100; }
add rule ip pf o ip daddr 203.0.113.2 tcp dport 8080 dnat to $GUEST:6080
add rule ip nat post ip saddr 192.168.0.0/16 ip daddr 192.168.0.0/16 oifname br0 masquerade
""", **UPLINK)
rules("an agent's marks", """
add table inet agent
add chain inet agent from
add chain inet agent f { type filter hook forward priority 0; }
add rule inet agent f meta mark set meta mark and 0xffeeffff
add rule inet agent f iifname "cali*" jump from
add rule inet agent f meta mark and 0x00010000 == 0x00010000 accept
add rule inet agent from ct state invalid drop
add rule inet agent from meta mark set meta mark or 0x00010000
add rule inet agent from drop
add chain inet agent i { type filter hook input priority 0; }
add rule inet agent i iifname "cali*" goto from
add rule inet agent i meta mark and 0x00010000 == 0x00010000 accept
""", **UPLINK)
odd("flags and limits of devices", "ip link set $TAP arp off", "ip link set $TAP promisc on", "ip link set $TAP multicast off",
    "ip link set $TAP gso_max_size 2000", "ip address add 10.77.0.1/24 dev $TAP", "bridge link set dev $TAP backup_port $OTHER",
    "ip link set br0 type bridge group_fwd_mask 65528 mcast_querier 1", "bridge link set dev $TAP cost 65535 priority 63")
odd("sysctls of a tinkerer", "sysctl -qw net.ipv4.conf.br0.arp_filter=1 net.ipv4.conf.br0.arp_notify=1 net.ipv4.conf.br0.arp_accept=1 "
    "net.ipv4.neigh.br0.base_reachable_time_ms=10 net.ipv4.conf.br0.route_localnet=1 net.ipv4.conf.br0.accept_local=1 "
    "net.ipv4.conf.br0.drop_gratuitous_arp=1 net.ipv4.conf.br0.disable_policy=1")


@healthy("a shaper that drops what others send too much of")
def _(bed):
    tap = bed.vm.tap
    bed.lab.tc("qdisc", "replace", "dev", tap, "root", "handle", "1:", "htb", "default", 10, "r2q", 100)
    bed.lab.tc("class", "add", "dev", tap, "parent", "1:", "classid", "1:10", "htb", "rate", "1gbit")
    bed.lab.tc("class", "add", "dev", tap, "parent", "1:", "classid", "1:20", "htb", "rate", "1mbit", "burst", "3k")
    bed.lab.tc("qdisc", "add", "dev", tap, "parent", "1:20", "pfifo", "limit", 5)
    bed.lab.tc("filter", "add", "dev", tap, "parent", "1:", "protocol", "ip", "u32", "match", "ip", "protocol", 17, "0xff", "flowid", "1:20")

    def flood():
        with bed.other.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            while not bed.stop.wait(0.01):
                for _ in range(15):
                    with contextlib.suppress(OSError):
                        s.sendto(b"x" * 1200, (bed.vm.address, 9))

    bed.threads.append(threading.Thread(target=flood))
    bed.threads[-1].start()


def picture(bed):
    """All that a doctor could leave behind."""
    links = json.loads(bed.lab.ip("-d", "-j", "link", "show"))
    for link in links:
        info = link.get("linkinfo", {}).get("info_data", {})
        for key in [k for k in info if "timer" in k or k in ("topology_change", "topology_change_detected")]:
            del info[key]
        port = link.get("linkinfo", {}).get("info_slave_data", {})
        for key in [k for k in port if "timer" in k]:
            del port[key]
        link.get("linkinfo", {}).pop("info_xstats", None)
    ruleset = json.loads(bed.lab.run("nft", "-j", "-s", "list", "ruleset"))
    return {
        "links": links, "nft": [r for r in ruleset["nftables"] if "element" not in r and "set" not in r], "routes": bed.lab.ip("-4", "route", "show", "table", "all"),
        "rules": bed.lab.ip("rule"), "tc": bed.lab.tc("qdisc", "show"),
        "addresses": [(l["ifname"], [(a["local"], a["prefixlen"]) for a in l["addr_info"] if a["family"] == "inet"])
                      for l in json.loads(bed.lab.ip("-j", "address", "show"))],
    }


@pytest.mark.parametrize("case", HEALTHY, ids=lambda f: f.key.replace(" ", "-"))
def test_healthy(case):
    with case.bed() as bed:
        case.apply(bed)
        for check in (("tcp", "vm-vm") if bed.other else ("tcp",)) + (("egress",) if case.lab.get("uplink") else ()):
            assert case.key.startswith("another") and check == "vm-vm" or bed.works(check, 2), f"not healthy at all: {check}"
        before = picture(bed)
        if ONLY_INJECT:
            assert picture(bed) == before
            return
        if not case.warm:
            bed.lab.cold()
        answer = bed.doctor()
        assert answer.status == 0, answer
        assert answer.roots == [], answer
        assert answer.json["healthy"] is True
        assert answer.target["reachable"] is True, answer
        assert "fail" not in answer.verdicts().values(), (answer, answer.verdicts())
        assert picture(bed) == before, "the doctor changed the host"
        assert bed.works("tcp", 2)


def test_whole_bridge(mctl):
    """Without a target: every TAP is judged, addresses are found; leaked TAPs are told as notes."""
    with Lab(uplink=True) as lab:
        guests = [lab.guest(tap=f"fc-vm-{n:05x}") for n in range(6)]
        for n in range(20):
            lab.tap(f"fc-vm-dead{n}")
        lab.warm()
        answer = lab.doctor()
        assert answer.status == 0, answer
        targets = {t["tap"]: t for t in answer.json["targets"]}
        assert len(targets) == 26
        for guest in guests:
            assert targets[guest.tap]["guest_ip"] == guest.address
            assert targets[guest.tap]["reachable"] is True
        for n in range(20):
            assert [(f["id"], f["role"]) for f in targets[f"fc-vm-dead{n}"]["findings"]] == [("tap.leaked", "note")]
            assert targets[f"fc-vm-dead{n}"]["reachable"] is None


def test_silent_guests_are_not_judged(mctl):
    """A guest whose address nobody knows is not called unreachable."""
    with Lab() as lab:
        guest = lab.guest()
        lab.cold()
        lab.ip("neigh", "flush", "all")
        answer = lab.doctor(guest, ip=False, mac=False, port=None)
        assert answer.status == 0, answer
        assert answer.target["reachable"] in (None, True)


def test_unpinned_bridge_keeps_its_mac(mctl):
    """A canary with a low MAC would move the bridge's own, and with it all guests' gateway."""
    with Lab(pinned=False) as lab:
        guest = lab.guest()
        lab.ip("link", "set", guest.tap, "address", "fe:00:00:00:00:01")
        lab.warm()
        before = lab.link("br0")["address"]
        watch = subprocess.Popen(["ip", "-n", lab.name, "monitor", "link"], stdout=subprocess.PIPE, text=True)
        lab.children.append(watch)
        time.sleep(0.05)
        assert lab.doctor(guest).status == 0
        assert lab.link("br0")["address"] == before
        watch.terminate()
        lines = watch.communicate()[0].splitlines()
        macs = {after.split()[1] for line, after in zip(lines, lines[1:]) if " br0: " in line and "link/ether" in after}
        assert macs <= {before}, f"the bridge's MAC moved: {macs}"


@pytest.mark.parametrize("option", ["--no-trace", "--no-probe"])
def test_less_is_still_true(mctl, option):
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        with lab.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as capture:
            capture.bind((guest.tap, 3))
            capture.setblocking(False)
            answer = lab.doctor(guest, option)
            sent = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    frame = capture.recv(2048)
                    if frame[12:14] == b"\x08\x06" or frame[30:34] == socket.inet_aton(guest.address):
                        sent.append(frame)
        assert answer.status == 0, answer
        if option == "--no-probe":
            assert answer.target["reachable"] is None
            assert sent == []
        else:
            assert sent


def test_killed_doctor_leaves_nothing(mctl):
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        guest("stall")  # so that it has something to wait for
        links, rules_ = set(lab.links()), lab.run("nft", "list", "ruleset")
        for after in (0.05, 0.15, 0.3, 0.6):
            process = subprocess.Popen([MCTL, "--json", "doctor", "--netns", lab.name, "--bridge", "br0", "--tap", guest.tap, "--guest-ip",
                                        guest.address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(after)
            process.kill()
            process.wait()
            until = time.monotonic() + 1
            while (set(lab.links()), lab.run("nft", "list", "ruleset")) != (links, rules_):
                assert time.monotonic() < until, lab.links()
                time.sleep(0.02)

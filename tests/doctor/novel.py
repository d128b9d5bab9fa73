"""Faults that the catalogue does not have. The doctor may name the object that is to blame, in words that hold its name,
or say unknown.<hop>; it may not blame something else.

also: ids of the catalogue that are true of the fault; hops: where it may as well be said to die, for one of three
reasons: the frame's death is between two hops of the list, two places are both true, or from outside of the guest
nobody can tell.
"""
import contextlib
import socket
import subprocess

import faults as catalogue
from faults import TC_SHOT, TC_STOLEN, UPLINK, XDP_DROP, Fault
from lab import BPF_ATTACH, GATEWAY, PORT

CATALOGUE_IDS = {f.id for f in catalogue.FAULTS} | {
    "tap.leaked", "tap.name-collision", "host.conntrack-full", "host.neigh-table-full",
}
NF_DROP = 0
NOVEL = []
SECOND = ("other",)


def fault(key, hop, **rest):
    def take(inject):
        NOVEL.append(Fault(key, hop, inject, **rest))
        return inject

    return take


def command(key, hop, tool, line, words, **rest):
    """A fault that is a few commands; $TAP, $OTHER, $GUEST, $MAC as in faults.simple()."""

    def inject(bed):
        names = {"$TAP": bed.vm.tap, "$OTHER": bed.other.tap, "$GUEST": bed.vm.address, "$MAC": bed.vm.mac, "$PEER": bed.other.address}

        def fill(text):
            for name, value in names.items():
                text = text.replace(name, str(value))
            return text

        for one in line.split("; "):
            getattr(bed.lab, tool)(*fill(one).split())
        return [fill(word) for word in words.split()]

    NOVEL.append(Fault(key, hop, inject, **rest))


def sysctls(key, hop, settings, words, talk=False, **rest):
    def inject(bed):
        for name, value in settings.items():
            bed.lab.sysctl(name, value)
        if talk:
            bed.chatter(bed.vm)
        return words.split()

    NOVEL.append(Fault(key, hop, inject, **rest))


def nft(key, hop, family, hook, *rules, text="", handle=True, **rest):
    """Rules in a chain of somebody's; the last one kills. text: more of the table, made before."""

    def inject(bed):
        def fill(one):
            for name, value in {"$TAP": bed.vm.tap, "$OTHER": bed.other.tap, "$GUEST": bed.vm.address, "$MAC": bed.vm.mac,
                                "$PEER": bed.other.address}.items():
                one = one.replace(name, value)
            return one

        if text:
            bed.lab.nft(f"add table {family} somebody\n" + fill(text))
        handles = bed.lab.chain(family, "somebody", "theirs", fill(hook), *[fill(one) for one in rules])
        return ["somebody", "theirs", f"handle {handles[-1]}"] if handle else ["somebody"]

    NOVEL.append(Fault(key, hop, inject, **rest))


# ---- the bridge ----

command("port locked", "bridge.input", "bridge", "link set dev $TAP locked on learning off", "$TAP locked", hops=("tap.ingress", "bridge.port"),
        alive=SECOND)
command("fdb sticky elsewhere", "bridge.forward", "bridge", "fdb replace $MAC dev $OTHER master static sticky", "$MAC $OTHER", alive=("arp", "other"),
        cold=False)
command("fdb local", "bridge.forward", "bridge", "fdb replace $MAC dev br0 self local", "$MAC", alive=SECOND, cold=False)


@fault("neighbour solicitations off", "host.neigh", alive=("arp",))
def _(bed):
    for key in ("mcast_solicit", "ucast_solicit", "app_solicit"):
        bed.lab.sysctl(f"net/ipv4/neigh/br0/{key}", 0)
    return ["mcast_solicit"]


command("bridge arp off", "host.neigh", "ip", "link set br0 arp off", "br0 noarp", hops=("bridge.dev", "host.output"))


@fault("arptables forward", "bridge.forward", dead=("vm-vm",), alive=("ping", "tcp"), lab={"bridge_netfilter": 1},
       also=("nft.arp-drop", "netfilter.bridge-forward-drop"))
def _(bed):
    bed.lab.sysctl("net/bridge/bridge-nf-call-arptables", 1)
    bed.lab.run("arptables-legacy", "-P", "FORWARD", "DROP")
    return ["legacy"]


command("broadcast address", "host.neigh", "ip", "link set br0 broadcast 02:00:00:00:00:77", "br0 02:00:00:00:00:77", alive=("arp",))
command("macvlan in passthru mode", "bridge.input", "ip", "link add link br0 name mv0 type macvlan mode passthru; link set mv0 up", "mv0 br0 passthru",
        alive=("arp",), hops=("host.input",))
command("bridge has the guest's MAC", "bridge.forward", "ip", "link set br0 address 02:fc:f9:aa:5d:01", "$MAC", alive=SECOND)



@fault("a fixed entry for the bridge's own MAC", "bridge.input", dead=("vm-host",), also=("bridge.fdb-wrong",))
def _(bed):
    mac = bed.lab.link("br0")["address"]
    bed.lab.bridge("fdb", "replace", mac, "dev", bed.other.tap, "master", "static")
    return [mac, bed.other.tap]


@fault("rules lent to this bridge only", "bridge.forward", dead=("vm-vm",), alive=("ping", "tcp"), lab={"bridge_netfilter": 0},
       also=("netfilter.bridge-forward-drop",))
def _(bed):
    bed.lab.ip("link", "set", "br0", "type", "bridge", "nf_call_iptables", 1)
    handles = bed.lab.chain("inet", "somebody", "theirs", "type filter hook forward priority 0", "iifname br0 oifname br0 ip protocol icmp drop")
    return ["somebody", "theirs", f"handle {handles[0]}"]


def physdev(*match):
    def inject(bed):
        bed.lab.run("iptables-nft", "-A", "FORWARD", "-m", "physdev", *(bed.vm.tap if m == "$TAP" else m for m in match), "-j", "DROP")
        return ["ip filter FORWARD"]

    return inject


for name, match in (("out", ("--physdev-is-bridged", "--physdev-out", "$TAP")), ("in, by its beginning", ("--physdev-in", "fc-vm-+")),
                    ("not in", ("--physdev-is-bridged", "!", "--physdev-in", "eth+"))):
    NOVEL.append(Fault(f"physdev {name}", "bridge.forward", physdev(*match), dead=("vm-vm",), alive=("ping", "tcp"),
                       lab={"bridge_netfilter": 1}, also=("netfilter.bridge-forward-drop",)))


@fault("legacy raw table", "tap.ingress", alive=("arp",), hops=("host.input", "bridge.input"))
def _(bed):
    bed.lab.run("iptables-legacy", "-t", "raw", "-A", "PREROUTING", "-i", "br0", "-j", "DROP")
    return ["legacy"]


@fault("a loop", "bridge.forward", dead=())
def _(bed):
    bed.lab.batch("link add loop0 type veth peer name loop1")
    for end in ("loop0", "loop1"):  # so that it goes round, and not so often
        bed.lab.tc("qdisc", "add", "dev", end, "root", "tbf", "rate", "1mbit", "burst", "3k", "latency", "20ms")
    bed.lab.batch("link set loop0 master br0 up\nlink set loop1 master br0 up")
    return ["br0", "loop"]


# ---- the TAP ----


@fault("tap carrier off", "tap.dev", alive=SECOND, hops=("bridge.port", "vmm"))
def _(bed):
    bed.vm("carrier", 0)
    bed.lab.settle(bed.vm.tap, "DOWN")
    return [bed.vm.tap, "carrier"]


@fault("tap dormant", "tap.dev", hops=("bridge.port",), alive=SECOND)
def _(bed):
    bed.vm("carrier", 0)
    bed.lab.ip("link", "set", bed.vm.tap, "mode", "dormant")
    bed.lab.settle(bed.vm.tap, "DOWN")
    bed.vm("carrier", 1)
    bed.lab.settle(bed.vm.tap, "DORMANT")
    return [bed.vm.tap, "dormant"]


@fault("tap transmit filter", "tap.queue", alive=SECOND, hops=("tap.dev",))
def _(bed):
    bed.vm("txfilter", "02:00:00:00:00:99")
    return [bed.vm.tap, "filter"]


@fault("tap socket filter", "tap.queue", alive=SECOND, hops=("tap.dev",))
def _(bed):
    bed.vm("sockfilter", 0)
    return [bed.vm.tap, "filter"]


@fault("tap socket filter that cuts", "tap.queue", alive=("arp", "other"), hops=("tap.dev",))
def _(bed):
    bed.vm("sockfilter", 60)
    return [bed.vm.tap, "filter"]


command("tap ring of none", "tap.queue", "ip", "link set $TAP txqueuelen 0", "$TAP txqueuelen", alive=SECOND, hops=("tap.dev",))



@fault("tap queues that nobody reads", "vmm", dead=("ping", "tcp"), hops=("tap.queue",), warm=False,
       guest={"tap_kind": "multi_queue", "mq": 1, "idle": 63})
def _(bed):
    return [bed.vm.tap, "queues"]


@fault("tap queue detached", "tap.queue", alive=SECOND, hops=("tap.dev", "vmm", "bridge.port"), guest={"tap_kind": "multi_queue", "mq": 1})
def _(bed):
    bed.vm("detach")
    return [bed.vm.tap, "detach"]


# ---- qdiscs and tc ----

command("tbf too small for a frame", "tap.egress", "tc", "qdisc replace dev $TAP root tbf rate 1kbit burst 30 limit 3000", "$TAP tbf",
        alive=SECOND, also=("qdisc.drops",))
command("htb starved", "tap.egress", "tc",
        "qdisc replace dev $TAP root handle 1: htb default 10; class add dev $TAP parent 1: classid 1:10 htb rate 8bit burst 1 cburst 1; "
        "qdisc add dev $TAP parent 1:10 pfifo limit 1",
        "$TAP", alive=SECOND, also=("qdisc.drops",))


def redirected(where):
    def inject(bed):
        bed.lab.ip("link", "add", "sink0", "type", "veth", "peer", "name", "sink1")
        bed.lab.batch("link set sink0 up\nlink set sink1 up")
        bed.lab.tc("qdisc", "add", "dev", bed.vm.tap, "clsact")
        bed.lab.tc("filter", "add", "dev", bed.vm.tap, where, "protocol", "all", "u32", "match", "u32", 0, 0, "action", "mirred", "egress",
                   "redirect", "dev", "sink0")
        return [bed.vm.tap, "mirred"]

    return inject


NOVEL.append(Fault("tc redirect ingress", "tap.ingress", redirected("ingress"), alive=SECOND, also=("tc.ingress-drop",)))
NOVEL.append(Fault("tc redirect egress", "tap.egress", redirected("egress"), alive=SECOND, also=("tc.egress-drop",)))


@fault("tc steals", "tap.egress", alive=SECOND, also=("tc.egress-drop",))
def _(bed):
    bed.lab.tc("qdisc", "add", "dev", bed.vm.tap, "clsact")
    bed.lab.bpf("thief", TC_STOLEN, bed.vm.tap, "cls-egress")
    return [bed.vm.tap, "thief"]


@fault("xdp on the bridge", "bridge.input", hops=("host.input",), also=("tap.xdp-drop",))
def _(bed):
    return ["br0", bed.lab.bpf("on_br", XDP_DROP, "br0", "xdp")]


@fault("xdp on the uplink", "host.uplink", dead=("egress",), alive=("ping", "tcp"), hops=("host.input", "host.forward"), **UPLINK)
def _(bed):
    return ["wan0", bed.lab.bpf("on_wan", XDP_DROP, "wan0", "xdp-native")]


@fault("tc egress on the uplink", "host.uplink", dead=("egress",), alive=("ping", "tcp"), hops=("host.nat",), also=("tc.egress-drop",), **UPLINK)
def _(bed):
    bed.lab.tc("qdisc", "add", "dev", "wan0", "clsact")
    bed.lab.bpf("on_wan", TC_SHOT, "wan0", "cls-egress")
    return ["wan0", "on_wan"]


# ---- nftables, by every other way ----

nft("nft set", "host.input", "inet", "type filter hook input priority 0", "ip saddr @bad drop",
    text="add set inet somebody bad { type ipv4_addr; elements = { $GUEST, 10.0.0.1 }; }", dead=("ping", "vm-host"), alive=("arp", "other"),
    also=("netfilter.input-drop",))
nft("nft limit", "bridge.output", "bridge", "type filter hook output priority 0", "oifname $TAP limit rate over 1/hour burst 1 packets drop",
    alive=SECOND, also=("nft.bridge-drop",))
nft("nft quota", "bridge.output", "bridge", "type filter hook output priority 0", "oifname $TAP quota over 10 bytes drop", alive=SECOND,
    also=("nft.bridge-drop",))
nft("nft map", "tap.ingress", "bridge", "type filter hook prerouting priority 0", "iifname vmap { $TAP : drop }", alive=SECOND,
    also=("nft.bridge-drop",))


@fault("nft jump", "bridge.output", alive=SECOND, also=("nft.bridge-drop",))
def _(bed):
    bed.lab.nft("add table bridge somebody\nadd chain bridge somebody deep\nadd chain bridge somebody deeper\n"
                f"add rule bridge somebody deeper oifname {bed.vm.tap} drop\nadd rule bridge somebody deep goto deeper")
    bed.lab.chain("bridge", "somebody", "theirs", "type filter hook output priority 0", "jump deep")
    return ["somebody", "deeper", f"handle {bed.lab.handles('bridge', 'somebody', 'deeper')[0]}"]


nft("nft forwards elsewhere", "tap.ingress", "netdev", "type filter hook ingress device $TAP priority 0", "fwd to $OTHER", alive=SECOND,
    also=("nft.netdev-drop",))
nft("nft rewrites the MAC", "bridge.output", "bridge", "type filter hook output priority 0",
    "oifname $TAP ether type != arp ether daddr set 02:00:00:00:00:99", alive=("arp", "other"))
# Dead until the guest asks for the host by itself, so there is nothing that surely is dead.
nft("ARP answers are rewritten", "tap.ingress", "bridge", "type filter hook prerouting priority 0",
    "iifname $TAP arp operation reply arp saddr ether set 02:00:00:00:00:98", alive=("arp", "other"), dead=())
def netfilter_program(hook, dead, hop, **rest):
    """A BPF program that hangs in netfilter by a link of its owner's; it drops all of IPv4."""
    def inject(bed):
        owner = subprocess.Popen(["nsenter", f"--net=/run/netns/{bed.lab.name}", BPF_ATTACH, "their_filter", str(NF_DROP), "lo", f"nf-{hook}"],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        bed.lab.children.append(owner)
        return ["their_filter", f"program {owner.stdout.readline().strip()}"]

    NOVEL.append(Fault(f"BPF in netfilter {hook}", hop, inject, dead=dead, **rest))


netfilter_program("input", ("ping", "vm-host"), "host.input", alive=("arp",))
netfilter_program("output", ("ping", "tcp"), "host.output", alive=("arp",))
netfilter_program("forward", ("egress",), "host.forward", alive=("ping", "tcp"), hops=("bridge.forward",), **UPLINK)
nft("dnat to another VM", "host.output", "ip", "type nat hook output priority -100", "ip daddr $GUEST dnat to $PEER", dead=(), alive=("arp", "other"))
nft("nft tcp only", "bridge.output", "bridge", "type filter hook output priority 0", "oifname $TAP ether type ip tcp flags syn drop",
    dead=("tcp",), alive=("ping", "arp"), also=("nft.bridge-drop",))
nft("nft reject", "host.output", "inet", "type filter hook output priority 0", "ip daddr $GUEST reject", alive=("arp", "other"),
    also=("netfilter.output-drop",))
nft("stale dnat", "host.output", "ip", "type nat hook output priority -100", "ip daddr $GUEST dnat to 192.168.99.99", alive=("arp", "other"),
    hops=("host.nat", "host.route"))
nft("untracked", "host.input", "inet", "type filter hook input priority 0", "ct state established,related accept", 'iifname "lo" accept',
    "iifname br0 counter drop", text="add chain inet somebody early { type filter hook prerouting priority -300; }\n"
    "add rule inet somebody early iifname br0 notrack", dead=("ping", "vm-host"), alive=("arp",), also=("netfilter.input-drop",))
nft("nft prerouting", "host.input", "inet", "type filter hook prerouting priority -300", "iifname br0 ip saddr $GUEST drop",
    lab={"bridge_netfilter": 0}, alive=("arp", "other"), also=("netfilter.input-drop",), hops=("bridge.input",))
nft("nft postrouting", "host.output", "inet", "type filter hook postrouting priority 300", "ip daddr $GUEST drop",
    lab={"bridge_netfilter": 0}, alive=("arp", "other"), also=("netfilter.output-drop",))


nft("anti-spoofing with another MAC", "tap.ingress", "bridge", "type filter hook prerouting priority 0",
    "iifname $TAP ether saddr != 02:fc:00:00:00:99 drop", alive=SECOND, also=("nft.bridge-drop",))
nft("anti-spoofing with another address", "tap.ingress", "bridge", "type filter hook prerouting priority 0",
    "iifname $TAP ether saddr . ip saddr != { $MAC . 192.168.0.99 } drop", alive=("arp", "other"), also=("nft.bridge-drop",))
nft("arp spoofing of an address", "tap.ingress", "bridge", "type filter hook prerouting priority 0",
    "iifname $TAP arp saddr ip != 192.168.0.99 drop", alive=SECOND, also=("nft.bridge-drop",))
nft("broadcasts", "bridge.output", "bridge", "type filter hook output priority 0", "ether daddr ff:ff:ff:ff:ff:ff oifname $TAP drop", alive=SECOND,
    also=("nft.bridge-drop",))
nft("long packets", "host.output", "inet", "type filter hook output priority 0", "oifname br0 meta length > 1000 drop", dead=("big",),
    alive=("ping", "tcp"), also=("netfilter.output-drop",))
nft("every second packet", "bridge.output", "bridge", "type filter hook output priority 0",
    "oifname $TAP ether type ip numgen inc mod 2 0 drop", dead=("steady",), alive=("arp",), also=("nft.bridge-drop",))
nft("the first three, then none", "bridge.output", "bridge", "type filter hook output priority 0",
    "oifname $TAP ether type ip limit rate 1/minute burst 3 packets accept", "oifname $TAP ether type ip drop", dead=("steady",), alive=("arp",),
    also=("nft.bridge-drop",))


@fault("marked, then dropped", "host.input", dead=("ping", "vm-host"), alive=("arp", "other"), also=("netfilter.input-drop",),
       lab={"bridge_netfilter": 0})
def _(bed):
    bed.lab.chain("inet", "somebody", "first", "type filter hook prerouting priority -150", f"ip saddr {bed.vm.address} meta mark set 0x5")
    handles = bed.lab.chain("inet", "somebody", "theirs", "type filter hook input priority 0", "meta mark 0x5 drop")
    return ["somebody", "theirs", f"handle {handles[0]}"]


@fault("nfqueue without a listener", "host.input", dead=("ping", "vm-host"), alive=("arp",), also=("netfilter.input-drop",))
def _(bed):
    bed.lab.run("iptables", "-A", "INPUT", "-i", "br0", "-j", "NFQUEUE", "--queue-num", 5)
    return ["filter", "INPUT"]


@fault("mark and rule", "host.output", alive=("arp", "other"), hops=("host.route",), also=("host.policy-rule",))
def _(bed):
    bed.lab.ip("rule", "add", "fwmark", 77, "pref", 4321, "blackhole")
    bed.lab.chain("inet", "somebody", "theirs", "type route hook output priority -150", f"ip daddr {bed.vm.address} meta mark set 77")
    return []


@fault("ebtables answers ARP", "bridge.forward", dead=("vm-vm",), alive=("ping", "tcp"), hops=("tap.ingress",))
def _(bed):
    bed.lab.run("ebtables", "-t", "nat", "-A", "PREROUTING", "-p", "arp", "--arp-opcode", "Request", "--arp-ip-dst", bed.vm.address, "-j", "arpreply",
                "--arpreply-mac", "02:00:00:00:00:99", "--arpreply-target", "DROP")
    return ["nat", "PREROUTING"]


@fault("ebtables redirect", "tap.ingress", dead=("vm-vm",), alive=("ping", "tcp"), lab={"forward": 0})
def _(bed):
    bed.lab.run("ebtables", "-t", "nat", "-A", "PREROUTING", "-p", "ipv4", "-i", bed.vm.tap, "-j", "redirect")
    return ["nat", "PREROUTING"]


nft("reset instead of a connection", "host.output", "inet", "type filter hook output priority 0",
    f"ip daddr $GUEST tcp dport {PORT} reject with tcp reset", dead=("tcp",), alive=("ping", "arp"), also=("netfilter.output-drop",))
nft("inet ingress", "tap.ingress", "inet", "type filter hook ingress device $TAP priority 0", "drop", alive=SECOND, also=("nft.netdev-drop",))
nft("answers by their source port", "host.input", "inet", "type filter hook input priority 0", f"ip saddr $GUEST tcp sport {PORT} drop", dead=("tcp",),
    alive=("ping", "arp"), also=("netfilter.input-drop",))


@fault("ebtables for one port", "bridge.output", dead=("tcp",), alive=("ping", "arp"), also=("ebtables.drop",))
def _(bed):
    bed.lab.run("ebtables", "-A", "OUTPUT", "-p", "IPv4", "--ip-proto", "tcp", "--ip-dport", PORT, "-o", bed.vm.tap, "-j", "DROP")
    return ["drops TCP"]


@fault("ebtables dnat", "bridge.output", alive=("arp", "other"), hops=("bridge.forward",))
def _(bed):
    bed.lab.run("ebtables", "-t", "nat", "-A", "OUTPUT", "-p", "ipv4", "-d", bed.vm.mac, "-j", "dnat", "--to-destination", "02:00:00:00:00:99")
    return ["nat", "OUTPUT"]


# ---- host, L3 ----

command("route mtu lock", "host.route", "ip", "route change 192.168.0.0/16 dev br0 proto kernel scope link src 192.168.0.1 mtu lock 600",
        "mtu 600", dead=("big",), alive=("ping", "tcp"), hops=("bridge.dev",))
@fault("time to live is up", "host.forward", dead=("egress",), alive=("ping", "tcp"), hops=("host.input",), **UPLINK)
def _(bed):
    bed.lab.run("iptables", "-t", "mangle", "-A", "PREROUTING", "-i", "br0", "-j", "TTL", "--ttl-set", "1")
    return ["mangle", "PREROUTING"]


command("uplink arp off", "host.uplink", "ip", "link set wan0 arp off", "wan0 noarp", dead=("egress",), alive=("ping", "tcp"), **UPLINK)
command("xfrm forward", "host.forward", "ip", "xfrm policy add dir fwd src $GUEST/32 action block", "xfrm", dead=("egress",), alive=("ping", "tcp"), **UPLINK)
command("two networks of the same prefix", "host.route", "ip",
        "link add br1 type bridge; link set br1 up; address flush dev br0; address add 192.168.0.9/16 dev br1; address add 192.168.0.1/16 dev br0", "br1",
        also=("host.overlapping-prefix",))
command("rule prohibit", "host.route", "ip", "rule add to $GUEST prohibit pref 500", "500", also=("host.policy-rule",), alive=("arp", "other"))
command("guest address is the host's", "host.route", "ip", "address add $GUEST/32 dev lo", "$GUEST lo", dead=("tcp",),
        alive=("arp", "other"), hops=("host.neigh",))
command("local route for the guest", "host.route", "ip", "route add local $GUEST/32 dev lo table local", "$GUEST", dead=("tcp",), alive=("arp", "other"),
        also=("host.address-conflict",))
command("no rule for the table local", "host.input", "ip", "rule del pref 0", "rule local", alive=("arp",))
command("no local route", "host.input", "ip", "route del local 192.168.0.1 dev br0 table local", "192.168.0.1 route", alive=("arp",))
command("nexthop object, blackhole", "host.route", "ip", "nexthop add id 1 blackhole; route add $GUEST/32 nhid 1", "$GUEST blackhole",
        also=("host.blackhole-route",), alive=("arp", "other"))
command("nexthop object, elsewhere", "host.route", "ip",
        "link add du0 type veth peer name du1; link set du0 up; link set du1 up; nexthop add id 2 dev du0; route add $GUEST/32 nhid 2", "$GUEST du0",
        also=("host.route-elsewhere",), alive=("arp", "other"))
command("route by a gateway that is none", "host.route", "ip", "route add $GUEST/32 via 192.168.0.99 dev br0", "$GUEST 192.168.0.99",
        also=("host.route-elsewhere",), alive=("arp", "other"))
command("fixed neighbour without ARP", "host.neigh", "ip", "neigh replace $GUEST lladdr 02:de:ad:00:00:01 dev br0 nud noarp", "$GUEST 02:de:ad:00:00:01",
        also=("host.neigh-wrong",), alive=("arp", "other"))
command("neighbour by a controller", "host.neigh", "ip", "neigh replace $GUEST lladdr 02:de:ad:00:00:01 dev br0 nud reachable extern_learn",
        "$GUEST 02:de:ad:00:00:01", also=("host.neigh-wrong",), alive=("arp", "other"), cold=False)
command("source address of nobody", "host.route", "ip",
        "address add 10.9.9.9/32 dev lo; route change 192.168.0.0/16 dev br0 proto kernel scope link src 10.9.9.9", "10.9.9.9", guest={"gateway": None},
        alive=("arp",), hops=("guest.ip",))
command("no prefix route", "host.route", "ip", "route del 192.168.0.0/16 dev br0", "br0")
sysctls("arp ignore all", "host.input", {"net/ipv4/conf/all/arp_ignore": 8}, "arp_ignore", talk=True, dead=("vm-host",), also=("host.arp-ignore",))
sysctls("forwarding of the uplink", "host.forward", {"net/ipv4/conf/wan0/forwarding": 0}, "wan0 forwarding", dead=("egress",),
        alive=("ping", "tcp"), also=("host.ip-forward-off",), **UPLINK)
sysctls("forwarding of one device", "host.forward", {"net/ipv4/conf/br0/forwarding": 0}, "br0 forwarding", dead=("egress",), alive=("ping", "tcp"),
        also=("host.ip-forward-off",), **UPLINK)


# Some frames pass: what is asked again may be answered, and still it hurts. A register that numgen has filled was once taken for what stood
# in it before.
for traced in (("--no-trace",), ()):
    nft(f"random loss {len(traced)}", "bridge.output", "bridge", "type filter hook output priority 0", "oifname $TAP numgen random mod 100 < 70 drop",
        dead=("steady",), also=("nft.bridge-drop",), args=traced)
    nft(f"every second answer {len(traced)}", "tap.ingress", "netdev", "type filter hook ingress device $TAP priority 0", "numgen inc mod 2 0 drop",
        dead=("steady",), also=("nft.netdev-drop",), args=traced)


@fault("loss by iptables' statistic", "host.input", dead=("steady",), also=("netfilter.input-drop",), args=("--no-trace",))
def _(bed):
    bed.lab.run("iptables", "-A", "INPUT", "-i", "br0", "-m", "statistic", "--mode", "random", "--probability", "0.7", "-j", "DROP")
    return ["filter", "INPUT", "handle"]


nft("forward of one guest", "host.forward", "inet", "type filter hook forward priority 0", "ip saddr $GUEST drop", dead=("egress",),
    alive=("ping", "tcp"), also=("netfilter.forward-drop",), lab={"uplink": True, "bridge_netfilter": 0})
command("rule against one guest", "host.forward", "ip", "rule add from $GUEST iif br0 prohibit pref 321", "321", dead=("egress",), alive=("arp",),
        hops=("host.route", "host.input"), also=("host.policy-rule",), **UPLINK)
command("wrong gateway", "host.uplink", "ip", "route replace default via 203.0.113.77", "203.0.113.77", dead=("egress",), alive=("ping", "tcp"), **UPLINK)

command("the outside into a black hole", "host.uplink", "ip", "route replace blackhole default", "blackhole 0.0.0.0/0", dead=("egress",),
        alive=("ping", "tcp"), also=("host.blackhole-route",), **UPLINK)


@fault("masquerade of other networks", "host.nat", dead=("egress",), alive=("ping", "tcp"), also=("host.no-masquerade",),
       lab={"uplink": True, "masquerade": False})
def _(bed):
    bed.lab.chain("ip", "nat", "post", "type nat hook postrouting priority 100", "ip saddr 10.0.0.0/8 oifname wan0 masquerade")
    return ["wan0"]


@fault("one guest is not masqueraded", "host.nat", dead=("egress",), alive=("ping", "tcp"), also=("host.no-masquerade",), **UPLINK)
def _(bed):
    bed.lab.nft(f"insert rule ip nat post ip saddr {bed.vm.address} accept")
    return ["wan0", bed.vm.address]


nft("notrack", "host.nat", "ip", "type filter hook prerouting priority -300", "iifname br0 notrack", dead=("egress",), alive=("ping", "tcp"),
    also=("nft.notrack",), lab={"uplink": True})


@fault("legacy notrack", "host.nat", dead=("egress",), alive=("ping", "tcp"), also=("nft.notrack",), **UPLINK)
def _(bed):
    bed.lab.run("iptables-nft", "-t", "raw", "-A", "PREROUTING", "-i", "br0", "-j", "CT", "--notrack")
    return ["ip raw PREROUTING"]


@fault("legacy forward policy", "host.forward", dead=("egress",), alive=("ping", "tcp"), also=("netfilter.forward-drop",),
       lab={"uplink": True, "bridge_netfilter": 0})
def _(bed):
    bed.lab.run("iptables-legacy", "-P", "FORWARD", "DROP")
    return ["legacy"]


@fault("snat to nobody", "host.nat", dead=("egress",), alive=("ping", "tcp"), hops=("host.uplink",), lab={"uplink": True, "masquerade": False})
def _(bed):
    handles = bed.lab.chain("ip", "nat", "post", "type nat hook postrouting priority 100", "ip saddr 192.168.0.0/16 oifname wan0 snat to 203.0.113.99")
    return ["203.0.113.99", f"handle {handles[0]}"]


@fault("xfrm block", "host.output", alive=("arp", "other"), hops=("host.route",))
def _(bed):
    bed.lab.ip("xfrm", "policy", "add", "dir", "out", "dst", f"{bed.vm.address}/32", "action", "block")
    return ["xfrm"]


# ---- the guest and its VMM, as far as it can be told from outside ----


# As silent as a guest without the address, until it says something; then the host knows its MAC, and all is well.
@fault("guest arp_ignore", "guest.ip", hops=("guest.nic", "guest.firewall"), also=("guest.no-address",), alive=SECOND)
def _(bed):
    bed.vm.sysctl("net/ipv4/conf/eth0/arp_ignore", 8)
    return [bed.vm.address]


@fault("guest blackholes the host", "guest.ip", hops=("guest.firewall",), also=("guest.firewall",), alive=("arp", "vm-vm"))
def _(bed):
    bed.vm.ip("route", "add", "blackhole", f"{GATEWAY}/32")
    return [bed.vm.address]


@fault("guest has a gateway that is none", "guest.ip", dead=("egress",), alive=("ping", "tcp", "vm-vm"), **UPLINK)
def _(bed):
    bed.vm.ip("route", "replace", "default", "via", "192.168.0.99")
    return [bed.vm.address, "192.168.0.99"]


@fault("guest has a wrong gateway MAC", "bridge.input", alive=("arp", "vm-vm"), hops=("guest.ip", "bridge.forward"))
def _(bed):
    bed.vm.ip("neigh", "replace", GATEWAY, "lladdr", "02:aa:bb:cc:dd:ee", "dev", "eth0", "nud", "permanent")
    return ["02:aa:bb:cc:dd:ee"]


@fault("guest drops by tc", "guest.nic", hops=("guest.ip", "guest.firewall"), alive=SECOND)
def _(bed):
    bed.vm.tc("qdisc", "add", "dev", "eth0", "clsact")
    bed.vm.tc("filter", "add", "dev", "eth0", "ingress", "bpf", "da", "bytecode", f"1,6 0 0 {TC_SHOT}")
    bed.chatter(bed.vm)
    return [bed.vm.tap]


@fault("guest names another MAC by ARP", "guest.ip", alive=("arp", "other"), hops=("host.neigh",))
def _(bed):
    bed.vm.chain("arp", "fw", "fw", "type filter hook output priority 0", "arp saddr ether set 02:00:00:00:00:99")
    return ["02:00:00:00:00:99", bed.vm.mac]


@fault("guest rejects everything", "guest.firewall", also=("guest.firewall",), alive=("arp",), ask={"port": None})
def _(bed):
    bed.vm.chain("inet", "fw", "fw", "type filter hook input priority 0", "reject")
    return [bed.vm.address, "ICMP"]


@fault("vmm loses large frames", "vmm", dead=("big",), alive=("ping", "tcp", "arp"), hops=("tap.queue", "guest.nic", "guest.ip", "guest.firewall"))
def _(bed):
    bed.vm("longest", 1000)
    return [bed.vm.tap]


@fault("accept queue full", "guest.service", dead=("tcp",), alive=("ping", "arp"), hops=("guest.firewall",), also=("guest.firewall",))
def _(bed):
    bed.vm("unserve", PORT)
    # A service that does not accept, and more than enough who wait for it.
    bed.lazy = bed.vm.socket(socket.AF_INET, socket.SOCK_STREAM)
    bed.lazy.bind(("0.0.0.0", PORT))
    bed.lazy.listen(0)
    bed.waiting = [bed.lab.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(4)]
    for s in bed.waiting:
        s.settimeout(0.1)
        with contextlib.suppress(OSError):
            s.connect((bed.vm.address, PORT))
    return [bed.vm.address, PORT]


@fault("another vm proxies arp", "host.neigh", dead=("one-owner",), also=("guest.duplicate-ip",))
def _(bed):
    bed.other.sysctl("net/ipv4/ip_forward", 1)
    bed.other.batch(f"link add tun1 type veth peer name tun2\nlink set tun1 up\nlink set tun2 up\nroute add {bed.vm.address}/32 dev tun1")
    bed.other.sysctl("net/ipv4/conf/eth0/proxy_arp", 1)
    bed.other.sysctl("net/ipv4/neigh/eth0/proxy_delay", 0)
    return [bed.vm.address, bed.other.mac]


# ---- what only some of the host's packets meet ----

command("policy rule for a port", "host.route", "ip", f"rule add to $GUEST ipproto tcp dport {PORT} prohibit pref 5", "rule 5", dead=("tcp",),
        alive=("ping", "arp"), also=("host.policy-rule",))
command("policy rule for root", "host.route", "ip", "rule add uidrange 0-0 to $GUEST prohibit pref 7", "rule 7 prohibit", alive=("arp", "other"),
        also=("host.policy-rule",))
command("policy rule for the host's own packets", "host.route", "ip",
        "route add unreachable default table 100; rule add to $GUEST iif lo lookup 100 pref 8", "rule 8 unreachable", alive=("arp", "other"),
        also=("host.policy-rule",))
command("policy rule that jumps", "host.route", "ip", "rule add pref 10 to $GUEST goto 32767", "rule 10 goto", alive=("arp", "other"),
        also=("host.policy-rule",))
command("policy rule that passes over the network", "host.route", "ip",
        "rule add to $GUEST lookup main suppress_prefixlength 16 pref 5; rule add to $GUEST unreachable pref 6", "rule 6 unreachable",
        alive=("arp", "other"), also=("host.policy-rule",))
command("route by another VM", "host.route", "ip", "route add $GUEST/32 via $PEER dev br0", "$GUEST $PEER", alive=("arp", "other"),
        also=("host.route-elsewhere",))
command("policy rule for the host's address", "host.route", "ip", f"rule add from {GATEWAY} prohibit pref 50", "rule 50", dead=("tcp",),
        alive=("ping", "arp"), also=("host.policy-rule",))


@fault("policy rule for a mark", "host.output", hops=("host.route",), also=("host.policy-rule",), alive=SECOND)
def _(bed):
    bed.lab.chain("ip", "somebody", "theirs", "type route hook output priority -150", f"ip daddr {bed.vm.address} meta mark set 7")
    bed.lab.ip("rule", "add", "fwmark", "7", "blackhole", "pref", "70")
    return ["rule 70"]


nft("port redirected to the host", "host.output", "ip", "type nat hook output priority -100", f"ip daddr $GUEST tcp dport {PORT} redirect to :9",
    dead=("tcp",), alive=("ping", "arp"))


# ---- rules that hide what they do ----

for key, hop, words, rest in (
    ("nft map of a concatenation", "bridge.output", "oifname . ether type vmap @m",
     {"family": "bridge", "hook": "output", "text": "add map bridge somebody m { type ifname . ether_type : verdict; elements = { $TAP . arp : drop } ; }",
      "alive": SECOND, "also": ("nft.bridge-drop",)}),
    ("nft raw bytes of ARP", "bridge.output", "oifname $TAP @nh,48,16 1 ether type arp drop",
     {"family": "bridge", "hook": "output", "alive": SECOND, "also": ("nft.bridge-drop",)}),
    ("nft hash", "bridge.output", "oifname $TAP jhash ether daddr mod 1 0 drop",
     {"family": "bridge", "hook": "output", "alive": SECOND, "also": ("nft.bridge-drop",)}),
    ("nft named quota", "host.input", "iifname br0 ip saddr $GUEST quota name q drop",
     {"family": "inet", "hook": "input", "text": "add quota inet somebody q { over 1 bytes }", "alive": ("arp", "other"), "also": ("netfilter.input-drop",)}),
    ("nft interval with a timeout", "host.output", "ip daddr @s drop",
     {"family": "inet", "hook": "output", "text": "add set inet somebody s { type ipv4_addr; flags interval,timeout; "
      "elements = { 192.168.0.2-192.168.0.2 timeout 1h } ; }", "alive": ("arp", "other"), "also": ("netfilter.output-drop",)}),
    ("nft count of connections", "host.output", "ip daddr $GUEST add @s { ip daddr ct count over 0 } drop",
     {"family": "inet", "hook": "output", "text": "add set inet somebody s { type ipv4_addr; size 100; flags dynamic; }", "alive": ("arp", "other"),
      "also": ("netfilter.output-drop",)}),
    ("nft by user", "host.output", "meta skuid 0 ip daddr $GUEST drop",
     {"family": "inet", "hook": "output", "alive": ("arp", "other", "vm-host"), "also": ("netfilter.output-drop",)}),
    ("nft answers of ARP", "host.input", "arp saddr ip $GUEST drop", {"family": "arp", "hook": "input", "alive": ("arp", "other"), "also": ("nft.arp-drop",)}),
):
    family, hook = rest.pop("family"), rest.pop("hook")
    nft(key, hop, family, f"type filter hook {hook} priority 0", words, **rest)

nft("nft by fib", "host.input", "inet", "type filter hook prerouting priority -300", "iifname br0 fib daddr type local drop", lab={"bridge_netfilter": 0},
    alive=("arp",), also=("netfilter.input-drop", "netfilter.prerouting-drop"))
nft("zone of its own", "host.input", "inet", "type filter hook input priority 0", "ct state established accept", "iifname br0 drop",
    text="add chain inet somebody early { type filter hook prerouting priority -300; }\nadd rule inet somebody early iifname br0 ct zone set 5",
    lab={"bridge_netfilter": 0}, alive=("arp",), also=("netfilter.input-drop",))
nft("a later chain does not ask an earlier one", "host.input", "inet", "type filter hook input priority 10", "iifname br0 drop",
    text="add chain inet somebody first { type filter hook input priority -10; }\nadd rule inet somebody first iifname br0 accept", alive=("arp",),
    also=("netfilter.input-drop",))
nft("marked on the bridge, dropped there", "bridge.input", "bridge", "type filter hook input priority 0", "meta mark 0x9 drop",
    text="add chain bridge somebody early { type filter hook prerouting priority -300; }\nadd rule bridge somebody early iifname $TAP meta mark set 0x9",
    alive=SECOND, also=("nft.bridge-drop",))
nft("broadcasts between ports", "bridge.forward", "bridge", "type filter hook postrouting priority 0", "meta pkttype broadcast drop", dead=("vm-vm",),
    alive=("ping", "tcp"), also=("nft.bridge-drop",), hops=("bridge.output",))
nft("another port by NAT", "host.output", "ip", "type nat hook output priority -100", f"ip daddr $GUEST tcp dport {PORT} dnat to $GUEST:81", dead=("tcp",),
    alive=("ping", "arp"))
nft("another port by mangling", "host.output", "ip", "type filter hook output priority 0", f"ip daddr $GUEST tcp dport {PORT} tcp dport set 81",
    dead=("tcp",), alive=("ping", "arp"))
nft("the outside translated to nobody", "host.nat", "ip", "type nat hook prerouting priority -100", "iifname br0 ip daddr != 192.168.0.0/16 dnat to 203.0.113.77",
    dead=("egress",), alive=("ping", "tcp"), hops=("host.forward",), **UPLINK)


@fault("marked on the TAP, dropped by the host", "host.input", alive=("arp", "other"), also=("netfilter.input-drop",))
def _(bed):
    bed.lab.chain("netdev", "somebody", "first", f"type filter hook ingress device {bed.vm.tap} priority 0", "meta mark set 0x99")
    handles = bed.lab.chain("inet", "somebody", "theirs", "type filter hook input priority 0", "meta mark 0x99 drop")
    return ["somebody", "theirs", f"handle {handles[0]}"]


# The targets of ebtables that change a frame have a verdict of their own.
for traced in ((), ("--no-trace",)):
    for name, words in (("mark", "-A OUTPUT -o $TAP -j mark --mark-set 1 --mark-target DROP"),
                        ("snat", "-t nat -A POSTROUTING -o $TAP -j snat --to-source 02:00:00:00:00:77 --snat-target DROP")):
        command(f"ebtables {name} and drop {len(traced)}", "bridge.output", "run", f"ebtables {words}", "handle 2", alive=SECOND, also=("ebtables.drop",),
                args=traced)
command("ARP requests are forged", "host.output", "run", "arptables -A OUTPUT -o br0 -j mangle --mangle-mac-s 02:66:66:66:66:66", "filter OUTPUT handle",
        alive=("arp",))

# ---- more of layers 2 and 3 ----


@fault("the bridge's MAC was learned elsewhere", "bridge.input", dead=("vm-host",), also=("bridge.fdb-wrong",), cold=False)
def _(bed):
    mac = bed.lab.link("br0")["address"]
    bed.lab.bridge("fdb", "replace", mac, "dev", bed.other.tap, "master", "dynamic")
    return [mac, bed.other.tap]


@fault("the bridge's MAC is in no table", "bridge.input", dead=("vm-host",), also=("bridge.fdb-wrong",))
def _(bed):
    mac = bed.lab.link("br0")["address"]
    bed.lab.bridge("fdb", "replace", mac, "dev", bed.other.tap, "master", "dynamic")
    bed.lab.bridge("fdb", "del", mac, "dev", bed.other.tap, "master")
    return [mac]


sysctls("ARP is left to a daemon", "host.neigh", {"net/ipv4/neigh/br0/app_solicit": 3, "net/ipv4/neigh/br0/mcast_solicit": 0}, "mcast_solicit app_solicit",
        alive=("arp",))
command("route of two ways", "host.route", "ip", "link add du0 type veth peer name du1; link set du0 up; link set du1 up; "
        "route add $GUEST/32 nexthop dev du0 weight 200 nexthop dev br0 weight 1", "$GUEST du0", dead=(), alive=("arp", "other"), also=("host.route-elsewhere",))
command("route for a broadcast", "host.route", "ip", "route add broadcast $GUEST/32 dev br0 table local", "$GUEST broadcast", dead=("tcp",),
        alive=("arp", "other"), also=("host.route-elsewhere",))
command("policy rule to a local route", "host.route", "ip", "route add local $GUEST/32 dev lo table 66; rule add to $GUEST lookup 66 pref 5", "rule 5",
        alive=("arp", "other"), also=("host.policy-rule",))
command("IPsec wanted from the guest", "host.input", "ip", "xfrm policy add dir in src $GUEST tmpl proto esp mode transport", "policy $GUEST",
        alive=("arp", "other"))

@fault("xdp of the driver", "tap.ingress", alive=SECOND, also=("tap.xdp-drop",))
def _(bed):
    return [bed.vm.tap, bed.lab.bpf("in_driver", XDP_DROP, bed.vm.tap, "xdp-native")]


@fault("tc redirect into a black hole", "tap.ingress", alive=SECOND, also=("tc.ingress-drop",))
def _(bed):
    bed.lab.batch("link add ifb0 type ifb\nlink set ifb0 up")
    bed.lab.tc("qdisc", "replace", "dev", "ifb0", "root", "blackhole")
    bed.lab.tc("qdisc", "add", "dev", bed.vm.tap, "clsact")
    bed.lab.tc("filter", "add", "dev", bed.vm.tap, "ingress", "protocol", "all", "u32", "match", "u32", 0, 0, "action", "mirred", "egress",
               "redirect", "dev", "ifb0")
    return [bed.vm.tap, "mirred", "ifb0"]


# ---- and of the guest's ----


@fault("guest on a VLAN", "guest.nic", alive=SECOND, hops=("guest.ip",))
def _(bed):
    bed.vm.ip("address", "flush", "dev", "eth0", "scope", "global")
    bed.chatter(bed.vm, vlan=5)
    return [bed.vm.tap, "VLAN 5"]


@fault("guest refuses a port by ICMP", "guest.firewall", dead=("tcp",), alive=("ping", "arp"), also=("guest.firewall",))
def _(bed):
    bed.vm.chain("inet", "fw", "fw", "type filter hook input priority 0", f"tcp dport {PORT} reject with icmp type admin-prohibited")
    return [bed.vm.address, "ICMP"]


def guest_mangles(key, hop, rule, **rest):
    """What leaves the guest is not what its kernel made."""

    def inject(bed):
        bed.vm.chain("netdev", "fw", "fw", "type filter hook egress device eth0 priority 0", rule)
        return [bed.vm.tap]

    NOVEL.append(Fault(key, hop, inject, **rest))


guest_mangles("guest with a group's MAC", "tap.ingress", "ether saddr set 03:00:00:00:00:01", alive=SECOND, hops=("tap.queue",))
guest_mangles("guest with bad checksums of IP", "tap.ingress", "ether type ip @nh,80,16 set 0xdead", alive=("arp", "other"), lab={"bridge_netfilter": 1})
guest_mangles("guest with bad checksums of IP, no br_netfilter", "host.input", "ether type ip @nh,80,16 set 0xdead", alive=("arp", "other"),
              lab={"bridge_netfilter": 0})
guest_mangles("guest with bad checksums of TCP", "host.input", "ether type ip ip protocol tcp @th,128,16 set 0xdead", dead=("tcp",), alive=("ping", "arp"))

"""Every row of the fault catalogue that can be injected on one machine: how to break it, how to see that it is broken
without the doctor, and what the doctor has to say.

A fault's inject(bed) breaks the bed's host and gives the words that the first finding must hold (title or evidence):
the names of the objects that are to blame.

Not injected here, and why:
  host.conntrack-full, host.neigh-table-full   the limits are the whole machine's
  tap.name-collision                           is a matter of records: two VMs, one TAP name
  guest.not-booted, vmm.link-off (QEMU)        test_qemu.py
"""
import contextlib
import signal
import socket
import subprocess
import threading
from dataclasses import dataclass, field
from typing import Callable

from lab import DEAD_S, GATEWAY, INTERNET, POOL, PORT, UPLINK_GATEWAY, Lab

XDP_DROP, XDP_PASS, TC_OK, TC_SHOT, TC_STOLEN, TCX_NEXT = 1, 2, 0, 2, 4, -1
TUN_F_CSUM, TUN_F_TSO4 = 1, 2


class Bed:
    """A lab with two live guests: the one that is asked about, and another."""

    def __init__(self, fault):
        self.fault = fault
        self.lab = Lab(**fault.lab)
        self.stop = threading.Event()
        self.threads = []

    def __enter__(self):
        self.lab.__enter__()
        try:
            self.vm = self.lab.guest(**self.fault.guest)
            self.other = self.lab.guest(**self.fault.other) if self.fault.other is not None else None
            if self.fault.setup:
                self.fault.setup(self)
            if self.fault.warm:
                self.lab.warm()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()
        self.lab.__exit__()

    def chatter(self, guest, target=GATEWAY, every=0.05, vlan=None):
        """A guest that has something to say, as real ones have: it asks by ARP for somebody, again and again; vlan: with the tag of one."""
        source = guest.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
        source.bind(("eth0", 0x0806))
        mac = source.getsockname()[4]
        tag = b"" if vlan is None else b"\x81\x00" + vlan.to_bytes(2, "big")
        frame = (b"\xff" * 6 + mac + tag + b"\x08\x06" + b"\0\1\x08\0\6\4\0\1" + mac + socket.inet_aton(guest.address)
                 + b"\0" * 6 + socket.inet_aton(target))

        def talk():
            with source:
                while not self.stop.wait(every):
                    with contextlib.suppress(OSError):
                        source.send(frame)

        self.threads.append(threading.Thread(target=talk))
        self.threads[-1].start()

    def ping6(self, space, ip, timeout):
        # Not our own code: neighbour discovery and checksums of IPv6 are ping's.
        done = subprocess.run(["nsenter", f"--net=/run/netns/{space.name}", "ping", "-6", "-c1", f"-W{max(timeout, 0.3)}", ip],
                              capture_output=True, check=False)
        return done.returncode == 0

    def strays(self, count=60):
        """How many of our echo requests for the guest arrive at the other one; it ends with the first."""
        with self.other.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as s:
            s.bind(("eth0", 0x0800))
            s.settimeout(0.01)
            for _ in range(count):
                self.lab.ping(self.vm.address, 0.01)
                with contextlib.suppress(TimeoutError):
                    while True:
                        frame = s.recv(2048)
                        if frame[23] == 1 and frame[30:34] == socket.inet_aton(self.vm.address) and frame[34] == 8:
                            return 1
        return 0

    def works(self, check, timeout):
        """One path, tried once with this much patience."""
        lab, vm, other = self.lab, self.vm, self.other
        return {
            "arp": lambda: bool(lab.arp("br0", vm.address, GATEWAY, timeout)),
            "ping": lambda: lab.ping(vm.address, timeout),
            "big": lambda: lab.ping(vm.address, timeout, size=1472, df=True),
            "tcp": lambda: lab.tcp(vm.address, timeout=timeout) == "open",
            "refused": lambda: lab.tcp(vm.address, timeout=timeout) == "refused",
            "other": lambda: lab.ping(other.address, timeout),
            "vm-host": lambda: vm.ping(GATEWAY, timeout),
            "vm-vm": lambda: other.ping(vm.address, timeout),
            "vm-vm-big": lambda: other.ping(vm.address, timeout, size=1472, df=True),
            "vm-vm-tcp": lambda: other.tcp(vm.address, timeout=timeout) == "open",
            "vm-vm6": lambda: self.ping6(other, "fd00::2", timeout),
            "host6": lambda: self.ping6(lab, "fd00::2", timeout),
            "egress": lambda: vm.ping(INTERNET, timeout),
            "egress-udp": lambda: vm.udp(INTERNET, 53, timeout=timeout),
            "one-owner": lambda: len(lab.arp("br0", vm.address, GATEWAY, timeout, everything=True)) == 1,
            "one-gateway": lambda: len(vm.arp("eth0", GATEWAY, vm.address, timeout, everything=True)) == 1,
            "steady": lambda: all(lab.ping(vm.address, 0.15) for _ in range(12)),
            "one-port": lambda: not self.strays(),
            "own-port": lambda: vm.tap in next(
                line for line in lab.bridge("fdb", "show", "br", "br0").splitlines() if line.startswith(vm.mac)),
        }[check]()

    def broken(self, checks=None):
        """The paths of the fault that are dead; all of them, if the injector is worth its name."""
        return [check for check in checks or self.fault.dead if not self.works(check, DEAD_S)]

    def doctor(self, *args, **kwargs):
        return self.lab.doctor(self.vm, *self.fault.args, *args, **{**self.fault.ask, **kwargs})


@dataclass
class Fault:
    key: str
    hop: str
    inject: Callable
    id: str = None  # of the finding; default: the key without what follows a space
    also: tuple = ()  # other ids that are as true: said where and why the fault is made
    dead: tuple = ("ping", "tcp")
    alive: tuple = ()
    status: int = 10
    role: str = "root-cause"
    lab: dict = field(default_factory=dict)
    guest: dict = field(default_factory=dict)
    other: dict = field(default_factory=dict)
    setup: Callable = None
    warm: bool = True
    cold: bool = True  # forget neighbours and FDB after the fault
    repair: str = None  # "safe", "named"
    repaired: tuple = None  # paths that work after it; default: those that were dead
    args: tuple = ()
    ask: dict = field(default_factory=dict)
    hops: tuple = ()  # other hops that are as true

    def __post_init__(self):
        self.id = self.id or self.key.split()[0]

    def bed(self):
        return Bed(self)

    def apply(self, bed):
        """Breaks it. Return: the words that the finding must hold."""
        words = self.inject(bed) or []
        if self.cold:
            bed.lab.cold()
        return [str(word) for word in words]


FAULTS = []


def fault(key, hop, **rest):
    """Decorates an injector."""

    def take(inject):
        FAULTS.append(Fault(key, hop, inject, **rest))
        return inject

    return take


def simple(key, hop, tool, command, words, **rest):
    """A fault that is one command: $TAP, $OTHER, $GUEST stand for names in command and words."""

    def inject(bed):
        names = {"$TAP": bed.vm.tap, "$OTHER": bed.other and bed.other.tap, "$GUEST": bed.vm.address}

        def fill(text):
            for name, value in names.items():
                text = text.replace(name, str(value))
            return text

        for line in command.split("; "):
            getattr(bed.lab, tool)(*fill(line).split())
        return [fill(word) for word in words.split()]

    FAULTS.append(Fault(key, hop, inject, **rest))


def rule_words(family, table, chain, handle):
    return [table, chain, f"handle {handle}"]


def nft(key, hop, family, hook, rule, repair="named", **rest):
    """One nft rule in a table of somebody else; $TAP in hook and rule."""

    def inject(bed):
        def fill(text):
            return text.replace("$TAP", bed.vm.tap).replace("$GUEST", bed.vm.address)

        handles = bed.lab.chain(family, "somebody", "theirs", fill(hook), fill(rule))
        return rule_words(family, "somebody", "theirs", handles[-1])

    FAULTS.append(Fault(key, hop, inject, repair=repair, **rest))


def xtables(key, hop, command, where=None, words=None, repair="named", **rest):
    """One command of ebtables, arptables or iptables; where: family, table and chain that its rule is in, in nft's words."""

    def inject(bed):
        bed.lab.run(*command.replace("$TAP", bed.vm.tap).split())
        if where:
            family, table, chain = where.split()
            return rule_words(family, table, chain, bed.lab.handles(family, table, chain)[-1])
        return words.split()

    FAULTS.append(Fault(key, hop, inject, repair=repair, **rest))


UPLINK = {"lab": {"uplink": True}}
SECOND = ("other",)

# ---- TAP device and VMM ----


@fault("tap.no-holder", "vmm", alive=SECOND)
def _(bed):
    bed.vm.kill()
    return [bed.vm.tap]


@fault("tap.no-holder alone", "vmm", other=None)
def _(bed):
    bed.vm.kill()
    return [bed.vm.tap]


@fault("tap.missing deleted", "tap.dev", alive=SECOND)
def _(bed):
    bed.lab.ip("link", "del", bed.vm.tap)
    return [bed.vm.tap]


@fault("tap.missing not-persistent", "tap.dev", alive=SECOND)
def _(bed):
    bed.vm("persist", 0)
    bed.vm.kill()
    return [bed.vm.tap]


@fault("tap.other-netns", "tap.dev", alive=SECOND)
def _(bed):
    elsewhere = bed.lab.space("elsewhere")
    bed.lab.ip("link", "set", bed.vm.tap, "netns", elsewhere.name)
    return [bed.vm.tap, elsewhere.name]


simple("tap.down", "tap.dev", "ip", "link set $TAP down", "$TAP", alive=SECOND, repair="safe")
simple("tap.not-enslaved", "bridge.port", "ip", "link set $TAP nomaster", "$TAP", alive=SECOND, repair="safe")
simple("tap.wrong-bridge", "bridge.port", "ip", "link add br1 type bridge; link set br1 up; link set $TAP master br1",
       "$TAP br1", alive=SECOND, repair="safe")


def vmm_options(key, hop, **options):
    """A VMM that takes something for granted that is not so. The guest talks, as one does that gets no answer."""
    rest = options.pop("rest", {})
    FAULTS.append(Fault(key, hop, lambda bed: bed.chatter(bed.vm) or [bed.vm.tap], guest=options,
                        setup=None, warm=False, **rest))


vmm_options("tap.vnet-hdr-unexpected", "tap.queue", vnet=1, size=12, believe=0)
vmm_options("tap.vnet-hdr-missing", "tap.ingress", vnet=0, believe=12)
vmm_options("tap.packet-info", "tap.queue", vnet=0, pi=1, believe=0)
vmm_options("tap.packet-info with-vnet-hdr", "tap.queue", vnet=1, pi=1, size=12, believe=12)
vmm_options("tap.vnet-hdr-size short", "tap.queue", vnet=1, size=10, believe=12)
vmm_options("tap.vnet-hdr-size long", "tap.queue", vnet=1, size=12, believe=10)
vmm_options("tap.offload-mismatch", "guest.nic", offload=TUN_F_CSUM | TUN_F_TSO4,
            rest={"dead": ("tcp",), "alive": ("ping", "arp"), "repair": "named"})


@fault("vmm.stalled SIGSTOP", "vmm", alive=SECOND, id="vmm.stalled")
def _(bed):
    bed.vm.process.send_signal(signal.SIGSTOP)
    return [bed.vm.tap, bed.vm.pid]


@fault("vmm.stalled", "vmm", alive=SECOND)
def _(bed):
    bed.vm("stall")
    return [bed.vm.tap, bed.vm.pid]


@fault("vmm.stalled ring-full", "vmm", alive=SECOND, cold=False)
def _(bed):
    bed.vm("stall")
    with bed.lab.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for _ in range(3000):
            with contextlib.suppress(OSError):
                s.sendto(b"x" * 64, (bed.vm.address, 9))
    return [bed.vm.tap, bed.vm.pid]


@fault("vmm.rx-stalled", "vmm", alive=SECOND)
def _(bed):
    bed.vm("stallrx")
    bed.chatter(bed.vm)
    return [bed.vm.tap, bed.vm.pid]


@fault("guest.not-booted", "guest.nic", guest={"asleep": 1}, warm=False, alive=SECOND)
def _(bed):
    return [bed.vm.tap]


# Without an agent or QMP nothing on the host tells these three apart for sure: the VMM reads each frame, and silence.
@fault("vmm.link-off", "vmm", also=("guest.nic-down", "unknown.vmm", "unknown.guest.nic"), hops=("guest.nic",), alive=SECOND)
def _(bed):
    bed.vm("discard")
    return [bed.vm.tap]


@fault("guest.nic-down", "guest.nic", also=("vmm.link-off", "unknown.guest.nic", "unknown.vmm"), hops=("vmm",), alive=SECOND)
def _(bed):
    bed.vm.ip("link", "set", "eth0", "down")
    return [bed.vm.tap]


@fault("tap.recreated", "vmm", alive=SECOND)
def _(bed):
    bed.lab.ip("link", "del", bed.vm.tap)
    bed.lab.tap(bed.vm.tap)
    return [bed.vm.tap, bed.vm.pid]


def swap_taps(bed):
    """Two VMs that were attached to each other's TAP: frames find them, policies do not."""
    vm, other = bed.vm, bed.other
    spare = "fc-vm-spare"
    bed.lab.tap(spare)
    mine, theirs = vm.tap, other.tap
    vm("reopen", spare)
    other("reopen", mine)
    vm("reopen", theirs)
    bed.lab.ip("link", "del", spare)
    bed.lab.cold()
    bed.lab.warm()
    return [mine, theirs, vm.mac]


FAULTS.append(Fault("tap.swapped", "bridge.port", swap_taps, dead=("own-port",), alive=("ping", "tcp", "other"), cold=False,
                    status=None, role=None))


def vmm_fails(key, kind, **options):
    """A VMM that could not open its TAP and lives on."""

    def inject(bed):
        problem = bed.vm.start()
        assert problem and problem.startswith("error"), problem
        return [bed.vm.tap]

    FAULTS.append(Fault(key, "vmm", inject, guest={"tap_kind": kind, "start": False, "keep": 1, **options}, warm=False))


vmm_fails("tap.multi-queue-mismatch", "multi_queue")
vmm_fails("tap.not-permitted", "user 12345", uid=4242)


@fault("tap.xdp-drop", "tap.ingress", alive=SECOND, repair="named")
def _(bed):
    return [bed.vm.tap, bed.lab.bpf("mon_drop", XDP_DROP, bed.vm.tap, "xdp")]


# ---- bridge ----

for state in (0, 1, 2):
    simple(f"bridge.port-not-forwarding {state}", "bridge.port", "bridge", f"link set dev $TAP state {state}", "$TAP",
           alive=SECOND, repair="safe")


def stp_bounce(bed, *after):
    bed.lab.ip("link", "set", "br0", "type", "bridge", "stp_state", 1, "forward_delay", 1500)
    bed.lab.batch(f"link set {bed.vm.tap} nomaster\nlink set {bed.vm.tap} master br0")
    for command in after:
        bed.lab.ip(*command.split())
    return [bed.vm.tap]


FAULTS.append(Fault("bridge.stp-delay", "bridge.port", stp_bounce, repair="safe"))
FAULTS.append(Fault("bridge.port-not-forwarding after-stp", "bridge.port",
                    lambda bed: stp_bounce(bed, "link set br0 type bridge stp_state 0"), repair="safe"))

simple("bridge.port-isolated", "bridge.port", "bridge", "link set dev $TAP isolated on; link set dev $OTHER isolated on", "$TAP",
       dead=("vm-vm",), alive=("ping", "tcp"), repair="safe")
simple("bridge.bcast-flood-off", "bridge.forward", "bridge", "link set dev $TAP bcast_flood off", "$TAP", dead=("vm-vm",),
       alive=("ping", "tcp"), repair="safe")


@fault("bridge.flood-off", "bridge.forward", dead=("ping", "tcp"), alive=("arp", "other"), repair="safe")
def _(bed):
    bed.lab.bridge("link", "set", "dev", bed.vm.tap, "flood", "off", "learning", "off")
    return [bed.vm.tap]


def addresses6(bed):
    for i, space in enumerate((bed.lab, bed.vm, bed.other), 1):
        space.ip("address", "add", f"fd00::{i}/64", "dev", "br0" if i == 1 else "eth0", "nodad")
    assert bed.works("vm-vm6", 2)
    for space in (bed.vm, bed.other):
        space.ip("neigh", "flush", "all")


def mcast_flood_off(bed):
    bed.lab.bridge("link", "set", "dev", bed.vm.tap, "mcast_flood", "off")
    for space in (bed.vm, bed.other):
        space.ip("-6", "neigh", "flush", "all")
    return [bed.vm.tap]


FAULTS.append(Fault("bridge.mcast-flood-off", "bridge.forward", mcast_flood_off, setup=addresses6, dead=("vm-vm6",),
                    alive=("ping", "tcp", "host6"), repair="safe"))

simple("bridge.learning-off", "bridge.forward", "bridge", "link set dev $TAP learning off", "$TAP", dead=(),
       alive=("ping", "tcp", "vm-vm"), status=0, role="note", repair=None)
simple("bridge.ageing-zero", "bridge.forward", "ip", "link set br0 type bridge ageing_time 0", "br0", dead=(),
       alive=("ping", "tcp", "vm-vm"), status=0, role="note")


@fault("bridge.duplicate-mac", "bridge.forward", dead=("vm-vm",), cold=False)
def _(bed):
    bed.other.batch(f"link set eth0 address {bed.vm.mac}\naddress flush dev eth0\naddress add {bed.other.address}/16 dev eth0")
    bed.chatter(bed.vm, every=0.03)
    bed.chatter(bed.other, every=0.011)
    return [bed.vm.mac, bed.other.tap]


@fault("bridge.duplicate-mac and-ip", "bridge.forward", dead=("one-port",), cold=False)
def _(bed):
    bed.other.batch(f"link set eth0 address {bed.vm.mac}\naddress flush dev eth0\naddress add {bed.vm.address}/16 dev eth0")
    bed.chatter(bed.vm, every=0.03)
    bed.chatter(bed.other, every=0.011)
    return [bed.vm.mac, bed.other.tap]


simple("tap.mac-equals-guest", "bridge.forward", "ip", "link set $TAP address 02:fc:f9:aa:5d:01", "$TAP 02:fc:f9:aa:5d:01",
       lab={"forward": 0}, dead=("vm-vm",), repair="named")


def gateway_is_frozen(bed):
    """The bridge has the MAC of the other VM's TAP, the lowest, and the guest knows it by heart."""
    bed.lab.batch(f"link set {bed.vm.tap} address fe:00:00:00:00:01\nlink set {bed.other.tap} address 02:00:00:00:00:33")
    mac = bed.lab.link("br0")["address"]
    bed.vm.ip("neigh", "replace", GATEWAY, "lladdr", mac, "dev", "eth0", "nud", "permanent")


@fault("bridge.mac-changed", "bridge.input", lab={"pinned": False}, setup=gateway_is_frozen, dead=("ping", "vm-host"),
       alive=("arp",), repair="named")
def _(bed):
    old = bed.lab.link("br0")["address"]
    bed.lab.ip("link", "set", bed.other.tap, "address", "00:00:00:00:00:11")
    assert bed.lab.link("br0")["address"] == "00:00:00:00:00:11" != old
    return ["br0", old]


simple("bridge.down", "bridge.dev", "ip", "link set br0 down", "br0", repair="safe")
simple("bridge.down leak", "bridge.dev", "ip", "link set br0 down", "br0", repair="safe", **UPLINK)


# Mended for the one that was asked about: the others are their own targets.
@fault("bridge.recreated", "bridge.port", dead=("ping", "tcp", "other"), repaired=("ping", "tcp"), repair="safe")
def _(bed):
    bed.lab.batch(f"link del br0\nlink add br0 type bridge\nlink set br0 up\naddress add {POOL} dev br0")
    return [bed.vm.tap, "br0"]


simple("bridge.mtu-mismatch tap", "bridge.dev", "ip", "link set $TAP mtu 1400", "$TAP", dead=("big",), alive=("ping", "tcp"),
       repair="named")
simple("bridge.mtu-mismatch bridge", "bridge.dev", "ip", "link set br0 mtu 1400", "br0", dead=("big",), alive=("ping", "tcp"),
       repair="named")


@fault("bridge.ports-exhausted", "bridge.port", guest={"ip": "192.168.200.1"}, cold=False)
def _(bed):
    bed.lab.ip("link", "set", bed.vm.tap, "nomaster")
    lines = []
    for n in range(1022):
        lines += [f"tuntap add dev fill{n} mode tap", f"link set fill{n} master br0"]
    bed.lab.batch("\n".join(lines))
    refusal = subprocess.run(["ip", "-n", bed.lab.name, "link", "set", bed.vm.tap, "master", "br0"], capture_output=True, text=True,
                             check=False)
    assert "Exchange full" in refusal.stderr, refusal.stderr
    return [bed.vm.tap, "br0", "1023"]


# ---- filters, qdiscs, BPF ----

simple("qdisc.drops blackhole", "tap.egress", "tc", "qdisc replace dev $TAP root blackhole", "$TAP blackhole", alive=SECOND, repair="named")
simple("qdisc.drops pfifo", "tap.egress", "tc", "qdisc replace dev $TAP root pfifo limit 0", "$TAP pfifo", alive=SECOND, repair="named")

xtables("ebtables.drop output", "bridge.output", "ebtables -A OUTPUT -o $TAP -j DROP", "bridge filter OUTPUT", alive=SECOND)
xtables("ebtables.policy-drop output", "bridge.output", "ebtables -P OUTPUT DROP", words="filter OUTPUT policy", dead=("ping", "tcp", "other"))
xtables("ebtables.drop arp", "bridge.output", "ebtables -A OUTPUT -p ARP -o $TAP -j DROP", "bridge filter OUTPUT", alive=SECOND)
xtables("ebtables.policy-drop forward", "bridge.forward", "ebtables -P FORWARD DROP", words="filter FORWARD policy", dead=("vm-vm",),
        alive=("ping", "tcp"))
xtables("ebtables.drop input", "bridge.input", "ebtables -A INPUT -i $TAP -j DROP", "bridge filter INPUT", alive=SECOND)
xtables("ebtables.drop prerouting", "tap.ingress", "ebtables -t nat -A PREROUTING -i $TAP -j DROP", "bridge nat PREROUTING", alive=SECOND)

nft("nft.bridge-drop output", "bridge.output", "bridge", "type filter hook output priority 0", "ether type arp oifname $TAP counter drop",
    alive=SECOND)
nft("nft.bridge-drop prerouting", "tap.ingress", "bridge", "type filter hook prerouting priority 0", "iifname $TAP drop", alive=SECOND)
nft("nft.bridge-drop input", "bridge.input", "bridge", "type filter hook input priority 0", "iifname $TAP drop", alive=SECOND)
nft("nft.bridge-drop forward", "bridge.forward", "bridge", "type filter hook forward priority 0", "oifname $TAP drop", dead=("vm-vm",),
    alive=("ping", "tcp"))
nft("nft.netdev-drop ingress", "tap.ingress", "netdev", "type filter hook ingress device $TAP priority 0", "counter drop", alive=SECOND)
nft("nft.netdev-drop egress-bridge", "bridge.dev", "netdev", "type filter hook egress device br0 priority 0", "ether type arp drop")
nft("nft.netdev-drop egress-tap", "tap.egress", "netdev", "type filter hook egress device $TAP priority 0", "drop", alive=SECOND)
nft("nft.arp-drop", "host.output", "arp", "type filter hook output priority 0", "oifname br0 drop")
xtables("nft.arp-drop arptables", "host.output", "arptables -A OUTPUT -o br0 -j DROP", "arp filter OUTPUT")
# The legacy tables are not in nftables: what is known is that there are some, and where the packet died.
xtables("nft.arp-drop arptables-legacy", "host.output", "arptables-legacy -A OUTPUT -j DROP", words="legacy", repair=None,
        also=("unknown.host.output",))


def tc_drop(key, hop, device, where, how, **rest):
    """A program of somebody else: an eBPF program of cls_bpf or tcx, or a classic one."""

    def inject(bed):
        dev = device.replace("$TAP", bed.vm.tap)
        if how != "tcx":
            bed.lab.tc("qdisc", "add", "dev", dev, "clsact")
        if how == "classic":
            bed.lab.tc("filter", "add", "dev", dev, where, "bpf", "da", "bytecode", f"1,6 0 0 {TC_SHOT}")
            return [dev]
        return [dev, bed.lab.bpf("cil_drop", TC_SHOT, dev, f"{how}-{where}") and "cil_drop"]

    FAULTS.append(Fault(key, hop, inject, repair="named", **rest))


tc_drop("tc.egress-drop", "tap.egress", "$TAP", "egress", "cls", alive=SECOND)
tc_drop("tc.egress-drop classic", "tap.egress", "$TAP", "egress", "classic", alive=SECOND)
tc_drop("tc.egress-drop tcx", "tap.egress", "$TAP", "egress", "tcx", alive=SECOND)
tc_drop("tc.ingress-drop", "tap.ingress", "$TAP", "ingress", "cls", alive=SECOND)
tc_drop("tc.ingress-drop tcx", "tap.ingress", "$TAP", "ingress", "tcx", alive=SECOND)
tc_drop("tc.egress-drop bridge", "bridge.dev", "br0", "egress", "cls")
tc_drop("tc.ingress-drop bridge", "bridge.input", "br0", "ingress", "cls")


def forward_policy(bed, *rules):
    bed.lab.chain("inet", "somebody", "gate", "type filter hook forward priority 0", *rules, policy="drop")
    return ["somebody", "gate"]


FAULTS.append(Fault("netfilter.bridge-forward-drop", "bridge.forward", forward_policy, lab={"bridge_netfilter": 1}, dead=("vm-vm-tcp",),
                    alive=("ping", "tcp"), repair="named"))
FAULTS.append(Fault("netfilter.forward-drop", "host.forward", forward_policy, lab={"bridge_netfilter": 0, "uplink": True},
                    dead=("egress",), alive=("ping", "tcp", "vm-vm"), repair="named"))
FAULTS.append(Fault("netfilter.forward-drop no-way-back", "host.forward", lambda bed: forward_policy(bed, "iifname br0 accept"),
                    lab={"bridge_netfilter": 0, "uplink": True}, dead=("egress",), alive=("ping", "tcp"), repair="named"))
# With br_netfilter Docker's policy takes the bridged frames as well: either name is true of it.
xtables("netfilter.forward-drop docker", "host.forward", "iptables -P FORWARD DROP", words="filter FORWARD",
        lab={"bridge_netfilter": 1, "uplink": True}, dead=("egress", "vm-vm"), alive=("ping", "tcp"),
        also=("netfilter.bridge-forward-drop",), hops=("bridge.forward",))

# ---- host, L3 ----


# Two faults in one: the way out goes elsewhere, and therefore what comes in is refused. The first one on the way is
# as true a first finding; both must be found (test_catalogue.py).
@fault("host.rp-filter", "host.input", dead=("vm-host",), also=("host.route-elsewhere",), hops=("host.route",), repair="named", **UPLINK)
def _(bed):
    for device in ("all", "br0"):
        bed.lab.sysctl(f"net/ipv4/conf/{device}/rp_filter", 1)
    bed.lab.ip("route", "add", f"{bed.vm.address}/32", "via", UPLINK_GATEWAY)
    return []


@fault("host.arp-ignore", "host.input", dead=("vm-host",), repair="named")
def _(bed):
    bed.lab.sysctl("net/ipv4/conf/br0/arp_ignore", 8)
    bed.chatter(bed.vm)
    return ["arp_ignore", "br0"]


def gateway_on_lo(bed):
    bed.lab.batch(f"address flush dev br0\naddress add 192.168.0.254/16 dev br0\naddress add {GATEWAY}/32 dev lo")


@fault("host.arp-ignore lo", "host.input", setup=gateway_on_lo, dead=("vm-host",), repair="named")
def _(bed):
    bed.lab.sysctl("net/ipv4/conf/br0/arp_ignore", 1)
    bed.chatter(bed.vm)
    return ["arp_ignore"]


@fault("guest.wrong-prefix", "guest.ip", guest={"ip": "192.168.5.2", "prefix": 24}, warm=False, alive=("arp",))
def _(bed):
    return ["192.168.5.2"]


@fault("host.wrong-prefix", "host.route", guest={"ip": "192.168.7.2"}, **UPLINK)
def _(bed):
    bed.lab.batch("address flush dev br0\naddress add 192.168.1.1/24 dev br0")
    return ["192.168.1.1/24", "wan0"]


simple("host.no-address", "host.route", "ip", "address flush dev br0", "br0", **UPLINK)
simple("host.no-address no-uplink", "host.route", "ip", "address flush dev br0", "br0")


# A guest that asks for its gateway tells what the address was.
@fault("host.no-address asked-for", "host.route", repair="named", **UPLINK)
def _(bed):
    bed.lab.ip("address", "flush", "dev", "br0")
    bed.chatter(bed.vm)
    return ["br0", GATEWAY]



@fault("guest.duplicate-ip", "host.neigh", dead=("one-owner",))
def _(bed):
    bed.other.ip("address", "add", f"{bed.vm.address}/16", "dev", "eth0")
    return [bed.vm.address, bed.other.mac]


@fault("guest.owns-gateway", "host.neigh", dead=("one-gateway",))
def _(bed):
    bed.other.ip("address", "add", f"{GATEWAY}/16", "dev", "eth0")
    return [GATEWAY, bed.other.mac]


simple("host.route-elsewhere", "host.route", "ip", f"route add 192.168.0.0/24 via {UPLINK_GATEWAY}", "192.168.0.0/24 wan0", **UPLINK,
       repair="named")
simple("host.overlapping-prefix", "host.route", "ip", "link add docker0 type bridge; link set docker0 up; address add 192.168.0.254/24 dev docker0",
       "docker0")
simple("host.policy-rule", "host.route", "ip", "route add blackhole default table 7777; rule add to 192.168.0.0/16 lookup 7777 pref 1234",
       "1234 7777", repair="named")
simple("host.neigh-wrong", "host.neigh", "ip", "neigh replace $GUEST lladdr 02:de:ad:00:00:01 dev br0 nud permanent",
       "$GUEST 02:de:ad:00:00:01", repair="named", alive=("arp",))


@fault("host.ip-forward-off", "host.forward", dead=("egress",), alive=("ping", "tcp"), repair="named", **UPLINK)
def _(bed):
    bed.lab.sysctl("net/ipv4/ip_forward", 0)
    return ["ip_forward"]


@fault("host.no-masquerade", "host.nat", dead=("egress",), alive=("ping", "tcp"), repair="named", **UPLINK)
def _(bed):
    bed.lab.nft("flush ruleset")
    return ["wan0"]


@fault("host.masquerade-wrong-oif", "host.nat", dead=("egress",), alive=("ping", "tcp"), repair="named", **UPLINK)
def _(bed):
    bed.lab.nft("flush ruleset")
    bed.lab.chain("ip", "nat", "post", "type nat hook postrouting priority 100", 'oifname "wlan0" masquerade')
    return ["wlan0", "wan0"]


nft("netfilter.input-drop", "host.input", "inet", "type filter hook input priority 0", "iifname br0 counter drop", dead=("ping", "vm-host"),
    alive=("arp",))
nft("netfilter.output-drop", "host.output", "inet", "type filter hook output priority 0", "oifname br0 drop")

for kind in ("blackhole", "unreachable", "prohibit"):
    simple(f"host.blackhole-route {kind}", "host.route", "ip", f"route add {kind} $GUEST/32", f"$GUEST {kind}", repair="named")

simple("host.uplink-down", "host.uplink", "ip", "link set wan0 down", "wan0", dead=("egress",), alive=("ping", "tcp"), **UPLINK)
simple("host.neigh-wrong gateway", "host.uplink", "ip", "neigh replace 203.0.113.1 lladdr 02:de:ad:be:ef:01 dev wan0 nud permanent",
       "203.0.113.1 02:de:ad:be:ef:01 wan0", dead=("egress",), alive=("ping", "tcp"), repair="named", **UPLINK)


@fault("host.uplink-down peer", "host.uplink", dead=("egress",), alive=("ping", "tcp"), **UPLINK)
def _(bed):
    bed.lab.net.ip("link", "set", "peer0", "down")
    return ["wan0"]


simple("host.no-default-route", "host.uplink", "ip", "route del default", "default", dead=("egress",), alive=("ping", "tcp"), **UPLINK)

# ---- guest ----


@fault("guest.no-default-route", "guest.ip", dead=("egress",), alive=("ping", "tcp", "vm-vm"), **UPLINK)
def _(bed):
    bed.vm.ip("route", "del", "default")
    return [bed.vm.address]


# A guest without an address may as well have its interface down, as seen from here.
@fault("guest.no-address", "guest.ip", also=("unknown.guest.ip",), alive=SECOND)
def _(bed):
    bed.vm.ip("address", "flush", "dev", "eth0", "scope", "global")
    return [bed.vm.tap]


@fault("guest.no-address another", "guest.ip", id="guest.no-address", alive=SECOND)
def _(bed):
    bed.vm.batch("address flush dev eth0 scope global\naddress add 192.168.9.9/16 dev eth0")
    bed.chatter_address = "192.168.9.9"
    bed.vm.address, wrong = "192.168.9.9", bed.vm.address
    bed.chatter(bed.vm)
    bed.vm.address = wrong
    return [bed.vm.tap, "192.168.9.9"]


def guest_rule(key, hook, rule, **rest):
    FAULTS.append(Fault(key, "guest.firewall",
                        lambda bed: bed.vm.chain("inet", "fw", "fw", f"type filter hook {hook} priority 0", rule) and [bed.vm.address], **rest))


guest_rule("guest.firewall input", "input", "drop", alive=("arp",))
guest_rule("guest.firewall port", "input", f"tcp dport {PORT} drop", dead=("tcp",), alive=("ping", "arp"))
guest_rule("guest.firewall reject", "input", f"tcp dport {PORT} reject", dead=("tcp",), alive=("ping", "arp"))
guest_rule("guest.firewall output", "output", "drop", alive=("arp",))


@fault("guest.ignores-ping", "guest.firewall", dead=("ping",), alive=("tcp", "arp"), status=0, role="note")
def _(bed):
    bed.vm.sysctl("net/ipv4/icmp_echo_ignore_all", 1)
    return [bed.vm.address]


# Who is not let in cannot tell a service that listens elsewhere from none.
@fault("guest.service-loopback-only", "guest.service", dead=("tcp",), alive=("ping",), also=("guest.service-down", "unknown.guest.service"))
def _(bed):
    bed.vm("unserve", PORT)
    bed.vm("serve", PORT, "127.0.0.1")
    return [bed.vm.address, PORT]


@fault("guest.service-down", "guest.service", dead=("tcp",), alive=("ping", "refused"))
def _(bed):
    bed.vm("unserve", PORT)
    return [bed.vm.address, PORT]


def internet_dns(bed):
    """A name server in the internet: echoes."""
    bed.server = bed.lab.net.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bed.server.bind((INTERNET, 53))
    bed.server.settimeout(0.05)

    def echo():
        with bed.server:
            while not bed.stop.is_set():
                with contextlib.suppress(OSError):
                    text, who = bed.server.recvfrom(2048)
                    bed.server.sendto(text, who)

    bed.threads.append(threading.Thread(target=echo))
    bed.threads[-1].start()
    assert bed.works("egress-udp", 5)


nft("guest.dns", "host.forward", "inet", "type filter hook forward priority 0", "udp dport 53 drop", dead=("egress-udp",),
    alive=("ping", "tcp", "egress"), also=("netfilter.forward-drop",), setup=internet_dns, **UPLINK)

BY_KEY = {f.key: f for f in FAULTS}
assert len(BY_KEY) == len(FAULTS)

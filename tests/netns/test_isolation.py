"""What a VM may send: a real bridge, real TAPs, the controller's real rules, and frames written into a TAP as a guest
would. Each test has network namespaces of its own."""
import contextlib
import re
import socket
import struct
import sys
import time

import pytest

import frames
from frames import ARP, BROADCAST, IPV4, IPV6, Guest, arp, echo, eth, ipv4, tcp, udp, vlan
from test_network import (BRIDGE, UID, Error, Space, held, internet, name, run, space, tools, vm,  # noqa: F401
                          wait_until)

GATEWAY, UPLINK, NEXT_HOP, OUTSIDE = "192.168.0.1", "203.0.113.2", "203.0.113.1", "198.51.100.1"
A, B = vm(1), vm(2)
IP = {1: "192.168.0.9", 2: "192.168.0.10"}
MAC = {1: "02:fc:00:00:00:09", 2: "02:fc:00:00:00:0a"}
CANARY_MAC = "02:fd:ff:00:00:07"


class Net:
    """A managed bridge with two VMs, a and b, and an uplink to a namespace that knows nothing of them."""

    def __init__(self, tools, space, **keys):
        self.space, self.tool = space, tools()
        for key, value in keys.items():
            self.tool("set", key, *str(value).split())
        self.tool.start(space.name, uplink="wan0")
        self.gateway_mac = self.tool.status()["mac"]
        self.a, self.b = self.guest(1), self.guest(2)
        for guest in (self.a, self.b):
            assert guest.ping(), "the gateway must answer before anything else is worth testing"

    def guest(self, n, create=True):
        if create:
            self.tool("create", *vm(n), UID)
        return Guest(self.space.name, vm(n)[0], IP[n], MAC[n], GATEWAY, self.gateway_mac)

    def stopped(self, n=1):
        return {k: int(v) for k, v in (pair.split("=") for pair in self.tool("stopped", vm(n)[0]).split())}

    def close(self):
        self.a.close()
        self.b.close()


@pytest.fixture
def net(tools, space, internet):
    made = []

    def make(**keys):
        made.append(Net(tools, space, **keys))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def shared():
    """One net for all cases that only add to counters."""
    with contextlib.ExitStack() as stack:
        here, there = f"nt-{frames.os.getpid()}-iso", f"nt-{frames.os.getpid()}-out"
        for each in (here, there):
            run("ip", "netns", "add", each)
            stack.callback(run, "ip", "netns", "del", each)
        space, other = Space(here), Space(there)
        space.ip("link", "set", "lo", "up")
        space.ip("link", "add", "wan0", "type", "veth", "peer", "name", "eth0", "netns", there)
        space.ip("address", "add", f"{UPLINK}/24", "dev", "wan0")
        space.ip("link", "set", "wan0", "up")
        space.ip("route", "add", "default", "via", NEXT_HOP)
        other.ip("address", "add", f"{NEXT_HOP}/24", "dev", "eth0")
        other.ip("address", "add", f"{OUTSIDE}/32", "dev", "lo")
        other.ip("link", "set", "lo", "up")
        other.ip("link", "set", "eth0", "up")
        from test_network import Tool
        one = Net(Tool, space, arp_per_second=100000)
        stack.callback(one.tool.stop)
        stack.callback(one.close)
        one.out = other
        yield one


def fragments(a, dst, payload, protocol=17):
    cut = 24
    return [a.packet(dst, protocol, payload[:cut], more=True), a.packet(dst, protocol, payload[cut:], offset=cut)]


def timestamp():
    head = struct.pack("!BBHHH", 13, 0, 0, 1, 1) + bytes(12)
    return head[:2] + struct.pack("!H", frames.checksum(head)) + head[4:]


def neighbour_solicitation(a):
    return eth(a.mac, "33:33:ff:00:00:01", IPV6, bytes.fromhex("6000000000203aff") + bytes(32) + b"\x87" + bytes(31))


# What a sends three times, and as what it is counted. Nothing of it may arrive at b, nor change what the host believes.
CASES = {
    "another MAC": (lambda a: [eth("02:fc:00:00:99:99", a.gateway_mac, IPV4, ipv4(a.ip, GATEWAY, 1, echo(1)))], "mac"),
    "the neighbour's MAC": (lambda a: [arp(MAC[2], BROADCAST, a.mac, a.ip, GATEWAY)], "mac"),
    "the gateway's MAC": (lambda a: [eth(a.gateway_mac, MAC[2], IPV4, ipv4(GATEWAY, IP[2], 1, echo(1)))], "mac"),
    "the neighbour's address": (lambda a: [eth(a.mac, a.gateway_mac, IPV4, ipv4(IP[2], OUTSIDE, 17, udp(53)))], "ip"),
    "the gateway's address": (lambda a: [eth(a.mac, a.gateway_mac, IPV4, ipv4(GATEWAY, GATEWAY, 1, echo(1)))], "ip"),
    "an address from outside": (lambda a: [eth(a.mac, a.gateway_mac, IPV4, ipv4("8.8.8.8", GATEWAY, 1, echo(1)))], "ip"),
    "loopback as sender": (lambda a: [eth(a.mac, a.gateway_mac, IPV4, ipv4("127.0.0.1", GATEWAY, 1, echo(1)))], "ip"),
    "a fragment of another's": (
        lambda a: [eth(a.mac, a.gateway_mac, IPV4, ipv4(IP[2], OUTSIDE, 17, b"x" * 16, offset=1480))], "ip"),
    "an IPv4 header cut short": (lambda a: [eth(a.mac, a.gateway_mac, IPV4, b"\x45\0\0\x14")], "ip"),
    "ARP as the neighbour": (lambda a: [arp(a.mac, BROADCAST, a.mac, IP[2], GATEWAY)], "arp"),
    "ARP as the gateway, to all": (lambda a: [arp(a.mac, BROADCAST, a.mac, GATEWAY, IP[2])], "arp"),
    "ARP as the gateway, answered to the neighbour": (
        lambda a: [arp(a.mac, MAC[2], a.mac, GATEWAY, IP[2], 2, MAC[2])], "arp"),
    "ARP as the neighbour, answered to the host": (
        lambda a: [arp(a.mac, a.gateway_mac, a.mac, IP[2], GATEWAY, 2, a.gateway_mac)], "arp"),
    "gratuitous ARP for the neighbour": (lambda a: [arp(a.mac, BROADCAST, a.mac, IP[2], IP[2])], "arp"),
    "gratuitous ARP for the gateway": (lambda a: [arp(a.mac, BROADCAST, a.mac, GATEWAY, GATEWAY, 2)], "arp"),
    "an ARP probe for the neighbour's address": (lambda a: [arp(a.mac, BROADCAST, a.mac, "0.0.0.0", IP[2])], "arp"),
    "ARP with the neighbour's MAC inside": (lambda a: [arp(a.mac, BROADCAST, MAC[2], a.ip, GATEWAY)], "arp"),
    "ARP answered to all": (lambda a: [arp(a.mac, BROADCAST, a.mac, a.ip, GATEWAY, 2, a.gateway_mac)], "arp"),
    "ARP cut short": (lambda a: [eth(a.mac, BROADCAST, ARP, struct.pack("!HHBBH", 1, IPV4, 6, 4, 1))], "arp"),
    "reverse ARP inside ARP": (lambda a: [arp(a.mac, BROADCAST, a.mac, a.ip, GATEWAY, 3)], "arp"),
    "ARP for the neighbour": (lambda a: [a.asks(IP[2])], "neighbour"),
    "ARP for the host's uplink": (lambda a: [a.asks(UPLINK)], "neighbour"),
    "a packet to the neighbour": (lambda a: [a.packet(IP[2], 1, echo(1), to=MAC[2])], "neighbour"),
    "a packet to the neighbour by way of the gateway": (lambda a: [a.packet(IP[2], 17, udp(6080))], "neighbour"),
    "a packet to a MAC that nobody has": (lambda a: [a.packet(IP[2], 1, echo(1), to="02:00:00:00:00:77")], "neighbour"),
    "the host's TCP port": (lambda a: [a.packet(GATEWAY, 6, tcp(a.ip, GATEWAY, 4000))], "host"),
    "the host's UDP port": (lambda a: [a.packet(GATEWAY, 17, udp(7777))], "host"),
    "the host's UDP port, in fragments": (lambda a: fragments(a, GATEWAY, udp(7777, b"y" * 40)), "host"),
    "ping of the host's uplink address": (lambda a: [a.packet(UPLINK, 1, echo(1))], "host"),
    "a port of the host's uplink address": (lambda a: [a.packet(UPLINK, 17, udp(7777))], "host"),
    "the pool's broadcast address": (lambda a: [a.packet("192.168.255.255", 17, udp(7777))], "host"),
    "a timestamp request": (lambda a: [a.packet(GATEWAY, 1, timestamp())], "host"),
    "the metadata address": (lambda a: [a.packet("169.254.169.254", 6, tcp(a.ip, "169.254.169.254", 80))], "metadata"),
    "a private network, 10/8": (lambda a: [a.packet("10.1.2.3", 17, udp(53))], "private"),
    "a private network, 172.16/12": (lambda a: [a.packet("172.31.255.1", 17, udp(53))], "private"),
    "a carrier's network": (lambda a: [a.packet("100.64.0.1", 17, udp(53))], "private"),
    "the host's next hop": (lambda a: [a.packet(NEXT_HOP, 1, echo(1))], "private"),
    "a neighbour of the host, on its public network": (
        lambda a: [a.packet("203.0.113.99", 6, tcp(a.ip, "203.0.113.99", 22))], "private"),
    "the broadcast address of the host's public network": (lambda a: [a.packet("203.0.113.255", 17, udp(137))], "host"),
    "a multicast address by the gateway": (lambda a: [a.packet("224.0.0.251", 17, udp(5353))], "protocol"),
    "a loopback address": (lambda a: [a.packet("127.0.0.1", 17, udp(7777))], "protocol"),
    "a reserved address": (lambda a: [a.packet("250.0.0.1", 17, udp(5353))], "private"),
    "an answer that nobody asked for": (lambda a: [a.packet(OUTSIDE, 6, tcp(a.ip, OUTSIDE, 80, flags=0x12))], "invalid"),
    "IPv6": (lambda a: [neighbour_solicitation(a)], "protocol"),
    "a router advertisement": (
        lambda a: [eth(a.mac, "33:33:00:00:00:01", IPV6, bytes.fromhex("6000000000103aff") + bytes(32) + b"\x86" + bytes(15))],
        "protocol"),
    "DHCP": (lambda a: [eth(a.mac, BROADCAST, IPV4, ipv4("0.0.0.0", "255.255.255.255", 17, udp(67, source=68)))],
             "protocol"),
    "a VLAN tag": (lambda a: [vlan(a.packet(GATEWAY, 1, echo(1)))], "protocol"),
    "a VLAN tag around ARP": (lambda a: [vlan(arp(a.mac, BROADCAST, a.mac, GATEWAY, IP[2]))], "protocol"),
    "a priority tag": (lambda a: [vlan(a.packet(GATEWAY, 1, echo(1)), tag=0)], "protocol"),
    "two VLAN tags": (lambda a: [vlan(vlan(a.packet(GATEWAY, 1, echo(1))), kind=0x88A8)], "protocol"),
    "EAPOL to a group that is not bridged": (lambda a: [eth(a.mac, "01:80:c2:00:00:03", 0x888E, bytes(46))], "protocol"),
    "LACP": (lambda a: [eth(a.mac, "01:80:c2:00:00:02", 0x8809, bytes(46))], "protocol"),
    "a packet by a MAC that is not bridged": (
        lambda a: [a.packet(GATEWAY, 17, udp(7777), to="01:80:c2:00:00:0e")], "protocol"),
    "a spanning tree BPDU": (lambda a: [eth(a.mac, "01:80:c2:00:00:00", 38, b"\x42\x42\x03" + bytes(43))], "protocol"),
    "multicast": (lambda a: [a.packet("224.0.0.251", 17, udp(5353), to="01:00:5e:00:00:fb")], "protocol"),
    "broadcast": (lambda a: [a.packet("192.168.255.255", 17, udp(137), to=BROADCAST)], "protocol"),
    "EAPOL": (lambda a: [eth(a.mac, a.gateway_mac, 0x888E, bytes(46))], "protocol"),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_stopped_and_counted(shared, case):
    make, reason = CASES[case]
    a, b = shared.a, shared.b
    b.read()
    fdb = lambda: sorted(shared.space.run("bridge", "fdb", "show", "br", BRIDGE).split("\n"))
    neighbours = lambda: {n["dst"]: n.get("lladdr") for n in shared.space.json("neighbour", "show", "dev", BRIDGE)}
    before, known = shared.stopped(), (fdb(), neighbours())
    with frames.inside(shared.space.name):
        port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with contextlib.closing(port):
        port.setblocking(False)
        port.bind(("", 7777))
        for _ in range(3):
            a.send(*make(a))
        assert a.ping(), "the VM itself goes on"
        with pytest.raises(BlockingIOError):
            port.recv(100)
    after = shared.stopped()
    assert {k: after[k] - before[k] for k in after if after[k] != before[k]} == {reason: 3}
    heard = [f for f in b.read() if f[6:12] == frames.mac(a.mac) or IP[1] in (socket.inet_ntoa(f[26:30]),)]
    assert heard == [], "the neighbour has heard of it"
    assert (fdb(), neighbours()) == known
    assert sum(shared.stopped(2).values()) == 0


# What the kernel itself throws away, or takes for nothing, before any rule can count it.
@pytest.mark.parametrize("dst", [f"01:80:c2:00:00:0{n:x}" for n in range(16)])
@pytest.mark.parametrize("src", [MAC[2], "gateway"])
def test_a_frame_that_is_not_bridged_teaches_the_bridge_nothing(shared, src, dst):
    """As the neighbour, or as the gateway, to the bridge's own groups: LLDP passes no filter of the bridge, but the bridge
    would learn from it where the neighbour is, and send its frames here."""
    a = shared.a
    src = a.gateway_mac if src == "gateway" else src
    fdb = lambda: sorted(shared.space.run("bridge", "fdb", "show", "br", BRIDGE).split("\n"))
    assert shared.b.ping()
    known = fdb()
    a.send(eth(src, dst, 0x88CC, bytes(46)), eth(src, dst, 0x888E, bytes(46)),
           eth(src, dst, IPV4, ipv4(IP[2], GATEWAY, 17, udp(7777))))
    assert a.ping() and fdb() == known
    assert shared.b.ping()


def test_what_a_vm_may_do(shared):
    """Ping the gateway, ask for it, announce and probe its own address, speak to the outside behind the host's address."""
    a = shared.a
    before = shared.stopped()
    assert a.ping()
    answered = lambda f: f[12:14] == b"\x08\x06" and f[20:22] == b"\0\2" and f[28:32] == socket.inet_aton(GATEWAY)
    assert a.hears(answered, a.asks(GATEWAY))
    a.send(arp(a.mac, BROADCAST, a.mac, a.ip, a.ip), arp(a.mac, BROADCAST, a.mac, a.ip, a.ip, 2),
           arp(a.mac, BROADCAST, a.mac, "0.0.0.0", a.ip))
    assert a.ping(OUTSIDE)
    with frames.inside(shared.out.name):
        port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with contextlib.closing(port):
        port.settimeout(5)
        port.bind((OUTSIDE, 5353))
        a.send(a.packet(OUTSIDE, 17, udp(5353, b"to the outside")))
        assert port.recvfrom(100) == (b"to the outside", (UPLINK, 4444))
        a.send(*fragments(a, OUTSIDE, udp(5353, b"z" * 100)))
        assert port.recvfrom(200)[0] == b"z" * 100
    assert shared.stopped() == before


def asked(sock):
    """Whether an error has come for what a socket has sent."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def test_errors_about_a_neighbours_connections(shared):
    """ICMP: "port unreachable" about what the host, or the outside, has with b. From b itself it is heard."""
    a, b, before = shared.a, shared.b, shared.stopped()
    with frames.inside(shared.space.name):
        host = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with frames.inside(shared.out.name):
        out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with contextlib.closing(host), contextlib.closing(out):
        host.connect((IP[2], 9))
        host.send(b"to b")
        assert b.hears(lambda f: f[12:14] == b"\x08\0" and f[30:34] == socket.inet_aton(IP[2]) and f[23] == 17)
        packet = ipv4(GATEWAY, IP[2], 17, udp(9, b"to b", source=host.getsockname()[1]))
        a.send(a.packet(GATEWAY, 1, frames.unreachable(packet)))
        assert a.ping() and not asked(host), "b's connection of the host is hurt by a"
        b.send(b.packet(GATEWAY, 1, frames.unreachable(packet)))
        wait_until(lambda: asked(host))

        out.bind((OUTSIDE, 5354))
        out.settimeout(5)
        b.send(b.packet(OUTSIDE, 17, udp(5354, b"from b")))
        out.connect(out.recvfrom(100)[1])
        out.send(b"to b")
        answer = lambda f: f[12:14] == b"\x08\0" and f[26:30] == socket.inet_aton(OUTSIDE) and f[23] == 17
        packet = b.hears(answer)[14:]
        a.send(a.packet(OUTSIDE, 1, frames.unreachable(packet)))
        assert a.ping(OUTSIDE) and not asked(out), "b's connection to the outside is hurt by a"
        b.send(b.packet(OUTSIDE, 1, frames.unreachable(packet)))
        wait_until(lambda: asked(out))
    after = shared.stopped()
    assert {k: after[k] - before[k] for k in after if after[k] != before[k]} == {"invalid": 2}


def test_ports_are_isolated_and_taps_are_not_the_hosts_own_interfaces(shared):
    for tap in (A[0], B[0]):
        assert shared.space.link(tap)["linkinfo"]["info_slave_data"]["isolated"] is True
    # Even where a frame reaches the host by the TAP itself, as if it had an address of its own.
    rules = shared.space.nft("list", "chain", "inet", "master_controller", "input")
    assert 'iifname "fc-vm-*" goto stop_group' in rules


def test_neighbours_of_the_host_do_not_reach_vms(shared):
    """From any of the host's networks, not only by the uplink."""
    lan = Space(f"nt-{frames.os.getpid()}-lan")
    run("ip", "netns", "add", lan.name)
    try:
        shared.space.ip("link", "add", "lan0", "type", "veth", "peer", "name", "eth0", "netns", lan.name)
        shared.space.ip("address", "add", "10.5.0.1/24", "dev", "lan0")
        shared.space.ip("link", "set", "lan0", "up")
        lan.ip("address", "add", "10.5.0.2/24", "dev", "eth0")
        lan.ip("link", "set", "eth0", "up")
        lan.ip("route", "add", "default", "via", "10.5.0.1")
        assert lan.run("ping", "-c1", "-W3", "10.5.0.1")
        before = shared.stopped()["private"]
        shared.a.send(shared.a.packet("10.5.0.2", 1, echo(1)))
        assert "0 received" in lan.run("ping", "-c2", "-i0.2", "-W1", IP[1], check=False)
        assert shared.stopped()["private"] == before + 1
    finally:
        run("ip", "netns", "del", lan.name)


def test_a_tap_that_is_no_vms_passes_nothing(shared):
    """Somebody makes a TAP of our sort of name by hand and puts it on the bridge."""
    shared.space.ip("tuntap", "add", "fc-vm-fffffffff", "mode", "tap", "vnet_hdr")
    shared.space.ip("link", "set", "fc-vm-fffffffff", "master", BRIDGE, "up")
    stranger = Guest(shared.space.name, "fc-vm-fffffffff", "192.168.0.77", "02:fc:00:00:00:77", GATEWAY,
                     shared.gateway_mac)
    with contextlib.closing(stranger):
        def counted():
            text = shared.space.nft("list", "chain", "bridge", "master_controller", "stop_mac")
            return int(re.search(r"counter packets (\d+)", text)[1])
        wait_until(lambda: stranger.ping(seconds=0.2) or counted() >= 3)
        assert counted() >= 3 and not stranger.ping(seconds=0.2)
    shared.space.ip("link", "del", "fc-vm-fffffffff")


def test_the_doctors_canary_is_let_through(shared):
    """By its name and MAC alone, so there is nothing to clean up when a doctor is killed."""
    shared.space.ip("tuntap", "add", "mc-dr-1", "mode", "tap", "vnet_hdr")
    shared.space.ip("link", "set", "mc-dr-1", "master", BRIDGE, "up")
    canary = Guest(shared.space.name, "mc-dr-1", "192.168.0.254", CANARY_MAC, GATEWAY, shared.gateway_mac)
    before = shared.stopped()
    with contextlib.closing(canary):
        assert canary.ping()
        is_at = lambda f: f[12:14] == b"\x08\x06" and f[20:22] == b"\0\2" and f[28:32] == socket.inet_aton(IP[1])
        canary.send(canary.asks(IP[1]))
        wait_until(lambda: any(f[38:42] == socket.inet_aton(IP[1]) for f in shared.a.read() if f[12:14] == b"\x08\x06"))
        assert canary.hears(is_at), "a VM answers a canary"
        shared.a.send(shared.a.packet("192.168.0.254", 1, echo(9), to=CANARY_MAC))
        assert canary.hears(lambda f: f[12:14] == b"\x08\0" and f[26:30] == socket.inet_aton(IP[1]))
        assert shared.stopped() == before
        # But who has a canary's MAC only says so is stopped as before.
        shared.a.send(eth(CANARY_MAC, shared.gateway_mac, IPV4, ipv4(IP[1], GATEWAY, 17, udp(7777))))
        shared.a.send(arp(shared.a.mac, CANARY_MAC, shared.a.mac, GATEWAY, "192.168.0.254", 2, CANARY_MAC))
        assert shared.a.ping()
        after = shared.stopped()
        assert (after["mac"] - before["mac"], after["arp"] - before["arp"]) == (1, 1)
    shared.space.ip("link", "del", "mc-dr-1")


# ---- limits

def test_a_flood_of_arp(net):
    one = net(arp_per_second=10)
    time.sleep(1.2)
    one.a.send(*[one.a.asks(GATEWAY)] * 300)
    assert 200 <= one.stopped()["arp-rate"] <= 298
    assert one.stopped(2)["arp-rate"] == 0 and one.b.hears(lambda f: f[20:22] == b"\0\2", one.b.asks(GATEWAY))


def test_a_flood_of_packets(net):
    one = net(packets_per_second=50)
    time.sleep(1.2)
    one.a.send(*[one.a.packet(OUTSIDE, 17, udp(9))] * 2000)
    assert one.stopped()["rate"] >= 1500
    assert one.b.ping(), "the neighbour has a limit of its own"
    assert one.a.ping(), "and the VM is heard again once it keeps quiet"


def test_a_flood_of_bytes(net):
    one = net(megabits_per_second=1)
    time.sleep(1)
    one.a.send(*[one.a.packet(OUTSIDE, 17, udp(9, b"b" * 1400))] * 1000)
    assert one.stopped()["rate"] >= 500
    # To the VM too.
    with frames.inside(one.space.name):
        port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with contextlib.closing(port):
        assert one.b.ping()
        for _ in range(1000):
            port.sendto(b"b" * 1400, (IP[2], 9))
    one.b.read()
    assert one.stopped(2)["rate"] >= 500


def test_a_flood_of_connections(net):
    one = net(connections_per_second=10)
    time.sleep(1)
    one.a.send(*[one.a.packet(OUTSIDE, 6, tcp(one.a.ip, OUTSIDE, 80, source=1000 + i)) for i in range(300)])
    assert 200 <= one.stopped()["connections"] <= 297
    # What is one flow is one connection, though nobody answers.
    before = one.stopped()["connections"]
    time.sleep(1.2)
    one.a.send(*[one.a.packet("198.51.100.99", 17, udp(9))] * 100)
    assert one.stopped()["connections"] == before
    assert one.b.ping(OUTSIDE)


def test_a_flood_of_connections_to_the_host(net):
    """They fill the same table of the kernel's as those to the outside."""
    one = net(connections_per_second=10, connections=100)
    time.sleep(1)
    one.a.send(*[one.a.packet(GATEWAY, 1, echo(i)) for i in range(300)])
    assert 200 <= one.stopped()["connections"] <= 297
    assert one.b.ping() and one.b.ping(OUTSIDE)


def test_connections_at_a_time(net):
    one = net(connections=20, connections_per_second=0)
    one.a.send(*[one.a.packet("198.51.100.99", 17, udp(9, source=1000 + i)) for i in range(50)])
    assert 30 <= one.stopped()["connections"] <= 31  # the ping at the begin may count still
    assert one.b.ping(OUTSIDE)


def test_a_flood_of_fragments(net):
    one = net()
    one.a.send(*[one.a.packet(OUTSIDE, 17, b"f" * 1000, more=True, ident=i & 0xFFFF) for i in range(3000)])
    assert one.stopped()["fragments"] >= 1000
    assert one.a.ping()


def test_limits_that_are_off(net):
    one = net(packets_per_second=0, megabits_per_second=0, arp_per_second=0, connections_per_second=0, connections=0)
    one.a.send(*[one.a.asks(GATEWAY)] * 500, *[one.a.packet(OUTSIDE, 17, udp(9, source=i + 1)) for i in range(500)])
    assert one.a.ping() and sum(one.stopped().values()) == 0


# ---- what is configured

def test_vm_to_vm(net):
    one = net(vm_to_vm="yes")
    a, b = one.a, one.b
    assert one.space.link(A[0])["linkinfo"]["info_slave_data"]["isolated"] is False
    a.send(a.asks(IP[2]))
    assert b.hears(lambda f: f[38:42] == socket.inet_aton(IP[2])), "b hears and answers the question"
    assert a.hears(lambda f: f[20:22] == b"\0\2" and f[28:32] == socket.inet_aton(IP[2]))
    a.send(a.packet(IP[2], 17, udp(9), to=MAC[2]))
    assert b.hears(lambda f: f[12:14] == b"\x08\0" and f[26:30] == socket.inet_aton(IP[1]))
    a.send(a.packet(IP[2], 17, udp(9)))
    assert b.hears(lambda f: f[6:12] == frames.mac(one.gateway_mac) and f[26:30] == socket.inet_aton(IP[1]))
    assert sum(one.stopped().values()) == 0
    # Still only as themselves.
    a.send(arp(a.mac, BROADCAST, a.mac, GATEWAY, IP[2], 2), eth(a.mac, MAC[2], IPV4, ipv4(GATEWAY, IP[2], 1, echo(1))))
    assert a.ping() and one.stopped()["arp"] == 1 and one.stopped()["ip"] == 1
    assert not [f for f in b.read() if f[6:12] == frames.mac(a.mac)]


def test_dns_and_ports_of_the_host(net):
    one = net(dns=GATEWAY, host_ports="tcp/8080, udp/123")
    for port in (53, 123):
        with frames.inside(one.space.name):
            here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with contextlib.closing(here):
            here.settimeout(5)
            here.bind(("", port))
            one.a.send(one.a.packet(GATEWAY, 17, udp(port, b"query")))
            assert here.recvfrom(99) == (b"query", (IP[1], 4444))
    refused = lambda f: f[12:14] == b"\x08\0" and f[23] == 6 and f[47] & 4  # a RST: it has reached the host
    for port in (53, 8080):
        assert one.a.hears(refused, one.a.packet(GATEWAY, 6, tcp(IP[1], GATEWAY, port)))
    before = one.stopped()["host"]
    one.a.send(one.a.packet(GATEWAY, 6, tcp(IP[1], GATEWAY, 8081)), one.a.packet(UPLINK, 17, udp(123)),
               one.a.packet(GATEWAY, 17, udp(8080)))
    assert one.a.ping() and one.stopped()["host"] == before + 3


def test_allowed_networks(net, internet):
    internet.ip("address", "add", "10.1.2.3/24", "dev", "eth0")
    internet.ip("address", "add", "10.1.3.3/24", "dev", "eth0")
    one = net(allow="10.1.2.0/24, 172.16.0.9")
    assert one.a.ping("10.1.2.3")
    assert not one.a.ping("10.1.3.3", seconds=1) and one.stopped()["private"] >= 1


@pytest.fixture
def lan(space):
    """A namespace on a network of the host that is public, and is not the uplink's; the host has no address there yet."""
    lan = Space(f"{space.name}-l")
    run("ip", "netns", "add", lan.name)
    space.ip("link", "add", "lan0", "type", "veth", "peer", "name", "eth0", "netns", lan.name)
    space.ip("link", "set", "lan0", "up")
    lan.ip("address", "add", "198.51.100.200/29", "dev", "eth0")
    lan.ip("link", "set", "eth0", "up")
    lan.ip("route", "add", "default", "via", "198.51.100.201")
    yield lan
    run("ip", "netns", "del", lan.name)


def test_networks_of_the_host_that_come_and_go(net, lan):
    """By the kernel's own notice, and with counters and VMs as they were; an address that is only renewed changes nothing."""
    one = net()
    known = lambda: re.findall(r"[\d.]+/\d+", one.space.nft("list", "set", "inet", "master_controller", "host_networks"))
    assert "203.0.113.0/24" in known() and "127.0.0.0/8" in known() and "192.168.0.0/16" not in known()
    before = known()
    one.a.send(*[neighbour_solicitation(one.a)] * 5)
    assert one.a.ping() and one.tool("guard") == "0"
    one.space.ip("address", "add", "198.51.100.201/29", "dev", "lan0")
    one.space.ip("address", "add", "198.51.100.202/29", "dev", "lan0")
    assert lan.run("ping", "-c1", "-W3", "198.51.100.201")
    assert one.tool("guard") == "2", "the networks have changed, nobody harmed the tables"
    assert set(known()) == {*before, "198.51.100.200/29"}
    assert not one.a.ping("198.51.100.200", seconds=1)
    assert one.stopped()["private"] >= 1 and one.stopped()["protocol"] == 5
    assert one.a.ping(OUTSIDE) and one.b.ping()
    rules = one.space.nft("list", "ruleset")
    one.space.ip("address", "change", "198.51.100.201/29", "dev", "lan0", "valid_lft", "1000", "preferred_lft", "1000")
    assert one.tool("guard") == "0" and one.space.nft("list", "ruleset") == rules
    one.space.nft("flush", "set", "inet", "master_controller", "host_networks")
    assert one.tool("guard") == "1" and "198.51.100.200/29" in known()
    one.space.ip("address", "flush", "dev", "lan0")
    assert one.tool("guard") == "2" and known() == before


def test_a_network_of_the_host_that_is_allowed(net, lan):
    lan.ip("address", "add", "198.51.100.203/29", "dev", "eth0")
    one = net(allow="198.51.100.203")
    one.space.ip("address", "add", "198.51.100.201/29", "dev", "lan0")
    assert one.tool("guard") == "2"
    assert one.a.ping("198.51.100.203")
    assert not one.a.ping("198.51.100.200", seconds=1) and one.stopped()["private"] >= 1


def test_a_resolver_on_the_hosts_public_network(net, internet):
    one = net(dns=NEXT_HOP)
    with frames.inside(internet.name):
        there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with contextlib.closing(there):
        there.settimeout(5)
        there.bind((NEXT_HOP, 53))
        one.a.send(one.a.packet(NEXT_HOP, 17, udp(53, b"query")))
        assert there.recvfrom(99) == (b"query", (UPLINK, 4444))
    one.a.send(one.a.packet(NEXT_HOP, 17, udp(54)))
    assert one.a.ping() and one.stopped()["private"] == 1


def test_networks_of_the_namespace_that_the_daemon_runs_in(tools, space, internet):
    """The uplink leads there, and it is as much the host as the VMs' namespace."""
    home = Space(f"{space.name}-h")
    run("ip", "netns", "add", home.name)
    try:
        home.ip("link", "set", "lo", "up")
        home.ip("address", "add", "192.0.2.77/28", "dev", "lo")
        tool = tools("nsenter", f"--net=/run/netns/{home.name}")
        tool.start(space.name, uplink="wan0")
        known = lambda: space.nft("list", "set", "inet", "master_controller", "host_networks")
        assert "192.0.2.64/28" in known() and "203.0.113.0/24" in known()
        home.ip("address", "add", "192.0.2.99/28", "dev", "lo")
        assert tool("guard") == "2" and "192.0.2.96/28" in known()
    finally:
        run("ip", "netns", "del", home.name)


def test_a_resolver_on_a_private_network(net, internet):
    internet.ip("address", "add", "10.1.2.3/24", "dev", "eth0")
    one = net(dns="10.1.2.3")
    with frames.inside(internet.name):
        there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with contextlib.closing(there):
        there.settimeout(5)
        there.bind(("10.1.2.3", 53))
        one.a.send(one.a.packet("10.1.2.3", 17, udp(53, b"query")))
        assert there.recvfrom(99) == (b"query", (UPLINK, 4444))
    one.a.send(one.a.packet("10.1.2.3", 17, udp(54)))
    assert one.a.ping() and one.stopped()["private"] == 1


# ---- tables that come and go

def elements(space):
    text = space.nft("list", "ruleset")
    return set(re.findall(r"fc-vm-[0-9a-f]{9}", text)), set(re.findall(r"192\.168\.0\.\d+ (?=limit|counter)", text))


def test_a_restart_keeps_live_vms_and_their_counters_and_drops_the_rest(tools, space, internet, net):
    one = net()
    one.a.send(*[neighbour_solicitation(one.a)] * 5)
    assert one.a.ping() and one.stopped()["protocol"] == 5
    space.nft("add", "element", "bridge", "master_controller", "vm_macs", '{ "fc-vm-0deadbeef" . 02:fc:00:00:66:66 }')
    # All the while a sends: not one answer may be missing.
    second = tools()
    second("know", *A, UID)
    flood = sum(one.a.ping(seconds=2) for _ in range(5))
    second.start(space.name, uplink="wan0")
    assert flood == 5 and one.a.ping(seconds=2)
    assert elements(space) == ({A[0]}, {"192.168.0.9 "}), "what no record has is gone"
    assert "protocol=5" in second("stopped", A[0])
    assert not one.b.ping(seconds=1), "no record has b"


def test_no_packet_is_lost_while_tables_are_replaced(tools, space, net):
    one = net()
    second = tools()
    second("know", *A, UID)
    second("know", *B, UID)
    sent = got = 0

    def count():  # and answer the host's ARP
        nonlocal got
        got += sum(f[12:14] == b"\x08\0" and f[34:35] == b"\0" and f[38:40] == b"\x12\x34" for f in one.a.read())

    one.a.read()
    for i in range(40):
        if i % 4 == 0:
            second.process.stdin.write(f"start {space.name} {BRIDGE} 192.168.0.1/16 wan0 yes\n")
            second.process.stdin.flush()
        for _ in range(10):
            one.a.send(one.a.packet(GATEWAY, 1, echo(0x1234, sent)))
            sent += 1
        count()
        time.sleep(0.02)
    for _ in range(10):
        assert second.process.stdout.readline() == "ok\t0\n"
    end = time.monotonic() + 5
    while got < sent and time.monotonic() < end:
        count()
    assert got == sent
    # And none gets through that should not.
    assert one.stopped(2)["ip"] == 0


@pytest.mark.parametrize("harm", [
    "delete table bridge master_controller", "delete table inet master_controller", "flush ruleset",
    "flush chain bridge master_controller from_vm", "add rule bridge master_controller from_vm_arp accept",
    "flush set bridge master_controller vm_macs",
    'add element bridge master_controller vm_macs { "fc-vm-000000010" . 02:fc:00:00:00:0a }',
    "flush set inet master_controller stopped_host",
    "add chain inet master_controller input { policy drop ; }",
])
def test_harm_is_noticed_and_repaired(net, harm):
    one = net()
    one.a.send(*[neighbour_solicitation(one.a)] * 4)
    assert one.a.ping() and one.stopped()["protocol"] == 4 and one.tool("guard") == "0"
    # Not what was counted, and not who has connections: the kernel's own elements.
    rules = lambda: re.sub(r"packets \d+ bytes \d+|elements = { [^}]*ct count[^}]*}", "", one.space.nft("list", "ruleset")).split()
    before = rules()
    one.space.nft(*harm.split())
    assert one.tool("guard") == "1" and one.tool("guard") == "0"
    assert rules() == before
    assert one.a.ping() and one.b.ping() and one.stopped()["protocol"] == 4


def test_others_tables_and_our_own_changes_are_no_harm(net):
    one = net()
    assert one.tool("guard") == "0"
    one.space.nft("add", "table", "inet", "theirs")
    one.space.nft("add", "chain", "inet", "theirs", "c")
    one.tool("create", *vm(3), UID)
    one.tool("take", *vm(3))
    assert one.tool("guard") == "0"


def test_an_attach_mends_what_is_gone(net):
    one = net()
    one.space.nft("flush", "ruleset")
    one.tool("create", *vm(3), UID)
    assert one.a.ping() and elements(one.space)[0] == {A[0], B[0], vm(3)[0]}


def test_elements_come_and_go_with_the_tap(net):
    one = net()
    one.tool("create", *vm(3), UID)
    assert elements(one.space) == ({A[0], B[0], vm(3)[0]}, {"192.168.0.9 ", "192.168.0.10 ", "192.168.0.11 "})
    one.tool("take", *vm(3))
    assert elements(one.space)[0] == {A[0], B[0]}
    one.tool("create", *vm(3), UID)
    one.space.ip("link", "del", vm(3)[0])
    one.tool("take", *vm(3))  # the TAP went by itself: what the firewall has of it goes all the same
    assert elements(one.space)[0] == {A[0], B[0]}
    with pytest.raises(Error) as e:
        one.tool("stopped", vm(3)[0])
    assert e.value.code == "network.tap-missing"


def test_a_restored_tap_is_isolated_again(net):
    one = net()
    one.space.ip("link", "set", A[0], "nomaster")
    one.tool("restore", *A)
    assert one.space.link(A[0])["linkinfo"]["info_slave_data"]["isolated"] is True
    assert one.a.ping()


# ---- by way of the daemon

@contextlib.contextmanager
def managed(**network):
    import harness
    with harness.idle(network=network, vm={"cli_boot_timeout": "600", "quota_per_user": 100}) as d:
        yield d


def test_show_tells_what_was_stopped():
    with managed() as d:
        one = d.create()
        shown = d.mctl("--json", "vm", "show", one["id"]).json
        assert set(shown) == {"vm", "network"} and shown["network"]["vm_to_vm"] is False
        assert shown["network"]["stopped_packets"] == 0 and len(shown["network"]["stopped"]) == 13
        assert "stopped" not in d.mctl("vm", "show", one["id"]).out
        # The idle VMM holds the TAP: what a guest sends is counted up by hand.
        # In one transaction: what is changed while the first change is being mended would not be counted.
        changes = ""
        for where, key, n in (("bridge master_controller stopped_arp", f'"{one["tap"]}"', 7),
                              ("inet master_controller stopped_host", one["ip"], 2)):
            changes += f"delete element {where} {{ {key} }}; "
            changes += f"add element {where} {{ {key} counter packets {n} bytes {n * 60} }}; "
        d.netns("nft", changes)
        harness_wait(lambda: "put back" in d.log.read_text())
        shown = d.mctl("--json", "vm", "show", one["id"]).json["network"]
        assert shown["stopped_packets"] == 9
        assert shown["stopped"]["arp"]["packets"] == 7 and shown["stopped"]["host"]["bytes"] == 120
        text = d.mctl("vm", "show", one["id"]).out
        assert "7: ARP that claims another's address or MAC (arp)" in text and "2: for the host itself (host)" in text
        d.stop()
        d.start()
        assert d.mctl("--json", "vm", "show", one["id"]).json["network"] == shown, "a restart forgets nothing"
        d.mctl("vm", "destroy", one["id"], "--reason", "x")
        assert d.mctl("--json", "vm", "show", one["id"]).json["network"] is None


def harness_wait(what):
    import harness
    harness.wait_for(what)


def test_the_daemon_puts_its_tables_back():
    with managed() as d:
        one = d.create()
        assert d.netns("nft", "list", "tables").stdout.split("\n")[0] == "table bridge master_controller"
        for harm in ("flush ruleset", "delete table inet master_controller"):
            d.netns("nft", *harm.split())
            harness_wait(lambda: one["tap"] in d.netns("nft", "list", "ruleset").stdout
                         and one["ip"] in d.netns("nft", "list", "ruleset").stdout)
        assert d.log.read_text().count("they were put back") >= 2
        d.stop()
        d.netns("nft", "flush", "ruleset")
        d.start()
        assert one["tap"] in d.netns("nft", "list", "ruleset").stdout
        d.mctl("vm", "destroy", one["id"], "--reason", "x")
        assert one["tap"] not in d.netns("nft", "list", "ruleset").stdout


def test_an_address_rests_and_one_that_somebody_uses_is_not_given():
    with managed(address="10.9.0.1/28", address_rest="600") as d:
        give = lambda user: d.create(user=user)["ip"]
        end = lambda user: d.admin("DELETE", f"/api/users/{user}/vm?reason=x")
        first = [give(f"u{i}") for i in range(3)]
        assert first == ["10.9.0.2", "10.9.0.3", "10.9.0.4"]
        end("u1")
        somebody = lambda: d.netns("ip", "neigh", "replace", "10.9.0.5", "lladdr", "02:00:00:00:00:05", "dev", "br0",
                                   "nud", "permanent")
        somebody()
        rest = [give(f"v{i}") for i in range(8)]
        assert rest == [f"10.9.0.{n}" for n in range(6, 14)]
        d.stop()
        d.start()  # what rests goes on resting
        somebody()
        assert give("w0") == "10.9.0.14"
        assert give("w1") == "10.9.0.3", "none but a resting one is left"
        r = d.admin("POST", "/api/users/last/vm", {})
        assert r.status == 507 and r.json["code"] == "network.pool-exhausted"

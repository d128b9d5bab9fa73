"""Isolation seen from inside: real guests with a shell do what a user with root could do to neighbours, host and network.
What single frames do is tested in tests/netns/test_isolation.py."""

import contextlib
import json
import socket


import harness
from harness import run, wait_for
from test_guest import echoes, in_namespace, pings

GATEWAY, UPLINK, NEXT_HOP, OUTSIDE = "192.168.0.1", "203.0.113.2", "203.0.113.1", "198.51.100.1"


def shell(d, vm, script, timeout=40):
    """What a script says on the guest, which has a shell at TCP 9."""
    def ask():
        with socket.create_connection((vm["ip"], 9), 5) as s:
            s.settimeout(timeout)
            s.sendall(f"exec 2>&1\n{script}\necho end-of-script\nexit\n".encode())
            text = b""
            while b"end-of-script" not in text:
                got = s.recv(4096)
                if not got:
                    break
                text += got
            return text.decode(errors="replace")
    answer = in_namespace(d, ask)
    assert "end-of-script" in answer, f"the guest's shell said: {answer!r}"
    return answer


@contextlib.contextmanager
def two_guests(**network):
    """A daemon with an uplink, on it VMs a and b."""
    d = harness.Daemon(image=harness.guest_image("shell"), network={"uplink": "wan0", **network})
    other = f"{d.name}-out"
    for name in (d.name, other):
        run("ip", "netns", "add", name)
    try:
        for words in (["link", "set", "lo", "up"], ["link", "add", "wan0", "type", "veth", "peer", "name", "eth0", "netns", other],
                      ["address", "add", f"{UPLINK}/24", "dev", "wan0"], ["link", "set", "wan0", "up"],
                      ["route", "add", "default", "via", NEXT_HOP]):
            run("ip", "-n", d.name, *words)
        for words in (["address", "add", f"{NEXT_HOP}/24", "dev", "eth0"], ["link", "set", "eth0", "up"],
                      ["address", "add", f"{OUTSIDE}/32", "dev", "lo"], ["link", "set", "lo", "up"]):
            run("ip", "-n", other, *words)
        d.start()
        a, b = d.create(user="a", wait=True), d.create(user="b", wait=True)
        for vm in (a, b):
            wait_for(lambda: "ready" in in_namespace(d, lambda: "ready" if socket.create_connection((vm["ip"], 9), 2) else ""),
                     60, 0.3)
        yield d, a, b
    finally:
        d.remove()
        for name in (d.name, other):
            run("ip", "netns", "del", name, check=False)


def stopped(d, vm):
    shown = d.mctl("--json", "vm", "show", vm["id"]).json["network"]["stopped"]
    return {reason: count["packets"] for reason, count in shown.items()}


def harms(d, a, b):
    """Script, what it is counted as."""
    take, give = f"ip addr add {b['ip']}/32 dev eth0", f"ip addr del {b['ip']}/32 dev eth0"
    yield f"ping -c 2 -W 1 {b['ip']}", "neighbour"
    known = f"arp -s {b['ip']} {b['mac']}; ping -c 2 -W 1 {b['ip']}; nc -w 2 {b['ip']} 9 </dev/null; arp -d {b['ip']}"
    yield known, "neighbour"
    yield f"nc -w 2 {GATEWAY} 4000 </dev/null", "host"
    yield f"nc -w 2 {UPLINK} 22 </dev/null", "host"
    yield "nc -w 2 169.254.169.254 80 </dev/null", "metadata"
    yield "nc -w 2 10.0.0.1 80 </dev/null", "private"
    yield f"ping -c 2 -W 1 {NEXT_HOP}; nc -w 2 {NEXT_HOP} 22 </dev/null", "private"
    yield f"{take}; ping -c 2 -W 1 -I {b['ip']} {OUTSIDE}; {give}", "ip"
    yield f"{take}; arping -U -c 2 -I eth0 {b['ip']}; {give}", "arp"
    # As the gateway: the shell's own connection cannot live through it.
    poison = f"ip address add {GATEWAY}/32 dev eth0; arping -U -c 2 -I eth0 {GATEWAY}; ip address del {GATEWAY}/32 dev eth0"
    yield f"({poison}) >/tmp/poison 2>&1 & sleep 5; true", "arp"
    away = (f"ip link set eth0 down; ip link set eth0 address {b['mac']}; ip link set eth0 up; ping -c 2 -W 1 {GATEWAY}; "
            f"ip link set eth0 down; ip link set eth0 address {a['mac']}; ip link set eth0 up; "
            f"ip route add default via {GATEWAY}")
    yield f"({away}) >/tmp/away 2>&1 & sleep 8; true", "mac"
    yield "udhcpc -n -q -t 1 -T 1 -i eth0 -s /bin/true", "protocol"


def test_a_guest_does_no_harm():
    with two_guests() as (d, a, b):
        assert "0% packet loss" in shell(d, a, f"ping -c 2 -W 5 {GATEWAY}")
        assert "0% packet loss" in shell(d, a, f"ping -c 2 -W 5 {OUTSIDE}"), "the way out"
        assert sum(stopped(d, a).values()) == 0
        for script, reason in harms(d, a, b):
            before = stopped(d, a)[reason]
            said = shell(d, a, script)
            assert stopped(d, a)[reason] > before, f"{script}: {said}"
            entry = json.loads(d.netns("ip", "-j", "neigh", "show", b["ip"], "dev", "br0").stdout)
            assert not entry or entry[0].get("lladdr") in (None, b["mac"]), f"{script}: the host believes {entry}"
            assert pings(d, b["ip"]) and pings(d, a["ip"]), script
        assert sum(stopped(d, b).values()) == 0
        assert f"lladdr {b['mac']}" not in shell(d, a, "ip neigh") and a["mac"] not in shell(d, b, "ip neigh")
        report = d.admin("POST", "/api/admin/doctor", {}, check=False).json
        assert report["healthy"] is True, [f for t in report["targets"] for f in t["findings"]]
        text = d.mctl("vm", "show", a["id"]).out
        assert text.count("\nstopped ") >= 8 and "(metadata)" in text


def test_a_flood_hurts_who_floods():
    with two_guests(packets_per_second=50) as (d, a, b):
        shell(d, a, f"(for i in 1 2 3 4; do ping -c 300 -i 0.002 -W 1 {OUTSIDE} & done; wait) >/dev/null 2>&1 & sleep 6")
        assert stopped(d, a)["rate"] > 0
        assert echoes(d, b["ip"]) and stopped(d, b)["rate"] == 0
        assert wait_for(lambda: pings(d, a["ip"]), 20)


def test_vm_to_vm_where_it_is_wanted():
    with two_guests(vm_to_vm="yes") as (d, a, b):
        assert " 0% packet loss" in shell(d, a, f"ping -c 3 -W 5 {b['ip']}")
        assert "hello" in shell(d, a, f"echo hello | nc -w 5 {b['ip']} 7")
        assert sum(stopped(d, a).values()) == 0

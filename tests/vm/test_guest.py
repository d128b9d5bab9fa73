"""Real guests: the small one of tests/vm/guest boots under emulation, through the same drivers as the golden image."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time

import pytest

import harness
from harness import daemon, run, wait_for

BOOT_S = 60
pytestmark = pytest.mark.usefixtures("each_vmm")


def in_namespace(d, function):
    """Calls function in a child that is in the daemon's network namespace; its result is a string."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(Exception):
            with open(f"/run/netns/{d.name}") as ns:
                ctypes.CDLL(None).setns(ns.fileno(), 0x40000000)
            os.write(write, function().encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as f:
        result = f.read()
    os.waitpid(pid, 0)
    return result


def echo(ip, port=7, text="hello"):
    with socket.create_connection((ip, port), 5) as s:
        s.sendall(text.encode() + b"\n")
        return s.recv(100).decode().strip()


def echoes(d, ip):
    """The service answers, in its own time: the path is proven before it is up."""
    return wait_for(lambda: in_namespace(d, lambda: echo(ip)) == "hello", 30, 0.2)


def pings(d, ip):
    return d.netns("ping", "-c", "1", "-W", "2", ip, check=False).returncode == 0


def test_boots_answers_and_is_destroyed():
    with daemon() as d:
        vm = d.create(wait=True)
        assert vm["state"] == "running" and vm["reachable"] is True
        assert pings(d, vm["ip"])
        assert echoes(d, vm["ip"])
        console = d.mctl("vm", "console", vm["id"]).out
        assert f"mc-init: eth0 {vm['ip']}/16 gw 192.168.0.1 mac {vm['mac']}" in console
        assert "test-guest: ready" in console
        neighbour = d.netns("ip", "neigh", "show", vm["ip"]).stdout
        assert vm["mac"] in neighbour
        began = time.monotonic()
        assert d.mctl("--json", "vm", "destroy", vm["id"], "--reason", "done").json["vm"]["state"] == "stopped"
        assert time.monotonic() - began < 4.5, "the guest did not shut down when it was asked to"
        assert d.taps() == [] and d.processes() == [] and d.folders() == []
        assert "test-guest: ready" in d.mctl("vm", "console", vm["id"]).out
        assert d.links().keys() == {"lo", "br0"}


def test_tcp_proves_the_path_and_an_unreachable_guest_is_told():
    with daemon(vm={"cli_port": "7", "probe_timeout": "1"}) as d:
        vm = d.create(wait=True)
        d.netns("ip", "link", "set", vm["tap"], "down")
        wait_for(lambda: d.vm(vm["id"])["reachable"] is False, 60, 0.5)
        told = d.vm(vm["id"])
        assert told["state"] == "running" and f"TCP {vm['ip']}:7" in told["finding"]
        d.netns("ip", "link", "set", vm["tap"], "up")
        wait_for(lambda: d.vm(vm["id"])["reachable"] is True, 60, 0.5)
        assert d.vm(vm["id"])["finding"] is None
        assert [e["event"] for e in d.events(vm["id"])][-2:] == ["unreachable", "reachable"]


def test_a_guest_outlives_the_daemon_and_boots_on_without_it():
    with daemon() as d:
        vm = d.create()
        d.stop(signal.SIGKILL)
        time.sleep(1)
        d.start()
        d.wait_state(vm["id"], "running", BOOT_S)
        for sig in (signal.SIGTERM, signal.SIGKILL):
            d.stop(sig)
            assert pings(d, vm["ip"])
            d.start()
            assert d.state_of(vm["id"]) == "running" and echoes(d, vm["ip"])


def test_a_closed_port_is_no_path():
    with daemon(vm={"cli_port": "9", "cli_boot_timeout": "15"}) as d:
        vm = d.create()
        d.wait_state(vm["id"], "failed", BOOT_S)
        assert f"TCP {vm['ip']}:9: connection refused" in d.vm(vm["id"])["reason"]


@pytest.mark.parametrize("word, words", [("panic", "sysrq"), ("poweroff", "ower")])
def test_a_guest_that_ends_by_itself_is_told_with_its_last_words(word, words):
    with daemon(image=harness.guest_image(word)) as d:
        vm = d.create()
        d.wait_state(vm["id"], "failed", BOOT_S)
        reason = d.vm(vm["id"])["reason"]
        assert "ended by itself: exit status 0" in reason
        assert words in d.mctl("vm", "console", vm["id"]).out
        assert d.taps() == [] and d.processes() == [] and d.folders() == []


def test_the_console_is_followed_until_the_end():
    with daemon() as d:
        vm = d.create()
        follower = subprocess.Popen([harness.MCTL, "--socket", d.socket, "vm", "console", vm["id"], "--follow"],
                                    stdout=subprocess.PIPE, text=True)
        d.wait_state(vm["id"], "running", BOOT_S)
        d.mctl("vm", "destroy", vm["id"], "--reason", "done")
        out, _ = follower.communicate(timeout=20)
        assert follower.returncode == 0 and "test-guest: ready" in out


def capture(namespace, *argv):
    return subprocess.Popen(["nsenter", f"--net=/run/netns/{namespace}", *argv], stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, text=True)


def test_the_way_out():
    """Through the uplink, behind its address, to a namespace that plays the internet."""
    internet = f"vmin{os.getpid()}"
    with daemon(image=harness.guest_image("ping-dns"), start=False,
                network={"uplink": "wan0", "dns": "198.51.100.1"}) as d:
        run("ip", "netns", "add", d.name)
        run("ip", "netns", "add", internet)
        try:
            run("ip", "-n", d.name, "link", "add", "wan0", "type", "veth", "peer", "name", "wan0", "netns", internet)
            for ns, address in ((d.name, "203.0.113.2/24"), (internet, "203.0.113.1/24")):
                run("ip", "-n", ns, "addr", "add", address, "dev", "wan0")
                run("ip", "-n", ns, "link", "set", "wan0", "up")
            run("ip", "-n", d.name, "route", "add", "default", "via", "203.0.113.1")
            d.start()
            d.create(wait=True)
            assert d.admin("GET", "/api/status").json["network"]["masquerade"] is True
            with capture(internet, "tcpdump", "-n", "-l", "-c", "1", "-i", "wan0", "icmp") as tcpdump:
                out, _ = tcpdump.communicate(timeout=20)
            assert "203.0.113.2 > 198.51.100.1: ICMP echo request" in out
        finally:
            d.stop()
            run(*d.command("--remove"), check=False)
            for ns in (d.name, internet):
                run("ip", "netns", "del", ns, check=False)

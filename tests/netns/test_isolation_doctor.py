"""The doctor on a bridge whose VMs the controller keeps apart: its policy is never a fault, what harms it is told."""
import contextlib
import json
import signal
import subprocess
import time

import pytest

from test_isolation import A, B, GATEWAY, IP, MAC
from test_network import BRIDGE, BUILD, UID, held, internet, name, run, space, tools, wait_until  # noqa: F401

MCTL = BUILD / "src/cli/mctl"


@pytest.fixture
def host(tools, space, internet):
    """A managed bridge with an uplink and two VMs that answer ARP and ping. Calling it runs the doctor on the first."""
    tool = tools()
    tool.start(space.name, uplink="wan0")
    for one in (A, B):
        tool("create", *one, UID)
    with contextlib.ExitStack() as stack:
        for n, one in ((1, A), (2, B)):
            stack.enter_context(held(space, one[0], IP[n], MAC[n]))
            wait_until(lambda: tool("ping", IP[n]) == "reply")

        def doctor(*more, expect=None):
            done = subprocess.run([MCTL, "--json", "doctor", "--netns", space.name, "--bridge", BRIDGE, "--tap", A[0],
                                   "--guest-ip", IP[1], "--guest-mac", MAC[1], *more], capture_output=True, text=True)
            report = json.loads(done.stdout)
            findings = {f["id"]: f for f in report["targets"][0]["findings"]}
            if expect is not None:
                assert (done.returncode, set(findings)) == expect, findings
            assert report["healthy"] == (done.returncode == 0)
            return report["targets"][0], findings

        doctor.tool = tool
        yield doctor


def test_isolation_is_no_fault(host, space):
    before = host.tool("stopped", A[0])
    target, _ = host(expect=(0, set()))
    assert target["reachable"] is True
    hops = {h["hop"]: h["verdict"] for h in target["hops"]}
    assert "fail" not in hops.values()
    assert all(hops[h] == "pass" for h in ("bridge.forward", "bridge.port", "tap.ingress", "host.input"))
    # The canary has been answered by the VM and by the host, so nothing of that was stopped.
    neighbour = lambda text: [w for w in text.split() if w.startswith(("neighbour=", "mac=", "ip=", "arp="))]
    assert neighbour(host.tool("stopped", A[0])) == neighbour(before)


def test_with_vms_that_may_reach_each_other_isolation_is_a_fault(tools, space, host):
    host.tool("set", "vm_to_vm", "yes")
    host.tool("know", *A, UID)
    host.tool("know", *B, UID)
    host.tool.start(space.name, uplink="wan0")
    for tap in (A[0], B[0]):
        host.tool("restore", *(A if tap == A[0] else B))
    host(expect=(0, set()))
    for tap in (A[0], B[0]):
        space.run("bridge", "link", "set", "dev", tap, "isolated", "on")
    host(expect=(10, {"bridge.port-isolated"}))


@pytest.mark.parametrize("harm,table", [("delete table bridge master_controller", "bridge master_controller"),
                                        ("delete table inet master_controller", "inet master_controller"),
                                        ("flush chain bridge master_controller prerouting", "bridge master_controller")])
def test_the_tables_are_gone(host, space, harm, table):
    space.nft(*harm.split())
    target, findings = host()
    note = findings["nft.isolation-missing"]
    assert note["role"] == "note" and table in note["title"] and target["reachable"] is True
    assert "bridge.port-isolated" not in findings


def test_a_network_of_the_host_that_the_firewall_does_not_know(host, space):
    """It came while there was no controller. That a VM does not reach those that it does know is nothing to tell of."""
    space.ip("address", "add", "198.51.100.201/29", "dev", "wan0")
    target, findings = host(expect=(0, {"nft.isolation-missing"}))
    note = findings["nft.isolation-missing"]
    assert note["role"] == "note" and "198.51.100.200/29" in note["title"] and target["reachable"] is True
    assert any(e["where"] == "wan0" for e in note["evidence"])
    assert host.tool("guard") == "2"
    host(expect=(0, set()))


def test_a_vm_that_the_firewall_does_not_know(host, space):
    space.nft("delete", "element", "bridge", "master_controller", "vm_addresses", f'{{ "{A[0]}" . {MAC[1]} . {IP[1]} }}')
    target, findings = host()
    cause = findings["nft.isolation-unknown-tap"]
    assert cause["role"] == "root-cause" and A[0] in cause["title"] and target["reachable"] is False
    assert [f["id"] for f in findings.values() if f["role"] == "root-cause"] == ["nft.isolation-unknown-tap"]
    host.tool("guard")
    wait_until(lambda: host.tool("ping", IP[1]) == "reply")
    host(expect=(0, set()))


def test_a_neighbour_that_claims_the_address_is_stopped_and_told(tools, space):
    tool = tools()
    tool.start(space.name)
    for one in (A, B):
        tool("create", *one, UID)
    with held(space, A[0], IP[1], MAC[1]), held(space, B[0], IP[1], MAC[2]):
        wait_until(lambda: tool("ping", IP[1]) == "reply")
        done = subprocess.run([MCTL, "--json", "doctor", "--netns", space.name, "--bridge", BRIDGE, "--tap", A[0],
                               "--guest-ip", IP[1], "--guest-mac", MAC[1]], capture_output=True, text=True)
        report = json.loads(done.stdout)
        assert done.returncode == 0 and report["targets"][0]["reachable"] is True, report["targets"][0]["findings"]
        assert {f["role"] for f in report["targets"][0]["findings"]} <= {"note"}
        assert "arp=0 " not in tool("stopped", B[0])


def test_a_doctor_that_is_killed_leaves_nothing(host, space):
    rules = lambda: [line for line in space.nft("list", "ruleset").split("\n") if "counter" not in line]
    before, links = rules(), space.links()
    for delay in (0.02, 0.06, 0.1, 0.2):
        process = subprocess.Popen([MCTL, "doctor", "--netns", space.name, "--bridge", BRIDGE, "--tap", A[0],
                                    "--guest-ip", IP[1]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_until(lambda: space.links() == links and rules() == before)
    host(expect=(0, set()))

"""Rules for which the catalogue has no row, by the ids that they give."""
import pytest

from lab import GATEWAY, Lab
from test_catalogue import ONLY_INJECT, named

pytestmark = pytest.mark.skipif(bool(ONLY_INJECT), reason="there is no doctor")


@pytest.mark.parametrize("commands", [
    ["root handle 1: htb default 10", "class parent 1: classid 1:10 htb rate 8bit burst 1 cburst 1"],
    ["root tbf rate 8bit burst 2000 limit 100000"],  # lets a few frames pass, then none
], ids=["htb", "tbf"])
def test_a_queue_that_holds_frames_back(commands):
    """It alone is to blame, also for what is lost later and elsewhere."""
    with Lab(uplink=True) as lab:
        guest, other = lab.guest(), lab.guest()
        lab.warm()
        for line in commands:
            kind, *words = line.split()
            lab.tc(*(["class", "add"] if kind == "class" else ["qdisc", "replace"]), "dev", guest.tap, *([] if kind == "class" else [kind]), *words)
        for _ in range(30):
            alive = lab.ping(guest.address, 0.1)
        assert not alive and lab.ping(other.address)
        answer = lab.doctor(guest)
        assert (answer.status, [f["id"] for f in answer.roots]) == (10, ["qdisc.stalled"]), answer
        assert answer.first["dies_at"] == "tap.egress" and named(answer.first, [guest.tap]) == [], answer


def test_a_host_that_ignores_ping():
    """Its own choice, told and no fault."""
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        lab.sysctl("net/ipv4/icmp_echo_ignore_all", 1)
        assert not guest.ping(GATEWAY, 0.4)
        answer = lab.doctor(guest)
        assert (answer.status, [(f["id"], f["role"]) for f in answer.findings]) == (0, [("host.ignores-ping", "note")]), answer


def test_a_guest_with_another_mac():
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        guest.ip("link", "set", "eth0", "address", "02:00:00:00:00:55")
        lab.cold()
        answer = lab.doctor(guest)
        assert (answer.status, [(f["id"], f["role"]) for f in answer.findings]) == (0, [("guest.mac-differs", "note")]), answer
        assert named(answer.first, ["02:00:00:00:00:55", guest.mac]) == [], answer

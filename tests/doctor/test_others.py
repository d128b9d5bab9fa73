"""Rules for which the catalogue has no row, by the ids that they give."""
import contextlib
import pathlib
import socket
import sqlite3

import pytest

from lab import GATEWAY, PORT, Lab
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


def record(state, guest, console):
    """As the daemon keeps it: a row, and the console's file."""
    name = "vm-69fac673-27a8-492f-8fe0-f9b604e6ab28"
    (state / "users" / name).mkdir(parents=True)
    (state / "users" / name / "console.log").write_text(console)
    started = int(pathlib.Path(f"/proc/{guest.pid}/stat").read_text().rpartition(")")[2].split()[19])
    with contextlib.closing(sqlite3.connect(state / "master-controller.db")) as db, db:
        db.execute("CREATE TABLE vm (id, user, type, state, ip INTEGER, mac BLOB, tap, bridge, vmm, pid INTEGER, pid_start INTEGER,"
                   " ended INTEGER, created_ms INTEGER)")
        db.execute("INSERT INTO vm VALUES (?, 'u1', 'browser', 'running', ?, ?, ?, 'br0', 'qemu', ?, ?, 0, 1)",
                   (name, int.from_bytes(socket.inet_aton(guest.address), "big"), bytes.fromhex(guest.mac.replace(":", "")), guest.tap,
                    guest.pid, started))


PANIC = "[ 9.1] Kernel panic - not syncing: Out of memory\n[ 9.2] ---[ end\n"
NO_NIC = "[ 1.2] IP-Config: No network devices available\n"
OOM = "[ 77.0] Out of memory: Killed process 411 (websockify)\nbrowser login:\n"
BOOT = "[ 0.0] Linux version 6.1.0-42-cloud-amd64\n"


@pytest.mark.parametrize("console, command, finding, words", [
    (BOOT + PANIC, ["stall"], "guest.panic", ["Kernel panic"]),
    (BOOT + PANIC, ["discard"], "guest.panic", ["Kernel panic"]),
    (BOOT + NO_NIC, ["stall"], "guest.no-nic", ["No network devices"]),
    (BOOT + PANIC + BOOT + "booting\n", ["stall"], "vmm.stalled", []),
    (BOOT + OOM, ["unserve", PORT], "guest.service-down", ["Killed process 411 (websockify)"]),
    (PANIC + BOOT, ["unserve", PORT], "guest.service-down", []),
], ids=["panic-unread", "panic-read", "no-nic", "booted-again", "oom", "well"])
def test_what_the_console_says(console, command, finding, words, tmp_path):
    """A guest that is dead leaves its VMM's queue full: that nobody reads the TAP is then no fault of the VMM's."""
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        record(tmp_path, guest, console)
        assert lab.doctor(guest, "--state-dir", tmp_path).status == 0
        guest(*command)
        lab.cold()
        answer = lab.doctor(guest, "--state-dir", tmp_path)
        assert (answer.status, [f["id"] for f in answer.roots]) == (10, [finding]), answer
        assert named(answer.first, words) == [], answer

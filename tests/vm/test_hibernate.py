"""VMs that are put to rest and brought back, with a real guest: what was in it goes on, and it is told that it was away."""

import contextlib
import os
import random
import signal
import subprocess
import time

import harness
from harness import daemon, wait_for
from test_agent import ask as ask_agent
from test_guest import echoes, pings

CYCLES = int(os.environ.get("MC_GUEST_CYCLES", "20"))


def ask(d, vm, op, **more):
    return ask_agent(d, vm["id"], op, **more)


def run(d, vm, *argv):
    return d.mctl("vm", "exec", "-T", vm["id"], "--", *argv).out.strip()


def guest_time_ms(d, vm):
    return ask(d, vm, "health")["realtime_ms"]


# A file on the disk, one in memory alone, a process.
LEAVE = ("echo kept >/root-file; sync; mount -t tmpfs none /mnt 2>/dev/null || { mkdir -p /mnt; mount -t tmpfs none /mnt; };"
         "echo memory >/mnt/file; sleep 100000 </dev/null >/dev/null 2>&1 & echo $! >/mnt/pid")
KEPT = "echo $(cat /root-file) $(cat /mnt/file) $(kill -0 $(cat /mnt/pid) && echo lives)"


def leave_something(d, vm):
    run(d, vm, "sh", "-c", LEAVE)
    assert run(d, vm, "sh", "-c", KEPT) == "kept memory lives"


def is_at_rest(d, vm):
    """Nothing of it is there but its folder and its record."""
    assert d.processes() == [] and d.taps() == [] and d.folders() == [vm["id"]]
    assert vm["tap"] not in d.netns("nft", "list", "ruleset").stdout
    told = d.vm(vm["id"])
    for what in ("ip", "mac", "tap"):
        assert told[what] == vm[what]


def test_what_was_in_a_guest_goes_on():
    with daemon() as d:
        vm = d.create(wait=True)
        assert echoes(d, vm["ip"])
        leave_something(d, vm)
        boot_id = ask(d, vm, "health")["boot_id"]
        gateway = d.links()["br0"]["address"]
        r = d.mctl("--json", "vm", "hibernate", vm["id"], "--reason", "nobody is there").json["vm"]
        assert r["state"] == "hibernated" and "was saved in" in r["reason"]
        is_at_rest(d, vm)
        other = d.create(user="u2")
        assert other["ip"] != vm["ip"], "its address was given away"
        d.mctl("vm", "destroy", other["id"], "--reason", "x")
        time.sleep(3)  # that long its clock stands still
        d.mctl("vm", "resume", vm["id"])
        assert abs(guest_time_ms(d, vm) - time.time() * 1000) < 2000
        assert pings(d, vm["ip"]) and echoes(d, vm["ip"])
        assert ask(d, vm, "health")["boot_id"] == boot_id
        assert run(d, vm, "sh", "-c", KEPT) == "kept memory lives"
        assert d.links()["br0"]["address"] == gateway
        story = d.events(vm["id"])
        names = [e["event"] for e in story]
        assert [n for n in names if n in ("hibernate", "hibernated", "resume", "memory-loaded", "awake")] == [
            "hibernate", "hibernated", "resume", "memory-loaded", "awake"]
        asked = next(e for e in story if e["event"] == "hibernate")
        assert asked["reason"] == "nobody is there" and "uid 0" in asked["actor"]
        awake = next(e for e in story if e["event"] == "awake")["reason"]
        assert "clock set" in awake and "random numbers renewed" in awake, awake
        assert not (d.state / "users" / vm["id"] / "saved").exists(), "what was loaded can be loaded again"
        assert not (d.state / "users" / vm["id"] / "saved.tmp").exists()


def test_exec_wakes_it():
    with daemon() as d:
        vm = d.create(wait=True)
        leave_something(d, vm)
        d.mctl("vm", "hibernate", vm["id"])
        assert run(d, vm, "sh", "-c", KEPT) == "kept memory lives"
        assert d.state_of(vm["id"]) == "running"
        assert [e["reason"] for e in d.events(vm["id"]) if e["event"] == "resume"] == ["a program is to run in it"]


def settle(d, vm, what):
    wait_for(lambda: d.state_of(vm["id"]) in ("running", "hibernated"), 90, 0.2)
    told = d.vm(vm["id"])
    if told["state"] == "running":
        return
    assert d.taps() == [] and d.processes() == [], what
    assert (d.state / "users" / vm["id"] / "saved" / "saved.json").exists(), (what, told)
    d.mctl("vm", "resume", vm["id"])


def test_cycles_with_kills_of_the_daemon():
    """Nothing that was in the guest is ever lost, whenever the daemon dies."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    with daemon() as d:
        vm = d.create(wait=True)
        leave_something(d, vm)
        for cycle in range(CYCLES):
            what = f"seed {seed} cycle {cycle}"
            verb = "hibernate" if d.state_of(vm["id"]) == "running" else "resume"
            caller = subprocess.Popen([harness.MCTL, "--quiet", "--socket", d.socket, "vm", verb, vm["id"]],
                                      stderr=subprocess.DEVNULL)
            if rng.random() < 0.6:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    caller.wait(rng.random() * 2.5)
                d.stop(signal.SIGKILL)
                caller.wait(60)
                d.start()
                settle(d, vm, what)
            else:
                assert caller.wait(120) == 0, (what, d.log.read_text()[-3000:])
            if d.state_of(vm["id"]) == "running":
                # A daemon that has just started takes a moment to find it.
                wait_for(lambda: d.admin("GET", f"/api/vms/{vm['id']}/agent").json["agent"]["state"] == "ready", 60, 0.1)
                assert run(d, vm, "sh", "-c", KEPT) == "kept memory lives", what

"""The host's disk is full while guests write: no VM ends for it, everybody is told, and they go on when there is room."""

import contextlib
import json
import os
import signal
import time

import harness
from harness import run, wait_for

BYTES = 48 << 16
# In a session of its own: it does not end with the agent's job.
WRITE = f"setsid dd if=/dev/urandom of=/big bs=64k count={BYTES >> 16} conv=fsync >/dev/null 2>&1 &"


@contextlib.contextmanager
def on_small_disk(megabytes=16, vmm="qemu", **config):
    """A daemon whose state folder is a file system of its own."""
    d = harness.Daemon(**config)
    d.state.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={megabytes}M", "none", d.state)
    try:
        if vmm == "firecracker": # it takes the image's files by links
            d.use_firecracker()
            d.config["image"]["directory"] = d.state / "image"
            run("cp", "-a", "--sparse=always", harness.TEST_GUEST, d.state / "image")
        d.start()
        yield d
    finally:
        with contextlib.suppress(FileNotFoundError):
            (d.state / "filler").unlink()
        d.stop()
        run(*d.command("--remove"), check=False, timeout=60)
        run("umount", "-l", d.state)
        d.remove()
        assert not harness.left_behind(d)


def fill(d, leave):
    """Takes all of the disk but so many bytes."""
    with (d.state / "filler").open("wb") as f:
        free = os.statvfs(d.state).f_bavail * os.statvfs(d.state).f_frsize
        os.posix_fallocate(f.fileno(), 0, free - leave)


def write_in_guest(d, vm, check=0):
    d.mctl("vm", "exec", vm["id"], "--", "/bin/sh", "-c", WRITE, check=check)


def paused(d, vm):
    """the VM is told as stopped for the full disk"""
    shown = d.vm(vm["id"])
    return shown["reachable"] is False and "no space left" in (shown["finding"] or "") and shown


def names(d, vm):
    return [e["event"] for e in d.events(vm["id"])]


def test_a_guest_waits_and_goes_on():
    with on_small_disk() as d:
        vm = d.create(wait=True)
        fill(d, 1 << 20)
        write_in_guest(d, vm)
        shown = wait_for(lambda: paused(d, vm), 60, 0.2)
        assert shown["state"] == "running" and str(d.state) in shown["finding"]
        status = d.mctl("--json", "status").json
        assert status["paused"] == 1 and status["unreachable"] == 1 and "full" in status["disk"]["problem"]
        assert "STOPPED" in d.mctl("status").out and "full" in d.mctl("status").out
        assert "mc_vms_paused 1" in d.admin("GET", "/metrics").body.decode()
        assert "paused" in names(d, vm) and "no space left" in d.mctl("vm", "why", vm["id"]).out
        wait_for(lambda: "the file system of" in d.log.read_text(), 10)
        # A daemon that begins anew finds it so, and need not have seen it happen.
        d.stop(signal.SIGKILL)
        d.start()
        wait_for(lambda: d.mctl("--json", "status").json["paused"] == 1, 20, 0.2)
        assert paused(d, vm)["state"] == "running" and names(d, vm).count("paused") == 1
        (d.state / "filler").unlink()
        wait_for(lambda: d.vm(vm["id"])["reachable"] is True, 90, 0.2)
        assert [n for n in names(d, vm) if n in ("paused", "resumed", "reachable")] == ["paused", "resumed", "reachable"]
        status = d.mctl("--json", "status").json
        assert d.vm(vm["id"])["finding"] is None and status["paused"] == 0 and status["disk"]["problem"] is None
        # Nothing was lost: the file becomes whole, and the guest never heard of it.
        size = lambda: d.mctl("vm", "exec", vm["id"], "--", "/bin/stat", "-c", "%s", "/big", check=None).out.strip()
        wait_for(lambda: size() == str(BYTES), 60, 0.5)
        assert "I/O error" not in d.mctl("vm", "console", vm["id"]).out


def test_one_that_waits_can_be_ended():
    with on_small_disk(vm={"stop_timeout": "120"}) as d:
        vms = [d.create(user=f"u{i}", wait=True) for i in range(2)]
        fill(d, 256 << 10)
        for vm in vms:
            write_in_guest(d, vm, check=None)  # the second may stand still already, by a write of its own kernel's
            wait_for(lambda: paused(d, vm), 60, 0.2)
        # Asked to end, it does at once: it could not shut down.
        began = time.monotonic()
        d.mctl("vm", "destroy", vms[0]["id"], "--reason", "makes room")
        assert d.state_of(vms[0]["id"]) == "stopped" and time.monotonic() - began < 60


def test_one_that_ends_while_it_waits_says_so():
    with on_small_disk() as d:
        vm = d.create(wait=True)
        fill(d, 512 << 10)
        write_in_guest(d, vm)
        wait_for(lambda: paused(d, vm), 60, 0.2)
        os.kill(d.processes()[0], signal.SIGKILL)
        (d.state / "filler").unlink()
        d.wait_state(vm["id"], "failed", 30)
        assert "no space left" in d.vm(vm["id"])["reason"]
        summary = json.loads((d.state / "evidence" / vm["id"] / "summary.json").read_text())
        assert summary["cause"]["code"] == "host.disk-full" and "paused" in [e["event"] for e in summary["events"]]


def test_firecracker_tells_its_guest_and_we_tell_that():
    with on_small_disk(200, vmm="firecracker") as d:
        vm = d.create(wait=True)
        fill(d, 0)
        wait_for(lambda: "disk-full" in names(d, vm), 20, 0.2)
        assert "its console tells" in d.mctl("vm", "why", vm["id"]).out
        assert "full" in d.mctl("--json", "status").json["disk"]["problem"]

"""Hibernation with a VMM that has no machine (tests/vm/resting_vmm.c): what is left when the daemon or the VMM is killed at any
step, what is refused, what a memory that does not fit leads to. Real guests: tests/vm/test_hibernate.py."""

import asyncio
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time

import pytest

import crash
import harness
from harness import daemon, small_disk, wait_for
from test_crash import ask
from test_relay import Desk
from test_session import shown

RESTING_VMM = harness.BUILD / "tests/vm/resting-vmm"
CYCLES = int(os.environ.get("MC_HIBERNATE_CYCLES", "20"))
STRIDE = int(os.environ.get("MC_CRASH_STRIDE", "2"))  # every step: 1
CONFIG = {"accel": "tcg", "stop_timeout": "0.3", "quota_per_user": "100", "probe_interval": "0.05"}


def image_without_agent(folder):
    """The test guest's image, whose guest is never asked for an agent: the VMM has none."""
    build = folder / "base" / "20260101T000000Z-0"
    shutil.copytree((harness.TEST_GUEST / "current").resolve(), build, copy_function=os.link)
    manifest = json.loads((build / "manifest.json").read_text())
    manifest.pop("agent", None)
    (build / "manifest.json").unlink()
    (build / "manifest.json").write_text(json.dumps(manifest))
    (folder / "base" / "current").symlink_to(build.name)
    return folder / "base"


@contextlib.contextmanager
def resting(start=True, **vm):
    with daemon(start=False) as d:
        shutil.copy(RESTING_VMM, d.dir / "resting-vmm")
        cache = harness.HERE / ".cache" / f"hibernate-{d.name}"
        d.config["image"] = {"directory": image_without_agent(cache)}
        d.config["vm"] = {**d.config["vm"], "qemu_binary": d.dir / "resting-vmm", **CONFIG, **vm}
        try:
            if start:
                d.start()
            yield d
        finally:
            shutil.rmtree(cache)


def lives(d, vm_id):
    """(life, run) as the machine said them, each time that it went on."""
    lines = d.mctl("vm", "console", vm_id).out.splitlines()
    return [(words[1], int(words[3])) for words in map(str.split, lines) if words[:1] == ["life"]]


def folder_of(d, vm):
    return d.state / "users" / vm["id"]


def says_nothing_bad(d, vm):
    log = (folder_of(d, vm) / "vmm.log").read_text()
    assert not any(word in log for word in ("STALE", "HALF", "BROKEN")), log


def check(d, what):
    """After a crash each VM runs or is hibernated, with all that belongs to that and nothing else."""
    wait_for(lambda: all(v["state"] in ("running", "hibernated") for v in crash.live(d)), 30)
    vms = crash.live(d)
    awake = [v for v in vms if v["state"] == "running"]
    assert d.folders() == sorted(v["id"] for v in vms), what
    assert d.taps() == sorted(v["tap"] for v in awake), (what, d.log.read_text()[-3000:])
    wait_for(lambda: crash.elements(d) == sorted(v["tap"] for v in awake), 15, 0.1)
    wait_for(lambda: len(d.processes()) == len(awake), 5)
    assert set(crash.groups([v["id"] for v in vms])) <= {v["id"] for v in awake}, what
    for vm in vms:
        says_nothing_bad(d, vm)
        assert not (folder_of(d, vm) / "saved.tmp").exists(), (what, vm)
        kept = (folder_of(d, vm) / "saved").exists()
        assert kept == (vm["state"] == "hibernated"), (what, vm)
    return vms


def test_hibernate_and_resume():
    with resting() as d:
        vm = d.create(wait=True)
        (first,) = lives(d, vm["id"])
        r = d.admin("POST", f"/api/users/u1/vm/hibernate?reason=idle").json["vm"]
        assert r["state"] == "hibernated" and r["reachable"] is None
        check(d, "hibernated")
        manifest = json.loads((folder_of(d, vm) / "saved" / "saved.json").read_text())
        assert manifest["vmm"] == "qemu" and manifest["version"] == "0.1.0 double" and manifest["image"] == vm["image"]
        assert manifest["files"]["memory"]["bytes"] == 524288 and list(manifest["disks"]) == ["disk.qcow2"]
        # What is there already is no error, and changes nothing.
        assert d.mctl("--json", "vm", "hibernate", vm["id"]).json["vm"]["state"] == "hibernated"
        assert d.admin("POST", "/api/users/u1/vm/resume").json["vm"]["state"] == "running"
        assert d.admin("POST", "/api/users/u1/vm/resume").json["vm"]["state"] == "running"
        check(d, "resumed")
        assert lives(d, vm["id"]) == [first, (first[0], first[1] + 1)]
        d.mctl("vm", "hibernate", vm["id"])
        d.mctl("vm", "destroy", vm["id"], "--reason", "done")
        assert d.folders() == [] and d.taps() == []
        assert not list((d.state / "evidence" / vm["id"]).rglob("memory")), "a user's memory is no evidence"


def test_it_is_kept_over_a_restart_and_costs_no_promised_memory():
    with resting(memory_percent="1", cli_memory="128") as d:
        d.stop()
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
        d.config["vm"]["memory_percent"] = str((128 + 500) * 100 // total + 1)  # room for one, not for two
        d.start()
        one = d.create(user="a", wait=True)
        assert d.mctl("vm", "create", "--user", "b", "--type", "cli", check=5).out == ""
        d.mctl("vm", "hibernate", one["id"])
        for sig in (signal.SIGTERM, signal.SIGKILL):
            d.stop(sig)
            d.start()
            check(d, sig)
        two = d.create(user="b", wait=True)
        refused = d.admin("POST", f"/api/vms/{one['id']}/resume")
        assert refused.status == 507 and refused.json["code"] == "quota.memory"
        assert d.state_of(one["id"]) == "hibernated"
        d.mctl("vm", "destroy", two["id"], "--reason", "x")
        d.mctl("vm", "resume", one["id"])


def test_an_image_that_was_removed_meanwhile_is_not_missed():
    with resting() as d:
        vm = d.create(wait=True)
        d.mctl("vm", "hibernate", vm["id"])
        base = pathlib.Path(d.config["image"]["directory"])
        newer = base / "20270101T000000Z-1"
        (base / "20260101T000000Z-0").rename(newer)
        (base / "current").unlink()
        (base / "current").symlink_to(newer.name)
        d.mctl("vm", "resume", vm["id"])
        d.mctl("vm", "hibernate", vm["id"])
        d.mctl("vm", "resume", vm["id"])
        assert d.vm(vm["id"])["image"] != d.create(user="u2")["image"]
        says_nothing_bad(d, vm)


def test_what_is_refused_changes_nothing():
    with resting(cli_memory="1000000", memory_percent="100000") as d:
        vm = d.create(wait=True)
        r = d.admin("POST", f"/api/vms/{vm['id']}/hibernate")
        assert (r.status, r.json["code"]) == (507, "disk.no-room") and "MiB free" in r.json["detail"]
        assert d.state_of(vm["id"]) == "running"
        for path in ("hibernate?cold=1", "hibernate?reason=", "resume?cold=2"):
            assert d.admin("POST", f"/api/vms/{vm['id']}/{path}").status == 400
        assert d.admin("POST", "/api/users/nobody/vm/resume").status == 404
        d.mctl("vm", "hibernate", "vm-00000000", check=4)
        d.mctl("vm", "hibernate", check=2)
        d.mctl("vm", "resume", vm["id"], "--warm", check=2)
        d.mctl("vm", "destroy", vm["id"], "--reason", "x")
        r = d.admin("POST", f"/api/vms/{vm['id']}/resume")
        assert (r.status, r.json["code"]) == (409, "vm.ended")
        check(d, "refused")


def test_what_this_host_would_not_load_is_not_saved():
    with resting(cli_idle_after="3") as d:
        vm = d.admin("POST", "/api/users/u1/vm?wait=ready", {"vcpus": 3}).json["vm"]  # run by KVM, says the double
        (first,) = lives(d, vm["id"])
        r = d.admin("POST", f"/api/vms/{vm['id']}/hibernate")
        assert (r.status, r.json["code"]) == (409, "vmm.other") and "run by KVM" in r.json["detail"], r.json
        d.wait_state(vm["id"], "running")
        check(d, "another accelerator")
        assert lives(d, vm["id"]) == [first], "it was stopped"
        d.mctl("vm", "destroy", vm["id"], "--reason", "x")
        d.stop()
        d.config["vm"].pop("cli_idle_after")
        d.start()
        vm = d.create(wait=True)
        for code, status, config in (("vmm.unusable", 503, {"vmm": "qemu", "accel": "kvm"}),
                                     ("vmm.other", 409, {"vmm": "firecracker", "firecracker_binary": "/bin/true"})):
            d.stop()
            d.config["vm"].update(config)
            d.start()
            r = d.admin("POST", f"/api/vms/{vm['id']}/hibernate")
            assert (r.status, r.json["code"]) == (status, code), r.json
            assert d.state_of(vm["id"]) == "running"
        check(d, "another VMM")


def test_when_the_disk_is_full_in_the_middle_it_runs_on():
    with resting(start=False) as d:
        d.state.mkdir()
        harness.run("mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", d.state)
        try:
            d.config["vm"]["cli_memory"] = "128"
            d.start()
            vm = d.create(wait=True)
            before = lives(d, vm["id"])
            # There is room when it is looked for, and none when it is written.
            limit = folder_of(d, vm) / "saved.tmp"
            os.kill(d.processes()[0], signal.SIGSTOP)
            caller = subprocess.Popen([harness.MCTL, "--json", "--socket", d.socket, "vm", "hibernate", vm["id"]],
                                      stdout=subprocess.PIPE, text=True)
            wait_for(lambda: (limit / "memory").exists())
            with contextlib.suppress(OSError), open(d.state / "filler", "wb", buffering=0) as f:
                while f.write(bytes(65536)):
                    pass
            os.kill(d.processes()[0], signal.SIGCONT)
            out = json.loads(caller.communicate(timeout=60)[0])
            (d.state / "filler").unlink()
            assert "could not" in out["error"]["detail"] or "Input/output" in out["error"]["detail"], out
            d.wait_state(vm["id"], "running")
            check(d, "full disk")
            assert [life for life, _ in lives(d, vm["id"])] == [before[0][0]] * 2, "it does not run on"
            d.mctl("vm", "hibernate", vm["id"])
            d.mctl("vm", "resume", vm["id"])
            check(d, "room again")
        finally:
            d.stop()
            harness.run(*d.command("--remove"), check=False)
            harness.run("umount", "-l", d.state)


def test_where_its_evidence_cannot_be_kept_its_memory_goes_all_the_same():
    with resting(start=False) as d:
        (d.state / "evidence").mkdir(parents=True)
        harness.run("mount", "-t", "tmpfs", "-o", "ro,size=1m,mode=700", "tmpfs", d.state / "evidence")
        try:
            d.start()
            vm = d.create(wait=True)
            d.mctl("vm", "hibernate", vm["id"])
            assert list(folder_of(d, vm).rglob("memory"))
            d.mctl("vm", "destroy", vm["id"], "--reason", "x")
            assert (folder_of(d, vm) / "console.log").exists(), "its evidence was sealed"
            assert not list(folder_of(d, vm).rglob("memory"))
        finally:
            d.stop()
            harness.run("umount", "-l", d.state / "evidence")


def damage(d, vm, what):
    saved = folder_of(d, vm) / "saved"
    manifest = json.loads((saved / "saved.json").read_text())
    if what == "cut":
        os.truncate(saved / "memory", 1000)
    elif what == "flipped":
        with open(saved / "memory", "r+b") as f:
            f.seek(300000)
            f.write(b"x")
    elif what == "disk":
        os.utime(folder_of(d, vm) / "disk.qcow2")
    elif what == "manifest":
        (saved / "saved.json").write_text("{")
    else:
        manifest[what] = "another"
        (saved / "saved.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("what,code", [("cut", "saved.broken"), ("flipped", "saved.broken"), ("disk", "saved.broken"),
                                       ("manifest", "saved.broken"), ("image", "saved.other"), ("vmm", "saved.other"),
                                       ("accel", "saved.other"), ("version", "vmm.other-version")])
def test_a_memory_that_does_not_fit_is_kept_and_a_cold_start_offered(what, code):
    with resting() as d:
        vm = d.create(wait=True)
        d.mctl("vm", "hibernate", vm["id"])
        damage(d, vm, what)
        r = d.admin("POST", f"/api/vms/{vm['id']}/resume")
        assert (r.status, r.json["code"]) == (503 if code == "saved.broken" else 409, code), r.json
        assert "--cold" in r.json["hint"]
        check(d, what)
        told = d.vm(vm["id"])
        assert told["state"] == "hibernated" and told["reason"] == r.json["detail"]
        assert len(lives(d, vm["id"])) == 1
        assert d.mctl("--json", "vm", "resume", vm["id"], "--cold").json["vm"]["state"] == "running"
        check(d, what)
        (first, second) = lives(d, vm["id"])
        assert first[0] != second[0] and second[1] == first[1] + 1, "not from its disk"


def test_loads_that_fail_leave_no_descriptor_open():
    with resting() as d:
        vm = d.create(wait=True)
        fds = lambda: sorted(os.readlink(p) for p in pathlib.Path(f"/proc/{d.process.pid}/fd").iterdir())
        d.mctl("vm", "hibernate", vm["id"])
        damage(d, vm, "version")  # of which only the VMM that is to load it knows
        before = fds()
        for _ in range(CYCLES // 4):
            assert d.mctl("--json", "vm", "resume", vm["id"], check=None).json["error"]["code"] == "vmm.other-version"
        wait_for(lambda: len(fds()) <= len(before), 10)  # a caller's is closed when that has gone
        check(d, "failed loads")


@pytest.mark.parametrize("when", ["hibernate", "resume"])
def test_a_vmm_that_is_killed_in_the_middle_loses_no_vm(when):
    with resting() as d:
        vm = d.create(wait=True)
        if when == "hibernate":
            os.kill(d.processes()[0], signal.SIGSTOP)
            caller = subprocess.Popen([harness.MCTL, "--socket", d.socket, "vm", "hibernate", vm["id"]])
            wait_for(lambda: d.state_of(vm["id"]) == "hibernating")
            os.kill(d.processes()[0], signal.SIGKILL)
            caller.wait(60)
            assert d.state_of(vm["id"]) == "hibernated"
            assert "its disk is there" in d.vm(vm["id"])["reason"]
            r = d.admin("POST", f"/api/vms/{vm['id']}/resume")
            assert (r.status, r.json["code"]) == (409, "saved.none") and "--cold" in r.json["hint"]
        else:
            d.mctl("vm", "hibernate", vm["id"])
            d.netns("ip", "link", "set", "br0", "down")  # so that it is not proven at once
            caller = subprocess.Popen([harness.MCTL, "--socket", d.socket, "vm", "resume", vm["id"]])
            wait_for(lambda: any(e["event"] == "memory-loaded" for e in d.events(vm["id"])))
            os.kill(d.processes()[0], signal.SIGKILL)
            caller.wait(60)
            d.netns("ip", "link", "set", "br0", "up")
            told = d.vm(vm["id"])
            assert told["state"] == "hibernated" and "killed by signal 9" in told["reason"]
        assert d.taps() == [] and d.processes() == []
        d.mctl("vm", "resume", vm["id"], "--cold")
        check(d, when)


def die_while_it_saves(d):
    """The one VM, whose VMM stands still before it has written anything, and its pid."""
    vm = d.create(wait=True)
    (pid,) = d.processes()
    os.kill(pid, signal.SIGSTOP)
    caller = subprocess.Popen([harness.MCTL, "--quiet", "--socket", d.socket, "vm", "hibernate", vm["id"]],
                              stderr=subprocess.DEVNULL)
    wait_for(lambda: (folder_of(d, vm) / "saved.tmp" / "memory").exists())
    d.stop(signal.SIGKILL)
    caller.wait(60)
    return vm, pid


def test_half_a_memory_is_not_kept():
    with resting() as d:
        vm, pid = die_while_it_saves(d)
        os.kill(pid, signal.SIGKILL)
        d.start()
        d.wait_state(vm["id"], "hibernated")
        assert not (folder_of(d, vm) / "saved.tmp").exists()
        d.mctl("vm", "resume", vm["id"], "--cold")
        check(d, "cold")


@contextlib.contextmanager
def held(pid, folder):
    """The kernel does not let go of it, whatever signal it is sent."""
    folder.mkdir()
    harness.run("mount", "-t", "cgroup", "-o", "freezer", "freezer", folder)
    group = folder / f"test-{pid}"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(pid))
        (group / "freezer.state").write_text("FROZEN")
        wait_for(lambda: (group / "freezer.state").read_text() == "FROZEN\n")
        yield
    finally:
        (group / "freezer.state").write_text("THAWED")
        wait_for(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()
        harness.run("umount", folder)


def test_a_vmm_that_does_not_end_is_not_forgotten():
    with resting() as d:
        vm, pid = die_while_it_saves(d)
        (folder_of(d, vm) / "saved.tmp").rename(folder_of(d, vm) / "saved")
        (folder_of(d, vm) / "saved" / "saved.json").write_text("{}")
        with held(pid, d.dir / "freezer"):
            d.start()
            wait_for(lambda: d.log.read_text().count("the kernel holds it") >= 2, 40)
            assert d.state_of(vm["id"]) == "hibernating" and d.taps() == [vm["tap"]]
        d.wait_state(vm["id"], "hibernated", 30)
        check(d, "let go")


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_vmm_that_does_not_answer_any_more_goes_on_or_is_ended_in_the_end(comes_back):
    """While it is asked in vain the VM is called nothing that it is not."""
    with resting(hibernate_timeout="3" if comes_back else "1") as d:
        vm = d.create(wait=True)
        (first,) = lives(d, vm["id"])
        (pid,) = d.processes()
        os.kill(pid, signal.SIGSTOP)
        caller = subprocess.Popen([harness.MCTL, "--json", "--socket", d.socket, "vm", "hibernate", vm["id"]],
                                  stdout=subprocess.PIPE, text=True)
        wait_for(lambda: "it does not go on, and is asked to again" in d.log.read_text(), 40)
        assert d.state_of(vm["id"]) == "hibernating"
        if comes_back:
            os.kill(pid, signal.SIGCONT)
            error = json.loads(caller.communicate(timeout=60)[0])["error"]
            assert "QEMU does not answer" in error["detail"], error
            d.wait_state(vm["id"], "running")
            assert {life for life, _ in lives(d, vm["id"])} == {first[0]}
        else:
            caller.communicate(timeout=60)
            told = d.vm(vm["id"])
            assert told["state"] == "hibernated" and "did not go on" in told["reason"] and "was ended" in told["reason"]
            assert "can be started cold" in told["reason"] and not pathlib.Path(f"/proc/{pid}").exists()
        check_without_memory(d, comes_back)


def check_without_memory(d, is_awake):
    assert len(d.taps()) == len(d.processes()) == (1 if is_awake else 0)
    (folder,) = (d.state / "users").iterdir()
    assert not (folder / "saved").exists() and not (folder / "saved.tmp").exists()


def test_a_vmm_that_never_gets_done_with_loading_and_does_not_end_is_not_forgotten():
    with resting(hibernate_timeout="2") as d:
        vm = d.admin("POST", "/api/users/u1/vm?wait=ready", {"vcpus": 5}).json["vm"]
        d.mctl("vm", "hibernate", vm["id"])
        caller = subprocess.Popen([harness.MCTL, "--json", "--socket", d.socket, "vm", "resume", vm["id"]],
                                  stdout=subprocess.PIPE, text=True)
        (pid,) = wait_for(d.processes)
        with held(pid, d.dir / "freezer"):
            wait_for(lambda: d.log.read_text().count("the kernel holds it") >= 2, 60)
            assert d.state_of(vm["id"]) == "resuming" and d.taps() == [vm["tap"]]
            assert (folder_of(d, vm) / "saved" / "saved.json").exists()
        error = json.loads(caller.communicate(timeout=60)[0])["error"]
        assert "does not answer migrate-incoming" in error["detail"] and "--cold" in error["hint"], error
        check(d, "let go")
        told = d.vm(vm["id"])
        assert told["state"] == "hibernated" and told["reason"] == error["detail"]
        d.mctl("vm", "resume", vm["id"], "--cold")
        check(d, "cold")


def test_a_tap_that_was_taken_off_meanwhile_is_put_back():
    with resting() as d:
        vm, pid = die_while_it_saves(d)
        d.netns("ip", "link", "set", vm["tap"], "nomaster", "down")
        os.kill(pid, signal.SIGCONT)
        d.start()
        d.wait_state(vm["id"], "running")
        assert "master br0" in d.netns("ip", "link", "show", vm["tap"]).stdout
        d.netns("ping", "-c1", "-W10", vm["ip"])
        check(d, "its TAP")


def test_who_wants_it_while_it_is_put_to_rest_waits_and_is_served():
    with resting() as d:
        vm = d.create(wait=True)
        pid = d.processes()[0]
        os.kill(pid, signal.SIGSTOP)
        sleeper = subprocess.Popen([harness.MCTL, "--socket", d.socket, "vm", "hibernate", vm["id"]])
        wait_for(lambda: d.state_of(vm["id"]) == "hibernating")
        waker = subprocess.Popen([harness.MCTL, "--socket", d.socket, "vm", "resume", vm["id"]])
        time.sleep(0.3)
        os.kill(pid, signal.SIGCONT)
        assert sleeper.wait(60) == 0 and waker.wait(60) == 0
        assert d.state_of(vm["id"]) == "running"
        check(d, "woken")


def test_who_needs_it_wakes_it():
    with resting() as d:
        vm = d.create(wait=True)
        needs = [("POST", "/api/users/u1/vm", {}, 200), ("POST", "/api/users/u1/vm?wait=ready", {}, 200),
                 ("POST", f"/api/vms/{vm['id']}/agent", {"op": "health"}, 409)]  # it has no agent, and tells that awake
        for method, path, body, status in needs:
            d.mctl("vm", "hibernate", vm["id"])
            answer = d.admin(method, path, body)
            assert answer.status == status, answer.json
            assert d.state_of(vm["id"]) == "running"
            assert status != 200 or answer.json["vm"]["state"] == "running"
            assert status != 409 or answer.json["code"] == "agent.none"
        reasons = [e["reason"] for e in d.events(vm["id"]) if e["event"] == "resume"]
        assert reasons == ["its user asks for it"] * 2 + ["its agent is asked"]
        # What only looks wakes nobody.
        d.mctl("vm", "hibernate", vm["id"])
        for path in ("", "/events", "/console"):
            assert d.admin("GET", f"/api/vms/{vm['id']}{path}").status == 200, path
        for path in ("agent", "diagnostics"):
            answer = d.admin("GET", f"/api/vms/{vm['id']}/{path}")
            assert (answer.status, answer.json["code"]) == (409, "vm.hibernated")
        assert d.doctor()[0] == 0, "the doctor misses the TAP of one that is at rest"
        told = harness.run(harness.MCTL, "doctor", "--netns", d.name, "--state-dir", d.state, "--vm", vm["id"],
                           check=False)
        assert told.returncode == 1 and "hibernated" in told.stderr and "mctl vm resume" in told.stderr
        damage(d, vm, "flipped")
        answer = d.admin("POST", "/api/users/u1/vm?wait=ready", {})
        assert (answer.status, answer.json["code"]) == (503, "saved.broken")
        assert d.state_of(vm["id"]) == "hibernated"


def resting_reasons(d, vm):
    return [(e["actor"], e["reason"]) for e in d.events(vm["id"]) if e["event"] == "hibernate"]


def test_what_nobody_uses_is_hibernated_and_what_somebody_uses_is_not():
    with resting(cli_idle_after="4") as d:
        used, unused = d.create(user="a", wait=True), d.create(user="b", wait=True)
        with subprocess.Popen(["nsenter", f"--net=/run/netns/{d.name}", "ping", "-q", "-i", "0.02", "-s", "500", used["ip"]],
                              stdout=subprocess.DEVNULL) as ping:
            try:
                d.wait_state(unused["id"], "hibernated", 40)
                time.sleep(6)
                assert d.state_of(used["id"]) == "running", resting_reasons(d, used)
            finally:
                ping.terminate()
        d.wait_state(used["id"], "hibernated", 40)
        for vm in (used, unused):
            ((actor, reason),) = resting_reasons(d, vm)
            assert actor == "controller" and "nobody has used it for" in reason
        assert d.admin("POST", "/api/users/b/vm", {}).json["vm"]["state"] == "running"


def test_the_idle_go_one_after_the_other_and_each_counts_those_on_their_way():
    with resting(cli_idle_after="4") as d:
        vms = [d.create(user=u, wait=True) for u in "abc"]
        pids = d.processes()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)  # so that a save takes as long as this test wants
        wait_for(lambda: any(d.state_of(v["id"]) == "hibernating" for v in vms), 40)
        time.sleep(9)  # another look at all of them
        assert sorted(d.state_of(v["id"]) for v in vms) == ["hibernating", "running", "running"]
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        for vm in vms:
            d.wait_state(vm["id"], "hibernated", 40)
        check(d, "one after the other")


@contextlib.contextmanager
def standing_still(d):
    """Its VMMs, which take as long as this test wants."""
    pids = d.processes()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_the_idle_make_room_before_a_vm_is_refused():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    size = max(512, total // 40)
    percent = (size + 448) * 5 // 2 * 100 // total  # with what a QEMU needs beside it: room for two and a half
    with resting(cli_memory=str(size), browser_memory=str(size), idle_yields_after="6", memory_percent=str(percent),
                 quota_per_user="1") as d:
        first, second = d.create(user="a", wait=True), d.create(user="b", wait=True)
        refused = d.mctl("--json", "vm", "create", "--user", "c", "--type", "cli", check=5)
        assert refused.json["error"]["code"] == "quota.memory", "nobody is idle for long enough yet"
        time.sleep(8)
        for path, body, code in (("/api/users/a/vm", {"type": "browser"}, "quota.user"),
                                 ("/api/users/c/vm", {"vcpus": 33}, "vm.bad-size"),
                                 ("/api/auth/start", {"userId": "c", "provider": "nobody"}, "provider.unknown")):
            assert d.admin("POST", path, body).json["code"] == code
            assert [d.state_of(v["id"]) for v in (first, second)] == ["running"] * 2, "for what is refused anyway"
        d.admin("POST", f"/api/vms/{second['id']}/agent", {"op": "health"})  # that is use
        third = d.create(user="c", wait=True)
        assert d.state_of(first["id"]) == "hibernated" and d.state_of(second["id"]) == "running"
        assert "its memory is wanted for another VM" in resting_reasons(d, first)[0][1]
        # And back: now the others have to be idle.
        assert d.admin("POST", f"/api/vms/{first['id']}/resume").status == 507
        time.sleep(8)
        # Who waits for it hears that somebody wants it no more, though the room for it is still being made.
        with standing_still(d):
            waker = subprocess.Popen([harness.MCTL, "--socket", d.socket, "vm", "resume", first["id"]], stderr=subprocess.PIPE, text=True)
            wait_for(lambda: d.mctl("vm", "hibernate", first["id"]) and waker.poll() is not None, 30, 0.2)
            assert "put to rest again" in waker.stderr.read() and d.state_of(first["id"]) == "hibernated"
        wait_for(lambda: sorted(d.state_of(v["id"]) for v in (second, third)) == ["hibernated", "running"], 40)
        others = [subprocess.Popen([harness.MCTL, "--quiet", "--socket", d.socket, "vm", "resume", first["id"]])
                  for _ in range(3)]
        d.mctl("vm", "resume", first["id"])
        assert [other.wait(60) for other in others] == [0, 0, 0]
        assert sorted(d.state_of(v["id"]) for v in (second, third)) == ["hibernated", "running"]
        check(d, "room was made")


def test_a_session_keeps_its_vm_awake_and_who_looks_at_a_desktop_that_is_forced_to_rest_reads_1012():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    size = max(512, total // 40)
    percent = (size + 448) * 3 // 2 * 100 // total  # room for one
    with resting(cli_memory=str(size), browser_memory=str(size), memory_percent=str(percent), browser_idle_after="2",
                 idle_yields_after="1") as d, contextlib.ExitStack() as stack:
        desk = Desk(d, "u", {}, stack)
        path = f"/api/vms/{desk.vm['id']}"

        def stays_awake(words):
            time.sleep(5)
            refused = d.mctl("--json", "vm", "create", "--user", "c", "--type", "cli", check=5)
            assert refused.json["error"]["code"] == "quota.memory", "nobody is idle"
            r = d.admin("POST", f"{path}/hibernate")
            assert (r.status, r.json["code"]) == (409, "vm.in-use") and words in r.json["detail"], r.json
            assert "--force" in r.json["hint"] and d.state_of(desk.vm["id"]) == "running"

        def while_shown():
            stays_awake("its desktop is shown")
            d.mctl("vm", "hibernate", "--force", desk.vm["id"])

        async def go():
            async with await desk.serve():
                await asyncio.get_running_loop().run_in_executor(None, stays_awake, "its login session is open")
                told = await asyncio.wait_for(desk.closing("idle", while_shown), 60)
                later = await asyncio.wait_for(desk.closing("idle"), 60)
                assert shown(d, desk.sid)["vm"]["state"] == "hibernated", "a page that is merely open asks for no more"
                woken = await asyncio.get_running_loop().run_in_executor(None, d.admin, "POST", f"/api/auth/session/{desk.sid}/wake")
                assert woken.status == 200 and woken.json["vm"]["state"] == "running", woken.json
                again = await asyncio.wait_for(
                    desk.closing("idle", lambda: d.mctl("vm", "hibernate", "--force", desk.vm["id"])), 60)
                d.wait_state(desk.vm["id"], "hibernated")
                link = await asyncio.get_running_loop().run_in_executor(
                    None, lambda: d.mctl("auth", "start", "--user", "u", "--provider", "demo", "--wait").out)
                assert desk.sid in link and d.state_of(desk.vm["id"]) == "running", link
            return told, later, again
        told, later, again = asyncio.run(go())
        assert [e["reason"] for e in d.events(desk.vm["id"]) if e["event"] == "resume"] == ["its desktop is wanted"] * 2
        assert told[0] == again[0] == 1012 and "put to rest" in told[1] and len(told[1].encode()) <= 120, told
        assert later[0] == 1013 and "hibernated" in later[1], later
        assert shown(d, desk.sid)["session"]["status"] == "awaiting_user_auth"


# ---- kill -9 of the daemon ----

def bring(d, state):
    """The one VM, in that state."""
    vms = crash.live(d)
    vm = vms[0] if vms else d.create(wait=True)
    d.wait_state(vm["id"], "running" if vm["state"] == "booting" else vm["state"])
    if d.state_of(vm["id"]) != state:
        d.mctl("vm", {"running": "resume", "hibernated": "hibernate"}[state], vm["id"])
    return vm


def die_at_each(d, countdown, state, verb):
    vm = bring(d, state)
    life = lives(d, vm["id"])[0][0]
    countdown.set(0)
    ask(d, "POST", f"/api/vms/{vm['id']}/{verb}")
    count = countdown.passed()
    assert count > 20, f"{verb}: {count} steps are too few: is die_at.so preloaded?"
    died, tried = 0, range(1 + random.randrange(STRIDE), count + 1, STRIDE)
    for n in tried:
        bring(d, state)
        countdown.set(n)
        ask(d, "POST", f"/api/vms/{vm['id']}/{verb}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            d.process.wait(1 if n > count * 0.7 else 20)
        countdown.set(0)
        if d.process.poll() is None:
            continue
        died += 1
        d.start(countdown.wrapper)
        check(d, f"{verb}: killed at step {n} of {count}")
        assert {one for one, _ in lives(d, vm["id"])} == {life}, f"{verb}: killed at step {n}: its memory was lost"
    assert died > len(tried) * 0.6, f"{verb}: died at {died} of {len(tried)} of {count} steps"


@pytest.mark.parametrize("state,verb", [("running", "hibernate"), ("hibernated", "resume")])
def test_the_daemon_is_killed_at_every_step(state, verb):
    with resting(start=False) as d:
        countdown = crash.Countdown(d)
        d.start(countdown.wrapper)
        die_at_each(d, countdown, state, verb)


def random_cycle(d, disk, rng, vm, what):
    """One of: nothing, kill -9 of the daemon or the VMM, a full disk, a full disk and a kill. Returns the one VM that there is."""
    verb = "resume" if d.state_of(vm["id"]) == "hibernated" else "hibernate"
    victim, fills = rng.choice(["daemon", "daemon", "vmm", "nobody"]), rng.random() < 0.4
    what = f"{what}: {verb}, {victim} killed, disk {'full' if fills else 'free'}"
    caller = subprocess.Popen([harness.MCTL, "--quiet", "--socket", d.socket, "vm", verb, vm["id"]],
                              stderr=subprocess.DEVNULL)
    time.sleep(rng.random() * 0.15)
    if fills:
        disk.fill(rng.choice([0, rng.randrange(700 << 10)]))
    pids, killed = d.processes([vm["id"]]), None
    if victim == "vmm" and pids and (fills or d.state_of(vm["id"]) != "running"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[0], signal.SIGKILL)
            killed = pids[0]
    elif victim == "daemon":
        d.stop(signal.SIGKILL)
    if d.process is None and rng.random() < 0.5:
        d.start()
    time.sleep(rng.random() * 0.3 if fills else 0)
    disk.free()
    caller.wait(60)
    if d.process is None:
        d.start()
    # One whose VMM was killed just when it ran is called running until its end is written.
    wait_for(lambda: d.state_of(vm["id"]) in ("hibernated", "failed") or
             (d.state_of(vm["id"]) == "running" and d.processes([vm["id"]]) not in ([], [killed])), 30)
    told = d.vm(vm["id"])
    if told["state"] == "failed":  # its VMM was killed just when it ran
        assert "ended by itself: killed by signal 9" in told["reason"] or "while the controller was down" in told[
            "reason"], (what, told)
        assert victim == "vmm", (what, told, d.events(vm["id"]))
        return d.create(wait=True)
    if told["state"] == "hibernated" and not (folder_of(d, vm) / "saved").exists():
        assert victim == "vmm", (what, told, d.events(vm["id"]))
        d.mctl("vm", "resume", vm["id"], "--cold")
    check(d, what)
    return vm


def test_random_cycles_with_kills_and_full_disks():
    """Hibernate, resume, and a kill -9 of daemon or VMM, a full disk or both at any moment: no VM is lost that was not told to
    go, and nothing is left open."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    with resting(start=False, cli_memory="128") as d, small_disk(d, 300) as disk:
        vm = d.start().create(wait=True)
        for cycle in range(CYCLES):
            vm = random_cycle(d, disk, rng, vm, f"seed {seed} cycle {cycle}")

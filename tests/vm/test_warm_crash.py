"""Warm start when things go wrong on the way, with a VMM that has no machine (resting_vmm.c): kill -9 of the daemon at every step,
a full disk, agents and VMMs that do not do what they should. Real guests: test_warm.py."""

import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

import harness
from harness import daemon, small_disk, wait_for

sys.path.insert(0, str(harness.HERE / "tests/netns"))
import crash
from test_crash import ask
from test_warm import how, image_with_identity, wait_template, warm

RESTING_VMM = harness.BUILD / "tests/vm/resting-vmm"
STRIDE = int(os.environ.get("MC_CRASH_STRIDE", "60"))  # every step: 1
IS_SOAK = STRIDE == 1
MEMORY_MIB = 128


def image_of_one_type(folder):
    """The tiny guest's image, for VMs of the type cli alone: so there is one template to be made."""
    build = (harness.TEST_GUEST / "current").resolve()
    shutil.copytree(build, folder / "cli" / build.name, copy_function=os.link)
    (folder / "cli/current").symlink_to(build.name)
    return folder


@contextlib.contextmanager
def resting(start=True, warm={}, **vm):
    with daemon(start=False, warm={"templates": "yes", "quiet": "0.2", **warm}) as d:
        cache = harness.HERE / ".cache" / f"warm-{d.name}"
        shutil.copy(RESTING_VMM, d.dir / "resting-vmm")
        d.config["image"]["directory"] = image_of_one_type(cache)
        d.config["vm"] |= {"qemu_binary": d.dir / "resting-vmm", "accel": "tcg", "stop_timeout": "0.3", "quota_per_user": "1000",
                           "probe_interval": "0.05", "cli_memory": str(MEMORY_MIB), "cli_boot_timeout": "20", **vm}
        try:
            if start:
                d.start()
            yield d
        finally:
            shutil.rmtree(cache)


@pytest.fixture(scope="module")
def shared():
    """A daemon with a template, on a disk that can be full, that can be told when to die."""
    with resting(start=False) as d, small_disk(d, 500) as d.disk:
        d.countdown = crash.Countdown(d)
        template_of(d.start(d.countdown.wrapper))
        yield d


@pytest.fixture
def d(shared):
    if not shared.process:
        shared.start(shared.countdown.wrapper)
    template_of(shared)
    yield shared
    shared.disk.free()
    if shared.process:
        end_all(shared)


def template_of(d):
    """The template that is ready."""
    def ready():
        return warm(d)["ready"]
    wait_for(ready, 30, 0.1)
    return d.state / "templates" / warm(d)["template"]


def nothing_bad(d):
    """No VMM was given what is not whole, or reached before it was somebody."""
    for log in [*d.state.glob("users/*/vmm.log"), *d.state.glob("evidence/*/vmm.log"), *d.state.glob("templates/*/vmm.log")]:
        text = log.read_text()
        assert not any(word in text for word in ("STALE", "HALF", "BROKEN", "NOBODY")), text


def keeps_evidence(d, vm_id):
    """Of a VM that ended on a full disk: it is sealed by the next daemon (vm/end.c)."""
    return f"{vm_id}: its evidence stays in" in d.log.read_text()


def is_whole(d, what):
    """Each VM is whole or gone, and nothing is left over, but what belongs to a template that is being made just now."""
    wait_for(lambda: all(v["state"] == "running" or v["user"] == "(pool)" for v in crash.live(d)), 30)
    vms = crash.live(d)
    taps, ids = sorted(v["tap"] for v in vms), sorted(v["id"] for v in vms)
    assert d.taps() == taps, (what, d.taps(), vms)
    wait_for(lambda: [i for i in d.folders() if not keeps_evidence(d, i)] == ids, 20, 0.1)
    wait_for(lambda: crash.elements(d) == sorted(v["tap"] for v in vms if v["user"] != "(pool)"), 20, 0.1)
    wait_for(lambda: len(d.processes(ids)) == len(ids) if ids else True, 5)
    assert set(crash.groups(crash.all_ids(d))) <= set(ids), what
    nothing_bad(d)
    return vms


def nothing_of(d, names, what):
    """Of templates that were being made when the daemon died nothing is left."""
    for name in names:
        vm_id = name.removeprefix("cli-").removesuffix(".tmp")
        assert not (d.state / "templates" / name).exists(), what
        wait_for(lambda: not d.processes([vm_id]), 10)
        assert crash.groups([vm_id]) == [], what
        assert f"mc-warm-{vm_id[3:10]}" not in d.links(), what


def begun(d):
    return [p.name for p in (d.state / "templates").glob("*.tmp")]


def dies(d, countdown, timeout_s):
    with contextlib.suppress(subprocess.TimeoutExpired):
        d.process.wait(timeout_s)
    countdown.set(0)
    return d.process.poll() is not None


def steps_to_try(count):
    """Those at which the daemon is killed."""
    return range(1 + random.randrange(min(STRIDE, count)), count + 1, STRIDE)


def steps_of_create(d, countdown):
    """How many there are until a VM runs, which its log tells: to ask would be counted."""
    runs = lambda: d.log.read_text().count("booting -> running")
    before = runs()
    countdown.set(0)
    ask(d, "POST", "/api/users/count/vm", {})
    wait_for(lambda: runs() > before, 30)
    count = countdown.passed()
    (vm,) = [v for v in crash.live(d) if v["user"] == "count"]
    return count, how(d, vm)


def end_all(d):
    for vm in crash.live(d):
        if vm["user"] != "(pool)":
            d.mctl("vm", "destroy", vm["id"], "--reason", "next")


def make_template(d, countdown, n):
    """A daemon without one begins; counted is from when it answers, which is before it begins to make one."""
    d.stop()
    shutil.rmtree(d.state / "templates", ignore_errors=True)
    d.start(countdown.wrapper)
    countdown.set(n)


def test_killed_at_every_step_of_making_a_template():
    with resting(start=False, warm={"quiet": "0.5"}) as d:
        countdown = crash.Countdown(d)
        make_template(d, countdown, 0)
        wait_for(lambda: "template-ready" in d.log.read_text(), 30)  # to ask it would be counted
        count = countdown.passed()
        assert count > 40, f"{count} steps are too few: is die_at.so preloaded?"
        steps, died = steps_to_try(count), 0
        for n in steps:
            what = f"killed at step {n} of {count}"
            make_template(d, countdown, n)
            died += dies(d, countdown, 10 if n < count * 0.8 else 5)
            left, whole = begun(d), [p for p in (d.state / "templates").glob("cli-*[0-9a-f]")]
            d.stop(signal.SIGKILL)
            d.start(countdown.wrapper)
            vm = d.create(wait=True)
            nothing_of(d, left, what)
            is_whole(d, what)
            if not whole:
                assert not how(d, vm).startswith("made warm"), (what, how(d, vm))
            end_all(d)
        assert died >= len(steps) / 2, f"died at {died} of {len(steps)} of {count} steps"


def test_killed_at_every_step_of_a_warm_start(d):
    """Loading it, giving it its identity, connecting it."""
    template, countdown = template_of(d), d.countdown
    count, words = steps_of_create(d, countdown)
    assert count > 20 and words.startswith("made warm"), (count, words)
    steps, died = steps_to_try(count), 0
    for n in steps:
        what = f"killed at step {n} of {count}"
        end_all(d)
        countdown.set(n)
        ask(d, "POST", f"/api/users/u{n}/vm", {})
        died += dies(d, countdown, 10 if n < count * 0.8 else 1)
        d.stop(signal.SIGKILL)
        d.start(countdown.wrapper)
        is_whole(d, what)
        assert template_of(d) == template, what
        vm = d.create(user="next", wait=True)
        assert how(d, vm).startswith("made warm"), (what, how(d, vm))
    assert died >= len(steps) / 2, f"died at {died} of {len(steps)} of {count} steps"


def test_killed_at_every_step_of_taking_one_from_the_pool():
    with resting(start=False, warm={"pool_cli": "1"}) as d:
        countdown = crash.Countdown(d)
        d.start(countdown.wrapper)
        spare(d)
        count, words = steps_of_create(d, countdown)
        assert count > 10 and "and the pool in" in words, (count, words)
        steps, died = steps_to_try(count), 0
        for n in steps:
            what = f"killed at step {n} of {count}"
            end_all(d)
            waits = spare(d)
            countdown.set(n)
            ask(d, "POST", f"/api/users/u{n}/vm", {})
            died += dies(d, countdown, 10 if n < count * 0.8 else 1)
            d.stop(signal.SIGKILL)
            d.start(countdown.wrapper)
            is_whole(d, what)
            assert d.state_of(waits) in ("running", "failed", "stopped"), what  # a user's and whole, or gone
            vm = d.create(user="next", wait=True)
            is_whole(d, what)
        assert died >= len(steps) / 2, f"died at {died} of {len(steps)} of {count} steps"


def spare(d):
    def ready():
        return warm(d)["pool_ready"] == 1 and next((v["id"] for v in crash.live(d) if v["user"] == "(pool)"), None)
    return wait_for(ready, 30, 0.1)


# ---- full disks ----

def test_the_disk_is_full_while_a_template_is_made():
    """However often that is: it is not the template's fault."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    with resting(start=False) as d, small_disk(d, 400) as disk:
        d.start()
        for n in range(5 if IS_SOAK else 1):
            what = f"seed {seed}, time {n}"
            (name,) = wait_for(lambda: begun(d), 30, 0.01)
            time.sleep(rng.random() * 2)
            disk.fill(rng.choice([0, rng.randrange(400 << 10)]))
            wait_for(lambda: not begun(d), 10, 0.01)
            nothing_of(d, [name], what)
            assert not warm(d)["ready"] and warm(d)["problem"].startswith("the host has not "), (what, warm(d))
            is_refused_for_room(d, f"u{n}", what)
            disk.free()
            is_whole(d, what)
        assert how(d, d.create(wait=True)).startswith("made in ")
        next_daemon_seals(d)
        if IS_SOAK:  # in 10 s
            end_all(d)
            template_of(d)


def is_refused_for_room(d, user, what):
    """Or it is made, for what little there is: then it is gone again."""
    r = d.mctl("--json", "vm", "create", "--user", user, "--type", "cli", "--wait", check=None)
    if r.status != 0:
        assert any(w in r.out for w in ("No space left", "is full")), (what, r.out, r.err)


def test_the_disk_is_full_while_a_vm_begins_from_a_template(d):
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    template = template_of(d)
    for n in range(100 if IS_SOAK else 3):
        what = f"seed {seed}, time {n}"
        d.disk.fill(rng.randrange(400 << 10))
        is_refused_for_room(d, f"u{n}", what)
        d.disk.free()
        is_whole(d, what)
        end_all(d)
        assert template_of(d) == template, what
        vm = d.create(wait=True)
        assert how(d, vm).startswith("made warm"), (what, how(d, vm))
        end_all(d)
        is_whole(d, what)
    next_daemon_seals(d)


def next_daemon_seals(d):
    d.stop()
    d.start()
    wait_for(lambda: d.folders() == sorted(v["id"] for v in crash.live(d)), 20)


# ---- guests and VMMs that do not do what they should ----

def fds(d):
    return collections.Counter(os.readlink(p) for p in pathlib.Path(f"/proc/{d.process.pid}/fd").iterdir())


def no_more_fds_than(d, before):
    def are_closed():
        return fds(d).total() <= before.total() or print(fds(d) - before)
    wait_for(are_closed, 10)  # a caller's is when that has gone


SLOW = pytest.mark.skipif(not IS_SOAK, reason="waits for its time limit: scripts/soak-hibernate")


@pytest.mark.parametrize("processors,why", [
    (7, "identity: it could not be made a machine of its own: the agent in the guest: it will not"),
    (10, "identity: it could not be made a machine of its own: its VMM has ended"),
    pytest.param(6, "identity: it could not be made a machine of its own: its agent: it was asked, and has not answered", marks=SLOW),
    pytest.param(9, "identity: it could not be made a machine of its own: its agent: it was asked, and has not answered", marks=SLOW),
    pytest.param(5, "memory: ", marks=SLOW)],
    ids=["refuses", "its VMM ends", "never answers", "talks rubbish", "never loads"])
def test_one_that_cannot_be_used_is_begun_cold(processors, why):
    with resting(cli_vcpus=str(processors)) as d:
        template_of(d)
        before = fds(d)
        vm = d.create(wait=True)
        assert f"; cold: {why}" in how(d, vm), how(d, vm)
        is_whole(d, why)
        end_all(d)
        is_whole(d, why)
        template_of(d)  # another one
        no_more_fds_than(d, before)


def test_an_agent_that_hangs_up_is_asked_again():
    with resting(cli_vcpus="8") as d:
        template = template_of(d)
        vm = d.create(wait=True)
        assert how(d, vm).startswith(f"made warm, from template {template.name}"), how(d, vm)
        is_whole(d, "it hung up")


def test_what_fails_on_the_way_leaves_no_descriptor_open(d):
    template = template_of(d)
    d.create(wait=True)
    end_all(d)
    d.netns("ip", "link", "del", "br0")  # it is to be connected to what is not there
    before = fds(d)
    for n in range(50 if IS_SOAK else 5):
        r = d.mctl("--json", "vm", "create", "--user", f"u{n}", "--type", "cli", "--wait", check=None)
        assert r.status != 0, r.out
    wait_for(lambda: not crash.live(d), 30)
    no_more_fds_than(d, before)
    is_whole(d, "failures")
    assert template_of(d) == template
    d.stop()  # the next one makes the bridge anew


def test_templates_that_are_none_are_removed_and_nothing_else(d):
    good = template_of(d)
    d.stop()
    precious = d.dir / "precious"
    precious.mkdir()
    (precious / "file").write_text("precious")
    names = iter(f"cli-vm-00000000-0000-4000-8000-{n:012}" for n in range(1, 100))

    def another(**more):
        copy = good.with_name(next(names))
        harness.run("cp", "-a", "--sparse=always", good, copy)
        manifest = json.loads((copy / "template.json").read_text())
        (copy / "template.json").write_text(json.dumps({**manifest, **more}))
        return copy
    for text in ("", "{", "[]", "[" * 60000, "{}" + " " * 70000, '{"schema": 7, "files": [], "ram": "x"}'):
        (another() / "template.json").write_text(text)
    another(files={})
    another(files={"../../../../precious/file": {"bytes": 8, "sha256": "0" * 64}})
    another(ram={"bytes": 0, "sha256": "0" * 64})
    another(ram={})
    another(memory_mib=-1)
    link = another() / "state/memory"
    link.unlink()
    link.symlink_to(good / "state/memory")
    os.truncate(another() / "ram", 4096)
    (another() / "ram").unlink()
    good.with_name(next(names)).symlink_to(precious)
    good.with_name(next(names) + ".tmp").symlink_to(precious)
    good.with_name(next(names)).write_text("a file")
    shutil.rmtree(good)
    d.start(d.countdown.wrapper)
    made = template_of(d)
    assert [p.name for p in (d.state / "templates").iterdir()] == [made.name] and "-00000000-0000" not in made.name, d.log.read_text()
    assert (precious / "file").read_text() == "precious"
    assert how(d, d.create(wait=True)).startswith("made warm")
    is_whole(d, "broken templates")


def test_one_that_is_destroyed_while_it_is_loaded(d):
    template = template_of(d)
    vm = d.mctl("--json", "vm", "create", "--user", "u", "--type", "cli").json["vm"]
    with contextlib.suppress(AssertionError):  # it may run before it can be stopped
        (pid,) = wait_for(lambda: d.processes([vm["id"]]), 2, 0)
        os.kill(pid, signal.SIGSTOP)
        ends = subprocess.Popen([harness.MCTL, "--socket", d.socket, "vm", "destroy", vm["id"], "--reason", "x"])
        wait_for(lambda: d.state_of(vm["id"]) == "stopping")
        os.kill(pid, signal.SIGCONT)
        assert ends.wait(60) == 0
    end_all(d)
    assert d.state_of(vm["id"]) == "stopped"
    assert is_whole(d, "destroyed") == [] and template_of(d) == template


@pytest.mark.skipif(not IS_SOAK, reason="a matter of moments: scripts/soak-hibernate")
def test_a_daemon_that_is_told_to_stop_while_one_is_taken_from_the_pool():
    with resting(warm={"pool_cli": "1"}) as d:
        for n in range(30):
            spare(d)
            caller = threading.Thread(target=ask, args=(d, "POST", f"/api/users/u{n}/vm", {}))
            caller.start()
            time.sleep(random.random() * 0.1)
            d.stop()
            caller.join()
            d.start()
            for vm in is_whole(d, f"time {n}"):
                assert vm["user"] == "(pool)" or how(d, vm).startswith("made warm"), vm
            end_all(d)


def test_a_pool_that_cannot_be_filled_costs_no_template():
    with resting() as d:
        template = template_of(d)
        d.stop()
        users = d.state / "users"
        harness.run("mount", "--bind", users, users)
        try:
            harness.run("mount", "-o", "remount,bind,ro", users)
            d.config["warm"]["pool_cli"] = "1"
            d.start()
            failed = lambda: [v for v in d.admin("GET", "/api/vms?all=1").json["vms"] if v["user"] == "(pool)"]
            wait_for(lambda: [v["state"] for v in failed()] == ["failed"], 10)
            assert "Read-only file system" in failed()[0]["reason"]
            time.sleep(5)  # twice as long as it takes to be looked at again
            assert len(failed()) == 1 and template_of(d) == template
        finally:
            d.stop()
            harness.run("umount", users)


@pytest.mark.skipif(not IS_SOAK, reason="a template of a real guest for this alone: scripts/soak-hibernate")
def test_one_that_keeps_its_templates_ssh_keys_is_not_used(tmp_path):
    """A real guest, one of whose keys cannot be removed: it is a folder."""
    image = image_with_identity(tmp_path)
    harness.run("/usr/sbin/debugfs", "-w", "-R", "mkdir /etc/ssh/ssh_host_kept", (image / "current").resolve() / "rootfs.ext4")
    with daemon(image=image, warm={"templates": "yes", "quiet": "0.2"}) as d:
        wait_template(d)
        vm = d.create(wait=True)
        assert "; cold: identity: " in how(d, vm) and "remove the template's SSH host keys" in how(d, vm), how(d, vm)

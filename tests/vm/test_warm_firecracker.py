"""VMs in Firecracker that begin from a template: over its double, whose snapshots are Firecracker's two files. What is not
Firecracker's own is in test_warm.py, over QEMU."""

import contextlib
import os
import random
import shutil
import signal
import subprocess

import pytest

import harness
from harness import daemon, wait_for
from test_firecracker import real_binaries, root_of
from test_guest import echoes, pings
from test_warm import KILLS, OWN, crash, digests, how, image_with_identity, is_whole, sh, spare, wait_template, warm

LEAVE = "echo kept >/note; sync; mkdir -p /ram; mount -t tmpfs none /ram; echo memory >/ram/note"


@pytest.fixture(scope="module")
def templated(tmp_path_factory):
    """A daemon with a template, and a copy of that: to make one takes most of the time."""
    image = image_with_identity(tmp_path_factory.mktemp("image"))
    with daemon(start=False, image=image, vm={"cli_memory": "128", "browser_image": "/nonexistent"},  # of that type there is none
                warm={"templates": "yes", "quiet": "0.3"}) as d:
        d.use_firecracker(channel="serial")
        d.start()
        template = wait_template(d)
        d.copy = d.dir / template.name
        shutil.copytree(template, d.copy, ignore=lambda f, names: ["base.ext4"])
        os.link(template / "base.ext4", d.copy / "base.ext4")
        yield d


@pytest.fixture
def d(templated):
    yield templated
    for vm in crash.live(templated):
        templated.mctl("vm", "destroy", vm["id"], "--reason", "the test is over")
    wait_for(lambda: not crash.live(templated), 60)


@contextlib.contextmanager
def started_with(d, wrapper=(), binaries=None, faults=None, **config):
    """The daemon, started anew with another [warm]; afterwards with what it had, and its template."""
    before = dict(d.config["warm"])
    d.stop()
    d.config["warm"].update(config)
    d.use_firecracker(binaries, channel="serial", **(faults or {}))
    d.start(wrapper)
    try:
        yield
    finally:
        d.stop()
        d.config["warm"] = before
        d.use_firecracker(channel="serial")
        put_back(d)
        d.start()
        wait_template(d)


def put(d, name):
    """A copy of the template, by another name."""
    template = d.state / "templates" / name
    shutil.copytree(d.copy, template, ignore=lambda f, names: ["base.ext4"])
    os.link(d.copy / "base.ext4", template / "base.ext4")
    return template


def put_back(d):
    """It alone."""
    shutil.rmtree(d.state / "templates")
    (d.state / "templates").mkdir(mode=0o700)
    return put(d, d.copy.name)


def test_two_vms_of_one_template_are_two_machines_for_as_long_as_they_live(d):
    template = wait_template(d)
    before = digests(template)
    vms = [d.create(user=user, wait=True) for user in ("anna", "berta")]
    for vm in vms:
        assert how(d, vm).startswith(f"made warm, from template {template.name}"), how(d, vm)
        assert pings(d, vm["ip"]) and echoes(d, vm["ip"])
        assert sh(d, vm, OWN["MAC"]) == vm["mac"] and sh(d, vm, OWN["address"]) == vm["ip"] + "/16"
        assert sh(d, vm, OWN["host name"]) == vm["id"][:11] and sh(d, vm, "ls /etc/ssh") == ""
        assert {"memory", "machine.state"}.isdisjoint(os.listdir(root_of(d, vm["id"])))
        assert not (d.state / "users" / vm["id"] / "state").exists()
        sh(d, vm, LEAVE + f"; echo {vm['id']} >/own; sync")
    own = {what: [sh(d, vm, script) for vm in vms] for what, script in OWN.items()}
    for what, (first, second) in own.items():
        assert first and second and first != second, (what, first, second)
    # A daemon that was killed takes them up, and they are what they were, at rest too.
    d.stop(signal.SIGKILL)
    d.start()
    wait_template(d)
    for vm in vms:
        assert d.state_of(vm["id"]) == "running" and (d.state / "users" / vm["id"] / ".clone").exists()
        wait_for(lambda: d.admin("GET", f"/api/vms/{vm['id']}/agent").json["agent"]["state"] == "ready", 60, 0.1)
    one = vms[0]
    for how_back in ([], ["--cold"]):
        d.mctl("vm", "hibernate", one["id"])
        d.mctl("vm", "resume", one["id"], *how_back)
        assert sh(d, one, "cat /note /own") == f"kept\n{one['id']}"
        assert sh(d, one, "cat /ram/note 2>/dev/null; true") == ("" if how_back else "memory")
        assert (d.state / "users" / one["id"] / ".clone").exists() != bool(how_back)
        for what in ("MAC", "address", "host name", "machine-id"):
            assert sh(d, one, OWN[what]) == own[what][0], what
    assert sh(d, vms[1], "cat /note /own /ram/note") == f"kept\n{vms[1]['id']}\nmemory"
    assert digests(template) == before


def test_a_pool_is_taken_from(d):
    with started_with(d, pool_cli="1"):
        first = spare(d)
        assert "master" not in d.links()[d.vm(first)["tap"]]
        vm = d.create(user="anna", wait=True)
        assert vm["id"] == first and "and the pool in" in how(d, vm) and echoes(d, vm["ip"])
        assert sh(d, vm, OWN["MAC"]) == vm["mac"] and sh(d, vm, OWN["address"]) == vm["ip"] + "/16"
        d.mctl("vm", "destroy", vm["id"], "--reason", "done")


def flip(path):
    """Another byte in the middle of a block that is not zero."""
    with path.open("r+b") as f:
        at = os.lseek(f.fileno(), 0, os.SEEK_DATA) + 100
        byte = os.pread(f.fileno(), 1, at)
        os.pwrite(f.fileno(), bytes([byte[0] ^ 1]), at)


def test_what_was_changed_is_not_loaded(d):
    changes = {name: flip for name in ("ram", "state/machine.state", "overlay.ext4")}
    changes["template.json"] = lambda p: p.write_text(p.read_text().replace('"sha256": "', '"sha256": "0', 1))
    changes["ram that others may write to"] = lambda p: p.chmod(0o666)
    changes["ram of a VMM's uid"] = lambda p: os.chown(p, 12345, 0)
    with started_with(d, quiet="600"):
        d.stop()
        shutil.rmtree(put_back(d))
        changed = {name: put(d, f"cli-vm-00000000-0000-4000-8000-{n:012}") for n, name in enumerate(changes)}
        for name, template in changed.items():
            changes[name](template / name.split()[0])
        d.start()
        wait_for(lambda: warm(d)["problem"] == "none has been made yet" or warm(d)["ready"], 20)
        assert [name for name, template in changed.items() if template.exists()] == [] and not warm(d)["ready"]
        # What is changed later is refused by the VMM itself.
        d.stop()
        put_back(d)
        d.start()
        template = wait_template(d)
        flip(template / "state/machine.state")
        vm = d.create(wait=True)
        events = {e["event"]: e["reason"] for e in d.events(vm["id"])}
        assert "Failed to load snapshot state" in events["warm-failed"] and events["started"].startswith("made in "), events
        assert pings(d, vm["ip"]) and len(d.taps()) == 1 and d.folders() == [vm["id"]]
        assert not (d.state / "users" / vm["id"] / ".clone").exists() and not template.exists()
        d.mctl("vm", "destroy", vm["id"], "--reason", "done")


def writes(path, uid):
    """Whether a process of that uid can change the file, or what may be done with it."""
    words = 'echo >>"$0" || chmod u+w "$0" || chown $(id -u) "$0"'
    fd = os.open(path, os.O_PATH)  # the folders above it are root's
    with contextlib.closing(os.fdopen(fd)):
        return harness.run("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "sh", "-c", words,
                           f"/proc/self/fd/{fd}", check=False, pass_fds=[fd]).returncode == 0


def being_loaded(d):
    """The VM and the memory that its VMM loads."""
    vm = next(iter(crash.live(d)), None)
    memory = vm and d.state / "users" / vm["id"] / "root/memory"
    return (vm, memory) if memory and memory.exists() else None


def look(d, vm, memory, template):
    """What it loads is the template's, and it cannot change that."""
    uid = memory.parent.stat().st_uid
    assert os.path.samefile(memory, template / "ram") and uid > 0
    assert not writes(memory, uid) and not writes(memory.with_name("machine.state"), uid)
    assert writes(memory.with_name("overlay.ext4"), uid), "this would not notice"
    assert d.processes([vm["id"]])


def test_a_kill_while_one_is_loaded_leaves_nothing_and_nobody_can_change_the_template(d):
    with started_with(d, faults={"hang": "PUT /snapshot/load"}, quiet="600"):
        template = wait_template(d)
        before = digests(template)
        argv = [harness.MCTL, "--quiet", "--socket", d.socket, "vm", "create", "--user", "anna", "--type", "cli"]
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as caller:  # it waits until it is made
            vm, memory = wait_for(lambda: being_loaded(d), 20)
            look(d, vm, memory, template)
            d.stop(signal.SIGKILL)
            caller.wait(20)
        d.use_firecracker(channel="serial")
        d.start()
        assert d.state_of(vm["id"]) == "failed"
        assert not d.processes([vm["id"]]) and d.taps() == [] and d.folders() == [] and not crash.groups([vm["id"]])
        assert wait_template(d) == template and digests(template) == before


def test_a_kill_while_a_template_is_made_leaves_nothing(d):
    shutil.rmtree(wait_template(d))
    with started_with(d):
        begun = lambda: list((d.state / "templates").glob("*.tmp"))
        (folder,) = wait_for(begun, 60)
        vm_id = folder.name.removeprefix("cli-").removesuffix(".tmp")
        tap = "mc-warm-" + vm_id.removeprefix("vm-")[:7]
        wait_for(lambda: d.processes([vm_id]) and tap in d.links(), 20)
        assert d.admin("GET", "/api/status").json["findings"] == [], "its TAP is no left-over"
        d.stop(signal.SIGKILL)
        d.config["warm"]["templates"] = "no"
        d.start()
        assert not begun() and not crash.groups([vm_id]) and tap not in d.links()
        wait_for(lambda: not d.processes([vm_id]), 5)


def test_an_older_one_says_that_vms_start_cold(d):
    shutil.rmtree(wait_template(d))
    with started_with(d, faults={"version": "1.15.1"}):
        wait_for(lambda: "1.15.1" in (warm(d)["problem"] or ""), 30)
        assert warm(d)["problem"] == "Firecracker 1.15.1 cannot begin VMs from a template: 1.16 or newer is needed"
        assert not list((d.state / "templates").iterdir()) and not any(name.startswith("mc-warm-") for name in d.links())


@pytest.mark.skipif(real_binaries() is None, reason="there is no firecracker with its jailer in PATH or MC_FIRECRACKER")
def test_the_real_firecracker_takes_all_that_comes_before_a_load(d):
    """The template is the double's, whose state file the real one does not know: it gets as far as to read that."""
    with started_with(d, binaries=real_binaries(), quiet="600"):
        wait_template(d)
        vm = d.create()
        failed = wait_for(lambda: next((e["reason"] for e in d.events(vm["id"]) if e["event"] == "warm-failed"), None), 30)
        assert "PUT /snapshot/load (400): Load snapshot error" in failed and "snapshot state" in failed, failed
        wait_for(lambda: d.state_of(vm["id"]) in ("failed", "running"), 60)  # with KVM it starts cold


def test_kills_of_the_daemon_on_the_way(d):
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    countdown = crash.Countdown(d)
    with started_with(d, wrapper=countdown.wrapper):
        wait_template(d)
        countdown.set(0)
        vm = d.create(user="count", wait=True)
        steps = countdown.passed()
        assert steps > 20 and how(d, vm).startswith("made warm"), steps
        for number in range(KILLS // 4):
            at = rng.randrange(1, steps)
            countdown.set(at)
            harness.run(harness.MCTL, "--quiet", "--socket", d.socket, "vm", "create", "--user", f"u{number}", "--type", "cli",
                        "--wait", check=False)  # over, or it has no answer any more: it may have taken fewer steps
            died = d.process.poll() is not None
            countdown.set(0)
            d.stop(signal.SIGKILL)
            d.start(countdown.wrapper)
            wait_template(d)
            is_whole(d, f"seed {seed}, kill {number} at step {at} of {steps} ({died})", each=2)
        for vm in crash.live(d):
            d.mctl("vm", "destroy", vm["id"], "--reason", "done")

"""VMs that begin from a template: copies of one machine that has booted, and each a machine of its own. With real guests."""

import os
import random
import shutil
import signal
import sys
import time

import pytest

import harness
from harness import daemon, wait_for

sys.path.insert(0, str(harness.HERE / "tests/netns"))
import crash
from test_agent import ask
from test_guest import echoes, pings
from test_identity import start_ssh

MADE_S = 300  # a template, on a busy host
KILLS = int(os.environ.get("MC_WARM_KILLS", "4"))

OWN = {
    "MAC": "cat /sys/class/net/eth0/address",
    "address": "ip -4 addr show eth0 | awk '/inet / {print $2}'",
    "host name": "uname -n",
    "machine-id": "cat /etc/machine-id",
    "random numbers": "head -c 16 /dev/urandom | od -An -tx1",
}


def warm(d, type="cli"):
    return next(w for w in d.mctl("--json", "status").json["warm"] if w["type"] == type)


def wait_template(d, type="cli", timeout_s=MADE_S):
    def ready():
        return warm(d, type)["ready"]
    ready.__doc__ = f"a template for {type} VMs"
    wait_for(ready, timeout_s, 0.2)
    return d.state / "templates" / warm(d, type)["template"]


def sh(d, vm, script, timeout_ms=60000):
    return d.mctl("vm", "exec", "-T", vm["id"], "--", "sh", "-c", script).out.strip()


def how(d, vm):
    return next(e["reason"] for e in d.events(vm["id"]) if e["event"] == "started")


def digests(template):
    return {str(p): harness.run("sha256sum", p).stdout.split()[0] for p in template.rglob("*") if p.is_file()}


def image_with_identity(folder):
    """The tiny guest with what an image with an SSH server leaves in a template that has booted: keys, and a machine-id."""
    build = (harness.TEST_GUEST / "current").resolve()
    copy = folder / build.name
    shutil.copytree(build, copy)
    (copy / "overlay.qcow2").unlink(missing_ok=True)
    (copy / "verdict.json").unlink(missing_ok=True)
    (copy / "rootfs.ext4").chmod(0o600)
    for name, text in (("key", "the template's key\n"), ("id", "0123456789abcdef0123456789abcdef\n")):
        (folder / name).write_text(text)
    harness.run("/usr/sbin/debugfs", "-w", "-f", "-", copy / "rootfs.ext4",
                input=f"mkdir /etc/ssh\nwrite {folder}/key /etc/ssh/ssh_host_ed25519_key\nwrite {folder}/id /etc/machine-id\n")
    (copy / "rootfs.ext4").chmod(0o444)
    (folder / "current").symlink_to(build.name)
    return folder


@pytest.fixture(scope="module")
def templated(tmp_path_factory):
    """A daemon with a template, whose VMs are ended after each test."""
    with daemon(image=image_with_identity(tmp_path_factory.mktemp("image")), warm={"templates": "yes", "quiet": "0.5"}) as d:
        wait_template(d)
        yield d


@pytest.fixture
def d(templated):
    yield templated
    for vm in crash.live(templated):
        templated.mctl("vm", "destroy", vm["id"], "--reason", "the test is over")
    wait_for(lambda: not crash.live(templated), 60)
    wait_template(templated)


def test_two_vms_of_one_template_are_two_machines(d):
    template = wait_template(d)
    before = digests(template)
    vms = [d.create(user=user, wait=True) for user in ("anna", "berta")]
    for vm in vms:
        assert how(d, vm).startswith(f"made warm, from template {template.name}"), how(d, vm)
        assert pings(d, vm["ip"]) and echoes(d, vm["ip"])
        assert sh(d, vm, OWN["MAC"]) == vm["mac"] and sh(d, vm, OWN["address"]) == vm["ip"] + "/16"
        assert sh(d, vm, OWN["host name"]) == vm["id"][:11]
        assert sh(d, vm, "ls /etc/ssh") == "", "it has the template's SSH host key"
        assert sh(d, vm, OWN["machine-id"]) != "0123456789abcdef0123456789abcdef"
        assert sh(d, vm, "ip route | grep -c default") == "1"
    for what, script in OWN.items():
        first, second = (sh(d, vm, script) for vm in vms)
        assert first and second and first != second, (what, first, second)
    # What one writes, to its memory and its disk, is neither the other's nor the template's.
    for vm in vms:
        sh(d, vm, f"mkdir -p /ram; mount -t tmpfs none /ram; echo {vm['id']} >/ram/note; echo {vm['id']} >/note; sync")
    third = d.create(user="clara", wait=True)
    for vm in vms:
        assert sh(d, vm, "cat /ram/note /note").split() == [vm["id"]] * 2
    assert sh(d, third, "ls /ram /note 2>/dev/null; cat /ram/note 2>/dev/null; true") == ""
    assert digests(template) == before


def test_a_clone_can_be_put_to_rest_and_started_cold(d):
    vm = d.create(wait=True)
    sh(d, vm, "echo kept >/note; sync; mkdir -p /ram; mount -t tmpfs none /ram; echo memory >/ram/note")
    machine_id = sh(d, vm, OWN["machine-id"])
    d.mctl("vm", "hibernate", vm["id"])
    d.mctl("vm", "resume", vm["id"])
    assert sh(d, vm, "cat /note /ram/note") == "kept\nmemory" and sh(d, vm, OWN["MAC"]) == vm["mac"]
    d.mctl("vm", "hibernate", vm["id"])
    d.mctl("vm", "resume", vm["id"], "--cold")
    assert sh(d, vm, "cat /note; test ! -e /ram/note") == "kept"
    assert sh(d, vm, OWN["machine-id"]) == machine_id and sh(d, vm, OWN["address"]) == vm["ip"] + "/16"


def test_nobody_reaches_it_before_it_is_its_own_machine(d):
    """What a VM sends, and what is sent to it, passes only when it has its own address; the template's is none on the bridge."""
    vm = d.create()
    while d.state_of(vm["id"]) == "creating":
        link = d.links().get(vm["tap"])
        assert link is None or "master" not in link or vm["tap"] in crash.elements(d), link
        if link and "master" not in link:
            assert vm["tap"] not in crash.elements(d) and "UP" not in link["flags"]
    d.wait_state(vm["id"], "running", 60)
    seen = d.netns("ip", "neigh", "show", "dev", "br0").stdout
    assert all(line.split()[0] == vm["ip"] for line in seen.splitlines() if "lladdr" in line), seen


def test_another_size_starts_cold(d):
    vm = d.mctl("--json", "vm", "create", "--user", "u", "--type", "cli", "--memory", "256", "--wait").json["vm"]
    assert how(d, vm).endswith("; cold: its size is not the one that is configured for its type")


def test_a_template_that_cannot_be_loaded_is_made_anew(d):
    template = wait_template(d)
    state = template / "state/memory"
    state.write_bytes(b"\0" * 4096 + os.urandom(4096))
    vm = d.create(wait=True)
    events = {e["event"]: e["reason"] for e in d.events(vm["id"])}
    assert events["warm-failed"].startswith("memory: "), events
    assert events["started"].startswith("made in ") and "; cold: memory: " in events["started"]
    assert pings(d, vm["ip"]) and len(d.taps()) == 1 and len(d.processes()) == 1
    assert not template.exists() and not warm(d)["ready"]


def test_a_restart_finds_it_and_loads_no_other(templated):
    d = templated
    template = wait_template(d)
    other = template.with_name("cli-vm-00000000-0000-4000-8000-000000000001.tmp")
    shutil.copytree(template, other, ignore=lambda f, names: [n for n in names if n.endswith(".sock")])
    d.stop()
    d.start()
    assert wait_template(d) == template and not other.exists()
    d.stop()
    with (template / "ram").open("r+b") as ram:
        ram.seek(1 << 20)
        ram.write(b"not what it was")
    d.start()
    changed, template = template, wait_template(d)
    assert template != changed and not changed.exists(), "what was changed was loaded"
    assert "has another digest" in d.log.read_text()
    d.stop()
    d.config["vm"]["cli_memory"] = "384"
    d.start()
    wait_for(lambda: f"is another now than for {template.name}" in d.log.read_text(), 60)
    assert not template.exists()
    d.stop()
    d.config["vm"]["cli_memory"] = "512"
    d.start()


def test_two_vms_of_a_real_image_are_two_machines():
    """With systemd, whose journal lies in a folder of the machine's id, and an SSH server that is started in each."""
    with daemon(image=harness.golden_image("cli") / "cli", warm={"templates": "yes", "quiet": "0.5"}) as d:
        wait_template(d, timeout_s=900)
        vms = [d.create(user=user, wait=True) for user in ("anna", "berta")]
        for vm in vms:
            assert how(d, vm).startswith("made warm"), how(d, vm)
            assert "acpid" in ask(d, vm["id"], "unit.log", name="acpid.service", timeout_ms=60000)["text"]
            start_ssh(d, vm["id"])
            assert abs(float(sh(d, vm, "date +%s")) - time.time()) < 10
        for what, script in OWN.items():
            first, second = (sh(d, vm, script) for vm in vms)
            assert first and second and first != second, (what, first, second)
        keys = [sh(d, vm, "cat /etc/ssh/ssh_host_*_key") for vm in vms]
        assert keys[0] and keys[1] and keys[0] != keys[1]
        assert pings(d, vms[0]["ip"]) and pings(d, vms[1]["ip"])


def is_whole(d, what, each=1):
    """Each VM is whole or gone, and nothing is left over. each: how many processes its VMM is."""
    wait_for(lambda: all(v["state"] in ("running", "booting") for v in crash.live(d)), 60)
    for vm in crash.live(d):
        d.wait_state(vm["id"], "running", 60)
        assert sh(d, vm, OWN["address"]) == vm["ip"] + "/16" and sh(d, vm, OWN["MAC"]) == vm["mac"], what
    vms = crash.live(d)
    taps, ids = sorted(v["tap"] for v in vms), sorted(v["id"] for v in vms)
    assert d.taps() == taps and d.folders() == ids and len(d.processes()) == len(ids) * each, what
    wait_for(lambda: crash.elements(d) == taps, 20, 0.2)
    assert set(crash.groups(crash.all_ids(d))) <= set(ids), what
    assert not list((d.state / "templates").glob("cli-*.tmp")), what


def test_kills_of_the_daemon_on_the_way(d):
    """At steps of a warm start: each is a change that the daemon makes (die_at.c counts them)."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    countdown = crash.Countdown(d)
    d.stop()
    d.start(countdown.wrapper)
    wait_template(d)
    countdown.set(0)
    vm = d.create(user="count", wait=True)
    steps = countdown.passed()
    assert steps > 20 and how(d, vm).startswith("made warm"), steps
    for number in range(KILLS):
        at = rng.randrange(1, steps)
        countdown.set(at)
        harness.run(harness.MCTL, "--quiet", "--socket", d.socket, "vm", "create", "--user", f"u{number}", "--type", "cli",
                    "--wait", check=False)  # over, or it has no answer any more: it may have taken fewer steps
        died = d.process.poll() is not None
        countdown.set(0)
        d.stop(signal.SIGKILL)
        d.start(countdown.wrapper)
        wait_template(d)
        is_whole(d, f"seed {seed}, kill {number} at step {at} of {steps} ({died})")
    d.stop()
    d.start()


def test_a_template_that_is_half_made_is_gone():
    """The daemon dies while one boots: its VMM goes with it, its folder at the next start."""
    with daemon(warm={"templates": "yes", "quiet": "0.5"}) as d:
        begun = lambda: list((d.state / "templates").glob("*.tmp"))
        (folder,) = wait_for(begun, 60)
        vm_id = folder.name.removeprefix("cli-").removesuffix(".tmp")
        wait_for(lambda: d.processes([vm_id]), 10)
        assert f"mc-warm-{vm_id[3:10]}" in d.links()
        d.stop(signal.SIGKILL)
        wait_for(lambda: not d.processes([vm_id]), 10)
        wait_for(lambda: f"mc-warm-{vm_id[3:10]}" not in d.links(), 10)
        d.config["warm"]["templates"] = "no"
        d.start()
        assert not begun() and not crash.groups([vm_id]) and warm(d)["problem"] == "off: [warm] templates = no"
        vm = d.create(wait=True)
        assert how(d, vm).startswith("made in ") and "cold" not in how(d, vm)


def spare(d):
    """The id of the ready VM that nobody has taken yet."""
    def ready():
        return warm(d)["pool_ready"] == 1 and next((v["id"] for v in crash.live(d) if v["user"] == "(pool)"), None)
    return wait_for(ready, MADE_S, 0.2)


def test_a_pool_is_taken_from_refilled_and_in_nobodys_way():
    host_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    percent = next(p for p in range(1, 10000) if host_mib * p // 100 >= 2 * (512 + 448))  # two VMs of the usual size
    with daemon(warm={"templates": "yes", "quiet": "0.5", "pool_cli": "1"}, vm={"memory_percent": str(percent)}) as d:
        first = spare(d)
        told = d.vm(first)
        assert (told["state"], told["user"], told["reachable"]) == ("creating", "(pool)", None)
        assert told["tap"] not in crash.elements(d) and "master" not in d.links()[told["tap"]]
        assert "in pool" in d.mctl("vm", "list").out and "VMs      1 in the pool" in d.mctl("status").out
        assert "it waits in the pool" in d.mctl("vm", "why", first).out
        assert "is being made: its guest does not run yet" in d.mctl("vm", "exec", "-T", first, "--", "id", check=5).err
        vm = d.create(user="anna", wait=True)
        assert vm["id"] == first and vm["user"] == "anna" and echoes(d, vm["ip"])
        assert "and the pool in" in how(d, vm) and "taken" in {e["event"] for e in d.events(first)}
        assert sh(d, vm, OWN["MAC"]) == vm["mac"]
        second = spare(d)
        assert second != first and warm(d)["pool_wanted"] == 1
        # Another size does not come from there, and there is room for it only without the ready one.
        other = d.mctl("--json", "vm", "create", "--user", "berta", "--type", "cli", "--memory", "256").json["vm"]
        wait_for(lambda: d.state_of(second) == "stopped", 30)
        assert d.vm(second)["reason"] == "its room is wanted for another VM"
        d.wait_state(other["id"], "running", 120)
        assert warm(d)["pool_ready"] == 0
        d.mctl("vm", "destroy", other["id"], "--reason", "x")
        third = spare(d)
        d.stop(signal.SIGKILL)
        d.start()
        assert d.state_of(third) == "failed" and "waited in the pool" in d.vm(third)["reason"]
        assert spare(d) != third and d.state_of(vm["id"]) == "running"

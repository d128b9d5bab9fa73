"""The Firecracker driver: what goes wrong at each step is told in words, and what a crash cuts off goes on. Over the double of
tests/vm/fc_double, and over the real Firecracker where one is found (PATH, or MC_FIRECRACKER: a folder with firecracker and
jailer)."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

import harness
from harness import daemon, run, wait_for

sys.path.insert(0, str(harness.FC_DOUBLE))
import pack

BOOT_S = 90
STEPS = ["GET /version", "PUT /logger", "PUT /metrics", "PUT /machine-config", "PUT /boot-source", "PUT /drives/rootfs",
         "PUT /drives/overlay", "PUT /network-interfaces/eth0", "PUT /entropy", "PUT /vsock", "PUT /actions"]


def firecracker(start=True, faults=None, binaries=None, **config):
    d = daemon(start=False, **config)

    class With:
        def __enter__(self):
            made = d.__enter__()
            made.use_firecracker(binaries, **(faults or {}))
            return made.start() if start else made

        def __exit__(self, *args):
            return d.__exit__(*args)
    return With()


def fails(d):
    vm = d.create()
    d.wait_state(vm["id"], "failed", 60)
    assert d.taps() == [] and d.processes() == [] and d.folders() == []
    return d.vm(vm["id"])["reason"]


def evidence(d, vm_id):
    return d.state / "evidence" / vm_id


def root_of(d, vm_id):
    return d.state / "users" / vm_id / "root"


@pytest.mark.parametrize("step", STEPS)
def test_a_refusal_is_told_with_its_step_and_firecrackers_words(step):
    with firecracker(faults={"refuse": {step: "Some error: the double says no"}}) as d:
        assert f"Firecracker refused {step} (400): Some error: the double says no" in fails(d)


def test_a_vmm_that_dies_or_does_not_start_is_told():
    for faults, words in (({"die": "PUT /vsock"}, "exit status 148"), ({"die": "start"}, "the double was told to die")):
        with firecracker(faults=faults) as d:
            assert words in fails(d)


def test_an_old_version_is_refused():
    with firecracker(faults={"version": "1.9.1"}) as d:
        assert "version is 1.9.1" in fails(d)


def test_a_hanging_vmm_keeps_nobody_waiting_and_can_be_destroyed():
    with firecracker(faults={"hang": "PUT /boot-source"}) as d:
        vm = d.create()
        began = time.monotonic()
        assert d.get("/health").status == 200 and d.state_of(vm["id"]) == "booting"
        assert time.monotonic() - began < 5
        assert d.mctl("--json", "vm", "destroy", vm["id"], "--reason", "hangs").json["vm"]["state"] == "stopped"
        assert d.taps() == [] and d.processes() == [] and d.folders() == []


def test_a_tap_that_somebody_holds_is_told():
    """Firecracker opens the TAP itself, by name: who came first has it."""
    with firecracker(faults={"delay_s": 0.3}) as d:
        vm = d.create()
        holder = subprocess.Popen(["nsenter", f"--net=/run/netns/{d.name}", "/usr/bin/python3", "-c", f"""
import fcntl, os, struct, sys, time
fd = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(fd, 0x400454ca, struct.pack("16sH22x", {vm["tap"]!r}.encode(), 0x5002))
print("held", flush=True)
sys.stdin.read()
"""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert holder.stdout.readline() == "held\n"
            d.wait_state(vm["id"], "failed", 60)
            reason = d.vm(vm["id"])["reason"]
            assert "PUT /network-interfaces/eth0" in reason and "busy" in reason and "mctl doctor" in reason
        finally:
            holder.communicate("")


def test_it_goes_on_where_a_crash_of_the_daemon_cut_it_off():
    """Three VMs, each at another step when the daemon is killed."""
    with firecracker(faults={"delay_s": 0.25}, vm={"cli_memory": "128"}) as d:
        made = []
        for user in ("a", "b", "c"):
            made.append(d.create(user=user)["id"])
            time.sleep(0.8)
        d.stop(signal.SIGKILL)
        time.sleep(0.5)
        d.start()
        for vm_id in made:
            d.wait_state(vm_id, "running", BOOT_S)
            log = (d.state / "users" / vm_id / "vmm.log").read_text()
            assert log.count("InstanceStart") == 1 and "PUT /metrics" in log


def test_the_machine_is_what_the_record_says_and_lies_where_only_its_vmm_reaches():
    with firecracker(vm={"cli_memory": "160"}) as d:
        vm = d.create(wait=True)
        assert vm["vmm"] == "firecracker" and vm["state"] == "running"
        folder, root = d.state / "users" / vm["id"], root_of(d, vm["id"])
        config = json.loads((folder / "vm-config.json").read_text())
        assert config["network-interfaces"] == [{"iface_id": "eth0", "guest_mac": vm["mac"], "host_dev_name": vm["tap"]}]
        assert config["machine-config"] == {"vcpu_count": 1, "mem_size_mib": 160}
        for drive in config["drives"]:
            assert os.path.exists(drive["path_on_host"])
        assert folder.stat().st_mode & 0o777 == 0o700 and folder.stat().st_uid == 0
        uid = root.stat().st_uid
        assert uid >= 1879048192 and root.stat().st_mode & 0o777 == 0o700
        assert (root / "overlay.ext4").stat().st_uid == uid
        base = (root / "base.ext4").stat()
        assert base.st_uid == 0 and base.st_mode & 0o222 == 0
        assert "Firecracker in its jailer" in d.mctl("status").out
        processes = d.processes()
        assert processes
        for pid in processes:
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
            assert f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n" in status and "NoNewPrivs:\t1" in status
            assert "CapEff:\t0000000000000000" in status


def test_a_clone_costs_no_copy():
    with firecracker() as d:
        vm = d.create()
        root = root_of(d, vm["id"])
        image = harness.TEST_GUEST / "current/rootfs.ext4"
        assert (root / "base.ext4").stat().st_ino == image.stat().st_ino, "the image was copied"
        overlay = (root / "overlay.ext4").stat()
        assert overlay.st_size >= 64 << 20 and overlay.st_blocks * 512 < 1 << 20


def blocks_of(path):
    """Blocks of 4096 bytes that a file shares with others, and those of its own."""
    shared = own = 0
    for line in run("filefrag", "-v", path).stdout.splitlines():
        parts = [part.strip() for part in line.split(":")]
        if parts[0].isdigit() and "unwritten" not in parts[-1]:
            shared, own = (shared + int(parts[3]), own) if "shared" in parts[-1] else (shared, own + int(parts[3]))
    return shared, own


@contextlib.contextmanager
def on_xfs(d):
    """The daemon's state folder, and its image, on a file system that shares blocks between files."""
    disk = d.dir / "disk"
    with disk.open("wb") as f:
        f.truncate(600 << 20)
    run("mkfs.xfs", "-q", "-m", "reflink=1", disk)
    d.state.mkdir()
    run("mount", "-o", "loop", disk, d.state)
    try:
        run("cp", "-a", "--sparse=always", harness.TEST_GUEST, d.state / "image")
        d.config["image"]["directory"] = d.state / "image"
        yield
    finally:
        d.stop()
        run(*d.command("--remove"), check=False, timeout=60)
        run("umount", d.state)


def test_a_clone_shares_its_blocks_where_the_file_system_can():
    if run("mkfs.xfs", "-V", check=False).returncode or "xfs" not in pathlib.Path("/proc/filesystems").read_text():
        pytest.skip("no XFS here")
    with firecracker(start=False) as d, on_xfs(d):
        image = d.state / "image/current/rootfs.ext4"
        before = hashlib.sha256(image.read_bytes()).hexdigest()
        d.start()
        vm = d.create(wait=True)
        root = root_of(d, vm["id"])
        assert not (root / "base.ext4").exists() and not (root / "overlay.ext4").exists()
        assert (root / "disk.ext4").stat().st_ino != image.stat().st_ino
        drives = json.loads((d.state / "users" / vm["id"] / "vm-config.json").read_text())["drives"]
        assert [drive["is_read_only"] for drive in drives] == [False]
        # What the guest writes is its own, and all that it costs.
        write = "dd if=/dev/urandom of=/big bs=64k count=16 conv=fsync && sync"
        d.mctl("vm", "exec", vm["id"], "--", "/bin/sh", "-c", write)
        assert hashlib.sha256(image.read_bytes()).hexdigest() == before
        with (root / "disk.ext4").open("rb+") as f:
            os.fsync(f.fileno())
        shared, own = blocks_of(root / "disk.ext4")
        assert shared * 4096 > 2 << 20 and 1 << 20 <= own * 4096 < 4 << 20, (shared, own)
        d.mctl("vm", "destroy", vm["id"], "--reason", "done")


def test_metrics_are_evidence():
    """No path: the counters say that the guest spoke, or that it did not."""
    with firecracker(vm={"cli_port": "9", "cli_boot_timeout": "20"}) as d:
        vm = d.create()
        d.wait_state(vm["id"], "failed", BOOT_S)
        assert "frames from the guest" in d.vm(vm["id"])["reason"]
        lines = (evidence(d, vm["id"]) / "metrics.json").read_text().splitlines()
        assert sum(json.loads(line)["net"]["tx_packets_count"] for line in lines) > 0


def test_what_it_writes_is_bounded():
    """Metrics come once a minute for as long as a VM lives: the oldest go, and what is left stays where it is."""
    with firecracker() as d:
        vm = d.create()
        path = d.state / "users" / vm["id"] / "metrics.json"
        with path.open("r+b") as f:
            f.write(b"x" * (20 << 20) + b"the last line\n")
        wait_for(lambda: path.stat().st_blocks * 512 <= 8 << 20, 20)
        assert path.stat().st_size == (20 << 20) + 14 and path.read_bytes().endswith(b"xthe last line\n")


def test_without_the_jailer_it_sees_no_more():
    """The driver's own view of the files takes the jailer's place."""
    with firecracker(start=False) as d:
        d.config["vm"]["jailer"] = "no"
        d.start()
        vm = d.create(wait=True)
        assert vm["state"] == "running" and "Firecracker without jailer" in d.mctl("status").out
        root = root_of(d, vm["id"])
        assert not root.is_symlink()
        for pid in d.processes():
            assert "NoNewPrivs:\t1" in pathlib.Path(f"/proc/{pid}/status").read_text()
            seen = os.listdir(f"/proc/{pid}/root/")
            assert "usr" in seen and not {"home", "root", "tmp", "run", "sys"} & set(seen)
        d.mctl("vm", "destroy", vm["id"], "--reason", "done")
        assert d.taps() == [] and d.processes() == [] and d.folders() == []


# ---- hibernation: what goes wrong, and a start that is not the first. The rest is in test_hibernate.py. ----

MEMORY = "mkdir -p /mnt; mount -t tmpfs none /mnt; echo memory >/mnt/file; echo kept >/root-file; sync"
FOUND = "echo $(cat /root-file) $(cat /mnt/file 2>/dev/null)"


def runs_in(d, vm_id, words):
    return d.mctl("vm", "exec", "-T", vm_id, "--", "/bin/sh", "-c", words).out.strip()


def refused(d, vm_id, verb, status, code, *words):
    """What its answer's detail and hint say, and that nothing was lost by it."""
    r = d.admin("POST", f"/api/vms/{vm_id}/{verb}")
    assert (r.status, r.json["code"]) == (status, code), r.json
    for word in words:
        assert word in r.json["detail"] + r.json["hint"], r.json
    assert not {"memory", "machine.state"} & set(os.listdir(root_of(d, vm_id)))
    if verb == "resume":
        assert d.state_of(vm_id) == "hibernated" and d.taps() == [] and d.processes() == []
        assert (d.state / "users" / vm_id / "saved" / "saved.json").exists()


def test_a_snapshot_that_is_refused_loses_nothing_and_a_cold_start_finds_the_disk():
    says = "Some error: the double says no"
    faults = {"channel": "serial", "refuse_once": {"PUT /snapshot/create": says}}
    with firecracker(faults=faults, vm={"cli_memory": "128"}) as d:
        vm_id = d.create(wait=True)["id"]
        runs_in(d, vm_id, MEMORY)
        refused(d, vm_id, "hibernate", 503, "vmm.refused", "save its memory", "PUT /snapshot/create (400): " + says)
        d.wait_state(vm_id, "running")
        wait_for(lambda: d.admin("GET", f"/api/vms/{vm_id}/agent").json["agent"]["state"] == "ready", BOOT_S, 0.2)
        assert runs_in(d, vm_id, FOUND) == "kept memory" and not (d.state / "users" / vm_id / "saved.tmp").exists()
        d.mctl("vm", "hibernate", vm_id)
        saved = d.state / "users" / vm_id / "saved"
        manifest = json.loads((saved / "saved.json").read_text())
        assert manifest["version"].startswith("1.17") and set(manifest["files"]) == {"memory", "machine.state"}
        assert manifest["files"]["memory"]["bytes"] == 128 << 20 and list(manifest["disks"]) == ["root/overlay.ext4"]
        d.use_firecracker(channel="serial", version="1.16.0")
        refused(d, vm_id, "resume", 409, "vmm.other-version", "1.17", "this is Firecracker 1.16.0", "--cold")
        d.use_firecracker(channel="serial", refuse={"PUT /snapshot/load": says})
        refused(d, vm_id, "resume", 503, "vmm.refused", "PUT /snapshot/load (400): " + says, "--cold")
        d.use_firecracker(channel="serial", die="start")
        refused(d, vm_id, "resume", 503, "vmm.lost", "has ended", "the double was told to die", "--cold")
        d.use_firecracker(channel="serial")
        assert runs_in(d, vm_id, FOUND) == "kept memory"
        d.mctl("vm", "hibernate", vm_id)
        # Another name of its program is another place of its files.
        other = pack.pack(d.dir / "bin/firecracker-1.11", channel="serial", version="1.11.0")
        d.stop()
        d.config["vm"]["firecracker_binary"] = other
        d.start()
        d.mctl("vm", "resume", vm_id, "--cold")
        assert runs_in(d, vm_id, FOUND) == "kept"
        assert f"/{other.name}/" in str(root_of(d, vm_id).resolve())
        refused(d, vm_id, "hibernate", 409, "vmm.other", "1.12 or newer")
        d.wait_state(vm_id, "running")
        d.mctl("vm", "destroy", vm_id, "--reason", "done")
        assert (evidence(d, vm_id) / "vmm.log.1").exists() and d.folders() == [] and d.taps() == []


# ---- what is chosen ----

def test_which_vmm_and_why():
    with daemon(start=False) as d:
        d.config["vm"].update(vmm="firecracker", firecracker_binary="/nonexistent/firecracker")
        r = run(*d.command("--check"), check=False)
        assert r.returncode == 1 and "there is no Firecracker at /nonexistent/firecracker" in r.stderr
        r = run(*d.command("--vmm", "qemu", "--check"), check=False)
        assert "VMM: QEMU" in r.stdout
        d.use_firecracker()
        d.config["vm"]["jailer_binary"] = "/nonexistent/jailer"
        r = run(*d.command("--check"), check=False)
        assert r.returncode == 1 and "there is no jailer at /nonexistent/jailer" in r.stderr
        d.config["vm"]["jailer"] = "auto"
        assert "VMM: Firecracker without jailer" in run(*d.command("--check"), check=False).stdout
        assert run(*d.command("--vmm", "bochs", "--check"), check=False).returncode == 1


# ---- the real one ----

def real_binaries():
    folder = os.environ.get("MC_FIRECRACKER") or os.path.dirname(shutil.which("firecracker") or "")
    return pathlib.Path(folder) if folder and (pathlib.Path(folder) / "jailer").exists() else None


@pytest.mark.skipif(real_binaries() is None, reason="there is no firecracker with its jailer in PATH or MC_FIRECRACKER")
def test_the_real_firecracker_takes_every_request():
    """Up to InstanceStart, which needs KVM: with the TAP attached by its name."""
    with firecracker(binaries=real_binaries()) as d:
        vm = d.create()
        def told():
            """Firecracker was told to start the machine"""
            logs = [*d.state.glob("users/*/vmm.log"), *d.state.glob("evidence/*/vmm.log")]
            return logs and "InstanceStart" in logs[0].read_text() and logs[0].read_text()
        log = wait_for(told, 60, 0.1)
        before = log[:log.index("InstanceStart")]
        assert "Error" not in before, before
        assert before.count("204 No Content") >= len(STEPS) - 3
        wait_for(lambda: d.state_of(vm["id"]) != "creating", 10)
        wait_for(lambda: "InstanceStart" not in told().splitlines()[-1], 20)  # it has an answer
        if "Error" in told():
            d.wait_state(vm["id"], "failed", 20)
            assert "PUT /actions" in d.vm(vm["id"])["reason"]
            return
        # This KVM makes a machine, whatever becomes of its guest.
        for state in ("Paused", "Resumed"):
            with contextlib.closing(harness.UnixConnection(str(root_of(d, vm["id"]) / "api.sock"), 20)) as c:
                c.request("PATCH", "/vm", json.dumps({"state": state}), {"Content-Type": "application/json"})
                assert c.getresponse().status == 204, state
        d.mctl("vm", "destroy", vm["id"], "--reason", "done")
        assert d.taps() == [] and d.processes() == [] and d.folders() == []


@pytest.mark.skipif(real_binaries() is None, reason="there is no firecracker with its jailer in PATH or MC_FIRECRACKER")
def test_the_real_firecracker_takes_all_that_comes_before_a_load():
    """The memory is the double's, whose state file the real one does not know: it gets as far as to read that."""
    with firecracker(faults={"channel": "serial"}, vm={"cli_memory": "128"}) as d:
        vm_id = d.create(wait=True)["id"]
        d.mctl("vm", "hibernate", vm_id)
        d.stop()
        d.use_firecracker(real_binaries())
        d.start()
        refused(d, vm_id, "resume", 503, "vmm.refused", "PUT /snapshot/load (400): Load snapshot error", "snapshot state", "--cold")
        log = (d.state / "users" / vm_id / "vmm.log").read_text()
        before, _, after = log.partition('"/snapshot/load"')
        assert '"/metrics"' in before and "Error" not in before and "Error" in after, log

"""mctl image verify --boot on the tiny guest, and on copies of it that misbehave: what does not work is named, and
nothing is left, whatever ends the check. The real images have their turn in test_image_boot_golden.py."""

import json
import os
import pathlib
import signal
import subprocess
import time

import pytest

from harness import MCTL, TEST_GUEST, run, wait_for

CURRENT = TEST_GUEST / "current"


def variant(tmp_path, word="", init=None):
    """A copy of the tiny guest's image with a word for its init (tests/vm/guest/init), or with lines put into that."""
    folder = tmp_path / "image"
    run("cp", "-r", "--sparse=always", CURRENT.resolve(), folder)
    put = []
    if word:
        (tmp_path / "word").write_text(word + "\n")
        put += ["rm /etc/mc-test", f"write {tmp_path / 'word'} /etc/mc-test"]
    if init:
        text = run("debugfs", "-R", "cat /sbin/init", folder / "rootfs.ext4").stdout
        (tmp_path / "init").write_text(text.replace("respawn acpid", init + "\nrespawn acpid", 1))
        put += ["rm /sbin/init", f"write {tmp_path / 'init'} /sbin/init", "sif /sbin/init mode 0100755"]
    if put:
        (folder / "rootfs.ext4").chmod(0o600)
        run("debugfs", "-w", "-f", "-", folder / "rootfs.ext4", input="\n".join(put) + "\n")
    return folder


def boot(folder, *options, check=None):
    r = run(MCTL, "--json", "image", "verify", "--boot", "--quick", *options, folder, check=False, timeout=300)
    assert r.returncode == check, (r.returncode, r.stdout[-3000:], r.stderr[-2000:])
    return json.loads(r.stdout)


def failures(report):
    return {f["id"]: f["title"] for f in report["findings"] if f["role"] == "failure"}


def state_of_the_host():
    """What a check could leave here, as far as no other test's doing is in it; and what it could do to the image."""
    mounts = [line for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()
              if " - tmpfs scratch " in line or str(TEST_GUEST) in line]
    image = [(p.name, p.stat().st_size, p.stat().st_mtime_ns, p.stat().st_nlink) for p in sorted(CURRENT.iterdir())]
    return mounts, image, [n for n in os.listdir("/sys/class/net") if n == "br0" or n.startswith("fc-vm-")]


def vmms_of(pid):
    """Processes below one, whatever namespace they are in."""
    found, todo = [], [pid]
    while todo:
        at = todo.pop()
        try:
            children = pathlib.Path(f"/proc/{at}/task/{at}/children").read_text().split()
        except OSError:
            continue
        todo += [int(c) for c in children]
        found += [int(c) for c in children]
    return found


def is_alive(pid):
    try:
        return "Z" not in pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def test_a_good_image():
    before = state_of_the_host()
    report = boot(CURRENT, check=0)
    facts = report["boot"]
    assert report["good"] and failures(report) == {}
    stages = facts["stages_ms"]
    assert 0 <= stages["console"] <= stages["agent"] and 0 <= stages["network"]
    assert stages["desktop"] is None and stages["window"] is None
    assert facts["address"] == "192.168.1.2/16"
    assert 0 < facts["guest_ms"]["agent"] and 0 < facts["memory"]["available_bytes"] < facts["memory"]["bytes"] < 512 << 20
    assert facts["shutdown_ms"] >= 0 and facts["ended"] == "exit status 0"
    assert any("reboot: Power down" in line for line in facts["console_tail"])
    assert state_of_the_host() == before


def test_in_words():
    r = run(MCTL, "image", "verify", "--boot", "--quick", CURRENT)
    assert "the agent answers" in r.stdout and "from its power button to its end" in r.stdout
    assert r.stdout.splitlines()[-1].startswith(f"{CURRENT}: good")
    assert r.stderr == ""


def test_panic(tmp_path):
    report = boot(variant(tmp_path, "panic"), check=1)
    found = failures(report)
    assert set(found) == {"boot.panic"}
    assert "Kernel panic - not syncing: sysrq" in found["boot.panic"] and report["boot"]["console_tail"]
    assert all(f["breaks"] and f["mend"] for f in report["findings"])


def test_ends_by_itself(tmp_path):
    found = failures(boot(variant(tmp_path, "poweroff"), check=1))
    assert set(found) == {"boot.ended"} and "by itself" in found["boot.ended"]


def test_no_agent(tmp_path):
    report = boot(variant(tmp_path, "no-agent"), check=1)
    assert set(failures(report)) == {"boot.agent"}
    assert report["boot"]["stages_ms"]["network"] is not None
    assert report["boot"]["shutdown_ms"] is not None, "it is ended in order all the same"


def test_no_agent_in_the_manifest(tmp_path):
    folder = variant(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["agent"]
    (folder / "manifest.json").chmod(0o600)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = failures(boot(folder, check=1))
    assert set(found) == {"boot.agent"} and "manifest" in found["boot.agent"]


def test_link_down(tmp_path):
    """The agent tells, though no packet arrives."""
    report = boot(variant(tmp_path, "no-link"), check=1)
    found = failures(report)
    assert "boot.path" in found and "192.168.1.2" in found["boot.path"]
    assert "boot.agent" not in found and report["boot"]["memory"]["bytes"] > 0


def test_another_mask(tmp_path):
    """The incident's: a /24 on a bridge of /16, from which the gateway is out of reach."""
    folder = variant(tmp_path, init="ip addr flush dev eth0; ip addr add 192.168.1.2/24 dev eth0")
    found = failures(boot(folder, check=1))
    assert "192.168.1.2/24 on eth0" in found["boot.address"] and "192.168.1.2/16" in found["boot.address"]
    assert "boot.path" in found and "boot.route" in found


def test_two_addresses(tmp_path):
    """All works, and yet it is not what it was given."""
    found = failures(boot(variant(tmp_path, init="ip addr add 10.9.8.7/24 dev eth0"), check=1))
    assert set(found) == {"boot.address"} and "10.9.8.7/24" in found["boot.address"]


def test_deaf_to_its_power_button(tmp_path):
    report = boot(variant(tmp_path, init="acpid() { sleep 100000; }"), check=1)
    assert set(failures(report)) == {"boot.shutdown"} and report["boot"]["shutdown_ms"] is None


def test_kernel_is_none(tmp_path):
    folder = variant(tmp_path)
    (folder / "vmlinuz").chmod(0o600)
    (folder / "vmlinuz").write_bytes(bytes((folder / "vmlinuz").stat().st_size))
    found = failures(boot(folder, check=1))
    assert "boot.vmm" in found or "boot.silent" in found, found


def test_what_cannot_be_booted(tmp_path):
    folder = variant(tmp_path)
    (folder / "initrd.img").unlink()
    found = failures(boot(folder, check=1))
    assert "boot.impossible" in found and "initrd.img" in found["boot.impossible"]
    run("cp", "--sparse=always", folder / "rootfs.ext4", tmp_path / "alone.ext4")
    assert "boot.impossible" in failures(boot(tmp_path / "alone.ext4", "--type", "cli", check=1))
    r = run(MCTL, "image", "verify", "--boot", tmp_path / "nothing", check=False)
    assert r.returncode == 4
    r = run(MCTL, "image", "verify", "--timeout", "5", CURRENT, check=False)
    assert r.returncode == 2 and "--boot" in r.stderr


@pytest.mark.parametrize("sig, after_s", [(signal.SIGINT, 0), (signal.SIGTERM, 2), (signal.SIGKILL, 1)])
def test_nothing_is_left(sig, after_s):
    before = state_of_the_host()
    p = subprocess.Popen([MCTL, "image", "verify", "--boot", "--quick", CURRENT], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True, start_new_session=True)

    def qemu():
        """a VMM runs"""
        pids = vmms_of(p.pid)
        return pids if any("qemu" in pathlib.Path(f"/proc/{q}/cmdline").read_text(errors="replace") for q in pids if is_alive(q)) else None

    pids = wait_for(qemu, 30)
    assert len(pids) >= 2
    time.sleep(after_s)
    if sig == signal.SIGKILL:
        p.kill()
    else:
        os.killpg(p.pid, sig)  # as a terminal does
    out, err = p.communicate(timeout=20)
    assert p.returncode == (-9 if sig == signal.SIGKILL else 128 + sig)
    assert out == "" and ("ended by signal" in err or sig == signal.SIGKILL)
    wait_for(lambda: not any(is_alive(q) for q in pids), 20)
    assert state_of_the_host() == before


def test_without_root(tmp_path):
    """In a user namespace where the host allows it; where not, that is what it says."""
    folder = variant(tmp_path)
    tmp_path.chmod(0o755)
    for p in [*tmp_path.parents][:3]:
        if p.owner() == "root" and p != pathlib.Path("/tmp"):
            p.chmod(0o755)
    for p in folder.iterdir():
        p.chmod(0o644)
    r = run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", MCTL, "--json", "image", "verify", "--boot",
            "--quick", folder, check=False, timeout=300)
    said = json.loads(r.stdout)
    if r.returncode == 5:
        assert said["error"]["code"] in ("sandbox.refused", "network.no-permission") and "root" in said["error"]["hint"]
    else:
        assert r.returncode == 0 and said["good"] and said["boot"]["ended"] == "exit status 0", said

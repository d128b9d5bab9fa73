"""Each way in which a VM can end has its state, its reason, a cause where one can be known, and sealed evidence."""

import hashlib
import json
import os
import pathlib
import signal
import stat

import pytest

import harness
from harness import daemon, idle, run, wait_for

BOOT_S = 120


def evidence(d, vm_id):
    """The sealed folder, checked: read-only, complete, and as its digests say."""
    folder = d.state / "evidence" / vm_id
    summary = json.loads((folder / "summary.json").read_text())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o500 and folder.stat().st_uid == 0
    there = {p.name for p in folder.iterdir()}
    assert set(summary["files"]) == there - {"summary.json"}
    for name, said in summary["files"].items():
        data = (folder / name).read_bytes()
        assert said == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}, name
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o400, name
    assert there >= {"console.log", "vm-config.json", "vmm.log", "story.txt", "doctor.json", "network.json"}, there
    network = json.loads((folder / "network.json").read_text())
    vm = d.vm(vm_id)
    assert [link["name"] for link in network["links"]] == [vm["tap"]]
    assert {e["set"] for e in network["elements"]} >= {"vm_macs", "vm_addresses"}
    assert network["fdbs"] and network["rules"] and network["routes"]
    case = run(harness.MCTL, "--json", "doctor", "--from", folder / "doctor.json", check=False)
    assert json.loads(case.stdout)["schema"] == "doctor/1"
    story = (folder / "story.txt").read_text()
    assert vm_id in story and vm["reason"][:60] in story and "\x1b" not in story
    assert d.folders() == [] and d.taps() == [] and d.processes() == []
    return summary


def why(d, vm_id):
    return d.mctl("vm", "why", vm_id).out


@pytest.mark.parametrize("word, code, words", [
    ("panic", "guest.panic", "sysrq triggered crash"),
    ("oom", "guest.oom", "256 MiB were too few"),
    ("poweroff", "guest.power-off", "shut itself down"),
])
def test_a_guest_that_ends(word, code, words):
    with daemon(image=harness.guest_image(word), vm={"cli_memory": "256"}) as d:
        vm = d.create()
        d.wait_state(vm["id"], "failed", BOOT_S)
        summary = evidence(d, vm["id"])
        assert summary["cause"]["code"] == code and words in summary["cause"]["words"]
        assert summary["vmm_exit"] == {"status": 0, "signal": None} and summary["state"] == "failed"
        assert words in why(d, vm["id"]) and code in why(d, vm["id"]) and words in d.vm(vm["id"])["reason"]
        assert [e["event"] for e in summary["events"]][:2] == ["claimed", "started"]


def test_destroyed():
    with daemon() as d:
        vm = d.create(wait=True)
        d.mctl("vm", "destroy", vm["id"], "--reason", "nobody needs it")
        summary = evidence(d, vm["id"])
        assert summary["state"] == "stopped" and summary["reason"] == "nobody needs it" and summary["cause"] is None
        assert "uid 0" in summary["actor"] and "nobody needs it" in why(d, vm["id"])


@pytest.mark.parametrize("sig, code", [(signal.SIGKILL, "vmm.killed"), (signal.SIGSEGV, "vmm.crashed"),
                                       (signal.SIGSYS, "vmm.sandbox")])
def test_a_vmm_that_is_killed(sig, code):
    with idle() as d:
        vm = d.create()
        os.kill(d.processes()[0], sig)
        d.wait_state(vm["id"], "failed")
        summary = evidence(d, vm["id"])
        assert summary["cause"]["code"] == code and summary["vmm_exit"] == {"status": None, "signal": int(sig)}


def test_a_boot_that_is_late():
    with idle(vm={"cli_boot_timeout": "1", "probe_timeout": "0.3"}) as d:
        vm = d.create()
        d.wait_state(vm["id"], "failed")
        summary = evidence(d, vm["id"])
        assert "not reachable within 1 s" in summary["reason"] and summary["last_state"] == "booting"


def memory_group(pid):
    for line in pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            return next(p for p in pathlib.Path("/sys/fs/cgroup/memory").glob("**" + path) if p.is_dir())
    pytest.skip("no memory controller of version 1 here")


def test_the_host_kills_for_memory():
    """The limit is pulled below what the VMM has: the kernel ends it, and its count tells."""
    with daemon() as d:
        vm = d.create(wait=True)
        pid = d.processes()[0]
        group = memory_group(pid)
        assert int((group / "memory.limit_in_bytes").read_text()) >= 512 << 20
        os.kill(pid, signal.SIGSTOP)
        for _ in range(20):
            try:
                (group / "memory.limit_in_bytes").write_text(str(8 << 20))
                break
            except OSError:  # busy: as much as could be reclaimed is
                pass
        os.kill(pid, signal.SIGCONT)
        try:
            wait_for(lambda: "oom_kill 0" not in (group / "memory.oom_control").read_text(), 20)
        except (OSError, AssertionError):
            if d.state_of(vm["id"]) == "running":
                pytest.skip("this kernel does not let a limit fall below what is used")
        d.wait_state(vm["id"], "failed", 60)
        assert evidence(d, vm["id"])["cause"]["code"] == "host.oom"


def test_evidence_and_records_are_not_kept_for_ever():
    with idle(vm={"evidence_days": "1", "evidence_megabytes": "1"}, store={"keep_days": "1"}) as d:
        ids = [d.create(user=f"u{i}")["id"] for i in range(4)]
        big = d.state / "users" / ids[3] / "console.log"
        big.write_bytes(os.urandom(2 << 20))
        for i in ids:
            d.mctl("vm", "destroy", i, "--reason", "x")
        old = d.state / "evidence" / ids[0]
        os.utime(old, (1, 1))
        d.stop()
        run("/usr/bin/python3", "-c", "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1])\n"
            "c.execute('update vm set state_since_ms=5 where id=?', (sys.argv[2],))\nc.commit()",
            d.state / "master-controller.db", ids[0])
        d.start()
        # The first is too old; the last alone is more than may be kept, and so goes too with all that is older.
        wait_for(lambda: not list((d.state / "evidence").iterdir()), 20)
        wait_for(lambda: d.mctl("vm", "show", ids[0], check=None).status == 4, 20)
        assert d.mctl("vm", "show", ids[1]).status == 0
        assert "not there any more" in why(d, ids[1])

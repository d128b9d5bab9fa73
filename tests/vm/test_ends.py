"""Each way in which a VM can end has its state, its reason, a cause where one can be known, and sealed evidence."""

import hashlib
import json
import os
import shutil
import signal
import stat
import time

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
        assert [e["evidence"] for e in d.events(vm["id"])][-2:] == [None, f"evidence/{vm['id']}"]


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


def test_the_host_kills_for_memory():
    """A VMM that comes to its control group's limit is ended by the kernel, whose count tells; the host is well."""
    with idle(start=False, vm={"cli_memory": "128"}) as d:
        shutil.copy(harness.BUILD / "tests/vm/hungry-vmm", d.dir / "idle-vmm")
        d.start()
        if " memory " not in d.log.read_text():
            pytest.skip("no memory controller here")
        vm = d.create()
        d.wait_state(vm["id"], "failed", 60)
        summary = evidence(d, vm["id"])
        assert summary["cause"]["code"] == "host.oom" and summary["vmm_exit"]["signal"] == 9
        assert 128 << 20 < summary["memory_peak_bytes"] < 800 << 20
        assert "memory limit of a VM of 128 MiB" in why(d, vm["id"])


def test_many_at_once_each_with_its_evidence():
    """More than the doctor is asked about one by one: they share a snapshot that was begun after their ends."""
    with idle(vm={"memory_percent": "1000"}) as d:
        ids = [d.create(user=f"u{i}")["id"] for i in range(24)]
        for pid in d.processes():
            os.kill(pid, signal.SIGKILL)
        for i in ids:
            d.wait_state(i, "failed", 60)
        for i in ids:
            assert evidence(d, i)["cause"]["code"] == "vmm.killed"
        shared = {(d.state / "evidence" / i / "doctor.json").stat().st_nlink for i in ids}
        assert max(shared) > 1, "each has one of its own: then nothing was shared"
        assert {p.name for p in (d.state / "evidence").iterdir()} == set(ids)


def test_what_ended_without_a_controller_has_its_evidence_too():
    with idle() as d:
        ids, pids = [d.create(user=f"u{i}")["id"] for i in range(3)], d.processes()
        d.stop(signal.SIGKILL)
        (d.state / "evidence/.doctor.json").write_text("of one that was killed")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
        d.start()
        for i in ids:
            assert d.state_of(i) == "failed" and evidence(d, i)["vmm_exit"] is None
        assert {p.name for p in (d.state / "evidence").iterdir()} == set(ids)


def test_the_story_names_what_lies_beside_it():
    with idle() as d:
        vm = d.create()
        d.stop()
        run(*d.command("--remove"))
        folder = d.state / "evidence" / vm["id"]
        named = {line.split()[0] for line in (folder / "story.txt").read_text().split("Beside this file:\n")[1].splitlines()}
        assert named == {p.name for p in folder.iterdir()} - {"story.txt"}
        assert "the whole controller was taken away" in (folder / "doctor-missing.txt").read_text()


def test_evidence_and_records_are_not_kept_for_ever():
    with idle(vm={"evidence_days": "1", "evidence_megabytes": "1"}, store={"keep_days": "1"}) as d:
        ids = [d.create(user=f"u{i}")["id"] for i in range(4)]
        for i in ids:
            d.mctl("vm", "destroy", i, "--reason", "x")
        d.stop()
        folders = [d.state / "evidence" / i for i in ids]
        (folders[3] / "console.log").write_bytes(os.urandom(2 << 20))
        # The first is too old. The others ended in one second, in this order.
        now = int(time.time())
        for i, folder in enumerate(folders):
            os.utime(folder, ns=(0, (now * 10**9 + i) if i else 10**9))
        being_written = d.state / "evidence" / "vm-00000000-0000-4000-8000-000000000000"
        being_written.mkdir(mode=0o700)
        run("/usr/bin/python3", "-c", "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1])\n"
            "c.execute('update vm set state_since_ms=5 where id=?', (sys.argv[2],))\nc.commit()",
            d.state / "master-controller.db", ids[0])
        d.start()
        # The last alone is more than may be kept, and so goes too with all that is older.
        wait_for(lambda: list((d.state / "evidence").iterdir()) == [being_written], 20)
        wait_for(lambda: d.mctl("vm", "show", ids[0], check=None).status == 4, 20)
        assert d.mctl("vm", "show", ids[1]).status == 0
        assert "not there any more" in why(d, ids[1])

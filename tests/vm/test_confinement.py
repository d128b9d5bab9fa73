"""How a VMM is held: looked at from outside, on the process of a real guest."""

import glob
import os
import pathlib
import re

from harness import daemon, idle, run


def proc(pid, name):
    return pathlib.Path(f"/proc/{pid}/{name}").read_text()


def test_a_vmm_is_confined():
    with daemon() as d:
        vm = d.create(wait=True)
        pid = d.processes()[0]
        status = dict(line.split(":\t", 1) for line in proc(pid, "status").splitlines() if ":\t" in line)
        uid = os.stat(f"/proc/{pid}").st_uid
        assert uid >= 1000 and set(status["Uid"].split()) == {str(uid)} == set(status["Gid"].split())
        assert status["Groups"].split() == [] or len(status["Groups"].split()) == 1  # kvm
        assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
        for caps in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(status[caps], 16) == 0, caps
        # Its own uid is nobody else's.
        other = d.create(user="other")
        assert len({os.stat(f"/proc/{p}").st_uid for p in d.processes()}) == 2

        # What it sees of the host's files: /usr, read-only, some devices, its own processes; and that view is its own.
        assert os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
        assert len({os.readlink(f"/proc/{p}/ns/mnt") for p in d.processes()}) == 2
        root = f"/proc/{pid}/root"
        assert set(os.listdir(root)) <= {"usr", "bin", "sbin", "lib", "lib64", "etc", "dev", "proc"}
        assert set(os.listdir(root + "/etc")) <= {"ld.so.cache"}
        assert set(os.listdir(root + "/dev")) <= {"null", "zero", "random", "urandom", "kvm", "fd"}
        for line in proc(pid, "mountinfo").splitlines():
            fields = line.split()
            where, options = fields[4], fields[5].split(",")
            assert "ro" in options or where.startswith(("/dev/", "/proc")), line
        assert not os.path.exists(f"{root}{d.state}") and not os.path.exists(root + "/tmp")

        limits = proc(pid, "limits")
        assert re.search(r"Max core file size +0 +0 ", limits) and re.search(r"Max open files +1024 +1024 ", limits)

        # Its folder and its evidence are root's alone.
        folder = d.state / "users" / vm["id"]
        assert folder.stat().st_mode & 0o077 == 0 and folder.stat().st_uid == 0
        for what in (folder, d.state / "evidence", d.state / "users"):
            seen = run("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "ls", what, check=False)
            assert seen.returncode != 0, what

        # Control groups with its limits.
        groups = glob.glob(f"/sys/fs/cgroup/**/master-controller/{vm['id']}", recursive=True)
        assert groups, "no control group"
        found = {}
        for group in map(pathlib.Path, groups):
            assert (group / "cgroup.procs").read_text().split() == [str(pid)]
            for name in ("memory.limit_in_bytes", "memory.max", "pids.max", "cpu.cfs_quota_us", "cpu.max"):
                if (group / name).exists():
                    found[name.split(".")[0]] = (group / name).read_text().split()[0]
        assert 512 << 20 < int(found["memory"]) < 1200 << 20
        assert int(found["pids"]) == 512
        assert int(found["cpu"]) == 150000
        for i in (vm["id"], other["id"]):
            d.mctl("vm", "destroy", i, "--reason", "x")
            assert not glob.glob(f"/sys/fs/cgroup/**/master-controller/{i}", recursive=True)


def test_a_host_without_control_groups_still_makes_vms():
    with idle(vm={"cgroup": "/no/such/group"}) as d:
        vm = d.create()
        assert vm["state"] == "booting" and "limited in nothing" in d.log.read_text()
        d.mctl("vm", "destroy", vm["id"], "--reason", "x")
        assert d.taps() == [] and d.folders() == []

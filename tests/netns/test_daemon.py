"""The daemon, its network and its VMs' lifecycle with a VMM that does nothing: everything but a guest."""

import contextlib
import ctypes
import json
import os
import pathlib
import random
import select
import shutil
import signal
import subprocess
import time

import crash
import harness
from harness import idle, run, wait_for


@contextlib.contextmanager
def nothing_changes(d):
    """The root namespace's links and rules, the namespaces and the state folder are as they were."""
    def picture():
        # Namespaces of this test's process alone: other tests may run beside it.
        namespaces = [n for n in run("ls", "/run/netns", check=False).stdout.split() if n.startswith(f"mt{os.getpid()}x")]
        return (run("ip", "-j", "link").stdout, namespaces,
                run("nft", "list", "ruleset", check=False).stdout, sorted(p.name for p in d.state.glob("users/*")))
    before = picture()
    yield
    assert picture() == before


def refused(d, *words, wrapper=(), **sections):
    for section, keys in sections.items():
        d.config.setdefault(section, {}).update(keys)
    with nothing_changes(d):
        said = d.fails(wrapper=wrapper)
    for word in words:
        assert word in said, said
    assert said.startswith("master-controller: ") and "\x1b" not in said
    return said


# ---- a VM's network and files ----

def test_what_a_vm_gets():
    with idle(network={"address": "10.77.0.1/20", "dns": "10.77.0.53"}) as d:
        vm = d.create()
        assert vm["state"] == "booting" and vm["reachable"] is None and vm["ip"] == "10.77.0.2"
        links = d.links()
        bridge, tap = links["br0"], links[vm["tap"]]
        assert bridge["linkinfo"]["info_kind"] == "bridge" and bridge["ifalias"] == "master-controller"
        assert tap["master"] == "br0" and "UP" in tap["flags"] and tap["ifalias"] == vm["id"]
        assert vm["id"] in tap["altnames"] and tap["address"] != vm["mac"]
        assert vm["tap"] == "fc-vm-" + vm["id"].replace("-", "")[2:11] and len(vm["tap"]) == 15
        pid = d.processes()
        assert len(pid) == 1
        uid = os.stat(f"/proc/{pid[0]}").st_uid
        assert uid >= 1000 and tap["linkinfo"]["info_data"]["user"] in (uid, str(uid))
        status = pathlib.Path(f"/proc/{pid[0]}/status").read_text()
        assert "NoNewPrivs:\t1" in status and "CapEff:\t0000000000000000" in status
        folder = d.state / "users" / vm["id"]
        assert folder.stat().st_mode & 0o777 == 0o700
        config = json.loads((folder / "vm-config.json").read_text())
        assert config["network-interfaces"] == [
            {"iface_id": "eth0", "guest_mac": vm["mac"], "host_dev_name": vm["tap"]}]
        assert "ip=10.77.0.2::10.77.0.1:255.255.240.0:" in config["boot-source"]["boot_args"]
        assert ":eth0:off:10.77.0.53" in config["boot-source"]["boot_args"]
        assert " no_timer_check " in config["boot-source"]["boot_args"], "an emulated guest on a busy host would panic"
        assert (folder / "console.log").exists()


def test_bridge_mac_is_pinned():
    with idle() as d:
        before = d.links()["br0"]["address"]
        d.netns("ip", "tuntap", "add", "low0", "mode", "tap")
        d.netns("ip", "link", "set", "low0", "address", "00:00:00:00:00:11", "master", "br0")
        assert d.links()["br0"]["address"] == before
        d.netns("ip", "link", "del", "low0")


def test_destroy_leaves_nothing_but_evidence():
    with idle() as d:
        before = d.links()
        vm = d.create(type="browser")
        gone = d.mctl("--json", "vm", "destroy", vm["id"], "--reason", "the test is over").json["vm"]
        assert gone["state"] == "stopped" and gone["reason"] == "the test is over"
        assert sorted(d.links()) == sorted(before) and d.processes() == [] and d.folders() == []
        evidence = d.state / "evidence" / vm["id"]
        assert {p.name for p in evidence.iterdir()} >= {"console.log", "vm-config.json", "summary.json"}
        summary = json.loads((evidence / "summary.json").read_text())
        assert "signal" in summary["vmm_ended"] or "exit" in summary["vmm_ended"]
        assert [e["event"] for e in d.events(vm["id"])] == ["claimed", "started", "stop", "ended"]
        assert all(e["actor"] for e in d.events(vm["id"]))
        said = d.admin("GET", f"/api/vms/{vm['id']}/evidence").json
        assert said["summary"] == summary and "console.log" in {f["name"] for f in said["files"]}
        assert d.admin("GET", f"/api/vms/{d.create(user='alive')['id']}/evidence").status == 404
        assert d.mctl("--json", "vm", "destroy", vm["id"], "--reason", "again", check=5).json["error"]["code"] == "vm.ended"


def test_one_cli_vm_a_user_and_a_quota():
    with idle(vm={"quota_per_user": 2}) as d:
        first = d.admin("POST", "/api/users/u1/vm", {})
        again = d.admin("POST", "/api/users/u1/vm", {})
        assert (first.status, again.status) == (201, 200) and first.json["vm"]["id"] == again.json["vm"]["id"]
        d.create(type="browser")
        r = d.admin("POST", "/api/users/u1/vm", {"type": "browser"})
        assert r.status == 409 and r.json["code"] == "quota.user"
        assert d.mctl("vm", "create", "--user", "u1", "--type", "browser", check=5).err.count("limit is 2") == 1
        assert d.admin("GET", "/api/users/u1/vm").json["vm"]["id"] == first.json["vm"]["id"]
        assert d.admin("GET", "/api/users/u2/vm").status == 404
        assert d.admin("DELETE", "/api/users/u1/vm?reason=done").json["vm"]["state"] == "stopped"


def test_a_host_takes_no_more_than_it_has():
    with idle(vm={"quota_host": "2", "cli_memory": "256"}) as d:
        d.create(user="a")
        d.create(user="b")
        r = d.admin("POST", "/api/users/c/vm", {})
        assert r.status == 409 and r.json["code"] == "quota.host" and "has 2 VMs, the limit is 2" in r.json["detail"]
    with open("/proc/meminfo") as f:
        host_mib = int(f.readline().split()[1]) >> 10
    half = host_mib // 2
    with idle() as d:
        r = d.admin("POST", "/api/users/a/vm", {"memory_mib": half})
        assert r.status == 201
        r = d.admin("POST", "/api/users/b/vm", {"memory_mib": half})
        assert r.status == 507 and r.json["code"] == "quota.memory"
        for words in (f"a VM of {half} MiB needs", "1 VMs have been promised", "are left"):
            assert words in r.json["detail"], r.json["detail"]
        said = d.mctl("vm", "create", "--user", "b", "--type", "cli", "--memory", str(half), check=None)
        assert said.status == 5 and "memory_percent" in said.err
        assert len(d.taps()) == len(d.folders()) == 1 and not list((d.state / "evidence").iterdir())
        assert d.create(user="c")["state"] == "booting"


def test_a_full_bridge_is_told_before_anything_is_made():
    with idle() as d:
        first = d.create(user="a")
        d.netns("sh", "-c", "for i in $(seq 511); do echo link add p$i type veth peer name q$i; "
                            "echo link set p$i master br0; echo link set q$i master br0; done | ip -batch -")
        assert d.mctl("--json", "status").json["network"]["ports"] == 1023
        r = d.admin("POST", "/api/users/b/vm", {})
        assert r.status == 507 and r.json["code"] == "network.bridge-full" and r.json["hint"]
        assert "needs a port of bridge br0, and its 1023 ports are taken: 1 by VMs, 1022 by others" in r.json["detail"]
        said = d.mctl("vm", "create", "--user", "b", "--type", "browser", check=5)
        assert "1023 ports are taken" in said.err
        assert [v["id"] for v in d.admin("GET", "/api/vms?all=1").json["vms"]] == [first["id"]]
        assert d.taps() == [first["tap"]] and d.folders() == [first["id"]] and not list((d.state / "evidence").iterdir())
        d.netns("ip", "link", "del", "p1")
        assert d.create(user="b")["state"] == "booting"


def test_check_says_what_is_missing():
    with idle(start=False) as d:
        said = run(*d.command("--check")).stdout
        assert "configuration: ok" in said and "page: " in said and "VMM: " in said and "image: " in said
        d.config["vm"]["cli_image"] = d.config["image"]["directory"]
        d.config["image"]["directory"] = d.dir / "nothing"
        r = run(*d.command("--check"))
        assert "for cli VMs" in r.stdout and "for browser VMs" not in r.stdout and "nothing/current" in r.stderr
        d.config["api"].update({"web_directory": "/nonexistent/web", "socket_group": "no-such-group"})
        with nothing_changes(d):
            r = run(*d.command("--check"), check=False)
        assert r.returncode == 1 and "/nonexistent/web" in r.stderr and "no-such-group" in r.stderr


def test_addresses_rest_before_they_are_given_again():
    with idle(network={"address": "10.9.0.1/29"}, vm={"quota_per_user": 10}) as d:
        ips = [d.create(user=f"u{i}")["ip"] for i in range(3)]
        assert ips == ["10.9.0.2", "10.9.0.3", "10.9.0.4"]
        d.admin("DELETE", "/api/users/u0/vm?reason=x")
        assert d.create(user="u3")["ip"] == "10.9.0.5"
        assert [d.create(user=f"v{i}")["ip"] for i in range(2)] == ["10.9.0.6", "10.9.0.2"]
        r = d.admin("POST", "/api/users/last/vm", {})
        assert r.status == 507 and r.json["code"] == "network.pool-exhausted" and len(d.taps()) == 5


def test_an_address_whose_tap_somebody_holds_is_not_given():
    """The VM has ended, but who got hold of its TAP still speaks as it: no TAP with a holder is removed."""
    with idle(network={"address": "10.9.0.1/29", "address_rest": "0"}) as d:
        vm = d.create()
        pidfd = os.pidfd_open(d.processes()[0])
        for fd in pathlib.Path(f"/proc/{d.processes()[0]}/fd").iterdir():
            if os.readlink(fd) == "/dev/net/tun":
                held = ctypes.CDLL(None).syscall(438, pidfd, int(fd.name), 0)  # pidfd_getfd(2)
        try:
            d.mctl("vm", "destroy", vm["id"], "--reason", "x")
            assert d.taps() == [vm["tap"]] and "held by process" in d.log.read_text()
            ips = [d.create(user=f"u{i}")["ip"] for i in range(4)]
            assert vm["ip"] not in ips and len(set(ips)) == 4
            assert d.admin("POST", "/api/users/last/vm", {}).json["code"] == "network.pool-exhausted"
            assert vm["tap"] in d.taps()
        finally:
            os.close(held)
            os.close(pidfd)
        d.stop()
        d.start()
        assert vm["tap"] not in d.taps() and d.create(user="last")["ip"] == vm["ip"]


def test_an_id_may_be_any_unique_beginning():
    with idle() as d:
        a, b = d.create(user="a"), d.create(user="b")
        common = os.path.commonprefix([a["id"], b["id"]])
        assert d.vm(a["id"][:len(common) + 1])["id"] == a["id"]
        assert d.vm(b["id"].removeprefix("vm-")[:20])["id"] == b["id"]
        assert d.mctl("--json", "vm", "show", common, check=5).json["error"]["code"] == "vm.ambiguous"
        for nothing in ("vm-zz", "", "..", "%", "vm-" + "0" * 50):
            said = d.mctl("--json", "vm", "show", nothing, check=None)
            assert said.status in (2, 4) and said.json["error"]["detail"], nothing


# ---- ends that nobody asked for ----

def test_a_boot_that_never_ends_fails_in_words():
    with idle(vm={"cli_boot_timeout": "1", "probe_timeout": "0.3"}) as d:
        vm = d.create()
        (d.state / "users" / vm["id"] / "console.log").write_text("[ 1.0] booting\n\x1b[31mKernel panic\x1b[0m - x\n\n")
        d.wait_state(vm["id"], "failed")
        reason = d.vm(vm["id"])["reason"]
        assert "not reachable within 1 s" in reason and "ping 192.168.0.2" in reason
        assert "Kernel panic - x" in reason and "\x1b" not in reason
        assert d.taps() == [] and d.processes() == [] and d.folders() == []
        assert d.mctl("vm", "why", vm["id"]).out.count("booting -> failed") == 1


def test_a_killed_vmm_is_told():
    with idle() as d:
        vm = d.create()
        os.kill(d.processes()[0], signal.SIGKILL)
        d.wait_state(vm["id"], "failed")
        assert "killed by signal 9" in d.vm(vm["id"])["reason"]
        assert d.taps() == [] and d.folders() == []


def test_a_vm_whose_end_is_being_told_is_not_given_again():
    with idle() as d:
        vm = d.create()
        pid = d.processes()[0]
        pidfd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        select.select([pidfd], [], [], 10)
        os.close(pidfd)
        r = d.admin("POST", "/api/users/u1/vm", {})
        assert r.status == 201 and r.json["vm"]["id"] != vm["id"]
        d.wait_state(vm["id"], "failed")


def test_who_killed_a_vmm_that_was_asked_to_end_is_told():
    with idle() as d:
        for type, signal_no in (("cli", 9), ("browser", 15)):
            vm = d.create(type=type)
            d.mctl("vm", "destroy", vm["id"], "--reason", "x")
            evidence = d.state / "evidence" / vm["id"]
            assert f"killed by signal {signal_no} " in (evidence / "story.txt").read_text()
            assert "by the controller" in (evidence / "story.txt").read_text()
            assert json.loads((evidence / "summary.json").read_text())["vmm_exit"]["signal"] == signal_no


def test_waiting_callers_get_the_failure():
    with idle(vm={"cli_boot_timeout": "1", "probe_timeout": "0.3"}) as d:
        r = d.admin("POST", "/api/users/u1/vm?wait=ready", {})
        assert r.status == 500 and r.json["code"] == "vm.failed" and "not reachable" in r.json["detail"]
        said = d.mctl("--json", "vm", "create", "--user", "u2", "--type", "cli", "--wait", check=1).json
        assert said["error"]["code"] == "vm.failed"


def test_a_console_cannot_grow_without_end():
    with idle() as d:
        vm = d.create()
        log = d.state / "users" / vm["id"] / "console.log"
        with log.open("ab") as f:
            f.write(b"x" * 79 + b"\n")
            f.write((b"y" * 79 + b"\n") * 200000)
            f.write(b"the end\n")
        wait_for(lambda: log.stat().st_size < 9 << 20, 10)
        assert log.read_bytes().endswith(b"the end\n")
        assert len(d.admin("GET", f"/api/vms/{vm['id']}/console?bytes=100").body) == 100


# ---- restarts ----

def test_who_holds_the_store_for_a_moment_does_not_keep_it_from_starting():
    with idle() as d:
        vm = d.create()
        d.stop(signal.SIGKILL)
        # A backup, and a child of the daemon that was killed between its fork and its exec.
        backup = subprocess.Popen(["/usr/bin/python3", "-c", "import sqlite3,sys,time\nc=sqlite3.connect(sys.argv[1])\n"
                                   "c.execute('begin immediate')\nprint('held', flush=True)\ntime.sleep(1)",
                                   d.state / "master-controller.db"], stdout=subprocess.PIPE)
        child = subprocess.Popen(["flock", d.state / "lock", "sh", "-c", "echo held; exec sleep 0.3"],
                                 stdout=subprocess.PIPE)
        sockets = subprocess.Popen(["/usr/bin/python3", "-c", "import os,socket,sys,time\n"
                                    "t=socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
                                    "os.unlink(sys.argv[2])\nu=socket.socket(socket.AF_UNIX)\nu.bind(sys.argv[2])\nu.listen()\n"
                                    "print('held', flush=True)\ntime.sleep(0.5)", str(d.port), d.socket],
                                   stdout=subprocess.PIPE)
        for holder in (backup, child, sockets):
            assert holder.stdout.read(4) == b"held"
        d.start()
        assert d.state_of(vm["id"]) == "booting"
        for holder in (backup, child, sockets):
            holder.wait()



def test_vms_outlive_the_daemon():
    with idle() as d:
        vms = [d.create(user=f"u{i}") for i in range(3)]
        pids, links = sorted(d.processes()), d.links()
        for sig in (signal.SIGTERM, signal.SIGKILL):
            d.stop(sig)
            assert sorted(d.processes()) == pids
            d.start()
            assert sorted(d.processes()) == pids
            assert {n: l["ifindex"] for n, l in d.links().items()} == {n: l["ifindex"] for n, l in links.items()}
            assert {v["id"] for v in d.mctl("--json", "vm", "list").json["vms"]} == {v["id"] for v in vms}
        os.kill(pids[0], signal.SIGKILL)
        wait_for(lambda: len(d.mctl("--json", "vm", "list").json["vms"]) == 2)
        d.mctl("vm", "destroy", [v["id"] for v in d.mctl("--json", "vm", "list").json["vms"]][0], "--reason", "x")
        assert len(d.taps()) == 1


def set_in_store(d, sql, *values):
    run("/usr/bin/python3", "-c", "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1])\n"
        "c.execute(sys.argv[2], sys.argv[3:])\nc.commit()", d.state / "master-controller.db", sql, *values)


def test_a_clock_that_was_set_neither_ends_a_booting_vm_nor_keeps_it():
    with idle(vm={"cli_boot_timeout": "8", "probe_timeout": "0.3"}) as d:
        vms = [d.create(user=f"u{i}") for i in range(2)]
        d.stop()
        for vm, days in zip(vms, (-1, 1)):
            set_in_store(d, "update vm set state_since_ms = state_since_ms + cast(? as integer) where id = ?",
                         days * 86400000, vm["id"])
        d.start()
        assert [d.state_of(vm["id"]) for vm in vms] == ["booting", "booting"]
        for vm in vms:
            d.wait_state(vm["id"], "failed")
            assert "not reachable within 8 s" in d.vm(vm["id"])["reason"]


def test_a_damaged_store_is_not_used_and_harms_no_vm():
    with idle(vm={"quota_per_user": 100, "cli_boot_timeout": "3600"}) as d:
        for i in range(12):
            vm = d.create(user=f"u{i}")
            if i < 10:
                d.mctl("vm", "destroy", vm["id"], "--reason", "x" * 300)
        pids = sorted(d.processes())
        d.stop()
        db = d.state / "master-controller.db"
        run("/usr/bin/python3", "-c", "import sqlite3,sys\n"
            "sqlite3.connect(sys.argv[1]).execute('pragma wal_checkpoint(truncate)')", db)
        good = db.read_bytes()
        assert len(good) > 10 * 4096
        broken = [good[:len(good) - 1000], good[:len(good) // 2], good[:4096] + bytes(4096) + good[8192:],
                  good[:4 * 4096] + os.urandom(4096) + good[5 * 4096:], os.urandom(8192)]
        for data in broken:
            for file in d.state.glob("master-controller.db*"):
                file.unlink()
            db.write_bytes(data)
            said = d.fails()
            assert "master-controller.db" in said and "damaged: keep a copy" in said, said
            assert sorted(d.processes()) == pids
        db.write_bytes(good)
        d.start()
        assert sorted(d.processes()) == pids and len(d.mctl("--json", "vm", "list").json["vms"]) == 2


def test_a_vm_that_died_meanwhile():
    with idle() as d:
        vm = d.create()
        pid = d.processes()[0]
        d.stop()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
        d.start()
        assert d.state_of(vm["id"]) == "failed" and "while the controller was down" in d.vm(vm["id"])["reason"]
        assert d.taps() == [] and d.folders() == []


def test_a_reused_pid_is_not_ours():
    """A record whose pid now is another process must not be taken up, and that process not be touched."""
    with idle() as d:
        vm = d.create()
        pid = d.processes()[0]
        d.stop()
        os.kill(pid, signal.SIGKILL)
        stranger = subprocess.Popen(["sleep", "60"])
        try:
            set_in_store(d, "update vm set pid = cast(? as integer)", stranger.pid)
            d.start()
            assert d.state_of(vm["id"]) == "failed" and stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()


def test_killed_at_any_moment():
    """kill -9 of the daemon while VMs are made and ended: then each is whole or gone, and nothing is left over."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    with idle(vm={"quota_per_user": 100, "cli_boot_timeout": "600"}) as d:
        for round_ in range(25):
            ids = [v["id"] for v in d.mctl("--json", "vm", "list").json["vms"]]
            callers = [subprocess.Popen([harness.MCTL, "--quiet", "--socket", d.socket, *words], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
                       for words in [["vm", "create", "--user", f"r{round_}-{i}", "--type", "cli"] for i in range(3)] +
                       [["vm", "destroy", i, "--reason", "x"] for i in ids[:2]]]
            time.sleep(rng.random() * 0.04)
            d.stop(signal.SIGKILL)
            for c in callers:
                c.wait(20)
            d.start()
            live = d.mctl("--json", "vm", "list").json["vms"]
            wait_for(lambda: all(v["state"] != "stopping" for v in d.mctl("--json", "vm", "list").json["vms"]))
            live = d.mctl("--json", "vm", "list").json["vms"]
            assert sorted(v["tap"] for v in live) == d.taps(), f"seed {seed} round {round_}"
            assert sorted(v["id"] for v in live) == d.folders(), f"seed {seed} round {round_}"
            assert len(d.processes()) == len(live), f"seed {seed} round {round_}"
            assert all(v["state"] == "booting" for v in live), f"seed {seed} round {round_}"


def test_remove_takes_everything_away():
    with idle() as d:
        for i in range(2):
            d.create(user=f"u{i}")
        pids = d.processes()
        assert len(pids) == 2
        assert "another master-controller" in d.fails("--remove")
        d.stop()
        run(*d.command("--remove"))
        # Who was a child of the daemon is reaped by init, in its own time.
        wait_for(lambda: not any(os.path.exists(f"/proc/{p}") for p in pids))
        assert not os.path.exists(f"/run/netns/{d.name}") and d.folders() == []


def test_a_second_instance_is_refused():
    with idle() as d:
        with nothing_changes(d):
            said = d.fails()
        assert "another master-controller uses the state folder" in said or "in use" in said
        assert d.get("/health").status == 200


# ---- wrong input ----

def test_configuration_errors():
    cases = [("[network]\nbrigde = br0\n", ":2: ", 'did you mean "bridge"'), ("[netwrok]\nx = 1\n", ":2: ", "sections are"),
             ("[vm]\n\ncli_memory = lots\n", ":3: ", "from 128"), ("[network]\naddress = 192.168.0.0/16\n", "network address"),
             ("[network]\naddress = 192.168.0.1/31\n", "/8 to /29"), ("nonsense\n", ":1: "),
             ("[api]\nlisten = nowhere\n", "nowhere"), ("[api]\nsocket_group = no-such-group\n", "no-such-group"),
             ("[vm]\nvmm = xen\n", "auto|qemu"), ("[api]\nlisten = 0.0.0.0:4000\n", "public_url"),
             ("[api]\npublic_url = ftp//x\n", "https://"), ("[vm]\n cli_vcpus = 1\n", ":2: ", "white space"),
             ("# " + "x" * 197 + "bridge = br9\n", ":1: ", "198")]
    with idle(start=False) as d:
        for text, *words in cases:
            d.config_file.write_text(text)
            with nothing_changes(d):
                r = run(harness.DAEMON, "--config", d.config_file, "--state-dir", d.state, check=False)
            assert r.returncode == 1, text
            for word in words:
                assert word in r.stderr, (text, r.stderr)
        r = run(harness.DAEMON, "--config", d.dir / "absent", check=False)
        assert r.returncode == 1 and "absent" in r.stderr
        for words in (["--nonsense"], ["x"], ["--check", "--remove"]):
            assert run(harness.DAEMON, *words, check=False).returncode == 2


def test_port_in_use():
    with idle() as d, idle(start=False) as other:
        refused(other, str(d.port), f"{d.process.pid}", api={"listen": f"127.0.0.1:{d.port}"})


def test_socket_of_a_living_daemon():
    with idle() as d, idle(start=False) as other:
        refused(other, "api.sock", api={"socket": d.socket})
        assert d.mctl("status").status == 0


def test_foreign_bridge():
    with idle(start=False) as d:
        run("ip", "netns", "add", d.name)
        try:
            d_links = run("nsenter", f"--net=/run/netns/{d.name}", "ip", "link", "add", "br0", "type", "bridge")
            before = run("nsenter", f"--net=/run/netns/{d.name}", "ip", "-d", "link").stdout
            refused(d, "br0", "[network] bridge")
            assert run("nsenter", f"--net=/run/netns/{d.name}", "ip", "-d", "link").stdout == before
        finally:
            run("ip", "netns", "del", d.name)


def test_pool_overlaps_a_route():
    with idle(start=False) as d:
        run("ip", "netns", "add", d.name)
        try:
            ns = ("nsenter", f"--net=/run/netns/{d.name}", "ip")
            run(*ns, "link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
            run(*ns, "link", "set", "lan0", "up")
            run(*ns, "addr", "add", "192.168.7.1/24", "dev", "lan0")
            refused(d, "192.168.7", "lan0")
            assert "br0" not in run(*ns, "link").stdout
        finally:
            run("ip", "netns", "del", d.name)


def test_no_tun_device():
    with idle(start=False) as d:
        refused(d, "/dev/net/tun",
                wrapper=["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"])


def test_not_root():
    with idle(start=False) as d:
        shutil.copy(harness.DAEMON, d.dir / "daemon")
        d.write_config()
        r = run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", d.dir / "daemon", "--config",
                d.config_file, "--state-dir", "/nonexistent", check=False)
        assert r.returncode == 1 and "root" in r.stderr
        assert run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", d.dir / "daemon", "--help").returncode == 0


def broken_images(base):
    current = (harness.TEST_GUEST / "current").resolve()
    def copy(name):
        shutil.copytree(current, base / name / "build")
        (base / name / "current").symlink_to("build")
        return base / name / "build"
    base.mkdir()
    yield base / "absent", "image.missing"
    with open(copy("cut") / "rootfs.ext4", "r+b") as f:
        f.truncate(4096)
    yield base / "cut", "image.broken"
    with open(copy("zeroed") / "rootfs.ext4", "r+b") as f:
        f.write(bytes(4096))
    yield base / "zeroed", "image.broken"
    (copy("no-kernel") / "vmlinuz").unlink()
    yield base / "no-kernel", "image.broken"
    (copy("garbage") / "manifest.json").write_bytes(b"\x00\xff{")
    yield base / "garbage", "image.broken"
    (copy("other") / "manifest.json").write_text('{"schema": "something/9"}')
    yield base / "other", "image.broken"
    (copy("none") / "manifest.json").unlink()
    yield base / "none", "image.broken"
    run("debugfs", "-w", "-R", "rm /sbin/init", copy("unfit") / "rootfs.ext4")
    yield base / "unfit", "image.unfit"


def test_missing_and_broken_images():
    with idle() as d:
        for directory, code in broken_images(d.dir / "images"):
            d.stop()
            d.config["image"]["directory"] = directory
            d.start()
            said = d.mctl("--json", "vm", "create", "--user", "u1", "--type", "cli", check=1).json["error"]
            assert said["code"] == code and said["hint"], said
            assert directory.name in said["detail"] or "manifest" in said["detail"], said
            assert d.taps() == [] and d.folders() == [] and d.mctl("--json", "vm", "list", "--all").json["vms"] == []
            assert d.admin("GET", "/api/status").json["image"]["problem"]


def test_no_qemu():
    with idle(start=False) as d:
        d.config["vm"]["qemu_binary"] = "/nonexistent/qemu"
        d.start()
        said = d.mctl("--json", "vm", "create", "--user", "u1", "--type", "cli", check=1).json["error"]
        assert said["code"] == "vmm.unusable" and "/nonexistent/qemu" in said["detail"] and d.folders() == []
        assert "/nonexistent/qemu" in d.mctl("status").out


def test_a_vmm_that_cannot_start():
    with idle(start=False) as d:
        (d.dir / "not-a-program").write_text("garbage")
        (d.dir / "not-a-program").chmod(0o755)
        d.config["vm"]["qemu_binary"] = d.dir / "not-a-program"
        d.start()
        said = d.mctl("--json", "vm", "create", "--user", "u1", "--type", "cli", check=1).json["error"]
        assert "not-a-program" in said["detail"] and "create vm-" in said["detail"]
        assert d.taps() == [] and d.folders() == []
        assert [v["state"] for v in d.mctl("--json", "vm", "list", "--all").json["vms"]] == ["failed"]


def test_a_full_disk():
    with idle(start=False) as d:
        d.state.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=1M,nr_inodes=200", "none", d.state)
        try:
            d.start()
            filler = d.state / "filler"
            with contextlib.suppress(OSError), filler.open("wb") as f:
                while True:
                    f.write(b"x" * 4096)
                    f.flush()
            said = d.mctl("--json", "vm", "create", "--user", "u1", "--type", "cli", check=None).json["error"]
            assert "No space left" in said["detail"] or "full" in said["detail"], said
            filler.unlink()
            vm = d.create(user="u2")
            assert vm["state"] == "booting" and d.taps() == [vm["tap"]]
            d.stop()
            run(*d.command("--remove"))
        finally:
            run("umount", "-l", d.state)


def test_a_new_image_is_looked_into_before_it_is_needed(tmp_path):
    """By a worker: the loop would stand still for as long as that takes."""
    image = tmp_path / "image"
    build = (harness.TEST_GUEST / "current").resolve()
    for name in ("first", "second"):
        shutil.copytree(build, image / name, ignore=shutil.ignore_patterns("verdict.json"))
    (image / "current").symlink_to("first")
    with idle(image=image) as d:
        assert (image / "first/verdict.json").exists() and not (image / "second/verdict.json").exists()
        (image / "next").symlink_to("second")
        (image / "next").rename(image / "current")
        wait_for(lambda: (image / "second/verdict.json").exists(), 30)
        assert d.vm(d.create()["id"])["image"].endswith("/second")


# ---- found by review ----

@contextlib.contextmanager
def store_is_locked(d):
    """Somebody else writes to the database and does not come to an end."""
    holder = subprocess.Popen(["/usr/bin/python3", "-c", "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1])\n"
                               "c.execute('begin immediate')\nprint('locked', flush=True)\nsys.stdin.read()",
                               d.state / "master-controller.db"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    try:
        yield
    finally:
        holder.communicate()


def test_a_bridge_that_was_deleted_gets_its_taps_back():
    with idle() as d:
        vm = d.create()
        d.stop()
        d.netns("ip", "link", "del", "br0")
        d.start()
        tap = d.links()[vm["tap"]]
        assert tap["master"] == "br0" and "UP" in tap["flags"] and len(d.processes()) == 1
        d.stop()
        d.netns("ip", "link", "set", vm["tap"], "nomaster")
        d.netns("ip", "link", "set", vm["tap"], "down")
        d.start()
        tap = d.links()[vm["tap"]]
        assert tap["master"] == "br0" and "UP" in tap["flags"]


def test_status_tells_what_is_wrong_with_the_bridge():
    with idle() as d:
        def problem():
            assert (d.mctl("--json", "status").json["network"]["problem"] or "") in d.mctl("status").out
            return d.mctl("--json", "status").json["network"]["problem"]

        assert problem() is None
        d.netns("ip", "link", "set", "br0", "down")
        assert "down" in problem()
        d.netns("ip", "link", "set", "br0", "up")
        d.netns("ip", "addr", "flush", "dev", "br0")
        assert "address" in problem()
        d.netns("ip", "link", "del", "br0")
        assert "gone" in problem()
        said = d.mctl("--json", "vm", "create", "--user", "u1", "--type", "cli", check=1).json["error"]
        assert said["code"] == "network.bridge-missing" and "br0 is gone" in said["detail"] and said["hint"]
        d.stop()
        d.start()
        assert problem() is None and d.create()["state"] == "booting"


def test_a_tap_that_went_meanwhile():
    with idle() as d:
        vm = d.create()
        d.stop()
        d.netns("ip", "link", "del", vm["tap"])
        d.start()
        assert d.state_of(vm["id"]) == "failed" and vm["tap"] in d.vm(vm["id"])["reason"]
        assert d.processes() == [] and d.folders() == []


def test_a_folder_that_somebody_took_away():
    """Nothing of such a VM stays, though its folder says what it has."""
    with idle() as d:
        ids, pids = [], []
        for i in range(2):
            ids.append(d.create(user=f"u{i}")["id"])
            pids += set(d.processes()) - set(pids)
        groups = crash.groups(ids)
        for i in ids:
            shutil.rmtree(d.state / "users" / i)
        d.mctl("vm", "destroy", ids[0], "--reason", "tidy")
        d.stop(signal.SIGKILL)
        os.kill(pids[1], signal.SIGKILL)
        d.start()
        assert d.taps() == [] and d.folders() == []
        assert not [p for p in pathlib.Path("/proc").glob("[0-9]*/cmdline") if int(p.parent.name) in pids and p.read_bytes()]
        assert sorted(groups) in ([], sorted(ids)) and crash.groups(ids) == []
        for i in ids:
            assert i in (d.state / "evidence" / i / "story.txt").read_text()
            assert json.loads((d.state / "evidence" / i / "summary.json").read_text())["id"] == i


def test_a_list_of_groups_that_somebody_wrote_over():
    with idle() as d:
        for text in ("", "/\n../../..\n/sys/fs/cgroup\n" * 50, "x" * 5000):
            vm = d.create()
            (d.state / "users" / vm["id"] / "cgroup").write_text(text)
            groups = crash.groups([vm["id"]])
            d.mctl("vm", "destroy", vm["id"], "--reason", "x")
            assert groups in ([], [vm["id"]] * len(groups)) and crash.groups([vm["id"]]) == []


def test_an_end_that_cannot_be_written_is_written_later():
    with idle() as d:
        vm = d.create()
        with store_is_locked(d):
            os.kill(d.processes()[0], signal.SIGKILL)
            wait_for(lambda: d.taps() == [])
            assert d.mctl("--json", "vm", "destroy", vm["id"], "--reason", "x", check=1).json["error"]["code"] == "store.failed"
        d.wait_state(vm["id"], "failed", 5)
        assert d.create()["state"] == "booting"


def test_a_vm_can_be_ended_though_the_store_is_full():
    with idle() as d:
        vm = d.create(type="browser")
        caller = None
        with store_is_locked(d):
            caller = subprocess.Popen([harness.MCTL, "--socket", d.socket, "vm", "destroy", vm["id"], "--reason", "full"])
            wait_for(lambda: d.processes() == [])
        assert caller.wait(10) == 0
        assert d.state_of(vm["id"]) == "stopped" and d.vm(vm["id"])["reason"] == "full"


def test_evidence_that_cannot_be_moved_is_kept():
    with idle() as d:
        vm = d.create()
        (d.state / "evidence" / vm["id"]).write_text("in the way")
        d.mctl("vm", "destroy", vm["id"], "--reason", "x")
        kept = {p.name for p in (d.state / "users" / vm["id"]).iterdir()}
        assert "console.log" in kept and "disk.qcow2" not in kept
        (d.state / "evidence" / vm["id"]).unlink()
        d.stop()
        d.start()
        assert d.folders() == [] and (d.state / "evidence" / vm["id"] / "console.log").exists()


def test_a_console_line_cut_within_a_character_hides_nothing():
    with idle(vm={"cli_boot_timeout": "1", "probe_timeout": "0.3"}) as d:
        vm = d.create()
        (d.state / "users" / vm["id"] / "console.log").write_text("a" + "é" * 150 + "\n")
        d.wait_state(vm["id"], "failed")
        assert "éé" in d.vm(vm["id"])["reason"]
        assert [v["id"] for v in d.admin("GET", "/api/vms?all=1").json["vms"]] == [vm["id"]]
        assert d.events(vm["id"])[-1]["reason"]


def test_a_process_of_one_that_was_killed_may_have_its_bridge_for_a_moment():
    """Its child, which is about to execute a VMM, has all of its descriptors."""
    with idle() as d:
        d.stop(signal.SIGKILL)
        hold = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind('\\0master-controller'); print(flush=True); sys.stdin.read()"
        with subprocess.Popen(["nsenter", f"--net=/run/netns/{d.name}", "python3", "-c", hold], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as child:
            child.stdout.readline()
            d.start(wait=False)
            stat = pathlib.Path(f"/proc/{d.process.pid}/wchan")
            wait_for(lambda: d.process.poll() is not None or "nanosleep" in stat.read_text(), 10, 0.005)
            child.stdin.close()
        wait_for(d.is_up)


def test_two_controllers_do_not_share_a_bridge():
    with idle() as d, idle(start=False, network={"namespace": d.name}) as other:
        refused(other, "another master-controller", "br0")
        assert d.create()["state"] == "booting"


def test_a_burst_on_the_console_is_followed_to_its_end():
    with idle() as d:
        vm = d.create()
        log = d.state / "users" / vm["id"] / "console.log"
        follower = subprocess.Popen([harness.MCTL, "--socket", d.socket, "vm", "console", vm["id"], "--follow"],
                                    stdout=subprocess.PIPE)
        time.sleep(0.3)
        with log.open("ab") as f:
            f.write(b"x" * 1999999 + b"\n")
        time.sleep(0.3)
        d.mctl("vm", "destroy", vm["id"], "--reason", "x")
        out, _ = follower.communicate(timeout=30)
        assert len(out) == 2000000 and follower.returncode == 0


def test_a_reader_of_the_log_that_goes_takes_nothing_along():
    with idle(start=False) as d:
        d.process = subprocess.Popen(d.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        wait_for(d.is_up)
        d.process.stdout.close()
        d.create()
        assert d.process.poll() is None


def test_a_session_that_was_half_started():
    with idle() as d:
        r = d.admin("POST", "/api/auth/start", {"userId": "u", "provider": "demo"}).json
        d.stop(signal.SIGKILL)
        run("/usr/bin/python3", "-c", "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1])\n"
            "c.execute(\"update session set status='started'\")\nc.commit()", d.state / "master-controller.db")
        d.start()
        vm_id = r["session"]["vm_id"]
        d.wait_state(vm_id, "stopped")
        assert d.mctl("--json", "auth", "show", r["sessionId"]).json["session"]["status"] == "failed"
        again = d.admin("POST", "/api/auth/start", {"userId": "u", "provider": "demo"})
        assert again.status == 201 and again.json["sessionId"] != r["sessionId"]


def test_remove_ends_vms_though_the_network_is_in_the_way():
    with idle(start=False) as d:
        run("ip", "netns", "add", d.name)
        try:
            run("ip", "-n", d.name, "link", "add", "wan0", "type", "veth", "peer", "name", "wan1")
            d.config["network"]["uplink"] = "wan0"
            d.start()
            d.create()
            pid = d.processes()[0]
            d.stop()
            run("ip", "-n", d.name, "link", "del", "wan0")
            said = d.fails("--remove")
            assert "wan0" in said and "processes were ended" in said
            wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
            d.config["network"]["uplink"] = ""
            run(*d.command("--remove"))
        finally:
            run("ip", "netns", "del", d.name, check=False)

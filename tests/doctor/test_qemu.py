"""The same with real guests: QEMU behind the TAP, Debian's kernel in it, virtio-net between them. Some are started by the
daemon, some by nobody that the doctor knows, some by nobody but with a record."""
import contextlib
import json
import os
import pathlib
import signal
import socket
import sqlite3
import subprocess
import sys
import time

import pytest

from lab import GATEWAY, PORT, Guest, Lab
from test_catalogue import ONLY_INJECT, named

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

BOOT_S = 180  # 4 s on an idle machine; two guests on a busy one were seen to need 90


class Machine(Guest):
    """A guest that has no namespace, but a machine of its own."""

    def launch(self, image, folder, *options, words="", monitor=""):
        self.qmp_path, self.console = folder / "qmp", folder / "console.log"
        path = f"unix:{'qmp' if monitor == 'relative' else self.qmp_path},server=on,wait=off"
        qmp = ["-chardev", f"socket,path={self.qmp_path},server=on,id=m,wait=off", "-mon", "m,mode=control"] if monitor == "chardev" else ["-qmp", path]
        nic = f"virtio-net-pci,netdev=net,mac={self.mac},romfile=" + (",id=nic0" if monitor == "id" else "")
        words = f"console=ttyS0 quiet panic=1 root=/dev/vda ro ip={self.address}::{self.gateway}:255.255.0.0:guest:eth0:off {words}"
        self.process = subprocess.Popen([
            "nsenter", f"--net=/run/netns/{self.lab.name}", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-machine", "q35,accel=tcg",
            "-cpu", "max", "-m", "128", "-display", "none", "-no-reboot", "-serial", f"file:{self.console}",
            *qmp, "-drive", f"if=none,id=d,file={image}/rootfs.ext4,format=raw,snapshot=on",
            "-device", "virtio-blk-pci,drive=d,serial=root", "-netdev", f"tap,id=net,ifname={self.tap},script=no,downscript=no",
            "-device", nic, "-device", "virtio-rng-pci", "-kernel", f"{image}/vmlinuz",
            "-initrd", f"{image}/initrd.img", "-append", words, *options,
        ], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder)

    def qmp(self, command, **arguments):
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(5)
            s.connect(str(self.qmp_path))
            with s.makefile("rw") as file:
                for line in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                    file.write(json.dumps(line) + "\n")
                    file.flush()
                answers = []
                while len(answers) < 2:
                    line = json.loads(file.readline())
                    if "return" in line or "error" in line:
                        answers.append(line)
                assert "return" in answers[1], answers[1]
                return answers[1]["return"]

    def wait_said(self, text):
        """Until its console says so."""
        until = time.monotonic() + BOOT_S
        while text not in self.console.read_text(errors="replace"):
            assert time.monotonic() < until and self.process.poll() is None, self.console.read_text(errors="replace")[-2000:]
            time.sleep(0.1)

    def wait(self, port=PORT):
        until = time.monotonic() + BOOT_S
        while self.lab.tcp(self.address, port, 0.5) != "open":
            assert time.monotonic() < until and self.process.poll() is None, self.console.read_text(errors="replace")[-2000:]
            time.sleep(0.2)


@pytest.fixture(scope="module")
def image():
    import harness

    return harness.guest_image() / "current"


@contextlib.contextmanager
def launched(lab, image, folder, *options, number=1, address="192.168.0.2", gateway=GATEWAY, master="br0", **more):
    guest = Machine(lab, number, address, f"fc-vm-69fac673{number}", f"02:fc:f9:aa:5d:0{number}", gateway=gateway)
    lab.tap(guest.tap, master=master)
    try:
        guest.launch(image, folder, *options, **more)
        until = time.monotonic() + 10
        while "LOWER_UP" not in lab.link(guest.tap)["flags"] or not guest.qmp_path.exists():
            assert guest.process.poll() is None, guest.process.stdout.read()
            assert time.monotonic() < until
            time.sleep(0.02)
        yield guest
    finally:
        with contextlib.suppress(AttributeError):
            guest.process.kill()
            guest.process.wait()
            guest.process.stdout.close()


@contextlib.contextmanager
def machine(image, folder, *options, uplink=False, **more):
    with Lab(uplink=uplink) as lab, launched(lab, image, folder, *options, **more) as guest:
        yield lab, guest


def judge(lab, guest, ids, hops, words=(), args=()):
    lab.cold()
    if ONLY_INJECT:
        return None
    answer = lab.doctor(guest, *args)
    assert answer.status == 10, answer
    assert answer.first["id"] in ids, answer
    assert answer.first["dies_at"] in hops, answer
    assert named(answer.first, [guest.tap, *map(str, words)]) == [], answer
    return answer


def test_not_booted(image, tmp_path):
    with machine(image, tmp_path, "-S") as (lab, guest):
        assert not lab.ping(guest.address, 0.35)
        judge(lab, guest, ["guest.not-booted"], ["guest.nic"])


def taken_monitor(lab, guest):
    """A monitor that has a client already is left alone: nothing waits behind it, and the client notices nothing."""
    guest.qmp("set_link", name="net", up=False)
    lab.cold()
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(5)
        s.connect(str(guest.qmp_path))
        with s.makefile("rw") as client:
            assert "QMP" in client.readline()
            client.write('{"execute":"qmp_capabilities"}\n')
            client.flush()
            assert "return" in client.readline()
            for _ in range(3):
                answer = lab.doctor(guest)
                assert answer.first["id"] in ("unknown.guest.nic", "unknown.vmm", "guest.nic-down"), answer
                gap = next(g for g in answer.json["host"]["could_not_read"] if g["what"] == "qmp")
                assert str(guest.process.pid) in gap["detail"] and "another client" in gap["detail"], gap
                waiting = pathlib.Path("/proc/net/unix").read_text() + pathlib.Path(f"/proc/{guest.process.pid}/net/unix").read_text()
                ends = {line.split()[6] for line in waiting.splitlines() if line.endswith(str(guest.qmp_path)) and line.split()[5] == "03"}
                assert len(ends) == 1, waiting
            client.write('{"execute":"query-status"}\n')
            client.flush()
            assert json.loads(client.readline())["return"]["status"] == "running"
    guest.qmp("set_link", name="net", up=True)
    guest.wait()


@pytest.mark.parametrize("how", ["id", "chardev", "relative"])
def test_ways_to_the_monitor(image, tmp_path, how):
    """A NIC with an id, of which there are two, one behind a PCI bridge; the socket by -chardev, or by a path that only QEMU's folder leads to."""
    options = []
    if how == "id":
        options = ["-device", "pcie-root-port,id=port0", "-netdev", "hubport,id=h,hubid=0", "-device", "virtio-net-pci,netdev=h,id=spare,bus=port0"]
    with machine(image, tmp_path, *options, monitor=how) as (lab, guest):
        guest.wait()
        guest.qmp("set_link", name="net", up=False)
        assert not lab.ping(guest.address, 0.35)
        judge(lab, guest, ["vmm.link-off"], ["vmm"], [guest.process.pid, "nic0" if how == "id" else "virtio-net-pci.0"])


def test_a_disk_that_cannot_be_written(image, tmp_path):
    """QEMU stops its VM, as it is told to by werror=stop; the reason is only to be had from QEMU."""
    with machine(image, tmp_path, "-drive", "if=none,id=bad,driver=blkdebug,werror=stop,rerror=stop,image.driver=null-co,image.size=1048576,"
                 "inject-error.0.event=none,inject-error.0.iotype=read,inject-error.0.errno=5", "-device", "virtio-blk-pci,drive=bad,serial=bad") as (lab, guest):
        until = time.monotonic() + BOOT_S
        while guest.qmp("query-status")["status"] != "io-error":
            assert time.monotonic() < until, guest.qmp("query-status")
            time.sleep(0.2)
        judge(lab, guest, ["vmm.stalled"], ["vmm"], [guest.process.pid, "io-error", "disk"])


def test_real_guest(image, tmp_path):
    """One boot, one thing after the other."""
    with machine(image, tmp_path) as (lab, guest):
        guest.wait()
        if not ONLY_INJECT:
            assert lab.doctor(guest).status == 0
        lab.ip("link", "set", guest.tap, "down")
        assert not lab.ping(guest.address, 0.35)
        judge(lab, guest, ["tap.down"], ["tap.dev"])
        lab.ip("link", "set", guest.tap, "up")
        guest.wait()

        lab.run("ebtables", "-A", "OUTPUT", "-o", guest.tap, "-j", "DROP")
        lab.cold()
        assert not lab.ping(guest.address, 0.35)
        judge(lab, guest, ["ebtables.drop"], ["bridge.output"], ["OUTPUT"])
        lab.run("ebtables", "-F")
        guest.wait()

        guest.process.send_signal(signal.SIGSTOP)
        lab.cold()
        assert not lab.ping(guest.address, 0.35)
        judge(lab, guest, ["vmm.stalled"], ["vmm"], [guest.process.pid])
        guest.process.send_signal(signal.SIGCONT)
        guest.wait()

        guest.qmp("stop")
        lab.cold()
        assert not lab.ping(guest.address, 0.35)
        judge(lab, guest, ["vmm.stalled"], ["vmm"], [guest.process.pid, "paused"])
        guest.qmp("cont")
        guest.wait()

        # Nothing but QEMU knows that the link is off.
        for name in ("net", "virtio-net-pci.0"):
            guest.qmp("set_link", name=name, up=False)
            lab.cold()
            assert not lab.ping(guest.address, 0.35)
            judge(lab, guest, ["vmm.link-off"], ["vmm"], [guest.process.pid, "virtio-net-pci.0", "netdev net", guest.mac])
            judge(lab, guest, ["vmm.link-off"], ["vmm"], [guest.process.pid], ["--no-probe"])
            assert guest.qmp("query-status")["status"] == "running"
            guest.qmp("set_link", name=name, up=True)
            guest.wait()
        if not ONLY_INJECT:
            taken_monitor(lab, guest)

        lab.ip("link", "del", guest.tap)
        lab.tap(guest.tap)
        assert not lab.ping(guest.address, 0.35)
        judge(lab, guest, ["tap.recreated"], ["vmm"], [guest.process.pid])


def test_addresses_that_two_guests_have(image, tmp_path):
    """A guest that takes another's address, and one that takes the gateway's; nothing on this bridge keeps them from it."""
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    with machine(image, folders[0]) as (lab, guest), \
            launched(lab, image, folders[1], number=2, address=guest.address, master=None) as twin, \
            launched(lab, image, folders[2], number=3, address=GATEWAY, gateway="192.168.0.9", master=None) as usurper:
        guest.wait()
        for other, finding, address in ((twin, "guest.duplicate-ip", guest.address), (usurper, "guest.owns-gateway", GATEWAY)):
            other.wait_said("test-guest: ready")
            lab.ip("link", "set", other.tap, "master", "br0")
            lab.cold()
            if not ONLY_INJECT:
                answer = lab.doctor(guest)
                assert (answer.status, answer.first["id"], answer.first["dies_at"]) == (10, finding, "host.neigh"), answer
                assert named(answer.first, [address, other.mac]) == [], answer
            lab.ip("link", "set", other.tap, "nomaster")
            lab.cold()
            guest.wait()
        assert ONLY_INJECT or lab.doctor(guest).status == 0


def test_a_guest_that_gets_no_names(image, tmp_path):
    with machine(image, tmp_path, uplink=True) as (lab, guest):
        guest.wait()
        lab.chain("inet", "f", "forward", "type filter hook forward priority 0", "udp dport 53 drop")
        if not ONLY_INJECT:
            answer = lab.doctor(guest)
            assert (answer.status, answer.first["id"], answer.first["dies_at"]) == (10, "guest.dns", "host.forward"), answer


def record(state, guest):
    """What the daemon would have written of it: a row, and its console where the daemon keeps it."""
    name = "vm-69fac673-27a8-492f-8fe0-f9b604e6ab28"
    folder = state / "users" / name
    folder.mkdir(parents=True)
    os.link(guest.console, folder / "console.log")
    with contextlib.closing(sqlite3.connect(state / "master-controller.db")) as db, db:
        db.execute("CREATE TABLE vm (id, user, type, state, ip INTEGER, mac BLOB, tap, bridge, vmm, pid INTEGER, pid_start INTEGER,"
                   " ended INTEGER, created_ms INTEGER)")
        started = int(pathlib.Path(f"/proc/{guest.process.pid}/stat").read_text().rpartition(")")[2].split()[19])
        db.execute("INSERT INTO vm VALUES (?, 'u1', 'browser', 'running', ?, ?, ?, 'br0', 'qemu', ?, ?, 0, 1)",
                   (name, int.from_bytes(socket.inet_aton(guest.address), "big"), bytes.fromhex(guest.mac.replace(":", "")), guest.tap,
                    guest.process.pid, started))
    return name


@pytest.mark.parametrize("word, said", [("panic", "end Kernel panic"), ("oom", "end Kernel panic - not syncing: Out of memory")])
def test_console_tells(image, tmp_path, word, said):
    """A guest whose kernel stopped, and a VMM that is well: the console's end is the evidence."""
    with machine(image, tmp_path, words=f"mc.test={word} panic=0") as (lab, guest):
        name = record(tmp_path / "state", guest)
        guest.wait_said(said)
        assert not lab.ping(guest.address, 0.35)
        answer = judge(lab, guest, ["guest.panic"], ["guest.nic"], ["Kernel panic"], ["--state-dir", str(tmp_path / "state")])
        assert answer.target["vm_id"] == name
        # Without the record there is no console to read: the hop is all that can be said.
        answer = lab.doctor(guest)
        assert answer.first["id"] == f"unknown.{answer.first['dies_at']}" or answer.first["id"] == "guest.nic-down", answer
        assert answer.first["dies_at"] in ("guest.nic", "vmm", "tap.queue"), answer


def test_no_link(image, tmp_path):
    with machine(image, tmp_path, words="mc.test=no-link") as (lab, guest):
        guest.wait_said("test-guest: ready")
        time.sleep(0.5)
        assert not lab.ping(guest.address, 0.35)
        judge(lab, guest, ["guest.nic-down", "unknown.guest.nic"], ["guest.nic"])


def test_no_service(image, tmp_path):
    with machine(image, tmp_path, words="mc.test=no-service") as (lab, guest):
        guest.wait_said("test-guest: ready")
        assert lab.ping(guest.address, 5)
        if not ONLY_INJECT:
            answer = lab.doctor(guest)
            assert (answer.status, answer.first["id"], answer.first["dies_at"]) == (10, "guest.service-down", "guest.service"), answer
            assert named(answer.first, [guest.address, str(PORT)]) == [], answer


# ---- guests of the daemon ----


def reports(d, vm):
    """The same question by every way that there is: mctl without the daemon, and the API; of one VM and of all."""
    yield d.doctor("--vm", vm["id"])
    yield d.doctor()
    for path in (f"/api/vms/{vm['id']}/diagnostics", "/api/admin/health/network"):
        answer = d.admin("GET", path)
        assert answer.status == 200, answer.body
        yield 0 if answer.json["healthy"] else 10, answer.json


def assert_all_say(d, vm, finding, hop):
    for status, report in reports(d, vm):
        target = next(t for t in report["targets"] if t["tap"] == vm["tap"])
        roots = [f for f in target["findings"] if f["role"] == "root-cause"]
        assert (status, target["vm_id"], target["reachable"]) == (10, vm["id"], False), report
        assert (roots[0]["id"], roots[0]["dies_at"]) == (finding, hop), roots
        others = [f for t in report["targets"] if t is not target for f in t["findings"] if f["role"] == "root-cause"]
        assert others == [], others


def qmp_taken(pid):
    """Whether somebody talks to this QEMU over its monitor: one of its own sockets is the end of such a conversation."""
    inodes = {link[8:-1] for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir() if (link := os.readlink(fd)).startswith("socket:")}
    rows = [line.split() for line in pathlib.Path("/proc/net/unix").read_text().splitlines()]
    return any(len(row) == 8 and row[5] == "03" and row[6] in inodes and row[7].endswith("/qmp.sock") for row in rows)


@pytest.mark.skipif(bool(ONLY_INJECT), reason="there is no doctor")
def test_guests_of_the_daemon(image):
    import harness

    with harness.daemon() as d:
        vms = [d.create(user="u1"), d.create(user="u2")]
        for vm in vms:
            d.wait_state(vm["id"], "running", BOOT_S)
        vm = d.vm(vms[0]["id"])
        for status, report in reports(d, vm):
            assert status == 0 and report["healthy"] is True, report
            assert all(t["reachable"] is True and t["vm_id"] for t in report["targets"]), report
        pid = next(p for p in d.processes() if vm["id"] in pathlib.Path(f"/proc/{p}/cmdline").read_text())

        # The daemon holds QEMU's monitor: what QEMU has told it is in its records.
        vmm_pid = next(p for p in d.processes() if vms[1]["id"] in pathlib.Path(f"/proc/{p}/cmdline").read_text())
        other = d.vm(vms[1]["id"])
        harness.wait_for(lambda: qmp_taken(vmm_pid), 10, 0.1)
        status, report = d.doctor("--vm", other["id"])
        assert status == 0, report
        with contextlib.closing(sqlite3.connect(d.state / "master-controller.db", timeout=5)) as db, db:
            db.execute("INSERT INTO event (about, at_ms, actor, event, from_state, to_state, reason) VALUES (?, 1, 'controller', 'paused', 'running',"
                       " 'running', 'its VMM has stopped it (io-error, write: Input/output error)')", (other["id"],))
        assert d.doctor("--vm", other["id"])[0] == 0, "a record is no evidence against a VM that answers"
        os.kill(vmm_pid, signal.SIGSTOP)
        status, report = d.doctor("--vm", other["id"], "--no-trace")
        told = report["targets"][0]["findings"]
        assert [f["id"] for f in told if f["role"] == "root-cause"] == ["vmm.stalled"], report
        assert any("io-error" in e["fact"] and e["source"] == "record" for f in told for e in f["evidence"]), told
        os.kill(vmm_pid, signal.SIGCONT)
        with contextlib.closing(sqlite3.connect(d.state / "master-controller.db", timeout=5)) as db, db:
            db.execute("INSERT INTO event (about, at_ms, actor, event, from_state, to_state, reason) VALUES (?, 2, 'controller', 'resumed', 'running',"
                       " 'running', 'it runs again')", (other["id"],))
        harness.wait_for(lambda: d.doctor("--vm", other["id"])[0] == 0, 20, 0.2)

        os.kill(pid, signal.SIGSTOP)
        assert_all_say(d, vm, "vmm.stalled", "vmm")
        os.kill(pid, signal.SIGCONT)
        harness.wait_for(lambda: d.doctor("--vm", vm["id"])[0] == 0, 20, 0.2)

        d.netns("ebtables", "-A", "OUTPUT", "-o", vm["tap"], "-j", "DROP")
        assert_all_say(d, vm, "ebtables.drop", "bridge.output")
        d.netns("ebtables", "-F")

        d.netns("ip", "link", "set", vm["tap"], "down")
        assert_all_say(d, vm, "tap.down", "tap.dev")
        assert d.doctor("--vm", vm["id"], "--repair")[0] == 11
        status, report = d.doctor()
        assert status == 0, report

"""The same with a real guest: QEMU behind the TAP, Debian's kernel in it, virtio-net between them."""
import contextlib
import json
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from lab import GATEWAY, PORT, Guest, Lab
from test_catalogue import ONLY_INJECT, named

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

BOOT_S = 60


class Machine(Guest):
    """A guest that has no namespace, but a machine of its own."""

    def launch(self, image, folder, *options):
        self.qmp_path, self.console = folder / "qmp", folder / "console.log"
        words = f"console=ttyS0 quiet panic=1 root=/dev/vda ro ip={self.address}::{GATEWAY}:255.255.0.0:guest:eth0:off"
        self.process = subprocess.Popen([
            "nsenter", f"--net=/run/netns/{self.lab.name}", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-machine", "q35,accel=tcg",
            "-cpu", "max", "-m", "128", "-display", "none", "-no-reboot", "-serial", f"file:{self.console}",
            "-qmp", f"unix:{self.qmp_path},server=on,wait=off", "-drive", f"if=none,id=d,file={image}/rootfs.ext4,format=raw,snapshot=on",
            "-device", "virtio-blk-pci,drive=d,serial=root", "-netdev", f"tap,id=net,ifname={self.tap},script=no,downscript=no",
            "-device", f"virtio-net-pci,netdev=net,mac={self.mac},romfile=", "-device", "virtio-rng-pci", "-kernel", f"{image}/vmlinuz",
            "-initrd", f"{image}/initrd.img", "-append", words, *options,
        ], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

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
def machine(image, folder, *options):
    with Lab() as lab:
        guest = Machine(lab, 1, "192.168.0.2", "fc-vm-69fac6731", "02:fc:f9:aa:5d:01")
        lab.tap(guest.tap)
        try:
            guest.launch(image, folder, *options)
            until = time.monotonic() + 10
            while "LOWER_UP" not in lab.link(guest.tap)["flags"] or not guest.qmp_path.exists():
                assert guest.process.poll() is None, guest.process.stdout.read()
                assert time.monotonic() < until
                time.sleep(0.02)
            yield lab, guest
        finally:
            with contextlib.suppress(AttributeError):
                guest.process.kill()
                guest.process.wait()
                guest.process.stdout.close()


def judge(lab, guest, ids, hops, words=()):
    lab.cold()
    if ONLY_INJECT:
        return None
    answer = lab.doctor(guest)
    assert answer.status == 10, answer
    assert answer.first["id"] in ids, answer
    assert answer.first["dies_at"] in hops, answer
    assert named(answer.first, [guest.tap, *map(str, words)]) == [], answer
    return answer


def test_not_booted(image, tmp_path):
    with machine(image, tmp_path, "-S") as (lab, guest):
        assert not lab.ping(guest.address, 0.35)
        judge(lab, guest, ["guest.not-booted"], ["guest.nic"])


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

        guest.qmp("stop")
        lab.cold()
        assert not lab.ping(guest.address, 0.35)
        judge(lab, guest, ["vmm.stalled"], ["vmm"], [guest.process.pid])
        guest.qmp("cont")
        guest.wait()

        # Nothing but QEMU knows that the link is off, and its monitor may be another's.
        guest.qmp("set_link", name="net", up=False)
        lab.cold()
        assert not lab.ping(guest.address, 0.35)
        judge(lab, guest, ["vmm.link-off", "unknown.vmm", "unknown.guest.nic", "guest.nic-down"], ["vmm", "guest.nic"])
        guest.qmp("set_link", name="net", up=True)
        guest.wait()

        lab.ip("link", "del", guest.tap)
        lab.tap(guest.tap)
        assert not lab.ping(guest.address, 0.35)
        judge(lab, guest, ["tap.recreated"], ["vmm"], [guest.process.pid])

"""What a person gets: --explain, --capture, --watch, and refusals in words."""
import json
import os
import select
import struct
import subprocess
import time

import pytest

from faults import BY_KEY
from lab import MCTL, Lab
from test_catalogue import ONLY_INJECT

pytestmark = pytest.mark.skipif(bool(ONLY_INJECT), reason="there is no doctor")
HOPS = """host.route host.neigh host.output bridge.dev bridge.output bridge.forward bridge.port tap.egress tap.dev tap.queue vmm guest.nic
guest.ip guest.firewall guest.service tap.ingress bridge.input host.input host.forward host.nat host.uplink""".split()


def test_document():
    """The contract's shape, field by field."""
    fault = BY_KEY["ebtables.drop output"]
    with fault.bed() as bed:
        fault.apply(bed)
        answer = bed.doctor()
        top = answer.json
        assert top["schema"] == "doctor/1"
        assert top["healthy"] is False
        assert isinstance(top["host"], dict)
        assert 0 < top["duration_ms"] < 5000
        target = answer.target
        assert {"tap", "vm_id", "guest_ip", "reachable", "hops", "findings"} <= target.keys()
        assert (target["vm_id"], target["guest_ip"], target["reachable"]) == (None, bed.vm.address, False)
        assert [hop["hop"] for hop in target["hops"]] == [h for h in HOPS if h in {hop["hop"] for hop in target["hops"]}]
        assert {hop["verdict"] for hop in target["hops"]} <= {"pass", "fail", "unknown", "not-reached"}
        verdicts = answer.verdicts()
        assert verdicts["bridge.output"] == "fail"
        # host.neigh: who is not asked cannot answer; that is no verdict on the neighbour table.
        assert all(verdicts[hop] == "pass" for hop in ("host.route", "host.output", "bridge.dev")), verdicts
        assert all(verdicts[hop] != "pass" for hop in ("tap.egress", "tap.queue")), verdicts
        first = answer.first
        assert {"id", "role", "layer", "title", "explanation", "evidence", "dies_at", "confidence", "repair"} <= first.keys()
        assert first["layer"] == "L2"
        assert 0 < first["confidence"] <= 1
        for one in first["evidence"]:
            assert set(one) == {"source", "where", "fact"} and all(one.values())
        assert {"safe", "plan", "applied", "proven"} <= first["repair"].keys()
        assert first["repair"]["proven"] is None


def test_explain():
    fault = BY_KEY["bridge.port-not-forwarding 0"]
    with fault.bed() as bed:
        fault.apply(bed)
        answer = bed.doctor("--explain", json_out=False)
        assert answer.status == 10
        assert "\x1b" not in answer.out, "colour where there is no terminal"
        for hop in HOPS[:15]:
            assert hop in answer.out
        assert bed.vm.tap in answer.out
        assert "bridge link set" in answer.out, "what to do"


def test_explain_on_a_terminal():
    import pty

    fault = BY_KEY["tap.down"]
    with fault.bed() as bed:
        fault.apply(bed)
        master, slave = pty.openpty()
        process = subprocess.Popen([MCTL, "doctor", "--netns", bed.lab.name, "--bridge", "br0", "--tap", bed.vm.tap, "--guest-ip", bed.vm.address,
                                    "--explain"], stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm"})
        os.close(slave)
        told = b""
        while select.select([master], [], [], 20)[0]:
            try:
                told += os.read(master, 65536)
            except OSError:
                break
        os.close(master)
        assert process.wait() == 10
        red = [line for line in told.decode().splitlines() if "\x1b[" in line and "tap.dev" in line]
        assert red, told.decode()


def blocks(data):
    """(type, body) of each block of a pcapng file. Source: draft-ietf-opsawg-pcapng, section 3.1."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        assert size >= 12 and size % 4 == 0 and at + size <= len(data)
        assert struct.unpack_from("<I", data, at + size - 4)[0] == size
        yield kind, data[at + 8 : at + size - 4]
        at += size


def options(data):
    at, found = 0, {}
    while at + 4 <= len(data):
        code, size = struct.unpack_from("<HH", data, at)
        if code == 0:
            break
        found.setdefault(code, []).append(data[at + 4 : at + 4 + size])
        at += 4 + (size + 3) // 4 * 4
    return found


def test_capture(tmp_path):
    file = tmp_path / "out.pcapng"
    fault = BY_KEY["ebtables.drop output"]
    with fault.bed() as bed:
        fault.apply(bed)
        assert bed.doctor("--capture", file).status == 10
        found = list(blocks(file.read_bytes()))
        assert found[0][0] == 0x0A0D0D0A
        assert struct.unpack_from("<I", found[0][1])[0] == 0x1A2B3C4D
        names, frames, comments = [], {}, []
        for kind, body in found:
            if kind == 1:
                names.append(options(body[8:])[2][0].decode().rstrip("\0"))
            if kind == 6:
                interface, _, _, kept, length = struct.unpack_from("<IIIII", body)
                assert kept <= length
                frame = body[20 : 20 + kept]
                frames.setdefault(names[interface], []).append(frame)
                comments += options(body[20 + (kept + 3) // 4 * 4 :]).get(1, [])
        assert any("br0" in name for name in names) and any(bed.vm.tap in name for name in names), names
        on_bridge = next(frames[name] for name in frames if "br0" in name)
        assert any(frame[12:14] == b"\x08\x06" for frame in on_bridge), "the who-has is not in it"
        assert comments and all(text.decode() for text in comments)
        if subprocess.run(["which", "tcpdump"], capture_output=True, check=False).returncode == 0:
            assert "ARP" in subprocess.run(["tcpdump", "-nr", file], capture_output=True, text=True, check=True).stdout


def read_until(process, words, seconds):
    """Standard output until all of the words were in it. Return: seconds needed, or None."""
    begin, text = time.monotonic(), ""
    os.set_blocking(process.stdout.fileno(), False)
    while time.monotonic() < begin + seconds:
        if select.select([process.stdout], [], [], 0.02)[0]:
            text += (os.read(process.stdout.fileno(), 1 << 16) or b"").decode()
        if all(word in text for word in words):
            return time.monotonic() - begin
    return None


@pytest.mark.parametrize("key", ["tap.down", "ebtables.drop output", "bridge.port-not-forwarding 0", "qdisc.drops blackhole"], ids=lambda k: k.replace(" ", ","))
def test_watch(key):
    """A new finding is told within a second of the change, and an idle watch costs next to nothing."""
    fault = BY_KEY[key]
    with fault.bed() as bed:
        watch = subprocess.Popen([MCTL, "--json", "doctor", "--netns", bed.lab.name, "--bridge", "br0", "--tap", bed.vm.tap, "--guest-ip",
                                  bed.vm.address, "--guest-mac", bed.vm.mac, "--watch"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        bed.lab.children.append(watch)
        assert read_until(watch, ['"healthy"'], 5) is not None, watch.stderr.read()
        ticks = [sum(map(int, open(f"/proc/{watch.pid}/stat").read().rsplit(")", 1)[1].split()[11:13])) for _ in (0, time.sleep(1.5))]
        assert ticks[1] - ticks[0] <= 5, "an idle watch works"
        fault.inject(bed)
        needed = read_until(watch, [f'"{fault.id}"'], 5)
        watch.kill()
        assert needed is not None, watch.stderr.read()
        assert needed <= 1.0, f"told after {needed:.2f} s"


@pytest.mark.parametrize("arguments, status", [
    (["--netns", "no-such-namespace"], (1, 4)),
    (["--bridge", "nosuch0"], (1, 4, 10)),
    (["--tap", "fc-vm-none", "--guest-ip", "192.168.0.300"], (2,)),
    (["--tap", "fc-vm-none", "--guest-port", "70000"], (2,)),
    (["--tap", "fc-vm-none", "--guest-mac", "zz:00"], (2,)),
    (["--tap", "a-name-that-is-longer-than-any"], (2, 4, 10)),
    (["--vm", "vm-nothing"], (4,)),
    (["--frobnicate"], (2,)),
    (["--guest-ip", "192.168.0.2"], (2,)),
    (["--from", "/dev/null", "--repair"], (1, 2)),
])
def test_refusals(arguments, status):
    with Lab() as lab:
        base = [] if "--netns" in arguments else ["--netns", lab.name]
        done = subprocess.run([MCTL, "--json", "doctor", *base, *arguments], capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode in status, done
        document = json.loads(done.stdout)
        assert done.returncode == 10 or {"code", "title", "detail", "hint"} <= document["error"].keys(), document

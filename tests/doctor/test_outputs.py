"""What a person gets: --explain, --capture, --watch, and refusals in words."""
import json
import os
import select
import stat
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


STORIES = [  # fault, in the first two lines, in the story
    ("bridge.port-not-forwarding 0", "is disabled", "never on"),
    ("ebtables.drop output", "filter OUTPUT handle", "never on"),
    ("tap.no-holder", "no process holds", "never on"),
    ("vmm.stalled", "nobody reads", "was seen going out on"),
    ("tc.ingress-drop", "ingress", "the answer came in there, and never got as far as br0"),
    ("nft.bridge-drop input", "somebody theirs", "was answered"),
    ("host.blackhole-route blackhole", "blackhole", "refused by the host's own kernel"),
    ("host.route-elsewhere", "wan0", "left by wan0 and not by br0"),
    ("guest.service-down", "nothing listens", "the guest itself refused it"),
    ("bridge.bcast-flood-off", "broadcasts are not flooded", "from another port entered the bridge"),
    ("host.no-masquerade", "nothing masquerades", "went out by wan0, and no answer came"),
]


@pytest.mark.parametrize("key, head, story", STORIES, ids=[s[0].replace(" ", ",") for s in STORIES])
def test_story(key, head, story):
    """Where it is red stands on top; then what was sent, how far it came, what ate it, how we know, what to do."""
    fault = BY_KEY[key]
    with fault.bed() as bed:
        fault.apply(bed)
        out = bed.doctor("--explain", json_out=False).out
        lines = out.splitlines()
        assert lines[0].startswith("SICK") and bed.vm.tap in lines[0] and head in lines[1], out
        assert [line.split()[2] for line in lines if line.startswith("> FAIL")][:1] == [fault.hop], out
        flat = " ".join(out.split())
        assert story in flat, out
        for part in ("sent: ARP: ", "how far: ", f"root cause: {fault.id} at {fault.hop}", "what: ", "we know: [", "mend: "):
            assert part in flat, f"{part}: {out}"
        assert max(len(line) for line in lines if "mctl doctor" not in line and "mend:" not in line) <= 100, out
        short = bed.doctor(json_out=False).out
        assert len(short.splitlines()) <= 12 and head in short and fault.id in short, short


def test_short_of_many():
    """A host with many TAPs: the sick one first, the others in one line."""
    with Lab() as lab:
        guests = [lab.guest() for _ in range(3)]
        lab.batch("\n".join(f"tuntap add dev x{n} mode tap\nlink set x{n} master br0 up" for n in range(12)))
        lab.warm()
        healthy = lab.doctor(json_out=False).out
        assert "healthy" in healthy.splitlines()[-1] and "SICK" not in healthy, healthy
        assert len(healthy.splitlines()) < 15, healthy
        lab.bridge("link", "set", "dev", guests[2].tap, "state", "0")
        lab.cold()
        out = lab.doctor(json_out=False).out
        assert out.splitlines()[0].startswith(f"SICK  {guests[2].tap}"), out
        assert out.count("SICK") == 1, out
        assert "not healthy: 1 root cause" in out.splitlines()[-1], out


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
        check_with_wireshark(file, bed.vm)


def check_with_wireshark(file, vm):
    """What the tools that it is meant for make of it."""
    told = subprocess.run(["capinfos", file], capture_output=True, text=True, check=True).stdout
    assert "pcapng" in told and "Ethernet" in told, told
    fields = ["frame.interface_name", "frame.packet_flags_direction", "arp.opcode", "frame.comment", "_ws.expert.message"]
    rows = subprocess.run(["tshark", "-nr", file, "-T", "fields", "-E", "separator=|", *[word for f in fields for word in ("-e", f)]],
                          capture_output=True, text=True, check=True)
    assert "malformed" not in rows.stdout.lower(), rows.stdout
    packets = [line.split("|") for line in rows.stdout.splitlines()]
    assert {p[0] for p in packets} >= {"br0"}, packets
    asked = [p for p in packets if p[0] == "br0" and p[3].startswith("doctor: arp, question")]
    assert asked and all(p[1] in ("0x00000002", "2") for p in asked), "the host sends it: outbound"
    died = [p[3] for p in packets if "no answer came" in p[3]]
    assert died and any("OUTPUT" in comment or "dropped" in comment for comment in died), packets
    times = subprocess.run(["tshark", "-nr", file, "-T", "fields", "-e", "frame.time_epoch"], capture_output=True, text=True, check=True)
    assert all(abs(float(line) - time.time()) < 60 for line in times.stdout.split()), "not this day's clock"


def test_capture_side_by_side(tmp_path):
    """A healthy way: question and answer on the bridge and on the TAP, each with its direction."""
    file = tmp_path / "out.pcapng"
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        assert lab.doctor(guest, "--capture", file).status == 0
        assert file.stat().st_mode & 0o777 == 0o600
        rows = subprocess.run(["tshark", "-nr", file, "-Y", f"icmp && ip.addr == {guest.address}", "-T", "fields", "-E", "separator=|", "-e",
                               "frame.interface_name", "-e", "frame.packet_flags_direction", "-e", "icmp.type"],
                              capture_output=True, text=True, check=True)
        seen = {(name, int(direction, 0), kind) for name, direction, kind in (line.split("|") for line in rows.stdout.splitlines())}
        assert {("br0", 2, "8"), (guest.tap, 2, "8"), (guest.tap, 1, "0"), ("br0", 1, "0")} <= seen, seen


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


def switches(pid):
    """How often each thread went to sleep: who is never woken sleeps once."""
    return sum(int(line.split()[1]) for task in os.listdir(f"/proc/{pid}/task") for line in open(f"/proc/{pid}/task/{task}/status")
               if line.startswith("voluntary"))


def start_watch(bed, *args, out=subprocess.PIPE):
    watch = subprocess.Popen([MCTL, "--json", "doctor", "--netns", bed.lab.name, "--bridge", "br0", "--tap", bed.vm.tap, "--guest-ip",
                              bed.vm.address, "--guest-mac", bed.vm.mac, "--guest-port", "6080", "--watch", *args], stdout=out,
                             stderr=subprocess.PIPE)
    bed.lab.children.append(watch)
    return watch


def sleeps(watch):
    """Waits until it has looked and then is not woken once in a while, which on an idle host must be so."""
    for _ in range(15):
        before = switches(watch.pid)
        time.sleep(1.6)
        if switches(watch.pid) == before:
            return
    raise AssertionError("an idle watch is woken, again and again")


WATCHED = ["tap.down", "ebtables.drop output", "bridge.port-not-forwarding 0", "qdisc.drops blackhole", "host.blackhole-route blackhole",
           "host.neigh-wrong", "nft.netdev-drop ingress", "tap.no-holder", "host.arp-ignore"]


@pytest.mark.parametrize("key", WATCHED, ids=lambda k: k.replace(" ", ","))
def test_watch(key):
    """A new finding is told within a second of the change; an idle watch is not woken at all."""
    fault = BY_KEY[key]
    with fault.bed() as bed:
        watch = start_watch(bed)
        assert read_until(watch, ['"healthy"'], 5) is not None, watch.stderr.read()
        sleeps(watch)
        fault.inject(bed)
        needed = read_until(watch, [f'"{fault.id}"'], 5)
        watch.kill()
        assert needed is not None, watch.stderr.read()
        assert needed <= 1.0, f"told after {needed:.2f} s"


def test_watch_tells_what_only_asking_shows():
    """A change that by itself is none makes it look, and asking shows what the state does not."""
    with BY_KEY["guest.firewall input"].bed() as bed:
        watch = start_watch(bed)
        assert read_until(watch, ['"healthy": true'], 5) is not None
        sleeps(watch)
        BY_KEY["guest.firewall input"].inject(bed)
        bed.lab.cold()
        bed.lab.ip("address", "add", "10.99.0.1/32", "dev", "lo")
        assert read_until(watch, ['"guest.firewall"'], 8) is not None, watch.stderr.read()
        bed.vm.nft("flush ruleset")
        bed.lab.ip("address", "del", "10.99.0.1/32", "dev", "lo")
        assert read_until(watch, ['"healthy": true'], 8) is not None, "it is not told that it is well again"


def test_watch_ends_with_its_reader():
    with BY_KEY["tap.down"].bed() as bed:
        watch = start_watch(bed)
        assert read_until(watch, ['"healthy"'], 5) is not None
        watch.stdout.close()
        assert watch.wait(5) == 0


def refused(*arguments, status, lab=None, env=None, words=()):
    """A refusal is one document with its four members, in words nothing on standard output and a hint."""
    base = ["--netns", lab.name] if lab and "--netns" not in arguments else []
    command = [MCTL, "--json", "doctor", *base, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=30, env={**os.environ, **(env or {})})
    assert done.returncode == status, done
    error = json.loads(done.stdout)["error"]
    assert set(error) == {"code", "title", "detail", "hint"} and all(error.values()), error
    for word in words:
        assert word in error["detail"] + error["hint"], error
    command.remove("--json")
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=30, env={**os.environ, **(env or {})})
    assert done.returncode == status, done
    assert error["detail"].split(":")[0] in done.stderr, done
    return error


USAGE = [
    ["--tap", "fc-vm-none", "--guest-ip", "192.168.0.300"],
    ["--tap", "fc-vm-none", "--guest-ip", "127.0.0.1"],
    ["--tap", "fc-vm-none", "--guest-ip", "224.0.0.1"],
    ["--tap", "fc-vm-none", "--guest-port", "70000"],
    ["--tap", "fc-vm-none", "--guest-port", "0"],
    ["--tap", "fc-vm-none", "--guest-port", "+80"],
    ["--tap", "fc-vm-none", "--guest-mac", "zz:00"],
    ["--tap", "fc-vm-none", "--guest-mac", "01:00:5e:00:00:01"],
    ["--tap", "fc-vm-none", "--guest-mac", "00:00:00:00:00:00"],
    ["--tap", "a-name-that-is-longer-than-any"],
    ["--tap", ""], ["--tap", "a/b"], ["--tap", "a b"],
    ["--bridge", "a-name-that-is-longer-than-any"],
    ["--netns", "../../etc/passwd"],
    ["--vm", ""],
    ["--vm", "a", "--tap", "b"],
    ["--frobnicate"], ["--watch=1"], ["--tap"], ["fc-vm-1"], ["-x"],
    ["--guest-ip", "192.168.0.2"],
    ["--from", "/dev/null", "--repair"],
    ["--from", "/dev/null", "--capture", "x"],
    ["--watch", "--repair"], ["--watch", "--save", "x"],
    ["--undo", "r20260102T030405-1a2b", "--repair"],
    ["--no-probe", "--capture", "x"],
    ["--save", ""],
]


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_usage(arguments):
    refused(*arguments, status=2)


@pytest.fixture(scope="module")
def host():
    with Lab() as lab:
        lab.guest()
        lab.warm()
        yield lab


def test_unknown_things(host, tmp_path):
    refused("--netns", "no-such-namespace", status=4, words=["no-such-namespace", "ip netns"])
    refused("--bridge", "nosuch0", status=4, lab=host, words=["nosuch0", "br0"])
    refused("--bridge", "lo", status=4, lab=host, words=["lo", "br0"])
    refused("--vm", "vm-nothing", status=4, lab=host, words=["vm-nothing", "--tap"])
    refused("--undo", "r20260102T030405-1a2b", status=4, lab=host, env={"MC_DOCTOR_JOURNAL": str(tmp_path)})
    refused("--from", tmp_path / "none", status=4, words=["none", "--save"])
    refused("--from", tmp_path, status=1, words=["--save"])
    (tmp_path / "text").write_text("{}")
    refused("--from", tmp_path / "text", status=1, words=["text", "--save"])
    with Lab(address=None) as empty:
        empty.ip("link", "del", "br0")
        refused("--bridge", "br0", status=4, lab=empty, words=["no bridge", "--netns"])


def state_of(lab):
    """What somebody set; carriers and timers come and go."""
    links = [(link["ifname"], link.get("master"), link["mtu"], link["address"], "UP" in link["flags"]) for link in json.loads(lab.ip("-j", "link", "show"))]
    ports = [{k: v for k, v in port.items() if k not in ("flags", "state")} for port in json.loads(lab.bridge("-j", "-d", "link", "show"))]
    routes = [{k: v for k, v in route.items() if k != "flags"} for route in json.loads(lab.ip("-j", "route", "show"))]
    return links, ports, routes, lab.ip("rule", "show"), lab.run("nft", "list", "ruleset")


@pytest.fixture
def full_disk(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", tmp_path], check=True)
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("option", ["--save", "--capture"])
def test_unwritable_files(full_disk, option):
    """No file, no repair, nothing changed; and a device such as /dev/null stays what it is."""
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        lab.ip("link", "set", guest.tap, "down")
        lab.cold()
        before = state_of(lab)
        base = ["--bridge", "br0", "--tap", guest.tap, "--guest-ip", guest.address, "--guest-mac", guest.mac, "--repair"]
        env = {"MC_DOCTOR_JOURNAL": str(full_disk / "journal")}
        (full_disk / "fill").write_bytes(b"x" * 12 * 1024)
        refused(*base, option, "/no/such/folder/file", status=4, lab=lab, env=env, words=["/no/such/folder/file", "folder"])
        refused(*base, option, full_disk, status=1, lab=lab, env=env, words=["folder"])
        refused(*base, option, full_disk / "out", status=1, lab=lab, env=env, words=["full"])
        assert os.listdir(full_disk) == ["fill"], "half a file was left"
        assert state_of(lab) == before
        done = subprocess.run([MCTL, "--json", "doctor", "--netns", lab.name, *base[:-1], option, "/dev/null"], capture_output=True, check=False)
        assert done.returncode == 10, done
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("json_out", [True, False])
@pytest.mark.parametrize("how", ["pipe", "full"])
def test_nobody_reads(host, how, json_out):
    """A report that could not be written is no success."""
    guest = host.guests[0]
    before = state_of(host)
    if how == "pipe":
        reader, out = os.pipe()
        os.close(reader)
    else:
        out = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run([MCTL, *(["--json"] if json_out else []), "doctor", "--netns", host.name, "--tap", guest.tap, "--guest-ip",
                           guest.address, "--explain"], stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    os.close(out)
    assert done.returncode == 1, done
    assert "standard output" in done.stderr, done
    assert state_of(host) == before


def test_help():
    done = subprocess.run([MCTL, "doctor", "--help"], capture_output=True, text=True, check=True)
    for option in ("--netns", "--bridge", "--vm", "--tap", "--guest-ip", "--guest-mac", "--guest-port", "--repair", "--undo", "--explain",
                   "--capture", "--no-trace", "--no-probe", "--save", "--from", "--watch"):
        assert option in done.stdout

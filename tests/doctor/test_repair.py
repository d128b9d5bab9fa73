"""Repairs: what is safe is done when asked, what belongs to others only by name; proven; taken back by its journal's id."""
import json
import os
import signal
import subprocess
import threading
import time

import pytest

from faults import FAULTS
from lab import BPF_ATTACH, MCTL, Lab, run
from test_catalogue import ONLY_INJECT, broken, named

TC_NEXT = -1  # the next program decides
SAFE = [f for f in FAULTS if f.repair == "safe"]
NAMED = [f for f in FAULTS if f.repair == "named"]
# A BPF program whose last holder let it go is no more: nobody can give it back, and --undo says so.
IRREVERSIBLE = ("tap.xdp-drop", "tc.egress-drop", "tc.egress-drop bridge", "tc.ingress-drop", "tc.ingress-drop bridge", "tc.egress-drop tcx",
                "tc.ingress-drop tcx")
pytestmark = pytest.mark.skipif(bool(ONLY_INJECT), reason="there is no doctor")


@pytest.fixture
def journal(tmp_path):
    return {"MC_DOCTOR_JOURNAL": str(tmp_path)}


def mended(bed, answer, fault):
    """The doctor says that it mended it, and it is so: with both caches empty."""
    done = [f for f in answer.findings if f["repair"] and f["repair"]["applied"]]
    assert done, answer
    assert all(f["repair"]["proven"] is True for f in done), answer
    assert answer.status == 11, answer
    bed.lab.cold()
    for check in fault.repaired or fault.dead:
        assert bed.works(check, 2), f"{check} is still dead: {answer}"
    assert bed.doctor().status == 0
    return done


def undo(bed, done, journal, fault):
    for finding in reversed(done):
        answer = bed.lab.doctor(bed.vm, "--undo", finding["repair"]["journal"], env=journal)
        if fault.key in IRREVERSIBLE:
            assert (answer.status, answer.json["error"]["code"]) == (1, "repair.irreversible"), answer
            return
        assert answer.status in (0, 10), answer  # 10: what it took back is a fault
    bed.lab.cold()
    assert bed.broken(fault.dead) == list(fault.dead), "undo took nothing back"


@pytest.mark.parametrize("fault", SAFE, ids=lambda f: f.key.replace(" ", ","))
def test_safe(fault, journal):
    with fault.bed() as bed:
        fault.apply(bed)
        broken(bed, fault)
        offered = bed.doctor()
        assert offered.first["repair"]["safe"] is True, offered
        assert offered.first["repair"]["plan"], offered
        assert offered.first["repair"]["applied"] is False
        bed.lab.cold()
        assert bed.broken(fault.dead) == list(fault.dead), "it mended without being asked"
        answer = bed.doctor("--repair", env=journal)
        done = mended(bed, answer, fault)
        undo(bed, done, journal, fault)


@pytest.mark.parametrize("fault", NAMED, ids=lambda f: f.key.replace(" ", ","))
def test_only_by_name(fault, journal):
    with fault.bed() as bed:
        fault.apply(bed)
        broken(bed, fault)
        answer = bed.doctor("--repair", env=journal)
        first = answer.first
        assert answer.status == 10, answer
        assert first["repair"]["safe"] is False, answer
        assert first["repair"]["plan"], answer
        assert not any(f["repair"]["applied"] for f in answer.findings if f["repair"]), answer
        bed.lab.cold()
        assert bed.broken(fault.dead) == list(fault.dead)
        answer = bed.doctor(f"--repair={first['id']}", env=journal)
        done = mended(bed, answer, fault)
        undo(bed, done, journal, fault)


@pytest.mark.parametrize("where", ["egress", "ingress"])
def test_tcx_by_a_link(journal, where):
    """A program that hangs by its owner's link, before one that does no harm: it alone is taken off, and put back to its place."""
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        owner = subprocess.Popen(["nsenter", f"--net=/run/netns/{lab.name}", BPF_ATTACH, "their_drop", "2", guest.tap, f"tcx-link-{where}"],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        lab.children.append(owner)
        program = owner.stdout.readline().strip()
        after = lab.bpf("after", TC_NEXT, guest.tap, f"tcx-{where}")
        lab.cold()
        assert not lab.ping(guest.address, 0.35)
        answer = lab.doctor(guest, "--repair", env=journal)
        assert (answer.status, answer.first["id"]) == (10, f"tc.{where}-drop"), answer
        assert named(answer.first, ["their_drop", f"program {program}", "by link", guest.tap]) == [], answer
        assert any("bpftool link detach id" in line for line in answer.first["repair"]["plan"]), answer
        answer = lab.doctor(guest, f"--repair=tc.{where}-drop", env=journal)
        done = [f for f in answer.findings if f["repair"] and f["repair"]["applied"]]
        assert (answer.status, [f["repair"]["proven"] for f in done]) == (11, [True]), answer
        assert lab.ping(guest.address), answer
        saved = journal["MC_DOCTOR_JOURNAL"] + "/case.json"
        assert lab.doctor(guest, "--save", saved).status == 0
        assert programs(saved) == [int(after)]
        assert lab.doctor(guest, "--undo", done[0]["repair"]["journal"], env=journal).status in (0, 10)
        lab.doctor(guest, "--save", saved)
        assert programs(saved) == [int(program), int(after)]
        lab.cold()
        assert not lab.ping(guest.address, 0.35), "undo took nothing back"


def programs(saved):
    """The programs on tcx, in their order, of a saved case."""
    def rows(value):
        if isinstance(value, dict):
            return [value] if value.get("is_tcx") else [r for v in value.values() for r in rows(v)]
        return [r for v in value for r in rows(v)] if isinstance(value, list) else []

    with open(saved) as file:
        before = json.load(file)["before"]
    return [row["prog_id"] for row in rows(before)]


def test_holder_is_never_cut_off(journal):
    """A dead VM's TAP is not deleted, a stopped VMM not resumed, by a plain --repair."""
    with Lab() as lab:
        guest, other = lab.guest(), lab.guest()
        lab.tap("fc-vm-dead1")
        lab.warm()
        guest("stall")
        lab.cold()
        answer = lab.doctor(guest, "--repair", env=journal)
        assert answer.status == 10, answer
        assert "fc-vm-dead1" in lab.links()
        assert other.tap in lab.links()
        assert not lab.ping(guest.address, 0.3)


def test_repair_that_does_not_help_is_taken_back(journal):
    """Two faults, one of them not to be repaired: what was safe is done or taken back, and exit is not 11."""
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        lab.run("ebtables", "-A", "OUTPUT", "-o", guest.tap, "-j", "DROP")
        lab.ip("link", "set", guest.tap, "down")
        lab.cold()
        answer = lab.doctor(guest, "--repair", env=journal)
        assert answer.status == 10, answer
        assert "DROP" in lab.run("ebtables", "-L", "OUTPUT")
        assert not lab.ping(guest.address, 0.3)


def test_named_repair_of_what_is_not_there(journal):
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        answer = lab.doctor(guest, "--repair=tap.down", env=journal)
        assert answer.status == 0, answer


def test_undo_of_nothing(journal):
    with Lab() as lab:
        answer = lab.doctor(None, "--undo", "r20260102T030405-1a2b", env=journal)
        assert answer.status == 4, answer
        assert answer.json["error"]["code"]
        answer = lab.doctor(None, "--undo", "../../etc/passwd", env=journal)
        assert answer.status in (2, 4), answer


def test_undo_refuses_what_changed(journal):
    """Somebody put the port elsewhere since: the journal's before is no longer anybody's."""
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        lab.ip("link", "set", guest.tap, "nomaster")
        lab.cold()
        answer = lab.doctor(guest, "--repair", env=journal)
        assert answer.status == 11, answer
        number = answer.first["repair"]["journal"]
        lab.batch(f"link add br9 type bridge\nlink set {guest.tap} master br9")
        answer = lab.doctor(guest, "--undo", number, env=journal)
        assert (answer.status, answer.json["error"]["code"]) == (5, "repair.changed"), answer
        assert answer.json["error"]["hint"]
        assert lab.link(guest.tap)["master"] == "br9"


def test_journal_is_private(journal, tmp_path):
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        lab.ip("link", "set", guest.tap, "down")
        assert lab.doctor(guest, "--repair", env=journal).status == 11
        assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".json") == ["lock"]
        entries = list(tmp_path.glob("*.json"))
        assert len(entries) == 1
        assert entries[0].stat().st_mode & 0o777 == 0o600
        entry = json.loads(entries[0].read_text())
        assert (entry["finding"], entry["state"], entry["netns"]) == ("tap.down", "proven", lab.name), entry
        (step,) = entry["steps"]
        assert step["step"]["dev"] == guest.tap and step["before"] and step["after"] and step["before"] != step["after"], entry


@pytest.mark.parametrize("finding, change, path", [
    ("bridge.learning-off", ["bridge", "link", "set", "dev", "$TAP", "learning", "off"], "/sys/class/net/$TAP/brport/learning"),
    ("bridge.ageing-zero", ["ip", "link", "set", "br0", "type", "bridge", "ageing_time", "0"], "/sys/class/net/br0/bridge/ageing_time"),
])
def test_notes_by_name(finding, change, path, journal):
    """What is only noted is left alone by --repair, and set back when it is named."""
    with Lab() as lab:
        guest = lab.guest()
        lab.guest()
        lab.warm()
        fill = lambda text: text.replace("$TAP", guest.tap)
        now = lambda: run("ip", "netns", "exec", lab.name, "cat", fill(path)).strip()  # it has a /sys of the namespace's own
        usual = now()
        lab.run(*[fill(word) for word in change])
        assert now() == "0" != usual
        assert lab.doctor(guest, "--repair", env=journal).status == 0 and now() == "0"
        answer = lab.doctor(guest, f"--repair={finding}", env=journal)
        done = [f["repair"] for f in answer.findings if f["id"] == finding]
        assert (answer.status, [(d["applied"], d["proven"]) for d in done]) == (0, [(True, True)]), answer
        assert now() == usual
        assert lab.doctor(guest, "--undo", done[0]["journal"], env=journal).status == 0
        assert now() == "0"


def start_repair(lab, guest, journal, which="--repair"):
    return subprocess.Popen([MCTL, "--json", "doctor", "--netns", lab.name, "--bridge", "br0", "--tap", guest.tap, "--guest-ip", guest.address,
                             "--guest-mac", guest.mac, which], env={**os.environ, **journal}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_while_unfinished(process, folder):
    """Kills it between its first write to the journal and its last. Return: the id that was under way."""
    until = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < until:
        if (folder / "unfinished").exists():
            process.send_signal(signal.SIGKILL)
            process.wait()
            return (folder / "unfinished").read_text() if (folder / "unfinished").exists() else None
        time.sleep(0.001)
    raise AssertionError(f"it was never in the middle: {process.poll()}")


@pytest.mark.parametrize("how", ["again", "undo"])
def test_killed_in_the_middle(journal, tmp_path, how):
    """A doctor that was killed before it had proven its repair: the next one, or --undo, takes it back."""
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        lab.bridge("link", "set", "dev", guest.tap, "state", "0")
        lab.cold()
        process = start_repair(lab, guest, journal)
        number = kill_while_unfinished(process, tmp_path)
        assert number, "it was done already"
        if how == "again":
            answer = lab.doctor(guest, "--repair", env=journal)
            assert answer.json["recovered"]["journal"] == number, answer.json
            assert answer.json["recovered"]["error"] is None, answer.json
            assert answer.status == 11, answer
            lab.cold()
            assert lab.ping(guest.address)
        else:
            answer = lab.doctor(guest, "--undo", number, env=journal)
            assert answer.status == 0, answer
            port = json.loads(lab.bridge("-j", "-d", "link", "show", "dev", guest.tap))[0]
            assert port["state"] == "disabled", port
            assert lab.doctor(guest, "--undo", number, env=journal).status == 5
        assert not (tmp_path / "unfinished").exists()
        assert lab.doctor(guest, "--repair", env=journal).json.get("recovered") is None


def write_half_done(folder, entry, marker=True):
    """As a doctor leaves it that dies right behind its first step."""
    entry.write_text(json.dumps({**json.loads(entry.read_text()), "state": "applying"}))
    text = json.loads(entry.read_text())
    for step in text["steps"]:
        step.update(done=False, undone=False, after="")
    entry.write_text(json.dumps(text))
    if marker:
        (folder / "unfinished").write_text(text["id"])
    return text["id"]


@pytest.mark.parametrize("done", [True, False], ids=["done", "not-done"])
def test_journal_of_one_that_died_applying(journal, tmp_path, done):
    """Nobody wrote down whether the step was done: the object itself tells."""
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        handle = lab.chain("bridge", "somebody", "theirs", "type filter hook output priority 0", f"oifname {guest.tap} drop")[-1]
        lab.cold()
        answer = lab.doctor(guest, "--repair=nft.bridge-drop", env=journal)
        assert answer.status == 11, answer
        entry = next(tmp_path.glob("*.json"))
        before = entry.read_text()
        if not done:
            assert lab.doctor(guest, "--undo", json.loads(before)["id"], env=journal).status == 0
            handle = lab.handles("bridge", "somebody", "theirs")[-1]
            text = json.loads(before)
            text["steps"][0]["step"]["handle"] = int(handle)
            before = json.dumps(text)
        entry.write_text(before)
        number = write_half_done(tmp_path, entry)
        assert lab.doctor(guest, "--undo", number, env=journal).status == 0
        assert len(lab.handles("bridge", "somebody", "theirs")) == 1, "it was put back, and only once"
        assert not (tmp_path / "unfinished").exists()


def test_two_that_repair(journal):
    """They take turns; none undoes what the other one did."""
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        lab.ip("link", "set", guest.tap, "down")
        lab.bridge("link", "set", "dev", guest.tap, "isolated", "on")
        lab.cold()
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(lab.doctor(guest, "--repair", env=journal))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted({a.status for a in answers}) in ([0, 11], [11]), answers
        assert [a.status for a in answers].count(11) >= 1, answers
        lab.cold()
        assert lab.ping(guest.address)
        assert lab.doctor(guest).status == 0


@pytest.mark.parametrize("name, status", [("tap.dwon", 2), ("", 2), ("unknown.bridge.port", 2), ("vmm.stalled", 0), ("tap.down", 0)])
def test_names_of_repairs(journal, name, status):
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        answer = lab.doctor(guest, f"--repair={name}", env=journal)
        assert answer.status == status, answer
        assert answer.json["error"]["hint"] if status else answer.json["not_repaired"], answer.json


def test_a_repair_that_only_a_person_can_do(journal):
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        guest("stall")
        lab.cold()
        answer = lab.doctor(guest, "--repair=vmm.stalled", env=journal)
        assert answer.status == 10, answer
        assert answer.json["not_repaired"], answer.json
        assert answer.first["repair"]["applied"] is False


def test_a_journal_that_cannot_be_written(tmp_path):
    """Nothing is changed that could not be taken back."""
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        lab.ip("link", "set", guest.tap, "down")
        (tmp_path / "file").write_text("")
        answer = lab.doctor(guest, "--repair", env={"MC_DOCTOR_JOURNAL": str(tmp_path / "file" / "journal")})
        assert (answer.status, answer.json["error"]["code"]) == (1, "repair.journal"), answer
        assert "UP" not in lab.link(guest.tap)["flags"]


def test_wrong_bridge_that_nobody_named(journal):
    """Without --bridge and without a record nobody can say that the other bridge is the wrong one."""
    with Lab() as lab:
        guest = lab.guest()
        lab.guest()
        lab.warm()
        lab.batch(f"link add br1 type bridge\nlink set br1 up\nlink set {guest.tap} master br1")
        subprocess.run([MCTL, "--json", "doctor", "--netns", lab.name, "--tap", guest.tap, "--guest-ip", guest.address, "--repair"],
                       capture_output=True, check=False, env={**os.environ, **journal})
        assert lab.link(guest.tap)["master"] == "br1"


def test_somebody_works_against_it(journal, tmp_path):
    """A repair that somebody undoes at once did not help: it says so, and nothing is left open in the journal."""
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        stop = threading.Event()

        def tear_down():
            while not stop.is_set():
                lab.ip("link", "set", guest.tap, "down")
                time.sleep(0.01)

        lab.ip("link", "set", guest.tap, "down")
        lab.cold()
        thread = threading.Thread(target=tear_down)
        thread.start()
        try:
            answer = lab.doctor(guest, "--repair", env=journal)
        finally:
            stop.set()
            thread.join()
        assert answer.status == 10, answer
        assert answer.first["id"] == "tap.down" and answer.first["repair"]["proven"] in (False, None), answer
        assert not answer.first["repair"]["applied"], answer
        assert not (tmp_path / "unfinished").exists()
        answer = lab.doctor(guest, "--repair", env=journal)
        assert answer.status == 11 and "recovered" not in answer.json, answer


def test_the_whole_bridge_was_made_again(journal):
    """No TAP is a port of the new bridge: all are attached again in one run, also those that stop being found when the first is."""
    with Lab() as lab:
        guests = [lab.guest() for _ in range(3)]
        lab.batch(f"link del br0\nlink add br0 type bridge\nlink set br0 up\naddress add {lab.address} dev br0")
        answer = lab.doctor(None, "--repair", env=journal)
        assert answer.status == 11, answer
        for guest in guests:
            assert lab.link(guest.tap)["master"] == "br0", answer
            assert lab.ping(guest.address), answer


def test_a_port_is_given_back_as_it_was(journal):
    """A TAP that is taken from another bridge and back has all that was set of its port there."""
    with Lab() as lab:
        guest = lab.guest()
        lab.batch(f"link add br1 type bridge\nlink set br1 up\nlink set {guest.tap} master br1")
        lab.bridge("link", "set", "dev", guest.tap, "hairpin", "on", "cost", "77", "isolated", "on", "learning", "off")
        before = lab.bridge("-d", "link", "show", "dev", guest.tap)
        answer = lab.doctor(guest, "--repair", env=journal)
        assert (answer.status, answer.first["id"]) == (11, "tap.wrong-bridge"), answer
        assert lab.doctor(guest, "--undo", answer.first["repair"]["journal"], env=journal).status == 0
        assert lab.bridge("-d", "link", "show", "dev", guest.tap) == before


def test_rules_of_one_priority(journal):
    """Two policy rules have the same number: the one that is to blame is taken away, and comes back."""
    with Lab() as lab:
        guest = lab.guest()
        lab.ip("rule", "add", "to", "10.0.0.0/8", "lookup", "main", "pref", 10)
        lab.ip("rule", "add", "to", guest.address, "blackhole", "pref", 10)
        before = lab.ip("rule")
        answer = lab.doctor(guest, "--repair=host.policy-rule", env=journal)
        assert answer.status == 11, answer
        assert answer.first["repair"]["plan"] == [f"ip rule del pref 10 to {guest.address}/32 blackhole"], answer
        assert "10.0.0.0/8" in lab.ip("rule")
        assert lab.doctor(guest, "--undo", answer.first["repair"]["journal"], env=journal).status == 0
        assert sorted(lab.ip("rule").splitlines()) == sorted(before.splitlines())


def test_what_could_not_be_given_back_is_not_taken(journal):
    """The classes of a qdisc go with it: it is left to a person."""
    with Lab() as lab:
        guest = lab.guest()
        lab.tc("qdisc", "replace", "dev", guest.tap, "root", "handle", "1:", "htb", "default", "10")
        lab.tc("class", "add", "dev", guest.tap, "parent", "1:", "classid", "1:10", "htb", "rate", "8bit", "burst", "1", "cburst", "1")
        before = lab.tc("class", "show", "dev", guest.tap)
        answer = lab.doctor(guest, f"--repair={lab.doctor(guest).first['id']}", env=journal)
        assert answer.status == 10, answer
        assert answer.json["not_repaired"] and answer.first["repair"]["safe"] is False, answer
        assert answer.first["repair"]["plan"][0] == f"tc qdisc del dev {guest.tap} root", answer
        assert answer.first["repair"]["applied"] is False, answer
        assert lab.tc("class", "show", "dev", guest.tap) == before

"""Repairs: what is safe is done when asked, what belongs to others only by name; proven; taken back by its journal's id."""
import json

import pytest

from faults import FAULTS
from lab import Lab
from test_catalogue import ONLY_INJECT, broken

SAFE = [f for f in FAULTS if f.repair == "safe"]
NAMED = [f for f in FAULTS if f.repair == "named"]
# A BPF program whose last holder let it go is no more: nobody can give it back, and --undo says so.
IRREVERSIBLE = ("tap.xdp-drop", "tc.egress-drop", "tc.egress-drop bridge", "tc.ingress-drop", "tc.ingress-drop bridge")
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
        assert answer.status in (1, 5), answer
        assert lab.link(guest.tap)["master"] == "br9"


def test_journal_is_private(journal, tmp_path):
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        lab.ip("link", "set", guest.tap, "down")
        assert lab.doctor(guest, "--repair", env=journal).status == 11
        entries = list(tmp_path.glob("*.json"))
        assert len(entries) == 1
        assert entries[0].stat().st_mode & 0o777 == 0o600
        text = json.dumps(json.loads(entries[0].read_text()))
        assert guest.tap in text

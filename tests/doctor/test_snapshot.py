"""What was seen can be taken elsewhere: --save, then --from, gives the same findings, without the host."""
import json
import subprocess

import pytest

from faults import BY_KEY
from lab import MCTL, Lab
from test_catalogue import ONLY_INJECT

pytestmark = pytest.mark.skipif(bool(ONLY_INJECT), reason="there is no doctor")

SOME = [BY_KEY[key] for key in (
    "tap.no-holder", "tap.missing deleted", "tap.down", "tap.xdp-drop", "vmm.stalled", "bridge.port-not-forwarding 0", "bridge.flood-off",
    "bridge.port-isolated", "bridge.mtu-mismatch bridge", "qdisc.drops blackhole", "ebtables.policy-drop output", "nft.bridge-drop prerouting",
    "nft.arp-drop", "tc.egress-drop tcx", "netfilter.bridge-forward-drop", "host.route-elsewhere", "host.neigh-wrong", "host.no-masquerade",
    "guest.firewall port", "guest.duplicate-ip",
)]


def judged(answer):
    """What must be the same; times and what a repair did may differ."""
    keys = ("id", "role", "layer", "title", "explanation", "evidence", "dies_at", "confidence")
    return [
        (t["tap"], t["reachable"], [(h["hop"], h["verdict"]) for h in t["hops"]], [{k: f[k] for k in keys} for f in t["findings"]])
        for t in answer.json["targets"]
    ]


@pytest.mark.parametrize("fault", SOME, ids=lambda f: f.key.replace(" ", ","))
def test_same_elsewhere(fault, tmp_path):
    saved = tmp_path / "snapshot.json"
    with fault.bed() as bed:
        fault.apply(bed)
        live = bed.doctor("--save", saved)
        assert live.first["id"] in (fault.id, *fault.also), live
        arguments = ["--tap", bed.vm.tap, "--guest-ip", bed.vm.address, "--guest-mac", bed.vm.mac, "--guest-port", "6080"]
        target = bed.vm.tap
    json.loads(saved.read_text())
    with Lab(address=None) as empty:  # the host is gone: here is nothing of it
        later = empty.doctor(None, "--from", saved, *arguments)
        later.tap = target
    assert judged(later) == judged(live)
    assert later.status == live.status


def test_from_needs_no_arguments(tmp_path):
    saved = tmp_path / "snapshot.json"
    with BY_KEY["tap.down"].bed() as bed:
        BY_KEY["tap.down"].apply(bed)
        live = bed.doctor("--save", saved)
    done = subprocess.run([MCTL, "--json", "doctor", "--from", saved], capture_output=True, text=True, check=False)
    assert done.returncode == live.status
    assert [f["id"] for t in json.loads(done.stdout)["targets"] for f in t["findings"]] == [f["id"] for f in live.findings]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema":"something/9"}', "\0\0\0", '{"schema":' * 5000, '{"links":[{"index":"x"}]}'])
def test_garbage(tmp_path, text):
    saved = tmp_path / "snapshot.json"
    saved.write_text(text)
    done = subprocess.run([MCTL, "--json", "doctor", "--from", saved], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done
    assert json.loads(done.stdout)["error"]["code"]


def test_cut_anywhere(tmp_path):
    saved, cut = tmp_path / "snapshot.json", tmp_path / "cut.json"
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        assert lab.doctor(guest, "--save", saved).status == 0
    text = saved.read_text()
    for part in range(1, 20):
        cut.write_text(text[: len(text) * part // 20])
        done = subprocess.run([MCTL, "--json", "doctor", "--from", cut], capture_output=True, text=True, check=False)
        assert done.returncode == 1, done


def test_missing_file(tmp_path):
    done = subprocess.run([MCTL, "--json", "doctor", "--from", tmp_path / "no"], capture_output=True, text=True, check=False)
    assert done.returncode in (1, 4)
    assert json.loads(done.stdout)["error"]["code"]

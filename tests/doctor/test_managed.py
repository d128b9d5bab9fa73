"""A bridge of the controller's: what its configuration declares is put back without being asked, where that is known."""
import json

import pytest

from faults import BY_KEY
from lab import POOL
from test_catalogue import ONLY_INJECT, broken
from test_repair import journal, mended, undo  # noqa: F401

pytestmark = pytest.mark.skipif(bool(ONLY_INJECT), reason="there is no doctor")

DECLARED = [BY_KEY[key] for key in (
    "host.no-address", "host.no-address no-uplink", "host.wrong-prefix", "host.ip-forward-off", "host.no-masquerade", "bridge.mtu-mismatch tap",
    "bridge.mtu-mismatch bridge",
)]


def manage(bed, folder, **other):
    """As the daemon leaves it: the bridge's alias, and declared.json. Return: the options that tell the doctor."""
    bed.lab.ip("link", "set", "br0", "alias", "master-controller")
    network = {"namespace": bed.lab.name, "bridge": "br0", "address": POOL, "uplink": "wan0", "masquerade": True, **other}
    (folder / "declared.json").write_text(json.dumps({"store": str(folder / "none.db"), "ports": {"cli": 0, "browser": 6080}, "network": network}))
    return ["--state-dir", folder]


def bridge_mac():
    """Of a bridge that the controller makes: 02:fc and a hash (FNV-1a) of its name and address."""
    number = 2166136261
    for byte in f"br0 {POOL}".encode():
        number = (number ^ byte) * 16777619 & 0xFFFFFFFF
    return "02:fc:" + number.to_bytes(4, "big").hex(":")


def repaired(bed, fault, options, journal):
    answer = bed.doctor(*options)
    assert answer.first["id"] == fault.id and answer.first["repair"]["safe"] is True, answer
    bed.lab.cold()
    answer = bed.doctor(*options, "--repair", env=journal)
    done = mended(bed, answer, fault)
    undo(bed, done, journal, fault)


@pytest.mark.parametrize("fault", DECLARED, ids=lambda f: f.key.replace(" ", ","))
def test_what_is_declared(fault, tmp_path, journal):
    with fault.bed() as bed:
        options = manage(bed, tmp_path, **({} if fault.lab.get("uplink") else {"uplink": "", "masquerade": False}))
        assert bed.doctor(*options).status == 0
        fault.apply(bed)
        broken(bed, fault)
        repaired(bed, fault, options, journal)


def test_the_bridges_own_mac(tmp_path, journal):
    """Guests still send to the MAC that the controller gave the bridge: it gets that one back, and no other that a guest may name."""
    fault = BY_KEY["bridge.mac-changed"]
    with fault.bed() as bed:
        options = manage(bed, tmp_path)
        for mac, safe in ((bridge_mac(), True), ("02:fc:00:00:00:77", False)):
            bed.lab.ip("link", "set", "br0", "address", mac)
            bed.vm.ip("neigh", "replace", "192.168.0.1", "lladdr", mac, "dev", "eth0", "nud", "permanent")
            assert bed.doctor(*options).status == 0
            bed.lab.ip("link", "set", "br0", "address", bed.lab.link(bed.other.tap)["address"])
            broken(bed, fault)
            answer = bed.doctor(*options)
            assert (answer.first["id"], answer.first["repair"]["safe"]) == (fault.id, safe), answer
            if safe:
                repaired(bed, fault, options, journal)


@pytest.mark.parametrize("other", [{"namespace": ""}, {"bridge": "br7"}, {"address": "10.0.0.1/24"}, {"masquerade": 1}], ids=str)
def test_what_is_declared_of_another(other, tmp_path, journal):
    """Another controller's word, one about another bridge, an address that the VM is not in, or no sense at all: nothing is done unasked."""
    fault = BY_KEY["host.no-address"]
    with fault.bed() as bed:
        options = manage(bed, tmp_path, **other)
        fault.apply(bed)
        answer = bed.doctor(*options, "--repair", env=journal)
        assert (answer.status, answer.first["id"]) == (10, fault.id), answer
        assert answer.first["repair"]["safe"] is False and answer.first["repair"]["applied"] is False, answer
        if other == {"masquerade": 1}:
            assert any(gap["what"] == "records" for gap in answer.json["host"]["could_not_read"]), answer.json["host"]


@pytest.mark.parametrize("key", ["host.ip-forward-off", "host.no-masquerade"])
def test_a_way_out_that_is_not_declared(key, tmp_path, journal):
    with BY_KEY[key].bed() as bed:
        options = manage(bed, tmp_path, uplink="eth7")
        BY_KEY[key].apply(bed)
        answer = bed.doctor(*options, "--repair", env=journal)
        assert (answer.status, answer.first["id"]) == (10, key), answer
        assert answer.first["repair"]["safe"] is False and answer.first["repair"]["applied"] is False, answer

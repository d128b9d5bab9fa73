"""What the doctor cannot name, it does not name: with the rule of a fault turned off, unknown.<the right hop> comes out."""
import json
import os
import subprocess

import pytest

from faults import BY_KEY, FAULTS
from lab import MCTL
from test_catalogue import ONLY_INJECT, broken, named

pytestmark = pytest.mark.skipif(bool(ONLY_INJECT), reason="there is no doctor")

# Those whose hop is seen by probe, trace or counters, without the rule that reads the object.
SEEN = [f for f in FAULTS if f.key in (
    "tap.no-holder", "tap.down", "tap.not-enslaved", "tap.wrong-bridge", "bridge.port-not-forwarding 0", "bridge.port-not-forwarding 2",
    "bridge.stp-delay", "ebtables.drop output", "ebtables.policy-drop output", "ebtables.drop input", "ebtables.drop prerouting",
    "nft.bridge-drop output", "nft.bridge-drop prerouting", "nft.bridge-drop input", "nft.netdev-drop ingress", "nft.netdev-drop egress-bridge",
    "nft.arp-drop", "tc.egress-drop", "tc.ingress-drop", "tc.egress-drop bridge", "tc.ingress-drop bridge", "tap.xdp-drop",
    "qdisc.drops blackhole", "vmm.stalled", "netfilter.input-drop", "netfilter.output-drop", "host.blackhole-route blackhole",
    "host.route-elsewhere", "host.policy-rule", "bridge.flood-off", "guest.firewall input", "guest.service-down",
)]


@pytest.mark.parametrize("fault", SEEN, ids=lambda f: f.key.replace(" ", ","))
def test_unknown(fault):
    with fault.bed() as bed:
        fault.apply(bed)
        broken(bed, fault)
        if fault.cold:
            bed.lab.cold()
        answer = bed.doctor(env={"MC_DOCTOR_DISABLE": fault.id})
        first = answer.first
        # Where the rule would have read why the bridge does not choose the port, the port is where it ends.
        hops = {fault.hop, "bridge.port"} if fault.id.startswith(("tap.no-holder", "tap.down", "tap.not-", "tap.wrong-")) else {fault.hop}
        assert answer.status == 10, answer
        assert first["dies_at"] in hops, answer
        assert first["id"] == f"unknown.{first['dies_at']}", answer
        assert first["role"] == "root-cause", answer
        assert first["evidence"], answer


def test_attributes_that_nobody_knows(tmp_path):
    """Each attribute of a port is kept, also one that is not known here; where nothing else explains a loss, what is odd is shown."""
    saved, fault = tmp_path / "case.json", BY_KEY["bridge.port-not-forwarding 0"]
    with fault.bed() as bed:
        fault.apply(bed)
        answer = bed.doctor("--save", saved, env={"MC_DOCTOR_DISABLE": fault.id})
        assert named(answer.first, ["state (attribute 1) is 0; on the bridge's other ports (1) it is 3"]) == [], answer
    case = json.loads(saved.read_text())
    before = case["before"]
    for link in before["links"]:
        if link.get("slave_kind") == "bridge":
            attrs = before["attrs"][link["attrs"][0]:][:link["attrs"][1]]
            unknown = next(attr for attr in attrs if attr["space"] == 1 and attr["type"] == 1)  # in place of the state
            unknown["type"] = 250
    saved.write_text(json.dumps(case))
    done = subprocess.run([MCTL, "--json", "doctor", "--from", saved], capture_output=True, text=True, check=False,
                          env={**os.environ, "MC_DOCTOR_DISABLE": fault.id})
    first = json.loads(done.stdout)["targets"][0]["findings"][0]
    assert named(first, ["one that is not known here (attribute 250) is 0; on the bridge's other ports (1) it is 3"]) == [], first

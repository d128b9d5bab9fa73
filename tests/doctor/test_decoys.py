"""Faults on hosts that are full of what looks guilty and is not: programs that let all pass, limits that nothing reaches, rules for marks
that nothing bears, fixed entries of others. None of it may be blamed, and the real cause is the first."""
import dataclasses

import pytest

from faults import BY_KEY, TC_OK, TCX_NEXT, XDP_PASS
from novel import NOVEL
from test_catalogue import ONLY_INJECT

pytestmark = pytest.mark.skipif(bool(ONLY_INJECT), reason="there is no doctor")

RULES = """
add table bridge decoy
add chain bridge decoy o { type filter hook output priority 5; }
add rule bridge decoy o oifname "$TAP" limit rate over 10000/second drop
add rule bridge decoy o ether daddr 02:00:00:00:00:98 drop
add chain bridge decoy p { type filter hook prerouting priority 5; }
add rule bridge decoy p iifname "$TAP" limit rate over 10000/second drop
add chain bridge decoy f { type filter hook forward priority 5; }
add rule bridge decoy f ether type arp limit rate over 10000/second drop
add table inet decoy
add chain inet decoy i { type filter hook input priority 5; }
add rule inet decoy i ct state invalid drop
add rule inet decoy i ip saddr 192.168.0.0/16 limit rate over 10000/second drop
add chain inet decoy o { type filter hook output priority 5; }
add rule inet decoy o meta mark 0x8000 drop
"""
KEYS = ("tap.no-holder", "tap.offload-mismatch", "vmm.stalled", "vmm.rx-stalled", "vmm.link-off", "guest.nic-down", "bridge.mac-changed",
        "ebtables.drop input", "ebtables.drop prerouting", "nft.bridge-drop input", "nft.netdev-drop ingress", "netfilter.input-drop", "guest.wrong-prefix",
        "guest.no-address", "guest.firewall input", "guest.firewall output", "guest.ignores-ping", "host.neigh-wrong")
STRANGE = ("port locked", "neighbour solicitations off", "a fixed entry for the bridge's own MAC", "xdp on the bridge", "nft rewrites the MAC",
           "dnat to another VM", "nfqueue without a listener", "uplink arp off", "snat to nobody", "tc egress on the uplink")
CASES = [BY_KEY[key] for key in KEYS] + [f for f in NOVEL if f.key in STRANGE]
assert len(CASES) == len(KEYS) + len(STRANGE)
DECOYS = ("decoy", "0x123", "passes")


def add_decoys(bed, fault):
    lab, tap = bed.lab, bed.vm.tap
    programs = [("passes_xdp", XDP_PASS, tap, "xdp"), ("passes_out", TCX_NEXT, tap, "tcx-egress"), ("passes_in", TCX_NEXT, tap, "tcx-ingress"),
                ("passes_br", TCX_NEXT, "br0", "tcx-ingress"), ("passes_cls", TC_OK, tap, "cls-ingress")]
    lab.tc("qdisc", "add", "dev", tap, "clsact")
    for name, result, device, where in programs:
        lab.bpf(name, result, device, where)
    lab.nft(RULES.replace("$TAP", tap))
    lab.batch("neigh replace 192.168.0.250 lladdr 02:00:00:00:00:fa dev br0 nud permanent\nroute add blackhole 10.0.0.0/8\n"
              "rule add fwmark 0x123 prohibit pref 77\ntuntap add fc-vm-dead1 mode tap\nlink set fc-vm-dead1 master br0 up")
    bed.vm("sockfilter", 65535)
    if fault.setup:
        fault.setup(bed)


@pytest.mark.parametrize("fault", CASES, ids=lambda f: f.key.replace(" ", ","))
def test_decoys(fault):
    with dataclasses.replace(fault, setup=lambda bed: add_decoys(bed, fault)).bed() as bed:
        words = fault.apply(bed)
        assert bed.broken(fault.dead) == list(fault.dead), "the injector did nothing"
        if fault.cold:
            bed.lab.cold()
        answer = bed.doctor()
        first = answer.first
        assert answer.status == fault.status, answer
        assert first["dies_at"] in (fault.hop, *fault.hops), answer
        if fault in NOVEL:
            told = str(first).lower()
            assert first["id"].startswith("unknown.") or all(word.lower() in told for word in words), answer
        else:
            assert first["id"] in (fault.id, *fault.also), answer
        for finding in answer.roots:
            assert not any(decoy in finding["title"] for decoy in DECOYS), answer
            assert finding["id"] not in ("tap.xdp-drop", "host.policy-rule"), answer

"""Two or three faults at once: all are found, the one at which the packet died first; behind a repair the next one comes."""

import pytest

from faults import BY_KEY, Bed
from test_catalogue import ONLY_INJECT
from test_repair import journal  # noqa: F401

# Of one way (host to guest), in the order in which a packet meets them.
CHAINS = [
    ("host.route-elsewhere", "ebtables.drop output", "tap.down"),
    ("host.blackhole-route blackhole", "bridge.port-not-forwarding 0"),
    ("netfilter.output-drop", "nft.bridge-drop output", "tc.egress-drop"),
    ("nft.arp-drop", "tap.not-enslaved"),
    ("tc.egress-drop bridge", "qdisc.drops blackhole"),
    ("ebtables.drop output", "qdisc.drops blackhole", "vmm.stalled"),
    ("nft.bridge-drop output", "tap.no-holder"),
    ("bridge.port-not-forwarding 1", "guest.no-address"),
    ("qdisc.drops pfifo", "guest.firewall input"),
    ("tc.egress-drop tcx", "tc.ingress-drop"),
    ("vmm.stalled", "ebtables.drop input"),
    ("tap.xdp-drop", "netfilter.input-drop"),
    ("bridge.flood-off", "guest.service-down"),
    ("host.neigh-wrong", "guest.firewall port"),
]
# Faults that are on different ways: each way has its own cause.
WAYS = [
    ("bridge.mtu-mismatch bridge", "guest.service-down"),
    ("guest.service-down", "netfilter.forward-drop"),
    ("bridge.port-isolated", "host.no-masquerade"),
    ("bridge.bcast-flood-off", "host.ip-forward-off"),
    ("nft.bridge-drop forward", "guest.firewall port"),
]


class Several:
    """A bed that all of the faults can lie in."""

    def __init__(self, keys):
        self.faults = [BY_KEY[key] for key in keys]
        lab, setup = {}, []
        for fault in self.faults:
            lab.update(fault.lab)
        self.lab, self.setup = lab, None
        self.guest, self.other, self.warm = {}, {}, True
        self.args, self.ask = (), {}

    def inject(self, bed):
        """From behind, as what is in front would keep the later ones from being made or learned."""
        words = {}
        for fault in reversed(self.faults):
            words[fault.id] = [str(word) for word in fault.inject(bed) or []]
        bed.lab.cold()
        return words


@pytest.mark.parametrize("keys", CHAINS + WAYS, ids=lambda k: "+".join(k).replace(" ", ","))
def test_found_together(keys):
    several = Several(keys)
    with Bed(several) as bed:
        several.inject(bed)
        for fault in several.faults:
            assert bed.broken(fault.dead) == list(fault.dead), f"{fault.key} does nothing"
        if ONLY_INJECT:
            return
        answer = bed.doctor()
        assert answer.status == 10, answer
        if keys in CHAINS:
            # The bridge chooses its ports before it calls the hook of bridge.output: where both are broken, the port is
            # what really eats the frame, though it is behind in the list of hops.
            chosen = [f for f in several.faults if f.hop in ("bridge.port", "tap.dev") or f.id == "tap.no-holder"]
            firsts = several.faults[:1] + (chosen if several.faults[0].hop == "bridge.output" else [])
            assert (answer.first["id"], answer.first["dies_at"]) in [(f.id, f.hop) for f in firsts], answer
        found = {f["id"] for f in answer.findings if f["role"] in ("root-cause", "contributing")}
        # What can be read off the host is found even where no packet came that far. What only a packet shows is not: the
        # guest, the VMM, what a BPF program of somebody does.
        shown = ("guest.", "vmm.", "tc.", "tap.xdp")
        readable = several.faults if keys in WAYS else [f for i, f in enumerate(several.faults) if i == 0 or not f.id.startswith(shown)]
        for fault in readable:
            assert found & {fault.id, *fault.also}, (fault.id, answer)




@pytest.mark.parametrize(
    "keys",
    [
        ("host.route-elsewhere", "ebtables.drop output", "tap.down"),
        ("nft.bridge-drop output", "tap.not-enslaved", "guest.service-down"),
        ("tc.egress-drop", "qdisc.drops blackhole", "bridge.port-not-forwarding 0"),
        ("netfilter.output-drop", "tc.ingress-drop", "bridge.flood-off"),
    ],
    ids=lambda k: "+".join(k).replace(" ", ","),
)
def test_one_after_the_other(keys, journal):  # noqa: F811
    """Mending the first shows the next, until the path lives or what is left cannot be mended from here."""
    if ONLY_INJECT:
        pytest.skip("there is no doctor")
    several = Several(keys)
    left = {f.id: f for f in several.faults}
    with Bed(several) as bed:
        several.inject(bed)
        for _ in range(len(keys) + 1):
            bed.lab.cold()
            answer = bed.doctor()
            if answer.status == 0:
                break
            first = answer.first
            assert first["id"] in left, answer
            fault = left.pop(first["id"])
            if not fault.repair:
                bed.vm("serve", 6080)  # guest.service-down is mended by the guest
                continue
            bed.doctor("--repair" if fault.repair == "safe" else f"--repair={first['id']}", env=journal)
        assert answer.status == 0, answer
        assert left == {}, f"never seen: {left.keys()}"
        assert bed.lab.reachable(bed.vm)

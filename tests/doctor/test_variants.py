"""The same faults on poorer hosts: the VM is alone on its bridge (what is broken may then be the bridge's only carrier), or the
doctor is told less (no MAC, no port)."""
import dataclasses

import pytest

from faults import FAULTS
from test_catalogue import ONLY_INJECT

pytestmark = pytest.mark.skipif(bool(ONLY_INJECT), reason="there is no doctor")

WANT_ANOTHER = {"vm-vm", "vm-vm-tcp", "vm-vm6", "host6", "other", "one-port", "one-owner", "one-gateway", "own-port"}
# These break or watch the other guest, or fill the bridge.
NOT_ALONE = ("bridge.mac-changed", "bridge.ports-exhausted")
# Without a MAC nothing can be asked of a guest that does not answer ARP: that it is silent is all that is known.
NOT_BARE = ("guest.no-address",)
ROOTS = [f for f in FAULTS if f.role == "root-cause" and f.status == 10]
ALONE = [f for f in ROOTS if not WANT_ANOTHER & set(f.dead) and f.key not in NOT_ALONE and f.other is not None]
BARE = [f for f in ROOTS if set(f.dead) != {"tcp"} and f.key not in NOT_BARE][::3]


def judge(fault, **ask):
    fault = dataclasses.replace(fault, alive=())
    with fault.bed() as bed:
        fault.apply(bed)
        assert bed.broken(fault.dead) == list(fault.dead), "the injector did nothing"
        if fault.cold:
            bed.lab.cold()
        answer = bed.doctor(**ask)
        assert answer.status == 10, answer
        assert answer.first["id"] in (fault.id, *fault.also), answer
        assert answer.first["dies_at"] in (fault.hop, *fault.hops), answer


@pytest.mark.parametrize("fault", ALONE, ids=lambda f: f.key.replace(" ", ","))
def test_alone(fault):
    judge(dataclasses.replace(fault, other=None))


@pytest.mark.parametrize("fault", BARE, ids=lambda f: f.key.replace(" ", ","))
def test_bare(fault):
    judge(fault, mac=False, port=None)

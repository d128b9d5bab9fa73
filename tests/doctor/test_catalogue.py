"""Each row of the catalogue, injected: the doctor's first finding is the right id at the right hop and names the object."""
import json
import os

import pytest

from faults import FAULTS

ONLY_INJECT = os.environ.get("MC_ONLY_INJECT")  # tries the injectors where there is no doctor


def broken(bed, fault):
    """Asserts, by checks of our own, that what should be dead is dead and what should live lives."""
    assert bed.broken(fault.dead) == list(fault.dead), "the injector did nothing"
    for check in fault.alive:
        assert bed.works(check, 1.5), f"the injector broke too much: {check}"


def named(finding, words):
    """The words that a finding does not hold in its title or evidence."""
    told = (finding["title"] + json.dumps(finding["evidence"], ensure_ascii=False)).lower()
    return [word for word in words if word.lower() not in told]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.key.replace(" ", ","))
def test_catalogue(fault):
    with fault.bed() as bed:
        words = fault.apply(bed)
        broken(bed, fault)
        if fault.cold:
            bed.lab.cold()
        if ONLY_INJECT:
            return
        answer = bed.doctor()
        first = answer.first
        assert first["id"] in (fault.id, *fault.also), answer
        assert first["dies_at"] in (fault.hop, *fault.hops), answer
        if fault.role:
            assert first["role"] == fault.role, answer
        assert answer.status in ((fault.status,) if fault.status is not None else (0, 10)), answer
        if first["id"] == fault.id:
            assert named(first, words) == [], answer
        if fault.role == "root-cause" and fault.hop != "bridge.port":
            assert answer.verdicts()[first["dies_at"]] == "fail", answer
        if fault.id == "host.rp-filter":
            assert {"host.rp-filter", "host.route-elsewhere"} <= {f["id"] for f in answer.findings}, answer

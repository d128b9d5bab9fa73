"""Faults that are in no catalogue: the right hop, and a name only where the object is named (novel.py)."""
import pytest

from novel import CATALOGUE_IDS, NOVEL
from test_catalogue import ONLY_INJECT, broken, named


@pytest.mark.parametrize("fault", NOVEL, ids=lambda f: f.key.replace(" ", "-"))
def test_novel(fault):
    with fault.bed() as bed:
        words = fault.apply(bed)
        broken(bed, fault)
        if fault.cold:
            bed.lab.cold()
        if ONLY_INJECT:
            return
        answer = bed.doctor()
        first = answer.first
        assert answer.status == 10, answer
        assert first["role"] == "root-cause", answer
        assert first["dies_at"] in (fault.hop, *fault.hops), answer
        assert first["evidence"], answer
        if first["id"].startswith("unknown."):
            assert first["id"] == "unknown." + first["dies_at"], answer
        else:
            assert first["id"] not in CATALOGUE_IDS - set(fault.also), f"a wrong name: {answer}"
            assert named(first, words) == [], answer

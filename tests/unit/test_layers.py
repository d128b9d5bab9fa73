"""The rooms of src/ lean one way only: a room includes what stands above it in doc/architecture.md's list, never below,
and of the rooms from relay to vmm none includes another."""

import pathlib
import re

SRC = pathlib.Path(__file__).resolve().parents[2] / "src"
ORDER = ["base", "model", "loop", "netlink", "http", "store", "vault", "relay", "network", "agent", "image", "vmm", "doctor",
         "vm", "session", "api", "daemon", "cli"]
APART = ORDER[ORDER.index("relay"):ORDER.index("vmm") + 1]
# Mains are ends: nobody includes them, and they do not include each other.
MAINS = ["daemon", "cli"]


def wrong(room, other):
    if room == other:
        return False
    if other not in ORDER or ORDER.index(other) > ORDER.index(room):
        return True
    return other in MAINS or (room in APART and other in APART)


def includes():
    for path in sorted(SRC.rglob("*.[ch]")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
            if match:
                yield path.relative_to(SRC), number, match.group(1)


def test_the_rule_can_fail():
    assert wrong("base", "model") and wrong("relay", "network") and wrong("cli", "daemon") and wrong("vm", "session")
    assert not wrong("vm", "network") and not wrong("api", "relay") and not wrong("relay", "base")


def test_every_folder_has_its_place():
    assert {p.name for p in SRC.iterdir() if p.is_dir()} <= set(ORDER)


def test_includes_go_up():
    found = list(includes())
    assert len(found) > 100
    bad = [f"{path}:{number} includes {name}" for path, number, name in found
           if "/" not in name or wrong(path.parts[0], name.split("/")[0])]
    assert not bad, "\n".join(bad)


def test_every_header_is_included_by_its_room():
    """As room/file.h, so that an include says where it goes."""
    for path, number, name in includes():
        assert (SRC / name).exists(), f"{path}:{number}: there is no src/{name}"

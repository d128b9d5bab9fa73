"""What must hold after any crash of the daemon: each VM is whole or gone, and nothing is left over."""

import contextlib
import glob
import json
import os
import pathlib
import struct

import harness
from harness import wait_for

DIE_AT = harness.BUILD / "tests/vm/die-at.so"


def live(d):
    return d.mctl("--json", "vm", "list").json["vms"]


def elements(d, begin="fc-vm-"):
    """What the firewall's sets and maps know of, of all that begins so: TAPs, or addresses of the pool ("192.168.")."""
    text = d.netns("nft", "-j", "list", "ruleset").stdout
    found = set()

    def walk(x):
        if isinstance(x, str) and x.startswith(begin):
            found.add(x)
        elif isinstance(x, (list, tuple)):
            for y in x:
                walk(y)
        elif isinstance(x, dict):
            for y in x.values():
                walk(y)
    for item in json.loads(text).get("nftables", []):
        for kind in ("set", "map"):
            if item.get(kind, {}).get("name") not in ("host_networks", "connections"):  # which are not of VMs alone
                walk(item.get(kind, {}).get("elem", []))
    return sorted(found)


def groups(ids):
    """Control groups of these VMs."""
    here = {p.rsplit("/", 1)[1] for p in glob.glob("/sys/fs/cgroup/**/master-controller/vm-*", recursive=True)}
    return sorted(here & set(ids))


def all_ids(d):
    return [v["id"] for v in d.admin("GET", "/api/vms?all=1").json["vms"]]


def check_whole(d, what):
    """Of what is there, all belongs to a live VM, and each live VM has all of its own."""
    wait_for(lambda: all(v["state"] not in ("stopping", "creating") for v in live(d)), 30)
    vms = live(d)
    taps, ids = sorted(v["tap"] for v in vms), sorted(v["id"] for v in vms)
    assert all(v["state"] == "booting" for v in vms), (what, vms)
    assert d.taps() == taps, what
    assert d.folders() == ids, what
    # An element that could not be removed goes within seconds, when the tables are written anew (vm/guard.c).
    with contextlib.suppress(AssertionError):
        wait_for(lambda: elements(d) == taps, 15, 0.2)
    assert elements(d, "192.168.") == sorted(v["ip"] for v in vms), what
    assert elements(d) == taps, (what, taps, d.netns("nft", "list", "ruleset").stdout[:3000], d.log.read_text()[-4000:])
    # A new program has its arguments a moment after its parent goes on.
    with contextlib.suppress(AssertionError):
        wait_for(lambda: len(d.processes()) == len(vms), 5)
    processes = d.processes()
    assert len(processes) == len(vms), what
    assert set(groups(all_ids(d))) <= set(ids), what
    if groups(ids):
        members = {int(p) for i in ids for g in glob.glob(f"/sys/fs/cgroup/**/master-controller/{i}/cgroup.procs",
                                                          recursive=True) for p in open(g)}
        assert members == set(processes), what
    for vm in d.admin("GET", "/api/vms?all=1").json["vms"][:6]:  # the newest: a state without its event, or the other way round
        events = d.admin("GET", f"/api/vms/{vm['id']}/events").json["events"]
        assert [e["to"] for e in events if e["to"]][-1] == vm["state"], (what, vm, events)
    for i in set(all_ids(d)) - set(ids):
        folder = d.state / "evidence" / i
        if folder.exists():
            assert (folder / "summary.json").exists(), what
    return vms


class Countdown:
    """The number that die_at.c counts down: at zero the daemon kills itself."""

    def __init__(self, d):
        self.path = pathlib.Path(d.dir) / "countdown"
        self.set(0)
        self.wrapper = ["env", f"LD_PRELOAD={DIE_AT}", f"MC_DIE_FILE={self.path}"]

    def set(self, n):
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        with contextlib.closing(os.fdopen(fd, "r+b", buffering=0)) as f:
            f.write(struct.pack("q", n))

    def passed(self):
        return -struct.unpack("q", self.path.read_bytes())[0]

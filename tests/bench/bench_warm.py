"""Cold start, warm start and resume of the golden images' VMs: to the first answered ping, to the agent, to a desktop picture; what a
template takes; many VMs at once from one template; and of what steps a warm start and a resume are made, so that what the host does
can be told from what an emulated guest needs. The peer of warm start and resume is the cold start of the same run.

A picture is a whole frame of the desktop, over its WebSocket, in which there is something to see (COLOURS): Chromium's window is.
MC_BENCH_RUNS says how often each is done, MC_BENCH_TYPES which types of VM."""

import asyncio
import collections
import concurrent.futures
import contextlib
import datetime
import os
import pathlib
import re
import socket
import struct
import subprocess
import sys
import time

import websockets

import harness
from table import quantile, row

sys.path.insert(0, str(harness.HERE / "tests/netns"))
from relay_peers import inside

RUNS = int(os.environ.get("MC_BENCH_RUNS", "3"))
TYPES = os.environ.get("MC_BENCH_TYPES", "cli,browser").split(",")
MANY = 20
WAIT_S = 1800
COLOURS = 20  # text on a screen has more, an empty one fewer


def say(text):
    print(text, file=sys.stderr, flush=True)


def at_s(event):
    return datetime.datetime.fromisoformat(event["at"].replace("Z", "+00:00")).timestamp()


# ---- what is waited for ----

class Pings:
    """Sends one every 50 ms, from before the guest is there."""

    def __init__(self, d, ip):
        self.process = subprocess.Popen(["nsenter", f"--net=/run/netns/{d.name}", "ping", "-n", "-D", "-i", "0.05", ip],
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def first_s(self):
        for line in self.process.stdout:
            if "bytes from" in line:
                self.process.terminate()
                self.process.wait()
                return float(line[1:line.index("]")])
        raise AssertionError("ping ended without an answer")


class Rfb:
    """As much of RFC 6143 as brings a frame: version 3.8, no security, raw pixels of 32 bits."""

    def __init__(self, ws):
        self.ws, self.data = ws, b""

    async def read(self, n):
        while len(self.data) < n:
            self.data += await self.ws.recv()
        taken, self.data = self.data[:n], self.data[n:]
        return taken

    async def greet(self):
        assert (await self.read(12)).startswith(b"RFB ")
        await self.ws.send(b"RFB 003.008\n")
        kinds = await self.read((await self.read(1))[0])
        assert 1 in kinds, kinds
        await self.ws.send(b"\x01")
        assert await self.read(4) == b"\0\0\0\0"
        await self.ws.send(b"\x01")
        head = await self.read(24)  # width, height, 16 bytes of pixel format, the name's length
        self.size = struct.unpack(">HH", head[:4])
        await self.read(struct.unpack(">I", head[20:])[0])

    async def frame(self):
        await self.ws.send(struct.pack(">BBHHHH", 3, 0, 0, 0, *self.size))
        while (kind := (await self.read(1))[0]) != 0:  # a bell, or a clipboard's text
            assert kind in (2, 3), kind
            if kind == 3:
                await self.read(struct.unpack(">xxxI", await self.read(7))[0])
        await self.read(1)  # padding, which LibVNCServer leaves as it was
        colours = set()
        for _ in range(struct.unpack(">H", await self.read(2))[0]):
            _, _, w, h, encoding = struct.unpack(">HHHHi", await self.read(12))
            assert encoding == 0
            pixels = await self.read(w * h * 4)
            colours |= set(struct.unpack(f"<{len(pixels) // 4}I", pixels))
        return colours


async def look(sock, ip):
    async with websockets.connect(f"ws://{ip}:6080/websockify", sock=sock, subprotocols=["binary"], max_size=None,
                                  open_timeout=10, compression=None) as ws:
        rfb = Rfb(ws)
        await rfb.greet()
        await ws.send(struct.pack(">BxxxBBBBHHHBBBxxx", 0, 32, 24, 0, 1, 255, 255, 255, 16, 8, 0))
        await ws.send(struct.pack(">BxHi", 2, 1, 0))
        while len(await rfb.frame()) < COLOURS:
            await asyncio.sleep(0.05)


def picture_s(d, ip):
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError, websockets.WebSocketException, asyncio.TimeoutError, AssertionError):
            with inside(d.name):
                sock = socket.create_connection((ip, 6080), 5)
            asyncio.run(asyncio.wait_for(look(sock, ip), 120))
            return time.time()
        time.sleep(0.05)
    raise AssertionError("no picture came")


def measure(d, vm, begun_s, begin):
    """begin() starts what is measured, at begun_s(). Return: milliseconds by what was waited for."""
    pings = Pings(d, vm["ip"])
    begun = begun_s if begun_s else time.time()
    begin()
    found = {"ping": pings.first_s()}
    if vm["type"] == "browser":
        found["desktop picture"] = picture_s(d, vm["ip"])
    d.wait_state(vm["id"], "running", WAIT_S)
    events = [e for e in d.events(vm["id"]) if at_s(e) >= begun]
    found["agent"] = next(at_s(e) for e in events if e["event"] == "agent-ready")
    found["running"] = next(at_s(e) for e in events if e["event"] in ("path-proven", "awake"))
    return {what: (at - begun) * 1000 for what, at in found.items()}


def steps_of(d, vm, event):
    """Milliseconds by step, as the VM's story tells them: "…: folder 0, disk 12, …"."""
    reason = next(e["reason"] for e in reversed(d.events(vm["id"])) if e["event"] == event)
    return {name: int(ms) for name, ms in re.findall(r"([A-Za-z]+) (\d+)(?: ms)?(?=,|;|$)", reason.split(": ", 1)[1])}


def start(d, kind, user):
    begun = time.time()
    vm = d.mctl("--json", "vm", "create", "--user", user, "--type", kind).json["vm"]
    taken = measure(d, vm, begun, lambda: None)
    story = next(e["reason"] for e in d.events(vm["id"]) if e["event"] == "started")
    return vm, taken, story


def resume(d, vm):
    d.mctl("vm", "hibernate", vm["id"])
    memory = d.state / "users" / vm["id"] / "saved/memory"
    size = memory.stat().st_blocks * 512
    return measure(d, vm, None, lambda: d.mctl("vm", "resume", vm["id"])), size


def end(d, vm):
    d.mctl("vm", "destroy", vm["id"], "--reason", "measured")
    harness.wait_for(lambda: not d.processes([vm["id"]]), 60)


def memory_of(d, vm):
    """Of its VMM, in bytes: what it has for itself, and with its share of what others have too."""
    (pid,) = d.processes([vm["id"]])
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    figures = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines[1:]}
    return figures["Private_Dirty"], figures["Pss"]


def loop_s(run):
    """How long a shell needs for a loop, without its start. run(words) runs them in one."""
    def once(turns):
        begun = time.perf_counter()
        run(f"i=0; while [ $i -lt {turns} ]; do i=$((i+1)); done")
        return time.perf_counter() - begun
    nothing = once(0)
    return once(100000) - nothing


def slowdown(d, vm):
    """How much slower the guest's emulated processor is than the host's."""
    ours = loop_s(lambda words: subprocess.run(["dash", "-c", words], check=True))
    return loop_s(lambda words: d.mctl("vm", "exec", "-T", vm["id"], "--", "dash", "-c", words)) / ours


# ---- the rows ----

def templates_of(d):
    """Of each type that has an image: before all are there, one is being made beside what is measured."""
    kinds = [kind for kind, link in (("cli", "cli/current"), ("browser", "current"))
             if (pathlib.Path(d.config["image"]["directory"]) / link).exists()]

    def ready():
        made = {w["type"]: w for w in d.mctl("--json", "status").json["warm"] if w["ready"]}
        return made if set(kinds) <= set(made) else None
    return harness.wait_for(ready, WAIT_S, 1)


def start_rows(kind, found):
    for what in ("ping", "agent", "running", "desktop picture"):
        cold = [run[what] for run in found["cold start"] if what in run]
        if not cold:
            continue
        yield row(f"{kind}: cold start to {what}", "ms", cold)
        yield row(f"{kind}: warm start to {what}", "ms", [run[what] for run in found["warm start"]], cold, "cold start")
        # What runs again is proven by its port, what is new by its desktop: no peers.
        peer = (cold, "cold start") if what != "running" else ()
        yield row(f"{kind}: resume to {what}", "ms", [run[what] for run in found["resume"]], *peer)


def step_rows(kind, way, runs, guest_steps, found):
    """What the host does before the guest goes on, step by step, and all the rest: mostly an emulated guest's, and waits."""
    for name in runs[0]:
        yield row(f"{kind}: {way}, {name}", "ms", [run[name] for run in runs])
    host = [sum(ms for name, ms in run.items() if name not in guest_steps) for run in runs]
    last = "desktop picture" if kind == "browser" else "running"
    yield row(f"{kind}: {way}, what the host does", "ms", host)
    yield row(f"{kind}: {way}, all the rest to {last}", "ms", [run[last] - ms for run, ms in zip(found, host)])


def size_rows(d, kind, template):
    ram = d.state / "templates" / template["template"] / "ram"
    packed = d.dir / "ram.zst"
    yield row(f"{kind}: template, made in the background", "ms", [template["took_ms"]])
    yield row(f"{kind}: template's memory, apparent", "bytes", [ram.stat().st_size])
    yield row(f"{kind}: template's memory, sparse on the disk", "bytes", [ram.stat().st_blocks * 512])
    begun = time.perf_counter()
    subprocess.run(["cp", "--sparse=always", ram, d.dir / "ram"], check=True)
    yield row(f"{kind}: template's memory, to copy as it is", "ms", [(time.perf_counter() - begun) * 1000])
    for level in ("-1", "-3"):
        begun = time.perf_counter()
        subprocess.run(["zstd", "-q", "-f", level, "-T1", ram, "-o", packed], check=True)
        took = (time.perf_counter() - begun) * 1000
        yield row(f"{kind}: template's memory, zstd {level}", "bytes", [packed.stat().st_size], [ram.stat().st_blocks * 512], "sparse")
        yield row(f"{kind}: zstd {level}, to pack", "ms", [took])
        begun = time.perf_counter()
        subprocess.run(["zstd", "-q", "-d", "-f", packed, "-o", d.dir / "ram"], check=True)
        yield row(f"{kind}: zstd {level}, to unpack", "ms", [(time.perf_counter() - begun) * 1000])
    packed.unlink()
    (d.dir / "ram").unlink()


def many_rows(d, cold, template):
    """cold: memory_of() of VMs that were started without a template."""
    ram = d.state / "templates" / template["template"] / "ram"
    begun = time.time()
    with concurrent.futures.ThreadPoolExecutor(MANY) as pool:
        vms = list(pool.map(lambda i: d.mctl("--json", "vm", "create", "--user", f"m{i}", "--type", "cli", "--wait").json["vm"],
                            range(MANY)))
    whole = (time.time() - begun) * 1000
    stories = {vm["id"]: {e["event"]: e for e in d.events(vm["id"])} for vm in vms}
    assert all("made warm" in s["started"]["reason"] for s in stories.values()), stories
    yield row(f"cli: {MANY} warm starts at once, each to running", "ms",
              [(at_s(s["path-proven"]) - begun) * 1000 for s in stories.values()])
    yield row(f"cli: {MANY} warm starts at once, all", "ms", [whole])
    figures = [memory_of(d, vm) for vm in vms]
    yield row(f"cli: memory that each of {MANY} has for itself", "bytes", [own for own, _ in figures],
              [own for own, _ in cold], "a cold VM")
    # At most: what only one of them has read is counted as its own too.
    yield row(f"cli: memory of {MANY}, and all of their template's", "bytes", [sum(own for own, _ in figures) + ram.stat().st_blocks * 512],
              [MANY * quantile([share for _, share in cold], 0.5)], f"{MANY} cold VMs")


def warm_runs(d, kind, found):
    for i in range(RUNS):
        vm, taken, story = start(d, kind, f"w{i}")
        assert story.startswith("made warm"), story
        found["warm start"].append(taken)
        found["warm steps"].append(steps_of(d, vm, "started"))
        taken, size = resume(d, vm)
        found["resume"].append(taken)
        found["resume steps"].append(steps_of(d, vm, "memory-loaded"))
        found["saved"].append(size)
        if i == 0 and kind == "cli":  # a browser VM's processors have other things to do
            found["slower"].append(slowdown(d, vm))
        end(d, vm)
        say(f"{kind}, warm {i + 1} of {RUNS}: {found['warm start'][-1]}, resume {found['resume'][-1]}\n  {story}")


def cold_runs(d, kind, found):
    for i in range(RUNS):
        vm, taken, story = start(d, kind, f"c{i}")
        assert story.startswith("made in"), story
        found["cold start"].append(taken)
        found["memory"].append(memory_of(d, vm))
        end(d, vm)
        say(f"{kind}, cold {i + 1} of {RUNS}: {taken}")


def rows():
    found = {kind: collections.defaultdict(list) for kind in TYPES}
    config = {"cli_boot_timeout": "1200", "browser_boot_timeout": "1200", "quota_per_user": "100", "memory_percent": "100000",
              "probe_interval": "0.5", "reach_interval": "10"}  # as they are by default, and not as in a test
    for kind in TYPES:
        base = harness.golden_image(kind)
    with harness.daemon(image=base, vm=config) as d:
        for kind in TYPES:
            cold_runs(d, kind, found[kind])
    with harness.daemon(image=base, vm=config, warm={"templates": "yes", "quiet": "1"}) as d:
        templates = templates_of(d)
        for kind in TYPES:
            warm_runs(d, kind, found[kind])
            yield from start_rows(kind, found[kind])
            yield from step_rows(kind, "warm start", found[kind]["warm steps"], ("identity",), found[kind]["warm start"])
            yield from step_rows(kind, "resume", found[kind]["resume steps"], (), found[kind]["resume"])
            yield row(f"{kind}: saved memory, sparse on the disk", "bytes", found[kind]["saved"])
            if found[kind]["slower"]:
                yield row("an emulated processor, slower than the host's", "times", found[kind]["slower"])
            yield from size_rows(d, kind, templates[kind])
        if "cli" in TYPES:
            yield from many_rows(d, found["cli"]["memory"], templates["cli"])

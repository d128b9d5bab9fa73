"""Cold start, warm start and resume of the golden images' VMs: to the first answered ping, to the agent, to a desktop picture; what a
template takes; and many VMs at once from one template. The peer of warm start and resume is the cold start of the same run.

A picture is a whole frame of the desktop, over its WebSocket, in which there is something to see (COLOURS): Chromium's window is.
MC_BENCH_RUNS says how often each is done, MC_BENCH_TYPES which types of VM."""

import asyncio
import concurrent.futures
import contextlib
import datetime
import os
import pathlib
import socket
import struct
import subprocess
import sys
import time

import websockets

import harness
from table import row

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
        assert await self.read(2) == b"\0\0"
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
    found["agent"] = next(at_s(e) for e in reversed(d.events(vm["id"])) if e["event"] == "agent-ready")
    return {what: (at - begun) * 1000 for what, at in found.items()}


def start(d, kind, user):
    begun = time.time()
    vm = d.mctl("--json", "vm", "create", "--user", user, "--type", kind).json["vm"]
    taken = measure(d, vm, begun, lambda: None)
    story = next(e["reason"] for e in d.events(vm["id"]) if e["event"] == "started")
    return vm, taken, story


def resume(d, vm):
    d.mctl("vm", "hibernate", vm["id"])
    return measure(d, vm, None, lambda: d.mctl("vm", "resume", vm["id"]))


def end(d, vm):
    d.mctl("vm", "destroy", vm["id"], "--reason", "measured")
    harness.wait_for(lambda: not d.processes([vm["id"]]), 60)


# ---- the rows ----

def template_of(d, kind):
    def ready():
        return next((w for w in d.mctl("--json", "status").json["warm"] if w["type"] == kind and w["ready"]), None)
    return harness.wait_for(ready, WAIT_S, 1)


def start_rows(d, kind, found):
    for what in ("ping", "agent", "desktop picture"):
        cold = [run[what] for run in found["cold start"] if what in run]
        if not cold:
            continue
        yield row(f"{kind}: cold start to {what}", "ms", cold)
        for way in ("warm start", "resume"):
            yield row(f"{kind}: {way} to {what}", "ms", [run[what] for run in found[way]], cold, "cold start")


def size_rows(d, kind, template):
    ram = d.state / "templates" / template["template"] / "ram"
    packed = d.dir / "ram.zst"
    yield row(f"{kind}: template, made in the background", "ms", [template["took_ms"]])
    yield row(f"{kind}: template's memory, apparent", "bytes", [ram.stat().st_size])
    yield row(f"{kind}: template's memory, sparse on the disk", "bytes", [ram.stat().st_blocks * 512])
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


def many_rows(d):
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
    private = [int(line.split()[1]) * 1024 for pid in d.processes([vm["id"] for vm in vms])
               for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith("Private_Dirty")]
    yield row("cli: memory that each of them has for itself", "bytes", private)


def rows():
    for kind in TYPES:
        base = harness.golden_image(kind)
        config = {f"{kind}_boot_timeout": "1200", "quota_per_user": "100", "memory_percent": "100000"}
        found = {"cold start": [], "warm start": [], "resume": []}
        with harness.daemon(image=base, vm=config, warm={"templates": "yes", "quiet": "1"}) as d:
            template = [template_of(d, t) for t in ("cli", "browser")][kind == "browser"]  # nothing is made beside
            for i in range(RUNS):
                vm, taken, story = start(d, kind, f"w{i}")
                assert story.startswith("made warm"), story
                found["warm start"].append(taken)
                found["resume"].append(resume(d, vm))
                end(d, vm)
                say(f"{kind}, warm {i + 1} of {RUNS}: {taken}, resume {found['resume'][-1]}\n  {story}")
            yield from size_rows(d, kind, template)
            if kind == "cli":
                yield from many_rows(d)
        with harness.daemon(image=base, vm=config) as d:
            for i in range(RUNS):
                vm, taken, story = start(d, kind, f"c{i}")
                assert story.startswith("made in"), story
                found["cold start"].append(taken)
                end(d, vm)
                say(f"{kind}, cold {i + 1} of {RUNS}: {taken}")
        yield from start_rows(d, kind, found)

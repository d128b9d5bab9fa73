"""The golden images: how long a build takes and what it makes, how long a boot takes and what of it dominates.

Boots are those of `mctl image verify --boot`, from the VMM's start, each of a fresh overlay: cold for the guest. Variants
of the image boot in turns with it, so that what else this host does hits all of them alike; a variant is a copy in which
some files differ (VARIANTS) or another build, and stands in the table as the peer. MC_BENCH_RUNS says how often each boots, and
MC_BENCH_VARIANTS which of them, by name, with commas; "all", "" none."""

import contextlib
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile

import harness
from table import row

RUNS = int(os.environ.get("MC_BENCH_RUNS", "3"))
STAGES = ("console", "agent", "network", "services", "desktop", "window")
GUEST = ("init", "agent", "services")
DOMINANT = 12
UNITS = "/etc/systemd/system"

# Name: {unit: drop-in, or None to mask it}. What is measured here and helps goes into the recipe, and from here.
VARIANTS = {
    "x11vnc with XDamage": {"x11vnc.service": "[Service]\nExecStart=\nExecStart=/usr/bin/x11vnc -norc -display :0 -rfbport "
                            "5900 -localhost -nopw -forever -shared -repeat -quiet\n"},
    "Chromium last": {"chromium.service": "[Unit]\nAfter=websockify.service\n"},
    "no udev": {"systemd-udevd.service": None, "systemd-udev-trigger.service": None},
    "Xtigervnc": "tigervnc",  # an image of its own: mctl image build --screen
}


def say(text):
    print(text, file=sys.stderr, flush=True)


def seconds(name):
    """The steps of a build, from its log: {step: ms}, and the whole."""
    marks = re.findall(r"^==== (\d+) s: (.*)$", (name / "build.log").read_text(), re.M)
    times = [int(at) * 1000 for at, _ in marks]
    return {what.split(" (")[0]: after - at for (_, what), at, after in zip(marks, times, times[1:])}, times[-1]


def on_disk(path):
    return path.stat().st_blocks * 512


def boot(folder):
    """The facts of one boot, and the processor's time that all of it took: what of it does not depend on this host's
    other work. A boot that shows failures is told, and still measured: as slow as a host may be, that is what it is."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    r = harness.run(harness.MCTL, "--json", "image", "verify", "--boot", "--quick", "--timeout", "900", folder, check=False,
                    timeout=1200)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads(r.stdout)
    assert "boot" in report and report["boot"]["stages_ms"]["agent"] is not None, (r.stdout[-2000:], r.stderr[-2000:])
    for f in report["findings"]:
        if f["role"] == "failure":
            say(f"  {folder}: {f['id']} {f['object']}: {f['title']}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return dict(report["boot"], cpu_ms=cpu_s * 1000)


@contextlib.contextmanager
def variant(image, drop_ins):
    """A copy of the image with these drop-ins; or, for a text, the image with that screen."""
    if isinstance(drop_ins, str):
        yield (harness.golden_image("browser", drop_ins) / "current").resolve()
        return
    with tempfile.TemporaryDirectory(dir=image.parent, prefix=".bench-") as folder:
        copy = pathlib.Path(folder) / "image"
        harness.run("cp", "-r", "--sparse=always", "--reflink=auto", image, copy)
        (copy / "verdict.json").unlink(missing_ok=True)
        rootfs = copy / "rootfs.ext4"
        rootfs.chmod(0o600)
        commands = []
        for i, (unit, text) in enumerate(drop_ins.items()):
            if text is None:
                commands.append(f"symlink {UNITS}/{unit} /dev/null")
                continue
            (copy / f"drop-in-{i}").write_text(text)
            commands += [f"mkdir {UNITS}/{unit}.d", f"write {copy}/drop-in-{i} {UNITS}/{unit}.d/bench.conf"]
        harness.run("/usr/sbin/debugfs", "-w", "-f", "-", rootfs, input="\n".join(commands) + "\n")
        yield copy


def boot_rows(kind, image, names):
    with contextlib.ExitStack() as stack:
        folders = {None: image, **{n: stack.enter_context(variant(image, VARIANTS[n])) for n in names}}
        facts = {n: [] for n in folders}
        for i in range(RUNS):
            for name, folder in folders.items():
                facts[name].append(boot(folder))
                say(f"{kind}, boot {i + 1} of {RUNS}{f' ({name})' if name else ''}: {facts[name][-1]['stages_ms']}")
    for name in names or [None]:
        yield row(f"{kind}: processor time, boot and shut-down", "ms", [f["cpu_ms"] for f in facts[None]],
                  [f["cpu_ms"] for f in facts[name]] if name else None, name)
    for group, stages, words in (("stages_ms", STAGES, "boot to"), ("guest_ms", GUEST, "guest's kernel to")):
        for stage in stages:
            times = {n: [f[group][stage] for f in facts[n] if f[group].get(stage) is not None] for n in facts}
            if not times[None]:
                continue
            for name in names or [None]:
                peer = times[name] if name else None
                yield row(f"{kind}: {words} {stage}", "ms", times[None], peer or None, name)
    yield row(f"{kind}: memory in use after the boot", "bytes",
              [f["memory"]["bytes"] - f["memory"]["available_bytes"] for f in facts[None] if f.get("memory")])
    yield row(f"{kind}: shut-down", "ms", [f["shutdown_ms"] for f in facts[None] if f["shutdown_ms"] is not None])


def milliseconds(text):
    """systemd's "1min 2.345s", "45ms"."""
    units = {"min": 60000, "s": 1000, "ms": 1, "us": 0.001}
    return sum(float(n) * units[u] for n, u in re.findall(r"([\d.]+)(min|ms|us|s)\b", text))


def dominant_rows(kind, base):
    """What systemd counts of one boot, asked through the agent: its slowest units, and the chain that was waited for."""
    with harness.daemon(image=base, vm={f"{kind}_boot_timeout": "900"}) as d:
        vm = d.create(type=kind)
        harness.wait_for(lambda: d.state_of(vm["id"]) in ("running", "failed"), 1000, 1)
        ask = lambda *words: subprocess.run([harness.MCTL, "--socket", d.socket, "vm", "exec", vm["id"], "--", *words], text=True,
                                            capture_output=True, timeout=300)
        harness.wait_for(lambda: ask("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"), 600, 2)
        say(ask("systemd-analyze", "time").stdout + ask("systemd-analyze", "critical-chain", "--no-pager").stdout)
        for line in ask("systemd-analyze", "blame", "--no-pager").stdout.splitlines()[:DOMINANT]:
            taken, _, unit = line.strip().rpartition(" ")
            yield row(f"{kind}: {unit}", "ms", [milliseconds(taken)])


def rows():
    wanted = os.environ.get("MC_BENCH_VARIANTS", "")
    names = list(VARIANTS) if wanted == "all" else [n.strip() for n in wanted.split(",") if n.strip()]
    for kind in os.environ.get("MC_BENCH_TYPES", "cli,browser").split(","):
        base = harness.golden_image(kind)
        image = ((base / "cli" if kind == "cli" else base) / "current").resolve()
        steps, whole = seconds(image)
        yield row(f"{kind}: build, as its log has it", "ms", [whole])
        for what, taken in sorted(steps.items(), key=lambda s: -s[1])[:3]:
            yield row(f"{kind}: of that: {what[:28]}", "ms", [taken])
        yield row(f"{kind}: root file system on the disk", "bytes", [on_disk(image / "rootfs.ext4")])
        yield row(f"{kind}: initramfs", "bytes", [(image / "initrd.img").stat().st_size])
        yield row(f"{kind}: packages", "count", [len(json.loads((image / "manifest.json").read_text())["packages"])])
        yield from boot_rows(kind, image, names if kind == "browser" else [])
        yield from dominant_rows(kind, base)

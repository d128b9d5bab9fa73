"""mctl image verify --boot on the real images of both types, and on one that is broken where only a boot can tell. They
are built once, where ./run of tests/e2e has its own, so that whoever comes second finds them."""

import json

import pytest

from harness import MCTL, golden_image, run


def image(kind):
    """The folder of a good image of that type."""
    base = golden_image(kind)
    return (base / "cli" if kind == "cli" else base) / "current"


def boot(folder, check):
    r = run(MCTL, "--json", "image", "verify", "--boot", "--quick", folder, check=False, timeout=900)
    assert r.returncode == check, (r.returncode, r.stdout[-6000:], r.stderr[-2000:])
    return json.loads(r.stdout)


def failures(report):
    return {(f["id"], f["object"]) for f in report["findings"] if f["role"] == "failure"}


@pytest.mark.parametrize("kind", ["cli", "browser"])
def test_good(kind):
    report = boot(image(kind), check=0)
    facts = report["boot"]
    assert report["good"] and report["type"] == kind
    stages = facts["stages_ms"]
    reached = ["console", "agent", "network", "services"] + (["desktop", "window"] if kind == "browser" else [])
    assert all(stages[s] is not None for s in reached), stages
    assert {s for s in stages if stages[s] is not None} == set(reached)
    assert 0 < facts["guest_ms"]["agent"] <= facts["guest_ms"]["services"]
    units = {u["name"]: u["state"] for u in facts["units"]}
    assert {"mc-agent.service", "acpid.socket"} <= set(units) and all(s.startswith("active") for s in units.values()), units
    assert ("chromium.service" in units) == (kind == "browser")
    assert (facts["window"] is not None) == (kind == "browser")
    assert facts["memory"]["available_bytes"] > 64 << 20
    assert facts["shutdown_ms"] is not None and facts["ended"] == "exit status 0"


def test_a_desktop_that_is_none(tmp_path):
    """Its files are what they were: only two units are masked, and a third fails, in an image that is looked at quickly."""
    folder = tmp_path / "image"
    run("cp", "-r", "--sparse=always", "--reflink=auto", image("browser").resolve(), folder)
    rootfs = folder / "rootfs.ext4"
    rootfs.chmod(0o600)
    (tmp_path / "unit").write_text("[Service]\nType=oneshot\nExecStart=/bin/false\n[Install]\nWantedBy=multi-user.target\n")
    etc = "/etc/systemd/system"
    run("debugfs", "-w", "-f", "-", rootfs, input="\n".join([
        f"rm {etc}/websockify.service", f"symlink {etc}/websockify.service /dev/null",
        f"rm {etc}/chromium.service", f"symlink {etc}/chromium.service /dev/null",
        f"write {tmp_path / 'unit'} {etc}/useless.service",
        f"symlink {etc}/multi-user.target.wants/useless.service {etc}/useless.service"]) + "\n")
    report = boot(folder, check=1)
    found = failures(report)
    assert {("unit.masked", "websockify.service"), ("unit.masked", "chromium.service")} <= found, "looked into"
    assert {f for f in found if f[0].startswith("boot.")} == {
        ("boot.unit", "websockify.service"), ("boot.unit", "chromium.service"), ("boot.desktop", "port 6080"),
        ("boot.window", "Chromium"), ("boot.service-failed", "useless.service")}
    titles = {f["object"]: f["title"] for f in report["findings"] if f["id"].startswith("boot.")}
    assert "masked" in titles["websockify.service"] and "refused" in titles["port 6080"]
    assert all(f["breaks"] and f["mend"] for f in report["findings"] if f["role"] == "failure")
    assert report["boot"]["shutdown_ms"] is not None

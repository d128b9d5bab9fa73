"""./run as a user calls it, on the real golden image: a desktop in a real browser, and nothing left after --stop. The
state folder is kept in .cache, so that only the first time builds the image."""

import asyncio
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import websockets

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import harness
from harness import HERE, run, wait_for

STATE = HERE / ".cache/e2e-state"
NAMESPACE = f"e2e{os.getpid()}"
RUNTIME = pathlib.Path(f"/run/{NAMESPACE}")
PORT = harness.free_port()
ENV = {**os.environ, "MC_STATE": str(STATE), "MC_NAMESPACE": NAMESPACE, "MC_RUNTIME": str(RUNTIME),
       "MC_LISTEN": f"127.0.0.1:{PORT}", "MC_BUILD": str(harness.BUILD)}
SHOTS = HERE / "build/e2e"
ADDRESS = re.compile(rf"http://127\.0\.0\.1:{PORT}/api/auth/session/([0-9a-f]{{32}})/novnc#ticket=[0-9a-f]{{64}}")


def do_run(*words, timeout=1500):
    began = time.monotonic()
    r = subprocess.run([HERE / "run", *words], env=ENV, text=True, capture_output=True, timeout=timeout)
    print(f"./run {' '.join(words)}: {time.monotonic() - began:.1f} s\n{r.stderr}", file=sys.stderr)
    assert r.returncode == 0, r.stderr
    return r.stdout, time.monotonic() - began


def mctl(*words):
    return json.loads(run(harness.MCTL, "--json", "--socket", RUNTIME / "api.sock", *words).stdout)


def vmm_of(vm):
    for p in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if vm["id"].encode() in p.read_bytes() and p.read_bytes().startswith(b"/usr/bin/qemu-system"):
                return int(p.parent.name)
    raise AssertionError(f"no VMM of {vm['id']}")


@pytest.fixture(scope="module")
def first():
    try:
        out, _ = do_run()
        yield out
    finally:
        do_run("--stop")


def test_the_last_line_is_the_address(first):
    assert ADDRESS.fullmatch(first.splitlines()[-1]), first


def test_a_person_sees_and_uses_the_desktop(first):
    SHOTS.mkdir(parents=True, exist_ok=True)
    url = do_run()[0].splitlines()[-1]
    r = run("node", HERE / "tests/e2e/desktop.mjs", "--url", url, "--out", SHOTS, "--timeout-s", "180", check=False,
            timeout=300)
    print(r.stderr, file=sys.stderr)
    seen = json.loads(r.stdout.splitlines()[-1])
    assert r.returncode == 0 and seen["ok"], seen
    assert seen["width"] >= 1024 and seen["height"] >= 700 and seen["colours"] > 1 and seen["changed"]
    assert seen["blocked"] == []


def test_again_it_goes_on_in_seconds(first):
    before = mctl("vm", "list")["vms"]
    out, seconds = do_run()
    assert seconds < 20, "nothing is to be installed, built or booted again"
    assert ADDRESS.fullmatch(out.splitlines()[-1]).group(1) == ADDRESS.search(first).group(1)
    assert [v["id"] for v in mctl("vm", "list")["vms"]] == [v["id"] for v in before]


def test_the_guest_offers_the_desktop_alone(first):
    vm = mctl("vm", "list")["vms"][0]
    ports = [p for p in (21, 22, 23, 25, 53, 80, 111, 139, 443, 5353, 5355, 5900, 6000, 6080, 8080, 9222)]
    script = ("import socket,sys\nfor p in sys.argv[2:]:\n s=socket.socket(); s.settimeout(3)\n"
              " print(p if s.connect_ex((sys.argv[1], int(p))) == 0 else '')")
    out = run("nsenter", f"--net=/run/netns/{NAMESPACE}", "/usr/bin/python3", "-c", script, vm["ip"], *ports).stdout
    assert out.split() == ["6080"]


async def relayed(until_closed):
    """Opens the desktop's WebSocket as the admin, waits for RFB, then says how it ended."""
    token = (STATE / "admin.token").read_text().strip()
    session = run(harness.MCTL, "--socket", RUNTIME / "api.sock", "auth", "start", "--user", "demo", "--provider", "demo")
    sid = ADDRESS.search(session.stdout).group(1)
    uri = f"ws://127.0.0.1:{PORT}/api/auth/session/{sid}/novnc/websock"
    async with websockets.connect(uri, extra_headers={"Authorization": f"Bearer {token}"},
                                  subprotocols=["binary"]) as ws:
        assert ws.subprotocol == "binary"
        assert (await asyncio.wait_for(ws.recv(), 20)).startswith(b"RFB 003")
        until_closed()
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await asyncio.wait_for(ws.recv(), 20)
        return ws.close_code, ws.close_reason


def test_a_restart_says_1012_and_the_desktop_is_still_there(first):
    pid = int((RUNTIME / "pid").read_text())
    code, reason = asyncio.run(relayed(lambda: os.kill(pid, signal.SIGTERM)))
    assert (code, reason) == (1012, "The controller restarts. The page comes back by itself.")
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), 15)
    before = do_run()[0]
    assert ADDRESS.search(before).group(1) == ADDRESS.search(first).group(1)
    assert mctl("vm", "list")["vms"][0]["state"] == "running"


def test_a_lost_vm_says_1011(first):
    vm = mctl("vm", "list")["vms"][0]
    code, reason = asyncio.run(relayed(lambda: os.kill(vmm_of(vm), signal.SIGKILL)))
    assert code == 1011 and reason.startswith("The VM was lost: ") and len(reason.encode()) <= 120
    wait_for(lambda: mctl("vm", "show", vm["id"])["vm"]["state"] == "failed")
    assert "ended by itself" in mctl("vm", "show", vm["id"])["vm"]["reason"]


def test_stop_leaves_nothing():
    do_run()
    pids = [vmm_of(vm) for vm in mctl("vm", "list")["vms"]]
    assert len(pids) == 1
    do_run("--stop")
    assert not os.path.exists(f"/run/netns/{NAMESPACE}") and not RUNTIME.exists()
    assert NAMESPACE not in pathlib.Path("/proc/self/mountinfo").read_text()
    assert list((STATE / "users").iterdir()) == []
    with socket.socket() as s:
        assert s.connect_ex(("127.0.0.1", PORT)) != 0
    wait_for(lambda: not any(os.path.exists(f"/proc/{p}") for p in pids))
    do_run("--stop")

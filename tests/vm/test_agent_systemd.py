"""The agent where systemd is PID 1 and a desktop runs: the real browser image. It is made once, minutes, where ./run of
tests/e2e has its own."""

import json
import os
import re
import subprocess

import pytest

import harness
from harness import daemon, wait_for
from test_agent import agent_events, ask, refused, shell

BOOT_S = 900  # an emulated desktop on a busy host


@pytest.fixture(scope="module")
def desktop():
    with daemon(image=harness.golden_image("browser"), vm={"browser_boot_timeout": str(BOOT_S)}) as d:
        vm = d.create(type="browser")
        d.wait_state(vm["id"], "running", BOOT_S)
        yield d, vm["id"]


def unit(d, vm_id, name):
    (told,) = ask(d, vm_id, "units", names=[name], timeout_ms=60000)["units"]
    return told


def test_units_are_told_and_restarted(desktop):
    d, vm_id = desktop
    told = unit(d, vm_id, "x11vnc.service")
    assert (told["LoadState"], told["ActiveState"], told["UnitFileState"]) == ("loaded", "active", "enabled"), told
    assert unit(d, vm_id, "none.service")["LoadState"] == "not-found"
    pid = shell(d, vm_id, "systemctl show --value -p MainPID x11vnc").stdout
    assert ask(d, vm_id, "unit.restart", name="x11vnc.service", timeout_ms=60000) == {}
    assert shell(d, vm_id, "systemctl show --value -p MainPID x11vnc").stdout != pid
    assert refused(d, vm_id, "unit.restart", name="none.service", timeout_ms=60000) == (502, "guest.unit.failed")
    assert "Started" in ask(d, vm_id, "unit.log", name="x11vnc.service", lines=50, timeout_ms=60000)["text"]
    assert any(u["Id"] == "mc-agent.service" and u["ActiveState"] == "active"
               for u in ask(d, vm_id, "units", timeout_ms=60000)["units"])


def test_where_the_seconds_went(desktop):
    d, vm_id = desktop
    events = {e["event"]: e for e in d.events(vm_id)}
    assert "RFB answered behind its WebSocket" in events["desktop-answered"]["reason"]
    booted = events["path-proven"]["reason"]
    took = {stage: float(s) for stage, s in re.findall(r"(kernel|network|agent|desktop) after (\d+\.\d) s", booted)}
    assert set(took) == {"kernel", "network", "agent", "desktop"} and took["desktop"] == max(took.values()), booted
    assert booted in d.mctl("vm", "why", vm_id).out


def test_the_doctor_restarts_its_service(desktop):
    """With systemd itself: found from inside, mended through the agent, proven by the path."""
    d, vm_id = desktop
    assert shell(d, vm_id, "systemctl stop websockify").returncode == 0
    r = harness.run(harness.MCTL, "--json", "--socket", d.socket, "doctor", "--netns", d.name, "--state-dir", d.state, "--vm", vm_id,
                    "--repair", check=False, timeout=600, env={**os.environ, "MC_DOCTOR_JOURNAL": str(d.dir / "journal")})
    (finding,) = [f for f in json.loads(r.stdout)["targets"][0]["findings"] if f["role"] == "root-cause"]
    assert finding["id"] == "guest.service-down" and finding["dies_at"] == "guest.service", finding
    assert finding["repair"]["applied"] is True and finding["repair"]["proven"] is True and r.returncode == 11, finding
    assert any(e["source"] == "agent" and e["where"] == "websockify.service" for e in finding["evidence"]), finding
    assert unit(d, vm_id, "websockify.service")["ActiveState"] == "active"


def test_a_killed_agent_is_started_by_its_unit_and_its_programs_are_gone(desktop):
    d, vm_id = desktop
    before = len(agent_events(d, vm_id))
    p = subprocess.Popen([harness.MCTL, "--socket", d.socket, "vm", "exec", vm_id, "--", "sh", "-c",
                          "echo up; exec sleep 4713"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE)
    assert p.stdout.readline() == b"up\n"
    shell(d, vm_id, "systemctl kill --kill-who=main -s KILL mc-agent")
    assert p.wait(120) == 1
    wait_for(lambda: agent_events(d, vm_id)[before:] == ["agent-lost", "agent-ready"], 120, 0.5)
    assert int(shell(d, vm_id, "systemctl show --value -p NRestarts mc-agent").stdout) == 1
    assert b"sleep 4713" not in shell(d, vm_id, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout


def test_a_page_is_handed_to_the_browser_that_runs(desktop):
    d, vm_id = desktop

    def listens():
        """the browser takes pages from others of its kind"""
        return shell(d, vm_id, "test -S $(readlink -f /home/desktop/.config/chromium/SingletonSocket)").returncode == 0
    wait_for(listens, 600, 3)
    pid = shell(d, vm_id, "systemctl show --value -p MainPID chromium").stdout
    answer = d.admin("POST", f"/api/vms/{vm_id}/agent", {"op": "browser.open", "url": "https://192.168.0.1/where?a=$(id)&b=1"},
                     timeout=300)
    assert (answer.status, answer.json) == (200, {"ok": {}})
    assert b"192.168.0.1/where" not in shell(d, vm_id, "cat /proc/[0-9]*/cmdline").stdout, "the second one has ended"
    assert shell(d, vm_id, "systemctl show --value -p MainPID chromium").stdout == pid
    wait_for(lambda: knows_page(d, vm_id), 300, 5)


def knows_page(d, vm_id):
    """the browser that runs has the page in its session's files"""
    return shell(d, vm_id, "grep -rla '192.168.0.1/where' /home/desktop/.config/chromium/Default/ 2>/dev/null").stdout

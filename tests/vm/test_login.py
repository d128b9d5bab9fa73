"""Logins in real guests, with a tool and a browser that stand in for real ones (tests/vm/guest/login-tool): how each comes to
its end, in words, and that nothing secret is left on the host. The real ones are tests/e2e's."""

import base64
import contextlib
import json
import os
import signal
import subprocess

import pytest

import harness
from guest_login import BOOT_S, SECRET, Login, logins
from harness import memory_of, wait_for


@pytest.fixture(scope="module")
def host():
    with logins() as d:
        yield d


def in_vm(d, user, tool, vm):
    """The credential's files as the CLI VM has them."""
    r = subprocess.run([harness.MCTL, "--socket", d.socket, "vm", "exec", vm, "--", "sh", "-c",
                        "cd /home/user/.tool && stat -c '%a %u' . credentials.json && cat credentials.json"],
                       capture_output=True, text=True, timeout=120)
    return r.stdout.splitlines() if r.returncode == 0 else []


@contextlib.contextmanager
def frozen_and_hibernating(d, vm):
    """Its agent stands still, and it is on its way to be hibernated."""
    command = [harness.MCTL, "--socket", d.socket, "vm"]
    freeze = subprocess.Popen([*command, "exec", vm, "--", "sh", "-c", "kill -STOP $PPID"])
    health = {"op": "health", "timeout_ms": 300}
    wait_for(lambda: d.admin("POST", f"/api/vms/{vm}/agent", health).status != 200, 30, 0.1)
    hibernate = subprocess.Popen([*command, "hibernate", "--force", vm], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: d.state_of(vm) != "running", 30)
        yield
    finally:
        for process in (freeze, hibernate):
            process.kill()
            process.wait()


def carry_secrets(d, vm):
    """Into the guest and back, by each way that a file or a program's streams can take."""
    data = base64.b64encode(f"{SECRET}-written".encode()).decode()
    file = {"path": "/tmp/carried", "allow": ["/tmp/carried"]}
    ask = lambda **what: d.admin("POST", f"/api/vms/{vm}/agent", what)
    assert ask(op="file.write", data=data, **file).status == 200
    assert ask(op="file.read", **file).json["ok"]["data"] == data
    assert ask(op="file.write", data=data[:8] + "!" + data[8:], **file).status == 400
    r = subprocess.run([harness.MCTL, "--socket", d.socket, "vm", "exec", vm, "--", "cat"], input=f"{SECRET}-piped",
                       capture_output=True, text=True, timeout=120)
    assert (r.returncode, r.stdout) == (0, f"{SECRET}-piped")


def places_of(d):
    """All that the daemon has written, and its memory."""
    for path in sorted(d.dir.rglob("*")):
        if path.is_file() and not path.is_symlink() and "providers.d" not in path.parts:
            yield path


def test_a_login_from_the_desktop_to_the_users_own_vm(host):
    d = host
    login = Login(d, "code")
    page = login.page()
    assert page["url"].startswith("https://login.example.test/authorize?state=") and page["user_code"] is None
    assert login.exec("cat", "/tmp/opened").stdout.splitlines() == [page["url"]]
    assert login.wait("authenticating")["timeout_at"]
    assert login.get().json["login"]["opened"] is True
    assert login.get("/credentials/status").json["stored"] is False
    login.consent()
    login.wait("completed")
    assert [e[:2] for e in login.events()][-2:] == [("login-begun", "controller"), ("completed", "controller")]
    assert "in the vault" in login.events()[-1][2]
    status = login.get("/credentials/status").json
    assert status["stored"] and status["version"] == 1 and status["in_vm"] is None
    assert login.get("/oauth-url").status == 409
    d.wait_state(login.vm, "stopped")
    vm = d.create(user=login.user, wait=True)["id"]
    expected = ["700 1000", "640 1000", json.dumps({"token": f"{SECRET}-token"}, separators=(",", ":"))]
    wait_for(lambda: in_vm(d, login.user, "code", vm) == expected, 60, 0.5)
    wait_for(lambda: login.get("/credentials/status").json["in_vm"] == vm, 30, 0.1)
    stored = lambda: d.admin("GET", f"/api/users/{login.user}/credentials").json["credentials"][0]
    assert stored()["owner_vm"] == vm

    # What a tool has renewed is taken before its VM sleeps or ends, however soon that is; what does not work is not.
    write = lambda vm, text: login.exec("sh", "-c", f"echo '{text}' >/home/user/.tool/credentials.json", vm=vm)
    tokens = [f'{{"token":"{SECRET}-token","renewed":{n}}}' for n in range(2)]
    assert write(vm, tokens[0]).returncode == 0
    d.mctl("vm", "hibernate", vm)
    assert stored()["version"] == 2, d.log.read_text()[-3000:]
    d.mctl("vm", "resume", vm)
    assert write(vm, tokens[1]).returncode == 0
    d.mctl("vm", "destroy", vm, "--reason", "the test goes on in another one")
    assert stored()["version"] == 3
    second = d.create(user=login.user, wait=True)["id"]
    wait_for(lambda: in_vm(d, login.user, "code", second)[2:] == [tokens[1]], 60, 0.5)
    carry_secrets(d, second)
    assert write(second, "half a fi").returncode == 0
    d.mctl("vm", "hibernate", second)
    assert f"{second}: the credential of user {login.user} for code was changed there" in d.log.read_text()
    d.mctl("vm", "resume", second)

    # A guest that does not answer is waited for, but not for long; and what comes meanwhile is not lost.
    with frozen_and_hibernating(d, second):
        os.kill(d.processes([second])[0], signal.SIGKILL)
        d.wait_state(second, "hibernated", 60)
    assert "what was in memory is gone, its disk is there" in d.vm(second)["reason"]
    d.mctl("vm", "resume", "--cold", second)
    with frozen_and_hibernating(d, second):
        d.mctl("vm", "destroy", second, "--reason", "meanwhile")
    assert (d.state_of(second), d.vm(second)["reason"]) == ("stopped", "meanwhile")
    assert (stored()["version"], stored()["logged_out_at"]) == (3, None)


ENDS = {
    "denied": ("refused at the provider", True),
    "state": ("wrong state", True),
    "down": ("could not be reached", False),
    "elsewhere": ("evil.example:443 is not a host of the profile", False),
    "broken": ("the login does not work", False),
}


def test_each_end_is_said_in_words(host):
    """All at a time: they wait for their guests. tests/unit/test_login.c has more of them."""
    begun = {tool: Login(host, tool) for tool in ENDS}
    for tool, login in begun.items():
        if ENDS[tool][1]:
            login.page()
            login.consent()
    for tool, login in begun.items():
        wait_for(lambda: login.session["status"] in ("failed", "completed"), BOOT_S, 0.2)
        session = login.session
        assert session["status"] == "failed" and ENDS[tool][0] in session["reason"], (tool, session)
        assert login.events()[-1][1] == "controller" and SECRET not in json.dumps(login.events())
        assert login.get("/credentials/status").json["stored"] is False


def test_other_flows_and_a_daemon_that_is_killed_meanwhile(host):
    """A tool ends with the daemon that looked after it: the login begins anew, and its page is opened again."""
    d = host
    flows = {"device": {"flow": "device-code"}, "paste": {"flow": "paste"}, "goes-on": {"done": "files"}, "code": {}}
    begun = {tool: Login(d, tool, user=f"again-{tool}", **profile) for tool, profile in flows.items()}
    lost = Login(d, "code", user="lost")
    for login in [*begun.values(), lost]:
        login.page()
    os.kill(d.processes([lost.vm])[0], signal.SIGKILL)
    wait_for(lambda: lost.session["status"] == "failed", 60, 0.1)
    assert "its VM failed" in lost.session["reason"] and "login-again" not in [e[0] for e in lost.events()]
    d.wait_state(lost.vm, "failed")
    evidence = json.loads((d.state / "evidence" / lost.vm / "session.json").read_text())
    assert (evidence["status"], evidence["reason"]) == ("failed", lost.session["reason"])
    d.stop(signal.SIGKILL)
    d.start()
    for login in begun.values():
        wait_for(lambda: "login-again" in [e[0] for e in login.events()], 60, 0.1)
        page = login.page()
        login.wait("authenticating")
        assert [e for e in login.events() if e[0] == "login-again"][0][2].startswith("the controller was started anew")
        assert login.exec("cat", "/tmp/opened").stdout.splitlines() == 2 * [page["url"]]
    assert begun["device"].get("/oauth-url").json["user_code"] == "WDJB-MJHT"
    assert begun["device"].get("/oauth-url").json["url"] == "https://login.example.test/device"
    give = lambda login, code: d.admin("POST", f"/api/auth/session/{login.id}/code", {"code": code})
    assert (give(begun["code"], "x").status, give(begun["code"], "x").json["code"]) == (409, "login.no-code")
    for bad in ("", "a\nb", "x" * 2049, "\x1b[A"):
        assert give(begun["paste"], bad).status == 400
    assert begun["paste"].get().json["login"]["takes_code"] is True
    assert give(begun["paste"], f"{SECRET}-pasted").json == {"given": True}
    for tool, login in begun.items():
        if tool != "paste":  # which is done already
            login.consent()
        login.wait("completed")
        assert login.get("/credentials/status").json["stored"] is True


def test_time_that_is_over_and_a_page_that_was_closed():
    with logins(session={"timeout": "6", "abandoned_after": "2"}) as d:
        late, left = Login(d, "code", user="late"), Login(d, "code", user="left")
        for login in (left, late):
            login.wait("authenticating")
        assert d.admin("POST", f"/api/auth/session/{left.id}/heartbeat").status == 200
        wait_for(lambda: left.session["status"] == "cancelled", 60, 0.1)
        wait_for(lambda: late.session["status"] == "timeout", 60, 0.1)
        assert "its page was closed" in left.session["reason"]
        assert "nobody had logged in 6 s after the desktop could be used" in late.session["reason"]


def test_nothing_secret_is_left(host):
    """After all that is above: in what the daemon and the VMMs have written, and in the daemon's memory."""
    d = host
    for vm in d.mctl("--json", "vm", "list").json["vms"]:
        d.mctl("vm", "destroy", vm["id"], "--reason", "the test is over", check=None)
        wait_for(lambda: d.state_of(vm["id"]) in ("stopped", "failed"), 60, 0.2)
    # What tools and pages had. The word alone is in the profiles that the test wrote, and so in the daemon's memory.
    needles = [f"{SECRET}-{what}".encode() for what in ("token", "state", "challenge", "pasted", "error", "check", "written",
                                                 "piped")]
    needles.append(base64.b64encode(f"{SECRET}-written".encode()))
    assert list((d.state / "evidence").glob("*/session.json")), "there is something to search"
    found = [(path, n) for path in places_of(d) for n in needles if n in path.read_bytes()]
    found += [(where, n) for where, data in memory_of(d.process.pid) for n in needles if n in data]
    assert not found
    assert not [path for path in places_of(d) if SECRET.encode() in path.read_bytes()]

"""Logins in real guests, with a tool and a browser that stand in for real ones (tests/vm/guest/login-tool): how each comes to
its end, in words, and that nothing secret is left on the host. The real ones are tests/e2e's."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess

import pytest

import harness
from harness import daemon, wait_for

BOOT_S = 120
SECRET = "pLaNtEd4711"
PROFILE = """[provider]
title = Test
enabled = yes
[login]
flow = {flow}
command = login-tool login
environment = TOOL={tool}
environment = SECRET={secret}
done = {done}
[credential]
file = .tool/credentials.json 0640
check = login-tool check
[open-url]
host = login.example.test
"""


def write_profile(d, tool, flow="authorization-code", done="exit"):
    folder = d.dir / "providers.d"
    folder.mkdir(exist_ok=True)
    (folder / f"{tool}.conf").write_text(PROFILE.format(flow=flow, tool=tool, done=done, secret=SECRET))


@contextlib.contextmanager
def logins(**config):
    with daemon(image=harness.guest_image("login"), vm={"browser_memory": "256", "cli_memory": "256"},
                **config) as d:
        yield d


@pytest.fixture(scope="module")
def host():
    with logins() as d:
        yield d


class Login:
    def __init__(self, d, tool, user=None, **profile):
        write_profile(d, tool, **profile)
        self.d, self.tool, self.user = d, tool, user or f"user-{tool}"
        answer = d.admin("POST", "/api/auth/start", {"userId": self.user, "provider": tool})
        assert answer.status == 201, answer.json
        self.id, self.vm = answer.json["sessionId"], answer.json["session"]["vm_id"]

    def get(self, what="", **kwargs):
        return self.d.admin("GET", f"/api/auth/session/{self.id}{what}", **kwargs)

    @property
    def session(self):
        return self.get().json["session"]

    def wait(self, status, timeout_s=BOOT_S):
        def reached():
            """the session's status"""
            session = self.session
            assert session["status"] == status or session["status"] not in ("failed", "completed", "timeout"), session
            return session["status"] == status
        wait_for(reached, timeout_s, 0.1)
        return self.session

    def events(self):
        return [(e["event"], e["actor"], e["reason"]) for e in self.get("/events").json["events"]]

    def exec(self, *argv, vm=None):
        return subprocess.run([harness.MCTL, "--socket", self.d.socket, "vm", "exec", vm or self.vm, "--", *argv],
                              capture_output=True, text=True, timeout=120)

    def consent(self):
        assert self.exec("touch", "/tmp/consent").returncode == 0

    def page(self):
        """The page at which the user logs in, once the desktop's browser has it."""
        wait_for(lambda: (answer := self.get("/oauth-url")).status == 200 and answer.json["opened"], BOOT_S, 0.1)
        return self.get("/oauth-url").json


def in_vm(d, user, tool, vm):
    """The credential's files as the CLI VM has them."""
    r = subprocess.run([harness.MCTL, "--socket", d.socket, "vm", "exec", vm, "--", "sh", "-c",
                        "cd /home/user/.tool && stat -c '%a %u' . credentials.json && cat credentials.json"],
                       capture_output=True, text=True, timeout=120)
    return r.stdout.splitlines() if r.returncode == 0 else []


def places_of(d):
    """All that the daemon has written, and its memory."""
    for path in sorted(d.dir.rglob("*")):
        if path.is_file() and not path.is_symlink() and "providers.d" not in path.parts:
            yield path


def memory_of(pid):
    """What a core file would hold."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as mem:
        for line in maps:
            span, rights = line.split()[:2]
            begin, end = (int(x, 16) for x in span.split("-"))
            if "r" not in rights or "[v" in line:
                continue
            with contextlib.suppress(OSError, ValueError, OverflowError):
                mem.seek(begin)
                yield line.strip(), mem.read(end - begin)


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
    assert write(second, "half a fi").returncode == 0
    d.mctl("vm", "destroy", second, "--reason", "what it has does not work")
    assert (stored()["version"], stored()["logged_out_at"]) == (3, None)
    assert f"{second}: the credential of user {login.user} for code was changed there" in d.log.read_text()


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
    needles = [f"{SECRET}-{what}".encode() for what in ("token", "state", "challenge", "pasted", "error", "check")]
    assert list((d.state / "evidence").glob("*/session.json")), "there is something to search"
    found = [(path, n) for path in places_of(d) for n in needles if n in path.read_bytes()]
    found += [(where, n) for where, data in memory_of(d.process.pid) for n in needles if n in data]
    assert not found
    assert not [path for path in places_of(d) if SECRET.encode() in path.read_bytes()]

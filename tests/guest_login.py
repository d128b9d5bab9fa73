"""Logins in the tiny test guest, with a tool and a browser that stand in for real ones (tests/vm/guest/login-tool)."""

import contextlib
import subprocess

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


class Login:
    def __init__(self, d, tool, user=None, **profile):
        write_profile(d, tool, **profile)
        self.d, self.tool, self.user = d, tool, user or f"user-{tool}"
        answer = d.admin("POST", "/api/auth/start", {"userId": self.user, "provider": tool})
        assert answer.status == 201, answer.json
        self.id, self.vm, self.address = answer.json["sessionId"], answer.json["session"]["vm_id"], answer.json["novncURL"]

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

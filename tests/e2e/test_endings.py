"""How a session can end, as the one reads it who looks at its page: a real daemon, real guests (tiny ones: no desktop is needed to
read why there is none), and the page in headless Chromium, open from the start or opened anew. A consent that is refused, on
the real desktop at a real provider, is test_login.py's."""

import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from guest_login import BOOT_S, SECRET, Login, logins
from harness import wait_for
from headless import browser

LIMIT_S, ABANDONED_S = 8, 3


def open_page(b, login):
    b.to(login.tool)("goto", url=login.address)
    b.wait("!['loading', 'offline'].includes(document.documentElement.dataset.state)")


def start_anew(d, **session):
    d.stop()
    d.config["session"].update(session)
    d.start()


def shown(b, login, state, title, words):
    """The page says so, to a screen reader too, and how to go on; and nothing that only the tool may know."""
    b.to(login.tool).wait(f"document.documentElement.dataset.state === '{state}'", BOOT_S)
    said = " ".join(b.text("#panel").split())
    assert title in said and words in said, said
    assert title in b("eval", code="document.getElementById('live').textContent")
    assert f"mctl auth start --user {login.user} --provider {login.tool}" in said, said
    assert SECRET not in said
    b.look(login.tool)


def test_what_the_page_says_about_each_ending():
    with logins() as d, browser("ending") as b:
        state, down, killed, left = (Login(d, tool, flow=flow) for tool, flow in (
            ("state", "authorization-code"), ("down", "authorization-code"), ("code", "authorization-code"), ("paste", "paste")))
        for login in (state, down, killed, left):
            open_page(b, login)
        for login in (state, killed, left):
            login.page()
        state.consent()
        os.kill(d.processes([killed.vm])[0], signal.SIGKILL)
        shown(b, state, "failed", "The session failed",
              "The login failed: the answer that came back does not belong to this login (wrong state).")
        shown(b, down, "failed", "The session failed",
              "The login failed: the provider could not be reached: the connection was refused.")
        shown(b, killed, "failed", "The session failed", "killed by signal 9")

        # A limit that is over while the page is open.
        b.to(left.tool)("close")
        start_anew(d, timeout=LIMIT_S)
        late = Login(d, "device", flow="device-code")
        open_page(b, late)
        shown(b, late, "ended", "The session timed out", f"Nobody had logged in {LIMIT_S} s after the desktop could be used.")

        # A page that was closed; its user comes back.
        assert left.session["status"] in ("awaiting_user_auth", "authenticating")
        start_anew(d, timeout=0, abandoned_after=ABANDONED_S)
        wait_for(lambda: left.session["status"] == "cancelled", 60, 0.1)
        b.to(left.tool)("goto", url=left.address.split("#")[0])
        shown(b, left, "ended", "The session was cancelled", f"Its page was closed: no sign of it for {ABANDONED_S} s.")
        for login in (state, down, killed, late, left):
            assert login.get("/credentials/status").json["stored"] is False
        # The tiny guest has no desktop to be shown, and the daemon was away.
        b.unhurt("WebSocket connection to", "Failed when")

"""Sessions in a real daemon: kills, deadlines, and what a browser reads then. The VMM does nothing; where a desktop is
needed, a small one answers in the VM's place, at the VM's address on the bridge."""

import asyncio
import contextlib
import http.client
import json
import os
import pathlib
import signal
import subprocess
import threading
import time

import pytest
import websockets

import harness
from harness import idle, wait_for
from test_api import closed, cookie, start

DESKTOP = r"""
import asyncio, socket, sys, websockets
async def serve(ws):
    await ws.send(b"RFB 003.008\n")
    await ws.wait_closed()
async def main():
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # As the daemon's own sockets to guests: so that both ends' packets count as the bridge's.
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"br0")
    s.bind((sys.argv[1], 6080))
    async with websockets.serve(serve, sock=s, subprotocols=["binary"]):
        print("up", flush=True)
        await asyncio.Future()
asyncio.run(main())
"""


@contextlib.contextmanager
def desktop(d, vm):
    """Something that speaks RFB at the VM's address."""
    d.netns("ip", "address", "add", f"{vm['ip']}/32", "dev", "br0")
    process = subprocess.Popen(["nsenter", f"--net=/run/netns/{d.name}", "/usr/bin/python3", "-c", DESKTOP, vm["ip"]],
                               stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "up\n"
        yield
    finally:
        process.kill()
        process.wait()
        d.netns("ip", "address", "del", f"{vm['ip']}/32", "dev", "br0", check=False)


@pytest.fixture(scope="module")
def plain_image(tmp_path_factory):
    """The test guest's image without its agent: then a VM whose desktop answers is running."""
    return harness.image_without_agent(tmp_path_factory.mktemp("image"))


def shown(d, sid):
    return d.admin("GET", f"/api/auth/session/{sid}").json


def status_of(d, sid):
    return shown(d, sid)["session"]["status"]


def story(d, sid):
    return d.admin("GET", f"/api/auth/session/{sid}/events").json


def ready(d, user):
    """A session whose desktop can be used; with its page's cookie."""
    sid, ticket = start(d, user)
    vm = d.vm(shown(d, sid)["vm"]["id"])
    return sid, cookie(d, sid, ticket), vm


def wait_status(d, sid, status, timeout_s=20):
    wait_for(lambda: status_of(d, sid) == status, timeout_s)


async def until_closed(d, sid, jar, then):
    """Connects to the desktop, calls then(), and says how it was closed."""
    own = f"http://127.0.0.1:{d.port}"
    uri = f"ws://127.0.0.1:{d.port}/api/auth/session/{sid}/novnc/websock"
    async with websockets.connect(uri, extra_headers=jar, origin=own, subprotocols=["binary"]) as ws:
        assert await asyncio.wait_for(ws.recv(), 10) == b"RFB 003.008\n"
        await asyncio.get_running_loop().run_in_executor(None, then)
        with pytest.raises(websockets.ConnectionClosed):
            await asyncio.wait_for(ws.recv(), 20)
        return ws.close_code, ws.close_reason


def test_the_limit_counts_from_the_desktop_and_the_page_reads_why(plain_image):
    with idle(image=plain_image, session={"timeout": "4"}) as d:
        sid, jar, vm = ready(d, "s1")
        time.sleep(4.5)
        said = shown(d, sid)
        assert said["session"]["status"] == "vm_created" and said["seconds_left"] is None
        with desktop(d, vm):
            wait_status(d, sid, "awaiting_user_auth")
            said = shown(d, sid)
            assert said["session"]["timeout_at"] and 0 <= said["seconds_left"] <= 4
            beat = lambda: d.request("POST", f"/api/auth/session/{sid}/heartbeat", headers=jar)
            assert beat().json["session"]["timeout_at"] == said["session"]["timeout_at"], "a heartbeat extends nothing"
            code, reason = asyncio.run(until_closed(d, sid, jar, lambda: None))
            assert code == 4408 and "4 s" in reason
            assert status_of(d, sid) == "timeout" and beat().status == 409
            d.wait_state(vm["id"], "stopped")
            assert closed(d, sid, jar, f"http://127.0.0.1:{d.port}")[0] == 4408
        told = story(d, sid)
        assert [e["event"] for e in told["events"]] == ["started", "vm-created", "desktop-ready", "timeout"]
        assert told["events"][-1]["actor"] == "controller" and told["events"][-1]["reason"]
        sealed = json.loads((pathlib.Path(told["files"]) / "session.json").read_text())
        assert sealed["id"] == sid and sealed["status"] == "timeout" and sealed["actor"] == "controller"
        assert "timed out" in d.vm(vm["id"])["reason"]


def test_a_page_that_was_left(plain_image):
    with idle(image=plain_image, session={"abandoned_after": "2", "timeout": "0"}) as d:
        sid, jar, vm = ready(d, "s1")
        silent, _ = start(d, "s2")
        with desktop(d, vm):
            wait_status(d, sid, "awaiting_user_auth")
            assert d.request("POST", f"/api/auth/session/{sid}/heartbeat", headers=jar).status == 200

            def looks_on():
                time.sleep(4.5)
                assert status_of(d, sid) == "awaiting_user_auth", "who is connected is there"
                d.mctl("auth", "cancel", silent)
                threading.Thread(target=lambda: d.mctl("vm", "destroy", vm["id"], "--reason", "noon")).start()
            code, reason = asyncio.run(until_closed(d, sid, jar, looks_on))
            assert code == 1011 and "noon" in reason
        sid, jar, vm = ready(d, "s3")
        assert d.request("POST", f"/api/auth/session/{sid}/heartbeat", headers=jar).status == 200
        wait_status(d, sid, "cancelled")
        end = story(d, sid)["events"][-1]
        assert end["actor"] == "controller" and "page was closed" in end["reason"]


def test_a_vm_that_is_lost_leaves_its_sessions_end_in_its_evidence():
    """Killed while one looks, and while there is no controller."""
    with idle() as d:
        for there_is_a_controller in (True, False):
            sid, _ = start(d, "ann")
            vm = shown(d, sid)["session"]["vm_id"]
            wait_for(lambda: d.processes([vm]))
            if not there_is_a_controller:
                d.stop(signal.SIGKILL)
            os.kill(d.processes([vm])[0], signal.SIGKILL)
            if not there_is_a_controller:
                d.start()
            wait_status(d, sid, "failed")
            d.wait_state(vm, "failed")
            told = story(d, sid)
            sealed = json.loads((pathlib.Path(told["files"]) / "session.json").read_text())
            assert (sealed["status"], sealed["actor"], sealed["reason"]) == ("failed", "controller", told["events"][-1]["reason"])
            assert d.vm(vm)["reason"] in sealed["reason"]


def test_a_token_that_is_revoked_takes_what_it_began_with_it(plain_image):
    """The desktop that it shows and the console that it follows; not those of another token of the same user."""
    with idle(image=plain_image) as d:
        sid, _, vm = ready(d, "ann")
        tokens = [d.mctl("--json", "token", "create", "--user", "ann").json for _ in range(2)]
        own = [{"Authorization": f"Bearer {t['secret']}"} for t in tokens]

        def follow(headers):
            connection = http.client.HTTPConnection("127.0.0.1", d.port, timeout=30)
            connection.request("GET", f"/api/vms/{vm['id']}/console?follow=1", headers=headers)
            return connection.getresponse()
        with desktop(d, vm):
            wait_status(d, sid, "awaiting_user_auth")
            consoles = [follow(headers) for headers in own]
            revoke = lambda n: lambda: d.mctl("token", "revoke", tokens[n]["token"]["id"])

            async def look():
                uri = f"ws://127.0.0.1:{d.port}/api/auth/session/{sid}/novnc/websock"
                async with websockets.connect(uri, extra_headers=own[1], subprotocols=["binary"]) as other:
                    assert await asyncio.wait_for(other.recv(), 10) == b"RFB 003.008\n"
                    said = await until_closed(d, sid, own[0], revoke(0))
                    await asyncio.wait_for(await other.ping(), 10)
                    return said
            code, reason = asyncio.run(look())
            assert code == 4401 and "revoked" in reason
            console = d.state / "users" / vm["id"] / "console.log"
            with console.open("a") as f:
                f.write("after that\n")
            assert b"after that" not in consoles[0].read(), "it has ended"
            while b"after that" not in consoles[1].readline():
                pass
            assert d.get("/api/vms", headers=own[0]).status == 401 and d.get("/api/vms", headers=own[1]).status == 200


def test_behind_a_proxy_that_speaks_https(plain_image):
    """What browsers call the daemon counts: for links, for the Origin, and for cookies, which go over https alone."""
    with idle(image=plain_image, api={"public_url": "https://vms.example.test"}) as d:
        answer = d.admin("POST", "/api/auth/start", {"userId": "ann", "provider": "demo"}).json
        sid, (address, ticket) = answer["sessionId"], answer["novncURL"].split("#ticket=")
        assert address == f"https://vms.example.test/api/auth/session/{sid}/novnc"
        give = lambda origin: d.request("POST", f"/api/auth/session/{sid}/ticket", {"ticket": ticket}, {"Origin": origin})
        local = f"http://127.0.0.1:{d.port}"
        for origin in (local, "http://vms.example.test", "https://vms.example.test.evil.example", "null"):
            assert (give(origin).status, give(origin).json["code"]) == (403, "origin.foreign"), origin
        said = give("https://vms.example.test")
        assert said.status == 204 and said.headers["Set-Cookie"].endswith("; HttpOnly; SameSite=Strict; Secure")
        jar = {"Cookie": said.headers["Set-Cookie"].split(";")[0]}
        assert closed(d, sid, jar, "https://vms.example.test")[0] == 1013
        assert closed(d, sid, jar, local)[0] == 4401 and closed(d, sid, jar)[0] == 4401
        operator = lambda origin: d.request("POST", "/api/admin/dashboard", {"token": d.token}, {"Origin": origin})
        assert operator(local).status == 403
        assert operator("https://vms.example.test").headers["Set-Cookie"].endswith("; Secure")


def test_cancel_is_read_by_who_looks(plain_image):
    with idle(image=plain_image) as d:
        sid, jar, vm = ready(d, "s1")
        with desktop(d, vm):
            wait_status(d, sid, "awaiting_user_auth")
            cancel = lambda: d.mctl("auth", "cancel", sid, "--reason", "wrong account")
            code, reason = asyncio.run(until_closed(d, sid, jar, cancel))
        assert code == 1011 and "wrong account" in reason
        end = story(d, sid)["events"][-1]
        assert end["event"] == "cancelled" and "uid 0" in end["actor"] and end["reason"] == "wrong account"
        assert "wrong account" in d.mctl("auth", "show", sid).out


def test_a_killed_daemon_keeps_its_sessions(plain_image):
    with idle(image=plain_image) as d:
        sid, jar, vm = ready(d, "s1")
        other, ticket = start(d, "s2")
        with desktop(d, vm):
            wait_status(d, sid, "awaiting_user_auth")
            before = shown(d, sid)["session"]
            d.stop(signal.SIGKILL)
            d.start()
            assert d.get(f"/api/auth/session/{sid}", headers=jar).json["session"] == before
            assert status_of(d, other) == "vm_created"
            cookie(d, other, ticket)  # a ticket from before
            code, reason = asyncio.run(until_closed(d, sid, jar, lambda: d.mctl("auth", "cancel", sid)))
            assert code == 1011
        again = d.admin("POST", "/api/auth/start", {"userId": "s2", "provider": "demo"})
        assert again.status == 200 and again.json["sessionId"] == other


def test_killed_at_any_moment_nothing_is_half_ended():
    """The daemon is killed while sessions are started and cancelled: each ends up live with a live VM, or ended with an
    actor, a reason and no VM."""
    with idle() as d:
        ids = set()
        for round in range(6):
            halt = threading.Event()

            def busy(user):
                while not halt.is_set():
                    with contextlib.suppress(OSError, http.client.HTTPException, KeyError):
                        sid = d.admin("POST", "/api/auth/start", {"userId": user, "provider": "demo"},
                                      check=False).json["sessionId"]
                        ids.add(sid)
                        d.admin("POST", f"/api/auth/session/{sid}/cancel", {"reason": "again"}, check=False)
            threads = [threading.Thread(target=busy, args=(f"u{i}",)) for i in range(3)]
            for t in threads:
                t.start()
            time.sleep(0.2 + 0.13 * round)
            d.stop(signal.SIGKILL)
            halt.set()
            for t in threads:
                t.join()
            d.start()
        assert ids
        wait_for(lambda: all(v["state"] not in ("stopping", "creating") for v in d.mctl("--json", "vm", "list").json["vms"]))
        live_vms = {v["id"] for v in d.mctl("--json", "vm", "list").json["vms"]}
        live_sessions = set()
        for sid in ids:
            session = shown(d, sid)["session"]
            end = story(d, sid)["events"][-1]
            assert end["to"] == session["status"]
            if session["status"] in ("cancelled", "failed"):
                assert end["actor"] and end["reason"] and session["vm_id"] not in live_vms
            else:
                live_sessions.add(session["vm_id"])
        assert live_sessions <= live_vms
        known = {s["vm_id"] for s in d.admin("GET", "/api/auth/sessions").json["sessions"]}
        assert live_vms == known, "no VM without its session"


# Without a login: what stands in for VMs here has no agent.
PROFILE = """[provider]
title = Test
enabled = {}
[login]
flow = none
command = t
[credential]
file = .t
check = t
"""


def test_profiles_are_read_when_a_session_starts(tmp_path):
    profile = tmp_path / "mine.conf"
    with idle(session={"providers": tmp_path}) as d:
        begin = lambda: d.admin("POST", "/api/auth/start", {"userId": "u", "provider": "mine"})
        assert (begin().status, begin().json["code"]) == (404, "provider.unknown")
        profile.write_text(PROFILE.format("no"))
        assert (begin().status, begin().json["code"]) == (403, "provider.disabled")
        assert d.mctl("auth", "start", "--user", "u", "--provider", "mine", check=5).err.count(str(profile))
        profile.write_text(PROFILE.format("perhaps"))
        said = begin()
        assert (said.status, said.json["code"]) == (503, "provider.broken") and f"{profile}:3: " in said.json["detail"]
        assert f"{profile}:3: " in harness.run(*d.command("--check"), check=False).stderr
        d.stop()
        d.start()
        assert f"{profile}:3: " in d.log.read_text(), "a broken profile is told, and stops nobody else"
        profile.write_text(PROFILE.format("yes"))
        assert begin().status == 201 and begin().json["session"]["provider"] == "mine"


def test_open_url(plain_image, tmp_path):
    """Which addresses are taken is tests/unit/test_provider.c's; what comes of them in a guest, tests/vm's."""
    (tmp_path / "mine.conf").write_text(PROFILE.format("yes") + "[open-url]\nhost = login.example.com\n")
    with idle(image=plain_image, session={"providers": tmp_path}) as d:
        r = d.admin("POST", "/api/auth/start", {"userId": "u", "provider": "mine"}).json
        sid, jar = r["sessionId"], cookie(d, r["sessionId"], r["novncURL"].split("#ticket=")[1])
        to = lambda url: d.request("POST", f"/api/auth/session/{sid}/open-url", {"url": url}, jar)
        said = lambda r: (r.status, r.json["code"])
        assert said(to("https://login.example.com/?code=SECRET1")) == (409, "session.state")
        with desktop(d, d.vm(r["session"]["vm_id"])):
            wait_status(d, sid, "awaiting_user_auth")
            assert said(to("https://login.example.com/?code=SECRET2")) == (409, "agent.none")
            for url in ("http://login.example.com/?SECRET3", "https://evil.example/?SECRET4", "https://127.0.0.1/SECRET5",
                        "https://SECRET6@login.example.com/", "SECRET7", ""):
                r = to(url)
                assert said(r) == (400, "url.refused") and b"SECRET" not in r.body
            for body in ({}, {"url": 1}, {"url": "x", "y": 1}):
                assert d.request("POST", f"/api/auth/session/{sid}/open-url", body, jar).status == 400
        d.mctl("auth", "cancel", sid)
        assert said(to("https://login.example.com/")) == (409, "session.ended")
        assert "SECRET" not in d.log.read_text()

"""Who may call what, and what is made of wrong calls; the desktop's WebSocket as far as it goes without a guest."""

import asyncio
import contextlib
import json
import os
import re
import resource
import socket
import stat

import pytest
import websockets

import harness
from harness import idle, quote

UNKNOWN = "0" * 32


@pytest.fixture(scope="module")
def d():
    with idle(vm={"quota_per_user": 100, "cli_boot_timeout": "600", "browser_boot_timeout": "600"}) as daemon:
        yield daemon


def described():
    for path, item in harness.SPEC["paths"].items():
        for method, operation in item.items():
            if method in ("get", "post", "delete"):
                yield method.upper(), path, operation.get("security", harness.SPEC["security"])


def test_every_route_asks_who_calls(d):
    seen = 0
    for method, path, security in described():
        if not security or path.endswith("/websock"):
            continue
        path = re.sub(r"\{user\}", "u1", re.sub(r"\{id\}", UNKNOWN, path))
        for headers in ({}, {"Authorization": "Bearer " + "0" * 64}, {"Authorization": "Bearer "},
                        {"Authorization": "Basic " + d.token}, {"Cookie": "mc_session=" + "0" * 64},
                        {"Authorization": d.token}):
            r = d.request(method, path, headers=headers)
            assert r.status == 401 and r.json["code"] == "auth.required", (method, path, headers)
            assert r.headers["WWW-Authenticate"] == "Bearer"
            seen += 1
    assert seen >= 60
    assert d.get("/health").status == 200
    assert d.get(f"/api/auth/session/{UNKNOWN}/novnc").status == 200


def test_token_file_and_socket(d):
    assert stat.S_IMODE(os.stat(d.token_file).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(d.socket).st_mode) == 0o600
    assert re.fullmatch(r"[0-9a-f]{64}", d.token)
    for path in d.state.rglob("*"):
        if path.is_file():
            assert d.token.encode() not in path.read_bytes(), path
    assert d.token not in d.log.read_text()
    assert d.admin("GET", "/api/status").status == 200
    assert d.request("GET", "/api/status", unix=True).status == 200


def test_odd_users(d):
    for user in ("a b", "../x", ".hidden", "-x", "ä", "a\nb", "a;b", "a" * 65, "\x1b[2J", "%00", "a/b"):
        r = d.admin("POST", f"/api/users/{quote(user)}/vm", {})
        assert r.status == 400, user
        assert "\x1b" not in r.body.decode() and len(r.body) < 1000
    r = d.admin("POST", f"/api/users/{'a' * 10000}/vm", {})
    assert r.status in (400, 414)
    r = d.admin("POST", "/api/auth/start", {"userId": "u" * 10000, "provider": "demo"})
    assert r.status == 400 and r.json["code"] == "user.invalid" and "10000 bytes" in r.json["detail"]
    assert d.taps() == []
    for user in ("a b", "x" * 10000):
        assert d.mctl("vm", "create", "--user", user, "--type", "cli", check=None).status in (1, 2)


def test_wrong_bodies(d):
    post = lambda body, path="/api/users/u1/vm": d.admin("POST", path, body)
    for body in ("{", "[]", "1", '"x"', "\x00", "{} {}", '{"type":"cli","type":"cli"}', "nul", b"\xff\xfe", "[" * 5000):
        r = post(body)
        assert r.status == 400 and r.json["code"] == "body.not-json", body
    for body in ({"typ": "cli"}, {"type": "cli", "x": 1}):
        r = post(body)
        assert r.status == 400 and r.json["code"] == "body.unknown-field" and "known are" in r.json["hint"]
    for body in ({"type": "xl"}, {"type": 1}, {"memory_mib": -1}, {"memory_mib": "1"}, {"vcpus": 2**40}, {"type": None}):
        r = post(body)
        assert r.status == 400 and r.json["code"] == "body.bad-value", body
    for body in ({"memory_mib": 1}, {"vcpus": 33}, {"memory_mib": 2**31}):
        r = post(body)
        assert r.status == 400 and r.json["code"] == "vm.bad-size", body
    assert post("{" + " " * 70000 + "}").status == 413
    for body in ({}, {"userId": "u"}, {"userId": "u", "provider": 1}, {"userId": "u", "provider": "p" * 100},
                 {"userId": "u", "provider": "demo", "ticketLifetime": 0}):
        assert post(body, "/api/auth/start").json["code"] == "body.bad-value", body
    assert post({"userId": "u", "provider": "nobody"}, "/api/auth/start").json["code"] == "provider.unknown"
    assert post({"userId": "u\u0000x", "provider": "demo"}, "/api/auth/start").status == 400
    assert d.taps() == []


def test_wrong_addresses(d):
    get = lambda path: d.admin("GET", path)
    assert get("/nothing").status == 404 and get("/api/vms/").status == 404
    assert get("/api/vms?x=1").json["code"] == "query.unknown"
    assert get("/api/vms?all=2").json["code"] == "query.bad-value"
    assert get("/api/vms/vm-0/events").status == 404
    assert d.admin("PUT", "/api/vms").status == 405 and d.admin("PUT", "/api/vms").headers["Allow"]
    assert d.admin("BREW", "/api/vms").status == 501
    assert get("/static/../session.html").status in (400, 404) and get("/static/session.html").status == 404
    assert get("/static/dashboard.html").status == 404
    assert get("/static/..%2f..%2fetc%2fpasswd").status in (400, 404)
    assert d.get("/static/session.js").headers["Content-Type"].startswith("text/javascript")
    r = d.get("/static/session.js", headers={"If-None-Match": d.get("/static/session.js").headers["ETag"]}, check=False)
    assert r.status == 304 and r.body == b""


@pytest.mark.parametrize("path", ["/", f"/api/auth/session/{UNKNOWN}/novnc"])
def test_page_is_locked_down(d, path):
    r = d.get(path)
    assert r.headers["Content-Type"].startswith("text/html")
    policy = r.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "connect-src 'self';" in policy
    assert b"<style" not in r.body and b"style=" not in r.body and b"onload" not in r.body and b"<script>" not in r.body


def test_each_verb_tells_its_usage(d):
    assert d.mctl("vm", "create", "--help").out.count("mctl vm ") == 1
    assert d.mctl("vm", "--help").out.count("mctl vm ") > 5 and "mctl image" not in d.mctl("vm", "--help").out
    assert d.mctl("status", "--help").out.count("mctl status") == 1 and "mctl vm list" in d.mctl("--help").out


def test_slow_clients_are_let_go():
    with idle(api={"header_timeout": "0.5"}) as d:
        with socket.create_connection(("127.0.0.1", d.port)) as s:
            s.settimeout(5)
            s.sendall(b"GET /health HTTP/1.1\r\nHo")
            assert b"200" not in s.recv(4096) and d.get("/health").status == 200


def test_a_thousand_connections_keep_nobody_out():
    """Behind a proxy on this host all clients have one address."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with idle(api={"header_timeout": "60"}) as d, contextlib.ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(socket.create_connection(("127.0.0.1", d.port)))
        assert d.get("/health").status == 200 and d.admin("GET", "/api/vms").status == 200
        for _ in range(30):
            stack.enter_context(socket.create_connection(("127.0.0.1", d.port)))
        assert d.get("/health").status == 200 and d.admin("GET", "/api/vms", check=False).status == 503
        assert d.request("GET", "/api/vms", unix=True).status == 200


# ---- sessions ----

def start(d, user):
    r = d.admin("POST", "/api/auth/start", {"userId": user, "provider": "demo"})
    assert r.status == 201, r.body
    sid, ticket = r.json["sessionId"], r.json["novncURL"].split("#ticket=")[1]
    return sid, ticket


def cookie(d, sid, ticket):
    r = d.request("POST", f"/api/auth/session/{sid}/ticket", {"ticket": ticket})
    assert r.status == 204
    said = r.headers["Set-Cookie"]
    assert "HttpOnly" in said and "SameSite=Strict" in said and f"Path=/api/auth/session/{sid};" in said
    return {"Cookie": said.split(";")[0]}


def test_a_session_and_its_ticket(d):
    sid, ticket = start(d, "s1")
    again = d.admin("POST", "/api/auth/start", {"userId": "s1", "provider": "demo"})
    assert again.status == 200 and again.json["sessionId"] == sid and ticket not in again.json["novncURL"]
    jar = cookie(d, sid, ticket)
    r = d.request("POST", f"/api/auth/session/{sid}/ticket", {"ticket": ticket})
    assert r.status == 403 and r.json["code"] == "session.no-credential"
    said = d.get(f"/api/auth/session/{sid}", headers=jar).json
    assert said["session"]["status"] == "vm_created" and said["vm"]["state"] == "booting"
    assert "#ticket" not in said["session"]["novnc_url"] and said["vm"]["boot_deadline_at"]
    other, _ = start(d, "s2")
    assert d.get(f"/api/auth/session/{other}", headers=jar).status == 401
    assert d.request("POST", f"/api/auth/session/{other}/ticket", {"ticket": ticket}).status == 403
    foreign = {"Origin": "http://evil.example"}
    assert d.request("POST", f"/api/auth/session/{sid}/ticket", {"ticket": "x"}, foreign).status == 403
    assert d.get(f"/api/auth/session/{sid}", headers={**jar, **foreign}).status == 401
    for secret in (ticket, jar["Cookie"].split("=")[1]):
        for path in [d.log, *d.state.glob("master-controller.db*")]:
            assert secret.encode() not in path.read_bytes()
    r = d.request("POST", f"/api/auth/session/{sid}/cancel", {"reason": "enough"}, jar)
    assert r.json["session"]["status"] == "cancelled" and r.json["session"]["reason"] == "enough"
    d.wait_state(said["vm"]["id"], "stopped")
    assert d.admin("POST", f"/api/auth/session/{sid}/cancel", {}).status == 409


def test_a_ticket_gets_too_old():
    with idle(session={"ticket_lifetime": "1"}) as d:
        sid, ticket = start(d, "s1")
        import time
        time.sleep(1.1)
        assert d.request("POST", f"/api/auth/session/{sid}/ticket", {"ticket": ticket}).status == 403


def test_sessions_outlive_the_daemon_and_end_with_their_vm():
    with idle() as d:
        sid, ticket = start(d, "s1")
        jar = cookie(d, sid, ticket)
        d.stop()
        d.start()
        vm_id = d.get(f"/api/auth/session/{sid}", headers=jar).json["vm"]["id"]
        d.mctl("vm", "destroy", vm_id, "--reason", "maintenance at noon")
        said = d.get(f"/api/auth/session/{sid}", headers=jar).json["session"]
        assert said["status"] == "failed" and "maintenance at noon" in said["reason"]
        assert d.mctl("--json", "auth", "show", sid).json["session"]["status"] == "failed"


# ---- the WebSocket ----

def closed(d, sid, headers=(), origin=None, protocols=None):
    async def go():
        uri = f"ws://127.0.0.1:{d.port}/api/auth/session/{sid}/novnc/websock"
        async with websockets.connect(uri, extra_headers=headers, origin=origin, subprotocols=protocols, open_timeout=5) as ws:
            with pytest.raises(websockets.ConnectionClosed):
                await asyncio.wait_for(ws.recv(), 5)
            return ws.close_code, ws.close_reason, ws.subprotocol
    return asyncio.run(go())


def test_websocket_ends_in_words(d):
    own = f"http://127.0.0.1:{d.port}"
    sid, ticket = start(d, "w1")
    jar = cookie(d, sid, ticket)
    assert closed(d, sid)[0] == 4401
    assert closed(d, sid, {"Cookie": "mc_session=" + "1" * 64}, own)[0] == 4401
    assert closed(d, sid, jar)[0] == 4401, "a cookie without an Origin"
    assert closed(d, sid, jar, "http://evil.example")[0] == 4401
    assert closed(d, sid, jar, own + ".evil.example")[0] == 4401
    assert closed(d, UNKNOWN, jar, own)[0] == 4401
    bearer = {"Authorization": f"Bearer {d.token}"}
    assert closed(d, UNKNOWN, bearer)[0] == 4404
    code, reason, protocol = closed(d, sid, jar, own, ["binary", "base64"])
    assert code == 1013 and "booting" in reason and protocol == "binary" and len(reason.encode()) <= 120
    vm_id = d.get(f"/api/auth/session/{sid}", headers=jar).json["vm"]["id"]
    d.mctl("vm", "destroy", vm_id, "--reason", "ä" * 150)
    code, reason, protocol = closed(d, sid, jar, own)
    assert code == 1011 and len(reason.encode()) <= 120 and protocol is None


def test_what_is_no_upgrade_is_refused(d):
    path = f"/api/auth/session/{UNKNOWN}/novnc/websock"
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
               "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    assert d.get(path).status == 400
    r = d.get(path, headers={**upgrade, "Sec-WebSocket-Version": "8"})
    assert r.status == 400 and r.headers["Sec-WebSocket-Version"] == "13"
    assert d.get(path, headers={**upgrade, "Sec-WebSocket-Key": "short"}).status == 400

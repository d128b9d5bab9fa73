"""Who may call what: every route by every caller. A route of src/api/routes.c that has no row here fails."""

import bisect
import random
import re
import socket
import sqlite3
import time

import pytest

import harness
from harness import idle
from test_api import closed, cookie, start

UNKNOWN_VM = "vm-00000000-0000-4000-8000-000000000000"
UNKNOWN_SESSION = "0" * 32
# Callers, in this order: nobody, another user, the session's own page, the owner, an administrator. An expired or
# revoked token, and the page of another session, are nobody.
CALLERS = ("nobody", "other", "page", "owner", "admin")
ALL = (200, 200, 200, 200, 200)
ADMIN = (401, 403, 401, 403, 200)
USER = (401, 404, 401, 200, 200)
LIST = (401, 200, 401, 200, 200)
PAGE = (401, 404, 200, 200, 200)


def like(statuses, good):
    return tuple(good if s == 200 else s for s in statuses)


TABLE = {
    ("GET", "/"): (ALL, None),
    ("GET", "/health"): (ALL, None),
    ("GET", "/metrics"): (ADMIN, None),
    ("GET", "/api/status"): (ADMIN, None),
    ("GET", "/api/network"): (ADMIN, None),
    ("GET", "/api/events/stream"): (like(ADMIN, 400), None),  # by a number that is none: it would not end
    ("POST", "/api/admin/dashboard"): (like(ALL, 403), {"token": "x"}),
    ("DELETE", "/api/admin/dashboard"): (like(ALL, 204), None),
    ("POST", "/api/users/{user}/vm"): (USER, {}),
    ("GET", "/api/users/{user}/vm"): (USER, None),
    ("DELETE", "/api/users/{user}/vm"): (USER, None),
    ("POST", "/api/users/{user}/vm/hibernate"): (like(USER, 409), None),  # it has not booted
    ("POST", "/api/users/{user}/vm/resume"): (like(USER, 409), None),
    ("POST", "/api/vms/{id}/hibernate"): (like(USER, 409), None),
    ("POST", "/api/vms/{id}/resume"): (like(USER, 409), None),
    ("GET", "/api/vms"): (LIST, None),
    ("GET", "/api/vms/{id}"): (USER, None),
    ("DELETE", "/api/vms/{id}"): (USER, None),
    ("GET", "/api/vms/{id}/events"): (USER, None),
    ("GET", "/api/vms/{id}/console"): (USER, None),
    ("GET", "/api/vms/{id}/evidence"): (like(USER, 404), None),  # it lives
    ("GET", "/api/vms/{id}/diagnostics"): (USER, None),
    ("GET", "/api/vms/{id}/agent"): (USER, None),
    ("POST", "/api/vms/{id}/agent"): (like(USER, 503), {"op": "health"}),  # its agent does not answer
    ("GET", "/api/vms/{id}/exec"): (like(USER, 409), None),
    ("GET", "/api/admin/health/network"): (ADMIN, None),
    ("POST", "/api/admin/doctor"): (ADMIN, {}),
    ("POST", "/api/tokens"): (like(ADMIN, 201), {"user": "carl"}),
    ("GET", "/api/tokens"): (ADMIN, None),
    ("DELETE", "/api/tokens/{id}"): (like(ADMIN, 404), None),
    ("POST", "/api/auth/start"): (USER, {"userId": "{user}", "provider": "demo"}),
    ("GET", "/api/vault"): (ADMIN, None),
    ("POST", "/api/vault/rotate"): (like(ADMIN, 503), None),  # there is no key yet
    ("GET", "/api/users/{user}/credentials"): (USER, None),
    ("DELETE", "/api/users/{user}/credentials/{provider}"): (like(USER, 404), None),  # there is none
    ("GET", "/api/auth/session/{id}/credentials/status"): (PAGE, None),
    ("GET", "/api/auth/session/{id}/oauth-url"): (like(PAGE, 202), None),  # its VM does not run yet
    ("POST", "/api/auth/session/{id}/code"): (like(PAGE, 404), {"code": "x"}),  # no tool is at work
    ("POST", "/api/auth/session/{id}/open-url"): (like(PAGE, 400), {"url": "https://evil.example/"}),
    ("GET", "/api/auth/sessions"): (LIST, None),
    ("GET", "/api/auth/session/{id}"): (PAGE, None),
    ("POST", "/api/auth/session/{id}/cancel"): (PAGE, {}),
    ("POST", "/api/auth/session/{id}/heartbeat"): (PAGE, None),
    ("POST", "/api/auth/session/{id}/wake"): (PAGE, None),
    ("GET", "/api/auth/session/{id}/events"): (USER, None),
    ("POST", "/api/auth/session/{id}/ticket"): (like(ALL, 403), {"ticket": "x"}),
    ("GET", "/api/auth/session/{id}/novnc"): (ALL, None),
    # Not an upgrade here; as a WebSocket below.
    ("GET", "/api/auth/session/{id}/novnc/websock"): (like(ALL, 400), None),
}


def routes():
    """Of the table in routes.c; however a row is written, none is missed."""
    table = re.search(r"\broutes\[\] = \{\n(.*?)\n\};", (harness.HERE / "src/api/routes.c").read_text(), re.S)[1]
    rows = re.findall(r'\{\s*"([A-Z]+)",\s*"([^"]+)",\s*(\w+),\s*API_\w+', table)
    assert len(rows) == len(re.findall(r"\broute_\w+", table)), "a row that this test cannot read"
    handlers = re.findall(r"\broute_\w+", " ".join(re.findall(r"http_route_fn ([^;]+);", (
        harness.HERE / "src/api/internal.h").read_text())))
    assert {row[2] for row in rows} == set(handlers)
    return [row[:2] for row in rows]


def bearer(secret):
    return {"Authorization": f"Bearer {secret}"}


class World:
    """A daemon with what ann has, and tokens for her, for bob, and for nobody any more."""

    def __init__(self, d):
        self.d = d
        make = lambda user: d.mctl("--json", "token", "create", "--user", user).json
        self.ann, self.bob, self.late, self.gone = make("ann"), make("bob"), make("ann"), make("ann")
        d.mctl("token", "revoke", self.gone["token"]["id"])
        with sqlite3.connect(d.state / "master-controller.db", timeout=5) as db:
            db.execute("UPDATE token SET expires_ms = 1 WHERE id = ?", (self.late["token"]["id"],))
        other, ticket = start(d, "eve")
        self.foreign_page = cookie(d, other, ticket)
        opened = d.request("POST", "/api/admin/dashboard", {"token": d.token})
        assert opened.status == 204
        self.dashboard = {"Cookie": opened.headers["Set-Cookie"].split(";")[0]}
        self.refresh()

    def refresh(self):
        """What a former request has ended is there again."""
        d = self.d
        self.vm = d.admin("POST", "/api/users/ann/vm", {}).json["vm"]["id"]
        answer = d.admin("POST", "/api/auth/start", {"userId": "ann", "provider": "demo"}).json
        self.session = answer["sessionId"]
        self.page = cookie(d, self.session, answer["novncURL"].split("#ticket=")[1])

    def headers(self, caller):
        return {"nobody": {}, "other": bearer(self.bob["secret"]), "page": self.page,
                "owner": bearer(self.ann["secret"]), "admin": bearer(self.d.token), "dashboard": self.dashboard, "expired": bearer(self.late["secret"]),
                "revoked": bearer(self.gone["secret"]), "foreign page": self.foreign_page}[caller]

    def call(self, method, path, body, caller, user="ann", vm=None, session=None, check=True):
        ident = (session or self.session) if "/session/" in path else "00000000" if "/tokens/" in path else (vm or self.vm)
        path = path.replace("{user}", user).replace("{id}", ident).replace("{provider}", "codex")
        if body:
            body = {k: v.replace("{user}", user) for k, v in body.items()}
        headers = dict(self.headers(caller))
        if path == "/api/events/stream":
            headers["Last-Event-ID"] = "x"
        return self.d.request(method, path, body, headers, check=check)


@pytest.fixture(scope="module")
def world():
    with idle(vm={"quota_per_user": "200"}) as d:
        yield World(d)


def test_every_route_has_a_row():
    assert set(routes()) == set(TABLE)


@pytest.mark.parametrize("route", TABLE, ids=lambda r: f"{r[0]} {r[1]}")
def test_route(world, route):
    (method, path), (expected, body) = route, TABLE[route]
    for caller, status in zip(CALLERS, expected):
        world.refresh()
        answer = world.call(method, path, body, caller)
        assert answer.status == status, (caller, answer.body)
    for caller in ("expired", "revoked", "foreign page"):
        answer = world.call(method, path, body, caller)
        assert answer.status == expected[0], (caller, answer.body)
        if answer.status == 401:
            assert answer.body == world.call(method, path, body, "nobody").body
    if expected[1] == 404:
        # What is another's is answered as what nobody has.
        foreign = world.call(method, path, body, "other")
        unknown = world.call(method, path, body, "other", user="nobody", vm=UNKNOWN_VM, session=UNKNOWN_SESSION)
        same = lambda r, *ids: re.sub("|".join(ids), "ID", r.body.decode())
        assert same(foreign, world.vm, world.session) == same(unknown, UNKNOWN_VM, UNKNOWN_SESSION)
        names = lambda r: sorted(r.headers.keys())
        assert (foreign.status, names(foreign)) == (unknown.status, names(unknown))


@pytest.mark.parametrize("route", TABLE, ids=lambda r: f"{r[0]} {r[1]}")
def test_the_dashboard_only_reads(world, route):
    """Its cookie is an administrator at every GET, and nobody's from another origin; elsewhere it opens nothing."""
    (method, path), (expected, body) = route, TABLE[route]
    world.refresh()
    if (method, path) == ("DELETE", "/api/admin/dashboard"):
        return test_the_dashboards_cookie(world.d)
    public = expected[0] == expected[4]
    answer = world.call(method, path, body, "dashboard")
    assert answer.status == (expected[4] if public or method == "GET" else 403), answer.body
    assert answer.status != 403 or public or answer.json["code"] == "auth.read-only"
    if not public:
        for header in ({"Origin": "http://127.0.0.1:1"}, {"Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": "cross-site"}):
            world.dashboard, mine = {**world.dashboard, **header}, world.dashboard
            try:
                assert world.call(method, path, body, "dashboard").status == 401
            finally:
                world.dashboard = mine


@pytest.fixture
def d(world):
    return world.d


def test_the_dashboards_cookie(d):
    opened = d.request("POST", "/api/admin/dashboard", {"token": d.token}).headers["Set-Cookie"]
    assert "; HttpOnly" in opened and "; SameSite=Strict" in opened and "; Path=/api;" in opened
    mine = {"Cookie": opened.split(";")[0]}
    assert d.get("/api/status", headers=mine).status == 200
    # An upgrade is a GET, and would be a shell in a guest.
    vm = d.admin("GET", "/api/vms").json["vms"][0]["id"]
    shell = {**mine, "Connection": "Upgrade", "Upgrade": "mc-exec"}
    assert d.get(f"/api/vms/{vm}/exec", headers=shell).json["code"] == "auth.read-only"
    for method in ("POST", "DELETE"):
        said = d.request(method, "/api/admin/dashboard", {"token": d.token} if method == "POST" else None,
                         {**mine, "Origin": "http://127.0.0.1:1"})
        assert said.status == 403 and said.json["code"] == "origin.foreign" and str(d.port) in said.json["hint"]
    assert d.request("POST", "/api/admin/dashboard", {}).json["code"] == "auth.wrong-token"
    assert d.request("POST", "/api/admin/dashboard", {"token": "x", "more": 1}).status == 400
    assert d.get("/api/status", headers=mine).status == 200
    assert d.request("DELETE", "/api/admin/dashboard", None, mine).status == 204
    assert d.get("/api/status", headers=mine).status == 401
    secret = opened.split("=")[1].split(";")[0]
    assert secret not in d.log.read_text()
    stored = list(d.state.glob("master-controller.db*"))
    assert stored and not any(secret.encode() in path.read_bytes() for path in stored)


def test_lists_show_only_what_is_the_callers(world):
    d = world.d
    world.refresh()
    get = lambda path, caller: d.get(path, headers=world.headers(caller)).json
    for path in ("/api/vms", "/api/vms?all=1", "/api/vms?user=ann", "/api/vms?user=bob"):
        assert get(path, "other") == {"vms": []}
    assert {v["user"] for v in get("/api/vms?all=1", "owner")["vms"]} == {"ann"}
    assert {v["user"] for v in get("/api/vms", "admin")["vms"]} == {"ann", "eve"}
    assert get("/api/auth/sessions", "other") == {"sessions": []}
    assert {s["user"] for s in get("/api/auth/sessions", "owner")["sessions"]} == {"ann"}


def test_a_prefix_finds_only_the_callers(world):
    """Others' VMs make a prefix neither ambiguous nor longer."""
    d = world.d
    world.refresh()
    mine = d.request("POST", "/api/users/bob/vm", {}, bearer(world.bob["secret"])).json["vm"]
    found = d.get("/api/vms/vm-", headers=bearer(world.bob["secret"]))
    assert found.status == 200 and found.json["vm"]["id"] == mine["id"]
    why = d.get(f"/api/vms/{mine['id']}/events", headers=bearer(world.bob["secret"])).json
    assert world.bob["token"]["id"] in why["events"][0]["actor"] and "bob" in why["events"][0]["actor"]
    assert d.request("DELETE", "/api/users/bob/vm", None, bearer(world.bob["secret"])).status == 200


def test_the_websocket(world):
    d = world.d
    world.refresh()
    own = f"http://127.0.0.1:{d.port}"
    code = lambda sid, headers, origin=None: closed(d, sid, headers, origin)[0]
    assert code(world.session, {}) == 4401
    for caller in ("expired", "revoked"):
        assert code(world.session, world.headers(caller)) == 4401
    assert code(world.session, world.foreign_page, own) == 4401
    assert code(world.session, world.page, own) == 1013
    for caller in ("owner", "admin"):
        assert code(world.session, world.headers(caller)) == 1013
        assert code(world.session, world.headers(caller), "http://evil.example") == 4401
    other = world.headers("other")
    assert closed(d, world.session, other) == closed(d, UNKNOWN_SESSION, other) == (4404, "There is no such session.", None)


def seconds_to_close(d, sid, headers):
    """From the upgrade's request to the last byte of the Close."""
    fields = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", d.port)) as s:
        s.sendall((f"GET /api/auth/session/{sid}/novnc/websock HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
                   f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n{fields}\r\n").encode())
        said = b""
        while b"There is no such session." not in said:
            more = s.recv(4096)
            assert more, said
            said += more
        return time.perf_counter() - began


def p_longer(a, b):
    """How often one of a is longer than one of b: 0.5 when they cannot be told apart (Mann and Whitney's U)."""
    b = sorted(b)
    return sum(bisect.bisect_left(b, x) + bisect.bisect_right(b, x) for x in a) / (2 * len(a) * len(b))


PAIRS = 200
# Five standard deviations of p_longer() of PAIRS equal ones: sqrt((2 * PAIRS + 1) / (12 * PAIRS ** 2)) is 0.029.
INDISTINCT = 0.145


@pytest.mark.parametrize("route", [r for r in TABLE if TABLE[r][0][1] == 404] + [("WebSocket", "4404")], ids=lambda r: " ".join(r))
def test_what_is_anothers_takes_as_long_as_what_is_nobodys(world, route):
    """In turn, in random order, so that a busy machine slows both alike."""
    world.refresh()
    ids = {True: {"user": "ann", "vm": world.vm, "session": world.session},
           False: {"user": "nobody", "vm": UNKNOWN_VM, "session": UNKNOWN_SESSION}}
    times = {True: [], False: []}
    for _ in range(PAIRS):
        for foreign in random.sample((True, False), 2):
            if route[0] == "WebSocket":
                taken = seconds_to_close(world.d, ids[foreign]["session"], world.headers("other"))
            else:
                began = time.perf_counter()
                answer = world.call(*route, TABLE[route][1], "other", check=False, **ids[foreign])
                taken = time.perf_counter() - began
                assert answer.status == 404
            times[foreign].append(taken)
    assert abs(p_longer(times[True], times[False]) - 0.5) < INDISTINCT

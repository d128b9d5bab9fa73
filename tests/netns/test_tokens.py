"""Users' tokens: made, shown once, kept as hashes, listed, revoked."""

import re
import sqlite3

from harness import idle, quote
from test_routes import bearer


def secrets_in(d, secret):
    """Files of the daemon in which the secret, or its digits alone, can be found."""
    places = [d.log, *[p for p in d.state.rglob("*") if p.is_file()]]
    return [p for p in places if secret.encode() in p.read_bytes() or secret.removeprefix("mct_").encode() in p.read_bytes()]


def test_the_life_of_a_token():
    with idle() as d:
        r = d.mctl("token", "create", "--user", "ann", "--days", "7", "--note", "her laptop")
        secret = r.out.strip()
        assert re.fullmatch(r"mct_[0-9a-f]{64}", secret) and "shown once" in r.err
        assert secret not in r.err
        (listed,) = d.mctl("--json", "token", "list").json["tokens"]
        assert listed["user"] == "ann" and listed["note"] == "her laptop" and listed["last_used_at"] is None
        assert not listed["expired"] and "secret" not in listed
        mine = lambda: d.get("/api/users/ann/vm", headers=bearer(secret))
        assert mine().status == 404 and mine().json["code"] == "vm.not-found"
        assert d.mctl("--json", "token", "list").json["tokens"][0]["last_used_at"]
        d.stop()
        d.start()
        assert mine().status == 404, "it outlives the daemon"
        for bad in (secret[:-1], secret + "0", secret.upper(), "mct_" + "0" * 64, listed["id"], ""):
            assert d.get("/api/users/ann/vm", headers=bearer(bad)).status == 401, bad
        assert secrets_in(d, secret) == []
        out = d.mctl("token", "list").out
        assert listed["id"] in out and "her laptop" in out and secret not in out
        d.mctl("token", "revoke", listed["id"])
        assert mine().status == 401 and mine().json["code"] == "auth.required"
        assert d.mctl("--json", "token", "list").json["tokens"] == []
        r = d.mctl("--json", "token", "revoke", listed["id"], check=4)
        assert r.json["error"]["code"] == "token.not-found"
        log = d.log.read_text()
        assert f"token {listed['id']} of user ann, by uid 0" in log and "token-revoked" in log


def test_an_expired_token_is_none():
    with idle() as d:
        made = d.mctl("--json", "token", "create", "--user", "ann").json
        ask = lambda: d.get("/api/vms", headers=bearer(made["secret"])).status
        assert ask() == 200
        with sqlite3.connect(d.state / "master-controller.db", timeout=5) as db:
            db.execute("UPDATE token SET expires_ms = 1000")
        assert ask() == 401
        assert d.mctl("--json", "token", "list").json["tokens"][0]["expired"]
        assert "expired" in d.mctl("token", "list", "--user", "ann").out


def test_what_is_refused():
    with idle() as d:
        assert d.mctl("token", "create", check=None).status == 2
        assert d.mctl("token", "create", "--user", "a b", check=None).status == 2
        assert d.mctl("token", "create", "--user", "a", "--days", "0", check=None).status == 2
        assert d.mctl("token", "create", "--user", "a", "--days", "99999", check=None).status == 2
        assert d.mctl("token", "revoke", check=None).status == 2
        for body in ({"user": 1}, {}, {"user": "a", "note": "x" * 81}, {"user": "a", "lifetime_days": 0},
                     {"user": "a\u0000b"}, {"user": "a", "note": "b\u0000c"}):
            assert d.admin("POST", "/api/tokens", body).status == 400, body
        for ident in ("x", "'", "%", "0" * 3000, "a/b"):
            assert d.admin("DELETE", f"/api/tokens/{quote(ident)}").status in (400, 404, 414)
        assert d.mctl("--json", "token", "list").json["tokens"] == []
        assert d.mctl("--json", "token", "list", "--user", "nobody").json["tokens"] == []

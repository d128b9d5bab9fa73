"""The vault in a real daemon. What is in it was sealed, and is opened, by a second implementation of its format (below),
over libsodium alone; and planted secrets are searched for wherever they must not be."""

import contextlib
import ctypes
import os
import pathlib
import re
import secrets
import signal
import sqlite3
import struct

from harness import idle
from test_api import UNKNOWN, cookie, start
from test_routes import bearer

sodium = ctypes.CDLL("libsodium.so.23")
assert sodium.sodium_init() >= 0
NONCE = 24


def encrypt(key, plain, bound):
    nonce, out = secrets.token_bytes(NONCE), ctypes.create_string_buffer(len(plain) + 16)
    sodium.crypto_aead_xchacha20poly1305_ietf_encrypt(
        out, None, plain, ctypes.c_ulonglong(len(plain)), bound, ctypes.c_ulonglong(len(bound)), None, nonce, key)
    return nonce + out.raw


def decrypt(key, sealed, bound):
    text, out = sealed[NONCE:], ctypes.create_string_buffer(len(sealed) - NONCE - 16)
    assert sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(
        out, None, None, text, ctypes.c_ulonglong(len(text)), bound, ctypes.c_ulonglong(len(bound)), sealed[:NONCE],
        key) == 0, "it does not open"
    return out.raw


def key_id(key):
    out, context = ctypes.create_string_buffer(32), b"mc-vault key id\0"
    sodium.crypto_generichash(out, ctypes.c_size_t(32), context, ctypes.c_ulonglong(len(context)), key,
                              ctypes.c_size_t(32))
    return out.raw[:8]


def bound_to(purpose, user, provider, version, key=b""):
    return purpose + b"\0" + key + user.encode() + b"\0" + provider.encode() + b"\0" + struct.pack("<Q", version)


def database(d):
    return contextlib.closing(sqlite3.connect(d.state / "master-controller.db", timeout=5))


def plant(d, key, user, provider, plain, version=1):
    data_key = secrets.token_bytes(32)
    wrapped = encrypt(key, data_key, bound_to(b"mc-vault-key/1", user, provider, version, key_id(key)))
    sealed = encrypt(data_key, plain, bound_to(b"mc-vault/1", user, provider, version))
    with database(d) as db, db:
        db.execute("INSERT INTO credential (user, provider, version, owner_vm, created_ms, updated_ms, key_id, wrapped, sealed)"
                   " VALUES (?, ?, ?, '', 1, 1, ?, ?, ?)",
                   (user, provider, version, key_id(key), wrapped, sealed))


def opened(d, key, user, provider):
    with database(d) as db:
        version, wrapped, sealed = db.execute("SELECT version, wrapped, sealed FROM credential WHERE user = ? AND"
                                              " provider = ?", (user, provider)).fetchone()
    data_key = decrypt(key, wrapped, bound_to(b"mc-vault-key/1", user, provider, version, key_id(key)))
    return decrypt(data_key, sealed, bound_to(b"mc-vault/1", user, provider, version))


def keys_in(d):
    return [bytes.fromhex(line) for line in (d.dir / "vault.key").read_text().split()]


def write_keys(d, *keys):
    path = d.dir / "vault.key"
    path.write_text("".join(k.hex() + "\n" for k in keys))
    path.chmod(0o600)
    d.dir.chmod(0o711)


def memory(pid):
    """What a process can write to, as bytes."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as mem:
        for line in maps:
            begin, end = (int(x, 16) for x in line.split()[0].split("-"))
            if line.split()[1].startswith("rw") and end - begin < 1 << 28:
                with contextlib.suppress(OSError, ValueError):
                    mem.seek(begin)
                    yield mem.read(end - begin)


def files_of(d, but=()):
    return [p for p in d.dir.rglob("*") if p.is_file() and p.name not in but and p.suffix not in (".ext4", ".qcow2")
            and p.stat().st_size < 50 << 20]


def test_rotation_and_that_nothing_is_told():
    old, planted = secrets.token_bytes(32), b"planted-" + secrets.token_hex(24).encode()
    with idle() as d:
        said = d.mctl("--json", "vault", "status").json
        assert said["vault"]["keys"] == 0 and said["vault"]["problem"] is None and said["credentials"] == []
        assert not (d.dir / "vault.key").exists()
        d.mctl("vault", "rotate", check=1)
        write_keys(d, old)
        for user in ("ann", "bob"):
            plant(d, old, user, "codex", planted + user.encode())
        answers = [d.mctl("--json", "vault", "status").out]
        r = d.mctl("--json", "vault", "rotate")
        answers.append(r.out)
        assert r.json["rotation"] == {"rewrapped": 2, "unopened": 0, "done": True}
        (new,) = keys_in(d)
        assert new != old
        for user in ("ann", "bob"):
            assert opened(d, new, user, "codex") == planted + user.encode()
        answers.append(d.mctl("vault", "status").out)
        assert key_id(new).hex() in answers[-1] and key_id(old).hex() not in answers[-1]
        # Ways that fail tell as little.
        with database(d) as db, db:
            db.execute("UPDATE credential SET version = 2 WHERE user = 'bob'")
        r = d.mctl("vault", "rotate", check=1)
        answers += [r.out, r.err]
        assert len(keys_in(d)) == 2, "a credential that does not open keeps its key"
        d.mctl("vault", "forget", "--user", "bob", "--provider", "codex")
        d.mctl("vault", "forget", "--user", "bob", "--provider", "codex", check=4)
        assert d.mctl("--json", "vault", "rotate").json["rotation"]["done"] and len(keys_in(d)) == 1
        vm = d.create()
        d.mctl("vm", "destroy", vm["id"], "--reason", "evidence")
        needles = [planted, planted.hex().encode()]
        for key in (old, new, *keys_in(d)):
            needles += [key, key.hex().encode()]
        assert any(str(d.state).encode() in m for m in memory(d.process.pid)), "the search finds what is there"
        for where, data in [("memory", m) for m in memory(d.process.pid)] + [("answer", a.encode()) for a in answers] + \
                [(p, p.read_bytes()) for p in files_of(d, but=("vault.key",))]:
            for needle in needles:
                assert needle not in data, where
        assert re.search(r"vault-rotated.*by uid 0", d.log.read_text())


def test_a_rotation_goes_on_at_the_next_start():
    old, new = secrets.token_bytes(32), secrets.token_bytes(32)
    with idle() as d:
        d.stop(signal.SIGKILL)
        plant(d, old, "ann", "codex", b"text")
        write_keys(d, new, old)
        d.start()
        assert keys_in(d) == [new] and opened(d, new, "ann", "codex") == b"text"
        assert "a rotation went on: 1 credentials" in d.log.read_text()


def test_an_unsafe_key_stops_logins_alone():
    key = secrets.token_bytes(32)
    with idle() as d:
        plant(d, key, "ann", "codex", b"text")
        write_keys(d, key)
        (d.dir / "vault.key").chmod(0o644)
        d.stop()
        d.start()
        log = d.log.read_text()
        assert f"{d.dir}/vault.key is refused: others than its owner may use it (mode 0644)" in log and "chmod 600" in log
        r = d.mctl("vault", "status", check=1)
        assert "mode 0644" in r.out and "chmod 600" in r.out
        r = d.mctl("--json", "vault", "rotate", check=1)
        assert r.json["error"]["code"] == "vault.key-unsafe"
        assert d.create()["state"] == "booting"
        (d.dir / "vault.key").chmod(0o600)
        assert d.mctl("vault", "rotate").status == 0, "and needs no restart"
        (d.dir / "vault.key").unlink()
        r = d.mctl("vault", "status", check=1)
        assert "1 credentials are sealed by it" in r.out and "backup" in r.out
        assert not (d.dir / "vault.key").exists()


def test_users_and_pages_see_only_that_it_is_there():
    key = secrets.token_bytes(32)
    with idle() as d:
        write_keys(d, key)
        plant(d, key, "ann", "demo", b"text")
        ann = d.mctl("--json", "token", "create", "--user", "ann").json["secret"]
        bob = d.mctl("--json", "token", "create", "--user", "bob").json["secret"]
        (mine,) = d.get("/api/users/ann/credentials", headers=bearer(ann)).json["credentials"]
        assert mine["provider"] == "demo" and mine["version"] == 1 and mine["owner_vm"] is None
        assert mine["logged_out_at"] is None and "logged out" not in d.mctl("vault", "status").out
        with database(d) as db, db:
            db.execute("UPDATE credential SET logged_out_ms = 5")
        (mine,) = d.get("/api/users/ann/credentials", headers=bearer(ann)).json["credentials"]
        assert mine["logged_out_at"] == "1970-01-01T00:00:00.005Z" and "logged out there" in d.mctl("vault", "status").out
        assert d.get("/api/users/ann/credentials", headers=bearer(bob)).status == 404
        assert d.request("DELETE", "/api/users/ann/credentials/demo", headers=bearer(bob)).status == 404
        sid, ticket = start(d, "ann")
        said = d.get(f"/api/auth/session/{sid}/credentials/status", headers=cookie(d, sid, ticket)).json
        assert said["stored"] is False and said["version"] == 1, "an earlier login is not this session's"
        with database(d) as db, db:
            db.execute("UPDATE credential SET updated_ms = 32503680000000")
        said = d.get(f"/api/auth/session/{sid}/credentials/status", headers=bearer(ann)).json
        assert said["stored"] is True and said["status"] == "vm_created"
        assert d.get(f"/api/auth/session/{UNKNOWN}/credentials/status", headers=bearer(ann)).status == 404
        assert d.request("DELETE", "/api/users/ann/credentials/demo", headers=bearer(ann)).status == 200
        assert d.get("/api/users/ann/credentials", headers=bearer(ann)).json == {"credentials": []}


def test_the_daemon_leaves_no_core():
    with idle() as d:
        limits = pathlib.Path(f"/proc/{d.process.pid}/limits").read_text()
        assert re.search(r"Max core file size\s+0\s+0\s", limits)
        d.process.send_signal(signal.SIGXCPU)  # nobody ignores it, as a shell does SIGQUIT for what runs in the background
        status = os.waitpid(d.process.pid, 0)[1]
        d.process.returncode = -signal.SIGXCPU
        assert os.WTERMSIG(status) == signal.SIGXCPU and not os.WCOREDUMP(status)
        d.process = None

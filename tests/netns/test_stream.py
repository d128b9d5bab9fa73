"""GET /api/events/stream: what happens, as it happens; what was missed; and listeners that are too many, or too slow."""

import contextlib
import http.client
import json
import socket
import sqlite3
import time

import pytest

from harness import idle, wait_for


class Listener:
    def __init__(self, d, last=None, rcvbuf=None, cookie=None):
        self.connection = http.client.HTTPConnection("127.0.0.1", d.port, timeout=60)
        if rcvbuf:
            self.connection.sock = socket.socket()
            self.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
            self.connection.sock.settimeout(60)
            self.connection.sock.connect(("127.0.0.1", d.port))
        headers = {"Cookie": cookie} if cookie else {"Authorization": f"Bearer {d.token}"}
        if last is not None:
            headers["Last-Event-ID"] = str(last)
        self.connection.request("GET", "/api/events/stream", headers=headers)
        self.response = self.connection.getresponse()
        self.status = self.response.status
        self.last = None
        if self.status == 200:
            assert self.response.headers["Content-Type"] == "text/event-stream"
            assert self.response.readline() == b"retry: 2000\n" and self.response.readline() == b"\n"
            self.hello = self.next()
            assert self.hello[0] == "hello"

    def next(self):
        """One event: its name and data; a comment is (":", its words). None at the end."""
        name, data = "message", None
        while line := self.response.readline().decode():
            line = line.rstrip("\n")
            if line.startswith(":"):
                name, data = ":", line
            elif line == "":
                return name, data
            else:
                field, value = line.split(": ", 1)
                if field == "event":
                    name = value
                elif field == "data":
                    data = json.loads(value)
                elif field == "id":
                    assert self.last is None or int(value) > self.last or name == "hello"
                    self.last = int(value)
        return None

    def until(self, wanted):
        """The first event for which wanted(name, data)."""
        while event := self.next():
            if wanted(*event):
                return event
        raise AssertionError("the stream has ended")

    def close(self):
        self.connection.close()
        self.response.close()


def about(vm, event):
    return lambda name, data: name == "change" and data["about"] == vm["id"] and data["event"]["event"] == event


def test_what_happens_and_what_was_missed():
    with idle() as d:
        a = Listener(d)
        assert a.hello[1] == {"reset": True}
        vm = d.create("ann")
        name, data = a.until(about(vm, "started"))
        assert data["vm"]["id"] == vm["id"] and data["vm"]["user"] == "ann" and data["event"]["to"] == "booting"
        session = d.admin("POST", "/api/auth/start", {"userId": "carl", "provider": "demo"}).json["session"]
        name, data = a.until(lambda n, e: n == "change" and e["about"] == session["id"])
        assert data["session"]["user"] == "carl" and "vm" not in data
        # What others do to the bridge is no event of a VM.
        d.netns("ip", "link", "set", vm["tap"], "down")
        a.until(lambda n, e: n == "network")
        status = d.admin("GET", "/api/status").json
        assert [(f["code"], f["about"]) for f in status["findings"]] == [("port.broken", vm["id"])]
        port = next(p for p in d.admin("GET", "/api/network").json["ports"] if p["vm_id"] == vm["id"])
        assert not port["up"] and port["number"] and "down" in port["problem"]
        a.close()

        # It goes away, things happen, a new daemon comes: what was missed is told, and nothing else.
        d.mctl("vm", "destroy", vm["id"], "--reason", "while nobody looked")
        d.stop()
        d.start()
        b = Listener(d, last=a.last)
        assert b.hello[1] == {"reset": False} and b.last == a.last
        name, data = b.until(about(vm, "ended"))
        assert data["vm"]["state"] == "stopped" and data["event"]["reason"] == "while nobody looked"
        c = Listener(d, last=b.last + 1000)
        assert c.hello[1] == {"reset": True}, "a number that was never told"
        assert d.admin("GET", "/api/events/stream?x=1").json["code"] == "query.unknown"
        for wrong in ("x", "-1", "1.5", "99999999999999999999"):
            assert Listener(d, last=wrong).status == 400


def test_who_signs_out_hears_no_more():
    """Nor does anybody else with the same cookie; who has another one does."""
    with idle() as d:
        def sign_in():
            answer = d.request("POST", "/api/admin/dashboard", {"token": d.token})
            assert answer.status == 204 and "; Secure" not in answer.headers["Set-Cookie"]
            return answer.headers["Set-Cookie"].split(";")[0]
        out, stays = sign_in(), sign_in()
        a, b = Listener(d, cookie=out), Listener(d, cookie=stays)
        by_token = Listener(d)
        assert d.request("DELETE", "/api/admin/dashboard", headers={"Cookie": out}).status == 204
        name, data = a.until(lambda n, e: n == "end")
        assert "given back" in data["words"] and a.next() is None
        assert Listener(d, cookie=out).status == 401
        vm = d.create("ann")
        for listener in (b, by_token):
            listener.until(about(vm, "started"))


def test_a_port_that_is_gone_left_over_or_somebody_elses():
    with idle() as d:
        vm = d.create("ann")
        d.netns("ip", "link", "add", "other0", "type", "veth", "peer", "other1")
        d.netns("ip", "link", "set", "other1", "up")
        d.netns("ip", "link", "set", "other0", "master", "br0", "up")
        d.netns("ip", "tuntap", "add", "fc-vm-000000000", "mode", "tap")
        d.netns("ip", "link", "set", "fc-vm-000000000", "alias", "vm-00000000-0000-4000-8000-000000000000", "master", "br0")
        ports = {p["name"]: p for p in d.admin("GET", "/api/network").json["ports"]}
        assert ports[vm["tap"]]["problem"] is None and ports[vm["tap"]]["number"]
        assert ports["other0"] == {"name": "other0", "kind": "veth", "number": 2, "vm_id": None, "up": True, "carrier": True,
                                   "forwards": True, "problem": None}
        assert "left over" in ports["fc-vm-000000000"]["problem"]
        findings = {f["code"]: f for f in d.admin("GET", "/api/status").json["findings"]}
        assert set(findings) == {"port.left-over"} and findings["port.left-over"]["about"] == "fc-vm-000000000"
        d.netns("ip", "link", "set", vm["tap"], "nomaster")
        ports = {p["name"]: p for p in d.admin("GET", "/api/network").json["ports"]}
        assert ports[vm["tap"]]["number"] is None and "off the bridge" in ports[vm["tap"]]["problem"]
        d.netns("ip", "link", "del", vm["tap"])
        ports = {p["name"]: p for p in d.admin("GET", "/api/network").json["ports"]}
        assert ports[vm["tap"]]["problem"] == "is gone: the VM has no network"
        out = d.mctl("status").out
        assert "other0" in out and "left over" in out and f"{vm['tap']} is gone" in out and "[port.broken]" in out
        said = d.mctl("--json", "status").json
        assert {p["name"] for p in said["ports"]} == set(ports) and [v["id"] for v in said["vm_list"]] == [vm["id"]]
        assert said["sessions"] == [] and {f["code"] for f in said["findings"]} == {"port.left-over", "port.broken"}


def test_too_many_listeners_and_silence():
    with idle() as d, contextlib.ExitStack() as stack:
        began = time.monotonic()
        listeners = []
        for _ in range(16):
            listeners.append(Listener(d))
            stack.callback(listeners[-1].close)
        more = Listener(d)
        assert more.status == 503 and json.loads(more.response.read())["code"] == "stream.busy"
        listeners.pop().close()

        def there_is_room():
            """one that hung up has made room"""
            again = Listener(d)
            stack.callback(again.close)
            return again.status == 200
        wait_for(there_is_room)
        assert listeners[0].next()[0] == ":" and time.monotonic() - began > 10


def test_a_listener_that_does_not_read():
    """Others get all of it, at once; it is told why it is let go, and the daemon answers meanwhile."""
    with idle() as d:
        slow, good = Listener(d, rcvbuf=4096), Listener(d)
        with sqlite3.connect(d.state / "master-controller.db", timeout=30) as db:
            db.executemany("INSERT INTO event (about, at_ms, actor, event, from_state, to_state, reason)"
                           " VALUES (?, 1, 'test', 'x', '', '', ?)", [("nobody", "y" * 390)] * 6000)
        seen = 0
        for seen in range(1, 6001):
            assert good.until(lambda n, e: n == "change")[1]["about"] == "nobody"
            if seen % 1000 == 0:
                began = time.monotonic()
                assert d.get("/health").status == 200 and time.monotonic() - began < 2
        wait_for(lambda: "does not read as fast" in d.log.read_text())
        heard = []
        while event := slow.next():
            heard.append(event)
        assert heard[-1][0] == "end" and "does not read" in heard[-1][1]["words"]
        assert 0 < sum(n == "change" for n, _ in heard) < 6000 - 2000
        # It comes back: too much was missed to be told one by one.
        assert Listener(d, last=slow.last).hello[1] == {"reset": True}
        assert Listener(d, last=good.last).hello[1] == {"reset": False}

"""The relay of a real daemon between strict endpoints: what is sent arrives, and whatever goes wrong, the browser gets a
code and a sentence. The VMM does nothing; the guest's side is played at the VM's address (relay_peers.py)."""

import asyncio
import contextlib
import itertools
import random
import signal
import socket
import time

import pytest
import websockets

import relay_peers as peers
from harness import idle, wait_for
from relay_peers import Browser, close_frame, frame
from test_session import plain_image, shown, wait_status  # noqa: F401

RFB = b"RFB 003.008\n"


class Desk:
    """A session whose VM has an address at which the test plays the desktop."""

    def __init__(self, d, user, behaviours, stack):
        self.d, self.behaviours = d, behaviours
        answer = d.admin("POST", "/api/auth/start", {"userId": user, "provider": "demo"}).json
        self.sid = answer["sessionId"]
        self.vm = d.vm(answer["session"]["vm_id"])
        self.socket = stack.enter_context(peers.guest_socket(d, self.vm))
        self.url = f"ws://127.0.0.1:{d.port}/api/auth/session/{self.sid}/novnc/websock"
        self.headers = {"Authorization": f"Bearer {d.token}"}

    async def serve(self):
        """Answers, and waits until the controller has seen the desktop."""
        server = await asyncio.start_server(peers.guest_server(self.behaviours), sock=self.socket.dup())
        await asyncio.get_running_loop().run_in_executor(None, wait_status, self.d, self.sid, "awaiting_user_auth")
        return server

    async def closing(self, protocol, then=None):
        """How python3-websockets is closed: [code, reason, subprotocol]."""
        async with websockets.connect(self.url, extra_headers=self.headers, subprotocols=[protocol], open_timeout=30, **peers.LIBRARY) as ws:
            with contextlib.suppress(websockets.ConnectionClosed):
                while True:
                    await ws.recv()
                    if then:
                        await asyncio.get_running_loop().run_in_executor(None, then)
                        then = None
        return [ws.close_code, ws.close_reason, ws.subprotocol]


@pytest.fixture(scope="module")
def d(plain_image):  # noqa: F811
    with idle(image=plain_image, session={"timeout": "0", "desktops": "0"}) as daemon:
        yield daemon


def is_sentence(code, reason):
    return code in (1011, 1012, 1013, 1014, 4401, 4404, 4408) and 10 < len(reason.encode()) <= 120 and reason[0].isupper()


# ---- what is sent arrives ----

async def relayed(desk, client, server, seed, path):
    rng = random.Random(seed)
    slow = seed % 2 == 1
    to_vm, to_browser = peers.plan(rng, 40, 700000 if slow else 4 << 20), peers.plan(rng, 40, 3 << 20)
    close = [3000 + seed, f"bye {seed} ü"]
    job = {"slow": slow, "headers": desk.headers, "close": close, "path": str(path)}
    async with contextlib.AsyncExitStack() as stack:
        at_vm = await stack.enter_async_context(
            peers.SERVERS[server]({**job, "role": "server", "send": to_browser, "expect": len(to_vm)}))
        front = socket.create_server(("127.0.0.1", 0))
        if slow:
            peers.small_buffers(front)
            peers.small_buffers(desk.socket)
        to_guest = peers.chopper(rng, slow, lambda: asyncio.open_unix_connection(str(path)))
        to_daemon = peers.chopper(rng, slow, lambda: asyncio.open_connection("127.0.0.1", desk.d.port))
        async with await asyncio.start_server(to_guest, sock=desk.socket.dup()), await asyncio.start_server(to_daemon, sock=front):
            url = desk.url.replace(str(desk.d.port), str(front.getsockname()[1]))
            seen = await asyncio.wait_for(
                peers.CLIENTS[client]({**job, "role": "client", "url": url, "send": to_vm, "expect": len(to_browser)}), 60)
            other = await asyncio.wait_for(at_vm, 30)
    assert seen["protocol"] == other["protocol"] == "binary"
    for got, sent, back in ((seen, to_browser, to_vm), (other, to_vm, to_browser)):
        assert got["received"] == peers.expected(sent)
        assert got["pongs"] == peers.pings_of(back)
    assert other["close"] == close and seen["close"][0] == close[0]


@pytest.mark.parametrize("number,client,server", [(i, c, s) for i, (c, s) in enumerate(
    itertools.product(peers.CLIENTS, peers.SERVERS))])
def test_random_streams_arrive_as_they_were_sent(d, tmp_path, number, client, server):
    """Payloads, types, order, pings and their answers, and the Close, both ways at the same time; once with slow readers."""
    with contextlib.ExitStack() as stack:
        desk = Desk(d, f"stream-{client}-{server}", {}, stack)

        async def go():
            async with await desk.serve():
                pass
            for seed in (2 * number, 2 * number + 1):
                await relayed(desk, client, server, seed, tmp_path / f"{seed}.sock")
        asyncio.run(go())


# ---- what goes wrong in the guest ----

BROKEN = "broke the WebSocket protocol"
SERVICE = "service"
# What the guest's side does, by name; what the browser reads then. All of these are 1014: the VM is there.
GUEST = {}


def guest_does(says):
    def add(function):
        GUEST[function.__name__.replace("_", "-")] = (function, says)
        return function
    return add


def answers(name, says, **how):
    async def answer(guest):
        guest.answer(**how)
    GUEST[name] = (answer, says)


def sends(name, *frames, says=BROKEN):
    async def good(guest):
        guest.good(*frames)
    GUEST[name] = (good, says)


answers("wrong-accept-key", "accept key", accept="s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
answers("no-accept-key", "accept key", accept="")
answers("other-subprotocol", "subprotocol", protocol="somethingelse")
answers("no-subprotocol", "subprotocol", protocol="")
answers("an-extension", "extension", more="Sec-WebSocket-Extensions: permessage-deflate")
answers("other-upgrade", "not a WebSocket", upgrade="h2c")
answers("status-200", "200", status="200 OK")
answers("status-302", "302", status="302 Found")
answers("status-401", "401", status="401 Unauthorized")
answers("status-503", "503", status="503 Service Unavailable")
answers("folded-header", "malformed", more="X: a\r\n b")
sends("masked", frame(0x82, b"x", masked=True))
sends("reserved-bit", frame(0xc2, b"x"))
sends("unknown-opcode", frame(0x83, b"x"))
sends("unknown-control", frame(0x8b, b"x"))
sends("long-ping", frame(0x89, b"x" * 126))
sends("ping-in-fragments", frame(0x09, b"x"))
sends("close-of-one-byte", frame(0x88, b"x"))
sends("close-1006", close_frame(1006))
sends("close-999", close_frame(999))
sends("close-not-utf8", close_frame(1000, b"\xff"))
sends("text-not-utf8", frame(0x81, b"\xc3\x28"))
sends("text-not-utf8-in-fragments", frame(0x01, b"\xe2\x82"), frame(0x80, b"\x28"))
sends("text-cut-short", frame(0x81, b"\xe2\x82"))
sends("surrogate", frame(0x81, b"\xed\xa0\x80"))
sends("continuation-of-nothing", frame(0x80, b"x"))
sends("message-in-message", frame(0x02, b"x"), frame(0x82, b"y"))
sends("length-too-wide", frame(0x82, b"x", length=b"\x7e\x00\x01"))
sends("length-negative", frame(0x82, b"x", length=b"\x7f" + b"\xff" * 8))
sends("close", close_frame(1000, b"bye"), says=SERVICE)
sends("close-without-code", frame(0x88), says=SERVICE)
sends("close-behind-a-long-message", frame(0x82, b"x" * 3000000), close_frame(1011, b"no display"), says=SERVICE)
sends("close-within-a-message", frame(0x02, b"x" * 300000), close_frame(1001), says=SERVICE)


@guest_does("does not answer")
async def silent(guest):
    pass


@guest_does("headers do not end")
async def endless_headers(guest):
    guest.send(b"HTTP/1.1 101 Switching Protocols\r\n" + b"X: y\r\n" * 4000)


@guest_does("HTTP")
async def garbage(guest):
    guest.send(b"RFB 003.008\n")


@guest_does("HTTP")
async def old_http(guest):
    guest.send(b"HTTP/1.0 101 Switching Protocols\r\n\r\n")


@guest_does(SERVICE)
async def reset_for_an_answer(guest):
    guest.reset()


@guest_does("closed the connection")
async def fin_for_an_answer(guest):
    guest.fin()


@guest_does("closed the connection")
async def fin_within_the_answer(guest):
    guest.send(b"HTTP/1.1 101 Swi")
    guest.fin()


async def after(guest, *frames):
    """These frames have been taken by the relay when this returns, whatever happens to the connection then."""
    guest.good(*frames, frame(0x89, b"taken"))
    while (await peers.read_frame(guest.reader))[2] != b"taken":
        pass


@guest_does(SERVICE)
async def reset(guest):
    await after(guest)
    guest.reset()


@guest_does(SERVICE)
async def reset_within_a_message(guest):
    await after(guest, frame(0x02, b"x" * 70000))
    guest.reset()


@guest_does(SERVICE)
async def reset_within_a_frame(guest):
    await after(guest)
    guest.send(frame(0x82, b"x" * 200000, length=1 << 40))
    await asyncio.sleep(0.05)
    guest.reset()


@guest_does(SERVICE)
async def fin_between_messages(guest):
    guest.good()
    guest.fin()


@guest_does(SERVICE)
async def fin_within_a_header(guest):
    guest.good(b"\x82\x7e\x01")
    guest.fin()


@guest_does(SERVICE)
async def fin_within_a_payload(guest):
    guest.good(frame(0x82, b"x" * 100, length=1000))
    guest.fin()


@guest_does(SERVICE)
async def fin_within_a_long_payload(guest):
    guest.good(frame(0x82, b"x" * 3000000, length=1 << 40))
    guest.fin()


@guest_does(SERVICE)
async def fin_within_a_message(guest):
    guest.good(frame(0x01, b"x" * 100))
    guest.fin()


def test_whatever_the_guest_does_the_browser_reads_why(d):
    """Both libraries as the browser, all at the same time."""
    async def go(desk):
        async with await desk.serve():
            job = {"role": "closings", "url": desk.url, "headers": desk.headers, "protocols": list(GUEST)}
            node, *python = await asyncio.wait_for(
                asyncio.gather(peers.node_client(job), *(desk.closing(name) for name in GUEST)), 60)
            return node, dict(zip(GUEST, python))
    behaviours = {name: function for name, (function, _) in GUEST.items()}
    with contextlib.ExitStack() as stack:
        both = asyncio.run(go(Desk(d, "guest", behaviours, stack)))
    for seen, (name, (_, says)) in itertools.product(both, GUEST.items()):
        code, reason, protocol = seen[name]
        assert code == 1014 and says in reason and is_sentence(code, reason) and protocol == name, (name, seen[name])


# ---- what goes wrong in the browser ----

def masked(first, payload=b"", **more):
    return frame(first, payload, masked=True, **more)


# What the browser's side sends or does; the code that it is told, where it can still be told.
BROWSER = {
    "unmasked": (frame(0x82, b"x"), 1002), "reserved-bit": (masked(0xc2, b"x"), 1002),
    "unknown-opcode": (masked(0x83, b"x"), 1002), "long-ping": (masked(0x89, b"x" * 126), 1002),
    "ping-in-fragments": (masked(0x09, b"x"), 1002), "close-of-one-byte": (masked(0x88, b"x"), 1002),
    "close-1006": (close_frame(1006, masked=True), 1002), "close-not-utf8": (close_frame(1000, b"\xff", masked=True), 1007),
    "continuation-of-nothing": (masked(0x80, b"x"), 1002),
    "message-in-message": (masked(0x02, b"x") + masked(0x82, b"y"), 1002),
    "length-too-wide": (masked(0x82, b"x", length=b"\x7e\x00\x01"), 1002),
    "length-negative": (masked(0x82, b"x", length=b"\x7f" + b"\xff" * 8), 1002),
    "fin": (b"", Browser.fin), "fin-within-a-frame": (masked(0x82, b"x" * 100, length=1000), Browser.fin),
    "fin-within-a-message": (masked(0x02, b"x" * 70000), Browser.fin),
    "reset": (b"", Browser.reset), "reset-within-a-frame": (masked(0x82, b"x" * 100000, length=1 << 40), Browser.reset),
    "early-close": (close_frame(1001, b"", masked=True), None),
}


def test_whatever_the_browser_does_the_guest_is_told(d):
    """And the browser too, where it listens."""
    told = {}

    async def listen(guest):
        guest.good()
        told[guest.protocol].set_result(await peers.read_to_close(guest.reader))
        guest.send(close_frame(1000))

    async def misbehave(desk, name):
        bytes_, then = BROWSER[name]
        told[name] = asyncio.get_running_loop().create_future()
        browser = await Browser.open(d, desk.sid, name, bytes_ if then is None else b"")
        if then is not None:
            assert (await peers.read_frame(browser.reader))[2] == RFB
            browser.send(bytes_)
        if callable(then):
            await browser.writer.drain()
            then(browser)
        said = await peers.read_to_close(browser.reader) if then != Browser.reset else None
        guest = await asyncio.wait_for(told[name], 20)
        if isinstance(then, int):
            browser.send(close_frame(then, masked=True))
            assert await asyncio.wait_for(browser.reader.read(), 20) == b"", "nothing follows a Close"
        browser.writer.close()
        return said, guest

    async def go(desk):
        async with await desk.serve():
            return dict(zip(BROWSER, await asyncio.wait_for(
                asyncio.gather(*(misbehave(desk, name) for name in BROWSER)), 60)))
    with contextlib.ExitStack() as stack:
        seen = asyncio.run(go(Desk(d, "browser", dict.fromkeys(BROWSER, listen), stack)))
    for name, (said, guest) in seen.items():
        then = BROWSER[name][1]
        assert guest == [1001, ""], (name, guest)
        if isinstance(then, int):
            assert said[0] == then and said[1].startswith("The browser broke the WebSocket protocol: "), (name, said)
        elif then is None:
            assert said[0] == 1001
        elif then == Browser.fin:
            assert said == [1001, "The browser went away."], (name, said)


# ---- what the controller does ----

async def torrent(guest):
    """One message without an end, faster than anybody reads it."""
    guest.good(frame(0x02, b"x" * 10))
    while True:
        guest.send(frame(0x00, b"x" * 1000000))
        await guest.writer.drain()


async def slow_closing(desk, protocol, then):
    """A browser that reads little of what comes, by hand: the Close that it reads."""
    browser = await Browser.open(desk.d, desk.sid, protocol)
    while (await peers.read_frame(browser.reader))[2] != b"x" * 10:
        pass
    await asyncio.sleep(0.3)  # so that all buffers on the way are full
    await asyncio.get_running_loop().run_in_executor(None, then)
    closed = await asyncio.wait_for(peers.read_to_close(browser.reader), 30)
    browser.writer.close()
    return closed


def test_ends_that_the_controller_makes(plain_image):  # noqa: F811
    """A VM that is destroyed, a session that is cancelled or times out, in the middle of an endless message: the Close is
    read, and who comes later reads the same."""
    with idle(image=plain_image, session={"timeout": "6"}) as d, contextlib.ExitStack() as stack:
        behaviours = {"torrent": torrent}
        desks = {name: Desk(d, name, behaviours, stack) for name in ("destroyed", "cancelled", "timeout")}
        then = {"destroyed": lambda: d.mctl("vm", "destroy", desks["destroyed"].vm["id"], "--reason", "noon"),
                "cancelled": lambda: d.mctl("auth", "cancel", desks["cancelled"].sid, "--reason", "wrong account"),
                "timeout": lambda: None}

        async def one(name):
            desk = desks[name]
            async with await desk.serve():
                seen = await slow_closing(desk, "torrent", then[name])
                return seen, await asyncio.wait_for(desk.closing("torrent"), 30)

        async def go():
            return dict(zip(desks, await asyncio.gather(*map(one, desks))))
        seen = asyncio.run(go())
        for name, code, says in (("destroyed", 1011, "noon"), ("cancelled", 1011, "wrong account"), ("timeout", 4408, "6 s")):
            first, later = seen[name]
            assert first[0] == later[0] == code and says in first[1] and says in later[1], seen[name]
            assert is_sentence(*first) and is_sentence(*later[:2])


def test_a_daemon_that_ends_tells_everybody(plain_image):  # noqa: F811
    """Who sees a desktop, who is sent a long message, and who still waits for the guest's answer."""
    with idle(image=plain_image) as d, contextlib.ExitStack() as stack:
        desk = Desk(d, "u", {"torrent": torrent, "silent": silent}, stack)

        async def go():
            async with await desk.serve():
                waiting = [asyncio.ensure_future(desk.closing(name)) for name in ("silent", "silent", "idle")]
                await asyncio.sleep(0.3)
                end = lambda: d.process.send_signal(signal.SIGTERM)
                return await asyncio.wait_for(asyncio.gather(slow_closing(desk, "torrent", end), *waiting), 60)
        for closed in asyncio.run(go()):
            assert closed[0] == 1012 and is_sentence(*closed[:2]) and "restarts" in closed[1], closed
        assert d.process.wait(20) == 0


def test_a_desktop_is_open_only_so_often(plain_image):  # noqa: F811
    """Who comes then is told so, and comes in when another has gone, in whatever way it went; sessions do not share it."""
    with idle(image=plain_image, session={"timeout": "0", "desktops": "3"}) as d, contextlib.ExitStack() as stack:
        dialed = asyncio.Event()

        async def is_silent(guest):
            dialed.set()

        async def is_polite(guest):
            guest.good()
            await peers.read_to_close(guest.reader)
            guest.send(close_frame(1000))
            guest.fin()
        desk, other = (Desk(d, user, {"silent": is_silent, "again": is_polite}, stack) for user in ("u", "v"))

        async def can_open():
            browser = await Browser.open(d, desk.sid, "again")
            told = (await peers.read_frame(browser.reader))[2]
            if told == RFB:
                return browser
            code, reason = int.from_bytes(told[:2], "big"), told[2:].decode()
            assert code == 1014 and is_sentence(code, reason) and "open 3 times" in reason
            browser.send(close_frame(code, masked=True))
            browser.writer.close()
            return None

        async def soon():
            async with asyncio.timeout(20):
                while not (browser := await can_open()):
                    await asyncio.sleep(0.05)
            return browser

        async def go():
            async with await desk.serve(), await other.serve():
                waits = asyncio.ensure_future(desk.closing("silent"))  # for the guest's answer: counts too
                await asyncio.wait_for(dialed.wait(), 20)
                browsers = [await soon(), await soon()]
                assert await can_open() is None
                assert (await peers.read_frame((await Browser.open(d, other.sid, "other")).reader))[2] == RFB
                for leave in (Browser.reset, lambda b: b.send(close_frame(1000, masked=True))):
                    leave(browsers.pop(0))
                    browsers.append(await soon())
                    assert await can_open() is None
                waits.cancel()
                await soon()
        asyncio.run(go())


def test_a_guest_that_cannot_be_reached_is_told_with_the_finding(d):
    with contextlib.ExitStack() as stack:
        desk = Desk(d, "lost", {}, stack)

        async def up():
            async with await desk.serve():
                pass
        asyncio.run(up())
        desk.socket.close()
        code, reason, _ = asyncio.run(asyncio.wait_for(desk.closing("binary"), 60))
        assert code == 1014 and is_sentence(code, reason), reason
        d.netns("ip", "address", "del", f"{desk.vm['ip']}/32", "dev", "br0")
        finding = wait_for(lambda: shown(d, desk.sid)["vm"]["reachable"] is False and shown(d, desk.sid)["vm"]["finding"], 40)
        code, reason, _ = asyncio.run(asyncio.wait_for(desk.closing("binary"), 60))
        assert code == 1014 and is_sentence(code, reason), reason
        assert reason.startswith("The VM cannot be reached: ") and finding.startswith(reason[26:].rstrip("?")), (reason, finding)


def test_a_browser_that_reads_nothing_costs_nothing(d):
    """Backpressure: the guest is held back, and the daemon keeps no more than its buffers."""
    rss = lambda: next(int(x.split()[1]) for x in open(f"/proc/{d.process.pid}/status") if x.startswith("VmRSS"))
    sent = {}

    async def count(guest):
        guest.good()
        sent[guest] = 0
        while True:
            guest.send(frame(0x82, b"x" * 100000))
            await guest.writer.drain()
            sent[guest] += 100000

    async def go(desk):
        async with await desk.serve():
            before = rss()
            browsers = [await Browser.open(d, desk.sid, "count") for _ in range(8)]
            last = None
            while last is None or sum(sent.values()) > last:
                last = sum(sent.values())
                await asyncio.sleep(1)
            assert len(sent) == 8 and rss() - before < 2 * 1024 + 8 * 200, "kB: two threads' buffers, and what each keeps"
            browsers[0].send(masked(0x82, b"still"))
            for browser in browsers:
                for _ in range(50):
                    assert len((await asyncio.wait_for(peers.read_frame(browser.reader), 20))[2]) > 0
                browser.reset()
    with contextlib.ExitStack() as stack:
        asyncio.run(go(Desk(d, "full", {"count": count}, stack)))


def test_a_desktop_that_is_still_is_pinged(d):
    """Proxies cut what is silent for a minute; a browser cannot ping. It does not answer with what the guest would see."""
    async def go(desk):
        async with await desk.serve():
            browser = await Browser.open(d, desk.sid, "still")
            assert (await peers.read_frame(browser.reader))[2] == RFB
            began = time.monotonic()
            first, is_masked, payload = await asyncio.wait_for(peers.read_frame(browser.reader), 60)
            assert first == 0x89 and not is_masked and time.monotonic() - began > 20
            browser.send(masked(0x8a, payload))
            browser.send(close_frame(1000, masked=True))
            assert await peers.read_to_close(browser.reader) == [1000, ""]
            browser.writer.close()
    with contextlib.ExitStack() as stack:
        asyncio.run(go(Desk(d, "still", {}, stack)))

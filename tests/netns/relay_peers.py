"""The two ends of a relayed WebSocket, for test_relay.py: strict libraries (python3-websockets here, npm `ws` by
ws_peer.mjs), a guest's side that misbehaves as it is told, and what cuts a byte stream into random pieces between them."""

import asyncio
import base64
import contextlib
import ctypes
import hashlib
import json
import os
import pathlib
import random
import socket
import struct

import websockets

NODE_PEER = pathlib.Path(__file__).parent / "ws_peer.mjs"
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# One, two, three and four bytes of UTF-8; a byte of a text's seed each.
ALPHABET = [chr(32 + i % 64) if i < 160 else chr(0xc0 + i) if i < 200 else chr(0x4e00 + i) if i < 230 else chr(0x1f300 + i)
            for i in range(256)]
CLONE_NEWNET = 0x40000000


# ---- in the daemon's network namespace ----

@contextlib.contextmanager
def inside(name):
    """This thread is in the namespace; sockets that it makes stay there."""
    libc = ctypes.CDLL(None, use_errno=True)
    home, there = os.open("/proc/thread-self/ns/net", os.O_RDONLY), os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        assert libc.setns(there, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        yield
    finally:
        assert libc.setns(home, CLONE_NEWNET) == 0
        os.close(home)
        os.close(there)


@contextlib.contextmanager
def guest_socket(d, vm):
    """A listening socket at the VM's address and port. Bound to the bridge as the daemon's own sockets to guests."""
    d.netns("ip", "address", "add", f"{vm['ip']}/32", "dev", "br0")
    with inside(d.name):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"br0")
        s.bind((vm["ip"], 6080))
        s.listen(128)
    try:
        yield s
    finally:
        s.close()
        d.netns("ip", "address", "del", f"{vm['ip']}/32", "dev", "br0", check=False)


# ---- random streams ----

def content(message):
    data = hashlib.shake_128(str(message["seed"]).encode()).digest(message["size"])
    return "".join(ALPHABET[b] for b in data).encode() if message["text"] else data


def digest(data):
    return hashlib.sha1(data).hexdigest()


def plan(rng, count, biggest):
    """What one end sends: messages of all the sizes at which something changes, in fragments, with pings between these."""
    edges = [0, 1, 125, 126, 127, 4095, 4096, 4097, 65535, 65536, 65537]
    messages = []
    for n in range(count):
        size = biggest if n == count // 2 else rng.choice(edges) if n % 2 else int(2 ** rng.uniform(0, 17))
        text = rng.random() < 0.4 and size < 200000
        cuts = sorted(rng.randrange(size + 1) for _ in range(rng.choice([0, 0, 1, 3, 9])))
        pings = [rng.choice([None, None, None, f"ping {n}.{i} " + "x" * rng.choice([0, 100])]) for i in range(len(cuts) + 1)]
        messages.append({"text": text, "size": size, "seed": rng.randrange(2 ** 32), "cuts": cuts, "pings": pings})
    return messages


def expected(messages):
    return [["text" if m["text"] else "binary", len(content(m)), digest(content(m))] for m in messages]


def pings_of(messages):
    return [p for m in messages for p in m["pings"] if p]


async def chop(reader, writer, rng, slow):
    """Passes a stream on in pieces of any length."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(rng.choice([rng.randrange(1, 20), 3000, 65536, 65536])):
            writer.write(data)
            await writer.drain()
            if slow:
                await asyncio.sleep(0.001)
    with contextlib.suppress(OSError, RuntimeError):
        writer.write_eof()


def chopper(rng, slow, connect):
    """For asyncio.start_server(): joins each connection that asks for something with the one that connect() makes."""
    async def joined(reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:  # a probe of the port
            writer.close()
            return
        there_reader, there_writer = await connect()
        there_writer.write(head)
        await asyncio.gather(chop(reader, there_writer, rng, slow), chop(there_reader, writer, rng, slow))
        writer.close()
        there_writer.close()
    return joined


def small_buffers(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)


# ---- python3-websockets as an end ----

async def python_play(ws, job):
    seen = {"received": [], "pongs": []}

    async def pieces(message, waiters):
        data, at = content(message), 0
        cuts = [*message["cuts"], len(data)]
        for i, cut in enumerate(cuts):
            cut = max(at, min(cut, len(data)))
            if message["text"] and 0 < cut < len(data):
                while cut < len(data) and data[cut] & 0xc0 == 0x80:  # this library wants whole characters
                    cut += 1
            if message["pings"][i]:
                waiters.append((message["pings"][i], await ws.ping(message["pings"][i])))
            yield data[at:cut].decode() if message["text"] else data[at:cut]
            at = cut

    async def send():
        waiters = []
        for message in job["send"]:
            if message["cuts"]:
                await ws.send(pieces(message, waiters))
            else:
                async for piece in pieces(message, waiters):
                    await ws.send(piece)
        for data, waiter in waiters:
            await waiter
            seen["pongs"].append(data)

    async def receive():
        while len(seen["received"]) < job["expect"]:
            data = await ws.recv()
            kind, data = ("text", data.encode()) if isinstance(data, str) else ("binary", data)
            seen["received"].append([kind, len(data), digest(data)])
            if job["slow"] and len(seen["received"]) % 4 == 0:
                await asyncio.sleep(0.03)

    await asyncio.gather(send(), receive())
    if job["role"] == "client":
        await ws.close(*job["close"])
    else:
        await ws.wait_closed()
    return {**seen, "close": [ws.close_code, ws.close_reason], "protocol": ws.subprotocol}


LIBRARY = {"max_size": None, "ping_interval": None, "close_timeout": 20}


async def python_client(job):
    async with websockets.connect(job["url"], extra_headers=job["headers"], subprotocols=["binary"], open_timeout=30, **LIBRARY) as ws:
        return await python_play(ws, job)


@contextlib.asynccontextmanager
async def python_server(job):
    result = asyncio.get_running_loop().create_future()

    async def serve(ws):
        try:
            result.set_result(await python_play(ws, job))
        except Exception as e:
            result.set_exception(e)
    async with websockets.unix_serve(serve, job["path"], subprotocols=["binary"], **LIBRARY):
        yield result


# ---- npm ws as an end ----

async def node(job):
    process = await asyncio.create_subprocess_exec("node", NODE_PEER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    process.stdin.write(json.dumps({**job, "alphabet": ALPHABET}).encode())
    process.stdin.close()
    return process


async def node_result(process):
    try:
        line = await process.stdout.readline()
        assert await process.wait() == 0 and line, "ws_peer.mjs failed"
        return json.loads(line)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def node_client(job):
    return await node_result(await node(job))


@contextlib.asynccontextmanager
async def node_server(job):
    process = await node(job)
    try:
        assert await process.stdout.readline() == b"up\n"
        yield asyncio.ensure_future(node_result(process))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


CLIENTS = {"websockets": python_client, "ws": node_client}
SERVERS = {"websockets": python_server, "ws": node_server}


# ---- by hand: what no library does ----

def frame(first, payload=b"", masked=False, length=None):
    """length: what the header says, in as many bytes as it needs; or these bytes."""
    n = len(payload) if length is None else length
    if isinstance(n, bytes):
        head = n
    elif n > 65535:
        head = b"\x7f" + struct.pack(">Q", n)
    else:
        head = bytes([n]) if n < 126 else b"\x7e" + struct.pack(">H", n)
    if not masked:
        return bytes([first]) + head + payload
    key = b"\x11\x22\x33\x44"
    return bytes([first, head[0] | 0x80]) + head[1:] + key + bytes(b ^ key[i % 4] for i, b in enumerate(payload))


def close_frame(code, reason=b"", masked=False):
    return frame(0x88, struct.pack(">H", code) + reason, masked)


async def read_frame(reader):
    """(first byte, whether masked, payload); IncompleteReadError at the end of the stream."""
    first, second = await reader.readexactly(2)
    n = second & 0x7f
    if n >= 126:
        n = int.from_bytes(await reader.readexactly(2 if n == 126 else 8), "big")
    key = await reader.readexactly(4) if second & 0x80 else bytes(4)
    payload = await reader.readexactly(n)
    return first, bool(second & 0x80), bytes(b ^ key[i % 4] for i, b in enumerate(payload)) if any(key) else payload


async def read_to_close(reader):
    """[code, reason] of the Close that comes; None: the stream ended without."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            first, _, payload = await read_frame(reader)
            if first == 0x88:
                return [int.from_bytes(payload[:2], "big"), payload[2:].decode()]
    return None


class Guest:
    """One accepted connection of the guest's side, its request read."""

    def __init__(self, reader, writer, head):
        self.reader, self.writer = reader, writer
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if ": " in line)
        fields = {k.lower(): v for k, v in fields.items()}
        self.protocol = fields.get("sec-websocket-protocol")
        self.accept = base64.b64encode(hashlib.sha1((fields["sec-websocket-key"] + GUID).encode()).digest()).decode()

    def answer(self, status="101 Switching Protocols", accept=None, protocol=None, upgrade="websocket", more="", behind=b""):
        lines = [f"HTTP/1.1 {status}", f"Upgrade: {upgrade}", "Connection: Upgrade", more]
        lines += [f"Sec-WebSocket-Accept: {self.accept if accept is None else accept}"] if accept != "" else []
        protocol = self.protocol if protocol is None else protocol
        lines += [f"Sec-WebSocket-Protocol: {protocol}"] if protocol else []
        self.send("\r\n".join(line for line in lines if line).encode() + b"\r\n\r\n" + behind)

    def good(self, *frames):
        """The desktop's first words, behind the answer in the same segment, and these."""
        self.answer(behind=frame(0x82, b"RFB 003.008\n") + b"".join(frames))

    def send(self, data):
        self.writer.write(data)

    def fin(self):
        self.writer.write_eof()

    def reset(self):
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def guest_server(behaviours):
    """For asyncio.start_server(): what a connection gets is named by the subprotocol that the browser offers; all else
    gets a desktop that says its first words. Probes of the port alone ask nothing."""
    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            guest = Guest(reader, writer, await reader.readuntil(b"\r\n\r\n"))
            if guest.protocol in behaviours:
                await behaviours[guest.protocol](guest)
            else:
                guest.good()
            await read_to_close(reader)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(reader.read(), 20)
        writer.close()
    return serve


class Browser:
    """One WebSocket to the daemon by hand."""

    @classmethod
    async def open(cls, d, sid, protocol, extra=b""):
        self = cls()
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 131072)  # so that no more than this is in front of a Close here
        s.connect(("127.0.0.1", d.port))
        self.reader, self.writer = await asyncio.open_connection(sock=s)
        self.writer.write((f"GET /api/auth/session/{sid}/novnc/websock HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
                           f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n"
                           f"Authorization: Bearer {d.token}\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n").encode() + extra)
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101") and f"Sec-WebSocket-Protocol: {protocol}\r\n".encode() in head, head
        return self

    send, fin, reset = Guest.send, Guest.fin, Guest.reset

"""The host's end of the agent's protocol, once more and from its description alone (src/agent/frame.h): what the daemon
does not ask for yet is tried in a real guest with it, and a second implementation shows what the first took for granted."""

import json
import os
import random
import socket
import struct
import time
import zlib

HEADER = struct.Struct("<4sBBHIIIII")
MAGIC = b"\xf5MCa"
JSON, DATA, CREDIT = 1, 2, 3


class Refused(Exception):
    pass


class Client:
    def __init__(self, path, timeout_s=60, vsock_port=None):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout_s)
        folder = os.open(os.path.dirname(path), os.O_PATH)  # a socket's path is short
        self.socket.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
        if vsock_port:  # Firecracker, docs/vsock.md
            self.socket.sendall(f"CONNECT {vsock_port}\n".encode())
            answer = b""
            while not answer.endswith(b"\n"):
                answer += self.socket.recv(1)
            assert answer.startswith(b"OK "), answer
        os.close(folder)
        self.session, self.last_id, self.buffer = random.randrange(1, 1 << 32), 0, b""
        self.send(JSON, 0, json.dumps({"hello": {"min": 1, "max": 1}}).encode())
        self.hello = self.answer(0)["hello"]

    @classmethod
    def upgraded(cls, connection):
        """The daemon's end of an exec, which speaks the same frames, behind the answer to the upgrade."""
        client = cls.__new__(cls)
        client.socket, client.session, client.last_id, client.buffer = connection, 1, 1, b""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        assert head.startswith(b"HTTP/1.1 101 "), head
        return client

    def send(self, kind, id, payload, stream=0):
        head = HEADER.pack(MAGIC, kind, stream, 0, self.session, id, len(payload), zlib.crc32(payload), 0)[:24]
        self.socket.sendall(head + struct.pack("<I", zlib.crc32(head)) + payload)

    def frame(self):
        """The next frame of our session; what is left of an older one is passed over."""
        while True:
            at = self.buffer.find(MAGIC)
            self.buffer = self.buffer[at:] if at >= 0 else self.buffer[-3:]
            if len(self.buffer) >= HEADER.size and at >= 0:
                _, kind, stream, _, session, id, length, crc, head_crc = HEADER.unpack_from(self.buffer)
                whole = len(self.buffer) >= HEADER.size + length
                payload = self.buffer[HEADER.size:HEADER.size + length]
                if head_crc != zlib.crc32(self.buffer[:24]) or (whole and crc != zlib.crc32(payload)):
                    self.buffer = self.buffer[1:]
                    continue
                if whole:
                    self.buffer = self.buffer[HEADER.size + length:]
                    if session == self.session:
                        return kind, stream, id, payload
                    continue
            data = self.socket.recv(65536)
            assert data, "the channel was closed"
            self.buffer += data

    def answer(self, wanted):
        self.output = {1: b"", 2: b""}
        while True:
            kind, stream, id, payload = self.frame()
            if id != wanted:
                continue
            if kind == DATA:
                self.output[stream] += payload
                self.send(CREDIT, id, struct.pack("<I", len(payload)), stream)
            elif kind == JSON:
                return json.loads(payload)

    def ask(self, op, **members):
        self.last_id += 1
        self.send(JSON, self.last_id, json.dumps({"op": op, **members}).encode())
        answer = self.answer(self.last_id)
        if "error" in answer:
            raise Refused(f"{answer['error']['code']}: {answer['error']['detail']}")
        return answer["ok"]

    def close(self):
        self.socket.close()
        time.sleep(0.5)  # the VMM takes one connection at a time and must see that this one has gone

"""Firecracker's vsock device, for a guest under QEMU without vhost: the device's queues are served by this process, which
QEMU hands them to (vhost-user), and each connection goes over a unix socket (docs/vsock.md). So the guest has a vsock
device, its kernel's own driver, and a host at CID 2.

Sources: QEMU docs/interop/vhost-user.rst; virtio 1.2, sections 2.7 (split virtqueues) and 5.10 (socket device);
Firecracker docs/vsock.md. What is not here: connections that the guest begins; they are refused."""

import collections
import mmap
import os
import select
import socket
import struct
import threading

HOST_CID = 2
FIRST_PORT = 1 << 30
BUFFER = 256 * 1024      # bytes that a guest may send before they are taken
PIECE = 2048             # bytes of data in a packet: a receive buffer of the driver is a page with its own overhead
LINE_MAX = 32
HEADER = struct.Struct("<QQIIIHHIII")  # src_cid dst_cid src_port dst_port len type op flags buf_alloc fwd_cnt
STREAM = 1
REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
RX, TX = 0, 1

F_VERSION_1, F_PROTOCOL = 1 << 32, 1 << 30
PROTOCOL_REPLY_ACK, PROTOCOL_CONFIG = 1 << 3, 1 << 9
(GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE, SET_LOG_BASE, SET_LOG_FD, SET_VRING_NUM, SET_VRING_ADDR,
 SET_VRING_BASE, GET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR, GET_PROTOCOL_FEATURES,
 SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE) = range(1, 19)
GET_CONFIG = 24
NEXT, WRITE = 1, 2


class Memory:
    """The guest's, by its own addresses and by QEMU's."""

    def __init__(self, payload, fds):
        self.regions = []
        (count,) = struct.unpack_from("<I", payload)
        for i, fd in enumerate(fds[:count]):
            guest, size, user, offset = struct.unpack_from("<4Q", payload, 8 + 32 * i)
            self.regions.append((guest, user, size, offset, mmap.mmap(fd, size + offset)))

    def find(self, address, length, by_user=False):
        for guest, user, size, offset, memory in self.regions:
            start = user if by_user else guest
            if start <= address and address + length <= start + size:
                return memory, address - start + offset
        raise ValueError(f"no guest memory at {address:#x}")


class Queue:
    def __init__(self):
        self.size = self.next = self.used = 0
        self.addresses = None
        self.kick = self.call = -1

    @property
    def runs(self):
        return self.addresses is not None and self.kick >= 0

    def close(self, name):
        fd = getattr(self, name)
        if fd >= 0:
            os.close(fd)
        setattr(self, name, -1)

    def ring(self, memory, which, length):
        return memory.find(self.addresses[which], length, by_user=True)

    def take(self, memory):
        """The next chain: (its head, [(memory, at, length, whether we write)]); None when there is none."""
        avail, at = self.ring(memory, "avail", 4 + 2 * self.size)
        (there,) = struct.unpack_from("<H", avail, at + 2)
        if there == self.next:
            return None
        (head,) = struct.unpack_from("<H", avail, at + 4 + 2 * (self.next % self.size))
        self.next = (self.next + 1) & 0xffff
        table, start = self.ring(memory, "desc", 16 * self.size)
        parts, number = [], head
        while len(parts) < self.size:
            address, length, flags, following = struct.unpack_from("<QIHH", table, start + 16 * number)
            parts.append((*memory.find(address, length), length, bool(flags & WRITE)))
            if not flags & NEXT:
                break
            number = following
        return head, parts

    def give_back(self, memory, head, written):
        used, at = self.ring(memory, "used", 4 + 8 * self.size)
        struct.pack_into("<II", used, at + 4 + 8 * (self.used % self.size), head, written)
        self.used = (self.used + 1) & 0xffff
        struct.pack_into("<H", used, at + 2, self.used)
        if self.call >= 0:
            os.write(self.call, struct.pack("=Q", 1))


class Connection:
    def __init__(self, client):
        self.client = client
        self.line = b""            # "CONNECT port\n", until it is whole
        self.guest_port = self.port = None
        self.open = False          # the guest has accepted
        self.sent = self.taken_by_guest = self.room = 0
        self.forwarded = self.told = 0

    @property
    def credit(self):
        return self.room - (self.sent - self.taken_by_guest)


class Vsock(threading.Thread):
    """vhost: the socket whose other end is QEMU's chardev. listener: Firecracker's uds_path."""

    def __init__(self, vhost, listener, guest_cid):
        super().__init__(daemon=True)
        self.vhost, self.listener, self.guest_cid = vhost, listener, guest_cid
        self.memory = None
        self.queues = [Queue(), Queue()]
        self.connections = []
        self.to_guest = collections.deque()
        self.last_port = FIRST_PORT - 1

    def run(self):
        while self.turn():
            pass

    def turn(self):
        sources = {self.vhost: self.vhost_message, self.listener: self.accept}
        sources.update({q.kick: self.kicked for q in self.queues if q.runs})
        for c in self.connections:
            if c.port is None or (c.open and c.credit > 0 and len(self.to_guest) < 64):
                sources[c.client] = c
        for source in select.select(list(sources), [], [])[0]:
            what = sources[source]
            if isinstance(what, Connection):
                if what in self.connections:
                    self.from_client(what)
            elif what == self.kicked:
                os.read(source, 8)
            elif what() is False:
                return False
        self.serve_queues()
        return True

    # -- QEMU's side --

    def vhost_message(self):
        head, fds, _, _ = socket.recv_fds(self.vhost, 12, 8)
        if len(head) < 12:
            return False
        request, flags, size = struct.unpack("<III", head)
        payload = b""
        while len(payload) < size:
            payload += self.vhost.recv(size - len(payload))
        answer = self.vhost_answer(request, payload, fds)
        if answer is None and flags & 8:
            answer = struct.pack("<Q", 0)
        if answer is not None:
            self.vhost.sendall(struct.pack("<III", request, 5, len(answer)) + answer)
        return True

    def vhost_answer(self, request, payload, fds):
        if request == GET_FEATURES:
            return struct.pack("<Q", F_VERSION_1 | F_PROTOCOL)
        if request == GET_PROTOCOL_FEATURES:
            return struct.pack("<Q", PROTOCOL_REPLY_ACK | PROTOCOL_CONFIG)
        if request == GET_QUEUE_NUM:
            return struct.pack("<Q", len(self.queues))
        if request == GET_CONFIG:
            offset, size, _ = struct.unpack_from("<III", payload)
            return payload[:12] + struct.pack("<Q", self.guest_cid).ljust(256, b"\0")[offset:offset + size]
        if request == SET_MEM_TABLE:
            self.memory = Memory(payload, fds)
            for fd in fds:
                os.close(fd)
        elif SET_VRING_NUM <= request <= SET_VRING_ERR:
            return self.set_queue(request, payload, fds)
        return None

    def set_queue(self, request, payload, fds):
        index, number = struct.unpack_from("<II", payload)
        queue = self.queues[index & 0xff]
        if request == SET_VRING_NUM:
            queue.size = number
        elif request == SET_VRING_ADDR:
            desc, used, avail, _ = struct.unpack_from("<4Q", payload, 8)
            queue.addresses = {"desc": desc, "used": used, "avail": avail}
            memory, at = queue.ring(self.memory, "used", 4)
            (queue.used,) = struct.unpack_from("<H", memory, at + 2)
        elif request == SET_VRING_BASE:
            queue.next = number
        elif request == GET_VRING_BASE:
            queue.close("kick")
            return struct.pack("<II", index, queue.next)
        elif request in (SET_VRING_KICK, SET_VRING_CALL):
            name = "kick" if request == SET_VRING_KICK else "call"
            queue.close(name)
            if fds:
                setattr(queue, name, fds[0])
        else:
            for fd in fds:
                os.close(fd)
        return None

    def kicked(self):
        pass

    # -- the queues --

    def serve_queues(self):
        if self.queues[TX].runs:
            while chain := self.queues[TX].take(self.memory):
                head, parts = chain
                data = b"".join(m[at:at + length] for m, at, length, writes in parts if not writes)
                self.queues[TX].give_back(self.memory, head, 0)
                self.from_guest(data)
        while self.to_guest and self.queues[RX].runs and (chain := self.queues[RX].take(self.memory)):
            head, parts = chain
            data, at_data = self.to_guest.popleft(), 0
            for memory, at, length, writes in parts:
                n = min(length, len(data) - at_data) if writes else 0
                memory[at:at + n] = data[at_data:at_data + n]
                at_data += n
            assert at_data == len(data), "the guest's buffer is smaller than a packet"
            self.queues[RX].give_back(self.memory, head, at_data)

    def send(self, port, guest_port, op, c=None, data=b"", flags=0):
        forwarded = c.forwarded & 0xffffffff if c else 0
        self.to_guest.append(HEADER.pack(HOST_CID, self.guest_cid, port, guest_port, len(data), STREAM, op, flags, BUFFER,
                                         forwarded) + data)
        if c:
            c.told = c.forwarded

    def from_guest(self, packet):
        (_, _, guest_port, port, length, _, op, flags, room, taken) = HEADER.unpack_from(packet)
        data = packet[HEADER.size:HEADER.size + length]
        c = next((c for c in self.connections if (c.port, c.guest_port) == (port, guest_port)), None)
        if c is None:
            if op != RST:
                self.send(port, guest_port, RST)
            return
        c.room, c.taken_by_guest = room, c.sent - ((c.sent - taken) & 0xffffffff)
        if op == RESPONSE:
            c.open = True
            self.to_client(c, f"OK {c.port}\n".encode())
        elif op == RW:
            c.forwarded += len(data)
            self.to_client(c, data)
            if c in self.connections and c.forwarded - c.told > BUFFER // 4:
                self.send(c.port, c.guest_port, CREDIT_UPDATE, c)
        elif op == CREDIT_REQUEST:
            self.send(c.port, c.guest_port, CREDIT_UPDATE, c)
        elif op in (RST, SHUTDOWN):
            self.end(c, tell=op == SHUTDOWN)

    # -- the host's side --

    def accept(self):
        client, _ = self.listener.accept()
        self.connections.append(Connection(client))

    def from_client(self, c):
        try:
            data = c.client.recv(1 if c.port is None else min(c.credit, PIECE))
        except OSError:
            data = b""
        if not data:
            self.end(c, tell=c.port is not None)
        elif c.port is not None:
            c.sent += len(data)
            self.send(c.port, c.guest_port, RW, c, data)
        else:
            c.line += data
            self.connect(c)

    def connect(self, c):
        words = c.line.split()
        if c.line.endswith(b"\n") and len(words) == 2 and words[0] == b"CONNECT" and words[1].isdigit():
            self.last_port += 1
            c.port, c.guest_port = self.last_port, int(words[1])
            self.send(c.port, c.guest_port, REQUEST, c)
        elif c.line.endswith(b"\n") or len(c.line) > LINE_MAX:
            self.end(c, tell=False)

    def to_client(self, c, data):
        """A client that does not read holds up all: the real one keeps its bytes, but the guest's credit ends that too."""
        try:
            c.client.sendall(data)
        except OSError:
            self.end(c, tell=True)

    def end(self, c, tell):
        self.connections.remove(c)
        c.client.close()
        if tell:
            self.send(c.port, c.guest_port, RST, c)

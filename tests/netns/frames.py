"""Frames as a guest would write them, a TAP held by the test itself, and what comes out of it."""
import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import time

TUNSETVNETHDRSZ = 0x400454D8
TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x2, 0x1000, 0x4000
HEADER = 12
BROADCAST = "ff:ff:ff:ff:ff:ff"
ARP, IPV4, IPV6, VLAN = 0x0806, 0x0800, 0x86DD, 0x8100
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def inside(namespace):
    """This thread in a network namespace."""
    home, there = os.open("/proc/thread-self/ns/net", os.O_RDONLY), os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        assert _libc.setns(there, 0x40000000) == 0, os.strerror(ctypes.get_errno())
        yield
    finally:
        assert _libc.setns(home, 0x40000000) == 0
        os.close(home)
        os.close(there)


def mac(text):
    return bytes.fromhex(text.replace(":", ""))


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def eth(src, dst, kind, payload):
    return mac(dst) + mac(src) + struct.pack("!H", kind) + payload


def vlan(frame, tag=5, kind=VLAN):
    return frame[:12] + struct.pack("!HH", kind, tag) + frame[12:]


def arp(src, dst, sender_mac, sender_ip, target_ip, op=1, target_mac="00:00:00:00:00:00"):
    body = struct.pack("!HHBBH", 1, IPV4, 6, 4, op)
    body += mac(sender_mac) + socket.inet_aton(sender_ip) + mac(target_mac) + socket.inet_aton(target_ip)
    return eth(src, dst, ARP, body)


def ipv4(src, dst, protocol, payload, offset=0, more=False, ident=7):
    flags = (0x2000 if more else 0) | offset // 8
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), ident, flags, 64, protocol, 0)
    head += socket.inet_aton(src) + socket.inet_aton(dst)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def udp(port, data=b"hello", source=4444):
    return struct.pack("!HHHH", source, port, 8 + len(data), 0) + data


def tcp(src, dst, port, flags=2, source=4444):
    head = struct.pack("!HHIIBBHHH", source, port, 1, 0, 0x50, flags, 1024, 0, 0)
    pseudo = socket.inet_aton(src) + socket.inet_aton(dst) + struct.pack("!BBH", 0, 6, len(head))
    return head[:16] + struct.pack("!H", checksum(pseudo + head)) + head[18:]


def echo(ident, sequence=1, data=b"x" * 32):
    head = struct.pack("!BBHHH", 8, 0, 0, ident, sequence) + data
    return head[:2] + struct.pack("!H", checksum(head)) + head[4:]


def unreachable(packet, code=3):
    """An ICMP error about a packet that came: "port unreachable"."""
    head = struct.pack("!BBHI", 3, code, 0, 0) + packet[:28]
    return head[:2] + struct.pack("!H", checksum(head)) + head[4:]


class Guest:
    """A VM's side of a TAP: its own MAC and address, and whatever frame one likes."""

    def __init__(self, namespace, tap, ip, mac, gateway, gateway_mac):
        self.tap, self.ip, self.mac, self.gateway, self.gateway_mac = tap, ip, mac, gateway, gateway_mac
        self.ident = os.getpid() & 0x7FFF
        with inside(namespace):
            self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
            fcntl.ioctl(self.fd, TUNSETIFF, struct.pack("16sH22x", tap.encode(), flags))
            fcntl.ioctl(self.fd, TUNSETVNETHDRSZ, struct.pack("i", HEADER))

    def close(self):
        os.close(self.fd)

    def send(self, *frames):
        for frame in frames:
            os.write(self.fd, b"\0" * HEADER + frame)

    def read(self):
        """All frames that have come up to now. ARP requests for its address are answered, as a kernel would."""
        frames = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = os.read(self.fd, 70000)[HEADER:]
                if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1" and frame[38:42] == socket.inet_aton(self.ip):
                    sender = frame[6:12].hex(":")
                    self.send(arp(self.mac, sender, self.mac, self.ip, socket.inet_ntoa(frame[28:32]), 2, sender))
                frames.append(frame)
        return frames

    def packet(self, dst, protocol, payload, to=None, **how):
        """An IPv4 packet of its own, by the gateway unless told otherwise."""
        return eth(self.mac, to or self.gateway_mac, IPV4, ipv4(self.ip, dst, protocol, payload, **how))

    def asks(self, target):
        return arp(self.mac, BROADCAST, self.mac, self.ip, target)

    def hears(self, wanted, question=None, seconds=5.0):
        """The first frame for which wanted(frame) is true, asking again now and then; None when there is none."""
        end, again = time.monotonic() + seconds, 0.0
        while time.monotonic() < end:
            if question and time.monotonic() > again:
                self.send(question)
                again = time.monotonic() + 0.3
            for frame in self.read():
                if wanted(frame):
                    return frame
            time.sleep(0.005)
        return None

    def ping(self, dst=None, seconds=5.0, to=None):
        """Whether an echo request is answered. Also a barrier: what was sent before has been judged."""
        self.ident = self.ident + 1 & 0x7FFF
        wanted = struct.pack("!H", self.ident)
        question = self.packet(dst or self.gateway, 1, echo(self.ident), to=to)
        return self.hears(lambda f: f[12:14] == b"\x08\0" and f[34:35] == b"\0" and f[38:40] == wanted, question,
                          seconds) is not None

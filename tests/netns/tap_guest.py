"""A guest as small as can be: holds a TAP as a VMM does (vnet header of 12 bytes) and answers ARP and ping.

usage, in the TAP's namespace: tap_guest.py TAP IP MAC
"""
import fcntl
import os
import socket
import struct
import sys

TUNSETIFF, TUNGETVNETHDRSZ = 0x400454CA, 0x800454D7
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x2, 0x1000, 0x4000
HEADER = 12


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def answer(frame, ip, mac):
    """The reply to a frame, or None."""
    kind = frame[12:14]
    if kind == b"\x08\x06" and frame[20:22] == b"\x00\x01" and frame[38:42] == ip:
        return frame[6:12] + mac + frame[12:20] + b"\x00\x02" + mac + ip + frame[22:32]
    if kind == b"\x08\x00" and frame[23] == 1 and frame[34] == 8 and frame[30:34] == ip:
        packet = frame[14:26] + ip + frame[26:30] + b"\x00\x00\x00\x00" + frame[38:]
        length = struct.unpack("!H", packet[2:4])[0]
        icmp = packet[20:length]
        icmp = icmp[:2] + struct.pack("!H", checksum(icmp + b"\x00" * (len(icmp) % 2))) + icmp[4:]
        return frame[6:12] + mac + kind + packet[:20] + icmp
    return None


def main():
    name, ip, mac = sys.argv[1], socket.inet_aton(sys.argv[2]), bytes.fromhex(sys.argv[3].replace(":", ""))
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    size = struct.unpack("i", fcntl.ioctl(fd, TUNGETVNETHDRSZ, struct.pack("i", 0)))[0]
    print("attached", size, flush=True)
    while True:
        data = os.read(fd, 65536)
        reply = answer(data[HEADER:], ip, mac) if len(data) > HEADER + 34 else None
        if reply:
            os.write(fd, b"\x00" * HEADER + reply)


main()

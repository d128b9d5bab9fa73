"""Firecracker's vsock end on the host for a guest whose way out is a virtio-serial port: the same unix socket and the same
CONNECT line, one connection at a time. QEMU does not save a vhost-user device (vsock.py), and it does save a port."""

import contextlib
import socket
import threading

LINE_MAX = 32
FIRST_PORT = 1 << 30


class Channel(threading.Thread):
    """listener: Firecracker's uds_path. QEMU listens on `server`."""

    def __init__(self, listener):
        super().__init__(daemon=True)
        self.listener, self.ends, self.port = listener, (), FIRST_PORT
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind("")  # a name that the kernel chooses, in no folder
        self.server.listen(1)
        self.address = self.server.getsockname()

    def run(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        line = b""
        while not line.endswith(b"\n") and len(line) <= LINE_MAX and (byte := client.recv(1)):
            line += byte
        words = line.split()
        if not line.endswith(b"\n") or len(words) != 2 or words[0] != b"CONNECT" or not words[1].isdigit():
            client.close()
            return
        self.reset()
        qemu = socket.socket(socket.AF_UNIX)
        qemu.connect(self.address)
        self.ends = (client, qemu)
        self.port += 1
        client.sendall(f"OK {self.port}\n".encode())
        threading.Thread(target=self.pump, args=(qemu, client), daemon=True).start()
        self.pump(client, qemu)

    @staticmethod
    def pump(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def reset(self):
        """Whoever is connected is no more."""
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

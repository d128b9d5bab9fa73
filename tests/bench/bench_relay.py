"""The relay of a real daemon against HAProxy, nginx and websockify, all in front of the same service on loopback, each with
two workers where it can have them. The service and the browsers are tests/bench/ws_load.c."""

import contextlib
import os
import pathlib
import socket
import subprocess
import tempfile
import time

import harness
from table import quantile, row

WS_LOAD = harness.BUILD / "tests/bench/ws-load"
STREAM_MS = 2000
ROUNDS = 3  # of each measure, the relays in turn, so that a busy moment hits all
ECHOES = 2000
IDLE = 5000
IDLE_FORKING = 100  # of a relay that has a process of some MB for each; its figures are of one connection, as all are
AT_REST_S = 10
IDLE_S = 30  # our relay pings after 25 s
CONNECTS = 2000
AT_ONCE = 32

HAPROXY = """global
    nbthread 2
    maxconn 6000
    tune.bufsize 65536
defaults
    mode http
    timeout connect 10s
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
frontend f
    bind 127.0.0.1:{port}
    default_backend b
backend b
    server s 127.0.0.1:{service}
"""
NGINX = """worker_processes 2;
daemon off;
pid {dir}/nginx.pid;
error_log {dir}/nginx.log;
worker_rlimit_nofile 20000;
events {{ worker_connections 12000; }}
http {{
    access_log off;
    client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://127.0.0.1:{service};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_read_timeout 1h;
            proxy_buffer_size 64k;
            proxy_buffers 4 64k;
            proxy_busy_buffers_size 128k;
        }}
    }}
}}
"""


class Relay:
    """One of those that are compared: where it listens, and the process at the root of its processes."""

    def __init__(self, name, port, pid=None, path="/", header="", idle=IDLE):
        self.name, self.port, self.pid, self.path, self.header, self.idle = name, port, pid, path, header, idle

    def pids(self):
        parents = {}
        for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parents.setdefault(int(stat.read_text().rsplit(")", 1)[1].split()[1]), []).append(int(stat.parent.name))
        found = [self.pid]
        for pid in found:
            found += parents.get(pid, [])
        return found

    @staticmethod
    def cpu_s(pids):
        """That these processes have used."""
        total = 0
        for pid in pids:
            for task in os.listdir(f"/proc/{pid}/task"):
                total += int(pathlib.Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
        return total / 1e9

    def memory(self):
        """Bytes that are its processes' own; what they share, such as their program, costs once."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith(("Private_Clean", "Private_Dirty")):
                        total += int(line.split()[1]) * 1024
        return total


class Client:
    """ws-load's browsers."""

    def __init__(self, relay, connections, at_once=AT_ONCE):
        self.process = subprocess.Popen([WS_LOAD, "client", "127.0.0.1", str(relay.port), relay.path, relay.header,
                                         str(connections), str(at_once)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline().split()
        assert line and line[0] == "ready", f"{relay.name}: no connections"
        self.opened_ms = int(line[1]) / 1e6

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(20)

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self):
        line = self.process.stdout.readline()
        assert line, "ws-load ended"
        return line.split()

    def stream(self, relay):
        """MB/s, and MB for each second of CPU of the relay's."""
        pids = relay.pids() if relay.pid else []
        self.ask(f"stream {STREAM_MS}")
        assert self.answer() == ["begun"]
        before = relay.cpu_s(pids)
        bytes_, ns = map(int, self.answer())
        used = relay.cpu_s(pids) - before
        return bytes_ / 1e6 / (ns / 1e9), bytes_ / 1e6 / used if used else None

    def echo_ms(self):
        self.ask(f"echo {ECHOES}")
        return [int(ns) / 1e6 for ns in self.answer()]


def two_ports():
    """The first of two neighbours that are free."""
    while True:
        port = harness.free_port()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
            return port


@contextlib.contextmanager
def service(*where, wrapper=()):
    """ws-load's desktops."""
    process = subprocess.Popen([*wrapper, WS_LOAD, "server", *map(str, where)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.stdin.close()
        process.wait(20)


def is_listening(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def peer(name, *argv, log, **how):
    with open(log, "w") as said:
        process = subprocess.Popen(argv, stdout=said, stderr=said)
    try:
        def listens():
            assert process.poll() is None, f"{name} ended: {pathlib.Path(log).read_text()}"
            return is_listening(how["port"])
        harness.wait_for(listens, 20)
        yield Relay(name, pid=process.pid, **how)
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def peers(to):
    """HAProxy, nginx and websockify before the service at port `to`."""
    ports = [harness.free_port() for _ in range(3)]
    with tempfile.TemporaryDirectory(prefix="mc-bench-", dir="/var/tmp") as folder, contextlib.ExitStack() as stack:
        pathlib.Path(folder, "haproxy.cfg").write_text(HAPROXY.format(port=ports[0], service=to))
        pathlib.Path(folder, "nginx.conf").write_text(NGINX.format(port=ports[1], service=to, dir=folder))
        yield [stack.enter_context(peer("HAProxy", "haproxy", "-db", "-f", f"{folder}/haproxy.cfg", port=ports[0], log=f"{folder}/haproxy.log")),
               stack.enter_context(peer("nginx", "nginx", "-p", folder, "-c", f"{folder}/nginx.conf", port=ports[1],
                                        log=f"{folder}/nginx.out")),
               stack.enter_context(peer("websockify", "websockify", f"127.0.0.1:{ports[2]}", f"127.0.0.1:{to + 1}",
                                        port=ports[2], idle=IDLE_FORKING, log=f"{folder}/websockify.log"))]


@contextlib.contextmanager
def ours():
    harness.guest_image()
    # No agent in the image, so that a VM whose desktop answers is running.
    with tempfile.TemporaryDirectory(prefix="mc-bench-", dir="/var/tmp") as folder, contextlib.ExitStack() as stack:
        image = harness.image_without_agent(pathlib.Path(folder))
        d = stack.enter_context(harness.idle(image=image, vm={"reach_interval": "30"}, session={"timeout": "0", "desktops": "0"}))
        made = d.admin("POST", "/api/auth/start", {"userId": "u", "provider": "demo"}).json
        sid, ip = made["sessionId"], d.vm(made["session"]["vm_id"])["ip"]
        d.netns("ip", "address", "add", f"{ip}/32", "dev", "br0")
        stack.enter_context(service(ip, 6080, "br0", wrapper=["nsenter", f"--net=/run/netns/{d.name}"]))
        d.wait_state(made["session"]["vm_id"], "running")
        yield Relay("ours", d.port, d.process.pid, f"/api/auth/session/{sid}/novnc/websock",
                    f"Authorization: Bearer {d.token}")


# ---- the measures: each gives {relay's name: values} ----

def in_turn(relays, measure):
    """measure(relay) for each of them, ROUNDS times: the values of each."""
    found = {relay.name: [] for relay in relays}
    for _ in range(ROUNDS):
        for relay in relays:
            found[relay.name].append(measure(relay))
    return found


def throughput(relays, connections):
    def measure(relay):
        with Client(relay, connections) as client:
            return client.stream(relay)
    return in_turn(relays, measure)


def round_trips(relays):
    """In ms, sorted."""
    with contextlib.ExitStack() as stack:
        clients = {relay.name: stack.enter_context(Client(relay, 1)) for relay in relays}
        found = in_turn(relays, lambda relay: clients[relay.name].echo_ms())
    return {name: sorted(sum(values, [])) for name, values in found.items()}


def idle_ms(relays, seconds):
    """ms of CPU that each uses in a second."""
    pids = {relay: relay.pids() for relay in relays}
    before = {relay: relay.cpu_s(pids[relay]) for relay in relays}
    began = time.monotonic()
    time.sleep(seconds)
    seconds = time.monotonic() - began
    return {relay: (relay.cpu_s(pids[relay]) - before[relay]) * 1000 / seconds for relay in relays}


def idle(relays):
    """(bytes, ms of CPU in a second) that connections cost on which nothing happens, for each; all relays at the same time,
    and none has had a connection before. What they cost without connections is taken off."""
    empty, at_rest = {relay: relay.memory() for relay in relays}, idle_ms(relays, AT_REST_S)
    with contextlib.ExitStack() as stack:
        for relay in relays:
            stack.enter_context(Client(relay, relay.idle))
        used = idle_ms(relays, IDLE_S)
        return {relay.name: ((relay.memory() - empty[relay]) / relay.idle, (used[relay] - at_rest[relay]) / relay.idle)
                for relay in relays}


def connect_ms(relay):
    with Client(relay, CONNECTS if relay.idle == IDLE else IDLE_FORKING) as client:
        return client.opened_ms / (CONNECTS if relay.idle == IDLE else IDLE_FORKING)


def compared(what, unit, values):
    """A row for each peer."""
    for name in values:
        if name != "ours":
            yield row(what, unit, values["ours"], values[name], name)


def rows():
    to = two_ports()
    with service("127.0.0.1", to), peers(to) as others, ours() as own:
        relays = [own, *others]
        direct = Relay("no relay", to)
        found = idle(relays)
        yield from compared("memory of an idle connection", "bytes", {name: [v[0]] for name, v in found.items()})
        yield from compared(f"CPU of {IDLE} idle connections in a second", "ms", {name: [v[1] * IDLE] for name, v in found.items()})
        for n, words in ((1, "1 connection"), (100, "100 connections")):
            found = throughput([*relays, direct], n)
            yield from compared(f"throughput, {words}", "MB/s", {name: [v[0] for v in values] for name, values in found.items()})
            yield from compared(f"throughput of a CPU second, {words}", "MB/s",
                                {r.name: [v[1] for v in found[r.name]] for r in relays})
        found = round_trips([*relays, direct])
        for q, words in ((0.5, "p50"), (0.99, "p99")):
            without = quantile(found["no relay"], q)
            yield from compared(f"added latency of 64 bytes, {words}", "ms",
                                {r.name: [quantile(found[r.name], q) - without] for r in relays})
        yield from compared("time of a connection, 32 at once", "ms", in_turn(relays, connect_ms))

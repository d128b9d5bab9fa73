"""The command line and the API server of the double."""

import argparse
import contextlib
import json
import os
import re
import select
import signal
import socket
import sys
import time

from machine import Machine, os_error
from spec import Refused

PAYLOAD_MAX = 51200
FLUSH_S = 60
HEADERS = {"host", "accept", "content-type", "content-length", "expect", "user-agent", "accept-encoding", "connection"}


class Parser(argparse.ArgumentParser):
    def error(self, message):
        print(f"Arguments parsing error: {message}", file=sys.stderr)
        sys.exit(153)


def parse_arguments(argv, version):
    """docs/… and src/firecracker/src/main.rs: what the real one takes, no abbreviations."""
    p = Parser(prog="firecracker", allow_abbrev=False, add_help=False)
    for name in ("api-sock", "id", "seccomp-filter", "start-time-us", "start-time-cpu-us", "parent-cpu-time-us",
                 "config-file", "metadata", "log-path", "level", "module", "metrics-path", "http-api-max-payload-size",
                 "mmds-size-limit"):
        p.add_argument(f"--{name}")
    for name in ("no-seccomp", "no-api", "show-level", "show-log-origin", "boot-timer", "version", "enable-pci"):
        p.add_argument(f"--{name}", action="store_true")
    p.set_defaults(api_sock="/run/firecracker.socket", id="anonymous-instance")
    args = p.parse_args(argv)
    if args.version:
        print(f"Firecracker v{version}\n")
        sys.exit(0)
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", args.id):
        p.error(f"Invalid instance ID {args.id}")
    if args.no_api and not args.config_file:
        p.error("'no-api' requires 'config-file'")
    if args.level and args.level.lower() not in ("error", "warning", "warn", "info", "debug", "trace", "off"):
        p.error(f"invalid level {args.level}")
    return args


class Server:
    """faults: what a test wants to go wrong: {"refuse": {"PUT /vsock": "words"}, "hang": "PUT /actions",
    "die": "PUT /actions" or "start", "delay_s": 0.2 for each request, "version": "1.9.0"}. "refuse_once": as refuse."""

    def __init__(self, spec, machine, faults):
        self.spec, self.machine, self.faults = spec, machine, faults
        self.buffers = {}
        self.flush_at = time.monotonic() + FLUSH_S

    def log(self, words):
        if self.machine.log_fd is not None:
            os.write(self.machine.log_fd, f"{time.strftime('%FT%T')} [{self.machine.id}:fc_api:INFO] {words}\n".encode())

    def listen(self, path):
        self.listener = socket.socket(socket.AF_UNIX)
        try:
            self.listener.bind(path)
        except OSError as e:
            print(f"Error: RunWithApi(FailedToBindSocket: {os_error(e)})", file=sys.stderr)
            sys.exit(1)
        self.listener.listen()

    def serve(self):
        while True:
            ready, _, _ = select.select([self.listener, *self.buffers], [], [], max(0, self.flush_at - time.monotonic()))
            if time.monotonic() >= self.flush_at:
                self.flush_at += FLUSH_S
                if self.machine.state != "Not started":
                    self.machine.flush_metrics()
            for s in ready:
                if s is self.listener:
                    self.buffers[s.accept()[0]] = b""
                else:
                    self.read(s)

    def read(self, s):
        try:
            data = s.recv(65536)
        except ConnectionResetError:
            data = b""
        self.buffers[s] += data
        while data and (request := self.take(s)):
            self.answer(s, *request)
        if not data:
            del self.buffers[s]
            s.close()

    def take(self, s):
        """One whole request, or None."""
        head, found, rest = self.buffers[s].partition(b"\r\n\r\n")
        if not found:
            return None
        lines = head.decode().split("\r\n")
        fields = dict((k.strip().lower(), v.strip()) for k, _, v in (line.partition(":") for line in lines[1:]))
        length = int(fields.get("content-length", 0))
        if len(rest) < length and length <= PAYLOAD_MAX:
            return None
        self.buffers[s] = rest[length:]
        return lines[0], fields, rest[:length]

    def answer(self, s, line, fields, body):
        status, value = 204, None
        try:
            match = re.fullmatch(r"(GET|PUT|PATCH|DELETE) (/\S*) HTTP/1\.[01]", line)
            if not match or (body and fields.get("content-type", "application/json") != "application/json"):
                raise Refused("Invalid request.")
            if len(body) > PAYLOAD_MAX or int(fields.get("content-length", 0)) > PAYLOAD_MAX:
                raise Refused("The payload is too large.")
            value = self.handle(match[1], match[2], body)
            status = 200 if value is not None else 204
        except Refused as e:
            status, value = 400, {"fault_message": str(e)}
            self.log(f"Received Error. Status code: 400 Bad Request. Message: {e}")
        text = json.dumps(value).encode() if value is not None else b""
        head = f"HTTP/1.1 {status} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
        if text:
            head += f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who asked may be gone
            s.sendall(head.encode() + b"\r\n" + text)
        if self.machine.is_dirty:
            print("Error: Restoring microVM from snapshot failed", file=sys.stderr)
            if self.machine.is_launched:
                os.kill(os.getppid(), signal.SIGKILL)
            os._exit(1)

    def handle(self, method, path, body):
        name = f"{method} {path}"
        self.log(f'The API server received a {name} with body "{body.decode()}".')
        if self.faults.get("die") == name:
            os._exit(148)
        time.sleep(self.faults.get("delay_s", 0))
        while self.faults.get("hang") == name:
            time.sleep(1)
        if name in self.faults.get("refuse", {}):
            raise Refused(self.faults["refuse"][name])
        if name in self.faults.get("refuse_once", {}):
            raise Refused(self.faults["refuse_once"].pop(name))
        template, _, value = self.spec.check_request(method, path, body, self.machine.state != "Not started")
        return self.apply(method, template, value)

    def apply(self, method, template, value):
        m = self.machine
        known = {("PUT", "/logger"): m.put_logger, ("PUT", "/metrics"): m.put_metrics,
                 ("PUT", "/machine-config"): m.put_machine_config, ("PATCH", "/machine-config"): m.patch_machine_config,
                 ("PUT", "/boot-source"): m.put_boot_source, ("PUT", "/drives/{drive_id}"): m.put_drive,
                 ("PUT", "/network-interfaces/{iface_id}"): m.put_nic, ("PUT", "/vsock"): m.put_vsock,
                 ("PUT", "/entropy"): lambda v: m.config.update(entropy=v), ("PUT", "/actions"): self.act,
                 ("PATCH", "/vm"): lambda v: m.set_state(v["state"]), ("PUT", "/snapshot/create"): m.create_snapshot,
                 ("PUT", "/snapshot/load"): m.load_snapshot}
        answers = {"/version": lambda: {"firecracker_version": self.faults.get("version", self.spec.version)},
                   "/": lambda: {"id": m.id, "state": m.state, "app_name": "Firecracker", "vmm_version": self.spec.version},
                   "/machine-config": lambda: m.machine, "/vm/config": m.describe}
        if method == "GET" and template in answers:
            return answers[template]()
        if (method, template) not in known:
            raise Refused(f"The double does not have {method} {template}.")
        if template not in ("/logger", "/metrics", "/snapshot/load"):
            m.is_configured = True
        known[method, template](value)
        return None

    def act(self, value):
        action = value["action_type"]
        if action == "InstanceStart":
            self.machine.start()
        elif action == "FlushMetrics":
            self.machine.flush_metrics()
        else:
            self.machine.ctrl_alt_del()

    def load(self, path):
        """--config-file: kebab-case, keys that are not known are ignored, drives and boot-source are required."""
        with open(path) as f:
            config = json.load(f)
        for key in ("drives", "boot-source"):
            if key not in config:
                raise Refused(f"missing field `{key}`")
        definitions = {"boot-source": "BootSource", "machine-config": "MachineConfiguration", "logger": "Logger",
                       "metrics": "Metrics", "vsock": "Vsock", "entropy": "EntropyDevice", "drives": "Drive",
                       "network-interfaces": "NetworkInterface"}
        paths = {"drives": "/drives/{drive_id}", "network-interfaces": "/network-interfaces/{iface_id}"}
        for key, name in definitions.items():
            items = config.get(key, [])
            for item in items if isinstance(items, list) else [items]:
                self.spec.check({"$ref": f"#/definitions/{name}"}, item, key)
                self.apply("PUT", paths.get(key, f"/{key}"), item)
        self.machine.start()


def main(argv, spec, faults):
    args = parse_arguments(argv, faults.get("version", spec.version))
    if faults.get("die") == "start":
        print("Error: the double was told to die", file=sys.stderr)
        sys.exit(1)
    machine = Machine(args.id, faults.get("channel", "vsock"))
    server = Server(spec, machine, faults)
    if not args.no_api:
        server.listen(args.api_sock)
    try:
        if args.log_path:
            machine.put_logger({"log_path": args.log_path})
        if args.metrics_path:
            machine.put_metrics({"metrics_path": args.metrics_path})
        if args.config_file:
            server.load(args.config_file)
    except Refused as e:
        print(f"Error: {e}", file=sys.stderr)
        sys.exit(152)
    if args.no_api:
        server.listener = socket.socketpair()[0]
    server.serve()

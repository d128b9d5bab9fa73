"""The guest's agent with a real guest: it is beside the network, so it answers when the network is dead."""

import base64
import fcntl
import hashlib
import json
import os
import pty
import random
import re
import signal
import socket
import struct
import subprocess
import termios
import time
import zlib

import pytest

import harness
from agent_client import HEADER, JSON, Client, Refused
from harness import daemon, wait_for

BOOT_S = 90


@pytest.fixture(scope="module", params=["qemu", "firecracker"])
def running(request):
    """A daemon and a VM for all tests that leave both as they were."""
    with daemon(start=False, vm={"probe_timeout": "1", "reach_interval": "0.3"}) as d:
        if request.param == "firecracker":
            d.use_firecracker()
        d.start()
        vm = d.create(wait=True)
        assert vm["state"] == "running"
        yield d, vm["id"]


def mctl_exec(d, vm_id, *command, options=(), **kwargs):
    return subprocess.run([harness.MCTL, "--socket", d.socket, *options, "vm", "exec", vm_id, "--", *command],
                          capture_output=True, timeout=120, **kwargs)


def shell(d, vm_id, script, **kwargs):
    return mctl_exec(d, vm_id, "sh", "-c", script, **kwargs)


def ask(d, vm_id, op, **members):
    answer = d.admin("POST", f"/api/vms/{vm_id}/agent", {"op": op, **members})
    assert answer.status == 200, answer.json
    return answer.json["ok"]


def refused(d, vm_id, op, **members):
    answer = d.admin("POST", f"/api/vms/{vm_id}/agent", {"op": op, **members})
    return answer.status, answer.json["code"]


def read_file(d, vm_id, path, **members):
    return base64.b64decode(ask(d, vm_id, "file.read", path=path, allow=[path], **members)["data"])


def write_file(d, vm_id, path, data, **members):
    return ask(d, vm_id, "file.write", path=path, allow=[path], data=base64.b64encode(data).decode(), **members)


def agent_events(d, vm_id):
    return [e["event"] for e in d.events(vm_id) if e["event"].startswith("agent-")]


def test_running_means_that_the_agent_answers_and_the_story_has_the_stages(running):
    d, vm_id = running
    events = d.events(vm_id)
    names = [e["event"] for e in events]
    assert names.index("started") < names.index("agent-ready") < names.index("path-proven")
    assert names.index("started") < names.index("kernel-started") < names.index("network-answered") < names.index("path-proven")
    assert re.match(r"made in \d+ ms: folder \d+, disk \d+, limits \d+, network \d+, VMM \d+$", events[names.index("started")]["reason"])
    stage = r"(kernel|network|agent) after (\d+\.\d) s"
    booted = events[names.index("path-proven")]["reason"]
    assert re.match(rf"booted in (\d+\.\d) s: {stage}, {stage}, {stage}$", booted), booted
    took = float(booted.split()[2])
    assert all(0 <= float(s) <= took + 0.1 for _, s in re.findall(stage, booted))
    words = d.mctl("vm", "why", vm_id).out
    assert booted in words and re.search(r"Z +\+\d+\.\d s  kernel-started", words)
    assert d.vm(vm_id)["reason"] is None, "all is well"
    ready = events[names.index("agent-ready")]
    assert re.match(r"ready: agent \S+, protocol 1; the agent started \d+\.\d s after the guest's kernel$",
                    ready["reason"])
    facts = d.state / "users" / vm_id / "agent.json"
    wait_for(facts.exists, 30)
    said = json.loads(facts.read_text())
    assert said["health"]["memory"]["available_bytes"] > 0
    eth0 = [link for link in said["network"]["links"] if link["name"] == "eth0"][0]
    assert eth0["mac"] == d.vm(vm_id)["mac"] and eth0["up"] and eth0["carrier"]
    assert d.vm(vm_id)["ip"] in [a["address"] for a in said["network"]["addresses"]]
    assert any("Linux version" in line or "eth0" in line or "[" in line for line in said["kernel.log"]["lines"])


def test_streams_and_exit_status_are_the_programs(running):
    d, vm_id = running
    r = shell(d, vm_id, "cat; echo wrong >&2; exit 7", input=b"in\x00\xff\n")
    assert (r.returncode, r.stdout, r.stderr) == (7, b"in\x00\xff\n", b"wrong\n")
    assert mctl_exec(d, vm_id, "true").returncode == 0
    assert shell(d, vm_id, "kill -9 $$").returncode == 128 + 9
    r = mctl_exec(d, vm_id, "no-such-program")
    assert r.returncode == 127 and b"start no-such-program: No such file" in r.stderr
    r = shell(d, vm_id, "echo out; echo err >&2; exit 3", options=["--json"])
    assert json.loads(r.stdout) == {"exec": {"status": 3, "signal": None, "stdout": "out\n", "stderr": "err\n",
                                             "truncated": False}}
    assert r.returncode == 3 and r.stderr == b""
    for script, status, number, ends in (("exit 200", 200, None, 200), ("kill -9 $$", None, 9, 128 + 9)):
        r = shell(d, vm_id, script, options=["--json"])
        said = json.loads(r.stdout)["exec"]
        assert (said["status"], said["signal"], r.returncode) == (status, number, ends), "told apart"
    r = mctl_exec(d, vm_id, "printf", "%s|", "a b", "$HOME", "--json")
    assert r.stdout == b"a b|$HOME|--json|", "an argument vector is no shell"


def test_ten_megabytes_come_whole(running):
    d, vm_id = running
    r = shell(d, vm_id, "dd if=/dev/urandom of=/tmp/f bs=1M count=10 2>/dev/null; sha256sum </tmp/f >&2; cat /tmp/f")
    assert r.returncode == 0 and len(r.stdout) == 10 << 20
    assert hashlib.sha256(r.stdout).hexdigest() == r.stderr.decode().split()[0]
    data = r.stdout[:3 << 20]
    r = mctl_exec(d, vm_id, "sha256sum", input=data)
    assert r.stdout.decode().split()[0] == hashlib.sha256(data).hexdigest()
    shell(d, vm_id, "rm /tmp/f")


def processes(d, vm_id, word):
    return shell(d, vm_id, f"ps | grep '[{word[0]}]{word[1:]}' | grep -v grep").stdout.decode()


def test_a_signal_reaches_the_program_and_a_lost_client_ends_it(running):
    d, vm_id = running
    command = [harness.MCTL, "--socket", d.socket, "vm", "exec", vm_id, "--", "sh", "-c"]
    p = subprocess.Popen([*command, "trap 'echo caught; exit 9' TERM; echo up; while :; do sleep 0.1; done"],
                         stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert p.stdout.readline() == b"up\n"
    p.send_signal(signal.SIGTERM)
    assert p.stdout.read() == b"caught\n" and p.wait(60) == 9
    p = subprocess.Popen([*command, "echo up; exec sleep 4711"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert p.stdout.readline() == b"up\n"
    assert "sleep 4711" in processes(d, vm_id, "sleep 4711")
    p.kill()
    p.wait()
    wait_for(lambda: "sleep 4711" not in processes(d, vm_id, "sleep 4711"), 60, 0.5)


def test_a_program_ends_with_the_token_that_it_was_begun_with(running):
    d, vm_id = running
    token = d.mctl("--json", "token", "create", "--user", d.vm(vm_id)["user"]).json
    with socket.create_connection(("127.0.0.1", d.port), 60) as s:
        s.sendall(f"GET /api/vms/{vm_id}/exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
                  f"Upgrade: master-controller-exec\r\nAuthorization: Bearer {token['secret']}\r\n\r\n".encode())
        client = Client.upgraded(s)
        client.send(JSON, 1, json.dumps({"argv": ["/bin/sh", "-c", "echo up; exec sleep 4713"]}).encode())
        while (frame := client.frame())[3] != b"up\n":
            assert frame[0] != JSON, frame
        d.mctl("token", "revoke", token["token"]["id"])
        assert client.answer(1)["error"]["code"] == "auth.revoked"
        assert s.recv(1) == b""
    wait_for(lambda: "sleep 4713" not in processes(d, vm_id, "sleep 4713"), 60, 0.5)


def test_a_slow_reader_holds_up_only_itself(running):
    d, vm_id = running
    slow = subprocess.Popen([harness.MCTL, "--socket", d.socket, "vm", "exec", vm_id, "--", "yes"],
                            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        assert slow.stdout.read(2) == b"y\n"
        time.sleep(1)
        for _ in range(3):
            assert shell(d, vm_id, "echo here").stdout == b"here\n"
        assert d.get("/health").status == 200
    finally:
        slow.kill()
        slow.wait()


def read_until(fd, text, timeout_s=60):
    got = b""
    os.set_blocking(fd, False)
    end = time.monotonic() + timeout_s
    while text not in got:
        assert time.monotonic() < end, got
        try:
            got += os.read(fd, 4096)
        except BlockingIOError:
            time.sleep(0.05)
    return got


def test_on_a_terminal_the_program_has_one_of_the_same_size(running):
    d, vm_id = running
    pid, fd = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 97, 0, 0))
        os.execv(harness.MCTL, ["mctl", "--socket", str(d.socket), "vm", "exec", vm_id, "--", "sh", "-c",
                                "trap 'stty size; echo resized' WINCH; tty; stty size; echo ready; "
                                "while :; do sleep 0.1; done"])
    try:
        got = read_until(fd, b"ready")
        assert b"/dev/pts/" in got and b"31 97" in got
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 50, 0, 0))
        assert b"20 50" in read_until(fd, b"resized")
        os.set_blocking(fd, True)
        os.write(fd, b"\x03")
        _, status = os.waitpid(pid, 0)
        pid = 0
        assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGINT
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(fd)


def test_a_terminal_is_a_matter_of_choice(running):
    d, vm_id = running
    command = [harness.MCTL, "--socket", d.socket, "vm", "exec"]
    r = subprocess.run([*command, "-t", vm_id, "--", "sh", "-c", "tty; echo wrong >&2; cat; exit 5"], input=b"in\n",
                       capture_output=True, timeout=120)
    assert r.returncode == 5 and b"/dev/pts/" in r.stdout and b"wrong\r\n" in r.stdout and r.stderr == b""
    assert r.stdout.count(b"in\r\n") == 2, "once by the terminal's echo, once by cat"
    ours, theirs = pty.openpty()
    try:
        r = subprocess.run([*command, "-T", vm_id, "--", "sh", "-c", "tty; exit 6"], stdin=theirs, stdout=subprocess.PIPE,
                           timeout=120)
        assert r.returncode == 6 and r.stdout == b"not a tty\n"
    finally:
        os.close(ours)
        os.close(theirs)
    assert subprocess.run([*command, vm_id, "-t", "true"], capture_output=True).returncode == 2


def test_it_answers_when_the_network_is_dead(running):
    d, vm_id = running
    facts = d.state / "users" / vm_id / "agent.json"
    assert shell(d, vm_id, "ip link set eth0 down").returncode == 0
    try:
        wait_for(lambda: d.vm(vm_id)["reachable"] is False, 60, 0.3)
        assert shell(d, vm_id, "echo still here").stdout == b"still here\n"

        def told():
            """the evidence has what the guest sees of its own network"""
            links = json.loads(facts.read_text())["network"]["links"]
            return [link["up"] for link in links if link["name"] == "eth0"] == [False]
        wait_for(told, 30, 0.2)
        assert ask(d, vm_id, "connect", address="192.168.0.1", port=80)["why"] == "Network is unreachable"
        assert read_file(d, vm_id, "/etc/passwd").startswith(b"root:")
    finally:
        shell(d, vm_id, "ip link set eth0 up; ip route replace default via 192.168.0.1")
    wait_for(lambda: d.vm(vm_id)["reachable"] is True, 60, 0.3)


def test_it_comes_back_after_it_was_killed_and_after_the_daemon(running):
    d, vm_id = running
    before = len(agent_events(d, vm_id))
    shell(d, vm_id, "kill -9 $(pidof mc-agent)")
    wait_for(lambda: agent_events(d, vm_id)[before:] == ["agent-lost", "agent-ready"], 90, 0.5)
    assert shell(d, vm_id, "echo again").stdout == b"again\n"
    d.stop(signal.SIGKILL)
    d.start()
    wait_for(lambda: shell(d, vm_id, "true").returncode == 0, 60, 0.5)
    assert d.vm(vm_id)["state"] == "running"


def test_it_is_asked_over_http(running):
    d, vm_id = running
    path = f"/api/vms/{vm_id}/agent"
    agent = d.admin("GET", path).json["agent"]
    assert agent["state"] == "ready" and agent["started_ms"] > 0
    ok = d.admin("POST", path, {"op": "network"}).json["ok"]
    assert "eth0" in [link["name"] for link in ok["links"]]
    assert d.admin("POST", path, {"op": "ping", "address": "192.168.0.1"}).json["ok"]["answered"] is True
    for body, status, code in (({"op": "exec", "argv": ["true"]}, 400, "body.bad-value"),
                               ({"op": "health", "timeout_ms": 0}, 400, "body.bad-value"),
                               ([], 400, "body.not-json"),
                               ({"op": "ping", "address": "x"}, 502, "guest.bad-request"),
                               ({"op": "net.link", "name": "none", "up": True}, 502, "guest.net.no-link"),
                               ({"op": "units"}, 502, "guest.exec.failed")):
        answer = d.admin("POST", path, body)
        assert (answer.status, answer.json["code"]) == (status, code), body
    assert d.request("POST", path, {"op": "health"}).status == 401


def test_files_go_over_http(running):
    d, vm_id = running
    data = bytes(range(256)) * 150
    assert write_file(d, vm_id, "/tmp/a b", data, mode=0o640) == {}
    assert shell(d, vm_id, "stat -c '%a %u' '/tmp/a b'; sha256sum <'/tmp/a b'").stdout.decode().split()[:3] == [
        "640", "0", hashlib.sha256(data).hexdigest()]
    assert read_file(d, vm_id, "/tmp/a b") == data
    answer = ask(d, vm_id, "file.read", path="/tmp/a b", allow=["/tmp/"], offset=-3, max=2)
    assert answer == {"size": len(data), "data": base64.b64encode(data[-3:-1]).decode()}
    assert write_file(d, vm_id, "/tmp/a b", b"") == {} and read_file(d, vm_id, "/tmp/a b") == b""
    shell(d, vm_id, "dd if=/dev/zero of=/tmp/big bs=1M count=2 2>/dev/null; echo u:x:1007:1008::/:/bin/sh >>/etc/passwd; "
                    "mkdir /tmp/d; ln -s /etc /tmp/d/etc; ln -s /etc/passwd /tmp/d/passwd; mkfifo /tmp/d/fifo")
    answer = ask(d, vm_id, "file.read", path="/tmp/big", allow=["/tmp/big"])
    assert answer["size"] == 2 << 20 and len(base64.b64decode(answer["data"])) == 1 << 20
    write_file(d, vm_id, "/tmp/of-u", b"x", user="u")
    assert shell(d, vm_id, "stat -c '%a %u:%g' /tmp/of-u").stdout == b"600 1007:1008\n"
    read, write = {"op": "file.read"}, {"op": "file.write", "data": "eA=="}
    for members, status, code in (
            ({**read, "path": "/etc/passwd", "allow": ["/tmp/"]}, 502, "guest.file.not-allowed"),
            ({**read, "path": "/etc/passwd", "allow": []}, 502, "guest.file.not-allowed"),
            ({**read, "path": "/etc/passwd"}, 502, "guest.bad-request"),
            ({**read, "path": "/tmp/../etc/passwd", "allow": ["/tmp/"]}, 502, "guest.bad-request"),
            ({**read, "path": "/tmp/d/passwd", "allow": ["/tmp/"]}, 502, "guest.file.failed"),
            ({**read, "path": "/tmp/d/etc/passwd", "allow": ["/tmp/"]}, 502, "guest.file.failed"),
            ({**read, "path": "/tmp/d/fifo", "allow": ["/tmp/"]}, 502, "guest.file.failed"),
            ({**read, "path": "/tmp/none", "allow": ["/tmp/"]}, 502, "guest.file.failed"),
            ({**read, "path": "/tmp/big", "allow": ["/tmp/"], "max": (1 << 20) + 1}, 400, "body.bad-value"),
            ({**write, "path": "/etc/passwd", "allow": ["/tmp/"]}, 502, "guest.file.not-allowed"),
            ({**write, "path": "/tmp/d/etc/x", "allow": ["/tmp/"]}, 502, "guest.file.failed"),
            ({**write, "path": "/tmp/d/", "allow": ["/tmp/"]}, 502, "guest.bad-request"),
            ({**write, "path": "/tmp/x", "allow": ["/tmp/"], "user": "nobody-there"}, 502, "guest.exec.failed"),
            ({**write, "path": "/tmp/x", "allow": ["/tmp/"], "data": "e"}, 400, "body.bad-value"),
            ({**write, "path": "/tmp/x", "allow": ["/tmp/"], "data": None}, 400, "body.bad-value")):
        assert refused(d, vm_id, **members) == (status, code), members
    # A link in the file's own place is replaced, not followed.
    assert write_file(d, vm_id, "/tmp/d/passwd", b"mine") == {}
    assert read_file(d, vm_id, "/etc/passwd").startswith(b"root:") and read_file(d, vm_id, "/tmp/d/passwd") == b"mine"
    assert shell(d, vm_id, "ls -A /tmp | grep new").stdout == b""
    shell(d, vm_id, "rm -r /tmp/*; sed -i /^u:/d /etc/passwd")


def test_a_page_is_given_to_the_browser_that_runs(running):
    """What stands in for it is all that this guest has; the real one is test_agent_systemd.py's."""
    d, vm_id = running
    folder = "/home/desktop/.config/chromium"
    not_ready = (502, "guest.browser.not-ready")
    assert refused(d, vm_id, "browser.open", url="https://a/") == not_ready
    shell(d, vm_id, f"mkdir -p {folder}; chown -R desktop /home/desktop; chmod 1777 /tmp; cat >/tmp/chromium; chmod 755 /tmp/chromium",
          input=(harness.BUILD / "tests/vm/fake-chromium").read_bytes())

    def runs(*answer):
        shell(d, vm_id, f"killall chromium; su desktop -c '/tmp/chromium {folder}/SingletonSocket /tmp/opened {' '.join(answer)}' "
              f">/dev/null 2>&1 & until [ -S {folder}/SingletonSocket ]; do sleep 0.1; done")
    runs()
    url = "https://a.example/?q=$(id)&x=;'\""
    assert ask(d, vm_id, "browser.open", url=url) == {}
    assert read_file(d, vm_id, "/tmp/opened").decode() == url + "\n"
    for bad in ("http://a.example/", "file:///etc/passwd", "javascript:alert(1)", "https://", "--no-sandbox", "https://a b",
                "https://\u00e4.example/", "https://a/" + "x" * 4096, "HTTPS://A", ""):
        assert refused(d, vm_id, "browser.open", url=bad) == (502, "guest.bad-request"), bad
    shell(d, vm_id, f"rm {folder}/SingletonSocket")
    runs("SHUTDOWN")
    assert refused(d, vm_id, "browser.open", url="https://a/") == not_ready, "it ends: the next one is waited for"
    shell(d, vm_id, f"rm {folder}/SingletonSocket")
    runs("what")
    assert refused(d, vm_id, "browser.open", url="https://a/") == (502, "guest.browser.failed")
    shell(d, vm_id, "killall chromium; rm -r /tmp/* /home/desktop/.config")
    assert refused(d, vm_id, "browser.open", url="https://a/") == not_ready


def test_a_program_ends_with_the_daemon(running):
    d, vm_id = running
    p = subprocess.Popen([harness.MCTL, "--socket", d.socket, "vm", "exec", vm_id, "--", "sh", "-c",
                          "echo up; exec sleep 4712"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE)
    assert p.stdout.readline() == b"up\n"
    d.stop(signal.SIGKILL)
    assert p.wait(60) == 1 and b"the connection to the daemon was lost" in p.stderr.read()
    d.start()
    wait_for(lambda: shell(d, vm_id, "true").returncode == 0, 60, 0.5)
    wait_for(lambda: "sleep 4712" not in processes(d, vm_id, "sleep 4712"), 60, 0.5)


@pytest.fixture
def direct(running):
    """The channel itself, while the daemon is away."""
    d, vm_id = running
    d.stop()
    folder = d.state / "users" / vm_id
    over_vsock = (folder / "root/vsock.sock").exists()
    client = (Client(str(folder / "root/vsock.sock"), vsock_port=6100) if over_vsock
              else Client(str(folder / "agent.sock")))
    try:
        yield client
    finally:
        client.close()
        d.start()
        wait_for(lambda: shell(d, vm_id, "true").returncode == 0, 60, 0.5)


def addresses(client):
    return sorted(f"{a['address']}/{a['prefix']}" for a in client.ask("network")["addresses"] if a["link"] == "eth0")


def default_routes(client):
    return [r["via"] for r in client.ask("network")["routes"] if r["to"] == "default" and ":" not in r["via"]]


def eth0_is_up(client):
    return [link["up"] for link in client.ask("network")["links"] if link["name"] == "eth0"] == [True]


def test_the_network_is_mended_from_inside(direct):
    (address,) = addresses(direct)
    assert address.endswith("/16") and default_routes(direct) == ["192.168.0.1"] and eth0_is_up(direct)
    assert direct.ask("ping", address="192.168.0.1")["answered"] is True
    direct.ask("net.link", name="eth0", up=False)
    assert not eth0_is_up(direct) and default_routes(direct) == []
    dead = direct.ask("ping", address="192.168.0.1")
    assert dead["answered"] is False and dead["why"] == "Network is unreachable"
    direct.ask("net.link", name="eth0", up=True)
    direct.ask("net.route", to="0.0.0.0/0", via="192.168.0.1", link="eth0")
    assert eth0_is_up(direct) and default_routes(direct) == ["192.168.0.1"]
    # The incident's mask: the gateway is beyond it.
    wrong = address.replace("/16", "/24")
    direct.ask("net.address", link="eth0", address="192.168.77.5/24")
    direct.ask("net.address", link="eth0", address=address, delete=True)
    direct.ask("net.address", link="eth0", address=wrong)
    assert addresses(direct) == sorted(["192.168.77.5/24", wrong])
    with pytest.raises(Refused, match="net.refused"):
        direct.ask("net.route", to="10.0.0.0/8", via="10.9.9.9", link="eth0")
    direct.ask("net.address", link="eth0", address="192.168.77.5/24", delete=True)
    direct.ask("net.address", link="eth0", address=wrong, delete=True)
    direct.ask("net.address", link="eth0", address=address)
    direct.ask("net.route", to="0.0.0.0/0", via="192.168.0.1", link="eth0")
    assert addresses(direct) == [address] and default_routes(direct) == ["192.168.0.1"]
    wait_for(lambda: direct.ask("ping", address="192.168.0.1")["answered"], 30, 0.5)


def test_what_else_it_knows_and_can(direct):
    listeners = {(row["port"], row["program"]) for row in direct.ask("network")["listeners"]}
    assert {(7, "nc"), (8080, "httpd"), (6080, "httpd")} <= listeners
    assert direct.ask("connect", address="127.0.0.1", port=8080)["answered"] is True
    assert direct.ask("connect", address="127.0.0.1", port=9)["why"] == "Connection refused"
    log = direct.ask("kernel.log", lines=20)
    assert len(log["lines"]) == 20
    # A kernel on a busy host may have real trouble of its own; what firmware calls a bug is none.
    assert not any("made up" in line or "MP-BIOS" in line for line in log["trouble"])
    direct.ask("exec", argv=["sh", "-c", "echo 'Out of memory: Killed process 1 (made up)' >/dev/kmsg"])
    assert "made up" in direct.ask("kernel.log", lines=1)["trouble"][-1]
    before = direct.ask("health")["realtime_ms"]
    assert abs(direct.ask("clock.set", realtime_ms=before + 3600_000)["changed_by_ms"] - 3600_000) < 60_000
    assert direct.ask("health")["realtime_ms"] >= before + 3600_000
    direct.ask("clock.set", realtime_ms=int(time.time() * 1000))
    with pytest.raises(Refused, match="exec.failed: start systemctl"):
        direct.ask("units")  # there is no systemd in this guest
    assert direct.ask("file.read", path="/etc/passwd", allow=["/etc/"])["size"] == len(direct.output[1])
    assert direct.output[1].startswith(b"root:x:0:0:root:/:/bin/sh\n")


def test_a_file_that_is_swapped_while_it_is_written_is_not_taken(direct):
    """The folder may be a user's: what he puts there under the new file's name is neither opened nor renamed."""
    direct.ask("exec", argv=["sh", "-c", "mkdir -p /tmp/theirs; chmod 777 /tmp/theirs"])
    for swap in ("mkfifo", "ln -s /etc/passwd", "cp /etc/passwd", None):
        direct.last_id += 1
        id = direct.last_id
        direct.send(1, id, json.dumps({"op": "file.write", "path": "/tmp/theirs/a", "allow": ["/tmp/theirs/"]}).encode())
        direct.send(2, id, b"content")
        direct.ask("exec", argv=["sh", "-c", "cd /tmp/theirs; for f in .a.*.new; do rm $f; " +
                                 (f"{swap} $f; done" if swap else "done")])
        direct.send(2, id, b"")
        answer = direct.answer(id)
        assert answer["error"]["code"] == "file.failed" and "took the new file away" in answer["error"]["detail"], answer
        direct.ask("exec", argv=["sh", "-c", "ls -A /tmp/theirs; rm -f /tmp/theirs/.a*"])
        assert direct.output[1].decode().split() != ["a"] and b" a\n" not in direct.output[1]
    direct.ask("exec", argv=["rm", "-r", "/tmp/theirs"])


def test_it_survives_a_host_that_sends_anything(direct):
    rng = random.Random(1)
    for _ in range(20):
        direct.socket.sendall(rng.randbytes(5000) + b"\xf5MCa" * 100)
    direct.send(1, 99, b"[1, 2")
    direct.socket.sendall(b"\xf5MCa" + bytes(24))
    # Frames that promise more than may be, or than comes; the next session's greeting falls into the middle of one.
    for length in (0xffffffff, 1 << 31, 70000, 60000):
        head = HEADER.pack(b"\xf5MCa", 1, 0, 0, direct.session, 7, length, 0, 0)[:24]
        direct.socket.sendall(head + struct.pack("<I", zlib.crc32(head)) + b"x" * 500)
        direct.send(1, 0, json.dumps({"hello": {"min": 1, "max": 1}}).encode())
    for odd in ({"op": "kernel.log", "lines": 1 << 62}, {"op": "exec", "argv": ["x" * 9] * 5000}, {"op": "exec", "argv": []},
                {"op": "connect", "address": "127.0.0.1", "port": -(1 << 63)}, {"op": "clock.set", "realtime_ms": (1 << 63) - 1}):
        direct.send(1, rng.randrange(1000, 2000), json.dumps(odd).encode())
    direct.send(1, 2001, b'{"op":' * 10000)
    for id in range(3000, 3500):  # many at once, none of which is waited for
        direct.send(1, id, b'{"op":"exec","argv":["true"]}')
    direct.session += 1
    direct.send(1, 0, json.dumps({"hello": {"min": 1, "max": 1}}).encode())
    assert direct.answer(0)["hello"]["version"] == 1
    assert direct.ask("health")["uptime_s"] > 0
    assert direct.ask("exec", argv=["true"])["status"] == 0
    assert abs(direct.ask("health")["realtime_ms"] / 1000 - time.time()) < 3600, "its clock is as it was"


def test_versions_and_time_limits(direct):
    direct.send(1, 0, json.dumps({"hello": {"min": 2, "max": 9}}).encode())
    refusal = direct.answer(0)["error"]
    assert (refusal["code"], refusal["min"], refusal["max"]) == ("version", 1, 1) and "from 2 to 9" in refusal["detail"]
    direct.send(1, 0, json.dumps({"hello": {"min": 1, "max": 9}}).encode())
    assert direct.answer(0)["hello"]["version"] == 1
    with pytest.raises(Refused, match="timeout: "):
        direct.ask("exec", argv=["sleep", "4714"], timeout_ms=300)
    assert direct.ask("ping", address="192.168.0.77", timeout_ms=300)["answered"] is False
    direct.ask("exec", argv=["sh", "-c", "ps"])
    assert b"sleep 4714" not in direct.output[1]
    with pytest.raises(Refused, match="bad-request: timeout_ms"):
        direct.ask("health", timeout_ms=300001)


def test_what_cannot_be_is_refused(running):
    d, vm_id = running
    assert mctl_exec(d, "vm-none", "true").returncode == 4
    assert subprocess.run([harness.MCTL, "--socket", d.socket, "vm", "exec", vm_id], capture_output=True).returncode == 2
    assert mctl_exec(d, vm_id, "echo", "x" * 100000, "x" * 100000).returncode == 2
    answer = d.admin("GET", f"/api/vms/{vm_id}/exec")
    assert answer.status == 426 and answer.json["code"] == "exec.upgrade"
    assert d.get(f"/api/vms/{vm_id}/exec").status == 401


def test_a_guest_whose_agent_does_not_answer_does_not_run():
    with daemon(image=harness.guest_image("no-agent"), vm={"cli_boot_timeout": "45"}) as d:
        vm = d.create()

        def answers():
            """its network answers"""
            return "network-answered" in [e["event"] for e in d.events(vm["id"])] or d.state_of(vm["id"]) == "failed"
        wait_for(answers, BOOT_S, 0.5)
        assert d.state_of(vm["id"]) == "booting"
        r = mctl_exec(d, vm["id"], "true")
        assert r.returncode == 5 and b"has not answered yet" in r.stderr
        d.wait_state(vm["id"], "failed", BOOT_S)
        assert "its network answers, but its agent does not: has not answered yet" in d.vm(vm["id"])["reason"]
        assert mctl_exec(d, vm["id"], "true").returncode == 5


def test_a_guest_that_floods_holds_up_nobody(each_vmm):
    """Its agent greets, and then talks without end about what was asked, what was not, and nothing at all."""
    with daemon(image=harness.guest_image("flood")) as d:
        vm = d.create()  # it never runs: it does not tell its health
        wait_for(lambda: "agent-ready" in agent_events(d, vm["id"]), 60, 0.5)
        other = d.create(user="u2")
        assert refused(d, vm["id"], "ping", address="192.168.0.1", timeout_ms=3000) == (504, "agent.timeout")
        before, began = cpu_s(d.process.pid), time.monotonic()
        for _ in range(8):
            assert d.get("/health").status == 200
            time.sleep(0.5)
        # It reads half a MiB of it a second: unhindered it would be all that a processor can.
        assert (cpu_s(d.process.pid) - before) / (time.monotonic() - began) < 0.4
        assert d.vm(other["id"])["state"] in ("booting", "running")
        assert d.mctl("--json", "vm", "destroy", vm["id"], "--reason", "floods").json["vm"]["state"] == "stopped"


def cpu_s(pid):
    with open(f"/proc/{pid}/stat") as f:
        words = f.read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def test_under_firecracker_it_is_reached_by_vsock():
    """The double's device is a vsock's, served by the double: the guest's kernel and agent have nothing else."""
    with daemon(start=False) as d:
        d.use_firecracker()
        d.start()
        vm = d.create(wait=True)
        assert vm["state"] == "running" and vm["vmm"] == "firecracker"
        assert agent_events(d, vm["id"]) == ["agent-ready"]
        assert shell(d, vm["id"], "echo by vsock").stdout == b"by vsock\n"
        devices = shell(d, vm["id"], "cd /sys; ls class/virtio-ports; ls bus/virtio/drivers/vmw_vsock_virtio_transport").stdout
        assert re.search(rb"^virtio\d+$", devices, re.M) and b"vport" not in devices
        d.stop(signal.SIGKILL)
        d.start()
        wait_for(lambda: shell(d, vm["id"], "echo again").stdout == b"again\n", 60, 0.5)
        assert d.mctl("--json", "vm", "destroy", vm["id"], "--reason", "done").json["vm"]["state"] == "stopped"
        said = json.loads((d.state / "evidence" / vm["id"] / "agent.json").read_text())
        assert said["note"] == "said by the guest itself" and said["health"]["agent"]


def test_who_listens_in_the_vmms_place_is_not_spoken_to():
    """Firecracker's folder is its uid's: another process of that uid can put a socket of its own there."""
    with daemon(start=False) as d:
        d.use_firecracker()
        d.start()
        vm = d.create(wait=True)
        d.stop(signal.SIGKILL)
        path = d.state / "users" / vm["id"] / "root" / "vsock.sock"
        uid = path.stat().st_uid
        path.unlink()
        with socket.socket(socket.AF_UNIX) as impostor:
            folder = os.open(path.parent, os.O_PATH)
            impostor.bind(f"/proc/self/fd/{folder}/vsock.sock")
            os.close(folder)
            os.chown(path, uid, uid)
            child = os.fork()
            if child == 0:
                os.setresuid(uid, uid, uid)
                impostor.listen()
                signal.pause()
            try:
                d.start()
                impostor.settimeout(20)
                client, _ = wait_for(lambda: accepted(impostor), 20)
                with client:
                    assert client.recv(100) == b""
                said = mctl_exec(d, vm["id"], "true")
                assert said.returncode == 5 and b"somebody else" in said.stderr, said
            finally:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def accepted(listener):
    """somebody connects"""
    try:
        return listener.accept()
    except OSError:  # the child does not listen yet
        return None

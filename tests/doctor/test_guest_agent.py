"""The guest judged from inside, through its agent. With real guests of the daemon: Debian's kernel under QEMU, faults made in
them by `mctl vm exec`. With a made-up daemon: an agent that lies, and one that sends anything."""
import contextlib
import http.server
import io
import json
import os
import pathlib
import socket
import socketserver
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time

import pytest

from lab import Lab
from test_catalogue import ONLY_INJECT

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import harness  # noqa: E402
from harness import MCTL  # noqa: E402

pytestmark = pytest.mark.skipif(bool(ONLY_INJECT), reason="there is no doctor")
PORT = 8080  # where the test guest has a service


class Inside:
    """A VM of a daemon, seen from inside and by the doctor."""

    def __init__(self, daemon, vm):
        self.daemon, self.id = daemon, vm["id"]
        self.ip, self.mac, self.tap = vm["ip"], vm["mac"], vm["tap"]

    def sh(self, script, check=True, stdin=b""):
        done = subprocess.run([MCTL, "--socket", self.daemon.socket, "vm", "exec", self.id, "--", "sh", "-c", script], input=stdin,
                              capture_output=True, timeout=120)
        assert not check or done.returncode == 0, (script, done)
        return done.stdout.decode()

    def agent(self, op, **members):
        return self.daemon.admin("POST", f"/api/vms/{self.id}/agent", {"op": op, **members}).json["ok"]

    def network(self):
        """What a repair must put back."""
        facts = self.agent("network")
        links = [(link["name"], link["up"]) for link in facts["links"] if link["name"] == "eth0"]
        addresses = sorted((a["address"], a["prefix"]) for a in facts["addresses"] if a["link"] == "eth0" and ":" not in a["address"])
        routes = sorted((r["to"], r["prefix"], r["via"]) for r in facts["routes"] if r["family"] == 4)
        return links, addresses, routes

    def doctor(self, *args, agent=True, json_out=True, status=None):
        done = harness.run(MCTL, *(["--json"] if json_out else []), *(["--socket", self.daemon.socket] if agent else []), "doctor", "--netns",
                           self.daemon.name, "--state-dir", self.daemon.state, *(args if "--from" in args or "--undo" in args else ["--vm", self.id, *args]),
                           check=False, timeout=200, env={**os.environ, "MC_DOCTOR_JOURNAL": str(self.daemon.dir / "journal")})
        assert status is None or done.returncode == status, (done.returncode, done.stdout[-4000:], done.stderr)
        return Report(done.returncode, json.loads(done.stdout)) if json_out else done.stdout


class Report:
    def __init__(self, status, report):
        self.status, self.report = status, report
        self.target = report["targets"][0] if report.get("targets") else {}
        self.findings = self.target.get("findings", [])
        self.roots = [f for f in self.findings if f["role"] == "root-cause"]
        self.ids = [f["id"] for f in self.roots]

    def end(self, what):
        return next(row for row in self.target["ends"] if row["what"] == what)

    def notes(self, id):
        return [f for f in self.findings if f["id"] == id and f["role"] == "note"]

    def __repr__(self):
        return json.dumps([self.status, self.findings, self.target.get("ends")], indent=1)


@pytest.fixture(scope="module")
def inside():
    harness.guest_image()
    with harness.daemon(vm={"reach_interval": "5"}) as d:
        vm = d.create(wait=True)
        assert vm["state"] == "running"
        yield Inside(d, d.vm(vm["id"]))


@pytest.fixture
def guest(inside):
    """The VM, as it was before: a test mends what it broke."""
    before = inside.network()
    yield inside
    after = inside.network()
    if after != before:  # the next test has a guest that is well all the same
        inside.sh(f"ip link set eth0 up; ip addr flush dev eth0; ip addr add {inside.ip}/16 dev eth0; ip route replace default via 192.168.0.1")
    assert after == before


def test_both_ends_of_a_well_guest(guest):
    answer = guest.doctor("--guest-port", str(PORT), status=0)
    assert answer.report["healthy"] is True and answer.findings == [], answer
    assert answer.target["agent"]["state"] == "told"
    assert [row["what"] for row in answer.target["ends"]] == ["link", "MAC", "frames", "address", "way back", "filter", "service"], answer
    assert [row["what"] for row in answer.target["ends"] if row["agree"] is False] == [], answer
    hops = {hop["hop"]: hop for hop in answer.target["hops"]}
    for hop in ("guest.nic", "guest.ip", "guest.firewall", "guest.service"):
        assert hops[hop]["verdict"] == "pass" and {e["source"] for e in hops[hop]["evidence"]} == {"probe", "agent"}, hops[hop]
    text = guest.doctor("--explain", json_out=False, status=0)
    assert "both ends" in text and f"guest {guest.ip}/16 on eth0" in text, text
    # The API's own doctor asks the same way.
    report = guest.daemon.admin("GET", f"/api/vms/{guest.id}/diagnostics").json
    assert report["healthy"] is True and report["targets"][0]["agent"]["state"] == "told"
    # Without the daemon it is as it was without agents.
    answer = guest.doctor(agent=False, status=0)
    assert answer.target["agent"]["state"] == "unasked" and answer.target["ends"] is None


FAULTS = {
    "link down": ("ip link set eth0 down", "guest.nic-down", "guest.nic"),
    "no address": ("ip addr flush dev eth0", "guest.no-address", "guest.ip"),
    "another's address": ("ip addr del {ip}/16 dev eth0; ip addr add 192.168.77.9/16 dev eth0", "guest.no-address", "guest.ip"),
    "the gateway outside of its prefix": ("ip addr del {ip}/16 dev eth0; ip addr add {ip}/32 dev eth0", "guest.wrong-prefix", "guest.ip"),
    "no default route": ("ip route del default", "guest.no-default-route", "guest.ip"),
    "a gateway that nobody has": ("ip route replace default via 192.168.0.99", "guest.wrong-gateway", "guest.ip"),
    "no route at all": ("ip route flush dev eth0", "guest.no-route", "guest.ip"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_named_mended_proven(guest, name, tmp_path):
    script, finding, hop = FAULTS[name]
    guest.sh(script.format(ip=guest.ip))
    answer = guest.doctor("--save", str(tmp_path / "case"), status=10)
    first = answer.roots[0]
    assert (first["id"], first["dies_at"]) == (finding, hop), answer
    assert {e["source"] for e in first["evidence"]} & {"agent"} and first["repair"]["safe"] is True, answer
    assert all(step.startswith(f"mctl vm exec {guest.id} -- ") for step in first["repair"]["plan"]), answer
    # On another machine, from the file alone.
    assert guest.doctor("--from", str(tmp_path / "case"), agent=False).findings == answer.findings
    mended = guest.doctor("--repair", status=11)
    assert all(f["repair"]["proven"] is True for f in mended.roots) and finding in mended.ids, mended


def test_undo_gives_back_what_was(guest):
    was = guest.network()
    guest.sh(f"ip addr del {guest.ip}/16 dev eth0; ip addr add 192.168.77.9/16 dev eth0; ip route add default via 192.168.0.1")
    broken = guest.network()
    mended = guest.doctor("--repair", status=11)
    assert guest.network() == was
    for finding in mended.roots[::-1] if mended.ids[0] == "guest.no-address" else mended.roots:
        guest.doctor("--undo", finding["repair"]["journal"], status=0)
    assert guest.network() == broken
    mended = guest.doctor("--repair", status=11)
    # What somebody changed since is not touched.
    route = next(f for f in mended.roots if f["id"] == "guest.no-default-route")["repair"]["journal"]
    guest.sh("ip route replace default via 192.168.0.77")
    refused = guest.doctor("--undo", route, status=5)
    assert refused.report["error"]["code"] == "repair.changed", refused.report
    guest.sh("ip route replace default via 192.168.0.1")


def test_the_agent_is_needed_to_tell(guest):
    """What only looks dead from outside; and nothing is repaired by hearsay."""
    guest.sh("ip link set eth0 down")
    answer = guest.doctor(agent=False, status=10)
    assert answer.ids == ["unknown.guest.nic"], answer
    assert guest.doctor("--repair", agent=False, status=10).roots[0]["repair"]["applied"] is False
    # By state alone, too: nothing is sent.
    assert guest.doctor("--no-probe", status=10).ids == ["guest.nic-down"]
    assert guest.doctor("--repair", status=11).ids[0] == "guest.nic-down"


@pytest.mark.parametrize("script, back, finding", [
    ("ip link set eth0 arp off", "ip link set eth0 arp on", "guest.nic-noarp"),
    ("echo 8 >/proc/sys/net/ipv4/conf/all/arp_ignore", "echo 0 >/proc/sys/net/ipv4/conf/all/arp_ignore", "guest.arp-ignore"),
    ("echo 8 >/proc/sys/net/ipv4/conf/eth0/arp_ignore", "echo 0 >/proc/sys/net/ipv4/conf/eth0/arp_ignore", "guest.arp-ignore"),
    ("ip route add blackhole 192.168.0.1", "ip route del blackhole 192.168.0.1", "guest.no-route"),
    ("ip addr add 192.168.0.1/16 dev eth0", "ip addr del 192.168.0.1/16 dev eth0", "guest.owns-gateway"),
], ids=["noarp", "arp-ignore", "arp-ignore-card", "blackhole", "owns-gateway"])
def test_named_and_left_alone(guest, script, back, finding):
    guest.sh(script)
    answer = guest.doctor("--repair", status=10)
    guest.sh(back)
    assert answer.ids == [finding] and answer.roots[0]["repair"]["applied"] is False, answer
    assert guest.doctor(status=0).findings == []


def test_a_guest_that_ignores_ping(guest):
    guest.sh("echo 1 >/proc/sys/net/ipv4/icmp_echo_ignore_all")
    answers = [guest.doctor(status=0), guest.doctor("--guest-port", str(PORT), status=0)]
    guest.sh("echo 0 >/proc/sys/net/ipv4/icmp_echo_ignore_all")
    assert all(a.notes("guest.ignores-ping") and a.roots == [] for a in answers), answers


# ---- its packet filter ----


def modules_of(name, folder, found):
    """Paths of a module and of those that it needs, these first."""
    path = next(iter(folder.rglob(name.replace("-", "_") + ".ko")), None) or next(iter(folder.rglob(name.replace("_", "-") + ".ko")), None)
    if path is None or path in found:
        return
    for needed in harness.run("modinfo", "-F", "depends", path).stdout.strip().split(","):
        if needed:
            modules_of(needed, folder, found)
    found.append(path)


@pytest.fixture(scope="module")
def nft(inside):
    """nft(8) of this machine in the guest, with what it needs."""
    folder = next((harness.HERE / ".cache/kernel").glob("linux-image-*")) / "lib/modules"
    modules = []
    for name in ("nf_tables", "nft_reject_inet", "nft_ct", "nft_chain_nat", "nft_redir"):
        modules_of(name, folder, modules)
    program = harness.run("sh", "-c", "command -v nft").stdout.strip()
    libraries = [word for line in harness.run("ldd", program).stdout.splitlines() for word in line.split() if word.startswith("/")]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", dereference=True) as tar:
        tar.add(program, "nft/nft")
        for path in libraries:
            tar.add(path, f"nft/{os.path.basename(path)}")
        for path in modules:
            tar.add(path, f"nft/{path.name}")
    inside.sh("mkdir -p /tmp/big && mount -t tmpfs tmpfs /tmp/big && tar -x -C /tmp/big", stdin=archive.getvalue())
    for path in modules:
        inside.sh(f"insmod /tmp/big/nft/{path.name} || grep -q ^{path.stem.replace('-', '_')} /proc/modules")

    def load(text):
        inside.sh("cat >/tmp/big/rules; LD_LIBRARY_PATH=/tmp/big/nft /tmp/big/nft/ld-linux-x86-64.so.2 /tmp/big/nft/nft -f /tmp/big/rules",
                  stdin=("flush ruleset\n" + text).encode())
    yield load
    load("")


CHAIN = "table inet f {{ chain c {{ type filter hook {}; policy {}; {}; }}; }}"


@pytest.mark.parametrize("hook, policy, rules, port, words", [
    ("input priority 0", "accept", "icmp type echo-request counter drop", False, "inet f c handle 2"),
    ("input priority 0", "drop", "ct state established accept", False, "inet f c"),
    ("output priority 0", "accept", "drop", False, "inet f c handle 2"),
    ("prerouting priority -300", "accept", "ip saddr 192.168.0.0/16 drop", False, "inet f c handle 2"),
    ("input priority 0", "accept", f"tcp dport {PORT} drop", True, "inet f c handle 2"),
    ("input priority 0", "accept", f"tcp dport {PORT} reject with tcp reset", True, "inet f c handle 2"),
    ("input priority 0", "accept", f"tcp dport {{ {PORT}, 99 }} reject", True, "inet f c handle"),
], ids=["echo", "policy", "output", "prerouting", "port", "reset", "set"])
def test_firewall_by_its_rule(guest, nft, hook, policy, rules, port, words):
    nft(CHAIN.format(hook, policy, rules))
    answer = guest.doctor(*(["--guest-port", str(PORT)] if port else []))
    outside = None if port or hook.startswith("pre") else guest.doctor(agent=False)
    nft("")
    assert answer.ids == ["guest.firewall"] and answer.roots[0]["dies_at"] == "guest.firewall", answer
    said = [e for e in answer.roots[0]["evidence"] if e["source"] == "agent"]
    assert words in answer.roots[0]["title"] and said[0]["where"].startswith(words), answer
    assert answer.roots[0]["repair"]["safe"] is False and answer.roots[0]["repair"]["applied"] is False
    if "counter" in rules:
        assert any("its counter went from 0 to" in e["fact"] for e in said), answer
    if outside:  # from outside it may be either, and both are said
        assert outside.ids == ["guest.firewall"] and "no route back" in outside.roots[0]["title"], outside
        assert outside.roots[0]["confidence"] < 0.7 and "nft list ruleset" in outside.roots[0]["advice"], outside


def test_no_route_is_no_firewall(guest, nft):
    """Both look the same from outside. With rules that stop nothing, the route is named."""
    nft(CHAIN.format("input priority 0", "accept", "counter; tcp dport 99 drop"))
    guest.sh("ip route flush dev eth0; ip route add 192.168.0.2/32 dev eth0")
    outside = guest.doctor(agent=False, status=10)
    answer = guest.doctor("--repair", status=11)
    nft("")
    assert outside.ids == ["guest.firewall"] and "no route back" in outside.roots[0]["title"], outside
    assert answer.ids[0] == "guest.no-route", answer


def test_rules_that_stop_nothing_are_no_finding(guest, nft):
    nft(CHAIN.format("input priority 0", "accept", "counter; tcp dport 99 drop; ip saddr 10.0.0.0/8 drop"))
    answer = guest.doctor("--guest-port", str(PORT), status=0)
    nft("")
    assert answer.findings == [] and answer.end("filter")["guest"] == "3 rules, none stops them", answer


# ---- an honest guest in which something is otherwise than the agent can know ----

OTHER_MAC = "02:aa:bb:cc:dd:ee"
DIFFERENT = {  # what is done in it; and taken back; what both say; where their rows differ
    "answers for what it does not have":
        ("ip addr add 192.168.77.9/16 dev eth0; ip addr del {ip}/16 dev eth0; ip route add {ip}/32 dev lo; cd /proc/sys/net/ipv4; "
         "echo 1 >conf/eth0/proxy_arp; echo 0 >neigh/eth0/proxy_delay; echo 1 >ip_forward",
         "cd /proc/sys/net/ipv4; echo 0 >ip_forward; echo 0 >conf/eth0/proxy_arp; ip route del {ip}/32 dev lo; ip addr flush dev eth0; "
         "ip addr add {ip}/16 dev eth0; ip route add default via 192.168.0.1",
         "the guest says that it does not have {ip}; the host sees that it sends frames from {ip}", ["address", "way back"]),
    "another MAC": ("ip link set eth0 down; ip link set eth0 address " + OTHER_MAC + "; ip link set eth0 up; ip route add default via 192.168.0.1",
                    "ip link set eth0 down; ip link set eth0 address {mac}; ip link set eth0 up; ip route add default via 192.168.0.1",
                    f"the guest says that its card has MAC {OTHER_MAC}; the host sees that its record has " + "{mac}", ["MAC"]),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_both_say_something_else(guest, name):
    there, back, words = (text.format(ip=guest.ip, mac=guest.mac) for text in DIFFERENT[name][:3])
    guest.sh(there)
    try:
        answer, outside = guest.doctor(status=10), guest.doctor(agent=False, status=10)
    finally:
        guest.sh(back)
    (note,) = answer.notes("guest.contradiction")
    assert note["title"] == words, answer
    assert {e["source"] for e in note["evidence"]} == {"agent", "probe"}, note
    if name == "another MAC":  # it is stopped where it comes out of its TAP: as it must be, and the guest is to blame
        assert answer.ids == ["guest.mac-differs"] and answer.roots[0]["dies_at"] == "tap.ingress", answer
        assert OTHER_MAC in answer.roots[0]["title"] and guest.mac in answer.roots[0]["repair"]["plan"][0], answer
        assert outside.ids == ["guest.mac-differs"], outside
    else:
        assert answer.roots[0]["dies_at"].startswith("guest."), answer
    assert [row["what"] for row in answer.target["ends"] if row["agree"] is False] == DIFFERENT[name][3], answer.target["ends"]
    assert guest.doctor(status=0).findings == []


def test_a_port_that_nobody_in_it_listens_on(guest, nft):
    """Its own filter sends the connection elsewhere."""
    nft("table ip n { chain c { type nat hook prerouting priority -100; tcp dport 81 redirect to :" + str(PORT) + "; }; }")
    answer = guest.doctor("--guest-port", "81")
    nft("")
    (note,) = answer.notes("guest.contradiction")
    assert note["title"] == "the guest says that nobody listens on port 81; the host sees that a connection to it was accepted", answer
    assert answer.roots == [] and answer.status == 0, answer


def test_a_link_that_its_vmm_has_off(guest):
    """Nothing is wrong on the host, and nothing in the guest: by the guest's word for it, as the daemon has the monitor."""
    def set_link(up):
        guest.daemon.stop()
        folder = os.open(guest.daemon.state / "users" / guest.id, os.O_PATH)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(60)
            s.connect(f"/proc/self/fd/{folder}/qmp.sock")
            os.close(folder)
            with s.makefile("rw") as monitor:
                for line in ({"execute": "qmp_capabilities"}, {"execute": "set_link", "arguments": {"name": "net", "up": up}}):
                    monitor.write(json.dumps(line) + "\n")
                    monitor.flush()
                    while "return" not in (told := json.loads(monitor.readline())):
                        assert "error" not in told, told
        guest.daemon.start()
        harness.wait_for(lambda: "eth0" in guest.sh("ls /sys/class/net", check=False), 60, 0.3)
    set_link(False)
    try:
        answer = guest.doctor("--repair", status=10)
    finally:
        set_link(True)
    first = answer.roots[0]
    assert answer.ids == ["vmm.link-off"] and first["dies_at"] == "vmm" and first["repair"]["applied"] is False, answer
    assert any(e["source"] == "agent" and "has no carrier" in e["fact"] for e in first["evidence"]), answer
    assert answer.end("link")["agree"] is False, answer.target["ends"]
    harness.wait_for(lambda: guest.daemon.vm(guest.id)["reachable"], 60, 0.3)
    assert guest.doctor(status=0).findings == []


# ---- its service ----


def test_services(guest):
    answer = guest.doctor("--guest-port", "81", status=10)
    assert answer.ids == ["guest.service-down"] and "nobody listens on port 81" in json.dumps(answer.roots[0]["evidence"]), answer
    guest.sh("(httpd -f -p 127.0.0.1:82 -h /www >/dev/null 2>&1 &)")
    answer = guest.doctor("--guest-port", "82", status=10)
    guest.sh("kill $(pidof httpd | tr ' ' '\\n' | sort -n | tail -n 1)")
    assert answer.ids == ["guest.service-loopback-only"] and answer.roots[0]["dies_at"] == "guest.service", answer
    assert "loopback alone" in answer.end("service")["guest"]


SYSTEMCTL = """#!/bin/sh
# What the agent asks systemd: one unit, which is an httpd on port 6080.
case $1 in
show) state=inactive; for p in $(pidof httpd); do grep -q 6080 /proc/$p/cmdline && state=active; done
printf 'Id=websockify.service\\nLoadState=loaded\\nActiveState=%s\\nSubState=dead\\nResult=exit-code\\nUnitFileState=enabled\\nNRestarts=5\\n' $state ;;
restart) setsid httpd -f -p 6080 -h /www </dev/null >/dev/null 2>&1 & ;;
esac
"""


def test_a_unit_is_restarted():
    harness.guest_image()
    with harness.daemon(vm={"browser_boot_timeout": "600"}) as d:
        vm = d.create(type="browser")
        harness.wait_for(lambda: "agent-ready" in [e["event"] for e in d.events(vm["id"])], 90, 0.3)
        guest = Inside(d, d.vm(vm["id"]))
        guest.sh("cat >/bin/systemctl; chmod +x /bin/systemctl", stdin=SYSTEMCTL.encode())
        # Its init starts it again after a second: the loop that does so goes first.
        guest.sh("for p in $(pidof httpd); do grep -q 6080 /proc/$p/cmdline && kill -9 $(awk '/^PPid/{print $2}' /proc/$p/status) $p; done; true")
        harness.wait_for(lambda: 6080 not in [row["port"] for row in guest.agent("network")["listeners"]], 20, 0.5)
        answer = guest.doctor(status=10)
        assert answer.ids == ["guest.service-down"], answer
        assert answer.roots[0]["repair"] == {**answer.roots[0]["repair"], "safe": True, "plan": [
            f"mctl vm exec {guest.id} -- systemctl restart websockify.service"]}, answer
        assert any("websockify.service" == e["where"] and "inactive" in e["fact"] for e in answer.roots[0]["evidence"]), answer
        mended = guest.doctor("--repair", status=11)
        assert mended.ids == ["guest.service-down"] and mended.roots[0]["repair"]["proven"] is True, mended
        refused = guest.doctor("--undo", mended.roots[0]["repair"]["journal"])
        assert refused.status != 0 and "cannot be taken back" in refused.report["error"]["detail"], refused.report


# ---- an agent that cannot be believed ----

VM = "vm-69fac673-27a8-492f-8fe0-f9b604e6ab28"
WELL = {
    "links": [{"name": "lo", "index": 1, "up": True, "carrier": True, "mac": "00:00:00:00:00:00", "kind": ""},
              {"name": "eth0", "index": 2, "up": True, "carrier": True, "mac": "MAC", "mtu": 1500, "kind": "", "counters": {}}],
    "addresses": [{"link": "eth0", "address": "IP", "prefix": 16}],
    "routes": [{"family": 4, "to": "192.168.0.0", "prefix": 16, "via": "", "link": "eth0", "metric": 0, "type": "unicast", "table": 254},
               {"family": 4, "to": "default", "prefix": 0, "via": "192.168.0.1", "link": "eth0", "metric": 0, "type": "unicast", "table": 254}],
    "neighbours": [], "listeners": [{"protocol": "tcp", "address": "0.0.0.0", "port": 6080, "queue": 0, "pid": 7, "program": "web"}],
    "firewall": {"chains": [], "rules": [], "more": 0, "error": None}, "sysctls": {"net.ipv4.icmp_echo_ignore_all": 0},
}
LIES = {
    "link down": {"links": [{**WELL["links"][1], "up": False}]},
    "no address": {"addresses": []},
    "no route": {"routes": []},
    "drops all": {"firewall": {"chains": [{"family": "inet", "table": "f", "name": "in", "hook": 1, "priority": 0, "policy": "drop", "type": "filter"}],
                               "rules": [], "more": 0, "error": None}},
    "nobody listens": {"listeners": []},
}


class FakeDaemon:
    """Answers for one agent, over a unix socket, whatever it is told to."""

    def __init__(self, path):
        self.path, self.network, self.raw, self.delay, self.asked = str(path), {}, None, 0, []
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def address_string(self):
                return "unix"

            def log_message(self, *_):
                pass

            def answer(self, document, status=200):
                body = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            def do_GET(self):
                self.answer({"agent": {"state": "ready", "words": "ready: \x1b[31mred\x07", "started_ms": 1, "health": {"oom_kills": 0, "uptime_s": 9}}})

            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.asked.append(request["op"])
                time.sleep(fake.delay)
                self.answer(fake.raw if fake.raw is not None else {"ok": fake.network})

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

        self.server = Server(self.path, Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def liar(tmp_path):
    """A guest of the lab with a record, and an agent that says what the test lets it say."""
    with Lab() as lab:
        guest = lab.guest()
        state = tmp_path / "state"
        state.mkdir()
        with contextlib.closing(sqlite3.connect(state / "master-controller.db")) as db, db:
            db.execute("CREATE TABLE vm (id, user, type, state, ip INTEGER, mac BLOB, tap, bridge, vmm, pid INTEGER, pid_start INTEGER,"
                       " ended INTEGER, created_ms INTEGER)")
            db.execute("INSERT INTO vm VALUES (?, 'u1', 'browser', 'running', ?, ?, ?, 'br0', 'qemu', ?, 0, 0, 1)",
                       (VM, int.from_bytes(bytes(map(int, guest.address.split("."))), "big"), bytes.fromhex(guest.mac.replace(":", "")), guest.tap,
                        os.getpid()))
        daemon = FakeDaemon(tmp_path / "api.sock")
        well = json.loads(json.dumps(WELL).replace("MAC", guest.mac).replace("IP", guest.address))

        def say(**lies):
            lies = json.loads(json.dumps(lies).replace("MAC", guest.mac).replace("IP", guest.address))
            daemon.network = {**well, **lies}

        def ask(*args, json_out=True):
            done = harness.run(MCTL, *(["--json"] if json_out else []), "--socket", daemon.path, "doctor", "--netns", lab.name, "--bridge", "br0",
                               "--state-dir", state, "--vm", VM, *args, check=False, timeout=120,
                               env={**os.environ, "MC_DOCTOR_JOURNAL": str(tmp_path / "journal")})
            return Report(done.returncode, json.loads(done.stdout)) if json_out else done.stdout
        say()
        try:
            yield lab, guest, daemon, say, ask
        finally:
            daemon.close()


HOST_FAULTS = {
    "tap.down": lambda lab, guest: lab.ip("link", "set", guest.tap, "down"),
    "ebtables.drop": lambda lab, guest: lab.run("ebtables", "-A", "OUTPUT", "-o", guest.tap, "-j", "DROP"),
    "qdisc.drops": lambda lab, guest: lab.tc("qdisc", "replace", "dev", guest.tap, "root", "blackhole"),
    "nft.netdev-drop": lambda lab, guest: lab.nft(f"table netdev n {{ chain c {{ type filter hook ingress device {guest.tap} priority 0; drop; }}; }}"),
    "netfilter.input-drop": lambda lab, guest: lab.chain("inet", "f", "in", "type filter hook input priority 0", "iifname br0 drop"),
    "host.blackhole-route": lambda lab, guest: lab.ip("route", "add", "blackhole", f"{guest.address}/32"),
}


@pytest.mark.parametrize("fault", HOST_FAULTS)
def test_a_lie_makes_no_guest_fault_of_a_host_fault(liar, fault):
    lab, guest, daemon, say, ask = liar
    HOST_FAULTS[fault](lab, guest)
    lab.cold()
    honest = ask()
    assert honest.ids == [fault], honest
    for lie in (LIES["link down"], {**LIES["no address"], **LIES["no route"], **LIES["drops all"], **LIES["nobody listens"]}):
        say(**lie)
        lab.cold()
        answer = ask()
        assert answer.ids == [fault], (lie, answer)
    assert set(daemon.asked) <= {"network", "units"}, "a lie made it change something in the guest"


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_a_path_that_works(liar, lie):
    lab, guest, daemon, say, ask = liar
    say(**LIES[lie])
    answer = ask("--repair")
    assert answer.target["reachable"] is True, answer
    assert [i for i in answer.ids if i not in ("guest.no-default-route",)] == [], answer
    if lie in ("link down", "no address", "nobody listens"):
        contradictions = answer.notes("guest.contradiction")
        assert contradictions and "the host sees" in contradictions[0]["title"], answer
        assert {e["source"] for e in contradictions[0]["evidence"]} == {"agent", "probe"}, answer


def test_a_guest_that_says_all_is_well(liar):
    """The host sees that it is not: what the guest says does not heal it, and the two stand side by side."""
    lab, guest, daemon, say, ask = liar
    guest.ip("addr", "flush", "dev", "eth0")
    lab.cold()
    answer = ask()
    assert answer.status == 10 and answer.target["reachable"] is False, answer
    assert answer.notes("guest.contradiction"), answer
    assert answer.roots[0]["dies_at"].startswith("guest."), answer


def test_a_service_that_is_said_to_be_there(liar):
    lab, guest, daemon, say, ask = liar
    guest.run("nft", "-f", "-", stdin="table inet f { chain c { type filter hook input priority 0; tcp dport 6080 reject with tcp reset; }; }")
    lab.cold()
    answer = ask()
    assert answer.status == 10 and answer.roots[0]["dies_at"] in ("guest.service", "guest.firewall"), answer
    assert answer.notes("guest.contradiction"), answer


HOSTILE = {
    "no JSON": b"\xff\xfe{[",
    "a list": b"[]",
    "deep": b'{"ok":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "endless": b'{"ok":{"links":"' + b"x" * (3 << 20) + b'"}}',
    "odd types": json.dumps({"ok": {"links": 7, "addresses": {"a": []}, "routes": [[], 7, None], "firewall": "none", "listeners": [{"port": -1}]}}).encode(),
    "huge numbers": json.dumps({"ok": {
        "links": [{**WELL["links"][1], "index": 1 << 62, "mtu": -(1 << 62), "counters": {"rx_packets": (1 << 63) - 1, "tx_packets": 1e300}}],
        "addresses": [{"link": "eth0", "address": "192.168.0.2", "prefix": 1 << 40}], "sysctls": {"net.ipv4.conf.all.arp_ignore": -(1 << 63)},
        "listeners": [{"protocol": "tcp", "address": "0.0.0.0", "port": (1 << 63) - 1, "queue": 1e18, "pid": -(1 << 63), "program": "x" * 9000}],
        "firewall": {"chains": [{"hook": 1 << 50, "priority": 1 << 60}], "rules": [], "more": 1 << 62, "error": 5}}}).encode(),
    "many": json.dumps({"ok": {"addresses": [{"link": "eth0", "address": "10.0.0.1", "prefix": 8}] * 9000, "odd": {str(i): i for i in range(20000)}}}).encode(),
}


def test_anything_may_be_said(liar, tmp_path):
    lab, guest, daemon, say, ask = liar
    for name, raw in HOSTILE.items():
        daemon.raw = raw
        answer = ask("--save", str(tmp_path / "case"))
        assert answer.status == 0 and answer.roots == [], (name, answer)
        assert (tmp_path / "case").stat().st_size < 2 << 20, name
    daemon.raw = None
    say(links=[{**WELL["links"][1], "name": "e\x1b[31m\n\u202eth"}])
    text = ask("--explain", json_out=False)
    assert "\x1b" not in text and "\x07" not in text and "\\x1b" in text, text
    # One that hangs costs seconds, not for ever.
    daemon.delay = 30
    began = time.monotonic()
    answer = ask()
    assert answer.status == 0 and answer.target["agent"]["state"] == "silent", answer
    assert time.monotonic() - began < 25

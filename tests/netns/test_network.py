"""The network room against a real kernel, each test in network namespaces of its own (named nt-…).

Needs root, iproute2, nftables and the program network_tool; MC_BUILD says where it was built (default: build).
"""
import contextlib
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

HERE = pathlib.Path(__file__).resolve().parent
BUILD = pathlib.Path(os.environ.get("MC_BUILD", HERE.parent.parent / "build"))
TOOL = BUILD / "tests" / "netns" / "network_tool"

POOL = "192.168.0.1/16"
BRIDGE = "br0"
TABLES = "table bridge master_controller\ntable inet master_controller"
UID = 4000
counter = itertools.count()


def run(*args, check=True):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True)
    if check and done.returncode != 0:
        raise AssertionError(f"{args}: {done.stderr}")
    return done.stdout


def vm(n):
    """TAP and id of the nth VM of a test."""
    id = f"vm-{n:08x}-{n & 15:x}000-4000-8000-00000000000a"
    return "fc-vm-" + id[3:].replace("-", "")[:9], id


class Error(Exception):
    def __init__(self, code, detail, hint):
        super().__init__(f"{code}: {detail} ({hint})")
        self.code, self.detail, self.hint = code, detail, hint


class Tool:
    """One network_tool process."""

    def __init__(self, *prefix):
        self.process = subprocess.Popen(
            [*prefix, str(TOOL)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __call__(self, *words):
        self.process.stdin.write(" ".join(str(w) for w in words) + "\n")
        line = self.process.stdout.readline()
        assert line, f"{words}: network_tool died"
        kind, *rest = line.rstrip("\n").split("\t")
        if kind == "err":
            raise Error(*rest)
        return rest[0]

    def start(self, ns, bridge=BRIDGE, address=POOL, uplink="-", masquerade="yes"):
        return self("start", ns, bridge, address, uplink, masquerade)

    def taps(self):
        keys = ("name", "vm_id", "mac", "owner", "holder", "on_bridge", "up")
        return {t.split(",")[0]: dict(zip(keys, t.split(","))) for t in self("list").split()}

    def status(self):
        return dict(pair.split("=", 1) for pair in self("describe").split())

    def stop(self):
        self.process.stdin.close()
        code = self.process.wait(10)
        self.process.stdout.close()
        assert code == 0, "a leak, if this is a build with sanitizers"


class Space:
    """A network namespace, seen by commands that are not ours."""

    def __init__(self, name):
        self.name = name

    def ip(self, *args, check=True):
        return run("ip", "-n", self.name, *args, check=check)

    def json(self, *args):
        return json.loads(run("ip", "-n", self.name, "-d", "-j", *args) or "[]")

    def link(self, name):
        return self.json("link", "show", name)[0]

    def links(self):
        return {link["ifname"] for link in self.json("link", "show")}

    def addresses(self, name):
        found = self.json("-4", "address", "show", "dev", name)
        return [f'{a["local"]}/{a["prefixlen"]}' for a in found[0]["addr_info"]] if found else []

    def nft(self, *args):
        return self.run("nft", *args)

    def run(self, *args, check=True):
        return run("nsenter", f"--net=/run/netns/{self.name}", *args, check=check)

    def popen(self, *args, **kwargs):
        return subprocess.Popen(["nsenter", f"--net=/run/netns/{self.name}", *args], text=True, **kwargs)

    def forward(self):
        return self.run("cat", "/proc/sys/net/ipv4/ip_forward").strip()

    def picture(self):
        """All that a start may change, without what time changes by itself."""
        links = self.json("link", "show")
        for link in links:
            link.get("linkinfo", {}).pop("info_data", None)
            link.get("linkinfo", {}).pop("info_slave_data", None)
            link.pop("flags"), link.pop("operstate"), link.pop("linkmode", None)
        up = sorted(re.findall(r"^\d+: (\S+?)[@:].*<(?:\S*,)?UP[,>]", self.ip("link"), re.M))
        addresses = [(a["ifname"], a["addr_info"]) for a in self.json("-4", "address", "show")]
        for _, infos in addresses:
            for info in infos:
                info.pop("valid_life_time"), info.pop("preferred_life_time")
        routes = self.ip("-4", "route", "show", "table", "all").replace(" linkdown", "")
        return links, up, addresses, routes, self.nft("list", "ruleset"), self.forward()


def netns_names():
    """Ours alone: other tests may run on the machine."""
    names = {line.split()[0] for line in run("ip", "netns").splitlines() if line}
    return {n for n in names if n.startswith(f"nt-{os.getpid()}-")}


def netns_mounts():
    lines = pathlib.Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if f"/nt-{os.getpid()}-" in line]


@pytest.fixture
def tools():
    made = []

    def make(*prefix):
        made.append(Tool(*prefix))
        return made[-1]

    yield make
    for tool in made:
        if tool.process.poll() is None:
            tool.stop()


@pytest.fixture
def name():
    """A namespace's name that nobody has; whatever has it afterwards is removed."""
    chosen = f"nt-{os.getpid()}-{next(counter)}"
    yield chosen
    run("ip", "netns", "del", chosen, check=False)


@pytest.fixture
def space(name):
    """An existing namespace that is not the controller's."""
    run("ip", "netns", "add", name)
    space = Space(name)
    space.ip("link", "set", "lo", "up")
    return space


@pytest.fixture
def internet(space):
    """Another namespace behind the uplink wan0, which does not know the VMs' addresses: the host's next hop, and behind it,
    on its lo, an address of the internet."""
    other = Space(f"nt-{os.getpid()}-{next(counter)}")
    run("ip", "netns", "add", other.name)
    space.ip("link", "add", "wan0", "type", "veth", "peer", "name", "eth0", "netns", other.name)
    space.ip("address", "add", "203.0.113.2/24", "dev", "wan0")
    space.ip("link", "set", "wan0", "up")
    space.ip("route", "add", "default", "via", "203.0.113.1")
    other.ip("address", "add", "203.0.113.1/24", "dev", "eth0")
    other.ip("link", "set", "eth0", "up")
    other.ip("address", "add", "198.51.100.1/32", "dev", "lo")
    other.ip("link", "set", "lo", "up")
    yield other
    run("ip", "netns", "del", other.name)


@contextlib.contextmanager
def guest_namespace(space, address, port="g0", bridge=BRIDGE):
    """A guest with a whole network stack: a namespace whose eth0 is a port of the bridge."""
    guest = Space(f"nt-{os.getpid()}-{next(counter)}")
    run("ip", "netns", "add", guest.name)
    try:
        space.ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", guest.name)
        space.ip("link", "set", port, "master", bridge, "up")
        guest.ip("link", "set", "lo", "up")
        guest.ip("link", "set", "eth0", "up")
        guest.ip("address", "add", address, "dev", "eth0")
        guest.ip("route", "add", "default", "via", POOL.split("/")[0])
        yield guest
    finally:
        run("ip", "netns", "del", guest.name)


@contextlib.contextmanager
def held(space, tap, ip="192.168.0.9", mac="02:fc:00:00:00:09"):
    """A process that holds a TAP as a VMM does and answers ARP and ping (tap_guest.py)."""
    process = space.popen(sys.executable, HERE / "tap_guest.py", tap, ip, mac, stdout=subprocess.PIPE)
    try:
        line = process.stdout.readline()
        assert line.startswith("attached"), line
        process.header_size = int(line.split()[1])
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_until(condition, seconds=5):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def serve(space, port, text):
    """A TCP server that tells each client `text` and its address."""
    code = (
        "import socket,sys\n"
        f"s=socket.create_server(('', {port}))\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    c, a = s.accept()\n"
        f"    c.sendall(('{text} ' + a[0]).encode()); c.close()\n"
    )
    process = space.popen(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    return process


# ---- bridge

def test_start_makes_namespace_and_bridge(tools, name):
    tool = tools()
    tool.start(name)
    space = Space(name)
    bridge = space.link(BRIDGE)
    assert bridge["linkinfo"]["info_kind"] == "bridge"
    assert bridge["linkinfo"]["info_data"]["stp_state"] == 0
    assert bridge["ifalias"] == "master-controller"
    assert bridge["address"].startswith("02:fc:")
    assert "UP" in bridge["flags"]
    assert space.addresses(BRIDGE) == [POOL]
    assert "UP" in space.link("lo")["flags"], "the host could not reach its own bridge address"
    assert space.forward() == "0", "nothing is forwarded where there is no uplink"
    assert space.nft("list", "tables").strip() == TABLES, "VMs are kept apart with an uplink and without"
    status = tool.status()
    assert status["present"] == "1" and status["up"] == "1" and status["mac"] == bridge["address"]
    assert status["ports"] == "0/1023" and status["forward"] == "0" and status["masquerade"] == "0"


def test_bridge_mac_is_pinned_and_the_same_after_a_new_start(tools, name):
    tool = tools()
    tool.start(name)
    space = Space(name)
    mac = space.link(BRIDGE)["address"]
    space.ip("link", "add", "low", "address", "00:00:00:00:00:11", "type", "veth", "peer", "name", "low-peer")
    space.ip("link", "set", "low", "master", BRIDGE, "up")
    assert space.link(BRIDGE)["address"] == mac
    space.ip("link", "del", "low")
    assert space.link(BRIDGE)["address"] == mac
    tool("remove")
    assert name not in netns_names()
    again = tools()
    again.start(name)
    assert Space(name).link(BRIDGE)["address"] == mac


def test_a_bridge_that_lost_its_pin_is_pinned_again(tools, space):
    """Somebody made the bridge's MAC follow its ports: our mark is there, guests know the MAC that it has now."""
    space.ip("link", "add", BRIDGE, "type", "bridge")
    space.ip("link", "set", BRIDGE, "alias", "master-controller", "up")
    space.ip("address", "add", POOL, "dev", BRIDGE)
    space.ip("link", "add", "p0", "address", "06:00:00:00:00:11", "type", "veth", "peer", "name", "p1")
    space.ip("link", "set", "p0", "master", BRIDGE, "up")
    mac = space.link(BRIDGE)["address"]
    assert mac == "06:00:00:00:00:11"
    tools().start(space.name)
    assert space.link(BRIDGE)["address"] == mac
    space.ip("link", "add", "low", "address", "00:00:00:00:00:11", "type", "veth", "peer", "name", "low-peer")
    space.ip("link", "set", "low", "master", BRIDGE, "up")
    assert space.link(BRIDGE)["address"] == mac


def test_restart_keeps_a_held_tap(tools, name):
    first = tools()
    first.start(name)
    space = Space(name)
    tap, id = vm(1)
    first("create", tap, id, UID)
    with held(space, tap) as process:
        assert first("ping", "192.168.0.9") == "reply"
        index = space.link(tap)["ifindex"], space.link(BRIDGE)["ifindex"]
        first.process.kill()
        second = tools()
        second("know", tap, id, UID)
        second.start(name)
        assert (space.link(tap)["ifindex"], space.link(BRIDGE)["ifindex"]) == index
        assert space.link(tap)["master"] == BRIDGE
        assert process.poll() is None
        assert second("ping", "192.168.0.9") == "reply"
        assert second.taps()[tap]["holder"] == str(process.pid)
        second.start(name)  # and once more in the same process
        assert space.link(tap)["ifindex"] == index[0]


def test_start_mends_its_own_bridge(tools, name):
    tools().start(name)
    space = Space(name)
    space.ip("address", "flush", "dev", BRIDGE)
    space.ip("link", "set", BRIDGE, "down")
    tools().start(name)
    assert space.addresses(BRIDGE) == [POOL]
    assert "UP" in space.link(BRIDGE)["flags"]


def test_an_unmarked_bridge_left_by_a_crash_is_taken_over(tools, space):
    tools().start(space.name)
    mac = space.link(BRIDGE)["address"]
    space.ip("link", "del", BRIDGE)
    space.ip("link", "add", BRIDGE, "address", mac, "type", "bridge")
    tools().start(space.name)
    assert space.link(BRIDGE)["ifalias"] == "master-controller"


def test_address_changes_only_without_ports(tools, name):
    tool = tools()
    tool.start(name)
    space = Space(name)
    space.ip("address", "add", "192.168.0.77/16", "dev", BRIDGE)
    tools().start(name, address="10.9.0.1/24")
    assert space.addresses(BRIDGE) == ["10.9.0.1/24"]
    tap, id = vm(1)
    tool("create", tap, id, UID)
    before = space.picture()
    with pytest.raises(Error) as e:
        tools().start(name)
    assert e.value.code == "network.address-in-use"
    assert "10.9.0.1/24" in e.value.detail and POOL in e.value.detail and tap in e.value.detail
    assert "10.9.0.1/24" in e.value.hint
    assert space.picture() == before


# ---- what is refused, without a change

FOREIGN = {
    "bridge": (["link", "add", BRIDGE, "type", "bridge"], "not made by us"),
    "dummy": (["link", "add", BRIDGE, "type", "veth", "peer", "name", "x"], "not a bridge"),
    "altname": (["link", "property", "add", "dev", "lo", "altname", BRIDGE], "another name of device lo"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_bridge(tools, space, kind):
    command, words = FOREIGN[kind]
    space.ip(*command)
    before = space.picture()
    with pytest.raises(Error) as e:
        tools().start(space.name)
    assert e.value.code == "network.bridge-foreign"
    assert BRIDGE in e.value.detail and words in e.value.detail and "another name" in e.value.hint
    assert space.picture() == before


def dummy(space, *address):
    space.ip("link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
    for a in address:
        space.ip("address", "add", a, "dev", "lan0")


OVERLAPS = {
    "inside the pool": lambda s: (dummy(s, "192.168.5.1/24"), s.ip("link", "set", "lan0", "up")),
    "around the pool": lambda s: (dummy(s, "192.0.2.1/24"), s.ip("link", "set", "lan0", "up"),
                                  s.ip("route", "add", "192.160.0.0/11", "dev", "lan0")),
    "address of a device that is down": lambda s: dummy(s, "192.168.5.1/8"),
    "single address": lambda s: (dummy(s), s.ip("link", "set", "lan0", "up"),
                                 s.ip("address", "add", "192.168.7.7/32", "dev", "lan0")),
    "blackhole": lambda s: s.ip("route", "add", "blackhole", "192.168.9.0/24"),
    "other table": lambda s: (dummy(s), s.ip("link", "set", "lan0", "up"),
                              s.ip("route", "add", "192.168.9.0/24", "dev", "lan0", "table", "100")),
}


@pytest.mark.parametrize("how", OVERLAPS)
def test_pool_overlap(tools, space, how):
    OVERLAPS[how](space)
    before = space.picture()
    with pytest.raises(Error) as e:
        tools().start(space.name)
    assert e.value.code == "network.pool-overlap"
    assert "192.168.0.0/16" in e.value.detail
    assert "lan0" in e.value.detail or how == "blackhole"
    assert "10.20.0.1/16" in e.value.hint
    assert space.picture() == before


def test_default_routes_do_not_overlap(tools, space):
    dummy(space, "203.0.113.5/24")
    space.ip("link", "set", "lan0", "up")
    for to in ("default", "128.0.0.0/1", "0.0.0.0/1"):
        space.ip("route", "add", to, "via", "203.0.113.1", "onlink", "dev", "lan0")
    tools().start(space.name)
    assert space.addresses(BRIDGE) == [POOL]


def test_uplink_missing(tools, space, name):
    before = space.picture()
    with pytest.raises(Error) as e:
        tools().start(space.name, uplink="wan7")
    assert e.value.code == "network.uplink-missing"
    assert "wan7" in e.value.detail and space.name in e.value.detail
    assert space.picture() == before


def test_uplink_in_a_namespace_that_does_not_exist(tools, name):
    with pytest.raises(Error) as e:
        tools().start(name, uplink="wan0")
    assert e.value.code == "network.uplink-missing" and name in e.value.detail
    assert name not in netns_names()


@pytest.mark.parametrize("word,value", [("namespace", "../x"), ("namespace", ".x"),
                                        ("bridge", "a/b"), ("bridge", 'b"r'), ("bridge", "br%d"), ("bridge", "br*"),
                                        ("uplink", "w;x"), ("uplink", ".."), ("bridge", "\x1b[2J")])
def test_bad_names(tools, name, word, value):
    arguments = {"ns": name, "bridge": BRIDGE, "uplink": "-"}
    arguments["ns" if word == "namespace" else word] = value
    before = netns_names()
    with pytest.raises(Error) as e:
        tools().start(arguments["ns"], bridge=arguments["bridge"], uplink=arguments["uplink"])
    assert e.value.code == "network.bad-name"
    assert word in e.value.detail and e.value.hint and "\x1b" not in e.value.detail
    assert netns_names() - before == set()


def test_no_tun_device(tools, name):
    hide = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    for action, words in (("mount -t tmpfs none /dev/net", "is missing"),
                          ("mount --bind /dev/null /dev/net/tun", "not the TUN device")):
        with pytest.raises(Error) as e:
            tools(*hide, f'{action} && exec "$0"').start(name)
        assert e.value.code == "network.no-tun"
        assert "/dev/net/tun" in e.value.detail and words in e.value.detail
        assert "modprobe tun" in e.value.hint and "mknod" in e.value.hint
    assert name not in netns_names()


@pytest.mark.parametrize("drop,namespace,lacks", [("net_admin", False, "CAP_NET_ADMIN"),
                                                  ("sys_admin", True, "CAP_SYS_ADMIN")])
def test_no_permission(tools, name, drop, namespace, lacks):
    with pytest.raises(Error) as e:
        tools("setpriv", f"--bounding-set=-{drop}").start(name if namespace else "-")
    assert e.value.code == "network.no-permission" and lacks in e.value.detail and e.value.hint == "run as root"
    assert name not in netns_names()


def test_something_else_under_the_namespace_name(tools, name):
    run("ip", "netns", "add", name)  # so that the directory is there
    path = pathlib.Path("/run/netns") / (name + "-f")
    path.write_text("not empty")
    try:
        with pytest.raises(Error) as e:
            tools().start(path.name)
        assert e.value.code == "netns.not-a-namespace" and str(path) in e.value.detail
        assert path.read_text() == "not empty"
    finally:
        path.unlink()


# ---- egress

def test_masquerade(tools, space, internet):
    tool = tools()
    tool.start(space.name, uplink="wan0")
    assert space.forward() == "1"
    status = tool.status()
    assert status["forward"] == "1" and status["masquerade"] == "1" and status["uplink"] == "wan0"
    server = serve(internet, 8080, "hello")
    try:
        with guest_namespace(space, "192.168.3.4/16") as guest:
            ask = "import socket;s=socket.create_connection(('198.51.100.1',8080),3);print(s.recv(99).decode())"
            assert guest.run(sys.executable, "-c", ask).strip() == "hello 203.0.113.2"
            assert guest.run("ping", "-c1", "-W3", "198.51.100.1")
            # Answers come in, strangers do not.
            internet.ip("route", "add", "192.168.0.0/16", "via", "203.0.113.2")
            assert "1 packets transmitted, 0 received" in internet.run("ping", "-c1", "-W1", "192.168.3.4", check=False)
            assert "1 received" in internet.run("ping", "-c1", "-W3", "203.0.113.2")
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    assert space.nft("list", "tables").strip() == TABLES
    assert "comment \"master-controller" in space.nft("list", "ruleset")


def test_table_is_replaced_and_others_stay(tools, space, internet):
    space.nft("add", "table", "inet", "theirs")
    space.nft("add", "chain", "inet", "theirs", "c")
    tools().start(space.name, uplink="wan0")
    first = space.nft("list", "ruleset")
    space.nft("add", "rule", "inet", "master_controller", "postrouting", "counter", "drop")
    tools().start(space.name, uplink="wan0")
    assert space.nft("list", "ruleset") == first
    tool = tools()
    tool.start(space.name, uplink="wan0", masquerade="no")
    assert space.nft("list", "tables").strip() == "table inet theirs\n" + TABLES
    assert "masquerade" not in space.nft("list", "ruleset")
    assert space.forward() == "1" and tool.status()["masquerade"] == "0"


def test_rules_cannot_be_replaced(tools, space, internet):
    """Another program's nft owns a table of our name: the last step fails, and all before it is taken back."""
    owner = space.popen("nft", "-i", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        owner.stdin.write("add table inet master_controller { flags owner; }\n")
        owner.stdin.flush()
        wait_until(lambda: "master_controller" in space.nft("list", "tables"))
        before = space.picture()
        with pytest.raises(Error) as e:
            tools().start(space.name, uplink="wan0")
        assert e.value.code == "nft.refused" and "master_controller" in e.value.detail
        assert space.picture() == before
    finally:
        owner.kill()
        owner.wait()
        owner.stdin.close()


# ---- undo and crashes

def count_changes(tools, name, **how):
    tool = tools()
    before = int(tool("changes"))
    tool.start(name, **how)
    return int(tool("changes")) - before


@pytest.mark.parametrize("uplink", ["-", "wan0"])
def test_every_failing_step_is_undone(tools, space, internet, uplink):
    before = space.picture()
    steps = count_changes(tools, space.name, uplink=uplink)
    assert steps >= 4
    for step in range(1, steps + 1):
        space.ip("link", "del", BRIDGE)
        space.run("nft", "flush", "ruleset")
        space.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
        assert space.picture()[1:] == before[1:]
        start = space.picture()
        tool = tools()
        tool("fail", step)
        with pytest.raises(Error) as e:
            tool.start(space.name, uplink=uplink)
        assert "injected" in e.value.detail or "Input/output error" in e.value.detail
        assert space.picture() == start, f"step {step}"
        tool.start(space.name, uplink=uplink)
    assert space.addresses(BRIDGE) == [POOL]


def test_every_failing_step_with_a_namespace_to_make(tools, name):
    steps = count_changes(tools, name)
    tools_used = tools()
    for step in range(1, steps + 1):
        run("ip", "netns", "del", name)
        names, mounts = netns_names(), netns_mounts()
        tools_used("fail", step)
        with pytest.raises(Error):
            tools_used.start(name)
        assert netns_names() == names, f"step {step}"
        assert not os.path.exists(f"/run/netns/{name}")
        assert netns_mounts() == mounts
        tools_used.start(name)
    assert Space(name).addresses(BRIDGE) == [POOL]


def test_failing_takeover_is_undone(tools, name):
    """An own bridge, down, with an old address: after a failure it is as it was, the address too."""
    tools().start(name, address="10.9.0.1/24")
    space = Space(name)
    space.ip("link", "set", BRIDGE, "down")
    start = space.picture()
    steps = count_changes(tools, name)
    for step in range(1, steps + 1):
        tools().start(name, address="10.9.0.1/24")
        space.ip("link", "set", BRIDGE, "down")
        assert space.picture() == start
        tool = tools()
        tool("fail", step)
        with pytest.raises(Error):
            tool.start(name)
        assert space.picture() == start, f"step {step}"


def test_killed_at_every_step(tools, name):
    steps = count_changes(tools, name)
    for step in range(1, steps + 1):
        run("ip", "netns", "del", name, check=False)
        tool = tools()
        tool("die", step)
        with pytest.raises(AssertionError):
            tool.start(name)
        assert tool.process.wait(5) == -signal.SIGKILL
        tool.process.stdin.close()
        after = tools()
        after.start(name)
        space = Space(name)
        assert space.addresses(BRIDGE) == [POOL] and space.link(BRIDGE)["ifalias"] == "master-controller"
        after("remove")
        assert name not in netns_names(), f"killed at step {step}, the namespace was not known as ours afterwards"


# ---- TAPs

def test_tap_attributes(tools, name):
    tool = tools()
    tool.start(name)
    space = Space(name)
    tap, id = vm(0x69FAC673)
    assert tap == "fc-vm-69fac6733"
    tool("create", tap, id, UID)
    link = space.link(tap)
    assert link["ifalias"] == id and link["altnames"] == [id]
    assert link["master"] == BRIDGE and "UP" in link["flags"]
    assert link["address"].startswith("fe:fc:") and link["address"] != space.link(BRIDGE)["address"]
    assert link["mtu"] == space.link(BRIDGE)["mtu"]
    data = link["linkinfo"]["info_data"]
    assert data["type"] == "tap" and data["persist"] and data["vnet_hdr"] and not data["pi"]
    assert not data["multi_queue"] and data["user"] in (UID, str(UID))
    assert run("nsenter", f"--net=/run/netns/{name}", "cat", f"/proc/sys/net/ipv6/conf/{tap}/disable_ipv6").strip() == "1"
    assert tool.taps()[tap] == {"name": tap, "vm_id": id, "mac": link["address"], "owner": str(UID), "holder": "0",
                                "on_bridge": "1", "up": "1"}
    with held(space, tap) as process:
        assert process.header_size == 12
        wait_until(lambda: space.link(tap)["operstate"] == "UP")
        assert space.json("-6", "address", "show", "dev", tap) in ([], [{}])
        assert tool.taps()[tap]["holder"] == str(process.pid)


def test_tap_open_sets_the_header_again(tools, name):
    """Somebody left the TAP with a header of 10 bytes: the next holder must find 12."""
    tool = tools()
    tool.start(name)
    space = Space(name)
    tap, id = vm(1)
    tool("create", tap, id, UID)
    code = ("import fcntl,os,struct\n"
            "f=os.open('/dev/net/tun',os.O_RDWR)\n"
            f"fcntl.ioctl(f,0x400454CA,struct.pack('16sH22x',b'{tap}',0x5002))\n"
            "fcntl.ioctl(f,0x400454D8,struct.pack('i',10))\n"
            "print(struct.unpack('i',fcntl.ioctl(f,0x800454D7,struct.pack('i',0)))[0])\n")
    assert space.run(sys.executable, "-c", code).strip() == "10"
    fd = tool("open", tap)
    assert space.link(tap)["operstate"] == "UP"
    tool("close", fd)
    with held(space, tap) as process:
        assert process.header_size == 12


def test_a_path_through_a_tap(tools, name):
    tool = tools()
    tool.start(name)
    space = Space(name)
    tap, id = vm(1)
    tool("create", tap, id, UID)
    with held(space, tap):
        assert tool("ping", "192.168.0.9") == "reply"
        assert tool("ping", "192.168.0.10") == "silence"
    tool("forget", "192.168.0.9")
    wait_until(lambda: not [n for n in space.json("neighbour", "show", "192.168.0.9") if n.get("lladdr")])
    tool("forget", "192.168.0.9")  # nothing known: no error


def test_whose_mac_the_bridge_knows(tools, name):
    tool = tools()
    tool.start(name)
    space = Space(name)
    tap, id = vm(1)
    tool("create", tap, id, UID)
    learned, entered, nobodys = "02:fc:00:00:00:09", "02:fc:00:00:00:0a", "02:fc:00:00:00:0b"
    assert tool("mac-used", learned) == "0"
    with held(space, tap):
        assert tool("ping", "192.168.0.9") == "reply"
        assert tool("mac-used", learned) == "1"
    run("bridge", "-n", name, "fdb", "add", entered, "dev", tap, "master", "static")
    for mac in (entered, space.link(tap)["address"], space.link(BRIDGE)["address"]):
        assert tool("mac-used", mac) == "1", mac
    assert tool("mac-used", nobodys) == "0"
    tool("take", tap, id)
    assert tool("mac-used", learned) == tool("mac-used", entered) == "0", "they go with the port"
    space.ip("link", "del", BRIDGE)
    assert tool("mac-used", learned) == "0"


def test_connect(tools, name):
    tool = tools()
    tool.start(name)
    space = Space(name)
    with guest_namespace(space, "192.168.3.4/16") as guest:
        server = serve(guest, 6080, "x")
        try:
            assert tool("connect", "192.168.3.4", 6080) == "connected"
            assert tool("connect", "192.168.3.4", 6081) == "Connection refused"
            assert tool("ping", "192.168.3.4") == "reply"
        finally:
            server.kill()
            server.wait()
            server.stdout.close()


def test_vm_traffic_never_follows_the_default_route(tools, space, internet):
    """The bridge has lost its address, so the pool's only route is the default one, and somebody out there has the
    VM's address and port."""
    tool = tools()
    tool.start(space.name, uplink="wan0")
    internet.ip("address", "add", "192.168.3.4/32", "dev", "eth0")
    server = serve(internet, 6080, "stranger")
    try:
        space.ip("address", "flush", "dev", BRIDGE)
        assert "via 203.0.113.1" in space.ip("route", "get", "192.168.3.4")
        assert tool("connect", "192.168.3.4", 6080) != "connected"
        assert tool("ping", "192.168.3.4") == "silence"
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    space.ip("link", "del", BRIDGE)
    with pytest.raises(Error) as e:
        tool("connect", "192.168.3.4", 6080)
    assert e.value.code == "network.bridge-missing"


def test_name_collisions(tools, name):
    tool = tools()
    tool.start(name)
    space = Space(name)
    tap, id = vm(1)
    other = vm(2)[1]
    tool("create", tap, id, UID)
    before = space.picture()
    with pytest.raises(Error) as e:
        tool("create", tap, other, UID)
    assert e.value.code == "network.tap-exists" and tap in e.value.detail
    with pytest.raises(Error) as e:
        tool("create", vm(3)[0], id, UID)  # the alternative name is taken
    assert e.value.code == "network.tap-exists" and id in e.value.detail
    assert space.picture() == before, "the other VM's TAP was touched, or a half-made one is left"
    with pytest.raises(Error) as e:
        tool("take", tap, other)
    assert e.value.code == "network.tap-foreign" and id in e.value.detail
    space.ip("link", "add", vm(4)[0], "type", "veth", "peer", "name", "x")
    for command in (("create", *vm(4), UID), ("take", *vm(4))):
        with pytest.raises(Error) as e:
            tool(*command)
        assert e.value.code in ("network.tap-exists", "network.tap-foreign")
    assert tap in space.links() and vm(4)[0] in space.links()


def test_a_tap_that_was_renamed_is_removed(tools, name):
    tool = tools()
    tool.start(name)
    space = Space(name)
    tap, id = vm(1)
    tool("create", tap, id, UID)
    space.ip("link", "set", tap, "down")
    space.ip("link", "set", tap, "name", "renamed")
    space.ip("tuntap", "add", "theirs", "mode", "tap")
    space.ip("link", "property", "add", "dev", "theirs", "altname", vm(2)[1])
    tool("take", tap, id)
    tool("take", *vm(2))
    assert "renamed" not in space.links() and "theirs" in space.links()


@pytest.mark.parametrize("tap,id", [("fc-vm-%d", vm(1)[1]), ("eth0", vm(1)[1]), ("fc-vm-0123456789", vm(1)[1]),
                                    ("fc-vm-1", "vm-1"), ("fc-vm-a/b", vm(1)[1])])
def test_bad_tap_names(tools, name, tap, id):
    tool = tools()
    tool.start(name)
    before = Space(name).links()
    for command in (("create", tap, id, UID), ("take", tap, id)):
        with pytest.raises(Error) as e:
            tool(*command)
        assert e.value.code == "network.bad-name"
    assert Space(name).links() == before


def test_a_held_tap_is_not_removed(tools, name):
    tool = tools()
    tool.start(name)
    space = Space(name)
    tap, id = vm(1)
    tool("create", tap, id, UID)
    with held(space, tap) as process:
        for code, command in (("network.tap-held", ("take", tap, id)), ("network.tap-held", ("open", tap)),
                              ("network.in-use", ("remove",))):
            with pytest.raises(Error) as e:
                tool(*command)
            assert e.value.code == code and str(process.pid) in e.value.detail and tap in e.value.detail
        assert tool("ping", "192.168.0.9") == "reply", "a refused removal has done harm"
        assert space.addresses(BRIDGE) == [POOL]
    wait_until(lambda: tool.taps()[tap]["holder"] == "0")
    tool("take", tap, id)
    assert tap not in space.links()
    tool("take", tap, id)  # gone already: no error
    with pytest.raises(Error) as e:
        tool("open", tap)
    assert e.value.code == "network.tap-missing"
    assert tap not in space.links(), "opening made a TAP"


def test_a_holder_in_another_namespace_is_somebody_elses(tools, name, space):
    mine, theirs = f"{name}-x", space
    tool, other = tools(), tools()
    try:
        tool.start(mine)
        other.start(theirs.name)
        tap, id = vm(1)
        tool("create", tap, id, UID)
        other("create", tap, id, UID)
        with held(theirs, tap) as process:
            assert other.taps()[tap]["holder"] == str(process.pid)
            assert tool.taps()[tap]["holder"] == "0"
            tool("take", tap, id)
            assert tap in theirs.links() and tap not in Space(mine).links()
    finally:
        run("ip", "netns", "del", mine, check=False)


def test_own_descriptor_does_not_keep_a_tap(tools, name):
    tool = tools()
    tool.start(name)
    tap, id = vm(1)
    tool("create", tap, id, UID)
    tool("open", tap)
    tool("take", tap, id)
    assert tap not in Space(name).links()


def test_only_the_owner_attaches(tools, name):
    tool = tools()
    tool.start(name)
    space = Space(name)
    tap, id = vm(1)
    tool("create", tap, id, UID)
    device = os.stat("/dev/net/tun")
    code = ("import fcntl,os,struct,sys\n"
            "f=os.open('/dev/net/tun',os.O_RDWR)\n"
            "os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))\n"
            f"fcntl.ioctl(f,0x400454CA,struct.pack('16sH22x',b'{tap}',0x5002))\n")
    assert device
    space.run(sys.executable, "-c", code, UID)
    with pytest.raises(AssertionError, match="Operation not permitted"):
        space.run(sys.executable, "-c", code, UID + 1)


def test_every_failing_step_of_an_attach_leaves_no_tap(tools, name):
    tool = tools()
    tool.start(name)
    space = Space(name)
    tap, id = vm(1)
    before = int(tool("changes"))
    tool("create", tap, id, UID)
    steps = int(tool("changes")) - before
    assert steps >= 6
    tool("take", tap, id)
    empty = space.picture()
    other_ways = 0
    for step in range(1, steps + 1):
        tool("fail", step)
        try:
            tool("create", tap, id, UID)
            # Only IPv6 is taken from it in another way, where /proc/sys cannot be written to.
            assert space.link(tap)["inet6_addr_gen_mode"] == "none"
            tool("take", tap, id)
            other_ways += 1
        except Error as e:
            assert tap in e.detail
        assert space.picture() == empty, f"step {step}"
        killed = tools()
        killed.start(name)
        killed("die", step)
        with pytest.raises(AssertionError):
            killed("create", tap, id, UID)
        killed.process.wait(5)
        killed.process.stdin.close()
        # What it left in the firewall lets nobody in and goes with the next start; a TAP is never left.
        wait_until(lambda: space.picture()[:4] == empty[:4])
        tools().start(name)
        assert space.picture() == empty
    assert other_ways == 1


def test_the_bridge_is_gone(tools, name):
    tool = tools()
    tool.start(name)
    space = Space(name)
    space.ip("link", "del", BRIDGE)
    tap, id = vm(1)
    with pytest.raises(Error) as e:
        tool("create", tap, id, UID)
    assert e.value.code == "network.bridge-missing" and BRIDGE in e.value.detail
    assert tap not in space.links()
    assert tool.status()["index"] == "0"


def test_the_list_is_ours_alone(tools, name):
    tool = tools()
    tool.start(name)
    space = Space(name)
    for n in (1, 2):
        tool("create", *vm(n), UID)
    space.ip("link", "set", vm(2)[0], "nomaster")
    space.ip("tuntap", "add", "fc-vm-old", "mode", "tap")
    space.ip("link", "set", "fc-vm-old", "master", BRIDGE)
    space.ip("tuntap", "add", "fc-vm-away", "mode", "tap")  # on no bridge, without an id: whose is it?
    space.ip("tuntap", "add", "theirs", "mode", "tap")
    space.ip("link", "set", "theirs", "master", BRIDGE, "alias", "a\x1bb")
    space.ip("tuntap", "add", "fc-vm-tun", "mode", "tun")
    taps = tool.taps()
    assert set(taps) == {vm(1)[0], vm(2)[0], "fc-vm-old"}
    assert taps["fc-vm-old"]["vm_id"] == "" and taps["fc-vm-old"]["owner"] == str(2**32 - 1)
    assert taps[vm(2)[0]]["on_bridge"] == "0"


def test_a_hundred_taps(tools, name):
    tool = tools()
    tool.start(name)
    space = Space(name)
    for n in range(100):
        tool("create", *vm(n << 4), UID)
    taps = tool.taps()
    assert len(taps) == 100 and all(t["on_bridge"] == "1" and t["up"] == "1" for t in taps.values())
    assert len({t["mac"] for t in taps.values()}) == 100
    assert tool.status()["ports"] == "100/1023"
    assert space.link(BRIDGE)["address"] == tool.status()["mac"]
    for n in range(0, 100, 2):
        tool("take", *vm(n << 4))
    assert set(tool.taps()) == {vm(n << 4)[0] for n in range(1, 100, 2)}
    tool("remove")
    assert name not in netns_names()


def test_a_full_bridge(tools, name):
    """1,023 ports are there already. They are veth pairs of another kind than ours, made by one batch."""
    tool = tools()
    tool.start(name)
    space = Space(name)
    batch = "".join(f"link add p{n} type veth peer name q{n}\nlink set p{n} master {BRIDGE}\n" for n in range(512))
    batch += "".join(f"link set q{n} master {BRIDGE}\n" for n in range(511))
    subprocess.run(["ip", "-n", name, "-batch", "-"], input=batch, text=True, check=True)
    tap, id = vm(1)
    with pytest.raises(Error) as e:
        tool("create", tap, id, UID)
    assert e.value.code == "network.bridge-full" and "1023" in e.value.detail and BRIDGE in e.value.detail
    assert tap not in space.links()
    assert tool.status()["ports"] == "1023/1023"


def test_room_is_known_before_anything_is_made(tools, name):
    """However many of the ports are others': some 400 here."""
    tool = tools()
    tool.start(name)
    space = Space(name)
    batch = "".join(f"link add p{n} type veth peer name q{n}\nlink set p{n} master {BRIDGE}\n" for n in range(212))
    batch += "".join(f"link set q{n} master {BRIDGE}\n" for n in range(211))
    subprocess.run(["ip", "-n", name, "-batch", "-"], input=batch, text=True, check=True)
    before = space.links()
    assert tool("room", 599) == "0"
    with pytest.raises(Error) as e:
        tool("room", 600)
    assert e.value.code == "network.bridge-full" and "600 by VMs, 423 by others" in e.value.detail and e.value.hint
    space.ip("link", "del", "p7")
    assert tool("room", 600) == "0" and space.links() < before
    # What an ended VM has left takes a port too, and a VM's own TAP is not counted twice.
    tap, id = vm(1)
    tool("create", tap, id, UID)
    assert tool("room", 601) == "0"
    with pytest.raises(Error):
        tool("room", 602)


# ---- where and beside whom it runs

def test_the_hosts_own_namespace_needs_only_net_admin(tools, space):
    """An empty [network] namespace: nothing is entered, so CAP_SYS_ADMIN is not needed."""
    tool = tools("nsenter", f"--net=/run/netns/{space.name}", "setpriv", "--bounding-set=-sys_admin")
    before = space.picture()
    tool.start("-")
    assert space.addresses(BRIDGE) == [POOL] and space.link("lo").get("ifalias") is None
    tap, id = vm(1)
    tool("create", tap, id, UID)
    with held(space, tap) as process:
        assert tool("ping", "192.168.0.9") == "reply"
        assert tool.taps()[tap]["holder"] == str(process.pid)
    wait_until(lambda: tool.taps()[tap]["holder"] == "0")
    tool("remove")
    assert space.picture() == before
    assert space.name in netns_names()


def test_lists_are_whole_while_others_change_things(tools, space):
    """Dumps are interrupted by what two other controllers make and remove: each list still has every TAP that was
    there all the time, once."""
    tool, busy = tools(), [tools(), tools()]
    tool.start(space.name)
    for n in range(60):
        tool("create", *vm(n << 4), UID)
    for i, other in enumerate(busy):
        other.start(space.name, bridge=f"other{i}", address=f"10.{i}.0.1/16")
        other.process.stdin.write("".join("create {0} {1} {2}\ntake {0} {1}\n".format(*vm(0x100000 + 0x1000 * i), UID)
                                          for _ in range(40)))
        other.process.stdin.flush()
    for _ in range(40):
        names = [t.split(",")[0] for t in tool("list").split()]
        assert len(names) == len(set(names))
        assert {vm(n << 4)[0] for n in range(60)} <= set(names)
    for other in busy:
        assert [other.process.stdout.readline() for _ in range(80)] == ["ok\t0\n"] * 80


@pytest.mark.parametrize("limit", [5, 7, 9, 12, 16])
def test_few_descriptors(tools, space, internet, limit):
    """libnftables would end the process."""
    before = space.picture()
    tool = tools("prlimit", f"--nofile={limit}")
    with pytest.raises(Error) as e:
        tool.start(space.name, uplink="wan0")
    assert "Too many open files" in e.value.detail
    assert space.picture() == before
    assert tool.process.poll() is None


# ---- the end

def test_remove_leaves_nothing(tools, space, internet):
    before = space.picture(), netns_names()
    tool = tools()
    tool.start(space.name, uplink="wan0")
    for n in range(3):
        tool("create", *vm(n), UID)
    tool("remove")
    after = space.picture(), netns_names()
    # ip_forward stays: others may rely on it by now (network.h).
    assert after[0][-1] == "1" and before[0][-1] == "0"
    assert (after[0][:-1], after[1]) == (before[0][:-1], before[1])


def test_remove_takes_the_namespace_that_was_made(tools, name):
    """In a mount namespace of its own, so that /run/netns has no other user: its mount goes too."""
    private = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    count = "$(grep -c netns /proc/self/mountinfo)"
    script = f'mount -t tmpfs none /run && mkdir /run/netns && n={count} && "$0" && echo "$(ls -A /run/netns)|$(({count} - n))"'
    tool = tools(*private, script)
    tool.start(name)
    tool("create", *vm(1), UID)
    tool("remove")
    tool.process.stdin.close()
    assert tool.process.stdout.readline() == "|0\n"
    assert tool.process.wait(10) == 0


def test_remove_spares_what_is_not_ours(tools, space):
    tool = tools()
    tool.start(space.name)
    space.ip("tuntap", "add", "theirs", "mode", "tap")
    space.ip("link", "set", "theirs", "master", BRIDGE)
    space.ip("link", "add", "br1", "type", "bridge")
    tool("create", *vm(1), UID)
    space.ip("link", "set", vm(1)[0], "master", "br1")  # as another controller's
    with held(space, "theirs"):
        with pytest.raises(Error) as e:
            tool("remove")
        assert e.value.code == "network.in-use" and "theirs" in e.value.detail
    wait_until(lambda: not space.link("theirs")["operstate"] == "UP")
    tool("remove")
    assert space.links() == {"lo", "theirs", "br1", vm(1)[0]}
    assert space.name in netns_names(), "a namespace that we did not make"


# ---- what it costs

def test_attach_is_much_cheaper_than_commands(tools, name, record_property, capsys):
    tool = tools()
    tool.start(name)
    space = Space(name)
    count = 50
    p50, p99, release50, release99 = (float(x) for x in tool("bench", count).split())
    times = []
    for n in range(20):
        tap, id = vm(n)
        begin = time.monotonic()
        space.ip("tuntap", "add", tap, "mode", "tap", "vnet_hdr", "user", UID)
        space.ip("link", "set", tap, "address", f"fe:fc:00:00:00:{n:02x}", "alias", id, "master", BRIDGE, "up")
        space.ip("link", "property", "add", "dev", tap, "altname", id)
        times.append((time.monotonic() - begin) * 1000)
    commands = sorted(times)[len(times) // 2]
    with capsys.disabled():
        print(f"\nNIC attach: p50 {p50:.3f} ms, p99 {p99:.3f} ms; ip commands {commands:.2f} ms "
              f"({commands / p50:.0f} times); remove p50 {release50:.1f} ms")
    assert p50 * 2 < commands, "far from the aim of 20 times, even for a busy machine"

"""A host with a bridge, TAPs and VMs, in network namespaces of its own, to break and to let the doctor look at.

    with Lab() as lab:
        vm = lab.guest()                      # a live guest behind a TAP, 192.168.0.2
        lab.ip("link", "set", vm.tap, "down")     # break something
        assert not lab.ping(vm.ip)            # an own check that it is broken
        answer = lab.doctor(vm)

The namespaces are dl-PID-N-host (bridge br0, TAPs), …-net (the internet behind the uplink) and …-g1, …-g2 (guests,
each held to its TAP by the program wire). What a dead test left is removed when the next one starts. Nothing is ever
done outside of them. MC_BUILD_DIR says where wire and bpf_attach were built, MCTL where the doctor is (default: that
build's).
"""
import contextlib
import ctypes
import fcntl
import itertools
import json
import os
import pathlib
import random
import select
import signal
import socket
import struct
import subprocess
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
BUILD = pathlib.Path(os.environ.get("MC_BUILD_DIR", HERE.parent.parent / "build"))
MCTL = pathlib.Path(os.environ.get("MCTL", BUILD / "src" / "cli" / "mctl"))
WIRE = BUILD / "tests" / "doctor" / "wire"
BPF_ATTACH = BUILD / "tests" / "doctor" / "bpf_attach"
NOISE = BUILD / "tests" / "doctor" / "noise.so"

GATEWAY, POOL = "192.168.0.1", "192.168.0.1/16"
UPLINK, UPLINK_GATEWAY, INTERNET = "203.0.113.2", "203.0.113.1", "198.51.100.1"
PORT = 6080
BRIDGE_MAC = "02:fc:00:00:00:01"
ALIVE_S, DEAD_S = 1.5, 0.35  # how long a good path may need, and a dead one is waited for

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
numbers = itertools.count()


def run(*args, check=True, stdin=None, env=None):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, input=stdin, env=env, errors="replace")
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, args))}: {done.returncode} {done.stderr or done.stdout}")
    return done.stdout


def sweep():
    """Removes namespaces of test runs that are no more."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/run/netns"):
            kind, _, rest = name.partition("-")
            pid = rest.split("-")[0]
            if kind == "dl" and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
                subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def inside(netns, work):
    """Calls work() in a thread that has entered the namespace, returns what it returned."""
    result = []

    def enter():
        try:
            with open(f"/run/netns/{netns}") as space:
                if libc.setns(space.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            result.append((work(), None))
        except BaseException as problem:
            result.append((None, problem))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    value, problem = result[0]
    if problem:
        raise problem
    return value


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data if len(data) % 2 == 0 else data[:-1]))
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Space:
    """A network namespace, and checks of paths from it that share nothing with the doctor."""

    def __init__(self, name):
        self.name = name
        self.sequence = itertools.count(1)

    def ip(self, *args, check=True):
        return run("ip", "-n", self.name, *args, check=check)

    def batch(self, text, tool="ip"):
        """Several commands of ip(8) or bridge(8) for the price of one process."""
        run(tool, "-n", self.name, "-batch", "-", stdin=text)

    def run(self, *args, check=True, stdin=None):
        return run("nsenter", f"--net=/run/netns/{self.name}", *args, check=check, stdin=stdin)

    def bridge(self, *args):
        return run("bridge", "-n", self.name, *args)

    def tc(self, *args, check=True):
        return run("tc", "-n", self.name, *args, check=check)

    def nft(self, text):
        return self.run("nft", "-f", "-", stdin=text)

    def sysctl(self, key, value=None):
        path = "/proc/sys/" + key

        def access():
            with open(path, "r" if value is None else "w") as file:
                return file.read().strip() if value is None else file.write(str(value))

        return inside(self.name, access)

    def link(self, name):
        return json.loads(self.ip("-d", "-j", "link", "show", name))[0]

    def settle(self, name, state, timeout=3):
        """Waits until the kernel's own worker has set a link's operational state."""
        until = time.monotonic() + timeout
        while self.link(name)["operstate"] != state:
            assert time.monotonic() < until, f"{name} never was {state}"
            time.sleep(0.02)

    def links(self):
        return [link["ifname"] for link in json.loads(self.ip("-j", "link", "show"))]

    def chain(self, family, table, chain, hook, *rules, policy="accept"):
        """A base chain with rules in a table of its own; the handles of the rules."""
        self.nft("\n".join([f"add table {family} {table}", f"add chain {family} {table} {chain} {{ {hook}; policy {policy}; }}"]
                          + [f"add rule {family} {table} {chain} {rule}" for rule in rules]))
        return self.handles(family, table, chain)

    def handles(self, family, table, chain):
        listing = self.run("nft", "-a", "list", "chain", family, table, chain)
        return [line.rpartition("# handle ")[2].strip() for line in listing.splitlines()
                if "# handle" in line and not line.strip().startswith(("table", "chain"))]

    def socket(self, *args):
        return inside(self.name, lambda: socket.socket(*args))

    def ping(self, ip, timeout=ALIVE_S, size=56, df=False):
        """Whether an echo comes back. size: bytes of payload."""
        # An id of its own, as each ping(8) has: the kernel's table of connections remembers how the last one was treated.
        me, sequence = random.getrandbits(16), next(self.sequence) & 0xFFFF
        until = time.monotonic() + timeout
        with self.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as s:
            s.setsockopt(socket.IPPROTO_IP, 10, 2 if df else 0)  # IP_MTU_DISCOVER: IP_PMTUDISC_DO, DONT
            head = struct.pack("!BBHHH", 8, 0, 0, me, sequence)
            body = b"x" * size
            head = head[:2] + struct.pack("!H", checksum(head + body)) + head[4:]
            while (left := until - time.monotonic()) > 0:
                try:
                    s.sendto(head + body, (ip, 0))
                except OSError:
                    return False
                s.settimeout(min(left, 0.3))
                with contextlib.suppress(TimeoutError, OSError):
                    while time.monotonic() < until:
                        answer = s.recv(65536)
                        at = (answer[0] & 15) * 4
                        kind, _, _, who, which = struct.unpack("!BBHHH", answer[at : at + 8])
                        if (kind, who, which) == (0, me, sequence):
                            return True
        return False

    def tcp(self, ip, port=PORT, timeout=ALIVE_S):
        """"open", "refused" or "dead"."""
        with self.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
            s.settimeout(timeout)
            try:
                s.connect((ip, port))
                return "open"
            except ConnectionRefusedError:
                return "refused"
            except OSError:
                return "dead"

    def udp(self, ip, port=PORT, size=16, timeout=ALIVE_S):
        with self.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(timeout)
            with contextlib.suppress(OSError):
                s.sendto(b"u" * size, (ip, port))
                return len(s.recv(65536)) == size
        return False

    def arp(self, device, ip, source, timeout=ALIVE_S, everything=False):
        """The MACs that say they have this address (the first one only, but for everything=True)."""
        found = set()
        with self.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as s:
            try:
                s.bind((device, 0x0806))
                mac = s.getsockname()[4]
                who = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac, socket.inet_aton(source), b"\0" * 6,
                                  socket.inet_aton(ip))
                s.send(b"\xff" * 6 + mac + b"\x08\x06" + who)
            except OSError:
                return found
            until = time.monotonic() + timeout
            while (left := until - time.monotonic()) > 0 and select.select([s], [], [], left)[0]:
                frame = s.recv(2048)
                if frame[20:22] == b"\x00\x02" and frame[28:32] == socket.inet_aton(ip):
                    found.add(frame[22:28].hex(":"))
                    if not everything:
                        break
        return found


class Guest(Space):
    """A VM: its TAP on the host, its kernel in a namespace, its VMM a process. Not yet started."""

    def __init__(self, lab, number, ip, tap, mac, **options):
        super().__init__(f"{lab.prefix}-g{number}")
        self.lab, self.number, self.tap, self.mac = lab, number, tap, mac
        self.ip_prefix = options.pop("prefix", 16)
        self.address = ip
        self.gateway = options.pop("gateway", GATEWAY)
        self.service = options.pop("service", True)
        self.arguments = options.pop("arguments", [])  # on the VMM's command line
        self.options = options
        self.process = None

    @property
    def pid(self):
        return self.process.pid

    def start(self):
        """Starts the VMM; the error it met in words, or None."""
        options = [f"{key}={value}" for key, value in {"mac": self.mac, **self.options}.items()]
        self.process = subprocess.Popen([WIRE, self.lab.name, self.name, self.tap, *options, *self.arguments], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, bufsize=1)
        answer = self.process.stdout.readline().strip()
        return None if answer.startswith("ready") else answer or "no answer"

    def boot(self):
        """What init would do in the guest."""
        lines = ["link set lo up", "link set eth0 up"]
        if self.address:
            lines.append(f"address add {self.address}/{self.ip_prefix} dev eth0")
        if self.address and self.gateway:
            lines.append(f"route add default via {self.gateway}")
        # A guest whose gateway is outside its network boots, too: the kernel refuses the route, init goes on.
        run("ip", "-n", self.name, "-force", "-batch", "-", stdin="\n".join(lines), check=False)
        if self.service:
            self("serve", PORT)

    def __call__(self, *words):
        """A command of wire.c."""
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        answer = self.process.stdout.readline().strip()
        assert answer == "ok", f"wire: {words}: {answer}"

    def kill(self, how=signal.SIGKILL):
        self.process.send_signal(how)
        self.process.wait(5)

    def frames(self, key="tx"):
        """The TAP's counter: tx is what the VMM read, rx what it wrote."""
        return json.loads(self.lab.ip("-s", "-j", "link", "show", self.tap))[0]["stats64"][key]["packets"]


class Doctor:
    """What `mctl --json doctor` said."""

    def __init__(self, status, out, err, seconds, target):
        self.status, self.out, self.err, self.seconds, self.tap = status, out, err, seconds, target
        try:
            self.json = json.loads(out)
        except ValueError:
            self.json = {}

    @property
    def target(self):
        for target in self.json.get("targets", []):
            if target["tap"] == self.tap:
                return target
        return {"findings": [], "hops": []}

    @property
    def findings(self):
        """Of all targets: those of the one asked for first."""
        rest = [f for t in self.json.get("targets", []) if t["tap"] != self.tap for f in t["findings"]]
        return self.target["findings"] + rest

    @property
    def first(self):
        return (self.findings or [{"id": None, "dies_at": None, "role": None}])[0]

    @property
    def roots(self):
        return [f for f in self.findings if f["role"] == "root-cause"]

    def verdicts(self):
        return {hop["hop"]: hop["verdict"] for hop in self.target["hops"]}

    def __repr__(self):
        told = "; ".join(f"{f['role']} {f['id']} at {f['dies_at']}: {f['title']}" for f in self.findings) or "no finding"
        told = f"{self.json['error']}" if "error" in self.json else told
        return f"exit {self.status} in {self.seconds:.2f} s: {told}" + (f" [{self.err.strip()[-300:]}]" if self.err else "")


class Lab(Space):
    def __init__(self, address=POOL, uplink=False, masquerade=True, pinned=True, bridge_netfilter=None, forward=1):
        number = next(numbers)
        self.prefix = f"dl-{os.getpid()}-{number}"
        self.names = (os.getpid() & 0xFFFFF) << 16 | (number & 0xFF) << 8  # of TAPs: as unique as the namespaces
        super().__init__(f"{self.prefix}-host")
        self.address, self.uplink, self.masquerade = address, uplink, masquerade
        self.pinned, self.bridge_netfilter, self.ip_forward = pinned, bridge_netfilter, forward
        self.guests, self.children = [], []
        self.net = Space(f"{self.prefix}-net")
        self.extra = []

    def __enter__(self):
        try:
            self.build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def build(self):
        sweep()
        names = [self.name] + ([self.net.name] if self.uplink else [])
        run("ip", "-batch", "-", stdin="\n".join(f"netns add {name}" for name in names))
        mac = f"address {BRIDGE_MAC}" if self.pinned else ""
        lines = ["link set lo up", f"link add br0 {mac} type bridge", "link set br0 up"]
        if self.address:
            lines.append(f"address add {self.address} dev br0")
        if self.uplink:
            lines += [
                f"link add wan0 type veth peer name peer0 netns {self.net.name}",
                f"address add {UPLINK}/24 dev wan0", "link set wan0 up", f"route add default via {UPLINK_GATEWAY}",
            ]
            self.net.up = f"link set lo up\naddress add {INTERNET}/32 dev lo\naddress add {UPLINK_GATEWAY}/24 dev peer0\nlink set peer0 up"
        self.batch("\n".join(lines))
        if self.uplink:
            self.net.batch(self.net.up)
            self.net.sysctl("net/ipv4/icmp_ratelimit", 0)
            if self.masquerade:
                self.chain("ip", "nat", "post", "type nat hook postrouting priority 100",
                           'ip saddr 192.168.0.0/16 oifname "wan0" masquerade')
        self.sysctl("net/ipv4/ip_forward", self.ip_forward)
        if self.bridge_netfilter is not None:
            self.sysctl("net/bridge/bridge-nf-call-iptables", self.bridge_netfilter)

    def __exit__(self, *_):
        for process in [guest.process for guest in self.guests if guest.process] + self.children:
            with contextlib.suppress(ProcessLookupError, ValueError):
                process.kill()
            with contextlib.suppress(Exception):
                process.wait(5)
            for stream in (process.stdin, process.stdout):
                if stream:
                    stream.close()
        names = [g.name for g in self.guests] + [self.net.name, self.name] + self.extra
        there = set(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else set()
        gone = [f"netns del {name}" for name in names if name in there]
        if gone:
            subprocess.run(["ip", "-force", "-batch", "-"], input="\n".join(gone), text=True, capture_output=True, check=False)

    def space(self, kind):
        """One more namespace, without anything in it."""
        name = f"{self.prefix}-{kind}"
        run("ip", "netns", "add", name)
        self.extra.append(name)
        return Space(name)

    def tap(self, name, master="br0", up=True, kind=""):
        """A TAP as the incident's controller made them: persistent, without a vnet header until somebody opens it."""
        lines = [["tuntap", "add", "dev", name, "mode", "tap", *kind.split()]]
        lines += [["link", "set", "dev", name, "master", master]] if master else []
        lines += [["link", "set", "dev", name, "up"]] if up else []
        if name.replace("-", "").isalnum():
            self.batch("\n".join(" ".join(line) for line in lines))
        else:  # not for a batch's own quoting
            for line in lines:
                self.ip(*line)

    def open_tap(self, name):
        """A TAP that is not persistent: it goes with the descriptor that is returned."""
        def attach():
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x0002 | 0x1000))  # TUNSETIFF: IFF_TAP, IFF_NO_PI
            return fd

        return inside(self.name, attach)

    def guest(self, ip=None, tap=None, mac=None, start=True, boot=True, tap_kind="", **options):
        """One more VM. Its number n gives address 192.168.0.(n+1), TAP and MAC."""
        n = len(self.guests) + 1
        if ip is None:
            ip = f"192.168.0.{n + 1}"
        guest = Guest(self, n, ip, tap or f"fc-vm-{self.names + n:09x}", mac or f"02:fc:f9:aa:5d:{n:02x}", **options)
        self.guests.append(guest)
        run("ip", "netns", "add", guest.name)
        if tap_kind is not None:
            self.tap(guest.tap, kind=tap_kind)
        if start:
            problem = guest.start()
            assert problem is None, problem
            if boot:
                guest.boot()
        return guest

    def warm(self, *guests):
        """Both neighbour caches and the FDB know everybody."""
        for guest in guests or self.guests:
            assert self.ping(guest.address), f"{guest.tap} was not reachable before the fault"
        return guests

    def cold(self, *guests):
        """Forgets all that was learned: neighbours on both sides, and the FDB."""
        run("ip", "-n", self.name, "-force", "-batch", "-", stdin="neigh flush all\nlink set br0 type bridge fdb_flush", check=False)
        for guest in guests or self.guests:
            if guest.process:
                guest.ip("neigh", "flush", "all", check=False)

    def bpf(self, name, result, device, where):
        return self.run(BPF_ATTACH, name, result, device, where).strip()

    def reachable(self, guest, port=PORT, timeout=ALIVE_S):
        """As INTERFACE.md has it: ARP and TCP. Both caches are emptied first, so that only a path that works counts."""
        self.cold(guest)
        return bool(self.arp("br0", guest.address, GATEWAY, timeout)) and self.tcp(guest.address, port, timeout) == "open"

    def doctor(self, guest=None, *args, port=PORT, mac=True, ip=True, env=None, bridge="br0", json_out=True, timeout=60):
        """`mctl doctor` on this host; guest None: on all of its TAPs."""
        command = [MCTL] + (["--json"] if json_out else []) + ["doctor", "--netns", self.name, "--bridge", bridge]
        if guest:
            command += ["--tap", guest.tap]
            command += ["--guest-ip", guest.address] if ip and guest.address else []
            command += ["--guest-mac", guest.mac] if mac else []
            command += ["--guest-port", port] if port else []
        begin = time.monotonic()
        done = subprocess.run([str(c) for c in [*command, *args]], capture_output=True, text=True, errors="replace",
                              env={**os.environ, **(env or {})}, timeout=timeout)
        return Doctor(done.returncode, done.stdout, done.stderr, time.monotonic() - begin, guest and guest.tap)

"""The doctor: from the command to the verdict. One target on a host with 26 TAPs, well and broken, with and without the
trace; a sweep of a host with 1,000 guests; memory; what --watch costs while nothing happens, and how soon it tells. The peer is peer-doctor.sh: the same facts by the usual tools, in
the same state of the same host, without a verdict. Each answer of ours is checked: a fast wrong one fails the run."""

import contextlib
import json
import os
import select
import subprocess
import sys
import time

import harness
from table import row

sys.path.insert(0, str(harness.HERE / "tests/doctor"))
os.environ.setdefault("MC_BUILD_DIR", str(harness.BUILD))
import lab  # noqa: E402

HIVE = harness.BUILD / "tests/bench/hive"
PEER = harness.HERE / "tests/bench/peer-doctor.sh"
PEER_NAME = "ip, bridge, nft, tc, tcpdump, ping"
RUNS, PEER_RUNS = 20, 5
SWEEPS, PEER_SWEEPS, SWEPT = 5, 2, 1000
IDLE_S, CHANGES = 10, 5
FORWARD_DELAY_S = 15  # of a bridge: so long after a port came up the kernel tells of it once more


class Hive:
    """count guests of hive.c on the lab's bridge, known to its neighbour table and FDB."""

    def __init__(self, host, count):
        self.host, self.count = host, count
        self.process = subprocess.Popen([HIVE, host.name, "fc-vm-be", str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        host.children.append(self.process)
        answer = self.process.stdout.readline().strip()
        assert answer == "ready", answer
        host.batch("\n".join(f"link set fc-vm-be{n:03x} master br0 up" for n in range(count)))
        # Permanent: these do not count against gc_thresh3, which all namespaces of the machine share.
        host.batch("\n".join(f"neigh replace {self.address(n)} lladdr 02:fc:be:e0:{n >> 8:02x}:{n & 255:02x} dev br0 nud permanent"
                             for n in range(count)))
        self.speak()

    @staticmethod
    def address(n):
        return f"192.168.{n // 250 + 1}.{n % 250 + 2}"

    def speak(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == "ok"


def measured(command):
    """Exit status, standard output, milliseconds, and the most memory that it held (VmHWM, read while it runs)."""
    peak = 0
    began = time.perf_counter()
    with subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as p:
        reader = os.fdopen(os.dup(p.stdout.fileno()), "rb")
        os.set_blocking(reader.fileno(), False)
        said = b""
        while True:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for line in open(f"/proc/{p.pid}/status"):
                    if line.startswith("VmHWM"):
                        peak = max(peak, int(line.split()[1]) * 1024)
            said += reader.read() or b""
            if p.poll() is not None:
                break
            time.sleep(0.003)
        took = (time.perf_counter() - began) * 1000
        os.set_blocking(reader.fileno(), True)
        said += reader.read()
        reader.close()
    return p.returncode, said, took, peak


def doctor(host, expected, *words):
    """Runs it, sees that the first root cause is the expected one (None: healthy); milliseconds and bytes."""
    status, said, took, peak = measured([lab.MCTL, "--json", "doctor", "--netns", host.name, "--bridge", "br0", *words])
    roots = [f["id"] for t in json.loads(said)["targets"] for f in t["findings"] if f["role"] == "root-cause"]
    assert (status, roots[:1]) == ((10, [expected]) if expected else (0, [])), (status, roots, said[-500:])
    return took, peak


def peer(host, *words):
    began = time.perf_counter()
    host.run(PEER, "br0", *words, check=False)
    return (time.perf_counter() - began) * 1000


def one_target(host, vm, what, expected, memory):
    host.cold()
    theirs = [peer(host, vm.tap, vm.address) for _ in range(PEER_RUNS)]
    for name, more in (("with trace", []), ("without trace", ["--no-trace"])):
        taken = []
        for _ in range(RUNS):
            host.cold()
            took, peak = doctor(host, expected, "--tap", vm.tap, "--guest-ip", vm.address, "--guest-port", lab.PORT, *more)
            taken.append(took)
            memory.append(peak)
        yield row(f"one of 26 TAPs, {what}, {name}", "ms", taken, theirs, PEER_NAME)


class Watch:
    """A `mctl doctor --watch` on one VM."""

    def __init__(self, host, vm):
        self.process = subprocess.Popen([lab.MCTL, "--json", "doctor", "--netns", host.name, "--bridge", "br0", "--tap", vm.tap, "--guest-ip",
                                         vm.address, "--guest-port", str(lab.PORT), "--watch"], stdout=subprocess.PIPE)
        host.children.append(self.process)
        self.tells('"healthy": true')

    def tells(self, word, seconds=30):
        """Milliseconds until it has said this."""
        began, text = time.perf_counter(), b""
        while word.encode() not in text:
            left = began + seconds - time.perf_counter()
            assert left > 0 and select.select([self.process.stdout], [], [], left)[0], f"never told: {word}"
            text += os.read(self.process.stdout.fileno(), 1 << 16)
        return (time.perf_counter() - began) * 1000

    def ran(self):
        """Milliseconds of CPU until now. Source: Documentation/scheduler/sched-stats.rst."""
        tasks = f"/proc/{self.process.pid}/task"
        return sum(int(open(f"{tasks}/{task}/schedstat").read().split()[0]) for task in os.listdir(tasks)) / 1e6

    def rests(self):
        """Waits until it does nothing any more."""
        before = None
        while before != (now := self.ran()):
            before = now
            time.sleep(3)

    def holds(self):
        return next(int(line.split()[1]) * 1024 for line in open(f"/proc/{self.process.pid}/status") if line.startswith("VmRSS"))


def watching(host, vm):
    watch = Watch(host, vm)
    time.sleep(FORWARD_DELAY_S)
    watch.rests()
    before = watch.ran()
    time.sleep(IDLE_S)
    yield row(f"--watch, CPU in {IDLE_S} s of rest", "ms", [watch.ran() - before])
    yield row("--watch, memory at rest", "bytes", [watch.holds()])
    news = []
    for _ in range(CHANGES):
        host.ip("link", "set", vm.tap, "down")
        news.append(watch.tells('"tap.down"'))
        host.ip("link", "set", vm.tap, "up")
        watch.tells('"healthy": true')
        watch.rests()
    yield row("--watch, from a change to its finding", "ms", news)
    watch.process.kill()


def rows():
    memory = []
    with lab.Lab(uplink=True) as host:
        vm = host.guest()
        Hive(host, 25)
        host.warm()
        yield from one_target(host, vm, "healthy", None, memory)
        yield from watching(host, vm)
        host.run("ebtables", "-A", "OUTPUT", "-o", vm.tap, "-j", "DROP")
        yield from one_target(host, vm, "ebtables.drop", "ebtables.drop", memory)
        host.run("ebtables", "-F")
        vm.kill()
        yield from one_target(host, vm, "tap.no-holder", "tap.no-holder", memory)
    yield row("memory, one of 26 TAPs", "bytes", memory)
    with lab.Lab(uplink=True) as host:
        Hive(host, SWEPT).speak()
        theirs = [peer(host, "-") for _ in range(PEER_SWEEPS)]
        taken = [doctor(host, None) for _ in range(SWEEPS)]
        yield row(f"sweep of {SWEPT} guests", "ms", [t for t, _ in taken], theirs, PEER_NAME)
        yield row(f"sweep of {SWEPT} guests, memory", "bytes", [m for _, m in taken])
        taken = [doctor(host, None, "--no-probe") for _ in range(SWEEPS)]
        yield row(f"state of {SWEPT} guests, nothing asked", "ms", [t for t, _ in taken])

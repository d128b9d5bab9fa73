"""A real daemon for a test: its own state folder, network namespace, port and socket, and a check that nothing of it is
left. Every JSON answer that passes through here is held against doc/openapi.yaml."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import http.client

import jsonschema
import yaml

HERE = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ.get("MC_BUILD", HERE / "build"))
DAEMON = BUILD / "src/daemon/master-controller"
MCTL = BUILD / "src/cli/mctl"
IDLE_VMM = BUILD / "tests/vm/idle-vmm"
TEST_GUEST = HERE / ".cache/test-guest"
FC_DOUBLE = HERE / "tests/vm/fc_double"
# What a daemon's VMM is where a test does not say: a fixture of tests/vm sets it, so that its tests run over each.
default_vmm = "qemu"
_numbers = iter(range(1, 10**6))


def run(*argv, check=True, **kwargs):
    return subprocess.run([str(a) for a in argv], check=check, text=True, capture_output=True, **kwargs)


def wait_for(what, timeout_s=10.0, every_s=0.02):
    """The first true value of what(), or an AssertionError."""
    end = time.monotonic() + timeout_s
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < end, f"not within {timeout_s} s: {getattr(what, '__doc__', None) or what}"
        time.sleep(every_s)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# ---- the API's description ----

SPEC = yaml.safe_load((HERE / "doc/openapi.yaml").read_text())


def spec_operation(method, path):
    """The operation of the description that serves this path, or None. Literal segments win."""
    parts = path.split("?")[0].split("/")
    found = []
    for template, item in SPEC["paths"].items():
        pieces = template.split("/")
        if len(pieces) != len(parts):
            continue
        if all(p.startswith("{") or p == q for p, q in zip(pieces, parts)) and method.lower() in item:
            found.append((sum(p.startswith("{") for p in pieces), item[method.lower()]))
    return min(found, key=lambda f: f[0])[1] if found else None


def check_answer(method, path, status, content_type, body):
    """Fails unless the description has this answer, and it has the described shape."""
    if path.startswith("/static/"):
        return
    operation = spec_operation(method, path)
    if operation is None:
        assert status in (400, 401, 404, 405, 501), f"{method} {path} -> {status} is not described"
        return
    described = operation["responses"].get(str(status)) or operation["responses"].get("default")
    assert described, f"{method} {path}: status {status} is not described"
    if "$ref" in described:
        described = SPEC["components"]["responses"][described["$ref"].rsplit("/", 1)[1]]
    media = described.get("content", {}).get(content_type.split(";")[0].strip()) if content_type else None
    if body:
        assert media is not None, f"{method} {path} -> {status}: {content_type} is not described"
    if media and "json" in content_type and "schema" in media:
        schema = dict(media["schema"], components=SPEC["components"])
        jsonschema.Draft202012Validator(schema).validate(json.loads(body))


@contextlib.contextmanager
def built_once(what):
    """One of the processes that run tests builds it: the others wait, and find it then."""
    (HERE / ".cache").mkdir(exist_ok=True)
    with open(HERE / f".cache/.{what}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def guest_image(word=""):
    """The tiny test guest's image; with a word, one that misbehaves so (tests/vm/guest/init). Built when it is not there."""
    out = HERE / ".cache" / ("test-guest" + (f"-{word}" if word else ""))
    agent = BUILD / ("tests/vm/flood-agent" if word == "flood" else "guest/mc-agent")
    more = ["--chromium", BUILD / "tests/vm/fake-chromium"] if word == "login" else []
    with built_once("test-guest"):
        run(HERE / "tests/vm/guest/build", "--init", BUILD / "guest/guest-init", "--agent", agent, "--out", out, "--cache",
            HERE / ".cache/kernel", *(["--test", word] if word else []), *more)
    return out


def image_without_agent(folder):
    """The tiny guest's image in this folder, declared to have no agent: a VM of it whose desktop answers is running."""
    build = (TEST_GUEST / "current").resolve()
    shutil.copytree(build, folder / build.name)
    manifest = folder / build.name / "manifest.json"
    manifest.write_text(json.dumps({k: v for k, v in json.loads(manifest.read_text()).items() if k != "agent"}))
    (folder / "current").symlink_to(build.name)
    return folder


def golden_image(kind, screen=None):
    """The folder of the real images, with a good one of that type in it: minutes when there is none. It is where ./run of
    tests/e2e has its own, so that whoever comes second finds it. One with another screen has a folder of its own."""
    base = HERE / ".cache" / (f"screen-{screen}" if screen else "e2e-state/snapshots/base")
    words = [HERE / "guest/build-image", "--init", BUILD / "guest/guest-init", "--type", kind, "--out", base,
             *(["--screen", screen] if screen else [])]
    with built_once("golden"):
        if run(*words, "--check", check=False).returncode != 0:
            run(*words, "--verify", MCTL, timeout=1800)
    return base


def memory_of(pid):
    """What a core file would hold, and gcore would write."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            begin, end = (int(x, 16) for x in line.split()[0].split("-"))
            if line.split()[1][0] == "r" and "[v" not in line:
                with contextlib.suppress(OSError, ValueError, OverflowError):
                    memory.seek(begin)
                    yield line.strip(), memory.read(end - begin)


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.unix_path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.unix_path)


class Mctl:
    def __init__(self, process):
        self.status, self.out, self.err = process.returncode, process.stdout, process.stderr

    @property
    def json(self):
        return json.loads(self.out)


class Daemon:
    def __init__(self, image=None, **config):
        self.name = f"mt{os.getpid()}x{next(_numbers)}"
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir="/var/tmp"))
        # VMMs run as uids of their own and execute the idle VMM from here.
        self.dir.chmod(0o711)
        self.state = self.dir / "state"
        self.socket = self.dir / "api.sock"
        self.token_file = self.dir / "admin.token"
        self.port = free_port()
        self.config = {
            "network": {"namespace": self.name},
            "api": {"listen": f"127.0.0.1:{self.port}", "socket": self.socket, "admin_token_file": self.token_file,
                    "web_directory": HERE / "web", "requests_per_second": 100000},
            "session": {"providers": self.dir / "providers.d", "vault_key_file": self.dir / "vault.key"},
            "vm": {"probe_interval": "0.1", "reach_interval": "0.5"},
            "image": {"directory": image or TEST_GUEST},
            "warm": {"templates": "no"},  # what boots beside a test takes its time
        }
        for section, keys in config.items():
            self.config.setdefault(section, {}).update(keys)
        if default_vmm == "firecracker":
            self.use_firecracker()
        self.process = None
        self.log = self.dir / "log"

    def use_firecracker(self, binaries=None, **faults):
        """The doubles of Firecracker and its jailer, or the real ones where their folder is given."""
        if binaries is None:
            sys.path.insert(0, str(FC_DOUBLE))
            import pack
            binaries = self.dir / "bin"
            pack.pack(binaries / "firecracker", **faults)
            pack.pack(binaries / "jailer", is_jailer=True)
        self.config["vm"].update(vmm="firecracker", firecracker_binary=binaries / "firecracker", jailer="yes",
                                 jailer_binary=binaries / "jailer")

    # -- the process --

    @property
    def config_file(self):
        return self.dir / "mc.conf"

    def write_config(self):
        text = "".join(f"[{s}]\n" + "".join(f"{k} = {v}\n" for k, v in keys.items())
                       for s, keys in self.config.items())
        self.config_file.write_text(text)

    def command(self, *more):
        self.write_config()
        return [str(DAEMON), "--config", str(self.config_file), "--state-dir", str(self.state), *more]

    def start(self, wrapper=(), wait=True):
        with self.log.open("a") as log:
            self.process = subprocess.Popen([*wrapper, *self.command()], stdout=log, stderr=log)
        if wait:
            wait_for(self.is_up)
        return self

    def is_up(self):
        """the daemon answers"""
        assert self.process.poll() is None, f"the daemon ended:\n{self.log.read_text()}"
        try:
            return self.get("/health").status == 200
        except OSError:
            return False

    def stop(self, sig=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            self.process.send_signal(sig)
            self.process.wait(20)
        self.process = None

    def fails(self, *more, wrapper=()):
        """What a daemon that must not start says on standard error."""
        r = run(*wrapper, *self.command(*more), check=False, timeout=20)
        assert r.returncode == 1, (r.returncode, r.stdout, r.stderr)
        return r.stderr

    def remove(self):
        """Ends everything and takes the files away."""
        self.stop()
        if self.state.exists():
            run(*self.command("--remove"), check=False, timeout=300)
        shutil.rmtree(self.dir)

    # -- its callers --

    @property
    def token(self):
        return self.token_file.read_text().strip()

    def request(self, method, path, body=None, headers=None, unix=False, check=True, timeout=60):
        connection = (UnixConnection(str(self.socket), timeout) if unix
                      else http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout))
        headers = dict(headers or {})
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
            headers.setdefault("Content-Type", "application/json")
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            data = response.read()
            answer = Answer(response.status, response.headers, data)
        if check:
            check_answer(method, path, answer.status, response.headers.get("Content-Type", ""), data)
        return answer

    def admin(self, method, path, body=None, **kwargs):
        return self.request(method, path, body, {"Authorization": f"Bearer {self.token}"}, **kwargs)

    def get(self, path, **kwargs):
        return self.request("GET", path, **kwargs)

    def mctl(self, *argv, check=0):
        r = Mctl(run(MCTL, "--socket", self.socket, *argv, check=False, timeout=300))
        if check is not None:
            assert r.status == check, (argv, r.status, r.out, r.err)
        return r

    def doctor(self, *argv):
        """`mctl doctor` on this daemon's host, without asking the daemon: exit status and report."""
        r = run(MCTL, "--json", "doctor", "--netns", self.name, "--bridge", "br0", "--state-dir", self.state, *argv,
                check=False, timeout=120)
        assert r.stdout, r.stderr
        return r.returncode, json.loads(r.stdout)

    def create(self, user="u1", type="cli", wait=False):
        vm = self.mctl("--json", "vm", "create", "--user", user, "--type", type,
                       *(["--wait"] if wait else [])).json["vm"]
        # A new program has its arguments a moment after its parent goes on.
        with contextlib.suppress(AssertionError):
            wait_for(lambda: self.processes([vm["id"]]), 2)
        return vm

    def vm(self, vm_id):
        return self.mctl("--json", "vm", "show", vm_id).json["vm"]

    def state_of(self, vm_id):
        return self.vm(vm_id)["state"]

    def events(self, vm_id):
        return self.mctl("--json", "vm", "why", vm_id).json["events"]

    def wait_state(self, vm_id, state, timeout_s=20):
        def reached():
            return self.state_of(vm_id) == state
        reached.__doc__ = f"{vm_id} is {state}"
        wait_for(reached, timeout_s)

    # -- what is there --

    def netns(self, *argv, check=True):
        """A command in the daemon's namespace."""
        return run("nsenter", f"--net=/run/netns/{self.name}", *argv, check=check)

    def links(self):
        return {link["ifname"]: link for link in json.loads(self.netns("ip", "-d", "-j", "link").stdout)}

    def taps(self):
        return sorted(name for name in self.links() if name.startswith("fc-vm-"))

    def vmms(self, ids=None):
        """Processes whose arguments name a VM of this daemon, or one of these: {pid: id}. Firecracker's double has two."""
        ids = ids or {p.name for p in (self.state / "users").glob("vm-*")} | {p.name for p in (self.state / "evidence").glob("vm-*")}
        found = {}
        for p in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                text = p.read_bytes().decode(errors="replace")
                found.update({int(p.parent.name): i for i in ids if f"\0-name\0{i}," in text or f"\0--id\0{i}\0" in text})
        return found

    def processes(self, ids=None):
        """Their pids."""
        return list(self.vmms(ids))

    def folders(self):
        return sorted(p.name for p in (self.state / "users").glob("*"))


@contextlib.contextmanager
def daemon(start=True, **config):
    d = Daemon(**config)
    try:
        if start:
            d.start()
        yield d
    finally:
        leftovers = []
        try:
            d.remove()
            leftovers = left_behind(d)
        finally:
            if d.dir.exists():
                shutil.rmtree(d.dir, ignore_errors=True)
        assert not leftovers, leftovers


def left_behind(d):
    left = []
    if os.path.exists(f"/run/netns/{d.name}"):
        left.append(f"namespace {d.name}")
    if d.name in pathlib.Path("/proc/self/mountinfo").read_text():
        left.append(f"a mount of {d.name}")
    return left


class SmallDisk:
    """A daemon's state folder, which is a file system of its own, of that size at most; it can be full without taking any room."""

    def __init__(self, d, megabytes):
        self.path, self.size = d.state, megabytes << 20

    def _resize(self, size):
        return run("mount", "-o", f"remount,size={size >> 10}k", self.path, check=False).returncode == 0

    def fill(self, leave=0):
        """It has so many bytes left, or less: who writes to it does so meanwhile."""
        def filled():
            st = os.statvfs(self.path)
            used = (st.f_blocks - st.f_bfree) * st.f_frsize
            return self._resize(min(self.size, used + leave))
        wait_for(filled, 10, 0.001)

    def free(self):
        assert self._resize(self.size)


@contextlib.contextmanager
def small_disk(d, megabytes):
    """For a daemon that has not been started yet; it is stopped, and all that it has made removed."""
    d.state.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", d.state)
    disk = SmallDisk(d, megabytes)
    try:
        yield disk
    finally:
        disk.free()
        d.stop()
        run(*d.command("--remove"), check=False, timeout=60)
        run("umount", "-l", d.state)


@contextlib.contextmanager
def idle(start=True, **config):
    """A daemon whose VMM does nothing but hold what it was given."""
    with daemon(start=False, **config) as d:
        shutil.copy(IDLE_VMM, d.dir / "idle-vmm")
        d.config["vm"] = {"qemu_binary": d.dir / "idle-vmm", "accel": "tcg", "stop_timeout": "0.3", **d.config["vm"]}
        if start:
            d.start()
        yield d


def quote(text):
    return urllib.parse.quote(text, safe="")

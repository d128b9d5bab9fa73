"""A login end to end, without a person: the shipped profile generic-oidc and its tool (mc-oidc) in a real browser VM, a real
OpenID provider on a host of its own behind the bridge, and headless Chromium that sees and uses the desktop through noVNC. The VMs begin from a template, one of the pool.
The credential goes into the vault and from there into the user's CLI VM, which asks /userinfo with it; and what was secret on
the way is searched for everywhere afterwards."""

import contextlib
import json
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import harness
from harness import HERE, Daemon, memory_of, run, wait_for

NAME, OUTSIDE, UPLINK = "login.example.test", "203.0.113.1", "203.0.113.2"
BOOT_S = 1500  # an emulated guest on a busy host
PASSWORD = "pLaNtEd-password-4711"


def openssl(*argv, cwd):
    return run("openssl", *argv, cwd=cwd)


def make_certificates(folder, name=NAME):
    """A CA and the provider's certificate of it."""
    folder.mkdir()
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650", "-subj",
            "/CN=Test CA", "-keyout", "ca.key", "-out", "ca.crt", cwd=folder)
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}", "-keyout",
            "host.key", "-out", "host.csr", cwd=folder)
    (folder / "ext").write_text(f"subjectAltName=DNS:{name}\nextendedKeyUsage=serverAuth\n")
    openssl("x509", "-req", "-in", "host.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "365",
            "-extfile", "ext", "-out", "host.crt", cwd=folder)


def own_image(kind, to, certificates):
    """The golden image as an operator would make it who has a CA of his own: it is trusted, by tools and by Chromium, and the
    provider's name is known."""
    base = harness.golden_image(kind)
    source = ((base / "cli" if kind == "cli" else base) / "current").resolve()
    folder = to / "own"
    to.mkdir(parents=True, exist_ok=True)
    run("cp", "-r", "--sparse=always", "--reflink=auto", source, folder)
    (to / "current").symlink_to("own")
    rootfs, files = folder / "rootfs.ext4", to / "files"
    rootfs.chmod(0o600)
    files.mkdir()
    old = lambda path: run("debugfs", "-R", f"cat {path}", rootfs).stdout
    bundle = "/etc/ssl/certs/ca-certificates.crt"
    ca = (certificates / "ca.crt").read_text()
    (files / "hosts").write_text(old("/etc/hosts") + f"{OUTSIDE} {NAME}\n")
    (files / "bundle").write_text(old(bundle) + ca)
    der = "".join(line for line in ca.splitlines() if "-----" not in line)
    (files / "policy").write_text(json.dumps({"CACertificates": [der]}))
    words = [f"rm /etc/hosts\nwrite {files}/hosts /etc/hosts", f"rm {bundle}\nwrite {files}/bundle {bundle}"]
    if kind == "browser":
        words.append(f"write {files}/policy /etc/chromium/policies/managed/own-ca.json")
    for file in files.iterdir():
        file.chmod(0o644)
    run("debugfs", "-w", "-f", "-", rootfs, input="\n".join(words) + "\n")


class Provider:
    """The process, and what it says."""

    def __init__(self, certificates, issuer, listen, inside=()):
        self.said, self.lock = [], threading.Lock()
        self.process = subprocess.Popen(
            [*inside, "node", HERE / "tests/e2e/provider.mjs", "--issuer", issuer, "--listen", listen, "--cert", certificates / "host.crt", "--key", certificates / "host.key"],
            stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self.read, daemon=True).start()
        self.wait("listening")

    def read(self):
        for line in self.process.stdout:
            with self.lock:
                self.said.append(json.loads(line))

    def events(self, name):
        with self.lock:
            return [e for e in self.said if e["event"] == name]

    def wait(self, name, count=1, timeout_s=60):
        def came():
            assert self.process.poll() is None and not self.events("server-error"), self.events("server-error")
            return len(self.events(name)) >= count
        came.__doc__ = f"the provider says {name}, {count} times; it said {[e['event'] for e in self.said]}"
        wait_for(came, timeout_s, 0.1)
        return self.events(name)[count - 1]

    def secrets(self):
        with self.lock:
            return {s for e in self.said for s in e.get("secrets", [])}

    def stop(self):
        self.process.kill()
        self.process.wait()


def warm(d, type):
    return next(w for w in d.mctl("--json", "status").json["warm"] if w["type"] == type)


def how(d, vm):
    return next(e["reason"] for e in d.events(vm) if e["event"] == "started")


class World:
    def __init__(self, d, provider, space):
        self.d, self.provider, self.space = d, provider, space


@pytest.fixture(scope="module")
def world():
    with contextlib.ExitStack() as stack:
        d = Daemon()
        stack.callback(shutil.rmtree, d.dir, ignore_errors=True)
        certificates = d.dir / "certificates"
        make_certificates(certificates)
        images = d.dir / "images"
        own_image("browser", images / "browser", certificates)
        own_image("cli", images / "cli", certificates)
        space = f"{d.name}o"
        for each in (d.name, space):
            run("ip", "netns", "add", each)
            stack.callback(run, "ip", "netns", "del", each, check=False)
        run("ip", "-n", d.name, "link", "add", "wan0", "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "-n", d.name, "address", "add", f"{UPLINK}/24", "dev", "wan0")
        run("ip", "-n", d.name, "link", "set", "wan0", "up")
        run("ip", "-n", d.name, "link", "set", "lo", "up")
        run("ip", "-n", space, "address", "add", f"{OUTSIDE}/24", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        d.config["network"].update(uplink="wan0", allow="203.0.113.0/24")
        d.config["vm"].update(browser_image=images / "browser", cli_image=images / "cli", browser_boot_timeout=BOOT_S,
                              cli_boot_timeout=BOOT_S)
        d.config["session"].update(timeout=BOOT_S, abandoned_after=BOOT_S)
        d.config["warm"].update(templates="yes", quiet="0.5")
        shipped = (HERE / "doc/providers.d/generic-oidc.conf").read_text()
        (d.dir / "providers.d").mkdir()
        for name, command in (("generic-oidc", "mc-oidc login"), ("by-device", "mc-oidc login --device")):
            text = shipped.replace("command = mc-oidc login", f"command = {command}")
            text = text.replace("#environment = OIDC_ISSUER=https://login.example.com", f"environment = OIDC_ISSUER=https://{NAME}")
            text = text.replace("#environment = OIDC_CLIENT_ID", "environment = OIDC_CLIENT_ID")
            text = text.replace("#host = login.example.com", f"host = {NAME}")
            if "--device" in command:
                text = text.replace("flow = authorization-code", "flow = device-code")
            (d.dir / "providers.d" / f"{name}.conf").write_text(text)
        provider = Provider(certificates, f"https://{NAME}", f"{OUTSIDE}:443", ["nsenter", f"--net=/run/netns/{space}"])
        stack.callback(provider.stop)
        stack.callback(lambda: (d.stop(), run(*d.command("--remove"), check=False, timeout=300)))
        d.start()
        for type in ("cli", "browser"):
            wait_for(lambda: warm(d, type)["ready"], BOOT_S, 0.3)
        yield World(d, provider, space)


class Person:
    """Who looks at a session's page and uses its desktop."""

    def __init__(self, world, user, provider):
        self.d = world.d
        answer = self.d.admin("POST", "/api/auth/start", {"userId": user, "provider": provider})
        assert answer.status == 201, answer.json
        self.user, self.id, self.vm = user, answer.json["sessionId"], answer.json["session"]["vm_id"]
        shots = HERE / ".cache/e2e-shots" / f"login-{provider}"
        self.process = subprocess.Popen(
            ["node", HERE / "tests/e2e/login.mjs", "--url", answer.json["novncURL"], "--out", shots, "--timeout-s", str(BOOT_S)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def do(self, **what):
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert answer["ok"], (what, answer, self.session)
        return answer

    @property
    def session(self):
        return self.d.admin("GET", f"/api/auth/session/{self.id}").json["session"]

    def get(self, what):
        return self.d.admin("GET", f"/api/auth/session/{self.id}{what}").json

    def log_in(self):
        self.do(fill="login", text=self.user)
        self.do(fill="password", text=PASSWORD)
        self.do(shot="login")
        self.do(click="go")

    def wait_end(self, status):
        wait_for(lambda: self.session["status"] in ("completed", "failed", "timeout", "cancelled"), BOOT_S, 0.2)
        assert self.session["status"] == status, (self.session, self.get("/events"))
        wait_for(lambda: ENDS[status] in self.do(words=True)["words"], 30, 0.3)
        self.do(shot=status)

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)


ENDS = {"completed": "The login is complete", "failed": "The session failed"}


def as_user(d, vm, command):
    return run(harness.MCTL, "--socket", d.socket, "vm", "exec", vm, "--", "runuser", "-l", "user", "-c", command, check=False,
               timeout=300)


def found(d, secrets, disks_of=()):
    """Where one of the secrets is: in a file that the daemon or a VMM of its has written, or in the daemon's memory."""
    needles = [s.encode() for s in secrets if len(s) >= 8]
    assert needles
    places = []
    templates = d.state / "templates"  # made before there was a secret, and a gigabyte
    for path in sorted([*(p for p in d.state.rglob("*") if templates not in p.parents), d.log]):
        if path.is_file() and not path.is_symlink() and not any(vm in path.parts for vm in disks_of):
            data = path.read_bytes()
            places += [f"{path}: {needle[:6]}…" for needle in needles if needle in data]
    for where, data in memory_of(d.process.pid):
        places += [f"memory {where}: {needle[:6]}…" for needle in needles if needle in data]
    return places


def test_authorization_code(world):
    d, provider = world.d, world.provider
    person = Person(world, "anna", "generic-oidc")
    try:
        assert how(d, person.vm).startswith("made warm, from template"), how(d, person.vm)
        person.log_in()
        provider.wait("consent-page", 1, BOOT_S)
        assert person.session["status"] == "authenticating"
        url = person.get("/oauth-url")["url"]
        person.do(click="allow")
        person.wait_end("completed")
    finally:
        person.close()
    assert provider.events("login")[0]["login"] == "anna", "what was typed on the desktop"
    assert provider.wait("token", 1)["grant"] == "authorization_code"
    provider.wait("userinfo", 1)  # the check, in the browser VM
    d.wait_state(person.vm, "stopped", 60)
    evidence = d.state / "evidence" / person.vm
    assert (evidence / "session.json").exists() and (evidence / "summary.json").exists()
    assert json.loads((evidence / "session.json").read_text())["status"] == "completed"
    vm = d.create(user="anna")["id"]
    d.wait_state(vm, "running", BOOT_S)
    wait_for(lambda: person.get("/credentials/status")["in_vm"] == vm, 60, 0.2)
    r = as_user(d, vm, "mc-oidc userinfo; stat -c '%a %U %G' ~/.config/mc-oidc ~/.config/mc-oidc/credentials.json")
    assert r.returncode == 0 and json.loads(r.stdout.splitlines()[0])["sub"] == "anna", (r.stdout, r.stderr)
    assert r.stdout.splitlines()[1:] == ["700 user user", "600 user user"]
    assert provider.events("userinfo")[-1] == {"event": "userinfo", "sub": "anna", "status": 200}
    # Its token runs out, and is renewed by one that works once: the vault must have the new one.
    wait_for(lambda: as_user(d, vm, "mc-oidc userinfo").returncode == 0 and provider.events("token")[-1]["grant"] == "refresh_token", 120, 0.5)
    wait_for(lambda: person.get("/credentials/status")["version"] == 2, 60, 0.2)
    secrets = provider.secrets() | {PASSWORD, url}
    assert len(secrets) > 8 and found(d, secrets, disks_of={vm}) == []
    d.mctl("vm", "destroy", vm, "--reason", "the test goes on in another one")
    d.wait_state(vm, "stopped", 60)
    second = d.create(user="anna")["id"]
    d.wait_state(second, "running", BOOT_S)
    wait_for(lambda: person.get("/credentials/status")["in_vm"] == second, 60, 0.2)
    r = as_user(d, second, "mc-oidc userinfo")
    assert r.returncode == 0 and json.loads(r.stdout)["sub"] == "anna", (r.stdout, r.stderr)
    assert not [e for e in provider.events("token") if e.get("error")], "no token was used twice"
    d.mctl("vm", "destroy", second, "--reason", "the test is over")
    d.wait_state(second, "stopped", 60)
    assert found(d, provider.secrets() | {PASSWORD, url}) == []


# A file, a process that is no service, Chromium as it was started, and the boot.
LEAVE = "echo kept >/root/note; setsid sleep 100000 </dev/null >/dev/null 2>&1 & echo $! >/root/pid"
THERE = ("cat /root/note; kill -0 $(cat /root/pid) && echo lives; systemctl show -p MainPID -p NRestarts --value chromium; "
         "cat /proc/sys/kernel/random/boot_id")


def test_a_desktop_goes_on_after_its_vm_was_at_rest(world):
    """One that began in the pool, as its page sees it: woken by another the picture is back by itself, or by who looks at it."""
    d, provider = world.d, world.provider
    d.stop()
    d.config["warm"]["pool_browser"] = "1"
    d.start()
    wait_for(lambda: warm(d, "browser")["pool_ready"] == 1, BOOT_S, 0.2)
    person = Person(world, "dora", "demo")
    try:
        assert " and the pool in " in how(d, person.vm), how(d, person.vm)
        inside = lambda script: run(harness.MCTL, "--socket", d.socket, "vm", "exec", person.vm, "--", "sh", "-c", script).stdout
        person.do(state="connected")
        r = d.admin("POST", f"/api/vms/{person.vm}/agent", {"op": "browser.open", "url": f"https://{NAME}/alive"}, timeout=120)
        assert r.status == 200, r.json
        person.do(see="done")
        page = provider.wait("alive", 1, BOOT_S)
        assert page["mark"] == f"{page['born']}", "its cookies are of another browser"
        inside(LEAVE)
        there = inside(THERE)
        assert there.startswith("kept\nlives\n"), there
        for wake in (lambda: d.mctl("vm", "resume", person.vm), lambda: person.do(button="Wake it up")):
            d.mctl("vm", "hibernate", "--force", person.vm)
            person.do(state="asleep")
            person.do(shot="asleep")
            seen = len(provider.events("alive"))
            wake()
            person.do(state="connected")
            person.do(see="done")
            assert provider.wait("alive", seen + 2, BOOT_S) == page, "it is not the page that was open"
            assert inside(THERE) == there
            assert abs(float(inside("date +%s.%N")) - time.time()) < 5
        assert [e["reason"] for e in d.events(person.vm) if e["event"] == "resume"] == ["it was asked for", "its desktop is wanted"]
    finally:
        person.close()
    d.mctl("auth", "cancel", person.id)


def test_device_flow(world):
    d, provider = world.d, world.provider
    person = Person(world, "berta", "by-device")
    try:
        person.do(click="confirm")
        code = provider.events("device")[-1]["user_code"]
        assert person.get("/oauth-url")["user_code"] == code
        person.log_in()
        person.do(click="allow")
        person.wait_end("completed")
    finally:
        person.close()
    assert provider.events("token")[-1]["grant"].endswith("device_code") and not provider.events("token")[-1].get("error")
    assert person.get("/credentials/status")["stored"] is True
    d.wait_state(person.vm, "stopped", 60)
    assert found(d, provider.secrets() | {PASSWORD, code}) == []


def test_consent_that_is_refused(world):
    person = Person(world, "carl", "generic-oidc")
    try:
        person.log_in()
        person.do(click="no")
        person.wait_end("failed")
        assert "access was refused at the provider (access_denied)" in person.do(words=True)["words"]
    finally:
        person.close()
    assert "refused at the provider (access_denied)" in person.session["reason"]
    assert person.get("/credentials/status")["stored"] is False

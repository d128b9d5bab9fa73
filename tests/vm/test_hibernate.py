"""VMs that are put to rest and brought back, with a real guest: what was in it goes on, and it is told that it was away."""

import contextlib
import os
import random
import signal
import subprocess
import time

import harness
from harness import daemon, small_disk, wait_for
from test_agent import ask as ask_agent
from test_guest import echoes, pings

CYCLES = {"qemu": int(os.environ.get("MC_GUEST_CYCLES", "20")), "firecracker": int(os.environ.get("MC_GUEST_CYCLES", "5"))}


@contextlib.contextmanager
def hibernating(vmm="qemu"):
    with daemon(start=False) as d:
        if vmm == "firecracker":
            d.use_firecracker(channel="serial")
            d.config["vm"]["cli_memory"] = "128"  # all of it is written
        yield d.start()


@contextlib.contextmanager
def hibernating_on_small_disk(vmm):
    """And the disk, which can be full."""
    with daemon(start=False) as d, small_disk(d, 1000) as disk:
        if vmm == "firecracker":
            d.use_firecracker(channel="serial")
            d.config["vm"]["cli_memory"] = "128"
            d.config["image"]["directory"] = d.state / "image"  # it takes the image's files by links
            harness.run("cp", "-a", "--sparse=always", harness.TEST_GUEST, d.state / "image")
        d.start()
        yield d, disk


def ask(d, vm, op, **more):
    return ask_agent(d, vm["id"], op, **more)


def run(d, vm, *argv):
    return d.mctl("vm", "exec", "-T", vm["id"], "--", *argv).out.strip()


def guest_time_ms(d, vm):
    return ask(d, vm, "health")["realtime_ms"]


# A file on the disk, one in memory alone, a process.
LEAVE = ("echo kept >/root-file; sync; mount -t tmpfs none /mnt 2>/dev/null || { mkdir -p /mnt; mount -t tmpfs none /mnt; };"
         "echo memory >/mnt/file; sleep 100000 </dev/null >/dev/null 2>&1 & echo $! >/mnt/pid")
KEPT = "echo $(cat /root-file) $(cat /mnt/file) $(kill -0 $(cat /mnt/pid) && echo lives)"


def leave_something(d, vm):
    run(d, vm, "sh", "-c", LEAVE)
    assert run(d, vm, "sh", "-c", KEPT) == "kept memory lives"


def is_at_rest(d, vm):
    """Nothing of it is there but its folder and its record."""
    assert d.processes() == [] and d.taps() == [] and d.folders() == [vm["id"]]
    assert vm["tap"] not in d.netns("nft", "list", "ruleset").stdout
    told = d.vm(vm["id"])
    for what in ("ip", "mac", "tap"):
        assert told[what] == vm[what]


def test_what_was_in_a_guest_goes_on(each_vmm):
    with hibernating(each_vmm) as d:
        vm = d.create(wait=True)
        assert echoes(d, vm["ip"])
        leave_something(d, vm)
        boot_id = ask(d, vm, "health")["boot_id"]
        gateway = d.links()["br0"]["address"]
        r = d.mctl("--json", "vm", "hibernate", vm["id"], "--reason", "nobody is there").json["vm"]
        assert r["state"] == "hibernated" and "was saved in" in r["reason"]
        is_at_rest(d, vm)
        other = d.create(user="u2")
        assert other["ip"] != vm["ip"], "its address was given away"
        d.mctl("vm", "destroy", other["id"], "--reason", "x")
        time.sleep(3)  # that long its clock stands still
        d.mctl("vm", "resume", vm["id"])
        assert abs(guest_time_ms(d, vm) - time.time() * 1000) < 2000
        assert pings(d, vm["ip"]) and echoes(d, vm["ip"])
        assert ask(d, vm, "health")["boot_id"] == boot_id
        assert run(d, vm, "sh", "-c", KEPT) == "kept memory lives"
        assert d.links()["br0"]["address"] == gateway
        story = d.events(vm["id"])
        names = [e["event"] for e in story]
        assert [n for n in names if n in ("hibernate", "hibernated", "resume", "memory-loaded", "awake")] == [
            "hibernate", "hibernated", "resume", "memory-loaded", "awake"]
        asked = next(e for e in story if e["event"] == "hibernate")
        assert asked["reason"] == "nobody is there" and "uid 0" in asked["actor"]
        awake = next(e for e in story if e["event"] == "awake")["reason"]
        assert "clock set" in awake and "random numbers renewed" in awake, awake
        assert not (d.state / "users" / vm["id"] / "saved").exists(), "what was loaded can be loaded again"
        assert not (d.state / "users" / vm["id"] / "saved.tmp").exists()


def test_an_exec_keeps_it_awake_unless_it_is_forced_and_wakes_it():
    with daemon(vm={"cli_idle_after": "3"}) as d:
        vm = d.create(wait=True)
        leave_something(d, vm)
        argv = [harness.MCTL, "--socket", d.socket, "vm", "exec", "-T", vm["id"], "--", "sh", "-c", "echo begun; cat"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
            assert program.stdout.readline() == b"begun\n"
            r = d.admin("POST", f"/api/vms/{vm['id']}/hibernate")
            assert (r.status, r.json["code"]) == (409, "vm.in-use") and "a program of mctl vm exec runs" in r.json["detail"]
            assert "--force" in r.json["hint"]
            assert d.admin("POST", f"/api/vms/{vm['id']}/hibernate?force=2").status == 400
            time.sleep(7)  # it is idle for long enough by all but that
            assert d.state_of(vm["id"]) == "running" and program.poll() is None
            d.mctl("vm", "hibernate", "--force", vm["id"])
            assert program.wait(60) == 1 and program.stderr.read()
        assert run(d, vm, "sh", "-c", KEPT) == "kept memory lives"
        assert d.state_of(vm["id"]) == "running"
        assert [e["reason"] for e in d.events(vm["id"]) if e["event"] == "resume"] == ["a program is to run in it"]


# ---- TLS to a server outside, whose certificate is younger than the guest's clock ----

SERVER = "198.51.100.7"  # behind the router: the networks at the uplink are the host's own
TLS = ["/usr/bin/openssl", "/lib64/ld-linux-x86-64.so.2",
       *(f"/usr/lib/x86_64-linux-gnu/{name}" for name in ("libssl.so.3", "libcrypto.so.3", "libc.so.6"))]
CONNECT = ("cd /mnt; export OPENSSL_CONF=/dev/null; timeout 60 ./ld-linux-x86-64.so.2 --library-path . ./openssl s_client -brief -CAfile "
           f"ca.pem -verify_return_error -verify_ip {SERVER} -connect {SERVER}:443 </dev/null 2>&1")


@contextlib.contextmanager
def outside(d):
    """A host behind the uplink, in a namespace of its own. The daemon runs, and is started anew with that uplink."""
    name = f"{d.name}out"
    harness.run("ip", "netns", "add", name)
    try:
        d.netns("ip", "link", "add", "wan0", "type", "veth", "peer", "name", "eth0", "netns", name)
        for at, address, link in ((d.name, "203.0.113.2/24", "wan0"), (name, "203.0.113.1/24", "eth0"),
                                  (name, f"{SERVER}/32", "lo")):
            harness.run("ip", "-n", at, "address", "add", address, "dev", link)
            harness.run("ip", "-n", at, "link", "set", link, "up")
        d.netns("ip", "route", "add", "default", "via", "203.0.113.1")
        d.stop()
        d.config["network"]["uplink"] = "wan0"
        d.start()
        yield name
    finally:
        d.config["network"].pop("uplink", None)
        d.netns("ip", "link", "del", "wan0", check=False)  # the end of a namespace takes its time
        harness.run("ip", "netns", "del", name)


@contextlib.contextmanager
def tls_server(name, folder):
    """One with a certificate that is valid from now on."""
    files = [folder / "key.pem", folder / "cert.pem"]
    harness.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
                "-subj", "/CN=outside", "-addext", f"subjectAltName=IP:{SERVER}", "-keyout", files[0], "-out", files[1])
    with subprocess.Popen(["nsenter", f"--net=/run/netns/{name}", "openssl", "s_server", "-accept", "443", "-key", files[0],
                           "-cert", files[1], "-quiet"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as server:
        try:
            wait_for(lambda: ":443" in harness.run("nsenter", f"--net=/run/netns/{name}", "ss", "-Hltn").stdout)
            yield files[1].read_bytes()
        finally:
            server.terminate()


def put(d, vm, words, data):
    subprocess.run([harness.MCTL, "--socket", d.socket, "vm", "exec", "-T", vm["id"], "--", "sh", "-c", words], input=data,
                   check=True, timeout=120)


def test_tls_works_at_once_with_a_certificate_that_was_made_while_it_was_away(tmp_path):
    with daemon() as d, outside(d) as there:
        vm = d.create(wait=True)
        programs = subprocess.run(["tar", "-ch", "--transform", "s,.*/,,", "-P", *TLS], stdout=subprocess.PIPE, check=True)
        put(d, vm, "mkdir -p /mnt && mount -t tmpfs none /mnt && tar -x -C /mnt", programs.stdout)
        with tls_server(there, tmp_path) as certificate:
            put(d, vm, "cat >/mnt/ca.pem; date -s @$(($(date +%s) - 3600))", certificate)
            r = d.mctl("vm", "exec", "-T", vm["id"], "--", "sh", "-c", CONNECT, check=None)
            assert r.status != 0 and "not yet valid" in r.out, (r.out, r.err)
        d.mctl("vm", "hibernate", vm["id"])
        with tls_server(there, tmp_path) as certificate:
            d.mctl("vm", "resume", vm["id"])
            put(d, vm, "cat >/mnt/ca.pem", certificate)
            r = d.mctl("vm", "exec", "-T", vm["id"], "--", "sh", "-c", CONNECT, check=None)
            assert r.status == 0 and "Verification: OK" in r.out, (r.out, r.err)
        d.mctl("vm", "destroy", vm["id"], "--reason", "done")


def settle(d, vm, what):
    wait_for(lambda: d.state_of(vm["id"]) in ("running", "hibernated"), 90, 0.2)
    told = d.vm(vm["id"])
    if told["state"] == "running":
        return
    assert d.taps() == [] and d.processes() == [], what
    assert (d.state / "users" / vm["id"] / "saved" / "saved.json").exists(), (what, told)
    d.mctl("vm", "resume", vm["id"])


def for_a_while(caller, rng):
    with contextlib.suppress(subprocess.TimeoutExpired):
        caller.wait(rng.random() * 2.5)


def disturb(d, disk, rng, caller, event):
    """A daemon that was killed begins again when there is room, or before that."""
    for_a_while(caller, rng)
    if "full" in event:
        disk.fill(rng.choice([0, rng.randrange(32 << 20)]))
        for_a_while(caller, rng)
    if "kill" in event:
        d.stop(signal.SIGKILL)
        if rng.random() < 0.5:
            d.start()
    if "full" in event:
        for_a_while(caller, rng)
        disk.free()
    if d.process is None:
        d.start()
    caller.wait(120)


def test_cycles_with_kills_of_the_daemon_and_full_disks(each_vmm):
    """Nothing that was in the guest is ever lost, whenever the daemon dies and whenever the disk is full."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    with hibernating_on_small_disk(each_vmm) as (d, disk):
        vm = d.create(wait=True)
        leave_something(d, vm)
        for cycle in range(CYCLES[each_vmm]):
            verb = "hibernate" if d.state_of(vm["id"]) == "running" else "resume"
            event = rng.choice(["kill", "kill", "full", "full and kill", "nothing", "nothing"])
            what = f"seed {seed} cycle {cycle}: {verb}, {event}"
            caller = subprocess.Popen([harness.MCTL, "--quiet", "--socket", d.socket, "vm", verb, vm["id"]],
                                      stderr=subprocess.DEVNULL)
            if event == "nothing":
                assert caller.wait(120) == 0, (what, d.log.read_text()[-3000:])
            else:
                disturb(d, disk, rng, caller, event)
                settle(d, vm, what)
            if d.state_of(vm["id"]) == "running":
                # A daemon that has just started takes a moment to find it.
                wait_for(lambda: d.admin("GET", f"/api/vms/{vm['id']}/agent").json["agent"]["state"] == "ready", 60, 0.1)
                assert run(d, vm, "sh", "-c", KEPT) == "kept memory lives", what

"""The double itself: it refuses what firecracker.yaml does not allow. Each wrong request is made from the specification; where
the real Firecracker is found (see test_firecracker.py), it has to judge all of them alike."""

import contextlib
import copy
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile

import pytest

import harness
from harness import UnixConnection, wait_for

sys.path.insert(0, str(harness.FC_DOUBLE))
import pack
from spec import Spec

SPEC = Spec((harness.FC_DOUBLE / "firecracker.yaml").read_text())
KERNEL = harness.TEST_GUEST / "current/vmlinux"

# Valid bodies, in the order of a machine that is made. DIR is the folder of the process.
VALID = [
    ("PUT", "/logger", "Logger", {"log_path": "DIR/log", "level": "info", "show_level": True, "show_log_origin": False}),
    ("PUT", "/metrics", "Metrics", {"metrics_path": "DIR/metrics"}),
    ("PUT", "/machine-config", "MachineConfiguration", {"vcpu_count": 2, "mem_size_mib": 128, "smt": False,
                                                       "track_dirty_pages": False}),
    ("PUT", "/boot-source", "BootSource", {"kernel_image_path": "KERNEL", "boot_args": "panic=1"}),
    ("PUT", "/drives/rootfs", "Drive", {"drive_id": "rootfs", "path_on_host": "DIR/disk", "is_root_device": True,
                                        "is_read_only": True, "cache_type": "Unsafe", "io_engine": "Sync",
                                        "rate_limiter": {"bandwidth": {"size": 10, "refill_time": 100}}}),
    ("PUT", "/entropy", "EntropyDevice", {}),
    ("PUT", "/vsock", "Vsock", {"guest_cid": 3, "uds_path": "DIR/vsock"}),
]
LOAD = {"snapshot_path": "DIR/state", "mem_backend": {"backend_type": "File", "backend_path": "DIR/memory"},
        "resume_vm": False, "network_overrides": [{"iface_id": "eth0", "host_dev_name": "tap0"}],
        "vsock_override": {"uds_path": "DIR/vsock"}}
# Where 1.17 itself takes more than its specification has. The double does not, and so a controller may not rely on it. (The
# metrics cannot be set a second time after the first has been taken.)
LAX = {"PUT /drives/rootfs: an unknown field deep in it", "PUT /entropy: not an object", "PUT /metrics: an unknown field",
       "valid PUT /metrics", "PUT /vsock: guest_cid beyond its minimum"}
WRONG_TYPE = {"string": 7, "integer": "7", "boolean": "yes", "object": [], "array": {}}


def is_listening(folder):
    """its API socket takes connections"""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as s:
        return s.connect_ex(str(folder / "api")) == 0


@contextlib.contextmanager
def running(binary=None, **faults):
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fcd-", dir="/var/tmp"))
    (folder / "disk").write_bytes(b"\0" * 4096)
    binary = binary or pack.pack(folder / "firecracker", **faults)
    with open(folder / "console", "ab") as console:
        process = subprocess.Popen([binary, "--api-sock", folder / "api", "--id", "test", "--level", "Error"], cwd=folder,
                                   stdin=subprocess.DEVNULL, stdout=console, stderr=console)
    try:
        wait_for(lambda: is_listening(folder), 20)
        yield folder
    finally:
        print((folder / "console").read_text()[-3000:])  # pytest shows it with a failure
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def ask(folder, method, path, body=None, raw=None):
    """Status and fault_message or answer."""
    text = raw if raw is not None else json.dumps(body).replace("DIR", str(folder)).replace("KERNEL", str(KERNEL))
    with contextlib.closing(UnixConnection(str(folder / "api"), 20)) as c:
        c.request(method, path, text if body is not None or raw is not None else None, {"Content-Type": "application/json"})
        r = c.getresponse()
        data = r.read()
        return r.status, json.loads(data) if data else None


def wrong_bodies(definition, valid):
    """Each with what is wrong with it."""
    schema = SPEC.definition(definition)
    yield "an unknown field", {**valid, "no_such_field": 1}
    yield "not an object", [valid]
    for name in schema.get("required", []):
        yield f"without {name}", {k: v for k, v in valid.items() if k != name}
    for name, value in schema.get("properties", {}).items():
        part = SPEC.resolve(value)
        yield f"{name} of a wrong type", {**valid, name: WRONG_TYPE[part.get("type", "object")]}
        if "enum" in part:
            yield f"{name} not of its words", {**valid, name: "nonsense"}
        for limit, step in (("minimum", -1), ("maximum", 1)):
            # A definition of Firecracker's may be stricter by its integer's width, never looser.
            if limit in part and name in valid:
                yield f"{name} beyond its {limit}", {**valid, name: part[limit] + step}
        if name == "rate_limiter" and name in valid:
            bucket = copy.deepcopy(valid)
            bucket[name]["bandwidth"]["one_time"] = 1
            yield "an unknown field deep in it", bucket


def wrong_requests():
    for method, path, definition, valid in VALID:
        for what, body in wrong_bodies(definition, valid):
            yield f"{method} {path}: {what}", (method, path, body)
    for what, body in wrong_bodies("SnapshotLoadParams", LOAD):
        yield f"PUT /snapshot/load: {what}", ("PUT", "/snapshot/load", body)
    override = {**LOAD["network_overrides"][0], "guest_mac": "02:00:00:00:00:01"}
    yield "a load with an unknown field in an override", ("PUT", "/snapshot/load", {**LOAD, "network_overrides": [override]})
    yield "a load with two memories", ("PUT", "/snapshot/load", {**LOAD, "mem_file_path": "DIR/memory"})
    yield "a load with no memory", ("PUT", "/snapshot/load", {"snapshot_path": "DIR/state"})
    yield "a snapshot before it runs", ("PUT", "/snapshot/create", {"snapshot_path": "DIR/s", "mem_file_path": "DIR/m"})
    drive, boot = VALID[4][3], VALID[3][3]
    yield "another id in the path", ("PUT", "/drives/other", drive)
    yield "an id with a dash", ("PUT", "/drives/root-fs", {**drive, "drive_id": "root-fs"})
    yield "no such path", ("PUT", "/no-such-path", {})
    yield "no such method there", ("DELETE", "/machine-config", None)
    yield "no body", ("PUT", "/machine-config", None)
    yield "a kernel that is not there", ("PUT", "/boot-source", {**boot, "kernel_image_path": "DIR/none"})
    yield "a disk that is not there", ("PUT", "/drives/rootfs", {**drive, "path_on_host": "DIR/none"})
    yield "a command line that is too long", ("PUT", "/boot-source", {**boot, "boot_args": "x" * 2100})
    yield "no TAP of that name", ("PUT", "/network-interfaces/eth0", {"iface_id": "eth0", "host_dev_name": "x" * 20})
    yield "pause before it runs", ("PATCH", "/vm", {"state": "Paused"})
    yield "Ctrl+Alt+Del before it runs", ("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
    yield "a flush before it runs", ("PUT", "/actions", {"action_type": "FlushMetrics"})
    yield "no such action", ("PUT", "/actions", {"action_type": "Halt"})
    yield "a start without a kernel", ("PUT", "/actions", {"action_type": "InstanceStart"})


def judge_all(folder):
    judged = {name: ask(folder, *request)[0] for name, request in wrong_requests()}
    for raw in ('{"vcpu_count":1,"vcpu_count":1,"mem_size_mib":128}', '{"vcpu_count":1,', "NaN", ""):
        judged[f"raw {raw!r}"] = ask(folder, "PUT", "/machine-config", raw=raw)[0]
    for method, path, _, body in VALID:
        judged[f"valid {method} {path}"] = ask(folder, method, path, body)[0]
    judged["a load into a machine that was configured"] = ask(folder, "PUT", "/snapshot/load", LOAD)[0]
    judged["the metrics twice"] = ask(folder, "PUT", "/metrics", VALID[1][3])[0]
    judged["a second root"] = ask(folder, "PUT", "/drives/two", {**VALID[4][3], "drive_id": "two"})[0]
    return judged


def test_it_refuses_what_the_specification_does_not_allow():
    with running() as folder:
        judged = judge_all(folder)
        accepted = [name for name, status in judged.items() if status == 204]
        assert accepted == [f"valid {method} {path}" for method, path, _, _ in VALID]
        assert len(judged) > 70 and set(judged.values()) == {204, 400}
        status, config = ask(folder, "GET", "/vm/config")
        assert status == 200 and config["machine-config"]["vcpu_count"] == 2
        assert ask(folder, "GET", "/")[1]["state"] == "Not started"


def real():
    folder = os.environ.get("MC_FIRECRACKER") or os.path.dirname(shutil.which("firecracker") or "")
    return pathlib.Path(folder) / "firecracker" if folder else None


@pytest.mark.skipif(real() is None, reason="there is no firecracker in PATH or MC_FIRECRACKER")
def test_the_real_one_judges_alike():
    with running() as folder:
        ours = judge_all(folder)
    with running(binary=real()) as folder:
        theirs = judge_all(folder)
    differences = {n: (ours[n], theirs[n]) for n in ours if ours[n] != theirs[n] and n not in LAX}
    assert differences == {}


def test_after_the_start_the_machine_is_what_it_is():
    with running() as folder:
        for method, path, _, body in VALID:
            assert ask(folder, method, path, body)[0] == 204
        assert ask(folder, "PUT", "/actions", {"action_type": "InstanceStart"})[0] == 204
        assert ask(folder, "GET", "/")[1]["state"] == "Running"
        for method, path, _, body in VALID:
            status, answer = ask(folder, method, path, body)
            assert status == 400 and "not supported after starting" in answer["fault_message"], path
        assert ask(folder, "PUT", "/actions", {"action_type": "InstanceStart"})[0] == 400
        assert ask(folder, "PATCH", "/vm", {"state": "Paused"})[0] == 204
        assert ask(folder, "GET", "/")[1]["state"] == "Paused"
        assert ask(folder, "PATCH", "/vm", {"state": "Resumed"})[0] == 204
        assert ask(folder, "PUT", "/actions", {"action_type": "FlushMetrics"})[0] == 204
        assert json.loads((folder / "metrics").read_text())["net"]["tx_packets_count"] == 0


def test_a_kernel_that_is_no_elf_does_not_start():
    with running() as folder:
        boot = {"kernel_image_path": str(KERNEL.parent / "vmlinuz")}
        assert ask(folder, "PUT", "/boot-source", boot)[0] == 204
        status, answer = ask(folder, "PUT", "/actions", {"action_type": "InstanceStart"})
        assert status == 400 and "Invalid ELF magic number" in answer["fault_message"]


def run_one(folder):
    for method, path, _, body in VALID:
        assert ask(folder, method, path, body)[0] == 204
    assert ask(folder, "PUT", "/actions", {"action_type": "InstanceStart"})[0] == 204


def ends_after(folder, request, words):
    status, answer = ask(folder, *request)
    assert status == 400 and words in answer["fault_message"], answer
    wait_for(lambda: refused_connection(folder), 20)


def refused_connection(folder):
    """it has ended"""
    try:
        ask(folder, "GET", "/")
    except OSError:
        return True
    return False


def test_a_snapshot_is_two_files_and_a_failed_load_is_the_end():
    create = {"snapshot_type": "Full", "snapshot_path": "DIR/state", "mem_file_path": "DIR/memory"}
    load = {k: v for k, v in LOAD.items() if k != "network_overrides"}
    with running(channel="serial") as one:
        run_one(one)
        status, answer = ask(one, "PUT", "/snapshot/create", create)
        assert status == 400 and "while running" in answer["fault_message"]
        assert ask(one, "PATCH", "/vm", {"state": "Paused"})[0] == 204
        for _, body in wrong_bodies("SnapshotCreateParams", create):
            assert ask(one, "PUT", "/snapshot/create", body)[0] == 400, body
        assert ask(one, "PUT", "/snapshot/create", create)[0] == 204
        assert (one / "memory").stat().st_size == 128 << 20
        assert ask(one, "PUT", "/snapshot/load", load)[0] == 400
        assert ask(one, "PATCH", "/vm", {"state": "Resumed"})[0] == 204
        state = (one / "state").read_bytes()
        others = {"version": (b"10.0.0" + state[6:], "Invalid data version: 10.0.0"), "crc": (state[:-1] + b"!", "CRC64")}

        def from_one(value):
            text = json.dumps(value).replace("DIR/state", f"{one}/state").replace("DIR/memory", f"{one}/memory")
            return "PUT", "/snapshot/load", json.loads(text)
        for content, words in others.values():
            (one / "other").write_bytes(content)
            with running(channel="serial") as two:
                ends_after(two, from_one({**load, "snapshot_path": f"{one}/other"}), words)
        with running(channel="serial") as two:
            ends_after(two, from_one({**load, "mem_backend": {"backend_type": "File", "backend_path": "DIR/none"}}),
                       "No such file")
        with running(channel="serial") as two:
            ends_after(two, from_one(LOAD), "Unknown Network Device")  # this machine has no NIC
        with running(channel="serial") as two:
            for method, path, _, body in VALID[:2]:
                assert ask(two, method, path, body)[0] == 204
            status, answer = ask(two, *from_one(load))
            assert status == 204, answer
            assert ask(two, "GET", "/")[1]["state"] == "Paused"
            assert ask(two, "PATCH", "/vm", {"state": "Resumed"})[0] == 204
            assert ask(two, "GET", "/")[1]["state"] == "Running"
            config = ask(two, "GET", "/vm/config")[1]
            assert "boot-source" not in config and config["machine-config"]["vcpu_count"] == 2
            assert config["vsock"]["uds_path"] == f"{two}/vsock"

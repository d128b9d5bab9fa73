"""The doctor through the API: with VMMs that hold their TAPs and answer nothing, so every VM is sick. Healthy guests:
tests/doctor/test_qemu.py."""

import os
import socket
import threading
import time

import pytest

import harness
from harness import idle


@pytest.fixture(scope="module")
def d():
    with idle(vm={"quota_per_user": 100, "browser_boot_timeout": "600", "cli_boot_timeout": "600"}) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def vm(d):
    return d.create()


def target_of_report(report, vm):
    return next(t for t in report["targets"] if t["tap"] == vm["tap"])


def target_of(answer, vm):
    return target_of_report(answer.json, vm)


def test_one_vm(d, vm):
    answer = d.admin("GET", f"/api/vms/{vm['id'][:12]}/diagnostics")
    assert answer.status == 200, answer.body
    assert answer.json["schema"] == "doctor/1" and answer.json["healthy"] is False
    assert [t["tap"] for t in answer.json["targets"]] == [vm["tap"]]
    target = target_of(answer, vm)
    assert (target["vm_id"], target["guest_ip"], target["reachable"]) == (vm["id"], vm["ip"], False)
    root = target["findings"][0]
    assert root["role"] == "root-cause" and root["dies_at"] in ("vmm", "guest.nic"), root


def test_the_whole_bridge_and_what_mctl_says(d, vm):
    answer = d.admin("GET", "/api/admin/health/network")
    assert answer.status == 200 and answer.json["healthy"] is False
    status, said = d.doctor()
    assert status == 10
    for report in (answer.json, said):
        assert report["host"]["bridge"] == "br0" and report["host"]["netns"] == d.name
    found = lambda report: [(t["tap"], t["vm_id"], t["reachable"], [f["id"] for f in t["findings"]]) for t in report["targets"]]
    assert found(answer.json) == found(said)


def test_repair(d, vm):
    """A TAP that somebody set down is put up again, as asked; the guest is as dead as before, and so says the answer."""
    d.netns("ip", "link", "set", vm["tap"], "down")
    looked = target_of(d.admin("POST", "/api/admin/doctor", {"vm": vm["id"], "trace": False}), vm)
    assert looked["findings"][0]["id"] == "tap.down" and looked["findings"][0]["repair"]["safe"] is True
    assert "UP" not in d.links()[vm["tap"]]["flags"]
    answer = d.admin("POST", "/api/admin/doctor", {"vm": vm["id"], "trace": False, "repair": "tap.down"})
    assert answer.status == 200
    assert any(f["repair"]["applied"] for f in target_of(answer, vm)["findings"]), answer.json
    d.netns("ip", "link", "set", vm["tap"], "up")


def test_what_the_configuration_declares(d, vm):
    """Also without the daemon: what it left in its state folder says what the bridge's address is, and that is put back unasked."""
    d.netns("ip", "address", "flush", "dev", "br0")
    status, said = d.doctor("--repair", "--no-trace")
    assert status == 10, said
    root = target_of_report(said, vm)["findings"]
    mended = next(f for f in root if f["id"] == "host.no-address")["repair"]
    assert (mended["safe"], mended["applied"], mended["proven"]) == (True, True, True), mended
    assert "192.168.0.1/16" in d.netns("ip", "-4", "address", "show", "dev", "br0").stdout
    assert target_of_report(d.doctor()[1], vm)["findings"][0]["dies_at"] in ("vmm", "guest.nic")


def test_options(d, vm):
    answer = d.admin("POST", "/api/admin/doctor", {"tap": vm["tap"], "guest_ip": vm["ip"], "guest_mac": vm["mac"],
                                                   "guest_port": 6080, "probe": False})
    assert answer.status == 200 and target_of(answer, vm)["reachable"] is None
    assert d.admin("POST", "/api/admin/doctor").status == 200


@pytest.mark.parametrize("body, status, code", [
    ({"tap": 5}, 400, "body.bad-value"),
    ({"tap": ""}, 400, "body.bad-value"),
    ({"tap": "x" * 65}, 400, "body.bad-value"),
    ({"tap": "longer-than-a-name"}, 400, "usage"),
    ({"tap": "t0", "guest_ip": "300.1.1.1"}, 400, "usage"),
    ({"guest_ip": "192.168.0.9"}, 400, "usage"),
    ({"tap": "t0", "guest_port": 0}, 400, "usage"),
    ({"tap": "t0", "guest_port": "80"}, 400, "body.bad-value"),
    ({"tap": "t0", "probe": 1}, 400, "body.bad-value"),
    ({"repair": 1}, 400, "body.bad-value"),
    ({"vm": "vm-00000000"}, 404, "doctor.no-such-vm"),
    ({"save": "/tmp/x"}, 400, None),
    ([], 400, None),
])
def test_wrong_calls(d, vm, body, status, code):
    answer = d.admin("POST", "/api/admin/doctor", body)
    assert answer.status == status, answer.body
    assert code is None or answer.json["code"] == code, answer.json


def test_a_value_is_never_an_option(d, vm):
    answer = d.admin("POST", "/api/admin/doctor", {"tap": "--save=/tmp/mine", "probe": False})
    assert answer.status in (200, 400, 404)
    assert not os.path.exists("/tmp/mine")


def test_ended_and_unknown_vms(d):
    ended = d.create(user="u2")
    d.mctl("vm", "destroy", ended["id"], "--reason", "test")
    answer = d.admin("GET", f"/api/vms/{ended['id']}/diagnostics")
    assert answer.status == 409 and answer.json["code"] == "vm.ended" and "why" in answer.json["hint"]
    assert d.admin("GET", "/api/vms/vm-ffffffff/diagnostics").status == 404


def test_the_daemon_answers_others_meanwhile_and_many_are_refused(d, vm):
    answers, slowest = [], 0.0
    ask = lambda: answers.append(d.admin("GET", f"/api/vms/{vm['id']}/diagnostics"))
    threads = [threading.Thread(target=ask) for _ in range(7)]
    for t in threads:
        t.start()
    while any(t.is_alive() for t in threads):
        began = time.monotonic()
        assert d.get("/health").status == 200
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.02)
    for t in threads:
        t.join()
    assert slowest < 1, "the loop waited for a doctor"
    assert {a.status for a in answers} <= {200, 503} and len(answers) == 7
    assert {a.json["code"] for a in answers if a.status == 503} <= {"doctor.busy"}
    assert sum(a.status == 200 for a in answers) >= 4
    assert d.admin("GET", f"/api/vms/{vm['id']}/diagnostics").status == 200


def test_a_caller_that_goes_leaves_nothing_behind(d, vm):
    with socket.create_connection(("127.0.0.1", d.port)) as s:
        s.sendall(f"GET /api/admin/health/network HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {d.token}\r\n\r\n".encode())
        time.sleep(0.1)
    children = lambda: [p for p in harness.run("ps", "-o", "pid=,args=", "--ppid", d.process.pid, check=False).stdout.splitlines()
                        if "doctor" in p]
    harness.wait_for(lambda: not children(), 30)
    assert d.get("/health").status == 200


def test_records_that_are_kept_elsewhere(tmp_path):
    """[store] file and a VM's port are in a configuration that mctl never saw; and then there is no daemon to ask."""
    with idle(store={"file": tmp_path / "elsewhere.db"}, vm={"cli_port": "7000", "cli_boot_timeout": "600"}) as d:
        vm = d.create()
        for _ in range(2):
            saved = tmp_path / "case.json"
            status, report = d.doctor("--vm", vm["id"], "--no-probe", "--save", saved)
            assert status in (0, 10), report
            assert [(t["vm_id"], t["tap"]) for t in report["targets"]] == [(vm["id"], vm["tap"])], report
            assert '"port":7000' in saved.read_text().replace(" ", "")
            if d.process.poll() is None:
                d.process.kill()
                d.process.wait()
        d.start()

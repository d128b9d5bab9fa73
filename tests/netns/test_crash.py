"""kill -9 of the daemon at every step of making and ending a VM, and at random moments. The VMM does nothing."""

import contextlib
import http.client
import os
import random
import signal
import subprocess
import threading
import time

import pytest

import crash
import harness
from harness import idle, wait_for

CONFIG = {"quota_per_user": 1000, "cli_boot_timeout": "3600"}
MOMENTS = int(os.environ.get("MC_CRASH_MOMENTS", "200"))


def ask(d, method, path, body=None):
    """A request whose answer may never come."""
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        d.request(method, path, body, unix=True, check=False, timeout=30)


def steps_of(d, countdown, action):
    """How many changes the daemon makes for it."""
    countdown.set(0)
    action()
    crash.check_whole(d, "not killed")
    return countdown.passed()


def die_at_each(d, countdown, prepare, action, what):
    prepare()
    count = steps_of(d, countdown, action)
    assert count > 20, f"{what}: {count} steps are too few: is die_at.so preloaded?"
    died = 0
    for n in range(1, count + 1):
        prepare()
        countdown.set(n)
        action()
        # The last steps may be another time's: the order of the threads is not always the same.
        with contextlib.suppress(subprocess.TimeoutExpired):
            d.process.wait(3 if n > count * 0.8 else 20)
        countdown.set(0)
        if d.process.poll() is None:
            continue
        died += 1
        assert d.process.returncode == -signal.SIGKILL
        d.start(countdown.wrapper)
        crash.check_whole(d, f"{what}: killed at step {n} of {count}")
    assert died > count * 0.7, f"{what}: died at {died} of {count} steps"


# Whatever does not answer on an API socket will do for as long as a step takes.
FIRECRACKER = {"vmm": "firecracker", "firecracker_binary": harness.IDLE_VMM, "jailer": "no"}


@pytest.mark.parametrize("driver", [{}, FIRECRACKER], ids=["qemu", "firecracker"])
def test_killed_at_every_step_of_making_a_vm(driver):
    with idle(start=False, vm={**CONFIG, **driver}) as d:
        countdown = crash.Countdown(d)
        d.start(countdown.wrapper)
        number = iter(range(10**6))

        def prepare():
            for vm in crash.live(d):
                d.mctl("vm", "destroy", vm["id"], "--reason", "next")
        die_at_each(d, countdown, prepare, lambda: ask(d, "POST", f"/api/users/u{next(number)}/vm", {}), "make")


def test_killed_at_every_step_of_ending_a_vm():
    with idle(start=False, vm=CONFIG) as d:
        countdown = crash.Countdown(d)
        d.start(countdown.wrapper)

        def prepare():
            if not crash.live(d):
                d.create(type="browser")

        def action():
            ask(d, "DELETE", f"/api/vms/{crash.live(d)[0]['id']}?reason=x")
        die_at_each(d, countdown, prepare, action, "end")


def test_killed_at_random_moments():
    """Several VMs at once, made and ended, the start itself included: it is killed again while it repairs."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    with idle(vm=CONFIG) as d:
        for moment in range(MOMENTS):
            ids = [v["id"] for v in crash.live(d)]
            requests = [("POST", f"/api/users/r{moment}-{i}/vm", {}) for i in range(3)]
            requests += [("DELETE", f"/api/vms/{i}?reason=x", None) for i in ids[:3]]
            threads = [threading.Thread(target=ask, args=(d, *r)) for r in requests]
            for t in threads:
                t.start()
            time.sleep(rng.random() * 0.12)
            d.stop(signal.SIGKILL)
            for t in threads:
                t.join(40)
                assert not t.is_alive(), f"seed {seed} moment {moment}: a caller still waits: who has its connection?"
            if rng.random() < 0.3:
                d.start(wait=False)
                time.sleep(rng.random() * 0.15)
                d.stop(signal.SIGKILL)
            d.start()
            crash.check_whole(d, f"seed {seed} moment {moment}")


def test_the_check_can_fail():
    with idle(vm=CONFIG) as d:
        vm = d.create()
        d.netns("ip", "tuntap", "add", "fc-vm-000000000", "mode", "tap")
        with pytest.raises(AssertionError):
            crash.check_whole(d, "a stray TAP")
        d.netns("ip", "link", "del", "fc-vm-000000000")
        crash.check_whole(d, "as it was")
        os.kill(d.processes()[0], signal.SIGSTOP)
        crash.check_whole(d, "a stopped VMM is one too")
        os.kill(d.processes()[0], signal.SIGCONT)
        d.mctl("vm", "destroy", vm["id"], "--reason", "x")
        wait_for(lambda: crash.groups([vm["id"]]) == [])

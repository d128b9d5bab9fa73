"""VMs with a VMM that does nothing: what the controller itself costs. Small guests: what a boot costs here."""

import time

import harness
from table import row

CREATES = 100


def timed(function, n):
    taken = []
    for i in range(n):
        began = time.perf_counter()
        function(i)
        taken.append((time.perf_counter() - began) * 1000)
    return taken


def rows():
    harness.guest_image()
    with harness.idle(vm={"quota_per_user": 1000, "browser_boot_timeout": "600"}) as d:
        create = lambda i: d.request("POST", f"/api/users/u{i}/vm", {"type": "browser"}, unix=True, check=False)
        yield row("create to VMM exec, sequential", "ms", timed(create, CREATES))
        yield row("list of 100 VMs", "ms", timed(lambda i: d.request("GET", "/api/vms", unix=True, check=False), 50))
        rss = next(int(line.split()[1]) * 1024 for line in open(f"/proc/{d.process.pid}/status")
                   if line.startswith("VmRSS"))
        yield row("memory of the daemon at 100 VMs", "bytes", [rss])
    with harness.daemon() as d:
        taken = []
        for i in range(3):
            began = time.perf_counter()
            d.create(user=f"u{i}", wait=True)
            taken.append((time.perf_counter() - began) * 1000)
        yield row("create to first ping, small guest", "ms", taken)

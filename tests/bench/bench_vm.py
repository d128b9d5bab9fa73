"""VMs with a VMM that does nothing: what the controller itself costs. Small guests: what a boot costs here."""

import concurrent.futures
import subprocess
import time

import harness
from table import row

CREATES = 100
ATTACHES = 100
APART, PAUSE_S = 30, 0.2


def timed(function, n, pause_s=0):
    taken = []
    for i in range(n):
        time.sleep(pause_s)
        began = time.perf_counter()
        function(i)
        taken.append((time.perf_counter() - began) * 1000)
    return taken


def network_tool(*commands):
    """The last answer of tests/netns/network_tool."""
    done = subprocess.run([harness.BUILD / "tests/netns/network_tool"], input="\n".join(commands) + "\n", text=True,
                          capture_output=True, check=True)
    answers = done.stdout.splitlines()
    assert len(answers) == len(commands) and all(a.startswith("ok") for a in answers), answers
    return answers


def attach_by_commands(namespace, n):
    """What an operator's script does for the same: TAP, port, isolation, names, and its elements in all sets."""
    tap, vm_id, ip, mac = f"fc-vm-{n:08x}f", f"vm-{n:08x}-f000-4000-8000-000000000000", f"192.168.99.{n}", f"02:fc:00:00:99:{n:02x}"
    by_tap = ["stopped_mac", "stopped_ip", "stopped_arp", "stopped_protocol", "stopped_neighbour", "over_fragments",
              "over_arp", "over_packets", "over_bytes_out", "over_bytes_in"]
    by_ip = ["stopped_host", "stopped_metadata", "stopped_private", "stopped_neighbour", "stopped_invalid",
             "over_new_connections", "stopped_connections"]
    elements = [f"add element bridge master_controller {s} {{ {tap} }}" for s in by_tap]
    elements += [f"add element inet master_controller {s} {{ {ip} }}" for s in by_ip]
    elements += [f"add element bridge master_controller vm_macs {{ {tap} . {mac} }}",
                 f"add element bridge master_controller vm_addresses {{ {tap} . {mac} . {ip} }}",
                 f"add element inet master_controller stopped_group {{ {tap} }}"]
    inside = ["nsenter", f"--net=/run/netns/{namespace}"]
    for words in (["ip", "tuntap", "add", tap, "mode", "tap", "vnet_hdr", "user", "4000"],
                  ["ip", "link", "set", tap, "address", f"fe:fc:00:00:99:{n:02x}", "alias", vm_id, "master", "br0", "up"],
                  ["ip", "link", "property", "add", "dev", tap, "altname", vm_id],
                  ["bridge", "link", "set", "dev", tap, "isolated", "on"]):
        subprocess.run([*inside, *words], check=True, capture_output=True)
    subprocess.run([*inside, "nft", "-f", "-"], input="\n".join(elements), text=True, check=True, capture_output=True)


def attach_rows():
    """NIC attach alone, on a bridge of its own: TAP, bridge port, isolated, named, known to the firewall, in one call."""
    namespace = f"mcbench{time.monotonic_ns() % 10**9}"
    start = f"start {namespace} br0 192.168.0.1/16 - yes"
    try:
        network_tool(start)
        commands = timed(lambda i: attach_by_commands(namespace, i + 1), 30)
        subprocess.run(["ip", "netns", "del", namespace], check=True)
        ours = network_tool(start, f"bench {ATTACHES} all")[-1].split("\t")[1].split()
        yield row("NIC attach with firewall elements", "ms", [float(x) for x in ours], commands,
                  "ip, bridge and nft commands")
        subprocess.run(["ip", "netns", "del", namespace], check=True)
        ours = network_tool(start, "bench 1000 all")[-1].split("\t")[1].split()
        yield row("NIC attach, the last 100 of 1,000", "ms", [float(x) for x in ours[-100:]])
    finally:
        subprocess.run(["ip", "netns", "del", namespace], capture_output=True)


def rss(d):
    return next(int(line.split()[1]) * 1024 for line in open(f"/proc/{d.process.pid}/status") if line.startswith("VmRSS"))


MANY = 1000
CONFIG = {"quota_per_user": 1000, "quota_host": 2000, "memory_percent": 100000, "browser_boot_timeout": "3600",
          "probe_interval": "30", "reach_interval": "30"}


def creator(d):
    def create(i):
        answer = d.request("POST", f"/api/users/u{i}/vm", {"type": "browser"}, unix=True, check=False, timeout=300)
        assert answer.status == 201, answer.body
    return create


def rows():
    """The answer to a create comes when the VMM has been executed and its TAP is a port, up, and known to the firewall."""
    yield from attach_rows()
    harness.guest_image()
    with harness.idle(vm=CONFIG) as d:
        ask = lambda method, path, body=None: d.request(method, path, body, unix=True, check=False, timeout=300)
        create = creator(d)
        create("first")
        begun = time.perf_counter()
        yield row("create to VMM exec, sequential", "ms", timed(create, CREATES))
        taken = []
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            for batch in range(5):
                taken += pool.map(lambda i: timed(lambda _: create(f"b{batch}-{i}"), 1)[0], range(20))
        yield row("create to VMM exec, 20 at once", "ms", taken)
        yield row("memory of the daemon at 200 VMs", "bytes", [rss(d)])
        more = MANY - 1 - CREATES - len(taken)
        yield row(f"create to VMM exec, from 200 to {MANY} VMs", "ms", timed(lambda i: create(f"m{i}"), more))
        yield row(f"TAPs, records, firewall and processes of {MANY} VMs", "ms", [(time.perf_counter() - begun) * 1000])
        vms = ask("GET", "/api/vms").json["vms"]
        assert len(vms) == MANY
        yield row(f"list of {MANY} VMs", "ms", timed(lambda i: ask("GET", "/api/vms"), 20))
        yield row(f"show at {MANY} VMs", "ms", timed(lambda i: ask("GET", f"/api/vms/{vms[i * 7]['id']}"), 100))
        yield row(f"memory of the daemon at {MANY} VMs", "bytes", [rss(d)])
        d.stop()
        began = time.perf_counter()
        d.start()
        yield row(f"restart of the daemon with {MANY} VMs", "ms", [(time.perf_counter() - began) * 1000])
        yield row(f"memory of the daemon after a restart with {MANY} VMs", "bytes", [rss(d)])
    with harness.idle(vm=CONFIG) as d:
        # In a row, each finds the kernel still busy with moving processes between control groups: alone it does not.
        yield row("create to VMM exec, alone", "ms", timed(creator(d), APART, PAUSE_S))
    with harness.daemon() as d:
        taken = []
        for i in range(3):
            began = time.perf_counter()
            d.create(user=f"u{i}", wait=True)
            taken.append((time.perf_counter() - began) * 1000)
        yield row("create to first ping, small guest", "ms", taken)

"""A VM that cannot be reached is looked at by the doctor, told with what it found, and never ended for it."""

import time

from harness import daemon, wait_for

BROKEN = [
    ("tap.down", lambda d, vm: d.netns("ip", "link", "set", vm["tap"], "down"),
     lambda d, vm: d.netns("ip", "link", "set", vm["tap"], "up")),
    ("", lambda d, vm: d.netns("nft", "add table bridge x; add chain bridge x y { type filter hook output priority 0; }; "
                               "add rule bridge x y drop"),
     lambda d, vm: d.netns("nft", "delete table bridge x")),
    # The host's own filter refuses to send: no probe even begins.
    ("", lambda d, vm: d.netns("nft", "add table inet x; add chain inet x y { type filter hook output priority 0; }; "
                               "add rule inet x y drop"),
     lambda d, vm: d.netns("nft", "delete table inet x")),
]


def test_an_unreachable_vm_is_examined_and_goes_on():
    with daemon(vm={"probe_timeout": "0.5", "reach_interval": "0.3"}) as d:
        vm = d.create(wait=True)
        pid = d.processes()
        for finding, break_it, mend_it in BROKEN:
            break_it(d, vm)
            wait_for(lambda: "[" in (d.vm(vm["id"])["finding"] or ""), 90, 0.5)
            told = d.vm(vm["id"])
            assert told["state"] == "running" and told["reachable"] is False
            assert finding in told["finding"] and f"ping {vm['ip']}" in told["finding"]
            time.sleep(2)
            assert d.processes() == pid and d.state_of(vm["id"]) == "running"
            mend_it(d, vm)
            wait_for(lambda: d.vm(vm["id"])["reachable"] is True, 60, 0.5)
            assert d.vm(vm["id"])["finding"] is None
            # The doctor is asked about one VM once a minute at most: each fault here gets a fresh minute.
            d.stop()
            d.start()
        d.netns("ip", "link", "del", "br0")
        wait_for(lambda: d.vm(vm["id"])["reachable"] is False, 60, 0.5)
        assert d.processes() == pid and d.state_of(vm["id"]) == "running"
        d.stop()
        d.start()
        wait_for(lambda: d.vm(vm["id"])["reachable"] is True, 60, 0.5)
        assert {e["event"] for e in d.events(vm["id"])} >= {"unreachable", "reachable"}

"""Two VMs of one image are two machines: nothing that should be a machine's own is in the image, or comes from it."""

import harness
from harness import daemon
from test_agent import shell

BOOT_S = 600

OWN = {
    "machine-id": "cat /etc/machine-id",
    "boot-id": "cat /proc/sys/kernel/random/boot_id",
    "host name": "uname -n",
    "seed": "od -An -tx1 -N16 /dev/urandom",
    "MAC": "cat /sys/class/net/e*/address",
    "address": "ip -o -4 address show scope global | awk '{print $4}'",
}


def test_two_vms_of_one_image_are_two_machines():
    with daemon(image=harness.golden_image("cli"), vm={"cli_boot_timeout": str(BOOT_S)}) as d:
        ids = [d.create(user=user)["id"] for user in ("anna", "berta")]
        for vm_id in ids:
            d.wait_state(vm_id, "running", BOOT_S)
        for what, script in OWN.items():
            first, second = (shell(d, vm_id, script).stdout.strip() for vm_id in ids)
            assert first and second and first != second, (what, first, second)
        for vm_id in ids:
            assert len(shell(d, vm_id, "cat /etc/machine-id").stdout.strip()) == 32
            assert shell(d, vm_id, "ls /etc/ssh/ssh_host_* 2>/dev/null").stdout == b""

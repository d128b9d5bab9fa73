"""Two VMs of one image are two machines: nothing that should be a machine's own is in the image, or comes from it."""

import pathlib

import harness
from harness import daemon
from test_agent import mctl_exec, shell

BOOT_S = 600

OWN = {
    "machine-id": "cat /etc/machine-id",
    "boot-id": "cat /proc/sys/kernel/random/boot_id",
    "host name": "uname -n",
    "seed": "od -An -tx1 -N16 /dev/urandom",
    "MAC": "cat /sys/class/net/e*/address",
    "address": "ip -o -4 address show scope global | awk '{print $4}'",
    "SSH host keys": "cat /etc/ssh/ssh_host_*_key",
}

# An SSH server as Debian's package has it, but for the program itself. What makes keys is the host's own.
SSH_UNIT = """[Service]
ExecStartPre=/usr/sbin/sshd -t
ExecStart=/usr/sbin/sshd -D
"""
SSHD = """#!/bin/sh
[ "$1" != -t ] || exec test -s /etc/ssh/ssh_host_ed25519_key
exec sleep infinity
"""


def put(d, vm_id, path, data, mode):
    put = mctl_exec(d, vm_id, "sh", "-c", f"mkdir -p $(dirname {path}) && cat >{path} && chmod {mode} {path}", input=data)
    assert put.returncode == 0, (path, put.stderr)


def start_ssh(d, vm_id):
    assert shell(d, vm_id, "ls /etc/ssh/ssh_host_* 2>/dev/null").stdout == b"", "the image has keys"
    put(d, vm_id, "/usr/bin/ssh-keygen", pathlib.Path("/usr/bin/ssh-keygen").read_bytes(), "755")
    put(d, vm_id, "/usr/sbin/sshd", SSHD.encode(), "755")
    put(d, vm_id, "/etc/systemd/system/ssh.service", SSH_UNIT.encode(), "644")
    started = shell(d, vm_id, "mkdir -p /etc/ssh; systemctl daemon-reload && systemctl start ssh.service && "
                              "systemctl is-active ssh.service || journalctl -b -u ssh.service -n 20")
    assert started.stdout.split() == [b"active"], started.stdout.decode()


def test_two_vms_of_one_image_are_two_machines():
    with daemon(image=harness.golden_image("cli"), vm={"cli_boot_timeout": str(BOOT_S)}) as d:
        ids = [d.create(user=user)["id"] for user in ("anna", "berta")]
        for vm_id in ids:
            d.wait_state(vm_id, "running", BOOT_S)
            start_ssh(d, vm_id)
        for what, script in OWN.items():
            first, second = (shell(d, vm_id, script).stdout.strip() for vm_id in ids)
            assert first and second and first != second, (what, first, second)
        for vm_id in ids:
            assert len(shell(d, vm_id, "cat /etc/machine-id").stdout.strip()) == 32
            assert len(shell(d, vm_id, "ls /etc/ssh/ssh_host_*_key").stdout.split()) == 3
            # Where its randomness comes from: the host's, by a device of its own.
            source = shell(d, vm_id, "cat /sys/class/misc/hw_random/rng_current; dmesg | grep -c 'crng init done'").stdout.split()
            assert source[0].startswith(b"virtio_rng") and source[1] == b"1", source

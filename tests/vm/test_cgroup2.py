"""Control groups of version 2, on a guest's kernel: this machine's own may have version 1."""

import subprocess

import harness
from under_systemd import told_by


def test_version_2(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "init").write_bytes((harness.BUILD / "tests/vm/cgroup-tool").read_bytes())
    (root / "init").chmod(0o755)
    harness.guest_image()
    kernel = sorted((harness.HERE / ".cache/kernel").glob("*/boot/vmlinuz-*"))[-1]
    with (tmp_path / "initrd").open("wb") as out:
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], input=b"init\n", cwd=root, stdout=out, check=True)
    said = subprocess.run(
        ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-m", "256", "-display", "none", "-serial", "stdio",
         "-no-reboot", "-nodefaults", "-kernel", kernel, "-initrd", tmp_path / "initrd",
         "-append", "console=ttyS0 panic=-1 quiet"], capture_output=True, text=True, errors="replace", timeout=240).stdout
    lines = [line.strip() for line in said.splitlines() if "cgroup-tool:" in line]
    assert "cgroup-tool: done" in lines[-1], said[-3000:]
    assert not [line for line in lines if "FAILED" in line], "\n".join(lines)
    assert sum(": ok" in line or " ok " in line for line in lines) >= 16, "\n".join(lines)


SCRIPT = r"""
mctl() { command mctl "$@" 2>&1; }
field() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" | head -n 1; }
show() { for file in "$@"; do echo "$file: $(tr '\n' ' ' <$file)"; done; }
until_live() { for i in $(seq 60); do mctl vm list >/dev/null && return; sleep 0.2; done; }
main() { systemctl show --value -p MainPID master-controller; }
story() { echo "$1: $(mctl --json vm show $id | field state), VMM $(cat $group/cgroup.procs)"; }
modprobe -a tun bridge
systemctl start master-controller || { cat /log; poweroff -f; }
groups=/sys/fs/cgroup/system.slice/master-controller-vms.service/master-controller
mctl --json vm create --user u --type cli >/tmp/made
id=$(field id </tmp/made)
[ "$id" ] || { cat /tmp/made; poweroff -f; }
group=$groups/$id
cd $group && show memory.max memory.oom.group pids.max cpu.max && cd /
echo "daemon: $(cat /proc/$(main)/cgroup)"
story "made"
systemctl restart master-controller && until_live
story "restarted"
kill -9 $(main | sed s/^0$/none/)
sleep 1
until_live
story "killed"
mctl vm destroy $id --reason done
echo "destroyed: $(ls -d $group 2>&1)"
sed -i s/idle-vmm/hungry-vmm/ /etc/master-controller/master-controller.conf
systemctl restart master-controller && until_live
id=$(mctl --json vm create --user u --type cli | field id)
for i in $(seq 60); do [ "$(mctl --json vm show $id | field state)" = failed ] && break; sleep 0.2; done
mctl vm why $id | sed -n 's/^cause/hungry/p'
echo "left: $(ls $groups | grep -c vm-)"
cat /log
echo end of test
"""


def test_the_daemon_under_systemd(tmp_path):
    """With version 2 and the units of doc/: a VM is limited, outlives a restart and a crash of the daemon, and what comes to its
    group's limit is told."""
    lines = told_by(tmp_path, SCRIPT)
    assert "end of test" in lines, "\n".join(lines[-60:])
    told = dict(line.split(": ", 1) for line in lines if ": " in line)
    whole = "\n".join(lines)
    vmm = told["made"].removeprefix("booting, VMM ")
    assert int(vmm) > 1, whole
    assert (told["memory.oom.group"], told["pids.max"], told["cpu.max"]) == ("1 ", "512 ", "150000 100000 "), whole
    assert 128 << 20 < int(told["memory.max"]) < 800 << 20, whole
    assert told["daemon"] == "0::/system.slice/master-controller.service", whole
    assert told["restarted"] == told["killed"] == told["made"], whole
    assert "No such file" in told["destroyed"] and told["left"] == "0", whole
    assert "memory limit of a VM of 128 MiB" in told["hungry"] and "[host.oom]" in told["hungry"], whole

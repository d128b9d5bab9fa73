"""A small machine with systemd as its first process, control groups of version 2 and this build's daemon in it as the service
that doc/ ships: what the host of these tests may not have. Its packages are the host's own programs."""

import pathlib
import shutil
import subprocess

import harness
from harness import HERE, run

SYSTEMD = pathlib.Path("/usr/lib/systemd/systemd")
MODULES = ("net/bridge", "net/llc", "net/802", "net/netfilter", "net/ipv4/netfilter", "net/ipv6/netfilter", "lib", "drivers/net/tun.ko")
CONFIG = """[network]
namespace = mc
[vm]
qemu_binary = /usr/local/bin/idle-vmm
accel = tcg
cli_memory = 128
stop_timeout = 0.3
[image]
directory = /image
[api]
web_directory = /web
"""


class Root:
    """The folder that becomes the machine's disk."""

    def __init__(self, folder):
        self.path = folder
        for name in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "usr/local/bin", "usr/local/sbin", "proc", "sys", "dev", "run", "tmp",
                     "var/lib", "etc/master-controller", "etc/systemd/system", "web", "image"):
            (folder / name).mkdir(parents=True)
        (folder / "var/run").symlink_to("/run")
        for name in ("bin", "sbin", "lib", "lib64"):
            (folder / name).symlink_to(f"usr/{name}")

    def write(self, name, text):
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def program(self, source, name):
        """With the libraries that it needs."""
        shutil.copy(source, self.path / name)
        for word in run("ldd", source, check=False).stdout.split():
            library = self.path / word.lstrip("/")
            if word.startswith("/") and not library.exists():
                library.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(word, library)

    def modules(self, kernel):
        """Those that the data plane needs, found by the kernel's own asking."""
        version = kernel.name.removeprefix("vmlinuz-")
        there = kernel.parents[1] / "lib/modules" / version
        here = self.path / "usr/lib/modules" / version
        for name in MODULES:
            (here / "kernel" / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (there / "kernel" / name).is_dir() else shutil.copy
            copy(there / "kernel" / name, here / "kernel" / name)
        for name in there.glob("modules.*"):
            shutil.copy(name, here)
        run("depmod", "-b", self.path, version)


def make_root(folder, kernel, script):
    root = Root(folder)
    root.program(shutil.which("busybox"), "usr/bin/busybox")
    for applet in set(run("busybox", "--list").stdout.split()) - {"busybox", "modprobe"}:
        (folder / "usr/bin" / applet).symlink_to("busybox")
    root.program(shutil.which("kmod"), "usr/bin/kmod")
    (folder / "usr/sbin/modprobe").symlink_to("../bin/kmod")
    (folder / "usr/lib/systemd").mkdir()
    root.program(SYSTEMD, "usr/lib/systemd/systemd")
    (folder / "usr/sbin/init").symlink_to("../lib/systemd/systemd")
    root.program(shutil.which("systemctl"), "usr/bin/systemctl")
    root.program(harness.DAEMON, "usr/local/sbin/master-controller")
    root.program(harness.MCTL, "usr/local/sbin/mctl")
    root.program(harness.IDLE_VMM, "usr/local/bin/idle-vmm")
    root.program(harness.BUILD / "tests/vm/hungry-vmm", "usr/local/bin/hungry-vmm")
    root.modules(kernel)
    build = (harness.TEST_GUEST / "current").resolve()
    shutil.copytree(build, folder / "image" / build.name)
    (folder / "image/current").symlink_to(build.name)
    shutil.copytree(HERE / "web", folder / "web", dirs_exist_ok=True)
    root.write("etc/master-controller/master-controller.conf", CONFIG)
    for name in ("machine-id", "os-release"):
        root.write(f"etc/{name}", "")
    units = "etc/systemd/system"
    for unit in (HERE / "doc").glob("*.service"):
        shutil.copy(unit, folder / units)
    for name in ("sysinit", "basic", "network", "shutdown"):
        root.write(f"{units}/{name}.target", "[Unit]\n")  # an empty one would be masked
    root.write(f"{units}/default.target", "[Unit]\nWants=test.service\n")
    root.write(f"{units}/test.service", "[Service]\nExecStart=/bin/sh /test.sh\n")
    root.write(f"{units}/master-controller.service.d/log.conf", "[Service]\nStandardError=append:/log\n")
    root.write("test.sh", "exec >/dev/ttyS0 2>&1\nexport PATH=/usr/local/sbin:/usr/bin:/usr/sbin\n" + script + "\npoweroff -f\n")


def told_by(folder, script):
    """What the script says on such a machine, in lines."""
    harness.guest_image()
    kernel = sorted((HERE / ".cache/kernel").glob("*/boot/vmlinuz-*"))[-1]
    root, disk = folder / "root", folder / "root.ext4"
    make_root(root, kernel, script)
    run("mke2fs", "-q", "-t", "ext4", "-d", root, disk, "400M")
    shutil.rmtree(root)
    said = subprocess.run(
        ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-m", "1024", "-display", "none", "-serial", "stdio", "-no-reboot",
         "-nodefaults", "-kernel", kernel, "-initrd", harness.TEST_GUEST / "current/initrd.img", "-drive", f"file={disk},format=raw,if=virtio",
         "-append", "console=ttyS0 panic=-1 quiet no_timer_check root=/dev/vda rootfstype=ext4 rw systemd.show_status=false "
         "systemd.log_target=console systemd.log_color=false"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=400).stdout
    return said.replace("\r", "").splitlines()

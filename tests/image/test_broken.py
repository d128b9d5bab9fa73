"""Images that are broken in one way each: that one thing is named, with what it breaks and how to mend it, and nothing
else is. Each is the good image, edited with debugfs or byte by byte."""

import struct

import pytest

import golden
from edit import ETC, WANTS, Edit
from golden import KERNEL, verify, version_of


BROKEN = {}


def broken(*ids, named=""):
    """Registers a way to break an image. ids: the failures that must be found, and no others; named: must stand in a
    title."""
    def register(fn):
        assert fn.__name__ not in BROKEN
        BROKEN[fn.__name__] = (fn, set(ids), named)
        return fn
    return register


def without_package(e, name, also=()):
    packages = [p for p in golden.PACKAGES["browser"] if p != name and p not in also]
    e.put("/var/lib/dpkg/status", golden.status_text(packages))
    e.manifest(lambda m: m.update(packages=[{"name": p, "version": version_of(p)} for p in packages]))


for package in ["xvfb", "openbox", "x11vnc", "websockify", "chromium", "acpid", "udev", "fonts-liberation"]:
    broken("package.missing", named=package)(
        type("", (), {"__call__": lambda self, e, p=package: without_package(e, p), "__name__": f"no_package_{package}"})())
for unit in ["mc-agent", "xvfb", "openbox", "x11vnc", "websockify", "chromium"]:
    broken("unit.not-enabled", named=f"{unit}.service")(
        type("", (), {"__call__": lambda self, e, u=unit: e.rm(f"{WANTS}/{u}.service"), "__name__": f"{unit}_not_enabled"})())


@broken("package.missing", named="linux-image")
def no_kernel_package(e):
    without_package(e, "linux-image-cloud-amd64", [f"linux-image-{KERNEL}"])


@broken("package.half-installed", "package.missing", "manifest.packages", named="x11vnc")
def half_installed(e):
    e.change("/var/lib/dpkg/status", "Package: x11vnc\nStatus: install ok installed", "Package: x11vnc\nStatus: install ok half-configured")


@broken("package.no-records", named="status")
def no_dpkg_status(e):
    e.rm("/var/lib/dpkg/status")


@broken("manifest.packages", named="chromium")
def other_version(e):
    e.change("/var/lib/dpkg/status", f"Version: {version_of('chromium')}\nDescription", "Version: 999\nDescription")


@broken("manifest.packages", named="surprise")
def package_beyond_manifest(e):
    e.put("/var/lib/dpkg/status", golden.status_text(golden.PACKAGES["browser"] + ["surprise"]))


@broken("unit.missing", named="x11vnc.service")
def unit_missing(e):
    e.rm(f"{ETC}/x11vnc.service")


@broken("unit.masked", named="chromium.service")
def unit_masked(e):
    e.link(f"{ETC}/chromium.service", "/dev/null")


@broken("unit.masked", named="openbox.service")
def unit_masked_by_empty_file(e):
    e.put(f"{ETC}/openbox.service", "")


@broken("unit.not-enabled", named="xvfb.service")
def enabled_in_a_target_that_nobody_reaches(e):
    e.rm(f"{WANTS}/xvfb.service")
    e.mkdir(f"{ETC}/graphical.target.wants")
    e.link(f"{ETC}/graphical.target.wants/xvfb.service", f"{ETC}/xvfb.service", new=True)


@broken("unit.exec-missing", named="/usr/bin/x11vnc")
def program_missing(e):
    e.rm("/usr/bin/x11vnc")


@broken("unit.exec-not-executable", named="/usr/bin/Xvfb")
def program_not_executable(e):
    e.mode("/usr/bin/Xvfb", 0o100644)


@broken("unit.exec-not-executable", named="openbox")
def program_not_for_the_user(e):
    e.mode("/usr/bin/openbox", 0o100700)


@broken("unit.exec-interpreter", "files.program", named="python3")
def interpreter_missing(e):
    e.rm("/usr/bin/python3")


@broken("unit.exec-library", named="libselinux.so.1")
def library_missing(e):
    e.rm(next(p for p in golden.libraries_of("/bin/ls") if "libselinux" in p))


@broken("unit.exec-format", named="/usr/bin/openbox")
def program_for_another_processor(e):
    data = bytearray(open("/bin/true", "rb").read())
    data[18:20] = struct.pack("<H", 8)  # EM_MIPS
    e.put("/usr/bin/openbox", bytes(data), 0o755)


@broken("unit.exec-format", named="/usr/bin/x11vnc")
def program_empty(e):
    e.put("/usr/bin/x11vnc", "", 0o755)


@broken("unit.exec-missing", named="wait-for")
def helper_missing(e):
    e.rm("/usr/lib/master-controller/wait-for")


@broken("unit.file-missing", named="rc.xml")
def configuration_missing(e):
    e.rm("/etc/xdg/openbox/rc.xml")


@broken("unit.file-missing", named="start.html")
def start_page_missing(e):
    e.rm("/usr/share/master-controller/start.html")


@broken("unit.no-command", named="x11vnc.service")
def unit_without_command(e):
    e.put(f"{ETC}/x11vnc.service", "[Unit]\nDescription=x\n[Service]\nUser=desktop\n")


@broken("unit.exec-missing", named="/opt/nothing")
def drop_in_replaces_the_command(e):
    e.mkdir(f"{ETC}/chromium.service.d")
    e.put(f"{ETC}/chromium.service.d/override.conf",
          "[Service]\nExecStart=\nExecStart=/opt/nothing --no-first-run \\\n  --more\n", new=True)


CONDITIONS = {  # of a unit that the image needs, one a line, and which of them is named
    "a_file_that_is_there": ["PathExists=/etc/hosts", "PathExists=!/etc/passwd"],
    "a_file_that_is_not": ["PathExists=/opt/licence"],
    "a_folder_that_is_a_file": ["PathIsDirectory=/etc", "PathIsDirectory=/etc/hosts"],
    "an_empty_file": ["FileNotEmpty=/etc/machine-id"],
    "a_program_that_is_none": ["FileIsExecutable=/bin/sh", "FileIsExecutable=/etc/hosts"],
    "an_empty_folder": ["DirectoryNotEmpty=/root"],
    "a_link_that_is_none": ["PathIsSymbolicLink=/sbin/init", "PathIsSymbolicLink=/etc/hosts"],
    "containers_alone": ["Virtualization=vm", "Virtualization=container"],
    "no_machine_that_is_virtual": ["Virtualization=no"],
    "vmware_alone": ["Virtualization=vmware"],
    "a_word_that_no_kernel_is_given": ["KernelCommandLine=root", "KernelCommandLine=console=ttyS0", "KernelCommandLine=desktop.start"],
    "the_first_boot": ["FirstBoot=no", "FirstBoot=yes"],
    "another_processor": ["Architecture=x86-64", "Architecture=arm64"],
    "another_user": ["User=root", "User=1000"],
    "none_of_several": ["PathExists=/etc/hosts", "PathExists=|/opt/b", "PathExists=| !/etc/hosts"],
}
for name, lines in CONDITIONS.items():
    broken("unit.condition", named=f"Condition{lines[-1]}" if name != "none_of_several" else "/opt/b")(
        type("", (), {"__call__": lambda self, e, lines=lines: e.condition("openbox.service", *("Condition" + line for line in lines)),
                      "__name__": f"condition_{name}"})())


@broken("unit.assert", named="AssertPathExists=/opt/licence")
def assertion_that_does_not_hold(e):
    e.condition("xvfb.service", "AssertPathExists=/opt/licence")


@broken("unit.condition", named="acpid.service")
def condition_of_what_a_socket_starts(e):
    e.change("/lib/systemd/system/acpid.service", "[Service]", "[Unit]\nConditionPathExists=/dev/null/x\nConditionVirtualization=container\n[Service]")


@broken("unit.exec-missing", named="/usr/sbin/acpid")
def power_button_daemon_missing(e):
    e.rm("/usr/sbin/acpid")


@broken("files.needed", named="power-button")
def power_button_does_nothing(e):
    e.rm("/etc/acpi/events/power-button")


@broken("files.needed", named="ca-certificates.crt")
def no_certificates(e):
    e.put("/etc/ssl/certs/ca-certificates.crt", "")


@broken("files.program", named="mc-oidc")
def login_tool_missing(e):
    e.rm("/usr/bin/mc-oidc")


@broken("files.program", named="mc-oidc")
def login_tool_for_root_alone(e):
    e.mode("/usr/bin/mc-oidc", 0o100700)


@broken("network.names", named="99-default.link")
def card_gets_another_name(e):
    e.rm("/etc/systemd/network/99-default.link")


@broken("unit.default-target", "unit.not-enabled", named="multi-user.target")
def default_target_rescue(e):
    e.link(f"{ETC}/default.target", "/lib/systemd/system/rescue.target")


@broken("unit.default-target", "unit.not-enabled", named="nowhere")
def default_target_nowhere(e):
    e.rm(f"{ETC}/default.target")


@broken("account.missing", "unit.user-missing", named="desktop")
def user_missing(e):
    e.change("/etc/passwd", "desktop:x:1000:1000::/home/desktop:/usr/sbin/nologin\n", "")


@broken("account.second-root", "account.is-root", "account.home", named="uid 0")
def user_is_root(e):
    e.change("/etc/passwd", "desktop:x:1000:", "desktop:x:0:")


@broken("account.home", "files.needed", named="/home/desktop")
def home_missing(e):
    e.rm("/home/desktop/.config/chromium/Default/Preferences")
    e.do(*(f"rmdir /home/desktop{folder}" for folder in ("/.config/chromium/Default", "/.config/chromium", "/.config", "")))


@broken("account.home", named="uid 0")
def home_of_another(e):
    e.do("sif /home/desktop uid 0")


@broken("account.password", named="root")
def root_password(e):
    e.change("/etc/shadow", "root:!*:", "root:$y$j9T$abcdefgh$0123456789:", 0o640)


@broken("account.no-password", named="desktop")
def empty_password(e):
    e.put("/etc/shadow", "root:!*:20000::::::\ndesktop::20000::::::\n", 0o640)


@broken("account.password", named="/etc/passwd")
def password_in_passwd(e):
    e.change("/etc/passwd", "daemon:x:", "daemon:$1$abc$def:")


@broken("account.no-shadow", named="/etc/shadow")
def no_shadow(e):
    e.rm("/etc/shadow")


@broken("account.shadow-mode", named="0644")
def readable_shadow(e):
    e.mode("/etc/shadow", 0o100644)


@broken("ssh.authorized-keys", named="/root/.ssh/authorized_keys")
def authorized_keys(e):
    e.mkdir("/root/.ssh")
    e.put("/root/.ssh/authorized_keys", "ssh-ed25519 AAAA me@host\n", new=True)


@broken("ssh.server", named="/usr/sbin/sshd")
def sshd(e):
    e.put("/usr/sbin/sshd", b"\x7fELF", 0o755, new=True)


@broken("identity.secret", named="ssh_host_rsa_key")
def host_key(e):
    e.mkdir("/etc/ssh")
    e.put("/etc/ssh/ssh_host_rsa_key", "-----BEGIN", 0o600, new=True)


@broken("identity.machine-id", named="/etc/machine-id")
def machine_id(e):
    e.put("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")


@broken("identity.machine-id-missing", named="/etc/machine-id")
def machine_id_missing(e):
    e.rm("/etc/machine-id")


@broken("files.hosts-missing", named="/etc/hosts")
def hosts_missing(e):
    e.rm("/etc/hosts")


@broken("files.hosts-localhost", named="localhost")
def hosts_without_localhost(e):
    e.put("/etc/hosts", "127.0.0.1 localhost4\n#127.0.0.1 localhost\n::1 localhost\n")


@broken("files.resolver-fixed", named="/etc/resolv.conf")
def resolver_of_the_build_host(e):
    e.put("/etc/resolv.conf", "nameserver 10.0.0.53\n")


@broken("files.resolver-elsewhere", named="stub-resolv.conf")
def resolver_of_resolved(e):
    e.link("/etc/resolv.conf", "/run/systemd/resolve/stub-resolv.conf")


@broken("files.resolver-missing", named="/etc/resolv.conf")
def no_resolver(e):
    e.rm("/etc/resolv.conf")


@broken("files.nsswitch", named="nsswitch")
def nsswitch_without_files(e):
    e.put("/etc/nsswitch.conf", "hosts: dns\n")


@broken("files.fstab", named="/boot/efi")
def fstab_of_a_server(e):
    e.put("/etc/fstab", "# made by an installer\nUUID=1234-ABCD /boot/efi vfat umask=0077 0 1\ntmpfs /tmp tmpfs defaults 0 0\n")


@broken("root.folder-missing", named="/proc")
def no_proc(e):
    e.do("rmdir /proc")


@broken("root.tmp-mode", named="/tmp")
def tmp_for_root_alone(e):
    e.mode("/tmp", 0o40755)


@broken("root.init", named="/sbin/init")
def no_init(e):
    e.rm("/sbin/init")


@broken("root.init", named="/sbin/init")
def init_links_to_itself(e):
    e.link("/sbin/init", "init")


@broken("network.networkd", "unit.exec-missing", named="systemd-networkd")
def networkd_too(e):
    e.link(f"{WANTS}/systemd-networkd.service", "/lib/systemd/system/systemd-networkd.service", new=True)
    e.put(f"{ETC}/systemd-networkd.service", "[Service]\nExecStart=!!/lib/systemd/systemd-networkd\n", new=True)


@broken("network.networkmanager", named="NetworkManager")
def networkmanager_too(e):
    e.link(f"{WANTS}/NetworkManager.service", "/lib/systemd/system/NetworkManager.service", new=True)


@broken("network.ifupdown", named="ifupdown")
def ifupdown_too(e):
    e.link(f"{WANTS}/networking.service", "/lib/systemd/system/networking.service", new=True)
    e.mkdir("/etc/network")
    e.put("/etc/network/interfaces", "auto lo\niface lo inet loopback\nallow-hotplug eth0\niface eth0 inet dhcp\n", new=True)


@broken("network.ifupdown", named="networking.service")
def ifupdown_in_one_of_several_files(e):
    e.link(f"{WANTS}/networking.service", "/lib/systemd/system/networking.service", new=True)
    e.mkdir("/etc/network/interfaces.d")
    for name, text in {"a": "auto lo\niface lo inet loopback\n", "b": "auto eth0\niface eth0 inet dhcp\n", "c": "# nothing\n"}.items():
        e.put(f"/etc/network/interfaces.d/{name}", text, new=True)


@broken("network.ifupdown", named="udev")
def ifupdown_without_its_service(e):
    e.mkdir("/lib/udev")
    e.put("/lib/udev/ifupdown-hotplug", "#!/bin/sh\n", 0o755, new=True)
    e.mkdir("/etc/network")
    e.put("/etc/network/interfaces", "allow-hotplug eth0\niface eth0 inet dhcp\n", new=True)


@broken("network.cloud-init", named="cloud-init")
def cloud_init_too(e):
    e.link(f"{WANTS}/cloud-init.service", "/lib/systemd/system/cloud-init.service", new=True)


@broken("network.netplan", named="netplan")
def netplan_too(e):
    e.mkdir("/lib/systemd/system-generators")
    e.put("/lib/systemd/system-generators/netplan", b"\x7fELF", 0o755, new=True)
    e.mkdir("/etc/netplan")
    e.put("/etc/netplan/50-cloud-init.yaml", "network: {version: 2}\n", new=True)


@broken("network.firewall", named="nftables.service")
def guest_firewall(e):
    e.link(f"{WANTS}/nftables.service", "/lib/systemd/system/nftables.service", new=True)


@broken("network.none", named="initramfs")
def initramfs_of_a_distribution(e):
    e.resize_part("initrd", golden.pack([("init", 0o100755, b"#!/bin/sh\n"), ("conf/initramfs.conf", 0o100644, b"MODULES=most\n")]))


@broken("desktop.port", named="6081")
def another_port(e):
    e.change(f"{ETC}/websockify.service", "0.0.0.0:6080", "0.0.0.0:6081")


@broken("desktop.loopback", named="127.0.0.1")
def loopback_only(e):
    e.change(f"{ETC}/websockify.service", "0.0.0.0:6080", "127.0.0.1:6080")


@broken("desktop.backend", named="5901")
def another_rfb_port(e):
    e.change(f"{ETC}/x11vnc.service", "-rfbport 5900", "-rfbport 5901")


@broken("desktop.display", named=":1")
def another_display(e):
    e.change(f"{ETC}/x11vnc.service", "-display :0", "-display :1")


@broken("chromium.policy", named="PasswordManagerEnabled")
def passwords_are_kept(e):
    e.change("/etc/chromium/policies/managed/master-controller.json", '"PasswordManagerEnabled": false', '"PasswordManagerEnabled": true')


@broken("chromium.policy", named="DownloadRestrictions")
def two_policies_that_disagree(e):
    e.put("/etc/chromium/policies/managed/a.json", '{"DownloadRestrictions": 0}', new=True)


@broken("chromium.policy-broken", named="master-controller.json")
def policy_is_not_json(e):
    e.put("/etc/chromium/policies/managed/master-controller.json", "{,}")


@broken("chromium.first-run", named="--no-first-run")
def first_run_pages(e):
    e.change(f"{ETC}/chromium.service", "--no-first-run ", "")


@broken("kernel.version", "kernel.initrd-modules", "kernel.modules-version", named="6.12.1-amd64")
def another_kernel(e):
    e.resize_part("kernel", golden.bzimage("6.12.1-amd64"))


@broken("kernel.version", named="6.12.1-amd64")
def another_vmlinux(e):
    e.resize_part("vmlinux", golden.vmlinux("6.12.1-amd64"))


@broken("kernel.format", named="ELF")
def vmlinux_is_a_bzimage(e):
    e.resize_part("vmlinux", golden.bzimage())


@broken("kernel.format", named="bzImage")
def kernel_is_garbage(e):
    e.resize_part("kernel", bytes(range(256)) * 64)


@broken("kernel.driver-missing", named="virtio_net")
def no_network_driver(e):
    e.resize_part("initrd", golden.pack(golden.initrd_entries(modules=[m for m in golden.MODULES if m != "virtio_net.ko"])))


@broken("kernel.initrd-modules", named="5.10.0")
def drivers_for_another_kernel(e):
    e.resize_part("initrd", golden.pack(golden.initrd_entries("5.10.0-1-amd64")))


@broken("kernel.initrd-incomplete", named="virtio_blk.ko")
def listed_driver_is_not_there(e):
    e.resize_part("initrd", golden.pack([x for x in golden.initrd_entries() if x[0] != "modules/virtio_blk.ko"]))


@broken("kernel.initrd-init", named="/init")
def initramfs_without_init(e):
    e.resize_part("initrd", golden.pack([x for x in golden.initrd_entries() if x[0] != "init"]))


@broken("kernel.initrd-damaged", named="initramfs")
def initramfs_cut(e):
    e.resize_part("initrd", golden.pack(golden.initrd_entries())[:-200])


@broken("kernel.modules-version", named="6.12.1-amd64")
def modules_of_another_kernel(e):
    e.do(f"mkdir /lib/modules/6.12.1-amd64", f"ln /lib/modules/{KERNEL}/modules.dep /lib/modules/6.12.1-amd64/modules.dep",
         f"sif /lib/modules/6.12.1-amd64/modules.dep links_count 2", f"rm /lib/modules/{KERNEL}/modules.builtin",
         f"rm /lib/modules/{KERNEL}/modules.dep", f"rmdir /lib/modules/{KERNEL}")


@broken("kernel.modules-dep", named="modules.dep")
def no_modules_dep(e):
    e.rm(f"/lib/modules/{KERNEL}/modules.dep")


@broken("kernel.modules-several", named="2 kernels")
def two_kernels(e):
    e.mkdir("/lib/modules/5.10.0-1-amd64")


@broken("manifest.type", named="cli")
def wrong_type(e):
    e.put("/usr/lib/master-controller/image", f"TYPE=cli\nRECIPE={'ab' * 32}\n")


@broken("manifest.recipe", named="cdcdcd")
def wrong_recipe(e):
    e.put("/usr/lib/master-controller/image", f"TYPE=browser\nRECIPE={'cd' * 32}\n")


@broken("manifest.screen", named="tigervnc")
def wrong_screen(e):
    e.manifest(lambda m: m.update(screen="tigervnc"))


@broken("image.screen", named="mirror")
def screen_that_nobody_knows(e):
    e.put("/usr/lib/master-controller/image", f"TYPE=browser\nRECIPE={'ab' * 32}\nSCREEN=mirror\n")


@broken("manifest.uuid", named="6d630000")
def wrong_uuid(e):
    e.manifest(lambda m: m["rootfs"].update(uuid="00000000-0000-0000-0000-000000000000"))


@broken("manifest.size", named="rootfs.ext4")
def root_grew(e):
    with open(e.rootfs, "ab") as f:
        f.write(bytes(4096))


@broken("manifest.part-missing", named="initrd.img")
def no_initrd(e):
    (e.image / "initrd.img").unlink()


@broken("manifest.missing", named="manifest.json")
def no_manifest(e):
    (e.image / "manifest.json").unlink()


@broken("manifest.invalid", named="JSON")
def manifest_is_garbage(e):
    (e.image / "manifest.json").write_text("{")


@broken("manifest.schema", named="image-manifest/1")
def manifest_of_the_future(e):
    e.manifest(lambda m: m.update(schema="image-manifest/9"))


@broken("manifest.agent", named="no agent")
def manifest_knows_no_agent(e):
    e.manifest(lambda m: m.pop("agent"))


@broken("manifest.agent", named="another program")
def another_agent(e):
    e.put("/usr/lib/master-controller/mc-agent", open("/bin/ls", "rb").read(), 0o755)


@broken("agent.missing", "unit.exec-missing", named="mc-agent")
def agent_missing(e):
    e.rm("/usr/lib/master-controller/mc-agent")


@broken("unit.masked", named="mc-agent.service")
def agent_masked(e):
    e.link(f"{ETC}/mc-agent.service", "/dev/null")


# ---- the file system itself

@broken("fs.not-clean", named="unmounted")
def not_clean(e):
    e.do("ssv state 0")


@broken("fs.errors", named="errors")
def has_errors(e):
    e.do("ssv state 3")


@broken("fs.journal-dirty", named="journal")
def needs_recovery(e):
    e.do("feature needs_recovery")


@broken("fs.no-journal", named="journal")
def no_journal(e):
    golden.run("tune2fs", "-O", "^has_journal", e.rootfs)


@broken("fs.features", named="0x")
def feature_of_the_future(e):
    e.do("feature +orphan_file", "ssv feature_ro_compat 0x80000469")


@broken("fs.read-only", named="read-only")
def marked_read_only(e):
    e.do("feature read-only")


@broken("fs.orphans", named="deleted")
def orphans(e):
    e.do("ssv last_orphan 100")


@broken("space.blocks", "space.inodes", named="MiB")
def disk_full(e):
    golden.run("resize2fs", "-M", e.rootfs)
    with open(e.rootfs, "r+b") as f:
        f.truncate(300 * golden.MIB)


@broken("fs.cut", named="shorter")
def cut_in_the_middle(e):
    with open(e.rootfs, "r+b") as f:
        f.truncate(100 * golden.MIB)
    e.manifest(lambda m: m["rootfs"].update(size=100 * golden.MIB))


@broken("fs.not-ext4", named="not an ext4")
def zeroed_head(e):
    e.poke(0, bytes(4096))


@broken("fs.corrupt", named="looked into")
def superblock_checksum(e):
    e.poke(1024 + 0x58, b"\xff\x01")  # s_inode_size


@broken("fs.damaged", named="group descriptor")
def group_checksum(e):
    e.poke(4096 + 0x1e, b"\xff\xff")


@broken("fs.damaged", "unit.file-missing", named="/etc/xdg")
def inode_freed(e):
    e.do("clri /etc/xdg")


@broken("fs.damaged", named="no folder names")
def file_without_a_name(e):
    e.do("unlink /usr/share/master-controller/start.html", "ln /etc/hosts /usr/share/master-controller/start.html",
         "sif /etc/hosts links_count 2")


@broken("fs.damaged", named="marked free")
def block_marked_free(e):
    blocks = golden.run("debugfs", "-R", "blocks /var/lib/dpkg/status", e.rootfs).stdout.decode().split()
    e.do(f"freeb {blocks[0]}")


@broken("fs.damaged", named="loop")
def folder_loop(e):
    e.do("ln /usr /usr/lib/again")


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_broken(name, image, tmp_path):
    fn, ids, named = BROKEN[name]
    edit = Edit(image, tmp_path)
    fn(edit)
    edit.apply()
    report = verify(image, "--quick", check=1)
    found = [f for f in report["findings"] if f["role"] == "failure"]
    assert {f["id"] for f in found} == ids, "\n".join(f["id"] + ": " + f["title"] for f in found)
    assert any(named in f["title"] for f in found), [f["title"] for f in found]
    assert all(f["breaks"] and f["mend"] and f["object"] for f in found), found
    assert not report["good"] and report["failures"] >= len(ids)


def test_there_are_many():
    assert len(BROKEN) >= 40

"""A small image that is good: made of a tree like the real one's in a second, so that it can be broken in many ways.

Its programs are copies of this host's /bin/true and /bin/ls with their libraries, its kernel is a header with a version,
its initramfs an archive with drivers that say for which kernel they are. What looks into it must not see a difference."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess

HERE = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("MC_BUILD", HERE / "build"))
MCTL = BUILD / "src/cli/mctl"
RECIPE = HERE / "guest/recipe"
KERNEL = "6.1.0-56-cloud-amd64"
UUID = "6d630000-676f-4c64-8065-6e0000000000"
MIB = 1 << 20

COMMON = ["libc6", "systemd", "systemd-sysv", "udev", "kmod", f"linux-image-{KERNEL}", "linux-image-cloud-amd64", "acpid",
          "iproute2", "base-files", "ca-certificates", "python3"]
PACKAGES = {
    "browser": COMMON + ["xvfb", "openbox", "x11vnc", "websockify", "chromium", "fonts-liberation", "fonts-dejavu-core"],
    "cli": COMMON + ["curl", "git", "less", "procps"],
}
MODULES = ["virtio.ko", "virtio_ring.ko", "virtio_pci.ko", "virtio_mmio.ko", "virtio_blk.ko", "virtio_net.ko",
           "virtio_console.ko", "virtio-rng.ko"]


def run(*argv, **options):
    env = dict(os.environ, PATH=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    return subprocess.run([str(a) for a in argv], check=True, capture_output=True, env=env, **options)


def put(root, path, content="", mode=0o644):
    to = root / path.lstrip("/")
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(content if isinstance(content, bytes) else content.encode())
    to.chmod(mode)


def link(root, path, target):
    to = root / path.lstrip("/")
    to.parent.mkdir(parents=True, exist_ok=True)
    to.symlink_to(target)


def libraries_of(program):
    out = run("ldd", program).stdout.decode()
    return sorted(set(re.findall(r"(/\S+)", out)))


def status_text(packages):
    return "\n".join(f"Package: {p}\nStatus: install ok installed\nPriority: optional\nArchitecture: amd64\n"
                     f"Version: {version_of(p)}\nDescription: a package\n with two lines\n" for p in packages)


def version_of(package):
    return "1:" + str(len(package)) + "-1+deb12u1"


SCREENS = {"xvfb": (["xvfb", "x11vnc"], ["Xvfb", "x11vnc"]), "tigervnc": (["tigervnc-standalone-server"], ["Xtigervnc"])}


def packages_of(kind, screen="xvfb"):
    """PACKAGES has those of the default screen."""
    own = SCREENS["xvfb"][0] if kind == "browser" else []
    return [p for p in PACKAGES[kind] if p not in own] + (SCREENS[screen][0] if own else [])


def put_programs(root, kind, screen):
    true, ls = pathlib.Path("/bin/true").read_bytes(), pathlib.Path("/bin/ls").read_bytes()
    names = ["lib/systemd/systemd", "usr/sbin/acpid", "bin/systemctl", "bin/rm", "bin/sh", "bin/bash", "usr/bin/python3",
             "usr/lib/master-controller/mc-agent"]
    if kind == "browser":
        names += [f"usr/bin/{p}" for p in ("openbox", *SCREENS[screen][1])]
        put(root, "usr/lib/chromium/chromium", ls, 0o755)
    for name in names:
        put(root, name, true, 0o755)
    for library in set(libraries_of("/bin/true") + libraries_of("/bin/ls")):
        put(root, library, pathlib.Path(library).read_bytes(), 0o755)
    link(root, "sbin/init", "/lib/systemd/systemd")


UNITS = {
    "multi-user.target": "[Unit]\nRequires=basic.target\n",
    "basic.target": "[Unit]\nRequires=sysinit.target\nWants=sockets.target paths.target\n",
    "sysinit.target": "[Unit]\n", "sockets.target": "[Unit]\n", "paths.target": "[Unit]\n",
    "system-systemd\\x2dodd.slice": "[Unit]\nDescription=A name as systemd escapes it\n",
    "rescue.target": "[Unit]\nRequires=sysinit.target\n",
    "acpid.socket": "[Unit]\nConditionVirtualization=!container\n[Socket]\nListenStream=/run/acpid.socket\n",
    "acpid.path": "[Path]\nDirectoryNotEmpty=/etc/acpi/events/\n",
    "acpid.service": "[Service]\nExecStart=/usr/sbin/acpid -f $OPTIONS\n",
    "nftables.service": "[Service]\nExecStart=/bin/true -f /etc/nftables.conf\n",
    "systemd-networkd.service": "[Service]\nExecStart=!!/lib/systemd/systemd-networkd\n",
    "NetworkManager.service": "[Service]\nExecStart=/usr/sbin/NetworkManager --no-daemon\n",
    "networking.service": "[Service]\nExecStart=/sbin/ifup -a\n",
    "cloud-init.service": "[Service]\nExecStart=/usr/bin/cloud-init init\n",
}


def put_units(root, kind, screen):
    for name, text in UNITS.items():
        put(root, "lib/systemd/system/" + name, text)
    wants = root / "etc/systemd/system"
    link(root, "etc/systemd/system/default.target", "/lib/systemd/system/multi-user.target")
    link(root, "etc/systemd/system/sockets.target.wants/acpid.socket", "/lib/systemd/system/acpid.socket")
    link(root, "etc/systemd/system/paths.target.wants/acpid.path", "/lib/systemd/system/acpid.path")
    desktop = ["openbox", "websockify", "chromium", *(p.lower() for p in SCREENS[screen][1])]
    for name in ["mc-agent"] + (desktop if kind == "browser" else []):
        link(root, f"etc/systemd/system/multi-user.target.wants/{name}.service", f"/etc/systemd/system/{name}.service")
    assert wants.is_dir()


def put_configuration(root, kind, screen):
    users = "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n"
    shadow = "root:!*:20000:0:99999:7:::\ndaemon:*:20000:0:99999:7:::\n"
    if kind == "browser":
        users += "desktop:x:1000:1000::/home/desktop:/usr/sbin/nologin\n"
        shadow += "desktop:!:20000:0:99999:7:::\n"
        shutil.copytree(root / "etc/skel", root / "home/desktop")
    else:
        users += "user:x:1000:1000::/home/user:/bin/sh\n"
        shadow += "user:!:20000:0:99999:7:::\n"
        (root / "home/user").mkdir(parents=True)
    put(root, "etc/passwd", users)
    put(root, "etc/shadow", shadow, 0o640)
    put(root, "etc/machine-id", "", 0o444)
    put(root, "etc/nsswitch.conf", "passwd: files\nhosts:          files dns\n")
    put(root, "etc/ld.so.conf.d/x86_64-linux-gnu.conf", "/usr/local/lib/x86_64-linux-gnu\n")
    put(root, "etc/ssl/certs/ca-certificates.crt", "-----BEGIN CERTIFICATE-----\n")
    put(root, "lib/systemd/network/99-default.link", "[Link]\nNamePolicy=keep kernel database onboard slot path\n")
    link(root, "etc/systemd/network/99-default.link", "/dev/null")
    link(root, "etc/resolv.conf", "/run/resolv.conf")
    for folder in ["dev", "proc", "sys", "run", "root", "usr/sbin"]:
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    put(root, f"lib/modules/{KERNEL}/modules.dep", "kernel/drivers/input/evdev.ko:\n")
    put(root, f"lib/modules/{KERNEL}/modules.builtin", "kernel/fs/ext4/ext4.ko\n")
    put(root, "var/lib/dpkg/status", status_text(packages_of(kind, screen)))
    put(root, "usr/lib/master-controller/image", f"TYPE={kind}\nRECIPE={'ab' * 32}\n" + (f"SCREEN={screen}\n" if kind == "browser" else ""))


def recipe_folders(kind, screen="xvfb"):
    layers = [RECIPE / "files", RECIPE / kind / "files"] + ([RECIPE / screen / "files"] if kind == "browser" else [])
    return [folder for folder in layers if folder.is_dir()]


def make_tree(root, kind, screen="xvfb"):
    """The recipe's own files, and around them what Debian's packages would bring."""
    root.mkdir()
    for files in recipe_folders(kind, screen):
        shutil.copytree(files, root, dirs_exist_ok=True)
    put_programs(root, kind, screen)
    put_units(root, kind, screen)
    put_configuration(root, kind, screen)


def make_filesystem(root, path, size_mib=300):
    run("mke2fs", "-q", "-t", "ext4", "-d", root, "-L", "golden-rootfs", "-m", "0", "-U", UUID, "-N", "12000", "-E",
        "root_owner=0:0", path, f"{size_mib}M")
    for home in (root / "home").glob("*"):
        debugfs(path, f"sif /home/{home.name} uid 1000", f"sif /home/{home.name} gid 1000")


def debugfs(path, *commands):
    """Fails when a command does: debugfs itself tells it only in words."""
    text = "\n".join(commands) + "\n"
    r = run("debugfs", "-w", "-f", "-", path, input=text.encode())
    said = [line for line in r.stderr.decode().splitlines() if line and not line.startswith("debugfs ")]
    assert not said, said


def bzimage(version=KERNEL):
    data = bytearray(8192)
    data[0x1fe:0x200] = b"\x55\xaa"
    data[0x202:0x206] = b"HdrS"
    data[0x20e:0x210] = (0x1000).to_bytes(2, "little")
    text = f"{version} (debian-kernel@lists.debian.org) #1 SMP\0".encode()
    data[0x1200:0x1200 + len(text)] = text
    return bytes(data)


def vmlinux(version=KERNEL):
    return b"\x7fELF\x02\x01\x01" + bytes(200) + f"Linux version {version} (x) #1 SMP\n\0".encode() + bytes(64)


def cpio(entries):
    out = b""
    for number, (name, mode, data) in enumerate(list(entries) + [("TRAILER!!!", 0, b"")], 1):
        fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        head = b"070701" + b"".join(b"%08x" % f for f in fields) + name.encode() + b"\0"
        out += head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
    return out


def module(version):
    return b"\x7fELF" + bytes(60) + f"\0license=GPL\0vermagic={version} SMP preempt mod_unload modversions \0".encode()


def initrd_entries(version=KERNEL, modules=MODULES):
    return [("etc/modules-order", 0o100644, "".join(m + "\n" for m in modules).encode()),
            ("init", 0o100755, pathlib.Path("/bin/true").read_bytes())] + [
        (f"modules/{m}", 0o100644, module(version)) for m in modules]


def pack(entries):
    return run("zstd", "-q", "-c", input=cpio(entries)).stdout


def part(path):
    return {"file": path.name, "size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def write_manifest(folder, kind, screen="xvfb", change=None):
    manifest = {
        "schema": "image-manifest/1", "name": "golden-rootfs", "type": kind, "created_at": "2026-01-01T00:00:00Z",
        "recipe_digest": "ab" * 32, "kernel": {"version": KERNEL, **part(folder / "vmlinuz")},
        "vmlinux": part(folder / "vmlinux"), "initrd": part(folder / "initrd.img"),
        "rootfs": {**part(folder / "rootfs.ext4"), "uuid": UUID}, "files": part(folder / "files.sha256"),
        "packages": [{"name": p, "version": version_of(p)} for p in packages_of(kind, screen)],
        **({"screen": screen} if kind == "browser" else {}), "agent": {**part(pathlib.Path("/bin/true")), "file": "mc-agent"},
    }
    if change:
        change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def list_files(root):
    """As guest/build-image writes it with sha256sum(1)."""
    lines = ((hashlib.sha256(p.read_bytes()).hexdigest(), f"/{p.relative_to(root)}") for p in root.rglob("*") if p.is_file() and not p.is_symlink())
    return "".join(sorted(f"\\{digest}  .{path.replace(chr(92), chr(92) * 2)}\n" if "\\" in path else f"{digest}  {path}\n" for digest, path in lines))


def make_image(folder, kind="browser", screen="xvfb"):
    """A whole image in folder; the tree stays beside it in folder.tree."""
    tree = folder.with_suffix(".tree")
    make_tree(tree, kind, screen)
    folder.mkdir()
    make_filesystem(tree, folder / "rootfs.ext4")
    (folder / "files.sha256").write_text(list_files(tree))
    (folder / "vmlinuz").write_bytes(bzimage())
    (folder / "vmlinux").write_bytes(vmlinux())
    (folder / "initrd.img").write_bytes(pack(initrd_entries()))
    (folder / "build.log").write_text("built\n")
    write_manifest(folder, kind, screen)
    return folder


def copy_image(good, to):
    run("cp", "-r", "--sparse=always", "--reflink=auto", good, to)
    return to


def verify(path, *options, check=None):
    r = subprocess.run([str(MCTL), "--json", "image", "verify", *options, str(path)], capture_output=True, text=True,
                       timeout=120, check=False)
    assert r.returncode in ([check] if check is not None else [0, 1]), (r.returncode, r.stdout[-2000:], r.stderr[-2000:])
    return json.loads(r.stdout)


def failures(report):
    return {f["id"] for f in report["findings"] if f["role"] == "failure"}

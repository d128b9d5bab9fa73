"""Changes to an image that was good."""

import json

import golden
from golden import debugfs

ETC = "/etc/systemd/system"
WANTS = f"{ETC}/multi-user.target.wants"


class Edit:
    """Collects changes to the root file system, and makes them in one run of debugfs."""

    def __init__(self, image, scratch):
        self.image, self.scratch, self.commands, self.count = image, scratch, [], 0

    def rm(self, *paths):
        self.commands += [f"rm {p}" for p in paths]

    def put(self, path, text, mode=0o644, new=False):
        self.count += 1
        source = self.scratch / f"put{self.count}"
        source.write_bytes(text if isinstance(text, bytes) else text.encode())
        self.commands += [] if new else [f"rm {path}"]
        self.commands += [f"write {source} {path}", f"sif {path} mode 0{0o100000 | mode:o}"]

    def change(self, path, old, new, mode=0o644):
        text = golden.run("debugfs", "-R", f"cat {path}", self.rootfs).stdout.decode()
        assert old in text, (path, old)
        self.put(path, text.replace(old, new), mode)

    def link(self, path, target, new=False):
        self.commands += ([] if new else [f"rm {path}"]) + [f"symlink {path} {target}"]

    def mkdir(self, path):
        parts = path.strip("/").split("/")
        have = [f"/{'/'.join(parts[:i])}" for i in range(1, len(parts) + 1)]
        self.commands += [f"mkdir {p}" for p in have if not self.exists(p) and f"mkdir {p}" not in self.commands]

    def condition(self, unit, *lines):
        self.mkdir(f"{ETC}/{unit}.d")
        self.put(f"{ETC}/{unit}.d/condition.conf", "\n".join(["[Unit]", *lines, ""]), new=True)

    def mode(self, path, mode):
        self.commands += [f"sif {path} mode 0{mode:o}"]

    def do(self, *commands):
        self.commands += commands

    def exists(self, path):
        return b"Inode:" in golden.run("debugfs", "-R", f"stat {path}", self.rootfs).stdout

    @property
    def rootfs(self):
        return self.image / "rootfs.ext4"

    def poke(self, offset, data):
        with open(self.rootfs, "r+b") as f:
            f.seek(offset)
            f.write(data)

    def manifest(self, change):
        path = self.image / "manifest.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    def resize_part(self, name, data):
        """Another file in a part's place, told in the manifest: only what it is may be found wrong."""
        file = {"kernel": "vmlinuz", "initrd": "initrd.img", "vmlinux": "vmlinux"}[name]
        (self.image / file).write_bytes(data)
        self.manifest(lambda m: m[name].update(golden.part(self.image / file)))

    def apply(self):
        if self.commands:
            debugfs(self.rootfs, *self.commands)

"""Control groups of version 2, on a guest's kernel: this machine's own may have version 1."""

import subprocess

import harness


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

"""Roots that were made for something else, as debootstrap and mmdebstrap leave them: what each lacks is said, and all that is
said of it is so. They are made once, of the packages that this host's apt gets, and kept beside the tests' other guests."""

import os
import subprocess

import pytest

import golden
from golden import verify

ROOTS = golden.HERE / ".cache/roots"
MMDEBSTRAP = ["mmdebstrap", "--mode=root", "--format=directory"]
SERVER = "systemd-sysv,openssh-server,ifupdown,nftables"
BARE = {"systemd", "systemd-sysv", "udev", "acpid", "kmod", "linux-image-cloud-amd64", "iproute2"}
# Name: the command before suite and folder; packages that are missing, as far as it has to do with what it was made for; and
# what else must be found, but what every one of them lacks.
KINDS = {
    "debootstrap-foreign": (["debootstrap", "--foreign", "--variant=minbase"], BARE | {"libc6"},
                            {"root.folder-missing", "root.init", "account.no-passwd", "files.hosts-missing"}),
    "debootstrap": (["debootstrap"], {"acpid", "linux-image-cloud-amd64"}, {"kernel.modules-missing", "identity.machine-id"}),
    "mmdebstrap-essential": ([*MMDEBSTRAP, "--variant=essential"], BARE, {"root.init", "kernel.modules-missing", "files.hosts-missing"}),
    "mmdebstrap-server": ([*MMDEBSTRAP, "--variant=apt", f"--include={SERVER}", "--customize-hook=chroot $1 systemctl enable nftables"],
                          {"acpid", "linux-image-cloud-amd64"}, {"ssh.server", "identity.secret", "network.firewall", "files.hosts-missing"}),
}
ALL = {"unit.missing", "files.resolver-fixed", "package.missing"}


def make_root(name):
    """The root as an ext4 file, whole or not at all."""
    image = ROOTS / f"{name}.ext4"
    if image.exists():
        return image
    folder, packed = ROOTS / name, ROOTS / f"{name}.new"
    subprocess.run(["rm", "-rf", "--one-file-system", folder, packed], check=True)
    ROOTS.mkdir(parents=True, exist_ok=True)
    # Namespaces of its own: what these programs mount goes with them.
    r = subprocess.run(["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
                        *KINDS[name][0], "bookworm", folder], capture_output=True, text=True, check=False,
                       env=dict(os.environ, PATH=os.environ.get("PATH", "") + ":/usr/sbin:/sbin", INITRD="No"))
    assert r.returncode == 0, r.stdout[-2000:] + r.stderr[-2000:]
    golden.run("mke2fs", "-q", "-t", "ext4", "-d", folder, packed, "1500M")
    subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)
    return packed.rename(image)


@pytest.mark.parametrize("kind", ["browser", "cli"])
@pytest.mark.parametrize("name", KINDS)
def test_what_it_lacks_is_said(name, kind):
    report = verify(make_root(name), "--type", kind, check=1)
    failures = [f for f in report["findings"] if f["role"] == "failure"]
    found = {f["id"] for f in failures}
    missing = {f["object"] for f in failures if f["id"] == "package.missing"}
    _, packages, ids = KINDS[name]
    assert found >= ALL | ids, (ALL | ids) - found
    assert found & {"account.missing", "account.no-passwd"}
    assert missing >= packages and ("chromium" in missing) == (kind == "browser") and ("curl" in missing) == (kind == "cli")
    assert ("unit.missing", "mc-agent.service") in {(f["id"], f["object"]) for f in failures}
    assert all(f["title"] and f["breaks"] and f["mend"] for f in failures)
    assert not found & {"fs.damaged", "fs.endless", "fs.corrupt", "manifest.packages"}
    # What it says is there, is there; and no service of its own is called one that cannot start.
    for package in report["packages"]:
        assert package["name"] not in missing and package["version"]
    if name != "debootstrap-foreign":
        assert "libc6" not in missing
        assert not [f for f in failures if f["id"].startswith("unit.exec")], failures

"""mctl image verify, but for what is broken in one way alone (test_broken.py): what is good, what only a whole image or only a
running guest can tell, what is no image, and how it says all that."""

import json
import subprocess

import pytest

import golden
from edit import ETC, WANTS, Edit
from golden import KERNEL, debugfs, failures, verify, version_of


@pytest.mark.parametrize("kind", ["browser", "cli"])
def test_what_the_recipe_brings_is_what_is_looked_for(kind, good, good_cli, tmp_path):
    """A package of the recipe that verify does not know of could vanish unseen."""
    recipe = [line.split("#")[0].strip() for name in ("packages", f"{kind}/packages")
              for line in (golden.RECIPE / name).read_text().splitlines() if line.split("#")[0].strip()]
    image = golden.copy_image(good if kind == "browser" else good_cli, tmp_path / "image")
    edit = Edit(image, tmp_path)
    edit.put("/var/lib/dpkg/status", golden.status_text(["base-files"]))
    edit.apply()
    missing = {f["object"] for f in verify(image, "--quick", check=1)["findings"] if f["id"] == "package.missing"}
    assert len(recipe) >= 12 and missing >= set(recipe), set(recipe) - missing


NOT_ASKED_FOR = {  # files of the recipe without which an image does what it should
    "etc/apt/sources.list.d/debian.sources": "there is no apt in it",
    "etc/fstab": "it says that there is nothing to mount",
    "etc/skel/.config/chromium/Default/Preferences": "what was made of it counts: the one in the user's home",
    "etc/systemd/journald.conf.d/master-controller.conf": "the console shows less",
    "etc/systemd/system.conf.d/master-controller.conf": "the shut-down may take longer",
    "etc/systemd/system/ssh.service.d/master-controller.conf": "of a server that no image has",
    "etc/systemd/system/systemd-udev-trigger.service.d/master-controller.conf": "the boot takes longer",
}


@pytest.mark.parametrize("kind, screen", [("browser", "xvfb"), ("browser", "tigervnc"), ("cli", "xvfb")])
def test_no_file_of_the_recipe_can_vanish(kind, screen, tmp_path):
    """One by one: each is missed by its name, or by that of the unit that starts it, but those that need not be there."""
    image = golden.make_image(tmp_path / "image", kind, screen)
    files = {str(p.relative_to(folder)) for folder in golden.recipe_folders(kind, screen) for p in folder.rglob("*") if p.is_file()}
    assert len(files) > (15 if kind == "browser" else 7)
    for file in sorted(files):
        inode = golden.run("debugfs", "-R", f"stat /{file}", image / "rootfs.ext4").stdout.split()[1].decode()
        debugfs(image / "rootfs.ext4", f"unlink /{file}")
        found = [f for f in verify(image, "--quick")["findings"] if f["role"] == "failure" and f["id"] != "fs.damaged"]
        assert bool(found) == (file not in NOT_ASKED_FOR), (file, found)
        assert not found or any(file.rpartition("/")[2] in f["title"] + f["object"] for f in found) or "master-controller.json" in file, (file, found)
        debugfs(image / "rootfs.ext4", f"ln <{inode}> /{file}")
    assert verify(image, check=0)["findings"] == [], "it is whole again"


def test_what_an_image_alone_cannot_tell(image, tmp_path):
    """A condition that only a running guest decides is no failure, and is said; one that holds is nothing."""
    edit = Edit(image, tmp_path)
    edit.condition("openbox.service", "ConditionPathExists=/run/x", "ConditionVirtualization=|kvm", "ConditionVirtualization=|vm")
    edit.condition("xvfb.service", "ConditionPathExists=/opt/none", "ConditionPathExists=", "AssertPathExists=!/opt/none")
    edit.apply()
    findings = verify(image, "--quick", check=0)["findings"]
    assert [(f["id"], f["object"], f["role"]) for f in findings] == [("unit.condition-not-judged", "openbox.service", "note")]
    assert "ConditionPathExists=/run/x" in findings[0]["title"]


def test_good(good, good_cli):
    for image in (good, good_cli):
        report = verify(image, check=0)
        assert report["good"] and report["findings"] == [] and report["digests_checked"], report
        assert report["kernel"] == KERNEL and report["type"] in ("browser", "cli")
        assert {"name": "systemd", "version": version_of("systemd")} in report["packages"]


def test_another_screen(tmp_path):
    """Xtigervnc is X server and RFB in one: what it needs is looked for, what Xvfb needs is not."""
    image = golden.make_image(tmp_path / "image", screen="tigervnc")
    report = verify(image, check=0)
    assert report["findings"] == [] and "tigervnc-standalone-server" in {p["name"] for p in report["packages"]}
    edit = Edit(image, tmp_path)
    edit.rm("/usr/bin/Xtigervnc")
    edit.change(f"{ETC}/xtigervnc.service", "-rfbport 5900", "-rfbport 5901")
    edit.apply()
    report = verify(image, "--quick", check=1)
    assert failures(report) == {"unit.exec-missing", "desktop.backend"}
    assert {f["object"] for f in report["findings"]} == {"xtigervnc.service"}
    assert any("xtigervnc listens at port 5901" in f["title"] for f in report["findings"])


def test_nobody_may_look(good_cli, tmp_path):
    """No root, no mount: as a user with no rights at all, who may read the files, and finds the same."""
    image = golden.copy_image(good_cli, tmp_path / "image")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    debugfs(image / "rootfs.ext4", "rm /etc/hosts")
    r = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", golden.MCTL, "--json", "image",
                        "verify", "--quick", image], capture_output=True, text=True, check=False)
    assert r.returncode == 1 and failures(json.loads(r.stdout)) == {"files.hosts-missing"}, r


def test_in_words(image):
    debugfs(image / "rootfs.ext4", f"rm {WANTS}/websockify.service")
    r = subprocess.run([str(golden.MCTL), "image", "verify", "--quick", str(image)], capture_output=True, text=True, check=False)
    assert r.returncode == 1
    assert "websockify.service is not enabled" in r.stdout and "the desktop page will close with 1014" in r.stdout
    assert "NOT GOOD" in r.stdout and "\033" not in r.stdout


def test_changed_bytes_are_named(image, tmp_path):
    """What no rule looks at is found by its digest, and by its name."""
    edit = Edit(image, tmp_path)
    edit.rm("/etc/skel/.config/chromium/Default/Preferences")
    edit.mkdir("/opt/new")
    edit.put("/opt/new/file", "x", new=True)
    edit.put(r"/lib/systemd/system/system-systemd\x2dodd.slice", "other")
    edit.apply()
    assert failures(verify(image, "--quick", check=0)) == set()
    report = verify(image, check=1)
    assert failures(report) == {"manifest.digest", "manifest.file"}
    assert {f["object"]: f["title"].split(" was ")[1] for f in report["findings"] if f["id"] == "manifest.file"} == {
        "/etc/skel/.config/chromium/Default/Preferences": "removed after the build", "/opt/new/file": "added after the build",
        r"/lib/systemd/system/system-systemd\x2dodd.slice": "changed after the build"}


def test_changed_kernel_is_named(image):
    data = bytearray((image / "vmlinuz").read_bytes())
    data[-1] ^= 1
    (image / "vmlinuz").write_bytes(data)
    assert failures(verify(image, check=1)) == {"manifest.digest"}


def test_a_root_alone(good, tmp_path):
    """Without its folder: what only the folder could tell is said, and is no failure."""
    golden.run("cp", "--sparse=always", good / "rootfs.ext4", tmp_path / "any.ext4")
    report = verify(tmp_path / "any.ext4", check=0)
    assert {"kernel.not-judged", "network.not-judged"} == {f["id"] for f in report["findings"]}
    assert report["type"] == "browser"


def test_in_its_folder(good, tmp_path):
    """The file of an image stands for the image; so does a folder whose current leads to it."""
    assert verify(good / "rootfs.ext4", "--quick", check=0)["findings"] == []
    (tmp_path / "current").symlink_to(good)
    assert verify(tmp_path, "--quick", check=0)["findings"] == []


def test_what_is_no_image(tmp_path):
    assert "error" in verify(tmp_path / "nothing", check=4)
    assert "error" in verify(tmp_path, check=4)
    (tmp_path / "text").write_text("hello\n")
    assert failures(verify(tmp_path / "text", check=1)) == {"fs.not-ext4"}
    assert "error" in verify(tmp_path, "--type", "mainframe", check=2)


@pytest.mark.parametrize("kind", ["browser", "cli"])
def test_a_root_made_for_something_else(kind, tmp_path):
    """As mmdebstrap --variant=minbase leaves it, for a chroot or a container: all that it lacks is said."""
    root = tmp_path / "root"
    for folder in ["dev", "proc", "sys", "run", "root", "usr/sbin", "var/lib/dpkg"]:
        (root / folder).mkdir(parents=True)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    golden.put(root, "bin/sh", b"\x7fELF", 0o755)
    golden.put(root, "var/lib/dpkg/status", golden.status_text(["base-files", "bash", "apt", "libc6"]))
    golden.put(root, "etc/passwd", "root:x:0:0:root:/root:/bin/bash\n")
    golden.put(root, "etc/shadow", "root:*:20000:0:99999:7:::\n", 0o640)
    golden.put(root, "etc/resolv.conf", "nameserver 192.0.2.53\n")
    golden.put(root, "etc/fstab", "# UNCONFIGURED FSTAB FOR BASE SYSTEM\n")
    golden.make_filesystem(root, tmp_path / "plain.ext4")
    report = verify(tmp_path / "plain.ext4", "--type", kind, check=1)
    found = {(f["id"], f["object"]) for f in report["findings"] if f["role"] == "failure"}
    missing = {o for i, o in found if i == "package.missing"}
    assert missing >= {"systemd", "systemd-sysv", "udev", "acpid"} and "libc6" not in missing
    assert ("chromium" in missing) == (kind == "browser") and ("git" in missing) == (kind == "cli")
    assert {i for i, _ in found} >= {"root.init", "kernel.modules-missing", "unit.missing", "files.hosts-missing", "account.missing",
                                     "files.resolver-fixed", "identity.machine-id-missing", "unit.default-target"}
    assert ("unit.missing", "mc-agent.service") in found
    assert all(f["breaks"] and f["mend"] for f in report["findings"] if f["role"] == "failure")

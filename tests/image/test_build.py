"""What guest/lib.sh promises of every build: the same content gives the same bytes, an interrupted build leaves what was
there, old images go but never one that a VM stands on. Nothing is downloaded."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

import golden

sys.path.insert(0, str(golden.HERE / "tests"))
import harness  # noqa: E402

LIB = golden.HERE / "guest/lib.sh"
SETTLE = golden.BUILD / "guest/guest-settle"


def bash(script, **env):
    return subprocess.run(["bash", "-c", f"set -euo pipefail; image_program=test; . {LIB}\n" + script], check=True,
                          capture_output=True, text=True, env=dict(os.environ, **{k: str(v) for k, v in env.items()}))


def tree(root, order):
    for name in order:
        golden.put(root, name, name * 100, 0o755)
    golden.link(root, "etc/link", "/run/x")
    for path in [root, *root.rglob("*")]:
        os.utime(path, (1700000000, 1600000000), follow_symlinks=False)


def make_root(root, out):
    bash('make_rootfs "$ROOT" "$OUT" 4 test', ROOT=root, OUT=out, SOURCE_DATE_EPOCH=1700000000, rootfs_uuid=golden.UUID,
         settle=SETTLE)
    return out.read_bytes()


def test_same_content_same_bytes(tmp_path):
    names = ["etc/b", "etc/a", "usr/lib/c", "d", "usr/e"]
    tree(tmp_path / "one", names)
    first = make_root(tmp_path / "one", tmp_path / "one.ext4")
    time.sleep(1.1)  # another second: change times differ
    tree(tmp_path / "two", reversed(names))
    assert make_root(tmp_path / "two", tmp_path / "two.ext4") == first
    golden.run("e2fsck", "-fn", tmp_path / "two.ext4")
    golden.put(tmp_path / "two", "d", "other")
    assert make_root(tmp_path / "two", tmp_path / "three.ext4") != first


def build_folder(base, name):
    folder = base / name
    folder.mkdir(parents=True)
    (folder / "rootfs.ext4").write_text(name)
    return folder


def left(base):
    return sorted(p.name for p in base.iterdir() if p.is_dir() and p.name.startswith("2"))


def test_old_images_go(tmp_path):
    base = tmp_path / "snapshots/base"
    builds = [build_folder(base, f"2026010{n}T000000Z-aa") for n in range(1, 7)]
    vm = tmp_path / "users/vm-1"
    vm.mkdir(parents=True)
    os.link(builds[0] / "rootfs.ext4", vm / "base.ext4")  # a VM's disk stands on the first
    other = tmp_path / "users/vm-2"
    other.mkdir()
    (other / "base.ext4").symlink_to(builds[2] / "rootfs.ext4")  # and one from elsewhere on the third
    bash('base=$B; remove_old_images', B=base)
    assert left(base) == [builds[i].name for i in (0, 2, 4, 5)]
    (vm / "base.ext4").unlink()
    (other / "base.ext4").unlink()
    bash('base=$B; remove_old_images', B=base, MC_IMAGE_KEEP=1)
    assert left(base) == [builds[5].name]


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_interrupted_build_leaves_the_old_image(sig, tmp_path):
    """And nothing else: what it had made is gone, and so are its processes, whatever ended it."""
    old = build_folder(tmp_path, "20260101T000000Z-aa")
    (tmp_path / "current").symlink_to(old.name)
    p = subprocess.Popen(["bash", "-c", f"set -euo pipefail; image_program=test; . {LIB}\n"
                          'works() { touch "$work/part"; echo "$BASHPID" >"$B/pid"; sleep 600 & sleep 600; }\n'
                          'image_begin "$B" 20260202T000000Z-bb; step "takes long" works; image_publish'],
                         env=dict(os.environ, B=str(tmp_path)), stderr=subprocess.PIPE, text=True)
    assert "takes long" in p.stderr.readline()

    def works():
        """the step has begun"""
        return (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip()
    group = int(harness.wait_for(works, 20))
    p.send_signal(sig)
    if sig == signal.SIGTERM:
        assert "untouched" in p.stderr.read()
    assert p.wait(20) == (143 if sig == signal.SIGTERM else -sig)

    def gone():
        """no process of the step is left, nothing that it made, and nobody holds the lock"""
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return not list(tmp_path.glob(".tmp-*")) and subprocess.run(["flock", "-n", tmp_path / ".lock", "true"], check=False).returncode == 0
        return False
    harness.wait_for(gone, 30)
    assert os.readlink(tmp_path / "current") == old.name and left(tmp_path) == [old.name]
    # And the next one is not held up by what it left.
    r = bash('image_begin "$B" 20260303T000000Z-cc; step "is quick" true', B=tmp_path)
    assert "is quick" in r.stderr
    bash('image_begin "$B" 20260303T000000Z-dd; step "is quick" true', B=tmp_path)


@pytest.mark.parametrize("whom", ["first", "inner"])
def test_a_step_of_which_one_process_was_killed_ends_as_a_whole(whom, tmp_path):
    """As by the OOM killer. The build says so, and the rest of the step is at an end before the build is."""
    script = (f"set -euo pipefail; image_program=test; step_hint=nothing; . {LIB}\n"
              'works() { echo "$BASHPID" >"$B/first"; sleep 600 & echo $! >"$B/other"; '
              'bash -c \'echo $$ >"$B/inner.new"; mv "$B/inner.new" "$B/inner"; sleep 600; :\'; }\n'
              'image_begin "$B" 20260202T000000Z-bb; step "takes long" works; image_publish')
    p = subprocess.Popen(["bash", "-c", script], env=dict(os.environ, B=str(tmp_path)), stderr=subprocess.PIPE, text=True)
    harness.wait_for((tmp_path / "inner").exists, 30)
    group = int((tmp_path / "first").read_text())
    assert os.getpgid(int((tmp_path / "other").read_text())) == group
    os.kill(int((tmp_path / whom).read_text()), signal.SIGKILL)
    said = p.communicate(timeout=60)[1]
    assert p.returncode == 1 and "step failed" in said and "(status 137)" in said and "untouched" in said, said
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)
    assert not list(tmp_path.glob(".tmp-*")) and left(tmp_path) == []
    bash('image_begin "$B" 20260303T000000Z-dd; step "is quick" true', B=tmp_path)


def test_list_tells_who_stands_on_what(good, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    golden.copy_image(good, base / "20260101T000000Z-aa")
    golden.copy_image(good, base / "20260202T000000Z-bb")
    (base / "current").symlink_to("20260202T000000Z-bb")
    os.link(base / "20260101T000000Z-aa/rootfs.ext4", tmp_path / "base.ext4")
    r = golden.run(golden.MCTL, "--json", "image", "list", "--out", base)
    images = json.loads(r.stdout)["images"]
    assert [(i["id"], i["current"], i["vms"], i["good"]) for i in images] == [
        ("20260202T000000Z-bb", True, 0, None), ("20260101T000000Z-aa", False, 1, None)]
    assert images[0]["type"] == "browser" and images[0]["kernel"] == golden.KERNEL


def run_functions():
    """What ./run judges an image with, without the rest of it."""
    text = (golden.HERE / "run").read_text()
    return text[text.index("image_is_good() {"):text.index("if ! image_is_good")]


def test_run_tells_why_it_builds(good, image, tmp_path):
    """The first thing that is wrong, in one line: from the check of what was built, else from the look inside."""
    (tmp_path / "guest").mkdir()
    check = tmp_path / "guest/build-image"

    def why(said, status, folder):
        check.write_text(f"#!/bin/sh\necho '{said}'\nexit {status}\n")
        check.chmod(0o755)
        state = tmp_path / "state"
        (state / "snapshots").mkdir(parents=True, exist_ok=True)
        (state / "snapshots/base").unlink(missing_ok=True)
        (state / "snapshots/base").symlink_to(folder)
        r = subprocess.run(["bash", "-c", f"set -euo pipefail; here={tmp_path} build={tmp_path} state={state} "
                            f"mctl=({golden.MCTL} --socket /nowhere)\n{run_functions()}\nimage_is_good && echo good || why_not_good"],
                           check=True, capture_output=True, text=True)
        assert r.stderr == ""
        return r.stdout

    assert why("image: good: x", 0, good) == "good\n"
    assert why("image: not good: there is none in x", 1, good) == "image: not good: there is none in x\n"
    golden.debugfs(image / "rootfs.ext4", "rm /etc/hosts")
    assert "/etc/hosts is missing" in why("image: good: x", 0, image)


STEPS = ["install Debian's packages", "take the kernel out", "unpack the kernel", "list the packages", "pack the initramfs",
         "make the root file system", "check the root file system", "write the manifest", "add the agent", "clean up",
         "look into the image"]


REPRODUCIBLE = ["rootfs.ext4", "initrd.img", "vmlinuz", "vmlinux", "files.sha256"]


def make_builder(work, kind, screen="xvfb"):
    """guest/build-image with a mmdebstrap that copies a small root instead of downloading one: all else is real."""
    harness.guest_image()  # for Debian's kernel, which it keeps
    kernel = max((golden.HERE / ".cache/kernel").glob("linux-image-*-cloud-amd64"))
    version = kernel.name.removeprefix("linux-image-")
    root = work / "tree"
    golden.make_tree(root, kind, screen)
    shutil.rmtree(root / "lib/modules")
    shutil.copytree(kernel / "lib/modules" / version, root / "lib/modules" / version)
    (root / "boot").mkdir()
    shutil.copy(kernel / f"boot/vmlinuz-{version}", root / "boot")
    golden.put(root, f"lib/modules/{version}/modules.dep", "")
    golden.put(root, "var/lib/dpkg/status", golden.status_text(
        [p.replace(golden.KERNEL, version) for p in golden.packages_of(kind, screen)]))
    golden.put(root, "usr/lib/master-controller/mc-agent", (golden.BUILD / "guest/mc-agent").read_bytes(), 0o755)
    golden.run("chown", "1000:1000", *(root / "home").iterdir())
    golden.put(work, "bin/mmdebstrap", f"""#!/bin/bash
set -eu
while [[ $1 != bookworm ]]; do shift; done
cp -a {root}/. "$2"
printf 'TYPE=%s\\nRECIPE=%s\\nSCREEN=%s\\n' "$MC_IMAGE_TYPE" "$MC_IMAGE_RECIPE" "${{MC_IMAGE_SCREEN:-xvfb}}" >"$2/usr/lib/master-controller/image"
""", 0o755)
    return work


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    return make_builder(tmp_path_factory.mktemp("build"), "cli")


def start_build(builder, base, *options, umask=-1):
    return subprocess.Popen([golden.MCTL, "--json", "image", "build", "--out", base, *(options or ["--type", "cli"])], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, umask=umask,
                            env=dict(os.environ, PATH=f"{builder / 'bin'}:{os.environ['PATH']}", SOURCE_DATE_EPOCH="1700000000"))


def whole_build(builder, base, umask=-1):
    for _ in range(120):  # the rest of a killed one may hold the lock for a moment
        p = start_build(builder, base, umask=umask)
        told, said = p.communicate(timeout=500)
        if "another build is running" not in said:
            break
        time.sleep(1)
    assert p.returncode == 0, said
    assert all(step in said for step in STEPS) and re.search(r"^\[ *\d+ s\] done: ", said, re.M), said
    report = json.loads(told)
    assert report["good"] and report["type"] == "cli" and report["digests_checked"], report
    return (base / "cli/current").resolve()


def check_manifest(folder):
    """All that belongs into it: what the image is made of, and that it is so."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for part in ("rootfs", "kernel", "initrd", "vmlinux", "files"):
        path = folder / manifest[part]["file"]
        assert {k: manifest[part][k] for k in ("file", "size", "sha256")} == golden.part(path), part
    assert (folder / manifest["log"]["file"]).read_text().count("====") == len(STEPS)
    assert len(manifest["recipe_digest"]) == 64 and manifest["kernel"]["version"] and manifest["type"] == "cli"
    assert {p["name"] for p in manifest["packages"]} >= {"git", "less", "systemd"}
    assert all(p["version"] for p in manifest["packages"])
    listed = (folder / "files.sha256").read_text().splitlines()
    assert any(line.endswith("  /usr/lib/master-controller/mc-agent") for line in listed) and len(listed) > 50


def test_a_build_that_is_killed_at_any_step_leaves_the_old_image(builder, tmp_path):
    first = whole_build(builder, tmp_path)
    digests = [golden.part(first / name)["sha256"] for name in REPRODUCIBLE]
    rng = random.Random()
    for step in sorted(rng.sample(STEPS, 4), key=STEPS.index):
        sig = rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
        for _ in range(120):
            p = start_build(builder, tmp_path)
            lines = []
            for line in p.stderr:
                lines.append(line)
                if step in line or "another build" in line:
                    break
            if step in lines[-1]:
                break
            p.communicate(timeout=60)
            assert "another build" in "".join(lines), lines
            time.sleep(1)
        time.sleep(rng.uniform(0, 0.5))
        p.send_signal(sig)
        p.communicate(timeout=60)
        what = (step, sig, p.returncode)
        assert (tmp_path / "cli/current").resolve() == first or p.returncode == 0, what
        assert golden.verify(tmp_path / "cli/current", "--quick", check=0)["good"], what
        if p.returncode == 0:  # it had been quicker than the signal
            first = (tmp_path / "cli/current").resolve()
    last = whole_build(builder, tmp_path, umask=0o077)
    assert last != first and [golden.part(last / name)["sha256"] for name in REPRODUCIBLE] == digests, "the same bytes"
    assert not list((tmp_path / "cli").glob(".tmp-*"))
    assert len(left(tmp_path / "cli")) == 2, "old images are kept by count"
    listed = json.loads(golden.run(golden.MCTL, "--json", "image", "list", "--out", tmp_path).stdout)["images"]
    assert [(i["id"], i["type"], i["current"]) for i in listed] == [(last.name, "cli", True), (first.name, "cli", False)]
    check_manifest(last)
    assert golden.verify(last, check=0)["good"]


def test_a_screen_that_was_chosen_stays(tmp_path):
    """mctl image build --screen, and then ./run, whose check names none."""
    base = tmp_path / "base"
    p = start_build(make_builder(tmp_path, "browser", "tigervnc"), base, "--screen", "tigervnc")
    told, said = p.communicate(timeout=500)
    assert p.returncode == 0 and json.loads(told)["good"], said
    assert json.loads((base / "current/manifest.json").read_text())["screen"] == "tigervnc"
    words = [golden.HERE / "guest/build-image", "--check", "--init", golden.BUILD / "guest/guest-init", "--out", base]
    assert "image: good" in golden.run(*words).stdout.decode()
    other = subprocess.run([*words, "--screen", "xvfb"], capture_output=True, text=True, check=False)
    assert other.returncode == 1 and "have changed" in other.stdout
    for wrong in (["--screen", "mirror"], ["--type", "cli", "--screen", "xvfb"]):
        p = start_build(tmp_path, base, *wrong)
        told, said = p.communicate(timeout=60)
        assert p.returncode == 2 and "--screen" in told + said, (told, said)

"""The jailer's double: its command line and its jail, as docs/jailer.md says. One thing is its own: /usr and /proc are
bound into the jail, read-only, because the double of Firecracker that runs in it is no static program."""

import argparse
import ctypes
import os
import re
import resource
import shutil
import stat
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_SLAVE = 1, 32, 4096, 16384, 1 << 19
MNT_DETACH = 2
SYS_PIVOT_ROOT = 155


class Parser(argparse.ArgumentParser):
    def error(self, message):
        print(f"Error: ArgumentParsing({message})", file=sys.stderr)
        sys.exit(1)


def check(result, what):
    if result < 0:
        sys.exit(f"Error: {what}: {os.strerror(ctypes.get_errno())}")


def parse_arguments(argv):
    extra = argv[argv.index("--") + 1:] if "--" in argv else []
    p = Parser(prog="jailer", allow_abbrev=False, add_help=False)
    for name in ("id", "exec-file", "uid", "gid"):
        p.add_argument(f"--{name}", required=True)
    p.add_argument("--chroot-base-dir", default="/srv/jailer")
    p.add_argument("--cgroup-version", default="1", choices=["1", "2"])
    p.add_argument("--parent-cgroup")
    p.add_argument("--netns")
    p.add_argument("--cgroup", action="append", default=[])
    p.add_argument("--resource-limit", action="append", default=[])
    p.add_argument("--daemonize", action="store_true")
    p.add_argument("--new-pid-ns", action="store_true")
    args = p.parse_args(argv[:argv.index("--")] if "--" in argv else argv)
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", args.id):
        p.error(f"Invalid instance ID {args.id}")
    if not (args.uid.isdigit() and args.gid.isdigit()):
        p.error("uid and gid are numbers")
    if not os.path.isfile(args.exec_file) or not os.path.isdir(args.chroot_base_dir):
        p.error("exec-file is no file, or chroot-base-dir no folder")
    if args.cgroup or args.daemonize or args.new_pid_ns:
        p.error("the double has no --cgroup, --daemonize, --new-pid-ns")
    return args, extra


def set_limits(limits):
    wanted = {"no-file": 2048}
    for text in limits:
        name, found, value = text.partition("=")
        if name not in ("fsize", "no-file") or not found or not value.isdigit():
            sys.exit(f"Error: ResLimitArgument({text})")
        wanted[name] = int(value)
    for name, value in wanted.items():
        resource.setrlimit(resource.RLIMIT_FSIZE if name == "fsize" else resource.RLIMIT_NOFILE, (value, value))


def bind(source, target):
    os.makedirs(target, exist_ok=True)
    check(LIBC.mount(source.encode(), target.encode(), None, MS_BIND | MS_REC, None), f"bind {source}")
    LIBC.mount(None, target.encode(), None, MS_REMOUNT | MS_BIND | MS_RDONLY, None)


def enter(root):
    check(LIBC.unshare(CLONE_NEWNS), "unshare")
    check(LIBC.mount(None, b"/", None, MS_SLAVE | MS_REC, None), "make mounts slaves")
    check(LIBC.mount(root.encode(), root.encode(), None, MS_BIND | MS_REC, None), "bind the root")
    bind("/usr", f"{root}/usr")
    bind("/proc", f"{root}/proc")
    for link in ("bin", "sbin", "lib", "lib64"):
        if os.path.islink(f"/{link}"):
            os.symlink(os.readlink(f"/{link}"), f"{root}/{link}")
    os.chdir(root)
    os.mkdir("old_root", 0o600)
    check(LIBC.syscall(SYS_PIVOT_ROOT, b".", b"old_root"), "pivot_root")
    os.chdir("/")
    check(LIBC.umount2(b"old_root", MNT_DETACH), "umount old_root")
    os.rmdir("old_root")


def own(path, args):
    os.chown(path, int(args.uid), int(args.gid))


def make_device(path, major, minor, args):
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(major, minor))
    own(path, args)


def main(argv):
    began_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    args, extra = parse_arguments(argv)
    os.closerange(3, 4096)
    os.environ.clear()
    name = os.path.basename(os.path.realpath(args.exec_file))
    root = os.path.join(os.path.realpath(args.chroot_base_dir), name, args.id, "root")
    os.makedirs(root, exist_ok=True)
    shutil.copy(args.exec_file, f"{root}/{name}")
    own(f"{root}/{name}", args)
    if args.netns:
        fd = os.open(args.netns, os.O_RDONLY)
        check(LIBC.setns(fd, CLONE_NEWNET), f"join {args.netns}")
        os.close(fd)
    set_limits(args.resource_limit)
    enter(root)
    for folder in ("/", "/dev", "/dev/net", "/run"):
        os.makedirs(folder, exist_ok=True)
        os.chmod(folder, 0o700)
        own(folder, args)
    make_device("/dev/net/tun", 10, 200, args)
    make_device("/dev/kvm", 10, 232, args)
    make_device("/dev/urandom", 1, 9, args)
    with open(f"/{name}.pid", "x") as f:
        f.write(str(os.getpid()))
    os.setgroups([])
    os.setresgid(*[int(args.gid)] * 3)
    os.setresuid(*[int(args.uid)] * 3)
    os.execv(f"/{name}", [f"/{name}", "--id", args.id, "--start-time-us", str(began_us), "--start-time-cpu-us", "0",
                          "--parent-cpu-time-us", "0", *extra])

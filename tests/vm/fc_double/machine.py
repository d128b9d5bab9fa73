"""The machine behind the API: opens what Firecracker opens, when it opens it and with the user and the flags with which it
opens it, and boots the guest with QEMU in the end.

A snapshot is two files, as Firecracker's: the guest's memory as it is, and the state, here a line of JSON about the devices
and QEMU's own state without the memory (x-ignore-shared), with a checksum over both."""

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import time
import zlib

from channel import Channel
from spec import Refused
from vsock import Vsock

QEMU = "/usr/bin/qemu-system-x86_64"
CMDLINE_MAX = 2048
IFNAMSIZ = 16
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_UFO = 1, 2, 4, 16
VNET_HDR_SIZE = 12
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)
AGENT_PORT = "org.master-controller.agent"
# Firecracker's NIC has no control queue: the guest hears whatever comes to the TAP, and may say that it has any MAC.
NIC = "virtio-net-pci,romfile=,ctrl_vq=off," + ",".join(
    f"{name}=off" for name in ("ctrl_rx", "ctrl_vlan", "ctrl_rx_extra", "ctrl_mac_addr", "ctrl_guest_offloads", "guest_announce"))
SNAPSHOT_VERSION = "11.0.0"  # src/vmm/src/persist.rs of 1.17
MIB = 1 << 20


def os_error(e):
    return f"{e.strerror} (os error {e.errno})"


def open_tap(name):
    """src/vmm/src/devices/virtio/net/tap.rs: open_named(), then set_vnet_hdr_size() by Net::new_with_tap()."""
    failed = "Network config error: Could not create the network device: Open tap device failed: "
    if len(name.encode()) >= IFNAMSIZ:
        raise Refused(failed + "Invalid interface name")
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        raise Refused(failed + f"Couldn't open /dev/net/tun: {os_error(e)}") from None
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    except OSError as e:
        os.close(fd)
        raise Refused(failed + f"Error while creating ifreq structure: {os_error(e)}. Invalid TUN/TAP Backend provided "
                      f"by {name}. Check our documentation on setting up the network devices.") from None
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_HDR_SIZE))
    return fd


def open_or_refuse(path, flags, words, mode=0o644):
    try:
        return os.open(path, flags | os.O_CLOEXEC, mode)
    except OSError as e:
        raise Refused(f"{words}: {os_error(e)}") from None


def copy(source, target, size):
    """Without the parts that are zero."""
    for at in range(0, size, MIB):
        piece = os.pread(source, MIB, at)
        if piece.strip(b"\0"):
            os.pwrite(target, piece, at)
    os.ftruncate(target, size)


class Machine:
    """channel: "serial" has the vsock end in a virtio-serial port in the guest: QEMU does not save a vhost-user device."""

    def __init__(self, instance_id, channel="vsock"):
        self.id = instance_id
        self.channel = channel
        self.is_configured = False        # then no snapshot is loaded any more
        self.memory = self.incoming = None  # descriptors: the guest's memory, and the state that it goes on from
        self.is_launched = self.is_dirty = False
        self.config = {}                  # the parts of the configuration file
        self.machine = {"vcpu_count": 1, "mem_size_mib": 128, "smt": False, "track_dirty_pages": False}
        self.drives, self.nics = {}, {}   # id: (description, fd)
        self.kernel = self.initrd = None
        self.log_fd = self.metrics_fd = self.vsock = None
        self.state = "Not started"
        self.qmp = None
        self.counted = (0, 0)

    # -- what each PUT does --

    def put_logger(self, value):
        if "log_path" in value:
            self.log_fd = open_or_refuse(value["log_path"], os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, "Logger error")

    def put_metrics(self, value):
        if self.metrics_fd is not None:
            raise Refused("Metrics error: Cannot initialize the metrics system: Reinitialization of metrics not allowed.")
        self.metrics_fd = open_or_refuse(value["metrics_path"], os.O_RDWR | os.O_CREAT | os.O_NONBLOCK,
                                         "Metrics error: Cannot initialize the metrics system")

    def put_machine_config(self, value):
        self.check_machine(dict(self.machine, **value))
        self.machine = {"smt": False, "track_dirty_pages": False, **value}

    def patch_machine_config(self, value):
        self.check_machine(dict(self.machine, **value))
        self.machine.update(value)

    @staticmethod
    def check_machine(value):
        if value.get("smt") and value["vcpu_count"] > 1 and value["vcpu_count"] % 2:
            raise Refused("Machine config error: The vCPU number is invalid! The vCPU number can only be 1 or an even "
                          "number when SMT is enabled.")
        if value["mem_size_mib"] == 0 or (value.get("huge_pages") == "2M" and value["mem_size_mib"] % 2):
            raise Refused("Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured "
                          "page size.")

    def put_boot_source(self, value):
        if len(value.get("boot_args", "")) >= CMDLINE_MAX:
            raise Refused("Boot source error: The kernel command line is invalid: String too large")
        kernel = open_or_refuse(value["kernel_image_path"], os.O_RDONLY,
                                "Boot source error: The kernel file cannot be opened")
        if "initrd_path" in value:
            self.initrd = open_or_refuse(value["initrd_path"], os.O_RDONLY,
                                         "Boot source error: The initrd file cannot be opened due to invalid path or "
                                         "invalid permissions")
        self.kernel = kernel
        self.config["boot-source"] = value

    def put_drive(self, value):
        if "socket" in value or "path_on_host" not in value or "is_read_only" not in value:
            raise Refused("Drive config error: Unable to create the virtio block device: Invalid configuration")
        others = [d for i, (d, _) in self.drives.items() if i != value["drive_id"]]
        if value["is_root_device"] and any(d["is_root_device"] for d in others):
            raise Refused("Drive config error: A root block device already exists!")
        fd = open_or_refuse(value["path_on_host"], os.O_RDONLY if value["is_read_only"] else os.O_RDWR,
                            "Drive config error: Unable to create the virtio block device: Virtio backend error: Error "
                            f"manipulating the backing file: {value['path_on_host']}")
        self.drives[value["drive_id"]] = (value, fd)

    def put_nic(self, value):
        mac = value.get("guest_mac")
        others = [n for i, (n, _) in self.nics.items() if i != value["iface_id"]]
        if mac is not None and (len(mac) != 17 or any(len(b) != 2 or not set(b.lower()) <= set("0123456789abcdef")
                                                      for b in mac.split(":")) or mac.count(":") != 5):
            raise Refused(f"invalid MAC address `{mac}`")
        if mac is not None and any(n.get("guest_mac") == mac for n in others):
            raise Refused(f"Network config error: The MAC address is already in use: {mac}")
        self.nics[value["iface_id"]] = (value, open_tap(value["host_dev_name"]))

    def put_vsock(self, value):
        self.vsock = socket.socket(socket.AF_UNIX)
        try:
            self.vsock.bind(value["uds_path"])
        except OSError as e:
            raise Refused(f"Vsock config error: Cannot create backend for vsock device: Error binding to the host-side "
                          f"Unix socket: {os_error(e)}") from None
        self.vsock.listen()
        self.config["vsock"] = value

    def describe(self):
        return dict(self.config, drives=[d for d, _ in self.drives.values()],
                    **{"machine-config": self.machine, "network-interfaces": [n for n, _ in self.nics.values()]})

    # -- its start --

    def check_start(self):
        if self.kernel is None:
            raise Refused("Start microvm error: Cannot start microvm without kernel configuration.")
        magic = os.pread(self.kernel, 4, 0)
        if magic != b"\x7fELF":
            raise Refused("Start microvm error: Cannot load kernel due to invalid memory configuration or invalid kernel "
                          "image: Kernel Loader: failed to load ELF kernel image: Invalid ELF magic number")

    def cmdline(self):
        """With what Firecracker adds. But for pci=off: this machine's devices are on PCI."""
        words = [self.config["boot-source"].get("boot_args", "reboot=k panic=1 nomodule")]
        root = next((d for d, _ in self.drives.values() if d["is_root_device"]), None)
        if root:
            words.append(f"root=PARTUUID={root['partuuid']}" if "partuuid" in root else "root=/dev/vda")
            words.append("ro" if root["is_read_only"] else "rw")
        line = " ".join(w for w in " ".join(words).split(" ") if w != "pci=off")
        if len(line) >= CMDLINE_MAX:
            raise Refused("Start microvm error: Cannot build the kernel command line: too large")
        return line

    def qemu_arguments(self, qmp_fd):
        console = os.dup(1)
        keep = [qmp_fd, console]
        argv = [QEMU, "-name", f"{self.id},debug-threads=on", "-no-user-config", "-nodefaults", "-machine",
                "q35,usb=off,vmport=off", "-accel", "tcg,tb-size=32", "-cpu", "max", "-m",
                str(self.machine["mem_size_mib"]), "-smp", str(self.machine["vcpu_count"]), "-display", "none",
                "-no-reboot", "-chardev", f"socket,id=qmp,fd={qmp_fd}", "-mon", "chardev=qmp,mode=control",
                "-add-fd", f"fd={console},set=1", "-chardev", "file,id=console,path=/dev/fdset/1,append=on",
                "-serial", "chardev:console"]
        if self.kernel is not None:
            keep.append(self.kernel)
            argv += ["-kernel", f"/proc/self/fd/{self.kernel}", "-append", self.cmdline()]
        if self.initrd is not None:
            keep.append(self.initrd)
            argv += ["-initrd", f"/proc/self/fd/{self.initrd}"]
        # The root drive comes first whatever the order of the requests was, as in Firecracker.
        for i, (drive, fd) in enumerate(sorted(self.drives.values(), key=lambda d: not d[0]["is_root_device"])):
            read_only = "on" if drive["is_read_only"] else "off"
            keep.append(fd)
            argv += ["-add-fd", f"fd={fd},set={i + 2}", "-blockdev",
                     f"driver=file,node-name=f{i},filename=/dev/fdset/{i + 2},read-only={read_only},locking=off",
                     "-blockdev", f"driver=raw,node-name=d{i},file=f{i},read-only={read_only}",
                     "-device", f"virtio-blk-pci,drive=d{i}"]
        for i, (nic, fd) in enumerate(self.nics.values()):
            fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_UFO)
            keep.append(fd)
            mac = f",mac={nic['guest_mac']}" if "guest_mac" in nic else ""
            argv += ["-netdev", f"tap,id=n{i},fd={fd}", "-device", f"{NIC},netdev=n{i}{mac}"]
        if "entropy" in self.config:
            argv += ["-device", "virtio-rng-pci"]
        if "vsock" in self.config:
            argv += self.serial_arguments(keep) if self.channel == "serial" else self.vsock_arguments(keep)
        if self.incoming is not None:
            argv += ["-incoming", "defer", "-S"]
        return argv, keep

    def vsock_arguments(self, keep):
        """TCG needs no vhost for it: QEMU leaves the device to us, with the guest's memory."""
        ours, theirs = socket.socketpair()
        keep.append(theirs.detach())
        size = self.machine["mem_size_mib"]
        self.device = Vsock(ours, self.vsock, self.config["vsock"]["guest_cid"])
        return ["-object", f"memory-backend-memfd,id=memory,size={size}M,share=on", "-machine", "memory-backend=memory",
                "-chardev", f"socket,id=vsock,fd={keep[-1]}", "-device", "vhost-user-vsock-pci,chardev=vsock"]

    def serial_arguments(self, keep):
        if self.memory is None:
            self.memory = self.make_memory()
        self.device = Channel(self.vsock)
        keep += [self.memory, self.device.server.fileno()]
        return ["-object", f"memory-backend-file,id=memory,size={self.machine['mem_size_mib']}M,share=on,"
                f"mem-path=/proc/self/fd/{self.memory}", "-machine", "memory-backend=memory",
                "-chardev", f"socket,id=agent,fd={keep[-1]},server=on,wait=off", "-device", "virtio-serial-pci,max_ports=2",
                "-device", f"virtserialport,nr=1,chardev=agent,name={AGENT_PORT}"]

    def make_memory(self):
        fd = os.memfd_create("guest")
        os.ftruncate(fd, self.machine["mem_size_mib"] * MIB)
        return fd

    def start(self):
        self.check_start()
        self.launch()
        self.state = "Running"

    def launch(self):
        """This process becomes QEMU, so that whoever watches or kills it has all of it; the API goes on in a child that
        ends with it. Returns in the child, when QEMU has answered."""
        ours, theirs = socket.socketpair()
        argv, keep = self.qemu_arguments(theirs.fileno())
        if self.incoming is not None:
            keep.append(self.incoming)
        parent = os.getpid()
        if os.fork() != 0:
            for fd in keep:
                os.set_inheritable(fd, True)
            os.execv(argv[0], argv)
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        self.is_launched = True
        theirs.close()
        if self.vsock is not None:
            self.device.start()
        for _, fd in [*self.drives.values(), *self.nics.values()]:
            os.close(fd)
        ours.settimeout(60)
        self.qmp_socket, self.qmp = ours, ours.makefile("rwb", buffering=0)
        self.ask_qemu("qmp_capabilities", greeting=True)

    def ask_qemu(self, command, arguments=None, greeting=False, fds=()):
        if greeting and not self.qmp.readline():
            os._exit(1)
        text = json.dumps({"execute": command, "arguments": arguments or {}}).encode() + b"\n"
        socket.send_fds(self.qmp_socket, [text], fds)
        while True:
            answer = json.loads(self.qmp.readline() or b'{"error": {"desc": "QEMU is gone"}}')
            if "error" in answer:
                raise Refused(f"Internal VMM error: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    # -- snapshots: src/vmm/src/persist.rs says in which order, and these words --

    def migrate(self, command, uri):
        self.ask_qemu("migrate-set-capabilities", {"capabilities": [{"capability": "x-ignore-shared", "state": True}]})
        self.ask_qemu(command, {"uri": uri})
        while (status := self.ask_qemu("query-migrate").get("status")) != "completed":
            if status in ("failed", "cancelled"):
                raise Refused(f"Internal VMM error: QEMU's migration {status}")
            time.sleep(0.005)

    def create_snapshot(self, value):
        failed = "Create snapshot error: "
        if self.state != "Paused":
            raise Refused(failed + "Cannot save the microVM state: Operation not allowed: save/restore unavailable while "
                          "running")
        if value.get("snapshot_type", "Full") != "Full" or self.channel != "serial":
            raise Refused("The double makes full snapshots only, and only with its serial channel.")
        self.device.reset()
        state = open_or_refuse(value["snapshot_path"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
                               failed + "Cannot perform open on the snapshot backing file")
        memory = open_or_refuse(value["mem_file_path"], os.O_WRONLY | os.O_CREAT,
                                failed + "Cannot perform open on the memory backing file")
        devices = os.memfd_create("devices")
        self.ask_qemu("getfd", {"fdname": "devices"}, fds=[devices])
        self.migrate("migrate", "fd:devices")
        parts = {"machine": self.machine, "drives": [d for d, _ in self.drives.values()],
                 "nics": [n for n, _ in self.nics.values()],
                 **{k: v for k, v in self.config.items() if k in ("vsock", "entropy")}}
        body = json.dumps(parts).encode() + b"\n" + os.pread(devices, os.fstat(devices).st_size, 0)
        try:
            os.write(state, f"{SNAPSHOT_VERSION} {zlib.crc32(body)}\n".encode() + body)
            os.fsync(state)
            copy(self.memory, memory, self.machine["mem_size_mib"] * MIB)
            os.fsync(memory)
        except OSError as e:
            raise Refused(failed + f"Cannot write memory file: {os_error(e)}") from None
        finally:
            for fd in (state, memory, devices):
                os.close(fd)

    def load_snapshot(self, value):
        if ("mem_backend" in value) == ("mem_file_path" in value):
            raise Refused("either `mem_backend` or `mem_file_path` is required, and only one of them")
        if self.is_configured:
            raise Refused("Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific "
                          "resources.")
        try:
            self.restore(value)
            if value.get("resume_vm"):
                self.set_state("Resumed")
        except Refused:
            self.is_dirty = True  # the process ends when it has answered
            raise

    @staticmethod
    def read_state(path):
        failed = "Load snapshot error: Failed to restore from snapshot: Failed to get snapshot state from file: "
        fd = open_or_refuse(path, os.O_RDONLY, failed + "Failed to open snapshot file")
        head, _, body = os.pread(fd, os.fstat(fd).st_size, 0).partition(b"\n")
        os.close(fd)
        failed += "Failed to load snapshot state from file: "
        words = head.split()
        if len(words) != 2 or int(words[1]) != zlib.crc32(body):
            raise Refused(failed + "CRC64 validation failed")
        if words[0].decode() != SNAPSHOT_VERSION:
            raise Refused(failed + f"Invalid data version: {words[0].decode()}")
        parts, _, devices = body.partition(b"\n")
        return json.loads(parts), devices

    def restore(self, value):
        failed = "Load snapshot error: Failed to restore from snapshot: "
        parts, devices = self.read_state(value["snapshot_path"])
        for override in value.get("network_overrides", []):
            nic = next((n for n in parts["nics"] if n["iface_id"] == override["iface_id"]), None)
            if nic is None:
                raise Refused(failed + "Failed to get snapshot state from file: Unknown Network Device.")
            nic["host_dev_name"] = override["host_dev_name"]
        if "vsock_override" in value:
            if "vsock" not in parts:
                raise Refused(failed + "Failed to get snapshot state from file: Unknown Vsock Device.")
            parts["vsock"]["uds_path"] = value["vsock_override"]["uds_path"]
        self.machine = parts["machine"]
        self.load_memory(value, failed + "Failed to load guest memory: Error creating guest memory from file")
        for drive in parts["drives"]:
            self.put_drive(drive)
        for nic in parts["nics"]:
            self.put_nic(nic)
        if "vsock" in parts:
            self.put_vsock(parts["vsock"])
        if "entropy" in parts:
            self.config["entropy"] = parts["entropy"]
        self.incoming = os.memfd_create("devices")
        os.write(self.incoming, devices)
        os.lseek(self.incoming, 0, os.SEEK_SET)
        self.launch()
        self.migrate("migrate-incoming", f"fd:{self.incoming}")
        self.state = "Paused"

    def load_memory(self, value, failed):
        backend = value.get("mem_backend", {"backend_type": "File", "backend_path": value.get("mem_file_path")})
        if backend["backend_type"] != "File":
            raise Refused("The double has no userfaultfd.")
        source = open_or_refuse(backend["backend_path"], os.O_RDONLY, failed)
        # The real one maps it, and so it must never change.
        if os.geteuid() != 0 and os.access(backend["backend_path"], os.W_OK):
            raise Refused("The double could write to the memory that it loads.")
        size = self.machine["mem_size_mib"] * MIB
        if os.fstat(source).st_size < size:
            raise Refused(failed + ": the memory file is shorter than the memory")
        self.memory = self.make_memory()
        copy(source, self.memory, size)
        os.close(source)

    # -- while it runs --

    def ctrl_alt_del(self):
        self.ask_qemu("send-key", {"keys": [{"type": "qcode", "data": k} for k in ("ctrl", "alt", "delete")]})

    def set_state(self, state):
        self.ask_qemu("stop" if state == "Paused" else "cont")
        self.state = "Paused" if state == "Paused" else "Running"

    def frames(self):
        """Of all NICs: from the guest and to it, as the TAP's own counters have it (its receiving is the guest's sending)."""
        names, counts = [n["host_dev_name"] for n, _ in self.nics.values()], [0, 0]
        try:
            with open("/proc/self/net/dev") as f:
                for line in f:
                    name, _, rest = line.partition(":")
                    if name.strip() in names:
                        numbers = [int(n) for n in rest.split()]
                        counts = [counts[0] + numbers[1], counts[1] + numbers[9]]
        except OSError:
            pass
        return counts

    def flush_metrics(self):
        """One line, each counter since the line before. Only what of it is true here."""
        if self.metrics_fd is None:
            return
        tx, rx = self.frames()
        net = {"tx_packets_count": tx - self.counted[0], "rx_packets_count": rx - self.counted[1],
               "rx_tap_event_count": rx - self.counted[1], "tap_write_fails": 0, "tx_spoofed_mac_count": 0}
        self.counted = (tx, rx)
        line = {"utc_timestamp_ms": int(time.time() * 1000), "net": net}
        line.update({f"net_{iface}": net for iface in self.nics})
        os.write(self.metrics_fd, json.dumps(line).encode() + b"\n")

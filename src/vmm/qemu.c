/* QEMU as the VMM. Theory of operation:
 *
 * The daemon opens everything as root (disk, base image, kernel, initramfs, console, control socket, TAP) and hands it
 * over as descriptors; QEMU itself runs as the VM's own uid, with no new privileges and its seccomp sandbox, and needs
 * no right on any path. Nothing of the host is named to it but /dev/fdset/N and /dev/fd/N.
 *
 * The control socket (QMP) is made and listened on before QEMU starts: it belongs to root, and is there from the first
 * moment on. QEMU outlives the daemon; the next daemon finds it by pid and start time. */
#include <fcntl.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/proc.h"
#include "base/str.h"
#include "vmm/qmp.h"
#include "vmm/qmp_save.h"
#include "vmm/shape.h"

#define ARG_COUNT_MAX 80
#define TCG_CACHE_MIB 256 /* of translated code; QEMU's own default is up to 1 GiB, which a limit would have to allow */
#define OVERHEAD_MIB 192
#define FILES_MAX 1024
#define PROCESSES_MAX 256 /* threads of its uid */

/* The child's descriptors, in the order of proc_spec.fds: the first is 3. */
enum handed {
    FD_TAP = 3,
    FD_QMP,
    FD_CONSOLE,
    FD_DISK,
    FD_BASE,
    FD_KERNEL,
    FD_INITRD,
    FD_FIXED, /* the next ones are not every VM's */
};
#define FD_COUNT (FD_FIXED - 3 + 3 /* of them */)

/* What the child is given, and by which numbers it knows what is not in every one; 0: it has none. */
struct handed_over {
    int fds[FD_COUNT], count;
    int agent, memory, template;
};

struct args {
    char *item[ARG_COUNT_MAX + 1];
    size_t n;
    bool failed;
};

static void args_free(struct args *a) {
    for (size_t i = 0; i < a->n; i++)
        free(a->item[i]);
}

static void arg(struct args *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void arg(struct args *a, const char *fmt, ...) {
    if (a->n == ARG_COUNT_MAX) {
        a->failed = true;
        return;
    }
    va_list ap;
    va_start(ap, fmt);
    if (vasprintf(&a->item[a->n], fmt, ap) < 0)
        a->failed = true;
    else
        a->n++;
    va_end(ap);
}

static void build_machine(struct args *a, const char *binary, const char *accel, const struct vm *vm, bool is_backed) {
    arg(a, "%s", binary);
    arg(a, "-name");
    arg(a, "%s,debug-threads=on", vm->id);
    arg(a, "-no-user-config");
    arg(a, "-nodefaults");
    arg(a, "-machine");
    arg(a, "q35,usb=off,vmport=off%s", is_backed ? ",memory-backend=pc.ram" : "");
    arg(a, "-accel");
    if (strcmp(accel, "tcg") == 0)
        arg(a, "tcg,tb-size=%d", TCG_CACHE_MIB);
    else
        arg(a, "%s", accel);
    arg(a, "-cpu");
    arg(a, "%s", strcmp(accel, "kvm") == 0 ? "host" : "max");
    arg(a, "-m");
    arg(a, "%u", vm->memory_mib);
    arg(a, "-smp");
    arg(a, "%u", vm->vcpus);
    arg(a, "-display");
    arg(a, "none");
    arg(a, "-no-reboot");
    arg(a, "-sandbox");
    arg(a, "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    /* Where only the monitor's clients can ask for it; the daemon's end of the protocol is qmp.c. */
    arg(a, "-chardev");
    arg(a, "socket,id=qmp,fd=%d,server=on,wait=off", FD_QMP);
    arg(a, "-mon");
    arg(a, "chardev=qmp,mode=control");
}

/* The way to the agent in the guest, beside the network: QEMU listens on the host's end, as for QMP. */
static void build_agent(struct args *a, int fd) {
    arg(a, "-chardev");
    arg(a, "socket,id=agent,fd=%d,server=on,wait=off", fd);
    arg(a, "-device");
    arg(a, "virtio-serial-pci,max_ports=2");
    arg(a, "-device");
    arg(a, "virtserialport,nr=1,chardev=agent,name=" VMM_AGENT_PORT);
}

/* Under the name that QEMU gives memory of its own, so that a machine which is saved later is like any other. The file is opened
 * for writing even where it is mapped privately (file_ram_open() in QEMU 7.2): who hands it over has sealed it.
 * Source: QEMU, qemu-options.hx, memory-backend-file. */
static void build_memory(struct args *a, const struct vmm_spec *spec, int fd) {
    arg(a, "-object");
    arg(a,
        "memory-backend-file,id=pc.ram,size=%uM,mem-path=/dev/fd/%d,share=%s,x-use-canonical-path-for-ramblock-id=off",
        spec->vm->memory_mib, fd, spec->writes_memory ? "on" : "off");
}

/* It waits for its memory, and then stands still until it is told to go on: qmp_save.c. */
static void build_wait(struct args *a) {
    arg(a, "-incoming");
    arg(a, "defer");
    arg(a, "-S");
}

/* The disk of the template that this machine was begun from, on the image's. */
static void build_template_disk(struct args *a, int fd) {
    arg(a, "-add-fd");
    arg(a, "fd=%d,set=4", fd);
    arg(a, "-blockdev");
    arg(a, "{\"driver\":\"file\",\"node-name\":\"template-file\",\"filename\":\"/dev/fdset/4\",\"read-only\":true}");
    arg(a, "-blockdev");
    arg(a, "{\"driver\":\"qcow2\",\"node-name\":\"template\",\"file\":\"template-file\",\"backing\":\"base\","
           "\"read-only\":true}");
}

static void build_devices(struct args *a, const struct vmm_spec *spec, int template_fd) {
    char mac[NET_MAC_TEXT];
    net_format_mac(spec->vm->mac, mac);
    arg(a, "-add-fd");
    arg(a, "fd=%d,set=1", FD_CONSOLE);
    arg(a, "-chardev");
    arg(a, "file,id=console,path=/dev/fdset/1,append=on");
    arg(a, "-serial");
    arg(a, "chardev:console");
    arg(a, "-add-fd");
    arg(a, "fd=%d,set=2", FD_DISK);
    arg(a, "-add-fd");
    arg(a, "fd=%d,set=3", FD_BASE);
    arg(a, "-blockdev");
    arg(a, "{\"driver\":\"file\",\"node-name\":\"base-file\",\"filename\":\"/dev/fdset/3\",\"read-only\":true}");
    arg(a, "-blockdev");
    arg(a, "{\"driver\":\"raw\",\"node-name\":\"base\",\"file\":\"base-file\",\"read-only\":true}");
    if (template_fd)
        build_template_disk(a, template_fd);
    arg(a, "-blockdev");
    arg(a, "{\"driver\":\"file\",\"node-name\":\"disk-file\",\"filename\":\"/dev/fdset/2\",\"discard\":\"unmap\"}");
    arg(a, "-blockdev");
    arg(a,
        "{\"driver\":\"qcow2\",\"node-name\":\"disk\",\"file\":\"disk-file\",\"backing\":\"%s\","
        "\"discard\":\"unmap\"}",
        template_fd ? "template" : "base");
    arg(a, "-device");
    arg(a, "virtio-blk-pci,drive=disk,serial=root");
    arg(a, "-netdev");
    arg(a, "tap,id=net,fd=%d", FD_TAP);
    arg(a, "-device");
    arg(a, "virtio-net-pci,netdev=net,mac=%s,romfile=", mac);
    arg(a, "-device");
    arg(a, "virtio-rng-pci");
    arg(a, "-kernel");
    arg(a, "/dev/fd/%d", FD_KERNEL);
    arg(a, "-initrd");
    arg(a, "/dev/fd/%d", FD_INITRD);
    arg(a, "-append");
    arg(a, "%s", spec->cmdline);
}

static void folder_path(char ret_path[512], const char *folder, const char *name) {
    snprintf(ret_path, 512, "%s/%s", folder, name);
}

/* The machine in Firecracker's config-file format: what an operator reads to see what this VM is. */
static int write_config(const struct vmm_spec *spec, struct err *err) {
    char path[512], disk[512], mac[NET_MAC_TEXT];
    folder_path(path, spec->folder, "vm-config.json");
    folder_path(disk, spec->folder, "disk.qcow2");
    net_format_mac(spec->vm->mac, mac);
    json_t *config =
        json_pack("{s:{s:s, s:s, s:s}, s:[{s:s, s:s, s:b, s:b}], s:[{s:s, s:s, s:s}], s:{s:i, s:i}}", "boot-source",
                  "kernel_image_path", spec->kernel, "initrd_path", spec->initrd, "boot_args", spec->cmdline, "drives",
                  "drive_id", "rootfs", "path_on_host", disk, "is_root_device", 1, "is_read_only", 0,
                  "network-interfaces", "iface_id", "eth0", "guest_mac", mac, "host_dev_name", spec->vm->tap,
                  "machine-config", "vcpu_count", (int)spec->vm->vcpus, "mem_size_mib", (int)spec->vm->memory_mib);
    char *text = config ? json_dumps(config, JSON_INDENT(2)) : NULL;
    int r = text ? file_write_new(path, text, strlen(text), 0600) : -ENOMEM;
    free(text);
    json_decref(config);
    return r < 0 ? err_sys(err, -r, "vmm.start", "write %s", path) : 0;
}

static int open_part(const char *folder, const char *name, int flags, int *ret_fd, struct err *err) {
    char path[512];
    if (*name == '/')
        str_copy(path, sizeof path, name);
    else
        folder_path(path, folder, name);
    *ret_fd = open(path, flags | O_CLOEXEC, 0600);
    return *ret_fd < 0 ? err_sys(err, errno, "vmm.start", "open %s", path) : 0;
}

/* A unix socket's path holds 107 bytes only: the folder is entered through its descriptor. */
static int listen_in(const char *folder, const char *name, int *ret_fd, struct err *err) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    _cleanup_close_ int dir = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(addr.sun_path, sizeof addr.sun_path, "/proc/self/fd/%d/%s", dir, name);
    unlinkat(dir, name, 0);
    if (dir < 0 || fd < 0 || bind(fd, (struct sockaddr *)&addr, sizeof addr) < 0 || fchmodat(dir, name, 0600, 0) < 0 ||
        listen(fd, 1) < 0)
        return err_sys(err, errno, "vmm.start", "make %s/%s", folder, name);
    *ret_fd = fd_steal(&fd);
    return 0;
}

static void close_all(struct handed_over *h) {
    /* The first is the caller's TAP. */
    for (int i = 1; i < h->count; i++)
        fd_close(&h->fds[i]);
}

/* Return: its number in the child. */
static int hand(struct handed_over *h, int fd) {
    h->fds[h->count] = fd;
    return 3 + h->count++;
}

/* What is not in every machine. */
static int open_more(const struct vmm_spec *spec, struct handed_over *h, struct err *err) {
    char path[512];
    int fd = -1, r = 0;
    if (spec->has_agent) {
        r = listen_in(spec->folder, vmm_qemu.agent_socket, &fd, err);
        h->agent = r == 0 ? hand(h, fd) : 0;
    }
    folder_path(path, spec->folder, VMM_TEMPLATE_DISK);
    if (r == 0 && access(path, F_OK) == 0) {
        r = open_part(spec->folder, VMM_TEMPLATE_DISK, O_RDONLY, &fd, err);
        h->template = r == 0 ? hand(h, fd) : 0;
    }
    if (r == 0 && spec->memory_fd > 0) {
        fd = fcntl(spec->memory_fd, F_DUPFD_CLOEXEC, 3);
        r = fd < 0 ? err_sys(err, errno, "vmm.start", "hand over the memory") : 0;
        h->memory = r == 0 ? hand(h, fd) : 0;
    }
    return r;
}

static int open_all(const struct vmm_spec *spec, struct handed_over *h, struct err *err) {
    h->fds[0] = spec->tap_fd;
    h->count = FD_FIXED - 3;
    for (int i = 1; i < FD_COUNT; i++)
        h->fds[i] = -1;
    int r = listen_in(spec->folder, QMP_SOCKET, &h->fds[FD_QMP - 3], err);
    if (r == 0)
        r = open_part(spec->folder, "console.log", O_WRONLY | O_CREAT | O_APPEND, &h->fds[FD_CONSOLE - 3], err);
    if (r == 0)
        r = open_part(spec->folder, "disk.qcow2", O_RDWR, &h->fds[FD_DISK - 3], err);
    if (r == 0)
        r = open_part(spec->folder, "base.ext4", O_RDONLY, &h->fds[FD_BASE - 3], err);
    if (r == 0)
        r = open_part(spec->folder, spec->kernel, O_RDONLY, &h->fds[FD_KERNEL - 3], err);
    if (r == 0)
        r = open_part(spec->folder, spec->initrd, O_RDONLY, &h->fds[FD_INITRD - 3], err);
    return r < 0 ? r : open_more(spec, h, err);
}

static uint32_t kvm_group(void) {
    struct stat st;
    return stat("/dev/kvm", &st) == 0 ? st.st_gid : 0;
}

static void build(struct args *a, const struct config_vm *config, const struct vmm_spec *spec,
                  const struct handed_over *h) {
    build_machine(a, config->qemu_binary, spec->choice->accel, spec->vm, h->memory != 0);
    if (h->memory)
        build_memory(a, spec, h->memory);
    build_devices(a, spec, h->template);
    if (h->agent)
        build_agent(a, h->agent);
    if (spec->is_to_load)
        build_wait(a);
}

static int spawn(const struct config_vm *config, const struct vmm_spec *spec, const struct handed_over *h,
                 pid_t *ret_pid, int *ret_pidfd, struct err *err) {
    static const struct proc_limit limits[] = {
        {RLIMIT_CORE, 0}, {RLIMIT_NOFILE, FILES_MAX}, {RLIMIT_NPROC, PROCESSES_MAX}};
    _cleanup_close_ int log_fd = -1;
    int r = open_part(spec->folder, "vmm.log", O_WRONLY | O_CREAT | O_APPEND, &log_fd, err);
    if (r < 0)
        return r;
    struct args args = {0};
    build(&args, config, spec, h);
    bool kvm = strcmp(spec->choice->accel, "kvm") == 0;
    struct proc_spec proc = {.argv = (const char *const *)args.item,
                             .uid = spec->vm->uid,
                             .gid = spec->vm->uid,
                             .extra_gid = kvm ? kvm_group() : 0,
                             .fds = h->fds,
                             .fd_count = h->count,
                             .output_fd = log_fd,
                             .no_new_privs = true,
                             .ends_with_us = spec->ends_with_us,
                             .limits = limits,
                             .limit_count = sizeof limits / sizeof *limits,
                             .group_fds = spec->confinement.group_fds,
                             .group_count = spec->confinement.group_count,
                             .jail_fd = spec->confinement.jail_fd};
    r = args.failed ? err_set(err, E2BIG, "vmm.start", "QEMU's command line is too long")
                    : proc_start(&proc, ret_pid, ret_pidfd, err);
    args_free(&args);
    return r;
}

static int qemu_start(const struct config_vm *config, const struct vmm_spec *spec, pid_t *ret_pid, int *ret_pidfd,
                      struct err *err) {
    struct handed_over h = {.count = 0};
    int r = spec->is_furnished ? 0 : write_config(spec, err);
    if (r == 0)
        r = open_all(spec, &h, err);
    if (r == 0)
        r = spawn(config, spec, &h, ret_pid, ret_pidfd, err);
    close_all(&h);
    return r;
}

static uint32_t qemu_overhead_mib(const struct vmm_choice *choice) {
    return OVERHEAD_MIB + (strcmp(choice->accel, "tcg") == 0 ? TCG_CACHE_MIB : 0);
}

static void qemu_go_on(struct vmm_watch *watch) {
    qmp_command(watch, QMP_CONT);
}

static void qemu_ask_shutdown(struct loop *loop, const char *folder, const struct vm *vm, struct vmm_watch *watch) {
    if (watch)
        qmp_command(watch, QMP_POWERDOWN);
}

/* All of the command line, with the same for what is each machine's own. */
static int qemu_shape(const struct config_vm *config, const struct vmm_spec *spec, char ret_digest[VMM_SHAPE_TEXT],
                      struct err *err) {
    struct vm vm = {.memory_mib = spec->vm->memory_mib, .vcpus = spec->vm->vcpus};
    struct vmm_spec same = *spec;
    struct handed_over h = {.agent = spec->has_agent ? FD_FIXED : 0, .template = FD_FIXED, .memory = FD_FIXED};
    struct args args = {0};
    struct shape shape;
    same.vm = &vm;
    same.writes_memory = same.is_to_load = false;
    build(&args, config, &same, &h);
    shape_begin(&shape);
    for (size_t i = 0; i < args.n; i++)
        shape_add(&shape, args.item[i]);
    if (strcmp(spec->choice->accel, "kvm") == 0) /* "-cpu host" */
        shape_add_host(&shape);
    shape_finish(&shape, ret_digest);
    args_free(&args);
    return args.failed ? err_set(err, E2BIG, "vmm.start", "QEMU's command line is too long") : 0;
}

const struct vmm_ops vmm_qemu = {
    .name = "qemu",
    .agent_socket = "agent.sock",
    .overhead_mib = qemu_overhead_mib,
    .is_jailed = true,
    .start = qemu_start,
    .watch = qmp_watch,
    .go_on = qemu_go_on,
    .ask_shutdown = qemu_ask_shutdown,
    .save = qmp_save,
    .load = qmp_load,
    .go = qmp_go,
    .shape = qemu_shape,
};

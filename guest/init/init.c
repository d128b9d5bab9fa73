/* PID 1 of the initramfs of our guests.
 *
 * Debian's cloud kernel has virtio as modules and no IP_PNP, so something must load the drivers, read `ip=` and hand
 * over to the root file system's own init. initramfs-tools would do it in some hundred processes; this does it in one,
 * which matters where a VM is emulated (TCG), and says every failure in one line on the console, which matters
 * everywhere: the console is the only thing that can be seen of a guest whose network is dead.
 *
 *   mount /proc /sys /dev /run -> load modules -> NIC, hostname, resolver -> wait for root -> mount -> switch root -> exec
 *
 * The network is set before the root is mounted, so that the host can ping the guest early. A network that cannot be
 * set does not stop the boot: the rest of the guest can still be looked at. A root that cannot be mounted ends it. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <net/if.h>
#include <net/route.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "cmdline.h"

#define MODULES_DIR "/modules"
#define MODULES_ORDER "/etc/modules-order"
#define NEW_ROOT "/newroot"
/* linux/ext4.h of newer kernels has it */
#define EXT4_IOC_RESIZE_FS _IOW('f', 16, uint64_t)

#define LOWER "/lower" /* the image, where it is shared */
#define UPPER "/upper" /* the VM's own disk over it */

#define ROOT_WAIT_MS 10000
#define NIC_WAIT_MS 3000
#define POLL_MS 10

/* One line, one write: kernel messages go to the same serial line. */
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...) {
    char line[512] = "mc-init: ";
    size_t used = strlen(line);
    va_list ap;
    va_start(ap, format);
    int n = vsnprintf(line + used, sizeof line - used - 1, format, ap);
    va_end(ap);
    if (n > 0)
        used += (size_t)n < sizeof line - used - 1 ? (size_t)n : sizeof line - used - 2;
    line[used++] = '\n';
    /* Nobody is left to tell when the console itself fails. */
    if (write(STDERR_FILENO, line, used) < 0)
        return;
}

static void pause_ms(long ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

/* A VMM run with -no-reboot ends with the guest, so the controller hears of it at once. Where the machine cannot be
 * powered off (Firecracker has no ACPI power off for us), the kernel halts, PID 1 ends and panic=-1 restarts. */
__attribute__((noreturn)) static void give_up(void) {
    say("cannot boot, powering off");
    tcdrain(STDERR_FILENO);
    sync();
    reboot(RB_POWER_OFF);
    reboot(RB_AUTOBOOT);
    _exit(1);
}

static void open_console(void) {
    int fd = open("/dev/console", O_RDWR | O_NOCTTY);
    if (fd < 0)
        return;
    for (int i = 0; i <= STDERR_FILENO; i++)
        if (fd != i)
            dup2(fd, i);
    if (fd > STDERR_FILENO)
        close(fd);
}

static void mount_or_give_up(const char *source, const char *target, const char *type, unsigned long flags,
                             const char *options) {
    mkdir(target, 0755);
    if (mount(source, target, type, flags, options) == 0)
        return;
    say("mount %s on %s: %s", type, target, strerror(errno));
    give_up();
}

/* Reads a small file; what does not fit is an error. Return: its length or -errno. */
static ssize_t read_file(const char *path, char *buf, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    size_t used = 0;
    ssize_t n;
    while (used < size && (n = read(fd, buf + used, size - used)) > 0)
        used += (size_t)n;
    int failed = errno;
    close(fd);
    if (used == size)
        return -EFBIG;
    if (n < 0)
        return -failed;
    buf[used] = '\0';
    return (ssize_t)used;
}

static int load_module(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int r = syscall(SYS_finit_module, fd, "", 0) < 0 ? -errno : 0;
    close(fd);
    return r == -EEXIST ? 0 : r;
}

/* A module that does not load is told and passed over: if it was needed, the wait for the root says so too. */
static void load_modules(void) {
    static char list[16384];
    char name[64], path[128];
    ssize_t length = read_file(MODULES_ORDER, list, sizeof list);
    if (length < 0) {
        say("list of modules %s: %s", MODULES_ORDER, strerror((int)-length));
        return;
    }
    const char *cursor = list;
    int r;
    while ((r = guest_modules_next(&cursor, name, sizeof name)) != 0) {
        if (r < 0) {
            say("%s: a name that is not a file name of at most %zu bytes", MODULES_ORDER, sizeof name - 1);
            continue;
        }
        snprintf(path, sizeof path, "%s/%s", MODULES_DIR, name);
        r = load_module(path);
        if (r < 0)
            say("module %s: %s", name, strerror(-r));
        unlink(path); /* gives its memory back */
    }
}

static void set_hostname(const char *name) {
    if (name[0] && sethostname(name, strlen(name)) < 0)
        say("hostname %s: %s", name, strerror(errno));
}

static void write_resolver(const struct guest_cmdline *cmdline) {
    FILE *file = fopen("/run/resolv.conf", "we");
    if (!file) {
        say("/run/resolv.conf: %s", strerror(errno));
        return;
    }
    char text[INET_ADDRSTRLEN];
    int count = 0;
    for (size_t i = 0; cmdline->ip_state == GUEST_IP_STATIC && i < 2; i++) {
        if (!cmdline->ip.dns[i].s_addr)
            continue;
        fprintf(file, "nameserver %s\n", inet_ntop(AF_INET, &cmdline->ip.dns[i], text, sizeof text));
        count++;
    }
    if (count == 0)
        fprintf(file, "# no resolver was given in ip=\n");
    if (fclose(file) != 0)
        say("/run/resolv.conf: %s", strerror(errno));
}

static int set_flags_up(int fd, const char *device) {
    struct ifreq ifr = {0};
    memcpy(ifr.ifr_name, device, strnlen(device, sizeof ifr.ifr_name - 1));
    if (ioctl(fd, SIOCGIFFLAGS, &ifr) < 0)
        return -errno;
    ifr.ifr_flags |= IFF_UP;
    return ioctl(fd, SIOCSIFFLAGS, &ifr) < 0 ? -errno : 0;
}

static int set_ifaddr(int fd, unsigned long request, const char *device, struct in_addr address) {
    struct ifreq ifr = {0};
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr = address};
    memcpy(ifr.ifr_name, device, strnlen(device, sizeof ifr.ifr_name - 1));
    memcpy(&ifr.ifr_addr, &in, sizeof in);
    return ioctl(fd, request, &ifr) < 0 ? -errno : 0;
}

/* ip route add default via GATEWAY */
static int set_default_route(int fd, struct in_addr gateway) {
    struct sockaddr_in any = {.sin_family = AF_INET}, via = {.sin_family = AF_INET, .sin_addr = gateway};
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    memcpy(&route.rt_dst, &any, sizeof any);
    memcpy(&route.rt_genmask, &any, sizeof any);
    memcpy(&route.rt_gateway, &via, sizeof via);
    return ioctl(fd, SIOCADDRT, &route) < 0 && errno != EEXIST ? -errno : 0;
}

/* The first NIC that is not the loopback, by index. */
static bool find_first_nic(char *ret_device, size_t size) {
    struct if_nameindex *all = if_nameindex();
    bool found = false;
    for (struct if_nameindex *it = all; it && it->if_name && !found; it++)
        if (strcmp(it->if_name, "lo") != 0)
            found = (size_t)snprintf(ret_device, size, "%s", it->if_name) < size;
    if (all)
        if_freenameindex(all);
    return found;
}

/* virtio_net probes in the background of its loading, so the device may come a moment later. */
static bool wait_for_nic(char *device, size_t size) {
    for (int waited_ms = 0; waited_ms < NIC_WAIT_MS; waited_ms += POLL_MS) {
        if (device[0] ? if_nametoindex(device) != 0 : find_first_nic(device, size))
            return true;
        pause_ms(POLL_MS);
    }
    return false;
}

/* ip= is IPv4. A NIC with IPv6 up would take the addresses and routes that any other guest advertises on the bridge. */
static void disable_ipv6(const char *device) {
    char path[80];
    snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/%s/disable_ipv6", device);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return; /* a kernel without IPv6 */
    if (write(fd, "1", 1) < 0)
        say("%s: turn IPv6 off: %s", device, strerror(errno));
    close(fd);
}

static int configure_address(int fd, const char *device, const struct guest_ip *ip) {
    struct in_addr broadcast = {.s_addr = ip->client.s_addr | ~ip->netmask.s_addr};
    const char *what = "address";
    int r = set_ifaddr(fd, SIOCSIFADDR, device, ip->client);
    if (r == 0) {
        what = "netmask";
        r = set_ifaddr(fd, SIOCSIFNETMASK, device, ip->netmask);
    }
    if (r == 0 && ip->prefix_bits < 31) {
        what = "broadcast address";
        r = set_ifaddr(fd, SIOCSIFBRDADDR, device, broadcast);
    }
    if (r == 0) {
        what = "link up";
        r = set_flags_up(fd, device);
    }
    if (r < 0)
        say("%s: %s: %s", device, what, strerror(-r));
    return r;
}

static void say_configured(int fd, const char *device, const struct guest_ip *ip) {
    char address[INET_ADDRSTRLEN], gateway[INET_ADDRSTRLEN] = "none";
    struct ifreq ifr = {0};
    memcpy(ifr.ifr_name, device, strnlen(device, sizeof ifr.ifr_name - 1));
    unsigned char mac[6] = {0};
    if (ioctl(fd, SIOCGIFHWADDR, &ifr) == 0)
        memcpy(mac, ifr.ifr_hwaddr.sa_data, sizeof mac);
    inet_ntop(AF_INET, &ip->client, address, sizeof address);
    if (ip->gateway.s_addr)
        inet_ntop(AF_INET, &ip->gateway, gateway, sizeof gateway);
    say("%s %s/%u gw %s mac %02x:%02x:%02x:%02x:%02x:%02x", device, address, ip->prefix_bits, gateway, mac[0], mac[1],
        mac[2], mac[3], mac[4], mac[5]);
}

static void configure_nic(int fd, const struct guest_ip *ip) {
    char device[IF_NAMESIZE], gateway[INET_ADDRSTRLEN], address[INET_ADDRSTRLEN];
    memcpy(device, ip->device, sizeof device);
    if (!wait_for_nic(device, sizeof device)) {
        say("network: no device %s after %d ms: was the VM given a NIC?", device[0] ? device : "but the loopback",
            NIC_WAIT_MS);
        return;
    }
    disable_ipv6(device);
    if (configure_address(fd, device, ip) < 0)
        return;
    inet_ntop(AF_INET, &ip->client, address, sizeof address);
    inet_ntop(AF_INET, &ip->gateway, gateway, sizeof gateway);
    if (ip->gateway.s_addr && !guest_ip_on_link(ip, ip->gateway)) {
        say("%s: the gateway %s is outside of %s/%u: there is no default route (wrong netmask in ip=?)", device,
            gateway, address, ip->prefix_bits);
    } else if (ip->gateway.s_addr) {
        int r = set_default_route(fd, ip->gateway);
        if (r < 0)
            say("%s: default route by %s: %s", device, gateway, strerror(-r));
    }
    say_configured(fd, device, ip);
}

static void configure_network(const struct guest_cmdline *cmdline) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        say("network: socket: %s", strerror(errno));
        return;
    }
    int r = set_flags_up(fd, "lo");
    if (r < 0)
        say("lo: link up: %s", strerror(-r));

    switch (cmdline->ip_state) {
    case GUEST_IP_NONE:
    case GUEST_IP_BAD:
        say("network: not configured: %s", cmdline->ip_why);
        break;
    case GUEST_IP_STATIC:
        set_hostname(cmdline->ip.hostname);
        configure_nic(fd, &cmdline->ip);
        break;
    }
    close(fd);
}

/* what: as a person calls it, "root device". */
static void wait_for_disk(const char *what, const char *path) {
    struct stat st;
    bool found = false;
    for (int waited_ms = 0; !found && waited_ms < ROOT_WAIT_MS; waited_ms += POLL_MS) {
        found = stat(path, &st) == 0;
        if (!found)
            pause_ms(POLL_MS);
        if (waited_ms == 1000)
            say("waiting for the %s %s", what, path);
    }
    if (!found) {
        say("%s %s did not come in %d s: was the VM given a disk, and is its driver in %s?", what, path,
            ROOT_WAIT_MS / 1000, MODULES_ORDER);
        give_up();
    }
    if (!S_ISBLK(st.st_mode)) {
        say("%s %s is not a block device", what, path);
        give_up();
    }
}

static void mount_disk(const char *path, const char *target, const char *type, unsigned long flags,
                       const char *options) {
    mkdir(target, 0755);
    if (mount(path, target, type, flags, options) == 0)
        return;
    say("mount %s as %s: %s: %s", path, type, strerror(errno),
        errno == ENODEV ? "the kernel has no such file system" : "is the image whole?");
    give_up();
}

static void make_folder_or_give_up(const char *path) {
    if (mkdir(path, 0755) == 0 || errno == EEXIST)
        return;
    say("make %s on the overlay's disk: %s", path, strerror(errno));
    give_up();
}

/* The image is shared and read-only; what this VM writes goes to a disk of its own. That one is sparse on the host, so
 * the kernel must not write zeroes over its inode tables in the background (noinit_itable): they read as zero.
 * Source: Documentation/filesystems/overlayfs.rst, Documentation/admin-guide/ext4.rst */
static void mount_joined(const struct guest_cmdline *cmdline) {
    wait_for_disk("overlay's disk", cmdline->overlay);
    mount_disk(cmdline->root, LOWER, cmdline->rootfstype, MS_RDONLY, NULL);
    mount_disk(cmdline->overlay, UPPER, "ext4", 0, "noinit_itable");
    make_folder_or_give_up(UPPER "/root");
    make_folder_or_give_up(UPPER "/work");
    mount_disk("overlay", NEW_ROOT, "overlay", 0, "lowerdir=" LOWER ",upperdir=" UPPER "/root,workdir=" UPPER "/work");
    say("root %s shared, %s for what is written", cmdline->root, cmdline->overlay);
}

/* A VM's disk may be larger than the file system of the image on it: the kernel lets a mounted one grow in one call.
 * Where that fails, the guest has what the image has. Source: Documentation/filesystems/ext4/super.rst,
 * Documentation/admin-guide/ext4.rst (EXT4_IOC_RESIZE_FS) */
static void grow_root(const char *device) {
    struct {
        uint32_t inodes, blocks_low, reserved, free_blocks, free_inodes, first, log_block_size;
        uint8_t between[0x150 - 0x1c];
        uint32_t blocks_high;
    } super;
    uint64_t bytes = 0;
    int disk = open(device, O_RDONLY | O_CLOEXEC), root = open(NEW_ROOT, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (disk >= 0 && root >= 0 && ioctl(disk, BLKGETSIZE64, &bytes) == 0 &&
        pread(disk, &super, sizeof super, 1024) == (ssize_t)sizeof super && super.log_block_size <= 6) {
        uint64_t now = (uint64_t)super.blocks_high << 32 | super.blocks_low;
        uint64_t blocks = bytes / (1024U << super.log_block_size);
        if (blocks > now && ioctl(root, EXT4_IOC_RESIZE_FS, &blocks) < 0)
            say("%s: grow its file system to the disk's %llu MiB: %s", device, (unsigned long long)bytes >> 20,
                strerror(errno));
    }
    close(disk);
    close(root);
}

static void mount_root(const struct guest_cmdline *cmdline) {
    wait_for_disk("root device", cmdline->root);
    if (cmdline->overlay[0]) {
        mount_joined(cmdline);
        return;
    }
    mount_disk(cmdline->root, NEW_ROOT, cmdline->rootfstype, cmdline->writable ? 0 : MS_RDONLY, NULL);
    if (cmdline->writable && strcmp(cmdline->rootfstype, "ext4") == 0)
        grow_root(cmdline->root);
}

/* The rootfs cannot be unmounted or pivoted away, so the new root is moved over it.
 * Source: Documentation/filesystems/ramfs-rootfs-initramfs.rst */
static void switch_root(void) {
    static const char *const moved[] = {"/dev", "/proc", "/sys", "/run"};
    char target[64];
    for (size_t i = 0; i < sizeof moved / sizeof *moved; i++) {
        snprintf(target, sizeof target, "%s%s", NEW_ROOT, moved[i]);
        if (mount(moved[i], target, NULL, MS_MOVE, NULL) < 0) {
            say("move %s to the root file system: %s", moved[i], strerror(errno));
            give_up();
        }
    }
    unlink("/init");
    if (chdir(NEW_ROOT) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0) {
        say("switch root: %s", strerror(errno));
        give_up();
    }
}

int main(int argc, char *argv[]) {
    (void)argc;
    char text[4096]; /* COMMAND_LINE_SIZE is 2048 on x86 */
    struct guest_cmdline cmdline;

    if (getpid() != 1) {
        fprintf(stderr, "mc-init: this is a virtual machine's first process, not a command\n");
        return 2;
    }
    umask(022);
    mount_or_give_up("proc", "/proc", "proc", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL);
    mount_or_give_up("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL);
    mount_or_give_up("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
    open_console();
    mount_or_give_up("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=20%");

    ssize_t length = read_file("/proc/cmdline", text, sizeof text);
    if (length < 0) {
        say("/proc/cmdline: %s", strerror((int)-length));
        give_up();
    }
    int r = guest_cmdline_parse(text, &cmdline);
    if (r < 0) {
        say("the kernel command line's root=, mc.overlay=, rootfstype= or init= is too long");
        give_up();
    }
    load_modules();
    configure_network(&cmdline);
    write_resolver(&cmdline);
    if (!cmdline.root[0]) {
        say("the kernel command line has no root=");
        give_up();
    }
    mount_root(&cmdline);
    switch_root();

    argv[0] = cmdline.init;
    execv(cmdline.init, argv);
    say("exec %s: %s", cmdline.init, strerror(errno));
    give_up();
}

/* What a QEMU says of itself over its machine protocol (QMP): whether it runs, and whether its NIC's link is on. Nothing
 * else knows: set_link does not touch the TAP.
 *
 * A monitor has one client at a time. One that has a client already is left alone: who connects all the same waits in
 * its backlog, and stands in the way of the next one. Nothing is said before the other end greets as QMP does. What is
 * asked only reads; all of it ends after QMP_MS, and no answer may be larger than QMP_LINE.
 *
 * QEMU tells the link by no command. But the guest's own view of it is a register of the virtio device, to be read in the
 * guest's memory where its driver (or firmware) has put it: at BAR 4 + 0x2000 are the MAC and then the status, whose
 * lowest bit is the link. It is believed only where the MAC is that of the NIC.
 *
 * Source: QEMU docs/interop/qmp-spec.txt and qapi/{run-state,misc,pci}.json, hw/virtio/virtio-pci.c (where the device's
 * part begins); Virtual I/O Device 1.2, 5.1.4 (struct virtio_net_config). */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "doctor/collect/collect.h"

#define QMP_MS 1000          /* for one QEMU: a busy one answers late, a stopped one never */
#define QMP_LINE (64 * 1024) /* bytes of one answer */
#define ARGS_MAX (64 * 1024) /* bytes of a command line */
#define UNIX_LINES_MAX 65536 /* of /proc/PID/net/unix */
#define SOCKETS_MAX 512      /* of one process */
#define CONNECTED 3          /* SS_CONNECTED, of /proc/PID/net/unix */
#define SOCKET_PATH 256
#define CHARDEVS_MAX 8
#define PCI_DEPTH 4 /* bridges behind bridges */
#define PCI_CLASS_ETHERNET 0x200
#define PCI_VENDOR_VIRTIO 0x1af4
#define VIRTIO_BAR 4
#define VIRTIO_DEVICE_CONFIG 0x2000 /* in that BAR */

/* --- where the socket is --- */

/* The value of KEY= in "socket,id=qmp,path=/run/q,server=on"; a doubled comma is a comma. Return: whether it is there. */
static bool option_value(const char *options, const char *key, char *dst, size_t size) {
    size_t len = strlen(key), n = 0;
    for (const char *at = options; *at;) {
        bool found = strncmp(at, key, len) == 0 && at[len] == '=';
        if (found)
            at += len + 1;
        while (*at && (*at != ',' || at[1] == ',')) {
            if (found && n + 1 < size)
                dst[n++] = *at;
            at += *at == ',' ? 2 : 1;
        }
        if (found) {
            dst[n] = '\0';
            return n > 0;
        }
        at += *at == ',';
    }
    return false;
}

struct chardev {
    char id[SNAP_TEXT], path[SOCKET_PATH];
};

struct monitors {
    struct chardev chardevs[CHARDEVS_MAX];
    size_t count;
    char path[SOCKET_PATH]; /* of -qmp unix:…; empty */
    char wanted[SNAP_TEXT]; /* chardev of -mon mode=control; empty */
};

static void take_option(struct monitors *m, const char *option, const char *value) {
    char mode[16];
    if (strcmp(option, "qmp") == 0 || strcmp(option, "qmp-pretty") == 0) {
        char text[SOCKET_PATH + 8];
        snprintf(text, sizeof text, "path=%s", str_starts(value, "unix:") ? value + 5 : "");
        option_value(text, "path", m->path, sizeof m->path);
    } else if (strcmp(option, "chardev") == 0 && m->count < CHARDEVS_MAX && str_starts(value, "socket,")) {
        struct chardev *c = &m->chardevs[m->count];
        m->count +=
            option_value(value, "id", c->id, sizeof c->id) && option_value(value, "path", c->path, sizeof c->path);
    } else if (strcmp(option, "mon") == 0 && option_value(value, "mode", mode, sizeof mode) &&
               strcmp(mode, "control") == 0 && !option_value(value, "chardev", m->wanted, sizeof m->wanted)) {
        snprintf(m->wanted, sizeof m->wanted, "%.*s", (int)strcspn(value, ","), value);
    }
}

/* Return: whether the command line names a QMP socket by a path. */
static bool find_in_arguments(pid_t pid, char ret_path[SOCKET_PATH]) {
    _cleanup_free_ char *args = malloc(ARGS_MAX);
    struct monitors m = {.count = 0};
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t len = args && fd >= 0 ? read(fd, args, ARGS_MAX - 1) : -1;
    if (len <= 0)
        return false;
    args[len] = '\0';
    const char *option = NULL;
    for (const char *arg = args; arg < args + len; arg += strlen(arg) + 1) {
        if (option)
            take_option(&m, option, arg);
        option = *arg == '-' ? arg + 1 + (arg[1] == '-') : NULL;
    }
    for (size_t i = 0; !*m.path && i < m.count; i++)
        if (strcmp(m.chardevs[i].id, m.wanted) == 0)
            str_copy(m.path, sizeof m.path, m.chardevs[i].path);
    return *m.path && str_copy(ret_path, SOCKET_PATH, m.path);
}

/* The sockets that a process has open, by their inodes. Return: how many. */
static size_t sockets_of(pid_t pid, unsigned long inodes[SOCKETS_MAX]) {
    char path[64], target[64];
    size_t count = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    DIR *fds = opendir(path);
    for (struct dirent *e; fds && count < SOCKETS_MAX && (e = readdir(fds));) {
        ssize_t len = readlinkat(dirfd(fds), e->d_name, target, sizeof target - 1);
        target[len < 0 ? 0 : len] = '\0';
        count += sscanf(target, "socket:[%lu]", &inodes[count]) == 1;
    }
    if (fds)
        closedir(fds);
    return count;
}

static const char *name_in(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Whether the socket has a client. The end of a connection that was accepted, or waits for it, is told with the name that
 * its listener was bound to: the path, as the process took it; or another path to the same file, if somebody else bound
 * it, and then it is among the process's own sockets. */
static bool has_client(const char *unix_file, const char *path, const unsigned long *inodes, size_t count) {
    char line[512];
    _cleanup_fclose_ FILE *f = fopen(unix_file, "re");
    for (int i = 0; f && i < UNIX_LINES_MAX && fgets(line, sizeof line, f); i++) {
        unsigned int state = 0;
        unsigned long inode = 0;
        int at = 0;
        line[strcspn(line, "\n")] = '\0';
        if (sscanf(line, "%*s %*s %*s %*s %*s %x %lu %n", &state, &inode, &at) != 2 || !at || state != CONNECTED)
            continue;
        if (strcmp(line + at, path) == 0)
            return true;
        for (size_t n = 0; n < count && strcmp(name_in(line + at), name_in(path)) == 0; n++)
            if (inodes[n] == inode)
                return true;
    }
    return false;
}

static bool is_taken(pid_t pid, const char *path) {
    unsigned long inodes[SOCKETS_MAX];
    size_t count = sockets_of(pid, inodes);
    char unix_file[64];
    snprintf(unix_file, sizeof unix_file, "/proc/%d/net/unix", pid);
    return has_client(unix_file, path, inodes, count) || has_client("/proc/self/net/unix", path, inodes, count);
}

/* Connects to a socket by the folder's descriptor: a unix socket's address holds 107 bytes only. Return: 0 or -errno. */
static int connect_in(const char *path, int *ret_fd) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char folder[SOCKET_PATH + 64];
    const char *slash = strrchr(path, '/');
    if (!slash || (size_t)snprintf(folder, sizeof folder, "%.*s", (int)(slash - path), path) >= sizeof folder)
        return -EINVAL;
    _cleanup_close_ int dir = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0)
        return -errno;
    if ((size_t)snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d%s", dir, slash) >=
        sizeof address.sun_path)
        return -ENAMETOOLONG;
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof address) < 0)
        return errno == EAGAIN ? -EBUSY : -errno;
    *ret_fd = fd_steal(&fd);
    return 0;
}

/* As the process itself would find it: in its own view of the file system. */
static int connect_to(pid_t pid, const char *path, int *ret_fd) {
    char full[SOCKET_PATH + 96];
    int n = snprintf(full, sizeof full, "/proc/%d/%s%s", pid, *path == '/' ? "root" : "cwd/", path);
    return n < (int)sizeof full ? connect_in(full, ret_fd) : -ENAMETOOLONG;
}

/* --- talking --- */

struct talk {
    int fd;
    int64_t end_ms;
    size_t len, used; /* bytes in the buffer; those of the line that was taken */
    char buffer[QMP_LINE];
};

static int receive(struct talk *t) {
    struct pollfd ready = {.fd = t->fd, .events = POLLIN};
    int64_t left_ms = t->end_ms - time_monotonic_ms();
    if (t->len == sizeof t->buffer)
        return -EMSGSIZE;
    if (left_ms <= 0 || poll(&ready, 1, (int)left_ms) == 0)
        return -ETIMEDOUT;
    ssize_t n = recv(t->fd, t->buffer + t->len, sizeof t->buffer - t->len, MSG_DONTWAIT);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    t->len += (size_t)n;
    return n == 0 ? -ECONNRESET : 0;
}

/* The next line, as JSON. */
static int next_line(struct talk *t, json_t **ret) {
    char *end;
    memmove(t->buffer, t->buffer + t->used, t->len - t->used);
    t->len -= t->used;
    t->used = 0;
    while (!(end = memchr(t->buffer, '\n', t->len))) {
        int r = receive(t);
        if (r < 0)
            return r;
    }
    t->used = (size_t)(end - t->buffer) + 1;
    *ret = json_loadb(t->buffer, t->used, 0, NULL);
    return *ret ? 0 : -EBADMSG;
}

/* The value of one key in the next line that has it, or "error". Events come between. */
static int wait_for(struct talk *t, const char *key, json_t **ret) {
    for (;;) {
        json_t *line = NULL;
        int r = next_line(t, &line);
        if (r < 0)
            return r;
        *ret = json_incref(json_object_get(line, key));
        bool refused = json_object_get(line, "error") != NULL;
        json_decref(line);
        if (*ret)
            return 0;
        if (refused)
            return -EOPNOTSUPP;
    }
}

/* Return: what it returned, the caller's; NULL with *r set. */
static json_t *ask(struct talk *t, int *r, const char *command, const char *line) {
    char request[256];
    json_t *answer = NULL;
    int n = line ? snprintf(request, sizeof request, "{\"execute\":\"%s\",\"arguments\":{\"command-line\":\"%s\"}}\n",
                            command, line)
                 : snprintf(request, sizeof request, "{\"execute\":\"%s\"}\n", command);
    *r = send(t->fd, request, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT) == n ? wait_for(t, "return", &answer) : -EPIPE;
    return answer;
}

static json_t *ask_person(struct talk *t, int *r, const char *line) {
    return ask(t, r, "human-monitor-command", line);
}

/* --- which NIC is the TAP's --- */

/* "virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=02:…", and indented below it its backend:
 * " \ net: index=0,type=tap,ifname=fc-vm-1,script=no", or "type=tap,fd=27" */
static bool is_backend(const char *line, const struct snap_holder *h) {
    char value[SNAP_TEXT];
    if (option_value(line, "ifname", value, sizeof value))
        return strcmp(value, h->tap) == 0;
    return option_value(line, "fd", value, sizeof value) && atoi(value) == h->fd;
}

static void take_name(const char *line, char *dst, size_t size) {
    line += strspn(line, " \\");
    snprintf(dst, size, "%.*s", (int)strcspn(line, ":"), line);
}

static bool find_nic(char *text, const struct snap_holder *h, struct snap_vmm *row, bool *ret_virtio) {
    char nic[sizeof row->nic] = "", value[SNAP_TEXT], *save = NULL;
    struct net_mac mac = {{0}};
    for (char *line = strtok_r(text, "\r\n", &save); line; line = strtok_r(NULL, "\r\n", &save)) {
        if (*line != ' ') {
            take_name(line, nic, sizeof nic);
            *ret_virtio = option_value(line, "model", value, sizeof value) && str_starts(value, "virtio-net");
            if (option_value(line, "macaddr", value, sizeof value))
                net_parse_mac(value, &mac);
        } else if (is_backend(line, h)) {
            str_copy(row->nic, sizeof row->nic, nic);
            take_name(line, row->backend, sizeof row->backend);
            row->mac = mac;
            return *nic != '\0';
        }
    }
    return false;
}

/* --- its link --- */

struct pci_search {
    const char *nic;
    json_int_t named, any; /* address of the BAR; -1: none */
    int others;            /* virtio NICs that are not the named one */
};

static json_int_t bar_of(json_t *device) {
    json_t *region;
    size_t i;
    json_array_foreach(json_object_get(device, "regions"), i, region) {
        json_int_t bar = -1, address = -1;
        if (json_unpack(region, "{s:I, s:I}", "bar", &bar, "address", &address) == 0 && bar == VIRTIO_BAR)
            return address > 0 ? address : -1;
    }
    return -1;
}

static void search_devices(json_t *devices, int depth, struct pci_search *search) {
    json_t *device;
    size_t i;
    json_array_foreach(devices, i, device) {
        json_int_t class = 0, vendor = 0;
        const char *id = "";
        json_unpack(device, "{s?s, s:{s:I}, s:{s:I}}", "qdev_id", &id, "class_info", "class", &class, "id", "vendor",
                    &vendor);
        if (depth > 0)
            search_devices(json_object_get(json_object_get(device, "pci_bridge"), "devices"), depth - 1, search);
        if (class != PCI_CLASS_ETHERNET || vendor != PCI_VENDOR_VIRTIO)
            continue;
        if (strcmp(id, search->nic) == 0) {
            search->named = bar_of(device);
        } else {
            search->any = bar_of(device);
            search->others++;
        }
    }
}

/* "00000000fe002000: 0x02 0xfc …" */
static int read_bytes(const char *text, uint8_t *dst, int count) {
    const char *at = strchr(text, ':');
    for (int i = 0; i < count; i++) {
        char *end = NULL;
        unsigned long value = at ? strtoul(at + 1, &end, 16) : 0;
        if (!at || end == at + 1 || value > 0xff)
            return -EBADMSG;
        dst[i] = (uint8_t)value;
        at = end - 1 + (*end == ' ');
    }
    return 0;
}

static void read_link(struct talk *t, struct snap_vmm *row) {
    struct pci_search search = {.nic = row->nic, .named = -1, .any = -1};
    uint8_t config[8];
    char command[64];
    json_t *bus;
    size_t i;
    int r;
    json_t *buses = ask(t, &r, "query-pci", NULL);
    json_array_foreach(buses, i, bus) search_devices(json_object_get(bus, "devices"), PCI_DEPTH, &search);
    json_decref(buses);
    json_int_t bar = search.named > 0 ? search.named : search.others == 1 ? search.any : -1;
    if (bar <= 0)
        return;
    snprintf(command, sizeof command, "xp /8bx 0x%llx", (unsigned long long)bar + VIRTIO_DEVICE_CONFIG);
    json_t *bytes = ask_person(t, &r, command);
    if (json_is_string(bytes) && read_bytes(json_string_value(bytes), config, sizeof config) == 0 &&
        memcmp(config, &row->mac, sizeof row->mac) == 0)
        row->link = config[6] & 1;
    json_decref(bytes);
}

static int converse(struct talk *t, const struct snap_holder *h, struct snap_vmm *row) {
    json_t *greeting = NULL;
    bool virtio = false;
    int r = wait_for(t, "QMP", &greeting);
    json_decref(greeting);
    if (r < 0)
        return r;
    json_decref(ask(t, &r, "qmp_capabilities", NULL));
    json_t *status = r == 0 ? ask(t, &r, "query-status", NULL) : NULL;
    const char *word = json_string_value(json_object_get(status, "status"));
    str_copy(row->status, sizeof row->status, word ? word : "");
    json_decref(status);
    if (r < 0)
        return r;
    int more; /* a QEMU that will not say the rest has said the most */
    json_t *network = ask_person(t, &more, "info network");
    _cleanup_free_ char *text = json_is_string(network) ? strdup(json_string_value(network)) : NULL;
    json_decref(network);
    if (text && find_nic(text, h, row, &virtio) && virtio)
        read_link(t, row);
    return 0;
}

/* --- one VMM --- */

static int find_socket(const struct snapshot *s, const struct snap_holder *h, const char *state_dir,
                       struct snap_vmm *row, int *ret_fd) {
    char path[SOCKET_PATH];
    const struct snap_vm *vm = snap_vm_of_tap(s, h->tap);
    if (find_in_arguments(h->pid, path)) {
        str_copy(row->socket, sizeof row->socket, path);
        return is_taken(h->pid, path) ? -EBUSY : connect_to(h->pid, path, ret_fd);
    }
    if (!vm || !state_dir || vm->pid != h->pid || strcmp(vm->vmm, "qemu") != 0)
        return -ENOENT;
    if (snprintf(path, sizeof path, "%s/users/%s/qmp.sock", state_dir, vm->id) >= (int)sizeof path)
        return -ENAMETOOLONG;
    str_copy(row->socket, sizeof row->socket, path);
    return is_taken(h->pid, path) ? -EBUSY : connect_in(path, ret_fd);
}

static int read_vmm(const struct snapshot *s, const struct snap_holder *h, const char *state_dir,
                    struct snap_vmm *row) {
    struct talk *t = calloc(1, sizeof *t);
    if (!t)
        return -ENOMEM;
    t->fd = -1;
    t->end_ms = time_monotonic_ms() + QMP_MS;
    int r = find_socket(s, h, state_dir, row, &t->fd);
    if (r == 0)
        r = converse(t, h, row);
    fd_close(&t->fd);
    free(t);
    return r;
}

void collect_vmm(struct snapshot *s, const char *tap, const char *state_dir) {
    const struct snap_holder *h = snap_holder_of(s, tap);
    struct snap_vmm found = {.link = -1};
    bool qemu = h && (str_starts(h->comm, "qemu") || str_starts(h->comm, "kvm"));
    if (h && !qemu)
        collect_firecracker(s, h, state_dir);
    if (!qemu || h->state == 'T' || h->state == 't' || h->frozen)
        return; /* who is stopped does not answer, and that is known */
    found.pid = h->pid;
    str_copy(found.tap, sizeof found.tap, tap);
    int r = read_vmm(s, h, state_dir, &found);
    if (r == -ENOENT && !*found.socket)
        return; /* it has none: nothing is missing */
    if (r < 0)
        snapshot_gap(s, "qmp", -r, "QEMU (process %d) could not be asked about %.15s%s", h->pid, tap,
                     r == -EBUSY       ? ": its monitor has another client"
                     : r == -ETIMEDOUT ? ": it does not answer, or has another client"
                                       : "");
    found.error = -r;
    struct snap_vmm *row = SNAP_PUSH(s, vmms, SNAP_ROWS_MAX);
    if (row)
        *row = found;
}

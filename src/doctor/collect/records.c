/* The controller's own VM records, read without the daemon and without changing anything. */
#include <errno.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "doctor/collect/collect.h"
#include "model/vm.h"
#include "netlink/netns.h"
#include "network/names.h"
#include "store/declared.h"

#define VMS_MAX 16384
#define CONSOLE_TAIL (32 * 1024) /* bytes */
#define CONSOLES_MAX 4096

static void copy_column(sqlite3_stmt *q, int column, char *dst, size_t size) {
    const char *text = (const char *)sqlite3_column_text(q, column);
    str_copy(dst, size, text ? text : "");
}

static void take_vm(struct snapshot *s, sqlite3_stmt *q, const struct declared *declared) {
    struct snap_vm *vm = SNAP_PUSH(s, vms, VMS_MAX);
    enum vm_type type;
    if (!vm)
        return;
    copy_column(q, 0, vm->id, sizeof vm->id);
    copy_column(q, 1, vm->user, sizeof vm->user);
    copy_column(q, 2, vm->type, sizeof vm->type);
    copy_column(q, 3, vm->state, sizeof vm->state);
    vm->ip = (uint32_t)sqlite3_column_int64(q, 4);
    if (sqlite3_column_bytes(q, 5) == sizeof vm->mac)
        memcpy(&vm->mac, sqlite3_column_blob(q, 5), sizeof vm->mac);
    copy_column(q, 6, vm->tap, sizeof vm->tap);
    copy_column(q, 7, vm->bridge, sizeof vm->bridge);
    copy_column(q, 8, vm->vmm, sizeof vm->vmm);
    vm->pid = sqlite3_column_int(q, 9);
    vm->pid_start = (uint64_t)sqlite3_column_int64(q, 10);
    copy_column(q, 11, vm->paused, sizeof vm->paused);
    if (vm_type_parse(vm->type, &type) == 0)
        vm->port = declared->port[type];
}

#define VM_COLUMNS "SELECT id, user, type, state, ip, mac, tap, bridge, vmm, pid, pid_start"
#define VM_ROWS " FROM vm WHERE ended = 0 ORDER BY created_ms"

/* With the last that its VMM told the controller of its standing still, if it did not say since that it runs again. */
static const char with_pause[] =
    VM_COLUMNS ", (SELECT iif(event = 'paused', reason, '') FROM event WHERE about = vm.id AND event IN ('paused', "
               "'resumed') ORDER BY n DESC LIMIT 1)" VM_ROWS;

/* Records of another version may not have all of it. */
static int ask_for_vms(sqlite3 *db, sqlite3_stmt **ret) {
    int r = sqlite3_prepare_v2(db, with_pause, -1, ret, NULL);
    return r == SQLITE_OK ? r : sqlite3_prepare_v2(db, VM_COLUMNS ", ''" VM_ROWS, -1, ret, NULL);
}

/* Whether it is the namespace that was declared, whatever way was taken into it; none: the machine's own. */
static bool is_namespace(int nsfd, const char *declared) {
    _cleanup_close_ int fd = -1;
    struct stat here, there;
    int r = !*declared ? stat("/proc/1/ns/net", &there) : netns_open(declared, &fd, NULL);
    if (r == 0 && *declared)
        r = fstat(fd, &there);
    return r == 0 && fstat(nsfd, &here) == 0 && here.st_ino == there.st_ino && here.st_dev == there.st_dev;
}

/* Ours by its alias, in our namespace, of the declared name: what it should be like is known. */
static void take_network(struct snapshot *s, int nsfd, const struct declared_network *n) {
    struct config_network config = {.address = n->address};
    if (!s->host.managed || strcmp(n->bridge, s->host.bridge) != 0 || !is_namespace(nsfd, n->namespace))
        return;
    str_copy(config.bridge, sizeof config.bridge, n->bridge);
    s->host.managed_ip = n->address.address;
    s->host.managed_length = n->address.length;
    s->host.managed_mac = names_bridge_mac(&config);
    s->host.managed_masquerade = n->masquerade;
    str_copy(s->host.managed_uplink, sizeof s->host.managed_uplink, n->uplink);
}

void collect_records(struct snapshot *s, int nsfd, const char *state_dir) {
    struct declared declared;
    const char *path = declared.store_file;
    sqlite3 *db = NULL;
    sqlite3_stmt *q = NULL;
    int r = declared_read(state_dir, &declared);
    if (r < 0)
        snapshot_gap(s, "records", -r, "declared.json in %s does not say where the records are", state_dir);
    if (r == -ENAMETOOLONG)
        return;
    take_network(s, nsfd, &declared.network);
    if (access(path, R_OK) < 0) {
        if (errno != ENOENT)
            snapshot_gap(s, "records", errno, "%s cannot be read", path);
        return;
    }
    if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL) != SQLITE_OK ||
        sqlite3_busy_timeout(db, 500) != SQLITE_OK || ask_for_vms(db, &q) != SQLITE_OK)
        snapshot_gap(s, "records", EIO, "%s: %s", path, sqlite3_errmsg(db));
    while (q && sqlite3_step(q) == SQLITE_ROW)
        take_vm(s, q, &declared);
    sqlite3_finalize(q);
    sqlite3_close(db);
}

/* --- consoles --- */

static const struct {
    const char *text, *sort;
} console_words[] = {
    {"Kernel panic", "panic"},
    {"Out of memory", "oom"},
    {"oom-kill", "oom"},
    {"No network devices", "no-nic"},
    {"Unable to mount root", "panic"},
    {"invalid gateway", "bad-gateway"},
    {"mask=", "ip"},
    {"login:", "login"},
};

static void add_console(struct snapshot *s, const struct snap_vm *vm, const char *line, const char *sort) {
    struct snap_console *row = SNAP_PUSH(s, consoles, CONSOLES_MAX);
    if (!row)
        return;
    str_copy(row->vm_id, sizeof row->vm_id, vm->id);
    str_copy(row->tap, sizeof row->tap, vm->tap);
    str_copy(row->sort, sizeof row->sort, sort);
    str_escape(line, strlen(line), row->line, sizeof row->line);
}

static void read_console(struct snapshot *s, const struct snap_vm *vm, const char *path) {
    _cleanup_free_ char *text = NULL;
    size_t len;
    int r = file_read_tail(path, CONSOLE_TAIL, &text, &len);
    if (r < 0)
        return;
    char *save = NULL, *last = NULL;
    uint32_t first = s->consoles_count;
    for (char *line = strtok_r(text, "\r\n", &save); line; line = strtok_r(NULL, "\r\n", &save)) {
        last = line;
        if (strstr(line, "Linux version ")) /* it starts anew: what it said before is over */
            s->consoles_count = first;
        for (size_t i = 0; i < sizeof console_words / sizeof *console_words; i++)
            if (strstr(line, console_words[i].text)) {
                add_console(s, vm, line, console_words[i].sort);
                break;
            }
    }
    if (last)
        add_console(s, vm, last, "last");
}

void collect_consoles(struct snapshot *s, const char *state_dir) {
    char path[512];
    for (uint32_t i = 0; i < s->vms_count; i++) {
        snprintf(path, sizeof path, "%s/users/%s/console.log", state_dir, s->vms[i].id);
        read_console(s, &s->vms[i], path);
    }
}

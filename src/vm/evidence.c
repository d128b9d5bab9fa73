#include "vm/evidence.h"

#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <nettle/sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"

#define PATH_SIZE 480
#define TAIL_BYTES 65536
#define NETWORK_FILE "network.json"
#define DOCTOR_FILE "doctor.json"
#define MISSING_FILE "doctor-missing.txt"
#define SUMMARY_FILE "summary.json"
#define STORY_FILE "story.txt"
#define FULL_BYTES (256U << 10) /* a file system with less room than that is full */
#define FILES_MAX 64

/* What costs space and tells nothing. */
static bool is_dropped(const char *name) {
    static const char *const dropped[] = {"disk.qcow2", "base.ext4",      "disk.ext4", "overlay.ext4",
                                          "cgroup",     "template.qcow2", "state"};
    for (size_t i = 0; i < sizeof dropped / sizeof *dropped; i++)
        if (strcmp(name, dropped[i]) == 0)
            return true;
    size_t len = strlen(name);
    return name[0] == '.' || (len > 4 && strcmp(name + len - 4, ".tmp") == 0);
}

static void path_in(char ret_path[PATH_SIZE], const char *folder, const char *name) {
    snprintf(ret_path, PATH_SIZE, "%s/%s", folder, name);
}

static int write_json(const char *folder, const char *name, json_t *value, mode_t mode) {
    char path[PATH_SIZE];
    path_in(path, folder, name);
    char *text = value ? json_dumps(value, JSON_INDENT(2)) : NULL;
    int r = text ? file_write_atomic(path, text, strlen(text), mode) : -ENOMEM;
    free(text);
    json_decref(value);
    return r;
}

/* --- the network at that moment, out of the doctor's snapshot --- */

/* How the snapshot writes what is this VM's. */
struct marks {
    const char *tap;
    char mac[16], tap_hex[2 * VM_TAP_TEXT + 1], ip_hex[16]; /* hexadecimal digits alone */
    json_int_t ip, link;
};

static struct marks marks_of(const struct vm *vm, json_int_t link) {
    struct marks marks = {.tap = vm->tap, .ip = vm->ip, .link = link};
    str_hex(vm->mac.byte, sizeof vm->mac.byte, marks.mac);
    str_hex(vm->tap, strlen(vm->tap), marks.tap_hex);
    snprintf(marks.ip_hex, sizeof marks.ip_hex, "%08x", vm->ip);
    return marks;
}

/* Whether a row of a table names the VM's link, its address, its MAC or its TAP. */
static bool concerns(json_t *row, const struct marks *marks) {
    const char *key;
    json_t *value;
    json_object_foreach(row, key, value) {
        const char *text = json_string_value(value);
        if (text && (strcmp(text, marks->mac) == 0 || strstr(text, marks->tap)))
            return true;
        bool is_link = strcmp(key, "link") == 0 || strcmp(key, "index") == 0, is_ip = strcmp(key, "ip") == 0;
        if (json_is_integer(value) && ((is_link && json_integer_value(value) == marks->link) ||
                                       (is_ip && json_integer_value(value) == marks->ip)))
            return true;
    }
    return false;
}

static json_t *rows_of(json_t *table, const struct marks *marks) {
    json_t *rows = json_array(), *row;
    size_t i;
    json_array_foreach(table, i, row) if (concerns(row, marks)) json_array_append(rows, row);
    return rows;
}

/* The elements of nftables' sets and maps in which the VM is, each with the name of its set. A set has the elements from
 * elems[0] on, elems[1] of them. */
static json_t *elements_of(json_t *state, const struct marks *marks) {
    json_t *found = json_array(), *set, *elems = json_object_get(state, "elems");
    size_t k;
    json_array_foreach(json_object_get(state, "sets"), k, set) {
        json_int_t first = 0, count = 0;
        const char *table = "", *name = "";
        json_unpack(set, "{s?[I,I], s?s, s?s}", "elems", &first, &count, "table", &table, "name", &name);
        for (json_int_t i = first; i < first + count && i >= 0; i++) {
            const char *key = json_string_value(json_object_get(json_array_get(elems, (size_t)i), "key"));
            if (key && (strstr(key, marks->tap_hex) || strstr(key, marks->mac) ||
                        strncmp(key, marks->ip_hex, strlen(marks->ip_hex)) == 0))
                json_array_append_new(found, json_pack("{s:s, s:s, s:s, s:s}", "table", table, "set", name, "key", key,
                                                       "tap", marks->tap));
        }
    }
    return found;
}

static json_int_t tap_index(json_t *links, const struct vm *vm) {
    json_t *row;
    size_t i;
    json_array_foreach(links, i, row) {
        const char *name = json_string_value(json_object_get(row, "name"));
        if (name && strcmp(name, vm->tap) == 0)
            return json_integer_value(json_object_get(row, "index"));
    }
    return -1;
}

/* What of the snapshot is this VM's: its link, port, FDB entries, neighbour, filters; nftables whole, as any rule of it
 * may have been the one. */
static void write_network(const struct evidence *e) {
    static const char *const own[] = {"links", "fdbs", "neighs", "qdiscs", "filters", "progs", "holders", "heard"};
    static const char *const whole[] = {"addrs", "routes", "chains", "rules", "sets"};
    char path[PATH_SIZE];
    path_in(path, e->from, DOCTOR_FILE);
    json_t *snapshot = json_load_file(path, 0, NULL), *state = json_object_get(snapshot, "before");
    json_t *network = json_object();
    json_int_t link = tap_index(json_object_get(state, "links"), &e->vm);
    struct marks marks = marks_of(&e->vm, link);
    json_object_set_new(network, "tap", json_string(e->vm.tap));
    json_object_set_new(network, "tap_index", link < 0 ? json_null() : json_integer(link));
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        json_object_set_new(network, own[i], rows_of(json_object_get(state, own[i]), &marks));
    json_object_set_new(network, "elements", elements_of(state, &marks));
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        json_object_set(network, whole[i], json_object_get(state, whole[i]));
    if (state)
        write_json(e->from, NETWORK_FILE, network, 0600);
    else
        json_decref(network);
    json_decref(snapshot);
}

static int save_doctor(struct examine *examine, const struct evidence *e, const char *path, struct err *err) {
    switch (e->doctor) {
    case EVIDENCE_DOCTOR:
        return examine_save(examine, e->vm.id, path, err);
    case EVIDENCE_DOCTOR_SHARED:
        return examine_save_shared(examine, e->begun_ms, path, err);
    case EVIDENCE_DOCTOR_NOT:
        break;
    }
    return err_set(err, ENODATA, "vm.examine", "%s", e->no_doctor);
}

void evidence_collect(struct examine *examine, struct evidence *e) {
    char path[PATH_SIZE], missing[PATH_SIZE];
    struct err err = {0};
    if (access(e->from, F_OK) < 0)
        return;
    if (e->figures.memory_peak_bytes > 0)
        write_json(e->from, "limits.json",
                   json_pack("{s:I, s:I}", "oom_kills", (json_int_t)e->figures.oom_kills, "memory_peak_bytes",
                             (json_int_t)e->figures.memory_peak_bytes),
                   0600);
    path_in(path, e->from, DOCTOR_FILE);
    path_in(missing, e->from, MISSING_FILE);
    if (access(path, F_OK) < 0 && save_doctor(examine, e, path, &err) < 0) {
        strncat(err.detail, "\n", sizeof err.detail - strlen(err.detail) - 1);
        file_write_new(missing, err.detail, strlen(err.detail), 0600);
        return;
    }
    unlink(missing); /* of an attempt before */
    write_network(e);
}

/* --- the cause --- */

/* A file's end as a string: NULs out, a terminal's sequences stay. Never NULL. */
static char *read_tail(const char *folder, const char *name) {
    char path[PATH_SIZE], *text = NULL;
    size_t len = 0;
    path_in(path, folder, name);
    if (file_read_tail(path, TAIL_BYTES, &text, &len) < 0 || !text)
        return strdup("");
    for (size_t i = 0; i < len; i++)
        if (text[i] == '\0')
            text[i] = ' ';
    return text;
}

static bool is_full(const char *folder) {
    struct statvfs st;
    return statvfs(folder, &st) == 0 && (uint64_t)st.f_bavail * st.f_frsize < FULL_BYTES;
}

void evidence_judge(struct evidence *e, bool was_asked) {
    _cleanup_free_ char *console = read_tail(e->from, "console.log"), *log = read_tail(e->from, "vmm.log");
    if (!console || !log)
        return;
    struct cause_facts facts = {.console = console,
                                .vmm_log = log,
                                .process = e->process,
                                .oom_kills = e->figures.oom_kills,
                                .memory_mib = e->vm.memory_mib,
                                .halted = e->halted,
                                .was_asked = was_asked,
                                .disk_is_full = !was_asked && is_full(e->from)};
    e->cause = cause_find(&facts);
}

/* --- the seal --- */

static int digest_file(const char *path, char ret_hex[2 * SHA256_DIGEST_SIZE + 1]) {
    struct sha256_ctx ctx;
    uint8_t buffer[65536], digest[SHA256_DIGEST_SIZE];
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    ssize_t n;
    if (fd < 0)
        return -errno;
    sha256_init(&ctx);
    while ((n = read(fd, buffer, sizeof buffer)) > 0)
        sha256_update(&ctx, (size_t)n, buffer);
    if (n < 0)
        return -errno;
    sha256_digest(&ctx, sizeof digest, digest);
    str_hex(digest, sizeof digest, ret_hex);
    return 0;
}

/* Regular files alone, and no more than a VM can have. */
static int move_files(const struct evidence *e) {
    DIR *dir = opendir(e->from);
    int r = dir ? 0 : -errno, n = 0;
    for (struct dirent *entry; r == 0 && dir && n < FILES_MAX && (entry = readdir(dir));) {
        struct stat st;
        char from[PATH_SIZE], to[PATH_SIZE];
        if (is_dropped(entry->d_name) || fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
            !S_ISREG(st.st_mode))
            continue;
        path_in(from, e->from, entry->d_name);
        path_in(to, e->to, entry->d_name);
        if (rename(from, to) < 0 && errno != ENOENT)
            r = -errno;
        n++;
    }
    if (dir)
        closedir(dir);
    return r;
}

static json_t *digest_files(const char *folder) {
    json_t *files = json_object();
    DIR *dir = opendir(folder);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        char path[PATH_SIZE], hex[2 * SHA256_DIGEST_SIZE + 1];
        struct stat st;
        path_in(path, folder, entry->d_name);
        if (is_dropped(entry->d_name) || strcmp(entry->d_name, SUMMARY_FILE) == 0 || lstat(path, &st) < 0 ||
            !S_ISREG(st.st_mode) || digest_file(path, hex) < 0)
            continue;
        /* A VMM that wrote it as its own uid is gone; the next one of that uid is another's. */
        if (chown(path, 0, 0) < 0 || chmod(path, 0400) < 0)
            continue;
        json_object_set_new(files, entry->d_name,
                            json_pack("{s:I, s:s}", "bytes", (json_int_t)st.st_size, "sha256", hex));
    }
    if (dir)
        closedir(dir);
    return files;
}

static json_t *time_json(int64_t ms) {
    char text[TIME_RFC3339_SIZE];
    time_format_rfc3339(ms, text);
    return json_string(text);
}

static json_t *exit_json(const char *process) {
    int number;
    if (sscanf(process, "exit status %d", &number) == 1)
        return json_pack("{s:i, s:n}", "status", number, "signal");
    if (sscanf(process, "killed by signal %d", &number) == 1)
        return json_pack("{s:n, s:i}", "status", "signal", number);
    return json_null();
}

static int write_summary(const struct evidence *e) {
    const struct vm *vm = &e->vm;
    char ip[NET_IP_TEXT], mac[NET_MAC_TEXT];
    net_format_ip(vm->ip, ip);
    net_format_mac(vm->mac, mac);
    json_t *cause =
        *e->cause.code ? json_pack("{s:s, s:s}", "code", e->cause.code, "words", e->cause.words) : json_null();
    json_t *summary = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:o, s:o, s:o, s:s, s:s, s:s, s:i, s:i, s:s, s:i, s:s, s:o, s:s}", "id",
        vm->id, "user", vm->user, "type", vm_type_name(vm->type), "last_state", vm_state_name(vm->state), "state",
        e->state, "actor", e->actor, "reason", e->reason, "cause", cause, "created_at", time_json(vm->created_ms),
        "ended_at", time_json(e->ended_ms), "ip", ip, "mac", mac, "tap", vm->tap, "vcpus", (int)vm->vcpus, "memory_mib",
        (int)vm->memory_mib, "vmm", vm->vmm, "vmm_pid", (int)vm->pid, "vmm_ended", e->process, "vmm_exit",
        exit_json(e->process), "image", vm->image);
    if (!summary)
        return -ENOMEM;
    json_object_set_new(summary, "memory_peak_bytes", json_integer((json_int_t)e->figures.memory_peak_bytes));
    json_t *events = e->events ? json_loads(e->events, 0, NULL) : NULL;
    json_object_set_new(summary, "events", events ? events : json_array());
    json_object_set_new(summary, "files", digest_files(e->to));
    return write_json(e->to, SUMMARY_FILE, summary, 0400);
}

static void tell_events(struct strbuf *story, const char *text) {
    json_t *events = text ? json_loads(text, 0, NULL) : NULL, *event;
    size_t i;
    json_array_foreach(events, i, event) {
        const char *at = "", *name = "", *from = "", *to = "", *actor = "", *reason = "";
        json_unpack(event, "{s?s, s?s, s?s, s?s, s?s, s?s}", "at", &at, "event", &name, "from", &from, "to", &to,
                    "actor", &actor, "reason", &reason);
        strbuf_addf(story, "  %s  %-12s %s%s%s%sby %s%s%s\n", at, name, from, *from ? " -> " : "", to, *to ? "  " : "",
                    actor, *reason ? ": " : "", reason);
    }
    json_decref(events);
}

static void tell_files(struct strbuf *story, const char *folder) {
    static const struct {
        const char *name, *words;
    } files[] = {
        {"console.log", "the guest's console"},
        {"vmm.log", "its VMM's log"},
        {"vmm.log.1", "the log of the VMM before, which ran until it was hibernated"},
        {"metrics.json", "its VMM's counters"},
        {"vm-config.json", "the machine"},
        {"agent.json", "what its guest's agent said last"},
        {"limits.json", "what its control groups counted"},
        {NETWORK_FILE, "link, port, FDB, neighbour and nftables as they were"},
        {DOCTOR_FILE, "the same for mctl doctor --from"},
        {MISSING_FILE, "why how its network was is not known"},
        {"session.json", "the login session that it was for"},
    };
    char path[PATH_SIZE];
    strbuf_addf(story, "\nBeside this file:\n");
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        path_in(path, folder, files[i].name);
        if (access(path, F_OK) == 0)
            strbuf_addf(story, "  %-18s %s\n", files[i].name, files[i].words);
    }
    strbuf_addf(story, "  %-18s all of it for a program, and the digest of each file\n", SUMMARY_FILE);
}

/* For a person who has nothing but this folder. */
static int write_story(const struct evidence *e) {
    const struct vm *vm = &e->vm;
    char created[TIME_RFC3339_SIZE], ended[TIME_RFC3339_SIZE], ip[NET_IP_TEXT], mac[NET_MAC_TEXT], path[PATH_SIZE];
    _cleanup_strbuf_ struct strbuf story = {.max = 1U << 20};
    time_format_rfc3339(vm->created_ms, created);
    time_format_rfc3339(e->ended_ms, ended);
    net_format_ip(vm->ip, ip);
    net_format_mac(vm->mac, mac);
    strbuf_addf(&story, "%s, %s VM of %s, %s at %s.\n\n", vm->id, vm_type_name(vm->type), vm->user, e->state, ended);
    strbuf_addf(&story, "Why:    %s\n", *e->cause.words ? e->cause.words : e->reason);
    if (*e->cause.words)
        strbuf_addf(&story, "Reason: %s\n", e->reason);
    strbuf_addf(&story, "By:     %s\nVMM:    %s, pid %d: %s\n", e->actor, vm->vmm, (int)vm->pid, e->process);
    strbuf_addf(&story, "Was:    %s since its last change, made %s, %u vCPUs, %u MiB, image %s\n",
                vm_state_name(vm->state), created, vm->vcpus, vm->memory_mib, vm->image);
    strbuf_addf(&story, "Net:    %s, %s, TAP %s on %s\n\nEvents:\n", ip, mac, vm->tap, vm->bridge);
    tell_events(&story, e->events);
    tell_files(&story, e->to);
    path_in(path, e->to, STORY_FILE);
    return file_write_atomic(path, story.data, story.len, 0600);
}

int evidence_seal(const struct evidence *e) {
    char path[PATH_SIZE];
    path_in(path, e->to, SUMMARY_FILE);
    bool is_there = access(e->from, F_OK) == 0;
    if (!is_there && access(path, F_OK) == 0)
        return 0;
    int r = dir_make(e->to, 0700);
    /* Who took the folder away took the evidence along, but not the story. */
    if (r == 0 && is_there)
        r = move_files(e);
    if (r == 0)
        r = write_story(e);
    if (r == 0)
        r = write_summary(e);
    if (r == 0 && chmod(e->to, 0500) < 0)
        r = -errno;
    return r;
}

/* --- how long it is kept --- */

struct kept {
    char name[VM_ID_TEXT];
    struct timespec at; /* when it was sealed; several in one second must keep their order */
    bool is_sealed;
    uint64_t bytes;
};

static uint64_t bytes_of(int dir_fd, const char *name) {
    uint64_t bytes = 0;
    int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        fd_close(&fd);
        return 0;
    }
    for (struct dirent *entry; (entry = readdir(dir));) {
        struct stat st;
        if (fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode))
            bytes += (uint64_t)st.st_blocks * 512;
    }
    closedir(dir);
    return bytes;
}

static int newest_first(const void *a, const void *b) {
    const struct kept *x = a, *y = b;
    if (x->at.tv_sec != y->at.tv_sec)
        return x->at.tv_sec < y->at.tv_sec ? 1 : -1;
    return x->at.tv_nsec < y->at.tv_nsec ? 1 : x->at.tv_nsec > y->at.tv_nsec ? -1 : 0;
}

static struct kept *list_kept(const char *folder, size_t *ret_n) {
    struct kept *all = NULL;
    size_t n = 0, cap = 0;
    DIR *dir = opendir(folder);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        struct stat st;
        if (!vm_id_is_valid(entry->d_name) || fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        if (n == cap) {
            cap = cap ? cap * 2 : 64;
            struct kept *bigger = realloc(all, cap * sizeof *all);
            if (!bigger)
                break;
            all = bigger;
        }
        all[n] = (struct kept){
            .at = st.st_mtim, .is_sealed = !(st.st_mode & S_IWUSR), .bytes = bytes_of(dirfd(dir), entry->d_name)};
        str_copy(all[n++].name, sizeof all->name, entry->d_name);
    }
    if (dir)
        closedir(dir);
    *ret_n = n;
    return all;
}

unsigned evidence_expire(const char *folder, int64_t max_age_ms, uint64_t max_bytes) {
    size_t n = 0;
    unsigned gone = 0;
    uint64_t bytes = 0;
    int64_t oldest_ms = time_realtime_ms() - max_age_ms;
    _cleanup_free_ struct kept *all = list_kept(folder, &n);
    if (n > 1)
        qsort(all, n, sizeof *all, newest_first);
    for (size_t i = 0; i < n; i++) {
        char path[PATH_SIZE];
        bool is_young = (int64_t)all[i].at.tv_sec * 1000 >= oldest_ms;
        bytes += all[i].bytes;
        /* What is not sealed yet is being written. */
        if (is_young && (bytes <= max_bytes || !all[i].is_sealed))
            continue;
        path_in(path, folder, all[i].name);
        gone += dir_remove(path) == 0;
    }
    return gone;
}

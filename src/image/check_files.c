#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"
#include "image/inspect.h"

#define HOSTS "/etc/hosts"
#define RESOLVER "/etc/resolv.conf"
#define OUR_RESOLVER "/run/resolv.conf"

bool inspect_exists(struct inspection *in, const char *path) {
    struct ext4_node node;
    return ext4_find(in->fs, path, true, &node, NULL) == 0;
}

char *inspect_text(struct inspection *in, const char *path) {
    char *text;
    size_t len;
    return ext4_read_file(in->fs, path, INSPECT_TEXT_MAX, &text, &len) < 0 ? NULL : text;
}

bool inspect_needs(const struct inspection *in, const struct need *need) {
    return need_is_of(need, in->type, in->screen);
}

/* ---------------------------------------------------------------- the file system */

static void tell_damage(const char *where, const char *what, void *data) {
    struct inspection *in = data;
    report_fail(in->report, "fs.damaged", where,
                "files are missing or hold others' bytes, in every VM that is cloned from it",
                "e2fsck -f FILE shows the rest; then " MEND_REBUILD, "the file system is damaged: %s %s",
                report_safe(where), what);
}

static void check_state(struct inspection *in, const struct ext4_facts *f) {
    struct image_report *r = in->report;
    if (f->errors)
        report_fail(r, "fs.errors", "s_state", "the guest's kernel mounts it read-only or panics",
                    "e2fsck -f FILE, or " MEND_REBUILD,
                    "the kernel that wrote it last found errors in the file system");
    else if (!f->valid)
        report_fail(r, "fs.not-clean", "s_state", "every VM begins with a file system that nobody finished writing",
                    "e2fsck -f FILE, or " MEND_REBUILD, "the file system was not unmounted cleanly, or is mounted now");
    if (f->journal_dirty)
        report_fail(r, "fs.journal-dirty", "journal",
                    "every VM replays it at each start, and what is in place is not what is read",
                    "e2fsck -f FILE, or " MEND_REBUILD,
                    "its journal holds writes that never reached their place: it was copied while it was mounted");
    if (!f->journal)
        report_fail(r, "fs.no-journal", "journal", "a VM that is killed loses or damages its files",
                    "tune2fs -j FILE, or " MEND_REBUILD, "the file system has no journal%s",
                    f->journal_external ? " inside: it is on another device" : "");
    if (f->orphans)
        report_fail(r, "fs.orphans", "s_last_orphan", "it was copied while it was in use",
                    "e2fsck -f FILE, or " MEND_REBUILD,
                    "the file system holds files that were deleted while they were open");
    if (*f->features)
        report_fail(r, "fs.features", f->features, "the guest's kernel refuses to mount it: no VM boots",
                    "make it again with mke2fs -t ext4",
                    "the file system has features that a Debian 12 kernel does not know: %s", f->features);
    if (f->read_only)
        report_fail(r, "fs.read-only", "features", "the guest cannot write: its services fail one by one",
                    "tune2fs -O ^read-only FILE, or " MEND_REBUILD, "the file system is marked read-only for ever");
    if (f->multi_mount)
        report_fail(r, "fs.mmp", "features", "each boot waits some 10 s, and a clone may refuse to mount",
                    "tune2fs -O ^mmp FILE", "the file system guards against being mounted twice (mmp)");
    if (f->block_size > 4096)
        report_fail(r, "fs.block-size", "s_log_block_size", "the guest's kernel refuses to mount it: no VM boots",
                    "make it again with mke2fs -b 4096", "its block size is %u bytes, more than a page", f->block_size);
}

static void check_room(struct inspection *in, const struct ext4_facts *f) {
    uint64_t mib = f->free_blocks * f->block_size >> 20;
    in->report->free_mib = mib;
    in->report->size_mib = f->blocks * f->block_size >> 20;
    in->report->free_inodes = f->free_inodes;
    if (mib < need_free_mib(in->type))
        report_fail(in->report, "space.blocks", "/",
                    "the guest's disk is full soon after its start: the browser and the tools fail in odd ways",
                    "resize2fs after truncate -s +1G FILE, or " MEND_REBUILD,
                    "only %llu MiB are free, at least %u are needed", (unsigned long long)mib, need_free_mib(in->type));
    if (f->free_inodes < need_free_inodes(in->type))
        report_fail(in->report, "space.inodes", "/",
                    "the guest cannot make files although it has room: \"No space left on device\"", MEND_REBUILD,
                    "only %u inodes are free, at least %u are needed", f->free_inodes, need_free_inodes(in->type));
}

/* ---------------------------------------------------------------- what a root must have */

static void check_folders(struct inspection *in) {
    struct ext4_node node;
    for (const struct need *n = need_folders; n->name; n++) {
        if (!inspect_needs(in, n))
            continue;
        int r = ext4_find(in->fs, n->name, true, &node, NULL);
        if (r < 0 || !S_ISDIR(node.mode))
            report_fail(in->report, "root.folder-missing", n->name, n->breaks, MEND_REBUILD, "the folder %s is missing",
                        n->name);
        else if (strcmp(n->name, "/tmp") == 0 && (node.mode & 07777) != 01777 && in->type != IMAGE_TYPE_TEST)
            report_fail(in->report, "root.tmp-mode", "/tmp",
                        "services of other users than root cannot write there: X does not start",
                        "chmod 1777 /tmp in the recipe", "/tmp has mode %04o instead of 1777", node.mode & 07777U);
    }
}

static void check_needed_files(struct inspection *in) {
    struct ext4_node node;
    for (const struct need *n = need_files; n->name; n++) {
        if (!inspect_needs(in, n))
            continue;
        int r = ext4_find(in->fs, n->name, true, &node, NULL);
        if (r < 0 || !S_ISREG(node.mode) || node.size == 0)
            report_fail(in->report, "files.needed", n->name, n->breaks, MEND_REBUILD, "%s is %s", n->name,
                        r < 0                ? "missing"
                        : S_ISREG(node.mode) ? "empty"
                                             : "no file");
    }
}

static int check_needed_programs(struct inspection *in) {
    static const uint32_t nobody = 65534; /* who may do no more than all may */
    struct program_problem p;
    for (const struct need *n = need_programs; n->name; n++) {
        int r = inspect_needs(in, n) ? program_check(in->fs, &in->programs, n->name, nobody, &p) : 0;
        if (r < 0)
            return r;
        if (r == 1)
            report_fail(in->report, "files.program", n->name, n->breaks, MEND_REBUILD, "%s %s", n->name,
                        report_safe(p.what));
    }
    return 0;
}

static int check_init(struct inspection *in) {
    struct program_problem p;
    int r = program_check(in->fs, &in->programs, "/sbin/init", 0, &p);
    if (r == 1)
        report_fail(in->report, "root.init", "/sbin/init",
                    "the initramfs finds nothing to hand over to: the guest powers off at once",
                    "add systemd-sysv to the recipe's packages", "/sbin/init %s", report_safe(p.what));
    return r < 0 ? r : 0;
}

/* Whether a line of a hosts file gives name that address. */
static bool hosts_has(const char *text, const char *address, const char *name) {
    for (const char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n') {
        size_t len = strcspn(line, "#\n"), first = strcspn(line, " \t\n");
        if (first != strlen(address) || first > len || memcmp(line, address, first) != 0)
            continue;
        for (size_t at = first; at < len;) {
            at += strspn(line + at, " \t\r");
            size_t word = strcspn(line + at, " \t\r\n#");
            if (word == strlen(name) && memcmp(line + at, name, word) == 0)
                return true;
            if (word == 0)
                break;
            at += word;
        }
    }
    return false;
}

static void check_hosts(struct inspection *in) {
    static const char breaks[] =
        "\"localhost\" does not resolve: websockify answers and then closes with 1011, the desktop stays black";
    _cleanup_free_ char *text = inspect_text(in, HOSTS);
    if (!text)
        report_fail(in->report, "files.hosts-missing", HOSTS, breaks, "add etc/hosts to the recipe's files",
                    HOSTS " is missing");
    else if (!hosts_has(text, "127.0.0.1", "localhost"))
        report_fail(in->report, "files.hosts-localhost", HOSTS, breaks,
                    "put \"127.0.0.1 localhost\" into the recipe's etc/hosts",
                    HOSTS " does not give localhost the address 127.0.0.1");
}

static void check_nsswitch(struct inspection *in) {
    _cleanup_free_ char *text = inspect_text(in, "/etc/nsswitch.conf");
    const char *line = text;
    while (line && !str_starts(line, "hosts:"))
        line = (line = strchr(line, '\n')) ? line + 1 : NULL;
    if (!line)
        return; /* glibc's default has both */
    char words[256];
    snprintf(words, sizeof words, "%.*s ", (int)strcspn(line, "\n"), line);
    if (!strstr(words, " files") && !strstr(words, "\tfiles"))
        report_fail(in->report, "files.nsswitch", "/etc/nsswitch.conf",
                    "/etc/hosts is not read: \"localhost\" may not resolve", "put \"hosts: files dns\" there",
                    "/etc/nsswitch.conf does not look into /etc/hosts");
    else if (!strstr(words, "dns") && !strstr(words, "resolve"))
        report_fail(in->report, "files.nsswitch", "/etc/nsswitch.conf",
                    "no name on the internet resolves: no login page loads", "put \"hosts: files dns\" there",
                    "/etc/nsswitch.conf does not ask any DNS server");
}

static void check_resolver(struct inspection *in) {
    static const char mend[] = "make it a link to " OUR_RESOLVER ", which the initramfs writes from ip=";
    char target[EXT4_PATH_MAX];
    struct ext4_node node;
    int r = ext4_find(in->fs, RESOLVER, false, &node, NULL);
    if (r < 0)
        report_fail(in->report, "files.resolver-missing", RESOLVER, "no name resolves: no login page loads", mend,
                    RESOLVER " is missing");
    else if (ext4_link(in->fs, &node, target, sizeof target) < 0)
        report_fail(in->report, "files.resolver-fixed", RESOLVER,
                    "the guest asks the DNS server of the host that built it, whatever the controller says: names do "
                    "not resolve",
                    mend, RESOLVER " is a file of its own");
    else if (strcmp(target, OUR_RESOLVER) != 0 && strcmp(target, ".." OUR_RESOLVER) != 0)
        report_fail(in->report, "files.resolver-elsewhere", RESOLVER,
                    "nothing in the guest writes that file: no name resolves", mend, RESOLVER " leads to %s",
                    report_safe(target));
}

/* A device that the guest does not have holds up its boot for 90 s, and then drops it to an emergency shell. */
static void check_fstab(struct inspection *in) {
    _cleanup_free_ char *text = inspect_text(in, "/etc/fstab");
    char *rest = text;
    for (char *line; text && (line = strsep(&rest, "\n"));) {
        char *device = strtok_r(line, " \t\r", &line), *where = device ? strtok_r(NULL, " \t\r", &line) : NULL;
        if (!device || *device == '#' || !where)
            continue;
        if (strcmp(where, "/") == 0 ? strcmp(device, "/dev/vda") == 0 || strcmp(device, "LABEL=golden-rootfs") == 0
                                    : !(*device == '/' && device[1]) && !strchr(device, '=') && !strchr(device, ':'))
            continue;
        report_fail(in->report, "files.fstab", where,
                    "systemd waits 90 s for that device and then stops in an emergency shell: no desktop",
                    "take the line out of /etc/fstab: the initramfs mounts the root",
                    "/etc/fstab wants %s at %s, a device that no VM has", report_safe(device), report_safe(where));
    }
}

/* What must differ from VM to VM must not be in what they are cloned from. */
static void check_identity(struct inspection *in) {
    static const struct {
        const char *path, *breaks;
    } secrets[] = {
        {"/var/lib/dbus/machine-id", "all VMs have the same identity"},
        {"/var/lib/systemd/random-seed", "all VMs begin with the same randomness: keys can be guessed"},
        {"/etc/ssh/ssh_host_ed25519_key", "all VMs share a private key that anybody with the image has"},
        {"/etc/ssh/ssh_host_rsa_key", "all VMs share a private key that anybody with the image has"},
        {"/etc/ssh/ssh_host_ecdsa_key", "all VMs share a private key that anybody with the image has"},
    };
    struct ext4_node node;
    int r = ext4_find(in->fs, "/etc/machine-id", true, &node, NULL);
    if (r < 0)
        report_fail(in->report, "identity.machine-id-missing", "/etc/machine-id",
                    "systemd takes each boot for a first one, and enables what a distribution presets",
                    "truncate -s 0 /etc/machine-id in the recipe",
                    "/etc/machine-id is missing; it must be there and empty");
    else if (node.size > 0)
        report_fail(in->report, "identity.machine-id", "/etc/machine-id",
                    "all VMs have the same identity: leases, journals and logins that go by it collide",
                    "truncate -s 0 /etc/machine-id in the recipe", "/etc/machine-id is not empty");
    for (size_t i = 0; i < sizeof secrets / sizeof *secrets; i++)
        if (ext4_find(in->fs, secrets[i].path, false, &node, NULL) == 0 && S_ISREG(node.mode) && node.size > 0)
            report_fail(in->report, "identity.secret", secrets[i].path, secrets[i].breaks, "remove it in the recipe",
                        "%s was left in the image", secrets[i].path);
}

int check_files(struct inspection *in) {
    struct ext4_facts facts;
    ext4_describe(in->fs, &facts);
    check_state(in, &facts);
    check_room(in, &facts);
    int r = ext4_check(in->fs, tell_damage, in);
    if (r < 0)
        return r;
    check_folders(in);
    r = check_init(in);
    if (r < 0)
        return r;
    check_hosts(in);
    check_resolver(in);
    if (in->type == IMAGE_TYPE_TEST)
        return 0;
    check_nsswitch(in);
    check_fstab(in);
    check_identity(in);
    check_needed_files(in);
    return check_needed_programs(in);
}

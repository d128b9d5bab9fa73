#include "image/condition.h"

#include <errno.h>
#include <string.h>

#include "base/str.h"

enum holds { HOLDS_NO, HOLDS_YES, HOLDS_UNKNOWN };

#define LENGTH(list) (sizeof(list) / sizeof *(list))

static bool is_one_of(const char *word, const char *const *list, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(word, list[i]) == 0)
            return true;
    return false;
}

static enum holds holds(bool yes) {
    return yes ? HOLDS_YES : HOLDS_NO;
}

static enum holds holds_not(enum holds h) {
    return h == HOLDS_UNKNOWN ? h : holds(h == HOLDS_NO);
}

/* parse_boolean() of systemd; HOLDS_UNKNOWN for what is none. */
static enum holds boolean(const char *word) {
    static const char *const yes[] = {"1", "yes", "y", "true", "t", "on"}, *const no[] = {"0",     "no", "n",
                                                                                          "false", "f",  "off"};
    return is_one_of(word, yes, LENGTH(yes)) ? HOLDS_YES : is_one_of(word, no, LENGTH(no)) ? HOLDS_NO : HOLDS_UNKNOWN;
}

/* ---------------------------------------------------------------- what every VM is */

static enum holds virtualization(const char *word) {
    static const char *const depends[] = {"kvm", "qemu", "amazon"}; /* on whether the host has KVM, and on the VMM */
    enum holds h = boolean(word);
    if (h != HOLDS_UNKNOWN || is_one_of(word, depends, LENGTH(depends)))
        return h;
    return holds(strcmp(word, "vm") == 0);
}

static enum holds architecture(const char *word) {
    return holds(strcmp(word, "x86-64") == 0 || strcmp(word, "native") == 0);
}

/* No image of ours boots "for the first time": its machine-id is there, and empty, which check_files() sees to.
 * Source: machine-id(5), "First Boot Semantics". */
static enum holds first_boot(const char *word) {
    return holds_not(boolean(word));
}

static enum holds user(const char *word) {
    return holds(strcmp(word, "root") == 0 || strcmp(word, "0") == 0 || strcmp(word, "@system") == 0);
}

/* What machine_cmdline() gives every VM, and Firecracker adds; a VM's own words by their names. */
static enum holds kernel_command_line(const char *word) {
    static const char *const fixed[] = {"console=ttyS0", "TERM=dumb", "panic=-1",       "no_timer_check",
                                        "root=/dev/vda", "rw",        "rootfstype=ext4"};
    static const char *const own[] = {"ip", "mc.vm", "mc.overlay", "reboot", "pci", "virtio_mmio.device"};
    char name[64];
    size_t len = strcspn(word, "=");
    if (len >= sizeof name)
        return HOLDS_NO;
    memcpy(name, word, len);
    name[len] = '\0';
    if (is_one_of(name, own, LENGTH(own)))
        return HOLDS_UNKNOWN;
    for (size_t i = 0; i < LENGTH(fixed); i++)
        if (strcmp(fixed[i], word) == 0 || (!word[len] && str_starts(fixed[i], name) && fixed[i][len] == '='))
            return HOLDS_YES;
    return HOLDS_NO;
}

/* ---------------------------------------------------------------- what is on its disk */

/* Places that are filled when the guest runs. */
static bool is_of_the_running(const char *path) {
    static const char *const places[] = {"/run", "/dev", "/proc", "/sys", "/tmp", "/var/run", "/var/lock"};
    for (size_t i = 0; i < LENGTH(places); i++) {
        size_t len = strlen(places[i]);
        if (strncmp(path, places[i], len) == 0 && (path[len] == '/' || path[len] == '\0'))
            return true;
    }
    return false;
}

static bool has_name(const char *name, void *data) {
    *(bool *)data = true;
    return false;
}

/* Return: enum holds, or -E2BIG, -ENOMEM. */
static int path_is(struct ext4 *fs, const char *type, const char *path) {
    struct ext4_node node;
    bool is_filled = false;
    if (*path != '/' || strpbrk(path, "*?[") || is_of_the_running(path))
        return HOLDS_UNKNOWN;
    int r = ext4_find(fs, path, strcmp(type, "PathIsSymbolicLink") != 0, &node, NULL);
    if (r == -E2BIG || r == -ENOMEM)
        return r;
    if (r < 0)
        return r == -ENOENT || r == -ENOTDIR || r == -ELOOP ? HOLDS_NO : HOLDS_UNKNOWN;
    if (strcmp(type, "PathIsDirectory") == 0)
        return holds(S_ISDIR(node.mode));
    if (strcmp(type, "PathIsSymbolicLink") == 0)
        return holds(S_ISLNK(node.mode));
    if (strcmp(type, "FileNotEmpty") == 0)
        return holds(S_ISREG(node.mode) && node.size > 0);
    if (strcmp(type, "FileIsExecutable") == 0)
        return holds(S_ISREG(node.mode) && (node.mode & 0111));
    if (strcmp(type, "DirectoryNotEmpty") != 0)
        return HOLDS_YES; /* PathExists */
    r = ext4_list(fs, path, has_name, &is_filled);
    return r == -E2BIG || r == -ENOMEM ? r : (int)holds(is_filled);
}

/* ---------------------------------------------------------------- one, and all of a unit */

static int evaluate(struct ext4 *fs, const char *type, const char *word) {
    static const struct {
        const char *type;
        enum holds (*fn)(const char *word);
    } of_every_vm[] = {{"Virtualization", virtualization},
                       {"Architecture", architecture},
                       {"FirstBoot", first_boot},
                       {"User", user},
                       {"KernelCommandLine", kernel_command_line}};
    static const char *const of_disk[] = {"PathExists",   "PathExistsGlob",   "PathIsDirectory",  "PathIsSymbolicLink",
                                          "FileNotEmpty", "FileIsExecutable", "DirectoryNotEmpty"};
    if (strchr(word, '%'))
        return HOLDS_UNKNOWN;
    for (size_t i = 0; i < LENGTH(of_every_vm); i++)
        if (strcmp(type, of_every_vm[i].type) == 0)
            return of_every_vm[i].fn(word);
    return is_one_of(type, of_disk, LENGTH(of_disk)) ? path_is(fs, type, word) : HOLDS_UNKNOWN;
}

/* Of those with a "|" one must hold, of the others each: conditions for themselves, and asserts for themselves. */
static int check_list(struct ext4 *fs, const struct unit *unit, bool asserts, const struct unit_condition **ret_no,
                      const struct unit_condition **ret_unknown) {
    const struct unit_condition *triggers = NULL, *triggers_unknown = NULL;
    bool triggered = false;
    for (unsigned i = 0; i < unit->condition_count; i++) {
        const struct unit_condition *c = &unit->conditions[i];
        const char *word = c->value;
        if (c->is_assert != asserts)
            continue;
        bool is_trigger = *word == '|';
        word += is_trigger ? 1 + strspn(word + 1, " \t") : 0;
        bool negated = *word == '!';
        word += negated ? 1 + strspn(word + 1, " \t") : 0;
        int r = evaluate(fs, c->type, word);
        if (r < 0)
            return r;
        enum holds h = negated ? holds_not((enum holds)r) : (enum holds)r;
        triggered |= is_trigger && h == HOLDS_YES;
        if (is_trigger) {
            triggers = triggers ? triggers : c;
            triggers_unknown = h == HOLDS_UNKNOWN ? c : triggers_unknown;
        } else if (h == HOLDS_UNKNOWN) {
            *ret_unknown = c;
        } else if (h == HOLDS_NO && !*ret_no) {
            *ret_no = c;
        }
    }
    if (triggers && !triggered && triggers_unknown)
        *ret_unknown = triggers_unknown;
    else if (triggers && !triggered && !*ret_no)
        *ret_no = triggers;
    return 0;
}

int condition_check(struct ext4 *fs, const struct unit *unit, const struct unit_condition **ret_no,
                    const struct unit_condition **ret_unknown) {
    const struct unit_condition *no = NULL, *unknown = NULL;
    int r = check_list(fs, unit, false, &no, &unknown);
    if (r == 0)
        r = check_list(fs, unit, true, &no, &unknown);
    if (r == 0) {
        *ret_no = no;
        *ret_unknown = unknown;
    }
    return r;
}

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"
#include "image/inspect.h"

#define MEND_ACCOUNT "see useradd and passwd --lock in the recipe's customize"

const struct account *inspect_account(const struct inspection *in, const char *name) {
    for (unsigned i = 0; i < in->account_count; i++)
        if (strcmp(in->accounts[i].name, name) == 0)
            return &in->accounts[i];
    return NULL;
}

static void tell_password(struct inspection *in, const char *name, const char *field, const char *file) {
    if (!*field)
        report_fail(in->report, "account.no-password", name,
                    "who reaches a login, the console or su becomes this user without being asked",
                    "passwd --lock in the recipe", "the user %s has an empty password in %s: no password is asked",
                    report_safe(name), file);
    else if (*field != '!' && *field != '*')
        report_fail(in->report, "account.password", name,
                    "the hash is in every clone: who breaks it once is in every VM", "passwd --lock in the recipe",
                    "the user %s has a password in %s", report_safe(name), file);
}

/* passwd(5): name:password:uid:gid:comment:home:shell */
static void take_account(struct inspection *in, char *line) {
    char *field[7] = {0};
    uint64_t uid;
    for (int i = 0; i < 7 && line; i++)
        field[i] = strsep(&line, ":");
    if (!field[5] || !*field[0] || *field[0] == '#')
        return;
    if (str_to_u64(field[2], 0, UINT32_MAX, &uid) < 0) {
        report_fail(in->report, "account.broken", field[0], "programs of this user do not start", MEND_ACCOUNT,
                    "the line of %s in /etc/passwd has no uid", report_safe(field[0]));
        return;
    }
    if (strcmp(field[1], "x") != 0)
        tell_password(in, field[0], field[1], "/etc/passwd");
    if (uid == 0 && strcmp(field[0], "root") != 0)
        report_fail(in->report, "account.second-root", field[0], "this user is root under another name", MEND_ACCOUNT,
                    "the user %s has uid 0", report_safe(field[0]));
    if (in->account_count == ACCOUNTS_MAX)
        return;
    struct account *a = &in->accounts[in->account_count++];
    a->uid = (uint32_t)uid;
    str_copy(a->name, sizeof a->name, field[0]);
    str_copy(a->home, sizeof a->home, field[5]);
}

static void check_shadow(struct inspection *in) {
    struct ext4_node node;
    _cleanup_free_ char *text = inspect_text(in, "/etc/shadow");
    char *rest = text;
    if (!text) {
        if (in->type != IMAGE_TYPE_TEST)
            report_fail(in->report, "account.no-shadow", "/etc/shadow", "nobody knows which accounts are locked",
                        "use a root that was made by mmdebstrap", "/etc/shadow is missing or cannot be read");
        return;
    }
    for (char *line; (line = strsep(&rest, "\n"));) {
        char *name = strsep(&line, ":"), *field = line ? strsep(&line, ":") : NULL;
        if (*name && field)
            tell_password(in, name, field, "/etc/shadow");
    }
    if (ext4_find(in->fs, "/etc/shadow", true, &node, NULL) == 0 && (node.mode & 0007))
        report_fail(in->report, "account.shadow-mode", "/etc/shadow", "every program in the guest may read it",
                    "chmod 0640 /etc/shadow", "/etc/shadow has mode %04o", node.mode & 07777U);
}

static void check_home(struct inspection *in, const struct account *a, const char *breaks) {
    struct ext4_node node;
    if (a->uid == 0)
        report_fail(in->report, "account.is-root", a->name,
                    "Chromium refuses to run as root, and the web would run as root", MEND_ACCOUNT,
                    "the user %s has uid 0", a->name);
    if (ext4_find(in->fs, a->home, true, &node, NULL) < 0 || !S_ISDIR(node.mode))
        report_fail(in->report, "account.home", a->name, breaks, MEND_ACCOUNT,
                    "the home folder %s of the user %s is missing", report_safe(a->home), a->name);
    else if (node.uid != a->uid)
        report_fail(in->report, "account.home", a->name, "Chromium cannot write its profile: no window opens",
                    MEND_ACCOUNT, "the home folder %s belongs to uid %u, not to %s (%u)", report_safe(a->home),
                    node.uid, a->name, a->uid);
}

static void check_keys(struct inspection *in) {
    static const char *const files[] = {".ssh/authorized_keys", ".ssh/authorized_keys2"};
    char path[EXT4_PATH_MAX];
    struct ext4_node node;
    for (unsigned i = 0; i < in->account_count; i++)
        for (size_t k = 0; k < 2; k++) {
            snprintf(path, sizeof path, "%s/%s", in->accounts[i].home, files[k]);
            if (ext4_find(in->fs, path, true, &node, NULL) == 0 && S_ISREG(node.mode) && node.size > 0 &&
                !report_has(in->report, "ssh.authorized-keys", path))
                report_fail(in->report, "ssh.authorized-keys", path, "who holds that key may log in to every VM",
                            "remove it in the recipe", "%s lets keys in", report_safe(path));
        }
}

static void check_sshd(struct inspection *in) {
    static const char *const servers[] = {"/usr/sbin/sshd", "/usr/sbin/dropbear", "/usr/sbin/tinysshd",
                                          "/usr/sbin/in.telnetd"};
    for (size_t i = 0; i < sizeof servers / sizeof *servers; i++)
        if (inspect_exists(in, servers[i]))
            report_fail(in->report, "ssh.server", servers[i], "every VM has a way in that the controller does not know",
                        "take its package out of the recipe; mctl vm exec is the way in", "%s is in the image",
                        servers[i]);
}

int check_accounts(struct inspection *in) {
    _cleanup_free_ char *text = inspect_text(in, "/etc/passwd");
    char *rest = text;
    if (!text) {
        report_fail(in->report, "account.no-passwd", "/etc/passwd", "no service that has a user of its own starts",
                    MEND_REBUILD, "/etc/passwd is missing or cannot be read");
        return 0;
    }
    for (char *line; (line = strsep(&rest, "\n"));)
        take_account(in, line);
    if (!inspect_account(in, "root"))
        report_fail(in->report, "account.missing", "root", "nothing that looks root up works", MEND_REBUILD,
                    "the user root is missing");
    for (const struct need *n = need_users; n->name; n++) {
        const struct account *a = inspect_account(in, n->name);
        if (!inspect_needs(in, n))
            continue;
        if (a)
            check_home(in, a, n->breaks);
        else
            report_fail(in->report, "account.missing", n->name, n->breaks, MEND_ACCOUNT, "the user %s is missing",
                        n->name);
    }
    check_shadow(in);
    check_keys(in);
    check_sshd(in);
    return 0;
}

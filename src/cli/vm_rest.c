#include <getopt.h>
#include <stdio.h>

#include "base/fd.h"
#include "cli/cli.h"

/* mctl vm hibernate and resume: one call, which is answered when it is done. flag: of the query, "cold=1"; empty: none. */
static int call(struct cli *cli, const char *id, const char *what, const char *doing, const char *reason,
                const char *flag) {
    char before[64];
    snprintf(before, sizeof before, "/%s%s%s", what, *flag ? "?" : "", flag);
    _cleanup_free_ char *plain = cli_path("/api/vms/", id, before);
    _cleanup_free_ char *asking = cli_path(plain, "", *flag ? "&reason=" : "?reason=");
    _cleanup_free_ char *path = cli_path(reason ? asking : plain, reason ? reason : "", "");
    return cli_change_vm(cli, "POST", path, doing, id);
}

int verb_vm_hibernate(struct cli *cli, int argc, char **argv) {
    static const struct option longs[] = {
        {"reason", required_argument, NULL, 'r'}, {"force", no_argument, NULL, 'f'}, {0}};
    const char *reason = NULL, *flag = "";
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (c == 'r')
            reason = optarg;
        else if (c == 'f')
            flag = "force=1";
        else
            return cli_usage(cli, "mctl vm hibernate does not know %s, or it lacks its value", argv[optind - 1]);
    }
    if (optind + 1 != argc)
        return cli_usage(cli, "mctl vm hibernate needs one ID");
    return call(cli, argv[optind], "hibernate", "saving the memory of", reason, flag);
}

int verb_vm_resume(struct cli *cli, int argc, char **argv) {
    static const struct option longs[] = {
        {"reason", required_argument, NULL, 'r'}, {"cold", no_argument, NULL, 'c'}, {0}};
    const char *reason = NULL, *flag = "";
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (c == 'r')
            reason = optarg;
        else if (c == 'c')
            flag = "cold=1";
        else
            return cli_usage(cli, "mctl vm resume does not know %s, or it lacks its value", argv[optind - 1]);
    }
    if (optind + 1 != argc)
        return cli_usage(cli, "mctl vm resume needs one ID");
    return call(cli, argv[optind], "resume", "bringing back", reason, flag);
}

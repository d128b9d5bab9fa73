#include <getopt.h>

#include "base/fd.h"
#include "cli/cli.h"

int verb_vm_destroy(struct cli *cli, int argc, char **argv) {
    static const struct option longs[] = {{"reason", required_argument, NULL, 'r'}, {0}};
    const char *reason = NULL;
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (c != 'r')
            return cli_usage(cli, "mctl vm destroy does not know %s, or it lacks its value", argv[optind - 1]);
        reason = optarg;
    }
    if (optind + 1 != argc || !reason || !*reason)
        return cli_usage(cli, "mctl vm destroy needs one ID and --reason TEXT: it will be asked for");
    _cleanup_free_ char *before = cli_path("/api/vms/", argv[optind], "?reason=");
    _cleanup_free_ char *path = cli_path(before, reason, "");
    return cli_change_vm(cli, "DELETE", path, "ending", argv[optind]);
}

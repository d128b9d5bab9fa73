#include <getopt.h>
#include <stdio.h>
#include <string.h>

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
    json_t *answer;
    cli_progress(cli, "ending %s …", argv[optind]);
    int status = cli_call(cli, "DELETE", path, NULL, &answer);
    cli_progress(cli, "%s", "");
    if (status != CLI_DONE)
        return status;
    if (cli->json)
        cli_print_json(answer);
    else if (!cli->quiet)
        printf("%s is %s\n", cli_text(json_object_get(answer, "vm"), "id"),
               cli_text(json_object_get(answer, "vm"), "state"));
    json_decref(answer);
    return CLI_DONE;
}

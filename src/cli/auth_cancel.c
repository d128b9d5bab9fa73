#include <getopt.h>
#include <stdio.h>

#include "base/fd.h"
#include "cli/cli.h"

int verb_auth_cancel(struct cli *cli, int argc, char **argv) {
    static const struct option longs[] = {{"reason", required_argument, NULL, 'r'}, {0}};
    const char *reason = "cancelled by mctl";
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (c != 'r')
            return cli_usage(cli, "mctl auth cancel does not know %s, or it lacks its value", argv[optind - 1]);
        reason = optarg;
    }
    if (optind + 1 != argc)
        return cli_usage(cli, "mctl auth cancel needs one session id");
    json_t *body = json_pack("{s:s}", "reason", reason), *answer;
    if (!body)
        return cli_usage(cli, "--reason is not UTF-8");
    _cleanup_free_ char *path = cli_path("/api/auth/session/", argv[optind], "/cancel");
    int status = cli_call(cli, "POST", path, body, &answer);
    if (status != CLI_DONE)
        return status;
    if (cli->json)
        cli_print_json(answer);
    else if (!cli->quiet)
        printf("session %s is cancelled\n", cli_text(json_object_get(answer, "session"), "id"));
    json_decref(answer);
    return CLI_DONE;
}

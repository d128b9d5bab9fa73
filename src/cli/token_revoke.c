#include <stdio.h>

#include "base/fd.h"
#include "cli/cli.h"

int verb_token_revoke(struct cli *cli, int argc, char **argv) {
    if (argc != 2)
        return cli_usage(cli, "mctl token revoke needs one ID: mctl token list shows them");
    _cleanup_free_ char *path = cli_path("/api/tokens/", argv[1], "");
    json_t *answer;
    int status = cli_call(cli, "DELETE", path, NULL, &answer);
    if (status != CLI_DONE)
        return status;
    if (cli->json)
        cli_print_json(answer);
    else if (!cli->quiet)
        printf("token %s is revoked\n", cli_text(json_object_get(answer, "token"), "id"));
    json_decref(answer);
    return CLI_DONE;
}

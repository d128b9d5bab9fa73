#include <getopt.h>
#include <stdio.h>

#include "base/fd.h"
#include "cli/cli.h"

int verb_vault_forget(struct cli *cli, int argc, char **argv) {
    static const struct option longs[] = {
        {"user", required_argument, NULL, 'u'}, {"provider", required_argument, NULL, 'p'}, {0}};
    const char *user = NULL, *provider = NULL;
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (c == 'u')
            user = optarg;
        else if (c == 'p')
            provider = optarg;
        else
            return cli_usage(cli, "mctl vault forget does not know %s, or it lacks its value", argv[optind - 1]);
    }
    if (!user || !provider || optind != argc)
        return cli_usage(cli, "mctl vault forget needs --user U and --provider P");
    _cleanup_free_ char *before = cli_path("/api/users/", user, "/credentials/");
    _cleanup_free_ char *path = cli_path(before, provider, "");
    json_t *answer;
    int status = cli_call(cli, "DELETE", path, NULL, &answer);
    if (status != CLI_DONE)
        return status;
    if (cli->json)
        cli_print_json(answer);
    else if (!cli->quiet)
        printf("the credential is gone\n");
    json_decref(answer);
    return CLI_DONE;
}

#include <getopt.h>
#include <stdio.h>

#include "base/fd.h"
#include "cli/cli.h"

static void print_token(json_t *token) {
    const char *used = cli_text(token, "last_used_at");
    printf("%-8s  %-16s  %-24s  %-24s  ", cli_text(token, "id"), cli_text(token, "user"),
           json_is_true(json_object_get(token, "expired")) ? "expired" : cli_text(token, "expires_at"),
           *used ? used : "never");
    cli_print_safe(stdout, cli_text(token, "note"));
    printf("\n");
}

int verb_token_list(struct cli *cli, int argc, char **argv) {
    static const struct option longs[] = {{"user", required_argument, NULL, 'u'}, {0}};
    const char *user = NULL;
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (c != 'u')
            return cli_usage(cli, "mctl token list does not know %s, or it lacks its value", argv[optind - 1]);
        user = optarg;
    }
    if (optind != argc)
        return cli_usage(cli, "mctl token list does not know %s", argv[optind]);
    _cleanup_free_ char *path = user ? cli_path("/api/tokens?user=", user, "") : cli_path("/api/tokens", "", "");
    json_t *answer, *token;
    size_t i;
    int status = cli_call(cli, "GET", path, NULL, &answer);
    if (status != CLI_DONE)
        return status;
    if (cli->json) {
        cli_print_json(answer);
    } else {
        if (!cli->quiet)
            printf("%-8s  %-16s  %-24s  %-24s  %s\n", "ID", "USER", "UNTIL", "LAST USED", "NOTE");
        json_array_foreach(json_object_get(answer, "tokens"), i, token) print_token(token);
    }
    json_decref(answer);
    return CLI_DONE;
}

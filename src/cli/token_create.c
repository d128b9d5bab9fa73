#include <getopt.h>
#include <stdio.h>

#include "base/str.h"
#include "cli/cli.h"

/* The secret alone goes to standard output, so that it can be piped to where it belongs. */
static void print_token(struct cli *cli, json_t *answer) {
    json_t *token = json_object_get(answer, "token");
    if (!cli->quiet)
        fprintf(stderr, "token %s of %s, until %s; this is shown once:\n", cli_text(token, "id"),
                cli_text(token, "user"), cli_text(token, "expires_at"));
    printf("%s\n", cli_text(answer, "secret"));
}

int verb_token_create(struct cli *cli, int argc, char **argv) {
    static const struct option longs[] = {{"user", required_argument, NULL, 'u'},
                                          {"days", required_argument, NULL, 'd'},
                                          {"note", required_argument, NULL, 'n'},
                                          {0}};
    const char *user = NULL, *note = "";
    uint64_t days = 90;
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (c == 'u')
            user = optarg;
        else if (c == 'n')
            note = optarg;
        else if (c == 'd' && str_to_u64(optarg, 1, 3650, &days) < 0)
            return cli_usage(cli, "--days %s is not from 1 to 3650", optarg);
        else if (c == '?')
            return cli_usage(cli, "mctl token create does not know %s, or it lacks its value", argv[optind - 1]);
    }
    if (!user || optind != argc)
        return cli_usage(cli, "mctl token create needs --user U");
    json_t *body = json_pack("{s:s, s:s, s:I}", "user", user, "note", note, "lifetime_days", (json_int_t)days), *answer;
    if (!body)
        return cli_usage(cli, "--user or --note is not UTF-8");
    int status = cli_call(cli, "POST", "/api/tokens", body, &answer);
    if (status != CLI_DONE)
        return status;
    if (cli->json)
        cli_print_json(answer);
    else
        print_token(cli, answer);
    json_decref(answer);
    return CLI_DONE;
}

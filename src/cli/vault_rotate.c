#include <stdio.h>

#include "cli/cli.h"

int verb_vault_rotate(struct cli *cli, int argc, char **argv) {
    if (argc != 1)
        return cli_usage(cli, "mctl vault rotate does not know %s", argv[1]);
    json_t *answer;
    int status = cli_call(cli, "POST", "/api/vault/rotate", NULL, &answer);
    if (status != CLI_DONE)
        return status;
    json_t *rotation = json_object_get(answer, "rotation");
    bool done = json_is_true(json_object_get(rotation, "done"));
    if (cli->json)
        cli_print_json(answer);
    else if (!cli->quiet)
        printf("%lld credentials have the new key%s\n",
               (long long)json_integer_value(json_object_get(rotation, "rewrapped")),
               done ? "; the old one is gone: put the new key file into your backup" : "");
    if (!done && !cli->json)
        fprintf(
            stderr,
            "mctl: the old keys stay: %lld credentials could not be opened, or the key is systemd's\n"
            "  mctl vault status shows which; mctl vault forget removes one; systemd's old key is yours to remove\n",
            (long long)json_integer_value(json_object_get(rotation, "unopened")));
    json_decref(answer);
    return done ? CLI_DONE : CLI_FAILED;
}

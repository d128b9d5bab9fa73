#include <stdio.h>

#include "cli/cli.h"

static void print_vault(json_t *answer) {
    json_t *vault = json_object_get(answer, "vault"), *problem = json_object_get(vault, "problem"), *c;
    size_t i;
    printf("key: %s %s", cli_text(vault, "key_source"), cli_text(vault, "key_path"));
    if (*cli_text(vault, "key_id"))
        printf(", id %s", cli_text(vault, "key_id"));
    else
        printf(json_is_object(problem) ? "" : ", made with the first credential");
    printf("\n");
    if (json_integer_value(json_object_get(vault, "keys")) > 1)
        printf("old keys are still there: mctl vault rotate goes on\n");
    if (json_is_object(problem)) {
        printf("problem: ");
        cli_print_safe(stdout, cli_text(problem, "detail"));
        printf("\n  ");
        cli_print_safe(stdout, cli_text(problem, "hint"));
        printf("\n");
    }
    json_array_foreach(json_object_get(answer, "credentials"), i, c) printf(
        "%-16s  %-16s  version %lld of %s  key %s  %s%s\n", cli_text(c, "user"), cli_text(c, "provider"),
        (long long)json_integer_value(json_object_get(c, "version")), cli_text(c, "updated_at"), cli_text(c, "key_id"),
        cli_text(c, "owner_vm"), *cli_text(c, "logged_out_at") ? "  logged out there" : "");
}

int verb_vault_status(struct cli *cli, int argc, char **argv) {
    if (argc != 1)
        return cli_usage(cli, "mctl vault status does not know %s", argv[1]);
    json_t *answer;
    int status = cli_call(cli, "GET", "/api/vault", NULL, &answer);
    if (status != CLI_DONE)
        return status;
    if (cli->json)
        cli_print_json(answer);
    else
        print_vault(answer);
    /* A vault that cannot be used is no good news, however well it was read. */
    json_t *vault = json_object_get(answer, "vault");
    status = json_is_object(json_object_get(vault, "problem")) ? CLI_FAILED : CLI_DONE;
    json_decref(answer);
    return status;
}

#include <stdio.h>

#include "base/fd.h"
#include "cli/cli.h"

/* Who did what and why, and where the files are. */
static int print_story(struct cli *cli, const char *id) {
    _cleanup_free_ char *path = cli_path("/api/auth/session/", id, "/events");
    json_t *answer;
    int status = cli_call(cli, "GET", path, NULL, &answer);
    if (status != CLI_DONE)
        return status;
    cli_print_events(json_object_get(answer, "events"));
    if (*cli_text(answer, "files"))
        printf("files: %s\n", cli_text(answer, "files"));
    json_decref(answer);
    return CLI_DONE;
}

int verb_auth_show(struct cli *cli, int argc, char **argv) {
    if (argc != 2)
        return cli_usage(cli, "mctl auth show needs one session id");
    _cleanup_free_ char *path = cli_path("/api/auth/session/", argv[1], "");
    json_t *answer;
    int status = cli_call(cli, "GET", path, NULL, &answer);
    if (status != CLI_DONE)
        return status;
    json_t *session = json_object_get(answer, "session"), *vm = json_object_get(answer, "vm");
    if (cli->json) {
        cli_print_json(answer);
    } else {
        printf("session %s of %s with %s is %s", cli_text(session, "id"), cli_text(session, "user"),
               cli_text(session, "provider"), cli_text(session, "status"));
        printf("%s", *cli_text(session, "reason") ? ": " : "");
        cli_print_safe(stdout, cli_text(session, "reason"));
        if (*cli_text(session, "vm_id"))
            printf("\nVM %s is %s", cli_text(session, "vm_id"), cli_text(vm, "state"));
        printf("\n");
        status = print_story(cli, cli_text(session, "id"));
    }
    json_decref(answer);
    return status;
}

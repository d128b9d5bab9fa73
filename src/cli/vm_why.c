#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "cli/cli.h"

void cli_print_event(json_t *event) {
    const char *from = cli_text(event, "from"), *to = cli_text(event, "to");
    printf("%s  %-12s ", cli_text(event, "at"), cli_text(event, "event"));
    if (*to)
        printf("%s%s%s  ", from, *from ? " -> " : "", to);
    printf("by ");
    cli_print_safe(stdout, cli_text(event, "actor"));
    if (*cli_text(event, "reason")) {
        printf("\n%38s", "");
        cli_print_safe(stdout, cli_text(event, "reason"));
    }
    printf("\n");
}

int verb_vm_why(struct cli *cli, int argc, char **argv) {
    if (argc != 2)
        return cli_usage(cli, "mctl vm why needs one ID");
    _cleanup_free_ char *path = cli_path("/api/vms/", argv[1], "/events");
    json_t *answer, *event;
    int status = cli_call(cli, "GET", path, NULL, &answer);
    if (status != CLI_DONE)
        return status;
    if (cli->json) {
        cli_print_json(answer);
    } else {
        json_t *vm = json_object_get(answer, "vm");
        json_t *cause = json_object_get(answer, "cause");
        size_t i;
        printf("%s, %s VM of %s, is %s since %s\n", cli_text(vm, "id"), cli_text(vm, "type"), cli_text(vm, "user"),
               cli_text(vm, "state"), cli_text(vm, "state_since"));
        if (json_is_object(cause)) {
            printf("cause: ");
            cli_print_safe(stdout, cli_text(cause, "words"));
            printf(" [%s]\n", cli_text(cause, "code"));
        }
        json_array_foreach(json_object_get(answer, "events"), i, event) cli_print_event(event);
        printf("files: %s%s\n", cli_text(answer, "files"),
               access(cli_text(answer, "files"), F_OK) == 0 ? "" : " (not there any more, or not for you to see)");
    }
    json_decref(answer);
    return CLI_DONE;
}

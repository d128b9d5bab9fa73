#include <stdio.h>

#include "base/fd.h"
#include "cli/cli.h"

/* "stopped      12 packets, 3 for the host itself": only what there was. */
static void print(json_t *answer) {
    json_t *network = json_object_get(answer, "network"), *stopped = json_object_get(network, "stopped"), *reason;
    const char *name;
    cli_print_vm(json_object_get(answer, "vm"));
    json_object_foreach(stopped, name, reason) {
        json_int_t packets = json_integer_value(json_object_get(reason, "packets"));
        if (packets > 0)
            printf("%-12s %lld: %s (%s)\n", "stopped", packets, cli_text(reason, "what"), name);
    }
}

int verb_vm_show(struct cli *cli, int argc, char **argv) {
    if (argc != 2)
        return cli_usage(cli, "mctl vm show needs one ID");
    _cleanup_free_ char *path = cli_path("/api/vms/", argv[1], "");
    json_t *answer;
    int status = cli_call(cli, "GET", path, NULL, &answer);
    if (status != CLI_DONE)
        return status;
    if (cli->json)
        cli_print_json(answer);
    else
        print(answer);
    json_decref(answer);
    return CLI_DONE;
}

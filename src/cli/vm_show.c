#include "base/fd.h"
#include "cli/cli.h"

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
        cli_print_vm(json_object_get(answer, "vm"));
    json_decref(answer);
    return CLI_DONE;
}

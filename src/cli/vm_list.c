#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "cli/cli.h"

static void print_table(json_t *vms) {
    size_t i;
    json_t *vm;
    printf("%-39s %-16s %-8s %-10s %-5s %-15s %s\n", "ID", "USER", "TYPE", "STATE", "REACH", "IP", "TAP");
    json_array_foreach(vms, i, vm) {
        json_t *reachable = json_object_get(vm, "reachable");
        printf("%-39s %-16s %-8s %-10s %-5s %-15s %s\n", cli_text(vm, "id"), cli_text(vm, "user"), cli_text(vm, "type"),
               cli_vm_state(vm),
               json_is_null(reachable)   ? "-"
               : json_is_true(reachable) ? "yes"
                                         : "NO",
               cli_text(vm, "ip"), cli_text(vm, "tap"));
    }
}

int verb_vm_list(struct cli *cli, int argc, char **argv) {
    static const struct option longs[] = {{"all", no_argument, NULL, 'a'}, {"user", required_argument, NULL, 'u'}, {0}};
    const char *user = "";
    bool all = false;
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (c == 'a')
            all = true;
        else if (c == 'u')
            user = optarg;
        else
            return cli_usage(cli, "mctl vm list does not know %s", argv[optind - 1]);
    }
    if (optind != argc)
        return cli_usage(cli, "mctl vm list takes no %s", argv[optind]);
    _cleanup_free_ char *path = cli_path("/api/vms?user=", user, all ? "&all=1" : "");
    json_t *answer;
    int status = cli_call(cli, "GET", path, NULL, &answer);
    if (status != CLI_DONE)
        return status;
    if (cli->json)
        cli_print_json(answer);
    else
        print_table(json_object_get(answer, "vms"));
    json_decref(answer);
    return CLI_DONE;
}

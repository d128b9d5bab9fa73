#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"
#include "cli/cli.h"

static int create(struct cli *cli, const char *user, json_t *body, bool wait) {
    _cleanup_free_ char *path = cli_path("/api/users/", user, "/vm");
    json_t *answer;
    int status = cli_call(cli, "POST", path, body, &answer);
    if (status != CLI_DONE)
        return status;
    json_t *vm = json_incref(json_object_get(answer, "vm"));
    json_decref(answer);
    if (wait)
        status = cli_wait_vm(cli, &vm);
    if (status == CLI_DONE && cli->json) {
        json_t *document = json_pack("{s:O}", "vm", vm);
        cli_print_json(document);
        json_decref(document);
    } else if (status == CLI_DONE && !cli->quiet) {
        cli_print_vm(vm);
    }
    json_decref(vm);
    return status;
}

int verb_vm_create(struct cli *cli, int argc, char **argv) {
    static const struct option longs[] = {
        {"user", required_argument, NULL, 'u'},   {"type", required_argument, NULL, 't'},
        {"memory", required_argument, NULL, 'm'}, {"vcpus", required_argument, NULL, 'v'},
        {"wait", no_argument, NULL, 'w'},         {0}};
    const char *user = NULL, *type = NULL;
    uint64_t memory = 0, vcpus = 0;
    bool wait = false;
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (c == 'u')
            user = optarg;
        else if (c == 't')
            type = optarg;
        else if (c == 'm' && str_to_u64(optarg, 1, UINT32_MAX, &memory) < 0)
            return cli_usage(cli, "--memory %s is not a number of MiB", optarg);
        else if (c == 'v' && str_to_u64(optarg, 1, UINT32_MAX, &vcpus) < 0)
            return cli_usage(cli, "--vcpus %s is not a number", optarg);
        else if (c == 'w')
            wait = true;
        else if (c == '?')
            return cli_usage(cli, "mctl vm create does not know %s, or it lacks its value", argv[optind - 1]);
    }
    if (!user || !*user || !type || optind != argc)
        return cli_usage(cli, "mctl vm create needs --user U and --type cli|browser");
    json_t *body =
        json_pack("{s:s, s:I, s:I}", "type", type, "memory_mib", (json_int_t)memory, "vcpus", (json_int_t)vcpus);
    if (!body)
        return cli_usage(cli, "--type is not UTF-8");
    return create(cli, user, body, wait);
}

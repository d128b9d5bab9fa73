#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/fd.h"
#include "base/time.h"
#include "cli/cli.h"

#define POLL_MS 250

static void line(const char *name, const char *value) {
    if (!*value)
        return;
    printf("%-12s ", name);
    cli_print_safe(stdout, value);
    printf("\n");
}

bool cli_is_in_pool(json_t *vm) {
    return strcmp(cli_text(vm, "user"), "(pool)") == 0 && strcmp(cli_text(vm, "state"), "creating") == 0;
}

const char *cli_vm_state(json_t *vm) {
    return cli_is_in_pool(vm) ? "in pool" : cli_text(vm, "state");
}

void cli_print_vm(json_t *vm) {
    json_t *reachable = json_object_get(vm, "reachable");
    char size[64], wake[128];
    snprintf(size, sizeof size, "%lld vCPUs, %lld MiB", json_integer_value(json_object_get(vm, "vcpus")),
             json_integer_value(json_object_get(vm, "memory_mib")));
    line("id", cli_text(vm, "id"));
    line("user", cli_text(vm, "user"));
    line("type", cli_text(vm, "type"));
    line("state", cli_vm_state(vm));
    line("since", cli_text(vm, "state_since"));
    line("reason", cli_text(vm, "reason"));
    snprintf(wake, sizeof wake, "when it is used, or by: mctl vm resume %s", cli_text(vm, "id"));
    line("wakes", strcmp(cli_text(vm, "state"), "hibernated") == 0 ? wake : "");
    line("reachable", json_is_null(reachable) ? "not known" : json_is_true(reachable) ? "yes" : "no");
    line("finding", cli_text(vm, "finding"));
    line("ip", cli_text(vm, "ip"));
    line("mac", cli_text(vm, "mac"));
    line("tap", cli_text(vm, "tap"));
    line("bridge", cli_text(vm, "bridge"));
    line("size", size);
    line("image", cli_text(vm, "image"));
    line("vmm", cli_text(vm, "vmm"));
    line("host", cli_text(vm, "host"));
    line("created", cli_text(vm, "created_at"));
}

static bool is_settled(const char *state) {
    return strcmp(state, "running") == 0 || strcmp(state, "hibernated") == 0 || strcmp(state, "stopped") == 0 ||
           strcmp(state, "failed") == 0;
}

int cli_wait_vm(struct cli *cli, json_t **vm) {
    int64_t start_ms = time_monotonic_ms();
    _cleanup_free_ char *path = cli_path("/api/vms/", cli_text(*vm, "id"), "");
    while (!is_settled(cli_text(*vm, "state"))) {
        cli_progress(cli, "%s %s … %lld s", cli_text(*vm, "id"), cli_text(*vm, "state"),
                     (long long)(time_monotonic_ms() - start_ms) / 1000);
        struct timespec pause = {.tv_nsec = POLL_MS * 1000000L};
        nanosleep(&pause, NULL);
        json_t *answer;
        int status = cli_call(cli, "GET", path, NULL, &answer);
        if (status != CLI_DONE)
            return status;
        json_t *newer = json_incref(json_object_get(answer, "vm"));
        json_decref(answer);
        json_decref(*vm);
        *vm = newer;
    }
    cli_progress(cli, "%s", "");
    if (strcmp(cli_text(*vm, "state"), "running") == 0)
        return CLI_DONE;
    struct err err = {0};
    err_set(&err, EIO, "vm.failed", "VM %s is %s: %s", cli_text(*vm, "id"), cli_text(*vm, "state"),
            cli_text(*vm, "reason"));
    err_hint(&err, "mctl vm why %s tells its story", cli_text(*vm, "id"));
    return cli_error(cli, CLI_FAILED, &err);
}

int cli_change_vm(struct cli *cli, const char *method, const char *path, const char *doing, const char *id) {
    json_t *answer;
    cli_progress(cli, "%s %s …", doing, id);
    int status = cli_call(cli, method, path, NULL, &answer);
    cli_progress(cli, "%s", "");
    if (status != CLI_DONE)
        return status;
    if (cli->json)
        cli_print_json(answer);
    else if (!cli->quiet)
        printf("%s is %s\n", cli_text(json_object_get(answer, "vm"), "id"),
               cli_text(json_object_get(answer, "vm"), "state"));
    json_decref(answer);
    return CLI_DONE;
}

#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

#define PORTS_SHOWN 40 /* that are well; those that are not are all shown */

static void print_line(const char *name, const char *text) {
    printf("%-8s ", name);
    cli_print_safe(stdout, text);
    printf("\n");
}

static void print_network(json_t *network) {
    const char *namespace = cli_text(network, "namespace"), *uplink = cli_text(network, "uplink");
    printf("%-8s %s %s/%lld, MAC %s, %lld ports, %s%s, %s%s%s\n", "bridge", cli_text(network, "bridge"),
           cli_text(network, "address"), json_integer_value(json_object_get(network, "prefix_length")),
           cli_text(network, "mac"), json_integer_value(json_object_get(network, "ports")),
           *namespace ? "in namespace " : "in the host's own namespace", namespace,
           *uplink ? "uplink " : "no uplink: VMs do not reach the outside", uplink,
           json_is_true(json_object_get(network, "masquerade")) ? " with masquerade" : "");
}

static void print_disk(json_t *disk) {
    printf("%-8s %lld MiB free below %s\n", "disk", json_integer_value(json_object_get(disk, "free_mib")),
           cli_text(disk, "folder"));
}

static void print_warm(json_t *warm) {
    size_t i;
    json_t *one;
    json_array_foreach(warm, i, one) {
        printf("%-8s ", i == 0 ? "warm" : "");
        if (json_is_true(json_object_get(one, "ready")))
            printf("%s VMs begin from a template of %s, with %lld MiB of memory; pool: %lld of %lld ready\n",
                   cli_text(one, "type"), cli_text(one, "image"),
                   json_integer_value(json_object_get(one, "memory_bytes")) >> 20,
                   json_integer_value(json_object_get(one, "pool_ready")),
                   json_integer_value(json_object_get(one, "pool_wanted")));
        else {
            printf("%s VMs start cold: ", cli_text(one, "type"));
            cli_print_safe(stdout, cli_text(one, "problem"));
            printf("\n");
        }
    }
}

/* Those of the pool are told as that: they are being made for nobody. */
static void print_vms(json_t *answer) {
    size_t i;
    const char *state;
    json_t *count, *vm;
    const char *separator = "";
    long long in_pool = 0;
    json_array_foreach(json_object_get(answer, "vm_list"), i, vm) in_pool += cli_is_in_pool(vm);
    printf("%-8s ", "VMs");
    json_object_foreach(json_object_get(answer, "vms"), state, count) {
        long long n = json_integer_value(count) - (strcmp(state, "creating") == 0 ? in_pool : 0);
        if (n <= 0)
            continue;
        printf("%s%lld %s", separator, n, state);
        separator = ", ";
    }
    if (in_pool) {
        printf("%s%lld in the pool", separator, in_pool);
        separator = ", ";
    }
    long long unreachable = json_integer_value(json_object_get(answer, "unreachable"));
    if (unreachable)
        printf("%s%lld UNREACHABLE", separator, unreachable);
    long long paused = json_integer_value(json_object_get(answer, "paused"));
    if (paused)
        printf(", %lld of them STOPPED by their VMM", paused);
    printf("%s\n", *separator ? "" : "none");
    printf("%-8s %lld seen by somebody\n", "desktops", json_integer_value(json_object_get(answer, "desktops")));
}

static void print_findings(json_t *findings) {
    size_t i;
    json_t *finding;
    printf("%-8s ", "findings");
    if (json_array_size(findings) == 0)
        printf("none\n");
    else
        printf("%zu\n", json_array_size(findings));
    json_array_foreach(findings, i, finding) {
        printf("  ");
        cli_print_safe(stdout, cli_text(finding, "about"));
        printf(": ");
        cli_print_safe(stdout, cli_text(finding, "words"));
        printf(" [%s]\n", cli_text(finding, "code"));
        if (*cli_text(finding, "hint"))
            printf("      %s\n", cli_text(finding, "hint"));
    }
}

/* id -> the VM, so that a thousand ports find theirs at once. */
static json_t *by_id(json_t *vms) {
    size_t i;
    json_t *vm, *index = json_object();
    json_array_foreach(vms, i, vm) json_object_set(index, cli_text(vm, "id"), vm);
    return index;
}

static void print_port(json_t *port, json_t *vm) {
    json_t *number = json_object_get(port, "number");
    char digits[16] = "-";
    if (json_is_integer(number))
        snprintf(digits, sizeof digits, "%lld", json_integer_value(number));
    printf("  %4s  %-15s  ", digits, cli_text(port, "name"));
    if (vm)
        printf("%-16s %-7s %-8s %-15s", cli_text(vm, "user"), cli_text(vm, "type"), cli_vm_state(vm),
               cli_text(vm, "ip"));
    else
        printf("%s", *cli_text(port, "kind") ? cli_text(port, "kind") : "hardware");
    if (*cli_text(port, "problem"))
        printf("  !! %s", cli_text(port, "problem"));
    else if (vm && json_is_false(json_object_get(vm, "reachable")))
        printf("  !! cannot be reached");
    printf("\n");
}

static void print_ports(json_t *ports, json_t *vms) {
    size_t i, well = 0;
    json_t *port, *index = by_id(vms);
    if (json_array_size(ports) > 0)
        printf("ports\n");
    json_array_foreach(ports, i, port) {
        json_t *vm = json_object_get(index, cli_text(port, "vm_id"));
        bool is_well = !*cli_text(port, "problem") && !json_is_false(json_object_get(vm, "reachable"));
        well += is_well;
        if (!is_well || well <= PORTS_SHOWN)
            print_port(port, vm);
    }
    if (well > PORTS_SHOWN)
        printf("  … and %zu more that are well: mctl vm list\n", well - PORTS_SHOWN);
    json_decref(index);
}

static void print_sessions(json_t *sessions) {
    size_t i;
    json_t *session;
    printf("%-8s %zu under way\n", "sessions", json_array_size(sessions));
    json_array_foreach(sessions, i, session)
        printf("  %s  %-16s %-14s %-18s %s%s\n", cli_text(session, "id"), cli_text(session, "user"),
               cli_text(session, "provider"), cli_text(session, "status"),
               *cli_text(session, "timeout_at") ? "until " : "", cli_text(session, "timeout_at"));
}

static void print_all(json_t *answer) {
    json_t *image = json_object_get(answer, "image");
    print_line("version", cli_text(answer, "version"));
    print_line("address", cli_text(answer, "url"));
    print_line("VMM", cli_text(json_object_get(answer, "vmm"), "reason"));
    print_line("image", *cli_text(image, "name") ? cli_text(image, "name") : cli_text(image, "problem"));
    print_warm(json_object_get(answer, "warm"));
    print_network(json_object_get(answer, "network"));
    print_disk(json_object_get(answer, "disk"));
    print_vms(answer);
    print_sessions(json_object_get(answer, "sessions"));
    print_ports(json_object_get(answer, "ports"), json_object_get(answer, "vm_list"));
    print_findings(json_object_get(answer, "findings"));
}

/* Each is asked of the daemon by itself, and put into one document. */
static const struct {
    const char *path, *member, *name;
} parts[] = {
    {"/api/network", "ports", "ports"},
    {"/api/vms", "vms", "vm_list"},
    {"/api/auth/sessions", "sessions", "sessions"},
};

int verb_status(struct cli *cli, int argc, char **argv) {
    if (argc != 1)
        return cli_usage(cli, "mctl status takes no %s", argv[1]);
    json_t *answer, *part;
    int status = cli_call(cli, "GET", "/api/status", NULL, &answer);
    if (status != CLI_DONE)
        return status;
    for (size_t i = 0; status == CLI_DONE && i < sizeof parts / sizeof *parts; i++) {
        status = cli_call(cli, "GET", parts[i].path, NULL, &part);
        if (status != CLI_DONE)
            break;
        json_object_set(answer, parts[i].name, json_object_get(part, parts[i].member));
        json_decref(part);
    }
    if (status == CLI_DONE && cli->json)
        cli_print_json(answer);
    else if (status == CLI_DONE)
        print_all(answer);
    json_decref(answer);
    return status;
}

#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

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
    if (!json_is_true(json_object_get(network, "isolated")))
        printf("             the firewall that keeps VMs apart is gone: see the daemon's log\n");
    if (*cli_text(network, "problem"))
        print_line("", cli_text(network, "problem"));
}

static void print_disk(json_t *disk) {
    printf("%-8s %lld MiB free below %s\n", "disk", json_integer_value(json_object_get(disk, "free_mib")),
           cli_text(disk, "folder"));
    if (*cli_text(disk, "problem"))
        print_line("", cli_text(disk, "problem"));
}

static void print_vms(json_t *answer) {
    const char *state;
    json_t *count;
    const char *separator = "";
    printf("%-8s ", "VMs");
    json_object_foreach(json_object_get(answer, "vms"), state, count) if (json_integer_value(count) > 0) {
        printf("%s%lld %s", separator, json_integer_value(count), state);
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

int verb_status(struct cli *cli, int argc, char **argv) {
    if (argc != 1)
        return cli_usage(cli, "mctl status takes no %s", argv[1]);
    json_t *answer;
    int status = cli_call(cli, "GET", "/api/status", NULL, &answer);
    if (status != CLI_DONE)
        return status;
    if (cli->json) {
        cli_print_json(answer);
    } else {
        json_t *image = json_object_get(answer, "image");
        print_line("version", cli_text(answer, "version"));
        print_line("address", cli_text(answer, "url"));
        print_line("VMM", cli_text(json_object_get(answer, "vmm"), "reason"));
        print_line("image", *cli_text(image, "name") ? cli_text(image, "name") : cli_text(image, "problem"));
        print_network(json_object_get(answer, "network"));
        print_disk(json_object_get(answer, "disk"));
        print_vms(answer);
    }
    json_decref(answer);
    return CLI_DONE;
}

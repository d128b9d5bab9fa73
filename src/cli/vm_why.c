#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "cli/cli.h"

/* "2026-01-02T03:04:05.678Z" in milliseconds; 0 for what is none. Source: RFC 3339. */
static int64_t time_of(const char *at) {
    struct tm tm = {0};
    const char *rest = strptime(at, "%Y-%m-%dT%H:%M:%S", &tm);
    int64_t ms = rest && *rest == '.' ? strtol(rest + 1, NULL, 10) : 0;
    return rest ? (int64_t)timegm(&tm) * 1000 + ms : 0;
}

static void print_event(json_t *event, int64_t *last_ms) {
    const char *from = cli_text(event, "from"), *to = cli_text(event, "to");
    int64_t at_ms = time_of(cli_text(event, "at"));
    char after[32] = "";
    if (*last_ms > 0)
        snprintf(after, sizeof after, "+%.1f s", (double)(at_ms - *last_ms) / 1000);
    *last_ms = at_ms;
    printf("%s %9s  %-16s ", cli_text(event, "at"), after, cli_text(event, "event"));
    if (*to)
        printf("%s%s%s  ", from, *from ? " -> " : "", to);
    printf("by ");
    cli_print_safe(stdout, cli_text(event, "actor"));
    if (*cli_text(event, "reason")) {
        printf("\n%36s", "");
        cli_print_safe(stdout, cli_text(event, "reason"));
    }
    printf("\n");
}

void cli_print_events(json_t *events) {
    size_t i;
    json_t *event;
    int64_t last_ms = 0;
    json_array_foreach(events, i, event) print_event(event, &last_ms);
}

int verb_vm_why(struct cli *cli, int argc, char **argv) {
    if (argc != 2)
        return cli_usage(cli, "mctl vm why needs one ID");
    _cleanup_free_ char *path = cli_path("/api/vms/", argv[1], "/events");
    json_t *answer;
    int status = cli_call(cli, "GET", path, NULL, &answer);
    if (status != CLI_DONE)
        return status;
    if (cli->json) {
        cli_print_json(answer);
    } else {
        json_t *vm = json_object_get(answer, "vm");
        json_t *cause = json_object_get(answer, "cause");
        printf("%s, %s VM of %s, is %s since %s\n", cli_text(vm, "id"), cli_text(vm, "type"), cli_text(vm, "user"),
               cli_vm_state(vm), cli_text(vm, "state_since"));
        if (json_is_object(cause)) {
            printf("cause: ");
            cli_print_safe(stdout, cli_text(cause, "words"));
            printf(" [%s]\n", cli_text(cause, "code"));
        }
        cli_print_events(json_object_get(answer, "events"));
        printf("files: %s%s\n", cli_text(answer, "files"),
               access(cli_text(answer, "files"), F_OK) == 0 ? "" : " (not there any more, or not for you to see)");
    }
    json_decref(answer);
    return CLI_DONE;
}

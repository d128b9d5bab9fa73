#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"
#include "cli/cli.h"

/* A session that goes on may have a VM that is at rest. */
static int wait_desktop(struct cli *cli, json_t *answer) {
    _cleanup_free_ char *wake = cli_path("/api/auth/session/", cli_text(answer, "sessionId"), "/wake");
    _cleanup_free_ char *path = cli_path("/api/vms/", cli_text(json_object_get(answer, "session"), "vm_id"), "");
    json_t *vm_answer, *woken;
    int status = cli_call(cli, "POST", wake, NULL, &woken);
    if (status != CLI_DONE)
        return status;
    json_decref(woken);
    status = cli_call(cli, "GET", path, NULL, &vm_answer);
    if (status != CLI_DONE)
        return status;
    json_t *vm = json_incref(json_object_get(vm_answer, "vm"));
    json_decref(vm_answer);
    status = cli_wait_vm(cli, &vm);
    json_decref(vm);
    return status;
}

/* The session as it is after the wait. */
static int refresh(struct cli *cli, json_t *answer) {
    _cleanup_free_ char *path = cli_path("/api/auth/session/", cli_text(answer, "sessionId"), "");
    json_t *now;
    int status = cli_call(cli, "GET", path, NULL, &now);
    if (status != CLI_DONE)
        return status;
    json_object_set(answer, "session", json_object_get(now, "session"));
    json_decref(now);
    return CLI_DONE;
}

static void print_session(json_t *answer) {
    json_t *session = json_object_get(answer, "session");
    printf("session %s of %s with %s is %s\n%s\n", cli_text(session, "id"), cli_text(session, "user"),
           cli_text(session, "provider"), cli_text(session, "status"), cli_text(answer, "novncURL"));
}

/* {"session":…} as the contract has it; its novnc_url bears the ticket. */
static void print_session_json(json_t *answer) {
    json_t *session = json_object_get(answer, "session");
    json_object_set(session, "novnc_url", json_object_get(answer, "novncURL"));
    json_t *document = json_pack("{s:O}", "session", session);
    cli_print_json(document);
    json_decref(document);
}

int verb_auth_start(struct cli *cli, int argc, char **argv) {
    static const struct option longs[] = {{"user", required_argument, NULL, 'u'},
                                          {"provider", required_argument, NULL, 'p'},
                                          {"ticket-lifetime", required_argument, NULL, 't'},
                                          {"wait", no_argument, NULL, 'w'},
                                          {0}};
    const char *user = NULL, *provider = NULL;
    uint64_t lifetime_s = 0;
    bool wait = false;
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (c == 'u')
            user = optarg;
        else if (c == 'p')
            provider = optarg;
        else if (c == 't' && str_to_u64(optarg, 1, 3600, &lifetime_s) < 0)
            return cli_usage(cli, "--ticket-lifetime %s is not from 1 to 3600 seconds", optarg);
        else if (c == 'w')
            wait = true;
        else if (c == '?')
            return cli_usage(cli, "mctl auth start does not know %s, or it lacks its value", argv[optind - 1]);
    }
    if (!user || !provider || optind != argc)
        return cli_usage(cli, "mctl auth start needs --user U and --provider P");
    json_t *body = json_pack("{s:s, s:s}", "userId", user, "provider", provider), *answer;
    if (!body)
        return cli_usage(cli, "--user or --provider is not UTF-8");
    if (lifetime_s)
        json_object_set_new(body, "ticketLifetime", json_integer((json_int_t)lifetime_s));
    int status = cli_call(cli, "POST", "/api/auth/start", body, &answer);
    if (status != CLI_DONE)
        return status;
    if (wait)
        status = wait_desktop(cli, answer);
    if (wait && status == CLI_DONE)
        status = refresh(cli, answer);
    if (cli->json && status == CLI_DONE)
        print_session_json(answer);
    else if (!cli->json) /* the link is told this once, and the session goes on though its VM did not come */
        print_session(answer);
    json_decref(answer);
    return status;
}

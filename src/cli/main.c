#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

#define SOCKET_DEFAULT "/run/master-controller/api.sock"

static const struct {
    const char *noun, *verb; /* verb NULL: the noun alone */
    cli_verb_fn *run;
    const char *usage;
} verbs[] = {
    {"vm", "create", verb_vm_create, "--user U --type cli|browser [--memory MiB] [--vcpus N] [--wait]"},
    {"vm", "list", verb_vm_list, "[--all] [--user U]"},
    {"vm", "show", verb_vm_show, "ID"},
    {"vm", "destroy", verb_vm_destroy, "ID --reason TEXT"},
    {"vm", "hibernate", verb_vm_hibernate, "ID [--force] [--reason TEXT]"},
    {"vm", "resume", verb_vm_resume, "ID [--cold] [--reason TEXT]"},
    {"vm", "console", verb_vm_console, "ID [--follow]"},
    {"vm", "exec", verb_vm_exec, "[--user U] [-t|-T] ID -- CMD…"},
    {"vm", "why", verb_vm_why, "ID"},
    {"image", "build", verb_image_build, "[--type browser|cli] [--screen xvfb|tigervnc] [--out FOLDER]"},
    {"image", "verify", verb_image_verify,
     "[--boot [--timeout SECONDS]] [--quick] [--type browser|cli] FILE-OR-FOLDER"},
    {"image", "list", verb_image_list, "[--out FOLDER]"},
    {"auth", "start", verb_auth_start, "--user U --provider P [--ticket-lifetime SECONDS] [--wait]"},
    {"auth", "show", verb_auth_show, "SESSION"},
    {"auth", "cancel", verb_auth_cancel, "SESSION [--reason TEXT]"},
    {"token", "create", verb_token_create, "--user U [--days N] [--note TEXT]"},
    {"token", "list", verb_token_list, "[--user U]"},
    {"token", "revoke", verb_token_revoke, "ID"},
    {"vault", "status", verb_vault_status, ""},
    {"vault", "rotate", verb_vault_rotate, ""},
    {"vault", "forget", verb_vault_forget, "--user U --provider P"},
    {"status", NULL, verb_status, ""},
    {"doctor", NULL, verb_doctor,
     "[--netns NAME] [--bridge br0] [--vm ID | --tap NAME --guest-ip A [--guest-mac M] [--guest-port P]]\n"
     "              [--repair[=ID]] [--undo JOURNAL-ID] [--explain] [--capture FILE.pcapng] [--no-trace] [--no-probe]\n"
     "              [--save FILE] [--from FILE] [--watch]"},
};

#define VERB_COUNT (sizeof verbs / sizeof *verbs)

/* noun, verb: print these alone; NULL: all. */
static void print_usage(FILE *to, const char *noun, const char *verb) {
    fprintf(to, "usage: mctl [--json] [--quiet] [--socket PATH] VERB …\n\n");
    for (size_t i = 0; i < VERB_COUNT; i++)
        if ((!noun || strcmp(noun, verbs[i].noun) == 0) &&
            (!verb || (verbs[i].verb && strcmp(verb, verbs[i].verb) == 0)))
            fprintf(to, "  mctl %s%s%s %s\n", verbs[i].noun, verbs[i].verb ? " " : "",
                    verbs[i].verb ? verbs[i].verb : "", verbs[i].usage);
    fprintf(to, "\nID may be any unique beginning of a VM's id.\n"
                "Exit status: 0 done, 1 failed, 2 usage, 3 no daemon, 4 not found, 5 refused.\n");
}

/* mctl --help, mctl help, mctl vm --help, mctl vm create --help; the doctor has more to say and its own. */
static bool asks_for_help(int argc, char **argv) {
    const char *last = argc >= 2 && argc <= 4 ? argv[argc - 1] : "";
    if (argc > 2 && strcmp(argv[1], "doctor") == 0)
        return false;
    return strcmp(last, "--help") == 0 || (argc == 2 && strcmp(last, "help") == 0);
}

/* Takes the global options out, wherever they stand. Return: the number of words that are left, -1 for a wrong one. */
static int take_globals(struct cli *cli, int argc, char **argv) {
    int n = 0;
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--") == 0) {
            while (i < argc)
                argv[n++] = argv[i++];
            break;
        }
        if (strcmp(argv[i], "--json") == 0)
            cli->json = true;
        else if (strcmp(argv[i], "--quiet") == 0)
            cli->quiet = true;
        else if (strncmp(argv[i], "--socket=", 9) == 0)
            cli->socket = argv[i] + 9;
        else if (strcmp(argv[i], "--socket") == 0) {
            if (++i == argc)
                return -1;
            cli->socket = argv[i];
        } else
            argv[n++] = argv[i];
    }
    argv[n] = NULL;
    return n;
}

int main(int argc, char **argv) {
    struct cli cli = {.socket = SOCKET_DEFAULT};
    argc = take_globals(&cli, argc, argv);
    if (argc < 0)
        return cli_usage(&cli, "--socket needs a path");
    if (asks_for_help(argc, argv)) {
        print_usage(stdout, argc > 2 ? argv[1] : NULL, argc > 3 ? argv[2] : NULL);
        return CLI_DONE;
    }
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        printf("mctl " MC_VERSION "\n");
        return CLI_DONE;
    }
    for (size_t i = 0; i < VERB_COUNT; i++) {
        if (argc < 2 || strcmp(argv[1], verbs[i].noun) != 0)
            continue;
        if (!verbs[i].verb)
            return verbs[i].run(&cli, argc - 1, argv + 1);
        if (argc > 2 && strcmp(argv[2], verbs[i].verb) == 0)
            return verbs[i].run(&cli, argc - 2, argv + 2);
    }
    if (cli.json)
        return cli_usage(&cli, "there is no such verb");
    print_usage(stderr, NULL, NULL);
    return CLI_USAGE;
}

/* mctl: what its verbs share. A verb is one file with one function, which returns the exit status. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#include "base/err.h"

/* The contract's exit statuses. */
enum {
    CLI_DONE = 0,
    CLI_FAILED = 1,
    CLI_USAGE = 2,
    CLI_NO_DAEMON = 3,
    CLI_NOT_FOUND = 4,
    CLI_REFUSED = 5,
};

struct cli {
    const char *socket;
    bool json;  /* one JSON document on standard output, nothing else there */
    bool quiet; /* no progress, no results in words */
};

typedef int cli_verb_fn(struct cli *cli, int argc, char **argv);

cli_verb_fn verb_vm_create, verb_vm_list, verb_vm_show, verb_vm_destroy, verb_vm_console, verb_vm_why, verb_vm_exec;
cli_verb_fn verb_vm_hibernate, verb_vm_resume;
cli_verb_fn verb_auth_start, verb_auth_show, verb_auth_cancel, verb_status;
cli_verb_fn verb_doctor;
cli_verb_fn verb_image_build, verb_image_list, verb_image_verify;
cli_verb_fn verb_vault_forget, verb_vault_rotate, verb_vault_status;
cli_verb_fn verb_token_create, verb_token_list, verb_token_revoke;

/* Calls the daemon. body may be NULL and is taken. Return: CLI_DONE with *ret_answer (the caller decrefs), or the exit
 * status after the error was shown. */
int cli_call(struct cli *cli, const char *method, const char *path, json_t *body, json_t **ret_answer);

/* Shows the error: in words on standard error, or as {"error":…} on standard output with --json. Return: status. */
int cli_error(struct cli *cli, int status, const struct err *err);

/* A wrong command line. Return: CLI_USAGE. */
int cli_usage(struct cli *cli, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Shows why the daemon could not be asked. Return: the exit status. */
int cli_unreachable(struct cli *cli, struct err *err);

/* Shows a problem document that the daemon sent. Return: the exit status that its HTTP status means. */
int cli_problem(struct cli *cli, int http_status, const char *body);

/* With --json: prints the document. */
void cli_print_json(json_t *document);

/* Text of a member, or "" (also for null). Valid as long as the object. */
const char *cli_text(json_t *object, const char *name);

/* Prints text from the daemon or a guest: control bytes escaped. */
void cli_print_safe(FILE *to, const char *text);

/* "/api/vms/" and the percent-encoded part and the rest. The caller frees. */
char *cli_path(const char *before, const char *part, const char *after);

/* Whether it waits for a user: one of the pool ([warm] pool_cli, pool_browser). */
bool cli_is_in_pool(json_t *vm);
/* Its state in words for a person. */
const char *cli_vm_state(json_t *vm);
/* One VM in words, a line a fact. */
void cli_print_vm(json_t *vm);

/* A VM's or a session's story, each event with the time since the one before it: where the seconds went. */
void cli_print_events(json_t *events);

/* Waits until the VM has settled, with progress on a terminal. Return: the exit status; *vm is replaced. */
int cli_wait_vm(struct cli *cli, json_t **vm);

/* One call that changes a VM and is answered when that is done, with progress ("ending", and the id as it was given), and
 * then its state. Return: the exit status. */
int cli_change_vm(struct cli *cli, const char *method, const char *path, const char *doing, const char *id);

/* One progress line, overwritten, on a terminal alone. "" clears it. */
void cli_progress(struct cli *cli, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "cli/doctor.h"
#include "doctor/report/pcapng.h"
#include "doctor/report/report.h"
#include "doctor/snapshot_json.h"

#define STATE_DIR "/var/lib/firecracker"

static int obtain(const struct doctor_request *r, struct doctor_case **ret, struct err *err) {
    _cleanup_free_ char *text = NULL;
    size_t len;
    if (!r->from)
        return doctor_run(&r->options, ret, err);
    int e = file_read(r->from, SNAPSHOT_FILE_MAX, &text, &len);
    if (e < 0) {
        err_sys(err, -e, "doctor.bad-snapshot", "read %s", r->from);
        return err_hint(err, "--from takes a file that --save wrote");
    }
    e = doctor_case_load(text, len, ret, err);
    if (e < 0) {
        err_prefix(err, "%s", r->from);
        err_hint(err, "--from takes a file that --save of the same version wrote");
    }
    return e;
}

static int save(const struct doctor_request *r, const struct doctor_case *c, struct err *err) {
    size_t len;
    _cleanup_free_ char *text = doctor_case_save(c, &len);
    if (!text)
        return err_sys(err, ENOMEM, "doctor.save", "write %s", r->save);
    return report_write_file(r->save, text, len, "doctor.save", err);
}

static int capture(const struct doctor_request *r, const struct doctor_case *c, struct err *err) {
    if (c->probe)
        return pcapng_write_probe(c->probe, r->capture, err);
    err_set(err, ENODATA, "doctor.capture", "nothing was captured: no question could be asked%s%s",
            c->probe_error.errnum ? ": " : "", c->probe_error.detail);
    return err_hint(err, "it needs root, a bridge, and a TAP that is there; %s was not written", r->capture);
}

static int status_of(const struct err *err) {
    static const char *const refusals[] = {"repair.changed", "repair.busy"};
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++)
        if (strcmp(err->code, refusals[i]) == 0)
            return CLI_REFUSED;
    if (err->errnum == ENOENT)
        return CLI_NOT_FOUND;
    return err->errnum == EPERM || err->errnum == EACCES ? CLI_REFUSED : CLI_FAILED;
}

static int fail(struct cli *cli, struct err *err) {
    if (!*err->hint && (err->errnum == EPERM || err->errnum == EACCES) && geteuid() != 0)
        err_hint(err, "root may do this");
    return cli_error(cli, status_of(err), err);
}

static void tell(struct cli *cli, const struct doctor_request *r, const struct doctor_case *c) {
    if (cli->json) {
        report_json(c, stdout);
    } else if (!cli->quiet) {
        report_text(c, r->explain, isatty(STDOUT_FILENO) && !getenv("NO_COLOR"), stdout);
    }
}

/* What nobody could read was not told. Return: status, or CLI_FAILED. */
static int finish(struct cli *cli, int status) {
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout))
        return status;
    struct err err = {0};
    err_sys(&err, errno ? errno : EPIPE, "doctor.output", "write to standard output");
    struct cli words = *cli;
    words.json = false; /* nobody reads the other */
    return cli_error(&words, CLI_FAILED, &err);
}

struct watching {
    struct cli *cli;
    const struct doctor_request *request;
};

static bool told(const struct doctor_case *c, void *data) {
    struct watching *w = data;
    char at[TIME_RFC3339_SIZE];
    time_format_rfc3339(time_realtime_ms(), at);
    if (!w->cli->json && !w->cli->quiet)
        printf("--- %s\n", at);
    tell(w->cli, w->request, c);
    return fflush(stdout) == 0;
}

static int watch(struct cli *cli, const struct doctor_request *r) {
    struct err err = {0};
    struct watching w = {cli, r};
    doctor_watch(&r->options, STDOUT_FILENO, told, &w, &err);
    if (err.errnum == EPIPE) /* who watched has gone: that is how a watch ends */
        return CLI_DONE;
    return fail(cli, &err);
}

static int undo(struct cli *cli, const struct doctor_request *r) {
    struct err err = {0};
    if (doctor_undo(r->options.netns, r->options.socket, r->journal, r->undo, &err) < 0)
        return fail(cli, &err);
    if (cli->json) {
        json_t *document = json_pack("{s:s}", "undone", r->undo);
        cli_print_json(document);
        json_decref(document);
    } else if (!cli->quiet) {
        printf("%s was taken back\n", r->undo);
    }
    return finish(cli, CLI_DONE);
}

/* A file that cannot be written ends it before anything is repaired; in words the findings are told all the same. */
static int examine(struct cli *cli, const struct doctor_request *r, struct doctor_case **c, struct err *err) {
    int e = obtain(r, c, err);
    if (e < 0)
        return e;
    if (r->capture)
        e = capture(r, *c, err);
    if (e == 0 && r->save)
        e = save(r, *c, err);
    if (e == 0 && r->repair)
        e = doctor_repair(&r->options, r->repair, r->journal, c, err);
    if (e < 0 && !cli->json && *c) {
        tell(cli, r, *c);
        fflush(stdout);
    }
    return e;
}

int verb_doctor(struct cli *cli, int argc, char **argv) {
    struct err err = {0};
    struct doctor_request r = {.options = {.netns = "",
                                           .bridge = "",
                                           .tap = "",
                                           .vm = "",
                                           .state_dir = STATE_DIR,
                                           .socket = cli->socket,
                                           .disabled = getenv("MC_DOCTOR_DISABLE")},
                               .journal = getenv("MC_DOCTOR_JOURNAL")};
    _cleanup_doctor_case_ struct doctor_case *c = NULL;
    int status = doctor_request_parse(cli, argc, argv, &r);
    if (status)
        return status;
    /* A reader that goes away is told by the write, after what was begun has been cleaned up. */
    signal(SIGPIPE, SIG_IGN);
    if (r.help) {
        doctor_request_help(stdout);
        return finish(cli, CLI_DONE);
    }
    if (!r.journal)
        r.journal = REPAIR_JOURNAL_DIR;
    if (r.undo)
        return undo(cli, &r);
    if (r.watch)
        return watch(cli, &r);
    if (examine(cli, &r, &c, &err) < 0)
        return fail(cli, &err);
    tell(cli, &r, c);
    return finish(cli, doctor_exit_status(c));
}

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "cli/cli.h"
#include "doctor/doctor.h"
#include "doctor/report/pcapng.h"
#include "doctor/report/report.h"
#include "doctor/snapshot_json.h"

#define STATE_DIR "/var/lib/firecracker"

struct request {
    struct doctor_options options;
    bool explain, watch;
    const char *save, *from, *capture;
    const char *repair; /* NULL: none; "": what is safe; else an id */
    const char *undo;
    const char *journal;
};

enum {
    OPT_NETNS = 256,
    OPT_BRIDGE,
    OPT_VM,
    OPT_TAP,
    OPT_IP,
    OPT_MAC,
    OPT_PORT,
    OPT_EXPLAIN,
    OPT_NO_TRACE,
    OPT_NO_PROBE,
    OPT_SAVE,
    OPT_FROM,
    OPT_STATE_DIR,
    OPT_REPAIR,
    OPT_UNDO,
    OPT_CAPTURE,
    OPT_WATCH,
};

static const struct option options[] = {
    {"netns", required_argument, NULL, OPT_NETNS},
    {"bridge", required_argument, NULL, OPT_BRIDGE},
    {"vm", required_argument, NULL, OPT_VM},
    {"tap", required_argument, NULL, OPT_TAP},
    {"guest-ip", required_argument, NULL, OPT_IP},
    {"guest-mac", required_argument, NULL, OPT_MAC},
    {"guest-port", required_argument, NULL, OPT_PORT},
    {"explain", no_argument, NULL, OPT_EXPLAIN},
    {"no-trace", no_argument, NULL, OPT_NO_TRACE},
    {"no-probe", no_argument, NULL, OPT_NO_PROBE},
    {"save", required_argument, NULL, OPT_SAVE},
    {"from", required_argument, NULL, OPT_FROM},
    {"state-dir", required_argument, NULL, OPT_STATE_DIR},
    {"repair", optional_argument, NULL, OPT_REPAIR},
    {"undo", required_argument, NULL, OPT_UNDO},
    {"capture", required_argument, NULL, OPT_CAPTURE},
    {"watch", no_argument, NULL, OPT_WATCH},
    {NULL, 0, NULL, 0},
};

/* Return: 0, or the exit status after the mistake was shown. */
static int take_option(struct cli *cli, struct request *r, int option) {
    struct doctor_options *o = &r->options;
    uint64_t port;
    switch (option) {
    case OPT_NETNS:
        o->netns = optarg;
        return 0;
    case OPT_BRIDGE:
        o->bridge = optarg;
        return 0;
    case OPT_VM:
        o->vm = optarg;
        return 0;
    case OPT_TAP:
        o->tap = optarg;
        return strlen(optarg) > 15 ? cli_usage(cli, "--tap: no device has a name that long: %s", optarg) : 0;
    case OPT_IP:
        return net_parse_ip(optarg, &o->guest_ip) < 0 ? cli_usage(cli, "--guest-ip is no IPv4 address: %s", optarg) : 0;
    case OPT_MAC:
        o->has_mac = true;
        return net_parse_mac(optarg, &o->guest_mac) < 0 ? cli_usage(cli, "--guest-mac is no MAC: %s", optarg) : 0;
    case OPT_PORT:
        if (str_to_u64(optarg, 1, 65535, &port) < 0)
            return cli_usage(cli, "--guest-port is no port: %s", optarg);
        o->guest_port = (uint16_t)port;
        return 0;
    case OPT_EXPLAIN:
        r->explain = true;
        return 0;
    case OPT_NO_TRACE:
        o->no_trace = true;
        return 0;
    case OPT_NO_PROBE:
        o->no_probe = true;
        return 0;
    case OPT_SAVE:
        r->save = optarg;
        return 0;
    case OPT_FROM:
        r->from = optarg;
        return 0;
    case OPT_STATE_DIR:
        o->state_dir = optarg;
        return 0;
    case OPT_REPAIR:
        r->repair = optarg ? optarg : "";
        return 0;
    case OPT_UNDO:
        r->undo = optarg;
        return 0;
    case OPT_CAPTURE:
        r->capture = optarg;
        return 0;
    case OPT_WATCH:
        r->watch = true;
        return 0;
    }
    return cli_usage(cli, "mctl doctor does not know this option, or it needs a value (see mctl --help)");
}

static int parse(struct cli *cli, struct request *r, int argc, char **argv) {
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        int status = take_option(cli, r, option);
        if (status)
            return status;
    }
    if (optind < argc)
        return cli_usage(cli, "mctl doctor takes no %s", argv[optind]);
    if (r->from && (r->repair || r->watch || r->undo || r->capture))
        return cli_usage(cli, "--from looks at a file: there is nothing to repair, capture or watch");
    if (*r->options.vm && *r->options.tap)
        return cli_usage(cli, "--vm and --tap do not go together");
    if (!*r->options.vm && !*r->options.tap && (r->options.guest_ip || r->options.has_mac || r->options.guest_port))
        return cli_usage(cli, "--guest-ip, --guest-mac and --guest-port belong to a --tap or --vm");
    return 0;
}

static int obtain(const struct request *r, struct doctor_case **ret, struct err *err) {
    _cleanup_free_ char *text = NULL;
    size_t len;
    if (!r->from)
        return doctor_run(&r->options, ret, err);
    int e = file_read(r->from, SNAPSHOT_FILE_MAX, &text, &len);
    if (e < 0)
        return err_sys(err, -e, "doctor.bad-snapshot", "read %s", r->from);
    return doctor_case_load(text, len, ret, err);
}

static int save(const struct request *r, const struct doctor_case *c, struct err *err) {
    size_t len;
    _cleanup_free_ char *text = doctor_case_save(c, &len);
    int e = text ? file_write_atomic(r->save, text, len, 0600) : -ENOMEM;
    return e < 0 ? err_sys(err, -e, "doctor.failed", "write %s", r->save) : 0;
}

static int status_of(const struct err *err) {
    if (err->errnum == ENOENT)
        return CLI_NOT_FOUND;
    return err->errnum == EPERM || err->errnum == EACCES ? CLI_REFUSED : CLI_FAILED;
}

static void tell(struct cli *cli, const struct request *r, const struct doctor_case *c) {
    if (cli->json) {
        json_t *document = report_json(c);
        cli_print_json(document);
        json_decref(document);
    } else if (!cli->quiet) {
        report_text(c, r->explain, isatty(STDOUT_FILENO), stdout);
    }
}

struct watching {
    struct cli *cli;
    const struct request *request;
};

static bool told(const struct doctor_case *c, void *data) {
    struct watching *w = data;
    tell(w->cli, w->request, c);
    return fflush(stdout) == 0;
}

static int watch(struct cli *cli, const struct request *r) {
    struct err err = {0};
    struct watching w = {cli, r};
    doctor_watch(&r->options, told, &w, &err);
    return cli_error(cli, status_of(&err), &err);
}

static int undo(struct cli *cli, const struct request *r) {
    struct err err = {0};
    if (doctor_undo(r->options.netns, r->journal, r->undo, &err) < 0)
        return cli_error(cli, status_of(&err), &err);
    if (cli->json) {
        json_t *document = json_pack("{s:s}", "undone", r->undo);
        cli_print_json(document);
        json_decref(document);
    } else if (!cli->quiet) {
        printf("%s was taken back\n", r->undo);
    }
    return CLI_DONE;
}

static int examine(const struct request *r, struct doctor_case **c, struct err *err) {
    int e = obtain(r, c, err);
    if (e == 0 && r->capture)
        e = (*c)->probe ? pcapng_write_probe((*c)->probe, r->capture, err)
                        : err_set(err, ENODATA, "doctor.capture", "nothing was captured: no question could be asked");
    if (e == 0 && r->save)
        e = save(r, *c, err);
    if (e == 0 && r->repair)
        e = doctor_repair(&r->options, r->repair, r->journal, c, err);
    return e;
}

int verb_doctor(struct cli *cli, int argc, char **argv) {
    struct err err = {0};
    struct request r = {.options = {.netns = "",
                                    .bridge = "",
                                    .tap = "",
                                    .vm = "",
                                    .state_dir = STATE_DIR,
                                    .disabled = getenv("MC_DOCTOR_DISABLE")},
                        .journal = getenv("MC_DOCTOR_JOURNAL")};
    _cleanup_doctor_case_ struct doctor_case *c = NULL;
    int status = parse(cli, &r, argc, argv);
    if (status)
        return status;
    if (!r.journal)
        r.journal = REPAIR_JOURNAL_DIR;
    if (r.undo)
        return undo(cli, &r);
    if (r.watch)
        return watch(cli, &r);
    if (examine(&r, &c, &err) < 0)
        return cli_error(cli, status_of(&err), &err);
    tell(cli, &r, c);
    return doctor_exit_status(c);
}

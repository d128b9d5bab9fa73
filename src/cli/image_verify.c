#include <getopt.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "base/str.h"
#include "cli/cli.h"
#include "cli/image_boot.h"
#include "image/needs.h"
#include "image/verify.h"

static void show_step(const char *step, unsigned percent, void *data) {
    if (percent)
        cli_progress(data, "looking at %s: %u %%", step, percent);
    else
        cli_progress(data, "looking at %s", step);
}

#define TIMEOUT_MAX_S 3600

/* Reads the digests only without --quick: seconds, where all else is some 100 ms. */
static const struct option options[] = {
    {"boot", no_argument, NULL, 'b'},
    {"quick", no_argument, NULL, 'q'},
    {"timeout", required_argument, NULL, 's'},
    {"type", required_argument, NULL, 't'},
    {NULL, 0, NULL, 0},
};

struct request {
    struct verify_options verify;
    bool boot;
    int timeout_ms; /* of the boot; 0: by the image's type */
};

/* Return: CLI_DONE, or the exit status after the mistake was shown. */
static int read_options(struct cli *cli, int argc, char **argv, struct request *r) {
    enum image_type type;
    uint64_t seconds;
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (option == 'q')
            r->verify.digests = false;
        else if (option == 'b')
            r->boot = true;
        else if (option == 't' && image_type_parse(optarg, &type))
            r->verify.type = optarg;
        else if (option == 't')
            return cli_usage(cli, "--type is cli or browser, not %s", optarg);
        else if (option == 's' && str_to_u64(optarg, 1, TIMEOUT_MAX_S, &seconds) == 0)
            r->timeout_ms = (int)seconds * 1000;
        else if (option == 's')
            return cli_usage(cli, "--timeout is a number of seconds from 1 to %d, not %s", TIMEOUT_MAX_S, optarg);
        else
            return cli_usage(cli, "mctl image verify does not know this option, or it needs a value (see mctl --help)");
    }
    if (r->timeout_ms && !r->boot)
        return cli_usage(cli, "--timeout belongs to --boot");
    if (optind != argc - 1)
        return cli_usage(cli, "mctl image verify needs one image: its folder, or its root file system");
    return CLI_DONE;
}

static int boot(struct cli *cli, const char *path, const struct request *request, struct image_report *report) {
    char folder[PATH_MAX];
    struct err err = {0};
    enum image_type type = IMAGE_TYPE_BROWSER;
    image_type_parse(report->type, &type);
    if (image_find_folder(path, folder, sizeof folder, &err) < 0)
        return cli_error(cli, CLI_FAILED, &err);
    return image_boot(cli, folder, type, request->timeout_ms, report, show_step);
}

int verb_image_verify(struct cli *cli, int argc, char **argv) {
    struct request request = {.verify = {.digests = true, .progress = show_step, .progress_data = cli}};
    _cleanup_report_ struct image_report *report = NULL;
    struct err err = {0};
    int status = read_options(cli, argc, argv, &request);
    if (status != CLI_DONE)
        return status;
    int r = image_verify(argv[optind], &request.verify, &report, &err);
    cli_progress(cli, "%s", "");
    if (r < 0)
        return cli_error(cli, r == -ENOENT || r == -ENOTDIR ? CLI_NOT_FOUND : CLI_FAILED, &err);
    if (request.boot)
        return boot(cli, argv[optind], &request, report);
    if (cli->json) {
        json_t *document = report_to_json(report);
        cli_print_json(document);
        json_decref(document);
    } else if (!cli->quiet) {
        report_to_text(report, isatty(STDOUT_FILENO), stdout);
    }
    return report->failures ? CLI_FAILED : CLI_DONE;
}

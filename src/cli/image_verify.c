#include <getopt.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "image/needs.h"
#include "image/verify.h"

static void show_step(const char *step, unsigned percent, void *data) {
    if (percent)
        cli_progress(data, "looking at %s: %u %%", step, percent);
    else
        cli_progress(data, "looking at %s", step);
}

/* Reads the digests only without --quick: seconds, where all else is some 100 ms. */
static const struct option options[] = {
    {"boot", no_argument, NULL, 'b'},
    {"quick", no_argument, NULL, 'q'},
    {"type", required_argument, NULL, 't'},
    {NULL, 0, NULL, 0},
};

int verb_image_verify(struct cli *cli, int argc, char **argv) {
    struct verify_options wanted = {.digests = true, .progress = show_step, .progress_data = cli};
    _cleanup_report_ struct image_report *report = NULL;
    struct err err = {0};
    enum image_type type;
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (option == 'q')
            wanted.digests = false;
        else if (option == 't' && image_type_parse(optarg, &type))
            wanted.type = optarg;
        else if (option == 't')
            return cli_usage(cli, "--type is cli or browser, not %s", optarg);
        else if (option == 'b')
            return cli_usage(cli, "--boot is not there yet: without it the image is looked into, not booted");
        else
            return cli_usage(cli, "mctl image verify does not know this option, or it needs a value (see mctl --help)");
    }
    if (optind != argc - 1)
        return cli_usage(cli, "mctl image verify needs one image: its folder, or its root file system");
    int r = image_verify(argv[optind], &wanted, &report, &err);
    cli_progress(cli, "%s", "");
    if (r < 0)
        return cli_error(cli, r == -ENOENT || r == -ENOTDIR ? CLI_NOT_FOUND : CLI_FAILED, &err);
    if (cli->json) {
        json_t *document = report_to_json(report);
        cli_print_json(document);
        json_decref(document);
    } else if (!cli->quiet) {
        report_to_text(report, isatty(STDOUT_FILENO), stdout);
    }
    return report->failures ? CLI_FAILED : CLI_DONE;
}

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "image/needs.h"

#define OUT_DEFAULT "/var/lib/firecracker/snapshots/base"

static const struct option options[] = {
    {"type", required_argument, NULL, 't'},
    {"out", required_argument, NULL, 'o'},
    {"screen", required_argument, NULL, 's'},
    {NULL, 0, NULL, 0},
};

static const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

/* guest/build-image does the work, and looks into what it made with this program before it takes the old image's
 * place. It tells its steps on standard error and leaves nothing but the image; with --json the document is what
 * mctl image verify says of it. */
int verb_image_build(struct cli *cli, int argc, char **argv) {
    const char *out = OUT_DEFAULT, *type = "browser", *screen = NULL;
    enum image_type parsed;
    enum image_screen parsed_screen;
    char program[512], self[512];
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (option == 'o')
            out = optarg;
        else if (option == 't' && image_type_parse(optarg, &parsed) && parsed != IMAGE_TYPE_TEST)
            type = optarg;
        else if (option == 't')
            return cli_usage(cli, "--type is cli or browser, not %s", optarg);
        else if (option == 's' && image_screen_parse(optarg, &parsed_screen))
            screen = optarg;
        else if (option == 's')
            return cli_usage(cli, "--screen is xvfb or tigervnc, not %s", optarg);
        else
            return cli_usage(cli, "mctl image build does not know this option, or it needs a value (see mctl --help)");
    }
    if (optind < argc)
        return cli_usage(cli, "mctl image build takes no %s", argv[optind]);
    if (screen && strcmp(type, "browser") != 0)
        return cli_usage(cli, "--screen is of an image with a desktop, not of the type %s", type);
    ssize_t len = readlink("/proc/self/exe", self, sizeof self - 1);
    struct err err = {0};
    if (len < 0 ||
        snprintf(program, sizeof program, "%s/build-image", setting("MC_GUEST", MC_GUEST)) >= (int)sizeof program) {
        err_set(&err, ENAMETOOLONG, "image.build", "the path of guest/build-image is too long");
        return cli_error(cli, CLI_FAILED, &err);
    }
    self[len] = '\0';
    const char *arguments[13] = {
        program, "--init", setting("MC_GUEST_INIT", MC_GUEST_INIT), "--type", type, "--out", out, "--verify", self};
    unsigned count = 9;
    if (cli->json)
        arguments[count++] = "--json";
    if (screen) {
        arguments[count++] = "--screen";
        arguments[count++] = screen;
    }
    execv(program, (char *const *)arguments);
    err_sys(&err, errno, "image.build", "run %s", program);
    err_hint(&err, "MC_GUEST says in which folder guest/build-image is");
    return cli_error(cli, CLI_FAILED, &err);
}

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "cli/cli.h"
#include "image/list.h"

#define OUT_DEFAULT "/var/lib/firecracker/snapshots/base"

static const struct option options[] = {
    {"out", required_argument, NULL, 'o'},
    {NULL, 0, NULL, 0},
};

static json_t *entry_json(const struct image_entry *e) {
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:I, s:i, s:o, s:s*}", "id", e->id, "path", e->path, "name",
                     e->name, "type", e->type, "kernel", e->kernel, "created_at", e->created_at, "current", e->current,
                     "bytes", (json_int_t)e->bytes, "vms", (int)e->vms, "good",
                     e->judged ? json_boolean(!*e->problem) : json_null(), "problem", *e->problem ? e->problem : NULL);
}

static void print_entry(const struct image_entry *e) {
    printf("%s %-28s %-8s %6llu MiB  %2u VMs  %s\n", e->current ? "*" : " ", e->id, e->type,
           (unsigned long long)(e->bytes >> 20), e->vms,
           !e->judged    ? "not verified yet"
           : *e->problem ? e->problem
                         : "good");
}

int verb_image_list(struct cli *cli, int argc, char **argv) {
    const char *out = OUT_DEFAULT;
    struct err err = {0};
    _cleanup_free_ struct image_entry *list = calloc(IMAGE_LIST_MAX, sizeof *list);
    opterr = 0;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (option != 'o')
            return cli_usage(cli, "mctl image list does not know this option, or it needs a value (see mctl --help)");
        out = optarg;
    }
    if (optind < argc)
        return cli_usage(cli, "mctl image list takes no %s", argv[optind]);
    int count = list ? image_list(out, list, &err) : err_sys(&err, ENOMEM, "image.list", "list %s", out);
    if (count < 0)
        return cli_error(cli, count == -ENOENT ? CLI_NOT_FOUND : CLI_FAILED, &err);
    json_t *images = json_array();
    for (int i = 0; i < count; i++) {
        if (!cli->json && !cli->quiet)
            print_entry(&list[i]);
        json_array_append_new(images, entry_json(&list[i]));
    }
    if (cli->json) {
        json_t *document = json_pack("{s:O}", "images", images);
        cli_print_json(document);
        json_decref(document);
    } else if (count == 0 && !cli->quiet) {
        printf("no image in %s: mctl image build makes one\n", out);
    }
    json_decref(images);
    return CLI_DONE;
}

/* mctl image verify --boot: the part that boots. Everything happens in a sandbox that nothing outlives (base/sandbox.h),
 * with the image's files bound into its tmpfs: the image's own folder is not written to. */
#include "cli/image_boot.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/sandbox.h"
#include "base/str.h"
#include "vm/boot_check.h"

#define SCRATCH_MIB 2048 /* at most: what the guest writes to its disk, and its console */

struct work {
    struct cli *cli;
    struct image_report *report;
    enum image_type type;
    int timeout_ms;
    void (*progress)(const char *step, unsigned percent, void *data);
};

/* mount --bind FOLDER/NAME TO/NAME */
static int bind_part(int folder_fd, const char *to, const char *name, struct err *err) {
    char from[300], path[400];
    snprintf(from, sizeof from, "/proc/self/fd/%d/%s", folder_fd, name);
    snprintf(path, sizeof path, "%s/%s", to, name);
    int r = file_write_new(path, "", 0, 0600);
    if (r == 0 && mount(from, path, NULL, MS_BIND, NULL) < 0)
        r = -errno;
    return r < 0 ? err_sys(err, -r, "boot.impossible", "take the image's %s", name) : 0;
}

/* What an image consists of; not what is kept beside it (verdicts, templates), nor links. */
static int bind_image(int folder_fd, const char *to, struct err *err) {
    static const char *const parts[] = {"manifest.json", "rootfs.ext4", "vmlinuz", "vmlinux", "initrd.img"};
    int r = mkdir(to, 0700) < 0 ? err_sys(err, errno, "boot.impossible", "make %s", to) : 0;
    for (size_t i = 0; r == 0 && i < sizeof parts / sizeof *parts; i++) {
        struct stat st;
        if (fstatat(folder_fd, parts[i], &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode))
            r = bind_part(folder_fd, to, parts[i], err);
    }
    return r;
}

static void show(struct cli *cli, struct image_report *report, json_t *facts) {
    if (cli->json) {
        json_t *document = report_to_json(report);
        json_object_set(document, "boot", facts ? facts : json_null());
        cli_print_json(document);
        json_decref(document);
    } else if (!cli->quiet) {
        if (facts)
            boot_facts_to_text(facts, report->failures > 0, stdout);
        report_to_text(report, isatty(STDOUT_FILENO), stdout);
    }
}

static int in_sandbox(void *data, const struct sandbox *sandbox) {
    struct work *w = data;
    char folder[128];
    json_t *facts = NULL;
    struct err err = {0};
    snprintf(folder, sizeof folder, "%s/image", sandbox->scratch);
    /* What this room's code has to say beside the report. */
    log_open(LOG_LEVEL_ERROR);
    struct boot_params params = {.folder = folder,
                                 .scratch = sandbox->scratch,
                                 .type = w->type,
                                 .timeout_ms = w->timeout_ms,
                                 .progress = w->progress,
                                 .progress_data = w->cli};
    int r = bind_image(sandbox->folder_fd, folder, &err);
    if (r == 0)
        r = boot_check(&params, w->report, &facts, &err);
    cli_progress(w->cli, "%s", "");
    if (r < 0 && strcmp(err.code, "boot.impossible") != 0)
        return cli_error(w->cli, err.errnum == EPERM || err.errnum == EACCES ? CLI_REFUSED : CLI_FAILED, &err);
    if (r < 0)
        report_fail(w->report, "boot.impossible", w->report->path, "no VM can be made of it",
                    "build it again: mctl image build", "it cannot be booted: %s", report_safe(err.detail));
    show(w->cli, w->report, facts);
    json_decref(facts);
    return w->report->failures ? CLI_FAILED : CLI_DONE;
}

int image_boot(struct cli *cli, const char *folder, enum image_type type, int timeout_ms, struct image_report *report,
               void (*progress)(const char *step, unsigned percent, void *data)) {
    struct work work = {cli, report, type, timeout_ms, progress};
    struct sandbox_params params = {.folder = folder, .scratch_mib = SCRATCH_MIB, .fn = in_sandbox, .data = &work};
    struct err err = {0};
    int status = CLI_FAILED;
    if (!*folder) {
        report_fail(report, "boot.impossible", report->path, "no VM can be made of it alone",
                    "name the folder of an image: mctl image list",
                    "a root file system alone cannot be booted: its kernel and initramfs lie beside it in an image");
        show(cli, report, NULL);
        return CLI_FAILED;
    }
    int r = sandbox_run(&params, &status, &err);
    if (r == 0)
        return status;
    cli_progress(cli, "%s", "");
    if (r == -EINTR)
        cli_error(cli, status, &err);
    return r == -EINTR ? status
                       : cli_error(cli, strcmp(err.code, "sandbox.refused") == 0 ? CLI_REFUSED : CLI_FAILED, &err);
}

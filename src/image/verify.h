/* Whether an image is what it should be: looks inside, with no mount, no root and no trust in what it says of itself.
 * The image may be anybody's; see ext4.h for how that is survived. */
#pragma once

#include "base/err.h"
#include "image/report.h"

struct verify_options {
    const char *type; /* "cli", "browser", "test"; NULL: what the image says, else what it looks like */
    bool digests;     /* hold all bytes against the manifest: reads everything, seconds */
    void (*progress)(const char *step, unsigned percent, void *data); /* may be NULL */
    void *progress_data;
};

/* path: an image's folder, or one whose "current" leads to it; a root file system beside its manifest; or a root file
 * system alone (then what only the other parts could tell is a note).
 * Return: 0 with a report, whatever it says (report->failures tells whether it is good), or -errno when there was
 * nothing to look at: "image.missing", "image.unreadable". The caller frees the report with report_free(). */
int image_verify(const char *path, const struct verify_options *options, struct image_report **ret, struct err *err);

/* The folder that image_verify() takes a path to mean; empty for a root file system alone. Errors: "image.missing". */
int image_find_folder(const char *path, char *ret_folder, size_t size, struct err *err);

/* A root file system alone, whatever lies beside it. */
int image_verify_root(const char *path, const struct verify_options *options, struct image_report **ret,
                      struct err *err);

/* The same without digests, for those who ask often: the answer is kept in the folder (verdict.json) until a part
 * changes its size, time or inode, or this program its rules.
 * Return: 0 good, or -EUCLEAN with "image.unfit" and the first failures in words. */
int image_verdict(const char *folder, struct err *err);

/* The verdict that is kept, without looking: "" in ret_why is good. Return: 0, or -errno: there is none that counts. */
int image_verdict_kept(const char *folder, char *ret_why, size_t size);

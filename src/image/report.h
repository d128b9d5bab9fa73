/* What the inspection of an image found: failures, each with what it breaks for a user and how it is mended, and notes
 * (what could not be judged, what is only worth knowing). Everything in it is text that may be shown: what came out of
 * the image is escaped. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define REPORT_FINDINGS_MAX 256

enum image_finding_role {
    IMAGE_FAILURE, /* the image must not be used */
    IMAGE_NOTE,
    IMAGE_FINDING_ROLE_COUNT,
};

const char *image_finding_role_name(enum image_finding_role role);

struct image_finding {
    enum image_finding_role role;
    const char *id; /* stable: "unit.not-enabled"; static */
    char *object;   /* the thing: "websockify.service", "/etc/hosts" */
    char *title;    /* what is wrong with it, a sentence */
    char *breaks;   /* what a user will see of it */
    char *mend;     /* what to do */
};

/* A package that the image's type needs, as it was found. */
struct image_package {
    char name[64], version[64];
};

#define REPORT_PACKAGES_MAX 64

struct image_report {
    char path[512];
    char type[16]; /* "browser", "cli", "test"; "" unknown */
    char name[96];
    char kernel[80]; /* "" where the image has none, or none could be read */
    uint64_t free_mib, size_mib;
    uint32_t free_inodes;
    struct image_package packages[REPORT_PACKAGES_MAX];
    unsigned package_count;
    int64_t duration_ms;
    bool digests; /* the bytes were held against the manifest */
    struct image_finding *findings;
    unsigned count, failures, dropped; /* dropped: did not fit */
};

/* fmt and what follows: the title. Each argument that came out of the image must be safe already, see report_safe(). */
void report_add(struct image_report *r, enum image_finding_role role, const char *id, const char *object,
                const char *breaks, const char *mend, const char *fmt, ...) __attribute__((format(printf, 7, 8)));

#define report_fail(r, ...) report_add(r, IMAGE_FAILURE, __VA_ARGS__)
#define report_note(r, ...) report_add(r, IMAGE_NOTE, __VA_ARGS__)

/* Text from the image, escaped, at most 200 bytes, in one of eight buffers of this thread that take turns. */
const char *report_safe(const char *text);

bool report_has(const struct image_report *r, const char *id, const char *object);

/* {"schema":"image-verify/1","good":…,"findings":[{"id","role","object","title","breaks","mend"}],…}. */
json_t *report_to_json(const struct image_report *r);
void report_to_text(const struct image_report *r, bool colour, FILE *to);

void report_free(struct image_report *r);
void report_cleanup(struct image_report **r);
#define _cleanup_report_ __attribute__((cleanup(report_cleanup)))

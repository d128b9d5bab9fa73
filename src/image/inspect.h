/* What the checks of an image share. Each check looks at one side of it and adds what it finds to the report; none
 * stops the others. A check returns 0, or -E2BIG/-ENOMEM when the inspection as a whole cannot go on. */
#pragma once

#include <jansson.h>

#include "image/ext4.h"
#include "image/needs.h"
#include "image/program.h"
#include "image/report.h"
#include "image/unit.h"

#define INSPECT_TEXT_MAX ((size_t)1 << 20) /* bytes of a configuration file */

struct account {
    char name[64], home[256];
    uint32_t uid;
};

#define ACCOUNTS_MAX 256

struct inspection {
    struct ext4 *fs;
    struct image_report *report;
    enum image_type type;
    enum image_screen screen; /* of a browser image */
    const char *folder;       /* NULL: a bare root file system */
    const char *rootfs;       /* path of the file */
    json_t *manifest;         /* borrowed; NULL without one */
    char init_kind;           /* of the initramfs: 'o' ours, 'f' another's, '?' not known */
    struct account accounts[ACCOUNTS_MAX];
    unsigned account_count;
    struct unit_graph units;
    struct program_cache programs;
    void (*progress)(const char *step, unsigned percent, void *data); /* may be NULL */
    void *progress_data;
};

/* How an image is mended when no smaller step would last: the recipe is where it comes from. */
#define MEND_REBUILD "build it again: mctl image build"

int check_files(struct inspection *in);    /* file system, free room, folders, hosts, resolver, fstab, identity */
int check_packages(struct inspection *in); /* dpkg's records against needs and manifest */
int check_accounts(struct inspection *in); /* users, passwords, keys, sshd; fills accounts */
int check_units(struct inspection *in);    /* units, their programs; fills units */
int check_network(struct inspection *in);  /* one source of configuration; after check_units() and check_kernel() */
int check_desktop(struct inspection *in);  /* ports that must meet, Chromium's policy */
int check_kernel(struct inspection *in);   /* kernel, initramfs, modules */
int check_manifest(struct inspection *in); /* parts, their sizes; fills init_kind's prerequisites */
int check_agent(struct inspection *in);    /* the agent's program against the manifest */
int check_digests(struct inspection *in);  /* the bytes of all parts: seconds */

/* Return: whether the path leads to something; errors that end the inspection are left to the next call. */
bool inspect_exists(struct inspection *in, const char *path);

/* ext4_read_file() of a configuration file, at most INSPECT_TEXT_MAX. NULL when it is not there or not readable. */
char *inspect_text(struct inspection *in, const char *path);

/* What the build wrote into the root about itself. key: "TYPE=", "RECIPE=" or "SCREEN=". Return: the value, which the
 * caller frees; NULL when it is not there. */
char *inspect_mark(struct inspection *in, const char *key);

const struct account *inspect_account(const struct inspection *in, const char *name);
bool inspect_needs(const struct inspection *in, const struct need *need);

/* Whether dpkg says that a package is installed. Valid after check_packages(). */
bool inspect_has_package(struct inspection *in, const char *name);

/* A digest of this room's sources, made by the build. */
extern const char image_rules[];

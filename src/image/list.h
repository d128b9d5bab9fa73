/* The images that a folder holds: the newest that is used, and older ones that are kept; and below it those of a type
 * that has its own (image_open_for()). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define IMAGE_LIST_MAX 64

struct image_entry {
    char id[80]; /* the build's folder */
    char path[512];
    char name[48], type[16], kernel[80], created_at[32]; /* "" where its manifest does not say */
    bool current;                                        /* what the next VM gets */
    uint64_t bytes;                                      /* that it takes on the disk */
    unsigned vms;                                        /* disks that stand on it */
    bool judged;                                         /* a verdict is kept beside it, and still counts */
    char problem[600];                                   /* "" good, or not judged */
};

/* Newest first. Return: how many, or -errno ("image.missing": the folder cannot be read). */
int image_list(const char *base_dir, struct image_entry ret[IMAGE_LIST_MAX], struct err *err);

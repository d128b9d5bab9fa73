/* Whether a program in an image could be started: the file, its interpreter, its libraries. */
#pragma once

#include <stdint.h>

#include "image/ext4.h"

struct program_problem {
    const char *id;   /* "exec-missing", "exec-not-executable", "exec-interpreter", "exec-library", "exec-format" */
    char object[256]; /* the file that is missing or wrong; escaped by nobody */
    char what[400];   /* a clause about the program: "is not there" */
};

/* What was found good once is not looked at again. Zero-initialise. */
struct program_cache {
    char **good;
    unsigned count;
};
void program_cache_free(struct program_cache *cache);

/* path: absolute, or a bare name that is looked for as systemd does. uid: who starts it.
 * Return: 0 it can be started, 1 it cannot, with the first reason, or -E2BIG, -ENOMEM. */
int program_check(struct ext4 *fs, struct program_cache *cache, const char *path, uint32_t uid,
                  struct program_problem *ret);

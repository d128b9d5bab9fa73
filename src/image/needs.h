/* What an image of a type must hold, and what a user sees when it does not: the tables that the checks go by. */
#pragma once

#include <stdbool.h>

enum image_type {
    IMAGE_TYPE_CLI,     /* AI command-line tools: small, no X */
    IMAGE_TYPE_BROWSER, /* the desktop in which a tool is logged in */
    IMAGE_TYPE_TEST,    /* the tests' tiny guest: busybox, no packages, no systemd */
    IMAGE_TYPE_COUNT,
};

/* What a desktop's screen is: guest/recipe has a folder of each name. */
enum image_screen {
    IMAGE_SCREEN_XVFB,     /* Xvfb, and x11vnc shows it */
    IMAGE_SCREEN_TIGERVNC, /* Xtigervnc, which is both */
    IMAGE_SCREEN_COUNT,
};

const char *image_type_name(enum image_type type);
const char *image_screen_name(enum image_screen screen);

/* Return: false for a name that is none. */
bool image_type_parse(const char *name, enum image_type *ret);
bool image_screen_parse(const char *name, enum image_screen *ret);

struct need {
    unsigned where; /* bits, of needs.c */
    const char *name;
    const char *breaks;
};

/* Whether an image of that type, with that screen where it is a browser image, needs it. */
bool need_is_of(const struct need *need, enum image_type type, enum image_screen screen);

/* Each list ends with an entry without a name. */
extern const struct need need_packages[]; /* Debian's names; one that ends in "-": any that begins so */
extern const struct need need_units[];    /* must be reached from default.target, and their programs be there */
extern const struct need need_users[];    /* other than root */
extern const struct need need_files[];    /* must be there and hold something */
extern const struct need need_programs[]; /* the same, and every user can start them; but those of units */
extern const struct need need_folders[];  /* mount points and such: must be folders */

/* The least free room that a guest needs for what it writes. */
unsigned need_free_mib(enum image_type type);
unsigned need_free_inodes(enum image_type type);

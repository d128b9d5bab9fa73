/* systemd units of an image, read as systemd would: fragment, drop-ins, *.wants; and all that default.target pulls in.
 * Source: systemd.unit(5), systemd.service(5). What is not read: generators, specifiers. */
#pragma once

#include "image/ext4.h"

#define UNIT_NAME_MAX 128
#define UNIT_LINES_MAX 16  /* commands of one unit */
#define UNIT_WANTS_MAX 512 /* names that one unit pulls in */
#define UNITS_MAX 2048
#define UNIT_CONDITIONS_MAX 32

enum unit_state {
    UNIT_MISSING, /* no file of that name */
    UNIT_MASKED,
    UNIT_BROKEN, /* its file cannot be read, or is longer than 256 KiB */
    UNIT_LOADED,
};

/* ConditionPathExists=|!/x: type "PathExists", value "|!/x". What they mean: condition.h. */
struct unit_condition {
    bool is_assert;
    char type[32];
    char *value;
};

struct unit {
    char name[UNIT_NAME_MAX];
    enum unit_state state;
    bool own;        /* its file is in /etc/systemd/system: ours, not a package's */
    bool enabled;    /* of a graph: pulled in by a link, not only by another's Wants=; or activated by one that is so */
    char *user;      /* User=, NULL: root */
    char *activates; /* what a socket, path or timer starts, where it says so */
    char *start[UNIT_LINES_MAX];  /* ExecStart=, with its prefixes */
    char *before[UNIT_LINES_MAX]; /* ExecStartPre= */
    unsigned start_count, before_count;
    struct unit_condition conditions[UNIT_CONDITIONS_MAX];
    unsigned condition_count;
    char *wants[UNIT_WANTS_MAX];
    bool by_link[UNIT_WANTS_MAX]; /* a link in NAME.wants or NAME.requires, as systemctl enable makes it */
    unsigned wants_count;
};

/* Reads one unit; a name that is not there gives UNIT_MISSING. Return: 0, -ENOMEM, -E2BIG. */
int unit_load(struct ext4 *fs, const char *name, struct unit **ret);
void unit_free(struct unit *unit);

struct unit_graph {
    struct unit **unit;
    unsigned count;
};

/* default.target and all that it pulls in, directly or not; masked and missing units are in it too. */
int unit_graph_load(struct ext4 *fs, struct unit_graph *ret);
void unit_graph_free(struct unit_graph *graph);

/* NULL: nothing pulls it in. */
const struct unit *unit_graph_find(const struct unit_graph *graph, const char *name);

/* Whether it is pulled in and would start. */
bool unit_graph_starts(const struct unit_graph *graph, const char *name);

/* Control groups for children of this program: a folder of its own for each, with limits. Version 2 where the host has
 * its controllers there, version 1 where they are there, and a mixture where the host has one.
 *
 * Everything is made below the caller's own group (or below one that is named), which must be delegated to it. With
 * version 2 a group that gives controllers to its children may hold no process itself: what is found in it is moved to
 * its child "controller". Source: Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

#define CGROUP_PATH_MAX 320
#define CGROUP_HIERARCHIES 3 /* cpu, memory and pids may each have one of their own */

struct cgroup_hierarchy {
    char path[CGROUP_PATH_MAX]; /* the folder in which groups are made */
    bool is_v2;
    bool cpu, memory, pids; /* what is limited here */
};

struct cgroup {
    struct cgroup_hierarchy hierarchy[CGROUP_HIERARCHIES];
    int count; /* 0: nothing can be limited on this host */
};

struct cgroup_limits {
    uint64_t memory_bytes;
    uint32_t cpu_percent; /* of one CPU: 150 is one and a half */
    uint32_t pids;        /* processes and threads */
};

/* Finds where groups can be made, and makes the folder `name` there. `parent` names a group by its path below the mount
 * ("/system.slice/x.service"); empty: the caller's own. Return: 0, also with count 0, when nothing can be had:
 * *ret_words then says why, else "cpu memory pids (cgroup v2, /sys/fs/cgroup/…)". */
void cgroup_find(const char *parent, const char *name, struct cgroup *ret_cgroup, char *ret_words, size_t words_size);

/* The paths of one group, one a line: written down before it is made, they say what there is to remove. */
void cgroup_paths(const struct cgroup *cgroup, const char *name, char *ret_text, size_t size);

/* Makes a group with its limits. *ret_fds are its cgroup.procs (the caller closes them): who writes "0" there joins.
 * On failure nothing of it is left. Return: how many descriptors, or -errno. */
int cgroup_make(const struct cgroup *cgroup, const char *name, const struct cgroup_limits *limits,
                int ret_fds[CGROUP_HIERARCHIES], struct err *err);

/* Who is in a group, by its path. Return: how many were written, at most max. */
size_t cgroup_members(const char *path, pid_t *ret_pids, size_t max);

/* What its kernel counted: processes killed for want of memory, and the most memory it had at once. 0 where not known. */
void cgroup_memory_events(const char *path, uint64_t *ret_oom_kills, uint64_t *ret_peak_bytes);

/* Removes an empty group. One that is gone is no error. Return: 0, -EBUSY while somebody is in it, -errno. */
int cgroup_remove(const char *path);

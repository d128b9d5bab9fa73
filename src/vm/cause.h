/* Why a VM ended, as far as what it left can tell. Pure. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define CAUSE_WORDS_MAX 240

struct cause_facts {
    const char *console; /* its end, a terminal's sequences taken out; never NULL */
    const char *vmm_log; /* likewise */
    const char *process; /* "exit status 0", "killed by signal 9 (Killed)" */
    uint64_t oom_kills;  /* in its control group */
    uint32_t memory_mib; /* the guest's */
    const char *halted;  /* why it stood still when it ended, in words; empty: it ran. Never NULL */
    bool was_asked;      /* somebody wanted it to end */
    bool disk_is_full;   /* the file system of its folder has no room */
};

struct cause {
    char code[24];               /* "guest.oom"; empty: not known */
    char words[CAUSE_WORDS_MAX]; /* a sentence without its full stop, safe to print */
};

/* The codes: guest.oom guest.no-root guest.panic guest.oom-kill guest.disk-error guest.power-off guest.reboot host.oom host.disk-full
 * vmm.sandbox vmm.killed vmm.crashed vmm.refused. */
struct cause cause_find(const struct cause_facts *facts);

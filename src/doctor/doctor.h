/* The network doctor, as one call: collect, probe, collect again, judge. Needs no daemon; without root it says what it
 * can. */
#pragma once

#include "base/err.h"
#include "doctor/probe/probe.h"
#include "doctor/rules/finding.h"
#include "doctor/snapshot.h"

struct doctor_options {
    const char *netns;  /* name; "" the caller's own */
    const char *bridge; /* "" to find it */
    const char *tap;    /* "" every TAP of the bridge */
    const char *vm;     /* a VM's id or the beginning of one; "" none */
    uint32_t guest_ip;  /* 0: not given */
    bool has_mac;
    struct net_mac guest_mac;
    uint16_t guest_port; /* 0: not given */
    const char *state_dir;
    const char *socket;        /* of the daemon's API, to ask guests' agents by; NULL or "": nobody is asked */
    const struct target *keep; /* looked at in any case: what a repair of one of them made of the others. NULL: none */
    uint32_t keep_count;
    bool no_probe, no_trace;
    const char *disabled; /* finding ids that are not given, commas between; for tests of unknown.<hop>. NULL: none */
};

/* What a doctor that was killed had begun to repair, and this one took back. */
struct doctor_recovered {
    char journal[REPAIR_ID_SIZE]; /* empty: there was nothing */
    char finding[64];
    char error[256]; /* why it could not be taken back; empty */
};

/* Everything of one run: what was collected, seen and concluded. */
struct doctor_case {
    struct snapshot *before, *after; /* after NULL: nothing was asked */
    struct probe_result *probe;      /* NULL: nothing was asked */
    struct target *targets;
    int *probe_indexes; /* of each target; -1: not asked */
    struct judgement *judgements;
    uint32_t count;
    int64_t duration_ms;
    const char *disabled;   /* of the options */
    bool wanted_probe;      /* it was not forbidden */
    struct err probe_error; /* why nothing was asked; errnum 0 */
    struct doctor_recovered recovered;
    char not_repaired[96]; /* a repair was asked for by name and there was nothing to do: why; empty */
};

/* Errors: "doctor.no-namespace" and what netns.h says; "doctor.no-such-vm" -ENOENT; "doctor.failed". The caller frees
 * *ret. What cannot be read or asked is in the case, no error. */
int doctor_run(const struct doctor_options *options, struct doctor_case **ret, struct err *err);
void doctor_case_free(struct doctor_case *c);
void doctor_case_freep(struct doctor_case **c);
#define _cleanup_doctor_case_ __attribute__((cleanup(doctor_case_freep)))

/* Repairs what may be repaired: which "" the safe ones, one by one; else the finding of that id, safe or not. Each is
 * applied, proven by looking again, and taken back when it did not help; what a doctor that was killed had begun is taken
 * back before. *c becomes the last case, with what was repaired in it. journal_dir: where the journal is kept. Errors
 * are those of doctor_run(), "repair.journal" and "repair.busy" (nothing was changed then); a repair that failed is
 * said in its finding. */
int doctor_repair(const struct doctor_options *options, const char *which, const char *journal_dir,
                  struct doctor_case **c, struct err *err);

/* Takes a repair back. socket: as in doctor_options. Errors: repair/repair.h. */
int doctor_undo(const char *netns, const char *socket, const char *journal_dir, const char *id, struct err *err);

/* Looks, tells, waits for a change of links, ports, addresses, routes, rules, fixed neighbours, qdiscs, filters,
 * nftables or sysctls, looks again, and tells when the findings are others; until told() returns false or out_fd (where it is told;
 * -1: none) is hung up. What the state alone shows is told first, what asking shows a little later; no change, no work.
 * Return: -errno; -EPIPE: nobody reads any more. */
int doctor_watch(const struct doctor_options *options, int out_fd,
                 bool (*told)(const struct doctor_case *c, void *data), void *data, struct err *err);

/* A case as a file's text and back: the same findings come out of it on any machine. Error: "doctor.bad-snapshot". */
char *doctor_case_save(const struct doctor_case *c, size_t *ret_len); /* the caller frees; NULL without memory */
int doctor_case_load(const char *text, size_t len, struct doctor_case **ret, struct err *err);

/* Judges what was collected (again). */
int doctor_case_judge(struct doctor_case *c, struct err *err);

/* 0 healthy, 10 a root cause, 11 all root causes repaired and proven, 1 the path could not be judged. */
int doctor_exit_status(const struct doctor_case *c);
bool doctor_is_healthy(const struct doctor_case *c);

/* What a VM leaves: its files, how its network was at that moment, its story; sealed in STATE/evidence/vm-<uuid>/.
 * Sealed means: read-only, and with the digest of each file in summary.json, which is written last. Any thread. */
#pragma once

#include <stdint.h>

#include "base/err.h"
#include "model/vm.h"
#include "vm/cause.h"
#include "vm/confine.h"
#include "vm/examine.h"

enum evidence_doctor {
    EVIDENCE_DOCTOR,        /* a snapshot of this VM's network is saved */
    EVIDENCE_DOCTOR_SHARED, /* one of all VMs, with others that end now */
    EVIDENCE_DOCTOR_NOT,
};

struct evidence {
    struct vm vm;          /* as it was before its end */
    const char *from, *to; /* its folder, and where the evidence goes */
    const char *process;   /* how its VMM ended, in words */
    const char *state;     /* the state that follows */
    const char *actor, *reason;
    const char *halted; /* why it stood still when it ended; empty: it ran */
    const char *events; /* the last ones, a JSON array's text; may be NULL */
    struct cause cause;
    struct confine_figures figures;
    enum evidence_doctor doctor;
    const char *no_doctor; /* why there is none */
    int64_t begun_ms;      /* monotonic: the end */
    int64_t ended_ms;
};

/* While TAP and groups are still there: saves the network's state and the groups' figures into the VM's folder. What
 * cannot be had is named in a file of its place. */
void evidence_collect(struct examine *examine, struct evidence *e);

/* Reads the folder's console and log for a cause. */
void evidence_judge(struct evidence *e, bool was_asked);

/* Moves everything that tells the VM's story out of its folder, and seals it. What a former attempt moved already stays.
 * Return: 0 or -errno; then nothing is lost, and it can be tried again. */
int evidence_seal(const struct evidence *e);

/* Removes the oldest evidence until what is left is younger than max_age_ms and not more than max_bytes. Return: how many
 * VMs' evidence went. */
unsigned evidence_expire(const char *folder, int64_t max_age_ms, uint64_t max_bytes);

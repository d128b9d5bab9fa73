/* From facts and what was seen to findings. Pure: the same snapshots and probe results give the same judgement on any
 * machine.
 *
 * Order of thought: (1) path.c says for each question that was asked how far it came and at which hops its loss can
 * have happened; (2) the rules of links.c, bridge.c, filters.c, host.c, egress.c look at the state and say which
 * questions each oddity would kill, for sure or perhaps; (3) rank.c keeps as root causes those that kill something that
 * is dead, or that was not asked and must die; drops those that the living paths contradict; (4) guest.c names what is
 * left when the frames were seen to reach the VM; (5) what still has no cause becomes unknown.<hop>. */
#pragma once

#include "doctor/probe/probe.h"
#include "doctor/rules/finding.h"
#include "doctor/rules/nft_eval.h"
#include "doctor/snapshot.h"

/* Shared by all targets of one run. */
struct judge_host {
    const struct snapshot *before, *after; /* after may be NULL */
    const struct probe_result *probe;      /* NULL: nothing was asked */
    struct nft_index index;                /* of before */
    const char *disabled;                  /* ids that are not to be given, commas between; NULL: none */
};

int judge_open(const struct snapshot *before, const struct snapshot *after, const struct probe_result *probe,
               struct judge_host *ret);
void judge_close(struct judge_host *host);

/* Judges one target. probe_index: its place in probe->targets; -1: it was not asked. The caller frees the judgement.
 * Return: 0 or -ENOMEM. */
int judge_target(const struct judge_host *host, const struct target *target, int probe_index, struct judgement *ret);

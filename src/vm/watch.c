/* A running VM that does not answer is never ended for it: the doctor says what is wrong with its path. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/str.h"
#include "base/time.h"
#include "vm/machine.h"

#define EXAMINE_INTERVAL_MS 60000 /* of one VM; all VMs share one worker, so there is one doctor at a time */

struct examination {
    struct vms *vms;
    char vm_id[VM_ID_TEXT];
    enum examine_result result;
    char words[EXAMINE_WORDS_MAX];
};

static void work(void *userdata) {
    struct examination *job = userdata;
    job->result = examine_path(&job->vms->examine, job->vm_id, job->words);
}

/* The VM may have answered meanwhile, or ended. */
static void done(void *userdata) {
    struct examination *job = userdata;
    struct machine *m = machine_find(job->vms, job->vm_id);
    if (m) {
        m->is_examined = false;
        bool is_down = !m->is_over && m->vm.state == VM_STATE_RUNNING && m->failures > 0;
        if (is_down && job->result == EXAMINE_FINDING) {
            char words[VM_REASON_MAX];
            snprintf(words, sizeof words, "%s; %.90s", job->words, m->last_probe);
            machine_set_reachable(m, false, words);
        } else if (is_down && job->result == EXAMINE_REACHABLE) {
            log_event(LOG_LEVEL_INFO, (struct log_about){.event = "examined", .vm_id = m->vm.id},
                      "the doctor reaches it, though a probe did not: %s", m->last_probe);
        }
    }
    free(job);
}

void machine_examine(struct machine *m) {
    int64_t now_ms = time_monotonic_ms();
    if (m->is_examined || (m->examined_ms && now_ms - m->examined_ms < EXAMINE_INTERVAL_MS))
        return;
    struct examination *job = calloc(1, sizeof *job);
    if (!job)
        return;
    job->vms = m->vms;
    str_copy(job->vm_id, sizeof job->vm_id, m->vm.id);
    if (workers_submit(m->vms->examiners, work, done, job) < 0) {
        free(job);
        return;
    }
    m->is_examined = true;
    m->examined_ms = now_ms;
}

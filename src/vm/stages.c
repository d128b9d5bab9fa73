/* How far a VM's boot is, as events with times: mctl vm why then tells where the seconds went. What a
 * probe finds is seen when the next one is over (probe_interval, probe_timeout); the console is looked at before each. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/str.h"
#include "base/time.h"
#include "vm/machine.h"

static const struct {
    const char *event, *words, *brief;
} stages[MACHINE_STAGES] = {
    [STAGE_KERNEL] = {"kernel-started", "its kernel spoke", "kernel"},
    [STAGE_NETWORK] = {"network-answered", "its network answered", "network"},
    [STAGE_AGENT] = {"agent-ready", "", "agent"}, /* told by agent.c, each time */
    [STAGE_DESKTOP] = {"desktop-answered", "RFB answered behind its WebSocket", "desktop"},
};

void machine_note(struct machine *m, enum log_level level, const char *name, const char *reason) {
    struct err err = {0};
    struct store_event e = {.at_ms = time_realtime_ms(), .actor = "controller"};
    str_copy(e.event, sizeof e.event, name);
    str_copy(e.reason, sizeof e.reason, reason);
    log_event(level, (struct log_about){.event = e.event, .vm_id = m->vm.id}, "%s", reason);
    if (store_vm_update(m->vms->store, &m->vm, &e, &err) < 0)
        log_error("%s: %s", m->vm.id, err.detail);
}

void machine_reach(struct machine *m, enum machine_stage stage) {
    char reason[VM_REASON_MAX];
    /* What an earlier daemon has seen of this boot is in the story already. */
    if (m->vm.state != VM_STATE_BOOTING || !m->is_fresh || m->stage_ms[stage] > 0)
        return;
    int64_t ms = time_monotonic_ms() - m->boot_begun_ms;
    if (stage != STAGE_KERNEL)
        machine_look_at_console(m); /* what came first is told first */
    m->stage_ms[stage] = ms > 0 ? ms : 1;
    if (stage == STAGE_AGENT)
        return;
    snprintf(reason, sizeof reason, "%s %.1f s after its VMM's start", stages[stage].words, (double)ms / 1000);
    machine_note(m, LOG_LEVEL_INFO, stages[stage].event, reason);
}

void machine_look_at_console(struct machine *m) {
    char path[VMS_PATH_MAX + 16];
    struct stat st;
    if (m->vm.state != VM_STATE_BOOTING || m->stage_ms[STAGE_KERNEL] > 0)
        return;
    machine_user_folder(m->vms, m->vm.id, path);
    str_copy(path + strlen(path), 16, "/console.log");
    if (stat(path, &st) == 0 && st.st_size > 0)
        machine_reach(m, STAGE_KERNEL);
}

void machine_tell_boot(const struct machine *m, char *ret_words, size_t size) {
    struct strbuf words = {.max = size - 1};
    const char *between = ": ";
    if (m->is_fresh)
        strbuf_addf(&words, "booted in %.1f s", (double)(time_monotonic_ms() - m->boot_begun_ms) / 1000);
    for (int i = 0; i < MACHINE_STAGES; i++) {
        if (m->stage_ms[i] == 0)
            continue;
        strbuf_addf(&words, "%s%s after %.1f s", between, stages[i].brief, (double)m->stage_ms[i] / 1000);
        between = ", ";
    }
    str_copy(ret_words, size, words.data ? words.data : "");
    strbuf_free(&words);
}

/* The agent in a VM's guest, as far as the lifecycle is concerned: that it answers is part of "running" where the image
 * has one, when it came and went is in the VM's story, and what it said last is kept as evidence. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"
#include "base/time.h"
#include "vm/hibernate.h"

#define AGENT_FILE "agent.json"
#define ASK_TIMEOUT_MS 20000
/* A guest can make its agent come and go; the story is not for it to fill. */
#define EVENTS_MAX 32

static void note(struct machine *m, const char *name, const char *reason) {
    if (++m->agent_events <= EVENTS_MAX)
        machine_note(m, LOG_LEVEL_INFO, name, reason);
}

/* ---- what is kept ---- */

static void write_facts(struct machine *m) {
    char folder[VMS_PATH_MAX], path[VMS_PATH_MAX + 16], at[TIME_RFC3339_SIZE];
    machine_user_folder(m->vms, m->vm.id, folder);
    snprintf(path, sizeof path, "%s/" AGENT_FILE, folder);
    time_format_rfc3339(time_realtime_ms(), at);
    json_object_set_new(m->agent_facts, "at", json_string(at));
    json_object_set_new(m->agent_facts, "note", json_string("said by the guest itself"));
    char *text = json_dumps(m->agent_facts, JSON_INDENT(1));
    int r = text ? file_write_atomic(path, text, strlen(text), 0600) : -ENOMEM;
    if (r < 0)
        log_warning("%s: write %s: %s", m->vm.id, path, strerror(-r));
    free(text);
}

static void ask_next(struct machine *m);

static void on_fact(void *userdata, json_t *ok, const struct err *err) {
    struct machine *m = userdata;
    static const char *const names[] = {"health", "network", "kernel.log"};
    m->agent_job = NULL;
    json_object_set_new(m->agent_facts, names[m->agent_fact], ok ? json_incref(ok) : json_string(err->detail));
    m->agent_fact++;
    ask_next(m);
}

/* One after the other: the channel is for others too. */
static void ask_next(struct machine *m) {
    static const char *const names[] = {"health", "network", "kernel.log"};
    static const struct agent_handler handler = {.done = on_fact};
    if (m->agent_fact < 3 && agent_begin(m->agent, json_pack("{s:s}", "op", names[m->agent_fact]), ASK_TIMEOUT_MS,
                                         &handler, m, &m->agent_job, NULL) == 0)
        return;
    if (m->agent_fact > 0)
        write_facts(m);
    json_decref(m->agent_facts);
    m->agent_facts = NULL;
}

void machine_agent_collect(struct machine *m) {
    if (!m->agent || m->agent_facts || agent_state(m->agent) != AGENT_READY)
        return;
    m->agent_facts = json_object();
    m->agent_fact = 0;
    ask_next(m);
}

/* ---- its state ---- */

static void on_changed(void *userdata, enum agent_state state, const char *words) {
    struct machine *m = userdata;
    char reason[VM_REASON_MAX];
    switch (state) {
    case AGENT_READY:
        machine_reach(m, STAGE_AGENT);
        /* The guest's own figure is its word alone; ours is beside it. */
        snprintf(reason, sizeof reason, "%s; the agent started %.1f s after the guest's kernel", words,
                 (double)agent_started_ms(m->agent) / 1000);
        note(m, "agent-ready", agent_started_ms(m->agent) >= 0 ? reason : words);
        resume_prepare(m);
        /* One whose memory was loaded was asked when it booted; one of a template is when it runs: who waits for it comes first. */
        if (!(m->vm.state == VM_STATE_RESUMING && m->is_as_before) && !(m->vm.state == VM_STATE_BOOTING && m->is_warm))
            machine_agent_collect(m);
        return;
    case AGENT_CONNECTING:
        note(m, "agent-lost", words);
        return;
    case AGENT_INCOMPATIBLE:
        note(m, "agent-incompatible", words);
        return;
    }
}

/* QEMU was given one that a daemon made. */
void machine_agent_channel(const struct vm *vm, struct agent_params *ret) {
    const struct vmm_ops *ops = vmm_find(vm->vmm);
    ret->socket = ops->agent_socket;
    ret->vsock_port = ops->agent_vsock_port;
    ret->uid = ops->agent_vsock_port ? vm->uid : 0;
    ret->pid = ops->agent_vsock_port ? vm->pid : 0;
}

void machine_agent_start(struct machine *m) {
    char folder[VMS_PATH_MAX], path[VMS_PATH_MAX + 32];
    const struct vmm_ops *ops = vmm_find(m->vm.vmm);
    struct err err = {0};
    machine_user_folder(m->vms, m->vm.id, folder);
    if (m->agent || !ops || !ops->agent_socket)
        return;
    snprintf(path, sizeof path, "%s/" MACHINE_AGENT_MARK, folder);
    if (access(path, F_OK) < 0)
        return;
    struct agent_params params = {
        .loop = m->vms->loop, .folder = folder, .fd = fd_steal(&m->agent_fd), .changed = on_changed, .userdata = m};
    machine_agent_channel(&m->vm, &params);
    if (agent_new(&params, &m->agent, &err) < 0)
        log_error("%s: %s", m->vm.id, err.detail);
}

int machine_agent_connect(const struct vm *vm, const char *folder) {
    const struct vmm_ops *ops = vmm_find(vm->vmm);
    char path[VMS_PATH_MAX + 32];
    int fd = -1;
    snprintf(path, sizeof path, "%s/" MACHINE_AGENT_MARK, folder);
    if (ops && ops->agent_socket && !ops->agent_vsock_port && access(path, F_OK) == 0)
        agent_connect(folder, ops->agent_socket, 0, 0, &fd);
    return fd;
}

void machine_agent_stop(struct machine *m) {
    agent_job_cancel(m->agent_job);
    m->agent_job = NULL;
    resume_stop_preparing(m);
    agent_free(m->agent);
    m->agent = NULL;
    json_decref(m->agent_facts);
    m->agent_facts = NULL;
}

/* It must have told how the guest is, not only that it is there. */
bool machine_agent_awaited(struct machine *m) {
    if (!m->agent)
        return false;
    bool is_ready = agent_state(m->agent) == AGENT_READY;
    if (is_ready && agent_health(m->agent))
        return false;
    snprintf(m->last_probe, sizeof m->last_probe, "its network answers, but its agent does not%s: %.120s",
             is_ready ? " tell its health" : "", agent_words(m->agent));
    return true;
}

struct agent *vms_agent(struct vms *vms, const char *id) {
    struct machine *m = machine_find(vms, id);
    return m ? m->agent : NULL;
}

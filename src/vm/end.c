/* The end of a VM, whatever its cause. Theory of operation:
 *
 * It is the work of a worker, in an order that a crash may cut anywhere: until the record says that the VM has ended, the
 * next start finds it among the living and ends it again, and every step below is done already or can be done again.
 *
 *   1. nobody is left who could use what it has: the VMM is killed by its pidfd, and who is in its control groups
 *   2. how things are now is written into its folder, and a cause is looked for
 *   3. TAP, disks and control groups go
 *   4. on the loop's thread: whom the VM served is told, and may write into the folder (vms_on_over())
 *   5. the evidence is moved and sealed, the folder goes
 *   6. on the loop's thread: state, reason and event in one transaction; then its address is free
 *
 * What cannot be done now (to kill a process that the kernel holds, to write on a full disk) is tried again each second: until then
 * the VM is there, over, and holds its address. */
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/time.h"
#include "vm/evidence.h"
#include "vm/machine.h"
#include "vm/saved.h"

#define AGAIN_MS 1000
#define KILL_TIMEOUT_MS 5000
#define SNAPSHOTS_AT_ONCE 8 /* more endings than that at a time share the doctor's snapshots */
#define EVENTS_KEPT 50
#define UNKNOWN_END "how it ended is not known: an earlier daemon had started it"

struct ending {
    struct ending *next; /* of vms->unsealed */
    struct vms *vms;
    struct machine *m; /* NULL: its end is stored already */
    int pidfd;         /* the machine's; -1: none */
    bool was_asked;
    char folder[VMS_PATH_MAX], evidence[VMS_PATH_MAX];
    char process[96], actor[STORE_ACTOR_MAX], reason[VM_REASON_MAX], halted[VM_REASON_MAX];
    char *events;
    struct evidence e;
    int result; /* 0, or why it has to be tried again */
    char trouble[320];
};

static void free_ending(struct ending *job) {
    free(job->events);
    free(job);
}

static int trouble(struct ending *job, int r, const char *what, const char *detail) {
    snprintf(job->trouble, sizeof job->trouble, "%s: %.200s", what, detail);
    return r;
}

/* 1. */
static int end_processes(struct ending *job) {
    struct pollfd p = {.fd = job->pidfd, .events = POLLIN};
    if (job->pidfd >= 0) {
        bool is_ours = poll(&p, 1, 0) == 0;
        if (is_ours) {
            proc_signal(job->pidfd, SIGKILL);
            if (poll(&p, 1, KILL_TIMEOUT_MS) == 0)
                return trouble(job, -EBUSY, "its VMM does not end though it was killed", "the kernel holds it");
        }
        proc_reap(job->pidfd, job->process, sizeof job->process);
        /* What we did to it says nothing about why. */
        if (is_ours && str_starts(job->process, "killed by signal 9"))
            str_copy(job->process, sizeof job->process, "killed by the controller");
    }
    return confine_kill(job->vms->confine, job->folder, job->e.vm.id, KILL_TIMEOUT_MS) < 0
               ? trouble(job, -EBUSY, "a process in its control group does not end", "the kernel holds it")
               : 0;
}

/* 3. What cannot be removed is told. A TAP that a stranger holds stays, and goes at a later start: the VMM itself is
 * gone for certain by now. */
static void remove_parts(struct ending *job) {
    static const char *const names[] = {"disk.qcow2", VMM_TEMPLATE_DISK, "base.ext4", "qmp.sock"};
    struct err err = {0};
    int r = network_tap_remove(job->vms->network, job->e.vm.tap, job->e.vm.id, &err);
    if (r < 0)
        log_warning("%s: %s", job->e.vm.id, err.detail);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[VMS_PATH_MAX + 24];
        snprintf(path, sizeof path, "%s/%s", job->folder, names[i]);
        unlink(path);
    }
    saved_drop(job->folder, NULL); /* a user's memory is no evidence, and this is all that stays on a full disk */
    r = confine_remove(job->vms->confine, job->folder, job->e.vm.id);
    if (r < 0)
        log_warning("%s: remove its control group: %s", job->e.vm.id, strerror(-r));
}

/* A cause says more than what the controller saw of it. */
static void put_cause_first(struct ending *job) {
    char reason[VM_REASON_MAX];
    if (!*job->e.cause.words || job->was_asked)
        return;
    snprintf(reason, sizeof reason, "%.239s: %.150s", job->e.cause.words, job->reason);
    str_copy(job->reason, sizeof job->reason, reason);
}

static void work(void *userdata) {
    struct ending *job = userdata;
    job->result = end_processes(job);
    if (job->result < 0)
        return;
    job->e.ended_ms = time_realtime_ms();
    confine_measure(job->vms->confine, job->folder, job->e.vm.id, &job->e.figures);
    evidence_collect(&job->vms->examine, &job->e);
    evidence_judge(&job->e, job->was_asked);
    put_cause_first(job);
    remove_parts(job);
}

/* 5. */
static void seal(void *userdata) {
    struct ending *job = userdata;
    int r = evidence_seal(&job->e);
    if (r < 0) {
        /* Evidence is never destroyed, and a VM can end on a full disk: the next start of the controller seals it. */
        log_error("%s: its evidence stays in %s, it could not be sealed: %s", job->e.vm.id, job->folder, strerror(-r));
        return;
    }
    r = dir_remove(job->folder);
    if (r < 0)
        log_warning("%s: remove %s: %s", job->e.vm.id, job->folder, strerror(-r));
}

static void try_again(struct machine *m, loop_fn *fn) {
    if (m->again)
        loop_timer_free(m->again);
    m->again = NULL;
    if (loop_timer_new(m->vms->loop, AGAIN_MS, fn, m, &m->again) < 0)
        log_error("%s: no timer to try again", m->vm.id);
    machine_tell(m); /* who waits for its end is told that it does not come */
}

/* 6. A store that cannot be written now (a full disk) is tried again. */
static void write_end(void *userdata) {
    struct machine *m = userdata;
    struct err err = {0};
    int r = machine_change(m, m->owed_event, m->stop_actor, m->owed_reason, &err);
    if (r == -EPROTO) /* the next start ends it again */
        log_error("%s: its end is not stored: %s", m->vm.id, err.detail);
    if (r == 0 || r == -EPROTO) {
        machine_free(m);
        return;
    }
    log_error("%s: %s; trying again", m->vm.id, err.detail);
    try_again(m, write_end);
}

static void begin(void *userdata);

static void done(void *userdata) {
    struct ending *job = userdata;
    struct machine *m = job->m;
    if (--job->vms->endings == 0)
        examine_unshare(&job->vms->examine);
    if (m && job->result < 0) {
        log_error("%s: %s; trying again", m->vm.id, job->trouble);
        str_copy(m->process_end, sizeof m->process_end, job->process); /* it can be asked for only once */
        try_again(m, begin);
    } else if (m) {
        str_copy(m->owed_reason, sizeof m->owed_reason, job->reason);
        write_end(m);
    } else if (job->result < 0) {
        log_error("%s: %s", job->e.vm.id, job->trouble);
    }
    free_ending(job);
}

/* 4. */
static void tell_over(const struct ending *job) {
    const struct vms *vms = job->vms;
    struct vm vm = job->m->vm;
    if (!vms->over || vm_transition(vm.state, job->m->owed_event, &vm.state) < 0)
        return;
    vm.reachable = -1;
    str_copy(vm.reason, sizeof vm.reason, job->reason);
    vms->over(vms->over_data, &vm);
}

static void end_for_good(struct ending *job) {
    if (job->m)
        tell_over(job);
    if (workers_submit(job->vms->enders, seal, done, job) == 0)
        return;
    seal(job); /* without memory for a job */
    done(job);
}

static void worked(void *userdata) {
    struct ending *job = userdata;
    if (job->result < 0) {
        done(job);
        return;
    }
    if (job->vms->is_starting && job->m) { /* who is to be told is not there yet */
        job->next = job->vms->unsealed;
        job->vms->unsealed = job;
    } else {
        end_for_good(job);
    }
}

void machine_end_unsealed(struct vms *vms) {
    for (struct ending *job; (job = vms->unsealed);) {
        vms->unsealed = job->next;
        end_for_good(job);
    }
    workers_finish(vms->enders);
}

/* The last events as a JSON array, for the evidence. */
static char *last_events(struct vms *vms, const char *id) {
    _cleanup_free_ struct store_event *events = NULL;
    size_t n = 0;
    char at[TIME_RFC3339_SIZE];
    if (store_events(vms->store, id, &events, &n, NULL) < 0)
        return NULL;
    json_t *list = json_array();
    for (size_t i = n > EVENTS_KEPT ? n - EVENTS_KEPT : 0; i < n; i++) {
        time_format_rfc3339(events[i].at_ms, at);
        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s, s:s, s:s}", "at", at, "event", events[i].event,
                                              "from", events[i].from, "to", events[i].to, "actor", events[i].actor,
                                              "reason", events[i].reason));
    }
    char *text = json_dumps(list, JSON_COMPACT);
    json_decref(list);
    return text;
}

static struct ending *new_ending(struct vms *vms, const struct vm *vm) {
    struct ending *job = calloc(1, sizeof *job);
    if (!job)
        return NULL;
    job->vms = vms;
    job->pidfd = -1;
    machine_user_folder(vms, vm->id, job->folder);
    machine_evidence_folder(vms, vm->id, job->evidence);
    str_copy(job->process, sizeof job->process, vm->pid ? UNKNOWN_END : "no VMM had been started");
    job->events = last_events(vms, vm->id);
    job->e = (struct evidence){.vm = *vm,
                               .from = job->folder,
                               .to = job->evidence,
                               .process = job->process,
                               .actor = job->actor,
                               .reason = job->reason,
                               .halted = job->halted,
                               .begun_ms = time_monotonic_ms(),
                               .events = job->events};
    return job;
}

static void submit(struct ending *job) {
    job->vms->endings++;
    if (workers_submit(job->vms->enders, work, worked, job) < 0) {
        /* Without memory for a job it is done here and now. */
        work(job);
        worked(job);
    }
}

/* A start finds all that ended while there was no controller. */
static enum evidence_doctor which_doctor(const struct vms *vms) {
    if (vms->is_removing)
        return EVIDENCE_DOCTOR_NOT;
    return vms->is_starting || vms->endings >= SNAPSHOTS_AT_ONCE ? EVIDENCE_DOCTOR_SHARED : EVIDENCE_DOCTOR;
}

static void begin(void *userdata) {
    struct machine *m = userdata;
    struct ending *job = new_ending(m->vms, &m->vm);
    enum vm_state to = VM_STATE_FAILED;
    if (!job) {
        try_again(m, begin);
        return;
    }
    job->m = m;
    job->pidfd = m->pidfd;
    job->was_asked = m->vm.state == VM_STATE_STOPPING;
    job->e.doctor = which_doctor(m->vms);
    job->e.no_doctor = "no doctor was asked: the whole controller was taken away";
    vm_transition(m->vm.state, m->owed_event, &to);
    job->e.state = vm_state_name(to);
    if (*m->process_end)
        str_copy(job->process, sizeof job->process, m->process_end);
    str_copy(job->halted, sizeof job->halted, m->halt.is_halted ? m->halt.words : "");
    str_copy(job->actor, sizeof job->actor, m->stop_actor);
    str_escape(m->owed_reason, strlen(m->owed_reason), job->reason, sizeof job->reason);
    submit(job);
}

void machine_end(struct machine *m, enum vm_event event, const char *actor, const char *reason, const char *process) {
    if (m->is_over)
        return;
    /* First, because it ends its agent's jobs, and whoever is told of that may want to stop the VM. */
    m->is_over = true;
    m->owed_event = m->vm.state == VM_STATE_STOPPING ? VM_EVENT_ENDED : event; /* it was to end, however it did */
    str_copy(m->stop_actor, sizeof m->stop_actor, actor);
    str_copy(m->owed_reason, sizeof m->owed_reason, reason);
    str_copy(m->process_end, sizeof m->process_end, process ? process : "");
    machine_unwatch(m);
    begin(m);
}

void machine_clean_up(struct vms *vms, const struct vm *vm) {
    struct ending *job = new_ending(vms, vm);
    if (!job)
        return;
    job->was_asked = vm->state == VM_STATE_STOPPED;
    job->e.state = vm_state_name(vm->state);
    job->e.doctor = EVIDENCE_DOCTOR_NOT;
    job->e.no_doctor = "no doctor was asked: the controller had ended while it took the VM away";
    str_copy(job->actor, sizeof job->actor, "controller");
    str_copy(job->reason, sizeof job->reason, vm->reason);
    str_copy(job->process, sizeof job->process, "not known: the controller died while it was cleaned up");
    submit(job);
}

#include "vm/machine.h"

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
#include "vm/hibernate.h"

/* A running VM is called unreachable after this many failures in a row: one lost probe on a busy host is not news. */
#define REACH_FAILURES 3
#define LOST_GRACE_MS 2000
#define UNKNOWN_END "how it ended is not known: an earlier daemon had started it"
#define FINDING_WAIT_MS 10000 /* how long the report of an unreachable VM waits for the doctor */

struct machine *machine_new(struct vms *vms, const struct vm *vm) {
    struct machine *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    *m = (struct machine){.next = vms->first, .vms = vms, .vm = *vm, .pidfd = -1, .agent_fd = -1};
    vms->first = m;
    vms->count++;
    return m;
}

struct machine *machine_find(struct vms *vms, const char *id) {
    for (struct machine *m = vms->first; m; m = m->next)
        if (strcmp(m->vm.id, id) == 0)
            return m;
    return NULL;
}

void machine_unwatch(struct machine *m) {
    sd_event_source_disable_unref(m->process);
    m->process = NULL;
    probe_free(m->probe);
    m->probe = NULL;
    vmm_talk_free(m->talk);
    m->talk = NULL;
    loop_timer_free(m->lost);
    m->lost = NULL;
    loop_timer_free(m->again);
    m->again = NULL;
    loop_timer_free(m->deadline);
    m->deadline = NULL;
    m->leave = NULL;
    machine_hush(m);
    machine_agent_stop(m);
}

void machine_free(struct machine *m) {
    if (!m)
        return;
    for (struct machine **at = &m->vms->first; *at; at = &(*at)->next)
        if (*at == m) {
            *at = m->next;
            m->vms->count--;
            break;
        }
    machine_unwatch(m);
    fd_close(&m->pidfd);
    free(m->rest);
    fd_close(&m->agent_fd);
    create_free(m->spare);
    free(m);
}

void machine_tell(struct machine *m) {
    struct vm vm = m->vm; /* a listener may end the machine */
    struct vms *vms = m->vms;
    for (int i = 0; i < vms->listener_count; i++)
        vms->listeners[i].fn(vms->listeners[i].userdata, &vm);
}

/* Sealed, or still in the VM's folder where that could not be done. */
static void tell_evidence(const struct machine *m, char *ret_path, size_t size) {
    char folder[VMS_PATH_MAX];
    machine_evidence_folder(m->vms, m->vm.id, folder);
    snprintf(ret_path, size, "%s/%s", access(folder, F_OK) == 0 ? "evidence" : "users", m->vm.id);
}

int machine_change(struct machine *m, enum vm_event event, const char *actor, const char *reason, struct err *err) {
    enum vm_state to;
    if (vm_transition(m->vm.state, event, &to) < 0)
        return err_set(err, EPROTO, "vm.state", "VM %s is %s: \"%s\" cannot happen to it now", m->vm.id,
                       vm_state_name(m->vm.state), vm_event_name(event));
    struct vm vm = m->vm;
    vm.state = to;
    vm.state_since_ms = time_realtime_ms();
    vm.reachable = to == VM_STATE_RUNNING ? 1 : -1;
    /* A reason may quote a guest, and be cut within a character. */
    struct store_event e = {.at_ms = vm.state_since_ms};
    str_escape(reason, strlen(reason), e.reason, sizeof e.reason);
    bool is_well = to == VM_STATE_BOOTING || to == VM_STATE_RUNNING;
    str_copy(vm.reason, sizeof vm.reason, is_well ? "" : e.reason);
    if (vm_state_is_end(to) || to == VM_STATE_HIBERNATED) {
        vm.pid = 0;
        vm.pid_start = 0;
    }
    str_copy(e.actor, sizeof e.actor, actor);
    str_copy(e.event, sizeof e.event, vm_event_name(event));
    str_copy(e.from, sizeof e.from, vm_state_name(m->vm.state));
    str_copy(e.to, sizeof e.to, vm_state_name(to));
    if (vm_state_is_end(to))
        tell_evidence(m, e.evidence, sizeof e.evidence);
    int r = store_vm_update(m->vms->store, &vm, &e, err);
    if (r < 0 && event != VM_EVENT_STOP)
        return r;
    /* On a full disk the VMs are what fills it: one must be able to end. The store has it when it has ended. */
    if (r < 0)
        log_error("%s: it is stopped, but that could not be written", m->vm.id);
    m->vm = vm;
    if (vm_state_is_end(to))
        address_rest(m->vms, vm.ip, vm.state_since_ms);
    log_event(event == VM_EVENT_FAILED ? LOG_LEVEL_ERROR : LOG_LEVEL_INFO,
              (struct log_about){.event = vm_event_name(event), .vm_id = vm.id}, "%s -> %s by %s%s%s", e.from, e.to,
              actor, *reason ? ": " : "", reason);
    machine_tell(m);
    return 0;
}

void machine_set_reachable(struct machine *m, bool reachable, const char *words) {
    if (m->vm.reachable == reachable && (reachable || strcmp(m->vm.reason, words) == 0))
        return;
    struct err err = {0};
    struct store_event e = {.at_ms = time_realtime_ms(), .actor = "controller"};
    str_copy(e.event, sizeof e.event, reachable ? "reachable" : m->vm.reachable == 0 ? "diagnosed" : "unreachable");
    str_copy(e.reason, sizeof e.reason, words);
    struct vm vm = m->vm;
    vm.reachable = reachable;
    str_copy(vm.reason, sizeof vm.reason, reachable ? "" : words);
    if (store_vm_update(m->vms->store, &vm, &e, &err) < 0) {
        log_error("%s: %s", m->vm.id, err.detail); /* the next probe tries again */
        return;
    }
    m->vm = vm;
    log_event(reachable ? LOG_LEVEL_INFO : LOG_LEVEL_WARNING, (struct log_about){.event = e.event, .vm_id = m->vm.id},
              "%s", words);
    if (!reachable)
        machine_agent_collect(m); /* what the guest itself sees, while it cannot be reached */
    machine_tell(m);
}

static void start_probe(void *userdata);

static void probe_later(struct machine *m) {
    if (m->is_over || m->vm.state == VM_STATE_STOPPING) /* who was told of it has ended it */
        return;
    const struct config_vm *config = &m->vms->config->vm;
    int64_t delay_ms = m->vm.state == VM_STATE_RUNNING ? config->reach_interval_ms : config->probe_interval_ms;
    if (m->again)
        loop_timer_again(m->again, delay_ms);
    else if (loop_timer_new(m->vms->loop, delay_ms, start_probe, m, &m->again) < 0)
        log_error("%s: no timer for the next probe", m->vm.id);
}

/* One that does not answer is looked at by the doctor first, and told with what that found: it may be no more than a
 * path that heals. It is told without when the doctor takes too long, or has nothing to say. */
static void on_unreached(struct machine *m, const char *words) {
    if (m->vm.reachable == 0)
        words = m->vm.reason; /* told; a new finding comes from the doctor */
    machine_examine(m);
    if (m->vm.reachable != 0 && (!m->is_examined || time_monotonic_ms() - m->examined_ms >= FINDING_WAIT_MS))
        machine_set_reachable(m, false, words);
}

static void on_proven(struct machine *m) {
    struct err err = {0};
    char words[VM_REASON_MAX];
    machine_tell_boot(m, words, sizeof words);
    if (machine_change(m, VM_EVENT_PATH_PROVEN, "controller", words, &err) < 0) {
        log_error("%s: %s", m->vm.id, err.detail);
        return;
    }
    if (m->vm.state != VM_STATE_RUNNING) /* who was told of it has ended it: the deadline is the stop's */
        return;
    loop_timer_free(m->deadline);
    m->deadline = NULL;
    if (m->is_warm)
        machine_agent_collect(m);
}

static void on_probe(void *userdata, enum probe_answer answer, const char *words) {
    struct machine *m = userdata;
    bool ok = answer == PROBE_YES;
    m->probe = NULL;
    if (answer != PROBE_SILENCE)
        machine_reach(m, STAGE_NETWORK);
    if (ok && m->vm.type == VM_TYPE_BROWSER)
        machine_reach(m, STAGE_DESKTOP);
    str_copy(m->last_probe, sizeof m->last_probe, words);
    m->failures = ok ? 0 : m->failures + 1;
    if (m->halt.is_halted && !ok) { /* why is known */
        probe_later(m);
        return;
    }
    if (m->halt.is_halted)
        machine_goes_on(m);
    if (m->vm.state == VM_STATE_BOOTING && ok && machine_agent_awaited(m)) {
        probe_later(m);
        return;
    }
    if (m->vm.state == VM_STATE_RESUMING && ok) {
        resume_prove(m);
    } else if (m->vm.state == VM_STATE_BOOTING && ok) {
        on_proven(m);
    } else if (m->vm.state == VM_STATE_RUNNING && ok) {
        machine_set_reachable(m, true, words);
    } else if (m->vm.state == VM_STATE_RUNNING && m->failures >= REACH_FAILURES) {
        on_unreached(m, words);
    }
    probe_later(m);
}

/* While it boots, the proof is the whole of what the type promises; later, and where that was there before it was put to rest, that
 * the guest's port answers: an emulated guest has half a second to do for each desktop that is asked for. */
static enum probe_kind proof_of(const struct machine *m) {
    bool is_proven = m->vm.state == VM_STATE_RUNNING || (m->vm.state == VM_STATE_RESUMING && m->is_as_before);
    if (m->vms->config->vm.type[m->vm.type].port == 0)
        return PROBE_ICMP;
    return m->vm.type == VM_TYPE_BROWSER && !is_proven ? PROBE_DESKTOP : PROBE_TCP;
}

static void start_probe(void *userdata) {
    struct machine *m = userdata;
    const struct config_vm *config = &m->vms->config->vm;
    uint16_t port = config->type[m->vm.type].port;
    struct err err = {0};
    if (m->probe)
        return;
    machine_look_at_console(m);
    if (probe_start(m->vms->loop, m->vms->network, proof_of(m), m->vm.ip, port, (int)config->probe_timeout_ms, on_probe,
                    m, &m->probe, &err) == 0)
        return;
    /* A bridge that is gone or a filter of the host's own refuses at once; a lack of descriptors says nothing of a VM. */
    if (strcmp(err.code, "network.unreachable") == 0 || strcmp(err.code, "network.bridge-missing") == 0) {
        on_probe(m, PROBE_SILENCE, err.detail);
    } else {
        str_copy(m->last_probe, sizeof m->last_probe, err.detail);
        probe_later(m);
    }
}

static void fail_late(struct machine *m) {
    const struct vmm_ops *ops = vmm_find(m->vm.vmm);
    char reason[VM_REASON_MAX], line[VMS_LINE_MAX], folder[VMS_PATH_MAX], counters[VMM_WORDS_MAX] = "";
    machine_user_folder(m->vms, m->vm.id, folder);
    if (ops && ops->tell_counters)
        ops->tell_counters(folder, counters);
    vms_console_line(m->vms, m->vm.id, line);
    snprintf(reason, sizeof reason,
             "not reachable within %u s of its start: %.90s%s%.100s; last line of its console: %.110s",
             m->vms->config->vm.type[m->vm.type].boot_timeout_ms / 1000,
             *m->last_probe ? m->last_probe : "no probe was answered", *counters ? "; " : "", counters,
             *line ? line : "(nothing)");
    machine_end(m, VM_EVENT_FAILED, "controller", reason, NULL);
}

static void on_flushed(void *userdata, const struct err *err) {
    struct machine *m = userdata;
    m->talk = NULL;
    fail_late(m);
}

/* The VMM's counters tell whether the guest ever spoke, so they are asked for first. */
static void on_boot_deadline(void *userdata) {
    struct machine *m = userdata;
    const struct vmm_ops *ops = vmm_find(m->vm.vmm);
    char folder[VMS_PATH_MAX];
    if (m->halt.is_halted) { /* it begins anew when the machine goes on */
        loop_timer_again(m->deadline, m->vms->config->vm.type[m->vm.type].boot_timeout_ms);
        return;
    }
    machine_user_folder(m->vms, m->vm.id, folder);
    vmm_talk_free(m->talk);
    m->talk = NULL;
    if (!ops || !ops->flush || ops->flush(m->vms->loop, folder, &m->vm, on_flushed, m, &m->talk, NULL) < 0)
        fail_late(m);
}

static void on_resume_deadline(void *userdata) {
    resume_late(userdata);
}

static void on_lost(void *userdata) {
    machine_end(userdata, VM_EVENT_FAILED, "controller",
                "its VMM runs, but hung up while it was told what the machine is", NULL);
}

/* A VMM that refuses what it is told cannot go on. Not to have got through to one that runs since before this daemon
 * proves nothing against it: the boot's deadline decides. */
static void on_attended(void *userdata, const struct err *err) {
    struct machine *m = userdata;
    m->talk = NULL;
    if (err && strcmp(err->code, "vmm.lost") == 0 &&
        loop_timer_new(m->vms->loop, LOST_GRACE_MS, on_lost, m, &m->lost) == 0)
        return; /* mostly it has ended, and how says more: on_process() */
    if (err && (m->is_fresh || strcmp(err->code, "vmm.refused") == 0)) {
        char reason[VM_REASON_MAX];
        snprintf(reason, sizeof reason, "%.280s%s%.110s", err->detail, *err->hint ? "; " : "", err->hint);
        machine_end(m, VM_EVENT_FAILED, "controller", reason, NULL);
    } else if (err) {
        log_warning("%s: %s", m->vm.id, err->detail);
    }
}

static int attend(struct machine *m, struct err *err) {
    const struct vmm_ops *ops = vmm_find(m->vm.vmm);
    char folder[VMS_PATH_MAX];
    machine_user_folder(m->vms, m->vm.id, folder);
    if (!ops || !ops->attend)
        return 0;
    bool is_to_be_told = m->is_fresh && !m->is_warm; /* what was loaded is a machine already */
    return ops->attend(m->vms->loop, folder, &m->vm, is_to_be_told, on_attended, m, &m->talk, err);
}

static int on_process(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
    struct machine *m = userdata;
    char reason[VM_REASON_MAX], words[96] = UNKNOWN_END;
    if (m->vm.state == VM_STATE_HIBERNATING && m->leave) { /* what is left of it is kept */
        machine_let_go(m);
        return 0;
    }
    proc_reap(m->pidfd, words, sizeof words);
    if (m->vm.state == VM_STATE_RESUMING) {
        resume_lost(m, words);
        return 0;
    }
    if (m->vm.state == VM_STATE_STOPPING) {
        char actor[STORE_ACTOR_MAX];
        size_t len = strlen(words);
        if (m->is_killed && str_starts(words, "killed by signal"))
            snprintf(words + len, sizeof words - len, " by the controller");
        str_copy(actor, sizeof actor, m->stop_actor);
        str_copy(reason, sizeof reason, m->vm.reason);
        machine_end(m, VM_EVENT_ENDED, actor, reason, words);
        return 0;
    }
    char line[VMS_LINE_MAX];
    vms_console_line(m->vms, m->vm.id, line);
    const char *where = "console";
    if (!*line) { /* the guest did not come to say anything: the VMM may have */
        vms_log_line(m->vms, m->vm.id, line);
        where = *line ? "log" : where;
    }
    snprintf(reason, sizeof reason, "its VMM (%s, pid %d) ended by itself: %s; last line of its %s: %.200s", m->vm.vmm,
             m->vm.pid, words, where, *line ? line : "(nothing)");
    machine_end(m, VM_EVENT_FAILED, "guest or host", reason, words);
    return 0;
}

int64_t machine_boot_age_ms(const struct vm *vm, int64_t vmm_age_ms, int64_t now_ms) {
    int64_t since_ms = now_ms - vm->state_since_ms;
    return since_ms >= 0 && since_ms < vmm_age_ms ? since_ms : vmm_age_ms;
}

int machine_watch(struct machine *m, struct err *err) {
    int r = sd_event_add_io(loop_event(m->vms->loop), &m->process, m->pidfd, EPOLLIN, on_process, m);
    if (r >= 0 && m->vm.state == VM_STATE_BOOTING) {
        int64_t age_ms = machine_boot_age_ms(&m->vm, proc_age_ms(m->vm.pid_start), time_realtime_ms());
        r = loop_timer_new(m->vms->loop, m->vms->config->vm.type[m->vm.type].boot_timeout_ms - age_ms, on_boot_deadline,
                           m, &m->deadline);
    }
    if (r >= 0 && m->vm.state == VM_STATE_RESUMING)
        r = loop_timer_new(m->vms->loop, m->vms->config->vm.type[m->vm.type].boot_timeout_ms, on_resume_deadline, m,
                           &m->deadline);
    if (r < 0)
        return err_sys(err, -r, "vm.watch", "watch %s", m->vm.id);
    machine_listen(m);
    r = m->vm.state == VM_STATE_BOOTING || m->vm.state == VM_STATE_RESUMING ? attend(m, err) : 0;
    if (r < 0 && m->is_fresh)
        return r;
    if (machine_is_up(m)) {
        m->boot_begun_ms = time_monotonic_ms();
        machine_agent_start(m);
        probe_later(m);
        if ((m->is_warm || m->vm.state == VM_STATE_RESUMING) && m->again)
            loop_timer_again(m->again, 0); /* it has been up before */
    }
    return 0;
}

static void kill_vmm(struct machine *m, int signal) {
    m->is_killed = true;
    proc_signal(m->pidfd, signal);
}

static void on_stop_deadline(void *userdata) {
    kill_vmm(userdata, SIGKILL);
}

/* A CLI VM holds a user's work: its guest is asked to shut down and has stop_timeout to do so. A browser VM is thrown
 * away. */
void machine_stop(struct machine *m) {
    if (m->pidfd < 0) {
        char actor[STORE_ACTOR_MAX];
        str_copy(actor, sizeof actor, m->stop_actor);
        machine_end(m, VM_EVENT_ENDED, actor, m->vm.reason, "it had none: it was hibernated");
        return;
    }
    probe_free(m->probe);
    m->probe = NULL;
    loop_timer_free(m->again);
    m->again = NULL;
    loop_timer_free(m->deadline);
    m->deadline = NULL;
    vmm_talk_free(m->talk);
    m->talk = NULL;
    const struct vmm_ops *ops = m->vm.type == VM_TYPE_CLI && !m->halt.is_halted ? vmm_find(m->vm.vmm) : NULL;
    if (ops) {
        char folder[VMS_PATH_MAX];
        machine_user_folder(m->vms, m->vm.id, folder);
        machine_listen(m);
        ops->ask_shutdown(m->vms->loop, folder, &m->vm, m->watch);
    } else {
        kill_vmm(m, SIGTERM);
    }
    if (loop_timer_new(m->vms->loop, m->vms->config->vm.stop_timeout_ms, on_stop_deadline, m, &m->deadline) < 0)
        kill_vmm(m, SIGKILL);
}

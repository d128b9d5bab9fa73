/* What the VMM says of itself: it has stopped its VM, or the guest's link is off in it. */
#include <string.h>

#include "doctor/rules/internal.h"

static const struct snap_vmm *vmm_of(const struct judge *j) {
    for (uint32_t i = 0; i < j->s->vmms_count; i++)
        if (strcmp(j->s->vmms[i].tap, j->target->tap) == 0 && !j->s->vmms[i].error)
            return &j->s->vmms[i];
    return NULL;
}

static void rule_link_off(struct judge *j, const struct snap_vmm *vmm) {
    if (vmm->link != 0)
        return;
    const char *name = *vmm->nic ? vmm->nic : vmm->backend;
    struct cause *c = cause_add(j, "vmm.link-off", FLOWS_GUEST, 0,
                                "the link of NIC %s behind %s is off in QEMU (process %d)", name, vmm->tap, vmm->pid);
    cause_evidence(c, "qmp", vmm->socket, "%s (netdev %s, %s): link off", name, vmm->backend, mac_text(vmm->mac).text);
    cause_plan(c, "QMP on %s: {\"execute\":\"set_link\",\"arguments\":{\"name\":\"%s\",\"up\":true}}", vmm->socket,
               name);
}

/* Source: QEMU, qapi/run-state.json (RunState). */
static const struct {
    const char *status, *id, *words;
} stops[] = {
    {"prelaunch", "guest.not-booted", "has not started its VM yet"},
    {"preconfig", "guest.not-booted", "has not started its VM yet"},
    {"inmigrate", "guest.not-booted", "waits for its VM to be loaded"},
    {"guest-panicked", "guest.panic", "says that the guest's kernel has stopped"},
    {"io-error", "vmm.stalled", "has stopped its VM because a disk cannot be read or written"},
    {"internal-error", "vmm.stalled", "has stopped its VM because of an error of its own"},
    {"watchdog", "vmm.stalled", "has stopped its VM because its watchdog ran out"},
    {"shutdown", "vmm.stalled", "has shut its VM down and stays"},
    {"postmigrate", "vmm.stalled", "has handed its VM on (migrated)"},
    {"finish-migrate", "vmm.stalled", "has stopped its VM to hand it on"},
    {"save-vm", "vmm.stalled", "has stopped its VM to save it"},
    {"restore-vm", "vmm.stalled", "has stopped its VM to load it"},
    {"suspended", "vmm.stalled", "says that the guest sleeps (suspended to RAM)"},
    {"debug", "vmm.stalled", "has stopped its VM for a debugger"},
    {"colo", "vmm.stalled", "has paused its VM (colo)"},
    {"paused", "vmm.stalled", "has paused its VM"},
};

static const char *way_out(const char *status) {
    if (strcmp(status, "io-error") == 0)
        return "make room on, or mend, what holds the disk; then QMP cont";
    if (strcmp(status, "suspended") == 0)
        return "QMP system_wakeup";
    if (strcmp(status, "paused") == 0 || strcmp(status, "debug") == 0 || strcmp(status, "prelaunch") == 0)
        return "QMP cont";
    return NULL;
}

static void rule_stopped(struct judge *j, const struct snap_vmm *vmm) {
    size_t i = 0;
    while (i < sizeof stops / sizeof *stops && strcmp(stops[i].status, vmm->status) != 0)
        i++;
    if (i == sizeof stops / sizeof *stops)
        return;
    struct cause *c = cause_add(j, stops[i].id, FLOWS_GUEST, 0, "QEMU (process %d), which holds %s, %s", vmm->pid,
                                vmm->tap, stops[i].words);
    cause_evidence(c, "qmp", vmm->socket, "query-status: %s", vmm->status);
    if (way_out(vmm->status))
        cause_plan(c, "%s (socket %s)", way_out(vmm->status), vmm->socket);
}

/* The controller itself holds the monitor: what it was told is in its records. */
static void rule_recorded(struct judge *j) {
    if (!j->vm || !j->holder || !*j->vm->paused || j->vm->pid != j->holder->pid || j->alive & FLOWS_GUEST)
        return;
    struct cause *c = NULL;
    for (uint32_t i = 0; i < j->causes_count; i++)
        if (strcmp(j->causes[i].finding.id, "vmm.stalled") == 0)
            c = &j->causes[i]; /* its process is stopped, too */
    if (!c)
        c = cause_add(j, "vmm.stalled", FLOWS_GUEST, 0, "the VM behind %s stands still in %s (process %d)", j->vm->tap,
                      j->holder->comm, j->holder->pid);
    cause_evidence(c, "record", j->vm->id, "%s", j->vm->paused);
}

void rules_vmm(struct judge *j) {
    const struct snap_vmm *vmm = vmm_of(j);
    if (!j->tap)
        return;
    if (!vmm || *vmm->words) {
        rule_recorded(j);
        return;
    }
    rule_link_off(j, vmm);
    rule_stopped(j, vmm);
}

void rules_counted(struct judge *j) {
    const struct snap_vmm *vmm = vmm_of(j);
    uint32_t its = HOPBIT(HOP_TAP_QUEUE) | HOPBIT(HOP_VMM) | HOPBIT(HOP_GUEST_NIC) | HOPBIT(HOP_GUEST_IP);
    for (uint32_t i = 0; vmm && *vmm->words && i < j->causes_count; i++)
        if (HOPBIT(j->causes[i].finding.hop) & its)
            cause_evidence(&j->causes[i], "firecracker", vmm->socket, "%s", vmm->words);
}

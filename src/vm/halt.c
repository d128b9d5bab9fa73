/* VMs that stand still because the host's disk is full. Theory of operation:
 *
 * A guest's disk takes room on the host when it is written to. When there is none left, QEMU stops the machine before the
 * guest notices anything, and waits to be told to go on (werror=enospc, its default). So nothing is lost, and nothing
 * moves: the VM is told as not reachable, with the full disk as the finding, and goes on by itself when there is room
 * again. That is looked for with the logs' trimming, every 2 s; a VM that stops again at once is tried less and less
 * often, down to once a minute, for as long as it lives. It is never ended for it, and its boot's deadline waits.
 *
 * Firecracker tells its guest of an error instead, and nobody else; what happens then is the guest's affair (ext4 mostly
 * goes read-only). So all that can be said is that the disk was full while the VM ran: into its story, and its console
 * says more (cause.c). */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

#include "base/log.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/time.h"
#include "vm/machine.h"

#define FULL_BYTES (256U << 10)  /* less room than that is none: a VMM writes more at once */
#define ENOUGH_BYTES (64U << 20) /* or a 20th of a small file system: then it is worth to go on */
#define ENOUGH_PART 20
#define PAUSE_FIRST_MS 2000
#define PAUSE_MAX_MS 60000
#define EVENTS_MAX 32 /* of disks that fail: a guest can bring them about */

/* ---- the disk of the state folder ---- */

struct vms_disk vms_disk(const struct vms *vms) {
    struct statvfs st;
    if (statvfs(vms->state_dir, &st) < 0 || st.f_frsize == 0)
        return (struct vms_disk){.free_bytes = UINT64_MAX, .is_enough = true};
    uint64_t free_bytes = (uint64_t)st.f_bavail * st.f_frsize, all = (uint64_t)st.f_blocks * st.f_frsize;
    uint64_t enough = all / ENOUGH_PART < ENOUGH_BYTES ? all / ENOUGH_PART : ENOUGH_BYTES;
    return (struct vms_disk){.free_bytes = free_bytes,
                             .is_full = free_bytes < FULL_BYTES,
                             .is_enough = free_bytes >= enough && free_bytes >= FULL_BYTES,
                             .enough_bytes = enough > FULL_BYTES ? enough : FULL_BYTES};
}

unsigned vms_halted(const struct vms *vms) {
    unsigned n = 0;
    for (const struct machine *m = vms->first; m; m = m->next)
        n += m->halt.is_halted;
    return n;
}

/* ---- one VM ---- */

/* On a full disk the store may not be writable either: what is owed is written when it is. */
static void record(struct machine *m) {
    struct err err = {0};
    struct halt *h = &m->halt;
    struct store_event e = {.at_ms = h->since_ms, .actor = "controller"};
    struct vm vm = m->vm;
    str_copy(e.event, sizeof e.event, h->is_halted ? "paused" : "resumed");
    str_copy(e.reason, sizeof e.reason, h->words);
    vm.reachable = h->is_halted ? 0 : -1;
    str_copy(vm.reason, sizeof vm.reason, h->is_halted ? h->words : "");
    h->is_owed = store_vm_update(m->vms->store, &vm, &e, &err) < 0;
    if (h->is_owed)
        log_error("%s: %s", m->vm.id, err.detail);
    m->vm = vm;
    machine_tell(m);
}

static void halted(struct machine *m, bool no_space, const char *said) {
    struct halt *h = &m->halt;
    int64_t now_ms = time_monotonic_ms();
    char words[sizeof h->words];
    if (no_space)
        snprintf(words, sizeof words,
                 "its VMM has stopped it: there is no space left for its disk on the file system of %.160s; nothing is "
                 "lost: free some space there, and it goes on by itself",
                 m->vms->state_dir);
    else
        snprintf(words, sizeof words,
                 "its VMM has stopped it (%.160s), and it does not go on by itself: vmm.log in its folder may say why",
                 said);
    h->no_space = no_space;
    h->pause_ms = h->ran_ms && now_ms - h->ran_ms < PAUSE_MAX_MS ? h->pause_ms * 2 : PAUSE_FIRST_MS;
    h->pause_ms = h->pause_ms > PAUSE_MAX_MS ? PAUSE_MAX_MS : h->pause_ms;
    h->try_ms = now_ms + h->pause_ms;
    bool is_told = m->vm.reachable == 0 && strcmp(m->vm.reason, words) == 0; /* by an earlier daemon perhaps */
    h->is_halted = true;
    h->since_ms = time_realtime_ms();
    str_copy(h->words, sizeof h->words, words);
    if (is_told)
        return;
    log_event(LOG_LEVEL_ERROR, (struct log_about){.event = "paused", .vm_id = m->vm.id}, "%s", words);
    record(m);
}

void machine_goes_on(struct machine *m) {
    struct halt *h = &m->halt;
    h->ran_ms = time_monotonic_ms();
    if (!h->is_halted)
        return;
    snprintf(h->words, sizeof h->words, "it runs again");
    h->is_halted = false;
    h->since_ms = time_realtime_ms();
    m->failures = 0;
    log_event(LOG_LEVEL_INFO, (struct log_about){.event = "resumed", .vm_id = m->vm.id}, "%s", h->words);
    if (m->vm.state == VM_STATE_BOOTING && m->deadline)
        loop_timer_again(m->deadline, m->vms->config->vm.type[m->vm.type].boot_timeout_ms);
    record(m);
}

static void on_news(void *userdata, enum vmm_news news, const char *words) {
    struct machine *m = userdata;
    char reason[VM_REASON_MAX];
    bool is_alive = machine_is_up(m);
    switch (news) {
    case VMM_NEWS_RUNS:
        if (is_alive)
            machine_goes_on(m);
        return;
    case VMM_NEWS_NO_SPACE:
    case VMM_NEWS_STANDS:
        if (is_alive)
            halted(m, news == VMM_NEWS_NO_SPACE, words);
        else
            proc_signal(m->pidfd, SIGTERM); /* it cannot shut down any more */
        return;
    case VMM_NEWS_DISK_ERROR:
        snprintf(reason, sizeof reason,
                 "the host could not do what its disk was asked for, and its guest was told so (%s)", words);
        if (is_alive && m->halt.events++ < EVENTS_MAX)
            machine_note(m, LOG_LEVEL_ERROR, "disk-error", reason);
        return;
    case VMM_NEWS_PANIC:
        if (is_alive && m->halt.events++ < EVENTS_MAX)
            machine_note(m, LOG_LEVEL_ERROR, "guest-panicked",
                         "its guest says that its kernel panicked: see its console");
        return;
    }
}

void machine_listen(struct machine *m) {
    const struct vmm_ops *ops = vmm_find(m->vm.vmm);
    char folder[VMS_PATH_MAX];
    struct err err = {0};
    if (m->watch || !ops || !ops->watch)
        return;
    /* Only this leaves a VM that boots with a finding. */
    if (m->vm.state == VM_STATE_BOOTING && m->vm.reachable == 0 && !m->halt.is_halted) {
        m->halt = (struct halt){.is_halted = true, .no_space = true, .pause_ms = PAUSE_FIRST_MS};
        str_copy(m->halt.words, sizeof m->halt.words, m->vm.reason);
    }
    machine_user_folder(m->vms, m->vm.id, folder);
    if (ops->watch(m->vms->loop, folder, on_news, m, &m->watch, &err) < 0)
        log_error("%s: %s", m->vm.id, err.detail);
}

void machine_hush(struct machine *m) {
    vmm_watch_free(m->watch);
    m->watch = NULL;
}

/* ---- all of them ---- */

static void look_at(struct machine *m, const struct vms_disk *disk, int64_t now_ms) {
    const struct vmm_ops *ops = vmm_find(m->vm.vmm);
    struct halt *h = &m->halt;
    bool is_alive = machine_is_up(m);
    if (!is_alive || m->is_over)
        return;
    if (h->is_owed)
        record(m);
    if (!h->is_halted || !h->no_space || !m->watch || now_ms < h->try_ms || !disk->is_enough)
        return;
    h->try_ms = now_ms + h->pause_ms;
    ops->go_on(m->watch);
}

static void tell_unheard(struct vms *vms) {
    for (struct machine *m = vms->first; m; m = m->next) {
        const struct vmm_ops *ops = vmm_find(m->vm.vmm);
        bool is_alive = m->vm.state == VM_STATE_BOOTING || m->vm.state == VM_STATE_RUNNING;
        if (ops && !ops->watch && is_alive && !m->is_over && m->halt.events++ < EVENTS_MAX)
            machine_note(
                m, LOG_LEVEL_WARNING, "disk-full",
                "there is no space left on the host for its disk: its guest gets errors when it writes, and its root "
                "may "
                "be read-only from now on; its console tells");
    }
}

void halt_check(struct vms *vms) {
    struct vms_disk disk = vms_disk(vms);
    int64_t now_ms = time_monotonic_ms();
    if (disk.is_full && !vms->disk_was_full) {
        log_event(
            LOG_LEVEL_ERROR, (struct log_about){.event = "disk-full"},
            "the file system of %s is full: VMs stop when they write, and no evidence can be kept: free some space",
            vms->state_dir);
        vms->disk_was_full = true;
        tell_unheard(vms);
    } else if (disk.is_enough && vms->disk_was_full) {
        log_event(LOG_LEVEL_INFO, (struct log_about){.event = "disk-room"}, "the file system of %s has room again",
                  vms->state_dir);
        vms->disk_was_full = false;
    }
    for (struct machine *m = vms->first, *next; m; m = next) {
        next = m->next;
        look_at(m, &disk, now_ms);
    }
}

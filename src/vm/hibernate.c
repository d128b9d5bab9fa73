#include "vm/hibernate.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/time.h"

#define AGAIN_MS 1000
#define KILL_TIMEOUT_MS 5000
#define LOST_GRACE_MS 2000

struct hibernation {
    struct vms *vms;
    struct machine *m; /* for done() alone */
    struct vm vm;
    const struct vmm_ops *ops;
    struct image image;
    char folder[VMS_PATH_MAX], accel[8];
    int pidfd;        /* the machine's */
    bool is_taken_up; /* by a daemon that did not begin it */
    int64_t begun_ms; /* monotonic */
    uint64_t bytes;
    bool is_saved, is_alive;
    bool is_held;       /* its VMM, by the kernel, though it was killed */
    bool stands;        /* its VMM lives, and has not said that the machine goes on */
    int64_t give_up_ms; /* monotonic: until then it is asked to */
    struct err err;
};

/* ---- what both ways share ---- */

void hibernate_keep_error(struct machine *m, const struct err *err) {
    str_copy(m->vms->last_error.id, sizeof m->vms->last_error.id, m->vm.id);
    m->vms->last_error.err = *err;
}

void hibernate_forget_error(struct machine *m) {
    if (strcmp(m->vms->last_error.id, m->vm.id) == 0)
        m->vms->last_error.id[0] = '\0';
}

int hibernate_release(struct vms *vms, const struct vm *vm, const char *folder, int pidfd, struct err *err) {
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    char words[96];
    if (pidfd >= 0) {
        proc_signal(pidfd, SIGKILL);
        if (poll(&p, 1, KILL_TIMEOUT_MS) == 0)
            return err_set(err, EBUSY, "vm.release", "its VMM does not end though it was killed: the kernel holds it");
        proc_reap(pidfd, words, sizeof words);
    }
    if (confine_kill(vms->confine, folder, vm->id, KILL_TIMEOUT_MS) < 0)
        return err_set(err, EBUSY, "vm.release", "a process in its control group does not end: the kernel holds it");
    int r = network_tap_remove(vms->network, vm->tap, vm->id, err);
    if (r == 0 && confine_remove(vms->confine, folder, vm->id) < 0)
        log_warning("%s: its control group could not be removed", vm->id);
    return r;
}

int64_t hibernate_deadline_ms(const struct vms *vms) {
    return time_monotonic_ms() + vms->config->vm.hibernate_timeout_ms;
}

void hibernate_again(struct machine *m, loop_fn *fn, void *userdata) {
    loop_timer_free(m->again);
    m->again = NULL;
    if (loop_timer_new(m->vms->loop, AGAIN_MS, fn, userdata, &m->again) < 0)
        log_error("%s: no timer to try again", m->vm.id);
}

static void settle_again(void *userdata) {
    struct machine *m = userdata;
    loop_timer_free(m->again); /* the next one may be of a probe */
    m->again = NULL;
    hibernate_settle(m, m->owed_event, m->owed_reason);
}

/* Who wants it gone while it was on its way has waited for this; who wants it back, or its room, too. */
static void on_settled(struct machine *m) {
    char actor[STORE_ACTOR_MAX];
    struct vms *vms = m->vms;
    struct err err = {0};
    m->is_wanted = m->is_wanted && m->vm.state == VM_STATE_HIBERNATED;
    str_copy(actor, sizeof actor, m->stop_actor);
    if (m->vm.state == VM_STATE_STOPPING)
        machine_end(m, VM_EVENT_ENDED, actor, m->vm.reason, NULL);
    else if (m->vm.state == VM_STATE_RUNNING && machine_watch(m, &err) < 0)
        log_error("%s: %s", m->vm.id, err.detail);
    resume_wanted(vms);
}

void hibernate_settle(struct machine *m, enum vm_event event, const char *reason) {
    struct err err = {0};
    char words[VM_REASON_MAX];
    str_copy(words, sizeof words, reason);
    m->is_busy = false;
    int r = m->vm.state == VM_STATE_STOPPING ? 0 : machine_change(m, event, "controller", words, &err);
    if (r == 0 || r == -EPROTO) {
        on_settled(m);
        return;
    }
    log_error("%s: %s; trying again", m->vm.id, err.detail);
    m->is_busy = true;
    m->owed_event = event;
    str_copy(m->owed_reason, sizeof m->owed_reason, words);
    hibernate_again(m, settle_again, m);
}

/* ---- the worker ---- */

static bool is_alive(int pidfd, int wait_ms) {
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    return pidfd >= 0 && poll(&p, 1, wait_ms) == 0;
}

/* Old builds of an image are removed some day; a VM is started with its own kernel, though, as often as that may be. Where the
 * image is on another file system, it has to stay. */
static void keep_boot_files(struct hibernation *job) {
    const struct image *image = &job->image;
    const struct {
        const char *from, *name;
    } files[] = {{image->kernel, "kernel"}, {image->initrd, "initrd"}, {image->vmlinux, "vmlinux"}};
    char path[VMS_PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/" MACHINE_BOOT_FOLDER, job->folder);
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/" MACHINE_BOOT_FOLDER "/%s", job->folder, files[i].name);
        if (*files[i].from && link(files[i].from, path) < 0 && errno != EEXIST && errno != EXDEV)
            log_warning("%s: link %s: %s", job->vm.id, path, strerror(errno));
    }
}

static int save(struct hibernation *job) {
    struct vmm_saved saved = {.folder = job->folder,
                              .vm = &job->vm,
                              .name = SAVED_BEGUN,
                              .accel = job->accel,
                              .deadline_ms = hibernate_deadline_ms(job->vms)};
    char version[VMM_VERSION_MAX];
    keep_boot_files(job);
    int r = saved_begin(job->folder, &job->err);
    if (r == 0)
        r = job->ops->save(&saved, version, &job->err);
    return r < 0 ? r : saved_finish(job->folder, &job->vm, version, job->accel, &job->bytes, &job->err);
}

/* One that does not answer is mostly about to end: its sockets go first. */
static void go_on(struct hibernation *job) {
    struct vmm_saved saved = {
        .folder = job->folder, .vm = &job->vm, .name = SAVED_BEGUN, .deadline_ms = hibernate_deadline_ms(job->vms)};
    struct err err = {0};
    int r = job->ops->go(&saved, &err);
    job->is_alive = is_alive(job->pidfd, r == 0 ? 0 : LOST_GRACE_MS);
    if (r < 0 && job->is_alive && !job->stands) {
        log_error("%s: it does not go on, and is asked to again: %s", job->vm.id, err.detail);
        job->give_up_ms = hibernate_deadline_ms(job->vms);
    }
    job->stands = r < 0 && job->is_alive;
}

static void release(void *userdata) {
    struct hibernation *job = userdata;
    struct err err = {0};
    int r = hibernate_release(job->vms, &job->vm, job->folder, job->pidfd, &err);
    job->is_held = r < 0 && strcmp(err.code, "vm.release") == 0;
    if (r < 0)
        log_error("%s: %s", job->vm.id, err.detail); /* a TAP that cannot be removed: its resume does it again */
}

static void work(void *userdata) {
    struct hibernation *job = userdata;
    if (!job->is_taken_up)
        save(job);
    job->is_saved = saved_is_whole(job->folder);
    if (!job->is_saved)
        saved_drop(job->folder,
                   NULL); /* what it had written of it: as much room as there may be is free for its disk */
    if (!job->is_saved && is_alive(job->pidfd, 0))
        go_on(job);
    if (!job->is_alive)
        release(job);
    if (!job->is_saved)
        saved_drop(job->folder, NULL);
}

/* What its VMM does not answer for that long will not come any more. */
static void work_again(void *userdata) {
    struct hibernation *job = userdata;
    if (job->stands && time_monotonic_ms() < job->give_up_ms)
        go_on(job);
    else
        job->is_alive = false;
    if (!job->is_alive)
        release(job);
}

/* ---- the loop ---- */

static void stays(struct hibernation *job) {
    struct machine *m = job->m;
    char reason[VM_REASON_MAX];
    snprintf(reason, sizeof reason, "it runs on: %.360s",
             job->is_taken_up ? "the controller ended before its memory was saved" : job->err.detail);
    if (!job->is_taken_up)
        hibernate_keep_error(m, &job->err);
    m->rest_failed_ms = time_monotonic_ms();
    m->was_away = true;
    m->preparing = PREPARE_NOT;
    m->is_unloadable = strcmp(job->err.code, "vmm.other") == 0;
    hibernate_settle(m, VM_EVENT_HIBERNATE_FAILED, reason);
}

static void done(void *userdata);

static void try_again(void *userdata) {
    struct hibernation *job = userdata;
    loop_timer_free(job->m->again);
    job->m->again = NULL;
    if (workers_submit(job->vms->resters, work_again, done, job) < 0)
        hibernate_again(job->m, try_again, job);
}

/* Its VMM has ended, or all is as if nothing had been. */
static void tell_end(const struct hibernation *job, char ret_reason[VM_REASON_MAX]) {
    const char *words = *job->err.detail ? job->err.detail : "the controller had ended too";
    if (job->is_saved && job->is_taken_up)
        snprintf(ret_reason, VM_REASON_MAX, "its memory had been saved when the controller ended");
    else if (job->is_saved)
        snprintf(ret_reason, VM_REASON_MAX, "its memory, %llu MiB, was saved in %.1f s",
                 (unsigned long long)(job->bytes >> 20), (double)(time_monotonic_ms() - job->begun_ms) / 1000);
    else
        snprintf(ret_reason, VM_REASON_MAX,
                 "its VMM %s (%.200s): what was in memory is gone, its disk is there; it can be started cold",
                 job->stands ? "did not go on when its memory could not be saved, and was ended"
                             : "ended while its memory was being saved",
                 words);
}

static void done(void *userdata) {
    struct hibernation *job = userdata;
    struct machine *m = job->m;
    char reason[VM_REASON_MAX];
    bool is_unwanted = m->vm.state == VM_STATE_STOPPING;
    /* Until a VMM that is held is gone, its memory is not free, and its disk has a writer. */
    if (job->is_held || (job->is_alive && job->stands && !is_unwanted)) {
        hibernate_again(m, try_again, job);
        return;
    }
    if (job->is_alive) {
        stays(job);
        free(job);
        return;
    }
    fd_close(&m->pidfd);
    fd_close(&m->agent_fd);
    tell_end(job, reason);
    hibernate_settle(m, VM_EVENT_HIBERNATED, reason);
    free(job);
}

/* image, accel: NULL where it is taken up. */
static struct hibernation *new_job(struct machine *m, const struct image *image, const char *accel) {
    struct hibernation *job = calloc(1, sizeof *job);
    if (!job)
        return NULL;
    *job = (struct hibernation){.vms = m->vms,
                                .m = m,
                                .vm = m->vm,
                                .ops = vmm_find(m->vm.vmm),
                                .pidfd = m->pidfd,
                                .is_taken_up = !image,
                                .begun_ms = time_monotonic_ms()};
    if (image)
        job->image = *image;
    str_copy(job->accel, sizeof job->accel, accel ? accel : "");
    machine_user_folder(m->vms, m->vm.id, job->folder);
    return job;
}

/* Takes job. */
static int begin(struct machine *m, struct hibernation *job) {
    m->is_busy = true;
    hibernate_forget_error(m);
    if (job && workers_submit(m->vms->resters, work, done, job) == 0)
        return 0;
    m->is_busy = false;
    free(job);
    return -ENOMEM;
}

void hibernate_take_up(struct machine *m) {
    if (begin(m, new_job(m, NULL, NULL)) < 0)
        log_error("%s: there was no memory to take it up", m->vm.id);
}

/* Its guest has been looked at for the last time; meanwhile somebody may have wanted it gone. */
static void rest(void *userdata) {
    struct machine *m = userdata;
    struct hibernation *job = m->rest;
    m->rest = NULL;
    if (m->vm.state == VM_STATE_STOPPING) {
        free(job);
        m->is_busy = false;
        machine_stop(m);
        return;
    }
    job->vm = m->vm;
    m->agent_fd = m->agent ? agent_connection(m->agent) : -1; /* as machine_agent_connect() */
    machine_unwatch(m);
    if (begin(m, job) < 0)
        hibernate_settle(m, VM_EVENT_HIBERNATE_FAILED, "it runs on: there was no memory to hibernate it");
}

/* ---- what callers want ---- */

/* It is of no use to save what this host would not load. */
static int check_vmm(struct machine *m, struct vmm_choice *ret_choice, struct err *err) {
    int r = vmm_choose(&m->vms->config->vm, ret_choice, err);
    if (r < 0 || strcmp(ret_choice->ops->name, m->vm.vmm) == 0)
        return r;
    return err_set(err, EPROTO, "vmm.other", "it was made by %s, and this host has %s now", m->vm.vmm,
                   ret_choice->ops->name);
}

/* With what is being written, or waits for a worker: all of them have the same room. */
static uint64_t memory_on_its_way(const struct machine *m) {
    uint64_t mib = m->vm.memory_mib;
    for (const struct machine *other = m->vms->first; other; other = other->next)
        if (other->vm.state == VM_STATE_HIBERNATING)
            mib += other->vm.memory_mib;
    return mib;
}

static int check(struct machine *m, struct image *ret_image, struct vmm_choice *ret_choice, struct err *err) {
    char folder[VMS_PATH_MAX];
    if (m->vm.state != VM_STATE_RUNNING || m->is_over || m->is_busy) {
        err_set(err, EPROTO, "vm.state", "VM %s is %s: only one that is running can be hibernated", m->vm.id,
                vm_state_name(m->vm.state));
        return err_hint(err, "mctl vm why %s tells its story", m->vm.id);
    }
    if (m->halt.is_halted)
        return err_set(err, EPROTO, "vm.halted", "VM %s stands still: %.300s", m->vm.id, m->halt.words);
    int r = check_vmm(m, ret_choice, err);
    if (r == 0)
        r = vms_image_of(m->vms, &m->vm, ret_image, err);
    machine_user_folder(m->vms, m->vm.id, folder);
    if (r == 0)
        r = saved_check_room(folder, memory_on_its_way(m), err);
    if (r < 0)
        err_prefix(err, "hibernate %s", m->vm.id);
    return r;
}

bool vms_is_wanted(struct vms *vms, const char *id) {
    struct machine *m = machine_find(vms, id);
    return m && m->is_wanted;
}

bool vms_is_at_rest(struct vms *vms, const char *id) {
    struct machine *m = machine_find(vms, id);
    return m && (m->vm.state == VM_STATE_HIBERNATING || m->vm.state == VM_STATE_HIBERNATED ||
                 m->vm.state == VM_STATE_RESUMING);
}

/* Who waits for it hears why it does not come. */
static void want_no_more(struct machine *m) {
    struct err err = {0};
    err_set(&err, EPROTO, "vm.state", "VM %s was put to rest again before it was there", m->vm.id);
    hibernate_keep_error(m, &err);
    m->is_wanted = false;
    if (m->vm.state == VM_STATE_HIBERNATED)
        machine_tell(m);
}

int vms_hibernate(struct vms *vms, const char *id, const char *actor, const char *reason, struct vm *ret_vm,
                  struct err *err) {
    struct machine *m = machine_find(vms, id);
    if (!m)
        return vms_not_live(vms, id, err);
    if (m->vm.state == VM_STATE_HIBERNATED || m->vm.state == VM_STATE_HIBERNATING) {
        if (m->is_wanted)
            want_no_more(m);
        *ret_vm = m->vm;
        return 0;
    }
    struct image image;
    struct vmm_choice choice;
    int r = check(m, &image, &choice, err);
    if (r < 0)
        return r;
    m->rest = new_job(m, &image, choice.accel);
    if (!m->rest)
        return err_sys(err, ENOMEM, "vm.hibernate", "hibernate %s", m->vm.id);
    m->is_busy = true; /* who hears of it, or loses the agent by it, may end the VM */
    r = machine_change(m, VM_EVENT_HIBERNATE, actor, reason, err);
    if (r < 0) {
        m->is_busy = false;
        free(m->rest);
        m->rest = NULL;
        return r;
    }
    machine_leave(m, rest);
    *ret_vm = m->vm;
    return 0;
}

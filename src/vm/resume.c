#include <assert.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/time.h"
#include "vm/hibernate.h"
#include "vm/pool.h"
#include "vm/warm.h"

#define PREPARE_TIMEOUT_MS 10000
#define SEED_BYTES 64
#define STEPS 8
#define MEMORY_GONE "what was in memory is gone, its disk is there; it can be started cold: mctl vm resume --cold"

struct resumption {
    struct vms *vms;
    struct machine *m; /* for done() alone */
    struct vm vm;
    struct vmm_choice choice;
    struct image image;
    char folder[VMS_PATH_MAX];
    bool is_cold, is_taken_up, is_gone; /* is_gone: its VMM has ended by itself */
    bool is_held;                       /* as in a hibernation */
    char how[160];                      /* how that was */
    int jail_fd;                        /* 0: none */
    int group_fds[CGROUP_HIERARCHIES], group_count;
    int tap_fd, pidfd, agent_fd;
    int memory_fd; /* saved_hold() */
    pid_t pid;
    uint64_t pid_start;
    char version[VMM_VERSION_MAX]; /* of the VMM that saved it */
    int64_t begun_ms;              /* monotonic */
    int64_t step_ms[STEPS];
    int result;
    struct err err;
};

static void free_resumption(struct resumption *job) {
    fd_close(&job->tap_fd);
    fd_close(&job->pidfd);
    fd_close(&job->agent_fd);
    fd_close(&job->memory_fd);
    if (job->jail_fd > 0)
        close(job->jail_fd);
    for (int i = 0; i < job->group_count; i++)
        fd_close(&job->group_fds[i]);
    free(job);
}

/* ---- the worker ---- */

/* What a daemon that died, or a release that failed, has left. */
static int clear_away(struct resumption *job, struct err *err) {
    return hibernate_release(job->vms, &job->vm, job->folder, -1, err);
}

static int check_saved(struct resumption *job, struct err *err) {
    return job->is_cold ? saved_drop(job->folder, err)
                        : saved_check(job->folder, &job->vm, job->choice.accel, job->version, err);
}

static int make_parts(struct resumption *job, struct err *err) {
    struct network_nic nic = machine_nic(&job->vm);
    int n = confine_enter(job->vms->confine, &job->vm, job->folder, job->choice.ops->overhead_mib(&job->choice),
                          job->group_fds, err);
    job->group_count = n > 0 ? n : 0;
    if (n < 0)
        return n;
    int r = network_tap_create(job->vms->network, &nic, job->choice.ops->opens_tap ? NULL : &job->tap_fd, err);
    return r < 0 ? r : network_neighbour_forget(job->vms->network, job->vm.ip, err);
}

static int start_vmm(struct resumption *job, struct err *err) {
    char cmdline[MACHINE_CMDLINE_MAX], netns_path[VMS_PATH_MAX], mark[VMS_PATH_MAX + 16];
    int netns_fd = network_namespace(job->vms->network, netns_path, sizeof netns_path);
    machine_cmdline(&job->vms->config->network, &job->vm, cmdline);
    snprintf(mark, sizeof mark, "%s/" MACHINE_AGENT_MARK, job->folder);
    struct vmm_spec spec = {
        .vm = &job->vm,
        .choice = &job->choice,
        .confinement = {.group_fds = job->group_fds, .group_count = job->group_count, .jail_fd = job->jail_fd},
        .folder = job->folder,
        .kernel = job->image.kernel,
        .initrd = job->image.initrd,
        .vmlinux = job->image.vmlinux,
        .cmdline = cmdline,
        .has_agent = access(mark, F_OK) == 0,
        .tap_fd = job->tap_fd,
        .netns_fd = netns_fd,
        .netns_path = netns_path,
        .is_furnished = true,
        .is_to_load = !job->is_cold};
    int r = job->choice.ops->start(&job->vms->config->vm, &spec, &job->pid, &job->pidfd, err);
    if (r == 0 && proc_start_time(job->pid, &job->pid_start) < 0)
        return err_set(err, ESRCH, "vm.resume", "the VMM ended at once: see vmm.log in %s", job->folder);
    job->vm.pid = job->pid;
    job->vm.pid_start = job->pid_start;
    return r;
}

static int check_files(struct resumption *job, struct err *err) {
    return saved_check_files(job->folder, err); /* while the VMM comes up */
}

static int load(struct resumption *job, struct err *err) {
    struct vmm_saved saved = {
        .folder = job->folder, .vm = &job->vm, .name = SAVED_WHOLE, .deadline_ms = hibernate_deadline_ms(job->vms)};
    job->agent_fd = machine_agent_connect(&job->vm, job->folder);
    int r = job->choice.ops->load(&saved, job->version, err);
    if (r < 0 && !strstr(err->hint, "--cold"))
        err_hint(err,
                 "its memory is kept; mctl vm resume %s --cold starts it from its disk, without what was in memory",
                 job->vm.id);
    return r;
}

/* This decides: see hibernate.h. To free what is dropped takes long, and nobody waits for that: let_go(). */
static int drop(struct resumption *job, struct err *err) {
    job->memory_fd = saved_hold(job->folder);
    return saved_drop(job->folder, err);
}

static int go(struct resumption *job, struct err *err) {
    struct vmm_saved saved = {
        .folder = job->folder, .vm = &job->vm, .name = SAVED_WHOLE, .deadline_ms = hibernate_deadline_ms(job->vms)};
    int r = job->choice.ops->go(&saved, err);
    if (r < 0) {
        struct err why = *err;
        err_set(err, -r, "vm.resume", "its memory was loaded, and its VMM did not go on (%.200s): " MEMORY_GONE,
                why.detail);
    }
    return r;
}

/* A cold start has the first of them. */
static const struct {
    const char *name;
    int (*run)(struct resumption *job, struct err *err);
} steps[] = {{"rest", clear_away},     {"manifest", check_saved}, {"network", make_parts}, {"VMM", start_vmm},
             {"digests", check_files}, {"memory", load},          {"drop", drop},          {"go", go}};
#define COLD_STEPS 4
static_assert(sizeof steps / sizeof *steps == STEPS, "a resumption has a time for each");

static int bring_back(struct resumption *job, struct err *err) {
    int r = 0;
    for (size_t i = 0; r == 0 && i < (job->is_cold ? COLD_STEPS : STEPS); i++) {
        int64_t begun_ms = time_monotonic_ms();
        r = steps[i].run(job, err);
        job->step_ms[i] = time_monotonic_ms() - begun_ms;
    }
    return r;
}

/* "its memory was loaded in 0.5 s: rest 2 ms, manifest 0, …, and it goes on": for the VM's story. */
static void tell_steps(const struct resumption *job, char *ret_words, size_t size) {
    struct strbuf words = {.max = size - 1};
    int64_t sum_ms = 0;
    for (size_t i = 0; i < STEPS; i++)
        sum_ms += job->step_ms[i];
    strbuf_addf(&words, "its memory was loaded in %.1f s", (double)sum_ms / 1000);
    for (size_t i = 0; i < STEPS; i++)
        strbuf_addf(&words, "%s%s %lld%s", i ? ", " : ": ", steps[i].name, (long long)job->step_ms[i], i ? "" : " ms");
    strbuf_addf(&words, ", and it goes on");
    str_copy(ret_words, size, words.data ? words.data : "");
    strbuf_free(&words);
}

static int take_up(struct resumption *job, struct err *err) {
    struct vmm_saved saved = {
        .folder = job->folder, .vm = &job->vm, .name = SAVED_WHOLE, .deadline_ms = hibernate_deadline_ms(job->vms)};
    struct pollfd p = {.fd = job->pidfd, .events = POLLIN};
    if (saved_is_whole(job->folder))
        return err_set(err, EINTR, "vm.resume", "the controller ended before its memory was loaded: it is kept");
    saved_drop(job->folder, NULL); /* the rest of it */
    if (job->is_gone || job->pidfd < 0 || poll(&p, 1, 0) != 0)
        return err_set(err, EIO, "vm.resume", "its VMM ended before it was reached%s%s: " MEMORY_GONE,
                       *job->how ? ", " : "", job->how);
    return job->choice.ops->go(&saved, err);
}

static void release(void *userdata) {
    struct resumption *job = userdata;
    struct err err = {0};
    int r = hibernate_release(job->vms, &job->vm, job->folder, job->pidfd, &err);
    job->is_held = r < 0 && strcmp(err.code, "vm.release") == 0;
    if (r < 0)
        log_error("%s: %s", job->vm.id, err.detail);
}

static void work(void *userdata) {
    struct resumption *job = userdata;
    job->result = job->is_taken_up ? take_up(job, &job->err) : bring_back(job, &job->err);
    if (job->result < 0)
        release(job);
}

/* ---- the loop ---- */

static void failed(struct resumption *job) {
    struct machine *m = job->m;
    char reason[VM_REASON_MAX];
    snprintf(reason, sizeof reason, "%.390s", job->err.detail);
    hibernate_keep_error(m, &job->err);
    fd_close(&m->pidfd);
    hibernate_settle(m, VM_EVENT_RESUME_FAILED, reason);
}

static void loaded(struct resumption *job) {
    struct machine *m = job->m;
    char words[VM_REASON_MAX];
    struct err err = {0};
    int64_t now_ms = time_monotonic_ms();
    m->is_fresh = job->is_cold;
    m->is_warm = false;
    m->is_as_before = !job->is_cold && !job->is_taken_up;
    if (job->is_cold)
        snprintf(words, sizeof words, "its VMM was started from its disk alone, in %.1f s",
                 (double)(now_ms - job->begun_ms) / 1000);
    else if (job->is_taken_up)
        snprintf(words, sizeof words, "it goes on: the controller had ended when its memory was loaded");
    else
        tell_steps(job, words, sizeof words);
    /* With it the VMM's pid is in the record. */
    machine_note(m, LOG_LEVEL_INFO, job->is_cold ? "cold-started" : "memory-loaded", words);
    if (machine_watch(m, &err) < 0) {
        log_error("%s: %s", m->vm.id, err.detail);
        resume_late(m);
    }
}

static void close_memory(void *userdata) {
    struct resumption *job = userdata;
    fd_close(&job->memory_fd);
}

static void on_closed(void *userdata) {
    free_resumption(userdata);
}

static void let_go(struct resumption *job) {
    if (job->memory_fd < 0 || workers_submit(job->vms->resters, close_memory, on_closed, job) < 0)
        free_resumption(job);
}

static void done(void *userdata);

static void release_again(void *userdata) {
    struct resumption *job = userdata;
    loop_timer_free(job->m->again);
    job->m->again = NULL;
    if (workers_submit(job->vms->resters, release, done, job) < 0)
        hibernate_again(job->m, release_again, job);
}

static void done(void *userdata) {
    struct resumption *job = userdata;
    struct machine *m = job->m;
    if (job->is_held) {
        hibernate_again(m, release_again, job);
        return;
    }
    m->is_busy = false;
    m->resume_begun_ms = job->begun_ms;
    m->was_away = true;
    m->preparing = PREPARE_NOT;
    if (job->result == 0) {
        if (m->pidfd != job->pidfd)
            fd_close(&m->pidfd);
        m->pidfd = fd_steal(&job->pidfd);
        fd_close(&m->agent_fd);
        m->agent_fd = fd_steal(&job->agent_fd);
        m->vm.pid = job->vm.pid;
        m->vm.pid_start = job->vm.pid_start;
    } else if (m->pidfd == job->pidfd) {
        job->pidfd = -1; /* the machine's */
    }
    if (m->vm.state == VM_STATE_STOPPING) {
        char actor[STORE_ACTOR_MAX];
        str_copy(actor, sizeof actor, m->stop_actor);
        machine_end(m, VM_EVENT_ENDED, actor, m->vm.reason, NULL);
    } else if (job->result < 0) {
        failed(job);
    } else {
        loaded(job);
    }
    let_go(job);
}

static struct resumption *new_resumption(struct machine *m) {
    struct resumption *job = calloc(1, sizeof *job);
    if (!job)
        return NULL;
    *job = (struct resumption){.vms = m->vms,
                               .m = m,
                               .vm = m->vm,
                               .tap_fd = -1,
                               .pidfd = -1,
                               .agent_fd = -1,
                               .memory_fd = -1,
                               .begun_ms = time_monotonic_ms()};
    job->choice.ops = vmm_find(m->vm.vmm);
    machine_user_folder(m->vms, m->vm.id, job->folder);
    return job;
}

static int submit(struct resumption *job) {
    job->m->is_busy = true;
    int r = workers_submit(job->vms->resters, work, done, job);
    if (r < 0)
        job->m->is_busy = false;
    return r;
}

static void take_up_with(struct machine *m, const char *how) {
    struct resumption *job = new_resumption(m);
    if (job) {
        job->is_taken_up = true;
        job->is_gone = how != NULL;
        str_copy(job->how, sizeof job->how, how ? how : "");
        job->pidfd = m->pidfd;
    }
    if (!job || submit(job) < 0) {
        free(job);
        log_error("%s: no memory to take it up", m->vm.id);
    }
}

void resume_take_up(struct machine *m) {
    take_up_with(m, NULL);
}

void resume_lost(struct machine *m, const char *how) {
    machine_unwatch(m);
    take_up_with(m, how);
}

/* ---- is it there? ---- */

static void tell(struct machine *m, const char *more, char ret_words[VM_REASON_MAX]) {
    snprintf(ret_words, VM_REASON_MAX, "it is back after %.1f s%s%s%s%s",
             (double)(time_monotonic_ms() - m->resume_begun_ms) / 1000, *m->prepare_words ? ": " : "", m->prepare_words,
             *more ? "; " : "", more);
}

static int go_on(struct machine *m, const char *more) {
    char words[VM_REASON_MAX];
    struct err err = {0};
    tell(m, more, words);
    int r = machine_change(m, VM_EVENT_RESUMED, "controller", words, &err);
    if (r < 0) {
        log_error("%s: %s", m->vm.id, err.detail); /* the next probe tries again */
        return r;
    }
    if (m->vm.state != VM_STATE_RUNNING) /* who was told of it has ended it: the deadline is the stop's */
        return 0;
    loop_timer_free(m->deadline);
    m->deadline = NULL;
    return 0;
}

bool resume_prove(struct machine *m) {
    if (m->agent && m->preparing != PREPARE_DONE) {
        snprintf(m->last_probe, sizeof m->last_probe, "its network answers, but its agent does not: %.120s",
                 agent_words(m->agent));
        return false;
    }
    return go_on(m, "") == 0;
}

/* It is never ended for that it does not answer, as a running one is not: it may hold a user's work. */
void resume_late(struct machine *m) {
    char probe[VMS_LINE_MAX];
    if (m->halt.is_halted && m->deadline) {
        loop_timer_again(m->deadline, m->vms->config->vm.type[m->vm.type].boot_timeout_ms);
        return;
    }
    str_copy(probe, sizeof probe, *m->last_probe ? m->last_probe : "no probe was answered");
    int r = go_on(m, probe);
    if (r == 0 && m->vm.state == VM_STATE_RUNNING)
        machine_set_reachable(m, false, probe);
    else if (r < 0 && m->deadline)
        loop_timer_again(m->deadline, PREPARE_TIMEOUT_MS);
}

/* ---- what a guest must be told that was away ---- */

static void prepared(struct machine *m) {
    m->preparing = PREPARE_DONE;
    m->was_away = false;
    if (m->vm.state == VM_STATE_RUNNING)
        machine_note(m, LOG_LEVEL_INFO, "guest-told", m->prepare_words);
    if (m->again && !m->probe)
        loop_timer_again(m->again, 0);
}

/* Whether the agent went meanwhile: then all of it is done when it is there again. */
static bool is_to_be_told_again(struct machine *m, const struct err *err) {
    if (!err || (strcmp(err->code, "agent.gone") != 0 && strcmp(err->code, "agent.not-ready") != 0))
        return false;
    m->preparing = PREPARE_NOT;
    return true;
}

static void on_seeded(void *userdata, json_t *ok, const struct err *err) {
    struct machine *m = userdata;
    size_t len = strlen(m->prepare_words);
    m->prepare_job = NULL;
    if (is_to_be_told_again(m, err))
        return;
    snprintf(m->prepare_words + len, sizeof m->prepare_words - len,
             ok ? ", random numbers renewed" : ", random numbers not renewed (%.60s)", err ? err->detail : "");
    prepared(m);
}

static void renew_random(struct machine *m) {
    static const struct agent_handler handler = {.done = on_seeded};
    uint8_t seed[SEED_BYTES];
    char hex[2 * SEED_BYTES + 1];
    struct err err = {0};
    if (getrandom(seed, sizeof seed, 0) != sizeof seed)
        memset(seed, 0, sizeof seed); /* worth nothing to the guest, and no harm */
    str_hex(seed, sizeof seed, hex);
    if (agent_begin(m->agent, json_pack("{s:s, s:s}", "op", "random.seed", "seed", hex), PREPARE_TIMEOUT_MS, &handler,
                    m, &m->prepare_job, &err) < 0 &&
        !is_to_be_told_again(m, &err))
        prepared(m);
    explicit_bzero(seed, sizeof seed);
    explicit_bzero(hex, sizeof hex);
}

static void on_clock(void *userdata, json_t *ok, const struct err *err) {
    struct machine *m = userdata;
    json_int_t by_ms = 0;
    m->prepare_job = NULL;
    if (is_to_be_told_again(m, err))
        return;
    if (ok && json_unpack(ok, "{s:I}", "changed_by_ms", &by_ms) == 0)
        snprintf(m->prepare_words, sizeof m->prepare_words, "clock set, %.1f s on", (double)by_ms / 1000);
    else
        snprintf(m->prepare_words, sizeof m->prepare_words, "clock not set (%.60s)", err ? err->detail : "no answer");
    renew_random(m);
}

void resume_prepare(struct machine *m) {
    static const struct agent_handler handler = {.done = on_clock};
    if (!m->was_away || m->preparing != PREPARE_NOT)
        return;
    m->preparing = PREPARE_BEGUN;
    if (agent_begin(m->agent, json_pack("{s:s, s:I}", "op", "clock.set", "realtime_ms", (json_int_t)time_realtime_ms()),
                    PREPARE_TIMEOUT_MS, &handler, m, &m->prepare_job, NULL) < 0)
        m->preparing = PREPARE_NOT; /* when it is there again */
}

void resume_stop_preparing(struct machine *m) {
    agent_job_cancel(m->prepare_job);
    m->prepare_job = NULL;
    if (m->preparing == PREPARE_BEGUN)
        m->preparing = PREPARE_NOT;
}

/* ---- what callers want ---- */

static void want(struct machine *m, bool cold, const char *actor, const char *reason) {
    m->is_wanted = true;
    m->wanted_cold = cold;
    str_copy(m->wanted_actor, sizeof m->wanted_actor, actor);
    str_copy(m->wanted_reason, sizeof m->wanted_reason, reason);
}

static int choose(struct machine *m, struct resumption *job, struct err *err) {
    struct vms *vms = m->vms;
    int r = vmm_choose(&vms->config->vm, &job->choice, err);
    if (r == 0 && strcmp(job->choice.ops->name, m->vm.vmm) != 0)
        r = err_set(err, EPROTO, "vmm.other", "it was made by %s, and this host has %s now", m->vm.vmm,
                    job->choice.ops->name);
    if (r == 0)
        r = vms_image_of(vms, &m->vm, &job->image, err);
    if (r == 0)
        r = vms_admit(vms, &m->vm, job->choice.ops->overhead_mib(&job->choice), err);
    return r;
}

static int begin(struct machine *m, bool cold, const char *actor, const char *reason, struct err *err) {
    struct resumption *job = new_resumption(m);
    if (!job)
        return err_sys(err, ENOMEM, "vm.resume", "resume %s", m->vm.id);
    int r = choose(m, job, err);
    if (r == 0 && !cold && !saved_is_whole(job->folder)) {
        r = err_set(err, EPROTO, "saved.none", "its memory is not there to be loaded: %.300s", m->vm.reason);
        err_hint(err, "mctl vm resume %s --cold starts it from its disk, without what was in memory", m->vm.id);
    }
    if (r == 0)
        r = machine_change(m, VM_EVENT_RESUME, actor, reason, err);
    if (r < 0) {
        free_resumption(job);
        err_prefix(err, "resume %s", m->vm.id);
        return r;
    }
    job->vm = m->vm;
    job->is_cold = cold;
    warm_yield(m->vms->warm, NULL, job->choice.ops->overhead_mib(&job->choice));
    pool_yield(m->vms, NULL, job->choice.ops->overhead_mib(&job->choice));
    job->jail_fd =
        job->choice.ops->is_jailed ? confine_jail(m->vms->confine, job->choice.binary, job->choice.ops->opens_tap) : 0;
    m->prepare_words[0] = '\0';
    m->traffic_bytes = 0; /* its TAP is another */
    hibernate_forget_error(m);
    if (submit(job) == 0)
        return 0;
    free_resumption(job);
    hibernate_settle(m, VM_EVENT_RESUME_FAILED, "there was no memory to resume it");
    return err_sys(err, ENOMEM, "vm.resume", "resume %s", m->vm.id);
}

/* Where room is being made for it, it comes when that is there. */
static int begin_or_wait(struct machine *m, bool cold, const char *actor, const char *reason, struct err *err) {
    char id[VM_ID_TEXT];
    if (idle_make_room(m->vms, m->vm.memory_mib, id) > 0) {
        want(m, cold, actor, reason);
        return 0;
    }
    return begin(m, cold, actor, reason, err);
}

static struct machine *find_wanted(struct vms *vms) {
    struct machine *m = vms->first;
    while (m && (!m->is_wanted || m->vm.state != VM_STATE_HIBERNATED || m->is_busy || m->is_over))
        m = m->next;
    return m;
}

void resume_wanted(struct vms *vms) {
    char actor[STORE_ACTOR_MAX], reason[VM_REASON_MAX];
    struct err err = {0};
    struct machine *m;
    while ((m = find_wanted(vms))) {
        str_copy(actor, sizeof actor, m->wanted_actor);
        str_copy(reason, sizeof reason, m->wanted_reason);
        m->is_wanted = false;
        if (begin_or_wait(m, m->wanted_cold, actor, reason, &err) < 0) {
            hibernate_keep_error(m, &err);
            machine_tell(m); /* who waits for it hears why it does not come */
        }
        if (m->is_wanted)
            return; /* with the next that settles */
    }
}

int vms_resume(struct vms *vms, const char *id, bool cold, const char *actor, const char *reason, struct vm *ret_vm,
               struct err *err) {
    struct machine *m = machine_find(vms, id);
    if (!m)
        return vms_not_live(vms, id, err);
    int r = 0;
    if (m->vm.state == VM_STATE_HIBERNATING) {
        want(m, cold, actor, reason);
    } else if (m->vm.state == VM_STATE_HIBERNATED && !m->is_busy) {
        r = m->is_wanted ? 0 : begin_or_wait(m, cold, actor, reason, err);
    } else if (m->vm.state != VM_STATE_RESUMING && m->vm.state != VM_STATE_RUNNING) {
        r = err_set(err, EPROTO, "vm.state", "VM %s is %s: only one that is hibernated can be resumed", id,
                    vm_state_name(m->vm.state));
        err_hint(err, "mctl vm why %s tells its story", id);
    }
    if (r == 0)
        *ret_vm = m->vm;
    return r;
}

#include "vm/template_boot.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/time.h"
#include "vm/boot.h"
#include "vm/hibernate.h"

#define TAP_PREFIX "mc-warm-"
#define TICK_MS 200
#define ASK_INTERVAL_MS 1000
#define ASK_TIMEOUT_MS 60000
#define OUTPUT_MAX 16384
#define TIMEOUT_FACTOR 3
#define KILL_TIMEOUT_MS 5000
#define ANSWER_TIMEOUT_MS 30000 /* as firecracker.c's: whoever ends the daemon waits for it */
#define NICE 10 /* who waits for a VM comes first: where there are no control groups; else confine_come_last() */
/* It has settled when its VMM wants less than a third of a processor for a while, or at last has had long enough for that. */
#define QUIET_MS 2000
#define QUIET_MAX_MS 30000
#define QUIET_PERCENT 33

enum phase {
    PHASE_AGENT,
    PHASE_SERVICES, /* systemd's */
    PHASE_WINDOW,   /* Chromium's, with its page */
    PHASE_QUIET,
    PHASE_DONE,
};

static const char *const phase_words[] = {
    [PHASE_AGENT] = "its agent",          [PHASE_SERVICES] = "its services", [PHASE_WINDOW] = "Chromium's page",
    [PHASE_QUIET] = "it to come to rest", [PHASE_DONE] = "nothing",
};

struct making {
    const struct template_boot *params;
    const struct template_wish *wish;
    struct template *t;
    struct vm vm;
    char begun[VMS_PATH_MAX + 8];
    struct loop *loop;
    struct agent *agent;
    struct agent_job *job;
    struct vmm_talk *talk;
    struct loop_timer *tick;
    struct strbuf output;
    enum phase phase;
    int64_t begun_ms, phase_ms, ask_ms; /* monotonic */
    int64_t quiet_ms, cpu_ms;           /* when it was looked at last, and what its VMM had used */
    int tap_fd, pidfd, agent_fd;
    int group_fds[CGROUP_HIERARCHIES], group_count;
    int result;
    struct err *err;
};

/* ---- its machine ---- */

/* The network's own address, which no VM gets, has this one. */
static uint32_t uid_of(const struct vms *vms) {
    return vms->config->vm.uid_base;
}

/* Another daemon's is another. */
static void tap_of(const char *vm_id, char ret_tap[VM_TAP_TEXT]) {
    snprintf(ret_tap, VM_TAP_TEXT, TAP_PREFIX "%.7s", vm_id + strlen("vm-"));
}

static int make_record(struct making *k, struct err *err) {
    uint8_t random[16];
    struct vm *vm = &k->vm;
    const struct config *config = k->params->vms->config;
    if (getrandom(random, sizeof random, 0) != sizeof random)
        return err_sys(err, EIO, "template.make", "get random bytes");
    vm_id_from_random(random, vm->id);
    vm->type = k->wish->type;
    vm->memory_mib = k->wish->memory_mib;
    vm->vcpus = k->wish->vcpus;
    vm->mac = vm_mac_from_random(random + 12);
    vm->uid = uid_of(k->params->vms);
    /* What it has until a VM begins from it: an address that is none of a guest's, and of a network that leads nowhere. */
    vm->ip = (config->network.address.address & net_mask(config->network.address.length)) |
             (~net_mask(config->network.address.length) - 1);
    tap_of(vm->id, vm->tap);
    str_copy(vm->vmm, sizeof vm->vmm, k->wish->choice.ops->name);
    snprintf(k->t->name, sizeof k->t->name, "%s-%s", vm_type_name(vm->type), vm->id);
    template_folder(k->params->vms->state_dir, k->t->name, "", k->t->folder);
    snprintf(k->begun, sizeof k->begun, "%s.tmp", k->t->folder);
    return 0;
}

static int make_folder(struct making *k, struct err *err) {
    char parent[VMS_PATH_MAX], path[VMS_PATH_MAX + 32];
    template_folder(k->params->vms->state_dir, "", "", parent);
    snprintf(path, sizeof path, "%s/" TEMPLATE_STATE, k->begun);
    int r = dir_make(parent, 0700);
    if (r < 0 || mkdir(k->begun, 0700) < 0 || mkdir(path, 0700) < 0)
        return err_sys(err, r < 0 ? -r : errno, "template.make", "make %s", k->begun);
    return k->wish->choice.ops->raw_disk ? image_clone_raw(&k->wish->image, k->begun, err)
                                         : image_clone(&k->wish->image, k->begun, err);
}

static struct vmm_saved saved_of(const struct making *k) {
    return (struct vmm_saved){.folder = k->begun,
                              .vm = &k->vm,
                              .name = TEMPLATE_STATE,
                              .accel = k->wish->choice.accel,
                              .is_apart = true,
                              .is_unwanted = k->params->is_unwanted,
                              .deadline_ms = hibernate_deadline_ms(k->params->vms)};
}

static int start(struct making *k, struct err *err) {
    char cmdline[MACHINE_CMDLINE_MAX], netns_path[VMS_PATH_MAX];
    struct vms *vms = k->params->vms;
    const struct vmm_choice *choice = &k->wish->choice;
    machine_cmdline(&vms->config->network, &k->vm, cmdline);
    struct vmm_spec spec = {
        .vm = &k->vm,
        .choice = choice,
        .confinement = {.group_fds = k->group_fds, .group_count = k->group_count, .jail_fd = k->params->jail_fd},
        .folder = k->begun,
        .kernel = k->wish->image.kernel,
        .initrd = k->wish->image.initrd,
        .vmlinux = k->wish->image.vmlinux,
        .cmdline = cmdline,
        .has_agent = true,
        .tap_fd = k->tap_fd,
        .netns_fd = network_namespace(vms->network, netns_path, sizeof netns_path),
        .netns_path = netns_path,
        .memory_fd = k->t->memory_fd,
        .writes_memory = true,
        .ends_with_us = true};
    int r = choice->ops->start(&vms->config->vm, &spec, &k->vm.pid, &k->pidfd, err);
    if (r < 0)
        return r;
    setpriority(PRIO_PROCESS, (id_t)k->vm.pid, NICE); /* its threads are made after that */
    if (proc_start_time(k->vm.pid, &k->vm.pid_start) < 0)
        return err_set(err, ESRCH, "template.make", "its VMM ended at once");
    struct vmm_saved saved = saved_of(k);
    saved.deadline_ms = time_monotonic_ms() + ANSWER_TIMEOUT_MS;
    return choice->ops->check_shape ? choice->ops->check_shape(&saved, err) : 0;
}

static int set_up(struct making *k, struct err *err) {
    struct vms *vms = k->params->vms;
    int r = make_record(k, err);
    if (r == 0)
        r = make_folder(k, err);
    const struct vmm_ops *ops = k->wish->choice.ops;
    if (r == 0 && !ops->maps_saved)
        r = template_memory_new(k->vm.memory_mib, &k->t->memory_fd, err);
    if (r == 0) {
        int n = confine_enter(vms->confine, &k->vm, k->begun, ops->overhead_mib(&k->wish->choice), k->group_fds, err);
        k->group_count = n > 0 ? n : 0;
        r = n < 0 ? n : 0;
        confine_come_last(vms->confine, k->begun, k->vm.id);
    }
    if (r == 0)
        r = network_tap_create_idle(vms->network, k->vm.tap, k->vm.id, k->vm.uid, ops->opens_tap ? NULL : &k->tap_fd,
                                    err);
    return r == 0 ? start(k, err) : r;
}

/* ---- until it has settled ---- */

static void stop(struct making *k, int r) {
    k->result = r;
    loop_quit(k->loop);
}

static void enter(struct making *k, enum phase phase) {
    bool has_systemd = strcmp(k->wish->image.type, "test") != 0;
    k->phase = phase == PHASE_SERVICES && !has_systemd ? PHASE_WINDOW : phase;
    if (k->phase == PHASE_WINDOW && (!has_systemd || k->vm.type != VM_TYPE_BROWSER))
        k->phase = PHASE_QUIET;
    k->phase_ms = k->quiet_ms = time_monotonic_ms();
    k->cpu_ms = -1;
}

static void on_data(void *userdata, enum agent_stream stream, const uint8_t *data, size_t len) {
    struct making *k = userdata;
    if (stream == AGENT_STDOUT)
        strbuf_add(&k->output, (const char *)data, len);
    if (len > 0)
        agent_job_credit(k->job, stream, (uint32_t)len);
}

/* Chromium's window is there before its page, and is called that meanwhile. A template that was stopped in between, on a busy host,
 * gave copies in each of which that page loaded for ever. Source: Chromium, IDS_TAB_UNTITLED_TITLE. */
static bool has_page(const char *title) {
    return *title && !str_starts(title, "Untitled");
}

static void on_answer(void *userdata, json_t *ok, const struct err *err) {
    struct making *k = userdata;
    char title[128];
    json_t *answer = json_object();
    k->job = NULL;
    if (k->output.len > 0 && str_is_utf8(k->output.data, k->output.len))
        json_object_set_new(answer, "output", json_stringn(k->output.data, k->output.len));
    if (k->phase == PHASE_SERVICES && boot_is_settled(answer))
        enter(k, PHASE_WINDOW);
    else if (k->phase == PHASE_WINDOW && boot_find_window(answer, title, sizeof title) && has_page(title))
        enter(k, PHASE_QUIET);
    json_decref(answer);
}

static void ask(struct making *k) {
    static const struct agent_handler handler = {.data = on_data, .done = on_answer};
    int64_t now_ms = time_monotonic_ms();
    if (k->job || agent_state(k->agent) != AGENT_READY || now_ms < k->ask_ms)
        return;
    k->ask_ms = now_ms + ASK_INTERVAL_MS;
    strbuf_free(&k->output);
    k->output = (struct strbuf){.max = OUTPUT_MAX};
    json_t *request = k->phase == PHASE_SERVICES ? boot_ask_manager() : boot_ask_windows();
    agent_begin(k->agent, request, ASK_TIMEOUT_MS, &handler, k, &k->job, NULL);
}

/* For how long the VMM's threads have run, or would have if others had not, in milliseconds: on a busy host one that is far from quiet
 * gets little. -1: not known. Source: Linux, Documentation/scheduler/sched-stats.rst, /proc/<pid>/schedstat. */
static int64_t cpu_wanted_ms(pid_t pid) {
    char path[64];
    int64_t sum_ns = -1;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        _cleanup_free_ char *text = NULL;
        unsigned long long ran_ns, waited_ns;
        snprintf(path, sizeof path, "/proc/%d/task/%.16s/schedstat", pid, e->d_name);
        if (e->d_name[0] != '.' && file_read(path, 4096, &text, NULL) == 0 &&
            sscanf(text, "%llu %llu", &ran_ns, &waited_ns) == 2)
            sum_ns += (int64_t)(ran_ns + waited_ns) + (sum_ns < 0);
    }
    if (dir)
        closedir(dir);
    return sum_ns <= 0 ? -1 : sum_ns / 1000000; /* 0: this kernel does not count */
}

static void look_for_quiet(struct making *k) {
    int64_t now_ms = time_monotonic_ms(), cpu_ms;
    if (now_ms - k->quiet_ms < QUIET_MS && k->cpu_ms >= 0)
        return;
    cpu_ms = cpu_wanted_ms(k->vm.pid);
    /* It is less when a thread has ended. */
    bool is_quiet =
        k->cpu_ms >= 0 && cpu_ms >= k->cpu_ms && (cpu_ms - k->cpu_ms) * 100 < (now_ms - k->quiet_ms) * QUIET_PERCENT;
    if (is_quiet || now_ms - k->phase_ms > QUIET_MAX_MS) {
        k->phase = PHASE_DONE;
        stop(k, 0);
    }
    k->quiet_ms = now_ms;
    k->cpu_ms = cpu_ms;
}

static bool has_ended(const struct making *k) {
    struct pollfd p = {.fd = k->pidfd, .events = POLLIN};
    return poll(&p, 1, 0) != 0;
}

static void on_tick(void *userdata) {
    struct making *k = userdata;
    char path[VMS_PATH_MAX + 32];
    int64_t timeout_ms = (int64_t)k->params->vms->config->vm.type[k->vm.type].boot_timeout_ms * TIMEOUT_FACTOR;
    snprintf(path, sizeof path, "%s/console.log", k->begun);
    console_trim(path);
    if (k->phase == PHASE_AGENT && agent_state(k->agent) == AGENT_READY && agent_health(k->agent))
        enter(k, PHASE_SERVICES);
    if (atomic_load(k->params->is_unwanted))
        stop(k, err_set(k->err, EINTR, "template.unwanted", "it was broken off: others need the room"));
    else if (has_ended(k))
        stop(k,
             err_set(k->err, EIO, "template.unsettled", "its VMM ended while %s was awaited", phase_words[k->phase]));
    else if (time_monotonic_ms() - k->begun_ms > timeout_ms)
        stop(k, err_set(k->err, ETIMEDOUT, "template.unsettled", "after %lld s it still waited for %s",
                        (long long)timeout_ms / 1000, phase_words[k->phase]));
    else if (k->phase == PHASE_SERVICES || k->phase == PHASE_WINDOW)
        ask(k);
    else if (k->phase == PHASE_QUIET)
        look_for_quiet(k);
    loop_timer_again(k->tick, TICK_MS);
}

static void on_agent(void *userdata, enum agent_state state, const char *words) {
}

static void on_attended(void *userdata, const struct err *err) {
    struct making *k = userdata;
    k->talk = NULL;
    if (!err)
        return;
    *k->err = *err;
    stop(k, -err->errnum);
}

static int settle(struct making *k, struct err *err) {
    const struct vmm_ops *ops = k->wish->choice.ops;
    struct agent_params agent = {.folder = k->begun, .fd = -1, .changed = on_agent, .userdata = k};
    int r = loop_new_private(&k->loop, err);
    machine_agent_channel(&k->vm, &agent);
    agent.loop = k->loop;
    if (r == 0 && ops->attend)
        r = ops->attend(k->loop, k->begun, &k->vm, true, on_attended, k, &k->talk, err);
    if (r == 0)
        r = agent_new(&agent, &k->agent, err);
    if (r == 0 && loop_timer_new(k->loop, TICK_MS, on_tick, k, &k->tick) < 0)
        r = err_sys(err, ENOMEM, "template.make", "make a timer");
    if (r == 0)
        r = loop_run(k->loop, err);
    agent_job_cancel(k->job);
    if (r == 0)
        k->agent_fd = agent_connection(k->agent); /* as machine_agent_connect() */
    agent_free(k->agent);
    vmm_talk_free(k->talk);
    loop_timer_free(k->tick);
    loop_free(k->loop);
    strbuf_free(&k->output);
    return r < 0 ? r : k->result;
}

/* ---- the whole ---- */

static int save(struct making *k, struct err *err) {
    struct vmm_saved saved = saved_of(k);
    return k->wish->choice.ops->save(&saved, k->t->version, err);
}

static int held(const char *vm_id) {
    log_warning("the VMM of the template of %s does not end though it was killed: the kernel holds it", vm_id);
    return -EBUSY;
}

/* What of it is no file, where it is there. A VMM of that uid and id is ours. */
int template_boot_release(void *userdata, enum vm_type type, const char *vm_id, const char *folder) {
    struct vms *vms = userdata;
    struct vm vm = {.type = type, .uid = uid_of(vms)};
    struct pollfd p = {.fd = -1, .events = POLLIN};
    struct err err = {0};
    str_copy(vm.id, sizeof vm.id, vm_id);
    tap_of(vm_id, vm.tap);
    if (machine_find_vmm(&vm, &p.fd) == 0) {
        proc_signal(p.fd, SIGKILL);
        int ended = poll(&p, 1, KILL_TIMEOUT_MS);
        close(p.fd);
        if (ended == 0)
            return held(vm_id);
    }
    if (confine_kill(vms->confine, folder, vm_id, KILL_TIMEOUT_MS) < 0)
        return held(vm_id);
    if (confine_remove(vms->confine, folder, vm_id) < 0)
        log_warning("template %s-%s: its control group could not be removed", vm_type_name(type), vm_id);
    int r = network_tap_remove_idle(vms->network, vm.tap, vm_id, &err);
    if (r == 0 || strcmp(err.code, "network.tap-foreign") == 0)
        return 0;
    log_warning("%s", err.detail);
    return r;
}

/* Nobody but us holds its memory then. */
static int end_vmm(struct making *k, struct err *err) {
    struct pollfd p = {.fd = k->pidfd, .events = POLLIN};
    char words[96];
    if (k->pidfd >= 0) {
        proc_signal(k->pidfd, SIGKILL);
        if (poll(&p, 1, KILL_TIMEOUT_MS) == 0)
            return err_set(err, EBUSY, "template.make", "its VMM does not end though it was killed");
        proc_reap(k->pidfd, words, sizeof words);
    }
    fd_close(&k->tap_fd);
    if (*k->vm.id && template_boot_release(k->params->vms, k->vm.type, k->vm.id, k->begun) < 0)
        return err_set(err, EBUSY, "template.make", "what it was made with cannot be taken away: the log says what");
    return 0;
}

static void clean_up(struct making *k) {
    fd_close(&k->tap_fd);
    fd_close(&k->pidfd);
    fd_close(&k->agent_fd);
    for (int i = 0; i < k->group_count; i++)
        fd_close(&k->group_fds[i]);
}

int template_make(const struct template_boot *params, struct template *ret_template, struct err *err) {
    struct template t = {.memory_fd = -1};
    struct making k = {.params = params,
                       .wish = params->wish,
                       .t = &t,
                       .tap_fd = -1,
                       .pidfd = -1,
                       .agent_fd = -1,
                       .err = err,
                       .begun_ms = time_monotonic_ms()};
    int r = set_up(&k, err);
    if (r == 0)
        r = settle(&k, err);
    if (r == 0)
        r = save(&k, err);
    int ended = end_vmm(&k, r < 0 ? NULL : err);
    if (r == 0)
        r = ended;
    t.took_ms = time_monotonic_ms() - k.begun_ms;
    if (r == 0)
        r = template_finish(&t, params->wish, err);
    clean_up(&k);
    if (r < 0 && r != -EINTR && *k.begun && saved_check_room(k.begun, 0, NULL) < 0)
        r = -ENOSPC; /* whatever it was that somebody had no room for */
    if (r == 0) {
        *ret_template = t;
        return 0;
    }
    template_close(&t);
    if (*k.begun && ended == 0) /* else what is left is found by it, when the daemon starts again */
        dir_remove(k.begun);
    return r;
}

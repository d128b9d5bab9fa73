/* Making a VM. Theory of operation:
 *
 * The record is claimed first, on the loop's thread, so that after a crash at any later point the next start knows what
 * to look for (reconcile.c). The steps after it are done by a worker, in the order of the table below; each can be undone
 * knowing only the record and the VM's folder, and the undo of all of them is the end of a VM (end.c), whichever of them
 * have been done. Then, on the loop's thread again, the VM is booting: its VMM's pid and the state in one transaction. A
 * VM that somebody ends meanwhile is made to its end and then ended.
 *
 * Where there is a template that fits (warm.h), the steps are others: the VMM loads the template's machine, whose guest is then
 * made a machine of its own through its agent, and only then its TAP comes to the bridge and its address into the firewall's
 * sets. Until then it is "creating", so that a crash ends it as it ends any other that is half made. When one of these steps
 * fails, what they made is removed, and the VM is made cold; its story says why.
 *
 * A VM of the pool (pool.h) is made up to LOADED_STEPS, and the rest is done when it has a user. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/time.h"
#include "image/image.h"
#include "vm/hibernate.h"
#include "vm/identity.h"
#include "vm/pool.h"
#include "vm/warm.h"

#define CLAIM_ATTEMPTS 8
#define LOAD_TIMEOUT_MS 20000 /* of a template's machine, without its memory: else the VM starts cold */
#define STEPS_MAX 8

static int random_bytes(void *data, size_t len) {
    return getrandom(data, len, 0) == (ssize_t)len ? 0 : -EIO;
}

int vms_new_id(char ret_id[VM_ID_TEXT], struct err *err) {
    uint8_t random[16];
    if (random_bytes(random, sizeof random) < 0)
        return err_sys(err, EIO, "vm.create", "get random bytes");
    vm_id_from_random(random, ret_id);
    return 0;
}

/* Unique among records by the store, and on the bridge by asking it. */
static int pick_mac(struct vms *vms, struct net_mac *ret_mac, struct err *err) {
    uint8_t random[4];
    if (random_bytes(random, sizeof random) < 0)
        return err_sys(err, EIO, "vm.create", "get random bytes");
    struct net_mac mac = vm_mac_from_random(random);
    int r = network_mac_in_use(vms->network, mac);
    if (r < 0)
        return err_sys(err, -r, "vm.create", "ask the bridge who has a MAC");
    if (r > 0)
        return err_set(err, EEXIST, "network.address-taken", "something on the bridge has the MAC already");
    *ret_mac = mac;
    return 0;
}

static int fill_names(struct vms *vms, const char *id, struct vm *vm, struct err *err) {
    int r = pick_mac(vms, &vm->mac, err);
    if (r == 0 && id)
        str_copy(vm->id, sizeof vm->id, id);
    else if (r == 0)
        r = vms_new_id(vm->id, err);
    vm_tap_from_id(vm->id, vm->tap);
    if (r == 0)
        r = address_pick(vms, &vm->ip, err);
    if (r < 0)
        return r;
    struct net_prefix pool = vms->config->network.address;
    vm->uid = vms->config->vm.uid_base + (vm->ip & ~net_mask(pool.length));
    return 0;
}

/* Two random names may be taken: then with others. The pool is no user: how many it has is configured. */
static int claim(struct vms *vms, const char *id, struct vm *vm, const char *actor, struct err *err) {
    uint32_t quota = strcmp(vm->user, POOL_USER) == 0 ? UINT32_MAX : vms->config->vm.quota_per_user;
    int r = -EEXIST;
    for (int i = 0; i < CLAIM_ATTEMPTS && r == -EEXIST; i++) {
        r = fill_names(vms, id, vm, err);
        if (r == 0)
            r = store_vm_claim(vms->store, vm, quota, actor, err);
    }
    return r;
}

static int fill_request(struct vms *vms, const struct vms_request *request, struct vm *vm, struct err *err) {
    const struct config_vm_type *type = &vms->config->vm.type[request->type];
    *vm = (struct vm){.type = request->type, .state = VM_STATE_CREATING, .reachable = -1};
    vm->created_ms = vm->state_since_ms = time_realtime_ms();
    str_copy(vm->user, sizeof vm->user, request->user);
    str_copy(vm->bridge, sizeof vm->bridge, vms->config->network.bridge);
    gethostname(vm->host, sizeof vm->host - 1);
    vm->memory_mib = request->memory_mib ? request->memory_mib : type->memory_mib;
    vm->vcpus = request->vcpus ? request->vcpus : type->vcpus;
    if (vm->memory_mib < 128 || vm->memory_mib > 1048576)
        return err_set(err, EINVAL, "vm.bad-size", "%u MiB of memory: from 128 to 1048576 can be had", vm->memory_mib);
    if (vm->vcpus > 32)
        return err_set(err, EINVAL, "vm.bad-size", "%u vCPUs: from 1 to 32 can be had", vm->vcpus);
    return 0;
}

/* What the worker has of a VM that it makes: copies. */
struct creation {
    struct vms *vms;
    struct machine *m; /* for done() alone */
    struct vm vm;
    struct vmm_choice choice;
    struct image image;
    char folder[VMS_PATH_MAX];
    char actor[STORE_ACTOR_MAX];
    int jail_fd; /* 0: none */
    int group_fds[CGROUP_HIERARCHIES], group_count;
    int tap_fd, agent_fd;
    pid_t pid;
    uint64_t pid_start;
    int pidfd;
    struct template template;    /* memory_fd -1: there is none */
    bool is_warm;                /* it was made of that */
    bool is_template_bad;        /* or could not be, and that is to blame */
    bool is_spare;               /* for the pool: the last steps wait */
    bool is_loaded;              /* and now they are wanted */
    char cold_why[VMS_LINE_MAX]; /* why it was not, where one might have been */
    int64_t step_ms[STEPS_MAX];
    int result;
    struct err err;
};

static int make_folder(struct creation *c, struct err *err) {
    return mkdir(c->folder, 0700) < 0 ? err_sys(err, errno, "vm.create", "make %s", c->folder) : 0;
}

static int make_disk(struct creation *c, struct err *err) {
    return c->choice.ops->raw_disk ? image_clone_raw(&c->image, c->folder, err)
                                   : image_clone(&c->image, c->folder, err);
}

static int make_limits(struct creation *c, struct err *err) {
    int n =
        confine_enter(c->vms->confine, &c->vm, c->folder, c->choice.ops->overhead_mib(&c->choice), c->group_fds, err);
    c->group_count = n > 0 ? n : 0;
    return n < 0 ? n : 0;
}

static int make_tap(struct creation *c, struct err *err) {
    struct network_nic nic = machine_nic(&c->vm);
    int r = network_tap_create(c->vms->network, &nic, c->choice.ops->opens_tap ? NULL : &c->tap_fd, err);
    return r < 0 ? r : network_neighbour_forget(c->vms->network, c->vm.ip, err);
}

static int mark_agent(struct creation *c, struct err *err) {
    char path[VMS_PATH_MAX + 16];
    snprintf(path, sizeof path, "%s/" MACHINE_AGENT_MARK, c->folder);
    int r = file_write_new(path, "", 0, 0600);
    return r < 0 ? err_sys(err, -r, "vm.create", "make %s", path) : 0;
}

static int start_vmm(struct creation *c, struct err *err) {
    char cmdline[MACHINE_CMDLINE_MAX], netns_path[VMS_PATH_MAX];
    int netns_fd = network_namespace(c->vms->network, netns_path, sizeof netns_path);
    machine_cmdline(&c->vms->config->network, &c->vm, cmdline);
    struct vmm_spec spec = {
        .vm = &c->vm,
        .choice = &c->choice,
        .confinement = {.group_fds = c->group_fds, .group_count = c->group_count, .jail_fd = c->jail_fd},
        .folder = c->folder,
        .kernel = c->image.kernel,
        .initrd = c->image.initrd,
        .vmlinux = c->image.vmlinux,
        .cmdline = cmdline,
        .has_agent = c->image.has_agent,
        .tap_fd = c->tap_fd,
        .netns_fd = netns_fd,
        .netns_path = netns_path,
        .memory_fd = c->is_warm ? c->template.memory_fd : 0,
        .is_to_load = c->is_warm};
    int r = c->image.has_agent ? mark_agent(c, err) : 0;
    if (r < 0)
        return r;
    r = c->choice.ops->start(&c->vms->config->vm, &spec, &c->pid, &c->pidfd, err);
    if (r == 0 && proc_start_time(c->pid, &c->pid_start) < 0)
        return err_set(err, ESRCH, "vm.create", "the VMM ended at once: see vmm.log in %s", c->folder);
    c->vm.pid = c->pid;
    c->vm.pid_start = c->pid_start;
    return r;
}

/* ---- of a template ---- */

static int clone_disk(struct creation *c, struct err *err) {
    return template_clone(&c->template, c->folder, err);
}

static int make_tap_apart(struct creation *c, struct err *err) {
    struct network_nic nic = machine_nic(&c->vm);
    return network_tap_create_apart(c->vms->network, &nic, c->choice.ops->opens_tap ? NULL : &c->tap_fd, err);
}

static int load_memory(struct creation *c, struct err *err) {
    struct vmm_saved saved = {.folder = c->folder,
                              .vm = &c->vm,
                              .name = TEMPLATE_STATE,
                              .is_apart = true,
                              .deadline_ms = time_monotonic_ms() + LOAD_TIMEOUT_MS};
    c->agent_fd = machine_agent_connect(&c->vm, c->folder);
    int r = c->choice.ops->load(&saved, c->template.version, err);
    template_forget_state(c->folder);
    return r;
}

static int give_identity(struct creation *c, struct err *err) {
    struct vmm_saved saved = {.folder = c->folder, .vm = &c->vm, .deadline_ms = time_monotonic_ms() + LOAD_TIMEOUT_MS};
    int r = c->choice.ops->go(&saved, err);
    return r < 0 ? r : identity_give(c->vms, c->folder, &c->vm, &c->agent_fd, err);
}

static int connect_tap(struct creation *c, struct err *err) {
    struct network_nic nic = machine_nic(&c->vm);
    int r = network_neighbour_forget(c->vms->network, c->vm.ip, err);
    return r < 0 ? r : network_tap_connect(c->vms->network, &nic, err);
}

/* Undone by: removing the folder, its disks with it; removing the groups that the folder names; removing the TAP of
 * that alias; killing the process of that pid and start time, or who is in those groups. */
struct step {
    const char *name;
    int (*run)(struct creation *c, struct err *err);
    bool is_of_template; /* it uses the template, which may be why it failed */
};
static const struct step cold_steps[] = {
    {"folder", make_folder}, {"disk", make_disk}, {"limits", make_limits}, {"network", make_tap}, {"VMM", start_vmm}};
static const struct step warm_steps[] = {{"folder", make_folder},           {"disk", clone_disk, true},
                                         {"limits", make_limits},           {"TAP", make_tap_apart},
                                         {"VMM", start_vmm, true},          {"memory", load_memory, true},
                                         {"identity", give_identity, true}, {"network", connect_tap}};
#define LOADED_STEPS 6 /* of them: its machine stands still then */
#define STEP_COUNT(steps) (sizeof(steps) / sizeof *(steps))
static_assert(STEP_COUNT(cold_steps) <= STEPS_MAX && STEP_COUNT(warm_steps) <= STEPS_MAX,
              "creation has a time for each");

static const struct step *steps_of(const struct creation *c, size_t *ret_count) {
    *ret_count = c->is_warm ? STEP_COUNT(warm_steps) : STEP_COUNT(cold_steps);
    return c->is_warm ? warm_steps : cold_steps;
}

/* Return: the step that failed; NULL: none did. */
static const struct step *run_steps(struct creation *c) {
    size_t count;
    const struct step *steps = steps_of(c, &count);
    size_t first = c->is_warm && c->is_loaded ? LOADED_STEPS : 0;
    memset(c->step_ms, 0, sizeof c->step_ms);
    for (size_t i = first; i < (c->is_spare ? LOADED_STEPS : count); i++) {
        int64_t begun_ms = time_monotonic_ms();
        c->result = steps[i].run(c, &c->err);
        c->step_ms[i] = time_monotonic_ms() - begun_ms;
        if (c->result < 0)
            return &steps[i];
    }
    return NULL;
}

/* As if nothing had been made: but that cannot be where the kernel holds a process. */
static int take_back(struct creation *c) {
    int r = hibernate_release(c->vms, &c->vm, c->folder, c->pidfd, &c->err);
    if (r < 0)
        return r;
    fd_close(&c->pidfd);
    fd_close(&c->tap_fd);
    fd_close(&c->agent_fd);
    for (int i = 0; i < c->group_count; i++)
        fd_close(&c->group_fds[i]);
    c->group_count = 0;
    c->pid = c->vm.pid = 0;
    c->pid_start = c->vm.pid_start = 0;
    r = dir_remove(c->folder);
    return r < 0 ? err_sys(&c->err, -r, "vm.create", "remove %s", c->folder) : 0;
}

static void work(void *userdata) {
    struct creation *c = userdata;
    const struct step *failed = NULL;
    c->is_warm = c->template.memory_fd >= 0;
    if (c->is_warm)
        failed = run_steps(c);
    if (failed) {
        snprintf(c->cold_why, sizeof c->cold_why, "%s: %.200s", failed->name, c->err.detail);
        c->is_template_bad = failed->is_of_template && c->result != -ENOSPC;
        c->is_warm = false;
        if (c->is_spare) /* nobody waits for it */
            return;
        c->result = take_back(c);
        if (c->result == 0)
            c->err = (struct err){0};
    }
    if (!c->is_warm && c->result == 0)
        run_steps(c);
}

/* "made in 43 ms: folder 0, disk 12, …": for the VM's story. */
static void tell_steps(const struct creation *c, char *ret_words, size_t size) {
    struct strbuf words = {.max = size - 1};
    int64_t sum_ms = 0;
    size_t count;
    const struct step *steps = steps_of(c, &count);
    for (size_t i = 0; i < count; i++)
        sum_ms += c->step_ms[i];
    size_t first = c->is_warm && c->is_loaded ? LOADED_STEPS : 0;
    strbuf_addf(&words, "made%s%s%s in %lld ms", c->is_warm ? " warm, from template " : "",
                c->is_warm ? c->template.name : "", first ? " and the pool" : "", (long long)sum_ms);
    for (size_t i = first; i < count; i++)
        strbuf_addf(&words, "%s%s %lld", i > first ? ", " : ": ", steps[i].name, (long long)c->step_ms[i]);
    if (*c->cold_why)
        strbuf_addf(&words, "; cold: %s", c->cold_why);
    str_copy(ret_words, size, words.data ? words.data : "");
    strbuf_free(&words);
}

void create_free(struct creation *c) {
    if (!c)
        return;
    fd_close(&c->tap_fd);
    fd_close(&c->agent_fd);
    fd_close(&c->pidfd);
    template_close(&c->template);
    if (c->jail_fd > 0)
        close(c->jail_fd);
    for (int i = 0; i < c->group_count; i++)
        fd_close(&c->group_fds[i]);
    free(c);
}

static int go_on(struct creation *c, struct err *err) {
    struct machine *m = c->m;
    char words[VM_REASON_MAX];
    int r = c->result;
    tell_steps(c, words, sizeof words);
    if (r == 0)
        r = machine_change(m, VM_EVENT_STARTED, c->actor, words, err);
    m->is_fresh = true;
    m->is_warm = c->is_warm;
    return r < 0 ? r : machine_watch(m, err);
}

static void tell_warm(struct creation *c) {
    if (c->is_warm && !c->is_spare) /* one of the pool is not its own machine yet */
        warm_worked(c->vms->warm, &c->template);
    if (c->is_warm)
        return;
    machine_note(c->m, LOG_LEVEL_WARNING, "warm-failed", c->cold_why);
    if (c->is_template_bad)
        warm_failed(c->vms->warm, &c->template, c->cold_why);
}

static void done(void *userdata) {
    struct creation *c = userdata;
    struct machine *m = c->m;
    m->is_busy = false;
    m->pidfd = fd_steal(&c->pidfd);
    if (!c->is_spare) /* one of the pool is spoken to by who makes the rest of it */
        m->agent_fd = fd_steal(&c->agent_fd);
    m->vm.pid = c->pid;
    m->vm.pid_start = c->pid_start;
    if (c->template.memory_fd >= 0)
        tell_warm(c);
    if (m->vm.state == VM_STATE_STOPPING) {
        char actor[STORE_ACTOR_MAX];
        str_copy(actor, sizeof actor, m->stop_actor);
        machine_end(m, VM_EVENT_ENDED, actor, m->vm.reason, NULL);
    } else if (c->is_spare && c->result == 0) {
        m->spare = c;
        pool_keep(m);
        pool_yield(m->vms, NULL, c->choice.ops->overhead_mib(&c->choice)); /* who came meanwhile has its room */
        return;
    } else if (go_on(c, &c->err) < 0) {
        if (c->is_spare)
            pool_put_off(m->vms, m->vm.type);
        err_prefix(&c->err, "create %s", m->vm.id);
        str_copy(m->vms->last_error.id, sizeof m->vms->last_error.id, m->vm.id);
        m->vms->last_error.err = c->err;
        machine_end(m, VM_EVENT_FAILED, "controller", c->err.detail, NULL);
    }
    create_free(c);
}

static int begin(struct vms *vms, const struct creation *template, struct err *err) {
    struct creation *c = malloc(sizeof *c);
    struct machine *m = c ? machine_new(vms, &template->vm) : NULL;
    if (!m) {
        free(c);
        if (template->template.memory_fd >= 0)
            close(template->template.memory_fd);
        return err_sys(err, ENOMEM, "vm.create", "create %s", template->vm.id);
    }
    *c = *template;
    c->m = m;
    c->jail_fd = c->choice.ops->is_jailed ? confine_jail(vms->confine, c->choice.binary, c->choice.ops->opens_tap) : 0;
    machine_user_folder(vms, m->vm.id, c->folder);
    m->is_busy = true;
    if (workers_submit(vms->makers, work, done, c) == 0)
        return 0;
    m->is_busy = false;
    create_free(c);
    machine_end(m, VM_EVENT_FAILED, "controller", "there was no memory to make it", NULL);
    return err_sys(err, ENOMEM, "vm.create", "create %s", template->vm.id);
}

/* A ready one gets its user, and the rest is done. */
static int take_spare(struct machine *m, const struct vm *wanted, const char *actor, struct err *err) {
    struct vms *vms = m->vms;
    struct creation *c = m->spare;
    struct vm vm = m->vm;
    str_copy(vm.user, sizeof vm.user, wanted->user);
    vm.created_ms = vm.state_since_ms = wanted->created_ms;
    int r = store_vm_take(vms->store, &vm, vms->config->vm.quota_per_user, actor, err);
    if (r < 0)
        return r;
    machine_unwatch(m);
    m->vm = vm;
    m->spare = NULL;
    c->vm = vm;
    c->is_spare = false;
    c->is_loaded = true;
    c->pidfd = fd_steal(&m->pidfd);
    str_copy(c->actor, sizeof c->actor, actor);
    m->is_busy = true;
    if (workers_submit(vms->makers, work, done, c) == 0)
        return 0;
    m->is_busy = false;
    m->pidfd = fd_steal(&c->pidfd);
    create_free(c);
    machine_end(m, VM_EVENT_FAILED, "controller", "there was no memory to make it", NULL);
    return err_sys(err, ENOMEM, "vm.create", "create %s", vm.id);
}

static int fill(struct creation *c, const struct vms_request *request, struct err *err) {
    struct vms *vms = c->vms;
    int r = fill_request(vms, request, &c->vm, err);
    if (r == 0)
        r = vmm_choose(&vms->config->vm, &c->choice, err);
    if (r == 0)
        r = vms_open_image(vms, c->vm.type, &c->image, err);
    if (r < 0)
        return r;
    str_copy(c->vm.image, sizeof c->vm.image, c->image.name);
    str_copy(c->vm.vmm, sizeof c->vm.vmm, c->choice.ops->name);
    return 0;
}

/* Nobody gets the id of one that vms_create() would not give: who fails with it ends what has that id. */
static struct machine *find_spare_for(struct vms *vms, enum vm_type type, const char *user) {
    const struct vms_request request = {.user = user, .type = type};
    struct creation c = {.vms = vms};
    if (pool_wanted(vms, type) == 0 || fill(&c, &request, NULL) < 0 ||
        store_vm_check_quota(vms->store, user, vms->config->vm.quota_per_user, NULL) < 0 ||
        vms_admit(vms, &c.vm, c.choice.ops->overhead_mib(&c.choice), NULL) < 0)
        return NULL;
    return pool_find(vms, &c.vm, NULL);
}

int vms_new_id_for(struct vms *vms, enum vm_type type, const char *user, char ret_id[VM_ID_TEXT], struct err *err) {
    struct machine *m = find_spare_for(vms, type, user);
    if (!m)
        return vms_new_id(ret_id, err);
    memcpy(ret_id, m->vm.id, VM_ID_TEXT);
    return 0;
}

/* Nobody is hibernated for what is refused anyway. */
int vms_make_room(struct vms *vms, const struct vms_request *request, char ret_id[VM_ID_TEXT]) {
    struct image image;
    struct vm vm;
    if (fill_request(vms, request, &vm, NULL) < 0 || vms_open_image(vms, vm.type, &image, NULL) < 0 ||
        vms_check_count(vms, NULL) < 0 ||
        store_vm_check_quota(vms->store, vm.user, vms->config->vm.quota_per_user, NULL) < 0)
        return 0;
    return idle_make_room(vms, vm.memory_mib, ret_id);
}

/* Claims what was filled in, and begins. */
static int make(struct creation *c, const char *id, const char *actor, struct err *err) {
    struct vms *vms = c->vms;
    str_copy(c->actor, sizeof c->actor, actor);
    if (!warm_take(vms->warm, &c->vm, &c->image, &c->choice, &c->template, c->cold_why) && c->is_spare)
        return err_set(err, ENOENT, "template.none", "%s", c->cold_why);
    int r = claim(vms, id, &c->vm, actor, err);
    if (r < 0) {
        template_close(&c->template);
        return r;
    }
    return begin(vms, c, err);
}

int create_spare(struct vms *vms, enum vm_type type, struct err *err) {
    const struct vms_request request = {.user = POOL_USER, .type = type};
    struct creation c = {
        .vms = vms, .tap_fd = -1, .agent_fd = -1, .pidfd = -1, .template = {.memory_fd = -1}, .is_spare = true};
    int r = fill(&c, &request, err);
    if (r == 0 && vms_missing_with_spares_mib(vms, &c.vm, c.choice.ops->overhead_mib(&c.choice)) > 0)
        r = err_set(err, ENOSPC, "quota.memory", "the host has no room for it");
    return r < 0 ? r : make(&c, NULL, "controller", err);
}

int vms_create(struct vms *vms, const struct vms_request *request, const char *actor, struct vm *ret_vm,
               struct err *err) {
    struct creation c = {.vms = vms, .tap_fd = -1, .agent_fd = -1, .pidfd = -1, .template = {.memory_fd = -1}};
    struct vm *vm = &c.vm;
    int r = fill(&c, request, err);
    if (r == 0)
        r = store_vm_check_quota(vms->store, vm->user, vms->config->vm.quota_per_user, err);
    if (r == 0)
        r = vms_admit(vms, vm, c.choice.ops->overhead_mib(&c.choice), err);
    if (r < 0)
        return r;
    struct machine *spare = pool_find(vms, vm, request->id);
    if (spare) {
        r = take_spare(spare, vm, actor, err);
        if (r == 0)
            *ret_vm = spare->vm;
        return r;
    }
    warm_yield(vms->warm, vm, c.choice.ops->overhead_mib(&c.choice));
    pool_yield(vms, vm, c.choice.ops->overhead_mib(&c.choice));
    r = make(&c, request->id, actor, err);
    if (r == 0)
        *ret_vm = *vm;
    return r;
}

#include "vm/vms.h"

#include <malloc.h>
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
#include "image/image.h"
#include "vm/evidence.h"
#include "vm/machine.h"
#include "vm/pool.h"
#include "vm/warm.h"

#define CONSOLE_TRIM_INTERVAL_MS 2000
#define EXPIRE_INTERVAL_MS 600000
#define EXPIRE_FIRST_MS 2000
#define EXPIRE_RECORDS 500 /* at a time: it is the loop's thread */
#define DAY_MS 86400000LL
#define MAKERS 4
#define RESTERS 2 /* they wait for the disk */
#define ENDERS 4  /* they wait mostly, for processes and for the kernel to let a TAP go */
#define REMOVE_REASON "the controller was asked to take everything away"

void machine_user_folder(const struct vms *vms, const char *id, char ret_path[VMS_PATH_MAX]) {
    snprintf(ret_path, VMS_PATH_MAX, "%s/users/%s", vms->state_dir, id);
}

void machine_evidence_folder(const struct vms *vms, const char *id, char ret_path[VMS_PATH_MAX]) {
    snprintf(ret_path, VMS_PATH_MAX, "%s/evidence/%s", vms->state_dir, id);
}

static void look_for_image(struct vms *vms);

static void trim_consoles(void *userdata) {
    struct vms *vms = userdata;
    for (struct machine *m = vms->first; m; m = m->next) {
        char folder[VMS_PATH_MAX], path[VMS_PATH_MAX + 16];
        machine_user_folder(vms, m->vm.id, folder);
        snprintf(path, sizeof path, "%s/console.log", folder);
        console_trim(path);
        snprintf(path, sizeof path, "%s/vmm.log", folder);
        log_trim(path);
        snprintf(path, sizeof path, "%s/metrics.json", folder);
        log_trim(path);
    }
    halt_check(vms);
    idle_check(vms);
    look_for_image(vms);
    warm_check(vms->warm);
    if (vms->warm)
        pool_check(vms);
    loop_timer_again(vms->console_timer, CONSOLE_TRIM_INTERVAL_MS);
}

/* --- what is not kept for ever --- */

static void expire_evidence(void *userdata) {
    struct vms *vms = userdata;
    char folder[VMS_PATH_MAX];
    snprintf(folder, sizeof folder, "%s/evidence", vms->state_dir);
    unsigned n =
        evidence_expire(folder, vms->config->vm.evidence_days * DAY_MS, (uint64_t)vms->config->vm.evidence_mib << 20);
    if (n > 0)
        log_info("removed the evidence of %u VMs: older than %u days, or beyond %u MiB", n,
                 vms->config->vm.evidence_days, vms->config->vm.evidence_mib);
}

static void evidence_expired(void *userdata) {
}

static void expire(void *userdata) {
    struct vms *vms = userdata;
    struct err err = {0};
    uint32_t n = 0;
    int r = store_expire(vms->store, time_realtime_ms() - vms->config->store_days * DAY_MS, EXPIRE_RECORDS, &n, &err);
    if (r < 0)
        log_warning("%s", err.detail);
    workers_submit(vms->enders, expire_evidence, evidence_expired, vms);
    loop_timer_again(vms->expire_timer, n == EXPIRE_RECORDS ? EXPIRE_FIRST_MS : EXPIRE_INTERVAL_MS);
}

/* --- start and end --- */

static int make_folders(struct vms *vms, struct err *err) {
    static const char *const names[] = {"users", "evidence"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[VMS_PATH_MAX];
        snprintf(path, sizeof path, "%s/%s", vms->state_dir, names[i]);
        int r = dir_make(path, 0700);
        if (r < 0)
            return err_sys(err, -r, "state.folder", "make %s", path);
    }
    return 0;
}

int vms_start_network(struct store *store, const struct config_network *config, struct network **ret_network,
                      struct err *err) {
    _cleanup_free_ struct vm *live = NULL;
    size_t n;
    int r = store_vm_list(store, NULL, STORE_LIVE, &live, &n, err);
    if (r < 0)
        return r;
    _cleanup_free_ struct network_nic *nics = calloc(n + 1, sizeof *nics);
    if (!nics)
        return err_sys(err, ENOMEM, "vm.start", "start the network");
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        if (live[i].state != VM_STATE_HIBERNATED) /* it gets its TAP, and these with it, when it is brought back */
            nics[count++] = machine_nic(&live[i]);
    return network_start(config, nics, count, ret_network, err);
}

static int start_helpers(struct vms *vms, struct err *err) {
    int r = confine_new(&vms->config->vm, vms->state_dir, &vms->confine, err);
    if (r == 0)
        r = workers_new(vms->loop, "vm-make", MAKERS, &vms->makers, err);
    if (r == 0)
        r = workers_new(vms->loop, "vm-end", ENDERS, &vms->enders, err);
    if (r == 0)
        r = workers_new(vms->loop, "vm-rest", RESTERS, &vms->resters, err);
    if (r == 0)
        r = workers_new(vms->loop, "vm-examine", 1, &vms->examiners, err);
    if (r == 0 && (loop_timer_new(vms->loop, CONSOLE_TRIM_INTERVAL_MS, trim_consoles, vms, &vms->console_timer) < 0 ||
                   loop_timer_new(vms->loop, EXPIRE_FIRST_MS, expire, vms, &vms->expire_timer) < 0))
        r = err_sys(err, ENOMEM, "vm.start", "start the VM manager");
    return r;
}

int vms_open_image(struct vms *vms, enum vm_type type, struct image *ret_image, struct err *err) {
    const struct config_vm_type *config = &vms->config->vm.type[type];
    uint64_t disk_bytes = (uint64_t)config->disk_mib << 20;
    int r = image_open_for(*config->image_dir ? config->image_dir : vms->image_dir, vm_type_name(type), ret_image, err);
    if (r == 0 && disk_bytes > ret_image->disk_bytes)
        ret_image->disk_bytes = disk_bytes;
    return r;
}

static bool kept_boot_files(struct vms *vms, const struct vm *vm, struct image *ret_image) {
    struct image image = {0};
    char folder[VMS_PATH_MAX];
    machine_user_folder(vms, vm->id, folder);
    str_copy(image.name, sizeof image.name, vm->image);
    snprintf(image.kernel, sizeof image.kernel, "%s/" MACHINE_BOOT_FOLDER "/kernel", folder);
    snprintf(image.initrd, sizeof image.initrd, "%s/" MACHINE_BOOT_FOLDER "/initrd", folder);
    snprintf(image.vmlinux, sizeof image.vmlinux, "%s/" MACHINE_BOOT_FOLDER "/vmlinux", folder);
    if (access(image.vmlinux, R_OK) < 0)
        image.vmlinux[0] = '\0';
    if (access(image.kernel, R_OK) < 0 || access(image.initrd, R_OK) < 0)
        return false;
    *ret_image = image;
    return true;
}

/* Its build is beside the one that is current now, or still is it. */
int vms_image_of(struct vms *vms, const struct vm *vm, struct image *ret_image, struct err *err) {
    const char *own = vms->config->vm.type[vm->type].image_dir, *build = strrchr(vm->image, '/');
    for (int i = 0; build && i < 2; i++) {
        char dir[CONFIG_TEXT + 128];
        snprintf(dir, sizeof dir, "%s%s%s%s", *own ? own : vms->image_dir, i ? "" : "/",
                 i ? "" : vm_type_name(vm->type), build);
        if (image_load(dir, ret_image, NULL) == 0 && strcmp(ret_image->name, vm->image) == 0)
            return 0;
    }
    if (kept_boot_files(vms, vm, ret_image))
        return 0;
    err_set(err, ENOENT, "image.gone", "its image %s is not there any more: what was made of it cannot be started anew",
            vm->image);
    return err_hint(err, "put the image's folder back below %s", *own ? own : vms->image_dir);
}

/* To look into an image for the first time takes 100 ms and some 20 MB: now, not when the first VM is made. */
static void look_at_image(struct vms *vms) {
    struct image image;
    struct err err = {0};
    for (int type = 0; type < VM_TYPE_COUNT; type++)
        if (vms_open_image(vms, (enum vm_type)type, &image, &err) < 0)
            log_warning("no %s VM can be made: %s", vm_type_name((enum vm_type)type), err.detail);
    malloc_trim(0);
}

/* Where "current" leads, in all folders in which images are looked for. */
static void image_links(const struct vms *vms, char ret_links[VMS_PATH_MAX]) {
    size_t share = VMS_PATH_MAX / (2 * VM_TYPE_COUNT);
    memset(ret_links, 0, VMS_PATH_MAX);
    for (size_t i = 0; i < (size_t)2 * VM_TYPE_COUNT; i++) {
        char path[CONFIG_TEXT + 32];
        enum vm_type type = (enum vm_type)(i / 2);
        const char *own = vms->config->vm.type[type].image_dir;
        snprintf(path, sizeof path, "%s/%s/current", *own ? own : vms->image_dir, i % 2 ? vm_type_name(type) : ".");
        if (readlink(path, ret_links + i * share, share) < 0)
            ret_links[i * share] = '\0';
    }
}

static void image_work(void *userdata) {
    look_at_image(userdata);
}

static void image_done(void *userdata) {
    struct vms *vms = userdata;
    vms->image_is_busy = false;
}

/* A new image is looked into by a worker as soon as it is there, so that mostly no VM's making has to do it on the loop. */
static void look_for_image(struct vms *vms) {
    char links[VMS_PATH_MAX];
    image_links(vms, links);
    if (vms->image_is_busy || memcmp(links, vms->image_links, sizeof links) == 0)
        return;
    vms->image_is_busy = workers_submit(vms->makers, image_work, image_done, vms) == 0;
    if (vms->image_is_busy)
        memcpy(vms->image_links, links, sizeof links);
}

int vms_new(const struct vms_params *params, struct vms **ret_vms, struct err *err) {
    struct vms *vms = calloc(1, sizeof *vms);
    if (!vms)
        return err_sys(err, ENOMEM, "vm.start", "start the VM manager");
    vms->loop = params->loop;
    vms->store = params->store;
    vms->network = params->network;
    vms->config = params->config;
    examine_init(&vms->examine, params->config, params->state_dir);
    bool fits = str_copy(vms->state_dir, sizeof vms->state_dir, params->state_dir) &&
                str_copy(vms->image_dir, sizeof vms->image_dir, params->image_dir);
    int r = fits ? make_folders(vms, err)
                 : err_set(err, ENAMETOOLONG, "state.folder", "the path of the state folder is too long");
    if (r == 0)
        r = start_helpers(vms, err);
    vms->is_starting = true;
    examine_unshare(&vms->examine); /* of a daemon that was killed */
    if (r == 0)
        r = vms_reconcile(vms, err);
    vms->is_starting = false;
    if (r == 0)
        r = warm_new(vms, &vms->warm, err);
    if (r == 0) {
        image_links(vms, vms->image_links);
        look_at_image(vms);
    }
    if (r == 0)
        r = guard_start(vms, err);
    if (r < 0) {
        vms_free(vms);
        return r;
    }
    *ret_vms = vms;
    return 0;
}

void vms_free(struct vms *vms) {
    if (!vms)
        return;
    vms->listener_count = 0; /* they may be gone, and hear it at the next start */
    vms->over = NULL;
    vms->last_look = NULL;
    loop_timer_free(vms->console_timer);
    loop_timer_free(vms->expire_timer);
    if (vms->enders)
        machine_end_unsealed(vms);
    /* What is being made is made, what ends has ended: in this order, as the one may lead to the other. */
    warm_free(vms->warm);
    vms->warm = NULL;
    workers_free(vms->examiners);
    workers_free(vms->makers);
    workers_free(vms->resters);
    workers_free(vms->enders);
    while (vms->first)
        machine_free(vms->first);
    confine_free(vms->confine);
    guard_stop(vms);
    free(vms);
}

void vms_on_change(struct vms *vms, vms_changed_fn *fn, void *userdata) {
    if (vms->listener_count < 4)
        vms->listeners[vms->listener_count++] = (struct listener){fn, userdata};
}

void vms_on_over(struct vms *vms, vms_changed_fn *fn, void *userdata) {
    vms->over = fn;
    vms->over_data = userdata;
    machine_end_unsealed(vms);
}

bool vms_is_over(struct vms *vms, const char *id) {
    struct machine *m = machine_find(vms, id);
    return !m || m->is_over;
}

int vms_stuck(struct vms *vms, const char *id, struct err *err) {
    struct machine *m = machine_find(vms, id);
    if (!m || !m->is_over || !m->again)
        return 0;
    return err_set(err, EIO, "store.failed",
                   "VM %s has ended, but not all of it can be removed or written: is the disk full?", id);
}

int vms_not_live(struct vms *vms, const char *id, struct err *err) {
    struct vm vm;
    int r = store_vm_get(vms->store, id, &vm, err);
    if (r < 0)
        return r;
    err_set(err, EALREADY, "vm.ended", "VM %s is %s already", id, vm_state_name(vm.state));
    return err_hint(err, "mctl vm why %s tells its story", id);
}

static void stop(void *userdata) {
    machine_stop(userdata);
}

int vms_destroy(struct vms *vms, const char *id, const char *actor, const char *reason, struct vm *ret_vm,
                struct err *err) {
    struct machine *m = machine_find(vms, id);
    if (!m)
        return vms_not_live(vms, id, err);
    if (vms_stuck(vms, id, err) < 0)
        return -EIO;
    if (m->vm.state != VM_STATE_STOPPING && !m->is_over) {
        int r = machine_change(m, VM_EVENT_STOP, actor, reason, err);
        if (r < 0)
            return r;
        str_copy(m->stop_actor, sizeof m->stop_actor, actor);
        if (!m->is_busy) /* else when it has been made, or saved */
            machine_leave(m, stop);
    }
    *ret_vm = m->vm;
    return 0;
}

void vms_last_probe(struct vms *vms, const char *id, char *ret_words, size_t size) {
    struct machine *m = machine_find(vms, id);
    str_copy(ret_words, size, m && m->vm.state == VM_STATE_BOOTING ? m->last_probe : "");
}

const char *vms_state_dir(const struct vms *vms) {
    return vms->state_dir;
}

void vms_folder(struct vms *vms, const struct vm *vm, char ret_path[VMS_PATH_MAX]) {
    if (vm_state_is_end(vm->state))
        machine_evidence_folder(vms, vm->id, ret_path);
    else
        machine_user_folder(vms, vm->id, ret_path);
}

int vms_vmm(struct vms *vms, struct vmm_choice *ret_choice, struct err *err) {
    return vmm_choose(&vms->config->vm, ret_choice, err);
}

int vms_image(struct vms *vms, char *ret_name, size_t size, struct err *err) {
    struct image image;
    int r = vms_open_image(vms, VM_TYPE_BROWSER, &image, err);
    if (r < 0 && vms_open_image(vms, VM_TYPE_CLI, &image, NULL) == 0)
        r = 0;
    if (r == 0)
        str_copy(ret_name, size, image.name);
    return r;
}

int64_t vms_boot_deadline_ms(struct vms *vms, const struct vm *vm) {
    return vm->state == VM_STATE_BOOTING ? vm->state_since_ms + vms->config->vm.type[vm->type].boot_timeout_ms : 0;
}

int vms_remove_all(struct vms *vms, const char *actor, struct err *err) {
    vms->is_removing = true;
    workers_finish(vms->makers);
    workers_finish(vms->resters);
    warm_free(vms->warm); /* what it makes holds a TAP */
    vms->warm = NULL;
    for (struct machine *m = vms->first, *next; m; m = next) {
        next = m->next;
        if (m->vm.state != VM_STATE_STOPPING && machine_change(m, VM_EVENT_STOP, actor, REMOVE_REASON, err) < 0)
            log_warning("%s: %s", m->vm.id, err->detail);
        machine_end(m, m->vm.state == VM_STATE_STOPPING ? VM_EVENT_ENDED : VM_EVENT_FAILED, actor, m->vm.reason, NULL);
    }
    machine_end_unsealed(vms);
    if (!vms->first)
        return 0;
    return err_set(err, EBUSY, "vm.remove", "%u VMs could not be removed, %s is one of them: the log says why",
                   vms->count, vms->first->vm.id);
}

const struct err *vms_create_error(struct vms *vms, const char *id) {
    return strcmp(vms->last_error.id, id) == 0 ? &vms->last_error.err : NULL;
}

int vms_kill_recorded(struct store *store, struct err *err) {
    _cleanup_free_ struct vm *live = NULL;
    size_t n;
    int r = store_vm_list(store, NULL, STORE_LIVE, &live, &n, err);
    for (size_t i = 0; r == 0 && i < n; i++) {
        _cleanup_close_ int pidfd = -1;
        if (proc_open(live[i].pid, live[i].pid_start, &pidfd) == 0)
            proc_signal(pidfd, SIGKILL);
    }
    return r;
}

/* After a start: what the store says against what is there. A VM is either whole, and then it is taken up again, or it
 * is ended with a reason; what belongs to no living VM is removed. Nothing is touched that is not proven to be ours: a
 * process by pid and start time, or by its own uid and its VM's id on its command line; a TAP by the id in its alias,
 * and never one that somebody holds. */
#include <dirent.h>
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
#include "vm/hibernate.h"

#define GONE "not known: it ended while the controller was down"

/* Whether this process was started for this VM: it runs as the VM's uid and names the VM in its arguments. */
static bool is_vmm_of(pid_t pid, const struct vm *vm) {
    char path[64];
    struct stat st;
    snprintf(path, sizeof path, "/proc/%d", pid);
    if (stat(path, &st) < 0 || st.st_uid != vm->uid)
        return false;
    snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
    _cleanup_free_ char *cmdline = NULL;
    size_t len;
    return file_read(path, 65536, &cmdline, &len) == 0 && memmem(cmdline, len, vm->id, strlen(vm->id));
}

/* The VMM of a VM whose record does not hold its pid: the daemon died between the two. */
static pid_t find_vmm(const struct vm *vm) {
    DIR *proc = opendir("/proc");
    pid_t found = 0;
    for (struct dirent *e; proc && !found && (e = readdir(proc));) {
        uint64_t pid;
        if (str_to_u64(e->d_name, 1, INT32_MAX, &pid) == 0 && is_vmm_of((pid_t)pid, vm))
            found = (pid_t)pid;
    }
    if (proc)
        closedir(proc);
    return found;
}

int machine_find_vmm(struct vm *vm, int *ret_pidfd) {
    pid_t pid = find_vmm(vm);
    uint64_t start;
    _cleanup_close_ int pidfd = -1;
    if (pid <= 0 || proc_start_time(pid, &start) < 0 || proc_open(pid, start, &pidfd) < 0 || !is_vmm_of(pid, vm))
        return -ESRCH;
    vm->pid = pid;
    vm->pid_start = start;
    *ret_pidfd = fd_steal(&pidfd);
    return 0;
}

/* Takes that one for the machine's, where there is one. */
static void open_unrecorded(struct machine *m) {
    machine_find_vmm(&m->vm, &m->pidfd);
}

/* The process of a VM's record, if it lives. */
static int open_vmm(const struct vm *vm, int *ret_pidfd) {
    struct pollfd p = {.events = POLLIN};
    int r = proc_open(vm->pid, vm->pid_start, &p.fd);
    if (r < 0)
        return r;
    if (poll(&p, 1, 0) != 0 || !is_vmm_of(vm->pid, vm)) {
        fd_close(&p.fd);
        return -ESRCH;
    }
    *ret_pidfd = p.fd;
    return 0;
}

/* A VM that was being made when the daemon died: nobody has been told that it exists. Who is in its control groups is
 * killed with it; where there are none, it is found by its uid and arguments. */
static void end_half_made(struct machine *m) {
    open_unrecorded(m);
    machine_end(m, VM_EVENT_FAILED, "controller",
                machine_is_spare(m) ? "the controller ended while it waited in the pool"
                                    : "the controller ended while it was being created",
                NULL);
}

/* A TAP that somebody took off the bridge or down, or whose bridge was made anew, would leave a VM that lives and that
 * nobody reaches. Return: whether the VM can go on. */
static bool restore_tap(struct machine *m) {
    struct err err = {0};
    int r = network_tap_restore(m->vms->network, m->vm.tap, m->vm.id, &err);
    if (r == -ENODEV || r == -EPERM) {
        char reason[VM_REASON_MAX];
        snprintf(reason, sizeof reason, "its TAP %s went while the controller was down, and cannot be given back to it",
                 m->vm.tap);
        machine_end(m, VM_EVENT_FAILED, "controller", reason, NULL);
        return false;
    }
    if (r < 0)
        log_warning("%s: %s", m->vm.id, err.detail);
    return true;
}

static int take_up(struct vms *vms, const struct vm *vm, struct err *err) {
    struct machine *m = machine_new(vms, vm);
    if (!m)
        return err_sys(err, ENOMEM, "vm.start", "take up %s", vm->id);
    if (vm->state == VM_STATE_CREATING) {
        end_half_made(m);
        return 0;
    }
    bool alive = open_vmm(vm, &m->pidfd) == 0;
    if (vm->state == VM_STATE_STOPPING) {
        str_copy(m->stop_actor, sizeof m->stop_actor, "controller");
        if (!alive) {
            machine_end(m, VM_EVENT_ENDED, "controller", vm->reason, GONE);
            return 0;
        }
        machine_stop(m);
        return machine_watch(m, err);
    }
    if (vm->state == VM_STATE_HIBERNATED)
        return 0;
    if (vm->state == VM_STATE_HIBERNATING || vm->state == VM_STATE_RESUMING) {
        if (!alive)
            open_unrecorded(m);
        /* Its disk is kept whatever comes of it: without a TAP too. */
        if (m->pidfd >= 0 && network_tap_restore(vms->network, vm->tap, vm->id, err) < 0)
            log_warning("%s: %s", vm->id, err->detail);
        if (vm->state == VM_STATE_HIBERNATING)
            hibernate_take_up(m);
        else
            resume_take_up(m);
        return 0;
    }
    if (!alive) {
        machine_end(m, VM_EVENT_FAILED, "guest or host", "its VMM ended while the controller was down", GONE);
        return 0;
    }
    if (!restore_tap(m))
        return 0;
    log_event(LOG_LEVEL_INFO, (struct log_about){.event = "taken-up", .vm_id = vm->id}, "%s, VMM pid %d",
              vm_state_name(vm->state), vm->pid);
    return machine_watch(m, err);
}

static void remove_stray_taps(struct vms *vms) {
    struct network_tap *taps = NULL;
    size_t n = 0;
    struct err err = {0};
    if (network_tap_list(vms->network, &taps, &n, &err) < 0)
        log_warning("%s", err.detail);
    for (size_t i = 0; i < n; i++) {
        if (taps[i].holder_pid || !vm_id_is_valid(taps[i].vm_id) || machine_find(vms, taps[i].vm_id))
            continue;
        struct vm vm;
        /* A TAP of another controller on the same host is not ours to remove. */
        if (store_vm_get(vms->store, taps[i].vm_id, &vm, &err) < 0)
            continue;
        if (network_tap_remove(vms->network, taps[i].name, taps[i].vm_id, &err) < 0)
            log_warning("%s", err.detail);
        else
            log_info("removed %s, which the ended %s had left", taps[i].name, taps[i].vm_id);
    }
    free(taps);
}

static void remove_stray_folders(struct vms *vms) {
    char path[VMS_PATH_MAX];
    snprintf(path, sizeof path, "%s/users", vms->state_dir);
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        struct vm vm;
        if (!vm_id_is_valid(e->d_name) || machine_find(vms, e->d_name))
            continue;
        if (store_vm_get(vms->store, e->d_name, &vm, NULL) == 0) {
            machine_clean_up(vms, &vm);
            continue;
        }
        char stray[VMS_PATH_MAX];
        machine_user_folder(vms, e->d_name, stray);
        log_warning("%s belongs to no VM of this store and is left alone: remove it by hand if it is not needed",
                    stray);
    }
    if (dir)
        closedir(dir);
}

int vms_reconcile(struct vms *vms, struct err *err) {
    _cleanup_free_ struct vm *live = NULL;
    size_t n;
    int r = store_vm_list(vms->store, NULL, STORE_LIVE, &live, &n, err);
    for (size_t i = 0; r == 0 && i < n; i++) {
        r = take_up(vms, &live[i], err);
    }
    if (r == 0)
        r = address_load(vms, err);
    if (r == 0)
        remove_stray_folders(vms);
    workers_finish(vms->enders);
    if (r == 0)
        remove_stray_taps(vms);
    return r;
}

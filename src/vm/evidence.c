#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/time.h"
#include "vm/machine.h"

static const char *const kept_files[] = {"console.log", "vm-config.json", "vmm.log", "metrics.json"};

static int write_summary(const struct vm *vm, const char *folder, const char *words) {
    char path[VMS_PATH_MAX + 16], ip[NET_IP_TEXT], mac[NET_MAC_TEXT], ended[TIME_RFC3339_SIZE],
        created[TIME_RFC3339_SIZE];
    snprintf(path, sizeof path, "%s/summary.json", folder);
    net_format_ip(vm->ip, ip);
    net_format_mac(vm->mac, mac);
    time_format_rfc3339(vm->created_ms, created);
    time_format_rfc3339(time_realtime_ms(), ended);
    json_t *summary = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:s}", "id", vm->id, "user",
                                vm->user, "type", vm_type_name(vm->type), "last_state", vm_state_name(vm->state),
                                "created_at", created, "ended_at", ended, "ip", ip, "mac", mac, "tap", vm->tap, "vmm",
                                vm->vmm, "vmm_pid", (int)vm->pid, "vmm_ended", words);
    char *text = summary ? json_dumps(summary, JSON_INDENT(2)) : NULL;
    int r = text ? file_write_atomic(path, text, strlen(text), 0600) : -ENOMEM;
    free(text);
    json_decref(summary);
    return r;
}

/* Moves what tells the VM's story out of its folder. What a former attempt moved already stays. Return: 0 or -errno. */
static int seal(struct vms *vms, const struct vm *vm, const char *words) {
    char from_dir[VMS_PATH_MAX], to_dir[VMS_PATH_MAX], from[VMS_PATH_MAX + 24], to[VMS_PATH_MAX + 24];
    machine_user_folder(vms, vm->id, from_dir);
    machine_evidence_folder(vms, vm->id, to_dir);
    if (access(from_dir, F_OK) < 0)
        return 0;
    int r = dir_make(to_dir, 0700);
    for (size_t i = 0; r == 0 && i < sizeof kept_files / sizeof *kept_files; i++) {
        snprintf(from, sizeof from, "%s/%s", from_dir, kept_files[i]);
        snprintf(to, sizeof to, "%s/%s", to_dir, kept_files[i]);
        if (rename(from, to) < 0 && errno != ENOENT)
            r = -errno;
    }
    return r < 0 ? r : write_summary(vm, to_dir, words);
}

/* What costs space and tells nothing. */
static void remove_disks(const char *folder) {
    static const char *const names[] = {"disk.qcow2", "base.ext4", "qmp.sock"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[VMS_PATH_MAX + 24];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
}

void machine_cleanup(struct vms *vms, const struct vm *vm, const char *words) {
    char folder[VMS_PATH_MAX];
    struct err err = {0};
    if (network_tap_remove(vms->network, vm->tap, vm->id, &err) < 0)
        log_warning("%s: %s", vm->id, err.detail);
    machine_user_folder(vms, vm->id, folder);
    remove_disks(folder);
    int r = seal(vms, vm, words);
    if (r < 0) {
        /* Evidence is never destroyed: the next start of the controller tries again. */
        log_error("%s: its evidence stays in %s, it could not be moved: %s", vm->id, folder, strerror(-r));
        return;
    }
    r = dir_remove(folder);
    if (r < 0)
        log_warning("%s: remove %s: %s", vm->id, folder, strerror(-r));
}

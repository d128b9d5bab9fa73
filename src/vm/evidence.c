#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/time.h"
#include "vm/machine.h"

static const char *const kept_files[] = {"console.log", "vm-config.json", "vmm.log"};

static void write_summary(const struct vm *vm, const char *folder, const char *words) {
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
    if (r < 0)
        log_warning("%s: write %s: %s", vm->id, path, strerror(-r));
    free(text);
    json_decref(summary);
}

/* Moves what tells the VM's story out of its folder. What a former attempt moved already stays. */
static void seal(struct vms *vms, const struct vm *vm, const char *words) {
    char from_dir[VMS_PATH_MAX], to_dir[VMS_PATH_MAX], from[VMS_PATH_MAX + 24], to[VMS_PATH_MAX + 24];
    machine_user_folder(vms, vm->id, from_dir);
    machine_evidence_folder(vms, vm->id, to_dir);
    if (access(from_dir, F_OK) < 0)
        return;
    int r = dir_make(to_dir, 0700);
    if (r < 0) {
        log_warning("%s: make %s: %s", vm->id, to_dir, strerror(-r));
        return;
    }
    for (size_t i = 0; i < sizeof kept_files / sizeof *kept_files; i++) {
        snprintf(from, sizeof from, "%s/%s", from_dir, kept_files[i]);
        snprintf(to, sizeof to, "%s/%s", to_dir, kept_files[i]);
        if (rename(from, to) < 0 && errno != ENOENT)
            log_warning("%s: move %s: %s", vm->id, from, strerror(errno));
    }
    write_summary(vm, to_dir, words);
}

void machine_cleanup(struct vms *vms, const struct vm *vm, const char *words) {
    char folder[VMS_PATH_MAX];
    struct err err = {0};
    if (network_tap_remove(vms->network, vm->tap, vm->id, &err) < 0)
        log_warning("%s: %s", vm->id, err.detail);
    seal(vms, vm, words);
    machine_user_folder(vms, vm->id, folder);
    int r = dir_remove(folder);
    if (r < 0)
        log_warning("%s: remove %s: %s", vm->id, folder, strerror(-r));
}

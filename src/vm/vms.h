/* The VMs of this host: made, watched, proven, ended. A record in the store says what should be; this room makes it so
 * and, after a restart, compares the two (reconcile.c).
 *
 * A VM's folder is STATE/users/vm-<uuid>/ with vm-config.json, console.log, vmm.log; after its end these are in
 * STATE/evidence/vm-<uuid>/ with its story (evidence.h). Everything here is called on the loop's thread; what blocks is
 * done by workers. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent/agent.h"
#include "base/err.h"
#include "loop/loop.h"
#include "model/config.h"
#include "model/vm.h"
#include "network/network.h"
#include "store/store.h"
#include "vmm/vmm.h"

#define VMS_PATH_MAX 384
#define VMS_LINE_MAX 240

struct vms;

/* Called after each change of a VM's state or reachability was stored. */
typedef void vms_changed_fn(void *userdata, const struct vm *vm);

struct vms_params {
    struct loop *loop;
    struct store *store;
    struct network *network;
    const struct config *config;
    const char *state_dir;
    const char *image_dir;
};

struct vms_request {
    const char *user; /* valid: vm_user_check() */
    enum vm_type type;
    uint32_t memory_mib; /* 0: the type's default */
    uint32_t vcpus;      /* 0: the type's default */
    const char *id;      /* the VM's id, chosen by the caller with vms_new_id(); NULL: chosen here */
};

/* The network with the store's VMs in it: before vms_new(). The caller frees *ret_network. */
int vms_start_network(struct store *store, const struct config_network *config, struct network **ret_network,
                      struct err *err);

/* Takes up what the last daemon left: VMs whose process lives are watched again, the others end as failed, and what
 * belongs to no living VM is removed. Pointers of params stay the caller's and must outlive it. */
int vms_new(const struct vms_params *params, struct vms **ret_vms, struct err *err);

/* Frees memory and descriptors: the VMs go on. */
void vms_free(struct vms *vms);

/* At most 4 listeners. */
void vms_on_change(struct vms *vms, vms_changed_fn *fn, void *userdata);

/* Called when a VM is over and it is known how: with the state and the reason that it will have, before its evidence is sealed.
 * What is written into its folder (vms_folder() of its record, which still says that it lives) is part of that. One listener,
 * who hears at once of those that had ended while there was no controller. */
void vms_on_over(struct vms *vms, vms_changed_fn *fn, void *userdata);

/* An id for a VM that will be made: who needs it may write it down first. */
int vms_new_id(char ret_id[VM_ID_TEXT], struct err *err);

/* The same for a VM of that type and user which is made at once: where one of the pool is ready and nothing is in the way, its own,
 * and then vms_create() takes it. */
int vms_new_id_for(struct vms *vms, enum vm_type type, const char *user, char ret_id[VM_ID_TEXT], struct err *err);

/* Starts to make a VM: on return it is "creating", and soon "booting" or "failed", which vms_on_change() tells. Errors
 * leave nothing behind: "quota.user", "quota.host", "quota.memory", "network.bridge-full", "image.missing",
 * "image.broken", "network.pool-exhausted", "vmm.unusable", "vm.bad-size". */
int vms_create(struct vms *vms, const struct vms_request *request, const char *actor, struct vm *ret_vm,
               struct err *err);

/* The templates from which VMs begin, one a type. Return: their number. */
struct vms_warm {
    enum vm_type type;
    bool is_ready;
    char name[64], image[96];
    uint64_t ram_bytes;  /* of its memory, what is not zero: it is held in memory once for all VMs */
    uint64_t disk_bytes; /* all of it, on the disk */
    int64_t made_ms;     /* real time */
    int64_t took_ms;
    char words[VMS_LINE_MAX];         /* why there is none */
    unsigned pool_ready, pool_wanted; /* VMs that nobody has taken yet */
};
size_t vms_warm(struct vms *vms, struct vms_warm ret[VM_TYPE_COUNT]);

/* Why a VM could not be made, put to rest or brought back, with slug and hint, while it is the last one that could not; else
 * NULL. */
const struct err *vms_create_error(struct vms *vms, const char *id);

/* Begins the end of a live VM; vms_on_change() tells when it is stopped. A VM that is stopping already is no error.
 * Errors: -ENOENT; "vm.ended" (-EALREADY). */
int vms_destroy(struct vms *vms, const char *id, const char *actor, const char *reason, struct vm *ret_vm,
                struct err *err);

/* Puts a running VM to rest: its memory goes to the disk, its VMM ends, its record keeps what it is. On return it is
 * "hibernating"; vms_on_change() tells when it is hibernated, or that it runs on. One that is hibernated, or about to be, is
 * no error. Errors: -ENOENT; "vm.ended"; "vm.state", "vm.halted", "vmm.other" (-EPROTO); "vmm.unusable";
 * "disk.no-room" (-ENOSPC); "image.gone". */
int vms_hibernate(struct vms *vms, const char *id, const char *actor, const char *reason, struct vm *ret_vm,
                  struct err *err);

/* Brings one back that is hibernated, or will be in a moment; a running one is no error. On return it is "resuming", and
 * soon "running", or "hibernated" again with the reason; or it is wanted (vms_is_wanted()) until there is room for it, where
 * that is being made. cold: from its disk alone, and what was in memory is dropped.
 * Errors: -ENOENT; "vm.ended"; "vm.state", "saved.none", "vmm.other" (-EPROTO); "image.gone"; those of an admission. */
int vms_resume(struct vms *vms, const char *id, bool cold, const char *actor, const char *reason, struct vm *ret_vm,
               struct err *err);

/* Asks who is outside whether a VM is in use there: then it is not idle. */
typedef bool vms_in_use_fn(void *userdata, const struct vm *vm);
void vms_set_use(struct vms *vms, vms_in_use_fn *fn, void *userdata);

/* Asks who is outside whether something is still being taken from a guest that was asked to stop or to sleep, which vms_on_change()
 * has told: until then, and for 15 s at most, it goes on. */
void vms_set_last_look(struct vms *vms, vms_in_use_fn *fn, void *userdata);

/* Somebody has just used it. */
void vms_used(struct vms *vms, const char *id);

/* Where only room is missing for vms_create(), and would be there if all VMs that are idle long enough ([vm] idle_yields_after)
 * were hibernated: begins that with the longest idle one. Return: 1 with which, and who asked tries again when it is
 * hibernated; 0: nothing can or need be done. */
int vms_make_room(struct vms *vms, const struct vms_request *request, char ret_id[VM_ID_TEXT]);

/* Whether it is about to be brought back though its record does not say so yet: it is on its way to be hibernated, or waits for
 * room. */
bool vms_is_wanted(struct vms *vms, const char *id);

/* Whether it is hibernated, or on its way there or back: its agent is away then. */
bool vms_is_at_rest(struct vms *vms, const char *id);

/* Whether a VM has ended or is about to, though its record does not say so yet. */
bool vms_is_over(struct vms *vms, const char *id);

/* Whether a VM is over, but not all of it can be removed or written now. Return: 0, or -EIO "store.failed". */
int vms_stuck(struct vms *vms, const char *id, struct err *err);

/* How the last attempt to reach a booting VM went, in words; empty for others. */
void vms_last_probe(struct vms *vms, const char *id, char *ret_words, size_t size);

/* The last max bytes of the console, of a live VM or from its evidence. The caller frees. Return: 0 or -errno. */
int vms_console(struct vms *vms, const char *id, size_t max, char **ret_text, size_t *ret_len);

/* The console's last line that is not empty, escaped; empty when there is none. */
void vms_console_line(struct vms *vms, const char *id, char ret_line[VMS_LINE_MAX]);

/* Where all that VMs have is; valid as long as vms. */
const char *vms_state_dir(const struct vms *vms);

/* The room on the file system of the state folder, on which VMs' disks grow. */
struct vms_disk {
    uint64_t free_bytes;
    uint64_t enough_bytes;
    bool is_full;   /* VMs stop when they write */
    bool is_enough; /* and go on */
};
struct vms_disk vms_disk(const struct vms *vms);

/* How many VMs stand still because their VMM stopped them: they live, and are not reachable. */
unsigned vms_halted(const struct vms *vms);

/* Where a VM's files are now: its folder, or its evidence. */
void vms_folder(struct vms *vms, const struct vm *vm, char ret_path[VMS_PATH_MAX]);

/* What VMs are made with here, and why; or why none can be made. */
int vms_vmm(struct vms *vms, struct vmm_choice *ret_choice, struct err *err);

/* The name of the image that the next VM gets: a browser VM, or where none can be made a CLI VM. Errors: "image.missing", "image.broken". */
int vms_image(struct vms *vms, char *ret_name, size_t size, struct err *err);

/* The agent in a living VM's guest; NULL when there is none. Valid until the loop goes on. */
struct agent *vms_agent(struct vms *vms, const char *id);

/* Real time at which a booting VM will have failed; 0 for others. */
int64_t vms_boot_deadline_ms(struct vms *vms, const struct vm *vm);

/* Ends every VM at once and removes what they had: for taking the whole controller away. */
int vms_remove_all(struct vms *vms, const char *actor, struct err *err);

/* The same for a host whose network cannot be brought up: only ends the processes that the store knows. */
int vms_kill_recorded(struct store *store, struct err *err);

/* Inside of vm/: one live VM in memory, and the only function that changes a state. */
#pragma once

#include "vm/probe.h"
#include "vm/vms.h"

struct machine {
    struct machine *next;
    struct vms *vms;
    struct vm vm;
    int pidfd;
    sd_event_source *process;    /* the VMM's pidfd */
    struct probe *probe;         /* under way */
    struct loop_timer *again;    /* the next probe */
    struct vmm_talk *talk;       /* with the VMM, about what the machine is */
    struct loop_timer *lost;     /* until then a VMM that hung up may show that it has ended */
    bool is_fresh;               /* the VMM was started by this daemon, just now */
    struct loop_timer *deadline; /* of the boot, or of the stop */
    int failures;                /* probes that failed in a row */
    char last_probe[VMS_LINE_MAX];
    char stop_actor[STORE_ACTOR_MAX];
    bool is_owed; /* it is over, everything is cleaned up, but the store does not have it yet */
    enum vm_event owed_event;
    char owed_reason[VM_REASON_MAX];
};

struct listener {
    vms_changed_fn *fn;
    void *userdata;
};

struct vms {
    struct loop *loop;
    struct store *store;
    struct network *network;
    const struct config *config;
    char state_dir[256];
    char image_dir[256];
    struct machine *first;
    struct listener listeners[4];
    int listener_count;
    struct loop_timer *console_timer;
    uint32_t ip_cursor; /* the last address given: addresses wait before they are given again */
};

struct machine *machine_new(struct vms *vms, const struct vm *vm);
struct machine *machine_find(struct vms *vms, const char *id);

/* Takes it out of the list and frees it; the VM itself is not touched. */
void machine_free(struct machine *m);

/* The one place where a VM's state changes: reads the transition table, stores state and event in one transaction,
 * logs, tells the listeners. Errors: -EPROTO "vm.state" when the table has no such row; the store's. The machine is
 * unchanged then. */
int machine_change(struct machine *m, enum vm_event event, const char *actor, const char *reason, struct err *err);

/* Watches the VMM's process (m->pidfd) and proves the path until the deadline. */
int machine_watch(struct machine *m, struct err *err);

/* Ends the VMM: asks, waits, kills; on_process() does the rest. */
void machine_stop(struct machine *m);

/* Removes everything that the VM had but its record, and seals the evidence. Best effort, every step tried, in an
 * order that a crash may cut anywhere; what could not be removed is logged. `words`: how the process ended. */
void machine_cleanup(struct vms *vms, const struct vm *vm, const char *words);

/* Ends a VM that cannot go on: kills what is left, cleans up, failed with reason. Frees m, at once or when the store can
 * be written again. */
void machine_fail(struct machine *m, const char *actor, const char *reason);

/* The VM as network/ sees it. */
struct network_nic machine_nic(const struct vm *vm);

void machine_user_folder(const struct vms *vms, const char *id, char ret_path[VMS_PATH_MAX]);
void machine_evidence_folder(const struct vms *vms, const char *id, char ret_path[VMS_PATH_MAX]);

/* reconcile.c */
int vms_reconcile(struct vms *vms, struct err *err);

/* console.c: cuts console logs that a guest lets grow. */
void console_trim(const char *path);

/* As vms_console_line(), of what the VMM itself has said. */
void vms_log_line(struct vms *vms, const char *id, char ret_line[VMS_LINE_MAX]);

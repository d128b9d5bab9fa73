/* Inside of vm/: one live VM in memory, and the only function that changes a state.
 *
 * The loop's thread owns everything here. What blocks (making a VM, removing it, asking the doctor) is done by workers,
 * on copies; while a job is under way the machine is `is_busy`, and is not freed. */
#pragma once

#include "agent/agent.h"
#include "base/log.h"
#include "image/image.h"
#include "loop/workers.h"
#include "vm/confine.h"
#include "vm/examine.h"
#include "vm/probe.h"
#include "vm/vms.h"

/* Whether a VM stands still, and since when (halt.c). */
struct halt {
    bool is_halted, no_space;
    bool is_owed; /* the store does not have it yet */
    char words[VM_REASON_MAX];
    int64_t since_ms;       /* real time of the last change */
    int64_t ran_ms, try_ms; /* monotonic: when it last went on; when it may be tried again */
    int64_t pause_ms;       /* between two attempts */
    int events;
};

enum machine_stage {
    STAGE_KERNEL,  /* said its first word on the console */
    STAGE_NETWORK, /* the guest answered, whatever it said */
    STAGE_AGENT,   /* greeted */
    STAGE_DESKTOP, /* of a browser VM: RFB behind WebSocket */
};
#define MACHINE_STAGES 4

struct machine {
    struct machine *next;
    struct vms *vms;
    struct vm vm;
    int pidfd;
    sd_event_source *process; /* the VMM's pidfd */
    struct probe *probe;      /* under way */
    struct loop_timer *again; /* the next probe; once it is over, the next attempt to be done with it */
    struct vmm_talk *talk;    /* with the VMM, about what the machine is */
    struct vmm_watch *watch;  /* what it says by itself */
    struct halt halt;
    struct loop_timer *lost;     /* until then a VMM that hung up may show that it has ended */
    bool is_fresh;               /* the VMM was started by this daemon, just now */
    struct creation *spare;      /* a VM of the pool that is ready: what is left to do of it (create.c) */
    bool is_warm;                /* and its guest has booted already, in another VM */
    struct loop_timer *deadline; /* of the boot, of the stop, or of the last look before it */
    loop_fn *leave;              /* what comes when it has been looked at for the last time; NULL: nobody does */
    int64_t leave_until_ms;      /* monotonic */
    void *rest;                  /* freed with it: its hibernation, which begins then (hibernate.c) */
    struct agent *agent;         /* in the guest; NULL: the image has none */
    int agent_fd;                /* a connection to it, from when it was made; -1 */
    struct agent_job *agent_job; /* a fact that is asked for, the agent_fact-th, to go into agent_facts */
    json_t *agent_facts;
    int agent_fact, agent_events;
    int64_t boot_begun_ms;            /* monotonic; of a boot that this daemon began */
    int64_t stage_ms[MACHINE_STAGES]; /* of its boot, from the VMM's start; 0: not seen */
    int failures;                     /* probes that failed in a row */
    char last_probe[VMS_LINE_MAX];
    char stop_actor[STORE_ACTOR_MAX];
    bool is_busy;       /* it is being made, put to rest or brought back: a worker has it */
    bool is_unloadable; /* this host would not load what its VMM saves */
    bool is_wanted;     /* to be brought back as soon as it is hibernated, and others are that make room for it */
    bool wanted_cold;
    char wanted_actor[STORE_ACTOR_MAX], wanted_reason[VM_REASON_MAX];
    int64_t resume_begun_ms;                          /* monotonic */
    int64_t idle_since_ms, looked_ms, rest_failed_ms; /* monotonic; 0: not yet (idle.c) */
    uint64_t traffic_bytes;                           /* of its TAP, at the last look */
    bool was_away;                                    /* its guest stood still, and has not been told */
    bool is_as_before;                                /* its memory was loaded: what ran in it does */
    enum {
        PREPARE_NOT,
        PREPARE_BEGUN,
        PREPARE_DONE,
    } preparing; /* its guest is told that it was away: resume_prepare() */
    struct agent_job *prepare_job;
    char prepare_words[160];
    bool is_over;             /* it has ended or cannot go on: only removal, evidence and the record are left */
    bool is_killed;           /* by us, after it was asked to end */
    bool is_examined;         /* the doctor looks at it */
    int64_t examined_ms;      /* monotonic: when the doctor was asked last; 0: not since it was reached last */
    char process_end[96];     /* how its VMM ended, where that is known already */
    enum vm_event owed_event; /* once is_over */
    char owed_reason[VM_REASON_MAX];
};

struct listener {
    vms_changed_fn *fn;
    void *userdata;
};

#define RESTING_MAX 1024 /* addresses; more VMs do not end while one rests */

struct resting {
    uint32_t ip;
    int64_t since_ms; /* real time, as in the records */
};

struct warm;

struct vms {
    struct loop *loop;
    struct store *store;
    struct network *network;
    const struct config *config;
    char state_dir[256];
    char image_dir[256];
    struct machine *first;
    uint32_t count; /* machines */
    struct listener listeners[4];
    int listener_count;
    vms_in_use_fn *in_use, *last_look;
    void *in_use_data, *last_look_data;
    vms_changed_fn *over;
    void *over_data;
    struct loop_timer *console_timer, *expire_timer;
    sd_event_source *guard; /* of the firewall */
    struct loop_timer *guard_timer;
    bool guard_failed, guard_is_busy;
    int guard_result; /* of the worker that put it back */
    struct err guard_err;
    uint32_t ip_cursor; /* the last address given: addresses wait before they are given again */
    struct resting resting[RESTING_MAX];
    size_t rest_next;
    bool disk_was_full;
    char image_links[VMS_PATH_MAX]; /* of the images that were looked into last */
    bool image_is_busy;             /* a worker looks */
    struct confine *confine;
    struct examine examine;
    struct warm *warm;
    int64_t pool_retry_ms[VM_TYPE_COUNT];                  /* monotonic */
    struct workers *makers, *enders, *resters, *examiners; /* one kind never waits for another */
    int endings;                                           /* under way */
    struct ending *unsealed; /* found at the start, and whom the VMs served is not there yet (end.c) */
    struct {
        char id[VM_ID_TEXT];
        struct err err;
    } last_error; /* of the last VM that could not be made, kept or brought back: slug and hint are not in its record */
    bool is_starting; /* takes up what the last daemon left */
    bool is_removing; /* takes everything away, which needs no doctor */
};

struct machine *machine_new(struct vms *vms, const struct vm *vm);
struct machine *machine_find(struct vms *vms, const char *id);

/* Takes it out of the list and frees it; the VM itself is not touched. */
void machine_free(struct machine *m);

/* The one place where a VM's state changes: reads the transition table, stores state and event in one transaction,
 * logs, tells the listeners. The reason stays with the VM unless it boots or runs: then all is well. Errors: -EPROTO "vm.state" when the table has no such row; the store's. The machine is
 * unchanged then. But a stop is made where the store does not take it too: it is stored with the VM's end. */
int machine_change(struct machine *m, enum vm_event event, const char *actor, const char *reason, struct err *err);

/* Tells the listeners how it is. */
void machine_tell(struct machine *m);

/* Watches the VMM's process (m->pidfd) and proves the path until the deadline. */
int machine_watch(struct machine *m, struct err *err);

/* How long a VM has been booting: its VMM's age, for the clock may have been set since the record was written; but one of the pool
 * had its VMM long before. now_ms: real time. */
int64_t machine_boot_age_ms(const struct vm *vm, int64_t vmm_age_ms, int64_t now_ms);

/* No probes, timers and process events any more. */
void machine_unwatch(struct machine *m);

/* leave.c: calls then(m) when nobody outside looks into its guest any more: mostly at once. Its state is told already. */
void machine_leave(struct machine *m, loop_fn *then);

/* The same now: where machine_leave() waits (m->leave), and there is nothing left to be looked at. */
void machine_let_go(struct machine *m);

/* Ends the VMM: asks, waits, kills; its end does the rest. */
void machine_stop(struct machine *m);

/* Whether the VM runs and is reached, in words where it is not. Stored with an event. */
void machine_set_reachable(struct machine *m, bool reachable, const char *words);

/* end.c: begins the end of a VM that cannot go on, or whose VMM is gone after a stop. Kills what is left, collects and
 * seals the evidence, removes everything that it had, stores `event` with the reason, which a cause that was found is
 * put in front of; and then frees m. `process`: how its VMM ended, NULL where it may still run. */
void machine_end(struct machine *m, enum vm_event event, const char *actor, const char *reason, const char *process);

/* Goes on with the endings that were found at the start, to their end. */
void machine_end_unsealed(struct vms *vms);

/* The same for what an earlier attempt left of a VM whose end is stored already. */
void machine_clean_up(struct vms *vms, const struct vm *vm);

/* watch.c: asks the doctor about a VM that cannot be reached, unless it has been asked not long ago. */
void machine_examine(struct machine *m);

/* halt.c: listens to the VMM, from machine_watch() to the end. */
void machine_listen(struct machine *m);
void machine_hush(struct machine *m);

/* The VM runs, whatever was said before. */
void machine_goes_on(struct machine *m);

/* Lets VMs that stand still for lack of space go on when there is some again; tells when the disk becomes full. To be called
 * now and then. */
void halt_check(struct vms *vms);

/* The VM as network/ sees it. */
struct network_nic machine_nic(const struct vm *vm);

/* The kernel's command line: the guest's address, its gateway and the bridge's own prefix among it. */
#define MACHINE_CMDLINE_MAX 2048 /* bytes; what kernels and Firecracker take */
void machine_cmdline(const struct config_network *network, const struct vm *vm, char ret_cmdline[MACHINE_CMDLINE_MAX]);

void machine_user_folder(const struct vms *vms, const char *id, char ret_path[VMS_PATH_MAX]);
void machine_evidence_folder(const struct vms *vms, const char *id, char ret_path[VMS_PATH_MAX]);

/* The image for the next VM of a type, with the disk size that is configured. Errors: those of image_open_for(). */
int vms_open_image(struct vms *vms, enum vm_type type, struct image *ret_image, struct err *err);

/* The image of a VM that there is, whatever is built meanwhile; of one whose build was removed, what was kept of it in the VM's
 * folder, which is enough to start a VMM. Error: "image.gone". */
#define MACHINE_BOOT_FOLDER "boot" /* in the VM's folder: kernel, initrd, vmlinux as hard links */
int vms_image_of(struct vms *vms, const struct vm *vm, struct image *ret_image, struct err *err);

/* Why nothing can be done with a VM that has no machine: "vm.ended", or that there is none. */
int vms_not_live(struct vms *vms, const char *id, struct err *err);

/* Its machine runs, or is to. */
static inline bool machine_is_up(const struct machine *m) {
    return m->vm.state == VM_STATE_BOOTING || m->vm.state == VM_STATE_RUNNING || m->vm.state == VM_STATE_RESUMING;
}

/* idle.c: hibernates what nobody uses. To be called now and then. */
void idle_check(struct vms *vms);

/* idle.c: begins to hibernate the VM that is idle for the longest time, where a VM of that size has no room and would have, if
 * all that are idle long enough ([vm] idle_yields_after) were hibernated. Return: as vms_make_room(). */
int idle_make_room(struct vms *vms, uint32_t memory_mib, char ret_id[VM_ID_TEXT]);

/* A VM of the pool (pool.h): it has no user yet, and no admission counts it. */
bool machine_is_spare(const struct machine *m);

/* create.c: begins to make one. Errors: as vms_create(). */
int create_spare(struct vms *vms, enum vm_type type, struct err *err);
void create_free(struct creation *creation); /* takes NULL */

/* admit.c. Error: "quota.host". */
int vms_check_count(const struct vms *vms, struct err *err);

/* admit.c: how many MiB are missing for a VM of that size; 0: there is room. vm NULL: for those that there are. */
uint64_t vms_missing_mib(struct vms *vms, const struct vm *vm, uint32_t overhead_mib);
uint64_t vms_missing_with_spares_mib(struct vms *vms, const struct vm *vm, uint32_t overhead_mib);

/* admit.c: whether this host has room for the VM. Errors: "quota.host", "quota.memory", "network.bridge-full". */
int vms_admit(struct vms *vms, const struct vm *vm, uint32_t overhead_mib, struct err *err);

/* address.c. Error of address_pick(): "network.pool-exhausted" -ENOSPC. */
int address_load(struct vms *vms, struct err *err);
int address_pick(struct vms *vms, uint32_t *ret_ip, struct err *err);
void address_rest(struct vms *vms, uint32_t ip, int64_t since_ms);

/* guard.c */
int guard_start(struct vms *vms, struct err *err);
void guard_stop(struct vms *vms);

/* stages.c: an event in the VM's story that changes no state; and the stages of its boot, each told once. */
void machine_note(struct machine *m, enum log_level level, const char *name, const char *reason);
void machine_reach(struct machine *m, enum machine_stage stage);
void machine_look_at_console(struct machine *m);
/* The whole of it, "booted in 21.3 s: kernel after 1.2 s, …"; empty where an earlier daemon saw its beginning. */
void machine_tell_boot(const struct machine *m, char *ret_words, size_t size);

/* agent.c: the guest's agent is looked after from machine_watch() to the end. */
#define MACHINE_AGENT_MARK                                                                                             \
    ".agent" /* in the VM's folder: its image has an agent. A newer image may not, or only then */
void machine_agent_start(struct machine *m);
/* Where a VM's agent is reached, and who must have made that: of `vm` what its VMM is, of *ret all but folder and callback. */
void machine_agent_channel(const struct vm *vm, struct agent_params *ret);
/* A connection to the agent's channel, made while a VMM waits for the memory that it is to load. The host is there then as it was when
 * that was saved, for it hung up only after that; a guest that wakes without finds out, and looks for its channel again and again.
 * Return: the caller's; -1 where there is no agent, or its channel does not outlive its machine. Any thread. */
int machine_agent_connect(const struct vm *vm, const char *folder);
void machine_agent_stop(struct machine *m);
void machine_agent_collect(struct machine *m); /* keeps as evidence what it says now */
/* Whether a guest that answers over the network has an agent that does not answer yet; then last_probe says so. */
bool machine_agent_awaited(struct machine *m);

/* reconcile.c */
int vms_reconcile(struct vms *vms, struct err *err);

/* The VMM of a VM that nobody has the pid of: it runs as its uid and names its id in its arguments. Sets pid and pid_start.
 * Return: 0, or -ESRCH: there is none. */
int machine_find_vmm(struct vm *vm, int *ret_pidfd);

/* console.c: cuts console logs that a guest lets grow. */
void console_trim(const char *path);

/* Drops the terminal's own sequences (ESC [ … letter, ESC letter), which a boot log is full of, in place. Return: the new length. */
size_t console_strip(char *text, size_t len);

/* Likewise for a file that its VMM writes where it is, and does not append to: Firecracker's log and metrics, which grow
 * for as long as it runs. */
void log_trim(const char *path);

/* As vms_console_line(), of what the VMM itself has said. */
void vms_log_line(struct vms *vms, const char *id, char ret_line[VMS_LINE_MAX]);

/* A virtual machine monitor as a small table of operations: what the lifecycle needs of one, whichever it is. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "loop/loop.h"
#include "model/config.h"
#include "model/vm.h"

#define VMM_WORDS_MAX 256
#define VMM_VERSION_MAX 96
#define VMM_SHAPE_TEXT 65 /* a SHA-256 in hex */
#define VMM_TEMPLATE_DISK "template.qcow2"

/* By this name the agent finds its port in the guest: the same as in agent/frame.h, a room that this one cannot see. */
#define VMM_AGENT_PORT "org.master-controller.agent"

struct vmm_choice;

/* How its process is held: all of it stays the caller's. */
struct vmm_confinement {
    const int *group_fds; /* control groups to join: proc_spec */
    int group_count;
    int jail_fd; /* 0: it sees the host's files */
};

/* What a VMM is started with. Descriptors stay the caller's. */
struct vmm_spec {
    const struct vm *vm;
    const struct vmm_choice *choice;
    struct vmm_confinement confinement;
    const char *folder;          /* the VM's own, of root alone, in which its disk lies (image/image.h) */
    const char *kernel, *initrd; /* paths; the kernel as a bzImage */
    const char *vmlinux;         /* the same kernel uncompressed; empty: the image has none */
    const char *cmdline;         /* the kernel's */
    bool has_agent;              /* the guest has one: it gets a channel */
    int tap_fd;                  /* attached; -1 for a VMM that opens the TAP itself (opens_tap) */
    int netns_fd;                /* the network namespace in which the TAP is */
    const char *netns_path;      /* and its path; empty: the daemon's own */
    bool is_furnished;           /* the folder is that of an earlier start of the same VM */
    bool is_to_load;             /* the machine waits for load() */
    int memory_fd; /* the file that is its memory, of its size; 0: it has its own, or maps what it loads (maps_saved) */
    bool writes_memory; /* what the guest writes goes into that file; else what it writes is this machine's alone */
    bool ends_with_us;  /* proc_spec */
};

#define VMM_SAVED_MEMORY "memory" /* the name of the largest of the files that save() writes */

/* The kept memory of a machine that does not run. */
struct vmm_saved {
    const char *folder;  /* of the VM */
    const struct vm *vm; /* pid and uid are those of its VMM */
    const char *name;    /* of the folder in it that holds the memory: save() writes files into it, load() reads them */
    const char *accel;   /* what will run it when it is loaded: save() refuses a machine that something else runs */
    int64_t deadline_ms; /* monotonic: what is not done by then has failed, whatever the VMM has answered until then */
    /* It is a template's. QEMU: its memory is a file already (vmm_spec.memory_fd), and only the rest is written, or read.
     * Firecracker: what is read is root's, and others read it too. */
    bool is_apart;
    const atomic_bool
        *is_unwanted; /* what may take long is broken off then: "template.unwanted"; NULL: nobody asks that */
};

/* A conversation with a VMM, under way on the loop. */
struct vmm_talk;
void vmm_talk_free(struct vmm_talk *talk); /* breaks it off without a word to anybody; takes NULL */

/* The end of a conversation: err is NULL, or says what failed at which step. The talk is gone already. */
typedef void vmm_done_fn(void *userdata, const struct err *err);

/* What a VMM says by itself while its machine runs. */
enum vmm_news {
    VMM_NEWS_RUNS,       /* its processors run: said once when listening begins, and when they go on */
    VMM_NEWS_NO_SPACE,   /* they stand still, because its disk could not grow: the host's is full. go_on() goes on */
    VMM_NEWS_STANDS,     /* they stand still for another reason */
    VMM_NEWS_DISK_ERROR, /* the guest got an error of its disk, and goes on with it */
    VMM_NEWS_PANIC,      /* the guest said that its kernel panicked */
};

/* words: the VMM's own, safe to show; may be empty. */
typedef void vmm_news_fn(void *userdata, enum vmm_news news, const char *words);

/* Listening to a VMM, on the loop, for as long as the VM is looked after. */
struct vmm_watch;
void vmm_watch_free(struct vmm_watch *watch); /* takes NULL */

struct vmm_ops {
    const char *name;
    bool opens_tap; /* by name, as the VM's uid: it must not be attached to by anybody else then */
    bool raw_disk;  /* wants image_clone_raw() */

    /* A memory that it loads is a file that it opens for reading only and maps privately, so many machines can have one of
     * root's; else that is vmm_spec.memory_fd. */
    bool maps_saved;

    /* The agent's channel: a socket of this name in the VM's folder, there at the latest when the machine runs; NULL
     * where this driver has none. */
    const char *agent_socket;
    uint32_t agent_vsock_port; /* the socket wants "CONNECT port" first; 0: it is the channel itself */

    /* MiB that its process needs beside the guest's memory, for its limit. */
    uint32_t (*overhead_mib)(const struct vmm_choice *choice);

    /* Whether it runs in the jail of base/jail.h, in which choice->binary is to be had; else it has its own, or needs
     * paths. */
    bool is_jailed;

    /* Starts it. Writes vm-config.json, console.log and vmm.log into the folder. Any thread. Return: 0 with the process
     * (the caller owns the pidfd), or -errno with nothing left running. */
    int (*start)(const struct config_vm *config, const struct vmm_spec *spec, pid_t *ret_pid, int *ret_pidfd,
                 struct err *err);

    /* Brings what start() began to the point where the machine runs; NULL where it runs at once. fresh: start() has
     * just returned. Else, after a restart of the daemon: it is asked what it knows, and told the rest.
     * Return: 0, then done is called later; or -errno and done is never called. */
    int (*attend)(struct loop *loop, const char *folder, const struct vm *vm, bool fresh, vmm_done_fn *done,
                  void *userdata, struct vmm_talk **ret_talk, struct err *err);

    /* Listens to what it says by itself; both NULL where it says nothing (then what it writes into its log is all). A VMM
     * that does not answer is no error: it is tried again. */
    int (*watch)(struct loop *loop, const char *folder, vmm_news_fn *news, void *userdata, struct vmm_watch **ret_watch,
                 struct err *err);
    void (*go_on)(struct vmm_watch *watch);

    /* Asks the guest to shut down. Best effort and without waiting: a guest need not obey. watch: of watch(), NULL where
     * that is. */
    void (*ask_shutdown)(struct loop *loop, const char *folder, const struct vm *vm, struct vmm_watch *watch);

    /* Stops the machine's processors, or lets them go on; NULL where it cannot. As attend() otherwise. */
    int (*set_paused)(struct loop *loop, const char *folder, const struct vm *vm, bool paused, vmm_done_fn *done,
                      void *userdata, struct vmm_talk **ret_talk, struct err *err);

    /* The next three keep a machine while it does not run, and bring it back. They block, for as long as its memory needs;
     * any thread. Nobody else may speak to the VMM meanwhile (watch, talk).
     *
     * save() stops the machine and writes what it is, synced; it stands still from then on, and go() lets it go on, as if
     * nothing had been, after a failure too. ret_version is of this VMM: what saves and what loads are to be the same.
     * load() gives a machine that start() began with is_to_load its memory; it stands still then, and go() begins. A
     * failure leaves the files as they are, and a VMM that is good for nothing.
     * Errors: "vmm.talk", "vmm.refused", "vmm.lost", "vmm.timeout" with the VMM's words; "vmm.other" of save();
     * "vmm.other-version" of load(). */
    int (*save)(const struct vmm_saved *saved, char ret_version[VMM_VERSION_MAX], struct err *err);
    int (*load)(const struct vmm_saved *saved, const char *version, struct err *err);
    int (*go)(const struct vmm_saved *saved, struct err *err);

    /* Many machines can be begun from one that was saved: is_apart, and vm/template_layout.c for how its files lie. The digest is
     * of all that has to be the same in the machine that saves and in those that load, but for the VMM's version. */
    int (*shape)(const struct config_vm *config, const struct vmm_spec *spec, char ret_digest[VMM_SHAPE_TEXT],
                 struct err *err);

    /* Asks a VMM that start() has just begun whether it is new enough for that; NULL: any is. Blocks, as save(). Error:
     * "warm.not-here" with words. */
    int (*check_shape)(const struct vmm_saved *saved, struct err *err);

    /* What its own counters say about the VM's network, in words ("the guest has not sent one frame"); empty where they
     * say nothing. NULL where it has none. They are those of its last flush: flush() asks for one. */
    void (*tell_counters)(const char *folder, char ret_words[VMM_WORDS_MAX]);
    int (*flush)(struct loop *loop, const char *folder, const struct vm *vm, vmm_done_fn *done, void *userdata,
                 struct vmm_talk **ret_talk, struct err *err);
};

/* What the configuration and the host come to: "qemu", with the accelerator and the reason for both in words. */
struct vmm_choice {
    const struct vmm_ops *ops;
    char accel[8];    /* kvm or tcg */
    char reason[384]; /* "QEMU with TCG: /dev/kvm does not exist" */
    char binary[CONFIG_TEXT];
    char jailer[CONFIG_TEXT]; /* Firecracker's; empty: it is started without */
};

/* The driver of that name, as a VM's record has it; NULL when this program has none such. */
const struct vmm_ops *vmm_find(const char *name);

/* Errors: "vmm.unusable" when what the configuration asks for cannot be had, with what is missing. */
int vmm_choose(const struct config_vm *config, struct vmm_choice *ret_choice, struct err *err);

extern const struct vmm_ops vmm_qemu;
extern const struct vmm_ops vmm_firecracker;

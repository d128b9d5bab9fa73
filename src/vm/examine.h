/* Asks the network doctor about one VM, in a process of its own (mctl doctor): what it needs of memory, threads and time
 * is not the daemon's, and what ends it does not end the daemon. Blocks: for a worker. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "model/config.h"
#include "model/vm.h"

#define EXAMINE_WORDS_MAX 300

struct examine {
    const struct config *config; /* the caller's */
    char mctl[CONFIG_TEXT];      /* empty: there is none */
    char state_dir[256];
    pthread_mutex_t shared_lock; /* of the snapshot that several VMs share */
    int64_t shared_ms;           /* monotonic: when it was begun; 0: there is none */
};

/* Finds the mctl that belongs to this daemon. */
void examine_init(struct examine *examine, const struct config *config, const char *state_dir);

/* Saves what can be collected about the VM's network, without sending anything. Return: 0 or -errno. */
int examine_save(const struct examine *examine, const char *vm_id, const char *path, struct err *err);

/* The same where many VMs end at a time: one snapshot of all of them, hard-linked to path, for those whose end had begun
 * (since_ms, monotonic) before it was. */
int examine_save_shared(struct examine *examine, int64_t since_ms, const char *path, struct err *err);

/* Forgets the shared snapshot; who has it keeps it. */
void examine_unshare(struct examine *examine);

enum examine_result {
    EXAMINE_UNKNOWN,   /* the doctor could not be asked, or cannot tell */
    EXAMINE_REACHABLE, /* it reaches the guest */
    EXAMINE_FINDING,   /* it does not, and ret_words is why */
};

/* Probes the VM's path and says what is wrong with it, in words. */
enum examine_result examine_path(const struct examine *examine, const char *vm_id, char ret_words[EXAMINE_WORDS_MAX]);

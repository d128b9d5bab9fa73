/* How the VMMs of this host are held: a control group for each (cpu, memory, pids), and a private view of the files.
 * What a host cannot give is said once in the log, and done without. */
#pragma once

#include "base/cgroup.h"
#include "model/config.h"
#include "model/vm.h"
#include "vmm/vmm.h"

struct confine;

/* Finds out what this host can give. */
int confine_new(const struct config_vm *config, const char *state_dir, struct confine **ret_confine, struct err *err);
void confine_free(struct confine *confine);

/* A descriptor of the view in which `program` is (the caller closes it), or 0 where there is none. Of the loop's thread:
 * a program that was replaced needs a new view. */
int confine_jail(struct confine *confine, const char *program, bool with_tun);

/* Makes the VM's groups, and writes their paths into its folder before. Any thread.
 * Return: the number of *ret_fds (the caller closes them), or -errno. */
int confine_enter(const struct confine *confine, const struct vm *vm, const char *folder, uint32_t overhead_mib,
                  int ret_fds[CGROUP_HIERARCHIES], struct err *err);

/* Where processors are short, who is in the VM's groups gets a tenth of what others get: between groups a process's own niceness
 * counts for nothing. Source: sched(7); cgroup-v2.rst, cpu.weight; v1: cpu.shares. */
void confine_come_last(const struct confine *confine, const char *folder, const char *vm_id);

/* Kills who is in the VM's groups, and is therefore proven to be this VM's. Return: 0, or -EBUSY when
 * somebody is left after timeout_ms. */
int confine_kill(const struct confine *confine, const char *folder, const char *vm_id, int timeout_ms);

struct confine_figures {
    uint64_t oom_kills;
    uint64_t memory_peak_bytes;
};

/* What the groups have counted. */
void confine_measure(const struct confine *confine, const char *folder, const char *vm_id, struct confine_figures *ret);

/* Removes the groups; they are empty. Return: 0 or the last -errno. */
int confine_remove(const struct confine *confine, const char *folder, const char *vm_id);

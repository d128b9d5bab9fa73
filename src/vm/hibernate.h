/* Inside of vm/: VMs that cost no memory for a while. Theory of operation:
 *
 * To hibernate begins with the last look of who is outside at its guest (leave.c). Then it is one job of a worker: the VMM
 * stops its machine and writes memory and devices (vmm_ops.save) into saved.tmp, which gets its digests, its manifest, and
 * then the name saved (saved.h). That rename decides: before it the machine goes on whatever fails, behind it the VMM is
 * killed, and TAP, firewall elements and control groups go. The record keeps id, TAP name, MAC, address and uid, which are
 * nobody else's as long as it has not ended.
 *
 * To resume is another: saved's manifest is held against VM, image and disk, groups, TAP and VMM are made anew, saved's files are
 * held against the manifest while the VMM comes up, the VMM loads the memory and stands still, saved is dropped, the machine goes on. The drop decides: before it the VMM is killed whatever fails and the
 * VM is hibernated as it was; behind it the guest may have written to its disk, and the memory is never loaded again. A cold
 * start drops saved at its beginning.
 *
 * So after a crash state and folder say what is true (hibernate_take_up, resume_take_up):
 *
 *     hibernating   saved there: it is hibernated, once its VMM is killed. Else: its VMM lives: it goes on. Else: its disk alone
 *     resuming      saved there: it is hibernated, once its VMM is killed. Else: its VMM lives: it goes on. Else: its disk alone
 *
 * A VMM that neither saves nor goes on (go() fails, and it lives) is asked to go on again and again; when [vm]
 * hibernate_timeout is over it is killed. Until then the VM is "hibernating": it stands still.
 *
 * A VM of which only its disk is left is hibernated too: it can be started cold, and is not lost. */
#pragma once

#include "vm/machine.h"
#include "vm/saved.h"

/* What was begun when the last daemon died; m->pidfd is its VMM where that lives. */
void hibernate_take_up(struct machine *m);
void resume_take_up(struct machine *m);

/* Begins to bring back those that are wanted and hibernated, or to make room for them. To be called when one has settled. */
void resume_wanted(struct vms *vms);

/* The agent answers: where the guest was away, its clock is set and its random numbers are renewed. */
void resume_prepare(struct machine *m);
void resume_stop_preparing(struct machine *m);

/* Of a VM that is resuming. */
/* A probe was answered: whether the VM is running now. */
bool resume_prove(struct machine *m);
/* Not proven in time, and its VMM has ended. */
void resume_late(struct machine *m);
void resume_lost(struct machine *m, const char *how);

/* Nobody is left who could use what it has, and TAP and control groups go; its folder stays. Any thread. pidfd -1: none.
 * Error: "vm.release" -EBUSY where the kernel holds a process: it is to be done again (hibernate_again()). */
int hibernate_release(struct vms *vms, const struct vm *vm, const char *folder, int pidfd, struct err *err);

/* Monotonic: of a save, load or go that begins now. */
int64_t hibernate_deadline_ms(const struct vms *vms);

/* Calls fn in a second, by m->again, which it frees. */
void hibernate_again(struct machine *m, loop_fn *fn, void *userdata);

/* What vms_create_error() tells of it, from an attempt's failure to the next attempt. */
void hibernate_keep_error(struct machine *m, const struct err *err);
void hibernate_forget_error(struct machine *m);

/* Changes the state, and tries again each second while the store cannot take it: until then the machine is busy. */
void hibernate_settle(struct machine *m, enum vm_event event, const char *reason);

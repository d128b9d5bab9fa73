/* Users' credentials in their CLI VMs: put there when the VM runs, taken back when a tool there renews them.
 *
 * Theory of operation. A CLI VM that runs gets the files of each credential of its user that no other living VM owns (vault.h),
 * with their owner and mode, and owns it when they are there: so an owner's files are never a former login's. From then on its
 * files are read every now and then: what differs, and stays so for a moment, is put to the profile's check in that VM, as
 * after a login, and what is there when that has passed is sealed as a new version. What does not pass is left there; the
 * vault keeps what it has, and the check is asked again when the files change, and seldom when they do not. A new login
 * gives a new version, which takes the place of the files; what the VM then still has of the former one is not taken. After
 * a restart of the daemon the vault says which VM owns what: its files are compared, not overwritten.
 *
 * A VM that is about to stop or sleep is looked at once more, and is let go when that has been (custody_is_looking()). An owner
 * whose files are gone has been logged out by its user: that is kept with the credential, and no VM gets it, after a restart
 * or when this one has ended, until its user logs in anew or its files are there again. A daemon may die between the last file
 * and the mark of the owner: then they are put there once more.
 *
 * Everything runs on the loop's thread. */
#pragma once

#include "loop/loop.h"
#include "store/store.h"
#include "vault/vault.h"
#include "vm/vms.h"

struct custody;

struct custody_params {
    struct loop *loop;
    struct store *store;
    struct vault *vault;
    struct vms *vms;
    const char *providers; /* the folder of profiles */
};

/* Looks after the CLI VMs that run. Pointers of params stay the caller's. */
int custody_new(const struct custody_params *params, struct custody **ret_custody, struct err *err);
void custody_free(struct custody *custody); /* takes NULL */

/* Any VM's state has changed. */
void custody_vm_changed(struct custody *custody, const struct vm *vm);

/* A credential of the user was stored. */
void custody_stored(struct custody *custody, const char *user);

/* Whether a VM that stops, or is put to rest, is still being looked at for the last time: for seconds at most. */
bool custody_is_looking(const struct custody *custody, const char *vm_id);

/* Whether the version is in a VM of the user, whose id is given then. */
bool custody_where(const struct custody *custody, const char *user, const char *provider, uint64_t version,
                   char ret_vm[VM_ID_TEXT]);

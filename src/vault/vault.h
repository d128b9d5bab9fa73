/* The vault: users' credentials, sealed in the store, opened only for the VM that owns them.
 *
 * Theory of operation. A credential (its files as one text, which is the session's business) is sealed by a data key of its own,
 * bound to user, provider and version; the data key is wrapped by the master key (keys.h). Each version that is stored is a
 * new one. One VM owns a credential at a time, because refresh tokens may be single-use: the VM from which a login is
 * stored; then the one that gets it, when the former owner has ended. Who owns it has the version that is stored, and only
 * the owner renews it.
 *
 * Rotation, every step of which may be the last before a crash:
 *   1. the key file gets a new first line, the old keys behind it, and is synced   (old records open, new ones use the new)
 *   2. every record's data key is wrapped by the new key, in one transaction, which is synced   (both keys are there)
 *   3. the key file loses the old keys
 * What a crash left undone is done by vault_resume() at the next start. A record that no key opens keeps the old keys there.
 *
 * Nothing here is logged, and no error holds a secret. Everything runs on the loop's thread. */
#pragma once

#include "vault/keys.h"

struct vault;

/* Looks at nothing yet. key_file: absolute. The store stays the caller's and must outlive it. */
int vault_new(struct store *store, const char *key_file, struct vault **ret_vault, struct err *err);
void vault_free(struct vault *vault); /* takes NULL */

/* Stores a login that was made in a VM, which owns it then, in the place of any former one. The first one of all makes the key
 * where there is none. Errors: "vault.size", those of keys_load(); "vault.key-missing" where there are credentials already. */
int vault_put(struct vault *vault, const char *user, const char *provider, const char *vm_id, const void *data,
              size_t len, uint64_t *ret_version, struct err *err);

/* Opens it for a VM that owns it, or that may. Errors: -ENOENT "vault.none"; -EBUSY "vault.owned": another VM that
 * lives owns it; -EKEYREVOKED "vault.logged-out": its user logged out in another VM; "vault.key-unknown", "vault.damaged". The
 * caller frees with secret_free(). */
int vault_open(struct vault *vault, const char *user, const char *provider, const char *vm_id,
               struct secret *ret_secret, uint64_t *ret_version, struct err *err);

/* The VM has that version, and owns it from now on. Errors: -ENOENT, -EBUSY as above; -ESTALE "vault.changed": it is not
 * the version that is stored. */
int vault_own(struct vault *vault, const char *user, const char *provider, const char *vm_id, uint64_t version,
              struct err *err);

/* Takes renewed files back from their owner; former: the version that it has. Errors: -EPERM "vault.not-owner", -ESTALE
 * "vault.changed". */
int vault_renew(struct vault *vault, const char *user, const char *provider, const char *vm_id, uint64_t former,
                const void *data, size_t len, uint64_t *ret_version, struct err *err);

/* Its owner's files of that version are gone (is_out: its user has logged out there, and no VM gets it any more until there
 * is a new version), or are there again. Errors: -ENOENT; -ESTALE "vault.changed". */
int vault_log_out(struct vault *vault, const char *user, const char *provider, const char *vm_id, uint64_t version,
                  bool is_out, struct err *err);

/* The VM gives back what it owns: another may take it without waiting for this one's end. */
int vault_release(struct vault *vault, const char *vm_id, struct err *err);

struct vault_rotation {
    uint32_t rewrapped, unopened; /* records */
    bool done;                    /* the old keys are gone */
};
int vault_rotate(struct vault *vault, struct vault_rotation *ret_rotation, struct err *err);

/* Finishes a rotation that was cut off. Without one, and without a key, nothing is done. */
int vault_resume(struct vault *vault, struct vault_rotation *ret_rotation, struct err *err);

struct vault_status {
    struct keys_place place;
    unsigned keys; /* 0: there is none, or `err` says why it is not used */
    uint8_t key_id[CREDENTIAL_KEY_ID];
    uint32_t credentials, other_key; /* records; those that are not wrapped by the current key */
    struct err err;
};
int vault_look(struct vault *vault, struct vault_status *ret_status, struct err *err);

/* The vault's master keys: lines of 64 hex digits, the first of which is used to seal, the others to open what is not
 * rewrapped yet. They come from systemd's credential "vault-key" ($CREDENTIALS_DIRECTORY) or else from a file of root's
 * alone. They are read for each use and wiped behind it: between uses the daemon has none in its memory. */
#pragma once

#include <stdbool.h>

#include "vault/seal.h"

#define KEYS_MAX 8

struct keys {
    struct secret memory; /* count keys of SEAL_KEY_SIZE bytes */
    unsigned count;
    bool from_systemd; /* read-only for us */
};
void keys_free(struct keys *keys);
#define _cleanup_keys_ __attribute__((cleanup(keys_free)))

/* Where keys are read from. */
struct keys_place {
    char path[512];
    bool from_systemd;
};
/* credentials: $CREDENTIALS_DIRECTORY, or NULL. A credential that is there wins over the file. */
void keys_find(const char *credentials, const char *file, struct keys_place *ret_place);

/* Errors: -ENOENT "vault.key-missing"; "vault.key-unsafe", naming the file, what is unsafe and how to mend it: a symbolic
 * or second hard link, another owner than root or us, a mode that lets others in, a folder that others may write;
 * "vault.key-invalid". */
int keys_load(const struct keys_place *place, struct keys *ret_keys, struct err *err);

/* Writes the keys, a new one in front of them where add_new is true, at most `keep` of the old ones: atomically, and on the
 * disk when it returns. Refused for systemd's ("vault.key-systemd"). */
int keys_write(const struct keys_place *place, const struct keys *keys, bool add_new, unsigned keep, struct err *err);

const uint8_t *keys_current(const struct keys *keys);

/* The key with that id; NULL where it is none of these. */
const uint8_t *keys_by_id(const struct keys *keys, const uint8_t id[CREDENTIAL_KEY_ID]);

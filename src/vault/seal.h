/* Sealing: XChaCha20-Poly1305 with associated data, a data key for each record, wrapped by a master key. Pure but for
 * random bytes. What is sealed for one user, provider and version opens for no other.
 * Source: libsodium's documentation of crypto_aead_xchacha20poly1305_ietf. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "model/credential.h"
#include "store/store.h"

#define SEAL_KEY_SIZE 32
#define SEAL_PLAIN_MAX (256 * 1024)

/* Memory for secrets: locked, guarded, not in core files, wiped when it is freed. NULL where there is none. */
struct secret {
    uint8_t *data;
    size_t len;
};
int secret_new(size_t len, struct secret *ret_secret, struct err *err);
void secret_free(struct secret *secret); /* takes an empty one */
#define _cleanup_secret_ __attribute__((cleanup(secret_free)))

/* 8 bytes of the master key's hash: tells which key it was, and nothing of it. */
void seal_key_id(const uint8_t master[SEAL_KEY_SIZE], uint8_t ret_id[CREDENTIAL_KEY_ID]);

/* Seals plain (1 to SEAL_PLAIN_MAX bytes) for about's user, provider and version with a new data key. Fills in about.key_id,
 * wrapped and sealed; the caller ends with store_credential_done(). */
int seal_close(const uint8_t master[SEAL_KEY_SIZE], const uint8_t *plain, size_t len, const struct credential *about,
               struct store_credential *ret_credential, struct err *err);

/* Error: -EBADMSG "vault.damaged": not sealed by this key, or not for this user, provider and version, or changed. */
int seal_open(const uint8_t master[SEAL_KEY_SIZE], const struct store_credential *credential, struct secret *ret_plain,
              struct err *err);

/* The same data key wrapped by another master key: about.key_id and wrapped are replaced. Errors as seal_open(). */
int seal_rewrap(const uint8_t from[SEAL_KEY_SIZE], const uint8_t to[SEAL_KEY_SIZE], struct store_credential *credential,
                struct err *err);

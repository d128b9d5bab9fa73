/* A login's files as one text, which is what the vault seals:
 *
 *   "mc-files/1\n", and for each file "PATH MODE LENGTH\n" (below the home; octal; bytes) and its bytes.
 *
 * Pure. What is in it is secret: it is built in memory that is wiped. */
#pragma once

#include "model/provider.h"
#include "vault/seal.h"

struct bundle {
    struct secret memory; /* of SEAL_PLAIN_MAX bytes */
    size_t len;
};
int bundle_new(struct bundle *ret_bundle, struct err *err);
void bundle_free(struct bundle *bundle); /* takes an empty one */

/* Return: where up to *ret_room bytes of the next file may be written, before bundle_add() takes them. */
uint8_t *bundle_room(struct bundle *bundle, size_t *ret_room);

/* Takes the len bytes at bundle_room(). Error: -EMSGSIZE "login.too-large". */
int bundle_add(struct bundle *bundle, const struct provider_file *file, size_t len, struct err *err);

struct bundle_file {
    struct provider_file file;
    const uint8_t *data; /* borrowed */
    size_t len;
};

/* Walks over a text; *at is 0 for the first. Return: 1, 0 at the end, -EBADMSG for what is no bundle. */
int bundle_next(const uint8_t *text, size_t len, size_t *at, struct bundle_file *ret_file);

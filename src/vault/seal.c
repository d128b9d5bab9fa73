#include "vault/seal.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#define NONCE crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
#define TAG crypto_aead_xchacha20poly1305_ietf_ABYTES

_Static_assert(SEAL_KEY_SIZE == crypto_aead_xchacha20poly1305_ietf_KEYBYTES, "the cipher's key");
_Static_assert(STORE_WRAPPED_SIZE == NONCE + SEAL_KEY_SIZE + TAG, "a wrapped key");
_Static_assert(STORE_SEALED_MAX >= NONCE + SEAL_PLAIN_MAX + TAG, "the largest credential");

int secret_new(size_t len, struct secret *ret_secret, struct err *err) {
    uint8_t *data = sodium_init() < 0 ? NULL : sodium_malloc(len ? len : 1);
    if (!data) {
        err_sys(err, ENOMEM, "vault.failed", "memory for a secret");
        return -ENOMEM;
    }
    *ret_secret = (struct secret){.data = data, .len = len};
    return 0;
}

void secret_free(struct secret *secret) {
    sodium_free(secret->data);
    *secret = (struct secret){0};
}

void seal_key_id(const uint8_t master[SEAL_KEY_SIZE], uint8_t ret_id[CREDENTIAL_KEY_ID]) {
    static const uint8_t context[] = "mc-vault key id";
    uint8_t hash[crypto_generichash_BYTES];
    crypto_generichash(hash, sizeof hash, context, sizeof context, master, SEAL_KEY_SIZE);
    memcpy(ret_id, hash, CREDENTIAL_KEY_ID);
}

/* What a ciphertext is bound to. Neither a user nor a provider has a NUL in it, so no two sets read the same. */
struct bound {
    size_t len;
    uint8_t data[16 + CREDENTIAL_KEY_ID + VM_USER_MAX + SESSION_PROVIDER_MAX + 2 + 8];
};

static void add(struct bound *b, const void *data, size_t len) {
    memcpy(b->data + b->len, data, len);
    b->len += len;
}

static struct bound bind_to(const char *purpose, const struct credential *c, bool with_key) {
    struct bound b = {0};
    add(&b, purpose, strlen(purpose) + 1);
    if (with_key)
        add(&b, c->key_id, CREDENTIAL_KEY_ID);
    add(&b, c->user, strlen(c->user) + 1);
    add(&b, c->provider, strlen(c->provider) + 1);
    for (int i = 0; i < 8; i++)
        b.data[b.len++] = (uint8_t)(c->version >> (8 * i));
    return b;
}

/* out has NONCE + len + TAG bytes. */
static void encrypt(uint8_t *out, const uint8_t *plain, size_t len, const struct bound *b, const uint8_t *key) {
    randombytes_buf(out, NONCE);
    crypto_aead_xchacha20poly1305_ietf_encrypt(out + NONCE, NULL, plain, len, b->data, b->len, NULL, out, key);
}

/* in has NONCE + len + TAG bytes. */
static int decrypt(uint8_t *out, const uint8_t *in, size_t len, const struct bound *b, const uint8_t *key) {
    return crypto_aead_xchacha20poly1305_ietf_decrypt(out, NULL, NULL, in + NONCE, len + TAG, b->data, b->len, in, key);
}

static void wrap(const uint8_t *master, const uint8_t *data_key, struct store_credential *c) {
    seal_key_id(master, c->about.key_id);
    struct bound b = bind_to("mc-vault-key/1", &c->about, true);
    encrypt(c->wrapped, data_key, SEAL_KEY_SIZE, &b, master);
}

static int damaged(const struct credential *c, struct err *err) {
    err_set(err, EBADMSG, "vault.damaged", "the credential of user %s for %s cannot be opened: it was changed", c->user,
            c->provider);
    err_hint(err, "take the database from a backup, or let the user log in again");
    return -EBADMSG;
}

static int unwrap(const uint8_t *master, const struct store_credential *c, struct secret *ret_key, struct err *err) {
    _cleanup_secret_ struct secret key = {0};
    int r = secret_new(SEAL_KEY_SIZE, &key, err);
    if (r < 0)
        return r;
    struct bound b = bind_to("mc-vault-key/1", &c->about, true);
    if (decrypt(key.data, c->wrapped, SEAL_KEY_SIZE, &b, master) < 0)
        return damaged(&c->about, err);
    *ret_key = key;
    key = (struct secret){0};
    return 0;
}

int seal_close(const uint8_t master[SEAL_KEY_SIZE], const uint8_t *plain, size_t len, const struct credential *about,
               struct store_credential *ret_credential, struct err *err) {
    _cleanup_secret_ struct secret key = {0};
    struct store_credential c = {.about = *about, .sealed_len = NONCE + len + TAG};
    if (len < 1 || len > SEAL_PLAIN_MAX)
        return err_set(err, EINVAL, "vault.size", "a credential has 1 to %d bytes, not %zu", SEAL_PLAIN_MAX, len);
    int r = secret_new(SEAL_KEY_SIZE, &key, err);
    if (r < 0)
        return r;
    c.sealed = malloc(c.sealed_len);
    if (!c.sealed)
        return err_sys(err, ENOMEM, "vault.failed", "seal a credential");
    randombytes_buf(key.data, key.len);
    wrap(master, key.data, &c);
    struct bound b = bind_to("mc-vault/1", &c.about, false);
    encrypt(c.sealed, plain, len, &b, key.data);
    *ret_credential = c;
    return 0;
}

int seal_open(const uint8_t master[SEAL_KEY_SIZE], const struct store_credential *c, struct secret *ret_plain,
              struct err *err) {
    _cleanup_secret_ struct secret key = {0}, plain = {0};
    if (c->sealed_len <= NONCE + TAG)
        return damaged(&c->about, err);
    int r = unwrap(master, c, &key, err);
    if (r == 0)
        r = secret_new(c->sealed_len - NONCE - TAG, &plain, err);
    if (r < 0)
        return r;
    struct bound b = bind_to("mc-vault/1", &c->about, false);
    if (decrypt(plain.data, c->sealed, plain.len, &b, key.data) < 0)
        return damaged(&c->about, err);
    *ret_plain = plain;
    plain = (struct secret){0};
    return 0;
}

int seal_rewrap(const uint8_t from[SEAL_KEY_SIZE], const uint8_t to[SEAL_KEY_SIZE], struct store_credential *c,
                struct err *err) {
    _cleanup_secret_ struct secret key = {0};
    int r = unwrap(from, c, &key, err);
    if (r == 0)
        wrap(to, key.data, c);
    return r;
}

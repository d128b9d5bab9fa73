#include "vault/vault.h"

#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"

struct vault {
    struct store *store;
    char key_file[256];
};

int vault_new(struct store *store, const char *key_file, struct vault **ret_vault, struct err *err) {
    struct vault *vault = calloc(1, sizeof *vault);
    if (!vault)
        return err_sys(err, ENOMEM, "vault.failed", "open the vault");
    vault->store = store;
    if (!str_copy(vault->key_file, sizeof vault->key_file, key_file)) {
        free(vault);
        return err_set(err, ENAMETOOLONG, "vault.failed", "the path of the vault's key is too long");
    }
    *ret_vault = vault;
    return 0;
}

void vault_free(struct vault *vault) {
    free(vault);
}

static struct keys_place find_place(const struct vault *vault) {
    struct keys_place place;
    keys_find(getenv("CREDENTIALS_DIRECTORY"), vault->key_file, &place);
    return place;
}

static int list(struct vault *vault, struct credential **ret_list, size_t *ret_n, struct err *err) {
    return store_credential_list(vault->store, NULL, ret_list, ret_n, err);
}

/* keys_load(), and where there is no key although something is sealed: -ENOKEY with what to do. */
static int load(struct vault *vault, const struct keys_place *place, struct keys *ret_keys, struct err *err) {
    _cleanup_free_ struct credential *all = NULL;
    size_t n = 0;
    int r = keys_load(place, ret_keys, err);
    if (r != -ENOENT || list(vault, &all, &n, NULL) < 0 || n == 0)
        return r;
    err_set(err, ENOKEY, "vault.key-missing", "there is no vault key %s, and %zu credentials are sealed by it",
            place->path, n);
    return err_hint(err,
                    "put it back from a backup; where there is none: (umask 077; openssl rand -hex 32 >%s), and "
                    "every user logs in again",
                    place->path);
}

/* The keys for sealing: made where none was ever needed. A key that is gone is not replaced while something is sealed by
 * it: it may be in a backup. */
static int keys_for_sealing(struct vault *vault, struct keys *ret_keys, struct err *err) {
    struct keys_place place = find_place(vault);
    int r = load(vault, &place, ret_keys, err);
    if (r != -ENOENT)
        return r;
    r = keys_write(&place, NULL, true, 0, err);
    return r < 0 ? r : keys_load(&place, ret_keys, err);
}

static int store_new(struct vault *vault, struct credential *about, const void *data, size_t len, struct err *err) {
    _cleanup_keys_ struct keys keys = {0};
    struct store_credential sealed;
    uint64_t former = about->version;
    int r = keys_for_sealing(vault, &keys, err);
    if (r < 0)
        return r;
    about->version++;
    about->updated_ms = time_realtime_ms();
    about->logged_out_ms = 0;
    r = seal_close(keys_current(&keys), data, len, about, &sealed, err);
    if (r < 0)
        return r;
    r = store_credential_put(vault->store, &sealed, former, err);
    store_credential_done(&sealed);
    return r;
}

/* The record without its contents. Return: 0 or -ENOENT "vault.none". */
static int look_up(struct vault *vault, const char *user, const char *provider, struct credential *ret_about,
                   struct err *err) {
    struct store_credential c = {0};
    int r = store_credential_get(vault->store, user, provider, &c, err);
    if (r == 0)
        *ret_about = c.about;
    store_credential_done(&c);
    return r;
}

int vault_put(struct vault *vault, const char *user, const char *provider, const char *vm_id, const void *data,
              size_t len, uint64_t *ret_version, struct err *err) {
    struct credential about = {.created_ms = time_realtime_ms()};
    int r = look_up(vault, user, provider, &about, err);
    if (r < 0 && r != -ENOENT)
        return r;
    str_copy(about.user, sizeof about.user, user);
    str_copy(about.provider, sizeof about.provider, provider);
    str_copy(about.owner_vm, sizeof about.owner_vm, vm_id);
    r = store_new(vault, &about, data, len, err);
    if (r == 0)
        *ret_version = about.version;
    return r;
}

/* A VM that has ended, or that nobody knows any more, owns nothing. */
static bool is_alive(struct vault *vault, const char *vm_id) {
    struct vm vm;
    int r = *vm_id ? store_vm_get(vault->store, vm_id, &vm, NULL) : -ENOENT;
    return r != -ENOENT && (r < 0 || !vm_state_is_end(vm.state));
}

static int may_own(struct vault *vault, const struct credential *about, const char *vm_id, struct err *err) {
    if (strcmp(about->owner_vm, vm_id) == 0 || !is_alive(vault, about->owner_vm))
        return 0;
    err_set(err, EBUSY, "vault.owned", "the credential of user %s for %s is in use by %s", about->user, about->provider,
            about->owner_vm);
    return err_hint(err, "it can be in one VM at a time: end that one first");
}

/* Its files are nobody's but the VM's in which they were removed: they may come back there. */
static int may_have(struct vault *vault, const struct credential *about, const char *vm_id, struct err *err) {
    int r = may_own(vault, about, vm_id, err);
    if (r < 0 || !about->logged_out_ms || strcmp(about->owner_vm, vm_id) == 0)
        return r;
    err_set(err, EKEYREVOKED, "vault.logged-out", "user %s has logged out of %s in %s", about->user, about->provider,
            about->owner_vm);
    return err_hint(err, "a new login ends that");
}

static int open_record(struct vault *vault, const struct store_credential *c, struct secret *ret_secret,
                       struct err *err) {
    _cleanup_keys_ struct keys keys = {0};
    struct keys_place place = find_place(vault);
    int r = load(vault, &place, &keys, err);
    if (r < 0)
        return r;
    const uint8_t *key = keys_by_id(&keys, c->about.key_id);
    if (key)
        return seal_open(key, c, ret_secret, err);
    char id[2 * CREDENTIAL_KEY_ID + 1];
    str_hex(c->about.key_id, sizeof c->about.key_id, id);
    err_set(err, ENOKEY, "vault.key-unknown",
            "the credential of user %s for %s is sealed by the key %s, which is not in %s", c->about.user,
            c->about.provider, id, place.path);
    return err_hint(err, "add that key's line from a backup, or let the user log in again");
}

int vault_open(struct vault *vault, const char *user, const char *provider, const char *vm_id,
               struct secret *ret_secret, uint64_t *ret_version, struct err *err) {
    struct store_credential c = {0};
    _cleanup_secret_ struct secret secret = {0};
    int r = store_credential_get(vault->store, user, provider, &c, err);
    if (r == 0)
        r = may_have(vault, &c.about, vm_id, err);
    if (r == 0)
        r = open_record(vault, &c, &secret, err);
    if (r == 0) {
        *ret_version = c.about.version;
        *ret_secret = secret;
        secret = (struct secret){0};
    }
    store_credential_done(&c);
    return r;
}

static int changed(const char *user, const char *provider, struct err *err) {
    return err_set(err, ESTALE, "vault.changed", "the credential of user %s for %s was renewed meanwhile", user,
                   provider);
}

int vault_own(struct vault *vault, const char *user, const char *provider, const char *vm_id, uint64_t version,
              struct err *err) {
    struct credential about = {0};
    int r = look_up(vault, user, provider, &about, err);
    if (r == 0 && about.version != version)
        r = changed(user, provider, err);
    if (r == 0)
        r = may_own(vault, &about, vm_id, err);
    if (r < 0 || strcmp(about.owner_vm, vm_id) == 0)
        return r;
    return store_credential_own(vault->store, &about, vm_id, err);
}

int vault_renew(struct vault *vault, const char *user, const char *provider, const char *vm_id, uint64_t former,
                const void *data, size_t len, uint64_t *ret_version, struct err *err) {
    struct credential about = {0};
    int r = look_up(vault, user, provider, &about, err);
    if (r < 0)
        return r;
    if (strcmp(about.owner_vm, vm_id) != 0)
        return err_set(err, EPERM, "vault.not-owner", "the credential of user %s for %s is not %s's any more", user,
                       provider, vm_id);
    if (about.version != former)
        return changed(user, provider, err);
    r = store_new(vault, &about, data, len, err);
    if (r == 0)
        *ret_version = about.version;
    return r;
}

int vault_log_out(struct vault *vault, const char *user, const char *provider, const char *vm_id, uint64_t version,
                  bool is_out, struct err *err) {
    struct credential about = {0};
    int r = look_up(vault, user, provider, &about, err);
    if (r < 0)
        return r;
    if (about.version != version || strcmp(about.owner_vm, vm_id) != 0)
        return changed(user, provider, err);
    if ((about.logged_out_ms != 0) == is_out)
        return 0;
    return store_credential_log_out(vault->store, &about, is_out ? time_realtime_ms() : 0, err);
}

int vault_release(struct vault *vault, const char *vm_id, struct err *err) {
    _cleanup_free_ struct credential *all = NULL;
    size_t n;
    int r = list(vault, &all, &n, err);
    for (size_t i = 0; r == 0 && i < n; i++)
        if (strcmp(all[i].owner_vm, vm_id) == 0)
            r = store_credential_own(vault->store, &all[i], "", err);
    return r;
}

/* --- rotation --- */

static int rewrap_one(struct vault *vault, const struct keys *keys, const struct credential *about,
                      struct vault_rotation *rotation, struct err *err) {
    struct store_credential c = {0};
    const uint8_t *from = keys_by_id(keys, about->key_id), *to = keys_current(keys);
    if (from == to)
        return 0;
    int r = from ? store_credential_get(vault->store, about->user, about->provider, &c, err) : 0;
    if (r < 0)
        return r;
    /* One that does not open is left to who looks into it, and its key with it. */
    if (!from || seal_rewrap(from, to, &c, NULL) < 0) {
        rotation->unopened++;
    } else {
        r = store_credential_rewrap(vault->store, &c.about, c.wrapped, err);
        rotation->rewrapped += r == 0;
    }
    store_credential_done(&c);
    return r;
}

static int rewrap_all(struct vault *vault, const struct keys *keys, struct vault_rotation *rotation, struct err *err) {
    _cleanup_free_ struct credential *all = NULL;
    size_t n;
    int r = list(vault, &all, &n, err);
    if (r == 0)
        r = store_transaction(vault->store, err);
    if (r < 0)
        return r;
    for (size_t i = 0; r == 0 && i < n; i++)
        r = rewrap_one(vault, keys, &all[i], rotation, err);
    r = store_transaction_end(vault->store, r, err);
    return r < 0 ? r : store_sync(vault->store, err);
}

/* Steps 2 and 3. */
static int finish(struct vault *vault, const struct keys_place *place, struct vault_rotation *ret_rotation,
                  struct err *err) {
    _cleanup_keys_ struct keys keys = {0};
    struct vault_rotation rotation = {0};
    int r = keys_load(place, &keys, err);
    if (r == 0)
        r = rewrap_all(vault, &keys, &rotation, err);
    /* systemd's old keys are the operator's to remove. */
    if (r == 0 && rotation.unopened == 0 && keys.count > 1 && !place->from_systemd)
        r = keys_write(place, &keys, false, 1, err);
    if (r < 0)
        return r;
    rotation.done = rotation.unopened == 0 && (keys.count == 1 || !place->from_systemd);
    *ret_rotation = rotation;
    return 0;
}

int vault_rotate(struct vault *vault, struct vault_rotation *ret_rotation, struct err *err) {
    struct keys_place place = find_place(vault);
    _cleanup_keys_ struct keys keys = {0};
    int r = load(vault, &place, &keys, err);
    if (r < 0)
        return r;
    if (place.from_systemd && keys.count > 1)
        return finish(vault, &place, ret_rotation, err);
    if (keys.count == KEYS_MAX) {
        err_set(err, EXFULL, "vault.keys-full", "%s holds %d keys: what is sealed by the old ones cannot be opened",
                place.path, KEYS_MAX);
        return err_hint(err, "mctl vault status names what is not opened");
    }
    r = keys_write(&place, &keys, true, keys.count, err);
    return r < 0 ? r : finish(vault, &place, ret_rotation, err);
}

int vault_resume(struct vault *vault, struct vault_rotation *ret_rotation, struct err *err) {
    struct keys_place place = find_place(vault);
    unsigned count = 0;
    {
        _cleanup_keys_ struct keys keys = {0};
        int r = load(vault, &place, &keys, err);
        if (r < 0 && r != -ENOENT)
            return r;
        count = keys.count;
    }
    if (count > 1)
        return finish(vault, &place, ret_rotation, err);
    *ret_rotation = (struct vault_rotation){.done = true};
    return 0;
}

int vault_look(struct vault *vault, struct vault_status *ret_status, struct err *err) {
    struct vault_status status = {.place = find_place(vault)};
    _cleanup_free_ struct credential *all = NULL;
    _cleanup_keys_ struct keys keys = {0};
    size_t n;
    int r = list(vault, &all, &n, err);
    if (r < 0)
        return r;
    status.credentials = (uint32_t)n;
    /* No key is fine before the first credential. */
    r = load(vault, &status.place, &keys, &status.err);
    if (r == 0) {
        status.keys = keys.count;
        seal_key_id(keys_current(&keys), status.key_id);
    } else if (r == -ENOENT) {
        status.err = (struct err){0};
    }
    for (size_t i = 0; i < n; i++)
        status.other_key += memcmp(all[i].key_id, status.key_id, sizeof status.key_id) != 0;
    *ret_status = status;
    return 0;
}

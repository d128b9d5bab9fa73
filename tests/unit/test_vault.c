/* The vault over a real store: what opens for whom, keys that are refused, rotation that is killed at every step, and a
 * search for what must be nowhere. */
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "cmocka_all.h"
#include "vault/vault.h"

#define DIED 77

/* --- a process that dies at its n-th step to the disk: before it, or right behind it --- */

static int steps, die_at;

#define STEP(call)                                                                                                     \
    ({                                                                                                                 \
        if (die_at && ++steps == die_at)                                                                               \
            _exit(DIED);                                                                                               \
        __auto_type result_ = (call);                                                                                  \
        if (die_at && ++steps == die_at)                                                                               \
            _exit(DIED);                                                                                               \
        result_;                                                                                                       \
    })

int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __wrap_fsync(int fd) {
    return STEP(__real_fsync(fd));
}

int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to) {
    return STEP(__real_rename(from, to));
}

int __real_fd_write_all(int fd, const void *data, size_t len);
int __wrap_fd_write_all(int fd, const void *data, size_t len);
int __wrap_fd_write_all(int fd, const void *data, size_t len) {
    return STEP(__real_fd_write_all(fd, data, len));
}

int __real_sqlite3_step(sqlite3_stmt *stmt);
int __wrap_sqlite3_step(sqlite3_stmt *stmt);
int __wrap_sqlite3_step(sqlite3_stmt *stmt) {
    return STEP(__real_sqlite3_step(stmt));
}

int __real_store_transaction_end(struct store *store, int r, struct err *err);
int __wrap_store_transaction_end(struct store *store, int r, struct err *err);
int __wrap_store_transaction_end(struct store *store, int r, struct err *err) {
    return STEP(__real_store_transaction_end(store, r, err));
}

/* --- the fixture --- */

struct fixture {
    char dir[64], db[96], key[96];
    struct store *store;
    struct vault *vault;
};

static void open_all(struct fixture *f) {
    struct err err = {0};
    if (store_open(f->db, "host", &f->store, &err) < 0 || vault_new(f->store, f->key, &f->vault, &err) < 0)
        fail_msg("%s", err.detail);
}

static void close_all(struct fixture *f) {
    vault_free(f->vault);
    store_close(f->store);
}

static int set_up(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    unsetenv("CREDENTIALS_DIRECTORY");
    strcpy(f->dir, "/tmp/mc-vault-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->db, sizeof f->db, "%s/db", f->dir);
    snprintf(f->key, sizeof f->key, "%s/keys/vault.key", f->dir);
    open_all(f);
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    struct fixture *f = *state;
    close_all(f);
    dir_remove(f->dir);
    free(f);
    return 0;
}

static void make_vm(struct fixture *f, const char *id, enum vm_state state) {
    static unsigned n;
    struct vm vm = {.state = VM_STATE_CREATING, .ip = ++n, .mac = {{2, 0xfc, 0, 0, 0, (uint8_t)n}}, .uid = 2000 + n};
    str_copy(vm.id, sizeof vm.id, id);
    strcpy(vm.user, "ann");
    snprintf(vm.tap, sizeof vm.tap, "t%u", n);
    assert_int_equal(store_vm_claim(f->store, &vm, 100, "t", NULL), 0);
    vm.state = state;
    assert_int_equal(store_vm_update(f->store, &vm, NULL, NULL), 0);
}

static void end_vm(struct fixture *f, const char *id) {
    struct vm vm;
    assert_int_equal(store_vm_get(f->store, id, &vm, NULL), 0);
    vm.state = VM_STATE_STOPPED;
    assert_int_equal(store_vm_update(f->store, &vm, NULL, NULL), 0);
}

static void put(struct fixture *f, const char *user, const char *provider, const char *text) {
    struct err err = {0};
    uint64_t version;
    if (vault_put(f->vault, user, provider, "", text, strlen(text), &version, &err) < 0)
        fail_msg("%s: %s", err.code, err.detail);
}

/* Whether it opens as this text. */
static bool opens(struct fixture *f, const char *user, const char *provider, const char *text) {
    _cleanup_secret_ struct secret secret = {0};
    uint64_t version;
    return vault_open(f->vault, user, provider, "", &secret, &version, NULL) == 0 && secret.len == strlen(text) &&
           memcmp(secret.data, text, secret.len) == 0;
}

static void sql(struct fixture *f, const char *text) {
    sqlite3 *db;
    assert_int_equal(sqlite3_open(f->db, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, text, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
}

static void write_keys(struct fixture *f, const char *text, mode_t mode) {
    assert_int_equal(file_write_atomic(f->key, text, strlen(text), mode), 0);
}

static unsigned key_count(struct fixture *f) {
    char *text;
    size_t len;
    assert_int_equal(file_read(f->key, 4096, &text, &len), 0);
    free(text);
    assert_int_equal(len % 65, 0);
    return (unsigned)(len / 65);
}

#define KEY_A "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n"
#define KEY_B "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\n"

/* --- the tests --- */

static void goes_in_and_comes_out(void **state) {
    struct fixture *f = *state;
    struct vault_status status;
    struct err err;
    struct stat st;
    assert_int_equal(vault_look(f->vault, &status, &err), 0);
    assert_int_equal(status.keys + status.credentials, 0);
    assert_int_equal(status.err.errnum, 0);
    assert_int_equal(access(f->key, F_OK), -1); /* no key before the first credential */
    put(f, "ann", "codex", "one");
    put(f, "ann", "claude-code", "two");
    put(f, "bob", "codex", "three");
    assert_int_equal(stat(f->key, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    close_all(f);
    open_all(f);
    assert_true(opens(f, "ann", "codex", "one"));
    assert_true(opens(f, "ann", "claude-code", "two"));
    assert_true(opens(f, "bob", "codex", "three"));
    put(f, "ann", "codex", "newer");
    assert_true(opens(f, "ann", "codex", "newer"));
    struct credential *list;
    size_t n;
    assert_int_equal(store_credential_list(f->store, "ann", &list, &n, &err), 0);
    assert_int_equal(n, 2);
    assert_int_equal(list[1].version, 2);
    assert_true(list[1].created_ms > 0 && list[1].updated_ms >= list[1].created_ms);
    free(list);
    assert_int_equal(store_credential_remove(f->store, "ann", "codex", &err), 0);
    struct secret none;
    uint64_t version;
    assert_int_equal(vault_open(f->vault, "ann", "codex", "", &none, &version, &err), -ENOENT);
    assert_string_equal(err.code, "vault.none");
    char *big = calloc(1, SEAL_PLAIN_MAX + 1);
    assert_int_equal(vault_put(f->vault, "u", "p", "", big, SEAL_PLAIN_MAX, &version, &err), 0);
    assert_int_equal(vault_put(f->vault, "u", "p", "", big, SEAL_PLAIN_MAX + 1, &version, &err), -EINVAL);
    assert_int_equal(vault_put(f->vault, "u", "p", "", big, 0, &version, &err), -EINVAL);
    assert_int_equal(vault_open(f->vault, "u", "p", "", &none, &version, &err), 0);
    assert_int_equal(none.len, SEAL_PLAIN_MAX);
    secret_free(&none);
    free(big);
}

static void opens_only_where_it_belongs(void **state) {
    struct fixture *f = *state;
    put(f, "ann", "codex", "hers");
    put(f, "bob", "codex", "his");
    assert_true(opens(f, "ann", "codex", "hers"));
    /* Who can write the database gives bob's record ann's ciphertext, another version, another provider. */
    static const char *const changes[] = {
        "UPDATE credential SET (wrapped, sealed) = (SELECT wrapped, sealed FROM credential WHERE user = 'ann')"
        " WHERE user = 'bob'",
        "UPDATE credential SET sealed = (SELECT sealed FROM credential WHERE user = 'ann') WHERE user = 'bob'",
        "UPDATE credential SET version = version + 1 WHERE user = 'bob'",
        "UPDATE credential SET provider = 'gemini' WHERE user = 'bob'",
        "UPDATE credential SET user = 'bobby' WHERE user = 'bob'",
        "UPDATE credential SET key_id = x'0000000000000000' WHERE user = 'bob'",
        "UPDATE credential SET sealed = substr(sealed, 1, 40) WHERE user = 'bob'",
        "UPDATE credential SET sealed = x'' WHERE user = 'bob'",
        "UPDATE credential SET wrapped = substr(wrapped, 1, 40) WHERE user = 'bob'",
    };
    for (unsigned i = 0; i < sizeof changes / sizeof *changes; i++) {
        sql(f, "CREATE TABLE kept AS SELECT * FROM credential");
        sql(f, changes[i]);
        struct secret secret;
        uint64_t version;
        struct err err = {0};
        int r =
            vault_open(f->vault, i == 4 ? "bobby" : "bob", i == 3 ? "gemini" : "codex", "", &secret, &version, &err);
        if (r != -EBADMSG && r != -ENOKEY && r != -EPROTO)
            fail_msg("%s: %d %s", changes[i], r, err.detail);
        assert_true(opens(f, "ann", "codex", "hers"));
        sql(f, "DELETE FROM credential; INSERT INTO credential SELECT * FROM kept; DROP TABLE kept");
        assert_true(opens(f, "bob", "codex", "his"));
    }
}

static void every_byte_counts(void **state) {
    uint8_t key[SEAL_KEY_SIZE] = {1}, other[SEAL_KEY_SIZE] = {2};
    struct credential about = {.user = "ann", .provider = "codex", .version = 7};
    struct store_credential c;
    struct secret plain = {0};
    assert_int_equal(seal_close(key, (const uint8_t *)"text", 4, &about, &c, NULL), 0);
    assert_int_equal(seal_open(other, &c, &plain, NULL), -EBADMSG);
    for (size_t i = 0; i < (c.sealed_len + sizeof c.wrapped) * 8; i++) {
        uint8_t *byte = i / 8 < c.sealed_len ? &c.sealed[i / 8] : &c.wrapped[i / 8 - c.sealed_len];
        *byte ^= (uint8_t)(1U << (i % 8));
        assert_int_equal(seal_open(key, &c, &plain, NULL), -EBADMSG);
        *byte ^= (uint8_t)(1U << (i % 8));
    }
    for (size_t len = 0; len < c.sealed_len; len++) {
        struct store_credential cut = c;
        cut.sealed_len = len;
        assert_int_equal(seal_open(key, &cut, &plain, NULL), -EBADMSG);
    }
    assert_int_equal(seal_open(key, &c, &plain, NULL), 0);
    assert_memory_equal(plain.data, "text", 4);
    secret_free(&plain);
    /* Each record has a data key and a nonce of its own: the same text never looks the same. */
    struct store_credential again;
    assert_int_equal(seal_close(key, (const uint8_t *)"text", 4, &about, &again, NULL), 0);
    assert_memory_not_equal(again.sealed, c.sealed, c.sealed_len);
    assert_memory_not_equal(again.wrapped, c.wrapped, sizeof c.wrapped);
    assert_int_equal(seal_rewrap(key, other, &c, NULL), 0);
    assert_int_equal(seal_open(key, &c, &plain, NULL), -EBADMSG);
    assert_int_equal(seal_open(other, &c, &plain, NULL), 0);
    secret_free(&plain);
    store_credential_done(&c);
    store_credential_done(&again);
}

static int take(struct vault *vault, const char *user, const char *provider, const char *vm_id,
                struct secret *ret_secret, uint64_t *ret_version, struct err *err) {
    int r = vault_open(vault, user, provider, vm_id, ret_secret, ret_version, err);
    return r < 0 ? r : vault_own(vault, user, provider, vm_id, *ret_version, err);
}

static void one_vm_at_a_time(void **state) {
    struct fixture *f = *state;
    struct secret secret = {0};
    struct err err;
    uint64_t version;
    static const char browser[] = "vm-1", cli[] = "vm-2", third[] = "vm-3";
    make_vm(f, browser, VM_STATE_RUNNING);
    make_vm(f, cli, VM_STATE_RUNNING);
    make_vm(f, third, VM_STATE_RUNNING);
    assert_int_equal(vault_put(f->vault, "ann", "codex", browser, "login", 5, &version, &err), 0);
    assert_int_equal(take(f->vault, "ann", "codex", cli, &secret, &version, &err), -EBUSY);
    assert_string_equal(err.code, "vault.owned");
    assert_non_null(strstr(err.detail, browser));
    assert_null(secret.data);
    /* For who may not have it no key is read: that would be done again and again. */
    assert_int_equal(chmod(f->key, 0644), 0);
    assert_int_equal(vault_open(f->vault, "ann", "codex", cli, &secret, &version, &err), -EBUSY);
    assert_int_equal(vault_open(f->vault, "ann", "codex", browser, &secret, &version, &err), -EPERM);
    assert_string_equal(err.code, "vault.key-unsafe");
    assert_int_equal(chmod(f->key, 0600), 0);
    end_vm(f, browser);
    assert_int_equal(vault_open(f->vault, "ann", "codex", third, &secret, &version, &err), 0);
    secret_free(&secret);
    assert_int_equal(take(f->vault, "ann", "codex", cli, &secret, &version, &err), 0);
    secret_free(&secret);
    assert_int_equal(take(f->vault, "ann", "codex", third, &secret, &version, &err), -EBUSY);
    /* To look at it is not to own it, and what is not the stored version is owned by nobody. */
    assert_int_equal(vault_own(f->vault, "ann", "codex", cli, version + 1, &err), -ESTALE);
    assert_string_equal(err.code, "vault.changed");
    assert_int_equal(vault_own(f->vault, "ann", "codex", third, version, &err), -EBUSY);
    assert_int_equal(vault_own(f->vault, "ann", "none", cli, version, &err), -ENOENT);
    /* Only the owner renews, and only what it has. */
    assert_int_equal(vault_renew(f->vault, "ann", "codex", third, version, "x", 1, &version, &err), -EPERM);
    assert_int_equal(vault_renew(f->vault, "ann", "codex", cli, version + 1, "x", 1, &version, &err), -ESTALE);
    assert_int_equal(vault_renew(f->vault, "ann", "codex", cli, version, "renewed", 7, &version, &err), 0);
    assert_int_equal(version, 2);
    assert_int_equal(vault_renew(f->vault, "ann", "codex", cli, 1, "late", 4, &version, &err), -ESTALE);
    assert_int_equal(vault_renew(f->vault, "ann", "none", cli, 1, "late", 4, &version, &err), -ENOENT);
    assert_int_equal(vault_release(f->vault, cli, &err), 0);
    assert_int_equal(take(f->vault, "ann", "codex", third, &secret, &version, &err), 0);
    assert_memory_equal(secret.data, "renewed", 7);
    secret_free(&secret);
    /* A new login is newer than what a VM still has: that VM is the owner no more. */
    assert_int_equal(vault_put(f->vault, "ann", "codex", cli, "again", 5, &version, &err), 0);
    assert_int_equal(version, 3);
    assert_int_equal(vault_renew(f->vault, "ann", "codex", third, 2, "stale", 5, &version, &err), -EPERM);
    /* A VM that nobody knows any more owns nothing. */
    assert_int_equal(vault_put(f->vault, "ann", "codex", "vm-forgotten", "again", 5, &version, &err), 0);
    assert_int_equal(take(f->vault, "ann", "codex", cli, &secret, &version, &err), 0);
    secret_free(&secret);
}

static void refused(struct fixture *f, const char *code, const char *says) {
    struct secret secret;
    struct err err = {0};
    uint64_t version;
    struct vault_status status;
    struct vault_rotation rotation;
    assert_true(vault_open(f->vault, "ann", "codex", "", &secret, &version, &err) < 0);
    if (strcmp(err.code, code) != 0 || !strstr(err.detail, says) || !strstr(err.detail, f->key))
        fail_msg("expected %s with \"%s\": %s: %s", code, says, err.code, err.detail);
    assert_true(vault_put(f->vault, "ann", "codex", "", "x", 1, &version, &err) < 0);
    assert_true(vault_rotate(f->vault, &rotation, &err) < 0);
    assert_int_equal(vault_look(f->vault, &status, &err), 0);
    assert_int_equal(status.keys, 0);
    assert_string_equal(status.err.code, code);
    assert_null(strstr(err.detail, "aaaaaaaa")); /* nothing of the key itself */
}

static void unsafe_keys_are_refused_by_name(void **state) {
    struct fixture *f = *state;
    char other[128], folder[96];
    put(f, "ann", "codex", "hers");
    snprintf(other, sizeof other, "%s/other", f->dir);
    snprintf(folder, sizeof folder, "%s/keys", f->dir);
    static const mode_t modes[] = {0640, 0604, 0620, 0602, 0610, 0644, 0666};
    for (unsigned i = 0; i < sizeof modes / sizeof *modes; i++) {
        assert_int_equal(chmod(f->key, modes[i]), 0);
        refused(f, "vault.key-unsafe", "others than its owner may use it (mode 06");
    }
    assert_int_equal(chmod(f->key, 0600), 0);
    assert_true(opens(f, "ann", "codex", "hers"));
    static const mode_t folders[] = {0777, 0775, 0757, 01777};
    for (unsigned i = 0; i < sizeof folders / sizeof *folders; i++) {
        assert_int_equal(chmod(folder, folders[i]), 0);
        refused(f, "vault.key-unsafe", "others may write its folder");
    }
    assert_int_equal(chmod(folder, 0755), 0);
    assert_int_equal(link(f->key, other), 0);
    refused(f, "vault.key-unsafe", "hard link");
    assert_int_equal(unlink(other), 0);
    assert_int_equal(rename(f->key, other), 0);
    refused(f, "vault.key-missing", "1 credentials are sealed") /* and no new one is made */;
    assert_int_equal(access(f->key, F_OK), -1);
    assert_int_equal(symlink(other, f->key), 0);
    refused(f, "vault.key-unsafe", "symbolic link");
    assert_int_equal(unlink(f->key), 0);
    assert_int_equal(mkfifo(f->key, 0600), 0);
    refused(f, "vault.key-unsafe", "not a regular file");
    assert_int_equal(unlink(f->key), 0);
    assert_int_equal(mkdir(f->key, 0700), 0);
    refused(f, "vault.key-unsafe", "not a regular file");
    assert_int_equal(rmdir(f->key), 0);
    assert_int_equal(rename(other, f->key), 0);
    if (geteuid() == 0) {
        assert_int_equal(chown(f->key, 12345, 0), 0);
        refused(f, "vault.key-unsafe", "uid 12345");
        assert_int_equal(chown(f->key, 0, 0), 0);
    }
    assert_true(opens(f, "ann", "codex", "hers"));
    static const char *const wrong[] = {"",
                                        "\n\n",
                                        "# nothing\n",
                                        "aaaaaaaa\n",
                                        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaag",
                                        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa:\n",
                                        " aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n",
                                        KEY_A KEY_A KEY_A KEY_A KEY_A KEY_A KEY_A KEY_A KEY_A,
                                        KEY_A "bb\n"};
    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        write_keys(f, wrong[i], 0600);
        refused(f, "vault.key-invalid", f->key);
    }
}

static void a_wrong_key_opens_nothing(void **state) {
    struct fixture *f = *state;
    struct secret secret;
    struct err err;
    uint64_t version;
    put(f, "ann", "codex", "hers");
    write_keys(f, KEY_A, 0600);
    assert_int_equal(vault_open(f->vault, "ann", "codex", "", &secret, &version, &err), -ENOKEY);
    assert_string_equal(err.code, "vault.key-unknown");
    struct vault_status status;
    assert_int_equal(vault_look(f->vault, &status, &err), 0);
    assert_int_equal(status.other_key, 1);
    /* The way back without the key: users log in again. */
    put(f, "ann", "codex", "again");
    assert_true(opens(f, "ann", "codex", "again"));
}

static void rotation(void **state) {
    struct fixture *f = *state;
    struct vault_rotation done;
    struct err err;
    char *before, *after;
    size_t len;
    assert_int_equal(vault_rotate(f->vault, &done, &err), -ENOENT);
    put(f, "ann", "codex", "one");
    put(f, "bob", "codex", "two");
    assert_int_equal(file_read(f->key, 4096, &before, &len), 0);
    assert_int_equal(vault_rotate(f->vault, &done, &err), 0);
    assert_true(done.done);
    assert_int_equal(done.rewrapped, 2);
    assert_int_equal(file_read(f->key, 4096, &after, &len), 0);
    assert_int_equal(len, 65);
    assert_string_not_equal(before, after);
    assert_true(opens(f, "ann", "codex", "one") && opens(f, "bob", "codex", "two"));
    /* The old key opens nothing any more. */
    write_keys(f, before, 0600);
    assert_false(opens(f, "ann", "codex", "one"));
    write_keys(f, after, 0600);
    free(before);
    free(after);
    /* A record that does not open keeps its key there, and the rotation open. */
    sql(f, "UPDATE credential SET wrapped = zeroblob(72) WHERE user = 'bob'");
    assert_int_equal(vault_rotate(f->vault, &done, &err), 0);
    assert_false(done.done);
    assert_int_equal(done.unopened, 1);
    assert_int_equal(key_count(f), 2);
    assert_true(opens(f, "ann", "codex", "one"));
    assert_int_equal(store_credential_remove(f->store, "bob", "codex", &err), 0);
    assert_int_equal(vault_resume(f->vault, &done, &err), 0);
    assert_true(done.done);
    assert_int_equal(key_count(f), 1);
    assert_true(opens(f, "ann", "codex", "one"));
}

static void systemd_has_the_key(void **state) {
    struct fixture *f = *state;
    struct vault_rotation done;
    struct err err;
    char credentials[96], path[128];
    put(f, "ann", "codex", "by the file");
    snprintf(credentials, sizeof credentials, "%s/credentials", f->dir);
    snprintf(path, sizeof path, "%s/vault-key", credentials);
    assert_int_equal(mkdir(credentials, 0700), 0);
    setenv("CREDENTIALS_DIRECTORY", credentials, 1);
    assert_true(opens(f, "ann", "codex", "by the file")); /* other credentials do not count */
    assert_int_equal(file_write_atomic(path, KEY_A, 65, 0440), 0);
    assert_false(opens(f, "ann", "codex", "by the file"));
    put(f, "ann", "codex", "by systemd");
    assert_true(opens(f, "ann", "codex", "by systemd"));
    assert_int_equal(vault_rotate(f->vault, &done, &err), -EROFS);
    assert_string_equal(err.code, "vault.key-systemd");
    assert_int_equal(file_write_atomic(path, KEY_B KEY_A, 130, 0440), 0);
    assert_int_equal(vault_resume(f->vault, &done, &err), 0);
    assert_int_equal(done.rewrapped, 1);
    assert_false(done.done); /* the operator takes the old line away */
    assert_int_equal(file_write_atomic(path, KEY_B, 65, 0440), 0);
    assert_true(opens(f, "ann", "codex", "by systemd"));
    assert_int_equal(vault_resume(f->vault, &done, &err), 0);
    assert_true(done.done);
    unsetenv("CREDENTIALS_DIRECTORY");
}

/* Runs in a process of its own, which dies at step n. Return: whether it died. */
static bool dies(struct fixture *f, int n, int (*work)(struct fixture *f)) {
    close_all(f);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        open_all(f);
        steps = 0;
        die_at = n;
        int r = work(f);
        die_at = 0;
        _exit(r < 0 ? 1 : 0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == DIED));
    open_all(f);
    return WEXITSTATUS(status) == DIED;
}

static int rotate(struct fixture *f) {
    struct vault_rotation done;
    return vault_rotate(f->vault, &done, NULL);
}

static int resume(struct fixture *f) {
    struct vault_rotation done;
    return vault_resume(f->vault, &done, NULL);
}

static void rotation_may_die_at_any_step(void **state) {
    struct fixture *f = *state;
    struct vault_rotation done;
    struct err err;
    put(f, "ann", "codex", "one");
    put(f, "ann", "gemini", "two");
    put(f, "bob", "codex", "three");
    int n = 1;
    bool died = true;
    for (; died; n++) {
        died = dies(f, n, rotate);
        assert_true(opens(f, "ann", "codex", "one") && opens(f, "ann", "gemini", "two") &&
                    opens(f, "bob", "codex", "three"));
        /* Whoever takes it up may die too. */
        if (died)
            dies(f, 1 + n % 17, resume);
        assert_true(opens(f, "ann", "codex", "one") && opens(f, "ann", "gemini", "two") &&
                    opens(f, "bob", "codex", "three"));
        if (vault_resume(f->vault, &done, &err) < 0)
            fail_msg("step %d: %s", n, err.detail);
        assert_true(done.done);
        assert_int_equal(key_count(f), 1);
        assert_true(opens(f, "ann", "codex", "one") && opens(f, "ann", "gemini", "two") &&
                    opens(f, "bob", "codex", "three"));
    }
    assert_true(n > 30); /* that many steps there were, each tried */
}

static int put_one(struct fixture *f) {
    uint64_t version;
    return vault_put(f->vault, "ann", "codex", "", "newer", 5, &version, NULL);
}

static void a_login_is_stored_whole_or_not_at_all(void **state) {
    struct fixture *f = *state;
    bool died = true;
    /* The first one of all, which makes the key too. */
    for (int n = 1; died; n++) {
        died = dies(f, n, put_one);
        struct credential *list;
        size_t count;
        assert_int_equal(store_credential_list(f->store, NULL, &list, &count, NULL), 0);
        free(list);
        assert_true(count == 0 || opens(f, "ann", "codex", "newer"));
        if (count)
            assert_int_equal(store_credential_remove(f->store, "ann", "codex", NULL), 0);
        if (died)
            unlink(f->key);
    }
    put(f, "ann", "codex", "older");
    died = true;
    for (int n = 1; died; n++) {
        died = dies(f, n, put_one);
        assert_true(opens(f, "ann", "codex", "older") || opens(f, "ann", "codex", "newer"));
    }
    assert_true(opens(f, "ann", "codex", "newer"));
}

/* --- nowhere --- */

/* Needles are kept changed, so that the search does not find itself. */
#define MASK 0x5a

struct needle {
    uint8_t masked[80];
    size_t len;
};

static bool is_at(const uint8_t *at, const struct needle *n) {
    for (size_t i = 0; i < n->len; i++)
        if ((at[i] ^ MASK) != n->masked[i])
            return false;
    return true;
}

static bool is_in(const uint8_t *data, size_t len, const struct needle *n) {
    for (size_t at = 0; at + n->len <= len; at++)
        if (is_at(data + at, n))
            return true;
    return false;
}

/* How many of our writable mappings hold the needle; the number of bytes searched in *ret_bytes. */
static unsigned in_memory(const struct needle *n, size_t *ret_bytes) {
    _cleanup_fclose_ FILE *maps = fopen("/proc/self/maps", "re");
    _cleanup_close_ int mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    char line[512], flags[8];
    unsigned found = 0;
    unsigned long from, to;
    *ret_bytes = 0;
    assert_true(maps && mem >= 0);
    while (fgets(line, sizeof line, maps)) {
        if (sscanf(line, "%lx-%lx %7s", &from, &to, flags) != 3 || strncmp(flags, "rw", 2) != 0 ||
            to - from > (256UL << 20))
            continue;
        uint8_t *copy = malloc(to - from);
        ssize_t len = pread(mem, copy, to - from, (off_t)from);
        if (len > 0) {
            found += is_in(copy, (size_t)len, n);
            *ret_bytes += (size_t)len;
        }
        sodium_memzero(copy, to - from);
        free(copy);
    }
    return found;
}

static bool in_file(const char *path, const struct needle *n) {
    char *data;
    size_t len;
    if (file_read(path, 16U << 20, &data, &len) < 0)
        return false;
    bool found = is_in((const uint8_t *)data, len, n);
    sodium_memzero(data, len);
    free(data);
    return found;
}

/* A planted secret, made in secret memory, whose needle alone is kept. */
static struct secret plant(struct needle *ret_needle) {
    struct secret s;
    assert_int_equal(secret_new(48, &s, NULL), 0);
    for (size_t i = 0; i < s.len; i++) {
        s.data[i] = (uint8_t)('A' + randombytes_uniform(26));
        ret_needle->masked[i] = s.data[i] ^ MASK;
    }
    ret_needle->len = s.len;
    return s;
}

/* The key's line in the file, and the key itself. */
static void key_needles(struct fixture *f, struct needle *ret_hex, struct needle *ret_key) {
    _cleanup_close_ int fd = open(f->key, O_RDONLY | O_CLOEXEC);
    struct secret text, key;
    assert_int_equal(secret_new(64, &text, NULL), 0);
    assert_int_equal(secret_new(32, &key, NULL), 0);
    assert_int_equal(read(fd, text.data, 64), 64);
    assert_int_equal(sodium_hex2bin(key.data, 32, (const char *)text.data, 64, NULL, NULL, NULL), 0);
    for (size_t i = 0; i < 64; i++)
        ret_hex->masked[i] = text.data[i] ^ MASK;
    for (size_t i = 0; i < 32; i++)
        ret_key->masked[i] = key.data[i] ^ MASK;
    ret_hex->len = 64;
    ret_key->len = 32;
    secret_free(&text);
    secret_free(&key);
}

static void no_secret_is_left_anywhere(void **state) {
    struct fixture *f = *state;
    struct needle needles[3];
    struct err err = {0};
    struct vault_rotation done;
    uint64_t version;
    size_t bytes;
    struct secret planted = plant(&needles[0]), taken = {0};
    assert_int_equal(in_memory(&needles[0], &bytes), 1); /* the search finds what is there */
    assert_true(bytes > 100000);
    assert_int_equal(vault_put(f->vault, "ann", "codex", "", planted.data, planted.len, &version, &err), 0);
    assert_int_equal(vault_renew(f->vault, "ann", "codex", "", 1, planted.data, planted.len, &version, &err), 0);
    assert_int_equal(vault_rotate(f->vault, &done, &err), 0);
    assert_int_equal(vault_open(f->vault, "ann", "codex", "", &taken, &version, &err), 0);
    assert_memory_equal(taken.data, planted.data, planted.len);
    secret_free(&taken);
    /* Ways that fail. */
    struct err errs[3] = {0};
    assert_int_equal(vault_put(f->vault, "ann", "codex", "", planted.data, 0, &version, &errs[0]), -EINVAL);
    assert_int_equal(vault_renew(f->vault, "ann", "codex", "vm-x", 1, planted.data, planted.len, &version, &errs[1]),
                     -EPERM);
    sql(f, "CREATE TABLE kept AS SELECT * FROM credential; UPDATE credential SET version = 9");
    assert_int_equal(vault_open(f->vault, "ann", "codex", "", &taken, &version, &errs[2]), -EBADMSG);
    secret_free(&planted);
    key_needles(f, &needles[1], &needles[2]);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(in_memory(&needles[i], &bytes), 0);
        for (unsigned k = 0; k < 3; k++)
            assert_false(is_in((const uint8_t *)&errs[k], sizeof errs[k], &needles[i]));
        static const char *const files[] = {"", "-wal", "-shm"};
        for (unsigned k = 0; k < 3; k++) {
            char path[112];
            snprintf(path, sizeof path, "%s%s", f->db, files[k]);
            assert_int_equal(access(path, R_OK), 0);
            assert_false(in_file(path, &needles[i]));
        }
    }
    assert_true(in_file(f->key, &needles[1]));
}

/* Of the mapping that holds a secret: VmFlags of /proc/self/smaps. Source: proc(5): dd, not in core files; lo, locked. */
static void secrets_stay_out_of_core_files(void **state) {
    struct secret s;
    char line[512], flags[256] = "";
    unsigned long from, to;
    bool here = false;
    assert_int_equal(secret_new(32, &s, NULL), 0);
    FILE *smaps = fopen("/proc/self/smaps", "re");
    assert_non_null(smaps);
    while (fgets(line, sizeof line, smaps)) {
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
            here = (unsigned long)s.data >= from && (unsigned long)s.data < to;
        else if (here && strncmp(line, "VmFlags:", 8) == 0)
            str_copy(flags, sizeof flags, line);
    }
    fclose(smaps);
    assert_non_null(strstr(flags, " dd"));
#ifndef __SANITIZE_ADDRESS__ /* which makes mlock() do nothing */
    if (geteuid() == 0)
        assert_non_null(strstr(flags, " lo"));
#endif
    secret_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(goes_in_and_comes_out, set_up, tear_down),
        cmocka_unit_test_setup_teardown(opens_only_where_it_belongs, set_up, tear_down),
        cmocka_unit_test(every_byte_counts),
        cmocka_unit_test_setup_teardown(one_vm_at_a_time, set_up, tear_down),
        cmocka_unit_test_setup_teardown(unsafe_keys_are_refused_by_name, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_wrong_key_opens_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(rotation, set_up, tear_down),
        cmocka_unit_test_setup_teardown(systemd_has_the_key, set_up, tear_down),
        cmocka_unit_test_setup_teardown(rotation_may_die_at_any_step, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_login_is_stored_whole_or_not_at_all, set_up, tear_down),
        cmocka_unit_test_setup_teardown(no_secret_is_left_anywhere, set_up, tear_down),
        cmocka_unit_test(secrets_stay_out_of_core_files),
    };
    return sodium_init() < 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}

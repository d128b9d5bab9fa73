#include "vault/keys.h"

#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"

#define LINE_SIZE (2 * SEAL_KEY_SIZE + 1)
#define FILE_MAX 4096
#define CREDENTIAL_NAME "vault-key"

void keys_free(struct keys *keys) {
    secret_free(&keys->memory);
    *keys = (struct keys){0};
}

void keys_find(const char *credentials, const char *file, struct keys_place *ret_place) {
    struct keys_place place = {.from_systemd = credentials && *credentials};
    if (place.from_systemd)
        snprintf(place.path, sizeof place.path, "%s/" CREDENTIAL_NAME, credentials);
    if (!place.from_systemd || access(place.path, F_OK) < 0) {
        place.from_systemd = false;
        str_copy(place.path, sizeof place.path, file);
    }
    *ret_place = place;
}

static int unsafe(struct err *err, const char *path, const char *what) {
    return err_set(err, EPERM, "vault.key-unsafe", "the vault's key %s is refused: %s", path, what);
}

static bool is_ours(const struct stat *st) {
    return st->st_uid == 0 || st->st_uid == geteuid();
}

/* A folder that others may write lets them put another key there, or take this one's place. */
static int check_folder(const char *path, struct err *err) {
    char folder[512], what[640];
    struct stat st;
    str_copy(folder, sizeof folder, path);
    char *slash = strrchr(folder, '/');
    if (!slash)
        return unsafe(err, path, "its path is not absolute");
    slash[slash == folder] = '\0';
    if (stat(folder, &st) < 0)
        return err_sys(err, errno, "vault.key-unsafe", "look at %s", folder);
    if (is_ours(&st) && !(st.st_mode & 022))
        return 0;
    snprintf(what, sizeof what, "others may write its folder %s (mode %04o, uid %u)", folder, st.st_mode & 07777,
             st.st_uid);
    unsafe(err, path, what);
    return err_hint(err, "chown root %s; chmod go-w %s", folder, folder);
}

static int check_file(int fd, const char *path, struct err *err) {
    char what[160];
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_sys(err, errno, "vault.key-unsafe", "look at %s", path);
    if (!S_ISREG(st.st_mode))
        return unsafe(err, path, "it is not a regular file");
    if (!is_ours(&st)) {
        snprintf(what, sizeof what, "it belongs to uid %u, who can read and replace it", st.st_uid);
        unsafe(err, path, what);
        return err_hint(err, "make a new key as root, and remove this one");
    }
    if (st.st_nlink != 1)
        return unsafe(err, path, "it has a second name (hard link) somewhere");
    if (!(st.st_mode & 077))
        return 0;
    snprintf(what, sizeof what, "others than its owner may use it (mode %04o)", st.st_mode & 07777);
    unsafe(err, path, what);
    return err_hint(err, "chmod 600 %s; if others were on this host, then also: mctl vault rotate", path);
}

static int open_checked(const struct keys_place *place, int *ret_fd, struct err *err) {
    _cleanup_close_ int fd = open(place->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && errno == ELOOP)
        return unsafe(err, place->path, "it is a symbolic link");
    if (fd < 0 && errno == ENOENT)
        return err_set(err, ENOENT, "vault.key-missing", "there is no vault key %s", place->path);
    if (fd < 0)
        return err_sys(err, errno, "vault.key-unsafe", "open the vault's key %s", place->path);
    /* systemd's folder is its own: who may read a credential there is its business. */
    int r = place->from_systemd ? 0 : check_file(fd, place->path, err);
    if (r == 0 && !place->from_systemd)
        r = check_folder(place->path, err);
    if (r == 0)
        *ret_fd = fd_steal(&fd);
    return r;
}

static int read_all(int fd, struct secret *text) {
    size_t at = 0;
    for (ssize_t n; at < text->len; at += (size_t)n) {
        n = read(fd, text->data + at, text->len - at);
        if (n < 0 && errno == EINTR)
            n = 0;
        else if (n < 0)
            return -errno;
        else if (n == 0)
            break;
    }
    text->len = at;
    return 0;
}

/* Lines of 64 hex digits. Nothing of a wrong line is told: it may be most of a key. */
static int parse(const char *path, const struct secret *text, struct keys *keys, struct err *err) {
    int number = 1;
    for (size_t at = 0; at < text->len; number++) {
        const char *line = (const char *)text->data + at;
        const char *end = memchr(line, '\n', text->len - at);
        size_t len = end ? (size_t)(end - line) : text->len - at, n;
        at += len + 1;
        if (len == 0 || *line == '#')
            continue;
        uint8_t *key = keys->memory.data + (size_t)keys->count * SEAL_KEY_SIZE;
        if (keys->count == KEYS_MAX || len != LINE_SIZE - 1 ||
            sodium_hex2bin(key, SEAL_KEY_SIZE, line, len, NULL, &n, NULL) < 0 || n != SEAL_KEY_SIZE)
            return err_set(err, EINVAL, "vault.key-invalid",
                           "%s:%d: this is not a key of 64 hex digits, or one too many", path, number);
        keys->count++;
    }
    if (keys->count == 0)
        return err_set(err, EINVAL, "vault.key-invalid", "%s holds no key: 64 hex digits on a line", path);
    return 0;
}

int keys_load(const struct keys_place *place, struct keys *ret_keys, struct err *err) {
    _cleanup_keys_ struct keys keys = {.from_systemd = place->from_systemd};
    _cleanup_secret_ struct secret text = {0};
    _cleanup_close_ int fd = -1;
    int r = open_checked(place, &fd, err);
    if (r == 0)
        r = secret_new(FILE_MAX, &text, err);
    if (r == 0)
        r = secret_new(KEYS_MAX * SEAL_KEY_SIZE, &keys.memory, err);
    if (r != 0)
        return r;
    r = read_all(fd, &text);
    if (r < 0)
        return err_sys(err, -r, "vault.key-invalid", "read the vault's key %s", place->path);
    r = parse(place->path, &text, &keys, err);
    if (r < 0)
        return r;
    *ret_keys = keys;
    keys = (struct keys){0};
    return 0;
}

static int sync_folder(const char *path) {
    char folder[512];
    str_copy(folder, sizeof folder, path);
    char *slash = strrchr(folder, '/');
    if (!slash)
        return -EINVAL;
    slash[slash == folder] = '\0';
    _cleanup_close_ int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

static int make_folder(const char *path) {
    char folder[512];
    str_copy(folder, sizeof folder, path);
    char *slash = strrchr(folder, '/');
    if (!slash || slash == folder)
        return 0;
    *slash = '\0';
    return dir_make(folder, 0755);
}

int keys_write(const struct keys_place *place, const struct keys *keys, bool add_new, unsigned keep, struct err *err) {
    _cleanup_secret_ struct secret text = {0}, fresh = {0};
    if (place->from_systemd) {
        err_set(err, EROFS, "vault.key-systemd",
                "the vault's key is systemd's credential %s: it cannot be changed here", place->path);
        return err_hint(
            err, "put a new key's line in front of the old one in the credential, restart, then mctl vault rotate");
    }
    int r = secret_new(KEYS_MAX * LINE_SIZE + 1, &text, err);
    if (r == 0)
        r = secret_new(SEAL_KEY_SIZE, &fresh, err);
    if (r != 0)
        return r;
    size_t len = 0;
    randombytes_buf(fresh.data, fresh.len);
    for (unsigned i = 0; i < keep + (add_new ? 1 : 0); i++) {
        const uint8_t *key = add_new ? (i == 0 ? fresh.data : keys->memory.data + (size_t)(i - 1) * SEAL_KEY_SIZE)
                                     : keys->memory.data + (size_t)i * SEAL_KEY_SIZE;
        sodium_bin2hex((char *)text.data + len, LINE_SIZE, key, SEAL_KEY_SIZE);
        len += LINE_SIZE;
        text.data[len - 1] = '\n';
    }
    r = make_folder(place->path);
    if (r == 0)
        r = file_write_atomic(place->path, text.data, len, 0600);
    if (r == 0)
        r = sync_folder(place->path);
    return r < 0 ? err_sys(err, -r, "vault.failed", "write the vault's key %s", place->path) : 0;
}

const uint8_t *keys_current(const struct keys *keys) {
    return keys->memory.data;
}

const uint8_t *keys_by_id(const struct keys *keys, const uint8_t id[CREDENTIAL_KEY_ID]) {
    for (unsigned i = 0; i < keys->count; i++) {
        uint8_t own[CREDENTIAL_KEY_ID];
        seal_key_id(keys->memory.data + (size_t)i * SEAL_KEY_SIZE, own);
        if (memcmp(own, id, sizeof own) == 0)
            return keys->memory.data + (size_t)i * SEAL_KEY_SIZE;
    }
    return NULL;
}

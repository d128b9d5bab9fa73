#include "vm/template.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <linux/memfd.h>
#include <nettle/sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "vm/machine.h"

#define PATH_SIZE (VMS_PATH_MAX + 300)
#define MANIFEST "template.json"
#define MANIFEST_MAX 65536
#define SCHEMA "template/1"
#define BEGUN ".tmp"
#define KILL_TIMEOUT_MS 5000
#define CHUNK 65536U /* of memory: what is zero in all of it is not kept */
#define DIGEST_TEXT (2 * SHA256_DIGEST_SIZE + 1)
#define FOREIGN_VM "vm-00000000-0000-4000-8000-000000000000"

void template_folder(const char *state_dir, const char *name, const char *suffix, char ret_path[VMS_PATH_MAX]) {
    snprintf(ret_path, VMS_PATH_MAX, "%s/templates%s%s%s", state_dir, *name ? "/" : "", name, suffix);
}

static void path_in(char ret_path[PATH_SIZE], const char *folder, const char *name) {
    snprintf(ret_path, PATH_SIZE, "%s/%s", folder, name);
}

/* ---- what is wished for ---- */

static int digest_small(const char *path, char ret_hex[DIGEST_TEXT], struct err *err) {
    struct sha256_ctx sha;
    uint8_t digest[SHA256_DIGEST_SIZE];
    _cleanup_free_ char *text = NULL;
    size_t len;
    int r = file_read(path, 16U << 20, &text, &len);
    if (r < 0)
        return err_sys(err, -r, "template.broken", "read %s", path);
    sha256_init(&sha);
    sha256_update(&sha, len, (const uint8_t *)text);
    sha256_digest(&sha, sizeof digest, digest);
    str_hex(digest, sizeof digest, ret_hex);
    return 0;
}

/* Of the command line only what VMs have in common: the network's. */
static int find_shape(struct vms *vms, struct template_wish *wish, struct err *err) {
    char cmdline[MACHINE_CMDLINE_MAX];
    struct vm vm = {.type = wish->type, .memory_mib = wish->memory_mib, .vcpus = wish->vcpus};
    str_copy(vm.id, sizeof vm.id, FOREIGN_VM);
    machine_cmdline(&vms->config->network, &vm, cmdline);
    struct vmm_spec spec = {.vm = &vm, .choice = &wish->choice, .cmdline = cmdline, .has_agent = wish->image.has_agent};
    return wish->choice.ops->shape(&vms->config->vm, &spec, wish->shape, err);
}

int template_wish(struct vms *vms, enum vm_type type, struct template_wish *ret_wish, struct err *err) {
    const struct config_vm_type *config = &vms->config->vm.type[type];
    struct template_wish wish = {.type = type, .memory_mib = config->memory_mib, .vcpus = config->vcpus};
    char path[PATH_SIZE];
    int r = vmm_choose(&vms->config->vm, &wish.choice, err);
    if (r < 0)
        return r;
    if (!wish.choice.ops->shape)
        return err_set(err, EOPNOTSUPP, "warm.not-here", "VMs in %s start cold: its driver makes no templates",
                       wish.choice.ops->name);
    r = vms_open_image(vms, type, &wish.image, err);
    if (r < 0)
        return r;
    if (!wish.image.has_agent)
        return err_set(err, EOPNOTSUPP, "warm.not-here",
                       "VMs of the image %s start cold: it has no agent that could make a copy a machine of its own",
                       wish.image.name);
    path_in(path, wish.image.dir, "manifest.json");
    r = digest_small(path, wish.image_digest, err);
    if (r == 0)
        r = find_shape(vms, &wish, err);
    if (r == 0)
        *ret_wish = wish;
    return r;
}

/* ---- memory ---- */

/* What is not zero, with where it is. */
struct pages {
    struct sha256_ctx sha;
    uint64_t bytes;
};

static bool is_zero(const uint8_t *data, size_t len) {
    return data[0] == 0 && memcmp(data, data + 1, len - 1) == 0;
}

static int broken_off(struct err *err) {
    return err_set(err, EINTR, "template.unwanted", "it was broken off: it is not wanted now");
}

/* Copies what is not zero of one sparse file of this size into another one that is empty. Return: 0 or -errno; -EINTR: it is
 * not wanted any more. */
static int copy_pages(int from, int to, uint64_t size, const atomic_bool *is_unwanted, struct pages *pages) {
    _cleanup_free_ uint8_t *data = malloc(CHUNK);
    sha256_init(&pages->sha);
    pages->bytes = 0;
    for (off_t at = 0; data && (at = lseek(from, at, SEEK_DATA)) >= 0 && (uint64_t)at < size;) {
        at -= at % CHUNK;
        if (is_unwanted && atomic_load(is_unwanted))
            return -EINTR;
        ssize_t n = pread(from, data, CHUNK, at);
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        if (!is_zero(data, (size_t)n)) {
            uint64_t where = (uint64_t)at;
            sha256_update(&pages->sha, sizeof where, (const uint8_t *)&where);
            sha256_update(&pages->sha, (size_t)n, data);
            pages->bytes += (uint64_t)n;
            if (pwrite(to, data, (size_t)n, at) != n)
                return errno ? -errno : -EIO;
        }
        at += n;
    }
    return data ? 0 : -ENOMEM;
}

static void digest_of(struct pages *pages, char ret_hex[DIGEST_TEXT]) {
    uint8_t digest[SHA256_DIGEST_SIZE];
    sha256_digest(&pages->sha, sizeof digest, digest);
    str_hex(digest, sizeof digest, ret_hex);
}

int template_memory_new(uint32_t memory_mib, int *ret_fd, struct err *err) {
    _cleanup_close_ int fd = memfd_create("template", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, (off_t)memory_mib << 20) < 0)
        return err_sys(err, errno, "template.memory", "make room for a template's memory");
    *ret_fd = fd_steal(&fd);
    return 0;
}

/* Whoever could still write to it would be mapping it, and then this fails. */
static int seal(int fd, struct err *err) {
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0)
        return err_sys(err, errno, "template.memory", "seal a template's memory");
    return 0;
}

/* The page cache would hold a second copy. */
static void sync_and_forget(int fd) {
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

static int write_ram(const char *folder, int memory_fd, const struct template_wish *wish, char ret_hex[DIGEST_TEXT],
                     uint64_t *ret_bytes, struct err *err) {
    uint64_t size = (uint64_t)wish->memory_mib << 20;
    char path[PATH_SIZE];
    struct pages pages;
    path_in(path, folder, TEMPLATE_RAM);
    _cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int r =
        fd < 0 || ftruncate(fd, (off_t)size) < 0 ? -errno : copy_pages(memory_fd, fd, size, wish->is_unwanted, &pages);
    if (r == -EINTR)
        return broken_off(err);
    if (r == 0 && fsync(fd) < 0)
        r = -errno;
    if (r < 0)
        return err_sys(err, -r, "template.write", "write %s", path);
    sync_and_forget(fd);
    digest_of(&pages, ret_hex);
    *ret_bytes = pages.bytes;
    return 0;
}

static int read_ram(const char *folder, const struct template_wish *wish, const char *wanted, int *ret_fd,
                    uint64_t *ret_bytes, struct err *err) {
    char path[PATH_SIZE], hex[DIGEST_TEXT];
    struct pages pages;
    struct stat st;
    _cleanup_close_ int memory_fd = -1;
    path_in(path, folder, TEMPLATE_RAM);
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_sys(err, errno, "template.broken", "open %s", path);
    if (st.st_size != (off_t)wish->memory_mib << 20)
        return err_set(err, EUCLEAN, "template.broken", "%s is not as long as it was", path);
    int r = template_memory_new(wish->memory_mib, &memory_fd, err);
    if (r < 0)
        return r;
    r = copy_pages(fd, memory_fd, (uint64_t)st.st_size, wish->is_unwanted, &pages);
    if (r == -EINTR)
        return broken_off(err);
    if (r < 0)
        return err_sys(err, -r, "template.broken", "read %s", path);
    sync_and_forget(fd);
    digest_of(&pages, hex);
    if (strcmp(hex, wanted) != 0)
        return err_set(err, EUCLEAN, "template.broken", "%s has another digest than when it was written", path);
    r = seal(memory_fd, err);
    if (r < 0)
        return r;
    *ret_bytes = pages.bytes;
    *ret_fd = fd_steal(&memory_fd);
    return 0;
}

/* ---- making it ---- */

static const char *const small_files[] = {TEMPLATE_STATE "/memory", VMM_TEMPLATE_DISK, TEMPLATE_OVERLAY};
#define SMALL_COUNT (sizeof small_files / sizeof *small_files)

static int digest_file(const char *path, char ret_hex[DIGEST_TEXT], uint64_t *ret_bytes, struct err *err) {
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    _cleanup_free_ uint8_t *data = malloc(CHUNK);
    struct sha256_ctx sha;
    uint8_t digest[SHA256_DIGEST_SIZE];
    uint64_t bytes = 0;
    ssize_t n = -1;
    sha256_init(&sha);
    while (fd >= 0 && data && (n = read(fd, data, CHUNK)) > 0) {
        sha256_update(&sha, (size_t)n, data);
        bytes += (uint64_t)n;
    }
    if (n < 0 || fsync(fd) < 0)
        return err_sys(err, errno, "template.broken", "read %s", path);
    sha256_digest(&sha, sizeof digest, digest);
    str_hex(digest, sizeof digest, ret_hex);
    *ret_bytes = bytes;
    return 0;
}

/* {"state/memory":{"bytes":…,"sha256":…}} */
static int digest_files(const char *folder, json_t *ret_files, uint64_t *ret_bytes, struct err *err) {
    int r = 0;
    *ret_bytes = 0;
    for (size_t i = 0; r == 0 && i < SMALL_COUNT; i++) {
        char path[PATH_SIZE], hex[DIGEST_TEXT];
        uint64_t bytes = 0;
        path_in(path, folder, small_files[i]);
        r = digest_file(path, hex, &bytes, err);
        if (r == 0)
            json_object_set_new(ret_files, small_files[i],
                                json_pack("{s:I, s:s}", "bytes", (json_int_t)bytes, "sha256", hex));
        *ret_bytes += bytes;
    }
    return r;
}

static json_t *describe(const struct template *t, const struct template_wish *wish, const char *ram_digest,
                        json_t *files) {
    char at[TIME_RFC3339_SIZE];
    time_format_rfc3339(t->made_ms, at);
    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:I, s:{s:I, s:s}, s:O}",
                     "schema", SCHEMA, "type", vm_type_name(wish->type), "at", at, "made_ms", (json_int_t)t->made_ms,
                     "took_ms", (json_int_t)t->took_ms, "vmm", wish->choice.ops->name, "version", t->version, "accel",
                     wish->choice.accel, "shape", wish->shape, "image", wish->image.name, "image_digest",
                     wish->image_digest, "memory_mib", (int)wish->memory_mib, "vcpus", (int)wish->vcpus, "disk_bytes",
                     (json_int_t)wish->image.disk_bytes, "ram", "bytes", (json_int_t)t->ram_bytes, "sha256", ram_digest,
                     "files", files);
}

static int sync_folder(const char *path, struct err *err) {
    _cleanup_close_ int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 || fsync(fd) < 0 ? err_sys(err, errno, "template.write", "write %s to the disk", path) : 0;
}

static int write_manifest(const char *folder, json_t *manifest, struct err *err) {
    char path[PATH_SIZE];
    char *text = manifest ? json_dumps(manifest, JSON_INDENT(1)) : NULL;
    path_in(path, folder, MANIFEST);
    int r = text ? file_write_atomic(path, text, strlen(text), 0600) : -ENOMEM;
    free(text);
    return r < 0 ? err_sys(err, -r, "template.write", "write %s", path) : 0;
}

/* The name comes when all that it stands for is on the disk. */
static int give_name(const char *begun, const char *folder, struct err *err) {
    char parent[VMS_PATH_MAX];
    str_copy(parent, sizeof parent, folder);
    *strrchr(parent, '/') = '\0';
    int r = sync_folder(begun, err);
    if (r == 0 && rename(begun, folder) < 0)
        r = err_sys(err, errno, "template.write", "rename %s", begun);
    return r < 0 ? r : sync_folder(parent, err);
}

static void take_wish(struct template *t, const struct template_wish *wish) {
    t->type = wish->type;
    t->memory_mib = wish->memory_mib;
    t->vcpus = wish->vcpus;
    t->disk_bytes = wish->image.disk_bytes;
    str_copy(t->image, sizeof t->image, wish->image.name);
    str_copy(t->accel, sizeof t->accel, wish->choice.accel);
}

int template_finish(struct template *t, const struct template_wish *wish, struct err *err) {
    char begun[VMS_PATH_MAX + 8], from[PATH_SIZE], to[PATH_SIZE], hex[DIGEST_TEXT];
    json_t *files = json_object(), *manifest = NULL;
    snprintf(begun, sizeof begun, "%s" BEGUN, t->folder);
    path_in(from, begun, "disk.qcow2");
    path_in(to, begun, VMM_TEMPLATE_DISK);
    take_wish(t, wish);
    t->made_ms = time_realtime_ms();
    int r = seal(t->memory_fd, err);
    if (r == 0 && rename(from, to) < 0)
        r = err_sys(err, errno, "template.write", "rename %s", from);
    path_in(to, begun, TEMPLATE_OVERLAY);
    if (r == 0)
        r = image_overlay(to, VMM_TEMPLATE_DISK, "qcow2", t->disk_bytes, err);
    if (r == 0)
        r = write_ram(begun, t->memory_fd, wish, hex, &t->ram_bytes, err);
    if (r == 0)
        r = digest_files(begun, files, &t->bytes, err);
    t->bytes += t->ram_bytes;
    if (r == 0) {
        manifest = describe(t, wish, hex, files);
        r = write_manifest(begun, manifest, err);
    }
    json_decref(files);
    json_decref(manifest);
    return r < 0 ? r : give_name(begun, t->folder, err);
}

/* ---- finding it ---- */

/* Return: what is another now; NULL: it fits. */
static const char *misfit(json_t *m, const struct template_wish *wish) {
    const struct {
        const char *key, *is, *words;
    } texts[] = {{"schema", SCHEMA, "its form"},
                 {"type", vm_type_name(wish->type), "its type"},
                 {"vmm", wish->choice.ops->name, "the VMM"},
                 {"accel", wish->choice.accel, "what runs VMs"},
                 {"image", wish->image.name, "the image"},
                 {"image_digest", wish->image_digest, "what is in the image"},
                 {"shape", wish->shape, "the machine"}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        const char *was = json_string_value(json_object_get(m, texts[i].key));
        if (!was || strcmp(was, texts[i].is) != 0)
            return texts[i].words;
    }
    if (json_integer_value(json_object_get(m, "memory_mib")) != wish->memory_mib ||
        json_integer_value(json_object_get(m, "vcpus")) != wish->vcpus)
        return "its size";
    return (uint64_t)json_integer_value(json_object_get(m, "disk_bytes")) == wish->image.disk_bytes ? NULL : "its disk";
}

static int check_files(const char *folder, json_t *files, uint64_t *ret_bytes, struct err *err) {
    json_t *now = json_object();
    int r = digest_files(folder, now, ret_bytes, err);
    if (r == 0 && !json_equal(now, files))
        r = err_set(err, EUCLEAN, "template.broken", "a file in %s is not what it was when it was written", folder);
    json_decref(now);
    return r;
}

static int load(json_t *m, const struct template_wish *wish, struct template *t, struct err *err) {
    json_int_t made_ms = 0, took_ms = 0;
    const char *version = "", *digest = "";
    json_unpack(m, "{s?I, s?I, s?s, s?{s?s}}", "made_ms", &made_ms, "took_ms", &took_ms, "version", &version, "ram",
                "sha256", &digest);
    take_wish(t, wish);
    t->made_ms = made_ms;
    t->took_ms = took_ms;
    str_copy(t->version, sizeof t->version, version);
    int r = check_files(t->folder, json_object_get(m, "files"), &t->bytes, err);
    if (r == 0)
        r = read_ram(t->folder, wish, digest, &t->memory_fd, &t->ram_bytes, err);
    t->bytes += t->ram_bytes;
    return r;
}

static int open_one(const char *state_dir, const char *name, const struct template_wish *wish, struct template *t,
                    struct err *err) {
    char path[PATH_SIZE];
    _cleanup_free_ char *text = NULL;
    size_t len;
    *t = (struct template){.memory_fd = -1};
    str_copy(t->name, sizeof t->name, name);
    template_folder(state_dir, name, "", t->folder);
    path_in(path, t->folder, MANIFEST);
    int r = file_read(path, MANIFEST_MAX, &text, &len);
    json_t *m = r < 0 ? NULL : json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
    const char *other = m ? misfit(m, wish) : NULL;
    if (!m)
        r = err_set(err, EUCLEAN, "template.broken", "%s cannot be read", path);
    else if (other)
        r = err_set(err, EPROTO, "template.other", "%s is another now than for %s", other, name);
    else
        r = load(m, wish, t, err);
    json_decref(m);
    return r;
}

static bool is_of_type(const char *name, enum vm_type type) {
    size_t len = strlen(vm_type_name(type));
    return strncmp(name, vm_type_name(type), len) == 0 && name[len] == '-' && vm_id_is_valid(name + len + 1);
}

/* One a type is kept: the first that fits. */
int template_open(const char *state_dir, const struct template_wish *wish, struct template *ret_template,
                  char ret_removed[VMS_LINE_MAX], struct err *err) {
    char path[VMS_PATH_MAX];
    bool found = false;
    int r = 0;
    *ret_removed = '\0';
    template_folder(state_dir, "", "", path);
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        struct template t;
        struct err why = {0};
        if (!is_of_type(e->d_name, wish->type))
            continue;
        r = found ? 0 : open_one(state_dir, e->d_name, wish, &t, &why);
        if (r == -EINTR)
            break;
        if (!found && r == 0) {
            *ret_template = t;
            found = true;
            continue;
        }
        str_copy(ret_removed, VMS_LINE_MAX, found ? "there was a second one" : why.detail);
        template_folder(state_dir, e->d_name, "", path);
        dir_remove(path);
    }
    if (dir)
        closedir(dir);
    if (r == -EINTR)
        return broken_off(err);
    return found ? 0
                 : err_set(err, ENOENT, "template.none", "there is no template of the type %s that fits",
                           vm_type_name(wish->type));
}

/* <type>-<vm id>.tmp: its VMM ended with the daemon, and left an empty group. */
static void remove_group(const struct confine *confine, const char *folder, const char *name) {
    char id[VM_ID_TEXT];
    const char *dash = strchr(name, '-');
    str_copy(id, sizeof id, dash ? dash + 1 : "");
    if (!confine || !vm_id_is_valid(id))
        return;
    confine_kill(confine, folder, id, KILL_TIMEOUT_MS);
    confine_remove(confine, folder, id);
}

void template_sweep(const char *state_dir, const struct confine *confine) {
    char path[VMS_PATH_MAX];
    template_folder(state_dir, "", "", path);
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        size_t len = strlen(e->d_name);
        if (len < sizeof BEGUN || strcmp(e->d_name + len - strlen(BEGUN), BEGUN) != 0)
            continue;
        template_folder(state_dir, e->d_name, "", path);
        remove_group(confine, path, e->d_name);
        dir_remove(path);
    }
    if (dir)
        closedir(dir);
}

/* Its manifest first: what is left of it after a crash is none. */
void template_remove(const struct template *t) {
    char path[PATH_SIZE];
    path_in(path, t->folder, MANIFEST);
    unlink(path);
    dir_remove(t->folder);
}

void template_close(struct template *t) {
    if (t->memory_fd > 0)
        close(t->memory_fd);
    t->memory_fd = -1;
}

/* ---- using it ---- */

static int link_part(const struct template *t, const char *name, const char *folder, struct err *err) {
    char from[PATH_SIZE], to[PATH_SIZE], real[PATH_SIZE];
    path_in(from, t->folder, name);
    path_in(to, folder, name);
    if (link(from, to) == 0)
        return 0;
    /* The image may be on another file system: then base.ext4 is a symbolic link already, and links to the image. */
    ssize_t n = readlink(from, real, sizeof real - 1);
    if (n > 0)
        real[n] = '\0';
    if (n <= 0 || symlink(real, to) < 0)
        return err_sys(err, errno, "template.clone", "link %s to %s", from, to);
    return 0;
}

int template_clone(const struct template *t, const char *folder, struct err *err) {
    char path[PATH_SIZE];
    _cleanup_free_ char *data = NULL;
    size_t len;
    path_in(path, folder, TEMPLATE_STATE);
    if (mkdir(path, 0700) < 0)
        return err_sys(err, errno, "template.clone", "make %s", path);
    int r = link_part(t, "base.ext4", folder, err);
    if (r == 0)
        r = link_part(t, VMM_TEMPLATE_DISK, folder, err);
    if (r == 0)
        r = link_part(t, TEMPLATE_STATE "/memory", folder, err);
    if (r < 0)
        return r;
    path_in(path, t->folder, TEMPLATE_OVERLAY);
    r = file_read(path, 4U << 20, &data, &len);
    if (r < 0)
        return err_sys(err, -r, "template.clone", "read %s", path);
    path_in(path, folder, "disk.qcow2");
    r = file_write_new(path, data, len, 0600);
    return r < 0 ? err_sys(err, -r, "template.clone", "write %s", path) : 0;
}

void template_forget_state(const char *folder) {
    char path[PATH_SIZE];
    path_in(path, folder, TEMPLATE_STATE);
    dir_remove(path);
}

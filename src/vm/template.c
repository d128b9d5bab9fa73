#include "vm/template.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <linux/memfd.h>
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
#include "vm/template_layout.h"
#include "vm/template_pages.h"

#define PATH_SIZE (VMS_PATH_MAX + 300)
#define MANIFEST "template.json"
#define MANIFEST_MAX 65536
#define SCHEMA "template/2"
#define BEGUN ".tmp"
#define MEMORY_MODE 0444 /* root's: a VMM that maps it opens it as its VM's uid */
#define FOREIGN_VM "vm-00000000-0000-4000-8000-000000000000"

void template_folder(const char *state_dir, const char *name, const char *suffix, char ret_path[VMS_PATH_MAX]) {
    snprintf(ret_path, VMS_PATH_MAX, "%s/templates%s%s%s", state_dir, *name ? "/" : "", name, suffix);
}

static void path_in(char ret_path[PATH_SIZE], const char *folder, const char *name) {
    snprintf(ret_path, PATH_SIZE, "%s/%s", folder, name);
}

/* ---- what is wished for ---- */

static int digest_small(const char *path, char ret_hex[PAGES_DIGEST_TEXT], struct err *err) {
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
static void forget(int fd) {
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

/* from_fd: its memory. */
static int write_ram(const char *folder, int from_fd, const struct template_wish *wish, struct pages *ret_pages,
                     struct err *err) {
    uint64_t size = (uint64_t)wish->memory_mib << 20;
    char path[PATH_SIZE];
    path_in(path, folder, TEMPLATE_RAM);
    _cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int r =
        fd < 0 || ftruncate(fd, (off_t)size) < 0 ? -errno : pages_copy(from_fd, fd, size, wish->is_unwanted, ret_pages);
    if (r == -EINTR)
        return pages_broken_off(err);
    if (r == 0 && (fsync(fd) < 0 || (wish->choice.ops->maps_saved && fchmod(fd, MEMORY_MODE) < 0)))
        r = -errno;
    if (r < 0)
        return err_sys(err, -r, "template.write", "write %s", path);
    if (!wish->choice.ops->maps_saved)
        forget(fd);
    return 0;
}

/* What Firecracker has written of it belonged to its uid, and has all that is zero. */
static int take_ram(struct template *t, const char *folder, const struct template_wish *wish, struct pages *ret_pages,
                    struct err *err) {
    char path[PATH_SIZE];
    path_in(path, folder, TEMPLATE_STATE "/memory");
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return err_sys(err, errno, "template.write", "open %s", path);
    int r = write_ram(folder, fd, wish, ret_pages, err);
    if (r < 0)
        return r;
    if (unlink(path) < 0)
        return err_sys(err, errno, "template.write", "remove %s", path);
    path_in(path, folder, TEMPLATE_RAM);
    t->memory_fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    return t->memory_fd < 0 ? err_sys(err, errno, "template.write", "open %s", path) : 0;
}

/* Into a file of the daemon's. */
static int copy_ram(int fd, const struct template_wish *wish, struct pages *ret_pages, int *ret_fd, struct err *err) {
    _cleanup_close_ int memory_fd = -1;
    int r = template_memory_new(wish->memory_mib, &memory_fd, err);
    if (r < 0)
        return r;
    r = pages_copy(fd, memory_fd, (uint64_t)wish->memory_mib << 20, wish->is_unwanted, ret_pages);
    if (r < 0)
        return r;
    forget(fd);
    r = seal(memory_fd, err);
    if (r == 0)
        *ret_fd = fd_steal(&memory_fd);
    return r;
}

static int read_ram(const char *folder, const struct template_wish *wish, const char *wanted, int *ret_fd,
                    uint64_t *ret_bytes, struct err *err) {
    char path[PATH_SIZE];
    struct pages pages = {0};
    struct stat st;
    _cleanup_close_ int memory_fd = -1;
    path_in(path, folder, TEMPLATE_RAM);
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_sys(err, errno, "template.broken", "open %s", path);
    if (st.st_size != (off_t)wish->memory_mib << 20)
        return err_set(err, EUCLEAN, "template.broken", "%s is not as long as it was", path);
    if (wish->choice.ops->maps_saved && (st.st_uid != 0 || (st.st_mode & 07777) != MEMORY_MODE))
        return err_set(err, EUCLEAN, "template.broken", "others than root might write to %s", path);
    int r = wish->choice.ops->maps_saved ? pages_copy(fd, -1, (uint64_t)st.st_size, wish->is_unwanted, &pages)
                                         : copy_ram(fd, wish, &pages, &memory_fd, err);
    if (r == -EINTR)
        return pages_broken_off(err);
    if (r < 0)
        return err_sys(err, -r, "template.broken", "read %s", path);
    if (strcmp(pages.digest, wanted) != 0)
        return err_set(err, EUCLEAN, "template.broken", "%s has another digest than when it was written", path);
    *ret_bytes = pages.bytes;
    *ret_fd = wish->choice.ops->maps_saved ? fd_steal(&fd) : fd_steal(&memory_fd);
    return 0;
}

/* ---- making it ---- */

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
    t->ops = wish->choice.ops;
    t->type = wish->type;
    t->memory_mib = wish->memory_mib;
    t->vcpus = wish->vcpus;
    t->disk_bytes = wish->image.disk_bytes;
    str_copy(t->image, sizeof t->image, wish->image.name);
    str_copy(t->accel, sizeof t->accel, wish->choice.accel);
}

int template_finish(struct template *t, const struct template_wish *wish, struct err *err) {
    char begun[VMS_PATH_MAX + 8];
    struct pages ram = {0};
    json_t *files = json_object(), *manifest = NULL;
    snprintf(begun, sizeof begun, "%s" BEGUN, t->folder);
    take_wish(t, wish);
    t->made_ms = time_realtime_ms();
    int r = t->ops->maps_saved ? take_ram(t, begun, wish, &ram, err) : seal(t->memory_fd, err);
    if (r == 0)
        r = layout_settle(t->ops, begun, t->disk_bytes, err);
    if (r == 0 && !t->ops->maps_saved)
        r = write_ram(begun, t->memory_fd, wish, &ram, err);
    if (r == 0)
        r = layout_digest(t->ops, begun, wish->is_unwanted, files, &t->bytes, err);
    t->ram_bytes = ram.bytes;
    t->bytes += t->ram_bytes;
    if (r == 0) {
        manifest = describe(t, wish, ram.digest, files);
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

static int check_files(const char *folder, const struct template_wish *wish, json_t *files, uint64_t *ret_bytes,
                       struct err *err) {
    json_t *now = json_object();
    int r = layout_digest(wish->choice.ops, folder, wish->is_unwanted, now, ret_bytes, err);
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
    int r = check_files(t->folder, wish, json_object_get(m, "files"), &t->bytes, err);
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
        return pages_broken_off(err);
    return found ? 0
                 : err_set(err, ENOENT, "template.none", "there is no template of the type %s that fits",
                           vm_type_name(wish->type));
}

/* Whoever looks for it finds it by its name: <type>-<vm id>.tmp. */
static int release_begun(const char *folder, const char *name, template_release_fn *release, void *userdata) {
    char id[VM_ID_TEXT];
    for (int i = 0; i < VM_TYPE_COUNT; i++) {
        size_t len = strlen(vm_type_name((enum vm_type)i));
        if (strncmp(name, vm_type_name((enum vm_type)i), len) != 0 || name[len] != '-')
            continue;
        str_copy(id, sizeof id, name + len + 1); /* as much of it as fits */
        if (vm_id_is_valid(id))
            return release(userdata, (enum vm_type)i, id, folder);
    }
    return 0;
}

void template_sweep(const char *state_dir, template_release_fn *release, void *userdata) {
    char path[VMS_PATH_MAX];
    template_folder(state_dir, "", "", path);
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        size_t len = strlen(e->d_name);
        if (len < sizeof BEGUN || strcmp(e->d_name + len - strlen(BEGUN), BEGUN) != 0)
            continue;
        template_folder(state_dir, e->d_name, "", path);
        /* By its folder the rest is found again, at the next start. */
        if (!release || release_begun(path, e->d_name, release, userdata) == 0)
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

int template_clone(const struct template *t, const char *folder, struct err *err) {
    return layout_clone(t->ops, t->folder, folder, err);
}

void template_forget_state(const char *folder) {
    char path[PATH_SIZE];
    path_in(path, folder, TEMPLATE_STATE);
    dir_remove(path);
}

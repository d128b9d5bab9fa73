/* A template's files: what is written is what is loaded, sealed, and nothing that was changed or does not fit. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "cmocka_all.h"
#include "vm/template.h"

#define NAME "cli-vm-01234567-89ab-4cde-8f01-23456789abcd"
#define MEMORY_MIB 128
#define FAR (100U << 20) /* of its memory: a place far behind the rest */

struct fixture {
    char state[64];
    struct template_wish wish;
};

static void path_of(const struct fixture *f, const char *suffix, const char *file, char ret_path[512]) {
    snprintf(ret_path, 512, "%s/templates/" NAME "%s%s%s", f->state, suffix, *file ? "/" : "", file);
}

static void put(const struct fixture *f, const char *suffix, const char *file, const char *text) {
    char path[512];
    path_of(f, suffix, file, path);
    assert_int_equal(file_write_atomic(path, text, strlen(text), 0600), 0);
}

static int set_up(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    char path[512];
    str_copy(f->state, sizeof f->state, "/tmp/test-template-XXXXXX");
    assert_non_null(mkdtemp(f->state));
    path_of(f, ".tmp", "state", path);
    assert_int_equal(dir_make(path, 0700), 0);
    put(f, ".tmp", "state/memory", "devices");
    put(f, ".tmp", "disk.qcow2", "what the guest wrote");
    put(f, ".tmp", "base.ext4", "the image");
    f->wish = (struct template_wish){.type = VM_TYPE_CLI, .memory_mib = MEMORY_MIB, .vcpus = 2};
    f->wish.choice.ops = &vmm_qemu;
    f->wish.image.disk_bytes = 16U << 20;
    str_copy(f->wish.choice.accel, sizeof f->wish.choice.accel, "tcg");
    str_copy(f->wish.image.name, sizeof f->wish.image.name, "golden/1");
    str_copy(f->wish.image_digest, sizeof f->wish.image_digest, "ab");
    str_copy(f->wish.shape, sizeof f->wish.shape, "cd");
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    struct fixture *f = *state;
    dir_remove(f->state);
    free(f);
    return 0;
}

static void make(struct fixture *f) {
    struct template t = {.memory_fd = -1, .took_ms = 1234};
    struct err err = {0};
    str_copy(t.name, sizeof t.name, NAME);
    str_copy(t.version, sizeof t.version, "7.2.22");
    template_folder(f->state, NAME, "", t.folder);
    assert_int_equal(template_memory_new(MEMORY_MIB, &t.memory_fd, &err), 0);
    assert_int_equal(pwrite(t.memory_fd, "begin", 5, 0), 5);
    assert_int_equal(pwrite(t.memory_fd, "far", 3, FAR), 3);
    if (template_finish(&t, &f->wish, &err) < 0)
        fail_msg("%s", err.detail);
    template_close(&t);
}

static int open_it(struct fixture *f, struct template *ret, char removed[VMS_LINE_MAX]) {
    struct err err = {0};
    *ret = (struct template){.memory_fd = -1};
    int r = template_open(f->state, &f->wish, ret, removed, &err);
    assert_true(r == 0 || strcmp(err.code, "template.none") == 0);
    return r;
}

static bool is_there(const struct fixture *f) {
    char path[512];
    path_of(f, "", "", path);
    return access(path, F_OK) == 0;
}

static void test_what_was_written_is_loaded_and_sealed(void **state) {
    struct fixture *f = *state;
    struct template t;
    char removed[VMS_LINE_MAX], text[6] = "";
    struct stat st;
    make(f);
    assert_int_equal(open_it(f, &t, removed), 0);
    assert_string_equal(removed, "");
    assert_string_equal(t.name, NAME);
    assert_string_equal(t.version, "7.2.22");
    assert_int_equal(t.took_ms, 1234);
    assert_int_equal(t.ram_bytes, 2 * 65536);
    assert_int_equal(pread(t.memory_fd, text, 5, 0), 5);
    assert_string_equal(text, "begin");
    memset(text, 0, sizeof text);
    assert_int_equal(pread(t.memory_fd, text, 3, FAR), 3);
    assert_string_equal(text, "far");
    assert_int_equal(fstat(t.memory_fd, &st), 0);
    assert_int_equal(st.st_size, (off_t)MEMORY_MIB << 20);
    assert_true(st.st_blocks * 512 < 1 << 20);
    /* Nobody who has it writes to it, but to a private mapping. */
    assert_int_equal(pwrite(t.memory_fd, "x", 1, 0), -1);
    assert_int_equal(errno, EPERM);
    assert_ptr_equal(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, t.memory_fd, 0), MAP_FAILED);
    char *own = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, t.memory_fd, 0);
    assert_ptr_not_equal(own, MAP_FAILED);
    own[0] = 'X';
    assert_int_equal(pread(t.memory_fd, text, 1, 0), 1);
    assert_int_equal(text[0], 'b');
    munmap(own, 4096);
    template_close(&t);
}

static void test_a_clone_gets_what_it_needs(void **state) {
    struct fixture *f = *state;
    struct template t;
    struct err err = {0};
    char removed[VMS_LINE_MAX], folder[128], path[256];
    _cleanup_free_ char *text = NULL;
    size_t len;
    make(f);
    assert_int_equal(open_it(f, &t, removed), 0);
    snprintf(folder, sizeof folder, "%s/vm", f->state);
    assert_int_equal(mkdir(folder, 0700), 0);
    if (template_clone(&t, folder, &err) < 0)
        fail_msg("%s", err.detail);
    template_remove(&t);
    template_close(&t);
    assert_false(is_there(f));
    snprintf(path, sizeof path, "%s/template.qcow2", folder);
    assert_int_equal(file_read(path, 100, &text, &len), 0);
    assert_string_equal(text, "what the guest wrote");
    for (size_t i = 0; i < 3; i++) {
        static const char *const names[] = {"base.ext4", "disk.qcow2", "state/memory"};
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        assert_int_equal(access(path, R_OK), 0);
    }
    template_forget_state(folder);
    assert_int_equal(access(path, F_OK), -1);
}

/* ---- as Firecracker has it: the memory is a file of the snapshot, which the VMs map ---- */

static void put_memory(const struct fixture *f, const char *suffix, const char *file) {
    char path[512];
    path_of(f, suffix, file, path);
    _cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(pwrite(fd, "begin", 5, 0), 5);
    assert_int_equal(pwrite(fd, "far", 3, FAR), 3);
    assert_int_equal(ftruncate(fd, (off_t)MEMORY_MIB << 20), 0);
    assert_int_equal(fchown(fd, 12345, 12345), geteuid() == 0 ? 0 : -1);
}

/* What a machine in its jailer leaves. is_whole: its disk is one, not two. */
static void make_firecracker(struct fixture *f, bool is_whole) {
    struct template t = {.memory_fd = -1};
    struct err err = {0};
    char path[512], link[512];
    path_of(f, ".tmp", "firecracker/" NAME "/root", path);
    assert_int_equal(dir_make(path, 0700), 0);
    path_of(f, ".tmp", "root", link);
    assert_int_equal(symlink(strstr(path, "firecracker"), link), 0);
    path_of(f, ".tmp", "base.ext4", path);
    unlink(path);
    path_of(f, ".tmp", "state/memory", path);
    unlink(path);
    put_memory(f, ".tmp", "state/memory");
    put(f, ".tmp", "state/machine.state", "devices");
    put(f, ".tmp", is_whole ? "root/disk.ext4" : "root/overlay.ext4", "what the guest wrote");
    if (!is_whole)
        put(f, ".tmp", "root/base.ext4", "the image");
    put(f, ".tmp", "root/vmlinux", "a kernel");
    f->wish.choice.ops = &vmm_firecracker;
    str_copy(t.name, sizeof t.name, NAME);
    template_folder(f->state, NAME, "", t.folder);
    if (template_finish(&t, &f->wish, &err) < 0)
        fail_msg("%s", err.detail);
    template_close(&t);
}

static void check_mode(const char *path, mode_t mode) {
    struct stat st;
    assert_int_equal(lstat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, mode);
    assert_int_equal(st.st_uid, 0);
}

static void check_firecracker(struct fixture *f, bool is_whole) {
    struct template t;
    struct err err = {0};
    struct stat ram, st;
    char removed[VMS_LINE_MAX], folder[128], path[512], text[6] = "";
    if (geteuid() != 0)
        skip(); /* its files are root's */
    make_firecracker(f, is_whole);
    path_of(f, "", "root", path);
    assert_int_equal(access(path, F_OK), -1);
    path_of(f, "", "firecracker", path);
    assert_int_equal(access(path, F_OK), -1);
    path_of(f, "", "state/memory", path);
    assert_int_equal(access(path, F_OK), -1);
    path_of(f, "", "ram", path);
    check_mode(path, 0444);
    assert_int_equal(stat(path, &ram), 0);
    assert_true(ram.st_blocks * 512 < 1 << 20);
    path_of(f, "", "state/machine.state", path);
    check_mode(path, 0444);
    assert_int_equal(open_it(f, &t, removed), 0);
    assert_int_equal(t.ram_bytes, 2 * 65536);
    assert_int_equal(pread(t.memory_fd, text, 3, FAR), 3);
    assert_string_equal(text, "far");
    assert_int_equal(pwrite(t.memory_fd, "x", 1, 0), -1);
    snprintf(folder, sizeof folder, "%s/vm", f->state);
    assert_int_equal(mkdir(folder, 0700), 0);
    if (template_clone(&t, folder, &err) < 0)
        fail_msg("%s", err.detail);
    snprintf(path, sizeof path, "%s/state/memory", folder);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_ino, ram.st_ino);
    snprintf(path, sizeof path, "%s/%s", folder, is_whole ? "disk.ext4" : "overlay.ext4");
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_nlink, 1);
    check_mode(path, 0600);
    snprintf(path, sizeof path, "%s/base.ext4", folder);
    assert_int_equal(access(path, F_OK), is_whole ? -1 : 0);
    template_forget_state(folder);
    template_close(&t);
}

static void test_firecrackers_with_the_image_beside_it(void **state) {
    check_firecracker(*state, false);
}

static void test_firecrackers_with_a_disk_of_its_own(void **state) {
    check_firecracker(*state, true);
}

static void check_gone(struct fixture *f, const char *why) {
    struct template t;
    char removed[VMS_LINE_MAX];
    assert_int_equal(open_it(f, &t, removed), -ENOENT);
    if (!strstr(removed, why))
        fail_msg("\"%s\" does not say \"%s\"", removed, why);
    assert_false(is_there(f));
}

static void test_what_was_changed_is_not_loaded(void **state) {
    struct fixture *f = *state;
    char path[512];
    make(f);
    path_of(f, "", "ram", path);
    _cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_int_equal(pwrite(fd, "x", 1, 50U << 20), 1);
    check_gone(f, "another digest");
}

static void test_another_state_is_not_loaded(void **state) {
    struct fixture *f = *state;
    make(f);
    put(f, "", "state/memory", "devicez");
    check_gone(f, "is not what it was");
}

static void test_a_shorter_memory_is_not_loaded(void **state) {
    struct fixture *f = *state;
    char path[512];
    make(f);
    path_of(f, "", "ram", path);
    assert_int_equal(truncate(path, 1 << 20), 0);
    check_gone(f, "is not as long");
}

static void test_a_memory_that_others_may_write_is_not_loaded(void **state) {
    struct fixture *f = *state;
    char path[512];
    if (geteuid() != 0)
        skip();
    make_firecracker(f, false);
    path_of(f, "", "ram", path);
    assert_int_equal(chmod(path, 0646), 0);
    check_gone(f, "others than root might write");
}

static void test_one_that_does_not_fit_goes(void **state) {
    struct fixture *f = *state;
    make(f);
    str_copy(f->wish.shape, sizeof f->wish.shape, "ce");
    check_gone(f, "the machine is another now");
}

static void test_one_of_another_image_goes(void **state) {
    struct fixture *f = *state;
    make(f);
    str_copy(f->wish.image_digest, sizeof f->wish.image_digest, "ac");
    check_gone(f, "what is in the image is another now");
}

static void test_another_type_s_is_left_alone(void **state) {
    struct fixture *f = *state;
    struct template t;
    char removed[VMS_LINE_MAX];
    make(f);
    f->wish.type = VM_TYPE_BROWSER;
    assert_int_equal(open_it(f, &t, removed), -ENOENT);
    assert_string_equal(removed, "");
    assert_true(is_there(f));
}

static void test_what_is_half_made_is_swept(void **state) {
    struct fixture *f = *state;
    struct template t;
    char removed[VMS_LINE_MAX], path[512];
    assert_int_equal(open_it(f, &t, removed), -ENOENT);
    template_sweep(f->state, NULL, NULL);
    path_of(f, ".tmp", "", path);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(errno, ENOENT);
}

static void test_memory_that_somebody_writes_to_is_not_sealed(void **state) {
    struct fixture *f = *state;
    struct template t = {.memory_fd = -1};
    struct err err = {0};
    str_copy(t.name, sizeof t.name, NAME);
    template_folder(f->state, NAME, "", t.folder);
    assert_int_equal(template_memory_new(MEMORY_MIB, &t.memory_fd, &err), 0);
    void *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, t.memory_fd, 0);
    assert_ptr_not_equal(shared, MAP_FAILED);
    assert_int_equal(template_finish(&t, &f->wish, &err), -EBUSY);
    assert_false(is_there(f));
    munmap(shared, 4096);
    template_close(&t);
}

/* A daemon that is told to end waits for no copy, and loses nothing by that. */
static void test_what_is_broken_off_stays(void **state) {
    struct fixture *f = *state;
    struct template t = {.memory_fd = -1};
    struct err err = {0};
    char removed[VMS_LINE_MAX];
    atomic_bool is_unwanted = true;
    make(f);
    f->wish.is_unwanted = &is_unwanted;
    assert_int_equal(template_open(f->state, &f->wish, &t, removed, &err), -EINTR);
    assert_string_equal(err.code, "template.unwanted");
    assert_string_equal(removed, "");
    assert_true(is_there(f));
    is_unwanted = false;
    assert_int_equal(open_it(f, &t, removed), 0);
    template_close(&t);
}

static void test_one_that_is_not_wanted_is_not_made(void **state) {
    struct fixture *f = *state;
    struct template t = {.memory_fd = -1};
    struct err err = {0};
    atomic_bool is_unwanted = true;
    f->wish.is_unwanted = &is_unwanted;
    str_copy(t.name, sizeof t.name, NAME);
    template_folder(f->state, NAME, "", t.folder);
    assert_int_equal(template_memory_new(MEMORY_MIB, &t.memory_fd, &err), 0);
    assert_int_equal(pwrite(t.memory_fd, "begin", 5, 0), 5);
    assert_int_equal(template_finish(&t, &f->wish, &err), -EINTR);
    assert_string_equal(err.code, "template.unwanted");
    assert_false(is_there(f));
    template_close(&t);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_what_was_written_is_loaded_and_sealed),
        TEST(test_a_clone_gets_what_it_needs),
        TEST(test_what_was_changed_is_not_loaded),
        TEST(test_another_state_is_not_loaded),
        TEST(test_a_shorter_memory_is_not_loaded),
        TEST(test_one_that_does_not_fit_goes),
        TEST(test_firecrackers_with_the_image_beside_it),
        TEST(test_firecrackers_with_a_disk_of_its_own),
        TEST(test_a_memory_that_others_may_write_is_not_loaded),
        TEST(test_one_of_another_image_goes),
        TEST(test_another_type_s_is_left_alone),
        TEST(test_what_is_half_made_is_swept),
        TEST(test_memory_that_somebody_writes_to_is_not_sealed),
        TEST(test_what_is_broken_off_stays),
        TEST(test_one_that_is_not_wanted_is_not_made),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

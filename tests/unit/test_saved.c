/* Saved memory: what is whole, what is not, and what is refused. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "cmocka_all.h"
#include "vm/saved.h"

static bool is_disk_broken;

/* The C library's, but for a disk that is broken. */
int __wrap_fsync(int fd);
int __real_fsync(int fd);
int __wrap_fsync(int fd) {
    errno = EIO;
    return is_disk_broken ? -1 : __real_fsync(fd);
}

struct fixture {
    char folder[64];
    struct vm vm;
};

static void put(const struct fixture *f, const char *name, const char *text) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", f->folder, name);
    unlink(path);
    assert_int_equal(file_write_new(path, text, strlen(text), 0600), 0);
}

static bool has(const struct fixture *f, const char *name) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", f->folder, name);
    return access(path, F_OK) == 0;
}

static void save(const struct fixture *f) {
    struct err err = {0};
    uint64_t bytes = 0;
    assert_int_equal(saved_begin(f->folder, &err), 0);
    put(f, SAVED_BEGUN "/memory", "what was in memory");
    assert_false(saved_is_whole(f->folder));
    assert_int_equal(saved_finish(f->folder, &f->vm, "7.2.0", "tcg", &bytes, &err), 0);
    assert_int_equal(bytes, strlen("what was in memory"));
}

static int setup(void **state) {
    struct fixture *f = calloc(1, sizeof *f);
    strcpy(f->folder, "/tmp/test-saved-XXXXXX");
    if (!mkdtemp(f->folder))
        return -1;
    f->vm = (struct vm){.id = "vm-00000000-0000-4000-8000-000000000001",
                        .memory_mib = 128,
                        .vcpus = 1,
                        .image = "test/1",
                        .vmm = "qemu"};
    put(f, "disk.qcow2", "a disk");
    *state = f;
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    dir_remove(f->folder);
    free(f);
    return 0;
}

/* As a resume does. */
static int check(const struct fixture *f, const char *accel, char version[VMM_VERSION_MAX], struct err *err) {
    int r = saved_check(f->folder, &f->vm, accel, version, err);
    return r < 0 ? r : saved_check_files(f->folder, err);
}

static void refuse(const struct fixture *f, const char *accel, const char *code) {
    char version[VMM_VERSION_MAX];
    struct err err = {0};
    assert_true(check(f, accel, version, &err) < 0);
    assert_string_equal(err.code, code);
    assert_non_null(strstr(err.hint, "--cold"));
}

static void what_was_saved_is_whole_and_checks(void **state) {
    struct fixture *f = *state;
    char version[VMM_VERSION_MAX] = "";
    struct err err = {0};
    refuse(f, "tcg", "saved.none");
    save(f);
    assert_true(saved_is_whole(f->folder));
    assert_false(has(f, SAVED_BEGUN));
    assert_int_equal(check(f, "tcg", version, &err), 0);
    assert_string_equal(version, "7.2.0");
    int held = saved_hold(f->folder);
    assert_true(held >= 0);
    assert_int_equal(saved_drop(f->folder, &err), 0);
    close(held);
    assert_int_equal(saved_hold(f->folder), -1);
    assert_false(saved_is_whole(f->folder) || has(f, SAVED_WHOLE) || has(f, SAVED_BEGUN));
    assert_int_equal(saved_drop(f->folder, &err), 0);
}

static void what_cannot_be_dropped_for_certain_stays_whole(void **state) {
    struct fixture *f = *state;
    char version[VMM_VERSION_MAX] = "";
    struct err err = {0};
    save(f);
    is_disk_broken = true;
    assert_int_equal(saved_drop(f->folder, &err), -EIO);
    is_disk_broken = false;
    assert_true(saved_is_whole(f->folder));
    assert_int_equal(check(f, "tcg", version, &err), 0);
    assert_int_equal(saved_drop(f->folder, &err), 0);
    assert_false(saved_is_whole(f->folder));
}

static void what_a_crash_left_is_never_whole(void **state) {
    struct fixture *f = *state;
    struct err err = {0};
    uint64_t bytes;
    assert_int_equal(saved_begin(f->folder, &err), 0);
    put(f, SAVED_BEGUN "/memory", "half");
    refuse(f, "tcg", "saved.none");
    assert_int_equal(saved_begin(f->folder, &err), 0); /* the next attempt begins with nothing */
    assert_false(has(f, SAVED_BEGUN "/memory"));
    assert_true(saved_finish(f->folder, &f->vm, "7", "tcg", &bytes, &err) < 0); /* the VMM has written nothing */
    assert_false(saved_is_whole(f->folder));
}

static void what_does_not_fit_is_refused_and_kept(void **state) {
    struct fixture *f = *state;
    save(f);
    refuse(f, "kvm", "saved.other");
    f->vm.memory_mib = 256;
    refuse(f, "tcg", "saved.broken");
    f->vm.memory_mib = 128;
    strcpy(f->vm.image, "test/2");
    refuse(f, "tcg", "saved.other");
    strcpy(f->vm.image, "test/1");
    put(f, SAVED_WHOLE "/memory", "what was in memorY");
    refuse(f, "tcg", "saved.broken");
    put(f, SAVED_WHOLE "/memory", "what was in memory");
    put(f, "disk.qcow2", "a disk that was written to");
    refuse(f, "tcg", "saved.broken");
    for (int i = 0; i < 6; i++) {
        static const char *const bad[] = {
            "", "[]", "{}", "{\"version\":7}", "\xff", "{\"schema\":\"saved/1\",\"version\":\"7\"}"};
        put(f, SAVED_WHOLE "/saved.json", bad[i]);
        refuse(f, "tcg", "saved.broken");
    }
    assert_true(has(f, SAVED_WHOLE "/memory"));
}

static void a_full_disk_is_told_before(void **state) {
    struct fixture *f = *state;
    struct err err = {0};
    assert_int_equal(saved_check_room(f->folder, 128, &err), 0);
    assert_int_equal(saved_check_room(f->folder, UINT32_MAX, &err), -ENOSPC);
    assert_string_equal(err.code, "disk.no-room");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_was_saved_is_whole_and_checks, setup, teardown),
        cmocka_unit_test_setup_teardown(what_cannot_be_dropped_for_certain_stays_whole, setup, teardown),
        cmocka_unit_test_setup_teardown(what_a_crash_left_is_never_whole, setup, teardown),
        cmocka_unit_test_setup_teardown(what_does_not_fit_is_refused_and_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(a_full_disk_is_told_before, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

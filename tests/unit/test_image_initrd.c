/* The look into an initramfs: archives written here by hand, whole, damaged, and made to hurt. */
#include "image/initrd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include "base/str.h"
#include "cmocka_all.h"

/* One entry as Documentation/driver-api/early-userspace/buffer-format.rst has it. name_len counts its NUL. */
static void add_raw(struct strbuf *to, const char *name, size_t name_len, unsigned mode, const char *data, size_t len) {
    char head[111];
    snprintf(head, sizeof head, "070701%08X%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 0xABCDU, mode, 0U, 0U, 1U,
             0U, (unsigned)len, 0U, 0U, 0U, 0U, (unsigned)name_len, 0U);
    strbuf_add(to, head, 110);
    strbuf_add(to, name, name_len);
    strbuf_add(to, "\0\0\0", -to->len & 3);
    strbuf_add(to, data, len);
    strbuf_add(to, "\0\0\0", -to->len & 3);
}

static void add(struct strbuf *to, const char *name, unsigned mode, const char *text) {
    add_raw(to, name, strlen(name) + 1, mode, text, strlen(text));
}

static struct strbuf archive(void) {
    struct strbuf b = {.max = 1 << 20};
    add(&b, ".", S_IFDIR | 0755, "");
    add(&b, "init", S_IFREG | 0755, "#!/bin/sh\n");
    add(&b, "./etc/modules-order", S_IFREG | 0644, "virtio_blk.ko\n");
    add(&b, "/etc/empty", S_IFREG | 0600, "");
    add(&b, "lib", S_IFLNK | 0777, "usr/lib");
    return b;
}

static struct strbuf packed(const struct strbuf *plain) {
    struct strbuf b = {.max = 1 << 20};
    char *data = malloc(ZSTD_compressBound(plain->len));
    assert_non_null(data);
    strbuf_add(&b, data, ZSTD_compress(data, ZSTD_compressBound(plain->len), plain->data, plain->len, 3));
    free(data);
    return b;
}

static void expect_file(const struct initrd *initrd, const char *name, unsigned mode, const char *text) {
    const char *data;
    size_t len;
    unsigned have;
    assert_true(initrd_find(initrd, name, &data, &len, &have));
    assert_int_equal(have, mode);
    assert_int_equal(len, strlen(text));
    assert_memory_equal(data, text, len);
}

static void expect_good(const void *data, size_t len) {
    struct initrd initrd;
    const char *found;
    size_t found_len;
    unsigned mode;
    assert_int_equal(initrd_parse(data, len, &initrd), 0);
    assert_true(initrd_is_whole(&initrd));
    expect_file(&initrd, "init", S_IFREG | 0755, "#!/bin/sh\n");
    expect_file(&initrd, "etc/modules-order", S_IFREG | 0644, "virtio_blk.ko\n");
    expect_file(&initrd, "etc/empty", S_IFREG | 0600, "");
    expect_file(&initrd, "lib", S_IFLNK | 0777, "usr/lib");
    assert_false(initrd_find(&initrd, "ini", &found, &found_len, &mode));
    assert_false(initrd_find(&initrd, "TRAILER!!!", &found, &found_len, &mode));
    initrd_close(&initrd);
    assert_null(initrd.data);
}

static void plain_and_packed_are_read(void **state) {
    struct strbuf b = archive();
    add(&b, "TRAILER!!!", 0, "");
    expect_good(b.data, b.len);
    strbuf_add(&b, (char[512]){0}, 512); /* as cpio pads to a block */
    expect_good(b.data, b.len);
    struct strbuf z = packed(&b);
    expect_good(z.data, z.len);
    char path[] = "/tmp/test-initrd-XXXXXX";
    int fd = mkstemp(path);
    assert_int_equal(write(fd, z.data, z.len), z.len);
    close(fd);
    struct initrd initrd;
    assert_int_equal(initrd_open(path, &initrd), 0);
    assert_true(initrd_is_whole(&initrd));
    initrd_close(&initrd);
    unlink(path);
    assert_int_equal(initrd_open(path, &initrd), -ENOENT);
    strbuf_free(&z);
    strbuf_free(&b);
}

static void what_is_no_archive_is_refused(void **state) {
    static const struct {
        const char *data;
        size_t len;
        int error;
    } cases[] = {
        {"", 0, -EBADMSG},
        {"07070", 5, -EBADMSG},
        {"070707000000", 12, -EOPNOTSUPP},          /* another kind of cpio */
        {"\x1f\x8b\x08\0\0\0\0\0", 8, -EOPNOTSUPP}, /* gzip */
        {"\xfd"
         "7zXZ\0\0\0",
         8, -EOPNOTSUPP},                                  /* xz */
        {"\x28\xb5\x2f\xfd", 4, -EBADMSG},                 /* zstd, cut */
        {"\x28\xb5\x2f\xfd\xff\xff\xff\xff", 8, -EBADMSG}, /* zstd, nonsense */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct initrd initrd = {.data = (char *)1};
        assert_int_equal(initrd_parse(cases[i].data, cases[i].len, &initrd), cases[i].error);
        assert_ptr_equal(initrd.data, (char *)1); /* untouched */
    }
}

/* Every cut: never whole, never out of bounds (the sanitizers see that). */
static void a_cut_archive_is_not_whole(void **state) {
    struct strbuf b = archive();
    add(&b, "TRAILER!!!", 0, "");
    for (size_t len = 6; len < b.len; len++) {
        struct initrd initrd;
        char *copy = malloc(len); /* of that length exactly */
        memcpy(copy, b.data, len);
        assert_int_equal(initrd_parse(copy, len, &initrd), 0);
        assert_false(initrd_is_whole(&initrd));
        initrd_close(&initrd);
        free(copy);
    }
    struct strbuf z = packed(&b);
    for (size_t len = 6; len < z.len; len++) {
        struct initrd initrd;
        assert_int_equal(initrd_parse(z.data, len, &initrd), -EBADMSG);
    }
    strbuf_free(&z);
    strbuf_free(&b);
}

static void expect_damaged(const struct strbuf *b) {
    struct initrd initrd;
    const char *data;
    size_t len;
    unsigned mode;
    assert_int_equal(initrd_parse(b->data, b->len, &initrd), 0);
    assert_false(initrd_is_whole(&initrd));
    assert_false(initrd_find(&initrd, "nowhere", &data, &len, &mode));
    initrd_close(&initrd);
}

static void lengths_that_lie_are_found(void **state) {
    static const struct {
        size_t at;
        const char *value;
    } lies[] = {
        {54, "ffffffff"}, {54, "7fffffff"}, {54, "0000-001"}, {54, "00000g00"}, /* size */
        {94, "00000000"}, {94, "ffffffff"}, {94, "00001001"}, {94, "00000003"}, /* length of the name */
        {14, "0000 1ed"},                                                       /* mode */
        {0, "07070x"},    {0, "170701"},
    };
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        struct strbuf b = {.max = 1 << 20};
        add(&b, "a", S_IFREG, "x");
        size_t second = b.len;
        add(&b, "init", S_IFREG, "0123456789");
        add(&b, "TRAILER!!!", 0, "");
        memcpy(b.data + second + lies[i].at, lies[i].value, strlen(lies[i].value));
        expect_damaged(&b);
        strbuf_free(&b);
    }
    struct strbuf b = {.max = 1 << 20};
    add_raw(&b, "init", 4, S_IFREG, "x", 1); /* a name without its NUL */
    add(&b, "TRAILER!!!", 0, "");
    expect_damaged(&b);
    strbuf_free(&b);
}

/* A few kilobytes that would be 128 MiB and more. */
static void a_bomb_is_refused(void **state) {
    static char zeros[1 << 20];
    struct strbuf z = {.max = 4 << 20};
    ZSTD_CCtx *context = ZSTD_createCCtx();
    char out[1 << 16];
    ZSTD_outBuffer to = {out, sizeof out, 0};
    for (int i = 0; i <= 129; i++) {
        ZSTD_inBuffer in = {zeros, i < 129 ? sizeof zeros : 0, 0};
        assert_false(ZSTD_isError(ZSTD_compressStream2(context, &to, &in, i < 129 ? ZSTD_e_continue : ZSTD_e_end)));
        assert_int_equal(in.pos, in.size);
        strbuf_add(&z, out, to.pos);
        to.pos = 0;
    }
    ZSTD_freeCCtx(context);
    assert_true(z.len < 1 << 20);
    struct initrd initrd;
    assert_int_equal(initrd_parse(z.data, z.len, &initrd), -EFBIG);
    strbuf_free(&z);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_and_packed_are_read),  cmocka_unit_test(what_is_no_archive_is_refused),
        cmocka_unit_test(a_cut_archive_is_not_whole), cmocka_unit_test(lengths_that_lie_are_found),
        cmocka_unit_test(a_bomb_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Any ext4: looked into to the end, without a crash, and always with a report. The input is what is changed in one of
 * three small good file systems (make-ext4, made by the build): a byte that chooses it and whether it is cut, then
 * changes: where (3 bytes, modulo its size), how many bytes (1 to 8), the bytes. So that nearly all of it stays good, and
 * what is read behind the change is reached. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz.h"
#include "image/verify.h"

#define KINDS 3
#define IMAGE_MAX ((size_t)256 * 1024)

static uint8_t good[KINDS][IMAGE_MAX];
static size_t good_size[KINDS];

static void check(bool fine, const char *what) {
    if (fine)
        return;
    fprintf(stderr, "fuzz_image: %s\n", what);
    abort();
}

static void load_good(void) {
    static const char *const paths[KINDS] = {FUZZ_EXT4_0, FUZZ_EXT4_1, FUZZ_EXT4_2};
    for (int i = 0; i < KINDS && good_size[i] == 0; i++) {
        FILE *f = fopen(paths[i], "re");
        check(f, paths[i]);
        good_size[i] = fread(good[i], 1, IMAGE_MAX, f);
        fclose(f);
    }
}

/* Return: the size of the changed image. */
static size_t apply(const uint8_t *data, size_t size, uint8_t *ret) {
    size_t kind = data[0] % KINDS, len = good_size[kind];
    memcpy(ret, good[kind], len);
    for (size_t at = 1; at + 5 <= size;) {
        size_t where = ((size_t)data[at] | (size_t)data[at + 1] << 8 | (size_t)data[at + 2] << 16) % len;
        size_t n = 1 + data[at + 3] % 8;
        at += 4;
        n = n > size - at ? size - at : n;
        memcpy(ret + where, data + at, where + n > len ? len - where : n);
        at += n;
    }
    return data[0] & 0x80 ? len - (data[0] & 0x7f) * len / 256 : len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t image[IMAGE_MAX];
    struct image_report *report = NULL;
    struct err err = {0};
    char path[64];
    if (size == 0)
        return 0;
    load_good();
    size_t len = apply(data, size, image);
    int fd = memfd_create("fuzz_image", MFD_CLOEXEC);
    check(fd >= 0 && write(fd, image, len) == (ssize_t)len, "memfd");
    snprintf(path, sizeof path, "/proc/%d/fd/%d", getpid(), fd);
    int r = image_verify_root(path, &(struct verify_options){0}, &report, &err);
    check(r == 0 && report && (report->failures > 0 || report->count > 0), "no report");
    json_t *document = report_to_json(report);
    check(document, "no document");
    json_decref(document);
    report_free(report);
    close(fd);
    return 0;
}

static uint32_t next(uint64_t *seed) {
    *seed = *seed * 6364136223846793005U + 1442695040888963407U;
    return (uint32_t)(*seed >> 33);
}

/* A few changes, most of them where the structures are. */
size_t fuzz_seed(unsigned number, uint8_t *ret, size_t size) {
    static const uint8_t telling[] = {0, 1, 2, 4, 0x7f, 0x80, 0xff};
    uint64_t seed = number;
    size_t at = 0;
    ret[at++] = (uint8_t)(number % KINDS);
    for (unsigned i = 1 + next(&seed) % 4; i > 0 && at + 12 < size; i--) {
        uint32_t where = next(&seed) % 4 ? 1024 + next(&seed) % 40000 : next(&seed) % 131072;
        unsigned n = next(&seed) % 4;
        ret[at++] = (uint8_t)where;
        ret[at++] = (uint8_t)(where >> 8);
        ret[at++] = (uint8_t)(where >> 16);
        ret[at++] = (uint8_t)n;
        for (unsigned k = 0; k <= n; k++)
            ret[at++] = next(&seed) % 2 ? telling[next(&seed) % sizeof telling] : (uint8_t)next(&seed);
    }
    return at;
}

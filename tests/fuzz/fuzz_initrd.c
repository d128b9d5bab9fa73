/* Any initramfs: unpacked and read within bounds, or refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz.h"
#include "image/initrd.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct initrd initrd;
    const char *found;
    size_t len;
    unsigned mode;
    int r = initrd_parse(data, size, &initrd);
    if (r < 0)
        return 0;
    bool whole = initrd_is_whole(&initrd);
    bool has = initrd_find(&initrd, "init", &found, &len, &mode);
    if (has && (found < initrd.data || len > initrd.len || found + len > initrd.data + initrd.len)) {
        fprintf(stderr, "fuzz_initrd: a file that is not inside of its archive (%d)\n", whole);
        abort();
    }
    initrd_close(&initrd);
    return 0;
}

static size_t add_entry(uint8_t *ret, size_t size, const char *name, const char *text) {
    size_t name_len = strlen(name) + 1, len = strlen(text);
    size_t head = (110 + name_len + 3) & ~(size_t)3, all = (head + len + 3) & ~(size_t)3;
    if (all > size)
        return 0;
    memset(ret, 0, all);
    char line[128];
    snprintf(line, sizeof line, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 1, 0100755, 0, 0, 1, 0,
             (unsigned)len, 0, 0, 0, 0, (unsigned)name_len, 0);
    memcpy(ret, line, 110);
    memcpy(ret + 110, name, name_len);
    memcpy(ret + head, text, len);
    return all;
}

size_t fuzz_seed(unsigned number, uint8_t *ret, size_t size) {
    size_t len = add_entry(ret, size, "etc/modules-order", "virtio_blk.ko\n");
    len += add_entry(ret + len, size - len, number % 2 ? "init" : "./init",
                     "\x7f"
                     "ELF");
    return len + add_entry(ret + len, size - len, "TRAILER!!!", "");
}

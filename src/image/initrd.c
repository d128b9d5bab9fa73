/* Source: Documentation/driver-api/early-userspace/buffer-format.rst (newc), RFC 8878 (zstd). */
#include "image/initrd.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "base/fd.h"
#include "base/str.h"

#define PACKED_MAX ((size_t)128 << 20)
#define UNPACKED_MAX ((size_t)128 << 20)
#define WINDOW_LOG_MAX 27 /* zstd -19 uses 8 MiB; a frame that asks for more than 128 MiB is hostile */
#define HEADER 110U

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

/* newc, or newc with sums, which the kernel does not look at either. */
static bool is_newc(const char *head) {
    return memcmp(head, "07070", 5) == 0 && (head[5] == '1' || head[5] == '2');
}

static int unpack(const char *packed, size_t packed_len, struct initrd *ret) {
    if (packed_len > UNPACKED_MAX)
        return -EFBIG;
    ZSTD_DCtx *context = ZSTD_createDCtx();
    size_t cap = smaller(packed_len * 4 + 65536, UNPACKED_MAX), left = 1;
    char *data = malloc(cap);
    ZSTD_inBuffer in = {packed, packed_len, 0};
    ZSTD_outBuffer out = {data, cap, 0};
    int r = context && data ? 0 : -ENOMEM;
    if (r == 0)
        ZSTD_DCtx_setParameter(context, ZSTD_d_windowLogMax, WINDOW_LOG_MAX);
    while (r == 0 && (in.pos < in.size || (left && out.pos == out.size))) {
        if (out.pos == out.size) {
            cap = smaller(2 * out.size, UNPACKED_MAX);
            char *grown = cap > out.size ? realloc(data, cap) : NULL;
            if (!grown) {
                r = cap > out.size ? -ENOMEM : -EFBIG;
                break;
            }
            data = grown;
            out = (ZSTD_outBuffer){data, cap, out.pos};
        }
        size_t before_in = in.pos, before_out = out.pos;
        left = ZSTD_decompressStream(context, &out, &in);
        if (ZSTD_isError(left) || (in.pos == before_in && out.pos == before_out && out.pos < out.size))
            r = -EBADMSG;
    }
    ZSTD_freeDCtx(context);
    if (r == 0 && left != 0)
        r = -EBADMSG; /* cut */
    if (r < 0)
        free(data);
    else
        *ret = (struct initrd){data, out.pos};
    return r;
}

int initrd_parse(const void *data, size_t len, struct initrd *ret) {
    if (len >= 4 && memcmp(data, "\x28\xb5\x2f\xfd", 4) == 0)
        return unpack(data, len, ret);
    if (len < 6 || !is_newc(data))
        return len < 6 ? -EBADMSG : -EOPNOTSUPP;
    char *copy = malloc(len);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, data, len);
    *ret = (struct initrd){copy, len};
    return 0;
}

int initrd_open(const char *path, struct initrd *ret) {
    _cleanup_free_ char *data = NULL;
    size_t len;
    int r = file_read(path, PACKED_MAX, &data, &len);
    return r < 0 ? r : initrd_parse(data, len, ret);
}

void initrd_close(struct initrd *initrd) {
    free(initrd->data);
    *initrd = (struct initrd){0};
}

static bool hex8(const char *text, size_t *ret) {
    size_t value = 0;
    for (int i = 0; i < 8; i++) {
        char c = text[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            return false;
        value = value << 4 | (size_t)digit;
    }
    *ret = value;
    return true;
}

struct entry {
    const char *name, *data; /* name is NUL-terminated */
    size_t len, mode;
};

/* Return: 1 an entry, 0 the trailer, -EBADMSG. */
static int next_entry(const struct initrd *initrd, size_t *at, struct entry *ret) {
    const char *h = initrd->data + *at;
    size_t left = initrd->len - *at, name_len;
    if (left < HEADER || !is_newc(h) || !hex8(h + 14, &ret->mode) || !hex8(h + 54, &ret->len) ||
        !hex8(h + 94, &name_len))
        return -EBADMSG;
    size_t data_at = (*at + HEADER + name_len + 3) & ~(size_t)3;
    if (name_len == 0 || name_len > 4096 || data_at > initrd->len || ret->len > initrd->len - data_at ||
        h[HEADER + name_len - 1] != '\0')
        return -EBADMSG;
    ret->name = h + HEADER;
    ret->data = initrd->data + data_at;
    *at = (data_at + ret->len + 3) & ~(size_t)3;
    if (*at > initrd->len)
        *at = initrd->len;
    return strcmp(ret->name, "TRAILER!!!") != 0;
}

bool initrd_find(const struct initrd *initrd, const char *name, const char **ret_data, size_t *ret_len,
                 unsigned *ret_mode) {
    struct entry e;
    for (size_t at = 0; next_entry(initrd, &at, &e) == 1;) {
        const char *have = e.name;
        if (str_starts(have, "./"))
            have += 2;
        else if (*have == '/')
            have++;
        if (strcmp(have, name) != 0)
            continue;
        *ret_data = e.data;
        *ret_len = e.len;
        *ret_mode = (unsigned)e.mode;
        return true;
    }
    return false;
}

bool initrd_is_whole(const struct initrd *initrd) {
    struct entry e;
    int r;
    for (size_t at = 0; (r = next_entry(initrd, &at, &e)) == 1;)
        ;
    return r == 0;
}

#include "base/str.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void strbuf_add(struct strbuf *b, const char *data, size_t len) {
    size_t room = b->max > b->len ? b->max - b->len : 0;
    if (len > room) {
        len = room;
        b->truncated = true;
    }
    if (b->len + len + 1 > b->cap) {
        size_t cap = b->cap ? b->cap : 128;
        while (cap < b->len + len + 1)
            cap *= 2;
        char *bigger = malloc(cap);
        if (!bigger) {
            b->truncated = true;
            return;
        }
        if (b->len > 0)
            memcpy(bigger, b->data, b->len);
        mem_free(b->data, b->cap); /* it may be a secret, also what it had been moved from */
        b->data = bigger;
        b->cap = cap;
    }
    memcpy(b->data + b->len, data, len);
    b->len += len;
    b->data[b->len] = '\0';
}

void strbuf_addf(struct strbuf *b, const char *fmt, ...) {
    char *text = NULL;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&text, fmt, ap);
    va_end(ap);
    if (n < 0) {
        b->truncated = true;
        return;
    }
    strbuf_add(b, text, (size_t)n);
    free(text);
}

void strbuf_free(struct strbuf *b) {
    mem_free(b->data, b->cap);
    *b = (struct strbuf){.max = b->max};
}

bool str_copy(char *dst, size_t size, const char *src) {
    size_t len = strnlen(src, size);
    bool fits = len < size;
    if (!fits) {
        len = size - 1;
        /* Not within a character: what is stored must stay UTF-8. */
        while (len > 0 && ((unsigned char)src[len] & 0xc0) == 0x80)
            len--;
    }
    memmove(dst, src, len);
    dst[len] = '\0';
    return fits;
}

bool str_starts(const char *s, const char *prefix) {
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

/* Length of the valid UTF-8 sequence at p, 0 if there is none. */
static size_t utf8_sequence(const unsigned char *p, size_t len) {
    if (p[0] < 0x80)
        return 1;
    size_t need = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    if (p[0] < 0xc2 || p[0] > 0xf4 || len < need)
        return 0;
    for (size_t i = 1; i < need; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf0 && p[1] < 0x90) ||
        (p[0] == 0xf4 && p[1] > 0x8f))
        return 0;
    return need;
}

const char *str_escape(const char *src, size_t len, char *dst, size_t dst_size) {
    size_t out = 0;
    for (size_t i = 0; i < len;) {
        const unsigned char *p = (const unsigned char *)src + i;
        size_t n = utf8_sequence(p, len - i);
        /* C1 control characters (U+0080 to U+009F) move a terminal as the C0 ones do. */
        bool control = n == 1 ? (*p < 0x20 || *p == 0x7f) : n == 2 && p[0] == 0xc2 && p[1] < 0xa0;
        if (n == 0 || control) {
            if (out + 5 > dst_size)
                break;
            out += (size_t)snprintf(dst + out, dst_size - out, "\\x%02x", *p);
            i++;
            continue;
        }
        if (out + n + 1 > dst_size)
            break;
        memcpy(dst + out, p, n);
        out += n;
        i += n;
    }
    dst[out] = '\0';
    return dst;
}

void str_hex(const void *data, size_t len, char *dst) {
    static const char digits[] = "0123456789abcdef";
    const unsigned char *p = data;
    for (size_t i = 0; i < len; i++) {
        dst[2 * i] = digits[p[i] >> 4];
        dst[2 * i + 1] = digits[p[i] & 15];
    }
    dst[2 * len] = '\0';
}

int str_to_u64(const char *s, uint64_t min, uint64_t max, uint64_t *ret) {
    if (*s == '\0')
        return -EINVAL;
    uint64_t value = 0;
    for (const char *p = s; *p; p++) {
        if (*p < '0' || *p > '9')
            return -EINVAL;
        if (__builtin_mul_overflow(value, 10U, &value) || __builtin_add_overflow(value, (uint64_t)(*p - '0'), &value))
            return -ERANGE;
    }
    if (value < min || value > max)
        return -ERANGE;
    *ret = value;
    return 0;
}

bool str_equal_secret(const char *a, size_t a_len, const char *b, size_t b_len) {
    if (a_len != b_len)
        return false;
    volatile unsigned char diff = 0;
    for (size_t i = 0; i < a_len; i++)
        diff |= (unsigned char)a[i] ^ (unsigned char)b[i];
    return diff == 0;
}

bool str_is_utf8(const void *data, size_t len) {
    for (size_t i = 0; i < len;) {
        size_t n = utf8_sequence((const unsigned char *)data + i, len - i);
        if (n == 0)
            return false;
        i += n;
    }
    return true;
}

void mem_free(void *data, size_t len) {
    if (data)
        explicit_bzero(data, len);
    free(data);
}

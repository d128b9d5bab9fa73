/* Small text helpers: a growing buffer with a hard maximum, escaping of what others wrote, hex. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A text that grows up to max bytes. What does not fit is dropped and `truncated` is set: a client can never make it
 * grow without a limit. Always NUL-terminated once something was added. Zero-initialise with .max set. */
struct strbuf {
    char *data;
    size_t len, cap, max;
    bool truncated;
};

void strbuf_add(struct strbuf *b, const char *data, size_t len);
void strbuf_addf(struct strbuf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void strbuf_free(struct strbuf *b);
#define _cleanup_strbuf_ __attribute__((cleanup(strbuf_free)))

/* Copies src into dst (size bytes with the NUL). Return: false when it did not fit (dst then holds a copy that is cut
 * between two characters of UTF-8). */
bool str_copy(char *dst, size_t size, const char *src);

bool str_starts(const char *s, const char *prefix);

/* Makes text from elsewhere safe for a log line or a terminal: control bytes, DEL and bytes that are not UTF-8
 * become \xNN, backslash stays. dst is always terminated. Return: dst. */
const char *str_escape(const char *src, size_t len, char *dst, size_t dst_size);

/* Lower-case hex; dst holds 2 * len + 1 bytes. */
void str_hex(const void *data, size_t len, char *dst);

/* A decimal number without sign, space or leading plus, within [min, max]. Return: 0, -EINVAL or -ERANGE. */
int str_to_u64(const char *s, uint64_t min, uint64_t max, uint64_t *ret);

/* Same time whatever the contents; the lengths are not secret. */
bool str_equal_secret(const char *a, size_t a_len, const char *b, size_t b_len);

/* Whether len bytes are valid UTF-8 (RFC 3629: no surrogates, no overlong forms, up to U+10FFFF). */
bool str_is_utf8(const void *data, size_t len);

/* Wipes len bytes and frees them: for what may hold a secret. Takes NULL. */
void mem_free(void *data, size_t len);

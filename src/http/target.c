#include "http/target.h"

#include <errno.h>
#include <string.h>

#include "base/str.h"

static int hex_digit(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/* Decodes len bytes into dst and terminates it. Return: the decoded length, -EINVAL, or -ENAMETOOLONG. */
static int decode(const char *src, size_t len, bool plus_is_space, char *dst, size_t size) {
    size_t out = 0;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)src[i];
        if (c == '%') {
            if (len - i < 3 || hex_digit(src[i + 1]) < 0 || hex_digit(src[i + 2]) < 0)
                return -EINVAL;
            c = (unsigned char)(hex_digit(src[i + 1]) << 4 | hex_digit(src[i + 2]));
            i += 2;
        } else if (c == '+' && plus_is_space) {
            c = ' ';
        }
        if (c < 0x20 || c == 0x7f)
            return -EINVAL;
        if (out + 1 >= size)
            return -ENAMETOOLONG;
        dst[out++] = (char)c;
    }
    if (!str_is_utf8(dst, out))
        return -EINVAL;
    dst[out] = '\0';
    return (int)out;
}

const char *http_path_segment(const struct http_path *path, unsigned i) {
    return i < path->segments ? path->text + path->at[i] : NULL;
}

static int add_segment(struct http_path *path, const char *raw, size_t len, size_t *used) {
    if (path->segments == HTTP_PATH_SEGMENTS)
        return -E2BIG;
    char *text = path->text + *used;
    int n = decode(raw, len, false, text, sizeof path->text - *used);
    if (n < 0)
        return n;
    if (n == 0 || strcmp(text, ".") == 0 || strcmp(text, "..") == 0 || strpbrk(text, "/\\"))
        return -EINVAL;
    path->at[path->segments++] = (uint16_t)*used;
    *used += (size_t)n + 1;
    return 0;
}

int http_path_parse(const char *target, struct http_path *ret_path) {
    size_t len = strcspn(target, "?");
    if (len == 0 || target[0] != '/')
        return -EINVAL;
    if (len >= HTTP_PATH_BYTES)
        return -ENAMETOOLONG;
    struct http_path path = {0};
    size_t used = 0;
    for (size_t at = 1; at < len;) {
        size_t segment = 0;
        while (at + segment < len && target[at + segment] != '/')
            segment++;
        int r = add_segment(&path, target + at, segment, &used);
        if (r < 0)
            return r;
        at += segment + 1;
    }
    path.trailing_slash = target[len - 1] == '/';
    *ret_path = path;
    return 0;
}

/* The next "name=value" between '&'s. */
struct pair {
    const char *name, *value;
    size_t name_len, value_len;
};

static bool next_pair(const char **query, struct pair *ret) {
    const char *q = *query;
    while (*q == '&')
        q++;
    if (*q == '\0')
        return false;
    size_t len = strcspn(q, "&"), name = strcspn(q, "&=");
    *ret = (struct pair){.name = q, .name_len = name, .value = q + name, .value_len = len - name};
    if (ret->value_len > 0) { /* the '=' */
        ret->value++;
        ret->value_len--;
    }
    *query = q + len;
    return true;
}

static const char *query_of(const char *target) {
    const char *mark = strchr(target, '?');
    return mark ? mark + 1 : "";
}

bool http_query_valid(const char *target) {
    char decoded[HTTP_TARGET_BYTES];
    const char *query = query_of(target);
    struct pair pair;
    while (next_pair(&query, &pair))
        if (decode(pair.name, pair.name_len, true, decoded, sizeof decoded) < 0 ||
            decode(pair.value, pair.value_len, true, decoded, sizeof decoded) < 0)
            return false;
    return true;
}

int http_query_get(const char *target, const char *name, char *dst, size_t size) {
    char decoded[HTTP_TARGET_BYTES];
    const char *query = query_of(target);
    struct pair pair, found = {0};
    while (next_pair(&query, &pair)) {
        int n = decode(pair.name, pair.name_len, true, decoded, sizeof decoded);
        if (n < 0)
            return n;
        if (strcmp(decoded, name) != 0)
            continue;
        if (found.name)
            return -EINVAL;
        found = pair;
    }
    if (!found.name)
        return 0;
    int n = decode(found.value, found.value_len, true, decoded, sizeof decoded);
    if (n < 0)
        return n;
    if ((size_t)n >= size)
        return -ENAMETOOLONG;
    memcpy(dst, decoded, (size_t)n + 1);
    return 1;
}

int http_query_check(const char *target, const char *const *known, char *ret_unknown, size_t size) {
    char decoded[HTTP_TARGET_BYTES];
    const char *query = query_of(target);
    struct pair pair;
    while (next_pair(&query, &pair)) {
        bool is_known = false;
        if (decode(pair.name, pair.name_len, true, decoded, sizeof decoded) >= 0)
            for (const char *const *k = known; *k && !is_known; k++)
                is_known = strcmp(decoded, *k) == 0;
        if (!is_known) {
            str_escape(pair.name, pair.name_len, ret_unknown, size);
            return -EINVAL;
        }
    }
    return 0;
}

int http_cookie_get(const char *header, const char *name, char *dst, size_t size) {
    size_t name_len = strlen(name);
    for (const char *p = header; p && *p;) {
        p += strspn(p, " \t;");
        size_t len = strcspn(p, ";");
        if (len > name_len && strncmp(p, name, name_len) == 0 && p[name_len] == '=') {
            const char *value = p + name_len + 1;
            size_t value_len = len - name_len - 1;
            while (value_len > 0 && (value[value_len - 1] == ' ' || value[value_len - 1] == '\t'))
                value_len--;
            if (value_len >= size)
                return -ENAMETOOLONG;
            memcpy(dst, value, value_len);
            dst[value_len] = '\0';
            return 1;
        }
        p += len;
    }
    return 0;
}

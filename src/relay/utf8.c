#include "relay/utf8.h"

#include <string.h>

static bool start_character(struct utf8 *u, uint8_t b) {
    u->low = 0x80;
    u->high = 0xbf;
    if (b < 0x80)
        return true;
    if (b < 0xc2 || b > 0xf4)
        return false;
    u->missing = b >= 0xf0 ? 3 : b >= 0xe0 ? 2 : 1;
    /* The second byte is narrower where the first would allow overlong forms, surrogates or more than U+10FFFF. */
    if (b == 0xe0)
        u->low = 0xa0;
    else if (b == 0xed)
        u->high = 0x9f;
    else if (b == 0xf0)
        u->low = 0x90;
    else if (b == 0xf4)
        u->high = 0x8f;
    return true;
}

bool utf8_feed(struct utf8 *u, const uint8_t *data, size_t len) {
    for (size_t i = 0; i < len; i++) {
        if (u->missing == 0) {
            uint64_t eight;
            while (len - i > sizeof eight) {
                memcpy(&eight, data + i, sizeof eight);
                if (eight & 0x8080808080808080U)
                    break;
                i += sizeof eight;
            }
            if (!start_character(u, data[i]))
                return false;
            continue;
        }
        if (data[i] < u->low || data[i] > u->high)
            return false;
        u->missing--;
        u->low = 0x80;
        u->high = 0xbf;
    }
    return true;
}

bool utf8_complete(const struct utf8 *u) {
    return u->missing == 0;
}

/* Length of the character at p (NUL-terminated text), 0 where there is none. */
static size_t character(const char *p) {
    struct utf8 u = {0};
    for (size_t n = 0; n < 4; n++) {
        /* The NUL is no continuation byte: this never reads past it. */
        if (!utf8_feed(&u, (const uint8_t *)p + n, 1))
            return 0;
        if (utf8_complete(&u))
            return n + 1;
    }
    return 0;
}

size_t utf8_sentence(const char *src, char *dst, size_t size) {
    size_t len = 0;
    while (*src) {
        size_t n = character(src);
        bool control = (unsigned char)*src < 0x20 || *src == 0x7f || (n == 2 && src[0] == '\xc2' && src[1] < '\xa0');
        bool bad = n == 0 || control;
        size_t put = bad ? 1 : n;
        if (len + put >= size)
            break;
        if (bad)
            dst[len] = '?';
        else
            memcpy(dst + len, src, n);
        len += put;
        src += n ? n : 1;
    }
    dst[len] = '\0';
    return len;
}

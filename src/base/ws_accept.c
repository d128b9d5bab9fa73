#include "base/ws_accept.h"

#include <errno.h>
#include <nettle/base64.h>
#include <nettle/sha1.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/random.h>

#define KEY_BYTES 16

static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

static bool key_is_valid(const char *key) {
    /* Also bounds the decoder's output: 24 characters never give more than 18 bytes. */
    if (strnlen(key, WS_KEY_LEN + 1) != WS_KEY_LEN)
        return false;
    struct base64_decode_ctx decode;
    uint8_t raw[BASE64_DECODE_LENGTH(WS_KEY_LEN)];
    size_t len = sizeof raw;
    base64_decode_init(&decode);
    if (!base64_decode_update(&decode, &len, raw, WS_KEY_LEN, key) || !base64_decode_final(&decode) || len != KEY_BYTES)
        return false;
    /* The decoder skips white space and takes any bits behind the last byte: compare with the canonical form. */
    char again[BASE64_ENCODE_RAW_LENGTH(KEY_BYTES)];
    base64_encode_raw(again, KEY_BYTES, raw);
    return memcmp(again, key, WS_KEY_LEN) == 0;
}

int ws_accept(const char *key, char ret_accept[WS_ACCEPT_SIZE]) {
    if (!key_is_valid(key))
        return -EINVAL;
    struct sha1_ctx sha;
    uint8_t digest[SHA1_DIGEST_SIZE];
    sha1_init(&sha);
    sha1_update(&sha, WS_KEY_LEN, (const uint8_t *)key);
    sha1_update(&sha, sizeof guid - 1, (const uint8_t *)guid);
    sha1_digest(&sha, sizeof digest, digest);
    base64_encode_raw(ret_accept, sizeof digest, digest);
    ret_accept[WS_ACCEPT_SIZE - 1] = '\0';
    return 0;
}

int ws_key_new(char ret_key[WS_KEY_LEN + 1]) {
    uint8_t raw[KEY_BYTES];
    if (getrandom(raw, sizeof raw, 0) != sizeof raw)
        return -errno;
    base64_encode_raw(ret_key, sizeof raw, raw);
    ret_key[WS_KEY_LEN] = '\0';
    return 0;
}

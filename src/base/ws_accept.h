/* The answer to a WebSocket handshake: the server proves that it read the client's key.
 * Source: RFC 6455, section 4.2.2 (accept) and 4.1 (key: base64 of 16 bytes). */
#pragma once

#define WS_KEY_LEN 24     /* base64 of 16 bytes */
#define WS_ACCEPT_SIZE 29 /* base64 of a SHA-1 (28 bytes) and the NUL */

/* Writes the value of Sec-WebSocket-Accept for a client's Sec-WebSocket-Key: base64(SHA-1(key + GUID)).
 * Return: 0, or -EINVAL when the key is not the canonical base64 of 16 bytes (ret_accept is then untouched). */
int ws_accept(const char *key, char ret_accept[WS_ACCEPT_SIZE]);

/* Writes a Sec-WebSocket-Key made of 16 random bytes, for our own clients. Return: 0 or -errno. */
int ws_key_new(char ret_key[WS_KEY_LEN + 1]);

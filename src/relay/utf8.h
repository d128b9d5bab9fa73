/* Checks UTF-8 that arrives in pieces.
 *
 * A browser that reads a text message which is not UTF-8 ends the connection with 1006, so text is looked at before
 * it is sent to one. Source: RFC 6455 section 8.1; RFC 3629 section 4 (the table of well-formed sequences). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Between two pieces: how many bytes of the open character are missing, and within what the next one must lie.
 * All zero is the start of a text. */
struct utf8 {
    uint8_t missing, low, high;
};

/* Takes the next bytes. Return: false as soon as they cannot be part of a valid text. */
bool utf8_feed(struct utf8 *u, const uint8_t *data, size_t len);

/* Whether the text may end here. */
bool utf8_complete(const struct utf8 *u);

/* Makes of src a sentence of at most size - 1 bytes: cut at a character's boundary; bytes that are not UTF-8 and
 * control characters become '?'. Return: its length. */
size_t utf8_sentence(const char *src, char *dst, size_t size);

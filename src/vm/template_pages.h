/* Sparse files of a template: what of one is not zero, with where it is. So a digest is of what is in it, not of how much of that is
 * written down, and a disk of many GiB costs no more than what is on it. */
#pragma once

#include <nettle/sha2.h>
#include <stdatomic.h>
#include <stdint.h>

#include "base/err.h"

#define PAGES_DIGEST_TEXT (2 * SHA256_DIGEST_SIZE + 1)

struct pages {
    char digest[PAGES_DIGEST_TEXT];
    uint64_t bytes; /* in blocks of 64 KiB that are not zero */
};

/* Reads the first `size` bytes of a file, and copies what is not zero of it into another one that is empty; to -1: nowhere.
 * is_unwanted: it is broken off then; NULL: never. Return: 0 or -errno; -EINTR: it was broken off. */
int pages_copy(int from, int to, uint64_t size, const atomic_bool *is_unwanted, struct pages *ret_pages);

/* The same, read alone, of a file that is not a link, which is on the disk then. ret_size: its length.
 * Errors: "template.broken"; "template.unwanted" -EINTR. */
int pages_digest(const char *path, const atomic_bool *is_unwanted, struct pages *ret_pages, uint64_t *ret_size,
                 struct err *err);

/* "template.unwanted" -EINTR */
int pages_broken_off(struct err *err);

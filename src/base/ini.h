/* INI files as systemd's users know them, by inih: [section], key = value, # and ; comments. */
#pragma once

#include <stddef.h>

#include "base/err.h"

/* One line. value is never NULL. Return: 0, or -errno with err set; reading then ends. */
typedef int ini_pair_fn(void *userdata, const char *section, const char *key, const char *value, struct err *err);

/* Reads a text of that name (used in messages alone), which must end in NUL at text[len]. What inih would take otherwise
 * than a person does is refused: a line that it would cut, and one that it would hang on the line above.
 * Errors: "config.syntax", and fn's with "name:line: " in front. */
int ini_read_text(const char *name, const char *text, size_t len, ini_pair_fn *fn, void *userdata, struct err *err);

/* The same for a file of at most max bytes. Errors: "config.unreadable" too; -ENOENT where there is none. */
int ini_read_file(const char *path, size_t max, ini_pair_fn *fn, void *userdata, struct err *err);

/* An error that a person will read: what failed, where, what would be right.
 *
 * Functions that can fail for a reason worth telling take `struct err *err` as their last argument and
 * return 0 or -errno. err may be NULL: then only the number is returned. The struct is plain data on the
 * caller's stack; nothing in it is allocated.
 *
 *   code    a stable slug for programs: "bridge.foreign", "config.unknown-key"
 *   detail  the chain of contexts, outermost first: "create vm-…: attach fc-vm-…: bridge br0 is full"
 *   hint    what the person can do about it; may be empty
 */
#pragma once

#include <errno.h>
#include <stdbool.h>

struct err {
    int errnum; /* positive errno, 0 when nothing was set */
    char code[48];
    char detail[768];
    char hint[320];
};

/* Sets the error and returns -errnum, so that a caller writes `return err_set(err, ENOENT, …);`.
 * An errnum of 0 is taken for EIO: an error is never 0. */
int err_set(struct err *err, int errnum, const char *code, const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* As err_set(), with ": strerror(errnum)" behind the text. */
int err_sys(struct err *err, int errnum, const char *code, const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* What the person can do. Returns -errnum of err (of the last one that was set in
 * this thread where err is NULL), so that it can end a function too. */
int err_hint(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Puts "context: " in front of the detail. */
void err_prefix(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

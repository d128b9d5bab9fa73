#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* What err_hint() returns where the caller wants no text. */
static _Thread_local int last_errnum = EIO;

static int set_v(struct err *err, int errnum, const char *code, const char *fmt, va_list ap) {
    if (errnum == 0)
        errnum = EIO;
    last_errnum = errnum;
    if (!err)
        return -errnum;
    *err = (struct err){.errnum = errnum};
    snprintf(err->code, sizeof err->code, "%s", code);
    vsnprintf(err->detail, sizeof err->detail, fmt, ap);
    return -errnum;
}

int err_set(struct err *err, int errnum, const char *code, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int r = set_v(err, errnum, code, fmt, ap);
    va_end(ap);
    return r;
}

int err_sys(struct err *err, int errnum, const char *code, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int r = set_v(err, errnum, code, fmt, ap);
    va_end(ap);
    if (err) {
        size_t len = strlen(err->detail);
        snprintf(err->detail + len, sizeof err->detail - len, ": %s", strerror(-r));
    }
    return r;
}

int err_hint(struct err *err, const char *fmt, ...) {
    if (!err)
        return -last_errnum;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->hint, sizeof err->hint, fmt, ap);
    va_end(ap);
    return err->errnum ? -err->errnum : -EIO;
}

void err_prefix(struct err *err, const char *fmt, ...) {
    if (!err)
        return;
    char old[sizeof err->detail];
    memcpy(old, err->detail, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->detail, sizeof err->detail, fmt, ap);
    va_end(ap);
    size_t len = strlen(err->detail);
    snprintf(err->detail + len, sizeof err->detail - len, ": %s", old);
}

#include "base/log.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <syslog.h>
#include <systemd/sd-journal.h>
#include <unistd.h>

#include "base/str.h"
#include "base/time.h"

static struct {
    enum log_level minimum;
    bool journal;
} log_state = {.minimum = LOG_LEVEL_INFO};

/* systemd sets JOURNAL_STREAM=dev:inode of the journal's stream when standard error is it.
 * Source: systemd.exec(5). */
static bool stderr_is_journal(void) {
    const char *stream = getenv("JOURNAL_STREAM");
    struct stat st;
    char own[64];
    if (!stream || fstat(STDERR_FILENO, &st) < 0)
        return false;
    snprintf(own, sizeof own, "%ju:%ju", (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
    return strcmp(stream, own) == 0;
}

void log_open(enum log_level minimum) {
    log_state.minimum = minimum;
    log_state.journal = stderr_is_journal();
}

static int syslog_priority(enum log_level level) {
    switch (level) {
    case LOG_LEVEL_DEBUG:
        return LOG_DEBUG;
    case LOG_LEVEL_INFO:
        return LOG_INFO;
    case LOG_LEVEL_WARNING:
        return LOG_WARNING;
    case LOG_LEVEL_ERROR:
        return LOG_ERR;
    }
    return LOG_ERR;
}

static const char *level_name(enum log_level level) {
    switch (level) {
    case LOG_LEVEL_DEBUG:
        return "debug";
    case LOG_LEVEL_INFO:
        return "info";
    case LOG_LEVEL_WARNING:
        return "warning";
    case LOG_LEVEL_ERROR:
        return "error";
    }
    return "error";
}

struct field {
    char text[256];
    struct iovec iov;
};

static void field_set(struct field *f, const char *name, const char *value) {
    int n = snprintf(f->text, sizeof f->text, "%s=%s", name, value);
    f->iov = (struct iovec){f->text, (size_t)n < sizeof f->text ? (size_t)n : sizeof f->text - 1};
}

static void to_journal(enum log_level level, struct log_about about, const char *line) {
    char message[2200], priority[16];
    snprintf(message, sizeof message, "MESSAGE=%s", line);
    snprintf(priority, sizeof priority, "PRIORITY=%d", syslog_priority(level));
    struct field event, vm, session;
    struct iovec iov[5] = {{message, strlen(message)}, {priority, strlen(priority)}};
    int n = 2;
    if (about.event) {
        field_set(&event, "MC_EVENT", about.event);
        iov[n++] = event.iov;
    }
    if (about.vm_id) {
        field_set(&vm, "MC_VM_ID", about.vm_id);
        iov[n++] = vm.iov;
    }
    if (about.session_id) {
        field_set(&session, "MC_SESSION_ID", about.session_id);
        iov[n++] = session.iov;
    }
    sd_journal_sendv(iov, n);
}

static void to_stderr(enum log_level level, struct log_about about, const char *line) {
    char when[TIME_RFC3339_SIZE], text[2600];
    time_format_rfc3339(time_realtime_ms(), when);
    int n = snprintf(text, sizeof text, "%s %s%s%s%s%s%s%s: %s\n", when, level_name(level), about.event ? " " : "",
                     about.event ? about.event : "", about.vm_id ? " " : "", about.vm_id ? about.vm_id : "",
                     about.session_id ? " session=" : "", about.session_id ? about.session_id : "", line);
    size_t len = (size_t)n < sizeof text ? (size_t)n : sizeof text - 1;
    /* One write: lines of two threads do not mix. A log that cannot be written has nowhere to say so. */
    if (write(STDERR_FILENO, text, len) < 0)
        return;
}

void log_event(enum log_level level, struct log_about about, const char *fmt, ...) {
    if (level < log_state.minimum)
        return;
    char raw[2048], line[2100];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(raw, sizeof raw, fmt, ap);
    va_end(ap);
    str_escape(raw, (size_t)n < sizeof raw ? (size_t)n : sizeof raw - 1, line, sizeof line);
    if (log_state.journal)
        to_journal(level, about, line);
    else
        to_stderr(level, about, line);
}

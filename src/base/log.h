/* The log: one line an event, UTF-8 text without control bytes, to journald with fields where standard error is
 * connected to it, else to standard error. Libraries of ours do not log; the daemon's rooms do. */
#pragma once

#include <stdbool.h>

enum log_level {
    LOG_LEVEL_DEBUG,
    LOG_LEVEL_INFO,
    LOG_LEVEL_WARNING,
    LOG_LEVEL_ERROR,
};

/* What the event is about; any member may be NULL. They become MC_EVENT, MC_VM_ID and MC_SESSION_ID. */
struct log_about {
    const char *event;
    const char *vm_id;
    const char *session_id;
};

/* Finds out where the log goes. Call once, before the first line. */
void log_open(enum log_level minimum);

void log_event(enum log_level level, struct log_about about, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define log_info(...) log_event(LOG_LEVEL_INFO, (struct log_about){0}, __VA_ARGS__)
#define log_warning(...) log_event(LOG_LEVEL_WARNING, (struct log_about){0}, __VA_ARGS__)
#define log_error(...) log_event(LOG_LEVEL_ERROR, (struct log_about){0}, __VA_ARGS__)

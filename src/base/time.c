#include "base/time.h"

#include <stdio.h>
#include <time.h>

static int64_t now_ms(clockid_t clock) {
    struct timespec ts;
    clock_gettime(clock, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

int64_t time_realtime_ms(void) {
    return now_ms(CLOCK_REALTIME);
}

int64_t time_monotonic_ms(void) {
    return now_ms(CLOCK_MONOTONIC);
}

void time_format_rfc3339(int64_t realtime_ms, char ret_text[TIME_RFC3339_SIZE]) {
    time_t seconds = (time_t)(realtime_ms / 1000);
    int ms = (int)(realtime_ms % 1000);
    struct tm tm;
    if (!gmtime_r(&seconds, &tm)) {
        snprintf(ret_text, TIME_RFC3339_SIZE, "1970-01-01T00:00:00.000Z");
        return;
    }
    char date[24];
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(ret_text, TIME_RFC3339_SIZE, "%s.%03dZ", date, ms);
}

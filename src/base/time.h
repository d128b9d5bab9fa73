/* Time. Inside the program every time is an int64_t in milliseconds, and its name ends in _ms: real time counts
 * from the epoch in UTC and is what records hold; monotonic time is for deadlines. */
#pragma once

#include <stdint.h>

#define TIME_RFC3339_SIZE 32

int64_t time_realtime_ms(void);
int64_t time_monotonic_ms(void);

/* Writes "2026-01-02T03:04:05.678Z". Source: RFC 3339. */
void time_format_rfc3339(int64_t realtime_ms, char ret_text[TIME_RFC3339_SIZE]);

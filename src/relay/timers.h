/* Deadlines of many connections, the earliest first: a binary heap of timers that live in their owners' structs.
 *
 * A deadline that moves away need not be told: its timer fires at the old time and is set anew then. So an active
 * connection costs nothing here. */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct timer {
    int64_t at_ms;   /* monotonic */
    size_t position; /* in the heap, from 1; 0: not set */
};

/* All zero is an empty one. */
struct timers {
    struct timer **heap;
    size_t len, cap;
};

/* Sets or moves a timer. Return: 0 or -ENOMEM; it cannot fail for a timer that is set already. */
int timers_set(struct timers *t, struct timer *timer, int64_t at_ms);
void timers_unset(struct timers *t, struct timer *timer);

/* The earliest, NULL when none is set. It stays set. */
struct timer *timers_first(const struct timers *t);

void timers_free(struct timers *t);

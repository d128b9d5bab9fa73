#include "relay/timers.h"

#include <errno.h>
#include <stdlib.h>

/* heap[0] is the root; the children of i are 2i + 1 and 2i + 2. */
static void place(struct timers *t, size_t i, struct timer *timer) {
    t->heap[i] = timer;
    timer->position = i + 1;
}

static void move_up(struct timers *t, size_t i) {
    struct timer *timer = t->heap[i];
    while (i > 0 && t->heap[(i - 1) / 2]->at_ms > timer->at_ms) {
        place(t, i, t->heap[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    place(t, i, timer);
}

static void move_down(struct timers *t, size_t i) {
    struct timer *timer = t->heap[i];
    for (;;) {
        size_t child = 2 * i + 1;
        if (child + 1 < t->len && t->heap[child + 1]->at_ms < t->heap[child]->at_ms)
            child++;
        if (child >= t->len || t->heap[child]->at_ms >= timer->at_ms)
            break;
        place(t, i, t->heap[child]);
        i = child;
    }
    place(t, i, timer);
}

int timers_set(struct timers *t, struct timer *timer, int64_t at_ms) {
    if (timer->position == 0) {
        if (t->len == t->cap) {
            size_t cap = t->cap ? 2 * t->cap : 64;
            /* The heap is of pointers. NOLINTNEXTLINE(bugprone-sizeof-expression) */
            struct timer **bigger = reallocarray(t->heap, cap, sizeof *bigger);
            if (!bigger)
                return -ENOMEM;
            t->heap = bigger;
            t->cap = cap;
        }
        place(t, t->len++, timer);
    }
    timer->at_ms = at_ms;
    move_up(t, timer->position - 1);
    move_down(t, timer->position - 1);
    return 0;
}

void timers_unset(struct timers *t, struct timer *timer) {
    if (timer->position == 0)
        return;
    size_t i = timer->position - 1;
    timer->position = 0;
    struct timer *last = t->heap[--t->len];
    if (last == timer)
        return;
    place(t, i, last);
    move_up(t, i);
    move_down(t, last->position - 1);
}

struct timer *timers_first(const struct timers *t) {
    return t->len > 0 ? t->heap[0] : NULL;
}

void timers_free(struct timers *t) {
    free(t->heap);
    *t = (struct timers){0};
}

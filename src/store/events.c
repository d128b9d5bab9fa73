/* What happened to VMs and sessions: one table, in the order in which it was stored. */
#include <stdlib.h>

#include "base/fd.h"
#include "store/sqlite.h"

#define EVENT_COLUMNS "at_ms, actor, event, from_state, to_state, reason, evidence"

int store_event_add(struct store *store, const char *about, const struct store_event *event, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store,
                       "INSERT INTO event (about, at_ms, actor, event, from_state, to_state, reason, evidence)"
                       " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                       err);
    if (r < 0)
        return r;
    query_text(&q, about);
    query_int(&q, event->at_ms);
    query_text(&q, event->actor);
    query_text(&q, event->event);
    query_text(&q, event->from);
    query_text(&q, event->to);
    query_text(&q, event->reason);
    query_text(&q, event->evidence);
    return query_step(&q, err);
}

static void read_event(struct query *q, struct store_event *ret_event) {
    struct store_event e = {.at_ms = query_get_int(q)};
    query_get_text(q, e.actor, sizeof e.actor);
    query_get_text(q, e.event, sizeof e.event);
    query_get_text(q, e.from, sizeof e.from);
    query_get_text(q, e.to, sizeof e.to);
    query_get_text(q, e.reason, sizeof e.reason);
    query_get_text(q, e.evidence, sizeof e.evidence);
    *ret_event = e;
}

int store_events(struct store *store, const char *about, struct store_event **ret_events, size_t *ret_n,
                 struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, "SELECT " EVENT_COLUMNS " FROM event WHERE about = ? ORDER BY n", err);
    if (r < 0)
        return r;
    query_text(&q, about);
    _cleanup_free_ struct store_event *events = NULL;
    size_t n = 0, cap = 0;
    while ((r = query_step(&q, err)) > 0) {
        r = store_grow(&events, n, &cap, sizeof *events, err);
        if (r < 0)
            return r;
        read_event(&q, &events[n++]);
    }
    if (r < 0)
        return r;
    *ret_events = ptr_steal(events);
    *ret_n = n;
    return 0;
}

int store_news_last(struct store *store, int64_t *ret_number, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, "SELECT COALESCE(MAX(n), 0) FROM event", err);
    if (r == 0)
        r = query_step(&q, err);
    if (r < 0)
        return r;
    *ret_number = query_get_int(&q);
    return 0;
}

int store_news(struct store *store, int64_t after, struct store_news *ret, size_t max, size_t *ret_n, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, "SELECT n, about, " EVENT_COLUMNS " FROM event WHERE n > ? ORDER BY n LIMIT ?", err);
    if (r < 0)
        return r;
    query_int(&q, after);
    query_int(&q, (int64_t)max);
    size_t n = 0;
    while (n < max && (r = query_step(&q, err)) > 0) {
        ret[n].number = query_get_int(&q);
        query_get_text(&q, ret[n].about, sizeof ret[n].about);
        read_event(&q, &ret[n++].event);
    }
    if (r < 0)
        return r;
    *ret_n = n;
    return 0;
}

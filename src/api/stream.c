/* GET /api/events/stream: what happens, as it happens, for administrators (server-sent events).
 *
 * What is sent are the store's events with their numbers, each with its VM or session as it is now; a listener that comes
 * back with Last-Event-ID gets what it has missed, from another daemon too. While there are listeners, the store is asked
 * five times a second for what came after the number of the one that is furthest behind: nobody has to tell this file
 * anything, and no listener holds more memory than its stream's buffer. One that does not read gets nothing more until
 * it has read; if it is too far behind then, it is told so and let go. Whether the bridge's picture or the findings have
 * changed is looked at every 2 s, by a worker, and only told: who wants them asks for them.
 *
 *   event    data
 *   hello    {"reset": whether what the listener knows is of no use}: the first one
 *   change   {"about", "event", "vm" or "session"}
 *   network  {}: ask /api/network and /api/status again
 *   end      {"words"}: why it ends here
 *
 * Source: HTML, "Server-sent events". */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/internal.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"
#include "base/time.h"

#define LISTENERS_MAX 16
#define NEWS_AT_ONCE 64 /* a few milliseconds of the loop's time */
#define INTERVAL_MS 200
#define INTERVAL_BUSY_MS 20 /* there is more already */
#define PICTURE_MS 2000
#define ALIVE_MS 15000         /* proxies cut at a minute of silence */
#define WAITING_MAX (64 << 10) /* bytes that a listener may leave unread before it gets no more */
#define RESUME_MAX 2000        /* events: who has missed more asks for everything anew */
#define LIFE_MS (60 * 60000)   /* then it must show its credential again */

struct listener {
    struct listener *next;
    struct api *api;
    struct http_request *req;
    int64_t at; /* the number of the event that it got last */
    int64_t since_ms, spoke_ms;
    struct api_credential by;
    char who[STORE_ACTOR_MAX];
};

struct stream {
    struct api *api;
    struct listener *listeners;
    struct loop_timer *timer;
    bool looking;
    struct api_inventory found; /* by the worker: net and ports alone */
    int found_r;
    int64_t looked_ms; /* when the picture was looked at last */
    uint64_t picture;  /* a hash of it; 0: not looked at */
};

static void drop(struct listener *l) {
    for (struct listener **at = &l->api->stream->listeners; *at; at = &(*at)->next)
        if (*at == l) {
            *at = l->next;
            break;
        }
    free(l);
}

static void on_gone(struct http_request *req, void *userdata) {
    drop(userdata);
}

/* Takes the reference of data. number 0: the event has none. Return: whether the listener is still there. */
static bool send_event(struct listener *l, const char *name, int64_t number, json_t *data) {
    _cleanup_strbuf_ struct strbuf text = {.max = 64 << 10};
    char *line = data ? json_dumps(data, JSON_COMPACT) : NULL;
    json_decref(data);
    if (number > 0)
        strbuf_addf(&text, "id: %lld\n", (long long)number);
    strbuf_addf(&text, "event: %s\ndata: %s\n\n", name, line ? line : "{}");
    free(line);
    l->spoke_ms = time_monotonic_ms();
    if (http_stream_write(l->req, text.data, text.len) == 0)
        return true;
    log_info("an event stream of %s is cut: its buffer is full", l->who);
    drop(l);
    return false;
}

static void end(struct listener *l, const char *words) {
    struct http_request *req = l->req;
    if (!send_event(l, "end", 0, json_pack("{s:s}", "words", words)))
        return;
    log_info("the event stream of %s ends: %s", l->who, words);
    drop(l);
    http_stream_end(req);
}

/* What an event is about, as it is now; nothing of it where the record has expired. */
static json_t *news_json(struct api *api, const struct store_news *news) {
    struct vm vm;
    struct session session;
    json_t *events = api_events_json(&news->event, 1);
    json_t *data = json_pack("{s:s, s:O}", "about", news->about, "event", json_array_get(events, 0));
    json_decref(events);
    if (vm_id_is_valid(news->about) && store_vm_get(api->store, news->about, &vm, NULL) == 0)
        json_object_set_new(data, "vm", api_vm_json(&vm));
    else if (session_id_is_valid(news->about) && store_session_get(api->store, news->about, &session, NULL) == 0)
        json_object_set_new(data, "session", api_session_json(api, &session));
    return data;
}

static bool is_slow(const struct listener *l) {
    return http_stream_waiting(l->req) > WAITING_MAX;
}

static void send_news(struct api *api, const struct store_news *news) {
    json_t *data = news_json(api, news);
    for (struct listener *l = api->stream->listeners, *next; l; l = next) {
        next = l->next;
        if (l->at >= news->number || is_slow(l))
            continue;
        l->at = news->number;
        send_event(l, "change", news->number, json_incref(data));
    }
    json_decref(data);
}

/* The number of the listener that is furthest behind, of those that read; INT64_MAX where there is none. */
static int64_t furthest(const struct stream *stream) {
    int64_t at = INT64_MAX;
    for (const struct listener *l = stream->listeners; l; l = l->next)
        if (!is_slow(l) && l->at < at)
            at = l->at;
    return at;
}

/* Return: whether there may be more at once. */
static bool tell_news(struct api *api) {
    int64_t after = furthest(api->stream);
    size_t n = 0;
    if (after == INT64_MAX)
        return false;
    struct store_news *news = calloc(NEWS_AT_ONCE, sizeof *news);
    if (news && store_news(api->store, after, news, NEWS_AT_ONCE, &n, NULL) == 0)
        for (size_t i = 0; i < n; i++)
            send_news(api, &news[i]);
    free(news);
    return n == NEWS_AT_ONCE;
}

/* FNV-1a. */
static uint64_t hash_json(uint64_t hash, json_t *json) {
    char *text = json_dumps(json, JSON_COMPACT);
    json_decref(json);
    for (const char *c = text; c && *c; c++)
        hash = (hash ^ (uint8_t)*c) * 1099511628211U;
    free(text);
    return hash;
}

/* On a worker's thread. */
static void look(void *userdata) {
    struct stream *s = userdata;
    s->found_r = network_look(s->api->network, &s->found.net, &s->found.ports, &s->found.n_ports, NULL);
}

static void looked(void *userdata) {
    struct stream *s = userdata;
    uint64_t hash = 14695981039346656037U;
    int r = s->found_r;
    if (r == 0)
        r = store_vm_list(s->api->store, NULL, STORE_LIVE, &s->found.vms, &s->found.n_vms, NULL);
    if (r == 0) {
        hash = hash_json(hash, api_ports_json(&s->found));
        hash = hash_json(hash, api_findings_json(s->api, &s->found));
    }
    bool is_new = r == 0 && s->picture && hash != s->picture;
    s->picture = r == 0 ? hash : s->picture;
    s->looking = false;
    api_inventory_done(&s->found);
    for (struct listener *l = s->listeners, *next; l && is_new; l = next) {
        next = l->next;
        if (!is_slow(l))
            send_event(l, "network", 0, json_object());
    }
}

/* Who must go, and who must hear that we are there. */
static void look_after(struct listener *l, int64_t now_ms, int64_t last) {
    static const char alive[] = ": alive\n\n";
    if (is_slow(l) && last - l->at > RESUME_MAX) {
        end(l, "this listener does not read as fast as things happen: it is let go, and may come back");
    } else if (now_ms - l->since_ms > LIFE_MS) {
        end(l, "an hour is over: come back with your credential");
    } else if (now_ms - l->spoke_ms > ALIVE_MS && !is_slow(l)) {
        l->spoke_ms = now_ms;
        if (http_stream_write(l->req, alive, sizeof alive - 1) < 0)
            drop(l);
    }
}

static void on_timer(void *userdata) {
    struct api *api = userdata;
    struct stream *stream = api->stream;
    int64_t now_ms = time_monotonic_ms(), last = 0;
    bool more = tell_news(api);
    if (!stream->looking && now_ms - stream->looked_ms >= PICTURE_MS) {
        stream->looked_ms = now_ms;
        stream->looking = workers_submit(api->lookers, look, looked, stream) == 0;
    }
    store_news_last(api->store, &last, NULL);
    for (struct listener *l = stream->listeners, *next; l; l = next) {
        next = l->next;
        look_after(l, now_ms, last);
    }
    if (stream->listeners)
        loop_timer_again(stream->timer, more ? INTERVAL_BUSY_MS : INTERVAL_MS);
    else
        stream->picture = 0;
}

static int arm(struct api *api) {
    if (!api->stream && !(api->stream = calloc(1, sizeof *api->stream)))
        return -ENOMEM;
    api->stream->api = api;
    if (!api_lookers(api))
        return -EAGAIN;
    if (!api->stream->timer)
        return loop_timer_new(api->loop, INTERVAL_MS, on_timer, api, &api->stream->timer);
    if (!api->stream->listeners)
        loop_timer_again(api->stream->timer, INTERVAL_MS);
    return 0;
}

static unsigned count(const struct api *api) {
    unsigned n = 0;
    for (const struct listener *l = api->stream ? api->stream->listeners : NULL; l; l = l->next)
        n++;
    return n;
}

/* Where to begin: behind Last-Event-ID, or behind what there is now. Return: false when it was answered. */
static bool beginning(struct api *api, struct http_request *req, int64_t *ret_at, bool *ret_reset) {
    const char *header = http_request_header(req, "Last-Event-ID");
    struct err err = {0};
    uint64_t known = 0;
    int64_t last;
    if (header && str_to_u64(header, 0, INT64_MAX, &known) < 0) {
        http_problem(req, 400, "stream.bad-id", NULL, "Last-Event-ID is not the number of an event of this stream",
                     "leave it out: the stream begins with what happens from now on");
        return false;
    }
    if (store_news_last(api->store, &last, &err) < 0) {
        api_fail(req, &err);
        return false;
    }
    *ret_reset = !header || (int64_t)known > last || last - (int64_t)known > RESUME_MAX;
    *ret_at = *ret_reset ? last : (int64_t)known;
    return true;
}

void route_stream(struct http_request *req, const struct http_match *match, void *userdata) {
    struct api *api = userdata;
    static const char *const known[] = {NULL};
    int64_t at;
    bool reset;
    if (!api_query_known(req, known) || !beginning(api, req, &at, &reset))
        return;
    if (count(api) == LISTENERS_MAX) {
        http_problem(req, 503, "stream.busy", NULL, "16 event streams are open already, which is all there may be",
                     "close a dashboard that nobody looks at");
        return;
    }
    struct listener *l = calloc(1, sizeof *l);
    if (!l || arm(api) < 0) {
        free(l);
        http_problem(req, 500, "internal", NULL, "the stream could not be begun", "try again in a moment");
        return;
    }
    int64_t now_ms = time_monotonic_ms();
    *l = (struct listener){.next = api->stream->listeners,
                           .api = api,
                           .req = req,
                           .at = at,
                           .since_ms = now_ms,
                           .spoke_ms = now_ms,
                           .by = api_credential(api)};
    api_actor(api, req, l->who);
    api->stream->listeners = l;
    http_request_defer(req, on_gone, l);
    struct http_response response = {.content_type = "text/event-stream"};
    if (http_stream_begin(req, 200, &response) < 0) {
        drop(l);
        return;
    }
    static const char retry[] = "retry: 2000\n\n";
    if (http_stream_write(req, retry, sizeof retry - 1) < 0)
        drop(l);
    else
        send_event(l, "hello", at, json_pack("{s:b}", "reset", reset));
}

void api_stream_revoked(struct api *api, const struct api_credential *credential) {
    for (struct listener *l = api->stream ? api->stream->listeners : NULL, *next; l; l = next) {
        next = l->next;
        if (api_credential_is(&l->by, credential))
            end(l, "what this was begun with was given back, or revoked");
    }
}

void api_stream_free(struct api *api) {
    struct stream *s = api->stream;
    while (s && s->listeners)
        drop(s->listeners);
    workers_free(ptr_steal(api->lookers));
    if (!s)
        return;
    loop_timer_free(s->timer);
    free(s);
    api->stream = NULL;
}

#include "http/remote.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

struct http_remote {
    uint8_t key[16];
    bool used;
    unsigned connections;
    int64_t seen_ms;
    int64_t owed; /* thousandths of requests that were taken and not filled again: 0 is a full bucket */
};

struct http_remotes {
    size_t entries;
    struct http_remote entry[];
};

int http_remotes_new(size_t entries, struct http_remotes **ret_table) {
    struct http_remotes *table = calloc(1, sizeof *table + entries * sizeof *table->entry);
    if (!table)
        return -ENOMEM;
    table->entries = entries;
    *ret_table = table;
    return 0;
}

void http_remotes_free(struct http_remotes *table) {
    free(table);
}

static bool make_key(const struct sockaddr *addr, uint8_t key[16]) {
    memset(key, 0, 16);
    if (addr->sa_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)addr;
        key[10] = key[11] = 0xff;
        memcpy(key + 12, &v4->sin_addr, 4);
        return true;
    }
    if (addr->sa_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)addr;
        memcpy(key, &v6->sin6_addr, IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr) ? 16 : 8);
        return true;
    }
    return false;
}

/* A linear search: the table has a few hundred entries of 40 bytes and is read once a connection. */
struct http_remote *http_remotes_open(struct http_remotes *table, const struct sockaddr *addr, int64_t now_ms) {
    uint8_t key[16];
    if (!make_key(addr, key))
        return NULL;
    struct http_remote *spare = NULL;
    for (size_t i = 0; i < table->entries; i++) {
        struct http_remote *e = &table->entry[i];
        if (e->used && memcmp(e->key, key, sizeof key) == 0) {
            e->connections++;
            return e;
        }
        if (e->connections == 0 && (!spare || (spare->used && (!e->used || e->seen_ms < spare->seen_ms))))
            spare = e;
    }
    if (!spare)
        return NULL;
    *spare = (struct http_remote){.used = true, .connections = 1, .seen_ms = now_ms};
    memcpy(spare->key, key, sizeof key);
    return spare;
}

void http_remotes_close(struct http_remote *remote) {
    if (remote && remote->connections > 0)
        remote->connections--;
}

unsigned http_remote_connections(const struct http_remote *remote) {
    return remote->connections;
}

unsigned http_remote_take(struct http_remote *remote, unsigned per_second, unsigned burst, int64_t now_ms) {
    if (per_second == 0)
        return 0;
    int64_t capacity = (int64_t)(burst ? burst : 1) * 1000;
    int64_t filled = (now_ms - remote->seen_ms) * per_second;
    remote->owed = filled >= remote->owed ? 0 : remote->owed - filled;
    remote->seen_ms = now_ms;
    int64_t missing = remote->owed + 1000 - capacity;
    if (missing > 0) {
        int64_t per_second_milli = (int64_t)per_second * 1000;
        return (unsigned)((missing + per_second_milli - 1) / per_second_milli);
    }
    remote->owed += 1000;
    return 0;
}

#include "doctor/snapshot.h"

#include <linux/neighbour.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "doctor/snapshot_fields.h"

struct snapshot *snapshot_new(void) {
    return calloc(1, sizeof(struct snapshot));
}

void snapshot_free(struct snapshot *s) {
    if (!s)
        return;
    for (const struct snapshot_table *t = snapshot_tables; t->name; t++)
        free(*(void **)((char *)s + t->offset));
    free(s);
}

void snapshot_freep(struct snapshot **s) {
    snapshot_free(*s);
}

void *snapshot_push(void *table, uint32_t *count, uint32_t *cap, size_t row_size, uint32_t max) {
    void **rows = table;
    if (*count >= max)
        return NULL;
    if (*count == *cap) {
        uint32_t bigger = *cap ? *cap + *cap / 2 : 16;
        void *grown = reallocarray(*rows, bigger, row_size);
        if (!grown)
            return NULL;
        *rows = grown;
        *cap = bigger;
    }
    void *row = (char *)*rows + (size_t)(*count)++ * row_size;
    memset(row, 0, row_size);
    return row;
}

void snapshot_gap(struct snapshot *s, const char *what, int errnum, const char *fmt, ...) {
    struct snap_gap *gap = SNAP_PUSH(s, gaps, 256);
    if (!gap)
        return;
    str_copy(gap->what, sizeof gap->what, what);
    gap->errnum = errnum < 0 ? -errnum : errnum;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(gap->detail, sizeof gap->detail, fmt, ap);
    va_end(ap);
}

const struct snap_link *snap_link_by_index(const struct snapshot *s, int32_t index) {
    for (uint32_t i = 0; index && i < s->links_count; i++)
        if (s->links[i].index == index)
            return &s->links[i];
    return NULL;
}

const struct snap_link *snap_link_by_name(const struct snapshot *s, const char *name) {
    for (uint32_t i = 0; *name && i < s->links_count; i++)
        if (strcmp(s->links[i].name, name) == 0)
            return &s->links[i];
    for (uint32_t i = 0; *name && i < s->links_count; i++)
        if (strcmp(s->links[i].altname, name) == 0)
            return &s->links[i];
    return NULL;
}

const char *snap_link_name(const struct snapshot *s, int32_t index) {
    const struct snap_link *link = snap_link_by_index(s, index);
    return link ? link->name : "";
}

const struct snap_attr *snap_attr_get(const struct snapshot *s, const struct snap_link *link,
                                      enum snap_attr_space space, uint16_t type) {
    if (!link)
        return NULL;
    for (uint32_t i = 0; i < link->attrs.count; i++) {
        const struct snap_attr *attr = &s->attrs[link->attrs.first + i];
        if (attr->space == space && attr->type == type)
            return attr;
    }
    return NULL;
}

uint64_t snap_port_attr(const struct snapshot *s, const struct snap_link *link, uint16_t type, uint64_t otherwise) {
    const struct snap_attr *attr = snap_attr_get(s, link, SNAP_ATTR_PORT, type);
    return attr ? attr->value : otherwise;
}

uint64_t snap_bridge_attr(const struct snapshot *s, const struct snap_link *link, uint16_t type, uint64_t otherwise) {
    const struct snap_attr *attr = snap_attr_get(s, link, SNAP_ATTR_BRIDGE, type);
    return attr ? attr->value : otherwise;
}

const char *snap_sysctl_get(const struct snapshot *s, const char *key) {
    for (uint32_t i = 0; i < s->sysctls_count; i++)
        if (strcmp(s->sysctls[i].key, key) == 0)
            return s->sysctls[i].value;
    return NULL;
}

int snap_sysctl_int(const struct snapshot *s, const char *key, int otherwise) {
    const char *value = snap_sysctl_get(s, key);
    return value && *value ? atoi(value) : otherwise;
}

int snap_conf(const struct snapshot *s, const char *link, const char *name, int otherwise) {
    char key[160];
    snprintf(key, sizeof key, "net/ipv4/conf/%s/%s", link, name);
    int own = snap_sysctl_int(s, key, INT32_MIN);
    snprintf(key, sizeof key, "net/ipv4/conf/all/%s", name);
    int all = snap_sysctl_int(s, key, INT32_MIN);
    if (own == INT32_MIN && all == INT32_MIN)
        return otherwise;
    return own > all ? own : all;
}

const struct snap_holder *snap_holder_of(const struct snapshot *s, const char *tap) {
    for (uint32_t i = 0; i < s->holders_count; i++)
        if (!s->holders[i].gone && strcmp(s->holders[i].tap, tap) == 0)
            return &s->holders[i];
    return NULL;
}

const struct snap_neigh *snap_neigh_fixed(const struct snapshot *s, int32_t link, uint32_t ip) {
    for (uint32_t i = 0; i < s->neighs_count; i++) {
        const struct snap_neigh *n = &s->neighs[i];
        bool fixed = n->state & (NUD_PERMANENT | NUD_NOARP) || n->flags & NTF_EXT_LEARNED;
        if (n->ip == ip && n->link == link && fixed && n->has_mac && !(n->flags & NTF_PROXY))
            return n;
    }
    return NULL;
}

const struct snap_gap *snap_gap_of(const struct snapshot *s, const char *what) {
    for (uint32_t i = 0; i < s->gaps_count; i++)
        if (strcmp(s->gaps[i].what, what) == 0)
            return &s->gaps[i];
    return NULL;
}

const struct snap_prog *snap_prog_get(const struct snapshot *s, uint32_t id) {
    for (uint32_t i = 0; id && i < s->progs_count; i++)
        if (s->progs[i].id == id)
            return &s->progs[i];
    return NULL;
}

const struct snap_vm *snap_vm_of_tap(const struct snapshot *s, const char *tap) {
    for (uint32_t i = 0; i < s->vms_count; i++)
        if (strcmp(s->vms[i].tap, tap) == 0)
            return &s->vms[i];
    return NULL;
}

const struct snap_guest *snap_guest_of_tap(const struct snapshot *s, const char *tap) {
    for (uint32_t i = 0; i < s->guests_count; i++)
        if (strcmp(s->guests[i].tap, tap) == 0)
            return &s->guests[i];
    return NULL;
}

/* It lives as long as its doctor's descriptor: a TAP of that name that stays is somebody else's. */
static bool is_canary(const struct snap_link *link) {
    return link->is_tap && !link->tun_persist && str_starts(link->name, NET_CANARY_PORT);
}

bool snap_is_port(const struct snap_link *link, int32_t bridge) {
    return link->master == bridge && bridge != 0 && !is_canary(link);
}

bool snap_is_tap(const struct snap_link *link) {
    return link->is_tap && !is_canary(link);
}

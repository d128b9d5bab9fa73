#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"
#include "store/sqlite.h"

#define VM_COLUMNS                                                                                                     \
    "id, host, user, type, state, state_since_ms, created_ms, ip, mac, tap, bridge, vcpus, memory_mib, uid, image, "   \
    "vmm, reason, reachable, pid, pid_start"

/* Reads the columns of VM_COLUMNS. An enum that this program does not know is an error: it is never guessed. */
static int read_vm(struct query *q, struct vm *ret_vm, struct err *err) {
    struct vm vm = {0};
    char type[16], state[16];
    query_get_text(q, vm.id, sizeof vm.id);
    query_get_text(q, vm.host, sizeof vm.host);
    query_get_text(q, vm.user, sizeof vm.user);
    query_get_text(q, type, sizeof type);
    query_get_text(q, state, sizeof state);
    vm.state_since_ms = query_get_int(q);
    vm.created_ms = query_get_int(q);
    vm.ip = (uint32_t)query_get_int(q);
    query_get_blob(q, vm.mac.byte, sizeof vm.mac.byte);
    query_get_text(q, vm.tap, sizeof vm.tap);
    query_get_text(q, vm.bridge, sizeof vm.bridge);
    vm.vcpus = (uint32_t)query_get_int(q);
    vm.memory_mib = (uint32_t)query_get_int(q);
    vm.uid = (uint32_t)query_get_int(q);
    query_get_text(q, vm.image, sizeof vm.image);
    query_get_text(q, vm.vmm, sizeof vm.vmm);
    query_get_text(q, vm.reason, sizeof vm.reason);
    vm.reachable = (int)query_get_int(q);
    vm.pid = (int32_t)query_get_int(q);
    vm.pid_start = (uint64_t)query_get_int(q);
    if (vm_type_parse(type, &vm.type) < 0 || vm_state_parse(state, &vm.state) < 0)
        return err_set(err, EPROTO, "store.failed", "the record of %s has type \"%s\" and state \"%s\"", vm.id, type,
                       state);
    *ret_vm = vm;
    return 0;
}

/* A VM that comes and goes (unreachable, reachable, …) tells so without end: the oldest go. */
static int trim_events(struct store *store, const char *vm_id, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store,
                       "DELETE FROM event WHERE about = ?1 AND n <="
                       " (SELECT n FROM event WHERE about = ?1 ORDER BY n DESC LIMIT 1 OFFSET ?2)",
                       err);
    if (r < 0)
        return r;
    query_text(&q, vm_id);
    query_int(&q, STORE_EVENTS_MAX);
    return query_step(&q, err);
}

int store_vm_check_quota(struct store *store, const char *user, uint32_t quota, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, "SELECT count(*) FROM vm WHERE user = ? AND ended = 0", err);
    if (r < 0)
        return r;
    query_text(&q, user);
    r = query_step(&q, err);
    if (r < 0)
        return r;
    int64_t count = query_get_int(&q);
    if (count < (int64_t)quota)
        return 0;
    err_set(err, EDQUOT, "quota.user", "user %s has %lld VMs, the limit is %u", user, (long long)count, quota);
    return err_hint(err, "destroy one of them, or raise [vm] quota_per_user");
}

static int insert_vm(struct store *store, const struct vm *vm, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store,
                       "INSERT INTO vm (" VM_COLUMNS ", ended)"
                       " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
                       err);
    if (r < 0)
        return r;
    query_text(&q, vm->id);
    query_text(&q, store->host);
    query_text(&q, vm->user);
    query_text(&q, vm_type_name(vm->type));
    query_text(&q, vm_state_name(vm->state));
    query_int(&q, vm->state_since_ms);
    query_int(&q, vm->created_ms);
    query_int(&q, vm->ip);
    query_blob(&q, vm->mac.byte, sizeof vm->mac.byte);
    query_text(&q, vm->tap);
    query_text(&q, vm->bridge);
    query_int(&q, vm->vcpus);
    query_int(&q, vm->memory_mib);
    query_int(&q, vm->uid);
    query_text(&q, vm->image);
    query_text(&q, vm->vmm);
    query_text(&q, vm->reason);
    query_int(&q, vm->reachable);
    query_int(&q, vm->pid);
    query_int(&q, (int64_t)vm->pid_start);
    return query_step(&q, err);
}

static int let_user_have(struct store *store, const struct vm *vm, uint32_t quota, struct store_event *event,
                         const char *actor, int (*write)(struct store *, const struct vm *, struct err *),
                         struct err *err) {
    event->at_ms = vm->created_ms;
    str_copy(event->actor, sizeof event->actor, actor);
    str_copy(event->to, sizeof event->to, vm_state_name(vm->state));
    int r = store_begin(store, err);
    if (r < 0)
        return r;
    r = store_vm_check_quota(store, vm->user, quota, err);
    if (r == 0)
        r = write(store, vm, err);
    if (r == 0)
        r = store_event_add(store, vm->id, event, err);
    return store_end(store, r, err);
}

int store_vm_claim(struct store *store, const struct vm *vm, uint32_t quota, const char *actor, struct err *err) {
    struct store_event event = {.event = "claimed"};
    return let_user_have(store, vm, quota, &event, actor, insert_vm, err);
}

static int give_user(struct store *store, const struct vm *vm, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, "UPDATE vm SET user = ?, created_ms = ?, state_since_ms = ? WHERE id = ?", err);
    if (r < 0)
        return r;
    query_text(&q, vm->user);
    query_int(&q, vm->created_ms);
    query_int(&q, vm->state_since_ms);
    query_text(&q, vm->id);
    return query_step(&q, err);
}

int store_vm_take(struct store *store, const struct vm *vm, uint32_t quota, const char *actor, struct err *err) {
    struct store_event event = {.event = "taken", .reason = "it was ready, in the pool"};
    return let_user_have(store, vm, quota, &event, actor, give_user, err);
}

static int no_vm(const char *id, struct err *err) {
    char shown[64];
    err_set(err, ENOENT, "vm.not-found", "there is no VM %s", str_escape(id, strnlen(id, 48), shown, sizeof shown));
    return err_hint(err, "mctl vm list shows those that there are");
}

int store_vm_get(struct store *store, const char *id, struct vm *ret_vm, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, "SELECT " VM_COLUMNS " FROM vm WHERE id = ?", err);
    if (r < 0)
        return r;
    query_text(&q, id);
    r = query_step(&q, err);
    return r < 0 ? r : r == 0 ? no_vm(id, err) : read_vm(&q, ret_vm, err);
}

int store_vm_find(struct store *store, const char *prefix, const char *user, struct vm *ret_vm, struct err *err) {
    char pattern[VM_ID_TEXT];
    size_t len = strlen(prefix);
    if (len == 0 || len >= VM_ID_TEXT || strspn(prefix, "0123456789abcdefvm-") != len)
        return no_vm(prefix, err);
    /* The digits alone are a prefix too, as people copy them from a TAP's name. */
    bool bare = !str_starts(prefix, "vm-") && !str_starts("vm-", prefix);
    if (!str_copy(pattern, sizeof pattern, bare ? "vm-" : "") || len + strlen(pattern) >= sizeof pattern)
        return no_vm(prefix, err);
    strcat(pattern, prefix);
    _cleanup_query_ struct query q;
    int r = query_open(&q, store,
                       "SELECT " VM_COLUMNS " FROM vm WHERE substr(id, 1, length(?1)) = ?1 AND (?2 = '' OR user = ?2)"
                       " ORDER BY ended LIMIT 2",
                       err);
    if (r < 0)
        return r;
    query_text(&q, pattern);
    query_text(&q, user ? user : "");
    r = query_step(&q, err);
    if (r <= 0)
        return r < 0 ? r : no_vm(prefix, err);
    struct vm vm = {0};
    r = read_vm(&q, &vm, err);
    if (r < 0)
        return r;
    struct vm other = {0};
    r = query_step(&q, err);
    if (r > 0)
        r = read_vm(&q, &other, err) < 0 ? -EPROTO : 1;
    if (r < 0)
        return r;
    /* The living come first: one of them and any number of ended ones is not ambiguous. */
    if (r > 0 && vm_state_is_end(vm.state) == vm_state_is_end(other.state)) {
        err_set(err, ENOTUNIQ, "vm.ambiguous", "more than one VM's id begins with %s", prefix);
        return err_hint(err, "give more digits");
    }
    *ret_vm = vm;
    return 0;
}

int store_vm_last_ip(struct store *store, uint32_t *ret_ip, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, "SELECT ip FROM vm ORDER BY created_ms DESC LIMIT 1", err);
    if (r == 0)
        r = query_step(&q, err);
    if (r < 0)
        return r;
    *ret_ip = r > 0 ? (uint32_t)query_get_int(&q) : 0;
    return 0;
}

int store_vm_ended_since(struct store *store, int64_t since_ms, struct store_rest *ret, size_t max, size_t *ret_n,
                         struct err *err) {
    _cleanup_query_ struct query q;
    size_t n = 0;
    int r = query_open(&q, store,
                       "SELECT ip, state_since_ms FROM vm WHERE ended = 1 AND state_since_ms > ?"
                       " ORDER BY state_since_ms DESC LIMIT ?",
                       err);
    if (r < 0)
        return r;
    query_int(&q, since_ms);
    query_int(&q, (int64_t)max);
    while (n < max && (r = query_step(&q, err)) > 0) {
        ret[n].ip = (uint32_t)query_get_int(&q);
        ret[n++].ended_ms = query_get_int(&q);
    }
    if (r < 0)
        return r;
    *ret_n = n;
    return 0;
}

int store_vm_list(struct store *store, const char *user, enum store_which which, struct vm **ret_vms, size_t *ret_n,
                  struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store,
                       "SELECT " VM_COLUMNS " FROM vm WHERE (?1 = '' OR user = ?1) AND (ended = 0 OR ?2)"
                       " ORDER BY created_ms DESC, id LIMIT 20000",
                       err);
    if (r < 0)
        return r;
    query_text(&q, user ? user : "");
    query_int(&q, which == STORE_ALL);
    _cleanup_free_ struct vm *vms = NULL;
    size_t n = 0, cap = 0;
    while ((r = query_step(&q, err)) > 0) {
        r = store_grow(&vms, n, &cap, sizeof *vms, err);
        if (r == 0)
            r = read_vm(&q, &vms[n], err);
        if (r < 0)
            return r;
        n++;
    }
    if (r < 0)
        return r;
    *ret_vms = ptr_steal(vms);
    *ret_n = n;
    return 0;
}

static int update_vm(struct store *store, const struct vm *vm, struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store,
                       "UPDATE vm SET state = ?, ended = ?, state_since_ms = ?, reason = ?, reachable = ?, pid = ?,"
                       " pid_start = ? WHERE id = ?",
                       err);
    if (r < 0)
        return r;
    query_text(&q, vm_state_name(vm->state));
    query_int(&q, vm_state_is_end(vm->state));
    query_int(&q, vm->state_since_ms);
    query_text(&q, vm->reason);
    query_int(&q, vm->reachable);
    query_int(&q, vm->pid);
    query_int(&q, (int64_t)vm->pid_start);
    query_text(&q, vm->id);
    r = query_step(&q, err);
    if (r == 0 && sqlite3_changes(store->db) != 1)
        return no_vm(vm->id, err);
    return r;
}

static int update_once(struct store *store, const struct vm *vm, const struct store_event *event, struct err *err) {
    int r = store_begin(store, err);
    if (r < 0)
        return r;
    r = update_vm(store, vm, err);
    if (r == 0 && event)
        r = store_event_add(store, vm->id, event, err);
    if (r == 0 && event && !*event->to)
        r = trim_events(store, vm->id, err);
    return store_end(store, r, err);
}

int store_vm_update(struct store *store, const struct vm *vm, const struct store_event *event, struct err *err) {
    int r = update_once(store, vm, event, err);
    return r == -ENOSPC && store_make_room(store) == 0 ? update_once(store, vm, event, err) : r;
}

/* Runs a statement for each of which ?1 is a time and ?2 a number of rows. */
static int delete_some(struct store *store, const char *sql, int64_t before_ms, uint32_t max, uint32_t *ret_n,
                       struct err *err) {
    _cleanup_query_ struct query q;
    int r = query_open(&q, store, sql, err);
    if (r < 0)
        return r;
    query_int(&q, before_ms);
    query_int(&q, max);
    r = query_step(&q, err);
    if (r == 0)
        *ret_n += (uint32_t)sqlite3_changes(store->db);
    return r;
}

int store_expire(struct store *store, int64_t before_ms, uint32_t max, uint32_t *ret_n, struct err *err) {
    static const char old[] =
        "(SELECT id FROM vm WHERE ended = 1 AND state_since_ms < ?1 ORDER BY created_ms LIMIT ?2)";
    static const char old_sessions[] =
        "(SELECT id FROM session WHERE ended = 1 AND created_ms < ?1 ORDER BY id LIMIT ?2)";
    char events[256], vms[256], session_events[256], sessions[256];
    uint32_t n = 0, other = 0;
    snprintf(events, sizeof events, "DELETE FROM event WHERE about IN %s", old);
    snprintf(vms, sizeof vms, "DELETE FROM vm WHERE id IN %s", old);
    snprintf(session_events, sizeof session_events, "DELETE FROM event WHERE about IN %s", old_sessions);
    snprintf(sessions, sizeof sessions, "DELETE FROM session WHERE id IN %s", old_sessions);
    int r = store_begin(store, err);
    if (r < 0)
        return r;
    r = delete_some(store, events, before_ms, max, &other, err);
    if (r == 0)
        r = delete_some(store, vms, before_ms, max, &n, err);
    if (r == 0)
        r = delete_some(store, session_events, before_ms, max, &other, err);
    if (r == 0)
        r = delete_some(store, sessions, before_ms, max, &other, err);
    r = store_end(store, r, err);
    if (r == 0)
        *ret_n = n;
    return r;
}

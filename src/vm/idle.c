/* Which VMs nobody uses. Theory of operation:
 *
 * A running VM is in use while somebody outside says so (vms_set_use(): a session, a desktop, a program of an exec, a question
 * to its agent), while its TAP carries more than our own probes do, and while its guest has work by its own word (the load
 * that its agent told last; where there is no agent, traffic decides alone). It is idle since it was last seen in use; a
 * daemon that has just started has seen nothing, and begins at its start.
 *
 * What is idle for [vm] <type>_idle_after is hibernated. And when a VM cannot be admitted for lack of memory, those that are
 * idle for at least idle_yields_after are, the longest idle one first, and only if that is enough (idle_make_room()). */
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>

#include "base/log.h"
#include "base/time.h"
#include "vm/hibernate.h"

#define LOOK_MS 5000         /* between two looks at one VM */
#define FRESH_MS 1000        /* a look that old is not relied on when one is to rest */
#define TRAFFIC_BYTES_S 1000 /* and more is use; our own probes are some 200 at their quickest */
#define LOAD_MAX 0.3         /* of one processor, over a minute */
#define AFTER_FAILURE_MS 60000

static bool has_traffic(struct machine *m, int64_t now_ms) {
    uint64_t bytes = 0, before = m->traffic_bytes;
    int64_t passed_ms = now_ms - m->looked_ms;
    if (network_traffic(m->vms->network, m->vm.tap, &bytes, NULL) < 0)
        return false;
    m->traffic_bytes = bytes;
    return m->looked_ms > 0 && bytes > before && (bytes - before) * 1000 > (uint64_t)passed_ms * TRAFFIC_BYTES_S;
}

static bool has_work(const struct machine *m) {
    json_t *load = m->agent ? json_object_get(agent_health(m->agent), "load_1min") : NULL;
    return json_is_number(load) && json_number_value(load) > LOAD_MAX;
}

static bool may_rest(const struct machine *m) {
    return m->vm.state == VM_STATE_RUNNING && !m->is_over && !m->is_busy && !m->halt.is_halted && !m->is_unloadable;
}

static bool is_in_use(const struct machine *m) {
    const struct vms *vms = m->vms;
    return vms->in_use && vms->in_use(vms->in_use_data, &m->vm);
}

static void look(struct machine *m, int64_t now_ms) {
    bool traffic = m->vm.state == VM_STATE_RUNNING && has_traffic(m, now_ms);
    if (!may_rest(m) || traffic || has_work(m) || is_in_use(m))
        m->idle_since_ms = now_ms;
    else if (m->idle_since_ms == 0)
        m->idle_since_ms = now_ms;
    m->looked_ms = now_ms;
}

/* Milliseconds; 0: it is in use. */
static int64_t idle_ms(const struct machine *m, int64_t now_ms) {
    bool failed_lately = m->rest_failed_ms && now_ms - m->rest_failed_ms < AFTER_FAILURE_MS;
    return may_rest(m) && !failed_lately && !is_in_use(m) && m->idle_since_ms ? now_ms - m->idle_since_ms : 0;
}

static int put_to_rest(struct machine *m, const char *why, struct err *err) {
    char reason[VM_REASON_MAX];
    struct vm vm;
    int64_t now_ms = time_monotonic_ms();
    snprintf(reason, sizeof reason, "nobody has used it for %lld s%s", (long long)idle_ms(m, now_ms) / 1000, why);
    int r = vms_hibernate(m->vms, m->vm.id, "controller", reason, &vm, err);
    if (r < 0)
        m->rest_failed_ms = now_ms;
    return r;
}

static bool is_one_on_its_way(const struct vms *vms) {
    for (const struct machine *m = vms->first; m; m = m->next)
        if (m->vm.state == VM_STATE_HIBERNATING)
            return true;
    return false;
}

/* One after the other: nobody waits for their memory, and until its turn came a VM would be away for those who want it. */
void idle_check(struct vms *vms) {
    int64_t now_ms = time_monotonic_ms();
    for (struct machine *m = vms->first, *next; m; m = next) {
        struct err err = {0};
        int64_t after_ms = vms->config->vm.type[m->vm.type].idle_after_ms;
        next = m->next;
        bool is_ripe = after_ms > 0 && idle_ms(m, now_ms) >= after_ms && !is_one_on_its_way(vms);
        if (!m->looked_ms || now_ms - m->looked_ms >= (is_ripe ? FRESH_MS : LOOK_MS))
            look(m, now_ms);
        if (is_ripe && idle_ms(m, now_ms) >= after_ms && put_to_rest(m, "", &err) < 0)
            log_warning("%s", err.detail);
    }
}

void vms_set_use(struct vms *vms, vms_in_use_fn *fn, void *userdata) {
    vms->in_use = fn;
    vms->in_use_data = userdata;
}

void vms_used(struct vms *vms, const char *id) {
    struct machine *m = machine_find(vms, id);
    if (m)
        m->idle_since_ms = time_monotonic_ms();
}

/* The longest idle one of those that yield, and what all of them have been promised. */
static struct machine *find_idle(struct vms *vms, uint32_t overhead_mib, uint64_t *ret_mib) {
    struct machine *found = NULL;
    int64_t now_ms = time_monotonic_ms(), after_ms = vms->config->vm.idle_yields_ms;
    uint64_t sum = 0;
    for (struct machine *m = vms->first; after_ms > 0 && m; m = m->next) {
        if (now_ms - m->looked_ms >= FRESH_MS)
            look(m, now_ms);
        if (idle_ms(m, now_ms) < after_ms)
            continue;
        sum += m->vm.memory_mib + overhead_mib;
        if (!found || m->idle_since_ms < found->idle_since_ms)
            found = m;
    }
    *ret_mib = sum;
    return found;
}

int idle_make_room(struct vms *vms, uint32_t memory_mib, char ret_id[VM_ID_TEXT]) {
    struct vmm_choice choice;
    struct vm wanted = {.memory_mib = memory_mib};
    struct err err = {0};
    uint64_t idle_mib = 0;
    if (vmm_choose(&vms->config->vm, &choice, NULL) < 0)
        return 0;
    uint32_t overhead_mib = choice.ops->overhead_mib(&choice);
    uint64_t missing = vms_missing_mib(vms, &wanted, overhead_mib);
    struct machine *m = missing > 0 ? find_idle(vms, overhead_mib, &idle_mib) : NULL;
    if (!m || idle_mib < missing)
        return 0;
    if (put_to_rest(m, ", and its memory is wanted for another VM", &err) < 0) {
        log_warning("%s", err.detail);
        return idle_make_room(vms, memory_mib, ret_id); /* that one is not idle for a while */
    }
    memcpy(ret_id, m->vm.id, VM_ID_TEXT);
    return 1;
}

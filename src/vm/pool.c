#include "vm/pool.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/proc.h"
#include "base/time.h"
#include "vm/warm.h"

#define RETRY_MS 60000

unsigned pool_wanted(const struct vms *vms, enum vm_type type) {
    return vms->config->warm.templates ? vms->config->warm.pool[type] : 0;
}

unsigned pool_count(const struct vms *vms, enum vm_type type, bool only_ready) {
    unsigned n = 0;
    for (const struct machine *m = vms->first; m; m = m->next)
        n += machine_is_spare(m) && m->vm.type == type && !m->is_over && (m->spare || !only_ready);
    return n;
}

static void end(struct machine *m, const char *why) {
    struct err err = {0};
    log_info("%s of the pool ends: %s", m->vm.id, why);
    if (machine_change(m, VM_EVENT_STOP, "controller", why, &err) < 0) {
        log_error("%s: %s", m->vm.id, err.detail);
        return;
    }
    machine_end(m, VM_EVENT_ENDED, "controller", why, NULL);
}

static bool is_free(const struct machine *m) {
    return m->spare && !m->is_over && !m->is_busy && m->vm.state == VM_STATE_CREATING;
}

struct machine *pool_find(struct vms *vms, const struct vm *wanted, const char *id) {
    for (struct machine *m = vms->first; m; m = m->next)
        if (is_free(m) && m->vm.type == wanted->type && m->vm.memory_mib == wanted->memory_mib &&
            m->vm.vcpus == wanted->vcpus && strcmp(m->vm.image, wanted->image) == 0 &&
            (!id || strcmp(m->vm.id, id) == 0))
            return m;
    return NULL;
}

void pool_yield(struct vms *vms, const struct vm *vm, uint32_t overhead_mib) {
    for (struct machine *m = vms->first, *next; m; m = next) {
        next = m->next;
        if (is_free(m) && vms_missing_with_spares_mib(vms, vm, overhead_mib) > 0)
            end(m, "its room is wanted for another VM");
    }
}

/* Its VMM has ended, by itself or because it was told to. */
static int on_process(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
    struct machine *m = userdata;
    char words[96] = "";
    bool was_asked = m->vm.state == VM_STATE_STOPPING;
    proc_reap(m->pidfd, words, sizeof words);
    if (!was_asked)
        pool_put_off(m->vms, m->vm.type);
    machine_end(m, was_asked ? VM_EVENT_ENDED : VM_EVENT_FAILED, was_asked ? m->stop_actor : "guest or host",
                was_asked ? m->vm.reason : "its VMM ended while it waited in the pool", words);
    return 0;
}

void pool_keep(struct machine *m) {
    if (sd_event_add_io(loop_event(m->vms->loop), &m->process, m->pidfd, EPOLLIN, on_process, m) < 0)
        log_error("%s: no memory to watch its VMM", m->vm.id);
    machine_note(m, LOG_LEVEL_INFO, "pool-ready", "it waits in the pool for whoever comes first");
}

static bool is_one_on_its_way(const struct vms *vms) {
    for (const struct machine *m = vms->first; m; m = m->next)
        if (!m->is_over && !m->spare &&
            (m->is_busy || (m->vm.state != VM_STATE_RUNNING && m->vm.state != VM_STATE_HIBERNATED)))
            return true;
    return false;
}

void pool_put_off(struct vms *vms, enum vm_type type) {
    vms->pool_retry_ms[type] = time_monotonic_ms() + RETRY_MS;
}

void pool_check(struct vms *vms) {
    for (int i = 0; i < VM_TYPE_COUNT; i++) {
        enum vm_type type = (enum vm_type)i;
        struct err err = {0};
        for (struct machine *m = vms->first, *next; m; m = next) {
            next = m->next;
            if (is_free(m) && m->vm.type == type &&
                (!warm_is_from(vms->warm, type, m->vm.image) || pool_count(vms, type, false) > pool_wanted(vms, type)))
                end(m, "its template is another now");
        }
        if (pool_count(vms, type, false) < pool_wanted(vms, type) && warm_is_from(vms->warm, type, NULL) &&
            !is_one_on_its_way(vms) && time_monotonic_ms() >= vms->pool_retry_ms[type] &&
            create_spare(vms, type, &err) < 0)
            log_event(LOG_LEVEL_DEBUG, (struct log_about){0}, "no VM for the pool: %s", err.detail);
    }
}

/* Before a VM that was asked to sleep or to stop does so, whoever is outside may take what only its guest has
 * (vms_set_last_look()): the state is told first, which is when they begin; then they are asked, again and again, whether they
 * are done. A VM that nobody looks at waits for nothing. */
#include "base/log.h"
#include "base/time.h"
#include "vm/machine.h"

#define LOOK_AGAIN_MS 50
#define LEAVE_MAX_MS 15000 /* whatever they say */

void vms_set_last_look(struct vms *vms, vms_in_use_fn *fn, void *userdata) {
    vms->last_look = fn;
    vms->last_look_data = userdata;
}

static bool is_looked_at(const struct machine *m) {
    const struct vms *vms = m->vms;
    return vms->last_look && m->agent && !m->halt.is_halted && vms->last_look(vms->last_look_data, &m->vm);
}

void machine_let_go(struct machine *m) {
    loop_fn *then = m->leave;
    m->leave = NULL;
    loop_timer_free(m->deadline);
    m->deadline = NULL;
    then(m);
}

static void on_timer(void *userdata) {
    struct machine *m = userdata;
    bool is_late = time_monotonic_ms() >= m->leave_until_ms, is_wanted = is_looked_at(m);
    if (is_wanted && !is_late) {
        loop_timer_again(m->deadline, LOOK_AGAIN_MS);
        return;
    }
    if (is_wanted)
        log_warning("%s: it was still being looked at, and is not waited for any more", m->vm.id);
    machine_let_go(m);
}

void machine_leave(struct machine *m, loop_fn *then) {
    probe_free(m->probe);
    m->probe = NULL;
    loop_timer_free(m->again);
    m->again = NULL;
    loop_timer_free(m->deadline);
    m->deadline = NULL;
    m->leave = then;
    m->leave_until_ms = time_monotonic_ms() + LEAVE_MAX_MS;
    if (!is_looked_at(m) || loop_timer_new(m->vms->loop, LOOK_AGAIN_MS, on_timer, m, &m->deadline) < 0)
        machine_let_go(m);
}

/* Whose agents are asked, and when: before the probe, for the counters and rules as they were, and behind it. Where there
 * are many VMs, only those that did not answer are asked, once. */
#include "doctor/guests.h"

#include <string.h>

#include "doctor/collect/guest.h"

/* What serves the port that a VM of a type is judged by. Source: guest/recipe/browser. */
static const char *unit_of(const struct snap_vm *vm) {
    return vm && strcmp(vm->type, "browser") == 0 && vm->port == 6080 ? "websockify.service" : NULL;
}

/* One whose VMM does not run cannot answer: waiting for it tells nothing. */
static bool is_stopped(const struct snapshot *s, const char *tap) {
    const struct snap_holder *h = snap_holder_of(s, tap);
    return h && (h->state == 'T' || h->frozen);
}

static const struct probe_answer *answer_of(const struct doctor_case *c, uint32_t target, enum probe_kind kind) {
    int at = c->probe_indexes[target];
    return c->probe && at >= 0 ? probe_answer(c->probe, (size_t)at, kind) : NULL;
}

static bool is_dead(const struct probe_answer *a) {
    return a && a->asked && (!a->answered || a->answer_errno);
}

static bool is_sick(const struct doctor_case *c, uint32_t target) {
    return is_dead(answer_of(c, target, PROBE_ARP)) || is_dead(answer_of(c, target, PROBE_ICMP)) ||
           is_dead(answer_of(c, target, PROBE_TCP));
}

static uint32_t count_records(const struct doctor_case *c) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < c->count; i++)
        count += *c->targets[i].vm_id != '\0';
    return count;
}

/* Whether asking it again makes sense: it told before, or nobody asked it yet. */
static bool may_tell(const struct doctor_case *c, const char *tap) {
    const struct snap_guest *before = snap_guest_of_tap(c->before, tap);
    return !before || before->state == SNAP_GUEST_TOLD;
}

void doctor_ask_guests(struct doctor_case *c, const char *socket, struct snapshot *into) {
    struct guest_wish wishes[GUEST_ASKED_MAX];
    bool many = count_records(c) > GUEST_ASKED_MAX;
    size_t count = 0;
    if (many && into == c->before)
        return;
    for (uint32_t i = 0; i < c->count && count < GUEST_ASKED_MAX; i++) {
        const struct target *t = &c->targets[i];
        if (!*t->vm_id || is_stopped(c->before, t->tap) || !may_tell(c, t->tap) || (many && !is_sick(c, i)))
            continue;
        const struct snap_vm *vm = snap_vm_of_tap(c->before, t->tap);
        wishes[count++] = (struct guest_wish){
            .vm_id = t->vm_id, .tap = t->tap, .units = is_dead(answer_of(c, i, PROBE_TCP)), .unit = unit_of(vm)};
    }
    collect_guests(into, socket, wishes, count);
}

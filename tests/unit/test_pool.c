/* VMs of the pool: whom they make room for, and how old they are when they are taken. The host's memory, and what changes and ends
 * a VM, are the test's own. */
#include <string.h>
#include <sys/sysinfo.h>

#include "base/str.h"
#include "cmocka_all.h"
#include "vm/machine.h"
#include "vm/pool.h"
#include "vm/warm.h"

#define HOST_MIB 4096
#define DAY_MS 86400000LL

int __wrap_sysinfo(struct sysinfo *info);
int __wrap_sysinfo(struct sysinfo *info) {
    *info = (struct sysinfo){.totalram = HOST_MIB, .mem_unit = 1 << 20};
    return 0;
}

int __wrap_machine_change(struct machine *m, enum vm_event event, const char *actor, const char *reason,
                          struct err *err);
int __wrap_machine_change(struct machine *m, enum vm_event event, const char *actor, const char *reason,
                          struct err *err) {
    m->vm.state = VM_STATE_STOPPING;
    return 0;
}

/* As the real one it takes a while: the machine is there until it is done. */
void __wrap_machine_end(struct machine *m, enum vm_event event, const char *actor, const char *reason,
                        const char *process);
void __wrap_machine_end(struct machine *m, enum vm_event event, const char *actor, const char *reason,
                        const char *process) {
    m->is_over = true;
}

static struct config config;

static struct machine spare(struct vms *vms, struct machine *next) {
    struct machine m = {.next = next, .vms = vms, .pidfd = 5, .spare = (struct creation *)&config};
    m.vm = (struct vm){.state = VM_STATE_CREATING, .memory_mib = 1000};
    str_copy(m.vm.user, sizeof m.vm.user, POOL_USER);
    return m;
}

static void as_many_end_as_stand_in_the_way(void **state) {
    struct vms vms = {.config = &config};
    struct machine m[3];
    struct vm vm = {.memory_mib = 2000};
    config.vm.memory_percent = 100;
    for (int i = 0; i < 3; i++)
        m[i] = spare(&vms, i ? &m[i - 1] : NULL);
    vms.first = &m[2];
    pool_yield(&vms, &vm, 0); /* 5000 of 4096 */
    assert_int_equal(m[0].is_over + m[1].is_over + m[2].is_over, 1);
    pool_yield(&vms, &vm, 0); /* there is room now, though the one has not ended yet */
    assert_int_equal(m[0].is_over + m[1].is_over + m[2].is_over, 1);
    vm.memory_mib = 3500;
    pool_yield(&vms, &vm, 0);
    assert_int_equal(m[0].is_over + m[1].is_over + m[2].is_over, 3);
}

static void a_boot_begins_when_a_spare_is_taken(void **state) {
    int64_t now_ms = 1000 * DAY_MS;
    struct vm vm = {.state = VM_STATE_BOOTING, .state_since_ms = now_ms - 20};
    assert_int_equal(machine_boot_age_ms(&vm, DAY_MS, now_ms), 20);
    /* The clock that was set proves nothing. */
    vm.state_since_ms = now_ms - DAY_MS;
    assert_int_equal(machine_boot_age_ms(&vm, 3000, now_ms), 3000);
    vm.state_since_ms = now_ms + DAY_MS;
    assert_int_equal(machine_boot_age_ms(&vm, 3000, now_ms), 3000);
}

/* What is being made when the daemon ends is made to its end, and its templates are gone by then. */
static void a_daemon_that_ends_has_no_templates(void **state) {
    const struct template t = {.type = VM_TYPE_CLI, .name = "cli-x", .memory_fd = -1};
    warm_worked(NULL, &t);
    warm_failed(NULL, &t, "its memory could not be loaded");
    warm_yield(NULL, NULL, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_daemon_that_ends_has_no_templates),
        cmocka_unit_test(as_many_end_as_stand_in_the_way),
        cmocka_unit_test(a_boot_begins_when_a_spare_is_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

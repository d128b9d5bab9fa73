/* Whether there is room for one more VM, before anything is made of it. */
#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>

#include "vm/machine.h"
#include "vm/pool.h"

static uint32_t count_taken(const struct vms *vms) {
    uint32_t n = 0;
    for (const struct machine *m = vms->first; m; m = m->next)
        n += !machine_is_spare(m);
    return n;
}

int vms_check_count(const struct vms *vms, struct err *err) {
    uint32_t limit = vms->config->vm.quota_host, count = count_taken(vms);
    if (count < limit)
        return 0;
    err_set(err, EDQUOT, "quota.host", "this host has %u VMs, the limit is %u", count, limit);
    return err_hint(err, "end some (mctl vm list), or raise [vm] quota_host");
}

/* What VMs have been promised, whether or not they use it: the kernel gives memory out when it is touched, and ends one
 * of them when there is none left. Return: false where the host does not say how much it has. */
struct promises {
    uint64_t host_mib, limit_mib, promised_mib, need_mib;
};

bool machine_is_spare(const struct machine *m) {
    return strcmp(m->vm.user, POOL_USER) == 0;
}

/* Hibernated, or it was when it was told to end: it has no VMM. */
static bool is_asleep(const struct machine *m) {
    return m->vm.state == VM_STATE_HIBERNATED || (m->vm.state == VM_STATE_STOPPING && m->pidfd < 0 && !m->is_busy);
}

static bool count_promises(struct vms *vms, const struct vm *vm, uint32_t overhead_mib, bool with_spares,
                           struct promises *ret) {
    struct sysinfo info;
    if (sysinfo(&info) < 0)
        return false;
    *ret = (struct promises){.host_mib = ((uint64_t)info.totalram * info.mem_unit) >> 20,
                             .need_mib = vm ? (uint64_t)vm->memory_mib + overhead_mib : 0};
    ret->limit_mib = ret->host_mib * vms->config->vm.memory_percent / 100;
    for (struct machine *m = vms->first; m; m = m->next)
        if (!is_asleep(m) && (!machine_is_spare(m) || (with_spares && !m->is_over)))
            ret->promised_mib += m->vm.memory_mib + overhead_mib;
    return true;
}

static uint64_t missing_mib(struct vms *vms, const struct vm *vm, uint32_t overhead_mib, bool with_spares) {
    struct promises p;
    if (!count_promises(vms, vm, overhead_mib, with_spares, &p) || p.promised_mib + p.need_mib <= p.limit_mib)
        return 0;
    return p.promised_mib + p.need_mib - p.limit_mib;
}

uint64_t vms_missing_mib(struct vms *vms, const struct vm *vm, uint32_t overhead_mib) {
    return missing_mib(vms, vm, overhead_mib, false);
}

uint64_t vms_missing_with_spares_mib(struct vms *vms, const struct vm *vm, uint32_t overhead_mib) {
    return missing_mib(vms, vm, overhead_mib, true);
}

static int check_memory(struct vms *vms, const struct vm *vm, uint32_t overhead_mib, struct err *err) {
    struct promises p;
    if (vms_missing_mib(vms, vm, overhead_mib) == 0 || !count_promises(vms, vm, overhead_mib, false, &p))
        return 0;
    err_set(err, ENOSPC, "quota.memory",
            "a VM of %u MiB needs %llu MiB with its VMM; of the host's %llu MiB VMs may have %llu, and %u VMs have been"
            " promised %llu: %llu are left",
            vm->memory_mib, (unsigned long long)p.need_mib, (unsigned long long)p.host_mib,
            (unsigned long long)p.limit_mib, count_taken(vms), (unsigned long long)p.promised_mib,
            (unsigned long long)(p.promised_mib < p.limit_mib ? p.limit_mib - p.promised_mib : 0));
    return err_hint(err, "end or hibernate some VMs, ask for less memory, or raise [vm] memory_percent");
}

static uint32_t count_awake(const struct vms *vms) {
    uint32_t n = 0;
    for (const struct machine *m = vms->first; m; m = m->next)
        n += !is_asleep(m) && !machine_is_spare(m);
    return n;
}

int vms_admit(struct vms *vms, const struct vm *vm, uint32_t overhead_mib, struct err *err) {
    int r = machine_find(vms, vm->id) ? 0 : vms_check_count(vms, err); /* one that is brought back is counted */
    if (r == 0)
        r = check_memory(vms, vm, overhead_mib, err);
    return r == 0 ? network_check_room(vms->network, count_awake(vms), err) : r;
}

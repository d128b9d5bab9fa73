/* What a VM is given, made of its record alone. */
#include <stdio.h>

#include "base/str.h"
#include "vm/machine.h"

/* Source: Documentation/admin-guide/nfs/nfsroot.rst, ip=. */
void machine_cmdline(const struct config_network *network, const struct vm *vm, char ret_cmdline[MACHINE_CMDLINE_MAX]) {
    char ip[NET_IP_TEXT], gateway[NET_IP_TEXT], mask[NET_IP_TEXT];
    net_format_ip(vm->ip, ip);
    net_format_ip(network->address.address, gateway);
    net_format_ip(net_mask(network->address.length), mask);
    /* no_timer_check: a kernel that is emulated on a busy host gets its first ticks too late, takes the timer for broken
     * and panics ("IO-APIC + timer doesn't work!"). Under KVM it sets the same by itself.
     * Source: Documentation/admin-guide/kernel-parameters.txt; kvm_guest_init() */
    snprintf(ret_cmdline, MACHINE_CMDLINE_MAX,
             "console=ttyS0 TERM=dumb panic=-1 no_timer_check root=/dev/vda rootfstype=ext4 rw"
             " ip=%s::%s:%s:%.11s:eth0:off%s%s mc.vm=%s",
             ip, gateway, mask, vm->id, *network->dns ? ":" : "", network->dns, vm->id);
}

struct network_nic machine_nic(const struct vm *vm) {
    struct network_nic nic = {.mac = vm->mac, .ip = vm->ip, .owner_uid = vm->uid};
    str_copy(nic.tap, sizeof nic.tap, vm->tap);
    str_copy(nic.vm_id, sizeof nic.vm_id, vm->id);
    return nic;
}

/* Making a VM: steps, each with its undo. The record is claimed first, so that after a crash at any later point the
 * next start knows what to look for (reconcile.c). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/time.h"
#include "image/image.h"
#include "network/ipam.h"
#include "vm/machine.h"

#define CLAIM_ATTEMPTS 8
#define CMDLINE_MAX 2048 /* what kernels and Firecracker take */

static int random_bytes(void *data, size_t len) {
    return getrandom(data, len, 0) == (ssize_t)len ? 0 : -EIO;
}

struct used_ips {
    const uint32_t *ip;
    size_t n;
};

static int is_used(uint32_t ip, void *data) {
    const struct used_ips *all = data;
    for (size_t i = 0; i < all->n; i++)
        if (all->ip[i] == ip)
            return 1;
    return 0;
}

/* The first free address behind the last one given, so that an address rests before it is given again. */
static int pick_address(struct vms *vms, uint32_t *ret_ip, struct err *err) {
    _cleanup_free_ struct vm *live = NULL;
    size_t n;
    int r = store_vm_list(vms->store, NULL, STORE_LIVE, &live, &n, err);
    if (r < 0)
        return r;
    _cleanup_free_ uint32_t *used = calloc(n + 1, sizeof *used);
    if (!used)
        return err_sys(err, ENOMEM, "vm.create", "pick an address");
    for (size_t i = 0; i < n; i++)
        used[i] = live[i].ip;
    struct used_ips all = {used, n};
    r = ipam_pick(vms->config->network.address, vms->ip_cursor, is_used, &all, ret_ip, err);
    if (r == 0)
        vms->ip_cursor = *ret_ip;
    return r;
}

int vms_new_id(char ret_id[VM_ID_TEXT], struct err *err) {
    uint8_t random[16];
    if (random_bytes(random, sizeof random) < 0)
        return err_sys(err, EIO, "vm.create", "get random bytes");
    vm_id_from_random(random, ret_id);
    return 0;
}

static int fill_names(struct vms *vms, const char *id, struct vm *vm, struct err *err) {
    uint8_t random[4];
    int r = random_bytes(random, sizeof random) < 0 ? err_sys(err, EIO, "vm.create", "get random bytes") : 0;
    if (r == 0 && id)
        str_copy(vm->id, sizeof vm->id, id);
    else if (r == 0)
        r = vms_new_id(vm->id, err);
    vm_tap_from_id(vm->id, vm->tap);
    vm->mac = vm_mac_from_random(random);
    if (r == 0)
        r = pick_address(vms, &vm->ip, err);
    if (r < 0)
        return r;
    struct net_prefix pool = vms->config->network.address;
    vm->uid = vms->config->vm.uid_base + (vm->ip & ~net_mask(pool.length));
    return 0;
}

/* Two random names may be taken: then with others. */
static int claim(struct vms *vms, const char *id, struct vm *vm, const char *actor, struct err *err) {
    int r = -EEXIST;
    for (int i = 0; i < CLAIM_ATTEMPTS && r == -EEXIST; i++) {
        r = fill_names(vms, id, vm, err);
        if (r == 0)
            r = store_vm_claim(vms->store, vm, vms->config->vm.quota_per_user, actor, err);
    }
    return r;
}

static int fill_request(struct vms *vms, const struct vms_request *request, struct vm *vm, struct err *err) {
    const struct config_vm_type *type = &vms->config->vm.type[request->type];
    *vm = (struct vm){.type = request->type, .state = VM_STATE_CREATING, .reachable = -1};
    vm->created_ms = vm->state_since_ms = time_realtime_ms();
    str_copy(vm->user, sizeof vm->user, request->user);
    str_copy(vm->bridge, sizeof vm->bridge, vms->config->network.bridge);
    gethostname(vm->host, sizeof vm->host - 1);
    vm->memory_mib = request->memory_mib ? request->memory_mib : type->memory_mib;
    vm->vcpus = request->vcpus ? request->vcpus : type->vcpus;
    if (vm->memory_mib < 128 || vm->memory_mib > 1048576)
        return err_set(err, EINVAL, "vm.bad-size", "%u MiB of memory: from 128 to 1048576 can be had", vm->memory_mib);
    if (vm->vcpus > 32)
        return err_set(err, EINVAL, "vm.bad-size", "%u vCPUs: from 1 to 32 can be had", vm->vcpus);
    return 0;
}

/* The guest's address, its gateway and the bridge's own prefix, in the kernel's syntax.
 * Source: Documentation/admin-guide/nfs/nfsroot.rst, ip=. */
static void build_cmdline(struct vms *vms, const struct vm *vm, char ret_cmdline[CMDLINE_MAX]) {
    char ip[NET_IP_TEXT], gateway[NET_IP_TEXT], mask[NET_IP_TEXT];
    struct net_prefix pool = vms->config->network.address;
    net_format_ip(vm->ip, ip);
    net_format_ip(pool.address, gateway);
    net_format_ip(net_mask(pool.length), mask);
    snprintf(ret_cmdline, CMDLINE_MAX,
             "console=ttyS0 panic=-1 root=/dev/vda rootfstype=ext4 rw ip=%s::%s:%s:%.11s:eth0:off%s%s mc.vm=%s", ip,
             gateway, mask, vm->id, *vms->config->network.dns ? ":" : "", vms->config->network.dns, vm->id);
}

struct network_nic machine_nic(const struct vm *vm) {
    struct network_nic nic = {.mac = vm->mac, .ip = vm->ip, .owner_uid = vm->uid};
    str_copy(nic.tap, sizeof nic.tap, vm->tap);
    str_copy(nic.vm_id, sizeof nic.vm_id, vm->id);
    return nic;
}

/* Everything that a VM needs before its VMM. */
static int prepare(struct vms *vms, const struct vm *vm, const struct vmm_ops *ops, const struct image *image,
                   int *ret_tap_fd, struct err *err) {
    char folder[VMS_PATH_MAX];
    machine_user_folder(vms, vm->id, folder);
    if (mkdir(folder, 0700) < 0)
        return err_sys(err, errno, "vm.create", "make %s", folder);
    struct network_nic nic = machine_nic(vm);
    int r = ops->raw_disk ? image_clone_raw(image, folder, err) : image_clone(image, folder, err);
    if (r == 0)
        r = network_tap_create(vms->network, &nic, err);
    if (r == 0)
        r = network_neighbour_forget(vms->network, vm->ip, err);
    if (r == 0 && !ops->opens_tap)
        r = network_tap_open(vms->network, vm->tap, ret_tap_fd, err);
    return r;
}

static int start_vmm(struct machine *m, const struct vmm_choice *choice, const struct image *image, int tap_fd,
                     struct err *err) {
    char folder[VMS_PATH_MAX], cmdline[CMDLINE_MAX], netns_path[VMS_PATH_MAX];
    machine_user_folder(m->vms, m->vm.id, folder);
    int netns_fd = network_namespace(m->vms->network, netns_path, sizeof netns_path);
    build_cmdline(m->vms, &m->vm, cmdline);
    struct vmm_spec spec = {.vm = &m->vm,
                            .folder = folder,
                            .kernel = image->kernel,
                            .initrd = image->initrd,
                            .vmlinux = image->vmlinux,
                            .cmdline = cmdline,
                            .tap_fd = tap_fd,
                            .netns_fd = netns_fd,
                            .netns_path = netns_path};
    pid_t pid;
    int r = choice->ops->start(&m->vms->config->vm, &spec, &pid, &m->pidfd, err);
    if (r < 0)
        return r;
    m->vm.pid = pid;
    if (proc_start_time(pid, &m->vm.pid_start) < 0)
        return err_set(err, ESRCH, "vm.create", "the VMM ended at once: see vmm.log in %s", folder);
    return 0;
}

static int run_steps(struct machine *m, const struct vmm_choice *choice, const struct image *image, const char *actor,
                     struct err *err) {
    _cleanup_close_ int tap_fd = -1;
    int r = prepare(m->vms, &m->vm, choice->ops, image, &tap_fd, err);
    if (r == 0)
        r = start_vmm(m, choice, image, tap_fd, err);
    if (r == 0)
        r = machine_change(m, VM_EVENT_STARTED, actor, "", err);
    m->is_fresh = true;
    if (r == 0)
        r = machine_watch(m, err);
    return r;
}

int vms_create(struct vms *vms, const struct vms_request *request, const char *actor, struct vm *ret_vm,
               struct err *err) {
    struct image image;
    struct vmm_choice choice = {0};
    struct vm vm = {0};
    int r = fill_request(vms, request, &vm, err);
    if (r == 0)
        r = network_check_room(vms->network, err);
    if (r == 0)
        r = vmm_choose(&vms->config->vm, &choice, err);
    if (r == 0)
        r = image_open(vms->image_dir, &image, err);
    if (r < 0)
        return r;
    str_copy(vm.image, sizeof vm.image, image.name);
    str_copy(vm.vmm, sizeof vm.vmm, choice.ops->name);
    r = claim(vms, request->id, &vm, actor, err);
    if (r < 0)
        return r;
    struct machine *m = machine_new(vms, &vm);
    if (!m)
        return err_sys(err, ENOMEM, "vm.create", "create %s", vm.id);
    r = run_steps(m, &choice, &image, actor, err);
    if (r < 0) {
        err_prefix(err, "create %s", vm.id);
        machine_fail(m, "controller", err ? err->detail : "a step of its creation failed");
        return r;
    }
    *ret_vm = m->vm;
    return 0;
}

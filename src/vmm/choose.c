#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "vmm/vmm.h"

/* Whether a stock guest kernel runs on this host's KVM. That /dev/kvm opens is not enough: some clouds offer a KVM
 * without hardware behind it (pvm), on which only kernels made for it boot, and others hang at their first
 * instruction. The CPU's own flags tell. Return: NULL, or why not. */
static const char *kvm_obstacle(void) {
    _cleanup_close_ int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? "/dev/kvm does not exist" : "/dev/kvm cannot be opened";
    _cleanup_free_ char *cpuinfo = NULL;
    if (file_read("/proc/cpuinfo", 16U << 20, &cpuinfo, NULL) < 0)
        return "/proc/cpuinfo cannot be read";
    if (!strstr(cpuinfo, " vmx") && !strstr(cpuinfo, " svm"))
        return "/dev/kvm opens, but the CPU has neither vmx nor svm, so a stock kernel does not boot on it";
    return NULL;
}

static int choose_accel(const struct config_vm *config, struct vmm_choice *choice, struct err *err) {
    const char *obstacle = kvm_obstacle();
    bool kvm = strcmp(config->accel, "kvm") == 0 || (strcmp(config->accel, "auto") == 0 && !obstacle);
    if (kvm && obstacle) {
        err_set(err, ENODEV, "vmm.unusable", "[vm] accel = kvm, but %s", obstacle);
        return err_hint(err, "use accel = auto, which falls back to emulation (TCG)");
    }
    str_copy(choice->accel, sizeof choice->accel, kvm ? "kvm" : "tcg");
    if (strcmp(config->accel, "auto") != 0)
        snprintf(choice->reason, sizeof choice->reason, "QEMU with %s: the configuration says so", kvm ? "KVM" : "TCG");
    else
        snprintf(choice->reason, sizeof choice->reason, "QEMU with %s: %s", kvm ? "KVM" : "TCG",
                 kvm ? "/dev/kvm is usable" : obstacle);
    return 0;
}

int vmm_choose(const struct config_vm *config, struct vmm_choice *ret_choice, struct err *err) {
    struct vmm_choice choice = {.ops = &vmm_qemu};
    if (access(config->qemu_binary, X_OK) < 0) {
        err_sys(err, errno, "vmm.unusable", "QEMU is not at %s", config->qemu_binary);
        return err_hint(err, "install the package qemu-system-x86, or set [vm] qemu_binary");
    }
    int r = choose_accel(config, &choice, err);
    if (r == 0)
        *ret_choice = choice;
    return r;
}

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "vmm/vmm.h"

#define CPUINFO_HEAD 8192 /* the first CPU's flags are in it; to make all of a large host's file takes milliseconds */

/* Whether a stock guest kernel runs on this host's KVM. That /dev/kvm opens is not enough: some clouds offer a KVM
 * without hardware behind it (pvm), on which only kernels made for it boot, and others hang at their first
 * instruction. The CPU's own flags tell. Return: NULL, or why not. */
static const char *kvm_obstacle(void) {
    _cleanup_close_ int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? "/dev/kvm does not exist" : "/dev/kvm cannot be opened";
    char cpuinfo[CPUINFO_HEAD + 1];
    _cleanup_close_ int info_fd = open("/proc/cpuinfo", O_RDONLY | O_CLOEXEC);
    ssize_t n = info_fd < 0 ? -1 : read(info_fd, cpuinfo, CPUINFO_HEAD);
    if (n <= 0)
        return "/proc/cpuinfo cannot be read";
    cpuinfo[n] = '\0';
    if (!strstr(cpuinfo, " vmx") && !strstr(cpuinfo, " svm"))
        return "/dev/kvm opens, but the CPU has neither vmx nor svm, so a stock kernel does not boot on it";
    return NULL;
}

/* Where a program is: what the configuration says, or the first of the usual places. Return: whether it is there. */
static bool find_program(const char *configured, const char *name, char ret_path[CONFIG_TEXT]) {
    static const char *const folders[] = {"/usr/local/bin", "/usr/bin"};
    if (*configured)
        return str_copy(ret_path, CONFIG_TEXT, configured) && access(configured, X_OK) == 0;
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        snprintf(ret_path, CONFIG_TEXT, "%s/%s", folders[i], name);
        if (access(ret_path, X_OK) == 0)
            return true;
    }
    *ret_path = '\0';
    return false;
}

static int choose_accel(const struct config_vm *config, const char *obstacle, const char *more,
                        struct vmm_choice *choice, struct err *err) {
    bool kvm = strcmp(config->accel, "kvm") == 0 || (strcmp(config->accel, "auto") == 0 && !obstacle);
    if (kvm && obstacle) {
        err_set(err, ENODEV, "vmm.unusable", "[vm] accel = kvm, but %s", obstacle);
        return err_hint(err, "use accel = auto, which falls back to emulation (TCG)");
    }
    str_copy(choice->accel, sizeof choice->accel, kvm ? "kvm" : "tcg");
    if (strcmp(config->accel, "auto") != 0)
        snprintf(choice->reason, sizeof choice->reason, "QEMU with %s: the configuration says so", kvm ? "KVM" : "TCG");
    else
        snprintf(choice->reason, sizeof choice->reason, "QEMU with %s: %s%s", kvm ? "KVM" : "TCG",
                 kvm ? "/dev/kvm is usable" : obstacle, more);
    return 0;
}

static int choose_qemu(const struct config_vm *config, const char *obstacle, const char *more,
                       struct vmm_choice *choice, struct err *err) {
    choice->ops = &vmm_qemu;
    str_copy(choice->binary, sizeof choice->binary, config->qemu_binary);
    if (access(config->qemu_binary, X_OK) < 0) {
        err_sys(err, errno, "vmm.unusable", "QEMU is not at %s", config->qemu_binary);
        return err_hint(err, "install the package qemu-system-x86, or set [vm] qemu_binary");
    }
    return choose_accel(config, obstacle, more, choice, err);
}

static int choose_firecracker(const struct config_vm *config, const char *why, const char *obstacle,
                              struct vmm_choice *choice, struct err *err) {
    choice->ops = &vmm_firecracker;
    str_copy(choice->accel, sizeof choice->accel, "kvm");
    if (!find_program(config->firecracker_binary, "firecracker", choice->binary)) {
        err_set(err, ENOENT, "vmm.unusable", "[vm] vmm = firecracker, but there is no Firecracker%s%s",
                *config->firecracker_binary ? " at " : " in /usr/local/bin and /usr/bin", config->firecracker_binary);
        return err_hint(err, "install Firecracker's release, set [vm] firecracker_binary, or use vmm = auto");
    }
    bool jailed = strcmp(config->jailer, "no") != 0 && find_program(config->jailer_binary, "jailer", choice->jailer);
    if (!jailed)
        *choice->jailer = '\0';
    if (!jailed && strcmp(config->jailer, "yes") == 0) {
        err_set(err, ENOENT, "vmm.unusable", "[vm] jailer = yes, but there is no jailer%s%s",
                *config->jailer_binary ? " at " : " in /usr/local/bin and /usr/bin", config->jailer_binary);
        return err_hint(err, "it is part of Firecracker's release; jailer = auto starts Firecracker without it");
    }
    snprintf(choice->reason, sizeof choice->reason, "Firecracker %s: %s%s%s%s",
             jailed ? "in its jailer" : "without jailer", why, obstacle ? " (but " : "", obstacle ? obstacle : "",
             obstacle ? ": it will not start a machine)" : "");
    return 0;
}

int vmm_choose(const struct config_vm *config, struct vmm_choice *ret_choice, struct err *err) {
    struct vmm_choice choice = {0};
    char path[CONFIG_TEXT];
    const char *obstacle = kvm_obstacle();
    bool can_auto = strcmp(config->vmm, "auto") == 0 && strcmp(config->accel, "tcg") != 0;
    bool installed = find_program(config->firecracker_binary, "firecracker", path);
    int r;
    if (strcmp(config->vmm, "firecracker") == 0)
        r = choose_firecracker(config, "the configuration says so", obstacle, &choice, err);
    else if (can_auto && !obstacle && installed)
        r = choose_firecracker(config, "it is installed and /dev/kvm is usable", NULL, &choice, err);
    else
        r = choose_qemu(config, obstacle, can_auto && !installed ? ", and Firecracker is not installed" : "", &choice,
                        err);
    if (r == 0)
        *ret_choice = choice;
    return r;
}

const struct vmm_ops *vmm_find(const char *name) {
    static const struct vmm_ops *const all[] = {&vmm_qemu, &vmm_firecracker};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (strcmp(all[i]->name, name) == 0)
            return all[i];
    return NULL;
}

/* A virtual machine monitor as a small table of operations: what the lifecycle needs of one, whichever it is. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "loop/loop.h"
#include "model/config.h"
#include "model/vm.h"

/* What a VMM is started with. Descriptors stay the caller's. */
struct vmm_spec {
    const struct vm *vm;
    const char *folder;          /* the VM's own, in which base.ext4 and disk.qcow2 lie; of root alone */
    const char *kernel, *initrd; /* paths */
    const char *cmdline;         /* the kernel's */
    int tap_fd;
};

struct vmm_ops {
    const char *name;

    /* Starts it; the machine runs at once. Writes vm-config.json, console.log and vmm.log into the folder. Return: 0
     * with the process (the caller owns the pidfd), or -errno with nothing left running. */
    int (*start)(const struct config_vm *config, const struct vmm_spec *spec, pid_t *ret_pid, int *ret_pidfd,
                 struct err *err);

    /* Asks the guest to shut down (ACPI power button). Best effort and without waiting: a guest need not obey. */
    void (*ask_shutdown)(struct loop *loop, const char *folder);
};

/* What the configuration and the host come to: "qemu", with the accelerator and the reason for both in words. */
struct vmm_choice {
    const struct vmm_ops *ops;
    char accel[8];    /* kvm or tcg */
    char reason[256]; /* "QEMU with TCG: /dev/kvm does not exist" */
};

/* Errors: "vmm.unusable" when what the configuration asks for cannot be had, with what is missing. */
int vmm_choose(const struct config_vm *config, struct vmm_choice *ret_choice, struct err *err);

extern const struct vmm_ops vmm_qemu;

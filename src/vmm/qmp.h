/* The host's end of QEMU's machine protocol: one conversation for as long as the VM is looked after, because QEMU speaks
 * to one client at a time. It hears what QEMU says by itself (vmm_news_fn) and takes a few commands.
 *
 * QEMU outlives the daemon, and need not listen yet when it has just begun: a conversation that cannot be had, or that
 * breaks off, is begun anew each second until it is freed. What is said is data of a process that may have been taken
 * over by its guest: bounded, and checked for its types.
 * Source: QEMU, docs/interop/qmp-spec.txt, qapi/block-core.json (BLOCK_IO_ERROR), qapi/run-state.json. */
#pragma once

#include "vmm/vmm.h"

#define QMP_SOCKET "qmp.sock"

/* folder: the VM's own. news is called on the loop's thread, never from in here, and may free the watch.
 * Return: 0 or -errno; that nobody answers yet is no error. */
int qmp_watch(struct loop *loop, const char *folder, vmm_news_fn *news, void *userdata, struct vmm_watch **ret_watch,
              struct err *err);

enum qmp_command {
    QMP_CONT,
    QMP_POWERDOWN,
};

/* Sends a command, or keeps it until QEMU answers. How it went is seen by what QEMU says next. */
void qmp_command(struct vmm_watch *watch, enum qmp_command command);

/* One command to a QEMU over its machine protocol, without waiting for it.
 * Source: QEMU, docs/interop/qmp-spec.txt. */
#pragma once

#include "loop/loop.h"

#define QMP_SOCKET "qmp.sock"

/* Connects to the socket in the VM's folder, negotiates and sends the command (a name without arguments). Everything that goes
 * wrong, and a QEMU that does not answer within timeout_ms, ends it silently: the caller watches the process. */
void qmp_send(struct loop *loop, const char *folder, const char *command, int timeout_ms);

/* The memory of a VM that is hibernated: a folder in the VM's own, with what the VMM wrote and a manifest of it.
 *
 *     saved.tmp/    being written, or being thrown away: never loaded
 *     saved/        whole: its files are synced, their digests are in saved.json, and only then it got this name
 *
 * It fits the disk as that was when it was made, and only once: a guest that goes on changes its disk. So it is dropped (one
 * rename) before the guest goes on, and nothing in here is ever loaded twice. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "model/vm.h"
#include "vmm/vmm.h"

#define SAVED_WHOLE "saved"
#define SAVED_BEGUN "saved.tmp"

/* Whether there is room for that much memory in folder, all of it, with some to spare for the others' disks.
 * Error: "disk.no-room" -ENOSPC. */
int saved_check_room(const char *folder, uint64_t memory_mib, struct err *err);

/* Makes an empty SAVED_BEGUN, in the place of one that a crash left. Any thread, as all of these. */
int saved_begin(const char *folder, struct err *err);

/* What saved_begin() began is whole: digests, manifest, disk synced, then the name. version, accel: of its VMM.
 * *ret_bytes: how much room it takes. */
int saved_finish(const char *folder, const struct vm *vm, const char *version, const char *accel, uint64_t *ret_bytes,
                 struct err *err);

bool saved_is_whole(const char *folder);

/* Holds the manifest against the VM, its disk and the VMM that would load it.
 * Errors: "saved.none", "saved.broken", "saved.other" (names what is another now). */
int saved_check(const char *folder, const struct vm *vm, const char *accel, char ret_version[VMM_VERSION_MAX],
                struct err *err);

/* And the files against the manifest: reads all of them. Nothing is loaded before. Error: "saved.broken" (names the file). */
int saved_check_files(const char *folder, struct err *err);

/* The memory's file, open: its blocks are free only when that is closed, which takes long. Return: the caller's, or -1. */
int saved_hold(const char *folder);

/* Both folders go; what was whole is not any more as soon as this begins. Return: 0, or -errno with it still whole. */
int saved_drop(const char *folder, struct err *err);

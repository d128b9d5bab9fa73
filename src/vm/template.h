/* A template: a VM of a type that has booted and settled, kept as files, from which any number of VMs of that type begin where it
 * stopped. STATE/templates/<type>-<vm id>/ holds
 *
 *     template.json   what it is, and digests: by which it is known whether it still fits
 *     ram             the guest's memory, sparse
 *     …               the rest of the machine and its disk, as its VMM has them: template_layout.h
 *
 * A folder whose name ends in .tmp is being made, or was when a daemon died: never loaded, and removed.
 *
 * Nobody, a VMM that its guest has taken over included, can change what the next VM begins with. Firecracker opens the memory that
 * it loads for reading alone and maps it privately: so it is root's file, which others may read, held against its digest when a
 * daemon takes it up; who loads it finds it in its folder for as long as it loads. QEMU opens its memory for writing even where it
 * maps it privately, so a file could not be given to it without that right: the file is read into a memfd once, held against its
 * digest on the way, and sealed then. Source: memfd_create(2), fcntl(2), F_SEAL_WRITE: private mappings may be written to. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "image/image.h"
#include "vm/vms.h"

#define TEMPLATE_NAME_MAX 64
#define TEMPLATE_RAM "ram"
#define TEMPLATE_STATE "state"
#define TEMPLATE_OVERLAY "overlay.qcow2"

struct template {
    char name[TEMPLATE_NAME_MAX]; /* of its folder */
    char folder[VMS_PATH_MAX];
    char image[96];
    const struct vmm_ops *ops; /* of its VMM */
    char version[VMM_VERSION_MAX];
    char accel[8];
    enum vm_type type;
    uint32_t memory_mib, vcpus;
    uint64_t disk_bytes;
    uint64_t ram_bytes; /* of its memory, what is not zero */
    uint64_t bytes;     /* on the disk, all of it */
    int64_t made_ms;    /* real time */
    int64_t took_ms;
    int memory_fd; /* sealed, or the file itself opened for reading; the template's own; -1: it is not loaded */
};

/* What a VM of a type would be here and now, and so a template of it has to be. */
struct template_wish {
    enum vm_type type;
    struct image image;
    char image_digest[65]; /* of its manifest, which has the digests of its parts */
    struct vmm_choice choice;
    char shape[VMM_SHAPE_TEXT];
    uint32_t memory_mib, vcpus;
    const atomic_bool *is_unwanted; /* its memory is not written or read to its end then; NULL: nobody asks that */
};

/* Error: "warm.not-here" where the image cannot; those of vmm_choose() and vms_open_image(). */
int template_wish(struct vms *vms, enum vm_type type, struct template_wish *ret_wish, struct err *err);

/* The template that fits, loaded: its memory is read. Those of the type that do not fit are removed, with a word in *ret_removed
 * about the last one; empty: there was none. Blocks; any thread, as all that follow. Errors: "template.none"; "template.unwanted",
 * and then it is there as before. */
int template_open(const char *state_dir, const struct template_wish *wish, struct template *ret_template,
                  char ret_removed[VMS_LINE_MAX], struct err *err);

/* A file for a template's memory, of that size, where its VMM does not write it itself (vmm_ops.maps_saved). */
int template_memory_new(uint32_t memory_mib, int *ret_fd, struct err *err);

/* Makes a template of a folder that ends in .tmp, with what the machine that was saved there has left, which has ended: its memory is
 * sealed or root's, digests, manifest, synced, then the name. template: name, folder (as they will be), version, took_ms and, of
 * template_memory_new(), memory_fd are set. */
int template_finish(struct template *template, const struct template_wish *wish, struct err *err);

/* Puts what a VM of this template needs into its folder: disk, image, and the machine's state in TEMPLATE_STATE, until
 * template_forget_state(). */
int template_clone(const struct template *template, const char *folder, struct err *err);
void template_forget_state(const char *folder);

/* Removes what was being made when a daemon died. release: called before, for what of it is no file; may be NULL. */
typedef int template_release_fn(void *userdata, enum vm_type type, const char *vm_id, const char *folder);
void template_sweep(const char *state_dir, template_release_fn *release, void *userdata);

/* Removes a template that cannot be used. Its VMs have what they need of it. */
void template_remove(const struct template *template);

/* Lets go of its memory. Takes one without. */
void template_close(struct template *template);

/* STATE/templates/NAME, with a suffix. */
void template_folder(const char *state_dir, const char *name, const char *suffix, char ret_path[VMS_PATH_MAX]);

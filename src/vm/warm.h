/* Warm start: which templates (template.h) there are for the VMs of this host, and when one is made. One a type, for VMs of the size
 * that is configured for it; a VM of another size starts cold. It is looked for when the daemon starts and whenever the image is
 * another; where there is none it is made in the background, one at a time, when no VM is on its way up or down. */
#pragma once

#include "vm/machine.h"
#include "vm/template.h"

struct warm;

/* Removes what a daemon that died was making. */
int warm_new(struct vms *vms, struct warm **ret_warm, struct err *err);

/* Breaks off what is being made. Takes NULL. */
void warm_free(struct warm *warm);

/* To be called now and then, on the loop's thread, as all of these. */
void warm_check(struct warm *warm);

/* A VM is about to be made, or, vm NULL, is on its way back and counted already: where the host has not the room for it and a
 * template that is being made, that is given up. Takes a warm that is NULL: the daemon ends. */
void warm_yield(struct warm *warm, const struct vm *vm, uint32_t overhead_mib);

/* The template from which this VM can begin. It is the caller's: template_close(). Return: false where there is none, with why in
 * words; empty where warm start is off. */
bool warm_take(struct warm *warm, const struct vm *vm, const struct image *image, const struct vmm_choice *choice,
               struct template *ret_template, char ret_why[VMS_LINE_MAX]);

/* Whether there is one of that type; of this image, unless that is NULL. */
bool warm_is_from(const struct warm *warm, enum vm_type type, const char *image);

/* A VM began from it: failures before that do not count any more. Takes a warm that is NULL, as the next. */
void warm_worked(struct warm *warm, const struct template *template);

/* It could not be loaded: it goes, and another one is made; after three in a row none, until the image is another. */
void warm_failed(struct warm *warm, const struct template *template, const char *why);

/* Whether an image does what it should: boots it under the VMM and the network that VMs get here, with an address such
 * as they get, looks at it from outside (ping, the desktop's port) and from inside (its agent), ends it by its power
 * button, and adds to the image's report what is not as it should be.
 *
 * To be called where a bridge, a TAP and a VMM of its own disturb nobody: base/sandbox.h. It makes an event loop of its
 * own and returns when all is over; nothing that it started runs on then. */
#pragma once

#include <jansson.h>
#include <stdio.h>

#include "base/err.h"
#include "image/needs.h"
#include "image/report.h"

struct boot_params {
    const char *folder;   /* the image's, with its manifest; never written to but for the template of its overlays */
    const char *scratch;  /* of this check alone; what it leaves there is the caller's */
    enum image_type type; /* what it must be able to do */
    int timeout_ms;       /* for the whole boot; 0: three times what a VM of this type may take */
    void (*progress)(const char *step, unsigned percent, void *data); /* may be NULL */
    void *progress_data;
};

/* Findings go into the report, facts into *ret_facts (the caller decrefs), all of it safe to show:
 *   {"vmm","accel","reason","address","memory_mib","vcpus",
 *    "stages_ms":{"console","agent","network","services","desktop","window"},     from the VMM's start; null: never came
 *    "guest_ms":{"init","agent","services"},                                      from its kernel's start, by its word
 *    "units":[{"name","state"}],"window":null|"title","memory":{"bytes","available_bytes"},
 *    "shutdown_ms","ended","console_tail":["…"]}
 * Return: 0, whatever it found; -errno when nothing could be found out: "boot.impossible" (this is no image that can be
 * started), and what network, VMM and loop say. */
int boot_check(const struct boot_params *params, struct image_report *report, json_t **ret_facts, struct err *err);

/* The facts for a person; with_tail: the console's last lines too. */
void boot_facts_to_text(json_t *facts, bool with_tail, FILE *to);

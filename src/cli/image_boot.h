/* The boot of mctl image verify --boot. */
#pragma once

#include "cli/cli.h"
#include "image/needs.h"
#include "image/report.h"

/* Boots the image in folder (empty: there is none to boot), adds to the report what it found, and shows all of it.
 * timeout_ms: for the whole boot; 0: by its type. Nothing of it is left, whatever ends this process.
 * Return: the exit status; 128 and the signal where one ended it; CLI_REFUSED where this host does not allow it. */
int image_boot(struct cli *cli, const char *folder, enum image_type type, int timeout_ms, struct image_report *report,
               void (*progress)(const char *step, unsigned percent, void *data));

/* Shared by this folder's files alone. */
#pragma once

#include "image/image.h"

#define IMAGE_TEMPLATE_MAX (IMAGE_PATH_MAX + 48)

/* Where the empty overlay of that kind, "qcow2" or "ext4", for clones of image->disk_bytes is kept. */
void image_template(const struct image *image, const char *kind, char ret_path[IMAGE_TEMPLATE_MAX]);

/* Runs a program and waits for it: one that makes a small file, in about 20 ms. package: what to install where it is
 * missing. */
int image_run(const char *const *argv, const char *package, struct err *err);

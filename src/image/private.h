/* Shared by this folder's files alone. */
#pragma once

#include "image/image.h"

/* Runs a program and waits for it: one that makes a small file, in about 20 ms. package: what to install where it is
 * missing. */
int image_run(const char *const *argv, const char *package, struct err *err);

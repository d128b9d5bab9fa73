/* Shared by the doctor's fuzz targets: what is done with a saved case, whatever is in it. */
#pragma once

#include <stddef.h>

/* Loads it, judges it, tells it in JSON and in words, saves it and loads that again: the same findings must come out.
 * Aborts when they do not. */
void doctor_case_exercise(const char *text, size_t len);

/* A valid case, one of a few: a file of tests/fuzz/doctor/. Good for the process's life. */
const char *doctor_case_seed(unsigned number, size_t *ret_len);

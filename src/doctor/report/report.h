/* A case in JSON (schema "doctor/1", INTERFACE.md) and in words. Everything that came from elsewhere is escaped. */
#pragma once

#include <stdio.h>

#include "doctor/doctor.h"

/* One document, written target by target: as one tree of jansson's, a sweep of 1,000 TAPs takes 20 MB. */
void report_json(const struct doctor_case *c, FILE *to);

/* One line a finding; with explain the way as one line a hop and the story. */
void report_text(const struct doctor_case *c, bool explain, bool colour, FILE *to);

/* Writes a file whole or not at all; into what is no file (a pipe, /dev/null) it writes as it is. code: of the error,
 * which names the file and says what to do. */
int report_write_file(const char *path, const void *data, size_t len, const char *code, struct err *err);

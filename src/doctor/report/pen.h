/* Shared by text.c and explain.c: paper, ink, and lines that are not wider than the paper. */
#pragma once

#include <stdio.h>

#include "doctor/doctor.h"

#define RED "\033[1;31m"
#define GREEN "\033[32m"
#define YELLOW "\033[33m"
#define BOLD "\033[1m"
#define DIM "\033[2m"

struct pen {
    FILE *to;
    bool colour;
    int width; /* columns */
};

/* Text as it is meant, in colour where there is a terminal. */
void pen_ink(const struct pen *pen, const char *colour, const char *text);

/* Text that came from elsewhere: escaped. */
void pen_say(const struct pen *pen, const char *text);

/* A paragraph, escaped, broken between words. indent: columns in front of each line; head: in front of the first, within
 * the indent, ours. colour "" for none. */
void pen_paragraph(const struct pen *pen, int indent, const char *head, const char *colour, const char *text);

/* The command line that looks at this target again, without what comes behind: "mctl doctor --tap …". */
void pen_command(const struct doctor_case *c, uint32_t target, struct strbuf *ret);

/* One target with its way and its story (explain.c). */
void pen_explain(const struct pen *pen, const struct doctor_case *c, uint32_t target);

/* What can be done about a finding, a line each (text.c). */
void pen_remedy(const struct pen *pen, const struct doctor_case *c, uint32_t target, const struct finding *f);

/* "fc-vm-1  192.168.0.2  NOT REACHABLE" (text.c) */
void pen_target(const struct pen *pen, const struct doctor_case *c, uint32_t target);

/* Whether it was there and is mended. */
static inline bool finding_is_mended(const struct finding *f) {
    return f->applied && f->proven == 1;
}

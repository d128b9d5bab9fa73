/* What `mctl doctor` was asked for; shared by doctor.c and doctor_options.c. */
#pragma once

#include "cli/cli.h"
#include "doctor/doctor.h"

struct doctor_request {
    struct doctor_options options;
    bool explain, watch, help;
    const char *save, *from, *capture; /* paths; NULL: none */
    const char *repair;                /* NULL: none; "": what is safe; else an id */
    const char *undo;                  /* a journal's id; NULL: none */
    const char *journal;               /* folder */
};

/* Reads the command line. Return: 0, or the exit status after the mistake was shown. */
int doctor_request_parse(struct cli *cli, int argc, char **argv, struct doctor_request *r);

void doctor_request_help(FILE *to);

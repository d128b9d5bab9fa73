/* Asks the guests' agents in a run of the doctor. */
#pragma once

#include "doctor/doctor.h"

/* Of the targets that have a record, as many as collect/guest.h takes; into c->before or c->after. socket: of the
 * daemon, "" or NULL where nobody is to be asked. */
void doctor_ask_guests(struct doctor_case *c, const char *socket, struct snapshot *into);

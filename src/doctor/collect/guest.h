/* The guests' own word, asked of the daemon that holds the channels to their agents (doc/openapi.yaml,
 * /api/vms/{id}/agent). Where there is no daemon, or no agent, a row says so and nothing else changes. */
#pragma once

#include <jansson.h>

#include "doctor/snapshot.h"

#define GUEST_ASKED_MAX 24 /* guests of one run */

struct guest_wish {
    const char *vm_id, *tap;
    bool units;       /* the service does not answer: how are its units? */
    const char *unit; /* the one that has the service; NULL: not known */
};

/* Asks all of them at the same time, waits 2 s at most for each answer (units 6 s), and adds a row of guests for each.
 * socket: of the daemon's API; NULL or "": there is none. */
void collect_guests(struct snapshot *s, const char *socket, const struct guest_wish *wishes, size_t count);

/* Pure: takes in what an agent answered to "network" (NULL: nothing), the health that the daemon last heard and the
 * answer to "units", whatever they may be. */
void guest_facts_take(struct snapshot *s, struct snap_guest *guest, const json_t *network, const json_t *health,
                      const json_t *units, const char *unit);

/* Its part for the packet filter: the member "firewall" of "network". */
void guest_firewall_take(struct snapshot *s, struct snap_guest *guest, const json_t *firewall);

/* One question to one guest's agent: POST /api/vms/{id}/agent. request is taken. *ret_ok is the object of "ok"; the
 * caller decrefs. Errors: "http.…", "guest.…" with the agent's own words, escaped, "agent.…", "daemon.answer". */
int guest_ask(const char *socket, const char *vm_id, json_t *request, int timeout_ms, json_t **ret_ok, struct err *err);

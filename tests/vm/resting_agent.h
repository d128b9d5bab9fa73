/* The agent in the guest that resting_vmm.c has not: answers what warm start and hibernation ask of one, and on request as no good
 * one would. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* By the number of its processors. */
enum agent_manner {
    AGENT_NEVER_ANSWERS = 6, /* identity.set */
    AGENT_REFUSES,
    AGENT_HANGS_UP,        /* the first time that it is asked who it is to be */
    AGENT_TALKS_RUBBISH,   /* instead of an answer */
    AGENT_TAKES_ALL_ALONG, /* its VMM ends with it */
};

typedef void agent_identity_fn(const uint8_t mac[6], const uint8_t ip[4]);

void agent_listen(int fd);
void agent_behave(int manner);

/* It is the copy of another machine, until identity.set has made it one of its own: then fn is called. */
void agent_is_copy(agent_identity_fn *fn);
bool agent_is_nobody(void);

/* To be polled for reading; -1: nobody can ask it. */
int agent_fd(void);
void agent_on_input(void);

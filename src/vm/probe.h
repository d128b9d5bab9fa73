/* Proves the path from the host to a guest by using it: one attempt, with a time limit and an answer in words. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "loop/loop.h"
#include "network/network.h"

enum probe_kind {
    PROBE_ICMP,    /* an echo request is answered */
    PROBE_TCP,     /* a connection to the port is accepted */
    PROBE_DESKTOP, /* the port speaks WebSocket, and RFB behind it: a desktop can be shown */
};

struct probe;

enum probe_answer {
    PROBE_SILENCE, /* nothing came back */
    PROBE_NO,      /* the guest answers, but not what it should */
    PROBE_YES,     /* the path works */
};

/* words say how it failed, such as "TCP 192.168.0.2:6080: connection refused: the guest answers,
 * but nothing listens there". The probe is over when it is called, and is freed by it. */
typedef void probe_done_fn(void *userdata, enum probe_answer answer, const char *words);

/* Return: 0 (done will be called once, never from inside this call) or -errno. */
int probe_start(struct loop *loop, struct network *network, enum probe_kind kind, uint32_t ip, uint16_t port,
                int timeout_ms, probe_done_fn *done, void *userdata, struct probe **ret_probe, struct err *err);

/* Ends it without calling done. Takes NULL. */
void probe_free(struct probe *probe);

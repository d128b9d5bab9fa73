/* Captures as pcapng, for Wireshark: every interface named, nanoseconds, direction, comments at the packets that matter.
 *
 * Source: draft-ietf-opsawg-pcapng (sections 4.1 SHB, 4.2 IDB, 4.3 EPB, 3.5 options). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "doctor/probe/probe.h"

#define PCAPNG_MAX (64 * 1024 * 1024) /* bytes of a file */

struct pcapng_interface {
    const char *name;
    const char *description; /* NULL: none */
};

struct pcapng_packet {
    uint32_t interface; /* index */
    int64_t at_ns;      /* real time */
    bool outgoing;      /* the host gives it to the device */
    const uint8_t *data;
    uint32_t kept, length; /* bytes that are here, bytes on the wire */
    const char *comment;   /* UTF-8; NULL: none */
};

/* A whole file in memory, which the caller frees. Return: 0, -EINVAL for a packet of no interface, -E2BIG, -ENOMEM. */
int pcapng_encode(const struct pcapng_interface *interfaces, size_t interface_count,
                  const struct pcapng_packet *packets, size_t packet_count, uint8_t **ret, size_t *ret_len);

/* What a probe has seen: bridge, TAPs and whatever else had a frame of it, side by side. A comment says which question
 * or answer a packet is, and where the last one of a question without an answer was seen.
 * Error: "doctor.capture". */
int pcapng_write_probe(const struct probe_result *result, const char *path, struct err *err);

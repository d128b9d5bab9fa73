/* What Firecracker's metrics say about the VM's network. Pure.
 * Source: Firecracker, docs/metrics.md: one JSON object a line, each counter counts since the line before; a line a
 * minute and one at every FlushMetrics. src/vmm/src/devices/virtio/net/metrics.rs for the counters. */
#pragma once

#include <stddef.h>

#include "vmm/vmm.h"

#define FC_METRICS_TAIL (512 * 1024) /* bytes of the file that are looked at: about an hour */

/* text: the file or its tail; a line that is cut, or not JSON, is passed over. Empty words: there was no line.
 * is_clone: the machine was loaded from a template's (FC_CLONE_MARK). It has another MAC than Firecracker knows, and had a TAP
 * that was down until it was a machine of its own: neither is a fault then. */
void fc_metrics_tell(const char *text, size_t len, bool is_clone, char ret_words[VMM_WORDS_MAX]);

/* What Firecracker's metrics say about the VM's network. Pure.
 * Source: Firecracker, docs/metrics.md: one JSON object a line, each counter counts since the line before; a line a
 * minute and one at every FlushMetrics. src/vmm/src/devices/virtio/net/metrics.rs for the counters. */
#pragma once

#include <stddef.h>

#include "vmm/vmm.h"

#define FC_METRICS_TAIL (512 * 1024) /* bytes of the file that are looked at: about an hour */

/* text: the file or its tail; a line that is cut, or not JSON, is passed over. Empty words: there was no line. */
void fc_metrics_tell(const char *text, size_t len, char ret_words[VMM_WORDS_MAX]);

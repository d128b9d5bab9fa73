/* nftables by libnftables: text in, one atomic transaction.
 *
 * libnftables ends the process when it runs out of descriptors or cannot open its socket, so both are tried before it
 * is called. One thread at a time may be in here: the owner locks.
 *
 * Source: nft(8), libnftables(3).
 */
#pragma once

#include <stdbool.h>

#include "base/err.h"
#include "base/str.h"

#define NFT_OUTPUT_MAX (1024 * 1024) /* bytes of a listing that are kept */

/* Whether the namespace's kernel has nftables and this process the descriptors to speak to it. Return: 0 or -errno. */
int nft_check(int nsfd);

/* Runs commands in a namespace: all of them or none. What they print is added to output (may be NULL).
 * Errors: "nft.unavailable" with nft_check()'s errno; "nft.refused" -EINVAL with nft's words. */
int nft_run(int nsfd, const char *commands, struct strbuf *output, struct err *err);

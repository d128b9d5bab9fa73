/* What is remembered of remote addresses: how many connections each has and how many requests it may make. A table of
 * fixed size, so that many addresses cost no more than few. Pure: the caller says what time it is. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

struct http_remotes;
struct http_remote;

/* entries must be greater than the number of connections that can be open. Return: 0 or -ENOMEM. */
int http_remotes_new(size_t entries, struct http_remotes **ret_table);
void http_remotes_free(struct http_remotes *table);

/* Counts one more connection of that address (IPv4, or the /64 of an IPv6 one: a host owns all of it). An address that
 * has no connection is forgotten when its entry is needed, the longest unseen first.
 * Return: the entry, valid until http_remotes_close(); NULL when the address is of another family or all entries have
 * connections. */
struct http_remote *http_remotes_open(struct http_remotes *table, const struct sockaddr *addr, int64_t now_ms);
void http_remotes_close(struct http_remote *remote);

unsigned http_remote_connections(const struct http_remote *remote);

/* Takes one request from the address's bucket, which holds burst and fills with per_second.
 * Return: 0, or the whole seconds (at least 1) until there is one again. */
unsigned http_remote_take(struct http_remote *remote, unsigned per_second, unsigned burst, int64_t now_ms);

/* What a request's head must look like before anybody acts on it: one framing, one host, no byte with two readings.
 * Pure. Source: RFC 9110 (5.5, 7.2, 10.1.1), RFC 9112 (3, 5, 6, 11.2). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HTTP_FIELDS_MAX 100
#define HTTP_METHOD_BYTES 20

struct http_field {
    const char *name, *value; /* NUL-terminated; the value as it stood behind the colon, without leading space */
};

struct http_head {
    const char *method;
    const char *target;
    const char *version; /* "HTTP/1.1" */
    const struct http_field *fields;
    size_t n_fields;
    size_t bytes; /* request line and fields, as sent */
};

struct http_framing {
    bool chunked;
    uint64_t content_length; /* 0 when chunked or when there is no body */
};

/* Why a head is not taken. */
struct http_refusal {
    int status;
    const char *code;
    const char *detail;
};

/* Return: 0, or -EPROTO with *ret_refusal. */
int http_strict_check(const struct http_head *head, size_t header_bytes, size_t body_bytes,
                      struct http_framing *ret_framing, struct http_refusal *ret_refusal);

/* The first value of that name, NULL without one; *ret_count (may be NULL): how many there are. */
const char *http_field_find(const struct http_field *fields, size_t n, const char *name, unsigned *ret_count);

bool http_is_token(const char *s);       /* RFC 9110, 5.6.2; not empty */
bool http_is_field_value(const char *s); /* no control byte but a tab */

/* Whether token is one of the comma-separated ones of list, whatever the case. */
bool http_list_has(const char *list, const char *token);

/* Problem documents. Source: RFC 9457. */
#pragma once

#include <stddef.h>

/* {"type":"about:blank","title","status","detail","code","hint"}; title NULL: the status's phrase; hint NULL or empty:
 * left out. Text that is not UTF-8 is escaped. The caller frees. Return: NULL without memory. */
char *http_problem_json(int status, const char *code, const char *title, const char *detail, const char *hint,
                        size_t *ret_len);

/* A whole answer as bytes, for a connection that is closed behind it. retry_after_s: 0 for none. The caller frees. */
char *http_problem_answer(int status, const char *code, const char *detail, unsigned retry_after_s, size_t *ret_len);

/* What a login tool's output tells, without repeating any of it: it may hold codes and tokens. Pure. */
#pragma once

#include <stddef.h>

#define LOGIN_CODE_MAX 32

/* Why the tool gave up, as a sentence of ours, where its output holds a word that is known: the error codes of RFC 6749 and
 * RFC 8628, and what says that the provider could not be reached. Return: NULL where nothing is known. */
const char *login_words_reason(const char *output, size_t len);

/* The last code in it that a person is to type at the provider: capitals and digits in groups of at least three, joined by
 * hyphens ("WDJB-MJHT"). Source: RFC 8628 (6.1). Return: its length, 0 where there is none. */
size_t login_words_code(const char *output, size_t len, char ret_code[LOGIN_CODE_MAX]);

/* The next https address behind *at that ends in white space or a control byte. Return: its length, 0 at the end. */
size_t login_words_address(const char *output, size_t len, size_t *at, const char **ret_address);

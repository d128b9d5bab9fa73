/* A provider's profile: how its tool logs in, where that leaves its files, how to tell that the login works, and which
 * addresses the browser may be sent to. Data of the operator's: session/providers.h reads the files. No I/O here. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "model/session.h"

#define PROVIDER_WORDS_TEXT 1024
#define PROVIDER_WORDS_MAX 32
#define PROVIDER_FILES_MAX 8
#define PROVIDER_HOSTS_MAX 16
#define PROVIDER_URL_MAX 4096

enum provider_flow {
    PROVIDER_FLOW_NONE,               /* a desktop, and nobody logs in */
    PROVIDER_FLOW_AUTHORIZATION_CODE, /* with PKCE and a loopback redirect. Source: RFC 8252, RFC 7636 */
    PROVIDER_FLOW_DEVICE_CODE,        /* Source: RFC 8628 */
    PROVIDER_FLOW_PASTE,              /* the user carries a code from the page to the tool */
};
#define PROVIDER_FLOW_COUNT 4

/* When the tool says that it is logged in. */
enum provider_done {
    PROVIDER_DONE_EXIT,  /* the login command has ended with 0 */
    PROVIDER_DONE_FILES, /* all of its files are there: for a tool that goes on running */
};
#define PROVIDER_DONE_COUNT 2

/* Words, each ending in NUL, one behind the other. */
struct provider_words {
    unsigned count;
    size_t len;
    char text[PROVIDER_WORDS_TEXT];
};

struct provider_file {
    char path[128]; /* below the user's home, such as ".codex/auth.json" */
    uint32_t mode;
};

struct provider_host {
    char name[254];  /* lower case */
    bool subdomains; /* and not the name itself */
    uint16_t port;
};

struct provider {
    char name[SESSION_PROVIDER_MAX + 1];
    char title[64];
    bool enabled;
    enum provider_flow flow;
    struct provider_words command;     /* of the login; run by the agent, without a shell */
    struct provider_words environment; /* NAME=value */
    bool pty;                          /* the tool wants a terminal */
    enum provider_done done;
    struct provider_file files[PROVIDER_FILES_MAX];
    unsigned file_count;
    struct provider_words check; /* ends with 0 when the login works: a file that is there says nothing */
    uint32_t check_timeout_ms;
    struct provider_host hosts[PROVIDER_HOSTS_MAX];
    unsigned host_count;
};

const char *provider_flow_name(enum provider_flow flow);
const char *provider_done_name(enum provider_done done);

/* The i-th word; NULL behind the last. */
const char *provider_word(const struct provider_words *words, unsigned i);

/* 1 to 32 of a-z 0-9 -, the first a letter: the name of a profile's file, without ".conf". */
bool provider_name_is_valid(const char *name);

/* A profile in which nothing is set: not enabled. The name must be valid. */
void provider_init(struct provider *ret_provider, const char *name);

/* Sets one key; command, environment, file, check and host as doc/providers.d/README says, of which environment, file and
 * host may come again. Errors: "provider.unknown-key", "provider.bad-value" (with what would be right). */
int provider_set(struct provider *provider, const char *section, const char *key, const char *value, struct err *err);

/* What no single key can tell: an enabled profile with a login has a command, files and a check. */
int provider_check(const struct provider *provider, struct err *err);

/* Whether the provider's browser may be sent to url (len bytes, no NUL needed): https, one of the profile's hosts and ports,
 * no address literal, no user part, nothing that browsers read otherwise than we do (a backslash, white space, control bytes,
 * "https:/", percent signs in the host). Error: "url.refused" with the reason; url itself is never in it, because it may hold a
 * code or a token. Source: RFC 3986 (3.2), and the URL standard for what browsers do (host parsing, "ends in a number"). */
int provider_url_check(const struct provider *provider, const char *url, size_t len, struct err *err);

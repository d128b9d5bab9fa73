/* One session's login, in its browser VM, through the agent: the profile's tool is run, its addresses are opened on the desktop,
 * and when it says that it is logged in and the profile's check agrees, its files go into the vault.
 *
 * Theory of operation. The login waits for the agent, starts the tool as the desktop's user, and follows it:
 *
 *   the tool gives its $BROWSER an address ──▶ judged by the profile's hosts ──▶ opened in the desktop's Chromium
 *   it ends with 0, or (done = files) all its files are there ──▶ the check ends with 0 ──▶ files read ──▶ vault
 *
 * Addresses, codes and output are kept in memory alone, wiped with the login, and are in no error: what a person reads is a
 * sentence of ours. An agent that is lost takes the tool with it, and so does a daemon that ends: the login begins anew, but
 * where its tool had come to its end, or may have under an earlier daemon, the check is asked first. A guest that is busy or slow
 * is asked again for a while.
 *
 * Everything runs on the loop's thread. */
#pragma once

#include "loop/loop.h"
#include "model/provider.h"
#include "session/login_words.h"
#include "vault/vault.h"
#include "vm/vms.h"

struct login;

struct login_owner {
    /* The tool shows its user where to log in. */
    void (*begun)(void *userdata, const char *session_id);
    /* That came to nothing, and it begins anew. */
    void (*again)(void *userdata, const char *session_id, const char *why);
    /* Last, and once. err NULL: it works, and its credential is in the vault; else the detail is for people. Frees the login. */
    void (*ended)(void *userdata, const char *session_id, const struct err *err);
};

struct login_params {
    struct loop *loop;
    struct vms *vms;
    struct vault *vault;
    const struct provider *provider; /* copied */
    const char *session_id, *user, *vm_id;
    bool is_resumed;
    const struct login_owner *owner;
    void *userdata;
};

/* Nothing of the owner is called from in here. */
int login_new(const struct login_params *params, struct login **ret_login, struct err *err);

/* Ends the tool. Takes NULL. */
void login_free(struct login *login);

const char *login_session(const struct login *login);

/* Whether its user has done all that there is to do: what is left takes the check's time and a moment. */
bool login_is_done(const struct login *login);

/* How it is, for the session's page. url is secret: it goes to the page and nowhere else. */
struct login_view {
    enum provider_flow flow;
    const char *words; /* a sentence */
    const char *url;   /* NULL: none yet */
    size_t url_len;
    bool is_opened;                 /* on the desktop */
    char user_code[LOGIN_CODE_MAX]; /* of the device flow, empty: none yet */
    bool takes_code;                /* login_input() */
};
void login_look(const struct login *login, struct login_view *ret_view);

/* Gives the tool a line: the code that its user carries. Errors: "login.no-code" (-EPROTO), it waits for none; "login.bad-code"
 * (-EINVAL); "agent.busy". */
int login_input(struct login *login, const char *text, size_t len, struct err *err);

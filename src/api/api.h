/* The routes: HTTP to the rooms below and back. The table in routes.c says who may call what. */
#pragma once

#include "base/err.h"
#include "http/server.h"
#include "loop/loop.h"
#include "model/config.h"
#include "network/network.h"
#include "session/sessions.h"
#include "store/store.h"
#include "vault/vault.h"
#include "vm/vms.h"

struct api;

struct api_params {
    struct loop *loop;
    struct store *store;
    struct network *network;
    struct vms *vms;
    struct sessions *sessions;
    struct vault *vault;
    const struct config *config;
};

/* Reads the page's files and the admin token (made at the first start: a file of mode 0600, only its hash in the
 * store), and starts the relay. The pointers stay the caller's and must outlive it.
 * Errors: "api.web-missing", "api.token-file", and the relay's. */
int api_new(const struct api_params *params, struct api **ret_api, struct err *err);

/* Whether the page's files can be had. Error: "api.web-missing". */
int api_check_files(const char *web_dir, struct err *err);

/* Tells every browser that still waits for its desktop that the controller restarts, and then, after a second at the
 * latest, quits the loop: only while it runs can they be answered. */
void api_stop(struct api *api);

/* Tells every desktop that the controller restarts (1012), waits for that, and frees. The HTTP server must have been
 * freed before: its requests refer to the api. */
void api_free(struct api *api);

/* For http_server_new(). */
void api_handle(struct http_request *req, void *userdata);

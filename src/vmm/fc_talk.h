/* A conversation with one Firecracker over its API socket: requests in order, each answered before the next is sent, none
 * of them waited for. The first that is not answered with 2xx ends it, and Firecracker's own fault_message is told.
 * Source: firecracker.yaml (204 on success, {"fault_message"} on failure); HTTP/1.1 as RFC 9112 for an answer with a
 * Content-Length or without a body. */
#pragma once

#include <jansson.h>

#include "vmm/vmm.h"

#define FC_SOCKET "api.sock"
#define FC_REQUESTS_MAX 24
#define FC_PATH_MAX 128

struct fc_request {
    const char *method;
    char path[FC_PATH_MAX];
    json_t *body;        /* owned; NULL: none */
    bool skip;           /* it is not sent */
    bool may_refuse;     /* a refusal does not end the conversation */
    json_t **ret_answer; /* gets what a 2xx answer holds, which the caller decrefs; NULL: nobody wants it */
    /* Judges what a 2xx answer holds, and may mark those that follow; NULL: nothing is asked of it. Return: 0, or -errno
     * to end the conversation. */
    int (*check)(json_t *answer, struct fc_request *rest, size_t n_rest, struct err *err);
};

/* Takes the requests' bodies over, on failure too.
 * folder: where api.sock is. A symbolic link is followed here, and not below it.
 * uid, pid: who must have made the socket, pid 0: any process of the uid; another is not spoken to.
 * wait_for_socket: the process has just been started; else a socket that is not there is a failure at once.
 * timeout_ms: of all of it.
 * done: NULL where nobody wants to know. */
int fc_talk_start(struct loop *loop, const char *folder, uint32_t uid, pid_t pid, struct fc_request *requests, size_t n,
                  bool wait_for_socket, int timeout_ms, vmm_done_fn *done, void *userdata, struct vmm_talk **ret_talk,
                  struct err *err);

/* For requests that are not said after all. */
void fc_talk_drop(struct fc_request *requests, size_t n);

/* Pure: one answer at the head of data. Return: 1 with the status, where the body is and what the answer takes of data; 0:
 * not whole yet; -EPROTO: not an answer that is understood here. */
int fc_answer_parse(const char *data, size_t len, int *ret_status, size_t *ret_body, size_t *ret_body_len);

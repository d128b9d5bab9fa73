/* A console that is streamed as it grows. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/internal.h"
#include "base/fd.h"
#include "base/str.h"

#define FOLLOW_INTERVAL_MS 250
#define FOLLOW_CHUNK 16384
#define FOLLOW_START_BYTES 65536
#define CHUNKS_AT_ONCE 8 /* less than the server holds back for a client that does not read */
#define FOLLOWERS_MAX 64

struct follower {
    struct follower *next;
    struct api *api;
    struct http_request *req;
    char vm_id[VM_ID_TEXT];
    int fd; /* the log, which stays the same file when it becomes evidence */
    off_t at;
    struct api_credential by;
};

static void drop(struct follower *f) {
    for (struct follower **at = &f->api->followers; *at; at = &(*at)->next)
        if (*at == f) {
            *at = f->next;
            break;
        }
    fd_close(&f->fd);
    free(f);
}

static void on_gone(struct http_request *req, void *userdata) {
    drop(userdata);
}

/* Return: 1 more to come at once, 0 nothing new, -errno when the client was dropped. */
static int send_some(struct follower *f) {
    char chunk[FOLLOW_CHUNK];
    struct stat st;
    /* The head was cut out of a log that grew too long: go on at its new end. */
    if (fstat(f->fd, &st) == 0 && st.st_size < f->at)
        f->at = st.st_size;
    ssize_t n = pread(f->fd, chunk, sizeof chunk, f->at);
    if (n <= 0)
        return 0;
    f->at += n;
    int r = http_stream_write(f->req, chunk, (size_t)n);
    return r < 0 ? r : n == (ssize_t)sizeof chunk;
}

/* Return: whether the follower is still there. */
static bool follow_once(struct follower *f) {
    struct vm vm;
    bool ended = store_vm_get(f->api->store, f->vm_id, &vm, NULL) < 0 || vm_state_is_end(vm.state);
    int r = 1;
    for (int i = 0; r > 0 && i < CHUNKS_AT_ONCE; i++)
        r = send_some(f);
    if (r > 0 || (r == 0 && !ended))
        return true;
    struct http_request *req = f->req;
    drop(f);
    if (r >= 0)
        http_stream_end(req);
    return false;
}

static void on_timer(void *userdata) {
    struct api *api = userdata;
    for (struct follower *f = api->followers, *next; f; f = next) {
        next = f->next;
        follow_once(f);
    }
    if (api->followers)
        loop_timer_again(api->follow_timer, FOLLOW_INTERVAL_MS);
}

static int open_log(struct api *api, const struct vm *vm, int *ret_fd) {
    char folder[VMS_PATH_MAX], path[VMS_PATH_MAX + 16];
    vms_folder(api->vms, vm, folder);
    snprintf(path, sizeof path, "%s/console.log", folder);
    *ret_fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    return *ret_fd < 0 ? -errno : 0;
}

static unsigned count(struct api *api) {
    unsigned n = 0;
    for (struct follower *f = api->followers; f; f = f->next)
        n++;
    return n;
}

void api_follow_console(struct api *api, struct http_request *req, const struct vm *vm) {
    struct follower *f = count(api) < FOLLOWERS_MAX ? calloc(1, sizeof *f) : NULL;
    struct stat st;
    if (!f) {
        http_problem(req, 503, "console.busy", NULL, "too many consoles are followed already", NULL);
        return;
    }
    *f = (struct follower){.api = api, .req = req, .fd = -1, .by = api_credential(api)};
    str_copy(f->vm_id, sizeof f->vm_id, vm->id);
    if (open_log(api, vm, &f->fd) < 0 || fstat(f->fd, &st) < 0) {
        free(f);
        http_problem(req, 404, "console.none", NULL, "there is no console log of this VM", NULL);
        return;
    }
    f->at = st.st_size > FOLLOW_START_BYTES ? st.st_size - FOLLOW_START_BYTES : 0;
    f->next = api->followers;
    api->followers = f;
    http_request_defer(req, on_gone, f);
    struct http_response response = {.content_type = "text/plain; charset=utf-8"};
    if (http_stream_begin(req, 200, &response) < 0) {
        drop(f);
        return;
    }
    if (!follow_once(f))
        return;
    if (!api->follow_timer)
        loop_timer_new(api->loop, FOLLOW_INTERVAL_MS, on_timer, api, &api->follow_timer);
    else
        loop_timer_again(api->follow_timer, FOLLOW_INTERVAL_MS);
}

void api_follow_revoked(struct api *api, const struct api_credential *credential) {
    for (struct follower *f = api->followers, *next; f; f = next) {
        next = f->next;
        struct http_request *req = f->req;
        if (!api_credential_is(&f->by, credential))
            continue;
        drop(f);
        http_stream_end(req);
    }
}

void api_follow_free(struct api *api) {
    while (api->followers)
        drop(api->followers);
    loop_timer_free(api->follow_timer);
    api->follow_timer = NULL;
}

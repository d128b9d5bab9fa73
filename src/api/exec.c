/* `mctl vm exec`: a program in a guest, its streams over an upgraded connection. Both sides of the daemon speak the
 * same frames (agent/frame.h), so this is a relay that checks: the client's credit goes to the guest and the guest's to
 * the client, and no more waits here than the windows allow.
 *
 * The client sends a JSON frame with what to run (the members of the agent's "exec" without "op"), then AGENT_STDIN,
 * {"signal"}, {"resize"}; it gets AGENT_STDOUT and AGENT_STDERR, then {"ok":{"status"}}, {"ok":{"signal"}} or {"error"}.
 * Session and id are 1 all the time. When the client goes, the program is ended. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent/outbox.h"
#include "api/internal.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"

#define PROTOCOL "master-controller-exec"
#define EXECS_MAX 64
#define READ_SIZE 16384
/* Two streams' windows with their headers (a guest may send a byte a frame), and the last word. */
#define OUT_MAX ((size_t)32 * 1024 * 1024)
#define STALL_MS 30000 /* how long the last word may wait for a client that does not read */

struct exec {
    struct exec *next;
    struct api *api;
    struct agent_job *job;
    int fd;
    sd_event_source *io;
    struct loop_timer *stall;
    struct agent_decoder in;
    struct agent_outbox out;
    bool is_ending; /* the last word is in the outbox */
    char vm_id[VM_ID_TEXT], actor[STORE_ACTOR_MAX];
    struct api_credential by;
};

static void drop(struct exec *x) {
    for (struct exec **at = &x->api->execs; *at; at = &(*at)->next)
        if (*at == x) {
            *at = x->next;
            break;
        }
    agent_job_cancel(x->job);
    sd_event_source_disable_unref(x->io);
    loop_timer_free(x->stall);
    agent_decoder_free(&x->in);
    agent_outbox_clear(&x->out);
    fd_close(&x->fd);
    free(x);
}

static void watch(struct exec *x) {
    sd_event_source_set_io_events(x->io, (x->is_ending ? 0U : (uint32_t)EPOLLIN) |
                                             (agent_outbox_waiting(&x->out) > 0 ? (uint32_t)EPOLLOUT : 0U));
}

static void on_stall(void *userdata) {
    drop(userdata);
}

/* The last word; the connection ends when it is written. */
static void end(struct exec *x, json_t *word) {
    agent_outbox_json(&x->out, 1, 1, word);
    x->is_ending = true;
    if (x->io)
        watch(x);
    if (!x->stall)
        loop_timer_new(x->api->loop, STALL_MS, on_stall, x, &x->stall);
}

static void end_with(struct exec *x, const struct err *err) {
    char detail[sizeof err->detail * 4], hint[sizeof err->hint];
    str_escape(err->detail, strlen(err->detail), detail, sizeof detail);
    str_escape(err->hint, strlen(err->hint), hint, sizeof hint);
    end(x, json_pack("{s:{s:s, s:s, s:s}}", "error", "code", err->code, "detail", detail, "hint", hint));
}

/* ---- from the guest ---- */

static void on_data(void *userdata, enum agent_stream stream, const uint8_t *data, size_t len) {
    struct exec *x = userdata;
    struct agent_frame frame = {
        .kind = AGENT_FRAME_DATA, .stream = stream, .session = 1, .id = 1, .payload = data, .len = len};
    if (agent_outbox_frame(&x->out, &frame) < 0) {
        struct err err = {0};
        agent_job_cancel(x->job);
        x->job = NULL;
        agent_outbox_clear(&x->out);
        err_set(&err, ENOBUFS, "exec.flow", "the program's output came in more pieces than can be held");
        end_with(x, &err);
        return;
    }
    watch(x);
}

static void on_credit(void *userdata, uint32_t bytes) {
    struct exec *x = userdata;
    agent_outbox_credit(&x->out, 1, 1, AGENT_STDIN, bytes);
    watch(x);
}

static void on_done(void *userdata, json_t *ok, const struct err *err) {
    struct exec *x = userdata;
    json_int_t number;
    x->job = NULL;
    if (ok && json_unpack(ok, "{s:I}", "signal", &number) == 0 && number > 0 && number < 128)
        end(x, json_pack("{s:{s:I}}", "ok", "signal", number));
    else if (ok && json_unpack(ok, "{s:I}", "status", &number) == 0 && number >= 0 && number < 256)
        end(x, json_pack("{s:{s:I}}", "ok", "status", number));
    else {
        struct err odd = {0};
        if (!err)
            err_set(&odd, EPROTO, "exec.answer", "the agent in the guest does not say how the program ended");
        end_with(x, err ? err : &odd);
    }
}

/* ---- from the client ---- */

static void start(struct exec *x, json_t *request) {
    static const struct agent_handler handler = {.data = on_data, .credit = on_credit, .done = on_done};
    struct agent *agent = vms_agent(x->api->vms, x->vm_id);
    struct err err = {0};
    json_object_set_new(request, "op", json_string("exec"));
    if (!agent)
        err_set(&err, ENOENT, "agent.gone", "VM %s has ended", x->vm_id);
    else if (agent_begin(agent, json_incref(request), 0, &handler, x, &x->job, &err) == 0)
        log_event(LOG_LEVEL_INFO, (struct log_about){.event = "exec", .vm_id = x->vm_id}, "%s by %s",
                  json_string_value(json_array_get(json_object_get(request, "argv"), 0)) ?: "?", x->actor);
    if (!x->job)
        end_with(x, &err);
}

static void on_message(struct exec *x, json_t *message) {
    json_int_t a, b;
    if (!x->job)
        start(x, message);
    else if (json_unpack(message, "{s:I}", "signal", &a) == 0 && a > 0 && a < 65)
        agent_job_signal(x->job, (int)a);
    else if (json_unpack(message, "{s:[I,I]}", "resize", &a, &b) == 0 && a > 0 && a < 65536 && b > 0 && b < 65536)
        agent_job_resize(x->job, (int)a, (int)b);
}

/* Return: 0, or -EPROTO for a client that does not keep to the protocol. */
static int on_frame(struct exec *x, const struct agent_frame *frame) {
    if (frame->kind == AGENT_FRAME_JSON) {
        json_t *message = agent_frame_json(frame);
        if (!message)
            return -EPROTO;
        on_message(x, message);
        json_decref(message);
        return 0;
    }
    if (!x->job)
        return -EPROTO;
    if (frame->kind == AGENT_FRAME_CREDIT) {
        agent_job_credit(x->job, frame->stream, agent_frame_credit(frame));
        return 0;
    }
    return frame->stream == AGENT_STDIN ? agent_job_write(x->job, frame->payload, frame->len) : -EPROTO;
}

static int take_frames(struct exec *x) {
    struct agent_frame frame;
    int r = 0;
    while (r == 0 && !x->is_ending && agent_decoder_next(&x->in, &frame) == 1)
        r = on_frame(x, &frame);
    /* This channel has no garbage: whoever sends some is not a client of ours. */
    return r == 0 && x->in.skipped > 0 ? -EPROTO : r;
}

static int receive(struct exec *x) {
    uint8_t buffer[READ_SIZE];
    ssize_t n = recv(x->fd, buffer, sizeof buffer, 0);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    if (n == 0)
        return -ECONNRESET;
    int r = agent_decoder_push(&x->in, buffer, (size_t)n);
    explicit_bzero(buffer, (size_t)n); /* there are secrets among it */
    return r < 0 ? r : take_frames(x);
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
    struct exec *x = userdata;
    int r = 0;
    if (!x->is_ending && (revents & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        r = receive(x);
    else if (revents & (EPOLLHUP | EPOLLERR))
        r = -ECONNRESET;
    if (r == 0)
        r = agent_outbox_flush(&x->out, x->fd);
    if (r < 0 || (x->is_ending && agent_outbox_waiting(&x->out) == 0))
        drop(x);
    else
        watch(x);
    return 0;
}

static void on_upgraded(void *userdata, int fd, const void *early, size_t early_len) {
    struct exec *x = userdata;
    x->fd = fd;
    if (fd < 0 || sd_event_add_io(loop_event(x->api->loop), &x->io, fd, EPOLLIN, on_io, x) < 0 ||
        agent_decoder_push(&x->in, early, early_len) < 0 || take_frames(x) < 0)
        drop(x);
    else
        watch(x);
}

/* ---- the route ---- */

static int check(struct api *api, const struct vm *vm, struct err *err) {
    struct agent *agent = vms_agent(api->vms, vm->id);
    unsigned n = 0;
    for (struct exec *x = api->execs; x; x = x->next)
        n++;
    if (n >= EXECS_MAX)
        return err_set(err, EALREADY, "exec.busy", "%u programs run in VMs already", n);
    if (!agent && vm_state_is_end(vm->state))
        return err_set(err, EALREADY, "vm.ended", "VM %s is %s", vm->id, vm_state_name(vm->state));
    if (!agent && vm->state == VM_STATE_CREATING)
        return err_set(err, EALREADY, "agent.not-ready", "VM %s is being made: its guest does not run yet", vm->id);
    if (!agent) {
        err_set(err, EALREADY, "agent.none", "the image of VM %s has no agent", vm->id);
        return err_hint(err, "its console can be seen: mctl vm console %s", vm->id);
    }
    if (agent_state(agent) != AGENT_READY) {
        err_set(err, EALREADY, "agent.not-ready", "the agent in VM %s: %s", vm->id, agent_words(agent));
        return err_hint(err, "mctl vm console %s shows how far the guest is", vm->id);
    }
    return 0;
}

void route_vm_exec(struct http_request *req, const struct http_match *match, void *userdata) {
    static const struct http_header headers[] = {{"Upgrade", PROTOCOL}};
    struct api *api = userdata;
    const char *upgrade = http_request_header(req, "Upgrade");
    struct err err = {0};
    struct vm vm;
    int r = api_vm_find(api, match, &vm, &err);
    if (r == 0 && upgrade && strcmp(upgrade, PROTOCOL) == 0 && api_wake(api, req, &vm, "a program is to run in it"))
        return;
    if (r < 0 || check(api, &vm, &err) < 0) {
        api_fail(req, &err);
        return;
    }
    if (!upgrade || strcmp(upgrade, PROTOCOL) != 0) {
        http_problem(req, 426, "exec.upgrade", NULL, "this needs Upgrade: " PROTOCOL, "use mctl vm exec");
        return;
    }
    struct exec *x = calloc(1, sizeof *x);
    if (!x) {
        http_problem(req, 500, "internal", NULL, "out of memory", NULL);
        return;
    }
    *x = (struct exec){.next = api->execs, .api = api, .fd = -1, .out = {.max = OUT_MAX}, .by = api_credential(api)};
    str_copy(x->vm_id, sizeof x->vm_id, vm.id);
    api_actor(api, req, x->actor);
    api->execs = x;
    if (http_upgrade(req, headers, 1, on_upgraded, x) < 0)
        drop(x);
}

void api_exec_revoked(struct api *api, const struct api_credential *credential) {
    struct err err = {0};
    err_set(&err, EACCES, "auth.revoked", "the token that this was begun with was revoked");
    for (struct exec *x = api->execs; x; x = x->next) {
        if (x->is_ending || !api_credential_is(&x->by, credential))
            continue;
        agent_job_cancel(x->job);
        x->job = NULL;
        end_with(x, &err);
    }
}

void api_exec_free(struct api *api) {
    while (api->execs)
        drop(api->execs);
}

bool api_exec_runs(const struct api *api, const char *vm_id) {
    for (const struct exec *x = api->execs; x; x = x->next)
        if (strcmp(x->vm_id, vm_id) == 0)
            return true;
    return false;
}

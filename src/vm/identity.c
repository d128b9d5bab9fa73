#include "vm/identity.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/fd.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/time.h"

#define LINK "eth0"
#define TIMEOUT_MS 30000 /* an emulated guest on a busy host */
#define SEED_BYTES 64

struct giving {
    const struct vms *vms;
    const struct vm *vm;
    struct loop *loop;
    struct agent *agent;
    struct agent_job *job;
    struct loop_timer *deadline;
    bool is_given;
    struct err err;
};

static void on_given(void *userdata, json_t *ok, const struct err *err) {
    struct giving *g = userdata;
    g->job = NULL;
    if (err && strcmp(err->code, "agent.gone") == 0)
        return; /* it is asked again when it is there again: all of it can be done twice */
    g->is_given = ok != NULL;
    if (err)
        g->err = *err;
    loop_quit(g->loop);
}

static json_t *request(const struct giving *g) {
    const struct config_network *network = &g->vms->config->network;
    char mac[NET_MAC_TEXT], ip[NET_IP_TEXT], address[NET_IP_TEXT + 4], gateway[NET_IP_TEXT], hostname[12];
    uint8_t seed[SEED_BYTES], id[16];
    char seed_hex[2 * SEED_BYTES + 1], id_hex[33];
    if (getrandom(seed, sizeof seed, 0) != sizeof seed || getrandom(id, sizeof id, 0) != sizeof id)
        return NULL;
    id[6] = (uint8_t)((id[6] & 0x0f) | 0x40); /* machine-id(5): a version 4 UUID */
    id[8] = (uint8_t)((id[8] & 0x3f) | 0x80);
    str_hex(seed, sizeof seed, seed_hex);
    str_hex(id, sizeof id, id_hex);
    net_format_mac(g->vm->mac, mac);
    net_format_ip(g->vm->ip, ip);
    net_format_ip(network->address.address, gateway);
    snprintf(address, sizeof address, "%s/%u", ip, network->address.length);
    snprintf(hostname, sizeof hostname, "%.11s", g->vm->id); /* as machine_cmdline() gives it */
    json_t *json = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:I}", "op", "identity.set", "link", LINK, "mac",
                             mac, "address", address, "gateway", gateway, "hostname", hostname, "machine_id", id_hex,
                             "seed", seed_hex, "realtime_ms", (json_int_t)time_realtime_ms());
    if (*network->dns)
        json_object_set_new(json, "dns", json_string(network->dns));
    explicit_bzero(seed, sizeof seed);
    explicit_bzero(seed_hex, sizeof seed_hex);
    return json;
}

static void on_agent(void *userdata, enum agent_state state, const char *words) {
    static const struct agent_handler handler = {.done = on_given};
    struct giving *g = userdata;
    if (state != AGENT_READY || g->job)
        return;
    json_t *asked = request(g);
    if (!asked || agent_begin(g->agent, asked, TIMEOUT_MS, &handler, g, &g->job, &g->err) < 0)
        loop_quit(g->loop);
}

static void on_deadline(void *userdata) {
    struct giving *g = userdata;
    err_set(&g->err, ETIMEDOUT, "warm.identity", "its agent: %.200s",
            g->job ? "it was asked, and has not answered" : agent_words(g->agent));
    loop_quit(g->loop);
}

static int on_vmm_ended(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
    struct giving *g = userdata;
    err_set(&g->err, ECONNRESET, "vmm.lost", "its VMM has ended");
    loop_quit(g->loop);
    return 0;
}

/* One that asks again whenever its agent is there again would wait for that of a dead one too. */
static int watch_vmm(struct giving *g, int *ret_pidfd, struct err *err) {
    int r = proc_open(g->vm->pid, g->vm->pid_start, ret_pidfd);
    if (r < 0)
        return err_set(err, -r, "vmm.lost", "its VMM has ended");
    r = sd_event_add_io(loop_event(g->loop), NULL, *ret_pidfd, EPOLLIN, on_vmm_ended, g);
    return r < 0 ? err_sys(err, -r, "warm.identity", "watch its VMM") : 0;
}

int identity_give(const struct vms *vms, const char *folder, const struct vm *vm, int *fd, struct err *err) {
    struct giving g = {.vms = vms, .vm = vm};
    _cleanup_close_ int pidfd = -1;
    struct agent_params params = {.folder = folder, .changed = on_agent, .userdata = &g};
    machine_agent_channel(vm, &params);
    int r = loop_new_private(&g.loop, err);
    params.loop = g.loop;
    params.fd = r == 0 ? fd_steal(fd) : -1;
    if (r == 0)
        r = agent_new(&params, &g.agent, err);
    if (r == 0 && loop_timer_new(g.loop, TIMEOUT_MS, on_deadline, &g, &g.deadline) < 0)
        r = err_sys(err, ENOMEM, "warm.identity", "make a timer");
    if (r == 0)
        r = watch_vmm(&g, &pidfd, err);
    if (r == 0)
        r = loop_run(g.loop, err);
    agent_job_cancel(g.job);
    if (r == 0 && g.is_given)
        *fd = agent_connection(g.agent);
    agent_free(g.agent);
    loop_timer_free(g.deadline);
    loop_free(g.loop);
    if (r < 0 || g.is_given)
        return r;
    return err_set(err, EIO, "warm.identity", "it could not be made a machine of its own: %.300s",
                   *g.err.detail ? g.err.detail : "there was no memory to ask its agent");
}

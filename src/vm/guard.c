/* Our firewall tables against others: whoever changes or deletes them is noticed by the kernel's own notice, and they are
 * put back, with all VMs in them, in one transaction. Likewise when the host gets or loses a network. */
#include "base/log.h"
#include "vm/machine.h"

#define AGAIN_MS 2000 /* when it failed, and for what no notice told */

static void work(void *userdata) {
    struct vms *vms = userdata;
    vms->guard_result = network_guard(vms->network, &vms->guard_err);
}

static void done(void *userdata) {
    struct vms *vms = userdata;
    bool failed = vms->guard_result < 0;
    vms->guard_is_busy = false;
    sd_event_source_set_enabled(vms->guard, SD_EVENT_ON);
    if (failed && !vms->guard_failed)
        log_error("the firewall that keeps VMs apart cannot be put back: %s; trying again", vms->guard_err.detail);
    if (vms->guard_result == NETWORK_GUARDED_NETWORKS)
        log_event(LOG_LEVEL_INFO, (struct log_about){.event = "networks-changed"},
                  "the host's own networks have changed: the firewall keeps VMs from those that there are now");
    if (vms->guard_result == NETWORK_GUARDED_RULES)
        log_event(LOG_LEVEL_WARNING, (struct log_about){.event = "firewall-restored"},
                  "somebody changed or deleted the nftables tables \"" RULESET_NAME
                  "\": they were put back with all VMs in "
                  "them; until then VMs may have reached more than they should");
    vms->guard_failed = failed;
}

/* To put them back takes long with many VMs, and so a worker does it. What is heard meanwhile is looked at then. */
static void look(struct vms *vms) {
    if (vms->guard_is_busy || !network_heard(vms->network))
        return;
    vms->guard_is_busy = workers_submit(vms->enders, work, done, vms) == 0;
    if (vms->guard_is_busy)
        sd_event_source_set_enabled(vms->guard, SD_EVENT_OFF);
}

static int on_change(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
    look(userdata);
    return 0;
}

static void on_time(void *userdata) {
    struct vms *vms = userdata;
    look(vms);
    loop_timer_again(vms->guard_timer, AGAIN_MS);
}

int guard_start(struct vms *vms, struct err *err) {
    int r =
        sd_event_add_io(loop_event(vms->loop), &vms->guard, network_watch_fd(vms->network), EPOLLIN, on_change, vms);
    if (r >= 0)
        r = loop_timer_new(vms->loop, AGAIN_MS, on_time, vms, &vms->guard_timer);
    return r < 0 ? err_sys(err, -r, "vm.start", "watch the firewall") : 0;
}

void guard_stop(struct vms *vms) {
    sd_event_source_disable_unref(vms->guard);
    loop_timer_free(vms->guard_timer);
}

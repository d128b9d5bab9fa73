#include "vm/boot_check.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/jail.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/time.h"
#include "vm/boot.h"

#define TICK_MS 200
#define PROBE_INTERVAL_MS 300
/* Once the guest is there but not all of it: see patience(). */
#define GRACE_MS 10000
#define STEADY_MS 3000 /* what comes up and falls over at once is not up */
#define SHUTDOWN_MS 20000
#define KILL_MS 5000
#define TIMEOUT_FACTOR 3
#define TAIL_BYTES 65536
#define TAIL_LINES 20

const char *const boot_stage_names[BOOT_STAGES] = {
    [BOOT_CONSOLE] = "console",   [BOOT_AGENT] = "agent",     [BOOT_NETWORK] = "network",
    [BOOT_SERVICES] = "services", [BOOT_DESKTOP] = "desktop", [BOOT_WINDOW] = "window",
};

static const char *const awaited[BOOT_STAGES] = {
    [BOOT_CONSOLE] = "the kernel's first word",  [BOOT_AGENT] = "the agent in the guest",
    [BOOT_NETWORK] = "an answer to a ping",      [BOOT_SERVICES] = "the guest's services",
    [BOOT_DESKTOP] = "the desktop at port 6080", [BOOT_WINDOW] = "Chromium's window",
};

int64_t boot_now(const struct boot *b) {
    return time_monotonic_ms() - b->begun_ms;
}

bool boot_has(const struct boot *b, enum boot_stage stage) {
    return b->stage[stage] >= 0;
}

bool boot_needs(const struct boot *b, const struct need *need) {
    return need_is_of(need, b->params->type, b->image.screen);
}

void boot_reach(struct boot *b, enum boot_stage stage) {
    if (!boot_has(b, stage))
        b->stage[stage] = boot_now(b);
}

/* The tests' tiny guest has neither systemd nor a desktop, and none but a browser image has a window. */
static bool is_promised(const struct boot *b, enum boot_stage stage) {
    switch (stage) {
    case BOOT_CONSOLE:
    case BOOT_NETWORK:
        return true;
    case BOOT_AGENT:
        return b->image.has_agent;
    case BOOT_SERVICES:
        return b->image.has_agent && b->params->type != IMAGE_TYPE_TEST;
    case BOOT_DESKTOP:
        return b->params->type == IMAGE_TYPE_BROWSER;
    case BOOT_WINDOW:
        return b->image.has_agent && b->params->type == IMAGE_TYPE_BROWSER;
    case BOOT_STAGES:
        break;
    }
    return false;
}

/* ---------------------------------------------------------------- its end */

static void over(struct boot *b) {
    b->phase = BOOT_OVER;
    loop_quit(b->loop);
}

static int on_process(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
    struct boot *b = userdata;
    if (proc_reap(b->pidfd, b->ended, sizeof b->ended) == 0)
        return 0;
    if (b->phase == BOOT_STOP && !b->is_killed)
        b->shutdown_ms = boot_now(b) - b->stop_ms;
    over(b);
    return 0;
}

static void press_power_button(struct boot *b) {
    b->phase = BOOT_STOP;
    b->stop_ms = boot_now(b);
    b->choice.ops->ask_shutdown(b->loop, b->folder, &b->vm, b->watch);
}

/* Nothing that stands still comes to its end by itself. */
static void on_news(void *userdata, enum vmm_news news, const char *words) {
    struct boot *b = userdata;
    switch (news) {
    case VMM_NEWS_RUNS:
        return;
    case VMM_NEWS_NO_SPACE:
        str_copy(b->halted, sizeof b->halted, "it wrote more to its disk than there is room for");
        break;
    case VMM_NEWS_STANDS:
        snprintf(b->halted, sizeof b->halted, "its processors stand still: %s", words);
        break;
    case VMM_NEWS_DISK_ERROR:
        snprintf(b->halted, sizeof b->halted, "its disk gave it an error: %s", words);
        break;
    case VMM_NEWS_PANIC:
        str_copy(b->panic, sizeof b->panic, "it said so itself");
        return; /* the VMM ends */
    }
    over(b);
}

/* ---------------------------------------------------------------- the way to it */

static void on_agent(void *userdata, enum agent_state state, const char *words) {
    struct boot *b = userdata;
    str_copy(b->words[BOOT_AGENT], sizeof b->words[BOOT_AGENT], words);
    if (state == AGENT_READY)
        boot_reach(b, BOOT_AGENT);
}

/* Of the two that are seen from outside, the one whose turn it is; BOOT_STAGES: none. */
static enum boot_stage probed(const struct boot *b) {
    enum boot_stage stage = boot_has(b, BOOT_NETWORK) ? BOOT_DESKTOP : BOOT_NETWORK;
    if (b->phase == BOOT_PROVE)
        return b->proving;
    return is_promised(b, stage) && !boot_has(b, stage) ? stage : BOOT_STAGES;
}

/* On to the next one that was reached once. */
static void prove_next(struct boot *b) {
    do
        b->proving = b->proving == BOOT_NETWORK ? BOOT_DESKTOP : BOOT_STAGES;
    while (b->proving != BOOT_STAGES && !boot_has(b, b->proving));
}

static void on_probe(void *userdata, enum probe_answer answer, const char *words) {
    struct boot *b = userdata;
    enum boot_stage stage = probed(b);
    bool ok = answer == PROBE_YES;
    b->probe = NULL;
    b->probe_again_ms = boot_now(b) + (ok ? 0 : PROBE_INTERVAL_MS);
    if (stage == BOOT_STAGES)
        return;
    str_copy(b->words[stage], sizeof b->words[stage], words);
    if (b->phase == BOOT_PROVE && !ok)
        b->lost[stage]++;
    else if (b->phase == BOOT_PROVE)
        b->lost[stage] = 0;
    if (b->phase == BOOT_PROVE && (ok || b->lost[stage] == BOOT_ATTEMPTS))
        prove_next(b);
    else if (ok)
        boot_reach(b, stage);
}

static void probe(struct boot *b) {
    enum boot_stage stage = probed(b);
    struct err err = {0};
    if (b->probe || stage == BOOT_STAGES || boot_now(b) < b->probe_again_ms)
        return;
    if (probe_start(b->loop, b->network, stage == BOOT_NETWORK ? PROBE_ICMP : PROBE_DESKTOP, b->vm.ip,
                    b->config.vm.type[b->vm.type].port, (int)b->config.vm.probe_timeout_ms, on_probe, b, &b->probe,
                    &err) < 0)
        on_probe(b, PROBE_SILENCE, err.detail);
}

/* A probe that is under way belongs to the wait before. */
void boot_prove_again(struct boot *b) {
    probe_free(b->probe);
    b->probe = NULL;
    b->phase = BOOT_PROVE;
    b->proving = BOOT_NETWORK;
    if (!boot_has(b, BOOT_NETWORK))
        prove_next(b);
}

static void look_at_console(struct boot *b) {
    char path[VMS_PATH_MAX + 16];
    struct stat st;
    snprintf(path, sizeof path, "%s/console.log", b->folder);
    if (stat(path, &st) == 0 && st.st_size > 0)
        boot_reach(b, BOOT_CONSOLE);
    console_trim(path);
}

/* The last of what is awaited before the agent is asked; BOOT_STAGES: nothing. */
static enum boot_stage missing(const struct boot *b) {
    for (enum boot_stage s = BOOT_CONSOLE; s < BOOT_WINDOW; s++)
        if (is_promised(b, s) && !boot_has(b, s))
            return s;
    return BOOT_STAGES;
}

/* So long, or as long again as it took: an emulated guest on a busy host is slow in all. */
static int64_t patience(int64_t at_least_ms, int64_t took_ms) {
    return took_ms > at_least_ms ? took_ms : at_least_ms;
}

static int64_t last_stage(const struct boot *b) {
    int64_t last = -1;
    for (enum boot_stage s = BOOT_AGENT; s < BOOT_STAGES; s++)
        last = b->stage[s] > last ? b->stage[s] : last;
    return last;
}

static bool is_steady(const struct boot *b) {
    return boot_now(b) > last_stage(b) + STEADY_MS;
}

/* Whether what is missing would have come by now: long after all else was there, or after systemd was done. */
static bool is_hopeless(const struct boot *b) {
    int64_t last = -1;
    if (boot_now(b) > b->timeout_ms)
        return true;
    if (boot_has(b, BOOT_SERVICES))
        last = b->stage[BOOT_SERVICES];
    else if (!is_promised(b, BOOT_SERVICES) || !boot_has(b, BOOT_AGENT))
        last = last_stage(b);
    return last >= 0 && boot_now(b) > last + patience(GRACE_MS, last);
}

static void wait_on(struct boot *b) {
    enum boot_stage stage = missing(b);
    look_at_console(b);
    probe(b);
    if (boot_has(b, BOOT_AGENT))
        boot_ask_settled(b);
    if (stage == BOOT_STAGES ? !is_steady(b) : !is_hopeless(b))
        return;
    if (b->job)
        return; /* until it is answered */
    if (boot_has(b, BOOT_AGENT)) {
        b->phase = BOOT_LOOK;
        boot_ask_on(b);
    } else {
        boot_prove_again(b);
    }
}

static const char *what_is_awaited(const struct boot *b) {
    enum boot_stage stage = missing(b);
    switch (b->phase) {
    case BOOT_WAIT:
        return stage == BOOT_STAGES ? "whether it stays so" : awaited[stage];
    case BOOT_LOOK:
        return is_promised(b, BOOT_WINDOW) && !boot_has(b, BOOT_WINDOW) ? awaited[BOOT_WINDOW] : "its agent's answers";
    case BOOT_PROVE:
        return "its path, once more";
    case BOOT_STOP:
    case BOOT_OVER:
        break;
    }
    return "its shut-down";
}

static void tell(const struct boot *b) {
    char text[160];
    snprintf(text, sizeof text, "the guest, booted %lld s ago: %s", (long long)(boot_now(b) / 1000),
             what_is_awaited(b));
    if (b->params->progress)
        b->params->progress(text, 0, b->params->progress_data);
}

static void wait_for_end(struct boot *b) {
    int64_t waited_ms = boot_now(b) - b->stop_ms, patience_ms = patience(SHUTDOWN_MS, last_stage(b));
    if (waited_ms > patience_ms) {
        b->is_killed = true;
        proc_signal(b->pidfd, SIGKILL);
    }
    if (waited_ms > patience_ms + KILL_MS)
        over(b);
}

static void on_tick(void *userdata) {
    struct boot *b = userdata;
    tell(b);
    switch (b->phase) {
    case BOOT_WAIT:
        wait_on(b);
        break;
    case BOOT_LOOK:
        boot_ask_on(b);
        break;
    case BOOT_PROVE:
        probe(b);
        if (b->proving == BOOT_STAGES)
            press_power_button(b);
        break;
    case BOOT_STOP:
        wait_for_end(b);
        break;
    case BOOT_OVER:
        return;
    }
    loop_timer_again(b->tick, TICK_MS);
}

/* ---------------------------------------------------------------- making the VM */

/* Not in the first /24 of the bridge's /16: a guest with another mask than it was given shows itself. */
#define GUEST_HOST_PART 0x0102

static int make_record(struct boot *b, struct err *err) {
    struct vm *vm = &b->vm;
    uint8_t random[16];
    if (getrandom(random, sizeof random, 0) != sizeof random)
        return err_sys(err, EIO, "vm.create", "get random bytes");
    vm_id_from_random(random, vm->id);
    vm->type = b->params->type == IMAGE_TYPE_BROWSER ? VM_TYPE_BROWSER : VM_TYPE_CLI;
    const struct config_vm_type *type = &b->config.vm.type[vm->type];
    vm->memory_mib = type->memory_mib;
    vm->vcpus = type->vcpus;
    vm->ip = (b->config.network.address.address & net_mask(b->config.network.address.length)) + GUEST_HOST_PART;
    vm->uid = geteuid() == 0 ? b->config.vm.uid_base + GUEST_HOST_PART : 0;
    vm->mac = vm_mac_from_random(random + 12);
    vm_tap_from_id(vm->id, vm->tap);
    str_copy(vm->bridge, sizeof vm->bridge, b->config.network.bridge);
    str_copy(vm->vmm, sizeof vm->vmm, b->choice.ops->name);
    b->timeout_ms = b->params->timeout_ms ? b->params->timeout_ms : (int)type->boot_timeout_ms * TIMEOUT_FACTOR;
    return 0;
}

static int choose(struct boot *b, struct err *err) {
    config_defaults(&b->config);
    int r = config_set(&b->config, "vm", "vmm", "qemu", err);
    return r < 0 ? r : vmm_choose(&b->config.vm, &b->choice, err);
}

static int make_network(struct boot *b, int *ret_tap_fd, struct err *err) {
    int r = network_start(&b->config.network, NULL, 0, &b->network, err);
    struct network_nic nic = machine_nic(&b->vm);
    return r < 0 ? r : network_tap_create(b->network, &nic, ret_tap_fd, err);
}

static int make_folder(struct boot *b, struct err *err) {
    snprintf(b->folder, sizeof b->folder, "%.300s/%s", b->params->scratch, b->vm.id);
    if (mkdir(b->folder, 0700) < 0)
        return err_sys(err, errno, "vm.create", "make %s", b->folder);
    return image_clone(&b->image, b->folder, err);
}

/* As the daemon's VMMs are; where a host does not allow it, so be it here too. */
static int make_jail(const struct boot *b) {
    char scratch[VMS_PATH_MAX];
    int fd = 0;
    snprintf(scratch, sizeof scratch, "%.300s/jail", b->params->scratch);
    if (mkdir(scratch, 0700) < 0 || jail_make(scratch, b->choice.binary, false, &fd, NULL) < 0)
        return 0;
    return fd;
}

static int start(struct boot *b, struct err *err) {
    char cmdline[MACHINE_CMDLINE_MAX], netns_path[VMS_PATH_MAX];
    _cleanup_close_ int tap_fd = -1;
    int r = make_network(b, &tap_fd, err);
    if (r == 0)
        r = make_folder(b, err);
    if (r < 0)
        return r;
    machine_cmdline(&b->config.network, &b->vm, cmdline);
    struct vmm_spec spec = {.vm = &b->vm,
                            .choice = &b->choice,
                            .confinement = {.jail_fd = make_jail(b)},
                            .folder = b->folder,
                            .kernel = b->image.kernel,
                            .initrd = b->image.initrd,
                            .vmlinux = b->image.vmlinux,
                            .cmdline = cmdline,
                            .has_agent = b->image.has_agent,
                            .tap_fd = tap_fd,
                            .netns_fd = network_namespace(b->network, netns_path, sizeof netns_path),
                            .netns_path = netns_path};
    r = b->choice.ops->start(&b->config.vm, &spec, &b->pid, &b->pidfd, err);
    if (spec.confinement.jail_fd > 0)
        close(spec.confinement.jail_fd);
    b->begun_ms = time_monotonic_ms();
    return r;
}

static int watch(struct boot *b, struct err *err) {
    struct agent_params agent = {.loop = b->loop,
                                 .folder = b->folder,
                                 .socket = b->choice.ops->agent_socket,
                                 .vsock_port = b->choice.ops->agent_vsock_port,
                                 .fd = -1,
                                 .changed = on_agent,
                                 .userdata = b};
    int r = b->image.has_agent ? agent_new(&agent, &b->agent, err) : 0;
    if (r < 0)
        return r;
    if (b->choice.ops->watch)
        r = b->choice.ops->watch(b->loop, b->folder, on_news, b, &b->watch, err);
    if (r < 0)
        return r;
    r = sd_event_add_io(loop_event(b->loop), &b->process, b->pidfd, EPOLLIN, on_process, b);
    if (r >= 0)
        r = loop_timer_new(b->loop, TICK_MS, on_tick, b, &b->tick);
    return r < 0 ? err_sys(err, -r, "vm.watch", "watch %s", b->vm.id) : 0;
}

/* ---------------------------------------------------------------- the whole */

/* The last lines; a panic's own words may stand far before them. */
static json_t *console_tail(struct boot *b) {
    char path[VMS_PATH_MAX + 16], safe[300];
    _cleanup_free_ char *text = NULL;
    size_t len = 0;
    json_t *tail = json_array();
    snprintf(path, sizeof path, "%s/console.log", b->folder);
    if (file_read_tail(path, TAIL_BYTES, &text, &len) < 0)
        return tail;
    text[console_strip(text, len)] = '\0';
    for (char *line, *rest = text; (line = strsep(&rest, "\r\n"));) {
        if (strspn(line, " \t") == strlen(line))
            continue;
        if (json_array_size(tail) == TAIL_LINES)
            json_array_remove(tail, 0);
        json_array_append_new(tail, json_string(str_escape(line, strlen(line), safe, sizeof safe)));
        const char *panic = strstr(safe, "Kernel panic");
        if (panic && !*b->panic)
            str_copy(b->panic, sizeof b->panic, panic);
    }
    return tail;
}

static void clean_up(struct boot *b) {
    boot_ask_free(b);
    agent_free(b->agent);
    vmm_watch_free(b->watch);
    probe_free(b->probe);
    loop_timer_free(b->tick);
    sd_event_source_disable_unref(b->process);
    if (b->pidfd >= 0 && !*b->ended)
        proc_signal(b->pidfd, SIGKILL);
    fd_close(&b->pidfd);
    network_free(b->network);
    loop_free(b->loop);
}

static int run(struct boot *b, struct image_report *report, json_t **ret_facts, struct err *err) {
    int r = image_load(b->params->folder, &b->image, err);
    if (r < 0) {
        if (err)
            str_copy(err->code, sizeof err->code, "boot.impossible");
        return r;
    }
    r = choose(b, err);
    if (r == 0)
        r = make_record(b, err);
    if (r == 0)
        r = loop_new(&b->loop, err);
    if (r == 0)
        r = start(b, err);
    if (r == 0)
        r = watch(b, err);
    if (r == 0)
        r = loop_run(b->loop, err);
    if (r < 0)
        return r;
    if (b->phase != BOOT_OVER)
        return err_set(err, EINTR, "boot.interrupted", "the check was interrupted");
    json_t *tail = console_tail(b);
    boot_judge(b, report);
    *ret_facts = boot_facts(b, tail);
    json_decref(tail);
    return *ret_facts ? 0 : err_sys(err, ENOMEM, "boot.impossible", "tell what was seen");
}

int boot_check(const struct boot_params *params, struct image_report *report, json_t **ret_facts, struct err *err) {
    struct boot *b = calloc(1, sizeof *b);
    if (!b)
        return err_sys(err, ENOMEM, "boot.impossible", "check the boot");
    b->params = params;
    b->pidfd = -1;
    b->stop_ms = b->shutdown_ms = -1;
    b->facts = json_object();
    for (int i = 0; i < BOOT_STAGES; i++)
        b->stage[i] = -1;
    int r = run(b, report, ret_facts, err);
    clean_up(b);
    free(b);
    return r;
}

/* From what was seen of a guest to findings. Pure. All that the agent answered is the guest's word: types are checked,
 * texts escaped. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "vm/boot.h"

#define MEMORY_LEFT_MIB 64
#define RESTARTS_MAX 3
#define SHOWN_UNITS_MAX 8

#define MEND_REBUILD "build the image again: mctl image build"
#define MEND_CONSOLE "the end of its console stands below; " MEND_REBUILD

static const char *text_of(json_t *object, const char *name) {
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : "";
}

static json_t *fact(const struct boot *b, const char *name) {
    return json_object_get(b->facts, name);
}

/* ---------------------------------------------------------------- boot and end */

/* Return: whether the guest ended before anybody asked it to. */
static bool judge_early_end(const struct boot *b, struct image_report *report) {
    if (*b->panic)
        report_fail(report, "boot.panic", "the kernel", "no VM of this image runs", MEND_CONSOLE,
                    "the guest's kernel panicked: %s", b->panic);
    else if (*b->halted)
        report_fail(report, "boot.halted", "the machine", "no VM of this image runs", MEND_CONSOLE,
                    "the guest was stopped %.1f s after its start: %s", (double)boot_now(b) / 1000, b->halted);
    else if (b->stop_ms < 0 && !boot_has(b, BOOT_CONSOLE))
        report_fail(report, "boot.vmm", b->vm.vmm, "no VM of this image runs",
                    "see whether this host can run it: mctl status", "the VMM ended before the kernel said a word: %s",
                    report_safe(b->ended));
    else if (b->stop_ms < 0)
        report_fail(report, "boot.ended", "the guest", "every VM of this image ends by itself", MEND_CONSOLE,
                    "the guest ended by itself %.1f s after its start (%s)", (double)boot_now(b) / 1000,
                    report_safe(b->ended));
    return b->stop_ms < 0 || *b->panic || *b->halted;
}

static void judge_agent(const struct boot *b, struct image_report *report) {
    static const char breaks[] =
        "nobody can look into its VMs when their network fails, mctl vm exec does not work, and "
        "the daemon never calls one running";
    if (boot_has(b, BOOT_AGENT))
        return;
    if (!b->image.has_agent)
        report_fail(report, "boot.agent", "mc-agent", breaks, MEND_REBUILD,
                    "the image's manifest knows of no agent, so the guest has no channel for one");
    else
        report_fail(report, "boot.agent", "mc-agent", breaks, "see that mc-agent.service is enabled; " MEND_REBUILD,
                    "the agent did not answer: %s",
                    *b->words[BOOT_AGENT] ? report_safe(b->words[BOOT_AGENT]) : "nothing was heard of it");
}

/* Never reached, or not any more. */
static bool is_lost(const struct boot *b, enum boot_stage stage) {
    return !boot_has(b, stage) || b->lost[stage] == BOOT_ATTEMPTS;
}

static const char *once(const struct boot *b, enum boot_stage stage) {
    return boot_has(b, stage) ? "any more" : "at all";
}

static void judge_path(const struct boot *b, struct image_report *report) {
    if (!boot_has(b, BOOT_CONSOLE) && !boot_has(b, BOOT_NETWORK) && !boot_has(b, BOOT_AGENT)) {
        report_fail(report, "boot.silent", "the kernel", "no VM of this image runs",
                    "see that the image's kernel is one for this machine; " MEND_REBUILD,
                    "the guest said nothing on its console, and answered nothing");
        return;
    }
    judge_agent(b, report);
    if (is_lost(b, BOOT_NETWORK))
        report_fail(report, "boot.path", "the guest's network",
                    "the host does not reach its VMs: none is called running",
                    "see the guest's address and firewall below, and that only the initramfs configures its network",
                    "the guest is not reached %s: %s", once(b, BOOT_NETWORK), report_safe(b->words[BOOT_NETWORK]));
    else if (b->params->type == IMAGE_TYPE_BROWSER && is_lost(b, BOOT_DESKTOP))
        report_fail(report, "boot.desktop", "port 6080", "the desktop page will close with 1014",
                    "see websockify.service and x11vnc.service", "the desktop does not answer %s: %s",
                    once(b, BOOT_DESKTOP), report_safe(b->words[BOOT_DESKTOP]));
}

static void judge_end(const struct boot *b, struct image_report *report) {
    if (b->stop_ms < 0)
        return;
    if (b->shutdown_ms < 0)
        report_fail(report, "boot.shutdown", "the power button",
                    "each VM is killed after its deadline, and what a tool has not yet written is lost",
                    "see that acpid.socket is enabled, and that no service refuses to end",
                    "the guest did not shut down when its power button was pressed, and had to be killed");
    else if (strcmp(b->ended, "exit status 0") != 0)
        report_fail(report, "boot.shutdown", "the power button", "its VMs do not end in order", MEND_CONSOLE,
                    "the guest's shut-down ended its VMM with %s", report_safe(b->ended));
}

/* ---------------------------------------------------------------- the network, from inside */

/* "192.168.1.2/16 on eth0, …" of its IPv4 addresses but the loopback's. */
static unsigned list_addresses(json_t *network, char *ret_words, size_t size) {
    struct strbuf words = {.max = size - 1};
    unsigned count = 0;
    size_t i;
    json_t *item;
    json_array_foreach(json_object_get(network, "addresses"), i, item) {
        const char *address = text_of(item, "address"), *link = text_of(item, "link");
        if (strchr(address, ':') || str_starts(address, "127."))
            continue;
        strbuf_addf(&words, "%s%.40s/%d on %.40s", count++ ? ", " : "", report_safe(address),
                    (int)json_integer_value(json_object_get(item, "prefix")), report_safe(link));
    }
    str_copy(ret_words, size, words.data ? words.data : "none");
    strbuf_free(&words);
    return count;
}

static bool has_default_route(json_t *network, const char *gateway) {
    size_t i;
    json_t *route;
    json_array_foreach(json_object_get(network, "routes"), i, route) {
        if (strcmp(text_of(route, "to"), "default") == 0 && strcmp(text_of(route, "via"), gateway) == 0)
            return true;
    }
    return false;
}

static void judge_network(const struct boot *b, struct image_report *report) {
    static const char mend[] = "let the initramfs alone configure the network, from ip= on the kernel's command line: "
                               "mctl image verify names what else does";
    char ip[NET_IP_TEXT], gateway[NET_IP_TEXT], given[NET_IP_TEXT + 16], words[300];
    json_t *network = fact(b, "network"), *ping = fact(b, "gateway");
    if (!json_is_array(json_object_get(network, "addresses")))
        return;
    net_format_ip(b->vm.ip, ip);
    net_format_ip(b->config.network.address.address, gateway);
    snprintf(given, sizeof given, "%s/%u on eth0", ip, b->config.network.address.length);
    unsigned count = list_addresses(network, words, sizeof words);
    if (count != 1 || strcmp(words, given) != 0)
        report_fail(report, "boot.address", "eth0", "the host does not reach its VMs, or some of them do not reach it",
                    mend, "the guest was given %s, and has %s", given, words);
    if (!has_default_route(network, gateway))
        report_fail(report, "boot.route", "eth0", "nothing in its VMs gets beyond the bridge", mend,
                    "the guest has no default route by %s", gateway);
    else if (json_is_false(json_object_get(ping, "answered")))
        report_fail(report, "boot.gateway", "eth0", "nothing in its VMs gets out", mend,
                    "the guest does not reach its gateway %s: %s", gateway, report_safe(text_of(ping, "why")));
}

/* ---------------------------------------------------------------- units */

static json_t *find_unit(json_t *answer, const char *name) {
    size_t i;
    json_t *unit;
    json_array_foreach(json_object_get(answer, "units"), i,
                       unit) if (strcmp(text_of(unit, "Id"), name) == 0) return unit;
    return NULL;
}

bool boot_unit_state(json_t *units, const char *name, char *ret_words, size_t size) {
    json_t *unit = find_unit(units, name);
    const char *load = text_of(unit, "LoadState"), *active = text_of(unit, "ActiveState"),
               *result = text_of(unit, "Result");
    int restarts = atoi(text_of(unit, "NRestarts"));
    if (!unit || strcmp(load, "not-found") == 0) {
        str_copy(ret_words, size, unit ? "not in the guest" : "not known to the guest");
        return false;
    }
    if (strcmp(load, "loaded") != 0) {
        str_copy(ret_words, size, report_safe(load));
        return false;
    }
    snprintf(ret_words, size, "%.30s", report_safe(active));
    if (*result && strcmp(result, "success") != 0)
        snprintf(ret_words, size, "%.30s (%.30s)", report_safe(active), report_safe(result));
    size_t len = strlen(ret_words);
    if (restarts > 0)
        snprintf(ret_words + len, size - len, ", started again %d times", restarts);
    return strcmp(active, "active") == 0 && restarts < RESTARTS_MAX;
}

/* The last line that the unit's journal has, " (its log: …)"; or nothing. */
static const char *last_log(const struct boot *b, const char *name, char *buffer, size_t size) {
    char key[96];
    snprintf(key, sizeof key, "log:%s", name);
    const char *text = text_of(fact(b, key), "text"), *end = text + strlen(text);
    while (end > text && isspace((unsigned char)end[-1]))
        end--;
    const char *start = end;
    while (start > text && start[-1] != '\n')
        start--;
    char line[200], safe[220];
    snprintf(line, sizeof line, "%.*s", (int)(end - start), start);
    *buffer = '\0';
    if (*line && !str_starts(line, "-- "))
        snprintf(buffer, size, "; its log ends: %s", str_escape(line, strlen(line), safe, sizeof safe));
    return buffer;
}

static void judge_units(const struct boot *b, struct image_report *report) {
    char words[160], log[260];
    json_t *units = fact(b, "units");
    if (!json_is_array(json_object_get(units, "units")))
        return;
    for (const struct need *n = need_units; n->name; n++) {
        if (!boot_needs(b, n) || boot_unit_state(units, n->name, words, sizeof words))
            continue;
        bool masked = strcmp(words, "masked") == 0;
        report_fail(report, "boot.unit", n->name, n->breaks,
                    masked ? "systemctl unmask in the recipe's customize"
                           : "see why in the guest: mctl vm exec ID -- journalctl -u UNIT; then mend its recipe",
                    "%s is %s%s", n->name, words, last_log(b, n->name, log, sizeof log));
    }
}

static bool is_needed(const struct boot *b, const char *name) {
    for (const struct need *n = need_units; n->name; n++)
        if (boot_needs(b, n) && strcmp(n->name, name) == 0)
            return true;
    return false;
}

static void judge_services(const struct boot *b, struct image_report *report) {
    size_t i;
    json_t *unit;
    unsigned told = 0;
    json_array_foreach(json_object_get(fact(b, "services"), "units"), i, unit) {
        const char *name = text_of(unit, "Id");
        if (strcmp(text_of(unit, "ActiveState"), "failed") == 0 && !is_needed(b, name) && told++ < SHOWN_UNITS_MAX)
            report_fail(report, "boot.service-failed", name, "what it is for does not work in any VM of this image",
                        "mend it, or mask it in the recipe's customize", "%s failed (%s)", report_safe(name),
                        report_safe(text_of(unit, "Result")));
    }
}

/* ---------------------------------------------------------------- what is left */

static void judge_window(const struct boot *b, struct image_report *report) {
    if (b->params->type != IMAGE_TYPE_BROWSER || !boot_has(b, BOOT_AGENT) || boot_has(b, BOOT_WINDOW))
        return;
    json_t *windows = fact(b, "windows");
    const char *error = text_of(windows, "error"), *output = text_of(windows, "output");
    report_fail(report, "boot.window", "Chromium", "the user sees an empty desktop and cannot log in",
                "see chromium.service and openbox.service", "Chromium shows no window within %lld s: %s",
                (long long)(b->stop_ms / 1000),
                *error    ? error
                : *output ? "there are windows, but none of its own that is mapped"
                          : "the window manager knows of none");
}

static void judge_memory(const struct boot *b, struct image_report *report) {
    json_t *health = fact(b, "health"), *memory = json_object_get(health, "memory");
    json_int_t left = json_integer_value(json_object_get(memory, "available_bytes")) >> 20,
               kills = json_integer_value(json_object_get(health, "oom_kills"));
    if (!memory)
        return;
    if (kills > 0)
        report_fail(report, "boot.oom", "memory", "programs of its VMs are killed while they start",
                    "give its VMs more: [vm] cli_memory, browser_memory", "the guest ran out of its %u MiB %lld times",
                    b->vm.memory_mib, (long long)kills);
    else if (left < MEMORY_LEFT_MIB)
        report_fail(report, "boot.memory", "memory", "what a user starts in its VMs is killed",
                    "give its VMs more: [vm] cli_memory, browser_memory",
                    "of %u MiB the guest has %lld left once it has started", b->vm.memory_mib, (long long)left);
}

static void judge_kernel(const struct boot *b, struct image_report *report) {
    json_t *trouble = json_object_get(fact(b, "kernel"), "trouble");
    const char *first = json_string_value(json_array_get(trouble, 0));
    if (first)
        report_note(report, "boot.kernel", "the kernel's log", "", "mctl vm exec ID -- dmesg tells all of it",
                    "the guest's kernel tells of trouble: %s", report_safe(first));
}

/* An agent that greets and then does not answer. */
static void judge_answers(const struct boot *b, struct image_report *report) {
    static const char *const asked[] = {"network", "units", "health"};
    for (size_t i = 0; boot_has(b, BOOT_AGENT) && i < sizeof asked / sizeof *asked; i++) {
        const char *error = text_of(fact(b, asked[i]), "error");
        if (*error)
            report_fail(report, "boot.answer", asked[i], "nobody can look into its VMs", MEND_REBUILD,
                        "the agent was asked for %s, and did not tell: %s", asked[i], error);
    }
}

void boot_judge(const struct boot *b, struct image_report *report) {
    if (judge_early_end(b, report))
        return;
    judge_path(b, report);
    judge_answers(b, report);
    judge_network(b, report);
    judge_units(b, report);
    judge_services(b, report);
    judge_window(b, report);
    judge_memory(b, report);
    judge_kernel(b, report);
    judge_end(b, report);
}

/* ---------------------------------------------------------------- facts */

static json_t *time_json(int64_t ms) {
    return ms < 0 ? json_null() : json_integer(ms);
}

/* systemd's own times are of the guest's monotonic clock, in microseconds. */
static json_t *manager_ms(const struct boot *b, const char *name) {
    const char *at = strstr(text_of(fact(b, "manager"), "output"), name);
    long long usec = at ? strtoll(at + strlen(name), NULL, 10) : 0;
    return usec > 0 ? json_integer(usec / 1000) : json_null();
}

static json_t *units_json(const struct boot *b) {
    json_t *list = json_array();
    char words[160];
    for (const struct need *n = need_units; n->name; n++)
        if (fact(b, "units") && boot_needs(b, n)) {
            boot_unit_state(fact(b, "units"), n->name, words, sizeof words);
            json_array_append_new(list, json_pack("{s:s, s:s}", "name", n->name, "state", words));
        }
    return list;
}

static json_t *number_json(json_t *object, const char *name) {
    json_t *value = json_object_get(object, name);
    return json_is_integer(value) ? json_incref(value) : json_null();
}

json_t *boot_facts(const struct boot *b, json_t *tail) {
    char ip[NET_IP_TEXT], address[NET_IP_TEXT + 8];
    json_t *stages = json_object(), *memory = json_object_get(fact(b, "health"), "memory"), *title = fact(b, "title");
    net_format_ip(b->vm.ip, ip);
    snprintf(address, sizeof address, "%s/%u", ip, b->config.network.address.length);
    for (int i = 0; i < BOOT_STAGES; i++)
        json_object_set_new(stages, boot_stage_names[i], time_json(b->stage[i]));
    return json_pack("{s:s, s:s, s:s, s:s, s:i, s:i, s:o, s:{s:o, s:o, s:o}, s:o, s:o, s:{s:o, s:o}, s:o, s:s, s:O}",
                     "vmm", b->vm.vmm, "accel", b->choice.accel, "reason", b->choice.reason, "address", address,
                     "memory_mib", (int)b->vm.memory_mib, "vcpus", (int)b->vm.vcpus, "stages_ms", stages, "guest_ms",
                     "init", manager_ms(b, "UserspaceTimestampMonotonic="), "agent",
                     number_json(fact(b, "health"), "agent_started_ms"), "services",
                     manager_ms(b, "FinishTimestampMonotonic="), "units", units_json(b), "window",
                     title ? json_incref(title) : json_null(), "memory", "bytes", number_json(memory, "bytes"),
                     "available_bytes", number_json(memory, "available_bytes"), "shutdown_ms",
                     time_json(b->shutdown_ms), "ended", b->ended, "console_tail", tail);
}

static void stage_to_text(json_t *facts, const char *name, const char *words, FILE *to) {
    json_t *ms = json_object_get(json_object_get(facts, "stages_ms"), name);
    if (json_is_integer(ms))
        fprintf(to, "  %6.1f s  %s\n", (double)json_integer_value(ms) / 1000, words);
}

/* " (… s after its kernel's start, by its own word)" */
static const char *guest_time(json_t *facts, const char *name, char buffer[80]) {
    json_t *ms = json_object_get(json_object_get(facts, "guest_ms"), name);
    *buffer = '\0';
    if (json_is_integer(ms))
        snprintf(buffer, 80, ", by its own clock %.1f s after its kernel", (double)json_integer_value(ms) / 1000);
    return buffer;
}

void boot_facts_to_text(json_t *facts, bool with_tail, FILE *to) {
    char words[200], own[80];
    size_t i;
    json_t *item;
    fprintf(to, "booted by %s with %s: %lld MiB, %lld vCPUs, %s\n", text_of(facts, "vmm"), text_of(facts, "accel"),
            json_integer_value(json_object_get(facts, "memory_mib")),
            json_integer_value(json_object_get(facts, "vcpus")), text_of(facts, "address"));
    stage_to_text(facts, "console", "the kernel speaks", to);
    snprintf(words, sizeof words, "the agent answers%s", guest_time(facts, "agent", own));
    stage_to_text(facts, "agent", words, to);
    stage_to_text(facts, "network", "a ping is answered", to);
    snprintf(words, sizeof words, "all services are started%s", guest_time(facts, "services", own));
    stage_to_text(facts, "services", words, to);
    stage_to_text(facts, "desktop", "port 6080 speaks WebSocket, and RFB behind it", to);
    snprintf(words, sizeof words, "Chromium's window is there: \"%.100s\"", text_of(facts, "window"));
    stage_to_text(facts, "window", words, to);
    json_array_foreach(json_object_get(facts, "units"), i, item)
        fprintf(to, "            %s is %s\n", text_of(item, "name"), text_of(item, "state"));
    json_t *left = json_object_get(json_object_get(facts, "memory"), "available_bytes");
    if (json_is_integer(left))
        fprintf(to, "            %lld of %lld MiB of memory are left\n", json_integer_value(left) >> 20,
                json_integer_value(json_object_get(json_object_get(facts, "memory"), "bytes")) >> 20);
    json_t *down = json_object_get(facts, "shutdown_ms");
    if (json_is_integer(down))
        fprintf(to, "  %6.1f s  from its power button to its end (%s)\n", (double)json_integer_value(down) / 1000,
                text_of(facts, "ended"));
    if (!with_tail || json_array_size(json_object_get(facts, "console_tail")) == 0)
        return;
    fprintf(to, "the end of its console:\n");
    json_array_foreach(json_object_get(facts, "console_tail"), i, item)
        fprintf(to, "    %s\n", json_string_value(item));
}

/* A guest's network is configured once: by our initramfs, from ip= on the kernel's command line, before the root file
 * system is there. Whatever else configures it, does it again later and otherwise: two addresses, an address from
 * nowhere, a NIC taken down; or waits for a DHCP server that does not exist. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"
#include "image/inspect.h"

struct found {
    struct inspection *in;
    unsigned count;
    const char *folder, *suffix; /* of any_file() */
    char file[256];
};

static void other_source(struct found *f, const char *id, const char *object, const char *fmt) {
    report_fail(f->in->report, id, object,
                "two programs configure the guest's network: it loses the address that the controller gave it, or "
                "waits for DHCP; VM unreachable",
                "take it out of the recipe, or mask its unit: the initramfs configures the network from ip=", "%s",
                fmt);
    f->count++;
}

static bool any_file(const char *name, void *data) {
    struct found *f = data;
    size_t len = strlen(name), suffix = strlen(f->suffix);
    if (len <= suffix || strcmp(name + len - suffix, f->suffix) != 0)
        return true;
    snprintf(f->file, sizeof f->file, "%.100s/%.120s", f->folder, name);
    return false;
}

/* Whether a folder has a file of that kind; its path is then in f->file. */
static bool has_file(struct found *f, const char *folder, const char *suffix) {
    f->folder = folder;
    f->suffix = suffix;
    f->file[0] = '\0';
    ext4_list(f->in->fs, folder, any_file, f);
    return f->file[0];
}

/* Whether interfaces(5) text configures more than the loopback. */
static bool configures(const char *text) {
    for (const char *line = text; line && *line; line = (line = strchr(line, '\n')) ? line + 1 : NULL) {
        char word[16] = "", name[32] = "";
        if (sscanf(line, " %15s %31s", word, name) == 2 && strcmp(word, "iface") == 0 && strcmp(name, "lo") != 0)
            return true;
    }
    return false;
}

static void check_ifupdown(struct found *f) {
    static const char *const folders[] = {"/etc/network/interfaces.d"};
    _cleanup_free_ char *text = inspect_text(f->in, "/etc/network/interfaces");
    _cleanup_free_ char *more = NULL;
    if (!unit_graph_starts(&f->in->units, "networking.service"))
        return;
    if (has_file(f, folders[0], ""))
        more = inspect_text(f->in, f->file);
    if (configures(text) || configures(more))
        other_source(f, "network.ifupdown", configures(text) ? "/etc/network/interfaces" : f->file,
                     "ifupdown configures an interface (networking.service is enabled)");
}

static void check_daemons(struct found *f) {
    static const struct {
        const char *unit, *id, *what;
    } daemons[] = {
        {"systemd-networkd.service", "network.networkd", "systemd-networkd is enabled"},
        {"NetworkManager.service", "network.networkmanager", "NetworkManager is enabled"},
        {"connman.service", "network.connman", "ConnMan is enabled"},
        {"dhcpcd.service", "network.dhcpcd", "dhcpcd is enabled"},
        {"cloud-init.service", "network.cloud-init", "cloud-init is enabled"},
        {"cloud-init-local.service", "network.cloud-init", "cloud-init is enabled"},
    };
    for (size_t i = 0; i < sizeof daemons / sizeof *daemons; i++)
        if (unit_graph_starts(&f->in->units, daemons[i].unit) && !report_has(f->in->report, daemons[i].id, NULL))
            other_source(f, daemons[i].id, daemons[i].unit, daemons[i].what);
}

/* netplan writes for networkd or NetworkManager at boot, by a generator. */
static void check_netplan(struct found *f) {
    if ((inspect_exists(f->in, "/lib/systemd/system-generators/netplan") ||
         inspect_exists(f->in, "/usr/lib/systemd/system-generators/netplan")) &&
        (has_file(f, "/etc/netplan", ".yaml") || has_file(f, "/lib/netplan", ".yaml")))
        other_source(f, "network.netplan", f->file, "netplan configures an interface");
}

/* A firewall in the guest that nobody asked for: the incident's dead packets, seen from outside as a guest that is deaf. */
static void check_firewall(struct inspection *in) {
    static const char *const units[] = {"nftables.service", "ufw.service", "firewalld.service",
                                        "netfilter-persistent.service"};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (unit_graph_starts(&in->units, units[i]))
            report_fail(in->report, "network.firewall", units[i],
                        "the guest may drop what the controller sends: port 6080 is unreachable although all is green",
                        "disable it in the recipe: the host filters",
                        "%s is enabled: the guest has a firewall of its own", units[i]);
}

int check_network(struct inspection *in) {
    struct found f = {.in = in};
    if (in->type == IMAGE_TYPE_TEST)
        return 0;
    check_ifupdown(&f);
    check_daemons(&f);
    check_netplan(&f);
    check_firewall(in);
    if (in->init_kind == 'f' && f.count == 0)
        report_fail(in->report, "network.none", "initramfs",
                    "the guest has no address: it boots and no packet reaches it",
                    "use the initramfs that guest/make-initramfs packs",
                    "nothing configures the network: the initramfs is not ours, and the image has no program for it");
    if (in->init_kind == '?' && f.count == 0)
        report_note(in->report, "network.not-judged", "initramfs", "",
                    "give the image's folder instead of its root file system alone",
                    "whether anything configures the network cannot be judged: that is the initramfs's work, and there "
                    "is none to look at");
    return 0;
}

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
    const char *folder;
    bool (*wanted)(struct inspection *in, const char *path); /* of any_file() */
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
    snprintf(f->file, sizeof f->file, "%.100s/%.120s", f->folder, name);
    if (f->wanted(f->in, f->file))
        return false;
    f->file[0] = '\0';
    return true;
}

/* Whether a folder has a wanted file; its path is then in f->file. */
static bool has_file(struct found *f, const char *folder, bool (*wanted)(struct inspection *, const char *)) {
    f->folder = folder;
    f->wanted = wanted;
    f->file[0] = '\0';
    ext4_list(f->in->fs, folder, any_file, f);
    return f->file[0];
}

/* Whether it has interfaces(5) text that configures more than the loopback. */
static bool configures(struct inspection *in, const char *path) {
    _cleanup_free_ char *text = inspect_text(in, path);
    for (const char *line = text; line && *line; line = (line = strchr(line, '\n')) ? line + 1 : NULL) {
        char word[16] = "", name[32] = "";
        if (sscanf(line, " %15s %31s", word, name) == 2 && strcmp(word, "iface") == 0 && strcmp(name, "lo") != 0)
            return true;
    }
    return false;
}

/* By its service, or, for allow-hotplug, by udev. */
static void check_ifupdown(struct found *f) {
    static const char file[] = "/etc/network/interfaces";
    bool by_unit = unit_graph_starts(&f->in->units, "networking.service");
    if (!by_unit && !inspect_exists(f->in, "/lib/udev/ifupdown-hotplug"))
        return;
    bool is_main = configures(f->in, file);
    if (is_main || has_file(f, "/etc/network/interfaces.d", configures))
        other_source(f, "network.ifupdown", is_main ? file : f->file,
                     by_unit ? "ifupdown configures an interface (networking.service is enabled)"
                             : "ifupdown configures an interface as soon as udev finds it");
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

static bool is_yaml(struct inspection *in, const char *path) {
    size_t len = strlen(path);
    return len > 5 && strcmp(path + len - 5, ".yaml") == 0;
}

/* netplan writes for networkd or NetworkManager at boot, by a generator. */
static void check_netplan(struct found *f) {
    if ((inspect_exists(f->in, "/lib/systemd/system-generators/netplan") ||
         inspect_exists(f->in, "/usr/lib/systemd/system-generators/netplan")) &&
        (has_file(f, "/etc/netplan", is_yaml) || has_file(f, "/lib/netplan", is_yaml)))
        other_source(f, "network.netplan", f->file, "netplan configures an interface");
}

/* udev's own rule for the names of cards, which the image masks. */
static void check_names(struct inspection *in) {
    static const char ours[] = "/etc/systemd/network/99-default.link";
    char target[EXT4_PATH_MAX];
    struct ext4_node node;
    int r = ext4_find(in->fs, ours, false, &node, NULL);
    bool masked = r == 0 && (S_ISREG(node.mode) ? node.size == 0
                                                : ext4_link(in->fs, &node, target, sizeof target) == 0 &&
                                                      strcmp(target, "/dev/null") == 0);
    if (!masked && inspect_exists(in, "/lib/systemd/network/99-default.link"))
        report_fail(
            in->report, "network.names", ours,
            "udev may give the guest's card another name and another MAC than the controller knows: VM unreachable",
            "ln -s /dev/null there, in the recipe's customize", "udev's 99-default.link is not masked");
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
    check_names(in);
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

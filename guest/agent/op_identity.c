/* Who this machine is. A guest that was loaded from the memory of another one, its template, is a copy of it in all: what is a
 * machine's own is made its own here, in one request, before anybody can reach it. */
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"
#include "base/fd.h"
#include "base/str.h"
#include "nl.h"

#define MACHINE_ID "/etc/machine-id"
#define MACHINE_ID_LEN 32
#define RESOLVER "/run/resolv.conf"
#define KEYS_FOLDER "/etc/ssh"
#define KEY_PREFIX "ssh_host_"
/* There while an SSH server that runs may have the template's keys in its memory: whoever is asked again goes on there. */
#define RESTART_OWED "/run/mc-restart-ssh"

struct identity {
    const char *link, *mac, *address, *gateway, *dns, *hostname, *machine_id, *seed;
    json_int_t realtime_ms;
    int index;
};

/* ---- the network ---- */

static int change_link(const struct identity *id, const uint8_t *mac, bool up) {
    struct nl_msg msg;
    struct ifinfomsg *info = nl_begin(&msg, RTM_NEWLINK, 0, sizeof *info);
    info->ifi_index = id->index;
    info->ifi_change = IFF_UP;
    info->ifi_flags = up ? IFF_UP : 0;
    if (mac)
        nl_put(&msg, IFLA_ADDRESS, mac, 6);
    return nl_change(NETLINK_ROUTE, &msg);
}

struct addresses {
    struct in_addr at[8];
    uint8_t length[8];
    size_t count;
    int index;
};

static void each_address(const struct nlmsghdr *m, void *data) {
    struct addresses *found = data;
    const struct ifaddrmsg *info = NLMSG_DATA(m);
    const void *local = nl_find(nl_attrs_of(m, sizeof *info), IFA_LOCAL, sizeof(struct in_addr), NULL);
    if (m->nlmsg_type != RTM_NEWADDR || info->ifa_family != AF_INET || (int)info->ifa_index != found->index || !local ||
        found->count == sizeof found->at / sizeof *found->at)
        return;
    memcpy(&found->at[found->count], local, sizeof(struct in_addr));
    found->length[found->count++] = info->ifa_prefixlen;
}

/* ip -4 address flush dev LINK */
static int drop_addresses(const struct identity *id) {
    struct addresses found = {.index = id->index};
    struct nl_msg msg;
    nl_begin(&msg, RTM_GETADDR, 0, sizeof(struct ifaddrmsg));
    int r = nl_dump(NETLINK_ROUTE, &msg, each_address, &found);
    for (size_t i = 0; r == 0 && i < found.count; i++) {
        struct ifaddrmsg *info = nl_begin(&msg, RTM_DELADDR, 0, sizeof *info);
        *info = (struct ifaddrmsg){
            .ifa_family = AF_INET, .ifa_prefixlen = found.length[i], .ifa_index = (unsigned)id->index};
        nl_put(&msg, IFA_LOCAL, &found.at[i], sizeof found.at[i]);
        r = nl_change(NETLINK_ROUTE, &msg);
        r = r == -EADDRNOTAVAIL ? 0 : r; /* one that went with another */
    }
    return r;
}

static int parse_mac(const char *text, uint8_t ret[6], struct err *err) {
    unsigned m[6];
    char rest;
    if (sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x%c", &m[0], &m[1], &m[2], &m[3], &m[4], &m[5], &rest) != 6 || m[0] & 1)
        return err_set(err, EINVAL, "bad-request", "%.40s is not the address of a network device", text);
    for (int i = 0; i < 6; i++)
        ret[i] = (uint8_t)m[i];
    return 0;
}

/* Down, so that routes and neighbours of the template's go with it; and up again with what is its own. */
static int set_network(struct agent *agent, const struct identity *id, struct err *err) {
    uint8_t mac[6];
    if (parse_mac(id->mac, mac, err) < 0)
        return -EINVAL;
    int r = change_link(id, NULL, false);
    if (r == 0)
        r = drop_addresses(id);
    if (r == 0)
        r = change_link(id, mac, false);
    if (r == 0)
        r = change_link(id, NULL, true);
    if (r < 0)
        return err_sys(err, -r, "identity.network", "make %s %s", id->link, id->mac);
    json_t *address = json_pack("{s:s, s:s}", "link", id->link, "address", id->address);
    json_t *route = json_pack("{s:s, s:s, s:s}", "to", "0.0.0.0/0", "via", id->gateway, "link", id->link);
    json_t *ok = op_net_address(agent, address, err), *routed = ok ? op_net_route(agent, route, err) : NULL;
    r = routed ? 0 : -EIO;
    json_decref(ok);
    json_decref(routed);
    json_decref(address);
    json_decref(route);
    return r;
}

/* As guest/init writes it. */
static int set_resolver(const struct identity *id, struct err *err) {
    char text[64];
    struct in_addr dns;
    if (!id->dns)
        return 0;
    if (inet_pton(AF_INET, id->dns, &dns) != 1)
        return err_set(err, EINVAL, "bad-request", "%.40s is not an IPv4 address", id->dns);
    snprintf(text, sizeof text, "nameserver %s\n", id->dns);
    int r = file_write_atomic(RESOLVER, text, strlen(text), 0644);
    return r < 0 ? err_sys(err, -r, "identity.resolver", "write " RESOLVER) : 0;
}

/* ---- names ---- */

static int set_hostname(const struct identity *id, struct err *err) {
    size_t len = strlen(id->hostname);
    bool good = len > 0 && len <= 63;
    for (size_t i = 0; good && i < len; i++)
        good = isalnum((unsigned char)id->hostname[i]) || id->hostname[i] == '-';
    if (!good)
        return err_set(err, EINVAL, "bad-request", "hostname is 1 to 63 letters, digits and hyphens");
    return sethostname(id->hostname, len) < 0 ? err_sys(err, errno, "identity.hostname", "set the host name") : 0;
}

/* The journal lies in a folder of the machine's id, and its daemon goes on to write where it began: both names lead there. */
static void move_journal(const char *folder, const char *was, const char *is) {
    char from[96], to[96];
    snprintf(from, sizeof from, "%s/%.32s", folder, was);
    snprintf(to, sizeof to, "%s/%.32s", folder, is);
    if (rename(from, to) == 0 && symlink(is, from) < 0)
        rename(to, from);
}

static int set_machine_id(const struct identity *id, struct err *err) {
    char line[MACHINE_ID_LEN + 2], was[MACHINE_ID_LEN + 1] = "";
    if (strlen(id->machine_id) != MACHINE_ID_LEN || strspn(id->machine_id, "0123456789abcdef") != MACHINE_ID_LEN)
        return err_set(err, EINVAL, "bad-request", "machine_id is 32 digits in hex");
    /* Written where it is: it may be mounted there. An image that has none needs none. */
    _cleanup_close_ int fd = open(MACHINE_ID, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? 0 : err_sys(err, errno, "identity.machine-id", "open " MACHINE_ID);
    ssize_t n = pread(fd, was, MACHINE_ID_LEN, 0);
    snprintf(line, sizeof line, "%s\n", id->machine_id);
    if (pwrite(fd, line, sizeof line - 1, 0) != (ssize_t)sizeof line - 1 || ftruncate(fd, sizeof line - 1) < 0)
        return err_sys(err, errno, "identity.machine-id", "write " MACHINE_ID);
    if (n == MACHINE_ID_LEN && strspn(was, "0123456789abcdef") == MACHINE_ID_LEN) {
        move_journal("/run/log/journal", was, id->machine_id);
        move_journal("/var/log/journal", was, id->machine_id);
    }
    return 0;
}

/* ---- secrets and time ---- */

static int renew(struct agent *agent, op_now *op, json_t *request, struct err *err) {
    json_t *ok = op(agent, request, err);
    bool done = ok != NULL;
    json_decref(ok);
    json_decref(request);
    return done ? 0 : -EIO;
}

/* One that stays would be the template's in each of its VMs. */
static int drop_host_keys(struct err *err) {
    DIR *dir = opendir(KEYS_FOLDER);
    int r = dir || errno == ENOENT ? 0 : -errno;
    for (struct dirent *e; r == 0 && dir && (e = readdir(dir));) {
        if (!str_starts(e->d_name, KEY_PREFIX))
            continue;
        r = file_write_atomic(RESTART_OWED, "", 0, 0600);
        if (r == 0 && unlinkat(dirfd(dir), e->d_name, 0) < 0 && errno != ENOENT)
            r = -errno;
    }
    if (dir)
        closedir(dir);
    return r < 0 ? err_sys(err, -r, "identity.ssh", "remove the template's SSH host keys from " KEYS_FOLDER) : 0;
}

static void on_restarted(struct job *job) {
    struct err err = {0};
    if (WIFEXITED(job->wait_status) && WEXITSTATUS(job->wait_status) == 0) {
        unlink(RESTART_OWED);
        job_answer(job, json_object());
        return;
    }
    err_set(&err, EIO, "identity.ssh", "the SSH server did not come up with keys of its own");
    job_fail(job, &err);
}

/* {"op":"identity.set","link":"eth0","mac":"02:fc:…","address":"192.168.0.9/16","gateway":"192.168.0.1","dns":"…",
 *  "hostname":"vm-…","machine_id":"…","seed":"…","realtime_ms":N}: random numbers first, for what is made of them. An SSH
 * server that runs is started anew, which makes its keys (the image's recipe says so). */
int op_identity_set(struct job *job, json_t *request, struct err *err) {
    static const char *const restart[] = {"systemctl", "try-restart", "ssh.service", NULL};
    struct agent *agent = job->agent;
    struct identity id = {0};
    if (request_unpack(request, err, "{s:s, s:s, s:s, s:s, s?s, s:s, s:s, s:s, s:I}", "link", &id.link, "mac", &id.mac,
                       "address", &id.address, "gateway", &id.gateway, "dns", &id.dns, "hostname", &id.hostname,
                       "machine_id", &id.machine_id, "seed", &id.seed, "realtime_ms", &id.realtime_ms) < 0)
        return -EINVAL;
    id.index = (int)if_nametoindex(id.link);
    if (id.index <= 0)
        return err_set(err, ENODEV, "net.no-link", "the guest has no link %.15s", id.link);
    int r = renew(agent, op_random_seed, json_pack("{s:s}", "seed", id.seed), err);
    if (r == 0)
        r = renew(agent, op_clock_set, json_pack("{s:I}", "realtime_ms", id.realtime_ms), err);
    if (r == 0)
        r = set_hostname(&id, err);
    if (r == 0)
        r = set_machine_id(&id, err);
    if (r == 0)
        r = set_network(agent, &id, err);
    if (r == 0)
        r = set_resolver(&id, err);
    if (r == 0)
        r = drop_host_keys(err);
    if (r < 0)
        return r;
    if (access(RESTART_OWED, F_OK) == 0 && access("/run/systemd/system", F_OK) == 0)
        return child_capture(job, restart, on_restarted, err);
    job_answer(job, json_object());
    return 0;
}

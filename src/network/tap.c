/* How a VM is attached: a TAP on the bridge. */
#include "netlink/tun.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "netlink/netns.h"
#include "network/names.h"
#include "network/private.h"

#define ATTACH_ATTEMPTS 20
#define ATTACH_PAUSE_US 5000
#define IDLE_ALIAS_SIZE 80

static void set_code(struct err *err, const char *code) {
    if (err)
        str_copy(err->code, sizeof err->code, code);
}

static int check_names(const char *name, const char *vm_id, struct err *err) {
    if (!link_name_is_valid(name) || !str_starts(name, NETWORK_TAP_PREFIX)) {
        char shown[40];
        str_escape(name, strnlen(name, 20), shown, sizeof shown);
        err_set(err, EINVAL, "network.bad-name", "\"%s\" cannot be a VM's TAP", shown);
        err_hint(err, "right would be %s and 9 hex digits", NETWORK_TAP_PREFIX);
        return -EINVAL;
    }
    if (!vm_id_is_valid(vm_id))
        return err_set(err, EINVAL, "network.bad-name", "TAP %s: that is not the id of a VM", name);
    return 0;
}

/* One message for all but IPv6 (whose switch has to come before "up", and is read after it) and the alternative name
 * (which SETLINK does not know). */
static int put_on_bridge(struct network *network, int index, const char *vm_id, struct err *err) {
    struct net_mac mac = names_tap_mac(vm_id);
    struct link_change change = {
        .alias = vm_id, .mac = &mac, .mtu = network->mtu, .master = network->bridge, .up = true};
    int r = link_set(network->rtnl, index, &change, err);
    if (r == 0)
        r = link_port_isolate(network->rtnl, index, !network->cfg.vm_to_vm, err);
    if (r == -EXFULL) {
        err_set(err, EXFULL, "network.bridge-full", "bridge %s is full (%d ports)", network->cfg.bridge,
                NETWORK_PORTS_MAX);
        return err_hint(err, NETWORK_FULL_HINT);
    }
    struct link bridge;
    if (r < 0 && link_get_by_index(network->rtnl, network->bridge, &bridge, NULL) == -ENODEV) {
        err_set(err, ENODEV, "network.bridge-missing", "bridge %s is gone: somebody deleted it", network->cfg.bridge);
        return err_hint(err, "start the controller again: it makes the bridge anew and puts the VMs back");
    }
    return r;
}

/* sysctl net.ipv6.conf.TAP.disable_ipv6=1: a port needs no address of its own. Beside that, the kernel would walk the IPv6
 * routes of all devices at each step of a new one, a fifth of what attaching costs at a thousand. Where /proc/sys is
 * read-only, it gets at least no address by itself. */
static int without_ipv6(struct network *network, const char *tap, int index, struct err *err) {
    char key[64];
    snprintf(key, sizeof key, "net/ipv6/conf/%s/disable_ipv6", tap);
    int r = netns_sysctl_write(network->nsfd, key, "1");
    return r == 0 ? 0 : link_ipv6_autoconf_off(network->rtnl, index, err);
}

static int wire(struct network *network, const char *tap, int index, const char *vm_id, struct err *err) {
    int r = without_ipv6(network, tap, index, err);
    if (r == 0)
        r = put_on_bridge(network, index, vm_id, err);
    if (r == 0) {
        r = link_altname_add(network->rtnl, index, vm_id, err);
        if (r == -EEXIST)
            return err_set(err, EEXIST, "network.tap-exists", "another network device has the name %s already", vm_id);
    }
    return r;
}

/* Until it is persistent, at the very end, closing *ret_fd removes it. */
static int make(struct network *network, const char *name, uint32_t uid, int *ret_fd, struct link *ret_link,
                struct err *err) {
    int r = tap_create(network->nsfd, name, uid, ret_fd, err);
    if (r == -EEXIST)
        set_code(err, "network.tap-exists");
    return r < 0 ? r : link_get_by_name(network->rtnl, name, ret_link, err);
}

int network_tap_create(struct network *network, const struct network_nic *nic, int *ret_fd, struct err *err) {
    int r = check_names(nic->tap, nic->vm_id, err);
    if (r < 0)
        return r;
    _cleanup_unlock_ pthread_mutex_t *held = network_lock(network);
    _cleanup_close_ int fd = -1;
    struct link link;
    bool member = false;
    r = make(network, nic->tap, nic->owner_uid, &fd, &link, err);
    if (r == 0) {
        r = members_add(network, nic, err);
        member = r == 0;
    }
    if (r == 0)
        r = wire(network, nic->tap, link.index, nic->vm_id, err);
    if (r == 0)
        r = tap_persist(fd, err);
    if (r < 0 && member)
        members_remove(network, nic->tap);
    if (r < 0)
        err_prefix(err, "attach %s", nic->tap);
    else if (ret_fd)
        *ret_fd = fd_steal(&fd);
    return r;
}

/* On no bridge and in no set. */
static int create_apart(struct network *network, const char *name, const char *id, uint32_t uid, bool stays,
                        int *ret_fd, struct err *err) {
    _cleanup_unlock_ pthread_mutex_t *held = network_lock(network);
    _cleanup_close_ int fd = -1;
    struct link link;
    struct link_change change = {.alias = id};
    int r = make(network, name, uid, &fd, &link, err);
    if (r == 0)
        r = link_set(network->rtnl, link.index, &change, err);
    if (r == 0 && stays)
        r = tap_persist(fd, err);
    if (r < 0)
        err_prefix(err, "make %s", name);
    else if (ret_fd)
        *ret_fd = fd_steal(&fd);
    return r;
}

int network_tap_create_apart(struct network *network, const struct network_nic *nic, int *ret_fd, struct err *err) {
    int r = check_names(nic->tap, nic->vm_id, err);
    return r < 0 ? r : create_apart(network, nic->tap, nic->vm_id, nic->owner_uid, true, ret_fd, err);
}

int network_tap_connect(struct network *network, const struct network_nic *nic, struct err *err) {
    _cleanup_unlock_ pthread_mutex_t *held = network_lock(network);
    struct link link;
    int r = link_get_by_name(network->rtnl, nic->tap, &link, err);
    if (r == 0)
        r = members_add(network, nic, err);
    if (r < 0) {
        err_prefix(err, "attach %s", nic->tap);
        return r;
    }
    r = wire(network, nic->tap, link.index, nic->vm_id, err);
    if (r < 0) {
        members_remove(network, nic->tap);
        err_prefix(err, "attach %s", nic->tap);
    }
    return r;
}

/* No VM's: one of those that nobody knows would be a left-over. */
static void idle_alias(const char *id, char ret_alias[IDLE_ALIAS_SIZE]) {
    snprintf(ret_alias, IDLE_ALIAS_SIZE, "template %s", id);
}

int network_tap_create_idle(struct network *network, const char *name, const char *id, uint32_t uid, int *ret_fd,
                            struct err *err) {
    char alias[IDLE_ALIAS_SIZE];
    idle_alias(id, alias);
    return create_apart(network, name, alias, uid, !ret_fd, ret_fd, err);
}

int network_tap_restore(struct network *network, const char *name, const char *vm_id, struct err *err) {
    _cleanup_unlock_ pthread_mutex_t *held = network_lock(network);
    struct link link;
    int r = link_get_by_name(network->rtnl, name, &link, err);
    if (r == -ENODEV)
        set_code(err, "network.tap-missing");
    if (r < 0)
        return r;
    if (!link.is_tap || strcmp(link.alias, vm_id) != 0)
        return err_set(err, EPERM, "network.tap-foreign", "%s is not the TAP of %s", name, vm_id);
    return put_on_bridge(network, link.index, vm_id, err);
}

/* Who looks through /proc for holders, as the doctor does, takes part in an open descriptor for a moment; when the
 * holder closes it just then, the TAP is busy until the looker is done. So a TAP counts as held when the same process
 * is seen twice, and one without a holder is tried again for a while. */
static int attach(struct network *network, const char *name, int *ret_fd, pid_t *ret_holder, struct err *err) {
    pid_t seen = 0;
    int r = -EBUSY;
    for (int attempt = 0; r == -EBUSY && attempt < ATTACH_ATTEMPTS; attempt++) {
        r = tap_open(network->nsfd, name, ret_fd, err);
        if (r != -EBUSY)
            break;
        *ret_holder = tap_holder_find(network->nsfd, name, 0);
        if (*ret_holder > 0 && *ret_holder == seen)
            break;
        seen = *ret_holder;
        usleep(ATTACH_PAUSE_US);
    }
    return r;
}

int network_tap_open(struct network *network, const char *name, int *ret_fd, struct err *err) {
    pid_t holder = 0;
    int r = attach(network, name, ret_fd, &holder, err);
    if (r == -ENODEV)
        set_code(err, "network.tap-missing");
    if (r == -EBUSY && holder > 0)
        err_set(err, EBUSY, "network.tap-held", "TAP %s is held by process %d", name, (int)holder);
    if (r == -EBUSY && holder <= 0)
        err_set(err, EBUSY, "network.tap-held", "TAP %s is held by a process that cannot be seen from here", name);
    return r;
}

int network_namespace(const struct network *network, char *ret_path, size_t size) {
    const char *name = network->cfg.namespace;
    snprintf(ret_path, size, "%s%s", *name ? NETNS_DIR "/" : "", name);
    return network->nsfd;
}

/* While a single-queue TAP is attached to, nobody else can attach. So to get hold of it is the proof that nobody has
 * it, and it stays true until it is gone; a look into /proc alone would be a guess about the past. */
int network_tap_take_away(struct network *network, struct rtnl *rtnl, const struct link *link, struct err *err) {
    _cleanup_close_ int fd = -1;
    int r = network_tap_open(network, link->name, &fd, err);
    if (r == -EBUSY && tap_holder_find(network->nsfd, link->name, getpid()) == 0 &&
        tap_holder_find(network->nsfd, link->name, 0) == getpid())
        r = 0; /* only we */
    if (r == 0)
        r = link_delete(rtnl, link->index, err);
    return r == -ENODEV ? 0 : r;
}

/* Somebody may have renamed it: it is still known by the VM's id, its alternative name. Return: 1, 0 when there is none,
 * -errno. */
static int find_tap(struct rtnl *rtnl, const char *name, const char *vm_id, struct link *ret_link, struct err *err) {
    struct link link;
    int r = link_get_by_name(rtnl, name, &link, err);
    if (r == 0 && strcmp(link.name, name) == 0) { /* else it is only an alternative name of something else */
        *ret_link = link;
        return 1;
    }
    if (r == 0 || r == -ENODEV)
        r = link_get_by_name(rtnl, vm_id, &link, err);
    if (r < 0)
        return r == -ENODEV ? 0 : r;
    *ret_link = link;
    return link.is_tap && strcmp(link.alias, vm_id) == 0;
}

static int remove_checked(struct network *network, struct rtnl *rtnl, const char *name, const char *vm_id,
                          struct err *err) {
    struct link link;
    int r = find_tap(rtnl, name, vm_id, &link, err);
    if (r <= 0)
        return r;
    if (link.is_tap && strcmp(link.alias, vm_id) == 0)
        return network_tap_take_away(network, rtnl, &link, err);
    char alias[80];
    str_escape(link.alias, strlen(link.alias), alias, sizeof alias);
    return err_set(err, EPERM, "network.tap-foreign", "it is %s of \"%s\", not of %s, and stays",
                   link.is_tap ? "the TAP" : "another device", alias, vm_id);
}

/* The kernel takes 16 to 31 ms to let a device go, for it waits for all CPUs. So this has a socket of its own, and nobody else
 * waits with it: the name is this VM's until it has ended. */
static int remove_alone(struct network *network, const char *name, const char *vm_id, struct err *err) {
    struct rtnl *rtnl = NULL;
    int r = rtnl_open(network->nsfd, &rtnl, err);
    if (r == 0)
        r = remove_checked(network, rtnl, name, vm_id, err);
    rtnl_close(rtnl);
    if (r < 0)
        err_prefix(err, "remove TAP %s", name);
    return r;
}

int network_tap_remove(struct network *network, const char *name, const char *vm_id, struct err *err) {
    int r = check_names(name, vm_id, err);
    if (r == 0)
        r = remove_alone(network, name, vm_id, err);
    if (r == 0) {
        _cleanup_unlock_ pthread_mutex_t *held = network_lock(network);
        members_remove(network, name);
    }
    return r;
}

int network_tap_remove_idle(struct network *network, const char *name, const char *id, struct err *err) {
    char alias[IDLE_ALIAS_SIZE];
    idle_alias(id, alias);
    return remove_alone(network, name, alias, err);
}

bool network_tap_is_ours(const struct network *network, const struct link *link) {
    if (!link->is_tap)
        return false;
    return vm_id_is_valid(link->alias) ||
           (link->master == network->bridge && str_starts(link->name, NETWORK_TAP_PREFIX));
}

static void fill(const struct network *network, const struct link *link, const struct tap_holder *holders,
                 size_t holder_count, struct network_tap *ret) {
    *ret = (struct network_tap){.mac = link->mac,
                                .owner_uid = link->tun_owner,
                                .on_bridge = link->master == network->bridge,
                                .on_other_bridge = link->master != 0 && link->master != network->bridge,
                                .up = link->flags & IFF_UP};
    str_copy(ret->name, sizeof ret->name, link->name);
    if (vm_id_is_valid(link->alias))
        str_copy(ret->vm_id, sizeof ret->vm_id, link->alias);
    for (size_t i = 0; i < holder_count && ret->holder_pid == 0; i++)
        if (strcmp(holders[i].name, link->name) == 0)
            ret->holder_pid = holders[i].pid;
}

int network_tap_list_unlocked(struct network *network, bool all_of_bridge, struct network_tap **ret, size_t *ret_count,
                              struct err *err) {
    _cleanup_free_ struct link *links = NULL;
    _cleanup_free_ struct tap_holder *holders = NULL;
    size_t link_count = 0, holder_count = 0, count = 0;
    int r = link_dump(network->rtnl, &links, &link_count, err);
    if (r < 0)
        return r;
    r = tap_holders(network->nsfd, &holders, &holder_count);
    if (r < 0)
        return err_sys(err, -r, "network.failed", "find out who holds the TAPs");
    struct network_tap *taps = calloc(link_count + 1, sizeof *taps);
    if (!taps)
        return err_sys(err, ENOMEM, "network.failed", "list the TAPs");
    for (size_t i = 0; i < link_count; i++)
        if (network_tap_is_ours(network, &links[i]) ||
            (all_of_bridge && links[i].is_tap && links[i].master == network->bridge))
            fill(network, &links[i], holders, holder_count, &taps[count++]);
    *ret = taps;
    *ret_count = count;
    return 0;
}

int network_tap_list(struct network *network, struct network_tap **ret, size_t *ret_count, struct err *err) {
    _cleanup_unlock_ pthread_mutex_t *held = network_lock(network);
    int r = network_tap_list_unlocked(network, false, ret, ret_count, err);
    if (r < 0)
        err_prefix(err, "list the TAPs of bridge %s", network->cfg.bridge);
    return r;
}

int network_traffic(struct network *network, const char *tap, uint64_t *ret_bytes, struct err *err) {
    _cleanup_unlock_ pthread_mutex_t *held = network_lock_asking(network);
    return link_traffic(network->asking_rtnl, tap, ret_bytes, err);
}

/* The VMs in our nftables tables: elements of the sets that ruleset.h describes. What should be there is kept in memory,
 * so that tables that somebody took away can be put back as they were. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "netlink/neigh.h"
#include "netlink/nft.h"
#include "network/private.h"

#define RULESET_MAX (16 * 1024 * 1024) /* bytes: 1,023 VMs need 1.6 MB */

static struct nftset_key key_of(enum ruleset_key kind, const struct ruleset_vm *vm) {
    struct nftset_key key = {.len = 0};
    uint32_t ip = htonl(vm->ip);
    if (kind != RULESET_ADDRESS && kind != RULESET_ADDRESS_TWICE)
        nftset_key_add(&key, vm->tap, sizeof vm->tap);
    if (kind == RULESET_TAP_MAC || kind == RULESET_TAP_MAC_IP)
        nftset_key_add(&key, &vm->mac, sizeof vm->mac);
    if (kind != RULESET_TAP && kind != RULESET_TAP_MAC)
        nftset_key_add(&key, &ip, sizeof ip);
    if (kind == RULESET_ADDRESS_TWICE)
        nftset_key_add(&key, &ip, sizeof ip);
    return key;
}

static uint8_t family_of(const struct ruleset_set *set) {
    return set->inet ? NFPROTO_INET : NFPROTO_BRIDGE;
}

static struct ruleset_vm *find(struct network *network, const char *tap) {
    for (size_t i = 0; i < network->vm_count; i++)
        if (strcmp(network->vms[i].tap, tap) == 0)
            return &network->vms[i];
    return NULL;
}

size_t members_count(struct network *network) {
    pthread_mutex_lock(&network->memory_lock);
    size_t n = network->vm_count;
    pthread_mutex_unlock(&network->memory_lock);
    return n;
}

bool members_have_address(struct network *network, uint32_t ip) {
    bool found = false;
    pthread_mutex_lock(&network->memory_lock);
    for (size_t i = 0; i < network->vm_count && !found; i++)
        found = network->vms[i].ip == ip;
    pthread_mutex_unlock(&network->memory_lock);
    return found;
}

static int take_locked(struct network *network, const struct network_nic *nic, struct err *err) {
    if (network->vm_count == network->vm_cap) {
        size_t cap = network->vm_cap ? network->vm_cap * 2 : 16;
        struct ruleset_vm *bigger = reallocarray(network->vms, cap, sizeof *bigger);
        if (!bigger)
            return err_sys(err, ENOMEM, "network.failed", "keep a VM in mind");
        network->vms = bigger;
        network->vm_cap = cap;
    }
    struct ruleset_vm *vm = &network->vms[network->vm_count++];
    *vm = (struct ruleset_vm){.mac = nic->mac, .ip = nic->ip};
    str_copy(vm->tap, sizeof vm->tap, nic->tap);
    return 0;
}

static int take(struct network *network, const struct network_nic *nic, struct err *err) {
    pthread_mutex_lock(&network->memory_lock);
    int r = take_locked(network, nic, err);
    pthread_mutex_unlock(&network->memory_lock);
    return r;
}

static void drop(struct network *network, struct ruleset_vm *vm) {
    pthread_mutex_lock(&network->memory_lock);
    *vm = network->vms[--network->vm_count];
    pthread_mutex_unlock(&network->memory_lock);
}

int members_take_all(struct network *network, const struct network_nic *nics, size_t count, struct err *err) {
    int r = 0;
    for (size_t i = 0; i < count && r == 0; i++)
        r = take(network, &nics[i], err);
    return r;
}

/* --- counters --- */

struct reading {
    struct network *network;
    size_t set;
};

/* Called for a thousand elements of every set, so it compares before it builds: a set that counts has one part as key. */
static void take_count(const struct nftset_element *element, void *data) {
    struct reading *reading = data;
    struct network *network = reading->network;
    bool by_ip = ruleset_sets[reading->set].key == RULESET_ADDRESS;
    uint32_t ip = 0;
    if (element->key.len != (by_ip ? sizeof ip : VM_TAP_TEXT))
        return;
    if (by_ip)
        memcpy(&ip, element->key.data, sizeof ip);
    ip = ntohl(ip);
    for (size_t i = 0; i < network->vm_count; i++) {
        struct ruleset_vm *vm = &network->vms[i];
        if (by_ip ? vm->ip == ip : memcmp(vm->tap, element->key.data, sizeof vm->tap) == 0) {
            pthread_mutex_lock(&network->memory_lock);
            vm->count[reading->set] = (struct ruleset_count){element->packets, element->bytes};
            pthread_mutex_unlock(&network->memory_lock);
            return;
        }
    }
}

/* Before the tables are replaced: what cannot be read, because it is not there, goes on from what is remembered. */
static void read_counts(struct network *network) {
    struct reading reading = {.network = network};
    for (reading.set = 0; reading.set < RULESET_SETS; reading.set++) {
        const struct ruleset_set *set = &ruleset_sets[reading.set];
        if (set->reason != RULESET_MEMBER && network->vm_count > 0)
            nftset_each(network->nftset, family_of(set), RULESET_NAME, set->name, take_count, &reading, NULL);
    }
}

/* A copy of all of them; the caller frees it. */
static struct ruleset_vm *copy_all(struct network *network, size_t *ret_count) {
    pthread_mutex_lock(&network->memory_lock);
    struct ruleset_vm *copy = calloc(network->vm_count + 1, sizeof *copy);
    if (copy && network->vm_count > 0)
        memcpy(copy, network->vms, network->vm_count * sizeof *copy);
    *ret_count = network->vm_count;
    pthread_mutex_unlock(&network->memory_lock);
    return copy;
}

void members_distrust(struct network *network) {
    pthread_mutex_lock(&network->watch_lock);
    network->rules_are_stale = true;
    pthread_mutex_unlock(&network->watch_lock);
}

/* Between the two, what is heard is our own doing, at least in part. */
static void set_writing(struct network *network, bool is_writing) {
    pthread_mutex_lock(&network->watch_lock);
    if (!is_writing && network->rules_fd >= 0)
        nftset_watch_read(network->rules_fd, RULESET_NAME, NULL);
    network->rules_are_stale = false;
    network->is_writing = is_writing;
    pthread_mutex_unlock(&network->watch_lock);
}

static int write_tables(struct network *network, int nsfd, const struct ruleset_networks *networks, struct err *err) {
    _cleanup_strbuf_ struct strbuf text = {.max = RULESET_MAX};
    size_t count = 0;
    read_counts(network);
    _cleanup_free_ struct ruleset_vm *vms = copy_all(network, &count);
    if (vms)
        ruleset_write(&network->cfg, network->bridge_mac, vms, count, networks, &text);
    if (!text.data || text.truncated)
        return err_sys(err, ENOMEM, "network.failed", "write the nftables rules");
    set_writing(network, true);
    int r = nft_run(nsfd, text.data, NULL, err);
    set_writing(network, false);
    strbuf_free(&text);
    malloc_trim(0); /* with a thousand VMs the text and what libnftables made of it were 20 MB */
    return r;
}

int members_write(struct network *network, int nsfd, struct err *err) {
    struct ruleset_networks networks = {0};
    int r = own_networks_read(network, nsfd, &networks, err);
    if (r == 0)
        r = write_tables(network, nsfd, &networks, err);
    if (r == 0) {
        free(network->networks.prefixes);
        network->networks = networks;
    } else {
        free(networks.prefixes);
        members_distrust(network);
        err_prefix(err, "replace the nftables tables %s", RULESET_NAME);
    }
    return r;
}

/* --- one VM --- */

static size_t changes_of(struct network *network, const struct ruleset_vm *vm, bool remove,
                         struct nftset_change changes[RULESET_SETS]) {
    size_t n = 0;
    for (size_t i = 0; i < RULESET_SETS; i++) {
        const struct ruleset_set *set = &ruleset_sets[i];
        if (ruleset_has(&network->cfg, i))
            changes[n++] = (struct nftset_change){.remove = remove,
                                                  .family = family_of(set),
                                                  .table = RULESET_NAME,
                                                  .set = set->name,
                                                  .key = key_of(set->key, vm)};
    }
    return n;
}

static int check_unique(struct network *network, const struct network_nic *nic, struct err *err) {
    char ip[NET_IP_TEXT];
    net_format_ip(nic->ip, ip);
    if (memcmp(&nic->mac, &network->bridge_mac, sizeof nic->mac) == 0 || (nic->mac.byte[0] & 1))
        return err_set(err, EEXIST, "network.address-taken", "the MAC for %s is the bridge's own, or of a group",
                       nic->tap);
    for (size_t i = 0; i < network->vm_count; i++) {
        const struct ruleset_vm *vm = &network->vms[i];
        if (strcmp(vm->tap, nic->tap) == 0 || vm->ip == nic->ip || memcmp(&vm->mac, &nic->mac, sizeof nic->mac) == 0)
            return err_set(err, EEXIST, "network.address-taken", "%s with %s: TAP %s has that name, address or MAC",
                           nic->tap, ip, vm->tap);
    }
    return 0;
}

int members_add(struct network *network, const struct network_nic *nic, struct err *err) {
    struct nftset_change changes[RULESET_SETS];
    struct err ignored;
    int r = check_unique(network, nic, err);
    if (r == 0)
        r = take(network, nic, err);
    if (r < 0)
        return r;
    struct ruleset_vm *vm = &network->vms[network->vm_count - 1];
    r = nftset_apply(network->nftset, changes, changes_of(network, vm, false, changes), err ? err : &ignored);
    if (r == -ENOENT) /* somebody took tables or sets away */
        r = members_write(network, network->nsfd, err);
    if (r < 0)
        drop(network, vm);
    return r;
}

/* Elements that stay because of an error let nobody in who was not in before; the next guard removes them. */
void members_remove(struct network *network, const char *tap) {
    struct nftset_change changes[RULESET_SETS];
    struct ruleset_vm *vm = find(network, tap);
    if (!vm)
        return;
    if (nftset_apply(network->nftset, changes, changes_of(network, vm, true, changes), NULL) < 0)
        members_distrust(network);
    neigh_delete(network->rtnl, network->bridge, vm->ip, NULL);
    drop(network, vm);
}

/* What a VM's element in each set has counted, as far as it can be read now. */
static void read_stopped(struct network *network, struct ruleset_vm *vm) {
    for (size_t i = 0; i < RULESET_SETS; i++) {
        const struct ruleset_set *set = &ruleset_sets[i];
        struct nftset_key key = key_of(set->key, vm);
        struct nftset_element element;
        if (set->reason != RULESET_MEMBER && ruleset_has(&network->cfg, i) &&
            nftset_get(network->asking_nftset, family_of(set), RULESET_NAME, set->name, &key, &element, NULL) == 0)
            vm->count[i] = (struct ruleset_count){element.packets, element.bytes};
    }
}

/* Copies between the memory and vm: out of it the whole, into it what was counted. */
static bool recall(struct network *network, const char *tap, struct ruleset_vm *vm, bool store) {
    pthread_mutex_lock(&network->memory_lock);
    struct ruleset_vm *known = find(network, tap);
    if (known && store)
        memcpy(known->count, vm->count, sizeof known->count);
    else if (known)
        *vm = *known;
    pthread_mutex_unlock(&network->memory_lock);
    return known;
}

int network_stopped(struct network *network, const char *tap, struct network_stopped ret[RULESET_REASONS],
                    struct err *err) {
    _cleanup_unlock_ pthread_mutex_t *held = network_lock_asking(network);
    struct network_stopped found[RULESET_REASONS] = {0};
    struct ruleset_vm vm;
    if (!recall(network, tap, &vm, false))
        return err_set(err, ENOENT, "network.tap-missing", "%s is no VM's TAP here", tap);
    read_stopped(network, &vm);
    recall(network, tap, &vm, true);
    for (size_t i = 0; i < RULESET_SETS; i++) {
        if (ruleset_sets[i].reason == RULESET_MEMBER || !ruleset_has(&network->cfg, i))
            continue;
        found[ruleset_sets[i].reason].packets += vm.count[i].packets;
        found[ruleset_sets[i].reason].bytes += vm.count[i].bytes;
    }
    memcpy(ret, found, sizeof found);
    return 0;
}

/* --- against others --- */

int network_watch_fd(const struct network *network) {
    return network->watch_fd;
}

static void hear(struct network *network, bool *ret_rules, bool *ret_networks) {
    pthread_mutex_lock(&network->watch_lock);
    if (!network->is_writing && nftset_watch_read(network->rules_fd, RULESET_NAME, network->nftset))
        network->rules_are_stale = true;
    for (size_t i = 0; i < NETWORK_SPACES; i++)
        if (network->addrs_fd[i] >= 0 && addr_watch_read(network->addrs_fd[i]))
            network->networks_are_stale = true;
    *ret_rules = network->rules_are_stale;
    *ret_networks = network->networks_are_stale;
    pthread_mutex_unlock(&network->watch_lock);
}

bool network_heard(struct network *network) {
    bool rules, networks;
    hear(network, &rules, &networks);
    return rules || networks;
}

/* An address that is only renewed is heard of too. Return: 1, 0 or -errno. */
static int are_other_networks(struct network *network, struct err *err) {
    const struct ruleset_networks *known = &network->networks;
    struct ruleset_networks now;
    int r = own_networks_read(network, network->nsfd, &now, err);
    if (r < 0)
        return r;
    bool same = now.count == known->count;
    for (size_t i = 0; i < now.count && same; i++)
        same = now.prefixes[i].address == known->prefixes[i].address &&
               now.prefixes[i].length == known->prefixes[i].length;
    free(now.prefixes);
    return !same;
}

int network_guard(struct network *network, struct err *err) {
    _cleanup_unlock_ pthread_mutex_t *held = network_lock(network);
    bool rules, networks;
    hear(network, &rules, &networks);
    int r = rules ? 1 : networks ? are_other_networks(network, err) : 0;
    if (r <= 0)
        return r;
    r = members_write(network, network->nsfd, err);
    if (r < 0)
        return r;
    return rules ? NETWORK_GUARDED_RULES : NETWORK_GUARDED_NETWORKS;
}

/* What the controller leaves in its state folder for whoever has to know where things are when it does not run, and which
 * configuration file it had: the doctor. Written at each start. */
#pragma once

#include "base/err.h"
#include "model/config.h"

struct declared_network {
    char namespace[64]; /* empty: the host's own */
    char bridge[16];    /* empty: nothing is declared */
    struct net_prefix address;
    char uplink[16]; /* empty: no way to the outside */
    bool masquerade;
};

struct declared {
    char store_file[CONFIG_TEXT]; /* absolute */
    uint16_t port[VM_TYPE_COUNT]; /* TCP port by which a VM of this type is proven; 0: an echo */
    struct declared_network network;
};

/* Errors: "store.declare". */
int declared_write(const char *state_dir, const struct declared *declared, struct err *err);

/* What is not there is as the defaults have it, with the store in state_dir. Return: 0; -EBADMSG: there is such a file, and
 * it is not what it should be (*ret has the defaults then); or another -errno of reading it. */
int declared_read(const char *state_dir, struct declared *ret);

/* Who hangs on which port of the bridge. */
#include <errno.h>
#include <linux/if_bridge.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "network/private.h"

static int by_number(const void *a, const void *b) {
    const struct network_port *p = a, *q = b;
    /* 0, which is no port, becomes the greatest. */
    int left = (uint16_t)(p->number - 1), right = (uint16_t)(q->number - 1);
    return left != right ? left - right : strcmp(p->name, q->name);
}

static void fill(const struct network *network, const struct link *link, struct network_port *ret) {
    bool on_bridge = link->master == network->bridge;
    *ret = (struct network_port){.number = on_bridge ? link->port_number : 0,
                                 .up = link->flags & IFF_UP,
                                 .carrier = link->carrier,
                                 .forwards = on_bridge && link->port_state == BR_STATE_FORWARDING};
    str_copy(ret->name, sizeof ret->name, link->name);
    str_copy(ret->kind, sizeof ret->kind, link->kind);
    if (link->is_tap && vm_id_is_valid(link->alias))
        str_copy(ret->vm_id, sizeof ret->vm_id, link->alias);
}

int network_ports_of(const struct network *network, const struct link *links, size_t link_count,
                     struct network_port **ret, size_t *ret_count, struct err *err) {
    size_t count = 0;
    struct network_port *ports = calloc(link_count + 1, sizeof *ports);
    if (!ports)
        return err_sys(err, ENOMEM, "network.failed", "list the ports");
    for (size_t i = 0; i < link_count; i++)
        if (links[i].master == network->bridge || network_tap_is_ours(network, &links[i]))
            fill(network, &links[i], &ports[count++]);
    qsort(ports, count, sizeof *ports, by_number);
    *ret = ports;
    *ret_count = count;
    return 0;
}

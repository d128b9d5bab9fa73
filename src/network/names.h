/* Hardware addresses that the host's side gives itself. Pure. */
#pragma once

#include "model/config.h"
#include "model/net.h"

/* Of the bridge: 02:fc and a hash of its name and address. Guests keep it in their neighbour caches, so it must be the
 * same after the bridge was lost and made again. */
struct net_mac names_bridge_mac(const struct config_network *cfg);

/* Of a VM's TAP: fe:fc and a hash of the VM's id. Never the guest's own (the bridge would take the guest's frames for
 * the host's), and numerically high, so that it would not become the bridge's even if that were not pinned. */
struct net_mac names_tap_mac(const char *vm_id);

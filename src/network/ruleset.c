#include "network/ruleset.h"

#include <string.h>

bool ruleset_is_wanted(const struct config_network *cfg) {
    return *cfg->uplink && cfg->masquerade;
}

bool ruleset_name_is_plain(const char *name) {
    for (; *name; name++)
        if (*name <= ' ' || *name > '~' || strchr("\"\\*;{}$", *name))
            return false;
    return true;
}

/* "add" first, because "delete" of what is not there would fail. */
void ruleset_write_removal(struct strbuf *text) {
    strbuf_addf(text, "add table %s\ndelete table %s\n", RULESET_TABLE, RULESET_TABLE);
}

/* add table inet master_controller
 * delete table inet master_controller
 * table inet master_controller {
 *     comment "master-controller: egress of br0"
 *     chain forward {
 *         type filter hook forward priority filter; policy accept;
 *         iifname "wan0" oifname "br0" ct state new counter drop
 *     }
 *     chain postrouting {
 *         type nat hook postrouting priority srcnat; policy accept;
 *         ip saddr 192.168.0.0/16 oifname "wan0" masquerade
 *     }
 * }
 *
 * The rule in `forward`: with ip_forward on, a neighbour on the uplink's network could route packets to the VMs. Behind
 * a masquerade only answers come in. */
void ruleset_write(const struct config_network *cfg, struct strbuf *text) {
    char network[NET_IP_TEXT];
    net_format_ip(cfg->address.address & net_mask(cfg->address.length), network);
    ruleset_write_removal(text);
    if (!ruleset_is_wanted(cfg))
        return;
    strbuf_addf(text,
                "table %s {\n"
                "    comment \"master-controller: egress of %s\"\n"
                "    chain forward {\n"
                "        type filter hook forward priority filter; policy accept;\n"
                "        iifname \"%s\" oifname \"%s\" ct state new counter drop\n"
                "    }\n",
                RULESET_TABLE, cfg->bridge, cfg->uplink, cfg->bridge);
    strbuf_addf(text,
                "    chain postrouting {\n"
                "        type nat hook postrouting priority srcnat; policy accept;\n"
                "        ip saddr %s/%u oifname \"%s\" masquerade\n"
                "    }\n"
                "}\n",
                network, cfg->address.length, cfg->uplink);
}

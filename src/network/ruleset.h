/* The nftables table of our own, as text. Pure. */
#pragma once

#include <stdbool.h>

#include "base/str.h"
#include "model/config.h"

#define RULESET_TABLE "inet master_controller"

/* Whether this configuration needs a table: it has an uplink and masquerades. */
bool ruleset_is_wanted(const struct config_network *cfg);

/* Adds the commands that replace whatever table of that name there is, in one transaction, by what the configuration
 * says; without a need for a table they only remove it. The names of bridge and uplink have been checked. */
void ruleset_write(const struct config_network *cfg, struct strbuf *text);

/* Adds the commands that remove the table; it need not exist. */
void ruleset_write_removal(struct strbuf *text);

/* Whether an interface's name can stand between quotation marks in a ruleset and mean itself. */
bool ruleset_name_is_plain(const char *name);

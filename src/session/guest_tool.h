/* A provider's command in a guest: its login, its check. */
#pragma once

#include <jansson.h>

#include "model/provider.h"
#include "model/vm.h"

/* What the agent is asked to run, in the profile's environment, as who works in VMs of that type. Return: a new reference. */
json_t *guest_tool_request(const struct provider *provider, const struct provider_words *command, enum vm_type type);

/* Whether the agent's answer to it is that it ended with 0. ok may be NULL. */
bool guest_tool_ended_well(const json_t *ok);

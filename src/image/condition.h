/* A unit's ConditionX= and AssertX=, as far as an image alone decides them: what is on its disk, and what every VM is. The rest
 * (memory, capabilities, what appears under /run) only a running guest can tell.
 * Source: systemd.unit(5), "Conditions and Asserts", of systemd 252. */
#pragma once

#include "image/ext4.h"
#include "image/unit.h"

/* ret_no: the first one that keeps the unit from starting, NULL where none does; ret_unknown: one that cannot be decided, NULL
 * where there is none. Both belong to the unit. Return: 0, -E2BIG, -ENOMEM. */
int condition_check(struct ext4 *fs, const struct unit *unit, const struct unit_condition **ret_no,
                    const struct unit_condition **ret_unknown);

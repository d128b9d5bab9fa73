/* Who works in the guest of a VM of that type, and where: as guest/recipe/customize makes them. */
#pragma once

#include "model/vm.h"

struct guest_home {
    const char *user, *path;
};
struct guest_home guest_home(enum vm_type type);

#include "session/guest_home.h"

struct guest_home guest_home(enum vm_type type) {
    switch (type) {
    case VM_TYPE_BROWSER:
        return (struct guest_home){"desktop", "/home/desktop"};
    case VM_TYPE_CLI:
        return (struct guest_home){"user", "/home/user"};
    }
    return (struct guest_home){"", ""};
}

/* A guest for tests of session/: the real agent as a process, a real store, a real vault. VMs are records; the guest's user is
 * who runs the test, and its home a folder. */
#pragma once

#include <poll.h>
#include <pwd.h>

#include "agent_rig.h"
#include "session/bundle.h"
#include "session/guest_home.h"
#include "store/store.h"
#include "vault/vault.h"
#include "vm/vms.h"

/* What stands in for vm/: link with --wrap=vms_agent and --wrap=guest_home. */
static struct {
    struct agent *agent;
    char home[96], user[64];
} guest;

struct agent *__wrap_vms_agent(struct vms *vms, const char *id);
struct agent *__wrap_vms_agent(struct vms *vms, const char *id) {
    return guest.agent;
}

struct guest_home __wrap_guest_home(enum vm_type type);
struct guest_home __wrap_guest_home(enum vm_type type) {
    return (struct guest_home){guest.user, guest.home};
}

struct world {
    struct rig rig;
    char dir[64], key[96];
    struct store *store;
    struct vault *vault;
};

static inline void guest_start(struct world *w) {
    int fd;
    w->rig.pid = start_agent(&fd);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    struct agent_params params = {.loop = w->rig.loop, .fd = fd, .changed = on_changed, .userdata = &w->rig};
    w->rig.state = AGENT_CONNECTING;
    assert_int_equal(agent_new(&params, &w->rig.agent, NULL), 0);
    guest.agent = w->rig.agent;
}

static inline void guest_wait(struct world *w) {
    for (int64_t end = time_monotonic_ms() + WAIT_MS; w->rig.state != AGENT_READY && time_monotonic_ms() < end;)
        turn(&w->rig);
    assert_int_equal(w->rig.state, AGENT_READY);
}

static inline void guest_stop(struct world *w) {
    guest.agent = NULL;
    agent_free(w->rig.agent);
    w->rig.agent = NULL;
    end_agent(w->rig.pid);
}

static inline const char *guest_own_user(void) {
    struct passwd *p = getpwuid(getuid());
    assert_non_null(p);
    return p->pw_name;
}

/* A tool that was left may write once more before the agent has ended it. */
static inline void guest_empty_home(void) {
    for (int tries = 0;; tries++) {
        dir_remove(guest.home);
        if (mkdir(guest.home, 0700) == 0)
            return;
        assert_true(tries < 1000);
        poll(NULL, 0, 5);
    }
}

static inline void world_begin(struct world *w) {
    char path[128];
    memset(&guest, 0, sizeof guest);
    str_copy(guest.user, sizeof guest.user, guest_own_user());
    strcpy(w->dir, "/tmp/mc-guest-XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    snprintf(guest.home, sizeof guest.home, "%s/home", w->dir);
    assert_int_equal(mkdir(guest.home, 0700), 0);
    assert_int_equal(loop_new(&w->rig.loop, NULL), 0);
    snprintf(path, sizeof path, "%s/db", w->dir);
    assert_int_equal(store_open(path, "host", &w->store, NULL), 0);
    snprintf(w->key, sizeof w->key, "%s/key", w->dir);
    assert_int_equal(vault_new(w->store, w->key, &w->vault, NULL), 0);
    guest_start(w);
}

/* What uses it is freed already. */
static inline void world_end(struct world *w) {
    if (w->rig.agent)
        guest_stop(w);
    vault_free(w->vault);
    store_close(w->store);
    loop_free(w->rig.loop);
    dir_remove(w->dir);
}

/* master-controller: reads its configuration, takes its state folder, brings the rooms up in the order of their
 * dependence and takes them down in reverse. VMs and the network outlive it. */
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <jansson.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "api/api.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"
#include "daemon/config_file.h"
#include "image/image.h"
#include "session/providers.h"
#include "store/declared.h"

#define STATE_DIR_DEFAULT "/var/lib/firecracker"

/* A daemon that was killed may have left a child between its fork and its exec. It ends at once, but has the lock and the
 * listening sockets for that moment. */
#define CLAIM_ATTEMPTS 50
#define CLAIM_PAUSE_US 20000

struct options {
    const char *config_file;
    const char *state_dir;
    bool check;
    bool remove;
    bool verbose;
    const char *vmm; /* NULL: as the configuration says */
};

struct daemon {
    struct config config;
    char state_dir[200];
    char store_file[CONFIG_TEXT];
    char image_dir[CONFIG_TEXT];
    int lock_fd;
    struct loop *loop;
    struct http_server *http;
    struct network *network;
    struct store *store;
    struct vms *vms;
    struct sessions *sessions;
    struct vault *vault;
    struct api *api;
};

static const char usage[] =
    "usage: master-controller [--config FILE] [--state-dir DIR] [--vmm NAME] [--check | --remove] [--verbose]\n"
    "\n"
    "  --config FILE    default /etc/master-controller/master-controller.conf\n"
    "  --state-dir DIR  images, VMs, evidence, database; default " STATE_DIR_DEFAULT "\n"
    "  --vmm NAME       auto, qemu or firecracker, in place of what the configuration says\n"
    "  --check          only say whether configuration, page, image and VMM are usable here; changes\n"
    "                   nothing\n"
    "  --remove         end every VM, take the bridge and the namespace away, and exit (no daemon may run)\n"
    "  --verbose        log more\n";

/* Return: 0; 1 when the program is to exit with *ret_status. */
static int read_options(int argc, char **argv, struct options *ret_options, int *ret_status) {
    static const struct option longs[] = {{"config", required_argument, NULL, 'c'},
                                          {"state-dir", required_argument, NULL, 's'},
                                          {"vmm", required_argument, NULL, 'm'},
                                          {"check", no_argument, NULL, 'k'},
                                          {"remove", no_argument, NULL, 'r'},
                                          {"verbose", no_argument, NULL, 'v'},
                                          {"version", no_argument, NULL, 'V'},
                                          {"help", no_argument, NULL, 'h'},
                                          {0}};
    struct options o = {.state_dir = STATE_DIR_DEFAULT};
    *ret_status = 2;
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (c == 'c')
            o.config_file = optarg;
        else if (c == 's')
            o.state_dir = optarg;
        else if (c == 'm')
            o.vmm = optarg;
        else if (c == 'k')
            o.check = true;
        else if (c == 'r')
            o.remove = true;
        else if (c == 'v')
            o.verbose = true;
        else if (c == 'V' || c == 'h') {
            printf("%s", c == 'V' ? "master-controller " MC_VERSION "\n" : usage);
            *ret_status = 0;
            return 1;
        } else {
            fprintf(stderr, "%s", usage);
            return 1;
        }
    }
    if (optind != argc || (o.check && o.remove)) {
        fprintf(stderr, "%s", usage);
        return 1;
    }
    *ret_options = o;
    return 0;
}

static void complain(const struct err *err) {
    fprintf(stderr, "master-controller: %s\n", err->detail);
    if (*err->hint)
        fprintf(stderr, "  %s\n", err->hint);
}

static int fill_paths(struct daemon *d, const struct options *options, struct err *err) {
    if (*options->state_dir != '/' || !str_copy(d->state_dir, sizeof d->state_dir, options->state_dir))
        return err_set(err, EINVAL, "state.folder", "--state-dir %s is not an absolute path of at most %zu bytes",
                       options->state_dir, sizeof d->state_dir - 1);
    snprintf(d->store_file, sizeof d->store_file, "%s/master-controller.db", d->state_dir);
    snprintf(d->image_dir, sizeof d->image_dir, "%s/snapshots/base", d->state_dir);
    if (*d->config.store_file)
        str_copy(d->store_file, sizeof d->store_file, d->config.store_file);
    if (*d->config.image_dir)
        str_copy(d->image_dir, sizeof d->image_dir, d->config.image_dir);
    return 0;
}

static int socket_group(const char *name, gid_t *ret_gid, struct err *err) {
    *ret_gid = (gid_t)-1;
    if (!*name)
        return 0;
    struct group *group = getgrnam(name);
    if (!group) {
        err_set(err, EINVAL, "config.bad-value", "[api] socket_group: there is no group \"%s\"", name);
        return err_hint(err, "make it with groupadd, or leave the key empty: then root alone may use the socket");
    }
    *ret_gid = group->gr_gid;
    return 0;
}

static void check_provider(void *userdata, const char *name, const struct provider *provider, const struct err *err) {
    if (err) {
        complain(err);
        *(int *)userdata = 1;
    } else {
        printf("provider: %s (%s)%s\n", name, provider->title, provider->enabled ? "" : ", not enabled");
    }
}

/* A host may be for VMs of one type alone. */
static int check_images(struct daemon *d) {
    struct err err = {0};
    struct image image;
    int usable = 0;
    for (int type = 0; type < VM_TYPE_COUNT; type++) {
        const char *name = vm_type_name((enum vm_type)type), *own = d->config.vm.type[type].image_dir;
        if (image_open_for(*own ? own : d->image_dir, name, &image, &err) < 0) {
            complain(&err);
        } else {
            printf("image: %s, for %s VMs\n", image.name, name);
            usable++;
        }
    }
    return usable > 0 ? 0 : -ENOENT;
}

static int check(struct daemon *d) {
    struct err err = {0};
    struct vmm_choice choice;
    gid_t gid;
    int status = 0;
    printf("configuration: ok\n");
    if (socket_group(d->config.api.socket_group, &gid, &err) < 0) {
        complain(&err);
        status = 1;
    }
    if (api_check_files(d->config.api.web_dir, &err) < 0) {
        complain(&err);
        status = 1;
    } else {
        printf("page: %s\n", d->config.api.web_dir);
    }
    if (vmm_choose(&d->config.vm, &choice, &err) < 0) {
        complain(&err);
        status = 1;
    } else {
        printf("VMM: %s\n", choice.reason);
    }
    if (check_images(d) < 0)
        status = 1;
    provider_each(d->config.session.providers, check_provider, &status);
    return status;
}

static int lock_state(struct daemon *d, struct err *err) {
    char path[256];
    int r = dir_make(d->state_dir, 0711);
    if (r < 0)
        return err_sys(err, -r, "state.folder", "make the state folder %s", d->state_dir);
    snprintf(path, sizeof path, "%s/lock", d->state_dir);
    d->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (d->lock_fd < 0)
        return err_sys(err, errno, "state.folder", "open %s", path);
    int attempts = CLAIM_ATTEMPTS;
    while ((r = flock(d->lock_fd, LOCK_EX | LOCK_NB)) < 0 && --attempts > 0)
        usleep(CLAIM_PAUSE_US);
    if (r < 0) {
        err_set(err, EBUSY, "daemon.running", "another master-controller uses the state folder %s", d->state_dir);
        return err_hint(err, "stop that one, or give this one another --state-dir");
    }
    return 0;
}

/* A client costs up to three descriptors; the default of 1,024 is for select(). */
static void raise_fd_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max < 1048576 ? limit.rlim_max : 1048576;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* Of values in JSON: codes, and addresses that hold some. */
static void wipe_and_free(void *data) {
    mem_free(data, malloc_usable_size(data));
}

/* Tickets, tokens and credentials pass through our memory: none of it stays there, or goes into a core file, ours or a
 * child's, nor to who would trace us without being root. */
static void keep_secrets(void) {
    static const struct rlimit none = {0, 0};
    prctl(PR_SET_DUMPABLE, 0);
    setrlimit(RLIMIT_CORE, &none);
    json_set_alloc_funcs(malloc, wipe_and_free);
}

static void handle(struct http_request *req, void *userdata) {
    struct daemon *d = userdata;
    api_handle(req, d->api);
}

static bool is_loopback(const char *listen) {
    return str_starts(listen, "127.") || str_starts(listen, "[::1]:");
}

static int listen_tcp(struct daemon *d, struct err *err) {
    int attempts = CLAIM_ATTEMPTS, r;
    while ((r = http_server_listen_tcp(d->http, d->config.api.listen, err)) == -EADDRINUSE && --attempts > 0)
        usleep(CLAIM_PAUSE_US);
    return r;
}

static int listen_unix(struct daemon *d, gid_t gid, struct err *err) {
    mode_t mode = gid == (gid_t)-1 ? 0600 : 0660;
    int attempts = CLAIM_ATTEMPTS, r;
    while ((r = http_server_listen_unix(d->http, d->config.api.socket, mode, gid, err)) == -EADDRINUSE &&
           --attempts > 0)
        usleep(CLAIM_PAUSE_US);
    return r;
}

/* Before anything is made, so that a port in use changes nothing. */
static int start_listening(struct daemon *d, struct err *err) {
    const struct config_api *config = &d->config.api;
    struct http_limits limits = http_limits_default;
    gid_t gid;
    limits.body_bytes = config->body_bytes;
    limits.header_deadline_ms = (int)config->header_timeout_ms;
    limits.body_deadline_ms = (int)config->body_timeout_ms;
    limits.connections = config->connections;
    limits.connections_per_ip = is_loopback(config->listen) ? config->connections : config->connections_per_address;
    limits.requests_per_second = config->requests_per_second;
    limits.burst = config->requests_per_second * 4;
    limits.always_path = "/health";
    int r = socket_group(config->socket_group, &gid, err);
    if (r == 0)
        r = http_server_new(loop_event(d->loop), &limits, handle, d, &d->http, err);
    if (r == 0)
        r = listen_tcp(d, err);
    if (r < 0)
        return r;
    char folder[CONFIG_TEXT];
    str_copy(folder, sizeof folder, config->socket);
    *strrchr(folder, '/') = '\0';
    r = *folder ? dir_make(folder, 0755) : 0;
    if (r < 0)
        return err_sys(err, -r, "api.socket", "make %s", folder);
    return listen_unix(d, gid, err);
}

/* For a doctor that comes when there is no daemon to ask. */
static int declare(const struct daemon *d, struct err *err) {
    struct declared declared = {.store_file = ""};
    str_copy(declared.store_file, sizeof declared.store_file, d->store_file);
    for (int type = 0; type < VM_TYPE_COUNT; type++)
        declared.port[type] = d->config.vm.type[type].port;
    const struct config_network *network = &d->config.network;
    str_copy(declared.network.namespace, sizeof declared.network.namespace, network->namespace);
    str_copy(declared.network.bridge, sizeof declared.network.bridge, network->bridge);
    str_copy(declared.network.uplink, sizeof declared.network.uplink, network->uplink);
    declared.network.address = network->address;
    declared.network.masquerade = network->masquerade;
    return declared_write(d->state_dir, &declared, err);
}

/* The rooms that --remove needs too. */
static int start_vms(struct daemon *d, struct err *err) {
    char host[64] = "localhost";
    gethostname(host, sizeof host - 1);
    int r = store_open(d->store_file, host, &d->store, err);
    struct err ignored = {0}; /* on a full disk what was declared before is still there, and the VMs have to go on */
    if (r == 0 && declare(d, &ignored) < 0)
        log_error("%s", ignored.detail);
    if (r == 0)
        r = vms_start_network(d->store, &d->config.network, &d->network, err);
    if (r == 0)
        r = network_claim(d->network, err);
    if (r < 0)
        return r;
    struct vms_params params = {.loop = d->loop,
                                .store = d->store,
                                .network = d->network,
                                .config = &d->config,
                                .state_dir = d->state_dir,
                                .image_dir = d->image_dir};
    return vms_new(&params, &d->vms, err);
}

/* Without a vault: only to see that they end with their VMs. */
static int start_sessions(struct daemon *d, struct err *err) {
    struct sessions_params params = {
        .loop = d->loop, .store = d->store, .vms = d->vms, .vault = d->vault, .config = &d->config};
    return sessions_new(&params, &d->sessions, err);
}

/* A key that cannot be used stops logins and nothing else. */
static int start_vault(struct daemon *d, struct err *err) {
    struct vault_rotation rotation;
    struct err problem = {0};
    int r = vault_new(d->store, d->config.session.vault_key_file, &d->vault, err);
    if (r < 0)
        return r;
    if (vault_resume(d->vault, &rotation, &problem) < 0)
        log_error("the vault cannot be used: %s (%s)", problem.detail, problem.hint);
    else if (rotation.rewrapped || !rotation.done)
        log_event(LOG_LEVEL_INFO, (struct log_about){.event = "vault-rotated"},
                  "a rotation went on: %u credentials have the new key, %u could not be opened%s", rotation.rewrapped,
                  rotation.unopened, rotation.done ? "" : "; the old keys stay");
    return 0;
}

static int start_api(struct daemon *d, struct err *err) {
    struct api_params params = {.loop = d->loop,
                                .store = d->store,
                                .network = d->network,
                                .vms = d->vms,
                                .sessions = d->sessions,
                                .vault = d->vault,
                                .config = &d->config};
    return api_new(&params, &d->api, err);
}

static void on_signal(void *userdata) {
    struct daemon *d = userdata;
    http_server_stop_accepting(d->http);
    api_stop(d->api);
}

static void stop(struct daemon *d) {
    http_server_free(d->http);
    api_free(d->api);
    sessions_free(d->sessions);
    vault_free(d->vault);
    vms_free(d->vms);
    network_free(d->network);
    store_close(d->store);
    loop_free(d->loop);
    fd_close(&d->lock_fd);
}

static int serve(struct daemon *d, struct err *err) {
    int r = loop_new(&d->loop, err);
    if (r == 0)
        r = start_listening(d, err);
    if (r == 0)
        r = start_vms(d, err);
    if (r == 0)
        r = start_vault(d, err);
    if (r == 0)
        r = start_sessions(d, err);
    if (r == 0)
        r = start_api(d, err);
    if (r < 0)
        return r;
    store_started(d->store);
    loop_on_signal(d->loop, on_signal, d);
    log_event(LOG_LEVEL_INFO, (struct log_about){.event = "started"}, "listening on %s and %s, state in %s",
              d->config.api.listen, d->config.api.socket, d->state_dir);
    sd_event_set_watchdog(loop_event(d->loop), true);
    sd_notify(0, "READY=1");
    r = loop_run(d->loop, err);
    sd_notify(0, "STOPPING=1");
    log_event(LOG_LEVEL_INFO, (struct log_about){.event = "stopping"}, "VMs go on without the controller");
    return r;
}

static int remove_everything(struct daemon *d, struct err *err) {
    int r = loop_new(&d->loop, err);
    if (r == 0)
        r = start_vms(d, err);
    if (r == 0)
        r = start_sessions(d, err);
    if (r < 0 && d->store && !d->vms && vms_kill_recorded(d->store, NULL) == 0)
        err_prefix(err, "the VMs' processes were ended, but the network stays");
    if (r == 0)
        r = vms_remove_all(d->vms, "operator (--remove)", err);
    return r < 0 ? r : network_remove(d->network, err);
}

int main(int argc, char **argv) {
    struct options options;
    struct daemon d = {.lock_fd = -1};
    struct err err = {0};
    int status;
    if (read_options(argc, argv, &options, &status))
        return status;
    signal(SIGPIPE, SIG_IGN); /* who reads our log may go; we stay */
    log_open(options.verbose ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO);
    umask(0022);
    raise_fd_limit();
    keep_secrets();
    /* A heap a thread would keep what each has needed once. */
    mallopt(M_ARENA_MAX, 2);
    int r = config_file_load(options.config_file, &d.config, &err);
    if (r == 0 && options.vmm)
        r = config_set(&d.config, "vm", "vmm", options.vmm, &err);
    if (r == 0)
        r = fill_paths(&d, &options, &err);
    if (r == 0 && options.check)
        return check(&d);
    if (r == 0 && geteuid() != 0) {
        r = err_set(&err, EPERM, "daemon.not-root", "this needs root: it makes network devices and starts VMs");
        err_hint(&err, "start it by systemd, or with sudo");
    }
    if (r == 0)
        r = lock_state(&d, &err);
    if (r == 0)
        r = options.remove ? remove_everything(&d, &err) : serve(&d, &err);
    if (r < 0)
        complain(&err);
    stop(&d);
    return r < 0;
}

/* The configuration as plain data: one table says every key's section, name, kind, limits and default. Reading the
 * file is the daemon's work (daemon/config_file.h). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "model/net.h"
#include "model/vm.h"

#define CONFIG_TEXT 256

struct config_network {
    char namespace[64]; /* empty: the host's own */
    char bridge[16];    /* interface name */
    struct net_prefix address;
    char uplink[16]; /* empty: no way to the outside */
    char dns[NET_IP_TEXT];
    bool masquerade;
    bool vm_to_vm;                /* VMs of this host may reach each other */
    char allow[CONFIG_TEXT];      /* networks that VMs may reach though they are private: config_next_prefix() */
    char host_ports[CONFIG_TEXT]; /* of the gateway, that VMs may reach: config_next_port() */
    uint32_t packets_per_second;  /* that a VM may send; 0: any number, as in the next ones */
    uint32_t megabits_per_second; /* each way */
    uint32_t arp_per_second;      /* requests and replies that a VM may send */
    uint32_t connections_per_second;
    uint32_t connections;     /* to the outside, at a time */
    uint32_t address_rest_ms; /* from the end of a VM until its address is given again, where others are free */
};

struct config_vm_type {
    uint32_t memory_mib;
    uint32_t vcpus;
    uint32_t disk_mib;           /* what the guest can write to, with the image; 0, or less than the image: as that */
    char image_dir[CONFIG_TEXT]; /* folder of the image's builds; empty: [image] directory */
    uint32_t boot_timeout_ms;    /* from the start of the VMM until the path works */
    uint16_t port;               /* TCP port by which the path is proven; 0: an ICMP echo */
    uint32_t idle_after_ms;      /* without use, after which it is hibernated; 0: never */
};

struct config_vm {
    char vmm[16];  /* auto, qemu, firecracker */
    char accel[8]; /* auto, kvm, tcg */
    char qemu_binary[CONFIG_TEXT];
    char firecracker_binary[CONFIG_TEXT]; /* empty: looked for in /usr/local/bin and /usr/bin */
    char jailer[8];                       /* auto, yes, no */
    char jailer_binary[CONFIG_TEXT];      /* as firecracker_binary */
    char mctl_binary[CONFIG_TEXT];        /* empty: where it is installed or built with this daemon */
    uint32_t quota_per_user;              /* VMs of one user at a time */
    uint32_t quota_host;                  /* VMs of this host at a time */
    uint32_t memory_percent;              /* of the host's memory that its VMs may be promised together */
    char cgroup[CONFIG_TEXT];             /* a delegated control group for the VMs; empty: see doc/ */
    uint32_t evidence_days;               /* evidence older than that is removed */
    uint32_t evidence_mib;                /* and the oldest while there is more than that */
    uint32_t uid_base;                    /* VM n runs as uid and gid uid_base + n */
    uint32_t probe_interval_ms;
    uint32_t probe_timeout_ms;
    uint32_t reach_interval_ms; /* between two looks at a running VM */
    uint32_t idle_yields_ms;    /* without use, after which a VM may be hibernated to make room for another; 0: never */
    uint32_t stop_timeout_ms;   /* from the request to stop until the VMM is killed */
    /* Each: to save a VM's memory, to load it, to go on. */
    uint32_t hibernate_timeout_ms;
    struct config_vm_type type[VM_TYPE_COUNT];
};

struct config_api {
    char listen[64];
    char socket[CONFIG_TEXT];
    char socket_group[64]; /* empty: root alone */
    char admin_token_file[CONFIG_TEXT];
    char public_url[CONFIG_TEXT]; /* empty: http:// and listen */
    uint32_t requests_per_second;
    uint32_t header_timeout_ms;
    uint32_t body_timeout_ms;
    uint32_t body_bytes;
    uint32_t connections;
    uint32_t connections_per_address;
    char web_dir[CONFIG_TEXT];
};

struct config_session {
    uint32_t timeout_ms;         /* from the moment that the desktop could be used; 0: none */
    uint32_t abandoned_ms;       /* without a sign of a page that was there; 0: never */
    char providers[CONFIG_TEXT]; /* the folder of provider profiles */
    char vault_key_file[CONFIG_TEXT];
    uint32_t ticket_ms;
    uint32_t cookie_ms;
    uint32_t desktops; /* WebSockets to the desktop of one session at a time; 0: no limit but the relay's */
};

struct config_warm {
    bool templates;               /* one is made for each type of VM, and VMs begin from it */
    uint32_t quiet_ms;            /* without a VM on its way up or down, until a template is made */
    uint32_t pool[VM_TYPE_COUNT]; /* so many are kept ready */
};

struct config {
    struct config_network network;
    struct config_vm vm;
    struct config_warm warm;
    struct config_api api;
    struct config_session session;
    char image_dir[CONFIG_TEXT];  /* empty: STATE/snapshots/base */
    char store_file[CONFIG_TEXT]; /* empty: STATE/master-controller.db */
    uint32_t store_days;          /* records of ended VMs and sessions older than that are removed */
};

/* Sets every key to its default. */
void config_defaults(struct config *ret_config);

/* Sets one key. Errors: "config.unknown-section", "config.unknown-key" (with the nearest name as a hint),
 * "config.bad-value" (with what would be right). The configuration is unchanged then. */
int config_set(struct config *config, const char *section, const char *key, const char *value, struct err *err);

/* The next word of a list such as "10.1.2.0/24, 192.168.7.9": a prefix, a bare address being one of 32 bits. *at is moved
 * behind it. Return: 1, 0 at the end, -EINVAL. */
int config_next_prefix(const char **at, struct net_prefix *ret_prefix);

/* The next word of a list such as "tcp/8080, udp/53". */
struct config_port {
    bool udp;
    uint16_t port;
};
int config_next_port(const char **at, struct config_port *ret_port);

/* What no single key can tell: the bridge's address is a host address of its prefix, and so on. */
int config_check(const struct config *config, struct err *err);

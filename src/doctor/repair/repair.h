/* Mends what a finding names, one small step at a time, over netlink and nftables; keeps a journal of what was there
 * before and after each step; takes it back.
 *
 * A step is plain data: what to do to which object. rules/ fills it (one finding, one short array of steps), repair
 * shows it as the command that a person would type (repair_step_command()), applies it, and knows its inverse because
 * it reads the object before it touches it. Nothing is ever handed to a shell.
 *
 * Order of things: repair_apply() writes the journal (state "applying") before the first change, applies step by step,
 * and takes back what it did when a step fails. The caller collects and probes again; then repair_proven() or, when it
 * did not help, repair_undo(). Undo refuses when an object is no longer as the journal says that it was left.
 *
 * Journal: one JSON file an entry, DIR/ID.json, 0600 in a folder 0700; ID is "r" and the time, "r20260102T030405-1a2b".
 * DIR/unfinished names the one that is neither proven nor taken back yet: whoever repairs next finds there what a
 * doctor that was killed had begun. DIR/lock is held by the one that repairs.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"
#include "model/net.h"

#define REPAIR_DEVICE 16   /* a device's name with its NUL */
#define REPAIR_STEPS_MAX 8 /* of one finding */
#define REPAIR_NAME 65
#define REPAIR_VALUE 256
#define REPAIR_ID_SIZE 32
#define REPAIR_COMMAND_SIZE 512
#define REPAIR_JOURNAL_DIR "/var/lib/master-controller/doctor"

enum repair_action {
    REPAIR_NONE,
    REPAIR_LINK_UP,        /* dev */
    REPAIR_LINK_DOWN,      /* dev */
    REPAIR_LINK_MASTER,    /* dev, object: the bridge's name; "": none */
    REPAIR_LINK_MAC,       /* dev, mac: also pins a bridge's, the present one may be given again */
    REPAIR_LINK_MTU,       /* dev, value */
    REPAIR_LINK_XDP_OFF,   /* dev: all of its XDP programs */
    REPAIR_LINK_PROTO_UP,  /* dev: protodown off */
    REPAIR_LINK_MODE,      /* dev, value: IF_LINK_MODE_DEFAULT 0 or _DORMANT 1 */
    REPAIR_LINK_TXQLEN,    /* dev, value: packets; a TAP's ring is resized with it */
    REPAIR_LINK_ARP,       /* dev, value: 1 arp on, 0 noarp */
    REPAIR_PORT_ATTR,      /* dev, attr IFLA_BRPORT_…, attr_size 1, 2 or 4, value */
    REPAIR_BRIDGE_ATTR,    /* dev, attr IFLA_BR_…, attr_size, value */
    REPAIR_FDB_DELETE,     /* dev: the port, mac, vlan in value (0: none); object "self": the device's own list */
    REPAIR_ADDRESS_ADD,    /* dev, prefix */
    REPAIR_ADDRESS_DELETE, /* dev, prefix */
    REPAIR_ROUTE_ADD,      /* prefix, dev (may be ""), gateway, route_… */
    REPAIR_ROUTE_DELETE,   /* as above: the one that is exactly so */
    REPAIR_POLICY_DELETE, /* ip rule: priority `value`, prefix to, gateway and route_scope from, object iif, parent mark,
                                protocol, route_table, route_type (FR_ACT_…); several may have one priority */
    REPAIR_NEIGHBOUR_DELETE, /* dev, prefix.address */
    REPAIR_SYSCTL,           /* object: key as "net/ipv4/ip_forward", text: the value */
    REPAIR_NFT_RULE_DELETE,  /* nft_family, nft_table, nft_chain, handle */
    REPAIR_NFT_CHAIN_POLICY, /* nft_family, nft_table, nft_chain, text: "accept" or "drop" */
    REPAIR_MASQUERADE_ADD,   /* dev: where packets leave, prefix: whose; in a table of the doctor's own */
    REPAIR_QDISC_DELETE,     /* dev, handle: TC handle, parent: TC_H_ROOT … */
    REPAIR_FILTER_DELETE,    /* dev, parent, priority, protocol, chain, handle */
    REPAIR_TCX_DETACH,       /* dev, value: 1 egress, 0 ingress, handle: the program's id, parent: its link's; 0 */
    REPAIR_TAP_OFFLOAD,      /* dev: value 0: tx checksum off (the host completes them itself) */
    /* Inside a guest, by its agent; object: the VM's id, dev: the guest's own name of the link. */
    REPAIR_GUEST_LINK_UP,        /* dev */
    REPAIR_GUEST_ADDRESS_ADD,    /* dev, prefix */
    REPAIR_GUEST_ADDRESS_DELETE, /* dev, prefix */
    REPAIR_GUEST_ROUTE,          /* dev, prefix, gateway: in place of the one that is there */
    REPAIR_GUEST_UNIT_RESTART,   /* text: the unit; cannot be taken back */
    REPAIR_ACTION_COUNT,
};
const char *repair_action_name(enum repair_action action);

/* One step; what an action does not name is not looked at. */
struct repair_step {
    enum repair_action action;
    char dev[REPAIR_DEVICE]; /* the name when the plan was made */
    int32_t ifindex;         /* must still be dev's when it is applied; 0: dev is found by its name */
    char object[96];
    char text[REPAIR_VALUE];
    uint64_t value;
    uint16_t attr;
    uint8_t attr_size;
    struct net_mac mac;
    struct net_prefix prefix;
    uint32_t gateway; /* 0: on the link */
    uint32_t route_table, route_metric, route_source;
    uint8_t route_type, route_protocol, route_scope;
    uint8_t nft_family; /* NFPROTO_… */
    char nft_table[REPAIR_NAME], nft_chain[REPAIR_NAME];
    uint64_t handle;
    uint32_t parent;
    uint32_t chain;
    uint16_t priority, protocol;
};

/* The command that a person would type for it: "bridge link set dev fc-vm-1 state 3". Names are escaped. */
void repair_step_command(const struct repair_step *step, char ret_command[REPAIR_COMMAND_SIZE]);

/* The name that bridge(8) has for a port's attribute IFLA_BRPORT_…; NULL: it is not known here. */
const char *repair_port_attr_name(uint16_t type);

/* The classes of a qdisc of this kind, and what hangs below them, go with it and are in no row of its own: to delete it
 * could not be taken back, so it is left to a person. */
bool repair_qdisc_has_classes(const char *kind);

/* One applied repair, as the journal keeps it. */
enum repair_state {
    REPAIR_STATE_APPLYING, /* a crash left it so: some of its steps may be done */
    REPAIR_STATE_APPLIED,
    REPAIR_STATE_PROVEN,
    REPAIR_STATE_FAILED, /* a step failed, what was done before it was taken back */
    REPAIR_STATE_UNDONE,
    REPAIR_STATE_COUNT,
};
const char *repair_state_name(enum repair_state state);

/* `before` and `after` are what the object was read to be, as text that means something to a person; `raw` is what
 * the kernel needs to have it back (netlink attributes in hex), where text is not enough. */
struct repair_done {
    struct repair_step step;
    char before[REPAIR_VALUE], after[REPAIR_VALUE];
    char *raw; /* owned; NULL: none */
    bool done;
    bool undone;
};

struct repair_entry {
    char id[REPAIR_ID_SIZE];
    int64_t at_ms; /* real time */
    char netns[64];
    uint64_t netns_inode; /* of /proc/self/ns/net there; 0: not known */
    char finding[64];
    enum repair_state state;
    struct repair_done steps[REPAIR_STEPS_MAX];
    size_t step_count;
};

struct repair;

/* nsfd: the namespace (not taken over), its name for the journal ("" the host's own); dir: the journal's folder, made
 * when the first entry is written. */
int repair_open(int nsfd, const char *netns, const char *dir, struct repair **ret, struct err *err);
/* By which daemon's API (a unix socket's path) guests are reached; NULL or "": by none. */
void repair_use_daemon(struct repair *repair, const char *socket);
void repair_close(struct repair *repair);
void repair_closep(struct repair **repair);
#define _cleanup_repair_close_ __attribute__((cleanup(repair_closep)))

/* One repairs at a time: waits for the other one, and then tells so, as the host may be another by now. Held until
 * repair_close(). Errors: "repair.journal"; "repair.busy" -EBUSY after wait_ms. */
int repair_lock(struct repair *repair, int64_t wait_ms, bool *ret_waited, struct err *err);

/* What a doctor that was killed had begun in this namespace; under the lock. *ret is NULL where there is nothing. The
 * caller takes it back by repair_undo() and frees it. */
int repair_unfinished(struct repair *repair, struct repair_entry **ret, struct err *err);

/* Applies the steps of one finding. The caller frees *ret (repair_entry_free).
 * Errors: "repair.journal": it could not be written, nothing was changed; "repair.failed": a step was refused, what
 * came before it was taken back; "repair.gone": the object is not there, or another has its name; "repair.unsupported". */
int repair_apply(struct repair *repair, const char *finding, const struct repair_step *steps, size_t count,
                 struct repair_entry **ret, struct err *err);

/* Marks it as proven. */
int repair_proven(struct repair *repair, struct repair_entry *entry, struct err *err);

/* Takes it back, last step first. Of an entry whose doctor was killed in the middle, those steps that were done, as the
 * objects themselves tell. Errors: "repair.changed": an object is not as it was left, nothing was touched;
 * "repair.irreversible": the kernel cannot be given it back (a BPF program that is gone); "repair.failed". */
int repair_undo(struct repair *repair, struct repair_entry *entry, struct err *err);

/* Leaves it as it is for ever: the object is gone, or somebody made something else of it. */
int repair_give_up(struct repair *repair, struct repair_entry *entry, struct err *err);

/* Journal: by id, and all of them, oldest first. Errors: "repair.no-such-entry" -ENOENT; "repair.journal". */
int repair_journal_load(const char *dir, const char *id, struct repair_entry **ret, struct err *err);
int repair_journal_list(const char *dir, char (**ret_ids)[REPAIR_ID_SIZE], size_t *ret_count, struct err *err);
void repair_entry_free(struct repair_entry *entry);
void repair_entry_freep(struct repair_entry **entry);
#define _cleanup_repair_entry_free_ __attribute__((cleanup(repair_entry_freep)))

/* The entry as JSON and back, pure; for the journal and tests. */
int repair_entry_to_json(const struct repair_entry *entry, char **ret_text);
int repair_entry_from_json(const char *text, size_t len, struct repair_entry **ret, struct err *err);

/* Shared by the files of this folder. */
#pragma once

#include <linux/netlink.h>

#include "base/fd.h"
#include "doctor/repair/repair.h"
#include "netlink/link.h"
#include "netlink/rtnl.h"

#define HELD_MAX 32
#define RAW_MAX 65536 /* bytes of text */

struct repair {
    int nsfd, lock;
    char netns[64];
    uint64_t netns_inode;
    char socket[128]; /* of the daemon; empty: none */
    char *dir;
    struct rtnl *rtnl;
    /* BPF programs that were taken off: they live on as long as a descriptor does, so they can be put back. */
    struct {
        int fd;
        uint32_t id;
    } held[HELD_MAX];
    size_t held_count;
};

/* What can be done to one sort of object. read: the present value in words, and what the kernel needs to have it back.
 * apply: the step. restore: back to what read() told before. */
struct repair_op {
    int (*read)(struct repair *repair, const struct repair_step *step, char *ret_value, char **ret_raw,
                struct err *err);
    int (*apply)(struct repair *repair, const struct repair_step *step, struct err *err);
    int (*restore)(struct repair *repair, const struct repair_step *step, const char *before, const char *raw,
                   struct err *err);
};
const struct repair_op *repair_op_of(enum repair_action action); /* NULL: none */

#define DECLARE_OP(name) extern const struct repair_op repair_op_##name
/* ops_link.c */
DECLARE_OP(up);
DECLARE_OP(master);
DECLARE_OP(mac);
DECLARE_OP(mtu);
DECLARE_OP(xdp);
DECLARE_OP(number); /* proto_down, mode, txqlen, arp */
DECLARE_OP(attr);   /* of a port, of a bridge */
DECLARE_OP(offload);
DECLARE_OP(sysctl);
/* ops_table.c */
DECLARE_OP(address);
DECLARE_OP(route);
DECLARE_OP(row); /* ip rule, neighbour, FDB, qdisc, tc filter: taken away whole */
/* ops_guest.c */
DECLARE_OP(guest_link);
DECLARE_OP(guest_address);
DECLARE_OP(guest_route);
DECLARE_OP(guest_unit);
/* ops_tcx.c */
DECLARE_OP(tcx);
/* ops_nft.c */
DECLARE_OP(nft_rule);
DECLARE_OP(nft_policy);
DECLARE_OP(masquerade);

/* The table of REPAIR_MASQUERADE_ADD: one for each network and device, so that it is there or not. */
void repair_masquerade_table(const struct repair_step *step, char ret_name[REPAIR_NAME]);

/* What makes it, each command on a line of its own. The device's name must be plain. */
void repair_masquerade_commands(const struct repair_step *step, struct strbuf *ret);

/* The device that a step means. Error: "repair.gone". */
int repair_find_dev(struct repair *repair, const struct repair_step *step, struct link *ret, struct err *err);

/* Sends a raw rtnetlink message: a family header and attributes, as a dump gave them. */
int repair_send_raw(struct repair *repair, uint16_t type, uint16_t flags, const void *payload, size_t len,
                    struct err *err);

char *repair_hex(const void *data, size_t len);
/* Return: the bytes, which the caller frees; NULL when it is no hex. */
void *repair_unhex(const char *text, size_t *ret_len);

/* Keeps a BPF program alive by its id. Return: 0 or -errno. */
int repair_hold(struct repair *repair, uint32_t prog_id);
/* Return: a descriptor that belongs to `repair`, or -errno. */
int repair_held(struct repair *repair, uint32_t prog_id);

/* journal.c */
int journal_write(const char *dir, const struct repair_entry *entry, struct err *err);
/* The one that is under way; NULL: none is. */
int journal_mark(const char *dir, const char *id, struct err *err);

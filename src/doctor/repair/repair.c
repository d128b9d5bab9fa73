#include "doctor/repair/repair.h"

#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/bpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/time.h"
#include "doctor/repair/internal.h"

int repair_open(int nsfd, const char *netns, const char *dir, struct repair **ret, struct err *err) {
    struct repair *repair = calloc(1, sizeof *repair);
    if (!repair || !(repair->dir = strdup(dir))) {
        free(repair);
        return err_sys(err, ENOMEM, "repair.failed", "prepare repairs");
    }
    struct stat st;
    repair->nsfd = nsfd;
    repair->lock = -1;
    repair->netns_inode = fstat(nsfd, &st) == 0 ? st.st_ino : 0;
    str_copy(repair->netns, sizeof repair->netns, netns);
    int r = rtnl_open(nsfd, &repair->rtnl, err);
    if (r < 0) {
        repair_close(repair);
        return r;
    }
    *ret = repair;
    return 0;
}

void repair_use_daemon(struct repair *repair, const char *socket) {
    str_copy(repair->socket, sizeof repair->socket, socket ? socket : "");
}

void repair_close(struct repair *repair) {
    if (!repair)
        return;
    for (size_t i = 0; i < repair->held_count; i++)
        fd_close(&repair->held[i].fd);
    rtnl_close(repair->rtnl);
    fd_close(&repair->lock);
    free(repair->dir);
    free(repair);
}

void repair_closep(struct repair **repair) {
    repair_close(*repair);
}

/* --- helpers of the operations --- */

int repair_find_dev(struct repair *repair, const struct repair_step *step, struct link *ret, struct err *err) {
    int r = link_get_by_name(repair->rtnl, step->dev, ret, err);
    if (r == -ENODEV)
        return err_set(err, ENODEV, "repair.gone", "there is no device %s", step->dev);
    if (r == 0 && step->ifindex && ret->index != step->ifindex)
        return err_set(err, ENODEV, "repair.gone", "%s is another device now (index %d, not %d)", step->dev, ret->index,
                       step->ifindex);
    return r;
}

int repair_send_raw(struct repair *repair, uint16_t type, uint16_t flags, const void *payload, size_t len,
                    struct err *err) {
    struct rtnl_msg msg;
    if (len > RTNL_MSG_SIZE - MNL_NLMSG_HDRLEN)
        return err_sys(err, EMSGSIZE, "repair.failed", "build a request");
    void *at = rtnl_msg_begin(&msg, type, flags, len);
    memcpy(at, payload, len);
    return rtnl_change(repair->rtnl, &msg, err);
}

char *repair_hex(const void *data, size_t len) {
    char *text = malloc(2 * len + 1);
    if (text)
        str_hex(data, len, text);
    return text;
}

static int digit(char c) {
    const char *digits = "0123456789abcdef", *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}

void *repair_unhex(const char *text, size_t *ret_len) {
    size_t len = strlen(text);
    if (len % 2 || len > 2 * RAW_MAX)
        return NULL;
    uint8_t *data = malloc(len / 2 + 1);
    for (size_t i = 0; data && i < len; i += 2) {
        int high = digit(text[i]), low = digit(text[i + 1]);
        if (high < 0 || low < 0) {
            free(data);
            return NULL;
        }
        data[i / 2] = (uint8_t)(high << 4 | low);
    }
    *ret_len = len / 2;
    return data;
}

int repair_hold(struct repair *repair, uint32_t prog_id) {
    if (repair_held(repair, prog_id) >= 0)
        return 0;
    if (repair->held_count == HELD_MAX)
        return -ENOSPC;
    union bpf_attr attr = {.prog_id = prog_id};
    int fd = (int)syscall(SYS_bpf, BPF_PROG_GET_FD_BY_ID, &attr, sizeof attr); /* close-on-exec by itself */
    if (fd < 0)
        return -errno;
    repair->held[repair->held_count].fd = fd;
    repair->held[repair->held_count++].id = prog_id;
    return 0;
}

int repair_held(struct repair *repair, uint32_t prog_id) {
    for (size_t i = 0; i < repair->held_count; i++)
        if (repair->held[i].id == prog_id)
            return repair->held[i].fd;
    return -ENOENT;
}

const struct repair_op *repair_op_of(enum repair_action action) {
    static const struct repair_op *const ops[REPAIR_ACTION_COUNT] = {
        [REPAIR_LINK_UP] = &repair_op_up,
        [REPAIR_LINK_DOWN] = &repair_op_up,
        [REPAIR_LINK_MASTER] = &repair_op_master,
        [REPAIR_LINK_MAC] = &repair_op_mac,
        [REPAIR_LINK_MTU] = &repair_op_mtu,
        [REPAIR_LINK_XDP_OFF] = &repair_op_xdp,
        [REPAIR_LINK_PROTO_UP] = &repair_op_number,
        [REPAIR_LINK_MODE] = &repair_op_number,
        [REPAIR_LINK_TXQLEN] = &repair_op_number,
        [REPAIR_LINK_ARP] = &repair_op_number,
        [REPAIR_PORT_ATTR] = &repair_op_attr,
        [REPAIR_BRIDGE_ATTR] = &repair_op_attr,
        [REPAIR_FDB_DELETE] = &repair_op_row,
        [REPAIR_ADDRESS_ADD] = &repair_op_address,
        [REPAIR_ADDRESS_DELETE] = &repair_op_address,
        [REPAIR_ROUTE_ADD] = &repair_op_route,
        [REPAIR_ROUTE_DELETE] = &repair_op_route,
        [REPAIR_POLICY_DELETE] = &repair_op_row,
        [REPAIR_NEIGHBOUR_DELETE] = &repair_op_row,
        [REPAIR_SYSCTL] = &repair_op_sysctl,
        [REPAIR_NFT_RULE_DELETE] = &repair_op_nft_rule,
        [REPAIR_NFT_CHAIN_POLICY] = &repair_op_nft_policy,
        [REPAIR_MASQUERADE_ADD] = &repair_op_masquerade,
        [REPAIR_QDISC_DELETE] = &repair_op_row,
        [REPAIR_FILTER_DELETE] = &repair_op_row,
        [REPAIR_TCX_DETACH] = &repair_op_tcx,
        [REPAIR_TAP_OFFLOAD] = &repair_op_offload,
        [REPAIR_GUEST_LINK_UP] = &repair_op_guest_link,
        [REPAIR_GUEST_ADDRESS_ADD] = &repair_op_guest_address,
        [REPAIR_GUEST_ADDRESS_DELETE] = &repair_op_guest_address,
        [REPAIR_GUEST_ROUTE] = &repair_op_guest_route,
        [REPAIR_GUEST_UNIT_RESTART] = &repair_op_guest_unit,
    };
    return (unsigned int)action < REPAIR_ACTION_COUNT ? ops[action] : NULL;
}

/* --- an entry --- */

static void name_entry(struct repair_entry *entry) {
    uint16_t nonce = 0;
    struct tm tm;
    time_t seconds = entry->at_ms / 1000;
    getrandom(&nonce, sizeof nonce, GRND_NONBLOCK);
    gmtime_r(&seconds, &tm);
    char stamp[24];
    strftime(stamp, sizeof stamp, "%Y%m%dT%H%M%S", &tm);
    snprintf(entry->id, sizeof entry->id, "r%s-%04x", stamp, nonce);
}

/* Reads every object before anything is touched: a step that cannot be read is not begun. */
static int prepare(struct repair *repair, struct repair_entry *entry, const struct repair_step *steps, size_t count,
                   struct err *err) {
    for (size_t i = 0; i < count; i++) {
        struct repair_done *done = &entry->steps[entry->step_count++];
        const struct repair_op *op = repair_op_of(steps[i].action);
        done->step = steps[i];
        if (!op)
            return err_set(err, ENOTSUP, "repair.unsupported", "no such repair");
        int r = op->read(repair, &steps[i], done->before, &done->raw, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static void prefix_command(struct err *err, const struct repair_step *step) {
    char command[REPAIR_COMMAND_SIZE];
    repair_step_command(step, command);
    err_prefix(err, "%s", command);
}

static int take_back(struct repair *repair, struct repair_entry *entry, struct err *err) {
    int first = 0;
    for (size_t i = entry->step_count; i-- > 0;) {
        struct repair_done *done = &entry->steps[i];
        if (!done->done || done->undone)
            continue;
        int r = repair_op_of(done->step.action)->restore(repair, &done->step, done->before, done->raw, err);
        if (r < 0)
            prefix_command(err, &done->step);
        else
            done->undone = true;
        first = first ? first : r;
    }
    return first;
}

static int apply_all(struct repair *repair, struct repair_entry *entry, struct err *err) {
    for (size_t i = 0; i < entry->step_count; i++) {
        struct repair_done *done = &entry->steps[i];
        const struct repair_op *op = repair_op_of(done->step.action);
        int r = op->apply(repair, &done->step, err);
        if (r == 0) {
            done->done = true;
            r = op->read(repair, &done->step, done->after, NULL, err);
        }
        if (r < 0) {
            prefix_command(err, &done->step);
            return r;
        }
    }
    /* Again, at the end: a later step may have moved what an earlier one set. */
    for (size_t i = 0; i < entry->step_count; i++) {
        struct repair_done *done = &entry->steps[i];
        int r = repair_op_of(done->step.action)->read(repair, &done->step, done->after, NULL, err);
        if (r < 0)
            return r;
    }
    return 0;
}

int repair_apply(struct repair *repair, const char *finding, const struct repair_step *steps, size_t count,
                 struct repair_entry **ret, struct err *err) {
    if (count == 0 || count > REPAIR_STEPS_MAX)
        return err_set(err, EINVAL, "repair.unsupported", "a repair of %zu steps", count);
    _cleanup_repair_entry_free_ struct repair_entry *entry = calloc(1, sizeof *entry);
    if (!entry)
        return err_sys(err, ENOMEM, "repair.failed", "prepare a repair");
    entry->at_ms = time_realtime_ms();
    name_entry(entry);
    str_copy(entry->netns, sizeof entry->netns, repair->netns);
    entry->netns_inode = repair->netns_inode;
    str_copy(entry->finding, sizeof entry->finding, finding);
    int r = prepare(repair, entry, steps, count, err);
    if (r == 0)
        r = journal_write(repair->dir, entry, err);
    if (r == 0)
        r = journal_mark(repair->dir, entry->id, err);
    if (r < 0)
        return r;
    r = apply_all(repair, entry, err);
    if (r < 0) {
        take_back(repair, entry, NULL);
        entry->state = REPAIR_STATE_FAILED;
        if (journal_write(repair->dir, entry, NULL) == 0)
            journal_mark(repair->dir, NULL, NULL);
        return r;
    }
    entry->state = REPAIR_STATE_APPLIED;
    r = journal_write(repair->dir, entry, err);
    if (r < 0) {
        take_back(repair, entry, NULL);
        return r;
    }
    *ret = ptr_steal(entry);
    return 0;
}

int repair_proven(struct repair *repair, struct repair_entry *entry, struct err *err) {
    entry->state = REPAIR_STATE_PROVEN;
    int r = journal_write(repair->dir, entry, err);
    return r < 0 ? r : journal_mark(repair->dir, NULL, err);
}

/* Of a doctor that was killed in the middle nobody wrote down what was done: what is not as it was before, was. */
static int find_out_what_was_done(struct repair *repair, struct repair_entry *entry, struct err *err) {
    for (size_t i = 0; i < entry->step_count; i++) {
        struct repair_done *done = &entry->steps[i];
        const struct repair_op *op = repair_op_of(done->step.action);
        int r = op ? op->read(repair, &done->step, done->after, NULL, err) : -ENOTSUP;
        if (r < 0) {
            prefix_command(err, &done->step);
            return r;
        }
        done->done = strcmp(done->before, done->after) != 0;
    }
    return 0;
}

/* Whether every object is as it was left, or as it was before: then somebody took it back already. */
static int check_unchanged(struct repair *repair, struct repair_entry *entry, struct err *err) {
    bool taken_back[REPAIR_STEPS_MAX] = {0};
    for (size_t i = 0; i < entry->step_count; i++) {
        const struct repair_done *done = &entry->steps[i];
        const struct repair_op *op = repair_op_of(done->step.action);
        char now[REPAIR_VALUE] = "";
        if (!done->done || done->undone)
            continue;
        int r = op ? op->read(repair, &done->step, now, NULL, err) : -ENOTSUP;
        taken_back[i] = r == 0 && strcmp(now, done->before) == 0;
        if (r == 0 && !taken_back[i] && strcmp(now, done->after) != 0) {
            r = err_set(err, ESTALE, "repair.changed", "it was left as \"%s\" and is \"%s\" now", done->after, now);
            err_hint(err, "somebody changed it since; before the repair it was \"%s\"", done->before);
        }
        if (r < 0) {
            prefix_command(err, &done->step);
            return r;
        }
    }
    for (size_t i = 0; i < entry->step_count; i++)
        entry->steps[i].undone = entry->steps[i].undone || taken_back[i];
    return 0;
}

int repair_undo(struct repair *repair, struct repair_entry *entry, struct err *err) {
    if (entry->state == REPAIR_STATE_UNDONE || entry->state == REPAIR_STATE_FAILED)
        return err_set(err, EALREADY, "repair.changed", "%s is closed: it was taken back, or given up", entry->id);
    bool elsewhere = !*entry->netns && entry->netns_inode && entry->netns_inode != repair->netns_inode;
    if (strcmp(entry->netns, repair->netns) != 0 || elsewhere)
        return err_set(err, EXDEV, "repair.changed", "%s was done in %s network namespace%s%s", entry->id,
                       elsewhere ? "another" : "the", elsewhere ? "" : " ", entry->netns);
    int r = entry->state == REPAIR_STATE_APPLYING ? find_out_what_was_done(repair, entry, err)
                                                  : check_unchanged(repair, entry, err);
    if (r == 0)
        r = take_back(repair, entry, err);
    if (r < 0)
        return r;
    bool was_open = entry->state != REPAIR_STATE_PROVEN;
    entry->state = REPAIR_STATE_UNDONE;
    r = journal_write(repair->dir, entry, err);
    return r == 0 && was_open ? journal_mark(repair->dir, NULL, err) : r;
}

int repair_give_up(struct repair *repair, struct repair_entry *entry, struct err *err) {
    entry->state = REPAIR_STATE_FAILED;
    int r = journal_write(repair->dir, entry, err);
    return r < 0 ? r : journal_mark(repair->dir, NULL, err);
}

void repair_entry_free(struct repair_entry *entry) {
    if (!entry)
        return;
    for (size_t i = 0; i < entry->step_count; i++)
        free(entry->steps[i].raw);
    free(entry);
}

void repair_entry_freep(struct repair_entry **entry) {
    repair_entry_free(*entry);
}

/* Programs on tcx hooks: taken off by the program or by its link. A link itself cannot be put back, it is its owner's: what
 * it did is, by the program alone. */
#include <errno.h>
#include <stdio.h>

#include "doctor/repair/internal.h"
#include "doctor/tcx.h"
#include "netlink/netns.h"

static bool is_egress(const struct repair_step *step) {
    return step->value != 0;
}

/* The device, with the calling thread in its namespace. */
static int enter(struct repair *repair, const struct repair_step *step, struct netns_scope *scope, struct link *ret,
                 struct err *err) {
    int r = repair_find_dev(repair, step, ret, err);
    if (r < 0)
        return r;
    r = netns_enter(repair->nsfd, scope);
    return r < 0 ? err_sys(err, -r, "repair.failed", "enter the network namespace") : 0;
}

/* "program 12 link 0 before 15": by the programs' ids. */
static int tcx_read(struct repair *repair, const struct repair_step *step, char *value, char **raw, struct err *err) {
    _cleanup_netns_leave_ struct netns_scope scope = NETNS_SCOPE_NONE;
    struct tcx_prog progs[TCX_PROGS_MAX];
    struct link link = {0};
    uint32_t count = 0;
    int r = enter(repair, step, &scope, &link, err);
    if (r < 0)
        return r;
    r = tcx_list(link.index, is_egress(step), progs, &count);
    if (r < 0)
        return err_sys(err, -r, "repair.failed", "list the tcx programs of %s", step->dev);
    for (uint32_t i = 0; i < count; i++)
        if (progs[i].prog == step->handle) {
            snprintf(value, REPAIR_VALUE, "program %u link %u before %u", progs[i].prog, progs[i].link,
                     i + 1 < count ? progs[i + 1].prog : 0);
            return 0;
        }
    snprintf(value, REPAIR_VALUE, "program 0 link 0 before 0");
    return 0;
}

static int parse(const char *value, struct tcx_prog *ret, uint32_t *ret_before, struct err *err) {
    if (sscanf(value, "program %u link %u before %u", &ret->prog, &ret->link, ret_before) == 3)
        return 0;
    return err_set(err, EBADMSG, "repair.journal", "\"%s\" names no program", value);
}

static int tcx_apply(struct repair *repair, const struct repair_step *step, struct err *err) {
    _cleanup_netns_leave_ struct netns_scope scope = NETNS_SCOPE_NONE;
    char value[REPAIR_VALUE];
    struct tcx_prog prog = {0};
    struct link link = {0};
    uint32_t before = 0;
    int r = tcx_read(repair, step, value, NULL, err);
    if (r == 0)
        r = parse(value, &prog, &before, err);
    if (r == 0 && !prog.prog)
        r = err_set(err, ENOENT, "repair.gone", "it is not there any more");
    if (r == 0)
        r = enter(repair, step, &scope, &link, err);
    if (r < 0)
        return r;
    r = repair_hold(repair, prog.prog);
    if (r == 0 || prog.link)
        r = tcx_detach(link.index, is_egress(step), prog, repair_held(repair, prog.prog));
    return r < 0 ? err_sys(err, -r, "repair.failed", "take BPF program %u off %s", prog.prog, step->dev) : 0;
}

static int tcx_restore(struct repair *repair, const struct repair_step *step, const char *before, const char *raw,
                       struct err *err) {
    _cleanup_netns_leave_ struct netns_scope scope = NETNS_SCOPE_NONE;
    struct tcx_prog prog = {0};
    struct link link = {0};
    uint32_t next = 0;
    int r = parse(before, &prog, &next, err);
    if (r < 0 || !prog.prog)
        return r;
    /* Its owner may have it still. */
    if (repair_hold(repair, prog.prog) < 0)
        return err_set(err, ESTALE, "repair.irreversible", "BPF program %u is gone: load it again", prog.prog);
    r = enter(repair, step, &scope, &link, err);
    if (r < 0)
        return r;
    int fd = repair_held(repair, prog.prog);
    r = tcx_attach(link.index, is_egress(step), fd, next);
    if (r == -ENOENT && next) /* the other one is gone meanwhile */
        r = tcx_attach(link.index, is_egress(step), fd, 0);
    return r < 0 ? err_sys(err, -r, "repair.failed", "put BPF program %u on %s again", prog.prog, step->dev) : 0;
}

const struct repair_op repair_op_tcx = {tcx_read, tcx_apply, tcx_restore};

/* What is mended inside a guest, by its agent (collect/guest.h). What the guest says of the result is believed as far as
 * the journal goes; whether it helped is seen from the host, by asking the path again. */
#include <errno.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "doctor/collect/guest.h"
#include "doctor/repair/internal.h"

#define ASK_MS 8000
#define RESTART_MS 45000

static int ask(struct repair *repair, const struct repair_step *step, json_t *request, int timeout_ms, json_t **ret,
               struct err *err) {
    if (!*repair->socket) {
        json_decref(request);
        return err_set(err, ENOTCONN, "repair.failed", "no daemon by which the guest's agent could be reached");
    }
    return guest_ask(repair->socket, step->object, request, timeout_ms, ret, err);
}

/* A change; its answer tells nothing. */
static int change(struct repair *repair, const struct repair_step *step, json_t *request, int timeout_ms,
                  struct err *err) {
    json_t *ok = NULL;
    int r = request ? ask(repair, step, request, timeout_ms, &ok, err) : err_sys(err, ENOMEM, "repair.failed", "ask");
    json_decref(ok);
    return r;
}

/* The guest's network now, as rows of a snapshot that the caller frees. */
static int look(struct repair *repair, const struct repair_step *step, struct snapshot **ret, struct err *err) {
    _cleanup_snapshot_ struct snapshot *s = snapshot_new();
    struct snap_guest *guest = s ? SNAP_PUSH(s, guests, 1) : NULL;
    json_t *network = NULL;
    if (!guest)
        return err_sys(err, ENOMEM, "repair.failed", "look into the guest");
    int r = ask(repair, step, json_pack("{s:s}", "op", "network"), ASK_MS, &network, err);
    if (r < 0)
        return r;
    guest_facts_take(s, guest, network, NULL, NULL, NULL);
    json_decref(network);
    *ret = s;
    s = NULL;
    return 0;
}

static void prefix_text(struct net_prefix prefix, char ret[NET_IP_TEXT + 4]) {
    char ip[NET_IP_TEXT];
    net_format_ip(prefix.address, ip);
    snprintf(ret, NET_IP_TEXT + 4, "%s/%u", ip, prefix.length);
}

/* --- link --- */

static int read_link(struct repair *repair, const struct repair_step *step, char *ret_value, char **ret_raw,
                     struct err *err) {
    _cleanup_snapshot_ struct snapshot *s = NULL;
    int r = look(repair, step, &s, err);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < s->guest_links_count; i++)
        if (strcmp(s->guest_links[i].name, step->dev) == 0) {
            str_copy(ret_value, REPAIR_VALUE, s->guest_links[i].up ? "up" : "down");
            return 0;
        }
    return err_set(err, ENODEV, "repair.gone", "the guest has no %s any more", step->dev);
}

static int set_link(struct repair *repair, const struct repair_step *step, bool up, struct err *err) {
    return change(repair, step, json_pack("{s:s,s:s,s:b}", "op", "net.link", "name", step->dev, "up", up), ASK_MS, err);
}

static int apply_link(struct repair *repair, const struct repair_step *step, struct err *err) {
    return set_link(repair, step, true, err);
}

static int restore_link(struct repair *repair, const struct repair_step *step, const char *before, const char *raw,
                        struct err *err) {
    return set_link(repair, step, strcmp(before, "up") == 0, err);
}

const struct repair_op repair_op_guest_link = {read_link, apply_link, restore_link};

/* --- routes --- */

/* The route that `ip route replace` would replace: of the main table, without a metric. */
static const struct snap_guest_route *find_route(const struct snapshot *s, struct net_prefix prefix) {
    for (uint32_t i = 0; i < s->guest_routes_count; i++) {
        const struct snap_guest_route *route = &s->guest_routes[i];
        if (route->to == prefix.address && route->length == prefix.length && route->table == RT_TABLE_MAIN &&
            route->metric == 0)
            return route;
    }
    return NULL;
}

static void put_route(const struct snap_guest_route *route, char ret[REPAIR_VALUE]) {
    char via[NET_IP_TEXT];
    if (!route) {
        str_copy(ret, REPAIR_VALUE, "absent");
        return;
    }
    net_format_ip(route->gateway, via);
    snprintf(ret, REPAIR_VALUE, "via %s dev %s", via, route->link);
}

static int set_route(struct repair *repair, const struct repair_step *step, struct net_prefix to, uint32_t gateway,
                     const char *link, bool remove, struct err *err) {
    char prefix[NET_IP_TEXT + 4], via[NET_IP_TEXT];
    prefix_text(to, prefix);
    net_format_ip(gateway, via);
    json_t *request = json_pack("{s:s,s:s,s:b}", "op", "net.route", "to", prefix, "delete", remove);
    if (request && gateway)
        json_object_set_new(request, "via", json_string(via));
    if (request && *link)
        json_object_set_new(request, "link", json_string(link));
    return change(repair, step, request, ASK_MS, err);
}

/* What put_route() wrote: "via 192.168.0.1 dev eth0". */
static int set_route_text(struct repair *repair, const struct repair_step *step, struct net_prefix to, const char *text,
                          struct err *err) {
    char via[NET_IP_TEXT], link[REPAIR_DEVICE] = "";
    uint32_t gateway;
    if (sscanf(text, "via %15s dev %15s", via, link) < 1 || net_parse_ip(via, &gateway) < 0)
        return err_set(err, EINVAL, "repair.irreversible", "the route was \"%s\"", text);
    return set_route(repair, step, to, gateway, link, false, err);
}

static int read_route(struct repair *repair, const struct repair_step *step, char *ret_value, char **ret_raw,
                      struct err *err) {
    _cleanup_snapshot_ struct snapshot *s = NULL;
    int r = look(repair, step, &s, err);
    if (r < 0)
        return r;
    put_route(find_route(s, step->prefix), ret_value);
    return 0;
}

static int apply_route(struct repair *repair, const struct repair_step *step, struct err *err) {
    return set_route(repair, step, step->prefix, step->gateway, step->dev, false, err);
}

static int restore_route(struct repair *repair, const struct repair_step *step, const char *before, const char *raw,
                         struct err *err) {
    if (strcmp(before, "absent") != 0)
        return set_route_text(repair, step, step->prefix, before, err);
    return set_route(repair, step, step->prefix, step->gateway, step->dev, true, err);
}

const struct repair_op repair_op_guest_route = {read_route, apply_route, restore_route};

/* --- addresses --- */

/* The default route goes with the address that it needs: it is kept beside it, to come back with it. */
static int read_address(struct repair *repair, const struct repair_step *step, char *ret_value, char **ret_raw,
                        struct err *err) {
    _cleanup_snapshot_ struct snapshot *s = NULL;
    char route[REPAIR_VALUE];
    bool there = false;
    int r = look(repair, step, &s, err);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < s->guest_addrs_count; i++)
        there =
            there || (strcmp(s->guest_addrs[i].link, step->dev) == 0 && s->guest_addrs[i].ip == step->prefix.address &&
                      s->guest_addrs[i].length == step->prefix.length);
    str_copy(ret_value, REPAIR_VALUE, there ? "present" : "absent");
    if (!ret_raw)
        return 0;
    put_route(find_route(s, (struct net_prefix){0}), route);
    *ret_raw = strdup(route);
    return *ret_raw ? 0 : err_sys(err, ENOMEM, "repair.failed", "look into the guest");
}

static int set_address(struct repair *repair, const struct repair_step *step, bool remove, struct err *err) {
    char prefix[NET_IP_TEXT + 4];
    prefix_text(step->prefix, prefix);
    return change(
        repair, step,
        json_pack("{s:s,s:s,s:s,s:b}", "op", "net.address", "link", step->dev, "address", prefix, "delete", remove),
        ASK_MS, err);
}

static int apply_address(struct repair *repair, const struct repair_step *step, struct err *err) {
    return set_address(repair, step, step->action == REPAIR_GUEST_ADDRESS_DELETE, err);
}

static int restore_address(struct repair *repair, const struct repair_step *step, const char *before, const char *raw,
                           struct err *err) {
    bool there = strcmp(before, "present") == 0;
    int r = set_address(repair, step, !there, err);
    if (r == 0 && there && raw && str_starts(raw, "via "))
        r = set_route_text(repair, step, (struct net_prefix){0}, raw, err);
    return r;
}

const struct repair_op repair_op_guest_address = {read_address, apply_address, restore_address};

/* --- units --- */

static int read_unit(struct repair *repair, const struct repair_step *step, char *ret_value, char **ret_raw,
                     struct err *err) {
    _cleanup_snapshot_ struct snapshot *s = snapshot_new();
    struct snap_guest *guest = s ? SNAP_PUSH(s, guests, 1) : NULL;
    json_t *units = NULL;
    if (!guest)
        return err_sys(err, ENOMEM, "repair.failed", "look into the guest");
    int r = ask(repair, step, json_pack("{s:s,s:[s]}", "op", "units", "names", step->text), ASK_MS, &units, err);
    if (r < 0)
        return r;
    guest_facts_take(s, guest, NULL, NULL, units, step->text);
    json_decref(units);
    if (s->guest_units_count == 0)
        return err_set(err, ENOENT, "repair.gone", "the guest has no unit %s", step->text);
    snprintf(ret_value, REPAIR_VALUE, "%s", s->guest_units[0].active);
    return 0;
}

static int apply_unit(struct repair *repair, const struct repair_step *step, struct err *err) {
    return change(repair, step, json_pack("{s:s,s:s}", "op", "unit.restart", "name", step->text), RESTART_MS, err);
}

static int restore_unit(struct repair *repair, const struct repair_step *step, const char *before, const char *raw,
                        struct err *err) {
    return err_set(err, ENOTSUP, "repair.irreversible", "a restart cannot be taken back; %s was %s before", step->text,
                   before);
}

const struct repair_op repair_op_guest_unit = {read_unit, apply_unit, restore_unit};

#include "doctor/probe/probe_json.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"

/* The members of the structs by name, so that saving and loading are one loop each. */
enum sort { UNSIGNED, SIGNED, BOOLEAN, TEXT, BYTES, PART, PARTS, ROWS };

struct member {
    const char *name; /* NULL: the end */
    enum sort sort;
    size_t offset, size;          /* bytes; of PARTS and ROWS one element's */
    size_t count;                 /* PARTS: elements; ROWS: the most that there may be */
    size_t count_offset;          /* ROWS: of the size_t that counts them */
    const struct member *members; /* PART, PARTS, ROWS */
};

/* The macros keep a member's name, place and size together; a function cannot take a member. */
#define SIZE_OF(member) sizeof(((ROW *)NULL)->member)
#define M(member, sort)                                                                                                \
    { #member, sort, offsetof(ROW, member), SIZE_OF(member), 0, 0, NULL }
#define M_PART(member, table)                                                                                          \
    { #member, PART, offsetof(ROW, member), SIZE_OF(member), 0, 0, table }
#define M_PARTS(member, table)                                                                                         \
    { #member, PARTS, offsetof(ROW, member), SIZE_OF(member[0]), SIZE_OF(member) / SIZE_OF(member[0]), 0, table }
#define M_ROWS(member, counter, max, table)                                                                            \
    { #member, ROWS, offsetof(ROW, member), SIZE_OF(member[0]), max, offsetof(ROW, counter), table }
#define END                                                                                                            \
    { NULL, UNSIGNED, 0, 0, 0, 0, NULL }

#define ROW struct net_mac
static const struct member mac_members[] = {M(byte, BYTES), END};
#undef ROW
#define ROW struct probe_seen
static const struct member seen_members[] = {M(count, UNSIGNED), M(first_ns, SIGNED), END};
#undef ROW
#define ROW struct probe_elsewhere
static const struct member elsewhere_members[] = {M(ifindex, SIGNED), M(name, TEXT), M(count, UNSIGNED), END};
#undef ROW

#define ROW struct probe_answer
static const struct member answer_members[] = {
    M(asked, BOOLEAN),
    M(why_not, TEXT),
    M(sent, BOOLEAN),
    M(send_errno, SIGNED),
    M(sends, UNSIGNED),
    M(answered, BOOLEAN),
    M(answers, UNSIGNED),
    M(answer_errno, SIGNED),
    M(rtt_us, SIGNED),
    M(sent_ns, SIGNED),
    M_PART(request_bridge, seen_members),
    M_PART(request_tap, seen_members),
    M_PART(reply_tap, seen_members),
    M_PART(reply_bridge, seen_members),
    M_PART(request_canary, seen_members),
    M_PART(reply_canary, seen_members),
    M_PARTS(request_elsewhere, elsewhere_members),
    M(request_elsewhere_count, UNSIGNED),
    M_PARTS(reply_elsewhere, elsewhere_members),
    M(reply_elsewhere_count, UNSIGNED),
    M_PARTS(macs, mac_members),
    M(mac_count, UNSIGNED),
    M(mtu, UNSIGNED),
    M(size, UNSIGNED),
    END,
};
#undef ROW

#define ROW struct probe_link_counters
static const struct member link_members[] = {
    M(known, BOOLEAN),       M(rx_packets, UNSIGNED),
    M(tx_packets, UNSIGNED), M(rx_bytes, UNSIGNED),
    M(tx_bytes, UNSIGNED),   M(rx_dropped, UNSIGNED),
    M(tx_dropped, UNSIGNED), M(rx_errors, UNSIGNED),
    M(tx_errors, UNSIGNED),  END,
};
#undef ROW
#define ROW struct probe_qdisc_counters
static const struct member qdisc_members[] = {
    M(known, BOOLEAN),
    M(packets, UNSIGNED),
    M(drops, UNSIGNED),
    M(overlimits, UNSIGNED),
    M(backlog_packets, UNSIGNED),
    M(backlog_bytes, UNSIGNED),
    END,
};
#undef ROW
#define ROW struct probe_counters
static const struct member counters_members[] = {M_PART(link, link_members), M_PART(qdisc, qdisc_members), END};
#undef ROW
#define ROW struct probe_neighbour
static const struct member neighbour_members[] = {M(state, UNSIGNED), M(ifindex, SIGNED), M(has_mac, BOOLEAN),
                                                  M_PART(mac, mac_members), END};
#undef ROW
#define ROW struct probe_target
static const struct member target_members[] = {M(tap, SIGNED),
                                               M(tap_name, TEXT),
                                               M(guest_ip, UNSIGNED),
                                               M(has_mac, BOOLEAN),
                                               M_PART(guest_mac, mac_members),
                                               M(port, UNSIGNED),
                                               END};
#undef ROW

#define ROW struct probe_hint
static const struct member hint_members[] = {
    M(asked, BOOLEAN),
    M(why_not, TEXT),
    M(from, UNSIGNED),
    M(sends, UNSIGNED),
    M(on_tap, UNSIGNED),
    M(answers, UNSIGNED),
    M_PART(answered_to, mac_members),
    END,
};
#undef ROW

#define ROW struct probe_target_result
static const struct member target_result_members[] = {
    M_PART(target, target_members),
    M_PARTS(answer, answer_members),
    M_PART(tap_before, counters_members),
    M_PART(tap_after, counters_members),
    M_PART(neighbour_before, neighbour_members),
    M_PART(neighbour_after, neighbour_members),
    M(guest_asks_host, UNSIGNED),
    M(host_answers_guest, UNSIGNED),
    M(guest_frames, UNSIGNED),
    M(garbled_frames, UNSIGNED),
    M_PART(first, hint_members),
    M_PART(outside, hint_members),
    M(guest_asks_canary, UNSIGNED),
    END,
};
#undef ROW

#define ROW struct probe_frame
static const struct member frame_members[] = {
    M(at_ns, SIGNED),
    M(ifindex, SIGNED),
    M(outgoing, BOOLEAN),
    M(kind, UNSIGNED),
    M(tag, SIGNED),
    M(reply, BOOLEAN),
    M_PART(source, mac_members),
    M_PART(destination, mac_members),
    M(ethertype, UNSIGNED),
    M(source_ip, UNSIGNED),
    M(destination_ip, UNSIGNED),
    M(icmp_type, UNSIGNED),
    M(icmp_code, UNSIGNED),
    M(echo_id, UNSIGNED),
    M(echo_sequence, UNSIGNED),
    M(source_port, UNSIGNED),
    M(destination_port, UNSIGNED),
    M(length, UNSIGNED),
    M(kept, UNSIGNED),
    M(data, BYTES),
    END,
};
#undef ROW

#define ROW struct probe_canary
static const struct member canary_members[] = {
    M(made, BOOLEAN),        M(why_not, TEXT),    M(name, TEXT),
    M(ifindex, SIGNED),      M(ip, UNSIGNED),     M_PART(mac, mac_members),
    M(port_state, UNSIGNED), M(ready_us, SIGNED), END,
};
#undef ROW

#define ROW struct trace_had
static const struct member had_members[] = {M(had, BOOLEAN), M(errnum, SIGNED), M(why, TEXT), END};
#undef ROW
#define ROW struct trace_event
static const struct member event_members[] = {
    M(kind, UNSIGNED), M(at_ns, SIGNED),  M(tid, SIGNED),   M(tag, SIGNED),      M(reply, BOOLEAN),
    M(noise, BOOLEAN), M(dev, TEXT),      M(skb, UNSIGNED), M(length, UNSIGNED), M(protocol, UNSIGNED),
    M(rc, SIGNED),     M(location, TEXT), M(reason, TEXT),  M(stack, SIGNED),    END,
};
#undef ROW
struct function_name {
    char name[TRACE_WORD];
};
#define ROW struct function_name
static const struct member function_members[] = {M(name, TEXT), END};
#undef ROW
#define ROW struct trace_stack
static const struct member stack_members[] = {M_PARTS(function, function_members), END};
#undef ROW
#define ROW struct trace_rule
static const struct member rule_members[] = {
    M(kind, UNSIGNED),
    M(at_ns, SIGNED),
    M(tag, SIGNED),
    M(reply, BOOLEAN),
    M(id, UNSIGNED),
    M(family, TEXT),
    M(table, TEXT),
    M(chain, TEXT),
    M(handle, UNSIGNED),
    M(verdict, TEXT),
    M(jump_to, TEXT),
    M(iif, TEXT),
    M(oif, TEXT),
    M(has_macs, BOOLEAN),
    M(source_mac, BYTES),
    M(destination_mac, BYTES),
    M(ethertype, UNSIGNED),
    M(ip_protocol, UNSIGNED),
    M(source, UNSIGNED),
    M(destination, UNSIGNED),
    M(arp_operation, UNSIGNED),
    M(source_port, UNSIGNED),
    M(destination_port, UNSIGNED),
    M(echo_id, UNSIGNED),
    M(icmp_type, UNSIGNED),
    END,
};
#undef ROW
#define ROW struct trace_result
static const struct member trace_members[] = {
    M_PART(tracefs, had_members),
    M_PART(nftrace, had_members),
    M_ROWS(events, event_count, TRACE_EVENTS_MAX, event_members),
    M_ROWS(stacks, stack_count, TRACE_STACKS_MAX, stack_members),
    M_ROWS(rules, rule_count, TRACE_RULES_MAX, rule_members),
    M(truncated, BOOLEAN),
    END,
};
#undef ROW

#define ROW struct probe_result
static const struct member result_members[] = {
    M_ROWS(targets, target_count, PROBE_TARGETS_MAX, target_result_members),
    M_PARTS(common, answer_members),
    M_PART(canary, canary_members),
    M_PART(bridge_before, counters_members),
    M_PART(bridge_after, counters_members),
    M(bridge, SIGNED),
    M(bridge_name, TEXT),
    M_ROWS(frames, frame_count, PROBE_FRAMES_MAX, frame_members),
    M(frames_truncated, BOOLEAN),
    M(capture_lost, UNSIGNED),
    M(capture_errno, SIGNED),
    M(began_ns, SIGNED),
    M(ended_ns, SIGNED),
    M(realtime_offset_ns, SIGNED),
    END,
};
#undef ROW

/* --- saving --- */

static json_t *save(const struct member *members, const void *from);

static int64_t load_signed(const void *at, size_t size) {
    int64_t value64;
    int32_t value32;
    if (size == 8) {
        memcpy(&value64, at, 8);
        return value64;
    }
    memcpy(&value32, at, 4);
    return value32;
}

static uint64_t load_unsigned(const void *at, size_t size) {
    uint64_t value = 0;
    memcpy(&value, at, size); /* little endian */
    return value;
}

/* What is zero is left out. */
static bool is_zero(const void *at, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (((const char *)at)[i])
            return false;
    return true;
}

static json_t *save_text(const char *text) {
    char hex[512];
    size_t len = strlen(text);
    if (str_is_utf8(text, len))
        return json_string(text);
    str_hex(text, len < 200 ? len : 200, hex);
    return json_pack("{s:s}", "hex", hex);
}

static json_t *save_bytes(const void *at, size_t size) {
    char hex[2 * PROBE_SNAP + 1];
    while (size && !((const char *)at)[size - 1]) /* zeros at the end go without saying */
        size--;
    str_hex(at, size, hex);
    return json_string(hex);
}

static json_t *save_list(const struct member *members, const char *at, size_t size, size_t count) {
    json_t *list = json_array();
    for (size_t i = 0; list && i < count; i++)
        json_array_append_new(list, save(members, at + i * size));
    return list;
}

static size_t load_count(const void *from, const struct member *member) {
    size_t count;
    memcpy(&count, (const char *)from + member->count_offset, sizeof count);
    return count;
}

static json_t *save_member(const struct member *member, const void *from) {
    const char *at = (const char *)from + member->offset;
    const void *rows;
    switch (member->sort) {
    case UNSIGNED:
        return json_integer((json_int_t)load_unsigned(at, member->size));
    case SIGNED:
        return json_integer(load_signed(at, member->size));
    case BOOLEAN:
        return json_boolean(*(const bool *)at);
    case TEXT:
        return save_text(at);
    case BYTES:
        return save_bytes(at, member->size);
    case PART:
        return save(member->members, at);
    case PARTS:
        return save_list(member->members, at, member->size, member->count);
    case ROWS:
        memcpy(&rows, at, sizeof rows);
        return save_list(member->members, rows, member->size, load_count(from, member));
    }
    return NULL;
}

static json_t *save(const struct member *members, const void *from) {
    json_t *json = json_object();
    for (const struct member *member = members; json && member->name; member++) {
        size_t size = member->sort == PARTS ? member->size * member->count : member->size;
        bool empty =
            member->sort == ROWS ? load_count(from, member) == 0 : is_zero((const char *)from + member->offset, size);
        if (!empty && json_object_set_new(json, member->name, save_member(member, from)) < 0) {
            json_decref(json);
            return NULL;
        }
    }
    return json;
}

json_t *probe_to_json(const struct probe_result *result) {
    json_t *json = save(result_members, result);
    if (json && result->trace)
        json_object_set_new(json, "trace", save(trace_members, result->trace));
    return json;
}

/* --- loading --- */

static int load(const struct member *members, const json_t *json, void *to, struct err *err);

static int load_integer(const struct member *member, const json_t *json, char *at) {
    json_int_t value = json_integer_value(json);
    if (!json_is_integer(json))
        return -EBADMSG;
    if (member->sort == UNSIGNED && member->size < 8 && (value < 0 || value >> (8 * member->size)))
        return -ERANGE;
    if (member->sort == SIGNED && member->size == 4 && (value < INT32_MIN || value > INT32_MAX))
        return -ERANGE;
    memcpy(at, &value, member->size);
    return 0;
}

static int hex_digit(char c) {
    const char *digits = "0123456789abcdef", *at = c ? strchr(digits, c) : NULL;
    return at ? (int)(at - digits) : -1;
}

static int load_hex(const char *hex, void *at, size_t size) {
    size_t len = hex ? strlen(hex) : 1;
    if (len % 2 || len / 2 > size)
        return -EBADMSG;
    for (size_t i = 0; i < len; i += 2) {
        int high = hex_digit(hex[i]), low = hex_digit(hex[i + 1]);
        if (high < 0 || low < 0)
            return -EBADMSG;
        ((uint8_t *)at)[i / 2] = (uint8_t)(high << 4 | low);
    }
    return 0;
}

static int load_text(const struct member *member, const json_t *json, char *at) {
    if (json_is_string(json))
        return str_copy(at, member->size, json_string_value(json)) ? 0 : -EMSGSIZE;
    return load_hex(json_string_value(json_object_get(json, "hex")), at, member->size - 1);
}

static int load_list(const struct member *member, const json_t *json, char *at, struct err *err) {
    int r = json_is_array(json) && json_array_size(json) <= member->count ? 0 : -EBADMSG;
    for (size_t i = 0; r == 0 && i < json_array_size(json); i++)
        r = load(member->members, json_array_get(json, i), at + i * member->size, err);
    return r;
}

static int load_rows(const struct member *member, const json_t *json, void *to, struct err *err) {
    size_t count = json_array_size(json);
    if (!json_is_array(json) || count > member->count)
        return -EBADMSG;
    char *rows = calloc(count ? count : 1, member->size);
    if (!rows)
        return -ENOMEM;
    memcpy((char *)to + member->offset, &rows, sizeof rows); /* the owner frees them, also after a failure */
    memcpy((char *)to + member->count_offset, &count, sizeof count);
    return load_list(member, json, rows, err);
}

static int load_member(const struct member *member, const json_t *json, void *to, struct err *err) {
    char *at = (char *)to + member->offset;
    switch (member->sort) {
    case UNSIGNED:
    case SIGNED:
        return load_integer(member, json, at);
    case BOOLEAN:
        *(bool *)at = json_is_true(json);
        return json_is_boolean(json) ? 0 : -EBADMSG;
    case TEXT:
        return load_text(member, json, at);
    case BYTES:
        return load_hex(json_string_value(json), at, member->size);
    case PART:
        return load(member->members, json, at, err);
    case PARTS:
        return load_list(member, json, at, err);
    case ROWS:
        return load_rows(member, json, to, err);
    }
    return -EBADMSG;
}

static int load(const struct member *members, const json_t *json, void *to, struct err *err) {
    if (!json_is_object(json))
        return err_set(err, EBADMSG, "doctor.bad-file", "an object was expected");
    for (const struct member *member = members; member->name; member++) {
        const json_t *value = json_object_get(json, member->name);
        if (!value)
            continue;
        int r = load_member(member, value, to, err);
        if (r < 0)
            return err_set(err, -r, "doctor.bad-file", "member \"%s\" of the probe is not as it should be",
                           member->name);
    }
    return 0;
}

/* What others use as an index or a length. */
static bool answer_is_sound(const struct probe_answer *answer) {
    return answer->request_elsewhere_count <= PROBE_ELSEWHERE_MAX &&
           answer->reply_elsewhere_count <= PROBE_ELSEWHERE_MAX && answer->mac_count <= PROBE_MACS_MAX;
}

static bool tag_is_sound(int32_t tag, size_t targets) {
    return tag == TRACE_NO_TAG || (tag >= 0 && ((size_t)tag / PROBE_KIND_COUNT < targets || tag < PROBE_KIND_COUNT));
}

static bool trace_is_sound(const struct trace_result *trace, size_t targets) {
    for (size_t i = 0; i < trace->event_count; i++) {
        const struct trace_event *event = &trace->events[i];
        if ((unsigned int)event->kind >= TRACE_KIND_COUNT || event->stack < -1 ||
            event->stack >= (int32_t)trace->stack_count || !tag_is_sound(event->tag, targets))
            return false;
    }
    for (size_t i = 0; i < trace->rule_count; i++)
        if ((unsigned int)trace->rules[i].kind > TRACE_RULE_RETURN || !tag_is_sound(trace->rules[i].tag, targets))
            return false;
    return true;
}

static bool is_sound(const struct probe_result *result) {
    for (size_t i = 0; i < result->target_count; i++)
        for (int kind = 0; kind < PROBE_KIND_GUEST_COUNT; kind++)
            if (!answer_is_sound(&result->targets[i].answer[kind]))
                return false;
    for (size_t i = 0; i < sizeof result->common / sizeof *result->common; i++)
        if (!answer_is_sound(&result->common[i]))
            return false;
    for (size_t i = 0; i < result->frame_count; i++)
        if (result->frames[i].kept > PROBE_SNAP || (unsigned int)result->frames[i].kind >= PROBE_FRAME_KIND_COUNT ||
            !tag_is_sound(result->frames[i].tag, result->target_count))
            return false;
    return !result->trace || trace_is_sound(result->trace, result->target_count);
}

int probe_from_json(const json_t *json, struct probe_result **ret, struct err *err) {
    _cleanup_probe_result_free_ struct probe_result *result = calloc(1, sizeof *result);
    if (!result)
        return err_sys(err, ENOMEM, "doctor.bad-file", "load a probe");
    int r = load(result_members, json, result, err);
    const json_t *trace = r == 0 ? json_object_get(json, "trace") : NULL;
    if (trace) {
        result->trace = calloc(1, sizeof *result->trace);
        r = result->trace ? load(trace_members, trace, result->trace, err) : -ENOMEM;
    }
    if (r < 0)
        return r;
    if (!is_sound(result))
        return err_set(err, EBADMSG, "doctor.bad-file", "a number in the probe is out of its range");
    *ret = ptr_steal(result);
    return 0;
}

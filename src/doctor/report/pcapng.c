#include "doctor/report/pcapng.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"
#include "doctor/report/report.h"

#define BLOCK_SECTION 0x0a0d0d0a
#define BLOCK_INTERFACE 1
#define BLOCK_PACKET 6
#define BYTE_ORDER_MAGIC 0x1a2b3c4d
#define LINKTYPE_ETHERNET 1
#define OPTION_END 0
#define OPTION_COMMENT 1
#define SECTION_APPLICATION 4
#define INTERFACE_NAME 2
#define INTERFACE_DESCRIPTION 3
#define INTERFACE_RESOLUTION 9
#define PACKET_FLAGS 2
#define FLAG_INBOUND 1
#define FLAG_OUTBOUND 2
#define TEXT_MAX 1024
#define INTERFACES_MAX 256

static void put(struct strbuf *file, const void *data, size_t len) {
    strbuf_add(file, data, len);
}

static void put16(struct strbuf *file, uint16_t value) {
    put(file, &value, sizeof value); /* in this machine's order: the section's magic tells it */
}

static void put32(struct strbuf *file, uint32_t value) {
    put(file, &value, sizeof value);
}

static void pad(struct strbuf *file, size_t len) {
    static const char zero[3];
    put(file, zero, (4 - len % 4) % 4);
}

/* A block's length is written before and behind it: remembers where the first one is. */
static size_t begin_block(struct strbuf *file, uint32_t type) {
    size_t at = file->len;
    put32(file, type);
    put32(file, 0);
    return at;
}

static void end_block(struct strbuf *file, size_t at) {
    uint32_t len = (uint32_t)(file->len - at + 4);
    put32(file, len);
    if (!file->truncated)
        memcpy(file->data + at + 4, &len, sizeof len);
}

static void put_option(struct strbuf *file, uint16_t code, const void *data, size_t len) {
    put16(file, code);
    put16(file, (uint16_t)len);
    put(file, data, len);
    pad(file, len);
}

static void put_text(struct strbuf *file, uint16_t code, const char *text) {
    char shown[TEXT_MAX];
    if (!text || !*text)
        return;
    str_escape(text, strnlen(text, TEXT_MAX / 4), shown, sizeof shown);
    put_option(file, code, shown, strlen(shown));
}

static void end_options(struct strbuf *file) {
    put16(file, OPTION_END);
    put16(file, 0);
}

static void put_section(struct strbuf *file) {
    size_t at = begin_block(file, BLOCK_SECTION);
    put32(file, BYTE_ORDER_MAGIC);
    put16(file, 1);
    put16(file, 0);
    put32(file, UINT32_MAX); /* length of the section, 64 bits: not told */
    put32(file, UINT32_MAX);
    put_text(file, SECTION_APPLICATION, "mctl doctor " MC_VERSION);
    end_options(file);
    end_block(file, at);
}

static void put_interface(struct strbuf *file, const struct pcapng_interface *interface) {
    static const uint8_t nanoseconds = 9;
    size_t at = begin_block(file, BLOCK_INTERFACE);
    put16(file, LINKTYPE_ETHERNET);
    put16(file, 0);
    put32(file, 0); /* no limit to what is kept of a packet */
    put_text(file, INTERFACE_NAME, interface->name);
    put_text(file, INTERFACE_DESCRIPTION, interface->description);
    put_option(file, INTERFACE_RESOLUTION, &nanoseconds, sizeof nanoseconds);
    end_options(file);
    end_block(file, at);
}

static void put_packet(struct strbuf *file, const struct pcapng_packet *packet) {
    uint32_t flags = packet->outgoing ? FLAG_OUTBOUND : FLAG_INBOUND;
    size_t at = begin_block(file, BLOCK_PACKET);
    put32(file, packet->interface);
    put32(file, (uint32_t)((uint64_t)packet->at_ns >> 32));
    put32(file, (uint32_t)packet->at_ns);
    put32(file, packet->kept);
    put32(file, packet->length);
    put(file, packet->data, packet->kept);
    pad(file, packet->kept);
    put_option(file, PACKET_FLAGS, &flags, sizeof flags);
    put_text(file, OPTION_COMMENT, packet->comment);
    end_options(file);
    end_block(file, at);
}

int pcapng_encode(const struct pcapng_interface *interfaces, size_t interface_count,
                  const struct pcapng_packet *packets, size_t packet_count, uint8_t **ret, size_t *ret_len) {
    struct strbuf file = {.max = PCAPNG_MAX};
    int r = 0;
    put_section(&file);
    for (size_t i = 0; i < interface_count; i++)
        put_interface(&file, &interfaces[i]);
    for (size_t i = 0; i < packet_count && r == 0 && !file.truncated; i++) {
        if (packets[i].interface >= interface_count || packets[i].kept > packets[i].length)
            r = -EINVAL;
        else
            put_packet(&file, &packets[i]);
    }
    if (r == 0 && (!file.data || file.truncated))
        r = file.truncated ? -E2BIG : -ENOMEM;
    if (r < 0) {
        strbuf_free(&file);
        return r;
    }
    *ret_len = file.len;
    *ret = (uint8_t *)ptr_steal(file.data);
    return 0;
}

/* --- a probe's --- */

struct names {
    int32_t index[INTERFACES_MAX];
    char name[INTERFACES_MAX][PROBE_NAME];
    struct pcapng_interface list[INTERFACES_MAX];
    size_t count;
};

static void add_name(struct names *names, int32_t index, const char *name, const char *description) {
    for (size_t i = 0; i < names->count; i++)
        if (names->index[i] == index)
            return;
    if (!index || names->count == INTERFACES_MAX)
        return;
    size_t n = names->count++;
    names->index[n] = index;
    str_copy(names->name[n], sizeof names->name[n], name);
    names->list[n] = (struct pcapng_interface){names->name[n], description};
}

static void add_elsewhere(struct names *names, const struct probe_answer *answer) {
    for (uint32_t i = 0; i < answer->request_elsewhere_count; i++)
        add_name(names, answer->request_elsewhere[i].ifindex, answer->request_elsewhere[i].name, NULL);
    for (uint32_t i = 0; i < answer->reply_elsewhere_count; i++)
        add_name(names, answer->reply_elsewhere[i].ifindex, answer->reply_elsewhere[i].name, NULL);
}

/* The bridge and the TAPs are named even if nothing was seen on them: that is what such a file is looked at for. */
static void collect_names(const struct probe_result *result, struct names *names) {
    add_name(names, result->bridge, result->bridge_name, "the bridge");
    for (size_t i = 0; i < result->target_count; i++)
        add_name(names, result->targets[i].target.tap, result->targets[i].target.tap_name, "the TAP under test");
    add_name(names, result->canary.ifindex, result->canary.name, "the doctor's canary");
    for (size_t i = 0; i < result->target_count; i++)
        for (int kind = 0; kind < PROBE_KIND_GUEST_COUNT; kind++)
            add_elsewhere(names, &result->targets[i].answer[kind]);
    for (size_t i = 0; i < result->frame_count; i++) {
        struct strbuf text = {.max = PROBE_NAME - 1};
        strbuf_addf(&text, "ifindex %d", result->frames[i].ifindex);
        add_name(names, result->frames[i].ifindex, text.data ? text.data : "", NULL);
        strbuf_free(&text);
    }
}

static long interface_of(const struct names *names, int32_t index) {
    for (size_t i = 0; i < names->count; i++)
        if (names->index[i] == index)
            return (long)i;
    return -1;
}

/* The last frame of a question that got no answer: the place to look at. */
static bool is_last_of_lost(const struct probe_result *result, size_t at) {
    const struct probe_frame *frame = &result->frames[at];
    const struct probe_answer *answer =
        probe_answer(result, (size_t)frame->tag / PROBE_KIND_COUNT, (enum probe_kind)(frame->tag % PROBE_KIND_COUNT));
    if (answer->answered)
        return false;
    for (size_t i = at + 1; i < result->frame_count; i++)
        if (result->frames[i].tag == frame->tag)
            return false;
    return true;
}

static void add_death(struct strbuf *text, const struct probe_result *result, const struct probe_frame *frame) {
    struct trace_where where = {.last = TRACE_AT_NOTHING};
    strbuf_addf(text, "; the last that was seen of it: no answer came");
    if (result->trace)
        trace_where(result->trace, frame->tag, frame->reply, &where);
    if (where.rule)
        strbuf_addf(text, "; dropped by %s %s %s handle %llu", where.rule->family, where.rule->table, where.rule->chain,
                    (unsigned long long)where.rule->handle);
    else if (where.dropped)
        strbuf_addf(text, "; dropped in %s, %s", where.drop_location, where.drop_reason);
}

static char *comment_of(const struct probe_result *result, size_t at) {
    const struct probe_frame *frame = &result->frames[at];
    struct strbuf text = {.max = TEXT_MAX / 4 - 1};
    if (frame->kind == PROBE_FRAME_GARBLED)
        strbuf_addf(&text, "doctor: not a frame that a guest would send: a header too many or too few");
    if (frame->tag == TRACE_NO_TAG)
        return text.data;
    strbuf_addf(&text, "doctor: %s, %s", probe_kind_name((enum probe_kind)(frame->tag % PROBE_KIND_COUNT)),
                frame->reply ? "answer" : "question");
    if (is_last_of_lost(result, at))
        add_death(&text, result, frame);
    return text.data;
}

int pcapng_write_probe(const struct probe_result *result, const char *path, struct err *err) {
    _cleanup_free_ struct names *names = calloc(1, sizeof *names);
    _cleanup_free_ struct pcapng_packet *packets = calloc(result->frame_count + 1, sizeof *packets);
    _cleanup_free_ uint8_t *file = NULL;
    size_t count = 0, len = 0;
    if (!names || !packets)
        return err_sys(err, ENOMEM, "doctor.capture", "write %s", path);
    collect_names(result, names);
    for (size_t i = 0; i < result->frame_count; i++) {
        const struct probe_frame *frame = &result->frames[i];
        long interface = interface_of(names, frame->ifindex);
        if (interface < 0)
            continue;
        packets[count++] = (struct pcapng_packet){.interface = (uint32_t)interface,
                                                  .at_ns = frame->at_ns + result->realtime_offset_ns,
                                                  .outgoing = frame->outgoing,
                                                  .data = frame->data,
                                                  .kept = frame->kept,
                                                  .length = frame->length,
                                                  .comment = comment_of(result, i)};
    }
    int r = pcapng_encode(names->list, names->count, packets, count, &file, &len);
    for (size_t i = 0; i < count; i++)
        free((char *)packets[i].comment);
    return r < 0 ? err_sys(err, -r, "doctor.capture", "write %s", path)
                 : report_write_file(path, file, len, "doctor.capture", err);
}

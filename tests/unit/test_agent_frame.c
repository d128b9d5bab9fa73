#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "agent/outbox.h"
#include "cmocka_all.h"

static size_t make(uint8_t *to, enum agent_frame_kind kind, uint32_t id, const void *payload, size_t len) {
    struct agent_frame frame = {.kind = kind, .session = 7, .id = id, .payload = payload, .len = len};
    agent_frame_header(&frame, to);
    if (len > 0)
        memcpy(to + AGENT_HEADER_SIZE, payload, len);
    return AGENT_HEADER_SIZE + len;
}

static void crc_is_the_known_one(void **state) {
    assert_int_equal(agent_crc32(0, "123456789", 9), 0xcbf43926);
    assert_int_equal(agent_crc32(agent_crc32(0, "1234", 4), "56789", 5), 0xcbf43926);
}

static void frames_come_out_whole_in_any_pieces(void **state) {
    uint8_t stream[512];
    size_t len = make(stream, AGENT_FRAME_JSON, 1, "{}", 2);
    len += make(stream + len, AGENT_FRAME_DATA, 2, NULL, 0);
    len += make(stream + len, AGENT_FRAME_DATA, 3, "some bytes", 10);
    for (size_t piece = 1; piece <= len; piece++) {
        struct agent_decoder d = {0};
        struct agent_frame frame;
        unsigned seen = 0;
        for (size_t at = 0; at < len; at += piece) {
            assert_int_equal(agent_decoder_push(&d, stream + at, piece < len - at ? piece : len - at), 0);
            while (agent_decoder_next(&d, &frame) == 1) {
                assert_int_equal(frame.id, ++seen);
                assert_int_equal(frame.session, 7);
            }
        }
        assert_int_equal(seen, 3);
        assert_int_equal(d.skipped, 0);
        assert_false(agent_decoder_waits(&d));
        assert_null(d.data); /* an idle channel holds no memory */
        agent_decoder_free(&d);
    }
}

/* Garbage of every sort before, between and behind: the frames are found again. */
static void garbage_is_skipped(void **state) {
    uint8_t stream[4096], good[64];
    size_t good_len = make(good, AGENT_FRAME_JSON, 9, "{\"a\":1}", 7);
    for (unsigned round = 0; round < 200; round++) {
        size_t len = 0;
        srand(round);
        for (size_t n = (size_t)rand() % 300; n > 0; n--)
            stream[len++] = round % 3 == 0 ? 0xf5 : round % 3 == 1 ? good[(size_t)rand() % 8] : (uint8_t)rand();
        memcpy(stream + len, good, good_len);
        stream[len + round % good_len] ^= 0x40; /* a frame that was hurt somewhere */
        len += good_len;
        memcpy(stream + len, good, good_len);
        len += good_len;
        struct agent_decoder d = {0};
        struct agent_frame frame;
        assert_int_equal(agent_decoder_push(&d, stream, len), 0);
        /* A false beginning may hold the good one back until it is given up. */
        int found = agent_decoder_next(&d, &frame);
        for (size_t i = 0; !found && agent_decoder_waits(&d) && i < len; i++) {
            agent_decoder_give_up(&d);
            found = agent_decoder_next(&d, &frame);
        }
        assert_int_equal(found, 1);
        assert_int_equal(frame.id, 9);
        assert_int_equal(frame.len, 7);
        agent_decoder_free(&d);
    }
}

/* The rest of an old frame, cut in its payload, and then a new one. */
static void a_cut_frame_costs_only_itself(void **state) {
    uint8_t stream[2048], payload[1000] = {0};
    struct agent_decoder d = {0};
    struct agent_frame frame;
    make(stream, AGENT_FRAME_DATA, 1, payload, sizeof payload);
    size_t len = 500;
    len += make(stream + len, AGENT_FRAME_JSON, 2, "{}", 2);
    assert_int_equal(agent_decoder_push(&d, stream, len), 0);
    assert_int_equal(agent_decoder_next(&d, &frame), 0);
    assert_true(agent_decoder_waits(&d));
    agent_decoder_give_up(&d);
    assert_int_equal(agent_decoder_next(&d, &frame), 1);
    assert_int_equal(frame.id, 2);
    assert_int_equal(d.skipped, 500);
    agent_decoder_free(&d);
}

static void impossible_headers_are_refused(void **state) {
    static const struct {
        size_t at;
        uint8_t value;
    } bad[] = {{4, 0}, {4, 4}, {5, 3}, {6, 1}, {7, 1}, {18, 3}, {19, 1}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint8_t header[AGENT_HEADER_SIZE];
        struct agent_decoder d = {0};
        struct agent_frame frame = {.kind = AGENT_FRAME_JSON};
        agent_frame_header(&frame, header);
        header[bad[i].at] = bad[i].value;
        uint32_t crc = agent_crc32(0, header, 24); /* so that the checksum is not what is refused */
        memcpy(header + 24, &crc, 4);
        assert_int_equal(agent_decoder_push(&d, header, sizeof header), 0);
        assert_int_equal(agent_decoder_next(&d, &frame), 0);
        assert_false(agent_decoder_waits(&d));
        assert_int_equal(d.skipped, sizeof header);
        agent_decoder_free(&d);
    }
}

/* Headers with good checksums, each claiming a large payload with a bad one: the work is bounded by what came in. */
static void forged_headers_do_not_cost_time(void **state) {
    struct agent_decoder d = {0};
    struct agent_frame frame;
    uint8_t *block = malloc(65536);
    uint8_t header[AGENT_HEADER_SIZE];
    struct agent_frame forged = {.kind = AGENT_FRAME_JSON, .len = AGENT_PAYLOAD_MAX};
    forged.payload = calloc(1, AGENT_PAYLOAD_MAX);
    agent_frame_header(&forged, header);
    for (size_t at = 0; at + sizeof header <= 65536; at += sizeof header)
        memcpy(block + at, header, sizeof header);
    for (int i = 0; i < 160; i++) { /* 10 MB: unbounded it would be some 10^10 bytes of checksum, minutes */
        assert_int_equal(agent_decoder_push(&d, block, 65536), 0);
        assert_int_equal(agent_decoder_next(&d, &frame), 0);
        assert_true(d.cap <= (size_t)512 * 1024);
    }
    free((void *)forged.payload);
    free(block);
    agent_decoder_free(&d);
}

static void the_outbox_is_bounded_and_exact(void **state) {
    struct agent_outbox o = {.max = 1000};
    uint8_t payload[400] = {1};
    struct agent_frame frame = {.kind = AGENT_FRAME_DATA, .payload = payload, .len = sizeof payload};
    assert_int_equal(agent_outbox_frame(&o, &frame), 0);
    assert_int_equal(agent_outbox_frame(&o, &frame), 0);
    assert_int_equal(agent_outbox_frame(&o, &frame), -ENOBUFS);
    assert_int_equal(agent_outbox_waiting(&o), 2 * (AGENT_HEADER_SIZE + sizeof payload));
    assert_int_equal(agent_outbox_json(&o, 1, 1, NULL), -ENOMEM);
    agent_outbox_clear(&o);
    o.max = 4 * AGENT_PAYLOAD_MAX;
    char *text = malloc(AGENT_PAYLOAD_MAX);
    memset(text, 'x', AGENT_PAYLOAD_MAX - 1);
    text[AGENT_PAYLOAD_MAX - 1] = '\0';
    assert_int_equal(agent_outbox_json(&o, 1, 1, json_pack("{s:s}", "a", text)), -EMSGSIZE);
    assert_int_equal(agent_outbox_waiting(&o), 0);
    free(text);
    assert_int_equal(agent_outbox_credit(&o, 1, 2, AGENT_STDOUT, 0x01020304), 0);
    struct agent_decoder d = {0};
    assert_int_equal(agent_decoder_push(&d, o.data, o.len), 0);
    assert_int_equal(agent_decoder_next(&d, &frame), 1);
    assert_int_equal(agent_frame_credit(&frame), 0x01020304);
    agent_decoder_free(&d);
    agent_outbox_clear(&o);
}

static void only_one_object_is_json(void **state) {
    static const char *const bad[] = {
        "", "[]", "1", "{", "{}{}", "{\"a\":1,\"a\":2}", "{\"a\":\"\xff\"}", "{\"a\":\"\\u0000\"}", "nul"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct agent_frame frame = {
            .kind = AGENT_FRAME_JSON, .payload = (const uint8_t *)bad[i], .len = strlen(bad[i])};
        assert_null(agent_frame_json(&frame));
    }
    /* Deeper than any parser's stack should go. */
    struct agent_frame deep = {.kind = AGENT_FRAME_JSON, .len = AGENT_PAYLOAD_MAX};
    uint8_t *text = malloc(deep.len);
    memset(text, '[', deep.len);
    memcpy(text, "{\"a\":", 5);
    deep.payload = text;
    assert_null(agent_frame_json(&deep));
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(crc_is_the_known_one),
        cmocka_unit_test(frames_come_out_whole_in_any_pieces),
        cmocka_unit_test(garbage_is_skipped),
        cmocka_unit_test(a_cut_frame_costs_only_itself),
        cmocka_unit_test(impossible_headers_are_refused),
        cmocka_unit_test(forged_headers_do_not_cost_time),
        cmocka_unit_test(the_outbox_is_bounded_and_exact),
        cmocka_unit_test(only_one_object_is_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

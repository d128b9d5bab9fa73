#include <errno.h>
#include <stdio.h>

#include "cmocka_all.h"
#include "relay/frame.h"
#include "relay/timers.h"
#include "relay/utf8.h"
#include "ws_peer.h"

/* Feeds a stream in random pieces as a side does, and collects what comes out. */
struct pass {
    struct frame_parser parser;
    struct ws_decoder out;
    size_t rest_max;
    uint16_t code; /* of a Close or an error */
    const char *wrong;
};

static void pass(struct pass *p, const struct ws_bytes *in, uint64_t *seed, size_t piece_max) {
    uint8_t *buffer = malloc(FRAME_HEAD_MAX + FRAME_REST_MAX + piece_max);
    assert_non_null(buffer);
    uint8_t *start = buffer + FRAME_HEAD_MAX;
    size_t held = 0;
    for (size_t at = 0; at < in->len && !p->wrong;) {
        size_t piece = 1 + ws_random(seed) % piece_max;
        piece = piece > in->len - at ? in->len - at : piece;
        memcpy(start + held, in->data + at, piece);
        at += piece;
        uint8_t *pos = start;
        size_t len = held + piece;
        struct frame f;
        enum frame_result r;
        while ((r = frame_next(&p->parser, pos, len, &f)) == FRAME_READY) {
            assert_true(f.used > 0 && f.used <= len);
            assert_true(f.data >= buffer && f.data + f.len <= start + held + piece);
            size_t before = p->out.frames;
            ws_decode(&p->out, f.data, f.len);
            /* A Close could go out now: what was sent on ends where a frame ends. */
            assert_null(p->out.error);
            assert_int_equal(p->out.input.len, 0);
            assert_int_equal(p->out.frames, before + 1);
            pos += f.used;
            len -= f.used;
        }
        if (r == FRAME_BROKEN) {
            p->wrong = f.wrong;
            p->code = f.code;
        }
        p->rest_max = len > p->rest_max ? len : p->rest_max;
        memmove(start, pos, len);
        held = len;
    }
    if (held > 0 && !p->wrong)
        p->rest_max += 1000000; /* the stream ended inside a frame */
    free(buffer);
}

static void streams_come_out_with_the_same_messages(void **state) {
    for (uint64_t round = 0; round < 60; round++) {
        bool masked = round % 2;
        uint64_t seed = round;
        struct ws_bytes stream = {0};
        ws_random_stream(&stream, &seed, masked, 400000, 150000);
        struct ws_decoder direct = {.masked = masked};
        ws_decode(&direct, stream.data, stream.len);
        assert_null(direct.error);
        struct pass p = {.parser.masked = masked, .out.masked = masked};
        pass(&p, &stream, &seed, round < 20 ? 300 : round < 40 ? 9000 : 70000);
        assert_null(p.wrong);
        assert_int_equal(p.out.messages, direct.messages);
        assert_true(p.out.digest == direct.digest);
        assert_true(p.out.controls == direct.controls);
        assert_true(p.rest_max <= FRAME_REST_MAX);
        assert_true(frame_parser_idle(&p.parser));
        ws_decoder_free(&direct);
        ws_decoder_free(&p.out);
        ws_bytes_free(&stream);
    }
}

static void a_short_frame_is_not_cut(void **state) {
    uint64_t seed = 1;
    struct ws_bytes stream = {0};
    uint8_t payload[FRAME_HOLD_MAX] = {1};
    for (size_t len = 0; len <= sizeof payload; len += 512)
        ws_frame(&stream, 0x82, true, payload, len);
    struct pass p = {.parser.masked = true, .out.masked = true};
    pass(&p, &stream, &seed, 100);
    assert_int_equal(p.out.frames, 9);
    assert_int_equal(p.out.messages, 9);
    ws_decoder_free(&p.out);
    ws_bytes_free(&stream);
}

static void a_frame_that_never_ends_is_given_out_in_whole_fragments(void **state) {
    uint64_t seed = 1;
    struct ws_bytes stream = {0};
    size_t len = 1000003;
    uint8_t *payload = calloc(1, len);
    ws_frame_claim(&stream, 0x82, true, payload, len, (uint64_t)1 << 62);
    struct pass p = {.parser.masked = true, .out.masked = true};
    pass(&p, &stream, &seed, 20000);
    assert_null(p.out.error);
    assert_int_equal(p.out.messages, 0);
    assert_true(p.out.message.len > len - FRAME_HOLD_MAX - 4 && p.out.message.len % 4 == 0);
    for (size_t i = 0; i < p.out.message.len; i++)
        assert_int_equal(p.out.message.data[i], 0);
    assert_false(frame_parser_idle(&p.parser));
    free(payload);
    ws_decoder_free(&p.out);
    ws_bytes_free(&stream);
}

static void expect_broken(const void *data, size_t len, bool masked, uint16_t code) {
    for (size_t piece_max = 1; piece_max < 200; piece_max += 150) {
        uint64_t seed = 1;
        struct ws_bytes stream = {0};
        ws_add(&stream, data, len);
        struct pass p = {.parser.masked = masked, .out.masked = masked};
        pass(&p, &stream, &seed, piece_max);
        if (!p.wrong)
            print_error("not refused: %02x %02x\n", ((const uint8_t *)data)[0], ((const uint8_t *)data)[1]);
        assert_non_null(p.wrong);
        assert_int_equal(p.code, code);
        ws_decoder_free(&p.out);
        ws_bytes_free(&stream);
    }
}

#define BROKEN(text, masked, code) expect_broken(text, sizeof(text) - 1, masked, code)

static void broken_frames_are_refused(void **state) {
    BROKEN("\x82\x01x", true, 1002);                     /* not masked */
    BROKEN("\x82\x81\x01\x02\x03\x04x", false, 1002);    /* masked */
    BROKEN("\xc2\x01x", false, 1002);                    /* RSV1 */
    BROKEN("\xa2\x01x", false, 1002);                    /* RSV2 */
    BROKEN("\x92\x01x", false, 1002);                    /* RSV3 */
    BROKEN("\x83\x01x", false, 1002);                    /* opcode 3 */
    BROKEN("\x87\x01x", false, 1002);                    /* opcode 7 */
    BROKEN("\x8b\x01x", false, 1002);                    /* opcode 11 */
    BROKEN("\x8f\x01x", false, 1002);                    /* opcode 15 */
    BROKEN("\x82\x7f\x80\0\0\0\0\0\0\1", false, 1002);   /* top bit */
    BROKEN("\x82\x7f\0\0\0\0\0\0\xff\xff", false, 1002); /* not minimal */
    BROKEN("\x82\x7e\0\x7d", false, 1002);               /* not minimal */
    BROKEN("\x09\x01x", false, 1002);                    /* a ping in fragments */
    BROKEN("\x08\x00", false, 1002);                     /* a Close in fragments */
    BROKEN("\x89\x7e\0\x7e", false, 1002);               /* a long ping */
    BROKEN("\x80\x01x", false, 1002);                    /* continues nothing */
    BROKEN("\x02\x01x\x82\x01x", false, 1002);           /* a message in a message */
    BROKEN("\x82\x01x\x80\x01x", false, 1002);           /* continues what has ended */
    BROKEN("\x88\x01x", false, 1002);                    /* half a code */
    BROKEN("\x88\x02\x03\xe7", false, 1002);             /* 999 */
    BROKEN("\x88\x02\x03\xec", false, 1002);             /* 1004 */
    BROKEN("\x88\x02\x03\xed", false, 1002);             /* 1005 */
    BROKEN("\x88\x02\x03\xee", false, 1002);             /* 1006 */
    BROKEN("\x88\x02\x03\xf7", false, 1002);             /* 1015 */
    BROKEN("\x88\x02\x0b\xb7", false, 1002);             /* 2999 */
    BROKEN("\x88\x02\x13\x88", false, 1002);             /* 5000 */
    BROKEN("\x88\x04\x03\xe8\xc3\x28", false, 1007);     /* a reason that is no UTF-8 */
    BROKEN("\x88\x03\x03\xe8\xc3", false, 1007);         /* half a character */
    BROKEN("\x81\x02\xc3\x28", false, 1007);             /* a text that is none */
    BROKEN("\x01\x01\xe2\x80\x02\x82\x28", false, 1007); /* across fragments */
    BROKEN("\x01\x01\xe2\x80\x01\x82", false, 1007);     /* ends in a character */
    BROKEN("\x81\x03\xed\xa0\x80", false, 1007);         /* a surrogate */
}

static void good_frames_are_not(void **state) {
    static const struct {
        const char *data;
        size_t len;
    } good[] = {
        {"\x88\x00", 2},
        {"\x88\x02\x03\xe8", 4},
        {"\x88\x02\x0b\xb8", 4},
        {"\x88\x02\x13\x87", 4},
        {"\x89\x00", 2},
        {"\x01\x02\xe2\x82\x89\x01\xff\x80\x01\xac", 10},
        {"\x81\x03\xe2\x82\xac", 5},
        {"\x82\x02\xc3\x28", 4},
        {"\x02\x00\x80\x00", 4},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        uint64_t seed = i;
        struct ws_bytes stream = {0};
        ws_add(&stream, good[i].data, good[i].len);
        struct pass p = {0};
        pass(&p, &stream, &seed, 1);
        assert_null(p.wrong);
        assert_int_equal(p.rest_max < FRAME_REST_MAX, 1);
        ws_decoder_free(&p.out);
        ws_bytes_free(&stream);
    }
}

static void a_text_is_checked_before_all_of_it_has_come(void **state) {
    uint64_t seed = 1;
    struct ws_bytes stream = {0};
    uint8_t payload[20000];
    for (size_t i = 0; i < sizeof payload; i += 2)
        memcpy(payload + i, "\xc3\xa4", 2);
    ws_frame(&stream, 0x81, false, payload, sizeof payload);
    struct pass good = {0};
    pass(&good, &stream, &seed, 5001);
    assert_null(good.wrong);
    assert_int_equal(good.out.messages, 1);
    stream.data[9000] = 'x';
    struct pass bad = {0};
    pass(&bad, &stream, &seed, 5001);
    assert_int_equal(bad.code, 1007);
    ws_decoder_free(&good.out);
    ws_decoder_free(&bad.out);
    ws_bytes_free(&stream);
}

static void a_close_is_read(void **state) {
    struct ws_bytes b = {0};
    ws_close_frame(&b, true, 4408, "über");
    uint8_t buffer[FRAME_HEAD_MAX + 64];
    memcpy(buffer + FRAME_HEAD_MAX, b.data, b.len);
    struct frame_parser parser = {.masked = true};
    struct frame f;
    assert_int_equal(frame_next(&parser, buffer + FRAME_HEAD_MAX, b.len, &f), FRAME_READY);
    assert_int_equal(f.opcode, FRAME_CLOSE);
    assert_int_equal(f.code, 4408);
    assert_string_equal((char *)f.payload, "über");
    ws_bytes_free(&b);
}

static void a_close_is_built_so_that_a_browser_takes_it(void **state) {
    static const struct {
        uint16_t code, sent;
        const char *reason, *read;
    } cases[] = {
        {1014, 1014, "no way", "no way"},
        {1006, 1011, "", ""},
        {1005, 1011, "x", "x"},
        {1015, 1011, "", ""},
        {0, 0, "gone", ""},
        {65535, 1011, "", ""},
        {1001, 1001,
         "a\xff"
         "b",
         "a?b"},
        {1001, 1001, "a\nb\x7f", "a?b?"},
        {4404, 4404, "ä€😀", "ä€😀"},
        {1001, 1001, "a\xe2\x82", "a??"},
        {1001, 1001, "a\xc2\x9b", "a?"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int masked = 0; masked < 2; masked++) {
            uint8_t out[FRAME_HEAD_MAX + FRAME_CONTROL_MAX], key[] = {1, 2, 3, 4};
            size_t len = frame_build_close(out, masked ? key : NULL, cases[i].code, cases[i].reason);
            struct ws_decoder d = {.masked = masked};
            ws_decode(&d, out, len);
            assert_null(d.error);
            assert_true(d.closed);
            assert_int_equal(d.code, cases[i].sent);
            assert_string_equal(d.reason, cases[i].read);
            ws_decoder_free(&d);
        }
}

static void a_long_reason_is_cut_between_characters(void **state) {
    char text[400];
    for (size_t i = 0; i + 3 < sizeof text; i += 3)
        memcpy(text + i, "€", 4);
    uint8_t out[FRAME_HEAD_MAX + FRAME_CONTROL_MAX];
    struct ws_decoder d = {0};
    ws_decode(&d, out, frame_build_close(out, NULL, 1011, text));
    assert_null(d.error);
    assert_int_equal(strlen(d.reason), 123);
    ws_decoder_free(&d);
    char cut[121];
    assert_int_equal(utf8_sentence(text, cut, sizeof cut), 120);
    assert_int_equal(utf8_sentence(text, cut, 120), 117);
    assert_int_equal(utf8_sentence(text, cut, 1), 0);
    assert_string_equal(cut, "");
}

/* All sequences of up to 3 bytes, against the table of RFC 3629. */
static bool utf8_by_the_table(const uint8_t *p, size_t len) {
    for (size_t i = 0; i < len;) {
        uint8_t a = p[i], b = i + 1 < len ? p[i + 1] : 0, c = i + 2 < len ? p[i + 2] : 0;
        bool cont_b = (b & 0xc0) == 0x80, cont_c = (c & 0xc0) == 0x80;
        if (a < 0x80)
            i += 1;
        else if (a >= 0xc2 && a <= 0xdf && cont_b)
            i += 2;
        else if (a == 0xe0 && b >= 0xa0 && b <= 0xbf && cont_c)
            i += 3;
        else if (a >= 0xe1 && a <= 0xef && a != 0xed && cont_b && cont_c)
            i += 3;
        else if (a == 0xed && b >= 0x80 && b <= 0x9f && cont_c)
            i += 3;
        else
            return false;
    }
    return true;
}

static void utf8_knows_the_table(void **state) {
    for (uint32_t v = 0; v < 1 << 24; v++) {
        uint8_t p[3] = {(uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v};
        struct utf8 u = {0};
        if ((utf8_feed(&u, p, 3) && utf8_complete(&u)) != utf8_by_the_table(p, 3))
            fail_msg("%02x %02x %02x", p[0], p[1], p[2]);
    }
    static const struct {
        const char *text;
        bool good;
    } four[] = {{"\xf0\x90\x80\x80", true},  {"\xf0\x8f\xbf\xbf", false}, {"\xf4\x8f\xbf\xbf", true},
                {"\xf4\x90\x80\x80", false}, {"\xf5\x80\x80\x80", false}, {"\xf1\x80\x80", false}};
    for (size_t i = 0; i < sizeof four / sizeof *four; i++) {
        struct utf8 u = {0};
        bool good = utf8_feed(&u, (const uint8_t *)four[i].text, strlen(four[i].text)) && utf8_complete(&u);
        assert_int_equal(good, four[i].good);
    }
}

static void timers_give_the_earliest(void **state) {
    enum { N = 500 };
    struct timers t = {0};
    struct timer timer[N] = {0};
    uint64_t seed = 5;
    for (int round = 0; round < 20000; round++) {
        struct timer *one = &timer[ws_random(&seed) % N];
        if (ws_random(&seed) % 3 == 0)
            timers_unset(&t, one);
        else
            assert_int_equal(timers_set(&t, one, ws_random(&seed) % 1000), 0);
        int64_t first = INT64_MAX;
        size_t set = 0;
        for (size_t i = 0; i < N; i++) {
            set += timer[i].position > 0;
            if (timer[i].position > 0 && timer[i].at_ms < first)
                first = timer[i].at_ms;
        }
        assert_int_equal(t.len, set);
        assert_true(set == 0 ? timers_first(&t) == NULL : timers_first(&t)->at_ms == first);
    }
    timers_free(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(streams_come_out_with_the_same_messages),
        cmocka_unit_test(a_short_frame_is_not_cut),
        cmocka_unit_test(a_frame_that_never_ends_is_given_out_in_whole_fragments),
        cmocka_unit_test(broken_frames_are_refused),
        cmocka_unit_test(good_frames_are_not),
        cmocka_unit_test(a_text_is_checked_before_all_of_it_has_come),
        cmocka_unit_test(a_close_is_read),
        cmocka_unit_test(a_close_is_built_so_that_a_browser_takes_it),
        cmocka_unit_test(a_long_reason_is_cut_between_characters),
        cmocka_unit_test(utf8_knows_the_table),
        cmocka_unit_test(timers_give_the_earliest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

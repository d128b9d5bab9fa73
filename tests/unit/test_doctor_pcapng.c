/* pcapng, byte by byte. */
#include "cmocka_all.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "doctor/report/pcapng.h"

static uint32_t u32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, 4);
    return value;
}

static uint16_t u16(const uint8_t *at) {
    uint16_t value;
    memcpy(&value, at, 2);
    return value;
}

/* Walks the file: every block's length stands before and behind it, on a multiple of four. Return: the n-th of a type. */
static const uint8_t *block(const uint8_t *file, size_t len, uint32_t type, size_t n) {
    const uint8_t *found = NULL;
    size_t at = 0;
    while (at < len) {
        uint32_t size = u32(file + at + 4);
        assert_true(size >= 12 && size % 4 == 0 && at + size <= len);
        assert_int_equal(u32(file + at + size - 4), size);
        if (u32(file + at) == type && n-- == 0 && !found)
            found = file + at;
        at += size;
    }
    assert_int_equal(at, len);
    return found;
}

static const uint8_t *option(const uint8_t *from, uint16_t code, uint16_t *ret_len) {
    while (u16(from) != 0) {
        if (u16(from) == code) {
            *ret_len = u16(from + 2);
            return from + 4;
        }
        from += 4 + (u16(from + 2) + 3) / 4 * 4;
    }
    return NULL;
}

static void test_bytes(void **state) {
    static const uint8_t data[] = {1, 2, 3, 4, 5};
    const struct pcapng_interface interfaces[] = {{"br0", "the bridge"}, {"fc-vm-1", NULL}};
    const struct pcapng_packet packets[] = {
        {.interface = 1,
         .at_ns = 0x0000001122334455,
         .outgoing = true,
         .data = data,
         .kept = 5,
         .length = 1514,
         .comment = "a\x1b"
                    "b"},
        {.interface = 0, .at_ns = 7, .data = data, .kept = 4, .length = 4},
    };
    _cleanup_free_ uint8_t *file = NULL;
    size_t len;
    uint16_t n;
    assert_int_equal(pcapng_encode(interfaces, 2, packets, 2, &file, &len), 0);

    const uint8_t *at = block(file, len, 0x0a0d0d0a, 0);
    assert_ptr_equal(at, file);
    assert_int_equal(u32(at + 8), 0x1a2b3c4d);
    assert_int_equal(u16(at + 12), 1);

    at = block(file, len, 1, 1);
    assert_int_equal(u16(at + 8), 1); /* Ethernet */
    assert_memory_equal(option(at + 16, 2, &n), "fc-vm-1", 7);
    assert_int_equal(n, 7);
    assert_null(option(at + 16, 3, &n));
    assert_int_equal(*option(at + 16, 9, &n), 9);
    assert_int_equal(n, 1);

    at = block(file, len, 6, 0);
    assert_int_equal(u32(at + 8), 1);
    assert_int_equal(u32(at + 12), 0x11);
    assert_int_equal(u32(at + 16), 0x22334455);
    assert_int_equal(u32(at + 20), 5);
    assert_int_equal(u32(at + 24), 1514);
    assert_memory_equal(at + 28, data, 5);
    assert_int_equal(u32(option(at + 28 + 8, 2, &n)), 2); /* outbound */
    assert_int_equal(n, 4);
    assert_memory_equal(option(at + 28 + 8, 1, &n), "a\\x1bb", 6);
    assert_int_equal(n, 6);

    at = block(file, len, 6, 1);
    assert_int_equal(u32(option(at + 28 + 4, 2, &n)), 1); /* inbound */
    assert_null(option(at + 28 + 4, 1, &n));
    assert_null(block(file, len, 6, 2));
}

static void test_refused(void **state) {
    const struct pcapng_interface interfaces[] = {{"br0", NULL}};
    const uint8_t data[4] = {0};
    struct pcapng_packet packet = {.interface = 1, .data = data, .kept = 4, .length = 4};
    uint8_t *file = NULL;
    size_t len;
    assert_int_equal(pcapng_encode(interfaces, 1, &packet, 1, &file, &len), -EINVAL);
    packet = (struct pcapng_packet){.data = data, .kept = 4, .length = 3};
    assert_int_equal(pcapng_encode(interfaces, 1, &packet, 1, &file, &len), -EINVAL);
    assert_null(file);
}

/* A file of a probe in which a question died: the TAP is named though it saw nothing, the last frame says so. */
static void test_probe(void **state) {
    struct probe_frame frames[2] = {
        {.at_ns = 5,
         .ifindex = 3,
         .outgoing = true,
         .tag = probe_tag(0, PROBE_ARP),
         .kind = PROBE_FRAME_WHO_HAS,
         .length = 60,
         .kept = 60},
        {.at_ns = 6,
         .ifindex = 3,
         .outgoing = true,
         .tag = probe_tag(0, PROBE_ARP),
         .kind = PROBE_FRAME_WHO_HAS,
         .length = 60,
         .kept = 60},
    };
    struct probe_target_result target = {.target = {.tap = 4, .tap_name = "fc-vm-1"}};
    target.answer[PROBE_ARP] = (struct probe_answer){.asked = true, .sent = true};
    struct probe_result result = {.targets = &target,
                                  .target_count = 1,
                                  .frames = frames,
                                  .frame_count = 2,
                                  .bridge = 3,
                                  .bridge_name = "br0",
                                  .realtime_offset_ns = 1000};
    char path[] = "/tmp/test_doctor_pcapng.XXXXXX";
    struct err err;
    _cleanup_free_ char *file = NULL;
    size_t len;
    uint16_t n;
    assert_non_null(mkdtemp(path));
    char name[64];
    snprintf(name, sizeof name, "%s/x.pcapng", path);
    assert_int_equal(pcapng_write_probe(&result, name, &err), 0);
    assert_int_equal(file_read(name, 1 << 20, &file, &len), 0);
    const uint8_t *bytes = (const uint8_t *)file;
    assert_memory_equal(option(block(bytes, len, 1, 1) + 16, 2, &n), "fc-vm-1", 7);
    const uint8_t *first = block(bytes, len, 6, 0), *second = block(bytes, len, 6, 1);
    assert_int_equal(u32(first + 16), 1005);
    const char *comment = (const char *)option(first + 28 + 60, 1, &n);
    assert_memory_equal(comment, "doctor: arp, question", n);
    comment = (const char *)option(second + 28 + 60, 1, &n);
    assert_non_null(memmem(comment, n, "no answer came", 14));
    assert_int_equal(pcapng_write_probe(&result, "/nonexistent/x", &err), -ENOENT);
    assert_string_equal(err.code, "doctor.capture");
    dir_remove(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bytes), cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_probe)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* An image's folder as the daemon reads it, and the parts of the inspection that need no whole image. Argument: a small
 * ext4 (tests/fuzz/make-ext4: a little of all that an image holds). */
#include "image/image.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "cmocka_all.h"
#include "image/list.h"
#include "image/needs.h"
#include "image/unit.h"
#include "image/verify.h"

static const char *small_ext4;

struct folder {
    char base[64], build[96];
    char uuid[40];
    size_t size;
};

static void put(const struct folder *f, const char *name, const void *data, size_t len) {
    char path[160];
    snprintf(path, sizeof path, "%s/%s", f->build, name);
    unlink(path);
    assert_int_equal(file_write_new(path, data, len, 0600), 0);
}

static int setup(void **state) {
    struct folder *f = calloc(1, sizeof *f);
    struct ext4 *fs;
    struct ext4_facts facts;
    struct err err = {0};
    char path[160];
    _cleanup_free_ char *data = NULL;
    snprintf(f->base, sizeof f->base, "/tmp/test-image-XXXXXX");
    assert_non_null(mkdtemp(f->base));
    snprintf(f->build, sizeof f->build, "%s/20260101T000000Z-abcd", f->base);
    snprintf(path, sizeof path, "%s/current", f->base);
    assert_int_equal(mkdir(f->build, 0700) + symlink("20260101T000000Z-abcd", path), 0);
    assert_int_equal(ext4_open(small_ext4, &fs, &err), 0);
    ext4_describe(fs, &facts);
    ext4_free(fs);
    memcpy(f->uuid, facts.uuid, sizeof f->uuid);
    assert_int_equal(file_read(small_ext4, 1 << 20, &data, &f->size), 0);
    put(f, "rootfs.ext4", data, f->size);
    put(f, "vmlinuz", "kernel", 6);
    put(f, "initrd.img", "initrd", 6);
    *state = f;
    return 0;
}

static int teardown(void **state) {
    struct folder *f = *state;
    dir_remove(f->base);
    free(f);
    return 0;
}

static json_t *manifest_of(const struct folder *f) {
    return json_pack("{s:s, s:s, s:s, s:{s:s, s:I, s:s}, s:{s:s, s:i}, s:{s:s, s:i}}", "schema", "image-manifest/1",
                     "name", "golden", "type", "browser", "rootfs", "file", "rootfs.ext4", "size", (json_int_t)f->size,
                     "uuid", f->uuid, "kernel", "file", "vmlinuz", "size", 6, "initrd", "file", "initrd.img", "size",
                     6);
}

/* Takes the reference. */
static int open_with(const struct folder *f, json_t *manifest, struct err *err) {
    struct image image = {.name = "untouched"};
    char *text = json_dumps(manifest, 0);
    assert_non_null(text);
    put(f, "manifest.json", text, strlen(text));
    json_decref(manifest);
    free(text);
    *err = (struct err){0};
    int r = image_open(f->base, &image, err);
    if (r < 0)
        assert_string_equal(image.name, "untouched");
    return r;
}

/* The manifest fits its files; what is inside is another matter, and is the next thing that is looked at. */
static void a_manifest_that_fits_is_believed_as_far_as_it_goes(void **state) {
    struct folder *f = *state;
    struct err err;
    assert_int_equal(open_with(f, manifest_of(f), &err), -EUCLEAN);
    assert_string_equal(err.code, "image.unfit");
    assert_int_equal(open_with(f, manifest_of(f), &err), -EUCLEAN); /* the verdict that was kept */
    assert_string_equal(err.code, "image.unfit");
    char why[600] = "";
    assert_int_equal(image_verdict_kept(f->build, why, sizeof why), 0);
    assert_string_not_equal(why, "");
    put(f, "vmlinuz", "kerne2", 6); /* changed: it does not count any more */
    assert_true(image_verdict_kept(f->build, why, sizeof why) < 0);
}

static json_t *changed(const struct folder *f, const char *part, const char *member, json_t *value) {
    json_t *manifest = manifest_of(f), *object = part ? json_object_get(manifest, part) : manifest;
    if (value)
        json_object_set_new(object, member, value);
    else
        json_object_del(object, member);
    return manifest;
}

static void a_manifest_that_lies_is_refused(void **state) {
    struct folder *f = *state;
    struct err err;
    json_t *const lies[] = {
        changed(f, NULL, "schema", json_string("image-manifest/2")),
        changed(f, NULL, "schema", NULL),
        changed(f, NULL, "name", json_integer(7)),
        changed(f, NULL, "type", NULL),
        changed(f, NULL, "rootfs", json_array()),
        changed(f, NULL, "kernel", NULL),
        changed(f, "rootfs", "uuid", json_string("6d630000-0000-0000-0000-000000000000")),
        changed(f, "rootfs", "size", json_integer((json_int_t)f->size + 1)),
        changed(f, "rootfs", "size", json_integer(-1)),
        changed(f, "rootfs", "size", json_string("131072")),
        changed(f, "kernel", "file", json_string("../20260101T000000Z-abcd/vmlinuz")),
        changed(f, "kernel", "file", json_string("/etc/hostname")),
        changed(f, "kernel", "file", json_string("")),
        changed(f, "kernel", "file", json_string("none")),
        changed(f, "kernel", "file", json_string(".")),
        changed(f, "initrd", "size", json_integer(5)),
        changed(f, "rootfs", "file", json_string("vmlinuz")),
        changed(f, NULL, "vmlinux", json_object()),
    };
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        assert_int_equal(open_with(f, lies[i], &err), -EUCLEAN);
        assert_string_equal(err.code, "image.broken");
        assert_true(*err.detail && *err.hint);
    }
}

static void what_is_no_manifest_is_refused(void **state) {
    static const char *const texts[] = {"",    "{", "[]", "7", "{\"schema\":\"image-manifest/1\",\"schema\":\"x\"}",
                                        "\xff"};
    struct folder *f = *state;
    struct image image;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct err err = {0};
        put(f, "manifest.json", texts[i], strlen(texts[i]));
        assert_int_equal(image_open(f->base, &image, &err), -EUCLEAN);
        assert_string_equal(err.code, "image.broken");
    }
    struct err err = {0};
    char path[160];
    snprintf(path, sizeof path, "%s/manifest.json", f->build);
    unlink(path);
    assert_int_equal(image_open(f->base, &image, &err), -EUCLEAN);
    assert_string_equal(err.code, "image.broken");
    /* A link in the place of a part: what it leads to was never looked at. */
    assert_int_equal(symlink("/etc/hostname", path), 0);
    assert_int_equal(image_open(f->base, &image, &err), -EUCLEAN);
    snprintf(path, sizeof path, "%s/current", f->base);
    unlink(path);
    assert_int_equal(image_open(f->base, &image, &err), -ENOENT);
    assert_string_equal(err.code, "image.missing");
}

static void images_are_listed_newest_first(void **state) {
    static struct image_entry entries[IMAGE_LIST_MAX];
    struct folder *f = *state;
    struct folder old = *f;
    struct err err;
    char path[160];
    open_with(f, changed(f, NULL, "name", json_string("evil\x1b[31m")), &err);
    snprintf(old.build, sizeof old.build, "%s/20250101T000000Z-old", f->base);
    assert_int_equal(mkdir(old.build, 0700), 0);
    put(&old, "rootfs.ext4", "x", 1);
    snprintf(path, sizeof path, "%s/users-disk", f->base);
    char from[160];
    snprintf(from, sizeof from, "%s/rootfs.ext4", old.build);
    assert_int_equal(link(from, path), 0);
    snprintf(path, sizeof path, "%s/.tmp-x", f->base);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(image_list(f->base, entries, &err), 2);
    assert_string_equal(entries[0].id, "20260101T000000Z-abcd");
    assert_true(entries[0].current && entries[0].judged && *entries[0].problem && entries[0].vms == 0);
    assert_string_equal(entries[0].name, "evil\\x1b[31m");
    assert_string_equal(entries[0].type, "browser");
    assert_string_equal(entries[1].id, "20250101T000000Z-old");
    assert_true(!entries[1].current && !entries[1].judged && entries[1].vms == 1);
    assert_string_equal(entries[1].name, "");
    assert_int_equal(image_list("/nonexistent", entries, &err), -ENOENT);
    assert_string_equal(err.code, "image.missing");
}

/* ---- what is inside ---- */

static void units_are_read_with_drop_ins_and_links(void **state) {
    _cleanup_ext4_ struct ext4 *fs = NULL;
    struct err err = {0};
    struct unit *unit;
    struct unit_graph graph;
    assert_int_equal(ext4_open(small_ext4, &fs, &err), 0);
    assert_int_equal(unit_load(fs, "websockify.service", &unit), 0);
    assert_int_equal(unit->state, UNIT_LOADED);
    assert_true(unit->own);
    assert_string_equal(unit->user, "desktop");
    assert_int_equal(unit->start_count, 1);
    assert_non_null(strstr(unit->start[0], "0.0.0.0:6080 127.0.0.1:5900")); /* a line that goes on */
    unit_free(unit);
    assert_int_equal(unit_load(fs, "x11vnc.service", &unit), 0);
    assert_int_equal(unit->start_count, 1); /* the drop-in took the package's own away */
    assert_string_equal(unit->start[0], "/sbin/init -rfbport 5900");
    unit_free(unit);
    assert_int_equal(unit_load(fs, "none.service", &unit), 0);
    assert_int_equal(unit->state, UNIT_MISSING);
    unit_free(unit);
    assert_int_equal(unit_graph_load(fs, &graph), 0);
    assert_true(unit_graph_starts(&graph, "websockify.service"));
    assert_true(unit_graph_find(&graph, "websockify.service")->enabled);
    assert_true(unit_graph_starts(&graph, "x11vnc.service"));
    assert_false(unit_graph_find(&graph, "x11vnc.service")->enabled); /* only wanted by another */
    assert_non_null(unit_graph_find(&graph, "getty@tty1.service"));
    assert_false(unit_graph_starts(&graph, "getty@tty1.service"));
    assert_null(unit_graph_find(&graph, "multi-user.service"));
    unit_graph_free(&graph);
}

static void the_root_says_its_type(void **state) {
    struct image_report *report;
    struct err err = {0};
    assert_int_equal(image_verify_root(small_ext4, &(struct verify_options){0}, &report, &err), 0);
    assert_string_equal(report->type, "browser");
    assert_true(report->failures > 0);
    assert_true(report_has(report, "package.missing", NULL));
    report_free(report);
    assert_int_equal(image_verify_root(small_ext4, &(struct verify_options){.type = "cli"}, &report, &err), 0);
    assert_string_equal(report->type, "cli");
    report_free(report);
    assert_true(image_verify("/nonexistent", &(struct verify_options){0}, &report, &err) < 0);
    assert_string_equal(err.code, "image.missing");
}

static void paths_are_resolved_inside_of_the_image(void **state) {
    _cleanup_ext4_ struct ext4 *fs = NULL;
    struct err err = {0};
    struct ext4_node node;
    char path[EXT4_PATH_MAX];
    _cleanup_free_ char *text = NULL;
    size_t len;
    assert_int_equal(ext4_open(small_ext4, &fs, &err), 0);
    assert_int_equal(ext4_find(fs, "/usr/bin/sh", true, &node, path), 0);
    assert_string_equal(path, "/bin/sh");
    assert_int_equal(ext4_find(fs, "/../../etc/hosts", true, &node, path), 0);
    assert_string_equal(path, "/etc/hosts");
    assert_int_equal(ext4_find(fs, "/etc/resolv.conf", false, &node, NULL), 0);
    assert_true(S_ISLNK(node.mode));
    assert_int_equal(ext4_find(fs, "/etc/resolv.conf", true, &node, NULL), -ENOENT); /* not this host's /run */
    assert_int_equal(ext4_find(fs, "/etc/hosts/x", true, &node, NULL), -ENOTDIR);
    assert_int_equal(ext4_read_file(fs, "/etc/hosts", 1000, &text, &len), 0);
    assert_string_equal(text, "127.0.0.1 localhost\n");
    assert_int_equal(ext4_read_file(fs, "/etc/hosts", 10, &text, &len), -EFBIG);
    assert_int_equal(ext4_read_file(fs, "/etc", 10, &text, &len), -EISDIR);
}

/* For how many kinds of image: each type, and a browser image with each screen. */
static unsigned kinds_of(const struct need *need, const struct need *and) {
    unsigned count = 0;
    for (int type = 0; type < IMAGE_TYPE_COUNT; type++)
        for (int screen = 0; screen < (type == IMAGE_TYPE_BROWSER ? IMAGE_SCREEN_COUNT : 1); screen++)
            count += need_is_of(need, (enum image_type)type, (enum image_screen)screen) &&
                     need_is_of(and, (enum image_type)type, (enum image_screen)screen);
    return count;
}

static void every_need_says_what_breaks(void **state) {
    static const struct need *const lists[] = {need_packages, need_units,    need_users,
                                               need_files,    need_programs, need_folders};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        for (const struct need *n = lists[i]; n->name; n++) {
            assert_true(kinds_of(n, n) > 0);
            assert_true(n->breaks && strlen(n->breaks) > 10);
            for (const struct need *m = lists[i]; m < n; m++)
                if (strcmp(m->name, n->name) == 0)
                    assert_int_equal(kinds_of(m, n), 0); /* told once */
        }
    enum image_screen screen = IMAGE_SCREEN_TIGERVNC;
    assert_true(image_screen_parse("xvfb", &screen) && screen == IMAGE_SCREEN_XVFB);
    assert_false(image_screen_parse("", &screen));
    assert_string_equal(image_screen_name(IMAGE_SCREEN_TIGERVNC), "tigervnc");
    for (int i = 0; i < IMAGE_TYPE_COUNT; i++) {
        enum image_type type;
        assert_true(image_type_parse(image_type_name((enum image_type)i), &type));
        assert_int_equal(type, i);
        assert_true(need_free_mib(type) > 0 && need_free_inodes(type) > 0);
    }
    enum image_type type = IMAGE_TYPE_TEST;
    assert_false(image_type_parse("Browser", &type));
    assert_false(image_type_parse("", &type));
    assert_int_equal(type, IMAGE_TYPE_TEST);
}

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    small_ext4 = argv[1];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_manifest_that_fits_is_believed_as_far_as_it_goes, setup, teardown),
        cmocka_unit_test_setup_teardown(a_manifest_that_lies_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_no_manifest_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(images_are_listed_newest_first, setup, teardown),
        cmocka_unit_test(units_are_read_with_drop_ins_and_links),
        cmocka_unit_test(the_root_says_its_type),
        cmocka_unit_test(paths_are_resolved_inside_of_the_image),
        cmocka_unit_test(every_need_says_what_breaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

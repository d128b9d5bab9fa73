#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"
#include "base/fd.h"
#include "base/str.h"
#include "base/time.h"
#include "cmocka_all.h"

static void err_keeps_the_chain(void **state) {
    struct err err;
    assert_int_equal(err_set(&err, ENOSPC, "bridge.full", "bridge %s is full", "br0"), -ENOSPC);
    err_prefix(&err, "create %s", "vm-1");
    assert_int_equal(err_hint(&err, "use a second bridge"), -ENOSPC);
    assert_string_equal(err.detail, "create vm-1: bridge br0 is full");
    assert_string_equal(err.code, "bridge.full");
    assert_int_equal(err_sys(&err, ENOENT, "x", "open f"), -ENOENT);
    assert_string_equal(err.detail, "open f: No such file or directory");
    assert_int_equal(err_set(NULL, EINVAL, "x", "y"), -EINVAL);
    assert_int_equal(err_hint(NULL, "z"), -EINVAL);
    assert_int_equal(err_set(&err, 0, "x", "y"), -EIO);
}

static void err_cuts_but_never_overruns(void **state) {
    struct err err;
    char big[4000];
    memset(big, 'a', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    err_set(&err, EINVAL, big, "%s", big);
    err_prefix(&err, "%s", big);
    assert_int_equal(strlen(err.detail), sizeof err.detail - 1);
    assert_int_equal(strlen(err.code), sizeof err.code - 1);
}

static void str_escape_shows_what_a_terminal_would_obey(void **state) {
    char out[64];
    assert_string_equal(str_escape("a\x1b[2J\n\xc3\xa4\xff\x7f", 10, out, sizeof out),
                        "a\\x1b[2J\\x0a\xc3\xa4\\xff\\x7f");
    assert_string_equal(str_escape("\xc2\x9b"
                                   "x",
                                   3, out, sizeof out),
                        "\\xc2\\x9bx");
    assert_string_equal(str_escape("\xe2\x82", 2, out, sizeof out), "\\xe2\\x82");
    char tiny[4];
    assert_string_equal(str_escape("ab\ncd", 5, tiny, sizeof tiny), "ab");
}

static void str_to_u64_takes_only_plain_numbers(void **state) {
    uint64_t v = 7;
    assert_int_equal(str_to_u64("0", 0, 10, &v), 0);
    assert_int_equal(v, 0);
    const char *bad[] = {"", "-1", "+1", " 1", "1 ", "0x1", "1.0"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(str_to_u64(bad[i], 0, 10, &v), -EINVAL);
    assert_int_equal(str_to_u64("11", 0, 10, &v), -ERANGE);
    assert_int_equal(str_to_u64("18446744073709551616", 0, UINT64_MAX, &v), -ERANGE);
    assert_int_equal(str_to_u64("18446744073709551615", 0, UINT64_MAX, &v), 0);
    assert_true(v == UINT64_MAX);
}

static void strbuf_stops_at_its_maximum(void **state) {
    struct strbuf b = {.max = 5};
    strbuf_add(&b, "abc", 3);
    assert_false(b.truncated);
    strbuf_addf(&b, "%s", "defg");
    assert_true(b.truncated);
    assert_string_equal(b.data, "abcde");
    strbuf_free(&b);
}

static void str_copy_cuts_between_characters(void **state) {
    char out[4];
    assert_false(str_copy(out, sizeof out, "ab\xc3\xa4"));
    assert_string_equal(out, "ab");
    assert_false(str_copy(out, sizeof out,
                          "\xc3\xa4"
                          "bc"));
    assert_string_equal(out, "\xc3\xa4"
                             "b");
    assert_true(str_copy(out, sizeof out, "b\xc3\xa4"));
}

static void str_utf8(void **state) {
    assert_true(str_is_utf8("\xf0\x9f\x98\x80", 4));
    assert_false(str_is_utf8("\xed\xa0\x80", 3));
    assert_false(str_is_utf8("\xc0\x80", 2));
    assert_false(str_is_utf8("\xf4\x90\x80\x80", 4));
}

static void time_is_rfc3339(void **state) {
    char text[TIME_RFC3339_SIZE];
    time_format_rfc3339(1700000000123, text);
    assert_string_equal(text, "2023-11-14T22:13:20.123Z");
    time_format_rfc3339(0, text);
    assert_string_equal(text, "1970-01-01T00:00:00.000Z");
}

static void files(void **state) {
    char dir[] = "/tmp/mc-test-XXXXXX";
    assert_non_null(mkdtemp(dir));
    char path[128], other[128];
    snprintf(path, sizeof path, "%s/a/b/file", dir);
    snprintf(other, sizeof other, "%s/a/b", dir);
    assert_int_equal(dir_make(other, 0700), 0);
    assert_int_equal(dir_make(other, 0700), 0);
    assert_int_equal(file_write_atomic(path, "hello", 5, 0600), 0);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    _cleanup_free_ char *data = NULL;
    size_t len;
    assert_int_equal(file_read(path, 5, &data, &len), 0);
    assert_int_equal(len, 5);
    assert_string_equal(data, "hello");
    _cleanup_free_ char *tail = NULL;
    assert_int_equal(file_read_tail(path, 3, &tail, &len), 0);
    assert_string_equal(tail, "llo");
    char *none = NULL;
    assert_int_equal(file_read(path, 4, &none, &len), -EFBIG);
    assert_int_equal(file_read(other, 4, &none, &len), -EISDIR);
    snprintf(other, sizeof other, "%s/link", dir);
    assert_int_equal(symlink(path, other), 0);
    assert_int_equal(file_read(other, 100, &none, &len), -ELOOP);
    assert_null(none);
    assert_int_equal(dir_make(path, 0700), -ENOTDIR);
    assert_int_equal(dir_remove(dir), 0);
    assert_int_equal(stat(dir, &st), -1);
    assert_int_equal(dir_remove(dir), 0);
}

static void secrets_compare(void **state) {
    assert_true(str_equal_secret("abc", 3, "abc", 3));
    assert_false(str_equal_secret("abc", 3, "abd", 3));
    assert_false(str_equal_secret("abc", 3, "ab", 2));
}

/* Whoever may write into the folder could lead us to somebody else's socket, or listen in its owner's place. */
static void a_unix_socket_is_only_its_owners(void **state) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    char folder[] = "/tmp/mc-unix-XXXXXX", link_path[64];
    int fd;
    assert_non_null(mkdtemp(folder));
    snprintf(addr.sun_path, sizeof addr.sun_path, "%s/sock", folder);
    snprintf(link_path, sizeof link_path, "%s/link", folder);
    _cleanup_close_ int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    _cleanup_close_ int dir = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(bind(listener, (struct sockaddr *)&addr, sizeof addr), 0);
    assert_int_equal(fd_connect_unix(dir, "sock", getuid(), 0, &fd), -ECONNREFUSED);
    assert_int_equal(listen(listener, 4), 0);
    assert_int_equal(fd_connect_unix(dir, "sock", getuid(), getpid(), &fd), 0);
    close(fd);
    assert_int_equal(fd_connect_unix(dir, "sock", getuid(), 0, &fd), 0);
    close(fd);
    fd = -7;
    assert_int_equal(fd_connect_unix(dir, "sock", getuid() + 1, 0, &fd), -EPERM);
    assert_int_equal(fd_connect_unix(dir, "sock", getuid(), getppid(), &fd), -EPERM);
    /* Handed to another process, as QEMU's are: that one may listen again, and the file is still ours. */
    pid_t child = fork();
    if (child == 0)
        _exit(listen(listener, 4) < 0);
    assert_int_equal(waitpid(child, &(int){0}, 0), child);
    assert_int_equal(fd_connect_unix(dir, "sock", getuid(), getpid(), &fd), -EPERM);
    fd = -1;
    assert_int_equal(fd_connect_unix(dir, "sock", getuid(), 0, &fd), 0);
    close(fd);
    fd = -7;
    assert_int_equal(symlink(addr.sun_path, link_path), 0);
    assert_true(fd_connect_unix(dir, "link", getuid(), 0, &fd) < 0);
    assert_int_equal(fd_connect_unix(dir, "none", getuid(), 0, &fd), -ENOENT);
    assert_int_equal(fd, -7);
    assert_int_equal(dir_remove(folder), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(err_keeps_the_chain),
        cmocka_unit_test(err_cuts_but_never_overruns),
        cmocka_unit_test(str_escape_shows_what_a_terminal_would_obey),
        cmocka_unit_test(str_to_u64_takes_only_plain_numbers),
        cmocka_unit_test(strbuf_stops_at_its_maximum),
        cmocka_unit_test(str_copy_cuts_between_characters),
        cmocka_unit_test(str_utf8),
        cmocka_unit_test(time_is_rfc3339),
        cmocka_unit_test(files),
        cmocka_unit_test(secrets_compare),
        cmocka_unit_test(a_unix_socket_is_only_its_owners),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}

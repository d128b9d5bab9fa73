/* Provider profiles: the shipped ones, wrong ones, and which addresses a browser may be sent to. argv[1]: doc/providers.d. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "cmocka_all.h"
#include "session/providers.h"

static const char *shipped;

static struct provider load_shipped(const char *name) {
    struct provider p;
    struct err err = {0};
    if (provider_load(shipped, name, &p, &err) < 0)
        fail_msg("%s %s", err.code, err.detail);
    return p;
}

static void what_is_shipped(void **state) {
    struct provider p = load_shipped("generic-oidc"), used;
    struct err err;
    assert_true(p.enabled);
    assert_int_equal(p.flow, PROVIDER_FLOW_AUTHORIZATION_CODE);
    static const char *const disabled[] = {"claude-code", "codex", "gemini"};
    for (unsigned i = 0; i < 3; i++) {
        p = load_shipped(disabled[i]);
        assert_false(p.enabled);
        assert_true(p.command.count > 0 && p.file_count > 0 && p.check.count > 0 && p.host_count > 0);
        assert_int_equal(p.files[0].mode, 0600);
        assert_int_equal(provider_use(shipped, disabled[i], &used, &err), -EPERM);
        assert_string_equal(err.code, "provider.disabled");
        assert_non_null(strstr(err.hint, "enabled = yes"));
    }
    p = load_shipped("gemini");
    assert_true(p.pty);
    assert_int_equal(p.done, PROVIDER_DONE_FILES);
    assert_string_equal(provider_word(&p.environment, 0), "GOOGLE_GENAI_USE_GCA=true");
    assert_string_equal(provider_word(&p.check, 2), "Say yes.");
    assert_null(provider_word(&p.check, 3));
    assert_int_equal(p.check_timeout_ms, 60000);
    p = load_shipped("codex");
    assert_string_equal(provider_word(&p.command, 1), "login");
    assert_int_equal(provider_use(shipped, "demo", &used, &err), 0);
    assert_int_equal(used.flow, PROVIDER_FLOW_NONE);
    assert_int_equal(provider_use(shipped, "nobody", &used, &err), -ENOENT);
    assert_string_equal(err.code, "provider.unknown");
    assert_non_null(strstr(err.hint, "generic-oidc"));
    assert_null(strstr(err.hint, "codex"));
    static const char *const names[] = {"",   "../codex", "Codex", "codex.conf",
                                        "-x", "1x",       "a/b",   "a23456789012345678901234567890123"};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        assert_int_equal(provider_load(shipped, names[i], &used, &err), -ENOENT);
}

#define GOOD                                                                                                           \
    "[provider]\ntitle = T\nenabled = yes\n[login]\nflow = paste\ncommand = t\n[credential]\nfile = .t\ncheck = t\n"

struct folder {
    char dir[32], file[64];
};

static struct folder make_folder(void) {
    struct folder f = {.dir = "/tmp/mc-provider-XXXXXX"};
    assert_non_null(mkdtemp(f.dir));
    snprintf(f.file, sizeof f.file, "%s/t.conf", f.dir);
    return f;
}

static void wrong_files(void **state) {
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "title is missing"},
        {"[provider]\ntitle = T\n[login]\nflow = paste\n", "[login] command is missing"},
        {"[provider]\ntitle = T\n[login]\nflow = paste\ncommand = t\n", "[credential] file is missing"},
        {"[provider]\ntitle = T\n[login]\nflow = paste\ncommand = t\n[credential]\nfile = .t\n", "check is missing"},
        {"[provider]\ntitel = T\n", ":2: [provider] has no key \"titel\""},
        {"[porvider]\n\ntitle = T\n", ":3: [porvider] has no key"},
        {"title = T\n", ":1: "},
        {"nonsense\n", ":1: "},
        {GOOD "[provider]\nenabled = maybe\n", ":11: [provider] enabled"},
        {GOOD "[login]\nflow = oauth\n", ":11: [login] flow"},
        {GOOD "[login]\ncommand =\n", "[login] command"},
        {GOOD "[login]\ncommand = a \"b\n", "[login] command"},
        {GOOD "[login]\ncommand = a \"b\"c\n", "[login] command"},
        {GOOD "[login]\ncommand = \"\" a\n", "[login] command"},
        {GOOD "[login]\nenvironment = 1A=x\n", "[login] environment"},
        {GOOD "[login]\nenvironment = A B=x\n", "[login] environment"},
        {GOOD "[login]\nenvironment = =x\n", "[login] environment"},
        {GOOD "[login]\ndone = never\n", "[login] done"},
        {GOOD "[login]\nterminal = 2\n", "[login] terminal"},
        {GOOD "[credential]\nfile = /etc/shadow\n", "[credential] file"},
        {GOOD "[credential]\nfile = ../x\n", "[credential] file"},
        {GOOD "[credential]\nfile = a/../../x\n", "[credential] file"},
        {GOOD "[credential]\nfile = a/./x\n", "[credential] file"},
        {GOOD "[credential]\nfile = a//x\n", "[credential] file"},
        {GOOD "[credential]\nfile = a/\n", "[credential] file"},
        {GOOD "[credential]\nfile = ..\n", "[credential] file"},
        {GOOD "[credential]\nfile = .t 0666\n", "[credential] file"},
        {GOOD "[credential]\nfile = .t 4600\n", "[credential] file"},
        {GOOD "[credential]\nfile = .t 0400\n", "[credential] file"},
        {GOOD "[credential]\ncheck_timeout = 0\n", "[credential] check_timeout"},
        {GOOD "[open-url]\nhost = https://a.example\n", "[open-url] host"},
        {GOOD "[open-url]\nhost = localhost\n", "[open-url] host"},
        {GOOD "[open-url]\nhost = 127.0.0.1\n", "[open-url] host"},
        {GOOD "[open-url]\nhost = *\n", "[open-url] host"},
        {GOOD "[open-url]\nhost = *.com\n", "[open-url] host"},
        {GOOD "[open-url]\nhost = a.*.example.com\n", "[open-url] host"},
        {GOOD "[open-url]\nhost = a.example:0\n", "[open-url] host"},
        {GOOD "[open-url]\nhost = a.example:\n", "[open-url] host"},
        {GOOD "[open-url]\nhost = A.example\n", "[open-url] host"},
        {GOOD "[open-url]\nhost = a_b.example\n", "[open-url] host"},
    };
    struct folder f = make_folder();
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct provider p = {.name = "before"};
        struct err err = {0};
        assert_int_equal(file_write_atomic(f.file, cases[i].text, strlen(cases[i].text), 0644), 0);
        int r = provider_load(f.dir, "t", &p, &err);
        if (r != -EUCLEAN || strcmp(err.code, "provider.broken") != 0 || !strstr(err.detail, cases[i].says) ||
            strncmp(err.detail, f.file, strlen(f.file)) != 0)
            fail_msg("%s: %d %s: %s", cases[i].text, r, err.code, err.detail);
        assert_string_equal(p.name, "before");
    }
    struct provider p;
    struct err err;
    assert_int_equal(file_write_atomic(f.file, GOOD, strlen(GOOD), 0644), 0);
    assert_int_equal(provider_use(f.dir, "t", &p, &err), 0);
    assert_int_equal(file_write_atomic(f.file, GOOD "\0", strlen(GOOD) + 1, 0644), 0);
    assert_int_equal(provider_load(f.dir, "t", &p, &err), -EUCLEAN);
    dir_remove(f.dir);
}

static void count(void *userdata, const char *name, const struct provider *provider, const struct err *err) {
    (*(int(*)[2])userdata)[err ? 1 : 0]++;
}

static void files_that_others_may_write(void **state) {
    struct folder f = make_folder();
    struct provider p;
    struct err err;
    int counts[2] = {0};
    assert_int_equal(file_write_atomic(f.file, GOOD, strlen(GOOD), 0644), 0);
    provider_each(f.dir, count, counts);
    assert_int_equal(counts[0], 1);
    for (unsigned mode = 0; mode < 2; mode++) {
        assert_int_equal(chmod(f.file, mode ? 0664 : 0646), 0);
        assert_int_equal(provider_load(f.dir, "t", &p, &err), -EUCLEAN);
        assert_string_equal(err.code, "provider.unsafe");
        assert_non_null(strstr(err.detail, f.file));
        assert_non_null(strstr(err.hint, "chmod"));
    }
    assert_int_equal(unlink(f.file), 0);
    assert_int_equal(symlink("/etc/passwd", f.file), 0);
    assert_int_equal(provider_load(f.dir, "t", &p, &err), -EUCLEAN);
    counts[0] = 0;
    provider_each(f.dir, count, counts);
    assert_int_equal(counts[0], 0);
    assert_int_equal(counts[1], 1);
    dir_remove(f.dir);
}

static void what_may_be_opened(void **state) {
    static const char *const hosts[] = {"login.example.com", "*.wild.example", "odd.example:8443",
                                        "xn--bcher-kva.example"};
    static const char *const good[] = {"https://login.example.com",
                                       "https://login.example.com/",
                                       "https://login.example.com?x=1",
                                       "https://login.example.com#f",
                                       "HTTPS://LOGIN.Example.COM/a?b=c&redirect_uri=http://127.0.0.1:1/cb",
                                       "https://login.example.com:443/",
                                       "https://a.wild.example/",
                                       "https://a.b.wild.example/",
                                       "https://odd.example:8443/x",
                                       "https://xn--bcher-kva.example/",
                                       "https://login.example.com/@x",
                                       "https://login.example.com/%2f%40?u=a@b"};
    static const char *const bad[] = {"",
                                      "https://",
                                      "https:///login.example.com/",
                                      "https:/login.example.com/",
                                      "https:login.example.com",
                                      "http://login.example.com/",
                                      "javascript:alert(1)",
                                      "file:///etc/passwd",
                                      "data:text/html,x",
                                      "//login.example.com/",
                                      " https://login.example.com/",
                                      "https://login.example.com/ x",
                                      "https://login.example.com/\n",
                                      "https://login.example.com\t/",
                                      "https://log\tin.example.com/",
                                      "https://login.example.com\\@evil.example/",
                                      "https:\\\\login.example.com/",
                                      "https://login.example.com/\\x",
                                      "https://user@login.example.com/",
                                      "https://user:pw@login.example.com/",
                                      "https://@login.example.com/",
                                      "https://login.example.com@evil.example/",
                                      "https://login.example.com:443@evil.example/",
                                      "https://evil.example/",
                                      "https://login.example.com.evil.example/",
                                      "https://evil-login.example.com/",
                                      "https://xlogin.example.com/",
                                      "https://example.com/",
                                      "https://login.example.com./",
                                      "https://login..example.com/",
                                      "https://.login.example.com/",
                                      "https://wild.example/",
                                      "https://xwild.example/",
                                      "https://.wild.example/",
                                      "https://*.wild.example/",
                                      "https://odd.example/",
                                      "https://odd.example:443/",
                                      "https://login.example.com:8443/",
                                      "https://login.example.com:/",
                                      "https://login.example.com:0/",
                                      "https://login.example.com:65536/",
                                      "https://login.example.com:443:443/",
                                      "https://login.example.com:+443/",
                                      "https://login.example.com:4 43/",
                                      "https://login.example.com:99999999999999999999/",
                                      "https://127.0.0.1/",
                                      "https://127.1/",
                                      "https://2130706433/",
                                      "https://0x7f000001/",
                                      "https://0x7f.1/",
                                      "https://0177.0.0.1/",
                                      "https://1.2.3.0x4/",
                                      "https://a.0x4/",
                                      "https://[::1]/",
                                      "https://[::ffff:127.0.0.1]/",
                                      "https://localhost/",
                                      "https://login%2eexample.com/",
                                      "https://login.example.com%00.evil.example/",
                                      "https://login.example.com%23.evil.example/",
                                      "https://b\xc3\xbc"
                                      "cher.example/",
                                      "https://login.ex\xe2\x80\x8b"
                                      "ample.com/",
                                      "https://login\xe3\x80\x82"
                                      "example.com/",
                                      "https://login_.example.com/",
                                      "https://-a.wild.example/",
                                      "https://a-.wild.example/"};
    struct provider p;
    struct err err;
    provider_init(&p, "t");
    for (unsigned i = 0; i < sizeof hosts / sizeof *hosts; i++)
        assert_int_equal(provider_set(&p, "open-url", "host", hosts[i], &err), 0);
    for (unsigned i = 0; i < sizeof good / sizeof *good; i++)
        if (provider_url_check(&p, good[i], strlen(good[i]), &err) < 0)
            fail_msg("%s: %s", good[i], err.detail);
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (provider_url_check(&p, bad[i], strlen(bad[i]), &err) != -EINVAL)
            fail_msg("taken: %s", bad[i]);
        assert_string_equal(err.code, "url.refused");
    }
    assert_int_equal(provider_url_check(&p, "https://login.example.com/\0x", 28, &err), -EINVAL);
    /* What is in the address besides its host may be a secret. */
    static const char secret[] = "https://evil.example/?code=SECRET#SECRET";
    assert_int_equal(provider_url_check(&p, secret, strlen(secret), &err), -EINVAL);
    assert_null(strstr(err.detail, "SECRET"));
    assert_non_null(strstr(err.detail, "evil.example:443"));
    char longest[PROVIDER_URL_MAX + 2] = "https://login.example.com/";
    memset(longest + strlen(longest), 'a', sizeof longest - strlen(longest));
    assert_int_equal(provider_url_check(&p, longest, PROVIDER_URL_MAX, &err), 0);
    assert_int_equal(provider_url_check(&p, longest, PROVIDER_URL_MAX + 1, &err), -EINVAL);
    provider_init(&p, "none");
    assert_int_equal(provider_url_check(&p, good[0], strlen(good[0]), &err), -EINVAL);
}

static void limits(void **state) {
    struct provider p;
    struct err err;
    char value[200];
    provider_init(&p, "t");
    for (int i = 0; i < 100; i++) {
        snprintf(value, sizeof value, "h%d.example.com", i);
        assert_int_equal(provider_set(&p, "open-url", "host", value, &err), i < PROVIDER_HOSTS_MAX ? 0 : -EINVAL);
        snprintf(value, sizeof value, ".f%d", i);
        assert_int_equal(provider_set(&p, "credential", "file", value, &err), i < PROVIDER_FILES_MAX ? 0 : -EINVAL);
        snprintf(value, sizeof value, "V%d=x y", i);
        assert_int_equal(provider_set(&p, "login", "environment", value, &err), i < PROVIDER_WORDS_MAX ? 0 : -EINVAL);
    }
    assert_string_equal(provider_word(&p.environment, 31), "V31=x y");
    memset(value, 'a', sizeof value);
    value[199] = '\0';
    provider_init(&p, "t");
    for (int i = 0; i < 10; i++) {
        memcpy(value, "V=", 2);
        assert_int_equal(provider_set(&p, "login", "environment", value, &err), i < 5 ? 0 : -EINVAL);
    }
    assert_int_equal(provider_set(&p, "login", "command", "a  \"b c\" d", &err), 0);
    assert_int_equal(p.command.count, 3);
    assert_string_equal(provider_word(&p.command, 1), "b c");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_shipped),
        cmocka_unit_test(wrong_files),
        cmocka_unit_test(files_that_others_may_write),
        cmocka_unit_test(what_may_be_opened),
        cmocka_unit_test(limits),
    };
    if (argc != 2)
        return 2;
    shipped = argv[1];
    return cmocka_run_group_tests(tests, NULL, NULL);
}

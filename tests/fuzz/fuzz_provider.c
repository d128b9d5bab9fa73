/* Any profile, and any address held against it: nothing is read past, and what is taken is as it must be. The input is a
 * profile's text, a NUL, and an address. */
#include "base/ini.h"
#include "fuzz.h"
#include "model/provider.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int on_pair(void *userdata, const char *section, const char *key, const char *value, struct err *err) {
    return provider_set(userdata, section, key, value, err);
}

static void check_profile(const struct provider *p) {
    for (unsigned i = 0; i < p->file_count; i++)
        if (*p->files[i].path == '/' || strstr(p->files[i].path, "../") || (p->files[i].mode & ~0644U))
            abort();
    for (unsigned i = 0; i < p->host_count; i++)
        if (!strchr(p->hosts[i].name, '.') || p->hosts[i].port == 0)
            abort();
    for (unsigned i = 0; i < p->command.count; i++)
        if (!provider_word(&p->command, i))
            abort();
}

/* A taken address has one of the hosts right behind https://. */
static void check_taken(const struct provider *p, const char *url, size_t len) {
    char host[300] = "";
    for (size_t i = 8; i < len && i < 300 && !strchr("/?#:", url[i]); i++)
        host[i - 8] = (char)(url[i] | (url[i] >= 'A' && url[i] <= 'Z' ? 0x20 : 0));
    for (unsigned i = 0; i < p->host_count; i++) {
        size_t n = strlen(p->hosts[i].name), m = strlen(host);
        if (m >= n && strcmp(host + m - n, p->hosts[i].name) == 0)
            return;
    }
    fprintf(stderr, "fuzz_provider: taken\n");
    abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct provider p;
    struct err err = {0};
    const uint8_t *nul = memchr(data, '\0', size);
    size_t text_len = nul ? (size_t)(nul - data) : size, url_len = nul ? size - text_len - 1 : 0;
    char *text = strndup((const char *)data, text_len), *url = malloc(url_len ? url_len : 1);
    if (!text || !url)
        abort();
    if (url_len)
        memcpy(url, nul + 1, url_len);
    provider_init(&p, "fuzz");
    if (ini_read_text("fuzz", text, text_len, on_pair, &p, &err) < 0 && !err.detail[0])
        abort();
    check_profile(&p);
    if (provider_url_check(&p, url, url_len, &err) == 0)
        check_taken(&p, url, url_len);
    free(text);
    free(url);
    return 0;
}

size_t fuzz_seed(unsigned number, uint8_t *ret, size_t size) {
    static const char *const urls[] = {"https://login.example.com/a?b", "https://a.wild.example:8443/",
                                       "https://user@login.example.com"};
    size_t len = (size_t)snprintf((char *)ret, size,
                                  "[provider]\ntitle = T\nenabled = yes\n[login]\nflow = %s\ncommand = a \"b c\"\n"
                                  "environment = A=b\n[credential]\nfile = .a/b 0640\ncheck = c\n[open-url]\n"
                                  "host = login.example.com\nhost = *.wild.example:8443\n",
                                  number % 2 ? "paste" : "device-code");
    return len + 1 + (size_t)snprintf((char *)ret + len + 1, size - len - 1, "%s", urls[number % 3]);
}

#include "model/provider.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/str.h"

#define CHECK_TIMEOUT_DEFAULT_MS 30000
#define HTTPS_PORT 443

static const char *const flow_names[PROVIDER_FLOW_COUNT] = {
    [PROVIDER_FLOW_NONE] = "none",
    [PROVIDER_FLOW_AUTHORIZATION_CODE] = "authorization-code",
    [PROVIDER_FLOW_DEVICE_CODE] = "device-code",
    [PROVIDER_FLOW_PASTE] = "paste",
};

static const char *const done_names[PROVIDER_DONE_COUNT] = {
    [PROVIDER_DONE_EXIT] = "exit",
    [PROVIDER_DONE_FILES] = "files",
};

const char *provider_flow_name(enum provider_flow flow) {
    return flow_names[flow];
}

const char *provider_done_name(enum provider_done done) {
    return done_names[done];
}

const char *provider_word(const struct provider_words *words, unsigned i) {
    const char *at = words->text;
    if (i >= words->count)
        return NULL;
    for (; i > 0; i--)
        at += strlen(at) + 1;
    return at;
}

bool provider_name_is_valid(const char *name) {
    size_t len = strlen(name);
    return len >= 1 && len <= SESSION_PROVIDER_MAX && *name >= 'a' && *name <= 'z' &&
           strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == len;
}

void provider_init(struct provider *ret_provider, const char *name) {
    *ret_provider = (struct provider){.check_timeout_ms = CHECK_TIMEOUT_DEFAULT_MS};
    str_copy(ret_provider->name, sizeof ret_provider->name, name);
}

/* --- values. Each returns NULL, or what would be right. --- */

static bool is_plain(const char *v) {
    for (const char *p = v; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            return false;
    return str_is_utf8(v, strlen(v));
}

static bool add_word(struct provider_words *words, const char *word, size_t len) {
    if (words->count == PROVIDER_WORDS_MAX || len + 1 > sizeof words->text - words->len)
        return false;
    memcpy(words->text + words->len, word, len);
    words->text[words->len + len] = '\0';
    words->len += len + 1;
    words->count++;
    return true;
}

/* Words at spaces; "…" holds what has spaces in it. No shell: nothing else means anything. */
static const char *set_words(struct provider_words *words, const char *value) {
    static const char right[] = "at most 32 words, with \"quotes\" around those that hold spaces";
    struct provider_words next = {0};
    for (const char *at = value + strspn(value, " \t"); *at; at += strspn(at, " \t")) {
        bool quoted = *at == '"';
        at += quoted;
        size_t len = strcspn(at, quoted ? "\"" : " \t\"");
        if ((quoted && at[len] != '"') || !add_word(&next, at, len))
            return right;
        at += len + quoted;
        if (*at && *at != ' ' && *at != '\t')
            return right;
    }
    if (next.count == 0 || !*next.text)
        return "a program and its arguments";
    *words = next;
    return NULL;
}

static const char *add_environment(struct provider_words *words, const char *value) {
    static const char name[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_";
    size_t len = strspn(value, name);
    if (len == 0 || value[len] != '=' || (*value >= '0' && *value <= '9'))
        return "NAME=value";
    return add_word(words, value, strlen(value)) ? NULL : "fewer or shorter ones: 32 variables in 1 kB";
}

/* Below the home for sure: relative, and no part is "." or "..". */
static bool is_below_home(const char *path) {
    if (!*path || *path == '/' || path[strlen(path) - 1] == '/')
        return false;
    for (const char *part = path; *part; part += part[strcspn(part, "/")] ? strcspn(part, "/") + 1 : strlen(part)) {
        size_t len = strcspn(part, "/");
        if (len == 0 || (len == 1 && *part == '.') || (len == 2 && part[0] == '.' && part[1] == '.'))
            return false;
    }
    return true;
}

/* "PATH" or "PATH MODE". */
static const char *add_file(struct provider *p, const char *value) {
    static const char right[] = "a path below the home and, where it is not 0600, its mode: .codex/auth.json 0640";
    struct provider_file file = {.mode = 0600};
    size_t len = strcspn(value, " \t");
    const char *mode = value + len + strspn(value + len, " \t");
    if (p->file_count == PROVIDER_FILES_MAX)
        return "at most 8 files";
    if (len >= sizeof file.path)
        return "a path of at most 127 bytes";
    memcpy(file.path, value, len);
    if (!is_below_home(file.path))
        return right;
    if (*mode) {
        if (strlen(mode) != 4 || *mode != '0' || strspn(mode, "01234567") != 4)
            return right;
        file.mode = (uint32_t)((mode[1] - '0') << 6 | (mode[2] - '0') << 3 | (mode[3] - '0'));
        if ((file.mode & 0600) != 0600 || (file.mode & 0133))
            return "a mode that lets its owner read and write, and nobody else write: 0600, 0640 or 0644";
    }
    p->files[p->file_count++] = file;
    return NULL;
}

/* Labels of letters, digits and inner hyphens; at least two, the last not a number. Source: RFC 1123 (2.1). A last label
 * that is a number, also a hexadecimal one, makes a browser read the whole as an IPv4 address. */
static bool is_host_name(const char *name, size_t len) {
    size_t labels = 0, last = 0;
    if (len == 0 || len > 253)
        return false;
    for (size_t at = 0; at <= len; labels++) {
        size_t n = 0;
        for (; at + n < len && name[at + n] != '.'; n++)
            if (!strchr("abcdefghijklmnopqrstuvwxyz0123456789-", name[at + n]))
                return false;
        if (n == 0 || n > 63 || name[at] == '-' || name[at + n - 1] == '-')
            return false;
        last = at;
        at += n + 1;
    }
    return labels >= 2 && name[last] >= 'a' && name[last] <= 'z';
}

/* "accounts.example.com", "*.example.com", "login.example.com:8443". */
static const char *add_host(struct provider *p, const char *value) {
    static const char right[] = "a host name such as login.example.com, *.example.com or login.example.com:8443";
    struct provider_host host = {.subdomains = str_starts(value, "*."), .port = HTTPS_PORT};
    const char *name = value + (host.subdomains ? 2 : 0);
    size_t len = strcspn(name, ":");
    uint64_t port;
    if (p->host_count == PROVIDER_HOSTS_MAX)
        return "at most 16 hosts";
    if (!is_host_name(name, len))
        return right;
    if (name[len]) {
        if (str_to_u64(name + len + 1, 1, 65535, &port) < 0)
            return right;
        host.port = (uint16_t)port;
    }
    memcpy(host.name, name, len);
    p->hosts[p->host_count++] = host;
    return NULL;
}

static const char *set_bool(bool *ret, const char *value) {
    bool yes = strcmp(value, "yes") == 0 || strcmp(value, "true") == 0 || strcmp(value, "on") == 0;
    if (!yes && strcmp(value, "no") != 0 && strcmp(value, "false") != 0 && strcmp(value, "off") != 0)
        return "yes or no";
    *ret = yes;
    return NULL;
}

/* Return: the name's place in the list, or -1. */
static int find_name(const char *const *names, int count, const char *value) {
    for (int i = 0; i < count; i++)
        if (strcmp(names[i], value) == 0)
            return i;
    return -1;
}

static const char *set_title(struct provider *p, const char *value) {
    return *value && str_copy(p->title, sizeof p->title, value) ? NULL : "a text of at most 63 bytes";
}

static const char *set_enabled(struct provider *p, const char *value) {
    return set_bool(&p->enabled, value);
}

static const char *set_flow(struct provider *p, const char *value) {
    int flow = find_name(flow_names, PROVIDER_FLOW_COUNT, value);
    if (flow < 0)
        return "authorization-code, device-code, paste or none";
    p->flow = (enum provider_flow)flow;
    return NULL;
}

static const char *set_command(struct provider *p, const char *value) {
    return set_words(&p->command, value);
}

static const char *set_environment(struct provider *p, const char *value) {
    return add_environment(&p->environment, value);
}

static const char *set_pty(struct provider *p, const char *value) {
    return set_bool(&p->pty, value);
}

static const char *set_done(struct provider *p, const char *value) {
    int done = find_name(done_names, PROVIDER_DONE_COUNT, value);
    if (done < 0)
        return "exit or files";
    p->done = (enum provider_done)done;
    return NULL;
}

static const char *set_check(struct provider *p, const char *value) {
    return set_words(&p->check, value);
}

static const char *set_check_timeout(struct provider *p, const char *value) {
    uint64_t seconds;
    if (str_to_u64(value, 1, 300, &seconds) < 0)
        return "a whole number of seconds from 1 to 300";
    p->check_timeout_ms = (uint32_t)seconds * 1000;
    return NULL;
}

static const struct {
    const char *section, *name;
    const char *(*set)(struct provider *p, const char *value);
} keys[] = {
    {"provider", "title", set_title},
    {"provider", "enabled", set_enabled},
    {"login", "flow", set_flow},
    {"login", "command", set_command},
    {"login", "environment", set_environment},
    {"login", "terminal", set_pty},
    {"login", "done", set_done},
    {"credential", "file", add_file},
    {"credential", "check", set_check},
    {"credential", "check_timeout", set_check_timeout},
    {"open-url", "host", add_host},
};

int provider_set(struct provider *p, const char *section, const char *key, const char *value, struct err *err) {
    char shown[80];
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        if (strcmp(keys[i].section, section) != 0 || strcmp(keys[i].name, key) != 0)
            continue;
        const char *right = is_plain(value) ? keys[i].set(p, value) : "text without control characters";
        if (!right)
            return 0;
        err_set(err, EINVAL, "provider.bad-value", "[%s] %s: \"%s\" is not valid", section, key,
                str_escape(value, strnlen(value, 60), shown, sizeof shown));
        return err_hint(err, "right is %s", right);
    }
    err_set(err, EINVAL, "provider.unknown-key", "[%s] has no key \"%s\" here",
            str_escape(section, strnlen(section, 20), shown, 40),
            str_escape(key, strnlen(key, 20), shown + 40, sizeof shown - 40));
    return err_hint(err, "the keys are: [provider] title enabled, [login] flow command environment terminal done, "
                         "[credential] file check check_timeout, [open-url] host");
}

int provider_check(const struct provider *p, struct err *err) {
    const char *missing = !*p->title                      ? "[provider] title"
                          : p->flow == PROVIDER_FLOW_NONE ? NULL
                          : p->command.count == 0         ? "[login] command"
                          : p->file_count == 0            ? "[credential] file"
                          : p->check.count == 0           ? "[credential] check"
                                                          : NULL;
    if (!missing)
        return 0;
    return err_set(err, EINVAL, "provider.incomplete", "%s is missing", missing);
}

/* --- addresses --- */

static int refuse(struct err *err, const char *why) {
    return err_set(err, EINVAL, "url.refused", "the address is refused: %s", why);
}

static bool is_allowed(const struct provider *p, const char *host, size_t len, uint16_t port) {
    for (unsigned i = 0; i < p->host_count; i++) {
        const struct provider_host *h = &p->hosts[i];
        size_t n = strlen(h->name);
        if (h->port != port)
            continue;
        if (!h->subdomains && len == n && memcmp(host, h->name, n) == 0)
            return true;
        if (h->subdomains && len > n + 1 && host[len - n - 1] == '.' && memcmp(host + len - n, h->name, n) == 0)
            return true;
    }
    return false;
}

/* The port behind a host: "" or ":8443". */
static bool read_port(const char *text, size_t len, uint16_t *ret_port) {
    char digits[6];
    uint64_t port = HTTPS_PORT;
    if (len > 0) {
        if (*text != ':' || len < 2 || len > sizeof digits)
            return false;
        memcpy(digits, text + 1, len - 1);
        digits[len - 1] = '\0';
        if (str_to_u64(digits, 1, 65535, &port) < 0)
            return false;
    }
    *ret_port = (uint16_t)port;
    return true;
}

static int check_authority(const struct provider *p, const char *text, size_t len, struct err *err) {
    char host[254];
    uint16_t port;
    size_t n = 0;
    if (memchr(text, '@', len))
        return refuse(err, "it names a user before its host");
    if (len > 0 && *text == '[')
        return refuse(err, "its host is an address, not a name");
    for (; n < len && text[n] != ':'; n++) {
        if (n == sizeof host - 1)
            return refuse(err, "its host is too long");
        host[n] = text[n] >= 'A' && text[n] <= 'Z' ? (char)(text[n] + 32) : text[n];
    }
    if (!is_host_name(host, n))
        return refuse(err, "its host is an address, or not a full name of letters, digits, hyphens and dots");
    if (!read_port(text + n, len - n, &port))
        return refuse(err, "its port is not from 1 to 65535");
    if (is_allowed(p, host, n, port))
        return 0;
    err_set(err, EINVAL, "url.refused", "the address is refused: %.*s:%u is not a host of the profile %s", (int)n, host,
            port, p->name);
    return err_hint(err, "where it belongs to the provider's login: [open-url] host in %s.conf", p->name);
}

int provider_url_check(const struct provider *p, const char *url, size_t len, struct err *err) {
    static const char scheme[] = "https://";
    size_t skip = sizeof scheme - 1;
    if (len > PROVIDER_URL_MAX)
        return refuse(err, "it is longer than 4096 bytes");
    for (size_t i = 0; i < len; i++)
        if (url[i] <= 0x20 || url[i] >= 0x7f || url[i] == '\\')
            return refuse(err, "it holds white space, a backslash, or what is not ASCII");
    if (len < skip || strncasecmp(url, scheme, skip) != 0)
        return refuse(err, "it does not begin with https://");
    const char *authority = url + skip;
    size_t n = 0;
    while (skip + n < len && !strchr("/?#", authority[n]))
        n++;
    return check_authority(p, authority, n, err);
}

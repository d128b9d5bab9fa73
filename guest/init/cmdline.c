#include "cmdline.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum {
    FIELD_CLIENT,
    FIELD_SERVER,
    FIELD_GATEWAY,
    FIELD_NETMASK,
    FIELD_HOSTNAME,
    FIELD_DEVICE,
    FIELD_AUTOCONF,
    FIELD_DNS0,
    FIELD_DNS1,
    FIELD_NTP0,
    N_FIELDS,
};

static const char *const field_names[N_FIELDS] = {
    [FIELD_CLIENT] = "client address",
    [FIELD_SERVER] = "server address",
    [FIELD_GATEWAY] = "gateway",
    [FIELD_NETMASK] = "netmask",
    [FIELD_HOSTNAME] = "hostname",
    [FIELD_DEVICE] = "device",
    [FIELD_AUTOCONF] = "autoconf",
    [FIELD_DNS0] = "dns0",
    [FIELD_DNS1] = "dns1",
    [FIELD_NTP0] = "ntp0",
};

/* The longest possible field is a hostname of 64 bytes. */
#define FIELD_SIZE 68

__attribute__((format(printf, 3, 4))) static int refuse(char *why, size_t why_size, const char *format, ...) {
    va_list ap;
    va_start(ap, format);
    vsnprintf(why, why_size, format, ap);
    va_end(ap);
    return -EINVAL;
}

/* The value is shown to a person on a serial console: control bytes and the rest of a huge value are not. */
static const char *shown(const char *value, char *buf, size_t size) {
    size_t i = 0;
    for (; value[i] && i + 1 < size; i++)
        buf[i] = value[i] > ' ' && value[i] < 0x7f ? value[i] : '?';
    buf[i] = '\0';
    return buf;
}

static bool is_one_of(const char *value, const char *const *words) {
    for (; *words; words++)
        if (strcmp(value, *words) == 0)
            return true;
    return false;
}

static bool is_off(const char *value) {
    return is_one_of(value, (const char *const[]){"", "off", "none", NULL});
}

static bool is_autoconf(const char *value) {
    return is_one_of(value, (const char *const[]){"on", "any", "dhcp", "bootp", "rarp", "both", NULL});
}

static int parse_address(int field, const char *text, struct in_addr *ret, char *why, size_t why_size) {
    struct in_addr address = {0};
    char buf[40];
    if (text[0] && inet_pton(AF_INET, text, &address) != 1)
        return refuse(why, why_size, "ip=: the %s '%s' is not an IPv4 address", field_names[field],
                      shown(text, buf, sizeof buf));
    *ret = address;
    return 0;
}

static int parse_netmask(const char *text, struct guest_ip *ip, char *why, size_t why_size) {
    if (!text[0])
        return refuse(why, why_size, "ip=: there is no netmask, and it is not guessed");
    int r = parse_address(FIELD_NETMASK, text, &ip->netmask, why, why_size);
    if (r < 0)
        return r;
    unsigned ones = (unsigned)__builtin_popcount(ip->netmask.s_addr);
    /* A left-aligned run of ones is its own complement plus a power of two. */
    in_addr_t host_bits = ~ntohl(ip->netmask.s_addr);
    if (ones == 0 || (host_bits & (host_bits + 1)) != 0)
        return refuse(why, why_size, "ip=: the netmask %s is not a row of ones from the left", text);
    ip->prefix_bits = ones;
    return 0;
}

static int parse_client(const char *text, struct guest_ip *ip, char *why, size_t why_size) {
    int r = parse_address(FIELD_CLIENT, text, &ip->client, why, why_size);
    if (r < 0)
        return r;
    in_addr_t client = ntohl(ip->client.s_addr), host_bits = ~ntohl(ip->netmask.s_addr);
    if (client == 0)
        return refuse(why, why_size, "ip=: there is no client address");
    if ((client >> 28) >= 0xe || (client >> 24) == 127)
        return refuse(why, why_size, "ip=: the client address %s cannot be a host's", text);
    if (ip->prefix_bits < 31 && ((client & host_bits) == 0 || (client & host_bits) == host_bits))
        return refuse(why, why_size, "ip=: the client address %s is the %s of its own /%u", text,
                      (client & host_bits) == 0 ? "network" : "broadcast", ip->prefix_bits);
    return 0;
}

static int parse_hostname(char *text, struct guest_ip *ip, char *why, size_t why_size) {
    text[strcspn(text, ".")] = '\0';
    size_t length = strlen(text);
    char buf[40];
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_'))
            return refuse(why, why_size, "ip=: '%s' cannot be a hostname", shown(text, buf, sizeof buf));
    }
    if (length >= sizeof ip->hostname)
        return refuse(why, why_size, "ip=: the hostname has more than %zu bytes", sizeof ip->hostname - 1);
    memcpy(ip->hostname, text, length + 1);
    return 0;
}

static int parse_device(const char *text, struct guest_ip *ip, char *why, size_t why_size) {
    char buf[40];
    size_t length = strlen(text);
    if (length >= sizeof ip->device)
        return refuse(why, why_size, "ip=: the device name has more than %zu bytes", sizeof ip->device - 1);
    if (strcmp(text, ".") == 0 || strcmp(text, "..") == 0 || strpbrk(text, "/ \t\n"))
        return refuse(why, why_size, "ip=: '%s' cannot be a device", shown(text, buf, sizeof buf));
    memcpy(ip->device, text, length + 1);
    return 0;
}

int guest_ip_parse(const char *value, struct guest_ip *ret_ip, char *why, size_t why_size) {
    char fields[N_FIELDS][FIELD_SIZE] = {0};
    char buf[40];
    struct guest_ip ip = {0};
    struct in_addr unused;
    int r;

    why[0] = '\0';
    if (is_off(value)) {
        snprintf(why, why_size, "ip= is off");
        return -ENODATA;
    }
    if (is_autoconf(value))
        return refuse(why, why_size, "ip=%s asks for autoconfiguration; only a fixed address is taken", value);

    const char *at = value;
    for (int n = 0;; n++) {
        size_t length = strcspn(at, ":");
        if (n == N_FIELDS)
            return refuse(why, why_size, "ip= has more than %d fields", N_FIELDS);
        if (length >= FIELD_SIZE)
            return refuse(why, why_size, "ip=: the %s is too long", field_names[n]);
        memcpy(fields[n], at, length);
        if (!at[length])
            break;
        at += length + 1;
    }

    if (is_autoconf(fields[FIELD_AUTOCONF]))
        return refuse(why, why_size, "ip=: autoconf '%s': only a fixed address is taken", fields[FIELD_AUTOCONF]);
    if (!is_off(fields[FIELD_AUTOCONF]))
        return refuse(why, why_size, "ip=: autoconf '%s' is not known", shown(fields[FIELD_AUTOCONF], buf, sizeof buf));
    if ((r = parse_netmask(fields[FIELD_NETMASK], &ip, why, why_size)) < 0 ||
        (r = parse_client(fields[FIELD_CLIENT], &ip, why, why_size)) < 0 ||
        (r = parse_address(FIELD_SERVER, fields[FIELD_SERVER], &unused, why, why_size)) < 0 ||
        (r = parse_address(FIELD_GATEWAY, fields[FIELD_GATEWAY], &ip.gateway, why, why_size)) < 0 ||
        (r = parse_hostname(fields[FIELD_HOSTNAME], &ip, why, why_size)) < 0 ||
        (r = parse_device(fields[FIELD_DEVICE], &ip, why, why_size)) < 0 ||
        (r = parse_address(FIELD_DNS0, fields[FIELD_DNS0], &ip.dns[0], why, why_size)) < 0 ||
        (r = parse_address(FIELD_DNS1, fields[FIELD_DNS1], &ip.dns[1], why, why_size)) < 0 ||
        (r = parse_address(FIELD_NTP0, fields[FIELD_NTP0], &unused, why, why_size)) < 0)
        return r;
    if (ip.gateway.s_addr && ip.gateway.s_addr == ip.client.s_addr)
        return refuse(why, why_size, "ip=: the gateway %s is the guest's own address", fields[FIELD_GATEWAY]);

    *ret_ip = ip;
    return 0;
}

bool guest_ip_on_link(const struct guest_ip *ip, struct in_addr address) {
    return ((ip->client.s_addr ^ address.s_addr) & ip->netmask.s_addr) == 0;
}

/* Takes the next parameter, cut off at size - 1. Double quotes hold blanks together and are left out, as in the
 * kernel's next_arg(). Return: false at the end. */
static bool next_parameter(const char **cursor, char *buf, size_t size) {
    const char *at = *cursor + strspn(*cursor, " \t\r\n");
    bool quoted = false, found = *at;
    size_t length = 0;
    for (; *at && (quoted || !strchr(" \t\r\n", *at)); at++) {
        if (*at == '"')
            quoted = !quoted;
        else if (length + 1 < size)
            buf[length++] = *at;
    }
    buf[length] = '\0';
    *cursor = at;
    return found;
}

static int take_text(const char *value, char *field, size_t size) {
    size_t length = strlen(value);
    if (length >= size)
        return -ENAMETOOLONG;
    memcpy(field, value, length + 1);
    return 0;
}

static void take_ip(const char *value, struct guest_cmdline *cmdline) {
    cmdline->ip = (struct guest_ip){0};
    int r = guest_ip_parse(value, &cmdline->ip, cmdline->ip_why, sizeof cmdline->ip_why);
    cmdline->ip_state = r == 0 ? GUEST_IP_STATIC : r == -ENODATA ? GUEST_IP_NONE : GUEST_IP_BAD;
}

static const char *value_of(const char *parameter, const char *key) {
    size_t length = strlen(key);
    return strncmp(parameter, key, length) == 0 && parameter[length] == '=' ? parameter + length + 1 : NULL;
}

int guest_cmdline_parse(const char *text, struct guest_cmdline *ret_cmdline) {
    struct guest_cmdline cmdline = {.rootfstype = "ext4", .init = "/sbin/init", .ip_why = "there is no ip="};
    char parameter[512] = ""; /* longer than all that we read, so that what is cut is too long anyway */
    const char *value;
    int r = 0;

    while (r == 0 && next_parameter(&text, parameter, sizeof parameter) && strcmp(parameter, "--") != 0) {
        if (strcmp(parameter, "rw") == 0)
            cmdline.writable = true;
        else if (strcmp(parameter, "ro") == 0)
            cmdline.writable = false;
        else if ((value = value_of(parameter, "root")))
            r = take_text(value, cmdline.root, sizeof cmdline.root);
        else if ((value = value_of(parameter, "mc.overlay")))
            r = take_text(value, cmdline.overlay, sizeof cmdline.overlay);
        else if ((value = value_of(parameter, "rootfstype")))
            r = take_text(value, cmdline.rootfstype, sizeof cmdline.rootfstype);
        else if ((value = value_of(parameter, "init")))
            r = take_text(value, cmdline.init, sizeof cmdline.init);
        else if ((value = value_of(parameter, "ip")))
            take_ip(value, &cmdline);
    }
    if (r < 0)
        return r;
    *ret_cmdline = cmdline;
    return 0;
}

int guest_modules_next(const char **cursor, char *ret_name, size_t name_size) {
    for (;;) {
        const char *line = *cursor;
        if (!*line)
            return 0;
        size_t line_length = strcspn(line, "\n");
        *cursor = line + line_length + (line[line_length] == '\n');

        line += strspn(line, " \t");
        size_t length = strcspn(line, " \t\r\n#");
        if (length == 0)
            continue;
        if (length >= name_size || memchr(line, '/', length))
            return -EINVAL;
        memcpy(ret_name, line, length);
        ret_name[length] = '\0';
        return 1;
    }
}

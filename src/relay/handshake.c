#include "relay/handshake.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/str.h"

/* Source: RFC 9110 section 5.6.2. */
static bool is_token(const char *s, size_t len) {
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s[i];
        bool alnum = (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
        if (!alnum && (c == '\0' || !strchr("!#$%&'*+-.^_`|~", c)))
            return false;
    }
    return len > 0;
}

static bool is_visible(const char *s) {
    for (; *s; s++)
        if (*s <= ' ' || *s > '~')
            return false;
    return true;
}

/* Takes the next element of a comma-separated list, without the spaces around it. Return: false at the end. */
static bool next_element(const char **list, const char **ret, size_t *ret_len) {
    const char *p = *list + strspn(*list, ", \t");
    if (!*p)
        return false;
    size_t len = strcspn(p, ",");
    *list = p + len;
    while (len > 0 && (p[len - 1] == ' ' || p[len - 1] == '\t'))
        len--;
    *ret = p;
    *ret_len = len;
    return true;
}

static bool list_has(const char *list, const char *wanted, size_t wanted_len, bool any_case) {
    const char *element;
    size_t len;
    while (next_element(&list, &element, &len))
        if (len == wanted_len &&
            (any_case ? strncasecmp(element, wanted, len) == 0 : memcmp(element, wanted, len) == 0))
            return true;
    return false;
}

static int check_request(const struct handshake_request *r, struct err *err) {
    if (!r->host || !*r->host || !is_visible(r->host))
        return err_set(err, EINVAL, "relay.host", "a WebSocket host must be visible ASCII");
    if (!r->path || r->path[0] != '/' || !is_visible(r->path) || strchr(r->path, '#'))
        return err_set(err, EINVAL, "relay.path", "a WebSocket path must begin with / and be visible ASCII");
    if (r->origin && !is_visible(r->origin))
        return err_set(err, EINVAL, "relay.origin", "an Origin must be visible ASCII");
    const char *list = r->protocols ? r->protocols : "", *element;
    if (strlen(list) > HANDSHAKE_PROTOCOLS_MAX)
        return err_set(err, EINVAL, "relay.protocols", "the offered subprotocols are longer than %d bytes",
                       HANDSHAKE_PROTOCOLS_MAX);
    size_t len;
    while (next_element(&list, &element, &len))
        if (!is_token(element, len) || len >= HANDSHAKE_PROTOCOL_SIZE)
            return err_set(err, EINVAL, "relay.protocols", "an offered subprotocol is no token or too long");
    return 0;
}

static bool offers(const char *protocols) {
    const char *element;
    size_t len;
    return protocols && next_element(&protocols, &element, &len);
}

int handshake_build(const struct handshake_request *r, char ret_text[HANDSHAKE_REQUEST_MAX], struct err *err) {
    int bad = check_request(r, err);
    if (bad < 0)
        return bad;
    bool offered = offers(r->protocols);
    int n = snprintf(ret_text, HANDSHAKE_REQUEST_MAX,
                     "GET %s HTTP/1.1\r\n"
                     "Host: %s\r\n"
                     "Upgrade: websocket\r\n"
                     "Connection: Upgrade\r\n"
                     "Sec-WebSocket-Key: %s\r\n"
                     "Sec-WebSocket-Version: 13\r\n"
                     "%s%s%s%s%s%s\r\n",
                     r->path, r->host, r->key, offered ? "Sec-WebSocket-Protocol: " : "", offered ? r->protocols : "",
                     offered ? "\r\n" : "", r->origin ? "Origin: " : "", r->origin ? r->origin : "",
                     r->origin ? "\r\n" : "");
    if (n >= HANDSHAKE_REQUEST_MAX)
        return err_set(err, EINVAL, "relay.request", "the WebSocket request would be longer than %d bytes",
                       HANDSHAKE_REQUEST_MAX - 1);
    return n;
}

/* What has been seen of the answer's fields. */
struct fields {
    const char *accept, *protocols; /* wanted and offered */
    bool upgrade, connection, accepted, chosen;
    char protocol[HANDSHAKE_PROTOCOL_SIZE];
};

static int wrong(struct err *err, const char *what) {
    return err_set(err, EPROTO, "relay.handshake", "%s", what);
}

static int judge_field(struct fields *f, const char *name, const char *value, struct err *err) {
    if (strcasecmp(name, "Upgrade") == 0) {
        if (strcasecmp(value, "websocket") != 0)
            return wrong(err, "The answer upgrades to something that is not a WebSocket.");
        f->upgrade = true;
    } else if (strcasecmp(name, "Connection") == 0) {
        f->connection = f->connection || list_has(value, "upgrade", strlen("upgrade"), true);
    } else if (strcasecmp(name, "Sec-WebSocket-Accept") == 0) {
        if (f->accepted || strcmp(value, f->accept) != 0)
            return wrong(err, "The answer's accept key is wrong.");
        f->accepted = true;
    } else if (strcasecmp(name, "Sec-WebSocket-Extensions") == 0) {
        if (*value)
            return wrong(err, "The answer uses an extension that was not offered.");
    } else if (strcasecmp(name, "Sec-WebSocket-Protocol") == 0) {
        bool one = is_token(value, strlen(value)) && list_has(f->protocols, value, strlen(value), false);
        if (f->chosen || !one || !str_copy(f->protocol, sizeof f->protocol, value))
            return wrong(err, "The answer chooses a subprotocol that was not offered.");
        f->chosen = true;
    }
    return 0;
}

/* One field line, terminated, without its CRLF; it may be written to. */
static int judge_line(struct fields *f, char *line, struct err *err) {
    char *colon = strchr(line, ':');
    if (!colon || !is_token(line, (size_t)(colon - line)))
        return wrong(err, "The answer has a malformed header line.");
    *colon = '\0';
    char *value = colon + 1 + strspn(colon + 1, " \t");
    for (size_t len = strlen(value); len > 0 && (value[len - 1] == ' ' || value[len - 1] == '\t'); len--)
        value[len - 1] = '\0';
    return judge_field(f, line, value, err);
}

static int judge_status(const char *line, struct err *err) {
    if (!str_starts(line, "HTTP/1.1 ") || strspn(line + 9, "0123456789") != 3 || (line[12] && line[12] != ' '))
        return wrong(err, "What answers on the port does not speak HTTP/1.1.");
    if (strncmp(line + 9, "101", 3) != 0)
        return err_set(err, EPROTO, "relay.status", "It answered with HTTP status %.3s and opened no WebSocket.",
                       line + 9);
    return 0;
}

static int judge_fields(const struct fields *f, struct err *err) {
    if (!f->upgrade || !f->connection)
        return wrong(err, "The answer does not upgrade the connection.");
    if (!f->accepted)
        return wrong(err, "The answer has no accept key.");
    if (offers(f->protocols) && !f->chosen)
        return wrong(err, "The answer chooses none of the offered subprotocols.");
    return 0;
}

/* The status line that is there, so that a server which never ends its answer, or is none, is known early. */
static int judge_start(const char *text, size_t len, struct err *err) {
    static const char start[] = "HTTP/1.1 ";
    size_t n = len < sizeof start - 1 ? len : sizeof start - 1;
    if (memcmp(text, start, n) != 0)
        return wrong(err, "What answers on the port does not speak HTTP/1.1.");
    if (len >= HANDSHAKE_RESPONSE_MAX)
        return wrong(err, "The answer's headers do not end.");
    return -EAGAIN;
}

int handshake_judge(const void *data, size_t len, const char *accept, const char *protocols,
                    struct handshake_answer *ret, struct err *err) {
    if (len > HANDSHAKE_RESPONSE_MAX)
        len = HANDSHAKE_RESPONSE_MAX;
    const char *end = memmem(data, len, "\r\n\r\n", 4);
    if (!end)
        return judge_start(data, len, err);
    /* All lines with their CRLF, without the empty one. */
    size_t lines = (size_t)(end - (const char *)data) + 2;
    char text[HANDSHAKE_RESPONSE_MAX + 1];
    memcpy(text, data, lines);
    text[lines] = '\0';
    struct fields f = {.accept = accept, .protocols = protocols ? protocols : ""};
    for (char *line = text; line < text + lines;) {
        size_t n = strcspn(line, "\r\n");
        /* A NUL, a bare CR or a bare LF: somebody who wants two readers to see two different answers. */
        if (line[n] != '\r' || line[n + 1] != '\n')
            return wrong(err, "The answer has a malformed header line.");
        line[n] = '\0';
        int r = line == text ? judge_status(line, err) : judge_line(&f, line, err);
        if (r < 0)
            return r;
        line += n + 2;
    }
    int r = judge_fields(&f, err);
    if (r < 0)
        return r;
    ret->size = lines + 2;
    memcpy(ret->protocol, f.protocol, sizeof ret->protocol);
    return 0;
}

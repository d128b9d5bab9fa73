#include "http/strict.h"

#include <errno.h>
#include <string.h>
#include <strings.h>

#include "base/str.h"
#include "http/target.h"

static int refuse(struct http_refusal *ret, int status, const char *code, const char *detail) {
    *ret = (struct http_refusal){status, code, detail};
    return -EPROTO;
}

static bool is_alnum(unsigned char c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

static bool only(const char *s, const char *others) {
    for (; *s; s++)
        if (!is_alnum((unsigned char)*s) && !strchr(others, *s))
            return false;
    return true;
}

bool http_is_token(const char *s) {
    return *s && only(s, "!#$%&'*+-.^_`|~");
}

bool http_is_field_value(const char *s) {
    for (; *s; s++)
        if (((unsigned char)*s < 0x20 && *s != '\t') || *s == 0x7f)
            return false;
    return true;
}

const char *http_field_find(const struct http_field *fields, size_t n, const char *name, unsigned *ret_count) {
    const char *first = NULL;
    unsigned count = 0;
    for (size_t i = 0; i < n; i++) {
        if (strcasecmp(fields[i].name, name) != 0)
            continue;
        if (count++ == 0)
            first = fields[i].value;
    }
    if (ret_count)
        *ret_count = count;
    return first;
}

bool http_list_has(const char *list, const char *token) {
    size_t token_len = strlen(token);
    while (*list) {
        list += strspn(list, " \t,");
        size_t len = strcspn(list, ","), bare = len;
        while (bare > 0 && (list[bare - 1] == ' ' || list[bare - 1] == '\t'))
            bare--;
        if (bare == token_len && strncasecmp(list, token, bare) == 0)
            return true;
        list += len;
    }
    return false;
}

static int check_line(const struct http_head *head, struct http_refusal *ret) {
    if (strlen(head->method) > HTTP_METHOD_BYTES || !http_is_token(head->method))
        return refuse(ret, 400, "http.bad-method", "the request's method is not a token of at most 20 characters");
    if (strcmp(head->version, "HTTP/1.1") != 0 && strcmp(head->version, "HTTP/1.0") != 0)
        return refuse(ret, 505, "http.version", "only HTTP/1.1 and HTTP/1.0 are spoken here");
    if (strlen(head->target) > HTTP_TARGET_BYTES)
        return refuse(ret, 414, "http.target-too-long", "the request's target is longer than 4096 bytes");
    for (const char *p = head->target; *p; p++)
        if ((unsigned char)*p <= 0x20 || (unsigned char)*p >= 0x7f || *p == '#')
            return refuse(ret, 400, "http.bad-target", "the request's target has a byte that must be percent-encoded");
    if (strcmp(head->target, "*") == 0 && strcmp(head->method, "OPTIONS") == 0)
        return 0;
    if (!http_query_valid(head->target))
        return refuse(ret, 400, "http.bad-query",
                      "the request's query has control characters, or is not valid percent-encoded UTF-8");
    struct http_path path;
    switch (http_path_parse(head->target, &path)) {
    case 0:
        return 0;
    case -ENAMETOOLONG:
        return refuse(ret, 414, "http.path-too-long", "the request's path is too long");
    case -E2BIG:
        return refuse(ret, 414, "http.path-too-deep", "the request's path has too many segments");
    default: /* an errno, not an enum of ours */
        return refuse(ret, 400, "http.bad-path",
                      "the request's path is not /segment/segment with valid percent-encoded UTF-8");
    }
}

static int check_fields(const struct http_head *head, size_t header_bytes, struct http_refusal *ret) {
    static const char *const single[] = {"Authorization", "Cookie", "Origin", "Content-Type", "Expect"};
    if (head->bytes > header_bytes)
        return refuse(ret, 431, "http.head-too-large", "the request's head is too large");
    if (head->n_fields > HTTP_FIELDS_MAX)
        return refuse(ret, 431, "http.too-many-fields", "the request has more than 100 header fields");
    for (size_t i = 0; i < head->n_fields; i++) {
        if (!http_is_token(head->fields[i].name))
            return refuse(ret, 400, "http.bad-field-name", "a header field's name is not a token");
        if (!http_is_field_value(head->fields[i].value))
            return refuse(ret, 400, "http.bad-field-value", "a header field's value has a control byte");
    }
    for (size_t i = 0; i < sizeof single / sizeof *single; i++) {
        unsigned count;
        http_field_find(head->fields, head->n_fields, single[i], &count);
        if (count > 1)
            return refuse(ret, 400, "http.repeated-field",
                          "one of Authorization, Cookie, Origin, Content-Type or Expect is there twice");
    }
    return 0;
}

static int check_host(const struct http_head *head, struct http_refusal *ret) {
    unsigned count;
    const char *host = http_field_find(head->fields, head->n_fields, "Host", &count);
    if (count > 1)
        return refuse(ret, 400, "http.two-hosts", "the request has two Host fields");
    if (count == 0 && strcmp(head->version, "HTTP/1.1") == 0)
        return refuse(ret, 400, "http.no-host", "an HTTP/1.1 request needs a Host field");
    if (count == 1 && (*host == '\0' || !only(host, "-._~:[]")))
        return refuse(ret, 400, "http.bad-host", "the Host field is not a name or address with an optional port");
    return 0;
}

static int check_length(const char *text, size_t body_bytes, uint64_t *ret_length, struct http_refusal *ret) {
    switch (str_to_u64(text, 0, body_bytes, ret_length)) {
    case 0:
        return 0;
    case -ERANGE:
        return refuse(ret, 413, "http.body-too-large", "the request's body is too large");
    default: /* an errno */
        return refuse(ret, 400, "http.bad-content-length", "Content-Length is not a decimal number");
    }
}

static int check_framing(const struct http_head *head, size_t body_bytes, struct http_framing *ret_framing,
                         struct http_refusal *ret) {
    unsigned lengths, codings;
    const char *length = http_field_find(head->fields, head->n_fields, "Content-Length", &lengths);
    const char *coding = http_field_find(head->fields, head->n_fields, "Transfer-Encoding", &codings);
    /* Two readings of where a body ends are how requests are smuggled past a proxy (RFC 9112, 11.2); equal values given
     * twice may be taken by the letter, but nobody honest sends them. */
    if (lengths > 1)
        return refuse(ret, 400, "http.two-content-lengths", "the request has two Content-Length fields");
    if (lengths && codings)
        return refuse(ret, 400, "http.length-and-coding", "the request has Content-Length and Transfer-Encoding");
    if (codings > 1)
        return refuse(ret, 400, "http.two-transfer-codings", "the request has two Transfer-Encoding fields");
    if (codings && strcmp(head->version, "HTTP/1.0") == 0)
        return refuse(ret, 400, "http.coding-in-1.0", "HTTP/1.0 has no Transfer-Encoding");
    if (codings && strcasecmp(coding, "chunked") != 0)
        return refuse(ret, 501, "http.unknown-transfer-coding", "chunked is the only Transfer-Encoding known here");
    struct http_framing framing = {.chunked = codings > 0};
    int r = lengths ? check_length(length, body_bytes, &framing.content_length, ret) : 0;
    if (r == 0)
        *ret_framing = framing;
    return r;
}

int http_strict_check(const struct http_head *head, size_t header_bytes, size_t body_bytes,
                      struct http_framing *ret_framing, struct http_refusal *ret_refusal) {
    int r = check_line(head, ret_refusal);
    if (r == 0)
        r = check_fields(head, header_bytes, ret_refusal);
    if (r == 0)
        r = check_host(head, ret_refusal);
    if (r < 0)
        return r;
    const char *expect = http_field_find(head->fields, head->n_fields, "Expect", NULL);
    if (expect && strcasecmp(expect, "100-continue") != 0)
        return refuse(ret_refusal, 417, "http.expectation", "100-continue is the only expectation known here");
    return check_framing(head, body_bytes, ret_framing, ret_refusal);
}

#include "http/problem.h"

#include <jansson.h>
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/fd.h"
#include "base/str.h"

#define TEXT_BYTES 4096

static void set_text(json_t *object, const char *key, const char *text) {
    char safe[TEXT_BYTES];
    size_t len = strlen(text);
    /* json_string() takes nothing that is not UTF-8; what others wrote is not always. */
    if (len >= sizeof safe || !str_is_utf8(text, len))
        text = str_escape(text, len, safe, sizeof safe);
    json_object_set_new(object, key, json_string(text));
}

char *http_problem_json(int status, const char *code, const char *title, const char *detail, const char *hint,
                        size_t *ret_len) {
    json_t *object = json_object();
    if (!object)
        return NULL;
    set_text(object, "type", "about:blank");
    set_text(object, "title", title ? title : MHD_get_reason_phrase_for((unsigned)status));
    json_object_set_new(object, "status", json_integer(status));
    set_text(object, "detail", detail ? detail : "");
    set_text(object, "code", code);
    if (hint && *hint)
        set_text(object, "hint", hint);
    char *text = json_dumps(object, JSON_COMPACT);
    json_decref(object);
    if (text)
        *ret_len = strlen(text);
    return text;
}

char *http_problem_answer(int status, const char *code, const char *detail, unsigned retry_after_s, size_t *ret_len) {
    size_t body_len = 0;
    _cleanup_free_ char *body = http_problem_json(status, code, NULL, detail, NULL, &body_len);
    char date[40], retry[40] = "";
    time_t now = time(NULL);
    struct tm tm;
    if (!body || !gmtime_r(&now, &tm))
        return NULL;
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", &tm);
    if (retry_after_s > 0)
        snprintf(retry, sizeof retry, "Retry-After: %u\r\n", retry_after_s);
    char *answer = NULL;
    int n = asprintf(&answer,
                     "HTTP/1.1 %d %s\r\nDate: %s\r\nConnection: close\r\n%sX-Content-Type-Options: nosniff\r\n"
                     "Referrer-Policy: no-referrer\r\nCache-Control: no-store\r\n"
                     "Content-Type: application/problem+json\r\nContent-Length: %zu\r\n\r\n%s",
                     status, MHD_get_reason_phrase_for((unsigned)status), date, retry, body_len, body);
    if (n < 0)
        return NULL;
    *ret_len = (size_t)n;
    return answer;
}

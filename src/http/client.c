#include "http/client.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "base/fd.h"
#include "base/str.h"
#include "http/strict.h"

#define DEFAULT_CONNECT_MS 5000
#define DEFAULT_RESPONSE_BYTES (1024 * 1024)

struct transfer {
    CURL *curl;
    struct strbuf kept;
    http_client_write_fn *write;
    void *userdata;
    int stopped; /* what write returned */
};

void http_client_response_free(struct http_client_response *response) {
    free(response->body);
    *response = (struct http_client_response){0};
}

static void init_once(void) {
    curl_global_init(CURL_GLOBAL_NOTHING); /* no TLS here: setting it up costs mctl more than the request */
}

static size_t on_data(char *data, size_t size, size_t n, void *userdata) {
    struct transfer *t = userdata;
    size_t len = size * n;
    long status = 0;
    curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
    if (t->write && status / 100 == 2) {
        t->stopped = t->write(data, len, t->userdata);
        return t->stopped < 0 ? 0 : len;
    }
    strbuf_add(&t->kept, data, len);
    return t->kept.truncated ? 0 : len;
}

static int add_header(struct curl_slist **list, const char *name, const char *value) {
    _cleanup_free_ char *line = NULL;
    if (!http_is_token(name) || !http_is_field_value(value))
        return -EINVAL;
    /* A header with an empty value is "name;" to libcurl; "name:" would remove it. */
    if (asprintf(&line, *value ? "%s: %s" : "%s;%s", name, value) < 0) {
        line = NULL;
        return -ENOMEM;
    }
    struct curl_slist *longer = curl_slist_append(*list, line);
    if (!longer)
        return -ENOMEM;
    *list = longer;
    return 0;
}

static int make_headers(const struct http_client_request *rq, struct curl_slist **list) {
    if (rq->n_headers > HTTP_CLIENT_HEADERS_MAX)
        return -EINVAL;
    int r = 0;
    if (rq->body)
        r = add_header(list, "Content-Type", rq->content_type ? rq->content_type : "application/json");
    for (size_t i = 0; i < rq->n_headers && r == 0; i++)
        r = add_header(list, rq->headers[i].name, rq->headers[i].value);
    if (r < 0)
        return r;
    struct curl_slist *longer = curl_slist_append(*list, "Expect:"); /* libcurl would wait a second for a 100 */
    if (!longer)
        return -ENOMEM;
    *list = longer;
    return 0;
}

static bool is_plain_text(const char *s) {
    for (; *s; s++)
        if ((unsigned char)*s <= 0x20 || (unsigned char)*s >= 0x7f)
            return false;
    return true;
}

static int check_arguments(const struct http_client_request *rq, struct err *err) {
    if (!rq->path || rq->path[0] != '/' || !is_plain_text(rq->path))
        return err_set(err, EINVAL, "http.bad-request", "the path of a request is not percent-encoded");
    if (!rq->unix_socket == !rq->host)
        return err_set(err, EINVAL, "http.bad-request", "a request needs either a unix socket or a host");
    if (rq->host && (!is_plain_text(rq->host) || strpbrk(rq->host, "/?#@\\")))
        return err_set(err, EINVAL, "http.bad-request", "\"%.80s\" is not a host with a port", rq->host);
    if (rq->method && !http_is_token(rq->method))
        return err_set(err, EINVAL, "http.bad-request", "the method of a request is not a token");
    if (rq->unix_socket && strlen(rq->unix_socket) >= sizeof((struct sockaddr_un *)0)->sun_path)
        return err_set(err, ENAMETOOLONG, "http.bad-request", "\"%.120s\" is too long for a unix socket",
                       rq->unix_socket);
    return 0;
}

static CURLcode set_options(CURL *curl, const struct http_client_request *rq, const char *url, struct transfer *t,
                            struct curl_slist *headers) {
    CURLcode c = CURLE_OK;
#define SET(option, value)                                                                                             \
    if (c == CURLE_OK)                                                                                                 \
    c = curl_easy_setopt(curl, option, value)
    SET(CURLOPT_URL, url);
    SET(CURLOPT_PROTOCOLS_STR, "http");
    SET(CURLOPT_PROXY, ""); /* not even that of the environment */
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    SET(CURLOPT_PATH_AS_IS, 1L);
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
    SET(CURLOPT_TIMEOUT_MS, rq->timeout_ms);
    SET(CURLOPT_CONNECTTIMEOUT_MS, rq->connect_timeout_ms ? rq->connect_timeout_ms : (long)DEFAULT_CONNECT_MS);
    SET(CURLOPT_WRITEFUNCTION, on_data);
    SET(CURLOPT_WRITEDATA, t);
    if (rq->unix_socket)
        SET(CURLOPT_UNIX_SOCKET_PATH, rq->unix_socket);
    if (rq->body) {
        SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)rq->body_len);
        SET(CURLOPT_POSTFIELDS, rq->body);
    }
    if (rq->method && strcmp(rq->method, "HEAD") == 0) {
        SET(CURLOPT_NOBODY, 1L);
    } else if (rq->method) {
        SET(CURLOPT_CUSTOMREQUEST, rq->method);
    }
    SET(CURLOPT_HTTPHEADER, headers);
#undef SET
    return c;
}

static int explain(CURL *curl, CURLcode c, const struct http_client_request *rq, const struct transfer *t,
                   const char *detail, struct err *err) {
    const char *where = rq->unix_socket ? rq->unix_socket : rq->host;
    const char *why = *detail ? detail : curl_easy_strerror(c);
    long os_errno = 0;
    curl_easy_getinfo(curl, CURLINFO_OS_ERRNO, &os_errno);
    if (t->stopped < 0)
        return err_set(err, -t->stopped, "http.stopped", "the answer of %s was not read to its end", where);
    if (t->kept.truncated)
        return err_set(err, EFBIG, "http.too-large", "the answer of %s is longer than %zu bytes", where, t->kept.max);
    if (c == CURLE_OPERATION_TIMEDOUT)
        return err_set(err, ETIMEDOUT, "http.timeout", "%s did not answer in time: %s", where, why);
    if (c == CURLE_COULDNT_CONNECT && os_errno != 0)
        return err_sys(err, (int)os_errno, "http.unreachable", "connect to %s", where);
    if (c == CURLE_COULDNT_CONNECT || c == CURLE_COULDNT_RESOLVE_HOST)
        return err_set(err, ECONNREFUSED, "http.unreachable", "connect to %s: %s", where, why);
    if (c == CURLE_OUT_OF_MEMORY)
        return err_set(err, ENOMEM, "http.no-memory", "no memory for a request to %s", where);
    return err_set(err, EPROTO, "http.bad-answer", "%s did not answer as it should: %s", where, why);
}

static void take_answer(CURL *curl, struct transfer *t, struct http_client_response *ret) {
    long status = 0;
    const char *type = NULL;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(curl, CURLINFO_CONTENT_TYPE, &type);
    *ret = (struct http_client_response){.status = (int)status, .body = t->kept.data, .len = t->kept.len};
    t->kept.data = NULL;
    if (type)
        str_copy(ret->content_type, sizeof ret->content_type, type);
}

static int perform(const struct http_client_request *rq, struct transfer *t, struct http_client_response *ret,
                   struct err *err) {
    char detail[CURL_ERROR_SIZE] = "";
    _cleanup_free_ char *url = NULL;
    struct curl_slist *headers = NULL;
    if (asprintf(&url, "http://%s%s", rq->unix_socket ? "localhost" : rq->host, rq->path) < 0) {
        url = NULL;
        return err_set(err, ENOMEM, "http.no-memory", "no memory for a request");
    }
    int r = make_headers(rq, &headers);
    if (r < 0) {
        curl_slist_free_all(headers);
        return err_sys(err, -r, "http.bad-request", "the header fields of a request");
    }
    CURLcode c = set_options(t->curl, rq, url, t, headers);
    if (c == CURLE_OK) {
        curl_easy_setopt(t->curl, CURLOPT_ERRORBUFFER, detail);
        c = curl_easy_perform(t->curl);
    }
    if (c != CURLE_OK)
        r = explain(t->curl, c, rq, t, detail, err);
    else
        take_answer(t->curl, t, ret);
    curl_slist_free_all(headers);
    return r;
}

int http_client_stream(const struct http_client_request *request, http_client_write_fn *write, void *userdata,
                       struct http_client_response *ret_response, struct err *err) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    int r = check_arguments(request, err);
    if (r < 0)
        return r;
    pthread_once(&once, init_once);
    struct transfer t = {.curl = curl_easy_init(), .write = write, .userdata = userdata};
    t.kept.max = request->max_response_bytes ? request->max_response_bytes : DEFAULT_RESPONSE_BYTES;
    strbuf_add(&t.kept, "", 0); /* so that an empty body is a text too */
    if (!t.curl || !t.kept.data)
        r = err_set(err, ENOMEM, "http.no-memory", "no memory for a request");
    else
        r = perform(request, &t, ret_response, err);
    strbuf_free(&t.kept);
    curl_easy_cleanup(t.curl);
    return r;
}

int http_client_request(const struct http_client_request *request, struct http_client_response *ret_response,
                        struct err *err) {
    return http_client_stream(request, NULL, NULL, ret_response, err);
}

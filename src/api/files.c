/* The page's files, all read at the start: what is not in this table is not served, so there is no path to walk. */
#include <dirent.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "api/internal.h"
#include "base/fd.h"
#include "base/str.h"

#define FILES_MAX 512
#define FILE_BYTES_MAX (4U << 20)

struct static_file {
    char name[128]; /* below /static/ */
    char *data;
    size_t len;
    char etag[24];
};

struct static_files {
    size_t n;
    struct static_file file[FILES_MAX];
};

static const struct {
    const char *suffix, *type;
} types[] = {
    {".html", "text/html; charset=utf-8"}, {".js", "text/javascript; charset=utf-8"},
    {".css", "text/css; charset=utf-8"},   {".svg", "image/svg+xml"},
    {".json", "application/json"},
};

/* Served at addresses of their own, with a policy; not below /static/. */
static const char *const pages[] = {"session.html", "dashboard.html"};

static const char *type_of(const char *name) {
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        size_t n = strlen(name), s = strlen(types[i].suffix);
        if (n > s && strcmp(name + n - s, types[i].suffix) == 0)
            return types[i].type;
    }
    return NULL;
}

static int add_file(struct static_files *files, const char *path, const char *name, struct err *err) {
    struct static_file f = {0};
    if (!type_of(name))
        return 0;
    if (files->n == FILES_MAX || !str_copy(f.name, sizeof f.name, name))
        return err_set(err, E2BIG, "api.web-missing", "%s: too many files, or a name that is too long", path);
    int r = file_read(path, FILE_BYTES_MAX, &f.data, &f.len);
    if (r < 0)
        return err_sys(err, -r, "api.web-missing", "read %s", path);
    uint8_t hash[crypto_generichash_BYTES_MIN];
    crypto_generichash(hash, sizeof hash, (const uint8_t *)f.data, f.len, NULL, 0);
    f.etag[0] = '"';
    str_hex(hash, 9, f.etag + 1);
    strcat(f.etag, "\"");
    files->file[files->n++] = f;
    return 0;
}

/* Folders in it are taken too; a symbolic link is not followed. */
static int add_folder(struct static_files *files, const char *path, const char *prefix, struct err *err) {
    DIR *dir = opendir(path);
    if (!dir) {
        err_sys(err, errno, "api.web-missing", "open %s", path);
        return err_hint(err, "set [api] web_directory; in a checkout: npm ci in web/, or ./run, which does so");
    }
    int r = 0;
    for (struct dirent *e; r == 0 && (e = readdir(dir));) {
        char child[512], name[256];
        struct stat st;
        if (e->d_name[0] == '.')
            continue;
        if (snprintf(child, sizeof child, "%s/%s", path, e->d_name) >= (int)sizeof child ||
            snprintf(name, sizeof name, "%s%s", prefix, e->d_name) >= (int)sizeof name - 1 || lstat(child, &st) < 0)
            continue;
        if (S_ISREG(st.st_mode))
            r = add_file(files, child, name, err);
        else if (S_ISDIR(st.st_mode)) {
            strcat(name, "/");
            r = add_folder(files, child, name, err);
        }
    }
    closedir(dir);
    return r;
}

static const struct static_file *find(const struct static_files *files, const char *name) {
    for (size_t i = 0; i < files->n; i++)
        if (strcmp(files->file[i].name, name) == 0)
            return &files->file[i];
    return NULL;
}

int api_files_load(const char *web_dir, struct static_files **ret_files, struct err *err) {
    /* web_dir's folders and where they appear below /static/. */
    static const struct {
        const char *folder, *prefix;
    } parts[] = {
        {"static", ""},
        {"node_modules/@novnc/novnc/core", "novnc/core/"},
        {"node_modules/@novnc/novnc/vendor", "novnc/vendor/"},
    };
    char path[512];
    struct static_files *files = calloc(1, sizeof *files);
    if (!files)
        return err_sys(err, ENOMEM, "api.start", "read the page's files");
    int r = 0;
    for (size_t i = 0; r == 0 && i < sizeof pages / sizeof *pages; i++) {
        snprintf(path, sizeof path, "%s/%s", web_dir, pages[i]);
        r = add_file(files, path, pages[i], err);
    }
    for (size_t i = 0; r == 0 && i < sizeof parts / sizeof *parts; i++) {
        snprintf(path, sizeof path, "%s/%s", web_dir, parts[i].folder);
        r = add_folder(files, path, parts[i].prefix, err);
    }
    if (r < 0) {
        api_files_free(files);
        return r;
    }
    *ret_files = files;
    return 0;
}

int api_check_files(const char *web_dir, struct err *err) {
    struct static_files *files = NULL;
    int r = api_files_load(web_dir, &files, err);
    api_files_free(files);
    return r;
}

void api_files_free(struct static_files *files) {
    if (!files)
        return;
    for (size_t i = 0; i < files->n; i++)
        free(files->file[i].data);
    free(files);
}

static void serve(struct http_request *req, const struct static_file *f, const struct http_header *headers, size_t n) {
    struct http_header all[8];
    all[0] = (struct http_header){"ETag", f->etag};
    for (size_t i = 0; i < n; i++)
        all[1 + i] = headers[i];
    struct http_response response = {.content_type = type_of(f->name),
                                     .body = f->data,
                                     .len = f->len,
                                     .headers = all,
                                     .n_headers = n + 1,
                                     /* Kept, but asked about each time: a new version is there at once. */
                                     .cache = "no-cache"};
    const char *known = http_request_header(req, "If-None-Match");
    if (known && strcmp(known, f->etag) == 0) {
        response.body = NULL;
        response.len = 0;
        http_respond(req, 304, &response);
        return;
    }
    http_respond(req, 200, &response);
}

void api_files_serve(struct api *api, struct http_request *req, const char *name) {
    const struct static_file *f = find(api->files, name);
    bool is_page = false;
    for (size_t i = 0; i < sizeof pages / sizeof *pages; i++)
        is_page = is_page || strcmp(name, pages[i]) == 0;
    if (f && !is_page)
        serve(req, f, NULL, 0);
    else
        http_problem(req, 404, "http.no-route", NULL, "there is no such file", NULL);
}

/* data: is noVNC's cursor. The WebSocket is of our own origin. */
static const char page_policy[] =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'";

void api_page_serve(struct api *api, struct http_request *req, const char *name) {
    const struct http_header headers[] = {{"Content-Security-Policy", page_policy},
                                          {"Cross-Origin-Opener-Policy", "same-origin"},
                                          {"Cross-Origin-Resource-Policy", "same-origin"}};
    const struct static_file *page = find(api->files, name);
    if (page)
        serve(req, page, headers, sizeof headers / sizeof *headers);
    else
        http_problem(req, 500, "internal", NULL, "the page is not there", NULL);
}

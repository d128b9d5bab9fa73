#include "session/providers.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/ini.h"
#include "base/str.h"

#define FILE_MAX 65536
#define DEMO "demo"
#define PATH_SIZE 320

static int on_pair(void *userdata, const char *section, const char *key, const char *value, struct err *err) {
    return provider_set(userdata, section, key, value, err);
}

static void add_name(void *userdata, const char *name, const struct provider *provider, const struct err *err) {
    if (!err && provider->enabled)
        strbuf_addf(userdata, ", %s", name);
}

static int unknown(const char *folder, const char *name, struct err *err) {
    char shown[80];
    struct strbuf names = {.max = 160};
    provider_each(folder, add_name, &names);
    err_set(err, ENOENT, "provider.unknown", "there is no provider \"%s\"",
            str_escape(name, strnlen(name, 40), shown, sizeof shown));
    int r = err_hint(err, "the providers are: demo (a desktop without a login)%s", names.data ? names.data : "");
    strbuf_free(&names);
    return r;
}

static int check_file(const char *path, struct err *err) {
    struct stat st;
    if (lstat(path, &st) < 0)
        return err_sys(err, errno, "provider.broken", "read %s", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, EUCLEAN, "provider.unsafe", "%s is not a regular file", path);
    if ((st.st_mode & 022) || (st.st_uid != 0 && st.st_uid != geteuid())) {
        err_set(err, EUCLEAN, "provider.unsafe", "others than root may write %s: it decides where users are sent",
                path);
        return err_hint(err, "chown root %s; chmod go-w %s", path, path);
    }
    return 0;
}

/* A wrong file is not the caller's fault, whatever is wrong in it. */
static int broken(const char *path, const struct err *why, struct err *err) {
    bool located = str_starts(why->detail, path);
    err_set(err, EUCLEAN, "provider.broken", "%s%s%s", located ? "" : path, located ? "" : ": ", why->detail);
    return *why->hint ? err_hint(err, "%s", why->hint) : -EUCLEAN;
}

int provider_load(const char *folder, const char *name, struct provider *ret_provider, struct err *err) {
    struct provider provider;
    struct err why = {0};
    char path[PATH_SIZE];
    if (!provider_name_is_valid(name))
        return unknown(folder, name, err);
    provider_init(&provider, name);
    snprintf(path, sizeof path, "%s/%s.conf", folder, name);
    bool is_there = *folder && access(path, F_OK) == 0;
    if (!is_there && strcmp(name, DEMO) == 0) {
        str_copy(provider.title, sizeof provider.title, "A desktop without a login");
        provider.enabled = true;
    } else if (!is_there) {
        return unknown(folder, name, err);
    } else {
        int r = check_file(path, err);
        if (r < 0)
            return r;
        r = ini_read_file(path, FILE_MAX, on_pair, &provider, &why);
        if (r == 0)
            r = provider_check(&provider, &why);
        if (r < 0)
            return broken(path, &why, err);
    }
    *ret_provider = provider;
    return 0;
}

int provider_use(const char *folder, const char *name, struct provider *ret_provider, struct err *err) {
    struct provider provider = {0};
    int r = provider_load(folder, name, &provider, err);
    if (r < 0)
        return r;
    if (!provider.enabled) {
        err_set(err, EPERM, "provider.disabled", "the provider %s (%s) is not enabled here", name, provider.title);
        return err_hint(err, "where its terms allow it: enabled = yes in %s/%s.conf", folder, name);
    }
    *ret_provider = provider;
    return 0;
}

static int is_profile(const struct dirent *e) {
    size_t len = strlen(e->d_name);
    return len > 5 && strcmp(e->d_name + len - 5, ".conf") == 0;
}

void provider_each(const char *folder,
                   void (*fn)(void *userdata, const char *name, const struct provider *provider, const struct err *err),
                   void *userdata) {
    struct dirent **list = NULL;
    int n = *folder ? scandir(folder, &list, is_profile, alphasort) : 0;
    for (int i = 0; i < n; i++) {
        char name[sizeof list[i]->d_name];
        struct provider provider = {0};
        struct err err = {0};
        str_copy(name, sizeof name, list[i]->d_name);
        name[strlen(name) - strlen(".conf")] = '\0';
        int r = provider_name_is_valid(name)
                    ? provider_load(folder, name, &provider, &err)
                    : err_set(&err, EUCLEAN, "provider.broken",
                              "%s/%s: a profile's name has at most 32 of a-z 0-9 -, and begins with a letter", folder,
                              list[i]->d_name);
        fn(userdata, name, r < 0 ? NULL : &provider, r < 0 ? &err : NULL);
        free(list[i]);
    }
    free(list);
}

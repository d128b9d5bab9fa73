#include "daemon/config_file.h"

#include <ini.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"

#define CONFIG_FILE_DEFAULT "/etc/master-controller/master-controller.conf"
#define CONFIG_FILE_MAX 65536

struct reading {
    struct config config;
    struct err err; /* of the first wrong line */
};

static int on_pair(void *userdata, const char *section, const char *name, const char *value) {
    struct reading *reading = userdata;
    if (reading->err.errnum)
        return 0;
    return config_set(&reading->config, section, name, value ? value : "", &reading->err) == 0;
}

static int parse(const char *path, const char *text, struct reading *reading, struct err *err) {
    int line = ini_parse_string(text, on_pair, reading);
    if (line == 0)
        return 0;
    if (!reading->err.errnum)
        err_set(&reading->err, EINVAL, "config.syntax", "this is neither [section] nor key = value");
    err_prefix(&reading->err, "%s:%d", path, line);
    if (err)
        *err = reading->err;
    return -reading->err.errnum;
}

int config_file_load(const char *path, struct config *ret_config, struct err *err) {
    struct reading reading = {0};
    _cleanup_free_ char *text = NULL;
    size_t len = 0;
    const char *file = path ? path : CONFIG_FILE_DEFAULT;
    config_defaults(&reading.config);
    int r = file_read(file, CONFIG_FILE_MAX, &text, &len);
    if (r < 0 && (path || r != -ENOENT)) {
        err_sys(err, -r, "config.unreadable", "read the configuration %s", file);
        return r;
    }
    if (r == 0 && strlen(text) != len)
        return err_set(err, EINVAL, "config.syntax", "%s holds a NUL byte: it is not a text file", file);
    r = r == 0 ? parse(file, text, &reading, err) : 0;
    if (r == 0) {
        r = config_check(&reading.config, err);
        if (r < 0)
            err_prefix(err, "%s", file);
    }
    if (r == 0)
        *ret_config = reading.config;
    return r;
}

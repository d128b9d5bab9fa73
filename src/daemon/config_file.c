#include "daemon/config_file.h"

#include <ini.h>
#include <stdio.h>
#include <string.h>

#include "base/fd.h"

#define CONFIG_FILE_DEFAULT "/etc/master-controller/master-controller.conf"
#define CONFIG_FILE_MAX 65536

#define LINE_MAX_BYTES 198 /* inih reads no longer ones, and takes what is left of them for a line of its own */

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

/* What inih would read otherwise than a person does: a line that it cuts, and one that it hangs on the line above. */
static int check_lines(const char *path, const char *text, struct err *err) {
    int number = 1;
    for (const char *line = text; *line; number++) {
        size_t len = strcspn(line, "\n");
        const char *word = line + strspn(line, " \t\r");
        if (len > LINE_MAX_BYTES)
            return err_set(err, EINVAL, "config.syntax", "%s:%d: the line has %zu bytes, %d can be read", path, number,
                           len, LINE_MAX_BYTES);
        if (word > line && word < line + len && *word != '#' && *word != ';')
            return err_set(err, EINVAL, "config.syntax", "%s:%d: a line must not begin with white space", path, number);
        line += len + (line[len] == '\n');
    }
    return 0;
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
    r = r == 0 ? check_lines(file, text, err) : 0;
    if (r == 0 && text)
        r = parse(file, text, &reading, err);
    if (r == 0) {
        r = config_check(&reading.config, err);
        if (r < 0)
            err_prefix(err, "%s", file);
    }
    if (r == 0)
        *ret_config = reading.config;
    return r;
}

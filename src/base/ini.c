#include "base/ini.h"

#include <ini.h>
#include <string.h>

#include "base/fd.h"

#define LINE_MAX_BYTES 198 /* inih reads no longer ones, and takes what is left of them for a line of its own */

struct reading {
    ini_pair_fn *fn;
    void *userdata;
    struct err err; /* of the first wrong line */
};

static int on_pair(void *userdata, const char *section, const char *key, const char *value) {
    struct reading *reading = userdata;
    if (reading->err.errnum)
        return 0;
    return reading->fn(reading->userdata, section, key, value ? value : "", &reading->err) == 0;
}

static int check_lines(const char *name, const char *text, struct err *err) {
    int number = 1;
    for (const char *line = text; *line; number++) {
        size_t len = strcspn(line, "\n");
        const char *word = line + strspn(line, " \t\r");
        if (len > LINE_MAX_BYTES)
            return err_set(err, EINVAL, "config.syntax", "%s:%d: the line has %zu bytes, %d can be read", name, number,
                           len, LINE_MAX_BYTES);
        if (word > line && word < line + len && *word != '#' && *word != ';')
            return err_set(err, EINVAL, "config.syntax", "%s:%d: a line must not begin with white space", name, number);
        line += len + (line[len] == '\n');
    }
    return 0;
}

int ini_read_text(const char *name, const char *text, size_t len, ini_pair_fn *fn, void *userdata, struct err *err) {
    struct reading reading = {.fn = fn, .userdata = userdata};
    if (strlen(text) != len)
        return err_set(err, EINVAL, "config.syntax", "%s holds a NUL byte: it is not a text file", name);
    int r = check_lines(name, text, err);
    if (r < 0)
        return r;
    int line = ini_parse_string(text, on_pair, &reading);
    if (line == 0)
        return 0;
    if (!reading.err.errnum)
        err_set(&reading.err, EINVAL, "config.syntax", "this is neither [section] nor key = value");
    err_prefix(&reading.err, "%s:%d", name, line);
    if (err)
        *err = reading.err;
    return -reading.err.errnum;
}

int ini_read_file(const char *path, size_t max, ini_pair_fn *fn, void *userdata, struct err *err) {
    _cleanup_free_ char *text = NULL;
    size_t len;
    int r = file_read(path, max, &text, &len);
    if (r < 0)
        return err_sys(err, -r, "config.unreadable", "read the configuration %s", path);
    return ini_read_text(path, text, len, fn, userdata, err);
}

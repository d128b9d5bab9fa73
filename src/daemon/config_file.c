#include "daemon/config_file.h"

#include "base/ini.h"

#define CONFIG_FILE_DEFAULT "/etc/master-controller/master-controller.conf"
#define CONFIG_FILE_MAX 65536

static int on_pair(void *userdata, const char *section, const char *key, const char *value, struct err *err) {
    return config_set(userdata, section, key, value, err);
}

int config_file_load(const char *path, struct config *ret_config, struct err *err) {
    struct config config;
    const char *file = path ? path : CONFIG_FILE_DEFAULT;
    config_defaults(&config);
    int r = ini_read_file(file, CONFIG_FILE_MAX, on_pair, &config, err);
    if (r < 0 && (path || r != -ENOENT))
        return r;
    r = config_check(&config, err);
    if (r < 0)
        err_prefix(err, "%s", file);
    else
        *ret_config = config;
    return r;
}

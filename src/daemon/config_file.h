/* Reads the configuration file. */
#pragma once

#include "model/config.h"

/* Defaults, then the file, then config_check(). path NULL: the default file, which need not exist. Errors name file
 * and line: "FILE:12: section [network] has no key …". Source: INI as inih reads it. */
int config_file_load(const char *path, struct config *ret_config, struct err *err);

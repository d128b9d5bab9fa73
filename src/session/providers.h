/* Provider profiles: files NAME.conf in [session] providers, read anew each time that one is needed, so that an operator
 * who enables one restarts nothing. A file that is wrong makes its own provider unusable and no other. */
#pragma once

#include "model/provider.h"

/* "demo" is there without a file: a desktop without a login. Errors: -ENOENT "provider.unknown", "provider.broken" (with
 * file and line), "provider.unsafe" (others than root may write the file: it decides where users are sent). */
int provider_load(const char *folder, const char *name, struct provider *ret_provider, struct err *err);

/* As above, and only an enabled one. Error: -EPERM "provider.disabled". */
int provider_use(const char *folder, const char *name, struct provider *ret_provider, struct err *err);

/* Calls fn for each profile in the folder by name; err is NULL for one that can be used. */
void provider_each(const char *folder,
                   void (*fn)(void *userdata, const char *name, const struct provider *provider, const struct err *err),
                   void *userdata);

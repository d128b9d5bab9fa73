/* A user's files in a guest, through its agent: read into a bundle, or written from one. Everything runs on the loop's
 * thread. The guest says what is in them: data. */
#pragma once

#include "session/bundle.h"
#include "session/guest_home.h"
#include "vm/vms.h"

#define GUEST_FILE_MAX ((size_t)64 * 1024) /* bytes of one file */

struct guest_files; /* under way */

/* Called once and later. err is NULL when all was read (text, len: a bundle, borrowed) or written (text NULL). */
typedef void guest_files_done_fn(void *userdata, const uint8_t *text, size_t len, const struct err *err);

/* Reads the files, of which none may be missing or empty. Errors: "agent.*", "guest.*", "login.no-file", "login.too-large",
 * "login.torn": its size changed meanwhile. */
int guest_files_read(struct vms *vms, const char *vm_id, enum vm_type type, const struct provider_file *files,
                     unsigned count, guest_files_done_fn *done, void *userdata, struct guest_files **ret_files,
                     struct err *err);

/* Writes the files of a bundle, each in one step, with owner and mode; the folders on their way are made. The text stays the
 * caller's until done is called. */
int guest_files_write(struct vms *vms, const char *vm_id, enum vm_type type, const uint8_t *text, size_t len,
                      guest_files_done_fn *done, void *userdata, struct guest_files **ret_files, struct err *err);

/* Nothing is called any more. Takes NULL. */
void guest_files_cancel(struct guest_files *files);

#include "session/bundle.h"

#include <stdio.h>
#include <string.h>

#include "base/str.h"

static const char magic[] = "mc-files/1\n";
#define MAGIC_LEN (sizeof magic - 1)
#define HEAD_MAX 160 /* bytes of "PATH MODE LENGTH\n" */

int bundle_new(struct bundle *ret_bundle, struct err *err) {
    struct bundle bundle = {.len = MAGIC_LEN};
    int r = secret_new(SEAL_PLAIN_MAX, &bundle.memory, err);
    if (r < 0)
        return r;
    memcpy(bundle.memory.data, magic, MAGIC_LEN);
    *ret_bundle = bundle;
    return 0;
}

void bundle_free(struct bundle *bundle) {
    secret_free(&bundle->memory);
    *bundle = (struct bundle){0};
}

uint8_t *bundle_room(struct bundle *bundle, size_t *ret_room) {
    size_t used = bundle->len + HEAD_MAX;
    *ret_room = used < bundle->memory.len ? bundle->memory.len - used : 0;
    return bundle->memory.data + used;
}

int bundle_add(struct bundle *bundle, const struct provider_file *file, size_t len, struct err *err) {
    char head[HEAD_MAX];
    size_t room;
    uint8_t *data = bundle_room(bundle, &room);
    if (len > room)
        return err_set(err, EMSGSIZE, "login.too-large", "the login's files are larger than %d bytes together",
                       SEAL_PLAIN_MAX);
    int n = snprintf(head, sizeof head, "%s %04o %zu\n", file->path, file->mode, len);
    memcpy(bundle->memory.data + bundle->len, head, (size_t)n);
    memmove(bundle->memory.data + bundle->len + n, data, len);
    bundle->len += (size_t)n + len;
    return 0;
}

static int read_head(const char *line, size_t line_len, struct provider_file *ret_file, size_t *ret_len) {
    char text[HEAD_MAX], *mode, *size;
    struct provider_file file = {0};
    uint64_t len;
    if (line_len >= sizeof text)
        return -EBADMSG;
    memcpy(text, line, line_len);
    text[line_len] = '\0';
    if (!(mode = strchr(text, ' ')) || !(size = strchr(mode + 1, ' ')))
        return -EBADMSG;
    *mode++ = *size++ = '\0';
    if (!str_copy(file.path, sizeof file.path, text) || strlen(mode) != 4 || strspn(mode, "01234567") != 4 ||
        str_to_u64(size, 0, SEAL_PLAIN_MAX, &len) < 0)
        return -EBADMSG;
    for (const char *p = mode; *p; p++)
        file.mode = file.mode * 8 + (uint32_t)(*p - '0');
    *ret_file = file;
    *ret_len = (size_t)len;
    return 0;
}

int bundle_next(const uint8_t *text, size_t len, size_t *at, struct bundle_file *ret_file) {
    struct bundle_file found = {0};
    if (*at == 0) {
        if (len < MAGIC_LEN || memcmp(text, magic, MAGIC_LEN) != 0)
            return -EBADMSG;
        *at = MAGIC_LEN;
    }
    if (*at == len)
        return 0;
    const uint8_t *line = text + *at, *end = memchr(line, '\n', len - *at);
    if (!end || read_head((const char *)line, (size_t)(end - line), &found.file, &found.len) < 0)
        return -EBADMSG;
    found.data = end + 1;
    if (found.len > (size_t)(text + len - found.data))
        return -EBADMSG;
    *at = (size_t)(found.data - text) + found.len;
    *ret_file = found;
    return 1;
}

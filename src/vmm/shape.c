#include "vmm/shape.h"

#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include "base/fd.h"
#include "base/str.h"

void shape_begin(struct shape *shape) {
    sha256_init(&shape->sha);
}

void shape_add(struct shape *shape, const char *text) {
    sha256_update(&shape->sha, strlen(text) + 1, (const uint8_t *)text);
}

void shape_add_host(struct shape *shape) {
    static const char *const names[] = {"vendor_id", "cpu family", "model", "stepping", "microcode", "flags"};
    char line[8192];
    struct utsname kernel;
    _cleanup_fclose_ FILE *file = fopen("/proc/cpuinfo", "re");
    while (file && fgets(line, sizeof line, file) && *line != '\n') /* of the first one */
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            if (str_starts(line, names[i]))
                shape_add(shape, line);
    if (uname(&kernel) == 0)
        shape_add(shape, kernel.release);
}

void shape_finish(struct shape *shape, char ret_digest[VMM_SHAPE_TEXT]) {
    uint8_t digest[SHA256_DIGEST_SIZE];
    sha256_digest(&shape->sha, sizeof digest, digest);
    str_hex(digest, sizeof digest, ret_digest);
}

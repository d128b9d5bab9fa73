#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "vm/machine.h"

/* A guest can write to its console without end. Past this the oldest half goes. */
#define CONSOLE_MAX_BYTES (8 << 20)
#define CONSOLE_BLOCK 4096
#define LOG_MAX_BYTES (8 << 20) /* on the disk */

void console_trim(const char *path) {
    struct stat st;
    _cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || fstat(fd, &st) < 0 || st.st_size <= CONSOLE_MAX_BYTES)
        return;
    /* The VMM appends to the same file: the head is cut out in one step, without a moment in which a line is lost.
     * File systems that cannot do so lose it all. */
    off_t cut = (st.st_size - CONSOLE_MAX_BYTES / 2) / CONSOLE_BLOCK * CONSOLE_BLOCK;
    if (fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, cut) < 0 && ftruncate(fd, 0) < 0)
        return;
}

/* A hole takes the oldest part away and leaves every byte where it is. */
void log_trim(const char *path) {
    struct stat st;
    _cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_blocks * 512 <= LOG_MAX_BYTES)
        return;
    off_t cut = (st.st_size - LOG_MAX_BYTES / 2) / CONSOLE_BLOCK * CONSOLE_BLOCK;
    if (cut > 0 && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, cut) < 0)
        return;
}

int vms_console(struct vms *vms, const char *id, size_t max, char **ret_text, size_t *ret_len) {
    char folder[VMS_PATH_MAX], path[VMS_PATH_MAX + 16];
    machine_user_folder(vms, id, folder);
    snprintf(path, sizeof path, "%s/console.log", folder);
    int r = file_read_tail(path, max, ret_text, ret_len);
    if (r != -ENOENT)
        return r;
    machine_evidence_folder(vms, id, folder);
    snprintf(path, sizeof path, "%s/console.log", folder);
    return file_read_tail(path, max, ret_text, ret_len);
}

size_t console_strip(char *text, size_t len) {
    size_t out = 0;
    for (size_t i = 0; i < len; i++) {
        if (text[i] == '\x1b' && i + 1 < len && text[i + 1] == '[') {
            for (i += 2; i < len && (text[i] < '@' || text[i] > '~'); i++) {
            }
            continue;
        }
        if (text[i] == '\x1b' && i + 1 < len) { /* ESC M: up a line */
            i++;
            continue;
        }
        text[out++] = text[i];
    }
    return out;
}

/* The last line of text that holds anything. Changes text. */
static void last_line(char *text, size_t len, char ret_line[VMS_LINE_MAX]) {
    ret_line[0] = '\0';
    len = console_strip(text, len);
    while (len > 0) {
        size_t end = len;
        while (end > 0 && (unsigned char)text[end - 1] <= ' ')
            end--;
        size_t start = end;
        while (start > 0 && text[start - 1] != '\n' && text[start - 1] != '\r')
            start--;
        if (end > start) {
            str_escape(text + start, end - start, ret_line, VMS_LINE_MAX);
            return;
        }
        len = start > 0 ? start - 1 : 0;
    }
}

void vms_console_line(struct vms *vms, const char *id, char ret_line[VMS_LINE_MAX]) {
    _cleanup_free_ char *text = NULL;
    size_t len;
    ret_line[0] = '\0';
    if (vms_console(vms, id, 2000, &text, &len) == 0)
        last_line(text, len, ret_line);
}

void vms_log_line(struct vms *vms, const char *id, char ret_line[VMS_LINE_MAX]) {
    char folder[VMS_PATH_MAX], path[VMS_PATH_MAX + 16];
    _cleanup_free_ char *text = NULL;
    size_t len;
    machine_user_folder(vms, id, folder);
    snprintf(path, sizeof path, "%s/vmm.log", folder);
    ret_line[0] = '\0';
    if (file_read_tail(path, 2000, &text, &len) == 0)
        last_line(text, len, ret_line);
}

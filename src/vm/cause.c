#include "vm/cause.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"

static struct cause make(const char *code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static struct cause make(const char *code, const char *fmt, ...) {
    struct cause cause;
    char words[CAUSE_WORDS_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(words, sizeof words, fmt, ap);
    va_end(ap);
    str_copy(cause.code, sizeof cause.code, code);
    str_escape(words, strlen(words), cause.words, sizeof cause.words);
    return cause;
}

/* The line around a position, without the kernel's time stamp. */
static const char *line_at(const char *text, const char *at, char *ret_line, size_t size) {
    const char *begin = at;
    while (begin > text && begin[-1] != '\n' && begin[-1] != '\r')
        begin--;
    if (*begin == '[' && memchr(begin, ']', (size_t)(at - begin)))
        begin = (const char *)memchr(begin, ']', (size_t)(at - begin)) + 1;
    while (*begin == ' ')
        begin++;
    return str_escape(begin, strcspn(begin, "\r\n"), ret_line, size < 140 ? size : 140);
}

static const char *last_line(const char *text, char *ret_line, size_t size) {
    size_t len = strlen(text);
    while (len > 0 && (unsigned char)text[len - 1] <= ' ')
        len--;
    size_t begin = len;
    while (begin > 0 && text[begin - 1] != '\n')
        begin--;
    return str_escape(text + begin, len - begin, ret_line, size < 140 ? size : 140);
}

static const char *find_any(const char *text, const char *const *words) {
    for (; *words; words++) {
        const char *at = strstr(text, *words);
        if (at)
            return at;
    }
    return NULL;
}

/* Source: the kernel's own words, mm/oom_kill.c, kernel/panic.c, init/do_mounts.c, kernel/reboot.c. */
static struct cause find_in_console(const struct cause_facts *f) {
    static const char *const oom[] = {"Out of memory", "oom-kill:", "invoked oom-killer",
                                      "System is deadlocked on memory", NULL};
    static const char *const no_root[] = {"Unable to mount root", "Cannot open root device", NULL};
    char line[140];
    const char *panic = strstr(f->console, "Kernel panic"), *memory = find_any(f->console, oom);
    if (panic && memory)
        return make("guest.oom", "its guest ran out of memory and panicked: %u MiB were too few (%s)", f->memory_mib,
                    line_at(f->console, panic, line, sizeof line));
    if (panic && find_any(f->console, no_root))
        return make("guest.no-root", "its guest's kernel found no root file system (%s)",
                    line_at(f->console, panic, line, sizeof line));
    if (panic)
        return make("guest.panic", "its guest's kernel panicked (%s)", line_at(f->console, panic, line, sizeof line));
    if (memory && !f->was_asked)
        return make("guest.oom-kill", "its guest was short of memory, %u MiB, and killed processes (%s)", f->memory_mib,
                    line_at(f->console, memory, line, sizeof line));
    return (struct cause){0};
}

static struct cause find_in_process(const struct cause_facts *f) {
    char line[140];
    if (str_starts(f->process, "killed by signal 31"))
        return make("vmm.sandbox", "its VMM did what its sandbox forbids, and was killed for it (%s)",
                    last_line(f->vmm_log, line, sizeof line));
    if (str_starts(f->process, "killed by signal 9") || str_starts(f->process, "killed by signal 15"))
        return make("vmm.killed", "somebody on the host killed its VMM (%s)", f->process);
    if (str_starts(f->process, "killed by signal"))
        return make("vmm.crashed", "its VMM crashed: %s (%s)", f->process, last_line(f->vmm_log, line, sizeof line));
    if (str_starts(f->process, "exit status") && strcmp(f->process, "exit status 0") != 0)
        return make("vmm.refused", "its VMM gave up with %s (%s)", f->process,
                    last_line(f->vmm_log, line, sizeof line));
    return (struct cause){0};
}

struct cause cause_find(const struct cause_facts *f) {
    static const char *const off[] = {"reboot: Power down", "reboot: System halted", "Power down.", NULL};
    static const char *const disk[] = {"Remounting filesystem read-only", "I/O error, dev vd", "Buffer I/O error on",
                                       NULL};
    struct cause cause;
    char line[140];
    const char *at;
    if (f->oom_kills > 0)
        return make("host.oom",
                    "the host's kernel killed its VMM, which had come to the memory limit of a VM of %u MiB",
                    f->memory_mib);
    if (!f->was_asked && strstr(f->halted, "no space left"))
        return make("host.disk-full", "it stood still, because there was no space left for its disk on the host");
    cause = find_in_console(f);
    /* A disk that is full now may have made a guest panic, but not for memory. */
    bool is_oom = strcmp(cause.code, "guest.oom") == 0;
    if (strstr(f->vmm_log, "No space left on device") || (f->disk_is_full && !is_oom))
        return make("host.disk-full", "the disk of the state folder is full: free some space");
    if (*cause.code || f->was_asked)
        return cause;
    cause = find_in_process(f);
    if (*cause.code)
        return cause;
    at = find_any(f->console, disk);
    if (at)
        return make("guest.disk-error",
                    "its guest got errors of its disk before it ended (%s): was the disk of the state folder full, or "
                    "does it fail?",
                    line_at(f->console, at, line, sizeof line));
    if (find_any(f->console, off))
        return make("guest.power-off", "its guest shut itself down");
    if (strstr(f->console, "reboot: Restarting system"))
        return make("guest.reboot", "its guest restarted itself, which ends a VM");
    return (struct cause){0};
}

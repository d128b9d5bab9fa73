/* ELF is read as the dynamic loader would: PT_INTERP, DT_NEEDED, DT_RUNPATH with $ORIGIN, then the folders of ld.so.conf
 * and the system's own. Source: ld.so(8), elf(5). */
#include "image/program.h"

#include <elf.h>
#include <errno.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"

#define HEADERS_MAX 64
#define DYNAMIC_MAX 4096 /* entries */
#define GOOD_MAX 4096U
#define DEPTH_MAX 32
#define SHEBANGS_MAX 4

#if defined(__aarch64__)
#define MACHINE EM_AARCH64
#define MACHINE_TRIPLET "aarch64-linux-gnu"
#else
#define MACHINE EM_X86_64
#define MACHINE_TRIPLET "x86_64-linux-gnu"
#endif

struct search {
    struct ext4 *fs;
    struct program_cache *cache;
    struct program_problem *problem;
    uint32_t uid;
};

void program_cache_free(struct program_cache *cache) {
    for (unsigned i = 0; i < cache->count; i++)
        free(cache->good[i]);
    free(cache->good);
    *cache = (struct program_cache){0};
}

static bool is_good(const struct program_cache *cache, const char *path) {
    for (unsigned i = 0; i < cache->count; i++)
        if (strcmp(cache->good[i], path) == 0)
            return true;
    return false;
}

/* Return: 0, or -E2BIG: no set of programs of ours has so many libraries. */
static int set_good(struct program_cache *cache, const char *path) {
    if (cache->count == GOOD_MAX)
        return -E2BIG;
    char **grown = reallocarray(cache->good, cache->count + 1, sizeof *grown);
    if (!grown)
        return -ENOMEM;
    cache->good = grown;
    char *copy = strdup(path);
    if (!copy)
        return -ENOMEM;
    grown[cache->count++] = copy;
    return 0;
}

__attribute__((format(printf, 4, 5))) static int problem(struct search *s, const char *id, const char *object,
                                                         const char *fmt, ...) {
    va_list ap;
    s->problem->id = id;
    str_copy(s->problem->object, sizeof s->problem->object, object);
    va_start(ap, fmt);
    vsnprintf(s->problem->what, sizeof s->problem->what, fmt, ap);
    va_end(ap);
    return 1;
}

static bool hard(int r) {
    return r == -E2BIG || r == -ENOMEM;
}

/* ---------------------------------------------------------------- ELF */

struct elf {
    struct ext4_node node;
    const char *path; /* resolved */
    Elf64_Ehdr head;
    Elf64_Phdr program[HEADERS_MAX];
    uint64_t strings;    /* file offset of the dynamic string table */
    const char *folders; /* RUNPATH, colon-separated */
    char runpath[EXT4_PATH_MAX];
};

static bool read_at(struct search *s, const struct elf *elf, uint64_t offset, void *ret, size_t len) {
    return ext4_read(s->fs, &elf->node, offset, ret, len) == (int64_t)len;
}

/* A text of less than size bytes at an offset; "" when it cannot be. */
static void text_at(struct search *s, const struct elf *elf, uint64_t offset, char *ret, size_t size) {
    int64_t got = ext4_read(s->fs, &elf->node, offset, ret, size - 1);
    ret[got > 0 ? got : 0] = '\0';
    if (strlen(ret) == size - 1)
        *ret = '\0';
}

static const char *load_headers(struct search *s, struct elf *elf) {
    Elf64_Ehdr *h = &elf->head;
    if (!read_at(s, elf, 0, h, sizeof *h) || memcmp(h->e_ident, ELFMAG, SELFMAG) != 0)
        return "is neither a program nor a script";
    if (h->e_ident[EI_CLASS] != ELFCLASS64 || h->e_ident[EI_DATA] != ELFDATA2LSB || h->e_machine != MACHINE)
        return "is a program for another processor";
    if (h->e_phentsize != sizeof *elf->program || h->e_phnum == 0 || h->e_phnum > HEADERS_MAX ||
        !read_at(s, elf, h->e_phoff, elf->program, h->e_phnum * sizeof *elf->program))
        return "is a program that is cut or damaged";
    return NULL;
}

static const Elf64_Phdr *segment(const struct elf *elf, uint32_t type) {
    for (unsigned i = 0; i < elf->head.e_phnum; i++)
        if (elf->program[i].p_type == type)
            return &elf->program[i];
    return NULL;
}

static uint64_t offset_of(const struct elf *elf, uint64_t address) {
    for (unsigned i = 0; i < elf->head.e_phnum; i++) {
        const Elf64_Phdr *p = &elf->program[i];
        if (p->p_type == PT_LOAD && address >= p->p_vaddr && address - p->p_vaddr < p->p_filesz)
            return p->p_offset + (address - p->p_vaddr);
    }
    return UINT64_MAX;
}

static int check_elf(struct search *s, const char *path, int depth, const char *runpath);

/* Return: 1 found and good, 0 not here, or as check_elf() with the problem in s (as 2). */
static int try_library(struct search *s, const char *folder, size_t folder_len, const char *origin, const char *name,
                       int depth, const char *runpath) {
    char path[EXT4_PATH_MAX];
    struct ext4_node node;
    int n;
    if (str_starts(folder, "$ORIGIN"))
        n = snprintf(path, sizeof path, "%s%.*s/%s", origin, (int)folder_len - 7, folder + 7, name);
    else if (str_starts(folder, "${ORIGIN}"))
        n = snprintf(path, sizeof path, "%s%.*s/%s", origin, (int)folder_len - 9, folder + 9, name);
    else
        n = snprintf(path, sizeof path, "%.*s/%s", (int)folder_len, folder, name);
    if (n >= (int)sizeof path)
        return 0;
    int r = ext4_find(s->fs, path, true, &node, NULL);
    if (hard(r))
        return r;
    if (r < 0 || !S_ISREG(node.mode))
        return 0;
    r = check_elf(s, path, depth + 1, runpath);
    return r == 0 ? 1 : r == 1 ? 2 : r;
}

struct conf {
    struct search *s;
    const char *name, *origin;
    int depth, result;
};

static bool try_conf(const char *file, void *data) {
    struct conf *c = data;
    char path[EXT4_PATH_MAX];
    _cleanup_free_ char *text = NULL;
    size_t len;
    if (snprintf(path, sizeof path, "/etc/ld.so.conf.d/%s", file) >= (int)sizeof path ||
        ext4_read_file(c->s->fs, path, 65536, &text, &len) < 0)
        return true;
    for (char *line = text; c->result == 0 && *line;) {
        size_t used = strcspn(line, "\n"), n = strcspn(line, " \t\r\n#");
        if (*line == '/')
            c->result = try_library(c->s, line, n, "", c->name, c->depth, "");
        line += used + (line[used] == '\n');
    }
    return c->result == 0;
}

static int find_library(struct search *s, const struct elf *elf, const char *name, int depth) {
    static const char *const folders[] = {
        "/lib/" MACHINE_TRIPLET, "/usr/lib/" MACHINE_TRIPLET, "/lib64", "/usr/lib64", "/lib", "/usr/lib"};
    char origin[EXT4_PATH_MAX];
    int r = 0;
    str_copy(origin, sizeof origin, elf->path);
    char *folder = dirname(origin);
    if (strchr(name, '/'))
        return try_library(s, "", 0, folder, name, depth, elf->runpath);
    for (const char *at = elf->runpath; r == 0 && *at;) {
        size_t len = strcspn(at, ":");
        r = try_library(s, at, len, folder, name, depth, elf->runpath);
        at += len + (at[len] == ':');
    }
    for (size_t i = 0; r == 0 && i < sizeof folders / sizeof *folders; i++)
        r = try_library(s, folders[i], strlen(folders[i]), folder, name, depth, "");
    if (r == 0) {
        struct conf c = {s, name, folder, depth, 0};
        int listed = ext4_list(s->fs, "/etc/ld.so.conf.d", try_conf, &c);
        r = hard(listed) ? listed : c.result;
    }
    return r;
}

static int check_needed(struct search *s, const struct elf *elf, const Elf64_Dyn *dynamic, size_t count, int depth) {
    for (size_t i = 0; i < count && dynamic[i].d_tag != DT_NULL; i++) {
        char name[256];
        if (dynamic[i].d_tag != DT_NEEDED)
            continue;
        text_at(s, elf, elf->strings + dynamic[i].d_un.d_val, name, sizeof name);
        if (!*name)
            return problem(s, "exec-format", elf->path, "is a program that is cut or damaged");
        int r = find_library(s, elf, name, depth);
        if (r == 0)
            return problem(s, "exec-library", name, "cannot start: %s needs the library %s, which is not there",
                           elf->path, name);
        if (r != 1)
            return r == 2 ? 1 : r;
    }
    return 0;
}

static int check_dynamic(struct search *s, struct elf *elf, const Elf64_Phdr *p, int depth, const char *runpath) {
    size_t count = p->p_filesz / sizeof(Elf64_Dyn);
    if (count == 0 || count > DYNAMIC_MAX)
        return problem(s, "exec-format", elf->path, "is a program that is cut or damaged");
    _cleanup_free_ Elf64_Dyn *dynamic = calloc(count, sizeof *dynamic);
    if (!dynamic)
        return -ENOMEM;
    if (!read_at(s, elf, p->p_offset, dynamic, count * sizeof *dynamic))
        return problem(s, "exec-format", elf->path, "is a program that is cut or damaged");
    elf->strings = UINT64_MAX;
    for (size_t i = 0; i < count && dynamic[i].d_tag != DT_NULL; i++)
        if (dynamic[i].d_tag == DT_STRTAB)
            elf->strings = offset_of(elf, dynamic[i].d_un.d_ptr);
    if (elf->strings == UINT64_MAX)
        return problem(s, "exec-format", elf->path, "is a program that is cut or damaged");
    str_copy(elf->runpath, sizeof elf->runpath, runpath);
    for (size_t i = 0; i < count && dynamic[i].d_tag != DT_NULL; i++)
        if (dynamic[i].d_tag == DT_RUNPATH || dynamic[i].d_tag == DT_RPATH)
            text_at(s, elf, elf->strings + dynamic[i].d_un.d_val, elf->runpath, sizeof elf->runpath);
    return check_needed(s, elf, dynamic, count, depth);
}

static int check_interpreter(struct search *s, const struct elf *elf) {
    const Elf64_Phdr *p = segment(elf, PT_INTERP);
    char name[256] = "";
    struct ext4_node node;
    if (!p)
        return 0;
    text_at(s, elf, p->p_offset, name, sizeof name);
    int r = ext4_find(s->fs, name, true, &node, NULL);
    if (hard(r))
        return r;
    if (r < 0 || !S_ISREG(node.mode))
        return problem(s, "exec-interpreter", name, "cannot start: its loader %s is not there", name);
    return 0;
}

/* runpath: of the program that needs it (DT_RPATH reaches down; taking it for DT_RUNPATH too errs to the good side). */
static int check_elf(struct search *s, const char *path, int depth, const char *runpath) {
    char resolved[EXT4_PATH_MAX];
    _cleanup_free_ struct elf *elf = calloc(1, sizeof *elf);
    if (!elf)
        return -ENOMEM;
    int r = ext4_find(s->fs, path, true, &elf->node, resolved);
    if (hard(r))
        return r;
    if (r < 0 || depth > DEPTH_MAX)
        return problem(s, "exec-format", path, "cannot be read");
    if (is_good(s->cache, resolved))
        return 0;
    elf->path = resolved;
    const char *wrong = load_headers(s, elf);
    if (wrong)
        return problem(s, "exec-format", resolved, "cannot start: %s %s", resolved, wrong);
    /* Before its libraries: two that need each other would never end. */
    r = set_good(s->cache, resolved);
    if (r == 0)
        r = check_interpreter(s, elf);
    const Elf64_Phdr *p = segment(elf, PT_DYNAMIC);
    if (r == 0 && p)
        r = check_dynamic(s, elf, p, depth, runpath);
    if (r == 1 && s->cache->count > 0) { /* tell it again to the next who asks */
        for (unsigned i = 0; i < s->cache->count; i++)
            s->cache->good[i][0] = '\0';
    }
    return r;
}

/* ---------------------------------------------------------------- scripts, names */

static int check_path(struct search *s, const char *path, int shebangs);

/* Looks for a bare name where systemd and env(1) do. */
static int check_name(struct search *s, const char *name, int shebangs) {
    static const char *const folders[] = {"/usr/local/sbin", "/usr/local/bin", "/usr/sbin",
                                          "/usr/bin",        "/sbin",          "/bin"};
    char path[EXT4_PATH_MAX];
    struct ext4_node node;
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        if (snprintf(path, sizeof path, "%s/%s", folders[i], name) >= (int)sizeof path)
            break;
        int r = ext4_find(s->fs, path, true, &node, NULL);
        if (hard(r))
            return r;
        if (r == 0)
            return check_path(s, path, shebangs);
    }
    return problem(s, "exec-missing", name, "is not there");
}

/* "#!/usr/bin/env -S python3 -u": the interpreter, and what env(1) is to start. Source: execve(2). */
static int check_script(struct search *s, const char *path, char *line, int shebangs) {
    line[strcspn(line, "\n")] = '\0';
    char *rest = line + 2 + strspn(line + 2, " \t"), *interpreter = strsep(&rest, " \t\r");
    if (shebangs == SHEBANGS_MAX || *interpreter != '/')
        return problem(s, "exec-interpreter", path, "is a script whose first line names no interpreter");
    int r = check_path(s, interpreter, shebangs + 1);
    const char *base = strrchr(interpreter, '/') + 1;
    while (r == 0 && strcmp(base, "env") == 0 && rest) {
        char *word = strsep(&rest, " \t\r");
        if (*word && *word != '-' && !strchr(word, '=')) {
            r = *word == '/' ? check_path(s, word, shebangs + 1) : check_name(s, word, shebangs + 1);
            break;
        }
    }
    if (r == 1 && s->problem->id && strcmp(s->problem->id, "exec-missing") == 0) {
        char missing[sizeof s->problem->object];
        memcpy(missing, s->problem->object, sizeof missing);
        return problem(s, "exec-interpreter", missing, "cannot start: it is a script for %s, which is not there",
                       missing);
    }
    return r;
}

static bool may_execute(const struct ext4_node *node, uint32_t uid) {
    if (uid == 0)
        return node->mode & 0111;
    return node->uid == uid ? node->mode & 0100 : node->mode & 0001;
}

static int check_path(struct search *s, const char *path, int shebangs) {
    struct ext4_node node;
    char head[256];
    int r = ext4_find(s->fs, path, true, &node, NULL);
    if (hard(r))
        return r;
    if (r < 0)
        return problem(s, "exec-missing", path, "is not there");
    if (!S_ISREG(node.mode))
        return problem(s, "exec-not-executable", path, "is not a file");
    if (!may_execute(&node, s->uid))
        return problem(s, "exec-not-executable", path, "is not executable%s", s->uid ? " for the unit's user" : "");
    int64_t got = ext4_read(s->fs, &node, 0, head, sizeof head - 1);
    if (hard((int)got))
        return (int)got;
    if (got < 4)
        return problem(s, "exec-format", path, "is empty, or cannot be read");
    head[got] = '\0';
    return str_starts(head, "#!") ? check_script(s, path, head, shebangs) : check_elf(s, path, 0, "");
}

int program_check(struct ext4 *fs, struct program_cache *cache, const char *path, uint32_t uid,
                  struct program_problem *ret) {
    struct program_problem found = {0};
    struct search s = {fs, cache, &found, uid};
    int r = *path == '/' ? check_path(&s, path, 0) : check_name(&s, path, 0);
    if (r == 1)
        *ret = found;
    return r;
}

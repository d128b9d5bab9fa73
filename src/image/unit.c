#include "image/unit.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/str.h"

#define UNIT_FILE_MAX ((size_t)256 * 1024)

/* Where systemd looks, first hit wins. /lib last: on a merged /usr it is the third again. */
static const char *const unit_dirs[] = {"/etc/systemd/system", "/usr/local/lib/systemd/system",
                                        "/usr/lib/systemd/system", "/lib/systemd/system"};
#define DIR_COUNT (sizeof unit_dirs / sizeof *unit_dirs)

void unit_free(struct unit *unit) {
    if (!unit)
        return;
    free(unit->user);
    free(unit->activates);
    for (unsigned i = 0; i < unit->start_count; i++)
        free(unit->start[i]);
    for (unsigned i = 0; i < unit->before_count; i++)
        free(unit->before[i]);
    for (unsigned i = 0; i < unit->wants_count; i++)
        free(unit->wants[i]);
    for (unsigned i = 0; i < unit->condition_count; i++)
        free(unit->conditions[i].value);
    free(unit);
}

/* ---------------------------------------------------------------- one file */

static void add_want(struct unit *unit, const char *name, size_t len, bool by_link) {
    if (len == 0 || len >= UNIT_NAME_MAX || unit->wants_count == UNIT_WANTS_MAX || memchr(name, '%', len))
        return;
    char *copy = strndup(name, len);
    if (!copy)
        return;
    unit->by_link[unit->wants_count] = by_link;
    unit->wants[unit->wants_count++] = copy;
}

static void set_text(char **to, const char *value) {
    free(*to);
    *to = *value ? strdup(value) : NULL;
}

/* An empty value takes back what was there: systemd.unit(5). */
static void add_line(char **lines, unsigned *count, const char *value) {
    if (!*value) {
        while (*count > 0)
            free(lines[--*count]);
        return;
    }
    char *copy = *count < UNIT_LINES_MAX ? strdup(value) : NULL;
    if (copy)
        lines[(*count)++] = copy;
}

/* An empty one takes back all conditions, or all asserts, of whatever kind. */
static void add_condition(struct unit *unit, bool is_assert, const char *type, const char *value) {
    unsigned kept = 0;
    for (unsigned i = 0; !*value && i < unit->condition_count; i++) {
        if (unit->conditions[i].is_assert == is_assert)
            free(unit->conditions[i].value);
        else
            unit->conditions[kept++] = unit->conditions[i];
    }
    if (!*value) {
        unit->condition_count = kept;
        return;
    }
    struct unit_condition c = {.is_assert = is_assert};
    if (unit->condition_count == UNIT_CONDITIONS_MAX || !str_copy(c.type, sizeof c.type, type) ||
        !(c.value = strdup(value)))
        return;
    unit->conditions[unit->condition_count++] = c;
}

static bool pulls_in(const char *key) {
    static const char *const keys[] = {"Wants", "Requires", "BindsTo", "Upholds", "Sockets"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strcmp(key, keys[i]) == 0)
            return true;
    return false;
}

static void take_setting(struct unit *unit, const char *section, const char *key, const char *value) {
    if (pulls_in(key)) {
        for (const char *at = value; *at;) {
            size_t len = strcspn(at, " \t");
            add_want(unit, at, len, false);
            at += len + strspn(at + len, " \t");
        }
    } else if (strcmp(section, "[Unit]") == 0) {
        if (str_starts(key, "Condition"))
            add_condition(unit, false, key + strlen("Condition"), value);
        else if (str_starts(key, "Assert"))
            add_condition(unit, true, key + strlen("Assert"), value);
    } else if (strcmp(section, "[Service]") == 0) {
        if (strcmp(key, "ExecStart") == 0)
            add_line(unit->start, &unit->start_count, value);
        else if (strcmp(key, "ExecStartPre") == 0)
            add_line(unit->before, &unit->before_count, value);
        else if (strcmp(key, "User") == 0)
            set_text(&unit->user, value);
    } else if ((strcmp(section, "[Socket]") == 0 && strcmp(key, "Service") == 0) ||
               ((strcmp(section, "[Path]") == 0 || strcmp(section, "[Timer]") == 0) && strcmp(key, "Unit") == 0)) {
        set_text(&unit->activates, value);
    }
}

static char *trim(char *text) {
    text += strspn(text, " \t");
    size_t len = strlen(text);
    while (len > 0 && isspace((unsigned char)text[len - 1]))
        text[--len] = '\0';
    return text;
}

/* Joins lines that end in a backslash, in place: "\<newline>" becomes a space. Comments between them are dropped. */
static char *next_line(char **rest) {
    char *line = *rest, *out = line, *at = line;
    if (!*line)
        return NULL;
    for (bool more = true; more && *at;) {
        size_t len = strcspn(at, "\n");
        char *next = at + len + (at[len] == '\n');
        bool comment = out != line && (*at == '#' || *at == ';');
        more = comment || (len > 0 && at[len - 1] == '\\' && *at != '#' && *at != ';');
        if (!comment) {
            memmove(out, at, len);
            out += len;
            if (more)
                out[-1] = ' ';
        }
        at = next;
    }
    *rest = at;
    if (out == at && out > line) /* the last line, without a newline: the text's own NUL ends it */
        return line;
    *out = '\0';
    return line;
}

static void parse(struct unit *unit, char *text) {
    char section[32] = "";
    for (char *line; (line = next_line(&text));) {
        line = trim(line);
        if (*line == '[') {
            str_copy(section, sizeof section, line);
        } else if (*line && *line != '#' && *line != ';') {
            char *equals = strchr(line, '=');
            if (!equals)
                continue;
            *equals = '\0';
            take_setting(unit, section, trim(line), trim(equals + 1));
        }
    }
}

static int parse_file(struct ext4 *fs, struct unit *unit, const char *path) {
    _cleanup_free_ char *text = NULL;
    size_t len;
    int r = ext4_read_file(fs, path, UNIT_FILE_MAX, &text, &len);
    if (r == 0)
        parse(unit, text);
    return r;
}

/* ---------------------------------------------------------------- fragment, drop-ins, wants */

struct reading {
    struct ext4 *fs;
    struct unit *unit;
    const char *dir;
};

static bool take_drop_in(const char *name, void *data) {
    struct reading *reading = data;
    char path[EXT4_PATH_MAX];
    size_t len = strlen(name);
    if (len > 5 && strcmp(name + len - 5, ".conf") == 0 &&
        snprintf(path, sizeof path, "%s/%s", reading->dir, name) < (int)sizeof path)
        parse_file(reading->fs, reading->unit, path);
    return true;
}

static bool take_want(const char *name, void *data) {
    struct reading *reading = data;
    add_want(reading->unit, name, strlen(name), true);
    return true;
}

/* "getty@tty1.service" -> "getty@.service"; false for what is no instance. */
static bool template_of(const char *name, char ret[UNIT_NAME_MAX]) {
    const char *at = strchr(name, '@'), *dot = strrchr(name, '.');
    if (!at || !dot || dot < at || dot == at + 1)
        return false;
    snprintf(ret, UNIT_NAME_MAX, "%.*s%s", (int)(at + 1 - name), name, dot);
    return true;
}

/* An alias, default.target above all, is the unit that its link leads to, with that one's folders: pull it in. */
static void add_alias(struct ext4 *fs, struct unit *unit, const char *name, const char *path) {
    char resolved[EXT4_PATH_MAX];
    struct ext4_node node;
    if (ext4_find(fs, path, true, &node, resolved) < 0)
        return;
    const char *base = strrchr(resolved, '/');
    if (base && strcmp(base + 1, name) != 0 && !strstr(base, "@."))
        add_want(unit, base + 1, strlen(base + 1), true);
}

/* Return: 1 when the file of that name was found (the unit's state is set), 0 not there, or -errno. */
static int load_fragment(struct ext4 *fs, struct unit *unit, const char *name) {
    char path[EXT4_PATH_MAX], target[EXT4_PATH_MAX];
    struct ext4_node node;
    for (size_t i = 0; i < DIR_COUNT; i++) {
        snprintf(path, sizeof path, "%s/%s", unit_dirs[i], name);
        int r = ext4_find(fs, path, false, &node, NULL);
        if (r == -ENOENT || r == -ENOTDIR)
            continue;
        if (r == -E2BIG || r == -ENOMEM)
            return r;
        unit->own = i == 0;
        unit->state = UNIT_BROKEN;
        if (r == 0 && ext4_link(fs, &node, target, sizeof target) == 0 && strcmp(target, "/dev/null") == 0)
            unit->state = UNIT_MASKED;
        else if (r == 0 && S_ISREG(node.mode) && node.size == 0)
            unit->state = UNIT_MASKED;
        else if (r == 0 && (r = parse_file(fs, unit, path)) == 0)
            unit->state = UNIT_LOADED;
        else if (r == -ENOENT)
            unit->state = UNIT_MISSING; /* a link that leads nowhere */
        if (unit->state == UNIT_LOADED)
            add_alias(fs, unit, name, path);
        return 1;
    }
    return 0;
}

static int load_folders(struct ext4 *fs, struct unit *unit, const char *name) {
    static const char *const kinds[] = {"wants", "requires", "d"};
    char path[EXT4_PATH_MAX];
    struct reading reading = {fs, unit, path};
    /* Drop-ins of /etc last: an empty ExecStart= there takes back what a package's drop-in said. */
    for (size_t i = DIR_COUNT; i-- > 0;)
        for (size_t k = 0; k < 3; k++) {
            snprintf(path, sizeof path, "%s/%s.%s", unit_dirs[i], name, kinds[k]);
            int r = ext4_list(fs, path, k == 2 ? take_drop_in : take_want, &reading);
            if (r == -E2BIG || r == -ENOMEM)
                return r;
        }
    return 0;
}

int unit_load(struct ext4 *fs, const char *name, struct unit **ret) {
    char template[UNIT_NAME_MAX];
    struct unit *unit = calloc(1, sizeof *unit);
    if (!unit)
        return -ENOMEM;
    int r = -EINVAL;
    if (str_copy(unit->name, sizeof unit->name, name) && !strchr(name, '/'))
        r = load_fragment(fs, unit, name);
    if (r == 0 && template_of(name, template))
        r = load_fragment(fs, unit, template);
    if (r >= 0 && unit->state == UNIT_LOADED)
        r = load_folders(fs, unit, name);
    if (r < 0 && r != -EINVAL) {
        unit_free(unit);
        return r;
    }
    *ret = unit;
    return 0;
}

/* ---------------------------------------------------------------- all of them */

void unit_graph_free(struct unit_graph *graph) {
    for (unsigned i = 0; i < graph->count; i++)
        unit_free(graph->unit[i]);
    free(graph->unit);
    *graph = (struct unit_graph){0};
}

static struct unit *find_unit(const struct unit_graph *graph, const char *name) {
    for (unsigned i = 0; i < graph->count; i++)
        if (strcmp(graph->unit[i]->name, name) == 0)
            return graph->unit[i];
    return NULL;
}

const struct unit *unit_graph_find(const struct unit_graph *graph, const char *name) {
    return find_unit(graph, name);
}

bool unit_graph_starts(const struct unit_graph *graph, const char *name) {
    const struct unit *unit = unit_graph_find(graph, name);
    return unit && unit->state == UNIT_LOADED;
}

static int add_unit(struct ext4 *fs, struct unit_graph *graph, const char *name, bool enabled) {
    struct unit *known = find_unit(graph, name);
    if (known) {
        known->enabled |= enabled;
        return 0;
    }
    if (graph->count == UNITS_MAX)
        return -E2BIG;
    struct unit *unit;
    int r = unit_load(fs, name, &unit);
    if (r < 0)
        return r;
    struct unit **grown = reallocarray(graph->unit, graph->count + 1, sizeof *grown);
    if (!grown) {
        unit_free(unit);
        return -ENOMEM;
    }
    unit->enabled = enabled;
    graph->unit = grown;
    grown[graph->count++] = unit;
    return 0;
}

/* A socket, path or timer starts the service of its name, or the one that it says. */
static int add_activated(struct ext4 *fs, struct unit_graph *graph, const struct unit *unit) {
    char name[UNIT_NAME_MAX + 16];
    const char *dot = strrchr(unit->name, '.');
    if (unit->activates)
        return strlen(unit->activates) < UNIT_NAME_MAX ? add_unit(fs, graph, unit->activates, unit->enabled) : 0;
    if (!dot || (strcmp(dot, ".socket") != 0 && strcmp(dot, ".path") != 0 && strcmp(dot, ".timer") != 0))
        return 0;
    snprintf(name, sizeof name, "%.*s.service", (int)(dot - unit->name), unit->name);
    return strlen(name) < UNIT_NAME_MAX ? add_unit(fs, graph, name, unit->enabled) : 0;
}

int unit_graph_load(struct ext4 *fs, struct unit_graph *ret) {
    struct unit_graph graph = {0};
    int r = add_unit(fs, &graph, "default.target", true);
    /* The least that systemd itself starts whatever the target wants. */
    if (r == 0 && graph.unit[0]->state == UNIT_LOADED)
        r = add_unit(fs, &graph, "basic.target", true);
    for (unsigned i = 0; r == 0 && i < graph.count; i++) {
        const struct unit *unit = graph.unit[i];
        if (unit->state != UNIT_LOADED)
            continue;
        for (unsigned k = 0; r == 0 && k < unit->wants_count; k++)
            r = add_unit(fs, &graph, unit->wants[k], unit->by_link[k]);
        if (r == 0)
            r = add_activated(fs, &graph, unit);
    }
    /* Again, for those that turned out to be enabled later: it adds none. */
    for (unsigned i = 0; r == 0 && i < graph.count; i++)
        r = graph.unit[i]->enabled && graph.unit[i]->state == UNIT_LOADED ? add_activated(fs, &graph, graph.unit[i])
                                                                          : 0;
    if (r < 0)
        unit_graph_free(&graph);
    else
        *ret = graph;
    return r;
}

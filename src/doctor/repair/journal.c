/* The journal: an entry as JSON, one file each. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/time.h"
#include "doctor/repair/internal.h"

#define FILE_SIZE_MAX (4 * 1024 * 1024)
#define ENTRIES_MAX 65536
#define SCHEMA "doctor-journal/1"

/* The members of a step, by name: one table writes and reads. Numbers are what the kernel has. */
enum sort { TEXT, U8, U16, U32, I32, U64 };

#define MEMBER(name, sort)                                                                                             \
    { #name, offsetof(struct repair_step, name), sizeof(((struct repair_step *)0)->name), sort }

static const struct member {
    const char *name;
    size_t offset, size;
    enum sort sort;
} members[] = {
    MEMBER(dev, TEXT),
    MEMBER(ifindex, I32),
    MEMBER(object, TEXT),
    MEMBER(text, TEXT),
    MEMBER(value, U64),
    MEMBER(attr, U16),
    MEMBER(attr_size, U8),
    MEMBER(gateway, U32),
    MEMBER(route_table, U32),
    MEMBER(route_metric, U32),
    MEMBER(route_source, U32),
    MEMBER(route_type, U8),
    MEMBER(route_protocol, U8),
    MEMBER(route_scope, U8),
    MEMBER(nft_family, U8),
    MEMBER(nft_table, TEXT),
    MEMBER(nft_chain, TEXT),
    MEMBER(handle, U64),
    MEMBER(parent, U32),
    MEMBER(chain, U32),
    MEMBER(priority, U16),
    MEMBER(protocol, U16),
    {"prefix_address", offsetof(struct repair_step, prefix.address), 4, U32},
    {"prefix_length", offsetof(struct repair_step, prefix.length), 1, U8},
};
#define MEMBER_COUNT (sizeof members / sizeof *members)

/* Names of devices and chains may hold any byte; JSON holds UTF-8. What is not goes as hex behind a NUL-safe mark. */
static json_t *put_text(const char *text) {
    json_t *plain = str_is_utf8(text, strlen(text)) ? json_string(text) : NULL;
    if (plain)
        return plain;
    _cleanup_free_ char *hex = repair_hex(text, strlen(text));
    return hex ? json_pack("{s:s}", "hex", hex) : NULL;
}

static int get_text(const json_t *json, char *dst, size_t size) {
    const char *hex;
    if (json_is_string(json))
        return str_copy(dst, size, json_string_value(json)) ? 0 : -EMSGSIZE;
    if (json_unpack((json_t *)json, "{s:s!}", "hex", &hex) < 0)
        return -EBADMSG;
    size_t len;
    _cleanup_free_ char *data = repair_unhex(hex, &len);
    if (!data || len >= size)
        return -EBADMSG;
    memcpy(dst, data, len);
    dst[len] = '\0';
    return 0;
}

static uint64_t load_number(const struct member *member, const char *at) {
    uint64_t value = 0;
    memcpy(&value, at, member->size); /* little endian */
    return value;
}

static json_t *step_to_json(const struct repair_step *step) {
    char mac[NET_MAC_TEXT], command[REPAIR_COMMAND_SIZE];
    net_format_mac(step->mac, mac);
    repair_step_command(step, command);
    json_t *json = json_object();
    json_object_set_new(json, "action", json_string(repair_action_name(step->action)));
    json_object_set_new(json, "command", put_text(command));
    json_object_set_new(json, "mac", json_string(mac));
    for (size_t i = 0; i < MEMBER_COUNT; i++) {
        const char *at = (const char *)step + members[i].offset;
        json_t *value = members[i].sort == TEXT  ? put_text(at)
                        : members[i].sort == I32 ? json_integer(*(const int32_t *)(const void *)at)
                                                 : json_integer((json_int_t)load_number(&members[i], at));
        json_object_set_new(json, members[i].name, value);
    }
    return json;
}

static int step_from_json(const json_t *json, struct repair_step *step) {
    const char *action = json_string_value(json_object_get(json, "action"));
    const char *mac = json_string_value(json_object_get(json, "mac"));
    if (!action || !mac || net_parse_mac(mac, &step->mac) < 0)
        return -EBADMSG;
    step->action = REPAIR_ACTION_COUNT;
    for (int i = 0; i < REPAIR_ACTION_COUNT; i++)
        if (strcmp(repair_action_name((enum repair_action)i), action) == 0)
            step->action = (enum repair_action)i;
    if (step->action == REPAIR_ACTION_COUNT)
        return -EBADMSG;
    for (size_t i = 0; i < MEMBER_COUNT; i++) {
        char *at = (char *)step + members[i].offset;
        const json_t *value = json_object_get(json, members[i].name);
        if (members[i].sort == TEXT) {
            int r = get_text(value, at, members[i].size);
            if (r < 0)
                return r;
            continue;
        }
        json_int_t number = json_integer_value(value);
        if (!json_is_integer(value) ||
            (members[i].size < 8 && members[i].sort != I32 && (number < 0 || number >> (8 * members[i].size))) ||
            (members[i].sort == I32 && (number < 0 || number > INT32_MAX)))
            return -EBADMSG;
        memcpy(at, &number, members[i].size);
    }
    return 0;
}

int repair_entry_to_json(const struct repair_entry *entry, char **ret_text) {
    char at[TIME_RFC3339_SIZE];
    time_format_rfc3339(entry->at_ms, at);
    json_t *steps = json_array();
    for (size_t i = 0; i < entry->step_count; i++) {
        const struct repair_done *done = &entry->steps[i];
        json_t *step = json_object();
        json_object_set_new(step, "step", step_to_json(&done->step));
        json_object_set_new(step, "before", put_text(done->before));
        json_object_set_new(step, "after", put_text(done->after));
        json_object_set_new(step, "raw", done->raw ? put_text(done->raw) : json_null());
        json_object_set_new(step, "done", json_boolean(done->done));
        json_object_set_new(step, "undone", json_boolean(done->undone));
        json_array_append_new(steps, step);
    }
    json_t *json = json_pack("{s:s,s:s,s:s,s:I,s:o,s:I,s:s,s:s,s:o}", "schema", SCHEMA, "id", entry->id, "at", at,
                             "at_ms", (json_int_t)entry->at_ms, "netns", put_text(entry->netns), "netns_inode",
                             (json_int_t)entry->netns_inode, "finding", entry->finding, "state",
                             repair_state_name(entry->state), "steps", steps);
    char *text = json ? json_dumps(json, JSON_INDENT(2)) : NULL;
    json_decref(json);
    if (!text)
        return -ENOMEM;
    *ret_text = text;
    return 0;
}

static int done_from_json(const json_t *json, struct repair_done *done) {
    const json_t *raw = json_object_get(json, "raw");
    int r = step_from_json(json_object_get(json, "step"), &done->step);
    if (r == 0)
        r = get_text(json_object_get(json, "before"), done->before, sizeof done->before);
    if (r == 0)
        r = get_text(json_object_get(json, "after"), done->after, sizeof done->after);
    if (r < 0)
        return r;
    if (json_is_string(raw) && !(done->raw = strdup(json_string_value(raw))))
        return -ENOMEM;
    done->done = json_is_true(json_object_get(json, "done"));
    done->undone = json_is_true(json_object_get(json, "undone"));
    return 0;
}

static int entry_from_json(const json_t *json, struct repair_entry *entry) {
    const char *schema, *id, *finding, *state;
    json_int_t at_ms;
    json_t *netns, *steps;
    if (json_unpack((json_t *)json, "{s:s,s:s,s:I,s:o,s:s,s:s,s:o}", "schema", &schema, "id", &id, "at_ms", &at_ms,
                    "netns", &netns, "finding", &finding, "state", &state, "steps", &steps) < 0 ||
        strcmp(schema, SCHEMA) != 0 || !json_is_array(steps) || json_array_size(steps) > REPAIR_STEPS_MAX)
        return -EBADMSG;
    if (!str_copy(entry->id, sizeof entry->id, id) || !str_copy(entry->finding, sizeof entry->finding, finding) ||
        get_text(netns, entry->netns, sizeof entry->netns) < 0)
        return -EBADMSG;
    entry->at_ms = at_ms;
    entry->netns_inode = (uint64_t)json_integer_value(json_object_get(json, "netns_inode"));
    entry->state = REPAIR_STATE_COUNT;
    for (int i = 0; i < REPAIR_STATE_COUNT; i++)
        if (strcmp(repair_state_name((enum repair_state)i), state) == 0)
            entry->state = (enum repair_state)i;
    if (entry->state == REPAIR_STATE_COUNT)
        return -EBADMSG;
    for (size_t i = 0; i < json_array_size(steps); i++) {
        entry->step_count = i + 1;
        int r = done_from_json(json_array_get(steps, i), &entry->steps[i]);
        if (r < 0)
            return r;
    }
    return 0;
}

int repair_entry_from_json(const char *text, size_t len, struct repair_entry **ret, struct err *err) {
    _cleanup_repair_entry_free_ struct repair_entry *entry = calloc(1, sizeof *entry);
    json_error_t where;
    json_t *json = entry ? json_loadb(text, len, JSON_REJECT_DUPLICATES, &where) : NULL;
    if (entry && !json)
        return err_set(err, EBADMSG, "repair.journal", "not JSON: line %d: %s", where.line, where.text);
    int r = entry ? entry_from_json(json, entry) : -ENOMEM;
    json_decref(json);
    if (r < 0)
        return err_sys(err, -r, "repair.journal", "read a journal entry");
    *ret = ptr_steal(entry);
    return 0;
}

/* --- files --- */

static bool is_id(const char *id) {
    size_t len = strlen(id);
    return *id == 'r' && len > 4 && len < REPAIR_ID_SIZE && strspn(id, "rT-0123456789abcdef") == len;
}

int journal_write(const char *dir, const struct repair_entry *entry, struct err *err) {
    _cleanup_free_ char *text = NULL, *path = NULL;
    int r = dir_make(dir, 0700);
    if (r == 0)
        r = repair_entry_to_json(entry, &text);
    if (r == 0 && asprintf(&path, "%s/%s.json", dir, entry->id) < 0) {
        path = NULL;
        r = -ENOMEM;
    }
    if (r == 0)
        r = file_write_atomic(path, text, strlen(text), 0600);
    return r < 0 ? err_sys(err, -r, "repair.journal", "write the journal in %s", dir) : 0;
}

int journal_mark(const char *dir, const char *id, struct err *err) {
    _cleanup_free_ char *path = NULL;
    int r = asprintf(&path, "%s/unfinished", dir) < 0 ? -ENOMEM : 0;
    if (r < 0)
        path = NULL;
    if (r == 0 && id)
        r = file_write_atomic(path, id, strlen(id), 0600);
    if (r == 0 && !id && unlink(path) < 0 && errno != ENOENT)
        r = -errno;
    return r < 0 ? err_sys(err, -r, "repair.journal", "write the journal in %s", dir) : 0;
}

int repair_unfinished(struct repair *repair, struct repair_entry **ret, struct err *err) {
    _cleanup_free_ char *path = NULL, *id = NULL;
    _cleanup_repair_entry_free_ struct repair_entry *entry = NULL;
    size_t len;
    *ret = NULL;
    if (asprintf(&path, "%s/unfinished", repair->dir) < 0) {
        path = NULL;
        return err_sys(err, ENOMEM, "repair.journal", "read the journal");
    }
    int r = file_read(path, REPAIR_ID_SIZE, &id, &len);
    if (r == -ENOENT)
        return 0;
    if (r < 0)
        return err_sys(err, -r, "repair.journal", "read %s", path);
    r = repair_journal_load(repair->dir, id, &entry, err);
    if (r == -ENOENT) /* the folder was tidied up by hand */
        return journal_mark(repair->dir, NULL, err);
    if (r < 0 || !entry)
        return r;
    bool here = strcmp(entry->netns, repair->netns) == 0 && entry->netns_inode == repair->netns_inode;
    if (here && (entry->state == REPAIR_STATE_APPLYING || entry->state == REPAIR_STATE_APPLIED))
        *ret = ptr_steal(entry);
    return 0;
}

int repair_lock(struct repair *repair, int64_t wait_ms, bool *ret_waited, struct err *err) {
    int64_t until_ms = time_monotonic_ms() + wait_ms;
    _cleanup_free_ char *path = NULL;
    bool waited = false;
    int r = dir_make(repair->dir, 0700);
    if (r < 0)
        return err_sys(err, -r, "repair.journal", "make the journal's folder %s", repair->dir);
    if (asprintf(&path, "%s/lock", repair->dir) < 0) {
        path = NULL;
        return err_sys(err, ENOMEM, "repair.journal", "lock the journal");
    }
    fd_close(&repair->lock);
    repair->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (repair->lock < 0)
        return err_sys(err, errno, "repair.journal", "open %s", path);
    while (flock(repair->lock, LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return err_sys(err, errno, "repair.journal", "lock %s", path);
        if (time_monotonic_ms() >= until_ms) {
            err_set(err, EBUSY, "repair.busy", "another doctor repairs something on this machine (it holds %s)", path);
            return err_hint(err, "wait until it is done; `fuser %s` says who it is", path);
        }
        waited = true;
        usleep(20000);
    }
    *ret_waited = waited;
    return 0;
}

static void hint_latest(const char *dir, struct err *err) {
    char(*ids)[REPAIR_ID_SIZE] = NULL;
    size_t count = 0;
    if (repair_journal_list(dir, &ids, &count, NULL) == 0 && ids)
        err_hint(err, "the last repair is %s (of %zu in %s)", ids[count - 1], count, dir);
    else
        err_hint(err, "nothing was repaired that %s knows of", dir);
    free(ids);
}

int repair_journal_load(const char *dir, const char *id, struct repair_entry **ret, struct err *err) {
    _cleanup_free_ char *path = NULL, *text = NULL;
    size_t len;
    char shown[64];
    str_escape(id, strnlen(id, 40), shown, sizeof shown);
    if (!is_id(id)) {
        err_set(err, ENOENT, "repair.no-such-entry", "\"%s\" is not the id of a repair", shown);
        hint_latest(dir, err);
        return -ENOENT;
    }
    if (asprintf(&path, "%s/%s.json", dir, id) < 0) {
        path = NULL;
        return err_sys(err, ENOMEM, "repair.journal", "read the journal");
    }
    int r = file_read(path, FILE_SIZE_MAX, &text, &len);
    if (r == -ENOENT) {
        err_set(err, ENOENT, "repair.no-such-entry", "there is no repair %s in %s", id, dir);
        hint_latest(dir, err);
        return -ENOENT;
    }
    if (r < 0)
        return err_sys(err, -r, "repair.journal", "read %s", path);
    return repair_entry_from_json(text, len, ret, err);
}

static int compare(const void *a, const void *b) {
    return strcmp(a, b);
}

int repair_journal_list(const char *dir, char (**ret_ids)[REPAIR_ID_SIZE], size_t *ret_count, struct err *err) {
    char(*ids)[REPAIR_ID_SIZE] = NULL;
    size_t count = 0, cap = 0;
    DIR *d = opendir(dir);
    if (!d && errno != ENOENT)
        return err_sys(err, errno, "repair.journal", "read %s", dir);
    for (struct dirent *entry; d && count < ENTRIES_MAX && (entry = readdir(d));) {
        char id[REPAIR_ID_SIZE];
        size_t len = strlen(entry->d_name);
        if (len <= 5 || len - 5 >= sizeof id || strcmp(entry->d_name + len - 5, ".json") != 0)
            continue;
        memcpy(id, entry->d_name, len - 5);
        id[len - 5] = '\0';
        if (!is_id(id))
            continue;
        if (count == cap) {
            cap = cap ? cap * 2 : 16;
            void *bigger = reallocarray(ids, cap, sizeof *ids);
            if (!bigger)
                break;
            ids = bigger;
        }
        memcpy(ids[count++], id, sizeof id);
    }
    if (d)
        closedir(d);
    if (ids)
        qsort(ids, count, sizeof *ids, compare);
    *ret_ids = ids;
    *ret_count = count;
    return 0;
}

#include "session/custody.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"
#include "base/time.h"
#include "session/guest_files.h"

#define TICK_MS 500
#define LOOK_MS 15000    /* between two looks at what a VM has */
#define SETTLE_MS 1000   /* that a change must stay: a tool may be writing */
#define RETRY_MS 2000    /* an agent that is away, another owner */
#define TROUBLE_MS 60000 /* what has to be mended by somebody */
#define HASH_SIZE 32

/* A credential that is in a VM, or is to be. */
struct held {
    struct held *next;
    struct custody *all;
    char vm_id[VM_ID_TEXT], user[VM_USER_MAX + 1], provider[SESSION_PROVIDER_MAX + 1];
    bool is_there;    /* its files are in the VM; else they are to be put there */
    bool is_written;  /* they are, but that it owns them could not be stored yet */
    bool is_owned;    /* the VM had them before this daemon was there: never written over before they are looked at */
    bool is_unsure;   /* they have not been looked at since */
    bool is_last;     /* the VM is about to stop or sleep: what it has is taken at once */
    bool has_failed;  /* and that was told */
    uint64_t version; /* that is there */
    uint8_t hash[HASH_SIZE], seen[HASH_SIZE];
    struct provider_file files[PROVIDER_FILES_MAX];
    unsigned file_count;
    struct guest_files *under_way;
    struct secret text; /* that is being put there */
    int64_t due_ms;     /* monotonic */
};

struct custody {
    struct loop *loop;
    struct store *store;
    struct vault *vault;
    struct vms *vms;
    struct loop_timer *timer;
    struct held *first;
};

static void hash_text(const uint8_t *text, size_t len, uint8_t ret_hash[HASH_SIZE]) {
    crypto_generichash(ret_hash, HASH_SIZE, text, len, NULL, 0);
}

static void held_free(struct held *h) {
    for (struct held **at = &h->all->first; *at; at = &(*at)->next)
        if (*at == h) {
            *at = h->next;
            break;
        }
    guest_files_cancel(h->under_way);
    secret_free(&h->text);
    free(h);
}

static void due_in(struct held *h, int64_t delay_ms) {
    h->due_ms = time_monotonic_ms() + delay_ms;
}

static void tell(const struct held *h, const char *event, const char *what) {
    log_event(LOG_LEVEL_INFO, (struct log_about){.event = event, .vm_id = h->vm_id},
              "of user %s for %s, version %llu: %s", h->user, h->provider, (unsigned long long)h->version, what);
}

static bool is_code(const struct err *err, const char *code) {
    return strcmp(err->code, code) == 0;
}

/* Once until it works again. */
static void complain(struct held *h, const struct err *err) {
    if (!h->has_failed)
        log_warning("%s: the credential of user %s for %s: %s", h->vm_id, h->user, h->provider, err->detail);
    h->has_failed = true;
    due_in(h, is_code(err, "vault.owned") || str_starts(err->code, "agent.") ? RETRY_MS : TROUBLE_MS);
}

/* Takes h when it was forgotten meanwhile. */
static void give_up(struct held *h, const struct err *err) {
    if (is_code(err, "vault.none"))
        held_free(h);
    else
        complain(h, err);
}

/* --- into the VM --- */

/* Where that cannot be stored now, the files are not written once more: a tool may renew them meanwhile. */
static void own(struct held *h) {
    struct err err = {0};
    int r = vault_own(h->all->vault, h->user, h->provider, h->vm_id, h->version, &err);
    h->is_there = r == 0;
    h->is_written = r < 0 && !is_code(&err, "vault.changed") && !is_code(&err, "vault.owned");
    if (is_code(&err, "vault.changed")) {
        h->due_ms = 0; /* there is a newer login, which is put there */
        return;
    }
    if (r < 0) {
        give_up(h, &err);
        return;
    }
    h->is_unsure = h->has_failed = false;
    due_in(h, LOOK_MS);
    tell(h, "credential-put", "its files are in the VM");
}

static void on_put(void *userdata, const uint8_t *text, size_t len, const struct err *err) {
    struct held *h = userdata;
    h->under_way = NULL;
    secret_free(&h->text);
    if (err) {
        complain(h, err);
        return;
    }
    own(h);
}

/* What it is made of, for when it is looked at. */
static int remember(struct held *h, const struct secret *text, struct err *err) {
    struct bundle_file file;
    size_t at = 0;
    int r;
    h->file_count = 0;
    while ((r = bundle_next(text->data, text->len, &at, &file)) > 0 && h->file_count < PROVIDER_FILES_MAX)
        h->files[h->file_count++] = file.file;
    if (r < 0 || h->file_count == 0)
        return err_set(err, EBADMSG, "vault.damaged", "what the vault holds is not a login's files");
    hash_text(text->data, text->len, h->hash);
    memcpy(h->seen, h->hash, sizeof h->seen);
    return 0;
}

static int open_text(struct held *h, struct secret *ret_text, struct err *err) {
    struct secret text = {0};
    int r = vault_open(h->all->vault, h->user, h->provider, h->vm_id, &text, &h->version, err);
    if (r == 0)
        r = remember(h, &text, err);
    if (r < 0)
        secret_free(&text);
    else
        *ret_text = text;
    return r;
}

/* Another VM is just getting it. */
static bool is_being_put(const struct held *h) {
    for (const struct held *o = h->all->first; o; o = o->next)
        if (o != h && o->text.data && strcmp(o->user, h->user) == 0 && strcmp(o->provider, h->provider) == 0)
            return true;
    return false;
}

static void put(struct held *h) {
    struct err err = {0};
    if (is_being_put(h)) {
        due_in(h, RETRY_MS);
        return;
    }
    int r = open_text(h, &h->text, &err);
    if (r == 0)
        r = guest_files_write(h->all->vms, h->vm_id, VM_TYPE_CLI, h->text.data, h->text.len, on_put, h, &h->under_way,
                              &err);
    if (r == 0)
        return;
    secret_free(&h->text);
    give_up(h, &err);
}

/* --- and back --- */

static void renew(struct held *h, const uint8_t *text, size_t len) {
    struct err err = {0};
    uint64_t version = 0;
    int r = vault_renew(h->all->vault, h->user, h->provider, h->vm_id, h->version, text, len, &version, &err);
    if (r < 0 && (is_code(&err, "vault.not-owner") || is_code(&err, "vault.changed") || is_code(&err, "vault.none"))) {
        held_free(h); /* there is a newer login, or none any more */
        return;
    }
    if (r < 0) {
        complain(h, &err);
        return;
    }
    h->version = version;
    h->has_failed = false;
    memcpy(h->hash, h->seen, sizeof h->hash);
    due_in(h, LOOK_MS);
    tell(h, "credential-renewed", "a tool in the VM has renewed it");
}

static void on_looked(void *userdata, const uint8_t *text, size_t len, const struct err *err) {
    struct held *h = userdata;
    uint8_t hash[HASH_SIZE];
    h->under_way = NULL;
    due_in(h, LOOK_MS);
    if (err && h->is_unsure && is_code(err, "login.no-file")) {
        h->is_there = h->is_owned = false;
        h->due_ms = 0;
    }
    if (err && is_code(err, "login.torn"))
        due_in(h, SETTLE_MS);
    if (err) /* logged out there, or the agent is away: the vault keeps what it has */
        return;
    h->is_unsure = false;
    hash_text(text, len, hash);
    bool is_same = memcmp(hash, h->hash, sizeof hash) == 0, is_settled = memcmp(hash, h->seen, sizeof hash) == 0;
    memcpy(h->seen, hash, sizeof hash);
    if (!is_same && (is_settled || h->is_last))
        renew(h, text, len);
    else if (!is_same)
        due_in(h, SETTLE_MS);
}

static void look_at(struct held *h) {
    if (guest_files_read(h->all->vms, h->vm_id, VM_TYPE_CLI, h->files, h->file_count, on_looked, h, &h->under_way,
                         NULL) < 0)
        due_in(h, RETRY_MS);
}

/* --- time --- */

/* One that the VM had before this daemon was there is not written again: its files may be newer. */
static int resume(struct held *h, struct err *err) {
    struct secret text = {0};
    int r = open_text(h, &text, err);
    secret_free(&text);
    if (r == 0)
        h->is_there = h->is_unsure = true;
    return r;
}

static void try_resume(struct held *h) {
    struct err err = {0};
    if (resume(h, &err) < 0)
        give_up(h, &err);
}

static void on_timer(void *userdata) {
    struct custody *all = userdata;
    int64_t now_ms = time_monotonic_ms();
    for (struct held *h = all->first, *next; h; h = next) {
        next = h->next;
        if (h->under_way || now_ms < h->due_ms)
            continue;
        if (h->is_there)
            look_at(h);
        else if (h->is_written)
            own(h);
        else if (h->is_owned)
            try_resume(h);
        else
            put(h);
    }
    if (all->first)
        loop_timer_again(all->timer, TICK_MS);
}

/* --- what is to be held --- */

static struct held *find(struct custody *all, const char *vm_id, const char *provider) {
    for (struct held *h = all->first; h; h = h->next)
        if (strcmp(h->vm_id, vm_id) == 0 && strcmp(h->provider, provider) == 0)
            return h;
    return NULL;
}

static void hold(struct custody *all, const struct vm *vm, const struct credential *c) {
    struct held *h = find(all, vm->id, c->provider);
    bool is_owner = strcmp(c->owner_vm, vm->id) == 0;
    if (h && (h->is_there || h->is_owned) && !is_owner) { /* a new login */
        guest_files_cancel(h->under_way);
        h->under_way = NULL;
        h->is_there = h->is_owned = false;
        h->due_ms = 0;
    }
    if (h)
        h->is_last = false;
    if (h || !(h = calloc(1, sizeof *h)))
        return;
    *h = (struct held){.next = all->first, .all = all, .is_owned = is_owner};
    str_copy(h->vm_id, sizeof h->vm_id, vm->id);
    str_copy(h->user, sizeof h->user, c->user);
    str_copy(h->provider, sizeof h->provider, c->provider);
    all->first = h;
    if (is_owner)
        try_resume(h);
    loop_timer_again(all->timer, 0);
}

static void hold_all(struct custody *all, const struct vm *vm) {
    _cleanup_free_ struct credential *list = NULL;
    size_t n = 0;
    struct err err = {0};
    if (store_credential_list(all->store, vm->user, &list, &n, &err) < 0)
        log_error("%s: %s", vm->id, err.detail);
    for (size_t i = 0; i < n; i++)
        hold(all, vm, &list[i]);
}

void custody_stored(struct custody *all, const char *user) {
    _cleanup_free_ struct vm *list = NULL;
    size_t n = 0;
    if (store_vm_list(all->store, user, STORE_LIVE, &list, &n, NULL) < 0)
        return;
    for (size_t i = 0; i < n; i++)
        if (list[i].type == VM_TYPE_CLI && list[i].state == VM_STATE_RUNNING)
            hold_all(all, &list[i]);
}

static void on_stop(struct custody *all, const struct vm *vm) {
    for (struct held *h = all->first, *next; h; h = next) {
        next = h->next;
        if (strcmp(h->vm_id, vm->id) != 0)
            continue;
        struct err err = {0};
        bool has_ended = vm_state_is_end(vm->state);
        if (!has_ended && h->is_owned && !h->is_there && resume(h, &err) < 0)
            complain(h, &err);
        if (has_ended || !h->is_there) {
            held_free(h);
            continue;
        }
        h->is_last = true;
        if (!h->under_way)
            look_at(h);
    }
}

void custody_vm_changed(struct custody *all, const struct vm *vm) {
    if (vm->type == VM_TYPE_CLI && vm->state == VM_STATE_RUNNING)
        hold_all(all, vm);
    else if (vm->type == VM_TYPE_CLI)
        on_stop(all, vm);
    /* What another VM had is free now. */
    for (struct held *h = all->first; h && vm_state_is_end(vm->state); h = h->next)
        if (!h->is_there)
            h->due_ms = 0;
}

bool custody_where(const struct custody *all, const char *user, const char *provider, uint64_t version,
                   char ret_vm[VM_ID_TEXT]) {
    for (const struct held *h = all->first; h; h = h->next)
        if (h->is_there && h->version == version && strcmp(h->user, user) == 0 && strcmp(h->provider, provider) == 0)
            return str_copy(ret_vm, VM_ID_TEXT, h->vm_id);
    return false;
}

int custody_new(const struct custody_params *params, struct custody **ret_custody, struct err *err) {
    _cleanup_free_ struct vm *list = NULL;
    size_t n = 0;
    struct custody *all = calloc(1, sizeof *all);
    if (!all)
        return err_sys(err, ENOMEM, "session.start", "look after credentials");
    *all = (struct custody){.loop = params->loop, .store = params->store, .vault = params->vault, .vms = params->vms};
    int r = loop_timer_new(all->loop, TICK_MS, on_timer, all, &all->timer);
    if (r < 0)
        err_sys(err, -r, "session.start", "look after credentials");
    else
        r = store_vm_list(all->store, NULL, STORE_LIVE, &list, &n, err);
    if (r < 0) {
        custody_free(all);
        return r;
    }
    for (size_t i = 0; i < n; i++)
        if (list[i].type == VM_TYPE_CLI && list[i].state == VM_STATE_RUNNING)
            hold_all(all, &list[i]);
    *ret_custody = all;
    return 0;
}

void custody_free(struct custody *all) {
    if (!all)
        return;
    while (all->first)
        held_free(all->first);
    loop_timer_free(all->timer);
    free(all);
}

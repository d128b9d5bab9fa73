#include "session/custody.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"
#include "base/time.h"
#include "session/guest_files.h"
#include "session/guest_tool.h"
#include "session/providers.h"

#define TICK_MS 500
#define LOOK_MS 15000         /* between two looks at what a VM has */
#define SETTLE_MS 1000        /* that a change must stay: a tool may be writing */
#define RETRY_MS 2000         /* an agent that is away, another owner */
#define TROUBLE_MS 60000      /* what has to be mended by somebody */
#define REFUSED_MAX_MS 960000 /* between two checks of what does not work */
#define LAST_LOOK_MS 3000     /* for which a VM that is to end waits at most */
#define LAST_CHECK_MS 10000   /* and where it has something new, which must be checked */
#define HASH_SIZE 32

/* A credential that is in a VM, or is to be. */
struct held {
    struct held *next;
    struct custody *all;
    char vm_id[VM_ID_TEXT], user[VM_USER_MAX + 1], provider[SESSION_PROVIDER_MAX + 1];
    bool is_there;    /* its files are in the VM; else they are to be put there */
    bool is_written;  /* they are, but that it owns them could not be stored yet */
    bool is_owned;    /* the VM had them before this daemon was there: never written over before they are looked at */
    bool is_missing;  /* its files were, at the last look */
    bool is_out;      /* its user has logged out there */
    bool is_checked;  /* its check has just passed: what is read now is taken */
    bool is_leaving;  /* the VM is about to stop or sleep, or sleeps */
    int64_t last_ms;  /* monotonic: until when it waits for the last look; 0: that has been */
    bool has_failed;  /* and that was told */
    uint64_t version; /* that is there */
    uint8_t hash[HASH_SIZE], seen[HASH_SIZE];
    uint8_t refused[HASH_SIZE]; /* what did not pass the check */
    int64_t refused_ms;         /* monotonic: until when that is not tried again */
    int64_t pause_ms;           /* for which it was refused last */
    struct provider_file files[PROVIDER_FILES_MAX];
    unsigned file_count;
    struct guest_files *under_way;
    struct agent_job *check;
    struct secret text; /* that is being put there */
    int64_t due_ms;     /* monotonic */
};

struct custody {
    struct loop *loop;
    struct store *store;
    struct vault *vault;
    struct vms *vms;
    const char *providers;
    struct loop_timer *timer;
    struct held *first;
};

static void hash_text(const uint8_t *text, size_t len, uint8_t ret_hash[HASH_SIZE]) {
    crypto_generichash(ret_hash, HASH_SIZE, text, len, NULL, 0);
}

static void stop_work(struct held *h) {
    guest_files_cancel(h->under_way);
    agent_job_cancel(h->check);
    h->under_way = NULL;
    h->check = NULL;
}

static void held_free(struct held *h) {
    for (struct held **at = &h->all->first; *at; at = &(*at)->next)
        if (*at == h) {
            *at = h->next;
            break;
        }
    stop_work(h);
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

/* Takes h when it was forgotten meanwhile, or is not to be put anywhere. */
static void give_up(struct held *h, const struct err *err) {
    if (is_code(err, "vault.none") || is_code(err, "vault.logged-out"))
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
    h->is_out = h->is_missing = h->has_failed = false;
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

static void look_at(struct held *h);

/* Nobody waits for that any more. */
static void looked(struct held *h) {
    h->is_checked = false;
    h->last_ms = 0;
    due_in(h, LOOK_MS);
}

static void renew(struct held *h, const uint8_t *text, size_t len) {
    struct err err = {0};
    uint64_t version = 0;
    looked(h);
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
    tell(h, "credential-renewed", "a tool in the VM has renewed it");
}

/* What does not work never takes the place of what did. It may again: the provider was down, or the network. */
static void refuse(struct held *h, const char *why) {
    if (!h->has_failed)
        log_warning("%s: the credential of user %s for %s was changed there, and the vault keeps what it has: %s",
                    h->vm_id, h->user, h->provider, why);
    h->has_failed = true;
    bool is_again = memcmp(h->refused, h->seen, sizeof h->refused) == 0;
    h->pause_ms = is_again && h->pause_ms ? 2 * h->pause_ms : TROUBLE_MS;
    h->pause_ms = h->pause_ms < REFUSED_MAX_MS ? h->pause_ms : REFUSED_MAX_MS;
    memcpy(h->refused, h->seen, sizeof h->refused);
    h->refused_ms = time_monotonic_ms() + h->pause_ms;
    looked(h);
}

static bool is_refused(const struct held *h) {
    return memcmp(h->seen, h->refused, sizeof h->seen) == 0 && time_monotonic_ms() < h->refused_ms;
}

static void on_check_data(void *userdata, enum agent_stream stream, const uint8_t *data, size_t len) {
    struct held *h = userdata;
    if (len > 0)
        agent_job_credit(h->check, stream, (uint32_t)len);
}

static void on_checked(void *userdata, json_t *ok, const struct err *err) {
    struct held *h = userdata;
    h->check = NULL;
    if (guest_tool_ended_well(ok)) {
        h->is_checked = true; /* it may have renewed them once more: read anew */
        look_at(h);
    } else if (!ok && (is_code(err, "agent.gone") || is_code(err, "guest.busy"))) {
        looked(h);
        due_in(h, RETRY_MS);
    } else {
        refuse(h, ok ? "its check failed" : "its check did not end in time, or could not be started");
    }
}

static void start_check(struct held *h) {
    static const struct agent_handler handler = {.data = on_check_data, .done = on_checked};
    struct agent *agent = vms_agent(h->all->vms, h->vm_id);
    struct provider provider;
    struct err err = {0};
    int r = provider_load(h->all->providers, h->provider, &provider, &err);
    if (r == 0 && provider.check.count == 0)
        r = err_set(&err, ENOENT, "login.check", "its profile has no check");
    if (r < 0)
        refuse(h, err.detail);
    else if (!agent || agent_begin(agent, guest_tool_request(&provider, &provider.check, VM_TYPE_CLI),
                                   (int)provider.check_timeout_ms, &handler, h, &h->check, NULL) < 0)
        due_in(h, RETRY_MS);
    else if (h->last_ms)
        h->last_ms = time_monotonic_ms() + LAST_CHECK_MS;
}

/* Return: whether h is still there. */
static bool log_out(struct held *h, bool is_out) {
    struct err err = {0};
    int r = vault_log_out(h->all->vault, h->user, h->provider, h->vm_id, h->version, is_out, &err);
    if (is_code(&err, "vault.none")) {
        held_free(h);
        return false;
    }
    if (r == 0) {
        h->is_out = is_out;
        tell(h, is_out ? "credential-logged-out" : "credential-back",
             is_out ? "its files are gone from the VM: until there is a new login, no VM gets them"
                    : "its files are in the VM again");
    } else if (!is_code(&err, "vault.changed")) { /* else a newer login is on its way */
        complain(h, &err);
    }
    return true;
}

/* A tool that writes a file anew may have none for a moment. */
static void on_unread(struct held *h, const struct err *err) {
    bool is_missing = is_code(err, "login.no-file");
    if (is_code(err, "login.torn") || (is_missing && !h->is_missing)) {
        h->is_missing = is_missing;
        due_in(h, SETTLE_MS);
    } else if (!is_missing || h->is_out || log_out(h, true)) {
        looked(h);
    }
}

static void on_looked(void *userdata, const uint8_t *text, size_t len, const struct err *err) {
    struct held *h = userdata;
    uint8_t hash[HASH_SIZE];
    h->under_way = NULL;
    if (err) {
        on_unread(h, err);
        return;
    }
    h->is_missing = false;
    if (h->is_out && !log_out(h, false))
        return;
    hash_text(text, len, hash);
    bool is_settled = h->is_leaving || memcmp(hash, h->seen, sizeof hash) == 0;
    memcpy(h->seen, hash, sizeof hash);
    if (memcmp(hash, h->hash, sizeof hash) == 0)
        looked(h);
    else if (h->is_checked)
        renew(h, text, len);
    else if (!is_settled)
        due_in(h, SETTLE_MS);
    else if (is_refused(h))
        looked(h);
    else
        start_check(h);
}

static void look_at(struct held *h) {
    struct err err = {0};
    if (guest_files_read(h->all->vms, h->vm_id, VM_TYPE_CLI, h->files, h->file_count, on_looked, h, &h->under_way,
                         &err) == 0)
        return;
    if (!is_code(&err, "agent.busy")) /* there is nobody to be asked */
        looked(h);
    due_in(h, RETRY_MS);
}

/* --- time --- */

/* One that the VM had before this daemon was there is not written again: its files may be newer. */
static int resume(struct held *h, struct err *err) {
    struct secret text = {0};
    int r = open_text(h, &text, err);
    secret_free(&text);
    if (r == 0)
        h->is_there = true;
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
        if (h->under_way || h->check || now_ms < h->due_ms || (h->is_leaving && now_ms >= h->last_ms))
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
        stop_work(h);
        h->is_there = h->is_owned = h->is_checked = false;
        h->due_ms = 0;
    }
    if (h) {
        h->is_leaving = false;
        h->last_ms = 0;
    }
    bool is_for_nobody = c->logged_out_ms && !is_owner;
    if (h || is_for_nobody || !(h = calloc(1, sizeof *h)))
        return;
    *h = (struct held){.next = all->first, .all = all, .is_owned = is_owner, .is_out = c->logged_out_ms != 0};
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

/* It still runs, and waits (custody_is_looking()). */
static void look_last(struct held *h) {
    h->is_leaving = true;
    h->last_ms = time_monotonic_ms() + LAST_LOOK_MS;
    guest_files_cancel(h->under_way); /* what that read may be older */
    h->under_way = NULL;
    if (!h->check)
        look_at(h);
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
        if (has_ended || !h->is_there)
            held_free(h);
        else if (!h->is_leaving)
            look_last(h);
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

bool custody_is_looking(const struct custody *all, const char *vm_id) {
    int64_t now_ms = time_monotonic_ms();
    for (const struct held *h = all->first; h; h = h->next)
        if (h->is_leaving && now_ms < h->last_ms && strcmp(h->vm_id, vm_id) == 0)
            return true;
    return false;
}

bool custody_where(const struct custody *all, const char *user, const char *provider, uint64_t version,
                   char ret_vm[VM_ID_TEXT]) {
    for (const struct held *h = all->first; h; h = h->next)
        if (h->is_there && !h->is_out && h->version == version && strcmp(h->user, user) == 0 &&
            strcmp(h->provider, provider) == 0)
            return str_copy(ret_vm, VM_ID_TEXT, h->vm_id);
    return false;
}

int custody_new(const struct custody_params *params, struct custody **ret_custody, struct err *err) {
    _cleanup_free_ struct vm *list = NULL;
    size_t n = 0;
    struct custody *all = calloc(1, sizeof *all);
    if (!all)
        return err_sys(err, ENOMEM, "session.start", "look after credentials");
    *all = (struct custody){.loop = params->loop,
                            .store = params->store,
                            .vault = params->vault,
                            .vms = params->vms,
                            .providers = params->providers};
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

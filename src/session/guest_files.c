#include "session/guest_files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"

#define TIMEOUT_MS 30000
#define PATH_SIZE 192

struct guest_files {
    struct vms *vms;
    char vm_id[VM_ID_TEXT];
    struct guest_home home;
    guest_files_done_fn *done;
    void *userdata;
    struct agent_job *job;
    /* reading */
    struct provider_file files[PROVIDER_FILES_MAX];
    unsigned count, next;
    struct bundle bundle;
    size_t got; /* bytes of the file that is read */
    /* writing */
    const uint8_t *text;
    size_t len, at;
};

static void release(struct guest_files *f) {
    bundle_free(&f->bundle);
    free(f);
}

static void finish(struct guest_files *f, const struct err *err) {
    bool reads = f->count > 0;
    if (err || !reads)
        f->done(f->userdata, NULL, 0, err);
    else
        f->done(f->userdata, f->bundle.memory.data, f->bundle.len, NULL);
    release(f);
}

static int ask(struct guest_files *f, json_t *request, const struct agent_handler *handler, struct err *err) {
    struct agent *agent = vms_agent(f->vms, f->vm_id);
    if (agent)
        return agent_begin(agent, request, TIMEOUT_MS, handler, f, &f->job, err);
    json_decref(request);
    return err_set(err, EALREADY, "agent.none", "there is no agent in VM %s", f->vm_id);
}

static void path_of(const struct guest_files *f, const struct provider_file *file, char ret_path[PATH_SIZE]) {
    snprintf(ret_path, PATH_SIZE, "%s/%s", f->home.path, file->path);
}

/* --- reading --- */

static int read_next(struct guest_files *f, struct err *err);

static void on_data(void *userdata, enum agent_stream stream, const uint8_t *data, size_t len) {
    struct guest_files *f = userdata;
    size_t room;
    uint8_t *to = bundle_room(&f->bundle, &room);
    if (stream == AGENT_STDOUT && len > 0 && f->got + len <= room)
        memcpy(to + f->got, data, len);
    f->got += stream == AGENT_STDOUT ? len : 0; /* at most a window */
}

static int take(struct guest_files *f, json_t *ok, struct err *err) {
    const struct provider_file *file = &f->files[f->next];
    json_int_t size = json_integer_value(json_object_get(ok, "size"));
    if (f->got == 0)
        return err_set(err, ENOENT, "login.no-file", "~/%s is empty", file->path);
    if (f->got > GUEST_FILE_MAX || size > (json_int_t)GUEST_FILE_MAX)
        return err_set(err, EMSGSIZE, "login.too-large", "~/%s is larger than %zu bytes", file->path, GUEST_FILE_MAX);
    if ((json_int_t)f->got != size)
        return err_set(err, EAGAIN, "login.torn", "~/%s was being written while it was read", file->path);
    int r = bundle_add(&f->bundle, file, f->got, err);
    f->next += r == 0;
    return r;
}

static void on_read(void *userdata, json_t *ok, const struct err *err) {
    struct guest_files *f = userdata;
    struct err own = {0};
    f->job = NULL;
    int r = ok ? take(f, ok, &own) : err_set(&own, err->errnum, err->code, "%s", err->detail);
    if (!ok && strcmp(err->code, "guest.file.failed") == 0)
        err_set(&own, ENOENT, "login.no-file", "~/%s cannot be read in the VM", f->files[f->next].path);
    if (r == 0 && f->next < f->count)
        r = read_next(f, &own);
    else if (r == 0) {
        finish(f, NULL);
        return;
    }
    if (r < 0)
        finish(f, &own);
}

static int read_next(struct guest_files *f, struct err *err) {
    static const struct agent_handler handler = {.data = on_data, .done = on_read};
    char path[PATH_SIZE];
    path_of(f, &f->files[f->next], path);
    f->got = 0;
    return ask(f,
               json_pack("{s:s, s:s, s:[s], s:I}", "op", "file.read", "path", path, "allow", path, "max",
                         (json_int_t)GUEST_FILE_MAX + 1),
               &handler, err);
}

/* --- writing --- */

static int write_next(struct guest_files *f, struct err *err);

static void on_written(void *userdata, json_t *ok, const struct err *err) {
    struct guest_files *f = userdata;
    struct err own = {0};
    f->job = NULL;
    int r = ok ? write_next(f, &own) : err_set(&own, err->errnum, err->code, "%s", err->detail);
    if (r == 0)
        finish(f, NULL);
    else if (r < 0)
        finish(f, &own);
}

/* A file is at most a window (AGENT_WINDOW): it goes at once. Return: 1 under way, 0 nothing is left, -errno. */
static int write_next(struct guest_files *f, struct err *err) {
    static const struct agent_handler handler = {.done = on_written};
    struct bundle_file file;
    char path[PATH_SIZE];
    int r = bundle_next(f->text, f->len, &f->at, &file);
    if (r < 0)
        return err_set(err, EBADMSG, "vault.damaged", "what the vault holds is not a login's files");
    if (r == 0)
        return 0;
    path_of(f, &file.file, path);
    r = ask(f,
            json_pack("{s:s, s:s, s:[s], s:i, s:s, s:b}", "op", "file.write", "path", path, "allow", path, "mode",
                      (int)file.file.mode, "user", f->home.user, "folders", 1),
            &handler, err);
    if (r == 0)
        r = agent_job_write(f->job, file.data, file.len);
    if (r == 0)
        r = agent_job_write(f->job, NULL, 0);
    if (r == 0)
        return 1;
    agent_job_cancel(f->job);
    f->job = NULL;
    return err && *err->code ? r : err_sys(err, -r, "agent.busy", "write %s in the VM", path);
}

/* --- for callers --- */

static struct guest_files *make(struct vms *vms, const char *vm_id, enum vm_type type, guest_files_done_fn *done,
                                void *userdata) {
    struct guest_files *f = calloc(1, sizeof *f);
    if (!f)
        return NULL;
    *f = (struct guest_files){.vms = vms, .home = guest_home(type), .done = done, .userdata = userdata};
    str_copy(f->vm_id, sizeof f->vm_id, vm_id);
    return f;
}

int guest_files_read(struct vms *vms, const char *vm_id, enum vm_type type, const struct provider_file *files,
                     unsigned count, guest_files_done_fn *done, void *userdata, struct guest_files **ret_files,
                     struct err *err) {
    struct guest_files *f = make(vms, vm_id, type, done, userdata);
    if (!f)
        return err_sys(err, ENOMEM, "login.failed", "read the login's files");
    memcpy(f->files, files, count * sizeof *files);
    f->count = count;
    int r = bundle_new(&f->bundle, err);
    if (r == 0)
        r = read_next(f, err);
    if (r < 0)
        release(f);
    else
        *ret_files = f;
    return r;
}

int guest_files_write(struct vms *vms, const char *vm_id, enum vm_type type, const uint8_t *text, size_t len,
                      guest_files_done_fn *done, void *userdata, struct guest_files **ret_files, struct err *err) {
    struct err own = {0};
    struct guest_files *f = make(vms, vm_id, type, done, userdata);
    if (!f)
        return err_sys(err, ENOMEM, "login.failed", "write the login's files");
    f->text = text;
    f->len = len;
    int r = write_next(f, &own);
    if (r == 0)
        r = err_set(&own, EBADMSG, "vault.damaged", "what the vault holds has no files");
    if (r < 0) {
        release(f);
        if (err)
            *err = own;
        return r;
    }
    *ret_files = f;
    return 0;
}

void guest_files_cancel(struct guest_files *f) {
    if (!f)
        return;
    agent_job_cancel(f->job);
    release(f);
}

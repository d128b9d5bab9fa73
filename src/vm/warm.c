#include "vm/warm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/str.h"
#include "base/time.h"
#include "vm/pool.h"
#include "vm/saved.h"
#include "vm/template_boot.h"

#define RETRY_MS 60000
#define NO_ROOM_MS 10000
#define NO_ROOM_DOUBLINGS 6
#define FAILURES_MAX 3

struct slot {
    enum {
        SLOT_UNKNOWN, /* not looked for yet */
        SLOT_NONE,    /* to be made */
        SLOT_READY,
        SLOT_COLD, /* there cannot be one: words */
    } state;
    struct template t; /* ready; or of an image before, and then it fits no VM */
    char links[VMS_PATH_MAX];
    char words[VMS_LINE_MAX];   /* why there is none */
    int failures, without_room; /* in a row */
    int64_t retry_ms;           /* monotonic */
};

struct warm {
    struct vms *vms;
    struct workers *workers; /* one */
    struct slot slots[VM_TYPE_COUNT];
    atomic_bool is_unwanted;
    bool is_busy;
    bool is_making;
    uint32_t making_mib;
    int64_t stirred_ms; /* monotonic: when a VM was on its way last */
};

struct job {
    struct warm *warm;
    bool is_making;
    struct template_wish wish;
    char links[VMS_PATH_MAX];
    int jail_fd;
    int result;
    struct template t;
    char removed[VMS_LINE_MAX];
    struct err err;
};

int warm_new(struct vms *vms, struct warm **ret_warm, struct err *err) {
    struct warm *warm = calloc(1, sizeof *warm);
    if (!warm)
        return err_sys(err, ENOMEM, "vm.start", "start the VM manager");
    warm->vms = vms;
    warm->stirred_ms = time_monotonic_ms();
    for (int i = 0; i < VM_TYPE_COUNT; i++)
        warm->slots[i].t.memory_fd = -1;
    int r = workers_new(vms->loop, "vm-warm", 1, &warm->workers, err);
    if (r < 0) {
        free(warm);
        return r;
    }
    template_sweep(vms->state_dir, template_boot_release, vms);
    *ret_warm = warm;
    return 0;
}

void warm_free(struct warm *warm) {
    if (!warm)
        return;
    atomic_store(&warm->is_unwanted, true);
    workers_free(warm->workers);
    for (int i = 0; i < VM_TYPE_COUNT; i++)
        template_close(&warm->slots[i].t);
    free(warm);
}

/* ---- making and finding one ---- */

static void work(void *userdata) {
    struct job *job = userdata;
    struct vms *vms = job->warm->vms;
    struct template_boot params = {
        .vms = vms, .wish = &job->wish, .jail_fd = job->jail_fd, .is_unwanted = &job->warm->is_unwanted};
    job->result = job->is_making ? template_make(&params, &job->t, &job->err)
                                 : template_open(vms->state_dir, &job->wish, &job->t, job->removed, &job->err);
}

static void tell_ready(const struct job *job) {
    const struct template *t = &job->t;
    log_event(LOG_LEVEL_INFO, (struct log_about){.event = "template-ready"},
              "template %s of %s: %s in %.1f s, %llu MiB of memory", t->name, t->image,
              job->is_making ? "made" : "there, made", (double)t->took_ms / 1000,
              (unsigned long long)(t->ram_bytes >> 20));
}

static void put_off(struct slot *slot, int64_t for_ms, const char *why) {
    slot->retry_ms = time_monotonic_ms() + for_ms;
    str_copy(slot->words, sizeof slot->words, why);
}

static void failed(struct slot *slot, enum vm_type type, const char *why) {
    slot->state = SLOT_NONE;
    slot->failures++;
    slot->retry_ms = slot->failures > 1 ? time_monotonic_ms() + ((int64_t)RETRY_MS << slot->failures) : 0;
    str_copy(slot->words, sizeof slot->words, why);
    if (slot->failures >= FAILURES_MAX)
        slot->state = SLOT_COLD;
    log_event(LOG_LEVEL_WARNING, (struct log_about){.event = "template-failed"}, "template for %s VMs: %s%s",
              vm_type_name(type), why, slot->state == SLOT_COLD ? "; no more is made of this image" : "");
}

/* For a VM, which begins from it, and, before it is made, for the template's memory beside that: in the host's memory, or, where the
 * VMM maps it from its file, on the disk, as what the VMM writes and as what is copied of that. */
static bool has_room(struct warm *warm, const struct template_wish *wish, bool is_making) {
    const struct vmm_ops *ops = wish->choice.ops;
    struct vm vm = {.memory_mib = wish->memory_mib * (is_making && !ops->maps_saved ? 2 : 1)};
    uint64_t disk_mib = (uint64_t)wish->memory_mib * (ops->maps_saved ? 2 : 1);
    return vms_missing_mib(warm->vms, &vm, ops->overhead_mib(&wish->choice)) == 0 &&
           (!is_making || saved_check_room(warm->vms->state_dir, disk_mib, NULL) == 0);
}

/* The host ran out of it on the way, which is not the template's fault. */
static bool was_for_room(const struct job *job) {
    return job->result == -ENOSPC || !has_room(job->warm, &job->wish, true);
}

/* It was not found, or could not be made. */
static void not_ready(struct slot *slot, const struct job *job) {
    const char *words = job->err.detail;
    char no_room[VMS_LINE_MAX];
    slot->state = SLOT_NONE;
    if (!job->is_making || strcmp(job->err.code, "template.unwanted") == 0) {
        str_copy(slot->words, sizeof slot->words, job->is_making ? words : "none has been made yet");
    } else if (strcmp(job->err.code, "warm.not-here") == 0) {
        slot->state = SLOT_COLD;
        str_copy(slot->words, sizeof slot->words, words);
        log_event(LOG_LEVEL_INFO, (struct log_about){.event = "template-none"}, "%s", words);
    } else if (was_for_room(job)) {
        snprintf(no_room, sizeof no_room, "the host has not the room for it now: %.190s", words);
        put_off(slot, (int64_t)NO_ROOM_MS << slot->without_room, no_room);
        slot->without_room += slot->without_room < NO_ROOM_DOUBLINGS;
        log_event(LOG_LEVEL_WARNING, (struct log_about){.event = "template-failed"}, "template for %s VMs: %s",
                  vm_type_name(job->wish.type), no_room);
    } else {
        failed(slot, job->wish.type, words);
    }
}

static void done(void *userdata) {
    struct job *job = userdata;
    struct warm *warm = job->warm;
    struct slot *slot = &warm->slots[job->wish.type];
    warm->is_busy = warm->is_making = false;
    template_close(&slot->t);
    if (*job->removed)
        log_info("a template for %s VMs was removed: %s", vm_type_name(job->wish.type), job->removed);
    if (job->result == 0) {
        slot->t = job->t;
        slot->state = SLOT_READY;
        slot->without_room = 0;
        slot->words[0] = '\0';
        tell_ready(job);
    } else {
        not_ready(slot, job);
    }
    memcpy(slot->links, job->links, sizeof slot->links);
    if (job->jail_fd > 0)
        close(job->jail_fd);
    free(job);
}

static bool is_stirring(const struct vms *vms) {
    for (const struct machine *m = vms->first; m; m = m->next)
        if (!machine_is_spare(m) &&
            (m->is_busy || (m->vm.state != VM_STATE_RUNNING && m->vm.state != VM_STATE_HIBERNATED)))
            return true;
    return false;
}

/* Return: whether it is under way. */
static bool begin(struct warm *warm, enum vm_type type) {
    struct vms *vms = warm->vms;
    struct slot *slot = &warm->slots[type];
    struct job *job = calloc(1, sizeof *job);
    struct err err = {0};
    if (!job)
        return false;
    job->warm = warm;
    job->is_making = slot->state == SLOT_NONE;
    memcpy(job->links, vms->image_links, sizeof job->links);
    if (template_wish(vms, type, &job->wish, &err) < 0) {
        slot->state = strcmp(err.code, "warm.not-here") == 0 ? SLOT_COLD : SLOT_UNKNOWN;
        put_off(slot, RETRY_MS, err.detail);
        free(job);
        return false;
    }
    const struct vmm_ops *ops = job->wish.choice.ops;
    job->wish.is_unwanted = &warm->is_unwanted;
    bool may_begin = has_room(warm, &job->wish, job->is_making);
    if (!may_begin)
        put_off(slot, NO_ROOM_MS, "the host has not the memory or the disk for it now");
    if (may_begin && job->is_making)
        job->jail_fd = ops->is_jailed ? confine_jail(vms->confine, job->wish.choice.binary, ops->opens_tap) : 0;
    atomic_store(&warm->is_unwanted, false);
    warm->making_mib = job->wish.memory_mib;
    warm->is_making = job->is_making;
    warm->is_busy = may_begin && workers_submit(warm->workers, work, done, job) == 0;
    if (!warm->is_busy) {
        warm->is_making = false;
        if (job->jail_fd > 0)
            close(job->jail_fd);
        free(job);
    }
    return warm->is_busy;
}

void warm_check(struct warm *warm) {
    int64_t now_ms = time_monotonic_ms();
    if (!warm || !warm->vms->config->warm.templates)
        return;
    if (is_stirring(warm->vms))
        warm->stirred_ms = now_ms;
    for (int i = 0; i < VM_TYPE_COUNT && !warm->is_busy; i++) {
        struct slot *slot = &warm->slots[i];
        if (memcmp(slot->links, warm->vms->image_links, sizeof slot->links) != 0) {
            memcpy(slot->links, warm->vms->image_links, sizeof slot->links);
            slot->state = SLOT_UNKNOWN;
            slot->failures = slot->without_room = 0;
            slot->retry_ms = 0;
            template_close(&slot->t);
        }
        bool is_quiet = now_ms - warm->stirred_ms >= warm->vms->config->warm.quiet_ms;
        if (now_ms >= slot->retry_ms && (slot->state == SLOT_UNKNOWN || (slot->state == SLOT_NONE && is_quiet)))
            begin(warm, (enum vm_type)i);
    }
}

/* ---- what VMs take of it ---- */

void warm_yield(struct warm *warm, const struct vm *vm, uint32_t overhead_mib) {
    if (!warm || !warm->is_making)
        return;
    struct vm both = {.memory_mib = warm->making_mib + (vm ? vm->memory_mib + overhead_mib : 0)};
    if (vms_missing_mib(warm->vms, &both, overhead_mib) > 0)
        atomic_store(&warm->is_unwanted, true);
}

bool warm_take(struct warm *warm, const struct vm *vm, const struct image *image, const struct vmm_choice *choice,
               struct template *ret_template, char ret_why[VMS_LINE_MAX]) {
    const struct slot *slot = &warm->slots[vm->type];
    const struct template *t = &slot->t;
    *ret_why = '\0';
    if (!warm->vms->config->warm.templates)
        return false;
    if (slot->state != SLOT_READY || t->ops != choice->ops || strcmp(t->image, image->name) != 0 ||
        strcmp(t->accel, choice->accel) != 0 || t->disk_bytes != image->disk_bytes)
        str_copy(ret_why, VMS_LINE_MAX, *slot->words ? slot->words : "its template is not ready");
    else if (t->memory_mib != vm->memory_mib || t->vcpus != vm->vcpus)
        str_copy(ret_why, VMS_LINE_MAX, "its size is not the one that is configured for its type");
    if (*ret_why)
        return false;
    struct template copy = *t;
    copy.memory_fd = fcntl(t->memory_fd, F_DUPFD_CLOEXEC, 3);
    if (copy.memory_fd < 0) {
        snprintf(ret_why, VMS_LINE_MAX, "its template's memory: %s", strerror(errno));
        return false;
    }
    *ret_template = copy;
    return true;
}

bool warm_is_from(const struct warm *warm, enum vm_type type, const char *image) {
    const struct slot *slot = &warm->slots[type];
    return slot->state == SLOT_READY && (!image || strcmp(slot->t.image, image) == 0);
}

/* NULL: another one is there by now, or the daemon ends. */
static struct slot *slot_of(struct warm *warm, const struct template *template) {
    struct slot *slot = warm ? &warm->slots[template->type] : NULL;
    return slot && slot->state == SLOT_READY && strcmp(slot->t.name, template->name) == 0 ? slot : NULL;
}

void warm_worked(struct warm *warm, const struct template *template) {
    struct slot *slot = slot_of(warm, template);
    if (slot)
        slot->failures = 0;
}

void warm_failed(struct warm *warm, const struct template *template, const char *why) {
    struct slot *slot = slot_of(warm, template);
    if (!slot)
        return;
    template_remove(&slot->t);
    template_close(&slot->t);
    failed(slot, template->type, why);
}

/* ---- what is told of it ---- */

size_t vms_warm(struct vms *vms, struct vms_warm ret[VM_TYPE_COUNT]) {
    for (int i = 0; i < VM_TYPE_COUNT; i++) {
        const struct slot *slot = &vms->warm->slots[i];
        bool is_ready = slot->state == SLOT_READY;
        ret[i] = (struct vms_warm){.type = (enum vm_type)i,
                                   .is_ready = is_ready,
                                   .ram_bytes = is_ready ? slot->t.ram_bytes : 0,
                                   .disk_bytes = is_ready ? slot->t.bytes : 0,
                                   .made_ms = is_ready ? slot->t.made_ms : 0,
                                   .took_ms = is_ready ? slot->t.took_ms : 0,
                                   .pool_ready = pool_count(vms, (enum vm_type)i, true),
                                   .pool_wanted = pool_wanted(vms, (enum vm_type)i)};
        str_copy(ret[i].name, sizeof ret[i].name, is_ready ? slot->t.name : "");
        str_copy(ret[i].image, sizeof ret[i].image, is_ready ? slot->t.image : "");
        bool is_off = !vms->config->warm.templates;
        bool is_making = vms->warm->is_making && slot->state == SLOT_NONE;
        str_copy(ret[i].words, sizeof ret[i].words,
                 is_off                       ? "off: [warm] templates = no"
                 : is_ready                   ? ""
                 : *slot->words && !is_making ? slot->words
                 : is_making                  ? "it is being made, or about to be"
                                              : "it has not been looked for yet");
    }
    return VM_TYPE_COUNT;
}

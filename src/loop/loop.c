#include "loop/loop.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/fd.h"

struct post {
    struct post *next;
    loop_fn *fn;
    void *userdata;
};

struct loop {
    sd_event *event;
    int wake_fd;        /* eventfd: something was posted */
    loop_fn *on_signal; /* NULL: a signal ends the loop */
    void *on_signal_userdata;
    pthread_mutex_t lock;
    struct post *first, **last; /* under lock */
};

struct loop_timer {
    sd_event_source *source;
    loop_fn *fn;
    void *userdata;
};

static struct post *take_posts(struct loop *loop) {
    pthread_mutex_lock(&loop->lock);
    struct post *first = loop->first;
    loop->first = NULL;
    loop->last = &loop->first;
    pthread_mutex_unlock(&loop->lock);
    return first;
}

void loop_drain(struct loop *loop) {
    for (struct post *p = take_posts(loop), *next; p; p = next) {
        next = p->next;
        p->fn(p->userdata);
        free(p);
    }
}

static int on_wake(sd_event_source *source, int fd, uint32_t revents, void *userdata) {
    struct loop *loop = userdata;
    uint64_t count;
    if (read(fd, &count, sizeof count) < 0 && errno != EAGAIN)
        return -errno;
    loop_drain(loop);
    return 0;
}

static int on_signal(sd_event_source *source, const struct signalfd_siginfo *info, void *userdata) {
    struct loop *loop = userdata;
    loop_fn *fn = ptr_steal(loop->on_signal);
    if (fn)
        fn(loop->on_signal_userdata);
    else
        loop_quit(loop);
    return 0;
}

void loop_on_signal(struct loop *loop, loop_fn *fn, void *userdata) {
    loop->on_signal = fn;
    loop->on_signal_userdata = userdata;
}

static int add_signals(struct loop *loop) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    if (pthread_sigmask(SIG_BLOCK, &set, NULL) != 0)
        return -errno;
    int r = sd_event_add_signal(loop->event, NULL, SIGTERM, on_signal, loop);
    return r < 0 ? r : sd_event_add_signal(loop->event, NULL, SIGINT, on_signal, loop);
}

static int make_loop(bool takes_signals, struct loop **ret_loop, struct err *err) {
    struct loop *loop = calloc(1, sizeof *loop);
    if (!loop)
        return err_sys(err, ENOMEM, "loop.start", "make the event loop");
    loop->wake_fd = -1;
    loop->last = &loop->first;
    pthread_mutex_init(&loop->lock, NULL);
    int r = sd_event_new(&loop->event);
    if (r >= 0 && takes_signals)
        r = add_signals(loop);
    if (r >= 0) {
        loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        r = loop->wake_fd < 0 ? -errno : 0;
    }
    if (r >= 0)
        r = sd_event_add_io(loop->event, NULL, loop->wake_fd, EPOLLIN, on_wake, loop);
    if (r < 0) {
        loop_free(loop);
        return err_sys(err, -r, "loop.start", "make the event loop");
    }
    *ret_loop = loop;
    return 0;
}

int loop_new(struct loop **ret_loop, struct err *err) {
    return make_loop(true, ret_loop, err);
}

int loop_new_private(struct loop **ret_loop, struct err *err) {
    return make_loop(false, ret_loop, err);
}

void loop_free(struct loop *loop) {
    if (!loop)
        return;
    for (struct post *p = take_posts(loop), *next; p; p = next) {
        next = p->next;
        free(p);
    }
    sd_event_unref(loop->event);
    fd_close(&loop->wake_fd);
    pthread_mutex_destroy(&loop->lock);
    free(loop);
}

sd_event *loop_event(struct loop *loop) {
    return loop->event;
}

int loop_run(struct loop *loop, struct err *err) {
    int r = sd_event_loop(loop->event);
    return r < 0 ? err_sys(err, -r, "loop.run", "the event loop ended") : 0;
}

void loop_quit(struct loop *loop) {
    sd_event_exit(loop->event, 0);
}

int loop_post(struct loop *loop, loop_fn *fn, void *userdata) {
    struct post *p = malloc(sizeof *p);
    if (!p)
        return -ENOMEM;
    *p = (struct post){.fn = fn, .userdata = userdata};
    pthread_mutex_lock(&loop->lock);
    *loop->last = p;
    loop->last = &p->next;
    pthread_mutex_unlock(&loop->lock);
    uint64_t one = 1;
    /* EAGAIN would mean that the loop has been woken already. */
    return write(loop->wake_fd, &one, sizeof one) < 0 && errno != EAGAIN ? -errno : 0;
}

static int on_timer(sd_event_source *source, uint64_t usec, void *userdata) {
    struct loop_timer *timer = userdata;
    timer->fn(timer->userdata);
    return 0;
}

int loop_timer_new(struct loop *loop, int64_t delay_ms, loop_fn *fn, void *userdata, struct loop_timer **ret_timer) {
    struct loop_timer *timer = malloc(sizeof *timer);
    if (!timer)
        return -ENOMEM;
    *timer = (struct loop_timer){.fn = fn, .userdata = userdata};
    uint64_t usec = (uint64_t)(delay_ms > 0 ? delay_ms : 0) * 1000;
    /* Accuracy 0 would mean sd-event's default of 250 ms. */
    int r = sd_event_add_time_relative(loop->event, &timer->source, CLOCK_MONOTONIC, usec, 1000, on_timer, timer);
    if (r < 0) {
        free(timer);
        return r;
    }
    *ret_timer = timer;
    return 0;
}

void loop_timer_again(struct loop_timer *timer, int64_t delay_ms) {
    sd_event_source_set_time_relative(timer->source, (uint64_t)(delay_ms > 0 ? delay_ms : 0) * 1000);
    sd_event_source_set_enabled(timer->source, SD_EVENT_ONESHOT);
}

void loop_timer_free(struct loop_timer *timer) {
    if (!timer)
        return;
    sd_event_source_disable_unref(timer->source);
    free(timer);
}

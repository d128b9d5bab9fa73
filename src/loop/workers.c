#include "loop/workers.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define THREADS_MAX 16

struct job {
    struct job *next;
    loop_fn *work, *done;
    void *userdata;
};

struct workers {
    struct loop *loop;
    pthread_mutex_t lock;
    pthread_cond_t more, idle;
    struct job *first, **last;    /* under lock */
    struct job *finished, **tail; /* under lock: done() is still owed */
    int unfinished;               /* under lock: waiting or being worked on */
    bool is_ending;               /* under lock */
    int thread_count;
    pthread_t thread[THREADS_MAX];
};

/* Runs done() of everything that is finished. Several posts may find it all done by the first of them. */
static void run_finished(struct workers *w) {
    pthread_mutex_lock(&w->lock);
    struct job *first = w->finished;
    w->finished = NULL;
    w->tail = &w->finished;
    pthread_mutex_unlock(&w->lock);
    for (struct job *job = first, *next; job; job = next) {
        next = job->next;
        job->done(job->userdata);
        free(job);
    }
}

static void on_done(void *userdata) {
    run_finished(userdata);
}

static struct job *take(struct workers *w) {
    pthread_mutex_lock(&w->lock);
    while (!w->first && !w->is_ending)
        pthread_cond_wait(&w->more, &w->lock);
    struct job *job = w->first;
    if (job) {
        w->first = job->next;
        if (!w->first)
            w->last = &w->first;
    }
    pthread_mutex_unlock(&w->lock);
    return job;
}

static void *run(void *userdata) {
    struct workers *w = userdata;
    for (struct job *job; (job = take(w));) {
        job->work(job->userdata);
        pthread_mutex_lock(&w->lock);
        job->next = NULL;
        *w->tail = job;
        w->tail = &job->next;
        w->unfinished--;
        pthread_cond_broadcast(&w->idle);
        pthread_mutex_unlock(&w->lock);
        /* Without memory for it, the next post or workers_finish() runs what this one would have. */
        loop_post(w->loop, on_done, w);
    }
    return NULL;
}

int workers_new(struct loop *loop, const char *name, int threads, struct workers **ret_workers, struct err *err) {
    struct workers *w = calloc(1, sizeof *w);
    if (!w)
        return err_sys(err, ENOMEM, "loop.start", "start the workers");
    w->loop = loop;
    w->last = &w->first;
    w->tail = &w->finished;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->more, NULL);
    pthread_cond_init(&w->idle, NULL);
    /* Signals are the loop's. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int r = 0;
    for (; r == 0 && w->thread_count < threads && w->thread_count < THREADS_MAX; w->thread_count += r == 0) {
        r = pthread_create(&w->thread[w->thread_count], NULL, run, w);
        if (r == 0)
            pthread_setname_np(w->thread[w->thread_count], name);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r != 0) {
        workers_free(w);
        return err_sys(err, r, "loop.start", "start the workers");
    }
    *ret_workers = w;
    return 0;
}

int workers_submit(struct workers *w, loop_fn *work, loop_fn *done, void *userdata) {
    struct job *job = malloc(sizeof *job);
    if (!job)
        return -ENOMEM;
    *job = (struct job){.work = work, .done = done, .userdata = userdata};
    pthread_mutex_lock(&w->lock);
    *w->last = job;
    w->last = &job->next;
    w->unfinished++;
    pthread_cond_signal(&w->more);
    pthread_mutex_unlock(&w->lock);
    return 0;
}

void workers_finish(struct workers *w) {
    for (bool more = true; more;) {
        pthread_mutex_lock(&w->lock);
        while (w->unfinished > 0)
            pthread_cond_wait(&w->idle, &w->lock);
        more = w->finished != NULL;
        pthread_mutex_unlock(&w->lock);
        run_finished(w);
    }
}

void workers_free(struct workers *w) {
    if (!w)
        return;
    workers_finish(w);
    pthread_mutex_lock(&w->lock);
    w->is_ending = true;
    pthread_cond_broadcast(&w->more);
    pthread_mutex_unlock(&w->lock);
    for (int i = 0; i < w->thread_count; i++)
        pthread_join(w->thread[i], NULL);
    /* Posts that are still waiting name it; they find nothing to do. */
    loop_drain(w->loop);
    pthread_cond_destroy(&w->idle);
    pthread_cond_destroy(&w->more);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "base/proc.h"
#include "base/time.h"
#include "cmocka_all.h"
#include "loop/loop.h"
#include "loop/workers.h"

struct counter {
    struct loop *loop;
    struct loop_timer *timer;
    int posts, ticks;
};

static void on_post(void *userdata) {
    struct counter *c = userdata;
    if (++c->posts == 1000 && c->ticks >= 3)
        loop_quit(c->loop);
}

static void on_tick(void *userdata) {
    struct counter *c = userdata;
    if (++c->ticks < 3)
        loop_timer_again(c->timer, 5);
    else if (c->posts == 1000)
        loop_quit(c->loop);
}

static void *post_many(void *userdata) {
    struct counter *c = userdata;
    for (int i = 0; i < 500; i++)
        loop_post(c->loop, on_post, c);
    return NULL;
}

static void posts_and_timers(void **state) {
    struct counter c = {0};
    struct err err;
    pthread_t threads[2];
    assert_int_equal(loop_new(&c.loop, &err), 0);
    assert_int_equal(loop_timer_new(c.loop, 5, on_tick, &c, &c.timer), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, post_many, &c), 0);
    assert_int_equal(loop_run(c.loop, &err), 0);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(c.posts, 1000);
    assert_int_equal(c.ticks, 3);
    assert_int_equal(loop_post(c.loop, on_post, &c), 0);
    loop_drain(c.loop);
    assert_int_equal(c.posts, 1001);
    loop_timer_free(c.timer);
    loop_timer_free(NULL);
    loop_post(c.loop, on_post, &c);
    loop_free(c.loop);
    assert_int_equal(c.posts, 1001);
}

static void wait_end(int pidfd, char words[96]) {
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 10000), 1);
    assert_int_equal(proc_reap(pidfd, words, 96), 1);
}

static void processes(void **state) {
    const char *const sh[] = {"/bin/sh", "-c", "read x <&3; echo \"$x $HOME\"; exit 7", NULL};
    const char *const forever[] = {"/bin/sleep", "100", NULL};
    const char *const absent[] = {"/nonexistent/program", NULL};
    int in[2], out[2], pidfd, again;
    pid_t pid;
    uint64_t start;
    char words[96], text[32] = "";
    struct err err;
    assert_int_equal(pipe(in), 0);
    assert_int_equal(pipe(out), 0);
    assert_int_equal(write(in[1], "hi\n", 3), 3);
    struct proc_spec spec = {.argv = sh, .fds = in, .fd_count = 1, .output_fd = out[1], .no_new_privs = true};
    assert_int_equal(proc_start(&spec, &pid, &pidfd, &err), 0);
    wait_end(pidfd, words);
    assert_string_equal(words, "exit status 7");
    assert_int_equal(read(out[0], text, sizeof text - 1), 4); /* no HOME: nothing of our environment */
    assert_string_equal(text, "hi \n");
    close(pidfd);

    spec = (struct proc_spec){.argv = forever, .output_fd = -1};
    assert_int_equal(proc_start(&spec, &pid, &pidfd, &err), 0);
    assert_int_equal(proc_reap(pidfd, words, sizeof words), 0);
    assert_int_equal(proc_start_time(pid, &start), 0);
    assert_int_equal(proc_open(pid, start + 1, &again), -ESRCH);
    assert_int_equal(proc_open(pid, start, &again), 0);
    assert_int_equal(proc_signal(again, SIGKILL), 0);
    wait_end(pidfd, words);
    assert_string_equal(words, "killed by signal 9 (Killed)");
    assert_int_equal(proc_open(pid, start, &pid), -ESRCH);
    assert_int_equal(proc_reap(pidfd, words, sizeof words), -ECHILD);

    spec.argv = absent;
    assert_int_equal(proc_start(&spec, &pid, &pidfd, &err), -ENOENT);
    assert_non_null(strstr(err.detail, "/nonexistent/program: execute it"));
    for (int i = 0; i < 2; i++) {
        close(in[i]);
        close(out[i]);
    }
}

struct worked {
    struct workers *workers;
    pthread_t worked_on[64], done_on[64];
    int n, again;
};

static struct worked worked;

static void work(void *userdata) {
    size_t i = (size_t)(int *)userdata;
    usleep(1000);
    worked.worked_on[i] = pthread_self();
}

static void done(void *userdata) {
    size_t i = (size_t)(int *)userdata;
    worked.done_on[i] = pthread_self();
    worked.n++;
    if (worked.again && worked.again--) /* done() may submit more, and workers_finish() waits for that too */
        assert_int_equal(workers_submit(worked.workers, work, done, userdata), 0);
}

static void work_is_done_elsewhere_and_ends_here(void **state) {
    struct loop *loop;
    struct err err;
    assert_int_equal(loop_new(&loop, &err), 0);
    assert_int_equal(workers_new(loop, "test", 3, &worked.workers, &err), 0);
    worked.again = 5;
    for (size_t i = 0; i < 64; i++)
        assert_int_equal(workers_submit(worked.workers, work, done, (void *)i), 0);
    workers_finish(worked.workers);
    assert_int_equal(worked.n, 69);
    int threads = 0;
    for (int i = 0; i < 64; i++) {
        assert_true(pthread_equal(worked.done_on[i], pthread_self()));
        assert_false(pthread_equal(worked.worked_on[i], pthread_self()));
        threads += !pthread_equal(worked.worked_on[i], worked.worked_on[0]);
    }
    assert_true(threads > 0);
    for (size_t i = 0; i < 8; i++)
        assert_int_equal(workers_submit(worked.workers, work, done, (void *)i), 0);
    workers_free(worked.workers);
    assert_int_equal(worked.n, 77);
    workers_free(NULL);
    loop_free(loop);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(posts_and_timers),
        cmocka_unit_test(processes),
        cmocka_unit_test(work_is_done_elsewhere_and_ends_here),
    };
    return cmocka_run_group_tests_name("loop", tests, NULL, NULL);
}

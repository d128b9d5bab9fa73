/* The daemon's event loop: sd-event, with what it lacks: a call from another thread, and timers that own themselves.
 * Everything here but loop_post() belongs to the loop's thread. */
#pragma once

#include <stdint.h>
#include <systemd/sd-event.h>

#include "base/err.h"

struct loop;
struct loop_timer;

typedef void loop_fn(void *userdata);

int loop_new(struct loop **ret_loop, struct err *err);
void loop_free(struct loop *loop);

/* One for a thread that has to wait for what was written for a loop: signals stay those of the daemon's own. */
int loop_new_private(struct loop **ret_loop, struct err *err);

sd_event *loop_event(struct loop *loop);

/* Runs until loop_quit(), SIGTERM or SIGINT. Return: 0 or -errno. */
int loop_run(struct loop *loop, struct err *err);
void loop_quit(struct loop *loop);

/* The first SIGTERM or SIGINT calls fn, which sees to it that loop_quit() is called; a second one ends the loop. */
void loop_on_signal(struct loop *loop, loop_fn *fn, void *userdata);

/* Runs fn on the loop's thread, soon. Any thread may call it. What is still waiting when the loop is freed is not
 * run. Return: 0 or -ENOMEM. */
int loop_post(struct loop *loop, loop_fn *fn, void *userdata);

/* Runs what was posted, now. For the time after the loop has ended. */
void loop_drain(struct loop *loop);

/* Calls fn once after delay_ms. loop_timer_again() arms it anew, from its own callback too. Return: 0 or -errno. */
int loop_timer_new(struct loop *loop, int64_t delay_ms, loop_fn *fn, void *userdata, struct loop_timer **ret_timer);
void loop_timer_again(struct loop_timer *timer, int64_t delay_ms);

/* Takes NULL. May be called from the timer's own callback. */
void loop_timer_free(struct loop_timer *timer);

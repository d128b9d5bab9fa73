/* A few threads for what blocks: files, network devices, processes that are waited for. The loop hands them work and
 * gets it back finished. Work touches nothing that belongs to the loop's thread; it is given copies. */
#pragma once

#include "loop/loop.h"

struct workers;

/* Starts the threads (1 to 16). `name` is what ps shows of them, at most 15 bytes. */
int workers_new(struct loop *loop, const char *name, int threads, struct workers **ret_workers, struct err *err);

/* Runs work(userdata) on one of the threads and then done(userdata) on the loop's thread. What is submitted first begins
 * first. Only the loop's thread may call it. Return: 0 or -ENOMEM, and then neither is called. */
int workers_submit(struct workers *workers, loop_fn *work, loop_fn *done, void *userdata);

/* Waits until all that was submitted is done, what done() submits included. For the time before the loop runs, and
 * after. */
void workers_finish(struct workers *workers);

/* Finishes, and ends the threads. Takes NULL. */
void workers_free(struct workers *workers);

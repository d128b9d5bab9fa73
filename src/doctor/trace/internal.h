/* Shared by the files of this folder. */
#pragma once

#include "doctor/trace/trace.h"

/* --- tracefs.c --- */
struct tracefs;

/* Makes the instance and switches the events on. Return: 0 or -errno with `why` in words. */
int tracefs_start(const struct trace_request *request, struct tracefs **ret, char *why, size_t why_size);

/* Reads all events into the result, removes the instance, frees. */
void tracefs_stop(struct tracefs *fs, struct trace_result *result);
void tracefs_abort(struct tracefs *fs);

/* --- nftrace.c --- */
struct nftrace;
int nftrace_start(const struct trace_request *request, struct nftrace **ret, char *why, size_t why_size);
int nftrace_follow(struct nftrace *nft, uint32_t address);
int nftrace_fd(const struct nftrace *nft);

/* Takes what the kernel has told so far. */
void nftrace_drain(struct nftrace *nft, struct trace_result *result);
void nftrace_stop(struct nftrace *nft);

/* --- result.c --- */
/* Room for one more; NULL when the limit is reached (the result is then marked as truncated). */
struct trace_event *trace_result_add_event(struct trace_result *result);
struct trace_stack *trace_result_add_stack(struct trace_result *result);
struct trace_rule *trace_result_add_rule(struct trace_result *result);

/* Reads a whole trace file's text. */
void trace_result_read(struct trace_result *result, const char *text, size_t length);

/* --- hook.c --- */
bool trace_stack_at_port(const struct trace_stack *stack);

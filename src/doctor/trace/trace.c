#include "doctor/trace/trace.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "doctor/trace/internal.h"

struct trace {
    struct tracefs *tracefs;
    struct nftrace *nftrace;
    struct trace_result *result;
};

int trace_start(const struct trace_request *request, struct trace **ret) {
    struct trace *trace = calloc(1, sizeof *trace);
    struct trace_result *result = calloc(1, sizeof *result);
    if (!trace || !result) {
        free(trace);
        free(result);
        return -ENOMEM;
    }
    trace->result = result;
    int r = nftrace_start(request, &trace->nftrace, result->nftrace.why, sizeof result->nftrace.why);
    result->nftrace.had = r == 0;
    result->nftrace.errnum = -r;
    r = tracefs_start(request, &trace->tracefs, result->tracefs.why, sizeof result->tracefs.why);
    result->tracefs.had = r == 0;
    result->tracefs.errnum = -r;
    *ret = trace;
    return 0;
}

void trace_poll(struct trace *trace) {
    if (trace->nftrace)
        nftrace_drain(trace->nftrace, trace->result);
}

int trace_follow(struct trace *trace, uint32_t address) {
    return trace->nftrace ? nftrace_follow(trace->nftrace, address) : -ENOTCONN;
}

int trace_stop(struct trace *trace, struct trace_result **ret) {
    trace_poll(trace);
    if (trace->tracefs)
        tracefs_stop(trace->tracefs, trace->result);
    nftrace_stop(trace->nftrace);
    *ret = trace->result;
    free(trace);
    return 0;
}

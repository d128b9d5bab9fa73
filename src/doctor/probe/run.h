/* One run in progress, shared by the files that ask (ask.c), hear (hear.c), let the canary talk (canary_talk.c) and
 * keep the time (run.c). */
#pragma once

#include <poll.h>

#include "doctor/probe/internal.h"

#define STAGE_MS 25      /* that a stage waits for its answers, when they are late */
#define RETRY_MS 1000    /* as ARP's own retry */
#define SLOW_US 150000   /* an ARP answer that took so long tells of a busy guest … */
#define SLOW_MS 2500     /* … which is waited for so long */
#define LATE_MS 800      /* for what was asked only when the rest was over */
#define RAW_AFTER_MS 150 /* without an answer to connect(), ask with a complete checksum */
#define FREE_MS 90       /* an address that nobody claimed for so long is free */
#define FREE_AGAIN_MS 40
#define FREE_TRIES 4
#define CANARY_MS 400 /* for the canary's port to come up and find an address */
#define SETTLE_MS 3   /* for the last events */
#define ECHO_PAYLOAD 56
#define LARGE_PAYLOAD(size) ((size)-28)
#define OUTSIDE_AGAIN_MS 50 /* hints: asked once more, and then no longer waited for */
#define OUTSIDE_MS 120
#define PORTS_MANY 64 /* of a bridge: copies of broadcasts are not all captured then */
#define STILL_MS 300  /* light: answers still come */
#define LIGHT_MS 4000
#define TCP_MAX 256 /* connections at once */

struct run {
    const struct probe_request *request;
    struct probe_result *result;
    struct rtnl *rtnl;
    struct tagger tagger;
    struct canary canary;
    struct trace *trace;
    int capture, packet, icmp, large;
    int *tcp;      /* a socket each target; -1 */
    int *reserved; /* holds raw_port */
    uint16_t *tcp_port, *raw_port;
    struct pollfd *poll;
    struct window *windows;
    size_t window_count, window_max;
    int64_t began_ns, end_ns, answered_ns; /* answered: the last answer */
    bool retried, canary_asked;
    uint32_t outside;   /* an address of the host beyond the bridge's network; 0: none */
    int64_t outside_ns; /* when it was first asked from */
    size_t tcp_open;
    uint8_t *second; /* a SECOND_… each target: what again.c found */
};
enum { SECOND_NONE, SECOND_GOOD, SECOND_DEAD, SECOND_UNCLEAR };

/* --- ask.c --- */
int64_t run_now_ns(void);
int64_t run_realtime_offset(void);
struct probe_answer *run_answer(struct run *run, size_t target, enum probe_kind kind);
void run_why_not(struct probe_answer *answer, const char *why);
void run_note_sent(struct run *run, size_t target, enum probe_kind kind, int64_t from_ns, int r);
int run_send_packet(struct run *run, const uint8_t *frame, size_t length);
struct frame_ends run_ends_to(const struct run *run, struct net_mac mac, uint32_t ip);
void run_ask_arp(struct run *run, size_t target, enum probe_kind kind, struct net_mac to);
void run_ask_echo(struct run *run, size_t target, enum probe_kind kind, uint32_t ip, uint16_t sequence, size_t payload);
void run_ask_echo_by_frame(struct run *run, size_t target); /* PROBE_ICMP without the kernel's route */
void run_ask_large(struct run *run, size_t target);
void run_ask_tcp(struct run *run, size_t target);
void run_ask_tcp_raw(struct run *run, size_t target);

/* --- hear.c --- */
void run_note_answer(struct run *run, size_t target, enum probe_kind kind, int64_t at_ns, int errnum);
void run_read_capture(struct run *run);
int run_errno_of_icmp(uint8_t type, uint8_t code);
void run_read_icmp(struct run *run, int fd);
void run_read_tcp(struct run *run, size_t target);

/* --- canary_talk.c --- */
void run_read_canary(struct run *run);
void run_canary_asks_arp(struct run *run, size_t target, enum probe_kind kind, uint32_t ip);
void run_canary_asks_echo(struct run *run, size_t target, enum probe_kind kind, struct net_mac mac, uint32_t ip);
bool run_guest_mac(struct run *run, size_t target, struct net_mac *ret);
void run_canary_try_next(struct run *run);
void run_canary_step(struct run *run);
bool run_canary_is_busy(const struct run *run);

/* --- run.c --- */
void run_pump(struct run *run, int timeout_ms); /* hears whatever comes within this time */

/* --- again.c --- */
void run_stage_again(struct run *run);
bool run_is_slow(struct run *run); /* a guest answers late */

/* --- hints.c --- */
void run_stage_first(struct run *run);
void run_stage_outside(struct run *run);
/* Asks again when it is time. Return: whether an answer is still waited for. */
bool run_outside_is_open(struct run *run);

/* What comes back: by the capture, by the sockets. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <linux/neighbour.h>
#include <net/ethernet.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "doctor/probe/run.h"
#include "netlink/link.h"
#include "netlink/neigh.h"
#include "netlink/netns.h"

void run_note_answer(struct run *run, size_t target, enum probe_kind kind, int64_t at_ns, int errnum) {
    struct probe_answer *answer = run_answer(run, target, kind);
    if (!answer->answered) {
        answer->answered = true;
        answer->answer_errno = errnum;
        answer->rtt_us = answer->sent_ns ? (at_ns - answer->sent_ns) / 1000 : -1;
    }
    if (answer->answer_errno && !errnum)
        answer->answer_errno = 0;
    answer->answers++;
    run->answered_ns = run_now_ns();
}

static void keep_frame(struct run *run, const struct probe_frame *frame) {
    struct probe_result *result = run->result;
    if (result->frame_count >= PROBE_FRAMES_MAX) {
        result->frames_truncated = true;
        return;
    }
    size_t n = result->frame_count;
    if ((n & (n - 1)) == 0 && (n == 0 || n >= 64)) {
        struct probe_frame *more = reallocarray(result->frames, n ? n * 2 : 64, sizeof *more);
        if (!more) {
            result->frames_truncated = true;
            return;
        }
        result->frames = more;
    }
    result->frames[result->frame_count++] = *frame;
}

/* What only the capture can tell: an answer to our own ARP or SYN has reached the bridge device. */
static void answer_by_frame(struct run *run, const struct probe_frame *frame) {
    if (frame->tag == TRACE_NO_TAG || !frame->reply || frame->outgoing || frame->ifindex != run->request->bridge)
        return;
    enum probe_kind kind = (enum probe_kind)(frame->tag % PROBE_KIND_COUNT);
    size_t target = (size_t)frame->tag / PROBE_KIND_COUNT;
    if (kind == PROBE_ARP || kind == PROBE_ARP_UNICAST)
        run_note_answer(run, target, kind, frame->at_ns, 0);
    if (kind == PROBE_TCP_RAW)
        run_note_answer(run, target, kind, frame->at_ns, frame->kind == PROBE_FRAME_RST ? ECONNREFUSED : 0);
}

static void watch_candidate(struct run *run, const struct probe_frame *frame) {
    bool claims = frame->kind == PROBE_FRAME_IS_AT || frame->kind == PROBE_FRAME_WHO_HAS;
    if (!run->canary.settled && run->canary.ip && claims && frame->source_ip == run->canary.ip)
        run->canary.denied = true;
}

void run_read_capture(struct run *run) {
    struct probe_frame frame;
    for (int i = 0; i < 512; i++) {
        int r = capture_next(run->capture, run->result->realtime_offset_ns, &frame);
        if (r <= 0)
            return;
        watch_candidate(run, &frame);
        tag_frame(&run->tagger, &frame);
        count_frame(&run->tagger, &frame);
        answer_by_frame(run, &frame);
        keep_frame(run, &frame);
    }
}

int run_errno_of_icmp(uint8_t type, uint8_t code) {
    if (type == ICMP_TIME_EXCEEDED)
        return EHOSTUNREACH;
    switch (code) {
    case ICMP_NET_UNREACH:
        return ENETUNREACH;
    case ICMP_PORT_UNREACH:
        return ECONNREFUSED;
    case ICMP_PROT_UNREACH:
        return ENOPROTOOPT;
    case ICMP_FRAG_NEEDED:
        return EMSGSIZE;
    case ICMP_PKT_FILTERED:
    case ICMP_HOST_ANO:
    case ICMP_NET_ANO:
        return EACCES;
    default:
        return EHOSTUNREACH;
    }
}

/* An IP packet, as a raw socket gives it: every raw socket gets all of them. */
static void take_icmp(struct run *run, const uint8_t *packet, size_t length, bool large, int64_t at_ns) {
    uint8_t framed[14 + 512] = {0};
    struct probe_frame frame;
    size_t n = length < 512 ? length : 512;
    memcpy(framed + 14, packet, n);
    framed[6] = 0x02; /* a source that a card could have */
    framed[12] = 0x08;
    frame_parse(framed, n + 14, length + 14, &frame);
    tag_frame(&run->tagger, &frame);
    enum probe_kind kind = (enum probe_kind)(frame.tag % PROBE_KIND_COUNT);
    if (frame.tag == TRACE_NO_TAG || !frame.reply || (kind == PROBE_LARGE) != large)
        return;
    if (kind == PROBE_CANARY_ICMP || kind == PROBE_CANARY_ICMP_HOST ||
        kind == PROBE_EGRESS) /* the canary's to answer */
        return;
    bool is_error = frame.kind == PROBE_FRAME_ICMP_ERROR;
    run_note_answer(run, (size_t)frame.tag / PROBE_KIND_COUNT, kind, at_ns,
                    is_error ? run_errno_of_icmp(frame.icmp_type, frame.icmp_code) : 0);
}

void run_read_icmp(struct run *run, int fd) {
    uint8_t packet[2048];
    for (int i = 0; i < 512 && fd >= 0; i++) {
        ssize_t n = recv(fd, packet, sizeof packet, MSG_DONTWAIT);
        if (n <= 0)
            return;
        take_icmp(run, packet, (size_t)n, fd == run->large, run_now_ns());
    }
}

void run_read_tcp(struct run *run, size_t target) {
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(run->tcp[target], SOL_SOCKET, SO_ERROR, &error, &length);
    struct probe_answer *answer = run_answer(run, target, PROBE_TCP);
    if (error == 0 || error == ECONNREFUSED || error == ECONNRESET)
        run_note_answer(run, target, PROBE_TCP, run_now_ns(), error);
    else
        answer->answer_errno = error;
    fd_close(&run->tcp[target]);
    run->tcp_open--;
}

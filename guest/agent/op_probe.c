/* A ping and a TCP connect of the guest's own: the path as it is from this side. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"
#include "base/fd.h"
#include "base/time.h"

struct probe {
    int64_t began_ms;
    uint16_t id;
};

static void free_probe(struct job *job) {
    free(job->data);
}

static void answer(struct job *job, bool good, const char *why) {
    struct probe *probe = job->data;
    job_answer(job,
               json_pack("{s:b, s:I, s:o}", "answered", good, "ms", (json_int_t)(time_monotonic_ms() - probe->began_ms),
                         "why", why ? json_string(why) : json_null()));
}

static void on_deadline(struct job *job) {
    answer(job, false, "no answer in time");
}

static int prepare(struct job *job, int fd, short events, void (*on_ready)(struct job *, short), struct err *err) {
    struct probe *probe = calloc(1, sizeof *probe);
    if (!probe) {
        close(fd);
        return err_sys(err, ENOMEM, "probe.failed", "probe");
    }
    *probe = (struct probe){.began_ms = time_monotonic_ms(), .id = (uint16_t)(getpid() ^ (int)job->id)};
    job->data = probe;
    job->on_free = free_probe;
    job->on_deadline = on_deadline;
    job->on_ready = on_ready;
    job->wait_fd = fd;
    job->wait_events = events;
    return 0;
}

static int address_of(const char *text, struct sockaddr_in *ret, struct err *err) {
    *ret = (struct sockaddr_in){.sin_family = AF_INET};
    return inet_pton(AF_INET, text, &ret->sin_addr) == 1
               ? 0
               : err_set(err, EINVAL, "bad-request", "%s is not an IPv4 address", text);
}

/* ---- TCP ---- */

static void on_connected(struct job *job, short revents) {
    int error = 0;
    socklen_t len = sizeof error;
    getsockopt(job->wait_fd, SOL_SOCKET, SO_ERROR, &error, &len);
    answer(job, error == 0, error ? strerror(error) : NULL);
}

/* {"op":"connect","address":"192.168.0.1","port":80} */
int op_connect(struct job *job, json_t *request, struct err *err) {
    const char *text;
    int port;
    struct sockaddr_in to;
    if (request_unpack(request, err, "{s:s, s:i}", "address", &text, "port", &port) < 0 ||
        address_of(text, &to, err) < 0)
        return -EINVAL;
    if (port < 1 || port > 65535)
        return err_set(err, EINVAL, "bad-request", "%d is not a port", port);
    to.sin_port = htons((uint16_t)port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_sys(err, errno, "probe.failed", "make a socket");
    int r = prepare(job, fd, POLLOUT, on_connected, err);
    if (r == 0 && connect(fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS)
        answer(job, false, strerror(errno)); /* "Network is unreachable" is an answer to the question */
    return r;
}

/* ---- ICMP ---- */

static uint16_t checksum(const void *data, size_t len) {
    const uint8_t *p = data;
    uint32_t sum = 0;
    for (size_t i = 0; i + 1 < len; i += 2)
        sum += (uint32_t)p[i] << 8 | p[i + 1];
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return htons((uint16_t)~sum);
}

static void on_icmp(struct job *job, short revents) {
    struct probe *probe = job->data;
    uint8_t packet[1500];
    ssize_t n = recv(job->wait_fd, packet, sizeof packet, MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN) {
        answer(job, false, strerror(errno));
        return;
    }
    size_t head = n > 0 ? (size_t)(packet[0] & 15) * 4 : 0;
    struct icmphdr icmp;
    if (n < 0 || (size_t)n < head + sizeof icmp)
        return;
    memcpy(&icmp, packet + head, sizeof icmp);
    if (icmp.type == ICMP_ECHOREPLY && icmp.un.echo.id == probe->id)
        answer(job, true, NULL);
}

/* {"op":"ping","address":"192.168.0.1"} */
int op_ping(struct job *job, json_t *request, struct err *err) {
    const char *text;
    struct sockaddr_in to;
    if (request_unpack(request, err, "{s:s}", "address", &text) < 0 || address_of(text, &to, err) < 0)
        return -EINVAL;
    int fd = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_ICMP);
    if (fd < 0)
        return err_sys(err, errno, "probe.failed", "make a socket");
    /* Connected: only what that address sends is heard. */
    if (prepare(job, fd, POLLIN, on_icmp, err) < 0)
        return -ENOMEM;
    struct probe *probe = job->data;
    struct icmphdr icmp;
    memset(&icmp, 0, sizeof icmp);
    icmp.type = ICMP_ECHO;
    icmp.un.echo.id = probe->id;
    icmp.un.echo.sequence = htons(1);
    icmp.checksum = checksum(&icmp, sizeof icmp);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0 || send(fd, &icmp, sizeof icmp, 0) < 0)
        answer(job, false, strerror(errno));
    return 0;
}

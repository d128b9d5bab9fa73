/* In the agent's place, in a guest that floods: it greets as an agent does, so that the host takes it for one, then
 * writes without end, without ever reading more than it must: events and output for what the host has asked last, answers
 * to nobody, garbage. */
#include <dirent.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent/frame.h"

static int open_port(void) {
    char path[300];
    int fd = -1;
    DIR *dir = opendir("/sys/class/virtio-ports");
    for (struct dirent *e; dir && fd < 0 && (e = readdir(dir));) {
        snprintf(path, sizeof path, "/dev/%s", e->d_name);
        fd = *e->d_name == '.' ? -1 : open(path, O_RDWR | O_CLOEXEC);
    }
    if (dir)
        closedir(dir);
    return fd;
}

static int open_vsock(void) {
    struct sockaddr_vm addr = {.svm_family = AF_VSOCK, .svm_port = AGENT_VSOCK_PORT, .svm_cid = VMADDR_CID_ANY};
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return bind(fd, (struct sockaddr *)&addr, sizeof addr) < 0 || listen(fd, 1) < 0 ? -1 : accept(fd, NULL, NULL);
}

static void put(int fd, const struct agent_frame *about, enum agent_frame_kind kind, uint32_t id, const char *text) {
    uint8_t frame[AGENT_HEADER_SIZE + 4096] = {0};
    struct agent_frame f = {.kind = kind,
                            .stream = kind == AGENT_FRAME_DATA ? AGENT_STDOUT : AGENT_STDIN,
                            .session = about->session,
                            .id = id,
                            .payload = frame + AGENT_HEADER_SIZE,
                            .len = text ? strlen(text) : 4096};
    if (text)
        memcpy(frame + AGENT_HEADER_SIZE, text, f.len);
    agent_frame_header(&f, frame);
    if (write(fd, frame, AGENT_HEADER_SIZE + f.len) < 0)
        _exit(1);
}

static void flood(int fd, const struct agent_frame *last) {
    static char garbage[4096];
    memset(garbage, 0xf5, sizeof garbage);
    put(fd, last, AGENT_FRAME_JSON, last->id, "{\"event\":{\"a\":[1,2,3,4,5,6,7,8,9]}}");
    put(fd, last, AGENT_FRAME_DATA, last->id, NULL);
    put(fd, last, AGENT_FRAME_JSON, 4711, "{\"ok\":{}}");
    if (write(fd, garbage, sizeof garbage) < 0)
        _exit(1);
}

static void serve(int fd) {
    static uint8_t buffer[65536];
    struct agent_decoder in = {0};
    struct agent_frame frame, last = {0};
    for (;;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        ssize_t n = poll(&p, 1, last.session ? 0 : 100) == 1 ? read(fd, buffer, sizeof buffer) : -1;
        if (n > 0)
            agent_decoder_push(&in, buffer, (size_t)n);
        while (n > 0 && agent_decoder_next(&in, &frame) == 1) {
            last = frame;
            if (frame.id == 0)
                put(fd, &last, AGENT_FRAME_JSON, 0, "{\"hello\":{\"version\":1,\"agent\":\"flood\"}}");
        }
        if (last.id)
            flood(fd, &last);
        else if (n <= 0)
            usleep(100000); /* nobody is there yet */
    }
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    int fd = open_port();
    if (fd < 0)
        fd = open_vsock();
    if (fd < 0)
        return 1;
    serve(fd);
}

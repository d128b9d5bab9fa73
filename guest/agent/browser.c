/* Addresses on their way from a tool to the host, and from there to the desktop's Chromium. They may hold codes and tokens:
 * nothing here writes them anywhere.
 *
 * The $BROWSER of a program that the host runs is a name for this very file in a folder of its own, beside a socket. Under that
 * name it sends the socket the address that it is called with, and the agent tells the host.
 *
 * A page is given to the Chromium that runs as another Chromium would do it, but without one: that would take seconds to
 * start, and would kill the one that runs when it has not answered in 20 s, which in an emulated guest is no rare thing. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "agent.h"
#include "base/fd.h"

#define NAME "browser"
#define SOCKET "socket"
#define ADDRESSES_MAX 32 /* of one program */
#define ADDRESS_MAX 4096 /* bytes */

struct browser {
    char folder[32];
    unsigned count;
};

static void path_of(const char *folder, size_t len, const char *name, struct sockaddr_un *ret) {
    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    snprintf(ret->sun_path, sizeof ret->sun_path, "%.*s/%s", (int)len, folder, name);
}

static void browser_free(struct job *job) {
    struct browser *b = job->data;
    struct sockaddr_un at;
    path_of(b->folder, strlen(b->folder), SOCKET, &at);
    unlink(at.sun_path);
    path_of(b->folder, strlen(b->folder), NAME, &at);
    unlink(at.sun_path);
    rmdir(b->folder);
    free(b);
}

void browser_drain(struct job *job) {
    struct browser *b = job->data;
    char address[ADDRESS_MAX + 1];
    ssize_t n;
    while ((n = recv(job->wait_fd, address, sizeof address, MSG_DONTWAIT)) >= 0) {
        /* What is none is told too, as an empty one: the host says what is wrong. */
        bool is_text = n <= ADDRESS_MAX && str_is_utf8(address, (size_t)n) && !memchr(address, '\0', (size_t)n);
        if (++b->count <= ADDRESSES_MAX)
            agent_outbox_json(&job->agent->out, job->agent->session, job->id,
                              json_pack("{s:{s:s%}}", "event", "url", address, is_text ? (size_t)n : (size_t)0));
    }
}

static void on_ready(struct job *job, short revents) {
    browser_drain(job);
}

/* The folder is root's: the program's user can pass through it and write to the socket, and replaces neither. */
static int make_folder(struct browser *b, uid_t uid, int *ret_fd) {
    struct sockaddr_un name, at;
    char self[256];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0)
        return -errno;
    self[n] = '\0';
    path_of(b->folder, strlen(b->folder), NAME, &name);
    path_of(b->folder, strlen(b->folder), SOCKET, &at);
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) < 0 || chmod(at.sun_path, 0600) < 0 ||
        chown(at.sun_path, uid, (gid_t)-1) < 0 || symlink(self, name.sun_path) < 0 || chmod(b->folder, 0711) < 0)
        return -errno;
    *ret_fd = fd_steal(&fd);
    return 0;
}

int browser_prepare(struct job *job, const char *user, json_t *env, struct err *err) {
    struct sockaddr_un name;
    uid_t uid = getuid();
    gid_t gid;
    int r = user ? child_user(user, &uid, &gid, err) : 0;
    if (r < 0)
        return r;
    struct browser *b = calloc(1, sizeof *b);
    if (!b)
        return err_sys(err, ENOMEM, "exec.failed", "make the program's $BROWSER");
    snprintf(b->folder, sizeof b->folder, "/tmp/mc-browser-XXXXXX");
    if (!mkdtemp(b->folder)) {
        r = err_sys(err, errno, "exec.failed", "make a folder in the guest's /tmp");
        free(b);
        return r;
    }
    job->data = b;
    job->on_free = browser_free;
    r = make_folder(b, uid, &job->wait_fd);
    if (r < 0)
        return err_sys(err, -r, "exec.failed", "make the program's $BROWSER in %s", b->folder);
    job->wait_events = POLLIN;
    job->on_ready = on_ready;
    path_of(b->folder, strlen(b->folder), NAME, &name);
    return json_object_set_new(env, "BROWSER", json_string(name.sun_path));
}

bool browser_is_called(const char *self) {
    const char *name = strrchr(self, '/');
    return name && strcmp(name + 1, NAME) == 0;
}

int browser_main(int argc, char **argv) {
    struct sockaddr_un to;
    const char *address = argc > 1 ? argv[argc - 1] : "";
    path_of(argv[0], (size_t)(strrchr(argv[0], '/') - argv[0]), SOCKET, &to);
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && sendto(fd, address, strlen(address), 0, (struct sockaddr *)&to, sizeof to) >= 0)
        return 0;
    fprintf(stderr, "browser: the address cannot be handed on: %s\n", strerror(errno));
    return 1;
}

/* ---- to Chromium ---- */

static bool send_all(int fd, const char *data, size_t len) {
    while (len > 0) {
        ssize_t n = send(fd, data, len, MSG_NOSIGNAL);
        if (n <= 0)
            return false;
        data += n;
        len -= (size_t)n;
    }
    return true;
}

/* "START\0FOLDER\0PROGRAM\0ARGUMENT\0…" up to the end of the stream; the answer is "ACK", or "SHUTDOWN" from one that ends.
 * Whoever asked ends us when it takes too long. Source: Chromium, chrome/browser/process_singleton_posix.cc. */
int browser_open_main(const char *url) {
    static const char head[] = "START\0/\0chromium\0--";
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    const char *home = getenv("HOME");
    char answer[16] = "";
    snprintf(at.sun_path, sizeof at.sun_path, "%s/.config/chromium/SingletonSocket", home ? home : "");
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&at, sizeof at) < 0)
        return BROWSER_NOT_READY;
    if (!send_all(fd, head, sizeof head) || !send_all(fd, url, strlen(url)) || shutdown(fd, SHUT_WR) < 0)
        return BROWSER_NOT_READY;
    size_t len = 0;
    ssize_t n;
    while (len < sizeof answer - 1 && (n = recv(fd, answer + len, sizeof answer - 1 - len, 0)) > 0)
        len += (size_t)n;
    return strcmp(answer, "ACK") == 0 ? 0 : strcmp(answer, "SHUTDOWN") == 0 ? BROWSER_NOT_READY : 1;
}

/* Whatever a VMM that a guest has taken over says on its sockets and in its files, and whatever a guest writes on its
 * console: the first byte says which. Nothing is read past, what is told is text for a terminal, and who listens is still
 * there to be freed. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "fuzz.h"
#include "vm/cause.h"
#include "vmm/fc_metrics.h"
#include "vmm/fc_talk.h"
#include "vmm/qmp.h"

static char *text_of(const uint8_t *data, size_t size) {
    char *text = malloc(size + 1);
    if (!text)
        abort();
    memcpy(text, data, size);
    text[size] = '\0';
    return text;
}

static void check_words(const char *words) {
    for (; *words; words++)
        if ((unsigned char)*words < ' ' || *words == 0x7f)
            abort();
}

/* ---- Firecracker ---- */

static void hear_answer(const uint8_t *data, size_t size) {
    int status = 0;
    size_t body = 0, body_len = 0;
    char *exact = malloc(size ? size : 1);
    if (!exact)
        abort();
    memcpy(exact, data, size);
    int r = fc_answer_parse(exact, size, &status, &body, &body_len);
    if (r > 0 && (status < 100 || status > 599 || body > size || body_len > size - body))
        abort();
    free(exact);
}

static void read_metrics(const uint8_t *data, size_t size) {
    char words[VMM_WORDS_MAX], *text = text_of(data, size);
    fc_metrics_tell(text, size, false, words);
    check_words(words);
    free(text);
}

/* ---- QEMU ---- */

static void on_news(void *userdata, enum vmm_news news, const char *words) {
    check_words(words);
}

/* In place of the one in base/: the other end of QMP's socket. */
static int qmp_fd = -1;
int __wrap_fd_connect_unix(int folder_fd, const char *name, uint32_t uid, pid_t pid, int *ret_fd);
int __wrap_fd_connect_unix(int folder_fd, const char *name, uint32_t uid, pid_t pid, int *ret_fd) {
    int fds[2];
    if (qmp_fd >= 0)
        return -ECONNREFUSED;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        abort();
    qmp_fd = fds[0];
    *ret_fd = fds[1];
    return 0;
}

static void turn(struct loop *loop) {
    while (sd_event_run(loop_event(loop), 0) > 0) {
    }
}

static void hear_qmp(const uint8_t *data, size_t size) {
    struct loop *loop = NULL;
    struct vmm_watch *watch = NULL;
    if (loop_new(&loop, NULL) < 0 || qmp_watch(loop, ".", on_news, NULL, &watch, NULL) < 0)
        abort();
    qmp_command(watch, QMP_POWERDOWN);
    while (qmp_fd < 0)
        if (sd_event_run(loop_event(loop), UINT64_MAX) < 0)
            abort();
    for (size_t sent = 0; sent < size;) {
        ssize_t n = send(qmp_fd, data + sent, size - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        turn(loop);
        if (n < 0) /* it has hung up */
            break;
        sent += (size_t)n;
    }
    vmm_watch_free(watch);
    loop_free(loop);
    fd_close(&qmp_fd);
}

/* ---- a guest's console ---- */

static void look_for_cause(const uint8_t *data, size_t size) {
    char *text = text_of(data, size);
    struct cause_facts facts = {
        .console = text, .vmm_log = text, .halted = "", .process = "exit status 1", .memory_mib = 256};
    struct cause cause = cause_find(&facts);
    check_words(cause.words);
    facts.vmm_log = "";
    facts.process = "killed by signal 11 (x)";
    cause = cause_find(&facts);
    check_words(cause.words);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static void (*const readers[])(const uint8_t *data, size_t size) = {hear_answer, read_metrics, hear_qmp,
                                                                        look_for_cause};
    if (size > 0)
        readers[data[0] % 4](data + 1, size - 1);
    return 0;
}

size_t fuzz_seed(unsigned number, uint8_t *ret, size_t size) {
    static const char *const seeds[] = {
        "HTTP/1.1 400 Bad Request\r\nServer: Firecracker API\r\nContent-Length: 24\r\n\r\n{\"fault_message\":\"no\"}",
        "{\"net\":{\"tx_packets_count\":7,\"rx_packets_count\":0,\"rx_tap_event_count\":3}}\n{\"net\":{}}\n",
        "{\"QMP\":{}}\n{\"return\":{},\"id\":\"greeting\"}\n{\"event\":\"BLOCK_IO_ERROR\",\"data\":{\"operation\":"
        "\"write\","
        "\"action\":\"stop\",\"nospace\":true,\"reason\":\"No space\"}}\n{\"event\":\"STOP\"}\n"
        "{\"return\":{\"status\":\"io-error\",\"running\":false},\"id\":\"status\"}\n{\"event\":\"RESUME\"}\n"
        "{\"event\":\"GUEST_PANICKED\"}\n",
        "[    1.0] Out of memory: Killed process 1 (init)\r\n[    1.1] Kernel panic - not syncing: x\r\n"
        "I/O error, dev vda\nNo space left on device\nreboot: Power down\n",
    };
    ret[0] = (uint8_t)(number % 4);
    return 1 + (size_t)snprintf((char *)ret + 1, size - 1, "%s", seeds[number % 4]);
}

/* A VMM without a machine, for tests of all around hibernation and warm start: takes what the controller hands to QEMU, answers
 * ARP and ping on the TAP, and speaks as much QMP as it takes to be saved and loaded. Its memory is a number that names its life
 * and one that counts how often it went on. The second is on its disk too, so it knows a memory that is older than the disk, and
 * one of which a part is missing; it says so in its log ("STALE", "HALF") and ends. What it is stands on its console.
 *
 * Where its memory is a file (a template's), both are in that too, at many places; one that was loaded from there has no address
 * until its agent (resting_agent.c) is told one, and says so if it is asked for one before that ("NOBODY"). */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "resting_agent.h"

enum { FD_TAP = 3, FD_QMP, FD_CONSOLE, FD_DISK };

#define VNET 12
#define MEMORY_WORDS 65536 /* 512 KiB */
#define STEP_WORDS 4096    /* written before it looks around again */

static struct { uint64_t life, runs; } memory;
static uint8_t mac[6], ip[4];
static int client = -1, handed = -1;
static bool runs, waits; /* waits: for its memory */
static bool is_kvms;     /* by its own word, where it has 3 processors */
static bool is_stuck;    /* with 5 it never gets done with loading */
static const char *migration = "";
static uint64_t saved_words;
static uint64_t *backed; /* the file of its memory */
static size_t backed_words;
static bool is_apart; /* it is not written or read with the rest */

static void say(const char *text) {
    if (send(client, text, strlen(text), MSG_NOSIGNAL) < 0) {
        close(client);
        client = -1;
    }
}

static void fail(const char *what) {
    fprintf(stderr, "%s: memory of run %llu\n", what, (unsigned long long)memory.runs);
    exit(1);
}

/* From here on its disk is another. */
static void go(void) {
    char line[80];
    if (runs)
        return;
    runs = true;
    memory.runs++;
    int n = snprintf(line, sizeof line, "life %llx run %llu\n", (unsigned long long)memory.life,
                     (unsigned long long)memory.runs);
    if (pwrite(FD_DISK, &memory.runs, sizeof memory.runs, 0) != sizeof memory.runs)
        fail("BROKEN");
    if (write(FD_CONSOLE, line, (size_t)n) < 0 && errno != ENOSPC)
        fail("BROKEN");
}

#define BACKED_STEP (2U << 20) /* words: a copy of both each 16 MiB */

static void back(void) {
    for (size_t at = 0; at < backed_words; at += BACKED_STEP) {
        backed[at] = memory.life;
        backed[at + 1] = memory.runs;
    }
}

static void check_backed(void) {
    for (size_t at = 0; at < backed_words; at += BACKED_STEP)
        if (backed[at] != memory.life || backed[at + 1] != memory.runs)
            fail("HALF");
}

/* A word at a time all of which a reader can judge: life, run, life, run, … */
static void save_some(void) {
    uint64_t words[STEP_WORDS];
    for (size_t i = 0; i < STEP_WORDS; i++)
        words[i] = i % 2 ? memory.runs : memory.life;
    if (write(handed, words, sizeof words) != sizeof words) {
        migration = "failed";
    } else {
        saved_words += STEP_WORDS;
        migration = saved_words == MEMORY_WORDS ? "completed" : "active";
    }
    if (strcmp(migration, "active") != 0) {
        close(handed);
        handed = -1;
    }
}

static void load(void) {
    uint64_t word, on_disk = 0, n = 0;
    while (is_stuck)
        pause();
    for (; read(handed, &word, sizeof word) == sizeof word; n++) {
        uint64_t *part = n % 2 ? &memory.runs : &memory.life;
        if (n > 1 && *part != word)
            fail("HALF");
        *part = word;
    }
    if (n != MEMORY_WORDS)
        fail("HALF");
    if (is_apart) /* its disk is new, over the template's */
        check_backed();
    else if (pread(FD_DISK, &on_disk, sizeof on_disk, 0) < 0 || on_disk != memory.runs)
        fail("STALE");
    migration = "completed";
}

static void on_command(const char *line) {
    char answer[120] = "{\"return\": {}, \"id\": 1}\n";
    if (strstr(line, "query-migrate"))
        snprintf(answer, sizeof answer, "{\"return\": {\"status\": \"%s\"%s}, \"id\": 1}\n",
                 *migration ? migration : "none",
                 strcmp(migration, "failed") == 0 ? ", \"error-desc\": \"Input/output error\"" : "");
    else if (strstr(line, "query-kvm"))
        snprintf(answer, sizeof answer, "{\"return\": {\"enabled\": %s, \"present\": true}, \"id\": 1}\n",
                 is_kvms ? "true" : "false");
    else if (strstr(line, "query-status"))
        snprintf(answer, sizeof answer, "{\"return\": {\"running\": %s, \"status\": \"%s\"}, \"id\": \"status\"}\n",
                 runs ? "true" : "false", runs ? "running" : "paused");
    else if (strstr(line, "qmp_capabilities"))
        snprintf(answer, sizeof answer, "{\"return\": {}, \"id\": %s}\n",
                 strstr(line, "greeting") ? "\"greeting\"" : "1");
    else if (strstr(line, "\"stop\""))
        runs = false;
    else if (strstr(line, "\"cont\""))
        go();
    else if (strstr(line, "migrate_cancel"))
        migration = strcmp(migration, "active") == 0 ? "cancelled" : migration;
    else if (strstr(line, "migrate-incoming"))
        load();
    else if (strstr(line, "x-ignore-shared"))
        is_apart = strstr(line, "true") != NULL;
    else if (strstr(line, "\"migrate\"")) {
        if (is_apart)
            back();
        saved_words = 0;
        migration = "active";
    } else if (strstr(line, "system_powerdown"))
        exit(0);
    say(answer);
}

static void on_client(void) {
    char text[4096], control[CMSG_SPACE(sizeof(int))];
    struct iovec part = {text, sizeof text - 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(client, &message, MSG_CMSG_CLOEXEC);
    if (n <= 0) {
        close(client);
        client = -1;
        return;
    }
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
        if (c->cmsg_type == SCM_RIGHTS)
            memcpy(&handed, CMSG_DATA(c), sizeof handed);
    text[n] = '\0';
    for (char *save = NULL, *line = strtok_r(text, "\n", &save); line && client >= 0;
         line = strtok_r(NULL, "\n", &save))
        on_command(line);
}

static uint16_t checksum(const uint8_t *data, size_t len) {
    uint32_t sum = 0;
    for (size_t i = 0; i < len; i++)
        sum += (uint32_t)data[i] << (i % 2 ? 0 : 8);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

/* Makes the reply of a request for this guest, in place. Return: whether there is one. */
static bool answer_frame(uint8_t *f, size_t len) {
    bool is_arp = len >= 42 && memcmp(f + 12, "\x08\x06", 2) == 0 && f[21] == 1 && memcmp(f + 38, ip, 4) == 0;
    bool is_ping =
        len >= 42 && memcmp(f + 12, "\x08\x00", 2) == 0 && f[23] == 1 && f[34] == 8 && memcmp(f + 30, ip, 4) == 0;
    if (!is_arp && !is_ping)
        return false;
    memcpy(f, f + 6, 6);
    memcpy(f + 6, mac, 6);
    if (is_arp) {
        f[21] = 2;
        memcpy(f + 32, f + 22, 10);
        memcpy(f + 22, mac, 6);
        memcpy(f + 28, ip, 4);
        return true;
    }
    memcpy(f + 30, f + 26, 4);
    memcpy(f + 26, ip, 4);
    f[34] = f[36] = f[37] = 0;
    size_t total = (size_t)f[16] << 8 | f[17];
    uint16_t sum = checksum(f + 34, total - 20);
    f[36] = (uint8_t)(sum >> 8);
    f[37] = (uint8_t)sum;
    return true;
}

static void on_tap(void) {
    uint8_t data[VNET + 2048];
    ssize_t n = read(FD_TAP, data, sizeof data);
    if (n > VNET && runs && agent_is_nobody())
        fail("NOBODY");
    if (n > VNET && runs && answer_frame(data + VNET, (size_t)n - VNET)) {
        memset(data, 0, VNET);
        if (write(FD_TAP, data, (size_t)n) < 0)
            perror("TAP");
    }
}

static void take_arguments(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        char *at = strstr(argv[i], ",mac=");
        if (at && strstr(argv[i], "virtio-net"))
            sscanf(at, ",mac=%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]);
        at = strstr(argv[i], " ip=");
        char text[16] = "";
        if (at && sscanf(at, " ip=%15[0-9.]", text) == 1)
            inet_pton(AF_INET, text, ip);
        int fd;
        uint64_t mib;
        if (sscanf(argv[i], "socket,id=agent,fd=%d", &fd) == 1)
            agent_listen(fd);
        if (sscanf(argv[i], "memory-backend-file,id=pc.ram,size=%luM,mem-path=/dev/fd/%d", &mib, &fd) == 2) {
            int how = strstr(argv[i], "share=on") ? MAP_SHARED : MAP_PRIVATE;
            backed_words = (mib << 20) / sizeof *backed;
            backed = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, how, fd, 0);
        }
        waits |= strcmp(argv[i], "-incoming") == 0;
        const char *processors = strcmp(argv[i], "-smp") == 0 && i + 1 < argc ? argv[i + 1] : "";
        is_kvms |= strcmp(processors, "3") == 0;
        is_stuck |= strcmp(processors, "5") == 0;
        if (*processors)
            agent_behave(atoi(processors));
    }
}

static void on_identity(const uint8_t own_mac[6], const uint8_t own_ip[4]) {
    memcpy(mac, own_mac, sizeof mac);
    memcpy(ip, own_ip, sizeof ip);
}

int main(int argc, char **argv) {
    take_arguments(argc, argv);
    if (backed == MAP_FAILED)
        fail("BROKEN");
    if (waits && backed)
        agent_is_copy(on_identity);
    if (!waits) {
        if (pread(FD_DISK, &memory.runs, sizeof memory.runs, 0) < 0 ||
            getrandom(&memory.life, sizeof memory.life, 0) < 0)
            return 1;
        go();
    }
    for (;;) {
        struct pollfd p[] = {
            {FD_TAP, POLLIN, 0}, {client < 0 ? FD_QMP : client, POLLIN, 0}, {runs ? agent_fd() : -1, POLLIN, 0}};
        bool saves = strcmp(migration, "active") == 0 && handed >= 0;
        if (poll(p, 3, saves ? 1 : -1) < 0 && errno != EINTR)
            return 1;
        if (saves)
            save_some();
        if (p[0].revents)
            on_tap();
        if (p[2].revents)
            agent_on_input();
        if (p[1].revents && client >= 0) {
            on_client();
        } else if (p[1].revents) {
            client = accept(FD_QMP, NULL, NULL);
            say("{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": 1, \"major\": 0}, \"package\": "
                "\"double\"}}}\n");
        }
    }
}

/* Who listens: /proc/net/tcp and its like, and the program behind each socket.
 * Source: proc(5), Documentation/networking/proc_net_tcp.rst */
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"
#include "base/fd.h"

#define LISTENERS_MAX 64
/* Descriptors that are looked at, of all processes: some 50 ms, and no program can hold up the agent by having many. */
#define FILES_MAX 20000

struct listener {
    const char *protocol;
    char address[INET6_ADDRSTRLEN];
    unsigned port, queue;
    unsigned long inode;
    int pid;
    char program[32];
};

struct listeners {
    struct listener all[LISTENERS_MAX];
    size_t count;
};

/* The kernel prints each 32 bits of an address as a number of the machine. */
static bool parse_address(const char *hex, bool is_v6, char text[INET6_ADDRSTRLEN]) {
    uint32_t words[4] = {0};
    for (size_t i = 0; i < (is_v6 ? 4U : 1U); i++)
        if (sscanf(hex + 8 * i, "%8x", &words[i]) != 1)
            return false;
    return inet_ntop(is_v6 ? AF_INET6 : AF_INET, words, text, INET6_ADDRSTRLEN) != NULL;
}

/* "  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 12345 …" */
static void take_line(struct listeners *list, const char *line, const char *protocol, bool is_v6, unsigned wanted) {
    char address[33];
    unsigned port, state, queue;
    unsigned long inode;
    if (sscanf(line, " %*d: %32[0-9A-Fa-f]:%x %*x:%*x %x %*x:%x %*x:%*x %*x %*d %*d %lu", address, &port, &state,
               &queue, &inode) != 5)
        if (sscanf(line, " %*d: %32[0-9A-Fa-f]:%x %*[0-9A-Fa-f]:%*x %x %*x:%x %*x:%*x %*x %*d %*d %lu", address, &port,
                   &state, &queue, &inode) != 5)
            return;
    struct listener l = {.protocol = protocol, .port = port, .queue = queue, .inode = inode};
    if (state == wanted && strlen(address) == (is_v6 ? 32 : 8) && list->count < LISTENERS_MAX &&
        parse_address(address, is_v6, l.address))
        list->all[list->count++] = l;
}

static void read_table(struct listeners *list, const char *protocol, unsigned wanted) {
    char path[32], line[512];
    snprintf(path, sizeof path, "/proc/net/%s", protocol);
    _cleanup_fclose_ FILE *f = fopen(path, "re");
    bool is_v6 = protocol[3] == '6';
    while (f && fgets(line, sizeof line, f))
        take_line(list, line, protocol, is_v6, wanted);
}

static void name_process(struct listener *l, int pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/comm", pid);
    _cleanup_fclose_ FILE *f = fopen(path, "re");
    l->pid = pid;
    if (f && fgets(l->program, sizeof l->program, f))
        l->program[strcspn(l->program, "\n")] = '\0';
}

static void look_at_process(struct listeners *list, int pid, int *left) {
    char path[64], target[64];
    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    DIR *dir = opendir(path);
    for (struct dirent *e; dir && *left > 0 && (e = readdir(dir)); (*left)--) {
        ssize_t n = readlinkat(dirfd(dir), e->d_name, target, sizeof target - 1);
        unsigned long inode;
        if (n <= 0)
            continue;
        target[n] = '\0';
        if (sscanf(target, "socket:[%lu]", &inode) != 1)
            continue;
        for (size_t i = 0; i < list->count; i++)
            if (list->all[i].inode == inode && list->all[i].pid == 0)
                name_process(&list->all[i], pid);
    }
    if (dir)
        closedir(dir);
}

static void find_programs(struct listeners *list) {
    DIR *dir = opendir("/proc");
    int left = FILES_MAX;
    for (struct dirent *e; dir && left > 0 && (e = readdir(dir)); left--)
        if (isdigit((unsigned char)e->d_name[0]))
            look_at_process(list, atoi(e->d_name), &left);
    if (dir)
        closedir(dir);
}

json_t *net_facts_listeners(void) {
    struct listeners list = {.count = 0};
    json_t *all = json_array();
    read_table(&list, "tcp", 0x0a); /* TCP_LISTEN */
    read_table(&list, "tcp6", 0x0a);
    read_table(&list, "udp", 0x07); /* bound, not connected */
    read_table(&list, "udp6", 0x07);
    find_programs(&list);
    for (size_t i = 0; i < list.count; i++) {
        struct listener *l = &list.all[i];
        json_array_append_new(all, json_pack("{s:s, s:s, s:i, s:i, s:i, s:o}", "protocol", l->protocol, "address",
                                             l->address, "port", (int)l->port, "queue", (int)l->queue, "pid", l->pid,
                                             "program", text_json(l->program, strlen(l->program))));
    }
    return all;
}

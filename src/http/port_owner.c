#include "http/port_owner.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"

#define TCP_LISTEN_STATE 0x0a /* include/net/tcp_states.h */

static void cleanup_closedir(DIR **dir) {
    if (*dir)
        closedir(*dir);
}

#define _cleanup_closedir_ __attribute__((cleanup(cleanup_closedir)))

/* "  0: 0100007F:0FA0 00000000:0000 0A tx:rx tr:tm retrnsmt uid timeout inode …": the inode, if that socket listens on
 * port, else 0. */
static unsigned long inode_of_line(char *line, uint16_t port) {
    enum { LOCAL = 1, STATE = 3, INODE = 9, FIELDS };
    char *field[FIELDS], *rest = line;
    for (int i = 0; i < FIELDS; i++)
        if (!(field[i] = strtok_r(NULL, " ", &rest)))
            return 0;
    const char *colon = strrchr(field[LOCAL], ':');
    if (!colon || strtoul(colon + 1, NULL, 16) != port || strtoul(field[STATE], NULL, 16) != TCP_LISTEN_STATE)
        return 0;
    return strtoul(field[INODE], NULL, 10);
}

/* The inode of a socket that listens on port, 0 for none. */
static unsigned long listening_inode(const char *table, uint16_t port) {
    _cleanup_fclose_ FILE *f = fopen(table, "re");
    char line[512];
    unsigned long inode = 0;
    while (f && inode == 0 && fgets(line, sizeof line, f))
        inode = inode_of_line(line, port);
    return inode;
}

static bool process_has(const char *pid, const char *link) {
    char path[300], target[64];
    snprintf(path, sizeof path, "/proc/%s/fd", pid);
    _cleanup_closedir_ DIR *fds = opendir(path);
    if (!fds)
        return false;
    for (struct dirent *e; (e = readdir(fds));) {
        ssize_t n = readlinkat(dirfd(fds), e->d_name, target, sizeof target - 1);
        if (n <= 0)
            continue;
        target[n] = '\0';
        if (strcmp(target, link) == 0)
            return true;
    }
    return false;
}

static void read_name(const char *pid, char *name, size_t size) {
    char path[300];
    snprintf(path, sizeof path, "/proc/%s/comm", pid);
    _cleanup_free_ char *comm = NULL;
    if (file_read(path, 64, &comm, NULL) < 0 || !str_copy(name, size, strtok(comm, "\n") ?: "?"))
        str_copy(name, size, "?");
    for (char *c = name; *c; c++)
        if (!isprint((unsigned char)*c))
            *c = '?';
}

int port_owner_find(uint16_t port, struct port_owner *ret_owner) {
    unsigned long inode = listening_inode("/proc/thread-self/net/tcp", port);
    if (inode == 0)
        inode = listening_inode("/proc/thread-self/net/tcp6", port);
    if (inode == 0)
        return -ENOENT;
    char link[64];
    snprintf(link, sizeof link, "socket:[%lu]", inode);
    _cleanup_closedir_ DIR *proc = opendir("/proc");
    if (!proc)
        return -errno;
    for (struct dirent *e; (e = readdir(proc));) {
        uint64_t pid;
        if (str_to_u64(e->d_name, 1, INT32_MAX, &pid) < 0 || !process_has(e->d_name, link))
            continue;
        struct port_owner owner = {.pid = (pid_t)pid};
        read_name(e->d_name, owner.name, sizeof owner.name);
        *ret_owner = owner;
        return 0;
    }
    return -ENOENT;
}

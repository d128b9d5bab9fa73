/* What stands in for a Chromium that runs, as far as others of its kind see it: takes pages at its SingletonSocket and writes
 * their addresses into a file, a line each. With a third argument it answers with that instead of ACK.
 *
 *   fake-chromium SOCKET FILE [ANSWER]
 *
 * Source: Chromium, chrome/browser/process_singleton_posix.cc. */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* "START\0FOLDER\0ARGUMENT\0…": the last argument. Return: NULL for what is no such message. */
static const char *address_of(char *message, size_t len) {
    message[len] = '\0';
    if (len < 8 || strcmp(message, "START") != 0)
        return NULL;
    const char *last = message;
    for (size_t at = 0; at < len; at += strlen(message + at) + 1)
        last = message + at;
    return last;
}

int main(int argc, char **argv) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    char message[32768];
    if (argc < 3)
        return 2;
    snprintf(at.sun_path, sizeof at.sun_path, "%s", argv[1]);
    unlink(at.sun_path);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 4) < 0) {
        perror(argv[1]);
        return 1;
    }
    for (int fd; (fd = accept(listener, NULL, NULL)) >= 0; close(fd)) {
        const char *answer = argc > 3 ? argv[3] : "ACK";
        size_t len = 0;
        ssize_t n;
        while ((n = read(fd, message + len, sizeof message - 1 - len)) > 0)
            len += (size_t)n;
        const char *address = address_of(message, len);
        FILE *file = address ? fopen(argv[2], "a") : NULL;
        if (!file)
            continue;
        fprintf(file, "%s\n", address);
        fclose(file);
        if (write(fd, answer, strlen(answer)) < 0)
            perror("answer");
    }
    return 1;
}

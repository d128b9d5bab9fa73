#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/str.h"
#include "cli/cli.h"
#include "http/client.h"

/* A guest writes its console, and a terminal obeys what it reads: on one, only text and line ends get through. */
static int write_console(const char *data, size_t len, void *userdata) {
    bool terminal = *(bool *)userdata;
    if (!terminal)
        return fwrite(data, 1, len, stdout) == len ? 0 : -EPIPE;
    char out[64];
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)data[i];
        if (c == '\r')
            continue;
        if (c == '\n' || c == '\t' || (c >= 0x20 && c < 0x7f))
            putchar(c);
        else
            fputs(str_escape(data + i, 1, out, sizeof out), stdout);
    }
    fflush(stdout);
    return ferror(stdout) ? -EPIPE : 0;
}

int verb_vm_console(struct cli *cli, int argc, char **argv) {
    static const struct option longs[] = {{"follow", no_argument, NULL, 'f'}, {0}};
    bool follow = false;
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (c != 'f')
            return cli_usage(cli, "mctl vm console does not know %s", argv[optind - 1]);
        follow = true;
    }
    if (optind + 1 != argc)
        return cli_usage(cli, "mctl vm console needs one ID");
    if (cli->json)
        return cli_usage(cli, "a console is text: mctl vm console has no --json");
    _cleanup_free_ char *path = cli_path("/api/vms/", argv[optind], follow ? "/console?follow=1" : "/console");
    bool terminal = isatty(STDOUT_FILENO);
    struct http_client_request request = {.unix_socket = cli->socket, .path = path};
    _cleanup_http_response_ struct http_client_response response = {0};
    struct err err = {0};
    int r = http_client_stream(&request, write_console, &terminal, &response, &err);
    if (r < 0)
        return cli_unreachable(cli, &err);
    return response.status == 200 ? CLI_DONE : cli_problem(cli, response.status, response.body);
}

/* Any answer of a VM's service: judged without reading past it, and taken only with the right accept key. */
#include <errno.h>

#include "fuzz.h"
#include "relay/handshake.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
#define ACCEPT_LINE "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    /* A copy of exactly this size, so that a sanitizer sees the first byte too many. */
    uint8_t *copy = malloc(size ? size : 1);
    struct handshake_answer answer = {0};
    struct err err = {0};
    if (!copy)
        abort();
    memcpy(copy, data, size);
    int r = handshake_judge(copy, size, ACCEPT, "binary, base64", &answer, &err);
    bool good = r == 0 && answer.size <= size && memmem(data, answer.size, ACCEPT, strlen(ACCEPT)) &&
                (strcmp(answer.protocol, "binary") == 0 || strcmp(answer.protocol, "base64") == 0);
    bool refused = r == -EPROTO && err.detail[0];
    if (!good && !refused && !(r == -EAGAIN && size < HANDSHAKE_RESPONSE_MAX)) {
        fprintf(stderr, "fuzz_relay_handshake: %d\n", r);
        abort();
    }
    free(copy);
    return 0;
}

size_t fuzz_seed(unsigned number, uint8_t *ret, size_t size) {
    static const char *const lines[] = {"Upgrade: websocket\r\n",
                                        "Connection: keep-alive, Upgrade\r\n",
                                        ACCEPT_LINE,
                                        "Sec-WebSocket-Protocol: binary\r\n",
                                        "Server: x\r\n",
                                        "Sec-WebSocket-Extensions: permessage-deflate\r\n"};
    size_t len = (size_t)snprintf((char *)ret, size, "HTTP/1.1 101 Switching Protocols\r\n");
    for (unsigned i = 0; i < 6; i++)
        if (i < 4 ? number % 5 != i : number & 8U)
            len += (size_t)snprintf((char *)ret + len, size - len, "%s", lines[i]);
    return len + (size_t)snprintf((char *)ret + len, size - len, "\r\n%s", number % 2 ? "RFB 003.008\n" : "");
}

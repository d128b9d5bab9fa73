#include "resting_agent.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent/outbox.h"

static int listener = -1, client = -1, manner;
static agent_identity_fn *to_tell;
static struct agent_decoder in;
static struct agent_outbox out = {.max = 1 << 16};

void agent_listen(int fd) {
    listener = fd;
}

void agent_behave(int how) {
    manner = how;
}

void agent_is_copy(agent_identity_fn *fn) {
    to_tell = fn;
}

bool agent_is_nobody(void) {
    return to_tell;
}

int agent_fd(void) {
    return client >= 0 ? client : listener;
}

static void hang_up(void) {
    close(client);
    client = -1;
    agent_decoder_free(&in);
    in = (struct agent_decoder){0};
    agent_outbox_clear(&out);
}

static json_t *refuse(const char *words) {
    return json_pack("{s:{s:s, s:s}}", "error", "code", "double", "detail", words);
}

/* Return: the answer; NULL: there is none. */
static json_t *take_identity(json_t *request) {
    const char *mac_text = "", *address = "";
    uint8_t mac[6], ip[4];
    char ip_text[16] = "";
    if (manner == AGENT_NEVER_ANSWERS)
        return NULL;
    if (manner == AGENT_REFUSES)
        return refuse("it will not");
    if (manner == AGENT_HANGS_UP) {
        manner = 0;
        hang_up();
        return NULL;
    }
    if (manner == AGENT_TAKES_ALL_ALONG)
        _exit(1);
    if (manner == AGENT_TALKS_RUBBISH)
        return json_pack("{s:[i]}", "ok", 1);
    json_unpack(request, "{s?s, s?s}", "mac", &mac_text, "address", &address);
    if (sscanf(mac_text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]) != 6 ||
        sscanf(address, "%15[0-9.]", ip_text) != 1 || inet_pton(AF_INET, ip_text, ip) != 1)
        return refuse("that is no identity");
    if (to_tell)
        to_tell(mac, ip);
    to_tell = NULL;
    return json_pack("{s:{}}", "ok");
}

static json_t *answer(uint32_t id, json_t *request) {
    const char *op = json_string_value(json_object_get(request, "op"));
    if (id == 0)
        return json_pack("{s:{s:i, s:s, s:i}}", "hello", "version", AGENT_VERSION, "agent", "double", "started_ms", 0);
    if (op && strcmp(op, "identity.set") == 0)
        return take_identity(request);
    if (op && strcmp(op, "health") == 0)
        return json_pack("{s:{}}", "ok");
    if (op && (strcmp(op, "clock.set") == 0 || strcmp(op, "random.seed") == 0))
        return json_pack("{s:{s:i}}", "ok", "changed_by_ms", 0);
    return refuse("there is nobody in here");
}

void agent_on_input(void) {
    static uint8_t buffer[65536];
    struct agent_frame frame;
    if (client < 0) {
        client = accept(listener, NULL, NULL);
        return;
    }
    ssize_t n = recv(client, buffer, sizeof buffer, 0);
    if (n <= 0 || agent_decoder_push(&in, buffer, (size_t)n) < 0) {
        hang_up();
        return;
    }
    while (client >= 0 && agent_decoder_next(&in, &frame) == 1) {
        json_t *request = frame.kind == AGENT_FRAME_JSON ? agent_frame_json(&frame) : NULL;
        uint32_t session = frame.session, id = frame.id;
        json_t *said = request ? answer(id, request) : NULL;
        json_decref(request);
        if (said)
            agent_outbox_json(&out, session, id, said);
    }
    if (client >= 0 && agent_outbox_flush(&out, client) < 0)
        hang_up();
}

#include "session/login_words.h"

#include <stdbool.h>
#include <string.h>

static const struct {
    const char *word, *sentence;
} reasons[] = {
    {"access_denied", "access was refused at the provider (access_denied)"},
    {"expired_token", "the code was not typed in time (expired_token)"},
    {"wrong state", "the answer that came back does not belong to this login (wrong state)"},
    {"invalid_state", "the answer that came back does not belong to this login (invalid_state)"},
    {"state mismatch", "the answer that came back does not belong to this login (state mismatch)"},
    {"invalid_grant", "the provider did not take the code that came back (invalid_grant)"},
    {"invalid_client", "the provider does not know this client (invalid_client)"},
    {"unauthorized_client", "the provider does not let this client log in so (unauthorized_client)"},
    {"invalid_scope", "the provider does not give what was asked for (invalid_scope)"},
    {"invalid_request", "the provider does not understand the request (invalid_request)"},
    {"login_required", "the provider wants its user logged in first (login_required)"},
    {"temporarily_unavailable", "the provider cannot do it now (temporarily_unavailable)"},
    {"server_error", "the provider had an error of its own (server_error)"},
    {"cannot be reached", "the provider could not be reached"},
    {"could not resolve", "the provider could not be reached: its name does not resolve"},
    {"onnection refused", "the provider could not be reached: the connection was refused"},
    {"timed out", "the provider could not be reached in time"},
    {"CERTIFICATE_VERIFY_FAILED", "the provider's certificate is not trusted in the VM"},
};

const char *login_words_reason(const char *output, size_t len) {
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++)
        if (memmem(output, len, reasons[i].word, strlen(reasons[i].word)))
            return reasons[i].sentence;
    return NULL;
}

static bool is_code(char c) {
    return (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

static bool is_word(char c) {
    return is_code(c) || c == '-' || c == '_' || (c >= 'a' && c <= 'z');
}

/* Groups of three to eight, at least two of them. Return: the length. */
static size_t code_at(const char *text, size_t len) {
    size_t n = 0, group = 0, groups = 0;
    for (; n < len && (is_code(text[n]) || text[n] == '-'); n++) {
        if (is_code(text[n])) {
            group++;
        } else {
            if (group < 3 || group > 8)
                return 0;
            groups++;
            group = 0;
        }
    }
    bool whole = groups >= 1 && group >= 3 && group <= 8 && n < LOGIN_CODE_MAX;
    return whole && (n == len || !is_word(text[n])) ? n : 0;
}

size_t login_words_code(const char *output, size_t len, char ret_code[LOGIN_CODE_MAX]) {
    size_t found = 0;
    for (size_t at = 0; at < len; at++) {
        /* A terminal's colour ends in a letter: "\x1b[94mWDJB-MJHT". */
        bool begins = at == 0 || !is_code(output[at - 1]);
        size_t n = begins && (at == 0 || output[at - 1] != '-') ? code_at(output + at, len - at) : 0;
        if (n == 0)
            continue;
        memcpy(ret_code, output + at, n);
        ret_code[n] = '\0';
        found = n;
        at += n;
    }
    return found;
}

size_t login_words_address(const char *output, size_t len, size_t *at, const char **ret_address) {
    static const char scheme[] = "https://";
    while (*at < len) {
        const char *found = memmem(output + *at, len - *at, scheme, sizeof scheme - 1);
        if (!found)
            return 0;
        size_t begin = (size_t)(found - output), end = begin;
        while (end < len && (unsigned char)output[end] > ' ' && output[end] != 0x7f)
            end++;
        if (end == len)
            return 0; /* the rest of it may still come */
        *at = end;
        *ret_address = found;
        return end - begin;
    }
    return 0;
}

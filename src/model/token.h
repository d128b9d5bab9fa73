/* A user's token as plain data. The secret itself is told once, when it is made; only its hash is kept. */
#pragma once

#include <stdint.h>

#include "model/vm.h"

#define TOKEN_ID_TEXT 9 /* 8 hex digits: names the token, opens nothing */
#define TOKEN_NOTE_MAX 80

struct token {
    char id[TOKEN_ID_TEXT];
    char user[VM_USER_MAX + 1];
    char note[TOKEN_NOTE_MAX + 1]; /* what it is for, in the words of who made it */
    int64_t created_ms;            /* real time, as the next two */
    int64_t expires_ms;
    int64_t used_ms; /* to the minute; 0: never */
};

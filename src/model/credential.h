/* What is known of a credential in the vault without opening it. */
#pragma once

#include <stdint.h>

#include "model/session.h"

#define CREDENTIAL_KEY_ID 8 /* bytes: names a master key, tells nothing of it */

struct credential {
    char user[VM_USER_MAX + 1];
    char provider[SESSION_PROVIDER_MAX + 1];
    uint64_t version;                  /* 1, 2, …: each that is stored is a new one */
    char owner_vm[VM_ID_TEXT];         /* the VM that may use it and renew it; empty: none */
    int64_t created_ms;                /* real time of the first version */
    int64_t updated_ms;                /* real time of this one */
    uint8_t key_id[CREDENTIAL_KEY_ID]; /* of the master key that its data key is wrapped by */
    int64_t logged_out_ms;             /* real time since when its owner has no files of it any more; 0: it has them */
};

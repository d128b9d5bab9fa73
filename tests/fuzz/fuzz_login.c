/* Whatever a login tool prints, and whatever is in the vault's text: nothing is read past, and what is found is a part of it. */
#include "fuzz.h"
#include "session/bundle.h"
#include "session/login_words.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check_words(const char *text, size_t size) {
    char code[LOGIN_CODE_MAX] = "";
    const char *address;
    size_t len = login_words_code(text, size, code), at = 0;
    if (len != strlen(code) || (len > 0 && !memmem(text, size, code, len)))
        abort();
    while ((len = login_words_address(text, size, &at, &address)) > 0)
        if (address < text || address + len > text + size || memcmp(address, "https://", 8) != 0)
            abort();
    login_words_reason(text, size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *copy = malloc(size ? size : 1); /* for the sanitizer: it ends where it ends */
    struct bundle_file file;
    size_t at = 0, files = 0;
    if (!copy)
        abort();
    if (size)
        memcpy(copy, data, size);
    check_words((const char *)copy, size);
    while (bundle_next(copy, size, &at, &file) > 0) {
        if (at > size || (file.len > 0 && (file.data < copy || file.data + file.len > copy + size)) || ++files > size)
            abort();
    }
    free(copy);
    return 0;
}

size_t fuzz_seed(unsigned number, uint8_t *ret, size_t size) {
    static const char *const seeds[] = {"mc-files/1\n.a/b 0600 3\nabc.c 0640 0\n",
                                        "go to https://a.example/d?x=1 and type WDJB-MJHT\n",
                                        "error=access_denied ABC-DEF-123 https://\n"};
    return (size_t)snprintf((char *)ret, size, "%s", seeds[number % 3]);
}

/* Any bytes as a file for `mctl doctor --from`. */
#include <stdlib.h>
#include <string.h>

#include "doctor_case.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *copy = malloc(size ? size : 1); /* exactly this size, so that a sanitizer sees the first byte too many */
    if (!copy)
        abort();
    memcpy(copy, data, size);
    doctor_case_exercise(copy, size);
    free(copy);
    return 0;
}

size_t fuzz_seed(unsigned number, uint8_t *ret, size_t size) {
    size_t len;
    const char *text = doctor_case_seed(number, &len);
    if (len > size)
        len = size;
    memcpy(ret, text, len);
    return len;
}

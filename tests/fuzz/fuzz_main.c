/* Drives a fuzz target where there is no libFuzzer: the files that are given (crashes that were found), or else valid
 * inputs with random changes, always the same ones, as a quick test of every build.
 *
 * To look for new ones: clang -g -fsanitize=fuzzer,address,undefined -D_GNU_SOURCE -Isrc -Itests/unit -Itests/fuzz
 *     tests/fuzz/fuzz_X.c and the sources of the module, instead of this file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

#define INPUT_MAX ((size_t)64 * 1024)
#define ROUNDS 20000U

static uint32_t next_random(uint64_t *seed) {
    *seed = *seed * 6364136223846793005U + 1442695040888963407U;
    return (uint32_t)(*seed >> 33);
}

static size_t change(uint8_t *data, size_t len, uint64_t *seed) {
    for (unsigned i = next_random(seed) % 6; i > 0 && len > 0; i--) {
        size_t at = next_random(seed) % (next_random(seed) % 2 && len > 40 ? 40 : len);
        switch (next_random(seed) % 4) {
        case 0:
            data[at] ^= (uint8_t)(1U << next_random(seed) % 8);
            break;
        case 1:
            data[at] = (uint8_t)next_random(seed);
            break;
        case 2: /* a piece is missing */
            memmove(data + at, data + at + (len - at) / 3, len - at - (len - at) / 3);
            len -= (len - at) / 3;
            break;
        default:
            len = at;
        }
    }
    return len;
}

static int run_file(const char *path, uint8_t *data) {
    FILE *f = fopen(path, "re");
    if (!f) {
        perror(path);
        return 1;
    }
    size_t len = fread(data, 1, INPUT_MAX, f);
    fclose(f);
    LLVMFuzzerTestOneInput(data, len);
    return 0;
}

int main(int argc, char **argv) {
    uint8_t *data = malloc(INPUT_MAX);
    int status = data ? 0 : 1;
    for (int i = 1; i < argc && status == 0; i++)
        status = run_file(argv[i], data);
    uint64_t seed = 1;
    for (unsigned i = 0; argc == 1 && status == 0 && i < ROUNDS; i++)
        LLVMFuzzerTestOneInput(data, change(data, fuzz_seed(i, data, INPUT_MAX), &seed));
    free(data);
    return status;
}

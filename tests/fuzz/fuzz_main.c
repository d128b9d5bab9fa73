/* Drives a fuzz target where there is no libFuzzer: the files that are given (crashes that were found), or else valid
 * inputs with random changes, always the same ones, as a quick test of every build.
 *
 * fuzz_X [rounds=N], fuzz_X FILE…, fuzz_X seeds=DIR (writes some valid inputs, for libFuzzer: tests/fuzz/search). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

#define INPUT_MAX ((size_t)256 * 1024)
#define ROUNDS 20000U
#define SEEDS 32U

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

static int write_seeds(const char *dir, uint8_t *data) {
    for (unsigned i = 0; i < SEEDS; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/seed-%u", dir, i);
        FILE *f = fopen(path, "we");
        size_t len = fuzz_seed(i, data, INPUT_MAX);
        if (!f || fwrite(data, 1, len, f) != len || fclose(f) != 0) {
            perror(path);
            return 1;
        }
    }
    return 0;
}

static void run_rounds(unsigned rounds, uint8_t *data) {
    uint64_t seed = 1;
    for (unsigned i = 0; i < rounds; i++)
        LLVMFuzzerTestOneInput(data, change(data, fuzz_seed(i, data, INPUT_MAX), &seed));
}

int main(int argc, char **argv) {
    uint8_t *data = malloc(INPUT_MAX);
    int status = data ? 0 : 1;
    if (status == 0 && argc == 1)
        run_rounds(ROUNDS, data);
    else if (status == 0 && argc == 2 && strncmp(argv[1], "rounds=", 7) == 0)
        run_rounds((unsigned)strtoul(argv[1] + 7, NULL, 10), data);
    else if (status == 0 && argc == 2 && strncmp(argv[1], "seeds=", 6) == 0)
        status = write_seeds(argv[1] + 6, data);
    else
        for (int i = 1; i < argc && status == 0; i++)
            status = run_file(argv[i], data);
    free(data);
    return status;
}

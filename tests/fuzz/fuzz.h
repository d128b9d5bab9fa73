/* What every fuzz target is: libFuzzer's entry point, and where to begin. Without libFuzzer fuzz_main.c drives it. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Must not crash, whatever the input. Return: 0. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Writes a valid input of at most size bytes, a different one for each number. Return: its length. */
size_t fuzz_seed(unsigned number, uint8_t *ret, size_t size);

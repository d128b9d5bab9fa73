/* A VMM that takes more and more memory, as one does whose guest has found a way to make it. */
#include <stdlib.h>
#include <string.h>

int main(void) {
    for (size_t block = 16 << 20;;) {
        char *p = malloc(block);
        if (p)
            memset(p, 1, block);
    }
}

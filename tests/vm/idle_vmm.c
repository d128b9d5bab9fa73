/* A VMM that does nothing: it keeps its arguments, holds the descriptors that it was given (the TAP among them) and
 * waits for a signal. For tests and benchmarks of everything around a guest. */
#include <unistd.h>

int main(void) {
    for (;;)
        pause();
}

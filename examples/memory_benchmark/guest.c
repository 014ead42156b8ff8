/* Touches every page of a large array in two orders. Compiled into the guest, and into a library of the host:
 * the same instructions, so that the two can be compared. */
#include <stdint.h>

enum { ARRAY = 256 << 20, PAGE = 4096, PAGES = ARRAY / PAGE };

unsigned char array[ARRAY] __attribute__((aligned(PAGE)));

/* One byte of each page, one page after the other; returns how many increments were made. */
uint64_t linear(unsigned char *memory, uint64_t pages, uint64_t rounds) {
    for (uint64_t round = 0; round < rounds; ++round)
        for (uint64_t page = 0; page < pages; ++page)
            ++*(volatile unsigned char *)(memory + page * PAGE);
    return pages * rounds;
}

/* The same pages, each once a round, in an order without a pattern: a linear congruential generator of full
 * period modulo a power of two (Hull and Dobell: odd increment, multiplier 1 modulo 4). */
uint64_t random_order(unsigned char *memory, uint64_t pages, uint64_t rounds) {
    uint64_t page = 0;
    for (uint64_t step = 0; step < pages * rounds; ++step) {
        page = (page * 1664525 + 1013904223) & (pages - 1);
        ++*(volatile unsigned char *)(memory + page * PAGE);
    }
    return pages * rounds;
}

/* For the guest, which has an array of its own. */
uint64_t guest_linear(uint64_t pages, uint64_t rounds) {
    return linear(array, pages, rounds);
}

uint64_t guest_random_order(uint64_t pages, uint64_t rounds) {
    return random_order(array, pages, rounds);
}

/* Copying and filling by string instructions: the fastest way on CPUs with fast strings (SDM 1, 7.3.9.3), and one
 * instruction instead of a loop where supervisor code is interpreted. Both go forward, which memmove relies on. */
#include "rift_internal.h"

RIFT_RUNTIME(memcpy) void *memcpy(void *restrict to, const void *restrict from, size_t bytes) {
    void *target = to;
    const void *source = from;
    size_t words = bytes / 8;
    __asm__ volatile("rep movsq" : "+D"(target), "+S"(source), "+c"(words)::"memory");
    size_t rest = bytes % 8;
    __asm__ volatile("rep movsb" : "+D"(target), "+S"(source), "+c"(rest)::"memory");
    return to;
}

RIFT_RUNTIME(memset) void *memset(void *to, int byte, size_t bytes) {
    void *target = to;
    const uint64_t pattern = 0x0101010101010101u * (uint8_t)byte;
    size_t words = bytes / 8;
    __asm__ volatile("rep stosq" : "+D"(target), "+c"(words) : "a"(pattern) : "memory");
    size_t rest = bytes % 8;
    __asm__ volatile("rep stosb" : "+D"(target), "+c"(rest) : "a"(pattern) : "memory");
    return to;
}

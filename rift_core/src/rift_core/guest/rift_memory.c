/* What the compiler expects of a C library beside memcpy and memset, which are the ISA's.
 * The empty asm keeps it from recognising the loop and calling the function it stands in. */
#include "rift_internal.h"

RIFT_RUNTIME(memmove) void *memmove(void *to, const void *from, size_t bytes) {
    unsigned char *target = to;
    const unsigned char *source = from;
    if ((uintptr_t)target - (uintptr_t)source >= bytes)
        return memcpy(to, from, bytes);
    while (bytes--) {
        target[bytes] = source[bytes];
        rift_compiler_barrier();
    }
    return to;
}

RIFT_RUNTIME(memcmp) int memcmp(const void *first, const void *second, size_t bytes) {
    const unsigned char *left = first, *right = second;
    for (; bytes; --bytes, ++left, ++right)
        if (*left != *right)
            return *left - *right;
    return 0;
}

RIFT_RUNTIME(strlen) size_t strlen(const char *text) {
    const char *end = text;
    while (*end) {
        ++end;
        __asm__ volatile("");
    }
    return (size_t)(end - text);
}

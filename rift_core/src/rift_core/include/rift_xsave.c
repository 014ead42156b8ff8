/* A component whose bit in XSTATE_BV is clear is in its initial state, whatever the image holds there (Intel SDM
 * volume 1, 13.6): it is initialised in the image before a part of it is used. */
#include "rift_xsave.h"

#include <string.h>

enum { BV_X87 = 1, BV_SSE = 2, BV_AVX = 4 };
enum { INITIAL_FCW = 0x37F, INITIAL_MXCSR = 0x1F80 }; /* Intel SDM volume 1, 13.6 */

/* Makes the image say explicitly what the components `wanted` hold. */
static void initialise(uint8_t *image, uint32_t avx_offset, uint64_t wanted) {
    uint64_t bv;
    memcpy(&bv, &image[XSAVE_BV], 8);
    uint64_t missing = wanted & ~bv;
    if (missing & BV_X87) {
        const uint16_t control = INITIAL_FCW;
        memset(image, 0, XSAVE_MXCSR);
        memset(&image[XSAVE_ST], 0, XSAVE_XMM - XSAVE_ST);
        memcpy(&image[XSAVE_FCW], &control, 2);
    }
    if (missing & BV_SSE)
        memset(&image[XSAVE_XMM], 0, 256);
    if ((wanted & BV_SSE) && !(bv & (BV_SSE | BV_AVX))) {
        const uint32_t control = INITIAL_MXCSR;
        memcpy(&image[XSAVE_MXCSR], &control, 4);
    }
    if (missing & BV_AVX)
        memset(&image[avx_offset], 0, 256);
    bv |= wanted;
    memcpy(&image[XSAVE_BV], &bv, 8);
}

static uint64_t components(enum rift_xsave_part part) {
    switch (part) {
    case RIFT_XSAVE_XMM:
    case RIFT_XSAVE_MXCSR:
        return BV_SSE;
    case RIFT_XSAVE_YMM:
        return BV_SSE | BV_AVX;
    default:
        return BV_X87;
    }
}

/* The full tag word out of the abridged one: 3 empty, 0 valid, 1 zero, 2 special (Intel SDM volume 1, 8.1.7 and
 * 10.5.1.1). ST(i) is physical register (TOP + i) mod 8. */
static uint64_t full_tag(const uint8_t *image) {
    uint64_t tag = 0;
    uint32_t top = image[XSAVE_FSW + 1] >> 3 & 7;
    for (uint32_t physical = 0; physical < 8; ++physical) {
        uint64_t significand, two_bits;
        uint16_t exponent;
        const uint8_t *st = &image[XSAVE_ST + 16 * ((physical - top) & 7)];
        memcpy(&significand, st, 8);
        memcpy(&exponent, st + 8, 2);
        exponent &= 0x7FFF;
        if (!(image[XSAVE_FTW] & 1u << physical))
            two_bits = 3;
        else if (exponent == 0 && significand == 0)
            two_bits = 1;
        else
            two_bits = exponent == 0 || exponent == 0x7FFF || !(significand >> 63) ? 2 : 0;
        tag |= two_bits << 2 * physical;
    }
    return tag;
}

static uint8_t abridged_tag(uint64_t tag) {
    uint8_t value = 0;
    for (uint32_t physical = 0; physical < 8; ++physical)
        if ((tag >> 2 * physical & 3) != 3)
            value = (uint8_t)(value | 1u << physical);
    return value;
}

uint32_t rift_xsave_read(uint8_t *image, uint32_t avx_offset, enum rift_xsave_part part, uint32_t place, uint32_t bits,
                         uint64_t *words) {
    initialise(image, avx_offset, components(part));
    switch (part) {
    case RIFT_XSAVE_XMM:
        memcpy(words, &image[XSAVE_XMM + 16 * place], 16);
        return 2;
    case RIFT_XSAVE_YMM:
        memcpy(words, &image[XSAVE_XMM + 16 * place], 16);
        memcpy(words + 2, &image[avx_offset + 16 * place], 16);
        return 4;
    case RIFT_XSAVE_ST:
        words[1] = 0;
        memcpy(words, &image[XSAVE_ST + 16 * place], 10);
        return 2;
    case RIFT_XSAVE_TAG:
        *words = full_tag(image);
        return 1;
    default: /* RIFT_XSAVE_X87, RIFT_XSAVE_MXCSR */
        *words = 0;
        memcpy(words, &image[place], bits / 8);
        return 1;
    }
}

uint32_t rift_xsave_write(uint8_t *image, uint32_t avx_offset, enum rift_xsave_part part, uint32_t place,
                          uint32_t bits, const uint64_t *words) {
    initialise(image, avx_offset, components(part));
    switch (part) {
    case RIFT_XSAVE_XMM:
        memcpy(&image[XSAVE_XMM + 16 * place], words, 16);
        return 2;
    case RIFT_XSAVE_YMM:
        memcpy(&image[XSAVE_XMM + 16 * place], words, 16);
        memcpy(&image[avx_offset + 16 * place], words + 2, 16);
        return 4;
    case RIFT_XSAVE_ST:
        memcpy(&image[XSAVE_ST + 16 * place], words, 10);
        return 2;
    case RIFT_XSAVE_TAG:
        image[XSAVE_FTW] = abridged_tag(*words);
        return 1;
    default: /* RIFT_XSAVE_X87, RIFT_XSAVE_MXCSR */
        memcpy(&image[place], words, bits / 8);
        return 1;
    }
}

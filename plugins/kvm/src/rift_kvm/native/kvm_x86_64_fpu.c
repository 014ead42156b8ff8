/* x87, SSE and AVX registers in the XSAVE image.
 *
 * A component whose bit in XSTATE_BV is clear is in its initial state, whatever the image holds there
 * (Intel SDM volume 1, 13.6): it is initialised in the image before a part of it is written. KVM_SET_FPU
 * does not set those bits, so that what it writes is lost on a fresh vCPU. */
#include "kvm_x86_64.h"

#include <string.h>

enum { BV_X87 = 1, BV_SSE = 2, BV_AVX = 4 };
enum { INITIAL_FCW = 0x37F, INITIAL_MXCSR = 0x1F80 }; /* Intel SDM volume 1, 13.6 */

static uint64_t xstate_bv(const struct rift_kvm_x86 *x86) {
    uint64_t value;
    memcpy(&value, &x86->bytes[XSAVE_BV], 8);
    return value;
}

/* Makes the image say explicitly what the components `wanted` hold. */
static void initialise(struct rift_kvm_x86 *x86, uint64_t wanted) {
    uint64_t bv = xstate_bv(x86), missing = wanted & ~bv;
    if (missing & BV_X87) {
        const uint16_t control = INITIAL_FCW;
        memset(x86->bytes, 0, XSAVE_MXCSR);
        memset(&x86->bytes[XSAVE_ST], 0, XSAVE_XMM - XSAVE_ST);
        memcpy(&x86->bytes[XSAVE_FCW], &control, 2);
    }
    if (missing & BV_SSE)
        memset(&x86->bytes[XSAVE_XMM], 0, 256);
    if ((wanted & BV_SSE) && !(bv & (BV_SSE | BV_AVX))) {
        const uint32_t control = INITIAL_MXCSR;
        memcpy(&x86->bytes[XSAVE_MXCSR], &control, 4);
    }
    if (missing & BV_AVX)
        memset(&x86->bytes[x86->avx_offset], 0, 256);
    bv |= wanted;
    memcpy(&x86->bytes[XSAVE_BV], &bv, 8);
}

static uint64_t components(const struct rift_kvm_register *row) {
    switch (row->group) {
    case X86_XMM:
    case X86_MXCSR:
        return BV_SSE;
    case X86_YMM:
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

int rift_kvm_x86_fpu_read(const struct rift_kvm_x86 *source, const struct rift_kvm_register *row, uint64_t *words) {
    struct rift_kvm_x86 *x86 = (struct rift_kvm_x86 *)source; /* the image's meaning stays the same */
    const uint8_t *image = x86->bytes;
    initialise(x86, components(row));
    switch (row->group) {
    case X86_XMM:
        memcpy(words, &image[XSAVE_XMM + 16 * row->place], 16);
        return 2;
    case X86_YMM:
        memcpy(words, &image[XSAVE_XMM + 16 * row->place], 16);
        memcpy(words + 2, &image[x86->avx_offset + 16u * row->place], 16);
        return 4;
    case X86_ST:
        words[1] = 0;
        memcpy(words, &image[XSAVE_ST + 16 * row->place], 10);
        return 2;
    case X86_TAG:
        *words = full_tag(image);
        return 1;
    default: /* X86_X87, X86_MXCSR */
        *words = 0;
        memcpy(words, &image[row->place], row->bits / 8);
        return 1;
    }
}

int rift_kvm_x86_fpu_write(struct rift_kvm_x86 *x86, const struct rift_kvm_register *row, const uint64_t *words) {
    uint8_t *image = x86->bytes;
    initialise(x86, components(row));
    switch (row->group) {
    case X86_XMM:
        memcpy(&image[XSAVE_XMM + 16 * row->place], words, 16);
        return 2;
    case X86_YMM:
        memcpy(&image[XSAVE_XMM + 16 * row->place], words, 16);
        memcpy(&image[x86->avx_offset + 16u * row->place], words + 2, 16);
        return 4;
    case X86_ST:
        memcpy(&image[XSAVE_ST + 16 * row->place], words, 10);
        return 2;
    case X86_TAG:
        image[XSAVE_FTW] = abridged_tag(*words);
        return 1;
    default: /* X86_X87, X86_MXCSR */
        memcpy(&image[row->place], words, row->bits / 8);
        return 1;
    }
}

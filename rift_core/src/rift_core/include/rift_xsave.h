/* x87, SSE and AVX registers in an XSAVE image of the standard format, which is what every x86-64 hypervisor
 * exchanges: Intel SDM volume 1, 10.5.1 (legacy region) and 13.4 (header).
 *
 * Not part of the contract between plugins: shared source of the backends that have an x86-64 binding. */
#ifndef RIFT_XSAVE_H
#define RIFT_XSAVE_H

#include <stdint.h>

/* Where things stand in the image. */
enum {
    XSAVE_FCW = 0,
    XSAVE_FSW = 2,
    XSAVE_FTW = 4,
    XSAVE_FOP = 6,
    XSAVE_FIP = 8,
    XSAVE_FDP = 16,
    XSAVE_MXCSR = 24,
    XSAVE_ST = 32,
    XSAVE_XMM = 160,
    XSAVE_BV = 512
};

/* What a register of the image is; `place` is a number or an offset. */
enum rift_xsave_part {
    RIFT_XSAVE_XMM,  /* number */
    RIFT_XSAVE_YMM,  /* number */
    RIFT_XSAVE_ST,   /* number */
    RIFT_XSAVE_TAG,  /* the x87 tag word, in full */
    RIFT_XSAVE_X87,  /* offset in the legacy region */
    RIFT_XSAVE_MXCSR /* offset in the legacy region */
};

/* Reads or writes one register of `bits` bits; returns the words that it takes, (bits + 63) / 64. `avx_offset` is
 * where the upper halves of YMM stand (CPUID leaf 0xD.2, EBX). A component that is marked as being in its initial
 * state is written out first, which does not change what the image means. */
uint32_t rift_xsave_read(uint8_t *image, uint32_t avx_offset, enum rift_xsave_part part, uint32_t place, uint32_t bits,
                         uint64_t *words);
uint32_t rift_xsave_write(uint8_t *image, uint32_t avx_offset, enum rift_xsave_part part, uint32_t place,
                          uint32_t bits, const uint64_t *words);

#endif

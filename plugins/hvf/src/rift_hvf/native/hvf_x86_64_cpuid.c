/* CPUID as a plain machine of one hypervisor-less CPU would answer it: what the host's CPU has, less what a guest
 * cannot use here. Intel SDM volume 2, CPUID; every bit that is let through stands in a list below. */
#include "hvf_x86_64.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

static void host_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t result[4]) {
    __cpuid_count(leaf, subleaf, result[0], result[1], result[2], result[3]);
}

uint64_t rift_hvf_x86_host_tsc(void) {
    return __builtin_ia32_rdtsc();
}
#else
/* The framework of another CPU is never opened: there is no answer to give. */
static void host_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t result[4]) {
    (void)leaf, (void)subleaf;
    memset(result, 0, 4 * sizeof(*result));
}

uint64_t rift_hvf_x86_host_tsc(void) {
    return 0;
}
#endif

enum { EAX, EBX, ECX, EDX };
enum { XSAVE_HEADER_END = 576 };

#define BIT(number) (1u << (number))

/* Leaf 1. Not: DTES64, MONITOR, DS-CPL, VMX, SMX, EST, TM2, CNXT-ID, SDBG, xTPR, PDCM, DCA, x2APIC, TSC-deadline,
 * hypervisor. */
static const uint32_t leaf1_ecx = BIT(0) | BIT(1) | BIT(9) | BIT(12) | BIT(13) | BIT(17) | BIT(19) | BIT(20) | BIT(22) |
                                  BIT(23) | BIT(25) | BIT(26) | BIT(28) | BIT(29) | BIT(30);
/* Not: MCE, APIC, MTRR, MCA, PSN, DS, ACPI, HTT, TM, PBE. */
static const uint32_t leaf1_edx = 0x7F | BIT(8) | BIT(11) | BIT(13) | BIT(15) | BIT(16) | BIT(17) | BIT(19) | BIT(23) |
                                  BIT(24) | BIT(25) | BIT(26) | BIT(27);
#define OSXSAVE BIT(27)
/* Leaf 7. FSGSBASE, BMI1, AVX2, SMEP, BMI2, ERMS, INVPCID, AVX-512 F and DQ, RDSEED, ADX, SMAP, AVX-512 IFMA,
 * CLFLUSHOPT, CLWB, AVX-512 CD, SHA, AVX-512 BW and VL. Not: TSC_ADJUST, SGX, HLE, RTM, MPX, PT, resource control. */
static const uint32_t leaf7_ebx = BIT(0) | BIT(3) | BIT(5) | BIT(7) | BIT(8) | BIT(9) | BIT(10) | BIT(16) | BIT(17) |
                                  BIT(18) | BIT(19) | BIT(20) | BIT(21) | BIT(23) | BIT(24) | BIT(28) | BIT(29) |
                                  BIT(30) | BIT(31);
/* AVX-512 VBMI, UMIP, VBMI2, GFNI, VAES, VPCLMULQDQ, VNNI, BITALG, VPOPCNTDQ, RDPID. */
static const uint32_t leaf7_ecx =
    BIT(1) | BIT(2) | BIT(6) | BIT(8) | BIT(9) | BIT(10) | BIT(11) | BIT(12) | BIT(14) | BIT(22);
/* Fast short REP MOVSB. */
static const uint32_t leaf7_edx = BIT(4);
/* Leaf 0x80000001: LAHF, LZCNT, PREFETCHW; SYSCALL, NX, 1 GiB pages, RDTSCP, long mode. */
static const uint32_t extended_ecx = BIT(0) | BIT(5) | BIT(8);
static const uint32_t extended_edx = BIT(11) | BIT(20) | BIT(26) | BIT(27) | BIT(29);

/* x87, SSE, AVX, AVX-512: SDM volume 1, 13.1. */
static const uint64_t usable_xcr0 = 0xE7;

uint64_t rift_hvf_x86_host_xcr0(void) {
    uint32_t result[4];
    host_cpuid(0, 0, result);
    if (result[EAX] < 0xD)
        return 0;
    host_cpuid(1, 0, result);
    if (!(result[ECX] & BIT(26)))
        return 0;
    host_cpuid(0xD, 0, result);
    return ((uint64_t)result[EDX] << 32 | result[EAX]) & usable_xcr0;
}

uint32_t rift_hvf_x86_host_address_bits(void) {
    uint32_t result[4];
    host_cpuid(0x80000000, 0, result);
    if (result[EAX] < 0x80000008)
        return 36;
    host_cpuid(0x80000008, 0, result);
    return result[EAX] & 0xFF;
}

uint32_t rift_hvf_x86_host_avx_offset(void) {
    uint32_t result[4];
    if (!(rift_hvf_x86_host_xcr0() & 4))
        return 0;
    host_cpuid(0xD, 2, result);
    return result[EBX] + result[EAX] <= X86_FPU_BYTES ? result[EBX] : 0;
}

/* Bytes of an XSAVE area in the standard format with the components of `xcr0`. */
static uint32_t area_bytes(uint64_t xcr0) {
    uint32_t bytes = XSAVE_HEADER_END, result[4];
    for (uint32_t component = 2; component < 63; ++component) {
        if (!(xcr0 >> component & 1))
            continue;
        host_cpuid(0xD, component, result);
        if (result[EBX] + result[EAX] > bytes)
            bytes = result[EBX] + result[EAX];
    }
    return bytes;
}

/* The same in the compacted format. */
static uint32_t compact_bytes(uint64_t xcr0) {
    uint32_t bytes = XSAVE_HEADER_END, result[4];
    for (uint32_t component = 2; component < 63; ++component) {
        if (!(xcr0 >> component & 1))
            continue;
        host_cpuid(0xD, component, result);
        if (result[ECX] & 2) /* aligned to 64 bytes */
            bytes = (bytes + 63) & ~63u;
        bytes += result[EAX];
    }
    return bytes;
}

static void extended_state(uint32_t subleaf, uint64_t xcr0, uint32_t result[4]) {
    const uint64_t host = rift_hvf_x86_host_xcr0();
    if (subleaf == 0) {
        result[EAX] = (uint32_t)host;
        result[EBX] = area_bytes(xcr0);
        result[ECX] = area_bytes(host);
        result[EDX] = 0;
    } else if (subleaf == 1) {
        result[EAX] &= 7; /* XSAVEOPT, XSAVEC, XGETBV 1 */
        result[EBX] = compact_bytes(xcr0);
        result[ECX] = result[EDX] = 0;
    } else if (subleaf >= 64 || !(host >> subleaf & 1)) {
        memset(result, 0, 4 * sizeof(*result));
    }
}

/* One package of one core with one thread; the number of this CPU is its x2APIC id. */
static void topology(uint32_t subleaf, uint32_t index, uint32_t result[4]) {
    result[EAX] = 0;
    result[EBX] = subleaf < 2;
    result[ECX] = (subleaf & 0xFF) | (subleaf < 2 ? (subleaf + 1) << 8 : 0); /* level types: 1 SMT, 2 core */
    result[EDX] = index;
}

void rift_hvf_x86_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t index, int osxsave, uint64_t xcr0,
                        uint32_t result[4]) {
    uint32_t most[4];
    host_cpuid(leaf & 0x80000000, 0, most);
    memset(result, 0, 4 * sizeof(*result));
    if (leaf > most[EAX] || leaf > (leaf & 0x80000000 ? 0x80000008 : 0x1F))
        return;
    host_cpuid(leaf, subleaf, result);
    switch (leaf) {
    case 0:
        if (result[EAX] > 0x1F)
            result[EAX] = 0x1F;
        break;
    case 1:
        result[EBX] = (result[EBX] & 0xFFFF) | 1u << 16 | index << 24;
        result[ECX] = (result[ECX] & leaf1_ecx) | (osxsave ? OSXSAVE : 0);
        result[EDX] &= leaf1_edx;
        break;
    case 4: /* caches: shared by nobody */
        result[EAX] &= 0x3FFF;
        break;
    case 6: /* the APIC timer goes on in every state */
        memset(result, 0, 4 * sizeof(*result));
        result[EAX] = BIT(2);
        break;
    case 7:
        if (subleaf != 0) {
            memset(result, 0, 4 * sizeof(*result));
            break;
        }
        result[EAX] = 0;
        result[EBX] &= leaf7_ebx;
        result[ECX] &= leaf7_ecx;
        result[EDX] &= leaf7_edx;
        break;
    case 0xB:
    case 0x1F:
        topology(subleaf, index, result);
        break;
    case 0xD:
        extended_state(subleaf, xcr0, result);
        break;
    case 2: /* caches */
    case 0x15: /* clock frequencies */
    case 0x16:
    case 0x80000002: /* the name */
    case 0x80000003:
    case 0x80000004:
    case 0x80000005:
    case 0x80000006:
    case 0x80000007: /* the time-stamp counter is invariant */
        break;
    case 0x80000000:
        if (result[EAX] > 0x80000008)
            result[EAX] = 0x80000008;
        break;
    case 0x80000001:
        result[ECX] &= extended_ecx;
        result[EDX] &= extended_edx;
        break;
    case 0x80000008:
        result[EAX] &= 0xFFFF;
        result[EBX] = result[ECX] = result[EDX] = 0;
        break;
    default: /* MONITOR, performance counters, SGX, tracing, resource control: there are none */
        memset(result, 0, 4 * sizeof(*result));
        break;
    }
}

/* Registers, VMCS fields, MSRs, vector state and capabilities. See other_x86_64.h. */
#include "other_x86_64.h"

#include <string.h>

#define API __attribute__((visibility("default")))

/* -- capabilities: must be 1, may be 1. An older CPU than the first stand-in's: those controls that the manual calls
 * default1 must be set, with them CR3-load and CR3-store exiting. */
static const struct {
    uint32_t field, must, may;
} capabilities[5] = {
    {F_PIN, 0x0000003f, 0x0000003f},  {F_CPU, 0x9401e1f2, 0xbdb9fffe},  {F_CPU2, 0x000000aa, 0x000000ea},
    {F_ENTRY, 0x000091ff, 0x0000b3ff}, {F_EXIT, 0x00036fff, POOR_CPU ? 0x006befff : 0x007befff},
};

API hv_return_t hv_vmx_read_capability(uint32_t number, uint64_t *value) {
    if (number >= 5)
        return UNSUPPORTED;
    *value = (uint64_t)capabilities[number].may << 32 | capabilities[number].must;
    return SUCCESS;
}

API hv_return_t hv_capability(uint64_t capability, uint64_t *value) {
    if (capability)
        return UNSUPPORTED;
    *value = VCPUS;
    return SUCCESS;
}

/* SDM volume 3, 27.2.1 */
bool controls_allowed(const struct vcpu *cpu) {
    for (unsigned at = 0; at < 5; at++) {
        uint64_t value = FIELD(cpu, capabilities[at].field);
        if ((value & capabilities[at].must) != capabilities[at].must || value & ~(uint64_t)capabilities[at].may)
            return false;
    }
    return true;
}

/* -- the VMCS */

static bool exists(uint32_t field) {
    static const uint16_t ranges[][2] = {{0x0000, 0x0004}, {0x0800, 0x080e}, {0x2000, 0x2014}, {0x201a, 0x202c},
                                         {0x2400, 0x2400}, {0x2800, 0x2810}, {0x4000, 0x4022}, {0x4400, 0x440e},
                                         {0x4800, 0x482a}, {0x6000, 0x600e}, {0x6400, 0x640a}, {0x6800, 0x6826}};
    for (unsigned at = 0; at < sizeof(ranges) / sizeof(ranges[0]); at++)
        if (field >= ranges[at][0] && field <= ranges[at][1])
            return !(field & 1);
    return false;
}

/* What an exit tells, and what is the framework's: bitmaps, tables, the page attribute table. */
static bool is_read_only(uint32_t field) {
    return field == F_GPA || (field & 0xff00) == 0x4400 || (field & 0xff00) == 0x6400 || field == 0x0000 ||
           (field >= 0x2000 && field <= 0x200e) || (field >= 0x2012 && field <= 0x2016) || field == 0x201a || field == 0x2804;
}

static uint64_t width(uint32_t field) {
    static const uint64_t masks[4] = {0xFFFF, ~UINT64_C(0), 0xFFFFFFFF, ~UINT64_C(0)};
    return masks[field >> 13 & 3];
}

API hv_return_t hv_vmx_vcpu_read_vmcs(uint32_t number, uint32_t field, uint64_t *value) {
    struct vcpu *cpu = vcpu_of_thread(number);
    if (!cpu || !exists(field))
        return BAD_ARGUMENT;
    *value = FIELD(cpu, field);
    return SUCCESS;
}

API hv_return_t hv_vmx_vcpu_write_vmcs(uint32_t number, uint32_t field, uint64_t value) {
    struct vcpu *cpu = vcpu_of_thread(number);
    if (!cpu || !exists(field) || is_read_only(field))
        return BAD_ARGUMENT;
    FIELD(cpu, field) = value & width(field);
    return SUCCESS;
}

/* -- registers */

static const uint16_t register_fields[] = {
    [0] = F_RIP, [1] = F_RFLAGS, [8] = F_RSP,
    [18] = F_SELECTOR + 2 * CS, [19] = F_SELECTOR + 2 * SS, [20] = F_SELECTOR + 2 * DS, [21] = F_SELECTOR + 2 * ES,
    [22] = F_SELECTOR + 2 * FS, [23] = F_SELECTOR + 2 * GS, [24] = F_IDTR_BASE, [25] = F_IDTR_LIMIT,
    [26] = F_GDTR_BASE, [27] = F_GDTR_LIMIT, [28] = F_SELECTOR + 2 * LDTR, [29] = F_BASE + 2 * LDTR,
    [30] = F_LIMIT + 2 * LDTR, [31] = F_RIGHTS + 2 * LDTR, [32] = F_SELECTOR + 2 * TR, [33] = F_BASE + 2 * TR,
    [34] = F_LIMIT + 2 * TR, [35] = F_RIGHTS + 2 * TR, [36] = F_CR0, [39] = F_CR3, [40] = F_CR4, [48] = F_DR7,
};

static uint64_t *register_place(struct vcpu *cpu, uint32_t reg) {
    static const uint8_t general[] = {RAX, RCX, RDX, RBX, RSI, RDI, RSP, RBP};
    if (reg < sizeof(register_fields) / 2 && register_fields[reg])
        return &FIELD(cpu, register_fields[reg]);
    if (reg >= 2 && reg <= 17)
        return &cpu->general[reg < 10 ? general[reg - 2] : reg - 2];
    if (reg >= 41 && reg <= 44)
        return &cpu->dr[reg - 41];
    return reg == 38 ? &cpu->cr2 : reg == 47 ? &cpu->dr6 : reg == 49 ? &cpu->cr8 : reg == 50 ? &cpu->xcr0 : NULL;
}

API hv_return_t hv_vcpu_read_register(uint32_t number, uint32_t reg, uint64_t *value) {
    struct vcpu *cpu = vcpu_of_thread(number);
    if (!cpu || !register_place(cpu, reg))
        return BAD_ARGUMENT;
    *value = *register_place(cpu, reg);
    return SUCCESS;
}

API hv_return_t hv_vcpu_write_register(uint32_t number, uint32_t reg, uint64_t value) {
    struct vcpu *cpu = vcpu_of_thread(number);
    if (!cpu || !register_place(cpu, reg))
        return BAD_ARGUMENT;
    if (reg == 50 && (!(value & 1) || value & ~UINT64_C(7) || (value & 6) == 4))
        return BAD_ARGUMENT; /* no CPU holds that in XCR0 */
    *register_place(cpu, reg) = value;
    return SUCCESS;
}

/* -- MSRs */

static const struct {
    uint32_t msr;
    uint16_t field; /* or 0: `kept` */
    uint8_t kept;
} natives[] = {
    {0x10, 0, MSR_KEPT}, {0x174, F_SYSENTER_CS, 0}, {0x175, F_SYSENTER_ESP, 0}, {0x176, F_SYSENTER_EIP, 0},
    {0xC0000081, 0, MSR_STAR}, {0xC0000082, 0, MSR_LSTAR}, {0xC0000083, 0, MSR_CSTAR}, {0xC0000084, 0, MSR_FMASK},
    {0xC0000100, F_BASE + 2 * FS, 0}, {0xC0000101, F_BASE + 2 * GS, 0}, {0xC0000102, 0, MSR_KERNEL_GS},
    {0xC0000103, 0, MSR_TSC_AUX},
};
enum { NATIVES = sizeof(natives) / sizeof(natives[0]) };

/* As a bit; 0: this CPU has none such, or the framework does not let the guest have it. */
static unsigned native_bit(uint32_t msr) {
    for (unsigned at = 0; at < NATIVES; at++)
        if (natives[at].msr == msr)
            return 1u << at;
    return 0;
}

bool msr_is_native(const struct vcpu *cpu, uint32_t msr) {
    return cpu->native & native_bit(msr);
}

uint64_t *msr_place(struct vcpu *cpu, uint32_t msr) {
    for (unsigned at = 0; at < NATIVES; at++)
        if (natives[at].msr == msr && cpu->native & 1u << at && natives[at].kept != MSR_KEPT)
            return natives[at].field ? &FIELD(cpu, natives[at].field) : &cpu->msr[natives[at].kept];
    return NULL;
}

uint64_t tsc_now(const struct vcpu *cpu) {
    return __builtin_ia32_rdtsc() + (FIELD(cpu, F_CPU) & CPU_TSC_OFFSET ? FIELD(cpu, F_TSC_OFFSET) : 0);
}

API hv_return_t hv_vcpu_enable_native_msr(uint32_t number, uint32_t msr, bool enable) {
    struct vcpu *cpu = vcpu_of_thread(number);
    unsigned bit = native_bit(msr);
    if (!cpu || !bit)
        return cpu ? UNSUPPORTED : BAD_ARGUMENT;
    cpu->native = enable ? cpu->native | bit : cpu->native & ~bit;
    return SUCCESS;
}

API hv_return_t hv_vcpu_read_msr(uint32_t number, uint32_t msr, uint64_t *value) {
    struct vcpu *cpu = vcpu_of_thread(number);
    if (!cpu || !msr_is_native(cpu, msr))
        return BAD_ARGUMENT;
    *value = msr_place(cpu, msr) ? *msr_place(cpu, msr) : tsc_now(cpu);
    return SUCCESS;
}

API hv_return_t hv_vcpu_write_msr(uint32_t number, uint32_t msr, uint64_t value) {
    struct vcpu *cpu = vcpu_of_thread(number);
    if (!cpu || !msr_is_native(cpu, msr))
        return BAD_ARGUMENT;
    if (msr_place(cpu, msr))
        *msr_place(cpu, msr) = value;
    else
        FIELD(cpu, F_TSC_OFFSET) += value - tsc_now(cpu);
    return SUCCESS;
}

/* -- vector state: an XSAVE area in the standard format, written as XSAVEOPT does: what is in its initial state is left
 * as the buffer has it, with its bit of XSTATE_BV clear */

enum { FCW = 0, FSW = 2, FTW = 4, FOP = 6, FIP = 8, FDP = 16, MXCSR = 24, MXCSR_MASK = 28, ST = 32, XMM = 160, BV = 512,
       COMPACT = 520, AVX = 576, INITIAL_FCW = 0x37F, INITIAL_MXCSR = 0x1F80 };

static const struct {
    int id;
    uint16_t at, bytes;
} legacy[] = {
    {UC_X86_REG_FPCW, FCW, 2}, {UC_X86_REG_FPSW, FSW, 2}, {UC_X86_REG_FOP, FOP, 2}, {UC_X86_REG_FIP, FIP, 8}, {UC_X86_REG_FDP, FDP, 8},
};

static bool all_zero(const uint8_t *bytes, size_t count) {
    return count == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, count - 1) == 0);
}

API hv_return_t hv_vcpu_read_fpstate(uint32_t number, void *buffer, size_t size) {
    struct vcpu *cpu = vcpu_of_thread(number);
    uint8_t area[XSAVE_BYTES] = {0}, *out = buffer;
    uint64_t bv = 0;
    uint32_t mxcsr = 0, mask = 0xFFFF;
    uint16_t tags = 0;
    if (!cpu || size < XSAVE_BYTES)
        return BAD_ARGUMENT;
    for (unsigned at = 0; at < sizeof(legacy) / sizeof(legacy[0]); at++) {
        uint64_t value = 0;
        uc_reg_read(cpu->uc, legacy[at].id, &value);
        memcpy(area + legacy[at].at, &value, legacy[at].bytes);
    }
    uc_reg_read(cpu->uc, UC_X86_REG_FPTAG, &tags);
    for (int at = 0; at < 8; at++) {
        if ((tags >> 2 * at & 3) != 3)
            area[FTW] |= (uint8_t)(1 << at);
        uc_reg_read(cpu->uc, UC_X86_REG_ST0 + at, area + ST + 16 * at);
    }
    for (int at = 0; at < 16; at++)
        uc_reg_read(cpu->uc, UC_X86_REG_XMM0 + at, area + XMM + 16 * at);
    uc_reg_read(cpu->uc, UC_X86_REG_MXCSR, &mxcsr);
    mxcsr &= mask; /* the engine's LDMXCSR takes every bit */
    if (area[FCW] != (INITIAL_FCW & 0xFF) || area[FCW + 1] != INITIAL_FCW >> 8 || !all_zero(area + FSW, MXCSR - FSW)) {
        bv |= 1;
        memcpy(out, area, MXCSR);
        memcpy(out + ST, area + ST, XMM - ST);
    }
    if (!all_zero(area + XMM, 256) || mxcsr != INITIAL_MXCSR) {
        bv |= 2;
        memcpy(out + XMM, area + XMM, 256);
        memcpy(out + MXCSR, &mxcsr, 4);
        memcpy(out + MXCSR_MASK, &mask, 4);
    }
    if (!all_zero(cpu->avx, 256)) {
        bv |= 4;
        memcpy(out + AVX, cpu->avx, 256);
        memcpy(out + MXCSR, &mxcsr, 4);
    }
    memset(out + BV, 0, AVX - BV);
    memcpy(out + BV, &bv, 8);
    return SUCCESS;
}

static uint16_t full_tags(const uint8_t *area) {
    uint16_t tags = 0;
    for (int at = 0; at < 8; at++)
        if (!(area[FTW] >> at & 1))
            tags |= (uint16_t)(3 << 2 * at);
    return tags;
}

API hv_return_t hv_vcpu_write_fpstate(uint32_t number, const void *buffer, size_t size) {
    struct vcpu *cpu = vcpu_of_thread(number);
    uint8_t area[XSAVE_BYTES];
    uint64_t bv;
    uint32_t mxcsr;
    if (!cpu || size < XSAVE_BYTES)
        return BAD_ARGUMENT;
    memcpy(area, buffer, XSAVE_BYTES);
    memcpy(&bv, area + BV, 8);
    memcpy(&mxcsr, area + MXCSR, 4);
    if (bv & ~UINT64_C(7) || !all_zero(area + COMPACT, AVX - COMPACT) || ((bv & 6) && mxcsr >> 16))
        return BAD_ARGUMENT; /* XRSTOR would fault: SDM volume 1, 13.8.1 */
    if (!(bv & 1)) {
        memset(area, 0, MXCSR);
        memset(area + ST, 0, XMM - ST);
        area[FCW] = INITIAL_FCW & 0xFF;
        area[FCW + 1] = INITIAL_FCW >> 8;
    }
    if (!(bv & 2))
        memset(area + XMM, 0, 256);
    if (!(bv & 6))
        mxcsr = INITIAL_MXCSR;
    if (bv & 4)
        memcpy(cpu->avx, area + AVX, 256);
    else
        memset(cpu->avx, 0, 256);
    for (unsigned at = 0; at < sizeof(legacy) / sizeof(legacy[0]); at++) {
        uint64_t value = 0;
        memcpy(&value, area + legacy[at].at, legacy[at].bytes);
        uc_reg_write(cpu->uc, legacy[at].id, &value);
    }
    for (int at = 0; at < 8; at++)
        uc_reg_write(cpu->uc, UC_X86_REG_ST0 + at, area + ST + 16 * at);
    uint16_t tags = full_tags(area);
    uc_reg_write(cpu->uc, UC_X86_REG_FPTAG, &tags);
    for (int at = 0; at < 16; at++)
        uc_reg_write(cpu->uc, UC_X86_REG_XMM0 + at, area + XMM + 16 * at);
    uc_reg_write(cpu->uc, UC_X86_REG_MXCSR, &mxcsr);
    return SUCCESS;
}

/* Nothing is as one might wish it to be: what a vCPU starts with nobody says, so whoever needs something sets it. */
hv_return_t vcpu_reset(struct vcpu *cpu) {
    const uint16_t cw = INITIAL_FCW, tags = 0xFFFF;
    const uint32_t mxcsr = INITIAL_MXCSR;
    for (uint32_t field = 0; field < F_END; field += 2)
        FIELD(cpu, field) = exists(field) ? UINT64_C(0x5EED5EED5EED5EED) & width(field) : 0;
    for (int at = 0; at < 16; at++)
        cpu->general[at] = UINT64_C(0xD00DD00D00000000) + (unsigned)at;
    FIELD(cpu, F_TSC_OFFSET) = 0;
    FIELD(cpu, F_CR0_SHADOW) = FIELD(cpu, F_CR4_SHADOW) = 0;
    FIELD(cpu, F_PF_MASK) = FIELD(cpu, F_PF_MATCH) = 0;
    FIELD(cpu, F_PENDING_DEBUG) = 0;
    FIELD(cpu, F_SYSENTER_CS) = FIELD(cpu, F_SYSENTER_ESP) = FIELD(cpu, F_SYSENTER_EIP) = 0;
    cpu->xcr0 = 1;
    cpu->dr6 = 0xFFFF0FF0;
    uc_reg_write(cpu->uc, UC_X86_REG_FPCW, &cw);
    uc_reg_write(cpu->uc, UC_X86_REG_FPTAG, &tags);
    uc_reg_write(cpu->uc, UC_X86_REG_MXCSR, &mxcsr);
    return SUCCESS;
}

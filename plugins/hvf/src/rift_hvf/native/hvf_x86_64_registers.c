/* The register table, and access by its ids. Names are the manuals', lower case; a segment's parts follow a dot. */
#include "hvf_x86_64.h"

#include <errno.h>
#include <string.h>

/* Where a register is: rift_hvf_register.group; `place` is a number or a field. */
enum x86_group {
    GROUP_REGISTER,   /* hv_x86_reg_t */
    GROUP_FIELD,      /* of the VMCS */
    GROUP_ATTRIBUTES, /* of the VMCS: access rights, where 0 stands for an unusable segment */
    GROUP_CR0,
    GROUP_CR4,
    GROUP_CONTROL,    /* a field after whose change translations are flushed */
    GROUP_EFER,
    GROUP_KEPT,       /* 64 bits of struct rift_hvf_x86, at an offset */
    GROUP_MSR,        /* index into rift_hvf_x86_msrs */
    GROUP_DEBUG,      /* DR0 to DR3, and 4: DR7 */
    GROUP_XMM,        /* this and the rest: enum rift_xsave_part */
    GROUP_YMM,
    GROUP_ST,
    GROUP_TAG,
    GROUP_X87,
    GROUP_MXCSR
};

_Static_assert(GROUP_MXCSR - GROUP_XMM == RIFT_XSAVE_MXCSR, "the two lists agree");

#define GENERAL(name, number) {#name, 64, GROUP_REGISTER, number}
#define SEGMENT(name, segment)                                               \
    {#name ".selector", 16, GROUP_FIELD, VMCS_GUEST_ES + 2 * (segment)},     \
    {#name ".base", 64, GROUP_FIELD, VMCS_GUEST_ES_BASE + 2 * (segment)},    \
    {#name ".limit", 32, GROUP_FIELD, VMCS_GUEST_ES_LIMIT + 2 * (segment)},  \
    {#name ".attributes", 16, GROUP_ATTRIBUTES, VMCS_GUEST_ES_AR + 2 * (segment)}
#define KEPT(name) {#name, 64, GROUP_KEPT, offsetof(struct rift_hvf_x86, name)}
#define NUMBERED(name, bits, kind, number) {#name #number, bits, kind, number}
#define EIGHT(name, bits, kind)                                                                          \
    NUMBERED(name, bits, kind, 0), NUMBERED(name, bits, kind, 1), NUMBERED(name, bits, kind, 2),         \
    NUMBERED(name, bits, kind, 3), NUMBERED(name, bits, kind, 4), NUMBERED(name, bits, kind, 5),         \
    NUMBERED(name, bits, kind, 6), NUMBERED(name, bits, kind, 7)
#define SIXTEEN(name, bits, kind)                                                                        \
    EIGHT(name, bits, kind), NUMBERED(name, bits, kind, 8), NUMBERED(name, bits, kind, 9),               \
    NUMBERED(name, bits, kind, 10), NUMBERED(name, bits, kind, 11), NUMBERED(name, bits, kind, 12),      \
    NUMBERED(name, bits, kind, 13), NUMBERED(name, bits, kind, 14), NUMBERED(name, bits, kind, 15)

const struct rift_hvf_register rift_hvf_x86_registers[X86_REGISTER_COUNT] = {
    GENERAL(rax, HV_RAX), GENERAL(rbx, HV_RBX), GENERAL(rcx, HV_RCX), GENERAL(rdx, HV_RDX), GENERAL(rsi, HV_RSI),
    GENERAL(rdi, HV_RDI), GENERAL(rbp, HV_RBP), GENERAL(rsp, HV_RSP), GENERAL(r8, HV_R8), GENERAL(r9, HV_R8 + 1),
    GENERAL(r10, HV_R8 + 2), GENERAL(r11, HV_R8 + 3), GENERAL(r12, HV_R8 + 4), GENERAL(r13, HV_R8 + 5),
    GENERAL(r14, HV_R8 + 6), GENERAL(r15, HV_R15), GENERAL(rip, HV_RIP), GENERAL(rflags, HV_RFLAGS),
    SEGMENT(cs, SEGMENT_CS), SEGMENT(ds, SEGMENT_DS), SEGMENT(es, SEGMENT_ES), SEGMENT(fs, SEGMENT_FS),
    SEGMENT(gs, SEGMENT_GS), SEGMENT(ss, SEGMENT_SS), SEGMENT(tr, SEGMENT_TR), SEGMENT(ldtr, SEGMENT_LDTR),
    {"gdtr.base", 64, GROUP_FIELD, VMCS_GUEST_GDTR_BASE}, {"gdtr.limit", 16, GROUP_FIELD, VMCS_GUEST_GDTR_LIMIT},
    {"idtr.base", 64, GROUP_FIELD, VMCS_GUEST_IDTR_BASE}, {"idtr.limit", 16, GROUP_FIELD, VMCS_GUEST_IDTR_LIMIT},
    {"cr0", 64, GROUP_CR0, 0}, GENERAL(cr2, HV_CR2), {"cr3", 64, GROUP_CONTROL, VMCS_GUEST_CR3},
    {"cr4", 64, GROUP_CR4, 0}, KEPT(cr8), {"efer", 64, GROUP_EFER, VMCS_GUEST_IA32_EFER}, KEPT(apic_base),
    GENERAL(xcr0, HV_XCR0),
    /* in the order of rift_hvf_x86_msrs */
    {"star", 64, GROUP_MSR, 0}, {"lstar", 64, GROUP_MSR, 1}, {"cstar", 64, GROUP_MSR, 2},
    {"sfmask", 64, GROUP_MSR, 3}, {"kernel_gs_base", 64, GROUP_MSR, 4}, {"tsc_aux", 64, GROUP_MSR, 5},
    {"tsc", 64, GROUP_MSR, 6}, KEPT(pat), {"sysenter_cs", 64, GROUP_MSR, 7}, {"sysenter_esp", 64, GROUP_MSR, 8},
    {"sysenter_eip", 64, GROUP_MSR, 9},
    {"dr0", 64, GROUP_DEBUG, 0}, {"dr1", 64, GROUP_DEBUG, 1}, {"dr2", 64, GROUP_DEBUG, 2}, {"dr3", 64, GROUP_DEBUG, 3},
    GENERAL(dr6, HV_DR6), {"dr7", 64, GROUP_DEBUG, 4},
    SIXTEEN(xmm, 128, GROUP_XMM), SIXTEEN(ymm, 256, GROUP_YMM), EIGHT(st, 80, GROUP_ST),
    {"mxcsr", 32, GROUP_MXCSR, XSAVE_MXCSR},
    {"fctrl", 16, GROUP_X87, XSAVE_FCW}, {"fstat", 16, GROUP_X87, XSAVE_FSW}, {"ftag", 16, GROUP_TAG, 0},
    {"fop", 16, GROUP_X87, XSAVE_FOP}, {"fip", 64, GROUP_X87, XSAVE_FIP}, {"fdp", 64, GROUP_X87, XSAVE_FDP},
    /* the same two pointers as debuggers know them: offset and selector */
    {"fioff", 32, GROUP_X87, XSAVE_FIP}, {"fiseg", 16, GROUP_X87, XSAVE_FIP + 4},
    {"fooff", 32, GROUP_X87, XSAVE_FDP}, {"foseg", 16, GROUP_X87, XSAVE_FDP + 4},
};

static int is_vector(const struct rift_hvf_register *row) {
    return row->group >= GROUP_XMM;
}

/* A register that this CPU or framework does not have. */
static int absent(const struct rift_hvf_cpu *cpu, const struct rift_hvf_register *row, struct rift_error *error) {
    const int no_vectors = is_vector(row) && !(cpu->framework->x86.read_fpstate && cpu->framework->x86.write_fpstate);
    if (!no_vectors && !(row->group == GROUP_YMM && !x86_of(cpu)->avx_offset))
        return 0;
    return rift_hvf_fail(error, EOPNOTSUPP, row->name);
}

static int read_one(struct rift_hvf_cpu *cpu, const struct rift_hvf_register *row, uint64_t *value,
                    struct rift_error *error) {
    switch (row->group) {
    case GROUP_REGISTER:
        return rift_hvf_x86_get(cpu, row->place, value, error);
    case GROUP_ATTRIBUTES:
        if (rift_hvf_x86_vmread(cpu, row->place, value, error))
            return -1;
        *value = *value & SEGMENT_UNUSABLE ? 0 : *value & 0xFFFF;
        return 0;
    case GROUP_CR0:
        return rift_hvf_x86_read_masked(cpu, VMCS_GUEST_CR0, VMCS_CTRL_CR0_MASK, VMCS_CTRL_CR0_SHADOW, value, error);
    case GROUP_CR4:
        return rift_hvf_x86_read_masked(cpu, VMCS_GUEST_CR4, VMCS_CTRL_CR4_MASK, VMCS_CTRL_CR4_SHADOW, value, error);
    case GROUP_KEPT:
        memcpy(value, (const uint8_t *)cpu->state + row->place, 8);
        return 0;
    case GROUP_MSR:
        return rift_hvf_x86_read_msr(cpu, row->place, value, error);
    case GROUP_DEBUG:
        return rift_hvf_x86_read_debug(cpu, row->place, value, error);
    default: /* GROUP_FIELD, GROUP_CONTROL, GROUP_EFER */
        return rift_hvf_x86_vmread(cpu, row->place, value, error);
    }
}

/* The shadow of STI or MOV SS belongs to the instruction at RIP. Elsewhere it would hold interrupts off for nothing, and
 * with IF clear, or another TF, the entry would be refused: SDM volume 3, 27.3.1.5. Where to, or which flags, the host
 * has decided. */
static int leave_shadow(struct rift_hvf_cpu *cpu, uint32_t number, uint64_t value, struct rift_error *error) {
    uint64_t old, interruptibility, pending;
    if (rift_hvf_x86_get(cpu, number, &old, error) ||
        rift_hvf_x86_vmread(cpu, VMCS_GUEST_INTERRUPTIBILITY, &interruptibility, error))
        return -1;
    const uint64_t changed = number == HV_RIP ? old ^ value : (old ^ value) & (RFLAGS_IF | RFLAGS_TF);
    if (!(interruptibility & BLOCKED_BY_STI_OR_MOV_SS) || !changed)
        return 0;
    if (rift_hvf_x86_vmwrite(cpu, VMCS_GUEST_INTERRUPTIBILITY, interruptibility & ~BLOCKED_BY_STI_OR_MOV_SS, error) ||
        rift_hvf_x86_vmread(cpu, VMCS_GUEST_DEBUG_EXC, &pending, error))
        return -1;
    return rift_hvf_x86_vmwrite(cpu, VMCS_GUEST_DEBUG_EXC, pending & ~DR6_STEP, error);
}

static int write_one(struct rift_hvf_cpu *cpu, const struct rift_hvf_register *row, uint64_t value,
                     struct rift_error *error) {
    switch (row->group) {
    case GROUP_REGISTER:
        if ((row->place == HV_RIP || row->place == HV_RFLAGS) && leave_shadow(cpu, row->place, value, error))
            return -1;
        return rift_hvf_x86_set(cpu, row->place, value, error);
    case GROUP_ATTRIBUTES:
        return rift_hvf_x86_vmwrite(cpu, row->place, value & 0x80 ? value : SEGMENT_UNUSABLE, error); /* P, bit 7 */
    case GROUP_CR0:
        return rift_hvf_x86_write_cr0(cpu, value, error);
    case GROUP_CR4:
        return rift_hvf_x86_write_cr4(cpu, value, error);
    case GROUP_CONTROL:
        return rift_hvf_x86_vmwrite(cpu, row->place, value, error) ? -1 : rift_hvf_x86_flush(cpu, error);
    case GROUP_EFER:
        return rift_hvf_x86_write_efer(cpu, value, error);
    case GROUP_KEPT:
        memcpy((uint8_t *)cpu->state + row->place, &value, 8);
        return 0;
    case GROUP_MSR:
        return rift_hvf_x86_write_msr(cpu, row->place, value, error);
    case GROUP_DEBUG:
        return rift_hvf_x86_write_debug(cpu, row->place, value, error);
    default: /* GROUP_FIELD */
        return rift_hvf_x86_vmwrite(cpu, row->place, value, error);
    }
}

int rift_hvf_x86_read(struct rift_hvf_cpu *cpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                      struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    for (uint32_t at = 0; at < count; ++at) {
        const struct rift_hvf_register *row = &rift_hvf_x86_registers[ids[at]];
        if (absent(cpu, row, error))
            return -1;
        if (is_vector(row)) {
            if (rift_hvf_x86_fetch_fpu(cpu, error))
                return -1;
            words += rift_xsave_read(x86->fpu, x86->avx_offset, (enum rift_xsave_part)(row->group - GROUP_XMM), row->place,
                                     row->bits, words);
        } else if (read_one(cpu, row, words++, error)) {
            return -1;
        }
    }
    return 0;
}

int rift_hvf_x86_write(struct rift_hvf_cpu *cpu, const uint32_t *ids, uint32_t count, const uint64_t *words,
                       struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    const uint64_t *word = words;
    for (uint32_t at = 0; at < count; ++at) { /* nothing changes before all is known to fit */
        const struct rift_hvf_register *row = &rift_hvf_x86_registers[ids[at]];
        uint32_t size = (row->bits + 63) / 64, top = row->bits % 64;
        if (top && word[size - 1] >> top)
            return rift_hvf_fail(error, ERANGE, row->name);
        if (absent(cpu, row, error) || (is_vector(row) && rift_hvf_x86_fetch_fpu(cpu, error)))
            return -1;
        word += size;
    }
    for (uint32_t at = 0; at < count; ++at) {
        const struct rift_hvf_register *row = &rift_hvf_x86_registers[ids[at]];
        if (is_vector(row)) {
            words += rift_xsave_write(x86->fpu, x86->avx_offset, (enum rift_xsave_part)(row->group - GROUP_XMM), row->place,
                                      row->bits, words);
            x86->fpu_changed = 1;
        } else if (write_one(cpu, row, *words++, error)) {
            return -1;
        }
    }
    return x86->fpu_changed ? rift_hvf_x86_store_fpu(cpu, error) : 0; /* a refusal is told to whoever wrote it */
}

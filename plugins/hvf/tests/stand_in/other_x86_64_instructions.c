/* Instructions before which the engine is stopped: those that exit, and those that the engine does not carry out as the
 * manual says. See other_x86_64.h. SDM volume 3, 26.1 (what exits), 28.2 (qualifications). */
#include "other_x86_64.h"

struct instruction {
    unsigned opcode; /* 0x0F00 + the second byte for those of two bytes */
    unsigned modrm, immediate;
    unsigned length; /* if it is on the list: the engine does not know that of those that it does not have */
    unsigned size; /* of the operand */
    unsigned rex, segment; /* segment: enum segment of a prefix, or DS */
    bool repeated, address32;
};

static bool fetch(struct vcpu *cpu, uint64_t rip, uint8_t code[15]) {
    const uint8_t *bytes = look(cpu, rip);
    const unsigned here = 4096 - (rip & 4095);
    for (unsigned at = 0; at < 15; at++) {
        if (at == here)
            bytes = look(cpu, rip + at) ? look(cpu, rip + at) - at : NULL;
        code[at] = bytes ? bytes[at] : 0;
    }
    return look(cpu, rip) != NULL;
}

static bool decode(struct vcpu *cpu, uint64_t rip, struct instruction *found) {
    uint8_t code[15];
    unsigned at = 0;
    *found = (struct instruction){.size = long_code(cpu) || SEGMENT(cpu, F_RIGHTS, CS) >> 14 & 1 ? 4 : 2, .segment = DS};
    if (!fetch(cpu, rip, code))
        return false;
    for (bool prefix = true; prefix && at < 11; at += prefix) {
        static const uint8_t overrides[6] = {0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65};
        prefix = code[at] == 0x66 || code[at] == 0x67 || code[at] == 0xF0 || code[at] == 0xF2 || code[at] == 0xF3;
        for (int segment = 0; segment < 6; segment++)
            if (code[at] == overrides[segment])
                prefix = true, found->segment = (unsigned)segment;
        found->size = code[at] == 0x66 ? 2 : found->size;
        found->address32 |= code[at] == 0x67;
        found->repeated |= code[at] == 0xF2 || code[at] == 0xF3;
        if (prefix)
            found->rex = 0; /* it counts right before the opcode only */
        else if (long_code(cpu) && (code[at] & 0xF0) == 0x40)
            prefix = true, found->rex = code[at];
    }
    found->opcode = code[at++];
    if (found->opcode == 0x0F)
        found->opcode = 0x0F00 | code[at++];
    found->modrm = found->immediate = code[at];
    const bool two = found->opcode >> 8, more = two ? found->opcode <= 0x0F01 || (found->opcode & 0xFC) == 0x20
                                                    : found->opcode == 0xCD || (found->opcode & 0xFC) == 0xE4;
    found->length = at + more;
    return true;
}

static bool at_ring_0(const struct vcpu *cpu) {
    uint64_t cs = 0;
    uc_reg_read(cpu->uc, UC_X86_REG_CS, &cs); /* whose RPL is the level, in protected mode */
    return !(cs & 3);
}

/* Those of group 0F 01. */
static bool group_concerns(struct vcpu *cpu, unsigned modrm) {
    if (modrm >= 0xC1 && modrm <= 0xC4)
        return true; /* VMCALL, VMLAUNCH, VMRESUME, VMXOFF */
    if (modrm == 0xC8 || modrm == 0xC9 || modrm == 0xF8) /* MONITOR, MWAIT, SWAPGS */
        return at_ring_0(cpu);
    if (modrm == 0xD1)
        return at_ring_0(cpu) && FIELD(cpu, F_CR4) >> 18 & 1; /* XSETBV */
    return modrm == 0xF9 || (modrm & 0xF8) == 0xE0; /* RDTSCP; SMSW of a register */
}

bool instruction_concerns(struct vcpu *cpu, uint64_t rip) {
    struct instruction found;
    uint64_t value = 0;
    if (!decode(cpu, rip, &found))
        return false;
    switch (found.opcode) {
    case 0xFB: /* STI: for a look at the next boundary */
        uc_reg_read(cpu->uc, UC_X86_REG_RFLAGS, &value);
        cpu->next_shadow = value & IF ? 0 : 1;
        return false;
    case 0x8E: /* MOV SS */
        cpu->next_shadow = (found.modrm >> 3 & 7) == SS ? 2 : 0;
        return false;
    case 0xCC: case 0xCD: case 0xF1: /* INT3, INT n, INT1 */
    case 0xE4: case 0xE5: case 0xE6: case 0xE7: case 0xEC: case 0xED: case 0xEE: case 0xEF: /* IN, OUT */
    case 0x0F05: case 0x0F34: /* SYSCALL, SYSENTER */
    case 0x0FA2: case 0x0F31: case 0x0F33: /* CPUID, RDTSC, RDPMC */
        return true;
    case 0x6C: case 0x6D: case 0x6E: case 0x6F: /* INS, OUTS */
        uc_reg_read(cpu->uc, UC_X86_REG_RCX, &value);
        return !found.repeated || (found.address32 ? (uint32_t)value : value) != 0;
    case 0xF4: case 0x0F06: case 0x0F08: case 0x0F09: /* HLT, CLTS, INVD, WBINVD */
    case 0x0F20: case 0x0F21: case 0x0F22: case 0x0F23: /* MOV CR, MOV DR */
    case 0x0F30: case 0x0F32: /* WRMSR, RDMSR */
        return at_ring_0(cpu);
    case 0x0F00: /* LTR of a register */
        return (found.modrm & 0xF8) == 0xD8 && at_ring_0(cpu);
    case 0x0F01:
        return group_concerns(cpu, found.modrm);
    default:
        return false;
    }
}

/* -- carrying them out; the engine's state is in *cpu */

static enum outcome done(struct vcpu *cpu) {
    FIELD(cpu, F_RIP) += cpu->length;
    cpu->shadow = 0;
    cpu->resume = false;
    cpu->executed++;
    if (FIELD(cpu, F_RFLAGS) & TF)
        cpu->hits |= STEPPED;
    return GO_ON;
}

static enum outcome exits(struct vcpu *cpu, uint32_t reason, uint64_t qualification) {
    leave_instruction(cpu, reason, qualification);
    return LEFT;
}

static enum outcome faults(struct vcpu *cpu, unsigned vector) {
    FIELD(cpu, F_RFLAGS) |= RF;
    return raise_exception(cpu, vector, EXCEPTION, 0, 0);
}

static enum outcome passes(struct vcpu *cpu) {
    cpu->pass = true;
    return GO_ON;
}

static void answer(struct vcpu *cpu, uint64_t value) {
    cpu->general[RAX] = value & 0xFFFFFFFF;
    cpu->general[RDX] = value >> 32;
}

static uint64_t *operand(struct vcpu *cpu, const struct instruction *found) {
    const unsigned number = (found->modrm & 7) | (found->rex & 1) << 3;
    return number == RSP ? &FIELD(cpu, F_RSP) : &cpu->general[number];
}

static enum outcome io(struct vcpu *cpu, const struct instruction *found) {
    const bool string = found->opcode < 0x70, immediate = !string && !(found->opcode & 8);
    const bool in = string ? found->opcode < 0x6E : !(found->opcode & 2);
    const unsigned port = immediate ? found->immediate : (unsigned)cpu->general[RDX] & 0xFFFF;
    const unsigned size = found->opcode & 1 ? found->size : 1;
    if (!port_allowed(cpu, port, size))
        return faults(cpu, GP);
    leave_instruction(cpu, R_IO, (size - 1) | (in ? 8 : 0) | (string ? 16 : 0) | (string && found->repeated ? 32 : 0) |
                                     (immediate ? 64 : 0) | port << 16);
    if (string) {
        const unsigned segment = in ? ES : found->segment;
        uint64_t linear = cpu->general[in ? RDI : RSI] & (found->address32 ? 0xFFFFFFFF : ~UINT64_C(0));
        if (segment == FS || segment == GS)
            linear += SEGMENT(cpu, F_BASE, segment);
        FIELD(cpu, F_LINEAR) = linear;
        FIELD(cpu, F_INSTRUCTION) = (found->address32 ? 1u : 2u) << 7 | segment << 15;
    }
    return LEFT;
}

static enum outcome msr(struct vcpu *cpu, bool write) {
    const uint32_t number = (uint32_t)cpu->general[RCX];
    const uint64_t value = (cpu->general[RDX] << 32) | (cpu->general[RAX] & 0xFFFFFFFF);
    uint64_t *place = msr_place(cpu, number);
    if (!msr_is_native(cpu, number))
        return exits(cpu, write ? R_WRMSR : R_RDMSR, 0);
    if (!write) {
        answer(cpu, place ? *place : tsc_now(cpu));
        return done(cpu);
    }
    const bool address = number == 0x175 || number == 0x176 || (number >= 0xC0000082 && number <= 0xC0000083) ||
                         (number >= 0xC0000100 && number <= 0xC0000102);
    if (address ? !canonical(value) : number >= 0xC0000084 && value >> 32)
        return faults(cpu, GP);
    if (place)
        *place = value;
    else
        FIELD(cpu, F_TSC_OFFSET) += value - tsc_now(cpu);
    return done(cpu);
}

/* The guest's new value of CR0: SDM volume 2, MOV to control registers. */
static enum outcome set_cr0(struct vcpu *cpu, uint64_t value) {
    const uint64_t old = FIELD(cpu, F_CR0);
    const bool longs = value & PG && cpu->efer & LME;
    if (value >> 32 || (value & PG && !(value & PE)) || !(value & NE) || (value & 1u << 29 && !(value & 1u << 30)))
        return faults(cpu, GP);
    if (longs && !(old & PG) && (!(FIELD(cpu, F_CR4) & PAE) || SEGMENT(cpu, F_RIGHTS, CS) >> 13 & 1))
        return faults(cpu, GP);
    if (!(value & PG) && old & PG && long_code(cpu))
        return faults(cpu, GP);
    FIELD(cpu, F_CR0) = value;
    cpu->efer = longs ? cpu->efer | LMA : cpu->efer & ~(uint64_t)LMA;
    uc_ctl_flush_tlb(cpu->uc);
    return done(cpu);
}

static enum outcome set_cr4(struct vcpu *cpu, uint64_t value) {
    if (value & ~UINT64_C(0x3727FF) || !(value & VMXE) || (!(value & PAE) && cpu->efer & LMA) ||
        (value & PCIDE && !(FIELD(cpu, F_CR4) & PCIDE) && (!(cpu->efer & LMA) || FIELD(cpu, F_CR3) & 0xFFF)))
        return faults(cpu, GP);
    FIELD(cpu, F_CR4) = value;
    uc_ctl_flush_tlb(cpu->uc);
    return done(cpu);
}

static enum outcome mov_cr(struct vcpu *cpu, const struct instruction *found) {
    const unsigned number = (found->modrm >> 3 & 7) | (found->rex & 4) << 1;
    const unsigned general = (found->modrm & 7) | (found->rex & 1) << 3;
    const bool to = found->opcode == 0x0F22;
    const uint64_t qualification = number | (to ? 0 : 1 << 4) | general << 8;
    uint64_t *place = operand(cpu, found);
    const uint32_t controls = (uint32_t)FIELD(cpu, F_CPU);
    if (number == 3 && controls & (to ? CPU_CR3_LOAD : CPU_CR3_STORE))
        return exits(cpu, R_MOV_CR, qualification);
    if (number == 8 && controls & (to ? CPU_CR8_LOAD : CPU_CR8_STORE))
        return exits(cpu, R_MOV_CR, qualification);
    if (number == 0 || number == 4) {
        const uint64_t real = FIELD(cpu, number ? F_CR4 : F_CR0), mask = FIELD(cpu, number ? F_CR4_MASK : F_CR0_MASK);
        const uint64_t shadow = FIELD(cpu, number ? F_CR4_SHADOW : F_CR0_SHADOW);
        if (!to) {
            *place = (real & ~mask) | (shadow & mask);
            return done(cpu);
        }
        if ((*place ^ shadow) & mask)
            return exits(cpu, R_MOV_CR, qualification);
        const uint64_t value = (*place & ~mask) | (real & mask);
        return number ? set_cr4(cpu, value) : set_cr0(cpu, value);
    }
    uint64_t *reg = number == 2 ? &cpu->cr2 : number == 3 ? &FIELD(cpu, F_CR3) : number == 8 ? &cpu->cr8 : NULL;
    if (!reg)
        return faults(cpu, UD);
    *(to ? reg : place) = *(to ? place : reg);
    if (number == 3 && to)
        *reg &= ~(UINT64_C(1) << 63), uc_ctl_flush_tlb(cpu->uc);
    return done(cpu);
}

static enum outcome mov_dr(struct vcpu *cpu, const struct instruction *found) {
    unsigned number = found->modrm >> 3 & 7;
    const bool to = found->opcode == 0x0F23;
    uint64_t *place = operand(cpu, found);
    if (found->rex & 4 || ((number == 4 || number == 5) && FIELD(cpu, F_CR4) & DE))
        return faults(cpu, UD);
    if (FIELD(cpu, F_CPU) & CPU_MOV_DR)
        return exits(cpu, R_MOV_DR, number | (to ? 0 : 1 << 4) | ((found->modrm & 7) | (found->rex & 1) << 3) << 8);
    number += number == 4 || number == 5 ? 2 : 0;
    uint64_t *reg = number < 4 ? &cpu->dr[number] : number == 6 ? &cpu->dr6 : &FIELD(cpu, F_DR7);
    if (to && number >= 6 && *place >> 32)
        return faults(cpu, GP);
    *(to ? reg : place) = *(to ? place : reg);
    cpu->dr6 = (cpu->dr6 & 0xE00F) | 0xFFFF0FF0;
    FIELD(cpu, F_DR7) = (FIELD(cpu, F_DR7) & 0xFFFF2FFF) | 0x400;
    return done(cpu);
}

static enum outcome clear_task_switched(struct vcpu *cpu) {
    if (FIELD(cpu, F_CR0_MASK) & TS)
        return FIELD(cpu, F_CR0_SHADOW) & TS ? exits(cpu, R_MOV_CR, 2 << 4) : done(cpu);
    FIELD(cpu, F_CR0) &= ~(uint64_t)TS;
    return done(cpu);
}

static void into_ring_0(struct vcpu *cpu, uint64_t selector, uint64_t target) {
    SEGMENT(cpu, F_SELECTOR, CS) = selector & 0xFFFC;
    SEGMENT(cpu, F_SELECTOR, SS) = (selector & 0xFFFC) + 8;
    SEGMENT(cpu, F_BASE, CS) = SEGMENT(cpu, F_BASE, SS) = 0;
    SEGMENT(cpu, F_LIMIT, CS) = SEGMENT(cpu, F_LIMIT, SS) = 0xFFFFFFFF;
    SEGMENT(cpu, F_RIGHTS, CS) = 0xA09B;
    SEGMENT(cpu, F_RIGHTS, SS) = 0xC093;
    done(cpu);
    FIELD(cpu, F_RIP) = target;
}

static enum outcome fast_call(struct vcpu *cpu, bool enter) {
    const uint64_t flags = FIELD(cpu, F_RFLAGS) & ~(uint64_t)RF;
    if (enter ? !(FIELD(cpu, F_SYSENTER_CS) & 0xFFFC) : !(cpu->efer & SCE) || !long_code(cpu))
        return faults(cpu, enter ? GP : UD);
    if (enter) {
        into_ring_0(cpu, FIELD(cpu, F_SYSENTER_CS), FIELD(cpu, F_SYSENTER_EIP));
        FIELD(cpu, F_RSP) = FIELD(cpu, F_SYSENTER_ESP);
        FIELD(cpu, F_RFLAGS) = flags & ~(uint64_t)IF;
        return GO_ON;
    }
    cpu->general[RCX] = FIELD(cpu, F_RIP) + cpu->length;
    cpu->general[R11] = flags;
    into_ring_0(cpu, cpu->msr[MSR_STAR] >> 32, cpu->msr[MSR_LSTAR]);
    FIELD(cpu, F_RFLAGS) = (flags & ~cpu->msr[MSR_FMASK]) | 2;
    return GO_ON;
}

static enum outcome read_tsc(struct vcpu *cpu, bool with_number) {
    if (with_number && !(FIELD(cpu, F_CPU2) & CPU2_RDTSCP))
        return faults(cpu, UD);
    if (privilege(cpu) && FIELD(cpu, F_CR4) & TSD)
        return faults(cpu, GP);
    if (FIELD(cpu, F_CPU) & CPU_RDTSC)
        return exits(cpu, with_number ? R_RDTSCP : R_RDTSC, 0);
    answer(cpu, tsc_now(cpu));
    if (with_number)
        cpu->general[RCX] = cpu->msr[MSR_TSC_AUX] & 0xFFFFFFFF;
    return done(cpu);
}

static enum outcome group(struct vcpu *cpu, const struct instruction *found) {
    uint64_t *place = operand(cpu, found), base;
    switch (found->modrm) {
    case 0xC1:
        return exits(cpu, R_VMCALL, 0);
    case 0xC2:
        return exits(cpu, R_VMLAUNCH, 0);
    case 0xC3:
        return exits(cpu, R_VMRESUME, 0);
    case 0xC4:
        return exits(cpu, R_VMXOFF, 0);
    case 0xC8:
        return FIELD(cpu, F_CPU) & CPU_MONITOR ? exits(cpu, R_MONITOR, 0) : faults(cpu, UD);
    case 0xC9:
        return FIELD(cpu, F_CPU) & CPU_MWAIT ? exits(cpu, R_MWAIT, 0) : faults(cpu, UD);
    case 0xD1:
        return exits(cpu, R_XSETBV, 0);
    case 0xF8:
        base = SEGMENT(cpu, F_BASE, GS);
        SEGMENT(cpu, F_BASE, GS) = cpu->msr[MSR_KERNEL_GS];
        cpu->msr[MSR_KERNEL_GS] = base;
        return done(cpu);
    case 0xF9:
        return read_tsc(cpu, true);
    default: /* SMSW */
        base = (FIELD(cpu, F_CR0) & ~FIELD(cpu, F_CR0_MASK)) | (FIELD(cpu, F_CR0_SHADOW) & FIELD(cpu, F_CR0_MASK));
        *place = found->rex & 8 ? base : found->size == 2 ? (*place & ~UINT64_C(0xFFFF)) | (base & 0xFFFF) : (uint32_t)base;
        return done(cpu);
    }
}

/* INT n is no exception: the bitmap does not count. What goes wrong on the way belongs to the instruction. */
static enum outcome interrupts(struct vcpu *cpu, const struct instruction *found) {
    cpu->executed++;
    cpu->resume = false;
    if (found->opcode == 0xCD)
        return deliver(cpu, VALID | SOFT_INTERRUPT | (found->immediate & 0xFF), 0, FIELD(cpu, F_RIP) + cpu->length);
    if (found->opcode == 0xF1)
        return raise_exception(cpu, DB, PRIVILEGED, 0, 0);
    return raise_exception(cpu, BP, SOFT_EXCEPTION, 0, 0);
}

enum outcome instruction_carry_out(struct vcpu *cpu) {
    struct instruction found;
    if (!decode(cpu, FIELD(cpu, F_RIP), &found))
        return passes(cpu);
    cpu->length = found.length;
    const uint32_t controls = (uint32_t)FIELD(cpu, F_CPU);
    switch (found.opcode) {
    case 0xCC: case 0xCD: case 0xF1:
        return interrupts(cpu, &found);
    case 0xF4:
        return controls & CPU_HLT ? exits(cpu, R_HLT, 0) : passes(cpu);
    case 0x0F00: /* the engine takes a null selector */
        return *operand(cpu, &found) & 0xFFFC ? passes(cpu) : faults(cpu, GP);
    case 0x0F01:
        return group(cpu, &found);
    case 0x0F05: case 0x0F34:
        return fast_call(cpu, found.opcode == 0x0F34);
    case 0x0F06:
        return clear_task_switched(cpu);
    case 0x0F08:
        return exits(cpu, R_INVD, 0);
    case 0x0F09:
        return FIELD(cpu, F_CPU2) & CPU2_WBINVD ? exits(cpu, R_WBINVD, 0) : done(cpu);
    case 0x0F20: case 0x0F22:
        return mov_cr(cpu, &found);
    case 0x0F21: case 0x0F23:
        return mov_dr(cpu, &found);
    case 0x0F30: case 0x0F32:
        return msr(cpu, found.opcode == 0x0F30);
    case 0x0F31:
        return read_tsc(cpu, false);
    case 0x0F33:
        if (privilege(cpu) && !(FIELD(cpu, F_CR4) & PCE))
            return faults(cpu, GP);
        return controls & CPU_RDPMC ? exits(cpu, R_RDPMC, 0) : faults(cpu, GP);
    case 0x0FA2:
        return exits(cpu, R_CPUID, 0);
    default:
        return io(cpu, &found);
    }
}

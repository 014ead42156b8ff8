/* What the CPU checks at VM entry, and what it writes down at an exit. See other_x86_64.h.
 *
 * SDM volume 3, 27.2.1 (events), 27.3.1 (the guest's state), 28.2 and 28.3 (what an exit records). */
#include "other_x86_64.h"

/* Error codes belong to these exceptions, and to no others: a CPU without control-flow enforcement. */
#define WITH_CODE (1u << 8 | 0x1Fu << 10 | 1u << 17)

static bool event_allowed(const struct vcpu *cpu) {
    const uint64_t info = FIELD(cpu, F_EVENT), vector = info & 0xFF, type = info & EVENT_TYPE;
    if (!(info & VALID))
        return true;
    if (info & 0x7FFFF000 || type == 1 << 8 || type == 7 << 8 || (type == NMI && vector != 2) || (type == EXCEPTION && vector > 31))
        return false;
    const bool code = type == EXCEPTION && vector < 32 && (WITH_CODE >> vector & 1);
    if (!!(info & HAS_CODE) != code || (code && FIELD(cpu, F_EVENT_CODE) >> 16))
        return false;
    if (type >= SOFT_INTERRUPT && (!FIELD(cpu, F_EVENT_LENGTH) || FIELD(cpu, F_EVENT_LENGTH) > 15))
        return false;
    if (type == EXTERNAL)
        return FIELD(cpu, F_RFLAGS) & IF && !(FIELD(cpu, F_SHADOW) & 3);
    return type != NMI || !(FIELD(cpu, F_SHADOW) & 0xB);
}

static bool control_registers_allowed(const struct vcpu *cpu) {
    const uint64_t cr0 = FIELD(cpu, F_CR0), cr4 = FIELD(cpu, F_CR4), efer = FIELD(cpu, F_EFER);
    const bool lma = FIELD(cpu, F_ENTRY) & ENTRY_LONG;
    if (!(cr0 & NE) || cr0 >> 32 || (cr0 & PG && !(cr0 & PE)) || !(cr4 & VMXE) || cr4 & ~UINT64_C(0x3727FF) ||
        FIELD(cpu, F_CR3) >> 39)
        return false;
    if (lma ? !(cr0 & PG) || !(cr4 & PAE) : (cr4 & PCIDE) != 0)
        return false;
    if (efer & ~(uint64_t)(SCE | LME | LMA | NXE) || !!(efer & LMA) != lma || (cr0 & PG && !!(efer & LME) != lma))
        return false;
    return canonical(FIELD(cpu, F_SYSENTER_ESP)) && canonical(FIELD(cpu, F_SYSENTER_EIP)) && !(FIELD(cpu, F_DR7) >> 32);
}

static bool limit_allowed(uint64_t limit, uint64_t rights) {
    const bool granular = rights >> 15 & 1;
    return granular ? (limit & 0xFFF) == 0xFFF : limit >> 20 == 0;
}

static bool segment_allowed(const struct vcpu *cpu, int segment) {
    const uint64_t rights = SEGMENT(cpu, F_RIGHTS, segment), base = SEGMENT(cpu, F_BASE, segment), type = rights & 15;
    const bool wide = segment == FS || segment == GS || segment == TR || segment == LDTR;
    if (rights & UNUSABLE)
        return segment != CS && segment != TR && (segment != FS && segment != GS ? true : canonical(base));
    if (wide ? !canonical(base) : base >> 32)
        return false;
    if (!(rights & 0x80) || rights & 0xFFFE0F00 || !limit_allowed(SEGMENT(cpu, F_LIMIT, segment), rights))
        return false;
    if (segment >= LDTR) {
        const bool lma = FIELD(cpu, F_ENTRY) & ENTRY_LONG;
        return !(rights & 0x10) && !(SEGMENT(cpu, F_SELECTOR, segment) & 4) &&
               (segment == LDTR ? type == 2 : type == 11 || (!lma && type == 3));
    }
    if (!(rights & 0x10) || !(type & 1))
        return false;
    if (segment == CS)
        return ((type & 9) == 9 || type == 3) && !(FIELD(cpu, F_ENTRY) & ENTRY_LONG && rights >> 13 & 1 && rights >> 14 & 1);
    if (segment == SS)
        return type == 3 || type == 7;
    return !(type & 8) || (type & 2);
}

static bool privilege_allowed(const struct vcpu *cpu) {
    const uint64_t cs = SEGMENT(cpu, F_RIGHTS, CS), dpl = cs >> 5 & 3, type = cs & 15;
    if (type == 9 || type == 11)
        return dpl == privilege(cpu);
    return type == 3 ? dpl == 0 && privilege(cpu) == 0 : dpl <= privilege(cpu);
}

static bool rest_allowed(const struct vcpu *cpu) {
    const uint64_t flags = FIELD(cpu, F_RFLAGS), shadow = FIELD(cpu, F_SHADOW), debug = FIELD(cpu, F_PENDING_DEBUG);
    const bool lma = FIELD(cpu, F_ENTRY) & ENTRY_LONG;
    if (flags >> 22 || flags & 0x8028 || !(flags & 2) || (flags & VM && lma))
        return false;
    if (FIELD(cpu, F_ACTIVITY) || shadow & ~UINT64_C(15) || (shadow & 3) == 3 || (shadow & 1 && !(flags & IF)))
        return false;
    if (debug & ~UINT64_C(0x500F) || (shadow & 3 && !!(debug & STEPPED) != !!(flags & TF)))
        return false;
    if (lma && SEGMENT(cpu, F_RIGHTS, CS) >> 13 & 1 ? !canonical(FIELD(cpu, F_RIP)) : FIELD(cpu, F_RIP) >> 32)
        return false;
    return FIELD(cpu, F_LINK) == ~UINT64_C(0) && canonical(FIELD(cpu, F_GDTR_BASE)) && canonical(FIELD(cpu, F_IDTR_BASE)) &&
           !(FIELD(cpu, F_GDTR_LIMIT) >> 16) && !(FIELD(cpu, F_IDTR_LIMIT) >> 16);
}

bool entry_allowed(const struct vcpu *cpu) {
    for (int segment = ES; segment <= TR; segment++)
        if (!segment_allowed(cpu, segment))
            return false;
    return event_allowed(cpu) && control_registers_allowed(cpu) && privilege_allowed(cpu) && rest_allowed(cpu);
}

/* What the manual calls undefined keeps what an exit before has left, or was never anything. */
void leave(struct vcpu *cpu, uint32_t reason, uint64_t qualification) {
    FIELD(cpu, F_REASON) = reason;
    FIELD(cpu, F_QUALIFICATION) = qualification;
    FIELD(cpu, F_INFO) &= ~(uint64_t)VALID;
    FIELD(cpu, F_VECTORING) &= ~(uint64_t)VALID;
    FIELD(cpu, F_EVENT) &= ~(uint64_t)VALID;
    if (cpu->delivering) {
        FIELD(cpu, F_VECTORING) = cpu->delivering;
        if (cpu->delivering & HAS_CODE)
            FIELD(cpu, F_VECTORING_CODE) = cpu->delivering_code;
    }
    FIELD(cpu, F_SHADOW) = (FIELD(cpu, F_SHADOW) & ~UINT64_C(3)) | cpu->shadow;
    FIELD(cpu, F_PENDING_DEBUG) = cpu->hits ? cpu->hits | (cpu->hits & 15 ? 1 << 12 : 0) : 0;
    if (cpu->shadow && FIELD(cpu, F_RFLAGS) & TF)
        FIELD(cpu, F_PENDING_DEBUG) |= STEPPED;
    FIELD(cpu, F_ENTRY) = (FIELD(cpu, F_ENTRY) & ~(uint64_t)ENTRY_LONG) | (cpu->efer & LMA ? ENTRY_LONG : 0);
    if (FIELD(cpu, F_EXIT) & EXIT_SAVE_EFER)
        FIELD(cpu, F_EFER) = cpu->efer;
}

void leave_instruction(struct vcpu *cpu, uint32_t reason, uint64_t qualification) {
    FIELD(cpu, F_RFLAGS) &= ~(uint64_t)RF;
    leave(cpu, reason, qualification);
    FIELD(cpu, F_LENGTH) = cpu->length;
}

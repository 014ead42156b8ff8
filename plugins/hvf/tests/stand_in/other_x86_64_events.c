/* Exceptions and interrupts on their way to the guest, and memory as the guest's tables show it. See other_x86_64.h.
 *
 * SDM volume 3, 4.5 to 4.8 (paging), 6.14 and 6.15 (64-bit delivery, double faults), 28.2.4 (exits in between). */
#include "other_x86_64.h"

#include <string.h>

enum { PRESENT = 1, WRITABLE = 2, USER = 4, ACCESSED = 0x20, DIRTY = 0x40, LARGE = 0x80, FETCH = 16 };
#define ADDRESS UINT64_C(0x000FFFFFFFFFF000)

static bool rights_allow(const struct vcpu *cpu, uint64_t rights, bool no_execute, unsigned access) {
    const bool user = access & USER;
    if (no_execute && access & FETCH)
        return false;
    if (user && !(rights & USER))
        return false;
    if (access & WRITABLE && !(rights & WRITABLE) && (user || FIELD(cpu, F_CR0) & WP))
        return false;
    if (user || !(rights & USER))
        return true;
    return access & FETCH ? !(FIELD(cpu, F_CR4) & SMEP) : !(FIELD(cpu, F_CR4) & SMAP) || FIELD(cpu, F_RFLAGS) & AC;
}

int walk(struct vcpu *cpu, uint64_t linear, unsigned access, uint64_t *gpa, uint32_t *code) {
    uint64_t table = FIELD(cpu, F_CR3) & ADDRESS, rights = WRITABLE | USER;
    bool no_execute = false;
    int level = cpu->efer & LMA ? 3 : 2;
    const bool nx = cpu->efer & NXE;
    *code = (access & (WRITABLE | USER)) | (access & FETCH && (nx || FIELD(cpu, F_CR4) & SMEP) ? FETCH : 0);
    if (!(FIELD(cpu, F_CR0) & PG)) {
        *gpa = (uint32_t)linear;
        return 0;
    }
    if (!(cpu->efer & LMA))
        table = FIELD(cpu, F_CR3) & 0xFFFFFFE0; /* four pointers of PAE paging, which say present and no more */
    for (;; level--) {
        const uint64_t at = table + 8 * (linear >> (12 + 9 * level) & (level == 2 && !(cpu->efer & LMA) ? 3 : 511));
        uint8_t *place = memory_at(at, 1);
        uint64_t entry;
        if (!place) {
            *gpa = at;
            return 2;
        }
        if (access & FOR_ENGINE)
            cpu->populated |= memory_populate(cpu, at);
        memcpy(&entry, place, 8);
        if (!(entry & PRESENT))
            return 1;
        if (!(level == 2 && !(cpu->efer & LMA))) {
            rights &= entry;
            no_execute |= nx && entry >> 63;
        }
        const bool leaf = level == 0 || (level < 3 && entry & LARGE && (cpu->efer & LMA || level == 1));
        if (leaf && !(access & WHOEVER) && !rights_allow(cpu, rights, no_execute, access)) {
            *code |= PRESENT;
            return 1;
        }
        const uint64_t marked = entry | ACCESSED | (leaf && access & WRITABLE ? DIRTY : 0);
        if (marked != entry && memory_flags(at) & 2 && (level < 2 || cpu->efer & LMA))
            memcpy(place, &marked, 8);
        table = entry & ADDRESS;
        if (leaf) {
            const uint64_t size = UINT64_C(1) << (12 + 9 * level);
            *gpa = (table & ~(size - 1)) | (linear & (size - 1));
            return 0;
        }
    }
}

/* Tables that have changed do not count before translations are forgotten: the page of the code before still does. */
const uint8_t *look(struct vcpu *cpu, uint64_t linear) {
    uint64_t gpa;
    uint32_t code;
    if (!(cpu->efer & LMA))
        linear += SEGMENT(cpu, F_BASE, CS); /* elsewhere it is 0 */
    if (walk(cpu, linear, WHOEVER, &gpa, &code) == 0) {
        cpu->code_linear = linear & ~UINT64_C(4095);
        cpu->code_gpa = gpa & ~UINT64_C(4095);
    } else if (linear - cpu->code_linear >= 4096) {
        return NULL;
    }
    return memory_at(cpu->code_gpa + (linear & 4095), 1);
}

enum outcome ept_violation(struct vcpu *cpu, uint64_t gpa, unsigned access, bool translated) {
    const unsigned flags = translated && !cpu->first_touch ? memory_flags(gpa) : 0;
    /* The linear address is known to the engine alone, so that bit 7 is never set for an access; of a walk it is. */
    FIELD(cpu, F_RFLAGS) |= RF;
    leave(cpu, R_EPT, access | flags << 3 | (translated ? 0 : 1 << 7));
    FIELD(cpu, F_GPA) = gpa;
    if (!translated)
        FIELD(cpu, F_LINEAR) = cpu->address;
    return LEFT;
}

/* -- delivery */

/* What came of one attempt. */
struct fault {
    unsigned vector; /* 0: none; else PF, GP, ... */
    uint32_t code;
    uint64_t linear;
    bool missing; /* no memory, at `gpa` */
    bool table;   /* of the guest's page tables */
    uint64_t gpa;
    unsigned access;
};

static bool fail(struct fault *fault, unsigned vector, uint32_t code) {
    *fault = (struct fault){.vector = vector, .code = code};
    return false;
}

/* As supervisor, whatever the level: SDM volume 3, 4.6.1, implicit accesses. */
static bool copy(struct vcpu *cpu, uint64_t linear, void *data, unsigned bytes, unsigned access, struct fault *fault) {
    uint8_t *other = data;
    const uint64_t flags = FIELD(cpu, F_RFLAGS);
    while (bytes) {
        unsigned here = 4096 - (linear & 4095);
        uint64_t gpa = 0;
        uint32_t code;
        here = here < bytes ? here : bytes;
        if (!canonical(linear))
            return fail(fault, GP, 0);
        FIELD(cpu, F_RFLAGS) &= ~(uint64_t)AC; /* which does not count for these */
        int status = walk(cpu, linear, access, &gpa, &code);
        FIELD(cpu, F_RFLAGS) = flags;
        if (status == 1) {
            *fault = (struct fault){.vector = PF, .code = code, .linear = linear};
            return false;
        }
        uint8_t *host = status ? NULL : memory_at(gpa, access & WRITABLE ? 2 : 1);
        if (host && cpu->first_touch && !(access & WHOEVER) && memory_populate(cpu, gpa))
            host = NULL; /* shown, as in the middle of an instruction */
        if (!host) {
            *fault = (struct fault){.missing = true, .table = status == 2, .gpa = gpa, .linear = linear,
                                    .access = access & WRITABLE && !status ? 2 : 1};
            return false;
        }
        memcpy(access & WRITABLE ? host : other, access & WRITABLE ? other : host, here);
        linear += here, other += here, bytes -= here;
    }
    return true;
}

bool port_allowed(struct vcpu *cpu, unsigned port, unsigned size) {
    struct fault fault;
    uint16_t map, bits;
    if (privilege(cpu) <= (FIELD(cpu, F_RFLAGS) >> 12 & 3))
        return true;
    const uint64_t base = SEGMENT(cpu, F_BASE, TR), limit = SEGMENT(cpu, F_LIMIT, TR);
    if (limit < 0x67 || !copy(cpu, base + 0x66, &map, 2, WHOEVER, &fault) || map + port / 8 + 1 > limit ||
        !copy(cpu, base + map + port / 8, &bits, 2, WHOEVER, &fault))
        return false;
    return !(bits >> port % 8 & ((1u << size) - 1));
}

struct gate {
    uint64_t target, rsp;
    unsigned selector, level, rights;
    bool masks;
};

static bool find_gate(struct vcpu *cpu, unsigned vector, bool software, struct gate *gate, struct fault *fault) {
    const unsigned outside = software ? 0 : 1, name = vector * 8 + 2 + outside;
    uint64_t words[2], descriptor;
    if (vector * 16 + 15 > FIELD(cpu, F_IDTR_LIMIT))
        return fail(fault, GP, name);
    if (!copy(cpu, FIELD(cpu, F_IDTR_BASE) + vector * 16, words, 16, 0, fault))
        return false;
    const unsigned type = words[0] >> 40 & 0x1F, stack = words[0] >> 32 & 7;
    if ((type != 14 && type != 15) || (software && (words[0] >> 45 & 3) < privilege(cpu)))
        return fail(fault, GP, name);
    if (!(words[0] >> 47 & 1))
        return fail(fault, NP, name);
    gate->target = (words[0] & 0xFFFF) | (words[0] >> 32 & 0xFFFF0000) | words[1] << 32;
    gate->selector = words[0] >> 16 & 0xFFFC;
    gate->masks = type == 14;
    const int table = words[0] >> 18 & 1;
    if (!gate->selector)
        return fail(fault, GP, outside);
    if ((gate->selector | 7) > (table ? SEGMENT(cpu, F_LIMIT, LDTR) : FIELD(cpu, F_GDTR_LIMIT)))
        return fail(fault, GP, gate->selector + outside);
    if (!copy(cpu, (table ? SEGMENT(cpu, F_BASE, LDTR) : FIELD(cpu, F_GDTR_BASE)) + (gate->selector & ~7u), &descriptor, 8, 0, fault))
        return false;
    const unsigned rights = descriptor >> 40 & 0xF0FF, dpl = rights >> 5 & 3;
    if ((rights & 0x18) != 0x18 || dpl > privilege(cpu) || (rights >> 13 & 3) != 1)
        return fail(fault, GP, gate->selector + outside);
    if (!(rights & 0x80))
        return fail(fault, NP, gate->selector + outside);
    gate->rights = rights | 1;
    gate->level = rights & 4 ? privilege(cpu) : dpl;
    gate->rsp = FIELD(cpu, F_RSP);
    if (!stack && gate->level == privilege(cpu))
        return true;
    const unsigned slot = stack ? 36 + 8 * (stack - 1) : 4 + 8 * gate->level;
    if (slot + 7 > SEGMENT(cpu, F_LIMIT, TR))
        return fail(fault, TS_FAULT, (SEGMENT(cpu, F_SELECTOR, TR) & 0xFFFC) + outside);
    return copy(cpu, SEGMENT(cpu, F_BASE, TR) + slot, &gate->rsp, 8, 0, fault);
}

static bool attempt(struct vcpu *cpu, unsigned info, uint32_t code, uint64_t back, struct fault *fault) {
    const unsigned type = info & EVENT_TYPE, before = privilege(cpu);
    uint64_t frame[6], *top = frame, flags = FIELD(cpu, F_RFLAGS);
    struct gate gate;
    if (!(cpu->efer & LMA))
        return fail(fault, DOUBLE, 0); /* not here */
    if (!find_gate(cpu, info & 0xFF, type == SOFT_INTERRUPT || type == SOFT_EXCEPTION, &gate, fault))
        return false;
    if (info & HAS_CODE)
        *top++ = code;
    *top++ = back;
    *top++ = SEGMENT(cpu, F_SELECTOR, CS);
    *top++ = flags;
    *top++ = FIELD(cpu, F_RSP);
    *top++ = SEGMENT(cpu, F_SELECTOR, SS);
    const unsigned bytes = (unsigned)(top - frame) * 8;
    gate.rsp = (gate.rsp & ~UINT64_C(15)) - bytes;
    if (!copy(cpu, gate.rsp, frame, bytes, WRITABLE, fault)) {
        if (fault->vector == GP)
            fault->vector = SS_FAULT;
        return false;
    }
    FIELD(cpu, F_RSP) = cpu->general[RSP] = gate.rsp;
    FIELD(cpu, F_RIP) = gate.target;
    FIELD(cpu, F_RFLAGS) = flags & ~(uint64_t)(TF | NT | RF | VM | (gate.masks ? IF : 0));
    SEGMENT(cpu, F_SELECTOR, CS) = gate.selector | gate.level;
    SEGMENT(cpu, F_BASE, CS) = 0;
    SEGMENT(cpu, F_LIMIT, CS) = 0xFFFFFFFF;
    SEGMENT(cpu, F_RIGHTS, CS) = ((gate.rights | 0x8000) & ~0x60u) | gate.level << 5;
    if (gate.level != before) { /* a null selector: SDM volume 3, 6.14.4 */
        SEGMENT(cpu, F_SELECTOR, SS) = gate.level;
        SEGMENT(cpu, F_RIGHTS, SS) = UNUSABLE | gate.level << 5;
    }
    cpu->shadow = 0;
    return true;
}

static bool contributes(unsigned vector) {
    return vector == 0 || (vector >= TS_FAULT && vector <= GP);
}

enum outcome deliver(struct vcpu *cpu, unsigned info, uint32_t code, uint64_t back) {
    struct fault fault;
    const unsigned vector = info & 0xFF, type = info & EVENT_TYPE;
    if (attempt(cpu, info, code, back, &fault)) {
        cpu->delivering = 0;
        return GO_ON;
    }
    cpu->delivering = info & ~(1u << 12);
    cpu->delivering_code = code;
    if (type >= SOFT_INTERRUPT && fault.missing)
        FIELD(cpu, F_LENGTH) = back - FIELD(cpu, F_RIP);
    if (fault.missing) {
        cpu->address = fault.linear;
        return ept_violation(cpu, fault.gpa, fault.access, !fault.table);
    }
    const bool hardware = type == EXCEPTION;
    if (hardware && vector == DOUBLE) {
        cpu->delivering = 0;
        leave(cpu, R_TRIPLE_FAULT, 0);
        return LEFT;
    }
    if (hardware && ((contributes(vector) && contributes(fault.vector)) ||
                     (vector == PF && (contributes(fault.vector) || fault.vector == PF)) || fault.vector == DOUBLE))
        return raise_exception(cpu, DOUBLE, EXCEPTION, 0, 0);
    return raise_exception(cpu, fault.vector, EXCEPTION, fault.code, fault.linear);
}

static bool intercepted(const struct vcpu *cpu, unsigned vector, uint32_t code) {
    const bool bit = FIELD(cpu, F_EXCEPTIONS) >> vector & 1;
    return vector == PF ? bit == ((code & FIELD(cpu, F_PF_MASK)) == FIELD(cpu, F_PF_MATCH)) : bit;
}

enum outcome raise_exception(struct vcpu *cpu, unsigned vector, unsigned type, uint32_t code, uint64_t qualification) {
    const bool has_code = type == EXCEPTION && (1u << vector & (1u << 8 | 0x1Fu << 10 | 1u << 17));
    const unsigned info = VALID | type | vector | (has_code ? HAS_CODE : 0);
    const unsigned length = type >= SOFT_INTERRUPT ? cpu->length : 0;
    if (intercepted(cpu, vector, code)) {
        leave(cpu, R_EXCEPTION, vector == PF || vector == DB ? qualification : 0);
        cpu->delivering = 0;
        FIELD(cpu, F_INFO) = info;
        if (has_code)
            FIELD(cpu, F_INFO_CODE) = code;
        if (length)
            FIELD(cpu, F_LENGTH) = length;
        return LEFT;
    }
    if (vector == PF)
        cpu->cr2 = qualification;
    if (vector == DB)
        cpu->dr6 = (cpu->dr6 & ~UINT64_C(15)) | qualification, FIELD(cpu, F_DR7) &= ~UINT64_C(0x2000); /* GD */
    return deliver(cpu, info, code, FIELD(cpu, F_RIP) + length);
}

/* The register table of x86-64, by the manuals' names, and access to it. */
#include "kvm_x86_64.h"

#include <errno.h>
#include <string.h>

#define GENERAL(name) {#name, 64, X86_GENERAL, offsetof(struct kvm_regs, name)}
#define SYSTEM(name) {#name, 64, X86_SYSTEM, offsetof(struct kvm_sregs, name)}
#define SEGMENT(name, field)                                                       \
    {#name ".selector", 16, X86_SELECTOR, offsetof(struct kvm_sregs, field.selector)}, \
    {#name ".base", 64, X86_SYSTEM, offsetof(struct kvm_sregs, field.base)},           \
    {#name ".limit", 32, X86_LIMIT, offsetof(struct kvm_sregs, field.limit)},          \
    {#name ".attributes", 16, X86_ATTRIBUTES, offsetof(struct kvm_sregs, field)}
#define TABLE(name, field)                                               \
    {#name ".base", 64, X86_SYSTEM, offsetof(struct kvm_sregs, field.base)}, \
    {#name ".limit", 16, X86_SELECTOR, offsetof(struct kvm_sregs, field.limit)}
#define DEBUGREG(name, field) {#name, 64, X86_DEBUGREG, offsetof(struct kvm_debugregs, field)}
#define NUMBERED(name, bits, kind, number) {#name #number, bits, kind, number}
#define EIGHT(name, bits, kind)                                                                          \
    NUMBERED(name, bits, kind, 0), NUMBERED(name, bits, kind, 1), NUMBERED(name, bits, kind, 2),         \
    NUMBERED(name, bits, kind, 3), NUMBERED(name, bits, kind, 4), NUMBERED(name, bits, kind, 5),         \
    NUMBERED(name, bits, kind, 6), NUMBERED(name, bits, kind, 7)
#define SIXTEEN(name, bits, kind)                                                                        \
    EIGHT(name, bits, kind), NUMBERED(name, bits, kind, 8), NUMBERED(name, bits, kind, 9),               \
    NUMBERED(name, bits, kind, 10), NUMBERED(name, bits, kind, 11), NUMBERED(name, bits, kind, 12),      \
    NUMBERED(name, bits, kind, 13), NUMBERED(name, bits, kind, 14), NUMBERED(name, bits, kind, 15)

const struct rift_kvm_register rift_kvm_x86_registers[X86_REGISTER_COUNT] = {
    GENERAL(rax), GENERAL(rbx), GENERAL(rcx), GENERAL(rdx), GENERAL(rsi), GENERAL(rdi),
    GENERAL(rbp), GENERAL(rsp), GENERAL(r8), GENERAL(r9), GENERAL(r10), GENERAL(r11),
    GENERAL(r12), GENERAL(r13), GENERAL(r14), GENERAL(r15), GENERAL(rip), GENERAL(rflags),
    SEGMENT(cs, cs), SEGMENT(ds, ds), SEGMENT(es, es), SEGMENT(fs, fs), SEGMENT(gs, gs),
    SEGMENT(ss, ss), SEGMENT(tr, tr), SEGMENT(ldtr, ldt),
    TABLE(gdtr, gdt), TABLE(idtr, idt),
    SYSTEM(cr0), SYSTEM(cr2), SYSTEM(cr3), SYSTEM(cr4),
    {"cr8", 64, X86_CR8, 0},
    SYSTEM(efer), SYSTEM(apic_base),
    {"xcr0", 64, X86_XCR0, 0},
    /* in the order of rift_kvm_x86_msrs */
    {"star", 64, X86_MSR, 0}, {"lstar", 64, X86_MSR, 1}, {"cstar", 64, X86_MSR, 2},
    {"sfmask", 64, X86_MSR, 3}, {"kernel_gs_base", 64, X86_MSR, 4}, {"tsc_aux", 64, X86_MSR, 5},
    {"tsc", 64, X86_MSR, X86_MSR_TSC}, {"pat", 64, X86_MSR, 7}, {"sysenter_cs", 64, X86_MSR, 8},
    {"sysenter_esp", 64, X86_MSR, 9}, {"sysenter_eip", 64, X86_MSR, 10},
    DEBUGREG(dr0, db[0]), DEBUGREG(dr1, db[1]), DEBUGREG(dr2, db[2]), DEBUGREG(dr3, db[3]),
    DEBUGREG(dr6, dr6), DEBUGREG(dr7, dr7),
    SIXTEEN(xmm, 128, X86_XMM), SIXTEEN(ymm, 256, X86_YMM), EIGHT(st, 80, X86_ST),
    {"mxcsr", 32, X86_MXCSR, XSAVE_MXCSR},
    {"fctrl", 16, X86_X87, XSAVE_FCW}, {"fstat", 16, X86_X87, XSAVE_FSW}, {"ftag", 16, X86_TAG, 0},
    {"fop", 16, X86_X87, XSAVE_FOP}, {"fip", 64, X86_X87, XSAVE_FIP}, {"fdp", 64, X86_X87, XSAVE_FDP},
    /* the same two pointers as debuggers know them: offset and selector */
    {"fioff", 32, X86_X87, XSAVE_FIP}, {"fiseg", 16, X86_X87, XSAVE_FIP + 4},
    {"fooff", 32, X86_X87, XSAVE_FDP}, {"foseg", 16, X86_X87, XSAVE_FDP + 4},
};

_Static_assert(X86_MXCSR - X86_XMM == RIFT_XSAVE_MXCSR, "the two lists agree");
_Static_assert(sizeof(uint64_t) == sizeof(((struct kvm_regs *)0)->rax), "registers are copied as 64 bits");

static uint32_t group_of(const struct rift_kvm_register *row) {
    static const uint8_t groups[] = {
        [X86_GENERAL] = X86_REGS,       [X86_SYSTEM] = X86_SREGS,      [X86_CR8] = X86_SREGS,
        [X86_LIMIT] = X86_SREGS,        [X86_SELECTOR] = X86_SREGS,    [X86_ATTRIBUTES] = X86_SREGS,
        [X86_MSR] = X86_MSRS,           [X86_DEBUGREG] = X86_DEBUGREGS, [X86_XCR0] = X86_XCRS,
        [X86_XMM] = X86_XSAVE,          [X86_YMM] = X86_XSAVE,         [X86_ST] = X86_XSAVE,
        [X86_TAG] = X86_XSAVE,          [X86_X87] = X86_XSAVE,         [X86_MXCSR] = X86_XSAVE,
    };
    return groups[row->group];
}

static enum rift_xsave_part part_of(const struct rift_kvm_register *row) {
    return (enum rift_xsave_part)(row->group - X86_XMM);
}

/* Access rights as in a VMCS (Intel SDM volume 3, table 25-2): type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, DB 14,
 * G 15. A segment that is not usable reads as not present. */
static uint64_t attributes(const struct kvm_segment *segment) {
    return (uint64_t)(segment->type & 15u) | (uint64_t)(segment->s & 1u) << 4 | (uint64_t)(segment->dpl & 3u) << 5 |
           (uint64_t)(segment->present && !segment->unusable) << 7 | (uint64_t)(segment->avl & 1u) << 12 |
           (uint64_t)(segment->l & 1u) << 13 | (uint64_t)(segment->db & 1u) << 14 | (uint64_t)(segment->g & 1u) << 15;
}

static void set_attributes(struct kvm_segment *segment, uint64_t value) {
    segment->type = value & 15;
    segment->s = value >> 4 & 1;
    segment->dpl = value >> 5 & 3;
    segment->present = value >> 7 & 1;
    segment->avl = value >> 12 & 1;
    segment->l = value >> 13 & 1;
    segment->db = value >> 14 & 1;
    segment->g = value >> 15 & 1;
    segment->unusable = !segment->present;
}

static int absent(const struct rift_kvm_x86 *x86, const struct rift_kvm_register *row, struct rift_error *error) {
    if (!(row->group == X86_MSR && (x86->msrs_absent & 1u << row->place)) &&
        !(row->group == X86_YMM && !x86->avx_offset))
        return 0;
    error->code = EOPNOTSUPP;
    error->operation = row->name;
    return -1;
}

static int counter_is_fixed(const struct rift_kvm_cpu *cpu, const struct rift_kvm_register *row,
                            struct rift_error *error) {
    if (row->group != X86_MSR || row->place != X86_MSR_TSC || !(cpu->machine->flags & RIFT_KVM_HOST_COUNTER))
        return 0;
    error->code = ENOTSUP;
    error->operation = "tsc_offset";
    return -1;
}

static uint64_t read_small(const struct rift_kvm_x86 *x86, const struct rift_kvm_register *row) {
    const uint8_t *sregs = (const uint8_t *)&x86->sregs + row->place;
    uint64_t value = 0;
    switch (row->group) {
    case X86_GENERAL:
        memcpy(&value, (const uint8_t *)x86->regs + row->place, 8);
        break;
    case X86_SYSTEM:
        memcpy(&value, sregs, 8);
        break;
    case X86_LIMIT:
        memcpy(&value, sregs, 4);
        break;
    case X86_SELECTOR:
        memcpy(&value, sregs, 2);
        break;
    case X86_ATTRIBUTES:
        value = attributes((const struct kvm_segment *)(const void *)sregs);
        break;
    case X86_CR8:
        value = x86->sregs.cr8;
        break;
    case X86_MSR:
        value = x86->msrs[row->place];
        break;
    case X86_DEBUGREG:
        memcpy(&value, (const uint8_t *)&x86->debugregs + row->place, 8);
        break;
    default: /* X86_XCR0 */
        value = x86->xcrs.xcrs[0].value;
        break;
    }
    return value;
}

static void write_small(struct rift_kvm_x86 *x86, const struct rift_kvm_register *row, uint64_t value) {
    uint8_t *sregs = (uint8_t *)&x86->sregs + row->place;
    switch (row->group) {
    case X86_GENERAL:
        memcpy((uint8_t *)x86->regs + row->place, &value, 8);
        break;
    case X86_SYSTEM:
        memcpy(sregs, &value, 8);
        break;
    case X86_LIMIT:
        memcpy(sregs, &value, 4);
        break;
    case X86_SELECTOR:
        memcpy(sregs, &value, 2);
        break;
    case X86_ATTRIBUTES:
        set_attributes((struct kvm_segment *)(void *)sregs, value);
        break;
    case X86_CR8:
        x86->sregs.cr8 = value;
        break;
    case X86_MSR:
        x86->msrs[row->place] = value;
        break;
    case X86_DEBUGREG:
        memcpy((uint8_t *)&x86->debugregs + row->place, &value, 8);
        break;
    default: /* X86_XCR0 */
        x86->xcrs.nr_xcrs = 1;
        x86->xcrs.xcrs[0].xcr = 0;
        x86->xcrs.xcrs[0].value = value;
        break;
    }
}

int rift_kvm_x86_read(struct rift_kvm_cpu *cpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                      struct rift_error *error) {
    struct rift_kvm_x86 *x86 = cpu->state;
    for (uint32_t at = 0; at < count; ++at) {
        const struct rift_kvm_register *row = &rift_kvm_x86_registers[ids[at]];
        uint32_t group = group_of(row);
        if (row->group == X86_MSR && row->place == X86_MSR_TSC)
            x86->valid &= ~(uint32_t)X86_MSRS; /* it goes on by itself */
        if (rift_kvm_x86_fetch(cpu, group, error) || absent(x86, row, error))
            return -1;
        if (group == X86_XSAVE)
            words += rift_xsave_read(x86->bytes, x86->avx_offset, part_of(row), row->place, row->bits, words);
        else
            *words++ = read_small(x86, row);
    }
    return 0;
}

/* General registers wait for the next entry, which takes them along. The others are rarer, and KVM checks
 * them: they go at once, so that a refusal is told to whoever wrote the value. */
static int store_groups(struct rift_kvm_cpu *cpu, uint32_t groups, uint32_t msrs, struct rift_error *error) {
    struct rift_kvm_x86 *x86 = cpu->state;
    if (groups & X86_REGS)
        x86->regs_changed = 1;
    for (uint32_t group = X86_SREGS; group <= X86_XCRS; group <<= 1)
        if ((groups & group) && group != X86_MSRS && rift_kvm_x86_store(cpu, group, error))
            return -1;
    return msrs ? rift_kvm_x86_store_msrs(cpu, msrs, error) : 0;
}

int rift_kvm_x86_write(struct rift_kvm_cpu *cpu, const uint32_t *ids, uint32_t count, const uint64_t *words,
                       struct rift_error *error) {
    struct rift_kvm_x86 *x86 = cpu->state;
    uint32_t groups = 0, msrs = 0;
    const uint64_t *word = words;
    for (uint32_t at = 0; at < count; ++at) { /* nothing changes before all is known to fit */
        const struct rift_kvm_register *row = &rift_kvm_x86_registers[ids[at]];
        uint32_t size = (row->bits + 63) / 64, top = row->bits % 64;
        if (top && word[size - 1] >> top) {
            error->code = ERANGE;
            error->operation = row->name;
            return -1;
        }
        if (counter_is_fixed(cpu, row, error) || rift_kvm_x86_fetch(cpu, group_of(row), error) ||
            absent(x86, row, error))
            return -1;
        word += size;
    }
    for (uint32_t at = 0; at < count; ++at) {
        const struct rift_kvm_register *row = &rift_kvm_x86_registers[ids[at]];
        uint32_t group = group_of(row);
        if (group == X86_XSAVE) { /* often as it is already, and 4 KiB to transfer */
            uint64_t now[4];
            uint32_t size = rift_xsave_read(x86->bytes, x86->avx_offset, part_of(row), row->place, row->bits, now);
            if (memcmp(now, words, size * sizeof(*now)) != 0) {
                rift_xsave_write(x86->bytes, x86->avx_offset, part_of(row), row->place, row->bits, words);
                groups |= group;
            }
            words += size;
            continue;
        }
        groups |= group;
        if (group == X86_MSRS)
            msrs |= 1u << row->place;
        write_small(x86, row, *words);
        if (row->group == X86_GENERAL && row->place == offsetof(struct kvm_regs, rip)) {
            x86->redirected = x86->mmio_next != 0;
            x86->redirect = *words;
        }
        words += 1;
    }
    return store_groups(cpu, groups, msrs, error);
}

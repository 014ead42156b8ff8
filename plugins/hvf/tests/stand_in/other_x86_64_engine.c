/* The engine: the CPU's state in and out, and its hooks. See other_x86_64.h.
 *
 * What the engine's interface has no names for lies in its context at fixed distances from what has one, which is found
 * by writing known values (CPUX86State of versions 2.1.x). */
#include "other_x86_64.h"

#include <string.h>

/* Offsets into the context. */
static struct {
    size_t segments, cr, efer, xcr0, hidden, error_code, before;
} places;

enum { SEGMENT_BYTES = 24, BASE = 8, LIMIT = 16, FLAGS = 20, TABLES = 8 /* GDTR and IDTR, behind TR */ };
enum { CPL = 3, INHIBIT = 8, CS32 = 1 << 4, SS32 = 1 << 5, ADD_BASES = 1 << 6, PROTECTED = 1 << 7, COPROCESSOR = 7 << 9,
       LONG = 1 << 14, CS64 = 1 << 15, FXSR = 1 << 22, SMAP_ON = 1 << 23 };

static const int general_ids[16] = {
    UC_X86_REG_RAX, UC_X86_REG_RCX, UC_X86_REG_RDX, UC_X86_REG_RBX, UC_X86_REG_RSP, UC_X86_REG_RBP, UC_X86_REG_RSI,
    UC_X86_REG_RDI, UC_X86_REG_R8,  UC_X86_REG_R9,  UC_X86_REG_R10, UC_X86_REG_R11, UC_X86_REG_R12, UC_X86_REG_R13,
    UC_X86_REG_R14, UC_X86_REG_R15,
};

static uint8_t *at(struct vcpu *cpu, size_t place) {
    return (uint8_t *)cpu->context + place;
}
static uint64_t get(struct vcpu *cpu, size_t place) {
    uint64_t value;
    memcpy(&value, at(cpu, place), 8);
    return value;
}
static uint32_t get32(struct vcpu *cpu, size_t place) {
    uint32_t value;
    memcpy(&value, at(cpu, place), 4);
    return value;
}
static void put(struct vcpu *cpu, size_t place, uint64_t value) {
    memcpy(at(cpu, place), &value, 8);
}
static void put32(struct vcpu *cpu, size_t place, uint32_t value) {
    memcpy(at(cpu, place), &value, 4);
}

static size_t find(struct vcpu *cpu, uint64_t value) {
    for (size_t place = 8; place + 8 <= uc_context_size(cpu->uc); place += 8)
        if (get(cpu, place) == value)
            return place;
    return 0;
}

static void write_msr(struct vcpu *cpu, uint32_t number, uint64_t value) {
    uc_x86_msr msr = {.rid = number, .value = value};
    uc_reg_write(cpu->uc, UC_X86_REG_MSR, &msr);
}

static bool learn(struct vcpu *cpu) {
    const uint64_t fs = 0x5A17C0DE0001, gs = 0x5A17C0DE0002, cr2 = 0x5A17C0DE0003, dr0 = 0x5A17C0DE0004;
    uc_reg_write(cpu->uc, UC_X86_REG_FS_BASE, &fs);
    uc_reg_write(cpu->uc, UC_X86_REG_GS_BASE, &gs);
    uc_reg_write(cpu->uc, UC_X86_REG_CR2, &cr2);
    uc_reg_write(cpu->uc, UC_X86_REG_DR0, &dr0);
    write_msr(cpu, 0xC0000103, 0x5A17C0DE0005);
    uc_context_save(cpu->uc, cpu->context);
    const size_t debug = find(cpu, dr0), control = find(cpu, cr2), segment = find(cpu, fs), aux = find(cpu, 0x5A17C0DE0005);
    if (!debug || control < 16 || !segment || !aux || find(cpu, gs) != segment + SEGMENT_BYTES)
        return false;
    places.segments = segment - BASE - FS * SEGMENT_BYTES;
    places.hidden = places.segments - 8;
    places.cr = control - 16;
    places.efer = places.cr + 168;
    places.xcr0 = aux + 8;
    places.error_code = debug - 16;
    places.before = debug + 96; /* the exception before, which would make another one a double fault */
    return places.cr == places.segments + 10 * SEGMENT_BYTES;
}

/* -- hooks */

static void stop(struct vcpu *cpu, enum cause cause) {
    cpu->cause = cause;
    uc_emu_stop(cpu->uc);
}

/* Linear addresses of enabled execution breakpoints: DR7's L and G bits, and R/W = 0. */
static unsigned breakpoints(const struct vcpu *cpu, uint64_t rip) {
    unsigned hits = 0;
    const uint64_t dr7 = FIELD(cpu, F_DR7);
    for (int which = 0; which < 4; which++)
        if ((dr7 >> 2 * which & 3) && !(dr7 >> (16 + 4 * which) & 3) && cpu->dr[which] == rip)
            hits |= 1u << which;
    return hits;
}

static uint64_t flags_now(struct vcpu *cpu) {
    uint64_t flags = 0;
    uc_reg_read(cpu->uc, UC_X86_REG_RFLAGS, &flags);
    return flags;
}

/* Before each instruction; what is looked at in which order: SDM volume 3, 6.9. */
static void on_instruction(uc_engine *uc, uint64_t rip, uint32_t length, void *data) {
    struct vcpu *cpu = data;
    (void)uc;
    if (cpu->cause)
        return;
    cpu->shadow = cpu->next_shadow;
    cpu->next_shadow = 0;
    cpu->length = length;
    if (cpu->executed && FIELD(cpu, F_CPU) & CPU_STEP) {
        stop(cpu, C_STEP);
    } else if (cpu->hits) {
        stop(cpu, C_DEBUG);
    } else if (atomic_exchange(&cpu->wanted, 0)) {
        stop(cpu, C_KICK);
    } else if (FIELD(cpu, F_CPU) & CPU_WINDOW && !cpu->shadow && flags_now(cpu) & IF) {
        stop(cpu, C_WINDOW);
    } else if (!cpu->left--) {
        stop(cpu, C_SLICE);
    } else if (FIELD(cpu, F_DR7) & 0xFF && !cpu->pass && !cpu->resume && breakpoints(cpu, rip)) {
        cpu->hits = breakpoints(cpu, rip);
        stop(cpu, C_BREAKPOINT);
    } else if (!cpu->pass && instruction_concerns(cpu, rip)) {
        stop(cpu, C_INSTRUCTION);
    } else {
        cpu->pass = cpu->resume = false;
        cpu->executed++;
        cpu->begun = rip;
    }
}

static void on_exception(uc_engine *uc, uint32_t vector, void *data) {
    struct vcpu *cpu = data;
    (void)uc;
    if (cpu->cause)
        return;
    cpu->vector = vector;
    uc_context_save(cpu->uc, cpu->context); /* at the end of a run the engine looks at its end address, which faults */
    cpu->code = get32(cpu, places.error_code);
    cpu->address = get(cpu, places.cr + 16);
    stop(cpu, C_EXCEPTION);
}

static bool on_invalid(uc_engine *uc, void *data) {
    on_exception(uc, UD, data);
    return true;
}

static bool on_missing(uc_engine *uc, uc_mem_type type, uint64_t address, int size, int64_t value, void *data) {
    struct vcpu *cpu = data;
    (void)uc, (void)size, (void)value;
    if (!cpu->cause) {
        cpu->cause = C_MEMORY;
        cpu->access = (int)type;
        cpu->address = address;
    }
    return false;
}

/* Only there while a data breakpoint is enabled. */
static void on_access(uc_engine *uc, uc_mem_type type, uint64_t address, int size, int64_t value, void *data) {
    struct vcpu *cpu = data;
    const uint64_t dr7 = FIELD(cpu, F_DR7);
    (void)uc, (void)value;
    for (int which = 0; which < 4; which++) {
        static const unsigned lengths[4] = {1, 2, 8, 4};
        const unsigned kind = dr7 >> (16 + 4 * which) & 3;
        if ((dr7 >> 2 * which & 3) && (kind == 3 || (kind == 1 && type == UC_MEM_WRITE)) &&
            address < cpu->watched[which] + lengths[dr7 >> (18 + 4 * which) & 3] && cpu->watched[which] < address + (unsigned)size)
            cpu->hits |= 1u << which;
    }
}

bool engine_open(struct vcpu *cpu) {
    uc_hook hook;
    if (uc_open(UC_ARCH_X86, UC_MODE_64, &cpu->uc) || uc_ctl_set_cpu_model(cpu->uc, UC_CPU_X86_BROADWELL) ||
        uc_context_alloc(cpu->uc, &cpu->context) || !learn(cpu))
        return false;
    uc_hook_add(cpu->uc, &hook, UC_HOOK_CODE, (void *)on_instruction, cpu, 1, 0);
    uc_hook_add(cpu->uc, &hook, UC_HOOK_INTR, (void *)on_exception, cpu, 1, 0);
    uc_hook_add(cpu->uc, &hook, UC_HOOK_INSN_INVALID, (void *)on_invalid, cpu, 1, 0);
    uc_hook_add(cpu->uc, &hook, UC_HOOK_MEM_UNMAPPED | UC_HOOK_MEM_PROT, (void *)on_missing, cpu, 1, 0);
    return true;
}

/* -- the state: only what an instruction needs; the engine's translations stay, as those of a tagged CPU do */

static uint32_t hidden_flags(const struct vcpu *cpu, uint32_t old) {
    const uint64_t cs = SEGMENT(cpu, F_RIGHTS, CS), cr0 = FIELD(cpu, F_CR0), cr4 = FIELD(cpu, F_CR4);
    uint32_t flags = old & ~(uint32_t)(CPL | INHIBIT | CS32 | SS32 | ADD_BASES | PROTECTED | COPROCESSOR | LONG | CS64 |
                                       FXSR | SMAP_ON);
    flags |= privilege(cpu) | (cr0 & PE ? PROTECTED : 0) | (uint32_t)(cr0 >> 1 & 7) << 9;
    flags |= (cr4 >> 9 & 1 ? FXSR : 0) | (cr4 & SMAP ? SMAP_ON : 0) | (cpu->efer & LMA ? LONG : 0);
    if (long_code(cpu))
        return flags | CS32 | SS32 | CS64;
    flags |= (cs >> 14 & 1 ? CS32 : 0) | (SEGMENT(cpu, F_RIGHTS, SS) >> 14 & 1 ? SS32 : 0);
    return flags | ADD_BASES;
}

void engine_load(struct vcpu *cpu) {
    uc_context_save(cpu->uc, cpu->context);
    for (int segment = ES; segment <= TR; segment++) {
        const size_t place = places.segments + SEGMENT_BYTES * (size_t)segment;
        const uint64_t rights = SEGMENT(cpu, F_RIGHTS, segment);
        put32(cpu, place, (uint32_t)SEGMENT(cpu, F_SELECTOR, segment));
        put(cpu, place + BASE, SEGMENT(cpu, F_BASE, segment));
        put32(cpu, place + LIMIT, (uint32_t)SEGMENT(cpu, F_LIMIT, segment));
        put32(cpu, place + FLAGS, rights & UNUSABLE ? (uint32_t)(rights & 0x60) << 8 : (uint32_t)(rights & 0xF0FF) << 8);
    }
    for (int table = 0; table < 2; table++) {
        const size_t place = places.segments + SEGMENT_BYTES * (size_t)(TABLES + table);
        put(cpu, place + BASE, FIELD(cpu, F_GDTR_BASE + 2 * table));
        put32(cpu, place + LIMIT, (uint32_t)FIELD(cpu, F_GDTR_LIMIT + 2 * table));
    }
    put(cpu, places.cr, FIELD(cpu, F_CR0));
    put(cpu, places.cr + 16, cpu->cr2);
    put(cpu, places.cr + 24, FIELD(cpu, F_CR3));
    put(cpu, places.cr + 32, FIELD(cpu, F_CR4));
    put(cpu, places.efer, cpu->efer);
    put(cpu, places.xcr0, cpu->xcr0);
    put32(cpu, places.before, ~0u);
    put32(cpu, places.hidden, hidden_flags(cpu, get32(cpu, places.hidden)));
    uc_context_restore(cpu->uc, cpu->context);
    cpu->general[RSP] = FIELD(cpu, F_RSP);
    void *values[16];
    for (int number = 0; number < 16; number++)
        values[number] = &cpu->general[number];
    uc_reg_write_batch(cpu->uc, (int *)general_ids, values, 16);
    uc_reg_write(cpu->uc, UC_X86_REG_RIP, &FIELD(cpu, F_RIP));
    cpu->resume = FIELD(cpu, F_RFLAGS) & RF; /* no breakpoint at this instruction */
    FIELD(cpu, F_RFLAGS) &= ~(uint64_t)RF;
    uc_reg_write(cpu->uc, UC_X86_REG_RFLAGS, &FIELD(cpu, F_RFLAGS));
    write_msr(cpu, 0xC0000081, cpu->msr[MSR_STAR]); /* SYSRET and SYSEXIT are the engine's */
    write_msr(cpu, 0x174, FIELD(cpu, F_SYSENTER_CS));
}

void engine_unload(struct vcpu *cpu) {
    uc_context_save(cpu->uc, cpu->context);
    for (int segment = ES; segment <= TR; segment++) {
        const size_t place = places.segments + SEGMENT_BYTES * (size_t)segment;
        const uint32_t flags = get32(cpu, place + FLAGS);
        SEGMENT(cpu, F_SELECTOR, segment) = get32(cpu, place) & 0xFFFF;
        SEGMENT(cpu, F_BASE, segment) = get(cpu, place + BASE);
        SEGMENT(cpu, F_LIMIT, segment) = get32(cpu, place + LIMIT);
        SEGMENT(cpu, F_RIGHTS, segment) = (flags >> 8 & 0xF0FF) | (flags & 0x8000 ? 0 : UNUSABLE);
    }
    SEGMENT(cpu, F_RIGHTS, TR) |= 2; /* busy, which the engine's LTR writes to memory alone */
    SEGMENT(cpu, F_RIGHTS, SS) = (SEGMENT(cpu, F_RIGHTS, SS) & ~UINT64_C(0x60)) | (get32(cpu, places.hidden) & CPL) << 5;
    for (int table = 0; table < 2; table++) {
        const size_t place = places.segments + SEGMENT_BYTES * (size_t)(TABLES + table);
        FIELD(cpu, F_GDTR_BASE + 2 * table) = get(cpu, place + BASE);
        FIELD(cpu, F_GDTR_LIMIT + 2 * table) = get32(cpu, place + LIMIT);
    }
    FIELD(cpu, F_CR0) = get(cpu, places.cr); /* CLTS and LMSW are the engine's */
    void *values[16];
    for (int number = 0; number < 16; number++)
        values[number] = &cpu->general[number];
    uc_reg_read_batch(cpu->uc, (int *)general_ids, values, 16);
    FIELD(cpu, F_RSP) = cpu->general[RSP];
    uc_reg_read(cpu->uc, UC_X86_REG_RIP, &FIELD(cpu, F_RIP));
    uc_reg_read(cpu->uc, UC_X86_REG_RFLAGS, &FIELD(cpu, F_RFLAGS));
    FIELD(cpu, F_RFLAGS) = (FIELD(cpu, F_RFLAGS) & ~(uint64_t)RF) | (cpu->resume ? RF : 0);
}

/* With the state loaded. */
void engine_run(struct vcpu *cpu) {
    uc_hook accesses = 0;
    bool watching = false;
    uint32_t code;
    for (int which = 0; which < 4; which++)
        if ((FIELD(cpu, F_DR7) >> 2 * which & 3) && (FIELD(cpu, F_DR7) >> (16 + 4 * which) & 3))
            watching |= walk(cpu, cpu->dr[which], WHOEVER, &cpu->watched[which], &code) == 0;
    if (watching)
        uc_hook_add(cpu->uc, &accesses, UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE, (void *)on_access, cpu, 1, 0);
    cpu->cause = C_NONE;
    cpu->begun = ~UINT64_C(0);
    cpu->next_shadow = cpu->shadow;
    uc_emu_start(cpu->uc, FIELD(cpu, F_RIP), ~UINT64_C(0), 0, 0);
    if (watching)
        uc_hook_del(cpu->uc, accesses);
}

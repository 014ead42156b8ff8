/* The register table of x86-64, by the manuals' names, and access to it. */
#include "emulator_x86_64.h"

#include <string.h>

enum group { GENERAL, PROGRAM, FLAGS, SELECTOR, BASE, LIMIT, ATTRIBUTES, CONTROL, EFER, XCR0, DEBUG, MSR, NATIVE };

#define NUMBERED(name, bits, group, number, place) {#name #number, bits, group, place, 0}
#define SEGMENT(name, number)                                     \
    {#name ".selector", 16, SELECTOR, number, 0}, {#name ".base", 64, BASE, number, 0}, \
    {#name ".limit", 32, LIMIT, number, 0}, {#name ".attributes", 16, ATTRIBUTES, number, 0}
#define TABLE(name, number) {#name ".base", 64, BASE, number, 0}, {#name ".limit", 16, LIMIT, number, 0}
#define EIGHT(name, bits, id)                                                                                   \
    NUMBERED(name, bits, NATIVE, 0, id), NUMBERED(name, bits, NATIVE, 1, id + 1),                               \
    NUMBERED(name, bits, NATIVE, 2, id + 2), NUMBERED(name, bits, NATIVE, 3, id + 3),                           \
    NUMBERED(name, bits, NATIVE, 4, id + 4), NUMBERED(name, bits, NATIVE, 5, id + 5),                           \
    NUMBERED(name, bits, NATIVE, 6, id + 6), NUMBERED(name, bits, NATIVE, 7, id + 7)

/* MSRs by their place in `msrs`. */
static const uint32_t msrs[] = {
    0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084, 0xC0000102, 0xC0000103, 0x277, 0x174, 0x175, 0x176,
};

const struct rift_emulator_register rift_emulator_x86_registers[] = {
    {"rax", 64, GENERAL, RAX, 0}, {"rbx", 64, GENERAL, RBX, 0}, {"rcx", 64, GENERAL, RCX, 0}, {"rdx", 64, GENERAL, RDX, 0},
    {"rsi", 64, GENERAL, RSI, 0}, {"rdi", 64, GENERAL, RDI, 0}, {"rbp", 64, GENERAL, RBP, 0}, {"rsp", 64, GENERAL, RSP, 0},
    {"r8", 64, GENERAL, 8, 0}, {"r9", 64, GENERAL, 9, 0}, {"r10", 64, GENERAL, 10, 0}, {"r11", 64, GENERAL, 11, 0},
    {"r12", 64, GENERAL, 12, 0}, {"r13", 64, GENERAL, 13, 0}, {"r14", 64, GENERAL, 14, 0}, {"r15", 64, GENERAL, 15, 0},
    {"rip", 64, PROGRAM, 0, 0}, {"rflags", 64, FLAGS, 0, 0},
    SEGMENT(cs, X86_CS), SEGMENT(ds, X86_DS), SEGMENT(es, X86_ES), SEGMENT(fs, X86_FS), SEGMENT(gs, X86_GS),
    SEGMENT(ss, X86_SS), SEGMENT(tr, X86_TR), SEGMENT(ldtr, X86_LDTR),
    TABLE(gdtr, X86_GDTR), TABLE(idtr, X86_IDTR),
    {"cr0", 64, CONTROL, 0, 0}, {"cr2", 64, CONTROL, 2, 0}, {"cr3", 64, CONTROL, 3, 0}, {"cr4", 64, CONTROL, 4, 0},
    {"cr8", 64, CONTROL, 8, 0}, {"efer", 64, EFER, 0, 0}, {"xcr0", 64, XCR0, 0, 0},
    {"star", 64, MSR, 0, 0}, {"lstar", 64, MSR, 1, 0}, {"cstar", 64, MSR, 2, 0}, {"sfmask", 64, MSR, 3, 0},
    {"kernel_gs_base", 64, MSR, 4, 0}, {"tsc_aux", 64, MSR, 5, 0}, {"pat", 64, MSR, 6, 0}, {"sysenter_cs", 64, MSR, 7, 0},
    {"sysenter_esp", 64, MSR, 8, 0}, {"sysenter_eip", 64, MSR, 9, 0},
    {"dr0", 64, DEBUG, 0, 0}, {"dr1", 64, DEBUG, 1, 0}, {"dr2", 64, DEBUG, 2, 0}, {"dr3", 64, DEBUG, 3, 0},
    {"dr6", 64, DEBUG, 6, 0}, {"dr7", 64, DEBUG, 7, 0},
    EIGHT(xmm, 128, UNICORN_XMM0),
    {"xmm8", 128, NATIVE, UNICORN_XMM0 + 8, 0}, {"xmm9", 128, NATIVE, UNICORN_XMM0 + 9, 0},
    {"xmm10", 128, NATIVE, UNICORN_XMM0 + 10, 0}, {"xmm11", 128, NATIVE, UNICORN_XMM0 + 11, 0},
    {"xmm12", 128, NATIVE, UNICORN_XMM0 + 12, 0}, {"xmm13", 128, NATIVE, UNICORN_XMM0 + 13, 0},
    {"xmm14", 128, NATIVE, UNICORN_XMM0 + 14, 0}, {"xmm15", 128, NATIVE, UNICORN_XMM0 + 15, 0},
    {"mxcsr", 32, NATIVE, UNICORN_MXCSR, 0},
    /* the status word has the top of the stack in it, by which st0 to st7 are found: before them */
    {"fctrl", 16, NATIVE, UNICORN_FPCW, 0}, {"fstat", 16, NATIVE, UNICORN_FPSW, 0},
    EIGHT(st, 80, UNICORN_ST0),
    {"ftag", 16, NATIVE, UNICORN_FPTAG, 0}, {"fop", 16, NATIVE, UNICORN_FOP, 0},
    {"fioff", 32, NATIVE, UNICORN_FIP, 0}, {"fiseg", 16, NATIVE, UNICORN_FCS, 0},
    {"fooff", 32, NATIVE, UNICORN_FDP, 0}, {"foseg", 16, NATIVE, UNICORN_FDS, 0},
};

const uint32_t rift_emulator_x86_register_count =
    sizeof(rift_emulator_x86_registers) / sizeof(rift_emulator_x86_registers[0]);

/* Access rights as in a VMCS (Intel SDM volume 3, table 25-2) are bits 23:20 and 15:8 of the descriptor's half. */
static uint64_t attributes(uint32_t flags) {
    return (flags >> 8 & 0xFF) | (flags >> 8 & 0xF000);
}

static uint32_t flags_of(uint64_t value) {
    return (uint32_t)((value & 0xFF) << 8 | (value & 0xF000) << 8);
}

static uint64_t read_one(struct unicorn_context *context, const struct rift_emulator_register *row) {
    const struct x86_layout *layout = &rift_emulator_x86_layout;
    size_t segment = layout->segments + SEGMENT_SIZE * (size_t)row->place;
    switch (row->group) {
    case GENERAL:
        return x86_general(context, row->place);
    case PROGRAM:
        return x86_get(context, layout->rip);
    case FLAGS:
        return x86_flags(context);
    case SELECTOR:
        return x86_get32(context, segment) & 0xFFFF;
    case BASE:
        return x86_get(context, segment + SEGMENT_BASE);
    case LIMIT:
        return x86_get32(context, segment + SEGMENT_LIMIT);
    case ATTRIBUTES:
        return attributes(x86_get32(context, segment + SEGMENT_FLAGS));
    case CONTROL:
        return x86_get(context, layout->cr + 8u * row->place);
    case EFER:
        return x86_get(context, layout->efer);
    case XCR0:
        return x86_get(context, layout->xcr0);
    default: /* DEBUG */
        return x86_get(context, layout->dr + 8u * row->place);
    }
}

static void write_one(struct unicorn_context *context, const struct rift_emulator_register *row, uint64_t value) {
    const struct x86_layout *layout = &rift_emulator_x86_layout;
    size_t segment = layout->segments + SEGMENT_SIZE * (size_t)row->place;
    switch (row->group) {
    case GENERAL:
        x86_set_general(context, row->place, value);
        break;
    case PROGRAM:
        x86_set(context, layout->rip, value);
        break;
    case FLAGS:
        x86_set_flags(context, value);
        break;
    case SELECTOR:
        x86_set32(context, segment, (uint32_t)value);
        break;
    case BASE:
        x86_set(context, segment + SEGMENT_BASE, value);
        break;
    case LIMIT:
        x86_set32(context, segment + SEGMENT_LIMIT, (uint32_t)value);
        break;
    case ATTRIBUTES:
        x86_set32(context, segment + SEGMENT_FLAGS, flags_of(value));
        break;
    case CONTROL:
        x86_set(context, layout->cr + 8u * row->place, value);
        break;
    case EFER:
        x86_set(context, layout->efer, value);
        break;
    case XCR0:
        x86_set(context, layout->xcr0, value);
        break;
    default: /* DEBUG */
        x86_set(context, layout->dr + 8u * row->place, value);
        break;
    }
}

static uint32_t words_of(const struct rift_emulator_register *row) {
    return (row->bits + 63) / 64;
}

/* The engine writes as many bytes as it takes the register to have; no more than 16. */
static void read_native(struct unicorn *engine, const struct rift_emulator_register *row, uint64_t *words) {
    uint64_t value[4] = {0};
    unicorn.reg_read(engine, row->place, value);
    if (row->bits < 64)
        value[0] &= (UINT64_C(1) << row->bits) - 1;
    memcpy(words, value, 8 * words_of(row));
}

int x86_read_registers(struct rift_emulator_cpu *cpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                       struct rift_error *error) {
    struct x86 *x86 = cpu->state;
    (void)error;
    int loaded = 0;
    for (uint32_t at = 0; at < count; ++at) {
        const struct rift_emulator_register *row = &rift_emulator_x86_registers[ids[at]];
        if (row->group == NATIVE) {
            read_native(cpu->engine, row, words);
        } else if (row->group == MSR) {
            struct unicorn_msr msr = {.number = msrs[row->place]};
            unicorn.reg_read(cpu->engine, UNICORN_MSR, &msr);
            *words = msr.value;
        } else {
            if (!loaded)
                unicorn.context_save(cpu->engine, x86->view);
            loaded = 1;
            *words = read_one(x86->view, row);
            if (row->group == FLAGS && x86->armed && !x86->guest_tf)
                *words &= ~(uint64_t)FLAG_TF;
        }
        words += words_of(row);
    }
    return 0;
}

/* What decides how addresses are translated. */
static int translates(const struct rift_emulator_register *row) {
    return row->group == EFER || (row->group == CONTROL && row->place != 2 && row->place != 8);
}

int x86_write_registers(struct rift_emulator_cpu *cpu, const uint32_t *ids, uint32_t count, const uint64_t *words,
                        struct rift_error *error) {
    const uint64_t *word = words;
    int edited = 0, flush = 0;
    (void)error;
    x86_load(cpu);
    for (uint32_t at = 0; at < count; ++at) {
        const struct rift_emulator_register *row = &rift_emulator_x86_registers[ids[at]];
        if (row->group != NATIVE && row->group != MSR) {
            flush |= translates(row) && read_one(cpu->context, row) != *word;
            write_one(cpu->context, row, *word);
            edited = 1;
        }
        word += words_of(row);
    }
    if (edited) {
        x86_refresh(cpu->context);
        x86_store(cpu);
    }
    for (uint32_t at = 0; at < count; ++at) {
        const struct rift_emulator_register *row = &rift_emulator_x86_registers[ids[at]];
        if (row->group == NATIVE) {
            uint64_t value[4] = {0};
            memcpy(value, words, 8 * words_of(row));
            unicorn.reg_write(cpu->engine, row->place, value);
        } else if (row->group == MSR) {
            struct unicorn_msr msr = {.number = msrs[row->place], .value = *words};
            unicorn.reg_write(cpu->engine, UNICORN_MSR, &msr);
        }
        words += words_of(row);
    }
    if (flush)
        unicorn.ctl(cpu->engine, UNICORN_CONTROL_WRITE | UNICORN_CONTROL_FLUSH_TRANSLATIONS);
    return 0;
}

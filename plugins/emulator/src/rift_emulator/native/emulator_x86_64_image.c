/* The engine's CPU state as a block of bytes: what its interface has names for, and what it has none for. */
#include "emulator_x86_64.h"

#include <string.h>

const int rift_emulator_x86_general[X86_GENERAL_COUNT] = {35, 38, 40, 37, 44, 36, 43, 39, 106, 107, 108, 109, 110, 111, 112, 113};

uint64_t x86_get(struct unicorn_context *context, size_t offset) {
    uint64_t value;
    memcpy(&value, x86_at(context, offset), 8);
    return value;
}

void x86_set(struct unicorn_context *context, size_t offset, uint64_t value) {
    memcpy(x86_at(context, offset), &value, 8);
}

uint32_t x86_get32(struct unicorn_context *context, size_t offset) {
    uint32_t value;
    memcpy(&value, x86_at(context, offset), 4);
    return value;
}

void x86_set32(struct unicorn_context *context, size_t offset, uint32_t value) {
    memcpy(x86_at(context, offset), &value, 4);
}

uint64_t x86_general(struct unicorn_context *context, int number) {
    return x86_get(context, rift_emulator_x86_layout.general + 8 * (size_t)number);
}

void x86_set_general(struct unicorn_context *context, int number, uint64_t value) {
    x86_set(context, rift_emulator_x86_layout.general + 8 * (size_t)number, value);
}

uint64_t x86_flags(struct unicorn_context *context) {
    uint64_t value = 0;
    unicorn.context_reg_read(context, UNICORN_RFLAGS, &value);
    return value;
}

void x86_set_flags(struct unicorn_context *context, uint64_t value) {
    unicorn.context_reg_write(context, UNICORN_RFLAGS, &value);
}

static size_t segment_at(int segment) {
    return rift_emulator_x86_layout.segments + SEGMENT_SIZE * (size_t)segment;
}

uint32_t x86_cpl(struct unicorn_context *context) {
    return x86_get32(context, rift_emulator_x86_layout.hidden_flags) & HIDDEN_CPL;
}

void x86_set_segment(struct unicorn_context *context, int segment, uint32_t selector, uint64_t base, uint32_t limit,
                     uint32_t flags) {
    size_t at = segment_at(segment);
    x86_set32(context, at, selector);
    x86_set(context, at + SEGMENT_BASE, base);
    x86_set32(context, at + SEGMENT_LIMIT, limit);
    x86_set32(context, at + SEGMENT_FLAGS, flags);
}

/* Bits of the hidden flags: CPL 1:0, CS32 4, SS32 5, ADDSEG 6, PE 7, MP EM TS 11:9, LMA 14, CS64 15, OSFXSR 22,
 * SMAP 23. The others are kept. */
void x86_refresh(struct unicorn_context *context) {
    const struct x86_layout *layout = &rift_emulator_x86_layout;
    uint32_t hidden = x86_get32(context, layout->hidden_flags);
    uint64_t cr0 = x86_get(context, layout->cr), cr4 = x86_get(context, layout->cr + 32);
    uint64_t efer = x86_get(context, layout->efer);
    uint32_t cs = x86_get32(context, segment_at(X86_CS) + SEGMENT_FLAGS);
    uint32_t ss = x86_get32(context, segment_at(X86_SS) + SEGMENT_FLAGS);
    hidden &= ~(HIDDEN_CPL | 0x3Fu << 4 | 0x3u << 10 | 0x3u << 14 | 0x3u << 22);
    hidden |= ss >> DESCRIPTOR_DPL_SHIFT & 3;
    hidden |= (uint32_t)(cr0 & 1) << 7 | (uint32_t)(cr0 >> 1 & 7) << 9;
    hidden |= (uint32_t)(cr4 >> 9 & 1) << 22 | (uint32_t)(cr4 >> 21 & 1) << 23;
    if (efer & EFER_LMA)
        hidden |= 1u << 14;
    if ((efer & EFER_LMA) && (cs & DESCRIPTOR_L)) {
        hidden |= 1u << 4 | 1u << 5 | 1u << 15;
    } else {
        uint64_t bases = x86_get(context, segment_at(X86_DS) + SEGMENT_BASE) |
                         x86_get(context, segment_at(X86_ES) + SEGMENT_BASE) |
                         x86_get(context, segment_at(X86_SS) + SEGMENT_BASE);
        hidden |= (cs & DESCRIPTOR_B) >> 18 | (ss & DESCRIPTOR_B) >> 17;
        if (!(cr0 & 1) || !(cs & DESCRIPTOR_B) || bases)
            hidden |= 1u << 6;
    }
    x86_set32(context, layout->hidden_flags, hidden);
}

void x86_load(struct rift_emulator_cpu *cpu) {
    unicorn.context_save(cpu->engine, cpu->context);
}

void x86_store(struct rift_emulator_cpu *cpu) {
    unicorn.context_restore(cpu->engine, cpu->context);
}

uint64_t x86_register(struct rift_emulator_cpu *cpu, int id) {
    uint64_t value = 0;
    unicorn.reg_read(cpu->engine, id, &value);
    return value;
}

void x86_set_register(struct rift_emulator_cpu *cpu, int id, uint64_t value) {
    unicorn.reg_write(cpu->engine, id, &value);
}

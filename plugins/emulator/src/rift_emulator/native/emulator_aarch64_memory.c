/* A plain look through the guest's page tables: Arm ARM, D8.3 (VMSAv8-64), stage 1 of EL1 and EL0, 4, 16 and 64 KiB. */
#include "emulator_aarch64.h"

#include <string.h>

#define OUTPUT_BITS 48
#define ENTRY_VALID 1u
#define ENTRY_TABLE 2u
#define SCTLR_M 1u

static uint64_t bits(uint64_t value, unsigned low, unsigned count) {
    return value >> low & ((UINT64_C(1) << count) - 1);
}

/* The table's base, the shift of a page and the bits of an address, or -1 if the walk is switched off. */
static int geometry(struct rift_emulator_cpu *cpu, uint64_t address, uint64_t *table, unsigned *shift,
                    unsigned *address_bits) {
    static const uint8_t lower[] = {12, 16, 14, 0}, upper[] = {0, 14, 12, 16}; /* TG0, TG1 */
    const uint64_t tcr = arm_system(cpu, ARM_TCR_EL1);
    const int high = (address >> 55 & 1) != 0;
    const unsigned size = (unsigned)bits(tcr, high ? 16 : 0, 6);
    if (bits(tcr, high ? 23 : 7, 1)) /* EPD */
        return -1;
    *shift = high ? upper[bits(tcr, 30, 2)] : lower[bits(tcr, 14, 2)];
    *address_bits = 64 - (size < 16 ? 16 : size > 39 ? 39 : size);
    *table = arm_system(cpu, high ? ARM_TTBR1_EL1 : ARM_TTBR0_EL1) & ((UINT64_C(1) << OUTPUT_BITS) - 2);
    if (!*shift)
        return -1;
    const int ignored = bits(tcr, high ? 38 : 37, 1) != 0; /* TBI: the top byte is a tag */
    const uint64_t above = bits(address, *address_bits, (ignored ? 56 : 63) - *address_bits);
    const uint64_t full = (UINT64_C(1) << ((ignored ? 56 : 63) - *address_bits)) - 1;
    return above == (high ? full : 0) ? 0 : -1;
}

int arm_translate(struct rift_emulator_cpu *cpu, uint64_t address, uint64_t *physical) {
    uint64_t table;
    unsigned shift, address_bits;
    *physical = address;
    if (!(arm_system(cpu, ARM_SCTLR_EL1) & SCTLR_M))
        return 0;
    if (geometry(cpu, address, &table, &shift, &address_bits))
        return -1;
    const unsigned stride = shift - 3;
    unsigned levels = (address_bits - shift + stride - 1) / stride; /* that there are */
    while (levels) {
        const unsigned low = shift + stride * (levels - 1);
        const unsigned high = low + stride < address_bits ? low + stride : address_bits;
        const uint64_t at = table + 8 * bits(address, low, high - low);
        const uint8_t *memory = rift_emulator_memory(cpu, at, 8, 0);
        uint64_t entry;
        if (!memory)
            return -1;
        memcpy(&entry, memory, sizeof(entry));
        if (!(entry & ENTRY_VALID))
            return -1;
        const int is_table = (entry & ENTRY_TABLE) != 0;
        const uint64_t output = bits(entry, shift, OUTPUT_BITS - shift) << shift;
        levels -= 1;
        if (levels && is_table) {
            table = output;
            continue;
        }
        if (!levels && !is_table) /* reserved */
            return -1;
        *physical = (output & ~((UINT64_C(1) << low) - 1)) | (address & ((UINT64_C(1) << low) - 1));
        return 0;
    }
    return -1;
}

int arm_fetch(struct rift_emulator_cpu *cpu, uint64_t pc, uint32_t *instruction) {
    uint64_t physical;
    if ((pc & 3) || arm_translate(cpu, pc, &physical))
        return -1;
    const uint8_t *memory = rift_emulator_memory(cpu, physical, 4, 0);
    if (!memory)
        return -1;
    memcpy(instruction, memory, sizeof(*instruction));
    return 0;
}

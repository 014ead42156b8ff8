/* Guest-virtual memory as the CPU sees it while it delivers exceptions: Intel SDM volume 3, 4.5 and 4.6. */
#include "emulator_x86_64.h"

#include <string.h>

#define PAGE UINT64_C(4096)
#define PRESENT UINT64_C(1)
#define WRITABLE UINT64_C(2)
#define USER UINT64_C(4)
#define ACCESSED (UINT64_C(1) << 5)
#define DIRTY (UINT64_C(1) << 6)
#define LARGE (UINT64_C(1) << 7)
#define NO_EXECUTE (UINT64_C(1) << 63)
#define ADDRESS UINT64_C(0x000FFFFFFFFFF000)
#define BEYOND UINT64_C(0x000FFF0000000000) /* the engine's CPU has 40 bits of physical address */

#define CODE_PRESENT 1u
#define CODE_WRITE 2u
#define CODE_RESERVED 8u

static int canonical(uint64_t address, int levels) {
    int64_t top = (int64_t)address >> (12 + 9 * levels - 1);
    return top == 0 || top == -1;
}

static int page_fault(struct x86_fault *fault, uint64_t address, uint32_t code) {
    *fault = (struct x86_fault){.vector = X86_PF, .code = code, .address = address};
    return -1;
}

static uint64_t *entry_at(struct rift_emulator_cpu *cpu, uint64_t table, uint64_t address, int level) {
    uint64_t at = table + (address >> (12 + 9 * (level - 1)) & 511) * 8;
    return (uint64_t *)(void *)rift_emulator_memory(cpu, at, 8, 1);
}

/* One page. `mark`: set accessed and dirty, and check; otherwise only look. */
static int walk(struct rift_emulator_cpu *cpu, struct unicorn_context *context, uint64_t address, int is_write,
                int mark, uint64_t *physical, struct x86_fault *fault) {
    const struct x86_layout *layout = &rift_emulator_x86_layout;
    uint64_t cr0 = x86_get(context, layout->cr), cr4 = x86_get(context, layout->cr + 32);
    uint64_t efer = x86_get(context, layout->efer);
    uint32_t write = is_write ? CODE_WRITE : 0;
    if (!(cr0 & CR0_PG)) {
        *physical = address;
        return 0;
    }
    if (!(efer & EFER_LMA))
        return page_fault(fault, address, write); /* Rift's guests are in long mode */
    int level = cr4 & CR4_LA57 ? 5 : 4;
    if (!canonical(address, level)) {
        *fault = (struct x86_fault){.vector = X86_GP};
        return -1;
    }
    uint64_t table = x86_get(context, layout->cr + 24) & ADDRESS, allowed = WRITABLE | USER;
    uint64_t *entries[5], *leaf = NULL;
    int depth = 0;
    uint64_t reserved = BEYOND | (efer & EFER_NXE ? 0 : NO_EXECUTE), value = 0;
    for (; level >= 1; --level) {
        uint64_t *entry = entry_at(cpu, table, address, level);
        value = entry ? __atomic_load_n(entry, __ATOMIC_RELAXED) : 0;
        if (!(value & PRESENT))
            return page_fault(fault, address, write);
        int is_leaf = level == 1 || ((value & LARGE) && level <= 3);
        uint64_t wrong = reserved | (level > 3 ? LARGE : 0);
        if (is_leaf && level > 1)
            wrong |= ((UINT64_C(1) << (12 + 9 * (level - 1))) - 1) & ADDRESS & ~(UINT64_C(1) << 12); /* not PAT */
        if (value & wrong)
            return page_fault(fault, address, write | CODE_PRESENT | CODE_RESERVED);
        allowed &= value;
        entries[depth++] = entry;
        if (is_leaf) {
            leaf = entry;
            break;
        }
        table = value & ADDRESS;
    }
    if (mark) {
        int refused = is_write && !(allowed & WRITABLE) && (cr0 & CR0_WP);
        if (refused || ((allowed & USER) && (cr4 & CR4_SMAP)))
            return page_fault(fault, address, write | CODE_PRESENT);
        for (int at = 0; at < depth; ++at)
            if (!(*entries[at] & ACCESSED))
                __atomic_fetch_or(entries[at], ACCESSED, __ATOMIC_RELAXED);
        if (is_write && !(*leaf & DIRTY))
            __atomic_fetch_or(leaf, DIRTY, __ATOMIC_RELAXED);
    }
    uint64_t offset = (UINT64_C(1) << (12 + 9 * (level - 1))) - 1;
    *physical = ((value & ADDRESS) & ~offset) | (address & offset);
    return 0;
}

int x86_look(struct rift_emulator_cpu *cpu, struct unicorn_context *context, uint64_t address, uint64_t *physical) {
    struct x86_fault fault;
    return walk(cpu, context, address, 0, 0, physical, &fault);
}

int x86_translate(struct rift_emulator_cpu *cpu, uint64_t address, uint64_t *physical) {
    struct x86 *x86 = cpu->state;
    unicorn.context_save(cpu->engine, x86->view);
    return x86_look(cpu, x86->view, address, physical);
}

int x86_read(struct rift_emulator_cpu *cpu, struct unicorn_context *context, uint64_t address, void *data,
             uint32_t bytes, struct x86_fault *fault) {
    uint8_t *to = data;
    while (bytes) {
        uint32_t part = (uint32_t)(PAGE - address % PAGE);
        uint64_t physical;
        if (part > bytes)
            part = bytes;
        if (walk(cpu, context, address, 0, 1, &physical, fault))
            return -1;
        const uint8_t *memory = rift_emulator_memory(cpu, physical, part, 0);
        if (memory)
            memcpy(to, memory, part);
        else
            memset(to, 0xFF, part); /* a hole: what an empty bus gives */
        to += part;
        address += part;
        bytes -= part;
    }
    return 0;
}

int x86_write(struct rift_emulator_cpu *cpu, struct unicorn_context *context, uint64_t address, const void *data,
              uint32_t bytes, struct x86_fault *fault) {
    const uint8_t *from = data;
    while (bytes) {
        uint32_t part = (uint32_t)(PAGE - address % PAGE);
        uint64_t physical;
        if (part > bytes)
            part = bytes;
        if (walk(cpu, context, address, 1, 1, &physical, fault))
            return -1;
        uint8_t *memory = rift_emulator_memory(cpu, physical, part, 1);
        if (memory) {
            memcpy(memory, from, part);
            rift_emulator_written(cpu, physical, part);
        }
        from += part;
        address += part;
        bytes -= part;
    }
    return 0;
}

static int is_prefix(uint8_t byte) {
    return byte == 0x66 || byte == 0x67 || byte == 0xF2 || byte == 0xF3 || byte == 0x2E || byte == 0x36 ||
           byte == 0x3E || byte == 0x26 || byte == 0x64 || byte == 0x65 || byte == 0xF0;
}

/* One byte of code; the page is executable, since the engine has executed it. */
static int code_byte(struct rift_emulator_cpu *cpu, struct unicorn_context *context, uint64_t address, uint8_t *byte) {
    uint64_t physical;
    if (x86_look(cpu, context, address, &physical))
        return -1;
    const uint8_t *memory = rift_emulator_memory(cpu, physical, 1, 0);
    if (!memory)
        return -1;
    *byte = *memory;
    return 0;
}

int x86_fetch(struct rift_emulator_cpu *cpu, struct unicorn_context *context, uint64_t rip,
              struct x86_instruction *instruction) {
    uint8_t byte = 0;
    *instruction = (struct x86_instruction){0};
    for (;; instruction->prefixes += 1) {
        if (instruction->prefixes > 14 || code_byte(cpu, context, rip + instruction->prefixes, &byte))
            return -1;
        if (!is_prefix(byte))
            break;
        instruction->repeated |= byte == 0xF2 || byte == 0xF3;
        instruction->address32 |= byte == 0x67;
    }
    int long_code = x86_get32(context, rift_emulator_x86_layout.segments + SEGMENT_SIZE * X86_CS + SEGMENT_FLAGS) &
                    DESCRIPTOR_L ? 1 : 0;
    if (long_code && (byte & 0xF0) == 0x40) { /* REX */
        instruction->prefixes += 1;
        if (code_byte(cpu, context, rip + instruction->prefixes, &byte))
            return -1;
    }
    instruction->opcode[0] = byte;
    for (uint32_t at = 1; at < sizeof(instruction->opcode); ++at)
        if (code_byte(cpu, context, rip + instruction->prefixes + at, &instruction->opcode[at]))
            break; /* the instruction may end before */
    return 0;
}

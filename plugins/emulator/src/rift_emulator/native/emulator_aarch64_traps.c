/* What the engine does not look at, and a hook at every instruction does while the guest has it on: floating point
 * that traps (CPACR_EL1.FPEN), and data accesses that must be aligned (SCTLR_EL1.A). Encodings: Arm ARM, C4.1. */
#include "emulator_aarch64.h"
#include "emulator_internal.h"

#define SCTLR_A (UINT64_C(1) << 1)
#define ALIGNMENT_FAULT 0x21u /* ISS.DFSC */
#define WRITE_NOT_READ (1u << 6)
#define ALWAYS_VALID (0x1Eu << 20) /* CV, and the condition "always" */

/* A bit for each exception level. */
static uint32_t floating_point(uint64_t cpacr) {
    switch (cpacr >> 20 & 3) {
    case 3:
        return 0;
    case 1:
        return 1u << 0;
    default:
        return 1u << 0 | 1u << 1;
    }
}

static uint32_t bits(uint32_t instruction, unsigned high, unsigned low) {
    return instruction >> low & ((UINT32_C(1) << (high - low + 1)) - 1);
}

static uint64_t sign_extended(uint32_t value, unsigned width) {
    const uint64_t sign = UINT64_C(1) << (width - 1);
    return ((uint64_t)value ^ sign) - sign;
}

/* C4.1.88 and following; and FPCR and FPSR, S3_3_C4_C4_0 and _1. */
static int uses_vectors(uint32_t instruction) {
    uint32_t group = bits(instruction, 28, 25);
    if ((group & 7) == 7 || ((group & 5) == 4 && bits(instruction, 26, 26)))
        return 1;
    return (instruction & 0xFFDFFFC0) == 0xD51B4400;
}

/* A load or store: `size` is what its address must be a multiple of. */
struct access {
    uint64_t address;
    uint32_t size, is_write;
};

static uint64_t base(struct rift_emulator_cpu *cpu, uint32_t number) {
    return number == 31 ? arm_register(cpu, UNICORN_ARM_SP) : arm_general(cpu, number);
}

/* The register of [base, register, extension]. */
static uint64_t index_register(struct rift_emulator_cpu *cpu, uint32_t instruction, uint32_t scale) {
    uint64_t value = arm_general(cpu, bits(instruction, 20, 16));
    switch (bits(instruction, 15, 13)) {
    case 2: /* UXTW */
        value &= UINT32_MAX;
        break;
    case 6: /* SXTW */
        value = sign_extended((uint32_t)value, 32);
        break;
    default:
        break;
    }
    return bits(instruction, 12, 12) ? value << scale : value;
}

static int exclusive(struct rift_emulator_cpu *cpu, uint32_t instruction, struct access *access) {
    const int pair = bits(instruction, 21, 21) && !bits(instruction, 23, 23);
    access->address = base(cpu, bits(instruction, 9, 5));
    access->size = (pair ? 2u : 1u) << bits(instruction, 31, 30);
    access->is_write = !bits(instruction, 22, 22);
    return 1;
}

static int literal(uint32_t instruction, uint64_t pc, struct access *access) {
    const uint32_t operation = bits(instruction, 31, 30), vector = bits(instruction, 26, 26);
    if (operation == 3)
        return 0; /* PRFM, or nothing */
    access->address = pc + 4 * sign_extended(bits(instruction, 23, 5), 19);
    access->size = vector ? 4u << operation : operation == 1 ? 8 : 4;
    return 1;
}

static int pair(struct rift_emulator_cpu *cpu, uint32_t instruction, struct access *access) {
    const uint32_t operation = bits(instruction, 31, 30), vector = bits(instruction, 26, 26);
    const int after = bits(instruction, 24, 23) == 1;
    access->size = vector ? 4u << operation : operation & 2 ? 8 : 4;
    access->address = base(cpu, bits(instruction, 9, 5));
    if (!after)
        access->address += access->size * sign_extended(bits(instruction, 21, 15), 7);
    access->is_write = !bits(instruction, 22, 22);
    return 1;
}

static int one_register(struct rift_emulator_cpu *cpu, uint32_t instruction, struct access *access) {
    const uint32_t operation = bits(instruction, 23, 22), vector = bits(instruction, 26, 26);
    const uint32_t scale = bits(instruction, 31, 30) | (vector && operation & 2 ? 4u : 0u);
    if (scale > 4 || (!vector && scale == 3 && operation == 2))
        return 0; /* PRFM, or nothing */
    access->size = 1u << scale;
    access->is_write = vector ? !(operation & 1) : operation == 0;
    access->address = base(cpu, bits(instruction, 9, 5));
    if (bits(instruction, 24, 24)) {
        access->address += (uint64_t)bits(instruction, 21, 10) << scale;
    } else if (bits(instruction, 21, 21)) {
        if (bits(instruction, 11, 10) != 2)
            return 0; /* atomics of Armv8.1: undefined */
        access->address += index_register(cpu, instruction, scale);
    } else if (bits(instruction, 11, 10) != 1) { /* not: behind the access */
        access->address += sign_extended(bits(instruction, 20, 12), 9);
    }
    return 1;
}

/* Of vectors' structures the multiple ones; the alignment is that of their elements. */
static int structure(struct rift_emulator_cpu *cpu, uint32_t instruction, struct access *access) {
    if (bits(instruction, 24, 24))
        return 0;
    access->address = base(cpu, bits(instruction, 9, 5));
    access->size = 1u << bits(instruction, 11, 10);
    access->is_write = !bits(instruction, 22, 22);
    return 1;
}

/* Returns 1 if the instruction reads or writes memory. */
static int find_access(struct rift_emulator_cpu *cpu, uint32_t instruction, uint64_t pc, struct access *access) {
    if ((bits(instruction, 28, 25) & 5) != 4)
        return 0;
    *access = (struct access){0};
    switch (bits(instruction, 29, 28)) {
    case 0:
        return bits(instruction, 26, 26) ? structure(cpu, instruction, access) : exclusive(cpu, instruction, access);
    case 1:
        return bits(instruction, 24, 24) ? 0 : literal(instruction, pc, access);
    case 2:
        return pair(cpu, instruction, access);
    default:
        return one_register(cpu, instruction, access);
    }
}

static void trap(struct rift_emulator_cpu *cpu, uint32_t syndrome, uint64_t address) {
    struct arm *arm = cpu->state;
    /* Not here: the engine puts the program counter back behind such a hook. */
    arm->trapped = 1;
    arm->trap_syndrome = syndrome | ESR_IL;
    arm->trap_address = address;
    rift_emulator_leave(cpu);
}

static void every_instruction(struct unicorn *engine, uint64_t pc, uint32_t size, void *context) {
    struct rift_emulator_cpu *cpu = context;
    struct arm *arm = cpu->state;
    const uint32_t level = (arm_pstate(cpu) & PSTATE_EL) >> 2;
    struct access access;
    uint32_t instruction;
    (void)engine;
    (void)size;
    if (cpu->leaving || arm_fetch(cpu, pc, &instruction))
        return;
    if (arm->trap_levels >> level & 1 && uses_vectors(instruction)) {
        trap(cpu, (uint32_t)EC_FLOATING_POINT << ESR_EC_SHIFT | ALWAYS_VALID, 0);
        return;
    }
    if (!arm->trap_alignment || !find_access(cpu, instruction, pc, &access) || !(access.address & (access.size - 1)))
        return;
    const uint32_t class = level ? EC_DATA_ABORT_SAME : EC_DATA_ABORT;
    trap(cpu, class << ESR_EC_SHIFT | ALIGNMENT_FAULT | (access.is_write ? WRITE_NOT_READ : 0), access.address);
}

int arm_traps_change(struct rift_emulator_cpu *cpu, uint32_t number, int id) {
    const struct arm *arm = cpu->state;
    if (number == ARM_CPACR_EL1)
        return floating_point(arm_register(cpu, id)) != arm->trap_levels;
    return number == ARM_SCTLR_EL1 && ((arm_register(cpu, id) & SCTLR_A) != 0) != (int)arm->trap_alignment;
}

void arm_watch_traps(struct rift_emulator_cpu *cpu) {
    struct arm *arm = cpu->state;
    arm->trap_levels = floating_point(arm_system(cpu, ARM_CPACR_EL1));
    arm->trap_alignment = (arm_system(cpu, ARM_SCTLR_EL1) & SCTLR_A) != 0;
    const int wanted = arm->trap_levels || arm->trap_alignment;
    if (wanted == (arm->trap != 0))
        return;
    if (wanted) {
        unicorn.hook_add(cpu->engine, &arm->trap, UNICORN_HOOK_CODE, (void *)every_instruction, cpu, 1, 0);
    } else {
        unicorn.hook_del(cpu->engine, arm->trap);
        arm->trap = 0;
    }
    rift_emulator_code_flush((struct rift_emulator_vcpu *)cpu);
}

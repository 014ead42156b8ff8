/* Calls of the guest to its firmware and to the host, waiting for interrupts, and system registers that nobody knows.
 *
 * PSCI: Arm DEN 0022, version 1.1; SMCCC: Arm DEN 0028. Other calls are exits. */
#include "emulator_aarch64.h"

/* Function identifiers; the 64-bit form of a function has bit 30 set as well. */
#define SMCCC_VERSION 0x80000000u
#define SMCCC_64 0x40000000u
enum { PSCI_FIRST = (int)0x84000000, PSCI_LAST = (int)0x8400001F };
enum psci_function { /* from PSCI_FIRST on */
    PSCI_VERSION = 0, PSCI_CPU_SUSPEND = 1, PSCI_CPU_OFF = 2, PSCI_CPU_ON = 3, PSCI_AFFINITY_INFO = 4,
    PSCI_MIGRATE_INFO_TYPE = 6, PSCI_SYSTEM_OFF = 8, PSCI_SYSTEM_RESET = 9, PSCI_FEATURES = 10
};

#define SCTLR_NTWI (1u << 16)
#define VERSION_1_1 0x10001
#define NOT_SUPPORTED (~UINT64_C(0)) /* -1 */
#define DENIED (UINT64_C(0) - 3)
#define AFFINITY_ON 0
#define AFFINITY_OFF 1
#define NO_MIGRATION 2 /* there is no trusted OS that would have to move */

static uint64_t has_feature(uint32_t function) {
    const uint32_t number = function & ~SMCCC_64, place = number - (uint32_t)PSCI_FIRST;
    if (number == SMCCC_VERSION || place == PSCI_FEATURES || place == PSCI_SYSTEM_OFF || place == PSCI_SYSTEM_RESET ||
        place <= PSCI_AFFINITY_INFO || place == PSCI_MIGRATE_INFO_TYPE)
        return 0;
    return NOT_SUPPORTED;
}

/* The CPUs of a machine are its threads, which the host alone starts and ends. */
static uint64_t answer(struct rift_emulator_cpu *cpu, uint32_t place) {
    const uint64_t argument = arm_general(cpu, 1);
    switch (place) {
    case PSCI_VERSION:
        return VERSION_1_1;
    case PSCI_CPU_OFF:
    case PSCI_CPU_ON:
        return DENIED;
    case PSCI_AFFINITY_INFO:
        return argument == cpu->index ? AFFINITY_ON : AFFINITY_OFF;
    case PSCI_MIGRATE_INFO_TYPE:
        return NO_MIGRATION;
    case PSCI_FEATURES:
        return has_feature((uint32_t)argument);
    default:
        return NOT_SUPPORTED;
    }
}

static void end_call(struct rift_emulator_cpu *cpu, uint64_t next, uint64_t result) {
    const struct arm *arm = cpu->state;
    arm_set_general(cpu, 0, result);
    if (arm_register(cpu, UNICORN_ARM_PC) != next)
        arm_set_pc(cpu, next);
    if (arm->armed) {
        rift_emulator_instruction_over(cpu);
        rift_emulator_leave(cpu);
    }
}

/* Function in X0, arguments in X1 to X6, result in X0. */
static void exit_call(struct rift_emulator_cpu *cpu, uint64_t pc, uint64_t next) {
    struct arm *arm = cpu->state;
    struct rift_exit exit = {.kind = RIFT_EXIT_HYPERCALL, .address = arm_general(cpu, 0)};
    for (uint32_t at = 0; at < 6; ++at)
        exit.info[at] = arm_general(cpu, 1 + at);
    int verdict = arm_give(cpu, &exit, pc, next);
    if (verdict == RIFT_EMULATOR_REPEAT)
        return;
    if (verdict != RIFT_EMULATOR_GIVEN) {
        arm_set_general(cpu, 0, exit.value);
        return;
    }
    arm->target = 0;
    cpu->open = ARM_READ;
}

void arm_wait(struct rift_emulator_cpu *cpu, uint64_t pc) {
    if (!(arm_pstate(cpu) & PSTATE_EL) && !(arm_system(cpu, ARM_SCTLR_EL1) & SCTLR_NTWI)) {
        arm_raise(cpu, (uint32_t)EC_WFX << ESR_EC_SHIFT | ESR_IL | 0x1Eu << 20, 0); /* CV, "always", WFI */
        return;
    }
    struct rift_exit exit = {.kind = RIFT_EXIT_HALT, .address = pc + 4};
    arm_give(cpu, &exit, pc, pc + 4);
}

/* The number is in W0: what stands above it means nothing. */
void arm_call(struct rift_emulator_cpu *cpu, uint64_t pc, uint64_t next) {
    const uint32_t function = (uint32_t)arm_general(cpu, 0), number = function & ~SMCCC_64;
    const uint32_t place = number - (uint32_t)PSCI_FIRST;
    if (number == SMCCC_VERSION) {
        end_call(cpu, next, VERSION_1_1);
        return;
    }
    if (place > (uint32_t)PSCI_LAST - (uint32_t)PSCI_FIRST) {
        exit_call(cpu, pc, next);
        return;
    }
    struct rift_exit exit = {.kind = RIFT_EXIT_POWER_OFF};
    switch (place) {
    case PSCI_SYSTEM_RESET:
        exit.kind = RIFT_EXIT_RESET;
        arm_give(cpu, &exit, pc, next);
        return;
    case PSCI_SYSTEM_OFF:
        arm_give(cpu, &exit, pc, next);
        return;
    case PSCI_CPU_SUSPEND: /* a standby state, which a wake-up event ends */
        arm_set_general(cpu, 0, 0);
        exit = (struct rift_exit){.kind = RIFT_EXIT_HALT, .address = next};
        arm_give(cpu, &exit, pc, next);
        return;
    default:
        end_call(cpu, next, answer(cpu, place));
    }
}

/* MSR and MRS of a register: C6.2. op0 is 2 or 3; bit 21 is 1 for a read. */
#define SYSTEM_MASK 0xFFD00000u
#define SYSTEM_ACCESS 0xD5100000u
#define SYSTEM_READ (1u << 21)

int arm_system_access(struct rift_emulator_cpu *cpu, uint64_t pc, uint32_t instruction) {
    struct arm *arm = cpu->state;
    if ((instruction & SYSTEM_MASK) != SYSTEM_ACCESS || !(arm_pstate(cpu) & PSTATE_EL) ||
        !(cpu->flags & RIFT_EMULATOR_SYSTEM_REGISTER_EXITS))
        return 0;
    const uint32_t number = 1u << 15 | (instruction >> 5 & 0x7FFF), target = instruction & 31;
    const uint32_t op1 = number >> 11 & 7, crn = number >> 7 & 15;
    const int implementation_defined = crn == 11 || crn == 15; /* CRn: D19.1.3 */
    const int read = (instruction & SYSTEM_READ) != 0;
    /* Of EL2 and EL3 are those with an op1 of 4 to 7; what the CPU is (CRn 0) and its counters cannot be written. */
    if ((op1 >= 4 && !implementation_defined) || (!read && op1 != 2 && crn == 0 && number >> 14 == 3) ||
        (!read && (number == ARM_CNTPCT_EL0 || number == ARM_CNTVCT_EL0)))
        return 0;
    struct rift_exit exit = {
        .kind = RIFT_EXIT_SYSTEM_REGISTER,
        .size = 8,
        .address = number,
        .value = read ? 0 : arm_general(cpu, target),
        .is_write = !read,
    };
    int verdict = arm_give(cpu, &exit, pc, pc + 4);
    if (verdict == RIFT_EMULATOR_REPEAT)
        return 1;
    if (read)
        arm_set_general(cpu, target, verdict == RIFT_EMULATOR_GIVEN ? 0 : exit.value);
    if (verdict == RIFT_EMULATOR_GIVEN) {
        arm->target = target;
        cpu->open = read ? ARM_READ : ARM_WRITE;
    }
    return 1;
}

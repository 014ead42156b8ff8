/* The register table of AArch64, by the manual's names, and access to it. */
#include "emulator_internal.h"
#include "emulator_aarch64.h"

#include <errno.h>
#include <string.h>

enum group { GENERAL, PROGRAM, FLAGS, STACK, CURRENT_STACK, NATIVE, SYSTEM, IDENTITY, CONSTANT, COUNTER };

#define CNTVOFF_EL2 ARM_SYSTEM_REGISTER(3, 4, 14, 0, 3)

#define ROW(name, op0, op1, crn, crm, op2, group) {#name, 64, group, ARM_SYSTEM_REGISTER(op0, op1, crn, crm, op2), 0}
#define IDENTITY_ROW(name, op0, op1, crn, crm, op2) \
    {#name, 64, IDENTITY, ARM_SYSTEM_REGISTER(op0, op1, crn, crm, op2), 1}
#define X(number) {"x" #number, 64, GENERAL, number, 0}
#define V(number) {"v" #number, 128, NATIVE, UNICORN_ARM_Q0 + number, 0}
#define EIGHT(row, a, b, c, d, e, f, g, h) row(a), row(b), row(c), row(d), row(e), row(f), row(g), row(h)

const struct rift_emulator_register rift_emulator_arm_registers[] = {
    EIGHT(X, 0, 1, 2, 3, 4, 5, 6, 7),
    EIGHT(X, 8, 9, 10, 11, 12, 13, 14, 15),
    EIGHT(X, 16, 17, 18, 19, 20, 21, 22, 23),
    X(24), X(25), X(26), X(27), X(28), X(29), X(30),
    {"pc", 64, PROGRAM, 0, 0},
    {"pstate", 32, FLAGS, 0, 0},
    {"sp_el0", 64, STACK, UNICORN_ARM_SP_EL0, 0},
    {"sp_el1", 64, STACK, UNICORN_ARM_SP_EL1, 0},
    {"sp", 64, CURRENT_STACK, 0, 0},
    EIGHT(V, 0, 1, 2, 3, 4, 5, 6, 7),
    EIGHT(V, 8, 9, 10, 11, 12, 13, 14, 15),
    EIGHT(V, 16, 17, 18, 19, 20, 21, 22, 23),
    EIGHT(V, 24, 25, 26, 27, 28, 29, 30, 31),
    {"fpsr", 32, NATIVE, UNICORN_ARM_FPSR, 0},
    {"fpcr", 32, NATIVE, UNICORN_ARM_FPCR, 0},
    ROW(elr_el1, 3, 0, 4, 0, 1, SYSTEM),
    ROW(spsr_el1, 3, 0, 4, 0, 0, SYSTEM),
    ROW(sctlr_el1, 3, 0, 1, 0, 0, SYSTEM),
    ROW(actlr_el1, 3, 0, 1, 0, 1, CONSTANT),
    ROW(cpacr_el1, 3, 0, 1, 0, 2, SYSTEM),
    ROW(ttbr0_el1, 3, 0, 2, 0, 0, SYSTEM),
    ROW(ttbr1_el1, 3, 0, 2, 0, 1, SYSTEM),
    ROW(tcr_el1, 3, 0, 2, 0, 2, SYSTEM),
    ROW(afsr0_el1, 3, 0, 5, 1, 0, CONSTANT),
    ROW(afsr1_el1, 3, 0, 5, 1, 1, CONSTANT),
    ROW(esr_el1, 3, 0, 5, 2, 0, SYSTEM),
    ROW(far_el1, 3, 0, 6, 0, 0, SYSTEM),
    ROW(par_el1, 3, 0, 7, 4, 0, SYSTEM),
    ROW(mair_el1, 3, 0, 10, 2, 0, SYSTEM),
    ROW(amair_el1, 3, 0, 10, 3, 0, CONSTANT),
    ROW(vbar_el1, 3, 0, 12, 0, 0, SYSTEM),
    ROW(contextidr_el1, 3, 0, 13, 0, 1, SYSTEM),
    ROW(tpidr_el1, 3, 0, 13, 0, 4, SYSTEM),
    ROW(tpidr_el0, 3, 3, 13, 0, 2, SYSTEM),
    ROW(tpidrro_el0, 3, 3, 13, 0, 3, SYSTEM),
    ROW(csselr_el1, 3, 2, 0, 0, 0, SYSTEM),
    ROW(mdscr_el1, 2, 0, 0, 2, 2, SYSTEM),
    ROW(cntkctl_el1, 3, 0, 14, 1, 0, SYSTEM),
    ROW(cntv_ctl_el0, 3, 3, 14, 3, 1, SYSTEM),
    ROW(cntv_cval_el0, 3, 3, 14, 3, 2, SYSTEM),
    ROW(cntvct_el0, 3, 3, 14, 0, 2, COUNTER),
    ROW(cntp_ctl_el0, 3, 3, 14, 2, 1, SYSTEM),
    ROW(cntp_cval_el0, 3, 3, 14, 2, 2, SYSTEM),
    IDENTITY_ROW(midr_el1, 3, 0, 0, 0, 0),
    IDENTITY_ROW(mpidr_el1, 3, 4, 0, 0, 5), /* VMPIDR_EL2, which is what EL1 sees */
    IDENTITY_ROW(id_aa64pfr0_el1, 3, 0, 0, 4, 0),
    IDENTITY_ROW(id_aa64pfr1_el1, 3, 0, 0, 4, 1),
    IDENTITY_ROW(id_aa64dfr0_el1, 3, 0, 0, 5, 0),
    IDENTITY_ROW(id_aa64isar0_el1, 3, 0, 0, 6, 0),
    IDENTITY_ROW(id_aa64isar1_el1, 3, 0, 0, 6, 1),
    IDENTITY_ROW(id_aa64isar2_el1, 3, 0, 0, 6, 2),
    IDENTITY_ROW(id_aa64mmfr0_el1, 3, 0, 0, 7, 0),
    IDENTITY_ROW(id_aa64mmfr1_el1, 3, 0, 0, 7, 1),
    IDENTITY_ROW(id_aa64mmfr2_el1, 3, 0, 0, 7, 2),
    IDENTITY_ROW(ctr_el0, 3, 3, 0, 0, 1),
};

const uint32_t rift_emulator_arm_register_count =
    sizeof(rift_emulator_arm_registers) / sizeof(rift_emulator_arm_registers[0]);

static uint32_t words_of(const struct rift_emulator_register *row) {
    return (row->bits + 63) / 64;
}

/* The stack pointer in use is kept apart from the others. */
static int stack_in_use(struct rift_emulator_cpu *cpu) {
    const uint64_t pstate = arm_pstate(cpu);
    return (pstate & PSTATE_EL) && (pstate & PSTATE_SP) ? UNICORN_ARM_SP_EL1 : UNICORN_ARM_SP_EL0;
}

static int stack_id(struct rift_emulator_cpu *cpu, const struct rift_emulator_register *row) {
    return row->group == CURRENT_STACK || stack_in_use(cpu) == row->place ? UNICORN_ARM_SP : row->place;
}

static uint64_t read_one(struct rift_emulator_cpu *cpu, const struct rift_emulator_register *row) {
    const struct arm *arm = cpu->state;
    switch (row->group) {
    case GENERAL:
        return arm_general(cpu, row->place);
    case PROGRAM:
        return arm_register(cpu, UNICORN_ARM_PC);
    case FLAGS:
        return arm_pstate(cpu);
    case STACK:
    case CURRENT_STACK:
        return arm_register(cpu, stack_id(cpu, row));
    default:
        if (row->place == ARM_MDSCR_EL1 && arm->armed)
            return arm->guest_mdscr;
        return arm_system(cpu, row->place);
    }
}

int arm_read_registers(struct rift_emulator_cpu *cpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                       struct rift_error *error) {
    (void)error;
    for (uint32_t at = 0; at < count; ++at) {
        const struct rift_emulator_register *row = &rift_emulator_arm_registers[ids[at]];
        if (row->group == NATIVE) {
            uint64_t value[4] = {0};
            unicorn.reg_read(cpu->engine, row->place, value);
            memcpy(words, value, 8 * words_of(row));
        } else {
            *words = read_one(cpu, row);
        }
        words += words_of(row);
    }
    return 0;
}

/* Nothing changes before all values are known to be possible: EL1 and EL0, in AArch64. */
static int check(const uint32_t *ids, uint32_t count, const uint64_t *words, struct rift_error *error) {
    for (uint32_t at = 0; at < count; ++at) {
        const struct rift_emulator_register *row = &rift_emulator_arm_registers[ids[at]];
        if (row->group == IDENTITY)
            return rift_emulator_fail(error, EPERM, row->name);
        const uint64_t mode = *words & 0x1F;
        if (row->group == FLAGS && mode != 0 && mode != 4 && mode != 5)
            return rift_emulator_fail(error, EINVAL, row->name);
        words += words_of(row);
    }
    return 0;
}

static void write_system(struct rift_emulator_cpu *cpu, const struct rift_emulator_register *row, uint64_t value) {
    struct arm *arm = cpu->state;
    if (row->group == COUNTER)
        arm_set_system(cpu, CNTVOFF_EL2, arm_system(cpu, ARM_CNTPCT_EL0) - value);
    else if (row->place == ARM_MDSCR_EL1 && arm->armed)
        arm->guest_mdscr = value;
    else if (row->group == SYSTEM)
        arm_set_system(cpu, row->place, value);
}

/* PSTATE comes first, since it says which stack pointer `sp` is, wherever in the batch. */
int arm_write_registers(struct rift_emulator_cpu *cpu, const uint32_t *ids, uint32_t count, const uint64_t *words,
                        struct rift_error *error) {
    const struct arm *arm = cpu->state;
    uint64_t pstate = arm_pstate(cpu), pc = arm_register(cpu, UNICORN_ARM_PC);
    const uint64_t old_pstate = pstate, old_pc = pc;
    const uint64_t *word = words;
    int flush = 0;
    if (check(ids, count, words, error))
        return -1;
    for (uint32_t at = 0; at < count; ++at) {
        const struct rift_emulator_register *row = &rift_emulator_arm_registers[ids[at]];
        if (row->group == FLAGS)
            pstate = *word & ~PSTATE_SS;
        else if (row->group == PROGRAM)
            pc = *word;
        word += words_of(row);
    }
    if (pstate != old_pstate || pc != old_pc)
        arm_go(cpu, arm->armed ? pstate | PSTATE_SS : pstate, pc);
    for (int current = 0; current < 2; ++current) { /* `sp` means more than sp_el0 and sp_el1 */
        word = words;
        for (uint32_t at = 0; at < count; ++at) {
            const struct rift_emulator_register *row = &rift_emulator_arm_registers[ids[at]];
            if (current ? row->group == CURRENT_STACK : row->group == STACK) {
                arm_set_register(cpu, stack_id(cpu, row), *word);
            } else if (!current && row->group == GENERAL) {
                arm_set_general(cpu, row->place, *word);
            } else if (!current && row->group == NATIVE) {
                uint64_t value[4] = {0};
                memcpy(value, word, 8 * words_of(row));
                unicorn.reg_write(cpu->engine, row->place, value);
            } else if (!current && row->group >= SYSTEM) {
                flush |= row->place == ARM_SCTLR_EL1 || row->place == ARM_TCR_EL1 || row->place == ARM_TTBR0_EL1 ||
                         row->place == ARM_TTBR1_EL1;
                write_system(cpu, row, *word);
            }
            word += words_of(row);
        }
    }
    if (flush)
        unicorn.ctl(cpu->engine, UNICORN_CONTROL_WRITE | UNICORN_CONTROL_FLUSH_TRANSLATIONS);
    return 0;
}

/* The register table of AArch64, by the manual's names, and access to it. */
#include "hvf_aarch64.h"

#include <errno.h>
#include <string.h>

/* Where a register lies: rift_hvf_register.group; `place` is its number there. */
enum arm_group {
    ARM_CORE,      /* hv_reg_t */
    ARM_FLAGS,     /* PSTATE */
    ARM_VECTOR,    /* hv_simd_fp_reg_t */
    ARM_SYSTEM,    /* hv_sys_reg_t */
    ARM_TABLES,    /* the same: translations depend on it */
    ARM_IDENTITY,  /* the same: it cannot be written */
    ARM_MDSCR,
    ARM_COUNTER,   /* the virtual counter, which cannot be written */
    ARM_CURRENT_SP /* sp_el0 or sp_el1, as pstate says */
};

#define CORE(name, number) {#name, 64, ARM_CORE, number}
#define SYSTEM(name, op0, op1, crn, crm, op2) {#name, 64, ARM_SYSTEM, SYSTEM_REGISTER(op0, op1, crn, crm, op2)}
#define TABLES(name, op0, op1, crn, crm, op2) {#name, 64, ARM_TABLES, SYSTEM_REGISTER(op0, op1, crn, crm, op2)}
#define IDENTITY(name, op0, op1, crn, crm, op2) {#name, 64, ARM_IDENTITY, SYSTEM_REGISTER(op0, op1, crn, crm, op2)}
#define X(number) CORE(x##number, HV_X0 + number)
#define V(number) {"v" #number, 128, ARM_VECTOR, number}
#define EIGHT(row, a, b, c, d, e, f, g, h) row(a), row(b), row(c), row(d), row(e), row(f), row(g), row(h)

enum { ARM_PC = 31, ARM_PSTATE, ARM_SP_EL0, ARM_SP_EL1, ARM_SP };

/* The system registers' numbers: Arm ARM, D19. What an older framework does not know fails when it is read. */
const struct rift_hvf_register rift_hvf_arm_registers[ARM_REGISTER_COUNT] = {
    EIGHT(X, 0, 1, 2, 3, 4, 5, 6, 7),
    EIGHT(X, 8, 9, 10, 11, 12, 13, 14, 15),
    EIGHT(X, 16, 17, 18, 19, 20, 21, 22, 23),
    X(24), X(25), X(26), X(27), X(28), X(29), X(30),
    [ARM_PC] = CORE(pc, HV_PC),
    [ARM_PSTATE] = {"pstate", 32, ARM_FLAGS, HV_CPSR},
    [ARM_SP_EL0] = SYSTEM(sp_el0, 3, 0, 4, 1, 0),
    [ARM_SP_EL1] = SYSTEM(sp_el1, 3, 4, 4, 1, 0),
    [ARM_SP] = {"sp", 64, ARM_CURRENT_SP, 0},
    EIGHT(V, 0, 1, 2, 3, 4, 5, 6, 7),
    EIGHT(V, 8, 9, 10, 11, 12, 13, 14, 15),
    EIGHT(V, 16, 17, 18, 19, 20, 21, 22, 23),
    EIGHT(V, 24, 25, 26, 27, 28, 29, 30, 31),
    {"fpsr", 32, ARM_CORE, HV_FPSR},
    {"fpcr", 32, ARM_CORE, HV_FPCR},
    SYSTEM(elr_el1, 3, 0, 4, 0, 1),
    SYSTEM(spsr_el1, 3, 0, 4, 0, 0),
    TABLES(sctlr_el1, 3, 0, 1, 0, 0),
    SYSTEM(actlr_el1, 3, 0, 1, 0, 1),
    SYSTEM(cpacr_el1, 3, 0, 1, 0, 2),
    TABLES(ttbr0_el1, 3, 0, 2, 0, 0),
    TABLES(ttbr1_el1, 3, 0, 2, 0, 1),
    TABLES(tcr_el1, 3, 0, 2, 0, 2),
    SYSTEM(afsr0_el1, 3, 0, 5, 1, 0),
    SYSTEM(afsr1_el1, 3, 0, 5, 1, 1),
    SYSTEM(esr_el1, 3, 0, 5, 2, 0),
    SYSTEM(far_el1, 3, 0, 6, 0, 0),
    SYSTEM(par_el1, 3, 0, 7, 4, 0),
    TABLES(mair_el1, 3, 0, 10, 2, 0),
    SYSTEM(amair_el1, 3, 0, 10, 3, 0),
    SYSTEM(vbar_el1, 3, 0, 12, 0, 0),
    SYSTEM(contextidr_el1, 3, 0, 13, 0, 1),
    SYSTEM(tpidr_el1, 3, 0, 13, 0, 4),
    SYSTEM(tpidr_el0, 3, 3, 13, 0, 2),
    SYSTEM(tpidrro_el0, 3, 3, 13, 0, 3),
    SYSTEM(csselr_el1, 3, 2, 0, 0, 0),
    {"mdscr_el1", 64, ARM_MDSCR, 0},
    SYSTEM(cntkctl_el1, 3, 0, 14, 1, 0),
    SYSTEM(cntv_ctl_el0, 3, 3, 14, 3, 1),
    SYSTEM(cntv_cval_el0, 3, 3, 14, 3, 2),
    {"cntvct_el0", 64, ARM_COUNTER, 0},
    SYSTEM(cntp_ctl_el0, 3, 3, 14, 2, 1),
    SYSTEM(cntp_cval_el0, 3, 3, 14, 2, 2),
    IDENTITY(midr_el1, 3, 0, 0, 0, 0),
    IDENTITY(mpidr_el1, 3, 0, 0, 0, 5),
    IDENTITY(id_aa64pfr0_el1, 3, 0, 0, 4, 0),
    IDENTITY(id_aa64pfr1_el1, 3, 0, 0, 4, 1),
    IDENTITY(id_aa64dfr0_el1, 3, 0, 0, 5, 0),
    IDENTITY(id_aa64isar0_el1, 3, 0, 0, 6, 0),
    IDENTITY(id_aa64isar1_el1, 3, 0, 0, 6, 1),
    IDENTITY(id_aa64isar2_el1, 3, 0, 0, 6, 2),
    IDENTITY(id_aa64mmfr0_el1, 3, 0, 0, 7, 0),
    IDENTITY(id_aa64mmfr1_el1, 3, 0, 0, 7, 1),
    IDENTITY(id_aa64mmfr2_el1, 3, 0, 0, 7, 2),
    IDENTITY(ctr_el0, 3, 3, 0, 0, 1),
};

static uint32_t words_of(const struct rift_hvf_register *row) {
    return (row->bits + 63) / 64;
}

static int read_vector(const struct rift_hvf_cpu *cpu, uint32_t number, uint64_t *words, struct rift_error *error) {
    rift_hvf_vector vector;
    if (!cpu->framework->arm.get_simd_fp_reg)
        return rift_hvf_fail(error, EOPNOTSUPP, "hv_vcpu_get_simd_fp_reg");
    int status = cpu->framework->arm.get_simd_fp_reg(cpu->id, number, &vector);
    if (status != HV_SUCCESS)
        return rift_hvf_fail(error, status, "hv_vcpu_get_simd_fp_reg");
    memcpy(words, &vector, sizeof(vector));
    return 0;
}

static int write_vector(const struct rift_hvf_cpu *cpu, uint32_t number, const uint64_t *words,
                        struct rift_error *error) {
    rift_hvf_vector vector;
    if (!cpu->framework->arm.set_simd_fp_reg)
        return rift_hvf_fail(error, EOPNOTSUPP, "hv_vcpu_set_simd_fp_reg");
    memcpy(&vector, words, sizeof(vector));
    int status = cpu->framework->arm.set_simd_fp_reg(cpu->id, number, vector);
    return status == HV_SUCCESS ? 0 : rift_hvf_fail(error, status, "hv_vcpu_set_simd_fp_reg");
}

/* A failure of the framework's means that this CPU, or this macOS, does not have the register. */
static int read_system(const struct rift_hvf_cpu *cpu, const struct rift_hvf_register *row, uint64_t *value,
                       struct rift_error *error) {
    return rift_hvf_arm_system_get(cpu, row->place, value, error) ? rift_hvf_fail(error, error->code, row->name) : 0;
}

static int read_one(const struct rift_hvf_cpu *cpu, const struct rift_hvf_register *row, uint64_t *words,
                    struct rift_error *error) {
    switch (row->group) {
    case ARM_CORE:
        return rift_hvf_arm_get(cpu, row->place, words, error);
    case ARM_FLAGS: /* a step that waits to be made is the host's */
        if (rift_hvf_arm_get(cpu, row->place, words, error))
            return -1;
        *words &= arm_of(cpu)->debug_step ? 0xFFFFFFFF & ~PSTATE_SS : 0xFFFFFFFF;
        return 0;
    case ARM_VECTOR:
        return read_vector(cpu, row->place, words, error);
    case ARM_MDSCR:
        return rift_hvf_arm_read_mdscr(cpu, words, error);
    case ARM_COUNTER:
        return rift_hvf_arm_virtual_counter(cpu, words) ? rift_hvf_fail(error, EOPNOTSUPP, row->name) : 0;
    default: /* ARM_SYSTEM, ARM_TABLES, ARM_IDENTITY */
        return read_system(cpu, row, words, error);
    }
}

static int write_system(struct rift_hvf_cpu *cpu, const struct rift_hvf_register *row, uint64_t value,
                        struct rift_error *error) {
    uint64_t old;
    if (row->group == ARM_TABLES) {
        if (read_system(cpu, row, &old, error))
            return -1;
        if (old != value)
            cpu->flush = 1;
    }
    return rift_hvf_arm_system_set(cpu, row->place, value, error) ? rift_hvf_fail(error, error->code, row->name) : 0;
}

static int write_one(struct rift_hvf_cpu *cpu, const struct rift_hvf_register *row, const uint64_t *words,
                     struct rift_error *error) {
    switch (row->group) {
    case ARM_CORE:
    case ARM_FLAGS:
        return rift_hvf_arm_set(cpu, row->place, *words, error);
    case ARM_VECTOR:
        return write_vector(cpu, row->place, words, error);
    case ARM_MDSCR:
        return rift_hvf_arm_write_mdscr(cpu, *words, error);
    case ARM_COUNTER: /* it is the machine's: what `read` gave is taken, and changes nothing */
        return 0;
    default: /* ARM_SYSTEM, ARM_TABLES */
        return write_system(cpu, row, *words, error);
    }
}

/* The row behind an id. Returns 0, or -1 with the error filled in. */
static int resolve(const struct rift_hvf_cpu *cpu, uint32_t *id, struct rift_error *error) {
    uint64_t pstate;
    if (*id != ARM_SP)
        return 0;
    if (rift_hvf_arm_get(cpu, HV_CPSR, &pstate, error))
        return -1;
    *id = (pstate & PSTATE_EL) && (pstate & PSTATE_SP) ? ARM_SP_EL1 : ARM_SP_EL0;
    return 0;
}

int rift_hvf_arm_read(struct rift_hvf_cpu *cpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                      struct rift_error *error) {
    for (uint32_t at = 0; at < count; ++at) {
        uint32_t id = ids[at];
        if (resolve(cpu, &id, error) || read_one(cpu, &rift_hvf_arm_registers[id], words, error))
            return -1;
        words += words_of(&rift_hvf_arm_registers[id]);
    }
    return 0;
}

/* Nothing changes before all values are known to fit. */
static int check(const uint32_t *ids, uint32_t count, const uint64_t *words, struct rift_error *error) {
    for (uint32_t at = 0; at < count; ++at) {
        const struct rift_hvf_register *row = &rift_hvf_arm_registers[ids[at]];
        uint32_t size = words_of(row), top = row->bits % 64;
        if (row->group == ARM_IDENTITY)
            return rift_hvf_fail(error, EPERM, row->name);
        if (top && words[size - 1] >> top)
            return rift_hvf_fail(error, ERANGE, row->name);
        words += size;
    }
    return 0;
}

/* `sp` means the stack pointer of the pstate that is written along, wherever in the batch. */
int rift_hvf_arm_write(struct rift_hvf_cpu *cpu, const uint32_t *ids, uint32_t count, const uint64_t *words,
                       struct rift_error *error) {
    if (check(ids, count, words, error))
        return -1;
    const uint64_t *sp = NULL;
    for (uint32_t at = 0; at < count; ++at) {
        const struct rift_hvf_register *row = &rift_hvf_arm_registers[ids[at]];
        if (ids[at] == ARM_SP)
            sp = words;
        else if (write_one(cpu, row, words, error))
            return -1;
        words += words_of(row);
    }
    uint32_t id = ARM_SP;
    if (!sp)
        return 0;
    return resolve(cpu, &id, error) ? -1 : write_one(cpu, &rift_hvf_arm_registers[id], sp, error);
}

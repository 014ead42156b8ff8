/* The register table of AArch64, by the manual's names, and access to it: KVM takes one register a call. */
#include "kvm_aarch64.h"

#include <errno.h>
#include <string.h>

#define CORE_PLACE(field) (offsetof(struct kvm_regs, field) / sizeof(uint32_t))
#define SYSTEM_PLACE(op0, op1, crn, crm, op2) ((op0) << 14 | (op1) << 11 | (crn) << 7 | (crm) << 3 | (op2))
#define CORE(name, field) {#name, 64, ARM_CORE, CORE_PLACE(field)}
#define CORE_32(name, field) {#name, 32, ARM_CORE_32, CORE_PLACE(field)}
#define SYSTEM(name, op0, op1, crn, crm, op2) {#name, 64, ARM_SYSTEM, SYSTEM_PLACE(op0, op1, crn, crm, op2)}
#define IDENTITY(name, op0, op1, crn, crm, op2) {#name, 64, ARM_IDENTITY, SYSTEM_PLACE(op0, op1, crn, crm, op2)}
#define X(number) CORE(x##number, regs.regs[number])
#define V(number) {"v" #number, 128, ARM_VECTOR, CORE_PLACE(fp_regs.vregs[number])}
#define EIGHT(row, a, b, c, d, e, f, g, h) row(a), row(b), row(c), row(d), row(e), row(f), row(g), row(h)

/* The system registers' numbers: Arm ARM, D19. */
const struct rift_kvm_register rift_kvm_arm_registers[ARM_REGISTER_COUNT] = {
    EIGHT(X, 0, 1, 2, 3, 4, 5, 6, 7),
    EIGHT(X, 8, 9, 10, 11, 12, 13, 14, 15),
    EIGHT(X, 16, 17, 18, 19, 20, 21, 22, 23),
    X(24), X(25), X(26), X(27), X(28), X(29), X(30),
    [ARM_PC] = CORE(pc, regs.pc),
    [ARM_PSTATE] = {"pstate", 32, ARM_FLAGS, CORE_PLACE(regs.pstate)},
    [ARM_SP_EL0] = CORE(sp_el0, regs.sp),
    [ARM_SP_EL1] = CORE(sp_el1, sp_el1),
    [ARM_SP] = {"sp", 64, ARM_CURRENT_SP, 0},
    EIGHT(V, 0, 1, 2, 3, 4, 5, 6, 7),
    EIGHT(V, 8, 9, 10, 11, 12, 13, 14, 15),
    EIGHT(V, 16, 17, 18, 19, 20, 21, 22, 23),
    EIGHT(V, 24, 25, 26, 27, 28, 29, 30, 31),
    CORE_32(fpsr, fp_regs.fpsr),
    CORE_32(fpcr, fp_regs.fpcr),
    CORE(elr_el1, elr_el1),
    CORE(spsr_el1, spsr[KVM_SPSR_EL1]),
    SYSTEM(sctlr_el1, 3, 0, 1, 0, 0),
    SYSTEM(actlr_el1, 3, 0, 1, 0, 1),
    SYSTEM(cpacr_el1, 3, 0, 1, 0, 2),
    SYSTEM(ttbr0_el1, 3, 0, 2, 0, 0),
    SYSTEM(ttbr1_el1, 3, 0, 2, 0, 1),
    SYSTEM(tcr_el1, 3, 0, 2, 0, 2),
    SYSTEM(afsr0_el1, 3, 0, 5, 1, 0),
    SYSTEM(afsr1_el1, 3, 0, 5, 1, 1),
    SYSTEM(esr_el1, 3, 0, 5, 2, 0),
    SYSTEM(far_el1, 3, 0, 6, 0, 0),
    SYSTEM(par_el1, 3, 0, 7, 4, 0),
    SYSTEM(mair_el1, 3, 0, 10, 2, 0),
    SYSTEM(amair_el1, 3, 0, 10, 3, 0),
    SYSTEM(vbar_el1, 3, 0, 12, 0, 0),
    SYSTEM(contextidr_el1, 3, 0, 13, 0, 1),
    SYSTEM(tpidr_el1, 3, 0, 13, 0, 4),
    SYSTEM(tpidr_el0, 3, 3, 13, 0, 2),
    SYSTEM(tpidrro_el0, 3, 3, 13, 0, 3),
    SYSTEM(csselr_el1, 3, 2, 0, 0, 0),
    SYSTEM(mdscr_el1, 2, 0, 0, 2, 2),
    SYSTEM(cntkctl_el1, 3, 0, 14, 1, 0),
    SYSTEM(cntv_ctl_el0, 3, 3, 14, 3, 1),
    /* KVM has exchanged the numbers of these two: asm/kvm.h, at KVM_REG_ARM_TIMER_CVAL */
    SYSTEM(cntv_cval_el0, 3, 3, 14, 0, 2),
    SYSTEM(cntvct_el0, 3, 3, 14, 3, 2),
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

_Static_assert(ARM_X0 + 31 == ARM_PC, "the rows that have names of their own follow x0 to x30");

/* What KVM_GET_ONE_REG calls the register: Documentation/virt/kvm/api.rst, 4.68. */
static uint64_t number_of(const struct rift_kvm_register *row) {
    static const uint64_t kinds[] = {
        [ARM_CORE] = KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE,
        [ARM_FLAGS] = KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE,
        [ARM_CORE_32] = KVM_REG_SIZE_U32 | KVM_REG_ARM_CORE,
        [ARM_VECTOR] = KVM_REG_SIZE_U128 | KVM_REG_ARM_CORE,
        [ARM_SYSTEM] = KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG,
        [ARM_IDENTITY] = KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG,
    };
    return KVM_REG_ARM64 | kinds[row->group] | row->place;
}

static uint32_t words_of(const struct rift_kvm_register *row) {
    return (row->bits + 63) / 64;
}

void rift_kvm_arm_forget(struct rift_kvm_arm *arm) {
    memset(arm->valid, 0, sizeof(arm->valid));
}

/* The register's copy, as in KVM; NULL with the error filled in. */
static uint64_t *fetch(struct rift_kvm_cpu *cpu, uint32_t id, struct rift_error *error) {
    struct rift_kvm_arm *arm = cpu->state;
    uint64_t *words = &arm->words[2 * id];
    if (arm->valid[id])
        return words;
    words[0] = words[1] = 0;
    struct kvm_one_reg one = {.id = number_of(&rift_kvm_arm_registers[id]), .addr = (uintptr_t)words};
    if (rift_kvm_arm_call(cpu, KVM_GET_ONE_REG, &one, rift_kvm_arm_registers[id].name, error) < 0)
        return NULL;
    arm->valid[id] = 1;
    return words;
}

static int store(struct rift_kvm_cpu *cpu, uint32_t id, const uint64_t *words, struct rift_error *error) {
    struct rift_kvm_arm *arm = cpu->state;
    const struct rift_kvm_register *row = &rift_kvm_arm_registers[id];
    struct kvm_one_reg one = {.id = number_of(row), .addr = (uintptr_t)words};
    /* KVM may keep less than it is given (timers, reserved bits): it is asked again when somebody wants to know. */
    arm->valid[id] = 0;
    if (rift_kvm_arm_call(cpu, KVM_SET_ONE_REG, &one, row->name, error) < 0)
        return -1;
    if (row->group == ARM_CORE) {
        arm->words[2 * id] = *words;
        arm->valid[id] = 1;
    }
    return 0;
}

/* Which stack pointer `sp` is under this pstate. */
static uint32_t current_sp(uint64_t pstate) {
    return (pstate & PSTATE_EL) && (pstate & PSTATE_SP) ? ARM_SP_EL1 : ARM_SP_EL0;
}

/* The register behind an id. Returns 0, or -1 with the error filled in. */
static int resolve(struct rift_kvm_cpu *cpu, uint32_t *id, struct rift_error *error) {
    if (*id != ARM_SP)
        return 0;
    const uint64_t *pstate = fetch(cpu, ARM_PSTATE, error);
    if (!pstate)
        return -1;
    *id = current_sp(*pstate);
    return 0;
}

int rift_kvm_arm_read(struct rift_kvm_cpu *cpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                      struct rift_error *error) {
    for (uint32_t at = 0; at < count; ++at) {
        uint32_t id = ids[at];
        if (resolve(cpu, &id, error))
            return -1;
        const uint64_t *value = fetch(cpu, id, error);
        if (!value)
            return -1;
        uint32_t size = words_of(&rift_kvm_arm_registers[id]);
        memcpy(words, value, size * sizeof(*words));
        words += size;
    }
    return 0;
}

/* Nothing changes before all values are known to fit. */
static int check(const uint32_t *ids, uint32_t count, const uint64_t *words, struct rift_error *error) {
    for (uint32_t at = 0; at < count; ++at) {
        const struct rift_kvm_register *row = &rift_kvm_arm_registers[ids[at]];
        uint32_t size = words_of(row), top = row->bits % 64;
        if (row->group == ARM_IDENTITY)
            return rift_kvm_arm_fail(error, EPERM, row->name);
        if (top && words[size - 1] >> top)
            return rift_kvm_arm_fail(error, ERANGE, row->name);
        words += size;
    }
    return 0;
}

/* `sp` means the stack pointer of the pstate that is written along, wherever in the batch. */
int rift_kvm_arm_write(struct rift_kvm_cpu *cpu, const uint32_t *ids, uint32_t count, const uint64_t *words,
                       struct rift_error *error) {
    if (check(ids, count, words, error))
        return -1;
    const uint64_t *sp = NULL;
    for (uint32_t at = 0; at < count; ++at) {
        if (ids[at] == ARM_SP)
            sp = words;
        else if (store(cpu, ids[at], words, error))
            return -1;
        words += words_of(&rift_kvm_arm_registers[ids[at]]);
    }
    uint32_t id = ARM_SP;
    if (!sp)
        return 0;
    return resolve(cpu, &id, error) ? -1 : store(cpu, id, sp, error);
}

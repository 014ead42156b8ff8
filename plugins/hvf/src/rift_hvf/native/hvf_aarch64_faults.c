/* Exceptions that the host causes in the guest: taken here, as the CPU takes them. */
#include "hvf_aarch64.h"

#include <errno.h>

#define EC_SERROR 0x2Fu
#define ESR_EC_SHIFT 26
#define ESR_IL (UINT64_C(1) << 25) /* the instruction has 32 bits */
#define ESR_ISS 0x1FFFFFFu
#define SCTLR_SPAN (UINT64_C(1) << 23)
#define SCTLR_DSSBS (UINT64_C(1) << 44)
#define SERROR_OFFSET 0x180

/* Where the vectors are for exceptions from EL1 with SP_EL0, from EL1 with SP_EL1, from EL0: Arm ARM, D1.3.1. */
static uint64_t vector_offset(uint64_t pstate) {
    if (!(pstate & PSTATE_EL))
        return 0x400;
    return pstate & PSTATE_SP ? 0x200 : 0;
}

/* PSTATE in the handler: Arm ARM, AArch64.TakeException. */
static uint64_t handler_pstate(uint64_t old, uint64_t sctlr) {
    uint64_t pstate = PSTATE_EL1H | PSTATE_MASKED | (old & (PSTATE_FLAGS | PSTATE_DIT | PSTATE_PAN));
    if (!(sctlr & SCTLR_SPAN))
        pstate |= PSTATE_PAN;
    if (sctlr & SCTLR_DSSBS)
        pstate |= PSTATE_SSBS;
    return pstate;
}

int rift_hvf_arm_take(struct rift_hvf_cpu *cpu, uint64_t pc, uint64_t pstate, uint32_t offset, struct rift_error *error) {
    uint64_t vectors, control;
    pstate &= ~(uint64_t)PSTATE_SS;
    if (rift_hvf_arm_system_get(cpu, SYS_VBAR_EL1, &vectors, error) ||
        rift_hvf_arm_system_get(cpu, SYS_SCTLR_EL1, &control, error) ||
        rift_hvf_arm_system_set(cpu, SYS_ELR_EL1, pc, error) ||
        rift_hvf_arm_system_set(cpu, SYS_SPSR_EL1, pstate, error) ||
        rift_hvf_arm_set(cpu, HV_CPSR, handler_pstate(pstate, control), error))
        return -1;
    return rift_hvf_arm_set(cpu, HV_PC, vectors + vector_offset(pstate) + offset, error);
}

/* As the answer to an open access the exception belongs to its instruction, where PC still is: an HVC has left PC
 * behind itself. */
int rift_hvf_arm_inject(struct rift_hvf_cpu *cpu, uint32_t vector, int has_code, uint32_t code,
                        struct rift_error *error) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    uint64_t pc, pstate;
    if (vector > 0x3F)
        return rift_hvf_fail(error, EINVAL, "inject_exception");
    if (rift_hvf_arm_get(cpu, HV_PC, &pc, error) || rift_hvf_arm_get(cpu, HV_CPSR, &pstate, error))
        return -1;
    if (vector == EC_SERROR && (pstate & PSTATE_A)) /* the framework keeps none pending */
        return rift_hvf_fail(error, EOPNOTSUPP, "inject_exception");
    if (cpu->open && arm->open == ARM_OPEN_HYPERCALL)
        pc -= 4;
    const uint64_t syndrome = (uint64_t)vector << ESR_EC_SHIFT | ESR_IL | (has_code ? code & ESR_ISS : 0);
    if (rift_hvf_arm_system_set(cpu, SYS_ESR_EL1, syndrome, error) ||
        rift_hvf_arm_take(cpu, pc, pstate, vector == EC_SERROR ? SERROR_OFFSET : 0, error))
        return -1;
    arm->open = ARM_OPEN_NOTHING;
    cpu->open = 0;
    return 0;
}

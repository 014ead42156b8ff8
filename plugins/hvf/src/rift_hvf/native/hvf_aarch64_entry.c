/* Entering the guest; and making it forget translations, for which the framework has no call. */
#include "hvf_aarch64.h"

#include <errno.h>

#define CNTV_CTL_ENABLE 1u
#define CNTV_CTL_IMASK 2u
#define CNTV_CTL_ISTATUS 4u

/* The exit for the virtual timer masks it. It is unmasked when the guest has switched it off, or set it to later. */
static int look_after_timer(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    uint64_t control;
    if (rift_hvf_arm_system_get(cpu, SYS_CNTV_CTL_EL0, &control, error))
        return -1;
    if ((control & (CNTV_CTL_ENABLE | CNTV_CTL_IMASK | CNTV_CTL_ISTATUS)) == (CNTV_CTL_ENABLE | CNTV_CTL_ISTATUS))
        return 0;
    arm->timer_masked = 0;
    if (!cpu->framework->arm.set_vtimer_mask)
        return 0;
    int status = cpu->framework->arm.set_vtimer_mask(cpu->id, false);
    return status == HV_SUCCESS ? 0 : rift_hvf_fail(error, status, "hv_vcpu_set_vtimer_mask");
}

/* The CPU steps one instruction when both bits are set, and clears the second: Arm ARM, D2.12. */
static int prepare_step(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    uint64_t pstate;
    if (rift_hvf_arm_get(cpu, HV_CPSR, &pstate, error))
        return -1;
    return rift_hvf_arm_set(cpu, HV_CPSR, pstate | PSTATE_SS, error);
}

static int run(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    atomic_store(&cpu->vm->entered, 1);
    int status = cpu->framework->arm.run(cpu->id);
    return status == HV_SUCCESS ? 0 : rift_hvf_fail(error, status, "hv_vcpu_run");
}

int rift_hvf_arm_enter(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    if (arm->flush) {
        arm->flush = 0;
        if (rift_hvf_arm_flush(cpu, error))
            return -1;
    }
    if ((arm->interrupt || arm->watches_vectors) && rift_hvf_arm_offer_interrupt(cpu, error))
        return -1;
    if ((arm->timer_masked && look_after_timer(cpu, error)) || (arm->debug_step && prepare_step(cpu, error)))
        return -1;
    return run(cpu, error);
}

/* -- forgetting translations -------------------------------------------------------------------------------- */

/* dsb ishst; tlbi vmalle1is; dsb ish; isb; hvc #0x5254 */
static const uint32_t forget_code[] = {0xD5033A9F, 0xD508831F, 0xD5033B9F, 0xD5033FDF, 0xD40A4A82};

/* Instruction or data abort (0x20, 0x24): the hypervisor had yet to give the page. The code itself can cause none. */
#define IS_ABORT(syndrome) (((syndrome) >> 26 & 0x3B) == 0x20)

/* Until the code above, at `code`, is through: other exits (a kick, the timer) are none of its business. */
static int run_to_end(struct rift_hvf_cpu *cpu, uint64_t code, struct rift_error *error) {
    const struct rift_hvf_arm_exit *exit = cpu->exit_info;
    for (int attempt = 0; attempt < 1000; ++attempt) {
        uint64_t pc;
        if (run(cpu, error) || rift_hvf_arm_get(cpu, HV_PC, &pc, error))
            return -1;
        if (exit->reason == HV_EXIT_EXCEPTION && (exit->syndrome >> 26 & 0x3F) == EC_HVC &&
            pc == code + sizeof(forget_code))
            return 0;
        if (exit->reason == HV_EXIT_EXCEPTION && !IS_ABORT(exit->syndrome))
            return rift_hvf_fail(error, EPROTO, "tlbi");
        if (exit->reason == HV_EXIT_VTIMER)
            arm_of(cpu)->timer_masked = 1;
    }
    return rift_hvf_fail(error, ETIMEDOUT, "tlbi");
}

/* Only code of the guest's own exception level can do it: the vCPU runs a few instructions on a page of ours, with its
 * MMU off, and is as it was afterwards. Before the first entry of all there is nothing to forget. */
int rift_hvf_arm_flush(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    uint64_t code, pc, pstate, control, debug;
    if (!atomic_load(&cpu->vm->entered))
        return 0;
    if (rift_hvf_memory_service(cpu->vm, forget_code, sizeof(forget_code), &code, error) ||
        rift_hvf_arm_get(cpu, HV_PC, &pc, error) || rift_hvf_arm_get(cpu, HV_CPSR, &pstate, error) ||
        rift_hvf_arm_system_get(cpu, SYS_SCTLR_EL1, &control, error) ||
        rift_hvf_arm_system_get(cpu, SYS_MDSCR_EL1, &debug, error))
        return -1;
    if (rift_hvf_arm_system_set(cpu, SYS_SCTLR_EL1, (control & ~SCTLR_M) | SCTLR_C | SCTLR_I, error) ||
        rift_hvf_arm_system_set(cpu, SYS_MDSCR_EL1, debug & ~(MDSCR_SS | MDSCR_MDE), error) ||
        rift_hvf_arm_set(cpu, HV_CPSR, PSTATE_EL1H | PSTATE_MASKED, error) || rift_hvf_arm_set(cpu, HV_PC, code, error))
        return -1;
    struct rift_error ignored;
    int failed = run_to_end(cpu, code, error);
    if (rift_hvf_arm_system_set(cpu, SYS_SCTLR_EL1, control, failed ? &ignored : error) ||
        rift_hvf_arm_system_set(cpu, SYS_MDSCR_EL1, debug, failed ? &ignored : error) ||
        rift_hvf_arm_set(cpu, HV_CPSR, pstate, failed ? &ignored : error) ||
        rift_hvf_arm_set(cpu, HV_PC, pc, failed ? &ignored : error))
        return -1;
    return failed;
}

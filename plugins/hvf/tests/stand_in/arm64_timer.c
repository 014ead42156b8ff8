/* The virtual timer, which the engine does not have: its registers, and when it fires. */
#include "arm64.h"

#include <time.h>

enum { ENABLE = 1, MASK = 2, STATUS = 4 };

uint64_t run_counter(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return ((uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec) / 16; /* as the engine counts: 62.5 MHz */
}

static uint64_t now(const struct vcpu *vcpu) {
    return run_counter() - vcpu->timer_offset;
}

int timer_read(struct vcpu *vcpu, uint16_t number, uint64_t *value) {
    if (number == S_CNTV_CVAL)
        *value = vcpu->timer_compare;
    else if (number == S_CNTV_TVAL)
        *value = (uint64_t)(int64_t)(int32_t)(vcpu->timer_compare - now(vcpu)) & 0xFFFFFFFF;
    else if (number == S_CNTV_CTL)
        *value = vcpu->timer_control |
                 ((vcpu->timer_control & ENABLE) && now(vcpu) >= vcpu->timer_compare ? (uint64_t)STATUS : 0);
    return number == S_CNTV_CVAL || number == S_CNTV_TVAL || number == S_CNTV_CTL;
}

int timer_write(struct vcpu *vcpu, uint16_t number, uint64_t value) {
    if (number == S_CNTV_CVAL)
        vcpu->timer_compare = value;
    else if (number == S_CNTV_TVAL)
        vcpu->timer_compare = now(vcpu) + (uint64_t)(int64_t)(int32_t)value;
    else if (number == S_CNTV_CTL)
        vcpu->timer_control = value & (ENABLE | MASK);
    return number == S_CNTV_CVAL || number == S_CNTV_TVAL || number == S_CNTV_CTL;
}

uint64_t timer_ticks(struct vcpu *vcpu) {
    if (vcpu->timer_control != ENABLE || vcpu->timer_masked)
        return ~UINT64_C(0);
    const uint64_t time = now(vcpu);
    return vcpu->timer_compare > time ? vcpu->timer_compare - time : 0;
}

/* -- the guest's accesses --------------------------------------------------------------------------------------------- */

static uint16_t number_of(const uc_arm64_cp_reg *place) {
    return (uint16_t)SYS(place->op0, place->op1, place->crn, place->crm, place->op2);
}

/* Both return 1 for an instruction that is done, and is not the engine's any more. */
static uint32_t on_read(uc_engine *engine, uc_arm64_reg target, const uc_arm64_cp_reg *place, void *data) {
    uint64_t value;
    if (!timer_read(data, number_of(place), &value))
        return 0;
    uc_reg_write(engine, target, &value);
    return 1;
}

static uint32_t on_write(uc_engine *engine, uc_arm64_reg source, const uc_arm64_cp_reg *place, void *data) {
    (void)engine, (void)source;
    return (uint32_t)timer_write(data, number_of(place), place->val);
}

int timer_hooks(struct vcpu *vcpu) {
    uc_hook hook;
    return uc_hook_add(vcpu->engine, &hook, UC_HOOK_INSN, (void *)on_read, vcpu, 1, 0, UC_ARM64_INS_MRS) ||
                   uc_hook_add(vcpu->engine, &hook, UC_HOOK_INSN, (void *)on_write, vcpu, 1, 0, UC_ARM64_INS_MSR)
               ? -1
               : 0;
}

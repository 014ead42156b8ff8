/* One IRQ or FIQ that the host raises, delivered once.
 *
 * The framework's pending interrupts are lines, which the guest would take again and again; nothing tells when it has
 * taken one. So an interrupt that the guest takes now is delivered here, as the CPU does it. One that is masked is
 * made pending, with breakpoints at its three vectors, which tell that it has arrived; where the host's own breakpoints
 * leave no room, or the framework has no such exits, it waits for any exit with the mask open. */
#include "hvf_aarch64.h"

#include <errno.h>

enum { IRQ = 0, FIQ = 1, KINDS = 2 };

static const uint32_t offsets[KINDS] = {0x80, 0x100}; /* Arm ARM, D1.3.1 */
static const uint64_t masks[KINDS] = {PSTATE_I, PSTATE_F};

int rift_hvf_arm_interrupt(struct rift_hvf_cpu *cpu, uint32_t vector, struct rift_error *error) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    if (vector >= KINDS)
        return rift_hvf_fail(error, EINVAL, "inject_interrupt");
    if (arm->interrupt)
        return rift_hvf_fail(error, EBUSY, "inject_interrupt");
    arm->interrupt = vector + 1;
    return 0;
}

/* Exceptions have been taken already; the line is pending for one entry only. */
void rift_hvf_arm_drop_events(struct rift_hvf_cpu *cpu) {
    arm_of(cpu)->interrupt = 0;
}

/* Has breakpoints at the vectors, or none any more. */
static int watch_vectors(struct rift_hvf_cpu *cpu, int on, struct rift_error *error) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    uint64_t base = 0;
    if (on && rift_hvf_arm_system_get(cpu, SYS_VBAR_EL1, &base, error))
        return -1;
    const uint64_t first = on ? base + offsets[arm->interrupt - 1] : 0;
    if (arm->watches_vectors == (uint32_t)on && arm->vector == first)
        return 0;
    arm->watches_vectors = (uint32_t)on;
    arm->vector = first;
    return rift_hvf_arm_refresh_debug(cpu, error);
}

int rift_hvf_arm_offer_interrupt(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    const struct rift_hvf_arm_calls *calls = &cpu->framework->arm;
    uint64_t pc, pstate;
    if (!arm->interrupt)
        return watch_vectors(cpu, 0, error);
    const uint32_t kind = arm->interrupt - 1;
    if (rift_hvf_arm_get(cpu, HV_PC, &pc, error) || rift_hvf_arm_get(cpu, HV_CPSR, &pstate, error))
        return -1;
    if (!(pstate & masks[kind])) {
        arm->interrupt = 0;
        return watch_vectors(cpu, 0, error) ? -1 : rift_hvf_arm_take(cpu, pc, pstate, offsets[kind], error);
    }
    if (!calls->set_pending_interrupt || !rift_hvf_arm_has_room_for_vectors(cpu))
        return watch_vectors(cpu, 0, error);
    if (watch_vectors(cpu, 1, error))
        return -1;
    int status = calls->set_pending_interrupt(cpu->id, kind, true); /* until the exit */
    return status == HV_SUCCESS ? 0 : rift_hvf_fail(error, status, "hv_vcpu_set_pending_interrupt");
}

int rift_hvf_arm_interrupt_arrived(struct rift_hvf_cpu *cpu) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    const uint64_t distance = arm->pc - arm->vector;
    if (!arm->watches_vectors || (distance != 0 && distance != 0x200 && distance != 0x400))
        return 0;
    arm->interrupt = 0;
    return 1;
}

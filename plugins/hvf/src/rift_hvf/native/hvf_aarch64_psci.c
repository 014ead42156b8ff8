/* Calls of the guest to its firmware, which we are; and waiting for interrupts.
 *
 * PSCI: Arm DEN 0022, version 1.1; SMCCC: Arm DEN 0028. Other calls are exits. */
#include "hvf_aarch64.h"

#include <errno.h>

/* Function identifiers; the 64-bit form of a function has bit 30 set as well. */
enum smccc_function {
    SMCCC_VERSION = (int)0x80000000,
    PSCI_VERSION = (int)0x84000000,
    PSCI_CPU_SUSPEND = (int)0x84000001,
    PSCI_CPU_OFF = (int)0x84000002,
    PSCI_CPU_ON = (int)0x84000003,
    PSCI_AFFINITY_INFO = (int)0x84000004,
    PSCI_MIGRATE_INFO_TYPE = (int)0x84000006,
    PSCI_SYSTEM_OFF = (int)0x84000008,
    PSCI_SYSTEM_RESET = (int)0x84000009,
    PSCI_FEATURES = (int)0x8400000A
};
#define SMCCC_64 0x40000000u
#define PSCI_LAST 0x8400001Fu

#define NOT_SUPPORTED (~UINT64_C(0)) /* -1 */
#define DENIED (UINT64_C(0) - 3)
#define AFFINITY_ON 0
#define AFFINITY_OFF 1
#define NO_MIGRATION 2 /* there is no trusted OS that would have to move */

/* The identifier is in W0. */
static int is_ours(uint64_t function) {
    const uint32_t number = (uint32_t)function & ~SMCCC_64;
    return (number >= (uint32_t)PSCI_VERSION && number <= PSCI_LAST) || number == (uint32_t)SMCCC_VERSION;
}

static uint64_t has_feature(uint64_t function) {
    switch ((int)((uint32_t)function & ~SMCCC_64)) {
    case SMCCC_VERSION:
    case PSCI_VERSION:
    case PSCI_CPU_SUSPEND:
    case PSCI_CPU_OFF:
    case PSCI_CPU_ON:
    case PSCI_AFFINITY_INFO:
    case PSCI_MIGRATE_INFO_TYPE:
    case PSCI_SYSTEM_OFF:
    case PSCI_SYSTEM_RESET:
    case PSCI_FEATURES:
        return 0;
    default:
        return NOT_SUPPORTED;
    }
}

/* The answer in *result. The CPUs of a machine are its threads, which the host alone starts and ends. */
static int answer(struct rift_hvf_cpu *cpu, uint64_t function, uint64_t *result, struct rift_error *error) {
    uint64_t argument;
    if (rift_hvf_arm_get(cpu, HV_X0 + 1, &argument, error))
        return -1;
    switch ((int)((uint32_t)function & ~SMCCC_64)) {
    case SMCCC_VERSION:
    case PSCI_VERSION:
        *result = 0x10001; /* 1.1, both */
        return 0;
    case PSCI_CPU_OFF:
    case PSCI_CPU_ON:
        *result = DENIED;
        return 0;
    case PSCI_AFFINITY_INFO:
        *result = argument == cpu->index ? AFFINITY_ON : AFFINITY_OFF;
        return 0;
    case PSCI_MIGRATE_INFO_TYPE:
        *result = NO_MIGRATION;
        return 0;
    case PSCI_FEATURES:
        *result = has_feature(argument);
        return 0;
    default:
        *result = NOT_SUPPORTED;
        return 0;
    }
}

static int finish(struct rift_hvf_cpu *cpu, int secure, struct rift_error *error) {
    if (secure)
        return rift_hvf_arm_advance(cpu, error);
    cpu->stepped = arm_of(cpu)->debug_step; /* an HVC leaves PC behind itself */
    cpu->step_address = arm_of(cpu)->pc;
    return 0;
}

/* Function in X0, arguments in X1 to X6, result in X0. */
static int exit_call(struct rift_hvf_cpu *cpu, int secure, uint64_t function, struct rift_exit *exit,
                     struct rift_error *error) {
    exit->kind = RIFT_EXIT_HYPERCALL;
    exit->address = function;
    for (uint32_t at = 0; at < 6; ++at)
        if (rift_hvf_arm_get(cpu, HV_X0 + 1 + at, &exit->info[at], error))
            return -1;
    arm_of(cpu)->open = secure ? ARM_OPEN_SECURE_CALL : ARM_OPEN_HYPERCALL;
    cpu->open = 1;
    return RIFT_HVF_DISPATCH;
}

int rift_hvf_arm_call(struct rift_hvf_cpu *cpu, int secure, struct rift_exit *exit, struct rift_error *error) {
    uint64_t function, result;
    if (rift_hvf_arm_get(cpu, HV_X0, &function, error))
        return -1;
    if (!is_ours(function))
        return exit_call(cpu, secure, function, exit, error);
    const int number = (int)((uint32_t)function & ~SMCCC_64);
    if (number == PSCI_SYSTEM_OFF || number == PSCI_SYSTEM_RESET) {
        exit->kind = number == PSCI_SYSTEM_OFF ? RIFT_EXIT_POWER_OFF : RIFT_EXIT_RESET;
        return finish(cpu, secure, error) ? -1 : RIFT_HVF_DISPATCH;
    }
    if (number == PSCI_CPU_SUSPEND) { /* a standby state, which a wake-up event ends */
        if (rift_hvf_arm_set(cpu, HV_X0, 0, error))
            return -1;
        if (!secure)
            arm_of(cpu)->pc -= 4;
        return rift_hvf_arm_wait(cpu, exit, error);
    }
    if (answer(cpu, function, &result, error) || rift_hvf_arm_set(cpu, HV_X0, result, error) || finish(cpu, secure, error))
        return -1;
    return RIFT_HVF_REENTER;
}

#define CNTV_CTL_ENABLE 1u
#define CNTV_CTL_IMASK 2u
#define LONGEST_NS UINT64_C(3600000000000) /* an hour: the guest finds that it is early, and waits again */

/* Whether the virtual timer runs, and when it fires. A framework that tells nothing of it has none. */
static int timer_runs(const struct rift_hvf_cpu *cpu, uint64_t *compare) {
    uint64_t control;
    struct rift_error ignored;
    return !rift_hvf_arm_system_get(cpu, SYS_CNTV_CTL_EL0, &control, &ignored) &&
           !rift_hvf_arm_system_get(cpu, SYS_CNTV_CVAL_EL0, compare, &ignored) &&
           (control & (CNTV_CTL_ENABLE | CNTV_CTL_IMASK)) == CNTV_CTL_ENABLE;
}

/* With its virtual timer running the guest wakes when that fires, masked by PSTATE or not (Arm ARM, D1.7.1). */
int rift_hvf_arm_wait(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    const struct rift_hvf_arm *arm = arm_of(cpu);
    uint64_t compare, now, nanoseconds;
    if (rift_hvf_arm_advance(cpu, error))
        return -1;
    if (arm->interrupt) /* it ends the wait, masked or not */
        return RIFT_HVF_REENTER;
    if (!timer_runs(cpu, &compare) || rift_hvf_arm_virtual_counter(cpu, &now) ||
        rift_hvf_arm_nanoseconds(cpu, compare > now ? compare - now : 0, &nanoseconds)) {
        exit->kind = RIFT_EXIT_HALT;
        exit->address = arm->pc;
        return RIFT_HVF_DISPATCH;
    }
    cpu->wait_ns = nanoseconds < LONGEST_NS ? nanoseconds : LONGEST_NS;
    return cpu->wait_ns ? RIFT_HVF_WAIT : RIFT_HVF_REENTER;
}

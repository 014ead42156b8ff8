/* A vCPU's whole state as one block of bytes.
 *
 * Not in it: the identification registers, which are the CPU's, and the virtual counter, which is the machine's and
 * must not go backwards for its other vCPUs. */
#include "hvf_aarch64.h"

#include <errno.h>
#include <string.h>

#define MAGIC UINT64_C(0x3834364D52415652) /* RVARM648 */
enum { VERSION = 1 };

/* hv_sys_reg_t of macOS 11. */
static const uint16_t system_registers[] = {
    SYSTEM_REGISTER(3, 0, 1, 0, 0),  /* SCTLR_EL1 */
    SYSTEM_REGISTER(3, 0, 1, 0, 2),  /* CPACR_EL1 */
    SYSTEM_REGISTER(3, 0, 2, 0, 0),  /* TTBR0_EL1 */
    SYSTEM_REGISTER(3, 0, 2, 0, 1),  /* TTBR1_EL1 */
    SYSTEM_REGISTER(3, 0, 2, 0, 2),  /* TCR_EL1 */
    SYSTEM_REGISTER(3, 0, 2, 1, 0),  /* APIAKEYLO_EL1 */
    SYSTEM_REGISTER(3, 0, 2, 1, 1),  /* APIAKEYHI_EL1 */
    SYSTEM_REGISTER(3, 0, 2, 1, 2),  /* APIBKEYLO_EL1 */
    SYSTEM_REGISTER(3, 0, 2, 1, 3),  /* APIBKEYHI_EL1 */
    SYSTEM_REGISTER(3, 0, 2, 2, 0),  /* APDAKEYLO_EL1 */
    SYSTEM_REGISTER(3, 0, 2, 2, 1),  /* APDAKEYHI_EL1 */
    SYSTEM_REGISTER(3, 0, 2, 2, 2),  /* APDBKEYLO_EL1 */
    SYSTEM_REGISTER(3, 0, 2, 2, 3),  /* APDBKEYHI_EL1 */
    SYSTEM_REGISTER(3, 0, 2, 3, 0),  /* APGAKEYLO_EL1 */
    SYSTEM_REGISTER(3, 0, 2, 3, 1),  /* APGAKEYHI_EL1 */
    SYSTEM_REGISTER(3, 0, 4, 0, 0),  /* SPSR_EL1 */
    SYSTEM_REGISTER(3, 0, 4, 0, 1),  /* ELR_EL1 */
    SYSTEM_REGISTER(3, 0, 4, 1, 0),  /* SP_EL0 */
    SYSTEM_REGISTER(3, 0, 5, 1, 0),  /* AFSR0_EL1 */
    SYSTEM_REGISTER(3, 0, 5, 1, 1),  /* AFSR1_EL1 */
    SYSTEM_REGISTER(3, 0, 5, 2, 0),  /* ESR_EL1 */
    SYSTEM_REGISTER(3, 0, 6, 0, 0),  /* FAR_EL1 */
    SYSTEM_REGISTER(3, 0, 7, 4, 0),  /* PAR_EL1 */
    SYSTEM_REGISTER(3, 0, 10, 2, 0), /* MAIR_EL1 */
    SYSTEM_REGISTER(3, 0, 10, 3, 0), /* AMAIR_EL1 */
    SYSTEM_REGISTER(3, 0, 12, 0, 0), /* VBAR_EL1 */
    SYSTEM_REGISTER(3, 0, 13, 0, 1), /* CONTEXTIDR_EL1 */
    SYSTEM_REGISTER(3, 0, 13, 0, 4), /* TPIDR_EL1 */
    SYSTEM_REGISTER(3, 0, 14, 1, 0), /* CNTKCTL_EL1 */
    SYSTEM_REGISTER(3, 2, 0, 0, 0),  /* CSSELR_EL1 */
    SYSTEM_REGISTER(3, 3, 13, 0, 2), /* TPIDR_EL0 */
    SYSTEM_REGISTER(3, 3, 13, 0, 3), /* TPIDRRO_EL0 */
    SYSTEM_REGISTER(3, 3, 14, 3, 1), /* CNTV_CTL_EL0 */
    SYSTEM_REGISTER(3, 3, 14, 3, 2), /* CNTV_CVAL_EL0 */
    SYSTEM_REGISTER(3, 4, 4, 1, 0),  /* SP_EL1 */
};

enum { SYSTEM_COUNT = sizeof(system_registers) / sizeof(system_registers[0]), CORE_COUNT = HV_CPSR + 1 };

struct state {
    uint64_t magic;
    uint32_t version, bytes;
    uint64_t core[CORE_COUNT];
    uint64_t system[SYSTEM_COUNT];
    uint64_t present; /* bit mask of system: the others this CPU does not have, such as keys */
    uint64_t mdscr;
    uint64_t vectors[32][2];
    struct arm_debug_pair breaks[MOST_DEBUG_REGISTERS], watches[MOST_DEBUG_REGISTERS]; /* the guest's own */
    uint64_t timer_offset;
    uint32_t has_timer_offset, has_vectors, interrupt, unused;
};

_Static_assert(SYSTEM_COUNT <= 64, "one bit each");

static int save_vectors(const struct rift_hvf_cpu *cpu, struct state *state, struct rift_error *error) {
    const struct rift_hvf_arm_calls *calls = &cpu->framework->arm;
    if (!calls->get_simd_fp_reg || !calls->set_simd_fp_reg)
        return 0;
    state->has_vectors = 1;
    for (uint32_t at = 0; at < 32; ++at) {
        rift_hvf_vector vector;
        int status = calls->get_simd_fp_reg(cpu->id, at, &vector);
        if (status != HV_SUCCESS)
            return rift_hvf_fail(error, status, "hv_vcpu_get_simd_fp_reg");
        memcpy(state->vectors[at], &vector, sizeof(vector));
    }
    return 0;
}

static int restore_vectors(const struct rift_hvf_cpu *cpu, const struct state *state, struct rift_error *error) {
    for (uint32_t at = 0; state->has_vectors && at < 32; ++at) {
        rift_hvf_vector vector;
        memcpy(&vector, state->vectors[at], sizeof(vector));
        int status = cpu->framework->arm.set_simd_fp_reg(cpu->id, at, vector);
        if (status != HV_SUCCESS)
            return rift_hvf_fail(error, status, "hv_vcpu_set_simd_fp_reg");
    }
    return 0;
}

/* The guest's debug registers: those of the CPU, unless the host has taken them over. A framework without them, or
 * without so many, has nothing to save. */
static void save_debug(const struct rift_hvf_cpu *cpu, struct state *state) {
    const struct rift_hvf_arm *arm = arm_of(cpu);
    struct rift_error ignored;
    for (uint32_t at = 0; at < MOST_DEBUG_REGISTERS; ++at) {
        if (arm->debug_on) {
            state->breaks[at] = arm->guest_break[at];
            state->watches[at] = arm->guest_watch[at];
            continue;
        }
        if (rift_hvf_arm_system_get(cpu, SYS_DBGBVR(at), &state->breaks[at].value, &ignored) ||
            rift_hvf_arm_system_get(cpu, SYS_DBGBCR(at), &state->breaks[at].control, &ignored))
            state->breaks[at] = (struct arm_debug_pair){0};
        if (rift_hvf_arm_system_get(cpu, SYS_DBGWVR(at), &state->watches[at].value, &ignored) ||
            rift_hvf_arm_system_get(cpu, SYS_DBGWCR(at), &state->watches[at].control, &ignored))
            state->watches[at] = (struct arm_debug_pair){0};
    }
}

static int restore_pair(const struct rift_hvf_cpu *cpu, const struct arm_debug_pair *pair, uint32_t value,
                        uint32_t control, struct rift_error *error) {
    uint64_t now;
    if (!pair->control && !pair->value) { /* unused: it need not exist */
        struct rift_error ignored;
        if (rift_hvf_arm_system_get(cpu, control, &now, &ignored) || !now)
            return 0;
    }
    return rift_hvf_arm_system_set(cpu, value, pair->value, error) ? -1
                                                                   : rift_hvf_arm_system_set(cpu, control, pair->control,
                                                                                             error);
}

static int restore_debug(struct rift_hvf_cpu *cpu, const struct state *state, struct rift_error *error) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    for (uint32_t at = 0; at < MOST_DEBUG_REGISTERS; ++at) {
        if (arm->debug_on) {
            arm->guest_break[at] = state->breaks[at];
            arm->guest_watch[at] = state->watches[at];
            continue;
        }
        if (restore_pair(cpu, &state->breaks[at], SYS_DBGBVR(at), SYS_DBGBCR(at), error) ||
            restore_pair(cpu, &state->watches[at], SYS_DBGWVR(at), SYS_DBGWCR(at), error))
            return -1;
    }
    return rift_hvf_arm_write_mdscr(cpu, state->mdscr, error);
}

int rift_hvf_arm_save(struct rift_hvf_cpu *cpu, void *buffer, size_t *bytes, struct rift_error *error) {
    const struct rift_hvf_arm_calls *calls = &cpu->framework->arm;
    struct state *state = buffer;
    struct rift_error ignored;
    const size_t room = *bytes;
    *bytes = sizeof(*state);
    if (room < sizeof(*state))
        return rift_hvf_fail(error, ENOSPC, "save");
    memset(state, 0, sizeof(*state));
    state->magic = MAGIC;
    state->version = VERSION;
    state->interrupt = arm_of(cpu)->interrupt;
    state->bytes = sizeof(*state);
    for (uint32_t at = 0; at < CORE_COUNT; ++at)
        if (rift_hvf_arm_get(cpu, at, &state->core[at], error))
            return -1;
    state->core[HV_CPSR] &= arm_of(cpu)->debug_step ? ~(uint64_t)PSTATE_SS : ~UINT64_C(0);
    for (uint32_t at = 0; at < SYSTEM_COUNT; ++at)
        if (!rift_hvf_arm_system_get(cpu, system_registers[at], &state->system[at], &ignored))
            state->present |= UINT64_C(1) << at;
    if (rift_hvf_arm_read_mdscr(cpu, &state->mdscr, error) || save_vectors(cpu, state, error))
        return -1;
    save_debug(cpu, state);
    state->has_timer_offset = calls->get_vtimer_offset && calls->set_vtimer_offset &&
                              calls->get_vtimer_offset(cpu->id, &state->timer_offset) == HV_SUCCESS;
    return 0;
}

int rift_hvf_arm_restore(struct rift_hvf_cpu *cpu, const void *buffer, size_t bytes, struct rift_error *error) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    struct state state;
    if (bytes != sizeof(state))
        return rift_hvf_fail(error, EINVAL, "restore");
    memcpy(&state, buffer, sizeof(state)); /* the buffer need not be aligned */
    if (state.magic != MAGIC || state.version != VERSION || state.bytes != sizeof(state))
        return rift_hvf_fail(error, EINVAL, "restore");
    for (uint32_t at = 0; at < CORE_COUNT; ++at)
        if (rift_hvf_arm_set(cpu, at, state.core[at], error))
            return -1;
    for (uint32_t at = 0; at < SYSTEM_COUNT; ++at)
        if ((state.present >> at & 1) && rift_hvf_arm_system_set(cpu, system_registers[at], state.system[at], error))
            return -1;
    if (restore_vectors(cpu, &state, error) || restore_debug(cpu, &state, error))
        return -1;
    if (state.has_timer_offset && cpu->framework->arm.set_vtimer_offset)
        cpu->framework->arm.set_vtimer_offset(cpu->id, state.timer_offset);
    arm->interrupt = state.interrupt <= 2 ? state.interrupt : 0;
    arm->open = ARM_OPEN_NOTHING;
    cpu->flush = 1;
    cpu->open = 0;
    return 0;
}

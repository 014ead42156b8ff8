/* Debugging a guest from the host: BRK, steps, breakpoints and watchpoints stop here instead of in the guest.
 *
 * While the host uses the debug registers, the guest's own values wait in the binding's state, and its accesses exit.
 * Arm ARM, D2.8 to D2.12. */
#include "hvf_aarch64.h"

#include <errno.h>

/* DBGBCR<n>_EL1 and DBGWCR<n>_EL1: E is bit 0; bits 2:1 are 3 for EL1 and EL0; BAS chooses bytes, from bit 5 on; LSC of
 * a watchpoint, bits 4:3, is 1 for loads, 2 for stores. */
enum { DBGCR_ENABLE = 1, DBGCR_EL1_EL0 = 3 << 1, DBGCR_BAS_SHIFT = 5, DBGBCR_WORD = 0xF << 5, DBGWCR_LSC_SHIFT = 3 };

/* How many there are: ID_AA64DFR0_EL1, BRPs 15:12 and WRPs 23:20, each one less. */
static int learn(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    uint64_t features;
    if (arm->breakpoints)
        return 0;
    if (rift_hvf_arm_system_get(cpu, SYS_ID_AA64DFR0_EL1, &features, error))
        return -1;
    arm->breakpoints = (uint32_t)(features >> 12 & 15) + 1;
    arm->watchpoints = (uint32_t)(features >> 20 & 15) + 1;
    return 0;
}

static int watch(const struct rift_hvf_debug_point *point, struct arm_debug_pair *pair) {
    if (point->size != 1 && point->size != 2 && point->size != 4 && point->size != 8)
        return EINVAL;
    if (point->address % point->size)
        return EINVAL;
    uint64_t loads = point->kind & RIFT_HVF_READ ? 1 : 0, stores = point->kind & RIFT_HVF_WRITE ? 2 : 0;
    uint64_t bytes = ((UINT64_C(1) << point->size) - 1) << point->address % 8;
    pair->value = point->address & ~UINT64_C(7);
    pair->control = DBGCR_ENABLE | DBGCR_EL1_EL0 | (loads | stores) << DBGWCR_LSC_SHIFT | bytes << DBGCR_BAS_SHIFT;
    return 0;
}

/* Reads or writes all pairs of one kind. */
static int transfer(struct rift_hvf_cpu *cpu, struct arm_debug_pair *pairs, uint32_t count, int watchpoints, int write,
                    struct rift_error *error) {
    for (uint32_t at = 0; at < count; ++at) {
        const uint32_t value = watchpoints ? SYS_DBGWVR(at) : SYS_DBGBVR(at);
        const uint32_t control = watchpoints ? SYS_DBGWCR(at) : SYS_DBGBCR(at);
        if (write ? rift_hvf_arm_system_set(cpu, value, pairs[at].value, error) ||
                        rift_hvf_arm_system_set(cpu, control, pairs[at].control, error)
                  : rift_hvf_arm_system_get(cpu, value, &pairs[at].value, error) ||
                        rift_hvf_arm_system_get(cpu, control, &pairs[at].control, error))
            return -1;
    }
    return 0;
}

static int traps(struct rift_hvf_cpu *cpu, bool on, struct rift_error *error) {
    const struct rift_hvf_arm_calls *calls = &cpu->framework->arm;
    if (!calls->set_trap_debug_exceptions || !calls->set_trap_debug_reg_accesses)
        return on ? rift_hvf_fail(error, EOPNOTSUPP, "hv_vcpu_set_trap_debug_exceptions") : 0;
    int status = calls->set_trap_debug_exceptions(cpu->id, on);
    if (status != HV_SUCCESS)
        return rift_hvf_fail(error, status, "hv_vcpu_set_trap_debug_exceptions");
    status = calls->set_trap_debug_reg_accesses(cpu->id, on);
    return status == HV_SUCCESS ? 0 : rift_hvf_fail(error, status, "hv_vcpu_set_trap_debug_reg_accesses");
}

enum { VECTORS = 3, VECTOR_DISTANCE = 0x200 }; /* from EL1 with SP_EL0, from EL1 with SP_EL1, from EL0 */

static struct arm_debug_pair break_at(uint64_t address) {
    return (struct arm_debug_pair){.value = address, .control = DBGCR_ENABLE | DBGCR_EL1_EL0 | DBGBCR_WORD};
}

int rift_hvf_arm_has_room_for_vectors(const struct rift_hvf_cpu *cpu) {
    const struct rift_hvf_arm *arm = arm_of(cpu);
    const struct rift_hvf_arm_calls *calls = &cpu->framework->arm;
    uint32_t used = 0;
    for (uint32_t at = 0; at < MOST_DEBUG_REGISTERS; ++at)
        used += arm->break_points[at].control != 0;
    /* Before the first use nobody has counted the registers: there are at least 6 on every CPU that runs macOS. */
    return calls->set_trap_debug_exceptions && calls->set_trap_debug_reg_accesses &&
           used + VECTORS <= (arm->breakpoints ? arm->breakpoints : VECTORS);
}

/* Breakpoints of the host, which are the first ones, and behind them those of vectors. */
static void merge(const struct rift_hvf_arm *arm, struct arm_debug_pair merged[MOST_DEBUG_REGISTERS]) {
    uint32_t next = 0;
    for (uint32_t at = 0; at < MOST_DEBUG_REGISTERS; ++at) {
        merged[at] = arm->break_points[at];
        if (merged[at].control)
            next = at + 1;
    }
    for (uint32_t at = 0; arm->watches_vectors && at < VECTORS && next + at < arm->breakpoints; ++at)
        merged[next + at] = break_at(arm->vector + VECTOR_DISTANCE * at);
}

/* The host's MDSCR_EL1: breakpoints and watchpoints need MDE, steps SS. */
static uint64_t host_mdscr(const struct rift_hvf_arm *arm) {
    int points = arm->watches_vectors != 0;
    for (uint32_t at = 0; at < MOST_DEBUG_REGISTERS; ++at)
        points |= arm->break_points[at].control || arm->watch_points[at].control;
    return (points ? MDSCR_MDE : 0) | (arm->debug_step ? MDSCR_SS : 0);
}

int rift_hvf_arm_apply_debug(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    struct arm_debug_pair merged[MOST_DEBUG_REGISTERS];
    if (!arm->debug_on)
        return 0;
    merge(arm, merged);
    if (traps(cpu, true, error) || transfer(cpu, merged, arm->breakpoints, 0, 1, error) ||
        transfer(cpu, arm->watch_points, arm->watchpoints, 1, 1, error))
        return -1;
    return rift_hvf_arm_system_set(cpu, SYS_MDSCR_EL1, host_mdscr(arm), error);
}

static int take_over(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    if (transfer(cpu, arm->guest_break, arm->breakpoints, 0, 0, error) ||
        transfer(cpu, arm->guest_watch, arm->watchpoints, 1, 0, error) ||
        rift_hvf_arm_system_get(cpu, SYS_MDSCR_EL1, &arm->guest_mdscr, error))
        return -1;
    arm->debug_on = 1;
    return 0;
}

static int give_back(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    uint64_t pstate;
    arm->debug_on = 0;
    if (transfer(cpu, arm->guest_break, arm->breakpoints, 0, 1, error) ||
        transfer(cpu, arm->guest_watch, arm->watchpoints, 1, 1, error) ||
        rift_hvf_arm_system_set(cpu, SYS_MDSCR_EL1, arm->guest_mdscr, error) ||
        rift_hvf_arm_get(cpu, HV_CPSR, &pstate, error) ||
        rift_hvf_arm_set(cpu, HV_CPSR, pstate & ~(uint64_t)PSTATE_SS, error))
        return -1;
    return traps(cpu, false, error);
}

int rift_hvf_arm_refresh_debug(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    if (!arm->debug_host && !arm->watches_vectors)
        return arm->debug_on ? give_back(cpu, error) : 0;
    if (learn(cpu, error) || (!arm->debug_on && take_over(cpu, error)))
        return -1;
    return rift_hvf_arm_apply_debug(cpu, error);
}

/* Sorts the points into the two kinds of registers. Returns 0 or an errno. */
static int place(const struct rift_hvf_arm *arm, const struct rift_hvf_debug *debug, struct arm_debug_pair *breaks,
                 struct arm_debug_pair *watches) {
    uint32_t breakpoints = 0, watchpoints = 0;
    for (uint32_t at = 0; at < debug->count; ++at) {
        const struct rift_hvf_debug_point *point = &debug->points[at];
        if (point->kind != RIFT_HVF_EXECUTE) {
            int refused = watchpoints == arm->watchpoints ? ENOSPC : watch(point, &watches[watchpoints++]);
            if (refused)
                return refused;
            continue;
        }
        if (breakpoints == arm->breakpoints)
            return ENOSPC;
        if (point->address % 4)
            return EINVAL;
        breaks[breakpoints++] = break_at(point->address);
    }
    return 0;
}

int rift_hvf_arm_set_debug(struct rift_hvf_cpu *cpu, const struct rift_hvf_debug *debug, struct rift_error *error) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    struct arm_debug_pair breaks[MOST_DEBUG_REGISTERS] = {0}, watches[MOST_DEBUG_REGISTERS] = {0};
    if (learn(cpu, error))
        return -1;
    int refused = place(arm, debug, breaks, watches);
    if (refused)
        return rift_hvf_fail(error, refused, "set_debug");
    arm->debug_host = debug->single_step || debug->software || debug->count;
    arm->debug_step = debug->single_step;
    for (uint32_t at = 0; at < MOST_DEBUG_REGISTERS; ++at) {
        arm->break_points[at] = breaks[at];
        arm->watch_points[at] = watches[at];
    }
    return rift_hvf_arm_refresh_debug(cpu, error);
}

int rift_hvf_arm_read_mdscr(const struct rift_hvf_cpu *cpu, uint64_t *value, struct rift_error *error) {
    const struct rift_hvf_arm *arm = arm_of(cpu);
    if (!arm->debug_on)
        return rift_hvf_arm_system_get(cpu, SYS_MDSCR_EL1, value, error);
    *value = arm->guest_mdscr;
    return 0;
}

int rift_hvf_arm_write_mdscr(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_error *error) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    if (!arm->debug_on)
        return rift_hvf_arm_system_set(cpu, SYS_MDSCR_EL1, value, error);
    arm->guest_mdscr = value;
    return 0;
}

/* The watchpoint that an access has met. FAR may lie before it: it is the lowest address of the access, or of the block
 * that a cache instruction works on. So it is the nearest one from there on, else the nearest. */
static uint64_t watched_address(const struct rift_hvf_arm *arm, uint64_t far) {
    uint64_t found = far, best = UINT64_MAX;
    for (uint32_t at = 0; at < arm->watchpoints; ++at) {
        uint64_t control = arm->watch_points[at].control, bytes = control >> DBGCR_BAS_SHIFT & 0xFF;
        if (!(control & DBGCR_ENABLE) || !bytes)
            continue;
        uint64_t first = arm->watch_points[at].value + (uint64_t)__builtin_ctzll(bytes);
        uint64_t size = (uint64_t)__builtin_popcountll(bytes);
        uint64_t distance = far - first < size ? 0 : first > far ? first - far : far - first;
        if (distance < best) {
            best = distance;
            found = first;
        }
    }
    return found;
}

/* Whether the host has a breakpoint there. */
static int is_breakpoint(const struct rift_hvf_arm *arm, uint64_t address) {
    for (uint32_t at = 0; at < MOST_DEBUG_REGISTERS; ++at)
        if (arm->break_points[at].control && arm->break_points[at].value == address)
            return 1;
    return 0;
}

int rift_hvf_arm_exit_debug(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    const struct rift_hvf_arm *arm = arm_of(cpu);
    const struct rift_hvf_arm_exit *info = cpu->exit_info;
    exit->kind = RIFT_EXIT_DEBUG;
    exit->address = arm->pc;
    exit->info[2] = info->syndrome;
    switch (info->syndrome >> 26 & 0x3F) {
    case EC_STEP:
        if (!arm->debug_step)
            return RIFT_HVF_REENTER;
        exit->info[0] = 1;
        return RIFT_HVF_DISPATCH;
    case EC_BRK: /* exits while vectors are watched, though nobody debugs */
        if (!arm->debug_host)
            return rift_hvf_arm_inject(cpu, EC_BRK, 1, (uint32_t)info->syndrome & 0xFFFF, error) ? -1 : RIFT_HVF_REENTER;
        exit->info[0] = 2;
        return RIFT_HVF_DISPATCH;
    case EC_WATCHPOINT:
        exit->info[0] = 4;
        exit->info[1] = watched_address(arm, info->virtual_address);
        return RIFT_HVF_DISPATCH;
    default: /* a breakpoint */
        if (rift_hvf_arm_interrupt_arrived(cpu) && !is_breakpoint(arm, arm->pc))
            return RIFT_HVF_REENTER;
        exit->info[0] = 3;
        return RIFT_HVF_DISPATCH;
    }
}

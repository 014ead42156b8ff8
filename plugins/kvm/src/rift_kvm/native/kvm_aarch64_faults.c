/* Exceptions that the host causes in the guest, and debugging of the guest by the host. */
#include "kvm_aarch64.h"

#include <errno.h>

#define EC_SERROR 0x2Fu
#define ESR_EC_SHIFT 26
#define ESR_IL (UINT64_C(1) << 25) /* the instruction has 32 bits */
#define ESR_ISS 0x1FFFFFFu
#define SCTLR_SPAN (UINT64_C(1) << 23)
#define SCTLR_DSSBS (UINT64_C(1) << 44)

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

/* Index of a register in the table, by its name: for the seldom used ones. */
static uint32_t id_of(const char *name) {
    uint32_t id = 0;
    while (id < ARM_REGISTER_COUNT && __builtin_strcmp(rift_kvm_arm_registers[id].name, name) != 0)
        ++id;
    return id;
}

/* A synchronous exception to EL1, as the CPU takes it. */
static int take_exception(struct rift_kvm_cpu *cpu, uint32_t class, uint32_t syndrome, struct rift_error *error) {
    uint32_t read[] = {ARM_PC, ARM_PSTATE, id_of("vbar_el1"), id_of("sctlr_el1")};
    uint64_t old[4];
    if (rift_kvm_arm_read(cpu, read, 4, old, error))
        return -1;
    uint32_t written[] = {id_of("elr_el1"), id_of("spsr_el1"), id_of("esr_el1"), ARM_PSTATE, ARM_PC};
    uint64_t new[] = {old[0], old[1], (uint64_t)class << ESR_EC_SHIFT | ESR_IL | syndrome,
                      handler_pstate(old[1], old[3]), old[2] + vector_offset(old[1])};
    return rift_kvm_arm_write(cpu, written, 5, new, error);
}

/* An SError interrupt: KVM delivers it when PSTATE.A allows. */
static int raise_serror(struct rift_kvm_cpu *cpu, uint32_t syndrome, struct rift_error *error) {
    const struct rift_kvm_arm_machine *machine = cpu->machine->state;
    struct kvm_vcpu_events events = {.exception = {.serror_pending = 1}};
    if (machine->serror_syndrome) {
        events.exception.serror_has_esr = 1;
        events.exception.serror_esr = syndrome;
    }
    return rift_kvm_arm_call(cpu, KVM_SET_VCPU_EVENTS, &events, "KVM_SET_VCPU_EVENTS", error) < 0 ? -1 : 0;
}

/* With an open access the exception belongs to the instruction that makes it: KVM completes the access first, which
 * moves the program counter and may fill a register, and both are put back. */
static int remember(struct rift_kvm_cpu *cpu, struct rift_error *error) {
    struct rift_kvm_arm *arm = cpu->state;
    for (uint32_t id = ARM_X0; id <= ARM_PC; ++id)
        if (rift_kvm_arm_read(cpu, &id, 1, &arm->before[id], error))
            return -1;
    if (arm->in_call)
        arm->before[ARM_PC] -= 4; /* KVM leaves it behind the call */
    arm->fault_here = 1;
    return RIFT_KVM_COMPLETE_FIRST;
}

static int put_back(struct rift_kvm_cpu *cpu, struct rift_error *error) {
    struct rift_kvm_arm *arm = cpu->state;
    arm->fault_here = 0;
    for (uint32_t id = ARM_X0; id <= ARM_PC; ++id) {
        uint64_t now;
        if (rift_kvm_arm_read(cpu, &id, 1, &now, error))
            return -1;
        if (now != arm->before[id] && rift_kvm_arm_write(cpu, &id, 1, &arm->before[id], error))
            return -1;
    }
    return 0;
}

int rift_kvm_arm_inject(struct rift_kvm_cpu *cpu, uint32_t vector, int has_code, uint32_t code,
                        struct rift_error *error) {
    struct rift_kvm_arm *arm = cpu->state;
    uint32_t syndrome = has_code ? code & ESR_ISS : 0;
    if (vector > 0x3F)
        return rift_kvm_arm_fail(error, EINVAL, "inject_exception");
    if (cpu->open)
        return remember(cpu, error);
    if (arm->fault_here && put_back(cpu, error))
        return -1;
    return vector == EC_SERROR ? raise_serror(cpu, syndrome, error) : take_exception(cpu, vector, syndrome, error);
}

/* Only an SError interrupt waits; all others have changed the registers when KVM_RUN returns (__kvm_adjust_pc). */
int rift_kvm_arm_drop_events(struct rift_kvm_cpu *cpu, struct rift_error *error) {
    struct rift_kvm_arm *arm = cpu->state;
    struct kvm_vcpu_events events = {.exception = {.serror_pending = 0}};
    arm->fault_here = 0;
    return rift_kvm_arm_call(cpu, KVM_SET_VCPU_EVENTS, &events, "KVM_SET_VCPU_EVENTS", error) < 0 ? -1 : 0;
}

/* -- debugging -------------------------------------------------------------------------------------- */

/* DBGBCR<n>_EL1 and DBGWCR<n>_EL1 (Arm ARM, D19.3): E is bit 0; bits 2:1 are 3 for EL1 and EL0; BAS chooses bytes, from bit 5 on;
 * LSC of a watchpoint, bits 4:3, is 1 for loads, 2 for stores. */
enum { DBGCR_ENABLE = 1, DBGCR_EL1_EL0 = 3 << 1, DBGCR_BAS_SHIFT = 5, DBGBCR_WORD = 0xF << 5, DBGWCR_LSC_SHIFT = 3 };

static int watch(const struct rift_kvm_debug_point *point, uint32_t at, struct kvm_guest_debug *debug) {
    if (point->size != 1 && point->size != 2 && point->size != 4 && point->size != 8)
        return EINVAL;
    if (point->address % point->size)
        return EINVAL;
    uint64_t loads = point->kind & RIFT_KVM_READ ? 1 : 0, stores = point->kind & RIFT_KVM_WRITE ? 2 : 0;
    uint64_t bytes = ((UINT64_C(1) << point->size) - 1) << point->address % 8;
    debug->arch.dbg_wvr[at] = point->address & ~UINT64_C(7);
    debug->arch.dbg_wcr[at] =
        DBGCR_ENABLE | DBGCR_EL1_EL0 | (loads | stores) << DBGWCR_LSC_SHIFT | bytes << DBGCR_BAS_SHIFT;
    return 0;
}

int rift_kvm_arm_set_debug(struct rift_kvm_cpu *cpu, const struct rift_kvm_debug *wanted, struct rift_error *error) {
    struct rift_kvm_arm *arm = cpu->state;
    const struct rift_kvm_arm_machine *machine = cpu->machine->state;
    struct kvm_guest_debug debug = {0};
    uint32_t breakpoints = 0, watchpoints = 0;
    if (wanted->single_step || wanted->software || wanted->count)
        debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
    if (wanted->single_step)
        debug.control |= KVM_GUESTDBG_SINGLESTEP;
    if (wanted->count)
        debug.control |= KVM_GUESTDBG_USE_HW;
    for (uint32_t at = 0; at < wanted->count; ++at) {
        const struct rift_kvm_debug_point *point = &wanted->points[at];
        int execute = point->kind == RIFT_KVM_EXECUTE;
        if (execute ? breakpoints == machine->breakpoints : watchpoints == machine->watchpoints)
            return rift_kvm_arm_fail(error, ENOSPC, "KVM_SET_GUEST_DEBUG");
        if (execute) {
            if (point->address % 4)
                return rift_kvm_arm_fail(error, EINVAL, "KVM_SET_GUEST_DEBUG");
            debug.arch.dbg_bvr[breakpoints] = point->address;
            debug.arch.dbg_bcr[breakpoints++] = DBGCR_ENABLE | DBGCR_EL1_EL0 | DBGBCR_WORD;
            continue;
        }
        int refused = watch(point, watchpoints++, &debug);
        if (refused)
            return rift_kvm_arm_fail(error, refused, "KVM_SET_GUEST_DEBUG");
    }
    if (rift_kvm_arm_call(cpu, KVM_SET_GUEST_DEBUG, &debug, "KVM_SET_GUEST_DEBUG", error) < 0)
        return -1;
    arm->debug = debug;
    return 0;
}

/* The watchpoint that an access has met. FAR may lie before it: it is the lowest address of the access, or of the block
 * that a cache instruction works on. So it is the nearest one from there on, else the nearest. */
static uint64_t watched_address(const struct rift_kvm_arm *arm, uint64_t far) {
    uint64_t found = far, best = UINT64_MAX;
    for (uint32_t at = 0; at < KVM_ARM_MAX_DBG_REGS; ++at) {
        uint64_t control = arm->debug.arch.dbg_wcr[at], bytes = control >> DBGCR_BAS_SHIFT & 0xFF;
        if (!(control & DBGCR_ENABLE) || !bytes)
            continue;
        uint64_t first = arm->debug.arch.dbg_wvr[at] + (uint64_t)__builtin_ctzll(bytes);
        uint64_t size = (uint64_t)__builtin_popcountll(bytes);
        uint64_t distance = far - first < size ? 0 : first > far ? first - far : far - first;
        if (distance < best) {
            best = distance;
            found = first;
        }
    }
    return found;
}

/* Exception classes of debug exceptions that come from a lower exception level than KVM's: Arm ARM, ESR_EL2.EC. */
int rift_kvm_arm_decode_debug(struct rift_kvm_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    const struct kvm_debug_exit_arch *debug = &cpu->run->debug.arch;
    const struct rift_kvm_arm *arm = cpu->state;
    exit->kind = RIFT_EXIT_DEBUG;
    exit->info[2] = debug->hsr;
    switch (debug->hsr >> ESR_EC_SHIFT) {
    case 0x32: /* software step */
        exit->info[0] = 1;
        break;
    case 0x3C: /* BRK */
        exit->info[0] = 2;
        break;
    case 0x34: /* watchpoint */
        exit->info[0] = 4;
        exit->info[1] = watched_address(arm, debug->far);
        break;
    default: /* 0x30: breakpoint */
        exit->info[0] = 3;
        break;
    }
    return rift_kvm_arm_read(cpu, &(uint32_t){ARM_PC}, 1, &exit->address, error) ? -1 : RIFT_KVM_DISPATCH;
}

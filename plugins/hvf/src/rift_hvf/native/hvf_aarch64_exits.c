/* What an exit means, and how its instruction is finished.
 *
 * PC at the exit: behind an HVC; at the instruction for everything else, which is left there until it is finished, so
 * that an exception can still be raised there. Syndromes: Arm ARM, ESR_EL2. */
#include "hvf_aarch64.h"

#include <errno.h>

/* ISS of a data abort. */
#define ABORT_WRITE (1u << 6)
#define ABORT_TABLE_WALK (1u << 7)
#define ABORT_CACHE_MAINTENANCE (1u << 8)
#define ABORT_SIXTY_FOUR (1u << 15)
#define ABORT_SIGN_EXTEND (1u << 21)
#define ABORT_DESCRIBED (1u << 24)

#define NO_REGISTER 31

static const struct rift_hvf_arm_exit *info_of(const struct rift_hvf_cpu *cpu) {
    return cpu->exit_info;
}

int rift_hvf_arm_advance(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    const struct rift_hvf_arm *arm = arm_of(cpu);
    cpu->stepped = arm->debug_step;
    cpu->step_address = arm->pc + 4;
    return rift_hvf_arm_set(cpu, HV_PC, arm->pc + 4, error);
}

/* A general register, of which number 31 reads as 0. */
static int read_general(const struct rift_hvf_cpu *cpu, uint32_t number, uint64_t *value, struct rift_error *error) {
    *value = 0;
    return number == NO_REGISTER ? 0 : rift_hvf_arm_get(cpu, HV_X0 + number, value, error);
}

static int write_general(const struct rift_hvf_cpu *cpu, uint32_t number, uint64_t value, struct rift_error *error) {
    return number == NO_REGISTER ? 0 : rift_hvf_arm_set(cpu, HV_X0 + number, value, error);
}

static int memory_fault(struct rift_hvf_cpu *cpu, struct rift_exit *exit, uint64_t ipa) {
    exit->kind = RIFT_EXIT_MEMORY_FAULT;
    exit->address = ipa;
    exit->info[0] = arm_of(cpu)->syndrome;
    return RIFT_HVF_DISPATCH;
}

/* Nothing to see: memory that the hypervisor had yet to give. */
static int enter_again(struct rift_hvf_cpu *cpu, uint64_t ipa, struct rift_exit *exit) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    return rift_hvf_memory_repeats(&arm->repeats, ipa, arm->pc) ? memory_fault(cpu, exit, ipa) : RIFT_HVF_REENTER;
}

/* -- accesses without memory --------------------------------------------------------------------------------- */

static int decode_device(struct rift_hvf_cpu *cpu, uint64_t ipa, struct rift_exit *exit, struct rift_error *error) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    const uint64_t syndrome = arm->syndrome;
    const int write = (syndrome & ABORT_WRITE) != 0;
    arm->size = 1u << (syndrome >> 22 & 3);
    arm->target = syndrome >> 16 & 31;
    arm->extend = syndrome & ABORT_SIGN_EXTEND ? (syndrome & ABORT_SIXTY_FOUR ? 8 : 4) : 0;
    exit->kind = RIFT_EXIT_MMIO;
    exit->address = ipa;
    exit->size = arm->size;
    exit->is_write = (uint32_t)write;
    if (write) {
        if (read_general(cpu, arm->target, &exit->value, error))
            return -1;
        exit->value &= rift_hvf_mask(arm->size);
    }
    arm->open = write ? ARM_OPEN_STORE : ARM_OPEN_LOAD;
    cpu->open = 1;
    return RIFT_HVF_DISPATCH;
}

static int decode_data_abort(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    const uint64_t syndrome = arm_of(cpu)->syndrome, ipa = info_of(cpu)->physical_address;
    const uint32_t permissions = rift_hvf_memory_permissions(cpu->vm, ipa);
    const uint32_t wanted = syndrome & ABORT_WRITE ? HV_MEMORY_WRITE : HV_MEMORY_READ;
    if (syndrome & ABORT_CACHE_MAINTENANCE) /* caches are coherent, and a device has none */
        return rift_hvf_arm_advance(cpu, error) ? -1 : RIFT_HVF_REENTER;
    if (permissions & wanted)
        return enter_again(cpu, ipa, exit);
    /* Page tables cannot be on a device; and an access of two registers, a vector or an atomic is described by nobody. */
    if ((syndrome & ABORT_TABLE_WALK) || !(syndrome & ABORT_DESCRIBED))
        return memory_fault(cpu, exit, ipa);
    return decode_device(cpu, ipa, exit, error);
}

static int decode_instruction_abort(struct rift_hvf_cpu *cpu, struct rift_exit *exit) {
    const uint64_t ipa = info_of(cpu)->physical_address;
    if (rift_hvf_memory_permissions(cpu->vm, ipa) & HV_MEMORY_EXEC)
        return enter_again(cpu, ipa, exit);
    return memory_fault(cpu, exit, ipa);
}

/* -- system registers ----------------------------------------------------------------------------------------- */

/* What a CPU without debugger and performance counters answers. Returns 1 if nobody knows the register. */
static int known_register(struct rift_hvf_cpu *cpu, uint32_t number, int read, uint64_t *value) {
    switch (number) {
    case SYS_OSLAR_EL1: /* the lock that keeps a debugger away while the CPU sleeps */
    case SYS_OSDLR_EL1:
        *value = 0;
        return 0;
    case SYS_OSLSR_EL1: /* there is a lock, and it is open */
        *value = 8;
        return !read;
    case SYS_CNTPCT_EL0:
        return !read || rift_hvf_arm_counter(cpu, value);
    case SYS_CNTVCT_EL0:
        return !read || rift_hvf_arm_virtual_counter(cpu, value);
    default:
        return 1;
    }
}

/* ISS: op0 21:20, op2 19:17, op1 16:14, CRn 13:10, Rt 9:5, CRm 4:1, bit 0 is 1 for a read. */
static int decode_system_register(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    const uint32_t iss = (uint32_t)arm->syndrome;
    const uint32_t number = SYSTEM_REGISTER(iss >> 20 & 3, iss >> 14 & 7, iss >> 10 & 15, iss >> 1 & 15, iss >> 17 & 7);
    const int read = iss & 1;
    uint64_t value = 0;
    arm->target = iss >> 5 & 31;
    if (!read && read_general(cpu, arm->target, &value, error))
        return -1;
    if (!known_register(cpu, number, read, &value)) {
        if (read && write_general(cpu, arm->target, value, error))
            return -1;
        return rift_hvf_arm_advance(cpu, error) ? -1 : RIFT_HVF_REENTER;
    }
    if (!(cpu->flags & RIFT_HVF_SYSTEM_REGISTER_EXITS)) /* an undefined instruction: class 0 */
        return rift_hvf_arm_inject(cpu, 0, 0, 0, error) ? -1 : RIFT_HVF_REENTER;
    exit->kind = RIFT_EXIT_SYSTEM_REGISTER;
    exit->address = number;
    exit->size = 8;
    exit->is_write = !read;
    exit->value = value;
    arm->open = read ? ARM_OPEN_MRS : ARM_OPEN_MSR;
    cpu->open = 1;
    return RIFT_HVF_DISPATCH;
}

/* -- all exits ------------------------------------------------------------------------------------------------- */

static int decode_exception(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    const uint64_t syndrome = arm_of(cpu)->syndrome;
    switch (syndrome >> 26 & 0x3F) {
    case EC_WFX: /* 0 WFI, 1 WFE, 2 WFIT, 3 WFET: only the first waits for more than a moment */
        if (syndrome & 3)
            return rift_hvf_arm_advance(cpu, error) ? -1 : RIFT_HVF_REENTER;
        return rift_hvf_arm_wait(cpu, exit, error);
    case EC_HVC:
    case EC_SMC:
        return rift_hvf_arm_call(cpu, (syndrome >> 26 & 0x3F) == EC_SMC, exit, error);
    case EC_SYSTEM_REGISTER:
        return decode_system_register(cpu, exit, error);
    case EC_INSTRUCTION_ABORT:
        return decode_instruction_abort(cpu, exit);
    case EC_DATA_ABORT:
        return decode_data_abort(cpu, exit, error);
    case EC_BREAKPOINT:
    case EC_STEP:
    case EC_WATCHPOINT:
    case EC_BRK:
        return rift_hvf_arm_exit_debug(cpu, exit, error);
    default:
        exit->kind = RIFT_EXIT_UNKNOWN;
        exit->info[0] = syndrome;
        return RIFT_HVF_DISPATCH;
    }
}

int rift_hvf_arm_decode(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    const struct rift_hvf_arm_exit *info = info_of(cpu);
    *exit = (struct rift_exit){.raw_reason = info->reason};
    cpu->open = 0;
    arm->open = ARM_OPEN_NOTHING;
    switch (info->reason) {
    case HV_EXIT_CANCELED:
        return RIFT_HVF_REENTER;
    case HV_EXIT_VTIMER:
        arm->timer_masked = 1;
        return RIFT_HVF_REENTER;
    case HV_EXIT_EXCEPTION:
        arm->syndrome = info->syndrome;
        exit->raw_reason = (uint32_t)(info->syndrome >> 26 & 0x3F);
        if (rift_hvf_arm_get(cpu, HV_PC, &arm->pc, error))
            return -1;
        return decode_exception(cpu, exit, error);
    default:
        exit->kind = RIFT_EXIT_UNKNOWN;
        return RIFT_HVF_DISPATCH;
    }
}

static uint64_t extended(const struct rift_hvf_arm *arm, uint64_t value) {
    value &= rift_hvf_mask(arm->size);
    if (!arm->extend || !(value >> (8 * arm->size - 1)))
        return value;
    return (value | ~rift_hvf_mask(arm->size)) & rift_hvf_mask(arm->extend);
}

int rift_hvf_arm_complete(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_exit *exit, struct rift_error *error) {
    struct rift_hvf_arm *arm = arm_of(cpu);
    const uint32_t open = arm->open;
    (void)exit;
    arm->open = ARM_OPEN_NOTHING;
    cpu->open = 0;
    switch (open) {
    case ARM_OPEN_LOAD:
        return write_general(cpu, arm->target, extended(arm, value), error) ? -1 : rift_hvf_arm_advance(cpu, error);
    case ARM_OPEN_MRS:
        return write_general(cpu, arm->target, value, error) ? -1 : rift_hvf_arm_advance(cpu, error);
    case ARM_OPEN_HYPERCALL: /* PC is behind it already */
        return rift_hvf_arm_set(cpu, HV_X0, value, error);
    case ARM_OPEN_SECURE_CALL:
        return rift_hvf_arm_set(cpu, HV_X0, value, error) ? -1 : rift_hvf_arm_advance(cpu, error);
    default: /* a store, MSR */
        return rift_hvf_arm_advance(cpu, error);
    }
}

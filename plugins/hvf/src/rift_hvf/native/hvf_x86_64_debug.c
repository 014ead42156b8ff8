/* Debugging a guest from the host: the monitor trap flag for steps, #BP, and the debug registers.
 *
 * While the host uses DR0 to DR3 and DR7, the guest's own values wait in guest_debug, its accesses exit, and its own
 * breakpoints do not fire. Intel SDM volume 3, 17.2 (debug registers), 25.5.2 (monitor trap flag). */
#include "hvf_x86_64.h"

#include <errno.h>

enum { DR7_INDEX = 4, DR7_RESERVED = 0x400 };
#define PENDING_ENABLED (UINT64_C(1) << 12)
#define DR6_RESERVED UINT64_C(0xFFFF0FF0)

static int read_real(const struct rift_hvf_cpu *cpu, uint32_t which, uint64_t *value, struct rift_error *error) {
    return which == DR7_INDEX ? rift_hvf_x86_vmread(cpu, VMCS_GUEST_DR7, value, error)
                              : rift_hvf_x86_get(cpu, HV_DR0 + which, value, error);
}

static int write_real(struct rift_hvf_cpu *cpu, uint32_t which, uint64_t value, struct rift_error *error) {
    return which == DR7_INDEX ? rift_hvf_x86_vmwrite(cpu, VMCS_GUEST_DR7, value, error)
                              : rift_hvf_x86_set(cpu, HV_DR0 + which, value, error);
}

int rift_hvf_x86_read_debug(const struct rift_hvf_cpu *cpu, uint32_t which, uint64_t *value, struct rift_error *error) {
    const struct rift_hvf_x86 *x86 = x86_of(cpu);
    if (!x86->debug_active)
        return read_real(cpu, which, value, error);
    *value = x86->guest_debug[which];
    return 0;
}

int rift_hvf_x86_write_debug(struct rift_hvf_cpu *cpu, uint32_t which, uint64_t value, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    if (!x86->debug_active)
        return write_real(cpu, which, value, error);
    x86->guest_debug[which] = value;
    return 0;
}

int rift_hvf_x86_apply_debug(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    if (x86->debug_count && !x86->debug_active) {
        for (uint32_t which = 0; which <= DR7_INDEX; ++which)
            if (read_real(cpu, which, &x86->guest_debug[which], error))
                return -1;
        x86->debug_active = 1;
    }
    if (!x86->debug_active)
        return 0;
    for (uint32_t which = 0; which < DR7_INDEX; ++which)
        if (write_real(cpu, which, x86->debug_count ? x86->debug_address[which] : x86->guest_debug[which], error))
            return -1;
    if (write_real(cpu, DR7_INDEX, x86->debug_count ? x86->debug_control : x86->guest_debug[DR7_INDEX], error))
        return -1;
    x86->debug_active = x86->debug_count != 0;
    return 0;
}

/* DR7: G0 to G3 are bits 1, 3, 5, 7; from bit 16 on four bits a register: R/W (0 execution, 1 write, 3 read or write)
 * and LEN (0: 1 byte, 1: 2, 3: 4, 2: 8). Returns 0 or an errno. */
static int add_point(const struct rift_hvf_debug_point *point, uint32_t at, uint64_t addresses[4], uint64_t *control) {
    uint64_t length = 0;
    if (point->kind == RIFT_HVF_READ)
        return EOPNOTSUPP;
    if (point->kind != RIFT_HVF_EXECUTE) {
        if (point->size != 1 && point->size != 2 && point->size != 4 && point->size != 8)
            return EINVAL;
        if (point->address % point->size)
            return EINVAL;
        length = point->size == 8 ? 2 : point->size - 1;
    }
    addresses[at] = point->address;
    *control |= UINT64_C(2) << 2 * at | (point->kind | length << 2) << (16 + 4 * at);
    return 0;
}

/* A point that the guest has just come to, with a step or another exit in between, waits as a pending exception; of one
 * that is there no more the guest would get it. Pending: B0 to B3, and bit 12 (enabled); SDM volume 3, table 25-4. */
static int forget_hits(struct rift_hvf_cpu *cpu, const uint64_t addresses[4], uint64_t control, struct rift_error *error) {
    const struct rift_hvf_x86 *x86 = x86_of(cpu);
    uint64_t pending, kept;
    if (!x86->debug_active)
        return 0;
    if (rift_hvf_x86_vmread(cpu, VMCS_GUEST_DEBUG_EXC, &pending, error))
        return -1;
    kept = pending;
    for (uint32_t at = 0; at < 4; ++at) {
        const uint64_t bits = UINT64_C(3) << 2 * at | UINT64_C(15) << (16 + 4 * at);
        if (((x86->debug_control ^ control) & bits) || x86->debug_address[at] != addresses[at])
            kept &= ~(UINT64_C(1) << at);
    }
    if (!(kept & 15))
        kept &= ~PENDING_ENABLED;
    return kept == pending ? 0 : rift_hvf_x86_vmwrite(cpu, VMCS_GUEST_DEBUG_EXC, kept, error);
}

int rift_hvf_x86_set_debug(struct rift_hvf_cpu *cpu, const struct rift_hvf_debug *debug, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    uint64_t addresses[4] = {0}, control = DR7_RESERVED;
    if (debug->count > 4)
        return rift_hvf_fail(error, ENOSPC, "set_debug");
    if (debug->single_step && !(x86->cpu_may & CPU_MONITOR_TRAP))
        return rift_hvf_fail(error, EOPNOTSUPP, "set_debug");
    for (uint32_t at = 0; at < debug->count; ++at) {
        int refused = add_point(&debug->points[at], at, addresses, &control);
        if (refused)
            return rift_hvf_fail(error, refused, "set_debug");
    }
    if (forget_hits(cpu, addresses, control, error))
        return -1;
    x86->debug_step = debug->single_step;
    x86->debug_software = debug->software || debug->single_step || debug->count;
    x86->debug_count = debug->count;
    x86->debug_control = control;
    for (uint32_t at = 0; at < 4; ++at)
        x86->debug_address[at] = addresses[at];
    return rift_hvf_x86_apply_debug(cpu, error) ? -1 : rift_hvf_x86_apply_controls(cpu, error);
}

/* The guest's own exception, delivered as if it had not been intercepted. */
static int reflect(struct rift_hvf_cpu *cpu, uint32_t info, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    uint64_t value;
    x86->event = info & (EVENT_VALID | EVENT_TYPE | 0xFF);
    if (info & EVENT_HAS_CODE) {
        if (rift_hvf_x86_vmread(cpu, VMCS_RO_VMEXIT_IRQ_ERROR, &value, error))
            return -1;
        x86->event |= EVENT_HAS_CODE;
        x86->event_code = (uint32_t)value;
    }
    if (rift_hvf_x86_vmread(cpu, VMCS_RO_VMEXIT_INSTR_LEN, &value, error))
        return -1;
    x86->event_length = (uint32_t)value & 15;
    if ((info & 0xFF) == VECTOR_DB &&
        rift_hvf_x86_set(cpu, HV_DR6, DR6_RESERVED | (x86->qualification & (DR6_STEP | 0x200F)), error))
        return -1;
    return RIFT_HVF_REENTER;
}

/* Which of the host's points the guest has come to; -1: none. The CPU may report a match whose register is not
 * enabled: SDM volume 3, 17.2.3. */
static int hit(const struct rift_hvf_x86 *x86) {
    for (uint32_t at = 0; at < x86->debug_count; ++at)
        if (x86->qualification >> at & 1)
            return (int)at;
    return -1;
}

int rift_hvf_x86_exit_exception(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    uint64_t info;
    if (rift_hvf_x86_vmread(cpu, VMCS_RO_VMEXIT_IRQ_INFO, &info, error))
        return -1;
    const uint32_t vector = info & 0xFF;
    if (!(info & EVENT_VALID) || vector == 2) /* an NMI of the host */
        return RIFT_HVF_REENTER;
    exit->kind = RIFT_EXIT_DEBUG;
    exit->address = x86->rip;
    if (vector == VECTOR_BP && x86->debug_software) {
        exit->info[0] = 2;
        return RIFT_HVF_DISPATCH;
    }
    const int point = vector == VECTOR_DB && x86->debug_active ? hit(x86) : -1;
    if (point < 0)
        return reflect(cpu, (uint32_t)info, error);
    const int data = (x86->debug_control >> (16 + 4 * point) & 3) != 0;
    exit->info[0] = data ? 4 : 3;
    exit->info[1] = data ? x86->debug_address[point] : 0;
    exit->info[2] = x86->qualification;
    return RIFT_HVF_DISPATCH;
}

/* Qualification: SDM volume 3, table 28-4. Debug register 2:0, direction 4 (1 from it), general register 11:8. */
int rift_hvf_x86_exit_mov_dr(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    uint32_t number = x86->qualification & 7;
    const uint32_t general = rift_hvf_x86_general(x86->qualification >> 8 & 15);
    const int reads = (x86->qualification & 1 << 4) != 0;
    uint64_t value;
    if (number == 4 || number == 5)
        number += 2; /* the older names of DR6 and DR7 */
    const uint32_t which = number == 7 ? DR7_INDEX : number;
    if (reads) {
        if ((number == 6 ? rift_hvf_x86_get(cpu, HV_DR6, &value, error) : rift_hvf_x86_read_debug(cpu, which, &value, error)) ||
            rift_hvf_x86_set(cpu, general, value, error))
            return -1;
    } else {
        if (rift_hvf_x86_get(cpu, general, &value, error))
            return -1;
        if (number >= 6 && value >> 32)
            return rift_hvf_x86_raise(cpu, VECTOR_GP, 1, 0);
        if (number == 6 ? rift_hvf_x86_set(cpu, HV_DR6, value | DR6_RESERVED, error)
                        : rift_hvf_x86_write_debug(cpu, which, number == 7 ? value | DR7_RESERVED : value, error))
            return -1;
    }
    return rift_hvf_x86_advance(cpu, x86->length, error) ? -1 : RIFT_HVF_REENTER;
}

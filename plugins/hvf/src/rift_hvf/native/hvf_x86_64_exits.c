/* What an exit means, and how its instruction is finished.
 *
 * RIP stays at the instruction until it is finished, so that an exception can still be raised there. Which exits
 * tell the instruction's length, and which belong to no instruction: Intel SDM volume 3, 28.2.5. */
#include "hvf_x86_64.h"

#include <errno.h>

enum { FIRST_INTERRUPT = 32 }; /* the vectors below are the CPU's own exceptions */

int rift_hvf_x86_privilege(const struct rift_hvf_cpu *cpu, uint32_t *level, struct rift_error *error) {
    uint64_t attributes;
    if (rift_hvf_x86_vmread(cpu, VMCS_GUEST_SS_AR, &attributes, error))
        return -1;
    *level = attributes >> 5 & 3; /* SS.DPL: SDM volume 3, 25.4.1 */
    return 0;
}

/* Whether the exception pushes an error code: SDM volume 3, table 6-1. */
static int pushes_code(uint32_t vector) {
    return (1u << vector & (1u << 8 | 0x1Fu << 10 | 1u << 17)) != 0;
}

/* As a hardware exception, #BP and #OF included: RIP is pushed as it is. */
static void queue_exception(struct rift_hvf_x86 *x86, uint32_t vector, int has_code, uint32_t code) {
    x86->event = EVENT_VALID | EVENT_EXCEPTION | vector;
    x86->event_code = 0;
    if (pushes_code(vector)) {
        x86->event |= EVENT_HAS_CODE;
        x86->event_code = has_code ? code : 0;
    }
}

int rift_hvf_x86_instruction_over(struct rift_hvf_cpu *cpu, int whole, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    uint64_t rflags, interruptibility, dr6;
    if (rift_hvf_x86_get(cpu, HV_RFLAGS, &rflags, error) ||
        rift_hvf_x86_vmread(cpu, VMCS_GUEST_INTERRUPTIBILITY, &interruptibility, error))
        return -1;
    if ((interruptibility & BLOCKED_BY_STI_OR_MOV_SS) &&
        rift_hvf_x86_vmwrite(cpu, VMCS_GUEST_INTERRUPTIBILITY,
                             interruptibility & ~BLOCKED_BY_STI_OR_MOV_SS, error))
        return -1;
    if (whole && (rflags & RFLAGS_RF) && rift_hvf_x86_set(cpu, HV_RFLAGS, rflags & ~RFLAGS_RF, error))
        return -1;
    if (!(rflags & RFLAGS_TF))
        return 0;
    queue_exception(x86, VECTOR_DB, 0, 0);
    return rift_hvf_x86_get(cpu, HV_DR6, &dr6, error) || rift_hvf_x86_set(cpu, HV_DR6, dr6 | DR6_STEP, error) ? -1 : 0;
}

int rift_hvf_x86_advance(struct rift_hvf_cpu *cpu, uint32_t length, struct rift_error *error) {
    const struct rift_hvf_x86 *x86 = x86_of(cpu);
    cpu->stepped = x86->debug_step;
    cpu->step_address = x86->rip + length;
    if (rift_hvf_x86_instruction_over(cpu, 1, error))
        return -1;
    return rift_hvf_x86_set(cpu, HV_RIP, x86->rip + length, error);
}

int rift_hvf_x86_raise(struct rift_hvf_cpu *cpu, uint32_t vector, int has_code, uint32_t code) {
    queue_exception(x86_of(cpu), vector, has_code, code);
    return RIFT_HVF_REENTER;
}

/* As the answer to an open access the exception belongs to its instruction, which has changed nothing yet. No CPU of a
 * Mac has #CP: it would refuse the error code, and with it the entry. SDM volume 3, 27.2.1.3. */
int rift_hvf_x86_inject(struct rift_hvf_cpu *cpu, uint32_t vector, int has_code, uint32_t code,
                        struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    if (vector >= 32 || vector == VECTOR_CP)
        return rift_hvf_fail(error, EINVAL, "VMCS_CTRL_VMENTRY_IRQ_INFO");
    queue_exception(x86, vector, has_code, code);
    x86->open = OPEN_NOTHING;
    cpu->open = 0;
    return 0;
}

int rift_hvf_x86_interrupt(struct rift_hvf_cpu *cpu, uint32_t vector, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    if (vector < FIRST_INTERRUPT || vector > 255)
        return rift_hvf_fail(error, EINVAL, "inject_interrupt");
    if (x86->interrupt)
        return rift_hvf_fail(error, EBUSY, "inject_interrupt");
    x86->interrupt = vector;
    return 0;
}

void rift_hvf_x86_drop_events(struct rift_hvf_cpu *cpu) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    struct rift_error ignored;
    x86->event = 0;
    rift_hvf_x86_vmwrite(cpu, VMCS_CTRL_VMENTRY_IRQ_INFO, 0, &ignored); /* given, and the entry did not come about */
    x86->interrupt = 0; /* the interrupt window closes at the next entry */
}

/* An event that is to be delivered comes first; one at a time. */
int rift_hvf_x86_offer_interrupt(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    uint64_t rflags, interruptibility;
    if (rift_hvf_x86_get(cpu, HV_RFLAGS, &rflags, error) ||
        rift_hvf_x86_vmread(cpu, VMCS_GUEST_INTERRUPTIBILITY, &interruptibility, error))
        return -1;
    if (x86->interrupt && !x86->event && (rflags & RFLAGS_IF) && !(interruptibility & BLOCKED_BY_STI_OR_MOV_SS)) {
        x86->event = EVENT_VALID | EVENT_EXTERNAL | x86->interrupt;
        x86->interrupt = 0;
    }
    const uint32_t wanted = x86->interrupt != 0;
    if (wanted == x86->window)
        return 0;
    x86->window = wanted;
    return rift_hvf_x86_apply_controls(cpu, error);
}

/* An exit in the middle of the delivery of an event: it has to be delivered again. SDM volume 3, 25.9.3. */
int rift_hvf_x86_requeue(struct rift_hvf_cpu *cpu, int *delivering, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    uint64_t info, value;
    *delivering = 0;
    if (rift_hvf_x86_vmread(cpu, VMCS_RO_IDT_VECTOR_INFO, &info, error))
        return -1;
    if (!(info & EVENT_VALID))
        return 0;
    *delivering = 1;
    x86->event = (uint32_t)info & ~(1u << 12); /* NMI unblocking, which is not for entries */
    if (info & EVENT_HAS_CODE) {
        if (rift_hvf_x86_vmread(cpu, VMCS_RO_IDT_VECTOR_ERROR, &value, error))
            return -1;
        x86->event_code = (uint32_t)value;
    }
    if (rift_hvf_x86_vmread(cpu, VMCS_RO_VMEXIT_INSTR_LEN, &value, error))
        return -1;
    x86->event_length = (uint32_t)value;
    return 0;
}

static int decode_halt(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    exit->kind = RIFT_EXIT_HALT;
    exit->address = x86_of(cpu)->rip;
    return rift_hvf_x86_advance(cpu, x86_of(cpu)->length, error) ? -1 : RIFT_HVF_DISPATCH;
}

/* Number in RAX, arguments in RDI, RSI, RDX, R10, R8, R9, the result in RAX, as in user calls. User mode has no
 * access to the host: for it there is no such instruction. */
static int decode_hypercall(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    static const uint8_t arguments[6] = {HV_RDI, HV_RSI, HV_RDX, HV_R8 + 2, HV_R8, HV_R8 + 1};
    uint32_t privilege;
    if (rift_hvf_x86_privilege(cpu, &privilege, error))
        return -1;
    if (privilege != 0)
        return rift_hvf_x86_raise(cpu, VECTOR_UD, 0, 0);
    exit->kind = RIFT_EXIT_HYPERCALL;
    if (rift_hvf_x86_get(cpu, HV_RAX, &exit->address, error))
        return -1;
    for (uint32_t at = 0; at < 6; ++at)
        if (rift_hvf_x86_get(cpu, arguments[at], &exit->info[at], error))
            return -1;
    x86_of(cpu)->open = OPEN_HYPERCALL;
    cpu->open = 1;
    return RIFT_HVF_DISPATCH;
}

/* The guest could not be entered: its state is one that no CPU can be in. */
static int decode_refused(struct rift_hvf_cpu *cpu, struct rift_exit *exit) {
    exit->kind = RIFT_EXIT_FAIL_ENTRY;
    exit->address = x86_of(cpu)->rip;
    exit->value = x86_of(cpu)->reason & 0xFFFF;
    return RIFT_HVF_DISPATCH;
}

static int skip(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    return rift_hvf_x86_advance(cpu, x86_of(cpu)->length, error) ? -1 : RIFT_HVF_REENTER;
}

/* Exits that say how long their instruction is, and the others. */
static int decode_instruction(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    uint64_t length;
    if (rift_hvf_x86_vmread(cpu, VMCS_RO_VMEXIT_INSTR_LEN, &length, error))
        return -1;
    x86->length = (uint32_t)length & 15;
    switch (x86->reason & 0xFFFF) {
    case REASON_CPUID:
        return rift_hvf_x86_exit_cpuid(cpu, error);
    case REASON_HLT:
        return decode_halt(cpu, exit, error);
    case REASON_VMCALL:
        return decode_hypercall(cpu, exit, error);
    case REASON_MOV_CR:
        return rift_hvf_x86_exit_mov_cr(cpu, error);
    case REASON_MOV_DR:
        return rift_hvf_x86_exit_mov_dr(cpu, error);
    case REASON_IO:
        return rift_hvf_x86_exit_io(cpu, exit, error);
    case REASON_RDMSR:
    case REASON_WRMSR:
        return rift_hvf_x86_exit_msr(cpu, (x86->reason & 0xFFFF) == REASON_WRMSR, exit, error);
    case REASON_XSETBV:
        return rift_hvf_x86_exit_xsetbv(cpu, error);
    case REASON_INVLPG:
    case REASON_INVPCID: /* of more than it asks for */
        return rift_hvf_x86_flush(cpu, error) ? -1 : skip(cpu, error);
    case REASON_RDTSC:
    case REASON_RDTSCP:
        return rift_hvf_x86_exit_rdtsc(cpu, (x86->reason & 0xFFFF) == REASON_RDTSCP, error);
    case REASON_RDPMC: /* CPUID tells of no counters */
        return rift_hvf_x86_raise(cpu, VECTOR_GP, 1, 0);
    default: /* REASON_INVD, _WBINVD, _PAUSE: caches are coherent, and waiting is the host's business */
        return skip(cpu, error);
    }
}

int rift_hvf_x86_decode(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    const uint32_t reason = x86->reason & 0xFFFF;
    *exit = (struct rift_exit){.raw_reason = x86->reason};
    cpu->open = 0;
    x86->open = OPEN_NOTHING;
    if (rift_hvf_x86_get(cpu, HV_RIP, &x86->rip, error) ||
        rift_hvf_x86_vmread(cpu, VMCS_RO_EXIT_QUALIFIC, &x86->qualification, error))
        return -1;
    if (x86->reason & REASON_ENTRY_FAILED)
        return decode_refused(cpu, exit);
    if (reason >= REASON_VMCLEAR && reason <= REASON_VMXON)
        return rift_hvf_x86_raise(cpu, VECTOR_UD, 0, 0); /* this CPU has no VMX */
    switch (reason) {
    case REASON_EXC_NMI:
        return rift_hvf_x86_exit_exception(cpu, exit, error);
    case REASON_IRQ: /* the host's own: nothing that the guest has done */
    case REASON_INIT:
    case REASON_IRQ_WINDOW:
    case REASON_NMI_WINDOW:
    case REASON_TPR_THRESHOLD:
    case REASON_TIMER:
        return RIFT_HVF_REENTER;
    case REASON_TRIPLE_FAULT:
        exit->kind = RIFT_EXIT_SHUTDOWN;
        return RIFT_HVF_DISPATCH;
    case REASON_EPT_VIOLATION:
        return rift_hvf_x86_exit_ept(cpu, exit, error);
    case REASON_MTF:
        exit->kind = RIFT_EXIT_DEBUG;
        exit->address = x86->rip;
        exit->info[0] = 1;
        return RIFT_HVF_DISPATCH;
    case REASON_GETSEC:
    case REASON_MWAIT:
    case REASON_MONITOR:
    case REASON_INVEPT:
    case REASON_INVVPID:
    case REASON_VMFUNC:
        return rift_hvf_x86_raise(cpu, VECTOR_UD, 0, 0); /* CPUID tells of none of them */
    case REASON_CPUID:
    case REASON_HLT:
    case REASON_INVD:
    case REASON_INVLPG:
    case REASON_INVPCID:
    case REASON_RDPMC:
    case REASON_RDTSC:
    case REASON_RDTSCP:
    case REASON_VMCALL:
    case REASON_MOV_CR:
    case REASON_MOV_DR:
    case REASON_IO:
    case REASON_RDMSR:
    case REASON_WRMSR:
    case REASON_PAUSE:
    case REASON_WBINVD:
    case REASON_XSETBV:
        return decode_instruction(cpu, exit, error);
    default:
        exit->kind = RIFT_EXIT_UNKNOWN;
        return RIFT_HVF_DISPATCH;
    }
}

static int complete_msr(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_error *error) {
    if (rift_hvf_x86_set(cpu, HV_RAX, value & 0xFFFFFFFF, error))
        return -1;
    return rift_hvf_x86_set(cpu, HV_RDX, value >> 32, error);
}

int rift_hvf_x86_complete(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_exit *exit, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    const uint32_t open = x86->open;
    if (open == OPEN_MMIO)
        return rift_hvf_x86_complete_mmio(cpu, value, exit, error);
    x86->open = OPEN_NOTHING;
    cpu->open = 0;
    switch (open) {
    case OPEN_IN:
    case OPEN_INS:
        return rift_hvf_x86_complete_io(cpu, value, open == OPEN_INS, error);
    case OPEN_RDMSR:
        if (complete_msr(cpu, value, error))
            return -1;
        break;
    case OPEN_HYPERCALL:
        if (rift_hvf_x86_set(cpu, HV_RAX, value, error))
            return -1;
        break;
    default: /* OPEN_WRMSR */
        break;
    }
    return rift_hvf_x86_advance(cpu, x86->length, error);
}

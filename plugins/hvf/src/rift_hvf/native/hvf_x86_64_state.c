/* The vector state, and a vCPU's whole state as one block of bytes. */
#include "hvf_x86_64.h"

#include <errno.h>
#include <string.h>

int rift_hvf_x86_fetch_fpu(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    if (x86->fpu_valid)
        return 0;
    if (!cpu->framework->x86.read_fpstate)
        return rift_hvf_fail(error, EOPNOTSUPP, "hv_vcpu_read_fpstate");
    int status = cpu->framework->x86.read_fpstate((uint32_t)cpu->id, x86->fpu, X86_FPU_BYTES);
    if (status != HV_SUCCESS)
        return rift_hvf_fail(error, status, "hv_vcpu_read_fpstate");
    x86->fpu_valid = 1;
    return 0;
}

int rift_hvf_x86_store_fpu(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    if (!cpu->framework->x86.write_fpstate)
        return rift_hvf_fail(error, EOPNOTSUPP, "hv_vcpu_write_fpstate");
    int status = cpu->framework->x86.write_fpstate((uint32_t)cpu->id, x86->fpu, X86_FPU_BYTES);
    if (status != HV_SUCCESS) {
        x86->fpu_valid = x86->fpu_changed = 0;
        return rift_hvf_fail(error, status, "hv_vcpu_write_fpstate");
    }
    x86->fpu_changed = 0;
    return 0;
}

/* -- save and restore ------------------------------------------------------------------------------------ */

#define MAGIC UINT64_C(0x3656484558544652) /* RFTXHV6 and a version */
enum { VERSION = 1 };

static const uint16_t registers[] = {
    HV_RIP, HV_RFLAGS, HV_RAX, HV_RCX, HV_RDX, HV_RBX, HV_RSI, HV_RDI, HV_RSP, HV_RBP, HV_R8, HV_R8 + 1, HV_R8 + 2,
    HV_R8 + 3, HV_R8 + 4, HV_R8 + 5, HV_R8 + 6, HV_R15, HV_CR2, HV_DR6, HV_XCR0,
};

/* Besides the segments. Control registers as they are, with their shadows; VMENTRY_IRQ_INFO: an event that was given
 * to the framework, and whose entry did not come about. */
static const uint16_t fields[] = {
    VMCS_GUEST_GDTR_BASE, VMCS_GUEST_GDTR_LIMIT, VMCS_GUEST_IDTR_BASE, VMCS_GUEST_IDTR_LIMIT, VMCS_GUEST_CR0,
    VMCS_CTRL_CR0_SHADOW, VMCS_GUEST_CR3, VMCS_GUEST_CR4, VMCS_CTRL_CR4_SHADOW, VMCS_GUEST_INTERRUPTIBILITY,
    VMCS_GUEST_ACTIVITY_STATE, VMCS_GUEST_DEBUG_EXC, VMCS_CTRL_VMENTRY_IRQ_INFO, VMCS_CTRL_VMENTRY_EXC_ERROR,
    VMCS_CTRL_VMENTRY_INSTR_LEN,
};

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

struct state {
    uint64_t magic;
    uint32_t version, bytes;
    uint64_t registers[COUNT(registers)];
    uint64_t fields[COUNT(fields)];
    uint64_t segments[8][4]; /* selector, base, limit, attributes */
    uint64_t efer, cr8, pat, apic_base;
    uint64_t msrs[X86_MSR_COUNT];
    uint64_t debug[5]; /* the guest's own DR0 to DR3, DR7 */
    uint32_t event, event_code, event_length, interrupt, has_fpu, unused;
    uint8_t fpu[X86_FPU_BYTES];
};

static const uint16_t segment_fields[4] = {VMCS_GUEST_ES, VMCS_GUEST_ES_BASE, VMCS_GUEST_ES_LIMIT, VMCS_GUEST_ES_AR};

enum { TSC_INDEX = 6 }; /* of rift_hvf_x86_msrs: it goes on by itself, and is not turned back */

int rift_hvf_x86_save(struct rift_hvf_cpu *cpu, void *buffer, size_t *bytes, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    struct state *state = buffer;
    const size_t room = *bytes;
    *bytes = sizeof(*state);
    if (room < sizeof(*state))
        return rift_hvf_fail(error, ENOSPC, "save");
    memset(state, 0, sizeof(*state));
    state->magic = MAGIC;
    state->version = VERSION;
    state->bytes = sizeof(*state);
    for (uint32_t at = 0; at < COUNT(registers); ++at)
        if (rift_hvf_x86_get(cpu, registers[at], &state->registers[at], error))
            return -1;
    for (uint32_t at = 0; at < COUNT(fields); ++at)
        if (rift_hvf_x86_vmread(cpu, fields[at], &state->fields[at], error))
            return -1;
    for (uint32_t segment = 0; segment < 8; ++segment)
        for (uint32_t part = 0; part < 4; ++part)
            if (rift_hvf_x86_vmread(cpu, segment_fields[part] + 2 * segment, &state->segments[segment][part], error))
                return -1;
    for (uint32_t at = 0; at < X86_MSR_COUNT; ++at)
        if (at != TSC_INDEX && rift_hvf_x86_read_msr(cpu, at, &state->msrs[at], error))
            return -1;
    for (uint32_t at = 0; at < 5; ++at)
        if (rift_hvf_x86_read_debug(cpu, at, &state->debug[at], error))
            return -1;
    if (rift_hvf_x86_vmread(cpu, VMCS_GUEST_IA32_EFER, &state->efer, error))
        return -1;
    state->cr8 = x86->cr8;
    state->pat = x86->pat;
    state->apic_base = x86->apic_base;
    state->event = x86->event;
    state->event_code = x86->event_code;
    state->event_length = x86->event_length;
    state->interrupt = x86->interrupt;
    if (cpu->framework->x86.read_fpstate) {
        if (rift_hvf_x86_fetch_fpu(cpu, error))
            return -1;
        state->has_fpu = 1;
        memcpy(state->fpu, x86->fpu, sizeof(state->fpu));
    }
    return 0;
}

static int restore_system(struct rift_hvf_cpu *cpu, const struct state *state, struct rift_error *error) {
    if (rift_hvf_x86_write_efer(cpu, state->efer, error))
        return -1;
    for (uint32_t at = 0; at < COUNT(fields); ++at)
        if (rift_hvf_x86_vmwrite(cpu, fields[at], state->fields[at], error))
            return -1;
    for (uint32_t segment = 0; segment < 8; ++segment)
        for (uint32_t part = 0; part < 4; ++part)
            if (rift_hvf_x86_vmwrite(cpu, segment_fields[part] + 2 * segment, state->segments[segment][part], error))
                return -1;
    for (uint32_t at = 0; at < X86_MSR_COUNT; ++at)
        if (at != TSC_INDEX && rift_hvf_x86_write_msr(cpu, at, state->msrs[at], error))
            return -1;
    for (uint32_t at = 0; at < 5; ++at)
        if (rift_hvf_x86_write_debug(cpu, at, state->debug[at], error))
            return -1;
    return rift_hvf_x86_flush(cpu, error);
}

int rift_hvf_x86_restore(struct rift_hvf_cpu *cpu, const void *buffer, size_t bytes, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    struct state state;
    if (bytes != sizeof(state))
        return rift_hvf_fail(error, EINVAL, "restore");
    memcpy(&state, buffer, sizeof(state)); /* the buffer need not be aligned */
    if (state.magic != MAGIC || state.version != VERSION || state.bytes != sizeof(state))
        return rift_hvf_fail(error, EINVAL, "restore");
    if (restore_system(cpu, &state, error))
        return -1;
    for (uint32_t at = 0; at < COUNT(registers); ++at)
        if (rift_hvf_x86_set(cpu, registers[at], state.registers[at], error))
            return -1;
    x86->cr8 = state.cr8;
    x86->pat = state.pat;
    x86->apic_base = state.apic_base;
    x86->event = state.event;
    x86->event_code = state.event_code;
    x86->event_length = state.event_length;
    x86->interrupt = state.interrupt;
    x86->open = OPEN_NOTHING;
    cpu->open = 0;
    if (!state.has_fpu)
        return 0;
    memcpy(x86->fpu, state.fpu, sizeof(state.fpu));
    x86->fpu_valid = 1;
    return rift_hvf_x86_store_fpu(cpu, error);
}

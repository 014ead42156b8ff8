/* Hypervisor.framework of an Intel Mac that runs nothing: its exits are those that a test has written down. What the
 * backend answers is in registers and VMCS fields, which the test reads.
 *
 * A script is a row of exits; each begins with rift_script_exit and has what rift_script_field and _register add. */
#include "stand_in.h"

#include <stdlib.h>
#include <string.h>

enum { FIELDS = 0x6c1a, REGISTERS = 51, MOST_EXITS = 64, MOST_CHANGES = 32, RIP = 0, NO_MORE = 999 };
enum { F_REASON = 0x4402, F_IDT_INFO = 0x4408, F_IRQ_INFO = 0x4404, F_ENTRY_EVENT = 0x4016 };

struct change {
    int is_field;
    uint32_t number;
    uint64_t value;
};

static struct {
    struct {
        struct change changes[MOST_CHANGES];
        unsigned count;
    } exits[MOST_EXITS];
    unsigned count, next;
    uint64_t fields[FIELDS], registers[REGISTERS], msr_values[64];
    uint32_t msrs[64];
    unsigned msr_count;
    uint64_t delivered; /* the last event that an entry has delivered */
    int exists, has_vcpu;
} script;

EXPORT void rift_script_reset(void) {
    script.count = script.next = 0;
    script.delivered = 0;
}

static void add(int is_field, uint32_t number, uint64_t value) {
    unsigned at = script.count - 1;
    script.exits[at].changes[script.exits[at].count++] = (struct change){is_field, number, value};
}

EXPORT void rift_script_exit(uint32_t reason) {
    script.exits[script.count++].count = 0;
    add(1, F_REASON, reason);
    add(1, F_IDT_INFO, 0);
    add(1, F_IRQ_INFO, 0);
}

EXPORT void rift_script_field(uint32_t field, uint64_t value) {
    add(1, field, value);
}

EXPORT void rift_script_register(uint32_t number, uint64_t value) {
    add(0, number, value);
}

EXPORT uint64_t rift_script_get_field(uint32_t field) {
    return script.fields[field];
}

EXPORT uint64_t rift_script_get_register(uint32_t number) {
    return script.registers[number];
}

EXPORT uint64_t rift_script_delivered(void) {
    return script.delivered;
}

EXPORT unsigned rift_script_left(void) {
    return script.count - script.next;
}

/* -- the framework's functions ----------------------------------------------------------------------------------------- */

EXPORT int hv_vm_create(uint64_t flags) {
    CALL();
    (void)flags;
    if (script.exists)
        return HV_BUSY;
    script.exists = 1;
    return HV_SUCCESS;
}

EXPORT int hv_vm_destroy(void) {
    CALL();
    script.exists = 0;
    return HV_SUCCESS;
}

EXPORT int hv_vm_map(void *address, uint64_t gpa, size_t bytes, uint64_t flags) {
    CALL();
    (void)address, (void)gpa, (void)bytes, (void)flags;
    return HV_SUCCESS;
}

EXPORT int hv_vm_unmap(uint64_t gpa, size_t bytes) {
    CALL();
    (void)gpa, (void)bytes;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_create(uint32_t *vcpu, uint64_t flags) {
    CALL();
    (void)flags;
    if (script.has_vcpu)
        return HV_BUSY;
    script.has_vcpu = 1;
    script.msr_count = 0;
    memset(script.fields, 0, sizeof(script.fields));
    memset(script.registers, 0, sizeof(script.registers));
    *vcpu = 0;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_destroy(uint32_t vcpu) {
    CALL();
    (void)vcpu;
    script.has_vcpu = 0;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_read_register(uint32_t vcpu, uint32_t number, uint64_t *value) {
    (void)vcpu;
    if (number >= REGISTERS)
        return HV_BAD_ARGUMENT;
    *value = script.registers[number];
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_write_register(uint32_t vcpu, uint32_t number, uint64_t value) {
    (void)vcpu;
    if (number >= REGISTERS)
        return HV_BAD_ARGUMENT;
    script.registers[number] = value;
    return HV_SUCCESS;
}

EXPORT int hv_vmx_vcpu_read_vmcs(uint32_t vcpu, uint32_t field, uint64_t *value) {
    (void)vcpu;
    if (field >= FIELDS)
        return HV_BAD_ARGUMENT;
    *value = script.fields[field];
    return HV_SUCCESS;
}

EXPORT int hv_vmx_vcpu_write_vmcs(uint32_t vcpu, uint32_t field, uint64_t value) {
    (void)vcpu;
    if (field >= FIELDS)
        return HV_BAD_ARGUMENT;
    script.fields[field] = value;
    return HV_SUCCESS;
}

/* Everything may be 1, and what the manual says must be. */
EXPORT int hv_vmx_read_capability(uint32_t which, uint64_t *value) {
    static const uint32_t must[5] = {0x16, 0x04006172, 0, 0x11ff, 0x36dff};
    if (which > 4)
        return HV_BAD_ARGUMENT;
    *value = UINT64_C(0xFFFFFFFF) << 32 | must[which];
    return HV_SUCCESS;
}

static uint8_t fpstate[4096] __attribute__((aligned(64)));

EXPORT int hv_vcpu_read_fpstate(uint32_t vcpu, void *buffer, size_t bytes) {
    CALL();
    (void)vcpu;
    if (bytes > sizeof(fpstate))
        return HV_BAD_ARGUMENT;
    memcpy(buffer, fpstate, bytes);
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_write_fpstate(uint32_t vcpu, const void *buffer, size_t bytes) {
    CALL();
    (void)vcpu;
    if (bytes > sizeof(fpstate))
        return HV_BAD_ARGUMENT;
    memcpy(fpstate, buffer, bytes);
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_enable_native_msr(uint32_t vcpu, uint32_t msr, bool enable) {
    CALL();
    (void)vcpu, (void)enable;
    if (script.msr_count == 64)
        return HV_NO_RESOURCES;
    script.msr_values[script.msr_count] = 0;
    script.msrs[script.msr_count++] = msr;
    return HV_SUCCESS;
}

static uint64_t *msr_place(uint32_t msr) {
    for (unsigned at = 0; at < script.msr_count; ++at)
        if (script.msrs[at] == msr)
            return &script.msr_values[at];
    return 0;
}

EXPORT int hv_vcpu_read_msr(uint32_t vcpu, uint32_t msr, uint64_t *value) {
    (void)vcpu;
    if (!msr_place(msr))
        return HV_ERROR;
    *value = *msr_place(msr);
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_write_msr(uint32_t vcpu, uint32_t msr, uint64_t value) {
    (void)vcpu;
    if (!msr_place(msr))
        return HV_ERROR;
    *msr_place(msr) = value;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_invalidate_tlb(uint32_t vcpu) {
    CALL();
    (void)vcpu;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_interrupt(uint32_t *vcpus, unsigned count) {
    CALL();
    (void)vcpus, (void)count;
    return HV_SUCCESS;
}

/* An entry delivers the event that is wanted, and the next exit of the script comes at once. */
EXPORT int hv_vcpu_run_until(uint32_t vcpu, uint64_t deadline) {
    CALL();
    (void)vcpu, (void)deadline;
    if (script.fields[F_ENTRY_EVENT] >> 31 & 1) {
        script.delivered = script.fields[F_ENTRY_EVENT];
        script.fields[F_ENTRY_EVENT] &= ~(UINT64_C(1) << 31);
    }
    if (script.next == script.count) {
        script.fields[F_REASON] = NO_MORE;
        return HV_SUCCESS;
    }
    for (unsigned at = 0; at < script.exits[script.next].count; ++at) {
        const struct change *change = &script.exits[script.next].changes[at];
        if (change->is_field)
            script.fields[change->number] = change->value;
        else
            script.registers[change->number] = change->value;
    }
    script.next += 1;
    return HV_SUCCESS;
}

EXPORT int hv_vcpu_run(uint32_t vcpu) {
    return hv_vcpu_run_until(vcpu, 0);
}

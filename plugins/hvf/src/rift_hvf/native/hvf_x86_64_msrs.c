/* MSRs and the time-stamp counter: native ones are the framework's, the others are kept or answered here. */
#include "hvf_x86_64.h"

#include <errno.h>

enum { MSR_APIC_BASE = 0x1B, MSR_BIOS_SIGN = 0x8B, MSR_MISC_ENABLE = 0x1A0, MSR_PAT = 0x277 };
enum { MSR_TSC = 0x10, MSR_SYSENTER_CS = 0x174, MSR_SYSENTER_ESP = 0x175, MSR_SYSENTER_EIP = 0x176 };
#define MSR_EFER 0xC0000080u
#define MSR_LSTAR 0xC0000082u
#define MSR_CSTAR 0xC0000083u
#define MSR_FS_BASE 0xC0000100u
#define MSR_GS_BASE 0xC0000101u
#define MSR_KERNEL_GS_BASE 0xC0000102u
#define MSR_TSC_AUX 0xC0000103u

#define EFER_KNOWN (EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE)

static uint32_t index_of(uint32_t msr) {
    uint32_t at = 0;
    while (at < X86_MSR_COUNT && rift_hvf_x86_msrs[at] != msr)
        ++at;
    return at;
}

/* SYSENTER's MSRs are fields of the VMCS, native or not. */
static uint32_t sysenter_field(uint32_t index) {
    switch (rift_hvf_x86_msrs[index]) {
    case MSR_SYSENTER_CS:
        return VMCS_GUEST_SYSENTER_CS;
    case MSR_SYSENTER_ESP:
        return VMCS_GUEST_SYSENTER_ESP;
    case MSR_SYSENTER_EIP:
        return VMCS_GUEST_SYSENTER_EIP;
    default:
        return 0;
    }
}

/* The guest's time-stamp counter, where the framework does not tell it. */
static int read_tsc(const struct rift_hvf_cpu *cpu, uint64_t *value, struct rift_error *error) {
    uint64_t offset;
    if (rift_hvf_x86_vmread(cpu, VMCS_CTRL_TSC_OFFSET, &offset, error))
        return -1;
    *value = rift_hvf_x86_host_tsc() + offset;
    return 0;
}

int rift_hvf_x86_read_msr(const struct rift_hvf_cpu *cpu, uint32_t index, uint64_t *value, struct rift_error *error) {
    const struct rift_hvf_x86 *x86 = x86_of(cpu);
    uint32_t field = sysenter_field(index);
    if (field)
        return rift_hvf_x86_vmread(cpu, field, value, error);
    if (!(x86->native & 1u << index)) {
        if (rift_hvf_x86_msrs[index] == MSR_TSC)
            return read_tsc(cpu, value, error);
        *value = x86->msrs[index];
        return 0;
    }
    int status = cpu->framework->x86.read_msr((uint32_t)cpu->id, rift_hvf_x86_msrs[index], value);
    return status == HV_SUCCESS ? 0 : rift_hvf_fail(error, status, "hv_vcpu_read_msr");
}

int rift_hvf_x86_write_msr(const struct rift_hvf_cpu *cpu, uint32_t index, uint64_t value, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    uint32_t field = sysenter_field(index);
    if (field)
        return rift_hvf_x86_vmwrite(cpu, field, value, error);
    if (!(x86->native & 1u << index)) {
        if (rift_hvf_x86_msrs[index] == MSR_TSC)
            return rift_hvf_x86_vmwrite(cpu, VMCS_CTRL_TSC_OFFSET, value - rift_hvf_x86_host_tsc(), error);
        x86->msrs[index] = value;
        return 0;
    }
    int status = cpu->framework->x86.write_msr((uint32_t)cpu->id, rift_hvf_x86_msrs[index], value);
    return status == HV_SUCCESS ? 0 : rift_hvf_fail(error, status, "hv_vcpu_write_msr");
}

/* -- the exits ---------------------------------------------------------------------------------------------- */

/* Exits only where a CPU insists on it; user mode's right was looked at before. */
int rift_hvf_x86_exit_rdtsc(struct rift_hvf_cpu *cpu, int rdtscp, struct rift_error *error) {
    uint64_t value, number;
    if (rift_hvf_x86_read_msr(cpu, index_of(MSR_TSC), &value, error) ||
        rift_hvf_x86_set(cpu, HV_RAX, value & 0xFFFFFFFF, error) || rift_hvf_x86_set(cpu, HV_RDX, value >> 32, error))
        return -1;
    if (rdtscp && (rift_hvf_x86_read_msr(cpu, index_of(MSR_TSC_AUX), &number, error) ||
                   rift_hvf_x86_set(cpu, HV_RCX, number & 0xFFFFFFFF, error)))
        return -1;
    return rift_hvf_x86_advance(cpu, x86_of(cpu)->length, error) ? -1 : RIFT_HVF_REENTER;
}

/* What a known MSR answers. Returns 0 (done), 1 (nobody knows it), 2 (#GP) or -1. */
static int known_read(const struct rift_hvf_cpu *cpu, uint32_t msr, uint64_t *value, struct rift_error *error) {
    const struct rift_hvf_x86 *x86 = x86_of(cpu);
    switch (msr) {
    case MSR_EFER:
        return rift_hvf_x86_vmread(cpu, VMCS_GUEST_IA32_EFER, value, error);
    case MSR_FS_BASE:
        return rift_hvf_x86_vmread(cpu, VMCS_GUEST_ES_BASE + 2 * SEGMENT_FS, value, error);
    case MSR_GS_BASE:
        return rift_hvf_x86_vmread(cpu, VMCS_GUEST_ES_BASE + 2 * SEGMENT_GS, value, error);
    case MSR_PAT:
        *value = x86->pat;
        return 0;
    case MSR_APIC_BASE:
        *value = x86->apic_base;
        return 0;
    case MSR_MISC_ENABLE: /* fast strings; no performance monitoring, BTS and PEBS unavailable */
        *value = 1 | 1 << 11 | 1 << 12;
        return 0;
    case MSR_BIOS_SIGN: /* no microcode update */
        *value = 0;
        return 0;
    default:
        return index_of(msr) < X86_MSR_COUNT ? rift_hvf_x86_read_msr(cpu, index_of(msr), value, error) : 1;
    }
}

static int canonical(uint64_t address) {
    return (uint64_t)((int64_t)(address << 16) >> 16) == address;
}

static int is_address(uint32_t msr) {
    return msr == MSR_LSTAR || msr == MSR_CSTAR || msr == MSR_KERNEL_GS_BASE || msr == MSR_SYSENTER_ESP ||
           msr == MSR_SYSENTER_EIP;
}

/* Every byte is a memory type: SDM volume 3, 12.12.2. */
static int pat_allowed(uint64_t value) {
    for (uint32_t at = 0; at < 8; ++at) {
        uint32_t type = value >> 8 * at & 0xFF;
        if (type > 7 || type == 2 || type == 3)
            return 0;
    }
    return 1;
}

static int known_write(struct rift_hvf_cpu *cpu, uint32_t msr, uint64_t value, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    uint64_t old, cr0;
    switch (msr) {
    case MSR_EFER:
        if (rift_hvf_x86_vmread(cpu, VMCS_GUEST_IA32_EFER, &old, error) ||
            rift_hvf_x86_vmread(cpu, VMCS_GUEST_CR0, &cr0, error))
            return -1;
        if ((value & ~EFER_KNOWN) || ((cr0 & CR0_PG) && ((old ^ value) & EFER_LME)))
            return 2;
        return rift_hvf_x86_write_efer(cpu, (value & ~EFER_LMA) | (old & EFER_LMA), error);
    case MSR_FS_BASE:
    case MSR_GS_BASE:
        if (!canonical(value))
            return 2;
        return rift_hvf_x86_vmwrite(cpu, VMCS_GUEST_ES_BASE + 2 * (msr == MSR_FS_BASE ? SEGMENT_FS : SEGMENT_GS), value,
                                    error);
    case MSR_PAT: /* kept, and never loaded: the framework does not let it be set */
        if (!pat_allowed(value))
            return 2;
        x86->pat = value;
        return 0;
    case MSR_APIC_BASE:
        x86->apic_base = value;
        return 0;
    case MSR_MISC_ENABLE:
    case MSR_BIOS_SIGN:
        return 0;
    default:
        if (index_of(msr) == X86_MSR_COUNT)
            return 1;
        return is_address(msr) && !canonical(value) ? 2 : rift_hvf_x86_write_msr(cpu, index_of(msr), value, error);
    }
}

int rift_hvf_x86_exit_msr(struct rift_hvf_cpu *cpu, int write, struct rift_exit *exit, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    uint64_t number, value = 0;
    if (rift_hvf_x86_get(cpu, HV_RCX, &number, error) || (write && rift_hvf_x86_read_pair(cpu, &value, error)))
        return -1;
    int known = write ? known_write(cpu, (uint32_t)number, value, error) : known_read(cpu, (uint32_t)number, &value, error);
    if (known < 0)
        return -1;
    if (known == 2 || (known == 1 && !(cpu->flags & RIFT_HVF_SYSTEM_REGISTER_EXITS)))
        return rift_hvf_x86_raise(cpu, VECTOR_GP, 1, 0);
    if (known == 1) {
        exit->kind = RIFT_EXIT_SYSTEM_REGISTER;
        exit->address = (uint32_t)number;
        exit->size = 8;
        exit->is_write = (uint32_t)write;
        exit->value = value;
        x86->open = write ? OPEN_WRMSR : OPEN_RDMSR;
        cpu->open = 1;
        return RIFT_HVF_DISPATCH;
    }
    if (!write && (rift_hvf_x86_set(cpu, HV_RAX, value & 0xFFFFFFFF, error) ||
                   rift_hvf_x86_set(cpu, HV_RDX, value >> 32, error)))
        return -1;
    return rift_hvf_x86_advance(cpu, x86->length, error) ? -1 : RIFT_HVF_REENTER;
}

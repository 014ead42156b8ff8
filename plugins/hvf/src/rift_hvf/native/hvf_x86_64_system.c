/* Control registers, CPUID and XSETBV: what always exits, answered as a plain CPU without VMX would. */
#include "hvf_x86_64.h"

#include <errno.h>

enum { RDTSCP_OR_RDPID = 1 << 27 };

/* CR0 and CR4 bits of the manual's tables, SDM volume 3, 2.5; a 1 in any other is #GP. VMX, SMX and what needs
 * support of the hypervisor (CET, PKS, user interrupts) are not offered. */
#define CR0_KNOWN UINT64_C(0xE005003F)
#define CR4_KNOWN UINT64_C(0x00770FFF)

/* -- registers that are more than a field ----------------------------------------------------------------- */

int rift_hvf_x86_read_masked(const struct rift_hvf_cpu *cpu, uint32_t field, uint32_t mask, uint32_t shadow,
                             uint64_t *value, struct rift_error *error) {
    uint64_t real, covered, shown;
    if (rift_hvf_x86_vmread(cpu, field, &real, error) || rift_hvf_x86_vmread(cpu, mask, &covered, error) ||
        rift_hvf_x86_vmread(cpu, shadow, &shown, error))
        return -1;
    *value = (real & ~covered) | (shown & covered);
    return 0;
}

/* NE must be 1 while VMX is on; the guest sees what it has written. */
int rift_hvf_x86_write_cr0(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_error *error) {
    if (rift_hvf_x86_vmwrite(cpu, VMCS_GUEST_CR0, value | CR0_NE, error) ||
        rift_hvf_x86_vmwrite(cpu, VMCS_CTRL_CR0_SHADOW, value, error))
        return -1;
    return rift_hvf_x86_flush(cpu, error);
}

/* So must VMXE, which a guest never sees. */
int rift_hvf_x86_write_cr4(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_error *error) {
    if (rift_hvf_x86_vmwrite(cpu, VMCS_GUEST_CR4, value | CR4_VMXE, error) ||
        rift_hvf_x86_vmwrite(cpu, VMCS_CTRL_CR4_SHADOW, value & ~CR4_VMXE, error))
        return -1;
    return rift_hvf_x86_flush(cpu, error);
}

/* The entry control says whether the guest is in long mode: SDM volume 3, 26.3.1.1. */
int rift_hvf_x86_write_efer(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_error *error) {
    const struct rift_hvf_x86 *x86 = x86_of(cpu);
    uint32_t controls = x86->entry_controls | (value & EFER_LMA ? ENTRY_IA32E : 0);
    if (rift_hvf_x86_vmwrite(cpu, VMCS_GUEST_IA32_EFER, value, error) ||
        rift_hvf_x86_vmwrite(cpu, VMCS_CTRL_VMENTRY_CONTROLS, controls, error))
        return -1;
    return rift_hvf_x86_flush(cpu, error);
}

/* -- CPUID, XSETBV -------------------------------------------------------------------------------------- */

int rift_hvf_x86_exit_cpuid(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    const struct rift_hvf_x86 *x86 = x86_of(cpu);
    uint64_t leaf, subleaf, cr4, xcr0;
    if (rift_hvf_x86_get(cpu, HV_RAX, &leaf, error) || rift_hvf_x86_get(cpu, HV_RCX, &subleaf, error) ||
        rift_hvf_x86_vmread(cpu, VMCS_GUEST_CR4, &cr4, error) || rift_hvf_x86_get(cpu, HV_XCR0, &xcr0, error))
        return -1;
    uint32_t result[4];
    rift_hvf_x86_cpuid((uint32_t)leaf, (uint32_t)subleaf, cpu->index, (cr4 & CR4_OSXSAVE) != 0, xcr0, result);
    if ((uint32_t)leaf == 7 && !(x86->cpu_based2 & CPU2_INVPCID))
        result[1] &= ~(1u << 10);
    if ((uint32_t)leaf == 7 && !(x86->cpu_based2 & CPU2_RDTSCP))
        result[2] &= ~(1u << 22);
    if ((uint32_t)leaf == 0x80000001 && !(x86->cpu_based2 & CPU2_RDTSCP))
        result[3] &= ~(uint32_t)RDTSCP_OR_RDPID;
    if (rift_hvf_x86_set(cpu, HV_RAX, result[0], error) || rift_hvf_x86_set(cpu, HV_RBX, result[1], error) ||
        rift_hvf_x86_set(cpu, HV_RCX, result[2], error) || rift_hvf_x86_set(cpu, HV_RDX, result[3], error) ||
        rift_hvf_x86_advance(cpu, x86->length, error))
        return -1;
    return RIFT_HVF_REENTER;
}

int rift_hvf_x86_read_pair(const struct rift_hvf_cpu *cpu, uint64_t *value, struct rift_error *error) {
    uint64_t low, high;
    if (rift_hvf_x86_get(cpu, HV_RAX, &low, error) || rift_hvf_x86_get(cpu, HV_RDX, &high, error))
        return -1;
    *value = (high & 0xFFFFFFFF) << 32 | (low & 0xFFFFFFFF);
    return 0;
}

/* What XCR0 may hold: SDM volume 1, 13.3. */
static int xcr0_allowed(uint64_t value) {
    const uint64_t avx512 = 0xE0;
    if (!(value & 1) || (value & ~rift_hvf_x86_host_xcr0()))
        return 0;
    if ((value & 4) && !(value & 2))
        return 0;
    return !(value & avx512) || ((value & avx512) == avx512 && (value & 4));
}

int rift_hvf_x86_exit_xsetbv(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    uint64_t cr4, number, value;
    uint32_t privilege;
    if (rift_hvf_x86_vmread(cpu, VMCS_GUEST_CR4, &cr4, error) || rift_hvf_x86_get(cpu, HV_RCX, &number, error) ||
        rift_hvf_x86_read_pair(cpu, &value, error) || rift_hvf_x86_privilege(cpu, &privilege, error))
        return -1;
    if (!(cr4 & CR4_OSXSAVE))
        return rift_hvf_x86_raise(cpu, VECTOR_UD, 0, 0);
    if (privilege != 0 || (uint32_t)number != 0 || !xcr0_allowed(value))
        return rift_hvf_x86_raise(cpu, VECTOR_GP, 1, 0);
    if (rift_hvf_x86_set(cpu, HV_XCR0, value, error) || rift_hvf_x86_advance(cpu, x86_of(cpu)->length, error))
        return -1;
    return RIFT_HVF_REENTER;
}

/* -- MOV CR ---------------------------------------------------------------------------------------------- */

/* Exits only where a bit that its mask covers would change: NE, and PG where the CPU does not save EFER. */
static int guest_writes_cr0(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_error *error) {
    uint64_t old, cs, efer, cr4;
    if (rift_hvf_x86_vmread(cpu, VMCS_GUEST_CR0, &old, error) || rift_hvf_x86_vmread(cpu, VMCS_GUEST_CR4, &cr4, error) ||
        rift_hvf_x86_vmread(cpu, VMCS_GUEST_CS_AR, &cs, error) ||
        rift_hvf_x86_vmread(cpu, VMCS_GUEST_IA32_EFER, &efer, error))
        return -1;
    const int leaves_paging = (old & CR0_PG) && !(value & CR0_PG), enters_paging = !(old & CR0_PG) && (value & CR0_PG);
    const int in_64_bits = (cs & 1u << 13) != 0;
    if ((value & ~CR0_KNOWN) || ((value & CR0_PG) && !(value & CR0_PE)) || ((value & CR0_NW) && !(value & CR0_CD)) ||
        (leaves_paging && (((efer & EFER_LMA) && in_64_bits) || (cr4 & CR4_PCIDE))) ||
        (enters_paging && (efer & EFER_LME) && (!(cr4 & CR4_PAE) || in_64_bits)))
        return rift_hvf_x86_raise(cpu, VECTOR_GP, 1, 0);
    if (rift_hvf_x86_write_cr0(cpu, value, error))
        return -1;
    const int long_mode = (value & CR0_PG) && (efer & EFER_LME);
    if (long_mode != ((efer & EFER_LMA) != 0) &&
        rift_hvf_x86_write_efer(cpu, long_mode ? efer | EFER_LMA : efer & ~EFER_LMA, error))
        return -1;
    return rift_hvf_x86_advance(cpu, x86_of(cpu)->length, error) ? -1 : RIFT_HVF_REENTER;
}

static int guest_writes_cr4(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_error *error) {
    uint64_t efer;
    if (rift_hvf_x86_vmread(cpu, VMCS_GUEST_IA32_EFER, &efer, error))
        return -1;
    if ((value & ~CR4_KNOWN) || (value & CR4_VMXE) || ((efer & EFER_LMA) && !(value & CR4_PAE)))
        return rift_hvf_x86_raise(cpu, VECTOR_GP, 1, 0);
    if (rift_hvf_x86_write_cr4(cpu, value, error) || rift_hvf_x86_advance(cpu, x86_of(cpu)->length, error))
        return -1;
    return RIFT_HVF_REENTER;
}

static int guest_writes(struct rift_hvf_cpu *cpu, uint32_t number, uint64_t value, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    switch (number) {
    case 0:
        return guest_writes_cr0(cpu, value, error);
    case 3: /* bit 63 asks to keep translations */
        if ((value & ~(UINT64_C(1) << 63)) >> rift_hvf_x86_host_address_bits())
            return rift_hvf_x86_raise(cpu, VECTOR_GP, 1, 0);
        if (rift_hvf_x86_vmwrite(cpu, VMCS_GUEST_CR3, value & ~(UINT64_C(1) << 63), error) ||
            rift_hvf_x86_flush(cpu, error))
            return -1;
        break;
    case 4:
        return guest_writes_cr4(cpu, value, error);
    default: /* 8 */
        if (value > 15)
            return rift_hvf_x86_raise(cpu, VECTOR_GP, 1, 0);
        x86->cr8 = value;
        break;
    }
    return rift_hvf_x86_advance(cpu, x86->length, error) ? -1 : RIFT_HVF_REENTER;
}

static int guest_reads(struct rift_hvf_cpu *cpu, uint32_t number, uint64_t *value, struct rift_error *error) {
    switch (number) {
    case 0:
        return rift_hvf_x86_read_masked(cpu, VMCS_GUEST_CR0, VMCS_CTRL_CR0_MASK, VMCS_CTRL_CR0_SHADOW, value, error);
    case 3:
        return rift_hvf_x86_vmread(cpu, VMCS_GUEST_CR3, value, error);
    case 4:
        return rift_hvf_x86_read_masked(cpu, VMCS_GUEST_CR4, VMCS_CTRL_CR4_MASK, VMCS_CTRL_CR4_SHADOW, value, error);
    default: /* 8 */
        *value = x86_of(cpu)->cr8;
        return 0;
    }
}

/* Qualification: SDM volume 3, table 28-3. Register 3:0, access 5:4 (0 to it, 1 from it, 2 CLTS, 3 LMSW), general
 * register 11:8, LMSW's source 31:16. */
int rift_hvf_x86_exit_mov_cr(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    const struct rift_hvf_x86 *x86 = x86_of(cpu);
    const uint32_t number = x86->qualification & 15, access = x86->qualification >> 4 & 3;
    const uint32_t general = rift_hvf_x86_general(x86->qualification >> 8 & 15);
    const uint64_t lmsw_bits = 0xF;
    uint64_t value;
    if (access >= 2) {
        if (guest_reads(cpu, 0, &value, error))
            return -1;
        if (access == 2)
            return guest_writes_cr0(cpu, value & ~CR0_TS, error);
        uint64_t source = x86->qualification >> 16 & lmsw_bits;
        return guest_writes_cr0(cpu, (value & ~(lmsw_bits & ~CR0_PE)) | source, error); /* PE can only be set */
    }
    if (access == 0) {
        if (rift_hvf_x86_get(cpu, general, &value, error))
            return -1;
        return guest_writes(cpu, number, value, error);
    }
    if (guest_reads(cpu, number, &value, error) || rift_hvf_x86_set(cpu, general, value, error) ||
        rift_hvf_x86_advance(cpu, x86->length, error))
        return -1;
    return RIFT_HVF_REENTER;
}
